# side.py: run whole test files in processes of their own, beside this one (MIT).
"""Let pytest processes run the slow test files while this one runs the rest.

Most of these tests wait for a process or a limit, so two cores idle when they run one
after another. A side process is an ordinary `python -m pytest FILE ...`; it sends the
report of each test through a pipe, and the main process shows it as its own. Nothing is
run twice, nothing is skipped: a test whose report does not come has failed.
"""

import json
import os
import subprocess
import sys
import threading
from typing import Any, Dict, IO, List, Optional

import pytest

__all__ = ["BYTECODE", "Reporter", "Sides"]

BYTECODE = "KIT_BYTECODE"  # names a folder for it, where the tree must stay clean

# The files that are worth it, in lots of about the same length.
LOTS = (
    ("test_faults_push.py", "test_gateway_workers.py"),
    ("test_lifecycle_process.py", "test_emulator_outcomes.py",
     "test_lifecycle_hooks.py", "test_emulator_package.py"),
    ("test_emulator_concurrency.py", "test_emulator_cli.py", "test_copies.py"),
    ("test_lifecycle_logs.py", "test_security.py", "test_model.py", "test_static.py",
     "test_benchmark.py"),
    ("test_gateway_container.py", "test_gateway_calls.py", "test_lifecycle_http.py",
     "test_bootstrap_unit.py", "test_emulator_samples.py", "test_gateway_spec.py",
     "test_lifecycle_soak.py", "test_gateway_rules.py"),
)


def lend_bytecode(folder: str) -> None:
    """Make a folder for bytecode begin with what is loaded and compiled already, so that
    no process compiles Python's own library or pytest anew."""
    known = {module.__file__: module.__cached__ for module in list(sys.modules.values())
             if getattr(module, "__cached__", None) and module.__file__}
    for source, compiled in known.items():
        place = folder + os.path.dirname(source)
        os.makedirs(place, exist_ok=True)
        if os.path.exists(compiled):
            os.symlink(compiled, os.path.join(place, os.path.basename(compiled)))


class Reporter:
    """In a side process: sends every report, as a line of JSON."""

    def __init__(self, config: pytest.Config, descriptor: int) -> None:
        self._config = config
        self._pipe = os.fdopen(descriptor, "w", encoding="utf-8")

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Send one report."""
        data = self._config.hook.pytest_report_to_serializable(
            config=self._config, report=report)
        self._pipe.write(json.dumps(data) + "\n")
        self._pipe.flush()


class Side:
    """One side process, and the reports that have come from it."""

    def __init__(self, config: pytest.Config, files: List[str]) -> None:
        read_end, write_end = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
             "--side-descriptor", str(write_end)] + files,
            cwd=str(config.rootpath), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pass_fds=[write_end])
        os.close(write_end)
        self._ready = threading.Condition()
        self._reports: Dict[str, List[Dict[str, Any]]] = {}
        self._ended = False
        self._output = b""
        self._threads = [
            threading.Thread(target=self._read, daemon=True,
                             args=(os.fdopen(read_end, encoding="utf-8"),)),
            threading.Thread(target=self._keep_output, daemon=True)]
        for thread in self._threads:
            thread.start()

    def _read(self, pipe: IO[str]) -> None:
        with pipe:
            for line in pipe:
                data = json.loads(line)
                with self._ready:
                    self._reports.setdefault(data["nodeid"], []).append(data)
                    self._ready.notify_all()
        with self._ready:
            self._ended = True
            self._ready.notify_all()

    def _keep_output(self) -> None:
        assert self._process.stdout is not None
        self._output = self._process.stdout.read()

    def wait(self, name: str) -> List[Dict[str, Any]]:
        """Return the reports of a test; without its teardown if the side has ended."""
        def is_there() -> bool:
            phases = self._reports.get(name, [])
            return self._ended or bool(phases) and phases[-1]["when"] == "teardown"

        with self._ready:
            self._ready.wait_for(is_there)
            return self._reports.get(name, [])

    def last_words(self) -> str:
        """Return what an ended side process printed."""
        self._process.wait(10)
        self._threads[1].join(10)
        return "the side process ended with status %s\n%s" % (
            self._process.returncode, self._output[-4000:].decode("utf-8", "replace"))

    def stop(self) -> None:
        """End the process if it still runs."""
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait(10)


class Sides:
    """In the main process: starts the sides and shows their reports in turn."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        folder = os.path.dirname(os.path.abspath(__file__))
        self._sides = [Side(config, [os.path.join(folder, name) for name in lot])
                       for lot in LOTS]
        self._of: Dict[str, Side] = {}

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Note which test runs where."""
        for lot, side in zip(LOTS, self._sides):
            self._of.update((item.nodeid, side) for item in session.items
                            if item.path.name in lot)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Optional[bool]:
        """Show what a side process reports of a test."""
        side = self._of.get(item.nodeid)
        if side is None:
            return None
        hook = item.ihook
        reports = side.wait(item.nodeid)
        # an item finds its location anew, which takes as long as all the rest here
        location = tuple(reports[0]["location"]) if reports else item.location
        hook.pytest_runtest_logstart(nodeid=item.nodeid, location=location)
        for data in reports:
            hook.pytest_runtest_logreport(report=self._config.hook.
                                          pytest_report_from_serializable(
                                              config=self._config, data=data))
        if not reports:
            hook.pytest_runtest_logreport(report=pytest.TestReport(
                item.nodeid, location, {}, "failed", side.last_words(), "call"))
        hook.pytest_runtest_logfinish(nodeid=item.nodeid, location=location)
        return True

    def pytest_sessionfinish(self) -> None:
        """End what still runs, after an interrupt."""
        for side in self._sides:
            side.stop()
