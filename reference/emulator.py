#!/usr/bin/env python3
"""Run a custom-runtime bootstrap of Alibaba FC, Tencent SCF or Huawei FunctionGraph.

This file is the platform's side of the three protocols: it starts the program that a
user brings along (the bootstrap), hands it events, and tells what became of each.

    python3 emulator.py scf ./my-function --event '{"key": "value"}'
    python3 emulator.py fg ./my-function --serve 8080      # then POST /-/invoke
    python3 emulator.py fc ./my-function --event @event.json -- python3 server.py

It is a library as well; a unit test can start a platform:

    with Platform("scf", code="examples/bash/scf", timeout_s=3) as platform:
        outcome = platform.invoke(b'{"key": "value"}')
        assert outcome.kind == "ok" and not outcome.violations

What the protocols demand stands in SPEC.md; a comment such as [scf.next.blocks] names
the rule that its line obeys. Read the tables first, then the two session classes: they
hold the rules and touch no socket, thread or clock. What follows is plumbing.

It does not isolate the bootstrap, bill, or imitate consoles and accounts. Standard
library only, CPython 3.8 or later, Linux. On macOS, where it is untested, memory is not
measured, and os.waitid() came with CPython 3.13 only.
"""
from __future__ import annotations

import argparse
import atexit
import binascii
import collections
import errno
import http
import json
import math
import os
import queue
import re
import select
import selectors
import signal
import socket
import stat
import struct
import subprocess
import sys
import threading
import time
from typing import (TYPE_CHECKING, Any, Callable, Dict, Iterable, Iterator, List,
                    NamedTuple, Optional, Sequence, Tuple, Type, Union)

if TYPE_CHECKING:
    import zipfile

__version__ = "0.1.0"
SPEC_VERSION = "0.1"  # of SPEC.md; `__spec__` itself belongs to the import system
__all__ = ["Function", "HttpRequest", "Outcome", "Platform", "Violation"]

Pairs = Tuple[Tuple[str, str], ...]
Body = Union[bytes, Iterable[bytes]]


# ---- model ----

class Violation(NamedTuple):
    """A rule of SPEC.md that the bootstrap broke, and what was seen."""

    rule: str
    seen: str


class Outcome(NamedTuple):
    """What became of one invocation.

    `kind` is one of KINDS. `body` is what the cloud shows its caller: the result, or
    the vendor's error document. `message` says the same to a person. `status` and
    `headers` are those of the vendor's answer. `log` is the last 4 KB of output.
    """

    kind: str
    body: bytes
    request_id: str
    duration_ms: float
    violations: Tuple[Violation, ...] = ()
    message: str = ""
    status: int = 200
    headers: Pairs = ()
    log: bytes = b""


class HttpRequest(NamedTuple):
    """A caller's request to an HTTP function (fc). `target` is path and query."""

    method: str
    target: str
    headers: Pairs = ()


class StartError(Exception):
    """The bootstrap cannot be started. `reason` is a key of START_ERRORS."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class BadMessage(Exception):
    """The peer sent something that is not HTTP as SPEC.md allows it."""

    def __init__(self, rule: str, seen: str, status: int = 400) -> None:
        super().__init__("%s: %s" % (rule, seen))
        self.violation = Violation(rule, seen)
        self.status = status


class BodyTooLarge(Exception):
    """The announced or received body exceeds the limit; `size` bytes or more."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__("%d bytes exceed the limit of %d" % (size, limit))
        self.size = size
        self.limit = limit


# ---- tables: protocols ----

MIB = 1048576  # [any.event.size]

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_TARGET = re.compile(r"[\x21-\x7e\x80-\xff]+")
_BAD_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
_NUL = re.compile(r"\x00")

PROTOCOLS = ("fc", "scf", "fg")
LONG_NAMES = {"functiongraph": "fg"}

KINDS = ("ok", "function-error", "timeout", "not-fetched", "init-timeout", "init-error",
         "start-error", "exit", "bad-response", "response-too-large",
         "request-too-large", "out-of-memory", "throttled", "cancelled")

# (method, path) -> call; a path that ends in "/" is followed by the request id.
ENDPOINTS: Dict[str, Dict[Tuple[str, str], str]] = {
    "scf": {
        ("POST", "/runtime/init/ready"): "ready",
        ("GET", "/runtime/invocation/next"): "next",
        ("POST", "/runtime/invocation/response"): "response",
        ("POST", "/runtime/invocation/error"): "error",
    },
    "fg": {
        ("GET", "/v1/runtime/invocation/request"): "request",
        ("POST", "/v1/runtime/invocation/response/"): "response",
        ("POST", "/v1/runtime/invocation/error/"): "error",
    },
    "fc": {  # here the platform asks and the bootstrap answers
        ("POST", "/invoke"): "invoke",
        ("POST", "/initialize"): "initialize",
        ("GET", "/pre-freeze"): "pre-freeze",
        ("GET", "/pre-stop"): "pre-stop",
    },
}


class Row(NamedTuple):
    """One line of a states table: what is done, the next state, the rule."""

    action: str
    state: str
    rule: str


States = Dict[Tuple[str, str], Row]


def _rows(text: str) -> States:
    """Read lines `state call|call action next-state rule` into a states table."""
    table: States = {}
    for line in text.strip().splitlines():
        state, calls, action, after, rule = line.split()
        for call in calls.split("|"):
            table[state, call] = Row(action, after, rule)
    return table


STATES: Dict[str, States] = {
    "scf": _rows("""
        starting ready                   accept   idle     scf.ready.first
        starting next                    hold     starting scf.next.blocks
        starting response|error|oversize ignore   starting scf.result.locked
        idle     ready                   accept   idle     scf.ready.repeat
        idle     next                    hold     idle     scf.next.blocks
        idle     response|error|oversize ignore   idle     scf.result.locked
        idle     issue                   accept   issued   any.event.issue
        issued   ready                   accept   issued   scf.ready.repeat
        issued   next                    deliver  running  scf.next.event
        issued   response|error|oversize ignore   issued   scf.result.locked
        running  ready                   accept   running  scf.ready.repeat
        running  next                    deliver  running  scf.next.same-event
        running  response                finish   idle     any.result.outcome
        running  error                   fail     idle     any.result.outcome
        running  oversize                overflow idle     any.result.size
        stopping ready                   accept   stopping scf.ready.repeat
        stopping next                    hold     stopping any.stop.drain
        stopping response|error|oversize ignore   stopping scf.result.locked
        """),
    "fg": _rows("""
        starting request                       hold     idle     fg.request.first
        starting response|error|oversize|stray refuse   starting fg.result.unknown-id
        idle     request                       hold     idle     fg.request.blocks
        idle     response|error|oversize|stray refuse   idle     fg.result.unknown-id
        idle     issue                         accept   issued   any.event.issue
        issued   request                       deliver  running  fg.request.event
        issued   response|error|oversize|stray refuse   issued   fg.result.unknown-id
        running  request                       hold     running  fg.request.blocks
        running  response                      finish   idle     any.result.outcome
        running  error                         fail     idle     any.result.outcome
        running  oversize                      overflow idle     any.result.size
        running  stray                         refuse   running  fg.result.unknown-id
        stopping request                       hold     stopping any.stop.drain
        stopping response|error|oversize|stray refuse   stopping fg.result.unknown-id
        """),
    "fc": _rows("""
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
        """),
}

# What a parked poll gets when an event is issued: scf answers every poll inside an
# invocation with the same event [scf.next.same-event], fg only one [fg.request.blocks].
POLLS_SHARE_EVENT = {"scf": True, "fg": False}

# (state) -> outcome when the clock of that state runs out, or when the process ends.
ON_TIME = {"starting": "init-timeout", "initializing": "init-timeout",
           "issued": "not-fetched", "running": "timeout", "busy": "timeout"}
ON_EXIT = {"starting": "init-error", "initializing": "init-error",
           "issued": "exit", "running": "exit", "busy": "exit"}


class Field(NamedTuple):
    """A header field or environment variable; `optional` = left out when empty."""

    name: str
    value: str
    optional: bool = False


def _fields(*rows: str) -> Tuple[Field, ...]:
    """Read `Name value` rows; a name that begins with `?` is optional."""
    split = (row.partition(" ") for row in rows)
    return tuple(Field(name.lstrip("?"), value, name[0] == "?")
                 for name, _, value in split)


# Fields that accompany an event. Values name entries of Function.facts() and of the
# invocation.
HEADERS: Dict[str, Tuple[Field, ...]] = {
    "scf": _fields(  # [scf.next.headers]
        "Request_Id {request_id}",
        "Memory_Limit_In_Mb {memory_mb}",
        "Time_Limit_In_Ms {timeout_ms}"),
    "fg": _fields(  # [fg.request.headers] [any.credentials.role]
        "X-Cff-Request-Id {request_id}",
        "X-CFF-Invoke-Type sync",
        "?X-CFF-Access-Key {access_key_id}",
        "?X-CFF-Secret-Key {access_key_secret}",
        "?X-CFF-Security-Token {security_token}",
        "?X-CFF-Auth-Token {auth_token}"),
    "fc": _fields(  # [fc.headers.common] [fc.headers.empty]
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
        "X-Fc-Retry-Count 0"),
}

ENVIRONMENT: Dict[str, Tuple[Field, ...]] = {
    "scf": _fields(  # [scf.env.api] [scf.env.handler] [scf.env.documented]
        "SCF_RUNTIME_API {api_host}",
        "SCF_RUNTIME_API_PORT {api_port}",
        "_HANDLER {handler}",
        "USER_CODE_ROOT {code_root}/",
        "SCF_RUNTIME CustomRuntime",
        "SCF_FUNCTIONNAME {name}",
        "SCF_FUNCTIONVERSION {version}",
        "SCF_NAMESPACE default",
        "TENCENTCLOUD_RUNENV SCF",
        "TENCENTCLOUD_REGION {region}",
        "TENCENTCLOUD_APPID {account_id}",
        "TENCENTCLOUD_UIN {account_id}",
        "TENCENTCLOUD_TZ UTC",
        "?TENCENTCLOUD_SECRETID {access_key_id}",
        "?TENCENTCLOUD_SECRETKEY {access_key_secret}",
        "?TENCENTCLOUD_SESSIONTOKEN {security_token}"),
    "fg": _fields(  # [fg.env.table]
        "RUNTIME_API_ADDR {api_host}:{api_port}",
        "RUNTIME_PROJECT_ID {project_id}",
        "RUNTIME_FUNC_NAME {name}",
        "RUNTIME_FUNC_VERSION {version}",
        "RUNTIME_PACKAGE {package}",
        "RUNTIME_HANDLER {handler}",
        "RUNTIME_TIMEOUT {timeout_whole_s}",
        "RUNTIME_USERDATA {user_data}",
        "RUNTIME_CPU {cpu}",
        "RUNTIME_MEMORY {memory_mb}",
        "RUNTIME_CODE_ROOT {code_root}",
        "RUNTIME_MAX_RESP_BODY_SIZE {result_bytes}"),
    "fc": _fields(  # [fc.env.table] [fc.env.port]
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
        "?ALIBABA_CLOUD_ACCESS_KEY_ID {access_key_id}",
        "?ALIBABA_CLOUD_ACCESS_KEY_SECRET {access_key_secret}",
        "?ALIBABA_CLOUD_SECURITY_TOKEN {security_token}"),
}

# The only variables that a bootstrap inherits [any.env.inherited], and their values
# where the emulator's own environment has none.
INHERITED = {"PATH": os.defpath, "HOME": "/", "TMPDIR": "/tmp", "LANG": "C.UTF-8"}

# [scf.env.handler]; for the others chosen
DEFAULT_HANDLER = {"scf": "index.main_handler", "fg": "index.handler",
                   "fc": "index.handler"}
DEFAULT_VERSION = {"scf": "$LATEST", "fg": "latest", "fc": "LATEST"}

# Names that a user may not set [any.env.names].
RESERVED_ENV = {"scf": ("SCF_", "QCLOUD_", "TENCENTCLOUD_", "_HANDLER"),
                "fg": ("RUNTIME_",), "fc": ("FC_",)}


MAX_LIMIT_S = 1000000  # of every time limit: no system call can wait 25 days


class Limit(NamedTuple):
    """A setting: its default, the option that sets it; 0 < value unless `zero`."""

    default: float
    option: str
    zero: bool = False


_COMMON_LIMITS = {
    "max_instances": Limit(8, "--max-instances", True),  # 0: disabled
    "queue": Limit(1000, "--queue", True),
    "queue_timeout_s": Limit(60, "--queue-timeout"),
    "idle_s": Limit(60, "--idle"),
    "grace_s": Limit(2, "--grace", True),
}
_PULL_LIMITS = dict(
    _COMMON_LIMITS,
    timeout_s=Limit(3, "--timeout"),
    init_timeout_s=Limit(65, "--init-timeout"),
    memory_mb=Limit(128, "--memory"),
    event_bytes=Limit(6 * MIB, "--max-event"),
    result_bytes=Limit(6 * MIB, "--max-result"))
LIMITS: Dict[str, Dict[str, Limit]] = {
    "scf": _PULL_LIMITS,
    "fg": dict(_PULL_LIMITS, init_timeout_s=Limit(0, "--init-timeout", True)),
    "fc": dict(_COMMON_LIMITS,
               concurrency=Limit(1, "--concurrency"),
               timeout_s=Limit(60, "--timeout"),
               start_timeout_s=Limit(120, "--start-timeout"),
               initializer_timeout_s=Limit(3, "--init-timeout"),
               pre_freeze_timeout_s=Limit(3, "--pre-freeze-timeout"),
               pre_stop_timeout_s=Limit(3, "--pre-stop-timeout"),
               memory_mb=Limit(512, "--memory"),
               event_bytes=Limit(32 * MIB, "--max-event"),
               result_bytes=Limit(32 * MIB, "--max-result"),
               request_header_bytes=Limit(8192, "--request-header-bytes"),
               response_header_bytes=Limit(8192, "--response-header-bytes"),
               path_bytes=Limit(4096, "--path-bytes")),
}

CREDENTIALS = ("access_key_id", "access_key_secret", "security_token", "auth_token")
# The settings that are no LIMITS; the latter of fc alone.
WORDS = ("handler", "env", "name", "version", "region", "port", "credentials")
FC_WORDS = ("command", "initializer", "pre_freeze", "pre_stop", "freeze", "image",
            "health_check")

# healthCheckConfig of fc: our name -> vendor's field, lowest, highest, default
# [fc.health.check]
HEALTH_FIELDS: Dict[str, Tuple[str, int, int, int]] = {
    "initial_delay_s": ("initialDelaySeconds", 0, 120, 0),
    "period_s": ("periodSeconds", 1, 120, 3),
    "timeout_s": ("timeoutSeconds", 1, 3, 1),
    "failure_threshold": ("failureThreshold", 1, 120, 3),
    "success_threshold": ("successThreshold", 1, 120, 1),
}

# Limits of every server of ours [any.limits.head]
HEAD_BYTES = 65536
HEAD_FIELDS = 100
HEAD_TIMEOUT_S = 10.0
SILENCE_S = 30.0         # within a body, either way
KEEP_ALIVE_S = 75.0      # a caller's connection that asks nothing
MAX_CONNECTIONS = 2048   # per listener; each costs a thread
ACCEPT_PAUSE_S = 0.1     # while there are too many open files
CHUNK_BYTES = 262144     # of a body passed on
SKIP_BYTES = 64 * MIB    # of an oversized body read, to get an answer through
LINGER_S = 2.0           # for a caller who sends on after his answer
FLUSH_S = 2.0            # for who reads stdout or stderr, when we end
DYING_S = 5.0            # for a process whose end has begun
LOG_TAIL_BYTES = 4096    # [any.log.tail]
VIOLATIONS = 10000       # kept of all; the first ones
OWN_VIOLATIONS = 100     # kept of one invocation, or before the first one
SEEN_CHARACTERS = 200    # kept of what was seen
MAX_ENV_BYTES = 4096     # [any.env.size]
ZIP_BYTES = 1536 * MIB   # unpacked [any.package.zip]
ZIP_ENTRIES = 50000
MEMORY_TICK_S = 0.25     # while something runs [any.memory.limit]
FULL_PAUSE_S = 0.05      # before another look at a terminal that nobody reads
THREAD_PAUSE_S = 0.25    # before another try, when the system has no thread left
GROUP_TICK_S = 0.01      # between two looks at what a stopped bootstrap has forked
THAW_S = 0.2             # for all threads of a frozen instance to come to rest


# ---- tables: what callers see ----

def _json(document: object) -> bytes:
    # a path that is no UTF-8 holds half surrogate pairs; \udcff is JSON, too
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "backslashreplace")


class Facts(Dict[str, str]):
    """Values for the templates of the tables."""


# kind -> (errorCode, errorMessage, statusCode) [scf.outcome.document]
SCF_ERRORS: Dict[str, Tuple[int, str, int]] = {
    "function-error": (1, "user code exception caught", 430),
    "timeout": (-1, "Invoking task timed out after {timeout} seconds", 433),
    "not-fetched": (-1, "Waiting for event timed out after {timeout} seconds", 433),
    "init-timeout": (-1, "Initializing task timed out after {init_timeout} seconds",
                     450),
    "init-error": (-1, "User process exit when initializing", 445),
    "start-error": (1, "ReloadFail: {start_error}\n", 443),
    "exit": (-1, "User process exit when running", 439),
    "out-of-memory": (-1, "Memory limit exceeded", 434),
    "response-too-large": (-1, "The size of response exceeds the upper limit (6MB)",
                           407),
    "request-too-large": (-1, "The size of request exceeds the upper limit (6MB)", 406),
    "throttled": (-1, "Resource limit reached", 432),
    "cancelled": (-1, "Request canceled", 499),
}

# kind -> (HTTP status, code, error_msg) [fg.outcome.document]
FG_ERRORS: Dict[str, Tuple[int, str, str]] = {
    "function-error": (200, "4002", ""),
    "timeout": (200, "4010", "call invoke timeout {timeout}s"),
    "not-fetched": (200, "4010", "call invoke timeout {timeout}s"),
    "init-timeout": (200, "4211",
                     "runtime initialization timed out after {init_timeout}s"),
    "init-error": (200, "4201", "function initialization failed"),
    "start-error": (200, "4202", "{start_error}"),
    "exit": (200, "4204", "runtime process is exited"),
    "out-of-memory": (200, "4205", "runtime memory limit exceeded"),
    "response-too-large": (200, "4008",
                           "response body size {size} exceeds the limit of {limit}"),
    "cancelled": (200, "4208", "function invocation is canceled"),
    "request-too-large": (413, "1201", "the size of request body is beyond "
                                       "maximum:{limit}, body size:{size}"),
    "throttled": (429, "0429", "too many requests"),
}

# kind -> (X-Fc-Error-Type, errorMessage) [fc.outcome.document]
_FC_EXITED = ("Process exited unexpectedly before completing request "
              "(duration: {duration}ms, maxMemoryUsage: {peak_mb}MB)")
FC_FAILURES: Dict[str, Tuple[str, str]] = {
    "timeout": ("InvocationError", "Function timed out after {timeout} seconds "
                                   "(maxMemoryUsage: {peak_mb}MB)"),
    "exit": ("InvocationError", _FC_EXITED),
    "out-of-memory": ("FunctionOOMError", _FC_EXITED),
    "init-timeout": ("InitializationError",
                     "Initializer timed out after {init_timeout} seconds"),
    "init-error": ("InitializationError", "{message}"),
}

# kind -> (status, Code, Message) [fc.outcome.document]
FC_ERRORS: Dict[str, Tuple[int, str, str]] = {
    "start-error": (412, "{start_error}", "The function cannot be started. {message}"),
    "bad-response": (502, "BadResponse", "BadResponse: {message}"),
    "response-too-large": (502, "BadResponse", "BadResponse: {message}"),
    "request-too-large": (400, "InvalidArgument", "{message}"),
    "throttled": (429, "ResourceExhausted", "{message}"),
    "cancelled": (499, "ClientClosedRequest", "client Closed Request"),
}

# reason of a StartError -> the vendor's word for it
START_ERRORS: Dict[str, Dict[str, str]] = {
    "scf": {"missing": "Bootstrap not exist", "mode": "Bootstrap not executable",
            "": "Bootstrap cannot be started"},
    "fg": {"missing": "runtime bootstrap file is not found",
           "mode": "runtime bootstrap file is not executable",
           "": "runtime bootstrap file cannot be started"},
    "fc": {"missing": "CAFileNotFound", "mode": "CAFilePermission",
           "port": "FunctionNotStarted", "": "CAExited"},
}

# Platform lines around an invocation, in each vendor's form [any.log.frame] ...
LOG_LINES: Dict[str, Tuple[str, str]] = {
    "scf": ("START RequestId: {request_id}\nEvent RequestId: {request_id}\n",
            "END RequestId: {request_id}\nReport RequestId: {request_id} "
            "Duration:{duration}ms Memory:{memory_mb}MB MemUsage:{peak_mb}MB\n"),
    "fg": ("{utc} Start invoke request '{request_id}', version: {version}\n",
           "{utc} Finish invoke request '{request_id}', duration: {exact}ms, "
           "billing duration: {billed}ms, memory used: {peak_mb}MB, "
           "billing memory: {memory_mb}MB\n"),
    "fc": ("FC Invoke Start RequestId: {request_id}\n",
           "FC Invoke End RequestId: {request_id}{error}\n"),
}

# Fields that do not cross the platform [fc.headers.reserved-request]
# [fc.headers.reserved-response]; framing belongs to each connection.
DROPPED_REQUEST = frozenset(("connection", "keep-alive", "content-length",
                             "transfer-encoding", "expect"))
