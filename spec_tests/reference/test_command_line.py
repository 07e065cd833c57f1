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
import sys
import threading
from typing import (Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence,
                    Tuple)

import emulator
import pytest
import scripted_bootstrap
import spec
from harness import (PROTOCOLS, background, code, event, fifo, process_state,
                     until)
from implementations import START_EMULATOR

__all__ = ["code", "fifo"]
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


@pytest.mark.parametrize("status,kind,said", (
    (404, "function-error", "has the server this route? For HTTP functions use"),
    (405, "ok", "takes that as success; has the server this route?"),
    (500, "ok", "status 500 and no X-Fc-Status; the cloud takes that as success")))
def test_fc_invoke_status__strict(status: int, kind: str, said: str, code: str) -> None:
    """What the cloud does not mind is told, and counts with --strict."""
    answer = "HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % status
    done = run(words("fc", code, "--strict", "--event",
                     event(["send", answer]).decode()))
    assert done.status == 3 and "1 " + kind in done.err
    assert "the bootstrap broke fc.invoke.status: POST /invoke was answ" in done.err
    assert said in done.err and (kind == "ok" or "function-error: POST " in done.err)


TYPED = '{"errorType": "KeyError", "errorMessage": "no\\nname", "stackTrace": []}'


@pytest.mark.parametrize("protocol,steps,said", (
    ("scf", ["fail", TYPED], "the bootstrap reported an error: KeyError: no name"),
    ("fg", ["fail", "why\nso"], "the bootstrap reported an error: why so"),
    ("scf", ["fail", "[" * 99999], "the bootstrap reported an error: [[["),
    ("fc", ["send", "HTTP/1.1 404 X\r\nX-Fc-Status: 404\r\nContent-Length: %d\r\n\r\n%s"
            % (len(TYPED), TYPED)], "the function reported a failure: KeyError: no na")))
def test_any_error_document__said(protocol: str, steps: List[str], said: str,
                                  code: str) -> None:
    """What the error document says stands in the message, on one line."""
    done = run(words(protocol, code, "--event", event(steps).decode()))
    assert "emulator: function-error: " + said in done.err


@pytest.mark.parametrize("line,said", (
    ("exit 1", "with status 1 before"), ("kill -9 $$", "by signal 9 (Killed) before"),
    ("no-such", "with status 127 (a command was not found) before")))
def test_fc_start_failed__in_words(line: str, said: str, code: str) -> None:
    """A plain sentence comes first, the cloud's own text after it."""
    pathlib.Path(code, "bootstrap").write_text("#!/bin/sh\n" + line)
    done = run(words("fc", code, "--event", "x"))
    assert "start-error: the bootstrap ended " + said in done.err
    assert re.search(r"was ready\. Function instance exited unexpectedly\(code \d+",
                     done.err)
    assert b"Function instance exited unexpectedly(code " in done.out


BROKEN = """
import sys, emulator
def broken(*arguments, **settings):
    raise KeyError("injected")
place, _, name = sys.argv.pop(1).rpartition(".")
setattr(eval("emulator." + place), name, broken)
sys.exit(emulator.main())
"""


@pytest.mark.parametrize("protocol,place", [
    *(("scf", place) for place in (
        "PullInstance.deliver", "PullInstance.receive", "RuntimeApi.respond",
        "scf_platform.fill_in", "scf_platform.caller_answer", "scf_platform.find_call",
        "PullInstance._answer", "PullInstance.exited", "Platform.log_line",
        "RuntimeApi.post", "Platform.environment", "Instance.begin")),
    *(("fc", place) for place in (
        "PushInstance._send", "PushInstance._connect", "PushInstance._judge",
        "fc_platform.judge_answer", "Answer.begin", "Platform.environment",
        "Upstream.read_answer", "fc_platform.caller_answer"))])
def test_errors_of_our_own(protocol: str, place: str, code: str) -> None:
    """One shows its traceback, no caller waits in vain, and the status is not 0."""
    options = words(protocol, code, "--event", "x", "--event", "y")
    done = run([sys.executable, "-c", BROKEN, place, *options[len(START_EMULATOR):]],
               PYTHONPATH=str(pathlib.Path(emulator.__file__).parent))
    assert done.status == 1
    assert "Traceback" in done.err and "KeyError: 'injected'" in done.err
    assert "timeout" not in done.err and "not-fetched" not in done.err


@pytest.mark.parametrize("options,env,status,said", (
    (("--port", "8080", "--serve"), {}, 0, "127.0.0.1:8081,"),
    (("--port", "8080", "--serve", "8080"), {}, 2, "8080 is the function's own"),
    (("--serve", "0.0.0.0:9000"), {}, 2, "9000 is the function's own"),
    (("--port", "8080", "--serve"), {"PORT": "8080"}, 2, "8080 is the function's own"),
    (("--port", "0", "--serve", "0"), {}, 0, "serving fc on ")))
def test_serve_port__own(options: Tuple[str, ...], env: Dict[str, str], status: int,
                         said: str, code: str) -> None:
    """The front door never takes the port that the function is to listen on."""
    with subprocess.Popen([*START_EMULATOR, "fc", code, *options], text=True,
                          stderr=subprocess.PIPE, env={**os.environ, **env}) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        if "address already in use" in line.lower():
            pytest.skip("somebody else has this port")
        assert said in line
        if not status:
            process.terminate()
        assert process.wait(10) == status


