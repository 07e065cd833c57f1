#!/usr/bin/env python3
# soak.py: very many invocations, and what they leave behind in the emulator (MIT).
"""Invoke a scripted bootstrap very often, and see that the emulator does not grow.

    python3 spec_tests/tools/soak.py             100,000 invocations of each protocol
    python3 spec_tests/tools/soak.py --quick     3,000; or say how many

Every hundredth invocation is a mean one: a function that ends, a large event, one that
is too large, much output. Prints, for each protocol, what the emulator holds after the
first 1,000 and at the end, as a JSON line. Status 1 if anything has grown: memory by
more than 5 %, or threads, open files or processes at all.
"""

import argparse
import json
import os
import pathlib
import sys
import tempfile
from http.client import HTTPConnection
from typing import Dict

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import rooms  # noqa: E402, F401

import scripted_bootstrap  # noqa: E402
import wire  # noqa: E402
from benchmark import (  # noqa: E402
    LOOPBACK, MIB, PYTHON, REFERENCE, Server, children_of, proc_field)

WARM = 1000
ANSWER_LIMIT_S = 30.0
SETTLE_LIMIT_S = 5.0    # for threads and processes that are about to end
# With an arena for each thread, memory depends on which thread got the large event.
ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}
ALLOWED = {"memory_kb": 1.05, "threads": 1.0, "files": 1.0, "processes": 1.0}
# The buffer of one largest event: whether the allocator gives it back is up to it.
KEPT = {"memory_kb": 6 * 1024}
MEAN = ((b'[["exit", 3]]', "exit"), (b"x" * MIB, "ok"),
        (b"x" * (7 * MIB), "request-too-large"),
        (b'[["flood", 100000, "780a"]]', "ok"))


def invoke(door: HTTPConnection, event: bytes, kind: str) -> None:
    """Invoke, and see that the outcome is of this kind."""
    door.request("POST", "/-/invoke", event)
    answer = door.getresponse()
    answer.read()
    seen = answer.getheader("x-outcome") or str(answer.status)
    if seen != kind:
        raise SystemExit("%r: %s instead of %s" % (event[:20], seen, kind))


def held(server: Server) -> Dict[str, int]:
    """Return what the emulator holds."""
    return {"memory_kb": proc_field(server.pid, "VmRSS"),
            "threads": proc_field(server.pid, "Threads"),
            "files": len(os.listdir("/proc/%d/fd" % server.pid)),
            "processes": len(children_of(server.pid))}


def soak(server: Server, protocol: str, count: int) -> bool:
    """Invoke so often; print what was held, and tell whether that has grown."""
    door = HTTPConnection(LOOPBACK, server.port, timeout=ANSWER_LIMIT_S)
    for number in range(1, count + 1):
        is_mean = number % 100 == 0
        invoke(door, *(MEAN[number // 100 % len(MEAN)] if is_mean else (
            b"event %d" % number, "ok")))
        if number == min(WARM, count // 2):
            invoke(door, b"rest", "ok")     # so there is an instance again
            first = held(server)
    invoke(door, b"rest", "ok")
    for _ in wire.looks(SETTLE_LIMIT_S):
        last = held(server)
        has_grown = any(last[name] > first[name] * ALLOWED[name] + KEPT.get(name, 0)
                        for name in first)
        if not has_grown:
            break
    door.close()
    print(json.dumps({"protocol": protocol, "count": count, "first": first,
                      "last": last}), flush=True)
    return has_grown


def main() -> int:
    """Soak all protocols; return the exit status."""
    parser = argparse.ArgumentParser(description="Invoke very often.")
    parser.add_argument("count", nargs="?", type=int)
    parser.add_argument("--quick", action="store_true", help="3,000 of each")
    options, has_grown = parser.parse_args(), False
    count = options.count or (3_000 if options.quick else 100_000)
    for protocol in ("scf", "fg", "fc"):
        with tempfile.TemporaryDirectory() as place:
            server = Server([
                *PYTHON, str(REFERENCE / "emulator.py"), protocol,
                scripted_bootstrap.place(pathlib.Path(place) / "code"), "--quiet",
                "--serve", "%s:0" % LOOPBACK, "--max-event", str(6 * MIB),
                *(["--port", "0"] if protocol == "fc" else [])], ONE_ARENA)
            try:
                has_grown |= soak(server, protocol, count)
            finally:
                server.stop()
    return int(has_grown)


if __name__ == "__main__":
    sys.exit(main())
