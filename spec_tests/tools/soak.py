#!/usr/bin/env python3
# soak.py: very many invocations, and what they leave behind in the platform (MIT).
"""Invoke a scripted bootstrap very often, and see that the platform does not grow.

    python3 spec_tests/tools/soak.py [COUNT]     100,000 invocations over fc, scf and fg

Prints, for each protocol, resident memory, threads and open files after the first 1,000
invocations and at the end, as JSON lines. Every hundredth invocation is a mean one: a
large event, a function that ends, an event that is too large. Status 1 if it grew.
"""

import json
import pathlib
import sys
import tempfile
import time
from typing import Any, Dict

TESTS = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))

import rooms  # noqa: E402, F401

import scripted_bootstrap  # noqa: E402
from emulator import MIB, Platform  # noqa: E402
from harness import held, until  # noqa: E402

WARM = 1000
SETTLE_S = 4.0
GROWTH_MB = 5.0  # the allocator keeps what a large event once took
MEAN = ((b'[["exit", 3]]', "exit"), (b"x" * MIB, "ok"),
        (b"x" * (7 * MIB), "request-too-large"),
        (b'[["flood", 100000, "780a"]]', "ok"))


def resident_mb() -> float:
    """Return how much memory this process holds now."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return round(int(line.split()[1]) / 1024, 2)
    return 0.0


def figures(platform: Platform) -> Dict[str, float]:
    """Measure when the platform is at rest."""
    until(lambda: platform.invoke(b"rest").kind == "ok"
          and str(platform.state()["instances"]).count("served") == 1)
    files, threads = held()
    return {"memory_mb": resident_mb(), "threads": threads, "files": files}


def soak(protocol: str, count: int, warm: int, folder: str) -> Dict[str, object]:
    """Invoke so often; return the figures after `warm` invocations and at the end."""
    settings: Dict[str, Any] = {}
    if protocol == "fc":
        settings = {"port": 0, "event_bytes": 6 * MIB}
    began = time.monotonic()
    first: Dict[str, float] = {}
    last: Dict[str, float] = {}

    def is_settled() -> bool:  # a connection that just closes is no growth
        last.update(figures(platform))
        return not grew(first, last)

    with Platform(protocol, folder, **settings, timeout_s=30) as platform:
        for number in range(1, count + 1):
            event, kind = MEAN[number // 100 % len(MEAN)] if number % 100 == 0 else (
                b"event %d" % number, "ok")
            outcome = platform.invoke(event)
            if outcome.kind != kind:
                raise SystemExit("%s: invocation %d: %s" % (protocol, number, outcome))
            if number == warm:
                first = figures(platform)
        until(is_settled, SETTLE_S)
    return {"protocol": protocol, "count": count, "first": first, "last": last,
            "seconds": round(time.monotonic() - began, 1)}


def grew(first: Dict[str, float], last: Dict[str, float]) -> bool:
    """Tell whether there is more at the end than there was."""
    return (last["threads"] > first["threads"] or last["files"] > first["files"]
            or last["memory_mb"] > first["memory_mb"] + GROWTH_MB)


def main(count: int) -> int:
    """Soak all protocols; return the exit status."""
    status = 0
    for protocol, share in (("scf", 0.4), ("fg", 0.3), ("fc", 0.3)):
        with tempfile.TemporaryDirectory() as place:
            folder = scripted_bootstrap.place(pathlib.Path(place) / "code")
            own = round(count * share)
            result = soak(protocol, own, min(WARM, own // 2), folder)
        print(json.dumps(result), flush=True)
        first, last = result["first"], result["last"]
        assert isinstance(first, dict) and isinstance(last, dict)
        status |= grew(first, last)
    return status


if __name__ == "__main__":
    sys.exit(main(int((sys.argv + ["100000"])[1])))
