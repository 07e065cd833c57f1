# test_platform_any.py: what SPEC.md chapters 5 and 11 ask of every platform (MIT).
"""One rule each. `pull_platform` is one for scf or fg, `platform` any of the three."""

import contextlib
import gzip
import json
import os
import pathlib
import re
import stat
import subprocess
import time
from typing import Callable, Dict, List, Optional, Tuple

import pytest

import faults
import kit
import wire
from kit import Mismatch, same, waits
from platform_run import (CLOCKED, CONFIGURED, LIMITED, PAIR, USER, PlatformUnderTest,
                          state_of)

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
    "no_interpreter": lambda program: program.write_bytes(b"#!/no/such/program\n"),
    "no_program": lambda program: program.write_bytes(b"\x7fELF this is no program")}


@pytest.mark.parametrize("how", sorted(SPOIL))
def test_any_start_executable(platform: PlatformUnderTest, how: str) -> None:
    """A bootstrap that cannot be executed is a start-error, for every event."""
    with platform.new_run() as run, run.changed_bootstrap() as program:
        SPOIL[how](program)
        for _ in range(2):
            run.issue(b"hello")
            run.outcome("start-error")
            run.no_instance()


CODE_ROOTS = {"fc": "/code", "scf": "/var/user", "fg": "/opt/function/code"}


def test_any_start_code_folder(platform: PlatformUnderTest) -> None:
    """The cloud's path of the code folder, as a path in a variable, means the folder."""
    platform.needs("packages")
    root = CODE_ROOTS[platform.implementation.protocol]
    run = platform.run("--env", f"ALL={root}/lib:{root}:/lib", "--env", f"NONE={root}s")
    environ, code = run.starting().environ, run.code.resolve()
    same((f"{code}/lib:{code}:/lib", f"{root}s"), (environ["ALL"], environ["NONE"]))


def test_any_start_code_folder__fc_command(platform: PlatformUnderTest) -> None:
    """The same holds for the start command, here for its program."""
    platform.needs("packages")
    run = platform.run("--", "/code/bootstrap")
    same(f"{run.code.resolve()}/bootstrap", run.starting().argv[0])


@pytest.mark.parametrize("mode,outcome", [(0o755, ""), (0o644, "start-error")])
def test_any_package_mode(platform: PlatformUnderTest, mode: int, outcome: str) -> None:
    """A bootstrap in a ZIP package is executable if, and only if, it was packed so."""
    platform.needs("packages")
    run = platform.run(package=("bootstrap", mode))
    if outcome:
        run.issue(b"hello")
        run.outcome(outcome)
    else:
        run.serve()


EVIL = {"parent": ("../evil", 0), "absolute": ("/tmp/kit-evil", 0),
        "inner": ("a/../../evil", 0), "link": ("evil", stat.S_IFLNK | 0o777)}


@pytest.mark.parametrize("name", sorted(EVIL))
def test_any_package_zip(platform: PlatformUnderTest, name: str) -> None:
    """A ZIP package with an entry that leads out, or with a link, is refused."""
    platform.needs("packages")
    platform.run(package=EVIL[name]).refused()


PROMPT_S = 0.4  # far more than it takes, far less than anybody would wait on purpose
DOTTED = r"\d+\.\d+\.\d+\.\d+"
VARIABLES = {  # rule, name, and what it is like
    "scf": [("scf.env.api", "SCF_RUNTIME_API", DOTTED),
            ("scf.env.api", "SCF_RUNTIME_API_PORT", r"\d+"),
            ("scf.env.handler", "_HANDLER", r"a\.b"),
            ("any.start.cwd", "cwd", "CODE"),
            *(("scf.env.documented", name, value) for name, value in (
                ("SCF_FUNCTIONNAME", "mine"), ("SCF_FUNCTIONVERSION", r"\$LATEST"),
                ("SCF_RUNTIME", "CustomRuntime"), ("USER_CODE_ROOT", "CODE/"),
                ("TENCENTCLOUD_RUNENV", "SCF"), ("TENCENTCLOUD_TZ", "UTC"),
                *((name, ".+") for name in (
                    "SCF_NAMESPACE", "TENCENTCLOUD_REGION", "TENCENTCLOUD_APPID",
                    "TENCENTCLOUD_UIN"))))],
    "fg": [("fg.env.api", "RUNTIME_API_ADDR", DOTTED + r":\d+"),
           ("fg.start.path", "argv[0]", "CODE/bootstrap"),
           *(("fg.env.table", "RUNTIME_" + name, value) for name, value in (
               ("PROJECT_ID", "[0-9a-f]{32}"), ("FUNC_NAME", "mine"),
               ("FUNC_VERSION", "latest"), ("PACKAGE", "default"), ("HANDLER", r"a\.b"),
               ("TIMEOUT", "5"), ("MEMORY", "256"), ("CPU", "400"),
               ("CODE_ROOT", "CODE"), ("MAX_RESP_BODY_SIZE", "LIMIT")))],
    "fc": [("any.start.cwd", "cwd", "CODE"),
           ("fc.env.table", "LD_LIBRARY_PATH", "CODE:CODE/lib:/usr/local/lib"),
           ("fc.env.table", "PYTHONPATH", "CODE"),
           *(("fc.env.table", "FC_" + name, value) for name, value in (
               ("FUNC_CODE_PATH", "CODE"), ("FUNCTION_NAME", "mine"),
               ("FUNCTION_HANDLER", r"a\.b"), ("FUNCTION_MEMORY_SIZE", "256"),
               ("FUNCTION_VERSION", "LATEST"), ("INSTANCE_ID", r"c-[0-9a-f]+(-[0-9a-f]+)*"),
               ("REGION", ".+"), ("ACCOUNT_ID", ".+")))]}


