# test_gateway_workers.py: how workers of reference/gateway.py come and go (MIT).
"""Queue, limits, scaling, draining, new lists. Ticks are scaled down, gates are files."""

import json
import os
import pathlib
import re
import shlex
import signal
import sys
from typing import Any, Dict, Iterator

import gateways
import pytest
from gateways import SLOW, Container, call_of, profile, until

ONE: Dict[str, Any] = {"maxActivateRequests": 1, "replicaCountLimit": 1}


@pytest.fixture(scope="module")
def slow_one() -> Iterator[Container]:
    """A container that has no ticks, for all tests that need none."""
    with Container([], *SLOW, "--memory-check", "0.02", "--drain", "5") as made:
        yield made


@pytest.fixture(scope="module")
def quick_one() -> Iterator[Container]:
    """One whose ticks are short."""
    with Container([], "--tick", "0.02", "--drain", "5", "--grace", "1") as made:
        yield made


@pytest.fixture
def slow(slow_one: Container) -> Iterator[Container]:
    """A container without functions; nothing of the test goes on after it."""
    yield slow_one
    slow_one.release()
    slow_one.put()


@pytest.fixture
def quick(quick_one: Container) -> Iterator[Container]:
    """The same with short ticks."""
    yield quick_one
    quick_one.release()
    quick_one.put()


# ---- queue and limits ----


def test_fcc_dispatch_worker__least(slow: Container) -> None:
    """Calls spread over workers by their number, two in each, three workers at most."""
    slow.put(profile(worker={"maxActivateRequests": 2, "replicaCountLimit": 3}))
    calls = slow.hold(8, running=6)
    assert sorted(one["active"] for one in slow.function()["workers"]) == [2, 2, 2]
    slow.release()
    assert len({call.result().json for call in calls}) == 3


def test_fcc_dispatch_worker__round_robin(slow: Container) -> None:
    """In turn, whatever the load of each."""
    slow.put(profile(worker={"dispatchMode": "round-robin", "reservationCount": 2}))
    until(lambda: len(slow.pids()) == 2)
    pids = [slow.invoke(call_of("pid")).json for _ in range(4)]
    assert pids[0] != pids[1] and pids[:2] == pids[2:]


def test_fcc_queue_order(slow: Container) -> None:
    """The queue is served in the order of arrival."""
    slow.put(profile(worker=ONE))
    slow.hold()
    waiting = []
    for number in range(5):
        waiting.append(slow.later(call_of("count")))
        until(lambda: slow.function()["queued"] == number + 1)
    slow.release()
    assert [call.result().json for call in waiting] == [1, 2, 3, 4, 5]


def test_fcc_queue_order__limit(slow: Container) -> None:
    """Calls that wait are served at once when a new list gives workers more of them."""
    slow.put(profile(worker=ONE))
    slow.hold()
    call = slow.later(b"next")
    until(lambda: slow.function()["queued"] == 1)
    slow.put(profile(worker={**ONE, "maxActivateRequests": 2}))
    assert call.result().body == b"next"


def test_fcc_limit_replicas(slow: Container) -> None:
    """At the limit calls wait, or fail at once with fastFailRequestsOnStarting."""
    slow.put(profile(worker={**ONE, "fastFailRequestsOnStarting": True}))
    slow.hold()
    assert slow.http(b"").failure == (503, "404", "ReplicaLimit")


def test_fcc_timeout_head__queue(slow: Container) -> None:
    """A call that finds no worker before its deadline fails, and leaves the queue."""
    slow.put(profile(worker=ONE))
    slow.hold()
    late = slow.http(b"", X_Fc_Function_Timeout="0.05")
    assert late.failure == (504, "404", "QueueTimeout")
    assert slow.function()["queued"] == 0


def test_fcc_caller_gone__queue(slow: Container) -> None:
    """A caller that hangs up while it waits leaves the queue at once."""
    slow.put(profile(worker=ONE))
    slow.hold()
    caller = slow.raw(b"POST /invoke HTTP/1.1\r\nx-noslated-dispatch: echo\r\n\r\n")
    until(lambda: slow.function()["queued"] == 1)
    caller.close()
    until(lambda: slow.function()["queued"] == 0)


