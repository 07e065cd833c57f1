# test_instances.py: instances as processes: start, freeze, limits, memory, end (MIT).
"""Real processes (scripted_bootstrap.py) that obey the event, on a real platform."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any, Callable, Dict, List

import emulator
import pytest
import scripted_bootstrap
import wire
from harness import (PROTOCOLS, PULL, Harness, background, code, event, fifo,
                     outcome_of, process_state, processes, scale, until)

__all__ = ["code", "fifo"]

Make = Callable[[str], str]


# ---- start ----

PATHS = {  # with R for the cloud's code folder -> with F for ours
    "R": "F", "R/lib:R:/usr/lib": "F/lib:F:/usr/lib",
    "-javaagent:R/a.jar": "-javaagent:F/a.jar",
    "-LR/lib": "-LF/lib", "file://R/a": "file://F/a", "cd R && ./x": "cd F && ./x",
    "Rs/a": "Rs/a", "/srvR": "/srvR", "http://hostR/a": "http://hostR/a"}


@PROTOCOLS
def test_any_start_code_folder(protocol: str, code: str) -> None:
    """The cloud's code folder in variables is ours; a person hears of it once."""
    root = emulator.RULES[protocol].CODE_ROOT
    given = {"V%d" % number: text.replace("R", root)
             for number, text in enumerate(PATHS)}
    with Harness(protocol, code, env=given) as harness:
        env = json.loads(harness.outcome(event(["env"]))[1])
        said = [note for note in harness.notes if "code folder" in note]
    assert [env[name] for name in given] == [
        text.replace("R", root).replace("F", code) for text in PATHS.values()]
    assert [note.rpartition(" in ")[2] for note in said] == ["V0, V1, V2, V3, V4, V5"]


def test_any_start_code_folder__command(code: str) -> None:
    """The same holds for each word of the start command."""
    with Harness("fc", code, command=["/code/bootstrap", "/code/x"]) as harness:
        assert harness.outcome(b"hello") == ("ok", b"hello")
        assert "/code is the code folder, %s, in the start command" % code in (
            harness.notes)


# ---- freeze ----


def test_fc_freeze_thaw__group(code: str, fifo: Make) -> None:
    """Between requests every process of the instance is stopped; within, it runs."""
    here, go = fifo("here"), fifo("go")
    with Harness("fc", code) as harness:
        ids = [int(harness.outcome(event([word]))[1]) for word in ("pid", "fork")]
        assert until(lambda: [process_state(one) for one in ids] == ["T", "T"])
        caller = harness.event(event(["tell", here], ["wait", go], ["pid"]))
        scripted_bootstrap.wait(here)
        assert not {process_state(one) for one in ids} & {"T", "Z", "X"}
        scripted_bootstrap.tell(go)
        assert outcome_of(caller) == ("ok", b"%d" % ids[0])
        assert until(lambda: [process_state(one) for one in ids] == ["T", "T"])


def test_fc_freeze_idle__concurrency(code: str, fifo: Make) -> None:
    """The end of one of two requests does not freeze the other."""
    go = fifo("go")
    with Harness("fc", code, concurrency=2) as harness:
        caller = harness.event(event(["wait", go], ["pid"]))
        process_id = int(harness.outcome(event(["pid"]))[1])
        assert process_state(process_id) != "T"
        scripted_bootstrap.tell(go)
        assert outcome_of(caller) == ("ok", b"%d" % process_id)
        assert until(lambda: process_state(process_id) == "T")


# ---- stop ----


def notes(code: str) -> List[str]:
    """Return what the process has noted."""
    path = pathlib.Path(code) / "notes"
    return path.read_text().split() if path.exists() else []


@pytest.mark.parametrize("word,grace_s", (("end", 20), ("ignore", 0.3), ("ignore", 0)))
@pytest.mark.parametrize("protocol,settings", (
    ("scf", {}), ("fg", {}), ("fc", {"pre_stop": True}),
    ("fc", {"pre_stop": True, "freeze": False})), ids=("scf", "fg", "fc", "fc-running"))
def test_any_stop_order__group(protocol: str, settings: Dict[str, Any], word: str,
                               grace_s: float, code: str) -> None:
    """Pre-stop (fc), SIGTERM, and after the grace SIGKILL for the whole group."""
    scripted_bootstrap.place(pathlib.Path(code), {"start": [["on-term", word]],
                                                  "/pre-stop": [["note", "pre-stop"]]})
    with Harness(protocol, code, grace_s=grace_s, **settings) as harness:
        if word == "ignore":
            child = int(harness.outcome(event(["fork"]))[1])
            assert process_state(child) != "X"
        assert harness.outcome(b"hello") == ("ok", b"hello")
    wanted = ["pre-stop", "SIGTERM"][protocol != "fc":2 if grace_s else 1]
    seen = list(dict.fromkeys(notes(code)))  # with no grace SIGKILL may be faster
    assert seen[:len(wanted)] == wanted and len(seen) <= len(wanted) + (not grace_s)
    assert until(lambda: processes(code) == [])  # the last SIGKILL may take a moment


