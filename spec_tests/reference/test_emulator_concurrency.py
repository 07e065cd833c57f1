# test_emulator_concurrency.py: many callers, many instances, rude peers (MIT).
"""Load the emulator from all sides; nothing is lost, doubled or given to the dead.

Where the order of single bytes matters the test itself is the bootstrap: with `attach`
a Platform starts no process and says where its runtime API is.
"""

import collections
import concurrent.futures
import os
import pathlib
import socket
import threading
from typing import Any, Dict, Iterator, List, Optional, Tuple

import emulator
import misbehave
import pytest
import wire
from emulator import FrontDoor, Invocation, Listener, Outcome, Platform
from harness import within

PROTOCOLS = pytest.mark.parametrize("protocol", ("scf", "fg", "fc"))
PULL = pytest.mark.parametrize("protocol", ("scf", "fg"))
AMPLE_S = 30.0


def open_platform(protocol: str, folder: pathlib.Path, **settings: Any) -> Platform:
    """Return a platform with misbehave.py as its bootstrap and ample limits."""
    if protocol == "fc":
        settings.setdefault("port", 0)
    settings.setdefault("timeout_s", AMPLE_S)
    return Platform(protocol, misbehave.place(folder), grace_s=0.5, **settings)


def invoke_all(platform: Platform, events: List[bytes], callers: int) -> List[Outcome]:
    """Return the outcomes of events that so many callers send at a time."""
    with concurrent.futures.ThreadPoolExecutor(callers) as pool:
        return list(pool.map(platform.invoke, events, timeout=60))


# ---- load ----


@PROTOCOLS
def test_any_event_one_instance(protocol: str, tmp_path: pathlib.Path) -> None:
    """64 callers on 8 instances: each event has its own result, none is run twice."""
    events = [b"event %d" % number for number in range(256)]
    with open_platform(protocol, tmp_path / "code", max_instances=8) as platform:
        outcomes = invoke_all(platform, events, 64)
        served = sum(instance.served for instance in platform.instances)
        assert len(platform.instances) <= 8 and platform.counts["ok"] == 256
    assert [outcome.body for outcome in outcomes] == events
    assert served == 256 and len({one.request_id for one in outcomes}) == 256
    assert not any(outcome.violations for outcome in outcomes)


@PULL
def test_any_instance_replace(protocol: str, tmp_path: pathlib.Path) -> None:
    """Bootstraps that end or fail in between lose no event of the others."""
    events = [b"exit 3" if number % 7 == 0 else b"event %d" % number
              for number in range(56)]
    with open_platform(protocol, tmp_path / "code", max_instances=4) as platform:
        outcomes = invoke_all(platform, events, 16)
    assert [one.kind for one in outcomes] == [
        "exit" if event == b"exit 3" else "ok" for event in events]
    assert all(one.body == event for one, event in zip(outcomes, events)
               if one.kind == "ok")


@PROTOCOLS
def test_any_instance_on_demand__reuse(protocol: str, tmp_path: pathlib.Path) -> None:
    """One caller after the other gets the same instance."""
    with open_platform(protocol, tmp_path / "code") as platform:
        pids = {platform.invoke(b"pid").body for _ in range(20)}
        assert len(pids) == 1 and platform.counts["cold_starts"] == 1


def test_fc_concurrency_limit(tmp_path: pathlib.Path) -> None:
    """fc sends up to `concurrency` requests into one instance before it starts another."""
    with open_platform("fc", tmp_path / "code", concurrency=8) as platform:
        outcomes = invoke_all(platform, [b"sleep 0.2"] * 8, 8)
        assert [one.kind for one in outcomes] == ["ok"] * 8
        assert platform.counts["cold_starts"] == 1


# ---- the queue ----


class Busy:
    """A platform with one instance, which an event keeps busy until it is released."""

    def __init__(self, protocol: str, folder: pathlib.Path, **settings: Any) -> None:
        self.started = threading.Event()
        self.platform = open_platform(
            protocol, folder, max_instances=1, on_log=self.on_log, **settings)
        self.first: List[Outcome] = []
        self.caller = threading.Thread(target=self.occupy, daemon=True)
        self.caller.start()
        assert self.started.wait(20)

    def on_log(self, data: bytes) -> None:
        """Notice the platform's line for the start of the event."""
        if b"equest" in data:
            self.started.set()

    def occupy(self) -> None:
        """Keep the instance busy."""
        self.first.append(self.platform.invoke(b"sleep 0.6"))


