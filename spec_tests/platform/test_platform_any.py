# test_platform_any.py: what SPEC.md chapters 5 and 11 ask of every platform (MIT).
"""One rule each. `pull_platform` is one for scf or fg, `platform` any of the three."""

import json
import os
import pathlib
import re
import subprocess
from typing import Callable, Dict, List, Optional, Tuple

import pytest

import faults
import kit
import wire
from kit import Mismatch, same
from platform_run import CLOCKED, LIMITED, PAIR, PlatformUnderTest

# ---- start and environment ----


def test_any_start_bootstrap(platform: PlatformUnderTest) -> None:
    """The file `bootstrap` at the top of the package is started."""
    with platform.new_run() as run:
        run.serve()


def test_any_start_bootstrap__exec(platform: PlatformUnderTest) -> None:
    """A blank after #! does no harm."""
    with platform.new_run() as run, run.changed_bootstrap() as program:
        # in a process of its own: see changed_bootstrap()
        subprocess.run(["sed", "-i", "1s/#!/#! /", str(program)], check=True)
        run.serve()


SPOIL: Dict[str, Callable[[pathlib.Path], object]] = {
    "missing": lambda program: program.unlink(),
    "not_executable": lambda program: program.chmod(0o644),
    "windows_lines": lambda program: program.write_bytes(b"#!/bin/sh\r\nexit 0\r\n"),
    "no_program": lambda program: program.write_bytes(b"\x7fELF this is no program")}


@pytest.mark.parametrize("how", sorted(SPOIL))
def test_any_start_executable(platform: PlatformUnderTest, how: str) -> None:
    """A bootstrap that cannot be executed is a start-error, for every event."""
    with platform.new_run() as run, run.changed_bootstrap() as program:
        SPOIL[how](program)
        for _ in range(2):
            run.issue(b"hello")
            run.outcome("start-error")


CODE_ROOTS = {"fc": "/code", "scf": "/var/user", "fg": "/opt/function/code"}


def test_any_start_code_folder(platform: PlatformUnderTest) -> None:
    """The cloud's path of the code folder, as a path in a variable, means the folder."""
    root = CODE_ROOTS[platform.implementation.protocol]
    run = platform.run("--env", f"ALL={root}/lib:{root}:/lib", "--env", f"NONE={root}s")
    environ, code = run.starting().environ, run.code.resolve()
    same((f"{code}/lib:{code}:/lib", f"{root}s"), (environ["ALL"], environ["NONE"]))


def test_any_start_code_folder__fc_command(platform: PlatformUnderTest) -> None:
    """The same holds for the start command, here for its program."""
    run = platform.run("--", "/code/bootstrap")
    same(f"{run.code.resolve()}/bootstrap", run.starting().argv[0])


def test_any_package_mode(platform: PlatformUnderTest) -> None:
    """A ZIP package keeps the execute bit of its bootstrap."""
    platform.needs("packages")
    platform.run(zipped=True).serve()


EVIL = {"parent": "../evil", "absolute": "/tmp/kit-evil", "inner": "a/../../evil"}


@pytest.mark.parametrize("name", sorted(EVIL))
def test_any_package_zip(push_platform: PlatformUnderTest, name: str) -> None:
    """A ZIP package with an entry that leads out is refused."""
    push_platform.needs("packages")
    push_platform.run(zipped=True, extra=EVIL[name]).refused()


DOTTED = r"\d+\.\d+\.\d+\.\d+"
VARIABLES = {  # rule, name, and what it is like
    "scf": [("scf.env.api", "SCF_RUNTIME_API", DOTTED),
            ("scf.env.api", "SCF_RUNTIME_API_PORT", r"\d+"),
            ("scf.env.handler", "_HANDLER", r"index\.main_handler"),
            ("any.start.cwd", "cwd", "CODE"),
            *(("scf.env.documented", name, ".+") for name in (
                "SCF_FUNCTIONNAME", "SCF_FUNCTIONVERSION", "TENCENTCLOUD_RUNENV",
                "USER_CODE_ROOT"))],
    "fg": [("fg.env.api", "RUNTIME_API_ADDR", DOTTED + r":\d+"),
           ("fg.start.path", "argv[0]", "CODE/bootstrap"),
           ("fg.env.table", "RUNTIME_CODE_ROOT", "CODE"),
           *(("fg.env.table", "RUNTIME_" + name, ".+") for name in (
               "PROJECT_ID", "FUNC_NAME", "FUNC_VERSION", "PACKAGE", "HANDLER",
               "TIMEOUT", "USERDATA", "CPU", "MEMORY"))],
    "fc": [("any.start.cwd", "cwd", "CODE"),
           *(("fc.env.table", "FC_" + name, ".+") for name in (
               "FUNC_CODE_PATH", "FUNCTION_NAME", "FUNCTION_HANDLER", "REGION",
               "FUNCTION_MEMORY_SIZE", "INSTANCE_ID", "ACCOUNT_ID"))]}


