# test_spec_form.py: SPEC.md has the form that it promises (MIT).
"""Lint of SPEC.md, and what the parser says about a SPEC.md that breaks the form."""

import json
import pathlib
import re
import subprocess
import sys
from typing import Dict, List, Set, Tuple

import pytest

import checks
import spec

ROOT = spec.ROOT
SUFFIXES = {".py", ".md", ".sh", ".go", ".txt", ".toml", ".yml", ".json", ""}
MADE_UP = {"test_spec_form.py", "test_kit.py"}  # they cite in vain, on purpose


def rule_ids(text: spec.Spec) -> Set[str]:
    """Return the names of all rules."""
    return {rule.id for rule in text.rules}


def repository_files() -> List[pathlib.Path]:
    """Return the text files of the repository."""
    return [path for path in sorted(ROOT.rglob("*"))
            if path.is_file() and path.suffix in SUFFIXES and path.name not in MADE_UP
            and not {".git", "__pycache__", "build", "dist"} & set(path.parts)
            and not any(part.startswith(".") and part != ".ci"
                        for part in path.relative_to(ROOT).parts)]


def test_form(the_spec: spec.Spec) -> None:
    """SPEC.md keeps its own form: ids, keywords, roles, marks, tables, fences."""
    assert [str(error) for error in spec.lint(the_spec)] == []


def test_citations(the_spec: spec.Spec) -> None:
    """Every rule id that a file cites is in SPEC.md."""
    texts = {str(path.relative_to(ROOT)): path.read_bytes() for path in repository_files()}
    unknown = {name: set(spec.cited(text.decode("utf-8", "replace"))) - rule_ids(the_spec)
               for name, text in texts.items() if b"\0" not in text}  # else a binary
    assert {name: ids for name, ids in unknown.items() if ids} == {}


def signatures() -> List[Tuple[str, Set[str]]]:
    """Return name and arguments of each test."""
    texts = [path.read_text(encoding="utf-8")
             for path in (ROOT / "spec_tests").glob("*/test_*.py")]
    found = re.findall(r"(?ms)^ *def (test_\w+)\((.*?)\) ->", "\n".join(texts))
    return [(name, set(re.findall(r"(\w+):", arguments))) for name, arguments in found]


def test_test_names(the_spec: spec.Spec) -> None:
    """A test whose name begins with a protocol is named for a rule of SPEC.md; what takes
    an argument of the kit is named for a protocol, else it never runs."""
    rules = checks.rule_names(the_spec)
    named = [name for name, arguments in signatures()
             if "rule" not in arguments and name.split("_")[1] in spec.PROTOCOLS]
    assert [name for name in named if not checks.find_rule(rules, name, {})] == []
    checked = [name for name, arguments in signatures()
               if arguments & set(checks.FIXTURES)]
    assert [name for name in checked if name.split("_")[1] not in spec.PROTOCOLS] == []


def arrows(table: spec.Table) -> List[Tuple[str, str, str]]:
    """Return the arrows that a states table has in its diagram."""
    drawn = []
    for row in table.records():
        stays = row["state"] == row["next state"]
        if row["action"] not in ("ignore", "refuse") \
                and not (row["action"] == "hold" and stays):
            drawn.append((row["state"], row["next state"], row["call"]))
    return drawn


@pytest.mark.parametrize("protocol", ["fc", "scf", "fg", "fcc"])
def test_diagrams(the_spec: spec.Spec, protocol: str) -> None:
    """The states diagram shows the rows of the states table, in their order."""
    table = the_spec.table(protocol, "state", "call", "action", "next state", "rule")
    diagram = [one for one in the_spec.diagrams if one.section == table.section]
    edges = [(state.replace("_", "-"), after.replace("_", "-"), call)
             for state, after, call in diagram[0].edges if state != "[*]"]
    assert edges == arrows(table)


def test_json() -> None:
    """--json prints every rule, table and transcript."""
    program = str(ROOT / "spec_tests" / "kit" / "spec.py")
    done = subprocess.run([sys.executable, program, "--json"],
                          stdout=subprocess.PIPE, check=True)
    data = json.loads(done.stdout)
    assert len(data["rules"]) > 100 and data["tables"] and data["transcripts"]


GOOD = """# T
## 7 Tencent SCF: `scf`
- **scf.one.rule** The platform MUST do
  one thing. [D:key]

| state | call |
| --- | --- |
| a | b |

```transcript
outcome: ok
---
B> GET /x
  Name: value
  | body
```
## A Sources
| key | source |
| --- | --- |
| key | a page |
"""
BROKEN: Dict[str, Tuple[str, str, int, str]] = {
    "no-keyword": ("MUST do", "does", 3, "0 keywords"),
    "two-keywords": ("one thing", "MUST be one", 3, "2 keywords"),
    "no-role": ("The platform", "A platform", 3, "does not begin with"),
    "unknown-role": ("The platform", "The weather", 3, "does not begin with"),
    "no-mark": ("[D:key]", "", 3, "no mark"),
    "bad-mark": ("D:key]", "X:key]", 3, "no mark"),
    "mark-in-vain": ("[D:key]", "[D:other]", 3, "D:other does not resolve"),
    "question-in-vain": ("[D:key]", "[C:Q7]", 3, "C:Q7 does not resolve"),
    "bad-id": ("scf.one.rule", "SCF.One", 3, "ids are lower case"),
    "ragged-table": ("| a | b |", "| a | b | c |", 8, "3 cells, 2 columns"),
    "open-fence": ("  | body\n```", "  | body", 10, "never closed"),
    "no-outcome": ("outcome: ok\n", "", 10, "without `outcome:`"),
    "unknown-key": ("outcome: ok", "outcomes: ok", 11, "'outcomes' is none of"),
    "no-line": ("---\nB>", "B>", 12, "is none of"),
    "not-a-message": ("B> GET /x", "GET /x", 13, "not a message"),
}


def test_form_good() -> None:
    """The text that the next test breaks has the form."""
    assert spec.lint(spec.parse(GOOD)) == []


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_form_broken(name: str) -> None:
    """A breach of the form is named with its line and the reason."""
    old, new, line, reason = BROKEN[name]
    assert old in GOOD
    errors = spec.lint(spec.parse(GOOD.replace(old, new)))
    assert [error for error in errors if error.line == line and reason in error.reason]


def test_form_twice() -> None:
    """A rule that is there twice is named with both lines."""
    rule = "- **scf.one.rule** The platform MUST do it. [D:key]\n"
    errors = spec.lint(spec.parse(GOOD.replace("## A Sources", rule + "## A Sources")))
    assert [str(error) for error in errors] == [
        "SPEC.md:17: scf.one.rule is also in line 3"]
