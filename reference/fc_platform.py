#!/usr/bin/env python3
# fc_platform.py: the platform's side of FC's custom runtime (MIT).
"""Play Alibaba Function Compute for a server: start it, send it events, tell outcomes.

    python3 fc_platform.py ./my-function --event '{"key": "value"}' -- python3 server.py
    python3 fc_platform.py ./my-function --port 0 --env A=1 --timeout 10 --event hello
    python3 fc_platform.py ./my-function --jsonl < events    # {"id": 1, "event": TEXT}

This is the whole protocol, to be read, copied and ported: tables; Session, which knows
what may be done in which state; the functions that judge an answer; Platform, which
runs the server and is its client. A comment such as [fc.invoke.send] names the rule of
SPEC.md that its line obeys. Standard library only, CPython 3.8 or later.

It runs one instance and one invocation at a time. emulator.py has what it leaves out:
more of both (any.instance.on-demand, any.instance.idle, fc.time.others), a queue
(any.queue.limit), memory (any.memory.limit), packages (any.package.*), logs
(any.log.first, any.log.tail, any.log.frame; output goes to stderr), WebSocket
(fc.upgrade.pass), callers over HTTP, who see an answer while it is produced and may
leave (fc.answer.streamed, any.caller.gone, fc.caller.replace), signals that await the
invocation in work (any.stop.drain), and answers that no HTTP server sends
(any.http.malformed, any.http.framing) or that begin before a large request is read.
"""
from __future__ import annotations

import argparse
import base64
import contextlib
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from http.client import (HTTPConnection, HTTPException, HTTPResponse, InvalidURL,
                         LineTooLong, parse_headers)
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

__version__, SPEC_VERSION = "0.1.0", "0.1"
__all__ = ["Outcome", "Platform", "Request", "Session", "Violation"]

Facts = Dict[str, str]  # values for the templates of the tables
Pairs = Tuple[Tuple[str, str], ...]


# ---- model ----

# A rule of SPEC.md that the bootstrap broke, and what was seen.
Violation = NamedTuple("Violation", [("rule", str), ("seen", str)])

# A line of the states table: what is done, the next state, the rule.
Row = NamedTuple("Row", [("action", str), ("state", str), ("rule", str)])

# A header field or a variable; what has no value is left out.
Field = NamedTuple("Field", [("name", str), ("value", str)])

# What became of an invocation; status, headers and body are what its caller sees.
Outcome = NamedTuple("Outcome", [
    ("kind", str), ("body", bytes), ("request_id", str), ("message", str),
    ("violations", Sequence[Violation]), ("status", int), ("headers", Pairs)])


class Limit(NamedTuple):
    """A setting: its default and the option that sets it; `zero`: may be 0."""
    default: float
    option: str
    zero: bool = False


# ---- tables: the wire ----

PROTOCOL = "fc"
CODE_ROOT = "/code"  # in the cloud [any.start.code-folder]

# (method, path) -> call; here the platform asks and the bootstrap answers
ENDPOINTS: Dict[Tuple[str, str], str] = {
    ("POST", "/invoke"): "invoke",
    ("POST", "/initialize"): "initialize",
    ("GET", "/pre-freeze"): "pre-freeze",
    ("GET", "/pre-stop"): "pre-stop",
}
# names of hooks in LOG_LINES
HOOK_NAMES = {"initialize": "Initialize", "pre-freeze": "PreFreeze",
              "pre-stop": "PreStop"}
IDEMPOTENT = ("GET", "HEAD", "OPTIONS", "TRACE")  # [fc.connection.retry]

# (state, call) -> what is done, the next state, the rule
STATES = {
    ("starting", "connect"): Row("initialize", "initializing", "fc.start.probe"),
    ("initializing", "initialized"): Row("ready", "idle", "fc.initialize.once"),
    ("initializing", "refused"): Row("discard", "stopping", "fc.initialize.failed"),
    ("idle", "invoke"): Row("send", "busy", "fc.invoke.send"),
    ("busy", "invoke"): Row("send", "busy", "fc.concurrency.limit"),
    ("busy", "settled"): Row("settle", "idle", "fc.invoke.answer"),
    ("idle", "quiet"): Row("freeze", "frozen", "fc.freeze.idle"),
    ("frozen", "invoke"): Row("thaw", "busy", "fc.freeze.thaw"),
    ("idle", "stop"): Row("pre-stop", "stopping", "fc.stop.order"),
    ("frozen", "stop"): Row("pre-stop", "stopping", "fc.stop.order"),
    ("busy", "stop"): Row("pre-stop", "stopping", "any.stop.drain"),
    ("starting", "stop"): Row("discard", "stopping", "fc.stop.order"),
    ("initializing", "stop"): Row("discard", "stopping", "fc.stop.order"),
}

