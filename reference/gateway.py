#!/usr/bin/env python3
"""Run many small functions in one FC container, as Noslate arranges it.

One HTTP server answers the calls of Function Compute (`/invoke`, `/initialize`,
`/pre-freeze`, `/pre-stop`, HTTP invocations) and hands each invocation to a *worker*:
a process of its own for one function, started on demand, reused, multiplied and
stopped in here. The list of functions is a list of *profiles*:

    python3 gateway.py --profiles functions.json
    curl -X PUT --data-binary @functions.json localhost:9000/-/profiles
    curl -H 'x-noslated-dispatch: hello' --data-binary hi localhost:9000/invoke

    caller -> FC -> Server -> Agent -> Broker (one per function) -> Worker (process)
                               |  control loop: launch, scale, drain, stop

It is a library too: within `with Agent(settings) as agent`, after
`agent.set_profiles(...)`, `agent.invoke(name, stream, metadata)` gives status, headers
and a stream.

What stands in for Noslate's own parts, and what is not claimed, begins chapter 9 of
SPEC.md: workers are plain processes that speak the fc protocol, so fc_bootstrap.py and
the samples are workers as they are; code packages are folders; nothing is isolated.

Chapter 9 has the rules, too, that comments such as [fcc.queue.order] cite. Standard
library only, CPython 3.8 or later, Linux (elsewhere without memory figures).
"""
from __future__ import annotations

import argparse
import collections
import errno
import json
import math
import os
import random
import re
import select
import shutil
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse
from http import HTTPStatus
from typing import (Any, Callable, Deque, Dict, FrozenSet, Iterable, Iterator,
                    List, NamedTuple, Optional, Sequence, Tuple, Union)

__version__ = "0.1.0"
SPEC_VERSION = "0.1"  # of SPEC.md; `__spec__` itself belongs to the import system
__all__ = ["Agent", "Call", "Failure", "Metadata", "Profile", "Server"]

quote = json.encoder.encode_basestring_ascii  # a JSON string, at the speed of C
Pairs = Sequence[Tuple[str, str]]
Body = Union[bytes, Iterable[bytes]]


# ---- model ----

class Failure(Exception):
    """A call that no handler has answered; `name` is one of FAILURES."""

    def __init__(self, name: str, message: str) -> None:
        super().__init__("%s: %s" % (name, message))
        self.name = name
        self.message = message


class Metadata(NamedTuple):
    """What goes to a worker beside the stream, with Noslate's defaults."""

    method: str = "GET"
    url: str = ""                # path and query
    headers: Pairs = ()          # order, case and duplicates are kept
    timeout_s: float = 10.0      # until the head of the answer; its body has 1 s more
    request_id: str = "unknown"
    lines: Sequence[str] = ()    # header lines as they came, instead of headers


# ---- tables ----

# What FC calls, with the methods by which it does so [fcc.invoke.kind]
ENDPOINTS: Dict[str, Sequence[str]] = {
    "/invoke": ("POST",),
    "/initialize": ("POST", "GET"),
    "/pre-freeze": ("POST", "GET"),
    "/pre-stop": ("POST", "GET"),
}

# Failure -> status of an HTTP invocation. An event invocation gets 404 for each of
# them, as the seed has it [fcc.error.status]. 0 = nobody can be told any more.
FAILURES: Dict[str, int] = {
    "AgentClosed": 503,      # not started yet, or stopping
    "BadDispatch": 400,      # neither NAME, function:NAME nor service:NAME
    "UnknownPath": 404,      # nothing that FC calls
    "UnknownFunction": 404,
    "UnknownService": 404,
    "RateLimited": 429,
    "Overloaded": 503,       # too many calls in the container, or too many in queues
    "QueueDisabled": 503,
    "QueueTimeout": 504,     # no worker before the deadline
    "ReplicaLimit": 503,
    "MemoryPoolFull": 503,   # from here on launch errors, which reject the whole queue
    "CodeMissing": 503,
    "InitFailed": 503,
    "InitTimeout": 503,
    "WorkerDied": 502,
    "BadAnswer": 502,
    "HeadTimeout": 504,
    "StreamBroken": 0,       # after the head: the connection is cut
    "BodyTimeout": 0,
    "CallerGone": 0,
}

# After these a worker gets no more calls: nobody knows when a late handler will end
# [fcc.timeout.retire], and who breaks a connection is about to end itself
# [fcc.worker.exit].
RETIRING = ("HeadTimeout", "BodyTimeout", "WorkerDied", "StreamBroken")

# (state, call) -> (action, next state) of a worker; states only go forward
STATES: Dict[Tuple[str, str], Tuple[str, str]] = {
    ("created", "installed"): ("serve", "ready"),
    ("created", "failed"): ("kill", "stopping"),
    ("created", "retire"): ("kill", "stopping"),
    ("ready", "retire"): ("drain", "pending-stop"),
    ("ready", "exit"): ("forget", "stopped"),
    ("pending-stop", "drained"): ("terminate", "stopping"),
    ("pending-stop", "late"): ("terminate", "stopping"),
    ("pending-stop", "exit"): ("forget", "stopped"),
    ("stopping", "late"): ("kill", "stopping"),
    ("stopping", "exit"): ("forget", "stopped"),
}


class Limit(NamedTuple):
    """A setting: its default, its range (one of KINDS), its option and the variables
    that come next."""

    default: float
    kind: str
    option: str
    variables: Sequence[str]
    meaning: str


PORT = Limit(9000, "a whole number from 0 to 65535", "--port",  # [fcc.start.port]
             ("FC_SERVER_PORT", "FC_CUSTOM_LISTEN_PORT", "SERVER_PORT"),
             "to listen on; 0 = any")
LIMITS: Dict[str, Limit] = {
    "timeout_s": Limit(10, "a number above 0, at most 86400", "--timeout", (),
                       "a call, unless FC says"),
    "tick_s": Limit(10, "a number from 0.01 to 86400", "--tick", (),
                    "between two looks at the load"),
    "idle_ticks": Limit(6, "a whole number from 1", "--idle-ticks", (),
                        "low ticks in a row before shrinking"),
    "drain_s": Limit(30, "a number from 0 to 86400", "--drain", (),
                     "for the calls of a worker that is to stop"),
    "grace_s": Limit(3, "a number from 0 to 86400", "--grace", (),
                     "between SIGTERM and SIGKILL"),
    "memory_pool_bytes": Limit(1 << 30, "a whole number from 0", "--memory-pool",
                               ("NOSLATED_VIRTUAL_MEMORY_POOL_SIZE",),
                               "sum of the workers' memory limits"),
    "memory_check_s": Limit(1, "a number from 0.01 to 86400", "--memory-check", (),
                            "between two looks at memory"),
    "launches": Limit(4, "a whole number from 1", "--launches", (),
                      "workers that start at a time"),
    "calls": Limit(10000, "a whole number from 1", "--calls", (),
                   "calls in the container"),
    "queued_calls": Limit(1000, "a whole number from 0", "--queue", (),
                          "calls that wait for a worker"),
    "max_active": Limit(10, "a whole number from 1", "--max-active",
                        ("NOSLATED_MAX_ACTIVATE_REQUESTS",),
                        "calls in a worker, unless its profile says"),
    "replica_limit": Limit(10, "a whole number from 1", "--replicas",
                           ("NOSLATED_REPLICA_COUNT_LIMIT_PER_FUNCTION",),
                           "workers of a function, unless its profile says"),
    "reserved": Limit(0, "a whole number from 0", "--reserved",
                      ("NOSLATED_RESERVATION_WORKER_COUNT_PER_FUNCTION",),
                      "workers that never shrink away, unless a profile says"),
}
NUMBERS: Dict[str, Limit] = {"port": PORT, **LIMITS}
Settings = Dict[str, float]

MEMORY_BYTES = 512 << 20     # of a worker, unless its profile says
MEMORY_STRIKES = 3           # looks above the limit that are forgiven
LOAD_HIGH, LOAD_LOW, LOAD_WANTED = 0.8, 0.6, 0.7
BODY_EXTRA_S = 1.0           # from the deadline of the head to that of the body
HEAD_BYTES, HEAD_FIELDS, HEAD_TIMEOUT_S = 65536, 100, 10.0
EMPTY_LINES = 16             # before a message
KILL_ROUNDS = 10             # looks for what a worker has forked
WHOLE_BYTES = 65536          # a body up to here is read before a worker is taken
LINGER_S = 0.5               # for the rest of a body, when its call has failed
SKIP_BYTES = 32 << 20        # of a refused call's body, so that the caller reads why
PROFILES_BYTES = 8 << 20
CHUNK_BYTES = 262144
MAX_CONNECTIONS = 4096
NO_CONNECTION = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM,
                 errno.EADDRNOTAVAIL)  # what the system says when it has none left
END_S = 5.0                  # for processes that were killed
EXEC_S = 0.02                # a process that is being forked has no environment yet
SLICE_S = 1.0                # of a wait under a limit
FREEZE_S = 0.2               # waiting that much too long means: we were frozen
LOG_BYTES = 1 << 20          # lines that nobody has read yet [fcc.log.access]
FULL_PAUSE_S = 0.05          # before another look at a terminal that nobody reads
LOG_END_S = 0.25             # for the reader of the last lines
TAIL_BYTES = 500             # of what a worker said that could not start
LOGS_KEPT = 100              # log folders of workers that have stopped
RESERVED = 2                 # rank of workers that nobody waits for; disposable: 0


# ---- rules without I/O: profiles ----

NAME = "a text of visible ASCII characters"  # what any client can put into a field
PAIRS = "a list of {key, value}, no key beginning NOSLATE_, NOSLATED_ or FC_"


class Field(NamedTuple):
    """One field of a profile: where it is, what it must be, and what if it is not."""

    path: str
    kind: str                # one of KINDS, or "one of" and the texts it may be
    required: bool = False


PROFILE_FIELDS = (
    Field("name", NAME, True),
    Field("runtime", "one of custom", True),
    Field("url", "file:// and an absolute folder", True),
    Field("signature", "a text that is not empty", True),
    Field("handler", "a text that is not empty"),
    Field("initializer", "a text that is not empty"),
    Field("command", "a list of words, at least one"),
    Field("namespace", "a text that is not empty"),
    Field("environments", PAIRS),
    Field("resourceLimit", "an object"),
    Field("resourceLimit.memory", "a whole number from 1"),
    Field("resourceLimit.cpu", "a number from 0 to 1"),
    Field("rateLimit", "an object"),
    Field("rateLimit.maxTokenCount", "a number from 0"),
    Field("rateLimit.tokensPerFill", "a number from 0"),
    Field("rateLimit.fillInterval", "a number above 0"),
    Field("worker", "an object"),
    Field("worker.maxActivateRequests", "a whole number from 1"),
    Field("worker.replicaCountLimit", "a whole number from 1"),
    Field("worker.reservationCount", "a whole number from 0"),
    Field("worker.initializationTimeout", "a number above 0"),
    Field("worker.disposable", "true or false"),
    Field("worker.fastFailRequestsOnStarting", "true or false"),
    Field("worker.disableRequestQueue", "true or false"),
    Field("worker.dispatchMode", "one of least-request-count, round-robin"),
    Field("worker.shrinkStrategy", "one of LCC, FIFO, FILO"),
)
LIST_FIELDS = (Field("functions", "a list"), Field("services", "a list"))
SERVICE_FIELDS = (Field("name", NAME, True),
                  Field("functions", "a list, not empty", True))
