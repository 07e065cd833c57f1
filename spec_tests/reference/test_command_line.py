# test_command_line.py: emulator.py as people use it (MIT).
"""Run emulator.py as a program: what it prints, what it returns, what it leaves."""

import base64
import contextlib
import errno
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
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import emulator
import pytest
import scripted_bootstrap
import spec
from gateways import keep_terminating
from harness import PROTOCOLS, PULL, background, event, process_state, until
from implementations import START_EMULATOR

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


@pytest.fixture
def code(tmp_path: pathlib.Path) -> str:
    """A folder with a bootstrap that does what its events say."""
    return scripted_bootstrap.place(tmp_path / "code")


def words(protocol: str, folder: str, *options: str) -> List[str]:
    """Return the command; fc servers get a free port."""
    port = ["--port", "0"] if protocol == "fc" else []
    return [*START_EMULATOR, protocol, folder, *port, *options]


def run(command: Sequence[str], stdin: bytes = b"", **env: str) -> Run:
    """Run a command to its end."""
    done = subprocess.run(command, input=stdin, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=30, env={**os.environ, **env})
    return Run(done.returncode, done.stdout, done.stderr.decode())


# ---- one shot ----


@PROTOCOLS
def test_one_shot(protocol: str, code: str) -> None:
    """Results go to stdout, one line each and nothing else; the rest to stderr."""
    done = run(words(protocol, code, "--event", '{"a": 1}', "--event", "", "--event",
                     "line\n"))
    assert (done.status, done.out) == (0, b'{"a": 1}\nline\n')
    assert "3 ok; 1 cold start" in done.err.splitlines()[-1]


@pytest.mark.parametrize("closed,options,status,out,err", (
    ("<&-", ("--jsonl",), 0, b"", ""), ("<&-", ("--event", "-"), 0, b"", "1 ok"),
    (">&-", ("--event", "x"), 0, b"", "1 ok"),
    ("2>&-", ("--event", "x"), 0, b"x\n", ""),
    ("<&- >&- 2>&-", ("--event", FAIL), 1, b"", "")))
def test_closed_files(closed: str, options: Tuple[str, ...], status: int, out: bytes,
                      err: str, code: str) -> None:
    """A standard file that is closed is an empty one."""
    done = run(["sh", "-c", 'exec "$@" ' + closed, "sh", *words("scf", code, *options)])
    assert (done.status, done.out) == (status, out)
    assert err in done.err and bool(err) == bool(done.err)
    assert "Traceback" not in done.err


def test_one_shot_long_name(code: str) -> None:
    """`functiongraph` means fg, and CODE may stand behind the options."""
    done = run([*START_EMULATOR, "functiongraph", "--event", "x", code])
    assert done.out == b"x\n", done.err


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


POSTS_AT_THE_END = """#!/usr/bin/env bash
api=http://$SCF_RUNTIME_API:$SCF_RUNTIME_API_PORT/runtime
trap 'curl -s -d again $api/invocation/response; exit 0' TERM
curl -s -d ' ' $api/init/ready
curl -s $api/invocation/next >event
curl -s -d "$(cat event)" $api/invocation/response
sleep 60 & wait
"""


def test_exit_status__at_the_end(code: str) -> None:
    """A rule that is broken at the very end counts, and is in the last line."""
    pathlib.Path(code, "bootstrap").write_text(POSTS_AT_THE_END)
    done = run(words("scf", code, "--strict", "--event", "x"))
    assert done.status == 3 and done.out == b"x\n"
    assert "broke scf.result.locked" in done.err
    assert done.err.splitlines()[-1].endswith("1 ok; 1 cold start; 1 broken rule")


def test_summary__counts(code: str) -> None:
    """The last line tells which rules were broken, and how often."""
    wrong = ["ask", "GET /x HTTP/1.1\r\n\r\n"]
    done = run(words("scf", code, "--event", event(wrong, wrong, wrong).decode(),
                     "--event", HALF))
    assert done.err.splitlines()[-1].endswith(
        "1 cold start; 2 broken rules, any.api.unknown 3 times")
    assert done.err.count("broke any.api.unknown: GET /x\n") == 1


@pytest.mark.parametrize("protocol,option,said", (
    ("scf", "--init-timeout", "the bootstrap did not post /runtime/init/ready"),
    ("fg", "--timeout", "the bootstrap did not ask for an event")))
