# test_broken.py: each broken bootstrap and platform is caught, under its rule (MIT).
"""Run the checks of the rule that something breaks; one of them must fail.

The correct base of it passes the same checks, so what fails is the break.
"""

import concurrent.futures
from typing import Dict, List

import pytest

import broken_ones
import checks
import report

CASES = broken_ones.every()
WAITING = concurrent.futures.ThreadPoolExecutor(8)
STARTED: Dict[str, "concurrent.futures.Future[List[report.Verdict]]"] = {}


def verdicts(case: broken_ones.Broken) -> List[report.Verdict]:
    """Run the checks of the rule on the broken one, until one of them fails; those that
    mostly wait come last, side by side."""
    seen: List[report.Verdict] = []
    checks.trust(case.implementation)
    concerned = broken_ones.concerned(case)
    waiting = [check for check in concerned if hasattr(check.function, "waits")]
    for check in concerned:
        if check not in waiting and "fail" not in {one.verdict for one in seen}:
            seen.append(checks.judge(check, case.implementation))
    if "fail" not in {one.verdict for one in seen}:
        seen += WAITING.map(lambda check: checks.judge(check, case.implementation), waiting)
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
        failed = found[seen.index("fail")]
        assert "Traceback" not in failed.seen, "it fell over, it broke no rule"


def test_enough() -> None:
    """There are at least forty of them, of both roles and every protocol."""
    assert len(CASES) >= 40
    kinds = {(one.role, one.implementation.protocol) for one in CASES}
    assert len(kinds) == 6
