# test_command_line.py: emulator.py as people use it (MIT).
"""Run emulator.py as a program: what it prints, what it returns, what it leaves."""

import contextlib
import http.client
import json
import os
import pathlib
import pty
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import emulator
import fork_server
import pytest
import scripted_bootstrap
import spec
from harness import (PROTOCOLS, PULL, background, code, event, fifo, process_state,
                     run, until)
from implementations import START_EMULATOR, start_words

__all__ = ["code", "fifo"]
HALF = event(["half", "POST {response} HTTP/1.1\r\nContent-Length: 9\r\n\r\nhalf"],
             ["say", "whole"]).decode()
FAIL = event(["fail", "why"]).decode()
ATTACH = ("--attach", "--port", "0")
PID, HANG = event(["pid"]).decode(), event(["note", "hangs"], ["hang"]).decode()
EXIT = event(["exit", 3]).decode()


def words(protocol: str, folder: str, *options: str) -> List[str]:
    """Return the command; fc servers get a free port."""
    port = ["--port", "0"] if protocol == "fc" else []
    return [*START_EMULATOR, protocol, folder, *port, *options]


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
            % (len(TYPED), TYPED)], "the function reported a failure: KeyError: no n")))
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


SPOILED = start_words(pathlib.Path(__file__).with_name("spoiled_emulator.py"))


@pytest.mark.parametrize("protocol,place", [
    *(("scf", place) for place in (
        "PullInstance.deliver", "PullInstance.receive", "RuntimeApi.respond",
        "scf_platform.fill_in", "scf_platform.caller_answer", "scf_platform.find_call",
        "PullInstance._answer", "PullInstance.exited", "Platform.log_line",
        "RuntimeApi.answer", "Platform.environment", "Instance.begin")),
    *(("fc", place) for place in (
        "PushInstance._send", "PushInstance._connect", "PushInstance._judge",
        "fc_platform.judge_answer", "Answer.begin", "Platform.environment",
        "Upstream.read_answer", "fc_platform.caller_answer"))])
def test_errors_of_our_own(protocol: str, place: str, code: str) -> None:
    """One shows its traceback, no caller waits in vain, and the status is not 0."""
    options = words(protocol, code, "--event", "x", "--event", "y")
    done = run([*SPOILED, place, *options[len(START_EMULATOR):]])
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
    with live([*START_EMULATOR, "fc", code, *options], **env) as one:
        line = one.await_line("").string
        if "address already in use" in line.lower():
            pytest.skip("somebody else has this port")
        assert said in line
        if not status:
            one.process.terminate()
        assert one.process.wait(10) == status


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
    """Each line of a trace is JSON; its rules are in SPEC.md; `-` means stderr. Each
    message has its method and path or its status, and its size."""
    options = ("--event", "hello", "--event", EXIT, "--quiet", "--trace")
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
        requests = [line for line in lines if line["what"] in ("call", "request")]
        answers = [line for line in lines if line["what"] in ("reply", "answer")]
        assert all(line["method"] and line["path"][0] == "/" for line in requests)
        assert answers and all(line["status"] == 200 for line in answers)
        assert {line["bytes"] for line in requests + answers} >= {5}
    assert done.out.startswith(b"hello\n") and b'"what"' not in done.out


def test_library() -> None:
    """The example of the documentation works: a platform inside a `with`."""
    code = str(pathlib.Path(__file__).resolve().parents[2] / "examples/bash/scf")
    with emulator.Platform("scf", code=code) as platform:
        outcome = platform.invoke(b'{"key": "value"}')
        assert outcome.kind == "ok" and not outcome.violations