def test_any_init_timeout__said(protocol: str, option: str, said: str,
                                code: str) -> None:
    """The message names the call that was missing."""
    scripted_bootstrap.place(pathlib.Path(code), {"start": [["hang"]]})
    done = run(words(protocol, code, "--event", "x", option, "0.3"))
    assert done.status == 1
    assert "emulator: init-timeout: %s within 0.3 s" % said in done.err


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


# ---- mistakes ----

USAGE: List[Tuple[Tuple[str, ...], str]] = [
    ((), "--event"), (("--event", "@/no/such/file"), "/no/such/file"),
    (("--events", "/no/such/file"), "--events"),
    (("--event", "x", "--credentials", "/no/such"), "--credentials"),
    (("--no-such-option",), "--no-such-option"),
    (("--event", "x", "--timeout", "soon"), "--timeout"),
    (("--event", "x", "--timeout", "0"), "--timeout"),
    (("--event", "x", "--grace", "1e10"), "--grace"),
    (("--event", "x", "--env", "A"), "--env"),
    (("--event", "x", "--env", "SCF_A=1"), "SCF_A"),
    (("--event", "x", "--concurrency", "2"), "--concurrency"),
    (("--event", "x", "--initializer"), "--initializer"),
    (("--jsonl", "--parallel", "1000000000"), "1 to 10000"),
    (("--event", "x", "--parallel", "2"), "--parallel"),
    (("--serve", "localhost:http"), "--serve"), (("--serve", "70000"), "--serve"),
    (("--serve", "9" * 5000), "--serve"), (("--serve", "192.0.2.1:0"), "--serve"),
    (("--event", "x", "--", "ls"), "--"),
    (("--event", "x", "--attach", "--port", "70000"), "--port"),
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
    done = run([sys.executable, str(emulator.__file__), *arguments])
    assert (done.status, done.out) == (2, b"") and word in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize("script,name", (
    ('ulimit -f 0; exec "$@"', "code.zip"),
    ('mkdir x; cd x; rmdir ../x; exec "$@"', ".")),
    ids=("no temporary folder", "deleted folder"))
def test_usage_error__folder(script: str, name: str, code: str,
                             tmp_path: pathlib.Path) -> None:
    """Where there is no folder to use: status 2, and one line that names CODE."""
    shutil.make_archive(str(tmp_path / "code"), "zip", code)
    path = name if name == "." else str(tmp_path / name)
    done = run(["sh", "-c", 'cd "$0"; ' + script, str(tmp_path),
                *words("scf", path, "--event", "x")])
    assert (done.status, done.out, done.err.count("\n")) == (2, b"", 1), done.err
    assert done.err.startswith("emulator: %s " % path)


def test_any_credentials_role__unknown(code: str, tmp_path: pathlib.Path) -> None:
    """A misspelt key is refused, and those that are known are told."""
    (tmp_path / "c.json").write_text('{"access_key": "x"}')
    done = run(words("fc", code, "--event", "x", "--credentials",
                     str(tmp_path / "c.json")))
    assert done.status == 2 and "--credentials" in done.err
    assert "access_key_id, access_key_secret, security_token, auth_token" in done.err


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
@pytest.mark.parametrize("protocol", ("scf", "fc"))
def test_closed_stdout(protocol: str, task: str, code: str) -> None:
    """A reader that has gone ends the run without a traceback."""
    texts = [event(["say", "x" * 90000]).decode()] * 2 if task == "--event" else []
    options = [part for text in texts for part in (task, text)] or [task]
    with subprocess.Popen(words(protocol, code, *options), stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdout.close()
        process.stdin.write(b'{"event": "x"}\n{"event": "y"}\n')
        process.stdin.close()
        said = process.stderr.read()
    assert process.returncode == 1 and b"Traceback" not in said
    assert b"BrokenPipe" not in said


@pytest.mark.parametrize("task", ("--event", "--jsonl"))
@pytest.mark.parametrize("protocol", ("scf", "fc"))
def test_full_stdout(protocol: str, task: str, code: str) -> None:
    """A stdout that cannot be written: status 1, one line names it and the error."""
    texts = ["x"] if task == "--event" else []
    done = run(["sh", "-c", 'exec "$@" > /dev/full', "sh",
                *words(protocol, code, "--quiet", task, *texts)],
               b'{"event": "x"}\n' * 3, PYTHONUNBUFFERED="")
    assert done.status == 1 and done.err.count("\n") == 1
    assert "stdout" in done.err and os.strerror(errno.ENOSPC) in done.err


# ---- the adapter ----


def adapter(protocol: str, folder: str, *lines: object, options: Tuple[str, ...] = ()
            ) -> Tuple[int, List[Dict[str, Any]]]:
    """Return status and outcomes of a --jsonl run."""
    text = b"".join((line if isinstance(line, bytes) else json.dumps(line).encode())
                    + b"\n" for line in lines)
    done = run(words(protocol, folder, "--jsonl", *options), text)
    return done.status, [json.loads(line) for line in done.out.splitlines()]


@PULL
def test_jsonl(protocol: str, code: str) -> None:
    """One outcome per line, in the order of the lines, with their ids and no others."""
    status, outcomes = adapter(
        protocol, code, {"id": "a", "event": "one"}, {"event": ""}, {"id": [1],
        "event_base64": base64.b64encode(b"\xff\0").decode()}, {"id": 4, "event": HALF},
        {"id": 5, "event": FAIL})
    assert status == 1 and [one["id"] for one in outcomes] == ["a", None, [1], 4, 5]
    assert [one["kind"] for one in outcomes] == ["ok"] * 4 + ["function-error"]
    assert [one.get("body") for one in outcomes[:4]] == ["one", "", None, "whole"]
    assert base64.b64decode(outcomes[2]["body_base64"]) == b"\xff\0"
    assert all(one["request_id"] and one["duration_ms"] >= 0 for one in outcomes)
    assert [one["rule"] for one in outcomes[3]["violations"]] == ["any.http.no-effect"]


BAD_LINES = [b'{"id": NaN, "event": ""}', b'{"id": [1e999], "event": ""}',
             b"{", b"[]", b"1", b"{}", b'{"event": 1}', b'{"event": null}', b"\xff",
             b'{"event_base64": "!"}', b'{"event_base64": 1}', b'{"event": "\\ud800"}',
             b'{"method": "GET", "headers": 1, "event": ""}', b"[" * 100000]


@PROTOCOLS
def test_jsonl_malformed(protocol: str, code: str) -> None:
    """A malformed line gives one line that says which; the next is served."""
    status, outcomes = adapter(protocol, code, *BAD_LINES, {"id": [7], "event": 5},
                               {"id": 1, "event": "on"})
    bad = outcomes[:-1]
    assert [one["kind"] for one in bad] == ["invalid-line"] * (len(BAD_LINES) + 1)
    assert all("line %d: " % number in one["message"]
               for number, one in enumerate(bad, 1))
    assert outcomes[-2]["id"] == [7] and "event" in outcomes[-2]["message"]
    assert outcomes[-1]["kind"] == "ok" and status == 1


def test_jsonl_http(code: str) -> None:
    """An invocation of fc may be an HTTP request; the outcome has status and fields."""
    _, outcomes = adapter("fc", code, {"method": "POST", "path": "/a?b=1", "event": "x",
                                       "headers": [["A", "b"]]},
                          {"id": 0, "method": "GET", "headers": [["A"]]})
    assert (outcomes[0]["status"], outcomes[0]["body"]) == (200, "x")
    assert all(len(pair) == 2 for pair in outcomes[0]["headers"])
    assert "headers must be a list of [name" in outcomes[1]["message"]


# ---- processes that go on ----


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

    def write(self, line: bytes) -> None:
        """Write a line to its stdin."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + b"\n")
        self.process.stdin.flush()

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


def hangs(code: str) -> bool:
    """Wait until the event HANG has reached the function."""
    return until(pathlib.Path(code, "notes").exists)


def gone(process_id: int) -> bool:
    """Wait until a process has ended."""
    return until(lambda: process_state(process_id) in ("X", "Z"))


@PROTOCOLS
def test_serve__failure(protocol: str, tmp_path: pathlib.Path) -> None:
    """While serving, too, it is said on stderr why an invocation failed."""
    with live(words(protocol, str(tmp_path), "--serve"), PORT="0") as one:
        assert one.ask("x")[0] == "start-error"
        one.await_line("^emulator: start-error: .*bootstrap")


def test_serve__port(code: str) -> None:
    """A port that is taken, or a PORT that is none: status 2, and one line names it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run(words("scf", code, "--serve", port))
    assert done.status == 2 and port in done.err and len(done.err.splitlines()) == 1
    done = run(words("scf", code, "--serve"), PORT="abc")
    assert done.status == 2 and "the variable PORT is 'abc', not a port" in done.err


@PROTOCOLS
@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGHUP))
def test_any_stop_drain__signal(protocol: str, number: int, code: str,
                                tmp_path: pathlib.Path) -> None:
    """It lets the running event end, takes no new one, and exits with 0."""
    go = str(tmp_path / "go")
    os.mkfifo(go)
    script = event(["note", "here"], ["wait", go], ["pid"]).decode()
    answers: List[Tuple[str, bytes]] = []
    with live(words(protocol, code, "--serve", "0", "--timeout", "20")) as one:
        port = one.port()
        caller = background(lambda: answers.append(one.ask(script)))
        assert hangs(code)
        one.process.send_signal(number)
        assert until(lambda: not listens(port))
        scripted_bootstrap.tell(go)
        assert one.process.wait(20) == 0
        caller.join(10)
    assert answers[0][0] == "ok" and gone(int(answers[0][1]))


