# pulling.py: what a runtime API may do to the bootstrap that polls it (MIT).
"""Tables of events, of ways to send one, and of polls that bring none.

test_bootstrap_any.py, test_bootstrap_scf.py and test_bootstrap_fg.py run over them.
"""

import queue
import time
from typing import Callable, Dict, List, Sequence, Tuple

import wire
from kit import Mismatch, PullRun, Result, instruction, same

__all__ = ["BINARY", "EVENTS", "FRAMINGS", "NO_EVENT", "acknowledged_with",
           "brings_none", "echoed", "framed"]

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


def plain(headers: Fields, body: bytes) -> List[bytes]:
    """Send it as one piece."""
    return [wire.response(200, headers, body, "OK")]


def two_writes(headers: Fields, body: bytes) -> List[bytes]:
    """Send head and body apart."""
    whole = wire.response(200, headers, body, "OK")
    return [whole[:-len(body)], whole[-len(body):]]


def drip(headers: Fields, body: bytes) -> List[bytes]:
    """Send byte after byte."""
    whole = wire.response(200, headers, body, "OK")
    return [whole[i:i + 1] for i in range(len(whole))]


def in_chunks(headers: Fields, body: bytes) -> List[bytes]:
    """Send it with Transfer-Encoding: chunked."""
    fields = [*headers, ("Transfer-Encoding", "chunked")]
    return [wire.head_bytes("HTTP/1.1 200 OK", fields) + wire.chunked(body)]


def odd_chunks(headers: Fields, body: bytes) -> List[bytes]:
    """Send it in chunks with all that they may have: capitals, extensions, a trailer."""
    fields = [*headers, ("transfer-encoding", "Chunked")]
    return [wire.head_bytes("HTTP/1.1 200 OK", fields) + wire.odd_chunks(body)]


def cased(headers: Fields, body: bytes, change: Callable[[str], str]) -> List[bytes]:
    """Send every field name in another letter case."""
    head, _, rest = plain(headers, body)[0].partition(b"\r\n\r\n")
    start, fields = wire.parse_head(head)
    return [wire.head_bytes(start, [(change(name), value) for name, value in fields])
            + rest]


def lower_case(headers: Fields, body: bytes) -> List[bytes]:
    """Send every field name in lower case."""
    return cased(headers, body, str.lower)


def upper_case(headers: Fields, body: bytes) -> List[bytes]:
    """Send every field name in upper case."""
    return cased(headers, body, str.upper)


def no_blank(headers: Fields, body: bytes) -> List[bytes]:
    """Send no blank after the colons of the fields, and tabs behind the values."""
    whole = plain(headers, body)[0]
    head, _, rest = whole.partition(b"\r\n\r\n")
    return [head.replace(b": ", b":").replace(b"\r\n", b"\t\r\n") + b"\r\n\r\n" + rest]


def decoys(headers: Fields, body: bytes) -> List[bytes]:
    """Name the fields of the event in the values of others."""
    names = ", ".join(name for name, _ in headers)
    return plain([("Access-Control-Expose-Headers", names), ("Vary", names), *headers,
                  ("X-Other", headers[0][0] + ": 0")], body)


def interim(headers: Fields, body: bytes) -> List[bytes]:
    """Send interim answers first."""
    return [b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n",
            *plain(headers, body)]


def no_reason(headers: Fields, body: bytes) -> List[bytes]:
    """Send a status line without a reason phrase."""
    return [wire.response(200, headers, body, "")]


FRAMINGS: Dict[str, Tuple[str, Callable[[Fields, bytes], List[bytes]]]] = {
    "plain": ("", plain), "two-writes": ("", two_writes), "drip": ("", drip),
    "chunked": ("chunked", in_chunks), "odd-chunks": ("chunked", odd_chunks),
    "lower-case": ("", lower_case),
    "upper-case": ("", upper_case), "no-blank": ("", no_blank), "decoys": ("", decoys),
    "interim": ("expect", interim), "no-reason": ("", no_reason),
}


def framed(run: PullRun, framing: str, event: bytes) -> Result:
    """Deliver the event in that way and return the result."""
    pieces = FRAMINGS[framing][1](run.headers(), event)
    return run.answer(*pieces, pause_s=0.001 if len(pieces) < 1000 else 0.0)


def echoed(run: PullRun, event: bytes) -> None:
    """Raise Mismatch unless the event comes back as the result, byte for byte."""
    result = run.invoke(event)
    same(("response", event), (result.kind, result.body), "kind and body")


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


