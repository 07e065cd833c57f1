# test_bootstrap_any.py: what SPEC.md chapter 5 asks of every bootstrap (MIT).
"""One rule each. `puller` is an scf or fg bootstrap, `pusher` one for fc, `bootstrap`
any of the three."""

import time

import pytest

import pulling
import wire
from kit import (Bootstrap, Mismatch, PullRun, busy_at_last, document, error_of, instruction,
                 made_up_word, same)


def test_any_error_survive(bootstrap: Bootstrap) -> None:
    """An instruction nobody knows fails, and the next event is handled."""
    made_up_word(bootstrap)


def test_any_error_document(bootstrap: Bootstrap) -> None:
    """A failed handler is reported with its errorType and errorMessage."""
    with bootstrap.used() as run:
        result = run.invoke(instruction("raise", type="Refused", message="not today"))
        same("error", result.kind)
        same(("Refused", "not today"), error_of(result))


@pytest.mark.parametrize("name", sorted({**pulling.EVENTS, **pulling.BINARY}))
def test_any_event_opaque(bootstrap: Bootstrap, name: str) -> None:
    """Any event comes back byte for byte, be it text or not."""
    bootstrap.needs(*["binary"] if name in pulling.BINARY else [])
    event = {**pulling.EVENTS, **pulling.BINARY}[name]
    with bootstrap.used() as run:
        result = run.invoke(event)
        same(("response", event), (result.kind, result.body), "kind and body")


@pytest.mark.parametrize("name", sorted(pulling.LARGE))
def test_any_event_large(puller: Bootstrap, name: str) -> None:
    """Large events and results pass."""
    puller.needs("large")
    with puller.used_pull() as run:
        result = run.invoke(pulling.LARGE[name])
        same(("response", pulling.LARGE[name]), (result.kind, result.body))


def test_any_event_large__result(puller: Bootstrap) -> None:
    """A result of 6 MB for a short event passes."""
    puller.needs("large")
    with puller.used_pull() as run:
        result = run.invoke(instruction("size", bytes=pulling.LARGE_BYTES))
        same(b"x" * pulling.LARGE_BYTES, result.body)


@pytest.mark.parametrize("size_mb", [1, 32])
def test_any_event_large__push(pusher: Bootstrap, size_mb: int) -> None:
    """An event of 32 MB comes back whole."""
    pusher.needs("large")
    event = b"0123456789abcdef" * (size_mb * 65536)
    with pusher.used_push() as run:
        same(event, run.invoke(event).body, "the echo")


HEARD = instruction("echo", text="heard")
FRAMED = [  # rule, how an event is sent, what comes back of it
    *(("any.http.header-case", framing, HEARD, b"heard") for framing in (
        "lower-case", "upper-case", "no-blank", "decoys")),
    *(("any.http.chunked-event", "chunked", event, event) for event in (
        pulling.EVENTS["json"], pulling.EVENTS["lines"], pulling.EVENTS["empty"])),
    ("any.http.chunked-event", "odd-chunks", b"z" * 0xAB, b"z" * 0xAB),
    ("any.http.interim", "interim", b"heard", b"heard"),
    *(("any.poll.retry", framing, HEARD, b"heard") for framing in (
        "plain", "two-writes", "drip", "no-reason"))]


@pytest.mark.parametrize("rule,framing,event,wanted", FRAMED, ids=[
    f"{rule}-{framing}-{number}" for number, (rule, framing, *_) in enumerate(FRAMED)])
def test_any_event_framed(puller: Bootstrap, rule: str, framing: str, event: bytes,
                          wanted: bytes) -> None:
    """An event is one event in whatever form and pieces it arrives."""
    with puller.used_pull() as run:
        result = pulling.framed(run, framing, event)
        same(("response", wanted), (result.kind, result.body))


@pytest.mark.parametrize("case", ["lower", "upper", "swapcase"])
def test_any_http_header_case__push(pusher: Bootstrap, case: str) -> None:
    """The fields of a request are found in any letter case."""
    with pusher.used_push() as run:
        data = run.invocation(instruction("echo", text="heard"))
        head, _, body = data.partition(b"\r\n\r\n")
        start, fields = wire.parse_head(head)
        cased = wire.head_bytes(start, [(getattr(name, case)(), value) for name, value in fields])
        same(b"heard", run.read_result(run.ask(cased + body, "POST")).body)


