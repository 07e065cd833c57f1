#!/usr/bin/env python3
# emulator.py: run a custom-runtime bootstrap as its cloud would. MIT licence.
"""Run a custom-runtime bootstrap of Alibaba FC, Tencent SCF or Huawei FunctionGraph.

    python3 emulator.py scf ./my-function --event '{"key": "value"}'
    python3 emulator.py fg ./my-function --serve 8080      # then POST /-/invoke
    python3 emulator.py fc ./my-function --event @event.json -- python3 server.py

It is a library as well; a unit test can start a platform:

    with Platform("scf", code="examples/bash/scf", timeout_s=3) as platform:
        outcome = platform.invoke(b'{"key": "value"}')
        assert outcome.kind == "ok" and not outcome.violations

The rules stand in scf_platform.py, fg_platform.py and fc_platform.py, which lie beside
this file: read one of those to learn its protocol. This file is the tool on top of
them: many instances, a queue, callers, limits, packages, memory, logs, diagnosis and
the command line. It shares their tables and sessions and brings I/O of its own, made
for hostile input and for speed.

It does not isolate the bootstrap, bill, or imitate consoles and accounts, nor does it
outlive a machine that has no threads, files or memory left; while nobody reads its own
output callers may wait, limits strike all the same. Standard library only, CPython 3.8
or later, Linux.
"""
from __future__ import annotations

import argparse
import atexit
import base64
import collections
import contextlib
import errno
import functools
import http.client
import io
import itertools
import json
import math
import os
import re
import select
import signal
import socket
import socketserver
import stat
import struct
import subprocess
import sys
import threading
import time
import types
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import (TYPE_CHECKING, Any, Callable, Dict, Iterable, Iterator, List,
                    NamedTuple, NoReturn, Optional, Sequence, Set, Tuple, Type, Union)

if TYPE_CHECKING or not __package__:
    import fc_platform
    import fg_platform
    import scf_platform
    from scf_platform import Facts, Limit, Pairs, Violation
else:  # installed
    from . import fc_platform, fg_platform, scf_platform
    from .scf_platform import Facts, Limit, Pairs, Violation

__version__ = "0.1.0"
SPEC_VERSION = "0.1"
__all__ = ["FrontDoor", "Function", "HttpRequest", "Outcome", "Platform", "Violation"]


# ---- model ----

class Outcome(NamedTuple):
    """What became of one invocation.

    `kind` is one of KINDS. `body` is what the cloud shows its caller: the result, or
    the vendor's error document. `message` says the same to a person. `status` and
    `headers` are those of the vendor's answer. `log` is the last 4 KB of output.
    `peak_mb` is the most memory that its instance has been seen to hold, 0 if unknown.
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
    peak_mb: float = 0.0


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
    """A body exceeds its limit; it has `size` bytes, or more."""

    def __init__(self, size: int, limit: int) -> None:
        super().__init__("%d bytes exceed the limit of %d" % (size, limit))
        self.size = size


class LimitReached(Exception):
    """The time of an exchange with a function's server is up."""


class CallerGone(Exception):
    """Nobody waits for the answer: the caller has hung up, or has his outcome."""


# ---- tables ----

# The three files that hold the rules, by protocol.
RULES: Dict[str, Any] = {"fc": fc_platform, "scf": scf_platform, "fg": fg_platform}
PROTOCOLS = tuple(RULES)
LONG_NAMES = {"functiongraph": "fg"}

KINDS = ("ok", "function-error", "timeout", "not-fetched", "init-timeout", "init-error",
         "start-error", "exit", "bad-response", "response-too-large",
         "request-too-large", "out-of-memory", "throttled", "cancelled")

# The limits of this file alone, then those of each protocol.
COMMON_LIMITS = {
    "max_instances": Limit(8, "--max-instances", True),  # 0: disabled
    "queue": Limit(1000, "--queue", True),
    "queue_timeout_s": Limit(60, "--queue-timeout"),
    "idle_s": Limit(60, "--idle"),
}
LIMITS: Dict[str, Dict[str, Limit]] = {
    protocol: dict(COMMON_LIMITS, **rules.LIMITS) for protocol, rules in RULES.items()}
MAX_LIMIT_S = 1000000  # of every time limit: no system call can wait 25 days

CREDENTIALS = ("access_key_id", "access_key_secret", "security_token", "auth_token")
# The settings that are no limits, and their defaults; the latter of fc alone.
WORDS: Dict[str, Any] = {"handler": "", "env": {}, "name": "function", "version": "",
                         "region": "local", "port": fc_platform.DEFAULT_PORT,
                         "credentials": {}, "command": ()}
FC_WORDS: Dict[str, Any] = {"initializer": False, "pre_freeze": False,
                            "pre_stop": False, "freeze": True}

MIB = 1048576            # [any.event.size]
# Limits of every server of ours [any.limits.head] [any.limits.slow]
HEAD_BYTES = 65536
HEAD_FIELDS = 100
HEAD_TIMEOUT_S = 10.0
SILENCE_S = 30.0         # within a body, either way
KEEP_ALIVE_S = 75.0      # a caller's connection that asks nothing
MAX_CONNECTIONS = 2048   # per server; each costs a thread
ACCEPT_PAUSE_S = 0.1     # while there are too many open files
CHUNK_BYTES = 262144     # of a body passed on
SKIP_BYTES = 64 * MIB    # of an oversized body read, to get an answer through
LINGER_S = 2.0           # for a peer who sends on after his answer
LAST_WORDS_S = 1.0       # for what a bootstrap sent before its end
LOG_TAIL_BYTES = 4096    # [any.log.tail]
VIOLATIONS = 10000       # kept of all; the first ones
OWN_VIOLATIONS = 100     # kept of one invocation, or before the first one
SEEN_CHARACTERS = 200    # kept of what was seen
SHOWN_FIELDS = ("request_id", "time_limit_in_ms", "x-cff-request-id", "x-fc-request-id",
                "x-fc-control-path", "x-fc-status", "connection")   # in a trace
TOLD = 5                 # breaches of one rule that are shown; the others are counted
ZIP_BYTES = 1536 * MIB   # unpacked [any.package.zip]
ZIP_ENTRIES = 50000
MEMORY_TICK_S = 0.25     # while something runs [any.memory.limit]
GROUP_TICK_S = 0.01      # between two looks at what a stopped bootstrap has forked
MAX_ISSUES = 3           # of an event that no poll has fetched
PROGRAM_BYTES = 64 * MIB  # looked through after a failed start

# What a bootstrap for each protocol has to read.
MARKS = {"fc": b"FC_SERVER_PORT", "scf": b"SCF_RUNTIME_API", "fg": b"RUNTIME_API_ADDR"}


# ---- the function's configuration ----

TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
TARGET = re.compile(r"[\x21-\x7e\x80-\xff]+")
CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
NUL = re.compile(r"\x00")
IDS = re.compile(r"[0-9a-f-]{8,}|[0-9]+")


def setting_names(protocol: str) -> List[str]:
    """Return the settings that a function of this protocol has."""
    return sorted([*WORDS, *LIMITS[protocol], *(FC_WORDS if protocol == "fc" else ())])


class Function(types.SimpleNamespace):
    """The configuration of a function; `settings` are those of WORDS and LIMITS.

    Raises ValueError that names the setting, when one is unknown or out of range.
    """

    env: Dict[str, str]
    max_instances: int
    init_timeout_s: float

    def __init__(self, protocol: str, **settings: Any) -> None:
        if protocol not in PROTOCOLS:
            raise ValueError("protocol %r is not one of %s"
                             % (protocol, ", ".join(PROTOCOLS)))
        known = setting_names(protocol)
        for name in settings:
            if name not in known:
                raise ValueError("%s is not a setting of %s; known: %s"
                                 % (name, protocol, ", ".join(known)))
        words = {**WORDS, **FC_WORDS, "concurrency": 1, "init_timeout_s": 0, **settings}
        super().__init__(**words, protocol=protocol)
        for name, limit in LIMITS[protocol].items():
            setattr(self, name, check_limit(name, limit, settings))
        self._check_words()
        if protocol == "fc":
            self.init_timeout_s = self.initializer_timeout_s
            if self.port:  # [any.instance.on-demand]
                self.max_instances = min(1, self.max_instances)
        # [any.init.timeout]
        self.init_timeout_s = self.init_timeout_s or self.timeout_s

    def _check_words(self) -> None:
        self.env = dict(self.env)
        for name, value in self.env.items():
            check_text("the name of environment variable %r" % name, name)
            check_text("environment variable " + name, value)
        RULES[self.protocol].check_env(self.env)
        for name, text in dict(self.credentials, handler=self.handler, name=self.name,
                               version=self.version, region=self.region).items():
            check_text(name, text, CONTROL, "control")
        if isinstance(self.command, (str, bytes)):
            raise ValueError("command must be a list of words, not one text: %r"
                             % (self.command,))
        for word in self.command:
            check_text("each word of command", word)
        if type(self.port) is not int or not 0 <= self.port <= 65535:
            raise ValueError("port (--port) must be 0 to 65535, not %r" % (self.port,))
        if self.concurrency > fc_platform.MAX_CONCURRENCY:  # [fc.concurrency.limit]
            raise ValueError("concurrency must be 1 to %d, not %d" % (
                fc_platform.MAX_CONCURRENCY, self.concurrency))


def check_limit(name: str, limit: Limit, settings: Dict[str, Any]) -> float:
    """Return a setting of LIMITS. Raises ValueError that names its option too."""
    value: object = settings.get(name, limit.default)
    known, is_time = "%s (%s)" % (name, limit.option), name.endswith("_s")
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("%s must be a number, not %r" % (known, value))
    most = MAX_LIMIT_S if is_time else sys.maxsize
    if not 0 <= value <= most or value == 0 and not limit.zero:
        raise ValueError("%s must be %s%s, not %s" % (
            known, "0 or more" if limit.zero else "more than 0",
            " and at most %d" % most if is_time else "", value))
    if not is_time and int(value) != value:
        raise ValueError("%s must be a whole number, not %g" % (known, value))
    return value if is_time else int(value)


def check_text(name: str, text: object, bad: "re.Pattern[str]" = NUL,
               kind: str = "NUL") -> None:
    """Raise ValueError unless it is a text that a process can be given."""
    try:
        if isinstance(text, str) and not bad.search(text):
            os.fsencode(text)  # half a surrogate pair has no bytes
            return
    except UnicodeEncodeError:
        pass
    raise ValueError("%s must be a text in UTF-8, without %s characters" % (name, kind))


def check_request(request: HttpRequest) -> None:
    """Raise ValueError unless the request can be written as HTTP."""
    if not TOKEN.fullmatch(request.method):
        raise ValueError("method %r is no token" % request.method[:80])
    if request.target[:1] != "/" or not TARGET.fullmatch(request.target):
        raise ValueError("path %r must begin with / and hold no blank or control "
                         "character" % request.target[:80])
    for name, value in request.headers:
        if not TOKEN.fullmatch(name) or CONTROL.search(value):
            raise ValueError("header field %r is not valid" % name[:80])


# ---- HTTP: one strict parser for both directions ----

class Head(NamedTuple):
    """The head of a request or an answer.

    `words` are method, target, version; or version, status, reason. `fields` keeps
    order, case and duplicates, `table` goes by lower-case name. `length` of the body:
    -1 = chunked, None = none announced. `keep_alive`: another message may follow.
    `is_request`: its first line is that of a request.
    """

    words: Tuple[str, str, str]
    fields: Pairs
    table: Dict[str, str]
    length: Optional[int]
    keep_alive: bool
    is_request: bool = False

    def get(self, name: str) -> str:
        """Return the value of a field, named in lower case; "" when it is absent."""
        return self.table.get(name, "")


# The parser of http.server takes folded fields, blanks before a colon and doubtful
# lengths, on which two readers may disagree; and it takes three times as long. This one
# refuses them [any.http.malformed]. Peers repeat their heads to the letter, so short
# ones are parsed only once.
def parse_head(data: bytes) -> Head:
    """Parse a head without its empty line. Raises BadMessage, naming the bytes."""
    return parse_short(data) if len(data) < 1024 else parse_any(data)


def parse_any(data: bytes) -> Head:
    start, *lines = data.decode("latin-1").split("\r\n")
    words = [*start.split(" ", 2), ""]
    if len(words) < 3 or CONTROL.search(start):
        raise BadMessage("any.http.malformed", repr(start[:80]))
    fields: List[Tuple[str, str]] = []
    table: Dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        value = value.strip(" \t")
        if not colon or not TOKEN.fullmatch(name) or CONTROL.search(value):
            raise BadMessage("any.http.malformed", repr(line[:80]))
        key = name.lower()
        if key in table and key in ("content-length", "transfer-encoding"):
            raise BadMessage("any.http.framing", "two %s fields" % name)
        table[key] = table[key] + ", " + value if key in table else value
        fields.append((name, value))
    connection = table.get("connection", "").lower()
    return Head((words[0], words[1], words[2]), tuple(fields), table,
                body_length(table), "keep-alive" in connection if "HTTP/1.0" in words
                else "close" not in connection,
                words[2] in ("HTTP/1.1", "HTTP/1.0") and bool(
                    TOKEN.fullmatch(words[0]) and TARGET.fullmatch(words[1])))


parse_short = functools.lru_cache(256)(parse_any)


def body_length(table: Dict[str, str]) -> Optional[int]:
    """Return the announced size of a body, as Head has it. Raises BadMessage unless
    the body's end is beyond doubt [any.http.framing]."""
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


def read_head(reader: "io.BufferedReader[Any]",
              limit_reads: Optional[Callable[..., None]] = None
              ) -> Tuple[Optional[Head], int]:
    """Read a head; return it and how much of the body came with it; (None, 0) when the
    stream ends before it. Blocks until it begins; then, where `limit_reads` can set the
    time of the next read, HEAD_TIMEOUT_S. Raises BadMessage, or OSError when the
    connection breaks."""
    taken, deadline = b"", math.inf
    while True:
        more = reader.peek(1)
        if not more and not taken.strip():
            return None, 0
        if taken and time.monotonic() > deadline:
            raise BadMessage("any.limits.slow", "a head takes too long", 408)
        if not more:
            raise BadMessage("any.http.no-effect", "end of stream after %r"
                             % taken[-40:])
        whole = taken + more
        begin = 0 if whole[0] > 13 else len(whole) - len(whole.lstrip(b"\r\n"))
        end = whole.find(b"\r\n\r\n", begin)
        reader.read(len(more) if end < 0 else end + 4 - len(taken))
        if end - begin > HEAD_BYTES or end < 0 and len(whole) > HEAD_BYTES:
            raise BadMessage("any.limits.head", "a head over 64 KiB", 431)
        if end >= 0:
            if taken and limit_reads is not None:
                limit_reads()
            return parse_head(whole[begin:end]), len(whole) - end - 4
        taken = whole
        if limit_reads is not None:
            deadline = min(deadline, time.monotonic() + HEAD_TIMEOUT_S)
            limit_reads(max(0.001, deadline - time.monotonic()))


def read_parts(reader: "io.BufferedReader[Any]", length: Optional[int],
               limit: int = sys.maxsize) -> Iterator[bytes]:
    """Yield a body as it comes. `length` as of Head; without one it ends with the
    stream. Raises BadMessage when it ends early [any.http.no-effect], BodyTooLarge
    when it passes the limit."""
    size = 0
    for part in (iter(lambda: reader.read1(CHUNK_BYTES), b"") if length is None
                 else read_chunked(reader) if length == -1
                 else read_counted(reader, length)):
        size += len(part)
        if size > limit:
            raise BodyTooLarge(size, limit)
        yield part


def read_counted(reader: "io.BufferedReader[Any]", length: int) -> Iterator[bytes]:
    """Yield a body whose size is known."""
    left = length
    while left:
        part = reader.read1(min(left, CHUNK_BYTES))
        if not part:
            raise BadMessage("any.http.no-effect", "the body ended, or paused, after "
                             "%d of %d bytes" % (length - left, length))
        left -= len(part)
        yield part


def read_chunked(reader: "io.BufferedReader[Any]") -> Iterator[bytes]:
    """Yield a body that comes in chunks; read its trailers away."""
    size = -1
    while size:
        text = read_line(reader).partition(b";")[0].strip(b" \t")
        if not re.fullmatch(rb"[0-9A-Fa-f]{1,15}", text):
            raise BadMessage("any.http.framing", "chunk size %r" % text[:40])
        size = int(text, 16)
        yield from read_counted(reader, size)
        if size and read_line(reader):
            raise BadMessage("any.http.framing", "no CRLF after a chunk")
    for _ in range(HEAD_FIELDS):
        if not read_line(reader):
            return
    raise BadMessage("any.limits.head", "too many trailers")


def read_line(reader: "io.BufferedReader[Any]") -> bytes:
    """Return a line of a chunked body."""
    line = reader.readline(4096)
    if not line.endswith(b"\r\n"):
        raise BadMessage("any.http.framing" if line[4095:] or line.endswith(b"\n") else
                         "any.http.no-effect", "no line end after %r" % line[:40])
    return line[:-2]


def format_head(start: str, fields: Iterable[Tuple[str, str]]) -> bytes:
    """Write a head with its empty line. Raises ValueError for CR, LF or NUL."""
    lines = [start]
    for name, value in fields:
        if CONTROL.search(value) or not TOKEN.fullmatch(name):
            raise ValueError("header field %s holds a control character" % name)
        lines.append("%s: %s" % (name, value))
    return "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")


def status_line(status: int) -> str:
    """Write the first line of an answer."""
    return "HTTP/1.1 %d %s" % (status, http.client.responses.get(status, "Unknown"))


def json_answer(status: int, document: object) -> Tuple[bytes, bytes]:
    """Return (head, body) of an answer in JSON."""
    body = scf_platform.to_json(document)
    return format_head(status_line(status), (
        ("Content-Type", "application/json"), ("Content-Length", str(len(body))))), body


EMPTY_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"  # [any.http.empty]


# ---- errors of our own ----

OUR_ERROR = "an error of the platform itself"
OPEN: Set["Platform"] = set()   # those that an error of ours may have left in a muddle


def fault() -> None:
    """Show an error of ours that is being handled, as if it had ended its thread. Let
    nobody wait for what it has left undone: whatever runs is cancelled, and the exit
    status tells."""
    threading.excepthook(threading.ExceptHookArgs(
        (*sys.exc_info(), threading.current_thread())))
    for platform in list(OPEN):
        platform.faults += 1
        threading.Thread(target=platform.give_up, daemon=True).start()


def attempt(call: Callable[..., object], *arguments: Any) -> None:
    """Call it; its errors are ours."""
    try:
        call(*arguments)
    except Exception:
        fault()
        peer = getattr(call, "__self__", None)
        if isinstance(peer, Handler):
            peer.fail()


