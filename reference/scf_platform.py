#!/usr/bin/env python3
# scf_platform.py: the platform's side of Tencent SCF's custom runtime (MIT).
"""Play Tencent SCF for a bootstrap: start it, hand it events, tell what became of each.

    python3 scf_platform.py ./my-function --event '{"key": "value"}'
    python3 scf_platform.py ./my-function --jsonl < events    # {"id": 1, "event": TEXT}
    python3 scf_platform.py ./my-function --env A=1 --timeout 10 --event hello

This is the whole protocol, to be read, copied and ported: tables; Session, which knows
what a call means in which state and does no I/O; RuntimeApi, which the bootstrap calls;
Instance, its process. A comment such as [scf.next.blocks] names the rule of SPEC.md
that its line obeys. Standard library only, CPython 3.8 or later, Linux.

It runs one instance and one event at a time, so there is no queue (any.queue.limit,
any.instance.on-demand). It leaves out memory (any.memory.limit; it says 0), packages
(any.package.*), a log for each event (any.log.first, any.log.tail; output goes to
stderr), callers who leave (any.caller.gone) and the limit for slow heads
(any.limits.slow). It reads bodies whole, however large, and a signal ends it without
awaiting the event that runs (any.stop.drain). emulator.py has all that.
"""
from __future__ import annotations

import argparse
import base64
import contextlib
import errno
import io
import json
import os
import re
import select
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import (Any, Dict, Generator, Iterable, Iterator, List, NamedTuple,
                    Optional, Sequence, Tuple)

__version__ = "0.1.0"
SPEC_VERSION = "0.1"
__all__ = ["Instance", "Outcome", "Session", "Violation"]

Facts = Dict[str, str]  # values for the templates of the tables
Pairs = Tuple[Tuple[str, str], ...]


# ---- model ----

class Violation(NamedTuple):
    """A rule of SPEC.md that the bootstrap broke, and what was seen."""

    rule: str
    seen: str


class Event(NamedTuple):
    """An event that was issued."""

    request_id: str
    body: bytes


class Outcome(NamedTuple):
    """What became of an event; `status`, `headers` and `body` are for the caller."""

    kind: str
    body: bytes
    request_id: str
    duration_ms: float
    violations: Tuple[Violation, ...]
    message: str
    status: int
    headers: Pairs


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


# ---- the runtime API ----

HEAD_BYTES, HEAD_FIELDS = 65536, 99  # [any.limits.head]; http.server takes no 100th
# no field of a head is folded or holds a control character [any.http.malformed]
HEAD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [!-~]+ HTTP/1\.[01]\r\n"
                  rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\0-\x08\x0a-\x1f\x7f]*\r\n)*\r\n")
CHUNK = re.compile(rb"([0-9A-Fa-f]{1,10})[ \t]*(;[^\r\n]*)?\r\n")
REFUSALS = {"refuse": (404, "no outstanding invocation has this id"),
            "overflow": (413, "the result is too large")}
FAREWELL_S = 1.0  # how long what a peer sent before its end is read


class BadRequest(Exception):
    """What is not obeyed; the arguments are the rule and what was seen."""


