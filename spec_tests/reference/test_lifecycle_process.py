# test_lifecycle_process.py: instances as processes: start, freeze, limits, end (MIT).
"""Real processes (scripted_bootstrap.py) that obey the event, behind a real platform."""

import errno
import http.client
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import threading
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest

import emulator
import scripted_bootstrap
import wire
from implementations import START_EMULATOR
from harness import (PATIENCE_S, Peer, Harness, no_thread_once, outcome_of, processes,
                     until)

ALL = ("fc", "scf", "fg")
protocols = pytest.mark.parametrize("protocol", ALL)


@pytest.fixture
def code(tmp_path: pathlib.Path) -> Iterator[str]:
    """The function's folder; what is left of its processes is killed."""
    folder = scripted_bootstrap.place(tmp_path / "code")
    yield folder
    for process_id in processes(folder):
        os.kill(int(process_id), signal.SIGKILL)


@pytest.fixture
def fifo(tmp_path: pathlib.Path) -> Callable[[str], str]:
    """Make FIFOs by which process and test wait for each other."""
    def made(name: str) -> str:
        path = str(tmp_path / name)
        os.mkfifo(path)
        return path

    return made


def event(*steps: List[Any]) -> bytes:
    """Return a script as an event."""
    return json.dumps(steps).encode()


def process_state(process_id: int) -> str:
    """Return the letter that stands for the state of a process, X if it is gone."""
    try:
        text = pathlib.Path("/proc/%d/stat" % process_id).read_text()
        return text.rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def wait_for(path: str) -> None:
    """Wait until the process has opened and closed the FIFO."""
    scripted_bootstrap.wait(path)


# ---- freeze ----


def test_fc_freeze_thaw(code: str, fifo: Callable[[str], str]) -> None:
    """Between requests every process of the instance is stopped; within, it runs."""
    here, go = fifo("here"), fifo("go")
    with Harness("fc", code) as harness:
        ids = [int(one) for one in (harness.outcome(event(["pid"]))[1],
                                    harness.outcome(event(["fork"]))[1])]
        assert until(lambda: [process_state(one) for one in ids] == ["T", "T"])
        caller = harness.event(event(["tell", here], ["wait", go], ["pid"]))
        wait_for(here)
        assert not {process_state(one) for one in ids} & {"T", "Z", "X"}
        scripted_bootstrap.tell(go)
        assert outcome_of(caller) == ("ok", b"%d" % ids[0])
        assert until(lambda: [process_state(one) for one in ids] == ["T", "T"])


def test_fc_freeze_idle__concurrency(code: str, fifo: Callable[[str], str]) -> None:
    """The end of one of two requests does not freeze the other."""
    go = fifo("go")
    with Harness("fc", code, concurrency=2) as harness:
        caller = harness.event(event(["wait", go], ["pid"]))
        process_id = int(harness.outcome(event(["pid"]))[1])
        assert process_state(process_id) != "T"
        scripted_bootstrap.tell(go)
        assert outcome_of(caller) == ("ok", b"%d" % process_id)
        assert until(lambda: process_state(process_id) == "T")


def test_fc_freeze_idle__off(code: str) -> None:
    """Without freezing the process goes on."""
    with Harness("fc", code, freeze=False) as harness:
        process_id = int(harness.outcome(event(["pid"]))[1])
        assert harness.state()["instances"][0]["state"] == "idle"
        assert process_state(process_id) != "T"


# ---- stop ----


def notes(code: str) -> List[str]:
    """Return what the process has noted."""
    path = pathlib.Path(code) / "notes"
    return path.read_text().split() if path.exists() else []


@protocols
@pytest.mark.parametrize("word", ("end", "ignore"))
@pytest.mark.parametrize("freeze", (True, False), ids=("frozen", "running"))
def test_any_stop_order(protocol: str, word: str, freeze: bool, code: str) -> None:
    """Pre-stop (fc), SIGTERM, and after the grace SIGKILL for the whole group."""
    scripted_bootstrap.place(pathlib.Path(code), {"start": [["on-term", word]],
                                                  "/pre-stop": [["note", "pre-stop"]]})
    settings = {"freeze": freeze, "pre_stop": True} if protocol == "fc" else {}
    with Harness(protocol, code, grace_s=0.5,  # of the child, too
                 **settings) as harness:
        child = int(harness.outcome(event(["fork"]))[1])
        assert process_state(child) != "X"
    assert list(dict.fromkeys(notes(code))) == ["pre-stop",
                                                "SIGTERM"][protocol != "fc":]
    assert until(lambda: processes(code) == [])  # the last SIGKILL may take a moment