@PROTOCOLS
def test_any_queue_limit__full(protocol: str, tmp_path: pathlib.Path) -> None:
    """With every instance busy and no queue the next event is throttled at once."""
    busy = Busy(protocol, tmp_path / "code", queue=0)
    with busy.platform as platform:
        assert within(5, lambda: platform.invoke(b"x")).kind == "throttled"
        busy.caller.join(10)
        assert busy.first[0].kind == "ok" and platform.invoke(b"y").body == b"y"


@PROTOCOLS
def test_any_queue_limit__timeout(protocol: str, tmp_path: pathlib.Path) -> None:
    """An event that waits longer than --queue-timeout is throttled."""
    busy = Busy(protocol, tmp_path / "code", queue_timeout_s=0.2)
    with busy.platform as platform:
        outcome = within(5, lambda: platform.invoke(b"x"))
        assert outcome.kind == "throttled" and "0.2 s" in outcome.message
        busy.caller.join(10)
        assert busy.first[0].kind == "ok" and platform.invoke(b"y").body == b"y"


@PULL
def test_any_queue_order(protocol: str, tmp_path: pathlib.Path) -> None:
    """Waiting events are served in the order in which they came."""
    busy, settled = Busy(protocol, tmp_path / "code"), threading.Semaphore(0)
    events = [Invocation("id-%d" % number, b"%d" % number,
                         on_done=lambda outcome: settled.release())
              for number in range(10)]
    for invocation in events:
        busy.platform.submit(invocation)
    with busy.platform:
        assert all(settled.acquire(timeout=20) for _ in events)
    assert events == sorted(events, key=lambda one: one.started)  # callers may be told late


# ---- the runtime API, byte by byte ----


class Attached:
    """A platform whose bootstrap is the test itself."""

    def __init__(self, protocol: str, **settings: Any) -> None:
        self.protocol = protocol
        self.env: Dict[str, str] = {}
        self.outcomes: "collections.deque[Outcome]" = collections.deque()
        self.settled = threading.Semaphore(0)
        self.platform = Platform(protocol, attach=self.env.update, port=0,
                                 timeout_s=AMPLE_S, init_timeout_s=AMPLE_S,
                                 max_instances=1, **settings)

    def submit(self, event: bytes) -> Invocation:
        """Hand an event in."""
        invocation = Invocation(self.platform.new_id(), event, on_done=self.on_done)
        self.platform.submit(invocation)
        return invocation

    def on_done(self, outcome: Outcome) -> None:
        """Note an outcome."""
        self.outcomes.append(outcome)
        self.settled.release()

    def outcome(self) -> Outcome:
        """Return the next outcome."""
        assert self.settled.acquire(timeout=10)
        return self.outcomes.popleft()

    def dial(self) -> wire.Channel:
        """Return a new connection to the runtime API."""
        port = int(self.env.get("SCF_RUNTIME_API_PORT")
                   or self.env["RUNTIME_API_ADDR"].split(":")[1])
        return wire.connect("127.0.0.1", port, lambda who, data: None, "platform")

    def ask(self, data: bytes, to: str = "POST") -> wire.Message:
        """Return the answer to bytes sent on a connection of their own."""
        channel = self.dial()
        channel.send(data)
        answer = channel.read(10, to)
        channel.close()
        return answer

    def poll(self) -> bytes:
        """Return the bytes of a poll."""
        return wire.request_bytes("GET", "/runtime/invocation/next" if self.protocol
                                  == "scf" else "/v1/runtime/invocation/request")

    def park(self) -> wire.Channel:
        """Return a connection with a poll that waits on it."""
        channel = self.dial()
        channel.send(self.poll())
        return channel

    def result(self, invocation: Invocation, body: bytes, *fields: Tuple[str, str],
               kind: str = "response") -> bytes:
        """Return the bytes of a result."""
        path = ("/runtime/invocation/" + kind if self.protocol == "scf" else
                "/v1/runtime/invocation/%s/%s" % (kind, invocation.request_id))
        return wire.request_bytes("POST", path, fields, body)

    def start(self) -> None:
        """Be initialised: the first event has been served."""
        first = self.submit(b"first")
        if self.protocol == "scf":
            self.ask(wire.request_bytes("POST", "/runtime/init/ready", (), b" "))
        assert self.ask(self.poll(), "GET").body == b"first"
        self.ask(self.result(first, b"done"))
        assert self.outcome().body == b"done"

    def parked(self) -> int:
        """Return how many polls wait."""
        instance = self.platform.instances[0]
        assert isinstance(instance, emulator.PullInstance)
        return len(instance.session.parked)