def test_fcc_limit_calls() -> None:
    """Too many waiting calls, and too many calls in all, fail at once."""
    with Container([profile(worker=ONE), profile("b")], *SLOW, "--queue", "1",
                   "--calls", "3") as container:
        assert container.invoke(b"", "b").status == 200
        calls = [*container.hold(), container.later()]
        until(lambda: container.function()["queued"] == 1)
        assert "wait: 2" in container.invoke(b"").json["errorMessage"]
        with container.raw(b"POST /invoke HTTP/1.1\r\nContent-Length: 9\r\n\r\nhalf"):
            until(lambda: container.stats()["calls"] == 3)
            late = container.http(b"", function="b")
            assert late.failure == (503, "404", "Overloaded")
        container.release()
        assert [call.result().status for call in calls] == [200, 200]


def test_fcc_limit_pool(slow: Container) -> None:
    """The third worker does not fit; every waiting call of its function fails."""
    slow.put(profile(worker={"maxActivateRequests": 1}, memory_mb=512))
    calls = slow.hold(2)
    assert slow.http(b"").failure == (503, "404", "MemoryPoolFull")
    slow.release()
    assert [call.result().status for call in calls] == [200, 200]


def test_fcc_launch_failed(slow: Container) -> None:
    """A failed launch fails every call in the queue, at once."""
    slow.put(profile(env={"START": "hang"}, worker={"initializationTimeout": 300}))
    calls = [slow.later() for _ in range(5)]
    assert {call.result().failure[2] for call in calls} == {"InitTimeout"}


def test_fcc_launch_parallel() -> None:
    """No more workers start at a time than may; the others wait their turn."""
    with Container([], "--launches", "2") as container:
        gate = str(container.gate)
        container.put(*(profile(f"f{number}", env={"START": gate}) for number in range(6)))
        calls = [container.later(b"x", f"f{number}") for number in range(6)]

        def starting() -> int:
            return sum(worker["state"] == "created" and worker["pid"] is not None
                       for one in container.stats()["functions"].values()
                       for worker in one["workers"])

        until(lambda: starting() == 2, "two workers start")
        container.release()
        while not all(call.done() for call in calls):
            assert starting() <= 2
        assert [call.result().status for call in calls] == [200] * 6


def test_fcc_limit_memory(slow: Container) -> None:
    """A worker that stays above its limit is killed, and its call fails."""
    slow.put(profile(memory_mb=32))
    found = slow.invoke(call_of("eat", bytes=64 << 20))
    assert found.failure == (404, "404", "WorkerDied")


def test_fcc_slot_body(slow: Container) -> None:
    """A call holds its slot until the body of its answer is passed on."""
    slow.put(profile(worker=ONE))
    first = slow.later(call_of(
        "say", text="HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n",
        gate=str(slow.gate), more="6\r\nsecond\r\n0\r\n\r\n"))
    until(slow.active)
    second = slow.later(b"next")
    until(lambda: slow.function()["queued"] == 1)
    slow.release()
    assert (first.result().body, second.result().body) == (b"firstsecond", b"next")


def test_fcc_launch_command(slow: Container, tmp_path: pathlib.Path) -> None:
    """Without a command the file `bootstrap` of the code folder is started."""
    item = profile(url=tmp_path.as_uri())
    (tmp_path / "bootstrap").write_text("#!/bin/sh\nexec " + shlex.join(
        item.pop("command")))
    (tmp_path / "bootstrap").chmod(0o755)
    slow.put(item)
    assert slow.invoke(call_of("env")).json["cwd"] == str(tmp_path)


# ---- scaling ----


@pytest.mark.parametrize("strategy, mode, victim", [
    ("LCC", "least-request-count", 1), ("FIFO", "least-request-count", 0),
    ("LCC", "round-robin", 0), ("FILO", "round-robin", 1)])
def test_fcc_scale_victims(quick: Container, strategy: str, mode: str,
                           victim: int) -> None:
    """Oldest, newest, or the one with the fewest calls goes first. Of two workers the
    first has a call, or the second in the other mode."""
    worker = {"reservationCount": 2, "shrinkStrategy": strategy, "dispatchMode": mode}
    quick.put(profile(worker=worker))
    pids = until(lambda: len(quick.pids()) == 2 and quick.pids())
    call, = quick.hold()
    quick.put(profile(worker=dict(worker, reservationCount=1)))
    until(lambda: quick.pids() == [pids[1 - victim]])
    quick.release()
    assert call.result().status == 200


