# test_small_platforms.py: the platform in each protocol's own file, from outside (MIT).
"""Each file alone is a whole platform: its command line, bad input, and what it leaves.

What it says on the wire is judged by the kit.
"""

import json
import os
import pathlib
import signal
import subprocess
import time
from typing import Dict, List

import fork_server
import pytest
from harness import code, run
from implementations import start_words

__all__ = ["code"]
REFERENCE = pathlib.Path(__file__).resolve().parents[2] / "reference"
SMALL: Dict[str, List[str]] = {  # protocol -> options it needs here
    "scf": [], "fg": [], "fc": ["--port", "0"]}


@pytest.fixture(params=SMALL)
def protocol(request: pytest.FixtureRequest) -> str:
    """Each protocol in turn."""
    return str(request.param)


def words_of(protocol: str, *words: str) -> List[str]:
    """Return the command of a small platform."""
    program = start_words(REFERENCE / f"{protocol}_platform.py")
    return [*program, *words, *(SMALL[protocol] if words else [])]


def test_event(protocol: str, code: str) -> None:
    """--event prints the answer; for one that fails the caller's document, and one line
    for people on stderr, with status 1."""
    assert run(words_of(protocol, code, "--event", "hi"))[:2] == (0, b"hi\n")
    status, out, err = run(words_of(protocol, code, "--event", '[["exit", 3]]'))
    assert status == 1 and json.loads(out) and "Traceback" not in err
    assert "exit: the bootstrap ended with status 3" in err


BAD_USE = {
    "nothing": ([], "FOLDER"), "no-task": (["{code}"], "--event"),
    "two-tasks": (["{code}", "--event", "a", "--jsonl"], "--event"),
    "no-folder": (["{code}/none", "--event", "a"], "is not a folder"),
    "a-file": (["{code}/bootstrap", "--event", "a"], "is not a folder"),
    "endless": (["{code}", "--event", "a", "--timeout", "inf"], "--timeout"),
    "env-name": (["{code}", "--event", "a", "--env", "1=2"], "'1'"),
    "option": (["{code}", "--event", "a", "--beauty"], "--beauty"),
}


@pytest.mark.parametrize("name", sorted(BAD_USE))
def test_bad_use(protocol: str, code: str, name: str) -> None:
    """Bad use is one line that names what is wrong, and status 2."""
    words, wanted = BAD_USE[name]
    status, out, err = run(words_of(protocol, *(
        word.replace("{code}", code) for word in words)))
    assert (status, out, err.count("\n")) == (2, b"", 1) and wanted in err


NO_START = {"missing": None, "not-executable": (0o644, "#!/bin/sh\n"),
            "windows-lines": (0o755, "#!/bin/sh\r\n"), "empty": (0o755, ""),
            "no-interpreter": (0o755, "#!/no/such/program\n")}


@pytest.mark.parametrize("name", sorted(NO_START))
def test_bad_bootstrap(protocol: str, tmp_path: pathlib.Path, name: str) -> None:
    """A bootstrap that cannot start is one line that names it, and status 1."""
    found = NO_START[name]
    if found is not None:
        (tmp_path / "bootstrap").write_text(found[1], newline="")
        (tmp_path / "bootstrap").chmod(found[0])
    status, _, err = run(words_of(protocol, str(tmp_path), "--event", "a"))
    assert (status, err.count("\n")) == (1, 1), err
    assert err.startswith("start-error: %s/bootstrap: " % tmp_path)


@pytest.mark.parametrize("line", ["no JSON", "[1]", "{}", '{"id": 1, "event": 2}', ""])
def test_bad_line(protocol: str, code: str, line: str) -> None:
    """A line without an event ends the run: one message, no traceback."""
    status, _, err = run(words_of(protocol, code, "--jsonl"), line.encode() + b"\n")
    assert status == 1 and "Traceback" not in err and repr(line)[:-1] in err


def switches(process_id: int) -> int:
    """Return how often the threads of a process have been scheduled."""
    total = 0
    for path in pathlib.Path(f"/proc/{process_id}/task").glob("*/status"):
        fields = dict(line.split(":", 1) for line in path.read_text().splitlines())
        total += int(fields["voluntary_ctxt_switches"])
    return total


def test_at_rest_and_stopped(protocol: str, code: str) -> None:
    """Between two events nothing wakes up; SIGTERM leaves no process behind."""
    with fork_server.start(words_of(protocol, code, "--jsonl"), cwd="/",
                           env=os.environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                           stderr=subprocess.DEVNULL) as platform:
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
