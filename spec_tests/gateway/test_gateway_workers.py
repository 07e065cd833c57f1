# test_gateway_workers.py: how workers of reference/gateway.py come and go (MIT).
"""Queue, limits, scaling, draining, new lists. Ticks are scaled down, gates are files."""

import json
import os
import pathlib
import re
import shlex
import signal
import sys
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Iterator, List

import gateways
import pytest
from gateways import Answer, Container, call_of, profile, until

QUICK = ("--tick", "0.02", "--drain", "5", "--grace", "1")
SLOW = ("--tick", "1000")


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    """Threads for callers."""
    with ThreadPoolExecutor(32) as made:
        yield made


@pytest.fixture
def gate(tmp_path: pathlib.Path) -> pathlib.Path:
    """A file that lets held calls go once it exists."""
    return tmp_path / "gate"


def hold(pool: ThreadPoolExecutor, container: Container, gate: pathlib.Path, number: int,
         **fields: str) -> "List[Future[Answer]]":
    """Start calls that last until the gate is there."""
    return [pool.submit(container.invoke, call_of("hold", gate=str(gate)), **fields)
            for _ in range(number)]


def active(container: Container, number: int) -> None:
    """Wait until so many calls run in workers."""
    until(lambda: sum(worker["active"] for worker in container.function()["workers"])
          == number, f"{number} active calls")


# ---- queue and limits ----


def test_fcc_dispatch_worker__least(pool: ThreadPoolExecutor,
                                    gate: pathlib.Path) -> None:
    """Calls spread over workers by their number, two in each, three workers at most."""
    worker = {"maxActivateRequests": 2, "replicaCountLimit": 3}
    with Container([profile(worker=worker)], *SLOW) as container:
        calls = hold(pool, container, gate, 8)
        active(container, 6)
        until(lambda: container.function()["queued"] == 2)
        gate.touch()
        pids = [call.result().json for call in calls]
    assert len(set(pids)) == 3 and max(map(pids.count, pids)) <= 4


def test_fcc_dispatch_worker__round_robin(pool: ThreadPoolExecutor,
                                          gate: pathlib.Path) -> None:
    """In turn, whatever the load of each."""
    worker = {"dispatchMode": "round-robin", "reservationCount": 2}
    with Container([profile(worker=worker)], *SLOW) as container:
        until(lambda: len(container.pids()) == 2)
        pids = [container.invoke(call_of("pid")).json for _ in range(4)]
    assert pids[0] != pids[1] and pids[:2] == pids[2:]


def test_fcc_queue_order(pool: ThreadPoolExecutor, gate: pathlib.Path) -> None:
    """The queue is served in the order of arrival."""
    worker = {"maxActivateRequests": 1, "replicaCountLimit": 1}
    with Container([profile(worker=worker)], *SLOW) as container:
        first = hold(pool, container, gate, 1)
        active(container, 1)
        waiting = []
        for number in range(5):
            waiting.append(pool.submit(container.invoke, call_of("count")))
            until(lambda: container.function()["queued"] == number + 1)
        gate.touch()
        assert first[0].result().status == 200
        served = [future.result().json for future in waiting]
    assert served == sorted(served) and len(set(served)) == 5


def test_fcc_limit_replicas(pool: ThreadPoolExecutor, gate: pathlib.Path) -> None:
    """At the limit calls wait, or fail at once with fastFailRequestsOnStarting."""
    worker = {"maxActivateRequests": 1, "replicaCountLimit": 1,
              "fastFailRequestsOnStarting": True}
    with Container([profile(worker=worker)], *SLOW) as container:
        hold(pool, container, gate, 1)
        active(container, 1)
        assert container.http(b"").failure == (503, "404", "ReplicaLimit")
        gate.touch()


def test_fcc_timeout_head__queue(pool: ThreadPoolExecutor, gate: pathlib.Path) -> None:
    """A call that finds no worker before its deadline fails, and leaves the queue."""
    worker = {"maxActivateRequests": 1, "replicaCountLimit": 1}
    with Container([profile(worker=worker)], *SLOW) as container:
        hold(pool, container, gate, 1)
        active(container, 1)
        late = container.http(b"", X_Fc_Function_Timeout="0.05")
        assert late.failure == (504, "404", "QueueTimeout")
        assert container.function()["queued"] == 0
        gate.touch()