class RuntimeApi(BaseHTTPRequestHandler):
    """One connection of the bootstrap: call after call, in a thread of its own."""

    server: ApiServer
    protocol_version = "HTTP/1.1"   # it stays open after an answer [any.http.reuse]
    disable_nagle_algorithm = True  # or answers wait 40 ms for an acknowledgement

    def handle_one_request(self) -> None:
        """Read a call and answer it, whatever its method."""
        self.close_connection, self.command = True, ""
        try:
            if self.read_head():
                self.answer_call(self.read_body())
        except BadRequest as bad:
            self.turn_away(*bad.args)
        except OSError:
            self.close_connection = True  # the peer has gone

    def read_head(self) -> bool:
        """Read a head and let http.server take it to pieces; False if none comes."""
        head = line = self.rfile.readline(HEAD_BYTES)
        while line.strip(b"\r\n") and len(head) <= HEAD_BYTES:
            line = self.rfile.readline(HEAD_BYTES)
            head += line
        if not head:
            return False
        if len(head) > HEAD_BYTES or head.count(b"\n") > HEAD_FIELDS + 2:
            raise BadRequest("any.limits.head", "%d bytes" % len(head))
        if not HEAD.fullmatch(head):
            raise BadRequest("any.http.malformed", repr(head[:80]))
        connection, self.rfile = self.rfile, io.BytesIO(head)
        self.raw_requestline = self.rfile.readline()
        is_parsed = self.parse_request()  # answers Expect, too [any.http.continue]
        self.rfile = connection
        return is_parsed

    def read_body(self) -> bytes:
        """Return a body whose end is beyond doubt [any.http.framing]."""
        lengths = self.headers.get_all("Content-Length", [])
        codings = self.headers.get_all("Transfer-Encoding", [])
        framing = ", ".join(lengths + codings).strip(" \t")
        if codings and framing.lower() == "chunked":
            return b"".join(iter(self.read_chunk, b""))  # [any.http.body]
        if lengths and re.fullmatch("[0-9]{1,10}", framing):
            return self.read_exactly(int(framing))
        if lengths or codings:
            raise BadRequest("any.http.framing", repr(framing[:80]))
        return b""

    def read_chunk(self) -> bytes:
        """Return a chunk; nothing after the last one, whose trailer is read away."""
        head = CHUNK.fullmatch(self.rfile.readline(HEAD_BYTES))
        size = int(head[1], 16) if head else -1
        data = self.read_exactly(size + 2) if size > 0 else b"\r\n"
        if size < 0 or data[-2:] != b"\r\n":
            raise BadRequest("any.http.framing", "a chunk that is none")
        while size == 0 and self.rfile.readline(HEAD_BYTES).strip():
            pass
        return data[:-2]

    def read_exactly(self, size: int) -> bytes:
        """Return so many bytes."""
        data = self.rfile.read(size)
        if len(data) < size:
            raise BadRequest("any.http.no-effect", "the body breaks off")
        return data

    def answer_call(self, body: bytes) -> None:
        """Let the instance judge a call; answer as the states table says."""
        instance = self.server.instance
        call, request_id, status = find_call(self.command, self.path)
        if not call:
            seen = "%s %s" % (self.command, self.path[:80])
            instance.violate("any.api.unknown", seen)
            self.answer(status, to_json(refusal(status, "no such call: " + seen)))
            return
        action, event = instance.receive(call, request_id, body)
        if action == "hold":  # the instance has ended
            self.close_connection = True
        elif action == "deliver" and event is not None:
            self.deliver(event)
        elif action in REFUSALS:
            status, message = REFUSALS[action]
            self.answer(status, to_json(refusal(status, message)))
        else:
            self.answer(200)  # [any.http.empty]

    def deliver(self, event: Event) -> None:
        """Answer with the event, unless the peer has hung up [any.poll.dead]."""
        instance, reached = self.server.instance, False
        try:
            speaks = select.select([self.connection], [], [], 0)[0]
            if not speaks or self.connection.recv(1, socket.MSG_PEEK):
                self.answer(200, event.body, fill_in(HEADERS, dict(
                    instance.facts, request_id=event.request_id)))
                reached = True
        finally:
            with instance.changed:  # another poll may get it, if it has reached nobody
                instance.session.delivered(event.request_id, reached)
                instance.changed.notify_all()

    def answer(self, status: int, body: bytes = b"",
               fields: Sequence[Tuple[str, str]] = ()) -> None:
        """Send an answer in one write. Raises OSError when nobody takes it."""
        head = "HTTP/1.1 %d %s\r\n%sContent-Length: %d\r\nConnection: %s\r\n\r\n" % (
            status, HTTPStatus(status).phrase, "".join(
                "%s: %s\r\n" % field for field in fields),
            len(body), "close" if self.close_connection else "keep-alive")
        self.wfile.write(head.encode() + (b"" if self.command == "HEAD" else body))

    def turn_away(self, rule: str, seen: str) -> None:
        """Answer what is no call, and hang up [any.http.no-effect]."""
        self.server.instance.violate(rule, seen)
        self.close_connection = True
        status = 431 if rule == "any.limits.head" else 400
        with contextlib.suppress(OSError):
            self.answer(status, to_json(refusal(status, seen)))
            self.connection.shutdown(socket.SHUT_WR)
            self.connection.settimeout(FAREWELL_S)
            while self.connection.recv(65536):
                pass  # closing over unread input would destroy the answer