def variables(protocol: str) -> pytest.MarkDecorator:
    """Run a check over the variables of that protocol, each under its rule."""
    return pytest.mark.parametrize("rule,name,wanted", VARIABLES[protocol])


def has(platform: PlatformUnderTest, name: str, wanted: str) -> None:
    """Raise Mismatch unless a variable is like that; CODE stands for the code folder."""
    with platform.fetched() as instance:
        told = {**instance.environ, "cwd": instance.cwd, "argv[0]": instance.argv[0]}
        wanted = wanted.replace("CODE", re.escape(str(instance.run.code.resolve())))
        if not re.fullmatch(wanted, told.get(name, "")):
            raise Mismatch(f"{name} like {wanted}", repr(told.get(name)))


@variables("scf")
def test_scf_env(platform: PlatformUnderTest, rule: str, name: str, wanted: str) -> None:
    """The variables of the table are set."""
    has(platform, name, wanted)


@variables("fg")
def test_fg_env(platform: PlatformUnderTest, rule: str, name: str, wanted: str) -> None:
    """The variables of the table are set."""
    has(platform, name, wanted)


@variables("fc")
def test_fc_env(platform: PlatformUnderTest, rule: str, name: str, wanted: str) -> None:
    """The variables of the table are set."""
    has(platform, name, wanted)


def test_any_credentials_role(platform: PlatformUnderTest) -> None:
    """A function without a role has no credentials, in no variable and no field."""
    with platform.fetched() as instance:
        fields = [name for name, _ in instance.got.headers if name[:5].lower() != "x-fc-"]
        same([], [name for name in fields if re.search("(?i)key|token", name)])
        same([], [name for name in instance.environ if re.match(
            "TENCENTCLOUD_(SECRET|SESSION)|ALIBABA_CLOUD_", name)])


def test_any_env_user(platform: PlatformUnderTest) -> None:
    """A variable of the user is there under its own name."""
    run = platform.run("--env", "MY_SETTING=a b=c")
    same("a b=c", run.starting().environ.get("MY_SETTING"))


def test_any_env_inherited(platform: PlatformUnderTest) -> None:
    """Of the platform's own environment four variables are there and no other."""
    run = platform.run(env={"KIT_SECRET": "x", "http_proxy": "http://127.0.0.1:1"})
    environ = run.starting().environ
    same([], [name for name in ("KIT_SECRET", "http_proxy") if name in environ])
    needed = ("PATH", "HOME", "TMPDIR", "LANG")
    same([], [name for name in needed if name not in environ])


@pytest.mark.parametrize("setting", ["1A=b", "A-B=c", "_A=b"])
def test_any_env_names(pull_platform: PlatformUnderTest, setting: str) -> None:
    """A variable whose name is none is refused."""
    pull_platform.run("--env", setting).refused()


def test_any_env_names__reserved(platform: PlatformUnderTest) -> None:
    """A variable whose name belongs to the platform is refused."""
    reserved = {"scf": "SCF_X QCLOUD_X TENCENTCLOUD_X", "fg": "RUNTIME_X", "fc": "FC_X"}
    for name in reserved[platform.implementation.protocol].split():
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
    with pull_platform.running() as (run, instance):
        number = instance.open()
        instance.send(number, b"NONSENSE\r\n\r\n" + instance.post_bytes(b"smuggled"))
        same(400, instance.read(number).status, "status")
        instance.close(number)
        run.finish(instance, b"honest")


@pytest.mark.parametrize("left_out", ["half a line", "no blank line", "half a body"])
def test_any_http_no_effect__complete(pull_platform: PlatformUnderTest,
                                      left_out: str) -> None:
    """A result that ends before its announced length is none, nor is one whose head
    breaks off, not even without a body."""
    with pull_platform.running() as (run, instance):
        whole = instance.post_bytes(b"")
        number = instance.open()
        instance.send(number, {
            "half a line": whole[:-10], "no blank line": whole[:-2],
            "half a body": instance.post_bytes(None, [("Content-Length", "10")]) + b"12345",
        }[left_out])
        instance.close(number)
        run.settle()
        run.finish(instance, b"the whole result")


