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

TESTS = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))

import rooms  # noqa: E402, F401

import scripted_bootstrap  # noqa: E402
import wire  # noqa: E402
from benchmark import (  # noqa: E402
    LOOPBACK, MIB, PYTHON, REFERENCE, Server, children_of, proc_field)

PROTOCOLS = ("scf", "fg", "fc")
WARM = 1000
ANSWER_LIMIT_S = 30.0
SETTLE_LIMIT_S = 5.0    # for threads and processes that are about to end
# With an arena for each thread, memory depends on which thread got the large event.
ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}
ALLOWED = {"memory_kb": 1.05, "threads": 1.0, "files": 1.0, "processes": 1.0}
MEAN = ((b'[["exit", 3]]', "exit"), (b"x" * MIB, "ok"),
        (b"x" * (7 * MIB), "request-too-large"),
        (b'[["flood", 100000, "780a"]]', "ok"))


def invoke(door: HTTPConnection, event: bytes) -> str:
    """Return the kind of the outcome."""
    door.request("POST", "/-/invoke", event)
    answer = door.getresponse()
    answer.read()
    return answer.getheader("x-outcome") or str(answer.status)


def held(server: Server) -> Dict[str, int]:
    """Return what the emulator holds."""
    return {"memory_kb": proc_field(server.pid, "VmRSS"),
            "threads": proc_field(server.pid, "Threads"),
            "files": len(os.listdir("/proc/%d/fd" % server.pid)),
            "processes": len(children_of(server.pid))}


def grew(first: Dict[str, int], last: Dict[str, int]) -> bool:
    """Tell whether there is more at the end than there was."""
    return any(last[name] > first[name] * share for name, share in ALLOWED.items())


def soak(server: Server, count: int) -> Dict[str, Dict[str, int]]:
    """Invoke so often; return what was held after 1,000 invocations and at the end."""
    door = HTTPConnection(LOOPBACK, server.port, timeout=ANSWER_LIMIT_S)
    first: Dict[str, int] = {}
    for number in range(1, count + 1):
        event, kind = MEAN[number // 100 % len(MEAN)] if number % 100 == 0 else (
            b"event %d" % number, "ok")
        seen = invoke(door, event)
        if seen != kind:
            raise SystemExit("invocation %d: %s instead of %s" % (number, seen, kind))
        if number in (min(WARM, count // 2), count):
            invoke(door, b"rest")      # so there is an instance again
            last = held(server)
            first = first or last
    for _ in wire.looks(SETTLE_LIMIT_S):
        last = held(server)
        if not grew(first, last):
            break
    door.close()
    return {"first": first, "last": last}


def main() -> int:
    """Soak all protocols; return the exit status."""
    parser = argparse.ArgumentParser(description="Invoke very often.")
    parser.add_argument("count", nargs="?", type=int)
    parser.add_argument("--quick", action="store_true", help="3,000 of each")
    options, status = parser.parse_args(), 0
    count = options.count or (3_000 if options.quick else 100_000)
    for protocol in PROTOCOLS:
        with tempfile.TemporaryDirectory() as place:
            folder = scripted_bootstrap.place(pathlib.Path(place) / "code")
            server = Server([
                *PYTHON, str(REFERENCE / "emulator.py"), protocol, folder, "--quiet",
                "--serve", "%s:0" % LOOPBACK, "--max-event", str(6 * MIB),
                *(["--port", "0"] if protocol == "fc" else [])], ONE_ARENA, place)
            try:
                found = soak(server.wait_for_address(), count)
            finally:
                server.process.terminate()
                server.stop()
        print(json.dumps({"protocol": protocol, "count": count, **found}), flush=True)
        status |= grew(found["first"], found["last"])
    return status


if __name__ == "__main__":
    sys.exit(main())
