# harness.py: a running platform whose both ends are in the hands of a test (MIT).
"""Give a test both ends of a platform: its callers, and the function behind it.

`Harness("fc")` has a front door, and the test for its function (`attach`); "scf" and
"fg" leave it the runtime API. With `code` the function is a real process instead.
"""

import contextlib
import json
import os
import pathlib
import queue
import signal
import socket
import socketserver
import struct
import sys
import tempfile
import threading
import time
from typing import (Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence,
                    Tuple, TypeVar, Union)

import emulator
import fork_server
import pytest
import scripted_bootstrap
import wire
from emulator import Platform

__all__ = ["Harness", "PULL", "Peer", "PROTOCOLS", "Run", "background", "code", "event",
           "fifo", "held", "outcome_of", "process_state", "processes", "run", "scale",
           "until"]

PROTOCOLS = pytest.mark.parametrize("protocol", ("fc", "scf", "fg"))
PULL = pytest.mark.parametrize("protocol", ("scf", "fg"))

PATIENCE_S = 8.0  # for things that come at once; only a failing test waits so long
RESET = struct.pack("ii", 1, 0)
T = TypeVar("T")
Own = TypeVar("Own", bound="Harness")
Answer = Callable[[wire.Message], Optional[bytes]]


def until(condition: Callable[[], bool], limit_s: float = PATIENCE_S) -> bool:
    """Wait until the condition holds, where nothing else tells; say whether it does."""
    return any(condition() for _ in wire.looks(limit_s))


def background(function: Callable[..., object], *arguments: object) -> threading.Thread:
    """Call it in a thread of its own; return the thread."""
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    return thread


def event(*steps: List[Any]) -> bytes:
    """Return a script for scripted_bootstrap.py as an event."""
    return json.dumps(steps).encode()


def scale(monkeypatch: pytest.MonkeyPatch, **limits: float) -> None:
    """Scale down limits of the emulator that no option sets."""
    for name, value in limits.items():
        monkeypatch.setattr(emulator, name, value)


class Peer(wire.Channel):
    """One end of a connection, read as HTTP or as bytes."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(sock, lambda who, data: None, "peer")

    def request(self) -> wire.Message:
        """Return the next request."""
        return self.read(PATIENCE_S)

    def answer(self, to: str = "GET") -> wire.Message:
        """Return the next answer; `to` is the method that it answers."""
        return self.read(PATIENCE_S, to)

    def head(self) -> List[str]:
        """Return the lines of the next head."""
        head = self.line(b"\r\n\r\n", time.monotonic() + PATIENCE_S)
        return head.decode("latin-1").split("\r\n")

    def chunk(self) -> bytes:
        """Return the next chunk of a chunked body; nothing for the last one."""
        deadline = time.monotonic() + PATIENCE_S
        data = self.take(int(self.line(b"\r\n", deadline), 16), deadline)
        assert self.take(2, deadline) == b"\r\n"
        return data

    def exactly(self, count: int) -> bytes:
        """Return exactly that many bytes."""
        return self.take(count, time.monotonic() + PATIENCE_S)

    def everything(self) -> bytes:
        """Return what comes until the other side closes."""
        return self.rest(time.monotonic() + PATIENCE_S)

    def reply(self, body: bytes = b"", status: int = 200, *fields: str) -> None:
        """Answer with a Content-Length."""
        lines = ["HTTP/1.1 %d X" % status, *fields, "Content-Length: %d" % len(body)]
        self.send(("\r\n".join(lines) + "\r\n\r\n").encode() + body)

    def reset(self) -> None:
        """Break the connection off."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.sock.close()


