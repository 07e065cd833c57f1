#!/usr/bin/env python3
# cloud.py: the vendors' own APIs, for their own SDKs. MIT licence.
"""Serve the interfaces by which callers of Alibaba FC, Tencent SCF and Huawei
FunctionGraph create and invoke functions, so that the vendors' SDKs work unmodified.

    python3 cloud.py --serve 8080 --state ./cloud     # any number of functions
    python3 cloud.py scf ./my-function --name hello   # one folder, as it lies there
    curl localhost:8080/-/functions                   # what there is, and its URLs

Point a client's endpoint to http://127.0.0.1:8080; SPEC.md chapter 12 has the line of
each SDK, the calls and the errors. Functions are custom runtimes, run by emulator.py,
which has to lie beside this file: that is the only import. No process runs for a
function that nobody calls.

Left out: versions, aliases, layers, code from object stores other than the upload of
Serverless Devs, provisioned instances, retries of asynchronous calls, triggers other
than HTTP, custom containers, SCF's web and FunctionGraph's HTTP functions, accounts.
Standard library only, CPython 3.8 or later, Linux.
"""
from __future__ import annotations

import argparse
import base64
import calendar
import contextlib
import fcntl
import functools
import hashlib
import hmac
import html
import json
import math
import os
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
import urllib.parse
import uuid
import zipfile
from typing import (TYPE_CHECKING, Any, Callable, Dict, List,
                    NamedTuple, Optional, Sequence, Tuple, Union)

if TYPE_CHECKING or not __package__:
    import emulator
else:  # installed
    from . import emulator

__version__ = "0.1.0"
__all__ = ["Cloud", "Door"]

Document = Dict[str, Any]
Pairs = Tuple[Tuple[str, str], ...]
Key = Tuple[str, str, str]  # vendor; namespace, service or package; function


# ---- model ----

class Fault(Exception):
    """A request that is refused. `condition` is a key of ERRORS."""

    def __init__(self, condition: str, text: object) -> None:
        super().__init__(str(text)[:2000])
        self.condition = condition


class Error(NamedTuple):
    """A condition as each vendor names it: SCF's code; status and code of the others.
    """
    scf: str
    fc: str
    fg: str


class Route(NamedTuple):
    """What a path means: which call of which cloud, and of which function and trigger
    (`item`). `target` is the path that the function sees, where it is called by HTTP.
    """
    vendor: str
    call: str = ""
    space: str = ""
    name: str = ""
    qualifier: str = ""
    item: str = ""
    target: str = ""


class Ask(NamedTuple):
    """A request: its route, how it came, and `document`, the members of its query and
    of a body in JSON."""
    vendor: str
    call: str
    space: str
    name: str
    qualifier: str
    item: str
    target: str
    id: str
    method: str
    path: str
    query: str
    head: emulator.Head
    body: bytes
    caller: "Caller"
    document: Document


class Answer(NamedTuple):
    """An answer to a caller."""
    status: int
    headers: Pairs = ()
    body: bytes = b""


class Vendor(NamedTuple):
    """What one cloud calls things, and what it accepts."""
    name: str                   # member: the function's name
    space: str                  # member: its namespace or package; fc: in the path
    default_space: str
    handler: str                # member
    runtime: str                # member
    runtimes: str               # its values that are custom runtimes, as a pattern
    names: str                  # what a name is [any.cloud.name]
    newest: Tuple[str, ...]     # qualifiers
    code: Tuple[str, ...]       # members that no document keeps
    zips: Tuple[str, ...]       # paths of members that may hold the package
    zip_mib: int                # its limit, packed
    async_bytes: int            # limit of an asynchronous event
    paging: Tuple[str, str, str]    # members: start, limit, part of the name
    id_fields: Tuple[str, ...]      # of every answer
    # members that are settings of the emulator: path, setting, range
    numbers: Tuple[Tuple[str, str, int, int], ...]


# ---- tables ----

VENDORS = {
    "scf": Vendor(
        "FunctionName", "Namespace", "default", "Handler", "Runtime", "CustomRuntime",
        "[A-Za-z][A-Za-z0-9_-]{0,58}[A-Za-z0-9]", ("$LATEST", "$DEFAULT"),
        ("Code", "ZipFile"), ("Code.ZipFile", "ZipFile"), 50, 131072,
        ("Offset", "Limit", "SearchKey"), (),
        (("Timeout", "timeout_s", 1, 900), ("InitTimeout", "init_timeout_s", 3, 300),
         ("MemorySize", "memory_mb", 64, 3072))),
    "fc": Vendor(
        "functionName", "", "", "handler", "runtime", r"custom(\.debian\d+)?",
        "[A-Za-z_][A-Za-z0-9_-]{0,63}", ("LATEST",), ("code",), ("code.zipFile",), 100,
        131072, ("nextToken", "limit", "prefix"), ("X-Fc-Request-Id",),
        (("timeout", "timeout_s", 1, 86400), ("memorySize", "memory_mb", 128, 32768),
         ("instanceConcurrency", "concurrency", 1, 200), ("caPort", "port", 1, 65535),
         ("customRuntimeConfig.port", "port", 1, 65535),
         ("initializationTimeout", "initializer_timeout_s", 1, 300),
         ("instanceLifecycleConfig.initializer.timeout", "initializer_timeout_s", 1,
          300),
         ("instanceLifecycleConfig.preFreeze.timeout", "pre_freeze_timeout_s", 1, 90),
         ("instanceLifecycleConfig.preStop.timeout", "pre_stop_timeout_s", 1, 90))),
    "fg": Vendor(
        "func_name", "package", "default", "handler", "runtime", "Custom",
        "[A-Za-z]([A-Za-z0-9_-]{0,58}[A-Za-z0-9])?", ("latest",), ("func_code",),
        ("func_code.file",), 50, 262144, ("marker", "maxitems", "func_name"),
        ("X-Request-Id", "X-Cff-Request-Id"),
        (("timeout", "timeout_s", 3, 259200),
         ("initializer_timeout", "init_timeout_s", 1, 300),
         ("memory_size", "memory_mb", 128, 10240))),
}
HOOKS = (("initializer", "initializer"),  # of fc: setting, member of its handler
         ("initializer", "instanceLifecycleConfig.initializer.handler"),
         ("pre_freeze", "instanceLifecycleConfig.preFreeze.handler"),
         ("pre_stop", "instanceLifecycleConfig.preStop.handler"))

# condition, scf, fc, fg; `*` is 400 InvalidArgument on fc and 400 FSS.0400 on fg, `-` a
# condition that cannot come up [any.cloud.error]
ERRORS = {row[0]: Error(row[1], row[2].replace("*", "400:InvalidArgument").replace(
    ":", " "), row[3].replace("*", "400:FSS.0400").replace(":", " "))
    for row in map(str.split, """
no-function     ResourceNotFound.Function     404:FunctionNotFound       404:FSS.1051
function-exists ResourceInUse.Function        409:FunctionAlreadyExists  409:FSS.1061
conflict     FailedOperation.UpdateFunctionCode  409:ConcurrentUpdateError  409:FSS.0409
no-space        ResourceNotFound.Namespace    404:ServiceNotFound        -
space-exists    -                             409:ServiceAlreadyExists   -
not-empty       -                             409:FunctionNotEmpty       -
no-trigger      ResourceNotFound.Trigger      404:TriggerNotFound        -
trigger-exists  ResourceInUse.Trigger         409:TriggerAlreadyExists   -
no-qualifier    ResourceNotFound.Qualifier    404:VersionNotFound        404:FSS.1052
name            InvalidParameterValue.FunctionName  *                    *
no-code         MissingParameter.Code         *                          400:FSS.1012
base64          InvalidParameterValue.ZipFileBase64BinasciiError  *      400:FSS.1011
zip             InvalidParameterValue.ZipFile       *                    400:FSS.1011
zip-size        InvalidParameterValue.ZipFile       400:EntityTooLarge   413:FSS.1071
runtime         InvalidParameterValue.Runtime       *                    400:FSS.1005
handler         InvalidParameterValue.Handler       *                    400:FSS.1003
memory_mb       InvalidParameterValue.MemorySize    *                    400:FSS.1007
timeout_s       LimitExceeded.Timeout               *                    400:FSS.1008
init_timeout_s  LimitExceeded.InitTimeout           *                    400:FSS.1405
env             InvalidParameterValue.Environment   *                    400:FSS.1009
env-size        InvalidParameterValue.EnvironmentExceededLimit  *        400:FSS.1018
env-reserved    InvalidParameterValue.EnvironmentSystemProtect  *        400:FSS.1009
member          InvalidParameter                    *                    *
missing         MissingParameter                    *                    *
event           InvalidParameterValue.ClientContext -                    -
event-size      InvalidParameter.RequestTooLarge    413:EntityTooLarge   413:FSS.1201
queue-full      RequestLimitExceeded                429:ResourceExhausted  429:FSS.0429
no-action       InvalidAction                       404:PathNotSupported 404:FSS.0404
no-version      NoSuchVersion                       -                    -
unsupported     UnsupportedOperation                *                    *
no-signature    AuthFailure.InvalidAuthorization    403:AccessDenied     401:APIGW.0301
no-key          AuthFailure.SecretIdNotFound   403:InvalidAccessKeyID    401:APIGW.0301
signature       AuthFailure.SignatureFailure   403:SignatureNotMatch     401:APIGW.0301
signature-date  AuthFailure.SignatureExpire    403:SignatureNotMatch     401:APIGW.0301
internal        InternalError                  500:InternalServerError   500:FSS.0500
""".strip().split("\n"))}

