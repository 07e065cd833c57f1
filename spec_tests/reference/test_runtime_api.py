# test_runtime_api.py: the runtime API of scf and fg, byte by byte (MIT).
"""The test is the bootstrap: with `attach` a platform starts no process.

Polls that die, polls in parallel, requests in pieces and in advance, large events and
results, and what both sides may expect of the other when it is slow.
"""

import select
import socket
import threading
from typing import Iterator, List, Optional, Tuple

import pytest

import wire
from emulator import Outcome
from harness import PULL, Harness, Peer, background, outcome_of, until

MIB = 1048576
BASE = {"scf": "/runtime/invocation/", "fg": "/v1/runtime/invocation/"}
POLL = {"scf": "next", "fg": "request"}


class Attached:
    """A platform whose bootstrap is the test itself; it has served a first event."""

    def __init__(self, harness: Harness) -> None:
        self.harness, self.protocol = harness, harness.protocol
        self.request_id = ""
        first = harness.event(b"first")
        self.address = harness.api()
        if self.protocol == "scf":
            self.ask(wire.request_bytes("POST", "/runtime/init/ready", (), b" "))
        assert self.ask(self.poll(), "GET").body == b"first"
        self.ask(self.result(b"done"))
        assert outcome_of(first) == ("ok", b"done")

    def dial(self) -> Peer:
        """Return a new connection to the runtime API."""
        return Peer(socket.create_connection(self.address, 5))

    def ask(self, data: bytes, to: str = "POST") -> wire.Message:
        """Return the answer to bytes sent on a connection of their own."""
        peer = self.dial()
        peer.send(data)
        answer = self.read(peer, to)
        peer.close()
        return answer

    def read(self, peer: Peer, to: str = "GET") -> wire.Message:
        """Return the next answer on a connection; note the id of an event."""
        answer = peer.answer(to)
        self.request_id = (answer.header("x-cff-request-id")
                           or answer.header("request_id") or self.request_id)
        return answer

    def poll(self) -> bytes:
        """Return the bytes of a poll."""
        return wire.request_bytes("GET", BASE[self.protocol] + POLL[self.protocol])

    def park(self) -> Peer:
        """Return a connection with a poll that waits on it."""
        peer = self.dial()
        peer.send(self.poll())
        return peer

    def result(self, body: bytes, *fields: Tuple[str, str]) -> bytes:
        """Return the bytes of a result of the last event."""
        own = "" if self.protocol == "scf" else "/" + self.request_id
        path = BASE[self.protocol] + "response" + own
        return wire.request_bytes("POST", path, fields, body)

    def finish(self, caller: Peer, body: bytes = b"done") -> None:
        """Give the result of the last event; its caller has to see it."""
        assert self.ask(self.result(body)).status == 200
        assert outcome_of(caller) == ("ok", body)


@pytest.fixture(params=("scf", "fg"))
def attached(request: pytest.FixtureRequest) -> Iterator[Attached]:
    """A platform after its first event, with the test as its bootstrap."""
    with Harness(request.param, max_instances=1) as harness:
        yield Attached(harness)


# ---- polls ----


@pytest.mark.parametrize("reset", (False, True), ids=("closed", "reset"))
@pytest.mark.parametrize("count", (1, 5))
def test_any_poll_dead__and_one_alive(attached: Attached, reset: bool,
                                      count: int) -> None:
    """Polls that hang up get no event; the one that waits does."""
    for _ in range(count):
        poll = attached.park()
        poll.reset() if reset else poll.close()
    alive = attached.park()
    caller = attached.harness.event(b"precious")
    assert attached.read(alive).body == b"precious"
    attached.finish(caller)
    assert not attached.harness.platform.violations


@pytest.mark.parametrize("parked", (False, True))
def test_any_poll_reset(attached: Attached, parked: bool) -> None:
    """A client that resets its connection over an unread event gets it by its next
    poll, which may be there already; one result is enough."""
    first = attached.park()
    caller = attached.harness.event(b"event")
    assert until(lambda: bool(select.select([first.sock], [], [], 0)[0]))
    second = attached.park() if parked else None
    first.reset()
    assert attached.read(second or attached.park()).body == b"event"
    attached.finish(caller)


