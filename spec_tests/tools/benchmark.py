#!/usr/bin/env python3
# benchmark.py: how fast the reference is, against yardsticks of its own (MIT).
"""Measure the emulator and the bootstraps against yardsticks of their own.

    python3 spec_tests/tools/benchmark.py                        all rows, five minutes
    python3 spec_tests/tools/benchmark.py --quick                coarser, a minute
    python3 spec_tests/tools/benchmark.py --only pull-1 --json   one row, for a program

The sides of a row take turns in rotated order; each round gives one ratio (or
difference), and the table shows the median of the rounds, the lowest and the highest.
So other load hits all sides alike; absolute values are notes. This process makes all
requests, on raw sockets. PEER_EMULATOR=FILE puts another emulator.py beside ours: its
value, and the median of ours over it, stand behind each line.

Nothing is asserted: status 0 says that it ran. How memory grows is measured by soak.py,
gateway.py by benchmark_gateway.py.
"""

from __future__ import annotations

import argparse
import contextlib
import inspect
import io
import json
import os
import pathlib
import re
import selectors
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import types
from functools import partial
from typing import (Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional,
                    Tuple)

__all__ = ["Caller", "GOALS", "Goal", "Lab", "ROWS", "Server", "Unmeasured", "ask",
           "children_of", "interleave", "main", "proc_field", "verdict"]

MIB = 1024 * 1024
SOCKET_LIMIT_S = 20.0     # any one wait of a caller
START_LIMIT_S = 15.0      # a server names its address, or instances appear
STOP_LIMIT_S = 3.0        # between SIGTERM and SIGKILL
PAUSE_S = 0.01            # between two looks
INVOKE = "/-/invoke"
LOOPBACK = "127.0.0.1"
REFERENCE = pathlib.Path(__file__).resolve().parent.parent.parent / "reference"
PYTHON = [sys.executable, "-S"]     # what `site` loads is the machine's, not ours
# where the platform reaches a push server
PUSH_HOST = "127.0.0.2" if sys.platform == "linux" else LOOPBACK

clock = time.monotonic
Sample = Dict[str, float]
Turn = Callable[[], Sample]
Found = Dict[str, Dict[str, List[float]]]     # goal -> column -> one value per round


class Unmeasured(Exception):
    """A row cannot be measured here; the text says why."""


# ---- goals ----

class Goal(NamedTuple):
    """One line of the table: what over what, the two bounds, and the unit."""

    row: str
    key: str
    what: str
    sense: str      # "<=": smaller is better, ">=": larger is better
    must: float
    ambition: Optional[float] = None
    unit: str = ""  # none for a ratio


GOALS = [Goal(*line) for line in (
    ("pull-1", "epoll", "1 caller, 64 B: p50 over epoll", "<=", 2, 1.25),
    ("pull-1", "naive", "1 caller, 64 B: p50 over naive", "<=", 0.6, 0.4),
    ("pull-8", "naive", "8 callers, 4 instances: rate over naive", ">=", 2.8, 4.8),
    ("pull-64", "naive", "64 callers, 16 instances: rate over naive", ">=", 2.6, 5),
    ("pull-64", "tail", "64 callers, 16 instances: p99 over p50", "<=", 2),
    ("pull-64", "errors", "64 callers, 16 instances: no right answer", "<=", 0, 0, "n"),
    ("pull-6mib", "plain", "6 MiB there and back: over plain sockets", ">=", 0.6, 0.75),
    ("push-1", "proxy", "1 caller: rate over proxy", ">=", 1.3, 2.1),
    ("push-8", "proxy", "8 callers: rate over proxy", ">=", 2.6, 3.2),
    ("push-bulk", "direct", "100 MiB answered: over a direct call", ">=", 0.5, 0.7),
    ("push-bulk", "grown", "100 MiB answered: growth of peak memory", "<=", 5, 5, "MB"),
    ("cold-start", "added", "event to delivery minus a bare start", "<=", 2, 1.2, "ms"),
    ("readiness", "early", "listen() to found, up within 50 ms", "<=", 1.5, 1.5, "ms"),
    ("readiness", "late", "listen() to found, up after 200 ms", "<=", 6, 6, "ms"),
    ("first-poll", "scf", "scf_bootstrap to first poll: over bare", "<=", 1.3, 1.15),
    ("first-poll", "fg", "fg_bootstrap to first poll: over bare", "<=", 1.3, 1.15),
    ("loop", "scf", "loop of scf_bootstrap: rate over raw sockets", ">=", 0.7, 0.9),
    ("loop", "fg", "loop of fg_bootstrap: rate over raw sockets", ">=", 0.7, 0.9),
    ("server", "stock", "fc_bootstrap, 8 connections: rate over stock", ">=", 1.5, 2.5),
    ("storm", "seconds", "256 connections at once: until answered", "<=", 1, 1, "s"),
    ("storm", "errors", "256 connections at once: not answered", "<=", 0, 0, "n"),
    ("idle-64", "cost", "1 caller: p50 with 64 instances over 1", "<=", 1.1, 1),
    ("memory", "rest", "resident at rest", "<=", 30, 30, "MB"),
    ("memory", "instance", "resident per idle instance (of 64)", "<=", 120, 120, "KB"),
    ("memory", "caller", "resident per waiting caller (of 256)", "<=", 30, 30, "KB"),
    ("idle", "switches", "0, 1, 64 instances: context switches", "<=", 0, 0, "n"),
    ("idle", "cpu", "0, 1, 64 instances: processor time", "<=", 0, 0, "ms"),
)]