@protocols
def test_any_stop_order__no_grace(protocol: str, code: str) -> None:
    """A grace of 0 kills a process that would ignore SIGTERM for ever."""
    scripted_bootstrap.place(pathlib.Path(code), {"start": [["on-term", "ignore"]]})
    with Harness(protocol, code, grace_s=0) as harness:
        assert harness.outcome(b"hello") == ("ok", b"hello")
    assert processes(code) == []


@protocols
def test_any_instance_idle(protocol: str, code: str) -> None:
    """An instance that is idle for long ends in order; the next one is new."""
    scripted_bootstrap.place(pathlib.Path(code), {"start": [["on-term", "end"]]})
    with Harness(protocol, code, idle_s=0.1) as harness:
        first = harness.outcome(event(["pid"]))[1]
        assert until(lambda: notes(code) == ["SIGTERM"])
        assert until(lambda: process_state(int(first)) == "X")
        second = harness.outcome(event(["pid"]))[1]
        assert first != second
        counts = harness.state()["counts"]
        assert (counts["cold_starts"], counts["reused"], counts["ok"]) == (2, 0, 2)


BUSY_THREAD = ("threading.Thread(target=lambda: ("
               "time.sleep(0.1), print(flush=True), any(iter(int, 1)))).start()\n")


@pytest.mark.parametrize("program,state,wanted", (
    ("print(flush=True)\ntime.sleep(99)", "S", True),
    ("print(flush=True)\nwhile True: pass", "R", False),
    (BUSY_THREAD + "time.sleep(99)", "S", False),
    ("print(flush=True)\nos.kill(os.getpid(), 19)", "T", False)),
    ids=("sleeps", "busy", "busy-thread", "stopped"))
def test_fc_stop_order__rest(program: str, state: str, wanted: bool) -> None:
    """A process is at rest when all its threads wait; a stopped one is not."""
    running = subprocess.Popen([sys.executable, "-IS", "-c", "import os, threading, time\n"
                                + program], stdout=subprocess.PIPE)
    try:
        assert running.stdout is not None and running.stdout.readline() == b"\n"
        assert until(lambda: process_state(running.pid) == state
                     and emulator.is_asleep(running.pid) == wanted)
    finally:
        running.kill()
        running.communicate()
    assert not emulator.is_asleep(running.pid)


@pytest.mark.parametrize("way", ("timeout", "cancelled", "exit", "idle"))
def test_any_instance_on_demand__fc_port_next_instance(
        way: str, code: str, fifo: Callable[[str], str]) -> None:
    """On a fixed port the next instance waits until the last one has left it."""
    here = fifo("here")
    scripted_bootstrap.place(pathlib.Path(code), {"start": [["on-term", "ignore"]]})
    with Harness("fc", code, port=wire.free_port(), timeout_s=0.2 if way == "timeout" else 20,
                 idle_s=0.1 if way == "idle" else 20) as harness:
        deed: List[Any] = ["exit", 3] if way == "exit" else (
            ["say", "x"] if way == "idle" else ["hang"])
        caller = harness.event(event(["tell", here], deed))
        wait_for(here)
        if way == "cancelled":
            caller.close()
        elif way != "idle":
            assert outcome_of(caller)[0] == way
        assert until(lambda: not harness.platform.instances)
        assert harness.outcome(b"next") == ("ok", b"next")


def test_any_outcome_one__bounded_full_backlog(code: str) -> None:
    """A server that accepts nothing cannot make its callers wait past the limit."""
    scripted_bootstrap.place(pathlib.Path(code),
                             {"backlog": 0, "listening": [["hang"]]})
    with Harness("fc", code, concurrency=4, timeout_s=0.3) as harness:
        callers = [harness.event(b"x") for _ in range(4)]
        assert [outcome_of(caller)[0] for caller in callers] == ["timeout"] * 4
        assert harness.outcome(b"next") == ("ok", b"next")