@pytest.mark.parametrize("name", ["json", "lines", "empty"])
def test_any_http_chunked_event__push(pusher: Bootstrap, name: str) -> None:
    """An event in chunks comes back whole."""
    event = pulling.EVENTS[name]
    with pusher.used_push() as run:
        head = wire.request_bytes("POST", "/invoke", [
            *run.headers(), ("Content-Type", "application/octet-stream"),
            ("Transfer-Encoding", "chunked")])
        answer = run.ask(head + wire.chunked(event), "POST")
        same(event, run.read_result(answer).body, "the echo")


def test_any_http_chunked_event__push_odd(pusher: Bootstrap) -> None:
    """Chunks may have capital letters, extensions and a trailer."""
    with pusher.used_push() as run:
        head = wire.request_bytes("POST", "/invoke", [
            *run.headers(), ("transfer-encoding", "Chunked")])
        answer = run.ask(head + wire.odd_chunks(b"z" * 0xAB), "POST")
        same(b"z" * 0xAB, run.read_result(answer).body, "the echo")


def test_any_http_interim__result(puller: Bootstrap) -> None:
    """Interim answers to a result are skipped, too."""
    with puller.used_pull() as run:
        pulling.acknowledged_with(run, [pulling.INTERIM, wire.response(200)])


@pytest.mark.parametrize("name", sorted(pulling.NO_EVENT))
def test_any_poll_retry(puller: Bootstrap, name: str) -> None:
    """A poll that brings no event is followed by another one, and by no result."""
    with puller.used_pull() as run:
        pulling.survives(run, pulling.NO_EVENT[name])


CUT = {**pulling.CUT, **pulling.CUT_BODY, "reset": []}


@pytest.mark.parametrize("name", sorted(CUT))
def test_any_poll_retry__cut(puller: Bootstrap, name: str) -> None:
    """A poll that breaks is followed by another one, and an answer that breaks off is no
    event."""
    with puller.used_pull() as run:
        run.poll().drop(*pulling.filled_in(run, CUT[name]), reset=name == "reset")
        run.alive()


PAUSE_S = 0.04  # the rule says 50 ms; clocks are not that exact
AWAY_S = 0.12  # long enough for two tries that find nobody


def test_any_poll_pause(puller: Bootstrap) -> None:
    """Polls that bring no event are at least 50 ms apart."""
    run = puller.pull()
    exchange = run.poll()
    for status in 4 * (503, 204, 0, 200):  # pauses grow; a busy machine is like one
        replied = time.monotonic()
        if status == 200:
            run.hand(exchange, b"between")
        elif status:
            exchange.reply(status)
        else:
            exchange.drop(b"HTTP/1.1 200 OK\r\nContent-Le")
        exchange = run.poll()
        paused_s = time.monotonic() - replied
        if status != 200 and paused_s < PAUSE_S:
            raise Mismatch("a pause of 50 ms after a poll without an event",
                           f"the next poll {paused_s:.3f} s later")


def test_any_poll_pause__gone(puller: Bootstrap) -> None:
    """A platform that goes away and comes back is polled again."""
    run = puller.pull()
    run.poll()
    run.api.leave()
    time.sleep(AWAY_S)
    run.api.open()
    run.alive()


@pytest.mark.parametrize("name", sorted(pulling.ACKNOWLEDGEMENTS))
def test_any_result_once__no_repeat(puller: Bootstrap, name: str) -> None:
    """Whatever is answered to a result, it is not sent again."""
    with puller.used_pull() as run:
        pulling.acknowledged_with(run, pulling.ACKNOWLEDGEMENTS[name])


def test_any_result_once__no_repeat_cut(puller: Bootstrap) -> None:
    """A result whose answer breaks off is not sent again."""
    with puller.used_pull() as run:
        run.answered(b"first").drop(b"HTTP/1.1 200 OK\r\nContent-Le")
        polls_on(run, run.request("another poll"), "bytes of an answer had come")


def polls_on(run: PullRun, exchange: wire.Exchange, why: str) -> None:
    """Raise Mismatch unless this request is a poll, whose event is handled as usual."""
    if exchange.request.method == "POST":
        raise Mismatch(f"another poll: {why}", exchange.request.start)
    same(b"still here", run.hand(exchange, b"still here").body, "an echo afterwards")


