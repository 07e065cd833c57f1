# test_instances.py: instances as processes: start, freeze, limits, memory, end (MIT).
"""Real processes (scripted_bootstrap.py) that obey the event, on a real platform."""

import json
import os
import pathlib
import re
import select
import signal
import socket
import subprocess
import sys
from typing import Any, Callable, Dict, List, Tuple

import emulator
import pytest
import scripted_bootstrap
import wire
from harness import (PROTOCOLS, Harness, Peer, background, code, event, fifo,
                     outcome_of, process_state, processes, scale, until)

__all__ = ["code", "fifo"]
Make = Callable[[str], str]
REFERENCE = str(pathlib.Path(emulator.__file__ or "").parent)
SOAK = pathlib.Path(__file__).resolve().parents[1] / "tools" / "soak.py"


def notes(code: str) -> List[str]:
    """Return what the process has noted."""
    path = pathlib.Path(code) / "notes"
    return path.read_text().split() if path.exists() else []


@PROTOCOLS
def test_any_instance_idle__process(protocol: str, code: str) -> None:
    """An instance that is idle for long ends in order; the next one is new."""
    scripted_bootstrap.place(pathlib.Path(code), {"start": [["on-term", "end"]]})
    with Harness(protocol, code, idle_s=0.1) as harness:
        first = harness.outcome(event(["pid"]))[1]
        assert until(lambda: notes(code) == ["SIGTERM"])
        assert until(lambda: process_state(int(first)) == "X")
        assert harness.outcome(event(["pid"]))[1] != first
        counts = harness.state()["counts"]
        assert (counts["cold_starts"], counts["reused"], counts["ok"]) == (2, 0, 2)


@pytest.mark.parametrize("way", ("timeout", "cancelled", "exit", "idle"))
def test_any_instance_on_demand__fc_port(way: str, code: str, fifo: Make) -> None:
    """On a fixed port the next instance waits until the last one has left it."""
    here = fifo("here")
    scripted_bootstrap.place(pathlib.Path(code), {"start": [["on-term", "ignore"]]})
    with Harness("fc", code, port=wire.free_port(),
                 timeout_s=0.2 if way == "timeout" else 20,
                 idle_s=0.1 if way == "idle" else 20) as harness:
        deeds: Dict[str, List[Any]] = {"exit": ["exit", 3], "idle": ["say", "x"]}
        deed = deeds.get(way, ["hang"])
        caller = harness.event(event(["tell", here], deed))
        scripted_bootstrap.wait(here)
        if way == "cancelled":
            caller.close()
        elif way != "idle":
            assert outcome_of(caller)[0] == way
        assert until(lambda: not harness.states())
        assert harness.outcome(b"next") == ("ok", b"next")


@PROTOCOLS
def test_any_stop_drain__replaced(protocol: str, code: str, fifo: Make) -> None:
    """What waits when the platform stops is served by another instance, if need be."""
    here, go = fifo("here"), fifo("go")
    with Harness(protocol, code, max_instances=1) as harness:
        first = harness.event(event(["tell", here], ["wait", go], ["exit", 3]))
        scripted_bootstrap.wait(here)
        queued = harness.event(b"queued")
        assert until(lambda: harness.state()["queued"] == 1)
        drain = background(harness.platform.drain)
        assert until(lambda: harness.outcome(b"late")[0] == "cancelled")
        scripted_bootstrap.tell(go)
        assert outcome_of(first)[0] == "exit"
        assert outcome_of(queued) == ("ok", b"queued")
        drain.join(8)
        assert not drain.is_alive()


