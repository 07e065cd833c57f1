# test_platform_generated.py: each call in each state, each fault at each point (MIT).
"""Cases from the states tables of SPEC.md (scf, fg) and from the faults of a process; calls.py and faults.py say what is expected of each."""

from typing import Any, List

import pytest

import calls
import faults
import spec
from platform_run import PlatformUnderTest


def each(cases: List[Any]) -> pytest.MarkDecorator:
    """Run a check over these cases, each under its rule."""
    return pytest.mark.parametrize("case,rule", [(one, one.rule) for one in cases],
                                   ids=[one.name for one in cases])


@each(list(calls.cases(spec.load(), "scf")))
def test_scf_states(platform: PlatformUnderTest, case: calls.Case, rule: str) -> None:
    """The call is answered, and the state changes, as the table of 7.5 says."""
    calls.attempt(platform, case)


@each(list(calls.cases(spec.load(), "fg")))
def test_fg_states(platform: PlatformUnderTest, case: calls.Case, rule: str) -> None:
    """The call is answered, and the state changes, as the table of 8.5 says."""
    calls.attempt(platform, case)


@each(list(faults.cases("scf")))
def test_scf_faults(platform: PlatformUnderTest, case: faults.Fault, rule: str) -> None:
    """One outcome of the right kind, and the next event succeeds."""
    faults.attempt(platform, case)


@each(list(faults.cases("fg")))
def test_fg_faults(platform: PlatformUnderTest, case: faults.Fault, rule: str) -> None:
    """One outcome of the right kind, and the next event succeeds."""
    faults.attempt(platform, case)


@each(list(faults.cases("fc")))
def test_fc_faults(platform: PlatformUnderTest, case: faults.Fault, rule: str) -> None:
    """One outcome of the right kind, and the next event succeeds."""
    faults.attempt(platform, case)
