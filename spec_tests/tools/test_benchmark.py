"""The benchmark runs and says what it measured; never how fast anything is."""

from __future__ import annotations

import itertools
import json
import pathlib
import subprocess
import sys

import pytest

import benchmark

SCRIPT = pathlib.Path(benchmark.__file__)


def test_benchmark_rows_have_goals() -> None:
    """Every goal belongs to a row that is measured, and every row has a goal."""
    assert {goal.row for goal in benchmark.GOALS} == set(benchmark.ROWS)


@pytest.mark.parametrize("value, expected", [
    (0.5, "ambition"), (1.5, "must"), (2.5, "MISSED")])
def test_benchmark_verdict(value: float, expected: str) -> None:
    """A value is judged by the better of the two bounds that it meets."""
    goal = benchmark.Goal("row", "key", "what", "ms", "<=", 2, 1)
    assert benchmark.verdict(goal, value) == expected


def test_benchmark_interleave() -> None:
    """Each round begins with another side."""
    ticks = itertools.count()
    taken = benchmark.interleave(2, {
        "a": lambda: {"tick": next(ticks)}, "b": lambda: {"tick": next(ticks)}})
    assert taken == {"a": [{"tick": 0}, {"tick": 3}], "b": [{"tick": 1}, {"tick": 2}]}


def test_benchmark_json() -> None:
    """One cheap row runs and prints JSON with a value and a verdict per line."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--quick", "--rounds", "1", "--only",
         "first-poll", "--json"], stdout=subprocess.PIPE, check=True, timeout=60)
    lines = json.loads(done.stdout)["lines"]
    assert [line["row"] for line in lines] == ["first-poll"]
    assert all(line["columns"]["measured"]["value"] > 0 for line in lines)
