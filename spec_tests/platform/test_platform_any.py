# test_platform_any.py: what SPEC.md chapters 5 and 11 ask of every platform (MIT).
"""One rule each. `pull_platform` is one for scf or fg, `platform` any of the three."""

import json
import os
import pathlib
import re
import subprocess
from typing import Dict, List, Tuple

import pytest

import faults
import kit
import wire
from kit import Mismatch, same
from platform_run import CLOCKED, LIMITED, PAIR, PlatformUnderTest, PlatformRun

# ---- start and environment ----


def handled(run: PlatformRun, event: bytes = b"hello", result: bytes = b"done") -> None:
    """Raise Mismatch unless this event has this result, in any protocol."""
    if run.protocol == "fc":
        run.settled(run.served(event), result)
    else:
        run.finish(run.fetched(event), result)


def test_any_start_bootstrap(platform: PlatformUnderTest) -> None:
    """The file `bootstrap` at the top of the package is started."""
    with platform.used_run() as run:
        run.discard_idle()
        handled(run)


def test_any_start_bootstrap__exec(platform: PlatformUnderTest) -> None:
    """A blank after #! does no harm."""
    with platform.used_run() as run:
        run.discard_idle()
        with run.changed_bootstrap() as program:
            # in a process of its own: see changed_bootstrap()
            subprocess.run(["sed", "-i", "1s/#!/#! /", str(program)], check=True)
            handled(run)


def missing(path: pathlib.Path) -> None:
    """Take the file away."""
    path.unlink()


def not_executable(path: pathlib.Path) -> None:
    """Take its execute bits."""
    path.chmod(0o644)


def windows_lines(path: pathlib.Path) -> None:
    """Make it a script whose line ends no kernel reads."""
    path.write_bytes(b"#!/bin/sh\r\nexit 0\r\n")


def no_program(path: pathlib.Path) -> None:
    """Make it something that cannot be executed."""
    path.write_bytes(b"\x7fELF this is no program")


@pytest.mark.parametrize("spoil", [missing, not_executable, windows_lines, no_program],
                         ids=lambda one: one.__name__)
def test_any_start_executable(platform: PlatformUnderTest, spoil: object) -> None:
    """A bootstrap that cannot be executed is a start-error, for every event."""
    assert callable(spoil)
    with platform.used_run() as run:
        run.discard_idle()
        with run.changed_bootstrap() as program:
            spoil(program)
            for _ in range(2):
                run.issue(b"hello")
                run.outcome("start-error")


def test_any_package_mode(platform: PlatformUnderTest) -> None:
    """A ZIP package keeps the execute bit of its bootstrap."""
    platform.needs("packages")
    run = platform.run(zipped=True)
    handled(run)


EVIL = {"parent": "../evil", "absolute": "/tmp/kit-evil", "inner": "a/../../evil"}


@pytest.mark.parametrize("name", sorted(EVIL))
def test_any_package_zip(push_platform: PlatformUnderTest, name: str) -> None:
    """A ZIP package with an entry that leads out is refused."""
    push_platform.needs("packages")
    run = push_platform.run(zipped=True, extra=EVIL[name])
    run.refused()


def test_any_env_user(platform: PlatformUnderTest) -> None:
    """A variable of the user is there under its own name."""
    run = platform.run("--env", "MY_SETTING=a b=c")
    run.issue(b"hello")
    same("a b=c", run.instance().environ.get("MY_SETTING"))


def test_any_env_inherited(platform: PlatformUnderTest) -> None:
    """Of the platform's own environment four variables are there and no other."""
    run = platform.run(env={"KIT_SECRET": "x", "http_proxy": "http://127.0.0.1:1"})
    run.issue(b"hello")
    environ = run.instance().environ
    same([], [name for name in ("KIT_SECRET", "http_proxy") if name in environ])
    needed = ("PATH", "HOME", "TMPDIR", "LANG")
    same([], [name for name in needed if name not in environ])


@pytest.mark.parametrize("setting", ["1A=b", "A-B=c", "_A=b"])
def test_any_env_names(pull_platform: PlatformUnderTest, setting: str) -> None:
    """A variable whose name is none is refused."""
    pull_platform.run("--env", setting).refused()