def test_fcc_limit_calls(pool: ThreadPoolExecutor, gate: pathlib.Path) -> None:
    """Too many waiting calls, and too many calls in all, fail at once."""
    worker = {"maxActivateRequests": 1, "replicaCountLimit": 1}
    with Container([profile(worker=worker), profile("b")], *SLOW, "--queue", "1",
                   "--calls", "2") as container:
        calls = hold(pool, container, gate, 1)
        active(container, 1)
        assert container.invoke(b"", "b").status == 200
        calls += hold(pool, container, gate, 1)
        until(lambda: container.function()["queued"] == 1)
        assert container.http(b"", function="b").failure == (503, "404", "Overloaded")
        gate.touch()
        assert [call.result().status for call in calls] == [200, 200]


def test_fcc_limit_pool(pool: ThreadPoolExecutor, gate: pathlib.Path) -> None:
    """The third worker does not fit; every waiting call of its function fails."""
    worker = {"maxActivateRequests": 1}
    with Container([profile(worker=worker, memory_mb=512)], *SLOW) as container:
        calls = hold(pool, container, gate, 2)
        active(container, 2)
        assert container.http(b"").failure == (503, "404", "MemoryPoolFull")
        gate.touch()
        assert [call.result().status for call in calls] == [200, 200]


def test_fcc_launch_failed(pool: ThreadPoolExecutor) -> None:
    """A failed launch fails every call in the queue, at once."""
    with Container([profile(env={"START": "hang"},
                            worker={"initializationTimeout": 300})]) as container:
        calls = [pool.submit(container.invoke) for _ in range(5)]
        names = {call.result().failure[2] for call in calls}
    assert names == {"InitTimeout"}


def test_fcc_launch_parallel(pool: ThreadPoolExecutor, gate: pathlib.Path) -> None:
    """No more workers start at a time than may; the others wait their turn."""
    functions = [profile(f"f{number}", env={"START": str(gate)}) for number in range(6)]
    with Container(functions, "--launches", "2") as container:
        calls = [pool.submit(container.invoke, b"x", f"f{number}") for number in range(6)]

        def starting() -> int:
            states = [worker["state"] for name in container.stats()["functions"].values()
                      for worker in name["workers"] if worker["pid"]]
            return states.count("created")

        until(lambda: starting() == 2, "two workers start")
        gate.touch()
        while not all(call.done() for call in calls):
            assert starting() <= 2
        assert [call.result().status for call in calls] == [200] * 6


def test_fcc_limit_memory() -> None:
    """A worker that stays above its limit is killed, and its call fails."""
    with Container([profile(memory_mb=32)], "--memory-check", "0.02") as container:
        found = container.invoke(call_of("eat", bytes=64 << 20))
        assert found.failure == (404, "404", "WorkerDied")


def test_fcc_slot_body(pool: ThreadPoolExecutor, gate: pathlib.Path) -> None:
    """A call holds its slot until the body of its answer is passed on."""
    worker = {"maxActivateRequests": 1, "replicaCountLimit": 1}
    with Container([profile(worker=worker)], *SLOW) as container:
        first = pool.submit(container.invoke, call_of("drip", gate=str(gate)))
        active(container, 1)
        second = pool.submit(container.invoke, b"next")
        until(lambda: container.function()["queued"] == 1)
        gate.touch()
        assert (first.result().body, second.result().body) == (b"firstsecond", b"next")


def test_fcc_launch_command(tmp_path: pathlib.Path) -> None:
    """Without a command the file `bootstrap` of the code folder is started."""
    item = profile(url=tmp_path.as_uri())
    (tmp_path / "bootstrap").write_text("#!/bin/sh\nexec " + shlex.join(
        item.pop("command")))
    (tmp_path / "bootstrap").chmod(0o755)
    with Container([item]) as container:
        assert container.invoke(call_of("env")).json["cwd"] == str(tmp_path)


# ---- scaling ----


@pytest.mark.parametrize("strategy, mode, victim", [
    ("LCC", "least-request-count", 1), ("FIFO", "least-request-count", 0),
    ("LCC", "round-robin", 0), ("FILO", "round-robin", 1)])
def test_fcc_scale_victims(pool: ThreadPoolExecutor, gate: pathlib.Path, strategy: str,
                           mode: str, victim: int) -> None:
    """Oldest, newest, or the one with the fewest calls goes first. Of two workers the
    first has a call, or the second in the other mode."""
    worker = {"reservationCount": 2, "shrinkStrategy": strategy, "dispatchMode": mode}
    with Container([profile(worker=worker)], *QUICK, "--idle-ticks", "20") as container:
        pids = until(lambda: len(container.pids()) == 2 and container.pids())
        call = hold(pool, container, gate, 1)
        active(container, 1)
        put(container, [profile(worker=dict(worker, reservationCount=1))])
        until(lambda: container.pids() == [pids[1 - victim]])
        gate.touch()
        assert call[0].result().status == 200