def variables(protocol: str) -> pytest.MarkDecorator:
    """Run a check over the variables of that protocol, under each of their rules."""
    by_rule: Dict[str, Dict[str, str]] = {}
    for rule, name, wanted in VARIABLES[protocol]:
        by_rule.setdefault(rule, {})[name] = wanted
    return pytest.mark.parametrize("rule,wanted", list(by_rule.items()), ids=list(by_rule))


def has(platform: PlatformUnderTest, wanted: Dict[str, str]) -> None:
    """Raise Mismatch unless variables are like that; CODE stands for the code folder."""
    with platform.running(*CONFIGURED) as (run, instance):
        told = {**instance.environ, "cwd": instance.cwd, "argv[0]": instance.argv[0]}
        code, limit = re.escape(str(run.code.resolve())), str(platform.result_bytes())
        for name, form in wanted.items():
            form = form.replace("CODE", code).replace("LIMIT", limit)
            if not re.fullmatch(form, told.get(name, "")):
                raise Mismatch(f"{name} like {form}", repr(told.get(name)))
        run.finish(instance)


@variables("scf")
def test_scf_env(platform: PlatformUnderTest, rule: str, wanted: Dict[str, str]) -> None:
    """The variables of the table are set."""
    has(platform, wanted)


@variables("fg")
def test_fg_env(platform: PlatformUnderTest, rule: str, wanted: Dict[str, str]) -> None:
    """The variables of the table are set."""
    has(platform, wanted)


@variables("fc")
def test_fc_env(platform: PlatformUnderTest, rule: str, wanted: Dict[str, str]) -> None:
    """The variables of the table are set."""
    has(platform, wanted)


def test_any_credentials_role(platform: PlatformUnderTest) -> None:
    """A function without a role has no credentials, in no variable and no field."""
    with platform.fetched() as instance:
        fields = [name for name, _ in instance.got.headers if name[:5].lower() != "x-fc-"]
        same([], [name for name in fields if re.search("(?i)key|token", name)])
        same([], [name for name in instance.environ if re.match(
            "TENCENTCLOUD_(SECRET|SESSION)|ALIBABA_CLOUD_", name)])


def test_any_env_user(platform: PlatformUnderTest) -> None:
    """A variable of the user is there under its own name, also where the platform has
    one of that name, or reserves one that is almost like it."""
    has(platform, {name: re.escape(USER[name]) for name in USER})


FOREIGN = {name: "http://127.0.0.1:1" for name in (
    "KIT_SECRET", "http_proxy", "HTTPS_PROXY", "NO_PROXY", "LC_ALL", "USER", "SHELL",
    "EDITOR", "AWS_LAMBDA_RUNTIME_API", "FC_KIT", "SCF_KIT", "RUNTIME_KIT")}


def test_any_env_inherited(platform: PlatformUnderTest) -> None:
    """Of the platform's own environment four variables are there and no other."""
    environ = platform.run(env=FOREIGN).starting().environ
    same([], [name for name in FOREIGN if name in environ])
    needed = ("PATH", "HOME", "TMPDIR", "LANG")
    same([], [name for name in needed if name not in environ])


@pytest.mark.parametrize("setting", ["1A=b", "A-B=c", "_A=b", "=b", "\u00c9=b"])
def test_any_env_names(platform: PlatformUnderTest, setting: str) -> None:
    """A variable whose name is none is refused."""
    platform.run("--env", setting).refused()