def test_any_process_group__leftovers_after_timeout(
        code: str, fifo: Callable[[str], str]) -> None:
    """What runs on in an instance after a timeout there ends with the platform too."""
    here = fifo("here")
    with Harness("fc", code, concurrency=2, timeout_s=0.3) as harness:
        callers = [harness.event(event(["tell", here], ["hang"]))]
        wait_for(here)
        harness.platform.function.timeout_s = 60
        callers.append(harness.event(event(["tell", here], ["hang"])))
        wait_for(here)
        assert outcome_of(callers[0])[0] == "timeout"
        harness.platform.close()
        assert outcome_of(callers[1])[0] == "cancelled"
        assert processes(code) == []


def test_any_outcome_one__bounded_long_idle(code: str) -> None:
    """An idle time of an age does not keep the other clocks from running out."""
    with Harness("scf", code, idle_s=1e6, timeout_s=0.3) as harness:
        assert harness.outcome(b"first") == ("ok", b"first")
        until(lambda: False, 0.4)  # the platform waits for the idle time alone
        assert harness.outcome(event(["hang"]))[0] == "timeout"


@protocols
def test_any_stop_order__long_limits(protocol: str, code: str) -> None:
    """The longest time limits that there are break no clock, no wait and no stop."""
    longest: Dict[str, Any] = {
        name: emulator.MAX_LIMIT_S for name in emulator.LIMITS[protocol]
        if name.endswith("_s")}
    if protocol == "fc":  # and each request needs a new connection
        longest.update(pre_freeze=True, pre_stop=True)
        scripted_bootstrap.place(pathlib.Path(code), {"/pre-freeze": [["close"]],
                                                      "/pre-stop": [["close"]]})
    with Harness(protocol, code, **longest) as harness:
        assert harness.outcome(b"first") == ("ok", b"first")
        assert harness.outcome(b"next") == ("ok", b"next")
    assert processes(code) == []


# ---- instances and the queue ----


@protocols
def test_any_queue_order(protocol: str, code: str, fifo: Callable[[str], str]) -> None:
    """One instance, room for two: they wait in order, one more is throttled."""
    here, go = fifo("here"), fifo("go")
    with Harness(protocol, code, max_instances=1, queue=2) as harness:
        callers = [harness.event(event(["tell", here], ["wait", go], ["count"]))]
        wait_for(here)
        for number in (1, 2):
            callers.append(harness.event(event(["count"])))
            assert until(lambda: harness.state()["queued"] == number)
        assert harness.outcome(b"too many")[0] == "throttled"
        scripted_bootstrap.tell(go)
        assert [outcome_of(one) for one in callers] == [
            ("ok", b"1"), ("ok", b"2"), ("ok", b"3")]
        counts = harness.state()["counts"]
    assert [counts[name] for name in ("accepted", "ok", "throttled", "cold_starts")
            ] == [4, 3, 1, 1]


@protocols
def test_any_queue_limit__timeout(protocol: str, code: str,
                                  fifo: Callable[[str], str]) -> None:
    """An event that waits for too long is throttled; the one that runs goes on."""
    here, go = fifo("here"), fifo("go")
    with Harness(protocol, code, max_instances=1, queue_timeout_s=0.1) as harness:
        first = harness.event(event(["tell", here], ["wait", go], ["say", "first"]))
        wait_for(here)
        assert harness.outcome(b"second")[0] == "throttled"
        scripted_bootstrap.tell(go)
        assert outcome_of(first) == ("ok", b"first")


@protocols
@pytest.mark.parametrize("limit", (1, 2, 3))
def test_any_instance_on_demand(protocol: str, limit: int, code: str,
                                fifo: Callable[[str], str]) -> None:
    """As many instances run at a time as are allowed, and idle ones are reused."""
    gates = [fifo("go%d" % number) for number in range(limit)]
    with Harness(protocol, code, max_instances=limit, event_bytes=1000) as harness:
        callers = [harness.event(event(["wait", gate], ["pid"])) for gate in gates]
        assert until(lambda: harness.platform.counts["cold_starts"] == limit)
        callers.append(harness.event(b"waits"))
        assert until(lambda: harness.state()["queued"] == 1)
        for gate in gates:
            scripted_bootstrap.tell(gate)
        assert len({outcome_of(caller) for caller in callers[:-1]}) == limit
        assert outcome_of(callers[-1]) == ("ok", b"waits")
        again = {harness.outcome(event(["pid"])) for _ in range(3)}
        assert harness.outcome(b"x" * 1001)[0] == "request-too-large"  # reaches none
        counts = harness.state()["counts"]
    assert len(again) == 1 and (counts["cold_starts"], counts["reused"]) == (limit, 4)


