# test_platform_fc.py: what SPEC.md chapter 6 asks of a platform (MIT).
"""One rule each. The kit is the caller, and the server that the platform started."""

import json
import re
import time
from typing import Any, Dict, List, Optional, Tuple

import pytest

import wire
from kit import Mismatch, document, same, waits
from platform_run import CONFIGURED, LIMITED, PlatformRun, PlatformUnderTest, state_of

ANSWERS = [  # is it HTTP, status, x-fc-status, outcome [fc.answer.outcome]
    (False, 200, None, "ok"), (False, 200, "200", "ok"), (False, 201, None, "ok"),
    (False, 404, None, "function-error"), (False, 404, "404", "function-error"),
    (False, 404, "200", "ok"), (False, 404, "500", "ok"), (False, 404, "", "function-error"),
    (False, 200, "404", "function-error"), (False, 500, "404", "function-error"),
    (False, 400, None, "ok"), (False, 500, None, "ok"), (False, 302, None, "ok"),
    (False, 500, "no", "ok"),
    (True, 404, None, "ok"), (True, 404, "", "ok"), (True, 500, None, "ok"),
    (True, 200, "404", "function-error"), (True, 500, "404", "function-error"),
    (True, 404, "200", "ok"), (True, 200, "500", "ok")]


@pytest.mark.parametrize("is_http,status,field,outcome,rule", [
    (*row, "fc.invoke.answer" if row[:2] == (False, 200) and row[3] == "ok" else
     "fc.answer.outcome") for row in ANSWERS])
def test_fc_answers(platform: PlatformUnderTest, is_http: bool, status: int,
                    field: Optional[str], outcome: str, rule: str) -> None:
    """Status and X-Fc-Status decide what an answer means."""
    fields = [] if field is None else [("X-Fc-Status", field)]
    http = {"method": "GET", "path": "/nothing/here"} if is_http else {}
    seen = platform.answered(status, fields, b"the body", outcome, **http)
    same(b"the body", seen.body, "the body for the caller")
    if is_http and outcome == "ok":
        same(status, seen.status, "the status for the caller")


FORMS = {  # answers that are as good as any other; the kit closes after the last ones
    "no reason": b"HTTP/1.1 200\r\nContent-Length: 4\r\n\r\ndone",
    "lower case": b"HTTP/1.1 200 ok\r\ncontent-length:4\r\n\r\ndone",
    "blanks": b"HTTP/1.1 200 OK\r\nContent-Length: \t4 \r\nX-Fc-Status:  200 \r\n\r\ndone",
    "chunked": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
               + wire.chunked(b"done", 1),
    "odd chunks": b"HTTP/1.1 200 OK\r\nTRANSFER-ENCODING: Chunked\r\n\r\n"
                  + wire.odd_chunks(b"done"),
    "continue": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n"
                b"Content-Length: 4\r\n\r\ndone",
    "to be closed": b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 4\r\n\r\n"
                    b"done",
    "closed": b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\ndone",
    "version 1.0": b"HTTP/1.0 200 OK\r\n\r\ndone"}
CLOSED = ("to be closed", "closed", "version 1.0")


@pytest.mark.parametrize("form", sorted(FORMS))
def test_fc_invoke_answer(platform: PlatformUnderTest, form: str) -> None:
    """An answer counts in whatever form HTTP allows; the next event goes on a new
    connection where the server closes the old one."""
    with platform.running() as (run, instance):
        instance.send(instance.asked, FORMS[form])
        if form in CLOSED:
            instance.close(instance.asked)
        same(b"done", run.outcome("ok", instance).body)
        run.serve()


@pytest.mark.parametrize("method,status,length", [
    ("HEAD", 200, "100"), ("GET", 204, ""), ("GET", 304, "100"), ("GET", 304, "")])
def test_fc_invoke_answer__bodiless(platform: PlatformUnderTest, method: str, status: int,
                                    length: str) -> None:
    """An answer that has no body by HTTP is complete with its head."""
    fields = [("Content-Length", length)] if length else []
    with platform.used_run() as run:
        for _ in range(2):
            instance = run.fetched(b"", method=method, path="/")
            instance.answer_bytes(wire.head_bytes(f"HTTP/1.1 {status} X", fields))
            seen = run.outcome("ok", instance)
            same((status, b""), (seen.status, seen.body))


def test_fc_answer_lost(platform: PlatformUnderTest) -> None:
    """The caller of an event does not see status and fields of the answer."""
    seen = platform.answered(418, [("X-Mine", "secret")], b"the body")
    same((200, False), (seen.status, "secret" in json.dumps(seen.line)))