def test_any_env_names__reserved(platform: PlatformUnderTest) -> None:
    """A variable whose name belongs to the platform is refused."""
    reserved = {"scf": "SCF_X QCLOUD_X TENCENTCLOUD_X", "fg": "RUNTIME_X", "fc": "FC_X"}
    for name in reserved[platform.implementation.protocol].split():
        platform.run("--env", f"{name}=y").refused()


@pytest.mark.parametrize("values", [("x" * 2048, "x" * 2047), ("\u00e9" * 2047, "x")])
def test_any_env_size(platform: PlatformUnderTest, values: Tuple[str, str]) -> None:
    """Variables over 4096 bytes in all, names included, are refused."""
    platform.run("--env", "A=" + values[0], "--env", "B=" + values[1]).refused()


def test_any_env_user__most(platform: PlatformUnderTest) -> None:
    """Variables of 4096 bytes in all are taken."""
    run = platform.run("--env", "A=" + "x" * 2048, "--env", "B=" + "x" * 2046)
    same(2046, len(run.starting().environ["B"]))


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
    "no-name": ("any.http.malformed", b"{line}: b\r\n\r\n"),
    "control": ("any.http.malformed", b"{line}X-A: b\x01c\r\n\r\n"),
    "bare-cr": ("any.http.malformed", b"{line}X-A: b\rc\r\n\r\n"),
    "nul": ("any.http.malformed", b"{line}X-A: b\0c\r\n\r\n"),
    "two-lengths": ("any.http.framing",
                    b"{line}Content-Length: 1\r\nContent-Length: 2\r\n\r\nxy"),
    "same-lengths": ("any.http.framing",
                     b"{line}Content-Length: 1\r\nContent-Length: 1\r\n\r\nx"),
    "list-of-lengths": ("any.http.framing", b"{line}Content-Length: 1, 1\r\n\r\nx"),
    "empty-length": ("any.http.framing", b"{line}Content-Length:\r\n\r\n"),
    "underscore-length": ("any.http.framing", b"{line}Content-Length: 1_0\r\n\r\n"
                          b"0123456789"),
    "coding": ("any.http.framing", b"{line}Transfer-Encoding: gzip\r\n\r\n"),
    "two-codings": ("any.http.framing", b"{line}Transfer-Encoding: gzip, chunked\r\n\r\n"
                    b"0\r\n\r\n"),
    "hex-chunk": ("any.http.framing", b"{line}Transfer-Encoding: chunked\r\n\r\n"
                  b"0x1\r\nx\r\n0\r\n\r\n"),
    "plus-chunk": ("any.http.framing", b"{line}Transfer-Encoding: chunked\r\n\r\n"
                   b"+1\r\nx\r\n0\r\n\r\n"),
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


@pytest.mark.parametrize("rule", sorted({rule for rule, _ in BAD.values()}))
def test_any_http_bad(pull_platform: PlatformUnderTest, rule: str) -> None:
    """A request that is no HTTP is answered 400 or 431, closed, and changes nothing."""
    pull_platform.needs("hostile")
    with pull_platform.fetched() as instance:
        line = f"POST {instance.result_path()} HTTP/1.1\r\n".encode()
        for name, request in [(name, BAD[name][1]) for name in BAD if BAD[name][0] == rule]:
            number = instance.open()
            instance.send(number, request.replace(b"{line}", line))
            reply = instance.read(number)
            same(431 if rule == "any.limits.head" else 400, reply.status, f"{name}: status")
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


def test_any_limits_head__enough(pull_platform: PlatformUnderTest) -> None:
    """A head of 99 fields and 60 KB is no larger than the limits."""
    with pull_platform.used_run() as run:
        instance = run.ready()
        fields = [(f"X-{number}", "x" * 600) for number in range(98)]
        poll = wire.request_bytes("GET", kit.DIALECTS[run.protocol].poll, fields)
        number = instance.open()
        instance.send(number, poll)
        same(b"hello", instance.fetch(number).body, "the event")
        run.finish(instance)


@pytest.mark.parametrize("left_out", ["half a line", "no blank line", "half a body",
                                      "half a chunk", "no last chunk"])
def test_any_http_no_effect__complete(pull_platform: PlatformUnderTest,
                                      left_out: str) -> None:
    """A result that ends before its announced length is none, nor is one whose head
    breaks off, not even without a body."""
    with pull_platform.running() as (run, instance):
        whole = instance.post_bytes(b"")
        number = instance.open()
        chunks = instance.post_bytes(None, [("Transfer-Encoding", "chunked")])
        instance.send(number, {
            "half a line": whole[:-10], "no blank line": whole[:-2],
            "half a body": instance.post_bytes(None, [("Content-Length", "10")]) + b"12345",
            "half a chunk": chunks + b"5\r\n123", "no last chunk": chunks + b"1\r\n1\r\n",
        }[left_out])
        instance.close(number)
        run.settle()
        run.finish(instance, b"the whole result")


