# test_command_line.py: emulator.py as people use it (MIT).
"""Run emulator.py as a program: what it prints, what it returns, what it leaves."""

import contextlib
import http.client
import json
import os
import pathlib
import re
import select
import shutil
import signal
import socket
import subprocess
import threading
from typing import Iterator, List, NamedTuple, Optional, Sequence, Tuple

import emulator
import pytest
import scripted_bootstrap
import spec
from harness import PROTOCOLS, background, code, event, process_state, until
from implementations import START_EMULATOR

__all__ = ["code"]
HALF = event(["half", "POST {response} HTTP/1.1\r\nContent-Length: 9\r\n\r\nhalf"],
             ["say", "whole"]).decode()
FAIL = event(["fail", "why"]).decode()
PID, HANG = event(["pid"]).decode(), event(["note", "hangs"], ["hang"]).decode()
EXIT = event(["exit", 3]).decode()


class Run(NamedTuple):
    """What a run printed and returned."""

    status: int
    out: bytes
    err: str


def words(protocol: str, folder: str, *options: str) -> List[str]:
    """Return the command; fc servers get a free port."""
    port = ["--port", "0"] if protocol == "fc" else []
    return [*START_EMULATOR, protocol, folder, *port, *options]


def run(command: Sequence[str], stdin: bytes = b"", **env: str) -> Run:
    """Run a command to its end."""
    done = subprocess.run(command, input=stdin, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=30, env={**os.environ, **env})
    return Run(done.returncode, done.stdout, done.stderr.decode())


@PROTOCOLS
def test_one_shot(protocol: str, code: str) -> None:
    """Results go to stdout, one line each and nothing else; the rest to stderr."""
    done = run(words(protocol, code, "--event", '{"a": 1}', "--event", "", "--event",
                     "line\n"))
    assert (done.status, done.out) == (0, b'{"a": 1}\nline\n')
    assert "3 ok; 1 cold start" in done.err.splitlines()[-1]


@pytest.mark.parametrize("body", (b"hello\n", b"\xff\0\xfe", b""))
def test_any_event_bytes__from_file(body: bytes, code: str,
                                    tmp_path: pathlib.Path) -> None:
    """@FILE and - give the event byte for byte; --events each line but blank ones."""
    (tmp_path / "event").write_bytes(body)
    (tmp_path / "lines").write_bytes(b'{"a":1}\n\n  \n"b"\r\n[3]')
    done = run(words("scf", code, "--event", "@%s/event" % tmp_path, "--event", "-",
                     "--events", str(tmp_path / "lines")), body)
    line = body.rstrip(b"\n") + b"\n" if body else b""
    assert done.out.replace(b"\r", b"") == line * 2 + b'{"a":1}\n"b"\n[3]\n'


@pytest.mark.parametrize("options,status", (
    (("--event", FAIL), 1), (("--event", EXIT, "--event", "x"), 1),
    (("--event", HALF), 0), (("--strict", "--event", HALF), 3),
    (("--strict", "--event", "x"), 0),
    (("--strict", "--event", HALF, "--event", FAIL), 3)),
    ids=("failed", "one of two", "broken", "broken, strict", "strict", "both"))
def test_exit_status(options: Tuple[str, ...], status: int, code: str) -> None:
    """0 ok, 1 an invocation failed, 3 with --strict a rule was broken."""
    done = run(words("scf", code, *options))
    assert done.status == status
    assert ("any.http.no-effect" in done.err) == (HALF in options)


@PROTOCOLS
def test_trace(protocol: str, code: str, tmp_path: pathlib.Path) -> None:
    """Each line of a trace is JSON; its rules are in SPEC.md; `-` means stderr."""
    options = ("--event", "x", "--event", EXIT, "--quiet", "--trace")
    run(words(protocol, code, *options, str(tmp_path / "trace")))
    done = run(words(protocol, code, *options, "-"))
    known = {rule.id for rule in spec.load().rules}
    for text in ((tmp_path / "trace").read_text(), done.err):
        lines = [json.loads(line) for line in text.splitlines() if line[0] == "{"]
        assert {line["rule"] for line in lines if "rule" in line} <= known
        assert [one["kind"] for one in lines if one["what"] == "outcome"] == [
            "ok", "exit"]
        assert {line["what"] for line in lines} >= {"process", "outcome"}
        assert all(isinstance(line["ms"], float) for line in lines)
    assert done.out.startswith(b"x\n") and b'"what"' not in done.out


def test_library() -> None:
    """The example of the documentation works: a platform inside a `with`."""
    code = str(pathlib.Path(__file__).resolve().parents[2] / "examples/bash/scf")
    with emulator.Platform("scf", code=code) as platform:
        outcome = platform.invoke(b'{"key": "value"}')
        assert outcome.kind == "ok" and not outcome.violations


