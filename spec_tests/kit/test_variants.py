# test_variants.py: what is unusual and breaks no rule is not failed (MIT).
"""Run one case of each check on every bootstrap of broken/variants.py."""

import concurrent.futures
import functools
from typing import Dict, List

import pytest

import broken_ones
import checks
import kit
import report
import spec
from broken import variants

STARTED: Dict[str, List["concurrent.futures.Future[report.Verdict]"]] = {}


@functools.lru_cache(maxsize=None)
def few() -> List[checks.Check]:
    """Return the last case of each check of a bootstrap."""
    every = [one for one in checks.all_checks(spec.load())
             if checks.FIXTURES[one.fixture][0] == "bootstrap"]
    return list({(one.function, one.rule): one for one in every}.values())


def implementation(name: str) -> kit.Implementation:
    """Return the variant with its gaps declared."""
    protocol, without, _ = variants.VARIANTS[name]
    return broken_ones.variant(name, protocol, without)


def begin(pool: concurrent.futures.Executor) -> None:
    """Start all checks side by side; conftest.py calls this after the collection."""
    for name in variants.VARIANTS:
        one = implementation(name)
        STARTED[name] = [pool.submit(checks.judge, check, one) for check in few()
                         if one.protocol in check.protocols]


@pytest.mark.parametrize("name", variants.VARIANTS)
def test_not_failed(name: str) -> None:
    """No check fails on the variant."""
    seen = [future.result() for future in STARTED[name]]
    checks.release(implementation(name))
    assert len(seen) > 40
    assert [report.plain(one) for one in seen
            if one.verdict not in ("pass", "unsupported")] == []
