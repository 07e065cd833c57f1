# test_lifecycle_soak.py: a short soak in every run (MIT).
"""soak.py with 2,000 invocations, in a process of its own where nothing else runs."""

import json
import pathlib
import subprocess
import sys

TESTS = pathlib.Path(__file__).resolve().parent.parent


def test_any_process_group__leftovers_soak() -> None:
    """Threads and open files do not grow, nor memory by more than a large event."""
    done = subprocess.run([sys.executable, str(TESTS / "tools" / "soak.py"), "2000"],
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=100,
                          check=False)
    assert done.returncode == 0, (done.stdout + done.stderr[-2000:]).decode()
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert [one["protocol"] for one in results] == ["scf", "fg", "fc"]