MIB = 1048576
BODY_BYTES = 144 * MIB   # of any request: a package of 100 MiB in base64
ASYNC_QUEUE = 100        # events of a function that wait or run [any.cloud.async-full]
QUEUE_S = 3600           # what waits for an instance longer is throttled
LIST_LIMIT = 100
FC_VERSIONS = ("2023-03-30", "2021-04-06", "2016-08-15")
SCF_VERSION = "2018-04-16"
SCF_LISTED = ("FunctionName", "FunctionId", "Namespace", "Runtime", "Type", "Status",
              "StatusDesc", "StatusReasons", "Description", "Tags", "AddTime",
              "ModTime")
SCF_TIME, ISO_TIME = "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"
PREFIX = "/-/http/"      # of the functions' own URLs


# ---- documents, without I/O ----

def parse_object(text: Union[str, bytes], what: str) -> Document:
    """Return a JSON object. Raises Fault that names it."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise Fault("member", what + " is no JSON object")
    return document


def member(document: Document, path: str, default: Any) -> Any:
    """Return a member by its path, or the default where it is absent or null. Raises
    Fault when it is of another kind than the default."""
    found: Any = document
    for name in path.split("."):
        if not isinstance(found, dict):
            raise Fault("member", path + " is not in an object")
        found = found.get(name)
        if found is None:
            return default
    if type(found) is not type(default):
        raise Fault("member", "%s must be %s, not %.80r" % (
            path, KINDS[type(default)], found))
    return found


UNSET = sys.maxsize
KINDS = {str: "a text", int: "a whole number", dict: "an object", list: "a list"}


def required(document: Document, path: str) -> str:
    """Return a text that has to be there. Raises Fault."""
    text: str = member(document, path, "")
    if not text:
        raise Fault("missing", path + " is missing")
    return text


def whole_number(document: Document, name: str, default: int) -> int:
    """Return a number, which a query holds as a text. Raises Fault."""
    text = document.get(name) or default
    if isinstance(text, bool) or not re.fullmatch("[0-9]{1,9}", str(text)):
        raise Fault("member", "%s must be a whole number, not %.80r" % (name, text))
    return int(str(text))


def read_env(vendor: str, document: Document) -> Document:
    """Return the user's variables. Raises Fault."""
    if vendor == "fc":
        return dict(member(document, "environmentVariables", {}))
    if vendor == "fg":  # two JSON texts
        return {name: value for texts in ("user_data", "encrypted_user_data")
                for name, value in parse_object(member(document, texts, "") or "{}",
                                                texts).items()}
    pairs = [(member(pair, "Key", ""), member(pair, "Value", "")) for pair in member(
        document, "Environment.Variables", [])]
    return {name: value for name, value in pairs if name or value}  # [scf.cloud.env]


def read_settings(vendor: str, name: str, document: Document) -> Document:
    """Return what emulator.Function makes of a vendor's document. Raises Fault."""
    settings: Document = {"handler": member(document, VENDORS[vendor].handler, "")}
    check_settings("handler", vendor, settings)
    settings["env"] = read_env(vendor, document)
    check_settings("env", vendor, settings)
    for path, setting, low, high in VENDORS[vendor].numbers:
        number = member(document, path, UNSET)
        settings.update({setting: number} if number != UNSET else {})
        if number != UNSET and not low <= number <= high:
            setting = setting.replace("initializer", "init")
            raise Fault(setting if setting in ERRORS else "member",
                        "%s must be %d to %d, not %d" % (path, low, high, number))
    if vendor == "fc":
        settings.update((hook, True) for hook, path in HOOKS
                        if member(document, path, ""))
        settings["command"] = member(document, "customRuntimeConfig.command", []) \
            + member(document, "customRuntimeConfig.args", [])
        settings.setdefault("port", emulator.WORDS["port"])
    settings.update(name=name, queue_timeout_s=QUEUE_S)
    check_settings("member", vendor, settings)
    return settings


def check_name(vendor: str, name: str) -> None:
    """Raise Fault when the cloud would refuse a name [any.cloud.name]."""
    if not re.fullmatch(VENDORS[vendor].names, name):
        raise Fault("name", "'%s' is no name" % name)


def check_size(event: bytes, limit: int) -> None:
    """Raise Fault when an event is too large."""
    if len(event) > limit:
        raise Fault("event-size", "the limit is %d bytes" % limit)


def check_settings(condition: str, vendor: str, settings: Document) -> None:
    """Raise Fault unless the emulator takes them."""
    try:
        emulator.Function(vendor, **settings)
    except ValueError as error:
        if condition == "env" and any(name.startswith(tuple(
                emulator.RULES[vendor].RESERVED_ENV)) for name in settings["env"]):
            condition = "env-reserved"
        elif condition == "env" and " bytes" in str(error):
            condition = "env-size"
        raise Fault(condition, error)


def merge(vendor: str, document: Document, changes: Document) -> Document:
    """Return a document with what an update sends, without the code; null is nothing
    [any.cloud.document]."""
    return {**document, **{name: value for name, value in changes.items()
                           if name not in VENDORS[vendor].code and value is not None}}


def utc(form: str, moment: float) -> str:
    """Return a moment in UTC."""
    return time.strftime(form, time.gmtime(moment))


def to_json(document: object, status: int = 200, *headers: Tuple[str, str]) -> Answer:
    """Return an answer in JSON. Its type is exactly this: an SDK sees no error in
    anything else [scf.cloud.content-type]."""
    return Answer(status, (("Content-Type", "application/json"), *headers),
                  json.dumps(document).encode())


# ---- what a request means ----

URN = re.compile("urn:fss:[^:]*:[^:]*:function:([^:]*):([^:]*)(?::(.*))?")


def find_route(method: str, path: str) -> Route:
    """Return what a path means, and a call that there is not when it means nothing
    [any.cloud.vendor]."""
    words = [urllib.parse.unquote(word) for word in path[1:].split("/")]
    if path == "/":
        return Route("scf")
    if words[0] in FC_VERSIONS:
        return fc_route(method, path, words[0], words[1:])
    if words[2:3] == ["fgs"]:
        name, found = "".join(words[4:5]), URN.fullmatch("".join(words[4:5]))
        space, name, qualifier = found.groups("") if found else ("", name, "")
        words[4:5] = ["*"] * len(words[4:5])
        return Route("fg", "%s %s" % (method, "/".join(words[3:])), space, name,
                     qualifier)
    if path.startswith(PREFIX) and words[2] in VENDORS:  # a function's own URL
        space, name = (words[3:] + ["", ""])[:2]
        return Route(words[2], "http", "" if space == "-" else space, name,
                     target="/" + "/".join(path.split("/")[6:]))
    return Route("fc", "%s %s" % (method, path))


known_route = functools.lru_cache(256)(find_route)  # callers repeat their short paths


def fc_route(method: str, path: str, version: str, words: List[str]) -> Route:
    """Return what a path of FC means; those of the older interfaces name a service."""
    space = qualifier = ""
    if words[:1] == ["proxy"] and words[2:]:  # [fc.cloud.proxy]
        return Route("fc", "http", words[1].partition(".")[0], words[2], target=path)
    if words[:1] == ["services"] and version != FC_VERSIONS[0] and words[1:]:
        space, _, qualifier = words[1].partition(".")
        words = words[2:] or ["services", "*"]
    names = words[1::2] + ["", ""]
    words[1::2] = "*" * len(words[1::2])
    return Route("fc", "%s %s" % (method, "/".join(words)), space, names[0], qualifier,
                 names[1])


def read_document(ask: Ask) -> Ask:
    """Return a request to FC or FunctionGraph with its document. Raises Fault."""
    document = dict(urllib.parse.parse_qsl(ask.query))
    qualifier, space = document.pop("qualifier", ask.qualifier), ask.space
    if ask.method in ("POST", "PUT") and "/invocations" not in ask.call:
        document.update(parse_object(ask.body or b"{}", "the body"))
    if ask.call == "POST functions" and ask.vendor == "fg":
        space = member(document, "package", "") or "default"
    elif ask.call == "POST services":
        space = required(document, "serviceName")
    return ask._replace(document=document, qualifier=qualifier, space=space, name=(
        ask.name or member(document, VENDORS[ask.vendor].name, "")))