DROPPED_RESPONSE = frozenset(("connection", "keep-alive", "content-length",
                              "transfer-encoding", "date", "server"))


def caller_answer(protocol: str, kind: str, body: bytes, facts: Facts,
                  is_http: bool) -> Tuple[int, Pairs, bytes]:
    """Return (status, headers, body) that the cloud shows its caller."""
    if protocol == "fc":
        return _fc_answer(kind, body, facts, 502 if is_http else 200)
    return (_scf_answer if protocol == "scf" else _fg_answer)(kind, body, facts)


def _scf_answer(kind: str, body: bytes, facts: Facts) -> Tuple[int, Pairs, bytes]:
    if kind == "ok":
        return 200, (), body
    code, message, status = SCF_ERRORS[kind]
    document: Dict[str, object] = {"errorCode": code,
                                   "errorMessage": message.format_map(facts),
                                   "requestId": facts["request_id"]}
    if kind == "function-error":
        document["stackTrace"] = body.decode("utf-8", "replace")
    document["statusCode"] = status
    return 200, (), _json(document)


def _fg_answer(kind: str, body: bytes, facts: Facts) -> Tuple[int, Pairs, bytes]:
    status, code, message = (200, "0", "") if kind == "ok" else FG_ERRORS[kind]
    headers = (("X-Cff-Request-Id", facts["request_id"]), ("X-Func-Err-Code", code),
               ("X-Is-Func-Err", "false" if kind == "ok" else "true"))
    if kind not in ("ok", "function-error"):
        body = _json({"error_code": "FSS." + code,
                      "error_msg": message.format_map(facts)})
    return status, headers, body


def _fc_answer(kind: str, body: bytes, facts: Facts,
               failed: int) -> Tuple[int, Pairs, bytes]:
    headers: Pairs = (("X-Fc-Request-Id", facts["request_id"]),)
    if kind == "ok":
        return 200, headers, body
    if kind == "function-error":
        return 200, headers + (("X-Fc-Error-Type", "InvocationError"),), body
    if kind in FC_FAILURES:
        status = failed
        error_type, message = FC_FAILURES[kind]
        document = {"errorMessage": message.format_map(facts)}
        headers += (("X-Fc-Error-Type", error_type),)
    else:
        status, code, message = FC_ERRORS[kind]
        code, message = code.format_map(facts), message.format_map(facts)
        document = {"RequestId": facts["request_id"], "Code": code, "Message": message,
                    "ErrorCode": code, "ErrorMessage": message}
    return status, headers + (("Content-Type", "application/json"),), _json(document)


# ---- rules without I/O: the function's configuration ----

def setting_names(protocol: str) -> List[str]:
    """Return the settings that a function of this protocol has."""
    return sorted(WORDS + tuple(LIMITS[protocol])
                  + (FC_WORDS if protocol == "fc" else ()))


class Function:
    """The configuration of a function; `settings` are fields of WORDS and LIMITS.

    Raises ValueError that names the setting, when one is unknown or out of range.
    """

    command: Sequence[str] = ()
    handler = ""
    env: Dict[str, str] = {}
    name = "function"
    version = ""
    region = "local"
    port = 9000
    initializer = pre_freeze = pre_stop = False
    freeze = True
    image = ""
    health_check: Dict[str, Any] = {}
    credentials: Dict[str, str] = {}

    max_instances: int
    queue: int
    queue_timeout_s: float
    idle_s: float
    grace_s: float
    timeout_s: float
    memory_mb: int
    event_bytes: int
    result_bytes: int
    concurrency = 1     # invocations that an instance takes at a time
    init_timeout_s = start_timeout_s = initializer_timeout_s = 0.0
    pre_freeze_timeout_s = pre_stop_timeout_s = 0.0
    request_header_bytes = response_header_bytes = path_bytes = 0

    def __init__(self, protocol: str, **settings: Any) -> None:
        if protocol not in PROTOCOLS:
            raise ValueError("protocol %r is not one of %s"
                             % (protocol, ", ".join(PROTOCOLS)))
        self.protocol = protocol
        known = setting_names(protocol)
        for name, value in settings.items():
            if name not in known:
                raise ValueError("%s is not a setting of %s; known: %s"
                                 % (name, protocol, ", ".join(known)))
            setattr(self, name, value)
        for name, limit in LIMITS[protocol].items():
            setattr(self, name, check_limit(name, limit, settings))
        self.handler = self.handler or DEFAULT_HANDLER[protocol]
        self.version = self.version or DEFAULT_VERSION[protocol]
        self.env = check_env(protocol, self.env)
        self.freeze = self.freeze and not self.image  # no process of our group
        self.health_check = check_health_config(self.health_check)
        for name, text in dict(self.credentials, handler=self.handler, name=self.name,
                               version=self.version, region=self.region,
                               image=self.image).items():
            check_text(name, text, _BAD_VALUE, "control")
        if isinstance(self.command, (str, bytes)):
            raise ValueError("command must be a list of words, not one text: %r"
                             % (self.command,))
        for word in self.command:
            check_text("each word of command", word)
        check_port(self.port)
        if self.concurrency > 200:  # [fc.concurrency.limit]
            raise ValueError("concurrency must be 1 to 200, not %d" % self.concurrency)
        if protocol == "fc" and self.port:
            self.max_instances = min(1, self.max_instances)  # [any.instance.on-demand]
        # [any.init.timeout]
        self.init_timeout_s = self.init_timeout_s or self.timeout_s

    def facts(self, code_root: str) -> Facts:
        """Return the values that the templates of ENVIRONMENT and HEADERS name."""
        return Facts(
            {key: self.credentials.get(key, "") for key in CREDENTIALS},
            handler=self.handler, memory_mb=str(self.memory_mb), name=self.name,
            version=self.version, region=self.region, code_root=code_root,
            account_id="100000000000", project_id="0" * 32, package="default",
            timeout_ms=str(round(self.timeout_s * 1000)),
            timeout_whole_s=str(max(1, math.ceil(self.timeout_s))),
            result_bytes=str(self.result_bytes), user_data=json.dumps(self.env),
            cpu=str(200 + 100 * self.memory_mb // 128))  # [fg.env.table]


def check_limit(name: str, limit: Limit, settings: Dict[str, Any]) -> float:
    """Return a setting of LIMITS. Raises ValueError that names its option too."""
    value: object = settings.get(name, limit.default)
    known = "%s (%s)" % (name, limit.option)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("%s must be a number, not %r" % (known, value))
    most = MAX_LIMIT_S if name.endswith("_s") else sys.maxsize
    if not 0 <= value <= most or value == 0 and not limit.zero:
        raise ValueError("%s must be %s and at most %d, not %s" % (
            known, "0 or more" if limit.zero else "more than 0", most, value))
    if name.endswith("_s"):
        return value
    if int(value) != value:
        raise ValueError("%s must be a whole number, not %g" % (known, value))
    return int(value)


def check_text(name: str, text: object, bad: "re.Pattern[str]" = _NUL,
               kind: str = "NUL") -> None:
    """Raise ValueError unless it is a text that a process can be given."""
    if not isinstance(text, str) or bad.search(text) or not is_writable(text):
        raise ValueError("%s must be a text in UTF-8, without %s characters"
                         % (name, kind))


def is_writable(text: str) -> bool:
    """Tell whether a text has bytes; one with half a surrogate pair has none."""
    try:
        os.fsencode(text)
        return True
    except UnicodeEncodeError:
        return False


def check_port(port: object) -> None:
    """Raise ValueError unless it is a port, or 0."""
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
        raise ValueError("port (--port) must be 0 to 65535, not %r" % (port,))


def check_env(protocol: str, env: Dict[str, str]) -> Dict[str, str]:
    """Return `env`; ValueError when the cloud would refuse it, naming the variable."""
    for name, value in env.items():
        if not isinstance(name, str) or not re.fullmatch(  # [any.env.names]
                r"[A-Za-z][A-Za-z0-9_]*", name):
            raise ValueError("environment variable %r: a name is a letter, then "
                             "letters, digits and underscores" % name)
        if name.startswith(RESERVED_ENV[protocol]):  # [any.env.names]
            raise ValueError("environment variable %s: the prefix is reserved for the "
                             "platform" % name)
        check_text("environment variable " + name, value)
    size = sum(len(os.fsencode(name + value)) for name, value in env.items())
    if size > MAX_ENV_BYTES:
        raise ValueError("environment variables take %d bytes; the cloud allows %d"
                         % (size, MAX_ENV_BYTES))
    return dict(env)


def check_health_config(config: Optional[Dict[str, Any]]) -> Dict[str, Any]:
    """Return the health check with its defaults, {} for none. Raises ValueError."""
    if not config:
        return {}
    path = config.get("path", "")
    if not isinstance(path, str) or not path.startswith("/") or len(path) > 2048 or (
            not _TARGET.fullmatch(path)):
        raise ValueError("health check: httpGetUrl must begin with /, not %r" % path)
    checked: Dict[str, Any] = {"path": path}
    for name, (field, low, high, default) in HEALTH_FIELDS.items():
        value = config.get(name, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not (
                0 <= value <= high) or low and not value:  # fractions serve tests
            raise ValueError("health check: %s must be %d to %d, not %r"
                             % (field, low, high, value))
        checked[name] = value
    return checked


def seconds(value: float) -> str:
    """Write a time limit as the vendors do: `3`, not `3.0`."""
    return "%g" % value


# ---- rules without I/O: scf and fg ----

class PullSession:
    """What one bootstrap of scf or fg may ask, and what the answer means.

    Knows no socket, thread or clock. The caller serialises the calls. Polls are
    opaque tokens, kept while their answer must wait.
    """

    def __init__(self, protocol: str) -> None:
        self.protocol = protocol
        self.state = "starting"
        self.request_id = ""
        self.parked: List[Any] = []
        self._on_way = 0        # answers with the event that are being sent
        self._reached = False   # one of them has arrived
        self._owes = False      # a result, when it was told to stop

    def receive(self, call: str, poll: Any = None, request_id: str = "",
                oversize: bool = False) -> Row:
        """Take a call of the bootstrap; return what it means. `poll` is kept when the
        action is `hold`."""
        row = STATES[self.protocol][self.state, self._name(call, request_id, oversize)]
        self.state = row.state
        if row.action == "hold":
            self.parked.append(poll)
        elif row.action == "deliver":
            self._on_way += 1
        elif row.action in ("finish", "fail", "overflow"):
            self.request_id = ""
        return row

    def _name(self, call: str, request_id: str, oversize: bool) -> str:
        if call in ("response", "error"):
            if self.protocol == "fg" and (
                    request_id != self.request_id or not request_id):
                return "stray"  # [fg.result.unknown-id]
            if oversize:
                return "oversize"
        return call

    def issue(self, request_id: str) -> None:
        """Hand the instance an event; it must be idle."""
        self.state = STATES[self.protocol][self.state, "issue"].state
        self.request_id = request_id
        self._on_way, self._reached = 0, False

    def take_polls(self) -> List[Any]:
        """Return the parked polls that get the issued event now, if there are any."""
        if self.state != "issued" or not self.parked:
            return []
        count = len(self.parked) if POLLS_SHARE_EVENT[self.protocol] else 1
        polls, self.parked = self.parked[:count], self.parked[count:]
        self._on_way = len(polls)
        self.state = "running"
        return polls

    def delivered(self, request_id: str, reached: bool) -> List[Any]:
        """Note what became of an answer with the event; return the polls to answer
        next, where it has reached none [any.poll.dead]."""
        if request_id != self.request_id:
            return []  # the result was faster
        self._on_way -= 1
        self._reached = self._reached or reached
        if self._reached or self._on_way:
            return []
        self.state = "issued"
        return self.take_polls()

    def withdraw(self, poll: Any) -> bool:
        """Forget a parked poll whose client has gone; False if it is not parked."""
        if poll not in self.parked:
            return False
        self.parked.remove(poll)
        return True

    def stop(self) -> None:
        """From here on nothing is delivered and no result counts."""
        self._owes = self._owes or self.state == "running"
        self.state = "stopping"
        self.request_id = ""

    def is_owed(self, call: str) -> bool:
        """Tell, once, whether it is the result of what ran when it was told to stop
        [any.stop.bootstrap]."""
        was_owed = self._owes and call in ("response", "error")
        self._owes = self._owes and not was_owed
        return was_owed


def find_call(protocol: str, method: str, target: str) -> Tuple[str, str, int]:
    """Return (call, request id, 200), or ("", "", 404 or 405) [any.api.unknown]."""
    path = target.partition("?")[0]
    table = ENDPOINTS[protocol]
    call = table.get((method, path))
    if call:
        return call, "", 200
    prefix, slash, request_id = path.rpartition("/")
    call = table.get((method, prefix + slash))
    if call:
        return call, request_id, 200
    known = any(known_path in (path, prefix + slash) for _, known_path in table)
    return "", "", 405 if known else 404


# ---- rules without I/O: fc ----

class PushSession:
    """The life of one fc instance, and what its server's answers mean.

    Knows no socket, thread or clock; the caller serialises the calls.
    """

    def __init__(self, concurrency: int) -> None:
        self.state = "starting"
        self.concurrency = concurrency
        self.running = 0

    def move(self, call: str) -> str:
        """Take a call of the fc states table; return its action, "" if not allowed."""
        row = STATES["fc"].get((self.state, call))
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
    """Return what a hook's answer means: done, failed or broken [fc.hook.answer]."""
    if 200 <= status < 300:
        return "done"
    return "broken" if status >= 500 else "failed"


def check_request(request: HttpRequest) -> None:
    """Raise ValueError unless the request can be written as HTTP."""
    if not _TOKEN.fullmatch(request.method):
        raise ValueError("method %r is no token" % request.method[:80])
    if request.target[:1] != "/" or not _TARGET.fullmatch(request.target):
        raise ValueError("path %r must begin with / and hold no blank or control "
                         "character" % request.target[:80])
    for name, value in request.headers:
        if not _TOKEN.fullmatch(name) or _BAD_VALUE.search(value):
            raise ValueError("header field %r is not valid" % name[:80])


def http_problem(request: HttpRequest, function: Function) -> str:
    """Say which limit of fc a caller's request exceeds; "" for none."""
    if len(request.target) > function.path_bytes:  # [fc.limits.request]
        return "path and query have %d bytes; the limit is %d" % (
            len(request.target), function.path_bytes)
    size = fields_size(request.headers)
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


# ---- HTTP: one strict parser for both directions ----

_REASONS = {status.value: status.phrase for status in http.HTTPStatus}
_SEND_LIMIT = struct.pack("ll", int(SILENCE_S), 0)
_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)
_QUICKACK = getattr(socket, "TCP_QUICKACK", None)


def body_length(table: Dict[str, str]) -> Optional[int]:
    """Return the announced body size; -1 = chunked, None = none announced. Raises
    BadMessage unless the body's end is beyond doubt [any.http.framing]."""
    length, coding = table.get("content-length"), table.get("transfer-encoding")
    if coding is not None:
        if length is not None or coding.lower() != "chunked":
            raise BadMessage("any.http.framing", "Transfer-Encoding: %s, "
                             "Content-Length: %s" % (coding[:40], length))
        return -1
    if length is None:
        return None
    if not (length.isascii() and length.isdigit() and len(length) < 16):
        raise BadMessage("any.http.framing", "Content-Length: " + repr(length[:40]))
    return int(length)


class Message:
    """The head of a request or an answer; never changed once it is parsed.

    `words` are method, target, version; or version, status, reason. `fields` keeps
    order, case and duplicates. `keep_alive`: another message may follow.
    """

    __slots__ = ("words", "fields", "table", "length", "keep_alive", "is_request")

    def __init__(self, words: Tuple[str, str, str], fields: List[Tuple[str, str]],
                 table: Dict[str, str]) -> None:
        self.words = words
        self.fields = fields
        self.table = table      # by lower-case name
        self.length = body_length(table)
        connection = self.get("connection").lower()
        self.keep_alive = ("keep-alive" in connection if "HTTP/1.0" in words
                           else "close" not in connection)
        self.is_request = bool(
            words[2] in ("HTTP/1.1", "HTTP/1.0") and _TOKEN.fullmatch(words[0])
            and _TARGET.fullmatch(words[1]))

    def get(self, name: str) -> str:
        """Return the value of a field, named in lower case; "" when it is absent."""
        return self.table.get(name, "")


# Peers repeat their heads to the letter, so parsing each only once saves a third.
_PARSED: Dict[bytes, Message] = {}


def parse_again(head: bytes) -> Message:
    """Parse a head, or return the message that the same bytes gave before."""
    message = _PARSED.get(head)
    if message is None:
        message = parse_head(head.decode("latin-1"))
        if len(head) < 1024:
            if len(_PARSED) >= 256:
                _PARSED.clear()
            _PARSED[head] = message
    return message


def parse_head(text: str) -> Message:
    """Parse a head without its empty line. Raises BadMessage, naming the bytes."""
    start, *lines = text.split("\r\n")
    words = start.split(" ", 2)
    if len(words) < 2 or _BAD_VALUE.search(start):
        raise BadMessage("any.http.malformed", repr(start[:80]))
    fields = []
    table: Dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        value = value.strip(" \t")
        if not colon or not _TOKEN.fullmatch(name) or _BAD_VALUE.search(value):
            raise BadMessage("any.http.malformed", repr(line[:80]))
        key = name.lower()
        if key in table:
            if key in ("content-length", "transfer-encoding"):
                raise BadMessage("any.http.framing", "two %s fields" % name)
            table[key] += ", " + value
        else:
            table[key] = value
        fields.append((name, value))
    return Message((words[0], words[1], words[2] if len(words) > 2 else ""), fields,
                   table)


def format_head(start: str, fields: Iterable[Tuple[str, str]]) -> bytes:
    """Write a head with its empty line. Raises ValueError for CR, LF or NUL."""
    lines = [start]
    for name, value in fields:
        if _BAD_VALUE.search(value) or not _TOKEN.fullmatch(name):
            raise ValueError("header field %s holds a control character" % name)
        lines.append("%s: %s" % (name, value))
    lines.append("\r\n")
    return "\r\n".join(lines).encode("latin-1", "replace")


def status_line(status: int) -> str:
    """Write the first line of an answer."""
    return "HTTP/1.1 %d %s" % (status, _REASONS.get(status, "Unknown"))


def json_answer(status: int, document: object) -> Tuple[bytes, bytes]:
    """Return (head, body) of an answer in JSON."""
    body = _json(document)
    return format_head(status_line(status), (
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(body))))), body


EMPTY_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"  # [any.http.empty]


class Stream:
    """A connected socket with the bytes read ahead. One thread reads it."""

    __slots__ = ("socket", "rest", "idle_limit_s", "head_limit_s", "before_read")

    def __init__(self, connected: socket.socket, idle_limit_s: float = 0,
                 head_limit_s: float = 0) -> None:
        self.socket = connected
        self.rest = b""
        self.idle_limit_s = idle_limit_s    # between messages; 0 = for ever
        self.head_limit_s = head_limit_s    # within a head [any.limits.slow]
        self.before_read: Optional[Callable[[], None]] = None  # within a body
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_LIMIT)
        if idle_limit_s:
            self.limit_reads(idle_limit_s)

    def limit_reads(self, timeout_s: float) -> None:
        """Let each read block at most so long; 0 = for ever."""
        whole = int(timeout_s)
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack(
            "ll", whole, int((timeout_s - whole) * 1e6)))

    def head(self) -> Optional[Message]:
        """Read a head; None at the end of the stream. Blocks until it begins, then
        `head_limit_s`. Raises BadMessage, or OSError when the connection breaks."""
        data = self.rest or self.socket.recv(65536)
        if not data:
            return None
        end = data.find(b"\r\n\r\n") if data[0] > 13 else -1
        if end < 0:
            data, end = self._slow_head(data)
        if end > HEAD_BYTES:
            raise BadMessage("any.limits.head", "a head over 64 KiB", 431)
        self.rest = data[end + 4:]
        return parse_again(data[:end])

    def _slow_head(self, data: bytes) -> Tuple[bytes, int]:
        """Read on until the head is complete, past empty lines before it."""
        deadline = time.monotonic() + (self.head_limit_s or math.inf)
        self.limit_reads(self.head_limit_s)
        size, data = len(data), data.lstrip(b"\r\n")
        while b"\r\n\r\n" not in data:
            if size > HEAD_BYTES:  # empty lines count as well
                raise BadMessage("any.limits.head", "a head over 64 KiB", 431)
            more = self._read(65536)
            if not more:
                raise BadMessage("any.http.no-effect", "end of stream after %r"
                                 % data[-40:])
            if time.monotonic() > deadline:
                raise BadMessage("any.limits.slow", "a head takes too long", 408)
            size += len(more)
            data = (data + more).lstrip(b"\r\n")
        self.limit_reads(self.idle_limit_s)
        return data, data.find(b"\r\n\r\n")

    def _read(self, size: int, flags: int = 0) -> bytes:
        if self.before_read is not None:
            self.before_read()
        try:
            return self.socket.recv(size, flags)
        except BlockingIOError:
            raise BadMessage("any.limits.slow", "silence within a message", 408)
        except ConnectionError as error:
            raise BadMessage("any.http.no-effect", "the connection broke within a "
                             "message: %s" % error.strerror)

    def chunks(self, length: Optional[int], limit: int = sys.maxsize,
               most: int = CHUNK_BYTES) -> Iterator[bytes]:
        """Yield the body as it comes, at most so much at a time. `length` as of
        Message; without one it ends with the stream. Raises BadMessage when it ends
        early [any.http.no-effect], BodyTooLarge when the limit is passed."""
        size = 0
        for part in (self._until_end() if length is None else self._chunked()
                     if length == -1 else self._counted(length, most)):
            size += len(part)
            if size > limit:
                raise BodyTooLarge(size, limit)
            yield part

    def _until_end(self) -> Iterator[bytes]:
        while True:
            data, self.rest = self.rest or self._read(CHUNK_BYTES), b""
            if not data:
                return
            yield data

    def _counted(self, length: int, most: int) -> Iterator[bytes]:
        left = length
        flags = socket.MSG_WAITALL if most > CHUNK_BYTES else 0
        while left:
            data = self.rest or self._read(min(left, most), flags)
            if not data:
                raise BadMessage("any.http.no-effect", "end of stream after %d of %d "
                                 "body bytes" % (length - left, length))
            data, self.rest = (data[:left], data[left:]) if self.rest else (data, b"")
            left -= len(data)
            yield data

    def _chunked(self) -> Iterator[bytes]:
        while True:
            text = self._line().partition(b";")[0].strip(b" \t")
            if not re.fullmatch(rb"[0-9A-Fa-f]{1,15}", text):
                raise BadMessage("any.http.framing", "chunk size %r" % text[:40])
            size = int(text, 16)
            if not size:
                break
            yield from self._counted(size, CHUNK_BYTES)
            if self._line():
                raise BadMessage("any.http.framing", "no CRLF after a chunk")
        for _ in range(HEAD_FIELDS):  # trailers
            if not self._line():
                return
        raise BadMessage("any.limits.head", "too many trailers")

    def _line(self) -> bytes:
        while b"\r\n" not in self.rest:
            if len(self.rest) > 4096:
                raise BadMessage("any.http.framing", "no line end after %r"
                                 % self.rest[:40])
            more = self._read(65536)
            if not more:
                raise BadMessage("any.http.no-effect", "end of stream within a "
                                 "chunked body, after %r" % self.rest[:40])
            self.rest += more
        line, _, self.rest = self.rest.partition(b"\r\n")
        return line

    def send(self, head: bytes, body: bytes = b"") -> None:
        """Send in one write, or in two without joining when the body is large."""
        if len(body) > 65536:
            self.socket.sendall(head)
            self.socket.sendall(body)
        else:
            self.socket.sendall(head + body)

    def peek(self) -> Optional[bytes]:
        """Look whether something waits, without blocking or consuming: None = nothing
        yet, no bytes = the peer has gone."""
        try:
            return self.socket.recv(1, _PEEK)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def shut(self, how: int = socket.SHUT_RDWR) -> None:
        """Wake whoever reads or writes the socket; the owner closes it."""
        try:
            self.socket.shutdown(how)
        except OSError:
            pass  # the peer was faster