def test_fcc_scale_down__load(quick: Container) -> None:
    """Eight calls in four workers for ten each: two are enough for a load of 0.7."""
    quick.put(profile(worker={"reservationCount": 4}, memory_mb=32))
    until(lambda: len(quick.pids()) == 4)
    quick.hold(8)
    quick.put(profile(memory_mb=32))
    until(lambda: len(quick.pids()) == 2 and quick.function()["low_ticks"])


def test_fcc_scale_down(quick: Container) -> None:
    """Three workers, no calls: all are gone after the sixth tick."""
    quick.put(profile(worker={"maxActivateRequests": 1}))
    calls = quick.hold(3)
    quick.release()
    assert len({call.result().json for call in calls}) == 3
    until(lambda: not quick.function()["workers"])
    assert quick.invoke(b"again").body == b"again"


def test_fcc_stop_drain(quick: Container) -> None:
    """A worker that must go lets its call end."""
    worker = {"maxActivateRequests": 4, "shrinkStrategy": "FIFO", "replicaCountLimit": 2,
              "dispatchMode": "round-robin", "reservationCount": 2}
    quick.put(profile(worker=worker))
    until(lambda: len(quick.pids()) == 2)
    calls = quick.hold(2)
    quick.put(profile(worker={**worker, "reservationCount": 0}))
    until(lambda: len(quick.pids(state="pending-stop")) == 1)
    quick.release()
    assert {call.result().status for call in calls} == {200}
    until(lambda: not quick.function()["workers"])


def test_fcc_scale_up(quick: Container) -> None:
    """A full worker gets company at the next tick, before any call waits."""
    quick.put(profile(worker={"maxActivateRequests": 5}))
    quick.hold(5)
    until(lambda: len(quick.pids()) == 2)


def test_fcc_scale_reserve(quick: Container) -> None:
    """Reserved workers start before any call, stay, and are replaced; a disposable
    function has none [fcc.disposable.one]."""
    quick.put(profile(worker={"reservationCount": 2}))
    first = until(lambda: len(quick.pids()) == 2 and quick.pids())
    assert quick.ask("POST", "/initialize").status == 200
    os.kill(first[0], signal.SIGKILL)
    found = until(lambda: first[0] not in quick.pids()
                  and len(quick.pids()) == 2 and quick.pids())
    assert first[1] in found
    quick.put(profile(worker={"reservationCount": 2, "disposable": True}))
    assert quick.ask("POST", "/initialize").status == 200
    until(lambda: not quick.function()["workers"])


def test_fcc_initialize_ready(slow: Container) -> None:
    """/initialize waits for reserved workers; it fails when one cannot be ready."""
    slow.put(profile(worker={"reservationCount": 2}), profile(
        "bad", env={"START": "crash"}, worker={"reservationCount": 1}))
    found = slow.ask("POST", "/initialize")
    assert found.failure == (404, "404", "InitFailed")
    slow.put(profile(worker={"reservationCount": 3}))
    assert slow.ask("POST", "/initialize").status == 200
    assert len(slow.pids()) == 3


# ---- new lists ----


def hup(container: Container, *profiles: Any) -> None:
    """Replace the list in the file, and tell so."""
    lines = len(re.findall("gateway:", container.talk()))
    container.profiles.write_text(json.dumps(profiles))
    container.process.send_signal(signal.SIGHUP)
    until(lambda: len(re.findall("gateway:", container.talk())) > lines)


def test_fcc_profile_replace(slow: Container) -> None:
    """A new list replaces the old one entirely; a bad one changes nothing."""
    slow.put(profile("a"), profile("b"))
    assert slow.put(profile("b"), profile("c")).status == 200
    assert sorted(slow.stats()["functions"]) == ["b", "c"]
    bad = slow.put(profile("d"), profile("e", handler=1))
    assert "functions[1].handler" in bad.json["errorMessage"]
    hup(slow, profile("f"), {"name": "g"})
    assert sorted(slow.stats()["functions"]) == ["b", "c"]
    assert "functions[1].runtime: missing" in slow.talk()
    hup(slow, profile("f"))
    assert sorted(slow.stats()["functions"]) == ["f"]


