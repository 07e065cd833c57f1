#!/usr/bin/env python3
# fc_platform.py: the platform's side of FC's custom runtime (MIT).
"""Play Alibaba Function Compute for a server: start it, send it events, tell outcomes.

    python3 fc_platform.py ./my-function --event '{"key": "value"}' -- python3 server.py
    python3 fc_platform.py ./my-function --jsonl < events    # {"id": 1, "event": TEXT}
    python3 fc_platform.py ./my-function --port 0 --env A=1 --timeout 10 --event hello

This is the whole protocol, to be read, copied and ported: tables; Session, which knows
what may be done in which state and does no I/O; the functions that judge an answer;
HTTP, as its client; Instance, one server process; Platform. A comment such as
[fc.invoke.send] names the rule of SPEC.md that its line obeys.

It runs one instance at a time, with up to --concurrency invocations, and no queue
(any.queue.*, any.instance.on-demand, any.instance.idle). It leaves out memory
(any.memory.limit), packages (any.package.*), WebSocket (fc.upgrade.pass), callers over
HTTP, who see an answer while it is produced and may leave (fc.answer.streamed,
any.caller.gone, fc.caller.replace), and a log for each invocation (any.log.first,
any.log.tail: output goes to stderr as it comes). A signal stops it without awaiting
what runs (any.stop.drain). emulator.py has all that.

A line of --jsonl with `"method"`, `"path"` and `"headers": [["Name", "value"]]` is an
HTTP invocation. Where there is no 127.0.0.2, as on macOS, a server that listens on
127.0.0.1 alone is not found out. Standard library only, CPython 3.8 or later.
"""
from __future__ import annotations

import argparse
import base64
import contextlib
import io
import json
import math
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import (Any, Callable, Dict, Iterable, Iterator, List, NamedTuple,
                    Optional, Sequence, Tuple)

__version__ = "0.1.0"
SPEC_VERSION = "0.1"
__all__ = ["Outcome", "Platform", "Request", "Session", "Violation"]

Facts = Dict[str, str]  # values for the templates of the tables
Pairs = Tuple[Tuple[str, str], ...]


# ---- model ----

class Violation(NamedTuple):
    """A rule of SPEC.md that the bootstrap broke, and what was seen."""

    rule: str
    seen: str


class Outcome(NamedTuple):
    """What became of one invocation: `body`, `status` and `headers` are what the cloud
    shows its caller; `message` is for people."""

    kind: str
    body: bytes
    request_id: str
    duration_ms: float
    violations: Tuple[Violation, ...] = ()
    message: str = ""
    status: int = 200
    headers: Pairs = ()


class Row(NamedTuple):
    """One line of the states table: what is done, the next state, the rule."""

    action: str
    state: str
    rule: str


class Field(NamedTuple):
    """A header field or environment variable; `optional`: left out when empty."""

    name: str
    value: str
    optional: bool = False


class Limit(NamedTuple):
    """A setting: its default and the option that sets it; `zero`: may be 0."""

    default: float
    option: str
    zero: bool = False


# ---- tables: the wire ----

PROTOCOL = "fc"

# (method, path) -> call; here the platform asks and the bootstrap answers
ENDPOINTS: Dict[Tuple[str, str], str] = {
    ("POST", "/invoke"): "invoke",
    ("POST", "/initialize"): "initialize",
    ("GET", "/pre-freeze"): "pre-freeze",
    ("GET", "/pre-stop"): "pre-stop",
}
HOOK_NAMES = {"initialize": "Initialize", "pre-freeze": "PreFreeze",
              "pre-stop": "PreStop"}
IDEMPOTENT = ("GET", "HEAD", "OPTIONS", "TRACE")  # [fc.connection.retry]


def read_rows(text: str) -> Dict[Tuple[str, str], Row]:
    """Read lines `state call|call action next-state rule` into a states table."""
    table: Dict[Tuple[str, str], Row] = {}
    for line in text.strip().splitlines():
        state, calls, action, after, rule = line.split()
        for call in calls.split("|"):
            table[state, call] = Row(action, after, rule)
    return table


STATES = read_rows("""
    starting     connect     initialize initializing fc.start.probe
    initializing initialized ready      idle         fc.initialize.once
    initializing refused     discard    stopping     fc.initialize.failed
    idle         invoke      send       busy         fc.invoke.send
    busy         invoke      send       busy         fc.concurrency.limit
    busy         settled     settle     idle         fc.invoke.answer
    idle         quiet       freeze     frozen       fc.freeze.idle
    frozen       invoke      thaw       busy         fc.freeze.thaw
    idle         stop        pre-stop   stopping     fc.stop.order
    frozen       stop        pre-stop   stopping     fc.stop.order
    busy         stop        pre-stop   stopping     any.stop.drain
    starting     stop        discard    stopping     fc.stop.order
    initializing stop        discard    stopping     fc.stop.order
    """)