SHARE_FIELDS = (Field("name", "a text that is not empty", True),
                Field("proportion", "a number from 0 to 1"))


def _is_number(value: object, least: float, most: float = sys.float_info.max) -> bool:
    return (isinstance(value, (int, float)) and not isinstance(value, bool)
            and least <= value <= most)


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value != "" and value.isprintable()


def _is_name(value: object) -> bool:
    return isinstance(value, str) and re.fullmatch("[!-~]+", value) is not None


def _is_word(value: object) -> bool:
    return isinstance(value, str) and value != "" and "\0" not in value


def _is_pair(item: object) -> bool:
    """A variable for workers; what is NOSLATE_ or FC_ is not for profiles to set."""
    return (isinstance(item, dict) and set(item) == {"key", "value"}
            and _is_text(item["key"]) and isinstance(item["value"], str)
            and "=" not in item["key"] and "\0" not in item["value"]
            and not item["key"].startswith(("NOSLATE_", "NOSLATED_", "FC_")))


def _is_list(value: object, least: int, is_item: Callable[[Any], bool]) -> bool:
    return (isinstance(value, list) and len(value) >= least
            and all(is_item(item) for item in value))


KINDS: Dict[str, Callable[[Any], bool]] = {
    NAME: _is_name,
    "a text that is not empty": _is_text,
    "file:// and an absolute folder": lambda value: (
        _is_text(value) and value.startswith("file:///") and "%00" not in value),
    "a list of words, at least one": lambda value: _is_list(value, 1, _is_word),
    PAIRS: lambda value: _is_list(value, 0, _is_pair),
    "a list": lambda value: isinstance(value, list),
    "a list, not empty": lambda value: isinstance(value, list) and value != [],
    "an object": lambda value: isinstance(value, dict),
    "a whole number from 0": lambda value: (
        isinstance(value, int) and _is_number(value, 0)),
    "a whole number from 1": lambda value: (
        isinstance(value, int) and _is_number(value, 1)),
    "a whole number from 0 to 65535": lambda value: (
        isinstance(value, int) and _is_number(value, 0, 65535)),
    "a number from 0": lambda value: _is_number(value, 0),
    "a number above 0": lambda value: _is_number(value, 0) and value > 0,
    "a number above 0, at most 86400": lambda value: (
        _is_number(value, 0, 86400) and value > 0),
    "a number from 0 to 1": lambda value: _is_number(value, 0, 1),
    "a number from 0 to 86400": lambda value: _is_number(value, 0, 86400),
    "a number from 0.01 to 86400": lambda value: _is_number(value, 0.01, 86400),
    "true or false": lambda value: isinstance(value, bool),
}


def check_value(where: str, kind: str, value: object) -> None:
    """Raise ValueError, naming the place, unless the value is of that kind."""
    if kind.startswith("one of "):
        good = value in kind[7:].split(", ")
    else:
        good = KINDS[kind](value)
    if not good:
        raise ValueError("%s: expected %s, found %s"
                         % (where, kind, json.dumps(value)[:80]))


def check_item(where: str, item: Any, fields: Sequence[Field]) -> None:
    """Raise ValueError, naming the field, unless an object is as its fields say."""
    check_value(where, "an object", item)
    tops = [field.path.partition(".")[0] for field in fields]
    for key in item:  # inside `worker` and the like unknown ones are allowed
        if key not in tops:
            raise ValueError("%s.%s: unknown field" % (where, key))
    for field in fields:
        outer, _, inner = field.path.rpartition(".")
        place = item.get(outer, {}) if outer else item
        if inner in place:
            check_value("%s.%s" % (where, field.path), field.kind, place[inner])
        elif field.required:
            raise ValueError("%s.%s: missing" % (where, field.path))


class Profile:
    """A checked profile, its fields under our names and units."""

    def __init__(self, item: Dict[str, Any], settings: Settings) -> None:
        worker, limit = item.get("worker", {}), item.get("resourceLimit", {})
        rate = item.get("rateLimit", {})
        self.name: str = item["name"]
        self.folder = urllib.parse.unquote(item["url"][len("file://"):])
        self.handler: str = item.get("handler", "")
        self.initializer: str = item.get("initializer", "")
        self.command: List[str] = item.get("command", [])
        self.env = {one["key"]: one["value"] for one in item.get("environments", [])}
        self.memory_bytes: int = limit.get("memory", MEMORY_BYTES)
        self.tokens: float = rate.get("maxTokenCount", math.inf)
        self.tokens_per_fill: float = rate.get("tokensPerFill", self.tokens)
        self.fill_interval_s: float = max(0.001, rate.get("fillInterval", 1000) / 1000)
        self.disposable: bool = worker.get("disposable", False)
        self.max_active = int(worker.get("maxActivateRequests", settings["max_active"]))
        self.replica_limit = int(worker.get("replicaCountLimit",
                                            settings["replica_limit"]))
        self.reserved = int(worker.get("reservationCount", settings["reserved"]))
        self.reserved = min(self.reserved, self.replica_limit)
        if self.disposable:  # [fcc.disposable.one]
            self.max_active, self.reserved = 1, 0
        self.init_timeout_s: float = worker.get("initializationTimeout", 10000) / 1000
        self.fast_fail: bool = worker.get("fastFailRequestsOnStarting", False)
        self.queue_disabled: bool = worker.get("disableRequestQueue", False)
        self.round_robin = worker.get("dispatchMode") == "round-robin"
        self.shrink_strategy: str = worker.get("shrinkStrategy", "LCC")
        # [fcc.profile.identity] a change of these needs other workers
        self.identity = [item.get(key) for key in (
            "runtime", "url", "signature", "handler", "initializer", "command")] + [
            self.memory_bytes, limit.get("cpu"), self.disposable]


Services = Dict[str, List[Tuple[str, float]]]


def parse_profiles(text: bytes) -> Any:
    """Parse a list of profiles. Raises ValueError, RecursionError."""
    return json.loads(text, object_pairs_hook=_fields_once)