@pytest.mark.parametrize("event", [b"hello", b"", b"\0\xff\r\n", b"x" * 100_000])
def test_fc_invoke_event(platform: PlatformUnderTest, event: bytes) -> None:
    """An event is POST /invoke with its bytes, their length and octet-stream."""
    with platform.running(event=event) as (run, instance):
        got = instance.got
        same("POST /invoke HTTP/1.1", got.start)
        same((["application/octet-stream"], [str(len(event))], []), tuple(
            got.values(name) for name in ("content-type", "content-length",
                                          "transfer-encoding")))
        same(event[:65536], got.body)
        run.finish(instance, event[:1000])


def test_fc_invoke_send(platform: PlatformUnderTest) -> None:
    """An invocation is one request."""
    with platform.used_run() as run:
        run.serve(b"one")
        instance = run.fetched(b"two")
        same(b"two", instance.got.body)
        run.finish(instance)


METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "PROPFIND")
TARGETS = ("/a/b%20c?d=1&d=2", "/a%2Fb//c/../d;e=f", "/%e4%bd%a0/%7Etilde?q=%20+a&&=&b",
           "/?", "/a?b?c=/d", "/invoke", "/initialize?x=1", "/" + "p" * 4000)


@pytest.mark.parametrize("method,target", [
    *((method, TARGETS[0]) for method in METHODS), *(("GET", one) for one in TARGETS[1:])])
def test_fc_invoke_http(platform: PlatformUnderTest, method: str, target: str) -> None:
    """An HTTP invocation keeps method, path and query as they are, and has its body."""
    with platform.used_run() as run:
        instance = run.fetched(b"body", method=method, path=target)
        same(f"{method} {target} HTTP/1.1", instance.got.start)
        same(b"body", instance.got.body)
        run.finish(instance)


SENT = [["X-Mine", "one"], ["X-Mine", "two"], ["x-mine", "three"], ["Cookie", "a=b; c=d"],
        ["Content-Type", "text/x; charset=utf-8"], ["Content-Encoding", "gzip"],
        ["Authorization", "Basic eA=="], ["User-Agent", "me/1"], ["X-Empty", ""],
        ["X-Inner", "a  b\tc"], ["X-Latin", "\u00e9"], ["If-None-Match", '"x"'],
        ["Host", "example.org"], ["Accept", "*/*"], ["X-FcNot", "mine"],
        *([f"X-{number}", "y" * 600] for number in range(12))]


def test_fc_invoke_http__fields(platform: PlatformUnderTest) -> None:
    """An HTTP invocation has the fields of the caller, each as often as he sent it."""
    with platform.fetched(b"x", method="POST", path="/", headers=SENT) as instance:
        for name, _ in SENT:
            same([value for key, value in SENT if key.lower() == name.lower()],
                 instance.got.values(name), f"values of {name}")


def test_fc_invoke_http__no_fields(platform: PlatformUnderTest) -> None:
    """A platform does not speak for a caller who said nothing of himself."""
    with platform.fetched(b"", method="GET", path="/") as instance:
        same([], [name for name in ("Accept-Encoding", "User-Agent", "Content-Type")
                  if instance.got.header(name) is not None], "fields that nobody sent")


def test_fc_invoke_control_path(platform: PlatformUnderTest) -> None:
    """X-Fc-Control-Path tells events from HTTP invocations."""
    with platform.running() as (run, instance):
        same(["/invoke"], instance.got.values("x-fc-control-path"))
        run.finish(instance)
        instance = run.fetched(b"", method="GET", path="/invoke")
        same(["/http-invoke"], instance.got.values("x-fc-control-path"))
        run.finish(instance)


GIVEN = [("x-mine", "a"), ("set-cookie", "b=1; Path=/"), ("set-cookie", "c=2"),
         ("content-type", "text/html; charset=gbk"), ("content-encoding", "gzip"),
         ("location", "/elsewhere"), ("x-empty", ""), ("etag", '"x"'), ("x-latin", "\u00e9"),
         ("www-authenticate", "Basic"), ("vary", "a, b"), ("x-fcnot", "mine")]


@pytest.mark.parametrize("status", [200, 207, 301, 302, 401, 404, 418, 500, 503, 599])
def test_fc_http_pass(platform: PlatformUnderTest, status: int) -> None:
    """Status, fields and body of an HTTP invocation's answer reach the caller."""
    body = bytes(range(256))
    seen = platform.answered(status, GIVEN, body, method="GET", path="/page")
    same((status, body), (seen.status, seen.body))
    for name, _ in GIVEN:
        same([value for key, value in GIVEN if key == name],
             [value for key, value in seen.headers if key == name], f"values of {name}")