# state -> outcome when the limit is over, when the process ends; for emulator.py
ON_TIME = {"starting": "init-timeout", "initializing": "init-timeout",
           "busy": "timeout"}
ON_EXIT = {"starting": "start-error", "initializing": "init-error", "busy": "exit"}

HEADERS = (  # [fc.headers.common] [fc.headers.empty]
    Field("X-Fc-Request-Id", "{request_id}"),
    Field("X-Fc-Control-Path", "{control_path}"),
    Field("X-Fc-Base-Path", "{base_path}"),
    Field("X-Fc-Function-Name", "{name}"),
    Field("X-Fc-Function-Handler", "{handler}"),
    Field("X-Fc-Function-Memory", "{memory_mb}"),
    Field("X-Fc-Function-Timeout", "{timeout_whole_s}"),
    Field("X-Fc-Region", "{region}"),
    Field("X-Fc-Account-Id", "{account_id}"),
    Field("X-Fc-Qualifier", "{version}"),
    Field("X-Fc-Version-Id", ""),
    Field("X-Fc-Service-Name", ""),
    Field("X-Fc-Service-Logproject", ""),
    Field("X-Fc-Service-Logstore", ""),
    Field("X-Fc-Access-Key-Id", "{access_key_id}"),
    Field("X-Fc-Access-Key-Secret", "{access_key_secret}"),
    Field("X-Fc-Security-Token", "{security_token}"),
    Field("X-Fc-Client-Ip", ""),
    Field("X-Fc-Retry-Count", "0"))

ENVIRONMENT = (  # [fc.env.table] [fc.env.port] [any.credentials.role]
    Field("FC_SERVER_PORT", "{port}"),
    Field("FC_CUSTOM_LISTEN_PORT", "{port}"),
    Field("FC_FUNC_CODE_PATH", "{code_root}"),
    Field("LD_LIBRARY_PATH", "{code_root}:{code_root}/lib:/usr/local/lib"),
    Field("PYTHONPATH", "{code_root}"),
    Field("FC_FUNCTION_NAME", "{name}"),
    Field("FC_FUNCTION_HANDLER", "{handler}"),
    Field("FC_FUNCTION_MEMORY_SIZE", "{memory_mb}"),
    Field("FC_FUNCTION_VERSION", "{version}"),
    Field("FC_INSTANCE_ID", "{instance_id}"),
    Field("FC_REGION", "{region}"),
    Field("FC_ACCOUNT_ID", "{account_id}"),
    Field("ALIBABA_CLOUD_ACCESS_KEY_ID", "{access_key_id}"),
    Field("ALIBABA_CLOUD_ACCESS_KEY_SECRET", "{access_key_secret}"),
    Field("ALIBABA_CLOUD_SECURITY_TOKEN", "{security_token}"))

# Fields that do not cross the platform [fc.headers.reserved-request]
# [fc.headers.reserved-response]; framing belongs to each connection.
DROPPED_REQUEST = frozenset(("connection", "keep-alive", "content-length",
                             "transfer-encoding", "expect"))
DROPPED_RESPONSE = frozenset(("connection", "keep-alive", "content-length",
                              "transfer-encoding", "date", "server"))

# All that is inherited, and what it is where the platform has none [any.env.inherited]
INHERITED = {"PATH": "/bin:/usr/bin", "HOME": "/", "TMPDIR": "/tmp", "LANG": "C.UTF-8"}
RESERVED_ENV = ("FC_",)  # [any.env.names]
MAX_ENV_BYTES = 4096  # [any.env.size]
DEFAULT_HANDLER, DEFAULT_VERSION, DEFAULT_PORT = "index.handler", "LATEST", 9000

