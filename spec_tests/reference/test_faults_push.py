# test_faults_push.py: a server that fails in every way behind fc's platform (MIT).
"""Generated faults: whatever the server says, and however it starts. How a process ends,
and when, is what the kit tries (faults.py).

In each case there is exactly one outcome, of the right kind, and the next event succeeds;
after all of them no thread, process or open file is more than before.
"""

import concurrent.futures
import contextlib
import itertools
import operator
import pathlib
import re
import signal
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

import scripted_bootstrap
import wire
from emulator import KINDS
from harness import Harness, held, processes, until

LIMIT_S = 0.6  # for cases that wait for it
AMPLE_S = 10.0  # for the others, so that a busy machine is no fault
SHARES = 8  # of the cases of either kind, which run beside each other
OK = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BAD, LATE, LARGE = "bad-response", "timeout", "response-too-large"
FAILED = "function-error"
CHUNKED = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Case(NamedTuple):
    """A fault: how it is brought about, and the outcomes that are right."""

    name: str
    call: str         # event, GET or POST
    script: List[Any]
    kinds: Tuple[str, ...]
    plan: Dict[str, Any] = {}  # of a new process


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
            yield Case(name, call, script, (kind,))
    for call, kind in (("event", FAILED), ("GET", "ok"), ("POST", "ok")):
        yield Case("404-%s" % call, call, [["send", EMPTY % 404]], (kind,))


STARTS: List[Tuple[str, Dict[str, Any], Tuple[str, ...]]] = [
    ("late bind", {"start": [["sleep", 0.1]]}, ("ok",)),
    ("listens and ends", {"listening": [["exit", 3]]}, ("start-error", "exit")),
    ("listens and hangs", {"listening": [["hang"]]}, (LATE,)),
    ("listens and stops", {"listening": [["kill", int(signal.SIGSTOP)]]}, (LATE,)),
    ("accepts one at a time", {"backlog": 0}, ("ok",))]
CASES = [*said_cases(), *(Case(name, "event", [["say", "ok"]], kinds, plan)
                          for name, plan, kinds in STARTS)]


class Stand(Harness):
    """A platform with a server, and its share of the cases."""

    def __init__(self, folder: pathlib.Path, limit_s: float, share: List[Case]) -> None:
        self.folder, self.share = folder, share
        super().__init__("fc", scripted_bootstrap.place(folder), timeout_s=limit_s)
        assert self.outcome(b"warm") == ("ok", b"warm"), "not in order before"

    def wrong(self) -> Dict[str, str]:
        """Try each case; return what is wrong with those that are."""
        found = {case.name: self.attempt(case) for case in self.share}
        return {name: why for name, why in found.items() if why}

    def attempt(self, case: Case) -> str:
        try:
            if case.plan:
                self.end_instance(case.plan)
            kind, following = self.fire(case), self.outcome(b"next")
        except (AssertionError, OSError, wire.WireError) as error:
            return "%s: %s" % (type(error).__name__, error)
        is_right = kind in case.kinds and following == ("ok", b"next")
        return "" if is_right else "%s, not %s; next: %s" % (kind, case.kinds, following)

    def fire(self, case: Case) -> str:
        """Make the call and read what comes; return the outcome, which must be one."""
        before = dict(self.platform.counts)
        path, event = scripted_bootstrap.path_of(case.script), case.call == "event"
        peer = self.event(case.script) if event else self.call(
            case.call, path, b"body" if case.call == "POST" else None)
        with contextlib.suppress(wire.WireError):  # half an answer, where it is half
            peer.answer(case.call)
        peer.close()
        counts = self.platform.counts
        until(lambda: any(counts[kind] != before[kind] for kind in KINDS), 5)
        return " and ".join(kind for kind in KINDS for _ in range(
            counts[kind] - before[kind])) or "no outcome"

    def end_instance(self, plan: Dict[str, Any]) -> None:
        """Let the server end, so that the next event starts another, of that plan."""
        if self.states():
            self.outcome([["exit", 0]])
        assert until(lambda: not self.states())
        scripted_bootstrap.place(self.folder, plan)


def at_rest() -> Tuple[int, ...]:
    """Return the counts of files and threads when they stay."""
    last = [(0, 0)] * 5

    def same() -> bool:
        last[:] = last[1:] + [held()]
        return len(set(last)) == 1

    assert until(same)
    return last[-1]


def test_any_outcome_one__push(tmp_path: pathlib.Path) -> None:
    """One outcome of the right kind, a next event that succeeds, nothing left; of each
    case, on several platforms."""
    late = [case for case in CASES if case.kinds == (LATE,)]
    others = [case for case in CASES if case.kinds != (LATE,)]
    wrong: Dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        stands = [stack.enter_context(Stand(
            tmp_path / ("%g-%d" % (limit_s, number)), limit_s, cases[number::SHARES]))
            for limit_s, cases in ((LIMIT_S, late), (AMPLE_S, others))
            for number in range(SHARES)]
        before = at_rest()
        with concurrent.futures.ThreadPoolExecutor(len(stands)) as pool:
            for found in pool.map(Stand.wrong, stands):
                wrong.update(found)
        assert wrong == {}
        assert until(lambda: all(map(operator.le, at_rest(), before))), (before, held())
    assert processes(str(tmp_path)) == []