def test_any_api_unknown__noted() -> None:
    """Who is told of a violation may ask the platform for its state."""
    states: List[Dict[str, object]] = []

    def on_note(text: str) -> None:
        states.append(one.platform.state())

    one = Attached("scf", on_note=on_note)
    with one.platform:
        one.start()
        assert one.ask(wire.request_bytes("GET", "/nothing"), "GET").status == 404
    assert states[0]["violations"] == 1


@pytest.fixture(params=("scf", "fg"))
def attached(request: pytest.FixtureRequest) -> Iterator[Attached]:
    """A platform after its first event, with the test as its bootstrap."""
    one = Attached(request.param)
    with one.platform:
        one.start()
        yield one


@pytest.mark.parametrize("reset", (False, True), ids=("closed", "reset"))
@pytest.mark.parametrize("count", (1, 5))
def test_any_poll_dead(attached: Attached, reset: bool, count: int) -> None:
    """Polls that hang up get no event; the one that waits does."""
    for _ in range(count):
        attached.park().close(reset)
    alive = attached.park()
    invocation = attached.submit(b"precious")
    assert alive.read(10, "GET").body == b"precious"
    attached.ask(attached.result(invocation, b"done"))
    outcome = attached.outcome()
    assert outcome.kind == "ok" and not outcome.violations


def test_any_poll_dead_then_alive(attached: Attached) -> None:
    """With dead polls only, the event waits for the next poll."""
    attached.park().close(reset=True)
    invocation = attached.submit(b"precious")
    assert attached.ask(attached.poll(), "GET").body == b"precious"
    attached.ask(attached.result(invocation, b"done"))
    assert attached.outcome().kind == "ok"


def test_fg_request_blocks__one(attached: Attached) -> None:
    """Parallel polls: scf answers all with the event, fg exactly one of them."""
    polls = [attached.park() for _ in range(3)]
    invocation = attached.submit(b"shared")
    got: List[Optional[bytes]] = []
    for poll in polls:
        try:
            got.append(poll.read(10 if attached.protocol == "scf" else 0.1, "GET").body)
        except wire.Silence:
            got.append(None)
    attached.ask(attached.result(invocation, b"done"))
    assert attached.outcome().kind == "ok"
    assert got.count(b"shared") == (3 if attached.protocol == "scf" else 1)


def test_any_result_at_once(attached: Attached) -> None:
    """The caller has the result when it is posted, before the bootstrap polls again."""
    invocation = attached.submit(b"x")
    attached.ask(attached.poll(), "GET")
    attached.ask(attached.result(invocation, b"done"))
    assert attached.outcome().body == b"done" and attached.parked() == 0


def test_any_http_reuse__pipelined(attached: Attached) -> None:
    """A result and the next poll in one packet are answered in their order."""
    first, second = attached.submit(b"one"), attached.submit(b"two")
    channel = attached.park()
    assert channel.read(10, "GET").body == b"one"
    channel.send(attached.result(first, b"1") + attached.poll())
    assert channel.read(10, "POST").status == 200
    assert channel.read(10, "GET").body == b"two"
    channel.send(attached.result(second, b"2"))
    assert [attached.outcome().body, attached.outcome().body] == [b"1", b"2"]
    channel.close()