MIB = 1048576  # [any.event.size]
LIMITS = {
    "concurrency": Limit(1, "--concurrency"),
    "timeout_s": Limit(60, "--timeout"),
    "start_timeout_s": Limit(120, "--start-timeout"),
    "initializer_timeout_s": Limit(3, "--init-timeout"),
    "pre_freeze_timeout_s": Limit(3, "--pre-freeze-timeout"),
    "pre_stop_timeout_s": Limit(3, "--pre-stop-timeout"),
    "memory_mb": Limit(512, "--memory"),
    "event_bytes": Limit(32 * MIB, "--max-event"),
    "result_bytes": Limit(32 * MIB, "--max-result"),
    "request_header_bytes": Limit(8192, "--request-header-bytes"),
    "response_header_bytes": Limit(8192, "--response-header-bytes"),
    "path_bytes": Limit(4096, "--path-bytes"),
    "grace_s": Limit(2, "--grace", True),
}
MAX_CONCURRENCY = 200  # [fc.concurrency.limit]


# ---- tables: what callers see ----

# kind -> (X-Fc-Error-Type, errorMessage) [fc.outcome.document]
EXITED = ("Process exited unexpectedly before completing request "
          "(duration: {duration}ms, maxMemoryUsage: {peak_mb}MB)")
FAILURES: Dict[str, Tuple[str, str]] = {
    "timeout": ("InvocationError", "Function timed out after {timeout} seconds "
                                   "(maxMemoryUsage: {peak_mb}MB)"),
    "exit": ("InvocationError", EXITED),
    "out-of-memory": ("FunctionOOMError", EXITED),
    "init-timeout": ("InitializationError",
                     "Initializer timed out after {init_timeout} seconds"),
    "init-error": ("InitializationError", "{message}"),
}

# kind -> (status, Code, Message) [fc.outcome.document]
ERRORS: Dict[str, Tuple[int, str, str]] = {
    "start-error": (412, "{start_error}", "The function cannot be started. {message}"),
    "bad-response": (502, "BadResponse", "BadResponse: {message}"),
    "response-too-large": (502, "BadResponse", "BadResponse: {message}"),
    "request-too-large": (400, "InvalidArgument", "{message}"),
    "throttled": (429, "ResourceExhausted", "{message}"),
    "cancelled": (499, "ClientClosedRequest", "client Closed Request"),
}

# why a server could not be started -> the vendor's code [fc.start.failed]
START_ERRORS = {"missing": "CAFileNotFound", "mode": "CAFilePermission",
                "port": "FunctionNotStarted", "": "CAExited"}

# Lines before and after the output of a call; for emulator.py [any.log.frame].
LOG_LINES = ("FC {call} Start RequestId: {request_id}\n",
             "FC {call} End RequestId: {request_id}{error}\n")


# ---- rules without I/O ----

class Session:
    """What may be asked of an instance in which state. It knows no socket, thread or
    clock; the caller serialises the calls."""

    def __init__(self, concurrency: int) -> None:
        self.state = "starting"
        self.concurrency = concurrency
        self.running = 0

    def move(self, call: str) -> str:
        """Take a call of the states table; return its action, "" if not allowed."""
        row = STATES.get((self.state, call))
        if row is None or call == "invoke" and self.running >= self.concurrency:
            return ""  # [fc.concurrency.limit]
        if call == "settled":
            self.running -= 1
            if self.running:
                return row.action
        self.state = row.state
        self.running += call == "invoke"
        return row.action


def judge_answer(is_http: bool, status: int, fc_status: str) -> str:
    """Return the outcome of an invocation's answer: ok or function-error."""
    if fc_status:  # the field wins over the status line [fc.answer.outcome]
        return "function-error" if fc_status == "404" else "ok"
    return "function-error" if status == 404 and not is_http else "ok"


def judge_hook(status: int) -> str:
    """Return what a hook's answer means: done, failed or broken [fc.hook.success]."""
    if 200 <= status < 300:
        return "done"
    return "broken" if status >= 500 else "failed"  # [fc.hook.broken]


def request_problem(function: Any, target: str, headers: Pairs) -> str:
    """Say which limit an HTTP invocation exceeds; "" if none [fc.limits.request]."""
    if len(target) > function.path_bytes:
        return "path and query have %d bytes; the limit is %d" % (
            len(target), function.path_bytes)
    if fields_size(headers) > function.request_header_bytes:
        return "the header fields have %d bytes; the limit is %d" % (
            fields_size(headers), function.request_header_bytes)
    return ""


def fields_size(fields: Iterable[Tuple[str, str]]) -> int:
    """Count a head as fc does: names and values [fc.limits.request]."""
    return sum(len(name) + len(value) for name, value in fields)


