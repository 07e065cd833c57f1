#!/usr/bin/env python3
# fg_platform.py: the platform's side of Huawei FunctionGraph's custom runtime (MIT).
"""Play FunctionGraph for a bootstrap: start it, give it events, tell what came of each.

    python3 fg_platform.py ./my-function --event '{"key": "value"}'
    python3 fg_platform.py ./my-function --env A=1 --timeout 10 --event hello
    python3 fg_platform.py ./my-function --jsonl < events    # {"id": 1, "event": TEXT}

This is the whole protocol, to be read, copied and ported: tables; Session, which knows
what a call means in which state; RuntimeApi, which the bootstrap calls; Instance, its
process. [fg.request.blocks] and the like name the rules of SPEC.md that a line obeys.
Standard library only, CPython 3.8 or later, Linux.

It runs one event at a time. emulator.py has what is left out: any.instance.on-demand,
any.instance.idle, any.queue.limit, any.memory.limit, any.package.*,
any.start.code-folder, any.log.first, any.log.tail and any.log.frame (output goes to
stderr), any.caller.gone, any.stop.drain on a signal, and to refuse what no client
sends: any.http.malformed, any.http.framing, any.limits.head, any.limits.slow. The
conformance kit is told so: --without instances,memory,packages,hostile,slow-heads.
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
import socketserver
import subprocess
import sys
import threading
import time
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

__version__, SPEC_VERSION = "0.1.0", "0.1"
__all__ = ["Instance", "Outcome", "Session", "Violation"]

Facts = Dict[str, str]  # values for the templates of the tables
Pairs = Tuple[Tuple[str, str], ...]


# ---- model ----

# A rule of SPEC.md that the bootstrap broke, and what was seen.
Violation = NamedTuple("Violation", [("rule", str), ("seen", str)])

# A line of the states table: what is done, the next state, the rule.
Row = NamedTuple("Row", [("action", str), ("state", str), ("rule", str)])

# A header field or a variable; what has no value is left out.
Field = NamedTuple("Field", [("name", str), ("value", str)])

# What became of an event; status, headers and body are what its caller sees.
Outcome = NamedTuple("Outcome", [
    ("kind", str), ("body", bytes), ("request_id", str), ("message", str),
    ("violations", Sequence[Violation]), ("status", int), ("headers", Pairs)])


class Limit(NamedTuple):
    """A setting: its default and the option that sets it; `zero`: may be 0."""
    default: float
    option: str
    zero: bool = False


# ---- tables ----

PROTOCOL = "fg"
CODE_ROOT = "/opt/function/code"  # in the cloud [any.start.code-folder]

# (method, path) -> call; a path that ends in "/" is followed by the request id
ENDPOINTS: Dict[Tuple[str, str], str] = {
    ("GET", "/v1/runtime/invocation/request"): "request",
    ("POST", "/v1/runtime/invocation/response/"): "response",
    ("POST", "/v1/runtime/invocation/error/"): "error",
}

# (state, call) -> action, the next state, the rule. Actions: `accept`, answer with an
# empty 200; `hold`, answer when the state has a row that says otherwise; `deliver`,
# answer with the event; `finish`, `fail`, take the result, answer as `accept`;
# `overflow`, `refuse`, as REFUSALS say. Calls beside those of the
# bootstrap: `issue`, there is an event; `oversize`, a result over result_bytes;
# `stray`, one for another id.
STATES = {
    ("starting", "request"): Row("hold", "idle", "fg.request.first"),
    ("idle", "request"): Row("hold", "idle", "fg.request.blocks"),
    ("idle", "issue"): Row("accept", "issued", "any.event.issue"),
    ("issued", "request"): Row("deliver", "running", "fg.request.event"),
    ("running", "request"): Row("hold", "running", "fg.request.blocks"),
    ("running", "response"): Row("finish", "idle", "any.result.outcome"),
    ("running", "error"): Row("fail", "idle", "any.result.outcome"),
    ("running", "oversize"): Row("overflow", "idle", "any.result.size"),
    ("running", "stray"): Row("refuse", "running", "fg.result.unknown-id"),
    ("stopping", "request"): Row("hold", "stopping", "any.stop.drain"),
}
for _state in ("starting", "idle", "issued", "stopping"):  # nobody waits for a result
    for _call in ("response", "error", "oversize", "stray"):
        STATES[_state, _call] = Row("refuse", _state, "fg.result.unknown-id")

# action -> outcome; action -> status and message of the answer to it
RESULTS = {"finish": "ok", "fail": "function-error", "overflow": "response-too-large"}
REFUSALS = {"refuse": (404, "no outstanding invocation has this id"),
            "overflow": (413, "the result is too large")}
# state -> outcome when its limit is over, when the process ends; what was missing
ON_TIME = {"starting": "init-timeout", "issued": "not-fetched", "running": "timeout"}
ON_EXIT = {"starting": "init-error", "issued": "exit", "running": "exit"}
NO_ANSWER = {"starting": "the bootstrap did not ask for an event",
             "issued": "the bootstrap did not fetch the event",
             "running": "the bootstrap fetched the event and posted no result"}

HEADERS = (  # [fg.request.headers] [any.event.content-type]
    Field("X-Cff-Request-Id", "{request_id}"),
    Field("X-CFF-Invoke-Type", "sync"),
    Field("X-CFF-Access-Key", "{access_key_id}"),  # [any.credentials.role]
    Field("X-CFF-Secret-Key", "{access_key_secret}"),
    Field("X-CFF-Security-Token", "{security_token}"),
    Field("X-CFF-Auth-Token", "{auth_token}"),
    Field("Content-Type", "application/json"))

ENVIRONMENT = (  # [fg.env.api] [fg.env.table]
    Field("RUNTIME_API_ADDR", "{api_host}:{api_port}"),
    Field("RUNTIME_PROJECT_ID", "00000000000000000000000000000000"),
    Field("RUNTIME_FUNC_NAME", "{name}"),
    Field("RUNTIME_FUNC_VERSION", "{version}"),
    Field("RUNTIME_PACKAGE", "default"),
    Field("RUNTIME_HANDLER", "{handler}"),
    Field("RUNTIME_TIMEOUT", "{timeout_whole_s}"),
    Field("RUNTIME_USERDATA", "{user_data}"),
    Field("RUNTIME_CPU", "{cpu}"),
    Field("RUNTIME_MEMORY", "{memory_mb}"),
    Field("RUNTIME_CODE_ROOT", "{code_root}"),
    Field("RUNTIME_MAX_RESP_BODY_SIZE", "{result_bytes}"))

# All that is inherited, and what it is where the platform has none [any.env.inherited]
INHERITED = {"PATH": "/bin:/usr/bin", "HOME": "/", "TMPDIR": "/tmp", "LANG": "C.UTF-8"}
RESERVED_ENV = ("RUNTIME_",)  # [any.env.names]
MAX_ENV_BYTES = 4096  # [any.env.size]
DEFAULT_HANDLER, DEFAULT_VERSION = "index.handler", "latest"

MIB = 1048576
LIMITS = {
    "timeout_s": Limit(3, "--timeout"),
    "init_timeout_s": Limit(0, "--init-timeout", True),  # 0: as timeout_s
    "memory_mb": Limit(128, "--memory"),
    "event_bytes": Limit(6 * MIB, "--max-event"),
    "result_bytes": Limit(6 * MIB, "--max-result"),
    "grace_s": Limit(2, "--grace", True),
}
FAREWELL_S = 1.0  # how long what a bootstrap sent before its end is read

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
    "response-too-large": (200, "4008", "response body size {size} exceeds the limit "
                                        "of {result_bytes}"),
    "request-too-large": (413, "1201", "the size of request body is beyond "
                                       "maximum:{event_bytes}, body size:{size}"),
    "throttled": (429, "0429", "too many requests"),
    "cancelled": (200, "4208", "function invocation is canceled"),
}

# the beginning of a script without a line `#!`
SHELL_SCRIPT = re.compile(rb"(?!#!|\x7f|\xef\xbb\xbf)[^\x00\r]+")

# why a bootstrap could not be started -> the vendor's words for it
START_ERRORS = {"missing": "runtime bootstrap file is not found",
                "mode": "runtime bootstrap file is not executable",
                "": "runtime bootstrap file cannot be started"}

# Lines before and after the output of an event; for emulator.py [any.log.frame].
LOG_LINES = ("{utc} Start invoke request '{request_id}', version: {version}\n",
             "{utc} Finish invoke request '{request_id}', duration: {exact}ms, "
             "billing duration: {billed}ms, memory used: {peak_mb}MB, "
             "billing memory: {memory_mb}MB\n")


# ---- rules without I/O ----

class Session:
    """What a bootstrap may ask in which state, without socket, thread or clock; whoever
    uses it serialises the calls."""

    def __init__(self) -> None:
        self.state = "starting"
        self.request_id = ""    # of the event, while it has no result
        self._on_way = 0        # answers with the event that are being sent
        self._reached = False   # one of them has arrived
        self._unread = False    # but was perhaps not read

    def receive(self, call: str, request_id: str = "", oversize: bool = False) -> Row:
        """Take a call; return what is to be done. `hold`: ask again after a change."""
        if call in ("response", "error"):
            if not request_id or request_id != self.request_id:
                call = "stray"  # [fg.result.unknown-id]
            elif oversize:
                call = "oversize"
        row = STATES[self.state, call]
        if self._unread and (self.state, call) == ("running", "request"):
            row = STATES["issued", call]  # [any.poll.reset]
        self.state = row.state
        if row.action == "deliver":  # to one of those that ask [fg.request.blocks]
            self._on_way += 1
            self._unread = False
        elif row.action in RESULTS:
            self.request_id = ""
        return row

    def issue(self, request_id: str) -> None:
        """Hand the instance an event; it must be idle."""
        self.state = STATES[self.state, "issue"].state
        self.request_id = request_id
        self._on_way, self._reached, self._unread = 0, False, False

    def delivered(self, request_id: str, reached: bool) -> None:
        """Note whether an answer with the event arrived; if it reached nobody, the next
        poll gets the event [any.poll.dead]. The result may have come before this: then
        another event is due, or none, and nothing changes."""
        if self.state == "running" and request_id == self.request_id:
            self._on_way -= 1
            self._reached = self._reached or reached
            if not self._reached and not self._on_way:
                self.state = "issued"

    def reset(self, request_id: str) -> None:
        """The peer broke the connection that had brought the event, perhaps before it
        read it: the next poll gets it, too. A result counts all the same."""
        if self.state == "running" and request_id == self.request_id:
            self._unread = True

    def stop(self) -> None:
        """From here on nothing is delivered and no result counts."""
        self.state = "stopping"


def find_call(method: str, target: str) -> Tuple[str, str, int]:
    """Return (call, request id, 200), or ("", "", 404 or 405) [any.api.unknown]."""
    path = target.partition("?")[0]
    prefix, slash, last = path.rpartition("/")
    for known, request_id in ((path, ""), (prefix + slash, last)):
        if (method, known) in ENDPOINTS:
            return ENDPOINTS[method, known], request_id, 200
    is_known = any(known in (path, prefix + slash) for _, known in ENDPOINTS)
    return "", "", 405 if is_known else 404


def refusal(status: int, message: str) -> Dict[str, str]:
    """Return the document that answers a refused call [fg.api.error-document]."""
    return {"error_code": "FSS.0%d" % status, "error_msg": message}


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
         "auth_token": "", **function.credentials},
        handler=function.handler or DEFAULT_HANDLER, name=function.name,
        version=function.version or DEFAULT_VERSION,
        code_root=code_root, memory_mb=str(function.memory_mb),
        cpu=str(200 + 100 * function.memory_mb // 128),  # [fg.env.table]
        timeout_whole_s=str(max(1, math.ceil(function.timeout_s))),
        event_bytes=str(function.event_bytes),
        result_bytes=str(function.result_bytes), user_data=json.dumps(function.env),
        timeout="%g" % function.timeout_s, init_timeout="%g" % function.init_timeout_s)


def fill_in(table: Iterable[Field], facts: Facts) -> List[Tuple[str, str]]:
    """Return names and values, without those that have no value."""
    filled = [(name, template.format_map(facts)) for name, template in table]
    return [(name, value) for name, value in filled if value]


def new_id() -> str:
    """Return a request id in the vendor's form [any.id.form]."""
    return str(uuid.uuid4())