RESERVED = {"scf": ["SCF_X", "QCLOUD_X", "TENCENTCLOUD_X"], "fg": ["RUNTIME_X"],
            "fc": ["FC_X"]}


def test_any_env_names__reserved(platform: PlatformUnderTest) -> None:
    """A variable whose name belongs to the platform is refused."""
    for name in RESERVED[platform.implementation.protocol]:
        platform.run("--env", f"{name}=y").refused()


def test_any_env_size(platform: PlatformUnderTest) -> None:
    """Variables over 4096 bytes in all are refused."""
    platform.run("--env", "A=" + "x" * 2048, "--env", "B=" + "x" * 2048).refused()


# ---- HTTP on the runtime API ----

BAD: Dict[str, Tuple[str, bytes]] = {
    "no-version": ("any.http.malformed", b"POST /x\r\n\r\n"),
    "four-words": ("any.http.malformed", b"POST /x y HTTP/1.1\r\n\r\n"),
    "other-protocol": ("any.http.malformed", b"POST /x FTP/1.1\r\n\r\n"),
    "no-token": ("any.http.malformed", b"PO(ST /x HTTP/1.1\r\n\r\n"),
    "tls": ("any.http.malformed", b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n"),
    "no-colon": ("any.http.malformed", b"{line}Nonsense\r\n\r\n"),
    "blank-name": ("any.http.malformed", b"{line}Content Length: 1\r\n\r\nx"),
    "blank-before-colon": ("any.http.malformed", b"{line}Content-Length : 1\r\n\r\nx"),
    "folded": ("any.http.malformed", b"{line}X-A: b\r\n c\r\n\r\n"),
    "bare-cr": ("any.http.malformed", b"{line}X-A: b\rc\r\n\r\n"),
    "nul": ("any.http.malformed", b"{line}X-A: b\0c\r\n\r\n"),
    "two-lengths": ("any.http.framing",
                    b"{line}Content-Length: 1\r\nContent-Length: 2\r\n\r\nxy"),
    "bad-length": ("any.http.framing", b"{line}Content-Length: +1\r\n\r\nx"),
    "hex-length": ("any.http.framing", b"{line}Content-Length: 0x1\r\n\r\nx"),
    "negative-length": ("any.http.framing", b"{line}Content-Length: -1\r\n\r\nx"),
    "length-and-chunked": ("any.http.framing", b"{line}Content-Length: 1\r\n"
                           b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n"),
    "bad-chunk-size": ("any.http.framing",
                       b"{line}Transfer-Encoding: chunked\r\n\r\nxyz\r\n"),
    "no-chunk-end": ("any.http.framing",
                     b"{line}Transfer-Encoding: chunked\r\n\r\n1\r\nxx\r\n0\r\n\r\n"),
    "negative-chunk": ("any.http.framing",
                       b"{line}Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n"),
    "many-fields": ("any.limits.head", b"{line}" + b"X-A: b\r\n" * 101 + b"\r\n"),
    "long-field": ("any.limits.head", b"{line}X-A: " + b"b" * 66_000 + b"\r\n\r\n"),
}
HTTP_CASES = [(name, BAD[name][0]) for name in sorted(BAD)]


@pytest.mark.parametrize("name,rule", HTTP_CASES)
def test_any_http_bad(pull_platform: PlatformUnderTest, name: str, rule: str) -> None:
    """A request that is no HTTP is answered 400 or 431, closed, and changes nothing."""
    pull_platform.needs("hostile")
    with pull_platform.fetched() as instance:
        line = f"POST {instance.result_path()} HTTP/1.1\r\n".encode()
        number = instance.open()
        instance.send(number, BAD[name][1].replace(b"{line}", line))
        reply = instance.read(number)
        same(431 if rule == "any.limits.head" else 400, reply.status, "status")
        same("closed", instance.read(number, bodiless=True).end, "the connection")
        instance.close(number)


def test_any_http_no_effect(pull_platform: PlatformUnderTest) -> None:
    """What follows a request that is no HTTP on its connection is not obeyed."""
    with pull_platform.used_run() as run:
        instance = run.fetched(b"hello")
        smuggled = wire.request_bytes("POST", instance.result_path(), (), b"smuggled")
        number = instance.open()
        instance.send(number, b"NONSENSE\r\n\r\n" + smuggled)
        same(400, instance.read(number).status, "status")
        instance.close(number)
        run.finish(instance, b"honest")


def test_any_http_no_effect__complete(pull_platform: PlatformUnderTest) -> None:
    """A result that ends before its announced length is none."""
    with pull_platform.used_run() as run:
        instance = run.fetched(b"hello")
        number = instance.open()
        fields = [("Content-Length", "10")]
        instance.send(number, wire.request_bytes("POST", instance.result_path(), fields)
                      + b"12345")
        instance.close(number)
        run.settle()
        run.finish(instance, b"the whole result")


@pytest.mark.parametrize("head", ["half a line", "no blank line"])
def test_any_http_no_effect__head(pull_platform: PlatformUnderTest, head: str) -> None:
    """A result whose head breaks off is none, not even one without a body."""
    with pull_platform.used_run() as run:
        instance = run.fetched(b"hello")
        number = instance.open()
        whole = wire.request_bytes("POST", instance.result_path(), (), b"")
        instance.send(number, whole[:-10 if head == "half a line" else -2])
        instance.close(number)
        run.settle()
        run.finish(instance, b"the whole result")


def test_any_http_length(pull_platform: PlatformUnderTest) -> None:
    """Every answer has a Content-Length."""
    with pull_platform.used_run() as run:
        instance = run.fetched(b"hello")
        reply = instance.result(b"done")
        same("0", reply.header("content-length"))
        run.outcome("ok", instance)


def test_any_http_empty(pull_platform: PlatformUnderTest) -> None:
    """An accepted result is answered with 200 and nothing."""
    with pull_platform.used_run() as run:
        instance = run.fetched(b"hello")
        reply = instance.result(b"done")
        same((200, b""), (reply.status, reply.body))
        run.outcome("ok", instance)


def test_any_http_body(pull_platform: PlatformUnderTest) -> None:
    """A result in chunks is the same as one with a length."""
    with pull_platform.used_run() as run:
        instance = run.fetched(b"hello")
        fields = [("Transfer-Encoding", "chunked")]
        instance.ask(wire.request_bytes("POST", instance.result_path(), fields)
                     + wire.chunked(b"in several chunks"))
        same(b"in several chunks", run.outcome("ok", instance).body)


def test_any_http_continue(pull_platform: PlatformUnderTest) -> None:
    """Expect: 100-continue is answered before the body comes."""
    with pull_platform.used_run() as run:
        instance = run.fetched(b"hello")
        number = instance.open()
        fields = [("Expect", "100-continue"), ("Content-Length", "4")]
        instance.send(number, wire.request_bytes(
            "POST", instance.result_path(), fields))
        same(100, instance.read(number).status, "interim status")
        instance.send(number, b"done")
        same(200, instance.read(number).status, "final status")
        run.outcome("ok", instance)


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded",
                                  "nonsense"])
