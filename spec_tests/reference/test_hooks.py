# test_hooks.py: initialise, freeze and stop hooks (MIT).
"""The function's server is the test: it answers hooks in every way."""

import pathlib
import signal
from typing import Any, Callable, Dict, Optional

import pytest
import scripted_bootstrap
import wire
from harness import (Harness, background, code, event, fifo, outcome_of,
                     process_state, processes, until)

__all__ = ["code", "fifo"]
PATHS = {"initializer": "/initialize", "pre_freeze": "/pre-freeze",
         "pre_stop": "/pre-stop"}
GONE = wire.response(404)


def echo(request: wire.Message) -> bytes:
    """Answer with the body of the request."""
    return wire.response(200, (), request.body)


# what a hook answers, beside statuses, which the kit tries -> what it means
ANSWERS: Dict[str, Any] = {
    "204": (b"HTTP/1.1 204 X\r\nConnection: close\r\n\r\n", "done"),
    "nothing": (None, "late"),
    "garbage": (b"\x16\x03\x01\r\n\r\n", "failed"), "close": (b"", "failed"),
    "half a body": (b"HTTP/1.1 200 OK\r\nContent-length: 9\r\n\r\nhalf", "failed")}
ALL_ANSWERS = pytest.mark.parametrize("reply,meaning", ANSWERS.values(),
                                      ids=list(ANSWERS))


def hooked(name: str, reply: Optional[bytes], late: bool) -> Harness:
    """Return a platform whose function answers that hook so, once, and echoes the rest;
    limits are short only where one has to run out."""
    replies = [reply]

    def answer(request: wire.Message) -> Optional[bytes]:
        is_first = request.path == PATHS[name] and replies
        return replies.pop() if is_first else echo(request)

    settings: Dict[str, Any] = {name: True, name + "_timeout_s": 0.15 if late else 20}
    harness = Harness("fc", **settings)
    harness.serve(answer)
    return harness


@ALL_ANSWERS
def test_fc_initialize_once__answers(reply: Optional[bytes], meaning: str) -> None:
    """The Initializer comes first and succeeds once, or the instance goes."""
    with hooked("initializer", reply, meaning == "late") as harness:
        kind = {"done": "ok", "late": "init-timeout"}.get(meaning, "init-error")
        assert harness.outcome(b"first")[0] == kind
        assert harness.outcome(b"second") == ("ok", b"second")
        again = [] if kind == "ok" else ["/initialize"]
        first = ["/invoke"] if kind == "ok" else []
        assert harness.seen == ["/initialize", *first, *again, "/invoke"]
        assert harness.platform.counts["cold_starts"] == 1 + len(again)


@pytest.mark.parametrize("reply", (GONE, None), ids=("404", "nothing"))
def test_fc_initialize_failed__caller_gone(reply: Optional[bytes]) -> None:
    """The caller who needed the instance leaves meanwhile: the next one is served."""
    with Harness("fc", initializer=True,
                 initializer_timeout_s=20 if reply else 0.15) as harness:
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


@ALL_ANSWERS
def test_fc_freeze_hook__answers(reply: Optional[bytes], meaning: str) -> None:
    """The instance is frozen whatever the answer."""
    with hooked("pre_freeze", reply, meaning == "late") as harness:
        assert harness.outcome(b"first") == ("ok", b"first")
        assert until(lambda: harness.seen == ["/invoke", "/pre-freeze"]
                     and harness.states() == ["frozen"])
        assert harness.outcome(b"second") == ("ok", b"second")
        assert harness.platform.counts["cold_starts"] == 1


FATAL: Dict[str, Any] = {"exit": ["exit", 3], "SIGKILL": ["kill", 9],
                         "SIGSTOP": ["kill", int(signal.SIGSTOP)]}


@pytest.mark.parametrize("name", PATHS)
@pytest.mark.parametrize("how", FATAL)
def test_any_outcome_one__hook(name: str, how: str, code: str) -> None:
    """A process that ends or stops within a hook costs the event in initialise alone."""
    scripted_bootstrap.place(pathlib.Path(code), {PATHS[name]: [FATAL[how]]})
    settings: Dict[str, Any] = {
        name: True, name + "_timeout_s": 0.15 if how == "SIGSTOP" else 20}
    with Harness("fc", code, **settings) as harness:
        kind, process_id = harness.outcome(event(["pid"]))
        assert kind == ("ok" if name != "initializer" else
                        "init-timeout" if how == "SIGSTOP" else "init-error")
        if name == "pre_freeze":  # an event that comes earlier would meet the fault
            assert until(lambda: process_state(int(process_id)) == "X"
                         or "frozen" in harness.states())
        if name != "pre_stop":
            assert harness.outcome(b"next") == ("ok", b"next")
    assert processes(code) == []


def test_fc_stop_order__hook_is_waited_for() -> None:
    """A pre-freeze hook that runs is waited for before the pre-stop hook."""
    with Harness("fc", pre_freeze=True, pre_stop=True) as harness:
        caller = harness.event(b"first")
        function = harness.accept()
        function.request()
        function.reply()
        assert outcome_of(caller)[0] == "ok"
        assert function.request().path == "/pre-freeze"
        closing = background(harness.close)
        assert until(lambda: not harness.platform.state()["instances"])
        assert harness.quiet()
        function.reply(b"", 200, "Connection: close")
        function = harness.accept()
        assert function.request().path == "/pre-stop"
        function.reply()
        closing.join(10)
        assert not closing.is_alive()


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