def test_any_poll_reset__result(attached: Attached) -> None:
    """The result of a client that has read the event, and broke off, counts."""
    first = attached.park()
    caller = attached.harness.event(b"event")
    assert attached.read(first).body == b"event"
    first.reset()
    attached.finish(caller)
    later = attached.harness.event(b"later")
    assert attached.read(attached.park()).body == b"later"
    attached.finish(later)


def test_any_poll_dead__then_alive(attached: Attached) -> None:
    """With dead polls only, the event waits for the next poll."""
    attached.park().reset()
    caller = attached.harness.event(b"precious")
    assert attached.ask(attached.poll(), "GET").body == b"precious"
    attached.finish(caller)


def test_fg_request_blocks__parallel(attached: Attached) -> None:
    """Parallel polls: scf answers all with the event, fg exactly one of them."""
    polls = [attached.park() for _ in range(3)]
    caller = attached.harness.event(b"shared")
    got: List[Optional[bytes]] = []
    for poll in polls:
        try:
            got.append(poll.read(8 if attached.protocol == "scf" else 0.1, "GET").body)
        except wire.Silence:
            got.append(None)
    assert got.count(b"shared") == (3 if attached.protocol == "scf" else 1)
    if attached.protocol == "scf":
        attached.finish(caller)


# ---- connections ----


def test_any_http_reuse__pipelined(attached: Attached) -> None:
    """A result and the next poll in one packet are answered in their order."""
    callers = [attached.harness.event(b"one")]
    peer = attached.park()
    assert attached.read(peer).body == b"one"
    callers.append(attached.harness.event(b"two"))
    peer.send(attached.result(b"1") + attached.poll())
    assert attached.read(peer, "POST").status == 200
    assert attached.read(peer).body == b"two"
    peer.send(attached.result(b"2"))
    assert [outcome_of(one) for one in callers] == [("ok", b"1"), ("ok", b"2")]


def test_any_http_reuse__behind_a_poll(attached: Attached) -> None:
    """What is pipelined behind a poll that waits is answered after it."""
    peer = attached.dial()
    peer.send(attached.poll() + wire.request_bytes("GET", "/nothing"))
    caller = attached.harness.event(b"one")
    assert attached.read(peer).body == b"one"
    assert attached.read(peer).status == 404
    attached.finish(caller)


@pytest.mark.parametrize("early", (True, False), ids=("before an event", "in it"))
def test_any_result_outcome__many_violations(attached: Attached, early: bool) -> None:
    """However much a bootstrap does wrong, what is kept of it is short."""
    path = "/v1/runtime/invocation/response/" if attached.protocol == "fg" else "/"
    wrong = wire.request_bytes("POST", path + "x" * 5000, (), b"")
    outcomes: List[Outcome] = []

    def submit() -> threading.Thread:
        return background(
            lambda: outcomes.append(attached.harness.platform.invoke(b"x")))

    caller = None if early else submit()
    if caller:
        attached.ask(attached.poll(), "GET")
    peer = attached.dial()
    peer.send(wrong * 150)
    assert [peer.answer("POST").status for _ in range(150)] == [404] * 150
    if caller is None:
        caller = submit()
        attached.ask(attached.poll(), "GET")
    attached.ask(attached.result(b"done"))
    caller.join(10)
    kept = outcomes[0].violations
    assert len(kept) == 100 and max(len(one.seen) for one in kept) <= 201
    assert len(attached.harness.platform.violations) == 150


def test_any_http_body__bytewise(attached: Attached) -> None:
    """A result counts the same however it is cut into packets."""
    caller = attached.harness.event(b"x")
    attached.ask(attached.poll(), "GET")
    peer, data = attached.dial(), b"\r\n\r\n" + attached.result(b"done")
    for at in range(len(data)):
        peer.send(data[at:at + 1])
    assert attached.read(peer, "POST").status == 200
    assert outcome_of(caller) == ("ok", b"done")


