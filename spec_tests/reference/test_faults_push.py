#!/usr/bin/env python3
# test_faults_push.py: a server that fails in every way behind fc's platform (MIT).
"""Generated faults: what the server says, and how its process ends, and when.

In each case there is exactly one outcome, of the right kind; the next event succeeds;
and no thread, process or open file is more than before. The cases run in processes of
their own, where nothing else is counted.
"""

import contextlib
import itertools
import json
import operator
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Tuple

TESTS = pathlib.Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(TESTS))

import rooms  # noqa: E402, F401

import scripted_bootstrap  # noqa: E402
import wire  # noqa: E402
from emulator import KINDS  # noqa: E402
from harness import Harness, held, process_state, processes, until  # noqa: E402

WORKERS = 8
LIMITS_S = {"event": 0.6, "start": 1.5}  # for cases that wait for that one
AMPLE_S = 10.0  # for the others, so that a busy machine is no fault
OK = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BAD, LATE, LARGE = "bad-response", "timeout", "response-too-large"
FAILED = "function-error"
CHUNKED = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Case(NamedTuple):
    """A fault: how it is brought about, and the outcomes that are right."""

    name: str
    way: str          # said, ended or start
    call: str         # event, GET or POST
    script: List[Any]
    kinds: Tuple[str, ...]
    point: str = ""

    @property
    def waits(self) -> str:
        """Tell to which limit of the platform it comes: event, start or none."""
        if self.kinds == ("start-error",):
            return "start" if self.way == "start" or "SIGSTOP" in self.name else ""
        return "event" if self.kinds == (LATE,) or "SIGSTOP" in self.name else ""


def fields(*lines: str) -> str:
    """Return an answer with these fields and an empty body."""
    return "\r\n".join(("HTTP/1.1 200 OK",) + lines) + "\r\n\r\n"


HALF_HEAD = "HTTP/1.1 200 OK\r\nX: y\r\n"
CLOSING = fields("Connection: close", "Content-Length: 0")
EMPTY = "HTTP/1.1 %s X\r\nContent-Length: 0\r\n\r\n"
ICE = "HTTP/1.1 100 Continue\r\n\r\n"
SAID: Dict[Tuple[str, str], List[str]] = {  # what is done behind it, outcome -> bytes
    ("close", BAD): [
        "", "H", "HTTP/1.1 2", HALF_HEAD, OK[:-1], OK[:-2], CHUNKED + "5\r\nok",
        CHUNKED + "5", CHUNKED + "2\r\nok\r\n", CHUNKED + "0\r\nA: b\r\n", ICE,
        "HTTP/1.1 101 X\r\nUpgrade: x\r\n\r\n"],
    ("reset", BAD): ["", HALF_HEAD, OK[:-1], CHUNKED + "5\r\nok"],
    ("hang", LATE): ["", "HTTP/1.1 2", HALF_HEAD, OK[:-1], fields() + "ok", ICE,
                     CHUNKED + "5\r\nok", CHUNKED + "2\r\nok\r\n"],
    ("close", "ok"): [OK, CLOSING, fields() + "ok", "HTTP/1.0 200 OK\r\n\r\nok"],
    ("shut", "ok"): [OK],
    ("", "ok"): [
        OK + "more", OK + OK, CLOSING, "HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        CHUNKED + "2;a=b\r\nok\r\n0\r\n\r\n",
        CHUNKED + "2\r\nok\r\n0\r\nA: b\r\n\r\n",
        CHUNKED + "A\r\n0123456789\r\n0\r\n\r\n",
        "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n",
        fields(*["A: b"] * 150, "Content-Length: 0"), ICE + OK, ICE * 50 + OK,
        "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK,
        "HTTP/1.1 204 X\r\nContent-Length: 2\r\n\r\nok",
        "HTTP/1.1 304 X\r\nContent-Length: 2\r\n\r\nok",
        *[EMPTY % status for status in (201, 301, 400, 403, 500, 502, 999)]],
    ("", FAILED): [fields("X-Fc-Status: 404", "Content-Length: 0")],
    ("", LARGE): [fields("A: " + "b" * 9000, "Content-Length: 0"),
                  fields("A: " + "b" * 200000)[:-4]],
    ("", BAD): [
        *[CHUNKED + size + "\r\nok\r\n0\r\n\r\n"
          for size in ("zz", "-1", "0x2", "", "f" * 40, "1")], CHUNKED + "0" * 9000,
        *[line + "\r\n\r\n" for line in (
            "\x16\x03\x01\x02", "SSH-2.0-x", "hello there you", "\0" * 99, "HTTP/1.1",
            "GET / HTTP/1.1", "HTTP/2 200 OK", "ICY 200 OK", "http/1.1 200 OK",
            "HTTP/1.1 abc", "HTTP/1.1 99 X", "HTTP/1.1 1000 X", "HTTP/1.1 000 X")],
        *[fields("Content-Length: " + length) + "ok"
          for length in ("abc", "-1", "+2", "2, 2", "", "9" * 30)],
        fields("Content-Length: 2", "Content-Length: 2") + "ok",
        fields("Content-Length: 2", "Transfer-Encoding: chunked") + "0\r\n\r\n",
        *[fields(line) for line in (
            "Transfer-Encoding: gzip", "Transfer-Encoding: chunked, chunked", "A b: c",
            "Abc", "A : c", ": c", "A: b\r\n c", "A: b\nC: d", "A: b\rC: d", "A: \0",
            "A: \x7f")]]}