USAGE: Dict[str, List[Tuple[Tuple[str, ...], str]]] = {"scf .": [
    ((), "--event"), (("--event", "@/no/such/file"), "/no/such/file"),
    (("--no-such-option",), "--no-such-option"),
    (("--event", "x", "--timeout", "0"), "--timeout"),
    (("--event", "x", "--env", "SCF_A=1"), "SCF_A"),
    (("--event", "x", "--concurrency", "2"), "--concurrency"),
    (("--event", "x", "--parallel", "2"), "--parallel applies to --jsonl alone"),
    (("--jsonl", "--parallel", "0"), "(--parallel) must be more than 0"),
    (("--jsonl", "--parallel", "1.5"), "(--parallel) must be a whole number"),
    (("--jsonl", "--parallel", "x"), "--parallel takes N, not 'x'"),
    (("--event", "x", "--tiemout", "2"), "--tiemout; the nearest is --timeout"),
    (("--event", "x", "--timeout", "2s"), "--timeout takes SECONDS, not '2s'"),
    (("--event", "x", "--timeout", "nan"), "--timeout"),
    (("--event", "x", "--quiet=1"), "--quiet takes nothing, not '1'"),
    (("--event",), "--event takes TEXT|@FILE|-"),
    (("--env", "--event", "x"), "--env takes NAME=VALUE"),
    (("--event", "x", "--env", "A"), "--env takes NAME=VALUE, not 'A'"),
    (("--event", "x", "--request", "GET /"), "--request does not apply to scf"),
    (("--event", "x", "--watch", "--attach"), "--watch cannot restart what --attach"),
    (("--event", "x", "--cors", "*"), "--cors applies to --serve alone"),
    (("--serve", "0", "--cors", "localhost"), "--cors takes http://HOST[:PORT]"),
    (("--serve", "0", "--cors", "http://a/b"), "--cors takes http://HOST[:PORT]"),
    (("--serve", "0", "--sample-event", "smn"), "--sample-event takes apigw or timer"),
    (("--event", "x", "--env-file", "/no/such"), "--env-file /no/such: No such file"),
    (("--serve", "localhost:http"), "--serve"), (("--serve", "192.0.2.1:0"), "--serve"),
    (("--event", "x", "--", "ls"), "--"),
    (("--event", "x", "--trace", "/no/such/folder/file"), "--trace")], "fc .": [
    (("--request", "GET"), "--request takes 'METHOD /PATH', not 'GET'"),
    (("--request", "/path"), "--request takes 'METHOD /PATH', not '/path'"),
    (("--request", "GET path"), "--request takes 'METHOD /PATH', not 'GET path'"),
    (("--request", "GET /a b"), "--request takes 'METHOD /PATH', not 'GET /a b'"),
    (("--request", "GET /", "--header", "x"), "--header takes 'NAME: VALUE', not 'x'"),
    (("--request", "GET /", "--header", "a b: c"), "--header takes 'NAME: VALUE'"),
    (("--request", "GET /", "--header", "a: b\r\nc: d"), "--header takes 'NAME: VALU"),
    (("--event", "x", "--header", "a: b"), "--header applies to --request alone"),
    (("--event", "x", "--port", "x"), "--port takes PORT, not 'x'"),
    (("--event", "x", "--port", "1.5"), "--port")], "": [
    ((), "PROTOCOL"), (("aws",), "aws"), (("scf",), "CODE"),
    (("scf", ".", "x", "--event", "y"), "too many arguments: x"),
    (("scf", "/no/such/folder", "--event", "x"), "/no/such/folder")]}


@pytest.mark.parametrize("options,word", [
    pytest.param((*start.split(), *options), word, id=" ".join((start, *options))[:40])
    for start, cases in USAGE.items() for options, word in cases])
def test_usage_error(options: Tuple[str, ...], word: str) -> None:
    """A mistake gives status 2 and one line that names the option."""
    done = run([*START_EMULATOR, *options])
    said = [line for line in done.err.splitlines() if not line.startswith("usage: ")]
    assert (done.status, done.out) == (2, b"") and len(said) == 1 and word in said[0]


def test_help() -> None:
    """--help knows each option of SPEC.md's limits tables; --version both versions."""
    said = run([*START_EMULATOR, "--help"]).out.decode()
    told = {record["option"] for table in spec.load().tables if "option" in table.header
            and not table.section[0].startswith("9") for record in table.records()}
    assert {option for option in told if option.startswith("--")
            and option not in said} == set()
    assert re.fullmatch(rb"\S+ \d+\.\d+\.\d+, SPEC \d+\.\d+\n",
                        run([*START_EMULATOR, "--version"]).out)


