# test_http_functions.py: HTTP functions, as caller and function see the platform (MIT).
"""The test is both ends: what one side sends, when the other one gets it, and how."""

import contextlib
import fcntl
import struct
import termios
from typing import Any, Iterator, List, Tuple

import pytest

import wire
from harness import Harness, Peer, background, outcome_of, until

MIB = 1048576
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
ENDLESS = b"HTTP/1.1 200 OK\r\n\r\n"  # a body that ends with the connection
COUNTED = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n"


@pytest.fixture
def harness() -> Iterator[Harness]:
    """A platform whose fc function is the test."""
    with Harness("fc") as made:
        yield made


def chunk(data: bytes) -> bytes:
    """Return one chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def asked(harness: Harness, method: str = "GET", path: str = "/x",
          body: Any = None) -> Tuple[Peer, Peer]:
    """Return a caller and the function that has its request."""
    caller = harness.call(method, path, body)
    function = harness.accept()
    function.request()
    return caller, function


@pytest.mark.parametrize("head,size", ((CHUNKED, 0), (COUNTED, 6), (ENDLESS, -1)),
                         ids=("chunked", "counted", "endless"))
def test_fc_answer_streamed(harness: Harness, head: bytes, size: int) -> None:
    """A part is at the caller before the function has made the next one."""
    caller, function = asked(harness)
    function.send(head + (chunk(b"one") if size == 0 else b"one"))
    assert ("Transfer-Encoding: chunked" in caller.head()) == (size <= 0)
    assert (caller.exactly(3) if size > 0 else caller.chunk()) == b"one"
    function.send(chunk(b"two") + chunk(b"") if size == 0 else b"two")
    assert (caller.exactly(3) if size > 0 else caller.chunk()) == b"two"
    if size < 0:
        function.close()
    assert size > 0 or caller.chunk() == b""


STARTED = pytest.mark.parametrize("start", (CHUNKED + chunk(b"half"), COUNTED + b"half",
                                            b""), ids=("chunked", "counted", "nothing"))


@STARTED
def test_any_event_timeout__fc_half_answer(start: bytes) -> None:
    """An answer cut off by the time limit does not look like a whole one."""
    with Harness("fc", timeout_s=0.2) as harness:
        caller, function = asked(harness)
        function.send(start)
        if start:
            assert not caller.everything().endswith(b"0\r\n\r\n")
        else:
            assert caller.answer().status == 502
        assert harness.ends("timeout")


@STARTED
@pytest.mark.parametrize("body", (None, b"x" * MIB), ids=("no body", "1 MiB"))
def test_any_caller_gone__http(harness: Harness, start: bytes, body: bytes) -> None:
    """A caller who leaves before the end is noticed, whatever has been sent so far."""
    caller, function = asked(harness, "POST" if body else "GET", "/x", body)
    if start:
        function.send(start)
        caller.head()
    caller.close()
    assert until(lambda: harness.platform.counts["cancelled"] == 1, 3)


def test_any_outcome_cancel_instance__fc() -> None:
    """What a caller left behind keeps its place until it has answered."""
    with Harness("fc", concurrency=2) as harness:
        caller, function = asked(harness, "GET", "/first")
        other = asked(harness, "GET", "/other")
        caller.close()
        assert harness.ends("cancelled")
        late = harness.call("GET", "/late")
        assert until(lambda: harness.state()["queued"] == 1) and harness.quiet()
        function.close()
        assert harness.accept().request().path == "/late"
        late.close()
        other[0].close()


MOST_BYTES = 4 * MIB  # more than any buffer has room for


@pytest.mark.parametrize("path", ("/up", "/-/invoke"))
def test_any_event_bytes__most(path: str) -> None:
    """A body of the largest size reaches the function whole."""
    body = b"0123456789abcdef" * (MOST_BYTES // 16)
    with Harness("fc", event_bytes=MOST_BYTES) as harness:
        caller = harness.caller()
        background(caller.send, b"POST %s HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (
            path.encode(), len(body)) + body)
        function = harness.accept()
        assert function.request().body == body
        function.reply(b"got it")
        assert caller.answer("POST").body == b"got it"


@pytest.mark.parametrize("framing",
                         ("Content-Length: 4194305", "Transfer-Encoding: chunked"),
                         ids=("counted", "chunked"))
def test_any_event_size__one_more(framing: str) -> None:
    """One byte more than that is refused; who sends it all first sees the refusal."""
    over = b"x" * (MOST_BYTES + 1)
    body = over if framing.endswith("5") else chunk(over) + chunk(b"")
    with Harness("fc", event_bytes=MOST_BYTES) as harness:
        caller = harness.caller()

        def send() -> None:
            with contextlib.suppress(wire.WireError):  # it need not take all
                caller.send(b"POST /up HTTP/1.1\r\n%s\r\n\r\n" % framing.encode() + body)

        background(send)
        assert b"InvalidArgument" in caller.answer("POST").body
        assert harness.ends("request-too-large") and harness.quiet()


def test_fc_limits_result() -> None:
    """An answer that is longer than the limit of the emulator is too large."""
    with Harness("fc", result_bytes=1000) as harness:
        harness.serve(lambda request: wire.response(200, (), b"x" * 1001))
        assert harness.outcome(b"hello")[0] == "response-too-large"


def warm(harness: Harness, count: int = 1) -> List[Peer]:
    """Let the platform have so many connections that were used once."""
    pairs = [asked(harness, path="/warm") for _ in range(count)]
    for caller, function in pairs:
        function.reply(b"warm")
        assert caller.answer().body == b"warm"
        caller.close()
    assert harness.ends("ok", count)
    return [function for _, function in pairs]


def unsent(peer: Peer) -> int:
    """Return how many bytes the other side has not acknowledged yet."""
    return int(struct.unpack("i", fcntl.ioctl(peer.sock, termios.TIOCOUTQ, b"1234"))[0])


@pytest.mark.parametrize("stray", (
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstray", b"x"),
    ids=("answer", "letter"))
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


def test_fc_concurrency_limit__most() -> None:
    """200 requests run in one instance at a time; one more waits for its turn."""
    count = 200
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


UPGRADE = ("GET", "/chat", None, ("Connection", "Upgrade"), ("Upgrade", "websocket"))
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


@pytest.mark.parametrize("side", (0, 1), ids=("caller", "function"))
@pytest.mark.parametrize("how", ("close", "reset"))
def test_fc_upgrade_pass__ended(harness: Harness, side: int, how: str) -> None:
    """When one side ends it, or breaks it off, the other gets the end."""
    peers = upgraded(harness)
    last = b"bye" if side and how == "close" else b""
    if last:
        peers[side].send(last)
    peers[side].reset() if how == "reset" else peers[side].close()
    assert peers[1 - side].everything() == last
    assert harness.ends("ok")


def test_fc_upgrade_pass__ended_by_time() -> None:
    """The time limit ends it on both sides."""
    with Harness("fc", timeout_s=0.2) as harness:
        caller, function = upgraded(harness)
        assert (caller.everything(), function.everything()) == (b"", b"")
        assert harness.ends("timeout")


@pytest.mark.parametrize("when", ("before", "read"))
@pytest.mark.parametrize("method", ("GET", "POST"))
def test_fc_connection_keep_alive__told(harness: Harness, method: str,
                                        when: str) -> None:
    """Who closes a kept connection while idle hears of it, lost or not; who closes it
    instead of an answer has done something else."""
    function = warm(harness)[0]
    if when == "before":
        function.close()
    caller = harness.call(method, "/again")
    if when != "before":
        assert function.request().path == "/again"
        function.close()
    if when == "before" or method == "GET":
        again = harness.accept()
        assert again.request().method == method
        again.reply()
    assert caller.answer(method).status == (
        200 if when == "before" or method == "GET" else 502)
    told = [one.seen for one in harness.platform.violations
            if one.rule == "fc.connection.keep-alive"]
    assert [("keepAliveTimeout" in one) for one in told] == [True] * (when != "read")


@pytest.mark.parametrize("target,path", (
    ("http://my.example:80/a/b?c=http://d/e", "/a/b"), ("HTTPS://x", "/"),
    ("http://x?c", "/"), ("/http://x/a", "/http://x/a")))
def test_fc_invoke_http__absolute(harness: Harness, target: str, path: str) -> None:
    """A target in absolute form becomes its path, in X-Fc-Base-Path too."""
    caller, function = harness.call("GET", target), harness.accept()
    request = function.request()
    function.reply()
    assert caller.answer().status == 200
    assert request.header("x-fc-base-path") == request.path.partition("?")[0] == path


def test_fc_headers_forwarded(harness: Harness) -> None:
    """The function learns the caller's address and scheme."""
    caller = harness.call("GET", "/x")
    assert {"X-Forwarded-For: 127.0.0.1", "X-Forwarded-Proto: http"} <= set(
        harness.accept().head())
    caller.close()