def test_fcc_scale_down__load(pool: ThreadPoolExecutor, gate: pathlib.Path) -> None:
    """Eight calls in four workers for ten each: two are enough for a load of 0.7."""
    worker = {"reservationCount": 4}
    with Container([profile(worker=worker, memory_mb=32)], *QUICK) as container:
        until(lambda: len(container.pids()) == 4)
        hold(pool, container, gate, 8)
        active(container, 8)
        put(container, [profile(memory_mb=32)])
        until(lambda: len(container.pids()) == 2 and container.function()["low_ticks"])
        gate.touch()


def test_fcc_scale_down(pool: ThreadPoolExecutor, gate: pathlib.Path) -> None:
    """Three workers, no calls: all are gone after the sixth tick."""
    with Container([profile(worker={"maxActivateRequests": 1})], *QUICK) as container:
        calls = hold(pool, container, gate, 3)
        active(container, 3)
        gate.touch()
        assert len({call.result().json for call in calls}) == 3
        until(lambda: not container.function()["workers"])
        assert container.invoke(b"again").body == b"again"


def test_fcc_stop_drain(pool: ThreadPoolExecutor, gate: pathlib.Path) -> None:
    """A worker that must go lets its call end."""
    worker = {"maxActivateRequests": 4, "shrinkStrategy": "FIFO", "replicaCountLimit": 2,
              "dispatchMode": "round-robin", "reservationCount": 2}
    with Container([profile(worker=worker)], *QUICK) as container:
        until(lambda: len(container.pids()) == 2)
        calls = hold(pool, container, gate, 2)
        active(container, 2)
        worker["reservationCount"] = 0
        put(container, [profile(worker=worker)])
        until(lambda: len(container.pids(state="pending-stop")) == 1)
        gate.touch()
        assert {call.result().status for call in calls} == {200}
        until(lambda: not container.function()["workers"])


def test_fcc_scale_up(pool: ThreadPoolExecutor, gate: pathlib.Path) -> None:
    """A full worker gets company at the next tick, before any call waits."""
    worker = {"maxActivateRequests": 5}
    with Container([profile(worker=worker)], "--tick", "0.05") as container:
        hold(pool, container, gate, 5)
        active(container, 5)
        until(lambda: len(container.pids()) == 2)
        gate.touch()


def test_fcc_scale_reserve() -> None:
    """Reserved workers start before any call, stay, and are replaced."""
    with Container([profile(worker={"reservationCount": 2})], *QUICK) as container:
        first = until(lambda: len(container.pids()) == 2 and container.pids())
        assert container.ask("POST", "/initialize").status == 200
        os.kill(first[0], signal.SIGKILL)
        found = until(lambda: first[0] not in container.pids()
                      and len(container.pids()) == 2 and container.pids())
        assert first[1] in found
        once = profile(worker={"reservationCount": 2, "disposable": True})
        put(container, [once])  # [fcc.disposable.one]
        assert container.ask("POST", "/initialize").status == 200
        until(lambda: not container.function()["workers"])


def test_fcc_initialize_ready() -> None:
    """/initialize waits for reserved workers; it fails when one cannot be ready."""
    bad = profile("bad", env={"START": "crash"}, worker={"reservationCount": 1})
    with Container([profile(worker={"reservationCount": 2}), bad], *SLOW) as container:
        found = container.ask("POST", "/initialize")
        assert found.failure == (404, "404", "InitFailed")
        put(container, [profile(worker={"reservationCount": 3})])
        assert container.ask("POST", "/initialize").status == 200
        assert len(container.pids()) == 3


# ---- new lists ----


def put(container: Container, document: Any) -> Answer:
    """Replace the list over HTTP."""
    found = container.ask("PUT", "/-/profiles", json.dumps(document).encode())
    assert found.status in (200, 400), found
    return found


def hup(container: Container, document: Any) -> None:
    """Replace the list in the file, and tell so."""
    lines = len(re.findall("gateway:", container.talk()))
    container.profiles.write_text(json.dumps(document))
    container.process.send_signal(signal.SIGHUP)
    until(lambda: len(re.findall("gateway:", container.talk())) > lines)


def test_fcc_profile_replace() -> None:
    """A new list replaces the old one entirely; a bad one changes nothing."""
    with Container([profile("a"), profile("b")]) as container:
        assert put(container, [profile("b"), profile("c")]).status == 200
        assert sorted(container.stats()["functions"]) == ["b", "c"]
        bad = put(container, [profile("d"), profile("e", handler=1)])
        assert "functions[1].handler" in bad.json["errorMessage"]
        hup(container, [profile("f"), {"name": "g"}])
        assert sorted(container.stats()["functions"]) == ["b", "c"]
        assert "functions[1].runtime: missing" in container.talk()
        hup(container, [profile("f")])
        assert sorted(container.stats()["functions"]) == ["f"]


