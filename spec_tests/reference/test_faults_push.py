#!/usr/bin/env python3
# test_faults_push.py: a server that fails in every way behind fc's platform (MIT).
"""Generated faults: what the server says, and how its process ends, and when.

In each case there is exactly one outcome, of the right kind; the next event succeeds;
and no thread, process or open file is more than before. The cases run in processes of
their own, in which nothing else is counted; each test looks its result up.
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
    way: str          # said, ended, hook or start
    call: str         # event, GET or POST; for hooks its path
    script: List[Any]
    kinds: Tuple[str, ...]
    point: str = ""

    @property
    def waits(self) -> str:
        """Tell to which limit of the platform it comes: event, start or none."""
        if self.kinds == ("start-error",):
            return "start" if self.way == "start" or "SIGSTOP" in self.name else ""
        return "event" if self.kinds == (LATE,) or "SIGSTOP" in self.name else ""


# ---- what the server says ----


def fields(*lines: str) -> str:
    """Return an answer with these fields and an empty body."""
    return "\r\n".join(("HTTP/1.1 200 OK",) + lines) + "\r\n\r\n"


SAID: Dict[str, Tuple[str, str, str]] = {  # name -> (bytes, deed after them, outcome)
    "nothing": ("", "close", BAD), "nothing, reset": ("", "reset", BAD),
    "nothing, hang": ("", "hang", LATE), "a letter": ("H", "close", BAD),
    "a letter, hang": ("H", "hang", LATE),
    "half start line": ("HTTP/1.1 2", "close", BAD),
    "half start line, hang": ("HTTP/1.1 2", "hang", LATE),
    "half head": ("HTTP/1.1 200 OK\r\nX: y\r\n", "close", BAD),
    "half head, reset": ("HTTP/1.1 200 OK\r\nX: y\r\n", "reset", BAD),
    "half head, hang": ("HTTP/1.1 200 OK\r\nX: y\r\n", "hang", LATE),
    "short body": (OK[:-1], "close", BAD), "short body, reset": (OK[:-1], "reset", BAD),
    "short body, hang": (OK[:-1], "hang", LATE), "no body": (OK[:-2], "close", BAD),
    "long body": (OK + "more", "", "ok"), "two answers": (OK + OK, "", "ok"),
    "answer and close": (OK, "close", "ok"),
    "answer and end of stream": (OK, "shut", "ok"),
    "Connection: close": (fields("Connection: close", "Content-Length: 0"), "close",
                          "ok"),
    "Connection: close, open": (fields("Connection: close", "Content-Length: 0"), "",
                                "ok"),
    "no length": (fields() + "ok", "close", "ok"),
    "no length, hang": (fields() + "ok", "hang", LATE),
    "HTTP/1.0": ("HTTP/1.0 200 OK\r\n\r\nok", "close", "ok"),
    "HTTP/1.0 with length": ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", "", "ok"),
    "chunked": (CHUNKED + "2\r\nok\r\n0\r\n\r\n", "", "ok"),
    "chunk extension": (CHUNKED + "2;a=b\r\nok\r\n0\r\n\r\n", "", "ok"),
    "trailers": (CHUNKED + "2\r\nok\r\n0\r\nA: b\r\n\r\n", "", "ok"),
    "upper-case chunk": (CHUNKED + "A\r\n0123456789\r\n0\r\n\r\n", "", "ok"),
    "chunk cut": (CHUNKED + "5\r\nok", "close", BAD),
    "chunk cut, reset": (CHUNKED + "5\r\nok", "reset", BAD),
    "chunk cut, hang": (CHUNKED + "5\r\nok", "hang", LATE),
    "chunk size cut": (CHUNKED + "5", "close", BAD),
    "no last chunk": (CHUNKED + "2\r\nok\r\n", "close", BAD),
    "no last chunk, hang": (CHUNKED + "2\r\nok\r\n", "hang", LATE),
    "no end of trailers": (CHUNKED + "0\r\nA: b\r\n", "close", BAD),
    "chunk size zz": (CHUNKED + "zz\r\nok\r\n", "", BAD),
    "chunk size -1": (CHUNKED + "-1\r\nok\r\n", "", BAD),
    "chunk size 0x2": (CHUNKED + "0x2\r\nok\r\n0\r\n\r\n", "", BAD),
    "chunk size empty": (CHUNKED + "\r\nok\r\n0\r\n\r\n", "", BAD),
    "chunk size huge": (CHUNKED + "f" * 40 + "\r\nok\r\n", "", BAD),
    "chunk size endless": (CHUNKED + "0" * 9000, "", BAD),
    "chunk too long": (CHUNKED + "1\r\nok\r\n0\r\n\r\n", "", BAD),
    "garbage": ("\x16\x03\x01\x02\r\n\r\n", "", BAD),
    "SSH": ("SSH-2.0-x\r\n\r\n", "", BAD),
    "words": ("hello there you\r\n\r\n", "", BAD),
    "NUL": ("\0" * 99 + "\r\n\r\n", "", BAD),
    "a request": ("GET / HTTP/1.1\r\nHost: x\r\n\r\n", "", BAD),
    "HTTP/2": ("HTTP/2 200 OK\r\n\r\n", "", BAD),
    "ICY": ("ICY 200 OK\r\n\r\n", "", BAD),
    "lower-case version": ("http/1.1 200 OK\r\n\r\n", "", BAD),
    "no status": ("HTTP/1.1\r\n\r\n", "", BAD),
    "status abc": ("HTTP/1.1 abc\r\n\r\n", "", BAD),
    "status 99": ("HTTP/1.1 99 X\r\n\r\n", "", BAD),
    "status 1000": ("HTTP/1.1 1000 X\r\n\r\n", "", BAD),
    "status 000": ("HTTP/1.1 000 X\r\n\r\n", "", BAD),
    "no reason": ("HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", "", "ok"),
    "two lengths": (fields("Content-Length: 2", "Content-Length: 2") + "ok", "", BAD),
    "length and chunks": (fields("Content-Length: 2", "Transfer-Encoding: chunked")
                          + "2\r\nok\r\n0\r\n\r\n", "", BAD),
    "length abc": (fields("Content-Length: abc"), "", BAD),
    "length -1": (fields("Content-Length: -1"), "", BAD),
    "length +2": (fields("Content-Length: +2") + "ok", "", BAD),
    "length 2, 2": (fields("Content-Length: 2, 2") + "ok", "", BAD),
    "length empty": (fields("Content-Length:"), "", BAD),
    "length huge": (fields("Content-Length: " + "9" * 30), "", BAD),
    "gzip coding": (fields("Transfer-Encoding: gzip"), "", BAD),
    "chunked twice": (fields("Transfer-Encoding: chunked, chunked"), "", BAD),
    "space in name": (fields("A b: c"), "", BAD), "no colon": (fields("Abc"), "", BAD),
    "space before colon": (fields("A : c"), "", BAD),
    "no name": (fields(": c"), "", BAD),
    "folded": (fields("A: b", " c"), "", BAD),
    "bare LF": (fields("A: b\nC: d"), "", BAD),
    "bare CR": (fields("A: b\rC: d"), "", BAD),
    "NUL in value": (fields("A: \0"), "", BAD),
    "DEL in value": (fields("A: \x7f"), "", BAD),
    "150 fields": (fields(*["A: b"] * 150, "Content-Length: 0"), "", "ok"),
    "head of 9 KB": (fields("A: " + "b" * 9000, "Content-Length: 0"), "", LARGE),
    "head of 90 KB": (fields("A: " + "b" * 90000, "Content-Length: 0"), "", LARGE),
    "head without end": (fields("A: " + "b" * 200000)[:-4], "", LARGE),
    "100 first": ("HTTP/1.1 100 Continue\r\n\r\n" + OK, "", "ok"),
    "103 first": ("HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK, "", "ok"),
    "100 fifty times": ("HTTP/1.1 100 Continue\r\n\r\n" * 50 + OK, "", "ok"),
    "100 only": ("HTTP/1.1 100 Continue\r\n\r\n", "close", BAD),
    "100 only, hang": ("HTTP/1.1 100 Continue\r\n\r\n", "hang", LATE),
    "101 unasked": ("HTTP/1.1 101 X\r\nUpgrade: x\r\n\r\n", "close", BAD),
    "204 with a body": ("HTTP/1.1 204 X\r\nContent-Length: 2\r\n\r\nok", "", "ok"),
    "304 with a body": ("HTTP/1.1 304 X\r\nContent-Length: 2\r\n\r\nok", "", "ok"),
    "field 404": (fields("X-Fc-Status: 404", "Content-Length: 0"), "", FAILED),
    **{"status %d" % number: ("HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % number, "",
                              "ok")
       for number in (201, 301, 400, 401, 403, 429, 500, 502, 503, 599, 999)}}
SAID_404 = {"event": FAILED, "GET": "ok", "POST": "ok"}


def runs(text: str) -> List[Tuple[str, str]]:
    """Split at runs of one letter, so that a script for it fits into a path."""
    return [(found[0], found[1] or "") for found in
            re.finditer(r"(?s)(.)\1{99,}|(?:(?!(.)\2{99}).)+", text)] or [("", "")]


def said_cases() -> Iterator[Case]:
    """Yield each thing said, as the answer to each kind of call."""
    for call, (name, (text, deed, kind)) in itertools.product(
            ("event", "GET", "POST"), SAID.items()):
        script: List[Any] = [["send", run[0][0], len(run[0])] if run[1] else
                             ["send", run[0]] for run in runs(text)]
        script += [[deed]] if deed else []
        if name.startswith("answer and"):  # its last bytes and its end come together:
            script.insert(0, ["cork"])  # a later end may cost the next POST its answer
        yield Case("%s-%s" % (name, call), "said", call, script, (kind,))
    for call, kind in SAID_404.items():
        yield Case("status 404-%s" % call, "said", call, [
            ["send", "HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n"]], (kind,))


# ---- how the process ends ----

ENDS: Dict[str, List[Any]] = {
    "exit 0": [["exit", 0]], "exit 3": [["exit", 3]],
    **{name: [["kill", int(getattr(signal, name))]] for name in (
        "SIGHUP", "SIGUSR1", "SIGABRT", "SIGFPE", "SIGKILL", "SIGSEGV", "SIGTERM",
        "SIGSTOP")},
    "fork and leave": [["fork"], ["exit", 0]]}
GET_ENDS = ("exit 0", "exit 3", "SIGKILL", "SIGSEGV", "SIGTERM", "SIGSTOP",
            "fork and leave")
POINTS: Dict[str, Tuple[str, str]] = {  # point -> outcome; the same for SIGSTOP
    "before ready": ("start-error", "start-error"), "idle": ("ok", "ok"),
    "delivered": ("exit", LATE), "half-sent": ("exit", LATE),
    "between chunks": ("exit", LATE), "after result": ("ok", "ok")}


def ended_cases() -> Iterator[Case]:
    """Yield each end at each point."""
    for call, (name, script), (point, kinds) in itertools.product(
            ("event", "GET"), ENDS.items(), POINTS.items()):
        if name not in GET_ENDS and (call == "GET" or point == "between chunks"):
            continue
        start = {"half-sent": [["send", OK[:-1]]], "after result": [["send", OK]],
                 "between chunks": [["send", CHUNKED + "2\r\nok\r\n"]]}
        kind = kinds[name == "SIGSTOP"]
        yield Case("%s-%s-%s" % (point, name, call), "ended", call,
                   start.get(point, []) + script, (kind,), point)
    for path, (name, script) in itertools.product(
            ("/initialize", "/pre-freeze", "/pre-stop"), ENDS.items()):
        kind = "ok" if path != "/initialize" else (
            "init-timeout" if name == "SIGSTOP" else "init-error")
        yield Case("%s-%s" % (path[1:], name), "hook", path, script, (kind,))


STARTS: Dict[str, Tuple[Dict[str, Any], Tuple[str, ...]]] = {
    "refused": ({"start": [["hang"]]}, ("start-error",)),
    "late bind": ({"start": [["sleep", 0.1]]}, ("ok",)),
    "loopback bind": ({"host": "127.0.0.1"}, ("start-error",)),
    "another address": ({"host": "127.0.0.3"}, ("start-error",)),
    "listens and ends": ({"listening": [["exit", 3]]}, ("start-error", "exit")),
    "listens and hangs": ({"listening": [["hang"]]}, (LATE,)),
    "listens and stops": ({"listening": [["kill", int(signal.SIGSTOP)]]}, (LATE,)),
    "accepts one at a time": ({"backlog": 0}, ("ok",))}


def start_cases() -> Iterator[Case]:
    """Yield each way to start badly."""
    for call, (name, (plan, kinds)) in itertools.product(("event", "GET"),
                                                         STARTS.items()):
        yield Case("%s-%s" % (name, call), "start", call, [plan], kinds)


CASES = [*said_cases(), *ended_cases(), *start_cases()]


# ---- trying one ----


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


def attempt_said(harness: Harness, case: Case, folder: pathlib.Path) -> str:
    """Let the living server say something wrong."""
    return fire(harness, case)


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


def attempt_start(harness: Harness, case: Case, folder: pathlib.Path) -> str:
    """Let the next instance start badly."""
    end_instance(harness)
    scripted_bootstrap.place(folder, case.script[0])
    return fire(harness, case._replace(script=[["say", "ok"]]))


ATTEMPTS = {"said": attempt_said, "ended": attempt_ended, "start": attempt_start}


def verdict(harness: Harness, case: Case, folder: pathlib.Path,
            before: Tuple[int, ...]) -> str:
    """Try a case; return what is wrong with it, or nothing."""
    kind = ATTEMPTS[case.way](harness, case, folder)
    if kind not in case.kinds:
        return "outcome %s, not %s" % (kind, case.kinds)
    if harness.outcome(b"next") != ("ok", b"next"):
        return "the next event fails"
    return left_behind(before, folder, 1) or ", ".join(harness.crashes)


def left_behind(before: Tuple[int, ...], folder: pathlib.Path, living: int) -> str:
    """Say what is more than before, and which processes are left; they may take a
    moment."""
    if until(lambda: all(map(operator.le, held(), before))
             and len(processes(str(folder))) <= living, 4):
        return ""
    return "left behind: (files, threads) %s, then %s; processes: %s" % (
        before, held(), processes(str(folder)))


def verdict_of_hook(case: Case, folder: pathlib.Path) -> str:
    """Try a fault within a hook, on a platform of its own."""
    before = held()
    scripted_bootstrap.place(folder, {case.call: case.script})
    hook = {"/initialize": "initializer", "/pre-freeze": "pre_freeze",
            "/pre-stop": "pre_stop"}[case.call]
    limit_s = LIMITS_S["event"] if case.waits else AMPLE_S
    with Harness("fc", str(folder), timeout_s=10, **{
            hook: True, hook + "_timeout_s": limit_s}) as harness:
        kind, body = harness.outcome([["pid"]])
        if kind not in case.kinds:
            return "outcome %s, not %s" % (kind, case.kinds)
        if hook == "pre_freeze":  # an event that comes earlier would meet the fault
            assert until(lambda: process_state(int(body)) == "X"
                         or "frozen" in harness.states())
        if hook != "pre_stop" and harness.outcome(b"next") != ("ok", b"next"):
            return "the next event fails"
    return left_behind(before, folder, 0)


# ---- workers ----


def work(number: int, place: pathlib.Path) -> None:
    """Try every WORKERS-th case; print one JSON line for each."""
    mine = CASES[number::WORKERS]
    for way, waits in sorted({(case.way, case.waits) for case in mine
                              if case.way != "hook"}):
        folder = place / ("%d-%s-%s" % (number, way, waits))
        with Harness("fc", scripted_bootstrap.place(folder), freeze=way != "ended",
                     timeout_s=LIMITS_S[waits] if waits == "event" else AMPLE_S,
                     start_timeout_s=LIMITS_S[waits] if waits == "start" else AMPLE_S
                     ) as harness:
            before = at_rest(harness)
            for case in mine:
                if (case.way, case.waits) == (way, waits):
                    report(case, lambda: verdict(harness, case, folder, before))
    folder = pathlib.Path(scripted_bootstrap.place(place / ("%d-hook" % number)))
    for case in mine:
        if case.way == "hook":
            report(case, lambda: verdict_of_hook(case, folder))


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


# ---- tests ----

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
