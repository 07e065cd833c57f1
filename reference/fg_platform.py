#!/usr/bin/env python3
# fg_platform.py: the platform's side of Huawei FunctionGraph's custom runtime. MIT licence.
"""Play Huawei FunctionGraph for a bootstrap: start it, hand it events, tell what became of each.

@@DOCSTRING
"""
from __future__ import annotations

import json
import math
import os
import re
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

PROTOCOL = "fg"

# (method, path) -> call; a path that ends in "/" is followed by the request id
ENDPOINTS: Dict[Tuple[str, str], str] = {
    ("GET", "/v1/runtime/invocation/request"): "request",
    ("POST", "/v1/runtime/invocation/response/"): "response",
    ("POST", "/v1/runtime/invocation/error/"): "error",
}


def read_rows(text: str) -> Dict[Tuple[str, str], Row]:
    """Read lines `state call|call action next-state rule` into a states table."""
    table: Dict[Tuple[str, str], Row] = {}
    for line in text.strip().splitlines():
        state, calls, action, after, rule = line.split()
        for call in calls.split("|"):
            table[state, call] = Row(action, after, rule)
    return table


STATES = read_rows("""
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
    """)

RESULTS = {"finish": "ok", "fail": "function-error", "overflow": "response-too-large"}
ON_TIME = {"starting": "init-timeout", "issued": "not-fetched", "running": "timeout"}
ON_EXIT = {"starting": "init-error", "issued": "exit", "running": "exit"}
NO_ANSWER = {"starting": "the bootstrap did not ask for an event",
             "issued": "the bootstrap did not fetch the event",
             "running": "the bootstrap fetched the event and posted no result"}


def read_fields(*rows: str) -> Tuple[Field, ...]:
    """Read `Name value` rows; a name that begins with `?` is optional."""
    split = (row.partition(" ") for row in rows)
    return tuple(Field(name.lstrip("?"), value, name[0] == "?")
                 for name, _, value in split)


HEADERS = read_fields(  # [fg.request.headers] [any.event.content-type]
    "X-Cff-Request-Id {request_id}",
    "X-CFF-Invoke-Type sync",
    "?X-CFF-Access-Key {access_key_id}",  # [any.credentials.role]
    "?X-CFF-Secret-Key {access_key_secret}",
    "?X-CFF-Security-Token {security_token}",
    "?X-CFF-Auth-Token {auth_token}",
    "Content-Type application/json")

ENVIRONMENT = read_fields(  # [fg.env.api] [fg.env.table]
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
    "RUNTIME_MAX_RESP_BODY_SIZE {result_bytes}")

# The only variables that a bootstrap inherits [any.env.inherited], and their values
# where the platform's own environment has none.
INHERITED = {"PATH": os.defpath, "HOME": "/", "TMPDIR": "/tmp", "LANG": "C.UTF-8"}
RESERVED_ENV = ("RUNTIME_",)  # [any.env.names]
MAX_ENV_BYTES = 4096  # [any.env.size]
DEFAULT_HANDLER, DEFAULT_VERSION = "index.handler", "latest"

MIB = 1048576  # [any.event.size]
LIMITS = {
    "timeout_s": Limit(3, "--timeout"),
    "init_timeout_s": Limit(0, "--init-timeout", True),  # 0: as timeout_s
    "memory_mb": Limit(128, "--memory"),
    "event_bytes": Limit(6 * MIB, "--max-event"),
    "result_bytes": Limit(6 * MIB, "--max-result"),
    "grace_s": Limit(2, "--grace", True),
}


# ---- tables: what callers and readers of the log see ----

# kind -> (HTTP status, code, error_msg) [fg.outcome.document]
ERRORS: Dict[str, Tuple[int, str, str]] = {
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
    "request-too-large": (413, "1201", "the size of request body is beyond "
                                       "maximum:{limit}, body size:{size}"),
    "throttled": (429, "0429", "too many requests"),
    "cancelled": (200, "4208", "function invocation is canceled"),
}

# why a bootstrap could not be started -> the vendor's words for it
START_ERRORS = {"missing": "runtime bootstrap file is not found",
                "mode": "runtime bootstrap file is not executable",
                "": "runtime bootstrap file cannot be started"}

