# test_copies.py: what is said to stand alone does, on every Python found (MIT).
"""Copy a file into an empty folder, under another name, and run it there."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
import scripted_bootstrap
from gateways import Container, profile
from implementations import Version, interpreters

REFERENCE = pathlib.Path(__file__).resolve().parents[2] / "reference"
HANDLER = "async def handler(event, context):\n    return {'got': event}\n"
VERSIONS = list(interpreters())
FLOOR = next(version for version in VERSIONS if version >= (3, 8))  # but of bootstraps
PROTOCOLS = ("scf", "fg", "fc")
PAIRS = [  # the oldest has them all; of the others each has one, in turn
    pytest.param(protocol, version, id="-".join((protocol, *map(str, version))))
    for number, version in enumerate(VERSIONS)
    for protocol in (PROTOCOLS[number % 3:][:1] if number else PROTOCOLS)]


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


def answer(*command: str) -> bytes:
    """Return what a command prints; it has to succeed, with a bare environment."""
    done = subprocess.run(command, stdout=subprocess.PIPE, timeout=60, cwd="/",
                          env={"PATH": os.defpath, "LANG": "C"})
    assert done.returncode == 0
    return done.stdout


@pytest.mark.parametrize("protocol,version", PAIRS)
def test_copy_of_a_pair(protocol: str, version: Version, tmp_path: pathlib.Path) -> None:
    """A platform file alone runs a bootstrap file alone, beside a handler, and leaves
    nothing beside itself."""
    program = copy(protocol + "_platform.py", tmp_path / "alone", "anything",
                   max(version, FLOOR))
    copy(protocol + "_bootstrap.py", tmp_path / "code", "bootstrap", version)
    (tmp_path / "code" / "mine.py").write_text(HANDLER)
    port = ("--port", "0") if protocol == "fc" else ()
    assert answer(program, str(tmp_path / "code"), "--handler", "mine.handler",
                  "--event", '{"a":[1]}', *port) == b'{"got":{"a":[1]}}\n'
    assert os.listdir(tmp_path / "alone") == ["anything"]


def test_copy_of_the_emulator(tmp_path: pathlib.Path) -> None:
    """The emulator, beside the three platform files, runs a bootstrap."""
    for protocol in PROTOCOLS:
        shutil.copy(str(REFERENCE / (protocol + "_platform.py")), str(tmp_path))
    program = copy("emulator.py", tmp_path, "emulator.py", FLOOR)
    code = scripted_bootstrap.place(tmp_path / "code")
    assert answer(interpreters()[FLOOR], program, "scf", code, "--event",
                  "hello") == b"hello\n"


@pytest.mark.parametrize("version", [
    pytest.param(version, id="-".join(map(str, version))) for version in VERSIONS
    if version >= FLOOR and version != sys.version_info[:2]])
def test_fcc_end_nothing__floor(version: Version) -> None:
    """The gateway, and the emulator in it, run a worker on every other interpreter."""
    with Container([profile()], python=interpreters()[version]) as container:
        assert container.invoke(b"hi").body == b"hi"
        assert container.ask("PUT", "/-/profiles", b"[]").status == 200
