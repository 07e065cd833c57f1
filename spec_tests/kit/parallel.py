# parallel.py: run whole test files in processes of their own, beside this one (MIT).
"""Let pytest processes run the slow test files while this one runs the rest.

Most of these tests wait for a process or a limit, so two cores idle when they run one
after another. A side process is an ordinary `python -m pytest FILE ...`; it sends the
names of its tests and the report of each one through a pipe. The main process does not
look into these files; it shows the reports as its own when it has none left. Nothing is
run twice, nothing is skipped: a test whose report does not come has failed.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
from typing import Any, Dict, Generator, IO, List, Optional

import pytest

__all__ = ["PytestProcesses", "Reporter"]

TESTS = pathlib.Path(__file__).resolve().parent.parent

# The files that are worth it, in lots of about the same length; with them, both cores
# are busy until the last second. What is not named here runs in the main process: no file
# that starts what it has just written (a fork of another thread holds that open).
LOTS = (
    ("test_faults_push.py", "test_gateway_workers.py", "test_bootstrap_unit.py",
     "test_emulator_package.py"),
    ("test_lifecycle_process.py", "test_emulator_outcomes.py"),
    ("test_emulator_cli.py", "test_lifecycle_hooks.py", "test_lifecycle_http.py"),
    ("test_lifecycle_logs.py", "test_security.py", "test_emulator_samples.py",
     "test_copies.py", "test_small_platforms.py"),
    ("test_emulator_concurrency.py", "test_gateway_calls.py", "test_lifecycle_soak.py",
     "test_gateway_container.py"),  # needs Go's programs: on a new machine these are late
)


class Reporter:
    """In a side process: sends the names of the tests and every report, as JSON."""

    def __init__(self, config: pytest.Config, descriptor: int) -> None:
        self._config = config
        self._pipe = os.fdopen(descriptor, "w", encoding="utf-8")

    def _send(self, data: object) -> None:
        self._pipe.write(json.dumps(data) + "\n")
        self._pipe.flush()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Send the names, unless a file cannot be read: then nothing will be run."""
        if not session.testsfailed:
            self._send([item.nodeid for item in session.items])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Send one report."""
        self._send(self._config.hook.pytest_report_to_serializable(
            config=self._config, report=report))


class PytestProcess:
    """One side process, and the reports that have come from it."""

    def __init__(self, config: pytest.Config, files: List[str]) -> None:
        self._files = files
        read_end, write_end = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider",
             "--side-descriptor", str(write_end)] + files,
            cwd=str(config.rootpath), stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, pass_fds=[write_end])
        os.close(write_end)
        self._ready = threading.Condition()
        self._names: Optional[List[str]] = None
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
            for data in map(json.loads, pipe):
                with self._ready:
                    if isinstance(data, list):
                        self._names = data
                    else:
                        self._reports.setdefault(data["nodeid"], []).append(data)
                    self._ready.notify_all()
        with self._ready:
            self._ended = True
            self._ready.notify_all()

    def _keep_output(self) -> None:
        assert self._process.stdout is not None
        self._output = self._process.stdout.read()

    def names(self) -> List[str]:
        """Return the names of its tests; that of a file if it could not read them."""
        with self._ready:
            self._ready.wait_for(lambda: self._ended or self._names is not None)
            return self._files[:1] if self._names is None else self._names

    def wait(self, name: str) -> List[Dict[str, Any]]:
        """Return the reports of a test; without its teardown if the side has ended."""
        def is_there() -> bool:
            phases = self._reports.get(name, [])
            return self._ended or bool(phases) and phases[-1]["when"] == "teardown"

        with self._ready:
            self._ready.wait_for(is_there)
            return self._reports.get(name, [])

    def last_words(self) -> str:
        """Return, once, what an ended side process printed."""
        self.join()
        self._threads[1].join(10)
        output, self._output = self._output[-4000:], b"see above"
        return "the side process ended with status %s\n%s" % (
            self._process.returncode, output.decode("utf-8", "replace"))

    def join(self) -> None:
        """Wait while the process puts away what it has started; 10 s at most."""
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def stop(self) -> None:
        """Interrupt the process if it still runs, and wait for its end."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
        self.join()


class PytestProcesses:
    """In the main process: starts the side processes, shows their reports at the end."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        paths = {path.name: str(path) for path in TESTS.glob("*/test_*.py")}
        self._processes = [PytestProcess(config, [paths[name] for name in lot])
                           for lot in LOTS]

    def pytest_ignore_collect(self, collection_path: pathlib.Path) -> Optional[bool]:
        """Leave the files of the side processes to them."""
        return True if any(collection_path.name in lot for lot in LOTS) else None

    def names(self) -> List[str]:
        """Return the names of all tests in side processes, when these have read them."""
        return [name for one in self._processes for name in one.names()]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(
            self, session: pytest.Session) -> Generator[None, object, object]:
        """Show the reports of the side processes after those of this process."""
        session.testscollected += len(self.names())  # for the percentages
        result = yield
        for one in self._processes:
            for name in one.names():
                self._show(one, name)
                if session.shouldfail:
                    raise session.Failed(session.shouldfail)
                if session.shouldstop:
                    raise session.Interrupted(session.shouldstop)
        for one in self._processes:
            one.join()
        return result

    def _show(self, one: PytestProcess, name: str) -> None:
        hook = self._config.hook
        reports = [hook.pytest_report_from_serializable(config=self._config, data=data)
                   for data in one.wait(name)]
        for report in reports:
            if isinstance(report.longrepr, list):  # where and why it was skipped
                report.longrepr = tuple(report.longrepr)  # JSON has no tuples
        if not reports:
            reports = [pytest.TestReport(name, (name, None, name), {}, "failed",
                                         one.last_words(), "call")]
        hook.pytest_runtest_logstart(nodeid=name, location=reports[0].location)
        for report in reports:
            hook.pytest_runtest_logreport(report=report)
        hook.pytest_runtest_logfinish(nodeid=name, location=reports[0].location)

    def pytest_sessionfinish(self) -> None:
        """End what still runs, after an interrupt."""
        for one in self._processes:
            one.stop()