# ---- functions ----

class Runner:
    """What runs one version of a function: a platform, from its first call on."""

    def __init__(self) -> None:
        self.lock = threading.Lock()    # of what follows
        self.platform: Optional[emulator.Platform] = None
        self.later = 0      # asynchronous events without an outcome
        self.is_retired = False
        self.has_ended = threading.Event()

    def has_port(self, port: int) -> bool:
        """Tell whether its instance has that port, or may have it again."""
        return self.platform is not None and self.platform.function.port == port

    def retire(self, drain: bool = True) -> None:
        """Take no more; with `drain` what was accepted comes to its outcome. Blocks
        until all has ended."""
        with self.lock:
            self.is_retired = True
        if self.platform is not None:
            if drain:
                self.platform.drain()
            self.platform.close()
        self.has_ended.set()


class Function(NamedTuple):
    """A version of a function, or with an empty name of a service of FC. `document` is
    the vendor's, as it was sent; `code` a ZIP or a folder."""
    key: Key
    document: Document
    code: str
    triggers: Dict[str, Document]
    created: float
    modified: float
    id: str
    runner: Runner

    def size(self) -> int:
        """Return the size of its package; 0 for a folder."""
        return os.path.getsize(self.code) if os.path.isfile(self.code) else 0


def new_function(key: Key, document: Document, code: str = "") -> Function:
    """Return the first version of a function."""
    return Function(key, merge(key[0], {}, document), code, {}, time.time(),
                    time.time(), uuid.uuid4().hex, Runner())


class Run(NamedTuple):
    """An invocation on a platform, with its outcome."""
    platform: emulator.Platform
    invocation: emulator.Invocation
    outcome: emulator.Outcome

    def log(self) -> bytes:
        """Return the end of its log within the vendor's lines [any.log.tail]."""
        outcome = self.outcome
        facts = dict(
            request_id=outcome.request_id, call="Invoke", duration=round(
                outcome.duration_ms), exact="%.3f" % outcome.duration_ms,
            billed=math.ceil(outcome.duration_ms), peak_mb="%.3f" % outcome.peak_mb,
            memory_mb=self.platform.function.memory_mb,
            version=self.platform.facts["version"], utc=utc(ISO_TIME, time.time()),
            error="" if outcome.kind == "ok" else ", Error: " + outcome.message)
        before, after = (line.format(**facts).encode("utf-8", "backslashreplace")
                         for line in self.platform.rules.LOG_LINES)
        end = b"" if outcome.log[-1:] in (b"", b"\n") else b"\n"
        whole: bytes = before + outcome.log + end + after
        return whole[-emulator.LOG_TAIL_BYTES:]


class Cloud:
    """The functions of three clouds, and the folder that keeps them: for each one its
    own, with function.json and the package. A file is written to the side and renamed;
    function.json comes last, and names the package: a crash leaves the old version or
    the new one [any.cloud.state].

    `keys` are secrets by key id; none: everybody is let in. `note` is told what people
    should know, `on_log` gets what the functions print; `settings` of emulator.Platform
    go before those of documents. Raises ValueError, OSError for a bad folder.
    """

    def __init__(self, root: str, keys: Optional[Dict[str, str]] = None,
                 note: Callable[[str], None] = lambda text: None,
                 on_log: Optional[Callable[[bytes], None]] = None,
                 **settings: Any) -> None:
        self.root, self.aside = root, os.path.join(root, "aside")
        self.keys, self.note, self.on_log = keys or {}, note, on_log
        self.settings = settings
        self.origin = ""    # of our own URLs
        self.lock = threading.Lock()    # of every change
        self.functions: Dict[Key, Function] = {}
        self.leaving: List[Runner] = []     # of older versions, until they have ended
        os.makedirs(root, mode=0o700, exist_ok=True)
        self._lock_file = lock_folder(root)
        shutil.rmtree(self.aside, ignore_errors=True)
        os.mkdir(self.aside, mode=0o700)
        for folder in sorted(os.listdir(root)):
            try:
                if os.path.exists(os.path.join(root, folder, "function.json")):
                    function = self._load(folder)
                    self.functions[function.key] = function
            except (Fault, OSError, ValueError, TypeError, KeyError, AttributeError,
                    RecursionError) as error:
                note("%s in %s is damaged and skipped: %r" % (folder, root, error))

    def _load(self, folder: str) -> Function:
        """Return what a folder holds. Raises whatever is wrong with it."""
        path = os.path.join(self.root, folder)
        with open(os.path.join(path, "function.json"), "rb") as file:
            kept = json.loads(file.read())
        vendor, space, name = folder.split(",")
        code = os.path.join(path, os.path.basename(kept["code"])) if name else ""
        if name and not zipfile.is_zipfile(code):
            raise ValueError("%s is no ZIP" % code)
        read_settings(vendor, name, kept["document"])
        for trigger in kept["triggers"].values():
            parse_object(trigger["config"], "the trigger")
        return Function((vendor, space, name), kept["document"], code,
                        kept["triggers"], +kept["created"], +kept["modified"],
                        kept["id"] + "", Runner())

    def find(self, key: Key) -> Function:
        """Return a function. Raises Fault."""
        function = self.functions.get(key)
        if function is None:
            raise Fault("no-function", "function '%s' does not exist" % key[2]) if (
                key[2]) else Fault("no-space", "'%s' does not exist" % key[1])
        return function

    def list(self, vendor: str, space: Optional[str] = None) -> List[Function]:
        """Return the functions of a vendor, and perhaps of one space, by name."""
        found = list(self.functions.items())
        return [function for key, function in sorted(found, key=lambda one: one[0])
                if key[0] == vendor and key[2] and space in (None, key[1])]

    def url(self, key: Key) -> str:
        """Return where a function is called by plain HTTP."""
        return "%s%s%s/%s/%s/" % (self.origin, PREFIX, key[0], key[1] or "-", key[2])

    # -- keeping them --

    def stage(self, package: bytes) -> str:
        """Write a package to the side, and unpack it once to see that it can be; return
        its path. Raises Fault, OSError."""
        path = os.path.join(self.aside, uuid.uuid4().hex)
        write_through(path, package)
        try:
            emulator.open_package(path)[1]()
        except ValueError as error:
            os.unlink(path)
            raise Fault("zip", str(error).replace(path, "the package"))
        return path

    def put(self, old: Optional[Function], new: Optional[Function],
            staged: str = "") -> None:
        """Let a new version take an old one's place; None: there is none. `staged` is
        a new package. Raises Fault when somebody was faster, OSError when the disk is
        full; then nothing has changed."""
        key = (old or new or new_function(("", "", ""), {})).key
        with self.lock:
            if self.functions.get(key) is not old:
                if staged:
                    os.unlink(staged)
                raise Fault("conflict", "'%s' was just changed by another call" % (
                    key[2] or key[1])) if old else Fault(
                        "function-exists", "'%s' already exists" % (key[2] or key[1]))
            folder = os.path.join(self.root, ",".join(key))
            if new is not None:
                new = self.functions[key] = self._save(folder, new, staged)
            else:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(os.path.join(folder, "function.json"))
                shutil.rmtree(folder, ignore_errors=True)
                del self.functions[key]
            if old is not None and (new is None or new.runner is not old.runner):
                self.leaving = [old.runner, *(
                    one for one in self.leaving if not one.has_ended.is_set())]
                emulator.start_thread(old.runner.retire)
        if old is None and key[2]:
            self.note("%s %s is at %s" % (key[0], key[2], self.url(key)))

    def _save(self, folder: str, function: Function, staged: str) -> Function:
        """Write a version; return it with the final path of its package."""
        if os.path.isdir(function.code) and not staged:
            return function  # from the command line
        os.makedirs(folder, mode=0o700, exist_ok=True)
        if staged:
            function = function._replace(code=os.path.join(
                folder, "code-%s.zip" % uuid.uuid4().hex[:12]))
            os.replace(staged, function.code)
        aside, code = os.path.join(self.aside, "json"), os.path.basename(function.code)
        write_through(aside, json.dumps(dict(
            function._asdict(), runner=None, code=code), indent=1).encode())
        os.replace(aside, os.path.join(folder, "function.json"))
        for name in set(os.listdir(folder)) - {"function.json", code}:
            os.unlink(os.path.join(folder, name))
        return function

    def close(self, drain: bool = False) -> None:
        """Stop everything; with `drain` what was accepted comes to its outcome."""
        runners = [one.runner for one in self.functions.values()] + self.leaving
        threads = [emulator.start_thread(one.retire, drain) for one in runners]
        for thread in threads:
            thread.join()
        shutil.rmtree(self.aside, ignore_errors=True)
        self._lock_file.close()

    # -- running them --

    def _submit(self, function: Function, invocation: emulator.Invocation,
                is_later: bool = False, caller: Optional["Caller"] = None
                ) -> emulator.Platform:
        """Give an invocation to a function's platform; return that. Its answer to
        `caller` is deferred. Raises Fault."""
        runner, key = function.runner, function.key
        with runner.lock:
            if not runner.is_retired:
                if is_later and runner.later >= ASYNC_QUEUE:
                    raise Fault("queue-full", "%d events wait already" % ASYNC_QUEUE)
                if runner.platform is None:
                    runner.platform = self._start(function)
                runner.later += is_later
                if caller is not None:
                    caller.waits_for = runner.platform, invocation
                    caller.defer()
                runner.platform.submit(invocation)
                return runner.platform
        new = self.find(key)  # it was updated, or deleted, a moment ago
        if new is function:
            raise Fault("internal", "the platform stops")
        return self._submit(new, invocation, is_later, caller)

    def _start(self, function: Function) -> emulator.Platform:
        """Return a new platform; its runner's lock is held. Raises Fault."""
        vendor, _, name = function.key
        settings = read_settings(vendor, name, function.document)
        if vendor == "fc":  # [fc.cloud.port]
            for runner in self.leaving:
                if runner.has_port(settings["port"]):
                    runner.has_ended.wait()
            if any(one.runner.has_port(settings["port"]) for one in self.list("fc")):
                settings["port"] = 0
        try:
            return emulator.Platform(
                vendor, function.code, on_log=self.on_log, on_note=lambda text:
                self.note("%s: %s" % (name, text)), **{**settings, **self.settings})
        except ValueError as error:
            raise Fault("internal", error)

    def invoke(self, function: Function, ask: Ask, event: bytes,
               shape: Callable[[Run], "Reply"],
               http: Optional[emulator.HttpRequest] = None) -> "Reply":
        """Invoke a function; `shape` makes the answer of what came of it. It returns at
        once: whatever thread has the outcome answers. Raises Fault."""
        caller = ask.caller

        def deliver(outcome: emulator.Outcome) -> None:
            run = Run(caller.waits_for[0], invocation, outcome)
            caller.end(complete(ask, shape(run)))

        invocation = emulator.Invocation(ask.id, event, http, deliver, caller)
        self._submit(function, invocation, caller=caller)
        return Answer(0)

    def invoke_later(self, function: Function, ask: Ask, event: bytes) -> None:
        """Accept an asynchronous event. Raises Fault [any.cloud.async]."""
        check_size(event, VENDORS[ask.vendor].async_bytes)
        invocation = emulator.Invocation(ask.id, event)
        invocation.on_done = lambda outcome: emulator.start_thread(
            self._finish, function, outcome)    # submit() may have the lock
        self._submit(function, invocation, True)

    def _finish(self, function: Function, outcome: emulator.Outcome) -> None:
        with function.runner.lock:
            function.runner.later -= 1
        self.note(("%s: asynchronous %s: %s %s" % (
            function.key[2], outcome.request_id, outcome.kind, outcome.message)
            ).rstrip())


