#!/usr/bin/env python3
# benchmark.py: how fast the reference is, against yardsticks of its own (MIT).
"""Measure the emulator and the bootstraps against yardsticks of their own.

    python3 spec_tests/tools/benchmark.py                        all rows, five minutes
    python3 spec_tests/tools/benchmark.py --rounds 2             coarser, a minute
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
from functools import partial
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Tuple

MIB = 1024 * 1024
WAIT_LIMIT_S = 20.0     # any one wait of a caller, and for a server's address
PAUSE_S = 0.01          # between two looks
SLICE_S = 0.4           # for which callers ask, in one turn
BULK_BYTES = 100 * MIB
IDLE_S = 10.0           # for which an idle emulator is watched
INVOKE = "/-/invoke"
LOOPBACK = "127.0.0.1"
# where the platform reaches a push server
PUSH_HOST = "127.0.0.2" if sys.platform == "linux" else LOOPBACK
REFERENCE = pathlib.Path(__file__).resolve().parent.parent.parent / "reference"
PYTHON = [sys.executable, "-S"]     # what `site` loads is the machine's, not ours

clock = time.monotonic
Sample = Dict[str, float]               # what one turn of one side gave
Turn = Callable[[], Sample]
Taken = Dict[str, List[Sample]]         # side -> one sample per turn


class Unmeasured(Exception):
    """A row cannot be measured here; the text says why."""


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
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b"
EMPTY = ANSWER % (0, b"")
ID = b"8f5cf6ac-5fe3-4a32-b93e-5b9a4c2b7e0a"
DELIVERY = (b"HTTP/1.1 200 OK\r\nrequest_id: " + ID + b"\r\nX-Cff-Request-Id: " + ID
            + b"\r\nmemory_limit_in_mb: 128\r\ntime_limit_in_ms: 3000\r\n"
              b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b")


def listen() -> socket.socket:
    return socket.create_server((LOOPBACK, 0), backlog=1024)


def announce(listener: socket.socket) -> None:
    print("http://127.0.0.1:%d" % listener.getsockname()[1], file=sys.stderr, flush=True)


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
    announce(server.socket)
    server.serve_forever()


def run_naive() -> None:
    """*naive*: stock + a Queue of events + one Event per caller, a pull emulator."""
    import queue
    import threading

    class Invocation:
        def __init__(self, event: bytes) -> None:
            self.event, self.result, self.done = event, b"", threading.Event()

    waiting: queue.Queue[Invocation] = queue.Queue()
    mine = threading.local()        # one connection, one thread, one bootstrap

    def answer(path: str, body: bytes) -> bytes:
        if path == INVOKE:
            invocation = Invocation(body)
            waiting.put(invocation)
            invocation.done.wait(WAIT_LIMIT_S)
            return invocation.result
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
    selector = selectors.DefaultSelector()

    def accept(listener: socket.socket) -> None:
        sock = listener.accept()[0]
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        selector.register(sock, selectors.EVENT_READ, serve)

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

    listener = listen()
    announce(listener)
    selector.register(listener, selectors.EVENT_READ, accept)
    while True:
        for key, _ in selector.select():
            key.data(key.fileobj)


def run_proxy(host: str, port: str) -> None:
    """*proxy*: a front door as people write it, stock + a pool of `http.client`."""
    from http.client import HTTPConnection
    pool: List[HTTPConnection] = []

    def answer(path: str, body: bytes) -> bytes:
        connection = pool.pop() if pool else HTTPConnection(
            host, int(port), timeout=WAIT_LIMIT_S)
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        result = connection.getresponse().read()
        pool.append(connection)
        return result

    run_stock(answer)


def run_plain(size: str, onward: str = "") -> None:
    """*plain* sockets: take `size` bytes, pass them on if told to, give them back."""
    buffer, listener = bytearray(int(size)), listen()
    announce(listener)
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
# They read with our own read_head(), and end themselves when asked `when`.

COMMON = '''#!{python} -IS
from __future__ import annotations
import os, selectors, socket, time
''' + inspect.getsource(read_head)

# Echoes events. `{"sleep N` waits N seconds first, `when` answers with the moment of
# delivery.
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
# `when` the milliseconds from listen() to the first connection.
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


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a program, and all that it forked in its group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class Server:
    """A process that serves, as soon as it does: at the port that is given, or the one
    that its output names."""

    def __init__(self, argv: List[str], env: Mapping[str, str], port: int = 0,
                 host: str = LOOPBACK) -> None:
        # A file and not a pipe: nobody has to read it while the server is measured.
        self.log = tempfile.TemporaryFile()
        self.process = launch(argv, {"PYTHONDONTWRITEBYTECODE": "1", **env},
                              self.log.fileno())
        self.pid, self.port, end = self.process.pid, port, clock() + WAIT_LIMIT_S
        while not self.serves(port, host):
            if self.process.poll() is not None or clock() > end:
                kill(self.process)
                raise Unmeasured("it does not serve: " + self.said()[-300:])
            time.sleep(PAUSE_S)

    def said(self) -> str:
        return os.pread(self.log.fileno(), 65536, 0).decode(errors="replace").strip()

    def serves(self, port: int, host: str) -> bool:
        named = re.search(r"http://[\d.]+:(\d+)", self.said())
        self.port = port or int(named[1] if named else 0)
        try:
            connect(self.port, host).close()
        except OSError:
            return False
        return True

    def state(self) -> Dict[str, Any]:
        document: Dict[str, Any] = json.loads(ask(self.port, "/-/state"))
        return document

    def stop(self) -> None:
        """Let it end with its instances, wait a little, then kill it."""
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(3.0)
        kill(self.process)
        self.log.close()


def proc_field(pid: int, name: str, task: str = "") -> int:
    """Return a number of /proc/PID/status: `VmRSS`, say. Raises Unmeasured."""
    with contextlib.suppress(OSError):
        found = re.search(r"^%s:\s+(\d+)" % name, pathlib.Path(
            "/proc/%d" % pid, task, "status").read_text(), re.M)
        if found:
            return int(found[1])
    raise Unmeasured("needs Linux' /proc")


def activity(pid: int) -> Tuple[int, float]:
    """Return (context switches, processor time in ms) of a process until now."""
    switches, cpu_ns = 0, 0
    for task in pathlib.Path("/proc/%d/task" % pid).glob("*"):
        for kind in ("voluntary", "nonvoluntary"):
            switches += proc_field(pid, kind + "_ctxt_switches", "task/" + task.name)
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
    listener, count, first = listen(), 0, 0.0
    begin, delivery = clock(), DELIVERY % (len(event), event)
    process = launch(argv, runtime_env(listener.getsockname()[1]))
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
        kill(process)


# ---- the lab ----

class Lab(contextlib.ExitStack):
    """What serves during one row, and a folder for functions; leaves nothing behind."""

    def __init__(self) -> None:
        super().__init__()
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

    def push_server(self, argv: List[str]) -> int:
        """Start a push server by hand; return its port once it listens."""
        with socket.create_server((PUSH_HOST, 0)) as probe:
            port = int(probe.getsockname()[1])
        return self.start(argv, {
            "FC_SERVER_PORT": str(port), "FC_FUNC_CODE_PATH": ".",
            "FC_FUNCTION_HANDLER": "index.main_handler"}, port, PUSH_HOST).port

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

    def pull_emulators(self, instances: int) -> Dict[str, Server]:
        """Start the emulators, and make each start so many instances: by as many slow
        events at once."""
        sides = self.emulators("scf", PULL_LOOP, "--max-instances", str(instances or 1))
        for side in sides.values():
            for pause_s in (0.3, 1.5, 3.0):
                if len(side.state()["instances"]) < instances:
                    call(side.port, instances, word="sleep %.1f" % pause_s)
            if len(side.state()["instances"]) < instances:
                raise Unmeasured("%d instances never came up" % instances)
        return sides

    def push_emulators(self, **details: float) -> Dict[str, Server]:
        return self.emulators("fc", PUSH_SERVER, "--port", "0", "--no-freeze",
                              "--max-instances", "1", "--concurrency", "64", **details)


# ---- what is compared: the sides of a row, and the turn of each ----

def each(turn: Callable[[Server], Sample], sides: Mapping[str, Server]
         ) -> Dict[str, Turn]:
    return {name: partial(turn, side) for name, side in sides.items()}


def quickest(turn: Turn) -> Turn:
    """Return a turn that is the least of seven: what else runs on the machine only
    ever makes the start of a process slower."""
    return lambda: {"ms": min(turn()["ms"] for _ in range(7))}


def calls(callers: int, sides: Mapping[str, Server]) -> Dict[str, Turn]:
    """Compare by calls. One caller gets more and shorter turns: its speed depends on
    where the scheduler has just put the processes."""
    seconds = SLICE_S / 3 if callers == 1 else SLICE_S
    return each(lambda side: call(side.port, callers, seconds), sides)


def pull(callers: int, instances: int, yardsticks: str, lab: Lab) -> Dict[str, Turn]:
    sides = lab.pull_emulators(instances)
    for name in yardsticks.split():
        sides[name] = lab.yardstick(name)
        for argv in [lab.program(PULL_LOOP)] * instances:
            lab.start(argv, runtime_env(sides[name].port), sides[name].port)
    return calls(callers, sides)


def pull_6mib(lab: Lab) -> Dict[str, Turn]:
    size = 6 * MIB
    behind = lab.yardstick("plain", str(size))
    relay = lab.yardstick("plain", str(size), str(behind.port))
    event = b"x" * size
    turns = each(lambda side: move(side.port, INVOKE, size, event),
                 lab.pull_emulators(1))
    turns["plain"] = partial(move, relay.port, "", size, event)
    return turns


def push(callers: int, lab: Lab) -> Dict[str, Turn]:
    port = lab.push_server(lab.program(PUSH_SERVER))
    return calls(callers, {**lab.push_emulators(), "proxy": lab.yardstick(
        "proxy", PUSH_HOST, str(port))})


def push_bulk(lab: Lab) -> Dict[str, Turn]:
    def give(side: Server, before_kb: int) -> Sample:
        sample = move(side.port, "/give", BULK_BYTES, b"x")
        sample["grown"] = (proc_field(side.pid, "VmHWM") - before_kb) / 1024
        return sample

    port = lab.push_server(lab.program(PUSH_SERVER, large_bytes=BULK_BYTES))
    turns: Dict[str, Turn] = {"direct": partial(
        move, port, "/give", BULK_BYTES, b"x", PUSH_HOST)}
    for name, side in lab.push_emulators(large_bytes=BULK_BYTES).items():
        call(side.port, 1, 0.1)
        turns[name] = partial(give, side, proc_field(side.pid, "VmRSS"))
    return turns


def server(lab: Lab) -> Dict[str, Turn]:
    sides = {"ours": (lab.push_server(lab.bootstrap("fc")), PUSH_HOST),
             "stock": (lab.yardstick("stock").port, LOOPBACK)}
    return {name: partial(call, port, 8, SLICE_S, "/invoke", host)
            for name, (port, host) in sides.items()}


def storm(lab: Lab) -> Dict[str, Turn]:
    """Compare how 256 connections are served, with one request on each."""
    return each(lambda side: call(side.port, 256), lab.pull_emulators(4))


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
    return {name: quickest(turn) for name, turn in turns.items()}


def readiness(delay_s: float, lab: Lab) -> Dict[str, Turn]:
    return each(told, lab.push_emulators(delay_s=delay_s))


def first_poll(protocol: str, lab: Lab) -> Dict[str, Turn]:
    def bare() -> Sample:
        begin = clock()
        # With a limit wait() would poll, and be up to 50 ms late.
        launch([*PYTHON, "-c", "import socket, json"], {}).wait()
        return {"ms": (clock() - begin) * 1e3}

    argv = lab.bootstrap(protocol)
    feed(argv)      # index.py gets compiled
    return {"ours": quickest(partial(feed, argv)), "bare": quickest(bare)}


def loop(protocol: str, lab: Lab) -> Dict[str, Turn]:
    # Two processes that only ever wait for each other run at one of two speeds, as the
    # scheduler happens to place them. On one core there is one speed.
    cores = os.sched_getaffinity(0)
    lab.callback(os.sched_setaffinity, 0, cores)
    os.sched_setaffinity(0, {max(cores)})
    return {"ours": partial(feed, lab.bootstrap(protocol), SLICE_S),
            "raw": partial(feed, lab.program(PULL_LOOP), SLICE_S)}


def idle_64(lab: Lab) -> Dict[str, Turn]:
    many, one = lab.pull_emulators(64), lab.pull_emulators(1)
    asking = [calls(1, sides) for sides in (one, many, one)]

    def cost(name: str) -> Sample:
        before, during, after = [turns[name]()["p50_us"] for turns in asking]
        return {"cost": during * 2 / (before + after)}

    return {name: partial(cost, name) for name in many}


def memory(lab: Lab) -> Dict[str, Turn]:
    rest, many, one = [lab.pull_emulators(count) for count in (0, 64, 1)]

    def held(name: str) -> Sample:
        rest_kb, many_kb, before_kb = [
            proc_field(sides[name].pid, "VmRSS") for sides in (rest, many, one)]
        callers, end = [Caller(one[name].port, number, "sleep 5")
                        for number in range(257)], clock() + WAIT_LIMIT_S
        while one[name].state()["queued"] < 256 and clock() < end:
            time.sleep(PAUSE_S)
        waiting_kb = proc_field(one[name].pid, "VmRSS") - before_kb
        for caller in callers:
            caller.sock.close()
        return {"rest": rest_kb / 1024, "instance": (many_kb - rest_kb) / 64,
                "caller": waiting_kb / 256}

    return {name: partial(held, name) for name in rest}


def idle(lab: Lab) -> Dict[str, Turn]:
    watched = [lab.pull_emulators(instances) for instances in (0, 1, 64)]

    def busy(name: str) -> Sample:
        seen = []
        for pause_s in (1, IDLE_S):  # first, connections of the warm-up are forgotten
            time.sleep(pause_s)
            seen.append([activity(sides[name].pid) for sides in watched])
        switches, cpu_ms = [sum(after) - sum(before) for before, after in zip(
            *(zip(*each) for each in seen))]
        return {"switches": switches, "cpu": cpu_ms}

    return {name: partial(busy, name) for name in watched[0]}


# ---- the table ----

class Goal(NamedTuple):
    """One line of the table: a quantity of the samples, `/` over or `-` minus that of a
    yardstick, and its bounds."""

    what: str
    quantity: str
    against: str
    sense: str      # "<=": smaller is better, ">=": larger is better
    must: float
    ambition: float
    unit: str = ""  # none for a ratio


class Row(NamedTuple):
    """What takes turns, how often in a round (0: once in all), and what it must give."""

    turns: Callable[[Lab], Dict[str, Turn]]
    per_round: int
    goals: Tuple[Goal, ...]


def row(turns: Callable[[Lab], Dict[str, Turn]], per_round: int, *goals: Tuple[Any, ...]
        ) -> Row:
    return Row(turns, per_round, tuple(Goal(*goal) for goal in goals))


ROWS: Dict[str, Row] = {
    "pull-1": row(partial(pull, 1, 1, "epoll naive"), 3,
                  ("1 caller, 64 B: over epoll", "p50_us", "/epoll", "<=", 2, 1.25),
                  ("1 caller, 64 B: over naive", "p50_us", "/naive", "<=", 0.6, 0.4)),
    "pull-8": row(partial(pull, 8, 4, "naive"), 1,
                  ("8 callers, 4 instances", "rate", "/naive", ">=", 2.8, 4.8)),
    "pull-64": row(partial(pull, 64, 16, "naive"), 1,
                   ("64 callers, 16 instances", "rate", "/naive", ">=", 2.6, 5),
                   ("p99 over p50", "tail", "", "<=", 2, 2),
                   ("without a right answer", "errors", "", "<=", 0, 0, "n")),
    "pull-6mib": row(pull_6mib, 1, (
        "6 MiB there and back", "mib_per_s", "/plain", ">=", 0.6, 0.75)),
    "push-1": row(partial(push, 1), 3, ("1 caller", "rate", "/proxy", ">=", 1.3, 2.1)),
    "push-8": row(partial(push, 8), 1, ("8 callers", "rate", "/proxy", ">=", 2.6, 3.2)),
    "push-bulk": row(push_bulk, 1,
                     ("100 MiB answered", "mib_per_s", "/direct", ">=", 0.5, 0.7),
                     ("growth of peak memory", "grown", "", "<=", 5, 5, "MB")),
    "cold-start": row(cold_start, 1, (
        "event to delivery", "ms", "-bare", "<=", 2, 1.2, "ms")),
    "ready-early": row(partial(readiness, 0.0), 2, (
        "listen() to found, at once", "found", "", "<=", 1.5, 1.5, "ms")),
    "ready-late": row(partial(readiness, 0.2), 2, (
        "listen() to found, after 200 ms", "found", "", "<=", 6, 6, "ms")),
    **{"first-" + one: row(partial(first_poll, one), 1, (
        one + "_bootstrap to first poll", "ms", "/bare", "<=", 1.3, 1.15))
       for one in ("scf", "fg")},
    **{"loop-" + one: row(partial(loop, one), 1, (
        "loop of %s_bootstrap" % one, "rate", "/raw", ">=", 0.7, 0.9))
       for one in ("scf", "fg")},
    "server": row(server, 1, (
        "fc_bootstrap, 8 connections", "rate", "/stock", ">=", 1.5, 2.5)),
    "storm": row(storm, 1,
                 ("256 connections until answered", "seconds", "", "<=", 1, 1, "s"),
                 ("not answered", "errors", "", "<=", 0, 0, "n")),
    "idle-64": row(idle_64, 3, (
        "1 caller: 64 instances over 1", "cost", "", "<=", 1.1, 1)),
    "memory": row(memory, 0,
                  ("resident at rest", "rest", "", "<=", 30, 30, "MB"),
                  ("per idle instance (of 64)", "instance", "", "<=", 120, 120, "KB"),
                  ("per waiting caller (of 256)", "caller", "", "<=", 30, 30, "KB")),
    "idle": row(idle, 0,
                ("0, 1, 64: context switches", "switches", "", "<=", 0, 0, "n"),
                ("0, 1, 64: processor time", "cpu", "", "<=", 0, 0, "ms"))}


def interleave(rounds: int, turns: Mapping[str, Turn]) -> Taken:
    """Let all sides take one turn per round, in an order that rotates."""
    names = list(turns)
    taken: Taken = {name: [] for name in names}
    for number in range(rounds):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            taken[name].append(turns[name]())
    return taken


def judge(name: str, goal: Goal, taken: Taken) -> Dict[str, Any]:
    """Return one line of the table as data: each side's value is judged by the better
    bound that it meets, and `over_peer` says how good ours is over the peer."""
    samples = {side: [one[goal.quantity] for one in some]
               for side, some in taken.items() if goal.quantity in some[0]}
    line: Dict[str, Any] = {
        "row": name, **goal._asdict(), "sides": {}, "over_peer": None, "medians": {
            side: statistics.median(some) for side, some in samples.items()}}
    sign = 1 if goal.sense == "<=" else -1
    for side in {"ours", "peer"} & set(samples):
        rounds, other = samples[side], samples.get(goal.against[1:], [])
        if goal.against:
            rounds = [mine / its if goal.against[0] == "/" else mine - its
                      for mine, its in zip(rounds, other)]
        # what is counted is as bad as its worst
        value = (max if goal.unit in ("n", "MB") else statistics.median)(rounds)
        met = [bound for bound in ("ambition", "must")
               if sign * value <= sign * getattr(goal, bound)]
        line["sides"][side] = {
            "value": value, "rounds": rounds, "verdict": [*met, "MISSED"][0]}
    pairs = list(zip(samples.get("ours", []), samples.get("peer", [])))
    if pairs and min(map(min, pairs)) > 0:
        line["over_peer"] = statistics.median(
            (peer / ours) ** sign for ours, peer in pairs)
    return line


LINE = "%-11s %-31s %-16s %2s %-5s %-5s %-8s %s"


def print_line(line: Mapping[str, Any]) -> None:
    """Print one line: bounds, verdict, values with their range, what they come from."""
    sides, text = sorted(line["sides"].items()), ""
    for name, side in sides:
        text += "%s %.3g%s (%.3g..%.3g)  " % (name, side["value"], line["unit"], min(
            side["rounds"]), max(side["rounds"]))
    if line["over_peer"]:
        text += "over it %.2f  " % line["over_peer"]
    if line["against"]:
        text += "of " + ", ".join("%s %.4g" % pair for pair in line["medians"].items())
    print(LINE % (line["row"], line["what"], line["quantity"] + line["against"],
                  line["sense"], "%g" % line["must"], "%g" % line["ambition"],
                  sides[0][1]["verdict"] if sides else "-", text), flush=True)


# ---- command line ----

def measure(name: str, rounds: int, report: Dict[str, Any]) -> List[Dict[str, Any]]:
    """Measure one row; add its lines and notes to the report, return the lines."""
    taken: Taken = {}
    try:
        with Lab() as lab:
            taken = interleave(max(1, rounds * ROWS[name].per_round),
                               ROWS[name].turns(lab))
    except (Unmeasured, OSError, AttributeError) as error:  # what a system has not
        report["notes"].append("%s: not measured: %s" % (name, error))
    report["notes"] += ["%s: wrong answers from %s" % (name, side) for side, some
                        in taken.items() if any(one.get("errors") for one in some)]
    lines = [judge(name, goal, taken) for goal in ROWS[name].goals]
    report["lines"] += lines
    return lines


def main() -> int:
    """Run the benchmark. Return 0, or 130 if interrupted."""
    parser = argparse.ArgumentParser(
        description="Measure the emulator and the bootstraps against yardsticks.")
    parser.add_argument("--json", action="store_true", help="print JSON, no table")
    parser.add_argument("--only", metavar="ROW", action="append", choices=list(ROWS),
                        help="this row only (repeatable): " + ", ".join(ROWS))
    parser.add_argument("--rounds", type=int, metavar="N", default=7,
                        help="turns of each side (7)")
    parser.add_argument("--role", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        YARDSTICKS[options.role[0]](*options.role[1:])
        return 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    report: Dict[str, Any] = {
        "python": sys.version.split()[0], "cores": os.cpu_count(), "notes": [],
        "rounds": options.rounds, "load": os.getloadavg()[0], "lines": []}
    if not options.json:
        print("Python %(python)s, %(cores)d cores, load average %(load).1f before the "
              "start\n(a busy machine slows most who live on one core)" % report)
        print(LINE % ("row", "what", "quantity", "", "must", "aim", "met", "value"))
    try:
        for name in options.only or ROWS:
            lines = measure(name, options.rounds, report)
            for line in [] if options.json else lines:
                print_line(line)
    except KeyboardInterrupt:
        return 130
    print(json.dumps(report, indent=1) if options.json else "\n".join(report["notes"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
