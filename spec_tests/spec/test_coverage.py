# test_coverage.py: the generated tables are those of this state of things (MIT).
"""coverage.txt and kills.txt: not stale, and without holes."""

from typing import List

import broken_ones
import spec
import tables

STALE = "stale: run python3 spec_tests/tools/tables.py"


def test_coverage(the_spec: spec.Spec, collected: List[str]) -> None:
    """coverage.txt is what the tests of this run give."""
    written = tables.COVERAGE.read_text(encoding="utf-8")
    assert written == tables.coverage(the_spec, collected), STALE


def test_every_must(the_spec: spec.Spec, collected: List[str]) -> None:
    """Every MUST has a test, or a reason in Appendix C why not."""
    lines = tables.coverage(the_spec, collected).splitlines()
    assert [line for line in lines if " MUST" in line and "untested" in line] == []


def test_kills() -> None:
    """kills.txt has each broken implementation, caught by a check of its rule."""
    lines = broken_ones.KILLS.read_text(encoding="utf-8").splitlines()
    written = [line.split("|")[0].split() for line in lines]
    wanted = [[one.role, one.implementation.protocol, one.name, one.rule]
              for one in broken_ones.every()]
    assert written == wanted, STALE + " --kills"
    assert [line for line in lines if line.endswith("|")] == []
