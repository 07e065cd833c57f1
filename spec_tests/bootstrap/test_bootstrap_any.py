# test_bootstrap_any.py: what SPEC.md chapter 5 asks of every bootstrap (MIT).
"""One rule each. `puller` is an scf or fg bootstrap, `pusher` one for fc, `bootstrap`
any of the three. What is lent has to handle an ordinary event afterwards."""

import functools
import operator
import re
import signal
import statistics
import time
from typing import Any, Dict, List, Tuple

import pytest

import pulling
import wire
from kit import (Bootstrap, Mismatch, Result, busy_at_last, document, error_of, instruction,
                 same, waits)

FAILING = instruction("raise", type="Refused", message="not today")

# ---- errors ----


def test_any_error_survive(bootstrap: Bootstrap) -> None:
    """An instruction nobody knows fails, and so does a handler, seven times in a row."""
    with bootstrap.used() as run:
        for event in (instruction("flumqat"), *7 * [FAILING]):
            same("error", run.invoke(event).kind, "kind")


@pytest.mark.parametrize("type_,message", [
    ("Refused", "not today"), ("a.b.C", ""), ("T", "\u00e9\u4e2d & <b> 'x' %s $HOME {}"),
    ("T", "long " * 2000)], ids=("plain", "empty", "marks", "long"))
def test_any_error_document(bootstrap: Bootstrap, type_: str, message: str) -> None:
    """A failed handler is reported with its errorType and errorMessage."""
    with bootstrap.used() as run:
        event = f'{{"do":"raise","type":"{type_}","message":"{message}"}}'
        result = run.invoke(event.encode())
        same("error", result.kind)
        same((type_, message), error_of(result))


def test_any_error_document__unknown(bootstrap: Bootstrap) -> None:
    """An instruction nobody knows fails with the type Unsupported."""
    with bootstrap.used() as run:
        same("Unsupported", error_of(run.invoke(instruction("flumqat")))[0], "errorType")


# ---- events and results ----


def echoes(events: List[bytes], bootstrap: Bootstrap) -> List[Tuple[bytes, Result]]:
    """Return what comes back for each event."""
    with bootstrap.used() as run:
        return [(event, run.invoke(event)) for event in events]


ECHOES = {name: functools.partial(echoes, events)  # seen once, for two rules
          for name, events in {**pulling.EVENTS, **pulling.BINARY}.items()}


@pytest.mark.parametrize("name", sorted({**pulling.EVENTS, **pulling.BINARY}))
def test_any_event_opaque(bootstrap: Bootstrap, name: str) -> None:
    """Any event comes back byte for byte, be it text or not."""
    bootstrap.needs(*["binary"] if name in pulling.BINARY else [])
    for event, result in bootstrap.once(ECHOES[name]):
        same(("response", event), (result.kind, result.body), "kind and body")


def test_any_result_opaque(bootstrap: Bootstrap) -> None:
    """What the handler makes comes as it is, whatever it looks like."""
    with bootstrap.used() as run:
        for text in pulling.TEXTS:
            result = run.invoke(f'{{"do":"echo","text":"{text}"}}'.encode())
            same(("response", text.encode()), (result.kind, result.body), "result")


@pytest.mark.parametrize("name", ["blanks", "sizes", "unicode", *pulling.BINARY])
def test_any_result_opaque__echo(bootstrap: Bootstrap, name: str) -> None:
    """Line ends, bytes that are no text and large results come as they are."""
    bootstrap.needs(*["binary"] if name in pulling.BINARY else [])
    for event, result in bootstrap.once(ECHOES[name]):
        same(event, result.body, "result")


@pytest.mark.parametrize("name", sorted(pulling.LARGE))
def test_any_event_large(puller: Bootstrap, name: str) -> None:
    """Large events and results pass."""
    puller.needs("large")
    with puller.used_pull() as run:
        pulling.comes_back(run, pulling.LARGE[name])


