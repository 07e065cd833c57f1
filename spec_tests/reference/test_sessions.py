# test_sessions.py: the rules of the platform files that need no I/O (MIT).
"""What the kit's generated calls leave out: fc's states, the last polls, odd paths."""

import itertools
from typing import Any, Dict, List, Tuple

import fc_platform
import fg_platform
import pytest
import scf_platform
import spec
from harness import PULL

RULES: Dict[str, Any] = {"fc": fc_platform, "scf": scf_platform, "fg": fg_platform}
POLL = {"scf": "next", "fg": "request"}


def rows_of(protocol: str) -> List[Dict[str, str]]:
    """Return the rows of the states table in SPEC.md."""
    return spec.load().table(protocol, "state", "call", "action", "next state",
                             "rule").records()


@PULL
def test_states_table_is_complete(protocol: str) -> None:
    """Each call of each endpoint has a row in each state; `issue` in idle alone."""
    calls = {"scf": ("ready", "next", "response", "error", "oversize"),
             "fg": ("request", "response", "error", "oversize", "stray")}[protocol]
    states = ("starting", "idle", "issued", "running", "stopping")
    listed = {(row["state"], row["call"]) for row in rows_of(protocol)}
    assert listed == {*itertools.product(states, calls), ("idle", "issue")}


@PULL
@pytest.mark.parametrize("reached", ([False], [False, False], [True], [True, False],
                                     [False, True]), ids=str)
def test_any_poll_dead__delivered(protocol: str, reached: List[bool]) -> None:
    """An event that reached no poll waits for the next; one is enough."""
    session = RULES[protocol].Session()
    if protocol == "scf":
        session.receive("ready", "first")
    for number in range(len(reached)):
        session.receive(POLL[protocol], number)
    session.issue("id-2")
    sent = len(session.take_polls())
    for arrived in reached:
        if sent:
            sent += len(session.delivered("id-2", arrived)) - 1
    assert session.state == ("running" if any(reached) else "issued")
    if not any(reached):
        assert session.receive(POLL[protocol], "alive").action == "deliver"


PUSH_CALLS = ("connect", "initialized", "refused", "invoke", "settled", "quiet", "stop")
PUSH_WAYS = {"starting": (), "initializing": ("connect",),
             "idle": ("connect", "initialized"),
             "busy": ("connect", "initialized", "invoke"),
             "frozen": ("connect", "initialized", "quiet"),
             "stopping": ("connect", "initialized", "stop")}


@pytest.mark.parametrize("state", PUSH_WAYS)
@pytest.mark.parametrize("call", PUSH_CALLS)
def test_push_session_follows_the_states_table(state: str, call: str) -> None:
    """A call has the action and next state of SPEC.md; one not listed does nothing."""
    told = {(row["state"], row["call"]): (row["action"], row["next state"])
            for row in rows_of("fc")}
    session = fc_platform.Session(2)
    for way in PUSH_WAYS[state]:
        session.move(way)
    assert session.state == state
    action = session.move(call)
    assert (action, session.state) == told.get((state, call), ("", state))


FG, SCF = "/v1/runtime/invocation/", "/runtime/invocation/"
FOUND: List[Tuple[str, str, str, Tuple[str, str, int]]] = [
    ("scf", "GET", SCF + "next?a=b", ("next", "", 200)),
    ("fg", "POST", FG + "error/abc?x=/y", ("error", "abc", 200)),
    ("fg", "POST", FG + "response/", ("response", "", 200)),
    ("fg", "POST", FG + "response/%2e%2e", ("response", "%2e%2e", 200)),
    ("fg", "POST", FG + "response/..", ("response", "..", 200)),
    *[(protocol, method, target, ("", "", 405)) for protocol, method, target in (
        ("scf", "GET", "/runtime/init/ready"), ("scf", "POST", SCF + "next"),
        ("scf", "get", SCF + "next"), ("scf", "HEAD", SCF + "next"),
        ("fg", "PUT", FG + "error/abc"))],
    *[("scf", "GET", target, ("", "", 404)) for target in (
        "/runtime//invocation/next", SCF + "../invocation/next", SCF + "%6eext",
        "/Runtime/invocation/next", "*", "", FG + "request", SCF + "response/abc")],
    *[("fg", "POST", FG + rest, ("", "", 404)) for rest in (
        "response/a/b", "response//abc", "response/../response/abc", "response/abc/",
        "request/abc")]]


@pytest.mark.parametrize("protocol,method,target,found", FOUND)
def test_any_api_unknown__find_call(protocol: str, method: str, target: str,
                                    found: Tuple[str, str, int]) -> None:
    """Only the paths of the endpoints table are calls; 405 is for another method."""
    assert RULES[protocol].find_call(method, target) == found
