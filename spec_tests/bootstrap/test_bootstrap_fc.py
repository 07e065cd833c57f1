# test_bootstrap_fc.py: what SPEC.md chapter 6 asks of a bootstrap (MIT).
"""One rule each, on each implementation for Alibaba FC; the kit is the platform."""

import contextlib
import fcntl
import socket
import time
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import pytest

import wire
from kit import (Bootstrap, Mismatch, PushRun, Unsupported, describe, document, error_of,
                 instruction, same, waits)

FAILING = instruction("raise", type="Refused", message="not today")
HOOKS = [("POST", "/initialize"), ("GET", "/pre-freeze"), ("GET", "/pre-stop")]

# ---- start ----


def test_fc_start_port(bootstrap: Bootstrap) -> None:
    """The server listens on the port that FC_SERVER_PORT names."""
    bootstrap.push().alive()


def test_fc_start_port__custom(bootstrap: Bootstrap) -> None:
    """The server listens on the port that FC_CUSTOM_LISTEN_PORT alone names."""
    bootstrap.push(but=["FC_SERVER_PORT"]).alive()


def test_fc_start_port__first(bootstrap: Bootstrap) -> None:
    """FC_SERVER_PORT comes before FC_CUSTOM_LISTEN_PORT."""
    other = str(wire.free_port())
    bootstrap.push(changed=[("FC_CUSTOM_LISTEN_PORT", other)]).alive()


PORT_S = 20.0


