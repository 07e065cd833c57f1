# test_lifecycle_logs.py: what becomes of the output of a bootstrap (MIT).
"""Output belongs to its invocation, is kept to 4 KB, and never blocks anybody."""

import json
import os
import pathlib
import re
import select
import signal
import subprocess
from typing import Any, Dict, Iterator, List, Tuple

import pytest

import scripted_bootstrap
from emulator import Outcome, Platform
from harness import Harness, processes, until
from implementations import START_EMULATOR
from test_lifecycle_process import event, protocols

MIB = 1048576


@pytest.fixture
def code(tmp_path: pathlib.Path) -> Iterator[str]:
    """The function's folder; what is left of its processes is killed."""
    folder = scripted_bootstrap.place(tmp_path / "code")
    yield folder
    for process_id in processes(folder):
        os.kill(int(process_id), signal.SIGKILL)


class Logged:
    """A platform whose whole log is kept."""

    def __init__(self, protocol: str, code: str, **settings: Any) -> None:
        self.parts: List[bytes] = []
        self.harness = Harness(protocol, code, on_log=self.parts.append, **settings)

    def __enter__(self) -> "Logged":
        return self

    def __exit__(self, *_: object) -> None:
        self.harness.close()
        assert not self.harness.crashes, self.harness.crashes

    def invoke(self, *steps: List[Any]) -> Outcome:
        """Run a script."""
        return self.harness.platform.invoke(event(*steps))

    @property
    def text(self) -> str:
        """Return the whole log."""
        return b"".join(self.parts).decode("utf-8", "replace")


def parked(harness: Harness) -> bool:
    """Tell whether the bootstrap polls (pull), or is idle (fc)."""
    instance = harness.platform.instances[0]
    polls = getattr(getattr(instance, "session"), "parked", ["fc"])
    return instance.is_idle and bool(polls)


@protocols
def test_any_log_streams(protocol: str, code: str) -> None:
    """What goes to stdout and stderr in turn arrives in that order."""
    steps = [["out", 1 + number % 2, "%d\n" % number] for number in range(200)]
    with Logged(protocol, code) as logged:
        outcome = logged.invoke(*steps)
    assert outcome.log == b"".join(b"%d\n" % number for number in range(200))


@protocols
def test_any_log_first(protocol: str, code: str) -> None:
    """Output of the initialisation is with the first invocation, and only there."""
    scripted_bootstrap.place(pathlib.Path(code), {"start": [["out", 2, "starting\n"]]})
    with Logged(protocol, code) as logged:
        first = logged.invoke(["out", 1, "one\n"])
        second = logged.invoke(["out", 1, "two\n"])
    assert (first.log, second.log) == (b"starting\none\n", b"two\n")


@pytest.mark.parametrize("protocol", ("scf", "fg"))
def test_any_log_first__between(protocol: str, code: str) -> None:
    """What is printed between two invocations is in the log of none."""
    scripted_bootstrap.place(pathlib.Path(code), {"after": [["out", 1, "between\n"]]})
    with Logged(protocol, code) as logged:
        logs = []
        for number in range(30):
            logs.append(logged.invoke(["out", 1, "%d\n" % number]).log)
            assert until(lambda: parked(logged.harness))
        assert until(lambda: logged.text.count("between") == 30)
    assert logs == [b"%d\n" % number for number in range(30)]


def test_any_log_first__between_fc(code: str, tmp_path: pathlib.Path) -> None:
    """For fc the same: a thread that prints while nothing runs."""
    gate = str(tmp_path / "gate")
    os.mkfifo(gate)
    with Logged("fc", code, freeze=False) as logged:
        first = logged.invoke(["out", 1, "one\n"],
                              ["later", gate, [["out", 1, "between\n"]]])
        scripted_bootstrap.tell(gate)
        assert until(lambda: "between" in logged.text)
        second = logged.invoke(["out", 1, "two\n"])
    assert (first.log, second.log) == (b"one\n", b"two\n")


@protocols
@pytest.mark.parametrize("kind,step", (("ok", ["say", "x"]), ("timeout", ["hang"]),
                                       ("exit", ["exit", 3])))
def test_any_log_tail(protocol: str, kind: str, step: List[Any], code: str) -> None:
    """Of much output the last 4096 bytes are kept, whatever the outcome."""
    with Logged(protocol, code, timeout_s=0.5 if kind == "timeout" else 20) as logged:
        outcome = logged.invoke(["flood", 20000, "61"], ["out", 2, "b" * 96], step)
        assert outcome.kind == kind
        assert outcome.log == b"a" * 4000 + b"b" * 96


LINES = {
    "scf": (r"START RequestId: ID\nEvent RequestId: ID\nhello\nEND RequestId: ID\n"
            r"Report RequestId: ID Duration:(\d+)ms Memory:128MB MemUsage:[\d.]+MB\n"),
    "fg": (r"\S+Z Start invoke request 'ID', version: latest\nhello\n"
           r"\S+Z Finish invoke request 'ID', duration: ([\d.]+)ms, billing duration: "
           r"\d+ms, memory used: [\d.]+MB, billing memory: 128MB\n"),
    "fc": r"FC Invoke Start RequestId: ID\nhello\nFC Invoke End RequestId: ID()\n"}


