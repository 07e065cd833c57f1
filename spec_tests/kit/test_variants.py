# test_variants.py: what is unusual and breaks no rule is not failed (MIT).
"""Run one case of each check on every bootstrap of broken/variants.py, and on every
platform with the traits of UNUSUAL in broken/edited_platforms.py."""

import concurrent.futures
import dataclasses
import functools
from typing import Dict, List

import pytest

import broken_ones
import checks
import kit
import report
import spec
from broken import edited_platforms, variants

STARTED: Dict[str, List["concurrent.futures.Future[report.Verdict]"]] = {}


@functools.lru_cache(maxsize=None)
def few(role: str) -> List[checks.Check]:
    """Return the first case of each check of a role that does not mostly wait; the last
    ones are often the largest."""
    return list({one.function: one for one in reversed(checks.all_checks(spec.load()))
                 if checks.FIXTURES[one.fixture][0] == role
                 and not hasattr(one.function, "waits")}.values())


PLATFORMS = {"+".join(one[0] for one in edited_platforms.UNUSUAL if one[1] == protocol):
             protocol for protocol in kit.PROTOCOLS}  # all traits in one


def implementation(name: str) -> kit.Implementation:
    """Return the variant with its gaps declared."""
    if name in PLATFORMS:
        return dataclasses.replace(broken_ones.start(
            name, "platform", PLATFORMS[name]), patience_s=10.0)
    protocol, without, _ = variants.VARIANTS[name]
    return broken_ones.variant(name, protocol, without)


def begin(pool: concurrent.futures.Executor, _: concurrent.futures.Executor) -> None:
    """Start all checks side by side; conftest.py calls this after the collection."""
    for name in (*variants.VARIANTS, *PLATFORMS):
        one = implementation(name)
        STARTED[name] = [pool.submit(checks.judge, check, one) for check in few(
            "platform" if name in PLATFORMS else "bootstrap")
            if one.protocol in check.protocols]


@pytest.mark.parametrize("name", (*variants.VARIANTS, *PLATFORMS))
def test_not_failed(name: str) -> None:
    """No check fails on the variant."""
    seen = [future.result() for future in STARTED[name]]
    checks.release(implementation(name))
    assert len(seen) > 40
    assert [report.plain(one) for one in seen
            if one.verdict not in ("pass", "unsupported")] == []