@contextlib.contextmanager
def port_9000() -> Iterator[None]:
    """Keep the port for one check of this machine. Raises Unsupported if others do."""
    with open(__file__, "rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not any(is_free(9000) for _ in wire.looks(PORT_S)):
            raise Unsupported("port 9000 is taken on this machine")
        yield


def is_free(port: int) -> bool:
    """Tell whether nobody has the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError:
            return False
    return True


@waits
def test_fc_start_port__default(bootstrap: Bootstrap) -> None:
    """Where no variable names a port it is 9000."""
    with port_9000():
        run = bootstrap.push(port=9000, but=["FC_SERVER_PORT", "FC_CUSTOM_LISTEN_PORT"])
        run.alive()
        bootstrap.close()


def test_fc_start_port__bind(bootstrap: Bootstrap) -> None:
    """The server is there at any other address than 127.0.0.1."""
    run = bootstrap.push()
    run.host = "127.0.0.3"
    run.alive()


SILENT = 40  # more than a small pool serves


@pytest.mark.parametrize("how", ["closed", "reset", "held"])
def test_fc_start_silent_connection(bootstrap: Bootstrap, how: str) -> None:
    """Connections on which nothing is sent do no harm."""
    with bootstrap.used_push() as run:
        channels = [run.connect() for _ in range(SILENT)]
        for channel in channels:
            if how != "held":
                channel.close(reset=how == "reset")
        for _ in range(2):  # the harm may come a little later than the first answer
            run.alive()
        for channel in channels:
            channel.close()


# ---- connections ----

HALF = b"POST /invoke HTTP/1.1\r\nHost: x\r\nX-Fc-Control-Path: /invoke\r\n"
CUT = [b"POST /inv", HALF + b"Content-Le", HALF + b"Content-Length: 10\r\n\r\n",
       HALF + b"Content-Length: 10\r\n\r\nabc",
       HALF + b"Transfer-Encoding: chunked\r\n\r\na\r\nabc",
       b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"]


@pytest.mark.parametrize("reset", [False, True], ids=("closed", "reset"))
def test_fc_connection_lost(bootstrap: Bootstrap, reset: bool) -> None:
    """Connections that break within a request do no harm, and bring no event."""
    with bootstrap.used_push() as run:
        with no_event(run):
            for piece in CUT:
                channel = run.connect()
                channel.send(piece)
                channel.close(reset=reset)


@contextlib.contextmanager
def no_event(run: PushRun) -> Iterator[None]:
    """Raise Mismatch if the handler gets an event within."""
    counting = "count" not in run.kind.without
    before = int(run.invoke(instruction("count")).body) if counting else 0
    yield
    if counting:
        same(b"%d" % (before + 1), run.invoke(instruction("count")).body,
             "no event: the count")


@pytest.mark.parametrize("reset", [False, True], ids=("closed", "reset"))
def test_fc_connection_lost__waiting(bootstrap: Bootstrap, reset: bool) -> None:
    """A peer that leaves before its answer takes none with it, and the server ends."""
    bootstrap.needs("sleep")
    run = bootstrap.push()
    for _ in range(3):
        channel = run.connect()
        channel.send(run.invocation(instruction("sleep", seconds=0.2)))
        time.sleep(0.05)
        channel.close(reset=reset)
    run.alive()
    time.sleep(0.2)  # the answers find nobody
    run.alive()
    run.process.terminate()
    run.process.ends_in_grace(run.patience_s)


def test_fc_connection_lost__reading(bootstrap: Bootstrap) -> None:
    """A peer that leaves within a large answer does no harm."""
    bootstrap.needs("large")
    with bootstrap.used_push() as run:
        for reset in (False, True):
            channel = run.connect()
            channel.send(run.invocation(instruction("size", bytes=16 << 20)))
            channel.more(time.monotonic() + run.patience_s)
            channel.close(reset=reset)


COUNTED = 103  # a round number of requests is a usual end of a connection


def test_fc_connection_keep_alive(bootstrap: Bootstrap) -> None:
    """A connection carries one request after the other, failures too."""
    bootstrap.needs("keep-alive")
    with bootstrap.used_push() as run:
        channel = run.connect()
        for number in range(COUNTED):
            event = [b"%d" % number, b"", FAILING][number % 3]
            kind = run.invoke(event, channel).kind
            same("error" if event == FAILING else "response", kind, f"request {number}")


@waits
@pytest.mark.parametrize("after", ["event", "failure", "nothing"])
def test_fc_connection_keep_alive__idle(bootstrap: Bootstrap, after: str) -> None:
    """A connection that was idle for a while carries another request."""
    bootstrap.needs("keep-alive")
    run = bootstrap.push()
    channel = run.connect()
    if after != "nothing":
        run.invoke(FAILING if after == "failure" else b"before", channel)
    time.sleep(run.kind.hold_s)
    try:
        result = run.invoke(b"after", channel)
    except Mismatch as error:
        raise Mismatch(f"an answer on a connection that was idle for {run.kind.hold_s}"
                       " s", error.seen) from None
    same(b"after", result.body, "the result after a pause")


@waits
@pytest.mark.parametrize("place", ["line", "head", "body"])
def test_fc_connection_keep_alive__slow(bootstrap: Bootstrap, place: str) -> None:
    """A request that comes to a halt for a while is not given up."""
    run = bootstrap.push()
    channel = run.connect()
    whole = run.invocation(b"at last")
    cut = {"line": 9, "head": whole.index(b"X-Fc-Region"), "body": len(whole) - 3}[place]
    channel.send(whole[:cut])
    time.sleep(run.kind.hold_s)
    try:
        channel.send(whole[cut:])
        answer = run.final(channel)
    except wire.WireError as error:
        raise Mismatch(f"an answer to a request that took {run.kind.hold_s} s",
                       error.what) from None
    same(b"at last", run.read_result(answer).body, "the echo")


@waits
def test_fc_connection_keep_alive__handler(bootstrap: Bootstrap) -> None:
    """A request whose handler takes its time is not given up."""
    bootstrap.needs("sleep")
    run = bootstrap.push()
    run.patience_s += run.kind.hold_s
    run.limit_ms = 3_600_000
    result = run.invoke(instruction("sleep", seconds=run.kind.hold_s))
    same(("response", b"slept"), (result.kind, result.body), "kind and body")


@waits
def test_fc_connection_keep_alive__reader(bootstrap: Bootstrap) -> None:
    """A large answer may be read slowly."""
    bootstrap.needs("large")
    run = bootstrap.push()
    channel = run.connect()
    channel.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    channel.send(run.invocation(instruction("size", bytes=32 << 20)))
    time.sleep(run.kind.hold_s)
    answer = run.final(channel)
    same((b"x" * (32 << 20),), (answer.body,), "the answer's body")


def test_fc_connection_keep_alive__hooks(bootstrap: Bootstrap) -> None:
    """Hooks and events share a connection."""
    bootstrap.needs("keep-alive", "hooks")
    with bootstrap.used_push() as run:
        channel = run.connect()
        for method, path in HOOKS[:2]:
            body = b"" if method == "POST" else None
            hook = wire.request_bytes(method, path, run.headers(path), body)
            same(200, run.ask(hook, method, channel).status)
            same(b"after", run.invoke(b"after", channel).body)


SLOTS = 200  # the most that a function may configure


def test_fc_concurrency_bootstrap(bootstrap: Bootstrap) -> None:
    """Requests that come together run together, however many they are."""
    bootstrap.needs("concurrency", "sleep")
    run = bootstrap.push()
    done = 0
    for seconds in (1.0, 3.0):  # a busy machine needs a while to begin all of them
        channels = [run.connect() for _ in range(SLOTS)]
        deadline = time.monotonic() + 2 * seconds
        for channel in channels:
            channel.send(run.invocation(instruction("sleep", seconds=seconds)))
        with contextlib.suppress(wire.Silence):
            for done, channel in enumerate(channels):
                answer = run.final(channel, limit_s=deadline - time.monotonic())
                same(b"slept", run.read_result(answer).body)
            return
    raise Mismatch(f"{SLOTS} requests of {seconds} s, all side by side",
                   f"only {done} answers within {2 * seconds} s")


def test_fc_concurrency_bootstrap__apart(bootstrap: Bootstrap) -> None:
    """Requests that run at the same time keep to themselves."""
    bootstrap.needs("concurrency", "sleep")
    with bootstrap.used_push() as run:
        half, slow = run.connect(), run.connect()
        has_context = "context" not in run.kind.without
        event = instruction("context") if has_context else b"of this request"
        data = run.invocation(event)
        half.send(data[:-5])
        slow.send(run.invocation(instruction("sleep", seconds=0.2)))
        for between in (b"another", b"", FAILING):
            kind = run.invoke(between).kind
            same("error" if between == FAILING else "response", kind, "kind of another")
        half.send(data[-5:])
        body = run.read_result(run.final(half)).body
        told = document(body).get("request_id") if has_context else body.decode()
        if told.encode() not in data:
            raise Mismatch("what this request has sent", describe(body))
        same(("response", b"slept"), run.read_result(run.final(slow))[:2])


# ---- answers ----


def test_fc_answer_framing(bootstrap: Bootstrap) -> None:
    """Each answer ends where its head says: there is nothing between two of them."""
    with bootstrap.used_push() as run:
        events = [b"text", b"", "\u00e9\u4e2d".encode(), FAILING, b"y" * 100_000]
        for event in events:
            ends_where_it_says(run, run.invocation(event), "POST")
        if "hooks" not in run.kind.without:
            for method, path in HOOKS[:2]:
                ends_where_it_says(run, wire.request_bytes(
                    method, path, run.headers(path), b""), method)


@pytest.mark.parametrize("body", [None, b"body"])
def test_fc_answer_framing__http(bootstrap: Bootstrap, body: Optional[bytes]) -> None:
    """So do those of HTTP invocations, that to HEAD without a body."""
    with bootstrap.used_push() as run:
        for method in ("HEAD", "GET", "OPTIONS", "DELETE"):
            data = wire.request_bytes(method, "/some", run.headers("/http-invoke"), body)
            ends_where_it_says(run, data, method)


def test_fc_answer_framing__expect(bootstrap: Bootstrap) -> None:
    """Expect: 100-continue brings the interim answer, or at once the final one."""
    with bootstrap.used_push() as run:
        channel = run.connect()
        channel.send(wire.request_bytes("POST", "/invoke", [
            *run.headers(), ("Content-Type", "application/octet-stream"),
            ("Expect", "100-continue"), ("Content-Length", "8")]))
        with contextlib.suppress(wire.Silence):  # a client sends it after a moment
            channel.read(0.5, to="POST")
        channel.send(b"expected")
        same(b"expected", run.read_result(run.final(channel)).body)


def ends_where_it_says(run: PushRun, data: bytes, method: str) -> None:
    """Raise Mismatch if bytes come behind an answer, or if its length is in doubt."""
    channel = run.connect()
    answer = run.ask(data, method, channel)
    lengths = answer.values("content-length")
    if len(lengths) + len(answer.values("transfer-encoding")) > 1:
        raise Mismatch("one length, or chunks", describe(answer.raw_head))
    with contextlib.suppress(wire.Silence, wire.Closed):
        channel.more(time.monotonic() + 0.03)
    if channel.buffer:
        raise Mismatch(f"nothing behind the answer to {method}",
                       describe(bytes(channel.buffer)))
    channel.close()


# ---- hooks ----


@pytest.mark.parametrize("named", [True, False], ids=("named", "by-path"))
def test_fc_hook_answer(bootstrap: Bootstrap, named: bool) -> None:
    """A hook that has nothing to complain of is answered with 200, as often as it comes,
    and is no event."""
    bootstrap.needs("hooks")
    run = bootstrap.push()

    def call(method: str, path: str) -> None:
        but = [] if named else ["X-Fc-Control-Path"]
        body = b"" if method == "POST" and named else None  # no length, no body
        hook = wire.request_bytes(method, path, run.changed(*but, control_path=path), body)
        same(200, run.ask(hook, method).status, f"status of {path}")

    with no_event(run):
        for method, path in 2 * HOOKS[:2]:
            call(method, path)
    call(*HOOKS[2])  # who has answered it may end


# ---- event invocations ----


def test_fc_invoke_status(bootstrap: Bootstrap) -> None:
    """A result comes with status 200."""
    with bootstrap.used_push() as run:
        for event in (b"hello", b"", b"null", b"y" * 70_000):
            answer = run.ask(run.invocation(event), "POST")
            same((200, event), (answer.status, answer.body))


@pytest.mark.parametrize("event", [FAILING, instruction("flumqat")],
                         ids=("raised", "unknown"))
def test_fc_invoke_status__fail(bootstrap: Bootstrap, event: bytes) -> None:
    """A failure comes with status 404, X-Fc-Status 404 and the error document."""
    with bootstrap.used_push() as run:
        answer = run.ask(run.invocation(event), "POST")
        same({"status": 404, "X-Fc-Status": "404"},
             {"status": answer.status, "X-Fc-Status": answer.header("x-fc-status")})
        if event == FAILING:
            same(("Refused", "not today"), error_of(run.read_result(answer)))


def test_fc_invoke_success_field(bootstrap: Bootstrap) -> None:
    """A result comes with X-Fc-Status 200."""
    with bootstrap.used_push() as run:
        for event in (b"hello", b""):
            answer = run.ask(run.invocation(event), "POST")
            same("200", answer.header("x-fc-status"), "X-Fc-Status")


@pytest.mark.parametrize("pieces", ["two-writes", "drip"])
def test_fc_invoke_status__pieces(bootstrap: Bootstrap, pieces: str) -> None:
    """A request that arrives in pieces is one request."""
    with bootstrap.used_push() as run:
        whole = run.invocation(b"in pieces")
        cuts = [len(whole) - 9] if pieces == "two-writes" else range(1, len(whole))
        channel = run.connect()
        for begin, end in zip([0, *cuts], [*cuts, len(whole)]):
            channel.send(whole[begin:end])
        answer = run.final(channel)
        same(b"in pieces", run.read_result(answer).body)


@pytest.mark.parametrize("there", [True, False], ids=("empty", "absent"))
def test_fc_headers_tolerant(bootstrap: Bootstrap, there: bool) -> None:
    """A field without a value does no harm, nor one that is not there."""
    event = instruction("context")
    with bootstrap.used_push() as run:
        for name in ("Function-Memory", "Function-Timeout", "Version-Id", "Security-Token",
                     "Function-Name", "Request-Id"):
            fields = [(one, "" if one == f"X-Fc-{name}" else value)
                      for one, value in run.headers() if there or one != f"X-Fc-{name}"]
            if "context" in run.kind.without:
                event = b"{}"
            answer = run.ask(wire.request_bytes("POST", "/invoke", fields, event), "POST")
            same((200, "response"), (answer.status, run.read_result(answer).kind),
                 f"status and kind without {name}")


# ---- what chapter 5 says, for a server ----

CASES = ["lower", "upper", "swapcase", "blanks"]


@pytest.mark.parametrize("case", CASES)
def test_any_http_header_case__fc(pusher: Bootstrap, case: str) -> None:
    """The fields of a request are found in any letter case, with blanks before."""
    with pusher.used_push() as run:
        fields = [*run.headers(), ("Content-Type", "text/plain")]
        if "context" not in run.kind.without:
            event = instruction("context")
            data = recased(wire.request_bytes("POST", "/invoke", fields, event), case)
            known = document(run.ask(data, "POST").body)
            same((dict(fields)["X-Fc-Request-Id"], 128, 3000, "kit"), tuple(known.get(
                name) for name in ("request_id", "memory_mb", "time_limit_ms",
                                   "function_name")), "the context")
        chunks = wire.request_bytes("POST", "/invoke", [
            *fields, ("Transfer-Encoding", "chunked")])
        answer = run.ask(recased(chunks, case) + wire.chunked(b"heard"), "POST")
        same(b"heard", run.read_result(answer).body)


def test_any_http_header_case__fc_kind(pusher: Bootstrap) -> None:
    """So is the field that tells the kind."""
    pusher.needs("http")
    with pusher.used_push() as run:
        for case in CASES:
            data = wire.request_bytes("POST", "/initialize",
                                      run.headers("/http-invoke"), b"body")
            answer = run.ask(recased(data, case), "POST")
            same(b"body", answer.body, f"{case}: the answer's body")


def recased(data: bytes, case: str) -> bytes:
    """Return the request with its field names in that letter case, or with blanks."""
    head, _, body = data.partition(b"\r\n\r\n")
    start, fields = wire.parse_head(head)
    if case == "blanks":
        return wire.head_bytes(start, [(name, f"\t {value}") for name, value in fields]) \
            + body
    return wire.head_bytes(start, [(getattr(name, case)(), value)
                                   for name, value in fields]) + body


CHUNKS = [
    (b"one\r\n0\r\n\r\ntwo", wire.chunked(b"one\r\n0\r\n\r\ntwo")), (b"", b"0\r\n\r\n"),
    (b"y" * 100_000, wire.chunked(b"y" * 100_000, 100_000)),
    (b"y" * 5_000, wire.chunked(b"y" * 5_000, 1)),
    (b"z" * 0xAB, wire.odd_chunks(b"z" * 0xAB)), (b"abc", b"0003\r\nabc\r\n000\r\n\r\n"),
]


def test_any_http_chunked_event__fc(pusher: Bootstrap) -> None:
    """An event in chunks of any kind comes back whole."""
    with pusher.used_push() as run:
        for number, (event, chunks) in enumerate(CHUNKS):
            coding = ("transfer-encoding", "Chunked") if number % 2 else (
                "Transfer-Encoding", "chunked")
            head = wire.request_bytes("POST", "/invoke", [*run.headers(), coding])
            same(event, run.read_result(run.ask(head + chunks, "POST")).body, "the echo")


@pytest.mark.parametrize("chunk", [1 << 20, 4096])
def test_any_event_large__fc_chunked(pusher: Bootstrap, chunk: int) -> None:
    """A large event passes in large or many chunks."""
    pusher.needs("large")
    event = b"0123456789abcdef" * (4 << 16)
    with pusher.used_push() as run:
        head = wire.request_bytes("POST", "/invoke", [
            *run.headers(), ("Transfer-Encoding", "chunked")])
        answer = run.ask(head + wire.chunked(event, chunk), "POST")
        same(event, run.read_result(answer).body, "the echo")


def test_any_http_head__fc(pusher: Bootstrap) -> None:
    """Fields of 8 KiB in all are read, also in one."""
    with pusher.used_push() as run:
        others = [("X-Token", "t" * 7000), *((f"X-Other-{number}", "o" * 8)
                                             for number in range(45))]
        data = wire.request_bytes("POST", "/invoke", [*others, *run.headers()], b"heard")
        same(b"heard", run.read_result(run.ask(data, "POST")).body)


def test_any_http_head__fc_path(pusher: Bootstrap) -> None:
    """A path of 4 KiB is read, with as many fields as there may be."""
    pusher.needs("http")
    with pusher.used_push() as run:
        others = [(f"X-Other-{number}", "o" * 130) for number in range(45)]
        data = wire.request_bytes("POST", "/some?" + "q" * 4090,
                                  [*others, *run.headers("/http-invoke")], b"heard")
        same(b"heard", run.ask(data, "POST").body)


# ---- kinds, and HTTP invocations ----

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"]


@pytest.mark.parametrize("method", METHODS)
def test_fc_http_bootstrap(bootstrap: Bootstrap, method: str) -> None:
    """A request to another path has an answer, one that has a body as usual its echo."""
    bootstrap.needs("http")
    with bootstrap.used_push() as run:
        body = b"body" if method in ("POST", "PUT", "PATCH") else None
        data = wire.request_bytes(method, "/some/path?q=1", [
            *run.headers("/http-invoke"), ("X-Mine", "yes")], body)
        answer = run.ask(data, method)
        if body:
            same(body, answer.body, "the answer's body")


@pytest.mark.parametrize("method, path", [*HOOKS, ("POST", "/invoke"), ("PUT", "/invoke")])
def test_fc_invoke_kind(bootstrap: Bootstrap, method: str, path: str) -> None:
    """What X-Fc-Control-Path calls an HTTP invocation is no hook."""
    with bootstrap.used_push() as run:
        data = wire.request_bytes(method, path, run.headers("/http-invoke"), b"body")
        answer = run.ask(data, method)
        if "http" in bootstrap.implementation.without:
            same("404", answer.header("x-fc-status"), "X-Fc-Status")
        else:
            same(b"body", answer.body, "the answer's body")


@pytest.mark.parametrize("there", [True, False], ids=("empty", "absent"))
def test_fc_invoke_kind__path(bootstrap: Bootstrap, there: bool) -> None:
    """Where X-Fc-Control-Path says nothing, POST /invoke brings an event."""
    with bootstrap.used_push() as run:
        fields = run.changed(*[] if there else ["X-Fc-Control-Path"], control_path="")
        answer = run.ask(wire.request_bytes("POST", "/invoke", fields, FAILING), "POST")
        same((404, "404"), (answer.status, answer.header("x-fc-status")))
        same("Refused", error_of(run.read_result(answer))[0], "errorType")


def test_fc_invoke_unknown(bootstrap: Bootstrap) -> None:
    """A call whose kind is unknown is answered with 404, and is no event."""
    with bootstrap.used_push() as run, no_event(run):
        for path in ("/pre-thaw", "/invoke/", "INVOKE"):
            data = wire.request_bytes("POST", "/invoke", run.headers(path), b"what is this")
            same(404, run.ask(data, "POST").status, f"status of {path}")


@pytest.mark.parametrize("path", ["/some", "/invoke"])
def test_fc_http_failure(bootstrap: Bootstrap, path: str) -> None:
    """A failed HTTP invocation has X-Fc-Status 404, one that is good has not."""
    bootstrap.needs("http")
    with bootstrap.used_push() as run:
        for event, said in ((FAILING, True), (b"good", False)):
            data = wire.request_bytes("POST", path, run.headers("/http-invoke"), event)
            answer = run.ask(data, "POST")
            same(said, answer.header("x-fc-status") == "404", "X-Fc-Status is 404:")


TARGETS = ["/", "/some/path", "/a?q=1&q=2&empty=&flag", "/a%20b%2Fc%C3%A9?x=%26%3D+%25",
           "/a//b/../c", "/a?", "/a;b=c,d:e@f?x[]=1"]


def test_fc_http_fidelity(bootstrap: Bootstrap) -> None:
    """The handler has method, path and query as they came."""
    bootstrap.needs("http", "fidelity")
    with bootstrap.used_push() as run:
        for target in TARGETS:
            seen = received(run, "POST", target, [])
            same(("POST", target), (seen.get("method"), seen.get("target")), "request")


def received(run: PushRun, method: str, target: str,
             fields: Sequence[Tuple[str, str]]) -> Dict[str, Any]:
    """Return the request as the handler has it."""
    data = wire.request_bytes(method, target, [*run.headers("/http-invoke"), *fields],
                              instruction("request"))
    seen = document(run.ask(data, method).body)
    return seen if isinstance(seen, dict) else {}


def test_fc_http_fidelity__method(bootstrap: Bootstrap) -> None:
    """The handler has the method and the body of any request."""
    bootstrap.needs("http", "fidelity")
    with bootstrap.used_push() as run:
        for method in ("GET", "PUT", "PATCH", "DELETE", "OPTIONS"):
            same(method, received(run, method, "/some", []).get("method"), "method")


@pytest.mark.parametrize("chunks", [False, True], ids=("length", "chunks"))
def test_fc_http_fidelity__body(bootstrap: Bootstrap, chunks: bool) -> None:
    """The handler has every byte of a body, and the caller that of the answer."""
    bootstrap.needs("http", "binary")
    with bootstrap.used_push() as run:
        for body in (bytes(range(256)), b" \r\n", b"y" * 100_000):
            fields = run.headers("/http-invoke")
            coding = [*fields, ("Transfer-Encoding", "chunked")]
            data = wire.request_bytes("POST", "/some", coding) + wire.chunked(body, 999) \
                if chunks else wire.request_bytes("POST", "/some", fields, body)
            same(body, run.ask(data, "POST").body, "the answer's body")


SENT = [("X-Mine", "one"), ("X-Mine", "two, three"), ("x-lower", "a:b; c=\"d\""),
        ("Cookie", "a=1; b=2"), ("Authorization", "Basic eDp5"), ("X-Empty", ""),
        ("Content-Type", "text/x-own; charset=utf-8"), ("Accept", "*/*"),
        ("User-Agent", "kit/1"), ("X-Fc-Client-Ip", "192.0.2.1")]


def test_fc_http_fidelity__fields(bootstrap: Bootstrap) -> None:
    """The handler has every field, those of one name in their order."""
    bootstrap.needs("http", "fidelity")
    with bootstrap.used_push() as run:
        seen = by_name(received(run, "POST", "/some", SENT).get("fields"))
        wanted = by_name(SENT)
        same(wanted, {name: seen.get(name) for name in wanted}, "fields")


def by_name(fields: Any) -> Dict[str, str]:
    """Return the values of each field joined by commas, by lower-case name."""
    found: Dict[str, List[str]] = {}
    try:
        for name, value in fields:
            found.setdefault(name.lower(), []).append(value)
    except (AttributeError, TypeError, ValueError):
        raise Mismatch("a list of pairs, field and value", describe(fields)) from None
    return {name: ", ".join(values) for name, values in found.items()}


ANSWERED = [["Set-Cookie", "a=1; Path=/"], ["Set-Cookie", "b=2"], ["X-Mine", "yes, 1"],
            ["Content-Type", "text/x-own"], ["Location", "/elsewhere"], ["ETag", "'x'"],
            ["Cache-Control", "no-store"]]


@pytest.mark.parametrize("status", [200, 201, 302, 400, 404, 418, 500, 503])
def test_fc_http_fidelity__answer(bootstrap: Bootstrap, status: int) -> None:
    """Status, fields and body are those that the handler has set."""
    bootstrap.needs("http", "fidelity")
    with bootstrap.used_push() as run:
        event = instruction("answer", status=status, fields=ANSWERED, text="T")
        data = wire.request_bytes("POST", "/some", run.headers("/http-invoke"), event)
        answer = run.ask(data, "POST")
        same((status, b"T"), (answer.status, answer.body), "status and body")
        seen = [[name, value] for name, _ in ANSWERED for value in answer.values(name)]
        wanted = [[name, value] for name, _ in ANSWERED
                  for other, value in ANSWERED if other == name]
        same(wanted, seen, "fields")
        same(False, answer.header("x-fc-status") == "404", "X-Fc-Status is 404:")


@pytest.mark.parametrize("status", [204, 304])
def test_fc_answer_framing__empty(bootstrap: Bootstrap, status: int) -> None:
    """Statuses that have no body come without one."""
    bootstrap.needs("http", "fidelity")
    with bootstrap.used_push() as run:
        event = instruction("answer", status=status, fields=[], text="")
        data = wire.request_bytes("POST", "/some", run.headers("/http-invoke"), event)
        ends_where_it_says(run, data, "POST")