def caller_answer(kind: str, body: bytes, facts: Facts) -> Tuple[int, Pairs, bytes]:
    """Return (status, headers, body) that the cloud shows its caller. `facts` holds
    request_id and, for failures, what ERRORS names."""
    status, code, message = (200, "0", "") if kind == "ok" else ERRORS[kind]
    headers = (("X-Cff-Request-Id", facts["request_id"]), ("X-Func-Err-Code", code),
               ("X-Is-Func-Err", "false" if kind == "ok" else "true"))
    if kind not in ("ok", "function-error"):
        body = to_json({"error_code": "FSS." + code,
                        "error_msg": message.format_map(facts)})
    return status, headers, body


def to_json(document: object) -> bytes:
    """Write a document without blanks."""
    # a file name that is no UTF-8 holds half surrogate pairs; \udcff is JSON, too
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode(
        "utf-8", "backslashreplace")


# ---- the runtime API ----

class RuntimeApi(BaseHTTPRequestHandler):
    """One connection of the bootstrap to its `server`, the Instance below: call after
    call, in a thread of its own."""

    server: Instance
    protocol_version = "HTTP/1.1"   # it stays open after an answer [any.http.reuse]
    default_request_version = "HTTP/1.1"  # or the answer to a bad one has no head
    disable_nagle_algorithm = True  # or answers wait 40 ms for an acknowledgement
    brought = ""                    # id of the event that went this way

    def handle_one_request(self) -> None:
        """Read a call and answer it, whatever its method."""
        self.close_connection = True
        try:
            if self.read_head():
                try:
                    body = self.read_body()
                except ValueError as error:
                    self.send_error(400, str(error))
                else:
                    self.answer_call(body)
        except OSError:  # the peer has gone, perhaps before it read the event
            with self.server.changed:  # [any.poll.reset]
                self.server.session.reset(self.brought)
                self.server.changed.notify_all()

    def read_head(self) -> bool:
        """Read a head and let http.server parse it, which answers Expect, too
        [any.http.continue]. It would take half a head for a whole one."""
        lines = [self.rfile.readline(65537)]
        while lines[-1].strip():
            lines.append(self.rfile.readline(65537))
        self.raw_requestline = lines[0]
        connection, self.rfile = self.rfile, io.BytesIO(b"".join(lines[1:]))
        is_call = lines[-1] != b"" and self.parse_request()  # [any.http.no-effect]
        self.rfile = connection
        return is_call

    def read_body(self) -> bytes:
        """Return the whole body [any.http.body]. Raises ValueError if it is none."""
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            size = int(self.headers.get("Content-Length", "0"))
            body = self.rfile.read(size)
            if len(body) != size:
                raise ValueError("the body breaks off")
            return body
        parts, size = [], 1
        while size:
            size = int(self.rfile.readline(65537).partition(b";")[0], 16)
            parts.append(self.rfile.read(size))
            while self.rfile.readline(65537).strip():
                pass  # a trailer, up to the blank line that ends a chunk, too
        return b"".join(parts)

    def answer_call(self, body: bytes) -> None:
        """Let the instance judge a call; answer as the states table says."""
        call, request_id, status = find_call(self.command, self.path)
        if not call:
            seen = "%s %s" % (self.command, self.path[:80])
            self.server.violate("any.api.unknown", seen)
            self.refuse(status, "no such call: " + seen)
            return
        action, request_id, event = self.server.receive(call, request_id, body)
        if action == "hold":
            self.close_connection = True  # the instance has ended
        elif action == "deliver":
            self.deliver(request_id, event)
        elif action in REFUSALS:
            self.refuse(*REFUSALS[action])
        else:
            self.answer(200)  # [any.http.empty]

    def deliver(self, request_id: str, event: bytes) -> None:
        """Answer with the event, unless the peer has hung up [any.poll.dead]."""
        reached = False
        try:
            speaks = select.select([self.connection], [], [], 0)[0]
            if not speaks or self.connection.recv(1, socket.MSG_PEEK):
                self.answer(200, event, fill_in(HEADERS, dict(
                    self.server.facts, request_id=request_id)))
                reached, self.brought = True, request_id
        finally:
            with self.server.changed:  # another poll may get it, if it reached nobody
                self.server.session.delivered(request_id, reached)
                self.server.changed.notify_all()

    def answer(self, status: int, body: bytes = b"",
               fields: Iterable[Tuple[str, str]] = ()) -> None:
        """Send an answer. Raises OSError when nobody takes it."""
        self.send_response_only(status)
        for name, value in (*fields, ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    def refuse(self, status: int, message: str) -> None:
        """Answer with the protocol's document for a refused call."""
        self.answer(status, to_json(refusal(status, message)))

    def send_error(self, code: int, message: Any = None, explain: Any = None) -> None:
        """Refuse what http.server cannot parse, and hang up [any.http.no-effect]."""
        self.close_connection = True
        self.server.violate("any.http.no-effect", str(message))
        self.refuse(code, str(message))


# ---- one running bootstrap ----

class Instance(ThreadingHTTPServer):
    """A bootstrap's process, its runtime API [any.security.instance], and its event.
    `function` is what `parse` returns. Threads meet at `changed`: a connection reports
    what the bootstrap calls, `serve` and `watch` that it has ended, and `invoke` waits
    for that, with the limit as its timeout."""

    request_queue_size = 128
    server_bind = socketserver.TCPServer.server_bind  # HTTPServer's asks for a name

    def __init__(self, function: Any) -> None:
        super().__init__(("127.0.0.1", 0), RuntimeApi)  # [any.security.loopback]
        self.function = function
        self.facts = dict(describe(function, function.code), api_host="127.0.0.1",
                          api_port=str(self.server_address[1]))
        self.process: subprocess.Popen[bytes]  # the first event starts it
        self.serving = threading.Thread(target=self.serve, daemon=True)
        self.connections: List[threading.Thread] = []
        self.started = self.grace_ends = 0.0  # on the monotonic clock
        self.changed = threading.Condition()  # guards what follows; it is re-entrant
        self.session = Session()              # `stopping`: it gets no more events
        self.request_id, self.event = "", b""  # no id: no event, or it has its outcome
        self.outcome: Optional[Outcome] = None
        self.violations: Dict[Violation, None] = {}  # each once, in this order
        self.has_served = False               # it has given a result
        self.has_ended = False                # the process, so that no poll is held

    def start(self) -> bool:
        """Start the file `bootstrap` [any.start.bootstrap]; tell whether it runs."""
        program = os.path.join(self.function.code, "bootstrap")
        env = {name: os.environ.get(name, value) for name, value in INHERITED.items()}
        env.update(self.function.env)
        env.update(fill_in(ENVIRONMENT, self.facts))
        words = [program]
        try:
            with open(program, "rb") as file:
                if SHELL_SCRIPT.fullmatch(file.read(4096)):  # [fg.start.shell]
                    words.insert(0, "/bin/sh")
            self.process = subprocess.Popen(
                words, cwd=self.function.code, env=env, stdin=subprocess.DEVNULL,
                stdout=2, stderr=2, start_new_session=True)
        except OSError as error:  # [any.start.executable]
            self.facts["start_error"] = START_ERRORS[
                "missing" if not os.path.isfile(program) else
                "" if os.access(program, os.X_OK) else "mode"]
            self.settle("start-error", "%s: %s (%s)" % (
                program, self.facts["start_error"], error.strerror))
            return False
        self.started = time.monotonic()
        threading.Thread(target=self.watch, daemon=True).start()
        self.serving.start()
        return True

    def invoke(self, event: bytes) -> Optional[Outcome]:
        """Return what became of an event; None if this instance has ended, or was ended
        by a limit, and another one may have it. Blocks for the limits."""
        function, session = self.function, self.session
        with self.changed:
            self.request_id, self.event, self.outcome = new_id(), event, None
            if len(event) > function.event_bytes:  # [any.event.size]
                self.settle("request-too-large", "the event is over --max-event", event)
            elif self.started or self.start():
                self.changed.wait_for(
                    lambda: session.state != "starting",
                    self.started + function.init_timeout_s - time.monotonic())
                if session.state == "idle":  # [any.event.issue]
                    session.issue(self.request_id)
                    self.changed.notify_all()
                    self.changed.wait_for(
                        lambda: self.outcome or session.state == "stopping",
                        function.timeout_s)
                if not self.outcome and session.state != "stopping":
                    state = session.state
                    session.stop()
                    self.signal(signal.SIGKILL)  # [any.time.kill]
                    self.settle(ON_TIME[state], NO_ANSWER[state] + " in time")
            return self.outcome

    def settle(self, kind: str, message: str, body: bytes = b"") -> None:
        """Give the event its one outcome [any.outcome.one]."""
        facts = dict(self.facts, request_id=self.request_id, size=str(len(body)))
        status, headers, shown = caller_answer(kind, body, facts)
        self.outcome = Outcome(kind, shown, self.request_id, message,
                               list(self.violations), status, headers)
        self.request_id, self.violations = "", {}
        self.has_served = self.has_served or kind in RESULTS.values()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a connection a thread, one that can be waited for."""
        thread = threading.Thread(target=self.process_request_thread, daemon=True,
                                  args=(request, client_address))
        thread.start()
        self.connections = [one for one in self.connections if one.is_alive()]
        self.connections.append(thread)

    def receive(self, call: str, request_id: str,
                body: bytes) -> Tuple[str, str, bytes]:
        """Take a call; return the action of the states table, and id and event for a
        poll, which blocks until there is an event or the instance has ended."""
        with self.changed:
            before = self.session.state
            row = self.session.receive(call, request_id,
                                       len(body) > self.function.result_bytes)
            self.changed.notify_all()
            while row.action == "hold" and not self.has_ended:
                self.changed.wait()
                row = self.session.receive(call)
            if row.action in RESULTS:
                self.settle(RESULTS[row.action], "its %s has %d bytes"
                            % (call, len(body)), body)
            elif row.action == "refuse" and before != "stopping":
                self.violate(row.rule, "%s in state %s" % (call, before))
            return row.action, self.request_id, self.event

    def violate(self, rule: str, seen: str) -> None:
        """Note that the bootstrap broke a rule."""
        with self.changed:  # some callers have it already
            self.violations[Violation(rule, seen)] = None

    def watch(self) -> None:
        """Wait for the end of the process, and leave nothing of it."""
        self.process.wait()
        while time.monotonic() < self.grace_ends and self.signal(0):
            time.sleep(0.01)  # what a wrapper has started ends in order, too
        self.signal(signal.SIGKILL)  # [any.process.group]
        with self.changed:
            self.has_ended = True
            self.changed.notify_all()
        socket.create_connection(("127.0.0.1", self.server_address[1])).close()

    def serve(self) -> None:
        """Serve until the process has ended, and all that it sent is read: it may be in
        a connection that waits to be accepted [any.result.first]. These are accepted in
        the order in which they came; the last is that of `watch`, which wakes us."""
        while not self.has_ended or select.select([self], [], [], 0)[0]:
            self.handle_request()  # of the base class: one connection
        for thread in self.connections:
            thread.join(FAREWELL_S)     # each
        with self.changed:
            state = self.session.state
            self.session.stop()
            # [any.event.requeue] what it did not fetch is for the next instance, unless
            # it is a new one: it would be started for ever
            if self.request_id and (state == "running" or not self.has_served):
                self.settle(ON_EXIT.get(state, "exit"), "the bootstrap ended with "
                            "status %d" % self.process.returncode)
            self.changed.notify_all()

    def signal(self, number: int) -> bool:
        """Signal the whole process group; tell whether there is one."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if self.started and not self.has_ended:
                os.killpg(self.process.pid, number)
                return True
        return False

    def stop(self) -> None:
        """End it in order [any.stop.order]. Blocks for `grace_s` and a bit at most."""
        with self.changed:
            self.session.stop()
        if self.started:
            self.grace_ends = time.monotonic() + self.function.grace_s
            try:
                self.signal(signal.SIGTERM)
                self.serving.join(self.function.grace_s)
            finally:
                self.signal(signal.SIGKILL)
                self.serving.join(2 * FAREWELL_S)
        self.server_close()


# ---- command line ----

def parse(words: Sequence[str]) -> argparse.Namespace:
    """Return the function, and what is to be done. Exits with 2 if it cannot be."""
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS)
    parser.add_argument("code", metavar="FOLDER", help="with the file bootstrap")
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--event", metavar="TEXT", help="invoke once, print the answer")
    task.add_argument("--jsonl", action="store_true", help="invoke for lines of stdin")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--handler", default=DEFAULT_HANDLER)
    parser.add_argument("--name", default="function")
    for name, limit in LIMITS.items():
        parser.add_argument(limit.option, dest=name, default=limit.default, metavar="N",
                            type=float if name.endswith("_s") else int)
    parser.add_argument("--max-instances", "--parallel", "--queue", "--queue-timeout",
                        "--idle", metavar="N", help="for the kit; without effect")
    parser.set_defaults(version="", region="local", credentials={})
    options = parser.parse_args(words)
    options.env = dict(pair.partition("=")[::2] for pair in options.env)
    try:
        check_env(options.env)
        for name, limit in LIMITS.items():
            value = getattr(options, name)
            if not 0 <= value <= threading.TIMEOUT_MAX or value == 0 and not limit.zero:
                raise ValueError("%s is out of range" % limit.option)
        if not os.path.isdir(options.code):
            raise ValueError("%s is not a folder" % options.code)
    except ValueError as error:
        parser.error(str(error))
    options.code = os.path.realpath(options.code)
    options.init_timeout_s = options.init_timeout_s or options.timeout_s
    return options


def read_events(lines: Iterable[bytes]) -> Iterable[Tuple[object, bytes]]:
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
              else [(None, os.fsencode(options.event))])
    status, instance = 0, Instance(options)
    try:
        for identity, event in events:
            outcome = instance.invoke(event)
            while outcome is None:  # the instance has ended
                instance.stop()
                instance = Instance(options)
                outcome = instance.invoke(event)
            if options.jsonl:
                print_line(identity, outcome)
            else:
                print_answer(outcome)
                status = int(outcome.kind != "ok")
    finally:
        instance.stop()
    return status


if __name__ == "__main__":
    sys.exit(main())