ON_TIME = {"starting": "init-timeout", "initializing": "init-timeout",
           "busy": "timeout"}
ON_EXIT = {"starting": "start-error", "initializing": "init-error", "busy": "exit"}


def read_fields(*rows: str) -> Tuple[Field, ...]:
    """Read `Name value` rows; a name that begins with `?` is optional."""
    split = (row.partition(" ") for row in rows)
    return tuple(Field(name.lstrip("?"), value, name[0] == "?")
                 for name, _, value in split)


HEADERS = read_fields(  # [fc.headers.common] [fc.headers.empty]
    "X-Fc-Request-Id {request_id}",
    "X-Fc-Control-Path {control_path}",
    "X-Fc-Base-Path {base_path}",
    "X-Fc-Function-Name {name}",
    "X-Fc-Function-Handler {handler}",
    "X-Fc-Function-Memory {memory_mb}",
    "X-Fc-Function-Timeout {timeout_whole_s}",
    "X-Fc-Region {region}",
    "X-Fc-Account-Id {account_id}",
    "X-Fc-Qualifier {version}",
    "X-Fc-Version-Id ",
    "X-Fc-Service-Name ",
    "X-Fc-Service-Logproject ",
    "X-Fc-Service-Logstore ",
    "X-Fc-Access-Key-Id {access_key_id}",
    "X-Fc-Access-Key-Secret {access_key_secret}",
    "X-Fc-Security-Token {security_token}",
    "X-Fc-Client-Ip ",
    "X-Fc-Retry-Count 0")

ENVIRONMENT = read_fields(  # [fc.env.table] [fc.env.port]
    "FC_SERVER_PORT {port}",
    "FC_CUSTOM_LISTEN_PORT {port}",
    "FC_FUNC_CODE_PATH {code_root}",
    "FC_FUNCTION_NAME {name}",
    "FC_FUNCTION_HANDLER {handler}",
    "FC_FUNCTION_MEMORY_SIZE {memory_mb}",
    "FC_FUNCTION_VERSION {version}",
    "FC_INSTANCE_ID {instance_id}",
    "FC_REGION {region}",
    "FC_ACCOUNT_ID {account_id}",
    "?ALIBABA_CLOUD_ACCESS_KEY_ID {access_key_id}",  # [any.credentials.role]
    "?ALIBABA_CLOUD_ACCESS_KEY_SECRET {access_key_secret}",
    "?ALIBABA_CLOUD_SECURITY_TOKEN {security_token}")

# Fields that do not cross the platform [fc.headers.reserved-request]
# [fc.headers.reserved-response]; framing belongs to each connection.
DROPPED_REQUEST = frozenset(("connection", "keep-alive", "content-length",
                             "transfer-encoding", "expect"))
DROPPED_RESPONSE = frozenset(("connection", "keep-alive", "content-length",
                              "transfer-encoding", "date", "server"))

# The only variables that a bootstrap inherits [any.env.inherited], and their values
# where the platform's own environment has none.
INHERITED = {"PATH": os.defpath, "HOME": "/", "TMPDIR": "/tmp", "LANG": "C.UTF-8"}
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


# ---- tables: what callers and readers of the log see ----

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

# before and after the output of an invocation or hook [any.log.frame]
LOG_LINES = ("FC {call} Start RequestId: {request_id}\n",
             "FC {call} End RequestId: {request_id}{error}\n")


# ---- rules without I/O ----

class Session:
    """The life of one instance: what may be asked of it, and when.

    Knows no socket, thread or clock; the caller serialises the calls.
    """

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
    if status == 404 and not is_http:  # [fc.answer.outcome]
        return "function-error"
    return "ok"


def judge_hook(status: int) -> str:
    """Return what a hook's answer means: done, failed or broken [fc.hook.success]."""
    if 200 <= status < 300:
        return "done"
    return "broken" if status >= 500 else "failed"  # [fc.hook.broken]


def request_problem(function: Any, target: str, headers: Pairs) -> str:
    """Say which limit a caller's HTTP request exceeds; "" for none."""
    if len(target) > function.path_bytes:  # [fc.limits.request]
        return "path and query have %d bytes; the limit is %d" % (
            len(target), function.path_bytes)
    size = fields_size(headers)
    if size > function.request_header_bytes:  # [fc.limits.request]
        return "the header fields have %d bytes; the limit is %d" % (
            size, function.request_header_bytes)
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
    for name in env:
        if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):  # [any.env.names]
            raise ValueError("environment variable %r: a name is a letter, then "
                             "letters, digits and underscores" % name)
        if name.startswith(RESERVED_ENV):  # [any.env.names]
            raise ValueError("environment variable %s: the prefix is reserved for the "
                             "platform" % name)
    size = sum(len(os.fsencode(name + value)) for name, value in env.items())
    if size > MAX_ENV_BYTES:  # [any.env.size]
        raise ValueError("environment variables take %d bytes; the cloud allows %d"
                         % (size, MAX_ENV_BYTES))


