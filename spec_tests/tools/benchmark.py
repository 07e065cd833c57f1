#!/usr/bin/env python3
# benchmark.py: how fast the reference is, against yardsticks of its own (MIT).
"""Measure the emulator and the bootstrap against yardsticks of their own.

    python3 spec_tests/tools/benchmark.py                        all rows, under five minutes
    python3 spec_tests/tools/benchmark.py --quick                coarser, no variants, 45 s
    python3 spec_tests/tools/benchmark.py --only pull-1 --json   one row, for a program

Every value compares two sides of one run: the sides take turns in rotated order, each
turn gives one ratio (or difference), and the table shows the median of the turns. So
other load on the machine hits both sides alike; absolute times are not compared. One
process with raw sockets makes all requests. Loopback only; all processes started here
are killed by group at the end, also on Ctrl-C.

Two variables add a column each, when they name a program: PEER_EMULATOR (same command
line as emulator.py) and PEER_OF_WATCHDOG (an HTTP proxy, push rows only).

It asserts nothing: exit status 0 says that it ran, not that a goal is met.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import selectors
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from typing import (
    Any, Callable, Dict, List, Mapping, NamedTuple, NoReturn, Optional, Set, Tuple,
)

__all__ = ["GOALS", "ROWS", "main"]

MIB = 1024 * 1024
EVENT_BYTES = 64
SOCKET_LIMIT_S = 20.0     # any one wait of the load generator
START_LIMIT_S = 15.0      # a server names its address, or an instance appears
STOP_LIMIT_S = 3.0        # between SIGTERM and SIGKILL
INVOKE = "/-/invoke"
REFERENCE = os.path.join(
    os.path.dirname(os.path.abspath(__file__)), "../../reference")
PYTHON = [sys.executable, "-S"]     # what `site` loads is the machine's, not ours
EMULATOR = os.path.join(REFERENCE, "emulator.py")

Sample = Dict[str, float]
Found = Dict[str, Dict[str, List[float]]]     # goal key -> column -> one value per turn


class Unmeasured(Exception):
    """A row cannot be measured here; the text says why."""


# ---- goals ----

class Goal(NamedTuple):
    """One line of the table: what over what, the unit, and the two bounds."""

    row: str
    key: str
    what: str
    unit: str
    sense: str      # "<=": smaller is better, ">=": larger is better
    must: float
    ambition: Optional[float] = None


GOALS = [
    Goal("pull-1", "epoll", "1 caller, 64 B: p50, over epoll",
         "ratio", "<=", 1.6, 1.25),
    Goal("pull-1", "naive", "1 caller, 64 B: p50, over naive",
         "ratio", "<=", 0.55, 0.4),
    Goal("pull-8", "epoll", "8 callers x 4 instances: throughput, over epoll",
         "ratio", ">=", 0.6, 0.75),
    Goal("pull-8", "naive", "8 callers x 4 instances: throughput, over naive",
         "ratio", ">=", 4, 4.8),
    Goal("pull-64", "naive", "64 callers x 16 instances: throughput, over naive",
         "ratio", ">=", 4, 5),
    Goal("pull-64", "tail", "64 callers x 16 instances: p99 over p50",
         "ratio", "<=", 2),
    Goal("pull-64", "errors", "64 callers x 16 instances: wrong or missing answers",
         "count", "<=", 0),
    Goal("pull-6mib", "plain", "6 MiB there and back: throughput, over plain sockets",
         "ratio", ">=", 0.6, 0.75),
    Goal("push-1", "proxy", "1 caller: throughput, over a pooled http.client proxy",
         "ratio", ">=", 1.8, 2.1),
    Goal("push-8", "proxy", "8 callers: throughput, over a pooled http.client proxy",
         "ratio", ">=", 2.8, 3.2),
    Goal("push-bulk", "in", "large request body: throughput, over a direct call",
         "ratio", ">=", 0.5, 0.7),
    Goal("push-bulk", "out", "large answer: throughput, over a direct call",
         "ratio", ">=", 0.5, 0.7),
    Goal("push-bulk", "memory", "large bodies: growth of the peak resident memory",
         "MB", "<=", 5),
    Goal("cold-start", "added", "event to delivery, minus a bare start of the same",
         "ms", "<=", 2, 1.2),
    Goal("readiness", "early", "listen() to found, server up within 50 ms",
         "ms", "<=", 1.5),
    Goal("readiness", "late", "listen() to found, server up after 200 ms",
         "ms", "<=", 6),
    Goal("first-poll", "bare", "scf_bootstrap.py: first poll, over import socket, json",
         "ratio", "<=", 1.3, 1.15),
    Goal("loop", "raw", "pull loop of scf_bootstrap.py: throughput, over a raw loop",
         "ratio", ">=", 0.9),
    Goal("server", "stock", "fc_bootstrap.py, 8 connections: throughput, over stock",
         "ratio", ">=", 2.5, 3),
    Goal("storm", "all", "256 connections opened at once, until all are answered",
         "s", "<=", 1),
    Goal("storm", "errors", "256 connections opened at once: not answered",
         "count", "<=", 0),
    Goal("idle-64", "cost", "64 instances for one caller: p50 above that of 1 instance",
         "%", "<=", 10, 0),
    Goal("memory", "rest", "resident memory at rest", "MB", "<=", 25),
    Goal("memory", "instance", "resident memory per idle instance (of 64)",
         "KB", "<=", 100),
    Goal("memory", "caller", "resident memory per waiting caller (of 256)",
         "KB", "<=", 30),
    Goal("growth", "memory", "memory after all invocations, over after the first 1 %",
         "ratio", "<=", 1.05),
    Goal("idle", "switches", "idle with 0, 1, 64 instances: most context switches",
         "count", "<=", 0),
    Goal("idle", "cpu", "idle with 0, 1, 64 instances: most CPU time", "ms", "<=", 0),
]


def verdict(goal: Goal, value: float) -> str:
    """Return `ambition`, `must` (both: met) or `MISSED`."""
    def met(bound: float) -> bool:
        return value <= bound if goal.sense == "<=" else value >= bound
    if not met(goal.must):
        return "MISSED"
    return "ambition" if goal.ambition is not None and met(goal.ambition) else "must"


# ---- statistics ----

def percentile(values: List[float], share: float) -> float:
    """Return the value below which `share` (0 to 1) of the values lie."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def median(values: List[float]) -> float:
    """Return the middle value, or the mean of the two in the middle."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return ordered[middle]
    return (ordered[middle - 1] + ordered[middle]) / 2


def interleave(rounds: int, sides: Mapping[str, Callable[[], Sample]]
               ) -> Dict[str, List[Sample]]:
    """Let all sides take one turn per round, in an order that rotates."""
    names = list(sides)
    taken: Dict[str, List[Sample]] = {name: [] for name in names}
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            taken[name].append(sides[name]())
    return taken


def ratios(taken: Dict[str, List[Sample]], side: str, over: str, what: str
           ) -> List[float]:
    """Return one ratio per round."""
    return [mine[what] / other[what] if other[what] else float("inf")
            for mine, other in zip(taken[side], taken[over])]


# ---- load generator (its own process) ----
# Reads one JSON line {"do": name, …} per measurement, writes one JSON line back.

clock = time.monotonic
OK = b"HTTP/1.1 200"


def connect(port: int, host: str = "127.0.0.1") -> socket.socket:
    """Return a connected socket without Nagle and with a limit on every wait."""
    sock = socket.create_connection((host, port), SOCKET_LIMIT_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def head_of(path: str, body_bytes: int) -> bytes:
    return ("POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            "Content-Length: %d\r\n\r\n" % (path, body_bytes)).encode()


def event_of(size: int) -> bytes:
    return b'{"pad":"' + b"x" * (size - 10) + b'"}'


def read_head(sock: socket.socket) -> Tuple[bytes, bytes, int]:
    """Return (head, what came after it, announced body size)."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = sock.recv(65536)
        if not more:
            raise OSError("the peer closed the connection")
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    return head, rest, int(length.group(1)) if length else 0


