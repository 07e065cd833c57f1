# test_runtime_api.py: the runtime API of scf and fg, byte by byte (MIT).
"""The test is the bootstrap: with `attach` a platform starts no process.

Requests in advance, large events and results, slow peers, and the end.
"""

import socket
import threading
from typing import Iterator, List

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

    def result(self, body: bytes) -> bytes:
        """Return the bytes of a result of the last event."""
        own = "" if self.protocol == "scf" else "/" + self.request_id
        path = BASE[self.protocol] + "response" + own
        return wire.request_bytes("POST", path, (), body)

    def finish(self, caller: Peer, body: bytes = b"done") -> None:
        """Give the result of the last event; its caller has to see it."""
        assert self.ask(self.result(body)).status == 200
        assert outcome_of(caller) == ("ok", body)


@pytest.fixture(params=("scf", "fg"))
def attached(request: pytest.FixtureRequest) -> Iterator[Attached]:
    """A platform after its first event, with the test as its bootstrap."""
    with Harness(request.param, max_instances=1) as harness:
        yield Attached(harness)


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


def test_any_result_outcome__many_violations(attached: Attached) -> None:
    """However much a bootstrap does wrong, what is kept of it is short."""
    outcomes: List[Outcome] = []
    caller = background(
        lambda: outcomes.append(attached.harness.platform.invoke(b"x")))
    attached.ask(attached.poll(), "GET")
    path = "/v1/runtime/invocation/response/" if attached.protocol == "fg" else "/"
    peer = attached.dial()
    peer.send(wire.request_bytes("POST", path + "x" * 5000, (), b"") * 150)
    assert [peer.answer("POST").status for _ in range(150)] == [404] * 150
    attached.ask(attached.result(b"done"))
    caller.join(10)
    kept = outcomes[0].violations
    assert len(kept) == 100 and max(len(one.seen) for one in kept) <= 201
    assert len(attached.harness.platform.violations) == 150


def test_any_event_bytes__large(attached: Attached) -> None:
    """An event and a result at the limit arrive whole, over one connection."""
    large = bytes(range(256)) * (6 * MIB // 256)
    caller = attached.harness.event(large)
    peer = attached.park()
    assert attached.read(peer).body == large
    peer.send(attached.result(large))
    assert attached.read(peer, "POST").status == 200
    assert outcome_of(caller) == ("ok", large)


def test_any_outcome_one__caller_does_not_read(attached: Attached) -> None:
    """A caller who does not read his large result holds up nobody else."""
    lazy = attached.harness.event(b"x")
    attached.ask(attached.poll(), "GET")
    attached.ask(attached.result(b"y" * (6 * MIB)))
    caller = attached.harness.event(b"next")
    assert attached.ask(attached.poll(), "GET").body == b"next"
    attached.finish(caller)
    assert outcome_of(lazy) == ("ok", b"y" * (6 * MIB))


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
        attached = Attached(harness)
        polls = [attached.park(), attached.dial()]
        polls[1].send(attached.poll() + wire.request_bytes("GET", "/nothing"))
        harness.close()
        assert [poll.everything() for poll in polls] == [b"", b""]
    assert until(lambda: threading.active_count() <= before)