@PROTOCOLS
def test_any_stop_drain__many_signals(protocol: str, code: str) -> None:
    """Signals until the end do not change the status."""
    with live(words(protocol, code, "--serve", "0")) as one:
        assert one.ask("x") == ("ok", b"x")
        keep_terminating(one.process)
        assert one.end(signal.SIGTERM) == 0


def listens(port: int) -> bool:
    """Tell whether somebody takes connections there."""
    try:
        socket.create_connection(("127.0.0.1", port), 20).close()
        return True
    except ConnectionError:  # refused; reset if it waited to be accepted
        return False


@PROTOCOLS
def test_any_stop_drain__cut_short(protocol: str, code: str) -> None:
    """A second signal ends what runs: its caller is told, its process is gone."""
    with live(words(protocol, code, "--serve", "0", "--timeout", "600")) as one:
        process_id = int(one.ask(PID)[1])
        answers: List[Tuple[str, bytes]] = []
        caller = background(lambda: answers.append(one.ask(HANG)))
        assert hangs(code)
        one.process.send_signal(signal.SIGTERM)
        one.await_line("1 still running; another signal ends that now")
        assert not listens(one.port()) and one.process.poll() is None
        assert one.end(signal.SIGINT) == 0 and gone(process_id)
        caller.join(10)
        assert answers[0][0] == "cancelled"
        one.await_line("2 invocations: 1 ok, 1 cancelled; 1 cold start")


