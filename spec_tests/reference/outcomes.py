#!/usr/bin/env python3
# outcomes.py: every fault of a bootstrap, and the outcome it has to become (MIT).
"""Let misbehave.py break one thing after the other; the platform goes on each time.

    python3 spec_tests/reference/outcomes.py {scf|fg|fc} FOLDER

Each case is a bootstrap's fault, the outcome it has to become and what the caller sees
then. After each, the same Platform answers the next event, with another instance where
the first one is gone. Prints one JSON line for each case: what was wrong, and what it
left behind; the program holds nothing else that could be counted.
"""

import json
import os
import pathlib
import sys
import threading
import traceback
from typing import Any, Dict, List, NamedTuple, Tuple

TESTS = pathlib.Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(TESTS))

import rooms  # noqa: E402, F401

import misbehave  # noqa: E402
from emulator import Outcome, Platform  # noqa: E402

__all__ = ["AMPLE", "CASES", "Case", "platform_for"]

TIMEOUT_S = 0.9  # enough for the event that comes next, on a busy machine
AMPLE_S = 30.0
RESULT_BYTES, EVENT_BYTES = 1000, 2000


class Case(NamedTuple):
    """A fault: `mode` of the first start and `event`; then what is to be seen."""

    rule: str
    event: str
    kind: str
    shown: str                  # part of the body; % is the request id
    mode: str = ""
    broken: Tuple[str, ...] = ()   # rules
    settings: Tuple[Tuple[str, float], ...] = ()
    before: str = ""            # an event that comes first and is ok
    status: int = 200
    header: Tuple[str, str] = ("", "")


SHORT_INIT = (("timeout_s", AMPLE_S), ("init_timeout_s", TIMEOUT_S))
AMPLE = (("timeout_s", AMPLE_S),)

SCF = (
    Case("any.result.outcome", "hello", "ok", "hello"),
    Case("any.result.outcome:error", "fail why", "function-error",
         '"errorMessage":"user code exception caught","requestId":"%","stackTrace":'
         '"why","statusCode":430', settings=AMPLE),
    Case("any.event.timeout", "hang", "timeout",
         '{"errorCode":-1,"errorMessage":"Invoking task timed out after 0.9 seconds",'
         '"requestId":"%","statusCode":433}'),
    Case("any.limits.clock:refetch", "poll-hang", "timeout", '"statusCode":433'),
    Case("any.event.timeout:not-fetched", "hello", "not-fetched",
         '"Waiting for event timed out after 0.9 seconds"', before="last"),
    Case("any.event.timeout:not-fetched-at-start", "hello", "not-fetched",
         '"Waiting for event timed out after 0.9 seconds"', mode="ready-only"),
    Case("any.init.timeout", "hello", "init-timeout",
         '"Initializing task timed out after 0.9 seconds"', mode="silent",
         settings=SHORT_INIT),
    Case("scf.next.blocks:before-ready", "hello", "init-timeout", '"statusCode":450',
         mode="poll-first", settings=SHORT_INIT, broken=("scf.ready.before-next",)),
    Case("any.init.exit", "hello", "init-error",
         '"User process exit when initializing"', mode="exit 3", settings=AMPLE),
    Case("any.init.exit:killed", "hello", "init-error", '"statusCode":445',
         mode="exit -9", settings=AMPLE),
    Case("any.outcome.exit", "exit 3", "exit", '"User process exit when running"',
         settings=AMPLE),
    Case("any.outcome.exit:status-0", "exit 0", "exit", '"statusCode":439',
         settings=AMPLE),
    Case("any.outcome.exit:killed", "exit -9", "exit", '"statusCode":439',
         settings=AMPLE),
    Case("any.process.group", "fork", "exit", '"statusCode":439', settings=AMPLE),
    Case("any.http.no-effect:complete-then-exit", "half-exit", "exit",
         '"statusCode":439', broken=("any.http.no-effect",), settings=AMPLE),
    Case("any.result.first:last-words", "last-words", "ok", "last words",
         settings=AMPLE),
    Case("any.result.size", "large 1001", "response-too-large", '"statusCode":407',
         settings=AMPLE),
    Case("any.result.bytes", "large 1000", "ok", "x" * 1000, settings=AMPLE),
    Case("any.event.size", "x" * 2001, "request-too-large", '"statusCode":406',
         settings=AMPLE),
    Case("scf.result.locked:unfetched", "hello", "ok", "hello", mode="early",
         broken=("scf.result.locked",), settings=AMPLE),
)

