# pulling.py: what a runtime API may do to the bootstrap that polls it (MIT).
"""Tables of events, of ways to send one, and of polls that bring none.

test_bootstrap_any.py, test_bootstrap_scf.py and test_bootstrap_fg.py run over them.
"""

import time
from typing import Callable, Dict, List, Sequence, Tuple

import wire
from kit import Mismatch, PullRun, Result, same

Fields = List[Tuple[str, str]]

# ---- events ----

LARGE_BYTES = 6 * 1024 * 1024

EVENTS: Dict[str, bytes] = {
    "json": b'{"key": "value", "big": 12345678901234567890, "key": 1}',
    "blanks": b' { "a"  :\t1 } \n\n',
    "number": b"1.50",
    "string": '"\u00e9\u4e2d\U0001f600"'.encode(),
    "text": b"no JSON at all: %s 'quoted' \"twice\" \\n $HOME `id` %41 &amp;",
    "empty": b"",
    "at-sign": b"@/etc/hostname",
    "dash": b"-d --data",
    "lines": b"one\r\ntwo\nthree\n\n",
    "http": b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
}
BINARY: Dict[str, bytes] = {
    "nul": b"a\0b\0",
    "not-utf8": b"\xff\xfe\x80 \xc3(",
    "every-byte": bytes(range(256)),
}
LARGE: Dict[str, bytes] = {
    "200-kb": b'{"a": "' + b"y" * 200_000 + b'"}',
    "6-mb": b"z" * LARGE_BYTES,
}

# ---- ways to send an event ----


def cased(headers: Fields, body: bytes, change: Callable[[str], str]) -> List[bytes]:
    """Send every field name in another letter case."""
    head, _, rest = wire.response(200, headers, body).partition(b"\r\n\r\n")
    start, fields = wire.parse_head(head)
    return [wire.head_bytes(start, [(change(name), value) for name, value in fields])
            + rest]


def no_blank(headers: Fields, body: bytes) -> List[bytes]:
    """Send no blank after the colons of the fields, and tabs behind the values."""
    head, _, rest = wire.response(200, headers, body).partition(b"\r\n\r\n")
    return [head.replace(b": ", b":").replace(b"\r\n", b"\t\r\n") + b"\r\n\r\n" + rest]


def decoys(headers: Fields, body: bytes) -> List[bytes]:
    """Name the fields of the event in the values of others."""
    names = ", ".join(name for name, _ in headers)
    return [wire.response(200, [
        ("Access-Control-Expose-Headers", names), ("Vary", names), *headers,
        ("X-Other", headers[0][0] + ": 0")], body)]


INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
FRAMINGS: Dict[str, Callable[[Fields, bytes], List[bytes]]] = {
    "plain": lambda headers, body: [wire.response(200, headers, body)],
    "two-writes": lambda headers, body: [
        wire.response(200, headers, body)[:-len(body)], body],
    "drip": lambda headers, body: [
        bytes([byte]) for byte in wire.response(200, headers, body)],
    "chunked": lambda headers, body: [wire.head_bytes("HTTP/1.1 200 OK", [
        *headers, ("Transfer-Encoding", "chunked")]) + wire.chunked(body)],
    "odd-chunks": lambda headers, body: [wire.head_bytes("HTTP/1.1 200 OK", [
        *headers, ("transfer-encoding", "Chunked")]) + wire.odd_chunks(body)],
    "lower-case": lambda headers, body: cased(headers, body, str.lower),
    "upper-case": lambda headers, body: cased(headers, body, str.upper),
    "no-blank": no_blank, "decoys": decoys,
    "interim": lambda headers, body: [INTERIM, wire.response(200, headers, body)],
    "no-reason": lambda headers, body: [wire.response(200, headers, body, "")],
}


def framed(run: PullRun, framing: str, event: bytes) -> Result:
    """Deliver the event in that way and return the result."""
    pieces = FRAMINGS[framing](run.headers(), event)
    return run.answer(*pieces, pause_s=0.001 if len(pieces) < 1000 else 0.0)


# ---- polls that bring no event ----

