# test_platform_states.py: every call in every state of scf and fg (MIT).
"""Cases from the states tables of SPEC.md; calls.py says what is expected of each."""

import pytest

import calls
import spec
from platform_run import PlatformUnderTest

SPEC = spec.load()
SCF = list(calls.cases(SPEC, "scf"))
FG = list(calls.cases(SPEC, "fg"))


@pytest.mark.parametrize("case,rule", [(one, one.rule) for one in SCF],
                         ids=[one.name for one in SCF])
def test_scf_states(platform: PlatformUnderTest, case: calls.Case, rule: str) -> None:
    """The call is answered, and the state changes, as the table of 7.5 says."""
    calls.attempt(platform, case)


@pytest.mark.parametrize("case,rule", [(one, one.rule) for one in FG],
                         ids=[one.name for one in FG])
def test_fg_states(platform: PlatformUnderTest, case: calls.Case, rule: str) -> None:
    """The call is answered, and the state changes, as the table of 8.5 says."""
    calls.attempt(platform, case)