ZIPPED = gzip.compress(b"a=b&c", mtime=0)
CHUNKED = "Transfer-Encoding: chunked"
def test_any_http_length(pull_platform: PlatformUnderTest) -> None:
    """Events, empty ones too, and refusals come with their length."""
    with pull_platform.running(event=b"") as (run, instance):
        poll = kit.DIALECTS[run.protocol].poll
        replies = {"event": instance.got, **{path: instance.ask(wire.request_bytes(
            "POST", path, (), b"")) for path in ("/no/such/call", poll)}}
        for name, reply in replies.items():
            same([str(len(reply.body))], reply.values("content-length"), f"length of {name}")
        run.finish(instance)


FORMS: List[Tuple[str, str, bytes]] = [  # rule, field, and the bytes that are sent
    ("any.http.length", "", b""), ("any.http.empty", "", b""),
    ("any.result.at-once", "", b""),
    ("any.http.body", "content-length: 5", b"a=b&c"),
    ("any.http.body", "CONTENT-LENGTH:5", b"a=b&c"),
    ("any.http.body", CHUNKED, wire.chunked(b"a=b&c")),
    ("any.http.body", CHUNKED, wire.chunked(b"a=b&c", 1)),
    ("any.http.body", CHUNKED, wire.odd_chunks(b"a=b&c" * 3)),
    ("any.http.body", "transfer-encoding:Chunked", wire.chunked(b"a=b&c" * 3, 15)),
    ("any.http.body", CHUNKED, wire.chunked(b"0\r\n\r\n", 2)),
    ("any.result.bytes", "Content-Encoding: gzip", ZIPPED),
    *(("any.result.bytes", "Content-Type: " + kind, b"a=b&c") for kind in (
        "", "text/plain", "application/x-www-form-urlencoded", "nonsense",
        "multipart/form-data; boundary=x", "application/json"))]


@pytest.mark.parametrize("kind", ["response", "error"])
@pytest.mark.parametrize("rule,field,sent", FORMS)
def test_any_result_form(pull_platform: PlatformUnderTest, rule: str, field: str,
                         sent: bytes, kind: str) -> None:
    """A result in any form is acknowledged with 200 and nothing, with its length, and is
    the outcome without another poll."""
    with pull_platform.running() as (run, instance):
        name, _, value = field.partition(":")
        fields = [(name, value.strip())] if name else []
        if name.lower() not in ("content-length", "transfer-encoding"):
            fields.append(("Content-Length", str(len(sent))))
        reply = instance.ask(wire.request_bytes(
            "POST", instance.result_path(kind), fields) + sent)
        same((200, "0", b""), (reply.status, reply.header("content-length"), reply.body))
        body = run.outcome({"response": "ok", "error": "function-error"}[kind],
                           instance).body
        bare = wire.chunked_body(sent) if "ransfer" in field else sent
        if kind == "response":
            same(bare, body)


@pytest.mark.parametrize("field", ["Content-Length: 4", CHUNKED])
def test_any_http_continue(pull_platform: PlatformUnderTest, field: str) -> None:
    """Expect: 100-continue is answered before the body comes."""
    with pull_platform.running() as (run, instance):
        number = instance.open()
        name, _, value = field.partition(": ")
        fields = [("Expect", "100-Continue" if name[0] == "T" else "100-continue"),
                  (name, value)]
        instance.send(number, instance.post_bytes(None, fields))
        same(100, instance.read(number).status, "interim status")
        instance.send(number, b"done" if name[0] == "C" else wire.chunked(b"done"))
        same(200, instance.read(number).status, "final status")
        same(b"done", run.outcome("ok", instance).body)


def test_any_http_reuse(pull_platform: PlatformUnderTest) -> None:
    """One connection carries error, poll, result, and 101 calls that are refused."""
    with pull_platform.running("--timeout", "60") as (run, instance):
        number = instance.open()
        for kind in ("error", "response"):
            path = instance.result_path(kind)
            instance.send(number, wire.request_bytes("POST", path, (), b"done"))
            same("whole", instance.read(number).end, f"the answer to the {kind}")
            run.outcome()
            run.issue(b"next")
            status = 204
            while status == 204:  # [fg.request.empty]
                instance.send(number, instance.poll_bytes())
                got = instance.read(number)
                status = got.status
            same(b"next", got.body, "the event on the same connection")
            id_header = kit.DIALECTS[run.protocol].id_header
            instance.request_id = got.header(id_header) or ""
        for _ in range(101):
            instance.send(number, wire.request_bytes("GET", "/"))
            same("whole", instance.read(number).end, "each answer on one connection")
        instance.close(number)
        run.finish(instance)


