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
import time
from typing import (Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple,
                    Union)

import wire
from implementations import module_words

__all__ = ["Answer", "Container", "call_of", "keep_terminating", "profile",
           "until"]

HERE = pathlib.Path(__file__).resolve().parent
TESTS = HERE.parent
GATEWAY = TESTS.parent / "reference" / "gateway.py"
BOOTSTRAP = TESTS.parent / "reference" / "fc_bootstrap.py"
WORKER = HERE / "workers" / "worker.py"
PATIENCE_S = 10.0


class Answer(NamedTuple):
    """What the container answered."""

    status: int
    headers: Dict[str, str]
    body: bytes

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


def keep_terminating(process: "subprocess.Popen[bytes]") -> None:
    """Send SIGTERM again and again until a process has ended."""
    while process.poll() is None:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.0005)


class Container:
    """A running gateway.py, in a process group of its own as in an emulator."""

    def __init__(self, functions: Any, *options: str,
                 env: Optional[Dict[str, str]] = None, python: str = sys.executable,
                 program: Union[str, pathlib.Path, None] = None) -> None:
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="container-"))
        self.profiles = self.folder / "functions.json"
        self.profiles.write_text(json.dumps(functions))
        start = ("-S", str(program)) if program else module_words(GATEWAY)
        words = [python, "-I", *start, "--profiles", str(self.profiles),
                 "--port", "0", "--host", "127.0.0.1", *options]
        variables = {"PATH": os.environ["PATH"], "TMPDIR": str(self.folder),
                     **(env or {})}
        self.stderr = open(self.folder / "stderr.txt", "wb+")
        self.process = subprocess.Popen(words, env=variables, stderr=self.stderr,
                                        start_new_session=True)
        self.port = 0

    def __enter__(self) -> "Container":
        found = until(lambda: re.search(r"listens on \S+:(\d+)", self.talk())
                      or self.process.poll() is not None, "the gateway listens")
        assert isinstance(found, re.Match), self.talk()
        self.port = int(found.group(1))
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
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

    def log(self) -> List[Dict[str, Any]]:
        """Return the access log."""
        return [json.loads(line) for line in self.talk().splitlines()
                if line.startswith("{")]

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
            headers: Optional[Dict[str, str]] = None,
            own: Optional[http.client.HTTPConnection] = None) -> Answer:
        """Make one request, on a connection of its own unless one is given."""
        with contextlib.nullcontext(own) if own else self.connection() as connection:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return Answer(response.status, {name.lower(): value for name, value
                                            in response.getheaders()}, response.read())

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

    def raw(self, data: bytes = b"") -> socket.socket:
        """Open a plain connection and send bytes."""
        wire = socket.create_connection(("127.0.0.1", self.port), PATIENCE_S)
        wire.sendall(data)
        return wire

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

    def pids(self, name: str = "echo", state: str = "ready") -> List[int]:
        """Return the processes of a function's workers in a state."""
        return [worker["pid"] for worker in self.function(name)["workers"]
                if worker["state"] == state]
