# pulling.py: what a runtime API may do to the bootstrap that polls it (MIT).
"""Tables of events, of ways to send one, of polls that bring none, and of answers.

The checks of spec_tests/bootstrap run over them.
"""

import time
from typing import Callable, Dict, List, Sequence, Tuple

import wire
from kit import Mismatch, PullRun, Result, Run, document, instruction, same

Fields = List[Tuple[str, str]]

# ---- events: each group is handed over in a row ----

LARGE_BYTES = 6 * 1024 * 1024

EVENTS: Dict[str, List[bytes]] = {
    "json": [b'{"key": "value", "big": 12345678901234567890, "key": 1.50}', b"NaN",
             '["\u00e9\u4e2d\U0001f600", [ ], "\\u00e9\\ud83d\\ude00\\/\\ud800"]'.encode(),
             b"null", b"false", b'""', b"{}"],
    "blanks": [b"", b" ", b"\n", b"\r\n", b"\t", b" x", b"x ", b"x\n", b"x\r\n\n",
               b' { "a"  :\t1 } \n\n', b"one\r\ntwo\nthree\rfour"],
    "text": [b"no JSON at all: %s %n 'quoted' \"twice\" \\n \\\\ $HOME $(exit 1) `exit 1`"
             b" * ? [a-z] ~ {a,b}", b"%41+%20&amp;a=1&b=2", b"@/etc/hostname", b"-d --data",
             b"aGVsbG8=", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc",
             b"5\r\nhello\r\n0\r\n\r\n"],
    "unicode": ["\ufeff{}".encode(), "\ufefftext".encode(), "e\u0301 \ufb01 \u2126".encode(),
                "\u2028\u2029\u0085 \u0130\u0131\u00df \U0010ffff".encode()],
    "almost-orders": [b'{"do": "exit","status":1}', b' {"do":"exit","status":1}',
                      b'{"do"', b'{"DO":"exit"}', b'{"to":"exit","status":1}'],
    "sizes": [b"y" * 65535, b"y" * 65536, b"y" * 65537, b"line\n" * 20_000],
}
BINARY: Dict[str, List[bytes]] = {
    "nul": [b"a\0b\0", b"\0", b'{"a":"\0"}', bytes(range(256))],
    "not-utf8": [b"\xff\xfea\0", b"\x80 \xc3( \xed\xa0\x80", b"\xe4\xb8"],
}
LARGE: Dict[str, bytes] = {
    "200-kb": b'{"a": "' + b"y" * 200_000 + b'"}',
    "6-mb": b"z" * LARGE_BYTES,
}
TEXTS = ("", " ", " x", "x ", "null", "0", "[1]", "%41+%20", "@x", "-", "&amp;'$x",
         "\u00e9\u4e2d\U0001f600", "e\u0301", "\ufefftext", "a" * 70_000)


def comes_back(run: Run, event: bytes) -> None:
    """Raise Mismatch unless the event is the result."""
    result = run.invoke(event)
    same(("response", event), (result.kind, result.body), "kind and body")


# ---- ways to send an event ----


def cased(headers: Fields, body: bytes, change: Callable[[str], str]) -> List[bytes]:
    """Send every field name in another letter case."""
    head, _, rest = wire.response(200, headers, body).partition(b"\r\n\r\n")
    start, fields = wire.parse_head(head)
    return [wire.head_bytes(start, [(change(name), value) for name, value in fields])
            + rest]


def blanks(headers: Fields, body: bytes, before: bytes) -> List[bytes]:
    """Send other blanks before the values of the fields. (Blanks behind them, which many
    HTTP clients leave there, no platform sends.)"""
    head, _, rest = wire.response(200, headers, body).partition(b"\r\n\r\n")
    return [head.replace(b": ", b":" + before) + b"\r\n\r\n" + rest]


def decoys(headers: Fields, body: bytes) -> List[bytes]:
    """Name the fields of the event in the values of others."""
    names = ", ".join(name for name, _ in headers)
    return [wire.response(200, [
        ("Access-Control-Expose-Headers", names), ("Vary", names), *headers,
        ("X-Other", headers[0][0] + ": 0"), ("X-Empty", ""),
        ("X-Name", "z\u00fcrich".encode().decode("latin-1"))], body)]


def long_head(headers: Fields, body: bytes) -> List[bytes]:
    """Send 12 KiB and 64 fields, one field of 8 KiB, before those of the event."""
    others = [("X-Token", "t" * 8185), *(
        (f"X-Other-{number}", "o" * 40) for number in range(50))]
    return [wire.response(200, [*others, *headers], body)]


def in_chunks(headers: Fields, chunks: bytes) -> List[bytes]:
    """Send these chunks as the body."""
    return [wire.head_bytes("HTTP/1.1 200 OK", [
        *headers, ("Transfer-Encoding", "chunked")]), chunks]


INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"
Framing = Callable[[Fields, bytes], List[bytes]]
PLAIN: Dict[str, Framing] = {
    "plain": lambda headers, body: [wire.response(200, headers, body)],
    "two-writes": lambda headers, body: [
        wire.response(200, headers, body)[:-len(body)], body],
    "drip": lambda headers, body: [
        bytes([byte]) for byte in wire.response(200, headers, body)],
    "no-reason": lambda headers, body: [wire.response(200, headers, body, "")],
}
NAMED: Dict[str, Framing] = {
    "lower-case": lambda headers, body: cased(headers, body, str.lower),
    "upper-case": lambda headers, body: cased(headers, body, str.upper),
    "swapped-case": lambda headers, body: cased(headers, body, str.swapcase),
    "no-blank": lambda headers, body: blanks(headers, body, b""),
    "many-blanks": lambda headers, body: blanks(headers, body, b"  \t "),
    "decoys": decoys,
}
TRICKY, LARGE_CHUNK = b"one\r\n0\r\n\r\ntwo\n", b"y" * 100_000
CHUNKED: List[Tuple[Framing, List[bytes]]] = [
    (lambda headers, body: [b"".join(in_chunks(headers, wire.chunked(body)))],
     [TRICKY, b"", LARGE_CHUNK]),
    (lambda headers, body: [b"".join(cased(headers, b"", str.lower)).replace(
        b"content-length: 0", b"transfer-encoding: Chunked") + wire.odd_chunks(body)],
     [b"z" * 0xAB, TRICKY]),
    (lambda headers, body: in_chunks(headers, wire.chunked(body, len(body) or 1)),
     [TRICKY, b"", LARGE_CHUNK]),
    (lambda headers, body: in_chunks(headers, b"000%x\r\n%b\r\n00\r\n\r\n" % (
        len(body), body)), [b"z" * 0xAB, TRICKY]),
    (lambda headers, body: [*in_chunks(headers, b""), *(  # byte by byte
        bytes([byte]) for byte in wire.chunked(body, 1))], [TRICKY, b""]),
]
CLOSING: Dict[str, Framing] = {
    "close": lambda headers, body: [
        wire.response(200, [*headers, ("Connection", "close")], body)],
    "other-case": lambda headers, body: [
        wire.response(200, [*headers, ("connection", "Close")], body)],
    "among-others": lambda headers, body: [
        wire.response(200, [*headers, ("Connection", "x-other, close")], body)],
    "http-1.0": lambda headers, body: [
        b"HTTP/1.0" + wire.response(200, headers, body)[8:]],
    "chunked": lambda headers, body: in_chunks(
        [*headers, ("Connection", "close")], wire.chunked(body)),
}


def framed(run: PullRun, framing: Framing, event: bytes) -> Result:
    """Deliver the event in that way and return the result."""
    pieces = framing(run.headers(), event)
    return run.answer(*pieces, pause_s=0.001 if len(pieces) < 1000 else 0.0)


def fields_reach(run: PullRun, framing: Framing) -> None:
    """Raise Mismatch unless the event and its fields are found in that form."""
    if "context" not in run.kind.without:
        told = document(framed(run, framing, instruction("context")).body)
        same((run.last_id, 128, 3000), tuple(told.get(name) for name in (
            "request_id", "memory_mb", "time_limit_ms")), "the context")
    same(b"heard", framed(run, framing, instruction("echo", text="heard")).body)


# ---- polls that bring no event ----

REDIRECTS = (301, 302, 303, 307, 308)


def with_fields(*statuses: int) -> List[bytes]:
    """Return what has all that an event has, but its status."""
    return [b"HTTP/1.1 %d X\r\n{fields}Content-Length: 5\r\n\r\nhello" % status
            for status in statuses]


NO_EVENT: Dict[str, List[bytes]] = {
    "success": [b"HTTP/1.1 204 No Content\r\n\r\n", *with_fields(201, 202, 206, 299)],
    "elsewhere": [wire.response(302, [("Location", "/elsewhere")]),
                  b"HTTP/1.1 304 Not Modified\r\n\r\n", wire.response(300, (), b"which?")],
    "refused": with_fields(400, 401, 403, 404, 408, 410, 413, 429),
    "broken": [wire.response(500, (), b"broken"),
               wire.response(503, [("Content-Type", "text/html")], b"<html></html>"),
               *with_fields(500, 502, 504)],
}
WITHOUT_ID = [  # fg
    wire.response(200, (), b"no event"), wire.response(200),
    wire.response(200, [("X-Cff-Request-Id", "")], b"no event"),
    b"HTTP/1.1 200 X\r\nX-Cff-Request-Id: \t \r\nContent-Length: 1\r\n\r\nx",
    b"HTTP/1.1 204 No Content\r\n\r\n",
    wire.response(500, [("X-Cff-Request-Id", "not-an-event")], b"{}"),
    b"HTTP/1.1 204 X\r\nX-Cff-Request-Id: not-an-event\r\n\r\n",
]
CUT_HEAD: List[List[bytes]] = [
    [], [b"HTTP/1.1 20"], [b"HTTP/1.1 200 OK\r\nContent-Le"],
    [b"HTTP/1.1 200 OK\r\n{fields}"], [INTERIM], [b"\x16\x03\x01 what is this\r\n\r\n"],
]
WITH_CHUNKS = b"HTTP/1.1 200 OK\r\n{fields}Transfer-Encoding: chunked\r\n\r\n"
CUT_BODY: List[List[bytes]] = [
    [b"HTTP/1.1 200 OK\r\n{fields}Content-Length: 10\r\n\r\n"],
    [b"HTTP/1.1 200 OK\r\n{fields}Content-Length: 10\r\n\r\n12345"],
    [WITH_CHUNKS], [WITH_CHUNKS, b"a\r\n12345"], [WITH_CHUNKS, b"5\r\n12345\r\n"],
]