def test_any_http_reuse__pipelined_behind_a_poll(attached: Attached) -> None:
    """What is pipelined behind a poll that waits is answered after it."""
    channel = attached.dial()
    channel.send(attached.poll() + wire.request_bytes("GET", "/nothing"))
    invocation = attached.submit(b"one")
    assert channel.read(10, "GET").body == b"one"
    assert channel.read(10, "GET").status == 404
    channel.send(attached.result(invocation, b"1"))
    assert channel.read(10, "POST").status == 200
    assert attached.outcome().kind == "ok"
    channel.close()


@pytest.mark.parametrize("early", (True, False), ids=("before an event", "in it"))
def test_any_result_outcome__many_violations(attached: Attached, early: bool) -> None:
    """However much a bootstrap does wrong, what is kept of it is short."""
    path = ("/v1/runtime/invocation/response/" if attached.protocol == "fg" else "/")
    wrong = wire.request_bytes("POST", path + "x" * 5000, (), b"")
    invocation = None if early else attached.submit(b"x")
    channel = attached.dial()
    channel.send(wrong * 150)
    assert [channel.read(10, "POST").status for _ in range(150)] == [404] * 150
    channel.close()
    invocation = invocation or attached.submit(b"x")
    attached.ask(attached.poll(), "GET")
    attached.ask(attached.result(invocation, b"done"))
    kept = attached.outcome().violations
    assert len(kept) == 100 and max(len(one.seen) for one in kept) <= 201
    assert len(attached.platform.violations) == 150


FRAMINGS = {
    "bytewise": lambda data: [data[at:at + 1] for at in range(len(data))],
    "head-then-body": lambda data: [data[:data.index(b"\r\n\r\n") + 4],
                                    data[data.index(b"\r\n\r\n") + 4:]],
    "empty-lines-first": lambda data: [b"\r\n\r\n" + data]}


@pytest.mark.parametrize("framing", FRAMINGS)
def test_any_http_body(attached: Attached, framing: str) -> None:
    """A result counts the same however it is cut into packets."""
    invocation = attached.submit(b"x")
    attached.ask(attached.poll(), "GET")
    channel = attached.dial()
    for part in FRAMINGS[framing](attached.result(invocation, b"done")):
        channel.send(part)
    assert channel.read(10, "POST").status == 200
    assert attached.outcome().body == b"done"
    channel.close()


def test_any_http_body_chunked(attached: Attached) -> None:
    """A result in chunks, with extensions and trailers, counts like any other."""
    invocation = attached.submit(b"x")
    attached.ask(attached.poll(), "GET")
    head = attached.result(invocation, b"").replace(
        b"Content-Length: 0", b"Transfer-Encoding: chunked")
    body = b"3;a=b\r\nabc\r\n0A\r\n0123456789\r\n0\r\nTrailer: x\r\n\r\n"
    assert attached.ask(head + body).status == 200
    assert attached.outcome().body == b"abc0123456789"


def test_any_http_continue(attached: Attached) -> None:
    """Expect: 100-continue gets its interim answer before the body is sent."""
    invocation = attached.submit(b"x")
    attached.ask(attached.poll(), "GET")
    data = attached.result(invocation, b"done", ("Expect", "100-continue"))
    channel = attached.dial()
    channel.send(data[:-4])
    assert channel.read(10, "POST").status == 100
    channel.send(b"done")
    assert channel.read(10, "POST").status == 200
    assert attached.outcome().body == b"done"
    channel.close()


BAD_REQUESTS = [
    ("any.http.malformed", b"hello\r\n\r\n", 400),
    ("any.http.malformed", b"GET /a b HTTP/1.1\r\n\r\n", 400),
    ("any.http.malformed", b"GET / HTTP/2.0\r\n\r\n", 400),
    ("any.http.malformed", b"\x16\x03\x01\x02\r\n\r\n", 400),
    ("any.http.malformed", b"GET / HTTP/1.1\r\nA\r\n\r\n", 400),
    ("any.http.malformed", b"GET / HTTP/1.1\r\nA: b\r\n c\r\n\r\n", 400),
    ("any.http.framing", b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2"
                         b"\r\n\r\nx", 400),
    ("any.http.framing", b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: "
                         b"chunked\r\n\r\nx", 400),
    ("any.limits.head", b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 101 + b"\r\n", 431),
    ("any.limits.head", b"GET / HTTP/1.1\r\nA: " + b"b" * 70000, 431)] + [
    ("any.http.framing",
     b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + body,
     400) for body in (b"x\r\n", b"-1\r\n", b"0x1\r\na\r\n", b"1\r\nab\r\n", b"\r\n",
                       b"1 1\r\n", b"fffffffffffffffff\r\n", b"1\na\r\n0\r\n\r\n")]


