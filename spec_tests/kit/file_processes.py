# file_processes.py: runs files of plain tests beside the checks (MIT).
"""Give each file of our own tests a pytest process; show its verdicts as this one's.

These tests mostly wait, and cannot share a process: two cores would idle for minutes.
The main process collects them as usual and, in place of running one, waits for what the
process of its file has said about it. A test of which nothing was said has failed.
"""

import concurrent.futures
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
from typing import Dict, Iterable, List, Tuple

import pytest

SIDE_BY_SIDE = 4
# In the process of a file: where it writes what became of its tests.
RESULTS = os.environ.pop("KIT_RESULTS", "")
Verdict = Tuple[str, str]  # outcome, and why


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
        self.verdicts = {path: self.pool.submit(self.run, path)
                         for path in largest_first}

    def run(self, path: pathlib.Path) -> Dict[str, Verdict]:
        """Run a file; return its verdicts by test, and what it printed under ""."""
        with tempfile.NamedTemporaryFile("r", encoding="utf-8") as results:
            process = subprocess.Popen(
                [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
                 str(path)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, env={**os.environ, "KIT_RESULTS": results.name})
            self.started.append(process)
            printed = process.communicate()[0].decode("utf-8", "replace")
            verdicts: Dict[str, Verdict] = {"": ("failed", printed[-4000:])}
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