def memory_ways() -> Dict[str, List[List[Any]]]:
    """Return the ways to take more than 50 MB. The kernel's account of a process that
    ends at once begins with the peak of the one that started it: the tests' own."""
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # it is what it is now
    own = re.search(r"VmHWM:\s+(\d+)", pathlib.Path("/proc/self/status").read_text())
    more = ["alloc", max(60, int(own[1]) // 1024 + 30 if own else 0)]
    return {
        "stays": [["alloc", 60], ["hang"]], "exits": [more, ["exit", 0]],
        "killed": [more, ["kill", 9]], "a child": [["fork-alloc", 60], ["hang"]],
        "bit by bit": [["alloc", 20], ["alloc", 20], ["alloc", 20], ["hang"]]}


@PROTOCOLS
def test_any_memory_limit__ways(protocol: str, code: str) -> None:
    """Taking more memory than the limit is out-of-memory, also when it ends at once; in
    whatever way; less than that is nobody's business."""
    with Harness(protocol, code, memory_mb=50) as harness:
        for name, steps in memory_ways().items():
            assert harness.outcome(event(*steps))[0] == "out-of-memory", name
            assert harness.outcome(b"next") == ("ok", b"next"), name
        assert harness.outcome(event(["alloc", 10], ["exit", 3]))[0] == "exit"
    assert until(lambda: processes(code) == [])


def test_any_memory_limit__spawning(code: str, fifo: Make) -> None:
    """A child that is about to become another program has no memory of its own yet."""
    with Harness("scf", code, memory_mb=100, timeout_s=0.8) as harness:
        spawning = event(["alloc", 60], ["spawn", fifo("go")])
        assert harness.outcome(spawning)[0] == "timeout"
    assert until(lambda: processes(code) == [])


SETTINGS: List[Tuple[str, str, Any, str]] = [
    ("xx", "name", "x", "protocol 'xx'"), ("scf", "timeout_s", 0, "--timeout"),
    ("scf", "timeout_s", float("nan"), "--timeout"), ("fc", "idle_s", 0, "more than 0"),
    ("scf", "memory_mb", 1.5, "whole"), ("scf", "queue", -1, "0 or more"),
    ("fc", "concurrency", 201, "200"), ("fc", "command", "a b", "list of words"),
    ("fc", "port", 70000, "0 to 65535"), ("fc", "init_timeout_s", 1, "not a setting"),
    ("fg", "env", {"A": 1}, "variable A"), ("scf", "env", {"A\n": "x"}, "variable"),
    ("scf", "name", "\ud800", "name"), ("fc", "name", "a\r\nInjected: b", "name"),
    ("scf", "region", "a\0b", "region"),
    ("fg", "credentials", {"access_key_id": "a\r\nB: c"}, "access_key_id"),
    ("fc", "credentials", {"access_key_id": "a\r\nB: c"}, "access_key_id")]


@pytest.mark.parametrize("protocol,setting,value,words", SETTINGS,
                         ids=lambda value: repr(value)[:20])
def test_any_security_values__library(protocol: str, setting: str, value: Any,
                                      words: str) -> None:
    """A setting that is unknown, out of range or would break a field or a variable is
    refused by its name, in one line."""
    with pytest.raises(ValueError) as refused:
        emulator.Platform(protocol, ".", **{setting: value}).close()
    assert words in str(refused.value) and "\n" not in str(refused.value)


def run_script(script: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a program that uses the emulator as a library."""
    return subprocess.run(
        [sys.executable, "-c", "import os, signal, sys, threading\n"
         "sys.path.insert(0, %r)\nimport emulator\n%s" % (REFERENCE, script),
         *arguments], timeout=30, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        universal_newlines=True)


@PROTOCOLS
def test_any_process_group__never_closed(protocol: str, code: str) -> None:
    """A program that forgets to close a platform leaves no process; nor does one of
    its children end it, even if that closes it."""
    port = ", port=0" if protocol == "fc" else ""
    done = run_script("platform = emulator.Platform(sys.argv[1], sys.argv[2]%s)\n"
                      "assert platform.invoke(b'x').kind == 'ok'\n"
                      "if not os.fork(): sys.exit(platform.close())\n"
                      "assert os.wait()[1] == 0\n"
                      "print(platform.invoke(b'y').kind)\n"
                      "print(platform.counts['cold_starts'])\n" % port, protocol, code)
    assert (done.returncode, done.stdout) == (0, "ok\n1\n") and processes(code) == []


def test_any_process_group__interrupted_close(code: str) -> None:
    """Ctrl-C while it stops leaves no process."""
    scripted_bootstrap.place(pathlib.Path(code), {"start": [["on-term", "ignore"]]})
    done = run_script(
        "platform = emulator.Platform('scf', sys.argv[1], grace_s=1000)\n"
        "print(platform.invoke(b'x').kind, flush=True)\n"
        "notes = os.path.join(sys.argv[1], 'notes')\n"
        "def interrupt():\n"
        "    while not os.path.exists(notes): pass\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "threading.Thread(target=interrupt).start()\n"
        "platform.close()\n", code)
    assert done.stdout == "ok\n" and "KeyboardInterrupt" in done.stderr
    assert until(lambda: processes(code) == [])


ORPHAN = """#!/bin/sh
(sh -c 'echo $$ > orphan; exec sleep 1000' &)
exec sleep 1000
"""
AS_FIRST = """import ctypes, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # subreaper: orphans are ours, as process 1's
sys.path.insert(0, sys.argv.pop(1))
import emulator
sys.exit(emulator.main())
"""


def test_any_process_group__orphan(code: str) -> None:
    """As the first process of a container it reaps what a bootstrap leaves behind, at
    once, while that lives on."""
    pathlib.Path(code, "bootstrap").write_text(ORPHAN)
    mark = pathlib.Path(code, "orphan")
    running = subprocess.Popen([sys.executable, "-c", AS_FIRST, REFERENCE, "scf", code,
                                "--event", "x", "--quiet"])
    try:
        assert until(lambda: mark.exists() and mark.read_text().endswith("\n"))
        orphan = int(mark.read_text())
        os.kill(orphan, signal.SIGKILL)
        assert until(lambda: process_state(orphan) == "X") and running.poll() is None
    finally:
        running.terminate()
        running.wait(10)


def test_any_process_group__leftovers_soak() -> None:
    """In 800 invocations threads and open files do not grow, nor memory by more than
    a large event."""
    done = subprocess.run([sys.executable, str(SOAK), "800"], stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=100)
    assert done.returncode == 0, (done.stdout + done.stderr[-2000:]).decode()
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["protocol"] for one in results] == ["scf", "fg", "fc"]


@PROTOCOLS
def test_any_memory_limit__ready(protocol: str, code: str) -> None:
    """What the initialisation holds counts before the first event."""
    scripted_bootstrap.place(pathlib.Path(code), {"start": [["alloc", 110]]})
    with Harness(protocol, code, memory_mb=100) as harness:
        assert harness.outcome(b"first")[0] == "out-of-memory"
        assert harness.outcome(b"next") == ("ok", b"next")


@PROTOCOLS
def test_any_memory_limit__peak(protocol: str, code: str,
                                monkeypatch: pytest.MonkeyPatch) -> None:
    """An outcome says what the instance held at most, to every kind of caller."""
    scale(monkeypatch, MEMORY_TICK_S=0)  # so every look is old, and none is planned
    monkeypatch.setattr(emulator.Platform, "watch_memory", lambda _: None)
    with Harness(protocol, code, memory_mb=200) as harness:
        small = harness.platform.invoke(b"small").peak_mb
        large = harness.platform.invoke(event(["alloc", 50], ["say", "x"])).peak_mb
        answer = harness.event(b"next").answer("POST")
    assert 0 < small < 50 < large < 200
    assert float(answer.header("x-peak-mb") or 0) >= round(large, 3)


@PROTOCOLS
def test_any_memory_limit__result(protocol: str, code: str,
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known when the result comes counts, though the run was shorter than the
    time between two looks."""
    with Harness(protocol, code, memory_mb=100) as harness:
        assert harness.outcome(b"first")[0] == "ok"
        scale(monkeypatch, MEMORY_TICK_S=0)  # so every look is old, and none is planned
        monkeypatch.setattr(harness.platform, "watch_memory", lambda: None)
        assert harness.outcome(event(["alloc", 110], ["say", "x"]))[0] == (
            "out-of-memory")
        assert harness.outcome(b"next") == ("ok", b"next")
    assert until(lambda: processes(code) == [])


def test_attach__another_poller() -> None:
    """fg: that a client hangs up after its event is no new start while another poll
    waits; the event is not given twice."""
    seen: List[Any] = []
    with Harness("fg", on_trace=seen.append) as harness:
        callers, address = [harness.event(b"x")], harness.api()
        polls = []
        for number in range(3):
            polls.append(Peer(socket.create_connection(address, 5)))
            polls[-1].send(wire.request_bytes("GET", "/v1/runtime/invocation/request"))
            assert until(lambda: sum(one["what"] == "call" for one in seen) > number)
            if not number:
                request_id = polls[0].answer().header("x-cff-request-id") or ""
            elif number == 1:
                polls[0].close()
        result = Peer(socket.create_connection(address, 5))
        result.send(wire.request_bytes("POST", "/v1/runtime/invocation/response/"
                                       + request_id, (), b"done"))
        assert outcome_of(callers[0]) == ("ok", b"done")
        callers.append(harness.event(b"y"))
        assert select.select([poll.sock for poll in polls[1:]], [], [], 20)[0] == [
            polls[1].sock]
        assert polls[1].answer().body == b"y"


def test_any_api_unknown__head() -> None:
    """HEAD is answered without a body, so that the next answer is read as one."""
    with Harness("scf") as harness:
        harness.event(b"x")
        peer = Peer(socket.create_connection(harness.api(), 5))
        peer.send(b"HEAD /nothing HTTP/1.1\r\n\r\n" * 2)
        assert [peer.answer("HEAD").status for _ in range(2)] == [404, 404]