@protocols
@pytest.mark.parametrize("end", ("hello\n", "hello"), ids=("whole line", "half a line"))
def test_any_log_frame(protocol: str, end: str, code: str) -> None:
    """The vendor's lines stand around the output, with one id and a true duration."""
    with Logged(protocol, code) as logged:
        outcome = logged.invoke(["sleep", 0.02], ["out", 1, end])
    found = re.fullmatch(LINES[protocol].replace("ID", outcome.request_id), logged.text)
    assert found, logged.text
    assert not found[1] or abs(float(found[1]) - outcome.duration_ms) <= 0.51
    assert outcome.duration_ms >= 20


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


@protocols
@pytest.mark.parametrize("kind,step", (("timeout", ["hang"]), ("exit", ["exit", 3])))
def test_any_log_frame__failure(protocol: str, kind: str, step: List[Any],
                                code: str) -> None:
    """An invocation that fails has both of its lines as well."""
    with Logged(protocol, code, timeout_s=0.3 if kind == "timeout" else 20) as logged:
        outcome = logged.invoke(step)
        assert outcome.kind == kind
        count = {"scf": 4, "fg": 2, "fc": 2}[protocol]
        assert until(lambda: logged.text.count(outcome.request_id) == count)


FLOODS = {"100 MB": (100, "78"), "NUL": (8, "00"), "no UTF-8": (8, "fffe80"),
          "empty lines": (8, "0a"), "escapes": (8, "1b5b324a")}


def resident_mb() -> float:
    """Return how much memory this process holds now."""
    text = pathlib.Path("/proc/self/statm").read_text()
    return int(text.split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB


@protocols
@pytest.mark.parametrize("megabytes,unit", FLOODS.values(), ids=list(FLOODS))
def test_any_log_streams__drained(protocol: str, megabytes: int, unit: str,
                                  code: str) -> None:
    """A flood of anything is taken as it comes, and is not kept."""
    if megabytes == 100 and protocol != "scf":
        megabytes = 20
    seen: Dict[str, int] = {"bytes": 0}
    with Harness(protocol, code, on_log=lambda data: seen.update(
            bytes=seen["bytes"] + len(data))) as harness:
        before = resident_mb()
        outcome = harness.platform.invoke(event(["flood", megabytes * MIB, unit]))
        assert outcome.body == b"flooded" and len(outcome.log) == 4096
        assert until(lambda: seen["bytes"] >= megabytes * MIB - 3)
        assert resident_mb() - before < 30


@protocols
def test_any_log_streams__drained_escaped_child(protocol: str, code: str) -> None:
    """A child in a session of its own keeps the pipe open: nobody waits for it."""
    with Logged(protocol, code) as logged:
        child = int(logged.invoke(["fork", True]).body)
        assert logged.invoke(["exit", 3]).kind == "exit"
        assert logged.invoke(["say", "next"]).body == b"next"
        os.kill(child, 0)  # it is still there, and holds its end


@protocols
@pytest.mark.parametrize("script,kind,options", (
    ((["flood", 4 * MIB, "78"], ["say", "x"]), "ok", ()),
    ((["flood", 4 * MIB, "78"], ["say", "x"]), "ok", ("--trace", "-")),
    ((["flood", 4 * MIB, "78"], ["hang"]), "timeout", ())))
def test_any_log_streams__drained_nobody_reads(protocol: str, script: Any, kind: str,
                                               options: Tuple[str, ...],
                                               code: str) -> None:
    """Nobody reads what the emulator itself prints: the invocations go on."""
    program = subprocess.Popen(
        [*START_EMULATOR, protocol, code, "--jsonl", "--timeout",
         "0.5" if kind == "timeout" else "9", *options,
         *(("--port", "0") if protocol == "fc" else ())], stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0)
    assert program.stdin is not None and program.stdout is not None
    for one in (event(*script), b"next"):
        program.stdin.write(json.dumps({"event": one.decode()}).encode() + b"\n")
    program.stdin.flush()
    try:
        kinds = [json.loads(read_line(program))["kind"] for _ in range(2)]
        assert kinds == [kind, "ok"]
    finally:
        program.kill()
        program.communicate()


def read_line(program: "subprocess.Popen[bytes]") -> bytes:
    """Return the next line of stdout, or an empty object after 8 s."""
    assert program.stdout is not None
    ready = select.select([program.stdout], [], [], 8)[0]
    return program.stdout.readline() if ready else b'{"kind": "nothing"}'


# ---- those who want to hear of it ----


@pytest.mark.parametrize("name", ["on_log", "on_trace"])
def test_any_outcome_one__deaf(name: str, code: str,
                               capfd: pytest.CaptureFixture[str]) -> None:
    """A listener that raises is shown as such, and the invocation goes on."""
    def deaf(_: object) -> None:
        raise ZeroDivisionError

    settings: Dict[str, Any] = {name: deaf}
    with Platform("scf", code, **settings) as platform:
        assert platform.invoke(event(["out", 2, "61"])).kind == "ok"
    assert "ZeroDivisionError" in capfd.readouterr().err