@PROTOCOLS
def test_any_stop_order__wrapper(protocol: str, code: str) -> None:
    """What a wrapper has started has the grace, too, when the wrapper ends at once."""
    folder = pathlib.Path(code)
    (folder / "bootstrap").rename(folder / "real")
    (folder / "bootstrap").write_text(
        "#!/bin/sh\nloop() { while :; do sleep 0.05; done; }\ncd %s\n(trap 'sleep 0.2; "
        "echo bye > farewell; exit' TERM; loop) &\n./real\n:\n" % code)
    (folder / "bootstrap").chmod(0o755)
    with Harness(protocol, code, grace_s=8) as harness:
        assert harness.outcome(b"event") == ("ok", b"event")
    assert (folder / "farewell").exists() and processes(code) == []


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


def test_any_outcome_one__full_backlog(code: str) -> None:
    """A server that accepts nothing cannot make its callers wait past the limit."""
    scripted_bootstrap.place(pathlib.Path(code),
                             {"backlog": 0, "listening": [["hang"]]})
    with Harness("fc", code, concurrency=4, timeout_s=0.3) as harness:
        callers = [harness.event(b"x") for _ in range(4)]
        assert [outcome_of(caller)[0] for caller in callers] == ["timeout"] * 4
        assert harness.outcome(b"next") == ("ok", b"next")


# ---- how many, and for whom ----


@PROTOCOLS
@pytest.mark.parametrize("limit", (1, 3))
def test_any_instance_on_demand__limit(protocol: str, limit: int, code: str,
                                       fifo: Make) -> None:
    """As many instances run at a time as are allowed, the rest waits in order, and idle
    ones are used again, the last one first."""
    gates = [fifo("go%d" % number) for number in range(limit)]
    with Harness(protocol, code, max_instances=limit, queue=2) as harness:
        callers = [harness.event(event(["wait", gate], ["pid"])) for gate in gates]
        assert until(lambda: harness.platform.counts["cold_starts"] == limit)
        for number in (1, 2):
            callers.append(harness.event(b"waits"))
            assert until(lambda: harness.state()["queued"] == number)
        assert harness.outcome(b"too many")[0] == "throttled"
        for gate in gates:
            scripted_bootstrap.tell(gate)
        assert len({outcome_of(caller) for caller in callers[:limit]}) == limit
        assert [outcome_of(one) for one in callers[limit:]] == [("ok", b"waits")] * 2
        assert len({harness.outcome(event(["pid"])) for _ in range(3)}) == 1
        counts = harness.state()["counts"]
    assert [counts[name] for name in ("throttled", "cold_starts", "reused")] == [
        1, limit, 5]


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


@PULL
def test_any_stop_bootstrap__result(protocol: str, code: str, fifo: Make) -> None:
    """A result that comes after SIGTERM breaks no rule."""
    here, go = fifo("here"), fifo("go")
    scripted_bootstrap.place(pathlib.Path(code), {"start": [["on-term", "ignore"]]})
    with Harness(protocol, code) as harness:
        caller = harness.event(event(["tell", here], ["wait", go], ["say", "late"]))
        scripted_bootstrap.wait(here)
        closer = background(harness.platform.close)
        assert outcome_of(caller)[0] == "cancelled"
        scripted_bootstrap.tell(go)
        closer.join(8)
        assert harness.platform.violations == []


# ---- memory ----

# Over the limit by more than the tests themselves take: until a process has become
# another program, it counts as a copy of the one that started it.
MEMORY: Dict[str, List[List[Any]]] = {
    "stays": [["alloc", 220], ["hang"]], "exits": [["alloc", 220], ["exit", 0]],
    "killed": [["alloc", 220], ["kill", 9]], "a child": [["fork-alloc", 220], ["hang"]],
    "bit by bit": [["alloc", 80], ["alloc", 80], ["alloc", 80], ["hang"]]}


@PROTOCOLS
def test_any_memory_limit__ways(protocol: str, code: str) -> None:
    """Taking more memory than the limit is out-of-memory, also when it ends at once; in
    whatever way; less than that is nobody's business."""
    with Harness(protocol, code, memory_mb=200) as harness:
        for name, steps in MEMORY.items():
            assert harness.outcome(event(*steps))[0] == "out-of-memory", name
            assert harness.outcome(b"next") == ("ok", b"next"), name
        assert harness.outcome(event(["alloc", 20], ["exit", 3]))[0] == "exit"
    assert until(lambda: processes(code) == [])


@PROTOCOLS
def test_any_memory_limit__ready(protocol: str, code: str) -> None:
    """What the initialisation holds counts before the first event."""
    scripted_bootstrap.place(pathlib.Path(code), {"start": [["alloc", 220]]})
    with Harness(protocol, code, memory_mb=200) as harness:
        assert harness.outcome(b"first")[0] == "out-of-memory"
        assert harness.outcome(b"next") == ("ok", b"next")