@PROTOCOLS
def test_help__protocol(protocol: str) -> None:
    """That of a protocol has its options alone, on a line each, with defaults that
    people read; the same ones work."""
    done = run([*START_EMULATOR, protocol, "--help"])
    lines = done.out.decode().splitlines()
    options = [line.split()[0] for line in lines if line.startswith("  --")]
    assert options[0] == "--event" and len(options) == len(set(options))
    assert ("--freeze" in options) == ("--request" in options) == (protocol == "fc")
    assert max(map(len, lines)) <= 80
    sizes = [line for line in lines if "--max-event" in line or "--memory" in line]
    assert [re.findall(r"\((.*)\)", line)[0] for line in sizes] == [
        "512 MB" if protocol == "fc" else "128 MB", "32 MiB" if protocol == "fc" else
        "6 MiB"]
    others = {limit.option for table in emulator.LIMITS.values()
              for limit in table.values()} - set(options)
    for option in others | {"--request"} - set(options):
        assert " does not apply to " + protocol in run(
            [*START_EMULATOR, protocol, ".", "--event", "x", option, "1"]).err


SERVER = """#!/usr/bin/env python3
import http.server, os
class Home(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        text = "%s %s|%s|" % (self.command, self.path, self.headers.get("X-Mine"))
        status = int(self.path[1:4]) if self.path[1:4].isdigit() else 200
        self.send_response(status)
        self.send_header("Content-Length", str(len(text) + len(body)))
        if self.path == "/cors":
            self.send_header("Access-Control-Allow-Origin", "http://own")
        self.end_headers()
        self.wfile.write(text.encode("latin-1") + body)
        if self.path == "/exit":
            os._exit(3)
    do_POST = do_OPTIONS = do_GET
http.server.HTTPServer(("", int(os.environ["FC_SERVER_PORT"])), Home).serve_forever()
"""


@pytest.fixture
def web(tmp_path: pathlib.Path) -> str:
    """A folder with an HTTP function."""
    (tmp_path / "bootstrap").write_text(SERVER)
    (tmp_path / "bootstrap").chmod(0o755)
    return str(tmp_path)


@pytest.mark.parametrize("options,out,said", (
    (("get /a?b=%20",), b"GET /a?b=%20|None|", "status 200 OK"),
    (("POST /", "--header", "X-Mine: y: z", "--event", "a\n"), b"POST /|y: z|a\n",
     "status 200 OK"),
    (("GET /404",), b"GET /404|None|", "status 404 Not Found"),
    (("GET /\u00e9",), b"GET /\xc3\xa9|None|", "status 200 OK")))
def test_request(options: Tuple[str, ...], out: bytes, said: str, web: str) -> None:
    """One HTTP call: its answer's body byte for byte on stdout, its status on stderr.
    """
    done = run(words("fc", web, "--quiet", "--request", *options))
    assert (done.status, done.out) == (0, out)
    assert done.err.splitlines()[0] == "emulator: " + said


def test_request__failed(web: str) -> None:
    """A call that fails says why, and so does the exit status."""
    (pathlib.Path(web) / "bootstrap").write_text("#!/bin/sh\nexit 3\n")
    done = run(words("fc", web, "--request", "GET /"))
    assert done.status == 1 and b"CAExited" in done.out or b"exited" in done.out
    assert "emulator: status 4" in done.err or "emulator: status 5" in done.err
    assert "start-error: the bootstrap ended with status 3" in done.err


ENV_FILE = b"""\xef\xbb\xbf# of the function\r
A=1
 export B = two words # and a comment
C='$x # "y"'   # quoted

D="line\\n\\"two\\" #"
E=
F=#x
G==
H=first
H=again
"""


def test_env_file(code: str, tmp_path: pathlib.Path) -> None:
    """NAME=VALUE lines, quoted or not; --env says more."""
    (tmp_path / "env").write_bytes(ENV_FILE)
    done = run(words("scf", code, "--env-file", str(tmp_path / "env"), "--env", "A=2",
                     "--event", event(["env"]).decode()))
    env = json.loads(done.out)
    assert [env[name] for name in "ABCDEFGH"] == [
        "2", "two words", '$x # "y"', 'line\n"two" #', "", "#x", "=", "again"]


