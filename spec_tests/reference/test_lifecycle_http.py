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
from harness import Peer, Harness, outcome_of, until

MIB = 1048576
RESET = "reset"


@pytest.fixture
def harness() -> Iterator[Harness]:
    """A platform whose fc function is the test."""
    with Harness("fc") as made:
        yield made


def chunk(data: bytes) -> bytes:
    """Return one chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS = b"HTTP/1.1 200 OK\r\n\r\n"  # a body that ends with the connection


# ---- streaming ----


def test_fc_answer_streamed(harness: Harness) -> None:
    """A chunk is at the caller before the function has made the next one."""
    caller = harness.call("GET", "/stream")
    function = harness.accept()
    function.request()
    function.send(CHUNKED + chunk(b"one"))
    caller.head()
    assert caller.chunk() == b"one"
    function.send(chunk(b"two") + chunk(b""))
    assert (caller.chunk(), caller.chunk()) == (b"two", b"")


def test_fc_answer_streamed__counted(harness: Harness) -> None:
    """A body with a length is passed on as it comes as well."""
    caller = harness.call("GET", "/stream")
    function = harness.accept()
    function.request()
    function.send(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\none")
    caller.head()
    assert caller.exactly(3) == b"one"
    function.send(b"two")
    assert caller.exactly(3) == b"two"


def test_fc_answer_streamed__endless(harness: Harness) -> None:
    """A body that ends with the function's connection becomes a chunked one."""
    caller = harness.call("GET", "/stream")
    function = harness.accept()
    function.request()
    function.send(ENDLESS + b"one")
    assert "Transfer-Encoding: chunked" in caller.head()
    assert caller.chunk() == b"one"
    function.close()
    assert caller.chunk() == b""


def test_fc_answer_streamed__http_1_0(harness: Harness) -> None:
    """A caller of HTTP/1.0 gets no chunks, but the bytes and the end."""
    caller = harness.caller(b"GET /stream HTTP/1.0\r\n\r\n")
    function = harness.accept()
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
    with Harness("fc", timeout_s=0.2) as harness:
        caller = harness.call("GET", "/stream")
        function = harness.accept()
        function.request()
        function.send(start)
        assert not caller.everything().endswith(b"0\r\n\r\n")
        assert harness.ends("timeout")


@pytest.mark.parametrize("start", (CHUNKED + chunk(b"half"), ENDLESS + b"half", b""),
                         ids=("chunked", "endless", "no answer"))
@pytest.mark.parametrize("body", (None, b"body", b"x" * MIB),
                         ids=("no body", "body", "1 MiB"))
def test_any_caller_gone__http(harness: Harness, start: bytes, body: bytes) -> None:
    """A caller who leaves before the end is noticed, whatever has been sent so far."""
    caller = harness.call("POST" if body else "GET", "/stream", body)
    function = harness.accept()
    function.request()
    if start:
        function.send(start)
        caller.head()
    caller.close()
    assert until(lambda: harness.platform.counts["cancelled"] == 1, 3)


CHECKED: Dict[str, Any] = {"health_check": {"path": "/health", "period_s": 100}}


def crowd(harness: Harness, count: int) -> Tuple[List[Peer], List[Peer]]:
    """Return so many callers and, in the same order, the function's ends."""
    callers = [harness.call("GET", "/%d" % number) for number in range(count)]
    functions: Dict[str, Peer] = {}
    while len(functions) < count:
        function = harness.accept()
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
    with Harness("fc", **settings) as harness:
        callers, functions = crowd(harness, count)
        function = functions[0]
        if start:
            function.send(start)
            callers[0].head()
        callers[0].close()
        assert harness.ends("cancelled")
        late = harness.call("GET", "/late")
        assert until(lambda: harness.state()["queued"] == 1) and harness.quiet()
        function.send(end) if end else function.close()
        function = function if end else harness.accept()
        assert function.request().path == "/late"
        late.close()


