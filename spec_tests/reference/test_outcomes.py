# test_outcomes.py: every outcome, by a process that really misbehaves (MIT).
"""Let a bootstrap break one thing after the other; the platform goes on each time.

Each case is a fault, the outcome that it has to become and what the caller sees then.
The cases run beside each other; each test looks its result up.
"""

import concurrent.futures
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

import pytest
import scripted_bootstrap
from emulator import Platform
from harness import event, processes, until

LIMIT_S, AMPLE_S = 0.9, 30.0  # enough for the event that comes next, on a busy machine
RESULT_BYTES, EVENT_BYTES = 1000, 3000
SHORT_INIT = {"init_timeout_s": LIMIT_S}
SHORT = {"timeout_s": LIMIT_S}
HALF = "POST {response} HTTP/1.1\r\nContent-Length: 100\r\n\r\nhalf"
WHOLE = "POST {response} HTTP/1.1\r\nContent-Length: 5\r\n\r\nwhole"
POLL = "GET {next} HTTP/1.1\r\n\r\n"
READY = "POST /runtime/init/ready HTTP/1.1\r\nContent-Length: 0\r\n\r\n"
Steps = List[List[Any]]


class Case(NamedTuple):
    """A fault: the script of the event, or of the first process before it; then what is
    to be seen: `shown` is a part of the body, where % is the request id."""

    rule: str
    kind: str
    shown: str
    steps: Steps = []
    start: Steps = []
    plan: Dict[str, Any] = {}
    settings: Dict[str, Any] = {}
    broken: Tuple[str, ...] = ()   # rules
    status: int = 200
    header: Tuple[str, str] = ("", "")
    first: bool = False            # an event that comes before it is ok


ENDS: Tuple[Tuple[str, Steps], ...] = (
    ("3", [["exit", 3]]), ("0", [["exit", 0]]), ("killed", [["kill", 9]]),
    ("child", [["fork"], ["exit", 0]]))
SCF = [
    Case("any.result.outcome:error", "function-error",
         '"errorMessage":"user code exception caught","requestId":"%","stackTrace":'
         '"why","statusCode":430', [["fail", "why"]]),
    Case("any.event.timeout", "timeout",
         '{"errorCode":-1,"errorMessage":"Invoking task timed out after 0.9 seconds",'
         '"requestId":"%","statusCode":433}', [["hang"]], settings=SHORT),
    Case("any.event.timeout:not-fetched", "not-fetched",
         '"Waiting for event timed out after 0.9 seconds"', plan={"after": [["hang"]]},
         settings=SHORT, first=True),
    Case("any.event.timeout:not-fetched-at-start", "not-fetched",
         '"Waiting for event timed out after 0.9 seconds"', settings=SHORT,
         start=[["ask", READY], ["hang"]]),
    Case("any.init.timeout", "init-timeout",
         '"Initializing task timed out after 0.9 seconds"', start=[["hang"]],
         settings=SHORT_INIT),
    Case("scf.next.blocks:before-ready", "init-timeout", '"statusCode":450',
         start=[["ask", POLL]], settings=SHORT_INIT, broken=("scf.ready.before-next",)),
    Case("any.init.exit", "init-error", '"User process exit when initializing"',
         start=[["exit", 3]]),
    Case("any.outcome.exit:never-served", "exit", '"User process exit when running"',
         start=[["ask", READY], ["exit", 3]]),
    *[Case("any.outcome.exit:" + name, "exit", '"User process exit when running"',
           steps) for name, steps in ENDS],
    Case("any.result.size", "response-too-large", '"statusCode":407',
         [["say", "x" * 1001]]),
    Case("any.event.size", "request-too-large", '"statusCode":406',
         [["say", "x" * 3000]])]

FG = [
    Case("any.result.outcome", "ok", "hello", header=("X-Func-Err-Code", "0")),
    Case("any.result.outcome:error", "function-error", "why", [["fail", "why"]],
         header=("X-Func-Err-Code", "4002")),
    Case("any.event.timeout", "timeout",
         '{"error_code":"FSS.4010","error_msg":"call invoke timeout 0.9s"}', [["hang"]],
         header=("X-Func-Err-Code", "4010"), settings=SHORT),
    Case("any.event.timeout:not-fetched", "not-fetched", "call invoke timeout 0.9s",
         plan={"after": [["hang"]]}, settings=SHORT, first=True),
    Case("any.init.timeout", "init-timeout",
         '"runtime initialization timed out after 0.9s"', start=[["hang"]],
         settings=SHORT_INIT, header=("X-Func-Err-Code", "4211")),
    Case("any.init.exit", "init-error", "function initialization failed",
         start=[["exit", 3]], header=("X-Func-Err-Code", "4201")),
    *[Case("any.outcome.exit:" + name, "exit", '"runtime process is exited"', steps,
           header=("X-Func-Err-Code", "4204")) for name, steps in ENDS],
    Case("any.result.size", "response-too-large",
         "response body size 1001 exceeds the limit of 1000", [["say", "x" * 1001]],
         header=("X-Is-Func-Err", "true")),
    Case("any.event.size", "request-too-large",
         "the size of request body is beyond maximum:3000, body size:", status=413,
         steps=[["say", "x" * 3000]], header=("X-Func-Err-Code", "1201"))]

