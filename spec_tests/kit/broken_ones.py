# broken_ones.py: the table of what breaks which rule (MIT).
"""Name every broken bootstrap and platform, its rule, and the checks for it."""

import functools
import pathlib
from typing import Dict, List, NamedTuple, Sequence, Set, Tuple

import checks
import kit
import spec
from broken import bootstraps, platforms
from implementations import GAPS, start_words

TESTS = pathlib.Path(__file__).resolve().parent.parent
KILLS = TESTS / "kills.txt"
HOSTILE = ("any.http.malformed", "any.http.framing")  # rules of that feature
PATIENCE_S = 2.0  # what waits longer for a broken one has caught it


class Broken(NamedTuple):
    """One broken implementation and the rule that it breaks."""

    name: str
    role: str
    rule: str
    implementation: kit.Implementation


def start(name: str, role: str, protocol: str, rule: str = "") -> kit.Implementation:
    """Return how the broken one, or the correct one, of that name is started. A broken
    platform lacks what the small ones lack, unless that is what is broken."""
    program = TESTS / "broken" / f"{role}s.py"
    command = (*start_words(program), name)
    is_small = role == "platform" and name not in platforms.IN_THE_TOOL
    lacks = GAPS.get(("small", protocol), ()) if is_small else ()
    without = tuple(one for one in lacks if one != "hostile" or rule not in HOSTILE)
    return kit.Implementation(name, protocol, command, str(program.parent), without, (),
                              PATIENCE_S)


def variant(name: str, protocol: str, without: Tuple[str, ...]) -> kit.Implementation:
    """Return the unusual bootstrap of that name."""
    program = TESTS / "broken" / "variants.py"
    return kit.Implementation(name, protocol, (*start_words(program), name),
                              str(program.parent), without)


def correct(protocol: str) -> kit.Implementation:
    """Return the correct bootstrap that the broken ones are made of."""
    return start(protocol.capitalize(), "bootstrap", protocol)


def every() -> List[Broken]:
    """Return all of them, in the order of the tables."""
    roles = [("bootstrap", {name: entry[:2] for name, entry in
                            bootstraps.BROKEN.items()}),
             ("platform", {name: entry[:2] for name, entry in
                           platforms.BROKEN.items()})]
    return [Broken(name, role, rule, start(name, role, protocol, rule))
            for role, table in roles for name, (protocol, rule) in table.items()]


@functools.lru_cache(maxsize=None)
def by_rule() -> Dict[str, List[checks.Check]]:
    """Return every check by its rule."""
    found: Dict[str, List[checks.Check]] = {}
    for check in checks.all_checks(spec.load()):
        found.setdefault(check.rule, []).append(check)
    return found


def concerned(case: Broken) -> Sequence[checks.Check]:
    """Return the checks of its rule that are for its role and protocol.

    Generated checks stand next to those that are most like them; every thirteenth comes
    first, so that what catches it is found soon.
    """
    found = [check for check in by_rule().get(case.rule, ())
             if checks.FIXTURES[check.fixture][0] == case.role
             and case.implementation.protocol in check.protocols]
    return [check for first in range(13) for check in found[first::13]]


def cover() -> List[Tuple[Broken, Set[str]]]:
    """Return few of them on which every check of kills.txt fails, each with the checks
    that no earlier one is for: always what most checks catch, the first of several."""
    lines = [line.partition("|") for line in KILLS.read_text(encoding="utf-8").splitlines()]
    caught = {left.split()[2]: set(right.split()) for left, _, right in lines}
    every_one = {one.name: one for one in every() if one.name in caught}
    missing = {check for name in every_one for check in caught[name]}
    found: List[Tuple[Broken, Set[str]]] = []
    while missing:
        best = max(every_one, key=lambda name: len(caught[name] & missing))
        found.append((every_one[best], caught[best] & missing))
        missing -= caught[best]
    return found