def test_fc_time_others__caller_gone() -> None:
    """What a caller left behind is bound by the time limit; then the instance ends."""
    with Harness("fc", concurrency=2, timeout_s=0.3) as harness:
        callers, functions = crowd(harness, 1)
        callers[0].close()
        assert harness.ends("cancelled")
        assert functions[0].everything() == b""
        assert until(lambda: not harness.state()["instances"])
        assert harness.platform.counts["timeout"] == 0


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
    with Harness("fc", concurrency=1, **CHECKED) as harness:
        caller = harness.caller(b"POST /up HTTP/1.1\r\n" + framing + b"\r\n\r\n" + part)
        function = harness.accept()
        function.request()
        function.reply()
        function.head()
        if leaves:
            caller.close()
        assert function.everything() == passed
        late = harness.call("GET", "/late")
        assert until(lambda: harness.state()["queued"] == 1) and harness.quiet()
        function.reply()
        assert harness.accept().request().path == "/late"
        assert harness.ends("cancelled")
        if not leaves:
            assert caller.answer("POST").status == 400
        late.close()


def test_any_outcome_one__half_sent() -> None:
    """A connection on which half a request was sent takes no further one."""
    with Harness("fc", concurrency=2) as harness:
        caller = harness.caller(b"POST /up HTTP/1.1\r\nContent-Length: 9\r\n\r\nhalf")
        function = harness.accept()
        function.head()
        caller.close()
        assert function.everything() == b"half" and harness.ends("cancelled")
        function.reply()
        late = harness.call("POST", "/late", b"whole")
        function = harness.accept()
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
def test_any_event_bytes__sizes(harness: Harness, size: int, path: str) -> None:
    """A body of up to 32 MB reaches the function whole."""
    body = b"0123456789abcdef" * (size // 16) + b"z" * (size % 16)
    caller = harness.caller()
    send_soon(caller, b"POST %s HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (
        path.encode(), size) + body)
    function = harness.accept()
    assert function.request().body == body
    function.reply(b"got it")
    assert caller.answer("POST").body == b"got it"


@pytest.mark.parametrize("path", ("/up", "/-/invoke"))
@pytest.mark.parametrize("framing",
                         ("Content-Length: 33554433", "Transfer-Encoding: chunked"),
                         ids=("counted", "chunked"))
def test_any_event_size__one_more(harness: Harness, path: str, framing: str) -> None:
    """One byte more than 32 MB is refused, and no function hears of it in full."""
    over = b"x" * (32 * MIB + 1)
    body = over if framing.endswith("1") else chunk(over) + chunk(b"")
    caller = harness.caller()
    send_soon(caller, b"POST %s HTTP/1.1\r\n%s\r\n\r\n" % (
        path.encode(), framing.encode()) + body)
    if path == "/up" and "chunked" in framing:
        with pytest.raises(wire.WireError):  # it was being passed on already
            harness.accept().request()
    else:
        assert b"InvalidArgument" in caller.answer("POST").body
    assert harness.ends("request-too-large")


@pytest.mark.parametrize("path", ("/up", "/-/invoke"))
def test_any_event_size__answer_arrives(path: str) -> None:
    """A caller that sends its whole body before it reads sees the refusal."""
    with Harness("fc", event_bytes=1000) as harness:
        caller = harness.call("POST", path, b"x" * 8 * MIB)
        assert b"InvalidArgument" in caller.answer("POST").body