def _fields_once(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        counts = collections.Counter(name for name, _ in pairs)
        raise ValueError("%s: is there twice in an object"
                         % counts.most_common(1)[0][0])
    return fields


def read_profiles(document: Any,
                  settings: Settings) -> Tuple[Dict[str, Profile], Services]:
    """Return functions and services of a list of profiles, or of an object with the
    lists `functions` and `services`. Raises ValueError for the whole [fcc.profile.all].
    """
    if isinstance(document, list):
        document = {"functions": document}
    check_item("profiles", document, LIST_FIELDS)
    if not document:  # an empty list says that there are none
        raise ValueError("profiles.functions: missing")
    functions: Dict[str, Profile] = {}
    for number, item in enumerate(document.get("functions", [])):
        where = "functions[%d]" % number
        check_item(where, item, PROFILE_FIELDS)
        if item["name"] in functions:
            raise ValueError("%s.name: %s is there twice" % (where, item["name"]))
        functions[item["name"]] = Profile(item, settings)
    services: Services = {}
    for number, item in enumerate(document.get("services", [])):
        where = "services[%d]" % number
        check_item(where, item, SERVICE_FIELDS)
        if item["name"] in services:
            raise ValueError("%s.name: %s is there twice" % (where, item["name"]))
        services[item["name"]] = []
        for place, share in enumerate(item["functions"]):
            inner = "%s.functions[%d]" % (where, place)
            check_item(inner, share, SHARE_FIELDS)
            if share["name"] not in functions:
                raise ValueError("%s.name: no function %s"
                                 % (inner, json.dumps(share["name"])))
            services[item["name"]].append((share["name"], share.get("proportion", 1)))
    return functions, services


# ---- rules without I/O: dispatch and scaling ----

def choose_function(dispatch: str, fc_name: str, default: str,
                    functions: Iterable[str], services: Services,
                    chance: float) -> str:
    """Return the function that a call is for. Raises Failure. `chance` is a random
    number from 0 to 1 that decides between the functions of a service."""
    if not dispatch:  # [fcc.dispatch.order]
        name = fc_name if fc_name in functions else default
        if name:
            return name
        raise Failure("UnknownFunction", "the call names no function: no "
                      "x-noslated-dispatch, none called %r, no default" % fc_name)
    kind, colon, name = dispatch.partition(":")
    if not colon or kind == "function":
        return name if colon else dispatch
    if kind != "service" or not name:
        raise Failure("BadDispatch", "x-noslated-dispatch is NAME, function:NAME or "
                      "service:NAME, not %r" % dispatch[:80])
    if name not in services:
        raise Failure("UnknownService", "no service %r" % name)
    for function, proportion in services[name]:  # [fcc.dispatch.service]
        chance -= proportion
        if chance < 0:
            return function
    return services[name][-1][0]


def kind_of(control_path: str, method: str, target: str) -> str:
    """Tell what a request is: an invocation, a hook or nothing. [fcc.invoke.kind]
    Method and path decide only without X-Fc-Control-Path."""
    path = target.partition("?")[0]
    return control_path or (path if method in ENDPOINTS.get(path, ()) else "")


def plan_workers(profile: Profile, active: int, ready: int, starting: int,
                 low_ticks: int, idle_ticks: float) -> Tuple[int, int]:
    """Return (workers to add, or to remove if negative; low ticks in a row by now)."""
    missing = max(0, profile.reserved - ready - starting)
    if profile.disposable or not ready:
        return missing, 0
    wanted = math.ceil(active / (profile.max_active * LOAD_WANTED))
    load = active / (ready * profile.max_active)
    if load >= LOAD_HIGH:  # [fcc.scale.up]
        wanted = min(wanted, profile.replica_limit)
        return max(missing, wanted - ready - starting), 0
    if load > LOAD_LOW:
        return missing, 0
    if low_ticks + 1 < idle_ticks:
        return missing, low_ticks + 1
    spare = ready - max(wanted, profile.reserved)  # [fcc.scale.down]
    return (-spare if spare > 0 else missing), 0


def judge_answer(control_path: str, status: int, fc_status: str) -> bool:
    """Tell whether the handler succeeded, as the fc platform would [fcc.answer.status].
    """
    if fc_status in ("200", "404"):
        return fc_status == "200"
    return status != 404 or control_path != "/invoke"


# ---- running time ----

class Clock:
    """Seconds without those for which the container was frozen, the time of all limits
    [fcc.freeze.clocks]. Who waits says how long that was to take at most: a wait that
    took far longer was a freeze, and is counted for nobody."""

    def __init__(self) -> None:
        self._frozen_s = 0.0
        self._lock = threading.Lock()

    def now(self) -> float:
        """Return the running time."""
        return time.monotonic() - self._frozen_s

    def waited(self, begin: float, most_s: float) -> float:
        """Return the running time after a wait."""
        now = self.now()
        if now - begin > most_s + FREEZE_S:
            with self._lock:  # another thread may have found out meanwhile
                now = self.now()
                if now - begin > most_s + FREEZE_S:
                    self._frozen_s += now - begin
                    return begin
        return now

    def acquire(self, lock: threading.Lock, deadline: float) -> None:
        """Take a lock, or give up at the deadline."""
        is_taken, now = False, self.now()
        while not is_taken and now < deadline:
            slice_s = min(SLICE_S, deadline - now)
            is_taken = lock.acquire(timeout=slice_s)
            now = self.waited(now, slice_s)


clock = Clock()


# ---- HTTP: one strict parser for both directions ----

_START = re.compile(r"[^\x00-\x20\x7f]+ [^\x00-\x20\x7f]+( [^\x00-\x1f\x7f]*)?")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_VALUE = re.compile(r"[^\x00-\x08\x0a-\x1f\x7f]*")
_STATUS = re.compile(r"[1-9]\d\d")
_PEEK = int(socket.MSG_PEEK | socket.MSG_DONTWAIT)  # not of enums in each call: slow
_SEND_SLICE_S = 0.25
_SEND_LIMIT = struct.pack("ll", 0, int(_SEND_SLICE_S * 1e6))

# Fields that belong to one connection, and ours, which nobody else may set
# [fcc.fields.hop]
HOP_FIELDS = frozenset((
    "connection", "keep-alive", "proxy-connection", "te", "trailer", "upgrade",
    "transfer-encoding", "content-length", "expect", "x-noslate-worker-secret"))
# What a worker hears about itself instead of about the container [fcc.fields.pass]
DROPPED_REQUEST = HOP_FIELDS.union((
    "x-fc-request-id", "x-fc-control-path", "x-fc-function-name",
    "x-fc-function-handler", "x-fc-function-memory", "x-fc-function-timeout"))


class BadMessage(Exception):
    """The peer sent something that is not the HTTP we speak."""

    def __init__(self, seen: str, status: int = 400) -> None:
        super().__init__(seen)
        self.status = status


class Late(Exception):
    """The peer was not done by the deadline."""


class Message(NamedTuple):
    """The head of a request or an answer."""

    words: List[str]         # method, target, version; or version, status, reason
    lines: List[str]         # the fields as they came
    table: Dict[str, str]    # their values by lower-case name

    def get(self, name: str) -> str:
        """Return the value of a field, "" when it is absent."""
        return self.table.get(name, "")

    def keep_alive(self) -> bool:
        """Tell whether another message may follow."""
        words = self.get("connection").lower()
        if "HTTP/1.0" in self.words:
            return "keep-alive" in words
        return "close" not in words

    def length(self) -> Optional[int]:
        """Return the announced body size; -1 = chunked, None = none announced."""
        if "transfer-encoding" in self.table:
            return -1
        text = self.table.get("content-length")
        return None if text is None else int(text)


Parsed = Tuple[str, str]         # lower-case name and value of a field
_LINES: Dict[str, Parsed] = {}   # peers repeat their lines: each is checked once
_LINES_KEPT, _LINE_KEPT_CHARS = 1000, 200


def parse_line(line: str) -> Parsed:
    """Parse one line of a head, and remember it. Raises BadMessage."""
    name, colon, value = line.partition(":")
    value = value.strip(" \t")
    if not (colon and _TOKEN.fullmatch(name) and _VALUE.fullmatch(value)):
        raise BadMessage("header field %r" % line[:80])
    if len(_LINES) >= _LINES_KEPT:
        _LINES.clear()
    parsed = (name.lower(), value)
    if len(line) <= _LINE_KEPT_CHARS:
        _LINES[line] = parsed
    return parsed


def parse_head(text: str) -> Message:
    """Parse a head without its empty line. Raises BadMessage."""
    start, *lines = text.split("\r\n")
    if not _START.fullmatch(start):
        raise BadMessage("first line %r" % start[:80])
    if len(lines) > HEAD_FIELDS:
        raise BadMessage("%d header fields" % len(lines), 431)
    known = _LINES.get
    parsed = [known(line) or parse_line(line) for line in lines]
    table = dict(parsed)
    if len(table) != len(parsed):
        table = _join_duplicates(parsed)
    length, coding = table.get("content-length"), table.get("transfer-encoding")
    if coding is not None and (length is not None or coding.lower() != "chunked"):
        raise BadMessage("the end of the body is in doubt")
    if length is not None and not (length.isascii() and length.isdigit()
                                   and len(length) < 16):
        raise BadMessage("Content-Length %r" % length[:40])
    return Message(start.split(" ", 2), lines, table)


def _join_duplicates(parsed: Iterable[Parsed]) -> Dict[str, str]:
    table: Dict[str, str] = {}
    for key, value in parsed:
        if key in table and key in ("content-length", "transfer-encoding"):
            raise BadMessage("two fields %s" % key)
        table[key] = table[key] + ", " + value if key in table else value
    return table


def split_lines(lines: Iterable[str],
                dropped: FrozenSet[str]) -> Tuple[List[str], Dict[str, str]]:
    """Return the lines that pass on, and the values of the others by lower-case name.
    Fields that a Connection field names do not pass on either. Raises BadMessage."""
    kept, others = [], []
    known = _LINES.get
    for line in lines:
        parsed = known(line) or parse_line(line)
        if parsed[0] in dropped:
            others.append(parsed)
        else:
            kept.append(line)
    table = _join_duplicates(others)
    if "connection" in table:
        named = {word.strip() for word in table["connection"].lower().split(",")}
        kept = [line for line in kept if parse_line(line)[0] not in named]
    return kept, table


def format_head(start: str, lines: Iterable[str]) -> bytes:
    """Write a head with its empty line. The lines were checked by parse_line()."""
    return ("\r\n".join([start, *lines]) + "\r\n\r\n").encode("latin-1", "replace")


_REASONS = {status.value: status.phrase for status in HTTPStatus}


def framing(length: Optional[int]) -> str:
    """Return the line that announces a body; None = unknown size."""
    return "Transfer-Encoding: chunked" if length is None else (
        "Content-Length: %d" % length)


def frame(part: bytes, chunked: bool) -> bytes:
    """Write a part of a body; the empty one is the last."""
    return b"%x\r\n%b\r\n" % (len(part), part) if chunked else part


class Stream:
    """A connected socket with the bytes read ahead, and a deadline."""

    __slots__ = ("socket", "rest", "deadline", "_slice_s")

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self.rest = b""
        self.deadline = math.inf
        self._slice_s = 0.0
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, _SEND_LIMIT)

    def arm(self, deadline: float) -> None:
        """Let reads raise Late after the deadline, a running time; inf = never."""
        self.deadline = deadline
        slice_s = 0.0
        if deadline != math.inf:
            slice_s = min(SLICE_S, max(0.001, deadline - clock.now()))
        if slice_s != self._slice_s:
            self._slice_s = slice_s
            whole = int(slice_s)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack(
                "ll", whole, int((slice_s - whole) * 1e6)))

    def read(self, size: int = 65536) -> bytes:
        """Return what has come, b"" at the end of the stream. Raises Late, OSError."""
        while True:
            begin = clock.now()
            data = None
            try:
                data = self.socket.recv(size)
            except BlockingIOError:
                pass
            if self.deadline != math.inf and (
                    clock.waited(begin, self._slice_s) >= self.deadline):
                raise Late
            if data is not None:
                return data
            self.arm(self.deadline)

    def send(self, data: bytes) -> None:
        """Send everything. Raises Late, OSError."""
        left: Union[bytes, memoryview] = data
        while left:
            begin = clock.now()
            try:
                sent = self.socket.send(left)
            except BlockingIOError:
                sent = 0
            if sent == len(left):
                return
            left = memoryview(left)[sent:]
            if clock.waited(begin, _SEND_SLICE_S) >= self.deadline:
                raise Late

    def head(self) -> Optional[Message]:
        """Read a head; None at the end of the stream. Blocks until it begins, then
        HEAD_TIMEOUT_S unless there is a deadline. Raises BadMessage, Late, OSError."""
        is_idle = self.deadline == math.inf
        data = self.rest or self.read()
        for _ in range(EMPTY_LINES):  # before a message they are legal
            if data[:2] != b"\r\n":
                break
            data = data[2:] or self.read()
        if not data:
            return None
        end = data.find(b"\r\n\r\n")
        while end < 0:
            if len(data) > HEAD_BYTES:
                raise BadMessage("a head over 64 KiB", 431)
            if self.deadline == math.inf:
                self.arm(clock.now() + HEAD_TIMEOUT_S)
            more = self.read()
            if not more:
                raise BadMessage("the stream ends within a head")
            searched = max(0, len(data) - 3)
            data += more
            end = data.find(b"\r\n\r\n", searched)
        if is_idle:
            self.arm(math.inf)
        self.rest = data[end + 4:]
        return parse_head(data[:end].decode("latin-1"))

    def parts(self, length: Optional[int]) -> Iterator[bytes]:
        """Yield a body as it comes; None = until the stream ends. Raises BadMessage
        when it ends early, Late, OSError."""
        return self._chunked() if length == -1 else self._counted(length)

    def _counted(self, length: Optional[int]) -> Iterator[bytes]:
        left = sys.maxsize if length is None else length
        while left:
            data = self.rest or self.read(min(left, CHUNK_BYTES))
            if not data:
                if length is None:
                    return
                raise BadMessage("the stream ends after %d of %d body bytes"
                                 % (length - left, length))
            if self.rest:
                data, self.rest = data[:left], data[left:]
            left -= len(data)
            yield data

    def _chunked(self) -> Iterator[bytes]:
        while True:
            text = self._line().partition(b";")[0].strip(b" \t")
            if not re.fullmatch(rb"[0-9A-Fa-f]{1,15}", text):
                raise BadMessage("chunk size %r" % text[:40])
            size = int(text, 16)
            if not size:
                break
            yield from self._counted(size)
            if self._line():
                raise BadMessage("no line end after a chunk")
        for _ in range(HEAD_FIELDS):  # trailers, which end here
            if not self._line():
                return
        raise BadMessage("too many trailers", 431)

    def _line(self) -> bytes:
        while b"\r\n" not in self.rest:
            more = b"" if len(self.rest) > 4096 else self.read()
            if not more:
                raise BadMessage("no line end after %r" % self.rest[:40])
            self.rest += more
        line, _, self.rest = self.rest.partition(b"\r\n")
        return line

    def is_idle(self) -> bool:
        """Tell whether the peer is there and silent, without blocking or consuming."""
        if self.rest:
            return False
        try:
            self.socket.recv(1, _PEEK)
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False  # closed, or something that nobody asked for

    def shut(self, how: int = socket.SHUT_RDWR) -> None:
        """Wake whoever reads or writes the socket; the owner closes it."""
        try:
            self.socket.shutdown(how)
        except OSError:
            pass  # the peer was faster


# ---- workers ----