def pass_fields(fields: Iterable[Tuple[str, str]],
                dropped: Iterable[str]) -> List[Tuple[str, str]]:
    """Return the fields that cross the platform: neither dropped nor x-fc-*."""
    return [(name, value) for name, value in fields
            if name.lower() not in dropped and not name.lower().startswith("x-fc-")]


def check_env(env: Dict[str, str]) -> None:
    """Raise ValueError that names the variable which the cloud would refuse."""
    for name in env:  # [any.env.names]
        if (not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name)
                or name.startswith(RESERVED_ENV)):
            raise ValueError("environment variable %r: a name is a letter, then "
                             "letters, digits, underscores; not %s…" % (
                                 name, "…, ".join(RESERVED_ENV)))
    size = sum(len(os.fsencode(name + value)) for name, value in env.items())
    if size > MAX_ENV_BYTES:
        raise ValueError("environment variables take %d bytes; the cloud allows %d"
                         % (size, MAX_ENV_BYTES))


def describe(function: Any, code_root: str) -> Facts:
    """Return what the templates name of a function, any object with its settings."""
    return dict(
        {"access_key_id": "", "access_key_secret": "", "security_token": "",
         **function.credentials},
        handler=function.handler or DEFAULT_HANDLER, name=function.name,
        version=function.version or DEFAULT_VERSION, region=function.region,
        code_root=code_root, account_id="100000000000",
        memory_mb=str(function.memory_mb),
        timeout_whole_s=str(max(1, math.ceil(function.timeout_s))),
        timeout="%g" % function.timeout_s,
        init_timeout="%g" % function.initializer_timeout_s)


def fill_in(table: Iterable[Field], facts: Facts) -> List[Tuple[str, str]]:
    """Return names and values; of variables only those that have a value."""
    filled = [(name, template.format_map(facts)) for name, template in table]
    return [(name, value) for name, value in filled
            if value or table is HEADERS]  # [fc.headers.empty]


def new_id() -> str:
    """Return a request id in the vendor's form [any.id.form] [fc.id.form]."""
    text = os.urandom(10).hex()
    return "1-%08x-%s-%s" % (int(time.time()), text[:8], text[8:20])


def exit_text(status: int, words: Sequence[str]) -> str:
    """Say as fc does that the process ended; `status` as of the subprocess module."""
    code = status if status >= 0 else 128 - status
    text = os.strerror(code)
    known = "" if text.startswith("Unknown") else ", message:" + text.lower()
    return "Function instance exited unexpectedly(code %d%s) with start command '%s '" \
        % (code, known, " ".join(words))


def caller_answer(kind: str, body: bytes, facts: Facts,
                  is_http: bool = False) -> Tuple[int, Pairs, bytes]:
    """Return (status, headers, body) that the cloud shows its caller; `facts` are what
    the texts name. An HTTP function's own answer is passed on [fc.http.pass]."""
    # [fc.headers.caller-id]
    headers: Pairs = (("X-Fc-Request-Id", facts["request_id"]),)
    if kind == "ok":
        return 200, headers, body
    if kind == "function-error":
        return 200, headers + (("X-Fc-Error-Type", "InvocationError"),), body
    if kind in FAILURES:
        status = 502 if is_http else 200
        error_type, message = FAILURES[kind]
        document = {"errorMessage": message.format_map(facts)}
        headers += (("X-Fc-Error-Type", error_type),)
    else:
        status, code, message = ERRORS[kind]
        code, message = code.format_map(facts), message.format_map(facts)
        document = {"RequestId": facts["request_id"], "Code": code, "Message": message,
                    "ErrorCode": code, "ErrorMessage": message}
    return status, headers + (("Content-Type", "application/json"),), to_json(document)


def to_json(document: object) -> bytes:
    """Write a document without blanks."""
    # a path that is no UTF-8 holds half surrogate pairs; \udcff is JSON, too
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "backslashreplace")


# ---- HTTP, as the client of the server ----

# 127.0.0.2 does not reach a server that is bound to 127.0.0.1 alone [fc.start.probe]
HOST = "127.0.0.2" if sys.platform == "linux" else "127.0.0.1"


class Request(NamedTuple):
    """What the server is asked: an event, unless more than the body is given."""
    body: bytes
    method: str = "POST"
    target: str = "/invoke"  # [fc.invoke.event]
    headers: Pairs = (("Content-Type", "application/octet-stream"),)
    is_http: bool = False    # an HTTP invocation, neither event nor hook