UNKNOWN = [("GET", "/", 404), ("POST", "/runtime/init/nothing", 404),
           ("GET", "/v1/runtime/invocation/", 404), ("GET", "{poll}/", 404),
           ("GET", "{poll}x", 404), ("GET", "/x{poll}", 404), ("GET", "{POLL}", 404),
           ("DELETE", "{poll}", 405), ("POST", "{poll}", 405), ("HEAD", "{poll}", 405),
           ("OPTIONS", "{poll}", 405), ("GET", "{result}", 405), ("PUT", "{result}", 405)]


def test_any_api_unknown(pull_platform: PlatformUnderTest) -> None:
    """An unknown path is 404, a wrong method 405, and nothing changes."""
    with pull_platform.fetched() as instance:
        poll = kit.DIALECTS[instance.run.protocol].poll
        for method, form, status in UNKNOWN:
            path = form.format(poll=poll, POLL=poll.upper(), result=instance.result_path())
            body = b"" if method in ("POST", "PUT") else None
            number = instance.open()
            instance.send(number, wire.request_bytes(method, path, (), body))
            reply = instance.read(number, bodiless=method == "HEAD")
            instance.close(number)
            same(status, reply.status, f"status of {method} {path}")


# ---- events and results ----

BODIES: List[bytes] = [b"", b"hello", b'{"a": 1}\n', b"\0\1\2", b"\xff\xfe not utf-8",
                       bytes(range(256)), b"\r\n\r\n", b" \t\n", b"null", b'"x"',
                       b"%41+b&c=d", "\ufeff\u00e9\u4e2d\U0001f600\u2028\x85".encode()]


@pytest.mark.parametrize("body", BODIES, ids=[str(i) for i in range(len(BODIES))])
def test_any_event_bytes(platform: PlatformUnderTest, body: bytes) -> None:
    """The event arrives byte for byte."""
    with platform.used_run() as run:
        instance = run.fetched(body)
        same(body, instance.got.body, "the event")
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
        number: Optional[int] = None
        if run.protocol == "scf":
            same(b"one", instance.fetch().body, "the event while one runs")
        else:
            number = instance.held(instance.park(), 0.05)
        run.finish(instance)
        same(b"two", instance.fetch(number).body, "the event afterwards")
        run.finish(instance)


@pytest.mark.parametrize("body", BODIES, ids=[str(i) for i in range(len(BODIES))])
def test_any_result_bytes(platform: PlatformUnderTest, body: bytes) -> None:
    """The result reaches the caller byte for byte."""
    with platform.used_run() as run:
        run.serve(b"hello", body)  # compares


@pytest.mark.parametrize("event", [b"x" * 101, "\u00e9".encode() * 51, b"\xff" * 101])
def test_any_event_size(platform: PlatformUnderTest, event: bytes) -> None:
    """An event over the limit is refused, one at the limit is delivered."""
    platform.needs("limits")
    with platform.used_run("--max-event", "100") as run:
        run.issue(event)
        run.outcome("request-too-large")
        run.serve(b"\xff" * 100)


def test_any_event_size__default(platform: PlatformUnderTest) -> None:
    """Unless set, the limit is 6 MB, 32 on fc; that is refused which has a byte more."""
    with platform.bare_run() as run:
        run.issue(b"x" * ((32 if run.protocol == "fc" else 6) * 1024 * 1024 + 1))
        run.outcome("request-too-large")


@pytest.mark.parametrize("more,status", [(0, 200), (1, 413)])
@pytest.mark.parametrize("kind", ["response", "error"])
def test_any_result_size(pull_platform: PlatformUnderTest, more: int, status: int,
                         kind: str) -> None:
    """A result at the limit is taken, one with a byte more is not; unless set, the limit
    is 6 MB."""
    with pull_platform.used_run() as used, pull_platform.bare_run() as bare:
        limits = [(used, used.result_bytes), (bare, 6 << 20)]
        for run, size in limits if kind == "response" else limits[:1]:  # it is dear
            instance = run.fetched()
            length = [("Content-Length", str(size + more))]
            head = wire.request_bytes("POST", instance.result_path(kind), length)
            same(status, instance.ask(head, size + more).status, "status")
            outcome = run.outcome("response-too-large" if more else "ok" if
                                  kind == "response" else "function-error", instance)
            if (more, kind) == (0, "response"):
                same(size, len(outcome.body))
        bare.discard_idle()


