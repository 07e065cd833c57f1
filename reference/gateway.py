#!/usr/bin/env python3
# gateway.py: run many small functions in one FC container. MIT licence.
"""Run many small functions in one FC container, as Noslate arranges it.

One HTTP server answers the calls of Function Compute (`/invoke`, `/initialize`,
`/pre-freeze`, `/pre-stop`, HTTP invocations) and hands each invocation to a *worker*:
a process of its own for one function, started on demand, reused, multiplied and
stopped in here. The list of functions is a list of *profiles*:

    python3 gateway.py --profiles functions.json
    curl -X PUT --data-binary @functions.json localhost:9000/-/profiles
    curl -H 'x-noslated-dispatch: hello' --data-binary hi localhost:9000/invoke

    caller -> FC -> Caller -> Agent -> Broker (one per function) -> Worker (process)

HTTP, processes and the clock are those of emulator.py, which lies beside this file.
Chapter 9 of SPEC.md has the rules, and says what stands in for Noslate's own parts:
workers are plain processes that speak the fc protocol, so fc_bootstrap.py and the
samples are workers as they are; code packages are folders; nothing is isolated.
Standard library only, CPython 3.8 or later, Linux.
"""
from __future__ import annotations

import argparse
import collections
import contextlib
import json
import math
import os
import random
import re
import select
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
import urllib.parse
from typing import (TYPE_CHECKING, AbstractSet, Any, Callable, Deque, Dict, Iterable,
                    List, NamedTuple, Optional, Sequence, Tuple)

if TYPE_CHECKING or not __package__:
    import emulator
    import fc_platform
    from fc_platform import Limit, Row
else:  # installed
    from . import emulator, fc_platform
    from .fc_platform import Limit, Row

__version__ = "0.1.0"
SPEC_VERSION = "0.1"
__all__ = ["Agent", "Container", "main"]


# ---- model ----

Pair = Tuple[str, str]
Services = Dict[str, List[Tuple[str, float]]]   # name -> functions, their proportions


class Failure(Exception):
    """A call that no handler has answered; `name` is one of FAILURES."""

    def __init__(self, name: str, message: str, *words: object) -> None:
        super().__init__(name)
        self.name, self.message = name, message % words


class Kind(NamedTuple):
    """What a value may be: in words, and how to tell."""

    text: str
    fits: Callable[[Any], bool]


class Field(NamedTuple):
    """A field of an object: its kind, and what it is when left out, where the name of a
    setting stands for that setting; its name in here; the fields of a list's items."""

    kind: Kind
    default: Any = None
    name: str = ""
    items: "Dict[str, Field]" = {}


# ---- tables: the protocol ----

# What FC calls, with the methods by which it does so [fcc.invoke.kind]
ENDPOINTS: Dict[str, Sequence[str]] = {"/invoke": ("POST",), **dict.fromkeys(
    ("/initialize", "/pre-freeze", "/pre-stop"), ("POST", "GET"))}
ADMIN = (("GET", "/-/stats"), ("PUT", "/-/profiles"))  # [fcc.admin.local]

# Failure -> status of an HTTP invocation. An event invocation gets 404 for each of
# them, as the seed has it [fcc.error.status]. 0: after the head, or nobody is there.
FAILURES: Dict[str, int] = {name: status for status, names in (
    (400, "BadDispatch"),
    (404, "UnknownPath UnknownFunction UnknownService"),
    (413, "RequestTooLarge"),
    (429, "RateLimited"),
    (502, "WorkerDied BadAnswer"),
    (503, "AgentClosed Overloaded QueueDisabled ReplicaLimit"),
    (503, "MemoryPoolFull CodeMissing InitFailed InitTimeout"),  # reject a whole queue
    (504, "QueueTimeout HeadTimeout"),
    (0, "StreamBroken BodyTimeout CallerGone"),
) for name in names.split()}

# After these a worker gets no more calls: nobody knows when a late handler will end
# [fcc.timeout.retire], and who breaks a connection is about to end itself
# [fcc.worker.exit].
RETIRING = ("HeadTimeout", "BodyTimeout", "WorkerDied", "StreamBroken")

# state and call -> action, next state of a worker; states only go forward
STATES = {
    ("created", "installed"): Row("serve", "ready", "fcc.launch.ready"),
    ("created", "failed"): Row("kill", "stopping", "fcc.launch.failed"),
    ("created", "retire"): Row("kill", "stopping", "fcc.stop.drain"),
    ("ready", "retire"): Row("drain", "pending-stop", "fcc.stop.drain"),
    ("ready", "exit"): Row("forget", "stopped", "fcc.worker.exit"),
    ("pending-stop", "drained"): Row("terminate", "stopping", "fcc.stop.signals"),
    ("pending-stop", "late"): Row("terminate", "stopping", "fcc.stop.signals"),
    ("pending-stop", "exit"): Row("forget", "stopped", "fcc.worker.exit"),
    ("stopping", "late"): Row("kill", "stopping", "fcc.stop.signals"),
    ("stopping", "exit"): Row("forget", "stopped", "fcc.worker.exit"),
}

# Fields that belong to one connection, and ours, which nobody else may set
# [fcc.fields.hop]
HOP_FIELDS = fc_platform.DROPPED_REQUEST | {
    "proxy-connection", "te", "trailer", "upgrade", "x-noslate-worker-secret"}
# What a worker hears about itself instead of about the container [fcc.fields.pass]
OWN_FIELDS = HOP_FIELDS | {
    "x-fc-request-id", "x-fc-control-path", "x-fc-function-name",
    "x-fc-function-handler", "x-fc-function-memory", "x-fc-function-timeout"}

MEMORY_STRIKES = 3           # looks above the limit that are forgiven
LOAD_HIGH, LOAD_LOW, LOAD_WANTED = 0.8, 0.6, 0.7
BODY_EXTRA_S = 1.0           # from the deadline of the head to that of the body
BODY_BYTES = 32 << 20        # of a call; it is read before a worker is asked
PROFILES_BYTES = 8 << 20
PROBE_S = 0.002              # between two looks whether a new worker listens
DIAL_S = 1.0                 # to reach a worker that was there before
END_S = 5.0                  # for processes that were killed
ANSWER_S = 1.0               # for answers on their way when the server ends
EXEC_S = 0.02                # a process that is being forked has no environment yet
KILL_ROUNDS = 10             # looks for what a worker has forked
LATE_S = 0.1                 # a look that is later means: we were frozen
TAIL_BYTES = 500             # of what a worker said that could not start
LOGS_KEPT = 100              # log folders of workers that have stopped


# [fcc.log.access]; json.dumps() would cost a twentieth of a call
LOG_LINE = (
    '{"time": %.3f, "request_id": %s, "function": %s, "method": %s, "url": %s, '
    '"worker": %s, "error": %s, "new_worker": %s, "status": %d, "bytes": %d, '
    '"queue_ms": %.2f, "first_byte_ms": %.2f, "total_ms": %.2f}\n')
quote = json.encoder.encode_basestring_ascii    # a text in JSON, at the speed of C


# ---- tables: what can be configured ----

def number(text: str, least: float, most: float = sys.float_info.max,
           types: Sequence[type] = (int, float)) -> Kind:
    """Describe numbers in a range; infinite ones and truth values are none."""
    return Kind(text, lambda value: type(value) in types and least <= value <= most)


