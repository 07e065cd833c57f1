# test_outcomes.py: every outcome, by a process that really misbehaves (MIT).
"""Let a bootstrap break one thing after the other; the platform goes on each time.

Each case is a fault, the outcome that it has to become and what the caller sees then.
After it the same platform answers the next event, with another instance where the first
one is gone. The cases run beside each other; each test looks its result up.
"""

import concurrent.futures
import os
import pathlib
import select
from typing import Any, Dict, Iterator, List, NamedTuple, Tuple

import pytest
import scripted_bootstrap
from emulator import Outcome, Platform
from harness import PROTOCOLS, PULL, background, code, event, processes, until

__all__ = ["code"]

LIMIT_S, AMPLE_S = 0.9, 30.0  # enough for the event that comes next, on a busy machine
RESULT_BYTES, EVENT_BYTES = 1000, 3000
SHORT_INIT = {"init_timeout_s": LIMIT_S}
SHORT = {"timeout_s": LIMIT_S}
HALF = "POST {response} HTTP/1.1\r\nContent-Length: 100\r\n\r\nhalf"
WHOLE = "POST {response} HTTP/1.1\r\nContent-Length: 5\r\n\r\nwhole"
POLL = "GET {next} HTTP/1.1\r\n\r\n"
READY = "POST /runtime/init/ready HTTP/1.1\r\nContent-Length: 0\r\n\r\n"
STRAY = "POST /v1/runtime/invocation/response/%s HTTP/1.1\r\nContent-Length: 0\r\n\r\n"
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
    maybe: Tuple[str, ...] = ()    # rules: whether they are seen is a race
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
    Case("any.limits.clock:refetch", "timeout", '"statusCode":433',
         [["ask", POLL], ["sleep", 0.3], ["ask", POLL], ["hang"]], settings=SHORT,
         broken=("scf.response.order",) * 2),
    Case("scf.response.order:twice", "ok", "late",
         [["ask", POLL], ["ask", POLL], ["say", "late"]],
         broken=("scf.response.order",) * 2),
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
         [["say", "x" * 3000]]),
    Case("scf.result.locked:early", "ok", "hello", start=[["ask", WHOLE]],
         broken=("scf.result.locked",))]

FG = [
    Case("any.result.outcome", "ok", "hello", header=("X-Func-Err-Code", "0")),
    Case("any.result.outcome:error", "function-error", "why", [["fail", "why"]],
         header=("X-Func-Err-Code", "4002")),
    Case("any.event.timeout", "timeout",
         '{"error_code":"FSS.4010","error_msg":"call invoke timeout 0.9s"}', [["hang"]],
         header=("X-Func-Err-Code", "4010"), settings=SHORT),
    Case("any.event.timeout:not-fetched", "not-fetched", "call invoke timeout 0.9s",
         plan={"after": [["hang"]]}, settings=SHORT, first=True),
    Case("fg.request.blocks:outstanding", "timeout", "FSS.4010", [["ask", POLL]],
         settings=SHORT),
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
         steps=[["say", "x" * 3000]], header=("X-Func-Err-Code", "1201")),
    Case("fg.result.unknown-id", "ok", "HTTP/1.1 404 ", [["ask", STRAY % "nobody"]],
         broken=("fg.result.unknown-id",)),
    Case("fg.result.unknown-id:empty", "ok", '"error_code"', [["ask", STRAY % ""]],
         broken=("fg.result.unknown-id",)),
    Case("fg.result.unknown-id:early", "ok", "hello", start=[["ask", WHOLE]],
         broken=("fg.result.unknown-id",))]

PULLED = [
    Case("any.http.malformed:start-line", "ok", "HTTP/1.1 400 ",
         [["ask", "\x16\x03\x01 hello\r\n\r\n"]], broken=("any.http.malformed",)),
    Case("any.http.no-effect:half", "ok", "afterwards",
         [["half", HALF], ["say", "afterwards"]], broken=("any.http.no-effect",)),
    Case("any.http.no-effect:half-and-end", "exit", "exit",
         [["post", HALF], ["exit", 0]], broken=("any.http.no-effect",)),
    Case("any.api.unknown:path", "ok", "HTTP/1.1 404 ",
         [["ask", "POST /nope HTTP/1.1\r\nContent-Length: 0\r\n\r\n"]],
         broken=("any.api.unknown",)),
    Case("any.result.first", "ok", "whole", [["ask", WHOLE]]),
    Case("any.result.first:last-words", "ok", "whole", [["post", WHOLE], ["exit", 7]])]