# before and after the output of an invocation [any.log.frame]
LOG_LINES = ("{utc} Start invoke request '{request_id}', version: {version}\n",
             "{utc} Finish invoke request '{request_id}', duration: {exact}ms, "
             "billing duration: {billed}ms, memory used: {peak_mb}MB, "
             "billing memory: {memory_mb}MB\n")


# ---- rules without I/O ----

class Session:
    """What one bootstrap may ask, and what the answer means.

    Knows no socket, thread or clock; the caller serialises the calls. Polls are opaque
    tokens, kept while their answer must wait.
    """

    def __init__(self) -> None:
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
        if call in ("response", "error"):
            if not request_id or request_id != self.request_id:
                call = "stray"  # [fg.result.unknown-id]
            elif oversize:
                call = "oversize"
        row = STATES[self.state, call]
        self.state = row.state
        if row.action == "hold":
            self.parked.append(poll)
        elif row.action == "deliver":
            self._on_way += 1
        elif row.action in RESULTS:
            self.request_id = ""
        return row

    def issue(self, request_id: str) -> None:
        """Hand the instance an event; it must be idle."""
        self.state = STATES[self.state, "issue"].state
        self.request_id = request_id
        self._on_way, self._reached = 0, False

    def take_polls(self) -> List[Any]:
        """Return the parked polls that get the issued event now: one, the others are
        held on [fg.request.blocks]."""
        if self.state != "issued" or not self.parked:
            return []
        polls, self.parked = self.parked[:1], self.parked[1:]
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


def find_call(method: str, target: str) -> Tuple[str, str, int]:
    """Return (call, request id, 200), or ("", "", 404 or 405) [any.api.unknown]."""
    path = target.partition("?")[0]
    prefix, slash, request_id = path.rpartition("/")
    for known, found in ((path, ""), (prefix + slash, request_id)):
        call = ENDPOINTS.get((method, known))
        if call:
            return call, found, 200
    is_known = any(known in (path, prefix + slash) for _, known in ENDPOINTS)
    return "", "", 405 if is_known else 404


def refusal(status: int, message: str) -> Dict[str, str]:
    """Return the document that answers a refused call [fg.api.error-document]."""
    return {"error_code": "FSS.0%d" % status, "error_msg": message}


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
    facts = {"access_key_id": "", "access_key_secret": "", "security_token": "",
             "auth_token": ""}
    facts.update(
        function.credentials, handler=function.handler or DEFAULT_HANDLER,
        name=function.name, version=function.version or DEFAULT_VERSION,
        code_root=code_root, project_id="0" * 32, package="default",
        memory_mb=str(function.memory_mb),
        timeout_whole_s=str(max(1, math.ceil(function.timeout_s))),
        result_bytes=str(function.result_bytes), user_data=json.dumps(function.env),
        cpu=str(200 + 100 * function.memory_mb // 128))  # [fg.env.table]
    return facts


def fill_in(table: Iterable[Field], facts: Facts) -> List[Tuple[str, str]]:
    """Return names and values, without the optional ones that have no value."""
    filled = [(field, field.value.format_map(facts)) for field in table]
    return [(field.name, value) for field, value in filled
            if value or not field.optional]


def new_id() -> str:
    """Return a request id in the vendor's form: a UUID of version 4 [any.id.form]."""
    text = os.urandom(16).hex()
    return "%s-%s-4%s-a%s-%s" % (text[:8], text[8:12], text[13:16], text[17:20],
                                 text[20:])


def caller_answer(kind: str, body: bytes, facts: Facts) -> Tuple[int, Pairs, bytes]:
    """Return (status, headers, body) that the cloud shows its caller. `facts` holds
    request_id and, for failures, timeout, init_timeout, size, limit, start_error."""
    status, code, message = (200, "0", "") if kind == "ok" else ERRORS[kind]
    headers = (("X-Cff-Request-Id", facts["request_id"]), ("X-Func-Err-Code", code),
               ("X-Is-Func-Err", "false" if kind == "ok" else "true"))
    if kind not in ("ok", "function-error"):
        body = to_json({"error_code": "FSS." + code,
                        "error_msg": message.format_map(facts)})
    return status, headers, body


def to_json(document: object) -> bytes:
    """Write a document without blanks."""
    # a path that is no UTF-8 holds half surrogate pairs; \udcff is JSON, too
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "backslashreplace")