def describe(function: Any, code_root: str) -> Facts:
    """Return what the templates name of a function, any object with its settings."""
    facts = {"access_key_id": "", "access_key_secret": "", "security_token": ""}
    facts.update(
        function.credentials, handler=function.handler or DEFAULT_HANDLER,
        name=function.name, version=function.version or DEFAULT_VERSION,
        region=function.region, code_root=code_root, account_id="100000000000",
        memory_mb=str(function.memory_mb),
        timeout_whole_s=str(max(1, math.ceil(function.timeout_s))))
    return facts


def fill_in(table: Iterable[Field], facts: Facts) -> List[Tuple[str, str]]:
    """Return names and values, without the optional ones that have no value."""
    filled = [(field, field.value.format_map(facts)) for field in table]
    return [(field.name, value) for field, value in filled
            if value or not field.optional]


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
    """Return (status, headers, body) that the cloud shows its caller. `facts` holds
    request_id and, for failures, timeout, init_timeout, duration, peak_mb, message and
    start_error. An HTTP function's own answer is passed on instead [fc.http.pass]."""
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


# ---- HTTP, as its client ----

NAME, TEXT = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", r"[^\x00-\x08\x0a-\x1f\x7f]*"
STATUS_LINE = r"HTTP/1\.([0-9]) ([1-9][0-9][0-9])(?: %s)?" % TEXT
FIELD_LINE = r"(?:(%s):(%s))?" % (NAME, TEXT)  # empty: the end of the head
CHUNK_LINE = r"0*([0-9A-Fa-f]{1,7})[ \t]*(?:;.*)?"  # sizes: what memory can hold
TARGET = r"/[\x21-\x7e\x80-\xff]*"
LINE_BYTES = 65536  # the longest line


class Request(NamedTuple):
    """What the server is asked: an event, unless more than the body is given
    [fc.invoke.event] [fc.invoke.control-path]. A hook has the path as control path."""

    body: bytes
    method: str = "POST"
    target: str = "/invoke"
    headers: Pairs = (("Content-Type", "application/octet-stream"),)
    control_path: str = "/invoke"


def is_http(request: Request) -> bool:
    """Tell whether it is an HTTP invocation, no event and no hook."""
    return request.control_path == "/http-invoke"


class Answer(NamedTuple):
    """What the server said; `keep_alive`: the connection takes another request."""

    status: int = 200
    fields: Sequence[Tuple[str, str]] = ()
    body: bytes = b""
    keep_alive: bool = False