@PROTOCOLS
def test_any_memory_limit__result(protocol: str, code: str,
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """What is known when the result comes counts, though the run was shorter than the
    time between two looks."""
    with Harness(protocol, code, memory_mb=200) as harness:
        assert harness.outcome(b"first")[0] == "ok"
        scale(monkeypatch, MEMORY_TICK_S=0)  # so every look is old, and none is planned
        monkeypatch.setattr(harness.platform, "watch_memory", lambda: None)
        assert harness.outcome(event(["alloc", 220], ["say", "x"]))[0] == (
            "out-of-memory")
        assert harness.outcome(b"next") == ("ok", b"next")
    assert until(lambda: processes(code) == [])


# ---- the emulator as a library ----


@pytest.mark.parametrize("protocol,setting,value,words", (
    ("xx", "name", "x", "protocol 'xx'"), ("scf", "timeout_s", 0, "--timeout"),
    ("scf", "timeout_s", float("nan"), "--timeout"), ("fc", "idle_s", 0, "more than 0"),
    ("scf", "timeout_s", 1e10, "at most 1000000"), ("scf", "memory_mb", 1.5, "whole"),
    ("scf", "memory_mb", 10 ** 400, "memory_mb"), ("scf", "queue", -1, "0 or more"),
    ("scf", "queue", True, "queue"), ("fc", "init_timeout_s", 1, "not a setting of fc"),
    ("fg", "concurrency", 2, "not a setting of fg"), ("fc", "concurrency", 201, "200"),
    ("fc", "port", 70000, "0 to 65535"), ("fc", "port", "80", "port"),
    ("fc", "command", "python3 a.py", "list of words"),
    ("fc", "command", [1], "command"),
    ("fg", "env", {"A": 1}, "variable A"), ("scf", "env", {"A\n": "x"}, "variable"),
    ("scf", "env", {1: "x"}, "environment variable"),
    ("scf", "name", "\ud800", "name")),
    ids=lambda value: repr(value)[:20])
def test_any_security_values__library(protocol: str, setting: str, value: Any,
                                      words: str) -> None:
    """A setting that is unknown or out of range is refused by its name, in one line."""
    with pytest.raises(ValueError) as refused:
        emulator.Platform(protocol, ".", **{setting: value}).close()
    assert words in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("body", ("text", {"k": 1}, None, bytearray(b"x")), ids=repr)
def test_any_event_bytes__library(body: Any, code: str) -> None:
    """What is no bytes is refused at once, and costs no invocation."""
    with emulator.Platform("scf", code) as platform:
        with pytest.raises(TypeError, match="^event must be bytes, not "):
            platform.invoke(body)
        assert platform.counts["accepted"] == 0


def run_script(script: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run a program that uses the emulator as a library."""
    reference = str(pathlib.Path(emulator.__file__ or "").parent)
    return subprocess.run(
        [sys.executable, "-c", "import os, signal, sys, threading\n"
         "sys.path.insert(0, %r)\nimport emulator\n%s" % (reference, script),
         *arguments], timeout=30, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        universal_newlines=True)


@PROTOCOLS
def test_any_process_group__never_closed(protocol: str, code: str) -> None:
    """A program that forgets to close a platform leaves no process; nor does one of
    its children end it."""
    port = ", port=0" if protocol == "fc" else ""
    done = run_script("platform = emulator.Platform(sys.argv[1], sys.argv[2]%s)\n"
                      "assert platform.invoke(b'x').kind == 'ok'\n"
                      "if not os.fork(): sys.exit()\n"
                      "os.wait()\n"
                      "print(platform.invoke(b'y').kind)\n"
                      "print(platform.counts['cold_starts'])\n" % port, protocol, code)
    assert (done.returncode, done.stdout) == (0, "ok\n1\n") and processes(code) == []


def test_any_outcome_exit__children_ignored(code: str) -> None:
    """A program that ignores SIGCHLD can use the platform."""
    done = run_script("signal.signal(signal.SIGCHLD, signal.SIG_IGN)\n"
                      "with emulator.Platform('scf', sys.argv[1]) as platform:\n"
                      "    print(platform.invoke(b'x').kind)\n", code)
    assert (done.stdout, done.stderr) == ("ok\n", "") and processes(code) == []


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


def test_any_process_group__forked(code: str) -> None:
    """In a process that was forked close() does nothing to the instances."""
    done = run_script("with emulator.Platform('scf', sys.argv[1]) as platform:\n"
                      "    platform.invoke(b'x')\n"
                      "    if not os.fork(): os._exit(platform.close() or 0)\n"
                      "    print(os.wait()[1], platform.invoke(b'y').kind)\n"
                      "    print(platform.counts['cold_starts'])\n", code)
    assert done.stdout == "0 ok\n1\n", done.stderr