class ApiServer(ThreadingHTTPServer):
    """The runtime API of one instance, at a port of its own [any.security.instance]."""

    request_queue_size = 128

    def __init__(self, instance: Instance) -> None:
        self.instance = instance
        self.threads: List[threading.Thread] = []
        self.last_client: Any = None
        super().__init__(("127.0.0.1", 0), RuntimeApi)  # [any.security.loopback]

    def server_bind(self) -> None:
        """Bind, and do not ask the name service, as HTTPServer would."""
        socketserver.TCPServer.server_bind(self)

    def accept_all(self) -> None:
        """Give each connection a thread, up to the one that `close` makes."""
        connection, client = self.get_request()
        while client != self.last_client:
            thread = threading.Thread(target=self.process_request_thread, daemon=True,
                                      args=(connection, client))
            thread.start()
            self.threads = [one for one in self.threads if one.is_alive()] + [thread]
            connection, client = self.get_request()
        connection.close()

    def close(self) -> None:
        """Accept no more, once all that was sent by now is read [any.result.first]."""
        with socket.socket() as last:
            last.bind(("127.0.0.1", 0))
            self.last_client = last.getsockname()
            last.connect(self.server_address)
            last.recv(1)  # nothing: accept_all has closed it
        self.server_close()
        for thread in self.threads:
            thread.join(FAREWELL_S)


# ---- one running bootstrap ----

MESSAGES = {"ok": "", "function-error": "the bootstrap reported an error",
            "throttled": "--max-instances is 0",
            "request-too-large": "the event is over --max-event",
            "response-too-large": "the result is over --max-result"}
VIOLATIONS_MOST = 100  # that are kept with one event
GROUP_TICK_S = 0.01  # between looks at what an ended bootstrap has left behind


