# test_lifecycle_http.py: HTTP functions, as caller and function see the platform (MIT).
"""The test is both ends: what one side sends, when the other one gets it, and how."""

import contextlib
import errno
import fcntl
import select
import socket
import struct
import termios
import threading
import time
import types
from typing import Any, Dict, Iterator, List, Tuple

import pytest

import wire
from stage import Peer, Stage, outcome_of, until

MIB = 1048576
RESET = "reset"


@pytest.fixture
def stage() -> Iterator[Stage]:
    """A platform whose fc function is the test."""
    with Stage("fc") as made:
        yield made


def chunk(data: bytes) -> bytes:
    """Return one chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS = b"HTTP/1.1 200 OK\r\n\r\n"  # a body that ends with the connection


# ---- streaming ----


def test_fc_answer_streamed(stage: Stage) -> None:
    """A chunk is at the caller before the function has made the next one."""
    caller = stage.call("GET", "/stream")
    function = stage.accept()
    function.request()
    function.send(CHUNKED + chunk(b"one"))
    caller.head()
    assert caller.chunk() == b"one"
    function.send(chunk(b"two") + chunk(b""))
    assert (caller.chunk(), caller.chunk()) == (b"two", b"")


def test_fc_answer_streamed__counted(stage: Stage) -> None:
    """A body with a length is passed on as it comes as well."""
    caller = stage.call("GET", "/stream")
    function = stage.accept()
    function.request()
    function.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\none")
    caller.head()
    assert caller.exactly(3) == b"one"
    function.send(b"two")
    assert caller.exactly(3) == b"two"


def test_fc_answer_streamed__endless(stage: Stage) -> None:
    """A body that ends with the function's connection becomes a chunked one."""
    caller = stage.call("GET", "/stream")
    function = stage.accept()
    function.request()
    function.send(ENDLESS + b"one")
    assert "Transfer-Encoding: chunked" in caller.head()
    assert caller.chunk() == b"one"
    function.close()
    assert caller.chunk() == b""


def test_fc_answer_streamed__http_1_0(stage: Stage) -> None:
    """A caller of HTTP/1.0 gets no chunks, but the bytes and the end."""
    caller = stage.caller(b"GET /stream HTTP/1.0\r\n\r\n")
    function = stage.accept()
    function.request()
    function.send(CHUNKED + chunk(b"one"))
    assert "Connection: close" in caller.head()
    assert caller.exactly(3) == b"one"
    function.send(chunk(b"two") + chunk(b""))
    assert caller.everything() == b"two"