def write_through(path: str, data: bytes) -> None:
    """Write a file, as far as to the disk."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def lock_folder(root: str) -> Any:
    """Return the open file that keeps other processes out. Raises ValueError."""
    file = open(os.path.join(root, "lock"), "a+")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.seek(0)
        with file:
            raise ValueError("--state %s is in use by process %s" % (
                root, file.read(20).strip()))
    file.truncate(0)
    file.write("%d\n" % os.getpid())
    file.flush()
    return file


# ---- calls that all three have ----

Reply = Union[Answer, Document]
Call = Callable[[Cloud, Ask], Reply]


def find(cloud: Cloud, ask: Ask) -> Function:
    """Return the function that is meant. Raises Fault."""
    vendor, key = VENDORS[ask.vendor], (ask.vendor, ask.space, ask.name)
    if not ask.name:
        raise Fault("missing", vendor.name + " is missing")
    if ask.vendor != "fg" and ask.space != vendor.default_space and not any(
            one[:2] == key[:2] for one in list(cloud.functions)):
        raise Fault("no-space", "'%s' does not exist" % ask.space)
    function = cloud.find(key)
    if ask.qualifier not in ("", *vendor.newest):
        raise Fault("no-qualifier", "there is no version '%s'" % ask.qualifier)
    return function


def take_code(cloud: Cloud, ask: Ask) -> str:
    """Return the staged package that a document holds. Raises Fault."""
    vendor = VENDORS[ask.vendor]
    text = "".join(member(ask.document, path, "") for path in vendor.zips)
    upload = UPLOAD.fullmatch("/" + member(ask.document, "code.ossObjectName", ""))
    path = os.path.join(cloud.aside, upload.group(1)) if upload else ""
    if not text and os.path.exists(path):
        staged = os.path.join(cloud.aside, uuid.uuid4().hex)
        os.link(path, staged)
        return staged
    if not text:
        raise Fault("no-code", "%s is missing" % vendor.zips[0])
    try:
        package = base64.b64decode("".join(text.split()), validate=True)
    except ValueError as error:
        raise Fault("base64", "the package is not base64: %s" % error)
    if len(package) > vendor.zip_mib * MIB:
        raise Fault("zip-size", "the limit is %d MiB" % vendor.zip_mib)
    return cloud.stage(package)


def create(cloud: Cloud, ask: Ask) -> Reply:
    vendor, document = VENDORS[ask.vendor], ask.document
    required(document, vendor.name)
    for name in {ask.space, ask.name} - {""}:
        check_name(ask.vendor, name)
    runtime = member(document, vendor.runtime, "Python2.7")
    if not re.fullmatch(vendor.runtimes, runtime):
        raise Fault("runtime", "'%s' is no custom runtime" % runtime)
    if ask.vendor == "scf" and member(document, "Type", "Event") != "Event":
        raise Fault("unsupported", "only functions of Type Event are run here")
    if ask.vendor == "fc" and ask.space:
        cloud.find(("fc", ask.space, ""))
    function = new_function((ask.vendor, ask.space, ask.name), document)
    if function.key in cloud.functions:
        raise Fault("function-exists", "function '%s' already exists" % ask.name)
    read_settings(ask.vendor, ask.name, function.document)
    cloud.put(None, function, take_code(cloud, ask))
    return get(cloud, ask) if ask.vendor != "scf" else {}


def update(cloud: Cloud, ask: Ask) -> Reply:
    function, staged = find(cloud, ask), ""
    document = merge(ask.vendor, function.document, ask.document)
    read_settings(ask.vendor, ask.name, document)
    if ask.call.lower().endswith("code") or ask.document.get("code"):
        staged = take_code(cloud, ask)
    cloud.put(function, function._replace(
        document=document, modified=time.time(), runner=Runner()), staged)
    return get(cloud, ask) if ask.vendor != "scf" else {}


def get(cloud: Cloud, ask: Ask) -> Reply:
    return VIEWS[ask.vendor](cloud, find(cloud, ask))


def delete(cloud: Cloud, ask: Ask) -> Reply:
    function = find(cloud, ask)
    if ask.vendor == "fc" and function.triggers:
        raise Fault("not-empty", "function '%s' has triggers" % ask.name)
    cloud.put(function, None)
    return {} if ask.vendor == "scf" else Answer(204)


def list_functions(cloud: Cloud, ask: Ask) -> Reply:
    names = VENDORS[ask.vendor].paging
    start, limit = (whole_number(ask.document, name, default)
                    for name, default in zip(names, (0, 20)))
    end, part = start + min(limit, LIST_LIMIT), member(ask.document, names[2], "")
    space = ask.space if ask.vendor == "fc" else member(
        ask.document, VENDORS[ask.vendor].space, "") or None
    found = [one for one in cloud.list(ask.vendor, space) if part in one.key[2]]
    shown = [VIEWS[ask.vendor](cloud, one) for one in found[start:end]]
    if ask.vendor == "scf":  # its SDK warns of any other member
        return {"TotalCount": len(found), "Functions": [
            {name: one[name] for name in SCF_LISTED} for one in shown]}
    if ask.vendor == "fc":
        return {"functions": shown, "nextToken": str(end) if found[end:] else ""}
    return {"functions": shown, "count": len(shown), "next_marker": min(
        end, len(found))}


# ---- triggers of scf and fc ----

# members: name, type, configuration; and the one type that there is
TRIGGERS = {"scf": ("TriggerName", "Type", "TriggerDesc", "apigw"),
            "fc": ("triggerName", "triggerType", "triggerConfig", "http")}


def change_trigger(cloud: Cloud, ask: Ask) -> Reply:
    function, (name, kind, config, known) = find(cloud, ask), TRIGGERS[ask.vendor]
    item, verb = ask.item or required(ask.document, name), ask.call.split()[0]
    is_new, is_gone = verb in ("POST", "CreateTrigger"), verb.upper()[:6] == "DELETE"
    if is_new and required(ask.document, kind) != known:
        raise Fault("unsupported", "only triggers of type %s are run here" % known)
    old = function.triggers.get(item, {})
    if is_new and old:
        raise Fault("trigger-exists", "trigger '%s' already exists" % item)
    if not is_new and not old:
        raise Fault("no-trigger", "trigger '%s' does not exist" % item)
    given, now = ask.document.get(config), time.time()
    text = json.dumps(given) if isinstance(given, dict) else member(
        ask.document, config, old.get("config", "{}"))
    member(parse_object(text, config), "api.requestConfig", {})
    trigger = {"name": item, "config": text, "created": old.get("created", now),
               "changed": now}
    triggers = {**function.triggers, item: trigger}
    if is_gone:
        del triggers[item]
    cloud.put(function, function._replace(triggers=triggers))
    if is_gone:
        return {} if ask.vendor == "scf" else Answer(204)
    shown = TRIGGER_VIEWS[ask.vendor](cloud, function, trigger)
    return {"TriggerInfo": shown} if ask.vendor == "scf" else shown


def list_triggers(cloud: Cloud, ask: Ask) -> Reply:
    function, view = find(cloud, ask), TRIGGER_VIEWS[ask.vendor]
    shown = [view(cloud, function, one) for one in function.triggers.values()]
    return {"Triggers": shown, "TotalCount": len(shown)} if ask.vendor == "scf" else {
        "triggers": shown}


def get_trigger(cloud: Cloud, ask: Ask) -> Reply:
    function = find(cloud, ask)
    if ask.item not in function.triggers:
        raise Fault("no-trigger", "trigger '%s' does not exist" % ask.item)
    return show_http(cloud, function, function.triggers[ask.item])


def show_apigw(cloud: Cloud, function: Function, trigger: Document) -> Document:
    return {"TriggerName": trigger["name"], "Type": "apigw", "Enable": 1,
            "TriggerDesc": trigger["config"], "Qualifier": "$LATEST",
            "TriggerAttribute": cloud.url(function.key),
            "AddTime": utc(SCF_TIME, trigger["created"]),
            "ModTime": utc(SCF_TIME, trigger["changed"])}


def show_http(cloud: Cloud, function: Function, trigger: Document) -> Document:
    url = cloud.url(function.key)
    return {"triggerName": trigger["name"], "triggerType": "http",
            "triggerConfig": trigger["config"], "qualifier": "LATEST",
            "triggerId": function.id, "status": "", "description": "",
            "httpTrigger": {"urlInternet": url, "urlIntranet": url},
            "createdTime": utc(ISO_TIME, trigger["created"]),
            "lastModifiedTime": utc(ISO_TIME, trigger["changed"])}


TRIGGER_VIEWS = {"scf": show_apigw, "fc": show_http}


# ---- Tencent SCF ----

def read_scf(ask: Ask) -> Ask:
    """Return what a request to SCF means. Raises Fault."""
    field, document = ask.head.get, {}
    if ask.method == "GET" or "form-urlencoded" in field("content-type"):
        document = dict(urllib.parse.parse_qsl("%s&%s" % (
            ask.query, ask.body.decode("utf-8", "replace"))))
        if any("." in name for name in document):  # [scf.cloud.form]
            raise Fault("unsupported", "nested parameters must come as JSON")
    elif ask.body:
        document = parse_object(ask.body, "the body")
    version = field("x-tc-version") or document.get("Version", SCF_VERSION)
    if version != SCF_VERSION:
        raise Fault("no-version", "version '%s' is not served here" % version)
    return ask._replace(
        call=field("x-tc-action") or member(document, "Action", ""), document=document,
        space=member(document, "Namespace", "") or "default",
        name=member(document, "FunctionName", ""),
        qualifier=member(document, "Qualifier", ""))


def show_scf(cloud: Cloud, function: Function) -> Document:
    """Return what GetFunction shows, and in part ListFunctions."""
    limits = emulator.LIMITS["scf"]
    return {**{path: limits[setting].default
               for path, setting, _, _ in VENDORS["scf"].numbers},
            "Handler": "index.main_handler", "Environment": {"Variables": []},
            "Description": "", "Type": "Event", **function.document,
            "FunctionName": function.key[2], "FunctionId": "lam-" + function.id[:8],
            "Namespace": function.key[1], "Status": "Active", "StatusDesc": "",
            "StatusReasons": [], "AvailableStatus": "Available", "Tags": [],
            "Layers": [], "FunctionVersion": "$LATEST", "Qualifier": "$LATEST",
            "CodeSize": function.size(), "AddTime": utc(SCF_TIME, function.created),
            "ModTime": utc(SCF_TIME, function.modified),
            "Triggers": [show_apigw(cloud, function, one)
                         for one in function.triggers.values()]}


def invoke_scf(cloud: Cloud, ask: Ask) -> Reply:
    function, document = find(cloud, ask), ask.document
    event = member(document, "Event" if ask.call == "InvokeFunction"
                   else "ClientContext", "").encode("utf-8", "backslashreplace")
    check_size(event, int(emulator.LIMITS["scf"]["event_bytes"].default))
    try:
        json.loads(event or b"{}")  # [scf.cloud.event]
    except (ValueError, RecursionError) as error:
        raise Fault("event", "the event is not JSON: %s" % error)
    if member(document, "InvocationType", "").lower() == "event":
        cloud.invoke_later(function, ask, event)
        return {"Result": {"MemUsage": 0, "Log": "", "RetMsg": "", "BillDuration": 0,
                           "FunctionRequestId": ask.id, "Duration": 0, "ErrMsg": "",
                           "InvokeResult": 0}}
    tail = member(document, "LogType", "").lower() == "tail"
    return cloud.invoke(function, ask, event, lambda run: {
        "Result": scf_result(run, tail)})


def scf_result(run: Run, tail: bool) -> Document:
    """Return the member Result of an answer [scf.cloud.result]."""
    outcome, text = run.outcome, run.outcome.body.decode("utf-8", "replace")
    return {"MemUsage": int(outcome.peak_mb * MIB), "RetMsg": text,
            "Log": run.log().decode("utf-8", "replace") if tail else "",
            "BillDuration": math.ceil(outcome.duration_ms),
            "Duration": round(outcome.duration_ms, 2),
            "FunctionRequestId": outcome.request_id,
            "ErrMsg": "" if outcome.kind == "ok" else text,
            "InvokeResult": {"ok": 0, "function-error": 1}.get(outcome.kind, -1)}


def list_namespaces(cloud: Cloud, ask: Ask) -> Reply:
    spaces = sorted({"default"} | {one.key[1] for one in cloud.list("scf")})
    return {"Namespaces": [{"Name": name} for name in spaces],
            "TotalCount": len(spaces)}


# ---- Alibaba FC ----

def show_fc(cloud: Cloud, function: Function) -> Document:
    """Return the object of a function, or of a service."""
    _, space, name = function.key
    found = {**function.document, "createdTime": utc(ISO_TIME, function.created),
             "lastModifiedTime": utc(ISO_TIME, function.modified)}
    if not name:
        return dict(found, serviceName=space, serviceId=function.id)
    return {"handler": "", "timeout": 60, "memorySize": 512, **found,
            "functionName": name, "functionId": function.id, "state": "Active",
            "functionArn": "acs:fc:local:0:functions/" + name,
            "lastUpdateStatus": "Successful", "codeSize": function.size(),
            "codeChecksum": ""}


def invoke_fc(cloud: Cloud, ask: Ask) -> Reply:
    function, field = find(cloud, ask), ask.head.get
    if field("x-fc-invocation-type").lower() == "async":
        cloud.invoke_later(function, ask, ask.body)
        task = field("x-fc-async-task-id") or field("x-fc-stateful-async-invocation-id")
        return Answer(202, (("X-Fc-Async-Task-Id", task),) if task else ())
    tail = field("x-fc-log-type").lower() == "tail"
    return cloud.invoke(function, ask, ask.body, lambda run: fc_result(run, tail))


def fc_result(run: Run, tail: bool) -> Answer:
    """Return the answer to an invocation."""
    headers = run.outcome.headers + (
        ("X-Fc-Invocation-Duration", "%.2f" % run.outcome.duration_ms),
        ("X-Fc-Max-Memory-Usage", "%.2f" % run.outcome.peak_mb),
        ("X-Fc-Invocation-Service-Version", "LATEST"))
    if tail:
        headers += (("X-Fc-Log-Result", base64.b64encode(run.log()).decode()),)
    return Answer(run.outcome.status, headers, run.outcome.body)


def show_code(cloud: Cloud, ask: Ask) -> Reply:
    return {"url": cloud.url(find(cloud, ask).key), "checksum": ""}


def change_service(cloud: Cloud, ask: Ask) -> Reply:
    """Create, show, update or delete a service."""
    key = ("fc", ask.space, "")
    if ask.call == "POST services":
        check_name("fc", ask.space)
        if key in cloud.functions:
            raise Fault("space-exists", "service '%s' already exists" % ask.space)
        cloud.put(None, new_function(key, ask.document))
    service = cloud.find(key)
    if ask.method == "DELETE":
        if cloud.list("fc", ask.space):
            raise Fault("not-empty", "service '%s' has functions" % ask.space)
        cloud.put(service, None)
        return Answer(204)
    if ask.method == "PUT":
        cloud.put(service, service._replace(document=merge(
            "fc", service.document, ask.document), modified=time.time()))
    return show_fc(cloud, cloud.find(key))


def list_services(cloud: Cloud, ask: Ask) -> Reply:
    return {"services": [show_fc(cloud, one) for one in list(cloud.functions.values())
                         if one.key[0] == "fc" and not one.key[2]], "nextToken": ""}


UPLOAD = re.compile("/[^/]+/(upload-[0-9a-f]{32}[.]zip)")


def offer_upload(cloud: Cloud, ask: Ask) -> Reply:
    """Say where Serverless Devs may put a package [fc.cloud.upload]."""
    return {"credentials": dict.fromkeys(
        ("AccessKeyId", "AccessKeySecret", "SecurityToken"), "local"), "ossRegion":
        "local", "ossBucket": "local", "objectName": "upload-%s.zip" % uuid.uuid4().hex}


def take_upload(cloud: Cloud, name: str, body: bytes) -> Answer:
    """Keep a package that is put there until it is used; errors must be XML."""
    try:
        os.replace(cloud.stage(body), os.path.join(cloud.aside, name))
    except Fault as fault:
        return Answer(400, (("Content-Type", "application/xml"),), (
            "<Error><Code>InvalidArgument</Code><Message>%s</Message></Error>"
            % html.escape(str(fault))).encode("utf-8", "backslashreplace"))
    return Answer(200, (("ETag", '"%s"' % hashlib.md5(body).hexdigest()),))


# ---- Huawei FunctionGraph ----

def show_fg(cloud: Cloud, function: Function) -> Document:
    """Return the object of a function."""
    return {"handler": "", "timeout": 3, "memory_size": 128, "user_data": "",
            "code_type": "zip", **function.document,
            "func_urn": "urn:fss:local:0:function:%s:%s:latest" % function.key[1:],
            "func_name": function.key[2], "package": function.key[1],
            "project_name": "local", "version": "latest", "cpu": 300,
            "code_size": function.size(), "digest": function.id,
            "last_modified": utc(SCF_TIME, function.modified)}


def invoke_fg(cloud: Cloud, ask: Ask) -> Reply:
    field = ask.head.get
    is_v1 = field("x-cff-request-version").lower() == "v1"
    tail = field("x-cff-log-type").lower() == "tail"
    return cloud.invoke(find(cloud, ask), ask, ask.body,
                        lambda run: fg_result(run, is_v1, tail))


def fg_result(run: Run, is_v1: bool, tail: bool) -> Answer:
    """Return the answer to an invocation [fg.cloud.version]."""
    outcome, log = run.outcome, run.log() if tail else b""
    billed = math.ceil(outcome.duration_ms)
    headers = outcome.headers + (
        ("X-Cff-Invoke-Summary", json.dumps({
            "duration": round(outcome.duration_ms, 3), "billingDuration": billed,
            "memorySize": run.platform.function.memory_mb,
            "memoryUsed": round(outcome.peak_mb, 3)})),
        ("X-CFF-Billing-Duration", str(billed)),
        ("X-Cff-Response-Version", "v1" if is_v1 else "v0"))
    if tail:
        headers += (("X-Cff-Function-Log", base64.b64encode(log).decode()),)
    if not is_v1 or outcome.status != 200:
        return Answer(outcome.status, headers, outcome.body)
    return to_json({"request_id": outcome.request_id, "status": outcome.status,
                    "log": log.decode("utf-8", "replace"), "result":
                    outcome.body.decode("utf-8", "replace")}, 200, *headers)


def invoke_fg_later(cloud: Cloud, ask: Ask) -> Reply:
    cloud.invoke_later(find(cloud, ask), ask, ask.body)
    return to_json({"request_id": ask.id}, 202)


def list_fg_versions(cloud: Cloud, ask: Ask) -> Reply:
    return {"versions": [get(cloud, ask)], "count": 1, "next_marker": 1}


VIEWS = {"scf": show_scf, "fc": show_fc, "fg": show_fg}


# ---- HTTP triggers and gateways ----

def call_http(cloud: Cloud, ask: Ask) -> Reply:
    """Pass a request to a function, as it is or as its cloud's gateway would."""
    function, target = find(cloud, ask), ask.target
    if ask.vendor == "scf":
        return cloud.invoke(function, ask, apigw_event(function, ask, target),
                            lambda run: answer_apigw(function, run.outcome))
    if ask.vendor == "fg":
        return cloud.invoke(function, ask, apig_event(function, ask, target),
                            lambda run: answer_apig(run.outcome))
    if ask.query:
        target += "?" + ask.query
    return cloud.invoke(function, ask, ask.body, answer_http, emulator.HttpRequest(
        ask.method, target, ask.head.fields))