def verdict(goal: Goal, value: float) -> str:
    """Return the better bound that is met: `ambition`, `must`, or `MISSED`."""
    sign = 1 if goal.sense == "<=" else -1
    for name, bound in (("ambition", goal.ambition), ("must", goal.must)):
        if bound is not None and sign * value <= sign * bound:
            return name
    return "MISSED"


# ---- callers ----

OK = b"HTTP/1.1 200"


def connect(port: int, host: str = LOOPBACK) -> socket.socket:
    """Return a connected socket without Nagle and with a limit on every wait."""
    sock = socket.create_connection((host, port), SOCKET_LIMIT_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def head_of(path: str, body_bytes: int, method: str = "POST") -> bytes:
    return ("%s %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            "Content-Length: %d\r\n\r\n" % (method, path, body_bytes)).encode()


def read_head(reader: io.BufferedReader) -> Tuple[bytes, int]:
    """Return (first line, announced body size). Raises OSError at the end."""
    start, line, size = reader.readline(), b" ", 0
    while line not in (b"\r\n", b""):
        line = reader.readline()
        if line[:15].lower() == b"content-length:":
            size = int(line[15:])
    if not line:
        raise OSError("the peer closed the connection")
    return start, size


def ask(port: int, event: bytes = b"", path: str = INVOKE, method: str = "POST"
        ) -> bytes:
    """Make one call on a connection of its own; return the body of a 200."""
    with connect(port) as sock, sock.makefile("rb") as reader:
        sock.sendall(head_of(path, len(event), method) + event)
        start, size = read_head(reader)
        body = reader.read(size)
    if not start.startswith(OK):
        raise Unmeasured("%s: %r %r" % (path, start, body[:200]))
    return body


class Caller:
    """One caller: its connection, and the exchange under way."""

    def __init__(self, port: int, event: bytes, path: str = INVOKE,
                 host: str = LOOPBACK) -> None:
        self.sock, self.event = connect(port, host), event
        self.request = head_of(path, len(event)) + event
        self.send()

    def send(self) -> None:
        self.begin, self.answer = clock(), b""
        self.sock.sendall(self.request)

    def receive(self) -> Optional[bool]:
        """Read once. True: a 200 that ends with the event; False: no such answer will
        come; None: there is more to come."""
        data = self.sock.recv(65536)
        self.answer += data
        if not data or not self.answer.startswith(OK):
            return False
        return self.answer.endswith(self.event) or None


def call_all(port: int, callers: int, path: str = INVOKE, host: str = LOOPBACK
             ) -> List[Caller]:
    """Let so many callers send events of 64 bytes, each its own: a mixed-up answer is
    a wrong one."""
    return [Caller(port, b'{"caller":"%051d"}' % number, path, host)
            for number in range(callers)]


def drive(callers: List[Caller], begin: float = 0.0, end: float = 0.0
          ) -> Tuple[List[float], int]:
    """Read their answers; until `end`, or at least one counts, they ask again at once.
    Return the latencies in s of what was asked after `begin`, and how many callers got
    no right answer."""
    latencies: List[float] = []
    errors, selector = 0, selectors.DefaultSelector()
    for caller in callers:
        selector.register(caller.sock, selectors.EVENT_READ, caller)
    while selector.get_map():
        # One caller alone reads at once: epoll would cost it a tenth.
        ready = callers if len(callers) == 1 else [
            key.data for key, _ in selector.select(SOCKET_LIMIT_S)]
        if not ready:
            return latencies, errors + len(selector.get_map())
        for caller in ready:
            right, now = caller.receive(), clock()
            if right and caller.begin >= begin:
                latencies.append(now - caller.begin)
            if right and (now < end or not latencies):
                caller.send()
            elif right is not None:
                errors += not right
                selector.unregister(caller.sock)
                caller.sock.close()
    return latencies, errors


def call(port: int, callers: int, seconds: float, path: str = INVOKE,
         host: str = LOOPBACK) -> Sample:
    """Callers that ask again as soon as they are answered, after a short warm-up."""
    crowd = call_all(port, callers, path, host)
    begin = clock() + min(seconds / 4, 0.1)
    latencies, errors = drive(crowd, begin, begin + seconds)
    rate = len(latencies) / (clock() - begin)
    if not latencies:
        raise Unmeasured("%s: %d without a right answer" % (path, errors))
    ordered = sorted(latencies)
    p50, p99 = statistics.median(ordered), ordered[int(len(ordered) * 0.99)]
    return {"rate": rate, "p50_us": p50 * 1e6, "tail": p99 / p50, "errors": errors}


def storm_once(port: int) -> Sample:
    """Open 256 connections, one request on each, until all are answered."""
    begin = clock()
    errors = drive(call_all(port, 256))[1]
    return {"seconds": clock() - begin, "errors": errors}


def move(port: int, path: str, send_bytes: int, expect_bytes: int,
         host: str = LOOPBACK) -> Sample:
    """Make three large exchanges, and take the median; no path = plain sockets."""
    block, taken_s = memoryview(bytearray(b"x" * MIB)), []
    for _ in range(3):
        with connect(port, host) as sock, sock.makefile("rb") as reader:
            begin, left = clock(), expect_bytes
            sock.sendall(head_of(path, send_bytes) if path else b"")
            for start in range(0, send_bytes, MIB):
                sock.sendall(block[:send_bytes - start])
            if path:
                status, left = read_head(reader)
                if not status.startswith(OK) or left != expect_bytes:
                    raise Unmeasured("%s: %r, %d bytes" % (path, status, left))
            while left:
                left -= reader.readinto(block[:left]) or left
            taken_s.append(clock() - begin)
    return {"mib_per_s": expect_bytes / MIB / statistics.median(taken_s)}


# ---- the platform of one bootstrap ----

EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
ID = b"8f5cf6ac-5fe3-4a32-b93e-5b9a4c2b7e0a"
DELIVERY = (b"HTTP/1.1 200 OK\r\nrequest_id: " + ID + b"\r\nX-Cff-Request-Id: " + ID
            + b"\r\nmemory_limit_in_mb: 128\r\ntime_limit_in_ms: 3000\r\n"
              b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b")


def runtime_env(port: int) -> Dict[str, str]:
    """Return the environment of a bootstrap of scf or fg."""
    return {"SCF_RUNTIME_API": LOOPBACK, "SCF_RUNTIME_API_PORT": str(port),
            "_HANDLER": "index.main_handler", "RUNTIME_HANDLER": "index.main_handler",
            "RUNTIME_API_ADDR": "%s:%d" % (LOOPBACK, port)}


def listen() -> Tuple[socket.socket, int]:
    listener = socket.create_server((LOOPBACK, 0), backlog=1024)
    listener.settimeout(SOCKET_LIMIT_S)
    return listener, listener.getsockname()[1]


Request = Tuple[socket.socket, bytes, bytes]    # connection, first line, body


def requests_at(listener: socket.socket) -> Iterator[Request]:
    """Yield one request after the other; a new connection for each is legal."""
    while True:
        with listener.accept()[0] as sock, sock.makefile("rb") as reader:
            sock.settimeout(SOCKET_LIMIT_S)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(OSError):
                while True:
                    start, size = read_head(reader)
                    yield sock, start, reader.read(size)


def run(argv: List[str], env: Dict[str, str]) -> subprocess.Popen[bytes]:
    """Start a program in its folder. All that is not needed would cost time."""
    return subprocess.Popen(
        argv, env={"PATH": os.defpath, **env}, cwd=os.path.dirname(argv[-1]) or "/",
        start_new_session=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL)


def start_ms(argv: List[str], event: bytes = b"") -> float:
    """Start a bootstrap by hand; return the time to its first poll, or to the moment of
    delivery that it answers to the event."""
    listener, port = listen()
    begin = clock()
    process = run(argv, runtime_env(port))
    try:
        for sock, start, body in requests_at(listener):
            is_poll = start.startswith(b"GET")
            if is_poll and not event:
                return (clock() - begin) * 1e3
            if b"/response" in start:
                return (float(body) - begin) * 1e3
            sock.sendall(DELIVERY % (len(event), event) if is_poll else EMPTY)
    finally:
        kill_group(process)
        listener.close()
    raise Unmeasured("no poll")


def run_ms(argv: List[str]) -> float:
    """Return the time that a command takes from start to end."""
    begin = clock()
    run(argv, {}).wait()    # with a limit it would poll, and be up to 50 ms late
    return (clock() - begin) * 1e3


class Feeder:
    """The runtime API of one bootstrap, which it feeds as fast as it asks."""

    def __init__(self, lab: Lab, argv: List[str]) -> None:
        listener, port = listen()
        lab.start(argv, runtime_env(port))
        self.requests = requests_at(listener)
        self.parked: Optional[socket.socket] = None

    def feed(self, seconds: float) -> Sample:
        """Hand out events for so long; the last poll stays for the next turn."""
        event, count, begin = b'{"pad":"%054d"}' % 0, 0, clock()
        delivery = DELIVERY % (len(event), event)
        if self.parked is not None:
            self.parked.sendall(delivery)
        for sock, start, _ in self.requests:
            is_poll = start.startswith(b"GET")
            if is_poll and clock() - begin >= seconds:
                self.parked = sock
                break
            count += b"/response" in start
            sock.sendall(delivery if is_poll else EMPTY)
        return {"rate": count / (clock() - begin)}


# ---- yardsticks (a process each) ----

def announce(port: int) -> None:
    print("http://127.0.0.1:%d" % port, file=sys.stderr, flush=True)


def run_stock(answer: Callable[[str, bytes], bytes] = lambda path, body: body) -> None:
    """*stock*: an `http.server` echo as people write it, minus its known stall."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1       # head and body in one write, else it stalls

        def do_POST(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            body = answer(self.path, self.rfile.read(size))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class StockServer(ThreadingHTTPServer):
        request_queue_size = 1024
        daemon_threads = True

    server = StockServer((LOOPBACK, 0), Handler)
    announce(server.server_address[1])
    server.serve_forever()


def run_naive() -> None:
    """*naive*: stock + a Queue of events + one Event per caller, a pull emulator."""
    import queue
    import threading

    waiting: queue.Queue[Any] = queue.Queue()
    mine = threading.local()        # one connection, one thread, one bootstrap

    def answer(path: str, body: bytes) -> bytes:
        if path == INVOKE:
            invocation = types.SimpleNamespace(event=body, done=threading.Event())
            waiting.put(invocation)
            invocation.done.wait(SOCKET_LIMIT_S)
            return bytes(invocation.result)
        if path == "/runtime/invocation/next":
            mine.invocation = waiting.get()
            return bytes(mine.invocation.event)
        if path == "/runtime/invocation/response":
            mine.invocation.result = body
            mine.invocation.done.set()
        return b""

    run_stock(answer)


class EpollPlatform:
    """*epoll*: the pull emulator as one `selectors` loop, the floor for Python."""

    def __init__(self) -> None:
        self.polls: List[socket.socket] = []
        self.events: List[Tuple[socket.socket, bytes]] = []
        self.running: Dict[socket.socket, socket.socket] = {}
        listener, port = listen()
        announce(port)
        selector = selectors.DefaultSelector()
        selector.register(listener, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fileobj is listener:
                    sock = listener.accept()[0]
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    selector.register(sock, selectors.EVENT_READ, sock)
                elif not self.serve(key.data):
                    selector.unregister(key.fileobj)
                    key.data.close()

    def serve(self, sock: socket.socket) -> bool:
        """Serve a request, so small that it arrives whole; False at the end."""
        head, _, body = sock.recv(65536).partition(b"\r\n\r\n")
        fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:])
        assert len(body) == int(fields.get(b"content-length", 0))
        if head.startswith(b"POST /-/invoke "):
            self.events.append((sock, body))
        elif head.startswith(b"GET /runtime/invocation/next "):
            self.polls.append(sock)
        elif head:
            sock.sendall(EMPTY)
            if head.startswith(b"POST /runtime/invocation/response "):
                self.running.pop(sock).sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                    b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        if self.events and self.polls:
            caller, event = self.events.pop(0)
            poll = self.polls.pop()
            self.running[poll] = caller
            poll.sendall(DELIVERY % (len(event), event))
        return bool(head)


def run_proxy(host: str, port: str) -> None:
    """*proxy*: a front door as people write it, stock + a pool of `http.client`."""
    from http.client import HTTPConnection
    pool: List[HTTPConnection] = []

    def answer(path: str, body: bytes) -> bytes:
        try:
            connection = pool.pop()
        except IndexError:
            connection = HTTPConnection(host, int(port), timeout=SOCKET_LIMIT_S)
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        result = connection.getresponse().read()
        pool.append(connection)
        return result

    run_stock(answer)


def run_plain(size: str, onward: str = "") -> None:
    """*plain* sockets: take `size` bytes, pass them on if told to, give them back."""
    buffer = bytearray(int(size))
    listener = socket.create_server((LOOPBACK, 0))
    announce(listener.getsockname()[1])
    behind = connect(int(onward)) if onward else None
    back = behind.makefile("rb") if behind else None
    while True:
        with listener.accept()[0] as sock, sock.makefile("rb") as reader:
            while reader.readinto(buffer) == len(buffer):
                if behind and back:
                    behind.sendall(buffer)
                    back.readinto(buffer)
                sock.sendall(buffer)


YARDSTICKS: Dict[str, Callable[..., object]] = {
    "stock": run_stock, "naive": run_naive, "epoll": EpollPlatform, "proxy": run_proxy,
    "plain": run_plain}


# ---- functions under test ----
# Small on purpose, so that the time is the platform's. -IS: no site, no user's paths.

# They read with our own read_head().

COMMON = '''#!{python} -IS
from __future__ import annotations
import os, selectors, socket, time

def send(sock, start, body):
    head = b"%bContent-Length: %d\\r\\n\\r\\n" % (start, len(body))
    sock.sendall(head + body if len(body) < 65536 else head)
    if len(body) >= 65536:
        sock.sendall(body)

''' + inspect.getsource(read_head)

# Echoes events. `sleep N` waits N seconds first, `when` answers with the moment of
# delivery and ends the process.
PULL_LOOP = COMMON + '''
sock = socket.create_connection((os.environ["SCF_RUNTIME_API"],
                                 int(os.environ["SCF_RUNTIME_API_PORT"])))
sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
reader = sock.makefile("rb")

def exchange(start, body=b""):
    send(sock, start + b" HTTP/1.1\\r\\nHost: x\\r\\n", body)
    return reader.read(read_head(reader)[1])

exchange(b"POST /runtime/init/ready", b" ")
while True:
    event = exchange(b"GET /runtime/invocation/next")
    moment = time.monotonic()
    if event.startswith(b"sleep "):
        time.sleep(float(event[6:]))
    exchange(b"POST /runtime/invocation/response",
             repr(moment).encode() if event == b"when" else event)
    if event == b"when":
        os._exit(0)
'''

# Listens after a while. Echoes bodies; the path /give answers many bytes, the event
# `when` the milliseconds from listen() to the first connection, and ends the process.
PUSH_SERVER = COMMON + '''
time.sleep({delay_s} and {delay_s} + os.getpid() % 11 * 0.0007)
listener = socket.create_server(("{host}", int(os.environ["FC_SERVER_PORT"])))
begin, found_ms = time.monotonic(), 0.0
LARGE = b"x" * {large_bytes}
selector = selectors.DefaultSelector()
selector.register(listener, selectors.EVENT_READ)

def serve(sock, reader):
    try:
        start, size = read_head(reader)
    except OSError:
        selector.unregister(sock)
        return sock.close()
    event = reader.read(size)
    answer = repr(found_ms).encode() if event == b"when" else event
    if start.startswith(b"POST /give"):
        answer = LARGE
    send(sock, b"HTTP/1.1 200 OK\\r\\nContent-Type: text/plain\\r\\n", answer)
    if event == b"when":
        os._exit(0)

while True:
    for key, _ in selector.select():
        if key.fileobj is listener:
            sock = listener.accept()[0]
            found_ms = found_ms or (time.monotonic() - begin) * 1e3
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(sock, selectors.EVENT_READ, sock.makefile("rb"))
        else:
            serve(key.fileobj, key.data)
'''

# What a user of the bootstraps writes.
ECHO_HANDLER = "def main_handler(event, context):\n    return event\n"


# ---- processes ----

def kill_group(process: subprocess.Popen[bytes]) -> None:
    """Kill what was started, and all that it forked in its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def children_of(pid: int) -> List[int]:
    """Return the ids of the live children (Linux; elsewhere none)."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if parent == str(pid) and state != "Z":
                found.append(int(path.parent.name))
    return found


class Server:
    """A process that serves; `port` is the one that it named on stderr."""

    def __init__(self, argv: List[str], env: Dict[str, str], folder: str) -> None:
        # A file and not a pipe: nobody has to read it while the server is measured.
        handle, self.log = tempfile.mkstemp(".log", dir=folder)
        self.process = subprocess.Popen(
            argv, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **env},
            start_new_session=True, stdin=subprocess.DEVNULL, stdout=handle,
            stderr=handle, cwd=folder)
        os.close(handle)
        self.pid, self.port = self.process.pid, 0

    def wait_for_address(self) -> Server:
        """Return itself once it serves. Raises Unmeasured."""
        end, text = clock() + START_LIMIT_S, ""
        while clock() < end:
            has_ended = self.process.poll() is not None
            text = pathlib.Path(self.log).read_text(errors="replace")
            address = re.search(r"http://[\d.]+:(\d+)", text)
            if address:
                self.port = int(address.group(1))
                return self
            if has_ended:
                break
            time.sleep(PAUSE_S)
        raise Unmeasured("no address from it: " + text.strip()[-300:])

    def stop(self) -> None:
        """Wait for its end a little, then kill it and its instances."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_LIMIT_S)
        for pid in children_of(self.pid):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        kill_group(self.process)


# ---- what /proc tells ----

def proc_field(pid: int, name: str) -> int:
    """Return a number of /proc/PID/status: `VmRSS`, say. Raises Unmeasured."""
    with contextlib.suppress(OSError):
        found = re.search(r"^%s:\s+(\d+)" % name,
                          pathlib.Path("/proc/%d/status" % pid).read_text(), re.M)
        if found:
            return int(found.group(1))
    raise Unmeasured("needs Linux' /proc")


def activity(pid: int) -> Tuple[int, float]:
    """Return (context switches, processor time in ms) of a process until now."""
    switches, cpu_ns = 0, 0
    for task in pathlib.Path("/proc/%d/task" % pid).glob("*"):
        switches += proc_field(int(task.name), "voluntary_ctxt_switches")
        switches += proc_field(int(task.name), "nonvoluntary_ctxt_switches")
        cpu_ns += int((task / "schedstat").read_text().split()[0])
    return switches, cpu_ns / 1e6


# ---- the lab ----

def interleave(rounds: int, sides: Mapping[str, Turn]) -> Dict[str, List[Sample]]:
    """Let all sides take one turn per round, in an order that rotates."""
    names = list(sides)
    taken: Dict[str, List[Sample]] = {name: [] for name in names}
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            taken[name].append(sides[name]())
    return taken


def contestants() -> Dict[str, List[str]]:
    """Return the emulators to measure, by column."""
    found = {"ours": [*PYTHON, str(REFERENCE / "emulator.py")]}
    if os.environ.get("PEER_EMULATOR"):
        found["peer"] = [*PYTHON, os.path.abspath(os.environ["PEER_EMULATOR"])]
    return found


class Lab:
    """A folder for functions, what runs at the moment, and notes on the row."""

    def __init__(self, rounds: int, quick: bool) -> None:
        self.rounds, self.quick = rounds, quick
        self.slice_s = 0.12 if quick else 0.4
        self.folder = tempfile.mkdtemp(prefix="benchmark-")
        self.servers: List[Server] = []
        self.notes: List[str] = []

    def program(self, text: str, delay_s: float = 0.0, large_bytes: int = 0) -> str:
        """Make a folder of a program, and of a handler; return the program's path."""
        folder = pathlib.Path(tempfile.mkdtemp(dir=self.folder))
        for name, value in (("python", sys.executable), ("host", PUSH_HOST),
                            ("delay_s", delay_s), ("large_bytes", large_bytes)):
            text = text.replace("{%s}" % name, str(value))
        path = folder / "bootstrap"
        path.write_text(text)
        path.chmod(0o755)
        (folder / "index.py").write_text(ECHO_HANDLER)
        return str(path)

    def bootstrap(self, protocol: str) -> List[str]:
        """Make a folder of a bootstrap of ours; return how to start it."""
        source = REFERENCE / (protocol + "_bootstrap.py")
        return [*PYTHON, self.program(source.read_text())]

    def start(self, argv: List[str], env: Dict[str, str], folder: str = "") -> Server:
        self.servers.append(Server(argv, env, folder or os.path.dirname(argv[-1])))
        return self.servers[-1]

    def yardstick(self, name: str, *argv: str) -> Server:
        return self.start([sys.executable, "-I", os.path.abspath(__file__), "--role",
                           name, *argv], {}, self.folder).wait_for_address()

    def emulators(self, protocol: str, program: str, *options: str
                  ) -> Dict[str, Server]:
        """Start ours, and the peer if there is one."""
        return {column: self.start(
            [*argv, protocol, os.path.dirname(program), "--serve", "127.0.0.1:0",
             "--timeout", "60", "--quiet", *options], {}, self.folder
            ).wait_for_address() for column, argv in contestants().items()}

    def compare(self, what: str, turns: Mapping[str, Turn], *yardsticks: str,
                finer: int = 1) -> Found:
        """Let the sides take turns. Return all quantities of the samples, and under
        each yardstick's name the ratios of one quantity over it."""
        taken = interleave(self.rounds * finer, turns)
        self.notes.append("%s: %s" % (what, ", ".join("%s %.4g" % (
            name, statistics.median(each[what] for each in samples))
            for name, samples in taken.items())))
        self.notes += ["wrong answers from " + name for name, samples in taken.items()
                       if any(each.get("errors") for each in samples)]
        columns = {name: samples for name, samples in taken.items()
                   if name not in yardsticks}
        found: Found = {key: {
            name: [each[key] for each in samples] for name, samples in columns.items()}
            for key in taken[next(iter(columns))][0]}
        for yardstick in yardsticks:
            found[yardstick] = {name: [mine[what] / other[what] for mine, other in zip(
                samples, taken[yardstick])] for name, samples in columns.items()}
        return found

    def stop_servers(self) -> None:
        for server in self.servers:
            server.process.terminate()
        while self.servers:
            self.servers.pop().stop()

    def close(self) -> None:
        self.stop_servers()
        shutil.rmtree(self.folder, ignore_errors=True)


# ---- rows: calls ----

def pull_emulators(lab: Lab, instances: int) -> Dict[str, Server]:
    """Start the emulators, and make each start so many instances: by as many slow
    events at once."""
    sides = lab.emulators("scf", lab.program(PULL_LOOP), "--max-instances",
                          str(max(1, instances)))
    for server in sides.values():
        for attempt in range(4):
            if len(children_of(server.pid)) < instances:
                pause_s = 0.3 + 0.04 * instances * (attempt + 1)
                drive([Caller(server.port, b"sleep %g" % pause_s)
                       for _ in range(instances)])
        if len(children_of(server.pid)) < instances:
            raise Unmeasured("%d instances never came up" % instances)
    return sides


def compare_calls(lab: Lab, what: str, callers: int, sides: Dict[str, Server],
                  *yardsticks: str) -> Found:
    """Compare by calls. One caller gets more and shorter turns: its speed depends on
    where the scheduler has just put the processes."""
    finer = 3 if callers == 1 else 1
    return lab.compare(what, {
        name: partial(call, server.port, callers, lab.slice_s / finer)
        for name, server in sides.items()}, *yardsticks, finer=finer)


def pull(lab: Lab, callers: int, instances: int, what: str, *yardsticks: str) -> Found:
    sides = pull_emulators(lab, instances)
    argv = [lab.program(PULL_LOOP)]
    for name in yardsticks:
        sides[name] = lab.yardstick(name)
        for _ in range(instances):
            lab.start(argv, runtime_env(sides[name].port))
    return compare_calls(lab, what, callers, sides, *yardsticks)


def pull_6mib(lab: Lab) -> Found:
    size = 6 * MIB
    behind = lab.yardstick("plain", str(size))
    relay = lab.yardstick("plain", str(size), str(behind.port))
    turns = {name: partial(move, server.port, INVOKE, size, size)
             for name, server in pull_emulators(lab, 1).items()}
    turns["plain"] = partial(move, relay.port, "", size, size)
    return lab.compare("mib_per_s", turns, "plain")


def start_push(lab: Lab, argv: List[str]) -> int:
    """Start a push server by hand; return its port once it listens."""
    with socket.create_server((PUSH_HOST, 0)) as probe:
        port = int(probe.getsockname()[1])
    lab.start(argv, {"FC_SERVER_PORT": str(port), "FC_FUNC_CODE_PATH": ".",
                     "FC_FUNCTION_HANDLER": "index.main_handler"})
    end = clock() + START_LIMIT_S
    while clock() < end:
        with contextlib.suppress(OSError):
            connect(port, PUSH_HOST).close()
            return port
        time.sleep(PAUSE_S)
    raise Unmeasured("nothing listens on port %d" % port)


def push_emulators(lab: Lab, program: str) -> Dict[str, Server]:
    return lab.emulators("fc", program, "--port", "0", "--no-freeze", "--max-instances",
                         "1", "--concurrency", "64")


def push(lab: Lab, callers: int) -> Found:
    program = lab.program(PUSH_SERVER)
    sides, port = push_emulators(lab, program), start_push(lab, [program])
    sides["proxy"] = lab.yardstick("proxy", PUSH_HOST, str(port))
    return compare_calls(lab, "rate", callers, sides, "proxy")


def push_bulk(lab: Lab) -> Found:
    size = (25 if lab.quick else 100) * MIB
    program = lab.program(PUSH_SERVER, large_bytes=size)
    sides, port = push_emulators(lab, program), start_push(lab, [program])
    for server in sides.values():
        call(server.port, 1, 0.1)
    before_kb = {name: proc_field(each.pid, "VmRSS") for name, each in sides.items()}
    turns = {name: partial(move, server.port, "/give", 2, size)
             for name, server in sides.items()}
    turns["direct"] = partial(move, port, "/give", 2, size, PUSH_HOST)
    found = lab.compare("mib_per_s", turns, "direct")
    found["grown"] = {name: [(proc_field(each.pid, "VmHWM") - before_kb[name]) / 1024]
                      for name, each in sides.items()}
    return found


def storm(lab: Lab) -> Found:
    return lab.compare("seconds", {name: partial(storm_once, server.port)
                                   for name, server in pull_emulators(lab, 4).items()})


# ---- rows: start ----

def quickest(count: int, measure: Callable[[], float]) -> Turn:
    """Return a turn that is the least of `count` measurements: what else runs on the
    machine only ever makes the start of a process slower."""
    return lambda: {"ms": min(measure() for _ in range(count))}


def told(port: int) -> Tuple[float, float]:
    """Return when a function was asked, and the number that it answered to `when`."""
    time.sleep(0.06)        # the instance of the turn before is gone by then
    return clock(), float(ask(port, b"when"))


def cold_ms(port: int) -> float:
    """Return the time from an event to its delivery in a new instance of PULL_LOOP."""
    begin, moment = told(port)
    return (moment - begin) * 1e3


def found_ms(port: int) -> Sample:
    """Return how long a new instance of PUSH_SERVER has listened before it is found."""
    return {"ms": told(port)[1]}


def cold_start(lab: Lab) -> Found:
    if sys.version_info < (3, 10):
        raise Unmeasured("needs Python 3.10, whose subprocess uses vfork")
    program, count = lab.program(PULL_LOOP), 3 if lab.quick else 5
    sides = lab.emulators("scf", program, "--max-instances", "4")
    turns = {name: quickest(count, partial(cold_ms, server.port))
             for name, server in sides.items()}
    turns["bare"] = quickest(count, partial(start_ms, [program], b"when"))
    found = lab.compare("ms", turns)["ms"]
    return {"added": {name: [mine - bare for mine, bare in zip(
        found[name], found["bare"])] for name in sides}}


def readiness(lab: Lab) -> Found:
    found: Found = {}
    for key, delay_s in (("early", 0.0), ("late", 0.2)):
        sides = push_emulators(lab, lab.program(PUSH_SERVER, delay_s))
        found[key] = lab.compare("ms", {
            name: partial(found_ms, server.port) for name, server in sides.items()},
            finer=2)["ms"]
    return found


# ---- rows: the bootstraps ----

def first_poll(lab: Lab) -> Found:
    count, turns = 3 if lab.quick else 7, {}
    for protocol in ("scf", "fg"):
        argv = lab.bootstrap(protocol)
        start_ms(argv)      # index.py gets compiled
        turns[protocol] = quickest(count, partial(start_ms, argv))
    turns["bare"] = quickest(count, partial(
        run_ms, [*PYTHON, "-c", "import socket, json"]))
    found = lab.compare("ms", turns, "bare")["bare"]
    return {protocol: {"ours": ratios} for protocol, ratios in found.items()}


def loop(lab: Lab) -> Found:
    # Two processes that only ever wait for each other run at one of two speeds, as the
    # scheduler happens to place them. On one core there is one speed.
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(cores)})
    try:
        turns = {name: partial(Feeder(lab, argv).feed, lab.slice_s) for name, argv in (
            ("scf", lab.bootstrap("scf")), ("fg", lab.bootstrap("fg")),
            ("raw", [lab.program(PULL_LOOP)]))}
        interleave(1, turns)        # a warm-up
        found = lab.compare("rate", turns, "raw")["raw"]
    finally:
        os.sched_setaffinity(0, cores)
    return {protocol: {"ours": ratios} for protocol, ratios in found.items()}


def server(lab: Lab) -> Found:
    port, stock = start_push(lab, lab.bootstrap("fc")), lab.yardstick("stock").port
    return lab.compare("rate", {
        "ours": partial(call, port, 8, lab.slice_s, "/invoke", PUSH_HOST),
        "stock": partial(call, stock, 8, lab.slice_s, "/invoke")}, "stock")


# ---- rows: many, idle ----

def idle_64(lab: Lab) -> Found:
    many, one = pull_emulators(lab, 64), pull_emulators(lab, 1)
    return {"cost": {name: compare_calls(
        lab, "p50_us", 1, {"64": many[name], "1": one[name]}, "1")["1"]["64"]
        for name in many}}


def memory(lab: Lab) -> Found:
    found: Found = {"rest": {}, "instance": {}, "caller": {}}
    rest, many, one = [pull_emulators(lab, count) for count in (0, 64, 1)]
    for name in rest:
        rest_kb = proc_field(rest[name].pid, "VmRSS")
        found["rest"][name] = [rest_kb / 1024]
        found["instance"][name] = [(proc_field(many[name].pid, "VmRSS") - rest_kb) / 64]
        found["caller"][name] = [waiting_kb(one[name])]
    return found


def waiting_kb(server: Server) -> float:
    """Return what each of 256 callers costs that wait for one busy instance."""
    before_kb, end = proc_field(server.pid, "VmRSS"), clock() + START_LIMIT_S
    crowd = [Caller(server.port, b"sleep 1.5"), *call_all(server.port, 256)]
    while json.loads(ask(server.port, path="/-/state", method="GET"))["queued"] < 256:
        if clock() > end:
            raise Unmeasured("256 callers never waited")
        time.sleep(PAUSE_S)
    taken_kb = proc_field(server.pid, "VmRSS") - before_kb
    drive(crowd)
    return taken_kb / 256


def idle(lab: Lab) -> Found:
    watched = [(name, server) for instances in (0, 1, 64)
               for name, server in pull_emulators(lab, instances).items()]
    time.sleep(1.0)         # connections of the warm-up are closed and forgotten
    before = [activity(server.pid) for _, server in watched]
    time.sleep(2 if lab.quick else 10)
    found: Found = {"switches": {}, "cpu": {}}
    for (name, server), (switches, cpu_ms) in zip(watched, before):
        after = activity(server.pid)
        found["switches"].setdefault(name, []).append(after[0] - switches)
        found["cpu"].setdefault(name, []).append(after[1] - cpu_ms)
    return found


ROWS: Dict[str, Callable[[Lab], Found]] = {
    "pull-1": lambda lab: pull(lab, 1, 1, "p50_us", "epoll", "naive"),
    "pull-8": lambda lab: pull(lab, 8, 4, "rate", "naive"),
    "pull-64": lambda lab: pull(lab, 64, 16, "rate", "naive"),
    "pull-6mib": pull_6mib, "push-1": lambda lab: push(lab, 1),
    "push-8": lambda lab: push(lab, 8), "push-bulk": push_bulk,
    "cold-start": cold_start, "readiness": readiness, "first-poll": first_poll,
    "loop": loop, "server": server, "storm": storm, "idle-64": idle_64,
    "memory": memory, "idle": idle,
}


# ---- table ----

COLUMNS = "%-10s %-45s %2s %-7s %-7s %-8s %s"


def over_peer(goal: Goal, columns: Dict[str, List[float]]) -> Optional[float]:
    """Return how good ours is over the peer, 2 = twice as good, if that is defined."""
    pairs = list(zip(columns.get("ours", []), columns.get("peer", [])))
    if not pairs or min(map(min, pairs)) <= 0:
        return None
    return statistics.median(ours / peer if goal.sense == ">=" else peer / ours
                             for ours, peer in pairs)


def line_of(goal: Goal, columns: Dict[str, List[float]]) -> Dict[str, Any]:
    """Return one line of the table as data."""
    line: Dict[str, Any] = {**goal._asdict(), "columns": {},
                            "over_peer": over_peer(goal, columns)}
    for column, values in columns.items():
        # where nothing is allowed, the worst counts
        value = statistics.median(values) if goal.must else max(values)
        line["columns"][column] = {
            "value": value, "verdict": verdict(goal, value), "rounds": values}
    return line


def run_row(lab: Lab, row: str) -> List[Dict[str, Any]]:
    """Measure one row; return its lines. Leaves nothing running."""
    found: Found = {}
    lab.notes = []
    try:
        found = ROWS[row](lab)
    except (Unmeasured, OSError, AttributeError) as error:  # what a system has not
        lab.notes.append("not measured: %s" % error)
    finally:
        lab.stop_servers()
    return [line_of(goal, found.get(goal.key, {})) for goal in GOALS if goal.row == row]


def print_line(line: Dict[str, Any]) -> None:
    """Print one line: bounds, verdict, values with their range over the rounds."""
    bounds = ["" if line[name] is None else "%s %g" % (line["sense"], line[name])
              for name in ("must", "ambition")]
    columns = line["columns"]
    text = COLUMNS % (line["row"], line["what"], line["unit"], *bounds, columns.get(
        "ours", {"verdict": "-"})["verdict"], ", ".join(
            "%s %.3g (%.3g..%.3g)" % (name, each["value"], min(each["rounds"]),
                                      max(each["rounds"]))
            for name, each in columns.items()))
    if line["over_peer"] is not None:
        text += ", over it %.2f" % line["over_peer"]
    print(text)


# ---- command line ----

def measure(lab: Lab, rows: List[str], as_json: bool) -> None:
    """Measure and print rows."""
    report: Dict[str, Any] = {
        "python": sys.version.split()[0], "cores": os.cpu_count(), "quick": lab.quick,
        "load": os.getloadavg()[0], "rounds": lab.rounds, "lines": [], "notes": {}}
    if not as_json:
        print("Python %(python)s, %(cores)d cores, load average %(load).1f before the "
              "start\n(a busy machine slows most who live on one core)" % report)
        print(COLUMNS % ("row", "what", "", "must", "ambition", "met", "value (range)"))
    for row in rows:
        lines = run_row(lab, row)
        report["lines"] += lines
        report["notes"][row] = lab.notes
        for line in [] if as_json else lines:
            print_line(line)
        for text in [] if as_json else lab.notes:
            print("%10s %s" % ("", text), flush=True)
    if as_json:
        print(json.dumps(report, indent=1))


def main(argv: Optional[List[str]] = None) -> int:
    """Run the benchmark. Return 0, or 130 if interrupted."""
    parser = argparse.ArgumentParser(
        description="Measure the emulator and the bootstraps against yardsticks.")
    parser.add_argument("--json", action="store_true", help="print JSON, no table")
    parser.add_argument("--quick", action="store_true", help="coarser, a minute")
    parser.add_argument("--only", metavar="ROW", action="append", choices=list(ROWS),
                        help="this row only (repeatable): " + ", ".join(ROWS))
    parser.add_argument("--rounds", type=int, metavar="N",
                        help="turns of each side (7; 3 with --quick)")
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.role:
        YARDSTICKS[options.role[0]](*options.role[1:])
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    lab = Lab(max(1, options.rounds or (3 if options.quick else 7)), options.quick)
    try:
        measure(lab, options.only or list(ROWS), options.json)
    except KeyboardInterrupt:
        return 130
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)    # the clean-up is bounded
        lab.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