class Worker:
    """A process that serves one function over the fc protocol. Its thread, run(),
    launches it and then waits for its end. The agent's lock guards state and counts."""

    def __init__(self, agent: "Agent", broker: "Broker", number: int) -> None:
        self.agent = agent
        self.broker = broker
        self.profile = broker.profile
        self.id = "%s-%d-%s" % (re.sub(r"[^0-9A-Za-z_.-]", "_", self.profile.name)[:80],
                                number, agent.mark)
        self.state = "created"
        self.active = 0              # calls that hold a slot
        self.served = 0
        self.deadline = math.inf     # of draining, then of stopping
        self.strikes = 0
        self.has_thread = False      # else it waits for its turn to start
        self.rank = 1                # among those that wait, the lowest first
        self.secret = os.urandom(16).hex()   # [fcc.worker.secret]
        self.port = 0
        self._own_lines = (
            "X-Fc-Function-Name: %s\r\nX-Fc-Function-Handler: %s\r\n"
            "X-Fc-Function-Memory: %d\r\nX-Noslate-Worker-Secret: %s"
            % (self.profile.name, self.profile.handler, self.profile.memory_bytes >> 20,
               self.secret))
        self.pool: List[Stream] = []
        self.process: Optional["subprocess.Popen[bytes]"] = None
        self.log_folder = os.path.join(agent.log_folder, "workers", self.id)
        self.scratch = os.path.join(agent.work_folder, "sandbox", self.id)

    def run(self) -> None:
        """Launch, serve, end; the body of the worker's thread."""
        failure = None
        try:
            self._launch()
        except Failure as error:
            failure = error
        except Late as error:
            failure = Failure("InitTimeout", "worker %s %s within %g s" % (
                self.id, error, self.profile.init_timeout_s))
        except (OSError, ValueError) as error:
            failure = Failure("InitFailed", "worker %s %s" % (
                self.id, self._why(error)))
        self.agent.launched(self, failure)
        if self.process is not None:
            self.process.wait()
            kill_marked("NOSLATE_WORKER_ID=" + self.id)  # [fcc.stop.signals]
        for stream in self.agent.exited(self):
            stream.socket.close()
        shutil.rmtree(self.scratch, ignore_errors=True)
        time.sleep(EXEC_S)
        kill_marked("NOSLATE_WORKER_ID=" + self.id)
        if self.agent.adopts_orphans:
            with self.agent.spawning:
                reap_orphans([one.process.pid for one in list(self.agent.workers)
                              if one.process is not None])

    def _why(self, error: Exception) -> str:
        """Return what went wrong; if the process has ended, that is the reason."""
        if self.process is not None:
            try:
                status = self.process.wait(0.25)
                return "ended with status %s before it could serve: %s" % (
                    status, read_tail(os.path.join(self.log_folder, "stderr.log")))
            except (OSError, subprocess.TimeoutExpired):
                pass  # its log is gone; it has not ended
        return "cannot serve: %s" % error

    def _launch(self) -> None:
        """Start the process and wait until it can serve. Raises Failure, Late,
        OSError."""
        profile = self.profile
        if not os.path.isdir(profile.folder):
            raise Failure("CodeMissing", "%s: no folder %s"
                          % (profile.name, profile.folder))
        os.makedirs(self.log_folder, exist_ok=True)
        os.makedirs(self.scratch, exist_ok=True)
        deadline = clock.now() + profile.init_timeout_s
        with self.agent.spawning:
            self.port = free_port([one.port for one in list(self.agent.workers)])
            self._start_process()
        if self.state != "created":  # retired before there was a process to kill
            self.signal(signal.SIGKILL)
        stream = self._await_port(deadline)
        if profile.initializer:
            self._initialize(stream, deadline)
        else:
            self.pool.append(stream)

    def _start_process(self) -> None:
        profile = self.profile
        # [fcc.launch.command]
        words = profile.command or [os.path.join(profile.folder, "bootstrap")]
        with open(os.path.join(self.log_folder, "stdout.log"), "wb") as out:
            with open(os.path.join(self.log_folder, "stderr.log"), "wb") as err:
                try:
                    self.process = subprocess.Popen(
                        words, cwd=profile.folder, env=self._environment(),
                        stdin=subprocess.DEVNULL, stdout=out, stderr=err)
                except (OSError, ValueError) as error:
                    raise Failure("CodeMissing", "%s: cannot start %s: %s"
                                  % (profile.name, words[0], error))

    def _environment(self) -> Dict[str, str]:
        """Nothing is inherited but what every program needs [fcc.worker.environment].
        """
        env = {name: os.environ[name] for name in ("PATH", "TERM", "TZ", "LANG")
               if name in os.environ}
        profile = self.profile
        env.update(HOME=profile.folder, TMPDIR=self.scratch,
                   FC_SERVER_PORT=str(self.port), FC_CUSTOM_LISTEN_PORT=str(self.port),
                   FC_FUNC_CODE_PATH=profile.folder, FC_FUNCTION_NAME=profile.name,
                   FC_FUNCTION_MEMORY_SIZE=str(profile.memory_bytes >> 20),
                   FC_INSTANCE_ID=self.id)
        if profile.handler:
            env["FC_FUNCTION_HANDLER"] = profile.handler
        env.update(profile.env)
        env.update(NOSLATE_WORKER_ID=self.id, NOSLATE_WORKER_SECRET=self.secret)
        return env

    def _await_port(self, deadline: float) -> Stream:
        """Dial until the worker listens. Raises Late, OSError."""
        begin = now = clock.now()
        while now < deadline:
            try:
                return self._dial()
            except OSError:
                pass
            if self.process is None or self.process.poll() is not None:
                raise ConnectionError("nobody there")
            now = clock.now()
            pause_s = 0.001 if now < begin + 0.05 else 0.005
            time.sleep(pause_s)
            now = clock.waited(now, pause_s)
        raise Late("does not listen on port %d" % self.port)

    def _dial(self, timeout_s: float = 1.0) -> Stream:
        connected = socket.create_connection(("127.0.0.1", self.port), timeout_s)
        connected.settimeout(None)
        return Stream(connected)

    def _initialize(self, stream: Stream, deadline: float) -> None:
        """Call the initializer [fcc.launch.ready]. Raises Failure, Late, OSError.
        """
        stream.arm(deadline)
        own = self.own_lines("/initialize", os.urandom(16).hex(),
                             self.profile.init_timeout_s)
        try:
            stream.send(format_head("POST /initialize HTTP/1.1",
                                    ["Host: 127.0.0.1", *own, framing(0)]))
            message = read_answer(stream)
            for _ in stream.parts(message.length()):
                pass
        except Late:
            raise Late("does not answer its initializer")
        except (BadMessage, OSError) as error:
            raise ConnectionError("its initializer: %s" % error)
        if message.keep_alive() and message.length() is not None:
            self.pool.append(stream)
        if message.words[1][0] != "2":
            raise Failure("InitFailed", "the initializer of %s answered %s"
                          % (self.profile.name, message.words[1]))

    def own_lines(self, control_path: str, request_id: str,
                  timeout_s: float) -> List[str]:
        """Return the fields by which a worker knows its platform [fcc.fields.pass]."""
        whole_s = max(1, math.ceil(min(timeout_s, sys.maxsize)))  # [fc.headers.common]
        return ["X-Fc-Request-Id: " + request_id, "X-Fc-Control-Path: " + control_path,
                "X-Fc-Function-Timeout: %d" % whole_s, self._own_lines]

    def connect(self, deadline: float) -> Optional[Stream]:
        """Return a connection, None when the worker cannot be reached any more. Blocks
        for a second at most. Raises Failure when the fault is not the worker's."""
        while self.pool:
            try:
                stream = self.pool.pop()
            except IndexError:
                break  # another call was faster
            if stream.is_idle():  # bytes beyond the last answer answer nothing
                return stream
            stream.socket.close()
        try:
            return self._dial(min(1.0, max(0.001, deadline - clock.now())))
        except OSError as error:
            if error.errno in NO_CONNECTION:
                raise Failure("Overloaded", "no connection to a worker: %s"
                              % error.strerror)  # [fcc.limit.calls]
            return None

    def signal(self, number: int) -> None:
        """Send a signal, if the process is still there."""
        try:
            if self.process is not None:
                self.process.send_signal(number)
        except OSError:
            pass  # it has just ended

    def memory_bytes(self) -> int:
        """Return the resident memory of the process, 0 if nobody knows."""
        pid = self.process.pid if self.process else 0
        try:
            with open("/proc/%d/statm" % pid) as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (OSError, IndexError, ValueError):
            return 0


def read_answer(stream: Stream) -> Message:
    """Read the head of a worker's answer, past interim ones. Raises ConnectionError
    when there is none, BadMessage, Late."""
    while True:
        message = stream.head()
        if message is None:
            raise ConnectionResetError("closed without an answer")
        version, status = message.words[:2]
        if not version.startswith("HTTP/1.") or not _STATUS.fullmatch(status):
            raise BadMessage("first line %r" % " ".join(message.words)[:80])
        if status[0] != "1":
            return message
        if status == "101":
            raise BadMessage("an upgrade that nobody asked for")


def read_tail(path: str) -> str:
    """Return the last TAIL_BYTES of a text. Raises OSError."""
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
        return file.read(TAIL_BYTES).decode("utf-8", "replace").strip()


def reap_orphans(own: Sequence[int]) -> None:
    """Reap children that are no workers: as process 1 of a container we inherit what
    workers have left behind, and what nobody reaps stays in the process table."""
    try:
        while True:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None or ended.si_pid in own:
                return  # a worker's own thread waits for it
            os.waitpid(ended.si_pid, 0)
    except (AttributeError, ChildProcessError):
        pass  # no such call on this system; no children


def free_port(taken: Iterable[int]) -> int:
    """Return a free port below the range from which outgoing connections get theirs,
    and above those that emulator.py chooses, so that none can be in the worker's way.
    """
    for _ in range(1000):
        port = random.randrange(26000, 32000)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                continue
        if port not in taken:
            return port
    raise OSError("no free port between 26000 and 32000")


def kill_marked(variable: str) -> None:
    """Kill every process with this end of a variable in its environment: what a worker
    forked inherits it. By group is no way: workers stay in the container's process
    group, so that it is frozen and dies as one."""
    mark = variable.encode() + b"\0"
    for _ in range(KILL_ROUNDS):  # one may have forked between a look and its end
        if not kill_found(mark):
            return


def kill_found(mark: bytes) -> bool:
    """Kill what has these bytes in its environment now; tell whether there was any."""
    found = False
    try:
        names = os.listdir("/proc")
    except OSError:
        return False  # not on this system; too many open files
    for name in names:
        try:
            with open("/proc/%d/environ" % int(name), "rb") as file:
                if mark in file.read():
                    os.kill(int(name), signal.SIGKILL)
                    found = True
        except (OSError, ValueError):
            pass  # not a process, another user's, or gone
    return found


# ---- a call and its broker ----

