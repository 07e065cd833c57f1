# test_copies.py: what is said to stand alone does, on every Python found (MIT).
"""Copy a file into an empty folder, under another name, and run it there."""

import os
import pathlib
import shutil
import subprocess
from typing import Any, List

import pytest
import scripted_bootstrap
from emulator import Platform
from gateways import Container, profile
from implementations import Version, interpreters

REFERENCE = pathlib.Path(__file__).resolve().parents[2] / "reference"
HANDLER = "async def handler(event, context):\n    return {'got': event}\n"


def since(floor: Version) -> pytest.MarkDecorator:
    """Return the interpreters from that version on as cases."""
    cases: List[Any] = [pytest.param(version, id=".".join(map(str, version)))
                        for version in interpreters() if version >= floor]
    return pytest.mark.parametrize("version", cases)


def copy(name: str, folder: pathlib.Path, new_name: str, version: Version) -> str:
    """Copy a file into a folder with an interpreter in its first line; return it."""
    folder.mkdir(exist_ok=True)
    source = (REFERENCE / name).read_text(encoding="utf-8")
    assert source.startswith("#!/usr/bin/env python3\n")
    program = folder / new_name
    program.write_text("#!%s -I\n%s" % (interpreters()[version], source),
                       encoding="utf-8")
    program.chmod(0o755)
    return str(program)


@since((3, 6))
@pytest.mark.parametrize("name", sorted(
    path.name for path in REFERENCE.glob("*_bootstrap.py")))
def test_copy_of_a_bootstrap(name: str, version: Version,
                             tmp_path: pathlib.Path) -> None:
    """A bootstrap file alone, beside a handler, serves its platform."""
    protocol = name.partition("_")[0]
    copy(name, tmp_path, "bootstrap", version)
    (tmp_path / "mine.py").write_text(HANDLER)
    settings: Any = {"port": 0} if protocol == "fc" else {}
    with Platform(protocol, str(tmp_path), handler="mine.handler", timeout_s=20,
                  **settings) as platform:
        outcome = platform.invoke(b'{"a":[1]}')
    assert outcome.body == b'{"got":{"a":[1]}}', (outcome.message, outcome.log)


def answer(*command: str) -> bytes:
    """Return what a command prints; it has to succeed, with a bare environment."""
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=60, cwd="/",
                          env={"PATH": os.defpath, "LANG": "C"})
    assert done.returncode == 0
    return done.stdout


@since((3, 8))
@pytest.mark.parametrize("protocol", ("fc", "scf", "fg"))
def test_copy_of_a_platform(protocol: str, version: Version,
                            tmp_path: pathlib.Path) -> None:
    """A platform file alone runs a bootstrap, and leaves nothing beside it."""
    program = copy(protocol + "_platform.py", tmp_path / "alone", "anything", version)
    code = scripted_bootstrap.place(tmp_path / "code")
    port = ("--port", "0") if protocol == "fc" else ()
    assert answer(program, code, "--event", "hello", *port) == b"hello\n"
    assert os.listdir(tmp_path / "alone") == ["anything"]


@since((3, 8))
def test_copy_of_the_emulator(version: Version, tmp_path: pathlib.Path) -> None:
    """The emulator, beside the three platform files, runs a bootstrap."""
    for protocol in ("fc", "scf", "fg"):
        shutil.copy(str(REFERENCE / (protocol + "_platform.py")), str(tmp_path))
    program = copy("emulator.py", tmp_path, "emulator.py", version)
    code = scripted_bootstrap.place(tmp_path / "code")
    assert answer(interpreters()[version], program, "scf", code, "--event",
                  "hello") == b"hello\n"


@since((3, 8))
def test_fcc_end_nothing__floor(version: Version) -> None:
    """The gateway runs a worker on every interpreter."""
    with Container([profile()], python=interpreters()[version]) as container:
        assert container.invoke(b"hi").body == b"hi"
        assert container.ask("PUT", "/-/profiles", b"[]").status == 200