def test_any_id_form(platform: PlatformUnderTest) -> None:
    """Every invocation has an id of its own, of letters, digits and hyphens."""
    seen = set()
    with platform.used_run() as run:
        for _ in range(4):
            run.serve()
            seen.add(run.last_id)
            if len(seen) == 2:
                run.discard_idle()
    same(4, len(seen), "different ids, of two instances")
    same([], [one for one in seen if not re.fullmatch("[A-Za-z0-9-]+", one)])


def test_any_poll_dead(pull_platform: PlatformUnderTest) -> None:
    """An event is not lost to a poll whose connection is gone."""
    with pull_platform.used_run() as run:
        instance = run.idle_one()
        instance.close(instance.park())
        run.settle()
        run.issue(b"precious")
        run.settle()  # nobody else asks for it yet
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
        run.no_instance()


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


def test_any_result_at_once(platform: PlatformUnderTest) -> None:
    """The outcome is there right after the result, at least once in three times."""
    took: List[float] = []
    with platform.used_run() as run:
        while len(took) < 3 and (not took or min(took) > PROMPT_S):
            instance = run.fetched()
            begin = time.monotonic()
            run.finish(instance)
            took.append(time.monotonic() - begin)
    if min(took) > PROMPT_S:
        raise Mismatch(f"the outcome within {PROMPT_S} s of the result, once in {len(took)}"
                       " times", f"after {min(took):.2f} s at best")


@waits
def test_any_instance_on_demand__most(platform: PlatformUnderTest) -> None:
    """Of three events at once the last one waits where two instances are allowed."""
    platform.needs("instances")
    with platform.used_run(*PAIR, "--parallel", "3") as run:
        instances = run.pair()
        run.issue(b"three")
        run.wait(2.0)  # a process takes a while to come up, more on a busy machine
        run.no_instance()
        run.abandon(*instances)
        run.abandon(run.instance())


def test_any_instance_idle(platform: PlatformUnderTest) -> None:
    """An instance may be stopped that is idle for a while, not one that works."""
    with platform.running("--idle", "0.4", "--timeout", "30") as (run, instance):
        run.wait(0.8)
        run.finish(instance)
        run.idle = None
        run.discard(instance)


def test_any_queue_order(platform: PlatformUnderTest) -> None:
    """Events that wait are served in the order of their arrival."""
    with platform.used_run(*CLOCKED, "--timeout", "30") as run:
        events = [b"one", b"two", b"three", b"four"]
        instance = run.fetched(events[0])
        for event in events[1:]:
            run.issue(event)
            run.wait(0.1)
        run.finish(instance)
        for event in events[1:]:
            instance.got = instance.next_event()
            same(event, instance.got.body)
            run.finish(instance)


def test_any_queue_limit__full(platform: PlatformUnderTest) -> None:
    """An event that finds the queue full is throttled."""
    platform.needs("instances")
    run = platform.run("--parallel", "4", "--queue", "2")
    run.issue(b"runs")
    instance = run.instance()
    for event in (b"waits", b"waits, too"):
        run.issue(event)
        run.settle()
        run.no_outcome()
    run.issue(b"one too many")
    same(4, run.outcome("throttled").line.get("id"))
    instance.order("print", to=1, text=b"")


def test_any_queue_limit__timeout(platform: PlatformUnderTest) -> None:
    """An event that waits too long for an instance is throttled; the others go on."""
    platform.needs("instances")
    run = platform.run("--parallel", "2", "--queue-timeout", "0.2")
    instance = run.fetched(b"runs")
    run.issue(b"waits")
    same(2, run.outcome("throttled").line.get("id"))
    run.finish(instance)


@waits
def test_any_limits_clock__queue(platform: PlatformUnderTest) -> None:
    """The wait in the queue does not count towards the time limit, and that is not over
    before its time."""
    with platform.running("--parallel", "2", "--timeout", "2.99") as (run, instance):
        run.issue(b"waits")
        run.wait(1.6)
        run.finish(instance)
        run.wait(2.05)
        same(b"waits", instance.next_event().body)
        run.finish(instance)


@waits
def test_any_limits_clock__init(pull_platform: PlatformUnderTest) -> None:
    """The initialisation may take longer than an invocation."""
    with pull_platform.used_run("--timeout", "0.8", "--init-timeout", "3") as run:
        instance = run.starting()
        run.wait(1.2)
        if run.protocol == "scf":
            instance.ready()
        instance.fetch()
        run.finish(instance)


