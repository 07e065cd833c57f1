# test_bootstrap_fc.py: what SPEC.md chapter 6 asks of a bootstrap (MIT).
"""One rule each, on each implementation for Alibaba FC; the kit is the platform."""

import time
from typing import Dict

import pytest

import wire
from kit import Bootstrap, Mismatch, document, error_of, instruction, same


def test_fc_start_port(bootstrap: Bootstrap) -> None:
    """The server listens on the port that FC_SERVER_PORT names."""
    bootstrap.push().alive()


def test_fc_start_port__custom(bootstrap: Bootstrap) -> None:
    """The server listens on the port that FC_CUSTOM_LISTEN_PORT alone names."""
    bootstrap.push(but="FC_SERVER_PORT").alive()


def test_fc_start_port__first(bootstrap: Bootstrap) -> None:
    """FC_SERVER_PORT comes before FC_CUSTOM_LISTEN_PORT."""
    other = str(wire.free_port())
    bootstrap.push(changed=[("FC_CUSTOM_LISTEN_PORT", other)]).alive()


def test_fc_start_port__bind(bootstrap: Bootstrap) -> None:
    """The server is there at any other address than 127.0.0.1."""
    run = bootstrap.push()
    run.host = "127.0.0.3"
    run.alive()


@pytest.mark.parametrize("how", ["closed", "reset", "held"])
def test_fc_start_silent_connection(bootstrap: Bootstrap, how: str) -> None:
    """Connections on which nothing is sent do no harm."""
    with bootstrap.used_push() as run:
        for _ in range(5):
            channel = run.connect()
            if how != "held":
                channel.close(reset=how == "reset")
        for _ in range(2):  # the harm may come a little later than the first answer
            run.alive()


CUT: Dict[str, bytes] = {
    "half-line": b"POST /inv",
    "half-head": b"POST /invoke HTTP/1.1\r\nHost: x\r\nContent-Le",
    "half-body": b"POST /invoke HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc",
    "garbage": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
}


@pytest.mark.parametrize("piece", sorted(CUT))
def test_fc_start_silent_connection__cut(bootstrap: Bootstrap, piece: str) -> None:
    """Connections that break within a request do no harm."""
    with bootstrap.used_push() as run:
        channel = run.connect()
        channel.send(CUT[piece])
        channel.close(reset=piece == "half-body")
        run.alive()


@pytest.mark.parametrize("path", ["/initialize", "/pre-freeze", "/pre-stop"])
def test_fc_hook_answer(bootstrap: Bootstrap, path: str) -> None:
    """A hook that has nothing to complain of is answered with 200."""
    bootstrap.needs("hooks")
    with bootstrap.used_push() as run:
        method = "POST" if path == "/initialize" else "GET"
        same(200, run.hook(method, path).status, "status")
        run.alive()


def test_fc_invoke_status(bootstrap: Bootstrap) -> None:
    """A result comes with status 200."""
    with bootstrap.used_push() as run:
        answer = run.ask(run.invocation(b"hello"), "POST")
        same((200, b"hello"), (answer.status, answer.body))


def test_fc_invoke_status__fail(bootstrap: Bootstrap) -> None:
    """A failure comes with status 404, X-Fc-Status 404 and the error document."""
    with bootstrap.used_push() as run:
        event = instruction("raise", type="Refused", message="not today")
        answer = run.ask(run.invocation(event), "POST")
        same({"status": 404, "X-Fc-Status": "404"},
             {"status": answer.status, "X-Fc-Status": answer.header("x-fc-status")})
        same(("Refused", "not today"), error_of(run.read_result(answer)))