FORMS: List[Tuple[str, str]] = [  # rule, and a field that comes with the result
    ("any.http.length", ""), ("any.http.empty", ""), ("any.result.at-once", ""),
    ("any.http.body", "Transfer-Encoding: chunked"),
    *(("any.result.bytes", "Content-Type: " + kind) for kind in (
        "", "text/plain", "application/x-www-form-urlencoded", "nonsense"))]


@pytest.mark.parametrize("rule,field", FORMS)
def test_any_result_form(pull_platform: PlatformUnderTest, rule: str, field: str) -> None:
    """A result in any form is acknowledged with 200 and nothing, with its length, and is
    the outcome without another poll."""
    with pull_platform.running() as (run, instance):
        name, _, value = field.partition(": ")
        is_chunked = value == "chunked"
        head = instance.post_bytes(None if is_chunked else b"a=b&c",
                                   [(name, value)] if name else [])
        reply = instance.ask(head + (wire.chunked(b"a=b&c") if is_chunked else b""))
        same((200, "0", b""), (reply.status, reply.header("content-length"), reply.body))
        same(b"a=b&c", run.outcome("ok", instance).body)


def test_any_http_continue(pull_platform: PlatformUnderTest) -> None:
    """Expect: 100-continue is answered before the body comes."""
    with pull_platform.running() as (run, instance):
        number = instance.open()
        fields = [("Expect", "100-continue"), ("Content-Length", "4")]
        instance.send(number, instance.post_bytes(None, fields))
        same(100, instance.read(number).status, "interim status")
        instance.send(number, b"done")
        same(200, instance.read(number).status, "final status")
        run.outcome("ok", instance)


def test_any_http_reuse(pull_platform: PlatformUnderTest) -> None:
    """One connection carries poll, result and the next poll."""
    with pull_platform.running() as (run, instance):
        number = instance.open()
        instance.send(number, instance.post_bytes(b"done"))
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


@pytest.mark.parametrize("event", [b"{}", b"no json"])
def test_any_event_content_type(pull_platform: PlatformUnderTest, event: bytes) -> None:
    """The event is sent as application/json."""
    with pull_platform.fetched(event) as instance:
        same(["application/json"], instance.got.values("content-type"))


def test_any_event_issue(pull_platform: PlatformUnderTest) -> None:
    """A second event waits until the instance is idle."""
    with pull_platform.running(*CLOCKED, event=b"one") as (run, instance):
        run.issue(b"two")
        run.settle()
        number: Optional[int] = instance.park()
        if run.protocol == "scf":
            same(b"one", instance.fetch(number).body, "the event while one runs")
            number = None
        else:
            same("", instance.read(number or 0, 0.05).start, "an answer while one runs")
        run.finish(instance)
        same(b"two", instance.fetch(number).body, "the event afterwards")
        run.finish(instance)


@pytest.mark.parametrize("body", BODIES, ids=[str(i) for i in range(len(BODIES))])
def test_any_result_bytes(platform: PlatformUnderTest, body: bytes) -> None:
    """The result reaches the caller byte for byte."""
    with platform.used_run() as run:
        run.serve(b"hello", body)  # compares


def test_any_event_size(pull_platform: PlatformUnderTest) -> None:
    """An event over the limit is refused, one at the limit is delivered."""
    pull_platform.needs("limits")
    with pull_platform.used_run("--max-event", "100") as run:
        run.issue(b"x" * 101)
        run.outcome("request-too-large")
        run.serve(b"x" * 100)


def test_any_event_size__unit(pull_platform: PlatformUnderTest) -> None:
    """The limit of 6 MB is 6,291,456 bytes."""
    run = pull_platform.run("--max-event", "6291456", "--max-result", "6291456")
    instance = run.fetched()
    head = instance.post_bytes(None, [("Content-Length", str(6 << 20))])
    same(200, instance.ask(head, 6 << 20).status)
    same(6 << 20, len(run.outcome("ok").body))


def test_any_id_form(platform: PlatformUnderTest) -> None:
    """Every invocation has an id of its own, of letters, digits and hyphens."""
    seen = set()
    with platform.used_run() as run:
        for _ in range(3):
            run.serve()
            seen.add(run.last_id)
    same(3, len(seen), "different ids")
    same([], [one for one in seen if not re.fullmatch("[A-Za-z0-9-]+", one)])


def test_any_poll_dead(pull_platform: PlatformUnderTest) -> None:
    """An event is not lost to a poll whose connection is gone."""
    with pull_platform.used_run() as run:
        instance = run.idle_one()
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
        run.abandon(*run.pair())