def test_summary__counts(code: str) -> None:
    """A breach is told once, with the nearest call; the last line counts them."""
    wrong = ["ask", "GET /runtime/invocation/nexts HTTP/1.1\r\n\r\n"]
    done = run(words("scf", code, "--event", event(wrong, wrong, wrong).decode(),
                     "--event", HALF))
    assert done.err.splitlines()[-1].endswith(
        "1 cold start; 2 broken rules, any.api.unknown 3 times")
    assert done.err.count("broke any.api.unknown: GET /runtime/invocation/nexts; the "
                          "nearest is GET /runtime/invocation/next\n") == 1


def test_fg_result_unknown_id__said(code: str) -> None:
    """The id that came is told with the one that was due."""
    wrong = "POST /v1/runtime/invocation/response/nobody HTTP/1.1\r\n\r\n"
    done = run(words("fg", code, "--event", event(["ask", wrong]).decode()))
    assert re.search(r"broke fg.result.unknown-id: .*'nobody'; due is [0-9a-f-]{36}",
                     done.err)


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


@contextlib.contextmanager
def by_hand(one: Live, code: str) -> Iterator[None]:
    """Start the bootstrap with the variables that an emulator printed, meanwhile."""
    one.await_line("^export [A-Z_]*REGION|^export RUNTIME_MAX")
    exports = [line for line in one.lines if line.startswith("export ")]
    script = "".join(exports) + "exec " + code + "/bootstrap"
    with subprocess.Popen(["sh", "-c", script], env={"PATH": os.defpath},
                          stderr=subprocess.DEVNULL) as child:
        try:
            yield
        finally:
            child.kill()


@PROTOCOLS
def test_attach(protocol: str, code: str) -> None:
    """--attach prints the environment; a bootstrap started by hand with it serves."""
    with live(words(protocol, code, "--attach", "--serve", "0")) as one:
        with by_hand(one, code):
            assert [one.ask(text)[1] for text in ("a", "b")] == [b"a", b"b"]


@PROTOCOLS
def test_attach__breakpoint(protocol: str, code: str, fifo: Callable[[str], str]
                            ) -> None:
    """One that stood still beyond the limit gets the next event when it goes on; it is
    not blamed for what it says late, nor asked to start again."""
    go = fifo("go")
    with live(words(protocol, code, "--attach", "--serve", "0", "--timeout", "0.4",
                    "--strict")) as one, by_hand(one, code):
        assert one.ask("a")[1] == b"a"
        assert one.ask(event(["wait", go]).decode())[0] == "timeout"
        scripted_bootstrap.tell(go)
        assert one.ask("b") == ("ok", b"b")
        assert one.end(signal.SIGINT) == 0
    assert len([line for line in one.lines if "REGION=" in line]) <= 1


@pytest.mark.parametrize("packed", (False, True), ids=("folder", "ZIP"))
@PROTOCOLS
def test_watch(protocol: str, packed: bool, code: str, tmp_path: pathlib.Path,
               fifo: Callable[[str], str]) -> None:
    """After a change of a file the next event is in a new instance; the running one
    ends with its result, and nothing is left of its package."""
    here, go, temporary = fifo("here"), fifo("go"), tmp_path / "temporary"
    temporary.mkdir()

    results: List[Tuple[str, bytes]] = []

    def change(text: str) -> str:
        pathlib.Path(code, "version").write_text(text)
        return shutil.make_archive(str(tmp_path / "code"), "zip", code) if (
            packed) else code

    def ask(one: Live, *steps: List[str]) -> threading.Thread:
        script = event(*steps, ["pid"]).decode()
        return background(lambda: results.append(one.ask(script)))

    options = ("--watch", "--serve", "0", "--timeout", "20")
    with live(words(protocol, change("1"), *options), TMPDIR=str(temporary)) as one:
        first = one.ask(PID)
        assert one.ask(PID) == first
        running = ask(one, ["tell", here], ["wait", go])
        scripted_bootstrap.wait(here)
        change("22")
        other = one.ask(PID)
        one.await_line("the code has changed; the next event gets a new instance")
        scripted_bootstrap.tell(go)
        running.join(20)
        assert results == [first] and other != first
        assert one.ask(PID) == other and gone(int(first[1]))
        assert until(lambda: len(list(temporary.iterdir())) == int(packed))
        change("333")
        assert one.ask(PID) not in (first, other)
        assert one.end(signal.SIGTERM) == 0
    assert list(temporary.iterdir()) == []


@PROTOCOLS
def test_watch__one_instance(protocol: str, code: str, fifo: Callable[[str], str]
                             ) -> None:
    """Where there is one instance at a time, the next event waits for the running."""
    here, go, results = fifo("here"), fifo("go"), []
    settings: Dict[str, Any] = {"port": 0} if protocol == "fc" else {}
    with emulator.Platform(protocol, code, watch=True, max_instances=1, timeout_s=20,
                           **settings) as platform:
        first = background(lambda: results.append(platform.invoke(
            event(["tell", here], ["wait", go], ["pid"])).body))
        scripted_bootstrap.wait(here)
        pathlib.Path(code, "version").write_text("new")
        second = background(lambda: results.append(platform.invoke(PID.encode()).body))
        assert until(lambda: platform.state()["queued"] == 1)
        scripted_bootstrap.tell(go)
        first.join(20)
        second.join(20)
    assert platform.counts["ok"] == 2 and len(set(results)) == 2