@pytest.mark.parametrize("path", ("/up", "/-/invoke"))
def test_any_event_size__rest_is_no_request(path: str) -> None:
    """What is left of a body that passed the limit is not read as a request."""
    with Harness("fc", event_bytes=1000) as harness:
        caller = harness.caller(
            b"POST %s HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"fffff\r\n%s" % (path.encode(), b"x" * 1001))
        assert b"InvalidArgument" in caller.answer("POST").body
        with contextlib.suppress(wire.WireError):  # it may have hung up already
            caller.send(wire.request_bytes("GET", "/-/state"))
        assert caller.everything() == b""


@pytest.mark.parametrize("body", (b"zz\r\n", b"2\r\nabc\r\n", b"-1\r\n", b"2 2\r\nab"))
def test_any_http_framing__chunked_caller(harness: Harness, body: bytes) -> None:
    """A caller's malformed body is the caller's fault, not the function's."""
    caller = harness.caller(b"POST /up HTTP/1.1\r\n"
                            b"Transfer-Encoding: chunked\r\n\r\n" + body)
    assert caller.answer("POST").status == 400
    assert harness.platform.counts["bad-response"] == 0


def test_fc_invoke_http__full_duplex(harness: Harness) -> None:
    """The function may answer while the caller still sends."""
    caller = harness.caller(b"POST /echo HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n")
    function = harness.accept()
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


def test_fc_invoke_http__answer_before_the_body(harness: Harness) -> None:
    """A function that answers without reading the body is heard; the next works."""
    caller = harness.caller()
    send_soon(caller, b"POST /up HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (32 * MIB)
              + b"x" * (32 * MIB))
    function = harness.accept()
    function.head()
    function.reply(b"no thanks")
    assert caller.answer("POST").body == b"no thanks"
    assert harness.ends("ok")
    caller = harness.call("GET", "/next")
    function = harness.accept()
    function.request()
    function.reply(b"next")
    assert caller.answer().body == b"next"


def test_any_http_reuse__body_not_wanted(harness: Harness) -> None:
    """A body that comes after its answer is read away; then the next request counts."""
    caller = harness.caller(b"POST /up HTTP/1.1\r\nContent-Length: 8\r\n\r\nhalf")
    function = harness.accept()
    function.head()
    function.reply(b"no thanks")
    assert caller.answer("POST").body == b"no thanks"
    caller.send(b"rest" + wire.request_bytes("GET", "/-/health"))
    assert caller.answer().body == b'{"status":"ok"}'


@pytest.mark.parametrize("late", (False, True), ids=("with the head", "after it"))
def test_any_http_reuse__posts(harness: Harness, late: bool) -> None:
    """A caller's connection outlives any number of requests with a body."""
    harness.serve(lambda request: wire.response(200, body=request.body))
    caller = harness.caller()
    for _ in range(200):
        head = b"POST /up HTTP/1.1\r\nContent-Length: 4\r\n\r\n"
        if late:
            caller.send(head)
        caller.send(b"body" if late else head + b"body")
        assert caller.answer("POST").body == b"body"


def test_any_http_reuse__last_one() -> None:
    """A connection that ends with an answer says so in it."""
    with Harness("fc", event_bytes=10) as harness:
        caller = harness.caller(b"POST /-/invoke HTTP/1.1\r\nExpect: 100-continue\r\n"
                                b"Content-Length: 11\r\n\r\n")
        assert "Connection: close" in caller.head()


def test_any_http_continue__caller(harness: Harness) -> None:
    """A caller that expects 100 gets it before it sends the body, and only then."""
    caller = harness.caller(b"POST /up HTTP/1.1\r\nExpect: 100-continue\r\n"
                            b"Content-Length: 4\r\n\r\n")
    assert caller.head() == ["HTTP/1.1 100 Continue"]
    caller.send(b"body")
    function = harness.accept()
    request = function.request()
    assert request.body == b"body" and request.header("expect") is None
    function.reply(b"done")
    assert caller.answer("POST").status == 200


def test_fc_limits_result__http(harness: Harness) -> None:
    """An HTTP answer has no size limit."""
    caller = harness.call("GET", "/big")
    function = harness.accept()
    function.request()
    send_soon(function, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (33 * MIB)
              + b"x" * (33 * MIB))
    assert len(caller.answer().body) == 33 * MIB


# ---- methods and versions ----


@pytest.mark.parametrize("method,status,announced", (
    ("HEAD", 200, "5"), ("GET", 204, ""), ("GET", 304, "5")))
def test_fc_http_pass__no_body(harness: Harness, method: str, status: int,
                               announced: str) -> None:
    """Answers that have no body leave the connections of both sides in order."""
    caller = harness.call(method, "/x")
    function = harness.accept()
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
    with Harness("fc", timeout_s=0.1) as harness:
        caller = harness.call(method, "/x")
        harness.accept().request()
        assert caller.answer(method).status == 502
        caller.send(wire.request_bytes("GET", "/-/health"))
        assert caller.answer().body == b'{"status":"ok"}'


@pytest.mark.parametrize("method", ("GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS",
                                    "PURGE"))
def test_fc_invoke_http__method(harness: Harness, method: str) -> None:
    """Every method is passed with its path, its query and its body."""
    caller = harness.call(method, "/a%2Fb/../c?d=%20&d", b"body")
    function = harness.accept()
    request = function.request()
    assert (request.method, request.path) == (method, "/a%2Fb/../c?d=%20&d")
    assert request.body == b"body"
    function.reply(b"", 201)
    assert caller.answer(method).status == 201


@pytest.mark.parametrize("connection,stays", (("", False), ("keep-alive", True)))
def test_any_http_reuse__http_1_0(harness: Harness, connection: str, stays: bool) -> None:
    """A caller of HTTP/1.0 is told the end by the end, unless it asks otherwise."""
    caller = harness.caller(b"GET /-/health HTTP/1.0\r\nConnection: %s\r\n\r\n"
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
def test_fc_headers_reserved_request(harness: Harness, field: str) -> None:
    """A caller's field that belongs to the platform does not reach the function."""
    caller = harness.caller(("GET / HTTP/1.1\r\n%s\r\n\r\n" % field).encode())
    function = harness.accept()
    head = "\n".join(function.head())
    assert "forged" not in head and field not in head
    function.reply()
    assert caller.answer().status == 200


@pytest.mark.parametrize("field", DROPPED_DOWN)
@pytest.mark.parametrize("status", (200, 404))
def test_fc_headers_reserved_response(harness: Harness, field: str, status: int) -> None:
    """A function's field that belongs to the platform does not reach the caller."""
    caller = harness.call("GET", "/")
    function = harness.accept()
    function.request()
    function.reply(b"body", status, field)
    assert "forged" not in "\n".join(caller.head())
    assert caller.exactly(4) == b"body"


@pytest.mark.parametrize("field", PASSED)
@pytest.mark.parametrize("down", (False, True), ids=("request", "answer"))
def test_fc_http_pass__fields(harness: Harness, field: str, down: bool) -> None:
    """All other fields pass, in number and order, unchanged."""
    fields = [field, "X-Mine: 1", "X-Mine: 2"]
    sent = fields if not down else ["X-None: 0"]
    request = "GET / HTTP/1.1\r\n%s\r\n\r\n" % "\r\n".join(sent)
    caller = harness.caller(request.encode())
    function = harness.accept()
    head = function.head()
    function.reply(b"", 200, *(fields if down else ()))
    seen = [line.strip() for line in (caller.head() if down else head)]
    assert [line for line in seen if line in fields] == fields


@pytest.mark.parametrize("path", ("/", "/-/invoke"))
def test_fc_headers_caller_id(harness: Harness, path: str) -> None:
    """The function and the caller are told the same request id, once."""
    caller = harness.call("POST", path, b"")
    function = harness.accept()
    sent = function.request().header("x-fc-request-id")
    function.reply(b"", 200, "X-Fc-Request-Id: other")
    lines = [line for line in caller.head()
             if line.lower().startswith("x-fc-request-id")]
    assert lines == ["X-Fc-Request-Id: %s" % sent]


# ---- connections to the function ----


def warm(harness: Harness, count: int = 1) -> List[Peer]:
    """Let the platform have so many connections that were used once."""
    callers = [harness.call("GET", "/warm") for _ in range(count)]
    functions = [harness.accept() for _ in callers]
    for function in functions:
        function.request()
    for function in functions:
        function.reply(b"warm")
    for caller in callers:
        assert caller.answer().body == b"warm"
        caller.close()
    assert until(lambda: harness.platform.counts["ok"] == count)
    return functions


def test_fc_connection_reuse(harness: Harness) -> None:
    """Later requests come over the connection that was kept open."""
    function = warm(harness)[0]
    caller = harness.call("GET", "/again")
    assert function.request().path == "/again"
    function.reply(b"again")
    assert caller.answer().body == b"again" and harness.quiet()


@pytest.mark.parametrize("method", ("GET", "HEAD", "OPTIONS", "TRACE"))
@pytest.mark.parametrize("how", ("close", RESET))
def test_fc_connection_retry(harness: Harness, method: str, how: str) -> None:
    """An idempotent request is sent once more, on a new connection."""
    function = warm(harness)[0]
    caller = harness.call(method, "/again")
    function.request()
    function.reset() if how == RESET else function.close()
    function = harness.accept()
    assert function.request().method == method
    function.reply()
    assert caller.answer(method).status == 200


@pytest.mark.parametrize("method", ("POST", "PUT", "DELETE", "PATCH"))
@pytest.mark.parametrize("how", ("close", RESET))
def test_fc_connection_retry__post(harness: Harness, method: str, how: str) -> None:
    """Another request is not sent again; its caller hears of the broken connection."""
    function = warm(harness)[0]
    caller = harness.call(method, "/again")
    function.request()
    function.reset() if how == RESET else function.close()
    assert caller.answer(method).status == 502
    assert harness.ends("bad-response") and harness.quiet()


def test_fc_connection_retry__only_once() -> None:
    """After one retry, which is on a new connection, the platform gives up."""
    with Harness("fc", concurrency=3) as harness:
        functions = warm(harness, 3)
        caller = harness.call("GET", "/again")
        taken = next_request(functions)
        taken.close()
        second = harness.accept()  # on a new one, though two old ones are left
        assert second.request().path == "/again"
        second.close()
        assert caller.answer().status == 502 and harness.quiet()


def next_request(functions: List[Peer]) -> Peer:
    """Return the connection on which a request comes."""
    ready = select.select([peer.sock for peer in functions], [], [], 10)[0]
    found = next(peer for peer in functions if peer.sock in ready)
    found.request()
    return found


def test_fc_connection_retry__not_after_a_byte(harness: Harness) -> None:
    """A connection that breaks within the answer is no reason to ask again."""
    function = warm(harness)[0]
    caller = harness.call("GET", "/again")
    function.request()
    function.send(b"HTTP/1.1 20")
    assert until(lambda: not unsent(function))
    function.reset()
    assert caller.answer().status == 502 and harness.quiet()


def unsent(peer: Peer) -> int:
    """Return how many bytes the other side has not acknowledged yet."""
    return int(struct.unpack("i", fcntl.ioctl(peer.sock, termios.TIOCOUTQ, b"1234"))[0])


def test_fc_connection_reuse__closed_while_idle(harness: Harness) -> None:
    """A connection that the server closed while idle costs nothing, even for POST."""
    warm(harness)[0].close()
    caller = harness.call("POST", "/again", b"body")
    function = harness.accept()
    assert function.request().body == b"body"
    function.reply(b"again")
    assert caller.answer("POST").body == b"again"


STRAY = (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstray", b"x", b"\r\n")


@pytest.mark.parametrize("stray", STRAY, ids=("answer", "letter", "empty line"))
@pytest.mark.parametrize("late", (False, True), ids=("at once", "while idle"))
def test_fc_invoke_answer__not_the_next_ones(harness: Harness, stray: bytes,
                                             late: bool) -> None:
    """Bytes beyond an answer are not taken for the answer to the next request."""
    caller = harness.event(b"first")
    function = harness.accept()
    function.request()
    function.send(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
                  + (b"" if late else stray))
    assert outcome_of(caller) == ("ok", b"ok")
    if late:
        function.send(stray)
        assert until(lambda: not unsent(function))
    caller = harness.event(b"second")
    function = harness.accept()  # the old connection is of no use any more
    function.request()
    function.reply(b"second")
    assert outcome_of(caller) == ("ok", b"second")


@pytest.mark.parametrize("count", (1, 2, 20, 200))
def test_fc_concurrency_limit__http(count: int) -> None:
    """So many requests run in one instance at a time; one more waits for its turn."""
    with Harness("fc", concurrency=count) as harness:
        callers = [harness.call("GET", "/x") for _ in range(count)]
        functions = [harness.accept() for _ in callers]
        paths = [function.request().path for function in functions]
        callers.append(harness.call("GET", "/late"))
        assert until(lambda: harness.state()["queued"] == 1) and harness.quiet()
        functions[0].reply(b"1")
        assert functions[0].request().path == "/late" and paths == ["/x"] * count
        for function in functions:
            function.reply(b"1")
        assert [caller.answer().body for caller in callers] == [b"1"] * (count + 1)
        assert harness.platform.counts["cold_starts"] == 1


# ---- upgrade ----


UPGRADE = ("GET", "/chat", None, ("Connection", "Upgrade"), ("Upgrade", "websocket"),
           ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="))
SWITCH = (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
          b"Connection: Upgrade\r\nSec-WebSocket-Accept: x\r\n\r\n")


def upgraded(harness: Harness) -> Tuple[Peer, Peer]:
    """Return caller and function of a connection that was upgraded."""
    caller = harness.call(*UPGRADE)
    function = harness.accept()
    head = function.head()
    assert "Upgrade: websocket" in head and "Connection: Upgrade" in head
    function.send(SWITCH)
    lines = caller.head()
    assert lines[0].split()[1] == "101"
    assert "Upgrade: websocket" in lines and "Connection: Upgrade" in lines
    return caller, function


def test_fc_upgrade_pass(harness: Harness) -> None:
    """After the upgrade bytes pass in both directions as they come."""
    caller, function = upgraded(harness)
    for number in range(10):
        caller.send(b"\x81%c" % number)
        assert function.exactly(2) == b"\x81%c" % number
        function.send(b"\x82%c" % number)
        assert caller.exactly(2) == b"\x82%c" % number
    caller.close()
    assert function.everything() == b"" and harness.ends("ok")


def test_fc_upgrade_pass__ended_by_the_function(harness: Harness) -> None:
    """When the function ends it the caller gets the last bytes and the end."""
    caller, function = upgraded(harness)
    function.send(b"bye")
    function.close()
    assert caller.everything() == b"bye" and harness.ends("ok")


@pytest.mark.parametrize("breaks", ("caller", "function"))
def test_fc_upgrade_pass__broken(harness: Harness, breaks: str) -> None:
    """When one side breaks it off the other one gets the end."""
    caller, function = upgraded(harness)
    broken, other = (caller, function) if breaks == "caller" else (function, caller)
    broken.reset()
    assert other.everything() == b"" and harness.ends("ok")


def test_fc_upgrade_pass__ended_by_time() -> None:
    """The time limit ends it on both sides."""
    with Harness("fc", timeout_s=0.2) as harness:
        caller, function = upgraded(harness)
        assert (caller.everything(), function.everything()) == (b"", b"")
        assert harness.ends("timeout")


def test_fc_upgrade_pass__refused(harness: Harness) -> None:
    """A function that does not upgrade answers as always, without `Upgrade`."""
    caller = harness.call(*UPGRADE)
    function = harness.accept()
    function.request()
    function.reply(b"no", 426, "Upgrade: websocket")
    answer = caller.answer()
    assert (answer.status, answer.body) == (426, b"no")
    assert answer.header("upgrade") is None


def test_accept__too_many_files(harness: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener that can open no more files rests before it tries again."""
    listening = harness.door._socket
    tries: List[float] = []

    def accept() -> Tuple[socket.socket, object]:
        tries.append(time.monotonic())
        if len(tries) < 4:
            raise OSError(errno.EMFILE, "Too many open files")
        return listening.accept()

    monkeypatch.setattr(harness.door, "_socket", types.SimpleNamespace(
        accept=accept, fileno=listening.fileno, close=listening.close))
    assert harness.state()
    assert all(later - earlier > 0.05 for earlier, later in zip(tries[:3], tries[1:]))