DROPS: Steps = [["drop", POLL], ["drop", POLL], ["say", "left"]]
SCF.append(Case("any.poll.dead", "ok", "left", DROPS,
                maybe=("scf.response.order",)))
FG.append(Case("any.poll.dead", "ok", "left", DROPS))

INIT = {"initializer": True}
LATE_INIT = {"initializer": True, "initializer_timeout_s": LIMIT_S}
NOT_FOUND = "HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n"
FAILED = ("HTTP/1.1 404 X\r\nx-fc-status: 404\r\nContent-Length: 3\r\n\r\nwhy")
INIT_FAILED = ("X-Fc-Error-Type", "InitializationError")
FC = [
    Case("fc.invoke.status:fail", "function-error", "why", [["send", FAILED]],
         header=("X-Fc-Error-Type", "InvocationError")),
    Case("any.event.timeout", "timeout",
         '{"errorMessage":"Function timed out after 0.9 seconds (maxMemoryUsage: ',
         [["hang"]], header=("X-Fc-Error-Type", "InvocationError"), settings=SHORT),
    Case("fc.start.failed:deadline", "start-error", '"Code":"FunctionNotStarted"',
         start=[["hang"]], settings={"start_timeout_s": LIMIT_S}, status=412),
    Case("fc.start.port:bind", "start-error", "127.0.0.1", status=412,
         plan={"host": "127.0.0.1"}, settings={"start_timeout_s": LIMIT_S}),
    Case("fc.start.failed:exit", "start-error", '"Code":"CAExited"',
         start=[["exit", 3]], status=412),
    *[Case("fc.initialize.failed:" + name, "init-error", "errorMessage",
           settings=INIT, plan={"/initialize": steps}, header=INIT_FAILED)
      for name, steps in (("404", [["send", NOT_FOUND]]), ("exit", [["exit", 3]]),
                          ("garbage", [["send", "\x16\r\n\r\n"], ["close"]]))],
    Case("any.init.timeout", "init-timeout",
         '{"errorMessage":"Initializer timed out after 0.9 seconds"}',
         settings=LATE_INIT, plan={"/initialize": [["hang"]]}, header=INIT_FAILED),
    *[Case("any.outcome.exit:" + name, "exit", '{"errorMessage":"Process exited '
           'unexpectedly before completing request (duration: ', steps,
           header=("X-Fc-Error-Type", "InvocationError")) for name, steps in ENDS],
    Case("fc.outcome.bad-response:half-head", "bad-response",
         '"RequestId":"%","Code":"BadResponse"',
         [["send", "HTTP/1.1 200 OK\r\nContent-Le"], ["close"]],
         broken=("any.http.no-effect",), status=502),
    Case("fc.outcome.bad-response:lengths", "bad-response", "Content-Length",
         [["send", "HTTP/1.1 200 X\r\nContent-Length: 0\r\nContent-Length: 0\r\n\r\n"]],
         broken=("any.http.framing",), status=502),
    Case("fc.limits.result", "response-too-large", '"Code":"BadResponse"',
         [["say", "x" * 1001]], status=502),
    Case("any.event.size", "request-too-large", '"Code":"InvalidArgument"',
         [["say", "x" * 3000]], status=400),
    Case("fc.answer.outcome:status", "function-error", "", [["send", NOT_FOUND]],
         broken=("fc.invoke.status",)),
    *[Case("fc.invoke.status:%d" % status, "ok", "page",
           [["send", "HTTP/1.1 %d X\r\nContent-Length: 4\r\n\r\npage" % status]],
           broken=("fc.invoke.status",)) for status in (205, 302, 405, 500)],
    Case("fc.invoke.status:field", "ok", "page",
         [["send", "HTTP/1.1 500 X\r\nX-Fc-Status: 200\r\nContent-Length: 4\r\n\r\n"
           "page"]])]

CASES = [*(("scf", case) for case in SCF + PULLED),
         *(("fg", case) for case in FG + PULLED), *(("fc", case) for case in FC)]


def platform_for(protocol: str, folder: str, case: Case, **more: Any) -> Platform:
    """Return a platform with the settings of the case."""
    settings: Dict[str, Any] = {"timeout_s": AMPLE_S, "grace_s": 0.5, **case.settings,
                                "result_bytes": RESULT_BYTES,
                                "event_bytes": EVENT_BYTES}
    settings.setdefault(*(("port", 0) if protocol == "fc" else
                          ("init_timeout_s", AMPLE_S)))
    return Platform(protocol, folder, **{**settings, **more})


