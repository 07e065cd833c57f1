#!/usr/bin/env python3
# benchmark_gateway.py: what reference/gateway.py costs (MIT).
"""Measure the gateway against the same calls without it, in one interleaved run.

    python3 spec_tests/tools/benchmark_gateway.py [--quick] [--json]

The worker is fc_bootstrap.py with the test handler. Warm: what dispatching costs, over a
proxy that calls one worker directly through the same plumbing. Medians of the rounds'
ratios, of the duration and of the processor time of all processes on a side, which other
load blurs less. The access log goes to a file. Cold: a call to a disposable function over
a bare start of the same program up to its first answer. PEER_GATEWAY names another
gateway to be measured in place of ours. No load but its own.
"""
from __future__ import annotations

import argparse
import contextlib
import functools
import json
import os
import pathlib
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Callable, Dict, Iterator, List, NamedTuple, Tuple

TESTS = pathlib.Path(__file__).resolve().parent.parent
REFERENCE = TESTS.parent / "reference"
HANDLERS = TESTS / "handlers" / "python"
WORKER_ARGV = [sys.executable, "-I", "-S", str(REFERENCE / "fc_bootstrap.py")]
HANDLER = "test_handler.handle"
EVENT = b"x" * 64
PATIENCE_S = 10.0
PIDS: List[int] = []     # of the programs started, in this order


class Goal(NamedTuple):
    """One line of the table: what is measured, the bound, and what was found."""

    what: str
    bound: float
    unit: str
    found: float

    @property
    def is_met(self) -> bool:
        """Tell whether the bound holds."""
        return self.found <= self.bound


# ---- the sides ----


def profiles(folder: pathlib.Path) -> pathlib.Path:
    """Write the list of functions: the same worker, kept and disposable."""
    item = {"runtime": "custom", "url": HANDLERS.as_uri(), "signature": "1",
            "handler": HANDLER, "command": WORKER_ARGV,
            "resourceLimit": {"memory": 64 << 20}}
    path = folder / "functions.json"
    path.write_text(json.dumps([
        {"name": "warm", **item},
        {"name": "cold", **item, "worker": {"disposable": True}}]))
    return path


@contextlib.contextmanager
def started(argv: List[str], folder: pathlib.Path) -> Iterator[int]:
    """Run a program; give the port that it announces."""
    log = folder / f"{len(list(folder.iterdir()))}.txt"
    with open(log, "wb") as output:
        process = subprocess.Popen(argv, env={"PATH": os.environ["PATH"], "TMPDIR": str(folder)},
                                   stdout=output, stderr=output, start_new_session=True)
    try:
        PIDS.append(process.pid)
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and process.poll() is None:
            found = re.search(r"listens .*:(\d+)\b", log.read_text())
            if found:
                yield int(found.group(1))
                return
            time.sleep(0.01)
        raise RuntimeError(f"{argv[1]} did not start: {log.read_text()}")
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


# ---- calls ----


def connect(port: int) -> socket.socket:
    """Return a connection for many calls."""
    wire = socket.create_connection(("127.0.0.1", port), PATIENCE_S)
    wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return wire


def request(function: str = "warm") -> bytes:
    """Return a whole request."""
    return (b"POST /invoke HTTP/1.1\r\nHost: a\r\nx-noslated-dispatch: %s\r\n"
            b"Content-Length: %d\r\n\r\n" % (function.encode(), len(EVENT)) + EVENT)


def call(wire: socket.socket, data: bytes) -> float:
    """Make one call; return how long it took, in seconds."""
    begin = time.perf_counter()
    wire.sendall(data)
    seen = b""
    while not seen.endswith(EVENT):
        more = wire.recv(65536)
        if not more:
            raise RuntimeError("cut after %r" % seen[-200:])
        seen += more
    taken = time.perf_counter() - begin
    if not seen.startswith(b"HTTP/1.1 200"):
        raise RuntimeError("not ok: %r" % seen[:200])
    return taken


def p50(wire: socket.socket, data: bytes, count: int) -> float:
    """Return the median duration of so many calls, one after the other."""
    return statistics.median(call(wire, data) for _ in range(count))


def cpu_us(wire: socket.socket, data: bytes, count: int, pid: int) -> float:
    """Return the processor time of a call in a program and all that it started."""
    before = family_us(pid)
    for _ in range(count):
        call(wire, data)
    return (family_us(pid) - before) / count


def family_us(pid: int) -> float:
    """Return the processor time, so far, of a process and its descendants."""
    parents = {}
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents[int(path.parent.name)] = int(
                path.read_text().rpartition(")")[2].split()[1])
    family = {pid}
    while True:
        more = {child for child, parent in parents.items() if parent in family} - family
        if not more:
            break
        family |= more
    return sum(int(path.read_text().split()[0]) for member in family
               for path in pathlib.Path(f"/proc/{member}/task").glob("*/schedstat")) / 1e3


def rounds(number: int, sides: List[Callable[[], float]]) -> List[List[float]]:
    """Measure the sides in turns, in rotated order; return what each round gave."""
    taken = []
    for turn in range(number):
        found = [0.0] * len(sides)
        for step in range(len(sides)):
            side = (turn + step) % len(sides)
            found[side] = sides[side]()
        taken.append(found)
    return taken