class Harness:
    """A platform, its front door, and (without `code`) the function's server."""

    crashes: List[str] = []  # in whatever thread, since the last look

    def __init__(self, protocol: str, code: str = "", **settings: Any) -> None:
        self.protocol = protocol
        self.env: "queue.Queue[Dict[str, str]]" = queue.Queue()
        self._closed = False
        threading.excepthook = self._note_crash
        setattr(socketserver.BaseServer, "handle_error", self._note_crash)
        self.server: Optional[socket.socket] = None
        self.seen: List[str] = []   # what serve() was asked, in order
        settings.setdefault("timeout_s", PATIENCE_S)
        settings.setdefault("grace_s", 0.5)
        settings.setdefault("on_note", lambda note: None)
        if not code:
            settings["attach"] = self.env.put
            settings.setdefault("port", self._listen() if protocol == "fc" else 0)
        elif protocol == "fc":
            settings.setdefault("port", 0)
        self.platform = Platform(protocol, code or ".", **settings)
        self.door = emulator.FrontDoor(self.platform, "127.0.0.1", 0)

    def _note_crash(self, *_: object) -> None:
        self.crashes.append("%s: %s" % sys.exc_info()[:2])

    def _listen(self) -> int:
        self.server = socket.socket()
        self.server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.server.bind(("0.0.0.0", 0))
        self.server.listen(256)
        self.server.settimeout(PATIENCE_S)
        port: int = self.server.getsockname()[1]
        return port

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        assert not self.crashes, [self.crashes.pop() for _ in self.crashes[:]]

    def close(self) -> None:
        """Stop the platform and everything that belongs to it, once."""
        if self._closed:
            return
        self._closed = True
        self.door.close()
        self.platform.close()
        self.door.shut()
        self.door.join(5)
        if self.server is not None:
            self.server.shutdown(socket.SHUT_RDWR)  # wakes who accepts
            self.server.close()

    # -- as a caller --

    def caller(self, data: bytes = b"") -> Peer:
        """Connect to the front door, and send that."""
        peer = Peer(socket.create_connection((self.door.host, self.door.port), 5))
        if data:
            peer.send(data)
        return peer

    def call(self, method: str, path: str, body: Optional[bytes] = None,
             *fields: Tuple[str, str]) -> Peer:
        """Send a request to the front door; return the connection."""
        return self.caller(wire.request_bytes(method, path, fields, body))

    def event(self, event: Union[bytes, object] = b"") -> Peer:
        """Post an event to /-/invoke; return the connection."""
        data = event if isinstance(event, bytes) else json.dumps(event).encode()
        return self.call("POST", "/-/invoke", data)

    def outcome(self, event: Union[bytes, object] = b"") -> Tuple[str, bytes]:
        """Invoke with an event; return kind and body of the outcome."""
        return outcome_of(self.event(event))

    def state(self) -> Dict[str, Any]:
        """Return what GET /-/state says."""
        peer = self.call("GET", "/-/state")
        document: Dict[str, Any] = json.loads(peer.answer().body)
        peer.close()
        return document

    def states(self) -> List[str]:
        """Return the states of the instances."""
        return [one["state"] for one in self.state()["instances"]]

    def ends(self, kind: str, count: int = 1) -> bool:
        """Wait until so many invocations had that outcome."""
        return until(lambda: self.platform.counts[kind] >= count)

    # -- as the function --

    def accept(self) -> Peer:
        """Take the next connection of the platform to the function's server."""
        assert self.server is not None
        return Peer(self.server.accept()[0])

    def serve(self, answer: Answer) -> None:
        """Be a server from now on: send what `answer` returns, and hang up if that is
        no whole answer with a length; None = say nothing."""
        def run() -> None:
            while True:
                try:
                    peer = self.accept()
                except OSError:
                    return
                background(self.serve_on, peer, answer)

        background(run)

    def serve_on(self, peer: Peer, answer: Answer) -> None:
        """Be a server on one connection."""
        with contextlib.suppress(wire.WireError):
            while True:
                request = peer.read(3600)
                self.seen.append(request.path)
                reply = answer(request)
                if reply is None:
                    peer.everything()
                    return
                peer.send(reply)
                if b"Content-Length" not in reply and b" 204 " not in reply:
                    break
        peer.close()

    def quiet(self) -> bool:
        """Tell whether the platform has no further connection waiting for us."""
        assert self.server is not None
        self.server.settimeout(0)
        try:
            self.server.accept()[0].close()
            return False
        except BlockingIOError:
            return True
        finally:
            self.server.settimeout(PATIENCE_S)

    def api(self) -> Tuple[str, int]:
        """Return the address of the runtime API of the next instance."""
        env = self.env.get(timeout=PATIENCE_S)
        host, _, port = (
            "%s:%s" % (env["SCF_RUNTIME_API"], env["SCF_RUNTIME_API_PORT"])
            if self.protocol == "scf" else env["RUNTIME_API_ADDR"]).partition(":")
        return host, int(port)


def outcome_of(caller: Peer) -> Tuple[str, bytes]:
    """Read an answer of /-/invoke; return kind and body of the outcome."""
    message = caller.answer("POST")
    caller.close()
    return message.header("x-outcome") or message.start, message.body


# ---- a program of ours ----


class Run(NamedTuple):
    """What a run printed and returned."""

    status: int
    out: bytes
    err: str


def run(command: Sequence[str], stdin: bytes = b"", **env: str) -> Run:
    """Run a command of ours to its end."""
    with contextlib.ExitStack() as stack:
        given, out, err = (stack.enter_context(tempfile.TemporaryFile())
                           for _ in range(3))
        given.write(stdin)
        given.seek(0)
        process = fork_server.start(command, cwd=os.getcwd(), env={**os.environ, **env},
                                    stdin=given, stdout=out, stderr=err)
        stack.callback(process.kill)
        status = process.wait(30)
        out.seek(0)
        err.seek(0)
        return Run(status, out.read(), err.read().decode())


# ---- what is left ----


def held() -> Tuple[int, int]:
    """Count the open files and the threads of this process."""
    return len(os.listdir("/proc/self/fd")), threading.active_count()


def processes(*marks: str) -> List[str]:
    """Return the ids of the living processes whose command line holds one of `marks`."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline", "rb") as file:
                line = os.fsdecode(file.read())
                if any(mark in line for mark in marks):
                    found.append(name)
        except OSError:
            pass  # it has ended
    return found


def process_state(process_id: int) -> str:
    """Return the letter that stands for the state of a process, X if it is gone."""
    try:
        with open(f"/proc/{process_id}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


# ---- fixtures ----


FOLDERS: List[str] = []  # of the code of a module's tests


@pytest.fixture
def code(tmp_path: pathlib.Path, request: pytest.FixtureRequest) -> str:
    """A code folder with scripted_bootstrap.py; what is left of it is killed at the end
    of the module, as to look for it takes longer than many a test."""
    if not FOLDERS:
        request.node.parent.addfinalizer(kill_leftovers)
    FOLDERS.append(scripted_bootstrap.place(tmp_path / "code"))
    return FOLDERS[-1]


def kill_leftovers() -> None:
    """Kill what still runs in a code folder."""
    for process_id in processes(*FOLDERS):
        with contextlib.suppress(OSError):
            os.kill(int(process_id), signal.SIGKILL)
    FOLDERS.clear()


@pytest.fixture
def fifo(tmp_path: pathlib.Path) -> Callable[[str], str]:
    """Make FIFOs by which process and test wait for each other."""
    def made(name: str) -> str:
        path = str(tmp_path / name)
        os.mkfifo(path)
        return path

    return made