def attempt(protocol: str, case: Case, folder: str) -> None:
    """Let the fault happen. AssertionError unless it becomes the outcome it has to."""
    with platform_for(protocol, folder, case) as platform:
        if case.first:
            assert platform.invoke(b"first").kind == "ok"
        outcome = platform.invoke(event(*case.steps) if case.steps else b"hello")
        assert (outcome.kind, outcome.status) == (case.kind, case.status), outcome
        shown = case.shown.replace("%", outcome.request_id).encode()
        assert shown in outcome.body, outcome
        assert tuple(one.rule for one in outcome.violations
                     if one.rule not in case.maybe) == case.broken, outcome
        assert dict(outcome.headers).get(case.header[0], "") == case.header[1], outcome
        assert outcome.message or outcome.kind == "ok", outcome
        if case.steps[-1:] == [["exit", 7]]:  # it ends after its result
            assert until(lambda: not platform.state()["instances"])
        assert platform.invoke(b"next").body == b"next"
    assert until(lambda: processes(folder) == [])  # a child may take a moment


@pytest.fixture(scope="module")
def tried(tmp_path_factory: pytest.TempPathFactory) -> Iterator[
        Dict[Tuple[str, str], "concurrent.futures.Future[None]"]]:
    """Start all cases; no folder is written once the first process is started."""
    place = tmp_path_factory.mktemp("outcomes")
    folders = [scripted_bootstrap.place(
        place / str(number), {**case.plan, "start": case.start})
        for number, (_, case) in enumerate(CASES)]
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        yield {(protocol, case.rule): pool.submit(attempt, protocol, case, folder)
               for (protocol, case), folder in zip(CASES, folders)}


@pytest.mark.parametrize("protocol,rule", [(of, case.rule) for of, case in CASES])
def test_outcome(protocol: str, rule: str, tried: Dict[
        Tuple[str, str], "concurrent.futures.Future[None]"]) -> None:
    """The fault becomes this outcome in this form, and the next event succeeds."""
    tried[protocol, rule].result(60)


@PULL
@pytest.mark.parametrize("mode", (0o755, 0o644), ids=("missing", "not executable"))
def test_any_start_executable__mended(protocol: str, mode: int, code: str) -> None:
    """A bootstrap put in order after a start-error serves the next event."""
    program = pathlib.Path(code, "bootstrap")
    program.chmod(mode)
    away = program.rename(program.with_name("away")) if mode == 0o755 else program
    with Platform(protocol, code) as platform:
        assert platform.invoke(b"hello").kind == "start-error"
        away.rename(program).chmod(0o755)
        assert platform.invoke(b"hello").kind == "ok"


@PROTOCOLS
def test_any_outcome_one__close_cancels(protocol: str, code: str) -> None:
    """An event that runs when the platform is closed is cancelled, once."""
    outcomes: List[Outcome] = []
    case = Case("", "", "")
    platform = platform_for(protocol, code, case, grace_s=0)
    caller = background(lambda: outcomes.append(
        platform.invoke(event(["note", "here"], ["hang"]))))
    assert until(pathlib.Path(code, "notes").exists)
    platform.close()
    caller.join(10)
    assert [outcome.kind for outcome in outcomes] == ["cancelled"]


@PULL
def test_any_event_requeue(protocol: str, code: str) -> None:
    """An event that an instance which served before did not fetch is not lost."""
    gate = pathlib.Path(code, "gate")
    os.mkfifo(gate)
    scripted_bootstrap.place(pathlib.Path(code),
                             {"after": [["wait", str(gate)], ["exit", 3]]})
    outcomes: List[Outcome] = []
    with Platform(protocol, code, timeout_s=AMPLE_S, max_instances=1) as platform:
        assert platform.invoke(b"first").body == b"first"
        caller = background(lambda: outcomes.append(platform.invoke(b"second")))
        assert until(lambda: "issued" in str(platform.state()["instances"]))
        scripted_bootstrap.tell(str(gate))
        caller.join(20)
        assert [one.body for one in outcomes] == [b"second"]
        assert platform.counts["cold_starts"] == 2 and platform.counts["ok"] == 2


@PROTOCOLS
def test_any_process_group__leftovers_child(protocol: str, code: str) -> None:
    """A child that ignores SIGTERM ends with its bootstrap."""
    scripted_bootstrap.place(pathlib.Path(code), {"start": [["on-term", "ignore"]]})
    with platform_for(protocol, code, Case("", "", "")) as platform:
        child = int(platform.invoke(event(["fork"])).body)
        ended = os.pidfd_open(child)
    assert select.select([ended], [], [], 5)[0] == [ended]
    os.close(ended)