@pytest.mark.parametrize("chunk", [1 << 20, 4096])
def test_any_event_large__chunked(puller: Bootstrap, chunk: int) -> None:
    """A large event passes in large or many chunks."""
    puller.needs("large")
    event = b"0123456789abcdef" * (pulling.LARGE_BYTES // 32)
    with puller.used_pull() as run:
        result = pulling.framed(run, lambda headers, body: pulling.in_chunks(
            headers, wire.chunked(body, chunk)), event)
        same(event, result.body, "the echo")


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


# ---- context, environment, log ----


def told(run: Any) -> Dict[str, Any]:
    """Return what the handler knows as its context."""
    known: Dict[str, Any] = document(run.invoke(instruction("context")).body)
    return known


def test_any_context_handler(puller: Bootstrap) -> None:
    """The handler learns each event's own request id, memory and time limit."""
    puller.needs("context")
    with puller.used_pull() as run:
        for _ in range(3):
            known = told(run)
            same((run.last_id, 128, 3000, "kit"), tuple(known.get(name) for name in (
                "request_id", "memory_mb", "time_limit_ms", "function_name")), "context")


def test_any_context_handler__scf(puller: Bootstrap) -> None:
    """Memory and time limit are those that come with this event."""
    puller.needs("context")
    with puller.used_pull() as run:
        for memory_mb, limit_ms in ((3072, 900000), (64, 1000), (128, 3500)):
            fields = [("Request_Id", "of-this-1"), ("Time_Limit_In_Ms", str(limit_ms)),
                      ("Memory_Limit_In_Mb", str(memory_mb))]
            known = document(run.answer(wire.response(
                200, fields, instruction("context"))).body)
            same(("of-this-1", memory_mb, limit_ms), tuple(known.get(name) for name in (
                "request_id", "memory_mb", "time_limit_ms")), "context")


OTHERS = {"scf": [("SCF_FUNCTIONNAME", "other-name")],
          "fg": [("RUNTIME_FUNC_NAME", "other-name"), ("RUNTIME_MEMORY", "4096"),
                 ("RUNTIME_TIMEOUT", "900")]}


def test_any_context_handler__variables(puller: Bootstrap) -> None:
    """What the context has from variables is what they say."""
    puller.needs("context")
    protocol = puller.implementation.protocol
    known = told(puller.pull(changed=OTHERS[protocol]))
    same("other-name", known.get("function_name"), "function_name")
    if protocol == "fg":
        same((4096, 900000), (known.get("memory_mb"), known.get("time_limit_ms")), "limits")


def test_any_context_handler__push(pusher: Bootstrap) -> None:
    """The handler learns what the common fields of each request say."""
    pusher.needs("context")
    with pusher.used_push() as run:
        for number, memory_mb, limit_s in ((1, 3072, 86400), (2, 128, 1)):
            fields = run.changed(
                X_Fc_Request_Id=f"1-00-kit{number}", X_Fc_Function_Name="other",
                X_Fc_Function_Memory=str(memory_mb), X_Fc_Function_Timeout=str(limit_s))
            data = wire.request_bytes("POST", "/invoke", fields, instruction("context"))
            same({"request_id": f"1-00-kit{number}", "memory_mb": memory_mb,
                  "time_limit_ms": 1000 * limit_s, "function_name": "other"},
                 document(run.ask(data, "POST").body), "context")


def test_any_env_handler(bootstrap: Bootstrap) -> None:
    """The handler sees the variables of the function, and the platform's."""
    bootstrap.needs("env")
    values = [("MINE", "a b=c 'd' %41"), ("mine", "lower"), ("EMPTY", ""), ("TWO", "a\nb")]
    run = bootstrap.start(changed=values)
    of_platform = [(name, value) for name, value in run.env.items()
                   if re.match("_HANDLER|SCF_|RUNTIME_|FC_", name)]
    for name, value in [*values, *of_platform, ("NONE_SUCH", "")]:
        same(value.encode(), run.invoke(instruction("env", name=name)).body, name)


def test_any_log_handler(bootstrap: Bootstrap) -> None:
    """What the handler prints is written out before its result is there, once."""
    run = bootstrap.start()
    for text in ("printed by the handler", "long " * 20_000, "and a last line"):
        result = run.invoke(f'{{"do":"print","text":"{text}"}}'.encode())
        same(("response", b"printed"), (result.kind, result.body))
        same(1, run.process.printed().count(f"{text}\n".encode()), f"{text[:30]!r} in the log")


def test_any_log_quiet(puller: Bootstrap) -> None:
    """What the runtime API answers to a result is not printed."""
    with puller.used_pull() as run:
        for status in (200, 404, 413, 500):
            run.answered(b"first").reply(status, (), b"thank-you-for-this")
        run.alive()
        if b"thank-you-for-this" in run.process.printed():
            raise Mismatch("silence about the answer's body", "it was printed")


# ---- HTTP ----


def test_any_http_header_case(puller: Bootstrap) -> None:
    """Fields are found by their names in any letter case, and end where they end."""
    with puller.used_pull() as run:
        for framing in pulling.NAMED.values():
            pulling.fields_reach(run, framing)


def test_any_http_head(puller: Bootstrap) -> None:
    """A head of 12 KiB is read."""
    with puller.used_pull() as run:
        pulling.fields_reach(run, pulling.long_head)


def test_any_http_chunked_event(puller: Bootstrap) -> None:
    """An event in chunks of any kind comes back whole."""
    with puller.used_pull() as run:
        for framing, events in pulling.CHUNKED:
            for event in events:
                result = pulling.framed(run, framing, event)
                same(("response", event), (result.kind, result.body))


@pytest.mark.parametrize("pause_s", [0.0, 0.1], ids=("together", "before"))
def test_any_http_interim(puller: Bootstrap, pause_s: float) -> None:
    """Interim answers to a poll are skipped, long before the final one, too."""
    with puller.used_pull() as run:
        event = wire.response(200, run.headers(), b"heard")
        same(b"heard", run.answer(pulling.INTERIM, event, pause_s=pause_s).body)


def test_any_http_interim__result(puller: Bootstrap) -> None:
    """Interim answers to a result are skipped, too."""
    with puller.used_pull() as run:
        pulling.acknowledged_with(run, [pulling.INTERIM, wire.response(200)])


def test_any_http_close(puller: Bootstrap) -> None:
    """An event whose connection is closed behind it, as announced, is an event."""
    with puller.used_pull() as run:
        for number, framing in enumerate(pulling.CLOSING.values()):
            event = FAILING if number % 2 else b"closed"
            run.poll().drop(*framing(run.headers(), event))
            same("error" if event == FAILING else "response", run.acknowledged().kind)


def test_any_http_close__result(puller: Bootstrap) -> None:
    """A connection that is closed behind the answer to a result is no harm."""
    with puller.used_pull() as run:
        for framing in pulling.CLOSING.values():
            run.answered(b"first").drop(*framing([], b""))


def test_any_http_close__unannounced(puller: Bootstrap) -> None:
    """A connection that is closed without a word while the handler runs, or behind the
    answer to a result, loses nothing."""
    puller.needs("sleep")
    with puller.used_pull() as run:
        order = instruction("sleep", seconds=0.3)
        run.poll().drop(wire.response(200, run.headers(), order))
        result, exchange = run.result()
        same(b"slept", result.body)
        exchange.drop(wire.response(200))
        pulling.polls_on(run, run.request("another poll"), "the result was answered")


def test_any_http_close__between(puller: Bootstrap) -> None:
    """A connection that breaks behind a poll without an event is followed by a poll."""
    with puller.used_pull() as run:
        for reset in (False, True):
            run.poll().drop(wire.response(503), reset=reset)


def test_any_http_redirect(puller: Bootstrap) -> None:
    """No redirect is followed, of a poll or of a result."""
    with puller.used_pull() as run:
        for status in pulling.REDIRECTS:
            pulling.survives(run, [pulling.redirect(run, status)])
            pulling.acknowledged_with(run, [pulling.redirect(run, status)])


# ---- calls ----


def test_any_api_address(puller: Bootstrap) -> None:
    """The variables tell where the runtime API is; what is meant for proxies does not."""
    names = ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "https_proxy")
    proxies = [(name, "http://127.0.0.1:9") for name in names]
    run = puller.pull(changed=[*proxies, ("REQUEST_METHOD", "")])
    run.first_call()
    run.alive()


