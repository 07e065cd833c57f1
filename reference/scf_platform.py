#!/usr/bin/env python3
# scf_platform.py: the platform's side of Tencent SCF's custom runtime. MIT licence.
"""Play Tencent SCF for a bootstrap: start it, hand it events, tell what became of each.

@@DOCSTRING
"""
from __future__ import annotations

import json
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

PROTOCOL = "scf"

# (method, path) -> call
ENDPOINTS: Dict[Tuple[str, str], str] = {
    ("POST", "/runtime/init/ready"): "ready",
    ("GET", "/runtime/invocation/next"): "next",
    ("POST", "/runtime/invocation/response"): "response",
    ("POST", "/runtime/invocation/error"): "error",
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
    """)

RESULTS = {"finish": "ok", "fail": "function-error", "overflow": "response-too-large"}
ON_TIME = {"starting": "init-timeout", "issued": "not-fetched", "running": "timeout"}
ON_EXIT = {"starting": "init-error", "issued": "exit", "running": "exit"}
NO_ANSWER = {"starting": "the bootstrap did not post /runtime/init/ready",
             "issued": "the bootstrap did not fetch the event",
             "running": "the bootstrap fetched the event and posted no result"}


def read_fields(*rows: str) -> Tuple[Field, ...]:
    """Read `Name value` rows; a name that begins with `?` is optional."""
    split = (row.partition(" ") for row in rows)
    return tuple(Field(name.lstrip("?"), value, name[0] == "?")
                 for name, _, value in split)


HEADERS = read_fields(  # [scf.next.headers] [any.event.content-type]
    "Request_Id {request_id}",
    "Memory_Limit_In_Mb {memory_mb}",
    "Time_Limit_In_Ms {timeout_ms}",
    "Content-Type application/json")

ENVIRONMENT = read_fields(  # [scf.env.api] [scf.env.handler] [scf.env.documented]
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
    "?TENCENTCLOUD_SECRETID {access_key_id}",  # [any.credentials.role]
    "?TENCENTCLOUD_SECRETKEY {access_key_secret}",
    "?TENCENTCLOUD_SESSIONTOKEN {security_token}")

# The only variables that a bootstrap inherits [any.env.inherited], and their values
# where the platform's own environment has none.
INHERITED = {"PATH": os.defpath, "HOME": "/", "TMPDIR": "/tmp", "LANG": "C.UTF-8"}
RESERVED_ENV = ("SCF_", "QCLOUD_", "TENCENTCLOUD_", "_HANDLER")  # [any.env.names]
MAX_ENV_BYTES = 4096  # [any.env.size]
DEFAULT_HANDLER, DEFAULT_VERSION = "index.main_handler", "$LATEST"

MIB = 1048576  # [any.event.size]
LIMITS = {
    "timeout_s": Limit(3, "--timeout"),
    "init_timeout_s": Limit(65, "--init-timeout"),
    "memory_mb": Limit(128, "--memory"),
    "event_bytes": Limit(6 * MIB, "--max-event"),
    "result_bytes": Limit(6 * MIB, "--max-result"),
    "grace_s": Limit(2, "--grace", True),
}


# ---- tables: what callers and readers of the log see ----

# kind -> (errorCode, errorMessage, statusCode) [scf.outcome.document]
ERRORS: Dict[str, Tuple[int, str, int]] = {
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

# why a bootstrap could not be started -> the vendor's words for it
START_ERRORS = {"missing": "Bootstrap not exist", "mode": "Bootstrap not executable",
                "": "Bootstrap cannot be started"}

# before and after the output of an invocation [any.log.frame]
LOG_LINES = ("START RequestId: {request_id}\nEvent RequestId: {request_id}\n",
             "END RequestId: {request_id}\nReport RequestId: {request_id} "
             "Duration:{duration}ms Memory:{memory_mb}MB MemUsage:{peak_mb}MB\n")


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
        if oversize and call in ("response", "error"):
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
        """Return the parked polls that get the issued event now: all, since every
        `next` within an invocation brings the same one [scf.next.same-event]."""
        if self.state != "issued" or not self.parked:
            return []
        polls, self.parked = self.parked, []
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
    """Return (call, "", 200), or ("", "", 404 or 405) [any.api.unknown]."""
    path = target.partition("?")[0]
    call = ENDPOINTS.get((method, path))
    if call:
        return call, "", 200
    return "", "", 405 if any(path == known for _, known in ENDPOINTS) else 404


def refusal(status: int, message: str) -> Dict[str, str]:
    """Return the document that answers a refused call."""
    return {"error": message}


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
        timeout_ms=str(round(function.timeout_s * 1000)))
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
    request_id and, for failures, timeout, init_timeout and start_error."""
    if kind == "ok":
        return 200, (), body
    code, message, status = ERRORS[kind]
    document: Dict[str, object] = {"errorCode": code,
                                   "errorMessage": message.format_map(facts),
                                   "requestId": facts["request_id"]}
    if kind == "function-error":
        document["stackTrace"] = body.decode("utf-8", "replace")
    document["statusCode"] = status
    return 200, (), to_json(document)


def to_json(document: object) -> bytes:
    """Write a document without blanks."""
    # a path that is no UTF-8 holds half surrogate pairs; \udcff is JSON, too
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "backslashreplace")
