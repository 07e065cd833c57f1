# test_callers.py: many callers at once, and callers who leave (MIT).
"""Load a platform from all sides; nothing is lost, doubled or given to the dead."""

import concurrent.futures
import pathlib
import sys
from typing import Any, Callable, Dict, List

import emulator
import pytest
import scripted_bootstrap
from emulator import Outcome, Platform
from harness import PROTOCOLS, PULL, Harness, code, event, fifo, outcome_of, until

__all__ = ["code", "fifo"]
Make = Callable[[str], str]


def invoke_all(platform: Platform, events: List[bytes], callers: int) -> List[Outcome]:
    """Return the outcomes of events that so many callers send at a time."""
    with concurrent.futures.ThreadPoolExecutor(callers) as pool:
        return list(pool.map(platform.invoke, events, timeout=60))


@PROTOCOLS
def test_any_event_one_instance__load(protocol: str, code: str) -> None:
    """64 callers on 8 instances: each event has its own result, none is run twice."""
    events = [b"event %d" % number for number in range(128)]
    with Harness(protocol, code, max_instances=8, timeout_s=30) as harness:
        outcomes = invoke_all(harness.platform, events, 64)
        instances = harness.state()["instances"]
        assert len(instances) <= 8 and harness.platform.counts["ok"] == 128
    assert [outcome.body for outcome in outcomes] == events
    assert sum(one["served"] for one in instances) == 128
    assert len({one.request_id for one in outcomes}) == 128
    assert not any(outcome.violations for outcome in outcomes)


def test_put_off_once(code: str) -> None:
    """What is put off until the platform's lock is free happens once, whoever else
    takes the lock meanwhile: an answer given twice is taken for the next one's."""
    made: List[int] = []
    with Harness("scf", code) as harness:
        lock = harness.platform.lock

        def put_off(count: int) -> None:
            for number in range(count):
                with lock:
                    lock.later(made.append, number)
                for _ in range(2):
                    with lock:
                        pass

        interval = sys.getswitchinterval()
        sys.setswitchinterval(1e-6)
        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            list(pool.map(put_off, [2000] * 32))
        sys.setswitchinterval(interval)
    assert len(made) == 64000


@PULL
def test_any_instance_replace__load(protocol: str, code: str) -> None:
    """Bootstraps that end in between lose no event of the others."""
    events = [event(["exit", 3]) if number % 7 == 0 else b"event %d" % number
              for number in range(56)]
    with Harness(protocol, code, max_instances=4, timeout_s=30) as harness:
        outcomes = invoke_all(harness.platform, events, 16)
    assert [one.body if one.kind == "ok" else one.kind for one in outcomes] == [
        "exit" if number % 7 == 0 else one for number, one in enumerate(events)]


@pytest.mark.parametrize("protocol,settings,same", (
    ("fc", {}, False), ("fc", {"concurrency": 2}, True), ("scf", {}, True),
    ("fg", {}, True)), ids=("fc.caller.replace", "fc-concurrent", "scf", "fg"))
def test_any_caller_gone__running(protocol: str, settings: Dict[str, Any], same: bool,
                                  code: str, fifo: Make) -> None:
    """It is cancelled; the instance is used again, or replaced (fc, one at a time)."""
    here, go = fifo("here"), fifo("go")
    with Harness(protocol, code, max_instances=1, **settings) as harness:
        first = harness.outcome(event(["pid"]))[1]
        caller = harness.event(event(["tell", here], ["wait", go]))
        scripted_bootstrap.wait(here)
        caller.close()
        assert harness.ends("cancelled")
        if same:
            scripted_bootstrap.tell(go)
        assert (harness.outcome(event(["pid"])) == ("ok", first)) == same
        assert harness.platform.counts["ok"] == 2


@PROTOCOLS
def test_any_caller_gone__queued(protocol: str, code: str, fifo: Make) -> None:
    """An event whose caller leaves while it waits reaches nobody."""
    here, go = fifo("here"), fifo("go")
    with Harness(protocol, code, max_instances=1) as harness:
        first = harness.event(event(["tell", here], ["wait", go], ["count"]))
        scripted_bootstrap.wait(here)
        queued = [harness.event(b"queued") for _ in range(3)]
        assert until(lambda: harness.state()["queued"] == 3)
        for caller in queued:
            caller.close()
        assert harness.ends("cancelled", 3) and harness.state()["queued"] == 0
        scripted_bootstrap.tell(go)
        assert outcome_of(first) == ("ok", b"1")
        assert harness.outcome(event(["count"])) == ("ok", b"2")


@PROTOCOLS
def test_any_caller_gone__starting(protocol: str, code: str, fifo: Make) -> None:
    """A caller who leaves during the start leaves an instance that serves the next."""
    here, go = fifo("here"), fifo("go")
    scripted_bootstrap.place(pathlib.Path(code),
                             {"start": [["tell", here], ["wait", go]]})
    with Harness(protocol, code, max_instances=1) as harness:
        caller = harness.event(b"gone")
        scripted_bootstrap.wait(here)
        caller.close()
        assert harness.ends("cancelled")
        scripted_bootstrap.tell(go)
        assert harness.outcome(event(["count"])) == ("ok", b"1")
        assert harness.state()["counts"]["cold_starts"] == 1


@PROTOCOLS
def test_any_outcome_one__front_door(protocol: str, code: str) -> None:
    """POST /-/invoke answers with result, kind and id; the rest helps to find it."""
    asked = (("GET", "/-/health"), ("HEAD", "/-/state"), ("GET", "/-/state"),
             ("GET", "/-/invoke"), ("DELETE", "/-/state"), ("POST", "/-/health"),
             ("GET", "/-/nothing"), ("POST", "/-/invoke/x"))
    with Harness(protocol, code) as harness:
        answers = [harness.call(method, path).answer(method) for method, path in asked]
        invoked = harness.event(b"\xff\0").answer("POST")
    assert [one.status for one in answers] == [200] * 3 + [405] * 3 + [404] * 2
    assert all(b"/-/" in one.body for one in answers[3:])
    assert (invoked.status, invoked.body) == (200, b"\xff\0")
    assert invoked.header("x-outcome") == "ok"
    assert len(invoked.header("x-request-id") or "") >= 32


@PROTOCOLS
def test_any_outcome_one__caller_does_not_read(protocol: str, code: str) -> None:
    """A caller who does not read his large result holds up nobody else."""
    large = bytes(range(256)) * (6 * 1048576 // 256)
    with Harness(protocol, code, max_instances=1) as harness:
        lazy = harness.event(large)
        assert harness.ends("ok") and harness.outcome(b"next") == ("ok", b"next")
        assert outcome_of(lazy) == ("ok", large)


@PROTOCOLS
def test_errors_of_our_own__answered(protocol: str, code: str,
                                     monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller whose answer cannot be written is told so, and not kept waiting."""
    def broken(outcome: Outcome) -> None:
        raise KeyError("injected")

    monkeypatch.setattr(emulator, "native_answer", broken)
    with Harness(protocol, code) as harness:
        caller = harness.event(b"x")
        answer = caller.answer("POST")
        assert answer.status == 500 and b"platform itself" in answer.body
        assert until(lambda: harness.platform.faults == 1)
        assert until(lambda: harness.crashes == ["<class 'KeyError'>: 'injected'"])
        harness.crashes.clear()