class Failure(Exception):
    """No answer: the outcome's kind, a message, the rule that was broken if any, and
    for `start-error` the reason, a key of START_ERRORS."""

    def __init__(self, kind: str, message: str, rule: str = "",
                 reason: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.violations = (Violation(rule, message),) if rule else ()
        self.reason = reason


class NoAnswer(ConnectionError):
    """The connection has ended before a byte of an answer."""


def write_head(request: Request, facts: Facts) -> bytes:
    """Return the head of a request [fc.headers.common]."""
    path = request.target.partition("?")[0]
    fields = pass_fields(request.headers, DROPPED_REQUEST)
    if field_text(fields, "host") is None:
        fields.append(("Host", "%s:%s" % (facts["host"], facts["port"])))
    fields += fill_in(HEADERS, {**facts, "control_path": request.control_path,
                                "base_path": path})
    fields.append(("Content-Length", str(len(request.body))))
    lines = ["%s %s HTTP/1.1" % (request.method, request.target)]
    lines += ["%s: %s" % field for field in fields]
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")


def read_answer(reader: io.BufferedReader, request: Request, function: Any) -> Answer:
    """Return an answer in full, past interim ones. Raises Failure, or ConnectionError
    when the connection breaks."""
    try:
        if not reader.peek(1):
            raise NoAnswer("it was closed without an answer")
    except ConnectionError as error:
        raise NoAnswer(error.strerror or str(error))
    status = 100
    while 100 <= status < 200:
        version, code = read_line(reader, STATUS_LINE).groups()
        status, fields = int(code), read_headers(reader, function.response_header_bytes)
        if status == 101:
            raise Failure("bad-response", "status 101: WebSocket is left out here")
    body, is_delimited = b"", True
    if request.method != "HEAD" and status not in (204, 304):
        body, is_delimited = read_body(reader, fields)
    if len(body) > function.result_bytes and not is_http(request):
        raise Failure("response-too-large", "the result has %d bytes; the limit is %d"
                      % (len(body), function.result_bytes))  # [fc.limits.result]
    options = (field_text(fields, "connection") or "").lower()
    keep_alive = "keep-alive" in options if version == "0" else "close" not in options
    return Answer(status, fields, body, keep_alive and is_delimited)


def read_line(reader: io.BufferedReader, pattern: str,
              rule: str = "any.http.malformed") -> "re.Match[str]":
    """Return the next line, which must look like that."""
    line = reader.readline(LINE_BYTES)
    if len(line) == LINE_BYTES:
        raise Failure("response-too-large", "the answer has a line over 64 KiB")
    if not line.endswith(b"\n"):
        raise ConnectionError("it was closed before the end of the answer")
    found = re.fullmatch(pattern + "\r\n", line.decode("latin-1"))
    if found is None:
        raise Failure("bad-response", "the answer has a line %r" % line[:80], rule)
    return found


def read_headers(reader: io.BufferedReader, most_bytes: int) -> List[Tuple[str, str]]:
    """Return the fields of a head, or of a trailer."""
    fields: List[Tuple[str, str]] = []
    size = 0
    while True:
        name, value = read_line(reader, FIELD_LINE).groups()
        if name is None:
            return fields
        fields.append((name, value.strip(" \t")))
        size += fields_size(fields[-1:])
        if size > most_bytes:  # [fc.limits.response]
            raise Failure("response-too-large", "the answer's header fields have more "
                          "than %d bytes" % most_bytes)


def field_text(fields: Iterable[Tuple[str, str]], name: str) -> Optional[str]:
    """Return the values of a field joined by commas, None when it is absent."""
    values = [value for key, value in fields if key.lower() == name]
    return ",".join(values) if values else None


def read_body(reader: io.BufferedReader,
              fields: Iterable[Tuple[str, str]]) -> Tuple[bytes, bool]:
    """Return a body, and whether it has an end of its own. Raises Failure when that is
    in doubt."""
    length = field_text(fields, "content-length")
    coding = field_text(fields, "transfer-encoding")
    if length is None and coding is None:
        return reader.read(), False  # up to the end of the connection
    if coding is None and length and re.fullmatch("[0-9]{1,9}", length):
        return read_exactly(reader, int(length)), True
    if length is None and coding and coding.lower() == "chunked":
        return b"".join(read_chunks(reader)), True
    raise Failure("bad-response", "Content-Length: %s, Transfer-Encoding: %s"
                  % (length, coding), "any.http.framing")


def read_chunks(reader: io.BufferedReader) -> Iterator[bytes]:
    """Yield a body that comes in chunks; read the trailer behind it, too."""
    size = -1
    while size:
        size = int(read_line(reader, CHUNK_LINE, "any.http.framing")[1], 16)
        yield read_exactly(reader, size)
        if size:
            read_line(reader, "", "any.http.framing")
    read_headers(reader, LINE_BYTES)


def read_exactly(reader: io.BufferedReader, size: int) -> bytes:
    """Return so many bytes."""
    data = reader.read(size)
    if len(data) < size:
        raise ConnectionError("it was closed %d bytes too early" % (size - len(data)))
    return data


# ---- one server process ----

EXIT_S = 0.5    # a process that ends closes its connections a moment earlier
SENDER_S = 0.1  # for the last of a request to leave when its answer is there
DIAL_S = 0.005  # between two attempts to reach a server that starts
TICK_S = 0.01   # between two looks at what an ended server has left behind


def start_thread(body: Callable[..., object], *arguments: object) -> threading.Thread:
    """Run a function in a thread."""
    thread = threading.Thread(target=body, args=arguments, daemon=True)
    thread.start()
    return thread


def send(connection: socket.socket, data: bytes) -> None:
    """Send a request; whether it arrived is told by the answer."""
    with contextlib.suppress(OSError):
        connection.sendall(data)
        if hasattr(socket, "TCP_QUICKACK"):  # else an answer in two parts takes 40 ms
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)


