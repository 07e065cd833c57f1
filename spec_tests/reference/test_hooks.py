# test_hooks.py: initialise, freeze and stop hooks (MIT).
"""The function's server is the test: it answers hooks in every way."""

import pathlib
import threading
from typing import Any, Callable, Dict, Optional

import pytest

import scripted_bootstrap
import wire
from harness import Harness, background, code, event, fifo, outcome_of, until

__all__ = ["code", "fifo"]

NAMES = ("initializer", "pre_freeze", "pre_stop")
LIMITS: Dict[str, Any] = {name + "_timeout_s": 0.15 for name in NAMES}
AMPLE: Dict[str, Any] = {name + "_timeout_s": 20 for name in NAMES}


def status(number: int, body: bytes = b"") -> bytes:
    """Return an answer with that status."""
    return wire.response(number, (), body)


def echo(request: wire.Message) -> bytes:
    """Answer with the body of the request."""
    return status(200, request.body)


# what a hook answers -> what it means; broken: fails, and the instance ends
ANSWERS: Dict[str, Any] = {
    "204": (b"HTTP/1.1 204 X\r\n\r\n", "done"),
    "200 and a body": (status(200, b"no"), "done"),
    "100, 200": (b"HTTP/1.1 100 X\r\n\r\n" + status(200), "done"),
    "302": (status(302), "failed"), "404": (status(404), "failed"),
    "500": (status(500), "broken"), "nothing": (None, "late"),
    "garbage": (b"\x16\x03\x01\r\n\r\n", "failed"), "close": (b"", "failed"),
    "a long head": (b"HTTP/1.1 200 OK\r\nX: %s\r\n\r\n" % (b"x" * 70000), "failed"),
    "half a head": (b"HTTP/1.1 200 OK\r\nContent-", "failed"),
    "half a body": (b"HTTP/1.1 200 OK\r\nContent-length: 9\r\n\r\nhalf", "failed")}
ALL_ANSWERS = pytest.mark.parametrize("reply,meaning", ANSWERS.values(),
                                      ids=list(ANSWERS))


def limits_for(meaning: str) -> Dict[str, Any]:
    """Return limits that are short only where one has to run out."""
    return LIMITS if meaning == "late" else AMPLE


def hooked(path: str, reply: Optional[bytes]) -> Callable[[wire.Message],
                                                          Optional[bytes]]:
    """Return a server that answers that path so, once, and echoes the rest."""
    replies = [reply]

    def answer(request: wire.Message) -> Optional[bytes]:
        return replies.pop() if request.path == path and replies else echo(request)

    return answer


# ---- initialise ----


@ALL_ANSWERS
def test_fc_initialize_once__answers(reply: Optional[bytes], meaning: str) -> None:
    """The Initializer comes first and succeeds once, or the instance goes."""
    with Harness("fc", initializer=True, **limits_for(meaning)) as harness:
        harness.serve(hooked("/initialize", reply))
        kind = {"done": "ok", "late": "init-timeout"}.get(meaning, "init-error")
        assert harness.outcome(b"first")[0] == kind
        assert harness.outcome(b"second") == ("ok", b"second")
        again = [] if kind == "ok" else ["/initialize"]
        first = ["/invoke"] if kind == "ok" else []
        assert harness.seen == ["/initialize", *first, *again, "/invoke"]
        assert harness.platform.counts["cold_starts"] == 1 + len(again)


@pytest.mark.parametrize("reply,meaning", (
    (status(404), "failed"), (None, "late"), (status(200), "done")),
    ids=("404", "nothing", "200"))
def test_fc_initialize_failed__caller_gone(reply: Optional[bytes],
                                           meaning: str) -> None:
    """The caller who needed the instance leaves meanwhile: the next one is served."""
    with Harness("fc", initializer=True, **limits_for(meaning)) as harness:
        caller = harness.event(b"gone")
        function = harness.accept()
        function.request()
        caller.close()
        assert harness.ends("cancelled")
        function.send(reply) if reply else None
        assert until(lambda: harness.states() in ([], ["frozen"]))
        harness.serve(echo)
        background(harness.serve_on, function, echo)
        assert harness.outcome(b"next") == ("ok", b"next")


def test_fc_concurrency_limit__initializing() -> None:
    """Requests that arrive during the Initializer wait for it, then go together."""
    with Harness("fc", initializer=True, concurrency=3) as harness:
        callers = [harness.call("GET", "/x") for _ in range(3)]
        function = harness.accept()
        function.request()
        assert until(lambda: harness.platform.counts["accepted"] == 3)
        assert harness.quiet()
        function.reply()
        for peer in (function, harness.accept(), harness.accept()):
            peer.request()
            peer.reply(b"x")
        assert [caller.answer().body for caller in callers] == [b"x"] * 3


# ---- freeze ----