@pytest.mark.parametrize("line", ("A", "=x", "A B=c", "A='x", "A='x' y", 'A="x" "y"'))
def test_env_file__malformed(line: str, code: str, tmp_path: pathlib.Path) -> None:
    """A line that is none: file and number are told, what may be a secret is not."""
    (tmp_path / "env").write_text("# x\nB=1\n%s\n" % line)
    done = run(words("scf", code, "--env-file", str(tmp_path / "env"), "--event", "x"))
    assert done.status == 2 and done.err == (
        "emulator: --env-file %s/env, line 3: neither NAME=VALUE nor # comment\n"
        % tmp_path)


def ask_as_page(port: int, method: str, path: str, *fields: str) -> Dict[str, str]:
    """Return the fields of an answer, and its status, as a browser's page asks."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(connection):
        connection.request(method, path, b"x", {"Origin": "http://page", **{
            "Access-Control-Request-" + name: value for name, _, value in (
                field.partition(": ") for field in fields)}})
        answer = connection.getresponse()
        return {"status": str(answer.status), **{
            name.lower(): value for name, value in answer.getheaders()}}


@pytest.mark.parametrize("origin", ("", "*", "http://page:8000"))
def test_cors(origin: str, web: str) -> None:
    """Pages of the origin may read every answer, and ask before they send; a function
    that answers to pages itself is left alone. Without --cors nothing is said."""
    options = ("--cors", origin) if origin else ()
    allow, wish = "access-control-allow-", ("Method: PUT", "Headers: x-a, x-b")
    with live(words("fc", web, "--serve", "0", *options)) as one:
        port = one.port()
        plain = [ask_as_page(port, *what) for what in (
            ("POST", "/-/invoke"), ("GET", "/"), ("GET", "/-/nothing"),
            ("PUT", "/-/state"))]
        assert [answer.get(allow + "origin", "") for answer in plain] == [origin] * 4
        assert [answer["status"] for answer in plain] == ["200", "200", "404", "405"]
        own = ask_as_page(port, "GET", "/cors")
        assert own[allow + "origin"] == "http://own"
        asked = ask_as_page(port, "OPTIONS", "/any", *wish)
        assert (asked["status"], asked.get(allow + "methods")) == (
            ("204", "PUT") if origin else ("200", None))
        assert asked.get(allow + "headers") == ("x-a, x-b" if origin else None)


@pytest.mark.parametrize("protocol,names", (
    ("scf", "apigw timer cos"), ("fg", "apig smn timer"), ("fc", "http oss timer")))
def test_sample_event(protocol: str, names: str, code: str) -> None:
    """One line of JSON each, which is an event."""
    samples = [run([*START_EMULATOR, protocol, "--sample-event", name])
               for name in names.split()]
    lines = b"".join(sample.out for sample in samples)
    assert [sample.status for sample in samples] == [0, 0, 0]
    assert all(isinstance(json.loads(line), dict) for line in lines.splitlines())
    events = [word for line in lines.decode().splitlines() for word in ("--event", line)]
    assert run(words(protocol, code, *events)).out == lines


@PROTOCOLS
def test_trace__terminal(protocol: str, code: str) -> None:
    """On a terminal it is the dialogue as SPEC.md writes it, changes between."""
    with terminal() as (screen, end):
        command = words(protocol, code, "--trace", "-", "--quiet", "--event", "hello",
                        "--event", "x" * 300)
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=end)
        seen = os.read(screen, 65536).decode().replace("\r\n", "\n")
    asks, bootstrap = ("P>", "B<") if protocol == "fc" else ("B>", "P<")
    wanted = {"fc": "POST /invoke", "scf": "GET /runtime/invocation/next",
              "fg": "GET /v1/runtime/invocation/request"}[protocol]
    assert done.returncode == 0 and "%s %s\n" % (asks, wanted) in seen
    assert re.search(r"(?i)%s 200\n(  [\w-]+: \S+\n)*  \| hello\n" % bootstrap, seen)
    assert "  | %s\u2026 (300 bytes)\n" % ("x" * 200) in seen
    changes = re.findall(r"# [0-9.]+ ms \w+: (\w+) -> (\w+) \[([a-z.-]+)\]", seen)
    assert {rule for _, _, rule in changes} <= {rule.id for rule in spec.load().rules}
    assert len(changes) >= 3 and re.search(r"# [0-9.]+ ms outcome: kind ok, ", seen)
    for line in seen.splitlines():
        assert re.match(r"([BP][<>] |  |# |emulator: )", line), line


@pytest.mark.parametrize("task", ("--event", "--jsonl"))
def test_closed_stdout(task: str, code: str) -> None:
    """A reader that has gone ends the run without a traceback."""
    options = [task] if task == "--jsonl" else [
        part for _ in range(2) for part in (task, event(["say", "x" * 90000]).decode())]
    with fork_server.start(words("scf", code, *options), cwd="/", env=os.environ,
                           stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE) as process:
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

    def exports(self) -> str:
        """Return the variables for a bootstrap; nothing else is printed to stdout."""
        assert self.process.stdout is not None
        exports = self.process.stdout.read().decode()
        assert all(line.startswith("export ") for line in exports.splitlines())
        return exports

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
    with fork_server.start(command, cwd=os.getcwd(), env={**os.environ, **env},
                           stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                           stderr=subprocess.PIPE) as process:
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


def http_json(port: int, path: str) -> Any:
    """Return the document that the front door has at a path."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    with contextlib.closing(connection):
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())