def runs(text: str) -> List[Tuple[str, str]]:
    """Split at runs of one letter, so that a script for it fits into a path."""
    return [(found[0], found[1] or "") for found in
            re.finditer(r"(?s)(.)\1{99,}|(?:(?!(.)\2{99}).)+", text)] or [("", "")]


def said_cases() -> Iterator[Case]:
    """Yield each thing said, as the answer to each kind of call."""
    for call, ((deed, kind), texts) in itertools.product(
            ("event", "GET", "POST"), SAID.items()):
        for number, text in enumerate(texts):
            script: List[Any] = [["send", run[0][0], len(run[0])] if run[1] else
                                 ["send", run[0]] for run in runs(text)]
            script += [[deed]] if deed else []
            if text == OK:  # its last bytes and its end come together: a later end may
                script.insert(0, ["cork"])  # cost the next POST its answer
            name = "%s %s %d-%s" % (deed or "open", kind, number, call)
            yield Case(name, "said", call, script, (kind,))
    for call, kind in (("event", FAILED), ("GET", "ok"), ("POST", "ok")):
        yield Case("404-%s" % call, "said", call, [["send", EMPTY % 404]], (kind,))


ENDS: Dict[str, List[Any]] = {
    "exit 0": [["exit", 0]], "exit 3": [["exit", 3]],
    **{name: [["kill", int(getattr(signal, name))]] for name in (
        "SIGKILL", "SIGSEGV", "SIGTERM", "SIGSTOP")},
    "fork and leave": [["fork"], ["exit", 0]]}
POINTS: Dict[str, Tuple[str, str]] = {  # point -> outcome; the same for SIGSTOP
    "before ready": ("start-error", "start-error"), "idle": ("ok", "ok"),
    "delivered": ("exit", LATE), "half-sent": ("exit", LATE),
    "between chunks": ("exit", LATE), "after result": ("ok", "ok")}


def ended_cases() -> Iterator[Case]:
    """Yield each end at each point."""
    for call, (name, script), (point, kinds) in itertools.product(
            ("event", "GET"), ENDS.items(), POINTS.items()):
        start = {"half-sent": [["send", OK[:-1]]], "after result": [["send", OK]],
                 "between chunks": [["send", CHUNKED + "2\r\nok\r\n"]]}
        kind = kinds[name == "SIGSTOP"]
        yield Case("%s-%s-%s" % (point, name, call), "ended", call,
                   start.get(point, []) + script, (kind,), point)


STARTS: List[Tuple[str, Dict[str, Any], Tuple[str, ...]]] = [
    ("refused", {"start": [["hang"]]}, ("start-error",)),
    ("late bind", {"start": [["sleep", 0.1]]}, ("ok",)),
    ("loopback bind", {"host": "127.0.0.1"}, ("start-error",)),
    ("listens and ends", {"listening": [["exit", 3]]}, ("start-error", "exit")),
    ("listens and hangs", {"listening": [["hang"]]}, (LATE,)),
    ("listens and stops", {"listening": [["kill", int(signal.SIGSTOP)]]}, (LATE,)),
    ("accepts one at a time", {"backlog": 0}, ("ok",))]
CASES = [*said_cases(), *ended_cases(),
         *(Case(name, "start", "event", [plan], kinds) for name, plan, kinds in STARTS)]


def fire(harness: Harness, case: Case) -> str:
    """Make the call and read what comes; return the outcome, which must be one."""
    before = dict(harness.platform.counts)
    path, event = scripted_bootstrap.path_of(case.script), case.call == "event"
    peer = harness.event(case.script) if event else harness.call(
        case.call, path, b"body" if case.call == "POST" else None)
    with contextlib.suppress(wire.WireError):  # half an answer, where there was half
        peer.answer(case.call)
    peer.close()
    counts = harness.platform.counts
    until(lambda: any(counts[kind] != before[kind] for kind in KINDS), 5)
    return " and ".join(kind for kind in KINDS
                        for _ in range(counts[kind] - before[kind])) or "no outcome"