class Call:
    """One invocation. Agent.invoke() returns it as the answer: `status`, `headers`,
    and the body to iterate over; end() it when you stop before its end."""

    worker: Optional[Worker] = None
    gate: threading.Lock         # of a call in a queue, closed while it waits
    refusal: Optional[Failure] = None        # with which it comes out
    is_new = False               # the worker had no call before
    queued_s = first_byte_s = 0.0
    control_path = ""
    status = 0
    length: Optional[int] = None   # of the body; None = unknown
    is_bare = False              # there is no body, whatever its length
    is_ok = False                # the handler did not fail
    is_ended = False             # and holds nothing of the worker any more
    error = ""
    size = 0                     # of the body so far
    caller: Optional[Stream] = None          # from which the body comes
    _stream: Optional[Stream] = None
    _upload: Optional["Upload"] = None
    _reusable = False            # the stream, once the body was read

    def __init__(self, agent: "Agent", metadata: Metadata, name: str = "") -> None:
        self.agent = agent
        self.metadata = metadata
        self.name = name
        self.started = clock.now()
        self.deadline = self.started + metadata.timeout_s
        self.lines: List[str] = []   # the header fields of the answer
        self._parts: Iterator[bytes] = iter(())
        with agent.lock:
            agent.calls += 1

    def send(self, body: Body) -> None:
        """Send the call to a worker and read the head of the answer. Blocks until the
        deadline at most. Raises Failure."""
        try:
            stream = self._stream = self.agent.connect(self)
            stream.arm(self.deadline)
            self._take_head(stream, self._exchange(stream, body))
        except BaseException as error:
            self.end(error.name if isinstance(error, Failure) else "CallerGone")
            raise

    def _exchange(self, stream: Stream, body: Body) -> Message:
        head, chunked = self._format(body)
        try:
            if isinstance(body, bytes):
                stream.send(head + body)
            else:
                stream.send(head)
                self._upload = Upload(stream, body, chunked)
            return read_answer(stream)
        except Late:
            if self._upload is not None and self._upload.state == "reading":
                raise Failure("CallerGone", "the caller has not sent its body in time")
            raise Failure("HeadTimeout", "%s gave no answer within %g s"
                          % (self.name, self.metadata.timeout_s))
        except BadMessage as error:
            raise Failure("BadAnswer", "%s: %s" % (self.name, error))
        except OSError as error:
            if self._upload is not None and self._upload.state == "broken":
                raise Failure("CallerGone", "the caller sent half a body")
            raise Failure("WorkerDied", "the worker of %s is gone: %s"
                          % (self.name, error))

    def _format(self, body: Body) -> Tuple[bytes, bool]:
        """Return the head of the request, and whether its body goes in chunks."""
        assert self.worker is not None
        metadata = self.metadata
        lines, others = split_lines(
            metadata.lines or ["%s: %s" % pair for pair in metadata.headers],
            DROPPED_REQUEST)
        kind = kind_of(others.get("x-fc-control-path", ""), metadata.method,
                       metadata.url)
        self.control_path = "/invoke" if kind == "/invoke" else "/http-invoke"
        if not any(line[:5].lower() == "host:" for line in lines):
            lines.append("Host: 127.0.0.1")
        lines += self.worker.own_lines(self.control_path, metadata.request_id,
                                       metadata.timeout_s)
        length: Optional[int] = None
        if isinstance(body, bytes):
            length = len(body)
        elif "content-length" in others:
            length = int(others["content-length"])
        if length != 0 or metadata.method not in ("GET", "HEAD"):
            lines.append(framing(length))
        start = "%s %s HTTP/1.1" % (metadata.method, metadata.url or "/")
        if not (_START.fullmatch(start) and _VALUE.fullmatch(metadata.request_id)):
            raise BadMessage("no method, URL and id: %r" % start[:80])
        return format_head(start, lines), length is None

    def _take_head(self, stream: Stream, message: Message) -> None:
        self.first_byte_s = clock.now() - self.started
        self.status = int(message.words[1])
        self.is_ok = judge_answer(self.control_path, self.status,
                                  message.get("x-fc-status"))
        if not self.is_ok:
            self.error = "HandlerFailed"
        self.lines = [  # [fcc.answer.fields]
            line for line in split_lines(message.lines, HOP_FIELDS)[0]
            if not line[:10].lower().startswith(("x-fc-", "x-noslate-"))]
        length = message.length()
        self.length = None if length == -1 else length
        self.is_bare = self.metadata.method == "HEAD" or self.status in (204, 304)
        if self.is_bare:
            length = 0
        self._reusable = length is not None and message.keep_alive()
        stream.deadline += BODY_EXTRA_S  # [fcc.timeout.body]
        self._parts = stream.parts(length)
        if self._upload is None and length is not None and (
                0 <= length <= len(stream.rest)):
            self._parts = iter(list(self._parts))  # all is here: free the worker
            self.end()

    @property
    def headers(self) -> List[Tuple[str, str]]:
        """The header fields of the answer as pairs."""
        pairs = [line.partition(":") for line in self.lines]
        return [(name, value.strip(" \t")) for name, _, value in pairs]

    def __iter__(self) -> Iterator[bytes]:
        """Yield the body as it comes. Raises Failure when it breaks off."""
        try:
            for part in self._parts:
                self.size += len(part)
                yield part
            self.end()
        except Late:
            self.end("BodyTimeout")
            raise Failure("BodyTimeout", "%s: the answer takes too long" % self.name)
        except (BadMessage, OSError) as error:
            self.end("StreamBroken")
            raise Failure("StreamBroken", "%s: %s" % (self.name, error))
        finally:
            self.end("CallerGone")

    def end(self, error: str = "") -> None:
        """Give the worker's slot and connection back, unless that was done."""
        if self.is_ended:
            return
        self.is_ended = True
        self.error = error or self.error
        stream, upload = self._stream, self._upload
        reusable = self._reusable and not error and (
            upload is None or upload.state == "done")
        if self.agent.settle(self, stream if reusable else None) or stream is None:
            return
        stream.shut()  # the handler may learn that nobody waits [fcc.caller.gone]
        if upload is not None:
            if error and self.caller is not None:  # a pause must not hold up the answer
                self.caller.deadline = min(self.caller.deadline, clock.now() + LINGER_S)
            upload.thread.join()
        stream.socket.close()

    def log_line(self) -> str:
        """Return the line of the access log [fcc.log.access]."""
        metadata = self.metadata
        return (
            '{"time": %.3f, "request_id": %s, "function": %s, "worker": %s, '
            '"new_worker": %s, "method": %s, "url": %s, "status": %d, "error": %s, '
            '"queue_ms": %.2f, "first_byte_ms": %.2f, "total_ms": %.2f, "bytes": %d}\n'
            % (time.time(), quote(metadata.request_id), quote(self.name),
               quote(self.worker.id) if self.worker else "null",
               "true" if self.is_new else "false", quote(metadata.method),
               quote(metadata.url), self.status,
               quote(self.error) if self.error else "null", self.queued_s * 1e3,
               self.first_byte_s * 1e3, (clock.now() - self.started) * 1e3,
               self.size))


class Upload:
    """Sends a body to a worker from a thread of its own, so that a worker may answer
    while it reads. What the worker does not want any more is read and dropped."""

    def __init__(self, stream: Stream, body: Iterable[bytes], chunked: bool) -> None:
        # reading from the caller, sending to the worker; at last done, refused by the
        # worker, or broken by the caller
        self.state = "reading"
        self._stream = stream
        self._body = body
        self._chunked = chunked
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            for part in self._body:
                if part:
                    self._send(part, "reading")
            self._send(b"", "done")
        except (BadMessage, Failure, Late, OSError):  # Failure: of a call we pass on
            self.state = "broken"
            self._stream.shut()  # half a body: the worker must notice

    def _send(self, part: bytes, next_state: str) -> None:
        if self.state == "refused":
            return
        self.state = "sending"
        try:
            self._stream.send(frame(part, self._chunked))
            self.state = next_state
        except (Late, OSError):
            self.state = "refused"


class Broker:
    """What belongs to one function: workers, queue, and the tokens of its rate limit,
    all there at first. The agent's lock guards it; no method blocks."""

    def __init__(self, profile: Profile, now: float) -> None:
        self.profile = profile
        self.workers: List[Worker] = []          # all but the stopped, oldest first
        self.queue: Deque[Call] = collections.deque()   # [fcc.queue.order]
        self.tokens = profile.tokens             # [fcc.limit.rate]
        self.filled = now                        # in real time: callers are not frozen
        self.low_ticks = 0
        self.turn = 0
        self.failure: Optional[Failure] = None   # of the last launch

    def update(self, profile: Profile, now: float) -> List[Worker]:
        """Take another profile; return the workers that must go."""
        old, self.profile = self.profile, profile
        if (old.tokens, old.tokens_per_fill, old.fill_interval_s) != (
                profile.tokens, profile.tokens_per_fill, profile.fill_interval_s):
            self.tokens, self.filled = profile.tokens, now
        if old.identity != profile.identity:
            return list(self.workers)
        for worker in self.workers:
            worker.profile = profile
        return []

    def take_token(self, now: float) -> bool:
        """Take a token; False when there is none."""
        profile = self.profile
        fills = (now - self.filled) // profile.fill_interval_s
        if fills:
            self.filled += fills * profile.fill_interval_s
            self.tokens = min(profile.tokens,
                              self.tokens + fills * profile.tokens_per_fill)
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True

    def count(self, *states: str) -> int:
        """Return how many workers are in one of these states."""
        return sum(worker.state in states for worker in self.workers)

    def active(self) -> int:
        """Return how many calls run in ready workers."""
        return sum(worker.active for worker in self.workers if worker.state == "ready")

    def pick(self) -> Optional[Worker]:
        """Return the worker for the next call, None when each is full."""
        ready = [worker for worker in self.workers if worker.state == "ready"]
        limit = self.profile.max_active
        if self.profile.round_robin:  # [fcc.dispatch.worker]
            if not ready or self.active() >= limit * len(ready):
                return None
            self.turn += 1
            return ready[self.turn % len(ready)]
        worker = min(ready, key=lambda one: one.active, default=None)
        # [fcc.dispatch.worker]
        return worker if worker is not None and worker.active < limit else None

    def victims(self, number: int) -> List[Worker]:
        """Return the ready workers that shrinking takes first [fcc.scale.victims]."""
        ready = [worker for worker in self.workers if worker.state == "ready"]
        if self.profile.shrink_strategy == "FILO":
            ready.reverse()
        elif self.profile.shrink_strategy == "LCC":
            ready.sort(key=lambda one: one.active)
        return ready[:number]

    def reject(self, failure: Failure) -> None:
        """Let every call in the queue fail [fcc.launch.failed]."""
        self.failure = failure
        while self.queue:
            call = self.queue.popleft()
            call.refusal = failure
            call.gate.release()


# ---- the agent ----

