# faults.py: every way in which a process can fail, at every point of its life (MIT).
"""Generate (fault, point) cases for platforms and try one of them.

In each case there is one outcome of the right kind, and the next event succeeds.
"""

import os
import signal
from typing import Dict, Iterator, NamedTuple, Tuple

import platform_run
import wire
from kit import Mismatch
from platform_run import Instance, PlatformRun

SIGNALS = ("ILL", "ABRT", "BUS", "FPE", "KILL", "SEGV", "TERM")
FAULTS: Dict[str, Tuple[str, Dict[str, int]]] = {
    "exit-0": ("exit", {"status": 0}), "exit-3": ("exit", {"status": 3}),
    **{f"sig{name.lower()}": ("kill", {"signal": int(getattr(signal, "SIG" + name))})
       for name in SIGNALS},
    "sigstop": ("kill", {"signal": int(signal.SIGSTOP)}), "fork": ("fork", {})}
POINTS = ("before-ready", "idle", "delivered", "half-sent", "after-result")
SHORT = ("--timeout", "0.8", "--init-timeout", "1", "--grace", "0.2")


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
    """Yield every fault at every point, with the outcome it must have."""
    for fault in FAULTS:
        for point in POINTS:
            yield Fault(protocol, fault, point, *expected(protocol, fault, point))


def expected(protocol: str, fault: str, point: str) -> Tuple[str, str]:
    """Return the outcome and the rule that demands it."""
    if point == "after-result":
        return "ok", "any.result.first"
    if fault == "sigstop":
        return {"before-ready": ("init-timeout", "any.init.timeout"),
                "idle": ("not-fetched", "any.event.timeout")}.get(
                    point, ("timeout", "any.event.timeout"))
    if fault == "fork" and point != "idle":
        outcome = "init-error" if point == "before-ready" else "exit"
        return outcome, "any.process.group"
    return {"before-ready": ("init-error", "any.init.exit"),
            "idle": ("", "any.instance.replace")}.get(
                point, ("exit", "any.outcome.exit"))


def attempt(platform: platform_run.PlatformUnderTest, case: Fault) -> None:
    """Let the fault happen; see one outcome and a next event that succeeds."""
    is_timed = case.fault == "sigstop" and case.point != "after-result"
    options = SHORT if is_timed else ()
    with platform.used_run(*options) as run:
        instance = reach(run, case.point)
        child = fail(instance, case.fault)
        if case.point == "idle" and case.fault == "sigstop":
            run.issue(b"for the stopped one")
        if case.outcome:
            run.outcome(case.outcome)
        if case.point == "after-result" and case.fault == "sigstop":
            os.kill(instance.pid, signal.SIGKILL)
            instance.reaped()
            run.settle()
        run.idle = None
        if child:
            wait_gone(child, run.patience_s)
        succeed(run)


def succeed(run: PlatformRun) -> None:
    """Raise Mismatch unless the next event gets a new instance and a result."""
    run.serve(b"the next event", b"its result")


def reach(run: PlatformRun, point: str) -> Instance:
    """Return a bootstrap at that point of its life."""
    if point == "before-ready":
        return run.starting(b"the event")
    instance = run.fetched(b"the event")
    if point == "idle":
        run.finish(instance)
        run.idle = None
    elif point == "half-sent":
        number = instance.open()
        instance.send(number, instance.post_bytes(
            None, [("Content-Length", "10")]) + b"12345")
    elif point == "after-result":
        instance.send(instance.open(), instance.post_bytes(b"done"))
    return instance


def fail(instance: Instance, fault: str) -> int:
    """Let it happen; return the process that a fork leaves behind, or 0."""
    word, arguments = FAULTS[fault]
    child = 0
    if word == "fork":
        child = instance.order("fork")["child"]
        word, arguments = "exit", {"status": 0}
    instance.end(word, **arguments)
    if fault != "sigstop":
        instance.reaped()
    return child


def wait_gone(process_id: int, limit_s: float) -> None:
    """Raise Mismatch unless that process is gone soon."""
    if not any(platform_run.state_of(process_id) in ("", "Z")
               for _ in wire.looks(limit_s)):
        os.kill(process_id, signal.SIGKILL)
        raise Mismatch("the whole process group to be gone", "a child lives on")
