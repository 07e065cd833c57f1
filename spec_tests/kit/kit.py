# kit.py: what every check of the conformance kit stands on (MIT).
"""Start the bootstrap under test, play its platform, and name what was wrong.

A check gets a `Bootstrap` (one implementation and one log), starts instances with it
and raises `Mismatch` when the answer is not what the rule wants. README.md has the
contract between the kit and the thing under test; wire.py has the bytes.
"""

import atexit
import contextlib
import dataclasses
import glob
import itertools
import json
import os
import pathlib
import queue
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import weakref
from typing import (Any, Callable, ContextManager, Dict, Iterator, List, NamedTuple,
                    Optional, Sequence, Tuple, TypeVar, Union)

import fork_server
import wire

# ---- model ----

PROTOCOLS = ("fc", "scf", "fg")
LONG_NAMES = {"functiongraph": "fg"}

# The features of SPEC.md 3.2, and the words of the test handler that may be missing.
FEATURES: Dict[str, str] = {
    "large": "bootstrap: events and results over 128 KiB",
    "binary": "bootstrap: events with NUL bytes or bytes that are no UTF-8",
    "keep-alive": "fc bootstrap: one connection for several calls",
    "concurrency": "fc bootstrap: several requests at a time",
    "http": "fc bootstrap: HTTP invocations beside events",
    "fidelity": "fc bootstrap: the whole of an HTTP invocation, with the instructions "
                "`request` and `answer` for it",
    "hooks": "fc bootstrap: /initialize, /pre-freeze and /pre-stop",
    "context": "test handler: the instruction `context`",
    "count": "test handler: the instruction `count`",
    "env": "test handler: the instruction `env`",
    "sleep": "test handler: the instruction `sleep`",
    "freeze": "platform: stopping the processes of an idle instance",
    "memory": "platform: measuring and limiting memory",
    "upgrade": "platform: WebSocket",
    "instances": "platform: several instances at a time, and a queue with limits",
    "packages": "platform: ZIP files as packages, and the cloud's path of the code",
    "slow-heads": "platform: the time limit for the head of a request",
    "hostile": "platform: refusing what no HTTP client sends",
    "logs": "platform: what bootstraps print comes to its stderr",
    "limits": "platform: the options --max-event and --max-result",
}


class Mismatch(AssertionError):
    """The implementation broke the rule: what was expected, what was seen."""

    rule = ""  # of a first exchange: the rule that sinks it

    def __init__(self, expected: str, seen: str) -> None:
        super().__init__(f"expected {expected}; seen {seen}")
        self.expected, self.seen = expected, seen


class NotUsable(Mismatch):
    """It could not even be tried; every check says the same."""


class Unsupported(Exception):
    """The implementation was declared to lack this feature."""


@dataclasses.dataclass(frozen=True)
class Implementation:
    """A bootstrap or platform under test and how to start it."""

    name: str
    protocol: str
    command: Tuple[str, ...]
    folder: str
    without: Tuple[str, ...] = ()
    env: Tuple[Tuple[str, str], ...] = ()
    patience_s: float = 10.0  # longest wait for anything the peer has to do
    hold_s: float = 0.4  # how long a poll, or an idle connection, is held


class Result(NamedTuple):
    """What a bootstrap made of an event."""

    kind: str  # response or error
    body: bytes
    message: wire.Message


def instruction(word: str, **arguments: object) -> bytes:
    """Return the event that tells the test handler what to do (README.md)."""
    return json.dumps({"do": word, **arguments}, separators=(",", ":")).encode()


def same(expected: object, seen: object, what: str = "") -> None:
    """Raise Mismatch unless both are equal."""
    if expected != seen:
        head = f"{what} " if what else ""
        raise Mismatch(head + describe(expected), describe(seen))


def waits(check: Callable[..., None]) -> Callable[..., None]:
    """Mark a check that mostly waits: it gets a thread of its own."""
    check.waits = True  # type: ignore[attr-defined]
    return check


@contextlib.contextmanager
def step(rule: str) -> Iterator[None]:
    """Blame this rule for what goes wrong within."""
    try:
        yield
    except Mismatch as error:
        error.rule = error.rule or rule
        raise


def busy_at_last(attempt: Callable[[float], None]) -> None:
    """Try it with more and more time until something under test is busy; the last
    Mismatch counts. Where nothing tells, a loaded machine needs longer to begin."""
    for pause_s in (0.1, 0.4):
        with contextlib.suppress(Mismatch, wire.WireError):
            return attempt(pause_s)
    attempt(1.6)