def answer_http(run: Run) -> Answer:
    """Return the answer of an HTTP function, if its caller has not got it yet
    [fc.http.pass]."""
    outcome = run.outcome
    if run.invocation.answer.begun:  # all of it, or half
        return Answer(0 if outcome.kind in ("ok", "function-error") else -1)
    return Answer(outcome.status, outcome.headers, outcome.body)


def apigw_settings(function: Function) -> Document:
    """Return the description of a function's API gateway trigger, if it has one."""
    return next((parse_object(one["config"], "TriggerDesc")
                 for one in function.triggers.values()), {})


def is_true(document: Document, path: str) -> bool:
    """Tell whether a member is "TRUE", as SCF writes it."""
    return str(member(document, path, "")).upper() == "TRUE"


def query_values(query: str) -> Document:
    """Return a query: texts, lists of them, and True for a bare name [scf.apigw.query].
    """
    found: Dict[str, List[Any]] = {}
    for part in filter(None, query.split("&")):
        name, equals, value = (urllib.parse.unquote_plus(one)
                               for one in part.partition("="))
        found.setdefault(name, []).append(value if equals else True)
    return {name: some if some[1:] else some[0] for name, some in found.items()}


def apigw_event(function: Function, ask: Ask, target: str) -> bytes:
    """Return the event that Tencent's API gateway makes of a request: keys in
    alphabetical order, no blanks, no body where there is none [scf.apigw.event]."""
    settings = apigw_settings(function)
    event: Document = {
        "headerParameters": {}, "headers": {
            **ask.head.table, "x-anonymous-consumer": "true", "x-api-requestid": ask.id,
            "x-api-scheme": "http", "x-b3-traceid": ask.id, "x-qualifier": "$LATEST"},
        "httpMethod": ask.method, "path": target, "pathParameters": {},
        "queryString": query_values(ask.query), "queryStringParameters": {},
        "requestContext": {
            "httpMethod": member(settings, "api.requestConfig.method", "")
            or ask.method, "identity": {},
            "path": member(settings, "api.requestConfig.path", "") or "/",
            "serviceId": "service-" + function.id[:8],
            "sourceIp": ask.caller.client_address[0],
            "stage": member(settings, "release.environmentName", "") or "release"}}
    try:
        text = ask.body.decode()
    except UnicodeDecodeError:
        text = ""
    if ask.body and (not text or is_true(settings, "api.IsBase64Encoded")):
        text, event["isBase64Encoded"] = base64.b64encode(ask.body).decode(), True
    event.update({"body": text} if text else {})
    return json.dumps(event, sort_keys=True, separators=(",", ":"),
                      ensure_ascii=False).encode("utf-8", "backslashreplace")