def test_any_result_bytes__content_type(pull_platform: PlatformUnderTest,
                                        kind: str) -> None:
    """The Content-Type of a result means nothing."""
    with pull_platform.used_run() as run:
        instance = run.fetched(b"hello")
        fields = [("Content-Type", kind)]
        instance.ask(wire.request_bytes(
            "POST", instance.result_path(), fields, b"a=b&c"))
        same(b"a=b&c", run.outcome("ok", instance).body)


def test_any_http_reuse(pull_platform: PlatformUnderTest) -> None:
    """One connection carries poll, result and the next poll."""
    with pull_platform.used_run() as run:
        instance = run.fetched(b"hello")
        number = instance.open()
        path = instance.result_path()
        instance.send(number, wire.request_bytes("POST", path, (), b"done"))
        same("whole", instance.read(number).end)
        run.outcome("ok")
        run.issue(b"next")
        instance.send(number, instance.poll_bytes())
        same(b"next", instance.fetch(number).body)
        run.finish(instance)


UNKNOWN = [("GET", "/", 404), ("POST", "/runtime/init/nothing", 404),
           ("GET", "/v1/runtime/invocation/", 404), ("DELETE", "{poll}", 405),
           ("POST", "{poll}", 405), ("GET", "{result}", 405)]


@pytest.mark.parametrize("method,path,status", UNKNOWN)
def test_any_api_unknown(pull_platform: PlatformUnderTest, method: str, path: str,
                         status: int) -> None:
    """An unknown path is 404, a wrong method 405, and nothing changes."""
    with pull_platform.fetched() as instance:
        poll = kit.DIALECTS[instance.run.protocol].poll
        path = path.format(poll=poll, result=instance.result_path())
        body = b"" if method == "POST" else None
        reply = instance.ask(wire.request_bytes(method, path, (), body))
        same(status, reply.status, f"status of {method} {path}")