def test_fc_invoke_success_field(bootstrap: Bootstrap) -> None:
    """A result comes with X-Fc-Status 200."""
    with bootstrap.used_push() as run:
        answer = run.ask(run.invocation(b"hello"), "POST")
        same("200", answer.header("x-fc-status"), "X-Fc-Status")


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD"])
def test_fc_http_bootstrap(bootstrap: Bootstrap, method: str) -> None:
    """A request to another path has an answer, that with a body its echo."""
    bootstrap.needs("http")
    with bootstrap.used_push() as run:
        fields = [*run.headers("/http-invoke"), ("X-Mine", "yes")]
        body = b"body" if method in ("POST", "PUT") else None
        data = wire.request_bytes(method, "/some/path?q=1", fields, body)
        answer = run.ask(data, method)
        if body is not None:
            same(body, answer.body, "the answer's body")
        run.alive()


@pytest.mark.parametrize("method, path", [
    ("POST", "/initialize"), ("GET", "/pre-freeze"), ("GET", "/pre-stop")])
def test_fc_invoke_kind(bootstrap: Bootstrap, method: str, path: str) -> None:
    """What X-Fc-Control-Path calls an HTTP invocation is none of the hooks."""
    with bootstrap.used_push() as run:
        data = wire.request_bytes(method, path, run.headers("/http-invoke"), b"body")
        answer = run.ask(data, method)
        if "http" in bootstrap.implementation.without:
            same("404", answer.header("x-fc-status"), "X-Fc-Status")
        else:
            same(b"body", answer.body, "the answer's body")
        run.alive()


@pytest.mark.parametrize("there", [True, False], ids=("empty", "absent"))
def test_fc_invoke_kind__path(bootstrap: Bootstrap, there: bool) -> None:
    """Where X-Fc-Control-Path says nothing, POST /invoke brings an event."""
    with bootstrap.used_push() as run:
        fields = [(name, value if name != "X-Fc-Control-Path" else "")
                  for name, value in run.headers()
                  if there or name != "X-Fc-Control-Path"]
        event = instruction("raise", type="Refused", message="not today")
        answer = run.ask(wire.request_bytes("POST", "/invoke", fields, event), "POST")
        same("Refused", error_of(run.read_result(answer))[0], "errorType")


def test_fc_concurrency_bootstrap(bootstrap: Bootstrap) -> None:
    """Requests that come together run together."""
    bootstrap.needs("concurrency", "sleep")
    run = bootstrap.push()
    began = time.monotonic()
    channels = [run.connect() for _ in range(8)]
    for channel in channels:
        channel.send(run.invocation(instruction("sleep", seconds=1.0)))
    for channel in channels:
        same(b"slept", channel.read(run.patience_s, to="POST").body)
    took_s = time.monotonic() - began
    if took_s >= 2.0:
        raise Mismatch("8 requests of 1 s, all side by side",
                       f"{took_s:.2f} s, as long as at most four at a time")


def test_fc_connection_keep_alive(bootstrap: Bootstrap) -> None:
    """A connection carries one request after the other, failures too."""
    bootstrap.needs("keep-alive")
    with bootstrap.used_push() as run:
        channel = run.connect()
        failing = instruction("raise", type="T", message="m")
        for event in (b"one", b"", failing, b"four"):
            run.invoke(event, channel)


def test_fc_connection_keep_alive__idle(bootstrap: Bootstrap) -> None:
    """A connection that was idle for a while carries another request."""
    bootstrap.needs("keep-alive")
    with bootstrap.used_push() as run:
        channel = run.connect()
        run.invoke(b"before", channel)
        time.sleep(run.kind.hold_s)
        try:
            result = run.invoke(b"after", channel)
        except Mismatch as error:
            raise Mismatch(f"an answer on a connection that was idle for {run.kind.hold_s}"
                           " s", error.seen) from None
        same(b"after", result.body, "the result after a pause")


def test_fc_connection_keep_alive__slow(bootstrap: Bootstrap) -> None:
    """A request that comes to a halt for a while is not given up."""
    with bootstrap.used_push() as run:
        channel = run.connect()
        whole = run.invocation(b"at last")
        channel.send(whole[:-3])
        time.sleep(run.kind.hold_s)
        try:
            channel.send(whole[-3:])
            answer = channel.read(run.patience_s, to="POST")
        except wire.WireError as error:
            raise Mismatch(f"an answer to a request that took {run.kind.hold_s} s",
                           error.what) from None
        same(b"at last", run.read_result(answer).body, "the echo")