def test_any_init_exit(platform: PlatformUnderTest) -> None:
    """A process that ends while it starts has its event as the first one, whatever
    events there were that no process saw."""
    platform.needs("limits")
    with platform.used_run("--max-event", "100") as run:
        run.discard_idle()
        for event in (b"x" * 101, b"x" * 101):
            run.issue(event)
            run.outcome("request-too-large")
        run.starting().end("exit", status=1)
        run.outcome("start-error" if run.protocol == "fc" else "init-error")
        run.settle()
        run.no_instance()


def test_any_init_timeout__early(platform: PlatformUnderTest) -> None:
    """The limit for the initialisation is not that of an invocation: it ends one that
    takes longer, and no other."""
    option = "--start-timeout" if platform.implementation.protocol == "fc" \
        else "--init-timeout"
    with platform.used_run("--timeout", "30", option, "0.8") as run:
        instance = run.starting()
        run.patience_s = 0.8 + 1.0 + 1.0  # the limit, the rule's second, a busy machine
        run.outcome("start-error" if run.protocol == "fc" else "init-timeout")
        instance.reaped()
        run.settle()


@pytest.mark.parametrize("kind", ["idle", "starting"])
@waits
def test_any_outcome_one(pull_platform: PlatformUnderTest, kind: str) -> None:
    """Every event has one outcome when the input ends."""
    run = pull_platform.run("--timeout", "0.3", "--parallel", "3", "--init-timeout",
                            "1" if kind == "idle" else "0.8")
    for event in (b"one", b"two", b"three"):
        run.issue(event)
    instance = run.instance()
    run.end_input()
    if kind == "idle" and run.protocol == "scf":
        with contextlib.suppress(Mismatch):  # on a busy machine the limit may be faster
            instance.ready()
    ids = [run.outcome().line.get("id", 0) for _ in range(3)]
    same([1, 2, 3], sorted(ids), "the ids")


def test_any_result_first(pull_platform: PlatformUnderTest) -> None:
    """A second result changes nothing, in whatever form it comes."""
    with pull_platform.running() as (run, instance):
        instance.result(b"first")
        instance.result(b"second", "error")
        same(b"first", run.outcome("ok", instance).body)


def test_any_outcome_one__bounded(platform: PlatformUnderTest) -> None:
    """The outcome of an event that nobody answers is there in bounded time."""
    with platform.running(*LIMITED) as (run, instance):
        run.patience_s = 1.0 + 1.0 + 1.0  # the limit, the rule's second, a busy machine
        run.outcome("timeout")
        run.discard(instance)


def test_any_stop_drain__poll(pull_platform: PlatformUnderTest) -> None:
    """An instance that is being stopped gets no event."""
    run = pull_platform.run("--grace", "30")
    instance = run.stubborn()
    number = instance.park()
    run.end_input()
    instance.held(number)


@pytest.mark.parametrize("word", ["eat", "fork"])
def test_any_memory_limit(platform: PlatformUnderTest, word: str) -> None:
    """An instance whose processes take more memory than its limit is ended whole."""
    platform.needs("memory")
    with platform.used_run("--memory", "100", "--timeout", "30", "--grace", "60") as run:
        instance = run.fetched()
        child = instance.order("fork")["child"]
        instance.order("ignore", signal=15)
        instance.end(word, bytes=200 << 20)
        run.outcome("out-of-memory")
        instance.reaped()
        faults.wait_gone(child, run.patience_s)
        run.settle()


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


def test_any_stop_drain__queue(platform: PlatformUnderTest) -> None:
    """Events that wait when the input ends are served, too."""
    run = platform.run("--parallel", "3", "--timeout", "30", "--grace", "0.3")
    events = [b"one", b"two", b"three"]
    instance = run.fetched(events[0])
    instance.order("ignore", signal=15)
    for event in events[1:]:
        run.issue(event)
    run.end_input()
    run.settle()
    run.finish(instance)
    for event in events[1:]:
        instance.got = instance.next_event()
        instance.give(b"done")  # and after the last one it may be killed
        same(b"done", run.outcome("ok", instance).body)
    run.ends()


def test_any_stop_order(platform: PlatformUnderTest) -> None:
    """Each process of the group gets SIGTERM, and has time to end by it."""
    run = platform.run("--grace", "30")
    instance = run.fetched()
    instance.order("obey", signal=15)
    child = instance.order("fork")["child"]
    run.finish(instance)
    run.end_input()
    instance.reaped()
    faults.wait_gone(child, run.patience_s)
    run.ends()
    noted = sorted(int(path.name.split("-")[2]) for path in run.code.glob("signal-15-*"))
    same(sorted([instance.pid, child]), noted, "processes that were told by SIGTERM")