# ---- events and results ----

BODIES: List[bytes] = [b"", b"hello", b'{"a": 1}\n', b"\0\1\2", b"\xff\xfe not utf-8",
                       bytes(range(256)), b"\r\n\r\n", "\u00e9\u4e2d".encode()]


@pytest.mark.parametrize("body", BODIES, ids=[str(i) for i in range(len(BODIES))])
def test_any_event_bytes(pull_platform: PlatformUnderTest, body: bytes) -> None:
    """The event arrives byte for byte."""
    with pull_platform.used_run() as run:
        instance = run.fetched(body)  # compares
        run.finish(instance)


@pytest.mark.parametrize("body", BODIES, ids=[str(i) for i in range(len(BODIES))])
def test_any_result_bytes(platform: PlatformUnderTest, body: bytes) -> None:
    """The result reaches the caller byte for byte."""
    with platform.used_run() as run:
        handled(run, b"hello", body)  # compares


def test_any_result_at_once(pull_platform: PlatformUnderTest) -> None:
    """The outcome is there without another poll."""
    with pull_platform.used_run() as run:
        instance = run.fetched(b"hello")
        instance.result(b"done")
        run.outcome("ok", instance)


def test_any_event_size(pull_platform: PlatformUnderTest) -> None:
    """An event over the limit is refused, one at the limit is delivered."""
    pull_platform.needs("limits")
    with pull_platform.used_run("--max-event", "100") as run:
        run.issue(b"x" * 101)
        run.outcome("request-too-large")
        run.finish(run.fetched(b"x" * 100))


def test_any_event_size__unit(pull_platform: PlatformUnderTest) -> None:
    """The limit of 6 MB is 6,291,456 bytes."""
    run = pull_platform.run("--max-event", "6291456", "--max-result", "6291456")
    instance = run.fetched(b"hello")
    head = wire.request_bytes("POST", instance.result_path(),
                              [("Content-Length", str(6 << 20))])
    same(200, instance.ask(head, 6 << 20).status)
    same(6 << 20, len(run.outcome("ok").body))


def test_any_id_form(platform: PlatformUnderTest) -> None:
    """Every invocation has an id of its own, of letters, digits and hyphens."""
    seen = set()
    with platform.used_run() as run:
        for _ in range(3):
            handled(run)
            seen.add(run.last_id)
    same(3, len(seen), "different ids")
    same([], [one for one in seen if not re.fullmatch("[A-Za-z0-9-]+", one)])


def test_any_poll_dead(pull_platform: PlatformUnderTest) -> None:
    """An event is not lost to a poll whose connection is gone."""
    with pull_platform.used_run() as run:
        handled(run)
        instance = run.idle
        assert instance is not None
        instance.close(instance.park())
        run.settle()
        run.issue(b"precious")
        same(b"precious", instance.fetch().body)
        run.finish(instance)


# ---- instances ----


def test_any_instance_on_demand(platform: PlatformUnderTest) -> None:
    """Two events at once are given to two instances."""
    platform.needs("instances")
    with platform.used_run(*PAIR) as run:
        instances = [run.starting(b"one")]
        run.issue(b"two")
        instances.append(run.instance())
        run.abandon(*instances)


def test_any_instance_on_demand__reuse(platform: PlatformUnderTest) -> None:
    """An idle instance is used again, although another one may be started."""
    with platform.used_run(*PAIR) as run:
        for _ in range(3):
            handled(run)
        same(True, run.arrived.empty(), "no second instance")