def test_fc_connection_keep_alive__pipelined(bootstrap: Bootstrap) -> None:
    """Requests that are sent ahead are answered in their order."""
    bootstrap.needs("keep-alive")
    with bootstrap.used_push() as run:
        channel = run.connect()
        channel.send(run.invocation(b"one") + run.invocation(b"two"))
        answers = [channel.read(run.patience_s, to="POST").body for _ in range(2)]
        same([b"one", b"two"], answers)


def test_fc_connection_keep_alive__hooks(bootstrap: Bootstrap) -> None:
    """Hooks and events share a connection."""
    bootstrap.needs("keep-alive", "hooks")
    with bootstrap.used_push() as run:
        channel = run.connect()
        hook = wire.request_bytes("GET", "/pre-freeze", run.headers("/pre-freeze"))
        same(200, run.ask(hook, "GET", channel).status)
        same(b"after", run.invoke(b"after", channel).body)


@pytest.mark.parametrize("name", ["X-Fc-Function-Memory", "X-Fc-Function-Timeout",
                                  "X-Fc-Version-Id", "X-Fc-Security-Token"])
def test_fc_headers_tolerant(bootstrap: Bootstrap, name: str) -> None:
    """A field without a value does no harm."""
    with bootstrap.used_push() as run:
        fields = [(one, "" if one == name else value) for one, value in run.headers()]
        event = b"{}" if "context" in run.kind.without else instruction("context")
        data = wire.request_bytes("POST", "/invoke", fields, event)
        same(200, run.ask(data, "POST").status, f"status with an empty {name}")


@pytest.mark.parametrize("pieces", ["two-writes", "drip"])
def test_fc_invoke_status__pieces(bootstrap: Bootstrap, pieces: str) -> None:
    """A request that arrives in pieces is one request."""
    with bootstrap.used_push() as run:
        whole = run.invocation(b"in pieces")
        cuts = [len(whole) - 9] if pieces == "two-writes" else range(1, len(whole))
        channel = run.connect()
        for begin, end in zip([0, *cuts], [*cuts, len(whole)]):
            channel.send(whole[begin:end])
        answer = channel.read(run.patience_s, to="POST")
        same(b"in pieces", run.read_result(answer).body)


def test_fc_invoke_status__expect(bootstrap: Bootstrap) -> None:
    """Expect: 100-continue brings the interim answer, or at once the final one."""
    with bootstrap.used_push() as run:
        channel = run.connect()
        channel.send(wire.request_bytes("POST", "/invoke", [
            *run.headers(), ("Content-Type", "application/octet-stream"),
            ("Expect", "100-continue"), ("Content-Length", "8")]))
        try:
            answer = channel.read(0.5, to="POST")
        except wire.Silence:  # a client sends the body anyway after a moment
            answer = wire.Message("HTTP/1.1 100 X", (), b"")
        channel.send(b"expected")
        while answer.status == 100:
            answer = channel.read(run.patience_s, to="POST")
        same(b"expected", run.read_result(answer).body)


def test_fc_invoke_status__context(bootstrap: Bootstrap) -> None:
    """The handler learns what the common fields say."""
    bootstrap.needs("context")
    with bootstrap.used_push() as run:
        fields = [(name, "1-0000-kit" if name == "X-Fc-Request-Id" else value)
                  for name, value in run.headers()]
        data = wire.request_bytes("POST", "/invoke", [
            *fields, ("Content-Type", "application/octet-stream")], instruction("context"))
        same({"request_id": "1-0000-kit", "memory_mb": 128, "time_limit_ms": 3000,
              "function_name": "kit"}, document(run.ask(data, "POST").body))
