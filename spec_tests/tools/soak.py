#!/usr/bin/env python3
# soak.py: very many invocations, and what they leave behind in the emulator (MIT).
"""Invoke a scripted bootstrap very often, and see that the emulator does not grow.

    python3 spec_tests/tools/soak.py             100,000 invocations of each protocol
    python3 spec_tests/tools/soak.py 3000        or so many

Every hundredth invocation is a mean one: a function that ends, a large event, one that
is too large, much output. Prints, for each protocol, what the process of emulator and
caller holds after the first 1,000 and at the end, as a JSON line. Status 1 if anything
has grown: memory by more than 5 %, or threads, open files or instances at all.
"""

import json
import os
import pathlib
import sys
import tempfile
from typing import Dict

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import rooms  # noqa: E402, F401

import benchmark  # noqa: E402
import scripted_bootstrap  # noqa: E402
import wire  # noqa: E402
from harness import Harness, Peer, held, processes, until  # noqa: E402

WARM = 1000
MIB = 1 << 20
ALLOWED = {"memory_kb": 1.05, "threads": 1.0, "files": 1.0, "processes": 1.0}
# The buffer of one largest event: whether the allocator gives it back is up to it.
KEPT = {"memory_kb": 6 * 1024}
MEAN = ((b'[["exit", 3]]', "exit"), (b"x" * MIB, "ok"),
        (b"x" * (7 * MIB), "request-too-large"),
        (b'[["flood", 100000, "780a"]]', "ok"))


def invoke(door: Peer, event: bytes, kind: str) -> None:
    """Invoke, and see that the outcome is of this kind."""
    door.send(wire.request_bytes("POST", "/-/invoke", (), event))
    seen = door.answer("POST").header("x-outcome")
    if seen != kind:
        raise SystemExit("%r: %s instead of %s" % (event[:20], seen, kind))


def holds(folder: str) -> Dict[str, int]:
    """Return what there is of everything that may grow."""
    files, threads = held()
    return {"memory_kb": benchmark.proc_field(os.getpid(), "VmRSS"), "files": files,
            "threads": threads, "processes": len(processes(folder))}


def soak(protocol: str, count: int, folder: str) -> bool:
    """Invoke so often; print what was held, and tell whether that has grown."""
    with Harness(protocol, folder, event_bytes=6 * MIB) as harness:
        door = harness.caller()
        for number in range(1, count + 1):
            is_mean = number % 100 == 0
            invoke(door, *(MEAN[number // 100 % len(MEAN)] if is_mean else (
                b"event %d" % number, "ok")))
            if number == min(WARM, count // 2):
                invoke(door, b"rest", "ok")     # so there is an instance again
                first = holds(folder)
        invoke(door, b"rest", "ok")

        def is_as_before() -> bool:
            last.update(holds(folder))
            return all(last[name] <= first[name] * ALLOWED[name] + KEPT.get(name, 0)
                       for name in first)

        last: Dict[str, int] = {}
        has_grown = not until(is_as_before)  # some threads are about to end
        print(json.dumps({"protocol": protocol, "count": count, "first": first,
                          "last": last}), flush=True)
        return has_grown


def main(count: int) -> int:
    """Soak all protocols; return the exit status."""
    has_grown = False
    for protocol in ("scf", "fg", "fc"):
        with tempfile.TemporaryDirectory() as place:
            has_grown |= soak(protocol, count, scripted_bootstrap.place(
                pathlib.Path(place) / "code"))
    return int(has_grown)


if __name__ == "__main__":
    if "MALLOC_ARENA_MAX" not in os.environ:
        # with one for each thread, memory depends on which one got the large event
        os.execve(sys.executable, [sys.executable, *sys.argv],
                  {**os.environ, "MALLOC_ARENA_MAX": "1"})
    sys.exit(main(int((sys.argv + ["100000"])[1])))
