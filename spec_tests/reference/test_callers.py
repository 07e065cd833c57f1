# test_callers.py: many callers at once, and callers who leave (MIT).
"""Load a platform from all sides; nothing is lost, doubled or given to the dead."""

import concurrent.futures
import http.client
import os
import pathlib
from typing import Any, Callable, Dict, List

import emulator
import pytest
import scripted_bootstrap
import wire
from emulator import Outcome, Platform
from harness import (PROTOCOLS, PULL, Harness, code, event, fifo, outcome_of, until)

__all__ = ["code", "fifo"]

Make = Callable[[str], str]


def invoke_all(platform: Platform, events: List[bytes], callers: int) -> List[Outcome]:
    """Return the outcomes of events that so many callers send at a time."""
    with concurrent.futures.ThreadPoolExecutor(callers) as pool:
        return list(pool.map(platform.invoke, events, timeout=60))


@PROTOCOLS
def test_any_event_one_instance__load(protocol: str, code: str) -> None:
    """64 callers on 8 instances: each event has its own result, none is run twice."""
    events = [b"event %d" % number for number in range(256)]
    with Harness(protocol, code, max_instances=8, timeout_s=30) as harness:
        outcomes = invoke_all(harness.platform, events, 64)
        instances = harness.state()["instances"]
        assert len(instances) <= 8 and harness.platform.counts["ok"] == 256
    assert [outcome.body for outcome in outcomes] == events
    assert sum(one["served"] for one in instances) == 256
    assert len({one.request_id for one in outcomes}) == 256
    assert not any(outcome.violations for outcome in outcomes)


@PULL
def test_any_instance_replace__load(protocol: str, code: str) -> None:
    """Bootstraps that end in between lose no event of the others."""
    events = [event(["exit", 3]) if number % 7 == 0 else b"event %d" % number
              for number in range(56)]
    with Harness(protocol, code, max_instances=4, timeout_s=30) as harness:
        outcomes = invoke_all(harness.platform, events, 16)
    assert [one.body if one.kind == "ok" else one.kind for one in outcomes] == [
        "exit" if number % 7 == 0 else one for number, one in enumerate(events)]


def test_fc_concurrency_limit__one_instance(code: str) -> None:
    """fc sends up to `concurrency` requests into one instance before another starts."""
    with Harness("fc", code, concurrency=8, timeout_s=30) as harness:
        outcomes = invoke_all(harness.platform, [event(["sleep", 0.2])] * 8, 8)
        assert [one.kind for one in outcomes] == ["ok"] * 8
        assert harness.platform.counts["cold_starts"] == 1


@PROTOCOLS
def test_any_outcome_one__256_connections(protocol: str, code: str) -> None:
    """256 callers at once each get their own answer."""
    with Harness(protocol, code, max_instances=4, timeout_s=30) as harness:
        events = [b"caller %d" % number for number in range(256)]
        callers = [harness.event(one) for one in events]
        assert [outcome_of(one) for one in callers] == [("ok", one) for one in events]


@PULL
def test_any_http_reuse__pipelined_callers(protocol: str, code: str) -> None:
    """Events pipelined by one caller are answered in their order."""
    with Harness(protocol, code) as harness:
        caller = harness.event(event(["sleep", 0.1], ["say", "slept"]))
        for number in range(5):
            caller.send(wire.request_bytes("POST", "/-/invoke", (), b"%d" % number))
        bodies = [caller.answer("POST").body for _ in range(6)]
    assert bodies == [b"slept", b"0", b"1", b"2", b"3", b"4"]


# ---- callers who leave ----


def release(path: str) -> bool:
    """Let a process that waits at a FIFO go on; False if none waits there."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


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
            assert until(lambda: release(go))
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


# ---- the front door ----


@PROTOCOLS
def test_any_outcome_one__front_door(protocol: str, code: str) -> None:
    """POST /-/invoke answers with result, kind and id; the rest helps to find it."""
    with Harness(protocol, code) as harness:
        answers = {}
        for method, path in (("GET", "/-/health"), ("HEAD", "/-/state"),
                             ("GET", "/-/state"), ("POST", "/-/invoke"),
                             ("GET", "/-/invoke"), ("DELETE", "/-/state"),
                             ("POST", "/-/health"), ("GET", "/-/nothing"),
                             ("POST", "/-/invoke/x")):
            caller = http.client.HTTPConnection("127.0.0.1", harness.door.port)
            caller.request(method, path, b"\xff\0" if method == "POST" else None)
            answer = caller.getresponse()
            answers[method, path] = answer.status, answer.read()
            if path == "/-/invoke" and method == "POST":
                assert answer.getheader("X-Outcome") == "ok"
                assert len(answer.getheader("X-Request-Id") or "") >= 32
            caller.close()
    statuses = [status for status, _ in answers.values()]
    assert statuses == [200] * 4 + [405] * 3 + [404] * 2
    assert all(b"/-/" in body for status, body in answers.values() if status > 400)
    assert answers["GET", "/-/health"][1] == b'{"status":"ok"}'
    assert answers["HEAD", "/-/state"][1] == b""
    assert answers["POST", "/-/invoke"][1] == b"\xff\0"
    assert all(word in answers["GET", "/-/state"][1] for word in (
        b"protocol", b"instances", b"queued", b"counts"))


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