def test_any_api_calls(puller: Bootstrap) -> None:
    """There are no other calls than ready, polls and results, from start to end."""
    run = puller.pull()
    run.first_call()
    for event in (b"one", FAILING, b"two"):
        run.invoke(event)
    run.poll()
    run.process.terminate()
    run.process.ends_in_grace(run.patience_s)
    if not run.api.arrived.empty():
        raise Mismatch("no call at the end", run.api.arrived.get().request.start)


# ---- polls ----


def test_any_poll_retry__framed(puller: Bootstrap) -> None:
    """An event is one event in whatever pieces it arrives."""
    with puller.used_pull() as run:
        for framing in pulling.PLAIN.values():
            pulling.fields_reach(run, framing)


@pytest.mark.parametrize("name", sorted(pulling.NO_EVENT))
def test_any_poll_retry(puller: Bootstrap, name: str) -> None:
    """A poll that brings no event is followed by another one, and by no result."""
    with puller.used_pull() as run:
        pulling.survives(run, pulling.NO_EVENT[name])


@pytest.mark.parametrize("cuts", [pulling.CUT_HEAD, pulling.CUT_BODY], ids=("head", "body"))
@pytest.mark.parametrize("reset", [False, True], ids=("closed", "reset"))
def test_any_poll_retry__cut(puller: Bootstrap, cuts: List[List[bytes]],
                             reset: bool) -> None:
    """A poll that breaks is followed by another one, and an answer that breaks off is no
    event."""
    with puller.used_pull() as run:
        for number, pieces in enumerate(cuts):
            run.poll().drop(*pulling.filled_in(run, pieces), reset=reset)
            if number % 2:
                run.alive()  # else the pauses grow