def read_message(sock: socket.socket) -> Tuple[bytes, bytes]:
    """Return (head, body) of one request or answer."""
    head, body, size = read_head(sock)
    while len(body) < size:
        more = sock.recv(65536)
        if not more:
            raise OSError("the peer closed the connection")
        body += more
    return head, body


def drive_one(sock: socket.socket, path: str, event: bytes, end: float, count: int
              ) -> Tuple[List[float], int]:
    """One caller, blocking. Return (latencies in s, errors)."""
    request = head_of(path, len(event)) + event
    latencies: List[float] = []
    while clock() < end and len(latencies) < count:
        begin = clock()
        sock.sendall(request)
        answer = sock.recv(65536)
        # An answer is right and complete when it is a 200 that ends with the event.
        while answer.startswith(OK) and not answer.endswith(event):
            more = sock.recv(65536)
            if not more:
                return latencies, 1
            answer += more
        if not answer.startswith(OK):
            return latencies, 1
        latencies.append(clock() - begin)
    return latencies, 0


class Caller:
    """One caller of the crowd: its socket, and the exchange under way."""

    def __init__(self, sock: socket.socket, request: bytes) -> None:
        self.sock, self.request = sock, request
        self.begin, self.answer = 0.0, b""

    def send(self) -> None:
        self.begin, self.answer = clock(), b""
        self.sock.sendall(self.request)

    def receive(self) -> str:
        """Return `done`, `more` or `error`."""
        data = self.sock.recv(65536)
        self.answer += data
        if not data or not self.answer.startswith(OK):
            return "error"
        return "done" if self.answer.endswith(self.request[-EVENT_BYTES:]) else "more"


def drive_many(socks: List[socket.socket], path: str, event: bytes, end: float,
               count: int) -> Tuple[List[float], int]:
    """A crowd of callers in one loop. Return (latencies in s, errors)."""
    request, errors = head_of(path, len(event)) + event, 0
    latencies: List[float] = []
    selector = selectors.DefaultSelector()
    for sock in socks:
        caller = Caller(sock, request)
        selector.register(sock, selectors.EVENT_READ, caller)
        caller.send()
    while selector.get_map():
        ready = selector.select(SOCKET_LIMIT_S)
        if not ready:
            return latencies, errors + len(selector.get_map())
        for key, _ in ready:
            seen = key.data.receive()
            if seen == "more":
                continue
            now = clock()
            errors += seen == "error"
            if seen == "done":
                latencies.append(now - key.data.begin)
            if seen == "done" and now < end and len(latencies) < count:
                key.data.send()
            else:
                selector.unregister(key.fileobj)
    return latencies, errors


def op_call(port: int, path: str = INVOKE, callers: int = 1, seconds: float = 1.0,
            count: int = 10 ** 9, host: str = "127.0.0.1") -> Sample:
    """Callers that ask again as soon as they are answered, after a short warm-up."""
    event = event_of(EVENT_BYTES)
    socks = [connect(port, host) for _ in range(callers)]
    try:
        for limit_s, limit in ((min(seconds, 0.1), 30 * callers), (seconds, count)):
            begin = clock()
            if callers == 1:
                latencies, errors = drive_one(
                    socks[0], path, event, begin + limit_s, limit)
            else:
                latencies, errors = drive_many(
                    socks, path, event, begin + limit_s, limit)
            if errors:
                break
        taken = clock() - begin
    finally:
        for sock in socks:
            sock.close()
    return {"count": len(latencies), "errors": errors, "rate": len(latencies) / taken,
            "p50_us": percentile(latencies or [0.0], 0.5) * 1e6,
            "p99_us": percentile(latencies or [0.0], 0.99) * 1e6}


def op_storm(port: int, connections: int) -> Sample:
    """Open all connections at once, one request on each, until all are answered."""
    event = event_of(EVENT_BYTES)
    request, begin, answered = head_of(INVOKE, len(event)) + event, clock(), 0
    selector, answers = selectors.DefaultSelector(), {}
    for _ in range(connections):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex(("127.0.0.1", port))
        selector.register(sock, selectors.EVENT_WRITE)
        answers[sock] = b""
    while selector.get_map() and clock() - begin < SOCKET_LIMIT_S:
        for key, mask in selector.select(1):
            sock = key.fileobj      # type: ignore[assignment]
            try:
                if mask & selectors.EVENT_WRITE:
                    sock.sendall(request)
                    selector.modify(sock, selectors.EVENT_READ)
                    continue
                data = sock.recv(65536)
            except OSError:
                data = b""
            answers[sock] += data
            if not data or answers[sock].endswith(event):
                selector.unregister(sock)
                answered += bool(data) and answers[sock].startswith(OK)
    taken = clock() - begin
    for sock in answers:
        sock.close()
    return {"seconds": taken, "errors": connections - answered}


HELD: List[socket.socket] = []


def op_hold(port: int, callers: int, event: str) -> Sample:
    """Send one event per caller and leave the answers for `release`."""
    for _ in range(callers):
        sock = connect(port)
        sock.sendall(head_of(INVOKE, len(event)) + event.encode())
        HELD.append(sock)
    return {"callers": callers}


def op_release() -> Sample:
    """Read the answers of all held callers."""
    good = 0
    while HELD:
        sock = HELD.pop()
        try:
            good += read_message(sock)[0].startswith(OK)
        except OSError:
            pass
        sock.close()
    return {"answered": good}


def receive_exactly(sock: socket.socket, size: int, buffer: bytearray) -> None:
    """Read and drop `size` bytes (or keep them, if the buffer is as large)."""
    view, done = memoryview(buffer), 0
    while done < size:
        start = done if len(buffer) >= size else 0
        got = sock.recv_into(view[start:start + size - done])
        if not got:
            raise OSError("the peer closed the connection")
        done += got


def op_bulk(port: int, path: str, send_bytes: int, expect_bytes: int,
            host: str = "127.0.0.1", plain: bool = False) -> Sample:
    """One large exchange; `plain` leaves out HTTP. Status 0 is a lost connection."""
    sock, block, status = connect(port, host), bytearray(b"x" * MIB), 200
    try:
        begin = clock()
        if not plain:
            sock.sendall(head_of(path, send_bytes))
        for start in range(0, send_bytes, MIB):
            sock.sendall(memoryview(block)[:send_bytes - start])
        if plain:
            receive_exactly(sock, expect_bytes, block)
        else:
            head, rest, size = read_head(sock)
            status = int(head[9:12])
            receive_exactly(sock, size - len(rest), block)
            if status == 200 and size != expect_bytes:
                status = 1
    except OSError:
        status = 0
    finally:
        sock.close()
    return {"status": status, "seconds": clock() - begin}


def op_cold(port: int) -> Sample:
    """Event sent to event delivered, in a new instance; see `when` in PULL_LOOP."""
    sock = connect(port)
    try:
        time.sleep(0.06)    # the instance of the turn before is gone by then
        begin = clock()
        sock.sendall(head_of(INVOKE, 4) + b"when")
        head, body = read_message(sock)
        if not head.startswith(OK):
            raise OSError("cold start failed: %r %r" % (head[:60], body[:200]))
        return {"ms": (float(body) - begin) * 1e3}
    finally:
        sock.close()


