# gateways.py: what the tests of reference/gateway.py share (MIT).
"""Start gateway.py as a container's entry point, call it, look into it, count what is left."""

import contextlib
import http.client
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from typing import (Any, Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional,
                    Tuple, Union)

import fork_server
import wire
from implementations import module_words, start_words

__all__ = ["Answer", "Container", "DIE", "HALF", "HANG", "SLOW", "call_of", "profile",
           "until"]

HERE = pathlib.Path(__file__).resolve().parent
TESTS = HERE.parent
GATEWAY = TESTS.parent / "reference" / "gateway.py"
BOOTSTRAP = TESTS.parent / "reference" / "fc_bootstrap.py"
WORKER = HERE / "workers" / "worker.py"
START = start_words(GATEWAY)
PATIENCE_S = 10.0
SLOW = ("--tick", "1000")
HALF = "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf"


class Answer(NamedTuple):
    """What the container answered."""

    status: int
    fields: List[Tuple[str, str]]
    body: bytes

    @property
    def headers(self) -> Dict[str, str]:
        """The fields by their names in lower case."""
        return {name.lower(): value for name, value in self.fields}

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def failure(self) -> Tuple[int, str, str]:
        """Status, X-Fc-Status and the name of the failure."""
        return (self.status, self.headers.get("x-fc-status", ""),
                self.headers.get("x-noslate-error", ""))


def profile(name: str = "echo", *, env: Optional[Dict[str, str]] = None,
            worker: Optional[Dict[str, Any]] = None, memory_mb: int = 64,
            **more: Any) -> Dict[str, Any]:
    """Return a profile of the test worker."""
    return {"name": name, "runtime": "custom", "url": WORKER.parent.as_uri(),
            "signature": "1", "command": [sys.executable, "-I", *module_words(WORKER)],
            "environments": [{"key": key, "value": value}
                             for key, value in (env or {}).items()],
            "resourceLimit": {"memory": memory_mb << 20}, "worker": worker or {}, **more}


def until(condition: Callable[[], Any], what: str = "") -> Any:
    """Return the first true value of a condition; fail if there is none in time."""
    for _ in wire.looks(PATIENCE_S):
        value = condition()
        if value:
            return value
    raise AssertionError(f"never came true: {what or condition}")


def call_of(do: str, **more: Any) -> bytes:
    """Return the event that makes the test worker do something."""
    return json.dumps({"do": do, **more}).encode()


HANG, DIE = call_of("say", then="hang"), call_of("say", then="exit")