MANY = 10  # more tries than anybody is content with


@waits
@pytest.mark.parametrize("how", ["refused", "dropped"])
def test_any_poll_retry__long(puller: Bootstrap, how: str) -> None:
    """Polls that bring no event again and again are no reason to give up."""
    run = puller.pull()
    for _ in range(MANY):
        exchange = run.poll()
        exchange.reply(503) if how == "refused" else exchange.drop()
    run.alive()


AWAY_S = 4.0  # five tries and more, however their pauses grow up to 2 s
BUSY = 0.12  # part of one processor that nobody needs to wait
RESTLESS = 0.8  # part of the time in which nobody needs to have or want one
WAKES_A_S = 100  # nor needs anybody who pauses so many; on a busy machine, too
SOON_S = 0.03


@waits
def test_any_poll_retry__away(puller: Bootstrap) -> None:
    """A platform that is away for a while is polled again when it is back."""
    run = puller.pull()
    run.invoke(b"before")
    run.poll()
    run.api.leave()
    run.quiet(AWAY_S, "while there is no platform")
    run.api.open()
    run.alive()


@waits
def test_any_poll_pause__away(puller: Bootstrap) -> None:
    """While the platform is away a bootstrap waits: it is not busy, nor there at any
    moment when the platform comes back."""
    run = puller.pull()
    run.invoke(b"before")
    run.poll()
    late_s = []
    for away_s in (2.0, 0.3, 0.2):
        before = run.process.efforts()
        run.api.leave()
        run.quiet(away_s, "while there is no platform")
        used_s, wanted_s, wakes = map(operator.sub, run.process.efforts(), before)
        if away_s > 1 and (used_s > BUSY * away_s or wanted_s > RESTLESS * away_s
                           or wakes > WAKES_A_S * away_s):
            raise Mismatch("pauses between polls while the platform is away",
                           f"{used_s:.2f} s of processor time, {wanted_s:.2f} s with the "
                           f"waits for it, {wakes} other waits")
        back = time.monotonic()
        run.api.open()
        run.poll()
        late_s.append(time.monotonic() - back)
    if max(late_s) < SOON_S:
        raise Mismatch("pauses between polls while the platform is away",
                       f"a poll {max(late_s):.3f} s after it is back, three times")