USAGE: List[Tuple[Tuple[str, ...], str]] = [
    ((), "--event"), (("--event", "@/no/such/file"), "/no/such/file"),
    (("--no-such-option",), "--no-such-option"),
    (("--event", "x", "--timeout", "0"), "--timeout"),
    (("--event", "x", "--env", "SCF_A=1"), "SCF_A"),
    (("--event", "x", "--concurrency", "2"), "--concurrency"),
    (("--event", "x", "--parallel", "2"), "--parallel"),
    (("--serve", "localhost:http"), "--serve"), (("--serve", "192.0.2.1:0"), "--serve"),
    (("--event", "x", "--", "ls"), "--"),
    (("--event", "x", "--trace", "/no/such/folder/file"), "--trace")]


@pytest.mark.parametrize("options,word", USAGE, ids=[
    " ".join(case[0])[:40] or "nothing" for case in USAGE])
def test_usage_error(options: Tuple[str, ...], word: str, code: str) -> None:
    """A mistake gives status 2 and one line that names the option."""
    done = run(words("scf", code, *options))
    said = [line for line in done.err.splitlines() if not line.startswith("usage: ")]
    assert (done.status, done.out) == (2, b"") and len(said) == 1 and word in said[0]


@pytest.mark.parametrize("arguments,word", (
    ((), "PROTOCOL"), (("aws",), "aws"), (("scf",), "CODE"),
    (("scf", "/no/such/folder", "--event", "x"), "/no/such/folder")))
def test_usage_error__arguments(arguments: Tuple[str, ...], word: str) -> None:
    """A missing or unknown argument gives status 2 and no traceback."""
    done = run([*START_EMULATOR, *arguments])
    assert (done.status, done.out) == (2, b"") and word in done.err
    assert "Traceback" not in done.err


def test_help() -> None:
    """--help knows each option of SPEC.md's limits tables; --version both versions."""
    said = run([*START_EMULATOR, "--help"]).out.decode()
    told = {record["option"] for table in spec.load().tables if "option" in table.header
            and not table.section[0].startswith("9") for record in table.records()}
    assert {option for option in told if option.startswith("--")
            and option not in said} == set()
    assert re.fullmatch(rb"\S+ \d+\.\d+\.\d+, SPEC \d+\.\d+\n",
                        run([*START_EMULATOR, "--version"]).out)


@pytest.mark.parametrize("task", ("--event", "--jsonl"))
def test_closed_stdout(task: str, code: str) -> None:
    """A reader that has gone ends the run without a traceback."""
    options = [task] if task == "--jsonl" else [
        part for _ in range(2) for part in (task, event(["say", "x" * 90000]).decode())]
    with subprocess.Popen(words("scf", code, *options), stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdout.close()
        process.stdin.write(b'{"event": "x"}\n{"event": "y"}\n')
        process.stdin.close()
        said = process.stderr.read()
    assert process.returncode == 1 and b"Traceback" not in said
    assert b"BrokenPipe" not in said


BAD_LINES = [b'{"id": NaN, "event": ""}', b"{", b"[]", b"{}", b'{"event": 1}', b"\xff",
             b'{"event_base64": "!"}', b'{"event": "\\ud800"}', b"[" * 100000]


@PROTOCOLS
def test_jsonl_malformed(protocol: str, code: str) -> None:
    """A malformed line gives one line that says which; the next is served."""
    lines = [*BAD_LINES, b'{"id": [7], "event": 5}', b'{"id": 1, "event": "on"}']
    done = run(words(protocol, code, "--jsonl"), b"\n".join(lines))
    *bad, last = [json.loads(line) for line in done.out.splitlines()]
    assert [one["kind"] for one in bad] == ["invalid-line"] * (len(BAD_LINES) + 1)
    assert all("line %d: " % number in one["message"]
               for number, one in enumerate(bad, 1))
    assert bad[-1]["id"] == [7] and "event" in bad[-1]["message"]
    assert last["kind"] == "ok" and done.status == 1


class Live:
    """A running emulator whose stderr is read line by line."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process
        self.lines: List[str] = []
        self.more = threading.Condition()
        self.thread = background(self._read)

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            with self.more:
                self.lines.append(line.decode())
                self.more.notify_all()

    def await_line(self, pattern: str) -> "re.Match[str]":
        """Return the match of the first line that has one."""
        def found() -> Optional["re.Match[str]"]:
            matches = (re.search(pattern, line) for line in self.lines)
            return next((match for match in matches if match), None)

        with self.more:
            match = self.more.wait_for(found, 20)
        assert match, self.lines
        return match

    def port(self) -> int:
        """Return the port of the front door."""
        return int(self.await_line(r"serving \w+ on http://[^ ]*:(\d+)")[1])

    def ask(self, body: str) -> Tuple[str, bytes]:
        """Return outcome and body of an event."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port(), timeout=20)
        with contextlib.closing(connection):
            connection.request("POST", "/-/invoke", body.encode())
            answer = connection.getresponse()
            return answer.getheader("X-Outcome") or "", answer.read()

    def line(self) -> bytes:
        """Return the next line of its stdout."""
        assert self.process.stdout is not None
        assert select.select([self.process.stdout], [], [], 10)[0], self.lines
        return self.process.stdout.readline()

    def end(self, number: int) -> int:
        """Send a signal; return the exit status."""
        self.process.send_signal(number)
        status = self.process.wait(20)
        self.thread.join(5)
        assert not any("Traceback" in line for line in self.lines), self.lines
        return status


@contextlib.contextmanager
def live(command: Sequence[str], **env: str) -> Iterator[Live]:
    """Run an emulator meanwhile; it ends in order, or its bootstrap would stay."""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, bufsize=0,
                          env={**os.environ, **env}) as process:
        one = Live(process)
        try:
            yield one
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(20)
            finally:
                process.kill()
                one.thread.join(5)