# ---- goals ----


def gateway(folder: pathlib.Path) -> List[str]:
    """Return the container's start command."""
    return [sys.executable, os.environ.get("PEER_GATEWAY") or str(
        REFERENCE / "gateway.py"), "--profiles",
            str(profiles(folder)), "--tick", "1000", "--access-log",
            str(folder / "access.log"), "--port", "0"]


def warm(folder: pathlib.Path, number: int) -> List[Goal]:
    """What dispatched calls cost, as a multiple of the proxy's."""
    commands = [[sys.executable, str(pathlib.Path(__file__).resolve()), "--proxy"],
                gateway(folder)]
    with contextlib.ExitStack() as stack:
        ports = [stack.enter_context(started(command, folder)) for command in commands]
        wires = [stack.enter_context(connect(port)) for port in ports]
        data = request()
        for wire in wires:
            p50(wire, data, 100)
        taken = rounds(number, [functools.partial(p50, wire, data, 300)
                                for wire in wires])
        busy = rounds(number, [functools.partial(cpu_us, wire, data, 300, pid)
                               for wire, pid in zip(wires, PIDS[-2:])])
    for unit, values, scale in (("p50", taken, 1e6), ("cpu", busy, 1.0)):
        print("  warm, %s: proxy %.0f us, gateway %.0f us" % (unit, *(
            scale * statistics.median(side) for side in zip(*values))))
    return [Goal("warm: dispatch over a proxy, " + unit, 2.0, "",
                 statistics.median(one[1] / one[0] for one in values))
            for unit, values in (("time", taken), ("processor time", busy))]


def serve_proxy() -> None:
    """Be the proxy: the gateway's HTTP code in both directions, one worker, no agent."""
    sys.path.insert(0, str(REFERENCE))
    import emulator as own
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = start_worker(port)
    worker = own.Upstream(connect_soon(port))

    class Proxy(own.Handler):
        """Passes each call to the worker."""

        def respond(self) -> None:
            body = self.read_body(1 << 20)
            worker.watch(self, process.kill)
            fields = [pair for pair in self.head.fields if pair[0] != "Content-Length"]
            worker.send(own.format_head("POST /invoke HTTP/1.1", [
                *fields, ("Content-Length", str(len(body)))]) + body)
            head = worker.read_answer(65536)
            result = worker.reader.read(head.length or 0) or b""
            worker.watch(None, process.kill)
            own.Answer(self).begin(head, [pair for pair in head.fields if
                                          pair[0] != "Content-Length"], (), True, result)

    server = own.Server("127.0.0.1", 0, Proxy, None)
    print("listens on 127.0.0.1:%d" % server.port, flush=True)
    try:
        signal.sigwait([signal.SIGTERM])
    finally:
        process.kill()


def start_worker(port: int) -> "subprocess.Popen[bytes]":
    """Start the worker by hand."""
    return subprocess.Popen(
        WORKER_ARGV, cwd=HANDLERS, stdout=subprocess.DEVNULL,
        env={"PATH": os.environ["PATH"], "FC_SERVER_PORT": str(port),
             "FC_FUNC_CODE_PATH": str(HANDLERS), "FC_FUNCTION_HANDLER": HANDLER})


def connect_soon(port: int) -> socket.socket:
    """Connect to a program that is starting."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return connect(port)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.0005)


def bare_start() -> float:
    """Start the worker by hand; return the time up to its first answer."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    begin = time.perf_counter()
    process = start_worker(port)
    try:
        with connect_soon(port) as wire:
            call(wire, request())
        return time.perf_counter() - begin
    finally:
        process.kill()
        process.wait()


def cold(folder: pathlib.Path, number: int) -> List[Goal]:
    """What a cold call costs more than a bare start; and what idleness costs."""
    with started(gateway(folder), folder) as port:
        with connect(port) as wire:
            data = request("cold")
            pairs = rounds(2 * number, [bare_start, lambda: call(wire, data)])
    print("  bare start %.1f ms, cold call %.1f ms" % tuple(
        1e3 * statistics.median(pair[side] for pair in pairs) for side in (0, 1)))
    added = statistics.median(after - before for before, after in pairs)
    return [Goal("cold: call over a bare start of the worker", 20, "ms", added * 1e3)]


def measure(quick: bool = False) -> List[Goal]:
    """Measure everything. Takes about 15 s, 5 s when quick."""
    number = 3 if quick else 9
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        folder = pathlib.Path(name)
        return [*warm(folder, number), *cold(folder, number)]


def main() -> int:
    """Print a table; return 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description="What gateway.py costs.")
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--proxy", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    if options.proxy:
        serve_proxy()
        return 0
    goals = measure(options.quick)
    if options.json:
        print(json.dumps([{**goal._asdict(), "met": goal.is_met} for goal in goals]))
    for goal in [] if options.json else goals:
        print("%-48s %8.2f %-3s at most %g%s" % (
            goal.what, goal.found, goal.unit, goal.bound,
            "" if goal.is_met else "  MISSED"))
    return 0 if all(goal.is_met for goal in goals) else 1


if __name__ == "__main__":
    sys.exit(main())
