# test_broken.py: each broken bootstrap and platform is caught, under its rule (MIT).
"""Run the checks of the rule that something breaks; one of them must fail.

The correct base of it passes the same checks, so what fails is the break.
"""

import concurrent.futures
import functools
from typing import Dict, List

import pytest

import broken_ones
import checks
import report
import spec

CASES = broken_ones.every()
STARTED: Dict[str, "concurrent.futures.Future[List[report.Verdict]]"] = {}


@functools.lru_cache(maxsize=None)
def by_rule() -> Dict[str, List[checks.Check]]:
    """Return every check by its rule."""
    found: Dict[str, List[checks.Check]] = {}
    for check in checks.all_checks(spec.load()):
        found.setdefault(check.rule, []).append(check)
    return found


def verdicts(case: broken_ones.Broken) -> List[report.Verdict]:
    """Run the checks of the rule on the broken one, until one of them fails."""
    seen: List[report.Verdict] = []
    checks.trust(case.implementation)
    for check in broken_ones.concerned(case, by_rule()):
        seen.append(checks.judge(check, case.implementation))
        if seen[-1].verdict == "fail":
            break
    checks.release(case.implementation)
    return seen


def begin(pool: concurrent.futures.Executor) -> None:
    """Start all of them side by side; conftest.py calls this after the collection."""
    STARTED.update((case.name, pool.submit(verdicts, case)) for case in CASES)


@pytest.mark.parametrize("case", CASES, ids=[one.name for one in CASES])
def test_caught(case: broken_ones.Broken) -> None:
    """A check of its rule fails on it, and none is in error."""
    found = STARTED[case.name].result()
    seen = [one.verdict for one in found]
    assert "fail" in seen and "error" not in seen, [
        (one.verdict, one.case, one.seen) for one in found if one.verdict != "fail"]
    if case.role == "platform":  # a change of the emulator may have passed it by
        assert "Traceback" not in found[-1].seen, "it fell over, it broke no rule"


def test_enough() -> None:
    """There are at least forty of them, of both roles and every protocol."""
    assert len(CASES) >= 40
    kinds = {(one.role, one.implementation.protocol) for one in CASES}
    assert len(kinds) == 6
