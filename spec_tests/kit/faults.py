# faults.py: the ways in which a process can fail, at each point of its life (MIT).
"""Generate (fault, point) cases for platforms and try one of them.

In each case there is one outcome of the right kind, and the next event succeeds.
"""

import os
import signal
from typing import Dict, Iterator, NamedTuple, Tuple

import wire
from kit import Mismatch
from platform_run import Instance, PlatformRun, PlatformUnderTest, state_of

EXITED, STOPPED = ("exit", {"status": 0}), ("kill", {"signal": int(signal.SIGSTOP)})
FAULTS: Dict[str, Tuple[str, Dict[str, int]]] = {
    "exit-0": EXITED, "exit-3": ("exit", {"status": 3}),
    **{f"sig{name.lower()}": ("kill", {"signal": int(getattr(signal, "SIG" + name))})
       for name in ("KILL", "SEGV", "TERM")},
    "sigstop": STOPPED, "fork": EXITED, "fork-stop": STOPPED}  # fork: a child is left
ALIKE = ("exit-3", "sigsegv", "sigterm")  # but for the status, so not tried at each point
POINTS = ("before-ready", "idle", "delivered", "half-sent", "after-result")
INIT = {"fc": "--start-timeout"}  # else --init-timeout


class Fault(NamedTuple):
    """One fault at one point: what it must lead to, and by which rule."""

    protocol: str
    fault: str
    point: str
    outcome: str
    rule: str

    @property
    def name(self) -> str:
        """Return the id of the generated test."""
        return f"{self.rule}-{self.fault}-{self.point}"


def cases(protocol: str) -> Iterator[Fault]:
    """Yield the faults at their points, with the outcome it must have."""
    for fault in FAULTS:
        for point in ("before-ready", "delivered") if fault in ALIKE else POINTS:
            outcome, rule = expected(protocol, fault, point)
            if fault == "fork-stop" and outcome != "ok":
                rule = "any.time.kill"
            yield Fault(protocol, fault, point, outcome, rule)


def expected(protocol: str, fault: str, point: str) -> Tuple[str, str]:
    """Return the outcome and the rule that demands it."""
    if point == "after-result":
        return "ok", "any.result.first"
    starting = ("start-error", "fc.start.failed") if protocol == "fc" else \
        ("init-timeout", "any.init.timeout") if "stop" in fault else \
        ("init-error", "any.init.exit")
    if point == "before-ready":
        return starting[0], "any.process.group" if fault == "fork" else starting[1]
    if "stop" in fault:
        is_lost = point == "idle" and protocol != "fc"
        return "not-fetched" if is_lost else "timeout", "any.event.timeout"
    if point == "idle":
        return "", "any.process.group" if fault == "fork" else "any.instance.replace"
    return "exit", "any.process.group" if fault == "fork" else "any.outcome.exit"


def attempt(platform: PlatformUnderTest, case: Fault) -> None:
    """Let the fault happen; see one outcome and a next event that succeeds."""
    is_timed = "stop" in case.fault and case.point != "after-result"
    limit = INIT.get(case.protocol, "--init-timeout") \
        if case.point == "before-ready" else "--timeout"
    options = (limit, "1", "--grace", "60") if is_timed else ()
    with platform.used_run(*options) as run:
        instance = reach(run, case.point)
        child = fail(instance, case.fault)
        if case.point == "idle" and "stop" in case.fault:
            run.issue(b"for the stopped one")
        if case.outcome:
            run.outcome(case.outcome)
        if case.point == "after-result" and "stop" in case.fault:
            os.kill(instance.pid, signal.SIGKILL)
            instance.reaped()
        run.idle = None
        if child:
            wait_gone(child, run.patience_s)
        run.settle()
        succeed(run)


def succeed(run: PlatformRun) -> None:
    """Raise Mismatch unless the next event gets a new instance and a result."""
    run.serve(b"the next event", b"its result")


def reach(run: PlatformRun, point: str) -> Instance:
    """Return a bootstrap at that point of its life."""
    if point == "before-ready":
        return run.starting(b"the event")
    instance = run.fetched(b"the event")
    is_server = run.protocol == "fc"
    if point == "idle":
        run.finish(instance)
        run.idle = None
    elif point in ("half-sent", "after-result"):
        size, body = (10, b"12345") if point == "half-sent" else (4, b"done")
        length = [("Content-Length", str(size))]
        instance.send(instance.asked if is_server else instance.open(), (
            wire.head_bytes("HTTP/1.1 200 OK", length) if is_server else
            instance.post_bytes(None, length)) + body)
    return instance


def fail(instance: Instance, fault: str) -> int:
    """Let it happen; return the process that a fork leaves behind, or 0. That one, and
    its parent, take no notice of SIGTERM."""
    word, arguments = FAULTS[fault]
    child = 0
    if "fork" in fault:
        instance.order("ignore", signal=int(signal.SIGTERM))
        child = instance.order("fork")["child"]
    instance.end(word, **arguments)
    if "stop" not in fault:
        instance.reaped()
    return child


def wait_gone(process_id: int, limit_s: float) -> None:
    """Raise Mismatch unless that process is gone soon."""
    if not any(state_of(process_id) in ("", "Z")
               for _ in wire.looks(limit_s)):
        os.kill(process_id, signal.SIGKILL)
        raise Mismatch("the whole process group to be gone", "a child lives on")