def test_any_instance_on_demand__reuse(platform: PlatformUnderTest) -> None:
    """An idle instance is used again, although another one may be started."""
    with platform.used_run(*PAIR) as run:
        for _ in range(3):
            run.serve()
        same(True, run.arrived.empty(), "no second instance")


def test_any_event_one_instance(pull_platform: PlatformUnderTest) -> None:
    """Each of two events is delivered to one instance."""
    pull_platform.needs("instances")
    with pull_platform.used_run(*PAIR) as run:
        instances = run.pair()
        if run.protocol == "scf":
            for instance in instances:
                instance.ready()
        same([b"one", b"two"], sorted(instance.fetch().body for instance in instances))
        run.abandon(*instances)


def test_any_time_kill(pull_platform: PlatformUnderTest) -> None:
    """A process that ignores SIGTERM is dead right after its timeout."""
    with pull_platform.running(*LIMITED) as (run, instance):
        instance.order("ignore", signal=15)
        run.outcome("timeout")
        instance.reaped()
        run.settle()


def test_any_queue_order(pull_platform: PlatformUnderTest) -> None:
    """Events that wait are served in the order of their arrival."""
    with pull_platform.used_run(*CLOCKED) as run:
        events = [b"one", b"two", b"three", b"four"]
        instance = run.ready(events[0])
        for event in events[1:]:
            run.issue(event)
            run.wait(0.1)
        for event in events:
            same(event, instance.fetch().body)
            run.finish(instance)


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
    with pull_platform.running(*CLOCKED, event=b"runs") as (run, instance):
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
    with pull_platform.running() as (run, instance):
        instance.result(b"first")
        instance.result(b"second", "error")
        same(b"first", run.outcome("ok", instance).body)


def test_any_outcome_one__bounded(pull_platform: PlatformUnderTest) -> None:
    """The outcome of an event that nobody answers is there in bounded time."""
    with pull_platform.running(*LIMITED) as (run, instance):
        run.patience_s = 1.0 + 1.0 + 1.0  # the limit, the rule's second, a busy machine
        run.outcome("timeout")
        run.discard(instance)


def test_any_stop_drain__poll(pull_platform: PlatformUnderTest) -> None:
    """An instance that is being stopped gets no event."""
    run = pull_platform.run("--grace", "30")
    instance = run.stubborn()
    number = instance.park()
    run.end_input()
    same("", instance.read(number, 0.1).start, "an answer to the poll")


def test_any_memory_limit(pull_platform: PlatformUnderTest) -> None:
    """An instance that takes more memory than its limit is ended."""
    pull_platform.needs("memory")
    run = pull_platform.run("--memory", "64", "--timeout", "10")
    instance = run.fetched()
    instance.end("eat", bytes=100 << 20)
    run.outcome("out-of-memory")
    instance.reaped()


# ---- stop, logs, security ----


def test_any_stop_drain(pull_platform: PlatformUnderTest) -> None:
    """An invocation that runs when the input ends comes to its outcome."""
    run = pull_platform.run()
    instance = run.fetched()
    instance.order("ignore", signal=15)
    run.end_input()
    run.settle()
    instance.send(instance.open(), instance.post_bytes(b"done"))
    same(b"done", run.outcome("ok").body)


def test_any_stop_order(pull_platform: PlatformUnderTest) -> None:
    """A bootstrap that ignores SIGTERM is killed when the grace is over."""
    run = pull_platform.run("--grace", "0.2")
    instance = run.stubborn()
    run.end_input()
    instance.reaped()


def test_any_process_group__leftovers(pull_platform: PlatformUnderTest) -> None:
    """When the platform has ended, nothing of the instance is left."""
    run = pull_platform.run("--grace", "0.2")
    instance = run.fetched()
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
        instance = run.fetched() if run.protocol == "fc" else run.fetched()
        mark = os.urandom(8).hex().encode()
        for number, to in enumerate((1, 2, 1)):
            text = b"<%s %d>\n" % (mark, number)
            instance.order("print", to=to, text=text)
        run.finish(instance)
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
        run.serve()
        assert run.idle is not None
        same("127.", run.idle.address()[0][:4], "the address")


def test_any_security_instance(pull_platform: PlatformUnderTest) -> None:
    """A second instance has an API of its own."""
    pull_platform.needs("instances")
    with pull_platform.new_run(*PAIR) as run:
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
        instance = run.fetched()
    except Mismatch:
        return  # refused, or never sent: as good
    same(None, instance.got.header("x-evil"), "the field X-Evil")
