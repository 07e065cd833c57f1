# test_outcomes.py: what the emulator notes of a bootstrap that breaks a rule (MIT).
"""A real process breaks one rule after the other: the outcome is what the kit asks for,
and `Outcome.violations` names the rules, of which the kit knows nothing.
"""

import pathlib
from typing import Any, Dict, List, NamedTuple, Tuple

import pytest
import scripted_bootstrap
from emulator import Platform
from harness import code, event, processes, until

__all__ = ["code"]
HALF = "POST {response} HTTP/1.1\r\nContent-Length: 100\r\n\r\nhalf"
WHOLE = "POST {response} HTTP/1.1\r\nContent-Length: 5\r\n\r\nwhole"
POLL = "GET {next} HTTP/1.1\r\n\r\n"
PAGE = "HTTP/1.1 500 X\r\nContent-Length: 4\r\n\r\npage"
Steps = List[List[Any]]


class Case(NamedTuple):
    """The script of an event, or of the first process; then what is to be seen."""

    name: str
    protocols: str
    kind: str
    body: bytes
    broken: Tuple[str, ...]
    steps: Steps = []
    start: Steps = []


CASES = [
    Case("polls twice", "scf", "ok", b"late", ("scf.response.order",) * 2,
         [["ask", POLL], ["ask", POLL], ["say", "late"]]),
    Case("polls before ready", "scf", "init-timeout", b"", ("scf.ready.before-next",),
         start=[["ask", POLL]]),
    Case("half a result", "scf fg", "ok", b"after", ("any.http.no-effect",),
         [["half", HALF], ["say", "after"]]),
    Case("half a result, then ends", "scf fg", "exit", b"", ("any.http.no-effect",),
         [["post", HALF], ["exit", 0]]),
    Case("a whole one, then ends", "scf fg", "ok", b"whole", (),
         [["post", WHOLE], ["exit", 7]]),
    Case("answers 500", "fc", "ok", b"page", ("fc.invoke.status",), [["send", PAGE]])]


@pytest.mark.parametrize("protocol,case", [
    (protocol, case) for case in CASES for protocol in case.protocols.split()],
    ids=lambda value: getattr(value, "name", value))
def test_any_outcome_one__noted(protocol: str, case: Case, code: str) -> None:
    """The outcome is there, what was broken is noted, and the next event succeeds."""
    settings: Dict[str, Any] = {"port": 0} if protocol == "fc" else {
        "init_timeout_s": 0.9 if case.start else 30}
    scripted_bootstrap.place(pathlib.Path(code), {"start": case.start})
    with Platform(protocol, code, **settings) as platform:
        outcome = platform.invoke(event(*case.steps) if case.steps else b"hello")
        assert outcome.kind == case.kind
        assert outcome.body == case.body or not case.body
        assert tuple(one.rule for one in outcome.violations) == case.broken
        if case.steps[-1:] == [["exit", 7]]:  # it ends after its result
            assert until(lambda: not platform.state()["instances"])
        assert platform.invoke(b"next").body == b"next"
    assert until(lambda: processes(code) == [])