# What the server answered; `fc_status` is its X-Fc-Status.
Answer = NamedTuple("Answer", [
    ("status", int), ("fields", Pairs), ("body", bytes), ("fc_status", str)])


class FinalResponse(HTTPResponse):
    """An answer past interim ones, of which http.client skips 100 alone."""

    def _read_status(self) -> Tuple[str, int, str]:
        found: Tuple[str, int, str] = super()._read_status()  # type: ignore[misc]
        while 101 < found[1] < 200:  # [fc.answer.interim]
            parse_headers(self.fp)
            found = super()._read_status()  # type: ignore[misc]
        return found


class Failure(Exception):
    """No answer. Its arguments are the outcome's kind and a message."""


def put_head(connection: HTTPConnection, request: Request, facts: Facts) -> None:
    """Prepare the head of a request [fc.headers.common]. Raises Failure."""
    path = request.target.partition("?")[0]
    facts = dict(facts, base_path=path,  # [fc.invoke.control-path]
                 control_path="/http-invoke" if request.is_http else path)
    headers = pass_fields(request.headers, DROPPED_REQUEST)
    has_host = any(name.lower() == "host" for name, _ in headers)
    try:
        connection.putrequest(request.method, request.target, skip_host=has_host,
                              skip_accept_encoding=True)
        for name, value in headers + fill_in(HEADERS, facts):
            connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(request.body)))
    except (ValueError, InvalidURL) as error:  # [any.security.values]
        raise Failure("request-too-large", "it cannot be sent: %s" % error)


def read_answer(response: HTTPResponse, request: Request, function: Any) -> Answer:
    """Return an answer in full. Raises Failure, or what http.client does."""
    fields = tuple((name, value.strip()) for name, value in response.getheaders())
    if fields_size(fields) > function.response_header_bytes:  # [fc.limits.response]
        raise Failure("response-too-large", "the answer's header fields have %d bytes"
                      % fields_size(fields))
    if response.status < 200 or response.headers.defects:  # 101, lines without a colon
        raise HTTPException("half a head, or status %d" % response.status)
    body = response.read()
    if len(body) > function.result_bytes and not request.is_http:  # [fc.limits.result]
        raise Failure("response-too-large", "the result has %d bytes" % len(body))
    return Answer(response.status, fields, body,
                  response.getheader("X-Fc-Status", "").strip())


