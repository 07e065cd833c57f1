# test_emulator_outcomes.py: every outcome, by a process that really misbehaves (MIT).
"""What the cases of outcomes.py came to, and what such a process does besides."""

import json
import os
import pathlib
import select
import subprocess
import sys
import threading
from typing import Any, Dict, Iterator, List, Tuple

import misbehave
import outcomes
import pytest
from emulator import HttpRequest, Outcome, Platform
from harness import within
from outcomes import AMPLE, CASES, Case, platform_for

HTTP_CASES = [
    ("fc.http.pass", "/status/418", 418, "ok"),
    ("fc.answer.outcome:http", "/status/404", 404, "ok"),
    ("fc.answer.outcome:field", "/fail/x", 404, "function-error"),
    ("any.outcome.exit", "/exit/3", 502, "exit"),
    ("fc.outcome.bad-response", "/garbage", 502, "bad-response"),
    ("any.event.timeout", "/hang", 502, "timeout")]


@pytest.mark.parametrize("rule,path,status,kind", HTTP_CASES, ids=[
    "%s-%s" % (case[0], case[3]) for case in HTTP_CASES])
def test_fc_http_outcome(rule: str, path: str, status: int, kind: str,
                         tmp_path: pathlib.Path) -> None:
    """An HTTP call sees the function's own status, and 502 for its failures."""
    case = Case(rule, "", kind, "", settings=() if kind == "timeout" else AMPLE)
    with platform_for("fc", tmp_path / "code", case) as platform:
        outcome = platform.invoke(b"", http=HttpRequest("GET", path))
        assert (outcome.kind, outcome.status) == (kind, status)
        again = platform.invoke(b"body", http=HttpRequest("POST", "/echo"))
        assert (again.status, again.body) == (200, b"body")


@pytest.mark.parametrize("protocol", ("scf", "fg", "fc"))
def test_any_queue_limit__disabled(protocol: str, tmp_path: pathlib.Path) -> None:
    """The event of a function that may have no instance is throttled at once."""
    code = misbehave.place(tmp_path / "code")
    port: Dict[str, Any] = {"port": 0} if protocol == "fc" else {}
    with Platform(protocol, code, max_instances=0, **port) as platform:
        outcome = within(5, lambda: platform.invoke(b"hello"))
    assert outcome.kind == "throttled"
    assert outcome.status == {"scf": 200, "fg": 429, "fc": 429}[protocol]


@pytest.mark.parametrize("protocol", ("scf", "fg"))
@pytest.mark.parametrize("mode,reason", (("missing", "not exist|not found"),
                                         ("plain", "not executable")))
def test_any_start_executable(protocol: str, mode: str, reason: str,
                              tmp_path: pathlib.Path) -> None:
    """A bootstrap put in order after a start-error serves the next event."""
    folder = tmp_path / "code"
    program = pathlib.Path(misbehave.place(folder)) / "bootstrap"
    program.rename(folder / "away") if mode == "missing" else program.chmod(0o644)
    with Platform(protocol, str(folder)) as platform:
        outcome = platform.invoke(b"hello")
        assert outcome.kind == "start-error"
        assert any(word in outcome.body.decode() for word in reason.split("|"))
        misbehave.place(folder)
        assert platform.invoke(b"hello").kind == "ok"


@pytest.mark.parametrize("protocol", ("scf", "fg", "fc"))
def test_any_outcome_one__close_cancels(protocol: str, tmp_path: pathlib.Path) -> None:
    """An event that runs when the platform is closed is cancelled, once."""
    outcomes: List[Outcome] = []
    started = threading.Event()
    platform = platform_for(
        protocol, tmp_path / "code", Case("", "", "", "", settings=AMPLE), grace_s=0,
        on_log=lambda data: started.set() if b"equest" in data else None)
    caller = threading.Thread(target=lambda: outcomes.append(platform.invoke(b"hang")))
    caller.start()
    assert started.wait(10)
    platform.close()
    caller.join(10)
    assert [outcome.kind for outcome in outcomes] == ["cancelled"]


@pytest.mark.parametrize("protocol", ("scf", "fg"))
def test_any_log_streams__drained(protocol: str, tmp_path: pathlib.Path) -> None:
    """A bootstrap that prints much is not held up, and 4 KB are kept."""
    case = Case("", "", "", "", settings=AMPLE)
    with platform_for(protocol, tmp_path / "code", case) as platform:
        outcome = platform.invoke(b"print 100000 100000 5")
    assert outcome.body == b"printed" and outcome.log == b"p" * 4096


# ---- every case ----


@pytest.fixture(scope="module", autouse=True)
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[
        Dict[str, "subprocess.Popen[bytes]"]]:
    """Try all cases meanwhile, in processes in which nothing else is counted."""
    started = {protocol: subprocess.Popen(
        [sys.executable, outcomes.__file__, protocol,
         str(tmp_path_factory.mktemp(protocol))], stdout=subprocess.PIPE)
        for protocol in ("scf", "fg", "fc")}
    yield started
    for worker in started.values():
        worker.kill()
        worker.communicate()


@pytest.fixture(scope="module")
def verdicts(workers: Dict[str, "subprocess.Popen[bytes]"]) -> Dict[
        Tuple[str, str], Tuple[str, str]]:
    """Return what was wrong with each case, and what it left."""
    lines = [json.loads(line) for worker in workers.values()
             for line in worker.communicate(timeout=120)[0].splitlines()]
    return {(protocol, rule): (wrong, left) for protocol, rule, wrong, left in lines}


@pytest.mark.parametrize("protocol,rule", [(of, case.rule) for of, case in CASES])
def test_outcome(protocol: str, rule: str,
                 verdicts: Dict[Tuple[str, str], Tuple[str, str]]) -> None:
    """The fault becomes this outcome in this form, and the next event succeeds."""
    wrong, _ = verdicts.get((protocol, rule), ("the worker broke before it", ""))
    assert not wrong, wrong


@pytest.mark.parametrize("protocol", ("scf", "fg", "fc"))
def test_any_process_group__leftovers(
        protocol: str, verdicts: Dict[Tuple[str, str], Tuple[str, str]]) -> None:
    """After each fault no thread, process or open file is more than before."""
    mine = {rule: left for (of, rule), (_, left) in verdicts.items() if of == protocol}
    assert mine and not any(mine.values()), mine


@pytest.mark.parametrize("protocol", ("scf", "fg"))
def test_any_process_group_leftovers(protocol: str, tmp_path: pathlib.Path) -> None:
    """A child that ignores SIGTERM ends with its bootstrap."""
    case = Case("", "", "", "", settings=AMPLE)
    with platform_for(protocol, tmp_path / "code", case) as platform:
        child = int(platform.invoke(b"child").body)
        os.kill(child, 0)
        ended = os.pidfd_open(child)
    assert select.select([ended], [], [], 5)[0] == [ended]
    os.close(ended)