@pytest.mark.parametrize("names", [
    ("X-Fc-Request-Id", "X-Fc-Mine", "X-FC-STATUS", "Connection", "Keep-Alive"),
    ("x-fc-mine", "connection", "KEEP-ALIVE")])
def test_fc_headers_reserved_request(platform: PlatformUnderTest,
                                     names: Tuple[str, ...]) -> None:
    """A reserved field of the caller does not reach the bootstrap."""
    fields = [[name, "evil"] for name in names]
    with platform.fetched(b"", method="GET", path="/", headers=fields) as instance:
        for name in names:
            same(False, "evil" in instance.got.values(name), f"{name} of the caller")


@pytest.mark.parametrize("names", [
    ("X-Fc-Mine", "X-FC-STATUS", "Keep-Alive", "Date", "Server"),
    ("x-fc-mine", "KEEP-ALIVE", "date", "Upgrade")])
def test_fc_headers_reserved_response(platform: PlatformUnderTest,
                                      names: Tuple[str, ...]) -> None:
    """A reserved field of the answer does not reach the caller."""
    fields = [(name, f"evil-{name}") for name in names]
    seen = platform.answered(200, fields, b"x", method="GET", path="/")
    same([], re.findall("evil-[A-Za-z-]+", json.dumps(seen.line)), "of the answer")


FIELDS = {  # of every call: what is behind X-Fc-, and what its value is like
    "Request-Id": r"[A-Za-z0-9-]+", "Control-Path": "/(invoke|http-invoke|initialize)",
    "Function-Name": "mine", "Function-Handler": r"a\.b", "Function-Memory": "256",
    "Function-Timeout": "5", "Region": ".+", "Account-Id": ".+", "Qualifier": "LATEST",
    "Retry-Count": "0", "Base-Path": "/(invoke|initialize|page)"}
EMPTY = ("Access-Key-Id", "Access-Key-Secret", "Security-Token", "Version-Id",
         "Service-Name", "Service-Logproject", "Service-Logstore")


def is_like(got: wire.Message, name: str) -> None:
    """Raise Mismatch unless a request has one such field."""
    values = got.values("X-Fc-" + name)
    if len(values) != 1 or not re.fullmatch(FIELDS.get(name, ""), values[0]):
        raise Mismatch(f"one field X-Fc-{name}: {FIELDS.get(name, '')}", repr(values))


@pytest.mark.parametrize("is_http", [False, True])
@pytest.mark.parametrize("names,rule", [(tuple(FIELDS), "fc.headers.common"),
                                        (EMPTY, "fc.headers.empty")], ids=("common", "empty"))
def test_fc_headers(platform: PlatformUnderTest, names: Tuple[str, ...], rule: str,
                    is_http: bool) -> None:
    """The common fields are there, once each, with the values of the function; those
    without a value are there and empty."""
    fields = {"method": "GET", "path": "/page?x"} if is_http else {}
    with platform.used_run(*CONFIGURED) as run:
        instance = run.fetched(b"", **fields)
        for name in names:
            is_like(instance.got, name)
        run.finish(instance)


def test_fc_headers_common__hook(platform: PlatformUnderTest) -> None:
    """A hook has them, too."""
    with platform.new_run(*CONFIGURED, "--initializer") as run:
        instance = run.fetched()
        for name in FIELDS:
            is_like(instance.got, name)
        instance.answer()
        instance.request("/invoke")
        run.finish(instance)


def test_fc_headers_common__base_path(platform: PlatformUnderTest) -> None:
    """X-Fc-Base-Path is the path of an HTTP invocation."""
    with platform.fetched(b"", method="GET", path="/a/b?c=d") as instance:
        same("/a/b", instance.got.header("x-fc-base-path"))


def test_fc_headers_forwarded(platform: PlatformUnderTest) -> None:
    """What the caller says of himself passes, and nothing is added to it."""
    sent = {"X-Forwarded-For": "1.2.3.4, 5.6.7.8", "X-Forwarded-Proto": "https"}
    with platform.fetched(b"", method="GET", path="/",
                          headers=list(sent.items())) as instance:
        same({name: [value] for name, value in sent.items()},
             {name: instance.got.values(name) for name in sent})


def test_fc_headers_caller_id(platform: PlatformUnderTest) -> None:
    """The caller is told the id that the bootstrap saw."""
    with platform.running() as (run, instance):
        request_id = instance.got.header("x-fc-request-id")
        outcome = run.finish(instance)
        same((request_id, [request_id]), (outcome.request_id, [
            value for name, value in outcome.headers if name == "x-fc-request-id"]))