PULLED = [
    Case("any.http.no-effect:half", "ok", "afterwards",
         [["half", HALF], ["say", "afterwards"]], broken=("any.http.no-effect",)),
    Case("any.http.no-effect:half-and-end", "exit", "exit",
         [["post", HALF], ["exit", 0]], broken=("any.http.no-effect",)),
    Case("any.result.first", "ok", "whole", [["ask", WHOLE]]),
    Case("any.result.first:last-words", "ok", "whole", [["post", WHOLE], ["exit", 7]])]

LATE_INIT = {"initializer": True, "initializer_timeout_s": LIMIT_S}
FAILED = ("HTTP/1.1 404 X\r\nx-fc-status: 404\r\nContent-Length: 3\r\n\r\nwhy")
INIT_FAILED = ("X-Fc-Error-Type", "InitializationError")
FC = [
    Case("fc.invoke.status:fail", "function-error", "why", [["send", FAILED]],
         header=("X-Fc-Error-Type", "InvocationError")),
    Case("any.event.timeout", "timeout",
         '{"errorMessage":"Function timed out after 0.9 seconds (maxMemoryUsage: ',
         [["hang"]], header=("X-Fc-Error-Type", "InvocationError"), settings=SHORT),
    Case("fc.initialize.failed:exit", "init-error", "errorMessage",
         settings={"initializer": True}, plan={"/initialize": [["exit", 3]]},
         header=INIT_FAILED),
    Case("any.init.timeout", "init-timeout",
         '{"errorMessage":"Initializer timed out after 0.9 seconds"}',
         settings=LATE_INIT, plan={"/initialize": [["hang"]]}, header=INIT_FAILED),
    Case("fc.limits.result", "response-too-large", '"Code":"BadResponse"',
         [["say", "x" * 1001]], status=502),
    Case("any.event.size", "request-too-large", '"Code":"InvalidArgument"',
         [["say", "x" * 3000]], status=400)]

CASES = [*(("scf", case) for case in SCF + PULLED),
         *(("fg", case) for case in FG + PULLED), *(("fc", case) for case in FC)]


def attempt(protocol: str, case: Case, folder: str) -> None:
    """Let the fault happen. AssertionError unless it becomes the outcome it has to."""
    limit = {"port": 0} if protocol == "fc" else {"init_timeout_s": AMPLE_S}
    settings: Dict[str, Any] = {**limit, "timeout_s": AMPLE_S, "grace_s": 0.5,
                                "result_bytes": RESULT_BYTES,
                                "event_bytes": EVENT_BYTES, **case.settings}
    with Platform(protocol, folder, **settings) as platform:
        if case.first:
            assert platform.invoke(b"first").kind == "ok"
        outcome = platform.invoke(event(*case.steps) if case.steps else b"hello")
        assert (outcome.kind, outcome.status) == (case.kind, case.status), outcome
        shown = case.shown.replace("%", outcome.request_id).encode()
        assert shown in outcome.body, outcome
        assert tuple(one.rule for one in outcome.violations) == case.broken, outcome
        assert dict(outcome.headers).get(case.header[0], "") == case.header[1], outcome
        assert outcome.message or outcome.kind == "ok", outcome
        if case.steps[-1:] == [["exit", 7]]:  # it ends after its result
            assert until(lambda: not platform.state()["instances"])
        assert platform.invoke(b"next").body == b"next"
    assert until(lambda: processes(folder) == [])  # a child may take a moment


Tried = Dict[Tuple[str, str], "concurrent.futures.Future[None]"]


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tried]:
    """Start all cases; no folder is written once the first process is started."""
    place = tmp_path_factory.mktemp("outcomes")
    folders = [scripted_bootstrap.place(
        place / str(number), {**case.plan, "start": case.start})
        for number, (_, case) in enumerate(CASES)]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        yield {(protocol, case.rule): pool.submit(attempt, protocol, case, folder)
               for (protocol, case), folder in zip(CASES, folders)}


@pytest.mark.parametrize("protocol,rule", [(of, case.rule) for of, case in CASES])
def test_outcome(protocol: str, rule: str, tried: Tried) -> None:
    """The fault becomes this outcome in this form, and the next event succeeds."""
    tried[protocol, rule].result(60)
