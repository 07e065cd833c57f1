# test_platform_fc.py: what SPEC.md chapter 6 asks of a platform (MIT).
"""One rule each. The kit is the caller, and the server that the platform started."""

import json
import re
from typing import Any, Dict, List, Tuple

import pytest

from kit import Mismatch, document, same
from platform_run import LIMITED, PlatformUnderTest, PlatformRun

ANSWERS = {  # status, x-fc-status -> outcome of an event invocation
    "200": (200, None, "ok"), "200-200": (200, "200", "ok"), "201": (201, None, "ok"),
    "404": (404, None, "function-error"), "404-404": (404, "404", "function-error"),
    "404-200": (404, "200", "ok"), "200-404": (200, "404", "function-error"),
    "400": (400, None, "ok"), "500": (500, None, "ok"), "302": (302, None, "ok"),
}


@pytest.mark.parametrize("name,rule", [
    (name, "fc.invoke.answer" if name in ("200", "200-200") else "fc.answer.outcome")
    for name in sorted(ANSWERS)])
def test_fc_answers(platform: PlatformUnderTest, name: str, rule: str) -> None:
    """Status and X-Fc-Status decide what an answer to an event means."""
    status, field, outcome = ANSWERS[name]
    fields = [("X-Fc-Status", field)] if field else []
    seen = platform.answered(status, fields, b"the body", outcome)
    same(b"the body", seen.body, "the body for the caller")


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
        same(("application/octet-stream", str(len(event))),
             (got.header("content-type"), got.header("content-length")))
        same(event[:65536], got.body)
        run.finish(instance, event[:1000])


def test_fc_invoke_send(platform: PlatformUnderTest) -> None:
    """An invocation is one request."""
    with platform.used_run() as run:
        run.serve(b"one")
        instance = run.fetched(b"two")
        same(b"two", instance.got.body)
        run.finish(instance)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_fc_invoke_http(platform: PlatformUnderTest, method: str) -> None:
    """An HTTP invocation keeps method, path, query, fields and body."""
    with platform.used_run() as run:
        instance = run.fetched(b"body", method=method, path="/a/b%20c?d=1&d=2",
                              headers=[["X-Mine", "yes"], ["Cookie", "a=b"]])
        got = instance.got
        same(f"{method} /a/b%20c?d=1&d=2 HTTP/1.1", got.start)
        same(("yes", "a=b", b"body"),
             (got.header("x-mine"), got.header("cookie"), got.body))
        run.finish(instance)


def test_fc_invoke_control_path(platform: PlatformUnderTest) -> None:
    """X-Fc-Control-Path tells events from HTTP invocations."""
    with platform.running() as (run, instance):
        same(["/invoke"], instance.got.values("x-fc-control-path"))
        run.finish(instance)
        instance = run.fetched(b"", method="GET", path="/invoke")
        same(["/http-invoke"], instance.got.values("x-fc-control-path"))
        run.finish(instance)


def test_fc_answer_outcome__http(platform: PlatformUnderTest) -> None:
    """A 404 is an ordinary answer of an HTTP invocation."""
    seen = platform.answered(404, [], b"not here", method="GET", path="/nothing/here")
    same((404, b"not here"), (seen.status, seen.body))


def test_fc_http_pass(platform: PlatformUnderTest) -> None:
    """Status, fields and body of an HTTP invocation's answer reach the caller."""
    fields = [("x-mine", "a"), ("set-cookie", "b=1"), ("set-cookie", "c=2")]
    seen = platform.answered(207, fields, b"<p>", method="GET", path="/page")
    same((207, b"<p>"), (seen.status, seen.body))
    same(fields, [pair for pair in seen.headers if pair[0] in ("x-mine", "set-cookie")])


@pytest.mark.parametrize("name", ["X-Fc-Request-Id", "X-Fc-Mine", "Connection",
                                  "Keep-Alive"])
def test_fc_headers_reserved_request(platform: PlatformUnderTest, name: str) -> None:
    """A reserved field of the caller does not reach the bootstrap."""
    fields = [[name, "evil"]]
    with platform.fetched(b"", method="GET", path="/", headers=fields) as instance:
        same(False, "evil" in instance.got.values(name), f"{name} of the caller")


@pytest.mark.parametrize("name", ["X-Fc-Mine", "Keep-Alive", "Date", "Server",
                                  "Upgrade"])
def test_fc_headers_reserved_response(platform: PlatformUnderTest, name: str) -> None:
    """A reserved field of the answer does not reach the caller."""
    seen = platform.answered(200, [(name, "evil")], b"x", method="GET", path="/")
    same(False, "evil" in json.dumps(seen.line), name)


@pytest.mark.parametrize("name", [
    "Request-Id", "Control-Path", "Function-Name", "Function-Handler", "Function-Memory",
    "Region", "Account-Id", "Qualifier"])
def test_fc_headers_common(platform: PlatformUnderTest, name: str) -> None:
    """The common fields are there, once each."""
    with platform.fetched() as instance:
        same(1, len(instance.got.values("X-Fc-" + name)), f"fields X-Fc-{name}")


@pytest.mark.parametrize("name", ["Access-Key-Id", "Security-Token", "Version-Id",
                                  "Service-Name"])
def test_fc_headers_empty(platform: PlatformUnderTest, name: str) -> None:
    """A field without a value is there and empty."""
    with platform.fetched() as instance:
        same([""], instance.got.values("X-Fc-" + name), f"values of X-Fc-{name}")


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
        same(request_id, run.finish(instance).request_id)