@contextlib.contextmanager
def terminal() -> Iterator[Tuple[int, int]]:
    """Return both ends of a terminal: what a person sees, and what a program has."""
    screen, end = pty.openpty()
    try:
        yield screen, end
    finally:
        os.close(screen)
        os.close(end)


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


@pytest.mark.parametrize("options", (("--serve",), ("--serve", "0", "--attach",
                                                     "--port")), ids=" ".join)
def test_serve__port(options: Tuple[str, ...], code: str) -> None:
    """A port that is taken: status 2, and one line names it."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run(words("scf", code, *options, port))
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


@pytest.mark.parametrize("protocol,number", (
    ("fc", signal.SIGINT), ("fg", signal.SIGTERM), ("scf", signal.SIGINT)))
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
def by_hand(exports: str, code: str) -> Iterator[None]:
    """Start the bootstrap with the variables that an emulator printed, meanwhile."""
    with subprocess.Popen(["sh", "-c", exports + "exec " + code + "/bootstrap"],
                          env={"PATH": os.defpath}, stderr=subprocess.DEVNULL) as child:
        try:
            yield
        finally:
            child.kill()


@PROTOCOLS
def test_attach(protocol: str, code: str) -> None:
    """--attach prints the environment; a bootstrap started by hand with it serves."""
    with live(words(protocol, code, *ATTACH, "--serve", "0")) as one:
        with by_hand(one.exports(), code):
            assert [one.ask(text)[1] for text in ("a", "b")] == [b"a", b"b"]


@PROTOCOLS
def test_attach__breakpoint(protocol: str, code: str, fifo: Callable[[str], str]
                            ) -> None:
    """One that stood still beyond the limit gets the next event when it goes on; it is
    not blamed for what it says late, nor asked to start again."""
    go = fifo("go")
    with live(words(protocol, code, *ATTACH, "--serve", "0", "--timeout", "0.4",
                    "--strict")) as one, by_hand(one.exports(), code):
        assert one.ask("a")[1] == b"a"
        assert one.ask(event(["wait", go]).decode())[0] == "timeout"
        scripted_bootstrap.tell(go)
        assert one.ask("b") == ("ok", b"b")
        assert one.end(signal.SIGINT) == 0
    assert not any("export " in line for line in one.lines)


@PROTOCOLS
def test_attach__started_again(protocol: str, code: str, fifo: Callable[[str], str]
                               ) -> None:
    """One that was ended while it had an event, and started once more with the same
    variables, is the instance again, with the event that it had (fc: with the next)."""
    here, go, answers = fifo("here"), fifo("go"), []
    with live(words(protocol, code, *ATTACH, "--debug", "--serve", "0")) as one:
        exports = one.exports()
        script = event(["tell", here], ["wait", go], ["count"]).decode()
        with by_hand(exports, code):
            assert one.ask("a") == ("ok", b"a")
            hang = background(lambda: answers.append(one.ask(script)))
            scripted_bootstrap.wait(here)
        with by_hand(exports, code):
            if protocol != "fc":
                scripted_bootstrap.wait(here)
                scripted_bootstrap.tell(go)
            hang.join(20)
            assert one.ask("b") == ("ok", b"b")
        assert answers == [("bad-response", answers[0][1]) if protocol == "fc" else
                           ("ok", b"1")]
        assert protocol == "fc" or not any("broke" in line for line in one.lines)


def test_attach__eval(code: str) -> None:
    """A shell can take the variables over while the emulator goes on beside it."""
    script = 'eval "$("$@" &)"; exec "$0/bootstrap"'
    command = ["sh", "-c", script, code, *words("scf", code, *ATTACH, "--serve", "0")]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, start_new_session=True) as process:
        one = Live(process)
        try:
            assert one.ask("a") == ("ok", b"a")
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            one.thread.join(5)


@pytest.mark.parametrize("protocol", ("fc", "scf"))
def test_attach__terminal(protocol: str, code: str) -> None:
    """A person is told on stderr what to start with which variables, and that it
    waits; so it is where results go to stdout."""
    with terminal() as (screen, end):
        command = words(protocol, code, *ATTACH, "--debug", "--serve", "0")
        with subprocess.Popen(command, stdout=end, stderr=subprocess.PIPE) as process:
            one = Live(process)
            what = r"a server on port \d+" if protocol == "fc" else r"\./bootstrap"
            one.await_line("waiting for %s, to be started in %s with" % (what, code))
            one.await_line("^export ")
            assert one.end(signal.SIGINT) == 0
    with live(words(protocol, code, *ATTACH, "--event", "x")) as one:
        one.await_line("^export ")
        assert one.end(signal.SIGINT) == 130 and one.process.stdout
        assert b"export " not in one.process.stdout.read()


@PROTOCOLS
def test_debug(protocol: str, code: str, fifo: Callable[[str], str]) -> None:
    """It lasts as long as it lasts: a process of ours, started by any command before
    the first event, unlimited, never frozen, alone."""
    here, go = fifo("here"), fifo("go")
    command = ("--", "sh", "-c", 'exec "$0"', "./bootstrap")
    with live(words(protocol, code, "--debug", "--serve", "0", *command)) as one:
        port = one.port()
        assert until(lambda: len(http_json(port, "/-/state")["instances"]) == 1)
        script = event(["tell", here], ["wait", go]).decode()
        first = background(lambda: one.ask(script))
        scripted_bootstrap.wait(here)
        second = background(lambda: one.ask("second"))
        assert until(lambda: http_json(port, "/-/state")["queued"] == 1)
        scripted_bootstrap.tell(go)
        first.join(20)
        second.join(20)
        after = http_json(port, "/-/state")["instances"]
        assert [one["served"] for one in after] == [2]
        assert process_state(after[0]["pid"]) != "T"


@PULL
def test_debug__limit(protocol: str, code: str) -> None:
    """The function is told of a limit that nobody reaches; an option still says more.
    """
    trace = ("--trace", "-", "--event", event(["env"]).decode())
    for options, limit in (((), 1000000), (("--timeout", "7"), 7)):
        done = run(words(protocol, code, "--debug", *trace, *options))
        seen = json.loads(done.out).get("RUNTIME_TIMEOUT") or re.findall(
            r'"Time_Limit_In_Ms": "(\d+)000"', done.err)[0]
        assert int(seen) == limit


@pytest.mark.parametrize("protocol,packed", (
    ("fc", True), ("fg", False), ("scf", True)), ids=("fc-ZIP", "fg-folder", "scf-ZIP"))
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