def one_of(*texts: str) -> Kind:
    """Describe a choice."""
    return Kind("one of " + ", ".join(texts), lambda value: value in texts)


def is_word(value: Any) -> bool:
    """Tell whether a process can be given it as a word."""
    return isinstance(value, str) and value != "" and "\0" not in value


def is_variable(item: Any) -> bool:
    """Tell whether it is a variable that a profile may set."""
    return (isinstance(item, dict) and set(item) == {"key", "value"}
            and TEXT.fits(item["key"]) and "=" not in item["key"]
            and (item["value"] == "" or is_word(item["value"]))
            and not item["key"].startswith(("NOSLATE_", "NOSLATED_", "FC_")))


COUNT = number("a whole number from 1", 1, types=(int,))
COUNT_0 = number("a whole number from 0", 0, types=(int,))
SHARE = number("a number from 0 to 1", 0, 1)
AMOUNT = number("a number from 0", 0)
MILLISECONDS = number("a number above 0", sys.float_info.min)
FLAG = Kind("true or false", lambda value: isinstance(value, bool))
OBJECT = Kind("an object", lambda value: isinstance(value, dict))
LIST = Kind("a list", lambda value: isinstance(value, list))
FULL_LIST = Kind("a list, not empty", lambda value: LIST.fits(value) and value != [])
TEXT = Kind("a text that is not empty",
            lambda value: is_word(value) and value.isprintable())
NAME = Kind("a text of visible ASCII characters",  # any client can put it into a field
            lambda value: is_word(value) and re.fullmatch("[!-~]+", value) is not None)
FOLDER = Kind("file:// and an absolute folder", lambda value: (
    is_word(value) and value.startswith("file:///") and "%00" not in value))
WORDS = Kind("a list of words, at least one",
             lambda value: FULL_LIST.fits(value) and all(map(is_word, value)))
PAIRS = Kind("a list of {key, value}, no key beginning NOSLATE_, NOSLATED_ or FC_",
             lambda value: LIST.fits(value) and all(map(is_variable, value)))

DISPATCH = one_of("least-request-count", "round-robin")
SHRINKING = one_of("LCC", "FIFO", "FILO")

SETTINGS: Dict[str, Any] = {  # its Limit is that of the emulator
    "port": Limit(9000, "--port", True),
    "timeout_s": Limit(10, "--timeout"),
    "tick_s": Limit(10, "--tick"),
    "idle_ticks": Limit(6, "--idle-ticks"),
    "drain_s": Limit(30, "--drain", True),
    "grace_s": Limit(3, "--grace", True),
    "memory_pool_bytes": Limit(1 << 30, "--memory-pool", True),
    "memory_check_s": Limit(1, "--memory-check"),
    "launches": Limit(4, "--launches"),
    "calls": Limit(10000, "--calls"),
    "queued_calls": Limit(1000, "--queue", True),
    "max_active": Limit(10, "--max-active"),
    "replica_limit": Limit(10, "--replicas"),
    "reserved": Limit(0, "--reserved", True),
}
VARIABLES: Dict[str, Sequence[str]] = {  # that give a setting whose option is left out
    "port": ("FC_SERVER_PORT", "FC_CUSTOM_LISTEN_PORT", "SERVER_PORT"),
    "memory_pool_bytes": ("NOSLATED_VIRTUAL_MEMORY_POOL_SIZE",),
    "max_active": ("NOSLATED_MAX_ACTIVATE_REQUESTS",),
    "replica_limit": ("NOSLATED_REPLICA_COUNT_LIMIT_PER_FUNCTION",),
    "reserved": ("NOSLATED_RESERVATION_WORKER_COUNT_PER_FUNCTION",),
}

REQUIRED = object()
PROFILE_FIELDS: Dict[str, Field] = {
    "name": Field(NAME, REQUIRED, "name"),
    "runtime": Field(one_of("custom"), REQUIRED, "runtime"),
    "url": Field(FOLDER, REQUIRED, "url"),
    "signature": Field(TEXT, REQUIRED, "signature"),
    "handler": Field(TEXT, "", "handler"),
    "initializer": Field(TEXT, "", "initializer"),
    "command": Field(WORDS, (), "command"),
    "namespace": Field(TEXT, None, "namespace"),
    "environments": Field(PAIRS, (), "environments"),
    "resourceLimit": Field(OBJECT),
    "resourceLimit.memory": Field(COUNT, 512 << 20, "memory_bytes"),
    "resourceLimit.cpu": Field(SHARE, None, "cpu"),
    "rateLimit": Field(OBJECT),
    "rateLimit.maxTokenCount": Field(AMOUNT, math.inf, "tokens"),
    "rateLimit.tokensPerFill": Field(AMOUNT, None, "tokens_per_fill"),
    "rateLimit.fillInterval": Field(MILLISECONDS, 1000, "fill_interval_ms"),
    "worker": Field(OBJECT),
    "worker.maxActivateRequests": Field(COUNT, "max_active", "max_active"),
    "worker.replicaCountLimit": Field(COUNT, "replica_limit", "replica_limit"),
    "worker.reservationCount": Field(COUNT_0, "reserved", "reserved"),
    "worker.initializationTimeout": Field(MILLISECONDS, 10000, "init_timeout_ms"),
    "worker.disposable": Field(FLAG, False, "disposable"),
    "worker.fastFailRequestsOnStarting": Field(FLAG, False, "fast_fail"),
    "worker.disableRequestQueue": Field(FLAG, False, "queue_disabled"),
    "worker.dispatchMode": Field(DISPATCH, "least-request-count", "dispatch_mode"),
    "worker.shrinkStrategy": Field(SHRINKING, "LCC", "shrink_strategy"),
}
SHARES = {"name": Field(NAME, REQUIRED), "proportion": Field(SHARE)}
LISTS = {"services": Field(LIST, items={
    "name": Field(NAME, REQUIRED), "functions": Field(FULL_LIST, REQUIRED, items=SHARES)
}), "functions": Field(LIST, REQUIRED, items=PROFILE_FIELDS)}
# A change of these needs other workers [fcc.profile.identity]
IDENTITY = ("runtime", "url", "signature", "handler", "initializer", "command",
            "memory_bytes", "cpu", "disposable")


# ---- rules without I/O: profiles ----

class Profile(argparse.Namespace):
    """A checked profile, its fields under our names."""

    tokens_per_fill: Any
    reserved: int

    def __init__(self, item: Dict[str, Any], settings: argparse.Namespace) -> None:
        super().__init__()
        for path, field in PROFILE_FIELDS.items():
            value = look_up(item, path)
            if value is REQUIRED:
                value = getattr(settings, str(field.default), field.default)
            setattr(self, field.name, value)
        self.folder = urllib.parse.unquote(self.url[len("file://"):])
        self.env = {one["key"]: one["value"] for one in self.environments}
        if self.tokens_per_fill is None:
            self.tokens_per_fill = self.tokens
        self.fill_interval_s = max(0.001, self.fill_interval_ms / 1000)
        self.rate = (self.tokens, self.tokens_per_fill, self.fill_interval_s)
        self.init_timeout_s = self.init_timeout_ms / 1000
        self.reserved = min(self.reserved, self.replica_limit)
        if self.disposable:  # [fcc.disposable.one]
            self.max_active, self.reserved = 1, 0
            self.dispatch_mode = "least-request-count"  # the other one limits no worker
        self.identity = [getattr(self, name) for name in IDENTITY]