def integrated(body: bytes) -> Answer:
    """Return the answer that a result describes. Raises ValueError: `statusCode` or
    something else is not as it must be."""
    found = json.loads(body)
    if not isinstance(found, dict):
        raise ValueError("no object")
    status, headers = found.get("statusCode"), found.get("headers") or {}
    text = found.get("body", "")
    if type(status) is not int or not 100 <= status <= 999:
        raise ValueError("statusCode")
    if not isinstance(headers, dict) or not isinstance(text, str):
        raise ValueError("headers or body")
    pairs = tuple((name, str(one)) for name, value in headers.items()
                  for one in (value if isinstance(value, list) else [value])
                  if name.lower() not in ("content-length", "transfer-encoding"))
    emulator.format_head("", pairs)  # or ValueError
    data = text.encode("utf-8", "backslashreplace")
    return Answer(status, pairs, base64.b64decode(data, validate=True) if found.get(
        "isBase64Encoded") is True else data)


def answer_apigw(function: Function, outcome: emulator.Outcome) -> Answer:
    """Return what Tencent's API gateway makes of an outcome [scf.apigw.answer]."""
    if outcome.kind != "ok" or not is_true(apigw_settings(function),
                                           "api.isIntegratedResponse"):
        return Answer(200, (("Content-Type", "text/plain; charset=utf-8"),),
                      outcome.body)
    try:
        return integrated(outcome.body)
    except (ValueError, RecursionError):
        return to_json({"errno": 403, "error": "Invalid scf response format. please "
                        "check your scf response format."}, 403)


