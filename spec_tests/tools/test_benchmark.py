"""The benchmark runs and says what it measured; never how fast anything is."""

from __future__ import annotations

import json
import subprocess
import sys

import benchmark


def test_benchmark_interleave() -> None:
    """Each round begins with another side."""
    ticks = iter(range(4))
    taken = benchmark.interleave(2, {
        side: lambda: {"tick": next(ticks)} for side in "ab"})
    assert taken == {"a": [{"tick": 0}, {"tick": 3}], "b": [{"tick": 1}, {"tick": 2}]}


def test_benchmark_json() -> None:
    """A row that is right on a busy machine, too, runs and prints JSON with a verdict."""
    done = subprocess.run(
        [sys.executable, benchmark.__file__, "--rounds", "1", "--only", "ready-early",
         "--json"], stdout=subprocess.PIPE, check=True, timeout=60)
    lines = json.loads(done.stdout)["lines"]
    assert [line["quantity"] for line in lines] == ["found"]
    assert all(line["sides"]["ours"]["verdict"] for line in lines)
