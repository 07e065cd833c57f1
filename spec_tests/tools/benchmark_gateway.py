#!/usr/bin/env python3
# benchmark_gateway.py: what reference/gateway.py costs (MIT).
"""Measure the gateway against the same calls without it, in interleaved turns.

    python3 spec_tests/tools/benchmark_gateway.py [--rounds N] [--only ROW] [--json]

The worker is fc_bootstrap.py with an echo. Warm: what dispatching costs, over a proxy that
calls one worker directly through the same plumbing; in time and, less blurred by other
load, in processor time of all processes on a side. Cold: a call to a disposable function
over a bare start of the same program up to its first answer. PEER_GATEWAY names another
gateway to be measured beside ours. The rest is benchmark.py's. No load but its own.
"""
from __future__ import annotations

import json
import os
import pathlib
import sys
import time
from functools import partial
from typing import Any, Dict, List

import benchmark
from benchmark import PYTHON, REFERENCE, Lab, Sample, Server, Turn

EVENT = b"x" * 64


def free_port() -> int:
    """Return a port that nobody listens on."""
    with benchmark.listen() as probe:
        return int(probe.getsockname()[1])


def gateways(lab: Lab, **worker: Any) -> Dict[str, Server]:
    """Start ours, and the peer if there is one, with one function."""
    files, argv = {"ours": str(REFERENCE / "gateway.py")}, lab.bootstrap("fc")
    if os.environ.get("PEER_GATEWAY"):
        files["peer"] = os.path.abspath(os.environ["PEER_GATEWAY"])
    profiles, log = pathlib.Path(lab.folder, "functions.json"), lab.folder + "/log"
    profiles.write_text(json.dumps([{
        "name": "f", "runtime": "custom", "signature": "1", "command": argv,
        "url": pathlib.Path(argv[-1]).parent.as_uri(), "handler": "index.main_handler",
        "worker": worker}]))
    found = {}
    for side, file in files.items():
        port = free_port()
        found[side] = lab.start([
            *PYTHON, file, "--profiles", str(profiles), "--default-function", "f",
            "--tick", "1000", "--port", str(port), "--access-log", log], {}, port)
    return found


def worker_of(argv: List[str]) -> List[Any]:
    """Return what starts the worker without a gateway: command, environment, port."""
    port = free_port()
    return [argv, {"FC_SERVER_PORT": str(port), "FC_FUNCTION_HANDLER":
                   "index.main_handler", "FC_FUNC_CODE_PATH": os.path.dirname(argv[-1])},
            port]


def cpu_us(pids: List[int]) -> float:
    """Return the processor time of processes until now, that of ended threads, too; in
    steps of 10 ms."""
    ticks = [int(word) for pid in pids for word in pathlib.Path(
        "/proc/%d/stat" % pid).read_text().rpartition(")")[2].split()[11:13]]
    return sum(ticks) * 1e6 / os.sysconf("SC_CLK_TCK")


def warm_turn(port: int, pids: List[int]) -> Sample:
    """Call one after the other for a while."""
    before = cpu_us(pids)
    taken = benchmark.call(port, 1, 0.5, "/invoke")
    busy = max(1e4, cpu_us(pids) - before)  # one step at least
    return {**taken, "cpu_us": busy / (taken["rate"] * taken["seconds"])}


def warm(lab: Lab) -> Dict[str, Turn]:
    """What dispatched calls cost, beside the proxy's."""
    worker = lab.start(*worker_of(lab.bootstrap("fc")))
    proxy = lab.start([*PYTHON, os.path.abspath(__file__), "--role", "dispatch",
                       str(worker.port)], {})
    sides = {"proxy": partial(warm_turn, proxy.port, [proxy.pid, worker.pid])}
    for name, side in gateways(lab).items():
        benchmark.call(side.port, 1, 0.1, "/invoke")
        one, = json.loads(benchmark.ask(side.port, "/-/stats"))["functions"]["f"]["workers"]
        sides[name] = partial(warm_turn, side.port, [side.pid, one["pid"]])
    return {**sides}


def cold_call(server: Server) -> Sample:
    """Make one call to a disposable function."""
    begin = time.monotonic()
    benchmark.ask(server.port, "/invoke", EVENT)
    return {"ms": 1e3 * (time.monotonic() - begin)}


def bare_start(argv: List[str]) -> Sample:
    """Start the worker by hand, and take the time up to its first answer."""
    argv, env, port = worker_of(argv)
    begin = time.monotonic()
    process = benchmark.launch(argv, env)
    try:
        while True:
            try:
                benchmark.ask(port, "/invoke", EVENT)
                return {"ms": 1e3 * (time.monotonic() - begin)}
            except ConnectionError:
                time.sleep(0.0005)
    finally:
        benchmark.kill(process)


def cold(lab: Lab) -> Dict[str, Turn]:
    """What a cold call costs, beside a bare start."""
    return {**benchmark.each(cold_call, gateways(lab, disposable=True)),
            "bare": partial(bare_start, lab.bootstrap("fc"))}


def run_dispatch(port: str) -> None:
    """Be the proxy: the gateway's HTTP code in both directions, one worker, no agent."""
    sys.path.insert(0, str(REFERENCE))
    import emulator as own
    worker = own.Upstream(benchmark.connect(int(port)))

    class Proxy(own.Handler):
        """Passes each call to the worker."""

        def respond(self) -> None:
            body = self.read_body(1 << 20)
            worker.caller, worker.on_gone = self, partial(os._exit, 1)
            fields = [pair for pair in self.head.fields if pair[0] != "Content-Length"]
            worker.send(own.format_head("POST /invoke HTTP/1.1", [
                *fields, ("Content-Length", str(len(body)))]) + body)
            head = worker.read_answer(65536)
            result = worker.reader.read(head.length or 0) or b""
            worker.caller = None
            own.Answer(self).begin(head, [pair for pair in head.fields if
                                          pair[0] != "Content-Length"], (), True, result)

    benchmark.announce(own.Server("127.0.0.1", 0, Proxy, None).socket)
    while True:
        time.sleep(3600)


ROWS = {
    "warm": benchmark.row(
        warm, 2, ("dispatch over a proxy", "p50_us", "/proxy", "<=", 2, 1.5),
        ("the same, processor time", "cpu_us", "/proxy", "<=", 2, 1.5)),
    "cold": benchmark.row(
        cold, 2, ("call over a start of the worker", "ms", "-bare", "<=", 20, 10, "ms"))}

if __name__ == "__main__":
    benchmark.YARDSTICKS["dispatch"] = run_dispatch
    benchmark.ROWS.clear()
    benchmark.ROWS.update(ROWS)
    sys.exit(benchmark.main())