@pytest.mark.parametrize("rule,data,status", BAD_REQUESTS, ids=[
    "%s-%r" % (rule, data[-20:]) for rule, data, _ in BAD_REQUESTS])
def test_any_http_no_effect(rule: str, data: bytes, status: int) -> None:
    """What is no HTTP gets its status and the end of the connection, nothing else."""
    one = shared()
    channel = one.dial()
    channel.send(data)
    answer = channel.read(10, "POST")
    assert answer.status == status and answer.header("connection") == "close"
    with pytest.raises(wire.Closed):
        channel.read(10, "POST")
    assert one.platform.violations[-1].rule == rule
    channel.close()


SHARED: List[Attached] = []


def shared() -> Attached:
    """Return a platform that all cases of a table use."""
    if not SHARED:
        SHARED.append(Attached("scf"))
        SHARED[0].start()
    return SHARED[0]


@pytest.fixture(scope="module", autouse=True)
def close_shared() -> Iterator[None]:
    """Close the platform of the tables; it has to work to the end."""
    yield
    for one in SHARED:
        invocation = one.submit(b"last")
        assert one.ask(one.poll(), "GET").body == b"last"
        one.ask(one.result(invocation, b"done"))
        assert one.outcome().kind == "ok"
        one.platform.close()
    SHARED.clear()


@PULL
def test_any_log_frame__first(protocol: str) -> None:
    """No poll gets an event before the line that begins its log is out."""
    is_slow, writing, go_on = [False], threading.Event(), threading.Event()

    def log(data: bytes) -> None:
        if is_slow[0]:
            writing.set()
            go_on.wait(10)

    one = Attached(protocol, on_log=log)
    with one.platform:
        one.start()
        is_slow[0] = True
        made: List[Invocation] = []
        caller = emulator.aside(lambda: made.append(one.submit(b"next")))
        assert writing.wait(10)
        poll = one.park()
        with pytest.raises(wire.Silence):
            poll.read(0.1, "GET")
        go_on.set()
        assert poll.read(10, "GET").body == b"next"
        caller.join(10)
        one.ask(one.result(made[0], b"done"))
        assert one.outcome().kind == "ok"


