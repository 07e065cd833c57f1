# test_copies.py: each file of reference/ works alone, on every Python found (MIT).
"""Copy one file into an empty folder, under another name, and run it there.

Interpreters are looked for, not listed: implementations.py says where.
"""

import os
import pathlib
import re
import subprocess
import sys
from typing import Any, Dict, List

import misbehave
import pytest
from emulator import Platform
from gateways import Container, profile
from harness import within
from implementations import Version, interpreters

REFERENCE = pathlib.Path(__file__).resolve().parents[2] / "reference"
FLOORS = {protocol + "_bootstrap.py": (3, 6) for protocol in ("scf", "fg", "fc")}
# of the others: 3.8
OTHERS_FLOOR = (3, 8)
HANDLER = "def handler(event, context):\n    return {'got': event}\n"


def cases(*names: str) -> List[Any]:
    """Return each of the files with each interpreter that it promises to run on."""
    return [pytest.param(name, version, id="%s-%s" % (
        name, ".".join(map(str, version))))
            for name in names for version in interpreters()
            if version >= FLOORS.get(name, OTHERS_FLOOR)]


def copy(name: str, folder: pathlib.Path, new_name: str, version: Version) -> str:
    """Copy a file into a folder with an interpreter in its first line; return it."""
    folder.mkdir(exist_ok=True)
    target = folder / new_name
    source = (REFERENCE / name).read_text(encoding="utf-8")
    assert source.startswith("#!/usr/bin/env python3\n")
    target.write_text("#!%s -I\n%s" % (interpreters()[version], source), encoding="utf-8")
    target.chmod(0o755)
    return str(target)


def run(*command: str) -> str:
    """Return what a command prints; it has to succeed, with a bare environment."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          timeout=60, env={"PATH": os.defpath, "LANG": "C"}, cwd="/")
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_current_interpreter_is_among_them() -> None:
    """Whatever else is found, the interpreter of the tests is tried."""
    assert sys.version_info[:2] in interpreters()


@pytest.mark.parametrize("name", sorted(path.name for path in REFERENCE.glob("*.py")))
def test_imports_nothing_of_ours(name: str) -> None:
    """No file of reference/ imports another one."""
    source = (REFERENCE / name).read_text(encoding="utf-8")
    ours = "|".join(path.stem for path in REFERENCE.glob("*.py"))
    assert not re.search(r"^\s*(import|from) (%s|custom_runtime)\b" % ours, source, re.M)


@pytest.mark.parametrize("name", ["emulator.py", "gateway.py"])  # who have options
def test_version_of_a_copy(name: str, tmp_path: pathlib.Path) -> None:
    """Copied alone as `bootstrap`, the file tells its version and leaves nothing."""
    oldest = min(version for version in interpreters() if version >= OTHERS_FLOOR)
    program = copy(name, tmp_path / "alone", "bootstrap", oldest)
    assert re.search(r"\d+\.\d+\.\d+", run(program, "--version"))
    assert [path.name for path in (tmp_path / "alone").iterdir()] == ["bootstrap"]


@pytest.mark.parametrize("name,version", cases("emulator.py"))
def test_round_trip_of_an_emulator_copy(name: str, version: Version,
                                        tmp_path: pathlib.Path) -> None:
    """A copy of the emulator runs a bootstrap, on every interpreter."""
    program = copy(name, tmp_path / "alone", "x.py", version)
    code = misbehave.place(tmp_path / "code")
    assert run(program, "scf", code, "--event", "hello") == "hello\n"


@pytest.mark.parametrize("name,version", cases("gateway.py"))
def test_fcc_end_nothing__floor(name: str, version: Version,
                                tmp_path: pathlib.Path) -> None:
    """A copy of the gateway runs a worker, on every interpreter."""
    program = copy(name, tmp_path / "alone", "x.py", version)
    with Container([profile()], python=interpreters()[version],
                   program=program) as container:
        assert container.invoke(b"hi").body == b"hi"
        assert container.ask("PUT", "/-/profiles", b"[]").status == 200


@pytest.mark.parametrize("name,version", cases(*FLOORS))
def test_round_trip_of_a_bootstrap_copy(name: str, version: Version,
                                        tmp_path: pathlib.Path) -> None:
    """A copy of a bootstrap beside a handler serves its platform."""
    protocol = name.partition("_")[0]
    copy(name, tmp_path, "bootstrap", version)
    (tmp_path / "mine.py").write_text(HANDLER)
    settings: Dict[str, Any] = {"port": 0} if protocol == "fc" else {}
    with Platform(protocol, str(tmp_path), handler="mine.handler", timeout_s=20,
                  **settings) as platform:
        outcome = within(60, lambda: platform.invoke(b'{"a":[1]}'))
    assert outcome.body == b'{"got":{"a":[1]}}', (outcome.message, outcome.log)
