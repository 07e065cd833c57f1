# test_sessions.py: the rules of the platform files that need no I/O (MIT).
"""What the kit's generated calls leave out: whether the tables are whole; fc's states."""

import itertools
from typing import Dict, List

import fc_platform
import pytest
import spec
from harness import PULL


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