def hang_up(connection: socket.socket) -> None:
    """End both directions, so that whoever waits there goes on."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def free_port() -> int:
    """Return a port that nobody has, below those that outgoing connections get; two
    processes begin at different ones, as the server binds it a while later."""
    for number in range(os.getpid() * 8, sys.maxsize):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("0.0.0.0", 10000 + number % 20000))
            break
    return 10000 + number % 20000


# ---- the platform ----

class Platform:
    """A function's server, one process at a time: start it, ask it, freeze it, stop it.

    One thread does all this, and waits at the connection to the server, where a timer
    hangs up at the deadline; another thread waits for the end of the process.
    """

    def __init__(self, function: Any) -> None:
        self.function = function  # as `parse` returns it
        self.facts = describe(function, function.code)
        self.session = Session(function.concurrency)
        self.process: subprocess.Popen[bytes]  # the first invocation starts it
        self.ended = threading.Event()         # the process, and all of its group
        self.ended.set()
        self.grace_ends = 0.0                  # on the monotonic clock
        self.kept: Optional[HTTPConnection] = None  # [fc.connection.reuse]

    def invoke(self, request: Request) -> Outcome:
        """Return what became of an invocation [any.outcome.one]. Blocks for the limits,
        also those of a start. Call freeze() when the caller has the outcome."""
        request_id, begin, message = new_id(), time.monotonic(), ""
        answer = Answer(200, (), b"", "")
        try:
            self.check(request)
            if self.has_ended():  # [any.instance.replace]
                self.start()
            if self.session.move("invoke") == "thaw":  # [fc.freeze.thaw]
                self.signal(signal.SIGCONT)
            answer = self.ask(request, request_id, self.function.timeout_s)
            kind = judge_answer(request.is_http, answer.status, answer.fc_status)
        except Failure as failure:
            kind, message = failure.args
            if kind in ("start-error", "init-error", "init-timeout", "timeout"):
                self.kill()
        self.session.move("settled")
        status, headers, body = caller_answer(kind, answer.body, dict(
            self.facts, request_id=request_id, message=message, peak_mb="0.00",
            duration="%d" % ((time.monotonic() - begin) * 1000)), request.is_http)
        if request.is_http and kind in ("ok", "function-error"):
            status = answer.status  # [fc.http.pass] [fc.headers.reserved-response]
            headers += tuple(pass_fields(answer.fields, {"upgrade", *DROPPED_RESPONSE}))
        violations = ([Violation("fc.outcome.bad-response", message)]
                      if kind == "bad-response" else [])
        return Outcome(kind, body, request_id, message, violations, status, headers)

    def check(self, request: Request) -> None:
        """Raise Failure when no instance gets the request."""
        problem = request.is_http and request_problem(
            self.function, request.target, request.headers)
        if len(request.body) > self.function.event_bytes:  # [any.event.size]
            problem = "the event has %d bytes" % len(request.body)
        if problem:
            raise Failure("request-too-large", problem)

    def start(self) -> None:
        """Start the server, and initialise it. Raises Failure."""
        function = self.function  # [fc.start.command] [any.start.bootstrap]
        words = function.command or [os.path.join(function.code, "bootstrap")]
        program = os.path.join(function.code, words[0])
        what, reason = "port %d" % function.port, "port"
        self.session, self.kept = Session(function.concurrency), None
        try:
            with socket.socket() as probe:  # for a port that is free
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("0.0.0.0", function.port or free_port()))
                self.facts.update(port=str(probe.getsockname()[1]),
                                  instance_id="c-" + os.urandom(6).hex())
            env = {name: os.environ.get(name, INHERITED[name]) for name in INHERITED}
            env.update(fill_in(ENVIRONMENT, self.facts))
            env.update(function.env)
            what = words[0]
            reason = ("missing" if not os.path.exists(program) else
                      "mode" if not os.access(program, os.X_OK) else "")
            self.process = subprocess.Popen(  # [any.start.cwd] [any.process.group]
                words, cwd=function.code, env=env, stdin=subprocess.DEVNULL,
                stdout=2, stderr=2, start_new_session=True)
        except OSError as error:  # [any.start.executable] [fc.start.failed]
            self.facts["start_error"] = START_ERRORS[reason]
            raise Failure("start-error", "%s: %s (%s)" % (
                what, START_ERRORS[reason], error.strerror))
        self.facts["start_error"] = START_ERRORS[""]
        self.ended.clear()
        threading.Thread(target=self.watch, daemon=True).start()
        self.await_port()
        self.initialize()

    def await_port(self) -> None:
        """Dial until the server accepts [fc.start.probe]. Raises Failure."""
        deadline = time.monotonic() + self.function.start_timeout_s
        while not self.ended.wait(0.005):
            try:
                self.dial(deadline).close()
                self.session.move("connect")
                return
            except OSError:
                if time.monotonic() >= deadline:
                    self.facts["start_error"] = START_ERRORS["port"]
                    raise Failure("start-error", "nothing listens on 0.0.0.0:%s in time"
                                  % self.facts["port"])
        raise Failure("start-error", exit_text(
            self.process.returncode,
            self.function.command or [CODE_ROOT + "/bootstrap"]))

    def initialize(self) -> None:
        """Call the Initializer if there is one [fc.initialize.once]. Raises Failure."""
        if self.function.initializer:
            verdict = self.call_hook("initialize", self.function.initializer_timeout_s)
            if verdict != "done":  # [fc.initialize.failed] [any.init.timeout]
                raise Failure("init-timeout" if verdict == "timeout" else "init-error",
                              "the Initializer: " + verdict)
        self.session.move("initialized")

    def call_hook(self, call: str, limit_s: float) -> str:
        """Call a hook; return done, failed, broken or timeout [fc.hook.success]."""
        method, path = next(key for key, name in ENDPOINTS.items() if name == call)
        try:
            request = Request(b"", method, path, ())
            return judge_hook(self.ask(request, new_id(), limit_s).status)
        except Failure as failure:
            kind = failure.args[0]
            return {"timeout": "timeout", "exit": "broken"}.get(kind, "failed")

    def ask(self, request: Request, request_id: str, limit_s: float) -> Answer:
        """Send a request and return the answer. Raises Failure."""
        deadline = time.monotonic() + limit_s
        try:
            may_retry = self.kept and request.method in IDEMPOTENT
            answer = self.exchange(request, request_id, deadline)
            is_late = time.monotonic() >= deadline  # then we have hung up
            if not answer and may_retry and not is_late:  # [fc.connection.retry]
                answer = self.exchange(request, request_id, deadline)
            if not answer or time.monotonic() >= deadline:
                raise ConnectionError("the connection was closed")
            return answer
        except (OSError, HTTPException, MemoryError, OverflowError) as error:
            self.kept = None
            is_late = time.monotonic() >= deadline
            # a process that ends closes its connections a moment earlier
            if self.ended.wait(0 if is_late else 0.5):  # [any.outcome.exit]
                raise Failure("exit", "the bootstrap ended with status %d"
                              % self.process.returncode)
            if is_late:  # [any.event.timeout]
                raise Failure("timeout", "no answer within %g s" % limit_s)
            too_large = isinstance(error, LineTooLong)
            raise Failure("response-too-large" if too_large else "bad-response",
                          "no valid answer: %s" % error)

    def exchange(self, request: Request, request_id: str,
                 deadline: float) -> Optional[Answer]:
        """Send a request on the connection that was kept, or a new one. Return the
        answer, None if the connection ends before it."""
        connection, self.kept = self.kept or self.dial(deadline), None
        peer = connection.sock
        timer = threading.Timer(deadline - time.monotonic(), hang_up, [peer])
        timer.daemon = True
        timer.start()
        try:
            put_head(connection, request, dict(self.facts, request_id=request_id))
            first_byte = b""
            with contextlib.suppress(ConnectionError):
                connection.endheaders(request.body)
                if sys.platform == "linux":  # else an answer in two parts takes 40 ms
                    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
                first_byte = peer.recv(1, socket.MSG_PEEK)  # waits
            if not first_byte:  # only then may it be sent again
                return None
            answer = read_answer(connection.getresponse(), request, self.function)
            if connection.sock:  # the server keeps it open, too
                self.kept = connection
            return answer
        finally:
            timer.cancel()
            if not self.kept:
                connection.close()

    def dial(self, deadline: float) -> HTTPConnection:
        """Open a connection."""
        connection = HTTPConnection(
            HOST, int(self.facts["port"]), max(0.001, deadline - time.monotonic()))
        connection.response_class = FinalResponse
        connection.connect()
        connection.sock.settimeout(None)
        return connection

    # -- freeze and end --

    def freeze(self) -> None:
        """Freeze it if nothing runs in it [fc.freeze.idle]."""
        function = self.function
        if not function.freeze or self.session.state != "idle":
            return
        if function.pre_freeze and "broken" == self.call_hook(
                "pre-freeze", function.pre_freeze_timeout_s):  # [fc.freeze.hook]
            self.kill()  # [fc.hook.broken]
        elif self.session.move("quiet"):
            self.signal(signal.SIGSTOP)

    def stop(self) -> None:
        """Stop it: in order if nothing runs in it, else at once [fc.stop.order]."""
        try:
            if self.session.state in ("idle", "frozen") and not self.ended.is_set():
                self.session.move("stop")
                self.signal(signal.SIGCONT)
                if self.function.pre_stop:  # [fc.stop.hook]
                    self.call_hook("pre-stop", self.function.pre_stop_timeout_s)
                self.grace_ends = time.monotonic() + self.function.grace_s
                self.signal(signal.SIGTERM)  # [any.stop.order]
                self.ended.wait(self.function.grace_s)
        finally:
            self.kill()

    def kill(self) -> None:
        """Kill all of it, without grace [any.time.kill]."""
        self.signal(signal.SIGKILL)
        self.ended.wait()

    def has_ended(self) -> bool:
        """Tell whether the process has ended, also when `watch` is just about to."""
        with contextlib.suppress(ProcessLookupError):
            if not self.ended.is_set():
                os.kill(self.process.pid, 0)
                return False
        return self.ended.wait()

    def watch(self) -> None:
        """Wait for the end of the process, and let the other thread know."""
        self.process.wait()
        while time.monotonic() < self.grace_ends and self.signal(0):
            time.sleep(0.01)  # what a wrapper has started ends in order, too
        self.signal(signal.SIGKILL)  # [any.process.group]
        self.ended.set()

    def signal(self, number: int) -> bool:
        """Signal the whole process group; tell whether there is one."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if not self.ended.is_set():
                os.killpg(self.process.pid, number)
                return True
        return False