def listens(port: int) -> bool:
    """Tell whether somebody takes connections there."""
    try:
        socket.create_connection(("127.0.0.1", port), 20).close()
        return True
    except ConnectionError:  # refused; reset if it waited to be accepted
        return False


def gone(process_id: int) -> bool:
    """Wait until a process has ended."""
    return until(lambda: process_state(process_id) in ("X", "Z"))


def test_serve__port(code: str) -> None:
    """A port that is taken: status 2, and one line names it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run(words("scf", code, "--serve", port))
    assert done.status == 2 and port in done.err and len(done.err.splitlines()) == 1


@PROTOCOLS
def test_any_stop_drain__signal(protocol: str, code: str,
                                tmp_path: pathlib.Path) -> None:
    """It lets the running event end, takes no new one, and exits with 0."""
    go = str(tmp_path / "go")
    os.mkfifo(go)
    script = event(["note", "here"], ["wait", go], ["pid"]).decode()
    answers: List[Tuple[str, bytes]] = []
    with live(words(protocol, code, "--serve", "0", "--timeout", "20")) as one:
        port = one.port()
        caller = background(lambda: answers.append(one.ask(script)))
        assert until(pathlib.Path(code, "notes").exists)
        one.process.send_signal(signal.SIGTERM)
        assert until(lambda: not listens(port))
        scripted_bootstrap.tell(go)
        assert one.process.wait(20) == 0
        caller.join(10)
    assert answers[0][0] == "ok" and gone(int(answers[0][1]))


@PROTOCOLS
def test_any_stop_drain__cut_short(protocol: str, code: str) -> None:
    """A second signal ends what runs: its caller is told, its process is gone."""
    with live(words(protocol, code, "--serve", "0", "--timeout", "600")) as one:
        process_id = int(one.ask(PID)[1])
        answers: List[Tuple[str, bytes]] = []
        caller = background(lambda: answers.append(one.ask(HANG)))
        assert until(pathlib.Path(code, "notes").exists)
        one.process.send_signal(signal.SIGTERM)
        one.await_line("1 still running; another signal ends that now")
        assert not listens(one.port()) and one.process.poll() is None
        assert one.end(signal.SIGINT) == 0 and gone(process_id)
        caller.join(10)
        assert answers[0][0] == "cancelled"
        one.await_line("2 invocations: 1 ok, 1 cancelled; 1 cold start")


@PROTOCOLS
@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGTERM))
def test_any_process_group__leftovers_signal(protocol: str, number: int, code: str,
                                             tmp_path: pathlib.Path) -> None:
    """A signal in a one shot leaves no process and no unpacked package."""
    (tmp_path / "temporary").mkdir()
    package = shutil.make_archive(str(tmp_path / "code"), "zip", code)
    with live(words(protocol, package, "--event", PID, "--event", HANG, "--timeout",
                    "30"), TMPDIR=str(tmp_path / "temporary")) as one:
        process_id = int(one.line())
        assert one.end(number) == 130
    assert gone(process_id) and list((tmp_path / "temporary").iterdir()) == []


@PROTOCOLS
def test_attach(protocol: str, code: str) -> None:
    """--attach prints the environment; a bootstrap started by hand with it serves."""
    with live(words(protocol, code, "--attach", "--serve", "0")) as one:
        one.await_line("^export [A-Z_]*REGION|^export RUNTIME_MAX")
        exports = [line for line in one.lines if line.startswith("export ")]
        script = "".join(exports) + "exec " + code + "/bootstrap"
        with subprocess.Popen(["sh", "-c", script], env={"PATH": os.defpath},
                              stderr=subprocess.DEVNULL) as child:
            try:
                assert [one.ask(text)[1] for text in ("a", "b")] == [b"a", b"b"]
            finally:
                child.kill()
