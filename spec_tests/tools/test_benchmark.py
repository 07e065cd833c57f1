"""The benchmark runs and says what it measured; never how fast anything is."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import benchmark


def test_benchmark_rows_have_goals() -> None:
    """Every goal belongs to a row that is measured, and every row has a goal."""
    assert {goal.row for goal in benchmark.GOALS} == set(benchmark.ROWS)


def test_benchmark_interleave() -> None:
    """Each round begins with another side."""
    ticks = itertools.count()
    taken = benchmark.interleave(2, {
        "a": lambda: {"tick": next(ticks)}, "b": lambda: {"tick": next(ticks)}})
    assert taken == {"a": [{"tick": 0}, {"tick": 3}], "b": [{"tick": 1}, {"tick": 2}]}


def test_benchmark_json() -> None:
    """The cheapest row runs and prints JSON with a value and a verdict per line."""
    done = subprocess.run(
        [sys.executable, benchmark.__file__, "--quick", "--rounds", "1", "--only",
         "storm", "--json"], stdout=subprocess.PIPE, check=True, timeout=60)
    report = json.loads(done.stdout)
    assert [line["key"] for line in report["lines"]] == ["seconds", "errors"]
    assert all(line["columns"]["ours"]["verdict"] for line in report["lines"])