PAUSE_S = 0.04  # the rule says 50 ms; clocks are not that exact
LONGEST_S = 3.0  # 2 s, and what a busy machine adds


@waits
def test_any_poll_pause(puller: Bootstrap) -> None:
    """Polls that bring no event are 50 ms to 2 s apart."""
    run = puller.pull()
    exchange = run.poll()
    bare = ("no id",) if puller.implementation.protocol == "fg" else ("404",)
    shortest: Dict[str, float] = {}  # a busy machine adds
    for kind in 3 * (*bare, "503", "204", "event", "redirect", "event"):
        replied = time.monotonic()
        if kind == "event":
            run.hand(exchange, b"between")
        else:
            exchange.send({
                "no id": wire.response(200, (), b"no event"), "404": wire.response(404),
                "503": wire.response(503), "204": b"HTTP/1.1 204 X\r\n\r\n",
                "redirect": pulling.redirect(run, 307, run.dialect.poll)}[kind])
        exchange = run.poll()
        paused_s = time.monotonic() - replied
        shortest[kind] = min(shortest.get(kind, paused_s), paused_s)
    del shortest["event"]
    if not all(PAUSE_S <= one <= LONGEST_S for one in shortest.values()):
        told = ", ".join(f"{one:.3f} s after {kind}" for kind, one in shortest.items())
        raise Mismatch("pauses of 50 ms to 2 s after polls without an event", told)


@waits
def test_any_poll_pause__grows(puller: Bootstrap) -> None:
    """Pauses grow while connections fail, and begin anew after an event. One in two may
    be none, as HTTP clients repeat a GET."""
    run = puller.pull()
    grown = pulling.pauses(run, 7)
    if not do_grow(grown):  # a busy machine adds, and hardly twice at the same place
        grown = list(map(min, grown, pulling.pauses(run, 7)))
    told = ", ".join(f"{one:.3f} s" for one in grown)
    if not do_grow(grown):
        raise Mismatch("pauses that grow from 50 ms on, up to 2 s", told)
    anew = min(pulling.pauses(run, 2)[0] for _ in range(3))
    if anew > 0.8 * grown[-1]:
        raise Mismatch("the first pause again after an event", f"{told}; then {anew:.3f} s")


def do_grow(pauses: List[float]) -> bool:
    """Tell whether pauses begin with 50 ms, grow, and end with 2 s at most."""
    first, last = (statistics.median(part) for part in (pauses[:3], pauses[3:]))
    return min(pauses) >= PAUSE_S and last >= min(1.3 * first, 1.8) \
        and max(pauses) <= LONGEST_S


# ---- results ----


@pytest.mark.parametrize("name", sorted(pulling.ACKNOWLEDGEMENTS))
def test_any_result_once__no_repeat(puller: Bootstrap, name: str) -> None:
    """Whatever is answered to a result, it is not sent again."""
    with puller.used_pull() as run:
        for pieces in pulling.ACKNOWLEDGEMENTS[name]:
            pulling.acknowledged_with(run, pieces)


def test_any_result_once__no_repeat_cut(puller: Bootstrap) -> None:
    """A result whose answer has begun, and breaks off, is not sent again."""
    with puller.used_pull() as run:
        for begun in pulling.CUT_ANSWERS:
            run.answered(b"first").drop(begun)