def aside(call: Callable[..., object], *arguments: Any) -> threading.Thread:
    """Call it in a thread of its own; return the thread."""
    thread = threading.Thread(target=call, args=arguments, daemon=True)
    thread.start()
    return thread


def attempt(call: Callable[..., object], *arguments: Any) -> None:
    """Call it; a mistake in it is shown, and ends nothing else, be it sys.exit()."""
    try:
        call(*arguments)
    except BaseException:
        sys.excepthook(*sys.exc_info())


class Connection:
    """An accepted connection. Its own thread reads it; any thread may answer.

    `app.handle(connection, message)` answers, or calls defer() and lets somebody else
    answer later: the thread then goes on reading, so it learns at once when the peer
    hangs up, and tells `app.gone(connection)`.
    """

    def __init__(self, accepted: socket.socket, app: "App") -> None:
        self.stream = Stream(accepted, app.idle_limit_s, HEAD_TIMEOUT_S)
        self.app = app
        self.message: Message
        self.invocation: Optional["Invocation"] = None  # that this caller waits for
        self.deferred = False
        self.closing = False    # this request is the last one
        self.unread = False     # so far, some of its body: what follows is no request
        self._answered = threading.Lock()

    def run(self) -> None:
        """Serve the connection until it ends; the body of its thread."""
        try:
            while self._serve_one():
                pass
        except BadMessage as error:
            self._refuse(error)
        except OSError:
            pass  # the peer is gone, or was silent for too long
        finally:
            if self.deferred and not self.app.gone(self):
                self._answered.acquire()  # somebody is writing: keep the socket open
            self.stream.socket.close()

    def _serve_one(self) -> bool:
        try:
            message = self.stream.head()
        except BlockingIOError:  # silent for the app's idle limit
            return self.deferred
        if message is None:
            return False
        if self.deferred:  # pipelined behind a request whose answer must wait
            self._answered.acquire()
            self._answered.release()
        if len(message.fields) > HEAD_FIELDS:  # [any.limits.head]
            raise BadMessage("any.limits.head", "%d header fields"
                             % len(message.fields), 431)
        if not message.is_request:
            raise BadMessage("any.http.malformed", repr(" ".join(message.words)[:80]))
        self.message = message
        self.closing = not message.keep_alive
        self.unread = bool(message.length)
        self.app.handle(self, message)
        return self.deferred or not (self.closing or self.unread)

    def read_body(self, limit: int) -> bytes:
        """Read the request's body. Raises BodyTooLarge, BadMessage, OSError."""
        length, stream = self.message.length, self.stream
        if not length:
            return b""
        if 0 < length <= min(limit, len(stream.rest)):  # it came with the head
            body, stream.rest = stream.rest[:length], stream.rest[length:]
            self.unread = False
            return body
        if length > limit:
            self.skip_body()
            raise BodyTooLarge(length, limit)
        return b"".join(self.body_parts(limit, limit))

    def body_parts(self, limit: int, most: int = CHUNK_BYTES,
                   silence_s: float = 0) -> Iterator[bytes]:
        """Yield the request's body, at most so much at a time. Raises as read_body().
        """
        stream, message = self.stream, self.message
        if not message.length:
            return
        if message.get("expect").lower() == "100-continue" and not stream.rest:
            stream.socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if _QUICKACK is not None:  # a client that sends head and body apart stalls
            stream.socket.setsockopt(socket.IPPROTO_TCP, _QUICKACK, 1)
        stream.limit_reads(silence_s or SILENCE_S)
        yield from stream.chunks(message.length, limit, most)
        self.unread = False
        stream.limit_reads(stream.idle_limit_s)

    def skip_body(self) -> None:
        """Read the body away, within bounds, so that the client gets to see the
        answer."""
        if self.message.get("expect") or (self.message.length or 0) > SKIP_BYTES:
            return  # it waits for us, or sends too much
        try:
            for _ in self.body_parts(SKIP_BYTES, silence_s=LINGER_S):
                pass
        except BodyTooLarge:
            pass

    def defer(self) -> None:
        """Announce that another thread will answer. Call it before that can happen."""
        self._answered.acquire()
        self.deferred = True

    def answer(self, head: bytes, body: bytes = b"") -> bool:
        """Send the answer from this thread; False when the peer is gone. Blocks while
        the peer does not read, SILENCE_S at most per write."""
        return self._send(self._announce_end(head), body)

    def post(self, head: bytes, body: bytes = b"") -> None:
        """Send the answer without blocking; what does not fit goes to a thread, so
        that a slow caller never holds up an instance."""
        head = self._announce_end(head)
        if len(body) <= 65536:
            head, body = head + body, b""
            try:
                head = head[self.stream.socket.send(head, socket.MSG_DONTWAIT):]
            except OSError:
                pass  # full or broken: the thread finds out
            if not head:
                self._release()
                return
        try:
            aside(self._send, head, body)
        except RuntimeError:  # no more threads
            self._send(head, body)

    def _announce_end(self, head: bytes) -> bytes:
        if head and (self.closing or self.unread):
            return head[:-2] + b"Connection: close\r\n\r\n"
        return head

    def _send(self, head: bytes, body: bytes) -> bool:
        try:
            self.stream.send(head, body)
        except OSError:
            self.closing = True
            self.stream.shut()
            return False
        finally:
            self._release()
        return True

    def _release(self) -> None:
        if self.deferred:
            self.deferred = False
            if self.closing or self.unread:
                self.stream.shut()
            self._answered.release()

    def _refuse(self, error: BadMessage) -> None:
        self.app.refused(self, error.violation)
        if not self.deferred:
            self.closing = True
            self.answer(*json_answer(error.status, {
                "error": error.violation.rule, "seen": error.violation.seen}))


class App:
    """What a listener serves. All methods are called from connection threads."""

    idle_limit_s = 0.0

    def handle(self, connection: Connection, message: Message) -> None:
        """Answer the request, or defer."""
        raise NotImplementedError

    def gone(self, connection: Connection) -> bool:
        """The peer left before a deferred answer. True = nobody will answer."""
        raise NotImplementedError

    def refused(self, connection: Connection, violation: Violation) -> None:
        """The peer sent something that is not HTTP."""


class Listener:
    """A listening socket; each accepted connection gets a thread."""

    def __init__(self, host: str, port: int, app: App, loop: "Loop") -> None:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((host, port))
            self._socket.listen(1024)
        except OSError:
            self._socket.close()
            raise
        self._socket.setblocking(False)
        self.host, self.port = self._socket.getsockname()[:2]
        self._app = app
        self._loop = loop
        self._lock = threading.Lock()
        self.connections: Dict[Connection, threading.Thread] = {}
        self._open = True
        self._rest = Timer(self._watch)
        self._watch()

    def _watch(self) -> None:
        with self._lock:
            if self._open:
                self._loop.watch(self._socket, self.accept)

    def accept(self) -> None:
        """Accept what is waiting; never blocks. What has been accepted has a thread
        when this returns, whoever accepted it."""
        while True:
            with self._lock:
                if not self._open:
                    return
                try:
                    accepted, _ = self._socket.accept()
                except (BlockingIOError, ConnectionError):
                    return  # nothing waits, or not any more
                except OSError:  # too many files, say: it would be readable for ever
                    self._loop.unwatch(self._socket)
                    self._loop.set_timer(self._rest, time.monotonic() + ACCEPT_PAUSE_S)
                    return
                if len(self.connections) < MAX_CONNECTIONS:
                    self._start(accepted)
                else:
                    accepted.close()

    def _start(self, accepted: socket.socket) -> None:
        try:
            accepted.setblocking(True)
            connection = Connection(accepted, self._app)
            self.connections[connection] = aside(self._run, connection)
        except (OSError, RuntimeError):  # it has gone; no more threads
            accepted.close()

    def _run(self, connection: Connection) -> None:
        try:
            connection.run()
        finally:
            with self._lock:
                self.connections.pop(connection, None)

    def close(self) -> None:
        """Stop listening; connections go on. May be called twice."""
        with self._lock:
            is_open, self._open = self._open, False
        if is_open:
            self._loop.unwatch(self._socket)
            self._socket.close()

    def join(self, timeout_s: float) -> None:
        """Wait until every connection has ended, at most so long."""
        deadline = time.monotonic() + timeout_s
        with self._lock:
            threads = list(self.connections.values())
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def shut(self) -> None:
        """End every connection."""
        with self._lock:
            connections = list(self.connections)
        for connection in connections:
            connection.stream.shut()


# ---- one thread that waits: deadlines, listeners, output ----

class Timer:
    """A deadline on the monotonic clock, and what to do then. The callback looks at
    the deadline again: it may have been moved meanwhile."""

    __slots__ = ("deadline", "callback")

    def __init__(self, callback: Callable[[], object]) -> None:
        self.deadline = math.inf
        self.callback = callback


class Loop:
    """A thread that sleeps until a file is readable or a deadline passes.

    Callbacks must not block. One may still come just after its file was unwatched.
    Nothing polls: without deadlines the thread sleeps.
    """

    def __init__(self, name: str) -> None:
        self._selector = selectors.DefaultSelector()
        self._lock = threading.Lock()
        self._timers: Dict[Timer, None] = {}    # those that are set
        self._next = math.inf                   # when the thread looks at them next
        self._open = True
        self._wake_read, self._wake_write = os.pipe()
        for end in (self._wake_read, self._wake_write):
            os.set_blocking(end, False)
        self.watch(self._wake_read, self._on_wake)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def watch(self, readable: Union[int, socket.socket],
              callback: Callable[[], None]) -> None:
        """Call back whenever the file is readable."""
        self._selector.register(readable, selectors.EVENT_READ, callback)

    def unwatch(self, readable: Union[int, socket.socket]) -> None:
        """Forget the file, which is still open."""
        try:
            self._selector.unregister(readable)
        except (KeyError, ValueError):
            pass  # the loop has ended

    def set_timer(self, timer: Timer, deadline: float) -> None:
        """Move the timer's deadline; math.inf switches it off."""
        with self._lock:
            timer.deadline = deadline
            if deadline == math.inf:
                self._timers.pop(timer, None)
                return
            self._timers[timer] = None
            if self._open and deadline < self._next:
                self._next = deadline
                self._wake()

    def close(self) -> None:
        """End the thread."""
        with self._lock:
            self._open = False
            self._wake()
        self._thread.join(5)
        self._selector.close()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _wake(self) -> None:
        try:
            os.write(self._wake_write, b"!")
        except BlockingIOError:
            pass  # it is awake

    def _on_wake(self) -> None:
        os.read(self._wake_read, 4096)

    def _run(self) -> None:
        while self._open:
            for key, _ in self._selector.select(self._run_timers()):
                attempt(key.data)

    def _run_timers(self) -> Optional[float]:
        """Call those whose time has come; return how long to sleep."""
        with self._lock:
            now = time.monotonic()
            due = [timer for timer in self._timers if timer.deadline <= now]
            for timer in due:
                del self._timers[timer]
            self._next = min((timer.deadline for timer in self._timers),
                             default=math.inf)
            pause = None if self._next == math.inf else self._next - now
        for timer in due:
            attempt(timer.callback)  # what it sets wakes us up again
        return pause


# ---- code packages and processes ----

def open_package(path: str) -> Tuple[str, Callable[[], None]]:
    """Return (code folder, clean-up) for a folder or a ZIP. Raises ValueError."""
    if os.path.isdir(path):
        try:
            return os.path.abspath(path), lambda: None
        except OSError:
            raise ValueError("%s cannot be found: the working directory is gone" % path)
    if not os.path.exists(path):
        raise ValueError("%s does not exist; CODE is a folder or a ZIP" % path)
    import shutil  # these are a tenth of the memory at rest, and only ZIPs need them
    import tempfile
    import zipfile

    if not zipfile.is_zipfile(path):
        raise ValueError("%s is neither a folder nor a ZIP" % path)
    try:
        folder = tempfile.mkdtemp(prefix="custom-runtime-")
    except OSError as error:
        raise ValueError("%s cannot be unpacked: %s" % (path, error))
    try:
        unpack(path, folder)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder, lambda: shutil.rmtree(folder, ignore_errors=True)


def unpack(path: str, folder: str) -> None:
    """Unpack a ZIP with its modes. Raises ValueError that names a hostile entry."""
    import zipfile

    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            check_entries(entries)
            links = []
            for entry in entries:
                if stat.S_ISLNK(entry.external_attr >> 16):
                    links.append(entry)
                    continue
                target = archive.extract(entry, folder)
                if not entry.is_dir():  # [any.package.mode]
                    os.chmod(target, entry.external_attr >> 16 & 0o777 or 0o644)
            unpack_links(archive, links, folder)
    except damage_errors() as error:
        raise ValueError("%s: %s" % (path, error))


def damage_errors() -> Tuple[Type[Exception], ...]:
    """Return what a damaged ZIP makes zipfile raise."""
    import zipfile
    errors = [zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError,
              UnicodeError]
    for module, name in (("zlib", "error"), ("lzma", "LZMAError")):
        try:
            errors.append(getattr(__import__(module), name))
        except ImportError:
            pass  # then zipfile cannot even begin with such an entry
    return tuple(errors)