@pytest.mark.parametrize("start", (CHUNKED + chunk(b"half"), ENDLESS + b"half",
                                   b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf"),
                         ids=("chunked", "endless", "counted"))
def test_any_event_timeout__fc_half_answer(start: bytes) -> None:
    """An answer cut off by the time limit does not look like a whole one."""
    with Stage("fc", timeout_s=0.2) as stage:
        caller = stage.call("GET", "/stream")
        function = stage.accept()
        function.request()
        function.send(start)
        assert not caller.everything().endswith(b"0\r\n\r\n")
        assert stage.ends("timeout")


@pytest.mark.parametrize("start", (CHUNKED + chunk(b"half"), ENDLESS + b"half", b""),
                         ids=("chunked", "endless", "no answer"))
@pytest.mark.parametrize("body", (None, b"body", b"x" * MIB),
                         ids=("no body", "body", "1 MiB"))
def test_any_caller_gone__http(stage: Stage, start: bytes, body: bytes) -> None:
    """A caller who leaves before the end is noticed, whatever has been sent so far."""
    caller = stage.call("POST" if body else "GET", "/stream", body)
    function = stage.accept()
    function.request()
    if start:
        function.send(start)
        caller.head()
    caller.close()
    assert until(lambda: stage.platform.counts["cancelled"] == 1, 3)


CHECKED: Dict[str, Any] = {"health_check": {"path": "/health", "period_s": 100}}


def crowd(stage: Stage, count: int) -> Tuple[List[Peer], List[Peer]]:
    """Return so many callers and, in the same order, the function's ends."""
    callers = [stage.call("GET", "/%d" % number) for number in range(count)]
    functions: Dict[str, Peer] = {}
    while len(functions) < count:
        function = stage.accept()
        path = function.request().path
        if path == "/health":
            function.reply()
            path = function.request().path
        functions[path] = function
    return callers, [functions["/%d" % number] for number in range(count)]


@pytest.mark.parametrize("start,end", (
    (CHUNKED + chunk(b"half"), chunk(b"")), (ENDLESS + b"half", b""),
    (b"", CHUNKED + chunk(b"")), (b"", b"")),
    ids=("chunked", "endless", "no answer yet", "no answer"))
@pytest.mark.parametrize("count,settings", ((2, {"concurrency": 2}), (1, CHECKED)),
                         ids=("concurrency", "health check"))
def test_any_outcome_cancel_instance__fc(count: int, settings: Dict[str, Any],
                                         start: bytes, end: bytes) -> None:
    """What a caller left behind keeps its place until it has answered."""
    with Stage("fc", **settings) as stage:
        callers, functions = crowd(stage, count)
        function = functions[0]
        if start:
            function.send(start)
            callers[0].head()
        callers[0].close()
        assert stage.ends("cancelled")
        late = stage.call("GET", "/late")
        assert until(lambda: stage.state()["queued"] == 1) and stage.quiet()
        function.send(end) if end else function.close()
        function = function if end else stage.accept()
        assert function.request().path == "/late"
        late.close()


def test_fc_time_others__caller_gone() -> None:
    """What a caller left behind is bound by the time limit; then the instance ends."""
    with Stage("fc", concurrency=2, timeout_s=0.3) as stage:
        callers, functions = crowd(stage, 1)
        callers[0].close()
        assert stage.ends("cancelled")
        assert functions[0].everything() == b""
        assert until(lambda: not stage.state()["instances"])
        assert stage.platform.counts["timeout"] == 0


@pytest.mark.parametrize("framing,part,passed,leaves", (
    (b"Content-Length: 9", b"half", b"half", True),
    (b"Transfer-Encoding: chunked", b"4\r\nhalf\r\n", b"4\r\nhalf\r\n", True),
    (b"Transfer-Encoding: chunked", b"9\r\nhalf", b"4\r\nhalf\r\n", True),
    (b"Transfer-Encoding: chunked", b"4\r\nhalf\r\nzz\r\n", b"4\r\nhalf\r\n", False)),
    ids=("counted", "between chunks", "within a chunk", "malformed"))
def test_any_outcome_cancel_instance__fc_upload(framing: bytes, part: bytes,
                                                passed: bytes, leaves: bool) -> None:
    """A body that breaks off leaves a handler that can still answer; nobody gets that,
    not even who is still there: he learns what was wrong."""
    with Stage("fc", concurrency=1, **CHECKED) as stage:
        caller = stage.caller(b"POST /up HTTP/1.1\r\n" + framing + b"\r\n\r\n" + part)
        function = stage.accept()
        function.request()
        function.reply()
        function.head()
        if leaves:
            caller.close()
        assert function.everything() == passed
        late = stage.call("GET", "/late")
        assert until(lambda: stage.state()["queued"] == 1) and stage.quiet()
        function.reply()
        assert stage.accept().request().path == "/late"
        assert stage.ends("cancelled")
        if not leaves:
            assert caller.answer("POST").status == 400
        late.close()


def test_any_outcome_one__half_sent() -> None:
    """A connection on which half a request was sent takes no further one."""
    with Stage("fc", concurrency=2) as stage:
        caller = stage.caller(b"POST /up HTTP/1.1\r\nContent-Length: 9\r\n\r\nhalf")
        function = stage.accept()
        function.head()
        caller.close()
        assert function.everything() == b"half" and stage.ends("cancelled")
        function.reply()
        late = stage.call("POST", "/late", b"whole")
        function = stage.accept()
        assert function.request().body == b"whole"
        function.reply(b"got it")
        assert late.answer("POST").body == b"got it"


# ---- bodies ----


def send_soon(peer: Peer, data: bytes) -> None:
    """Send while the test goes on; the other side need not take it."""
    def send() -> None:
        with contextlib.suppress(wire.WireError):
            peer.send(data)

    threading.Thread(target=send, daemon=True).start()


@pytest.mark.parametrize("size", (0, 1, 65536, 65537, 32 * MIB))
@pytest.mark.parametrize("path", ("/up", "/-/invoke"))
def test_any_event_bytes__sizes(stage: Stage, size: int, path: str) -> None:
    """A body of up to 32 MB reaches the function whole."""
    body = b"0123456789abcdef" * (size // 16) + b"z" * (size % 16)
    caller = stage.caller()
    send_soon(caller, b"POST %s HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (
        path.encode(), size) + body)
    function = stage.accept()
    assert function.request().body == body
    function.reply(b"got it")
    assert caller.answer("POST").body == b"got it"


@pytest.mark.parametrize("path", ("/up", "/-/invoke"))
@pytest.mark.parametrize("framing",
                         ("Content-Length: 33554433", "Transfer-Encoding: chunked"),
                         ids=("counted", "chunked"))
def test_any_event_size__one_more(stage: Stage, path: str, framing: str) -> None:
    """One byte more than 32 MB is refused, and no function hears of it in full."""
    over = b"x" * (32 * MIB + 1)
    body = over if framing.endswith("1") else chunk(over) + chunk(b"")
    caller = stage.caller()
    send_soon(caller, b"POST %s HTTP/1.1\r\n%s\r\n\r\n" % (
        path.encode(), framing.encode()) + body)
    if path == "/up" and "chunked" in framing:
        with pytest.raises(wire.WireError):  # it was being passed on already
            stage.accept().request()
    else:
        assert b"InvalidArgument" in caller.answer("POST").body
    assert stage.ends("request-too-large")


@pytest.mark.parametrize("path", ("/up", "/-/invoke"))
def test_any_event_size__answer_arrives(path: str) -> None:
    """A caller that sends its whole body before it reads sees the refusal."""
    with Stage("fc", event_bytes=1000) as stage:
        caller = stage.call("POST", path, b"x" * 8 * MIB)
        assert b"InvalidArgument" in caller.answer("POST").body


@pytest.mark.parametrize("path", ("/up", "/-/invoke"))
def test_any_event_size__rest_is_no_request(path: str) -> None:
    """What is left of a body that passed the limit is not read as a request."""
    with Stage("fc", event_bytes=1000) as stage:
        caller = stage.caller(b"POST %s HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
                              b"fffff\r\n%s" % (path.encode(), b"x" * 1001))
        assert b"InvalidArgument" in caller.answer("POST").body
        with contextlib.suppress(wire.WireError):  # it may have hung up already
            caller.send(wire.request_bytes("GET", "/-/state"))
        assert caller.everything() == b""


@pytest.mark.parametrize("body", (b"zz\r\n", b"2\r\nabc\r\n", b"-1\r\n", b"2 2\r\nab"))
def test_any_http_framing__chunked_caller(stage: Stage, body: bytes) -> None:
    """A caller's malformed body is the caller's fault, not the function's."""
    caller = stage.caller(b"POST /up HTTP/1.1\r\n"
                          b"Transfer-Encoding: chunked\r\n\r\n" + body)
    assert caller.answer("POST").status == 400
    assert stage.platform.counts["bad-response"] == 0


def test_fc_invoke_http__full_duplex(stage: Stage) -> None:
    """The function may answer while the caller still sends."""
    caller = stage.caller(b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    function = stage.accept()
    function.head()
    function.send(CHUNKED)
    caller.head()
    for number in range(20):
        caller.send(chunk(b"%d" % number))
        function.send(chunk(function.chunk()))
        assert caller.chunk() == b"%d" % number
    caller.send(chunk(b""))
    function.send(chunk(function.chunk()))
    assert caller.chunk() == b""


def test_fc_invoke_http__answer_before_the_body(stage: Stage) -> None:
    """A function that answers without reading the body is heard; the next works."""
    caller = stage.caller()
    send_soon(caller, b"POST /up HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (32 * MIB)
              + b"x" * (32 * MIB))
    function = stage.accept()
    function.head()
    function.reply(b"no thanks")
    assert caller.answer("POST").body == b"no thanks"
    assert stage.ends("ok")
    caller = stage.call("GET", "/next")
    function = stage.accept()
    function.request()
    function.reply(b"next")
    assert caller.answer().body == b"next"


def test_any_http_reuse__body_not_wanted(stage: Stage) -> None:
    """A body that comes after its answer is read away; then the next request counts."""
    caller = stage.caller(b"POST /up HTTP/1.1\r\nContent-Length: 8\r\n\r\nhalf")
    function = stage.accept()
    function.head()
    function.reply(b"no thanks")
    assert caller.answer("POST").body == b"no thanks"
    caller.send(b"rest" + wire.request_bytes("GET", "/-/health"))
    assert caller.answer().body == b'{"status":"ok"}'


@pytest.mark.parametrize("late", (False, True), ids=("with the head", "after it"))
def test_any_http_reuse__posts(stage: Stage, late: bool) -> None:
    """A caller's connection outlives any number of requests with a body."""
    stage.serve(lambda request: wire.response(200, body=request.body))
    caller = stage.caller()
    for _ in range(200):
        head = b"POST /up HTTP/1.1\r\nContent-Length: 4\r\n\r\n"
        if late:
            caller.send(head)
        caller.send(b"body" if late else head + b"body")
        assert caller.answer("POST").body == b"body"


def test_any_http_reuse__last_one() -> None:
    """A connection that ends with an answer says so in it."""
    with Stage("fc", event_bytes=10) as stage:
        caller = stage.caller(b"POST /-/invoke HTTP/1.1\r\nExpect: 100-continue\r\n"
                              b"Content-Length: 11\r\n\r\n")
        assert "Connection: close" in caller.head()


def test_any_http_continue__caller(stage: Stage) -> None:
    """A caller that expects 100 gets it before it sends the body, and only then."""
    caller = stage.caller(b"POST /up HTTP/1.1\r\nExpect: 100-continue\r\n"
                          b"Content-Length: 4\r\n\r\n")
    assert caller.head() == ["HTTP/1.1 100 Continue"]
    caller.send(b"body")
    function = stage.accept()
    request = function.request()
    assert request.body == b"body" and request.header("expect") is None
    function.reply(b"done")
    assert caller.answer("POST").status == 200


def test_fc_limits_result__http(stage: Stage) -> None:
    """An HTTP answer has no size limit."""
    caller = stage.call("GET", "/big")
    function = stage.accept()
    function.request()
    send_soon(function, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (33 * MIB)
              + b"x" * (33 * MIB))
    assert len(caller.answer().body) == 33 * MIB


# ---- methods and versions ----


@pytest.mark.parametrize("method,status,announced", (
    ("HEAD", 200, "5"), ("GET", 204, ""), ("GET", 304, "5")))
def test_fc_http_pass__no_body(stage: Stage, method: str, status: int,
                               announced: str) -> None:
    """Answers that have no body leave the connections of both sides in order."""
    caller = stage.call(method, "/x")
    function = stage.accept()
    length = "Content-Length: %s\r\n" % announced if announced else ""
    for body in (b"", b"whole"):
        function.request()
        if body:
            function.reply(body)
        else:
            function.send(("HTTP/1.1 %d X\r\n%s\r\n" % (status, length)).encode())
        assert caller.answer("GET" if body else method).body == body
        caller.send(wire.request_bytes("GET", "/next"))


@pytest.mark.parametrize("method", ("HEAD", "GET"))
def test_fc_http_pass__head_of_a_failure(method: str) -> None:
    """The failure document is not sent as the answer to HEAD."""
    with Stage("fc", timeout_s=0.1) as stage:
        caller = stage.call(method, "/x")
        stage.accept().request()
        assert caller.answer(method).status == 502
        caller.send(wire.request_bytes("GET", "/-/health"))
        assert caller.answer().body == b'{"status":"ok"}'


@pytest.mark.parametrize("method", ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS",
                                    "PURGE"))
def test_fc_invoke_http__method(stage: Stage, method: str) -> None:
    """Every method is passed with its path, its query and its body."""
    caller = stage.call(method, "/a%2Fb/../c?d=%20&d", b"body")
    function = stage.accept()
    request = function.request()
    assert (request.method, request.path) == (method, "/a%2Fb/../c?d=%20&d")
    assert request.body == b"body"
    function.reply(b"", 201)
    assert caller.answer(method).status == 201


@pytest.mark.parametrize("connection,stays", (("", False), ("keep-alive", True)))
def test_any_http_reuse__http_1_0(stage: Stage, connection: str, stays: bool) -> None:
    """A caller of HTTP/1.0 is told the end by the end, unless it asks otherwise."""
    caller = stage.caller(b"GET /-/health HTTP/1.0\r\nConnection: %s\r\n\r\n"
                          % connection.encode())
    assert caller.answer().status == 200
    caller.send(wire.request_bytes("GET", "/-/health", (("Connection", "close"),)))
    assert bool(caller.everything()) == stays


# ---- header fields ----

DROPPED_UP = ("X-Fc-Request-Id: forged", "X-Fc-Account-Id: forged", "x-fc-foo: forged",
              "Connection: close, forged", "Keep-Alive: forged", "Expect: 100-continue")
DROPPED_DOWN = ("X-Fc-Foo: forged", "Connection: forged", "Keep-Alive: forged",
                "Date: forged", "Server: forged", "Upgrade: forged",
                "X-Fc-Request-Id: forged")
PASSED = ("Host: my.example", "Cookie: a=b", "Cookie: c=d", "Authorization: Bearer t",
          "Content-Type: text/x", "X-Empty:", "Accept: */*", "Te: trailers")


@pytest.mark.parametrize("field", DROPPED_UP)
def test_fc_headers_reserved_request(stage: Stage, field: str) -> None:
    """A caller's field that belongs to the platform does not reach the function."""
    caller = stage.caller(("GET / HTTP/1.1\r\n%s\r\n\r\n" % field).encode())
    function = stage.accept()
    head = "\n".join(function.head())
    assert "forged" not in head and field not in head
    function.reply()
    assert caller.answer().status == 200


@pytest.mark.parametrize("field", DROPPED_DOWN)
@pytest.mark.parametrize("status", (200, 404))
def test_fc_headers_reserved_response(stage: Stage, field: str, status: int) -> None:
    """A function's field that belongs to the platform does not reach the caller."""
    caller = stage.call("GET", "/")
    function = stage.accept()
    function.request()
    function.reply(b"body", status, field)
    assert "forged" not in "\n".join(caller.head())
    assert caller.exactly(4) == b"body"


@pytest.mark.parametrize("field", PASSED)
@pytest.mark.parametrize("down", (False, True), ids=("request", "answer"))
def test_fc_http_pass__fields(stage: Stage, field: str, down: bool) -> None:
    """All other fields pass, in number and order, unchanged."""
    fields = [field, "X-Mine: 1", "X-Mine: 2"]
    sent = fields if not down else ["X-None: 0"]
    caller = stage.caller(("GET / HTTP/1.1\r\n%s\r\n\r\n" % "\r\n".join(sent)).encode())
    function = stage.accept()
    head = function.head()
    function.reply(b"", 200, *(fields if down else ()))
    seen = [line.strip() for line in (caller.head() if down else head)]
    assert [line for line in seen if line in fields] == fields


@pytest.mark.parametrize("path", ("/", "/-/invoke"))
def test_fc_headers_caller_id(stage: Stage, path: str) -> None:
    """The function and the caller are told the same request id, once."""
    caller = stage.call("POST", path, b"")
    function = stage.accept()
    sent = function.request().header("x-fc-request-id")
    function.reply(b"", 200, "X-Fc-Request-Id: other")
    lines = [line for line in caller.head()
             if line.lower().startswith("x-fc-request-id")]
    assert lines == ["X-Fc-Request-Id: %s" % sent]


# ---- connections to the function ----


def warm(stage: Stage, count: int = 1) -> List[Peer]:
    """Let the platform have so many connections that were used once."""
    callers = [stage.call("GET", "/warm") for _ in range(count)]
    functions = [stage.accept() for _ in callers]
    for function in functions:
        function.request()
    for function in functions:
        function.reply(b"warm")
    for caller in callers:
        assert caller.answer().body == b"warm"
        caller.close()
    assert until(lambda: stage.platform.counts["ok"] == count)
    return functions


def test_fc_connection_reuse(stage: Stage) -> None:
    """Later requests come over the connection that was kept open."""
    function = warm(stage)[0]
    caller = stage.call("GET", "/again")
    assert function.request().path == "/again"
    function.reply(b"again")
    assert caller.answer().body == b"again" and stage.quiet()


@pytest.mark.parametrize("method", ("GET", "HEAD", "OPTIONS", "TRACE"))
@pytest.mark.parametrize("how", ("close", RESET))
def test_fc_connection_retry(stage: Stage, method: str, how: str) -> None:
    """An idempotent request is sent once more, on a new connection."""
    function = warm(stage)[0]
    caller = stage.call(method, "/again")
    function.request()
    function.reset() if how == RESET else function.close()
    function = stage.accept()
    assert function.request().method == method
    function.reply()
    assert caller.answer(method).status == 200


@pytest.mark.parametrize("method", ("POST", "PUT", "DELETE", "PATCH"))
@pytest.mark.parametrize("how", ("close", RESET))
def test_fc_connection_retry__post(stage: Stage, method: str, how: str) -> None:
    """Another request is not sent again; its caller hears of the broken connection."""
    function = warm(stage)[0]
    caller = stage.call(method, "/again")
    function.request()
    function.reset() if how == RESET else function.close()
    assert caller.answer(method).status == 502
    assert stage.ends("bad-response") and stage.quiet()


def test_fc_connection_retry__only_once() -> None:
    """After one retry, which is on a new connection, the platform gives up."""
    with Stage("fc", concurrency=3) as stage:
        functions = warm(stage, 3)
        caller = stage.call("GET", "/again")
        taken = next_request(functions)
        taken.close()
        second = stage.accept()  # on a new one, though two old ones are left
        assert second.request().path == "/again"
        second.close()
        assert caller.answer().status == 502 and stage.quiet()


def next_request(functions: List[Peer]) -> Peer:
    """Return the connection on which a request comes."""
    ready = select.select([peer.sock for peer in functions], [], [], 10)[0]
    found = next(peer for peer in functions if peer.sock in ready)
    found.request()
    return found


def test_fc_connection_retry__not_after_a_byte(stage: Stage) -> None:
    """A connection that breaks within the answer is no reason to ask again."""
    function = warm(stage)[0]
    caller = stage.call("GET", "/again")
    function.request()
    function.send(b"HTTP/1.1 20")
    assert until(lambda: not unsent(function))
    function.reset()
    assert caller.answer().status == 502 and stage.quiet()


def unsent(peer: Peer) -> int:
    """Return how many bytes the other side has not acknowledged yet."""
    return int(struct.unpack("i", fcntl.ioctl(peer.sock, termios.TIOCOUTQ, b"1234"))[0])


def test_fc_connection_reuse__closed_while_idle(stage: Stage) -> None:
    """A connection that the server closed while idle costs nothing, even for POST."""
    warm(stage)[0].close()
    caller = stage.call("POST", "/again", b"body")
    function = stage.accept()
    assert function.request().body == b"body"
    function.reply(b"again")
    assert caller.answer("POST").body == b"again"


STRAY = (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstray", b"x", b"\r\n")


@pytest.mark.parametrize("stray", STRAY, ids=("answer", "letter", "empty line"))
@pytest.mark.parametrize("late", (False, True), ids=("at once", "while idle"))
def test_fc_invoke_answer__not_the_next_ones(stage: Stage, stray: bytes,
                                             late: bool) -> None:
    """Bytes beyond an answer are not taken for the answer to the next request."""
    caller = stage.event(b"first")
    function = stage.accept()
    function.request()
    function.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
                  + (b"" if late else stray))
    assert outcome_of(caller) == ("ok", b"ok")
    if late:
        function.send(stray)
        assert until(lambda: not unsent(function))
    caller = stage.event(b"second")
    function = stage.accept()  # the old connection is of no use any more
    function.request()
    function.reply(b"second")
    assert outcome_of(caller) == ("ok", b"second")


@pytest.mark.parametrize("count", (1, 2, 20, 200))
def test_fc_concurrency_limit__http(count: int) -> None:
    """So many requests run in one instance at a time; one more waits for its turn."""
    with Stage("fc", concurrency=count) as stage:
        callers = [stage.call("GET", "/x") for _ in range(count)]
        functions = [stage.accept() for _ in callers]
        paths = [function.request().path for function in functions]
        callers.append(stage.call("GET", "/late"))
        assert until(lambda: stage.state()["queued"] == 1) and stage.quiet()
        functions[0].reply(b"1")
        assert functions[0].request().path == "/late" and paths == ["/x"] * count
        for function in functions:
            function.reply(b"1")
        assert [caller.answer().body for caller in callers] == [b"1"] * (count + 1)
        assert stage.platform.counts["cold_starts"] == 1


# ---- upgrade ----


UPGRADE = ("GET", "/chat", None, ("Connection", "Upgrade"), ("Upgrade", "websocket"),
           ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="))
SWITCH = (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
          b"Connection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n")


def upgraded(stage: Stage) -> Tuple[Peer, Peer]:
    """Return caller and function of a connection that was upgraded."""
    caller = stage.call(*UPGRADE)
    function = stage.accept()
    head = function.head()
    assert "Upgrade: websocket" in head and "Connection: Upgrade" in head
    function.send(SWITCH)
    lines = caller.head()
    assert lines[0].split()[1] == "101"
    assert "Upgrade: websocket" in lines and "Connection: Upgrade" in lines
    return caller, function


def test_fc_upgrade_pass(stage: Stage) -> None:
    """After the upgrade bytes pass in both directions as they come."""
    caller, function = upgraded(stage)
    for number in range(10):
        caller.send(b"\x81%c" % number)
        assert function.exactly(2) == b"\x81%c" % number
        function.send(b"\x82%c" % number)
        assert caller.exactly(2) == b"\x82%c" % number
    caller.close()
    assert function.everything() == b"" and stage.ends("ok")


def test_fc_upgrade_pass__ended_by_the_function(stage: Stage) -> None:
    """When the function ends it the caller gets the last bytes and the end."""
    caller, function = upgraded(stage)
    function.send(b"bye")
    function.close()
    assert caller.everything() == b"bye" and stage.ends("ok")


@pytest.mark.parametrize("breaks", ("caller", "function"))
def test_fc_upgrade_pass__broken(stage: Stage, breaks: str) -> None:
    """When one side breaks it off the other one gets the end."""
    caller, function = upgraded(stage)
    broken, other = (caller, function) if breaks == "caller" else (function, caller)
    broken.reset()
    assert other.everything() == b"" and stage.ends("ok")


def test_fc_upgrade_pass__ended_by_time() -> None:
    """The time limit ends it on both sides."""
    with Stage("fc", timeout_s=0.2) as stage:
        caller, function = upgraded(stage)
        assert (caller.everything(), function.everything()) == (b"", b"")
        assert stage.ends("timeout")


def test_fc_upgrade_pass__refused(stage: Stage) -> None:
    """A function that does not upgrade answers as always, without `Upgrade`."""
    caller = stage.call(*UPGRADE)
    function = stage.accept()
    function.request()
    function.reply(b"no", 426, "Upgrade: websocket")
    answer = caller.answer()
    assert (answer.status, answer.body) == (426, b"no")
    assert answer.header("upgrade") is None


def test_accept__too_many_files(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener that can open no more files rests before it tries again."""
    listening = stage.door._socket
    tries: List[float] = []

    def accept() -> Tuple[socket.socket, object]:
        tries.append(time.monotonic())
        if len(tries) < 4:
            raise OSError(errno.EMFILE, "Too many open files")
        return listening.accept()

    monkeypatch.setattr(stage.door, "_socket", types.SimpleNamespace(
        accept=accept, fileno=listening.fileno, close=listening.close))
    assert stage.state()
    assert all(later - earlier > 0.05 for earlier, later in zip(tries[:3], tries[1:]))