def test_any_event_one_instance(pull_platform: PlatformUnderTest) -> None:
    """Each of two events is delivered to one instance."""
    pull_platform.needs("instances")
    with pull_platform.used_run(*PAIR) as run:
        events = [b"one", b"two"]
        run.discard_idle()
        for event in events:
            run.issue(event)
        instances = [run.instance(), run.instance()]
        for instance in instances:
            if run.protocol == "scf":
                instance.ready()
        same(sorted(events), sorted(instance.fetch().body for instance in instances))
        run.abandon(*instances)


def test_any_time_kill(pull_platform: PlatformUnderTest) -> None:
    """A process that ignores SIGTERM is dead right after its timeout."""
    with pull_platform.used_run(*LIMITED) as run:
        instance = run.fetched(b"hello")
        instance.order("ignore", signal=15)
        run.outcome("timeout")
        instance.reaped(run.patience_s)
        run.settle()


def test_any_queue_order(pull_platform: PlatformUnderTest) -> None:
    """Events that wait are served in the order of their arrival."""
    with pull_platform.used_run(*CLOCKED) as run:
        events = [b"one", b"two", b"three", b"four"]
        instance = run.starting(events[0])
        for event in events[1:]:
            run.issue(event)
            run.wait(0.1)
        if run.protocol == "scf":
            instance.ready()
        seen = []
        for _ in events:
            seen.append(instance.fetch().body)
            run.finish(instance)
        same(events, seen)


def test_any_queue_limit__full(pull_platform: PlatformUnderTest) -> None:
    """An event that finds the queue full is throttled."""
    pull_platform.needs("instances")
    run = pull_platform.run("--parallel", "3", "--queue", "1")
    run.issue(b"runs")
    instance = run.instance()
    run.issue(b"waits")
    run.settle()
    run.issue(b"one too many")
    same(3, run.outcome("throttled").line.get("id"))
    instance.order("print", to=1, text=b"")


def test_any_queue_limit__timeout(pull_platform: PlatformUnderTest) -> None:
    """An event that waits too long for an instance is throttled."""
    pull_platform.needs("instances")
    run = pull_platform.run("--parallel", "2", "--queue-timeout", "0.2")
    run.fetched(b"runs")
    run.issue(b"waits")
    same(2, run.outcome("throttled").line.get("id"))


def test_any_limits_clock__queue(pull_platform: PlatformUnderTest) -> None:
    """The wait in the queue does not count towards the time limit."""
    with pull_platform.used_run(*CLOCKED) as run:
        instance = run.fetched(b"runs")
        run.issue(b"waits")
        run.wait(1.4)
        run.finish(instance)
        run.wait(1.4)
        same(b"waits", instance.fetch().body)
        run.finish(instance)


@pytest.mark.parametrize("kind", ["idle", "starting"])
def test_any_outcome_one(pull_platform: PlatformUnderTest, kind: str) -> None:
    """Every event has one outcome when the input ends."""
    run = pull_platform.run("--timeout", "0.3", "--parallel", "3", "--init-timeout",
                            "1" if kind == "idle" else "0.8")
    for event in (b"one", b"two", b"three"):
        run.issue(event)
    instance = run.instance()
    run.end_input()
    if kind == "idle" and run.protocol == "scf":
        instance.ready()
    ids = [run.outcome().line.get("id", 0) for _ in range(3)]
    same([1, 2, 3], sorted(ids), "the ids")


def test_any_result_first(pull_platform: PlatformUnderTest) -> None:
    """A second result changes nothing, in whatever form it comes."""
    with pull_platform.used_run() as run:
        instance = run.fetched(b"hello")
        instance.result(b"first")
        instance.result(b"second", "error")
        same(b"first", run.outcome("ok", instance).body)


def test_any_outcome_one__bounded(pull_platform: PlatformUnderTest) -> None:
    """The outcome of an event that nobody answers is there in bounded time."""
    with pull_platform.used_run(*LIMITED) as run:
        instance = run.fetched(b"hello")
        run.patience_s = 1.0 + 1.0 + 1.0  # the limit, the rule's second, a busy machine
        run.outcome("timeout")
        run.discard(instance)


def test_any_stop_drain__poll(pull_platform: PlatformUnderTest) -> None:
    """An instance that is being stopped gets no event."""
    run = pull_platform.run("--grace", "30")
    instance = run.fetched(b"hello")
    instance.order("ignore", signal=15)
    run.finish(instance)
    number = instance.park()
    run.end_input()
    same("", instance.read(number, 0.1).start, "an answer to the poll")