# ---- command line ----

def parse(words: Sequence[str]) -> argparse.Namespace:
    """Return the function, and what is to be done. Exits with 2 if it cannot be."""
    at = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS, description="FOLDER OPTIONS -- COMMAND ARG ...")
    parser.add_argument("code", metavar="FOLDER", help="with the file bootstrap")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--event", metavar="TEXT", help="invoke once, print the answer")
    task.add_argument("--jsonl", action="store_true", help="invoke for lines of stdin")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--handler", default=DEFAULT_HANDLER)
    parser.add_argument("--name", default="function")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="0: a free one")
    for hook in ("--initializer", "--pre-freeze", "--pre-stop"):
        parser.add_argument(hook, action="store_true", help="there is this hook")
    parser.add_argument("--freeze", action="store_true", default=True)
    parser.add_argument("--no-freeze", action="store_false", dest="freeze")
    for name, limit in LIMITS.items():
        parser.add_argument(limit.option, dest=name, default=limit.default, metavar="N",
                            type=float if name.endswith("_s") else int)
    parser.add_argument("--max-instances", "--parallel", "--queue", "--queue-timeout",
                        "--idle", metavar="N", help="for the kit; without effect")
    parser.set_defaults(version="", region="local", credentials={})
    options = parser.parse_args(words[:at])
    options.command = words[at + 1:]
    options.env = dict(pair.partition("=")[::2] for pair in options.env)
    try:
        check(options)
    except ValueError as error:
        parser.error(str(error))
    options.code = os.path.realpath(options.code)
    return options


