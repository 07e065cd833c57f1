# test_platform_faults.py: processes that fail under a platform (MIT).
"""Each fault at each point of an instance's life; faults.py has the tables."""

import pytest

import faults
from platform_run import PlatformUnderTest

SCF = list(faults.cases("scf"))
FG = list(faults.cases("fg"))


@pytest.mark.parametrize("case,rule", [(one, one.rule) for one in SCF],
                         ids=[one.name for one in SCF])
def test_scf_faults(platform: PlatformUnderTest, case: faults.Fault, rule: str) -> None:
    """One outcome of the right kind, and the next event succeeds."""
    faults.attempt(platform, case)


@pytest.mark.parametrize("case,rule", [(one, one.rule) for one in FG],
                         ids=[one.name for one in FG])
def test_fg_faults(platform: PlatformUnderTest, case: faults.Fault, rule: str) -> None:
    """One outcome of the right kind, and the next event succeeds."""
    faults.attempt(platform, case)