class Instance:
    """A bootstrap's process, and the event that it has.

    Three kinds of threads meet at `changed`: the connections report what the bootstrap
    calls, one waits for the end of its process, and who invokes waits for the outcome,
    with the limit as the timeout. `function` is what `parse` returns.
    """

    def __init__(self, function: Any) -> None:
        self.function = function
        self.facts = describe(function, function.code)
        self.process: Optional[subprocess.Popen[bytes]] = None
        self.started = self.issued = self.grace_ends = 0.0  # on the monotonic clock
        self.changed = threading.Condition()    # guards what follows
        self.session = Session()
        self.event: Optional[Event] = None      # until it has its outcome
        self.outcome: Optional[Outcome] = None
        self.violations: List[Violation] = []
        self.has_served = False
        self.has_ended = False  # the process
        self.is_over = False    # and what it has sent is read

    # -- start --

    def start(self) -> bool:
        """Start the file `bootstrap`, with its output on stderr [any.start.bootstrap];
        tell whether it came up."""
        program = os.path.join(self.function.code, "bootstrap")
        self.server = ApiServer(self)
        self.facts.update(api_host="127.0.0.1",
                          api_port=str(self.server.server_address[1]))
        env = {name: os.environ.get(name, value) for name, value in INHERITED.items()}
        env.update(self.function.env)
        env.update(fill_in(ENVIRONMENT, self.facts))
        try:
            if not os.path.isfile(program):
                raise OSError(errno.ENOENT, "there is no such file")
            with open(program, "rb") as file:
                if re.match(rb"#![^\n]*\r\n", file.read(4096)):
                    raise OSError(errno.ENOEXEC, "its lines end with CR LF")
            self.process = subprocess.Popen(
                [program], cwd=self.function.code, env=env, stdin=subprocess.DEVNULL,
                stdout=2, stderr=2, start_new_session=True)
        except OSError as error:  # [any.start.executable]
            self.server.server_close()
            reason = ("missing" if not os.path.isfile(program) else
                      "" if os.access(program, os.X_OK) else "mode")
            self.settle("start-error", message="%s: %s (%s)" % (
                program, START_ERRORS[reason], error.strerror),
                start_error=START_ERRORS[reason])
            return False
        self.started = time.monotonic()
        threading.Thread(target=self.server.accept_all, daemon=True).start()
        threading.Thread(target=self.watch, args=(self.process,), daemon=True).start()
        return True

    # -- an event --

    def invoke(self, body: bytes) -> Optional[Outcome]:
        """Return what became of an event; None if another instance may have it, as this
        one has served and ended before it fetched it. Blocks for the limits."""
        function, session = self.function, self.session
        with self.changed:
            event = self.event = Event(new_id(), body)
            self.outcome, self.issued = None, 0.0
            if not function.max_instances:  # [any.queue.limit]
                self.settle("throttled")
            elif len(body) > function.event_bytes:  # [any.event.size]
                self.settle("request-too-large", size=str(len(body)),
                            limit=str(function.event_bytes))
            elif self.process or self.start():
                init_ends = self.started + function.init_timeout_s
                self.changed.wait_for(
                    lambda: self.is_over or session.state != "starting",
                    init_ends - time.monotonic())
                if session.state == "idle":  # [any.event.issue]
                    self.log(0, event.request_id)
                    self.issued = time.monotonic()
                    session.issue(event.request_id)
                    self.changed.notify_all()
                    self.changed.wait_for(lambda: self.is_over or self.outcome,
                                          function.timeout_s)
                if not self.outcome:
                    self.give_up(session.state)
            return self.outcome

    def give_up(self, state: str) -> None:
        """Settle an event that has no result: a limit has passed, or the end came."""
        if not self.is_over:
            self.session.stop()
            self.signal(signal.SIGKILL)  # [any.time.kill]
            self.settle(ON_TIME[state], message=NO_ANSWER[state] + " in time")
        elif not (state == "issued" and self.has_served):  # [any.event.requeue]
            self.settle(ON_EXIT[state], message="the bootstrap ended with status %d"
                        % self.status)

    def settle(self, kind: str, body: bytes = b"", message: str = "",
               **facts: str) -> None:
        """Give the event its one outcome [any.outcome.one]."""
        assert self.event is not None
        request_id, function = self.event.request_id, self.function
        duration_ms = (time.monotonic() - self.issued) * 1000 if self.issued else 0.0
        if self.issued:
            self.log(1, request_id, duration_ms)
        status, headers, shown = caller_answer(kind, body, dict(
            facts, request_id=request_id, timeout="%g" % function.timeout_s,
            init_timeout="%g" % function.init_timeout_s))
        self.outcome = Outcome(kind, shown, request_id, duration_ms,
                               tuple(self.violations), message or MESSAGES[kind],
                               status, headers)
        self.event, self.violations, self.has_served = None, [], True

    def log(self, number: int, request_id: str, duration_ms: float = 0.0) -> None:
        """Write the lines that frame the output of an invocation [any.log.frame]."""
        print(LOG_LINES[number].format(
            request_id=request_id, duration=round(duration_ms),
            memory_mb=self.function.memory_mb, peak_mb="0.00"),
            end="", file=sys.stderr, flush=True)

    # -- what the connections report --

    def receive(self, call: str, request_id: str,
                body: bytes) -> Tuple[str, Optional[Event]]:
        """Take a call; return the action of the states table, and the event for a poll.
        Blocks a poll until there is an event, or the instance has ended."""
        session, limit = self.session, self.function.result_bytes
        with self.changed:
            before = session.state
            row = session.receive(call, None, request_id, len(body) > limit)
            self.changed.notify_all()
            if row.action == "hold" and row.state == "starting":
                self.violate("scf.ready.before-next", "next before ready")
            while row.action == "hold" and not self.has_ended:
                session.parked.clear()  # a thread waits for each poll, and asks again
                self.changed.wait_for(lambda: self.has_ended or STATES[
                    session.state, call].action != "hold")
                row = session.receive(call)
            if row.action in RESULTS:
                self.settle(RESULTS[row.action], body, size=str(len(body)),
                            limit=str(limit))
            elif row.action in ("ignore", "refuse") and not session.is_owed(call):
                self.violate(row.rule, "%s in state %s" % (call, before))
            return row.action, self.event

    def violate(self, rule: str, seen: str) -> None:
        """Note that the bootstrap broke a rule; the first ones tell enough."""
        with self.changed:
            if len(self.violations) < VIOLATIONS_MOST:
                self.violations.append(Violation(rule, seen))

    # -- the end --

    def watch(self, process: subprocess.Popen[bytes]) -> None:
        """Wait for the end of the process, then clean up after it."""
        self.status = process.wait()
        while time.monotonic() < self.grace_ends and self.signal(0):
            time.sleep(GROUP_TICK_S)  # what a wrapper has started ends in order, too
        self.signal(signal.SIGKILL)  # [any.process.group]
        with self.changed:
            self.has_ended = True
            self.changed.notify_all()
        self.server.close()
        with self.changed:
            self.is_over = True
            self.changed.notify_all()

    def signal(self, number: int) -> bool:
        """Signal the whole process group; tell whether there is one."""
        try:
            if self.process is not None and not self.is_over:
                os.killpg(self.process.pid, number)
                return True
        except (ProcessLookupError, PermissionError):
            pass
        return False

    def stop(self) -> None:
        """End it in order [any.stop.order]. Blocks for `grace_s` and a bit at most."""
        with self.changed:
            self.session.stop()
            self.grace_ends = time.monotonic() + self.function.grace_s
            try:
                if self.signal(signal.SIGTERM):
                    self.changed.wait_for(lambda: self.is_over, self.function.grace_s)
            finally:
                if self.signal(signal.SIGKILL):
                    self.changed.wait_for(lambda: self.is_over, 2 * FAREWELL_S)