def test_fc_id_form(platform: PlatformUnderTest) -> None:
    """An id has the form 1-8-8-12 in hexadecimal digits."""
    with platform.running() as (run, instance):
        request_id = instance.got.header("x-fc-request-id") or ""
        run.finish(instance)
    if not re.match(r"^1-[0-9a-f]{8}-[0-9a-f]{8}-[0-9a-f]{12}$", request_id):
        raise Mismatch("1-8-8-12 hexadecimal digits", request_id)


def test_fc_connection_reuse(platform: PlatformUnderTest) -> None:
    """The next request comes on the connection that was kept open."""
    with platform.running(event=b"one") as (run, instance):
        first = instance.asked
        run.finish(instance)
        instance = run.fetched(b"two")
        same(first, instance.asked, "number of the connection")
        run.finish(instance)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE"])
def test_fc_connection_retry(platform: PlatformUnderTest, method: str) -> None:
    """A request without effects is sent again when a reused connection breaks."""
    with platform.used_run() as run:
        run.serve(b"one")
        instance = run.fetched(b"", method=method, path="/again")
        instance.close(instance.asked, reset=True)
        instance.request("/again")
        run.idle = instance
        instance.answer(200)
        run.outcome("ok")


def test_fc_connection_retry__post(platform: PlatformUnderTest) -> None:
    """A POST is not sent again when its connection breaks."""
    with platform.used_run() as run:
        run.serve(b"one")
        instance = run.fetched(b"two")
        instance.close(instance.asked, reset=True)
        run.outcome("bad-response")
        same("silence", instance.request("", 0.05).end, "a second request")
        run.discard(instance)


BAD_ANSWERS = {
    "no-http": b"this is no HTTP\r\n\r\n", "cut-head": b"HTTP/1.1 200 OK\r\nContent-L",
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


@pytest.mark.parametrize("status", [0, 1, 7])
def test_fc_start_failed__exit(platform: PlatformUnderTest, status: int) -> None:
    """A process that ends before the port is open is CAExited."""
    with platform.used_run() as run:
        run.starting().end("exit", status=status)
        same("CAExited", document(run.outcome("start-error").body)["Code"])
        run.serve(b"afterwards")


@pytest.mark.parametrize("rule,host", [("fc.start.failed", ""),
                                       ("fc.start.probe", "127.0.0.1")])
def test_fc_start_deadline(platform: PlatformUnderTest, rule: str, host: str) -> None:
    """A port that is not open in time, or on 127.0.0.1 alone, is FunctionNotStarted."""
    with platform.used_run("--start-timeout", "1") as run:
        instance = run.starting()
        if host:
            instance.listen(host)
        same("FunctionNotStarted", document(run.outcome("start-error").body)["Code"])
        run.discard(instance)


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


@pytest.mark.parametrize("status", [400, 404, 500, 302])
def test_fc_initialize_failed(platform: PlatformUnderTest, status: int) -> None:
    """An Initializer that fails ends the instance; the next event gets a new one."""
    with platform.new_run("--initializer") as run:
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


def test_fc_freeze_idle(platform: PlatformUnderTest) -> None:
    """An instance in which nothing runs stands still."""
    platform.needs("freeze")
    with platform.used_run("--freeze") as run:
        run.idle = run.idle_one()
        run.idle.frozen()


def test_fc_freeze_thaw(platform: PlatformUnderTest) -> None:
    """A frozen instance runs again for the next request."""
    platform.needs("freeze")
    with platform.used_run("--freeze") as run:
        run.idle = run.idle_one()
        run.idle.frozen()
        run.serve(b"two")


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


def test_fc_stop_order(platform: PlatformUnderTest) -> None:
    """A frozen instance is thawed for its pre-stop hook, then SIGTERM ends it."""
    run = platform.run("--freeze", "--pre-stop", "--grace", "30")
    instance = run.idle_one()
    instance.frozen()
    run.end_input()
    instance.request("/pre-stop")
    instance.answer()
    instance.reaped()


def test_any_stop_drain__fc(platform: PlatformUnderTest) -> None:
    """An invocation that runs comes to its end before the instance is stopped."""
    run = platform.run("--pre-stop")
    instance = run.fetched(b"one")
    asked = instance.asked
    run.end_input()
    asked = instance.asked
    same("silence", instance.request("", 0.1).end, "while the invocation runs")
    instance.asked = asked
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
    "fc.limits.request:path": {"event": b"", "method": "GET", "path": "/" + "p" * 4097}}


@pytest.mark.parametrize("name,rule", [(name, name.split(":")[0]) for name in LIMITS])
def test_fc_limits(platform: PlatformUnderTest, name: str, rule: str) -> None:
    """What is over the limit never reaches an instance."""
    platform.needs("limits")
    with platform.used_run("--max-event", "100") as run:
        run.issue(**LIMITS[name])
        run.outcome("request-too-large")
        run.serve(b"afterwards")


def test_fc_limits_response(platform: PlatformUnderTest) -> None:
    """An answer whose head is over 8 KB is too large."""
    with platform.running() as (run, instance):
        instance.answer(200, [("X-Long", "y" * 8200)])
        run.outcome("response-too-large")
        run.discard(instance)


def test_fc_outcome_document__function(platform: PlatformUnderTest) -> None:
    """A function error has status 200 and X-Fc-Error-Type InvocationError."""
    seen = platform.answered(404, [("X-Fc-Status", "404")], b"{}", "function-error")
    same((200, "InvocationError"),
         (seen.status, dict(seen.headers).get("x-fc-error-type")))


def test_fc_outcome_document__platform(platform: PlatformUnderTest) -> None:
    """A platform's failure has its status and the start document."""
    with platform.used_run() as run:
        run.starting().end("exit", status=1)
        outcome = run.outcome("start-error")
        seen = document(outcome.body)
        same(412, outcome.status)
        same(["Code", "ErrorCode", "ErrorMessage", "Message", "RequestId"],
             sorted(seen))