@pytest.mark.parametrize("reset", [False, True], ids=("closed", "reset"))
def test_any_result_once__lost(puller: Bootstrap, reset: bool) -> None:
    """A result that finds no platform is sent again once or not; the bootstrap goes on."""
    with puller.used_pull() as run:
        for lost_again in (False, True):
            run.answered(b"first").drop(reset=reset)
            following = run.request("another poll, or the same result once more")
            if following.request.method == "POST":
                following.drop(reset=reset) if lost_again else following.reply()
                following = run.request("another poll, as two results are the most")
            pulling.polls_on(run, following,
                             "a result may be repeated once, without an answer")


def test_any_result_once__one(puller: Bootstrap) -> None:
    """One event brings one result, and then the next poll; so do a dozen, some of them
    alike or empty."""
    with puller.used_pull() as run:
        for event in 3 * [b"a", b"", instruction("echo", text=""), FAILING]:
            same("error" if event == FAILING else "response", run.invoke(event).kind)


def test_any_result_once__away(puller: Bootstrap) -> None:
    """A platform that is away when the result is due is polled again when it is back."""
    puller.needs("sleep")
    run = puller.pull()
    run.poll().reply(200, run.headers(), instruction("sleep", seconds=0.3))
    run.api.leave()
    run.quiet(0.6, "while there is no platform")
    run.api.open()
    following = run.request("another poll, or the result once more")
    if following.request.method == "POST":
        following.reply()
        following = run.request("another poll, as two results are the most")
    pulling.polls_on(run, following, "the result has been sent")


def test_any_result_once__duplicate(puller: Bootstrap) -> None:
    """An event that a platform delivers twice brings a result each time."""
    with puller.used_pull() as run:
        event = wire.response(200, run.headers(), b"again")
        same([b"again", b"again"], [run.answer(event).body for _ in range(2)])


@waits
@pytest.mark.parametrize("event", [b"first", FAILING], ids=("response", "error"))
def test_any_result_patience(puller: Bootstrap, event: bytes) -> None:
    """The answer to a result may take its time."""
    run = puller.pull()
    exchange = run.answered(event)
    run.quiet(run.kind.hold_s, f"while a result is not answered for {run.kind.hold_s} s")
    exchange.reply()
    run.alive()


@waits
def test_any_result_patience__reader(puller: Bootstrap) -> None:
    """A large result may be read slowly, as far as it comes on the event's connection."""
    puller.needs("large")
    run = puller.pull()
    poll = run.poll()
    order = instruction("size", bytes=pulling.LARGE_BYTES)
    poll.channel.send(wire.response(200, run.headers(), order))
    time.sleep(run.kind.hold_s)
    poll.done.set()  # only now the kit reads on
    same((b"x" * pulling.LARGE_BYTES,), (run.acknowledged().body,))
    run.alive()


@waits
def test_any_result_once__slow(puller: Bootstrap) -> None:
    """A result whose answer takes its time is not sent again."""
    run = puller.pull()
    exchange = run.answered(b"first")
    deadline = time.monotonic() + run.kind.hold_s
    while time.monotonic() < deadline and run.api.arrived.empty():
        time.sleep(0.02)
    if not run.api.arrived.empty():
        pulling.polls_on(run, run.api.arrived.get(), "the result was on its way")
    else:
        exchange.reply()
        run.alive()


@waits
def test_any_time_handler(bootstrap: Bootstrap) -> None:
    """A handler may take its time."""
    bootstrap.needs("sleep")
    named = [("RUNTIME_TIMEOUT", "3600")]
    run = bootstrap.start(changed=named if bootstrap.implementation.protocol == "fg" else [])
    run.patience_s += run.kind.hold_s
    run.limit_ms = 3_600_000
    result = run.invoke(instruction("sleep", seconds=run.kind.hold_s))
    same(("response", b"slept"), (result.kind, result.body), "kind and body")


# ---- instances ----