def invoke_all(function: Any, events: Iterable[Tuple[object, bytes]],
               ) -> Generator[Tuple[object, Outcome], None, None]:
    """Yield the outcome of each event under its id; one instance at a time."""
    instance = Instance(function)
    try:
        for identity, event in events:
            outcome = None
            while outcome is None:
                if instance.has_ended or instance.session.state == "stopping":
                    instance.stop()
                    instance = Instance(function)
                outcome = instance.invoke(event)
            yield identity, outcome
    finally:
        instance.stop()


# ---- command line ----

def parse(words: Sequence[str]) -> argparse.Namespace:
    """Return the function, and what is to be done. Exits with 2 if it cannot be."""
    parser = argparse.ArgumentParser(
        usage=argparse.SUPPRESS, description="FOLDER (--event TEXT | --jsonl) OPTIONS")
    add = parser.add_argument
    add("code", metavar="FOLDER", help="the folder with the file bootstrap")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--event", metavar="TEXT", help="invoke once, print the answer")
    task.add_argument("--jsonl", action="store_true", help="invoke for lines of stdin")
    add("--env", action="append", default=[], metavar="NAME=VALUE", help="a variable")
    add("--handler", default=DEFAULT_HANDLER, help="handler string (%(default)s)")
    add("--name", default="function", help="name of the function (%(default)s)")
    for name, limit in LIMITS.items():
        add(limit.option, dest=name, metavar="N", default=limit.default,
            type=float if name.endswith("_s") else int, help=name + " (%(default)s)")
    add("--max-instances", type=int, default=1, help="0: no event is accepted")
    for option in ("--parallel", "--queue", "--queue-timeout", "--idle"):
        add(option, help="for the conformance kit; without effect")
    parser.set_defaults(version="", region="local", credentials={})
    options = parser.parse_args(words)
    for name, limit in LIMITS.items():
        value = getattr(options, name)
        if not 0 <= value <= threading.TIMEOUT_MAX or value == 0 and not limit.zero:
            parser.error("%s is out of range" % limit.option)
    options.init_timeout_s = options.init_timeout_s or options.timeout_s
    if not os.path.isdir(options.code):
        parser.error("%s is not a folder" % options.code)
    options.code = os.path.realpath(options.code)
    options.env = dict(pair.partition("=")[::2] for pair in options.env)
    try:
        check_env(options.env)
    except ValueError as error:
        parser.error(str(error))
    return options


def read_events(lines: Iterable[bytes]) -> Iterator[Tuple[object, bytes]]:
    """Yield id and event of each line of the conformance kit."""
    for line in lines:
        try:
            document = json.loads(line)
            event = (base64.b64decode(document["event_base64"], validate=True)
                     if "event_base64" in document else document["event"].encode())
        except (ValueError, KeyError, TypeError, AttributeError):
            sys.exit("stdin: a line with id and event is expected, not %r" % line[:80])
        yield document.get("id"), event


def print_line(identity: object, outcome: Outcome) -> None:
    """Print an outcome as a line for the conformance kit."""
    document: Dict[str, object] = dict(outcome._asdict(), id=identity, violations=[
        one._asdict() for one in outcome.violations])
    try:
        document["body"] = outcome.body.decode()
    except UnicodeDecodeError:
        del document["body"]
        document["body_base64"] = base64.b64encode(outcome.body).decode()
    print(json.dumps(document), flush=True)


def print_answer(outcome: Outcome) -> None:
    """Print what the caller sees, and on stderr what was wrong."""
    sys.stdout.buffer.write(outcome.body + b"\n")
    for rule, seen in outcome.violations:
        print("violation: [%s] %s" % (rule, seen), file=sys.stderr)
    if outcome.kind != "ok":
        print("%s: %s" % (outcome.kind, outcome.message), file=sys.stderr)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run what the command line says; return the exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    options = parse(words[1:] if words[:1] == [PROTOCOL] else words)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    events = (read_events(sys.stdin.buffer) if options.jsonl
              else [(None, os.fsencode(options.event))])
    status = 0
    with contextlib.closing(invoke_all(options, events)) as outcomes:
        for identity, outcome in outcomes:
            if options.jsonl:
                print_line(identity, outcome)
            else:
                print_answer(outcome)
                status = int(outcome.kind != "ok")
    return status


if __name__ == "__main__":
    sys.exit(main())