def filled_in(run: PullRun, pieces: Sequence[bytes]) -> List[bytes]:
    """Put the fields of an event where `{fields}` stands."""
    fields = "".join(f"{name}: {value}\r\n" for name, value in run.headers()).encode()
    return [piece.replace(b"{fields}", fields) for piece in pieces]


def survives(run: PullRun, answers: Sequence[bytes]) -> None:
    """Answer one poll after the other so; the bootstrap polls again, as whoever lends it
    sees."""
    for number, answer in enumerate(answers, 1):
        run.poll().send(*filled_in(run, [answer]))
        if number % 3 == 0:
            run.alive()  # else its pauses grow


def redirect(run: PullRun, status: int, path: str = "/elsewhere") -> bytes:
    """Return a redirect to another path of the runtime API."""
    place = f"http://{run.api.host}:{run.api.port}{path}"
    return wire.response(status, [("Location", place)])


# ---- what is said to a result ----

ACKNOWLEDGEMENTS: Dict[str, List[Sequence[bytes]]] = {
    "success": [[wire.response(202, (), b"thank you")], [b"HTTP/1.1 204 No Content\r\n\r\n"],
                [wire.response(200, (), b"t" * 300_000)]],
    "elsewhere": [[wire.response(status, [("Location", "/elsewhere")])]
                  for status in (302, 307)],
    **{name: [[wire.response(status, (), b'{"error_code": "x", "error_msg": "y"}')]
              for status in statuses]
       for name, statuses in (("refused", (400, 401, 404, 408, 413, 429)),
                              ("broken", (500, 502, 503, 504)))},
    "pieces": [[b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
                wire.chunked(b"thank you")], [wire.response(503)],
               [bytes([byte]) for byte in wire.response(200, (), b"thank you")]],
}
# An answer has begun, so the result has arrived.
CUT_ANSWERS = [
    b"HTTP/1.1 20", b"HTTP/1.1 200 OK\r\nContent-Le",
    b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345",
    b"HTTP/1.1 100 Continue\r\n\r\n", b"what is this\r\n\r\n",
    b"HTTP/1.1 500 Broken\r\nContent-Length: 10\r\n\r\n",
]


def acknowledged_with(run: PullRun, pieces: Sequence[bytes]) -> None:
    """Answer a result in that way; the bootstrap goes on, with one result for one event."""
    run.answered(b"first").send(*pieces)


def polls_on(run: PullRun, exchange: wire.Exchange, why: str) -> None:
    """Raise Mismatch unless this request is a poll, whose event is handled as usual."""
    if exchange.request.method == "POST":
        raise Mismatch(f"another poll: {why}", exchange.request.start)
    same(b"still here", run.hand(exchange, b"still here").body, "an echo afterwards")


# ---- patience ----


def holds_on(run: PullRun, begun: bool = False) -> None:
    """Raise Mismatch if a poll is given up that is held for a while, or whose answer
    has begun and comes to a halt."""
    poll = run.poll()
    why = f"while a poll is held for {run.kind.hold_s} s"
    answer = wire.response(200, run.headers(), b"at last")
    first = len(answer) - 4 if begun else 0
    poll.channel.send(answer[:first])
    run.quiet(run.kind.hold_s, why)
    try:
        poll.send(answer[first:])
    except wire.WireError as error:
        raise Mismatch(f"a poll that is still open {why}", error.what) from None
    same(b"at last", run.acknowledged().body)


def pauses(run: PullRun, drops: int) -> List[float]:
    """Return how long the bootstrap waits after polls that fail, so many of them: of two
    pauses in a row the longer, as HTTP clients repeat a GET."""
    found = []
    exchange = run.poll()
    for _ in range(drops):
        exchange.drop(b"HTTP/1.1 20")  # else a client may try again at once
        dropped = time.monotonic()
        exchange = run.poll()
        found.append(time.monotonic() - dropped)
    run.hand(exchange, b"an event")
    return [max(pair) for pair in zip(found, found[1:])]