def document(data: Union[bytes, str]) -> Any:
    """Return the JSON value that the peer has sent. Raises Mismatch if it is none."""
    try:
        return json.loads(data)
    except ValueError:
        raise Mismatch("JSON", describe(data)) from None


def describe(value: object) -> str:
    """Return a value for people; long bytes shortened."""
    if isinstance(value, bytes) and len(value) > 200:
        return f"{len(value)} bytes {value[:80]!r}…{value[-40:]!r}"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(describe, value)) + ")"
    text = repr(value)
    return text if len(text) < 2000 else f"{text[:1000]}… ({len(text)} characters)"


# ---- the three dialects ----


class Dialect(NamedTuple):
    """Where a pull protocol has its calls, and what it calls the fields."""

    ready: str
    poll: str
    response: str
    error: str
    id_header: str


DIALECTS: Dict[str, Dialect] = {
    "scf": Dialect("/runtime/init/ready", "/runtime/invocation/next",
                   "/runtime/invocation/response", "/runtime/invocation/error",
                   "Request_Id"),
    "fg": Dialect("", "/v1/runtime/invocation/request",
                  "/v1/runtime/invocation/response/{id}",
                  "/v1/runtime/invocation/error/{id}",
                  "X-Cff-Request-Id"),
}
# no generator, as threads share it
REQUEST_IDS = map("{:08x}-0000-4000-8000-00000000c0de".format, itertools.count(1))


def event_headers(protocol: str, request_id: str,
                  limit_ms: int = 3000) -> List[Tuple[str, str]]:
    """Return the fields that come with an event."""
    if protocol == "scf":
        return [("Request_Id", request_id), ("Memory_Limit_In_Mb", "128"),
                ("Time_Limit_In_Ms", str(limit_ms)), ("Content-Type", "application/json")]
    return [("X-Cff-Request-Id", request_id), ("X-CFF-Invoke-Type", "sync"),
            ("X-CFF-Access-Key", "ak"), ("X-CFF-Secret-Key", "sk"),
            ("X-CFF-Security-Token", "token"), ("X-CFF-Auth-Token", "auth"),
            ("Content-Type", "application/json")]


# What a bootstrap that is killed leaves there goes when the kit ends.
SCRATCH = tempfile.mkdtemp(prefix="kit-scratch-")


@atexit.register
def remove_scratch() -> None:
    """Remove the folder, although somebody who dies right now may add to it."""
    deadline = time.monotonic() + 2.0
    while os.path.exists(SCRATCH) and time.monotonic() < deadline:
        shutil.rmtree(SCRATCH, ignore_errors=True)


def environment(protocol: str, folder: str, host: str, port: int) -> Dict[str, str]:
    """Return the variables that the platform gives to a bootstrap."""
    own = {name: os.environ[name] for name in ("PATH", "HOME", "LANG")
           if name in os.environ}
    own["TMPDIR"] = SCRATCH
    if protocol == "scf":
        own.update(SCF_RUNTIME_API=host, SCF_RUNTIME_API_PORT=str(port),
                   _HANDLER="index.main_handler", SCF_FUNCTIONNAME="kit",
                   SCF_FUNCTIONVERSION="$LATEST", SCF_NAMESPACE="default",
                   TENCENTCLOUD_RUNENV="SCF", USER_CODE_ROOT=folder + "/")
    elif protocol == "fg":
        own.update(RUNTIME_API_ADDR=f"{host}:{port}", RUNTIME_PROJECT_ID="0" * 32,
                   RUNTIME_FUNC_NAME="kit", RUNTIME_FUNC_VERSION="latest",
                   RUNTIME_PACKAGE="default", RUNTIME_HANDLER="index.handler",
                   RUNTIME_TIMEOUT="3", RUNTIME_USERDATA="{}", RUNTIME_CPU="300",
                   RUNTIME_MEMORY="128", RUNTIME_CODE_ROOT=folder,
                   RUNTIME_MAX_RESP_BODY_SIZE="6291456")
    else:
        own.update(FC_SERVER_PORT=str(port), FC_CUSTOM_LISTEN_PORT=str(port),
                   FC_FUNCTION_NAME="kit", FC_FUNCTION_HANDLER="index.handler",
                   FC_FUNCTION_MEMORY_SIZE="128", FC_FUNC_CODE_PATH=folder,
                   LD_LIBRARY_PATH=f"{folder}:{folder}/lib:/usr/local/lib",
                   PYTHONPATH=folder,
                   FC_REGION="local", FC_ACCOUNT_ID="0", FC_INSTANCE_ID="c-kit")
    return own