def hang_up(connection: socket.socket) -> None:
    """End both directions."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def choose_host() -> str:
    """Return 127.0.0.2, where a server that is bound to 127.0.0.1 cannot be reached
    [fc.start.probe]; 127.0.0.1 on hosts that lack the address."""
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.2", 0))
        return "127.0.0.2"
    except OSError:
        return "127.0.0.1"


def choose_port(fixed: int) -> int:
    """Return the port if it is free; for 0 one that is. Raises Failure."""
    for _ in range(1 if fixed else 100):
        # below those that the system gives to clients
        port = fixed or 20000 + int.from_bytes(os.urandom(4), "big") % 12000
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("0.0.0.0", port))
            return port
    raise Failure("start-error", "port %d is taken; --port 0 takes a free one" % port,
                  reason="port")


class Instance:
    """A server: start it, ask it, freeze it, stop it.

    Threads that invoke share it through `changed`, and wait there for room. One more
    thread waits for the end of the process. A thread that asks the server something
    waits at its own connection, to the deadline at most.
    """

    def __init__(self, function: Any, changed: threading.Condition) -> None:
        self.function = function
        self.facts = {**describe(function, function.code), "host": choose_host(),
                      "instance_id": "c-" + os.urandom(6).hex()}
        self.process: Optional[subprocess.Popen[bytes]] = None
        self.ended = threading.Event()      # the process
        self.hook_lock = threading.Lock()   # one hook, freeze or stop at a time
        self.changed = changed              # guards what follows
        self.session = Session(function.concurrency)
        self.is_closed = False              # it takes no further invocation
        self.kept: List[Tuple[socket.socket, bool]] = []  # open; whether used yet

    # -- start --

    def start(self) -> None:
        """Start the process, and take the invocation that needs it. Blocks for the
        limits of start and Initializer. Raises Failure when the process has ended."""
        try:
            self.start_process()
            self.await_port()
            self.initialize()
        except Failure:
            self.kill()
            self.ended.wait()
            raise

    def start_process(self) -> None:
        """Start the process, with its output on stderr [any.start.cwd]."""
        function = self.function
        # [fc.start.command] [any.start.bootstrap]
        words = function.command or [os.path.join(function.code, "bootstrap")]
        self.facts["port"] = str(choose_port(function.port))
        env = {name: os.environ.get(name, value) for name, value in INHERITED.items()}
        env.update(function.env)  # [any.env.user]
        env.update(fill_in(ENVIRONMENT, self.facts))
        with self.changed:
            if self.is_closed:
                raise Failure("start-error", "it was stopped")
            try:
                self.process = subprocess.Popen(
                    words, cwd=function.code, env=env, stdin=subprocess.DEVNULL,
                    stdout=2, stderr=2, start_new_session=True)  # [any.process.group]
            except OSError as error:  # [any.start.executable] [fc.start.failed]
                program = os.path.join(function.code, words[0])
                reason = ("missing" if not os.path.exists(program) else
                          "mode" if not os.access(program, os.X_OK) else "")
                raise Failure("start-error", "%s: %s%s" % (
                    words[0], error.strerror, "" if reason else
                    " (look at its first line)"), reason=reason)
        start_thread(self.watch, self.process)

    def watch(self, process: "subprocess.Popen[bytes]") -> None:
        """Wait for the end of the process, and let everybody know."""
        process.wait()
        if self.session.state != "stopping":
            self.signal(signal.SIGKILL)  # what it has left [any.process.group]
        with self.changed:
            while self.kept:
                self.kept.pop()[0].close()
            self.ended.set()
            self.changed.notify_all()

    def await_port(self) -> None:
        """Dial until the server accepts [fc.start.probe]."""
        limit_s = self.function.start_timeout_s
        deadline = time.monotonic() + limit_s
        while not self.ended.wait(DIAL_S):
            try:
                self.kept.append((self.dial(deadline), False))
                self.session.move("connect")
                return
            except OSError:
                if time.monotonic() >= deadline:
                    raise Failure("start-error", "nothing listens on 0.0.0.0:%s within "
                                  "%g s" % (self.facts["port"], limit_s), reason="port")
        assert self.process is not None
        raise Failure("start-error", exit_text(
            self.process.returncode, self.function.command or ["/code/bootstrap"]))

    def initialize(self) -> None:
        """Call the Initializer, if there is one [fc.initialize.once]; then take the
        invocation that all this is for."""
        verdict = "done"
        if self.function.initializer:
            verdict = self.call_hook("initialize", self.function.initializer_timeout_s)
        if verdict != "done":  # [fc.initialize.failed] [any.init.timeout]
            self.session.move("refused")
            raise Failure("init-timeout" if verdict == "timeout" else "init-error",
                          "the Initializer: " + verdict)
        with self.changed:
            self.session.move("initialized")
            self.take()
            self.changed.notify_all()

    # -- invocations --

    def take(self) -> bool:
        """Take an invocation if there is room; `changed` is held."""
        action = "" if self.is_closed else self.session.move("invoke")
        if action == "thaw":  # [fc.freeze.thaw]
            self.signal(signal.SIGCONT)
        return action != ""

    def invoke(self, request: Request, request_id: str) -> Tuple[str, Answer]:
        """Send an invocation that was taken; return (kind, answer). Raises Failure."""
        try:
            return self.ask("Invoke", request, request_id, self.function.timeout_s)
        except Failure as failure:
            if failure.kind == "timeout":  # [fc.time.others]
                self.is_closed = True
            raise
        finally:
            with self.changed:
                self.session.move("settled")
                self.end_if_closed()
                self.changed.notify_all()
            if self.function.freeze:
                start_thread(self.freeze)

    def end_if_closed(self) -> None:
        """Kill it when it takes nothing more, and nothing runs; `changed` is held."""
        if self.is_closed and not self.session.running:
            self.kill()

    # -- requests --

    def call_hook(self, call: str, limit_s: float) -> str:
        """Call a hook; return done, failed, broken or timeout [fc.hook.success]."""
        method, path = next(key for key, name in ENDPOINTS.items() if name == call)
        try:
            return self.ask(HOOK_NAMES[call], Request(b"", method, path, (), path),
                            new_id(), limit_s)[0]
        except Failure as failure:
            return {"timeout": "timeout", "exit": "broken"}.get(failure.kind, "failed")

    def ask(self, call: str, request: Request, request_id: str,
            limit_s: float) -> Tuple[str, Answer]:
        """Send a request; return what its answer means, and the answer. Raises Failure.
        The log's lines stand around it [any.log.frame]."""
        print_log(LOG_LINES[0], call, request_id)
        verdict = "no answer"
        try:
            answer = self.get_answer(request, request_id, limit_s)
            if call == "Invoke":
                verdict = judge_answer(is_http(request), answer.status,
                                       field_text(answer.fields, "x-fc-status") or "")
            else:
                verdict = judge_hook(answer.status)
            return verdict, answer
        except Failure as failure:
            verdict = str(failure)
            raise
        finally:
            print_log(LOG_LINES[1], call, request_id,
                      "" if verdict in ("ok", "done") else ", Error: " + verdict)

    def get_answer(self, request: Request, request_id: str, limit_s: float) -> Answer:
        """Send a request on a connection that was kept open, or a new one."""
        deadline = time.monotonic() + limit_s
        head = write_head(request, {**self.facts, "request_id": request_id})
        try:
            connection, is_used = self.connect(deadline)
            try:
                answer = self.exchange(connection, request, head, deadline)
            except NoAnswer:  # [fc.connection.retry]
                if not is_used or request.body or request.method not in IDEMPOTENT:
                    raise
                answer = self.exchange(self.dial(deadline), request, head, deadline)
            if time.monotonic() >= deadline:  # hung up on a body without a length
                raise socket.timeout
            return answer
        except OSError as error:
            is_late = time.monotonic() >= deadline
            if self.ended.wait(0 if is_late else EXIT_S) and self.process is not None:
                raise Failure("exit", "the bootstrap ended with status %d"
                              % self.process.returncode)  # [any.outcome.exit]
            if is_late:  # [any.event.timeout]
                raise Failure("timeout", "no answer within %g s" % limit_s)
            # [fc.outcome.bad-response]
            raise Failure("bad-response", "the connection broke: %s" % (
                error.strerror or error), "fc.connection.keep-alive")

    def exchange(self, connection: socket.socket, request: Request, head: bytes,
                 deadline: float) -> Answer:
        """Send a request, return the answer; keep the connection if it can be."""
        # whoever waits at the connection goes on when the time is over
        timer = threading.Timer(deadline - time.monotonic(), hang_up, [connection])
        timer.daemon = True
        timer.start()
        # from a thread: a server may answer before it has read everything
        sender = start_thread(send, connection, head + request.body)
        is_kept = False
        try:
            answer = read_answer(connection.makefile("rb"), request, self.function)
            sender.join(SENDER_S)
            is_kept = answer.keep_alive and not sender.is_alive()
            return answer
        finally:
            timer.cancel()
            if is_kept:
                with self.changed:
                    self.kept.append((connection, True))
            else:
                hang_up(connection)
                sender.join()
                connection.close()

    def dial(self, deadline: float) -> socket.socket:
        """Open a connection."""
        connection = socket.create_connection(
            (self.facts["host"], int(self.facts["port"])),
            max(0.001, deadline - time.monotonic()))
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def connect(self, deadline: float) -> Tuple[socket.socket, bool]:
        """Return a connection, and whether it was used before [fc.connection.reuse]."""
        with self.changed:
            while self.kept:
                connection, is_used = self.kept.pop()
                if not select.select([connection], [], [], 0)[0]:
                    return connection, is_used
                connection.close()  # there is its end to read, or what answers nothing
        return self.dial(deadline), False

    # -- freeze and end --

    def freeze(self) -> None:
        """Freeze it if nothing runs [fc.freeze.idle]; the body of a thread."""
        with self.hook_lock:
            if self.session.state != "idle":
                return
            verdict, limit_s = "done", self.function.pre_freeze_timeout_s
            if self.function.pre_freeze:  # [fc.freeze.hook] invocations may come now
                verdict = self.call_hook("pre-freeze", limit_s)
            with self.changed:
                if verdict == "broken":  # [fc.hook.broken]
                    self.is_closed = True
                    self.end_if_closed()
                elif self.session.move("quiet"):
                    self.signal(signal.SIGSTOP)

    def stop(self) -> None:
        """Stop it: in order if nothing runs in it, else at once [fc.stop.order]."""
        grace_s = self.function.grace_s
        try:
            with self.hook_lock:
                if self.session.state not in ("idle", "frozen"):
                    return
                self.session.move("stop")
                self.signal(signal.SIGCONT)
                if self.function.pre_stop and not self.ended.is_set():  # [fc.stop.hook]
                    self.call_hook("pre-stop", self.function.pre_stop_timeout_s)
                deadline = time.monotonic() + grace_s
                self.signal(signal.SIGTERM)  # [any.stop.order]
                self.ended.wait(grace_s)
                while self.signal(0) and time.monotonic() < deadline:
                    time.sleep(TICK_S)  # what a wrapper has started ends, too
        finally:
            self.kill()
            self.ended.wait()

    def kill(self) -> None:
        """Kill all of it, without grace [any.time.kill]."""
        with self.changed:
            self.is_closed = True
            if self.process is None:
                self.ended.set()
                self.changed.notify_all()
            self.signal(signal.SIGKILL)

    def signal(self, number: int) -> bool:
        """Signal the whole process group; tell whether there is one."""
        try:
            if self.process is not None:
                os.killpg(self.process.pid, number)
            return self.process is not None
        except (ProcessLookupError, PermissionError):
            return False


