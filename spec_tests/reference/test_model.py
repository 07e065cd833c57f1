# test_model.py: random calls from both sides, against the states tables (MIT).
"""Play callers and bootstrap at random; the states table says what has to come of it.

The model is the table of SPEC.md chapters 7.5 and 8.5 and little beside it: who polls,
who waits, which event is outstanding. Everything goes over real sockets.
"""

import collections
import itertools
import random
import select
import socket
from typing import Any, Deque, Dict, List, Optional, Tuple

import pytest

import spec
import wire
from harness import PULL, Harness, Peer, outcome_of, until

STEPS, SEEDS = 80, 4
LIMIT_BYTES = 100
BASE = {"scf": "/runtime/invocation/", "fg": "/v1/runtime/invocation/"}
POLL = {"scf": "next", "fg": "request"}
STATUS = {"accept": 200, "ignore": 200, "refuse": 404, "finish": 200, "fail": 200,
          "overflow": 413}
KIND = {"finish": "ok", "fail": "function-error", "overflow": "response-too-large"}


def rows_of(protocol: str) -> Dict[Tuple[str, str], Tuple[str, str]]:
    """Return the states table of SPEC.md: (state, call) -> (action, next state)."""
    table = spec.load().table(protocol, "state", "call", "action", "next state", "rule")
    return {(row["state"], row["call"]): (row["action"], row["next state"])
            for row in table.records()}


class Event:
    """An event on its way, and the caller who waits for it."""

    def __init__(self, body: bytes, caller: Peer) -> None:
        self.body, self.caller = body, caller
        self.request_id = ""
        self.gone = False


