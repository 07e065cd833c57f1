# test_logs.py: what becomes of the output of a bootstrap (MIT).
"""Output belongs to its invocation, is kept to 4 KB, and never blocks anybody."""

import os
import pathlib
import re
from typing import Any, Callable, Dict, List

import pytest

import scripted_bootstrap
from emulator import Outcome, Platform
from harness import PROTOCOLS, PULL, Harness, code, event, fifo, until, within

__all__ = ["code", "fifo"]

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
def test_any_log_streams__order(protocol: str, code: str) -> None:
    """What goes to stdout and stderr in turn arrives in that order."""
    steps = [["out", 1 + number % 2, "%d\n" % number] for number in range(200)]
    with Logged(protocol, code) as logged:
        outcome = logged.invoke(*steps)
    assert outcome.log == b"".join(b"%d\n" % number for number in range(200))


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


def test_any_log_first__between_fc(code: str, fifo: Callable[[str], str]) -> None:
    """For fc the same: a thread that prints while nothing runs."""
    gate = fifo("gate")
    with Logged("fc", code, freeze=False) as logged:
        first = logged.invoke(["out", 1, "one\n"],
                              ["later", gate, [["out", 1, "between\n"]]])
        scripted_bootstrap.tell(gate)
        assert until(lambda: "between" in logged.text)
        second = logged.invoke(["out", 1, "two\n"])
    assert (first.log, second.log) == (b"one\n", b"two\n")


LINES = {
    "scf": (r"START RequestId: ID\nEvent RequestId: ID\n%s\nEND RequestId: ID\n"
            r"Report RequestId: ID Duration:(\d+)ms Memory:128MB MemUsage:[\d.]+MB\n"),
    "fg": (r"\S+Z Start invoke request 'ID', version: latest\n%s\n"
           r"\S+Z Finish invoke request 'ID', duration: ([\d.]+)ms, billing duration: "
           r"\d+ms, memory used: [\d.]+MB, billing memory: 128MB\n"),
    "fc": r"FC Invoke Start RequestId: ID\n%s\nFC Invoke End RequestId: ID()[^\n]*\n"}


@PROTOCOLS
@pytest.mark.parametrize("kind,steps", (
    ("ok", [["out", 1, "bbbb"]]), ("ok", [["out", 2, "bbbb\n"]]),
    ("timeout", [["out", 2, "bbbb\n"], ["hang"]]), ("exit", [["out", 1, "bbbb"], [
        "exit", 3]])), ids=("ok", "ok-line", "timeout", "exit"))
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


def test_any_log_frame__hook(code: str) -> None:
    """What a hook prints stands between its lines."""
    scripted_bootstrap.place(pathlib.Path(code),
                             {"/pre-freeze": [["out", 1, "hooked\n"]]})
    with Logged("fc", code, pre_freeze=True) as logged:
        for count in range(1, 21):
            logged.invoke(["say", "event"])
            assert until(lambda: logged.text.count("PreFreeze End") == count)
    assert len(re.findall(r"PreFreeze Start [^\n]*\nhooked\nFC PreFreeze End",
                          logged.text)) == 20


def resident_mb() -> float:
    """Return how much memory this process holds now."""
    text = pathlib.Path("/proc/self/statm").read_text()
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


@PROTOCOLS
@pytest.mark.parametrize("megabytes,unit", ((40, "78"), (4, "00"), (4, "fffe80"),
                                            (4, "0a")))
def test_any_log_streams__flood(protocol: str, megabytes: int, unit: str,
                                code: str) -> None:
    """A flood of anything is taken as it comes, and is not kept."""
    seen = [0]

    def count(data: bytes) -> None:
        seen[0] += len(data)

    with Harness(protocol, code, on_log=count) as harness:
        before = resident_mb()
        outcome = harness.platform.invoke(event(["flood", megabytes * MIB, unit]))
        assert outcome.body == b"flooded" and len(outcome.log) == 4096
        assert until(lambda: seen[0] >= megabytes * MIB - 3)
        assert resident_mb() - before < 30


@PROTOCOLS
def test_any_log_streams__escaped_child(protocol: str, code: str) -> None:
    """A child in a session of its own keeps the pipe open: nobody waits for it."""
    with Logged(protocol, code) as logged:
        child = int(logged.invoke(["fork", True]).body)
        assert logged.invoke(["exit", 3]).kind == "exit"
        assert logged.invoke(["say", "next"]).body == b"next"
        os.kill(child, 0)  # it is still there, and holds its end


@pytest.mark.parametrize("name", ["on_log", "on_trace"])
@pytest.mark.parametrize("error", (ZeroDivisionError("deaf"), SystemExit("deaf")),
                         ids=("error", "exit"))
def test_any_outcome_one__deaf(name: str, error: BaseException, code: str,
                               capfd: pytest.CaptureFixture[str]) -> None:
    """A listener that raises is shown as such, and the invocation goes on."""
    def deaf(_: object) -> None:
        raise error

    settings: Dict[str, Any] = {name: deaf}
    with Platform("scf", code, **settings) as platform:
        for text in (b"one", b"two"):
            assert within(5, lambda: platform.invoke(text)).body == text
    assert "deaf" in capfd.readouterr().err