class Container:
    """A running gateway.py, in a process group of its own as in an emulator."""

    def __init__(self, functions: Any, *options: str,
                 env: Optional[Dict[str, str]] = None, python: str = sys.executable,
                 program: Union[str, pathlib.Path, None] = None) -> None:
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="container-"))
        self.gate = self.folder / "gate-0"
        self.callers = ThreadPoolExecutor(32)
        self.profiles = self.folder / "functions.json"
        self.profiles.write_text(json.dumps(functions))
        start = ("-I", "-S", str(program)) if program else module_words(GATEWAY)
        words = [python, *start, "--profiles", str(self.profiles),
                 "--port", "0", "--host", "127.0.0.1", *options]
        variables = {"PATH": os.environ["PATH"], "TMPDIR": str(self.folder),
                     **(env or {})}
        self.stderr = open(self.folder / "stderr.txt", "wb+")
        self.process = fork_server.start(
            words, cwd=os.getcwd(), env=variables, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=self.stderr)
        self.port = 0

    def __enter__(self) -> "Container":
        found = until(lambda: re.search(r"listens on \S+:(\d+)\n", self.talk())
                      or self.process.poll() is not None, "the gateway listens")
        assert isinstance(found, re.Match), self.talk()
        self.port = int(found.group(1))
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.release()
            self.stop()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.callers.shutdown()
            self.stderr.close()
            shutil.rmtree(self.folder, ignore_errors=True)

    def stop(self) -> int:
        """End the container orderly, if it still runs; nothing may be left behind."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGCONT)
            self.process.send_signal(signal.SIGTERM)
        status = self.process.wait(PATIENCE_S)
        until(lambda: not self.processes(), "every process has ended")
        assert not self.temporary(), self.temporary()
        return status

    def talk(self) -> str:
        """Return what it wrote to stderr."""
        return (self.folder / "stderr.txt").read_text()

    def log(self, request_id: str) -> Dict[str, Any]:
        """Return the line of the access log about a call, once it is there."""
        found: Dict[str, Any] = json.loads(until(lambda: re.search(
            r'\{.*"request_id": "%s",.*\}\n' % request_id, self.talk())).group())
        return found

    def temporary(self) -> List[str]:
        """Return the temporary folders that the gateway has made."""
        return [path.name for path in self.folder.iterdir()
                if path.name.startswith("noslate-")]

    def processes(self) -> List[int]:
        """Return the processes of the container's group, but not ended ones. While a
        thread of it lives, a zombie has not ended: its sockets are still open."""
        found = []
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError, ValueError):
                if os.getpgid(int(name)) != self.process.pid:
                    continue
                with open(f"/proc/{name}/stat", encoding="latin-1") as file:
                    state = file.read().rpartition(")")[2].split()[0]
                if state not in "ZX" or len(os.listdir(f"/proc/{name}/task")) > 1:
                    found.append(int(name))
        return found

    # Calls

    @contextlib.contextmanager
    def connection(self) -> Iterator[http.client.HTTPConnection]:
        """Give a connection to the container."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port,
                                                timeout=PATIENCE_S)
        try:
            yield connection
        finally:
            connection.close()

    def ask(self, method: str, path: str, body: bytes = b"",
            headers: Union[Dict[str, str], Iterable[Tuple[str, str]]] = (),
            own: Optional[http.client.HTTPConnection] = None) -> Answer:
        """Make one request, on a connection of its own unless one is given."""
        with contextlib.nullcontext(own) if own else self.connection() as connection:
            connection.putrequest(method, path)
            for pair in headers.items() if isinstance(headers, dict) else headers:
                connection.putheader(*pair)
            if body or method in ("POST", "PUT"):
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            response = connection.getresponse()
            return Answer(response.status, response.getheaders(), response.read())

    def invoke(self, event: bytes = b"hi", function: str = "echo",
               **headers: str) -> Answer:
        """Send an event as FC does; underscores in names of headers become hyphens."""
        fields = {"X-Fc-Control-Path": "/invoke", "X-Fc-Function-Name": "outer",
                  "X-Fc-Request-Id": "1-test", "x-noslated-dispatch": function}
        fields.update((name.replace("_", "-"), value) for name, value in headers.items())
        return self.ask("POST", "/invoke", event, fields)

    def http(self, event: bytes = b"", method: str = "POST", path: str = "/page",
             function: str = "echo", **headers: str) -> Answer:
        """Send an HTTP invocation as FC does."""
        fields = {"X-Fc-Control-Path": "/http-invoke", "x-noslated-dispatch": function}
        fields.update((name.replace("_", "-"), value) for name, value in headers.items())
        return self.ask(method, path, event, fields)

    def later(self, event: bytes = b"hi", function: str = "echo",
              **fields: str) -> "Future[Answer]":
        """Invoke in another thread."""
        return self.callers.submit(lambda: self.invoke(event, function, **fields))

    def hold(self, number: int = 1, running: Optional[int] = None,
             **fields: str) -> "List[Future[Answer]]":
        """Start calls that last until release(). Return when as many as can are in
        workers, and the rest in the queue."""
        order = call_of("hold", gate=str(self.gate))
        calls = [self.later(order, **fields) for _ in range(number)]
        running = number if running is None else running
        until(lambda: self.active() == running and self.function()["queued"]
              == number - running, f"{running} active calls")
        return calls

    def release(self) -> None:
        """Let the calls that are held go on."""
        self.gate.touch()
        self.gate = self.gate.with_name("gate-%d" % len(list(self.folder.iterdir())))

    def raw(self, data: bytes = b"") -> socket.socket:
        """Open a plain connection and send bytes."""
        wire = socket.create_connection(("127.0.0.1", self.port), PATIENCE_S)
        wire.sendall(data)
        return wire

    def put(self, *profiles: Any) -> Answer:
        """Replace the list over HTTP."""
        return self.ask("PUT", "/-/profiles", json.dumps(profiles).encode())

    def stats(self) -> Dict[str, Any]:
        """Return GET /-/stats."""
        found = self.ask("GET", "/-/stats").json
        assert isinstance(found, dict)
        return found

    def function(self, name: str = "echo") -> Dict[str, Any]:
        """Return the statistics of one function."""
        found = self.stats()["functions"][name]
        assert isinstance(found, dict)
        return found

    def active(self) -> int:
        """Return how many calls are in workers of the function `echo`."""
        return sum(worker["active"] for worker in self.function()["workers"])

    def pids(self, name: str = "echo", state: str = "ready") -> List[int]:
        """Return the processes of a function's workers in a state."""
        return [worker["pid"] for worker in self.function(name)["workers"]
                if worker["state"] == state]
