# reaper.py: kills what the kit has started when the kit itself is killed (MIT).
"""A process of its own that outlives the kit for a moment.

The kit tells it each process group that it starts and each one that it has ended. When
the kit is gone, however it went, the reaper kills the groups that are left, and ends.
"""

import os
import signal
import subprocess
import sys
import threading
from typing import Optional, Set

__all__ = ["forget", "watch"]

LOCK = threading.Lock()
PROCESS: "Optional[subprocess.Popen[bytes]]" = None


def watch(group: int) -> None:
    """Have this process group killed if the kit ends before it."""
    tell(b"+%d\n" % group)


def forget(group: int) -> None:
    """This process group has been ended."""
    tell(b"-%d\n" % group)


def tell(line: bytes) -> None:
    """Write a line to the reaper, which is started by the first one."""
    global PROCESS
    with LOCK:
        if PROCESS is None:
            PROCESS = subprocess.Popen([sys.executable, "-IS", __file__],
                                       stdin=subprocess.PIPE, start_new_session=True)
        assert PROCESS.stdin is not None
        try:
            PROCESS.stdin.write(line)
            PROCESS.stdin.flush()
        except OSError:
            pass  # it was killed: then there is no reaper any more


def main() -> None:
    """Take note until the kit is gone, then kill what is left."""
    groups: Set[int] = set()
    for line in sys.stdin.buffer:
        (groups.add if line[:1] == b"+" else groups.discard)(int(line[1:]))
    for group in groups:
        try:
            os.killpg(group, signal.SIGKILL)
        except OSError:
            pass


if __name__ == "__main__":
    main()