def apig_event(function: Function, ask: Ask, target: str) -> bytes:
    """Return the event that Huawei's APIG makes of a request [fg.apig.event]."""
    query = dict(urllib.parse.parse_qsl(ask.query, keep_blank_values=True))
    return json.dumps({
        "body": base64.b64encode(ask.body).decode(), "headers": ask.head.table,
        "httpMethod": ask.method, "isBase64Encoded": True, "path": target,
        "pathParameters": {"": target.lstrip("/")}, "queryStringParameters": query,
        "requestContext": {"apiId": function.id, "requestId": ask.id, "stage":
                           "RELEASE", "sourceIp": ask.caller.client_address[0]}}
        ).encode()


def answer_apig(outcome: emulator.Outcome) -> Answer:
    """Return what Huawei's APIG makes of an outcome [fg.apig.answer]."""
    headers = outcome.headers
    if outcome.kind not in ("ok", "function-error"):
        return Answer(500, headers, outcome.body)
    try:
        answer = integrated(outcome.body)
        return answer._replace(headers=answer.headers + headers)
    except (ValueError, RecursionError) as error:
        text = "invalid type of APIG trigger invocation result:[%s], type format must" \
            ' be: {"statusCode":200,"isBase64Encoded":false,"headers":{},"body":""}' % (
                outcome.body[:200].decode("utf-8", "replace"))
        if str(error) == "statusCode":
            text = "'statusCode' of APIG trigger invocation result not specified, " \
                "statusCode can not be 0"
        return to_json({"error_code": "FSS.1206", "error_msg": text}, 500, *headers)


# ---- signatures ----

# scheme -> the field and form of its date, and how far it may be off
SCHEMES = {"TC3-HMAC-SHA256": ("x-tc-timestamp", "", 300),
           "ACS3-HMAC-SHA256": ("x-acs-date", "%Y-%m-%dT%H:%M:%SZ", 900),
           "FC": ("date", "%a, %d %b %Y %H:%M:%S GMT", 900),
           "SDK-HMAC-SHA256": ("x-sdk-date", "%Y%m%dT%H%M%SZ", 900)}


def sign(key: bytes, text: str) -> bytes:
    """Return an HMAC."""
    return hmac.digest(key, text.encode("utf-8", "backslashreplace"), "sha256")


def fc_signature(ask: Ask, secret: bytes) -> Tuple[str, str]:
    """Return the signature of FC's older interface, and the text that it covers."""
    field, resource = ask.head.get, urllib.parse.unquote(ask.path)
    if ask.path.split("/")[2:3] == ["proxy"]:
        resource += "\n" + "\n".join(sorted(urllib.parse.unquote(ask.query).split("&")))
    own = "".join("%s:%s\n" % pair for pair in sorted(ask.head.table.items())
                  if pair[0].startswith("x-fc-"))
    text = "\n".join((ask.method, field("content-md5"), field("content-type"),
                      field("date"), own + resource))
    return base64.b64encode(sign(secret, text)).decode(), text


def signature(ask: Ask, scheme: str, parts: Dict[str, str], secret: bytes, host: str
              ) -> Tuple[str, str]:
    """Return the signature of one of the other schemes, and the text that it covers."""
    field, path, stamp = ask.head.get, ask.path, ""
    body_hash = hashlib.sha256(ask.body).hexdigest()
    if scheme[0] == "T":
        scope = parts.get("Credential", "").split("/")[1:]
        secret = functools.reduce(sign, scope, b"TC3" + secret)
        stamp = "%s\n%s\n" % (field("x-tc-timestamp"), "/".join(scope))
        if field("x-tc-content-sha256"):
            body_hash = hashlib.sha256(b"UNSIGNED-PAYLOAD").hexdigest()
    elif scheme[0] == "S":
        path = urllib.parse.quote(urllib.parse.unquote(path), safe="/-_.~") + "/"
        stamp = field("x-sdk-date") + "\n"
    query = "&".join("%s=%s" % tuple(urllib.parse.quote(one, safe="-_.~")
                                     for one in pair) for pair in sorted(
        urllib.parse.parse_qsl(ask.query, keep_blank_values=True)))
    names = parts.get("SignedHeaders", "")
    fields = "".join("%s:%s\n" % (name, host if name == "host" else field(name))
                     for name in names.split(";"))
    text = "\n".join((ask.method, path, query, fields, names, body_hash))
    text_hash = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
    return sign(secret, "%s\n%s%s" % (scheme, stamp, text_hash)).hex(), text


def verify(ask: Ask, keys: Dict[str, str]) -> None:
    """Raise Fault unless the request is signed with one of the keys, and lately."""
    scheme, _, rest = ask.head.get("authorization").partition(" ")
    if scheme not in SCHEMES:
        raise Fault("no-signature", "signed by none of " + ", ".join(SCHEMES))
    parts: Dict[str, str] = dict(re.findall(r"(\w+)=([^,\s]+)", rest))
    identity = parts.get("Credential", parts.get("Access", "")).split("/")[0]
    given, host = parts.get("Signature", ""), str(ask.head.get("host"))
    if scheme == "FC":
        identity, _, given = rest.strip().rpartition(":")
    elif scheme[0] == "A" and "x-acs-date" not in parts.get("SignedHeaders", ""):
        raise Fault("no-signature", "x-acs-date must be signed")
    if identity not in keys:
        raise Fault("no-key", "invalid access key ID '%s'" % identity)
    name, form, skew_s = SCHEMES[scheme]
    date, secret = ask.head.get(name), keys[identity].encode()
    try:
        moment = calendar.timegm(time.strptime(date, form)) if form else int(
            date[:15])
    except ValueError:
        moment = 0
    if abs(time.time() - moment) > skew_s:
        raise Fault("signature-date", "the date of the signature: '%s'" % date)
    # Tencent's Node SDK signs the host without its port
    for one in (host, host.partition(":")[0]):
        right, text = fc_signature(ask, secret) if scheme == "FC" else signature(
            ask, scheme, parts, secret, one)
        if hmac.compare_digest(right.encode(), given.encode()):
            return
    raise Fault("signature", "the signature does not match; signed must be, with | for "
                "line ends: " + text.replace("\n", "|"))


# ---- the server ----

CALLS: Dict[str, Dict[str, Union[Call, Reply]]] = {  # [any.cloud.calls]
    "scf": {
        "CreateFunction": create, "GetFunction": get, "ListFunctions": list_functions,
        "UpdateFunctionCode": update, "UpdateFunctionConfiguration": update,
        "DeleteFunction": delete, "Invoke": invoke_scf, "InvokeFunction": invoke_scf,
        "CreateTrigger": change_trigger, "DeleteTrigger": change_trigger,
        "ListTriggers": list_triggers, "ListNamespaces": list_namespaces,
        "ListVersionByFunction": {"FunctionVersion": ["$LATEST"], "TotalCount": 1},
        "ListAliases": {"Aliases": [], "TotalCount": 0},
        "GetFunctionEventInvokeConfig": {"AsyncTriggerConfig": {}}},
    "fc": {
        "POST functions": create, "GET functions": list_functions,
        "GET functions/*": get, "PUT functions/*": update,
        "DELETE functions/*": delete, "GET functions/*/code": show_code,
        "POST functions/*/invocations": invoke_fc,
        "POST functions/*/triggers": change_trigger,
        "GET functions/*/triggers": list_triggers,
        "GET functions/*/triggers/*": get_trigger,
        "PUT functions/*/triggers/*": change_trigger,
        "DELETE functions/*/triggers/*": change_trigger,
        "GET functions/*/versions": {"versions": []},
        "GET functions/*/aliases": {"aliases": []},
        "GET tempBucketToken": offer_upload, "GET services": list_services,
        "POST services": change_service, "GET services/*": change_service,
        "PUT services/*": change_service, "DELETE services/*": change_service},
    "fg": {
        "POST functions": create, "GET functions": list_functions,
        "GET functions/*/config": get, "GET functions/*/code": get,
        "PUT functions/*/config": update, "PUT functions/*/code": update,
        "DELETE functions/*": delete, "GET functions/*/versions": list_fg_versions,
        "POST functions/*/invocations": invoke_fg,
        "POST functions/*/invocations-async": invoke_fg_later,
        "GET triggers/*": to_json([])},
}