def test_fc_id_form(platform: PlatformUnderTest) -> None:
    """An id has the form 1-8-8-12 in hexadecimal digits."""
    with platform.running() as (run, instance):
        request_id = instance.got.header("x-fc-request-id") or ""
        run.finish(instance)
    if not re.match(r"^1-[0-9a-f]{8}-[0-9a-f]{8}-[0-9a-f]{12}$", request_id) \
            or abs(int(request_id[2:10], 16) - time.time()) > 60:
        raise Mismatch("1-8-8-12 hexadecimal digits, the Unix time first", request_id)


def test_fc_connection_reuse(platform: PlatformUnderTest) -> None:
    """Each request comes on the connection that was kept open, also the hundredth, and
    that after a failed one."""
    with platform.running(event=b"one") as (run, instance):
        first = instance.asked
        instance.answer(404, [("X-Fc-Status", "404")], b"{}")
        run.outcome("function-error", instance)
        for _ in range(101):
            instance = run.fetched(b"two")
            same(first, instance.asked, "number of the connection")
            run.finish(instance)


RETRIES = [  # method, how often its connection is reset, is it reused; outcome
    *((method, 1, True, "ok") for method in ("GET", "HEAD", "OPTIONS", "TRACE")),
    *((method, 1, True, "bad-response") for method in ("POST", "PUT", "PATCH", "DELETE")),
    ("GET", 2, True, "bad-response"), ("GET", 1, False, "bad-response")]


@pytest.mark.parametrize("method,count,is_reused,outcome", RETRIES)
def test_fc_connection_retry(platform: PlatformUnderTest, method: str, count: int,
                             is_reused: bool, outcome: str) -> None:
    """A request without effects is sent again, once, when a reused connection breaks."""
    with platform.used_run() as run:
        if is_reused:
            run.serve(b"one")
        else:
            run.discard_idle()
        instance = run.fetched(b"", method=method, path="/again")
        for number in range(count):
            if number:
                instance.request("/again")
            instance.close(instance.asked, reset=True)
        if outcome == "ok":
            instance.request("/again")
            instance.answer(200)
        run.outcome(outcome, instance)
        same("silence", instance.request("", 0.05).end, "one more request")
        if outcome != "ok":
            run.discard_idle()


def test_fc_connection_retry__begun(platform: PlatformUnderTest) -> None:
    """Nothing is sent again once there is a byte of an answer, nor is an event."""
    with platform.used_run() as run:
        for fields, begun in (({"method": "GET", "path": "/again"}, b"HTTP"), ({}, b"")):
            run.serve(b"one")
            instance = run.fetched(b"", **fields)
            instance.send(instance.asked, begun)
            run.settle()
            instance.close(instance.asked)
            run.outcome("bad-response")
            same("silence", instance.request("", 0.05).end, "a second request")
            run.discard(instance)


BAD_ANSWERS = {
    "nothing": b"", "no-http": b"this is no HTTP\r\n\r\n", "cut-head": b"HTTP/1.1 200 OK\r\nContent-L",
    "short-body": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345",
    "bad-length": b"HTTP/1.1 200 OK\r\nContent-Length: ten\r\n\r\n",
    "cut-chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\na\r\n12345",
    "bad-chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n12345",
}


@pytest.mark.parametrize("name", sorted(BAD_ANSWERS))
def test_fc_outcome_bad_response(platform: PlatformUnderTest, name: str) -> None:
    """An answer that is no HTTP, or that breaks off, is a bad response."""
    if name == "bad-length":
        platform.needs("hostile")
    with platform.running() as (run, instance):
        instance.send(instance.asked, BAD_ANSWERS[name])
        instance.close(instance.asked)
        run.outcome("bad-response")
        run.discard(instance)
        run.serve(b"afterwards")


def test_any_event_timeout__fc(platform: PlatformUnderTest) -> None:
    """No answer in time is a timeout, and the next event gets another instance."""
    with platform.running(*LIMITED) as (run, instance):
        run.outcome("timeout")
        instance.reaped()
        run.serve(b"afterwards")


@waits
def test_any_limits_clock__fc_start(platform: PlatformUnderTest) -> None:
    """Start and initialisation do not count towards the time limit."""
    run = platform.run("--timeout", "1", "--initializer")
    run.issue(b"hello")
    instance = run.instance()
    run.wait(1.1)
    instance.listen()
    instance.request("/initialize")
    run.wait(1.1)
    instance.answer()
    instance.request("/invoke")
    run.finish(instance)