def start_thread(call: Callable[..., object], *arguments: Any) -> threading.Thread:
    """Call it in a thread of its own; return the thread."""
    thread = threading.Thread(target=attempt, args=(call, *arguments), daemon=True)
    thread.start()
    return thread


# ---- HTTP: servers ----

DONTWAIT = int(socket.MSG_DONTWAIT)     # as its name it costs microseconds
PEEK = int(socket.MSG_PEEK) | DONTWAIT


def shut(connection: socket.socket, how: int = socket.SHUT_RDWR) -> None:
    """Wake whoever reads the connection, or writes to it; its owner closes it."""
    with contextlib.suppress(OSError):  # the peer was faster
        connection.shutdown(how)


def hung_up(connection: socket.socket) -> bool:
    """Tell, without blocking, whether the peer will say nothing more."""
    try:
        return not connection.recv(1, PEEK)
    except BlockingIOError:
        return False
    except OSError:
        return True


class Handler(BaseHTTPRequestHandler):
    """A connection to a server of ours. Its own thread reads it; any thread may answer.

    Subclasses implement respond(): it answers, or calls defer() and lets somebody else
    answer. Then this thread goes on reading, so it learns at once when the peer hangs
    up, and asks withdraw() whether anybody will still answer.
    """

    server: "Server"
    disable_nagle_algorithm = True
    rfile: "io.BufferedReader[Any]"
    head = Head(("", "", ""), (), {}, None, False)  # of the request that is served
    command = ""            # its method
    ahead = 0               # bytes of its body that came with the head
    closing = False         # it is the last one
    unread = False          # so far, some of its body: what follows is no request
    idle_limit_s = 0.0      # between requests; 0 = for ever

    def setup(self) -> None:
        super().setup()
        self.app: Any = self.server.app
        self._answered = threading.Lock()   # held while an answer is deferred
        self.limit_writes(SILENCE_S)
        if self.idle_limit_s:
            self.limit_reads()

    def limit_reads(self, limit_s: float = -1, option: int = socket.SO_RCVTIMEO
                    ) -> None:
        """Let each read come back empty after so long; as between requests, if that is
        not said; 0 = never. By the kernel: a socket of Python's with a timeout costs a
        system call more each time."""
        limit_s = limit_s if limit_s >= 0 else self.idle_limit_s
        self.connection.setsockopt(socket.SOL_SOCKET, option, struct.pack(
            "ll", int(limit_s), int(limit_s % 1 * 1e6)))

    def limit_writes(self, limit_s: float) -> None:
        self.limit_reads(limit_s, socket.SO_SNDTIMEO)

    # -- for subclasses --

    def respond(self) -> None:
        """Answer the request whose head was read, or defer."""
        raise NotImplementedError

    def withdraw(self) -> bool:
        """The peer left before a deferred answer. True = nobody will answer."""
        raise NotImplementedError

    def refused(self, violation: Violation) -> None:
        """The peer sent something that is not HTTP."""

    def was_reset(self) -> None:
        """The peer broke the connection, and may not have read all that it got."""

    # -- reading --

    def handle(self) -> None:
        """Serve the connection until it ends."""
        try:
            while self._serve_one():
                pass
        except BadMessage as error:
            self.refused(error.violation)
            self.unread = True
            self.answer(*json_answer(error.status, {
                "error": error.violation.rule, "seen": error.violation.seen}))
        except ConnectionError:
            self.was_reset()
        except OSError:
            pass  # the peer was silent for too long
        except Exception:
            fault()
            self.fail()
        if self.unread:
            self._linger()

    def _serve_one(self) -> bool:
        head, self.ahead = read_head(self.rfile, self.limit_reads)
        if head is None:
            return False
        self.head, self.unread = head, bool(head.length)
        self.closing = not head.keep_alive
        self.command, self.path, self.request_version = head.words
        if not head.is_request:
            raise BadMessage("any.http.malformed", repr(" ".join(head.words)[:80]))
        if len(head.fields) > HEAD_FIELDS:  # [any.limits.head]
            raise BadMessage("any.limits.head", "%d header fields" % len(head.fields),
                             431)
        self.respond()
        if self._answered.locked():
            self._await_answer()
        return not (self.closing or self.unread)

    def read_body(self, limit: int) -> bytes:
        """Return the request's body. Raises BodyTooLarge when one over the limit has
        been read away (or has not, then the connection ends), BadMessage, OSError."""
        length = self.head.length
        if not length:
            return b""
        if length > SKIP_BYTES or length > limit and self.head.get("expect"):
            raise BodyTooLarge(length, limit)
        waits = not 0 < length <= self.ahead
        if waits:
            if self.head.get("expect").lower() == "100-continue":
                self.connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            # a client that sends head and body apart stalls
            self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            self.limit_reads(SILENCE_S)
        size, parts = 0, []
        for part in read_parts(self.rfile, length, SKIP_BYTES):
            size += len(part)
            if size <= limit:
                parts.append(part)
        self.unread = False
        if waits:
            self.limit_reads()
        if size > limit:
            raise BodyTooLarge(size, limit)
        return b"".join(parts)

    def _linger(self) -> None:
        """Read on for a moment: closed over unread input, the answer would be lost."""
        deadline, left = time.monotonic() + LINGER_S, SKIP_BYTES
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
            self.limit_reads(LINGER_S)
            while left > 0 and time.monotonic() < deadline:
                left -= len(self.connection.recv(CHUNK_BYTES)) or left

    # -- answering --

    def defer(self) -> None:
        """Announce that another thread will answer. Call it before that can happen."""
        self._answered.acquire()

    def _await_answer(self) -> None:
        """Wait until a deferred answer was given, or nobody will give it: meanwhile
        for the next request, or the end of the connection."""
        while self._answered.locked() and not self.unread:
            try:
                if self.rfile.peek(1):
                    break  # it pipelines
            except ConnectionError:
                self.was_reset()
            except OSError:
                pass
            if hung_up(self.connection):  # else it was idle for long
                if self._answered.locked() and self.withdraw():
                    self.give_up()
                break
        with self._answered:  # somebody may be writing
            pass

    def answer(self, head: bytes, body: bytes = b"") -> bool:
        """Send an answer, deferred or not, without blocking; what does not fit goes to
        a thread, so that a slow reader holds up nobody. False when the peer is gone."""
        self._answered.acquire(False)
        self.closing = self.closing or self.unread
        body = b"" if self.command == "HEAD" else body
        head = self.complete(head, body)
        try:
            sent = self.connection.sendmsg((head, body), (), DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError:
            self.give_up()
            return False
        if sent < len(head) + len(body):
            start_thread(self._send, head[sent:],
                         memoryview(body)[max(0, sent - len(head)):])
        else:
            self.release()
        return True

    def complete(self, head: bytes, body: bytes) -> bytes:
        """Add to the head of an answer what this connection adds to each."""
        return head[:-2] + b"Connection: close\r\n\r\n" if self.closing else head

    def _send(self, head: bytes, body: memoryview) -> None:
        """Send the rest of an answer. Blocks while the peer does not read, SILENCE_S
        at most for each write."""
        try:
            self.limit_writes(SILENCE_S)    # an answer passed on may have had less
            self.connection.sendall(head)
            self.connection.sendall(body)
            self.release()
        except OSError:
            self.give_up()

    def fail(self) -> None:
        """End the connection after an error of ours."""
        self.closing = True
        self.answer(*json_answer(500, {"error": OUR_ERROR}))

    def give_up(self) -> None:
        """End a deferral without an answer: the peer would not read it."""
        self.closing = True
        self.release()

    def release(self) -> None:
        """End a deferral, if there is one: the connection's own thread goes on."""
        if self._answered.locked():
            if self.closing and not self.unread:
                shut(self.connection, socket.SHUT_RD)  # wakes it
            self._answered.release()


class Server(ThreadingHTTPServer):
    """A listening socket that serves `app`; each connection gets a thread.

    It accepts by handle_request(), which sleeps, where serve_forever() would wake up
    twice a second. Raises OSError when it cannot listen.
    """

    request_queue_size = 1024
    server_bind = socketserver.TCPServer.server_bind  # HTTPServer's asks for a name

    def __init__(self, host: str, port: int, handler: Type[Handler],
                 app: Any) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.app = app
        self.open: Dict[socket.socket, threading.Thread] = {}
        self._ends = math.inf   # on the monotonic clock
        super().__init__((host, port), handler)
        self.host, self.port = str(self.server_address[0]), self.server_address[1]
        self._thread = start_thread(self._run)

    def _run(self) -> None:
        while time.monotonic() < self._ends:
            self.handle_request()
        self.server_close()

    def get_request(self) -> Tuple[socket.socket, Any]:
        """Accept a connection, with a pause when there are too many open files."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(ACCEPT_PAUSE_S)
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        """Give a connection a thread, unless there are too many."""
        if len(self.open) >= MAX_CONNECTIONS:
            self.shutdown_request(request)
            return
        thread = self.open[request] = threading.Thread(
            target=self.process_request_thread, args=(request, client_address),
            daemon=True)
        thread.start()

    def shutdown_request(self, request: Any) -> None:
        self.open.pop(request, None)
        super().shutdown_request(request)

    def handle_timeout(self) -> None:
        """After close(): nobody waits to be accepted any more."""
        self._ends = 0.0

    def close(self) -> None:
        """Stop listening when all that connected earlier has its thread; connections
        go on. May be called twice."""
        self._ends = time.monotonic() + LAST_WORDS_S  # others may come all the time
        self.timeout = 0    # of handle_request(), which a last connection wakes
        with contextlib.suppress(OSError):  # it is closed already
            socket.create_connection((self.host, self.port), LINGER_S).close()
        self._thread.join()

    def join(self, timeout_s: float) -> None:
        """Wait until every connection has ended, at most so long."""
        deadline = time.monotonic() + timeout_s
        for thread in list(self.open.values()):
            thread.join(max(0.0, deadline - time.monotonic()))

    def shut(self, how: int = socket.SHUT_RDWR) -> None:
        """End every connection, or only what they read."""
        for connection in list(self.open):
            shut(connection, how)


# ---- one clock ----

class Clock:
    """Calls methods at their deadlines: a thread sleeps until the first one. Each call
    has a thread of its own, so nothing that blocks there delays another limit."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._deadlines: Dict[Callable[[], object], float] = {}  # on the clock of now()
        self._looks_at = math.inf           # when the thread looks at them next
        self._open = True
        self._thread = start_thread(self._run)

    def now(self) -> float:
        return time.monotonic()

    def is_set(self, call: Callable[[], object]) -> bool:
        """Tell whether a call is still to come."""
        return call in self._deadlines

    def set(self, call: Callable[[], object], deadline: float) -> None:
        """Move a call's deadline; math.inf: it will not come. To move it back wakes
        nobody: the thread looks at the old time, and once more at the new one."""
        with self._lock:
            if deadline == math.inf:
                self._deadlines.pop(call, None)
                return
            self._deadlines[call] = deadline
            if deadline < self._looks_at:
                self._looks_at = deadline
                self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._open = False
            self._changed.notify()
        self._thread.join(5)

    def _run(self) -> None:
        while self._open:
            with self._changed:
                now = self.now()
                due = [call for call, at in self._deadlines.items() if at <= now]
                for call in due:
                    del self._deadlines[call]
                self._looks_at = min(self._deadlines.values(), default=math.inf)
                if not due and self._open:
                    limit_s = self._looks_at - now if self._deadlines else None
                    self._changed.wait(limit_s)
            for call in due:
                start_thread(call)


# ---- code packages ----

def open_package(path: str) -> Tuple[str, Callable[[], None]]:
    """Return (code folder, clean-up) for a folder or a ZIP. Raises ValueError."""
    if os.path.isdir(path):
        return os.path.abspath(path), lambda: None
    if not os.path.exists(path):
        raise ValueError("%s does not exist; CODE is a folder or a ZIP" % path)
    import shutil  # these are a tenth of the memory at rest; only ZIPs need them
    import tempfile
    import zipfile

    folder = tempfile.mkdtemp(prefix="custom-runtime-")
    remove = functools.partial(shutil.rmtree, folder, ignore_errors=True)
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("is neither a folder nor a ZIP")
        with zipfile.ZipFile(path) as archive:
            check_entries(archive.infolist())
            for entry in archive.infolist():
                target = archive.extract(entry, folder)
                if not entry.is_dir():  # [any.package.mode]
                    os.chmod(target, entry.external_attr >> 16 & 0o777 or 0o644)
    except Exception as error:  # each way to compress has errors of its own
        remove()
        raise ValueError("%s %s" % (path, error))
    return folder, remove


def snapshot(path: str) -> Set[Tuple[object, ...]]:
    """Return what is different after a change of a file in a folder, or of a ZIP."""
    found: Set[Tuple[object, ...]] = set()
    for folder, folders, names in (
            [("", [""], [path])] if os.path.isfile(path) else os.walk(path)):
        folders[:] = [name for name in folders if name not in ("__pycache__", ".git")]
        for file in (os.path.join(folder, name) for name in names):
            with contextlib.suppress(OSError):
                seen = os.stat(file)
                found.add((file, seen.st_ino, seen.st_size, seen.st_mtime_ns,
                           seen.st_mode))
    return found


def in_folder(text: str, root: str, folder: str) -> str:
    """Put our code folder where the cloud's stands as a path. One that begins so, too,
    is left alone, and so is what only looks like it within a URL."""
    return re.sub(r"(?:^|(?<=[\s:;,='\"(@])|(?<=file://)|(?<=-[A-Z]))(?!%s(?:/|$))%s"
                  r"(?=[/:;,\s'\")]|$)" % (re.escape(folder), re.escape(root)),
                  lambda _: folder, text)


def check_entries(entries: Sequence[Any]) -> None:
    """Raise ValueError for entries that leave the folder [any.package.zip]."""
    if len(entries) > ZIP_ENTRIES:
        raise ValueError("has %d entries; at most %d are unpacked"
                         % (len(entries), ZIP_ENTRIES))
    if sum(entry.file_size for entry in entries) > ZIP_BYTES:  # no more is ever read
        raise ValueError("unpacks to more than %d MiB" % (ZIP_BYTES // MIB))
    for entry in entries:
        name, kind = entry.filename, stat.S_IFMT(entry.external_attr >> 16)
        if not name:
            raise ValueError("has an entry without a name")
        if name.startswith(("/", "\\")) or ":" in name[:3] or ".." in re.split(
                r"[/\\]", name):
            raise ValueError("has an entry %r that leaves the code folder" % name)
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise ValueError("has an entry %r that is a link, device or socket" % name)


def check_program(words: Sequence[str], folder: str, package: str,
                  by_shell: bool = False) -> bool:
    """Raise StartError when the start command plainly cannot run. `package` is the ZIP
    that the folder was made of, if any. `by_shell`: scripts without `#!` can run, too;
    return whether it is one."""
    program = words[0]
    path = os.path.join(folder, program)
    shown = "%s in %s" % (os.path.relpath(path, folder), package) if package else path
    if "/" not in program:
        import shutil
        path = shown = shutil.which(program) or ""
        if not path:
            raise StartError("missing", "the command %s is not found on PATH%s" % (
                program, "; give each word as an argument of its own"
                if " " in program else ""))
    if not os.path.isfile(path):
        raise StartError("missing", "%s is not there. The platform starts this file; "
                         "it belongs at the top of the folder or ZIP, not in a "
                         "subfolder%s" % (shown, backslashes(folder)))
    if os.statvfs(path).f_flag & os.ST_NOEXEC:
        mount = os.path.realpath(path)
        while not os.path.ismount(mount):
            mount = os.path.dirname(mount)
        raise StartError("", "%s cannot be executed: %s is mounted noexec. %s" % (
            shown, mount, "Set TMPDIR to another place" if package else "Move it"))
    if not os.access(path, os.X_OK):
        raise StartError("mode", "%s is not executable. Run: chmod 755 %s (ZIP tools "
                         "on Windows drop the mode)" % (
                             shown, os.path.basename(path) if package else program))
    with open(path, "rb") as file:
        first = file.read(4096)
    if by_shell and fg_platform.SHELL_SCRIPT.fullmatch(first):
        return True
    problem = program_problem(first)
    if problem:
        raise StartError("", "%s %s" % (shown, problem))
    return False


def backslashes(folder: str) -> str:
    """Say that files here have names as Windows writes paths; "" if there are none."""
    names = [name for name in os.listdir(folder) if "\\" in name]
    return (" (it holds %s, whose backslash makes no folder: write / there)" % names[0]
            if names else "")


def program_problem(first: bytes) -> str:
    """Say why a program that begins so cannot run here; "" when it may."""
    line = first.partition(b"\n")[0]
    if first[:2] == b"#!":
        words = line[2:].split()
        if line.endswith(b"\r"):
            return ("has Windows line ends (CR LF), so its interpreter is not found. "
                    "Run: sed -i 's/\\r$//' on it")
        return "" if words and os.path.exists(os.fsdecode(words[0])) else (
            "names an interpreter that is not here: %r" % line.decode(
                "utf-8", "replace"))
    if first[:4] == b"\x7fELF":
        with open("/proc/self/exe", "rb") as file:
            own = file.read(20)
        return "" if first[4:6] + first[18:20] == own[4:6] + own[18:20] else (
            "is a program for another processor architecture than this one")
    if first.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
        return ("begins with a byte order mark (BOM), invisible in an editor, so its "
                "first line does not count. Save it as UTF-8 without one")
    return "is empty" if not first else (
        "is neither a Linux program nor a script with a first line such as #!/bin/sh")


# ---- processes ----

SPAWNING = threading.Lock()     # until a new process is one of
OWN: Set[int] = set()           # the processes that somebody here waits for
SPAWNED = threading.Event()


def reap_orphans() -> None:
    """Reap, for ever, what ended processes have left behind: as process 1 of a
    container we inherit it, and what nobody reaps stays a process. Blocks."""
    while True:
        SPAWNED.clear()
        try:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
            with SPAWNING:
                is_own = ended is not None and ended.si_pid in OWN
            if is_own:
                time.sleep(GROUP_TICK_S)  # its own thread is about to
            elif ended is not None:
                with contextlib.suppress(ChildProcessError):  # its thread was faster
                    os.waitpid(ended.si_pid, 0)
        except ChildProcessError:
            SPAWNED.wait()  # there are no children


def missing_loader(folder: str, program: str) -> str:
    """Return the first path in a program, its loader's, if that is not here."""
    with contextlib.suppress(OSError):
        with open(os.path.join(folder, program), "rb") as file:
            for path in re.findall(rb"\0(/[\x21-\x7e]+)\0", file.read(65536))[:1]:
                return "" if os.path.exists(path) else os.fsdecode(path)
    return ""


class Process:
    """A bootstrap and all that it forks: one group, one output pipe.

    `on_exit(status)` is called once from a thread of its own, after the group is
    killed: nothing of an ended bootstrap lives on [any.process.group]. One that does
    not lead a group stays in ours, and is signalled alone.
    """

    def __init__(self, words: Sequence[str], folder: str, env: Dict[str, str],
                 output: int, on_exit: Callable[[int], None],
                 cores: Optional[Iterable[int]] = None, errors: int = -1,
                 leads: bool = True) -> None:
        try:
            with SPAWNING:
                self._popen = subprocess.Popen(
                    words, cwd=folder, env=env, stdin=subprocess.DEVNULL, stdout=output,
                    stderr=output if errors < 0 else errors, start_new_session=leads)
                OWN.add(self._popen.pid)
        except OSError as error:
            loader = error.errno == errno.ENOENT and missing_loader(folder, words[0])
            raise StartError("", "%s cannot be started: %s" % (
                words[0], "its loader (dynamic linker) %s is not here, it was built "
                "for another system. Link it statically" % loader if loader else
                error.strerror or error))
        SPAWNED.set()
        self.pid = self._popen.pid
        if cores:  # the emulator itself is pinned to one core; its children are not
            with contextlib.suppress(OSError):  # it has ended
                os.sched_setaffinity(self.pid, cores)
        self._kill = os.killpg if leads else os.kill
        self._on_exit = on_exit
        self.peak_mb = 0.0      # of the group as sampled, of the leader at its end
        self.measured = 0.0     # when it was sampled last, on the monotonic clock
        self.status = 0         # as of the subprocess module, after its end
        self.exited = threading.Event()
        self._grace_ends = 0.0  # on the monotonic clock; until then forks may live
        self._thread = start_thread(self._watch)

    def _watch(self) -> None:
        try:
            _, status, usage = os.wait4(self.pid, 0)
            peak_mb = usage.ru_maxrss / 1024
        except ChildProcessError:  # SIGCHLD is ignored
            status, peak_mb = 0, 0.0
        OWN.discard(self.pid)
        while self._grace_ends > time.monotonic() and self.signal(0):
            time.sleep(GROUP_TICK_S)  # what a wrapper has started ends in order, too
        self.signal(signal.SIGKILL)
        self.status = self._popen.returncode = -os.WTERMSIG(
            status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
        # until it became another program it counted as a copy of this one
        if peak_mb > memory_mb(read_account("self", "status"), b"VmHWM:"):
            self.peak_mb = max(self.peak_mb, peak_mb)
        self.exited.set()   # whoever waits for it asks for the peak
        self._on_exit(self.status)

    def signal(self, number: int) -> bool:
        """Signal the whole group; tell whether there is one."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if not self.exited.is_set():
                self._kill(self.pid, number)
                return True
        return False

    def has_ended(self) -> bool:
        """Tell whether the leader has ended, even if nobody has noticed yet."""
        try:
            return self.exited.is_set() or os.waitid(
                os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
        except ChildProcessError:
            return True

    def ends_now(self) -> bool:
        """Tell whether it has ended or is about to; waits for the end then. The kernel
        closes the sockets of a dying process a while before it is a zombie."""
        try:
            with open("/proc/%d/stat" % self.pid, "rb") as file:
                flags = file.read().rpartition(b")")[2].split()[6]
        except OSError:
            flags = b"4"  # it has ended
        return self.exited.wait(5 if int(flags) & 4 else 0.2)  # PF_EXITING

    def terminate(self, grace_s: float) -> None:
        """SIGTERM, then SIGKILL after the grace [any.stop.order]. Blocks until the
        process has ended, about `grace_s` at most."""
        self._grace_ends = time.monotonic() + grace_s
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)
        if not self.exited.wait(grace_s):
            self.signal(signal.SIGKILL)
        self._thread.join(5)  # on_exit has returned


SHELL_STATUS = {126: " (a command cannot be executed)",
                127: " (a command was not found)"}


def describe_status(status: int) -> str:
    """Say how a process ended: `with status 3`, `by signal 9 (Killed)`."""
    if status >= 0:
        return "with status %d%s" % (status, SHELL_STATUS.get(status, ""))
    return "by signal %d (%s)" % (-status, signal.strsignal(-status)
                                  or "unknown signal")


def group_members() -> Iterator[Tuple[int, int]]:
    """Yield each process and its group."""
    for number in map(int, filter(str.isdigit, os.listdir("/proc"))):
        with contextlib.suppress(OSError):  # it has ended
            # to open a file there takes fifty times as long
            yield number, os.getpgid(number)


# Addresses as /proc/net has them on a little-endian machine.
HOSTS = {"00000000": "0.0.0.0", "0" * 32: "[::]", "0100007F": "127.0.0.1",
         "0" * 24 + "01000000": "[::1]"}


def listeners(group: int) -> List[str]:
    """Return each HOST:PORT that a process group listens on."""
    links, found = set(), []
    for number, its_group in group_members():
        if its_group == group:
            with contextlib.suppress(OSError):
                for entry in os.scandir("/proc/%d/fd" % number):
                    links.add(os.readlink(entry.path))
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError), open("/proc/net/" + table) as file:
            for words in map(str.split, file):
                if words[3] == "0A" and "socket:[%s]" % words[9] in links:  # LISTEN
                    host, _, port = words[1].partition(":")
                    found.append("%s:%d" % (HOSTS.get(host, "another address"),
                                            int(port, 16)))
    return found


def measure(processes: Iterable[Process]) -> None:
    """Note the memory of groups. A page that several processes share counts once (Pss),
    as it does in a container; so does what a child uses of its parent's before it is
    another program (vfork): it is private to both, at the same addresses."""
    now, by_group = time.monotonic(), {one.pid: one for one in processes}
    sizes = dict.fromkeys(by_group, 0.0)
    seen: Set[Tuple[bytes, float]] = set()
    for number, group in group_members():
        if group in sizes:
            account = read_account(number)
            private = account.partition(b" ")[0], memory_mb(account, b"Private_")
            sizes[group] += memory_mb(account) - (private[1] if private in seen else 0)
            seen.add(private)
    for group, process in by_group.items():
        process.peak_mb = max(process.peak_mb, sizes[group])
        if sizes[group]:    # else it is just becoming another program, or has ended
            process.measured = now


def read_account(process: object, file: str = "smaps_rollup") -> bytes:
    """Return the kernel's account of a process's memory, empty if it has ended."""
    with contextlib.suppress(OSError):
        with open("/proc/%s/%s" % (process, file), "rb") as text:
            return text.read()
    return b""


def memory_mb(account: bytes, field: bytes = b"Pss:") -> float:
    """Return the sum of the fields that begin so; Pss is a share of shared pages."""
    return sum(int(line.split()[1]) / 1024 for line in account.split(b"\n")
               if line.startswith(field))


# as bootstraps for FC 2.0 print them
FC_MARKER = re.compile(rb"(?m)^FC (?:Invoke|Initialize|PreFreeze|PreStop) (?:Start|End)"
                       rb" RequestId: [^\n]*\n")


class Log:
    """What a bootstrap prints: passed on as it comes, and the last 4 KB kept."""

    def __init__(self, platform: "Platform") -> None:
        self._sink, self._flush = platform.write_log, platform.flush
        self._lock = threading.Lock()
        self._tail = b""
        self._read_end = -1     # of the pipe, while it is open

    def open(self) -> int:
        """Return the end of a pipe for the bootstrap; the caller closes it."""
        self._read_end, write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        start_thread(self._pump, self._read_end)
        return write_end

    def _pump(self, read_end: int) -> None:
        """Take what is printed until every process has closed the other end."""
        poll = select.poll()
        poll.register(read_end, select.POLLIN)
        while self._read_end >= 0:
            poll.poll()
            self.take()
            self._flush()
        os.close(read_end)

    def take(self) -> None:
        """Take what is waiting, 1 MiB at most; so that a log holds what was printed
        before a result. Never blocks."""
        with self._lock:
            for _ in range(16 if self._read_end >= 0 else 0):
                try:
                    data = os.read(self._read_end, 65536)
                except BlockingIOError:
                    return
                if not data:
                    self._read_end = -1
                    return
                self._tail = (self._tail + data)[-LOG_TAIL_BYTES:]
                if b" RequestId: " in data:  # [any.log.frame] our own is there, too
                    data = FC_MARKER.sub(b"", data)
                if data:
                    self._sink(data)

    def take_tail(self) -> bytes:
        """Return the last output since the previous call [any.log.tail]."""
        with self._lock:
            tail, self._tail = self._tail, b""
        return tail


# ---- invocations ----

class DeferringLock:
    """The platform's lock, and what is put off until its release because it may block
    or call other people's code: `with lock:` takes it, `lock.later(...)` notes a call,
    and whoever releases the lock makes these calls, in order."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self._calls: List[Tuple[Callable[..., object], Tuple[Any, ...]]] = []

    def later(self, call: Callable[..., object], *arguments: Any) -> None:
        """Call this after the release (lock held)."""
        self._calls.append((call, arguments))

    def __enter__(self) -> None:
        self.lock.acquire()

    def __exit__(self, *_: object) -> None:
        calls, self._calls = self._calls, []  # even if empty: it is another's by now
        self.lock.release()
        for call, arguments in calls:
            attempt(call, *arguments)


class Answer:
    """Where the answer of an fc function goes: to its HTTP caller as it is produced,
    or, where there is none, into the outcome."""

    def __init__(self, caller: Optional[Handler] = None) -> None:
        self.caller = caller
        self.begun = False
        self.is_lost = False    # its caller does not take it any more
        self.status = 0
        self.fields: List[Tuple[str, str]] = []
        self.parts: List[bytes] = []
        self.first = b""        # part of the body
        self.size = 0
        self._chunked = False

    def begin(self, head: Head, fields: List[Tuple[str, str]], own: Pairs,
              has_a_body: bool, whole: bytes = b"") -> None:
        """Take the head; `own` are fields for the caller alone. A body whose size was
        announced can go with it."""
        self.status, self.fields, caller = int(head.words[1]), fields, self.caller
        if caller is None:
            return
        out = [*fields, *own]
        if head.length is not None and head.length >= 0:
            out.append(("Content-Length", str(head.length)))
        elif has_a_body and caller.request_version == "HTTP/1.1":
            self._chunked = True  # [fc.answer.streamed]
            out.append(("Transfer-Encoding", "chunked"))
        elif has_a_body:
            caller.closing = True
        self.begun = not self.is_lost
        self._send(caller.complete(format_head(status_line(self.status), out), whole)
                   + whole)

    def write(self, data: bytes) -> None:
        self.first, self.size = self.first or data, self.size + len(data)
        if self.caller is None:
            self.parts.append(data)
        else:
            self._send(b"%x\r\n%s\r\n" % (len(data), data) if self._chunked else data)

    def end(self) -> None:
        if self._chunked:
            self._send(b"0\r\n\r\n")

    def _send(self, data: bytes) -> None:
        try:
            if self.caller is not None and not self.is_lost:
                self.caller.connection.sendall(data)
        except OSError:
            self.is_lost = True  # the exchange notices

    def tunnel(self, upstream: "Upstream") -> None:
        """Pass what follows an upgrade through until either side ends it."""
        assert self.caller is not None
        self.caller.closing = True
        self.caller.limit_reads(0)
        upstream.caller = None  # either side may end it, that is no fault
        thread = start_thread(copy, self.caller.rfile, upstream.socket)
        try:
            copy(upstream.reader, self.caller.connection)
        finally:
            shut(self.caller.connection)
            shut(upstream.socket)
            thread.join()


def copy(source: "io.BufferedReader[Any]", target: socket.socket) -> None:
    """Copy bytes until the source ends, then end the target."""
    with contextlib.suppress(OSError, ValueError):  # either side broke; both end
        for data in read_parts(source, None):
            target.sendall(data)
    shut(target)


class Invocation:
    """One event on its way; `outcome` is set exactly once, under the platform's lock.
    """

    started = 0.0           # monotonic; 0 = not issued yet
    deadline = math.inf     # of its wait in the queue, then of its run
    issues = 0              # how often it was issued
    unseen = True           # scf, fg: it has reached no poll
    outcome: Optional[Outcome] = None
    instance: Optional["Instance"] = None
    upstream: Optional["Upstream"] = None   # fc: the connection it runs on
    answer = Answer()       # fc: where the answer goes
    is_carried = False      # fc: the thread that submits it sends it, too

    def __init__(self, request_id: str, event: bytes,
                 http_request: Optional[HttpRequest] = None,
                 on_done: Callable[[Outcome], object] = lambda outcome: None,
                 caller: Optional[Handler] = None, size: int = 0) -> None:
        self.request_id = request_id
        self.event = event
        self.size = size or len(event)      # as it was announced
        self.http_request = http_request
        self.control = "/http-invoke" if http_request else "/invoke"  # fc
        self.on_done = on_done
        self.caller = caller
        self.violations: List[Violation] = []


# ---- instances ----

def error_text(body: bytes) -> str:
    """Return ": " and type and message of an error document, else how it begins."""
    text = body[:SEEN_CHARACTERS].decode("utf-8", "replace")
    with contextlib.suppress(ValueError, RecursionError):
        document = json.loads(body)
        if isinstance(document, dict):  # [any.error.document]
            text = ": ".join(str(document[name]) for name in (
                "errorType", "errorMessage") if document.get(name)) or text
    return (": " + " ".join(text.split())[:SEEN_CHARACTERS]).rstrip(": ")


DURING = {"starting": "before it was ready", "initializing": "during initialisation",
          "issued": "before it fetched the event", "running": "while it had the event",
          "busy": "during the request"}
IDLE, STARTING = ("idle", "frozen"), ("starting", "initializing")


class Instance:
    """One bootstrap: its process, its log, its clock, and the invocations that it has.

    These are bound to it while it starts, and begin when it is ready. Whoever reads or
    changes `work`, `ending` or the session holds the platform's lock. Until there is
    a process, the thread that starts it is to end it. Subclasses speak a protocol.
    """

    session: Any

    def __init__(self, platform: "Platform") -> None:
        self.platform = platform
        self.function = platform.function
        self.rules: Any = platform.rules
        self.id = "c-%s" % os.urandom(6).hex()
        self.log = Log(platform)
        self.process: Optional[Process] = None
        self.work: Dict[Invocation, None] = {}  # bound or begun, in this order
        self.ending = ""        # "stop" in order or "kill", whatever came first
        self.violations: List[Violation] = []   # before the first invocation
        self.served = 0
        self.is_old = False     # its code has changed since it was started

    def has_room(self) -> bool:
        """Tell whether it takes one more invocation (lock held)."""
        return (len(self.work) < int(self.function.concurrency)
                and self.session.state != "stopping" and not self.is_old)

    def room_soon(self) -> int:
        """Return how many invocations it takes as soon as a hook has ended."""
        return 0

    # -- start --

    def start(self) -> None:
        """Start the bootstrap; failures become outcomes. Blocks for the start."""
        try:
            self.launch()
        except Exception as error:
            if not isinstance(error, (StartError, OSError, ValueError, RuntimeError)):
                fault()
            reason = error.reason if isinstance(error, StartError) else ""
            with self.platform.lock:
                if not self.work and not self.ending:  # of --attach, before any event
                    self.platform.note("start-error: %s" % error)
                self.end(list(self.work), "start-error", str(error), reason)
            if self.process is None:
                self.cleanup()

    def launch(self) -> None:
        raise NotImplementedError

    def spawn(self, facts: Facts) -> None:
        """Start the process, or say what a person needs who starts it by hand. Raises
        StartError."""
        platform = self.platform
        env = platform.environment(facts)
        if platform.attach:
            platform.attach(env)
            return
        words = platform.words[:] or [os.path.join(platform.folder, "bootstrap")]
        by_shell = check_program(words, platform.folder, platform.package,
                                 platform.protocol == "fg")
        if by_shell:  # [fg.start.shell]
            words.insert(0, "/bin/sh")
        output = self.log.open()
        try:
            process = Process(words, platform.folder, env, output, self.on_exit,
                              platform.cores)
        finally:
            os.close(output)
        with platform.lock:
            self.process = process
            platform.trace("process", instance=self.id, started=process.pid)
            if by_shell:
                platform.note("bootstrap has no first line such as #!/bin/sh; here and "
                              "in this cloud /bin/sh runs it, elsewhere nothing")
            if self.ending:
                process.signal(signal.SIGKILL)

    def misfit(self) -> str:
        """Say what makes a bootstrap that did not start one for another protocol."""
        protocol, folder = self.platform.protocol, self.platform.folder
        for path in (os.path.join(folder, word) for word in
                     self.function.command or ["bootstrap"]):
            if os.path.isfile(path):
                with contextlib.suppress(OSError), open(path, "rb") as file:
                    program = file.read(PROGRAM_BYTES)
                    its = [one for one, mark in MARKS.items() if mark in program]
                    if its and protocol not in its:
                        return "; it reads %s, so it is a bootstrap for %s" % (
                            MARKS[its[0]].decode(), its[0])
        at = listeners(self.process.pid) if self.process and protocol != "fc" else []
        return at and ("; it is a server, on %s: `emulator.py fc CODE --port %s` comes "
                       "close" % (at[0], at[0].rpartition(":")[2])) or ""

    # -- work (lock held) --

    def take(self, invocation: Invocation) -> None:
        """Take an invocation; there must be room."""
        invocation.instance = self
        invocation.deadline = math.inf
        self.work[invocation] = None
        if self.session.state not in STARTING:
            self.begin(invocation)

    def begin(self, invocation: Invocation) -> None:
        """Start the log and the clock of an invocation [any.limits.clock]. What was
        printed between two invocations is dropped [any.log.frame]."""
        platform = self.platform
        if self.served:
            platform.counts["reused"] += 1
            if len(self.work) == 1:
                self.log.take()
                self.log.take_tail()
        self.served += 1
        if not invocation.issues:
            platform.log_line(0, invocation.request_id)  # before anybody gets its event
        invocation.started = time.monotonic()
        invocation.deadline = invocation.started + self.function.timeout_s
        invocation.issues += 1
        invocation.violations += self.violations
        self.violations.clear()
        platform.watch_memory()

    def has_room_again(self) -> None:
        """Begin what is bound, then what waits for an instance with room."""
        if not self.served:
            for invocation in self.work:
                self.begin(invocation)
        self.platform.offer(self)
        if self.is_old and not self.work:
            self.platform.discard(self, "stop")
        elif not self.work:
            self.set_deadline(time.monotonic() + self.function.idle_s
                              if self.session.state in IDLE else math.inf)

    def set_deadline(self, deadline: float) -> None:
        """Move the instance's one clock."""
        self.platform.clock.set(self._on_time, deadline)

    def _on_time(self) -> None:
        with self.platform.lock:
            if self.ending or self.platform.clock.is_set(self._on_time):
                return  # something else was faster
            if self.session.state in IDLE:
                self.platform.discard(self, "stop")  # [any.instance.idle]
            else:
                self.on_limit(self.session.state)

    def on_limit(self, state: str) -> None:
        """The limit of the start, or of what runs, is reached (lock held)."""

    def violate(self, violation: Violation) -> None:
        """Note a violation with the invocation it belongs to (lock held)."""
        found = next((one.violations for one in self.work), self.violations)
        self.platform.note_violation(violation, found)

    # -- end --

    def end(self, victims: Iterable[Invocation], kind: str = "", message: str = "",
            start_error: str = "") -> None:
        """Take no more work and settle the victims; the bootstrap is killed, at once
        or when what else runs in it has ended (lock held) [any.time.kill]."""
        if all(one in victims or one.outcome for one in self.work):
            self.platform.lock.later(self.kill)     # before anything that may block
        self.platform.discard(self, "kill")
        for invocation in victims:
            self.platform.settle(invocation, kind, message=message,
                                 start_error=start_error)
            self.cut_off(invocation)
            if not invocation.started:
                self.work.pop(invocation, None)     # nothing is under way

    def retire(self) -> None:
        """Let the session take nothing more (lock held)."""
        raise NotImplementedError

    def signal(self, number: int) -> None:
        """Signal the bootstrap and what it forked, if there is a process."""
        if self.process is not None:
            self.process.signal(number)

    def kill(self) -> None:
        """Kill the process, unless it is stopping in order."""
        if self.ending == "kill":
            self.signal(signal.SIGKILL)
            if self.platform.attach:
                self.cleanup()

    def stop(self) -> None:
        """End it in order: SIGTERM, grace, SIGKILL. Blocks for these."""
        if self.process is not None:
            self.process.terminate(self.function.grace_s)
        elif self.platform.attach:
            self.cleanup()

    def on_exit(self, status: int) -> None:
        """Settle what the bootstrap left undone; called from the process's thread."""
        platform, ended = self.platform, describe_status(status)
        with platform.lock:
            self.log.take()
            state = self.session.state
            platform.trace("process", instance=self.id, ended=ended, state=state)
            if not self.work and state != "stopping":
                platform.note("the bootstrap ended %s while it had no event; the next "
                              "one starts another" % ended)
            attempt(self.exited, state, status)  # cleanup follows, or close() waits
        self.cleanup()

    def exited(self, state: str, status: int) -> None:
        """The process has ended: settle what follows from that (lock held)."""
        raise NotImplementedError

    def cut_off(self, invocation: Invocation) -> None:
        """Let an exchange that still goes on end (lock held)."""

    def cleanup(self) -> None:
        """Free what the instance holds. May be called twice."""
        self.set_deadline(math.inf)
        self.platform.forget(self)

    # -- memory --

    def peak_mb(self) -> float:
        """Return the peak memory of the bootstrap and what it forked, 0 if unknown; an
        old sample is renewed."""
        process = self.process
        if process is None:
            return 0.0
        if process.measured < time.monotonic() - MEMORY_TICK_S:
            measure([process])
        return process.peak_mb

    def over_memory(self) -> str:
        """Say by how much the memory limit is exceeded; "" when it is not."""
        limit, seen = self.function.memory_mb, self.peak_mb()
        return "" if seen <= limit else (
            "the bootstrap took %d MB; the limit is %d MB" % (seen, limit))


# ---- instances of scf and fg ----

class PullInstance(Instance):
    """An instance of scf or fg: a runtime API of its own on a loopback port."""

    def __init__(self, platform: "Platform") -> None:
        super().__init__(platform)
        self.session = self.rules.Session()
        self.api: Optional[Server] = None
        self.parked: List[RuntimeApi] = []  # polls that wait
        self.bringer: Optional[RuntimeApi] = None   # the last that got an event
        self._head = "%s\r\n%sContent-Length: %%d\r\n\r\n" % (
            status_line(200), platform.fields)

    def launch(self) -> None:
        """Listen, then start the process: its first call finds the API ready."""
        platform, function = self.platform, self.function
        port = function.port if platform.attach else 0
        try:
            self.api = Server("127.0.0.1", port, RuntimeApi, self)
        except OSError as error:
            raise StartError("", "no runtime API on port %d: %s" % (port,
                                                                    error.strerror))
        if not platform.attach:
            self.set_deadline(time.monotonic() + function.init_timeout_s)
        self.spawn(dict(platform.facts, instance_id=self.id, api_host="127.0.0.1",
                        api_port=str(self.api.port)))

    # -- events --

    def begin(self, invocation: Invocation) -> None:
        super().begin(invocation)
        self.session.issue(invocation.request_id)
        self.set_deadline(invocation.deadline)
        self.platform.lock.later(self.deliver, invocation, self.take_polls())

    def take_polls(self) -> List["RuntimeApi"]:
        """Return the polls that get the event now; all others stay (lock held)."""
        asked, self.parked = self.parked, []
        found: List[RuntimeApi] = []
        for poll in asked:
            is_next = self.session.receive(poll.call).action == "deliver"
            (found if is_next else self.parked).append(poll)
        return found

    def deliver(self, invocation: Invocation, polls: List["RuntimeApi"]) -> None:
        """Answer polls with the event; others, while it has not reached any."""
        while polls:
            poll = polls.pop(0)
            # [any.poll.dead] a client that has hung up must not swallow the event
            is_alive = not hung_up(poll.connection)
            if not is_alive:
                poll.give_up()
            invocation.unseen = invocation.unseen and not is_alive
            self.bringer = poll     # before its client can ask again
            reached = is_alive and poll.answer(
                (self._head % (invocation.request_id, len(invocation.event))).encode(
                    "latin-1"), invocation.event)
            with self.platform.lock:
                self.session.delivered(invocation.request_id, reached)
                poll.brought = invocation if reached else None
                if reached and poll.broken:
                    self.session.reset(invocation.request_id)
                polls += self.take_polls()

    # -- results --

    def _welcome(self, call: str) -> str:
        """Return the state. What was started by hand and polls again, after a limit, or
        after its own end and start, is the instance again."""
        session, before = self.session, str(self.session.state)
        if self.platform.attach and call in ("next", "request") and not self.ending:
            if before == "stopping":
                session.state = "idle"
            elif before == "running" and self.bringer is not None and hung_up(
                    self.bringer.connection) and not self.parked:  # else it is alive
                before = session.state = "issued"
        return before

    def receive(self, api: "RuntimeApi", request_id: str, body: bytes, size: int
                ) -> None:
        """Take a call; `size` of a result over the limit, else -1 (lock held)."""
        platform, session, call = self.platform, self.session, api.call
        before = self._welcome(call)
        row = session.receive(call, request_id, size >= 0)
        invocation = next(iter(self.work), None)
        if platform.on_trace:
            platform.trace_message(
                "call", self.id, api.head, body, size, call=call, state=before,
                action=row.action, next=row.state, rule=row.rule,
                request_id=invocation.request_id if invocation else "")
        text = "the bootstrap reported an error" + error_text(body) if (
            row.action == "fail") else "the result has %d bytes; the limit is %d" % (
                size, self.function.result_bytes) if row.action == "overflow" else ""
        self._answer(api, row.action, text, invocation)
        if call in ("response", "error"):
            self.log.take()
        if row.action in ("ignore", "refuse") and before != "stopping":
            self.violate(Violation(row.rule, "%s in state %s%s" % (
                call, before, ", id %r; due is %s" % (
                    request_id[:80], session.request_id or "none")
                if request_id else "")))
        elif row.action == "hold" and session.state == "starting":
            self.violate(Violation("scf.ready.before-next", "next before ready"))
        elif row.action == "deliver" and before == "running" and not (
                invocation is None or invocation.unseen or hung_up(api.connection)):
            self.violate(Violation("scf.response.order", "next before the result; each "
                                   "brings the same event again"))
        elif row.action in self.rules.RESULTS and invocation is not None:
            del self.work[invocation]
            platform.settle(invocation, self.rules.RESULTS[row.action], size=size,
                            body=body, message=text)
        if session.state == "idle" and before != "idle":
            self.has_room_again()

    def _answer(self, api: "RuntimeApi", action: str, text: str,
                invocation: Optional[Invocation]) -> None:
        """Answer a call as soon as the lock is released, before anything else."""
        later = self.platform.lock.later
        if action == "hold":  # [scf.next.blocks] [fg.request.blocks]
            api.defer()  # whoever has the event answers
            self.parked.append(api)
        elif action == "deliver" and invocation is not None:
            api.defer()
            later(self.deliver, invocation, [api])
        elif action in self.rules.REFUSALS:
            status, known = self.rules.REFUSALS[action]
            later(api.refuse_call, status, text or known)
        else:
            later(api.answer, EMPTY_ANSWER)

    # -- end --

    def on_limit(self, state: str) -> None:
        limit_s = (self.function.init_timeout_s if state in STARTING
                   else self.function.timeout_s)
        kind, text = self.rules.ON_TIME[state], "%s within %g s%s" % (
            self.rules.NO_ANSWER[state], limit_s,
            self.misfit() if state in STARTING else "; as it was started by hand, it "
            "gets the next event when it polls again" if self.platform.attach else "")
        if not self.platform.attach:
            self.end(list(self.work), kind, text)
            return
        victims, self.work = self.work, {}
        self.session.stop()     # until it polls: it may stand at a breakpoint
        for invocation in victims:
            self.platform.settle(invocation, kind, message=text)
        if self.parked:
            self.session.state = "idle"
            self.has_room_again()

    def retire(self) -> None:
        self.session.stop()

    def on_exit(self, status: int) -> None:
        """Take what was sent before the end [any.result.first]: close the runtime API
        behind all that connected earlier, and let that end."""
        if self.api is not None:
            self.api.close()
            self.api.join(LAST_WORDS_S)
        super().on_exit(status)

    def exited(self, state: str, status: int) -> None:
        over = self.over_memory()
        for invocation in list(self.work):
            if state == "issued" and not over and self.served > 1 and (
                    invocation.issues < MAX_ISSUES):  # [any.event.requeue] unseen
                # at the latest when this one is discarded, below, another takes it
                self.platform.place(invocation, first=True)
                del self.work[invocation]   # now, lest it is placed here again
        self.end(list(self.work), "out-of-memory" if over else self.rules.ON_EXIT.get(
            state, "exit"), over or "the bootstrap ended %s %s%s" % (
                describe_status(status), DURING.get(state, ""),
                self.misfit() if state in STARTING else ""))

    def cleanup(self) -> None:
        if self.api is not None:
            self.api.close()
            self.api.shut()
            with self.platform.lock:
                polls, self.parked = self.parked, []
            for poll in polls:
                poll.give_up()  # its thread may wait, with a request behind it
            self.api.join(LAST_WORDS_S)
        super().cleanup()


class RuntimeApi(Handler):
    """A connection of a bootstrap to its runtime API."""

    app: PullInstance
    call = ""               # the last one
    brought: Optional[Invocation] = None    # by the last answer
    broken = False

    def was_reset(self) -> None:
        lock = self.app.platform.lock
        with lock:
            self.broken = self.app.platform.protocol == "fg"  # scf answers each poll
            if self.broken and self.brought is not None:
                self.app.session.reset(self.brought.request_id)
                lock.later(self.app.deliver, self.brought, self.app.take_polls())

    def respond(self) -> None:
        self.brought = None     # who asks again has read it
        rules, size, body = self.app.rules, -1, b""
        self.call, request_id, status = rules.find_call(self.command, self.path)
        try:
            body = self.read_body(self.app.function.result_bytes)
        except BodyTooLarge as error:
            size = error.size
        if self.call:
            with self.app.platform.lock:
                self.app.receive(self, request_id, body, size)
        else:  # [any.api.unknown]
            seen = "%s %s" % (self.command, self.path[:80])
            seen += nearest_call(rules, seen)
            self.refused(Violation("any.api.unknown", seen))
            self.refuse_call(status, "no such call: " + seen)

    def complete(self, head: bytes, body: bytes) -> bytes:
        platform = self.app.platform
        if platform.on_trace:
            with platform.lock:
                platform.trace_message("reply", self.app.id, parse_head(head[:-4]),
                                       body)
        return super().complete(head, body)

    def refuse_call(self, status: int, message: str) -> None:
        """Answer with the protocol's document for a refused call."""
        self.answer(*json_answer(status, self.app.rules.refusal(status, message)))

    def withdraw(self) -> bool:
        """A poll's client has hung up: it gets no event [any.poll.dead]."""
        with self.app.platform.lock:
            is_parked = self in self.app.parked
            if is_parked:
                self.app.parked.remove(self)
            return is_parked

    def refused(self, violation: Violation) -> None:
        with self.app.platform.lock:
            self.app.violate(violation)


@functools.lru_cache(256)
def nearest_call(rules: Any, seen: str) -> str:
    """Name the call of the endpoints table that a wrong one resembles."""
    import difflib  # nobody needs it who makes no mistakes
    return "".join("; the nearest is " + near for near in difflib.get_close_matches(
        seen, [" ".join(one) for one in rules.ENDPOINTS], 1))


# ---- instances of fc ----

class Upstream(io.RawIOBase):
    """A connection to a function's server. Whoever reads or writes it waits until
    `deadline` at most (LimitReached), and is told when the caller leaves."""

    def __init__(self, connected: socket.socket) -> None:
        super().__init__()
        self.socket = connected
        connected.settimeout(None)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.reader = io.BufferedReader(self, 65536)
        self.deadline = math.inf
        self.ahead = 0              # bytes of the answer's body that came with its head
        self.used = False           # it has carried a request before this one
        self.heard = False          # the server has said something since this one
        self.caller: Optional[Handler] = None
        self.on_gone: Callable[[], None] = lambda: None     # once, when he leaves

    def wait(self, events: int) -> int:
        """Block until the server has something, or takes something; return what."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise LimitReached
        poll = select.poll()
        poll.register(self.socket, events)
        if self.caller is not None:
            poll.register(self.caller.connection, select.POLLRDHUP)
        ready = dict(poll.poll(math.ceil(min(left, MAX_LIMIT_S) * 1000)))
        if self.caller is not None and self.caller.connection.fileno() in ready:
            self.caller = None
            self.on_gone()
        return ready.get(self.socket.fileno()) or self.wait(events)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Read what there is."""
        self.wait(select.POLLIN)
        count = self.socket.recv_into(buffer)
        self.heard = self.heard or count > 0
        return count

    def send(self, head: bytes, body: bytes = b"") -> bool:
        """Send it whole, unless the server answers before; tell whether it did not."""
        for data in [head + body] if len(body) <= 65536 else [head, body]:
            view = memoryview(data)
            while view:
                try:
                    view = view[self.socket.send(view, DONTWAIT):]
                except BlockingIOError:
                    if self.wait(select.POLLIN | select.POLLOUT) & select.POLLIN:
                        return False
        return True

    def read_answer(self, limit: int) -> Head:
        """Read the head of an answer, past interim ones. Raises ConnectionError when
        there is none, BodyTooLarge when it has more than a server may send."""
        while True:
            try:
                head, self.ahead = read_head(self.reader)
            except BadMessage as error:
                if error.status == 431:  # [fc.limits.response]
                    raise BodyTooLarge(HEAD_BYTES, limit)
                raise
            if head is None:
                raise ConnectionError(errno.ECONNRESET, "it was closed without an "
                                      "answer")
            version, status, _ = head.words
            if not version.startswith("HTTP/1.") or not (
                    len(status) == 3 and status.isdecimal() and status[0] != "0"):
                raise BadMessage("any.http.malformed", repr(" ".join(head.words)[:80]))
            if status[0] != "1" or status == "101":
                return head

    def is_usable(self) -> bool:
        """Tell whether it can carry another request: nothing waits there, not even its
        end. Bytes beyond the last answer answer nothing."""
        self.deadline = 0.0  # so only what was read already can be looked at
        try:
            self.reader.peek(1)
        except LimitReached:
            poll = select.poll()
            poll.register(self.socket, select.POLLIN)
            return not poll.poll(0)
        return False

    def close(self) -> None:
        super().close()
        self.socket.close()


def has_body(head: Head, method: str) -> bool:
    """Tell whether an answer has a body; some have none whatever their fields say."""
    return method != "HEAD" and head.words[1] not in ("204", "304")


def wants_upgrade(request: Optional[HttpRequest]) -> bool:
    """Tell whether a caller asked to go on with another protocol."""
    return request is not None and any(name.lower() == "upgrade"
                                       for name, _ in request.headers)


PORTS = itertools.count()


def free_port() -> int:
    """Return a port that nobody listens on, below those that the system hands out to
    clients: until the server binds it, nobody else may get it. So each process begins
    at another, and none is chosen twice."""
    for number in itertools.islice(PORTS, 100):
        port = 10000 + (os.getpid() * 8 + number) % 20000
        with contextlib.suppress(OSError):
            try_port(port)
            return port
    raise StartError("port", "no free port was found")


def try_port(port: int) -> None:
    """Raise OSError unless a server could listen on the port."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("0.0.0.0", port))


EVENT_REQUEST = HttpRequest("POST", "/invoke", (  # [fc.invoke.event]
    ("Content-Type", "application/octet-stream"),))
HOOK_VERDICTS = {"timeout": "timeout", "exit": "broken", "out-of-memory": "broken"}
KEEP_ALIVE = Violation(
    "fc.connection.keep-alive", "a kept connection was closed while idle, which loses "
    "requests. Node: server.keepAliveTimeout = 0; uvicorn: --timeout-keep-alive 86400; "
    "others: as long")
format_again = functools.lru_cache(256)(format_head)


class PushInstance(Instance):
    """An instance of fc: an HTTP server to which requests are sent."""

    def __init__(self, platform: "Platform") -> None:
        super().__init__(platform)
        self.session = self.rules.Session(platform.function.concurrency)
        self.port = self.function.port
        self.pool: List[Upstream] = []          # kept connections, last used last
        self._hook = threading.Lock()   # one at a time; nothing begins meanwhile

    def has_room(self) -> bool:
        return super().has_room() and not self._hook.locked()

    def room_soon(self) -> int:
        return int(self.function.concurrency) if self._hook.locked() else 0

    def _move(self, call: str) -> str:
        before = self.session.state
        action: str = self.session.move(call)
        if action and self.platform.on_trace:
            self.platform.trace("move", instance=self.id, call=call, state=before,
                                action=action, next=self.session.state,
                                rule=self.rules.STATES[before, call].rule)
        return action

    # -- start --

    def launch(self) -> None:
        platform, function = self.platform, self.function
        if not self.port:
            self.port = free_port()
        elif not platform.attach:  # else the server may be there already
            platform.await_leaving()  # our own last instance may still be ending
            try:
                try_port(self.port)
            except OSError as error:
                raise StartError("port", "port %d is taken by another program (%s). "
                                 "Stop it, or use --port 0 with a server that reads "
                                 "FC_SERVER_PORT" % (self.port, error.strerror))
        self.spawn(dict(platform.facts, instance_id=self.id, port=str(self.port)))
        self._await_port()
        with platform.lock:
            if self._move("connect") != "initialize":
                return  # stopped meanwhile
        verdict, seen = "done", ""
        if function.initializer:  # [fc.initialize.once]
            verdict, seen = self.hook("initialize", function.initializer_timeout_s)
        with platform.lock:
            if verdict == "done" and self._move("initialized"):
                self.has_room_again()
                self._rest()
            elif self._move("refused"):
                kind, text = ("init-timeout", "timed out") if verdict == "timeout" \
                    else ("init-error", "failed")
                self.end(list(self.work), kind, "the initializer %s: %s" % (text, seen))

    def _await_port(self) -> None:
        """Dial until the server accepts [fc.start.probe]. Raises StartError."""
        begin, process, hint_s = time.monotonic(), self.process, 0.5
        while True:
            try:
                self.pool.append(self._dial(1.0))  # for the first request
                return
            except OSError:
                pass
            passed = time.monotonic() - begin
            if process is None:
                time.sleep(0.05)  # attached: nothing else tells when it listens
            elif process.exited.wait(0.001 if passed < 0.05 else 0.005):
                raise StartError("", self._exit_text(process.status, "starting"))
            if passed > self.function.start_timeout_s or self.ending:
                raise StartError("port", self._port_problem(self._listens_at())
                                 + self.misfit())
            if passed > hint_s:
                hint_s, at = passed * 2, self._listens_at()
                if at:
                    hint_s = math.inf
                    with self.platform.lock:
                        self.platform.note("so far " + self._port_problem(at))

    def _listens_at(self) -> str:
        if self.process is not None:
            return ", ".join(one for one in listeners(self.process.pid)
                             if one != "0.0.0.0:%d" % self.port)
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 0.2).close()
            return "127.0.0.1:%d" % self.port
        return ""

    def _port_problem(self, at: str) -> str:
        if re.search(r":%d\b" % self.port, at):  # [fc.start.port]
            return ("the server listens on %s only, where the cloud cannot reach it. "
                    "Bind 0.0.0.0" % at)
        return "%s; the server must listen on 0.0.0.0:$FC_SERVER_PORT" % (
            "the server listens on %s, not on port %d" % (at, self.port) if at else
            "nothing listens on port %d within %g s" % (
                self.port, self.function.start_timeout_s))

    # -- exchanges: invocations and hooks --

    def _dial(self, timeout_s: float) -> Upstream:
        return Upstream(socket.create_connection((self.rules.HOST, self.port),
                                                 max(0.001, timeout_s)))

    def _connect(self, invocation: Invocation) -> Upstream:
        """Return a kept connection, or a new one."""
        found, closed = None, False
        while found is None:
            with self.platform.lock:
                upstream = self.pool.pop() if self.pool else None
            if upstream is None:
                found = self._dial(invocation.deadline - time.monotonic())
            elif upstream.is_usable():
                found = upstream
            else:
                closed |= upstream.used and hung_up(upstream.socket)
                upstream.close()
        if closed:  # while there is a server, so it is not because that has ended
            self._blame(invocation, KEEP_ALIVE)
        return found

    def _blame(self, invocation: Invocation, violation: Violation) -> None:
        with self.platform.lock:
            self.platform.note_violation(violation, invocation.violations)

    def _try(self, invocation: Invocation) -> Tuple[str, str]:
        """Send a request and take the answer; return (kind, message). Blocks until the
        deadline at most."""
        invocation.answer = Answer(invocation.caller if invocation.http_request
                                   else None)
        try:
            return self._ask(invocation)
        except (LimitReached, socket.timeout):
            return "timeout", "the function did not answer within %g s" % (
                self.function.timeout_s)
        except CallerGone:
            return "cancelled", "the caller has gone"
        except BodyTooLarge as error:
            return "response-too-large", "the answer: %s" % error
        except BadMessage as error:
            return self._explain(invocation, str(error), error.violation)
        except OSError as error:
            return self._explain(invocation, "the connection broke: %s" % (
                error.strerror or error))
        finally:
            if invocation.upstream is not None:
                invocation.upstream.close()

    def _ask(self, invocation: Invocation) -> Tuple[str, str]:
        request = invocation.http_request or EVENT_REQUEST
        head = self._format_request(invocation, request)
        upstream = self._connect(invocation)
        try:
            whole, answer = self._send(invocation, upstream, head)
        except ConnectionError as error:
            # [fc.connection.retry] broken before a byte of the answer came; not a hook
            if invocation.outcome is not None or not upstream.used or upstream.heard:
                raise
            # the kernel answers what comes too late to be read with a reset
            was_idle = isinstance(error, (ConnectionResetError, BrokenPipeError))
            if invocation.event or not (invocation.control and
                                        request.method in self.rules.IDEMPOTENT):
                if was_idle:
                    raise BadMessage(*KEEP_ALIVE)
                raise
            upstream.close()
            upstream = self._dial(invocation.deadline - time.monotonic())
            if was_idle:
                self._blame(invocation, KEEP_ALIVE)
            whole, answer = self._send(invocation, upstream, head)
        has_a_body = has_body(answer, request.method)
        kind, text = self._pass(invocation, upstream, answer, has_a_body)
        upstream.caller, upstream.used = None, True
        with self.platform.lock:
            if self.platform.on_trace:
                self.platform.trace_message(
                    "answer", self.id, answer, invocation.answer.first,
                    invocation.answer.size, kind=kind, rule="fc.invoke.answer",
                    request_id=invocation.request_id)
            if whole and answer.keep_alive and answer.words[1] != "101" and (
                    answer.length is not None or not has_a_body) and (
                    self.session.state != "stopping"):
                invocation.upstream = None
                self.pool.append(upstream)
        return kind, text

    def _format_request(self, invocation: Invocation, request: HttpRequest) -> bytes:
        """Write the head of a request to the function's server."""
        fields, path = list(request.headers), request.target.partition("?")[0]
        defaults = [("Host", "%s:%d" % (self.rules.HOST, self.port))]
        if invocation.http_request is not None:
            fields = self.rules.pass_fields(fields, self.rules.DROPPED_REQUEST)
            if wants_upgrade(request):
                fields.append(("Connection", "Upgrade"))
            if invocation.caller is not None:  # [fc.headers.forwarded]
                defaults += [("X-Forwarded-For", invocation.caller.client_address[0]),
                             ("X-Forwarded-Proto", "http")]
        names = {name.lower() for name, _ in fields}
        fields[:0] = [pair for pair in defaults if pair[0].lower() not in names]
        own = self.platform.fields % (invocation.request_id, invocation.control or path,
                                      path)
        if invocation.event or invocation.control != "/http-invoke" or any(
                name.lower() in ("content-length", "transfer-encoding")
                for name, _ in request.headers):
            own += "Content-Length: %d\r\n" % len(invocation.event)
        start = "%s %s HTTP/1.1" % (request.method, request.target)
        own += "\r\n"
        return format_again(start, tuple(fields))[:-2] + own.encode("latin-1")

    def _send(self, invocation: Invocation, upstream: Upstream, head: bytes
              ) -> Tuple[bool, Head]:
        """Send a request; return whether it went out whole, and the head of the
        answer."""
        upstream.deadline, upstream.heard = invocation.deadline, False
        with self.platform.lock:
            invocation.upstream = upstream
            if invocation.outcome is not None:  # else whoever settles it cuts it off
                raise CallerGone
            if self.platform.on_trace:
                self.platform.trace_message("request", self.id, parse_head(head[:-4]),
                                            invocation.event)
        upstream.caller = invocation.caller
        upstream.on_gone = functools.partial(self._leave, invocation)
        whole = upstream.send(head, invocation.event)
        return whole, upstream.read_answer(self.function.response_header_bytes)

    def _leave(self, invocation: Invocation) -> None:
        """Its caller has gone. The handler runs on, and its place is taken until the
        answer has been read away [any.outcome.cancel-instance]; raises CallerGone when
        the instance is replaced instead [fc.caller.replace]."""
        if invocation.outcome is not None or self.function.concurrency == 1:
            raise CallerGone
        invocation.answer.is_lost = True
        with self.platform.lock:
            self.log.take()
            self.platform.settle(invocation, "cancelled", message="the caller has gone")

    def _pass(self, invocation: Invocation, upstream: Upstream, head: Head,
              has_a_body: bool) -> Tuple[str, str]:
        """Pass an answer on; return (kind, message)."""
        answer, is_http = invocation.answer, invocation.http_request is not None
        size = self.rules.fields_size(head.fields)
        if size > self.function.response_header_bytes:  # [fc.limits.response]
            return "response-too-large", (
                "the answer's header fields have %d bytes; the limit is %d"
                % (size, self.function.response_header_bytes))
        fields = self.rules.pass_fields(head.fields, self.rules.DROPPED_RESPONSE) if (
            is_http) else []
        own: Pairs = (("X-Fc-Request-Id", invocation.request_id),)
        if answer.caller is not None:
            left = max(0.001, invocation.deadline - time.monotonic())
            answer.caller.limit_writes(min(SILENCE_S, left))
            answer.caller.unread = head.words[1] == "101"   # what follows is no request
        if head.words[1] == "101":  # [fc.upgrade.pass]
            if answer.caller is None or not wants_upgrade(invocation.http_request):
                raise BadMessage("fc.upgrade.pass", "status 101 for a request that did "
                                 "not ask to upgrade, or came without a caller")
            answer.begin(head, fields, own + (("Connection", "Upgrade"),), False)
            answer.tunnel(upstream)
            return "ok", ""
        # [fc.headers.reserved-response] an offer to upgrade is not for the caller
        fields = [pair for pair in fields if pair[0].lower() != "upgrade"]
        answer.begin(head, fields, own, has_a_body)
        limit = self.function.result_bytes if answer.caller is None else sys.maxsize
        for part in read_parts(upstream.reader, head.length if has_a_body else 0,
                               limit):
            answer.write(part)
        if invocation.outcome is None:  # else it was cut off, or nobody wants it
            answer.end()
        if answer.is_lost:
            return "cancelled", "the caller has gone"
        return self._judge(invocation, is_http, head.get("x-fc-status"))

    def _judge(self, invocation: Invocation, is_http: bool, fc_status: str
               ) -> Tuple[str, str]:
        """Return (kind, message) of a whole answer; report one that is none to an event
        [fc.invoke.status]."""
        status, seen = invocation.answer.status, "the function reported a failure"
        kind: str = self.rules.judge_answer(is_http, status, fc_status)
        if not is_http and not fc_status and status != 200:
            seen = "POST /invoke was answered with status %d and no X-Fc-Status%s%s" % (
                status, "; the cloud takes that as success" if kind == "ok" else "",
                "; has the server this route? For HTTP functions use --request"
                if status in (404, 405) else "")
            self._blame(invocation, Violation("fc.invoke.status", seen))
        return kind, "" if kind == "ok" else seen + error_text(
            b"".join(invocation.answer.parts))

    def _explain(self, invocation: Invocation, message: str,
                 violation: Optional[Violation] = None) -> Tuple[str, str]:
        """Return (kind, message) of an exchange that broke off or was no HTTP
        [fc.outcome.bad-response], unless the process has ended [any.outcome.exit]."""
        process = self.process
        if invocation.outcome is not None:
            return "cancelled", message  # we may have cut it off
        if process is not None and process.ends_now() and (
                violation is None or violation.rule in ("any.http.no-effect",
                                                        KEEP_ALIVE.rule)):
            over = self.over_memory()
            return "out-of-memory" if over else "exit", over or (
                "the bootstrap ended %s during the request" % describe_status(
                    process.status))
        if violation is not None:
            self._blame(invocation, violation)
        return "bad-response", message

    def cut_off(self, invocation: Invocation) -> None:
        if invocation.upstream is not None:
            shut(invocation.upstream.socket)

    def hook(self, call: str, timeout_s: float) -> Tuple[str, str]:
        """Call a hook; return (done, failed, broken or timeout; what was seen). Blocks
        for its limit at most."""
        platform, rules = self.platform, self.rules
        method = "POST" if call == "initialize" else "GET"
        hook = Invocation(rules.new_id(), b"", HttpRequest(method, "/" + call))
        hook.control, hook.deadline = "", time.monotonic() + timeout_s
        with platform.lock:
            platform.log_line(0, hook.request_id, rules.HOOK_NAMES[call])
        kind, seen = self._try(hook)
        verdict = HOOK_VERDICTS.get(kind, "failed")
        if kind in ("ok", "function-error"):
            verdict = rules.judge_hook(hook.answer.status)
            seen = "%s /%s was answered with status %d" % (method, call,
                                                           hook.answer.status)
        elif kind == "timeout":
            seen = "no answer within %g s" % timeout_s
        with platform.lock:
            self.log.take()
            platform.log_line(
                1, hook.request_id, rules.HOOK_NAMES[call], error="" if
                verdict == "done" else ", Error: %s, %s" % (verdict, seen))
            platform.trace("hook", instance=self.id, call=call, verdict=verdict,
                           seen=seen)
        return verdict, seen

    # -- invocations --

    def begin(self, invocation: Invocation) -> None:
        if self._move("invoke") == "thaw":  # [fc.freeze.thaw]
            self.signal(signal.SIGCONT)
        super().begin(invocation)
        self.set_deadline(math.inf)     # the exchange keeps the time itself
        if not invocation.is_carried:
            self.platform.lock.later(start_thread, self.exchange, invocation)

    def exchange(self, invocation: Invocation) -> None:
        """Send the event and pass the answer on; then the invocation is settled. Blocks
        until then, the function's time limit at most."""
        kind, message = "bad-response", OUR_ERROR
        try:
            kind, message = self._try(invocation)
        except Exception:
            fault()
        finally:
            with self.platform.lock:
                self.log.take()
                self._conclude(invocation, kind, message)

    def _conclude(self, invocation: Invocation, kind: str, message: str) -> None:
        platform = self.platform
        if platform.attach and kind in ("timeout", "cancelled"):
            pass    # whoever started the server may be at a breakpoint
        elif kind in ("timeout", "exit", "out-of-memory") or platform.attach and (
                kind == "bad-response"):  # [fc.time.others]
            self.end([invocation], kind, message)
        elif kind == "cancelled" and self.function.concurrency == 1:
            platform.discard(self, "stop")  # [fc.caller.replace]
        platform.settle(invocation, kind, message=message,
                        body=b"".join(invocation.answer.parts))
        del self.work[invocation]
        self._move("settled")
        if not self.work:
            platform.changed.notify_all()
            platform.lock.later(self.kill)
        self.has_room_again()
        self._rest()

    # -- freeze and end --

    def _rest(self) -> None:
        """Freeze it when nothing runs, after the hook [fc.freeze.idle]; a waiting event
        comes first, and one that comes during the hook waits for its end."""
        function = self.function
        if self.session.state == "idle" and function.freeze and function.pre_freeze:
            if self._hook.acquire(blocking=False):
                self.platform.lock.later(start_thread, self._rest_after_hook)
        elif function.freeze and self._move("quiet"):
            self.signal(signal.SIGSTOP)

    def _rest_after_hook(self) -> None:
        verdict = ""
        if self.session.state == "idle":
            verdict, _ = self.hook("pre-freeze", self.function.pre_freeze_timeout_s)
        with self.platform.lock:
            self._hook.release()
            if verdict == "broken":  # [fc.hook.broken]
                self.end([])
            elif self.session.state == "idle":
                self.platform.offer(self)
                if self._move("quiet"):
                    self.signal(signal.SIGSTOP)

    def retire(self) -> None:
        self._move("stop")

    def stop(self) -> None:
        """Thaw, call the pre-stop hook, end it [fc.stop.order]. Blocks for these."""
        with self._hook:
            self.signal(signal.SIGCONT)
            if self.function.pre_stop and self.served:
                self.hook("pre-stop", self.function.pre_stop_timeout_s)
        super().stop()

    def exited(self, state: str, status: int) -> None:
        """Requests in flight notice the end by their connections."""
        bound = list(self.work) if state in STARTING else []
        self.end(bound, self.rules.ON_EXIT.get(state, ""),
                 self._exit_text(status, state) if bound else "")

    def _exit_text(self, status: int, state: str) -> str:
        return "the bootstrap ended %s %s%s. %s" % (
            describe_status(status), DURING[state], self.misfit(), self.rules.exit_text(
                status, self.function.command or ["/code/bootstrap"]))

    def cleanup(self) -> None:
        with self.platform.lock:  # what it sent before its end is read
            self.platform.changed.wait_for(lambda: not self.work, LAST_WORDS_S)
            pool, self.pool = self.pool, []
            for invocation in self.work:
                self.cut_off(invocation)  # a child in another group holds it open
        for upstream in pool:
            upstream.close()
        super().cleanup()


# ---- the platform ----

class Platform:
    """Starts, reuses and stops instances of one function, and invokes it.

    `code` is a folder or a ZIP. Settings are those of Function. `on_log` receives what
    the function prints and the platform's log lines, as bytes; `on_note` what the
    platform itself has to say; `on_trace` one dict per message and state change. These
    must not call the platform; while they block, it may wait. `attach` starts no
    process: it receives the environment of one that is started by hand. `watch`: when a
    file of the code has changed, the next event gets a new instance.
    Raises ValueError for a bad setting or package. Use it with `with`, or close() it.
    """

    def __init__(self, protocol: str, code: str = ".", *,
                 on_log: Optional[Callable[[bytes], None]] = None,
                 on_note: Optional[Callable[[str], None]] = None,
                 on_trace: Optional[Callable[[Dict[str, object]], None]] = None,
                 attach: Optional[Callable[[Dict[str, str]], None]] = None,
                 cores: Optional[Iterable[int]] = None, watch: bool = False,
                 **settings: Any) -> None:
        self.protocol = LONG_NAMES.get(protocol, protocol)
        self.function = Function(self.protocol, **settings)
        if attach and self.function.port:  # one runtime API, or server, on it
            self.function.max_instances = min(1, self.function.max_instances)
        self.rules: Any = RULES[self.protocol]
        self._on_log, self._on_note, self.on_trace = on_log, on_note, on_trace
        self._saying = threading.Lock()
        self._said: "collections.deque[Tuple[Any, Any]]" = collections.deque()
        self._mid_line = False  # of the log
        self.attach = attach
        self.cores = cores
        self.code, self.package = code, "" if os.path.isdir(code) else code
        self._seen = snapshot(code) if watch else None  # of the code, at the last look
        self._looks_at = 0.0    # not before this time again
        self._looking = threading.Lock()
        self._packages: List[Callable[[], None]] = []   # how to remove each
        self._begun = time.monotonic()
        self.lock = DeferringLock()
        with self.lock:
            self._open_code(*open_package(code))
        self.clock = Clock()
        self.instances: List[Instance] = []     # last used, last
        self._leaving: List[Instance] = []      # they take nothing more
        self.changed = threading.Condition(self.lock.lock)
        self.queue: "collections.deque[Invocation]" = collections.deque()
        self.violations: List[Violation] = []
        self._told: Dict[str, Set[str]] = {}    # rule -> what was seen, without ids
        self.counts: Dict[str, int] = dict.fromkeys(
            ("accepted", "cold_starts", "reused") + KINDS, 0)
        self.pending = 0    # invocations without an outcome
        self.faults = 0     # errors of our own
        self._closing = self._closed = False
        self._owner = os.getpid()
        atexit.register(self.close)  # if it is forgotten
        OPEN.add(self)

    def _open_code(self, folder: str, remove: Callable[[], None]) -> None:
        """From now on start instances of this folder (lock held)."""
        self.folder = folder
        self._packages.append(remove)
        if self.package and backslashes(folder):
            self.note("the function is " + self.package + backslashes(folder))
        self._find_code_folder()
        self.facts: Facts = self.rules.describe(self.function, folder)
        # those that accompany an event, with %s where they differ
        facts = {name: text.replace("%", "%%") for name, text in self.facts.items()}
        facts.update(request_id="%s", control_path="%s", base_path="%s")
        self.fields = format_head("", self.rules.fill_in(self.rules.HEADERS, facts))[
            2:-2].decode("latin-1")

    def _look(self) -> None:
        """Let the next event start a new instance if the code has changed, running ones
        end. Looking costs a quarter of a core at most."""
        with self._looking:
            if time.monotonic() < self._looks_at:
                return
            began = time.thread_time()
            seen, before = snapshot(self.code), self._seen
            self._looks_at = time.monotonic() + 3 * (time.thread_time() - began)
            self._seen = seen
            if seen == before:
                return
            opened, said = None, "the next event gets a new instance"
            try:
                opened = open_package(self.code)
            except ValueError as error:
                said = "but the old one serves on: %s" % error
            with self.lock:
                self.note("the code has changed%s %s" % (";" if opened else ",", said))
                if opened is None:
                    return
                self._open_code(*opened)
                for instance in list(self.instances):
                    instance.is_old = True
                    if not instance.work and instance.session.state in IDLE:
                        self.discard(instance, "stop")

    def _find_code_folder(self) -> None:
        """Let the cloud's path of it mean our code folder [any.start.code-folder]."""
        root, env = self.rules.CODE_ROOT, self.function.env
        command = list(self.function.command)
        self.words = [in_folder(word, root, self.folder) for word in command]
        self.env = {name: in_folder(env[name], root, self.folder) for name in env}
        found = [name for name in env if env[name] != self.env[name]]
        if self.words != command:
            found.insert(0, "the start command")
        if found:
            self.note("%s is the code folder, %s, in %s" % (
                root, self.folder, ", ".join(found)))

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
        has_ended = threading.Event()
        invocation = Invocation(self.rules.new_id(), event, http,
                                lambda outcome: has_ended.set())
        self.carry(invocation)
        has_ended.wait()
        assert invocation.outcome is not None
        return invocation.outcome

    def submit(self, invocation: Invocation) -> None:
        """Issue or queue an invocation, in the order of the calls; never blocks for
        long. `on_done` is called once."""
        if self._seen is not None:
            self._look()
        if invocation.caller is not None and wants_upgrade(invocation.http_request):
            invocation.caller.unread = True     # what follows is for tunnel() alone
        with self.lock:
            if self._accept(invocation):
                self.place(invocation)
            invocation.is_carried &= invocation.started > 0

    def carry(self, invocation: Invocation) -> None:
        """Submit it. On fc, if it begins at once, it is sent from here, and this blocks
        for that: another thread costs a tenth of the time."""
        invocation.is_carried = self.protocol == "fc"
        self.submit(invocation)
        if invocation.is_carried and isinstance(invocation.instance, PushInstance):
            invocation.instance.exchange(invocation)

    def cancel(self, invocation: Invocation) -> bool:
        """The caller has gone; False if there is an outcome already."""
        with self.lock:
            instance = invocation.instance
            if invocation in self.queue:
                self.queue.remove(invocation)
            elif instance is not None and not invocation.started:
                instance.work.pop(invocation, None)
                self.offer(instance)
            elif self.protocol == "fc":
                return False  # just begun: its exchange will notice
            return self.settle(invocation, "cancelled", message="the caller has gone")

    def prepare(self) -> None:
        """Start an instance, if there is none, before there is an event: `attach` is
        told what it needs. Failures are notes; never blocks."""
        with self.lock:
            if not self.instances and self.function.max_instances:
                self._start_another()

    def drain(self, timeout_s: float = math.inf) -> bool:
        """Accept nothing new and wait until every invocation has its outcome; return
        whether all have."""
        with self.lock:
            self._closing = True
            return self.changed.wait_for(lambda: not self.pending, min(
                timeout_s, threading.TIMEOUT_MAX))

    def close(self) -> None:
        """Stop everything: what still runs is cancelled, every process ends. Blocks
        for the pre-stop hook and the grace at most. In a process that was forked from
        the platform's it does nothing: the instances are not that one's."""
        if os.getpid() != self._owner or self._closed:
            return
        self._closing = self._closed = True
        atexit.unregister(self.close)
        reason = "the platform was stopped"
        try:
            with self.lock:
                while self.queue:
                    self.settle(self.queue.popleft(), "cancelled", message=reason)
                for instance in list(self.instances):
                    self.discard(instance, "stop")
                for instance in list(self._leaving):
                    instance.end(list(instance.work), "cancelled", reason)
            self.await_leaving()
        except BaseException:  # Ctrl-C: whoever it was has no patience
            for instance in self.instances + self._leaving:
                instance.signal(signal.SIGKILL)
            raise
        finally:
            self.clock.close()
            for remove in self._packages:
                remove()
            OPEN.discard(self)

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

    # -- placing invocations (lock held) --

    def _accept(self, invocation: Invocation) -> bool:
        """Count an invocation in, or settle it."""
        function, request = self.function, invocation.http_request
        size = invocation.size
        self.counts["accepted"] += 1
        self.pending += 1
        problem = "" if request is None else fc_platform.request_problem(
            function, request.target, request.headers)  # [fc.limits.request]
        if size > function.event_bytes:  # [any.event.size]
            problem = "the event has %d bytes; the limit is %d" % (
                size, function.event_bytes)
        if self._closing:
            self.settle(invocation, "cancelled", message="the platform stops")
        elif problem:
            self.settle(invocation, "request-too-large", size=size, message=problem)
        return invocation.outcome is None

    def place(self, invocation: Invocation, first: bool = False) -> None:
        """Give an invocation to an instance, queue it (`first`: before the others), or
        settle it."""
        for instance in self.instances[::-1]:
            if instance.has_room():
                process = instance.process
                if instance.work or process is None or not process.has_ended():
                    instance.take(invocation)
                    return
                self.discard(instance, "kill")  # [any.instance.replace]
        function, waiting = self.function, len(self.queue)
        soon = sum(one.room_soon() for one in self.instances)
        may_start = len(self.instances) < function.max_instances and waiting >= soon
        if not function.max_instances:  # [any.queue.limit]
            self.settle(invocation, "throttled", message="the function is disabled: "
                        "max_instances is 0")
        elif not first and not may_start and waiting >= function.queue + soon:
            self.settle(invocation, "throttled", message="%d instances are busy and %d "
                        "events wait" % (len(self.instances), waiting))
        else:
            invocation.deadline = time.monotonic() + function.queue_timeout_s
            self.queue.insert(0 if first else waiting, invocation)
            if may_start:
                self._start_another()
            elif not waiting:
                self.clock.set(self._on_queue_time, invocation.deadline)

    def _start_another(self) -> None:
        instance = (PushInstance if self.protocol == "fc" else PullInstance)(self)
        self.instances.append(instance)
        self.counts["cold_starts"] += 1
        self.offer(instance)
        self.lock.later(start_thread, instance.start)

    def offer(self, instance: Instance) -> None:
        """Give an instance that was just used what waits [any.queue.order]."""
        while self.queue and instance.has_room():
            instance.take(self.queue.popleft())
        if not instance.ending:
            self.instances.remove(instance)
            self.instances.append(instance)

    def discard(self, instance: Instance, ending: str) -> None:
        """Let an instance take no more work; others take what waits. `ending`: "stop"
        it in order now, or "kill" it when nothing runs in it any more."""
        if instance.ending:
            return
        instance.ending = ending
        if ending == "stop":
            self.lock.later(start_thread, instance.stop)
        self.instances.remove(instance)
        self._leaving.append(instance)
        instance.retire()
        while self.queue and len(self.instances) < self.function.max_instances:
            self._start_another()

    def settle(self, invocation: Invocation, kind: str, *, body: bytes = b"",
               message: str = "", size: int = 0, start_error: str = "") -> bool:
        """Give an invocation its one outcome [any.outcome.one]; False if it had one."""
        if invocation.outcome is not None:
            return False
        instance, started = invocation.instance, invocation.started
        peak_mb = instance.peak_mb() if instance is not None else 0.0
        if instance is not None and peak_mb > self.function.memory_mb and kind in (
                "ok", "function-error"):  # all else that runs here ends, too
            kind, message, body = "out-of-memory", instance.over_memory(), b""
            instance.end([one for one in instance.work if one is not invocation],
                         kind, message)
        duration_ms = (time.monotonic() - started) * 1000 if started else 0.0
        try:
            status, headers, shown = self._show(
                invocation, kind, body, start_error, message=message, size=str(size),
                duration="%d" % duration_ms, peak_mb="%.2f" % peak_mb)
        except Exception:
            fault()
            status, headers, shown = 500, (), OUR_ERROR.encode()
        invocation.outcome = Outcome(
            kind, shown, invocation.request_id, duration_ms,
            tuple(invocation.violations), message, status, headers,
            instance.log.take_tail() if instance is not None else b"", peak_mb)
        self.counts[kind] += 1
        self.pending -= 1
        if self._closing and not self.pending:
            self.changed.notify_all()
        attempt(self._report, invocation, invocation.outcome)
        self.lock.later(invocation.on_done, invocation.outcome)
        return True

    def _show(self, invocation: Invocation, kind: str, body: bytes, start_error: str,
              **more: str) -> Tuple[int, Pairs, bytes]:
        """Return (status, headers, body) that the caller sees."""
        facts, function = {"request_id": invocation.request_id}, self.function
        if kind != "ok":  # nearly always: no document to fill in
            facts.update(
                self.facts, **more, start_error=self.rules.START_ERRORS[start_error],
                event_bytes=str(function.event_bytes),
                result_bytes=str(function.result_bytes))
        if invocation.http_request is None:
            status, headers, shown = self.rules.caller_answer(kind, body, facts)
            return status, headers, shown
        status, headers, shown = fc_platform.caller_answer(kind, body, facts, True)
        if kind in ("ok", "function-error"):  # [fc.http.pass]
            status = invocation.answer.status
            headers += tuple(invocation.answer.fields)
        return status, headers, shown

    def _report(self, invocation: Invocation, outcome: Outcome) -> None:
        """Trace and log the end of an invocation."""
        kind, duration_ms = outcome.kind, outcome.duration_ms
        if self.on_trace:
            self.trace("outcome", request_id=invocation.request_id, kind=kind,
                       message=outcome.message, duration_ms=round(duration_ms, 3))
        if invocation.started and self._on_log is not None:
            self.log_line(
                1, invocation.request_id, duration=round(duration_ms),
                exact="%.3f" % duration_ms, billed=math.ceil(duration_ms),
                peak_mb="%.3f" % outcome.peak_mb, memory_mb=self.function.memory_mb,
                error="" if kind == "ok" else ", Error: " + outcome.message)

    # -- called without the lock --

    def give_up(self) -> None:
        """Cancel whatever runs: nobody knows what is left undone of it."""
        with self.lock:
            for instance in self.instances + self._leaving:
                instance.end(list(instance.work), "cancelled", OUR_ERROR)

    def forget(self, instance: Instance) -> None:
        """The instance has ended and holds nothing any more."""
        with self.lock:
            if instance in self._leaving:
                self._leaving.remove(instance)
            if not self._leaving and not any(one.is_old for one in self.instances):
                while len(self._packages) > 1:
                    self.lock.later(self._packages.pop(0))
            self.changed.notify_all()

    def await_leaving(self) -> None:
        """Block until every instance that was discarded has ended: for the limits of
        its hooks and the grace at most."""
        limits = vars(self.function)
        with self.lock:
            self.changed.wait_for(lambda: not self._leaving, 10 + sum(
                limits.get(name, 0) for name in ("pre_freeze_timeout_s",
                                                 "pre_stop_timeout_s", "grace_s")))

    def _on_queue_time(self) -> None:
        now = time.monotonic()
        with self.lock:
            while self.queue and self.queue[0].deadline <= now:
                self.settle(self.queue.popleft(), "throttled", message="no instance "
                            "became free within %g s" % self.function.queue_timeout_s)
            if self.queue:
                self.clock.set(self._on_queue_time, self.queue[0].deadline)

    def watch_memory(self) -> None:
        """Look at the memory soon; called whenever something begins to run."""
        if not self.clock.is_set(self._on_memory_time) and not self.attach:
            self.clock.set(self._on_memory_time, time.monotonic() + MEMORY_TICK_S)

    def _on_memory_time(self) -> None:
        """Sample the groups; end those over the limit [any.memory.limit]."""
        with self.lock:
            watched = self.instances + [one for one in self._leaving if one.work]
        measure([one.process for one in watched if one.process is not None])
        with self.lock:
            for instance in watched:
                over = instance.over_memory()
                if over:
                    instance.end(list(instance.work), "out-of-memory", over)
            if any(one.session.state not in IDLE for one in watched):
                self.watch_memory()

    def environment(self, facts: Facts) -> Dict[str, str]:
        """Return the bootstrap's whole environment [any.env.inherited]."""
        env = {name: os.environ.get(name, value)
               for name, value in self.rules.INHERITED.items()}
        env.update(self.rules.fill_in(self.rules.ENVIRONMENT, facts))
        env.update(self.env)
        return env

    # -- what people read (lock held) --

    def _say(self, listener: Optional[Callable[[Any], None]], what: object) -> None:
        """Let a listener, if there is one, have this when the lock is released: it may
        block."""
        if listener is not None:
            self._said.append((listener, what))
            self.lock.later(self.flush)

    def flush(self) -> None:
        """Call the listeners, in order; their own errors are nothing to an invocation.
        Blocks while nobody reads (lock not held)."""
        with self._saying:
            while self._said:
                listener, what = self._said.popleft()
                try:
                    listener(what)
                except (Exception, SystemExit):
                    sys.excepthook(*sys.exc_info())

    def note(self, text: str) -> None:
        """Say something of our own."""
        self._say(self._on_note, text)

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
        told, text = self._told.setdefault(rule, set()), IDS.sub("", seen)
        if text not in told and len(told) < TOLD:
            told.add(text)
            self.note("the bootstrap broke %s: %s" % (rule, seen))

    def write_log(self, data: Union[bytes, str]) -> None:
        """Pass on what the function prints, or a line of ours."""
        self._say(self._on_log and self._print, data)

    def _print(self, data: Union[bytes, str]) -> None:
        """Give each line of ours a line of its own."""
        if isinstance(data, str):
            data = b"\n" * self._mid_line + data.encode("utf-8", "backslashreplace")
        self._mid_line = not data.endswith(b"\n")
        assert self._on_log is not None
        self._on_log(data)

    def log_line(self, number: int, request_id: str, call: str = "Invoke",
                 **facts: object) -> None:
        """Print a vendor's line: 0 before an invocation begins, 1 when it has ended."""
        if self._on_log is not None:
            utc = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            self.write_log(self.rules.LOG_LINES[number].format(
                request_id=request_id, call=call, utc=utc,
                version=self.facts["version"], **facts))

    def trace_message(self, what: str, instance: str, head: Head, body: bytes,
                      size: int = -1, **facts: object) -> None:
        """Report a message: its first line, the fields of SHOWN_FIELDS, its size and
        how it begins."""
        words, size = head.words, max(size, len(body))
        first: Dict[str, object] = {"method": words[0], "path": words[1]} if (
            head.is_request) else {"status": int(words[1])}
        text = body[:SEEN_CHARACTERS].decode("utf-8", "replace")
        self.trace(what, instance=instance, **first, fields={
            name: value for name, value in head.fields
            if name.lower() in SHOWN_FIELDS}, bytes=size,
            body=text + "\u2026" * (size > SEEN_CHARACTERS), **facts)

    def trace(self, what: str, **facts: object) -> None:
        """Report a message or a change of state."""
        if self.on_trace is not None:
            passed = time.monotonic() - self._begun
            self._say(self.on_trace,
                      dict({"ms": round(passed * 1000, 3), "what": what}, **facts))


# ---- front door ----

NATIVE_CALLS = {"/-/invoke": ("POST",), "/-/health": ("GET", "HEAD"),
                "/-/state": ("GET", "HEAD")}


class FrontDoor(Server):
    """A server for callers of the function. `on_outcome` hears of each outcome before
    the caller does; pages of the origin `cors` ("*": of any) may call it, too. Raises
    OSError when it cannot listen."""

    def __init__(self, platform: Platform, host: str = "127.0.0.1", port: int = 0,
                 on_outcome: Callable[[Outcome], None] = lambda outcome: None,
                 cors: str = "") -> None:
        self.on_outcome = on_outcome
        self.cors_fields = cors.encode() and (
            b"Access-Control-Allow-Origin: %s\r\nAccess-Control-Expose-Headers: "
            b"X-Outcome, X-Request-Id\r\n" % cors.encode())
        super().__init__(host, port, Caller, platform)


class Caller(Handler):
    """A connection of a caller."""

    server: FrontDoor
    idle_limit_s = KEEP_ALIVE_S
    invocation: Invocation      # that it waits for

    def respond(self) -> None:
        """Route a request: /-/invoke, /-/health, /-/state, or the HTTP function."""
        platform: Platform = self.server.app
        # a target in absolute form counts as its path [fc.invoke.http]
        self.path = re.sub(r"(?i)^https?://[^/?]*/?", "/", self.path)
        path = self.path.partition("?")[0]
        methods = NATIVE_CALLS.get(path)
        wanted = self.head.get("access-control-request-method")
        if self.server.cors_fields and self.command == "OPTIONS" and wanted:
            self._reply(format_head(status_line(204), (
                ("Access-Control-Allow-Methods", wanted),
                ("Access-Control-Allow-Headers",
                 self.head.get("access-control-request-headers") or "*"),
                ("Access-Control-Max-Age", "600"))), b"")
        elif methods is None and not path.startswith("/-/") and (
                platform.protocol == "fc"):
            self._invoke(HttpRequest(self.command, self.path, self.head.fields))
        elif methods is None:
            self._reply(*json_answer(404, {
                "error": "there is nothing at %s; POST /-/invoke, GET /-/health or "
                "/-/state" % path[:80]}))
        elif self.command not in methods:
            self._reply(*json_answer(405, {"error": "use %s %s" % (methods[0], path)}))
        elif path == "/-/invoke":
            self._invoke(None)
        else:
            self._reply(*json_answer(200, platform.state() if path == "/-/state"
                                     else {"status": "ok"}))

    def complete(self, head: bytes, body: bytes) -> bytes:
        """Let pages read it, unless the function says who may."""
        if self.server.cors_fields and (
                b"\r\naccess-control-allow-origin:" not in head.lower()):
            head = head[:-2] + self.server.cors_fields + b"\r\n"
        return super().complete(head, body)

    def _reply(self, head: bytes, body: bytes) -> None:
        """Answer a request whose body, if any, means nothing."""
        with contextlib.suppress(BodyTooLarge):
            self.read_body(CHUNK_BYTES)
        self.answer(head, body)

    def _invoke(self, request: Optional[HttpRequest]) -> None:
        platform: Platform = self.server.app
        event, size = b"", 0
        try:
            event = self.read_body(platform.function.event_bytes)
        except BodyTooLarge as error:
            size = error.size  # its outcome is given without an instance
        self.invocation = Invocation(platform.rules.new_id(), event, request,
                                     self._done, self, size)
        self.defer()
        platform.carry(self.invocation)

    def _done(self, outcome: Outcome) -> None:
        """Answer, from whatever thread has the outcome."""
        self.server.on_outcome(outcome)
        if not self.invocation.answer.begun:
            self.answer(*native_answer(outcome))
            return
        if outcome.kind not in ("ok", "function-error"):
            self.closing = True  # half an answer must look like half an answer
            shut(self.connection)
        self.release()

    def withdraw(self) -> bool:
        """A caller hung up while its event runs [any.caller.gone]; _done ends it."""
        self.app.cancel(self.invocation)
        return False


def native_answer(outcome: Outcome) -> Tuple[bytes, bytes]:
    """Return (head, body) of an outcome as POST /-/invoke shows it."""
    start = status_line(outcome.status) + "".join(
        "\r\n%s: %s" % pair for pair in outcome.headers)  # ours, so they are clean
    return ("%s\r\nX-Outcome: %s\r\nX-Request-Id: %s\r\nX-Peak-Mb: %.3f\r\n"
            "Content-Length: %d\r\n\r\n" % (
                start, outcome.kind, outcome.request_id, outcome.peak_mb,
                len(outcome.body))).encode("latin-1"), outcome.body


# ---- events of triggers ----

# Made-up ones, in the shapes of SPEC.md 10.1; protocol -> name -> event.
SAMPLE_EVENTS = """
{"scf":{"apigw":{"headerParameters":{},"headers":{
"host":"service-1.gz.apigw.tencentcs.com","user-agent":"curl/8.0",
"x-api-scheme":"https"},"httpMethod":"GET","path":"/hello","pathParameters":{},
"queryString":{"name":"you"},"queryStringParameters":{},"requestContext":{
"httpMethod":"ANY","identity":{},"path":"/hello","serviceId":"service-1",
"sourceIp":"10.0.0.1","stage":"release"}},
"timer":{"Message":"","Time":"2026-01-02T03:04:05Z","TriggerName":"hourly",
"Type":"Timer"},
"cos":{"Records":[{"cos":{"cosBucket":{"appid":"1250000000","name":"bucket",
"region":"gz"},"cosNotificationId":"unkown","cosObject":{
"key":"/1250000000/bucket/a.jpg","meta":{"Content-Type":"image/jpeg",
"x-cos-request-id":"r1"},"size":1029,
"url":"http://bucket-1250000000.cos.ap-guangzhou.myqcloud.com/a.jpg","vid":""},
"cosSchemaVersion":"1.0"},"event":{"eventName":"cos:ObjectCreated:Put",
"eventQueue":"qcs:0:scf:gz:appid/1250000000:default.function.$LATEST",
"eventSource":"qcs::cos","eventTime":1767323045,"eventVersion":"1.0","reqid":1,
"requestParameters":{"requestHeaders":{},"requestSourceIP":"10.0.0.1"},
"reservedInfo":""}}]}},
"fg":{"apig":{"body":"aGVsbG8=","headers":{
"host":"a1.apig.cn-north-4.huaweicloudapis.com","user-agent":"curl/8.0",
"x-real-ip":"10.0.0.1"},"httpMethod":"POST","isBase64Encoded":true,"path":"/hello",
"pathParameters":{},"queryStringParameters":{"name":"you"},"requestContext":{
"apiId":"a1","requestId":"r1","sourceIp":"10.0.0.1","stage":"RELEASE"}},
"timer":{"version":"v1.0","time":"2026-01-02T03:04:05+08:00","trigger_type":"TIMER",
"trigger_name":"hourly","user_event":""},
"smn":{"record":[{"event_version":"1.0",
"event_subscription_urn":"urn:fss:cn-north-4:p1:function:default:function:latest",
"event_source":"smn","smn":{"topic_urn":"urn:smn:cn-north-4:p1:topic",
"timestamp":"2026-01-02T03:04:05Z","message_attributes":null,"message":"hello",
"type":"notification","message_id":"m1","subject":"greeting"}}]}},
"fc":{"http":{"version":"v1","rawPath":"/hello","body":"hello","isBase64Encoded":false,
"headers":{"Content-Type":"text/plain","User-Agent":"curl/8.0"},"queryParameters":{
"name":"you"},"requestContext":{"accountId":"1","domainName":"a1.cn-hangzhou.fcapp.run",
"domainPrefix":"a1","http":{"method":"POST","path":"/hello","protocol":"HTTP/1.1",
"sourceIp":"10.0.0.1","userAgent":"curl/8.0"},"requestId":"r1",
"time":"2026-01-02T03:04:05Z","timeEpoch":"1767323045000"}},
"oss":{"events":[{"eventName":"ObjectCreated:PutObject","eventSource":"acs:oss",
"eventTime":"2026-01-02T03:04:05.000Z","eventVersion":"1.0","oss":{"bucket":{
"arn":"acs:oss:cn-hangzhou:1:bucket","name":"bucket","ownerIdentity":"1",
"virtualBucket":""},"object":{"deltaSize":1029,"eTag":"E1","key":"a.jpg","size":1029},
"ossSchemaVersion":"1.0","ruleId":"u1"},"region":"cn-hangzhou","requestParameters":{
"sourceIPAddress":"10.0.0.1"},"responseElements":{"requestId":"r1"},"userIdentity":{
"principalId":"1"}}]},
"timer":{"triggerTime":"2026-01-02T03:04:05Z","triggerName":"hourly","payload":""}}}"""


# ---- command line: its options ----

MAX_PARALLEL = 10000     # each line in flight may have a thread
FAILED, USAGE_ERROR, BROKEN_RULE, INTERRUPTED = 1, 2, 3, 130

Given = Dict[str, List[Any]]    # what each option was given, in order; last used, last


class Option(NamedTuple):
    """A row of --help: what an option takes ("" = nothing, "[X]" = X or nothing), what
    it does, what else it needs, who has it, which setting of Function it gives, what
    holds without it. A name without a dash is the heading of the rows that follow."""

    name: str
    takes: str = ""
    text: str = ""
    needs: str = ""
    protocols: Tuple[str, ...] = PROTOCOLS
    setting: str = ""
    default: str = ""


FC, PULLING = ("fc",), ("scf", "fg")
OPTIONS = (
    Option("What to do"),
    Option("--event", "TEXT|@FILE|-", "invoke with this event; may be repeated"),
    Option("--request", "'METHOD /PATH'", "call the HTTP function; --event is the body",
           "", FC),
    Option("--header", "'NAME: VALUE'", "a field of it; may be repeated", "--request",
           FC),
    Option("--events", "FILE", "invoke with each line of a file"),
    Option("--serve", "[[HOST:]PORT]", "serve callers until a signal",
           default="$PORT or 8080"),
    Option("--cors", "http://HOST[:PORT]|*", "its pages may call", "--serve"),
    Option("--jsonl", "", "a line of stdin is a call, of stdout an outcome"),
    Option("--parallel", "N", "so many lines at a time", "--jsonl", default="1"),
    Option("--sample-event", "NAME", "print such an event, for --event -"),
    Option("How"),
    Option("--trace", "FILE|-", "show messages and changes; to a FILE as JSON"),
    Option("--debug", "", "no time limit, no freeze, one instance"),
    Option("--attach", "", "start nothing: you start the bootstrap yourself"),
    Option("--watch", "", "a new instance when a file of CODE has changed"),
    Option("--strict", "", "exit with 3 when the bootstrap broke a rule"),
    Option("--quiet", "", "no output of the function, no log lines"),
    Option("--no-pin", "", "use all cores: faster from two callers on"),
    Option("The function"),
    Option("--env", "NAME=VALUE", "an environment variable; may be repeated"),
    Option("--env-file", "FILE", "a file of such lines; # begins a comment"),
    Option("--handler", "NAME", "the handler's name", setting="handler"),
    Option("--name", "NAME", "the function's name", setting="name", default="function"),
    Option("--credentials", "FILE", "a JSON object with the keys of its role"),
    Option("--port", "PORT", "the server's; 0 = any, many instances", "", FC, "port",
           str(WORDS["port"])),
    Option("--port", "PORT", "that of the runtime API", "--attach", PULLING, "port",
           str(WORDS["port"])),
    Option("--initializer", "", "it has the Initializer hook", "", FC, "initializer"),
    Option("--pre-freeze", "", "it has the PreFreeze hook", "", FC, "pre_freeze"),
    Option("--pre-stop", "", "it has the PreStop hook", "", FC, "pre_stop"),
    Option("--freeze", "", "it stands still between requests", "", FC, "freeze",
           "default"),
    Option("--no-freeze", "", "it does not", "", FC, "freeze"),
    Option("Limits"))
LIMIT_TEXTS = {
    "timeout_s": "of an invocation", "memory_mb": "of an instance",
    "init_timeout_s": "of its start", "initializer_timeout_s": "of the Initializer",
    "start_timeout_s": "until it listens", "concurrency": "requests in an instance",
    "max_instances": "instances at a time; 0 = disabled",
    "queue": "events that wait for an instance", "queue_timeout_s": "of that wait",
    "idle_s": "until an idle instance is stopped",
    "grace_s": "between SIGTERM and SIGKILL", "event_bytes": "of an event",
    "result_bytes": "of a result", "pre_freeze_timeout_s": "of the PreFreeze hook",
    "pre_stop_timeout_s": "of the PreStop hook",
    "path_bytes": "of a path with its query",
    "request_header_bytes": "of a request's header fields",
    "response_header_bytes": "of an answer's header fields"}
UNITS = {"s": "SECONDS", "mb": "MB", "bytes": "BYTES"}
NUMBERS = ("N", "PORT", *UNITS.values())


def options_of(*protocols: str) -> Dict[str, Option]:
    """Return the rows that one of the protocols has, those of LIMITS at the end."""
    rows: Dict[str, Option] = {}
    for protocol in protocols:
        for option in OPTIONS:
            if protocol in option.protocols:
                rows.setdefault(option.name, option)
        table = LIMITS[protocol]
        for name in filter(table.__contains__, LIMIT_TEXTS):
            unit = name.rpartition("_")[2]
            rows.setdefault(table[name].option, Option(
                table[name].option, UNITS.get(unit, "N"), LIMIT_TEXTS[name], "", tuple(
                    one for one in PROTOCOLS if name in LIMITS[one]), name,
                quantity(unit, table[name].default)))
    return rows


def quantity(unit: str, value: float) -> str:
    """Write a limit for people."""
    if unit == "bytes":
        return "%g MiB" % (value / MIB) if value >= MIB else "%g KiB" % (value / 1024)
    return "%g%s" % (value, {"s": " s", "mb": " MB"}.get(unit, "")) if value else (
        "as --timeout")


class Parser(argparse.ArgumentParser):
    """Parses the options of some protocols. Each is kept by its name, as a list of what
    it was given; a mistake is a ValueError that says what the option takes."""

    def __init__(self, *protocols: str) -> None:
        super().__init__(
            usage="%%(prog)s %s CODE [options] [-- COMMAND ARG ...]" % (
                "|".join(protocols)), description="Run a custom-runtime bootstrap on "
            "this machine. CODE is its folder, or a ZIP.", epilog="Exit status: 0 ok, "
            "1 an invocation failed, 2 usage, 3 with --strict: a rule was broken, "
            "130 interrupted. The rules: SPEC.md. Defaults: %%(prog)s %s --help"
            % protocols[-1], add_help=False, allow_abbrev=False,
            argument_default=argparse.SUPPRESS, formatter_class=lambda prog:
            argparse.HelpFormatter(prog, max_help_position=33, width=80))
        self.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
        group: Any = self
        self._take(group, Option("--help"), "-h")
        self._take(group, Option("--version"))
        self.add_argument("--initializer-timeout", dest="--init-timeout", type=number,
                          action="append", help=argparse.SUPPRESS)
        self.options = options_of(*protocols)
        for option in self.options.values():
            if option.name.startswith("-"):
                self._take(group, option, text=phrase(option, protocols))
            else:
                group = self.add_argument_group(option.name)

    def _take(self, group: Any, option: Option, *more: str,
              text: str = argparse.SUPPRESS) -> None:
        kind: Dict[str, Any] = {"action": "append", "metavar": option.takes,
                                "type": number if option.takes in NUMBERS else str}
        if option.takes[:1] == "[":
            kind.update(metavar=option.takes[1:-1], nargs="?", const="")
        elif not option.takes:
            kind = {"action": "append_const",
                    "const": not option.name.startswith("--no-")}
        group.add_argument(option.name, *more, dest=option.name, help=text, **kind)

    def error(self, message: str) -> NoReturn:
        """Raise ValueError, in our words."""
        name, _, seen = message[len("argument "):].partition(": ")
        seen = seen.replace("ignored explicit argument", "not")
        raise ValueError("%s takes %s%s" % (
            name, takes(name), ", " + seen if seen.startswith("not ") else ""))

    def parse(self, words: Sequence[str]) -> Tuple[List[str], Given]:
        """Return the arguments and options of a command line. Raises ValueError."""
        found, unknown = self.parse_known_intermixed_args(words)
        for word in unknown:
            import difflib  # nobody needs it who makes no mistakes
            raise ValueError("there is no option " + "; the nearest is ".join(
                [word, *difflib.get_close_matches(word, self.options, 1)]))
        given = vars(found)
        return given.pop("arguments", []), given


def phrase(option: Option, protocols: Sequence[str]) -> str:
    """Return what --help says of an option."""
    only = option.protocols[0] if len(option.protocols) < len(protocols) else ""
    default = option.default if len(protocols) == 1 else ""
    return "".join((only and only + ": ", option.needs and "with %s: " % option.needs,
                    option.text, default and " (%s)" % default))


def number(text: str) -> float:
    """Return a number. Raises what argparse expects."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError("not %r" % text)
    return int(value) if value.is_integer() else value


def takes(name: str) -> str:
    """Return what an option takes."""
    option = options_of(*PROTOCOLS).get(name)
    return option and option.takes or "nothing"


def wrong(name: str, value: str) -> ValueError:
    """Return the error of an option that was given something else than it takes."""
    return ValueError("%s takes %s, not %r" % (name, takes(name), value))


# ---- command line: what it takes ----

class Command:
    """A command line, understood. Raises ValueError that names the option."""

    def __init__(self, arguments: List[str], given: Given, command: List[str]) -> None:
        self.given, self.command = given, command
        self.protocol, self.code = protocol_of(arguments), "".join(arguments[1:2])
        if len(arguments) != 2:
            raise ValueError("too many arguments: %s" % " ".join(arguments[2:])
                             if self.code else "CODE is missing: a folder or ZIP")
        self._check(options_of(self.protocol))
        self.settings = self._read_settings(options_of(self.protocol))
        self.parallel = min(MAX_PARALLEL, int(check_limit(
            "parallel", Limit(1, "--parallel"), {
                "parallel": self.last("--parallel", 1)})))
        self.request = self._read_request() if "--request" in given else None
        self.events = self._read_events() or ([b""] if self.request else [])
        port = self.settings.get("port", 0)
        self.address = serve_address(self.last("--serve"), port) if (
            "--serve" in given) else None

    def last(self, name: str, default: Any = "") -> Any:
        """Return what an option was given last."""
        return self.given.get(name, [default])[-1]

    def _check(self, options: Dict[str, Option]) -> None:
        """Raise ValueError unless there is something to do that fits together."""
        for name in self.given:
            if name not in options:
                raise ValueError("%s does not apply to %s" % (name, self.protocol))
            if options[name].needs and options[name].needs not in self.given:
                raise ValueError("%s applies to %s alone" % (name, options[name].needs))
        tasks = [name for name in ("--event", "--request", "--events", "--serve",
                                   "--jsonl") if name in options]
        if not set(tasks) & set(self.given):
            raise ValueError("nothing to do: give %s" % " or ".join(tasks))
        if "--watch" in self.given and "--attach" in self.given:
            raise ValueError("--watch cannot restart what --attach lets you start")
        if not re.fullmatch(r"\*|\w+://[\w.:\[\]-]+", self.last("--cors", "*")):
            raise wrong("--cors", self.last("--cors"))
        if self.command and self.protocol != "fc" and "--debug" not in self.given:
            raise ValueError("a start command after -- is for fc, and for --debug; %s "
                             "starts the file bootstrap" % self.protocol)

    def _read_settings(self, options: Dict[str, Option]) -> Dict[str, Any]:
        settings: Dict[str, Any] = {"env": {}, "command": self.command}
        if "--attach" in self.given:  # nobody would start it again, or a second one
            settings.update(idle_s=MAX_LIMIT_S, max_instances=1)
        if "--debug" in self.given:
            settings.update(
                ((name, MAX_LIMIT_S) for name in LIMITS[self.protocol]
                 if name.endswith("_s") and name != "grace_s"), max_instances=1,
                **({"freeze": False} if self.protocol == "fc" else {}))
        settings.update((options[name].setting, values[-1]) for name, values
                        in self.given.items() if options[name].setting)
        if self.protocol == "fc" or "--attach" in self.given:
            settings["port"] = self._choose_port(self.last("--port", WORDS["port"]))
        if "--credentials" in self.given:
            settings["credentials"] = read_credentials(self.last("--credentials"))
        for path in self.given.get("--env-file", []):
            settings["env"].update(read_env_file(path))
        for pair in self.given.get("--env", []):
            name, equals, value = pair.partition("=")
            if not equals:
                raise wrong("--env", pair)
            settings["env"][name] = value
        return settings

    def _choose_port(self, port: int) -> int:
        """Return a port that stays the same when --attach starts another instance."""
        if self.protocol == "fc":
            return port or (free_port() if "--attach" in self.given else 0)
        try:
            try_port(port)
        except (OSError, OverflowError) as error:
            raise ValueError("--port %s: %s" % (port, error))
        return port

    def _read_request(self) -> HttpRequest:
        text = self.last("--request")
        method, _, target = os.fsencode(text).decode("latin-1").partition(" ")
        fields = []
        for field in self.given.get("--header", []):
            name, colon, value = os.fsencode(field).decode("latin-1").partition(":")
            if not colon or not TOKEN.fullmatch(name) or CONTROL.search(value):
                raise wrong("--header", field)
            fields.append((name, value.strip()))
        request = HttpRequest(method.upper(), target.strip(), tuple(fields))
        try:
            check_request(request)
        except ValueError:
            raise wrong("--request", text)
        return request

    def _read_events(self) -> List[bytes]:
        events = [open(0, "rb", closefd=False).read() if text == "-" else
                  read_file("--event", text[1:]) if text.startswith("@") else
                  os.fsencode(text) for text in self.given.get("--event", [])]
        for path in self.given.get("--events", []):
            data = read_file("--events", path)
            if data.startswith(b"\xef\xbb\xbf"):  # an editor's byte order mark
                data = data[3:]
            events += [line.rstrip(b"\r") for line in data.split(b"\n") if line.strip()]
        return events


def protocol_of(arguments: Sequence[str]) -> str:
    """Return the short name of the first argument. Raises ValueError."""
    name = arguments[0] if arguments else ""
    if LONG_NAMES.get(name, name) not in PROTOCOLS:
        raise ValueError("PROTOCOL is fc, scf or fg, not %r" % name if name else
                         "PROTOCOL and CODE are missing: scf ./my-function; see --help")
    return LONG_NAMES.get(name, name)


def read_file(option: str, path: str) -> bytes:
    """Return what a file holds. Raises ValueError that names the option."""
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ValueError("%s %s: %s" % (option, path, error.strerror))


def read_credentials(path: str) -> Dict[str, str]:
    """Return the object of --credentials. Raises ValueError."""
    try:
        document = json.loads(read_file("--credentials", path))
    except (ValueError, RecursionError) as error:
        raise ValueError("--credentials %s: %s" % (path, error))
    if not isinstance(document, dict) or not set(document) <= set(CREDENTIALS):
        raise ValueError("--credentials %s: a JSON object with some of %s is expected"
                         % (path, ", ".join(CREDENTIALS)))
    return document


# a comment, or a name and a value: in '', in "", or bare until the end or a comment
ENV_LINE = re.compile(
    r"""\s*(?:(?:export\s+)?([^\s=#'"]+)\s*=[ \t]*(?:'([^']*)'|"((?:[^"\\]|\\.)*)"|"""
    r"""((?:(?<==)\#|[^\s'"#]).*?)?)\s*(?:(?<=\s)\#.*)?|\#.*)?""")


def read_env_file(path: str) -> Dict[str, str]:
    """Return the variables of a file. Raises ValueError that names the line, and keeps
    its secret."""
    env = {}
    for number, line in enumerate(read_file("--env-file", path).split(b"\n"), 1):
        found = ENV_LINE.fullmatch(line.decode("utf-8-sig", "surrogateescape"))
        if not found:
            raise ValueError("--env-file %s, line %d: neither NAME=VALUE nor # comment"
                             % (path, number))
        name, single, double, bare = found.groups()
        if name:
            env[name] = single or bare or re.sub(r"\\(.)", lambda match: {
                "n": "\n", "r": "\r", "t": "\t"}.get(match[1], match[1]), double or "")
    return env


def serve_address(text: str, own_port: int) -> Tuple[str, int]:
    """Return (host, port) of --serve, which is not the function's own. Raises
    ValueError."""
    host, colon, port = text.rpartition(":")
    given, port = port, port or os.environ.get(
        "PORT", "8080" if own_port != 8080 else "8081")
    if not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise wrong("--serve", text) if given else ValueError(
            "--serve: the variable PORT is %r, not a port" % port)
    if own_port and int(port) == own_port:
        raise ValueError("--serve: port %s is the function's own (--port)" % port)
    return host.strip("[]") if colon and host else "127.0.0.1", int(port)


# ---- command line: what it says ----

class Talk:
    """Writes to stdout, stderr or a trace file; blocks while nobody reads."""

    def __init__(self, number: int) -> None:
        self._number = number
        self.is_terminal = os.isatty(number)
        self._lock = threading.Lock()
        self._mid_line = False
        self.failure: Optional[OSError] = None  # nothing can be written any more

    def write(self, data: bytes, on_own_line: bool = False) -> None:
        """Write bytes; nothing once that has failed."""
        with self._lock:
            if on_own_line and self._mid_line:
                data = b"\n" + data
            self._mid_line = data[-1:] not in (b"", b"\n")
            view = memoryview(data)
            try:
                while view and self.failure is None:
                    view = view[os.write(self._number, view):]
            except OSError as error:
                self.failure = error  # nobody reads; the invocations go on

    def line(self, text: str) -> None:
        """Write a text on a line of its own."""
        self.write((text + "\n").encode("utf-8", "backslashreplace"), True)

    def note(self, text: str) -> None:
        """Say something of our own."""
        self.line("emulator: " + text)

    def trace(self, facts: Dict[str, Any]) -> None:
        """Write one message or change."""
        self.line(transcript(facts) if self.is_terminal else json.dumps(facts))

    def result(self, data: bytes) -> None:
        """Write it. Raises OSError that names stdout."""
        self.write(data)
        if self.failure is not None:
            raise OSError(self.failure.errno, self.failure.strerror, "stdout")

    def failed(self, outcome: Outcome) -> None:
        """Say why an invocation failed, if it did."""
        if outcome.kind != "ok":
            self.note("%s: %s" % (outcome.kind, outcome.message))


ARROWS = {"call": "B>", "reply": "P<", "request": "P>", "answer": "B<"}


def transcript(facts: Dict[str, Any]) -> str:
    """Write a message as SPEC.md's transcripts do, and a change as a comment."""
    what, lines = facts["what"], []
    if what in ARROWS:
        lines = ["%s %s" % (ARROWS[what], facts["status"] if "status" in facts else
                            "%(method)s %(path)s" % facts)]
        lines += ["  %s: %s" % pair for pair in facts["fields"].items()]
        if facts["bytes"]:
            lines.append("  | " + CONTROL.sub(lambda found: "\\x%02x" % ord(found[0]),
                                              facts["body"]))
        if facts["body"][-1:] == "\u2026":
            lines[-1] += " (%d bytes)" % facts["bytes"]
    change = ", ".join("%s %s" % (name, value) for name, value in facts.items() if name
                       not in ("ms", "what", "instance", "request_id") and value != "")
    if "next" in facts:
        change = "%(state)s -> %(next)s [%(rule)s]" % facts
    if what not in ARROWS or facts.get("next") != facts.get("state"):
        lines.append("# %.1f ms %s: %s" % (facts["ms"], what, change))
    return "\n".join(lines)


def open_trace(path: str) -> Talk:
    """Open a file for --trace. Raises ValueError."""
    try:
        return Talk(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666))
    except OSError as error:
        raise ValueError("--trace %s: %s" % (path, error.strerror))


def summary(platform: Platform) -> str:
    """Say in one line what happened."""
    counts = platform.counts
    broken = collections.Counter(one.rule for one in platform.violations)
    calls, starts, rules = (
        "%d %s%s" % (number, what, "" if number == 1 else "s") for number, what in (
            (counts["accepted"], "invocation"), (counts["cold_starts"], "cold start"),
            (len(broken), "broken rule")))
    rules += "".join(", %s %d times" % pair for pair in broken.items() if pair[1] > 1)
    kinds = ", ".join("%d %s" % (counts[kind], kind) for kind in KINDS if counts[kind])
    return "%s: %s; %s%s" % (calls, kinds or "none", starts,
                             "; " + rules if broken else "")


def show_exports(platform: Platform, env: Dict[str, str], talk: Talk, to_stdout: bool
                 ) -> None:
    """Say what a bootstrap started by hand needs (--attach). To stdout once, and then
    close that: eval "$(... &)" waits for its end."""
    import shlex  # nobody else needs it
    talk.note("waiting for %s, to be started in %s with these variables" % (
        " ".join(map(shlex.quote, platform.words)) or (
            "a server on port " + env["FC_SERVER_PORT"] if platform.protocol == "fc"
            else "./bootstrap"), platform.folder))
    (Talk(1) if to_stdout else talk).line("\n".join(
        "export %s=%s" % (name, shlex.quote(value)) for name, value in env.items()
        if name not in scf_platform.INHERITED))
    if to_stdout:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)


# ---- command line: JSON lines ----

def run_lines(platform: Platform, lines: Iterable[bytes], parallel: int) -> bool:
    """Invoke for each line of the conformance kit (--jsonl), so many at a time; return
    whether all were ok. An outcome keeps its slot until it is printed, so a reader who
    pauses stops the invocations, not the memory. Raises OSError that names stdout."""
    slots, stdout = threading.Semaphore(parallel), Talk(1)
    all_ok = True

    def show(document: Dict[str, object]) -> None:
        nonlocal all_ok
        all_ok = all_ok and document["kind"] == "ok"
        stdout.write(json.dumps(document).encode() + b"\n")
        slots.release()

    for number, line in enumerate(lines, 1):
        if line.strip():
            slots.acquire()
            stdout.result(b"")
            submit_line(platform, number, line, show)
    for _ in range(parallel):  # every outcome is printed
        slots.acquire()
    stdout.result(b"")
    return all_ok


def submit_line(platform: Platform, number: int, line: bytes,
                show: Callable[[Dict[str, object]], None]) -> None:
    """Place an invocation; they queue in the order of the lines [any.queue.order]."""
    identity = None
    try:
        document = json.loads(line)
        if not isinstance(document, dict):
            raise ValueError("an object is expected")
        json.dumps(document.get("id"), allow_nan=False)  # Python reads NaN
        identity = document.get("id")
        event, request = parse_invocation(platform.protocol, document)
    except (ValueError, TypeError, RecursionError) as error:
        show({"id": identity, "kind": "invalid-line",
              "message": "line %d: %s" % (number, error)})
        return
    invocation = Invocation(platform.rules.new_id(), event, request, on_done=lambda
                            outcome: show(outcome_document(identity, outcome)))
    platform.submit(invocation)


def outcome_document(identity: object, outcome: Outcome) -> Dict[str, object]:
    """Return what the adapter prints of an outcome."""
    document = dict(outcome._asdict(), id=identity, violations=[
        one._asdict() for one in outcome.violations])
    del document["log"]
    try:
        document["body"] = outcome.body.decode("utf-8")
    except UnicodeDecodeError:
        document["body_base64"] = base64.b64encode(document.pop("body")).decode()
    return document


def parse_invocation(protocol: str, document: Dict[str, Any]
                     ) -> Tuple[bytes, Optional[HttpRequest]]:
    """Return (event, HTTP request) of an adapter line. Raises ValueError."""
    event = document.get("event", "" if "method" in document else None)
    if "event_base64" in document:
        try:
            event = base64.b64decode(document["event_base64"], validate=True)
        except (TypeError, ValueError) as error:
            raise ValueError("event_base64: %s" % error)
    elif isinstance(event, str):
        event = event.encode()
    else:
        raise ValueError("event must be a text, or give event_base64")
    if "method" not in document:
        return event, None
    if protocol != "fc":
        raise ValueError("method: only fc has HTTP requests, not %s" % protocol)
    headers = document.get("headers") or []
    if not isinstance(headers, list) or not all(
            isinstance(pair, list) and len(pair) == 2 for pair in headers):
        raise ValueError("headers must be a list of [name, value]")
    request = HttpRequest(str(document["method"]), str(document.get("path", "/")),
                          tuple((str(name), str(value)) for name, value in headers))
    check_request(request)
    return event, request


# ---- command line: signals and the run ----

def end_signals() -> List[signal.Signals]:
    """Return the signals that end us. A bootstrap has a session of its own, so a closed
    terminal would leave it behind; under nohup a closed terminal is no reason."""
    return [signal.SIGTERM, signal.SIGINT] + [
        number for number in (signal.SIGHUP, signal.SIGQUIT)
        if signal.getsignal(number) != signal.SIG_IGN]


def catch_signals() -> Tuple[int, int]:
    """Let these signals interrupt nothing: their numbers come out of a pipe. An
    exception could come while a lock is held, or be missed just before a wait."""
    news, done = os.pipe()
    os.set_blocking(done, False)
    signal.set_wakeup_fd(done)
    for number in end_signals():
        signal.signal(number, lambda number, _: None)
    return news, done


def report(found: List[object], done: int, work: Callable[[], bool]) -> None:
    """Note what work has come to: whether all was ok, or its error; then write a zero
    byte, so that the main thread can wait for a signal too."""
    try:
        found.append(work())
    except OSError as error:
        found.append(error)
    finally:
        os.write(done, b"\0")


def choose_core() -> List[int]:
    """Pin this process to one core; return all cores, for the children. A thread is
    woken ten times faster on its own core than across cores."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[os.getpid() % len(cores)]})
    return cores


def invoke_all(platform: Platform, line: Command, talk: Talk) -> bool:
    """Invoke with the events of the command line, then with those of stdin; return
    whether all were ok."""
    all_ok, stdout = True, Talk(1)
    for event in line.events:
        outcome = platform.invoke(event, http=line.request)
        body = outcome.body
        if body and not body.endswith(b"\n") and (
                not line.request or stdout.is_terminal):  # else it may be an image
            body += b"\n"
        stdout.result(body)
        all_ok &= outcome.kind == "ok"
        if line.request:
            talk.note("status %s" % status_line(outcome.status).partition(" ")[2])
        talk.failed(outcome)
    if "--jsonl" in line.given:
        # a file of its own: the interpreter closes sys.stdin while we read
        all_ok &= run_lines(platform, open(0, "rb", closefd=False),
                            line.parallel)
    return all_ok


def serve(platform: Platform, line: Command, talk: Talk, news: int, done: int) -> None:
    """Serve callers until a signal comes; all but SIGINT drain, until the next one."""
    assert line.address is not None
    try:
        door = FrontDoor(platform, *line.address, talk.failed, line.last("--cors"))
    except OSError as error:
        raise ValueError("--serve %s:%d: %s" % (*line.address, error.strerror))
    talk.note("serving %s on http://%s:%d, POST events to /-/invoke" % (
        platform.protocol, "[%s]" % door.host if ":" in door.host else door.host,
        door.port))
    if {"--attach", "--debug"} & set(line.given):
        platform.prepare()
    number = os.read(news, 1)[0]
    door.close()
    if number != signal.SIGINT:
        if platform.pending:
            talk.note("%d still running; another signal ends that now"
                      % platform.pending)
        start_thread(report, [], done, platform.drain)  # [any.stop.drain]
        os.read(news, 1)
    platform.close()
    door.join(0.5)  # whose invocation was cut short is told


def run(line: Command) -> int:
    """Do what the command line says; return the exit status. Raises ValueError."""
    given, talk, stdout = line.given, Talk(2), Talk(1)
    path = line.last("--trace")
    trace = talk if path in ("", "-") else open_trace(path)
    to_stdout = [not (line.events or "--jsonl" in given or stdout.is_terminal)]

    def attach(env: Dict[str, str]) -> None:
        show_exports(platform, env, talk, to_stdout.pop() if to_stdout else False)

    news, done = catch_signals()  # before there is anything to put away
    found: List[object] = []
    start_thread(reap_orphans)
    with Platform(line.protocol, line.code,
                  on_log=None if "--quiet" in given else talk.write, on_note=talk.note,
                  on_trace=trace.trace if path else None,
                  attach=attach if "--attach" in given else None,
                  cores=None if "--no-pin" in given else choose_core(),
                  watch="--watch" in given, **line.settings) as platform:
        worker = start_thread(report, found, done, lambda: invoke_all(
            platform, line, talk))
        interrupted = os.read(news, 1) != b"\0"
        if found and isinstance(found[0], OSError):
            raise found[0]
        if line.address is not None and not interrupted:
            serve(platform, line, talk, news, done)
    if line.events or line.address is not None:
        talk.note(summary(platform))
    if trace.failure is not None and trace is not talk:
        talk.note("--trace %s is not whole: %s" % (path, trace.failure.strerror))
    if interrupted:
        worker.join(LAST_WORDS_S if line.events else 0.1)  # it may wait for stdin
        return INTERRUPTED
    if "--strict" in given and platform.violations:
        return BROKEN_RULE
    return 0 if found == [True] and not platform.faults else FAILED


def start(words: List[str]) -> int:
    """Answer a question about the program, or run it. Raises ValueError, OSError."""
    at = words.index("--") if "--" in words else len(words)
    arguments, given = Parser(*PROTOCOLS).parse(words[:at])
    said = ""
    if "--help" in given:
        said = Parser(*(arguments and [protocol_of(arguments)] or PROTOCOLS)
                      ).format_help().rstrip()
    elif "--version" in given:
        said = "emulator %s, SPEC %s" % (__version__, SPEC_VERSION)
    elif "--sample-event" in given:
        samples = json.loads(SAMPLE_EVENTS)[protocol_of(arguments)]
        name = given["--sample-event"][-1]
        if name not in samples:
            raise ValueError("--sample-event takes %s, not %r" % (
                " or ".join(samples), name))
        said = json.dumps(samples[name], separators=(",", ":"))
    else:
        return run(Command(arguments, given, words[at + 1:]))
    Talk(1).result(said.encode() + b"\n")
    return 0


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; return the exit status."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # a standard file that is closed is an empty one
            os.open(os.devnull, os.O_RDWR)
    for number in end_signals():
        signal.signal(number, signal.default_int_handler)
    # whoever started us may ignore it: then no process waits for us to see its end
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        return start(list(sys.argv[1:] if argv is None else argv))
    except ValueError as error:
        Talk(2).note(str(error))
        return USAGE_ERROR
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        return FAILED  # who reads stdout has seen enough
    except OSError as error:
        Talk(2).note(str(error))
        return FAILED
    finally:  # one more signal while the interpreter ends would change the status
        for number in end_signals():
            signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
