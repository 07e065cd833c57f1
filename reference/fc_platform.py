#!/usr/bin/env python3
# fc_platform.py: the platform's side of Alibaba Function Compute's custom runtime. MIT licence.
"""Play Alibaba Function Compute for a server: start it, send it events, tell what became of each.

@@DOCSTRING
"""
from __future__ import annotations

import json
import math
import os
import re
import time
from typing import Any, Dict, Iterable, List, NamedTuple, Sequence, Tuple

__version__ = "0.1.0"
SPEC_VERSION = "0.1"
__all__ = ["Outcome", "Session", "Violation"]

Facts = Dict[str, str]  # values for the templates of the tables
Pairs = Tuple[Tuple[str, str], ...]


# ---- model ----

class Violation(NamedTuple):
    """A rule of SPEC.md that the bootstrap broke, and what was seen."""

    rule: str
    seen: str


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
    headers: Pairs = (("X-Fc-Request-Id", facts["request_id"]),)  # [fc.headers.caller-id]
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