def test_fc_start_failed__exit(platform: PlatformUnderTest) -> None:
    """A process that ends before the port is open is CAExited."""
    with platform.used_run() as run:
        for status in (0, 1, 7):
            run.starting().end("exit", status=status)
            same("CAExited", document(run.outcome("start-error").body)["Code"])
        run.serve(b"afterwards")


@pytest.mark.parametrize("rule,host", [("fc.start.failed", ""),
                                       ("fc.start.probe", "127.0.0.1")])
@waits
def test_fc_start_deadline(platform: PlatformUnderTest, rule: str, host: str) -> None:
    """A port that is not open in time, or on 127.0.0.1 alone, is FunctionNotStarted."""
    with platform.used_run("--start-timeout", "1") as run:
        instance = run.starting()
        if host:
            instance.listen(host)
        same("FunctionNotStarted", document(run.outcome("start-error").body)["Code"])
        run.discard(instance)


@waits
def test_fc_start_probe__held(platform: PlatformUnderTest) -> None:
    """A server may take its time to begin, and then for its first answer."""
    with platform.bare_run("--idle", "3600") as run:
        instance = run.starting()
        run.wait(run.implementation.hold_s)
        instance.listen()
        instance.request("/invoke")
        run.finish(instance)
        run.discard(instance)


@waits
def test_fc_connection_reuse__held(platform: PlatformUnderTest) -> None:
    """A connection is used again that was idle for a while."""
    with platform.running("--idle", "3600") as (run, instance):
        first = instance.asked
        run.finish(instance)
        run.wait(run.implementation.hold_s)
        run.finish(run.fetched())
        same(first, instance.asked, "number of the connection")


def test_fc_answer_interim(platform: PlatformUnderTest) -> None:
    """Interim answers come before the one that counts."""
    with platform.running() as (run, instance):
        interim = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"
        instance.send(instance.asked, b"HTTP/1.1 100 Continue\r\n\r\n", interim, interim)
        run.finish(instance)


def test_fc_start_probe(platform: PlatformUnderTest) -> None:
    """An instance gets its first request as soon as the port is open."""
    with platform.new_run() as run:
        run.serve(b"hello")


@pytest.mark.parametrize("code", ["CAFileNotFound", "CAFilePermission"])
def test_fc_start_failed__file(platform: PlatformUnderTest, code: str) -> None:
    """A start command that does not exist or is not executable has its own code."""
    with platform.new_run() as run, run.changed_bootstrap() as program:
        (program.unlink if code == "CAFileNotFound" else lambda: program.chmod(0o644))()
        run.issue(b"hello")
        same(code, document(run.outcome("start-error").body)["Code"])


@pytest.mark.parametrize("words", [["one"], ["a b", "$HOME", "*", ";", "'"]])
def test_fc_start_command(platform: PlatformUnderTest, words: List[str]) -> None:
    """The words after -- are the start command, and see no shell."""
    run = platform.run("--", "./bootstrap", *words)
    same(words, run.fetched().argv[1:])


def test_fc_env_port(platform: PlatformUnderTest) -> None:
    """Both port variables name the same port."""
    with platform.fetched() as instance:
        same(instance.environ["FC_SERVER_PORT"],
             instance.environ["FC_CUSTOM_LISTEN_PORT"])


# ---- hooks, freeze, stop ----


def test_fc_initialize_form__configured(platform: PlatformUnderTest) -> None:
    """Without a configured Initializer the first request is the event."""
    with platform.new_run() as run:
        instance = run.fetched()
        same("POST /invoke HTTP/1.1", instance.got.start)
        run.finish(instance)


def initialised(run: PlatformRun, status: int = 200, *answer: Any) -> None:
    """Answer the Initializer so, and settle the event that follows it."""
    instance = run.fetched(b"one")
    instance.answer(status, *answer)
    instance.request("/invoke")
    run.finish(instance)


def test_fc_initialize_form(platform: PlatformUnderTest) -> None:
    """The Initializer is POST /initialize without a body, before the event."""
    with platform.new_run("--initializer") as run:
        instance = run.fetched()
        same(("POST /initialize HTTP/1.1", 0),
             (instance.got.start, instance.got.body_bytes))
        same("/initialize", instance.got.header("x-fc-control-path"))
        instance.answer()
        instance.request("/invoke")
        run.finish(instance)