def print_log(line: str, call: str, request_id: str, error: str = "") -> None:
    """Print a line that frames the output of a call."""
    print(line.format(call=call, request_id=request_id, error=error), end="",
          file=sys.stderr, flush=True)


# ---- the platform ----

class Platform:
    """A function, and one instance of it at a time. `function` is any object with what
    `parse` returns."""

    def __init__(self, function: Any) -> None:
        self.function = function
        self.changed = threading.Condition()
        self.instance: Optional[Instance] = None

    def invoke(self, request: Request) -> Outcome:
        """Return what became of an invocation [any.outcome.one]. Blocks for room in the
        instance, its start, and the time limit."""
        request_id, begin = new_id(), time.monotonic()
        failure, answer = Failure("", ""), Answer()  # none so far
        try:
            self.check(request)
            kind, answer = self.find_instance().invoke(request, request_id)
            if kind != "ok":
                failure = Failure(kind, "the function answered with a failure")
        except Failure as error:
            kind, failure = error.kind, error
        duration_ms = (time.monotonic() - begin) * 1000
        status, headers, body = caller_answer(kind, answer.body, {
            "request_id": request_id, "message": str(failure), "peak_mb": "0.00",
            "duration": str(round(duration_ms)),
            "timeout": "%g" % self.function.timeout_s,
            "init_timeout": "%g" % self.function.initializer_timeout_s,
            "start_error": START_ERRORS[failure.reason]}, is_http(request))
        if is_http(request) and kind in ("ok", "function-error"):
            status = answer.status  # [fc.http.pass] [fc.headers.reserved-response]
            headers += tuple(pass_fields(answer.fields, {"upgrade", *DROPPED_RESPONSE}))
        return Outcome(kind, body, request_id, duration_ms, failure.violations,
                       str(failure), status, headers)

    def check(self, request: Request) -> None:
        """Raise Failure when no instance gets the request."""
        size, limit = len(request.body), self.function.event_bytes
        problem = ""
        if size > limit:  # [any.event.size]
            problem = "the event has %d bytes; the limit is %d" % (size, limit)
        elif is_http(request):
            problem = request_problem(self.function, request.target, request.headers)
        if problem:
            raise Failure("request-too-large", problem)
        if not self.function.max_instances:  # [any.queue.limit]
            raise Failure("throttled", "--max-instances is 0")

    def find_instance(self) -> Instance:
        """Return an instance that has taken an invocation; start it if there is none.
        Blocks until there is room. Raises Failure."""
        with self.changed:
            while self.instance is not None and not self.instance.ended.is_set():
                if self.instance.take():
                    return self.instance
                self.changed.wait()
            # [any.instance.replace]
            instance = self.instance = Instance(self.function, self.changed)
        instance.start()
        return instance

    def stop(self) -> None:
        """Stop the instance."""
        if self.instance is not None:
            self.instance.stop()