def brings_none(run: PullRun, answer: Sequence[bytes]) -> None:
    """Raise Mismatch unless the bootstrap polls again after this and works on."""
    run.poll().send(*filled_in(run, answer))
    run.alive()


def cut_off(run: PullRun, pieces: Sequence[bytes], reset: bool = False) -> None:
    """Raise Mismatch unless a poll that breaks is followed by another one."""
    run.poll().drop(*filled_in(run, pieces), reset=reset)
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
    run.poll().reply(200, run.headers(), b"first")
    _, exchange = run.result()
    exchange.send(*pieces)
    run.alive()


def result_lost(run: PullRun, lost_again: bool) -> None:
    """Raise Mismatch unless the bootstrap goes on when a result finds no platform."""
    run.poll().reply(200, run.headers(), b"first")
    _, exchange = run.result()
    exchange.drop()
    following = run.request("another poll, or the same result once more")
    if following.request.method == "POST":
        if lost_again:
            following.drop()
        else:
            following.reply()
        following = run.request("another poll, as the result may be sent twice at most")
    polls_on(run, following, "the result may be sent again once, and only without an answer")


def polls_on(run: PullRun, exchange: wire.Exchange, why: str) -> None:
    """Raise Mismatch unless this request is a poll, whose event is handled as usual."""
    if exchange.request.method == "POST":
        raise Mismatch(f"another poll: {why}", exchange.request.start)
    same(b"still here", run.hand(exchange, b"still here").body, "an echo afterwards")


# ---- the platform comes and goes ----


PAUSE_S = 0.04  # the rule says 50 ms; clocks are not that exact
AWAY_S = 0.12  # long enough for two tries that find nobody


def goes_away(run: PullRun) -> None:
    """Raise Mismatch unless the bootstrap survives a platform that is away a while."""
    run.poll()
    run.api.leave()
    time.sleep(AWAY_S)
    run.api.open()
    run.alive()


def pauses(run: PullRun, rounds: int) -> None:
    """Raise Mismatch if a poll follows one that brought nothing without a pause.

    Pauses grow, so an event comes after three. A busy machine can look like a pause,
    hence several rounds.
    """
    exchange = run.poll()
    for _ in range(rounds):
        for status in (503, 204, 0):
            replied = time.monotonic()
            if status:
                exchange.reply(status)
            else:
                exchange.drop(b"HTTP/1.1 200 OK\r\nContent-Le")
            exchange = run.poll()
            paused_s = time.monotonic() - replied
            if paused_s < PAUSE_S:
                raise Mismatch("a pause of 50 ms after a poll without an event",
                               f"the next poll {paused_s:.3f} s later")
        run.hand(exchange, b"between")
        exchange = run.poll()


def ends_on_sigterm(run: PullRun, is_away: bool) -> None:
    """Raise Mismatch unless an idle bootstrap ends when SIGTERM comes, also while the
    platform is away."""
    run.poll()
    if is_away:
        run.api.leave()
        time.sleep(AWAY_S)
    run.process.popen.terminate()
    run.process.wait(run.patience_s)  # its status means nothing


def ends_after_result(run: PullRun, pause_s: float) -> None:
    """Raise Mismatch unless a bootstrap that is busy by then gives the result first."""
    order = instruction("sleep", seconds=pause_s + 0.2)
    run.poll().reply(200, run.headers(), order)
    time.sleep(pause_s)
    run.process.popen.terminate()
    result, exchange = run.result()
    exchange.reply()
    same(b"slept", result.body, "the result of the event that ran when SIGTERM came")
    run.process.wait(run.patience_s)


# ---- order ----

EARLY_S = 0.1


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


def waits_for_answer(run: PullRun, event: bytes) -> None:
    """Raise Mismatch if the bootstrap polls before its result has an answer."""
    run.poll().reply(200, run.headers(), event)
    _, exchange = run.result()
    try:
        early = run.api.arrived.get(timeout=EARLY_S)
    except queue.Empty:
        exchange.reply()
        run.alive()
        return
    raise Mismatch("no request before the result is answered", early.request.start)


def delivered_twice(run: PullRun) -> None:
    """Raise Mismatch unless an event that comes twice is answered twice."""
    event = wire.response(200, run.headers(), b"again")
    same([b"again", b"again"], [run.answer(event).body for _ in range(2)])
    run.alive()
