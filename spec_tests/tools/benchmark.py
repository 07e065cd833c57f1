#!/usr/bin/env python3
# benchmark.py: how fast the reference is, against yardsticks of its own (MIT).
"""Measure the emulator and the bootstraps against yardsticks of their own.

    python3 spec_tests/tools/benchmark.py                        all rows, five minutes
    python3 spec_tests/tools/benchmark.py --quick                coarser, a minute
    python3 spec_tests/tools/benchmark.py --only pull-1 --json   one row, for a program

The sides of a row take turns in rotated order, so other load hits all alike; a round
gives one ratio (or difference), the table shows their median and range. All requests
come from this process, on raw sockets. PEER_EMULATOR=FILE puts another emulator.py
beside ours, and tells how good ours is over it. Status 0 says that it ran, no more.
How memory grows is measured by soak.py, the gateway by benchmark_gateway.py.
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
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import types
from functools import partial
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Tuple

__all__ = ["GOALS", "Goal", "LOOPBACK", "MIB", "PYTHON", "REFERENCE", "ROWS", "Server",
           "Unmeasured", "activity", "children_of", "interleave", "main", "proc_field"]

MIB = 1024 * 1024
WAIT_LIMIT_S = 20.0     # any one wait of a caller, and for a server's address
STOP_LIMIT_S = 3.0      # between SIGTERM and SIGKILL
PAUSE_S = 0.01          # between two looks
INVOKE = "/-/invoke"
LOOPBACK = "127.0.0.1"
# where the platform reaches a push server
PUSH_HOST = "127.0.0.2" if sys.platform == "linux" else LOOPBACK
REFERENCE = pathlib.Path(__file__).resolve().parent.parent.parent / "reference"
PYTHON = [sys.executable, "-S"]     # what `site` loads is the machine's, not ours

clock = time.monotonic
Sample = Dict[str, float]               # what one turn of one side gave
Turn = Callable[[], Sample]
Taken = Dict[str, List[Sample]]         # side -> one sample per round


class Unmeasured(Exception):
    """A row cannot be measured here; the text says why."""


# ---- goals ----

class Goal(NamedTuple):
    """One line of the table: a quantity of the samples, `/` over or `-` minus that of a
    yardstick, and its bounds."""

    row: str
    what: str
    quantity: str
    against: str
    sense: str      # "<=": smaller is better, ">=": larger is better
    must: float
    ambition: float
    unit: str = ""  # none for a ratio


GOALS = [Goal(*line) for line in (
    ("pull-1", "1 caller, 64 B: over epoll", "p50_us", "/epoll", "<=", 2, 1.25),
    ("pull-1", "1 caller, 64 B: over naive", "p50_us", "/naive", "<=", 0.6, 0.4),
    ("pull-8", "8 callers, 4 instances", "rate", "/naive", ">=", 2.8, 4.8),
    ("pull-64", "64 callers, 16 instances", "rate", "/naive", ">=", 2.6, 5),
    ("pull-64", "p99 over p50", "tail", "", "<=", 2, 2),
    ("pull-64", "without a right answer", "errors", "", "<=", 0, 0, "n"),
    ("pull-6mib", "6 MiB there and back", "mib_per_s", "/plain", ">=", 0.6, 0.75),
    ("push-1", "1 caller", "rate", "/proxy", ">=", 1.3, 2.1),
    ("push-8", "8 callers", "rate", "/proxy", ">=", 2.6, 3.2),
    ("push-bulk", "100 MiB answered", "mib_per_s", "/direct", ">=", 0.5, 0.7),
    ("push-bulk", "growth of peak memory", "grown", "", "<=", 5, 5, "MB"),
    ("cold-start", "event to delivery", "ms", "-bare", "<=", 2, 1.2, "ms"),
    ("ready-early", "listen() to found, at once", "found", "", "<=", 1.5, 1.5, "ms"),
    ("ready-late", "listen() to found, after 200 ms", "found", "", "<=", 6, 6, "ms"),
    ("first-scf", "scf_bootstrap to first poll", "ms", "/bare", "<=", 1.3, 1.15),
    ("first-fg", "fg_bootstrap to first poll", "ms", "/bare", "<=", 1.3, 1.15),
    ("loop-scf", "loop of scf_bootstrap", "rate", "/raw", ">=", 0.7, 0.9),
    ("loop-fg", "loop of fg_bootstrap", "rate", "/raw", ">=", 0.7, 0.9),
    ("server", "fc_bootstrap, 8 connections", "rate", "/stock", ">=", 1.5, 2.5),
    ("storm", "256 connections until answered", "seconds", "", "<=", 1, 1, "s"),
    ("storm", "not answered", "errors", "", "<=", 0, 0, "n"),
    ("idle-64", "1 caller: 64 instances over 1", "cost", "", "<=", 1.1, 1),
    ("memory", "resident at rest", "rest", "", "<=", 30, 30, "MB"),
    ("memory", "per idle instance (of 64)", "instance", "", "<=", 120, 120, "KB"),
    ("memory", "per waiting caller (of 256)", "caller", "", "<=", 30, 30, "KB"),
    ("idle", "0, 1, 64: context switches", "switches", "", "<=", 0, 0, "n"),
    ("idle", "0, 1, 64: processor time", "cpu", "", "<=", 0, 0, "ms"),
)]


# ---- callers ----

OK = b"HTTP/1.1 200"


def connect(port: int, host: str = LOOPBACK) -> socket.socket:
    """Return a connected socket without Nagle and with a limit on every wait."""
    sock = socket.create_connection((host, port), WAIT_LIMIT_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def head_of(path: str, body_bytes: int) -> bytes:
    return ("%s %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            "Content-Length: %d\r\n\r\n" % (
                "POST" if body_bytes else "GET", path, body_bytes)).encode()


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


def ask(port: int, path: str, event: bytes = b"", host: str = LOOPBACK) -> bytes:
    """Make one call on a connection of its own. Return the body of a 200, of a large
    one the last part. No path: plain sockets, and as much comes back."""
    block = memoryview(bytearray(MIB))
    with connect(port, host) as sock, sock.makefile("rb") as reader:
        sock.sendall(head_of(path, len(event)) if path else b"")
        sock.sendall(event)
        start, left = read_head(reader) if path else (OK, len(event))
        count = 0
        while left:
            count = reader.readinto(block[:left])
            if not count:
                raise OSError("the answer is cut")
            left -= count
    if not start.startswith(OK):
        raise Unmeasured("%s: %r %r" % (path, start, bytes(block[:200])))
    return bytes(block[:count])


def move(port: int, path: str, size: int, event: bytes, host: str = LOOPBACK) -> Sample:
    """Make three exchanges that bring so many bytes, and take the median."""
    taken_s = []
    for _ in range(3):
        begin = clock()
        ask(port, path, event, host)
        taken_s.append(clock() - begin)
    return {"mib_per_s": size / MIB / statistics.median(taken_s)}


class Caller:
    """One caller: its connection, its event of 64 bytes, and when it sent that."""

    def __init__(self, port: int, number: int, word: str, path: str = INVOKE,
                 host: str = LOOPBACK) -> None:
        # each its own: a mixed-up answer is a wrong one
        self.event = b'{"%-16s":"%041d"}' % (word.encode(), number)
        self.sock, self.request = connect(port, host), head_of(path, 64) + self.event
        self.send()

    def send(self) -> None:
        self.begin, self.answer = clock(), b""
        self.sock.sendall(self.request)


def call(port: int, callers: int, seconds: float = 0.0, path: str = INVOKE,
         host: str = LOOPBACK, word: str = "") -> Sample:
    """Let callers ask, and again as soon as they are answered, for so long. What they
    ask in the first tenth of a second is a warm-up."""
    latencies, errors, begin = [], 0, clock()
    warm, end = begin + min(seconds / 4, 0.1), begin + seconds
    selector = selectors.DefaultSelector()
    for number in range(callers):
        caller = Caller(port, number, word, path, host)
        selector.register(caller.sock, selectors.EVENT_READ, caller)
    while selector.get_map():
        # One caller alone reads at once: epoll would cost it a tenth.
        ready = [caller] if callers == 1 else [
            key.data for key, _ in selector.select(WAIT_LIMIT_S)]
        if not ready:
            raise Unmeasured("no answer: " + path)
        for caller in ready:
            data = caller.sock.recv(65536)
            caller.answer += data
            is_right, now = bool(data) and caller.answer.startswith(OK), clock()
            if is_right and not caller.answer.endswith(caller.event):
                continue
            if is_right and caller.begin >= warm:
                latencies.append(now - caller.begin)
            if is_right and (now < end or not latencies):
                caller.send()
                continue
            errors += not is_right
            selector.unregister(caller.sock)
            caller.sock.close()
    now, ordered = clock(), sorted(latencies) or [WAIT_LIMIT_S]
    p50_s, p99_s = statistics.median(ordered), ordered[int(len(ordered) * 0.99)]
    return {"rate": len(latencies) / (now - warm), "p50_us": p50_s * 1e6,
            "errors": errors, "tail": p99_s / p50_s, "seconds": now - begin}


# ---- yardsticks (a process each) ----

NEXT, RESPONSE = "/runtime/invocation/next", "/runtime/invocation/response"
EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b"
ID = b"8f5cf6ac-5fe3-4a32-b93e-5b9a4c2b7e0a"
DELIVERY = (b"HTTP/1.1 200 OK\r\nrequest_id: " + ID + b"\r\nX-Cff-Request-Id: " + ID
            + b"\r\nmemory_limit_in_mb: 128\r\ntime_limit_in_ms: 3000\r\n"
              b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b")


def listen() -> Tuple[socket.socket, int]:
    listener = socket.create_server((LOOPBACK, 0), backlog=1024)
    return listener, listener.getsockname()[1]


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
            invocation.done.wait(WAIT_LIMIT_S)
            return bytes(invocation.result)
        if path == NEXT:
            mine.invocation = waiting.get()
            return bytes(mine.invocation.event)
        if path == RESPONSE:
            mine.invocation.result = body
            mine.invocation.done.set()
        return b""

    run_stock(answer)


def run_epoll() -> None:
    """*epoll*: the pull emulator as one `selectors` loop, the floor for Python."""
    polls: List[socket.socket] = []
    events: List[Tuple[socket.socket, bytes]] = []
    callers: Dict[socket.socket, socket.socket] = {}    # by poll

    def serve(sock: socket.socket) -> None:
        """Serve a request, so small that it arrives whole."""
        head, _, body = sock.recv(65536).partition(b"\r\n\r\n")
        path = head.split(b" ")[1].decode() if head else ""
        if path == INVOKE:
            events.append((sock, body))
        elif path == NEXT:
            polls.append(sock)
        elif path:
            sock.sendall(EMPTY)
            if path == RESPONSE:
                callers.pop(sock).sendall(ANSWER % (len(body), body))
        else:
            selector.unregister(sock)
            sock.close()
        if events and polls:
            poll = polls.pop()
            callers[poll], event = events.pop(0)
            poll.sendall(DELIVERY % (len(event), event))

    listener, port = listen()
    announce(port)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.data:
                serve(key.data)
                continue
            sock = listener.accept()[0]
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(sock, selectors.EVENT_READ, sock)


def run_proxy(host: str, port: str) -> None:
    """*proxy*: a front door as people write it, stock + a pool of `http.client`."""
    from http.client import HTTPConnection
    pool: List[HTTPConnection] = []

    def answer(path: str, body: bytes) -> bytes:
        try:
            connection = pool.pop()
        except IndexError:
            connection = HTTPConnection(host, int(port), timeout=WAIT_LIMIT_S)
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        result = connection.getresponse().read()
        pool.append(connection)
        return result

    run_stock(answer)


def run_plain(size: str, onward: str = "") -> None:
    """*plain* sockets: take `size` bytes, pass them on if told to, give them back."""
    buffer = bytearray(int(size))
    listener, port = listen()
    announce(port)
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
    "stock": run_stock, "naive": run_naive, "epoll": run_epoll, "proxy": run_proxy,
    "plain": run_plain}


# ---- functions under test ----
# Small on purpose, so that the time is the platform's. -IS: no site, no user's paths.

# They read with our own read_head().
COMMON = '''#!{python} -IS
from __future__ import annotations
import os, selectors, socket, time
''' + inspect.getsource(read_head)

# Echoes events. `{"sleep N` waits N seconds first, `when` answers with the moment of
# delivery and ends the process.
PULL_LOOP = COMMON + '''
sock = socket.create_connection((os.environ["SCF_RUNTIME_API"],
                                 int(os.environ["SCF_RUNTIME_API_PORT"])))
sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
reader = sock.makefile("rb")

def exchange(start, body=b""):
    sock.sendall(b"%b HTTP/1.1\\r\\nHost: x\\r\\nContent-Length: %d\\r\\n\\r\\n%b" % (
        start, len(body), body))
    return reader.read(read_head(reader)[1])

exchange(b"POST /runtime/init/ready", b" ")
while True:
    event = exchange(b"GET /runtime/invocation/next")
    moment = time.monotonic()
    if event.startswith(b'{"sleep '):
        time.sleep(float(event[8:14]))
    exchange(b"POST /runtime/invocation/response",
             repr(moment).encode() if event == b"when" else event)
    if event == b"when":
        os._exit(0)
'''

# Listens after a while. Echoes bodies; the path /give answers many bytes, the event
# `when` the milliseconds from listen() to the first connection, and ends the process.
PUSH_SERVER = COMMON + '''
def answer(body):
    return b"HTTP/1.1 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n%b" % (len(body), body)

time.sleep({delay_s} and {delay_s} + os.getpid() % 11 * 0.0007)
listener = socket.create_server(("{host}", int(os.environ["FC_SERVER_PORT"])))
begin, found_ms, LARGE = time.monotonic(), 0.0, answer(b"x" * {large_bytes})
selector = selectors.DefaultSelector()
selector.register(listener, selectors.EVENT_READ)
while True:
    for key, _ in selector.select():
        if key.fileobj is listener:
            sock = listener.accept()[0]
            found_ms = found_ms or (time.monotonic() - begin) * 1e3
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            selector.register(sock, selectors.EVENT_READ, sock.makefile("rb"))
            continue
        try:
            start, size = read_head(key.data)
        except OSError:
            selector.unregister(key.fileobj)
            key.fileobj.close()
            continue
        event = key.data.read(size)
        if event == b"when":
            key.fileobj.sendall(answer(repr(found_ms).encode()))
            os._exit(0)
        key.fileobj.sendall(LARGE if b" /give " in start else answer(event))
'''

# What a user of the bootstraps writes.
ECHO_HANDLER = "def main_handler(event, context):\n    return event\n"


# ---- processes ----

def launch(argv: List[str], env: Mapping[str, str], output: int = subprocess.DEVNULL
           ) -> subprocess.Popen[bytes]:
    """Start a program in its folder. All that is not needed would cost time."""
    return subprocess.Popen(
        argv, env={"PATH": os.defpath, **env}, cwd=os.path.dirname(argv[-1]) or "/",
        start_new_session=True, stdin=subprocess.DEVNULL, stdout=output, stderr=output)


def kill_groups(*pids: int) -> None:
    """Kill what was started, and all that it forked in its group."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)


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
    """A process that serves, as soon as it does: at the port that is given, or the one
    that its output names."""

    def __init__(self, argv: List[str], env: Mapping[str, str], port: int = 0,
                 host: str = LOOPBACK) -> None:
        # A file and not a pipe: nobody has to read it while the server is measured.
        with tempfile.TemporaryFile() as log:
            self.process = launch(
                argv, {"PYTHONDONTWRITEBYTECODE": "1", **env}, log.fileno())
            self.pid, end = self.process.pid, clock() + WAIT_LIMIT_S
            try:
                while True:
                    has_ended = self.process.poll() is not None or clock() > end
                    text = os.pread(log.fileno(), 65536, 0).decode(errors="replace")
                    named = re.search(r"http://[\d.]+:(\d+)", text)
                    self.port = port or int(named.group(1) if named else 0)
                    with contextlib.suppress(OSError):
                        connect(self.port, host).close()
                        return
                    if has_ended:
                        raise Unmeasured("it does not serve: " + text.strip()[-300:])
                    time.sleep(PAUSE_S)
            except BaseException:
                self.stop()
                raise

    def stop(self) -> None:
        """Let it end, wait a little, then kill it and its instances."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(STOP_LIMIT_S)
        kill_groups(*children_of(self.pid), self.pid)
        self.process.wait()


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


# ---- the platform of one bootstrap ----

def runtime_env(port: int) -> Dict[str, str]:
    """Return the environment of a bootstrap of scf or fg."""
    return {"SCF_RUNTIME_API": LOOPBACK, "SCF_RUNTIME_API_PORT": str(port),
            "_HANDLER": "index.main_handler", "RUNTIME_HANDLER": "index.main_handler",
            "RUNTIME_API_ADDR": "%s:%d" % (LOOPBACK, port)}


def feed(argv: List[str], seconds: float = 0.0, event: bytes = b'{"a":"%056d"}' % 0
         ) -> Sample:
    """Start a bootstrap by hand and feed it for so long. Return the time to its first
    poll, or to the moment that it answers to `when`; and the rate of its results."""
    (listener, port), count, first = listen(), 0, 0.0
    begin, delivery = clock(), DELIVERY % (len(event), event)
    process = launch(argv, runtime_env(port))
    try:
        listener.settimeout(WAIT_LIMIT_S)
        sock = listener.accept()[0]     # who opens another one is not ours
        sock.settimeout(WAIT_LIMIT_S)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with sock, listener, sock.makefile("rb") as reader:
            while True:
                start, size = read_head(reader)
                body, now = reader.read(size), clock()
                if b"/response" in start and event == b"when":
                    return {"ms": (float(body) - begin) * 1e3}
                if start.startswith(b"POST"):
                    count += b"/response" in start
                    sock.sendall(EMPTY)
                    continue
                first = first or now
                if now >= first + seconds and event != b"when":
                    return {"ms": (first - begin) * 1e3,
                            "rate": count / max(now - first, PAUSE_S)}
                sock.sendall(delivery)
    finally:
        kill_groups(process.pid)
        process.wait()


# ---- the lab ----

class Lab(contextlib.ExitStack):
    """What serves during one row, and a folder for functions; leaves nothing behind."""

    def __init__(self, quick: bool) -> None:
        super().__init__()
        self.quick, self.slice_s = quick, 0.12 if quick else 0.4
        self.folder = self.enter_context(tempfile.TemporaryDirectory(
            prefix="benchmark-"))

    def program(self, text: str, **details: float) -> List[str]:
        """Make a folder of a program, and of a handler; return how to start it."""
        folder = pathlib.Path(tempfile.mkdtemp(dir=self.folder))
        for name, value in {"python": sys.executable, "host": PUSH_HOST, "delay_s": 0,
                            "large_bytes": 0, **details}.items():
            text = text.replace("{%s}" % name, str(value))
        path = folder / "bootstrap"
        path.write_text(text)
        path.chmod(0o755)
        (folder / "index.py").write_text(ECHO_HANDLER)
        return [str(path)]

    def bootstrap(self, protocol: str) -> List[str]:
        """Make a folder of a bootstrap of ours; return how to start it."""
        source = REFERENCE / (protocol + "_bootstrap.py")
        return [*PYTHON, *self.program(source.read_text())]

    def start(self, *details: Any) -> Server:
        server = Server(*details)
        self.callback(server.stop)
        return server

    def yardstick(self, name: str, *argv: str) -> Server:
        return self.start([sys.executable, "-I", os.path.abspath(__file__), "--role",
                           name, *argv], {})

    def emulators(self, protocol: str, text: str, *options: str, **details: float
                  ) -> Dict[str, Server]:
        """Start ours, and the peer if there is one, for a program."""
        files = {"ours": str(REFERENCE / "emulator.py")}
        if os.environ.get("PEER_EMULATOR"):
            files["peer"] = os.path.abspath(os.environ["PEER_EMULATOR"])
        folder = os.path.dirname(*self.program(text, **details))
        return {side: self.start(
            [*PYTHON, file, protocol, folder, "--serve", "127.0.0.1:0", "--timeout",
             "60", "--quiet", *options], {}) for side, file in files.items()}


def interleave(rounds: int, turns: Mapping[str, Turn]) -> Taken:
    """Let all sides take one turn per round, in an order that rotates."""
    names = list(turns)
    taken: Taken = {name: [] for name in names}
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            taken[name].append(turns[name]())
    return taken


def each(turn: Callable[[Server], Sample], sides: Mapping[str, Server]
         ) -> Dict[str, Turn]:
    return {name: partial(turn, side) for name, side in sides.items()}


def quickest(lab: Lab, turn: Turn) -> Turn:
    """Return a turn that is the least of several: what else runs on the machine only
    ever makes the start of a process slower."""
    return lambda: {"ms": min(turn()["ms"] for _ in range(3 if lab.quick else 7))}


# ---- rows: calls ----

def pull_emulators(lab: Lab, instances: int) -> Dict[str, Server]:
    """Start the emulators, and make each start so many instances: by as many slow
    events at once."""
    sides = lab.emulators("scf", PULL_LOOP, "--max-instances", str(instances or 1))
    for side in sides.values():
        for pause_s in (0.3, 1.5, 3.0, 0.0):
            if len(children_of(side.pid)) >= instances:
                break
            if not pause_s:
                raise Unmeasured("%d instances never came up" % instances)
            call(side.port, instances, word="sleep %.1f" % pause_s)
    return sides


def calls(lab: Lab, callers: int, sides: Mapping[str, Server]) -> Dict[str, Turn]:
    """Compare by calls. One caller gets more and shorter turns: its speed depends on
    where the scheduler has just put the processes."""
    seconds = lab.slice_s / TURNS["pull-1"] if callers == 1 else lab.slice_s
    return each(lambda side: call(side.port, callers, seconds), sides)


def pull(callers: int, instances: int, yardsticks: str, lab: Lab) -> Dict[str, Turn]:
    sides = pull_emulators(lab, instances)
    for name in yardsticks.split():
        sides[name] = lab.yardstick(name)
        for argv in [lab.program(PULL_LOOP)] * instances:
            lab.start(argv, runtime_env(sides[name].port), sides[name].port)
    return calls(lab, callers, sides)


def pull_6mib(lab: Lab) -> Dict[str, Turn]:
    size = 6 * MIB
    behind = lab.yardstick("plain", str(size))
    relay = lab.yardstick("plain", str(size), str(behind.port))
    event = b"x" * size
    turns = each(lambda side: move(side.port, INVOKE, size, event),
                 pull_emulators(lab, 1))
    turns["plain"] = partial(move, relay.port, "", size, event)
    return turns


def start_push(lab: Lab, argv: List[str]) -> int:
    """Start a push server by hand; return its port once it listens."""
    with socket.create_server((PUSH_HOST, 0)) as probe:
        port = int(probe.getsockname()[1])
    return lab.start(argv, {
        "FC_SERVER_PORT": str(port), "FC_FUNC_CODE_PATH": ".",
        "FC_FUNCTION_HANDLER": "index.main_handler"}, port, PUSH_HOST).port


def push_emulators(lab: Lab, **details: float) -> Dict[str, Server]:
    return lab.emulators("fc", PUSH_SERVER, "--port", "0", "--no-freeze",
                         "--max-instances", "1", "--concurrency", "64", **details)


def push(callers: int, lab: Lab) -> Dict[str, Turn]:
    port = start_push(lab, lab.program(PUSH_SERVER))
    return calls(lab, callers, {**push_emulators(lab), "proxy": lab.yardstick(
        "proxy", PUSH_HOST, str(port))})


def push_bulk(lab: Lab) -> Dict[str, Turn]:
    size = (25 if lab.quick else 100) * MIB

    port = start_push(lab, lab.program(PUSH_SERVER, large_bytes=size))
    turns: Dict[str, Turn] = {"direct": partial(
        move, port, "/give", size, b"x", PUSH_HOST)}

    def give(side: Server, before_kb: int) -> Sample:
        sample = move(side.port, "/give", size, b"x")
        sample["grown"] = (proc_field(side.pid, "VmHWM") - before_kb) / 1024
        return sample

    for name, side in push_emulators(lab, large_bytes=size).items():
        call(side.port, 1, 0.1)
        turns[name] = partial(give, side, proc_field(side.pid, "VmRSS"))
    return turns


def server(lab: Lab) -> Dict[str, Turn]:
    sides = {"ours": (start_push(lab, lab.bootstrap("fc")), PUSH_HOST),
             "stock": (lab.yardstick("stock").port, LOOPBACK)}
    return {name: partial(call, port, 8, lab.slice_s, "/invoke", host)
            for name, (port, host) in sides.items()}


def storm(lab: Lab) -> Dict[str, Turn]:
    """Compare how 256 connections are served, with one request on each."""
    return each(lambda side: call(side.port, 256), pull_emulators(lab, 4))


# ---- rows: start, and the bootstraps ----

def told(side: Server) -> Sample:
    """Return how long it took from the event to the number that a new instance answers
    to `when`, and that number, in ms."""
    time.sleep(0.06)        # the instance of the turn before is gone by then
    begin, number = clock(), float(ask(side.port, INVOKE, b"when"))
    return {"ms": (number - begin) * 1e3, "found": number}


def cold_start(lab: Lab) -> Dict[str, Turn]:
    if sys.version_info < (3, 10):
        raise Unmeasured("needs Python 3.10, whose subprocess uses vfork")
    turns = each(told, lab.emulators("scf", PULL_LOOP, "--max-instances", "4"))
    turns["bare"] = partial(feed, lab.program(PULL_LOOP), event=b"when")
    return {name: quickest(lab, turn) for name, turn in turns.items()}


def readiness(delay_s: float, lab: Lab) -> Dict[str, Turn]:
    return each(told, push_emulators(lab, delay_s=delay_s))


def first_poll(protocol: str, lab: Lab) -> Dict[str, Turn]:
    def bare() -> Sample:
        begin = clock()
        # With a limit wait() would poll, and be up to 50 ms late.
        launch([*PYTHON, "-c", "import socket, json"], {}).wait()
        return {"ms": (clock() - begin) * 1e3}

    argv = lab.bootstrap(protocol)
    feed(argv)      # index.py gets compiled
    return {"ours": quickest(lab, partial(feed, argv)), "bare": quickest(lab, bare)}


def loop(protocol: str, lab: Lab) -> Dict[str, Turn]:
    # Two processes that only ever wait for each other run at one of two speeds, as the
    # scheduler happens to place them. On one core there is one speed.
    cores = os.sched_getaffinity(0)
    lab.callback(os.sched_setaffinity, 0, cores)
    os.sched_setaffinity(0, {max(cores)})
    return {"ours": partial(feed, lab.bootstrap(protocol), lab.slice_s),
            "raw": partial(feed, lab.program(PULL_LOOP), lab.slice_s)}


# ---- rows: many, idle ----

def idle_64(lab: Lab) -> Dict[str, Turn]:
    many, one = pull_emulators(lab, 64), pull_emulators(lab, 1)
    asking = [calls(lab, 1, sides) for sides in (one, many, one)]

    def cost(name: str) -> Sample:
        before, during, after = [turns[name]()["p50_us"] for turns in asking]
        return {"cost": during * 2 / (before + after)}

    return {name: partial(cost, name) for name in many}


def memory(lab: Lab) -> Dict[str, Turn]:
    rest, many, one = [pull_emulators(lab, count) for count in (0, 64, 1)]

    def held(name: str) -> Sample:
        rest_kb, many_kb, before_kb = [
            proc_field(sides[name].pid, "VmRSS") for sides in (rest, many, one)]
        port, end = one[name].port, clock() + WAIT_LIMIT_S
        callers = [Caller(port, number, "sleep 5") for number in range(257)]
        while json.loads(ask(port, "/-/state"))["queued"] < 256 and clock() < end:
            time.sleep(PAUSE_S)
        waiting_kb = proc_field(one[name].pid, "VmRSS") - before_kb
        for caller in callers:
            caller.sock.close()
        return {"rest": rest_kb / 1024, "instance": (many_kb - rest_kb) / 64,
                "caller": waiting_kb / 256}

    return {name: partial(held, name) for name in rest}


def idle(lab: Lab) -> Dict[str, Turn]:
    watched = [pull_emulators(lab, instances) for instances in (0, 1, 64)]

    def busy(name: str) -> Sample:
        seen = []
        # first, connections of the warm-up are closed and forgotten
        for pause_s in (1, 2 if lab.quick else 10):
            time.sleep(pause_s)
            seen.append([activity(sides[name].pid) for sides in watched])
        switches, cpu_ms = [sum(after) - sum(before) for before, after in zip(
            *(zip(*each) for each in seen))]
        return {"switches": switches, "cpu": cpu_ms}

    return {name: partial(busy, name) for name in watched[0]}


ROWS: Dict[str, Callable[[Lab], Dict[str, Turn]]] = {
    "pull-1": partial(pull, 1, 1, "epoll naive"), "pull-6mib": pull_6mib,
    "pull-8": partial(pull, 8, 4, "naive"), "pull-64": partial(pull, 64, 16, "naive"),
    "push-1": partial(push, 1), "push-8": partial(push, 8), "push-bulk": push_bulk,
    "cold-start": cold_start, "ready-early": partial(readiness, 0.0),
    "ready-late": partial(readiness, 0.2), "first-scf": partial(first_poll, "scf"),
    "first-fg": partial(first_poll, "fg"), "loop-scf": partial(loop, "scf"),
    "loop-fg": partial(loop, "fg"), "server": server, "storm": storm,
    "idle-64": idle_64, "memory": memory, "idle": idle}
# per round, where it is not one; 0: once in all
TURNS = {"pull-1": 3, "push-1": 3, "idle-64": 3, "ready-early": 2, "ready-late": 2,
         "memory": 0, "idle": 0}


# ---- table ----

LINE = "%-11s %-31s %-16s %2s %-5s %-5s %-8s %s"


def judge(goal: Goal, taken: Taken) -> Dict[str, Any]:
    """Return one line of the table as data: each side's value is judged by the better
    bound that it meets, and `over_peer` says how good ours is over the peer."""
    samples = {name: [each[goal.quantity] for each in some]
               for name, some in taken.items() if goal.quantity in some[0]}
    line: Dict[str, Any] = {
        **goal._asdict(), "sides": {}, "over_peer": None, "medians": {
            name: statistics.median(each) for name, each in samples.items()}}
    sign = 1 if goal.sense == "<=" else -1
    for side in {"ours", "peer"} & set(samples):
        rounds, other = samples[side], samples.get(goal.against[1:], [])
        if goal.against:
            rounds = [mine / its if goal.against[0] == "/" else mine - its
                      for mine, its in zip(rounds, other)]
        # what is counted is as bad as its worst
        value = (max if goal.unit in ("n", "MB") else statistics.median)(rounds)
        met = [name for name in ("ambition", "must")
               if sign * value <= sign * getattr(goal, name)]
        line["sides"][side] = {
            "value": value, "rounds": rounds, "verdict": [*met, "MISSED"][0]}
    pairs = list(zip(samples.get("ours", []), samples.get("peer", [])))
    if pairs and min(map(min, pairs)) > 0:
        line["over_peer"] = statistics.median(
            (peer / ours) ** sign for ours, peer in pairs)
    return line


def print_line(line: Mapping[str, Any]) -> None:
    """Print one line: bounds, verdict, values with their range, what they come from."""
    sides, text = sorted(line["sides"].items()), ""
    for name, each in sides:
        text += "%s %.3g%s (%.3g..%.3g)  " % (name, each["value"], line["unit"], min(
            each["rounds"]), max(each["rounds"]))
    if line["over_peer"]:
        text += "over it %.2f  " % line["over_peer"]
    if line["against"]:
        text += "of " + ", ".join("%s %.4g" % pair for pair in line["medians"].items())
    print(LINE % (line["row"], line["what"], line["quantity"] + line["against"],
                  line["sense"], "%g" % line["must"], "%g" % line["ambition"],
                  sides[0][1]["verdict"] if sides else "-", text), flush=True)


# ---- command line ----

def measure(row: str, rounds: int, quick: bool, report: Dict[str, Any]) -> None:
    """Measure one row; add its lines and notes to the report."""
    taken: Taken = {}
    try:
        with Lab(quick) as lab:
            taken = interleave(max(1, rounds * TURNS.get(row, 1)), ROWS[row](lab))
    except (Unmeasured, OSError, AttributeError) as error:  # what a system has not
        report["notes"].append("%s: not measured: %s" % (row, error))
    report["notes"] += ["%s: wrong answers from %s" % (row, name) for name, some
                        in taken.items() if any(one.get("errors") for one in some)]
    report["lines"] += [judge(goal, taken) for goal in GOALS if goal.row == row]


def main() -> int:
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
    options = parser.parse_args()
    if options.role:
        YARDSTICKS[options.role[0]](*options.role[1:])
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    rounds = options.rounds or (3 if options.quick else 7)
    report: Dict[str, Any] = {
        "python": sys.version.split()[0], "cores": os.cpu_count(), "rounds": rounds,
        "load": os.getloadavg()[0], "lines": [], "notes": []}
    if not options.json:
        print("Python %(python)s, %(cores)d cores, load average %(load).1f before the "
              "start\n(a busy machine slows most who live on one core)" % report)
        print(LINE % ("row", "what", "quantity", "", "must", "aim", "met", "value"))
    try:
        for row in options.only or ROWS:
            measure(row, rounds, options.quick, report)
            for line in [] if options.json else report["lines"]:
                if line["row"] == row:
                    print_line(line)
    except KeyboardInterrupt:
        return 130
    print(json.dumps(report, indent=1) if options.json else "\n".join(report["notes"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