@PROTOCOLS
@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGTERM, signal.SIGHUP,
                                    signal.SIGQUIT))
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
def test_any_outcome_exit__at_once(protocol: str, code: str) -> None:
    """kill -9 of the bootstrap in the middle of an event gives `exit` at once."""
    with live(words(protocol, code, "--jsonl", "--timeout", "600")) as one:
        one.write(json.dumps({"event": PID}).encode())
        process_id = int(json.loads(one.line())["body"])
        one.write(json.dumps({"event": HANG}).encode())
        assert hangs(code)
        os.kill(process_id, signal.SIGKILL)
        assert json.loads(one.line())["kind"] == "exit"


# ---- attach ----


@contextlib.contextmanager
def by_hand(one: Live, protocol: str, code: str) -> Iterator[None]:
    """Start the bootstrap with the environment that --attach has printed."""
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
    with live(words(protocol, code, "--attach", "--event", "hello")) as one:
        with by_hand(one, protocol, code):
            assert one.line() == b"hello\n" and one.process.wait(10) == 0
    with live(words(protocol, code, "--attach", "--serve", "0")) as one:
        with by_hand(one, protocol, code):  # before there is an event
            assert [one.ask(text) for text in ("a", "b")] == [
                ("ok", b"a"), ("ok", b"b")]


@PULL
def test_attach__port_taken(protocol: str, code: str) -> None:
    """A runtime API whose port is taken is a start-error that names the port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(words(protocol, code, "--attach", "--event", "x", "--port",
                         str(port)))
    said = "start-error: no runtime API on port %d: " % port
    assert done.status == 1 and said in done.err