class Agent:
    """Noslate's agent: start(), set_profiles(), invoke(), close(), end(). Settings are
    those of LIMITS; raises ValueError that names one that is unknown or out of range.
    Use it with `with`, which starts and ends it. One lock guards the brokers and
    workers; it is never held while something blocks."""

    def __init__(self, settings: Optional[Settings] = None, *, log_folder: str = "",
                 on_failure: Callable[[], None] = lambda: None) -> None:
        self.settings = {name: limit.default for name, limit in LIMITS.items()}
        for name, value in (settings or {}).items():
            if name not in LIMITS:
                raise ValueError("%s is not a setting; known: %s"
                                 % (name, ", ".join(LIMITS)))
            check_value(name, LIMITS[name].kind, value)
            self.settings[name] = value
        self.mark = os.urandom(6).hex()          # at the end of each worker's id
        self.work_folder = tempfile.mkdtemp(prefix="noslate-")
        self.log_folder = log_folder or os.path.join(self.work_folder, "logs")
        self.brokers: Dict[str, Broker] = {}
        self.services: Services = {}
        self.workers: List[Worker] = []          # of all brokers, also removed ones
        self.state = "created"                   # running, closing, closed
        self.calls = 0
        self.counts: Dict[str, int] = collections.Counter()
        self.lock = threading.Lock()
        self.spawning = threading.Lock()  # until a process, and its port, has its owner
        self._wake = threading.Condition(self.lock)      # of the control loop
        self._changed = threading.Condition(self.lock)   # for initialize() and close()
        self._old_logs: Deque[str] = collections.deque()
        self._next_tick = self._next_check = math.inf
        self._on_failure = on_failure
        self._control_thread = threading.Thread(target=self._control, daemon=True)
        self.is_hasty = False                    # a signal handler may set it
        self.adopts_orphans = False              # true if every child is ours to reap

    def __enter__(self) -> "Agent":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self.end()

    def start(self) -> None:
        """Start the control loop; from here on calls are dispatched."""
        self.state = "running"
        self._control_thread.start()

    def set_profiles(self, document: object) -> None:
        """Replace the whole list. Workers whose code is another now finish their calls
        first [fcc.profile.identity]. Raises ValueError; nothing has changed then."""
        functions, services = read_profiles(document, self.settings)
        now = time.monotonic()
        with self.lock:
            gone = [self.brokers.pop(name) for name in list(self.brokers)
                    if name not in functions]
            for broker in gone:
                broker.reject(Failure("UnknownFunction", "%s was removed"
                                      % broker.profile.name))
                for worker in list(broker.workers):
                    self._step(worker, "retire")
            self.services = services
            for name, profile in functions.items():
                broker = self.brokers.setdefault(name, Broker(profile, now))
                for worker in broker.update(profile, now):
                    self._step(worker, "retire")
                self._supply(broker)
                self._reserve(broker)

    def initialize(self) -> None:
        """Wait until every reserved worker is ready. Raises Failure."""
        with self.lock:
            short = self._short()
            for broker in short:
                broker.failure = None
                self._reserve(broker)
            while short:
                for broker in short:
                    if broker.failure is not None:
                        raise broker.failure
                if self.state != "running":
                    raise Failure("AgentClosed", "the gateway is stopping")
                self._changed.wait()
                short = self._short()

    def _short(self) -> List[Broker]:
        return [broker for broker in self.brokers.values()
                if broker.count("ready") < broker.profile.reserved]

    def invoke(self, name: str, stream: Body = b"",
               metadata: Metadata = Metadata()) -> Call:
        """Call a function. Return its answer when the head is there; the worker's slot
        is held until the body was read, or the call ended. Blocks until the deadline at
        most. Raises Failure; no call is ever sent twice [fcc.retry.none]."""
        call = Call(self, metadata, name)
        call.send(stream)
        return call

    def connect(self, call: Call) -> Stream:
        """Get a slot and a connection for a call. Raises Failure."""
        with self.lock:
            broker = self._broker(call)
            if self.calls > self.settings["calls"]:  # [fcc.limit.calls]
                raise Failure("Overloaded", "too many calls: %d" % self.calls)
            if not broker.take_token(time.monotonic()):
                raise Failure("RateLimited", "%s is over its rate" % call.name)
        while True:
            worker = self._admit(call)
            try:
                stream = worker.connect(call.deadline)
            except Failure:
                self._give_back(call, worker, False)
                raise
            if stream is not None:
                return stream
            self._give_back(call, worker, True)  # another worker may have it

    def _give_back(self, call: Call, worker: Worker, retires: bool) -> None:
        """A worker gets nothing of a call that it was chosen for."""
        with self.lock:
            worker.served -= 1
            call.worker = None
            self._leave(worker, retires)
            self._supply(worker.broker)

    def _broker(self, call: Call) -> "Broker":
        if self.state != "running":
            raise Failure("AgentClosed", "the gateway is %s" % self.state)
        if call.name not in self.brokers:
            raise Failure("UnknownFunction", "no function %r" % call.name)
        return self.brokers[call.name]

    def _admit(self, call: Call) -> Worker:
        """Get a slot for the call, at once or out of the queue. Raises Failure."""
        with self.lock:
            broker = self._broker(call)
            worker = None if broker.queue else broker.pick()
            if worker is not None:
                self._take(worker, call)
                return worker
            self._enqueue(broker, call)
        try:
            clock.acquire(call.gate, call.deadline)
        finally:
            with self.lock:
                if call in broker.queue:
                    broker.queue.remove(call)
        call.queued_s = clock.now() - call.started
        if call.refusal is not None:
            raise call.refusal
        if call.worker is None or clock.now() >= call.deadline:  # [fcc.timeout.head]
            raise Failure("QueueTimeout", "no worker of %s was free within %g s"
                          % (call.name, call.metadata.timeout_s))
        return call.worker

    def _enqueue(self, broker: Broker, call: Call) -> None:
        """Put a call into the queue and order a worker (lock held). Raises Failure."""
        profile = broker.profile
        if profile.queue_disabled:  # [fcc.queue.disabled]
            self._order(broker, 1 - broker.count("created"))
            raise Failure("QueueDisabled", "%s has no free worker" % call.name)
        queued = sum(len(one.queue) for one in self.brokers.values())
        if queued >= self.settings["queued_calls"]:
            raise Failure("Overloaded", "too many calls wait: %d" % queued)
        if profile.fast_fail and (
                broker.count("created", "ready") >= profile.replica_limit):
            raise Failure("ReplicaLimit", "%s has all the workers it may have"
                          % call.name)
        call.gate = threading.Lock()
        call.gate.acquire()
        broker.queue.append(call)
        self._supply(broker)

    def _take(self, worker: Worker, call: Call) -> None:
        call.is_new = worker.served == 0
        call.worker = worker
        worker.active += 1
        worker.served += 1
        if worker.active == 1 and self._next_check == math.inf:
            self._next_check = clock.now() + self.settings["memory_check_s"]
            self._wake.notify()

    def _supply(self, broker: Broker) -> None:
        """Serve the queue, and order the workers that the rest of it needs."""
        while broker.queue:
            worker = broker.pick()
            if worker is None:  # [fcc.launch.demand]
                needed = math.ceil(len(broker.queue) / broker.profile.max_active)
                failure = self._order(broker, needed - broker.count("created"))
                if failure is not None:
                    broker.reject(failure)
                return
            call = broker.queue.popleft()
            self._take(worker, call)
            call.gate.release()

    def settle(self, call: Call, stream: Optional[Stream]) -> bool:
        """A call has ended: pass its slot on, and its connection if it is given. Return
        whether the worker keeps that."""
        worker = call.worker
        with self.lock:
            self.calls -= 1
            self.counts[call.error or "ok"] += 1
            if self.state != "running":
                self._changed.notify_all()
            if worker is None:
                return False
            self._leave(worker, worker.profile.disposable or call.error in RETIRING)
            kept = False
            if stream is not None and worker.state == "ready":
                worker.pool.append(stream)  # before the next call looks for one
                kept = True
            self._supply(worker.broker)
            return kept

    def _leave(self, worker: Worker, retires: bool) -> None:
        worker.active -= 1
        if retires:
            self._step(worker, "retire")
        if not worker.active:
            self._step(worker, "drained")

    # Workers come and go. All with the lock held, but launched() and exited().

    def _order(self, broker: Broker, number: int, rank: int = 1) -> Optional[Failure]:
        """Order so many workers, but not more than the function may have. Return why
        one is impossible, None if each is possible."""
        profile = broker.profile
        failure = None
        for _ in range(min(number, profile.replica_limit
                           - broker.count("created", "ready"))):  # [fcc.limit.replicas]
            failure = self._no_room(profile)
            if failure is not None:
                break
            self.counts["workers"] += 1
            worker = Worker(self, broker, self.counts["workers"])
            worker.rank = 0 if profile.disposable else rank
            broker.workers.append(worker)
            self.workers.append(worker)
        self._launch_next()
        if self.workers and self._next_tick == math.inf:
            self._next_tick = clock.now() + self.settings["tick_s"]
            self._wake.notify()
        return failure

    def _no_room(self, profile: Profile) -> Optional[Failure]:
        if self.state == "closed":
            return Failure("AgentClosed", "the gateway has ended")
        pool = self.settings["memory_pool_bytes"]
        left = pool - sum(worker.profile.memory_bytes for worker in self.workers
                          if worker.state in ("created", "ready"))
        if profile.memory_bytes <= left:  # [fcc.limit.pool]
            return None
        return Failure("MemoryPoolFull", "%s needs %d bytes, the pool of %d has %d"
                       % (profile.name, profile.memory_bytes, pool, left))

    def _reserve(self, broker: Broker) -> None:
        if self.state not in ("created", "running"):
            return  # only calls that were let in may need a worker [fcc.stop.hook]
        missing = broker.profile.reserved - broker.count("created", "ready")
        failure = self._order(broker, missing, RESERVED)  # [fcc.scale.reserve]
        if failure is not None:
            broker.failure = failure

    def _launch_next(self) -> None:
        """Start the workers whose turn it is [fcc.launch.parallel]."""
        created = [one for one in self.workers if one.state == "created"]
        waiting = [one for one in created if not one.has_thread]
        waiting.sort(key=lambda one: one.rank)
        free = int(self.settings["launches"]) - (len(created) - len(waiting))
        for worker in waiting[:max(0, free)]:
            try:
                threading.Thread(target=worker.run, daemon=True).start()
            except RuntimeError:
                return  # no more threads: something must end first, and then we retry
            worker.has_thread = True

    def launched(self, worker: Worker, failure: Optional[Failure]) -> None:
        """The worker can serve, or never will."""
        with self.lock:
            if failure is None:
                self._step(worker, "installed")
            elif worker.state == "created":
                worker.broker.reject(failure)
                self.counts["failed_launches"] += 1
                self._step(worker, "failed")
            self._changed.notify_all()

    def exited(self, worker: Worker) -> List[Stream]:
        """The process has ended, or there never was one. Return its connections."""
        with self.lock:
            self._step(worker, "exit")
            self._old_logs.append(worker.log_folder)
            spent = self._old_logs.popleft() if len(self._old_logs) > LOGS_KEPT else ""
            unused, worker.pool = worker.pool, []
        if spent:
            shutil.rmtree(spent, ignore_errors=True)
        return unused

    def _step(self, worker: Worker, call: str) -> None:
        """Let a worker make a transition, if STATES has one for this call."""
        action, worker.state = STATES.get((worker.state, call), ("", worker.state))
        if action == "drain":  # [fcc.stop.drain]
            self._limit(worker, "drain_s")
            if not worker.active:
                self._step(worker, "drained")
        elif action == "terminate":  # [fcc.stop.signals]
            worker.signal(signal.SIGTERM)
            self._limit(worker, "grace_s")
        elif action == "kill":
            worker.signal(signal.SIGKILL)
            if not worker.has_thread:  # and never will have
                self._step(worker, "exit")
        elif action == "forget":
            self.workers.remove(worker)
            worker.broker.workers.remove(worker)
            self._changed.notify_all()
        if action:
            self._supply(worker.broker)
            self._launch_next()

    def _limit(self, worker: Worker, setting: str) -> None:
        worker.deadline = clock.now() + self.settings[setting]
        self._wake.notify()

    # The control loop: ticks, memory, the deadlines of workers that go.

    def _control(self) -> None:
        try:
            with self.lock:
                while self.state != "closed":
                    self._control_once()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            self._on_failure()

    def _control_once(self) -> None:
        due = min([self._next_tick, self._next_check]
                  + [worker.deadline for worker in self.workers])
        now = clock.now()
        if due > now:  # no worker, no reason to wake up
            self._wake.wait(None if due == math.inf else due - now)
            clock.waited(now, due - now)
            return
        if self._next_tick <= now:
            self._next_tick = math.inf
            for broker in self.brokers.values() if self.state == "running" else []:
                self.tick(broker)
                if self.workers or broker.profile.reserved:
                    self._next_tick = now + self.settings["tick_s"]
        if self._next_check <= now:
            self._next_check = math.inf
            self._check_memory()
        for worker in list(self.workers):
            if worker.deadline <= now:
                worker.deadline = math.inf
                self._step(worker, "late")

    def tick(self, broker: Broker) -> None:
        """Look at the load of a function and order or retire workers (lock held)."""
        change, broker.low_ticks = plan_workers(
            broker.profile, broker.active(), broker.count("ready"),
            broker.count("created"), broker.low_ticks, self.settings["idle_ticks"])
        for worker in broker.victims(-change) if change < 0 else []:
            self._step(worker, "retire")
        self._order(broker, change, RESERVED)  # if not: nobody waits, so nobody is told

    def _check_memory(self) -> None:
        """Kill workers that hold too much for too long [fcc.limit.memory]."""
        for worker in list(self.workers):
            if worker.active:
                self._next_check = clock.now() + self.settings["memory_check_s"]
                over = worker.memory_bytes() > worker.profile.memory_bytes
                worker.strikes = worker.strikes + 1 if over else 0
                if worker.strikes > MEMORY_STRIKES:
                    self._step(worker, "retire")
                    worker.signal(signal.SIGKILL)

    def close(self) -> bool:
        """Take no more calls, let those that are here end, stop every worker. Return
        whether all of them ended by themselves. Blocks drain_s and grace_s at most."""
        with self.lock:
            if self.state == "running":
                self.state = "closing"
            end = clock.now() + self.settings["drain_s"]
            while self.calls and not self.is_hasty and clock.now() < end:
                self._changed.wait(0.1)
            drained = not self.calls
            for broker in self.brokers.values():
                broker.reject(Failure("AgentClosed", "the gateway is stopping"))
            for worker in list(self.workers):
                self._step(worker, "retire")
                if worker.state == "pending-stop":
                    self._step(worker, "late")
            end = clock.now() + self.settings["grace_s"] + 2
            while self.workers and clock.now() < end:
                self._changed.wait(0.1)
        return drained

    def end(self) -> None:
        """Let go of everything at once; nothing of us is left afterwards."""
        with self.lock:
            self.state = "closed"
            self._wake.notify_all()
            for worker in list(self.workers):
                self._step(worker, "retire")  # what is starting ends when it is there
                worker.signal(signal.SIGKILL)
            deadline = clock.now() + END_S
            while self.workers and clock.now() < deadline:
                self._changed.wait(0.1)
        if self.counts["workers"]:
            time.sleep(EXEC_S)
            kill_marked("-" + self.mark)
        shutil.rmtree(self.work_folder, ignore_errors=True)

    def stats(self) -> Dict[str, object]:
        """Return what GET /-/stats shows."""
        with self.lock:
            functions = {}
            for name, broker in self.brokers.items():
                workers = [{"id": one.id, "state": one.state, "active": one.active,
                            "pid": one.process.pid if one.process else None,
                            "served": one.served} for one in broker.workers]
                functions[name] = {"queued": len(broker.queue), "workers": workers,
                                   "low_ticks": broker.low_ticks}
            return {"state": self.state, "calls": self.calls, "functions": functions,
                    "counts": dict(self.counts), "services": self.services}


