#!/usr/bin/env python3
# tables.py: writes coverage.txt and kills.txt (MIT).
"""Write the two generated tables of the kit.

    python3 spec_tests/tools/tables.py            # coverage.txt, in seconds
    python3 spec_tests/tools/tables.py --kills    # kills.txt, in some minutes

coverage.txt names the rules that no check judges and says why: of those `not judged`
only our own tests know. It is made from the names of all tests. kills.txt says of each
broken implementation which checks of the rule that it breaks fail on it.
"""

import concurrent.futures
import pathlib
import re
import subprocess
import sys
from typing import Iterable, List, Sequence, Set

TESTS = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))

import rooms  # noqa: E402, F401

import broken_ones  # noqa: E402
import checks  # noqa: E402
import kit  # noqa: E402
import spec  # noqa: E402

COVERAGE = TESTS / "coverage.txt"
SIDE_BY_SIDE = 16

# ---- coverage ----


def tested_rules(text: spec.Spec, names: Iterable[str]) -> Set[str]:
    """Return the rules that test names name: the function, or an id in its brackets."""
    by_name = checks.rule_names(text)
    ids = sorted((rule.id for rule in text.rules), key=len, reverse=True)
    anywhere = re.compile("|".join(re.escape(one) for one in ids))
    found: Set[str] = set()
    for name in names:
        function, _, params = name.rpartition("::")[2].partition("[")
        rule = checks.find_rule(by_name, function, {})
        if rule is not None:
            found.add(rule.id)
        found.update(anywhere.findall(params))
    return found


def coverage(text: spec.Spec, names: Sequence[str]) -> str:
    """Return coverage.txt: each rule that no check judges, its level, role, and why."""
    judging = ["/%s/%s::" % path.parts[-2:] for path in checks.FILES]
    judged = tested_rules(text, [name for name in names if any(
        place in "/" + name for place in judging)])
    tested = tested_rules(text, names)
    lines = []
    for rule in text.rules:
        state = "excluded" if rule.id in text.exclusions else \
            "no test" if rule.role in ("handler", "caller") else \
            "not judged" if rule.id in tested else "untested"
        is_done = rule.id in (tested if rule.role == "gateway" else judged)
        if not is_done:
            lines.append(f"{rule.id:32} {rule.level:10} {rule.role:9} {state}")
    return "\n".join(lines) + "\n"


def collect() -> List[str]:
    """Return the names of all tests, from pytest itself."""
    done = subprocess.run([sys.executable, "-m", "pytest", str(TESTS), "--collect-only",
                           "-q", "-o", "addopts="], stdout=subprocess.PIPE, text=True,
                          cwd=TESTS.parent)
    return [line for line in done.stdout.splitlines() if "::" in line]


# ---- kills ----


def kill_line(case: broken_ones.Broken) -> str:
    """Return a line of kills.txt: what is broken, its rule, and the checks of the rule
    that fail. They fail twice: what a busy machine may do to a check does not count."""
    failed: List[str] = []
    checks.trust(case.implementation)  # else the probe alone would catch many
    for check in broken_ones.concerned(case):
        if check.name not in failed and all(
                checks.judge(check, case.implementation).verdict == "fail"
                for _ in range(2)):
            failed.append(check.name)
    checks.release(case.implementation)
    return " ".join((f"{case.role:9} {case.implementation.protocol:3} {case.name:28}",
                     case.rule, "|", *sorted(failed))) + "\n"


def kills() -> str:
    """Return kills.txt."""
    with concurrent.futures.ThreadPoolExecutor(SIDE_BY_SIDE) as pool:
        return "".join(pool.map(kill_line, broken_ones.every()))


# ---- command line ----


def main(argv: Sequence[str]) -> int:
    """Write the tables; exit status 2 for an option that there is not."""
    if any(word != "--kills" for word in argv):
        print(__doc__, file=sys.stderr)
        return 2
    COVERAGE.write_text(coverage(spec.load(), collect()), encoding="utf-8")
    if "--kills" in argv:
        try:
            broken_ones.KILLS.write_text(kills(), encoding="utf-8")
        finally:
            kit.stop_idle_runs()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