NO_EVENT: Dict[str, Sequence[bytes]] = {
    "204": [b"HTTP/1.1 204 No Content\r\n\r\n"],
    "404": [wire.response(404, (), b"{}")],
    "500": [wire.response(500, (), b"broken")],
    "503-html": [wire.response(503, [("Content-Type", "text/html")], b"<html></html>")],
    "redirect": [wire.response(302, [("Location", "/elsewhere")])],
    "202": [b"HTTP/1.1 202 Accepted\r\n{fields}Content-Length: 5\r\n\r\nhello"],
}
WITHOUT_ID: Dict[str, Sequence[bytes]] = {  # fg
    "200": [wire.response(200, (), b"no event")],
    "200-empty": [wire.response(200)],
    "200-empty-id": [wire.response(200, [("X-Cff-Request-Id", "")], b"no event")],
    "204": [b"HTTP/1.1 204 No Content\r\n\r\n"],
    "500-with-id": [wire.response(500, [("X-Cff-Request-Id", "not-an-event")], b"{}")],
    "204-with-id": [b"HTTP/1.1 204 X\r\nX-Cff-Request-Id: not-an-event\r\n\r\n"],
}
CUT: Dict[str, Sequence[bytes]] = {
    "before-head": [],
    "within-status-line": [b"HTTP/1.1 20"],
    "within-head": [b"HTTP/1.1 200 OK\r\nContent-Le"],
    "garbage": [b"\x16\x03\x01 what is this\r\n\r\n"],
}
CUT_BODY: Dict[str, Sequence[bytes]] = {
    "before-body": [b"HTTP/1.1 200 OK\r\n{fields}Content-Length: 10\r\n\r\n"],
    "within-body": [b"HTTP/1.1 200 OK\r\n{fields}Content-Length: 10\r\n\r\n12345"],
    "within-chunk": [b"HTTP/1.1 200 OK\r\n{fields}Transfer-Encoding: chunked\r\n\r\n",
                     b"a\r\n12345"],
    "between-chunks": [b"HTTP/1.1 200 OK\r\n{fields}Transfer-Encoding: chunked\r\n\r\n",
                       b"5\r\n12345\r\n"],
}


def filled_in(run: PullRun, pieces: Sequence[bytes]) -> List[bytes]:
    """Put the fields of an event where `{fields}` stands."""
    fields = "".join(f"{name}: {value}\r\n" for name, value in run.headers()).encode()
    return [piece.replace(b"{fields}", fields) for piece in pieces]


def survives(run: PullRun, pieces: Sequence[bytes]) -> None:
    """Raise Mismatch unless the bootstrap polls again after this answer to a poll."""
    run.poll().send(*filled_in(run, pieces))
    run.alive()


# ---- what is said to a result ----

ACKNOWLEDGEMENTS: Dict[str, Sequence[bytes]] = {
    "202": [wire.response(202)],
    "with-body": [wire.response(200, (), b'{"status": "ok"}')],
    "404": [wire.response(404, (), b'{"error_code": "x", "error_msg": "y"}')],
    "413": [wire.response(413, (), b"too large")],
    "500": [wire.response(500, (), b"broken")],
    "503": [wire.response(503)],
    "chunked": [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                wire.chunked(b"thank you")],
}


def acknowledged_with(run: PullRun, pieces: Sequence[bytes]) -> None:
    """Raise Mismatch unless the bootstrap goes on, with one result for one event."""
    run.answered(b"first").send(*pieces)
    run.alive()


def holds_on(run: PullRun) -> None:
    """Raise Mismatch if a poll that is held for a while is given up."""
    poll = run.poll()
    time.sleep(run.kind.hold_s)
    if not run.api.arrived.empty():
        raise Mismatch(f"patience with a poll that is held for {run.kind.hold_s} s",
                       "another request: " + run.api.arrived.get().request.start)
    try:
        poll.reply(200, run.headers(), b"at last")
    except wire.WireError as error:
        raise Mismatch(f"a poll that is still open after {run.kind.hold_s} s",
                       error.what) from None
    result, exchange = run.result()
    exchange.reply()
    same(b"at last", result.body)
