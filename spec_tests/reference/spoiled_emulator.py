# spoiled_emulator.py: emulator.py with an error of its own in one place (MIT).
"""Run emulator.py; the first word names the function that raises an error."""

import functools
import pathlib
import sys

REFERENCE = pathlib.Path(__file__).resolve().parents[2] / "reference"
sys.path.insert(0, str(REFERENCE))

import emulator  # noqa: E402


def broken(*_: object, **__: object) -> None:
    """Raise what no code of ours expects."""
    raise KeyError("injected")


def main() -> int:
    """Run the command line behind the first word."""
    *owner, name = sys.argv.pop(1).split(".")
    setattr(functools.reduce(getattr, owner, emulator), name, broken)
    return emulator.main()