# ---- the server ----

class Request:
    """One request of a caller: its head, its body, and the way back."""

    def __init__(self, message: Message, stream: Stream) -> None:
        method, target, version = (message.words + [""])[:3]
        if version not in ("HTTP/1.1", "HTTP/1.0") or not _TOKEN.fullmatch(method):
            raise BadMessage("first line %r" % " ".join(message.words)[:80])
        self.method, self.target = method, target
        self.path = target.partition("?")[0]
        self.message = message
        self.stream = stream
        self.is_old = version == "HTTP/1.0"
        self.keep_alive = message.keep_alive()
        self.length = message.length() or 0   # 0 too when the body has been read
        self.parts = self._parts()            # of the body
        self.expects = message.get("expect").lower() == "100-continue"
        self.control_path = message.get("x-fc-control-path")
        self.kind = kind_of(self.control_path, method, target)

    def body(self, deadline: float) -> Body:
        """Return a body that is small, else an iterator over it as it comes."""
        if not self.length:
            return b""
        if not 0 < self.length <= len(self.stream.rest):
            self.stream.arm(deadline)
        if 0 < self.length <= WHOLE_BYTES:
            return b"".join(self.parts)
        return self.parts

    def _parts(self) -> Iterator[bytes]:
        if self.expects and not self.stream.rest:
            self.stream.send(b"HTTP/1.1 100 Continue\r\n\r\n")
        self.expects = False
        yield from self.stream.parts(self.length)
        self.length = 0

    def skip(self) -> None:
        """Read what is left of a body that nobody wanted, within bounds, so that the
        caller gets to see the answer."""
        if self.length:
            self.keep_alive = False
        if not self.length or self.expects:
            return
        self.stream.arm(clock.now() + HEAD_TIMEOUT_S)
        size = 0
        try:
            for part in self.parts:
                size += len(part)
                if size > SKIP_BYTES:
                    return
        except (BadMessage, Late, OSError):
            pass

    def answer(self, status: int, document: object = None,
               lines: Sequence[str] = ()) -> None:
        """Answer with a JSON document, or with an empty body."""
        self.skip()
        body = b""
        if document is not None:
            body = json.dumps(document).encode() + b"\n"
            lines = [*lines, "Content-Type: application/json"]
        self.stream.deadline = clock.now() + HEAD_TIMEOUT_S
        self.send_head(status, lines, len(body), b"" if self.method == "HEAD" else body)

    def send_head(self, status: int, lines: Sequence[str],
                  length: Optional[int], body: bytes = b"") -> None:
        """Send a head; None = a body of unknown size follows."""
        if status not in (204, 304):
            if length is None and self.is_old:
                self.keep_alive = False  # the end of the stream ends the body
            else:
                lines = [*lines, framing(length)]
        if not self.keep_alive:
            lines = [*lines, "Connection: close"]
        start = "HTTP/1.1 %d %s" % (status, _REASONS.get(status, "Unknown"))
        self.stream.send(format_head(start, lines) + body)


# A request that could not be read is answered like this one, and no other follows it
UNREADABLE = Message(["GET", "/", "HTTP/1.1"], [], {"connection": "close"})