def check(options: argparse.Namespace) -> None:
    """Raise ValueError that says what is wrong with the options."""
    check_env(options.env)
    for name, limit in LIMITS.items():
        value = getattr(options, name)
        if not 0 <= value <= threading.TIMEOUT_MAX or value == 0 and not limit.zero:
            raise ValueError("%s is out of range" % limit.option)
    if options.concurrency > MAX_CONCURRENCY or not 0 <= options.port <= 65535:
        raise ValueError("--concurrency or --port is out of range")
    if not os.path.isdir(options.code):
        raise ValueError("%s is not a folder" % options.code)


def read_events(lines: Iterable[bytes]) -> Iterable[Tuple[object, Request]]:
    """Yield id and invocation of each line of the conformance kit."""
    for line in lines:
        try:
            document = json.loads(line)
            event = (base64.b64decode(document["event_base64"], validate=True)
                     if "event_base64" in document else document["event"].encode())
            request = Request(event)
            if "method" in document:  # [fc.invoke.http]
                headers = tuple((str(name), str(value))
                                for name, value in document.get("headers", ()))
                request = Request(event, str(document["method"]), str(document["path"]),
                                  headers, True)
        except (ValueError, KeyError, TypeError, AttributeError):
            sys.exit("stdin: a line with id and event is expected, not %r" % line[:80])
        yield document.get("id"), request


def print_line(identity: object, outcome: Outcome) -> None:
    """Print an outcome as a line for the conformance kit."""
    line = dict(outcome._asdict(), id=identity,
                violations=[one._asdict() for one in outcome.violations])
    try:
        line["body"] = outcome.body.decode()
    except UnicodeDecodeError:
        line["body_base64"] = base64.b64encode(line.pop("body")).decode()
    print(json.dumps(line), flush=True)


def print_answer(outcome: Outcome) -> None:
    """Print what the caller sees, and on stderr what was wrong."""
    sys.stdout.buffer.write(outcome.body + b"\n" * (outcome.body[-1:] != b"\n"))
    for rule, seen in outcome.violations:
        print("violation: [%s] %s" % (rule, seen), file=sys.stderr)
    if outcome.kind != "ok":
        print("%s: %s" % (outcome.kind, outcome.message), file=sys.stderr)


def main() -> int:
    """Run what the command line says; return the exit status."""
    options = parse(sys.argv[2 if sys.argv[1:2] == [PROTOCOL] else 1:])
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    events = (read_events(sys.stdin.buffer) if options.jsonl
              else [(None, Request(os.fsencode(options.event)))])
    status, platform = 0, Platform(options)
    try:
        for identity, request in events:
            outcome = platform.invoke(request)
            if options.jsonl:
                print_line(identity, outcome)
                platform.freeze()
            else:
                print_answer(outcome)
                status = int(outcome.kind != "ok")
    finally:
        platform.stop()
    return status


if __name__ == "__main__":
    sys.exit(main())