# ---- command line ----

def parse(words: Sequence[str]) -> argparse.Namespace:
    """Return the function, and what is to be done. Exits with 2 if it cannot be."""
    at = words.index("--") if "--" in words else len(words)
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS,
        description="FOLDER (--event TEXT | --jsonl) OPTIONS -- COMMAND ARG ...")
    add = parser.add_argument
    add("code", metavar="FOLDER", help="the folder with the file bootstrap")
    add("--event", metavar="TEXT", help="invoke with this event and print the answer")
    add("--jsonl", action="store_true", help="invoke for each line of stdin")
    add("--parallel", type=int, default=1, help="so many lines at a time (%(default)s)")
    add("--env", action="append", default=[], metavar="NAME=VALUE", help="a variable")
    add("--handler", default=DEFAULT_HANDLER, help="handler string (%(default)s)")
    add("--name", default="function", help="name of the function (%(default)s)")
    add("--port", type=int, default=DEFAULT_PORT, help="0: a free one (%(default)s)")
    for hook in ("--initializer", "--pre-freeze", "--pre-stop"):
        add(hook, action="store_true", help="the function has this hook")
    add("--freeze", action="store_true", default=True, help="when idle, as by default")
    add("--no-freeze", action="store_false", dest="freeze", help="never")
    for name, limit in LIMITS.items():
        options = [limit.option] + ["--initializer-timeout"] * name.startswith("init")
        add(*options, dest=name, metavar="N", default=limit.default,
            type=float if name.endswith("_s") else int, help=name + " (%(default)s)")
    add("--max-instances", type=int, default=1, help="0: no event is accepted")
    for option in ("--queue", "--queue-timeout", "--idle"):
        add(option, help="for the conformance kit; without effect")
    parser.set_defaults(version="", region="local", credentials={})
    function = parser.parse_args(words[:at])
    function.command = words[at + 1:]
    function.env = dict(pair.partition("=")[::2] for pair in function.env)
    function.code = os.path.realpath(function.code)
    problem = find_problem(function)
    if problem:
        parser.error(problem)
    return function