def test_fc_initialize_once(platform: PlatformUnderTest) -> None:
    """The Initializer is called once for each instance."""
    with platform.new_run("--initializer") as run:
        initialised(run)
        instance = run.fetched(b"two")
        same("POST /invoke HTTP/1.1", instance.got.start)
        run.finish(instance)


def test_fc_initialize_failed(platform: PlatformUnderTest) -> None:
    """An Initializer that fails ends the instance; the next event gets a new one."""
    with platform.new_run("--initializer") as run:
        for status in (400, 404, 500, 302):
            instance = run.fetched(b"one")
            instance.answer(status)
            run.outcome("init-error")
            instance.reaped()
        initialised(run)


def test_any_init_timeout__fc(platform: PlatformUnderTest) -> None:
    """An Initializer that does not answer in time ends the instance."""
    run = platform.run("--initializer", "--init-timeout", "0.8")
    instance = run.fetched(b"one")
    run.outcome("init-timeout")
    instance.reaped()


@pytest.mark.parametrize("status,answer", [(200, ()), (201, ()), (204, ()), (299, ()), (
    200, ([("X-Fc-Status", "200")], b'{"errorMessage": "no"}'))])
def test_fc_hook_success(platform: PlatformUnderTest, status: int,
                         answer: Tuple[Any, ...]) -> None:
    """Any status from 200 to 299 is the success of a hook, whatever the body."""
    with platform.new_run("--initializer") as run:
        initialised(run, status, *answer)


@pytest.mark.parametrize("hook", ["/pre-freeze", "/pre-stop"])
def test_fc_invoke_control_path__hook(platform: PlatformUnderTest, hook: str) -> None:
    """A hook's control path is its path; it has no body."""
    options = {"/pre-freeze": ("--freeze", "--pre-freeze"), "/pre-stop": ("--pre-stop",)}
    if hook == "/pre-freeze":
        platform.needs("freeze")
    run = platform.run(*options[hook])
    instance = run.fetched()
    instance.answer(200, [], b"done")
    run.outcome("ok")
    if hook == "/pre-stop":
        run.end_input()
    got = instance.request(hook)
    same((f"GET {hook} HTTP/1.1", [hook], 0),
         (got.start, got.values("x-fc-control-path"), got.body_bytes))


def test_fc_hook_broken(platform: PlatformUnderTest) -> None:
    """A hook that answers 500 ends the instance."""
    with platform.running("--freeze", "--pre-freeze", event=b"one") as (run, instance):
        instance.answer(200, [], b"done")
        run.outcome("ok")
        instance.request("/pre-freeze")
        instance.answer(500)
        instance.reaped()
        run.serve(b"two")
        run.discard_idle()


ENDS = {"event": (200, {}), "failure": (404, {}),
        "page": (200, {"method": "GET", "path": "/"})}


@pytest.mark.parametrize("end", sorted(ENDS))
def test_fc_freeze_idle(platform: PlatformUnderTest, end: str) -> None:
    """An instance in which nothing runs stands still with all that it has started."""
    platform.needs("freeze")
    status, fields = ENDS[end]
    with platform.new_run("--freeze") as run:
        instance = run.fetched(b"", **fields)
        child = instance.order("fork")["child"]
        instance.answer(status)
        run.outcome()
        instance.frozen()
        instance.frozen(child)
        run.idle = instance


def test_fc_freeze_thaw(platform: PlatformUnderTest) -> None:
    """A frozen instance, and all that it has started, runs again for each request."""
    platform.needs("freeze")
    with platform.new_run("--freeze") as run:
        instance = run.fetched()
        child = instance.order("fork")["child"]
        run.finish(instance)
        for event in (b"two", b"three"):
            instance.frozen(child)
            same(event, run.fetched(event).got.body)
            same(True, state_of(child) in ("R", "S"), "a child runs while an event does")
            run.finish(instance)


def test_fc_freeze_idle__busy(platform: PlatformUnderTest) -> None:
    """An instance does not stand still while one of two invocations runs."""
    platform.needs("freeze", "instances")
    run = platform.run("--freeze", "--concurrency", "2", "--parallel", "2")
    for event in (b"one", b"two"):
        run.issue(event)
    instance = run.server()
    instance.request("/invoke")
    first = instance.asked
    instance.request("/invoke")
    instance.answer(200, [], b"done")
    run.outcome("ok")
    run.settle()
    instance.asked = first
    instance.answer(200, [], b"done")
    same(b"done", run.outcome("ok").body)