# ---- the process under test ----

with contextlib.suppress(ImportError, OSError, ValueError):
    import resource  # many connections at once need many descriptors
    FILES, MOST_FILES = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= FILES < 4096:
        resource.setrlimit(resource.RLIMIT_NOFILE, (
            4096 if MOST_FILES < 0 else min(4096, MOST_FILES), MOST_FILES))
RUNNING: "weakref.WeakSet[Any]" = weakref.WeakSet()  # each has kill()
FILE_LIMIT_BYTES = 256 * 1024 * 1024
GRACE_S = 2.0  # the default of grace_s in SPEC.md
PAUSE_S = 2.0  # the longest between two polls, any.poll.pause


class Process:
    """The bootstrap's process, in a session of its own; its output in a file."""

    def __init__(self, command: Sequence[str], folder: str,
                 env: Dict[str, str]) -> None:
        self.output = tempfile.TemporaryFile()
        try:
            self.popen = fork_server.start(
                command, cwd=folder, env=env, stdin=subprocess.DEVNULL,
                stdout=self.output, stderr=subprocess.STDOUT)
        except OSError as error:
            self.output.close()
            with step("any.start.executable"):
                raise Mismatch("a command that starts",
                               f"{shlex.join(command)}: {error.strerror}") from None
        RUNNING.add(self)
        with contextlib.suppress(NameError, AttributeError, OSError):
            # a process that prints without end must not fill the disk
            resource.prlimit(self.popen.pid, resource.RLIMIT_FSIZE,
                             (FILE_LIMIT_BYTES, FILE_LIMIT_BYTES))

    def tail(self) -> str:
        """Return the end of what it printed, as a part of a sentence."""
        printed = self.printed()[-1500:]
        return f"it printed: {wire.show(printed)}" if printed else "it printed nothing"

    def ended(self) -> str:
        """Say with which status it ended, and what it printed last."""
        return f"the process ended with status {self.popen.returncode}; {self.tail()}"

    def printed(self) -> bytes:
        """Return all that it printed."""
        self.output.seek(0)
        return self.output.read()

    def members(self) -> Iterator[Tuple[str, List[str]]]:
        """Yield folder in /proc and values of its `stat`, from the state on, of each
        process of the session; none where there is no /proc."""
        for folder in glob.glob("/proc/[0-9]*"):
            with contextlib.suppress(OSError):
                with open(folder + "/stat", encoding="utf-8", errors="replace") as file:
                    values = file.read().rpartition(")")[2].split()
                if int(values[3]) == self.popen.pid:
                    yield folder, values

    def efforts(self) -> Tuple[float, float, int]:
        """Return what all of it has done so far: processor time with that of its past
        children, how long its threads had a processor or waited for one (which tells
        who never rests, on a busy machine, too), how often they waited for others."""
        used = wanted = waits_made = 0
        for folder, values in self.members():
            used += sum(map(int, values[11:15]))
            for task in glob.glob(folder + "/task/*"):
                with contextlib.suppress(OSError):
                    said = pathlib.Path(task, "status").read_text("utf-8")
                    waits_made += int(said.partition("\nvoluntary_")[2].split()[1])
                    said = pathlib.Path(task, "schedstat").read_text("utf-8")
                    wanted += sum(map(int, said.split()[:2]))
        return used / os.sysconf("SC_CLK_TCK"), wanted / 1e9, waits_made

    def holdings(self) -> Dict[str, int]:
        """Return what all of it holds now."""
        held = {"bytes of memory": 0, "descriptors": 0, "threads": 0, "processes": 0}
        for folder, values in self.members():
            with contextlib.suppress(OSError):
                held["descriptors"] += len(os.listdir(folder + "/fd"))
            held["bytes of memory"] += int(values[21]) * os.sysconf("SC_PAGE_SIZE")
            held["threads"] += int(values[17])
            held["processes"] += 1
        return held

    def terminate(self, target: str = "group") -> None:
        """Send SIGTERM to its group, as a platform does, or to the leader alone."""
        if target == "group":
            os.killpg(self.popen.pid, signal.SIGTERM)
        else:
            self.popen.terminate()

    def ends_in_grace(self, limit_s: float) -> None:
        """Raise Mismatch unless it ends within grace_s, and what a busy machine adds;
        with which status means nothing."""
        self.wait(min(limit_s, GRACE_S + 1.0))

    def wait(self, limit_s: float) -> int:
        """Return the exit status, negative for a signal. Raises Mismatch."""
        try:
            return self.popen.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise Mismatch(f"the process to end within {limit_s} s",
                           "it still runs") from None

    def kill(self) -> None:
        """Kill the whole group and forget it."""
        RUNNING.discard(self)
        with contextlib.suppress(OSError):
            os.killpg(self.popen.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(5)
        self.output.close()


class Run:
    """One instance under test; the log belongs to the check that has it now."""

    process: Process
    limit_ms = 3000  # what the handler is told
    served = 0  # events that the process has handled

    def __init__(self, bootstrap: "Bootstrap") -> None:
        self.kind = bootstrap.implementation
        self.frames = bootstrap.frames
        self.processes = bootstrap.processes
        self.patience_s = self.kind.patience_s

    def note(self, who: str, data: bytes) -> None:
        """Write down what was sent."""
        self.frames.append(wire.Frame(who, wire.show(data)))

    def launch(self, host: str, port: int, folder: str = "", only: Sequence[str] = (),
               but: Sequence[str] = (), changed: Sequence[Tuple[str, str]] = ()) -> Process:
        """Start the process in its environment, or in what the check leaves of it."""
        env = {**environment(self.kind.protocol, self.kind.folder, host, port),
               **dict(self.kind.env), **dict(changed)}
        self.env = {name: value for name, value in env.items()
                    if name not in but and name in (only or env)}
        process = Process(self.kind.command, folder or self.kind.folder, self.env)
        self.processes.append(process)
        return process

    def trouble(self) -> str:
        """Say what is wrong with a process that waits for another check."""
        return self.process.ended() if self.process.popen.poll() is not None else ""

    def invoke(self, event: bytes) -> Result:
        """Hand over an ordinary event; return the result."""
        raise NotImplementedError

    def alive(self) -> None:
        """Raise Mismatch unless an ordinary event is still handled."""
        same(b"still here", self.invoke(b"still here").body, "an echo afterwards")

    def serves_on(self) -> None:
        """Raise Mismatch unless it is there for others."""
        self.alive()


# ---- pull: the kit is the runtime API ----


class PullRun(Run):
    """A polling bootstrap and the runtime API that it polls."""

    def __init__(self, bootstrap: "Bootstrap", **setting: Any) -> None:
        super().__init__(bootstrap)
        self.dialect = DIALECTS[self.kind.protocol]
        self.patience_s = max(self.patience_s, 2 * PAUSE_S)
        self.api = wire.Listener(lambda who, data: self.note(who, data), "bootstrap")
        self.last_id = ""
        self.has_served = False  # an event, as the last thing that it did
        try:
            self.process = self.launch(self.api.host, self.api.port, **setting)
        except BaseException:
            self.api.close()
            raise

    def stop(self) -> None:
        """Kill the process and close the runtime API."""
        self.process.kill()
        self.api.close()

    def trouble(self) -> str:
        """Say what is wrong: it has ended, or said what nobody waits for."""
        said = [one.request.start for one in list(self.api.arrived.queue)]
        said = [start for start in said if not start.startswith(
            f"GET {self.dialect.poll} ")] + said[:-1] + [
            error.told() for error in self.api.bad]
        return super().trouble() or "; ".join(said)

    def request(self, wanted: str) -> wire.Exchange:
        """Return the next request whatever it is. Raises Mismatch if none comes."""
        self.has_served = False
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                return self.api.arrived.get(timeout=0.02)
            except queue.Empty:
                pass
            if self.api.bad:
                error = self.api.bad[0]
                raise Mismatch(wanted, error.told())
            if self.process.popen.poll() is not None and self.api.arrived.empty():
                raise Mismatch(wanted, self.process.ended())
            if time.monotonic() > deadline:
                raise Mismatch(wanted, f"no request in {self.patience_s} s; "
                               + self.process.tail())

    def first_call(self) -> None:
        """Raise Mismatch unless the first call comes, and is `ready` or a poll; then
        forget about it."""
        with step("any.api.address"):
            exchange = self.request("a first call of the runtime API")
        with step("any.api.calls"):
            paths = [path for path in self.dialect[:2] if path]
            if exchange.request.path not in paths:
                raise Mismatch(" or ".join(paths), exchange.request.start)
        self.api.arrived.put(exchange)

    def call(self, method: str, path: str) -> wire.Exchange:
        """Return the next request, which must be this one."""
        exchange = self.request(f"{method} {path}")
        same(f"{method} {path}", exchange.request.start.rpartition(" ")[0])
        return exchange

    def quiet(self, limit_s: float, why: str) -> None:
        """Raise Mismatch if a request comes, or the process ends, within that time."""
        deadline = time.monotonic() + limit_s
        while time.monotonic() < deadline:
            with contextlib.suppress(queue.Empty):
                found = self.api.arrived.get(timeout=min(limit_s, 0.05))
                raise Mismatch(f"no request {why}", found.request.start)
            if self.process.popen.poll() is not None:
                raise Mismatch(f"patience {why}", self.process.ended())

    def poll(self) -> wire.Exchange:
        """Return the bootstrap's next poll; a call of ready before it is answered."""
        exchange = self.request(f"GET {self.dialect.poll}")
        while self.dialect.ready and exchange.request.path == self.dialect.ready:
            exchange.reply()
            exchange = self.request(f"GET {self.dialect.poll}")
        same(f"GET {self.dialect.poll}", exchange.request.start.rpartition(" ")[0])
        return exchange

    def headers(self) -> List[Tuple[str, str]]:
        """Return the fields of a new event, under a new request id."""
        self.last_id = next(REQUEST_IDS)
        return event_headers(self.kind.protocol, self.last_id, self.limit_ms)

    def result(self) -> Tuple[Result, wire.Exchange]:
        """Return the next request, which must be the result of the last event."""
        paths = {self.dialect.response.format(id=self.last_id): "response",
                 self.dialect.error.format(id=self.last_id): "error"}
        exchange = self.request("the result of the event")
        if exchange.request.method != "POST" or exchange.request.path not in paths:
            raise Mismatch("POST " + " or ".join(paths), exchange.request.start)
        self.served += 1
        return Result(paths[exchange.request.path], exchange.request.body,
                      exchange.request), exchange

    def answered(self, event: bytes) -> wire.Exchange:
        """Answer the next poll with the event; return the result's call, not answered."""
        self.poll().reply(200, self.headers(), event)
        return self.result()[1]

    def answer(self, *pieces: bytes, pause_s: float = 0.0) -> Result:
        """Answer the next poll with raw bytes; return the result, acknowledged."""
        try:
            self.poll().send(*pieces, pause_s=pause_s)
        except wire.WireError as error:
            raise Mismatch("the event to be read", error.what) from None
        return self.acknowledged()

    def hand(self, poll: wire.Exchange, event: bytes) -> Result:
        """Answer this poll with the event; return the result, acknowledged."""
        poll.reply(200, self.headers(), event)
        return self.acknowledged()

    def acknowledged(self) -> Result:
        """Return the result of the event that was sent; acknowledge it."""
        result, exchange = self.result()
        exchange.reply()
        self.has_served = result.kind == "response"
        return result

    def serves_on(self) -> None:
        """Raise Mismatch unless it is there for others; a result shows it, if a poll
        follows."""
        if self.has_served:
            self.api.arrived.put(self.poll())
        else:
            self.alive()

    def invoke(self, event: bytes) -> Result:
        """Answer the next poll with the event; return the result, acknowledged."""
        return self.answer(wire.response(200, self.headers(), event))


# ---- push: the kit is the caller's side of the platform ----


class PushRun(Run):
    """A bootstrap that is an HTTP server, and the platform that calls it."""

    def __init__(self, bootstrap: "Bootstrap", port: int = 0, **setting: Any) -> None:
        super().__init__(bootstrap)
        self.port = port or wire.free_port()
        self.host = wire.first_address("127.0.0.2")
        self.channels: List[wire.Channel] = []
        self.channel: Optional[wire.Channel] = None
        self.process = self.launch(self.host, self.port, **setting)
        try:
            self.probe()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Kill the process and close the connections."""
        for channel in self.channels:
            channel.close()
        self.process.kill()

    def probe(self) -> None:
        """Connect without data until it works, as the platform does at start."""
        deadline = time.monotonic() + self.patience_s
        while True:
            try:
                self.dial().close()
                return
            except OSError as error:
                last = error.strerror
            wanted = f"a server on {self.host}:{self.port} [fc.start.port]"
            if self.process.popen.poll() is not None:
                raise Mismatch(wanted, self.process.ended())
            if time.monotonic() > deadline:
                raise Mismatch(wanted + "; one that listens on 127.0.0.1 only is not "
                               "reached",
                               f"{last}; {self.process.tail()}")
            time.sleep(0.005)

    def dial(self) -> wire.Channel:
        """Return a new connection. Raises OSError."""
        channel = wire.connect(self.host, self.port, self.note, "bootstrap")
        self.channels.append(channel)
        return channel

    def connect(self) -> wire.Channel:
        """Return a new connection. Raises Mismatch."""
        try:
            return self.dial()
        except OSError as error:
            raise Mismatch("a server that still takes connections",
                           f"{error.strerror}; {self.process.tail()}") from None

    def ask(self, data: bytes, method: str, channel: Optional[wire.Channel] = None,
            ) -> wire.Message:
        """Send raw bytes, return the answer. Raises Mismatch."""
        own = channel or self.connect()
        try:
            own.send(data)
            return self.final(own, method)
        except wire.WireError as error:
            raise Mismatch("an answer",
                           f"{error.told()}; {self.process.tail()}") from None
        finally:
            if channel is None:
                own.close()

    def final(self, channel: wire.Channel, method: str = "POST",
              limit_s: Optional[float] = None) -> wire.Message:
        """Return the next answer that is not interim. Raises WireError."""
        deadline = time.monotonic() + (self.patience_s if limit_s is None else limit_s)
        answer = channel.read(deadline - time.monotonic(), to=method)
        while answer.status == 100:
            answer = channel.read(deadline - time.monotonic(), to=method)
        return answer

    def changed(self, *but: str, control_path: str = "/invoke",
                **values: str) -> List[Tuple[str, str]]:
        """Return the common fields with other values, and without some."""
        names = {name.replace("_", "-"): value for name, value in values.items()}
        return [(name, names.get(name, value))
                for name, value in self.headers(control_path) if name not in but]

    def headers(self, path: str = "/invoke") -> List[Tuple[str, str]]:
        """Return the common fields of a request of the platform."""
        return [("Host", f"{self.host}:{self.port}"),
                ("X-Fc-Request-Id", next(REQUEST_IDS)), ("X-Fc-Control-Path", path),
                ("X-Fc-Function-Name", "kit"),
                ("X-Fc-Function-Handler", "index.handler"),
                ("X-Fc-Function-Memory", "128"),
                ("X-Fc-Function-Timeout", str(self.limit_ms // 1000)),
                ("X-Fc-Region", "local"), ("X-Fc-Account-Id", "0"),
                ("X-Fc-Qualifier", "LATEST"), ("X-Fc-Version-Id", ""),
                ("X-Fc-Access-Key-Id", ""), ("X-Fc-Access-Key-Secret", ""),
                ("X-Fc-Security-Token", "")]

    def invocation(self, event: bytes) -> bytes:
        """Return the bytes of POST /invoke."""
        return wire.request_bytes(
            "POST", "/invoke",
            [*self.headers(), ("Content-Type", "application/octet-stream")], event)

    def hook(self, method: str, path: str) -> wire.Message:
        """Call a hook; return the answer."""
        body = b"" if method == "POST" else None
        data = wire.request_bytes(method, path, self.headers(path), body)
        return self.ask(data, method)

    def invoke(self, event: bytes, channel: Optional[wire.Channel] = None) -> Result:
        """Invoke with the event; return the result as its status says."""
        return self.read_result(self.ask(self.invocation(event), "POST", channel))

    def read_result(self, answer: wire.Message) -> Result:
        """Return what an answer means by fc.answer.outcome."""
        self.served += 1
        said = answer.header("x-fc-status") or str(answer.status)
        return Result("error" if said == "404" else "response", answer.body, answer)


# ---- what a check gets ----


BUILDS: Dict[str, Callable[[], str]] = {}  # by program; they return what went wrong
IDLE_MOST = 40  # processes that wait for another check
IDLE_RUNS: Dict[Tuple[object, ...], List[Any]] = {}
# What was wrong with a first exchange, and the rule that says so.
PROBES: Dict[Implementation, Tuple[str, str]] = {}
PROBE_LOCKS: Dict[Implementation, threading.Lock] = {}
OBSERVED: Dict[Tuple[object, ...], Tuple[Any, Optional[Mismatch]]] = {}
OBSERVING: Dict[Tuple[object, ...], threading.Lock] = {}
LOCK = threading.Lock()
Lent = TypeVar("Lent")


class Subject:
    """One implementation under test, with the log of one check and what that started:
    runs, which have `frames` and `stop()`."""

    wanted = ""  # of a first exchange
    afresh = False  # nothing that another check left is good enough

    def __init__(self, implementation: Implementation) -> None:
        self.implementation = implementation
        self.borrowed = False
        self.frames: List[wire.Frame] = []
        self.runs: List[Any] = []

    def needs(self, *features: str) -> None:
        """Raise Unsupported if one of these was declared missing."""
        for feature in features:
            if feature not in FEATURES:
                raise KeyError(feature)
            if feature in self.implementation.without:
                raise Unsupported(feature)

    @contextlib.contextmanager
    def lend(self, start: Callable[[], Lent], *kind: str) -> Iterator[Lent]:
        """Lend what other checks left in order, or a new one; keep it for the next
        check unless this one fails."""
        key = (self.implementation, *kind)
        run: Any = None if self.afresh else self.take_idle(key)
        self.borrowed = self.borrowed or run is not None
        run = run or start()
        run.frames = self.frames
        self.runs.append(run)
        yield run
        self.runs.remove(run)
        keep(key, run)

    def take_idle(self, key: Tuple[object, ...]) -> Any:
        """Return a run that another check left, or nothing; one that is not in order
        any more is stopped, and the log says so."""
        while True:
            with LOCK:
                idle = IDLE_RUNS.get(key)
                run: Any = idle.pop() if idle else None
            trouble = run.trouble() if isinstance(run, Run) else ""
            if not trouble:
                return run
            self.frames.append(wire.Frame("kit", "started afresh, as what an earlier "
                                          "check left is in a bad state: " + trouble))
            run.stop()

    def attempt(self, check: Callable[..., None], **arguments: Any) -> None:
        """Run the check."""
        check(**arguments)

    def close(self) -> None:
        """Stop whatever this check has started."""
        for run in self.runs:
            run.stop()
        self.runs.clear()

    def probe(self, rule: str = "") -> None:
        """Try a first exchange, once. Raises NotUsable, always with the same words,
        except for the checks of the rule that sinks it: these may say more."""
        kind = self.implementation
        with LOCK:
            lock = PROBE_LOCKS.setdefault(kind, threading.Lock())
        with lock:
            if kind not in PROBES:
                first = type(self)(kind)
                try:
                    first.exchange()
                    PROBES[kind] = "", ""
                except Mismatch as error:
                    PROBES[kind] = str(error), error.rule
                finally:
                    first.close()
        trouble, sinks = PROBES[kind]
        if trouble and (not rule or rule != sinks):
            raise NotUsable(self.wanted, (f"[{sinks}] " if sinks else "") + trouble)

    def exchange(self) -> None:
        """Try what every check needs. Raises Mismatch."""
        raise NotImplementedError


def keep(key: Tuple[object, ...], run: Any) -> None:
    """Keep a run for another check; stop the one that has waited longest."""
    with LOCK:
        IDLE_RUNS.setdefault(key, []).append(run)
        count = sum(len(idle) for idle in IDLE_RUNS.values())
        oldest = next(idle for idle in IDLE_RUNS.values() if idle)
        surplus = oldest.pop(0) if count > IDLE_MOST else None
        IDLE_RUNS[key] = IDLE_RUNS.pop(key)  # used last, so the last one to go
    if surplus is not None:
        surplus.stop()


def stop_idle_runs(only: Optional[Implementation] = None) -> None:
    """Stop what waits for another check, of one implementation or all."""
    with LOCK:
        wanted = [key for key in IDLE_RUNS if only is None or key[0] == only]
        runs = [run for key in wanted for run in IDLE_RUNS.pop(key)]
    for run in runs:
        run.stop()


@atexit.register
def stop_everything() -> None:
    """Kill every process that is still there when the interpreter ends, and what a
    broken platform has lost of its instances: their programs are in the folder."""
    for process in list(RUNNING):
        process.kill()
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        with contextlib.suppress(OSError), open(path, "rb") as file:
            if SCRATCH.encode() in file.read():
                os.kill(int(path.split("/")[2]), signal.SIGKILL)


class Bootstrap(Subject):
    """A bootstrap under test."""

    wanted = ("a first exchange by the rules: it starts, and its test handler fails at a"
              " made-up word (spec_tests/README.md)")

    def attempt(self, check: Callable[..., None], **arguments: Any) -> None:
        """Run the check. What fails on the process that another check left, and not on
        a new one, is not of this check's rule."""
        try:
            check(**arguments)
        except (Mismatch, wire.WireError) as error:
            if not self.borrowed or isinstance(error, NotUsable):
                raise
            self.close()
            self.afresh = True
            self.frames.append(wire.Frame("kit", "once more with a new process, as "
                                          f"another check had left the old: {error}"))
            check(**arguments)

    def __init__(self, implementation: Implementation) -> None:
        super().__init__(implementation)
        self.processes: List[Process] = []  # all that this check has started

    def pull(self, **setting: Any) -> PullRun:
        """Start an instance of scf or fg; it dies with the check. See Run.launch()."""
        self.runs.append(PullRun(self, **setting))
        return self.runs[-1]  # type: ignore[no-any-return]

    def push(self, **setting: Any) -> PushRun:
        """Start an instance of fc, up and probed; it dies with the check."""
        self.runs.append(PushRun(self, **setting))
        return self.runs[-1]  # type: ignore[no-any-return]

    def start(self, **setting: Any) -> Any:
        """Start an instance of any protocol; it dies with the check."""
        is_push = self.implementation.protocol == "fc"
        return self.push(**setting) if is_push else self.pull(**setting)

    def used_pull(self) -> ContextManager[PullRun]:
        """Lend an instance that other checks left in order, or a new one."""
        return self.alive_after(lambda: PullRun(self))

    def used_push(self) -> ContextManager[PushRun]:
        """Lend an instance that other checks left in order, or a new one."""
        return self.alive_after(lambda: PushRun(self))

    @contextlib.contextmanager
    def alive_after(self, start: Callable[[], Any]) -> Iterator[Any]:
        """Lend an instance; what the check does to it must not keep it from serving."""
        with self.lend(start) as run:
            yield run
            run.serves_on()

    def used(self) -> ContextManager[Any]:
        """Lend an instance of any protocol."""
        is_push = self.implementation.protocol == "fc"
        return self.used_push() if is_push else self.used_pull()

    def once(self, observe: Callable[["Bootstrap"], Lent]) -> Lent:
        """Return what is observed of this implementation, or raise the Mismatch; it is
        tried once, for several checks."""
        key = self.implementation, observe
        with LOCK:
            lock = OBSERVING.setdefault(key, threading.Lock())
        with lock:
            if key not in OBSERVED:
                try:
                    OBSERVED[key] = observe(self), None
                except Mismatch as error:
                    if self.borrowed and not self.afresh:
                        raise  # attempt() tries it with a new process
                    OBSERVED[key] = None, error
        seen, trouble = OBSERVED[key]
        if trouble:
            raise trouble
        found: Lent = seen
        return found

    def exchange(self) -> None:
        """Build it if need be; try what every check needs, in the laxest legal form.
        Raises Mismatch."""
        build = BUILDS.get(self.implementation.command[0])
        trouble = build() if build is not None else ""
        if trouble:
            raise Mismatch("a program that can be built", trouble)
        is_push = self.implementation.protocol == "fc"
        with step("fc.start.port" if is_push else "any.start.executable"):
            run = self.start()
        if not is_push:
            run.first_call()
        with step("fc.answer.framing" if is_push else "any.result.once"):
            result = run.invoke(instruction("flumqat"))
        with step("any.error.survive"):
            same("error", result.kind, "the made-up word `flumqat` fails:")
        with step("any.event.opaque"):
            run.alive()


def error_of(result: Result) -> Tuple[str, str]:
    """Return type and message of an error report. Raises Mismatch."""
    try:
        report = json.loads(result.body)
        return str(report["errorType"]), str(report["errorMessage"])
    except (ValueError, KeyError, TypeError):
        raise Mismatch("a JSON object with errorType and errorMessage",
                       describe(result.body)) from None


# ---- how a command is started ----


def command_of(text: str, folder: Optional[str] = None) -> Tuple[Tuple[str, ...], str]:
    """Return words and working folder of a command line. Raises ValueError.

    Words that name an existing file become absolute; the folder is that of the last
    such word unless another one is given.
    """
    words = shlex.split(text)
    if not words:
        raise ValueError("the command is empty")
    if folder is not None and not pathlib.Path(folder).is_dir():
        raise ValueError(f"{folder}: no such folder")
    found: Optional[pathlib.Path] = None
    for number, word in enumerate(words):
        path = pathlib.Path(word)
        if path.is_file() and (number or "/" in word):
            found = path.absolute()
            words[number] = str(found)
    if folder is None and found is None:
        whole = shutil.which(words[0])
        found = pathlib.Path(whole) if whole else None
    place = pathlib.Path(folder).absolute() if folder else \
        found.parent if found else pathlib.Path.cwd()
    return tuple(words), str(place)
