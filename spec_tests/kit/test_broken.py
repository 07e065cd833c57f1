# test_broken.py: each check has failed on something broken (MIT).
"""Each check that kills.txt names fails on one broken bootstrap or platform at least.

Few of the broken ones suffice for that: see `cover` in broken_ones.py. All of them are
run by `python3 spec_tests/tools/tables.py --kills`, which writes kills.txt anew. The
correct base of each passes the same checks, so what fails is the break.
"""

import concurrent.futures
from typing import Dict, List, Tuple

import pytest

import broken_ones
import checks
import report

COVER = broken_ones.cover()
PAIRS = [(case, name) for case, names in COVER for name in sorted(names)]
Future = concurrent.futures.Future
STARTED: Dict[Tuple[str, str], "Future[List[report.Verdict]]"] = {}


def verdicts(case: broken_ones.Broken, cases: List[checks.Check]) -> List[report.Verdict]:
    """Run the cases of a check on the broken one, until one of them fails."""
    seen: List[report.Verdict] = []
    for check in cases:
        if "fail" not in {one.verdict for one in seen}:
            seen.append(checks.judge(check, case.implementation))
    checks.release(case.implementation)
    return seen


def begin(pool: concurrent.futures.Executor, waiting: concurrent.futures.Executor) -> None:
    """Start all of them side by side; conftest.py calls this after the collection."""
    for case, name in PAIRS:
        checks.trust(case.implementation)
        cases = [one for one in broken_ones.concerned(case) if one.name == name]
        is_long = any(hasattr(one.function, "waits") for one in cases)
        STARTED[case.name, name] = (waiting if is_long else pool).submit(
            verdicts, case, cases)


@pytest.mark.parametrize("case,name", PAIRS, ids=[
    f"{case.name}-{name}" for case, name in PAIRS])
def test_caught(case: broken_ones.Broken, name: str) -> None:
    """The check fails on it, and is not in error."""
    found = STARTED[case.name, name].result()
    seen = [one.verdict for one in found]
    assert "fail" in seen and "error" not in seen, [
        (one.verdict, one.case, one.seen) for one in found if one.verdict != "fail"]
    if case.role == "platform":  # a change of the emulator may have passed it by
        failed = found[seen.index("fail")]
        assert "Traceback" not in failed.seen, "it fell over, it broke no rule"


def test_enough() -> None:
    """The cover has at least forty, of both roles and every protocol."""
    assert len(COVER) >= 40
    kinds = {(one.role, one.implementation.protocol) for one, _ in COVER}
    assert len(kinds) == 6