FG = (
    Case("any.result.outcome", "hello", "ok", "hello",
         header=("X-Func-Err-Code", "0")),
    Case("any.result.outcome:error", "fail why", "function-error", "why",
         header=("X-Func-Err-Code", "4002"), settings=AMPLE),
    Case("any.event.timeout", "hang", "timeout",
         '{"error_code":"FSS.4010","error_msg":"call invoke timeout 0.9s"}',
         header=("X-Func-Err-Code", "4010")),
    Case("any.event.timeout:not-fetched", "hello", "not-fetched",
         "call invoke timeout 0.9s", before="last"),
    Case("fg.request.blocks:outstanding", "poll-hang", "timeout", "FSS.4010"),
    Case("any.init.timeout", "hello", "init-timeout",
         '"runtime initialization timed out after 0.9s"', mode="silent",
         settings=SHORT_INIT, header=("X-Func-Err-Code", "4211")),
    Case("any.init.exit", "hello", "init-error", "function initialization failed",
         mode="exit 3", settings=AMPLE, header=("X-Func-Err-Code", "4201")),
    Case("any.outcome.exit", "exit 3", "exit", '"runtime process is exited"',
         settings=AMPLE, header=("X-Func-Err-Code", "4204")),
    Case("any.outcome.exit:status-0", "exit 0", "exit", "FSS.4204", settings=AMPLE),
    Case("any.outcome.exit:killed", "exit -9", "exit", "FSS.4204", settings=AMPLE),
    Case("any.process.group", "fork", "exit", "FSS.4204", settings=AMPLE),
    Case("any.result.first:last-words", "last-words", "ok", "last words",
         settings=AMPLE),
    Case("any.result.size", "large 1001", "response-too-large",
         "response body size 1001 exceeds the limit of 1000", settings=AMPLE,
         header=("X-Is-Func-Err", "true")),
    Case("any.event.size", "x" * 2001, "request-too-large",
         "the size of request body is beyond maximum:2000, body size:2001", status=413,
         settings=AMPLE, header=("X-Func-Err-Code", "1201")),
    Case("fg.result.unknown-id", "wrong-id nobody", "ok", "HTTP/1.1 404 ",
         broken=("fg.result.unknown-id",), settings=AMPLE),
    Case("fg.result.unknown-id:empty", "wrong-id ", "ok", '"error_code"',
         broken=("fg.result.unknown-id",), settings=AMPLE),
    Case("fg.result.unknown-id:early", "hello", "ok", "hello", mode="early",
         broken=("fg.result.unknown-id",), settings=AMPLE),
)

PULL = (
    Case("any.http.malformed:start-line", "garbage", "ok", "HTTP/1.1 400 ",
         broken=("any.http.malformed",), settings=AMPLE),
    Case("any.http.no-effect:complete", "half", "ok", "whole",
         broken=("any.http.no-effect",), settings=AMPLE),
    Case("any.api.unknown:path", "unknown POST /nope", "ok", "HTTP/1.1 404 ",
         broken=("any.api.unknown",), settings=AMPLE),
    Case("any.result.first", "twice", "ok", "first", settings=AMPLE),
)

START = (("timeout_s", AMPLE_S), ("start_timeout_s", TIMEOUT_S))
INIT = (("timeout_s", AMPLE_S), ("initializer", True),
        ("initializer_timeout_s", TIMEOUT_S))
BAD = ("any.http.no-effect",)
FC = (
    Case("fc.invoke.event", "hello", "ok", "hello"),
    Case("fc.invoke.status:fail", "fail why", "function-error", "why", settings=AMPLE,
         header=("X-Fc-Error-Type", "InvocationError")),
    Case("any.event.timeout", "hang", "timeout",
         '{"errorMessage":"Function timed out after 0.9 seconds (maxMemoryUsage: ',
         header=("X-Fc-Error-Type", "InvocationError")),
    Case("fc.start.failed:deadline", "hello", "start-error",
         '"Code":"FunctionNotStarted"', mode="silent", settings=START, status=412),
    Case("fc.start.port:bind", "hello", "start-error", "127.0.0.1", mode="loopback",
         settings=START, status=412),
    Case("fc.start.failed:exit", "hello", "start-error", '"Code":"CAExited"',
         mode="exit 3", settings=AMPLE, status=412),
    Case("fc.initialize.failed", "hello", "init-error", "errorMessage", settings=INIT,
         mode="initialize status 404", header=("X-Fc-Error-Type", "InitializationError")),
    Case("fc.initialize.failed:500", "hello", "init-error", "errorMessage",
         settings=INIT, mode="initialize status 500"),
    Case("fc.initialize.failed:garbage", "hello", "init-error", "errorMessage",
         settings=INIT, mode="initialize garbage"),
    Case("fc.initialize.failed:exit", "hello", "init-error", "errorMessage",
         settings=INIT, mode="initialize exit 3"),
    Case("any.init.timeout", "hello", "init-timeout",
         '{"errorMessage":"Initializer timed out after 0.9 seconds"}', settings=INIT,
         mode="initialize hang", header=("X-Fc-Error-Type", "InitializationError")),
    Case("any.outcome.exit", "exit 3", "exit", '{"errorMessage":"Process exited '
         'unexpectedly before completing request (duration: ', settings=AMPLE,
         header=("X-Fc-Error-Type", "InvocationError")),
    Case("any.outcome.exit:status-0", "exit 0", "exit", "Process exited",
         settings=AMPLE),
    Case("any.outcome.exit:killed", "exit -9", "exit", "Process exited",
         settings=AMPLE),
    Case("fc.outcome.bad-response:closed", "close", "bad-response",
         '"Code":"BadResponse"', settings=AMPLE, status=502),
    Case("fc.outcome.bad-response:garbage", "garbage", "bad-response",
         '"Code":"BadResponse"', broken=("any.http.malformed",), settings=AMPLE,
         status=502),
    Case("fc.outcome.bad-response:half", "half", "bad-response", '"Code":"BadResponse"',
         broken=BAD, settings=AMPLE, status=502),
    Case("fc.outcome.bad-response:half-head", "half-head", "bad-response",
         '"RequestId":"%"', broken=BAD, settings=AMPLE, status=502),
    Case("fc.outcome.bad-response:lengths", "two-lengths", "bad-response",
         "Content-Length", broken=("any.http.framing",), settings=AMPLE, status=502),
    Case("fc.limits.result", "large 1001", "response-too-large", '"Code":"BadResponse"',
         settings=AMPLE, status=502),
    Case("fc.limits.response", "head 8193", "response-too-large",
         '"Code":"BadResponse"', settings=AMPLE, status=502),
    Case("any.event.size", "x" * 2001, "request-too-large",
         '"Code":"InvalidArgument"', settings=AMPLE, status=400),
    Case("fc.answer.outcome:other", "status 500", "ok", "status", settings=AMPLE),
    Case("fc.answer.outcome:status", "status 404", "function-error", "status",
         settings=AMPLE),
)