def test_fcc_profile_identity() -> None:
    """Other code needs another worker; another limit does not."""
    with Container([profile()], *SLOW) as container:
        pids = [container.invoke(call_of("pid")).json]
        for item in (profile(worker={"maxActivateRequests": 3}),
                     profile(signature="2"), profile(signature="2", handler="b.c"),
                     profile(signature="2", handler="b.c", memory_mb=65)):
            put(container, [item])
            pids.append(container.invoke(call_of("pid")).json)
    assert pids[0] == pids[1] and len(set(pids)) == 4


def test_fcc_queue_order__limit(pool: ThreadPoolExecutor, gate: pathlib.Path) -> None:
    """Calls that wait are served at once when a new list gives workers more of them."""
    worker = {"maxActivateRequests": 1, "replicaCountLimit": 1}
    with Container([profile(worker=worker)], *SLOW) as container:
        hold(pool, container, gate, 1)
        active(container, 1)
        call = pool.submit(container.invoke, b"next")
        until(lambda: container.function()["queued"] == 1)
        worker["maxActivateRequests"] = 2
        put(container, [profile(worker=worker)])
        assert call.result().body == b"next"
        gate.touch()


def test_fcc_profile_identity__drain(pool: ThreadPoolExecutor,
                                     gate: pathlib.Path) -> None:
    """Running calls outlive the change and the removal of their function."""
    with Container([profile()], *SLOW) as container:
        calls = hold(pool, container, gate, 2)
        active(container, 2)
        put(container, [profile(signature="2")])
        assert container.invoke(b"new").body == b"new"
        put(container, [])
        assert container.invoke(b"").failure[2] == "UnknownFunction"
        gate.touch()
        assert {call.result().status for call in calls} == {200}


def test_fcc_profile_replace__load(pool: ThreadPoolExecutor) -> None:
    """No call fails while lists change under load."""
    with Container([profile()], *SLOW) as container:
        calls = [pool.submit(container.invoke, b"x") for _ in range(150)]
        for number in range(5):
            hup(container, [profile(signature=str(number))])
        assert {call.result().status for call in calls} == {200}


def test_fcc_profile_replace__many(pool: ThreadPoolExecutor) -> None:
    """Two hundred functions, twenty of them in use, two of these broken."""
    functions = [profile(f"f{number}", memory_mb=32, env={} if number else {
        "START": "crash"}) for number in range(200)]
    with Container(functions, "--launches", "4") as container:
        names = [f"f{number}" for number in range(0, 200, 10)]
        calls = [pool.submit(container.invoke, b"x", name) for name in names]
        assert [call.result().status for call in calls] == [404] + [200] * 19
        until(lambda: sum(len(one["workers"]) for one in container.stats()[
            "functions"].values()) == 19)  # the broken one takes a moment to leave


def test_fcc_stop_signals() -> None:
    """A worker that does not end on SIGTERM is killed after the grace."""
    stubborn = profile(command=["sh", "-c", "trap '' TERM; exec \"$0\" \"$@\"",
                                *profile()["command"]])
    with Container([stubborn], "--grace", "0.05") as container:
        assert container.invoke(b"x").status == 200
        put(container, [])
        until(lambda: container.processes() == [container.process.pid])


def test_fcc_log_worker__kept() -> None:
    """The files of workers that have stopped stay for a while."""
    with Container([profile(worker={"disposable": True})]) as container:
        for _ in range(3):
            container.invoke(b"x")
        until(lambda: not container.function()["workers"])
        assert len(list(container.folder.glob("noslate-*/logs/workers/*"))) == 3
        until(lambda: not list(container.folder.glob("noslate-*/sandbox/*")))
    assert not gateways.WORKER.parent.joinpath("nohup.out").exists()


def test_fcc_fields_pass__initializer(tmp_path: pathlib.Path) -> None:
    """An initializer hears how long it may take."""
    (tmp_path / "index.py").write_text(
        "def initialize(context):\n    global limit_ms\n"
        "    limit_ms = context.time_limit_ms\n"
        "def main_handler(event, context):\n    return limit_ms\n")
    with Container([profile(
            url=tmp_path.as_uri(), initializer="index.initialize",
            command=[sys.executable, "-B", str(gateways.BOOTSTRAP)],
            worker={"initializationTimeout": 8500})], *SLOW) as container:
        assert container.invoke().body == b"9000"