def check_entries(entries: Sequence[zipfile.ZipInfo]) -> None:
    """Raise ValueError for entries that leave the folder [any.package.zip]."""
    if len(entries) > ZIP_ENTRIES:
        raise ValueError("the ZIP has %d entries; at most %d are unpacked"
                         % (len(entries), ZIP_ENTRIES))
    if sum(entry.file_size for entry in entries) > ZIP_BYTES:  # no more is ever read
        raise ValueError("the ZIP unpacks to more than %d MiB" % (ZIP_BYTES // MIB))
    for entry in entries:
        name = entry.filename
        kind = stat.S_IFMT(entry.external_attr >> 16)
        if not name:
            raise ValueError("the ZIP has an entry without a name")
        if name.startswith(("/", "\\")) or ":" in name[:3] or ".." in re.split(
                r"[/\\]", name):
            raise ValueError("the ZIP's entry %r leaves the code folder" % name)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK):
            raise ValueError("the ZIP's entry %r is a device or socket" % name)


def unpack_links(archive: zipfile.ZipFile, links: Sequence[zipfile.ZipInfo],
                 folder: str) -> None:
    """Make the links of a ZIP whose files are there. Raises ValueError for one that
    leads out of the folder [any.package.zip]."""
    paths = [os.path.normpath(os.path.join(folder, entry.filename)) for entry in links]
    for path in paths:  # before the first link, so that nothing is made through one
        os.makedirs(os.path.dirname(path), exist_ok=True)
    for entry, path in zip(links, paths):
        with archive.open(entry) as source:
            target = source.read(4096)  # a longer one the system refuses
        if not target or target[:1] == b"/" or b"\0" in target:
            raise ValueError("the ZIP's link %r must have a relative path as its "
                             "target" % entry.filename)
        if os.path.lexists(path):
            raise ValueError("the ZIP has another entry in the place of its link %r "
                             "or below it" % entry.filename)
        os.symlink(os.fsdecode(target), path)
    root = os.path.realpath(folder)
    for entry, path in zip(links, paths):  # only now each is known that leads further
        if os.path.commonpath((root, os.path.realpath(path))) != root:
            raise ValueError("the ZIP's link %r leaves the code folder"
                             % entry.filename)


def check_program(words: Sequence[str], folder: str, package: str) -> None:
    """Raise StartError when the start command plainly cannot run. `package` is the ZIP
    that the folder was made of, if it was one."""
    program = words[0]
    if "/" not in program:
        import shutil
        if shutil.which(program) is None:
            raise StartError("missing", "the command %s is not found on PATH%s" % (
                program, "; give each word as an argument of its own"
                if " " in program else ""))
        return
    path = os.path.join(folder, program)
    shown = "%s in %s" % (os.path.relpath(path, folder), package) if package else path
    if not os.path.isfile(path):
        raise StartError("missing", "%s is not there. The platform starts this file; "
                         "it belongs at the top of the folder or ZIP, not in a "
                         "subfolder" % shown)
    if not os.access(path, os.X_OK):
        raise StartError("mode", "%s is not executable. Run: chmod 755 %s (ZIP tools "
                         "on Windows drop the mode)" % (
                             shown, os.path.basename(path) if package else program))
    with open(path, "rb") as file:
        first = file.read(4096)
    problem = program_problem(first)
    if problem:
        raise StartError("", "%s %s" % (shown, problem))


def program_problem(first: bytes) -> str:
    """Say why a file with these first bytes cannot run here; "" when it may."""
    line = first.partition(b"\n")[0]
    if first[:2] == b"#!":
        words = line[2:].split()
        if line.endswith(b"\r"):
            return ("has Windows line ends (CR LF), so its interpreter is not found. "
                    "Run: sed -i 's/\\r$//' on it")
        if not words or not os.path.exists(words[0].decode("utf-8", "replace")):
            return "names an interpreter that is not here: %r" % line.decode(
                "utf-8", "replace")
        return ""
    if first[:4] == b"\x7fELF":
        with open("/proc/self/exe", "rb") as file:
            own = file.read(20)
        if first[4:6] != own[4:6] or first[18:20] != own[18:20]:
            return "is a program for another processor architecture than this one"
        return ""
    if not first:
        return "is empty"
    if sys.platform == "linux":
        return ("is neither a Linux program nor a script with a first line such as "
                "#!/bin/sh")
    return ""


class Process:
    """A bootstrap and all that it forks: one session, one group, one output pipe.

    `on_exit(status)` is called once from a thread of its own, after the group is
    killed: nothing of an ended bootstrap lives on [any.process.group].
    """

    def __init__(self, words: Sequence[str], folder: str, env: Dict[str, str],
                 output: int, on_exit: Callable[[int], None],
                 cores: Optional[Iterable[int]] = None) -> None:
        try:
            self._popen = subprocess.Popen(
                words, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=output,
                stderr=output, start_new_session=True)
        except OSError as error:
            raise StartError("missing" if error.errno == errno.ENOENT else "",
                             "%s cannot be started: %s"
                             % (words[0], error.strerror or error))
        self.pid = self._popen.pid
        if cores:  # the emulator itself is pinned to one core; its children are not
            try:
                os.sched_setaffinity(self.pid, cores)
            except OSError:
                pass  # it has ended
        self._on_exit = on_exit
        self.peak_mb = 0.0      # of the leader, known after its end
        self.status = 0         # as of the subprocess module, after its end
        self.exited = threading.Event()
        self._lock = threading.Lock()
        self._reaped = False
        self._grace_ends = 0.0  # on the monotonic clock; until then forks may live
        try:
            self._thread = aside(self._watch)
        except RuntimeError as error:  # no more threads: nobody would see its end
            self.signal(signal.SIGKILL)
            self._popen.wait()
            raise StartError("", "%s cannot be started: %s" % (words[0], error))

    def _watch(self) -> None:
        try:
            self._reap()
        except ChildProcessError:  # the program that we are in ignores SIGCHLD
            self.status = self._popen.returncode = 0
            self._reaped = True
        self.exited.set()
        self._on_exit(self.status)

    def _reap(self) -> None:
        # WNOWAIT: while the leader is a zombie its group id cannot be given away
        os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        while self._grace_ends > time.monotonic() and has_others(self.pid):
            time.sleep(GROUP_TICK_S)  # what a wrapper has started ends in order, too
        self.signal(signal.SIGKILL)
        with self._lock:
            _, status, usage = os.wait4(self.pid, 0)
            self._reaped = True
        self.status = self._popen.returncode = -os.WTERMSIG(
            status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        # until it became another program it counted as a copy of this one
        if sys.platform == "linux" and usage.ru_maxrss / 1024 > peak_memory_mb("self"):
            self.peak_mb = usage.ru_maxrss / 1024

    def signal(self, number: int) -> None:
        """Signal the whole group."""
        with self._lock:
            if not self._reaped:
                try:
                    os.killpg(self.pid, number)
                except (ProcessLookupError, PermissionError):
                    pass

    def thaw(self) -> None:
        """SIGCONT, and wait until its threads have woken up and sleep again: before, a
        signal may be lost on a server that is just about to accept connections. Blocks
        THAW_S at most, if it is busy."""
        self.signal(signal.SIGCONT)
        deadline = time.monotonic() + THAW_S
        while not is_asleep(self.pid) and time.monotonic() < deadline:
            if self.exited.wait(0.001):
                return

    def has_ended(self) -> bool:
        """Tell whether the leader has ended, even if nobody has noticed yet."""
        try:
            return self.exited.is_set() or os.waitid(
                os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def terminate(self, grace_s: float) -> None:
        """SIGTERM, then SIGKILL after the grace [any.stop.order]. Blocks until the
        process has ended, about `grace_s` at most."""
        self._grace_ends = time.monotonic() + grace_s
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)
        if not self.exited.wait(grace_s):
            self.signal(signal.SIGKILL)
            self.exited.wait(5)

    def join(self) -> None:
        """Wait until on_exit has returned; at most 5 s."""
        self._thread.join(5)


def remove_container(name: str) -> None:
    """Remove a container that outlived its `docker run`; 10 s at most."""
    try:
        subprocess.run(["docker", "rm", "--force", name], stdin=subprocess.DEVNULL,
                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        pass  # docker itself is gone


def describe_status(status: int) -> str:
    """Say how a process ended: `with status 3`, `by signal 9 (Killed)`."""
    if status >= 0:
        return "with status %d" % status
    return "by signal %d (%s)" % (-status, signal.strsignal(-status)
                                  or "unknown signal")


def stat_fields(folder: str) -> List[bytes]:
    """Return what the kernel tells of a process or thread, its state first. Raises
    OSError."""
    with open(folder + "/stat", "rb") as file:
        return file.read().rpartition(b")")[2].split()


def is_dying(pid: int) -> bool:
    """Tell whether the kernel is taking a process down; False where nobody knows."""
    try:
        fields = stat_fields("/proc/%d" % pid)
        return fields[0] in (b"Z", b"X") or bool(int(fields[6]) & 4)  # PF_EXITING
    except (OSError, ValueError, IndexError):
        return False


def has_others(group: int) -> bool:
    """Tell whether a process group has more than its leader; False without /proc."""
    try:
        return any(its_group == group and number != group and not is_dying(number)
                   for number, its_group in process_groups())
    except OSError:
        return False


def peak_memory_mb(pid: Union[int, str]) -> float:
    """Return the peak resident memory of a process; 0 where the system has none."""
    try:
        with open("/proc/%s/status" % pid, "rb") as file:
            for line in file:
                if line.startswith(b"VmHWM:"):
                    return int(line.split()[1]) / 1024
    except (OSError, ValueError, IndexError):
        pass
    return 0.0


def is_asleep(pid: int) -> bool:
    """Tell whether every thread of a process waits; False without /proc."""
    folder = "/proc/%d/task/" % pid
    try:
        for name in os.listdir(folder):
            if stat_fields(folder + name)[0] not in (b"S", b"D"):
                return False
        return True
    except (OSError, IndexError):
        return False  # or a thread has ended just now


def process_groups() -> Iterator[Tuple[int, int]]:
    """Yield each process and its group. Raises OSError without /proc."""
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:  # to open a file there takes fifty times as long
            yield int(name), os.getpgid(int(name))
        except OSError:
            pass  # it has ended


def group_memory_mb(groups: Iterable[int]) -> Optional[Dict[int, float]]:
    """Return the resident memory of these process groups; None without /proc."""
    found = dict.fromkeys(groups, 0.0)
    try:
        members = [pair for pair in process_groups() if pair[1] in found]
    except OSError:
        return None
    page_mb = os.sysconf("SC_PAGE_SIZE") / MIB
    for number, group in members:
        try:
            with open("/proc/%d/statm" % number, "rb") as file:
                found[group] += int(file.read().split()[1]) * page_mb
        except (OSError, ValueError, IndexError):
            pass  # it has ended
    return found


class Log:
    """What a bootstrap prints: passed on as it comes, and the last 4 KB kept."""

    def __init__(self, loop: Loop, sink: Callable[[bytes], None]) -> None:
        self._loop = loop
        self._sink = sink
        self._lock = threading.Lock()
        self._tail = b""
        self._read_end = -1     # of the pipe, while it is open

    def open(self) -> int:
        """Return the end of a pipe for the bootstrap; the caller closes it."""
        self._read_end, write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        self._loop.watch(self._read_end, self.drain)
        return write_end

    def drain(self) -> None:
        """Take what is waiting, 1 MiB at most per call; never blocks on the pipe."""
        with self._lock:
            for _ in range(16):
                if not self._take():
                    return

    def _take(self) -> bool:
        try:
            data = os.read(self._read_end, 65536) if self._read_end >= 0 else b""
        except BlockingIOError:
            return False
        if not data:  # every process that had the other end has closed it
            self._shut()
            return False
        self._tail = (self._tail + data)[-LOG_TAIL_BYTES:]
        self._sink(data)
        return True

    def take_tail(self) -> bytes:
        """Return the last output since the previous call [any.log.tail]."""
        with self._lock:
            tail, self._tail = self._tail, b""
        return tail

    def close(self) -> None:
        """Take the rest and close, even if an escaped process holds the other end."""
        self.drain()
        with self._lock:
            self._shut()

    def _shut(self) -> None:
        end, self._read_end = self._read_end, -1
        if end >= 0:
            self._loop.unwatch(end)
            os.close(end)


# ---- invocations ----

class Turn:
    """The platform's lock, and what is put off until its release because it may block
    or call other people's code: `with turn:` takes the lock, `turn.later(...)` notes
    a call, and whoever releases the lock makes these calls, in order."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._calls: List[Tuple[Callable[..., object], Tuple[Any, ...]]] = []

    def later(self, call: Callable[..., object], *arguments: Any) -> None:
        """Call this after the release (lock held)."""
        self._calls.append((call, arguments))

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        calls = self._calls
        if calls:
            self._calls = []
        self.lock.release()
        for call, arguments in calls:
            call(*arguments)


class Invocation:
    """One event on its way; `outcome` is set exactly once, under the platform's lock.
    """

    def __init__(self, request_id: str, event: bytes,
                 http_request: Optional[HttpRequest] = None,
                 on_done: Optional[Callable[[Outcome], None]] = None,
                 caller: Optional[Connection] = None, size: int = 0) -> None:
        self.request_id = request_id
        self.event = event
        self.size = size or len(event)      # as it was announced
        self.http_request = http_request
        self.body: Body = event     # fc: what is sent, and its length as of Message
        self.length = len(event) if event or http_request is None else None
        self.answer = Answer()      # fc: where the answer goes
        self.on_done = on_done
        self.caller = caller
        self.started = 0.0          # monotonic; 0 = not issued yet
        self.deadline = math.inf    # of its wait in the queue, then of its run
        self.outcome: Optional[Outcome] = None
        self.violations: List[Violation] = []
        self.instance: Optional["Instance"] = None
        self.upstream: Optional[Stream] = None     # fc: the connection it runs on
        self.upload: Optional["Upload"] = None     # fc: its large or streamed body
        self.gate: Optional["Gate"] = None         # fc: where its thread waits
        self.framing = threading.Lock()     # for the line that begins its log
        self.framed = False                 # it is out


class Gate:
    """Lets one thread wait for another, and notice meanwhile that a caller leaves."""

    def __init__(self) -> None:
        self._read_end, self._write_end = os.pipe()
        self._lock = threading.Lock()
        self._closed = False

    def open(self) -> None:
        """Let the waiting thread go on; may be called before it waits, and again."""
        with self._lock:
            if not self._closed:
                os.write(self._write_end, b"!")

    def wait(self, caller: Optional[Connection]) -> bool:
        """Block until the gate opens (True) or the caller has gone (False)."""
        try:
            return wait_readable(self._read_end, caller)
        finally:
            with self._lock:
                self._closed = True
                os.close(self._read_end)
                os.close(self._write_end)


_HANGUP = getattr(select, "POLLRDHUP", 0)  # Linux: the peer closed, data or not


def wait_readable(file: Union[int, socket.socket],
                  caller: Optional[Connection]) -> bool:
    """Block until `file` is readable (True) or the caller has gone (False)."""
    number = file if isinstance(file, int) else file.fileno()
    poll = select.poll()
    poll.register(number, select.POLLIN)
    if caller is not None:
        poll.register(caller.stream.socket, _HANGUP or select.POLLIN)
    while True:
        if any(ready == number for ready, _ in poll.poll()):
            return True
        if caller is None or _HANGUP or caller.stream.peek() == b"":
            return False
        poll.unregister(caller.stream.socket)  # it pipelines; look again later


# ---- instances ----

# What can go wrong when a process, a thread or a server is started [any.outcome.one]
START_FAILURES = (StartError, OSError, ValueError, OverflowError, RuntimeError,
                  MemoryError)
STARTING = ("starting", "initializing")
IDLE = ("idle", "frozen")
RESULTS = {"finish": "ok", "fail": "function-error", "overflow": "response-too-large"}
NO_ANSWER = {"scf starting": "the bootstrap did not post /runtime/init/ready",
             "fg starting": "the bootstrap did not ask for an event",
             "issued": "the bootstrap did not fetch the event",
             "running": "the bootstrap fetched the event and posted no result",
             "busy": "the function did not answer"}
DURING = {"starting": "before it was ready", "initializing": "during initialisation",
          "issued": "before it fetched the event", "running": "while it had the event",
          "busy": "during the request"}


class Instance(App):
    """One bootstrap: its process, its log, its clock, and the invocations that it has.

    These are bound to it while it starts, and begin when it is ready. Whoever reads
    or changes `work`, `ending` or the session holds the platform's lock. Subclasses
    speak a protocol.
    """

    def __init__(self, platform: "Platform",
                 session: Union[PullSession, PushSession]) -> None:
        self.platform = platform
        self.function = platform.function
        self.session = session
        self.id = "c-%s" % os.urandom(6).hex()
        self.log = Log(platform.pump, platform.write_log)
        self.timer = Timer(self._on_time)
        self.process: Optional[Process] = None
        self._spawning = threading.Lock()   # whoever ends it waits for the process
        self.work: Dict[Invocation, None] = {}  # bound or begun, in this order
        self.ending = ""        # "stop" in order or "kill", whatever came first
        self.healthy = True
        self.violations: List[Violation] = []   # before the first invocation
        self.served = 0
        self.sampled_mb = 0.0   # highest seen of the whole group
        self._leader_mb = self._peak_until = 0.0

    @property
    def is_idle(self) -> bool:
        """Tell whether it could be reclaimed."""
        return self.session.state in IDLE

    def has_room(self) -> bool:
        """Tell whether it takes one more invocation (lock held)."""
        return (len(self.work) < self.function.concurrency and self.healthy
                and self.session.state != "stopping")

    def has_ended(self) -> bool:
        """Tell whether the process has ended, even if nobody has noticed yet."""
        return self.process is not None and self.process.has_ended()

    # -- start --

    def start(self) -> None:
        """Start the bootstrap; failures become outcomes. Blocks for the start."""
        try:
            self.launch()
        except START_FAILURES as error:  # whatever it was, they get their outcome
            self._start_failed(error)

    def start_aside(self) -> None:
        """Start the bootstrap from a thread of its own, if there can be one more."""
        try:
            aside(self.start)
        except RuntimeError as error:
            self._start_failed(error)

    def _start_failed(self, error: Exception) -> None:
        reason = error.reason if isinstance(error, StartError) else ""
        with self.platform.lock:
            if not self.work and not self.ending:  # of --attach, before any event
                self.platform.lock.later(self.platform.note, "start-error: %s" % error)
            self.end(list(self.work), "start-error", str(error), reason)

    def launch(self) -> None:
        """Start the bootstrap. Raises START_FAILURES."""
        raise NotImplementedError

    def _spawn(self, facts: Facts) -> None:
        """Start the process, or say what a person needs who starts it by hand. Raises
        StartError."""
        platform = self.platform
        env = platform.environment(facts)
        if platform.attach:
            platform.attach(env)
            return
        words = list(self.function.command) or [
            os.path.join(platform.folder, "bootstrap")]
        if self.function.image:
            words = self._docker_words(env, facts["port"])
        check_program(words, platform.folder, platform.package)
        with self._spawning:
            if self.ending:
                raise StartError("", "the platform stops")
            output = self.log.open()
            try:
                self.process = Process(words, platform.folder, env, output,
                                       self.on_exit, platform.cores)
            finally:
                os.close(output)
        platform.trace("process", instance=self.id, started=self.process.pid)

    def _docker_words(self, env: Dict[str, str], port: str) -> List[str]:
        """Return the command for --image [fc.container.run]. Variables go by name, so
        that no value is in an argument list."""
        names = [name for name in env if name not in INHERITED
                 or name in self.function.env]
        flags = [word for name in names for word in ("--env", name)]
        return ["docker", "run", "--rm", "--name", self.id, "--memory",
                "%dm" % self.function.memory_mb, "--publish", "%s:%s:%s" % (
                    self.platform.fc_host, port, port)] + flags + [
                        self.function.image] + list(self.function.command)

    # -- work (lock held) --

    def take(self, invocation: Invocation) -> None:
        """Take an invocation; there must be room."""
        invocation.instance = self
        invocation.deadline = math.inf
        self.work[invocation] = None
        if self.session.state not in STARTING:
            self._begin(invocation)

    def _begin(self, invocation: Invocation) -> None:
        """Start the clock of an invocation [any.limits.clock]."""
        invocation.started = time.monotonic()
        invocation.deadline = invocation.started + self.function.timeout_s
        invocation.violations += self.violations
        self.violations.clear()
        if self.served:
            self.platform.counts["reused"] += 1
        self.served += 1
        self.platform.watch_memory()
        if self.timer.deadline > invocation.deadline or len(self.work) == 1:
            self.set_deadline(invocation.deadline)

    def begin_log(self, invocation: Invocation) -> None:
        """Print the line that begins its log, before anybody gets the event: who issued
        it does so, or a poll that is quicker. None if it has an outcome already. What
        was printed between two invocations is dropped [any.log.frame]."""
        with invocation.framing:
            if invocation.framed or invocation.outcome is not None:
                return
            invocation.framed = True
            if self.served > 1 and len(self.work) == 1:
                self.log.drain()
                self.log.take_tail()
            self.platform.log_start(invocation)

    def _has_room_again(self) -> None:
        """Begin what is bound, then what waits for an instance with room."""
        if not self.served:
            for invocation in self.work:
                self._begin(invocation)
        self.platform.offer(self)
        if not self.work:
            self._wind()

    def _wind(self) -> None:
        """Set the clock: to the first limit of an invocation, or for the idle time."""
        deadline = math.inf
        if self.work:
            deadline = min([invocation.deadline for invocation in self.work])
        elif self.is_idle:
            deadline = time.monotonic() + self.function.idle_s
        self.set_deadline(deadline)

    def set_deadline(self, deadline: float) -> None:
        """Move the instance's one clock."""
        self.platform.loop.set_timer(self.timer, deadline)

    def _on_time(self) -> None:
        """The start or an invocation is over its limit, or it was idle for long."""
        now = time.monotonic()
        with self.platform.lock:
            state = self.session.state
            if now < self.timer.deadline:
                return  # it was moved meanwhile
            if self.is_idle:
                self.platform.reclaim(self)
                return
            # [fc.time.others] the others may end within their own limits
            late = [one for one in self.work
                    if state in STARTING or one.deadline <= now]
            for invocation in late:
                invocation.deadline = math.inf
            if late or state in STARTING:
                limit = (self.function.init_timeout_s if state in STARTING
                         else self.function.timeout_s)
                self.end(late, ON_TIME.get(state, "timeout"), "%s within %s s" % (
                    NO_ANSWER.get("%s %s" % (self.platform.protocol, state))
                    or NO_ANSWER.get(state, NO_ANSWER["busy"]), seconds(limit)))
            self._wind()

    def violate(self, violation: Violation) -> None:
        """Note a violation with the invocation it belongs to (lock held)."""
        found = next((one.violations for one in self.work), self.violations)
        self.platform.note_violation(violation, found)

    # -- end --

    def end(self, victims: Iterable[Invocation], kind: str = "", message: str = "",
            start_error: str = "") -> None:
        """Take no more work and settle the victims; the bootstrap is killed, at once
        or when what else runs in it has ended (lock held) [any.time.kill]."""
        self.platform.discard(self, "kill")
        if all(one in victims or one.outcome for one in self.work):
            self.platform.lock.later(self._kill)
        for invocation in victims:
            self.platform.settle(invocation, kind, message=message,
                                 start_error=start_error)
            self.cut_off(invocation)

    def retire(self) -> None:
        """Let the session take nothing more (lock held)."""
        raise NotImplementedError

    def stop(self) -> None:
        """End it in order: pre-stop, SIGTERM, grace, SIGKILL. Blocks for these."""
        with self._spawning:
            process = self.process
        self.before_stop()
        if process is not None:
            process.terminate(self.function.grace_s)
            process.join()
        else:
            self.cleanup()

    def before_stop(self) -> None:
        """Do what comes before SIGTERM. May block for its limit."""

    def _kill(self) -> None:
        if self.ending != "kill":
            return  # it is stopping in order
        with self._spawning:
            process = self.process
        if process is not None:
            process.signal(signal.SIGKILL)
        else:
            self.platform.surely(self.cleanup)

    def on_exit(self, status: int) -> None:
        """Settle what the bootstrap left undone; called from the process's thread."""
        self.hear_out()
        self.log.close()
        platform, ended = self.platform, describe_status(status)
        with platform.lock:
            state = self.session.state
            platform.trace("process", instance=self.id, ended=ended, state=state)
            if not self.work and state != "stopping":
                platform.lock.later(platform.note, "the bootstrap ended %s while it "
                                    "had no event; the next one starts another" % ended)
            self._exited(state, status)
        self.cleanup()

    def cut_off(self, invocation: Invocation) -> None:
        """Let an exchange that still goes on end (lock held)."""

    def hear_out(self) -> None:
        """Take what the bootstrap sent before its end."""

    def _exited(self, state: str, status: int) -> None:
        """The process has ended: settle what follows from that."""
        raise NotImplementedError

    def cleanup(self) -> None:
        """Free what the instance holds."""
        self.set_deadline(math.inf)
        if self.function.image and self.process is not None:
            remove_container(self.id)
        self.log.close()
        self.platform.forget(self)

    # -- memory --

    def peak_mb(self) -> float:
        """Return the bootstrap's peak resident memory, 0 if unknown; looked up ten
        times a second at most, because it costs as much as half an invocation."""
        if self.process is None:
            return 0.0
        now = time.monotonic()
        if now >= self._peak_until:
            self._peak_until = now + 0.1
            self._leader_mb = max(self._leader_mb, peak_memory_mb(self.process.pid))
        return max(self.sampled_mb, self.process.peak_mb, self._leader_mb)

    def over_memory(self) -> str:
        """Say by how much the memory limit is exceeded; "" when it is not."""
        limit = self.function.memory_mb
        seen = max(self.sampled_mb, self.process.peak_mb if self.process else 0.0)
        return "" if seen <= limit else (
            "the bootstrap took %d MB; the limit is %d MB" % (seen, limit))


class PullInstance(Instance):
    """An instance of scf or fg: a runtime API of its own on a loopback port."""

    session: PullSession

    def __init__(self, platform: "Platform") -> None:
        super().__init__(platform, PullSession(platform.protocol))
        self.listener: Optional[Listener] = None
        self._head = "%s\r\n%s%s" % (status_line(200), platform.fields, (
            "Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"))

    def launch(self) -> None:
        """Listen, then start the process: its first call finds the API ready."""
        platform, function = self.platform, self.function
        port = function.port if platform.attach else 0
        try:
            self.listener = Listener("127.0.0.1", port, self, platform.loop)
        except OSError as error:
            raise StartError("", "no runtime API on port %d: %s" % (port,
                                                                    error.strerror))
        if not platform.attach:
            self.set_deadline(time.monotonic() + function.init_timeout_s)
        self._spawn(platform.facts(instance_id=self.id, api_host="127.0.0.1",
                                   api_port=str(self.listener.port)))

    def _begin(self, invocation: Invocation) -> None:
        self.session.issue(invocation.request_id)
        super()._begin(invocation)
        self.platform.lock.later(self._deliver, invocation, self.session.take_polls())

    def _deliver(self, invocation: Invocation, polls: List[Connection]) -> None:
        """Answer polls with the event; others, while it has not reached any."""
        self.begin_log(invocation)
        while polls:
            reached = self._send_event(polls.pop(0), invocation)
            with self.platform.lock:
                polls += self.session.delivered(invocation.request_id, reached)

    def _send_event(self, poll: Connection, invocation: Invocation) -> bool:
        # [any.poll.dead] a client that has hung up must not swallow the event
        if poll.stream.peek() == b"":
            poll.closing = True
            poll.answer(b"")
            return False
        head = self._head % (invocation.request_id, len(invocation.event))
        return poll.answer(head.encode("latin-1"), invocation.event)

    def handle(self, connection: Connection, message: Message) -> None:
        """Take a call of the bootstrap."""
        method, target = message.words[:2]
        call, request_id, status = find_call(self.platform.protocol, method, target)
        size, body = -1, b""
        try:
            body = connection.read_body(self.function.result_bytes)
        except BodyTooLarge as error:
            size = error.size
            if call and call not in ("response", "error"):  # no call has such a body
                self._refuse(connection, 413, str(error))
                return
        if not call:
            seen = "%s %s" % (method, target[:80])
            self.refused(connection, Violation("any.api.unknown", seen))
            self._refuse(connection, status, "no such call: " + seen)
            return
        if call in ("response", "error"):
            self.log.drain()  # so that the log holds what was printed before
        with self.platform.lock:
            self._receive(connection, call, request_id, body, size)

    def _refuse(self, connection: Connection, status: int, message: str) -> None:
        document = {"error": message}
        if self.platform.protocol == "fg":  # [fg.api.error-document]
            document = {"error_code": "FSS.0%d" % status, "error_msg": message}
        connection.answer(*json_answer(status, document))

    def _receive(self, connection: Connection, call: str, request_id: str, body: bytes,
                 size: int) -> None:
        platform, session = self.platform, self.session
        before = session.state
        row = session.receive(call, connection, request_id, size >= 0)
        invocation = next(iter(self.work), None)
        if platform.tracing:
            platform.trace("call", instance=self.id, call=call, state=before,
                           action=row.action, next=row.state, rule=row.rule,
                           request_id=invocation.request_id if invocation else "",
                           bytes=max(size, len(body)))
        self._answer(connection, row.action, size, invocation)
        if row.action in ("ignore", "refuse") and not session.is_owed(call):
            self.violate(Violation(row.rule, "%s in state %s%s" % (
                call, before, ", id %r" % request_id if request_id else "")))
        elif row.action == "hold" and session.state == "starting":
            self.violate(Violation("scf.ready.before-next", "next before ready"))
        elif row.action in RESULTS and invocation is not None:
            del self.work[invocation]
            platform.settle(
                invocation, RESULTS[row.action], size=size,
                body=body if size < 0 else b"", message="" if row.action == "finish"
                else "the bootstrap reported an error" if row.action == "fail"
                else self._too_large(size))
        if session.state == "idle" and before != "idle":
            self._has_room_again()

    def _answer(self, connection: Connection, action: str, size: int,
                invocation: Optional[Invocation]) -> None:
        """Answer a call as soon as the lock is released, before anything else."""
        later = self.platform.lock.later
        if action == "hold":  # [scf.next.blocks] [fg.request.blocks]
            connection.defer()  # whoever has the event answers
        elif action == "refuse":
            later(self._refuse, connection, 404,
                  "no outstanding invocation has this id")
        elif action == "deliver" and invocation is not None:
            later(self._deliver, invocation, [connection])
        elif action == "overflow":
            later(self._refuse, connection, 413, self._too_large(size))
        else:
            later(connection.answer, EMPTY_ANSWER)

    def _too_large(self, size: int) -> str:
        return "the result has %d bytes; the limit is %d" % (
            size, self.function.result_bytes)

    def gone(self, connection: Connection) -> bool:
        """A poll's client has hung up: it gets no event [any.poll.dead]."""
        with self.platform.lock:
            return self.session.withdraw(connection)

    def refused(self, connection: Connection, violation: Violation) -> None:
        """Something came that is not HTTP or no call: no effect but a violation."""
        with self.platform.lock:
            self.violate(violation)

    def retire(self) -> None:
        self.session.stop()

    def hear_out(self) -> None:
        """What the bootstrap sent before its end counts [any.result.first]."""
        if self.listener is not None:
            self.listener.accept()
            self.listener.join(1.0)

    def _exited(self, state: str, status: int) -> None:
        over = self.over_memory()
        self.end(list(self.work), "out-of-memory" if over else ON_EXIT.get(
            state, "exit"), over or "the bootstrap ended %s %s" % (
                describe_status(status), DURING.get(state, "")))

    def cleanup(self) -> None:
        if self.listener is not None:
            self.listener.close()
            self.listener.shut()
            self.listener.join(2.0)
        super().cleanup()


def wants_upgrade(request: Optional[HttpRequest]) -> bool:
    """Tell whether a caller asked to go on with another protocol."""
    return request is not None and any(name.lower() == "upgrade"
                                       for name, _ in request.headers)


def is_bodiless(message: Message, method: str) -> bool:
    """Tell whether an answer has no body whatever its fields say."""
    return method == "HEAD" or message.words[1] in ("204", "304")


def try_port(port: int) -> None:
    """Raise OSError unless a server could listen on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("0.0.0.0", port))


def free_port() -> Tuple[int, socket.socket]:
    """Return a port that nobody listens on, below those that the system hands out to
    clients: until the server binds it, it must not become somebody's own port. The
    socket keeps it from other emulators (on Linux) until it is closed."""
    for _ in range(100):
        port = 10000 + int.from_bytes(os.urandom(4), "big") % 10000
        claim = socket.socket(socket.AF_UNIX)
        try:
            if sys.platform == "linux":  # an abstract name: no file, and gone with us
                claim.bind("\0custom-runtime-port-%d" % port)
            try_port(port)
            return port, claim
        except OSError:
            claim.close()
    raise StartError("port", "no free port was found")


class CallerGone(Exception):
    """Nobody waits for the answer: the caller has hung up, or has his outcome."""


class Answer:
    """Where the answer of an fc function goes: kept, for an event's outcome."""

    is_kept = True  # so the body has a limit

    def __init__(self) -> None:
        self.begun = False
        self.is_lost = False    # its caller does not take it any more
        self.status = 0
        self.fields: List[Tuple[str, str]] = []
        self.parts: List[bytes] = []

    def begin(self, status: int, fields: List[Tuple[str, str]],
              length: Optional[int]) -> None:
        """Take the head. `length`: -1 = unknown, None = there is no body."""
        self.status, self.fields = status, fields

    def write(self, data: bytes) -> None:
        """Take a part of the body."""
        self.parts.append(data)

    def end(self) -> None:
        """The answer is complete."""

    def tunnel(self, fields: List[Tuple[str, str]], upstream: Stream) -> None:
        """Pass an upgraded connection through until either side ends it."""
        raise BadMessage("fc.upgrade.pass", "101 without an HTTP caller")


class Upload:
    """Sends a request's body from a thread of its own.

    `failure` is what was wrong with the body itself: BadMessage, BodyTooLarge or
    OSError. When nobody wants the body any more it is read away. `answered` tells
    whether the function's answer is waited for when the body breaks off.
    """

    def __init__(self, stream: Stream, parts: Iterable[bytes], chunked: bool,
                 answered: bool) -> None:
        self.failure: Optional[Exception] = None
        self._unwanted = False
        self._answered = answered
        self._stream = stream
        self._thread = aside(self._run, parts, chunked)

    def _run(self, parts: Iterable[bytes], chunked: bool) -> None:
        try:
            for part in parts:
                self._send(b"%x\r\n%s\r\n" % (len(part), part) if chunked else part)
            if chunked:
                self._send(b"0\r\n\r\n")
        except (BadMessage, BodyTooLarge, OSError) as error:
            self.failure = error
            waits = self._answered and not isinstance(error, BodyTooLarge)
            # half a request must not look like a whole one; the answer tells when the
            # handler has ended [any.outcome.cancel-instance]
            self._stream.shut(socket.SHUT_WR if waits or caller_has_gone(error)
                              else socket.SHUT_RDWR)

    def _send(self, data: bytes) -> None:
        if not self._unwanted:
            try:
                self._stream.socket.sendall(data)
            except OSError:
                self._unwanted = True  # the function answers without reading it

    def is_done(self) -> bool:
        """Tell whether the whole body was sent."""
        return not (self.failure or self._unwanted or self._thread.is_alive())

    def end(self, caller: Optional[Connection]) -> None:
        """Send no more; LINGER_S for the caller to come to his end."""
        if self._thread.is_alive():
            self._unwanted = True
            self._stream.shut()
            self._thread.join(LINGER_S)
            if caller is not None and self._thread.is_alive():
                caller.closing = True
                caller.stream.shut()
            self._thread.join()


def caller_has_gone(error: Exception) -> bool:
    """Tell whether a request's body ended early because its sender went away."""
    return isinstance(error, OSError) or isinstance(error, BadMessage) and (
        error.violation.rule == "any.http.no-effect")


HOOK_NAMES = {"initialize": "Initialize", "pre-freeze": "PreFreeze",
              "pre-stop": "PreStop"}
IDEMPOTENT = ("GET", "HEAD", "OPTIONS", "TRACE")


class PushInstance(Instance):
    """An instance of fc: an HTTP server to which requests are sent."""

    session: PushSession

    def __init__(self, platform: "Platform") -> None:
        super().__init__(platform, PushSession(platform.function.concurrency))
        self.port = self.function.port
        self.pool: Optional[List[Stream]] = []  # None = nobody will use them any more
        self._streams = threading.Lock()        # for the pool, and who has a stream
        self._hook_lock = threading.Lock()
        self._claim: Optional[socket.socket] = None  # to a port of our choice
        self._asking = False    # before a freeze, or for its health: one at a time
        self._streak = 0    # of checks that contradict `healthy`
        self._health_timer = Timer(lambda: platform.surely(self._check_again))

    def _move(self, call: str) -> str:
        before = self.session.state
        action = self.session.move(call)
        if action and self.platform.tracing:
            self.platform.trace("move", instance=self.id, call=call, state=before,
                                action=action, next=self.session.state,
                                rule=STATES["fc"][before, call].rule)
        return action

    # -- start --

    def launch(self) -> None:
        """Start the server, wait for its port, run the initializer."""
        platform = self.platform
        self._choose_port()
        self._spawn(platform.facts(instance_id=self.id, port=str(self.port)))
        self._await_port()
        with platform.lock:
            if self._move("connect") != "initialize":
                return  # stopped meanwhile
        verdict = "done"
        if self.function.initializer:  # [fc.initialize.once]
            verdict = self._hook("initialize", self.function.initializer_timeout_s)
        if verdict == "done" and self.function.health_check:
            self._first_check()
        with platform.lock:
            if verdict == "done" and self._move("initialized"):
                self._has_room_again()
                self._freeze()
            elif self._move("refused"):
                kind = "init-timeout" if verdict == "timeout" else "init-error"
                self.end(list(self.work), kind, "the initializer failed: " + verdict)

    def _choose_port(self) -> None:
        """Find a free port, or raise StartError when the fixed one is taken."""
        if self.platform.attach and self.port:
            return  # the server may be there already
        if not self.port:
            self.port, self._claim = free_port()
            return
        # our own last instance may still be ending
        self.platform.await_leaving(self.function.start_timeout_s)
        try:
            try_port(self.port)
        except OSError as error:
            raise StartError("port", "port %d is taken by another program (%s). Stop "
                             "it, or use --port 0 with a server that reads "
                             "FC_SERVER_PORT" % (self.port, error.strerror))

    def _await_port(self) -> None:
        """Dial until the server accepts [fc.start.probe]. Raises StartError."""
        begin = time.monotonic()
        deadline = begin + self.function.start_timeout_s
        hinted = False
        while True:
            try:
                self._keep(self._dial(1.0))  # for the first request
                return
            except OSError:
                now = time.monotonic()
            # attached: nothing else tells when it listens
            if self._let_pass(0.05 if self.process is None else
                              0.001 if now < begin + 0.05 else 0.005):
                assert self.process is not None
                raise StartError("", self._exit_text(self.process.status, "starting"))
            if now > deadline or self.session.state == "stopping":
                raise StartError("port", self._port_problem())
            if not hinted and now > begin + 0.5:
                hinted = True
                if self._loopback_only():
                    self.platform.note(self._port_problem())

    def _let_pass(self, wait_s: float) -> bool:
        """Wait; tell, at once, when the process has ended."""
        if self.process is not None:
            return self.process.exited.wait(wait_s)
        time.sleep(wait_s)
        return False

    def _port_problem(self) -> str:
        if self._loopback_only():  # [fc.start.port]
            return ("the server listens on 127.0.0.1:%d only, where the cloud cannot "
                    "reach it. Bind 0.0.0.0" % self.port)
        return ("nothing listens on port %d within %s s; the server must listen on "
                "0.0.0.0:$FC_SERVER_PORT" % (self.port,
                                             seconds(self.function.start_timeout_s)))

    def _loopback_only(self) -> bool:
        for host, answers in (("127.0.0.1", True), (self.platform.fc_host, False)):
            try:  # in this order: it may have begun to listen just now
                socket.create_connection((host, self.port), 0.2).close()
                is_open = True
            except OSError:
                is_open = False
            if is_open is not answers:
                return False
        return True

    # -- connections --

    def _dial(self, timeout_s: float) -> Stream:
        connected = socket.create_connection((self.platform.fc_host, self.port),
                                             timeout_s)
        connected.settimeout(None)
        return Stream(connected)

    def _connect(self, timeout_s: float) -> Tuple[Stream, bool]:
        """Return a connection, and whether it was used before."""
        while True:
            with self._streams:
                stream = self.pool.pop() if self.pool else None
            if stream is None:
                return self._dial(timeout_s), False
            # bytes beyond the last answer answer nothing
            if not stream.rest and stream.peek() is None:
                return stream, True
            stream.socket.close()

    def _keep(self, stream: Stream, invocation: Optional[Invocation] = None) -> None:
        """Put a connection into the pool, unless nobody would take it out again."""
        with self._streams:
            if invocation is not None:
                invocation.upstream = None
            if self.pool is not None:
                self.pool.append(stream)
            else:
                stream.socket.close()

    def cut_off(self, invocation: Invocation) -> None:
        with self._streams:
            if invocation.upstream is not None:
                invocation.upstream.shut()

    # -- requests of the platform's own --

    def _hook(self, call: str, timeout_s: float) -> str:
        """Call a hook; return done, failed, broken or timeout."""
        request_id = self.platform.new_id()
        line = "FC %s %%s RequestId: %s%%s\n" % (HOOK_NAMES[call], request_id)
        method = "POST" if call == "initialize" else "GET"
        self.platform.note_line(line % ("Start", ""))
        status, error = self._call(method, self._head(
            method, "/" + call, request_id, "/" + call, [], 0), timeout_s)
        verdict = judge_hook(status) if status else (
            error if error == "timeout" else "failed")
        if not status and verdict == "failed" and self._has_exited():
            verdict = "broken"  # the process died in the hook
        seen = "status %d" % status if status else error
        self.log.drain()
        self.platform.note_line(line % ("End", "" if verdict == "done" else
                                        ", Error: %s, %s" % (verdict, seen)))
        self.platform.trace("hook", instance=self.id, call=call, verdict=verdict,
                            seen=seen)
        return verdict

    def _call(self, method: str, head: bytes, timeout_s: float) -> Tuple[int, str]:
        """Send a request of the platform's own; return (status, "") or (0, what went
        wrong), the latter "timeout" after the limit."""
        deadline = time.monotonic() + timeout_s
        timer = Timer(lambda: stream.shut())
        try:
            stream, _ = self._connect(timeout_s)
        except OSError as error:
            return 0, "timeout" if time.monotonic() >= deadline else str(error)
        self.platform.loop.set_timer(timer, deadline)
        try:
            stream.send(head)
            message = self._answer_head(stream)
            for _ in stream.chunks(0 if is_bodiless(message, method)
                                   else message.length):
                pass
            is_reusable = message.keep_alive and message.length is not None
            status, error_text = int(message.words[1]), ""
        except (OSError, BadMessage, BodyTooLarge) as error:
            is_reusable, status = False, 0
            error_text = "timeout" if time.monotonic() >= deadline else str(error)
        self.platform.loop.set_timer(timer, math.inf)
        if is_reusable:
            self._keep(stream)
        else:
            stream.socket.close()
        return status, error_text

    def _check_health(self) -> str:
        """Ask for the health check's path; "" when it is healthy [fc.health.check]."""
        check = self.function.health_check
        next_one = time.monotonic() + check["period_s"]  # [any.limits.clock]
        status, error = self._call("GET", format_head(
            "GET %s HTTP/1.1" % check["path"],
            [("Host", "%s:%d" % (self.platform.fc_host, self.port))]),
            check["timeout_s"])
        self.platform.loop.set_timer(self._health_timer, next_one)
        if 200 <= status < 400:
            return ""
        return "failed with status code: %d " % status if status else (
            "failed: %s" % error)

    def _first_check(self) -> None:
        """Raise StartError unless the first health check succeeds [fc.health.first].
        """
        self._let_pass(self.function.health_check["initial_delay_s"])
        problem = self._check_health()
        if problem:
            raise StartError("port", "The function http server cannot be started, "
                             "check function health " + problem)

    def _check_again(self) -> None:
        """Check once more, unless it is frozen or about to be [fc.health.check]; it
        is not frozen meanwhile."""
        with self.platform.lock:
            if self.session.state == "stopping":
                return
            if self.session.state == "frozen" or self._asking:
                self.platform.loop.set_timer(
                    self._health_timer,
                    time.monotonic() + self.function.health_check["period_s"])
                return
            self._asking = True
        healthy = not self._check_health()
        with self.platform.lock:
            self._asking = False
            self._count_check(healthy)
            self._freeze()

    def _count_check(self, healthy: bool) -> None:
        """Enough failures or successes in a row change the verdict (lock held)
        [fc.health.thresholds]."""
        self._streak = self._streak + 1 if healthy != self.healthy else 0
        if self._streak >= self.function.health_check[
                "success_threshold" if healthy else "failure_threshold"]:
            self._streak, self.healthy = 0, healthy
            self.platform.lock.later(self.platform.note, "the instance is %s" % (
                "healthy" if healthy else "unhealthy"))
            self._has_room_again()

    # -- invocations --

    def _begin(self, invocation: Invocation) -> None:
        if self._move("invoke") == "thaw" and self.process is not None:
            self.process.signal(signal.SIGCONT)  # [fc.freeze.thaw]
        super()._begin(invocation)
        if invocation.gate is not None:
            self.platform.lock.later(invocation.gate.open)

    def exchange(self, invocation: Invocation) -> None:
        """Send the request and pass the answer on; then the invocation is settled.
        Blocks until then, the function's time limit at most."""
        self.begin_log(invocation)
        broke = False
        try:
            kind, message = self._ask(invocation)
        except CallerGone:
            kind, message = "cancelled", "the caller has gone"
        except BodyTooLarge as error:
            kind, message = "response-too-large", "the answer: %s" % error
        except BadMessage as error:
            kind, message = "bad-response", str(error)
            broke = error.violation.rule == "any.http.no-effect"
            with self.platform.lock:
                if invocation.outcome is None:  # else we may have cut it off
                    self.platform.note_violation(error.violation,
                                                 invocation.violations)
        except OSError as error:  # [fc.outcome.bad-response], unless it has ended
            broke, kind = True, "bad-response"
            message = "the connection broke: %s" % (error.strerror or error)
        except RuntimeError as error:  # no more threads
            kind, message = "throttled", str(error)
        if broke and invocation.outcome is None and self._has_exited():
            over = self.over_memory()
            kind = "out-of-memory" if over else "exit"
            assert self.process is not None
            message = over or "the bootstrap ended %s during the request" % (
                describe_status(self.process.status))
        failure = None if invocation.upload is None else invocation.upload.failure
        if isinstance(failure, BodyTooLarge):
            kind, message = "request-too-large", "the request: %s" % failure
        elif failure is not None:  # [any.http.no-effect] not the function's fault
            kind, message = "cancelled", "the caller broke off: %s" % failure
        self._conclude(invocation, kind, message)

    def _has_exited(self) -> bool:
        # the kernel closes a dying process's sockets a moment before it is a zombie; on
        # a busy machine a long one
        process = self.process
        return process is not None and (process.exited.wait(0.2) or (
            is_dying(process.pid) and process.exited.wait(DYING_S)))

    def _conclude(self, invocation: Invocation, kind: str, message: str) -> None:
        if invocation.upload is not None:
            invocation.upload.end(invocation.caller)
        if invocation.upstream is not None:
            invocation.upstream.socket.close()
        self.log.drain()
        platform = self.platform
        with platform.lock:
            platform.settle(invocation, kind, body=b"".join(invocation.answer.parts),
                            message=message)
            del self.work[invocation]
            self._move("settled")
            if kind == "cancelled" and self._is_replaced() and not self.ending:
                platform.reclaim(self)
            elif self.ending == "kill" and not self.work:
                platform.lock.later(self._kill)  # [fc.time.others]
            self._has_room_again()
            self._freeze()

    def _request(self, invocation: Invocation) -> Tuple[str, bytes]:
        """Return (method, head) of the request to the function's server."""
        http_request = invocation.http_request
        if http_request is None:  # [fc.invoke.event]
            return "POST", self._head(
                "POST", "/invoke", invocation.request_id, "/invoke",
                [("Content-Type", "application/octet-stream")], invocation.length)
        fields = pass_fields(http_request.headers, DROPPED_REQUEST)
        if wants_upgrade(http_request):
            fields.append(("Connection", "Upgrade"))
        return http_request.method, self._head(
            http_request.method, http_request.target, invocation.request_id,
            "/http-invoke", fields, invocation.length)

    def _head(self, method: str, target: str, request_id: str, control: str,
              fields: List[Tuple[str, str]], length: Optional[int]) -> bytes:
        own = self.platform.fields % (request_id, control, target.partition("?")[0])
        framing = "Transfer-Encoding: chunked\r\n" if length == -1 else (
            "Content-Length: %d\r\n" % length if length is not None else "")
        if not any(name.lower() == "host" for name, _ in fields):
            fields = [("Host", "%s:%d" % (self.platform.fc_host, self.port))] + fields
        head = format_head("%s %s HTTP/1.1" % (method, target), fields)[:-2]
        return head + (own + framing + "\r\n").encode("latin-1")

    def _ask(self, invocation: Invocation) -> Tuple[str, str]:
        """Return (kind, message) of the exchange. Raises OSError, BadMessage,
        BodyTooLarge, CallerGone."""
        method, head = self._request(invocation)
        stream, reused = self._connect(self.function.timeout_s)
        try:
            message = self._send(invocation, stream, head)
        except ConnectionError:
            # [fc.connection.retry] broken before a byte of the answer came
            if invocation.outcome is not None or not (
                    reused and method in IDEMPOTENT and not invocation.length):
                raise
            stream.socket.close()
            stream = self._dial(self.function.timeout_s)
            message = self._send(invocation, stream, head)
        kind, text = self._pass(invocation, stream, message, method)
        if self.platform.tracing:
            self.platform.trace("answer", instance=self.id, method=method,
                                request_id=invocation.request_id, kind=kind,
                                status=message.words[1], rule="fc.invoke.answer",
                                fc_status=message.get("x-fc-status"))
        delimited = message.length is not None or is_bodiless(message, method)
        if message.keep_alive and delimited and message.words[1] != "101" and (
                invocation.upload is None or invocation.upload.is_done()):
            stream.before_read = None
            self._keep(stream, invocation)
        return kind, text

    def _send(self, invocation: Invocation, stream: Stream, head: bytes) -> Message:
        """Send a request; return the head of the answer. A body that may not fit into
        the socket goes from a thread, so that a server may answer while it reads."""
        with self._streams:
            invocation.upstream = stream
        if invocation.outcome is not None:  # else whoever settles it cuts it off
            raise CallerGone

        def watch() -> None:
            if invocation.outcome is None and (invocation.answer.is_lost or not (
                    wait_readable(stream.socket, invocation.caller))):
                self._leave(invocation)

        body, length = invocation.body, invocation.length
        if not length:
            stream.send(head)
        elif isinstance(body, bytes) and len(body) <= 65536:
            stream.send(head, body)
        else:
            stream.socket.sendall(head)
            parts = [body] if isinstance(body, bytes) else body
            invocation.upload = Upload(stream, parts, length == -1,
                                       not self._is_replaced())
        watch()
        message = self._answer_head(stream)
        stream.before_read = watch
        return message

    def _leave(self, invocation: Invocation) -> None:
        """Its caller has gone. The handler runs on, and its place is taken until the
        answer has been read away [any.outcome.cancel-instance]; raises CallerGone when
        the instance is replaced instead."""
        if self._is_replaced():
            raise CallerGone
        invocation.answer.is_lost = True
        self.log.drain()
        with self.platform.lock:
            self.platform.settle(invocation, "cancelled", message="the caller has gone")

    def _is_replaced(self) -> bool:
        """Tell whether it is replaced when a caller leaves [fc.caller.replace]."""
        return self.function.concurrency == 1 and not self.function.health_check

    def _answer_head(self, stream: Stream) -> Message:
        """Read the head of an answer, past interim ones. Raises ConnectionError when
        there is none."""
        while True:
            try:
                message = stream.head()
            except BadMessage as error:
                if error.status == 431:  # [fc.limits.response]
                    raise BodyTooLarge(HEAD_BYTES, self.function.response_header_bytes)
                raise
            if message is None:
                raise ConnectionError(errno.ECONNRESET,
                                      "it was closed without an answer")
            version, status, _ = message.words
            if not version.startswith("HTTP/1.") or not re.fullmatch(r"[1-9]\d\d",
                                                                     status):
                raise BadMessage("any.http.malformed", repr(" ".join(
                    message.words)[:80]))
            if status[0] != "1" or status == "101":
                return message

    def _pass(self, invocation: Invocation, stream: Stream, message: Message,
              method: str) -> Tuple[str, str]:
        """Pass an answer on; return (kind, message)."""
        answer, is_http = invocation.answer, invocation.http_request is not None
        if invocation.upload is not None and invocation.upload.failure is not None:
            answer.is_lost = True  # to half a request
        status = int(message.words[1])
        size = fields_size(message.fields)
        if size > self.function.response_header_bytes:  # [fc.limits.response]
            return "response-too-large", (
                "the answer's header fields have %d bytes; the limit is %d"
                % (size, self.function.response_header_bytes))
        kind = judge_answer(is_http, status, message.get("x-fc-status"))
        fields = pass_fields(message.fields, DROPPED_RESPONSE)
        if status == 101:  # [fc.upgrade.pass]
            if not wants_upgrade(invocation.http_request):
                raise BadMessage("fc.upgrade.pass", "status 101 for a request that did "
                                 "not ask to upgrade")
            answer.tunnel(fields, stream)
            return "ok", ""
        # [fc.headers.reserved-response] an offer to upgrade is not for the caller
        fields = [pair for pair in fields if pair[0].lower() != "upgrade"]
        if is_bodiless(message, method):
            answer.begin(status, fields, None)
        else:
            answer.begin(status, fields, -1 if message.length is None
                         else message.length)
            limit = self.function.result_bytes if answer.is_kept else sys.maxsize
            for part in stream.chunks(message.length, limit):
                answer.write(part)
        if invocation.outcome is None:  # else it was cut off, or nobody wants it
            answer.end()
        if answer.is_lost:
            return "cancelled", "the caller has gone"
        return kind, "" if kind == "ok" else "the function answered with a failure"

    # -- freeze and end --

    def _freeze(self) -> None:
        """Freeze it when nothing runs, after the hook [fc.freeze.idle]. An unhealthy
        one goes on: frozen, it could not get well again. What asks it something now
        comes here again with the answer."""
        if self.session.state == "idle" and self.function.freeze and self.healthy and (
                not self._asking):
            if self.function.pre_freeze:
                self._asking = True
                self.platform.lock.later(self.platform.surely, self._freeze_after_hook)
            else:
                self._stand_still()

    def _freeze_after_hook(self) -> None:
        with self._hook_lock:
            verdict = "busy" if self.session.state != "idle" else (
                "ended" if self.has_ended() else
                self._hook("pre-freeze", self.function.pre_freeze_timeout_s))
            with self.platform.lock:
                self._asking = False
                if verdict == "broken":  # [fc.hook.broken]
                    self.end([])
                elif verdict == "busy":
                    self._freeze()
                elif verdict != "ended":
                    self._stand_still()

    def _stand_still(self) -> None:
        if self._move("quiet") and self.process is not None:
            self.process.signal(signal.SIGSTOP)

    def retire(self) -> None:
        self._move("stop")

    def before_stop(self) -> None:
        """Thaw, and call the pre-stop hook [fc.stop.order]."""
        if self.process is not None and self.function.freeze:
            self.process.thaw()
        if self.function.pre_stop and self.served and not self.has_ended():
            with self._hook_lock:
                self._hook("pre-stop", self.function.pre_stop_timeout_s)

    def _exited(self, state: str, status: int) -> None:
        """Requests in flight notice the end by their connections."""
        bound = list(self.work) if state in STARTING else []
        kind = "start-error" if state == "starting" else "init-error"
        self.end(bound, kind, self._exit_text(status, state) if bound else "")
        for invocation in self.work:
            self.cut_off(invocation)

    def _exit_text(self, status: int, state: str) -> str:
        words = self.function.command or ["/code/bootstrap"]
        code = status if status >= 0 else 128 - status
        text = os.strerror(code)
        known = "" if text.startswith("Unknown") else ", message:" + text.lower()
        return ("Function instance exited unexpectedly(code %d%s) with start command "
                "'%s '. It ended %s %s" % (code, known, " ".join(words),
                                           describe_status(status), DURING[state]))

    def cleanup(self) -> None:
        self.platform.loop.set_timer(self._health_timer, math.inf)
        with self._streams:
            pool, self.pool = self.pool or [], None
        for stream in pool:
            stream.socket.close()
        if self._claim is not None:
            self._claim.close()
        super().cleanup()


# ---- the platform ----

def fill_in(table: Iterable[Field], facts: Facts) -> List[Tuple[str, str]]:
    """Return names and values; without the optional ones that have no value."""
    filled = [(field, field.value.format_map(facts)) for field in table]
    return [(field.name, value) for field, value in filled
            if value or not field.optional]


def fields_template(protocol: str, facts: Facts) -> str:
    """Write the fields that accompany an event, with %s where they differ."""
    mark = os.urandom(16).hex()  # no setting holds it
    marked = Facts(facts, request_id=mark, control_path=mark, base_path=mark)
    text = format_head("", fill_in(HEADERS[protocol], marked))[2:-2].decode("latin-1")
    return text.replace("%", "%%").replace(mark, "%s")


class Platform:
    """Starts, reuses and stops instances of one function, and invokes it.

    `code` is a folder or a ZIP. Settings are those of Function. `on_log` receives what
    the function prints and the platform's log lines, as bytes; `on_note` what the
    platform itself has to say; `on_trace` one dict per message and state change. The
    first and the last are called while locks are held: they must not call the platform,
    nor wait for it.
    Raises ValueError for a bad setting or package. Use it with `with`, or close() it.
    """

    def __init__(self, protocol: str, code: str = ".", *,
                 on_log: Optional[Callable[[bytes], None]] = None,
                 on_note: Optional[Callable[[str], None]] = None,
                 on_trace: Optional[Callable[[Dict[str, object]], None]] = None,
                 attach: Optional[Callable[[Dict[str, str]], None]] = None,
                 cores: Optional[Iterable[int]] = None, **settings: Any) -> None:
        self.protocol = LONG_NAMES.get(protocol, protocol)
        self.function = Function(self.protocol, **settings)
        if attach and self.function.port:  # one runtime API, or server, on it
            self.function.max_instances = min(1, self.function.max_instances)
        self.folder, self._remove_package = open_package(code)
        self.package = "" if os.path.isdir(code) else code
        self._on_log = on_log
        self._log_lock = threading.Lock()
        self._mid_line = False
        self.attach = attach
        self.cores = cores
        self._on_note = on_note
        self._on_trace = on_trace
        self.tracing = on_trace is not None     # asked where a trace would be costly
        self._begun = time.monotonic()
        self._facts = self.function.facts(self.folder)
        self.fields = fields_template(self.protocol, self._facts)
        self.fc_host = reachable_host()
        self.lock = Turn()
        self.loop, self.pump = self._make_loops()
        self.instances: List[Instance] = []
        self.roomy: List[Instance] = []     # those with room; last used, last
        self.queue: "collections.deque[Invocation]" = collections.deque()
        self.violations: List[Violation] = []
        self.counts: Dict[str, int] = dict.fromkeys(
            ("accepted", "cold_starts", "reused") + KINDS, 0)
        self._queue_timer = Timer(self._on_queue_time)
        self._memory_timer = Timer(self._on_memory_time)
        self._leaving: Dict[Instance, None] = {}
        self._left = threading.Condition(self.lock.lock)
        self.pending = 0    # invocations without an outcome
        self._closing = self._closed = False
        self._owner = os.getpid()
        atexit.register(self.close)  # if it is forgotten

    def _make_loops(self) -> Tuple[Loop, Loop]:
        try:
            return Loop("deadlines"), Loop("output")
        except OSError:  # no files are left
            self._remove_package()
            raise

    def __enter__(self) -> "Platform":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- for callers --

    def invoke(self, event: bytes, *, http: Optional[HttpRequest] = None) -> Outcome:
        """Invoke the function and return what became of it. Blocks until then: start,
        queue and time limits bound it. `http` makes it a call of an HTTP function.
        Raises ValueError for an HTTP request that cannot be written, TypeError for an
        event that is no bytes."""
        if not isinstance(event, bytes):
            raise TypeError("event must be bytes, not %s" % type(event).__name__)
        if http is not None:
            check_request(http)
        invocation = Invocation(self.new_id(), event, http)
        if self.protocol == "fc":
            return self.run(invocation)
        done = threading.Lock()
        done.acquire()
        invocation.on_done = lambda outcome: done.release()
        self.submit(invocation)
        done.acquire()
        assert invocation.outcome is not None
        return invocation.outcome

    def prepare(self) -> None:
        """Start an instance, if there is none, before there is an event: `attach` is
        told what it needs. Failures are notes; never blocks."""
        with self.lock:
            if not self.instances and self.function.max_instances:
                self._start_another()

    def submit(self, invocation: Invocation) -> None:
        """Issue or queue an invocation, in the order of the calls; never blocks for
        long. Its `on_done` is called once; for fc carry() must follow."""
        with self.lock:
            if self._accept(invocation):
                self._place(invocation)
            if self.protocol == "fc" and not (invocation.started or invocation.outcome):
                try:
                    invocation.gate = Gate()
                except OSError as error:  # no file is left to wait with
                    self._withdraw(invocation)
                    self.settle(invocation, "throttled", message=str(error))

    def run(self, invocation: Invocation) -> Outcome:
        """Run an invocation of fc in this thread."""
        self.submit(invocation)
        return self.carry(invocation)

    def carry(self, invocation: Invocation) -> Outcome:
        """Wait for the instance, send the request, return the outcome."""
        if invocation.gate is not None and not invocation.gate.wait(invocation.caller):
            self.cancel(invocation)
        if invocation.outcome is None and isinstance(invocation.instance, PushInstance):
            invocation.instance.exchange(invocation)
        assert invocation.outcome is not None
        return invocation.outcome

    def cancel(self, invocation: Invocation) -> bool:
        """The caller has gone; False if there is an outcome already."""
        with self.lock:
            if not self._withdraw(invocation) and self.protocol == "fc":
                return False  # just begun: its exchange will notice
            return self.settle(invocation, "cancelled", message="the caller has gone")

    def _withdraw(self, invocation: Invocation) -> bool:
        """Take back what has not begun (lock held); tell whether it had not."""
        instance = invocation.instance
        if invocation in self.queue:
            self.queue.remove(invocation)
        elif instance is not None and not invocation.started:
            del instance.work[invocation]
            self.offer(instance)
        else:
            return False
        return True

    def drain(self, timeout_s: float = math.inf) -> bool:
        """Accept nothing new and wait until every invocation has its outcome; return
        whether all have."""
        with self.lock:
            self._closing = True
            return self._left.wait_for(lambda: not self.pending, min(
                timeout_s, threading.TIMEOUT_MAX))

    def close(self) -> None:
        """Stop everything: what still runs is cancelled, every process ends. Blocks
        for the pre-stop hook and the grace at most. In a process that was forked from
        the platform's it does nothing: the instances are not that one's."""
        if os.getpid() != self._owner:
            return
        with self.lock:
            if self._closed:
                return
            self._closing = self._closed = True
            atexit.unregister(self.close)
            pending = list(self.queue)
            self.queue.clear()
            instances = list(self.instances)
            for instance in instances:
                self.discard(instance, "stop")
            reason = "the platform was stopped"
            for invocation in pending:
                self.settle(invocation, "cancelled", message=reason)
            for instance in list(self._leaving):
                instance.end(list(instance.work), "cancelled", reason)
        try:
            self._stop(instances)
        except BaseException:  # Ctrl-C: whoever it was has no patience
            for instance in instances:
                if instance.process is not None:
                    instance.process.signal(signal.SIGKILL)
            raise
        finally:
            self.loop.close()
            self.pump.close()
            self._remove_package()

    def _stop(self, instances: List[Instance]) -> None:
        threads = []
        for instance in instances:
            try:
                threads.append(aside(instance.stop))
            except RuntimeError:  # no more threads: one after the other
                instance.stop()
        for thread in threads:
            thread.join()
        function = self.function  # one that was idle may have begun to stop just now
        self.await_leaving(function.pre_freeze_timeout_s + function.pre_stop_timeout_s
                           + function.grace_s + 10)

    def state(self) -> Dict[str, object]:
        """Return what GET /-/state shows."""
        with self.lock:
            return {
                "protocol": self.protocol,
                "function": self.function.name,
                "instances": [{
                    "id": instance.id, "served": instance.served,
                    "state": instance.session.state,
                    "pid": instance.process.pid if instance.process else None,
                } for instance in self.instances],
                "queued": len(self.queue),
                "counts": dict(self.counts),
                "violations": len(self.violations),
            }

    def new_id(self) -> str:
        """Return a request id in the vendor's form [any.id.form]."""
        text = os.urandom(16).hex()
        if self.protocol == "fc":  # [fc.id.form]
            return "1-%08x-%s-%s" % (int(time.time()), text[:8], text[8:20])
        return "%s-%s-4%s-a%s-%s" % (text[:8], text[8:12], text[13:16], text[17:20],
                                     text[20:])  # a UUID of version 4

    # -- placing invocations (lock held) --

    def _accept(self, invocation: Invocation) -> bool:
        """Count an invocation in, or settle it."""
        function = self.function
        self.counts["accepted"] += 1
        self.pending += 1
        size = invocation.size
        if self._closing:
            self.settle(invocation, "cancelled", message="the platform stops")
        elif size > function.event_bytes:  # [any.event.size]
            self.settle(invocation, "request-too-large", size=size, message=(
                "the event has %d bytes; the limit is %d"
                % (size, function.event_bytes)))
        elif invocation.http_request is not None:
            problem = http_problem(invocation.http_request, function)
            if problem:
                self.settle(invocation, "request-too-large", message=problem)
        return invocation.outcome is None

    def _place(self, invocation: Invocation) -> None:
        """Give an invocation to an instance, queue it, or settle it."""
        while self.roomy:
            instance = self.roomy.pop()  # the one used last
            if not instance.work and instance.has_ended():
                self.discard(instance, "kill")  # [any.instance.replace]
            elif instance.has_room():
                instance.take(invocation)
                if instance.has_room():
                    self.roomy.append(instance)
                return
        function = self.function
        if len(self.instances) < function.max_instances:
            instance = self._add_instance()
            instance.take(invocation)
            self.offer(instance)
            if self.protocol == "fc":
                self.lock.later(instance.start_aside)
            else:  # nothing to wait for but the start of a process
                self.lock.later(instance.start)
        elif not function.max_instances:  # [any.queue.limit]
            self.settle(invocation, "throttled", message="the function is disabled: "
                        "max_instances is 0")
        elif len(self.queue) >= function.queue:  # [any.queue.limit]
            self.settle(invocation, "throttled", message="%d instances are busy and %d "
                        "events wait" % (len(self.instances), len(self.queue)))
        else:
            invocation.deadline = time.monotonic() + function.queue_timeout_s
            self.queue.append(invocation)
            if len(self.queue) == 1:
                self.loop.set_timer(self._queue_timer, invocation.deadline)

    def _add_instance(self) -> Instance:
        instance = (PushInstance if self.protocol == "fc" else PullInstance)(self)
        self.instances.append(instance)
        self.counts["cold_starts"] += 1
        return instance

    def offer(self, instance: Instance) -> None:
        """Give an instance what waits [any.queue.order]; list it if it has room left.
        """
        while self.queue and instance.has_room():
            instance.take(self.queue.popleft())
        if instance.has_room() and instance not in self.roomy:
            self.roomy.append(instance)

    def discard(self, instance: Instance, ending: str) -> None:
        """Let an instance take no more work and end it so; others take what waits."""
        instance.ending = instance.ending or ending
        if instance in self.instances:
            self.instances.remove(instance)
            self._leaving[instance] = None
        if instance in self.roomy:
            self.roomy.remove(instance)
        instance.retire()
        while self.queue and len(self.instances) < self.function.max_instances:
            self._start_another()

    def _start_another(self) -> None:
        """Start an instance for what waits, if anything does."""
        instance = self._add_instance()
        self.offer(instance)
        self.lock.later(instance.start_aside)

    def reclaim(self, instance: Instance) -> None:
        """Stop an instance in order [any.instance.idle]."""
        self.discard(instance, "stop")
        self.lock.later(self.surely, instance.stop)

    def settle(self, invocation: Invocation, kind: str, *, body: bytes = b"",
               message: str = "", size: int = 0, start_error: str = "") -> bool:
        """Give an invocation its one outcome [any.outcome.one]; False if it had one."""
        if invocation.outcome is not None:
            return False
        instance = invocation.instance
        duration = time.monotonic() - invocation.started if invocation.started else 0.0
        tail = instance.log.take_tail() if instance is not None else b""
        status, headers, shown = self._shown(invocation, kind, body, message, size,
                                             start_error, duration)
        if invocation.http_request is not None and kind in ("ok", "function-error"):
            answer = invocation.answer
            status, headers = answer.status, headers + tuple(answer.fields)
        invocation.outcome = Outcome(
            kind, shown, invocation.request_id, duration * 1000,
            tuple(invocation.violations), message, status, headers, tail)
        self.counts[kind] += 1
        self.pending -= 1
        if self._closing and not self.pending:
            self._left.notify_all()
        if self.tracing:
            self.trace("outcome", request_id=invocation.request_id, kind=kind,
                       message=message, duration_ms=round(duration * 1000, 3))
        self.lock.later(self._tell, invocation, invocation.outcome)
        return True

    def _tell(self, invocation: Invocation, outcome: Outcome) -> None:
        """Pass an outcome on (lock not held)."""
        self.log_end(invocation)
        if invocation.on_done is not None:
            invocation.on_done(outcome)
        if invocation.gate is not None:
            invocation.gate.open()

    def _shown(self, invocation: Invocation, kind: str, body: bytes, message: str,
               size: int, start_error: str,
               duration: float) -> Tuple[int, Pairs, bytes]:
        """Return what the vendor's caller sees (status, headers, body)."""
        function, instance = self.function, invocation.instance
        if kind == "ok":  # nearly always: no document to fill in
            return caller_answer(self.protocol, kind, body,
                                 Facts(request_id=invocation.request_id), False)
        facts = Facts(
            request_id=invocation.request_id, timeout=seconds(function.timeout_s),
            init_timeout=seconds(function.initializer_timeout_s
                                 or function.init_timeout_s),
            size=str(size), duration="%d" % (duration * 1000), message=message,
            limit=str(function.event_bytes if kind == "request-too-large"
                      else function.result_bytes),
            start_error=START_ERRORS[self.protocol][start_error], peak_mb="0.00")
        if instance is not None and kind in ("timeout", "exit", "out-of-memory"):
            facts["peak_mb"] = "%.2f" % instance.peak_mb()
        return caller_answer(self.protocol, kind, body, facts,
                             invocation.http_request is not None)

    # -- called without the lock --

    def surely(self, call: Callable[[], object]) -> None:
        """Call it in a thread of its own, as soon as there can be one more."""
        try:
            aside(call)
        except RuntimeError:
            self.loop.set_timer(Timer(lambda: self.surely(call)),
                                time.monotonic() + THREAD_PAUSE_S)

    def forget(self, instance: Instance) -> None:
        """The instance has ended and holds nothing any more."""
        with self.lock:
            self._leaving.pop(instance, None)
            self._left.notify_all()

    def await_leaving(self, timeout_s: float) -> None:
        """Block until every instance that was discarded has ended."""
        with self.lock:
            self._left.wait_for(lambda: not self._leaving, timeout_s)

    def _on_queue_time(self) -> None:
        now = time.monotonic()
        with self.lock:
            while self.queue and self.queue[0].deadline <= now:
                self.settle(self.queue.popleft(), "throttled", message="no instance "
                            "became free within %s s" % seconds(
                                self.function.queue_timeout_s))
            if self.queue:
                self.loop.set_timer(self._queue_timer, self.queue[0].deadline)

    def watch_memory(self) -> None:
        """Look at the memory soon; called whenever something begins to run."""
        if self._memory_timer.deadline == math.inf and not self.attach:
            self.loop.set_timer(self._memory_timer, time.monotonic() + MEMORY_TICK_S)

    def _on_memory_time(self) -> None:
        """Sample the groups; end those over the limit [any.memory.limit]."""
        with self.lock:
            watched = self.instances + [one for one in self._leaving if one.work]
        sampled = group_memory_mb([one.process.pid for one in watched if one.process])
        with self.lock:
            self._memory_timer.deadline = math.inf
            if sampled is None:
                return
            for instance in watched:
                process = instance.process
                sample = sampled.get(process.pid, 0.0) if process else 0.0
                instance.sampled_mb = max(instance.sampled_mb, sample)
                over = instance.over_memory()
                if over and not self.function.image:
                    instance.end(list(instance.work), "out-of-memory", over)
            if any(not instance.is_idle for instance in watched):
                self.watch_memory()

    def facts(self, **more: str) -> Facts:
        """Return the values for the templates of the tables."""
        return Facts(self._facts, **more)

    def environment(self, facts: Facts) -> Dict[str, str]:
        """Return the bootstrap's whole environment [any.env.inherited]."""
        env = {name: os.environ.get(name, value) for name, value in INHERITED.items()}
        env.update(fill_in(ENVIRONMENT[self.protocol], facts))
        env.update(self.function.env)
        return env

    # -- what people read --

    def note(self, text: str) -> None:
        """Say something to the person at the terminal."""
        if self._on_note is not None:
            attempt(self._on_note, text)

    def note_violation(self, violation: Violation, found: List[Violation]) -> None:
        """Report a violation; keep it with all the others, and in `found` with those of
        its invocation. A bootstrap can send any number, of any size (lock held)."""
        rule, seen = violation
        if len(seen) > SEEN_CHARACTERS:
            seen = seen[:SEEN_CHARACTERS] + "\u2026"
        for kept, most in ((self.violations, VIOLATIONS), (found, OWN_VIOLATIONS)):
            if len(kept) < most:
                kept.append(Violation(rule, seen))
        self.trace("violation", rule=rule, seen=seen)
        self.lock.later(self.note, "the bootstrap broke %s: %s" % (rule, seen))

    def write_log(self, data: bytes) -> None:
        """Pass on what the function or the platform prints."""
        if self._on_log is not None:
            with self._log_lock:
                self._mid_line = not data.endswith(b"\n")
                attempt(self._on_log, data)

    def note_line(self, line: str) -> None:
        """Print a platform line into the log, on a line of its own."""
        self.write_log((b"\n" if self._mid_line else b"")
                       + line.encode("utf-8", "backslashreplace"))

    def log_start(self, invocation: Invocation) -> None:
        """Print the vendor's line for the start of an invocation."""
        if self._on_log is not None:
            self.note_line(LOG_LINES[self.protocol][0].format(
                request_id=invocation.request_id, utc=utc_now(),
                version=self.function.version))

    def log_end(self, invocation: Invocation) -> None:
        """Print the vendor's line for the end of an invocation whose log was begun."""
        outcome = invocation.outcome
        with invocation.framing:  # its first line may be on the way
            is_begun = invocation.framed
        if outcome is None or self._on_log is None or not is_begun:
            return
        peak = invocation.instance.peak_mb() if invocation.instance else 0.0
        self.note_line(LOG_LINES[self.protocol][1].format(
            request_id=invocation.request_id, utc=utc_now(),
            duration=round(outcome.duration_ms), exact="%.3f" % outcome.duration_ms,
            billed=math.ceil(outcome.duration_ms), peak_mb="%.3f" % peak,
            memory_mb=self.function.memory_mb,
            error="" if outcome.kind == "ok" else ", Error: " + outcome.message))

    def trace(self, what: str, **facts: object) -> None:
        """Report a message or a change of state."""
        if self._on_trace is not None:
            passed = time.monotonic() - self._begun
            attempt(self._on_trace, dict(
                {"ms": round(passed * 1000, 3), "what": what}, **facts))


def utc_now() -> str:
    """Return the time as fg's log shows it."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def reachable_host() -> str:
    """Return 127.0.0.2, from where a server bound to 127.0.0.1 cannot be reached
    [fc.start.probe]; 127.0.0.1 on hosts that lack the address."""
    probe = socket.socket()
    try:
        probe.bind(("127.0.0.2", 0))
        return "127.0.0.2"
    except OSError:
        return "127.0.0.1"
    finally:
        probe.close()


# ---- front door ----

class CallerAnswer(Answer):
    """The answer of an HTTP function, passed on to its caller as it is produced."""

    is_kept = False

    def __init__(self, connection: Connection, request_id: str) -> None:
        super().__init__()
        self._connection = connection
        self._request_id = request_id
        self._chunked = False

    def begin(self, status: int, fields: List[Tuple[str, str]],
              length: Optional[int]) -> None:
        super().begin(status, fields, length)
        connection = self._connection
        out = list(fields) + [("X-Fc-Request-Id", self._request_id)]
        if length == -1 and connection.message.words[2] == "HTTP/1.1":
            self._chunked = True  # [fc.answer.streamed]
            out.append(("Transfer-Encoding", "chunked"))
        elif length == -1:
            connection.closing = True
        elif length is not None:
            out.append(("Content-Length", str(length)))
        if connection.closing:
            out.append(("Connection", "close"))
        self.begun = not self.is_lost
        self._send(format_head(status_line(status), out))

    def write(self, data: bytes) -> None:
        self._send(b"%x\r\n%s\r\n" % (len(data), data) if self._chunked else data)

    def end(self) -> None:
        if self._chunked:
            self._send(b"0\r\n\r\n")

    def tunnel(self, fields: List[Tuple[str, str]], upstream: Stream) -> None:
        caller = self._connection.stream
        upstream.before_read = None  # either side may end it, that is no fault
        self._connection.closing = self.begun = True
        self.status = 101
        self._send(format_head(status_line(101), fields + [("Connection", "Upgrade")]))
        if self.is_lost:
            raise CallerGone
        caller.limit_reads(0)
        thread = aside(copy_stream, caller, upstream)
        copy_stream(upstream, caller)
        thread.join()

    def _send(self, data: bytes) -> None:
        if not self.is_lost:
            try:
                self._connection.stream.socket.sendall(data)
            except OSError:
                self.is_lost = True  # the exchange notices


def copy_stream(source: Stream, target: Stream) -> None:
    """Copy bytes until the source ends, then end the target."""
    try:
        for data in source.chunks(None):
            target.socket.sendall(data)
    except (BadMessage, OSError):
        pass  # either side broke; both end
    target.shut()


NATIVE_CALLS = {"/-/invoke": ("POST",), "/-/health": ("GET", "HEAD"),
                "/-/state": ("GET", "HEAD")}


class FrontDoor(App):
    """What callers of the function talk to."""

    idle_limit_s = KEEP_ALIVE_S

    def __init__(self, platform: Platform,
                 on_outcome: Callable[[Outcome], None] = lambda outcome: None) -> None:
        self.platform = platform
        self._on_outcome = on_outcome   # each is told there, before the caller is

    def handle(self, connection: Connection, message: Message) -> None:
        """Route a request: /-/invoke, /-/health, /-/state, or the HTTP function."""
        method, target = message.words[:2]
        path = target.partition("?")[0]
        methods = NATIVE_CALLS.get(path)
        if methods is None and not path.startswith("/-/") and (
                self.platform.protocol == "fc"):
            self._http(connection, message)
        elif methods is None:
            self._json(connection, 404, {"error": "there is nothing at %s; POST "
                       "/-/invoke, GET /-/health or /-/state" % path[:80]})
        elif method not in methods:
            self._json(connection, 405, {"error": "use %s %s" % (methods[0], path)})
        elif path == "/-/invoke":
            self._invoke(connection)
        else:
            self._json(connection, 200, self.platform.state()
                       if path == "/-/state" else {"status": "ok"})

    def _json(self, connection: Connection, status: int, document: object) -> None:
        connection.skip_body()
        self._answer(connection, *json_answer(status, document))

    def _answer(self, connection: Connection, head: bytes, body: bytes) -> None:
        is_head = connection.message.words[0] == "HEAD"
        connection.answer(head, b"" if is_head else body)

    def _invoke(self, connection: Connection) -> None:
        platform, event, size = self.platform, b"", 0
        try:
            event = connection.read_body(platform.function.event_bytes)
        except BodyTooLarge as error:
            size = error.size  # its outcome is given without having read it
        invocation = Invocation(platform.new_id(), event, size=size)
        if platform.protocol == "fc":
            invocation.caller = connection
            outcome = platform.run(invocation)
            self._on_outcome(outcome)
            connection.answer(*native_answer(outcome))
            return

        def done(outcome: Outcome) -> None:
            self._on_outcome(outcome)
            connection.post(*native_answer(outcome))

        invocation.on_done = done
        connection.invocation = invocation
        connection.defer()
        platform.submit(invocation)

    def _http(self, connection: Connection, message: Message) -> None:
        platform, length = self.platform, message.length or 0
        method, target, _ = message.words
        limit = platform.function.event_bytes
        if length > limit:
            connection.skip_body()
        invocation = Invocation(platform.new_id(), b"", HttpRequest(
            method, target, tuple(message.fields)), caller=connection, size=length)
        answer = CallerAnswer(connection, invocation.request_id)
        invocation.answer, invocation.length = answer, message.length
        invocation.body = connection.body_parts(limit)
        if 0 < length <= min(limit, len(connection.stream.rest)):
            invocation.body = connection.read_body(limit)  # with the head: one write
        outcome = platform.run(invocation)
        self._on_outcome(outcome)
        failure = None if invocation.upload is None else invocation.upload.failure
        if isinstance(failure, BadMessage) and not answer.begun:
            raise failure  # answered with 400, and the connection ends
        if not answer.begun:
            if connection.unread and invocation.upload is None:
                self._skip(connection)
            self._answer(connection, *native_answer(outcome))
        elif outcome.kind not in ("ok", "function-error"):
            connection.closing = True  # half an answer must look like half an answer
            connection.stream.shut()

    def _skip(self, connection: Connection) -> None:
        """Read a body away that no instance got, so that its sender sees the answer."""
        try:
            connection.skip_body()
        except BadMessage:
            pass  # the outcome says more

    def gone(self, connection: Connection) -> bool:
        """A caller hung up while its event runs [any.caller.gone]."""
        invocation = connection.invocation
        return invocation is not None and self.platform.cancel(invocation)


def native_answer(outcome: Outcome) -> Tuple[bytes, bytes]:
    """Return (head, body) of an outcome as POST /-/invoke shows it."""
    start = status_line(outcome.status) + "".join(
        "\r\n%s: %s" % pair for pair in outcome.headers)  # ours, so they are clean
    return ("%s\r\nX-Outcome: %s\r\nX-Request-Id: %s\r\nContent-Length: %d\r\n\r\n" % (
        start, outcome.kind, outcome.request_id,
        len(outcome.body))).encode("latin-1"), outcome.body


# ---- command line ----

MAX_PARALLEL = 10000     # each line in flight may have a thread
USAGE_ERROR, FAILED, BROKEN_RULE, INTERRUPTED = 2, 1, 3, 130

# The fields of the vendors' CreateFunction that --config takes as they are -> setting
CONFIG_FIELDS: Dict[str, Dict[str, str]] = {
    "scf": {"FunctionName": "name", "Handler": "handler", "Timeout": "timeout_s",
            "InitTimeout": "init_timeout_s", "MemorySize": "memory_mb"},
    "fg": {"func_name": "name", "handler": "handler", "timeout": "timeout_s",
           "memory_size": "memory_mb"},
    "fc": {"functionName": "name", "handler": "handler", "timeout": "timeout_s",
           "memorySize": "memory_mb", "instanceConcurrency": "concurrency"},
}
# Those that are read by a function of their own, and what the command line says anyway
CONFIG_PARTS = {
    "scf": ("Environment", "Runtime"),
    "fg": ("user_data", "runtime"),
    "fc": ("environmentVariables", "customContainerConfig", "customRuntimeConfig",
           "caPort", "customHealthCheckConfig", "instanceLifecycleConfig", "runtime"),
}


def read_file(option: str, path: str) -> bytes:
    """Return what a file holds. Raises ValueError that names the option."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ValueError("%s %s: %s" % (option, path, error.strerror))


def read_object(option: str, path: str) -> Dict[str, Any]:
    """Return the JSON object of a file. Raises ValueError that names the option."""
    data = read_file(option, path)
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ValueError("%s %s: %s" % (option, path, error))
    if not isinstance(document, dict):
        raise ValueError("%s %s: the document must be a JSON object" % (option, path))
    return document


JSON_TYPES: Dict[type, str] = {dict: "an object", list: "a list", str: "a text"}


def member(document: Dict[str, Any], name: str, kind: type) -> Any:
    """Return a member of a JSON object; empty if it is missing or null. Raises
    ValueError that names it when it is of another type."""
    value = document.get(name)
    if value is None:
        return kind()
    if not isinstance(value, kind):
        raise ValueError("%s must be %s, not %r" % (name, JSON_TYPES[kind], value))
    return value


def read_config(protocol: str, path: str) -> Dict[str, Any]:
    """Return settings from a vendor's CreateFunction document. Raises ValueError that
    names the field."""
    document = read_object("--config", path)
    settings = {name: document[field] for field, name in CONFIG_FIELDS[protocol].items()
                if field in document}
    read = {"scf": _scf_config, "fg": _fg_config, "fc": _fc_config}[protocol]
    try:
        settings.update(read(document))
    except ValueError as error:
        raise ValueError("--config %s: %s" % (path, error))
    unused = set(document).difference(CONFIG_FIELDS[protocol], CONFIG_PARTS[protocol])
    if unused:  # a slip, or what a real cloud alone has a use for
        complain("--config %s: not used here: %s" % (path, ", ".join(sorted(unused))))
    return settings


def _scf_config(document: Dict[str, Any]) -> Dict[str, Any]:
    env = {}
    for one in member(member(document, "Environment", dict), "Variables", list):
        if not isinstance(one, dict) or not isinstance(one.get("Key"), str):
            raise ValueError("Variables must hold objects with Key and Value, not %r"
                             % (one,))
        env[one["Key"]] = one.get("Value")
    return {"env": env}


def _fg_config(document: Dict[str, Any]) -> Dict[str, Any]:
    text = member(document, "user_data", str) or "{}"
    try:
        env = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError("user_data: %s" % error)
    if not isinstance(env, dict):
        raise ValueError("user_data must hold an object, not %s" % text)
    return {"env": env}


def _fc_config(document: Dict[str, Any]) -> Dict[str, Any]:
    settings: Dict[str, Any] = {"env": member(document, "environmentVariables", dict)}
    container = member(document, "customContainerConfig", dict)
    runtime = member(document, "customRuntimeConfig", dict) or container
    words = member(runtime, "command", list) + member(runtime, "args", list)
    image = member(container, "image", str)
    if image:
        settings["image"] = image
        words = member(container, "entrypoint", list) + words
    if words:
        settings["command"] = words
    port = runtime.get("port", document.get("caPort"))
    if port is not None:
        settings["port"] = port
    health = (member(runtime, "healthCheckConfig", dict)
              or member(document, "customHealthCheckConfig", dict))
    if health:
        settings["health_check"] = dict(
            {name: health[field] for name, (field, _, _, _) in HEALTH_FIELDS.items()
             if field in health}, path=health.get("httpGetUrl"))
    hooks = member(document, "instanceLifecycleConfig", dict)
    for field, name in (("initializer", "initializer"), ("preFreeze", "pre_freeze"),
                        ("preStop", "pre_stop")):
        hook = member(hooks, field, dict)
        if hook.get("handler"):  # an empty handler switches the hook off
            settings[name] = True
            if "timeout" in hook:
                settings[name + "_timeout_s"] = hook["timeout"]
    return settings


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        # a fixed width: to ask for the terminal's loads a tenth of what a start loads
        formatter_class=lambda prog: argparse.HelpFormatter(prog, width=80),
        prog=os.path.basename(sys.argv[0]) or "emulator.py",
        usage="%(prog)s {fc|scf|fg} CODE [options] [-- COMMAND ARG ...]",
        description="Run a custom-runtime bootstrap of Alibaba FC, Tencent SCF or "
                    "Huawei FunctionGraph on this machine.",
        epilog="Exit status: 0 ok, 1 an invocation failed, 2 usage, 3 with --strict: "
               "the bootstrap broke a rule, 130 interrupted. What the rules are: "
               "SPEC.md.")
    parser.add_argument("protocol", choices=PROTOCOLS + tuple(LONG_NAMES),
                        metavar="PROTOCOL", help="fc, scf or fg (functiongraph)")
    parser.add_argument("code", metavar="CODE", nargs="?", help="folder or ZIP that "
                        "holds the bootstrap (not needed with --image)")
    parser.add_argument("--version", action="version", version="emulator %s, SPEC %s"
                        % (__version__, SPEC_VERSION))
    _add_tasks(parser.add_argument_group("what to do").add_argument)
    _add_function(parser.add_argument_group("the function").add_argument)
    _add_fc(parser.add_argument_group("fc alone").add_argument)
    _add_limits(parser.add_argument_group(
        "limits and life", "Times are in seconds, %d at most." % MAX_LIMIT_S
        ).add_argument)
    return parser


def _add_tasks(add: Callable[..., object]) -> None:
    add("--event", action="append", default=[], metavar="TEXT|@FILE|-",
        help="invoke with this event; repeatable")
    add("--events", metavar="FILE.jsonl", help="invoke with each line of the file")
    add("--serve", nargs="?", const="", metavar="[HOST:]PORT",
        help="serve callers until a signal; SIGTERM lets running invocations end, a "
             "second signal cuts them short (default 127.0.0.1:$PORT or 8080, 0 = any)")
    add("--jsonl", action="store_true",
        help="one invocation per line on stdin, one outcome per line on stdout")
    add("--parallel", type=int, metavar="N",
        help="with --jsonl: up to N invocations at a time")
    add("--attach", action="store_true",
        help="start no process; print the environment for a bootstrap that is started "
             "by hand then: at once with --serve, else with the first event")
    add("--trace", metavar="FILE|-", help="JSON lines of all messages and changes")
    add("--strict", action="store_true", help="status 3 if a rule was broken")
    add("--quiet", action="store_true", help="no function output, no log lines")
    add("--no-pin", action="store_true",
        help="use all processor cores for itself; one is faster from 2 callers on")


# From here on an option whose value is a setting has its own name as `dest`.

def _add_function(add: Callable[..., object]) -> None:
    add("--config", metavar="FILE.json", help="the vendor's CreateFunction document")
    add("--credentials", metavar="FILE.json",
        help="access_key_id, access_key_secret, security_token, auth_token")
    add("--env", action="append", default=[], metavar="K=V", help="a user variable")
    add("--handler", dest="--handler", metavar="NAME", help="the handler's name")
    add("--name", dest="--name", metavar="NAME", help="the function's name")
    add("--port", dest="--port", metavar="PORT", type=int,
        help="fc: the server's port (9000, so there is one instance; 0 = a free one "
             "for each instance); with --attach: the runtime API's")


def _add_fc(add: Callable[..., object]) -> None:
    for hook in ("--initializer", "--pre-freeze", "--pre-stop"):
        add(hook, dest=hook, action="store_const", const=True,
            help="the function has this hook")
    add("--freeze", dest="--freeze", action="store_const", const=True,
        help="freeze the instance between requests (default)")
    add("--no-freeze", dest="--freeze", action="store_const", const=False,
        help="do not")
    add("--health-check", dest="--health-check", metavar="PATH",
        help="check this path (healthCheckConfig)")
    add("--image", dest="--image", metavar="NAME", help="run this image with docker")


def _add_limits(add: Callable[..., object]) -> None:
    options: Dict[str, Dict[str, str]] = {}
    for protocol, table in LIMITS.items():
        for name, limit in table.items():
            options.setdefault(limit.option, {})[protocol] = "%s %s" % (
                name, limit.default or "as timeout_s")
    for option, shown in sorted(options.items()):
        aliases = ["--initializer-timeout"] if option == "--init-timeout" else []
        same = len(shown) == len(PROTOCOLS) and len(set(shown.values())) == 1
        add(option, *aliases, type=float, metavar="N", dest=option,
            help=shown["fc"] if same else "; ".join(
                "%s: %s" % pair for pair in shown.items()))


def read_settings(options: argparse.Namespace, command: List[str]) -> Dict[str, Any]:
    """Return the settings of Function that the command line gives. ValueError."""
    protocol = LONG_NAMES.get(options.protocol, options.protocol)
    settings = read_config(protocol, options.config) if options.config else {}
    if options.credentials:
        found = read_object("--credentials", options.credentials)
        unknown = set(found) - set(CREDENTIALS)
        if unknown:
            raise ValueError("--credentials %s: unknown %s; known: %s" % (
                options.credentials, ", ".join(sorted(unknown)),
                ", ".join(CREDENTIALS)))
        settings["credentials"] = found
    if options.attach:
        settings["idle_s"] = MAX_LIMIT_S  # nobody would start it again; --idle can say
    names = {"--" + name.replace("_", "-"): name for name in setting_names(protocol)}
    names.update((limit.option, name) for name, limit in LIMITS[protocol].items())
    for option, value in vars(options).items():
        if value is None or not option.startswith("--"):
            continue
        if option not in names:
            raise ValueError("%s does not apply to %s" % (option, protocol))
        if option == "--health-check":
            value = dict(settings.get("health_check") or {}, path=value)
        settings[names[option]] = value
    for pair in options.env:
        name, equals, value = pair.partition("=")
        if not equals:
            raise ValueError("--env %s: write NAME=VALUE" % name)
        settings.setdefault("env", {})[name] = value
    if protocol == "fc":
        settings.update({"command": command} if command else {})
    elif command:
        raise ValueError("a start command after -- is for fc; %s starts the file "
                         "bootstrap" % protocol)
    elif "port" in settings and not options.attach:
        raise ValueError("--port without --attach does not apply to %s" % protocol)
    return settings


def read_events(options: argparse.Namespace) -> List[bytes]:
    """Return all events of --event and --events. Raises ValueError."""
    events = []
    for text in options.event:
        if text == "-":
            events.append(sys.stdin.buffer.read())
        elif text.startswith("@"):
            events.append(read_file("--event", text[1:]))
        else:
            events.append(os.fsencode(text))
    if options.events:
        lines = read_file("--events", options.events).split(b"\n")
        events += [line for line in lines if line.strip()]
    return events


class Talk:
    """Writes to stdout, stderr or a trace file. Only result() waits for a reader: what
    else he does not take is kept up to BACKLOG_BYTES, then dropped, and he is told."""

    BACKLOG_BYTES = 4 * MIB
    _turn = threading.Lock()  # of all: stdout and stderr may be one pipe

    def __init__(self, number: int) -> None:
        self._number = never_blocking(number)
        self._is_full = False
        self._writable = select.poll()
        self._writable.register(self._number, select.POLLOUT)
        self._pretty = os.isatty(number)
        self._lock = threading.Lock()
        self._backlog = bytearray()
        self._dropped = 0
        self._mid_line = False
        self._thread = threading.Thread()
        self.failure = ""       # why the first text that was lost could not be written

    def result(self, data: bytes) -> None:
        """Write to stdout. Blocks while its reader pauses; raises OSError that names
        it. Not by sys.stdout: the interpreter would flush it at the end, and wait."""
        sent = 0
        try:
            while sent < len(data):
                self._wait()
                sent += self._send(data[sent:sent + CHUNK_BYTES])
        except OSError as error:
            raise OSError(error.errno, error.strerror, "stdout")

    def line(self, text: str) -> None:
        """Write a text on a line of its own."""
        line = "%s%s\n" % ("\n" if self._mid_line else "", text)
        self.write(line.encode("utf-8", "backslashreplace"))

    def note(self, text: str) -> None:
        """Say something of our own."""
        self.line("emulator: " + text)

    def trace(self, facts: Dict[str, object]) -> None:
        """Write one message or change: JSON, or aligned text on a terminal."""
        if self._pretty:
            rest = " ".join("%s=%s" % pair for pair in list(facts.items())[2:])
            self.line("%12s %-9s %s" % (facts["ms"], facts["what"], rest))
        else:
            self.line(json.dumps(facts))

    def flush(self) -> None:
        """Give the reader FLUSH_S to take what is left."""
        with self._lock:
            thread = self._thread if self._backlog else None
        if thread is not None:
            thread.join(FLUSH_S)

    def write(self, data: bytes) -> None:
        """Write bytes as they are."""
        with self._lock:
            self._mid_line = data[-1:] not in (b"", b"\n")
            if not self._backlog:
                data = data[self._offer(data):]
            if not data:
                return
            if len(self._backlog) + len(data) > self.BACKLOG_BYTES:
                self._dropped += len(data)
                return
            if not self._backlog:
                self._thread = aside(self._catch_up)
            self._backlog += data

    def _wait(self) -> None:
        """Block until it takes something."""
        if self._is_full:
            time.sleep(FULL_PAUSE_S)  # a terminal, for which poll() says otherwise
        self._writable.poll()

    def _send(self, data: bytes) -> int:
        """Write without waiting; return how much. Raises OSError."""
        sent = 0
        while sent < len(data):
            with self._turn:  # nobody fills it between the question and the answer
                if not self._writable.poll(0):
                    break
                try:
                    sent += os.write(self._number, data[sent:sent + select.PIPE_BUF])
                    self._is_full = False
                except BlockingIOError:
                    self._is_full = True
                    break
        return sent

    def _offer(self, data: bytes) -> int:
        """Write without waiting; return how much of it is done with."""
        try:
            return self._send(data)
        except OSError as error:
            self.failure = self.failure or error.strerror or str(error)
            return len(data)  # nobody reads; the invocations go on

    def _catch_up(self) -> None:
        """Write the backlog as it is taken; ends when it is empty."""
        while True:
            self._wait()
            with self._lock:
                del self._backlog[:self._offer(bytes(self._backlog[:65536]))]
                if not self._backlog:
                    break
        if self._dropped:
            dropped, self._dropped = self._dropped, 0
            self.note("%d bytes of output were dropped: nobody read them" % dropped)


def never_blocking(number: int) -> int:
    """Return a file to write with, instead of this one. A terminal may take less than
    poll() says, so one is opened anew: not to block is a property of what was opened,
    and others have that open, too."""
    if os.isatty(number):
        try:
            return os.open(os.ttyname(number),
                           os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
        except OSError:
            pass  # its name means nothing in this container
    return number


def complain(text: str) -> None:
    """Say on stderr what is wrong; blocks FLUSH_S at most."""
    talk = Talk(2)
    talk.note(text)
    talk.flush()


def open_trace(path: str) -> Talk:
    """Open a file for --trace. Raises ValueError."""
    try:
        return Talk(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666))
    except OSError as error:
        raise ValueError("--trace %s: %s" % (path, error.strerror))


def run_events(platform: Platform, events: List[bytes], talk: Talk) -> bool:
    """Invoke with each event; print results to stdout. Return whether all were ok."""
    all_ok, stdout = True, Talk(1)
    for event in events:
        outcome = platform.invoke(event)
        body = outcome.body
        stdout.result(body if body.endswith(b"\n") or not body else body + b"\n")
        all_ok = all_ok and outcome.kind == "ok"
        note_failure(talk, outcome)
    return all_ok


def note_failure(talk: Talk, outcome: Outcome) -> None:
    """Say why an invocation failed, if it did."""
    if outcome.kind != "ok":
        talk.note("%s: %s" % (outcome.kind, outcome.message))


def summary(platform: Platform) -> str:
    """Say in one line what happened."""
    counts = platform.counts
    kinds = ", ".join("%d %s" % (counts[kind], kind) for kind in KINDS if counts[kind])
    total = counts["accepted"]
    text = "%d invocation%s: %s; %d cold start%s" % (
        total, "" if total == 1 else "s", kinds or "none", counts["cold_starts"],
        "" if counts["cold_starts"] == 1 else "s")
    broken = len(platform.violations)
    return text + ("; %d broken rule%s" % (broken, "" if broken == 1 else "s")
                   if broken else "")


def serve_address(text: str) -> Tuple[str, int]:
    """Return (host, port) of --serve. Raises ValueError."""
    host, colon, port = text.rpartition(":")
    given, port = port, port or os.environ.get("PORT", "8080")
    if not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise ValueError("--serve %s: write [HOST:]PORT" % text if given else
                         "--serve: the variable PORT is %r, not a port" % port)
    return host.strip("[]") if colon and host else "127.0.0.1", int(port)


def end_signals() -> List[signal.Signals]:
    """Return the signals that end us. A bootstrap has a session of its own, so a closed
    terminal would leave it behind; under nohup a closed terminal is no reason."""
    return [signal.SIGTERM, signal.SIGINT] + [
        number for number in (signal.SIGHUP, signal.SIGQUIT)
        if signal.getsignal(number) != signal.SIG_IGN]


def catch_signals() -> Tuple[int, int]:
    """Let these signals interrupt nothing: their numbers come out of a pipe. An
    exception could come while a lock is held, or be missed just before a wait."""
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    for number in end_signals():
        signal.signal(number, lambda number, _: None)
    return wake_read, wake_write


class Errand:
    """Work in a thread of its own, so that the main one can wait for a signal too;
    writes a zero byte when it is done."""

    def __init__(self, work: Callable[[], bool], done: int) -> None:
        self._work, self._done = work, done
        self.is_done = False
        self._error: Optional[Exception] = None
        self._all_ok = False
        self.thread = aside(self._run)

    def _run(self) -> None:
        try:
            self._all_ok = self._work()
        except (OSError, RuntimeError) as error:
            self._error = error
        finally:
            self.is_done = True
            os.write(self._done, b"\0")

    def result(self) -> bool:
        """Return whether all outcomes were ok, or raise what the work raised."""
        if self._error is not None:
            raise self._error
        return self._all_ok


def read_lines(descriptor: int, stop: int) -> Iterator[bytes]:
    """Yield lines as they come, until the file ends or `stop` is readable. Blocks."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    poll.register(stop, select.POLLIN)
    pieces: List[bytes] = []
    while not any(ready == stop for ready, _ in poll.poll()):
        data = os.read(descriptor, 65536)
        pieces.append(data)
        if not data:
            yield b"".join(pieces)
            return
        if b"\n" in data:  # a long line is put together once
            lines = b"".join(pieces).split(b"\n")
            pieces = [lines.pop()]
            yield from lines


def serve(platform: Platform, address: Tuple[str, int], talk: Talk, signals: int,
          done: int) -> None:
    """Serve callers until a signal comes; all but SIGINT drain, until the next one."""
    host, port = address
    try:
        door = FrontDoor(platform, lambda outcome: note_failure(talk, outcome))
        listener = Listener(host, port, door, platform.loop)
    except OSError as error:
        raise ValueError("--serve %s:%d: %s" % (host, port, error.strerror))
    shown = "[%s]" % listener.host if ":" in listener.host else listener.host
    talk.note("serving %s on http://%s:%d, POST events to /-/invoke"
              % (platform.protocol, shown, listener.port))
    if platform.attach:
        platform.prepare()
    number = os.read(signals, 1)[0]
    listener.close()
    if number != signal.SIGINT:
        if platform.pending:
            talk.note("%d still running; another signal ends that now"
                      % platform.pending)
        try:
            Errand(platform.drain, done)  # [any.stop.drain]
            os.read(signals, 1)
        except RuntimeError:  # no more threads: no signal can cut it short
            platform.drain()
    platform.close()
    listener.join(0.5)  # whose invocation was cut short is told


class Adapter:
    """The JSON-lines adapter of the conformance kit (--jsonl).

    One thread prints, in order: who has an outcome to tell may be the thread that keeps
    the clocks, and must not wait for a reader. An outcome keeps its slot until it is
    printed, so a reader who pauses stops the invocations, not the memory.
    """

    def __init__(self, platform: Platform, parallel: int) -> None:
        self._platform = platform
        self._parallel = parallel
        self._slots = threading.Semaphore(parallel)
        self._stdout = Talk(1)
        # those to print, then None
        self._outcomes: "queue.SimpleQueue[Optional[Dict[str, object]]]" = (
            queue.SimpleQueue())
        self._failure: Optional[OSError] = None     # nothing can be printed any more
        self.all_ok = True

    def run(self, lines: Iterable[bytes]) -> None:
        """Invoke for each line; returns when every outcome is printed. Raises OSError
        that names stdout when that cannot be."""
        printer = aside(self._print)
        for number, line in enumerate(lines, 1):
            if line.strip():
                self._take(number, line)
        for _ in range(self._parallel):  # every outcome is printed
            self._take_slot()
        self._outcomes.put(None)
        printer.join()

    def _take_slot(self) -> None:
        self._slots.acquire()
        if self._failure is not None:
            raise self._failure

    def _take(self, number: int, line: bytes) -> None:
        """Invoke for a line when a slot is free."""
        self._take_slot()
        identity: object = None  # until it is known
        try:
            document, identity = read_line(line)
            event, request = parse_invocation(self._platform.protocol, document)
        except (ValueError, TypeError, RecursionError) as error:
            self._outcomes.put({"id": identity, "kind": "invalid-line",
                                "message": "line %d: %s" % (number, error)})
        else:
            self._submit(identity, event, request)

    def _submit(self, identity: object, event: bytes,
                request: Optional[HttpRequest]) -> None:
        """Place an invocation in this thread, so that they queue in order
        [any.queue.order]; wait for it in another."""
        platform = self._platform
        invocation = Invocation(
            platform.new_id(), event, request, on_done=lambda outcome:
            self._outcomes.put(outcome_document(identity, outcome)))
        platform.submit(invocation)
        if platform.protocol == "fc":
            aside(platform.carry, invocation)

    def _print(self) -> None:
        """Print the outcomes; the body of a thread."""
        for document in iter(self._outcomes.get, None):
            self.all_ok = self.all_ok and document["kind"] == "ok"
            try:
                if self._failure is None:
                    self._stdout.result(json.dumps(document).encode() + b"\n")
            except OSError as error:  # the slot must become free all the same
                self._failure = error
            self._slots.release()


def outcome_document(identity: object, outcome: Outcome) -> Dict[str, object]:
    """Return what the adapter prints of an outcome."""
    document: Dict[str, object] = {"id": identity, "kind": outcome.kind}
    try:
        document["body"] = outcome.body.decode("utf-8")
    except UnicodeDecodeError:
        document["body_base64"] = binascii.b2a_base64(
            outcome.body, newline=False).decode()
    document.update(
        request_id=outcome.request_id, duration_ms=round(outcome.duration_ms, 3),
        violations=[one._asdict() for one in outcome.violations],
        message=outcome.message, status=outcome.status,
        headers=[list(pair) for pair in outcome.headers])
    return document


def read_line(line: bytes) -> Tuple[Dict[str, Any], object]:
    """Return (object, id) of an adapter line. Raises ValueError, RecursionError."""
    document = json.loads(line)
    if not isinstance(document, dict):
        raise ValueError("an object is expected")
    identity = document.get("id")
    try:
        json.dumps(identity, allow_nan=False)  # Python reads NaN and Infinity
    except ValueError:
        raise ValueError("id holds a number that JSON does not have")
    return document, identity


def parse_invocation(protocol: str, document: Dict[str, Any]
                     ) -> Tuple[bytes, Optional[HttpRequest]]:
    """Return (event, HTTP request) of an adapter line. Raises ValueError."""
    event = document.get("event", "" if "method" in document else None)
    if "event_base64" in document:
        try:
            import base64  # binascii alone is not strict enough
            event = base64.b64decode(document["event_base64"], validate=True)
        except (TypeError, binascii.Error) as error:
            raise ValueError("event_base64: %s" % error)
    elif isinstance(event, str):
        event = event.encode()
    else:
        raise ValueError("event must be a text, or give event_base64")
    request = None
    if "method" in document:
        if protocol != "fc":
            raise ValueError("method: only fc has HTTP requests, not %s" % protocol)
        headers = member(document, "headers", list)
        if not all(isinstance(pair, list) and len(pair) == 2 for pair in headers):
            raise ValueError("headers must be a list of [name, value]")
        request = HttpRequest(str(document["method"]), str(document.get("path", "/")),
                              tuple((str(name), str(value)) for name, value in headers))
        check_request(request)
    return event, request


def exports(env: Dict[str, str]) -> str:
    """Return what a bootstrap started by hand needs, for a shell (--attach)."""
    return "\n".join("export %s='%s'" % (name, value.replace("'", "'\\''"))
                     for name, value in env.items() if name not in INHERITED)


def choose_core() -> Optional[List[int]]:
    """Pin this process to one core; return all cores, for the children. A thread is
    woken ten times faster on its own core than across cores."""
    if not hasattr(os, "sched_setaffinity"):
        return None
    try:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[os.getpid() % len(cores)]})
    except OSError:
        return None
    return cores


def invoke_all(platform: Platform, options: argparse.Namespace, events: List[bytes],
               talk: Talk, signals: int) -> bool:
    """Invoke with the events of the command line, then with those of stdin."""
    all_ok = True
    if options.event or options.events:
        all_ok = run_events(platform, events, talk)
    if options.jsonl:
        adapter = Adapter(platform, options.parallel or 1)
        adapter.run(read_lines(0, signals))
        all_ok = all_ok and adapter.all_ok
    return all_ok


def check_tasks(options: argparse.Namespace) -> None:
    """Raise ValueError unless there is something to do that fits together."""
    if options.serve is None and not (options.event or options.events or options.jsonl):
        raise ValueError("nothing to do: give --event, --events, --serve or --jsonl")
    if options.parallel is not None and not options.jsonl:
        raise ValueError("--parallel applies to --jsonl alone")
    if options.parallel is not None and not 1 <= options.parallel <= MAX_PARALLEL:
        raise ValueError("--parallel must be 1 to %d" % MAX_PARALLEL)


def run(options: argparse.Namespace, command: List[str]) -> int:
    """Do what the command line says; return the exit status. Raises ValueError."""
    settings = read_settings(options, command)
    if options.code is None and not settings.get("image"):
        raise ValueError("CODE is missing: the folder or ZIP that holds the bootstrap")
    check_tasks(options)
    events = read_events(options)
    address = serve_address(options.serve) if options.serve is not None else None
    talk = Talk(2)
    trace = talk if options.trace in (None, "-") else open_trace(options.trace)
    all_ok = True
    signals, done = catch_signals()  # before there is anything to put away
    with Platform(options.protocol, options.code or ".",
                  on_log=None if options.quiet else talk.write, on_note=talk.note,
                  on_trace=trace.trace if options.trace else None,
                  attach=(lambda env: talk.line(exports(env))) if options.attach
                  else None,
                  cores=None if options.no_pin else choose_core(),
                  **settings) as platform:
        errand = Errand(lambda: invoke_all(platform, options, events, talk, signals),
                        done)
        wait_readable(signals, None)  # a signal stays there, so that it reads no more
        interrupted = not errand.is_done or os.read(signals, 1) != b"\0"
        if not interrupted:
            all_ok = errand.result()
            if address is not None:
                serve(platform, address, talk, signals, done)
    errand.thread.join(FLUSH_S)  # for its last words
    if events or address is not None:
        talk.note(summary(platform))
    trace.flush()
    if trace is not talk and trace.failure:
        talk.note("--trace %s is not whole: %s" % (options.trace, trace.failure))
    talk.flush()
    if interrupted:
        return INTERRUPTED
    if options.strict and platform.violations:
        return BROKEN_RULE
    return 0 if all_ok else FAILED


def open_standard_files() -> None:
    """Open those of files 0, 1 and 2 that were closed when we were started: else the
    next socket would get that number, and be written to."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
            setattr(sys, name, open(number, "w" if number else "r"))


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; return the exit status."""
    open_standard_files()
    words, command = list(sys.argv[1:] if argv is None else argv), []
    if "--" in words:
        at = words.index("--")
        words, command = words[:at], words[at + 1:]
    options = make_parser().parse_intermixed_args(words)
    for number in end_signals():
        signal.signal(number, signal.default_int_handler)
    # whoever started us may ignore it: then no process waits for us to see its end
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        return run(options, command)
    except ValueError as error:
        complain(str(error))
        return USAGE_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return FAILED  # who reads stdout has seen enough
    except OSError as error:
        complain(str(error))
        return FAILED
    finally:  # one more signal while the interpreter ends would change the status
        for number in end_signals():
            signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
