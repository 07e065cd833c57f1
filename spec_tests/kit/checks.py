# checks.py: the checks as plain functions, and how one of them is judged (MIT).
"""Find every check and its cases; run one on one implementation and give the verdict.

conftest.py lets pytest do the finding; test_broken.py and tables.py need the checks of
one rule without a pytest session of their own.
"""

import importlib
import itertools
import pathlib
import time
import traceback
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Tuple, Union

import kit
import platform_run
import report
import spec
import wire

TESTS = pathlib.Path(__file__).resolve().parent.parent
# Where the checks are: these files judge a stranger's work, all others only ours.
FILES = (*sorted((TESTS / "bootstrap").glob("test_*.py")),
         *sorted((TESTS / "platform").glob("test_*.py")),
         TESTS / "spec" / "test_transcripts.py")

MOST_CHARACTERS = 10_000  # of what a failure says, wherever that is shown

# Argument of a check -> role of what is under test, and its protocols.
FIXTURES: Dict[str, Tuple[str, Tuple[str, ...]]] = {
    "bootstrap": ("bootstrap", kit.PROTOCOLS), "puller": ("bootstrap", ("scf", "fg")),
    "pusher": ("bootstrap", ("fc",)), "platform": ("platform", kit.PROTOCOLS),
    "pull_platform": ("platform", ("scf", "fg")),
    "push_platform": ("platform", ("fc",)),
}


class Check(NamedTuple):
    """One case of one check function."""

    rule: str
    fixture: str
    function: Callable[..., None]
    params: Dict[str, Any]
    name: str

    @property
    def protocols(self) -> Tuple[str, ...]:
        """Return the protocols on which it is run."""
        return protocols_of(self.function.__name__, self.fixture)


def protocols_of(function_name: str, fixture: str) -> Tuple[str, ...]:
    """Return the protocols that a check with that name and argument concerns; after a
    common rule `__scf` leaves that one alone."""
    rule, _, case = function_name.partition("__")
    first, only = rule.split("_")[1], case.split("_")[0]
    return tuple(one for one in FIXTURES[fixture][1] if first in ("any", one)
                 and (only == one or only not in kit.PROTOCOLS))


def rule_names(text: spec.Spec) -> Dict[str, spec.Rule]:
    """Return the rules by their names as parts of a test name."""
    return {rule.id.replace(".", "_").replace("-", "_"): rule for rule in text.rules}


def find_rule(rules: Dict[str, spec.Rule], function_name: str,
              params: Dict[str, Any]) -> Union[spec.Rule, None]:
    """Return the rule that a check is named for; generated ones say it."""
    words = str(params.get("rule", "")).replace(".", "_").replace("-", "_").split("_")
    if words == [""]:
        words = function_name[5:].split("_")
    for count in range(len(words), 1, -1):  # what follows the rule tells the case
        rule = rules.get("_".join(words[:count]))
        if rule is not None:
            return rule
    return None


# ---- finding ----


def all_checks(text: spec.Spec) -> List[Check]:
    """Return every case of every check of the test modules."""
    found: List[Check] = []
    rules = rule_names(text)
    for path in FILES:
        module = importlib.import_module(path.stem)
        for name, function in sorted(vars(module).items()):
            code = getattr(function, "__code__", None)
            fixtures = code and set(code.co_varnames[:code.co_argcount]) & set(FIXTURES)
            if name.startswith("test_") and fixtures:
                found += cases_of(rules, name, fixtures.pop(), function)
    return found


def cases_of(rules: Dict[str, spec.Rule], name: str, fixture: str,
             function: Callable[..., None]) -> Iterator[Check]:
    """Yield one check for each combination of the function's parameters."""
    axes: List[List[Dict[str, Any]]] = []
    for mark in getattr(function, "pytestmark", ()):
        if mark.name == "parametrize":
            words = [word.strip() for word in mark.args[0].split(",")]
            axes.append([dict(zip(words, value if len(words) > 1 else (value,)))
                         for value in mark.args[1]])
    for combination in itertools.product(*axes):
        params = {key: value for one in combination for key, value in one.items()}
        rule = find_rule(rules, name, params)
        yield Check(rule.id if rule else name, fixture, function, params, name)


# ---- judging ----


def trust(implementation: kit.Implementation) -> None:
    """Ask no made-up word and try no round trip before the checks."""
    kit.PROBES[implementation] = "", ""


def release(implementation: kit.Implementation) -> None:
    """Stop what is kept running for another check of this implementation."""
    kit.stop_idle_runs(implementation)


def judge(check: Check, implementation: kit.Implementation, line: int = 0,
          text: str = "") -> report.Verdict:
    """Run one check on one implementation and return the verdict; raises nothing."""
    role = FIXTURES[check.fixture][0]
    subject = {"platform": platform_run.PlatformUnderTest,
               "bootstrap": kit.Bootstrap}[role](implementation)
    began = time.monotonic()
    verdict = report.Verdict(check.rule, line, check.name, role,
                             implementation.protocol, implementation.name, text=text)
    try:
        subject.probe(check.rule)
        subject.attempt(check.function, **{**check.params, check.fixture: subject})
    except kit.Unsupported as gap:
        verdict = verdict._replace(verdict="unsupported", seen=str(gap))
    except kit.Mismatch as broken:
        verdict = verdict._replace(verdict="fail", expected=broken.expected,
                                   seen=broken.seen,
                                   tried=not isinstance(broken, kit.NotUsable))
    except wire.WireError as broken:
        verdict = verdict._replace(verdict="fail", expected="HTTP as the rule has it",
                                   seen=broken.told())
    except Exception:  # a fault of the kit itself
        verdict = verdict._replace(verdict="error", seen=traceback.format_exc())
    finally:
        subject.close()
    if verdict.verdict in ("fail", "error"):
        verdict = verdict._replace(
            frames=tuple(subject.frames), seen=report.cut(verdict.seen, MOST_CHARACTERS),
            expected=report.cut(verdict.expected, MOST_CHARACTERS))
    return verdict._replace(took_s=round(time.monotonic() - began, 3))
