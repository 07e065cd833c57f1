# test_emulator_cli.py: the command line of emulator.py, as people use it (MIT).
"""Run emulator.py as a program: what it prints, what it returns, what it leaves."""

import base64
import contextlib
import errno
import fcntl
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
import termios
import threading
from typing import IO, Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import emulator
import gateway
import implementations
import misbehave
import pytest
import spec
from gateways import keep_terminating
from harness import until

EMULATOR = emulator.__file__
SECRETS = {"access_key_id": "AKID-very-secret", "access_key_secret": "SK-very-secret",
           "security_token": "TOKEN-very-secret", "auth_token": "AUTH-very-secret"}
PULL_AND_PUSH = pytest.mark.parametrize("protocol", ("scf", "fg", "fc"))


class Run(NamedTuple):
    """What a run printed and returned."""

    status: int
    out: bytes
    err: str


@pytest.fixture(scope="module")
def code(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a bootstrap that does what its events say."""
    return misbehave.place(tmp_path_factory.mktemp("code") / "code")


def words(protocol: str, folder: str, *options: str) -> List[str]:
    """Return the command; fc servers get a free port."""
    port = ["--port", "0"] if protocol == "fc" else []
    return [*implementations.START_EMULATOR, protocol, folder, *port, *options]


def run(command: Sequence[str], stdin: bytes = b"", **env: str) -> Run:
    """Run a command to its end."""
    done = subprocess.run(command, input=stdin, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, timeout=30, env={**os.environ, **env})
    return Run(done.returncode, done.stdout, done.stderr.decode())


# ---- one shot ----


@PULL_AND_PUSH
def test_one_shot(protocol: str, code: str) -> None:
    """Results go to stdout, one line each and nothing else; the rest to stderr."""
    done = run(words(protocol, code, "--event", '{"a": 1}', "--event", "", "--event",
                     "line\n"))
    assert (done.status, done.out) == (0, b'{"a": 1}\nline\n')
    assert "3 ok; 1 cold start" in done.err.splitlines()[-1]


@pytest.mark.parametrize("closed,options,status,out,err", (
    ("<&-", ("--jsonl",), 0, b"", ""),
    ("<&-", ("--event", "-"), 0, b"", "1 ok"), (">&-", ("--event", "x"), 0, b"", "1 ok"),
    ("2>&-", ("--event", "x"), 0, b"x\n", ""),
    ("<&- >&- 2>&-", ("--event", "fail"), 1, b"", "")))
def test_closed_files(closed: str, options: Tuple[str, ...], status: int, out: bytes,
                      err: str, code: str) -> None:
    """A standard file that is closed is an empty one."""
    done = run(["sh", "-c", 'exec "$@" ' + closed, "sh", *words("scf", code, *options)])
    assert (done.status, done.out) == (status, out)
    assert err in done.err and "Traceback" not in done.err and bool(err) == bool(done.err)


def test_ignored_children(code: str) -> None:
    """Who starts it with SIGCHLD ignored gets the same outcome."""
    ignore = ("import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); "
              "os.execv(sys.argv[1], sys.argv[1:])")
    done = run([sys.executable, "-c", ignore, *words("scf", code, "--event", "exit 3")])
    assert done.status == 1 and "emulator: exit: " in done.err
    assert "with status 3" in done.err and "Traceback" not in done.err


def test_one_shot_long_name(code: str) -> None:
    """`functiongraph` means fg, and CODE may stand behind the options."""
    done = run([*implementations.START_EMULATOR, "functiongraph", "--event", "x", code])
    assert done.out == b"x\n", done.err


@pytest.mark.parametrize("event", (b"hello\n", b"\xff\0\xfe", b""))
@pytest.mark.parametrize("way", ("file", "stdin"))
def test_any_event_bytes(way: str, event: bytes, code: str, tmp_path: pathlib.Path) -> None:
    """@FILE and - give the event byte for byte."""
    (tmp_path / "event").write_bytes(event)
    text = "@%s/event" % tmp_path if way == "file" else "-"
    done = run(words("scf", code, "--event", text), event)
    assert done.out.rstrip(b"\n") == event.rstrip(b"\n") and done.status == 0


def test_one_shot_events(code: str, tmp_path: pathlib.Path) -> None:
    """--events gives each line that is not blank, after those of --event."""
    (tmp_path / "events.jsonl").write_bytes(b'{"a":1}\n\n  \n"b"\r\n[3]')
    done = run(words("scf", code, "--event", "first", "--events",
                     str(tmp_path / "events.jsonl")))
    assert done.out.replace(b"\r", b"") == b'first\n{"a":1}\n"b"\n[3]\n'


STATUS = [("0-ok", ("--event", "x"), 0), ("1-failed", ("--event", "fail x"), 1),
          ("1-one-of-two", ("--event", "exit 1", "--event", "x"), 1),
          ("0-broken-but-not-strict", ("--event", "half"), 0),
          ("3-strict", ("--strict", "--event", "half"), 3),
          ("0-strict", ("--strict", "--event", "x"), 0),
          ("3-strict-and-failed", ("--strict", "--event", "half", "--event", "fail"), 3)]


@pytest.mark.parametrize("options,status", [case[1:] for case in STATUS],
                         ids=[case[0] for case in STATUS])
def test_exit_status(options: Tuple[str, ...], status: int, code: str) -> None:
    """0 ok, 1 an invocation failed, 3 with --strict a rule was broken."""
    done = run(words("scf", code, *options))
    assert done.status == status
    assert ("any.http.no-effect" in done.err) == ("half" in options)


POSTS_AT_THE_END = """#!/usr/bin/env bash
api=http://$SCF_RUNTIME_API:$SCF_RUNTIME_API_PORT/runtime
trap 'curl -s -d again $api/invocation/response; exit 0' TERM
curl -s -d ' ' $api/init/ready
curl -s $api/invocation/next >event
curl -s -d "$(cat event)" $api/invocation/response
sleep 60 & wait
"""


def test_exit_status__strict_end(tmp_path: pathlib.Path) -> None:
    """A rule that is broken at the very end counts, and is in the last line."""
    program = tmp_path / "bootstrap"
    program.write_text(POSTS_AT_THE_END)
    program.chmod(0o755)
    done = run(words("scf", str(tmp_path), "--strict", "--event", "x"))
    assert done.status == 3 and done.out == b"x\n"
    assert "broke scf.result.locked" in done.err
    assert done.err.splitlines()[-1].endswith("1 ok; 1 cold start; 1 broken rule")


@pytest.mark.parametrize("protocol,said", (
    ("scf", "the bootstrap did not post /runtime/init/ready within 0.3 s"),
    ("fg", "the bootstrap did not ask for an event within 0.3 s")))
def test_any_init_timeout__said(protocol: str, said: str, tmp_path: pathlib.Path) -> None:
    """The message names the call that was missing."""
    program = tmp_path / "bootstrap"
    program.write_text("#!/bin/sh\nexec sleep 60\n")
    program.chmod(0o755)
    limit = ("--init-timeout" if protocol == "scf" else "--timeout", "0.3")
    done = run(words(protocol, str(tmp_path), "--event", "x", *limit))
    assert done.status == 1 and "emulator: init-timeout: %s" % said in done.err


def test_one_shot_quiet(code: str) -> None:
    """--quiet leaves out function output and platform lines, not the summary."""
    loud = run(words("scf", code, "--event", "print 9"))
    quiet = run(words("scf", code, "--event", "print 9", "--quiet"))
    assert "ppppppppp" in loud.err and "START RequestId" in loud.err
    assert "ppppppppp" not in quiet.err and "RequestId" not in quiet.err
    assert quiet.out == b"printed\n" and "1 ok" in quiet.err


LOG = {"scf": r"START RequestId: \S+\nEvent RequestId: \S+\n.*END RequestId: \S+\nReport "
              r"RequestId: \S+ Duration:\d+ms Memory:128MB MemUsage:[0-9.]+MB\n",
       "fg": r"\S+Z Start invoke request '\S+', version: latest\n.*\S+Z Finish invoke "
             r"request '\S+', duration: [0-9.]+ms, billing duration: \d+ms, memory "
             r"used: [0-9.]+MB, billing memory: 128MB\n",
       "fc": r"FC Invoke Start RequestId: \S+\n.*FC Invoke End RequestId: \S+\n"}


@PULL_AND_PUSH
def test_log_lines(protocol: str, code: str) -> None:
    """Each invocation is framed by the vendor's lines, in the vendor's form."""
    assert re.search(LOG[protocol], run(words(protocol, code, "--event", "x")).err, re.S)


@pytest.fixture
def signals() -> Iterator[None]:
    """Let the program do in this process what it likes with signals; none is ignored."""
    before = {number: signal.getsignal(number) for number in (
        signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)}
    for number in before:
        signal.signal(number, signal.SIG_DFL)
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)


USAGE: List[Tuple[str, Tuple[str, ...], str]] = [
    ("nothing-to-do", (), "--event"),
    ("no-file", ("--event", "@/no/such/file"), "/no/such/file"),
    ("no-events-file", ("--events", "/no/such/file"), "--events"),
    ("no-config", ("--event", "x", "--config", "/no/such/file"), "--config"),
    ("no-credentials", ("--event", "x", "--credentials", "/no/such"), "--credentials"),
    ("option", ("--no-such-option",), "--no-such-option"),
    ("number", ("--event", "x", "--timeout", "soon"), "--timeout"),
    ("range", ("--event", "x", "--timeout", "0"), "--timeout"),
    ("range-most", ("--event", "x", "--grace", "1e10"), "--grace"),
    ("range-memory", ("--event", "x", "--memory", "-1"), "--memory"),
    ("env", ("--event", "x", "--env", "A"), "--env"),
    ("env-reserved", ("--event", "x", "--env", "SCF_A=1"), "SCF_A"),
    ("env-name", ("--event", "x", "--env", "1A=1"), "1A"),
    ("other-protocol", ("--event", "x", "--concurrency", "2"), "--concurrency"),
    ("other-protocol-hook", ("--event", "x", "--initializer"), "--initializer"),
    ("parallel", ("--jsonl", "--parallel", "0"), "--parallel"),
    ("parallel-much", ("--jsonl", "--parallel", "1000000000"), "1 to 10000"),
    ("parallel-alone", ("--event", "x", "--parallel", "2"), "--parallel"),
    ("serve", ("--serve", "localhost:http"), "--serve"),
    ("serve-port", ("--serve", "70000"), "--serve"),
    ("serve-digit", ("--serve", "\xb2"), "--serve"),
    ("serve-long", ("--serve", "9" * 5000), "--serve"),
    ("serve-host", ("--serve", "192.0.2.1:0"), "--serve"),
    ("command", ("--event", "x", "--", "ls"), "--"),
    ("port", ("--event", "x", "--attach", "--port", "70000"), "--port"),
    ("trace", ("--event", "x", "--trace", "/no/such/folder/file"), "--trace")]


@pytest.mark.parametrize("options,word", [case[1:] for case in USAGE],
                         ids=[case[0] for case in USAGE])
def test_usage_error(options: Tuple[str, ...], word: str, code: str,
                     signals: None, capfd: pytest.CaptureFixture[str]) -> None:
    """A mistake gives status 2 and one line that names the option."""
    try:
        status: object = emulator.main(["scf", code, "--no-pin", *options])
    except SystemExit as left:
        status = left.code
    out, err = capfd.readouterr()
    said = [line for line in err.splitlines() if not line.startswith("usage: ")]
    assert (status, out) == (2, "") and len(said) == 1 and word in said[0], err


@pytest.mark.parametrize("arguments,word", (
    ((), "PROTOCOL"), (("aws",), "aws"), (("scf",), "CODE"),
    (("scf", "/no/such/folder", "--event", "x"), "/no/such/folder")))
def test_usage_error_arguments(arguments: Tuple[str, ...], word: str) -> None:
    """A missing or unknown argument gives status 2 and no traceback."""
    done = run([sys.executable, EMULATOR, *arguments])
    assert (done.status, done.out) == (2, b"") and word in done.err
    assert "Traceback" not in done.err


NO_FOLDER = [("no-temporary-folder", 'ulimit -f 0; exec "$@"', "code.zip"),
             ("deleted-folder", 'mkdir x; cd x; rmdir ../x; exec "$@"', ".")]


@pytest.mark.parametrize("script,name", [case[1:] for case in NO_FOLDER],
                         ids=[case[0] for case in NO_FOLDER])
def test_usage_error_folder(script: str, name: str, code: str,
                            tmp_path: pathlib.Path) -> None:
    """Where there is no folder to use: status 2, and one line that names CODE."""
    shutil.make_archive(str(tmp_path / "code"), "zip", code)
    path = name if name == "." else str(tmp_path / name)
    done = run(["sh", "-c", 'cd "$0"; ' + script, str(tmp_path),
                *words("scf", path, "--event", "x")])
    assert (done.status, done.out, done.err.count("\n")) == (2, b"", 1), done.err
    assert done.err.startswith("emulator: %s " % path)


def test_version() -> None:
    """--version tells the version of the program and of SPEC.md."""
    done = run([sys.executable, EMULATOR, "--version"])
    assert done.status == 0
    assert re.fullmatch(rb"\S+ \d+\.\d+\.\d+, SPEC \d+\.\d+\n", done.out)


def test_help_names_every_option() -> None:
    """--help knows each option of the limits tables in SPEC.md."""
    said = run([sys.executable, EMULATOR, "--help"]).out.decode()
    told = {record["option"] for table in spec.load().tables if "option" in table.header
            and not table.section[0].startswith("9") for record in table.records()}
    assert {option for option in told if option.startswith("--")
            and option not in said} == set()


@pytest.mark.parametrize("task", ("--event", "--jsonl"))
@PULL_AND_PUSH
def test_closed_stdout(protocol: str, task: str, code: str) -> None:
    """A reader that has gone ends the run without a traceback."""
    event = ["large 500000"] if task == "--event" else []
    with subprocess.Popen(words(protocol, code, task, *event), stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin and process.stdout and process.stderr
        process.stdout.close()
        process.stdin.write(b'{"event": "x"}\n{"event": "y"}\n')
        process.stdin.close()
        said = process.stderr.read()
    assert process.returncode == 1 and b"Traceback" not in said
    assert b"BrokenPipe" not in said


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
@pytest.mark.parametrize("task", ("--event", "--jsonl"))
@PULL_AND_PUSH
def test_full_stdout(protocol: str, task: str, code: str) -> None:
    """A stdout that cannot be written: status 1, and one line names it and the error."""
    event = ["x"] if task == "--event" else []
    done = run(["sh", "-c", 'exec "$@" > /dev/full', "sh",
                *words(protocol, code, "--quiet", task, *event)], b'{"event": "x"}\n' * 3,
               PYTHONUNBUFFERED="")
    assert done.status == 1 and done.err.count("\n") == 1
    assert "stdout" in done.err and os.strerror(errno.ENOSPC) in done.err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_full_trace(code: str) -> None:
    """A trace that cannot be written is told of."""
    done = run(words("scf", code, "--event", "x", "--trace", "/dev/full"))
    assert done.status == 0 and done.out == b"x\n"
    assert "--trace /dev/full is not whole: %s\n" % os.strerror(errno.ENOSPC) in done.err


@pytest.mark.parametrize("name", ("emulator", "gateway"))
def test_unread_terminal(name: str) -> None:
    """A terminal that nobody reads holds up nobody, although poll() calls it ready."""
    master, terminal = pty.openpty()
    log: Any = emulator.Talk(terminal) if name == "emulator" else gateway.Log(
        terminal, lambda lines: None)
    writer = emulator.aside(lambda: [log.write(
        b"x" * 99 + b"\n" if name == "emulator" else "x" * 99 + "\n")
        for _ in range(1000)])
    writer.join(10)
    is_done = not writer.is_alive()
    os.close(terminal)
    os.close(master)
    assert is_done


@pytest.mark.parametrize("what", ("on_trace", "on_log"))
def test_callback_that_exits(what: str, code: str) -> None:
    """A callback that raises what is no Exception ends no thread and no outcome."""
    def leave(*_: object) -> None:
        sys.exit("no")

    settings: Any = {what: leave}
    with emulator.Platform("scf", code, **settings) as platform:
        for text in (b"one", b"two"):
            assert platform.invoke(text).body == text


def test_attach__one_port(code: str) -> None:
    """On one port there is one runtime API."""
    with emulator.Platform("scf", code, attach=print, max_instances=5) as platform:
        assert platform.function.max_instances == 1


# ---- configuration ----

CONFIGS: Dict[str, Dict[str, Any]] = {
    "scf": {"FunctionName": "named", "Handler": "my.handler", "Timeout": 7,
            "InitTimeout": 60, "MemorySize": 256, "Runtime": "CustomRuntime",
            "Environment": {"Variables": [{"Key": "MINE", "Value": "1"}]}},
    "fg": {"func_name": "named", "handler": "my.handler", "timeout": 7,
           "memory_size": 256, "runtime": "Custom", "user_data": '{"MINE": "1"}'},
    "fc": {"functionName": "named", "handler": "my.handler", "timeout": 7,
           "memorySize": 256, "runtime": "custom.debian10",
           "environmentVariables": {"MINE": "1"}, "instanceConcurrency": 2,
           "customRuntimeConfig": {"command": ["./bootstrap"], "args": ["-x"],
                                   "port": 0}}}
SET_BY_CONFIG = {
    "scf": {"SCF_FUNCTIONNAME": "named", "_HANDLER": "my.handler", "MINE": "1"},
    "fg": {"RUNTIME_FUNC_NAME": "named", "RUNTIME_HANDLER": "my.handler", "MINE": "1",
           "RUNTIME_TIMEOUT": "7", "RUNTIME_MEMORY": "256"},
    "fc": {"FC_FUNCTION_NAME": "named", "FC_FUNCTION_HANDLER": "my.handler", "MINE": "1",
           "FC_FUNCTION_MEMORY_SIZE": "256"}}


@PULL_AND_PUSH
def test_config(protocol: str, code: str, tmp_path: pathlib.Path) -> None:
    """The vendor's own CreateFunction document configures the function."""
    (tmp_path / "f.json").write_text(json.dumps(CONFIGS[protocol]))
    done = run([*implementations.START_EMULATOR, protocol, code, "--event", "env",
                "--config", str(tmp_path / "f.json"), "--env", "ALSO=2"])
    env = json.loads(done.out)
    assert {name: env.get(name) for name in SET_BY_CONFIG[protocol]} == (
        SET_BY_CONFIG[protocol])
    assert env["ALSO"] == "2" and "not used" not in done.err


def test_config_unused(code: str, tmp_path: pathlib.Path) -> None:
    """What is in the document and changes nothing is told: it may be a slip."""
    (tmp_path / "f.json").write_text('{"InitTimeOut": 9, "Role": "r", "Timeout": 2}')
    done = run(words("scf", code, "--event", "x", "--config", str(tmp_path / "f.json")))
    assert done.status == 0
    assert "--config %s/f.json: not used here: InitTimeOut, Role\n" % tmp_path in done.err


def runtime(**fields: object) -> Dict[str, object]:
    """Return a CreateFunction document of fc."""
    return {"customRuntimeConfig": fields}


BROKEN_CONFIGS: Tuple[Tuple[str, str, object], ...] = (  # protocol, what is named, text
    ("scf", "f.json: Expecting value", ""), ("scf", "must be a JSON object", []),
    ("scf", "f.json: Expecting property name", "{"), ("fg", "user_data: Expecting", {
        "user_data": "{"}), ("fg", "user_data must hold an object", {"user_data": "[]"}),
    ("fg", "user_data must be a text, not {}", {"user_data": {}}),
    ("scf", "Environment must be an object, not 1", {"Environment": 1}),
    ("scf", "Variables must be a list", {"Environment": {"Variables": {}}}),
    ("scf", "with Key and Value, not 1", {"Environment": {"Variables": [1]}}),
    ("scf", "with Key and Value, not {'Key': []}", {"Environment": {
        "Variables": [{"Key": []}]}}),
    ("scf", "variable A must", {"Environment": {"Variables": [
        {"Key": "A", "Value": 1}]}}),
    ("scf", "variable A must", {"Environment": {"Variables": [
        {"Key": "A", "Value": "\udc00\ud800"}]}}),
    ("scf", "--timeout", {"Timeout": "x"}), ("scf", "--timeout", {"Timeout": None}),
    ("scf", "handler must", {"Handler": "\ud800"}),
    ("fc", "environmentVariables must be an object", {"environmentVariables": []}),
    ("fc", "customRuntimeConfig must be an object, not 'x'", {
        "customRuntimeConfig": "x"}),
    ("fc", "command must be a list, not 'python3 a.py'", runtime(
        command="python3 a.py")), ("fc", "args must be a list", runtime(args=1)),
    ("fc", "image must be a text", {"customContainerConfig": {"image": 1}}),
    ("fc", "each word of command", runtime(command=["python3"], args=["a\0b"])),
    ("fc", "each word of command", runtime(command=[1])),
    ("fc", "each word of command", runtime(command=["\ud800"])),
    ("fc", "port (--port) must be 0 to 65535, not 99999", runtime(port=99999)),
    ("fc", "(--port) must be 0 to 65535, not '80'", runtime(port="80")),
    ("fc", "(--port) must be 0 to 65535, not inf", runtime(port=1e999)),
    ("fc", "healthCheckConfig must be an object", runtime(healthCheckConfig=[1])),
    ("fc", "httpGetUrl must begin with /, not None", runtime(
        healthCheckConfig={"periodSeconds": 3})),
    ("fc", "periodSeconds must be 1 to 120, not True", runtime(
        healthCheckConfig={"httpGetUrl": "/", "periodSeconds": True})),
    ("fc", "instanceLifecycleConfig must be an object", {"instanceLifecycleConfig": 1}),
    ("fc", "preStop must be an object", {"instanceLifecycleConfig": {"preStop": "x"}}),
    ("fc", "--pre-stop-timeout", {"instanceLifecycleConfig": {
        "preStop": {"handler": "x", "timeout": "x"}}}))


@pytest.mark.parametrize("protocol,named,document", BROKEN_CONFIGS,
                         ids=[named for _, named, _ in BROKEN_CONFIGS])
def test_config_broken(protocol: str, named: str, document: object, code: str,
                       tmp_path: pathlib.Path, signals: None,
                       capfd: pytest.CaptureFixture[str]) -> None:
    """A document of another shape is refused in one line that names the field."""
    (tmp_path / "f.json").write_text(
        document if isinstance(document, str) else json.dumps(document))
    options = emulator.make_parser().parse_args(
        [protocol, code, "--event", "x", "--config", str(tmp_path / "f.json")])
    with pytest.raises(ValueError) as refused:
        emulator.run(options, [])
    assert "\n" not in str(refused.value) and named in str(refused.value)


def test_config_broken__status(code: str, tmp_path: pathlib.Path) -> None:
    """That is a usage error: status 2 and one line."""
    (tmp_path / "f.json").write_text(json.dumps(runtime(command=[1])))
    done = run([*implementations.START_EMULATOR, "fc", code, "--event", "x", "--config",
                str(tmp_path / "f.json")])
    assert (done.status, done.out) == (2, b"") and "command" in done.err
    assert len(done.err.splitlines()) == 1


def test_credentials_unknown(code: str, tmp_path: pathlib.Path) -> None:
    """A misspelt key is refused with the list of those that are known."""
    (tmp_path / "c.json").write_text('{"access_key": "x"}')
    options = emulator.make_parser().parse_args(
        ["fc", code, "--event", "x", "--credentials", str(tmp_path / "c.json")])
    with pytest.raises(ValueError, match="unknown access_key; known: access_key_id, "):
        emulator.run(options, [])


@pytest.mark.parametrize("event", ("text", {"k": 1}, None, bytearray(b"x")), ids=repr)
def test_event_of_the_library(event: Any, code: str) -> None:
    """What is no bytes is refused at once, and costs no invocation."""
    with emulator.Platform("scf", code) as platform:
        with pytest.raises(TypeError, match="^event must be bytes, not "):
            platform.invoke(event)
        assert platform.counts["accepted"] == 0


@pytest.mark.parametrize("name,value", (
    ("command", "python3 a.py"), ("env", {1: "x"}), ("env", {True: "x"}),
    ("env", {"A": 1})), ids=str)
def test_settings_of_the_library(name: str, value: object) -> None:
    """What is no setting is refused by its name where the emulator is a library."""
    with pytest.raises(ValueError, match="^(command|environment variable) "):
        emulator.Platform("fc", **{name: value})  # type: ignore[arg-type]


@PULL_AND_PUSH
def test_any_env_inherited(protocol: str, code: str) -> None:
    """Of the emulator's own environment only PATH, HOME, TMPDIR and LANG are passed."""
    done = run(words(protocol, code, "--event", "env", "--env", "MINE=a=b"),
               SECRET="x", http_proxy="http://x", LANG="C", PYTHONPATH="/nowhere",
               TMPDIR="/tmp")
    env = json.loads(done.out)
    table = {row["variable"] for row in spec.load().table(
        protocol, "variable", "value", "rule").records()}
    told = {name for cell in table for name in re.split(r"[,\s]+", cell)}
    extra = set(env) - told - {"PATH", "HOME", "TMPDIR", "LANG", "LC_CTYPE"}
    assert extra == {"MINE"} and env["MINE"] == "a=b" and env["LANG"] == "C"


@PULL_AND_PUSH
def test_any_security_secrets(protocol: str, code: str, tmp_path: pathlib.Path) -> None:
    """Credentials reach the function, and no output, trace or argument list."""
    (tmp_path / "c.json").write_text(json.dumps(SECRETS))
    done = run(words(protocol, code, "--credentials", str(tmp_path / "c.json"),
                     "--event", "half", "--event", "exit 1", "--event", "x", "--trace",
                     str(tmp_path / "trace"), "--env", "USERS=USERS-very-secret"))
    traced = (tmp_path / "trace").read_text()
    assert "very-secret" not in done.out.decode() + done.err + traced
    if protocol != "fg":
        env = run(words(protocol, code, "--credentials", str(tmp_path / "c.json"),
                        "--event", "env")).out
        assert b"SK-very-secret" in env


# ---- trace ----


@PULL_AND_PUSH
def test_trace(protocol: str, code: str, tmp_path: pathlib.Path) -> None:
    """Each line of a trace is JSON; its rules are in SPEC.md, its times in order."""
    run(words(protocol, code, "--event", "x", "--event", "half", "--event", "exit 3",
              "--trace", str(tmp_path / "trace")))
    lines = [json.loads(line) for line in (tmp_path / "trace").read_text().splitlines()]
    known = {rule.id for rule in spec.load().rules}
    assert {line["rule"] for line in lines if "rule" in line} <= known
    assert [line["kind"] for line in lines if line["what"] == "outcome"][::2] == [
        "ok", "exit"]
    assert {line["what"] for line in lines} >= {"process", "outcome", "violation"}
    assert all(isinstance(line["ms"], float) for line in lines)


def test_trace_to_stderr(code: str) -> None:
    """--trace - goes to stderr, stdout stays clean."""
    done = run(words("scf", code, "--event", "x", "--trace", "-", "--quiet"))
    assert done.out == b"x\n"
    traced = [json.loads(line) for line in done.err.splitlines() if line[:1] == "{"]
    assert "scf.next.event" in {line.get("rule") for line in traced} or traced


# ---- the adapter ----


def adapter(protocol: str, folder: str, *lines: object, options: Tuple[str, ...] = ()
            ) -> Tuple[int, List[Dict[str, Any]]]:
    """Return status and outcomes of a --jsonl run."""
    text = b"".join((line if isinstance(line, bytes) else json.dumps(line).encode())
                    + b"\n" for line in lines)
    done = run(words(protocol, folder, "--jsonl", *options), text)
    return done.status, [json.loads(line) for line in done.out.splitlines()]


@PULL_AND_PUSH
def test_jsonl(protocol: str, code: str) -> None:
    """One outcome per line, in the order of the lines, with their ids and no others."""
    _, outcomes = adapter(
        protocol, code, {"id": "a", "event": "one"}, {"event": ""}, {"id": [1],
        "event_base64": base64.b64encode(b"\xff\0").decode()}, {"id": 4, "event": "fail"})
    assert [one["id"] for one in outcomes] == ["a", None, [1], 4]
    assert [one["kind"] for one in outcomes] == ["ok"] * 3 + ["function-error"]
    assert [one.get("body") for one in outcomes[:3]] == ["one", "", None]
    assert base64.b64decode(outcomes[2]["body_base64"]) == b"\xff\0"
    assert all(one["request_id"] and one["duration_ms"] >= 0 for one in outcomes)


@pytest.mark.parametrize("line,status", (({"event": "x"}, 0), ({"event": "fail x"}, 1),
                                         ({}, 1)), ids=("ok", "failed", "malformed"))
def test_jsonl_exit_status(line: object, status: int, code: str) -> None:
    """The adapter's exit status is that of the one shot: 1 when anything failed."""
    assert adapter("scf", code, line)[0] == status


BAD_LINES = [b'{"id": NaN, "event": ""}', b'{"id": [1e999], "event": ""}',
             b"{", b"[]", b"1", b"{}", b'{"event": 1}', b'{"event": null}', b"\xff",
             b'{"event_base64": "!"}', b'{"event_base64": 1}', b'{"event": "\\ud800"}',
             b'{"method": "GET", "headers": 1, "event": ""}',
             b'{"method": "GET", "headers": [1], "event": ""}', b"[" * 100000]


def test_jsonl_malformed(code: str) -> None:
    """A malformed line gives one line that says which; the next is served."""
    _, outcomes = adapter("scf", code, *BAD_LINES, {"id": 1, "event": "on"})
    assert [one["kind"] for one in outcomes] == ["invalid-line"] * len(BAD_LINES) + ["ok"]
    assert all("line %d: " % number in one["message"]
               for number, one in enumerate(outcomes[:-1], 1))


@pytest.mark.parametrize("line,named", (
    ({"id": 3}, "event"), ({"id": "a", "event": 5}, "event"),
    ({"id": [1], "method": "GET", "headers": {"a": "b"}}, "headers must be a list"),
    ({"id": 0, "method": "GET", "headers": [["A"]]}, "headers must be a list of [name")))
def test_jsonl_malformed__id(line: Dict[str, Any], named: str, code: str) -> None:
    """A line that has an id keeps it, and what is wrong with it is named."""
    _, outcomes = adapter("fc", code, line)
    assert outcomes[0]["id"] == line["id"] and named in outcomes[0]["message"]


@pytest.mark.parametrize("protocol", ("scf", "fg"))
def test_jsonl_malformed__http(protocol: str, code: str) -> None:
    """An HTTP request is refused where there are none, and the field is named."""
    _, outcomes = adapter(protocol, code, {"event": "x", "method": "GET"})
    assert outcomes[0]["kind"] == "invalid-line" and "method" in outcomes[0]["message"]


@pytest.mark.parametrize("parts", ([b"a\n", b"\nb"], [b"a\n\nb"], [b"a", b"\n", b"\nb"],
                                   [b"a" * 70000, b"a\n\nb"], [b""]))
@pytest.mark.parametrize("is_stopped", (False, True), ids=("end", "stop"))
def test_jsonl_lines(parts: List[bytes], is_stopped: bool) -> None:
    """Lines come in pieces; the last may lack its end, or be cut by a signal."""
    (lines, writer), (stop, stopper) = os.pipe(), os.pipe()
    thread = threading.Thread(target=lambda: [os.write(writer, part) for part in parts])
    thread.start()
    reader = emulator.read_lines(lines, stop)
    seen = [next(reader) for _ in range(b"".join(parts).count(b"\n"))]
    thread.join()
    os.close(stopper if is_stopped else writer)
    seen += reader
    wanted = b"".join(parts).split(b"\n")
    assert seen == (wanted[:-1] if is_stopped else wanted)
    for number in (lines, stop, writer if is_stopped else stopper):
        os.close(number)


def test_jsonl_violations(code: str) -> None:
    """What the bootstrap broke stands in the outcome, with the rule's id."""
    _, outcomes = adapter("fg", code, {"event": "wrong-id x"}, {"event": "x"})
    assert [one["rule"] for one in outcomes[0]["violations"]] == ["fg.result.unknown-id"]
    assert set(outcomes[0]["violations"][0]) == {"rule", "seen"}
    assert outcomes[1]["violations"] == []


def test_jsonl_parallel(code: str) -> None:
    """--parallel N has N in flight: a fast event overtakes a slow one."""
    _, outcomes = adapter(
        "scf", code, {"id": "slow", "event": "sleep 0.5"}, {"id": "fast", "event": "x"},
        options=("--parallel", "2"))
    assert [one["id"] for one in outcomes] == ["fast", "slow"]


def test_jsonl_http(code: str) -> None:
    """An invocation of fc may be an HTTP request; the outcome has status and fields."""
    _, outcomes = adapter("fc", code, {"method": "POST", "path": "/a?b=1", "event": "x",
                                       "headers": [["A", "b"]]},
                          {"method": "GET", "path": "/status/418"})
    assert [(one["status"], one["body"]) for one in outcomes] == [
        (200, "x"), (418, "status")]
    assert all(len(pair) == 2 for one in outcomes for pair in one["headers"])


# ---- processes that go on ----


def patched(statement: str, protocol: str, folder: str, *options: str) -> List[str]:
    """Return the command; the statement is run before main(), as in `program.X = 1`."""
    program = implementations.START_EMULATOR[-1]
    changed = program.replace("sys.exit(", statement + "; sys.exit(")
    return [changed if word == program else word
            for word in words(protocol, folder, *options)]


IMPATIENT = "program.FLUSH_S = 0.1"  # for who does not read our output


class Live:
    """A running emulator whose stderr is read line by line."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process
        self.lines: List[str] = []
        self.more = threading.Condition()
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

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

    def await_starts(self, count: int) -> None:
        """Wait until so many events have begun in all; their lines may come late."""
        with self.more:
            assert self.more.wait_for(lambda: len(re.findall(
                "START R|Start invoke|Invoke Start", "".join(self.lines))) == count, 10)

    def port(self) -> int:
        """Return the port of the front door."""
        return int(self.await_line(r"serving \w+ on http://[^ ]*:(\d+)")[1])

    def ask(self, method: str, path: str, body: bytes = b"") -> Tuple[int, Any, bytes]:
        """Return (status, header fields, body) of an answer of the front door."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port(), timeout=20)
        with contextlib.closing(connection):
            connection.request(method, path, body)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def end(self, number: int) -> int:
        """Send a signal; return the exit status."""
        self.process.send_signal(number)
        status = self.process.wait(20)
        self.thread.join(5)
        return status


@contextlib.contextmanager
def live(command: Sequence[str], **env: str) -> Iterator[Live]:
    """Run an emulator meanwhile."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, env={**os.environ, **env})
    try:
        yield Live(process)
    finally:
        process.send_signal(signal.SIGINT)  # in order: a killed one leaves its bootstrap
        try:
            process.wait(20)
        finally:
            process.kill()
            process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()


@pytest.fixture(scope="module", params=("scf", "fg", "fc"))
def served(request: pytest.FixtureRequest, code: str) -> Iterator[Live]:
    """An emulator that serves, one for each protocol."""
    with live(words(request.param, code, "--serve", "0", "--timeout", "20")) as one:
        yield one


def test_serve_invoke(served: Live) -> None:
    """POST /-/invoke answers with the result, X-Outcome and X-Request-Id."""
    status, headers, body = served.ask("POST", "/-/invoke", b"\xff\0")
    assert (status, headers["X-Outcome"], body) == (200, "ok", b"\xff\0")
    assert len(headers["X-Request-Id"]) >= 32
    assert served.ask("POST", "/-/invoke", b"fail x")[1]["X-Outcome"] == "function-error"
    assert served.ask("POST", "/-/invoke", b"exit 3")[1]["X-Outcome"] == "exit"
    assert served.ask("POST", "/-/invoke", b"again!")[2] == b"again!"


def test_serve_state(served: Live) -> None:
    """GET /-/health and GET /-/state answer with JSON."""
    status, headers, body = served.ask("GET", "/-/health")
    assert (status, json.loads(body)) == (200, {"status": "ok"})
    assert headers["Content-Type"] == "application/json"
    state = json.loads(served.ask("GET", "/-/state")[2])
    assert {"protocol", "instances", "queued", "counts"} <= set(state)
    assert served.ask("HEAD", "/-/state")[2] == b""


@pytest.mark.parametrize("method,path,status", (
    ("GET", "/-/invoke", 405), ("PUT", "/-/invoke", 405), ("DELETE", "/-/state", 405),
    ("POST", "/-/health", 405), ("GET", "/-/nothing", 404), ("GET", "/-/", 404),
    ("POST", "/-/invoke/x", 404)))
def test_serve_unknown(served: Live, method: str, path: str, status: int) -> None:
    """Other methods get 405, other paths 404, and a text that helps."""
    seen, _, body = served.ask(method, path)
    assert seen == status and "/-/" in json.loads(body)["error"]


def test_serve_port_variable(code: str) -> None:
    """Without a port --serve takes PORT."""
    with live(words("scf", code, "--serve"), PORT="0") as one:
        assert one.port() > 0


def test_serve_port_taken(code: str) -> None:
    """A front door whose port is taken: status 2, and one line that names it."""
    with live(words("scf", code, "--serve", "0")) as one:
        done = run(words("scf", code, "--serve", str(one.port())))
    assert done.status == 2 and str(one.port()) in done.err and (
        len(done.err.splitlines()) == 1)


def test_serve_port_variable__no_port(code: str) -> None:
    """A PORT that is none is named as what it is."""
    done = run(words("scf", code, "--serve"), PORT="abc")
    assert done.status == 2 and "the variable PORT is 'abc', not a port" in done.err


@PULL_AND_PUSH
def test_serve_failure(protocol: str, tmp_path: pathlib.Path) -> None:
    """While serving, too, it is said on stderr why an invocation failed."""
    with live(words(protocol, str(tmp_path), "--serve", "0")) as one:
        assert one.ask("POST", "/-/invoke", b"x")[1]["X-Outcome"] == "start-error"
        one.await_line("^emulator: start-error: .*bootstrap")


def wait_gone(pid: int) -> bool:
    """Wait until a process has ended; tell whether it has."""
    try:
        ended = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([ended], [], [], 10)[0])
    finally:
        os.close(ended)


@PULL_AND_PUSH
@pytest.mark.parametrize("number", (signal.SIGTERM, signal.SIGHUP))
def test_any_stop_drain(protocol: str, number: int, code: str, signals: None) -> None:
    """It lets the running event end, takes no new one, and exits with 0."""
    with live(words(protocol, code, "--serve", "0", "--timeout", "20")) as one:
        pid = int(one.ask("POST", "/-/invoke", b"pid")[2])
        answers: List[Tuple[int, Any, bytes]] = []
        caller = threading.Thread(target=lambda: answers.append(
            one.ask("POST", "/-/invoke", b"sleep 0.4")))
        caller.start()
        one.await_starts(2)
        assert one.end(number) == 0
        caller.join(10)
    assert [answer[2] for answer in answers] == [b"slept"] and wait_gone(pid)


@PULL_AND_PUSH
def test_any_stop_drain__many(protocol: str, code: str) -> None:
    """Signals until the end do not change the status."""
    with live(words(protocol, code, "--serve", "0")) as one:
        assert one.ask("POST", "/-/invoke", b"x")[2] == b"x"
        keep_terminating(one.process)
        assert one.end(signal.SIGTERM) == 0


@PULL_AND_PUSH
@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGTERM))
def test_any_stop_drain__cut_short(protocol: str, number: int, code: str) -> None:
    """A second signal ends what runs: its caller is told, its process is gone."""
    with live(words(protocol, code, "--serve", "0", "--timeout", "600")) as one:
        pid = int(one.ask("POST", "/-/invoke", b"pid")[2])
        caller = http.client.HTTPConnection("127.0.0.1", one.port(), timeout=20)
        with contextlib.closing(caller):
            caller.request("POST", "/-/invoke", b"hang")
            one.await_starts(2)
            one.process.send_signal(signal.SIGTERM)
            one.await_line("1 still running; another signal ends that now")
            assert not listens(one.port()) and one.process.poll() is None
            assert one.end(number) == 0 and wait_gone(pid)
            assert caller.getresponse().getheader("X-Outcome") == "cancelled"
        one.await_line("2 invocations: 1 ok, 1 cancelled; 1 cold start")


def listens(port: int) -> bool:
    """Tell whether somebody takes connections there."""
    try:
        socket.create_connection(("127.0.0.1", port), 20).close()
        return True
    except ConnectionError:  # refused; reset if it waited to be accepted
        return False


@PULL_AND_PUSH
@pytest.mark.parametrize("number", (signal.SIGINT, signal.SIGTERM))
def test_any_process_group__leftovers(protocol: str, number: int,
                                      tmp_path: pathlib.Path) -> None:
    """A signal while serving or in a one shot leaves no process and no folder."""
    code = misbehave.place(tmp_path / "code")
    with live(words(protocol, code, "--event", "pid", "--event", "hang", "--timeout",
                    "30"), TMPDIR=str(tmp_path)) as one:
        assert one.process.stdout is not None
        pid = int(one.process.stdout.readline())
        status = one.end(number)
    assert status != 0 and wait_gone(pid)
    assert [path.name for path in tmp_path.iterdir()] == ["code"]
    assert not any("Traceback" in line for line in one.lines)


@PULL_AND_PUSH
@pytest.mark.parametrize("number", (signal.SIGHUP, signal.SIGQUIT))
def test_any_process_group__leftovers_terminal(
        protocol: str, number: int, code: str, signals: None,
        tmp_path: pathlib.Path) -> None:
    """What a terminal sends leaves no process and no unpacked package either."""
    (tmp_path / "temporary").mkdir()
    package = shutil.make_archive(str(tmp_path / "code"), "zip", code)
    with live(words(protocol, package, "--event", "pid", "--event", "hang", "--timeout",
                    "30"), TMPDIR=str(tmp_path / "temporary")) as one:
        assert one.process.stdout is not None
        pid = int(one.process.stdout.readline())
        assert one.end(number) == 130
    assert wait_gone(pid) and list((tmp_path / "temporary").iterdir()) == []


@pytest.mark.parametrize("step", ("open_package", "reachable_host", "choose_core"))
def test_any_process_group__leftovers_start(step: str, code: str,
                                            tmp_path: pathlib.Path) -> None:
    """A signal just after the package is unpacked, or about then, leaves no folder."""
    (tmp_path / "temporary").mkdir()
    package = shutil.make_archive(str(tmp_path / "code"), "zip", code)
    command = patched(
        "import os; step = program.%s; program.%s = lambda *given: ("
        "step(*given), os.kill(os.getpid(), 15))[0]" % (step, step),
        "scf", package, "--event", "hang", "--timeout", "20")
    done = run(command, TMPDIR=str(tmp_path / "temporary"))
    assert done.status == 130 and "Traceback" not in done.err
    assert list((tmp_path / "temporary").iterdir()) == []


def test_any_process_group__nohup(code: str) -> None:
    """Where SIGHUP is ignored the program goes on when the terminal is closed."""
    with live(["sh", "-c", 'trap "" HUP; exec "$@"', "sh",
               *words("scf", code, "--jsonl")]) as one:
        assert one.process.stdin is not None and one.process.stdout is not None
        for _ in range(2):
            one.process.stdin.write(b'{"event": "x"}\n')
            one.process.stdin.flush()
            assert json.loads(one.process.stdout.readline())["body"] == "x"
            one.process.send_signal(signal.SIGHUP)


@PULL_AND_PUSH
def test_outcome_exit_at_once(protocol: str, code: str) -> None:
    """kill -9 of the bootstrap in the middle of an event gives `exit` at once."""
    with live(words(protocol, code, "--jsonl", "--timeout", "600")) as one:
        assert one.process.stdin is not None and one.process.stdout is not None
        one.process.stdin.write(b'{"event": "pid"}\n{"event": "hang"}\n')
        one.process.stdin.flush()
        pid = int(json.loads(one.process.stdout.readline())["body"])
        one.await_starts(2)
        os.kill(pid, signal.SIGKILL)
        assert json.loads(one.process.stdout.readline())["kind"] == "exit"


def await_full(pipe: IO[bytes]) -> None:
    """Wait until a pipe that nobody reads takes no more."""
    size = fcntl.fcntl(pipe, 1032)  # F_GETPIPE_SZ

    def waiting() -> int:
        answer = fcntl.ioctl(pipe, termios.FIONREAD, b"1234")
        return int.from_bytes(answer, sys.byteorder)

    assert until(lambda: waiting() > size - select.PIPE_BUF), waiting()


@PULL_AND_PUSH
@pytest.mark.parametrize("task", ("--event", "--jsonl"))
def test_any_process_group__leftovers_stalled(protocol: str, task: str,
                                              code: str) -> None:
    """A signal ends the program and its instances although nobody reads stdout."""
    events = ["pid", "large 500000", "hang"]
    options = [word for one in events for word in ("--event", one)]
    tasks = options if task == "--event" else [task]
    with live(patched(IMPATIENT, protocol, code, *tasks), PYTHONUNBUFFERED="") as one:
        assert one.process.stdin is not None and one.process.stdout is not None
        for number, text in enumerate(events if task == "--jsonl" else ()):
            one.process.stdin.write(b'{"id": %d, "event": "%s"}\n' % (
                number, text.encode()))
        one.process.stdin.flush()
        pid = int(re.findall(r"\d+", one.process.stdout.readline().decode())[
            0 if task == "--event" else 1])
        await_full(one.process.stdout)
        assert one.end(signal.SIGTERM) == 130
    assert wait_gone(pid) and not any("Traceback" in line for line in one.lines)


@pytest.mark.parametrize("options,status", (((), 2), (("--event", "fail"), 1)),
                         ids=("usage", "failed"))
def test_stalled_stderr(options: Tuple[str, ...], status: int, code: str) -> None:
    """Nobody has to read stderr for the program to end."""
    read_end, write_end = os.pipe()
    with open(read_end, "rb") as reader:
        os.write(write_end, bytes(fcntl.fcntl(reader, 1032)))  # F_GETPIPE_SZ
        with subprocess.Popen(patched(IMPATIENT, "scf", code, *options),
                              stdout=subprocess.DEVNULL, stderr=write_end) as process:
            os.close(write_end)
            try:
                assert process.wait(10) == status
            finally:
                process.kill()


@PULL_AND_PUSH
def test_jsonl_paused_reader(protocol: str, code: str) -> None:
    """Nothing is lost on a pipe that does not block, whenever its reader comes back."""
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    with open(read_end, "rb") as reader, subprocess.Popen(
            words(protocol, code, "--jsonl", "--quiet"), stdin=subprocess.PIPE,
            stdout=write_end, env={**os.environ, "PYTHONUNBUFFERED": ""}) as process:
        os.close(write_end)
        assert process.stdin is not None
        process.stdin.write(b'{"event": "large 90000"}\n' * 4)
        process.stdin.close()
        await_full(reader)
        outcomes = [json.loads(line) for line in reader]
    assert process.returncode == 0
    assert [len(one["body"]) for one in outcomes] == [90000] * 4


@pytest.mark.parametrize("protocol", ("scf", "fg"))
def test_any_event_timeout__paused_reader(protocol: str, code: str) -> None:
    """Time limits run out while nobody reads stdout."""
    with live(patched(IMPATIENT, protocol, code, "--jsonl", "--parallel", "3", "--trace",
                      "-", "--timeout", "0.4"), PYTHONUNBUFFERED="") as one:
        assert one.process.stdin is not None and one.process.stdout is not None
        one.process.stdin.write(b'{"event": "large 90000"}\n')
        one.process.stdin.flush()
        await_full(one.process.stdout)
        one.process.stdin.write(b'{"event": "hang"}\n' * 2)
        one.process.stdin.flush()
        one.await_line('"kind": "timeout"')
        with one.more:
            assert one.more.wait_for(lambda: "".join(one.lines).count(
                '"kind": "timeout"') == 2, 5), one.lines


@pytest.mark.parametrize("protocol", ("scf", "fg"))
def test_attach__port_taken(protocol: str, code: str) -> None:
    """A runtime API whose port is taken is a start-error that names the port."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(words(protocol, code, "--attach", "--port", str(port), "--event", "x"))
        said = "start-error: no runtime API on port %d: " % port
        assert done.status == 1 and said in done.err
        with live(words(protocol, code, "--attach", "--port", str(port), "--serve",
                        "0")) as one:
            one.await_line(said)  # before there is any event


@contextlib.contextmanager
def by_hand(one: Live, protocol: str, code: str) -> Iterator[None]:
    """Start the bootstrap with the environment that --attach has printed."""
    name = {"scf": "SCF_RUNTIME_API_PORT", "fg": "RUNTIME_API_ADDR",
            "fc": "FC_SERVER_PORT"}[protocol]
    one.await_line("^export %s=" % name)
    one.await_line("^export [A-Z_]*REGION|^export RUNTIME_MAX")
    exports = [line for line in one.lines if line.startswith("export ")]
    script = "".join(exports) + "exec " + code + "/bootstrap"
    with subprocess.Popen(["sh", "-c", script], env={"PATH": os.defpath},
                          stderr=subprocess.DEVNULL) as child:
        try:
            yield
        finally:
            child.kill()


@PULL_AND_PUSH
def test_attach(protocol: str, code: str) -> None:
    """--attach prints the environment; a bootstrap started by hand with it serves."""
    with live(words(protocol, code, "--attach", "--event", "hello")) as one:
        with by_hand(one, protocol, code):
            assert one.process.stdout is not None
            ready = select.select([one.process.stdout], [], [], 10)[0]
            assert ready and one.process.stdout.readline() == b"hello\n"
            assert one.process.wait(10) == 0


@PULL_AND_PUSH
def test_attach__serve(protocol: str, code: str) -> None:
    """While serving, the environment is printed before there is an event."""
    with live(words(protocol, code, "--attach", "--serve", "0")) as one:
        with by_hand(one, protocol, code):
            for text in (b"first", b"second"):
                assert one.ask("POST", "/-/invoke", text)[::2] == (200, text)
        state = json.loads(one.ask("GET", "/-/state")[2])
        assert state["counts"]["cold_starts"] == 1


@pytest.mark.parametrize("given, idle_s", (([], 1000000), (["--idle", "7"], 7)))
def test_attach__idle(given: List[str], idle_s: float) -> None:
    """What was started by hand is kept however long it is idle, unless told otherwise."""
    options = emulator.make_parser().parse_args(["scf", ".", "--attach", *given])
    assert emulator.read_settings(options, [])["idle_s"] == idle_s
