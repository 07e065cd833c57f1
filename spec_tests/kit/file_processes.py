# file_processes.py: runs files of plain tests beside the checks (MIT).
"""Run our own tests in copies of the pytest process; show their verdicts as its own.

These tests mostly wait: one after the other, two cores would idle for minutes. The
copies are made when everything is collected and no thread runs; each takes a file when
it has ended another. A test of which nothing was said has failed.
"""

import atexit
import concurrent.futures.process
import multiprocessing.util
import pathlib
from typing import Dict, Iterable, List, Tuple

import pytest

import kit

PROCESSES = 3
Verdicts = Dict[str, Tuple[str, str]]  # by test: outcome, and why
ITEMS: Dict[pathlib.Path, List[pytest.Item]] = {}  # of each file; the copies have them
NOTED: Verdicts = {}  # in a copy


def note(report: pytest.TestReport) -> None:
    """In a copy: keep what became of a test; of several phases what is worst."""
    if NOTED.get(report.nodeid, ("passed", ""))[0] == "passed":
        why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        NOTED[report.nodeid] = report.outcome, str(why or "")


def become_copy(config: pytest.Config) -> None:
    """Share neither terminal nor captured output with the original."""
    atexit.unregister(kit.remove_scratch)
    multiprocessing.util.Finalize(None, atexit._run_exitfuncs, exitpriority=0)
    config.pluginmanager.unregister(name="terminalreporter")
    capture = config.pluginmanager.getplugin("capturemanager")
    capture.stop_global_capturing()
    capture.start_global_capturing()


def run(path: pathlib.Path) -> Verdicts:
    """In a copy: run the tests of a file."""
    NOTED.clear()
    items = ITEMS[path]
    for item, following in zip(items, [*items[1:], None]):
        item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
    return NOTED


class FileProcesses:
    """The copies, and the verdicts that they have given."""

    def __init__(self, config: pytest.Config, items: Iterable[pytest.Item]) -> None:
        for item in items:
            ITEMS.setdefault(item.path, []).append(item)
        self.pool = concurrent.futures.ProcessPoolExecutor(
            PROCESSES, multiprocessing.get_context("fork"), become_copy, (config,))
        self.verdicts = {path: self.pool.submit(run, path) for path in sorted(
            ITEMS, key=lambda path: -path.stat().st_size)}

    def show(self, item: pytest.Item) -> bool:
        """Report a test that one of the copies has run; False if none has."""
        if item.path not in self.verdicts:
            return False
        outcome, why = "failed", "its process said nothing about it"
        try:
            outcome, why = self.verdicts[item.path].result().get(
                item.nodeid, (outcome, why))
        except concurrent.futures.process.BrokenProcessPool as error:
            why = str(error)
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
        are_done = all(one.done() for one in self.verdicts.values())
        self.pool.shutdown(wait=are_done, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()  # which conftest.py makes an interrupt
            process.join()