@ALL_ANSWERS
def test_fc_freeze_hook__answers(reply: Optional[bytes], meaning: str) -> None:
    """The instance is frozen after any answer but 5xx, which ends it."""
    with Harness("fc", pre_freeze=True, **limits_for(meaning)) as harness:
        harness.serve(hooked("/pre-freeze", reply))
        assert harness.outcome(b"first") == ("ok", b"first")
        states = [] if meaning == "broken" else ["frozen"]
        assert until(lambda: harness.seen == ["/invoke", "/pre-freeze"]
                     and harness.states() == states)
        assert harness.outcome(b"second") == ("ok", b"second")
        assert harness.platform.counts["cold_starts"] == 1 + (meaning == "broken")


@pytest.mark.parametrize("meanwhile", (False, True), ids=("rest", "event meanwhile"))
def test_fc_freeze_hook__each_time(meanwhile: bool) -> None:
    """Before each freeze the hook is called once, whenever an event comes."""
    go = threading.Event()

    def answer(request: wire.Message) -> bytes:
        assert request.path != "/pre-freeze" or go.wait(8)
        return echo(request)

    with Harness("fc", pre_freeze=True) as harness:
        harness.serve(answer)
        caller = harness.event(b"first")
        assert until(lambda: harness.seen == ["/invoke", "/pre-freeze"])
        assert outcome_of(caller) == ("ok", b"first")
        second = harness.event(b"second") if meanwhile else None
        go.set()
        assert second is None or outcome_of(second) == ("ok", b"second")
        for number in range(2):
            assert until(lambda: harness.states() == ["frozen"])
            assert harness.outcome(b"next") == ("ok", b"next")
        assert until(lambda: harness.states() == ["frozen"])
        assert harness.seen.count("/pre-freeze") - meanwhile in (3, 2)
        assert harness.platform.counts["cold_starts"] == 1


@pytest.mark.parametrize("count", (1, 2))
@pytest.mark.parametrize("queue", (0, 9))
def test_fc_freeze_hook__no_second_instance(
        queue: int, count: int, code: str, fifo: Callable[[str], str]) -> None:
    """An event that comes during the hook waits for its end, not for an instance; a
    second one needs another instance, which has no hook while one of them waits."""
    here, go = fifo("here"), fifo("go")
    scripted_bootstrap.place(pathlib.Path(code), {
        "/pre-freeze": [["tell", here], ["wait", go]], "always": True})
    with Harness("fc", code, pre_freeze=True, queue=queue) as harness:
        first = harness.outcome(event(["pid"]))
        scripted_bootstrap.wait(here)
        callers = [harness.event(event(["pid"]))]
        assert until(lambda: harness.state()["queued"] == 1)
        callers += [harness.event(event(["pid"])) for _ in range(1, count)]
        if count == 1:
            background(scripted_bootstrap.tell, go)
        found = {outcome_of(caller) for caller in callers}
        assert len(found) == 1 and (first in found) == (count == 1)
        assert harness.platform.counts["cold_starts"] == count
        for _ in range(3):
            background(scripted_bootstrap.tell, go)
            background(scripted_bootstrap.wait, here)


def test_fc_freeze_idle__switched_off() -> None:
    """Without freezing there is no hook, and the instance stays idle."""
    with Harness("fc", pre_freeze=True, freeze=False) as harness:
        harness.serve(echo)
        assert harness.outcome(b"a")[0] == harness.outcome(b"b")[0] == "ok"
        assert harness.states() == ["idle"] and harness.seen == ["/invoke", "/invoke"]


# ---- stop ----


@ALL_ANSWERS
def test_fc_stop_hook__answers(reply: Optional[bytes], meaning: str) -> None:
    """The stop goes on after any answer of the hook, and after none."""
    with Harness("fc", pre_stop=True, **limits_for(meaning)) as harness:
        harness.serve(hooked("/pre-stop", reply))
        assert harness.outcome(b"event")[0] == "ok"
    assert harness.seen == ["/invoke", "/pre-stop"]
    assert not harness.platform.state()["instances"]


@pytest.mark.parametrize("pre_stop", (True, False))
def test_fc_stop_order__hook_is_waited_for(pre_stop: bool) -> None:
    """A pre-freeze hook that runs is waited for before the pre-stop hook, or the end.
    """
    with Harness("fc", pre_freeze=True, pre_stop=pre_stop) as harness:
        caller = harness.event(b"first")
        function = harness.accept()
        function.request()
        function.reply()
        assert outcome_of(caller)[0] == "ok"
        assert function.request().path == "/pre-freeze"
        closing = background(harness.close)
        assert until(lambda: not harness.platform.state()["instances"])
        assert harness.quiet() and closing.is_alive()
        function.reply(b"", 200, "Connection: close")
        if pre_stop:
            function = harness.accept()
            assert function.request().path == "/pre-stop"
            function.reply()
        closing.join(10)
        assert not closing.is_alive()


def test_any_instance_idle__pre_stop() -> None:
    """An instance that is idle for long is stopped with its hook, and replaced."""
    with Harness("fc", pre_stop=True, idle_s=0.1) as harness:
        harness.serve(echo)
        assert harness.outcome(b"a") == ("ok", b"a")
        assert until(lambda: not harness.states())
        assert until(lambda: harness.seen == ["/invoke", "/pre-stop"])
        assert harness.outcome(b"b") == ("ok", b"b")
        assert harness.platform.counts["cold_starts"] == 2