def test_fc_freeze_hook__each(platform: PlatformUnderTest) -> None:
    """The hook comes before each freeze, which does not wait for it any longer than its
    limit."""
    platform.needs("freeze")
    run = platform.run("--freeze", "--pre-freeze", "--pre-freeze-timeout", "0.5")
    for _ in range(2):
        instance = run.fetched()
        instance.answer(200, [], b"done")
        run.outcome("ok")
        instance.request("/pre-freeze")
        instance.frozen()
        run.idle = instance


@pytest.mark.parametrize("status", [200, 400, 404])
def test_fc_freeze_hook(platform: PlatformUnderTest, status: int) -> None:
    """GET /pre-freeze comes before each freeze; if it fails, the instance still serves."""
    platform.needs("freeze")
    with platform.running("--freeze", "--pre-freeze", event=b"one") as (run, instance):
        instance.answer(200, [], b"done")
        run.outcome("ok")
        same("GET /pre-freeze HTTP/1.1", instance.request("/pre-freeze").start)
        instance.answer(status)
        instance.frozen()
        run.idle = instance
        same(b"two", run.fetched(b"two").got.body)
        run.abandon(instance)


@pytest.mark.parametrize("status", [200, 404])
def test_fc_stop_hook(platform: PlatformUnderTest, status: int) -> None:
    """GET /pre-stop comes when the instance is stopped, which it is if that fails, too."""
    run = platform.run("--pre-stop")
    instance = run.idle_one()
    run.end_input()
    same("GET /pre-stop HTTP/1.1", instance.request("/pre-stop").start)
    instance.answer(status)
    instance.reaped()


def test_fc_stop_hook__silent(platform: PlatformUnderTest) -> None:
    """An instance is stopped whose pre-stop hook does not answer in time."""
    run = platform.run("--pre-stop", "--pre-stop-timeout", "0.5", "--grace", "30")
    instance = run.idle_one()
    run.end_input()
    instance.request("/pre-stop")
    instance.reaped()
    run.ends()


def test_fc_stop_order(platform: PlatformUnderTest) -> None:
    """A frozen instance is thawed for its pre-stop hook, then SIGTERM ends it."""
    run = platform.run("--freeze", "--pre-stop", "--grace", "30")
    instance = run.fetched()
    instance.order("obey", signal=15)
    run.finish(instance)
    instance.frozen()
    run.end_input()
    instance.request("/pre-stop")
    run.settle()
    same([], list(run.code.glob("signal-*")), "signals before the answer of the hook")
    instance.answer()
    instance.reaped()
    same(1, len(list(run.code.glob("signal-15-*"))), "processes that were told by SIGTERM")


def test_any_stop_drain__fc(platform: PlatformUnderTest) -> None:
    """An invocation that runs comes to its end before the instance is stopped."""
    run = platform.run("--pre-stop")
    instance = run.fetched(b"one")
    run.end_input()
    same("silence", instance.request("", 0.1).end, "while the invocation runs")
    run.finish(instance)
    instance.request("/pre-stop")


# ---- several at once ----


def test_fc_concurrency_limit(platform: PlatformUnderTest) -> None:
    """An instance never has more requests than its concurrency."""
    platform.needs("instances")
    run = platform.run("--concurrency", "2", "--parallel", "3")
    for event in (b"one", b"two", b"three"):
        run.issue(event)
    instance = run.server()
    first = (instance.request("/invoke").body, instance.asked)
    same(2, len({first[0], instance.request("/invoke").body}), "events side by side")
    same("silence", instance.request("", 0.1).end, "a third request")
    instance.asked = first[1]
    instance.answer(200, [], b"done")
    instance.request("/invoke")


def test_fc_initialize_once__side_by_side(platform: PlatformUnderTest) -> None:
    """Two events for a new instance wait for one Initializer."""
    platform.needs("instances")
    run = platform.run("--initializer", "--concurrency", "2", "--parallel", "2")
    for event in (b"one", b"two"):
        run.issue(event)
    instance = run.server()
    instance.request("/initialize")
    same("silence", instance.request("", 0.1).end, "before the Initializer has answered")
    instance.answer()
    for _ in range(2):
        instance.request("/invoke")


@pytest.mark.parametrize("number", ["1", "200"])
def test_fc_concurrency_limit__ends(platform: PlatformUnderTest, number: str) -> None:
    """A concurrency of 1 or 200 is taken."""
    platform.run("--concurrency", number).serve()


def test_any_instance_on_demand__fc_fill(platform: PlatformUnderTest) -> None:
    """A second request goes to the instance that has room."""
    platform.needs("instances")
    run = platform.run("--max-instances", "3", "--concurrency", "2", "--parallel", "2")
    run.issue(b"one")
    instance = run.server()
    instance.request("/invoke")
    run.issue(b"two")
    same(b"two", instance.request("/invoke").body)
    run.no_instance()


