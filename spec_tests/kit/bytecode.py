# bytecode.py: nothing is compiled twice where the tree must stay clean (MIT).
"""Keep compiled modules in the folder where pytest keeps things from run to run.

One run of the tests starts more than two thousand Python processes. Who forbids them to
write bytecode beside the source (PYTHONDONTWRITEBYTECODE) would wait for a compiler each
time, and so the modules go to `.pytest_cache`, or to a temporary folder where that
cannot be written.
"""

import atexit
import os
import pathlib
import shutil
import sys
import tempfile
from typing import List

__all__ = ["chosen", "divert", "forget_temporary", "lend"]

VARIABLE = "KIT_BYTECODE"  # tells the processes below this one which folder it is
OWN: List[pathlib.Path] = []  # the folder, in the process that has chosen it


def divert(root: pathlib.Path) -> None:
    """Let this process and those below it write bytecode, but not into the tree."""
    if not os.environ.pop("PYTHONDONTWRITEBYTECODE", None):
        return
    if VARIABLE not in os.environ:
        folder = chosen(root)
        OWN.append(folder)
        os.environ[VARIABLE] = str(folder)
        lend(str(folder))
    sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = os.environ[VARIABLE]
    sys.dont_write_bytecode = False


def chosen(root: pathlib.Path) -> pathlib.Path:
    """Return a folder that can be written to."""
    folder = root / ".pytest_cache" / "bytecode"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        folder = pathlib.Path(tempfile.mkdtemp(prefix="kit-bytecode-"))
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def lend(folder: str) -> None:
    """Put in what is loaded here and compiled already, Python's own library and pytest,
    so that it is not compiled anew."""
    known = {module.__file__: module.__cached__ for module in list(sys.modules.values())
             if getattr(module, "__cached__", None) and module.__file__}
    for source, compiled in known.items():
        place = folder + os.path.dirname(source)
        link = os.path.join(place, os.path.basename(compiled))
        if os.path.exists(compiled) and not os.path.lexists(link):
            os.makedirs(place, exist_ok=True)
            os.symlink(compiled, link)


def forget_temporary() -> None:
    """Remove what was compiled of files that tests have made: they do not come again."""
    for folder in OWN:
        place = folder / tempfile.gettempdir().lstrip("/")
        for made in [*place.glob("pytest-of-*"), *place.glob("kit-*")]:
            shutil.rmtree(made, ignore_errors=True)
