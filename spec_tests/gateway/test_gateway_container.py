# test_gateway_container.py: the gateway as an FC container (MIT).
"""Start, hooks, freeze, stop; and emulator.py fc × gateway.py × bootstraps as workers."""

import contextlib
import json
import os
import pathlib
import signal
import socket
import sys
import time
from typing import Any, Dict, Iterator, List, Optional, Tuple

import gateways
import implementations
import kit
import pytest
from gateways import HANG, SLOW, Container, call_of, profile, until
from harness import run

import emulator

# ---- start and end ----


@pytest.mark.parametrize("variables, wanted", [
    ({"SERVER_PORT": "1"}, "1"), ({"SERVER_PORT": "1", "FC_SERVER_PORT": "2"}, "2"),
    ({"FC_CUSTOM_LISTEN_PORT": "3", "SERVER_PORT": "1"}, "3"), ({}, "9000")])
def test_fcc_start_port(variables: Dict[str, str], wanted: str) -> None:
    """FC's variables first, then the seed's, then 9000."""
    ended = run([*gateways.START, "--host", ".."], b"", **variables)
    assert f"cannot listen on .. port {wanted}: " in ended.err


def test_fcc_start_last(tmp_path: pathlib.Path) -> None:
    """A list that is refused, or none at all, ends the start before it listens."""
    bad = tmp_path / "bad.json"
    bad.write_text(json.dumps([profile(runtime="nodejs")]))
    ended = [run([*gateways.START, "--profiles", name, "--port", "0"],
                 TMPDIR=str(tmp_path)) for name in (str(bad), str(tmp_path / "none.json"))]
    assert [one.status for one in ended] == [2, 2]
    assert "functions[0].runtime: expected one of custom" in ended[0].err
    assert list(tmp_path.iterdir()) == [bad]


@pytest.mark.parametrize("host, port", [("..", 0), ("127.0.0.1", None), ("::", 65536)])
def test_fcc_start_port__impossible(host: str, port: Optional[int]) -> None:
    """An occupied port, a host or a port that cannot be end the container with a reason,
    and what was started for reserved workers ends."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1] if port is None else port
        container = Container([profile(worker={"reservationCount": 1})],
                              "--host", host, "--port", str(port))
        with contextlib.ExitStack() as stack:
            stack.push(container)  # it never listens, so it is not entered
            assert container.process.wait(gateways.PATIENCE_S) == 1
            assert container.stop() == 1
            assert f"cannot listen on {host} port {port}: " in container.talk()


REFUSED = {
    "zero": (["--tick", "0"], "tick_s (--tick) must be more than 0 and at most 1000000"),
    "a-text": (["--drain", "long"], "argument --drain: invalid float value: 'long'"),
    "half": (["--max-active", "0.5"], "(--max-active) must be a whole number, not 0.5"),
    "log": (["--access-log", "/nowhere/x"], "No such file or directory: '/nowhere/x'"),
    "folder": (["--log-folder", "/proc/none"], "No such file or directory: '/proc/none'"),
    "variable": ([], "max_active (--max-active) must be more than 0"),
}


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_fcc_start_last__refused(tmp_path: pathlib.Path, name: str) -> None:
    """A setting that cannot be is refused by its name before anything was made."""
    options, message = REFUSED[name]
    ended = run([*gateways.START, *options], TMPDIR=str(tmp_path),
                NOSLATED_REPLICA_COUNT_LIMIT_PER_FUNCTION="",
                NOSLATED_MAX_ACTIVATE_REQUESTS="0" if name == "variable" else "7")
    assert ended.status == 2 and message in ended.err
    assert "Traceback" not in ended.err and not list(tmp_path.iterdir())


SPOILED = """
import json, os, socket, sys
sys.path.insert(0, {folder!r})
import gateway
def lost(*arguments):
    raise RuntimeError("lost on purpose")
{spoil}
sys.exit(gateway.main())
"""


def spoiled(folder: pathlib.Path, spoil: str) -> pathlib.Path:
    """Return a gateway that was spoiled by some Python."""
    program = folder / "spoiled.py"
    program.write_text(SPOILED.format(folder=str(gateways.GATEWAY.parent), spoil=spoil))
    return program


def test_fcc_end_part(tmp_path: pathlib.Path) -> None:
    """The loss of the server ends the container, with a status and without a trace."""
    program = spoiled(tmp_path, "socket.socket.accept = lost")
    with Container([profile()], program=program) as container:
        with contextlib.suppress(OSError):
            container.invoke(b"x")  # it ends while it answers
        assert container.process.wait(gateways.PATIENCE_S) == 1
        assert "a part of the gateway is lost" in container.talk()
        until(lambda: not container.processes())
        assert not container.temporary()


def test_fcc_end_part__calls(tmp_path: pathlib.Path) -> None:
    """So does that of the control loop, where it plans workers. No call holds up that
    end: its worker ends first, and the caller is told."""
    mark = tmp_path / "mark"
    program = spoiled(tmp_path, "plan = gateway.plan_workers\ngateway.plan_workers = "
                      "lambda *words: (lost if os.path.exists(%r) else plan)(*words)"
                      % str(mark))
    with Container([profile()], "--tick", "0.02", program=program) as container:
        call = container.later(HANG)
        until(container.active)
        mark.touch()
        assert call.result().failure == (404, "404", "WorkerDied")
        assert container.process.wait(gateways.PATIENCE_S) == 1


SUBREAPER = """
import ctypes, time
class Late:
    def __enter__(self):
        time.sleep(0.03)
    def __exit__(self, *_):
        pass
