# test_emulator_leftovers.py: what a bootstrap leaves behind in reference/emulator.py (MIT).
"""Orphans as process 1, and bytes beyond an answer."""

import os
import pathlib
import signal
import subprocess
import sys

import wire

import emulator

REFERENCE = pathlib.Path(emulator.__file__).parent
AS_FIRST = """
import ctypes, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # subreaper: orphans are ours, as process 1's
sys.path.insert(0, sys.argv.pop(1))
import emulator
sys.exit(emulator.main())
"""
ORPHAN = """#!/bin/sh
(sh -c 'echo $$ > orphan; exec sleep 1000' &)
exec sleep 1000
"""
TWICE = r"""
import os, socket
listener = socket.create_server(("0.0.0.0", int(os.environ["FC_SERVER_PORT"])))
stale = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstale"
for answer in (stale + stale, stale.replace(b"stale", b"fresh")):
    connection = listener.accept()[0]
    while b"\r\n\r\n" not in connection.recv(65536):
        pass
    connection.sendall(answer)
"""


def test_any_process_group__orphan(tmp_path: pathlib.Path) -> None:
    """As the first process of a container it reaps what a bootstrap leaves behind, at
    once, while that lives on."""
    (tmp_path / "bootstrap").write_text(ORPHAN)
    (tmp_path / "bootstrap").chmod(0o755)
    running = subprocess.Popen([sys.executable, "-c", AS_FIRST, str(REFERENCE), "scf",
                                str(tmp_path), "--event", "x", "--quiet"])
    mark = tmp_path / "orphan"
    try:
        for _ in wire.looks(10):
            if mark.exists() and mark.read_text().endswith("\n"):
                break
        orphan = int(mark.read_text())
        os.kill(orphan, signal.SIGKILL)
        assert any(not os.path.exists(f"/proc/{orphan}") for _ in wire.looks(10))
        assert running.poll() is None
    finally:
        running.terminate()
        running.wait(10)


def test_fc_connection_keep_alive__stale(tmp_path: pathlib.Path) -> None:
    """A second answer that came with the first is not the answer to the next event."""
    (tmp_path / "server.py").write_text(TWICE)
    with emulator.Platform("fc", code=str(tmp_path), port=0, freeze=False,
                           command=[sys.executable, "server.py"]) as platform:
        assert [platform.invoke(b"x").body for _ in range(2)] == [b"stale", b"fresh"]