PHASES, MOST_PHASES, PHASE_EVENTS, EVENT_BYTES = 4, 24, 12, 125_000
MEMORY = "bytes of memory"
MOST = {MEMORY: 600_000, "descriptors": 6, "threads": 6, "processes": 6}
LIFE = 104  # a hundred events are a usual end of a process


def give(run: Any, events: int) -> None:
    """Hand over so many events, every other of which fails; one process counts them."""
    counting = "count" not in run.kind.without
    before = int(run.invoke(instruction("count")).body) if counting else 0
    for number in range(events):
        event = b"%d" % number + b"y" * EVENT_BYTES if number % 2 else FAILING
        result = run.invoke(event)
        same("error" if event == FAILING else "response", result.kind, f"event {number}: kind")
        if event != FAILING:
            same(event, result.body, f"event {number}: the echo")
    if counting:
        same(b"%d" % (before + events + 1), run.invoke(instruction("count")).body, "the count")


def grows(held: List[Dict[str, int]], what: str) -> bool:
    """Tell whether there is more of it each time, the last three times."""
    values = [one[what] for one in held[-4:]]
    return all(after - before >= MOST[what] for before, after in zip(values, values[1:]))


def test_any_instance_init_once(bootstrap: Bootstrap) -> None:
    """One process handles one event after the other, failures among them; those of other
    checks count."""
    with bootstrap.used() as run:
        give(run, max(2, LIFE - run.served))


def test_any_instance_init_once__count(bootstrap: Bootstrap) -> None:
    """All events come to the same process."""
    bootstrap.needs("count")
    with bootstrap.used() as run:
        first = int(run.invoke(instruction("count")).body)
        same(b"%d" % (first + 1), run.invoke(instruction("count")).body, "the count")


@waits
def test_any_instance_resources(bootstrap: Bootstrap) -> None:
    """What a process holds does not grow from event to event without end. While its
    memory grows there are more events: garbage is collected late."""
    run = bootstrap.start()
    held: List[Dict[str, int]] = []
    while len(held) < PHASES or grows(held, MEMORY) and len(held) < MOST_PHASES:
        try:
            give(run, PHASE_EVENTS)
        except Mismatch:
            return  # which is a matter of the checks above
        held.append(run.process.holdings())
    for what in MOST:
        if grows(held, what):
            raise Mismatch(f"no more {what} from {PHASE_EVENTS} events to the next",
                           ", ".join(str(one[what]) for one in held[-4:]))


LOST = 12


@waits
def test_any_instance_resources__lost(bootstrap: Bootstrap) -> None:
    """What belongs to connections that break is not kept either."""
    run = bootstrap.start()
    is_push = bootstrap.implementation.protocol == "fc"
    lose = lose_requests if is_push else lose_polls
    lose(run, 3)
    before = run.process.holdings()
    lose(run, LOST)
    for what in ("descriptors", "threads", "processes"):
        if not any(run.process.holdings()[what] - before[what] < LOST // 2
                   for _ in wire.looks(5.0)):
            raise Mismatch(f"no more {what} after {LOST} broken connections than before",
                           f"{run.process.holdings()[what]}, not {before[what]}")


def lose_polls(run: Any, times: int) -> None:
    """Break connections within the answer to a poll and behind that to a result."""
    for _ in range(times):
        run.poll().drop(b"HTTP/1.1 20")
        run.answered(b"an event").drop(wire.response(200))


def lose_requests(run: Any, times: int) -> None:
    """Break connections within a request, without one and behind an answer."""
    for number in range(times):
        channel = run.connect()
        channel.send(run.invocation(b"an event")[:-3])
        channel.close(reset=bool(number % 2))
        run.connect().close(reset=bool(number % 2))
        run.alive()


HANDLERS = {"scf": "_HANDLER", "fg": "RUNTIME_HANDLER", "fc": "FC_FUNCTION_HANDLER"}