# ---- large bodies and slow peers ----


def test_any_result_size__answer_arrives(attached: Attached) -> None:
    """Who sends all of an oversize result before reading sees 413, and goes on."""
    caller = attached.harness.event(b"x")
    peer = attached.park()
    attached.read(peer)
    peer.send(attached.result(b"x" * (8 * MIB)))
    answer = attached.read(peer, "POST")
    assert answer.status == 413 and outcome_of(caller)[0] == "response-too-large"
    if answer.header("connection") == "close":
        peer = attached.dial()
    caller = attached.harness.event(b"next")
    peer.send(attached.poll())
    assert attached.read(peer).body == b"next"
    attached.finish(caller)


def test_any_event_bytes__large(attached: Attached) -> None:
    """An event and a result at the limit arrive whole, over one connection."""
    large = bytes(range(256)) * (6 * MIB // 256)
    caller = attached.harness.event(large)
    peer = attached.park()
    assert attached.read(peer).body == large
    peer.send(attached.result(large))
    assert attached.read(peer, "POST").status == 200
    assert outcome_of(caller) == ("ok", large)


@PULL
def test_any_event_timeout__peer_does_not_read(protocol: str) -> None:
    """A bootstrap that does not read its large event holds up neither limit nor API."""
    with Harness(protocol, max_instances=1, timeout_s=0.3) as harness:
        first = harness.event(b"x" * (6 * MIB))
        address = harness.api()
        if protocol == "scf":
            ready = Peer(socket.create_connection(address, 5))
            ready.send(wire.request_bytes("POST", "/runtime/init/ready", (), b""))
        poll = Peer(socket.create_connection(address, 5))
        poll.send(wire.request_bytes("GET", BASE[protocol] + POLL[protocol]))
        assert outcome_of(first)[0] in ("timeout", "not-fetched")
        poll.close()


def test_any_outcome_one__caller_does_not_read(attached: Attached) -> None:
    """A caller who does not read his large result holds up nobody else."""
    lazy = attached.harness.event(b"x")
    attached.ask(attached.poll(), "GET")
    attached.ask(attached.result(b"y" * (6 * MIB)))
    caller = attached.harness.event(b"next")
    assert attached.ask(attached.poll(), "GET").body == b"next"
    attached.finish(caller)
    assert outcome_of(lazy) == ("ok", b"y" * (6 * MIB))


# ---- who wants to hear of it ----


@PULL
def test_any_log_frame__first(protocol: str) -> None:
    """No poll gets an event before the line that begins its log is out."""
    is_slow, writing, go_on = threading.Event(), threading.Event(), threading.Event()

    def log(data: bytes) -> None:
        if is_slow.is_set():
            writing.set()
            go_on.wait(10)

    with Harness(protocol, max_instances=1, on_log=log) as harness:
        attached = Attached(harness)
        is_slow.set()
        caller = harness.event(b"next")
        assert writing.wait(10)
        poll = attached.park()
        with pytest.raises(wire.Silence):
            poll.read(0.1, "GET")
        go_on.set()
        assert attached.read(poll).body == b"next"
        attached.finish(caller)


@PULL
def test_any_stop_drain__parked(protocol: str) -> None:
    """When the platform closes, polls that wait get the end, and no thread is left."""
    before = threading.active_count()
    with Harness(protocol, max_instances=1) as harness:
        polls = [Attached(harness).park() for _ in range(1)]
        polls.append(Peer(socket.create_connection(polls[0].sock.getpeername(), 5)))
        polls[1].send(wire.request_bytes("GET", BASE[protocol] + POLL[protocol])
                      + wire.request_bytes("GET", "/nothing"))
        harness.close()
        assert [poll.everything() for poll in polls] == [b"", b""]
    assert until(lambda: threading.active_count() <= before)