def refuse(vendor: str, fault: Fault, request_id: str) -> Answer:
    """Return the answer to a request that is refused [any.cloud.error]."""
    error, text = ERRORS[fault.condition], str(fault)
    if vendor == "scf":
        return to_json({"Response": {"Error": {"Code": error.scf, "Message": text},
                                     "RequestId": request_id}})
    status, code = (error.fg if vendor == "fg" else error.fc).split()
    return to_json({"error_code": code, "error_msg": text, "request_id": request_id}
                   if vendor == "fg" else
                   {"RequestId": request_id, "Code": code, "Message": text,
                    "ErrorCode": code, "ErrorMessage": text}, int(status))


def complete(ask: Ask, reply: Reply) -> Answer:
    """Return an answer in the form of its interface, with its id
    [any.cloud.request-id]."""
    if not isinstance(reply, Answer):
        reply = to_json({"Response": dict(reply, RequestId=ask.id)}
                        if ask.vendor == "scf" else reply)
    known = {name.lower() for name, _ in reply.headers}
    return reply._replace(headers=reply.headers + tuple(
        (name, ask.id) for name in VENDORS[ask.vendor].id_fields
        if name.lower() not in known))


def answer(cloud: Cloud, caller: "Caller", path: str, query: str, body: bytes
           ) -> Answer:
    """Answer a request. Status 0: somebody else does."""
    method, head, upload = caller.command, caller.head, UPLOAD.fullmatch(path)
    if path == "/-/functions":
        return to_json(show_all(cloud))
    route = (known_route if len(path) < 512 else find_route)(method, path)
    vendor = route.vendor
    ask = Ask(*route, emulator.RULES[vendor].new_id(), method, path, query, head, body,
              caller, {})
    try:
        if upload and method == "PUT":
            return take_upload(cloud, upload.group(1), body)
        if cloud.keys and not path.startswith(PREFIX):
            verify(ask, cloud.keys)
        if ask.target:
            reply = call_http(cloud, ask)
        else:
            ask = read_scf(ask) if vendor == "scf" else read_document(ask)
            call = CALLS[vendor].get(ask.call)
            if call is None:
                raise Fault("no-action", "'%s' is not served here" % ask.call)
            reply = call(cloud, ask) if callable(call) else call
    except Fault as fault:
        reply = refuse(vendor, fault, ask.id)
    except OSError as error:
        reply = refuse(vendor, Fault("internal", "the state cannot be kept: %s"
                                     % error.strerror), ask.id)
    return complete(ask, reply)


def show_all(cloud: Cloud) -> Document:
    """Return the list of all functions."""
    return {"functions": [{
        "protocol": one.key[0], "space": one.key[1], "name": one.key[2],
        "url": cloud.url(one.key), "waiting": one.runner.later,
        "instances": len(one.runner.platform.instances) if one.runner.platform else 0}
        for vendor in VENDORS for one in cloud.list(vendor)]}


class Door(emulator.Server):
    """A server for callers. Raises OSError when it cannot listen."""

    def __init__(self, cloud: Cloud, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(host, port, Caller, cloud)
        cloud.origin = "http://%s:%d" % (
            "[%s]" % self.host if ":" in self.host else self.host, self.port)


class Caller(emulator.Handler):
    """A connection of a caller."""

    idle_limit_s = emulator.KEEP_ALIVE_S
    # of a deferred answer
    waits_for: Tuple[emulator.Platform, emulator.Invocation]

    def respond(self) -> None:
        """Answer a request, or let whoever has the outcome answer."""
        # the target, and Host, may be a whole URL [any.cloud.host]
        target = re.sub(r"(?i)^https?://[^/?]*/?", "/", self.path)
        path, _, query = target.partition("?")
        try:
            reply = answer(self.server.app, self, path, query,
                           self.read_body(BODY_BYTES))
        except emulator.BodyTooLarge as error:
            route = find_route(self.command, path)
            reply = refuse(route.vendor, Fault("event-size", error), uuid.uuid4().hex)
        if reply.status:
            self.answer(*self.format(reply))

    def end(self, reply: Answer) -> None:
        """End a deferral with an answer. Status 0: it was given, -1: half of it."""
        if reply.status > 0:
            self.answer(*self.format(reply))
            return
        if reply.status:  # half an answer must look like half an answer
            self.closing = True
            emulator.shut(self.connection)
        self.release()

    def format(self, reply: Answer) -> Tuple[bytes, bytes]:
        """Return head and body. 204 has no length: that would be a body of none."""
        length = () if reply.status == 204 else (
            ("Content-Length", str(len(reply.body))),)
        return emulator.format_head(
            emulator.status_line(reply.status), reply.headers + length), (
                b"" if self.command == "HEAD" else reply.body)

    def withdraw(self) -> bool:
        """A caller hung up while its event runs [any.caller.gone]; the outcome ends it.
        """
        platform, invocation = self.waits_for
        platform.cancel(invocation)
        return False


# ---- command line ----

def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options. Exits with 2 when they are wrong."""
    parser = argparse.ArgumentParser(
        prog="cloud.py", usage="%(prog)s [{fc|scf|fg} FOLDER --name NAME] [options] "
        "[-- COMMAND ARG ...]", description="Serve the APIs of three clouds.")
    add = parser.add_argument
    add("protocol", nargs="?", choices=list(VENDORS), metavar="PROTOCOL",
        help="fc, scf or fg")
    add("folder", nargs="?", metavar="FOLDER", help="a function as it lies there")
    add("--name", default="function", help="its name")
    add("--document", metavar="FILE.json",
        help="its settings: the body of the cloud's call to create it, without code")
    add("--serve", default="", metavar="[HOST:]PORT",
        help="default 127.0.0.1:$PORT or 8080, 0 = any")
    add("--state", metavar="FOLDER", help="keeps the functions; one process at a time")
    add("--credentials", metavar="FILE.json",
        help="an object of secrets by key id: then signatures are checked")
    add("--watch", action="store_true", help="start anew when a file of FOLDER changes")
    add("--quiet", action="store_true", help="no function output")
    words = list(argv)
    at = words.index("--") if "--" in words else len(words)
    options = parser.parse_args(words[:at])
    options.command = words[at + 1:]
    if bool(options.protocol) != bool(options.folder):
        parser.error("give both PROTOCOL and FOLDER, or none")
    return options


def read_object(option: str, path: Optional[str]) -> Document:
    """Return the object in a file. Raises ValueError that names the option."""
    try:
        return parse_object(emulator.read_file(option, path), path) if path else {}
    except Fault as fault:
        raise ValueError("%s %s" % (option, fault))


def add_folder(cloud: Cloud, options: argparse.Namespace) -> None:
    """Register the folder of the command line. Raises ValueError."""
    vendor, document = options.protocol, read_object("--document", options.document)
    code = os.path.abspath(options.folder)
    if not os.path.isdir(code):
        raise ValueError("%s is no folder" % code)
    try:
        if options.command:
            document["customRuntimeConfig"] = {
                **member(document, "customRuntimeConfig", {}),
                "command": options.command}
        check_name(vendor, options.name)
        read_settings(vendor, options.name, document)
        cloud.put(None, new_function((vendor, VENDORS[vendor].default_space,
                                      options.name), document, code))
    except Fault as fault:
        raise ValueError(str(fault))


def serve(cloud: Cloud, options: argparse.Namespace, talk: emulator.Talk,
          news: int) -> int:
    """Serve until a signal comes; return its number. Raises ValueError."""
    host, port = emulator.serve_address(options.serve, 0)
    number = int(signal.SIGINT)
    try:
        door = Door(cloud, host, port)
        if options.folder:
            add_folder(cloud, options)
        talk.line("cloud: serving on " + cloud.origin)
        number = os.read(news, 1)[0]
        door.close()
    except OSError as error:
        raise ValueError("--serve %s:%d: %s" % (host, port, error.strerror))
    finally:
        cloud.close(number != signal.SIGINT)  # [any.stop.drain]
    door.join(0.5)
    return number


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; return the exit status."""
    options, talk = parse(sys.argv[1:] if argv is None else argv), emulator.Talk(2)
    root = options.state or tempfile.mkdtemp(prefix="custom-runtime-cloud-")
    try:
        keys = read_object("--credentials", options.credentials)
        if not all(isinstance(secret, str) for secret in keys.values()):
            raise ValueError("--credentials: each secret must be a text")
        news, _ = emulator.catch_signals()
        cloud = Cloud(root, keys, lambda text: talk.line("cloud: " + text),
                      None if options.quiet else talk.write,
                      cores=emulator.choose_core(), watch=options.watch)
        number = serve(cloud, options, talk, news)
    except (ValueError, OSError) as error:
        talk.line("cloud: %s" % error)
        return 2
    finally:
        if not options.state:
            shutil.rmtree(root, ignore_errors=True)
    return 130 if number == signal.SIGINT else 0


if __name__ == "__main__":
    sys.exit(main())