@PULL
def test_any_log_frame__ended(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An invocation that ends before its log was begun has neither line."""
    begin_log = emulator.Instance.begin_log
    lines: List[bytes] = []

    def cancel_first(self: emulator.Instance, invocation: Invocation) -> None:
        if invocation.event == b"cancelled":
            one.platform.cancel(invocation)
        begin_log(self, invocation)

    one = Attached(protocol, on_log=lines.append)
    with one.platform:
        one.start()
        monkeypatch.setattr(emulator.Instance, "begin_log", cancel_first)
        invocation = one.submit(b"cancelled")
        assert one.outcome().kind == "cancelled"
    log = b"".join(lines).decode()
    assert invocation.request_id not in log and log


class NoLoop:
    """A loop that watches nothing."""

    def watch(self, *_: object) -> None:
        """Do nothing."""

    unwatch = watch


def test_any_result_first__taken_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who looks for a dead bootstrap's last words waits for one just accepted."""
    taken, go_on = threading.Event(), threading.Event()

    class SlowConnection(emulator.Connection):
        """One that another thread is still taking in."""

        def __init__(self, *arguments: Any) -> None:
            taken.set()
            go_on.wait(10)
            super().__init__(*arguments)

    monkeypatch.setattr(emulator, "Connection", SlowConnection)
    listener = Listener("127.0.0.1", 0, emulator.App(), NoLoop())  # type: ignore
    with socket.create_connection(("127.0.0.1", listener.port)):
        taker = emulator.aside(listener.accept)
        assert taken.wait(10)
        looker = emulator.aside(listener.accept)
        looker.join(0.1)
        has_missed_it = not looker.is_alive()
        go_on.set()
        taker.join(10)
        looker.join(10)
        listener.close()
        listener.shut()
        listener.join(10)
    assert not has_missed_it


# ---- the front door ----


class Door:
    """A platform with a front door, and callers on plain sockets."""

    def __init__(self, protocol: str, folder: pathlib.Path, **settings: Any) -> None:
        self.platform = open_platform(protocol, folder, **settings)
        self.listener = Listener("127.0.0.1", 0, FrontDoor(self.platform),
                                 self.platform.loop)

    def __enter__(self) -> "Door":
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.close()
        self.listener.shut()
        self.platform.close()

    def call(self, event: bytes) -> wire.Channel:
        """Return a connection on which an event was sent."""
        channel = wire.connect("127.0.0.1", self.listener.port, lambda who, data: None,
                               "door")
        channel.send(wire.request_bytes("POST", "/-/invoke", (), event))
        return channel


@PROTOCOLS
def test_any_outcome_cancel_instance(protocol: str, tmp_path: pathlib.Path) -> None:
    """A caller who hangs up is `cancelled`; the next event is served."""
    started = threading.Event()
    with Door(protocol, tmp_path / "code", max_instances=1, on_log=lambda data:
              started.set() if b"equest" in data else None) as door:
        channel = door.call(b"sleep 0.3")
        assert started.wait(10)
        channel.close()
        assert door.call(b"next").read(20, "POST").body == b"next"
        assert door.platform.counts["cancelled"] == 1
        assert door.platform.counts["ok"] == 1


@PROTOCOLS
def test_any_caller_gone__queued(protocol: str, tmp_path: pathlib.Path) -> None:
    """A caller who hangs up while waiting takes nobody's place."""
    started = threading.Event()
    with Door(protocol, tmp_path / "code", max_instances=1, on_log=lambda data:
              started.set() if b"equest" in data else None) as door:
        first = door.call(b"sleep 0.3")
        assert started.wait(10)
        for _ in range(5):
            door.call(b"exit 3").close()
        assert first.read(20, "POST").body == b"slept"
        assert door.call(b"next").read(20, "POST").body == b"next"
        assert door.platform.counts["ok"] == 2


def test_ports_of_two_emulators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two emulators that come to the same port at once do not both take it."""
    numbers = iter((b"\0\0\1\1", b"\0\0\1\1", b"\0\0\1\2", b"\0\0\1\3"))
    monkeypatch.setattr(os, "urandom", lambda _: next(numbers))
    chosen = [emulator.free_port(), emulator.free_port()]
    assert chosen[0][0] != chosen[1][0]
    for _, claim in chosen:
        claim.close()


@PROTOCOLS
def test_256_connections(protocol: str, tmp_path: pathlib.Path) -> None:
    """256 callers at once each get their own answer."""
    with Door(protocol, tmp_path / "code", max_instances=4) as door:
        events = [b"caller %d" % number for number in range(256)]
        channels = [door.call(event) for event in events]
        assert [channel.read(30, "POST").body for channel in channels] == events
        for channel in channels:
            channel.close()


def test_any_http_reuse_pipelined_callers(tmp_path: pathlib.Path) -> None:
    """Events pipelined by one caller are answered in their order."""
    with Door("scf", tmp_path / "code") as door:
        channel = door.call(b"sleep 0.1")
        for number in range(5):
            channel.send(wire.request_bytes("POST", "/-/invoke", (), b"%d" % number))
        bodies = [channel.read(20, "POST").body for _ in range(6)]
    assert bodies == [b"slept", b"0", b"1", b"2", b"3", b"4"]


def test_any_security_loopback(tmp_path: pathlib.Path) -> None:
    """The runtime API listens on 127.0.0.1 alone."""
    one = Attached("scf")
    with one.platform:
        one.start()
        port = int(one.env["SCF_RUNTIME_API_PORT"])
        with pytest.raises(OSError):
            socket.create_connection(("127.0.0.2", port), 1)