def attempt_ended(harness: Harness, case: Case, folder: pathlib.Path) -> str:
    """Let the process end at its point, and wait until it has."""
    if case.point == "before ready":
        end_instance(harness)
        scripted_bootstrap.place(folder, {"start": case.script})
        return fire(harness, case._replace(script=[["say", "ok"]]))
    process_id = int(harness.outcome([["pid"]])[1])
    if case.point == "idle":
        gate = str(folder / "gate")
        os.mkfifo(gate)
        kind = fire(harness, case._replace(script=[["later", gate, case.script],
                                                   ["pid"]]))
        scripted_bootstrap.tell(gate)
        os.unlink(gate)
    else:
        kind = fire(harness, case)
    if case.script[-1] == ["kill", int(signal.SIGSTOP)] and kind == "ok":
        until(lambda: process_state(process_id) == "T")
        assert fire(harness, case._replace(script=[["say", "x"]])) == LATE
    assert until(lambda: process_state(process_id) == "X"), "the process is there"
    return kind


def end_instance(harness: Harness) -> None:
    """Let the server end, so that the next event starts another."""
    if harness.states():
        harness.outcome([["exit", 0]])
    assert until(lambda: not harness.states())


def verdict(harness: Harness, case: Case, folder: pathlib.Path,
            before: Tuple[int, ...]) -> str:
    """Try a case; return what is wrong with it, or nothing."""
    if case.way == "start":
        end_instance(harness)
        scripted_bootstrap.place(folder, case.script[0])
        case = case._replace(script=[["say", "ok"]])
    kind = (attempt_ended(harness, case, folder) if case.way == "ended" else
            fire(harness, case))
    if kind not in case.kinds:
        return "outcome %s, not %s" % (kind, case.kinds)
    if harness.outcome(b"next") != ("ok", b"next"):
        return "the next event fails"
    return left_behind(before, folder) or ", ".join(harness.crashes)


def left_behind(before: Tuple[int, ...], folder: pathlib.Path) -> str:
    """Say what is more than before; it may take a moment."""
    if until(lambda: all(map(operator.le, held(), before))
             and len(processes(str(folder))) <= 1, 4):
        return ""
    return "left behind: (files, threads) %s, then %s; processes: %s" % (
        before, held(), processes(str(folder)))


def work(number: int, place: pathlib.Path) -> None:
    """Try every WORKERS-th case; print one JSON line for each."""
    mine = CASES[number::WORKERS]
    for way, waits in sorted({(case.way, case.waits) for case in mine}):
        folder = place / ("%d-%s-%s" % (number, way, waits))
        with Harness("fc", scripted_bootstrap.place(folder), freeze=way != "ended",
                     timeout_s=LIMITS_S[waits] if waits == "event" else AMPLE_S,
                     start_timeout_s=LIMITS_S[waits] if waits == "start" else AMPLE_S
                     ) as harness:
            before = at_rest(harness)
            for case in mine:
                if (case.way, case.waits) == (way, waits):
                    report(case, lambda: verdict(harness, case, folder, before))


def at_rest(harness: Harness) -> Tuple[int, ...]:
    """Serve an event; return the counts of files and threads when they stay."""
    assert harness.outcome(b"warm") == ("ok", b"warm"), "not in order before"
    last = [(0, 0)] * 5

    def same() -> bool:
        last[:] = last[1:] + [held()]
        return len(set(last)) == 1

    assert until(same)
    return last[-1]


def report(case: Case, attempt: Callable[[], str]) -> None:
    """Try; print the name, and what was wrong."""
    try:
        wrong = attempt()
    except (AssertionError, OSError, wire.WireError) as error:
        wrong = "%s: %s" % (type(error).__name__, error)
    print(json.dumps([case.name, wrong]), flush=True)


if __name__ != "__main__":
    import pytest

    @pytest.fixture(scope="module")
    def verdicts() -> Dict[str, str]:
        """Run all cases; return what was wrong with each."""
        with tempfile.TemporaryDirectory() as place:
            workers = [subprocess.Popen(
                [sys.executable, __file__, str(number), place], stdout=subprocess.PIPE)
                for number in range(WORKERS)]
            lines = [line for worker in workers
                     for line in worker.communicate(timeout=120)[0].splitlines()]
            assert processes(place) == []
        return dict(json.loads(line) for line in lines)

    @pytest.mark.parametrize("name", [case.name for case in CASES])
    def test_any_outcome_one__push(name: str, verdicts: Dict[str, str]) -> None:
        """One outcome of the right kind, a next event that succeeds, nothing left."""
        assert not verdicts.get(name, "it was not tried: the worker broke")
else:
    work(int(sys.argv[1]), pathlib.Path(sys.argv[2]))