def spawn(argv: List[str], variables: Dict[str, str], folder: Optional[str] = None
          ) -> "subprocess.Popen[bytes]":
    env = {"PATH": os.environ.get("PATH", os.defpath), **variables}
    return subprocess.Popen(
        argv, env=env, cwd=folder, start_new_session=True, stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def accept_from(listener: socket.socket) -> socket.socket:
    sock = listener.accept()[0]
    sock.settimeout(SOCKET_LIMIT_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def listen_locally() -> socket.socket:
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.settimeout(SOCKET_LIMIT_S)
    return listener


def runtime_env(port: int) -> Dict[str, str]:
    return {"SCF_RUNTIME_API": "127.0.0.1", "SCF_RUNTIME_API_PORT": str(port),
            "_HANDLER": "index.main_handler", "SCF_FUNCTIONNAME": "benchmark"}


EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
DELIVERY = (b"HTTP/1.1 200 OK\r\nrequest_id: 8f5cf6ac-5fe3-4a32-b93e-5b9a4c2b7e0a\r\n"
            b"memory_limit_in_mb: 128\r\ntime_limit_in_ms: 3000\r\n"
            b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b")


def op_bare_start(argv: List[str]) -> Sample:
    """The least a platform does for a cold start: spawn, answer, deliver."""
    with listen_locally() as listener:
        begin = clock()
        process = spawn(argv, runtime_env(listener.getsockname()[1]))
        try:
            with accept_from(listener) as sock:
                while True:
                    head, body = read_message(sock)
                    if head.startswith(b"GET"):
                        sock.sendall(DELIVERY % (4, b"when"))
                        continue
                    sock.sendall(EMPTY)
                    if b"/response " in head[:60]:
                        return {"ms": (float(body) - begin) * 1e3}
        finally:
            kill_group(process)


def op_first_poll(argv: List[str], folder: str) -> Sample:
    """Seconds from the start of a bootstrap to its first request for an event."""
    with listen_locally() as listener:
        begin = clock()
        process = spawn(argv, runtime_env(listener.getsockname()[1]), folder)
        try:
            while True:
                with accept_from(listener) as sock:
                    try:
                        while not read_message(sock)[0].startswith(b"GET"):
                            sock.sendall(EMPTY)
                        return {"seconds": clock() - begin}
                    except OSError:
                        continue    # one connection per request is legal
        finally:
            kill_group(process)


def op_run(argv: List[str]) -> Sample:
    """Seconds that a command takes from start to end."""
    begin = clock()
    process = spawn(argv, {})
    process.wait()      # with a time limit it would poll, and be up to 50 ms late
    return {"seconds": clock() - begin}


def share_core(pid: int = 0, cores: Optional[Set[int]] = None) -> Set[int]:
    """Move a process to one core (or to `cores`); return the cores it had.

    Two processes that only ever wait for each other run at one of two speeds, as
    the scheduler happens to place them. On one core there is one speed.
    """
    if not hasattr(os, "sched_setaffinity"):
        return set()
    before = os.sched_getaffinity(pid)
    os.sched_setaffinity(pid, cores or {max(before)})
    return before


FEEDERS: Dict[int, Tuple[socket.socket, List[socket.socket]]] = {}


def op_feed_open() -> Sample:
    """Listen as the runtime API of one instance."""
    listener = listen_locally()
    port = listener.getsockname()[1]
    FEEDERS[port] = (listener, [])
    return {"port": port}


def op_feed(port: int, seconds: float) -> Sample:
    """Hand out events as fast as the bootstrap asks; stop at a parked poll."""
    cores = share_core()
    try:
        return feed(port, seconds)
    finally:
        share_core(0, cores)


def feed(port: int, seconds: float) -> Sample:
    listener, parked = FEEDERS[port]
    event = event_of(EVENT_BYTES)
    delivery, count, begin = DELIVERY % (len(event), event), 0, clock()
    sock = parked.pop() if parked else None
    if sock is not None:
        sock.sendall(delivery)
    while True:
        if sock is None:
            sock = accept_from(listener)
        try:
            head, body = read_message(sock)
        except OSError:
            sock.close()
            sock = None
            continue
        if head.startswith(b"GET") and clock() - begin >= seconds:
            parked.append(sock)
            return {"rate": count / (clock() - begin), "count": count}
        count += body == event
        sock.sendall(delivery if head.startswith(b"GET") else EMPTY)


OPERATIONS: Dict[str, Callable[..., Sample]] = {
    "call": op_call, "storm": op_storm, "hold": op_hold, "release": op_release,
    "bulk": op_bulk, "cold": op_cold, "bare_start": op_bare_start, "run": op_run,
    "first_poll": op_first_poll, "feed_open": op_feed_open, "feed": op_feed,
}


def role_load() -> None:
    """Carry out one measurement per line until stdin ends."""
    for line in sys.stdin:
        order = json.loads(line)
        try:
            answer: Dict[str, Any] = OPERATIONS[order.pop("do")](**order)
        except (OSError, ValueError, subprocess.SubprocessError) as error:
            answer = {"failed": "%s: %s" % (type(error).__name__, error)}
        print(json.dumps(answer), flush=True)


# ---- yardsticks (a process each) ----

def announce(port: int) -> None:
    print("http://127.0.0.1:%d" % port, file=sys.stderr, flush=True)


def role_stock(answer: Callable[[str, bytes], bytes] = lambda path, body: body) -> None:
    """*stock*: an `http.server` echo as people write it, minus its known stall."""
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1       # head and body in one write, else it stalls

        def do_POST(self) -> None:
            size = int(self.headers.get("Content-Length") or 0)
            self.reply(answer(self.path, self.rfile.read(size)))

        def do_GET(self) -> None:
            self.reply(answer(self.path, b""))

        def reply(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 1024
        daemon_threads = True

    server = Server(("127.0.0.1", 0), Handler)
    announce(server.server_address[1])
    server.serve_forever()


def role_naive() -> None:
    """*naive*: stock + a Queue of events + one Event per caller, a pull emulator."""
    import queue
    import threading

    class Invocation:
        def __init__(self, event: bytes) -> None:
            self.event, self.result, self.done = event, b"", threading.Event()

    waiting: "queue.Queue[Invocation]" = queue.Queue()
    mine = threading.local()        # one connection, one thread, one bootstrap

    def answer(path: str, body: bytes) -> bytes:
        if path == INVOKE:
            invocation = Invocation(body)
            waiting.put(invocation)
            invocation.done.wait(SOCKET_LIMIT_S)
            return invocation.result
        if path == "/runtime/invocation/next":
            mine.invocation = waiting.get()
            return bytes(mine.invocation.event)
        if path == "/runtime/invocation/response":
            mine.invocation.result = body
            mine.invocation.done.set()
        return b""

    role_stock(answer)


class EpollPlatform:
    """*epoll*: the pull emulator as one `selectors` loop, the floor for Python."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.polls: List[socket.socket] = []
        self.events: List[Tuple[socket.socket, bytes]] = []
        self.running: Dict[socket.socket, socket.socket] = {}
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.selector.register(self.listener, selectors.EVENT_READ)

    def serve(self) -> NoReturn:
        announce(self.listener.getsockname()[1])
        while True:
            for key, _ in self.selector.select():
                if key.data is None:
                    sock = self.listener.accept()[0]
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self.selector.register(sock, selectors.EVENT_READ, bytearray())
                else:
                    self.read(key.fileobj, key.data)    # type: ignore[arg-type]

    def read(self, sock: socket.socket, buffer: bytearray) -> None:
        try:
            data = sock.recv(65536)
        except OSError:
            data = b""
        if not data:
            self.selector.unregister(sock)
            sock.close()
            return
        buffer += data
        head, end, rest = buffer.partition(b"\r\n\r\n")
        size = 0
        for line in head.split(b"\r\n")[1:]:
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                size = int(value)
        if end and len(rest) >= size:
            del buffer[:]       # one request at a time: nobody here pipelines
            self.handle(sock, bytes(head[:40]), bytes(rest))

    def handle(self, sock: socket.socket, line: bytes, body: bytes) -> None:
        if line.startswith(b"POST /-/invoke "):
            self.events.append((sock, body))
        elif line.startswith(b"GET /runtime/invocation/next "):
            self.polls.append(sock)
        else:
            sock.sendall(EMPTY)
            if line.startswith(b"POST /runtime/invocation/response "):
                self.running.pop(sock).sendall(self.reply(body))
        if self.events and self.polls:
            caller, event = self.events.pop(0)
            poll = self.polls.pop()
            self.running[poll] = caller
            poll.sendall(DELIVERY % (len(event), event))

    @staticmethod
    def reply(body: bytes) -> bytes:
        return (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                b"X-Outcome: ok\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))


def role_proxy(host: str, port: str) -> None:
    """A push front door as people write it: stock + a pool of `http.client`."""
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

    role_stock(answer)


def role_plain(size: str, onward: str = "0") -> None:
    """Plain sockets: take `size` bytes, pass them on if told to, give them back."""
    buffer = bytearray(int(size))
    listener = socket.create_server(("127.0.0.1", 0))
    announce(listener.getsockname()[1])
    behind = connect(int(onward)) if int(onward) else None
    while True:
        sock = listener.accept()[0]
        try:
            while True:
                receive_exactly(sock, len(buffer), buffer)
                if behind is not None:
                    behind.sendall(buffer)
                    receive_exactly(behind, len(buffer), buffer)
                sock.sendall(buffer)
        except OSError:
            sock.close()


def role_epoll() -> None:
    EpollPlatform().serve()


YARDSTICKS: Dict[str, Callable[..., None]] = {
    "load": role_load, "stock": role_stock, "naive": role_naive, "epoll": role_epoll,
    "proxy": role_proxy, "plain": role_plain,
}


# ---- functions under test ----
# Small on purpose, so that the time is the platform's. -IS: no site, no user's paths.

PULL_LOOP = '''#!{python} -IS
"""A pull bootstrap on a raw socket: echoes events; `sleep N` waits N seconds first,
`when` answers with the moment of delivery and ends the process."""
import os, socket, time
HEAD = "%s /runtime/%s HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: %d\\r\\n\\r\\n"
address = os.environ["SCF_RUNTIME_API"], int(os.environ["SCF_RUNTIME_API_PORT"])
sock = socket.create_connection(address)
sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

def exchange(method, path, body=b""):
    head = (HEAD % (method, path, len(body))).encode()
    sock.sendall(head + body if len(body) < 65536 else head)
    if len(body) >= 65536:
        sock.sendall(body)
    data = sock.recv(65536)
    while b"\\r\\n\\r\\n" not in data:
        data += sock.recv(65536) or exit()
    head, _, rest = data.partition(b"\\r\\n\\r\\n")
    size = int(head.lower().partition(b"\\ncontent-length:")[2].partition(b"\\r")[0])
    if len(rest) == size:
        return rest
    answer, done = bytearray(size), len(rest)
    answer[:done] = rest
    while done < size:
        done += sock.recv_into(memoryview(answer)[done:]) or exit()
    return answer

exchange("POST", "init/ready", b" ")
while True:
    event = exchange("GET", "invocation/next")
    moment = time.monotonic()
    if event.startswith(b"sleep "):
        time.sleep(float(event[6:]))
    exchange("POST", "invocation/response",
             repr(moment).encode() if event == b"when" else event)
    if event == b"when":
        os._exit(0)
'''

PUSH_SERVER = '''#!{python} -IS
"""A push server on raw sockets: echoes small bodies, drops large ones; the path
/give/N answers with N bytes."""
import os, selectors, socket
HEAD = b"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: %d"
BLOCK = bytearray(b"x" * 1048576)
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("{host}", int(os.environ["FC_SERVER_PORT"])))
listener.listen(1024)
selector = selectors.DefaultSelector()
selector.register(listener, selectors.EVENT_READ)

def drop(sock, size):
    sock.setblocking(True)
    while size > 0:
        size -= sock.recv_into(BLOCK, min(size, len(BLOCK))) or size

def give(sock, size):
    sock.setblocking(True)
    for start in range(0, size, len(BLOCK)):
        sock.sendall(memoryview(BLOCK)[:size - start])

def read(sock, buffer):
    data = sock.recv(65536)
    if not data:
        selector.unregister(sock)
        return sock.close()
    buffer += data
    head, end, body = bytes(buffer).partition(b"\\r\\n\\r\\n")
    field = head.lower().partition(b"\\r\\ncontent-length:")[2].partition(b"\\r")[0]
    size = int(field or 0)
    if not end or len(body) < size <= 65536:
        return
    del buffer[:]
    if size > 65536:
        drop(sock, size - len(body))
        body = b"dropped"
    give_bytes = head.split(b" ", 2)[1].partition(b"/give/")[2]
    if give_bytes:
        sock.sendall(HEAD % int(give_bytes) + b"\\r\\n\\r\\n")
        return give(sock, int(give_bytes))
    sock.sendall(HEAD % len(body) + b"\\r\\n\\r\\n" + body)

while True:
    for key, _ in selector.select():
        if key.fileobj is listener:
            sock = listener.accept()[0]
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(sock, selectors.EVENT_READ, bytearray())
        else:
            read(key.fileobj, key.data)
'''

LATE_SERVER = '''#!{python} -IS
"""A push server that listens late, answers once with the milliseconds from listen()
to the first connection, and ends."""
import os, socket, time
time.sleep({delay_s} and {delay_s} + os.getpid() % 11 * 0.0007)
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("{host}", int(os.environ["FC_SERVER_PORT"])))
listener.listen(64)
begin, found_ms = time.monotonic(), 0.0
for attempt in range(100):
    sock = listener.accept()[0]
    found_ms = found_ms or (time.monotonic() - begin) * 1e3
    if sock.recv(65536):
        break
body = repr(found_ms).encode()
sock.sendall(b"HTTP/1.1 200 OK\\r\\nConnection: close\\r\\n"
             b"Content-Length: %d\\r\\n\\r\\n%b" % (len(body), body))
sock.close()
'''

# What a user of the bootstraps writes.
ECHO_HANDLER = '''
def main_handler(event, context):
    return event

handler = main_handler
'''


# ---- processes ----

def kill_group(process: "subprocess.Popen[bytes]") -> None:
    """Kill what was started, and all that it forked in its group."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
    process.wait()


def children_of(pid: int) -> List[int]:
    """Return the ids of the live children (Linux; elsewhere none)."""
    found = []
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else []:
        if not name.isdigit():
            continue
        try:
            with open("/proc/%s/stat" % name) as file:
                fields = file.read().rpartition(")")[2].split()
        except OSError:
            continue
        if fields[1] == str(pid) and fields[0] != "Z":
            found.append(int(name))
    return found


class Server:
    """A process that serves; `port` is the one that it named on stderr."""

    def __init__(self, argv: List[str], folder: str,
                 variables: Optional[Dict[str, str]] = None) -> None:
        handle, self.log = tempfile.mkstemp(".log", dir=folder)
        env = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", **(variables or {})}
        self.process = subprocess.Popen(
            argv, env=env, start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=handle, stderr=handle, cwd=folder)
        os.close(handle)
        self.port = 0

    @property
    def pid(self) -> int:
        return self.process.pid

    def text(self) -> str:
        with open(self.log, errors="replace") as file:
            return file.read(20000)

    def wait_for_address(self) -> "Server":
        # A file and not a pipe: nobody has to read it while the server is measured.
        end = clock() + START_LIMIT_S
        while clock() < end and self.process.poll() is None:
            address = re.search(r"http://[\d.]+:(\d+)", self.text())
            if address:
                self.port = int(address.group(1))
                return self
            time.sleep(0.01)
        raise Unmeasured("no address from it: " + self.text().strip()[-300:])

    def terminate(self) -> List[int]:
        """Ask it to end; return its instances."""
        instances = children_of(self.pid)
        if self.process.poll() is None:
            self.process.terminate()
        return instances

    def stop(self, orphans: List[int]) -> None:
        """Some patience, then SIGKILL; also for the instances it left behind."""
        try:
            self.process.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            orphans += children_of(self.pid)
        kill_group(self.process)
        for pid in orphans:
            try:
                if os.getpgid(pid) == pid:      # still the leader that we saw
                    os.killpg(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass


class Candidate(NamedTuple):
    """A column of the table: what is measured against the yardsticks."""

    column: str
    argv: List[str]
    options: List[str]


class Lab:
    """The load generator, the folder for functions, and what runs at the moment."""

    def __init__(self, rounds: int, quick: bool) -> None:
        self.rounds, self.quick = rounds, quick
        self.slice_s = 0.12 if quick else 0.4
        self.folder = tempfile.mkdtemp(prefix="benchmark-")
        self.servers: List[Server] = []
        self.notes: List[str] = []
        self.loader = subprocess.Popen(
            self.role("load"), start_new_session=True, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    @staticmethod
    def role(name: str, *argv: str) -> List[str]:
        return [sys.executable, "-I", os.path.abspath(__file__), "--role", name, *argv]

    def load(self, do: str, **order: Any) -> Sample:
        """Have the load generator measure; blocks until it has."""
        assert self.loader.stdin is not None and self.loader.stdout is not None
        print(json.dumps({"do": do, **order}), file=self.loader.stdin, flush=True)
        answer: Dict[str, Any] = json.loads(self.loader.stdout.readline() or "{}")
        if "failed" in answer or not answer:
            raise Unmeasured("%s: %s" % (do, answer.get("failed", "loader is gone")))
        return answer

    def function(self, name: str, text: str, **values: Any) -> str:
        """Write a function folder with that `bootstrap`; return the folder."""
        folder = os.path.join(self.folder, name)
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, "bootstrap")
        with open(path, "w") as file:
            file.write(text.format(python=sys.executable, host=PUSH_HOST, **values)
                       if values or text.startswith("#!{") else text)
        os.chmod(path, 0o755)
        return folder

    def start(self, argv: List[str], variables: Optional[Dict[str, str]] = None
              ) -> Server:
        server = Server(argv, self.folder, variables)
        self.servers.append(server)
        return server

    def yardstick(self, name: str, *argv: str) -> Server:
        return self.start(self.role(name, *argv)).wait_for_address()

    def emulator(self, candidate: Candidate, protocol: str, folder: str, *options: str
                 ) -> Server:
        return self.start([
            *candidate.argv, protocol, folder, "--serve", "127.0.0.1:0", "--timeout",
            "60", *options, *candidate.options]).wait_for_address()

    def stop_servers(self) -> None:
        asked = [(server, server.terminate()) for server in self.servers]
        self.servers = []
        for server, instances in asked:
            server.stop(instances)

    def close(self) -> None:
        self.stop_servers()
        kill_group(self.loader)     # type: ignore[arg-type]
        shutil.rmtree(self.folder, ignore_errors=True)


def find_push_host() -> str:
    """Return the address at which the platform reaches a push server."""
    try:
        with socket.create_server(("127.0.0.2", 0)):
            return "127.0.0.2"
    except OSError:
        return "127.0.0.1"


PUSH_HOST = find_push_host()


def free_port() -> int:
    with socket.create_server((PUSH_HOST, 0)) as listener:
        return int(listener.getsockname()[1])


def emulators(lab: Lab, *variants: Candidate) -> List[Candidate]:
    """Return ours, its variants (not when quick), and the peer of the environment."""
    if not os.path.exists(EMULATOR):
        raise Unmeasured("no reference/emulator.py")
    ours = [*PYTHON, EMULATOR]
    found = [Candidate("measured", ours, ["--quiet"])]
    if not lab.quick:
        found += [Candidate(each.column, ours, each.options) for each in variants]
    if os.environ.get("PEER_EMULATOR"):
        peer = shlex.split(os.environ["PEER_EMULATOR"])
        found.append(Candidate("PEER_EMULATOR", peer, []))
    return found


NO_PIN = Candidate("--no-pin", [], ["--quiet", "--no-pin"])
LOGGED = Candidate("not --quiet", [], [])     # prints the vendor's log lines


# ---- what /proc tells ----

def proc_field(path: str, name: str) -> int:
    """Return the first number after `name:` in a /proc file."""
    try:
        with open(path) as file:
            found = re.search(r"^%s:\s+(\d+)" % name, file.read(), re.MULTILINE)
    except OSError:
        found = None
    if found is None:
        raise Unmeasured("needs Linux' /proc")
    return int(found.group(1))


def resident_kb(pid: int, name: str = "VmRSS") -> int:
    return proc_field("/proc/%d/status" % pid, name)


def activity(pid: int) -> Tuple[int, float]:
    """Return (context switches, CPU time in ms) of a process until now."""
    switches, cpu_ns = 0, 0
    if not os.path.exists("/proc/self/schedstat"):
        raise Unmeasured("needs Linux' /proc")
    for task in os.listdir("/proc/%d/task" % pid):
        path = "/proc/%d/task/%s/" % (pid, task)
        if not os.path.exists(path + "status"):
            continue        # a thread that has just ended
        switches += proc_field(path + "status", "voluntary_ctxt_switches")
        switches += proc_field(path + "status", "nonvoluntary_ctxt_switches")
        with open(path + "schedstat") as file:
            cpu_ns += int(file.read().split()[0])
    return switches, cpu_ns / 1e6


# ---- rows: pull ----

def raise_instances(lab: Lab, server: Server, wanted: int) -> None:
    """Have the emulator start `wanted` instances: as many slow events at once."""
    for attempt in range(4):
        if len(children_of(server.pid)) >= wanted:
            return
        pause_s = 0.3 + 0.04 * wanted * (attempt + 1)
        lab.load("hold", port=server.port, callers=wanted, event="sleep %g" % pause_s)
        lab.load("release")
    raise Unmeasured("%d instances never came up" % wanted)


def pull_yardstick(lab: Lab, name: str, folder: str, instances: int) -> Server:
    server = lab.yardstick(name)
    for _ in range(instances):
        lab.start([os.path.join(folder, "bootstrap")], runtime_env(server.port))
    return server


def pull_sides(lab: Lab, instances: int, yardsticks: List[str]) -> Dict[str, Server]:
    """Start all sides; the emulators are at their full number of instances."""
    folder, sides = lab.function("pull", PULL_LOOP), {}
    for candidate in emulators(lab, NO_PIN, LOGGED):
        server = lab.emulator(
            candidate, "scf", folder, "--max-instances", str(instances))
        raise_instances(lab, server, instances)
        sides[candidate.column] = server
    for name in yardsticks:
        sides[name] = pull_yardstick(lab, name, folder, instances)
    return sides


def take_turns(lab: Lab, sides: Dict[str, Server], callers: int
               ) -> Dict[str, List[Sample]]:
    """Interleave `call` on all sides.

    One caller gets more and shorter turns: its speed depends on where the scheduler
    has just put the processes, and changes with that.
    """
    finer = 3 if callers == 1 else 1

    def turn(server: Server) -> Callable[[], Sample]:
        return lambda: lab.load("call", port=server.port, callers=callers,
                                seconds=lab.slice_s / finer)
    return interleave(lab.rounds * finer, {name: turn(sides[name]) for name in sides})


def columns_of(taken: Dict[str, List[Sample]], *yardsticks: str) -> List[str]:
    return [name for name in taken if name not in yardsticks]


def over(taken: Dict[str, List[Sample]], yardstick: str, what: str,
         *yardsticks: str) -> Dict[str, List[float]]:
    """Return the ratios of all columns over one yardstick."""
    return {name: ratios(taken, name, yardstick, what)
            for name in columns_of(taken, yardstick, *yardsticks)}


def describe(lab: Lab, taken: Dict[str, List[Sample]], what: str, unit: str) -> None:
    """Note the absolute medians, for orientation only."""
    lab.notes.append(", ".join(
        "%s %.4g %s" % (name, median([each[what] for each in taken[name]]), unit)
        for name in taken))


def pull_1(lab: Lab) -> Found:
    taken = take_turns(lab, pull_sides(lab, 1, ["epoll", "naive"]), callers=1)
    describe(lab, taken, "p50_us", "us")
    return {"epoll": over(taken, "epoll", "p50_us", "naive"),
            "naive": over(taken, "naive", "p50_us", "epoll")}


def pull_8(lab: Lab) -> Found:
    taken = take_turns(lab, pull_sides(lab, 4, ["epoll", "naive"]), callers=8)
    describe(lab, taken, "rate", "/s")
    return {"epoll": over(taken, "epoll", "rate", "naive"),
            "naive": over(taken, "naive", "rate", "epoll")}


def pull_64(lab: Lab) -> Found:
    taken = take_turns(lab, pull_sides(lab, 16, ["naive"]), callers=64)
    describe(lab, taken, "rate", "/s")
    columns = columns_of(taken, "naive")
    return {
        "naive": over(taken, "naive", "rate"),
        "tail": {name: [each["p99_us"] / (each["p50_us"] or 1) for each in taken[name]]
                 for name in columns},
        "errors": {name: [sum(each["errors"] for each in taken[name])]
                   for name in columns}}


def pull_6mib(lab: Lab) -> Found:
    size, repeats = 6 * MIB, 3 if lab.quick else 8
    behind = lab.yardstick("plain", str(size))
    relay = lab.yardstick("plain", str(size), str(behind.port))
    sides = pull_sides(lab, 1, [])

    def turn(server: Server, plain: bool) -> Callable[[], Sample]:
        def go() -> Sample:
            taken_s = []
            for _ in range(repeats):
                seen = lab.load("bulk", port=server.port, path=INVOKE, plain=plain,
                                send_bytes=size, expect_bytes=size)
                if seen["status"] != 200:
                    raise Unmeasured("6 MiB: status %d" % seen["status"])
                taken_s.append(seen["seconds"])
            return {"mb_per_s": 6 / median(taken_s)}
        return go
    turns = {name: turn(server, False) for name, server in sides.items()}
    taken = interleave(lab.rounds, {**turns, "plain": turn(relay, True)})
    describe(lab, taken, "mb_per_s", "MiB/s")
    return {"plain": over(taken, "plain", "mb_per_s")}


# ---- rows: push ----

def start_function(lab: Lab, folder: str) -> int:
    """Start a push server directly; return its port once it listens."""
    port = free_port()
    lab.start([os.path.join(folder, "bootstrap")], {"FC_SERVER_PORT": str(port)})
    wait_for_port(port, PUSH_HOST)
    return port


def wait_for_port(port: int, host: str) -> None:
    end = clock() + START_LIMIT_S
    while clock() < end:
        try:
            connect(port, host).close()
            return
        except OSError:
            time.sleep(0.01)
    raise Unmeasured("nothing listens on port %d" % port)


def of_watchdog(lab: Lab, folder: str) -> Dict[str, Server]:
    """Start the peer proxy, if the environment names it."""
    if not os.environ.get("PEER_OF_WATCHDOG"):
        return {}
    front, behind = free_port(), free_port()
    server = lab.start([os.environ["PEER_OF_WATCHDOG"]], {
        "mode": "http", "port": str(front), "FC_SERVER_PORT": str(behind),
        "upstream_url": "http://%s:%d" % (PUSH_HOST, behind),
        "fprocess": os.path.join(folder, "bootstrap")})
    wait_for_port(front, "127.0.0.1")
    wait_for_port(behind, PUSH_HOST)
    server.port = front
    return {"PEER_OF_WATCHDOG": server}


def push_sides(lab: Lab) -> Dict[str, Server]:
    folder, sides = lab.function("push", PUSH_SERVER), {}
    for candidate in emulators(lab, NO_PIN):
        sides[candidate.column] = lab.emulator(
            candidate, "fc", folder, "--port", "0", "--no-freeze", "--max-instances",
            "1", "--concurrency", "64")
    sides.update(of_watchdog(lab, folder))
    return {**sides, "proxy": lab.yardstick(
        "proxy", PUSH_HOST, str(start_function(lab, folder)))}


def push_row(lab: Lab, callers: int) -> Found:
    taken = take_turns(lab, push_sides(lab), callers=callers)
    describe(lab, taken, "rate", "/s")
    return {"proxy": over(taken, "proxy", "rate")}


def push_1(lab: Lab) -> Found:
    return push_row(lab, 1)


def push_8(lab: Lab) -> Found:
    return push_row(lab, 8)


def accepted_bytes(lab: Lab, port: int, size: int) -> int:
    """Return the size of a request body that this side takes."""
    for attempt in (size, 31 * MIB, 6 * MIB):
        seen = lab.load("bulk", port=port, path="/", send_bytes=attempt, expect_bytes=7)
        if seen["status"] == 200:
            return attempt
        lab.notes.append("%d MiB in: status %d" % (attempt // MIB, seen["status"]))
    raise Unmeasured("no large body gets through")


def push_bulk(lab: Lab) -> Found:
    folder, size = lab.function("push", PUSH_SERVER), (25 if lab.quick else 100) * MIB
    server = lab.emulator(emulators(lab)[0], "fc", folder, "--port", "0", "--no-freeze",
                          "--max-instances", "1")
    direct = start_function(lab, folder)
    lab.load("call", port=server.port, path="/", count=50)
    before_kb = resident_kb(server.pid)
    size_in = accepted_bytes(lab, server.port, size)

    def turn(port: int, host: str) -> Callable[[], Sample]:
        def go() -> Sample:
            into = lab.load("bulk", port=port, host=host, path="/",
                            send_bytes=size_in, expect_bytes=7)
            out = lab.load("bulk", port=port, host=host, path="/give/%d" % size,
                           send_bytes=2, expect_bytes=size)
            if (into["status"], out["status"]) != (200, 200):
                raise Unmeasured("status %d in, %d out" % (
                    into["status"], out["status"]))
            return {"in": size_in / MIB / into["seconds"],
                    "out": size / MIB / out["seconds"]}
        return go
    taken = interleave(lab.rounds, {
        "measured": turn(server.port, "127.0.0.1"), "direct": turn(direct, PUSH_HOST)})
    lab.notes.append("%d MiB in, %d MiB out" % (size_in // MIB, size // MIB))
    describe(lab, taken, "in", "MiB/s in")
    describe(lab, taken, "out", "MiB/s out")
    grown_mb = (resident_kb(server.pid, "VmHWM") - before_kb) / 1024
    return {"in": over(taken, "direct", "in"), "out": over(taken, "direct", "out"),
            "memory": {"measured": [grown_mb]}}


# ---- rows: start ----

def quickest(count: int, measure: Callable[[], Sample], what: str
             ) -> Callable[[], Sample]:
    """Return a turn that is the least of `count` measurements: what else runs on the
    machine only ever makes the start of a process slower."""
    return lambda: {what: min(measure()[what] for _ in range(count))}


def cold_start(lab: Lab) -> Found:
    if sys.version_info < (3, 10):
        raise Unmeasured("needs Python 3.10, whose subprocess uses vfork")
    folder, count = lab.function("pull", PULL_LOOP), 3 if lab.quick else 5
    sides: Dict[str, Callable[[], Sample]] = {}

    def cold(server: Server) -> Callable[[], Sample]:
        return lambda: lab.load("cold", port=server.port)
    for candidate in emulators(lab, NO_PIN):
        server = lab.emulator(candidate, "scf", folder, "--max-instances", "4")
        lab.load("cold", port=server.port)
        sides[candidate.column] = quickest(count, cold(server), "ms")
    argv = [os.path.join(folder, "bootstrap")]
    sides["bare"] = quickest(count, lambda: lab.load("bare_start", argv=argv), "ms")
    taken = interleave(lab.rounds, sides)
    describe(lab, taken, "ms", "ms")
    return {"added": {name: [mine["ms"] - bare["ms"] for mine, bare in zip(
        taken[name], taken["bare"])] for name in columns_of(taken, "bare")}}


def readiness(lab: Lab) -> Found:
    found: Found = {}
    for key, delay_s in (("early", 0.0), ("late", 0.2)):
        folder = lab.function(key, LATE_SERVER, delay_s=delay_s)
        server = lab.emulator(emulators(lab)[0], "fc", folder, "--port", "0",
                              "--no-freeze", "--max-instances", "1")
        found_ms = [readiness_once(lab, server) for _ in range(2 * lab.rounds)]
        lab.notes.append("%s: worst %.2f ms" % (key, max(found_ms)))
        found[key] = {"measured": found_ms}
    return found


def readiness_once(lab: Lab, server: Server) -> float:
    """One cold start; its answer is the time that the server itself saw."""
    time.sleep(0.06)        # the instance of the turn before is gone by then
    with connect(server.port) as sock:
        sock.sendall(head_of(INVOKE, 2) + b"{}")
        head, body = read_message(sock)
    if not head.startswith(OK):
        raise Unmeasured("answer %r" % head[:60])
    return float(body)


# ---- rows: the bootstraps ----

def bootstrap_folder(lab: Lab, protocol: str) -> str:
    """Return a function folder with our `bootstrap` and an echo handler."""
    path = os.path.join(REFERENCE, protocol + "_bootstrap.py")
    if not os.path.exists(path):
        raise Unmeasured("no " + path)
    with open(path) as file:
        folder = lab.function(protocol + "-python", file.read())
    with open(os.path.join(folder, "index.py"), "w") as file:
        file.write(ECHO_HANDLER)
    return folder


def bootstrap_argv(folder: str) -> List[str]:
    return [*PYTHON, os.path.join(folder, "bootstrap")]


def first_poll(lab: Lab) -> Found:
    folder, count = bootstrap_folder(lab, "scf"), 3 if lab.quick else 7
    argv = bootstrap_argv(folder)
    bare = [*PYTHON, "-c", "import socket, json"]
    lab.load("first_poll", argv=argv, folder=folder)    # index.py gets compiled
    taken = interleave(lab.rounds, {
        "measured": quickest(count, lambda: lab.load(
            "first_poll", argv=argv, folder=folder), "seconds"),
        "bare": quickest(count, lambda: lab.load("run", argv=bare), "seconds")})
    describe(lab, taken, "seconds", "s")
    return {"bare": over(taken, "bare", "seconds")}


def loop(lab: Lab) -> Found:
    mine, raw = bootstrap_folder(lab, "scf"), lab.function("pull", PULL_LOOP)
    sides: Dict[str, Callable[[], Sample]] = {}

    def feed(port: int) -> Callable[[], Sample]:
        return lambda: lab.load("feed", port=port, seconds=lab.slice_s)
    for name, argv, folder in (("measured", bootstrap_argv(mine), mine),
                               ("raw", [os.path.join(raw, "bootstrap")], raw)):
        port = int(lab.load("feed_open")["port"])
        lab.servers.append(Server(argv, folder, runtime_env(port)))
        share_core(lab.servers[-1].pid)
        sides[name] = feed(port)
        sides[name]()
    taken = interleave(lab.rounds, sides)
    describe(lab, taken, "rate", "/s")
    return {"raw": over(taken, "raw", "rate")}


def server(lab: Lab) -> Found:
    folder, port = bootstrap_folder(lab, "fc"), free_port()
    lab.servers.append(Server(bootstrap_argv(folder), folder, {
        "FC_SERVER_PORT": str(port), "FC_CUSTOM_LISTEN_PORT": str(port),
        "FC_FUNCTION_HANDLER": "index.main_handler", "FC_FUNCTION_NAME": "benchmark",
        "FC_FUNC_CODE_PATH": folder}))
    wait_for_port(port, PUSH_HOST)
    stock = lab.yardstick("stock")

    def turn(port: int, host: str) -> Callable[[], Sample]:
        return lambda: lab.load("call", port=port, host=host, path="/invoke",
                                callers=8, seconds=lab.slice_s)
    taken = interleave(lab.rounds, {
        "measured": turn(port, PUSH_HOST), "stock": turn(stock.port, "127.0.0.1")})
    if sum(each["errors"] for each in taken["measured"]):
        raise Unmeasured("wrong answers from fc_bootstrap.py")
    describe(lab, taken, "rate", "/s")
    return {"stock": over(taken, "stock", "rate")}


# ---- rows: many, idle, long ----

def storm(lab: Lab) -> Found:
    taken = interleave(lab.rounds, {
        name: lambda: lab.load("storm", port=server.port, connections=256)
        for name, server in list(pull_sides(lab, 4, []).items())[:1]})
    seen = taken["measured"]
    return {"all": {"measured": [each["seconds"] for each in seen]},
            "errors": {"measured": [sum(each["errors"] for each in seen)]}}


def emulator_with(lab: Lab, instances: int) -> Server:
    folder = lab.function("pull", PULL_LOOP)
    server = lab.emulator(emulators(lab)[0], "scf", folder, "--max-instances",
                          str(max(instances, 1)))
    if instances:
        raise_instances(lab, server, instances)
    return server


def idle_64(lab: Lab) -> Found:
    sides = {"many": emulator_with(lab, 64), "one": emulator_with(lab, 1)}
    taken = take_turns(lab, sides, callers=1)
    describe(lab, taken, "p50_us", "us")
    return {"cost": {"measured": [
        (each - 1) * 100 for each in ratios(taken, "many", "one", "p50_us")]}}


def memory(lab: Lab) -> Found:
    at_rest, many = emulator_with(lab, 0), emulator_with(lab, 0)
    rest_kb = resident_kb(at_rest.pid)
    many = emulator_with(lab, 64)
    per_instance_kb = (resident_kb(many.pid) - rest_kb) / 64
    one = emulator_with(lab, 1)
    before_kb = resident_kb(one.pid)
    lab.load("hold", port=one.port, callers=1, event="sleep 1.5")
    lab.load("hold", port=one.port, callers=256, event='{"wait": 1}')
    time.sleep(0.5)         # all requests are read: nothing outside shows when
    waiting_kb = (resident_kb(one.pid) - before_kb) / 257
    answered = lab.load("release")["answered"]
    if answered != 257:
        lab.notes.append("%d of 257 waiting callers answered" % answered)
    return {"rest": {"measured": [rest_kb / 1024]},
            "instance": {"measured": [per_instance_kb]},
            "caller": {"measured": [waiting_kb]}}


def growth(lab: Lab) -> Found:
    total = 5_000 if lab.quick else 100_000
    server = emulator_with(lab, 4)
    lab.load("call", port=server.port, callers=8, seconds=120, count=total // 100)
    early_kb = resident_kb(server.pid)
    seen = lab.load("call", port=server.port, callers=8, seconds=120,
                    count=total - total // 100)
    late_kb = resident_kb(server.pid)
    lab.notes.append("%d invocations, %d errors, %d KB to %d KB" % (
        seen["count"] + total // 100, seen["errors"], early_kb, late_kb))
    return {"memory": {"measured": [late_kb / early_kb]}}


def idle(lab: Lab) -> Found:
    watched = {count: emulator_with(lab, count) for count in (0, 1, 64)}
    seconds = 2 if lab.quick else 10
    time.sleep(1.0)         # connections of the warm-up are closed and forgotten
    before = {count: activity(watched[count].pid) for count in watched}
    time.sleep(seconds)
    after = {count: activity(watched[count].pid) for count in watched}
    switches = {n: float(after[n][0] - before[n][0]) for n in watched}
    cpu_ms = {n: after[n][1] - before[n][1] for n in watched}
    lab.notes.append("in %d s: " % seconds + ", ".join(
        "%d instances: %d switches, %.1f ms" % (n, switches[n], cpu_ms[n])
        for n in watched))
    return {"switches": {"measured": [max(switches.values())]},
            "cpu": {"measured": [max(cpu_ms.values())]}}


ROWS: Dict[str, Callable[[Lab], Found]] = {
    "pull-1": pull_1, "pull-8": pull_8, "pull-64": pull_64, "pull-6mib": pull_6mib,
    "push-1": push_1, "push-8": push_8, "push-bulk": push_bulk,
    "cold-start": cold_start, "readiness": readiness, "first-poll": first_poll,
    "loop": loop, "server": server, "storm": storm, "idle-64": idle_64,
    "memory": memory, "growth": growth, "idle": idle,
}


# ---- table ----

def line_of(goal: Goal, found: Found, reason: str) -> Dict[str, Any]:
    """Return one line of the table as data."""
    values = found.get(goal.key, {})
    line: Dict[str, Any] = {
        "row": goal.row, "what": goal.what, "unit": goal.unit, "sense": goal.sense,
        "must": goal.must, "ambition": goal.ambition, "columns": {}, "reason": reason}
    for column, each in values.items():
        line["columns"][column] = {
            "value": median(each), "verdict": verdict(goal, median(each)),
            "rounds": each}
    return line


def run_row(lab: Lab, row: str) -> Tuple[List[Dict[str, Any]], List[str]]:
    """Measure one row; return its lines and notes. Leaves nothing running."""
    found: Found = {}
    reason, lab.notes = "", []
    try:
        found = ROWS[row](lab)
    except Unmeasured as error:
        reason = str(error)
    finally:
        lab.stop_servers()
    lines = [line_of(goal, found, reason) for goal in GOALS if goal.row == row]
    return lines, lab.notes


def number(value: Optional[float]) -> str:
    if value is None:
        return ""
    whole = abs(value) >= 100 or value == int(value)
    return ("%.0f" if whole else "%.2f") % value


def print_line(line: Dict[str, Any]) -> None:
    """Print one line: the value with its range over the rounds, bounds, verdict."""
    bound = [line["sense"] + " " + number(line[name]) if line[name] is not None else ""
             for name in ("must", "ambition")]
    mine = line["columns"].get("measured")
    value = number(mine["value"]) if mine else "-"
    span = "%s..%s" % (number(min(mine["rounds"])), number(max(mine["rounds"]))
                       ) if mine and len(mine["rounds"]) > 1 else ""
    print("%-10s %-58s %-5s %8s %-14s %-7s %-8s %s" % (
        line["row"], line["what"], line["unit"], value, span, *bound,
        mine["verdict"] if mine else "not measured"), end="")
    for column, each in line["columns"].items():
        if column != "measured":
            print("  [%s %s]" % (column, number(each["value"])), end="")
    print()


def print_row(lines: List[Dict[str, Any]], notes: List[str]) -> None:
    for line in lines:
        print_line(line)
    for text in [lines[0]["reason"]] * bool(lines[0]["reason"]) + notes:
        print("%-10s   %s" % ("", text))
    sys.stdout.flush()


LEGEND = """
measured   median over the rounds, then the lowest and the highest round
must       the bound that has to hold; ambition: the one to aim for
verdict    the better of the two bounds that is met, or MISSED
[...]      the same with another option or program, for comparison
epoll      a pull emulator as one selectors loop on raw sockets
naive      a pull emulator of http.server, one Queue, one Event per caller
stock      an http.server echo with keep-alive and without Nagle
"""


def print_head(load: float) -> None:
    cores = os.cpu_count() or 1
    print("Python %s, %d cores, load average %.1f before the start" % (
        sys.version.split()[0], cores, load))
    if load > cores / 2:
        print("The machine is busy. That slows a side that lives on one core more than "
              "one that uses all: the pull rows come out too low.")
    print("%-10s %-58s %-5s %8s %-14s %-7s %-8s %s" % (
        "row", "what", "unit", "measured", "range", "must", "ambition", "verdict"))


# ---- command line ----

def parse(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Measure the emulator and the bootstrap against yardsticks.",
        epilog="Rows: " + ", ".join(ROWS))
    parser.add_argument("--json", action="store_true", help="print JSON, no table")
    parser.add_argument("--quick", action="store_true", help="coarser, under 45 s")
    parser.add_argument("--only", metavar="NAME", action="append", choices=list(ROWS),
                        help="measure this row only (repeatable)")
    parser.add_argument("--rounds", type=int, metavar="N",
                        help="turns of each side (7; 3 with --quick)")
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def measure_all(lab: Lab, rows: List[str], as_json: bool) -> None:
    all_lines: List[Dict[str, Any]] = []
    all_notes: Dict[str, List[str]] = {}
    load = os.getloadavg()[0]
    if not as_json:
        print_head(load)
    for row in rows:
        lines, notes = run_row(lab, row)
        all_lines += lines
        all_notes[row] = notes
        if not as_json:
            print_row(lines, notes)
    if as_json:
        print(json.dumps({"python": sys.version.split()[0], "load": load,
                          "rounds": lab.rounds, "quick": lab.quick, "lines": all_lines,
                          "notes": all_notes}, indent=1))
    else:
        print(LEGEND, end="")


def interrupt(signum: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt


def main(argv: Optional[List[str]] = None) -> int:
    """Run the benchmark. Return 0, or 130 if interrupted."""
    options = parse(argv)
    if options.role:
        YARDSTICKS[options.role[0]](*options.role[1:])
        return 0
    signal.signal(signal.SIGTERM, interrupt)
    lab = Lab(max(1, options.rounds or (3 if options.quick else 7)), options.quick)
    try:
        measure_all(lab, options.only or list(ROWS), options.json)
    except KeyboardInterrupt:
        return 130
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)    # the clean-up is bounded
        lab.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