def test_any_instance_init_failed(bootstrap: Bootstrap) -> None:
    """A process that looks for a handler which is not there ends, not with status 0."""
    protocol = bootstrap.implementation.protocol
    changed = [(HANDLERS[protocol], "no_such_file.no_such_handler")]
    try:
        run = bootstrap.start(changed=changed)
        if protocol != "fc":
            run.first_call()
    except Mismatch:
        status = bootstrap.processes[-1].wait(bootstrap.implementation.patience_s)
        if status in (0, -signal.SIGKILL):  # it was killed if it did not end
            raise Mismatch("an end with a status other than 0", str(status)) from None
    else:
        run.alive()  # it has another way to find its handler


# ---- stop ----

IDLE: List[Tuple[str, str]] = [
    ("new", "group"), ("used", "group"), ("used", "leader"), ("failed", "group"),
    ("posting", "group"), ("pausing", "group"), ("platform-away", "leader")]


@pytest.mark.parametrize("when,target", IDLE, ids=map("-".join, IDLE))
def test_any_stop_bootstrap(puller: Bootstrap, when: str, target: str) -> None:
    """An idle bootstrap ends when SIGTERM comes."""
    run = puller.pull()
    if when != "new":
        run.invoke(FAILING if when == "failed" else b"before")
    exchange = run.answered(b"posted") if when == "posting" else run.poll()
    if when == "pausing":
        for _ in range(3):
            exchange.drop()
            exchange = run.poll()
        exchange.drop()
    if when == "platform-away":
        run.api.leave()
        time.sleep(0.12)  # two tries that find nobody
    run.process.terminate(target)
    if when == "posting":
        exchange.reply()
    run.process.ends_in_grace(run.patience_s)


@pytest.mark.parametrize("target", ["group", "leader"])
def test_any_stop_bootstrap__busy(puller: Bootstrap, target: str) -> None:
    """A bootstrap that runs an event gives its result after SIGTERM, and ends."""
    puller.needs("sleep")

    def attempt(pause_s: float) -> None:
        run = puller.pull()
        order = instruction("sleep", seconds=pause_s + 0.2)
        run.poll().reply(200, run.headers(), order)
        time.sleep(pause_s)
        run.process.terminate(target)
        result, exchange = run.result()
        run.quiet(0.1, "before the result is answered")
        exchange.reply()
        same(b"slept", result.body, "the result of the event that ran at SIGTERM")
        run.process.ends_in_grace(run.patience_s)

    busy_at_last(attempt)


@pytest.mark.parametrize("when", ["new", "kept", "failed", "half-sent"])
def test_any_stop_bootstrap__push(pusher: Bootstrap, when: str) -> None:
    """An idle server ends when SIGTERM comes, also with connections that are open."""
    run = pusher.push()
    if when != "new":
        channel = run.connect()
        run.invoke(FAILING if when == "failed" else b"before", channel)
    if when == "half-sent":
        run.connect().send(run.invocation(b"half")[:-2])
        run.alive()
        time.sleep(0.05)  # until it is read; nothing tells
    run.process.terminate()
    run.process.ends_in_grace(run.patience_s)


@pytest.mark.parametrize("events,target", [(1, "leader"), (1, "group"), (2, "group")])
def test_any_stop_bootstrap__push_busy(pusher: Bootstrap, events: int,
                                       target: str) -> None:
    """A server that runs events gives its answers after SIGTERM, and ends."""
    pusher.needs("sleep", *["concurrency"] if events > 1 else [])

    def attempt(pause_s: float) -> None:
        run = pusher.push()
        channels = [run.connect() for _ in range(events)]
        for number, channel in enumerate(channels, 1):
            order = instruction("sleep", seconds=pause_s + 0.2 * number)
            channel.send(run.invocation(order))
        time.sleep(pause_s)
        run.process.terminate(target)
        for channel in channels:
            same(b"slept", run.final(channel).body,
                 "the answer to an event that ran at SIGTERM")
        run.process.ends_in_grace(run.patience_s)

    busy_at_last(attempt)