def wait_late(pid, options, wait=os.wait4):
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    time.sleep(0.01)
    return wait(pid, options)
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
gateway.emulator.SPAWNING, os.wait4 = Late(), wait_late
"""


def test_fcc_stop_signals__forks_reaped(tmp_path: pathlib.Path) -> None:
    """As the first process of a container it reaps at once what workers leave behind,
    while they live on, also when those that ended are reaped while it looks at them."""
    program = spoiled(tmp_path, SUBREAPER)
    functions = [profile(name) for name in ("echo", "first", "second")]
    with Container(functions, *SLOW, program=program) as container:
        for one in functions:
            container.invoke(b"warm", one["name"])
        for one in functions[1:]:
            one["signature"] = "2"
            container.put(*functions)
            until(lambda: container.function(one["name"])["workers"] == [])
        child = container.invoke(call_of("orphan")).json
        os.kill(child, signal.SIGKILL)
        until(lambda: not pathlib.Path(f"/proc/{child}").exists(), "it is reaped")
        assert len(container.pids()) == 1


@pytest.mark.parametrize("by", ["pre-stop", "SIGTERM"])
def test_fcc_stop_hook(by: str) -> None:
    """Either lets calls end, refuses new ones, stops workers, and then says so
    [fcc.stop.sigterm]. A call that was let in gets its worker."""
    with Container([profile()], *SLOW) as container:
        call = container.later(call_of("hold", gate=str(container.gate)))
        until(lambda: container.function()["workers"])
        stop = None
        if by == "pre-stop":
            stop = container.callers.submit(container.ask, "GET", "/pre-stop")
        else:
            container.process.send_signal(signal.SIGTERM)
        until(lambda: container.stats()["state"] == "closing")
        assert container.http(b"").failure == (503, "404", "AgentClosed")
        container.release()
        assert call.result().status == 200
        assert stop is None or stop.result().status == 200
        assert stop is None or not container.function()["workers"]
        assert container.stop() == 0


def test_fcc_stop_hook__after() -> None:
    """Afterwards neither /initialize nor a new list starts a worker again."""
    reserved = [profile(worker={"reservationCount": number}) for number in (1, 2)]
    with Container(reserved[:1], *SLOW) as container:
        assert container.ask("POST", "/initialize").status == 200
        assert container.ask("POST", "/pre-stop").status == 200
        assert container.ask("POST", "/initialize").failure == (404, "404", "AgentClosed")
        put = container.put(reserved[1])
        assert (put.status, container.function()["workers"]) == (200, [])


def test_fcc_stop_hook__limit() -> None:
    """Calls that do not end in time are cut, and /pre-stop says so."""
    with Container([profile()], *SLOW, "--drain", "0.05", "--grace", "0.05") as container:
        call = container.later(HANG)
        until(container.active)
        assert container.ask("GET", "/pre-stop").failure == (404, "404", "AgentClosed")
        assert call.result().failure[2] == "WorkerDied"


def test_fcc_stop_sigterm__twice() -> None:
    """The second signal cuts the wait short; signals until the end do not change the
    status."""
    with Container([profile()], *SLOW) as container:
        call = container.later(HANG)
        until(container.active)
        container.process.send_signal(signal.SIGTERM)
        until(lambda: container.stats()["state"] == "closing")
        while container.process.poll() is None:
            container.process.send_signal(signal.SIGTERM)
            time.sleep(0.0005)
        assert call.result().failure[2] == "WorkerDied"
        assert container.stop() == 0


def test_fcc_stop_sigterm__early(tmp_path: pathlib.Path) -> None:
    """A signal that comes while the list of functions is read counts, too."""
    program = spoiled(tmp_path, "load = json.loads\njson.loads = lambda *words, **more: ("
                      "os.kill(os.getpid(), 15), load(*words, **more))[1]")
    container = Container([profile(worker={"reservationCount": 1})], program=program)
    with contextlib.ExitStack() as stack:
        stack.push(container)
        assert container.process.wait(gateways.PATIENCE_S) == 0
        assert container.stop() == 0


def test_fcc_end_nothing() -> None:
    """No process, no thread and no file is left while idle, none after the end."""
    with Container([profile(worker={"disposable": True})], *SLOW) as container:
        before = usage(container)
        for _ in range(5):
            assert container.invoke(b"x").status == 200
        until(lambda: usage(container) == before, "the same again")
        assert container.processes() == [container.process.pid]
        assert container.stop() == 0


def usage(container: Container) -> Tuple[int, int]:
    """Return how many threads and open files the gateway has."""
    folder = pathlib.Path(f"/proc/{container.process.pid}")
    return len(os.listdir(folder / "task")), len(os.listdir(folder / "fd"))


def test_fcc_end_nothing__idle() -> None:
    """An idle gateway with workers does not wake up between ticks."""
    with Container([profile()], *SLOW) as container, container.connection() as kept:
        container.ask("GET", "/-/stats", own=kept)
        assert container.invoke(b"x").status == 200
        assert any("ctxt" in line for line in switches(container)), "proc tells"
        until(lambda: quiet(container), "the last call is forgotten")
        assert quiet(container)


def switches(container: Container) -> List[str]:
    """Return the context switches of each of the gateway's threads."""
    lines = []
    for task in pathlib.Path(f"/proc/{container.process.pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            lines += (task / "status").read_text().splitlines()
    return sorted(line for line in lines
                  if "ctxt_switches" in line or line.startswith("Pid"))


def quiet(container: Container) -> bool:
    """Tell whether nothing moves; a check of memory may be due once more."""
    before = switches(container)
    time.sleep(0.3)
    return switches(container) == before


# ---- freeze ----


def freeze(container: Container, seconds: float) -> None:
    """Freeze the whole container for a while."""
    os.killpg(container.process.pid, signal.SIGSTOP)
    time.sleep(seconds)
    os.killpg(container.process.pid, signal.SIGCONT)


def test_fcc_freeze_clocks() -> None:
    """After a freeze of many ticks the workers are still there."""
    with Container([profile()], "--tick", "0.06") as container:
        pid = container.invoke(call_of("pid")).json
        freeze(container, 0.45)
        assert container.invoke(call_of("pid")).json == pid


def test_fcc_freeze_clocks__calls() -> None:
    """Frozen time counts towards the limit neither of a call that runs nor of one that
    waits for a worker."""
    worker = {"maxActivateRequests": 1, "replicaCountLimit": 1}
    with Container([profile(worker=worker)], *SLOW) as container:
        container.invoke(b"warm")
        calls = container.hold(2, running=1, X_Fc_Function_Timeout="1.5")
        freeze(container, 1.75)
        container.stats()  # it has woken up, and the limit would be over
        container.release()
        assert [call.result().status for call in calls] == [200, 200]


@pytest.mark.parametrize("_round", range(2))
def test_fcc_freeze_clocks__thaw(_round: int) -> None:
    """The clock is right for calls that are served before the clock's own thread is."""
    call = (b"POST /invoke HTTP/1.1\r\nx-noslated-dispatch: echo\r\n"
            b"X-Fc-Request-Id: thaw%02d\r\nContent-Length: 2\r\n\r\nhi")
    with Container([profile()], "--tick", "0.05", "--idle-ticks", "1000"
                   ) as container, contextlib.ExitStack() as stack:
        callers = [stack.enter_context(container.raw(call % 99)) for _ in range(16)]
        assert all(caller.recv(4096) for caller in callers)
        os.killpg(container.process.pid, signal.SIGSTOP)
        for number, caller in enumerate(callers):
            caller.sendall(call % number)
        time.sleep(0.35)
        os.killpg(container.process.pid, signal.SIGCONT)
        times_ms = [container.log("thaw%02d" % one)["total_ms"] for one in range(16)]
        assert min(times_ms) >= 0


# ---- the emulator as the platform, bootstraps as workers ----


@pytest.fixture(scope="module")
def workers() -> List[Dict[str, Any]]:
    """Profiles of the Python, the bash and the Go bootstrap with the test handler."""
    found = []
    for one in implementations.bootstraps(["fc"]):
        build = kit.BUILDS.get(one.command[0])
        if build is None or not build():
            found.append({
                "name": one.name, "runtime": "custom", "signature": "1",
                "url": pathlib.Path(one.folder).as_uri(), "command": list(one.command),
                "handler": one.env[0][1], "resourceLimit": {"memory": 64 << 20}})
    return found


@contextlib.contextmanager
def platform(folder: pathlib.Path, workers: List[Dict[str, Any]], hooks: bool
             ) -> Iterator[emulator.Platform]:
    """Run the emulator with the gateway as its container; nothing may be left of it."""
    (folder / "functions.json").write_text(json.dumps(workers))
    with emulator.Platform(
            "fc", code=str(folder), name="python", port=0, max_instances=1,
            concurrency=10, initializer=hooks, pre_freeze=hooks, pre_stop=hooks,
            env={"TMPDIR": str(folder), "PATH": os.environ["PATH"]},
            command=[sys.executable, str(gateways.GATEWAY), "--profiles",
                     "functions.json"]) as made:
        yield made
    assert [path.name for path in folder.iterdir()] == ["functions.json"]


@pytest.fixture(scope="module")
def cloud(workers: List[Dict[str, Any]], tmp_path_factory: pytest.TempPathFactory
          ) -> Iterator[emulator.Platform]:
    """The emulator with the gateway as its container, all hooks configured."""
    with platform(tmp_path_factory.mktemp("container"), workers, True) as made:
        yield made


def test_fcc_initialize_ready__no_hooks(tmp_path: pathlib.Path,
                                        workers: List[Dict[str, Any]]) -> None:
    """Without hooks calls are served as well."""
    with platform(tmp_path, workers, False) as made:
        assert [made.invoke(b'{"do":"count"}').body for _ in range(2)] == [b"1", b"2"]


@pytest.mark.parametrize("language", ["python", "bash", "go"])
def test_fcc_launch_ready__languages(cloud: emulator.Platform, language: str,
                                     workers: List[Dict[str, Any]]) -> None:
    """Bootstraps are workers as they are, and a large body passes emulator, gateway and
    bootstrap both ways; by events for the function of FC's own name, else over HTTP."""
    if language not in [worker["name"] for worker in workers]:
        pytest.skip(f"no {language} bootstrap here")
    http = None if language == "python" else emulator.HttpRequest(
        "POST", "/page", (("x-noslated-dispatch", language),))
    large = os.urandom(1 << 20)
    for event, result in ((b'{"do":"env","name":"FC_FUNCTION_NAME"}', language.encode()),
                          (large, large)):
        outcome = cloud.invoke(event, http=http)
        assert (outcome.kind, outcome.body, outcome.violations) == ("ok", result, ())


def test_fcc_freeze_hook(cloud: emulator.Platform) -> None:
    """Between two invocations the container is frozen; the same worker goes on."""
    counts = [int(cloud.invoke(b'{"do":"count"}').body) for _ in range(3)]
    assert counts == list(range(counts[0], counts[0] + 3))


def test_fcc_worker_exit__platform(cloud: emulator.Platform) -> None:
    """A handler that fails, and the end of a worker, are failed invocations, not the end
    of the container."""
    outcome = cloud.invoke(b'{"do":"raise","type":"Refused","message":"no"}')
    assert outcome.kind == "function-error"
    assert json.loads(outcome.body)["errorType"] == "Refused"
    assert cloud.invoke(b'{"do":"exit","status":3}').kind == "function-error"
    assert cloud.invoke(b'{"do":"count"}').body == b"1"
