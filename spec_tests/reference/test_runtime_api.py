# test_runtime_api.py: the runtime API of scf and fg, byte by byte (MIT).
"""The test is the bootstrap: with `attach` a platform starts no process."""

import select
import socket
from typing import Iterator, Tuple

import pytest

import wire
from harness import Harness, Peer, outcome_of, until

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
