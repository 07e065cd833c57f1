# test_logs.py: what becomes of the output of a bootstrap (MIT).
"""Output belongs to its invocation, is kept to 4 KB, and never blocks anybody."""

import os
import pathlib
import re
import threading
from typing import Any, Dict, List

import pytest

import scripted_bootstrap
from emulator import Outcome
from harness import (PROTOCOLS, PULL, Harness, background, code, event, outcome_of,
                     processes, until)

__all__ = ["code"]
MIB = 1048576


class Logged(Harness):
    """A platform whose whole log is kept."""

    def __init__(self, protocol: str, code: str, **settings: Any) -> None:
        self.parts: List[bytes] = []
        super().__init__(protocol, code, on_log=self.parts.append, **settings)

    def invoke(self, *steps: List[Any]) -> Outcome:
        """Run a script."""
        return self.platform.invoke(event(*steps))

    @property
    def text(self) -> str:
        """Return the whole log."""
        return b"".join(self.parts).decode("utf-8", "replace")


@PROTOCOLS
def test_any_log_first(protocol: str, code: str) -> None:
    """Output of the initialisation is with the first invocation, and only there."""
    scripted_bootstrap.place(pathlib.Path(code), {"start": [["out", 2, "starting\n"]]})
    with Logged(protocol, code) as logged:
        first = logged.invoke(["out", 1, "one\n"])
        assert re.search("starting\n(.*\n)*one\n", logged.text)  # with the result
        second = logged.invoke(["out", 1, "two\n"])
    assert (first.log, second.log) == (b"starting\none\n", b"two\n")


@PULL
def test_any_log_first__between(protocol: str, code: str) -> None:
    """What is printed between two invocations is in the log of none."""
    scripted_bootstrap.place(pathlib.Path(code), {"after": [["out", 1, "between\n"]]})
    with Logged(protocol, code) as logged:
        for number in range(30):
            outcome = logged.invoke(["out", 1, "%d\n" % number])
            assert until(lambda: logged.text.count("between") == number + 1)
            assert outcome.log == b"%d\n" % number


LINES = {
    "scf": (r"START RequestId: ID\nEvent RequestId: ID\n%s\nEND RequestId: ID\n"
            r"Report RequestId: ID Duration:(\d+)ms Memory:128MB MemUsage:[\d.]+MB\n"),
    "fg": (r"\S+Z Start invoke request 'ID', version: latest\n%s\n"
           r"\S+Z Finish invoke request 'ID', duration: ([\d.]+)ms, billing duration: "
           r"\d+ms, memory used: [\d.]+MB, billing memory: 128MB\n"),
    "fc": r"FC Invoke Start RequestId: ID\n%s\nFC Invoke End RequestId: ID()[^\n]*\n"}


@PROTOCOLS
@pytest.mark.parametrize("kind,steps", (
    ("ok", [["out", 1, "bbbb"]]), ("timeout", [["out", 2, "bbbb\n"], ["hang"]]),
    ("exit", [["out", 1, "bbbb"], ["exit", 3]])), ids=("ok", "timeout", "exit"))
def test_any_log_frame(protocol: str, kind: str, steps: List[List[Any]],
                       code: str) -> None:
    """The vendor's lines stand around the output, with one id and a true duration,
    whatever the outcome."""
    with Logged(protocol, code, timeout_s=0.5 if kind == "timeout" else 20) as logged:
        outcome = logged.invoke(["sleep", 0.02], ["flood", 9000, "61"], *steps)
    wanted = LINES[protocol].replace("ID", outcome.request_id) % "a{9000}bbbb"
    found = re.fullmatch(wanted, logged.text)
    assert found and outcome.kind == kind, logged.text[-999:]
    assert not found[1] or abs(float(found[1]) - outcome.duration_ms) <= 0.51
    assert outcome.duration_ms >= 20


def test_any_log_frame__markers_of_its_own(code: str) -> None:
    """A bootstrap that prints the vendor's markers does not double them."""
    own = [["out", 1, "FC Invoke %s RequestId: 1-2-3%s\n" % pair] for pair in (
        ("Start", ""), ("End", ", Error: why"))]
    with Logged("fc", code) as logged:
        logged.invoke(own[0], ["out", 1, "FC Invoke Started\n"], own[1])
        logged.invoke(own[0])
    assert logged.text.count("FC Invoke Start RequestId: ") == 2
    assert logged.text.count("FC Invoke End RequestId: ") == 2
    assert "1-2-3" not in logged.text and "FC Invoke Started\n" in logged.text
    assert "\n\n" not in logged.text


@PROTOCOLS
def test_any_log_tail(protocol: str, code: str) -> None:
    """Of much output the last 4096 bytes are kept, also of a process that ends."""
    with Logged(protocol, code) as logged:
        outcome = logged.invoke(["flood", 9000, "61"], ["out", 2, "b" * 96],
                                ["exit", 3])
    assert outcome.log == b"a" * 4000 + b"b" * 96


@PROTOCOLS
@pytest.mark.parametrize("megabytes,unit", ((40, "78"), (4, "fffe80")))
def test_any_log_streams__flood(protocol: str, megabytes: int, unit: str,
                                code: str) -> None:
    """A flood of anything is taken as it comes, and is not kept."""
    def resident_mb() -> float:
        pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / MIB

    seen: List[int] = []
    with Harness(protocol, code, on_log=lambda data: seen.append(len(data))) as harness:
        before = resident_mb()
        outcome = harness.platform.invoke(event(["flood", megabytes * MIB, unit]))
        assert outcome.body == b"flooded" and len(outcome.log) == 4096
        assert until(lambda: sum(seen) >= megabytes * MIB - 3)
        assert resident_mb() - before < 30


@PROTOCOLS
def test_any_log_streams__escaped_child(protocol: str, code: str) -> None:
    """A child in a session of its own keeps the pipe open: nobody waits for it."""
    with Logged(protocol, code) as logged:
        child = int(logged.invoke(["fork", True]).body)
        assert logged.invoke(["exit", 3]).kind == "exit"
        assert logged.invoke(["say", "next"]).body == b"next"
        os.kill(child, 0)  # it is still there, and holds its end


@PROTOCOLS
def test_any_time_kill__log_unread(protocol: str, code: str) -> None:
    """While nobody reads the log, a limit still strikes, and the platform tells so."""
    is_read = threading.Event()

    def read(data: bytes) -> None:
        if b"bbbb" in data:
            is_read.wait(20)

    with Harness(protocol, code, on_log=read, timeout_s=0.4) as harness:
        caller = harness.event(event(["out", 1, "bbbb"], ["hang"]))
        assert harness.ends("timeout") and harness.states() == []
        assert until(lambda: processes(code) == [])
        is_read.set()
        assert outcome_of(caller)[0] == "timeout"
        assert harness.outcome(b"next") == ("ok", b"next")


@PROTOCOLS
def test_trace__unread(protocol: str, code: str) -> None:
    """While nobody reads the trace, the platform can be asked for its state."""
    is_here, is_read = threading.Event(), threading.Event()

    def read(facts: Dict[str, object]) -> None:
        if facts["what"] in ("call", "move"):
            is_here.set()
            is_read.wait(20)

    with Harness(protocol, code, on_trace=read) as harness:
        caller = harness.event(b"x")
        assert is_here.wait(20)
        asked = background(harness.platform.state)
        asked.join(10)
        assert not asked.is_alive()
        is_read.set()
        assert outcome_of(caller) == ("ok", b"x")