def find_problem(function: argparse.Namespace) -> str:
    """Return what is wrong with the options; nothing if they are right."""
    for name, limit in LIMITS.items():
        value = getattr(function, name)
        most = 1e6 if name.endswith("_s") else 1e12  # no system call waits 25 days
        if not 0 <= value <= most or value == 0 and not limit.zero:
            return "%s is out of range" % limit.option
    if function.concurrency > MAX_CONCURRENCY:  # [fc.concurrency.limit]
        return "--concurrency is at most %d" % MAX_CONCURRENCY
    if not 0 <= function.port <= 65535 or function.parallel < 1:
        return "--port or --parallel is out of range"
    if not re.fullmatch(TEXT, function.name + function.handler):
        return "--name or --handler holds a control character"  # [any.security.values]
    if not os.path.isdir(function.code):
        return "%s is not a folder" % function.code
    if function.jsonl == (function.event is not None):
        return "either --event or --jsonl is needed"
    try:
        check_env(function.env)
    except ValueError as error:
        return str(error)
    return ""


def read_events(lines: Iterable[bytes]) -> Iterator[Tuple[object, Request]]:
    """Yield id and invocation of each line of the conformance kit."""
    for line in lines:
        try:
            document = json.loads(line)
            event = (base64.b64decode(document["event_base64"], validate=True)
                     if "event_base64" in document else document["event"].encode())
            request = Request(event)
            if "method" in document:  # [fc.invoke.http]
                request = Request(event, document["method"], document.get("path", "/"),
                                  tuple(map(tuple, document.get("headers", ()))),
                                  "/http-invoke")
            check_head(request)
        except (ValueError, KeyError, TypeError, AttributeError):
            sys.exit("stdin: a line with id and event is expected, not %r" % line[:80])
        yield document.get("id"), request


def check_head(request: Request) -> None:
    """Raise ValueError or TypeError unless it can be written [any.security.values]."""
    parts = [(NAME, request.method), (TARGET, request.target)]
    for name, value in request.headers:
        parts += [(NAME, name), (TEXT, value)]
    for pattern, text in parts:
        if not re.fullmatch(pattern, text):
            raise ValueError(text)


def run_lines(platform: Platform, parallel: int) -> None:
    """Invoke for each line of stdin, so many at a time; print the outcomes."""
    room, printing = threading.Semaphore(parallel), threading.Lock()

    def run(identity: object, request: Request) -> None:
        try:
            line = to_line(identity, platform.invoke(request))
            with printing:
                os.write(1, line.encode() + b"\n")
        except BrokenPipeError:
            pass  # whoever reads has left
        finally:
            room.release()

    for identity, request in read_events(sys.stdin.buffer):
        room.acquire()
        start_thread(run, identity, request)
    for _ in range(parallel):  # [any.stop.drain]
        room.acquire()


def to_line(identity: object, outcome: Outcome) -> str:
    """Return an outcome as a line for the conformance kit."""
    document: Dict[str, object] = dict(outcome._asdict(), id=identity, violations=[
        one._asdict() for one in outcome.violations])
    try:
        document["body"] = outcome.body.decode()
    except UnicodeDecodeError:
        del document["body"]
        document["body_base64"] = base64.b64encode(outcome.body).decode()
    return json.dumps(document)


def show(outcome: Outcome) -> None:
    """Print the answer; what was wrong goes to stderr."""
    sys.stdout.buffer.write(outcome.body + b"\n")
    for rule, seen in outcome.violations:
        print("violation: [%s] %s" % (rule, seen), file=sys.stderr)
    if outcome.kind != "ok":
        print("%s: %s" % (outcome.kind, outcome.message), file=sys.stderr)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run what the command line says; return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    function = parse(words[1:] if words[:1] == [PROTOCOL] else words)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    platform = Platform(function)
    try:
        if function.jsonl:
            run_lines(platform, function.parallel)
            return 0
        outcome = platform.invoke(Request(os.fsencode(function.event)))
        show(outcome)
        return 0 if outcome.kind == "ok" else 1
    finally:
        platform.stop()


if __name__ == "__main__":
    sys.exit(main())
