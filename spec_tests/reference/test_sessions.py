# test_sessions.py: the rules of the platform files that need no I/O (MIT).
"""Try every (state, call) of the sessions, and the functions that judge.

What is expected stands in SPEC.md (states tables) or here, never in reference/.
"""

import itertools
from typing import Any, Dict, List, Tuple

import fc_platform
import fg_platform
import pytest
import scf_platform
import spec
from harness import PULL

Row = Dict[str, str]
RULES: Dict[str, Any] = {"fc": fc_platform, "scf": scf_platform, "fg": fg_platform}
POLL = {"scf": "next", "fg": "request"}
RESULTS = ("response", "error")
OVERSIZE = "oversize"


def rows_of(protocol: str) -> List[Row]:
    """Return the rows of the states table in SPEC.md."""
    table = spec.load().table(protocol, "state", "call", "action", "next state", "rule")
    return table.records()


# ---- pull sessions ----


@PULL
def test_states_table_is_complete(protocol: str) -> None:
    """Each call of each endpoint has a row in each state; `issue` in idle alone."""
    calls = {"scf": ("ready", "next", *RESULTS, OVERSIZE),
             "fg": ("request", *RESULTS, OVERSIZE, "stray")}[protocol]
    listed = {(row["state"], row["call"]) for row in rows_of(protocol)}
    assert listed == {*itertools.product(STATES, calls), ("idle", "issue")}


@PULL
@pytest.mark.parametrize("reached", ([False], [False, False], [True], [True, False],
                                     [False, True]), ids=str)
def test_any_poll_dead__delivered(protocol: str, reached: List[bool]) -> None:
    """An event that reached no poll waits for the next; one is enough."""
    session = session_in(protocol, "idle")
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


@PULL
@pytest.mark.parametrize("state", ("starting", "idle", "stopping"))
def test_any_poll_dead__withdraw(protocol: str, state: str) -> None:
    """A poll whose client has gone is forgotten, once."""
    session = session_in(protocol, state)
    session.receive(POLL[protocol], "gone")
    assert (session.withdraw("gone"), session.withdraw("gone")) == (True, False)
    assert session.parked == []


# ---- push sessions ----

PUSH_CALLS = ("connect", "initialized", "refused", "invoke", "settled", "quiet", "stop")
PUSH_WAYS = {"starting": (), "initializing": ("connect",),
             "idle": ("connect", "initialized"),
             "busy": ("connect", "initialized", "invoke"),
             "frozen": ("connect", "initialized", "quiet"),
             "stopping": ("connect", "initialized", "stop")}


def push_session_in(state: str, concurrency: int = 2) -> fc_platform.Session:
    """Return a session in that state by the shortest way."""
    session = fc_platform.Session(concurrency)
    for call in PUSH_WAYS[state]:
        session.move(call)
    assert session.state == state
    return session


@pytest.mark.parametrize("state", PUSH_WAYS)
@pytest.mark.parametrize("call", PUSH_CALLS)
def test_push_session_follows_the_states_table(state: str, call: str) -> None:
    """A call has the action and next state of SPEC.md; one not listed does nothing."""
    told = {(row["state"], row["call"]): (row["action"], row["next state"])
            for row in rows_of("fc")}
    session = push_session_in(state)
    action = session.move(call)
    assert (action, session.state) == told.get((state, call), ("", state))


@pytest.mark.parametrize("concurrency", (1, 2, 5))
@pytest.mark.parametrize("start", ("idle", "frozen"))
def test_fc_concurrency_limit__session(concurrency: int, start: str) -> None:
    """At most `concurrency` run; each that settles makes room for one."""
    session = push_session_in(start, concurrency)
    assert all([session.move("invoke") for _ in range(concurrency)])
    assert session.move("invoke") == ""
    session.move("settled")
    assert (session.move("invoke"), session.move("invoke")) == ("send", "")


def test_fc_freeze_idle__not_while_busy() -> None:
    """With two running, the first that settles leaves the instance busy."""
    session = push_session_in("busy")
    session.move("invoke")
    session.move("settled")
    assert session.state == "busy" and session.move("quiet") == ""
    session.move("settled")
    assert session.state == "idle" and session.move("quiet") == "freeze"


# ---- endpoints ----

NONE, METHOD = ("", "", 404), ("", "", 405)
FG, SCF = "/v1/runtime/invocation/", "/runtime/invocation/"
FOUND: List[Tuple[str, str, str, Tuple[str, str, int]]] = [
    ("scf", "POST", "/runtime/init/ready", ("ready", "", 200)),
    ("scf", "GET", SCF + "next?a=b", ("next", "", 200)),
    ("scf", "POST", SCF + "error", ("error", "", 200)),
    ("scf", "GET", "/runtime/init/ready", METHOD),
    ("scf", "POST", SCF + "next", METHOD),
    ("scf", "get", SCF + "next", METHOD), ("scf", "HEAD", SCF + "next", METHOD),
    ("scf", "POST", SCF + "response/", NONE),
    ("scf", "POST", SCF + "response/abc", NONE),
    ("scf", "GET", "/runtime//invocation/next", NONE),
    ("scf", "GET", SCF + "../invocation/next", NONE),
    ("scf", "GET", SCF + "%6eext", NONE),
    ("scf", "GET", "/Runtime/invocation/next", NONE), ("scf", "GET", "*", NONE),
    ("scf", "GET", "", NONE), ("scf", "GET", FG + "request", NONE),
    ("fg", "GET", FG + "request", ("request", "", 200)),
    ("fg", "POST", FG + "response/abc", ("response", "abc", 200)),
    ("fg", "POST", FG + "error/abc?x=/y", ("error", "abc", 200)),
    ("fg", "POST", FG + "response/", ("response", "", 200)),
    ("fg", "POST", FG + "response/%2e%2e", ("response", "%2e%2e", 200)),
    ("fg", "POST", FG + "response/..", ("response", "..", 200)),
    ("fg", "POST", FG + "response/a/b", NONE),
    ("fg", "POST", FG + "response//abc", NONE),
    ("fg", "POST", FG + "response/../response/abc", NONE),
    ("fg", "POST", FG + "response/abc/", NONE), ("fg", "POST", FG + "request", METHOD),
    ("fg", "POST", FG + "request/abc", NONE),
    ("fg", "GET", FG + "response/abc", METHOD),
    ("fg", "PUT", FG + "error/abc", METHOD), ("fg", "GET", SCF + "next", NONE)]


@pytest.mark.parametrize("protocol,method,target,found", FOUND, ids=[
    "%s-%s-%s" % case[:3] for case in FOUND])
def test_any_api_unknown__find_call(protocol: str, method: str, target: str,
                                    found: Tuple[str, str, int]) -> None:
    """Only the paths of the endpoints table are calls; 405 is for another method."""
    assert RULES[protocol].find_call(method, target) == found