class Server:
    """The HTTP server of the container. It dispatches to an agent."""

    def __init__(self, agent: Agent, host: str, port: int, default_function: str = "",
                 write_log: Callable[[str], None] = lambda line: None,
                 on_failure: Callable[[], None] = lambda: None) -> None:
        self.agent = agent
        self.default_function = default_function
        self._write_log = write_log
        self._on_failure = on_failure
        self._connections: Dict[Stream, threading.Thread] = {}
        self._listener = socket.socket(
            socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.bind((host, port))
        self._listener.listen(1024)
        self.port: int = self._listener.getsockname()[1]
        self._closing = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        try:
            while not self._closing:
                self._admit()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            self._on_failure()

    def _admit(self) -> None:
        try:
            accepted, address = self._listener.accept()
        except OSError:
            if self._listener.fileno() < 0 and not self._closing:
                raise
            if not self._closing:
                time.sleep(0.05)  # too many files: connections must end first
            return
        if len(self._connections) >= MAX_CONNECTIONS:
            accepted.close()
            return
        try:
            threading.Thread(target=self._serve, daemon=True,
                             args=(Stream(accepted), address[0])).start()
        except (OSError, RuntimeError):  # no more threads: calls must end first
            accepted.close()

    def close(self) -> None:
        """Stop listening; let answers that are on their way go out, for a second."""
        self._closing = True
        try:
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes accept()
        except OSError:
            pass
        self._listener.close()
        deadline = clock.now() + 1
        connections = list(self._connections.items())
        for stream, _ in connections:
            stream.shut(socket.SHUT_RD)  # who waits for a request waits no more
        for stream, thread in connections:
            thread.join(max(0.0, deadline - clock.now()))
            stream.shut()

    def _serve(self, stream: Stream, address: str) -> None:
        try:
            self._connections[stream] = threading.current_thread()
            is_local = address.startswith(("127.", "::ffff:127.")) or address == "::1"
            try:
                while self._serve_one(stream, is_local):
                    pass
            except BadMessage as error:
                Request(UNREADABLE, stream).answer(error.status, {
                    "errorType": "BadRequest", "errorMessage": str(error)})
        except (Late, OSError):
            pass  # the caller is gone, or too slow
        finally:
            self._connections.pop(stream, None)
            stream.socket.close()

    def _serve_one(self, stream: Stream, is_local: bool) -> bool:
        message = stream.head()
        if message is None:
            return False
        request = Request(message, stream)
        kind = request.kind
        if kind in ("/invoke", "/http-invoke"):
            self._invoke(request)
        elif kind in ENDPOINTS:  # [fcc.invoke.kind]
            self._hook(request)
        elif is_local and not request.control_path and request.path in (
                "/-/stats", "/-/profiles"):  # [fcc.admin.local]
            self._admin(request)
        else:  # [fcc.path.unknown]
            self._fail(request, Failure("UnknownPath", "%s %s is nothing that FC calls"
                                        % (request.method, request.target)))
        stream.arm(math.inf)
        return request.keep_alive

    def _hook(self, request: Request) -> None:
        """Answer a hook. At /pre-freeze there is nothing to do: limits are in running
        time, and nothing is buffered [fcc.freeze.hook]."""
        try:
            if request.kind == "/initialize":  # [fcc.initialize.ready]
                self.agent.initialize()
            if request.kind == "/pre-stop" and not self.agent.close():
                raise Failure("AgentClosed", "calls were cut off")  # [fcc.stop.hook]
        except Failure as failure:
            self._fail(request, failure)
        else:
            request.answer(200)

    def _invoke(self, request: Request) -> None:
        message = request.message
        call = Call(self.agent, Metadata(
            request.method, request.target, (),
            self._timeout_s(message.get("x-fc-function-timeout")),
            message.get("x-fc-request-id") or message.get("x-noslated-request-id")
            or "unknown", message.lines))
        try:
            call.name = choose_function(
                message.get("x-noslated-dispatch"), message.get("x-fc-function-name"),
                self.default_function, self.agent.brokers, self.agent.services,
                random.random())
            body = request.body(call.deadline + BODY_EXTRA_S)
            call.caller = request.stream
            call.send(body)
            self._pass(request, call)
        except Failure as failure:
            call.end(failure.name)
            if FAILURES[failure.name]:
                call.status = self._fail(request, failure)
            else:  # [fcc.error.late] the caller sees that something is missing
                request.keep_alive = False
        except BadMessage as error:
            call.status = call.status or error.status  # what the caller will see
            raise
        finally:
            call.end("CallerGone")
            self._write_log(call.log_line())

    def _timeout_s(self, text: str) -> float:
        try:
            seconds = float(text)
        except ValueError:
            return self.agent.settings["timeout_s"]
        return seconds if 0 < seconds <= 86400 else self.agent.settings["timeout_s"]

    def _pass(self, request: Request, call: Call) -> None:
        """Pass an answer to the caller, as it comes."""
        lines = call.lines + ["X-Fc-Status: 200"] if call.is_ok else [
            *call.lines, "X-Fc-Status: 404", "X-Noslate-Error: HandlerFailed"]
        stream = request.stream
        stream.deadline = call.deadline + BODY_EXTRA_S
        parts = iter(call)
        first = next(parts, b"") if call.is_ended else b""  # in one write with the head
        request.send_head(call.status, lines, call.length, first)
        chunked = not (call.is_bare or request.is_old) and call.length is None
        for part in parts:
            stream.send(frame(part, chunked))
        stream.send(frame(b"", chunked))
        if request.length:
            request.keep_alive = False

    def _fail(self, request: Request, failure: Failure) -> int:
        """Answer with a failure; return the status."""
        status = FAILURES[failure.name] if request.kind == "/http-invoke" else 404
        request.answer(status, {"errorType": failure.name,  # [fcc.error.status]
                                "errorMessage": failure.message},
                       ["X-Fc-Status: 404", "X-Noslate-Error: " + failure.name])
        return status

    # Administration, for the container itself

    def _admin(self, request: Request) -> None:
        if (request.method, request.path) == ("GET", "/-/stats"):
            request.answer(200, self.agent.stats())
        elif (request.method, request.path) == ("PUT", "/-/profiles"):
            self._put_profiles(request)
        else:
            request.answer(405)

    def _put_profiles(self, request: Request) -> None:
        status, seen, text = 200, None, b""
        request.stream.arm(clock.now() + HEAD_TIMEOUT_S)
        try:
            for part in request.parts:
                text += part
                if len(text) > PROFILES_BYTES:
                    raise BadMessage("a list of functions over 8 MiB", 413)
            self.agent.set_profiles(parse_profiles(text))
        except (ValueError, RecursionError) as error:
            status, seen = 400, str(error)
        except BadMessage as error:
            status, seen = error.status, str(error)
        request.answer(status, seen and {"errorType": "InvalidProfiles",
                                         "errorMessage": seen})


# ---- command line ----

class Log:
    """Writes lines to a file, whole ones, and never waits for a reader: what he does
    not take is kept up to LOG_BYTES, then dropped, and `dropped` hears how many."""

    def __init__(self, fd: int, dropped: Callable[[int], None]) -> None:
        self._fd = fd = never_blocking(fd)
        self._is_full = False
        self._dropped = dropped
        # so much fits when a pipe is writable; lines of a file go in one piece
        is_file = stat.S_ISREG(os.fstat(fd).st_mode)
        self._most = sys.maxsize if is_file else select.PIPE_BUF
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._lock = threading.Lock()
        self._backlog = bytearray()
        self._missing = 0            # lines dropped since the reader was told
        self._thread = threading.Thread()

    def write(self, text: str) -> None:
        """Write a text that ends a line, or keep it for later."""
        data = text.encode("utf-8", "backslashreplace")
        with self._lock:
            if not self._backlog:
                data = data[self._send(data):]
            if self._backlog and len(self._backlog) + len(data) > LOG_BYTES:
                self._missing += 1
            elif data:
                self._keep(data)

    def _keep(self, data: bytes) -> None:
        if not self._backlog:
            self._thread = threading.Thread(target=self._catch_up, daemon=True)
            try:
                self._thread.start()
            except RuntimeError:
                return  # no more threads: not even for this
        self._backlog += data

    def _send(self, data: bytes) -> int:
        """Write without waiting; return how much."""
        sent = 0
        try:
            while sent < len(data) and self._poll.poll(0):
                sent += os.write(self._fd, data[sent:sent + self._most])
            self._is_full = False
        except BlockingIOError:
            self._is_full = True  # a terminal, for which poll() says otherwise
        except OSError:
            return len(data)  # a full disk, or nobody there, must not end calls
        return sent

    def _catch_up(self) -> None:
        """Write the backlog as it is taken; nobody else writes until it is empty."""
        while True:
            if self._is_full:
                time.sleep(FULL_PAUSE_S)
            self._poll.poll()
            with self._lock:
                del self._backlog[:self._send(bytes(self._backlog[:65536]))]
                if not self._backlog:
                    missing, self._missing = self._missing, 0
                    break
        if missing:
            self._dropped(missing)

    def flush(self) -> None:
        """Let the reader take what is left, for LOG_END_S."""
        with self._lock:
            thread = self._thread if self._backlog else None
        if thread is not None:
            thread.join(LOG_END_S)


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


class Talk(Log):
    """What is said to whoever runs the container, and the access log unless that has a
    file of its own: stderr."""

    def __init__(self) -> None:
        super().__init__(2, self.tell_dropped)

    def say(self, text: str) -> None:
        """Say something of our own."""
        self.write("gateway: %s\n" % text)

    def tell_dropped(self, lines: int) -> None:
        """Say how many lines there was no reader for."""
        self.say("%d lines of the access log were dropped: nobody read them" % lines)

    def open(self, path: str) -> Log:
        """Open the access log. Raises OSError."""
        if path == "-":
            return self
        return Log(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644),
                   self.tell_dropped)


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
LOST = b"\0"  # among the numbers of signals: a part of the gateway has ended


class Container:
    """The entry point: agent first, server last; the end of a part ends the whole."""

    def __init__(self, options: argparse.Namespace, talk: Talk, log: Log) -> None:
        self.options = options
        self.talk = talk
        self.log = log
        # A signal may hit any thread, and would not wake the main one without the pipe
        self._events, self._tell = os.pipe()
        os.set_blocking(self._tell, False)
        self.is_stopping = False
        settings = {name: getattr(options, name) for name in LIMITS}
        self.agent = Agent(settings, log_folder=options.log_folder,
                           on_failure=self._lose)
        self.agent.adopts_orphans = True

    def _lose(self) -> None:
        os.write(self._tell, LOST)

    def _on_signal(self, number: int, frame: object) -> None:
        if number != signal.SIGHUP:
            if self.is_stopping:
                self.agent.is_hasty = True  # the second signal: at once
            self.is_stopping = True

    def run(self) -> int:
        """Serve until a signal or the loss of a part; return the exit status."""
        signal.set_wakeup_fd(self._tell)  # first: a new list starts reserved workers
        for number in SIGNALS:
            signal.signal(number, self._on_signal)
        try:
            return self._serve() if self._make_logs() and self._load() else 2
        finally:
            self.agent.end()  # [fcc.end.nothing]
            self.log.flush()
            self.talk.flush()

    def _make_logs(self) -> bool:
        try:
            os.makedirs(self.agent.log_folder, exist_ok=True)
            return True
        except OSError as error:
            self.talk.say("--log-folder %s: %s" % (self.agent.log_folder,
                                                   error.strerror))
            return False

    def _serve(self) -> int:
        self.agent.start()
        try:
            server = Server(self.agent, self.options.host, self.options.port,
                            self.options.default_function, self.log.write,
                            self._lose)
        except (OSError, UnicodeError) as error:  # of a name that no host can have
            self.talk.say("cannot listen on %s port %d: %s" % (
                self.options.host, self.options.port, error))
            return 1
        self.talk.say("listens on %s:%d" % (self.options.host, server.port))
        try:
            return self._watch()
        finally:
            server.close()

    def _watch(self) -> int:
        while True:
            event = os.read(self._events, 1)
            if event == LOST:
                self.talk.say("a part of the gateway is lost")  # [fcc.end.part]
                self.agent.end()  # so that no call holds up the end of the server
                return 1
            if event[0] != signal.SIGHUP:
                self.agent.close()  # [fcc.stop.sigterm]
                return 0
            if not self._load():
                self.talk.say("the list of functions stays as it was")

    def _load(self) -> bool:
        """Read the list of functions; tell whether it is a good one."""
        try:
            if self.options.profiles:
                with open(self.options.profiles, "rb") as file:
                    self.agent.set_profiles(parse_profiles(file.read()))
        except (OSError, ValueError, RecursionError) as error:
            self.talk.say("%s: %s" % (self.options.profiles, error))
            return False
        self.talk.say("%d functions" % len(self.agent.brokers))
        return True


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        # a fixed width: to ask for the terminal's loads a tenth of what a start loads
        formatter_class=lambda prog: argparse.HelpFormatter(prog, width=80),
        prog=os.path.basename(sys.argv[0]),
        description="Run many small functions in one FC container.",
        epilog="Exit status: 0 after a signal, 1 it cannot listen or a part of it is "
               "lost, 2 an option, a file or a folder cannot be used.")
    add = parser.add_argument
    add("--profiles", metavar="FILE.json", default="", help="the list of functions; "
        "read again on SIGHUP")
    add("--default-function", metavar="NAME", default="",
        help="for calls that name no function")
    add("--host", default="0.0.0.0", help="address to listen on (%(default)s)")
    add("--log-folder", default=os.environ.get("NOSLATE_LOGDIR", ""),
        help="for the output of workers ($NOSLATE_LOGDIR; else a temporary one)")
    add("--access-log", default="-", metavar="FILE|-", help="one line for each call")
    for name, limit in NUMBERS.items():
        add(limit.option, dest=name, metavar="N",
            help="%s: %s (%s)" % (name, limit.meaning, limit.default))
    add("--version", action="version",
        version="gateway %s, SPEC %s" % (__version__, SPEC_VERSION))
    return parser


def read_number(limit: Limit, given: Optional[str]) -> float:
    """Return a number: the option's, else that of the first variable that is set, else
    the default. Raises ValueError, naming where it is from."""
    where, text = limit.option, given
    for variable in limit.variables:
        if text is None:
            where, text = variable, os.environ.get(variable) or None
    if text is None:
        return limit.default
    try:
        value = float(text)
    except ValueError:
        check_value(where, limit.kind, text)  # raises: no kind is a text
        raise
    value = int(value) if value.is_integer() else value
    check_value(where, limit.kind, value)
    return value


def read_options(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    """Return what the command line says, numbers within their ranges; or exit."""
    parser = make_parser()
    options = parser.parse_args(argv)
    try:
        for name, limit in NUMBERS.items():
            setattr(options, name, read_number(limit, getattr(options, name)))
    except ValueError as error:
        parser.error(str(error))
    return options


def open_standard_files() -> None:
    """Open those of files 0, 1 and 2 that were closed when we were started: else the
    next socket would get that number, and be written to."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
            setattr(sys, name, open(number, "w" if number else "r"))


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the container; return the exit status."""
    open_standard_files()
    options = read_options(argv)
    talk = Talk()
    try:
        log = talk.open(options.access_log)
    except OSError as error:
        talk.say("--access-log %s: %s" % (options.access_log, error.strerror))
        return 2
    try:
        container = Container(options, talk, log)
    except OSError as error:
        talk.say("no folder for temporary files ($TMPDIR): %s" % error.strerror)
        return 2
    try:
        return container.run()
    finally:  # one more signal while the interpreter ends would change the status
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