@waits
def test_fc_time_others(platform: PlatformUnderTest) -> None:
    """After a timeout the other invocation may end; the next has another instance."""
    platform.needs("instances")
    run = platform.run("--concurrency", "2", "--parallel", "3", "--timeout", "2",
                       "--max-instances", "2")
    instance = run.fetched(b"times out")
    run.wait(1.2)
    run.issue(b"ends well")
    instance.request("/invoke")
    run.outcome("timeout")
    run.issue(b"the next one")
    instance.answer(200, [], b"done")
    same(b"done", run.outcome("ok").body)
    run.instance()


def test_any_outcome_exit__fc_shared(platform: PlatformUnderTest) -> None:
    """All invocations of a process that ends have the outcome exit."""
    platform.needs("instances")
    run = platform.run("--concurrency", "2", "--parallel", "2")
    run.issue(b"one")
    run.issue(b"two")
    instance = run.server()
    instance.request("/invoke")
    instance.request("/invoke")
    instance.end("exit", status=1)
    same(["exit", "exit"], [run.outcome().kind, run.outcome().kind])


@pytest.mark.parametrize("number", ["0", "201", "-1", "x"])
def test_fc_concurrency_limit__range(platform: PlatformUnderTest, number: str) -> None:
    """A concurrency that is not 1 to 200 is refused."""
    platform.run("--concurrency", number).refused()


# ---- faults, limits ----


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("status", [0, 1])
def test_any_outcome_exit__fc(platform: PlatformUnderTest, status: int,
                              half: bool) -> None:
    """A process that ends before its answer is there in full is the outcome exit."""
    with platform.running() as (run, instance):
        if half:
            instance.send(instance.asked,
                          b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n12")
        instance.end("exit", status=status)
        run.outcome("exit")
        instance.reaped()
        run.settle()
        run.serve(b"afterwards")


LIMITS: Dict[str, Dict[str, Any]] = {  # rule and case: the request that is too large
    "any.event.size": {"event": b"x" * 101},
    "fc.limits.request:headers": {"event": b"", "method": "GET", "path": "/",
                                  "headers": [["X-Long", "y" * 8200]]},
    "fc.limits.request:fields": {"event": b"", "method": "GET", "path": "/",
                                 "headers": [[f"X-{n}", "y" * 800] for n in range(11)]},
    "fc.limits.request:path": {"event": b"", "method": "GET", "path": "/" + "p" * 4096},
    "fc.limits.request:query": {"event": b"", "method": "GET",
                                "path": "/p?" + "q" * 4094}}


@pytest.mark.parametrize("name,rule", [(name, name.split(":")[0]) for name in LIMITS])
def test_fc_limits(platform: PlatformUnderTest, name: str, rule: str) -> None:
    """What is over the limit never reaches an instance."""
    platform.needs("limits")
    with platform.used_run("--max-event", "100") as run:
        run.issue(**LIMITS[name])
        run.outcome("request-too-large")
        run.serve(b"afterwards")


def test_fc_limits_result(platform: PlatformUnderTest) -> None:
    """A result over the limit may be refused; else it is given whole."""
    platform.needs("limits")
    with platform.used_run("--max-result", "100") as run:
        instance = run.fetched()
        instance.answer(200, [], b"x" * 101)
        outcome = run.outcome("response-too-large or ok", instance)
        same(outcome.kind == "ok", outcome.body == b"x" * 101, "is the result whole?")
        run.discard_idle()


def test_fc_limits_request__most(platform: PlatformUnderTest) -> None:
    """A path of 4096 bytes and fields of 8000 are not too large."""
    fields = [[f"X-{number:02}", "y" * 796] for number in range(10)]
    with platform.fetched(b"", method="GET", path="/" + "p" * 4095,
                          headers=fields) as instance:
        same(10, len([1 for name, _ in instance.got.headers if name[:3].upper() == "X-0"]))


@pytest.mark.parametrize("sizes,outcome", [
    ([8200], "response-too-large"), ([800] * 11, "response-too-large"), ([700] * 11, "ok")])
def test_fc_limits_response(platform: PlatformUnderTest, sizes: List[int],
                            outcome: str) -> None:
    """An answer whose head is over 8 KB is too large, and no smaller one."""
    with platform.running() as (run, instance):
        instance.answer(200, [(f"X-{size}", "y" * size) for size in sizes])
        run.outcome(outcome)
        run.discard(instance)