def test_any_memory_limit(pull_platform: PlatformUnderTest) -> None:
    """An instance that takes more memory than its limit is ended."""
    pull_platform.needs("memory")
    run = pull_platform.run("--memory", "64", "--timeout", "10")
    instance = run.fetched(b"hello")
    instance.end("eat", bytes=100 << 20)
    run.outcome("out-of-memory")
    instance.reaped(run.patience_s)


# ---- stop, logs, security ----


def test_any_stop_drain(pull_platform: PlatformUnderTest) -> None:
    """An invocation that runs when the input ends comes to its outcome."""
    run = pull_platform.run()
    instance = run.fetched(b"hello")
    instance.order("ignore", signal=15)
    run.end_input()
    run.settle()
    instance.send(instance.open(), wire.request_bytes(
        "POST", instance.result_path(), (), b"done"))
    same(b"done", run.outcome("ok").body)


def test_any_stop_order(pull_platform: PlatformUnderTest) -> None:
    """A bootstrap that ignores SIGTERM is killed when the grace is over."""
    run = pull_platform.run("--grace", "0.2")
    instance = run.fetched(b"hello")
    instance.order("ignore", signal=15)
    run.finish(instance)
    run.end_input()
    instance.reaped(run.patience_s)


def test_any_process_group__leftovers(pull_platform: PlatformUnderTest) -> None:
    """When the platform has ended, nothing of the instance is left."""
    run = pull_platform.run("--grace", "0.2")
    instance = run.fetched(b"hello")
    child = instance.order("fork")["child"]
    address = instance.address()
    run.finish(instance)
    run.end_input()
    same(0, run.popen.wait(run.patience_s), "exit status of the platform")
    faults.wait_gone(child, 0.5)
    with pytest.raises(OSError):
        wire.connect(*address, run.note, "platform")


def test_any_log_streams(platform: PlatformUnderTest) -> None:
    """What a bootstrap prints is in the log before its result, and in order."""
    platform.needs("logs")
    with platform.used_run() as run:
        instance = run.served() if run.protocol == "fc" else run.fetched(b"hello")
        mark = os.urandom(8).hex().encode()
        for number, to in enumerate((1, 2, 1)):
            text = b"<%s %d>\n" % (mark, number)
            instance.order("print", to=to, text=text)
        (run.settled if run.protocol == "fc" else run.finish)(instance)
        printed = re.findall(b"<%s (.)>" % mark, run.said())
        same([b"0", b"1", b"2"], printed, "lines of the log")


@pytest.mark.parametrize("to", [1, 2])
def test_any_log_streams__drained(pull_platform: PlatformUnderTest, to: int) -> None:
    """A bootstrap can print a megabyte without being held up."""
    with pull_platform.fetched() as instance:
        for _ in range(16):
            instance.order("print", to=to, text=b"x" * 65_535)


def test_any_security_loopback(pull_platform: PlatformUnderTest) -> None:
    """The runtime API is at a loopback address."""
    with pull_platform.used_run() as run:
        handled(run)
        assert run.idle is not None
        same("127.", run.idle.address()[0][:4], "the address")


def test_any_security_instance(pull_platform: PlatformUnderTest) -> None:
    """A second instance has an API of its own."""
    pull_platform.needs("instances")
    with pull_platform.used_run(*PAIR) as run:
        run.discard_idle()
        run.issue(b"one")
        run.issue(b"two")
        instances = [run.instance(), run.instance()]
        addresses = {instance.address() for instance in instances}
        if len(addresses) != 2:
            raise Mismatch("two addresses", json.dumps(sorted(addresses)))
        run.abandon(*instances)


def test_any_security_values(push_platform: PlatformUnderTest) -> None:
    """A function name with CR and LF makes no new header field."""
    run = push_platform.run("--name", "a\r\nX-Evil: 1")
    run.patience_s = 2.0
    try:
        instance = run.served(b"hello")
    except Mismatch:
        return  # refused, or never sent: as good
    same(None, instance.got.header("x-evil"), "the field X-Evil")