class Model:
    """What the platform ought to be doing."""

    def __init__(self, protocol: str, seed: int, harness: Harness,
                 taken: List[object]) -> None:
        self.protocol, self.harness, self.taken = protocol, harness, taken
        self.chance = random.Random(seed)
        self.rows = rows_of(protocol)
        self.state = "starting"
        self.parked: List[Peer] = []
        self.bringers: List[Peer] = []
        self.current: Optional[Event] = None
        self.waiting: Deque[Event] = collections.deque()
        self.used: List[str] = []
        self.accepted = self.cancelled = self.broken = 0
        self.kinds: Dict[str, int] = collections.Counter()
        self.calls = 0  # of the bootstrap
        self.new_event()
        self.address = harness.api()

    def move(self, call: str) -> str:
        """Follow the table; return the action."""
        action, self.state = self.rows[self.state, call]
        self.broken += action in ("ignore", "refuse") or (
            action == "hold" and self.state == "starting")  # [scf.ready.before-next]
        return action

    def go_on(self) -> None:
        """Issue and deliver what can be."""
        if self.state == "idle" and self.waiting:
            self.current = self.waiting.popleft()
            self.move("issue")
        while self.state == "issued" and self.parked:
            count = len(self.parked) if self.protocol == "scf" else 1
            polls, self.parked = self.parked[:count], self.parked[count:]
            self.move(POLL[self.protocol])
            for poll in polls:
                self.delivered(poll)

    def delivered(self, poll: Peer) -> None:
        """Read the event from a poll, which must be the one that runs."""
        assert self.current is not None
        message = poll.answer()
        self.bringers.append(poll)  # hung up, this would be a bootstrap started again
        assert (message.status, message.body) == (200, self.current.body)
        self.current.request_id = (message.header("request_id")
                                   or message.header("x-cff-request-id") or "")

    def new_event(self) -> None:
        """A caller comes."""
        body = b"event %d" % self.accepted
        self.waiting.append(Event(body, self.harness.event(body)))
        self.accepted += 1
        assert until(lambda: self.harness.platform.counts["accepted"] == self.accepted)
        self.go_on()

    def caller_leaves(self) -> None:
        """A caller hangs up; his event is cancelled, and goes on if it was issued."""
        here = [one for one in [self.current, *self.waiting] if one and not one.gone]
        if not here or self.state == "starting":
            return
        event = self.chance.choice(here)
        event.caller.close()
        event.gone = True
        if event in self.waiting:
            self.waiting.remove(event)
        self.cancelled += 1
        assert self.harness.ends("cancelled", self.cancelled)

    def send(self, data: bytes) -> Peer:
        """Connect to the runtime API, and send that."""
        peer = Peer(socket.create_connection(self.address, 5))
        peer.send(data)
        return peer

    def status(self, path: str, body: bytes) -> int:
        """Make a call that is answered at once; return the status."""
        self.calls += 1
        peer = self.send(wire.request_bytes("POST", path, (), body))
        status = peer.answer("POST").status
        peer.close()
        return status

    def poll(self) -> None:
        """The bootstrap polls; the answer comes now or later, as the table says."""
        call = POLL[self.protocol]
        self.calls += 1
        poll = self.send(wire.request_bytes("GET", BASE[self.protocol] + call))
        if self.state == "running" and self.protocol == "scf":
            self.move(call)
            self.delivered(poll)
            self.broken += 1  # scf.response.order
            return
        if self.state != "issued":
            self.move(call)
        self.parked.append(poll)
        self.go_on()

    def settled(self) -> None:
        """Wait until the platform has taken the calls of the model and agrees."""
        assert until(lambda: len(self.taken) == self.calls
                     and self.harness.states() == [self.state]), (
            self.taken[-5:], self.calls, self.state)

    def poll_leaves(self) -> None:
        """A parked poll hangs up: it gets no event."""
        if self.parked:
            self.parked.pop(self.chance.randrange(len(self.parked))).close()

    def ready(self) -> None:
        """scf: the bootstrap says that it is ready, for the first time or again."""
        if self.protocol == "scf":
            action = self.move("ready")
            assert self.status("/runtime/init/ready", b"") == STATUS[action]
            self.go_on()

    def result(self) -> None:
        """The bootstrap posts a result: with an id or other, good, bad or too large."""
        kind = self.chance.choice(("response", "response", "error"))
        size = self.chance.choice((0, 5, LIMIT_BYTES, LIMIT_BYTES + 1))
        suffix, call = self.pick_id(kind, size)
        event = self.current
        action = self.move(call)
        status = self.status(BASE[self.protocol] + kind + suffix, b"r" * size)
        assert status == STATUS[action], (kind, suffix, self.state)
        if action in KIND and event is not None:
            self.finish(event, KIND[action], b"r" * size)

    def pick_id(self, kind: str, size: int) -> Tuple[str, str]:
        """Return what follows the path, and the call that this amounts to."""
        call = "oversize" if size > LIMIT_BYTES else kind
        if self.protocol == "scf":
            return "", call
        own = self.own_id() if self.state == "running" else ""
        chosen = self.chance.choice([own, own, own, "unknown", "", *self.used[-2:]])
        return "/" + chosen, call if chosen and chosen == own else "stray"

    def finish(self, event: Event, kind: str, body: bytes) -> None:
        """The invocation that ran is over: its caller hears of it."""
        self.current = None
        while self.bringers:
            self.bringers.pop().close()
        self.used.append(event.request_id)
        if not event.gone:
            seen, shown = outcome_of(event.caller)
            assert seen == kind and (kind != "ok" or shown == body)
            self.kinds[kind] += 1
        self.go_on()

    def half(self) -> None:
        """The bootstrap sends half a result, or nonsense: nothing changes."""
        peer = self.send(self.chance.choice((
            b"POST %sresponse HTTP/1.1\r\nContent-Length: 9\r\n\r\nhalf" % BASE[
                self.protocol].encode(), b"nonsense\r\n\r\n", b"GET /")))
        peer.sock.shutdown(socket.SHUT_WR)
        assert peer.everything().startswith(b"HTTP/1.1 4")
        self.broken += 1

    def quiet(self) -> None:
        """No poll that has to wait may have an answer."""
        assert not select.select([poll.sock for poll in self.parked], [], [], 0)[0]

    def finish_all(self) -> None:
        """Let everything come to its end, and compare the counts."""
        while self.current or self.waiting:
            if self.state == "starting":
                self.ready()
            if self.state != "running":
                self.poll()
            suffix = "" if self.protocol == "scf" else "/" + self.own_id()
            event = self.current
            assert event is not None and self.move("response") == "finish"
            assert self.status(BASE[self.protocol] + "response" + suffix, b"end") == 200
            self.finish(event, "ok", b"end")
        counts = self.harness.platform.counts
        assert counts["cancelled"] == self.cancelled
        assert all(counts[kind] == self.kinds[kind] for kind in KIND.values())
        assert sum(self.kinds.values()) + self.cancelled == self.accepted
        assert len(self.harness.platform.violations) == self.broken, (
            self.harness.platform.violations)

    def own_id(self) -> str:
        """Return the id of the event that runs."""
        assert self.current is not None
        return self.current.request_id


WAYS = (Model.new_event, Model.new_event, Model.poll, Model.poll, Model.result,
        Model.result, Model.result, Model.ready, Model.caller_leaves, Model.poll_leaves,
        Model.half)


@PULL
@pytest.mark.parametrize("seed", range(SEEDS))
def test_any_outcome_one__model(protocol: str, seed: int) -> None:
    """After every step of a random sequence platform and model agree."""
    taken: List[object] = []

    def on_trace(facts: Dict[str, Any]) -> None:
        if facts["what"] == "call":
            taken.append(facts)

    with Harness(protocol, max_instances=1, result_bytes=LIMIT_BYTES, timeout_s=1000,
                 on_trace=on_trace) as harness:
        model = Model(protocol, seed, harness, taken)
        for _ in range(STEPS):
            model.chance.choice(WAYS)(model)
            model.settled()
            model.quiet()
        model.finish_all()


@PULL
def test_states_table_is_complete(protocol: str) -> None:
    """Each call of each endpoint has a row in each state; `issue` in idle alone."""
    calls = {"scf": ("ready", "next", "response", "error", "oversize"),
             "fg": ("request", "response", "error", "oversize", "stray")}[protocol]
    states = ("starting", "idle", "issued", "running", "stopping")
    wanted = {*itertools.product(states, calls), ("idle", "issue")}
    assert set(rows_of(protocol)) == wanted