def look_up(item: Dict[str, Any], path: str) -> Any:
    """Return a field of an object, or of one in it; REQUIRED if it is left out."""
    outer, _, inner = path.rpartition(".")
    return (item.get(outer, {}) if outer else item).get(inner, REQUIRED)


def check(where: str, field: Field, value: Any) -> None:
    """Raise ValueError, naming the place, unless a value is as its field says."""
    if value is REQUIRED:
        if field.default is REQUIRED:
            raise ValueError("%s: missing" % where)
        return
    if not field.kind.fits(value):
        raise ValueError("%s: expected %s, found %s"
                         % (where, field.kind.text, json.dumps(value)[:80]))
    names = set()
    for number, item in enumerate(value if field.items else ()):
        place = "%s[%d]" % (where, number)
        check(place, Field(OBJECT), item)
        for key in item:  # inside `worker` and the like unknown ones are allowed
            if key not in field.items or "." in key:
                raise ValueError("%s.%s: unknown field" % (place, key))
        for path, inner in field.items.items():
            check("%s.%s" % (place, path), inner, look_up(item, path))
        if item["name"] in names:
            raise ValueError("%s.name: %s is there twice" % (place, item["name"]))
        names.add(item["name"])


def fields_once(pairs: List[Tuple[str, Any]]) -> Dict[str, Any]:
    """Make an object of JSON. Raises ValueError for a field that is there twice."""
    fields: Dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise ValueError("%s: is there twice in an object" % name)
        fields[name] = value
    return fields


def read_profiles(text: bytes, settings: argparse.Namespace
                  ) -> Tuple[Dict[str, Profile], Services]:
    """Return functions and services of a list of profiles, or of an object with the
    lists `functions` and `services`. Raises ValueError for the whole
    [fcc.profile.all], RecursionError."""
    document = json.loads(text, object_pairs_hook=fields_once)
    lists = document if isinstance(document, dict) else {"functions": document}
    for name in lists:
        if name not in LISTS:
            raise ValueError("%s: unknown field" % name)
    for name, field in LISTS.items():
        check(name, field, lists.get(name, REQUIRED))
    functions = {item["name"]: Profile(item, settings) for item in lists["functions"]}
    services = {item["name"]: [(share["name"], share.get("proportion", 1))
                               for share in item["functions"]]
                for item in lists.get("services", ())}
    for name, shares in services.items():
        for function, _ in shares:
            if function not in functions:
                raise ValueError("services: %s has no function %s" % (name, function))
    return functions, services


# ---- rules without I/O: dispatch and scaling ----

def choose_function(dispatch: str, fc_name: str, default: str,
                    functions: Iterable[str], services: Services,
                    chance: float) -> str:
    """Return the function that a call is for. Raises Failure. `chance` is a random
    number from 0 to 1 that decides between the functions of a service."""
    kind, colon, name = dispatch.partition(":")
    if not dispatch:  # [fcc.dispatch.order]
        return default if default and fc_name not in functions else fc_name
    if not colon or kind == "function":
        return name if colon else dispatch
    if kind != "service" or not name:
        raise Failure("BadDispatch", "x-noslated-dispatch is NAME, function:NAME or "
                      "service:NAME, not %r", dispatch[:80])
    if name not in services:
        raise Failure("UnknownService", "no service %r", name)
    for function, proportion in services[name]:  # [fcc.dispatch.service]
        chance -= proportion
        if chance < 0:
            return function
    return services[name][-1][0]


def pass_fields(head: emulator.Head, dropped: AbstractSet[str]) -> List[Pair]:
    """Return the fields that are neither dropped nor named by a Connection field."""
    named = head.get("connection").lower().replace(",", " ").split()
    return [pair for pair in head.fields
            if pair[0].lower() not in dropped and pair[0].lower() not in named]


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


# ---- running time ----

class RunningClock(emulator.Clock):
    """Seconds without those for which the container was frozen, the time of all limits
    [fcc.freeze.clocks]: it stands while the next look at the deadlines is late, also
    for a call that comes after a freeze and before that look. While calls run, the look
    at memory bounds the time between two, and so what is not noticed."""

    frozen_s = 0.0

    def now(self) -> float:
        """Return the running time."""
        time_s = time.monotonic()
        self.frozen_s = max(self.frozen_s, time_s - self._looks_at - LATE_S)
        return time_s - self.frozen_s


# ---- workers ----

BROKEN = (OSError, ValueError, emulator.BadMessage, emulator.BodyTooLarge,
          emulator.CallerGone)   # how an exchange with a worker breaks off


