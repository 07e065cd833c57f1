# rooms.py: makes the files of all rooms importable by their plain names (MIT).
"""Import this first: it puts every room of spec_tests/, and reference/, on the path."""

import pathlib
import sys

TESTS = pathlib.Path(__file__).resolve().parent
NAMES = ("kit", "bootstrap", "platform", "gateway", "spec", "reference", "tools")

sys.path[:0] = [*(str(TESTS / name) for name in NAMES), str(TESTS),
                str(TESTS.parent / "reference")]