def test_fcc_profile_identity(slow: Container) -> None:
    """Other code needs another worker; another limit does not."""
    slow.put(profile())
    pids = [slow.invoke(call_of("pid")).json]
    for item in (profile(worker={"maxActivateRequests": 3}),
                 profile(signature="2"), profile(signature="2", handler="b.c"),
                 profile(signature="2", handler="b.c", memory_mb=65)):
        slow.put(item)
        pids.append(slow.invoke(call_of("pid")).json)
    assert pids[0] == pids[1] and len(set(pids)) == 4


def test_fcc_profile_identity__drain(slow: Container) -> None:
    """Running calls outlive the change and the removal of their function."""
    slow.put(profile())
    calls = slow.hold(2)
    slow.put(profile(signature="2"))
    assert slow.invoke(b"new").body == b"new"
    slow.put()
    assert slow.invoke(b"").failure[2] == "UnknownFunction"
    slow.release()
    assert {call.result().status for call in calls} == {200}


def test_fcc_profile_replace__load(slow: Container) -> None:
    """No call fails while lists change under load."""
    slow.put(profile())
    calls = [slow.later(b"x") for _ in range(60)]
    for number in range(5):
        hup(slow, profile(signature=str(number)))
    assert {call.result().status for call in calls} == {200}


def test_fcc_profile_replace__many(slow: Container) -> None:
    """Two hundred functions, ten of them in use, one of these broken."""
    slow.put(*(profile(f"f{number}", memory_mb=32, env={} if number else {
        "START": "crash"}) for number in range(200)))
    calls = [slow.later(b"x", f"f{number}") for number in range(0, 200, 20)]
    assert [call.result().status for call in calls] == [404] + [200] * 9
    until(lambda: sum(len(one["workers"]) for one in slow.stats()[
        "functions"].values()) == 9)  # the broken one takes a moment to leave


def test_fcc_stop_signals() -> None:
    """A worker that does not end on SIGTERM is killed after the grace."""
    stubborn = profile(command=["sh", "-c", "trap '' TERM; exec \"$0\" \"$@\"",
                                *profile()["command"]])
    with Container([stubborn], "--grace", "0.05") as container:
        assert container.invoke(b"x").status == 200
        container.put()
        until(lambda: container.processes() == [container.process.pid])


def test_fcc_stop_signals__wrapped() -> None:
    """A server that is no more than a child of the worker's process goes with it, also
    while it holds up the initializer."""
    wrapped = profile(command=["sh", "-c", '"$0" "$@"; :', *profile()["command"]],
                      env={"INIT": "hang"}, initializer="x.y",
                      worker={"initializationTimeout": 400})
    with Container([wrapped]) as container:
        assert container.http().failure == (503, "404", "InitTimeout")
        until(lambda: not container.function()["workers"])
        assert container.processes() == [container.process.pid]


def test_fcc_log_worker__kept() -> None:
    """The files of workers that have stopped stay for a while, their own folders not."""
    with Container([profile(worker={"disposable": True})]) as container:
        for _ in range(3):
            container.invoke(b"x")
        until(lambda: not container.function()["workers"])
        assert len(list(container.folder.glob("noslate-*/logs/workers/*"))) == 3
        until(lambda: not list(container.folder.glob("noslate-*/sandbox/*")))
    assert not gateways.WORKER.parent.joinpath("nohup.out").exists()


def test_fcc_fields_pass__initializer(slow: Container, tmp_path: pathlib.Path) -> None:
    """An initializer hears how long it may take."""
    (tmp_path / "index.py").write_text(
        "def initialize(context):\n    global limit_ms\n"
        "    limit_ms = context.time_limit_ms\n"
        "def handler(event, context):\n    return limit_ms\n")
    slow.put(profile(url=tmp_path.as_uri(), initializer="index.initialize",
                     command=[sys.executable, "-B", str(gateways.BOOTSTRAP)],
                     worker={"initializationTimeout": 8500}))
    assert slow.invoke().body == b"9000"