# ---- starts that fail ----


@protocols
@pytest.mark.parametrize("error", (ValueError("x"), OverflowError("x"), MemoryError("x"),
                                   UnicodeError("x"), RuntimeError("x")), ids=repr)
def test_any_outcome_one__start(protocol: str, error: Exception, code: str,
                                monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever keeps a process from being started is a start-error."""
    def fail(*_: object, **__: object) -> None:
        raise error

    with Harness(protocol, code) as harness:
        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "Popen", fail)
            assert harness.outcome(b"first")[0] == "start-error"
        assert harness.outcome(b"second") == ("ok", b"second")


@protocols
def test_any_outcome_one__start_unwatched(protocol: str, code: str,
                                          fifo: Callable[[str], str],
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose end no thread could see is not left running."""
    scripted_bootstrap.place(pathlib.Path(code), {"start": [["wait", fifo("never")]]})
    aside = emulator.aside

    def fail(call: Callable[..., object], *arguments: object) -> threading.Thread:
        if call.__name__ == "_watch":
            raise RuntimeError("can't start new thread")
        return aside(call, *arguments)

    with Harness(protocol, code) as harness:
        monkeypatch.setattr(emulator, "aside", fail)
        assert harness.outcome(b"first")[0] == "start-error" and processes(code) == []
        monkeypatch.setattr(emulator, "aside", aside)
        pathlib.Path(code, "plan").unlink(missing_ok=True)  # it may have died too early
        assert harness.outcome(b"second") == ("ok", b"second")


def test_any_outcome_one__start_no_thread(code: str,
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a thread for the start, or for what follows, it is a start-error."""
    def fail(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    with Harness("fc", code) as harness:
        with monkeypatch.context() as patch:
            patch.setattr(emulator, "aside", fail)
            first = harness.platform.invoke(b"first")
        assert first.kind == "start-error" and "new thread" in first.message
        assert harness.outcome(b"second") == ("ok", b"second")


@protocols
def test_any_outcome_one__start_odd_path(protocol: str, tmp_path: pathlib.Path) -> None:
    """A start that fails is told of, also when its path is no UTF-8."""
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    with Harness(protocol, str(folder), on_log=lambda data: None) as harness:
        assert harness.outcome(b"event")[0] == "start-error"


def test_any_outcome_one__no_thread(code: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a thread for a large result it is sent all the same."""
    large = b"x" * 1000000
    with Harness("scf", code) as harness:
        caller = harness.event(b"first")
        assert caller.answer("POST").body == b"first"
        tried = no_thread_once("_send", monkeypatch)
        caller.send(wire.request_bytes("POST", "/-/invoke", (), large))
        assert caller.answer("POST").body == large and tried.is_set()
        assert harness.outcome(b"next") == ("ok", b"next")


def test_any_outcome_one__no_thread_upload(code: str,
                                           monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a thread that sends a large event it is throttled."""
    with Harness("fc", code) as harness:
        assert harness.platform.invoke(b"first").kind == "ok"
        tried = no_thread_once("_run", monkeypatch)
        assert harness.platform.invoke(b"x" * 1000000).kind == "throttled"
        assert tried.is_set() and harness.outcome(b"next") == ("ok", b"next")


def test_any_outcome_one__body_unread(code: str) -> None:
    """A caller whose large body no instance gets sees the outcome."""
    with Harness("fc", code, max_instances=0, queue=0) as harness:
        assert harness.call("POST", "/path", b"x" * 8000000).answer("POST").start == (
            "HTTP/1.1 429 Too Many Requests")


@protocols
@pytest.mark.parametrize("idle_s", (0.1, 60), ids=("idle", "close"))
def test_any_stop_order__no_thread(protocol: str, idle_s: float, code: str,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a thread for the stop it is made up for when there is one."""
    tried = no_thread_once("stop", monkeypatch)
    with Harness(protocol, code, idle_s=idle_s) as harness:
        assert harness.outcome(b"event")[0] == "ok"
        assert idle_s == 60 or tried.wait(10) and until(lambda: processes(code) == [])
    assert tried.is_set() and processes(code) == []


@pytest.mark.parametrize("place", ("start", "queue"))
def test_any_outcome_one__no_file_to_wait(place: str, code: str,
                                          fifo: Callable[[str], str],
                                          monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a file to wait with an event is throttled at once, and only that one."""
    here, go = fifo("here"), fifo("go")

    def fail() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with Harness("fc", code, max_instances=1) as harness:
        if place == "queue":
            caller = harness.event(
                event(["tell", here], ["wait", go], ["say", "first"]))
            wait_for(here)
        with monkeypatch.context() as patch:
            patch.setattr(emulator, "Gate", fail)
            kind, body = harness.outcome(b"event")
        assert kind == "throttled" and b"Too many open files" in body
        assert harness.state()["queued"] == 0
        if place == "queue":
            assert until(lambda: release(go)) and outcome_of(caller) == ("ok", b"first")
        assert harness.outcome(b"next") == ("ok", b"next")
        assert harness.platform.counts["cold_starts"] == 1


@protocols
def test_any_outcome_exit__said(protocol: str, code: str) -> None:
    """The message tells how the process ended, and when."""
    with Harness(protocol, code) as harness:
        said = harness.platform.invoke(event(["exit", 3])).message
    assert said == "the bootstrap ended with status 3 %s" % (
        "during the request" if protocol == "fc" else "while it had the event")


def run_script(script: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a program that uses the emulator as a library."""
    reference = str(pathlib.Path(emulator.__file__ or "").parent)
    return subprocess.run(
        [sys.executable, "-c", "import os, signal, sys\nsys.path.insert(0, %r)\n"
         "import emulator\n%s" % (reference, script), *arguments], timeout=30,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)


@protocols
def test_any_process_group__never_closed(protocol: str, code: str) -> None:
    """A program that forgets to close a platform leaves no process; nor does one of
    its children end it."""
    port = ", port=0" if protocol == "fc" else ""
    done = run_script("platform = emulator.Platform(sys.argv[1], sys.argv[2]%s)\n"
                      "assert platform.invoke(b'x').kind == 'ok'\n"
                      "if not os.fork(): sys.exit()\n"
                      "os.wait()\n"
                      "print(platform.invoke(b'y').kind, platform.counts['cold_starts'])\n"
                      % port, protocol, code)
    assert (done.returncode, done.stdout) == (0, "ok 1\n") and processes(code) == []


def test_any_outcome_exit__dying() -> None:
    """A process is dying when its end has begun, also before anybody has reaped it."""
    child = subprocess.Popen(["sleep", "60"])
    assert not emulator.is_dying(child.pid)
    child.kill()
    assert until(lambda: emulator.is_dying(child.pid))
    child.wait()
    assert not emulator.is_dying(child.pid)


# ---- callers who leave ----


@pytest.mark.parametrize("protocol,settings,same", (
    ("fc", {}, False), ("fc", {"concurrency": 2}, True), ("scf", {}, True),
    ("fg", {}, True)), ids=("fc.caller.replace", "fc-concurrent", "scf", "fg"))
def test_any_caller_gone(protocol: str, settings: Dict[str, Any], same: bool, code: str,
                         fifo: Callable[[str], str]) -> None:
    """It is cancelled; the instance is used again, or replaced (fc, one at a time)."""
    here, go = fifo("here"), fifo("go")
    with Harness(protocol, code, max_instances=1, **settings) as harness:
        first = harness.outcome(event(["pid"]))[1]
        caller = harness.event(event(["tell", here], ["wait", go]))
        wait_for(here)
        caller.close()
        assert harness.ends("cancelled")
        if protocol == "fc":
            release(go)  # it is ended, or frozen: there may be nobody
        else:
            assert until(lambda: release(go))
        assert (harness.outcome(event(["pid"])) == ("ok", first)) == same
        assert harness.platform.counts["ok"] == 2


def release(path: str) -> bool:
    """Let a process that waits at a FIFO go on; False if none waits there."""
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return False
    return True


@protocols
def test_any_caller_gone__queued(protocol: str, code: str,
                                 fifo: Callable[[str], str]) -> None:
    """An event whose caller leaves while it waits reaches nobody."""
    here, go = fifo("here"), fifo("go")
    with Harness(protocol, code, max_instances=1) as harness:
        first = harness.event(event(["tell", here], ["wait", go], ["count"]))
        wait_for(here)
        queued = harness.event(b"queued")
        assert until(lambda: harness.state()["queued"] == 1)
        queued.close()
        assert harness.ends("cancelled") and harness.state()["queued"] == 0
        scripted_bootstrap.tell(go)
        assert outcome_of(first) == ("ok", b"1")
        assert harness.outcome(event(["count"])) == ("ok", b"2")


@protocols
def test_any_caller_gone__starting(protocol: str, code: str,
                                   fifo: Callable[[str], str]) -> None:
    """A caller who leaves during the start leaves an instance that serves the next."""
    here, go = fifo("here"), fifo("go")
    scripted_bootstrap.place(pathlib.Path(code),
                             {"start": [["tell", here], ["wait", go]]})
    with Harness(protocol, code, max_instances=1) as harness:
        caller = harness.event(b"gone")
        wait_for(here)
        caller.close()
        assert harness.ends("cancelled")
        scripted_bootstrap.tell(go)
        assert harness.outcome(event(["count"])) == ("ok", b"1")
        assert harness.state()["counts"]["cold_starts"] == 1


# ---- memory ----

MEMORY: Dict[str, Tuple[List[Any], ...]] = {
    "stays": (["alloc", 60], ["hang"]), "exits": (["alloc", 60], ["exit", 0]),
    "killed": (["alloc", 60], ["kill", 9]), "a child": (["fork-alloc", 60], ["hang"]),
    "bit by bit": (["alloc", 20], ["alloc", 20], ["alloc", 20], ["hang"])}


def lines_of(protocol: str, code: str, events: List[bytes], *options: str) -> List[Any]:
    """Run emulator.py --jsonl with the events; return its lines and the status."""
    done = subprocess.run(
        [*START_EMULATOR, protocol, code, "--jsonl", "--quiet",
         *options, *(("--port", "0") if protocol == "fc" else ())],
        input=b"\n".join(json.dumps({"event": one.decode()}).encode()
                         for one in events), stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, timeout=60, check=False)
    return [json.loads(line) for line in done.stdout.splitlines()]


@protocols
def test_any_memory_limit(protocol: str, code: str) -> None:
    """Taking more memory than the limit is out-of-memory, also when it ends at once."""
    events = [one for script in MEMORY.values() for one in (event(*script), b"next")]
    kinds = [line["kind"] for line in lines_of(protocol, code, events, "--memory", "50")]
    assert dict(zip(MEMORY, zip(kinds[::2], kinds[1::2]))) == {
        name: ("out-of-memory", "ok") for name in MEMORY}
    assert processes(code) == []


@protocols
def test_any_memory_limit__not_reached(protocol: str, code: str) -> None:
    """Memory below the limit is nobody's business."""
    lines = lines_of(protocol, code, [event(["alloc", 30], ["exit", 3]), b"next"],
                     "--memory", "128")
    assert [line["kind"] for line in lines] == ["exit", "ok"]


# ---- containers ----

DOCKER = """#!/bin/sh
echo "$@" >> {folder}/argv
env > {folder}/env
[ "$1" = run ] || exit 0
while [ "$1" != the-image ]; do shift; done
shift
exec "$@"
"""
SECRETS = {"access_key_id": "id-5b1d", "access_key_secret": "secret-93ac",
           "security_token": "token-77e0"}


@pytest.fixture
def docker(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Put a stand-in for docker on PATH; it runs the start command on this machine."""
    program = tmp_path / "bin" / "docker"
    program.parent.mkdir()
    program.write_text(DOCKER.format(folder=tmp_path))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", "%s:%s" % (program.parent, os.environ["PATH"]))
    return tmp_path


def container(code: str, **settings: Any) -> Harness:
    """Return a platform that runs the scripted_bootstrap as a custom container."""
    return Harness("fc", code, image="the-image", command=[code + "/bootstrap"],
                   credentials=SECRETS, env={"MINE": "mine-4e2f"}, memory_mb=256,
                   **settings)


def test_fc_container_run(docker: pathlib.Path, code: str) -> None:
    """The image runs with the environment of 6.2, its port and its memory limit."""
    with container(code) as harness:
        kind, body = harness.outcome(event(["env"]))
        env = json.loads(body)
    assert kind == "ok" and env["FC_SERVER_PORT"] == env["FC_CUSTOM_LISTEN_PORT"]
    assert (env["MINE"], env["ALIBABA_CLOUD_ACCESS_KEY_SECRET"]) == (
        "mine-4e2f", "secret-93ac")
    argv = (docker / "argv").read_text().split("\n")[0]
    assert argv.startswith("run --rm ") and "--memory 256m" in argv
    assert ":%s:%s " % (env["FC_SERVER_PORT"], env["FC_SERVER_PORT"]) in argv
    assert argv.endswith(" the-image %s/bootstrap" % code)


def test_any_security_secrets__container(docker: pathlib.Path, code: str) -> None:
    """Variables are given to docker by name: no value is in an argument list."""
    with container(code) as harness:
        assert harness.outcome(b"hello") == ("ok", b"hello")
    argv = (docker / "argv").read_text()
    assert not [word for word in (*SECRETS.values(), "mine-4e2f") if word in argv]
    names = [line.split("=")[0] for line in (docker / "env").read_text().splitlines()]
    assert all("--env %s " % name in argv for name in names
               if name.startswith(("FC_", "ALIBABA_", "MINE")))


@pytest.mark.parametrize("script,kind", ((["exit", 3], "exit"), (["hang"], "timeout")))
def test_any_process_group__leftovers_container(docker: pathlib.Path, script: List[Any],
                                                kind: str, code: str) -> None:
    """A container that ends badly is removed by name, and replaced."""
    with container(code, timeout_s=0.3) as harness:
        assert harness.outcome(event(script))[0] == kind
        assert harness.outcome(b"next") == ("ok", b"next")
    lines = (docker / "argv").read_text().splitlines()
    names = [line.split("--name ")[1].split()[0] for line in lines if "--name" in line]
    assert len(names) == 2
    assert all("rm --force %s" % name in lines for name in names)


def test_fc_start_failed__missing_docker(code: str, tmp_path: pathlib.Path,
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """Without docker the outcome says so."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with container(code) as harness:
        kind, body = harness.outcome(b"hello")
    assert kind == "start-error" and b"docker is not found" in body


# ---- the whole program ----


class Program:
    """emulator.py --serve as a process of its own."""

    def __init__(self, protocol: str, code: str, *options: str) -> None:
        self.popen = subprocess.Popen(
            [*START_EMULATOR, protocol, code, "--serve", "0",
             *options,
             *(("--port", "0") if protocol == "fc" else ())], stderr=subprocess.PIPE)
        assert self.popen.stderr is not None
        line = self.popen.stderr.readline().decode()
        self.port = int(line.split("http://127.0.0.1:")[1].split(",")[0])

    def event(self, body: bytes) -> Peer:
        """Post an event; return the connection."""
        peer = Peer(socket.create_connection(("127.0.0.1", self.port), 5))
        peer.send(wire.request_bytes("POST", "/-/invoke", (), body))
        return peer

    def end(self) -> Tuple[int, str]:
        """Wait for the end; return the status and what was said."""
        _, said = self.popen.communicate(timeout=20)
        return self.popen.returncode, said.decode()


@protocols
def test_any_stop_drain(protocol: str, code: str, fifo: Callable[[str], str]) -> None:
    """On SIGTERM what runs and waits gets its outcome; nothing new is taken."""
    here, go = fifo("here"), fifo("go")
    program = Program(protocol, code, "--max-instances", "1")
    callers = [program.event(event(["tell", here], ["wait", go], ["say", "done"]))]
    wait_for(here)
    callers.append(program.event(b"queued"))
    assert until(lambda: queued_events(program.port) == 1)
    program.popen.send_signal(signal.SIGTERM)
    assert until(lambda: refused(program.port))
    scripted_bootstrap.tell(go)
    assert [outcome_of(one) for one in callers] == [("ok", b"done"), ("ok", b"queued")]
    status, said = program.end()
    assert status == 0 and "cold start" in said and processes(code) == []


@protocols
def test_any_stop_drain__replaced(protocol: str, code: str,
                                  fifo: Callable[[str], str]) -> None:
    """What waits when the platform stops is served by another instance, if need be."""
    here, go = fifo("here"), fifo("go")
    with Harness(protocol, code, max_instances=1) as harness:
        first = harness.event(event(["tell", here], ["wait", go], ["exit", 3]))
        wait_for(here)
        queued = harness.event(b"queued")
        assert until(lambda: harness.state()["queued"] == 1)
        drain = emulator.aside(harness.platform.drain)
        assert until(lambda: harness.outcome(b"late")[0] == "cancelled")
        scripted_bootstrap.tell(go)
        assert outcome_of(first)[0] == "exit"
        assert outcome_of(queued) == ("ok", b"queued")
        drain.join(PATIENCE_S)


@pytest.mark.parametrize("protocol", ("scf", "fg"))
def test_any_stop_bootstrap__result(protocol: str, code: str,
                                    fifo: Callable[[str], str]) -> None:
    """A result that comes after SIGTERM breaks no rule."""
    here, go = fifo("here"), fifo("go")
    scripted_bootstrap.place(pathlib.Path(code), {"start": [["on-term", "ignore"]]})
    with Harness(protocol, code) as harness:
        caller = harness.event(event(["tell", here], ["wait", go], ["say", "late"]))
        wait_for(here)
        closer = emulator.aside(harness.platform.close)
        assert outcome_of(caller)[0] == "cancelled"
        scripted_bootstrap.tell(go)
        closer.join(PATIENCE_S)
        assert harness.platform.violations == []


def wrap(code: str, script: str) -> None:
    """Start the bootstrap from a shell script that calls it `./real`."""
    folder = pathlib.Path(code)
    os.rename(folder / "bootstrap", folder / "real")
    (folder / "bootstrap").write_text(
        "#!/bin/sh\nloop() { while :; do sleep 0.05; done; }\ncd %s\n%s" % (code, script))
    os.chmod(folder / "bootstrap", 0o755)


@protocols
def test_any_stop_order__wrapper(protocol: str, code: str) -> None:
    """What a wrapper has started has the grace, too, when the wrapper ends at once."""
    wrap(code, "(trap 'sleep 0.2; echo bye > farewell; exit' TERM; loop) &\n./real\n:\n")
    with Harness(protocol, code, grace_s=PATIENCE_S) as harness:
        assert harness.outcome(b"event") == ("ok", b"event")
    assert pathlib.Path(code, "farewell").exists() and processes(code) == []


def test_library__children_ignored(code: str) -> None:
    """A program that ignores SIGCHLD can use the platform."""
    done = run_script("signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
                      "with emulator.Platform('scf', sys.argv[1]) as platform:\n"
                      "    print(platform.invoke(b'x').kind)\n", code)
    assert (done.stdout, done.stderr) == ("ok\n", "") and processes(code) == []


def test_library__interrupted_close(code: str) -> None:
    """Ctrl-C while it stops leaves no process."""
    wrap(code, "trap '' TERM\n./real\nloop\n")
    done = run_script(
        "real = emulator.Process.terminate\n"
        "def terminate(process, grace_s):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    real(process, grace_s)\n"
        "emulator.Process.terminate = terminate\n"
        "platform = emulator.Platform('scf', sys.argv[1], grace_s=1000)\n"
        "print(platform.invoke(b'x').kind)\n"
        "platform.close()\n", code)
    assert done.stdout == "ok\n" and "KeyboardInterrupt" in done.stderr
    assert until(lambda: processes(code) == [])


def test_library__forked(code: str) -> None:
    """In a process that was forked close() does nothing to the instances."""
    with emulator.Platform("scf", code) as platform:
        first = platform.invoke(event(["pid"])).body
        child = os.fork()
        if child == 0:
            platform.close()
            os._exit(0)
        os.waitpid(child, 0)
        assert platform.invoke(event(["pid"])).body == first


def queued_events(port: int) -> int:
    """Return how many events wait, as GET /-/state tells it."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/-/state")
        queued = json.load(connection.getresponse())["queued"]
        assert isinstance(queued, int)
        return queued
    finally:
        connection.close()


def refused(port: int) -> bool:
    """Tell whether nothing listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


@protocols
@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGTERM))
def test_any_process_group__leftovers_program(protocol: str, number: int,
                                              code: str) -> None:
    """However the program ends while a request hangs, no process is left."""
    program = Program(protocol, code, "--timeout", "0.5", "--grace", "0.2")
    caller = program.event(event(["hang"]))
    assert until(lambda: len(processes(code + "/bootstrap")) > 0)
    program.popen.send_signal(number)
    program.end()
    caller.close()
    assert until(lambda: processes(code + "/bootstrap") == [])
