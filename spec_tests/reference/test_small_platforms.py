# test_small_platforms.py: the platform in each protocol's own file, from outside (MIT).
"""Each file alone is a whole platform: its command line, bad input, and what it leaves.

What it says on the wire is judged by the kit; implementations.py declares what is
missing. A row in SMALL is all that another protocol needs.
"""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from typing import Dict, List, NamedTuple

import pytest
import scripted_bootstrap
from implementations import interpreters

REFERENCE = pathlib.Path(__file__).resolve().parents[2] / "reference"
SMALL: Dict[str, List[str]] = {  # protocol -> options it needs here
    "scf": [], "fg": [], "fc": ["--port", "0"]}
FLOOR = (3, 8)
TRACEBACK = "Traceback"


class Done(NamedTuple):
    """How a run of a platform ended."""

    status: int
    out: str
    err: str


@pytest.fixture(params=sorted(SMALL))
def protocol(request: pytest.FixtureRequest) -> str:
    """Each protocol that has a small platform."""
    return str(request.param)


@pytest.fixture
def code(tmp_path: pathlib.Path) -> str:
    """A folder whose bootstrap echoes, or does what its event says."""
    return scripted_bootstrap.place(tmp_path / "code")


def words_of(protocol: str, *words: str) -> List[str]:
    """Return the command of a small platform."""
    program = str(REFERENCE / f"{protocol}_platform.py")
    return [sys.executable, program, *words, *(SMALL[protocol] if words else [])]


def run(*words: str, stdin: str = "") -> Done:
    """Run a command to its end."""
    done = subprocess.run(words, input=stdin.encode(), stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=60, cwd="/")
    return Done(done.returncode, done.stdout.decode(), done.stderr.decode())


# ---- what it prints ----


def test_event(protocol: str, code: str) -> None:
    """--event prints the answer."""
    done = run(*words_of(protocol, code, "--event", '{"a": 1}'))
    assert (done.status, done.out) == (0, '{"a": 1}\n')


def test_event_that_fails(protocol: str, code: str) -> None:
    """The caller's document on stdout, one line for people on stderr, status 1."""
    done = run(*words_of(protocol, code, "--event", '[["exit", 3]]'))
    assert done.status == 1 and json.loads(done.out)
    assert "exit: the bootstrap ended with status 3" in done.err
    assert TRACEBACK not in done.err


# ---- bad input ----

BAD_USE = {
    "nothing": ([], "FOLDER"), "no-task": (["{code}"], "--event"),
    "two-tasks": (["{code}", "--event", "a", "--jsonl"], "--event"),
    "no-folder": (["{code}/none", "--event", "a"], "is not a folder"),
    "a-file": (["{code}/bootstrap", "--event", "a"], "is not a folder"),
    "zero": (["{code}", "--event", "a", "--timeout", "0"], "--timeout"),
    "endless": (["{code}", "--event", "a", "--timeout", "inf"], "--timeout"),
    "no-number": (["{code}", "--event", "a", "--timeout", "x"], "--timeout"),
    "negative": (["{code}", "--event", "a", "--grace", "-1"], "--grace"),
    "env-name": (["{code}", "--event", "a", "--env", "1=2"], "'1'"),
    "option": (["{code}", "--event", "a", "--beauty"], "--beauty"),
}


@pytest.mark.parametrize("name", sorted(BAD_USE))
def test_bad_use(protocol: str, code: str, name: str) -> None:
    """Bad use is one line that names what is wrong, and status 2."""
    words, wanted = BAD_USE[name]
    done = run(*words_of(protocol, *(word.replace("{code}", code) for word in words)))
    assert (done.status, done.out, done.err.count("\n")) == (2, "", 1)
    assert wanted in done.err


NO_START = {"missing": None, "not-executable": (0o644, "#!/bin/sh\n"),
            "windows-lines": (0o755, "#!/bin/sh\r\n"), "empty": (0o755, ""),
            "no-interpreter": (0o755, "#!/no/such/program\n"),
            "no-program": (0o755, "\x7fELF no program")}


@pytest.mark.parametrize("name", sorted(NO_START))
def test_bad_bootstrap(protocol: str, tmp_path: pathlib.Path, name: str) -> None:
    """A bootstrap that cannot start is one line that names it, and status 1."""
    found = NO_START[name]
    if found is not None:
        (tmp_path / "bootstrap").write_text(found[1], newline="")
        (tmp_path / "bootstrap").chmod(found[0])
    done = run(*words_of(protocol, str(tmp_path), "--event", "a"))
    assert (done.status, done.err.count("\n")) == (1, 1), done.err
    assert done.err.startswith("start-error: %s/bootstrap: " % tmp_path)


@pytest.mark.parametrize("line", ["no JSON", "[1]", "{}", '{"id": 1, "event": 2}',
                                  '{"id": 1, "event_base64": "?"}', ""])
def test_bad_line(protocol: str, code: str, line: str) -> None:
    """A line without an event ends the run: one message, no traceback."""
    done = run(*words_of(protocol, code, "--jsonl"), stdin=line + "\n")
    assert done.status == 1 and TRACEBACK not in done.err
    assert repr(line)[:-1] in done.err


# ---- alone, at rest, and gone ----


@pytest.mark.parametrize("version", [
    pytest.param(one, id=".".join(map(str, one))) for one in interpreters()
    if one >= FLOOR])
def test_copy(protocol: str, code: str, tmp_path: pathlib.Path,
              version: "tuple[int, ...]") -> None:
    """Copied alone into a folder, under any name, it runs on every interpreter."""
    folder = tmp_path / "alone"
    folder.mkdir()
    shutil.copy(REFERENCE / f"{protocol}_platform.py", folder / "anything")
    done = run(interpreters()[version], "-I", str(folder / "anything"), code, "--event",
               "hello", *SMALL[protocol])
    assert (done.status, done.out) == (0, "hello\n"), done.err
    assert os.listdir(folder) == ["anything"]


def switches(process_id: int) -> int:
    """Return how often the threads of a process have been scheduled."""
    total = 0
    for path in pathlib.Path(f"/proc/{process_id}/task").glob("*/status"):
        fields = dict(line.split(":", 1) for line in path.read_text().splitlines())
        total += int(fields["voluntary_ctxt_switches"])
    return total


def test_at_rest_and_stopped(protocol: str, code: str) -> None:
    """Between two events nothing wakes up; SIGTERM leaves no process behind."""
    with subprocess.Popen(words_of(protocol, code, "--jsonl"), stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as platform:
        assert platform.stdin is not None and platform.stdout is not None
        platform.stdin.write(b'{"id": 1, "event": "[[\\"pid\\"]]"}\n')
        platform.stdin.flush()
        child = int(json.loads(platform.stdout.readline())["body"])
        counts = [switches(platform.pid)]
        while len(counts) < 10 and counts[-2:] != counts[-1:] * 2:
            time.sleep(0.3)  # what polls would be seen in each of the ten
            counts.append(switches(platform.pid))
        platform.send_signal(signal.SIGTERM)
        assert platform.wait(10) == 128 + signal.SIGTERM
    assert counts[-2:] == counts[-1:] * 2, counts
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
