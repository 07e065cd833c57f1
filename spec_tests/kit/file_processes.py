# file_processes.py: runs files of plain tests beside the checks (MIT).
"""Give our own tests some pytest processes; show their verdicts as this one's.

These tests mostly wait: one after the other, two cores would idle for minutes. The main
process collects them as usual and, in place of running one, waits for what the process
that has its file has said about it. A test of which nothing was said has failed.
"""

import concurrent.futures
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from typing import Dict, Iterable, List, Sequence, Tuple

import pytest

PROCESSES = 8  # each of them imports pytest and the kit
SIDE_BY_SIDE = 2
# In such a process: where it writes what became of its tests.
RESULTS = os.environ.pop("KIT_RESULTS", "")
Verdicts = Dict[str, Tuple[str, str]]  # by test: outcome, and why


def note(report: pytest.TestReport) -> None:
    """Write down what became of a test, for the process that waits for it."""
    if RESULTS and (report.when == "call" or not report.passed):
        why = str(report.longrepr[2] if isinstance(report.longrepr, tuple)
                  else report.longrepr or "")
        with open(RESULTS, "a", encoding="utf-8") as file:
            file.write(json.dumps([report.nodeid, report.outcome, why]) + "\n")


class FileProcesses:
    """The processes of one run, and the verdicts that they have given."""

    def __init__(self, files: Iterable[pathlib.Path]) -> None:
        self.pool = concurrent.futures.ThreadPoolExecutor(SIDE_BY_SIDE)
        self.started: "List[subprocess.Popen[bytes]]" = []
        largest_first = sorted(files, key=lambda path: -path.stat().st_size)
        self.verdicts: "Dict[pathlib.Path, concurrent.futures.Future[Verdicts]]" = {}
        for number in range(min(PROCESSES, len(largest_first))):
            share = largest_first[number::PROCESSES]
            self.verdicts.update(dict.fromkeys(share, self.pool.submit(self.run, share)))

    def run(self, paths: Sequence[pathlib.Path]) -> Verdicts:
        """Run files; return the verdicts by test, and what was printed under ""."""
        with tempfile.NamedTemporaryFile("r", encoding="utf-8") as results:
            process = subprocess.Popen(
                [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
                 *map(str, paths)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, env={**os.environ, "KIT_RESULTS": results.name})
            self.started.append(process)
            printed = process.communicate()[0].decode("utf-8", "replace")
            verdicts: Verdicts = {"": ("failed", printed[-4000:])}
            for name, outcome, why in map(json.loads, results):
                if verdicts.get(name, ("passed",))[0] == "passed":  # or a later error
                    verdicts[name] = outcome, why
            return verdicts

    def show(self, item: pytest.Item) -> bool:
        """Report a test that one of the processes has run; False if none has."""
        if item.path not in self.verdicts:
            return False
        verdicts = self.verdicts[item.path].result()
        outcome, why = verdicts.get(item.nodeid, verdicts[""])
        place = (str(item.path), item.location[1] or 0, why)
        report = pytest.TestReport(
            item.nodeid, item.location, {}, outcome,  # type: ignore[arg-type]
            place if outcome == "skipped" else why or None, "call")
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
        return True

    def stop(self) -> None:
        """Interrupt what still runs, and wait until it has put its things away."""
        self.pool.shutdown(wait=False, cancel_futures=True)
        for process in self.started:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        self.pool.shutdown()