@pytest.mark.parametrize("ends", [False, True])
@waits
def test_any_stop_order__grace(platform: PlatformUnderTest, ends: bool) -> None:
    """What ignores SIGTERM is killed when the grace is over, be it the first process or
    one that it left behind, and not before."""
    run = platform.run("--grace", "1")
    instance = run.fetched()
    instance.order("ignore", signal=15)
    child = instance.order("fork")["child"]
    run.finish(instance)
    run.end_input()
    run.wait(0.4)
    if ends:
        instance.end("exit", status=0)
        faults.wait_gone(instance.pid, run.patience_s)
    same(True, state_of(child) not in ("", "Z"), "a child in the time of grace")
    faults.wait_gone(child, run.patience_s)
    instance.reaped()


def test_any_process_group(platform: PlatformUnderTest) -> None:
    """A bootstrap is in a process group of its own."""
    with platform.fetched() as instance:
        same(instance.pid, os.getpgid(instance.pid), "the process group")


def test_any_process_group__leftovers(platform: PlatformUnderTest) -> None:
    """When the platform has ended, nothing of the instance is left."""
    run = platform.run("--grace", "0.2")
    instance = run.fetched()
    child = instance.order("fork")["child"]
    address = None if run.protocol == "fc" else instance.address()
    run.finish(instance)
    run.end_input()
    run.ends()
    faults.wait_gone(child, 0.5)
    faults.wait_gone(instance.pid, 0.5)
    if address:
        with contextlib.suppress(OSError):
            wire.connect(*address, run.note, "platform")
            raise Mismatch("nobody at the address of the runtime API", "a server")


PRINTED = {"while it starts": "any.log.first", "in pieces": "any.log.streams",
           "right before its end": "any.log.streams", "while idle": "any.log.streams"}


@pytest.mark.parametrize("to", [1, 2])
@pytest.mark.parametrize("when,rule", PRINTED.items())
def test_any_log(platform: PlatformUnderTest, when: str, rule: str, to: int) -> None:
    """What a bootstrap prints, whenever that is, is in the log before the outcome of its
    event, or of the next one."""
    platform.needs("logs")
    mark = os.urandom(8).hex().encode()
    with platform.used_run() as run:
        instance = run.starting() if rule == "any.log.first" else run.fetched()
        if when == "while idle":
            run.finish(instance)
        instance.order("print", to=to, text=mark[:9])  # no end of line
        instance.order("print", to=to, text=mark[9:] + b"\n")
        if when in ("while it starts", "right before its end"):
            instance.end("exit", status=1)
            run.outcome()
            run.idle = None
        else:
            run.idle = run.idle or instance
            run.serve() if when == "while idle" else run.finish(instance)
        same(1, run.said().count(mark), "times that it is in the log")
        run.settle()


def test_any_log_streams(platform: PlatformUnderTest) -> None:
    """What a bootstrap prints is in the log before its result, and in order."""
    platform.needs("logs")
    with platform.used_run() as run:
        instance = run.fetched()
        mark = os.urandom(8).hex().encode()
        for number, to in enumerate((1, 2, 1)):
            text = b"<%s %d>\n" % (mark, number)
            instance.order("print", to=to, text=text)
        run.finish(instance)
        printed = re.findall(b"<%s (.)>" % mark, run.said())
        same([b"0", b"1", b"2"], printed, "lines of the log")


@pytest.mark.parametrize("to", [1, 2])
def test_any_log_streams__drained(platform: PlatformUnderTest, to: int) -> None:
    """A bootstrap can print a megabyte without being held up."""
    platform.needs("logs")
    with platform.fetched() as instance:
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


EVIL_VALUE = "a\r\nX-Evil: 1"


@pytest.mark.parametrize("options,fields", [
    (["--name", EVIL_VALUE], {}), ([], {"headers": [["X-A", EVIL_VALUE]]}),
    ([], {"headers": [[EVIL_VALUE, "b"]]}), ([], {"path": "/" + EVIL_VALUE}),
    ([], {"method": "GET / HTTP/1.1\r\nX-Evil: 1\r\n\r\nGET"})])
def test_any_security_values(push_platform: PlatformUnderTest, options: List[str],
                             fields: Dict[str, object]) -> None:
    """A name, value, path or method with CR and LF makes no new header field."""
    run = push_platform.run(*options)
    try:
        run.patience_s = 1.0
        run.issue(b"", **({"method": "GET", "path": "/", **fields} if fields else {}))
        got = run.server().request("", 1.0)
    except Mismatch:
        return  # refused, or never sent: as good
    same([], [name for name in got.headers if name[0].lower() == "x-evil"], "evil fields")