@pytest.mark.parametrize("lost_again", [False, True], ids=("once", "twice"))
def test_any_result_once__lost(puller: Bootstrap, lost_again: bool) -> None:
    """A result that finds no platform is sent again once or not; the bootstrap goes on."""
    with puller.used_pull() as run:
        run.answered(b"first").drop()
        following = run.request("another poll, or the same result once more")
        if following.request.method == "POST":
            (following.drop if lost_again else following.reply)()
            following = run.request("another poll, as two results are the most")
        polls_on(run, following, "a result may be repeated once, without an answer")


@pytest.mark.parametrize("word", ["echo", "raise"])
def test_any_result_once__one(puller: Bootstrap, word: str) -> None:
    """One event brings one result, and then the next poll."""
    with puller.used_pull() as run:
        run.invoke(instruction(word, text="a", type="T", message="m"))
        run.alive()


def test_any_result_once__duplicate(puller: Bootstrap) -> None:
    """An event that a platform delivers twice brings a result each time."""
    with puller.used_pull() as run:
        event = wire.response(200, run.headers(), b"again")
        same([b"again", b"again"], [run.answer(event).body for _ in range(2)])
        run.alive()


def test_any_instance_init_once(bootstrap: Bootstrap) -> None:
    """One process handles one event after the other."""
    bootstrap.needs("count")
    is_push = bootstrap.implementation.protocol == "fc"
    run = bootstrap.push() if is_push else bootstrap.pull()
    counts = [run.invoke(instruction("count")).body for _ in range(3)]
    same([b"1", b"2", b"3"], counts, "the counts")


@pytest.mark.parametrize("when", ["new", "used", "platform-away"])
def test_any_stop_bootstrap(puller: Bootstrap, when: str) -> None:
    """An idle bootstrap ends when SIGTERM comes."""
    run = puller.pull()
    if when == "used":
        run.invoke(b"before")
    run.poll()
    if when == "platform-away":
        run.api.leave()
        time.sleep(AWAY_S)
    run.process.popen.terminate()
    run.process.wait(run.patience_s)  # its status means nothing


def test_any_stop_bootstrap__busy(puller: Bootstrap) -> None:
    """A bootstrap that runs an event gives its result after SIGTERM, and ends."""
    puller.needs("sleep")
    def attempt(pause_s: float) -> None:
        run = puller.pull()
        order = instruction("sleep", seconds=pause_s + 0.2)
        run.poll().reply(200, run.headers(), order)
        time.sleep(pause_s)
        run.process.popen.terminate()
        result, exchange = run.result()
        exchange.reply()
        same(b"slept", result.body, "the result of the event that ran at SIGTERM")
        run.process.wait(run.patience_s)

    busy_at_last(attempt)


def test_any_stop_bootstrap__push(pusher: Bootstrap) -> None:
    """An idle server ends when SIGTERM comes, also with a connection kept open."""
    run = pusher.push()
    run.invoke(b"before", run.connect())
    run.process.popen.terminate()
    run.process.wait(run.patience_s)


@pytest.mark.parametrize("events", [1, 2])
def test_any_stop_bootstrap__push_busy(pusher: Bootstrap, events: int) -> None:
    """A server that runs events gives its answers after SIGTERM, and ends."""
    pusher.needs("sleep", *["concurrency"] if events > 1 else [])

    def attempt(pause_s: float) -> None:
        run = pusher.push()
        channels = [run.connect() for _ in range(events)]
        for number, channel in enumerate(channels, 1):
            order = instruction("sleep", seconds=pause_s + 0.2 * number)
            channel.send(run.invocation(order))
        time.sleep(pause_s)
        run.process.popen.terminate()
        for channel in channels:
            same(b"slept", channel.read(run.patience_s, to="POST").body,
                 "the answer to an event that ran at SIGTERM")
        run.process.wait(run.patience_s)

    busy_at_last(attempt)


def test_any_log_quiet(puller: Bootstrap) -> None:
    """What the runtime API answers to a result is not printed."""
    run = puller.pull()
    run.answered(b"first").reply(200, (), b"thank-you-for-this")
    run.alive()
    if b"thank-you-for-this" in run.process.printed():
        raise Mismatch("silence about the answer's body", "it was printed")


def test_any_result_once__context(puller: Bootstrap) -> None:
    """The handler learns the event's request id, memory and time limit."""
    puller.needs("context")
    with puller.used_pull() as run:
        told = document(run.invoke(instruction("context")).body)
        same(run.last_id, told.get("request_id"), "request_id")
        same((128, 3000), (told.get("memory_mb"), told.get("time_limit_ms")))