CASES: List[Tuple[str, Case]] = (
    [("scf", case) for case in SCF + PULL] + [("fg", case) for case in FG + PULL]
    + [("fc", case) for case in FC])


def platform_for(protocol: str, folder: pathlib.Path, case: Case,
                 **more: Any) -> Platform:
    """Return a platform whose first instance has the fault of the case."""
    settings: Dict[str, Any] = {
        "timeout_s": TIMEOUT_S, "result_bytes": RESULT_BYTES,
        "event_bytes": EVENT_BYTES, "grace_s": 0.5}
    first = ("port", 0) if protocol == "fc" else ("init_timeout_s", AMPLE_S)
    settings.update([first, *case.settings])
    return Platform(protocol, misbehave.place(folder, case.mode), **{**settings, **more})


def shown_in(outcome: Outcome, case: Case) -> bool:
    """Tell whether the caller's answer holds what it has to."""
    return case.shown.replace("%", outcome.request_id).encode() in outcome.body


def attempt(protocol: str, case: Case, folder: pathlib.Path) -> None:
    """Let the fault happen. AssertionError unless it becomes the outcome it has to."""
    with platform_for(protocol, folder, case) as platform:
        if case.before:
            assert platform.invoke(case.before.encode()).kind == "ok"
        outcome = platform.invoke(case.event.encode())
        assert outcome.kind == case.kind, outcome
        assert outcome.status == case.status and shown_in(outcome, case), outcome
        assert tuple(one.rule for one in outcome.violations) == case.broken, outcome
        assert dict(outcome.headers).get(case.header[0], "") == case.header[1], outcome
        assert outcome.message or outcome.kind == "ok", outcome
        after_last_words(platform, case)
        again = platform.invoke(b"next")
        assert again.body == b"next", again
        assert sum(platform.counts[kind] for kind in ("ok", case.kind)) > 0


def after_last_words(platform: Platform, case: Case) -> None:
    """Wait for the end of a process that ends after its result."""
    instances = list(platform.instances)
    if case.event == "last-words":
        for instance in instances:
            assert instance.process is not None
            assert instance.process.exited.wait(10)
            instance.process.join()


# ---- nothing is left ----


def counts() -> Dict[str, object]:
    """Count what this process holds: files, threads, and processes below it."""
    try:
        children = os.waitpid(-1, os.WNOHANG)[0] + 1
    except ChildProcessError:
        children = 0
    return {"files": len(os.listdir("/proc/self/fd")), "children": children,
            "threads": sorted(thread.name for thread in threading.enumerate())}


def work(protocol: str, place: pathlib.Path) -> None:
    """Try every case in this process; print what was wrong and what was left behind."""
    for number, (of, case) in enumerate(CASES):
        if of != protocol:
            continue
        before, wrong = counts(), ""
        try:
            attempt(protocol, case, place / str(number))
        except AssertionError:
            wrong = traceback.format_exc()
        after = counts()
        left = "" if before == after else "%s, then %s" % (before, after)
        print(json.dumps([protocol, case.rule, wrong, left]), flush=True)


if __name__ == "__main__":
    work(sys.argv[1], pathlib.Path(sys.argv[2]))