class Worker:
    """A process that serves one function over the fc protocol, and its thread, run().
    The agent's lock guards state, counts and the pool of connections."""

    def __init__(self, agent: "Agent", broker: "Broker", number: int) -> None:
        self.agent, self.broker, self.profile = agent, broker, broker.profile
        self.id = "%s-%d-%s" % (
            re.sub(r"[^0-9A-Za-z_.-]", "_", self.profile.name)[:80], number, agent.mark)
        self.state = "created"
        self.active = 0              # calls that hold a slot
        self.served = 0
        self.strikes = 0             # looks at memory above the limit, in a row
        self.has_thread = False      # else it waits for its turn to start
        self.secret = os.urandom(16).hex()  # [fcc.worker.secret]
        self.port, self.memory_mb = 0, str(self.profile.memory_bytes >> 20)
        self.listens = False
        self.own = emulator.format_head("", [   # in the head of each request
            ("X-Fc-Function-Name", self.profile.name),
            ("X-Fc-Function-Handler", self.profile.handler),
            ("X-Fc-Function-Memory", self.memory_mb),
            ("X-Noslate-Worker-Secret", self.secret)])[2:]
        self.pool: List[emulator.Upstream] = []     # kept connections, last used last
        self.process: Optional[emulator.Process] = None
        self.cleared = threading.Event()            # nothing of the process is left
        self.log_folder = os.path.join(agent.log_folder, "workers", self.id)
        self.scratch = os.path.join(agent.work_folder, "sandbox", self.id)

    # -- its life --

    def run(self) -> None:
        """Start the process, wait for its end, and let nothing of it stay."""
        failure = self._launch()
        self.agent.step(self, "failed" if failure else "installed", failure)
        if self.process is not None:
            self.cleared.wait()
        self.agent.step(self, "exit")
        for upstream in self.pool:
            upstream.close()
        shutil.rmtree(self.scratch, ignore_errors=True)
        old_logs = self.agent.old_logs
        old_logs.append(self.log_folder)
        if len(old_logs) > LOGS_KEPT:
            shutil.rmtree(old_logs.popleft(), ignore_errors=True)

    def _clear(self, status: int) -> None:
        """The process has ended. What it has forked may hold a connection of ours, so
        this waits for nobody."""
        kill_marked("NOSLATE_WORKER_ID=" + self.id)  # [fcc.stop.signals]
        self.cleared.set()

    def _launch(self) -> Optional[Failure]:
        """Start the process and wait until it can serve; return why it cannot."""
        try:
            self._start()
            upstream = self._await_port()
            self.listens = True
            if not self.profile.initializer or self._initialize(upstream):
                self.pool.append(upstream)
        except Failure as failure:
            return failure
        except emulator.StartError as error:
            return Failure("CodeMissing", "%s: %s", self.profile.name, error)
        except BROKEN as error:
            return Failure("InitFailed", "worker %s %s", self.id, self._why(error))
        return None

    def _start(self) -> None:
        profile, agent = self.profile, self.agent
        if not os.path.isdir(profile.folder):
            raise emulator.StartError("missing", "no folder " + profile.folder)
        # [fcc.launch.command]
        words = profile.command or [os.path.join(profile.folder, "bootstrap")]
        if "PATH" not in profile.env:
            emulator.check_program(words, profile.folder, "")
        os.makedirs(self.log_folder, exist_ok=True)
        os.makedirs(self.scratch, exist_ok=True)
        with agent.lock:
            taken = [one.port for one in agent.workers]
            while self.port in taken:
                self.port = emulator.free_port()
        with open(os.path.join(self.log_folder, "stdout.log"), "wb") as out, \
                open(os.path.join(self.log_folder, "stderr.log"), "wb") as err:
            # it stays in the container's process group, which is frozen as one
            self.process = emulator.Process(
                words, profile.folder, self._environment(), out.fileno(),
                self._clear, errors=err.fileno(), leads=False)
        with agent.lock:
            if self.state == "created":
                agent.limit(self.on_time, profile.init_timeout_s)
            else:  # there was no process yet to kill
                self.signal(signal.SIGKILL)

    def _environment(self) -> Dict[str, str]:
        """Inherit only what every program needs [fcc.worker.environment]."""
        profile, port = self.profile, str(self.port)
        env = {name: os.environ[name] for name in ("PATH", "TERM", "TZ", "LANG")
               if name in os.environ}
        env.update(HOME=profile.folder, TMPDIR=self.scratch, FC_SERVER_PORT=port,
                   FC_CUSTOM_LISTEN_PORT=port, FC_FUNC_CODE_PATH=profile.folder,
                   FC_FUNCTION_NAME=profile.name, FC_INSTANCE_ID=self.id,
                   FC_FUNCTION_MEMORY_SIZE=self.memory_mb)
        if profile.handler:
            env["FC_FUNCTION_HANDLER"] = profile.handler
        env.update(profile.env)
        env.update(NOSLATE_WORKER_ID=self.id, NOSLATE_WORKER_SECRET=self.secret)
        return env

    def _await_port(self) -> emulator.Upstream:
        process = self.process
        while process is not None and self.state == "created":
            with contextlib.suppress(OSError):
                return self._dial()
            if process.exited.wait(PROBE_S):
                raise ConnectionError("it has ended")
        raise ConnectionError("it was given up")  # who did that knows why

    def _initialize(self, upstream: emulator.Upstream) -> bool:
        """Call the initializer; tell whether the connection stays."""
        upstream.send(self.request("POST", "/initialize", (), fc_platform.new_id(),
                                   "/initialize", self.profile.init_timeout_s, 0))
        head = upstream.read_answer(emulator.HEAD_BYTES)
        b"".join(emulator.read_parts(upstream.reader, head.length))
        if fc_platform.judge_hook(int(head.words[1])) != "done":
            raise Failure("InitFailed", "the initializer of %s answered %s",
                          self.profile.name, head.words[1])
        return head.keep_alive and head.length is not None

    def _why(self, error: Exception) -> str:
        """Return what went wrong; if the process has ended, that is the reason."""
        process = self.process
        if process is None or not process.ends_now():
            return "cannot serve: %s" % error
        said = b""
        with contextlib.suppress(OSError), open(
                os.path.join(self.log_folder, "stderr.log"), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            said = file.read(TAIL_BYTES)
        return "ended %s before it could serve: %s" % (emulator.describe_status(
            process.status), said.decode("utf-8", "replace").strip())

    def on_time(self) -> None:
        """The start, the drain or the stop takes too long."""
        with self.agent.lock:
            if self.agent.clock.is_set(self.on_time):
                return  # it was moved meanwhile
            if self.state != "created":
                self.agent.step(self, "late")
                return
            self.agent.step(self, "failed", Failure(
                "InitTimeout", "worker %s %s within %g s", self.id,
                "has not answered its initializer" if self.listens else
                "runs, but nothing listens on its port %d; it must read FC_SERVER_PORT,"
                " and has not" % self.port, self.profile.init_timeout_s))

    def signal(self, number: int) -> None:
        """Send a signal, if the process is there."""
        if self.process is not None:
            self.process.signal(number)

    # -- connections --

    def _dial(self) -> emulator.Upstream:
        return emulator.Upstream(socket.create_connection(("127.0.0.1", self.port),
                                                          DIAL_S))

    def connect(self, kept: Optional[emulator.Upstream]) -> Optional[emulator.Upstream]:
        """Return a connection, the kept one if it can be used; None when the worker is
        gone. Raises Failure when that is not its fault. Blocks for DIAL_S at most."""
        if kept is not None:
            if kept.is_usable():
                kept.deadline = math.inf  # the call's on_time() cuts it off
                return kept
            kept.close()
        try:
            return self._dial()
        except ConnectionError:
            return None
        except OSError as error:  # too many open files, say [fcc.limit.calls]
            raise Failure("Overloaded", "no connection to a worker: %s", error)

    def request(self, method: str, target: str, fields: Sequence[Pair], request_id: str,
                control_path: str, timeout_s: float, length: Optional[int]) -> bytes:
        """Return the head of a request to the worker [fcc.fields.pass]."""
        own = [("X-Fc-Request-Id", request_id), ("X-Fc-Control-Path", control_path),
               ("X-Fc-Function-Timeout",  # [fc.headers.common]
                str(max(1, math.ceil(timeout_s))))]
        if length is not None:
            own.append(("Content-Length", str(length)))
        if not any(name.lower() == "host" for name, _ in fields):
            own.append(("Host", "127.0.0.1"))
        return emulator.format_head("%s %s HTTP/1.1" % (method, target),
                                    [*fields, *own])[:-2] + self.own


def kill_marked(variable: str) -> None:
    """Kill every process with this variable in its environment: what a worker forked
    inherits it. By group is no way, that is the container's. Blocks for EXEC_S."""
    for looks in range(KILL_ROUNDS):
        found = False
        for number, _ in emulator.group_members():
            with contextlib.suppress(OSError):  # it is another user's, or has ended
                with open("/proc/%d/environ" % number, "rb") as file:
                    if variable.encode() in file.read().split(b"\0"):
                        os.kill(number, signal.SIGKILL)
                        found = True
        if looks and not found:
            return
        time.sleep(EXEC_S)  # one may have forked before its end


# ---- a call and its broker ----

class Call:
    """One invocation. The thread of its caller carries it to the worker and back."""

    turn: Tuple[socket.socket, ...] = ()     # the first is shut when it comes
    refusal: Optional[Failure] = None        # it fails unless it is in a worker
    broker: Broker                           # of its function, once it was let in
    worker: Optional[Worker] = None
    upstream: Optional[emulator.Upstream] = None
    status = 0                   # of its answer, 0 before that has begun
    size = 0                     # of the answer's body so far
    error = ""
    is_new = False               # the worker had no call before
    is_ended = False             # it holds nothing of the worker any more
    queued_s = first_byte_s = 0.0

    def __init__(self, agent: "Agent", caller: "Caller") -> None:
        self.agent, self.caller, self.name = agent, caller, ""
        get = caller.head.get
        self.request_id = get("x-fc-request-id") or get(
            "x-noslated-request-id") or "unknown"
        self.timeout_s = agent.settings.timeout_s
        with contextlib.suppress(ValueError):
            self.timeout_s = emulator.check_limit("timeout_s", SETTINGS["timeout_s"], {
                "timeout_s": float(get("x-fc-function-timeout"))})
        self.started = agent.clock.now()
        with agent.lock:
            agent.calls += 1
            agent.limit(self.on_time, self.timeout_s)

    def on_time(self) -> None:
        """The head, or the end of the answer, is not there in time."""
        with self.agent.lock:
            if self.is_ended or self.agent.clock.is_set(self.on_time):
                return  # it was moved meanwhile
            self.refuse(Failure("QueueTimeout", "no worker of %s was free within %g s",
                                self.name, self.timeout_s))
            if self.upstream is not None:
                emulator.shut(self.upstream.socket)

    def refuse(self, failure: Failure) -> None:
        """Let it fail and wait no more, unless it is in a worker (lock held)."""
        self.refusal = self.refusal or failure
        for end in self.turn:
            emulator.shut(end)

    def wait(self) -> bool:
        """Block until its turn has come, or it was refused (True), or the caller has
        gone."""
        poll = select.poll()
        for peer in (self.turn[1], self.caller.connection):
            poll.register(peer, select.POLLRDHUP)
        return self.turn[1].fileno() in dict(poll.poll())

    def run(self, body: bytes) -> None:
        """Send it to a worker and pass the answer on. Blocks until the deadline at
        most. Raises Failure; no call is ever sent twice [fcc.retry.none]."""
        worker, upstream = self.agent.connect(self)
        caller = self.caller
        try:
            upstream.caller, upstream.on_gone = caller, caller_left
            head = worker.request(
                caller.command, caller.path, pass_fields(caller.head, OWN_FIELDS),
                self.request_id, caller.kind, self.timeout_s,
                len(body) if body or caller.command not in ("GET", "HEAD") else None)
            whole = upstream.send(head, body)
            answer = upstream.read_answer(emulator.HEAD_BYTES)
            if answer.words[1] == "101":
                raise emulator.BadMessage("fc.upgrade.pass", "an upgrade")
            self._pass(upstream, answer, whole)
        except BROKEN as error:
            raise self._explain(error)

    def _pass(self, upstream: emulator.Upstream, head: emulator.Head, whole: bool
              ) -> None:
        """Pass the answer on, as it comes."""
        self.first_byte_s = self.agent.clock.now() - self.started
        self.status = int(head.words[1])
        has_body = emulator.has_body(head, self.caller.command)
        length = head.length if has_body else 0
        kept = whole and head.keep_alive and length is not None
        parts, begin = emulator.read_parts(upstream.reader, length), b""
        if length is not None and 0 <= length <= upstream.ahead:
            begin = b"".join(parts)
            self.size = length
            self.agent.settle(self, kept=kept)  # it is free before the caller has all
        else:
            with self.agent.lock:  # [fcc.timeout.body]
                self.agent.clock.set(self.on_time, self.started + self.timeout_s
                                     + BODY_EXTRA_S)
        answer = emulator.Answer(self.caller)
        answer.begin(head, *self._fields(head), has_body, begin)
        for part in parts:
            self.size += len(part)
            if self.size == length:
                self.agent.settle(self, kept=kept)
            answer.write(part)
            if answer.is_lost:
                raise emulator.CallerGone
        self.agent.settle(self, kept=kept)
        answer.end()

    def _fields(self, head: emulator.Head) -> Tuple[List[Pair], Tuple[Pair, ...]]:
        """Return the fields of the worker's answer for the caller, and ours."""
        fields = [pair for pair in pass_fields(head, HOP_FIELDS)  # [fcc.answer.fields]
                  if not pair[0].lower().startswith(("x-fc-", "x-noslate-"))]
        if fc_platform.judge_answer(self.caller.kind == "/http-invoke", self.status,
                                    head.get("x-fc-status")) == "ok":
            return fields, (("X-Fc-Status", "200"),)
        self.error = "HandlerFailed"
        return fields, (("X-Fc-Status", "404"), ("X-Noslate-Error", self.error))

    def _explain(self, error: Exception) -> Failure:
        """Return how an exchange that broke off ends."""
        begun = self.status > 0
        if isinstance(error, emulator.CallerGone):
            return Failure("CallerGone", "the caller has gone")
        if self.refusal is not None:  # it was late
            return Failure("BodyTimeout" if begun else "HeadTimeout", "%s has not "
                           "answered within %g s", self.name, self.timeout_s)
        if begun:
            return Failure("StreamBroken", "%s: %s", self.name, error)
        if not isinstance(error, OSError) and "any.http.no-effect" not in str(error):
            return Failure("BadAnswer", "%s: %s", self.name, error)
        return Failure("WorkerDied", "its worker is gone: %s: %s", self.name, error)

    def log_line(self) -> bytes:
        """Return the line of the access log [fcc.log.access]."""
        words = self.request_id, self.name, self.caller.command, self.caller.path
        optional = self.worker and self.worker.id, self.error or None
        total_s = self.agent.clock.now() - self.started
        return (LOG_LINE % (time.time(), *map(quote, words), *map(json.dumps, optional),
                            str(self.is_new).lower(), self.status, self.size,
                            self.queued_s * 1e3, self.first_byte_s * 1e3,
                            total_s * 1e3)).encode()


def caller_left() -> None:
    """End the exchange with a worker."""
    raise emulator.CallerGone


class Broker:
    """What belongs to one function: workers, queue, and the tokens of its rate limit,
    all there at first. The agent's lock guards it; no method blocks."""

    def __init__(self, profile: Profile, now: float) -> None:
        self.profile = profile
        self.workers: List[Worker] = []          # all but the stopped, oldest first
        self.queue: Deque[Call] = collections.deque()   # [fcc.queue.order]
        self.tokens: float = profile.tokens      # [fcc.limit.rate]
        self.filled = now                        # in real time: callers are not frozen
        self.low_ticks = 0
        self.turn = 0
        self.failure: Optional[Failure] = None   # of the last launch

    def update(self, profile: Profile, now: float) -> List[Worker]:
        """Take another profile; return the workers that must go."""
        old, self.profile = self.profile, profile
        if old.rate != profile.rate:
            self.tokens, self.filled = profile.tokens, now
        if old.identity != profile.identity:
            return self.workers
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

    def those(self, *states: str) -> List[Worker]:
        """Return the workers in one of these states, oldest first."""
        return [worker for worker in self.workers if worker.state in states]

    def pick(self) -> Optional[Worker]:
        """Return the worker for the next call, None when all are full
        [fcc.dispatch.worker]."""
        ready, limit = self.those("ready"), self.profile.max_active
        if self.profile.dispatch_mode == "round-robin":
            if sum(worker.active for worker in ready) >= limit * len(ready):
                return None
            self.turn += 1
            return ready[self.turn % len(ready)]
        worker = min(ready, key=lambda one: one.active, default=None)
        return worker if worker is not None and worker.active < limit else None

    def needed(self) -> int:
        """Return how many workers to order for those in the queue
        [fcc.launch.demand]."""
        return math.ceil(len(self.queue) / self.profile.max_active) - len(
            self.those("created"))

    def victims(self, number: int) -> List[Worker]:
        """Return the ready workers that shrinking takes first [fcc.scale.victims]."""
        ready = self.those("ready")
        if self.profile.shrink_strategy == "FILO":
            ready.reverse()
        elif self.profile.shrink_strategy == "LCC":
            ready.sort(key=lambda one: one.active)
        return ready[:max(0, number)]

    def reject(self, failure: Failure) -> None:
        """Let every call in the queue fail [fcc.launch.failed]."""
        self.failure = failure
        while self.queue:
            self.queue.popleft().refuse(failure)


# ---- the agent ----

class Agent:
    """Noslate's agent: start(), set_profiles(), connect(), close(), end(). One lock
    guards brokers, workers and calls; it is never held while something blocks. One
    clock keeps every limit; what it calls is the control loop."""

    def __init__(self, settings: argparse.Namespace) -> None:
        self.settings = settings                 # those of SETTINGS, and log_folder
        self.mark = os.urandom(6).hex()          # at the end of each worker's id
        self.work_folder = tempfile.mkdtemp(prefix="noslate-")
        self.log_folder = settings.log_folder or os.path.join(self.work_folder, "logs")
        self.brokers: Dict[str, Broker] = {}
        self.services: Services = {}
        self.workers: List[Worker] = []          # of all brokers, also removed ones
        self.state = "created"                   # running, closing
        self.calls = 0
        self.counts: Dict[str, int] = collections.Counter()
        self.old_logs: Deque[str] = collections.deque()
        self.lock = threading.RLock()
        self._changed = threading.Condition(self.lock)   # for initialize() and close()
        self.clock = RunningClock()
        self.limit(self._on_tick, settings.tick_s)

    def limit(self, call: Callable[[], object], limit_s: float) -> None:
        """Let the clock call after so long."""
        self.clock.set(call, self.clock.now() + limit_s)

    def set_profiles(self, text: bytes) -> None:
        """Replace the whole list. Workers whose code is another now finish their calls
        first [fcc.profile.identity]. Raises ValueError, RecursionError; nothing has
        changed then."""
        functions, services = read_profiles(text, self.settings)
        now = time.monotonic()
        with self.lock:
            for name in [name for name in self.brokers if name not in functions]:
                broker = self.brokers.pop(name)
                broker.reject(Failure("UnknownFunction", "%s was removed", name))
                self._retire(broker.workers)
            self.services = services
            for name, profile in functions.items():
                broker = self.brokers.setdefault(name, Broker(profile, now))
                self._retire(broker.update(profile, now))
                self._serve_queue(broker)
                self._reserve(broker)

    def initialize(self) -> None:
        """Wait until every reserved worker is ready. Raises Failure."""
        def missing() -> List[Broker]:
            return [one for one in self.brokers.values()
                    if len(one.those("ready")) < one.profile.reserved]

        with self.lock:
            for broker in missing():
                broker.failure = None
                self._reserve(broker)
            self._changed.wait_for(lambda: self.state != "running" or all(
                one.failure for one in missing()))
            for broker in missing():
                raise broker.failure or Failure("AgentClosed", "the gateway stops")

    # -- calls --

    def connect(self, call: Call) -> Tuple[Worker, emulator.Upstream]:
        """Get a slot and a connection for a call. Blocks until its deadline at most.
        Raises Failure."""
        with self.lock:
            self._let_in(call)
        while True:
            worker = self._wait_for_worker(call)
            upstream = worker.connect(call.upstream)
            with self.lock:
                call.upstream = upstream  # from here on lateness cuts it off
                if call.refusal is not None:
                    raise call.refusal
                if upstream is not None:
                    return worker, upstream
                call.broker = self._find_broker(call)
                call.broker.queue.appendleft(call)  # another worker may have it
                call.worker = None
                self._free(worker, True)

    def _let_in(self, call: Call) -> None:
        if self.state != "running":
            raise Failure("AgentClosed", "the gateway is %s", self.state)
        call.broker = self._find_broker(call)
        if self.calls > self.settings.calls:  # [fcc.limit.calls]
            raise Failure("Overloaded", "too many calls: %d", self.calls)
        if not call.broker.take_token(time.monotonic()):
            raise Failure("RateLimited", "%s is over its rate", call.name)
        call.broker.queue.append(call)

    def _find_broker(self, call: Call) -> Broker:
        if call.name not in self.brokers:
            raise Failure("UnknownFunction", "no function %r; a call names it in "
                          "x-noslated-dispatch", call.name)
        return self.brokers[call.name]

    def _wait_for_worker(self, call: Call) -> Worker:
        """Get a slot for a call in the queue, at once or when its turn comes."""
        broker = call.broker
        with self.lock:
            self._serve_queue(broker)
            if call.worker is None:
                call.refusal = call.refusal or self._cannot_wait(broker, call)
            waits = call.worker is None and call.refusal is None  # [fcc.queue.order]
            call.turn = socket.socketpair() if waits else ()
        is_here = not waits or call.wait()
        with self.lock:
            for end in call.turn:
                end.close()  # not while another thread shuts it down
            if not is_here:
                call.refuse(Failure("CallerGone", "the caller has gone"))
            if call in broker.queue:
                broker.queue.remove(call)
        call.queued_s = self.clock.now() - call.started
        if call.refusal is not None:
            raise call.refusal
        assert call.worker is not None
        return call.worker

    def _cannot_wait(self, broker: Broker, call: Call) -> Optional[Failure]:
        profile, queued = broker.profile, sum(
            len(one.queue) for one in self.brokers.values())
        if profile.queue_disabled:  # [fcc.queue.disabled]
            return Failure("QueueDisabled", "%s has no free worker", call.name)
        if queued > self.settings.queued_calls:  # [fcc.limit.calls]
            return Failure("Overloaded", "too many calls wait: %d", queued)
        if profile.fast_fail and broker.needed() > 0:  # [fcc.limit.replicas]
            return Failure("ReplicaLimit", "%s may have no more workers", call.name)
        return None

    def _assign(self, worker: Worker, call: Call) -> None:
        """Give a call a slot of a worker, and a kept connection if there is one."""
        call.worker, call.is_new = worker, worker.served == 0
        call.upstream = worker.pool.pop() if worker.pool else None
        worker.active += 1
        worker.served += 1
        if not self.clock.is_set(self._check_memory):
            self.limit(self._check_memory, self.settings.memory_check_s)

    def _serve_queue(self, broker: Broker) -> None:
        """Serve the queue, and order the workers that the rest of it needs."""
        while broker.queue:
            worker = broker.pick()
            if worker is None:
                failure = self._order(broker, broker.needed())
                if failure is not None:
                    broker.reject(failure)
                return
            call = broker.queue.popleft()
            self._assign(worker, call)
            for end in call.turn:
                emulator.shut(end)

    def settle(self, call: Call, error: str = "", kept: bool = False) -> None:
        """A call has ended, unless that is known: pass its slot on, and its connection
        if that is kept."""
        worker, upstream = call.worker, call.upstream
        with self.lock:
            if call.is_ended:
                return
            call.is_ended, call.error = True, error or call.error
            self.calls -= 1
            self.counts[call.error or "ok"] += 1
            self.clock.set(call.on_time, math.inf)
            call.upstream = None
            if upstream is not None and worker is not None:
                upstream.caller = None
                if kept and worker.state != "stopped":
                    worker.pool.append(upstream)  # before the next call looks for one
                else:
                    upstream.close()  # the handler may learn that nobody waits
            if worker is not None:
                self._free(worker, worker.profile.disposable or call.error in RETIRING)
            if self.state != "running":
                self._changed.notify_all()

    def _free(self, worker: Worker, retires: bool) -> None:
        """Take a slot of a worker back (lock held)."""
        worker.active -= 1
        if retires:
            self.step(worker, "retire")
        if not worker.active:
            self.step(worker, "drained")
        self._serve_queue(worker.broker)

    # -- workers come and go (lock held) --

    def _order(self, broker: Broker, number: int) -> Optional[Failure]:
        """Order so many workers, but not more than the function may have
        [fcc.limit.replicas]. Return why one is impossible, None if each is possible."""
        profile, failure = broker.profile, None
        number = min(number, profile.replica_limit
                     - len(broker.those("created", "ready")))
        while number > 0 and failure is None:
            number -= 1
            left = self.settings.memory_pool_bytes - sum(
                worker.profile.memory_bytes for worker in self.workers
                if worker.state in ("created", "ready"))
            if profile.memory_bytes > left:  # [fcc.limit.pool]
                failure = Failure("MemoryPoolFull", "%s needs %d bytes, %d are left",
                                  profile.name, profile.memory_bytes, left)
                continue
            self.counts["workers"] += 1
            worker = Worker(self, broker, self.counts["workers"])
            broker.workers.append(worker)
            self.workers.append(worker)
        self._launch_next()
        return failure

    def _reserve(self, broker: Broker) -> None:
        if self.state in ("created", "running"):  # else only calls that were let in may
            missing = broker.profile.reserved - len(broker.those("created", "ready"))
            # [fcc.scale.reserve] [fcc.stop.hook]
            broker.failure = self._order(broker, missing) or broker.failure

    def _launch_next(self) -> None:
        """Start the workers whose turn it is [fcc.launch.parallel]."""
        created = [one for one in self.workers if one.state == "created"]
        for worker in created[:self.settings.launches]:
            if not worker.has_thread:
                worker.has_thread = True
                emulator.start_thread(worker.run)

    def _retire(self, workers: Iterable[Worker]) -> None:
        for worker in list(workers):
            self.step(worker, "retire")

    def step(self, worker: Worker, call: str,
             failure: Optional[Failure] = None) -> None:
        """Let a worker make a transition, if STATES has one for this call."""
        with self.lock:
            if (worker.state, call) not in STATES:
                return
            action, worker.state, _ = STATES[worker.state, call]
            limit_s = math.inf
            if failure is not None:
                self.counts["failed_launches"] += 1
                worker.broker.reject(failure)
            if action == "drain":  # [fcc.stop.drain]
                limit_s = self.settings.drain_s
            elif action == "terminate":  # [fcc.stop.signals]
                limit_s = self.settings.grace_s
                worker.signal(signal.SIGTERM)
            elif action == "kill":
                worker.signal(signal.SIGKILL)
            if action == "forget" or action == "kill" and not worker.has_thread:
                worker.state = "stopped"
                self.workers.remove(worker)
                worker.broker.workers.remove(worker)
            self.limit(worker.on_time, limit_s)
            if not worker.active:
                self.step(worker, "drained")
            self._serve_queue(worker.broker)
            self._launch_next()
            self._changed.notify_all()

    # -- the control loop: what the clock calls --

    def _on_tick(self) -> None:
        """Look at the load of each function and order or retire workers."""
        with self.lock:
            for broker in self.brokers.values() if self.state == "running" else ():
                ready = broker.those("ready")
                change, broker.low_ticks = plan_workers(
                    broker.profile, sum(one.active for one in ready), len(ready),
                    len(broker.those("created")), broker.low_ticks,
                    self.settings.idle_ticks)
                self._retire(broker.victims(-change))
                self._order(broker, change)  # nobody waits, so nobody is told
            self.limit(self._on_tick, self.settings.tick_s)

    def _check_memory(self) -> None:
        """Kill workers that hold too much for too long [fcc.limit.memory]."""
        with self.lock:
            busy = [one for one in self.workers if one.active]
        sizes_mb = [emulator.memory_mb(emulator.read_account(one.process.pid))
                    if one.process else 0 for one in busy]  # takes a while if large
        with self.lock:
            for worker, size_mb in zip(busy, sizes_mb):
                over = size_mb * emulator.MIB > worker.profile.memory_bytes
                worker.strikes = worker.strikes + 1 if over else 0
                if worker.strikes > MEMORY_STRIKES:
                    self.step(worker, "retire")
                    worker.signal(signal.SIGKILL)
            if self.calls:
                self.limit(self._check_memory, self.settings.memory_check_s)

    # -- the end --

    def close(self, patience: int = 1) -> bool:
        """Take no more calls, let those that are here end, stop every worker; without
        patience (0) at once. Return whether all calls ended by themselves. Blocks for
        drain_s and grace_s at most."""
        wait_for = self._changed.wait_for
        with self.lock:
            self.state = "closing"
            wait_for(lambda: not self.calls, self.settings.drain_s * patience)
            drained = not self.calls
            for broker in self.brokers.values():
                broker.reject(Failure("AgentClosed", "the gateway is stopping"))
            self._retire(self.workers)
            for state, limit_s in (("pending-stop", self.settings.grace_s * patience),
                                   ("stopping", END_S)):
                for worker in [one for one in self.workers if one.state == state]:
                    self.step(worker, "late")  # [fcc.stop.signals]
                wait_for(lambda: not self.workers, limit_s)
            wait_for(lambda: not self.calls, ANSWER_S)
        return drained

    def end(self) -> None:
        """Let go of everything at once; nothing of us is left afterwards."""
        self.close(0)
        self.clock.close()
        shutil.rmtree(self.work_folder, ignore_errors=True)

    def stats(self) -> Dict[str, object]:
        """Return what GET /-/stats shows."""
        with self.lock:
            return {"state": self.state, "calls": self.calls, "functions": {
                name: {"queued": len(broker.queue), "low_ticks": broker.low_ticks,
                       "workers": [{
                           "id": one.id, "state": one.state, "active": one.active,
                           "pid": one.process.pid if one.process else None,
                           "served": one.served} for one in broker.workers]}
                for name, broker in self.brokers.items()},
                "counts": dict(self.counts), "services": self.services}


# ---- the server ----

class Caller(emulator.Handler):
    """A connection of FC, or of somebody in the container."""

    kind = ""   # of the request: an invocation, a hook or nothing [fcc.invoke.kind]

    def respond(self) -> None:
        """Route a request."""
        control_path, path = self.head.get("x-fc-control-path"), self.path.partition(
            "?")[0]
        self.kind = control_path or (
            path if self.command in ENDPOINTS.get(path, ()) else "")
        if self.kind in ("/invoke", "/http-invoke"):
            self._invoke()
        elif self.kind in ENDPOINTS:
            self._hook(self.server.app.agent)
        elif not control_path and (self.command, path) in ADMIN and re.match(
                r"(::ffff:)?127\.|::1$", str(self.client_address[0])):
            self._admin(self.server.app.agent)  # [fcc.admin.local]
        else:  # [fcc.path.unknown]
            self._fail(Failure("UnknownPath", "%s %s is nothing that FC calls",
                               self.command, self.path))

    def _invoke(self) -> None:
        container: Container = self.server.app
        agent, get = container.agent, self.head.get
        call = Call(agent, self)
        try:
            call.name = choose_function(
                get("x-noslated-dispatch"), get("x-fc-function-name"),
                container.options.default_function, agent.brokers,
                agent.services, random.random())
            call.run(self.read_body(BODY_BYTES))
        except (Failure, emulator.BodyTooLarge) as error:
            failure = error if isinstance(error, Failure) else Failure(
                "RequestTooLarge", "%s", error)
            agent.settle(call, failure.name)
            if FAILURES[failure.name]:
                call.status = self._fail(failure)
            else:  # [fcc.error.late] the caller sees that something is missing
                self.closing = True
        except emulator.BadMessage as error:
            call.status = error.status  # what the caller will see
            raise
        finally:
            agent.settle(call, "CallerGone")
            container.log.write(call.log_line())

    def _hook(self, agent: Agent) -> None:
        """Answer a hook. At /pre-freeze there is nothing to do: limits are in running
        time, and nothing is buffered [fcc.freeze.hook]."""
        try:
            if self.kind == "/initialize":  # [fcc.initialize.ready]
                agent.initialize()
            if self.kind == "/pre-stop" and not agent.close():
                raise Failure("AgentClosed", "calls were cut off")  # [fcc.stop.hook]
        except Failure as failure:
            self._fail(failure)
        else:
            self.answer(emulator.EMPTY_ANSWER)

    def _admin(self, agent: Agent) -> None:
        """Administration, for the container itself."""
        answer = emulator.EMPTY_ANSWER, b""
        try:
            if self.command == "GET":
                answer = emulator.json_answer(200, agent.stats())
            else:
                agent.set_profiles(self.read_body(PROFILES_BYTES))
        except (ValueError, RecursionError, emulator.BodyTooLarge) as error:
            is_large = isinstance(error, emulator.BodyTooLarge)
            answer = emulator.json_answer(413 if is_large else 400, {
                "errorType": "InvalidProfiles", "errorMessage": str(error)})
        self.answer(*answer)

    def _fail(self, failure: Failure) -> int:
        """Answer with a failure; return the status [fcc.error.status]."""
        status = FAILURES[failure.name] if self.kind == "/http-invoke" else 404
        head, body = emulator.json_answer(status, {
            "errorType": failure.name, "errorMessage": failure.message})
        self.answer(head[:-2] + b"X-Fc-Status: 404\r\nX-Noslate-Error: %s\r\n\r\n"
                    % failure.name.encode(), body)
        return status


# ---- command line ----

LOST, STOPPED = 200, 201    # among the numbers of signals: what threads announce


class Container:
    """The entry point: agent first, server last; the end of a part ends the whole."""

    def __init__(self, options: argparse.Namespace, talk: emulator.Talk) -> None:
        self.options, self.talk, self.log = options, talk, talk
        if options.access_log != "-":
            self.log = emulator.Talk(os.open(
                options.access_log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644))
        if options.log_folder:
            os.makedirs(options.log_folder, exist_ok=True)
        self._news, self._done = emulator.catch_signals()
        self.agent = Agent(options)

    def _lose(self, arguments: Any) -> None:
        """A thread of ours has ended by a mistake, so a part of us is missing."""
        sys.excepthook(arguments.exc_type, arguments.exc_value, arguments.exc_traceback)
        os.write(self._done, bytes([LOST]))

    def _stop(self) -> None:
        self.agent.close()
        os.write(self._done, bytes([STOPPED]))

    def run(self) -> int:
        """Serve until a signal or the loss of a part; return the exit status."""
        threading.excepthook = self._lose
        emulator.start_thread(emulator.reap_orphans)
        try:
            return self._serve() if self._load() else 2
        finally:
            self.agent.end()  # [fcc.end.nothing]

    def _serve(self) -> int:
        host, port = self.options.host, self.options.port
        self.agent.state = "running"
        try:
            server = emulator.Server(host, port, Caller, self)
        except (OSError, OverflowError, UnicodeError) as error:  # no such host or port
            self.talk.line("gateway: cannot listen on %s port %d: %s"
                           % (host, port, error))
            return 1
        self.talk.line("gateway: listens on %s:%d" % (host, server.port))
        try:
            return self._watch()
        finally:
            self.agent.end()  # so that no call holds up the end of the server
            server.close()
            server.shut(socket.SHUT_RD)  # who waits for a request waits no more
            server.join(ANSWER_S)
            server.shut()

    def _watch(self) -> int:
        """Do what signals and threads say; return the exit status."""
        is_stopping = False
        while True:
            news = os.read(self._news, 1)[0]
            if news == LOST:
                self.talk.line("gateway: a part of the gateway is lost")
                return 1  # [fcc.end.part]
            if news == signal.SIGHUP:
                if not self._load():
                    self.talk.line("gateway: the list of functions stays as it was")
            elif news == STOPPED or is_stopping:  # the second signal: at once
                return 0
            else:  # [fcc.stop.sigterm]
                is_stopping = True
                emulator.start_thread(self._stop)

    def _load(self) -> bool:
        """Read the list of functions; tell whether it is a good one."""
        try:
            if self.options.profiles:
                with open(self.options.profiles, "rb") as file:
                    self.agent.set_profiles(file.read())
        except (OSError, ValueError, RecursionError) as error:
            self.talk.line("gateway: %s: %s" % (self.options.profiles, error))
            return False
        self.talk.line("gateway: %d functions" % len(self.agent.brokers))
        return True


def make_parser() -> argparse.ArgumentParser:
    """Describe the command line."""
    parser = argparse.ArgumentParser(
        description="Run many small functions in one FC container.",
        epilog="Exit status: 0 after a signal, 1 it cannot "
               "listen or a part of it is lost, 2 an option, a file or a folder cannot "
               "be used.")
    add = parser.add_argument
    add("--profiles", metavar="FILE.json", default="", help="the list of functions; "
        "read again on SIGHUP")
    add("--default-function", metavar="NAME", default="",
        help="for calls that name no function")
    add("--host", default="0.0.0.0", help="address to listen on (%(default)s)")
    add("--log-folder", default=os.environ.get("NOSLATE_LOGDIR", ""),
        help="for the output of workers ($NOSLATE_LOGDIR; else a temporary one)")
    add("--access-log", default="-", metavar="FILE|-", help="one line for each call")
    for name, limit in SETTINGS.items():
        variables = VARIABLES.get(name, ())
        given = [os.environ[one] for one in variables if os.environ.get(one)]
        add(limit.option, dest=name, metavar="N", type=float,
            default=given[0] if given else limit.default, help="%s %s%s" % (
                name, limit.default, "".join(", $" + one for one in variables)))
    add("--version", action="version",
        version="gateway %s, SPEC %s" % (__version__, SPEC_VERSION))
    return parser


def read_options(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    """Return what the command line says, settings within their ranges; or exit."""
    parser = make_parser()
    options = parser.parse_args(argv)
    try:
        for name, limit in SETTINGS.items():
            setattr(options, name, emulator.check_limit(name, limit, vars(options)))
    except ValueError as error:
        parser.error(str(error))
    return options


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the container; return the exit status."""
    options, talk = read_options(argv), emulator.Talk(2)
    # whoever started us may ignore it: then no process waits for us to see its end
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        container = Container(options, talk)
    except OSError as error:
        talk.line("gateway: %s" % error)  # it names the file or the folder
        return 2
    try:
        return container.run()
    finally:  # one more signal while the interpreter ends would change the status
        for number in emulator.end_signals():
            signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
