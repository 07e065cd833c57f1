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

The way of a request: Caller reads it, Ask says what its path means, CALLS names what
answers it, Cloud keeps and runs functions, and complete() or refuse() gives the answer
its vendor's form.

Left out: versions, aliases, layers, checksums of code, code from object stores other
than the upload of Serverless Devs, provisioned instances, retries of asynchronous
calls, triggers other than HTTP, custom containers, SCF's web and FunctionGraph's HTTP
functions, accounts.
Standard library only, CPython 3.8 or later, Linux.
"""
from __future__ import annotations

import argparse
import base64
import calendar
import collections
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
from typing import (TYPE_CHECKING, Any, Callable, Dict, List, NamedTuple, Optional,
                    Sequence, Set, Tuple, Union)

if TYPE_CHECKING or not __package__:
    import emulator
else:  # installed
    from . import emulator

__version__ = "0.1.0"
__all__ = ["Cloud", "Door"]

Document = Dict[str, Any]
Key = Tuple[str, str, str]  # vendor; namespace, service or package; function


# ---- model ----

class Fault(Exception):
    """A request that is refused. `condition` is a key of ERRORS."""

    def __init__(self, condition: str, text: object) -> None:
        super().__init__(str(text)[:2000])
        self.condition = condition


class Answer(NamedTuple):
    """An answer to a caller."""
    status: int
    headers: Tuple[Tuple[str, str], ...] = ()
    body: bytes = b""


# An answer, or the document of one, which is empty when there is nothing to say.
Reply = Union[Answer, Document]


# ---- tables ----

def read_columns(text: str) -> Dict[str, Dict[str, str]]:
    """Return a table by its rows, and these by scf, fc and fg; `-` is empty."""
    rows = [row.split() for row in text.strip().split("\n")]
    return {name: dict(zip(("scf", "fc", "fg"), (
        "" if text == "-" else text for text in texts))) for name, *texts in rows}


# What the clouds call things, and what they accept.
WORDS = read_columns(r"""
name           FunctionName         functionName          func_name
space          Namespace            -                     package
default_space  default              -                     default
qualifier      Qualifier            qualifier             qualifier
newest         $LATEST,$DEFAULT     LATEST                latest
names  [a-z][\w-]{0,58}[a-z\d]  [a-z_][\w-]{0,63}  [a-z]([\w-]{0,58}[a-z\d])?
handler        Handler              handler               handler
runtime        Runtime              runtime               runtime
runtimes       CustomRuntime        custom(\.debian\d+)?  Custom
code           Code,ZipFile         code                  func_code
package        Code.ZipFile,ZipFile code.zipFile          func_code.file
package_mib    50                   100                   50
list_from      Offset               nextToken             marker
list_limit     Limit                limit                 maxitems
list_name      SearchKey            prefix                func_name
list_space     Namespace            -                     package_name
call_type      InvocationType       x-fc-invocation-type  -
async          event                async                 -
async_bytes    131072               131072                262144
log_type       LogType              x-fc-log-type         x-cff-log-type
trigger        TriggerName          triggerName           -
trigger_type   Type                 triggerType           -
trigger_config TriggerDesc          triggerConfig         -
trigger_kind   apigw                http                  -
id_fields      -                    X-Fc-Request-Id       X-Request-Id,X-Cff-Request-Id
""")
VENDORS = ("scf", "fc", "fg")
SCF_VERSION = "2018-04-16"
SCF_LISTED = ("FunctionName", "FunctionId", "Namespace", "Runtime", "Type", "Status",
              "StatusDesc", "StatusReasons", "Description", "Tags", "AddTime",
              "ModTime")
SCF_TIME, ISO_TIME = "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%SZ"

# What a path means; the first line that matches counts [any.cloud.vendor]. Of `rest`
# every second word is a name. The older interfaces of fc have services, and perhaps a
# qualifier of these [fc.cloud.generations].
PREFIX = "/-/http/"  # of the functions' own URLs
PATHS = [(vendor, re.compile(pattern)) for vendor, pattern in (
    ("scf", "/(?P<rest>)"),
    ("fc", "/2023-03-30/(?P<rest>.+)"),
    ("fc", "(?P<target>/2016-08-15/proxy/(?P<space>[^/.]*)[^/]*/(?P<name>[^/]+).*)"),
    ("fc", "/(?:2021-04-06|2016-08-15)/services/(?P<space>[^/.]*)"
           "(?:[.](?P<qualifier>[^/]*))?/(?P<rest>.+)"),
    ("fc", "/(?:2021-04-06|2016-08-15)/(?P<rest>services/(?P<space>[^/.]*)[^/]*)"),
    ("fc", "/(?:2021-04-06|2016-08-15)/(?P<rest>.+)"),
    ("fg", "/v2/[^/]*/fgs/(?P<rest>.+)"),
    *((vendor, PREFIX + vendor + "/(?:-|(?P<space>[^/]*))/(?P<name>[^/]*)"
       "(?P<target>.*)") for vendor in VENDORS),
    ("fc", "/[^/]+/(?P<upload>upload-[0-9a-f]{32}[.]zip)"),  # [fc.cloud.upload]
    ("fc", "(?P<rest>.*)"))]
UPLOAD = "PUT an upload"     # no path makes a call of two blanks
URN = re.compile("urn:fss:[^:]*:[^:]*:function:([^:]*):([^:]*)(?::(.*))?")

# Members that are settings of the emulator, and their range [any.cloud.range].
NUMBERS = [(vendor, path, setting, int(low), int(high))
           for vendor, path, setting, low, high in map(str.split, """
scf Timeout                                       timeout_s             1  900
scf InitTimeout                                   init_timeout_s        3  300
scf MemorySize                                    memory_mb             64 3072
fc  timeout                                       timeout_s             1  86400
fc  memorySize                                    memory_mb             128 32768
fc  instanceConcurrency                           concurrency           1  200
fc  caPort                                        port                  1  65535
fc  customRuntimeConfig.port                      port                  1  65535
fc  initializationTimeout                         initializer_timeout_s 1  300
fc  instanceLifecycleConfig.initializer.timeout   initializer_timeout_s 1  300
fc  instanceLifecycleConfig.preFreeze.timeout     pre_freeze_timeout_s  1  90
fc  instanceLifecycleConfig.preStop.timeout       pre_stop_timeout_s    1  90
fg  timeout                                       timeout_s             3  259200
fg  initializer_timeout                           init_timeout_s        1  300
fg  memory_size                                   memory_mb             128 10240
""".strip().split("\n"))]
HOOKS = (("initializer", "initializer"),  # of fc: setting, member of its handler
         ("initializer", "instanceLifecycleConfig.initializer.handler"),
         ("pre_freeze", "instanceLifecycleConfig.preFreeze.handler"),
         ("pre_stop", "instanceLifecycleConfig.preStop.handler"))

# condition, and what scf, fc and fg call it; `-` where it cannot come up; * is what
# INVALID says [any.cloud.error]
ERRORS = read_columns("""
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
""")
INVALID = {"fc": "400:InvalidArgument", "fg": "400:FSS.0400"}

MIB = 1048576
BODY_BYTES = 144 * MIB   # of any request: a package of 100 MiB in base64
ASYNC_QUEUE = 100        # events of a function that wait or run [any.cloud.async-full]
QUEUE_S = 3600           # what waits for an instance longer is throttled
LIST_LIMIT = 100
UNSET = sys.maxsize      # of a number


# ---- documents, without I/O ----

KINDS = {str: "a text", int: "a whole number", dict: "an object", list: "a list"}


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


def check_name(vendor: str, name: str) -> None:
    """Raise Fault when the cloud would refuse a name [any.cloud.name]."""
    if not re.fullmatch(WORDS["names"][vendor], name, re.ASCII | re.I):
        raise Fault("name", "'%s' is no name" % name)


def check_size(event: bytes, limit: int) -> None:
    """Raise Fault when an event is too large."""
    if len(event) > limit:
        raise Fault("event-size", "the limit is %d bytes" % limit)


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
    settings: Document = {}
    for one, path, setting, low, high in NUMBERS:
        number = member(document, path, UNSET) if one == vendor else UNSET
        if number != UNSET:
            settings[setting] = number
        if number != UNSET and not low <= number <= high:
            setting = setting.replace("initializer", "init")
            raise Fault(setting if setting in ERRORS else "member",
                        "%s must be %d to %d, not %d" % (path, low, high, number))
    if vendor == "fc":
        settings.update((hook, True) for hook, path in HOOKS
                        if member(document, path, ""))
        settings["command"] = member(document, "customRuntimeConfig.command", []) \
            + member(document, "customRuntimeConfig.args", [])
    handler = {"handler": member(document, WORDS["handler"][vendor], "")}
    env = {"env": read_env(vendor, document)}
    settings.update(**handler, **env, name=name, queue_timeout_s=QUEUE_S)
    for condition, some in (("handler", handler), ("env", env), ("member", settings)):
        try:
            emulator.Function(vendor, **some)
        except ValueError as error:
            if condition == "env" and any(name.startswith(tuple(
                    emulator.RULES[vendor].RESERVED_ENV)) for name in env["env"]):
                condition = "env-reserved"
            elif condition == "env" and " bytes" in str(error):
                condition = "env-size"
            raise Fault(condition, error)
    return settings


def merge(vendor: str, document: Document, changes: Document) -> Document:
    """Return a document with what an update sends, without the code; null is nothing
    [any.cloud.document]."""
    return {**document, **{name: value for name, value in changes.items()
                           if name not in WORDS["code"][vendor].split(",")
                           and value is not None}}


def utc(form: str, moment: float) -> str:
    """Return a moment in UTC."""
    return time.strftime(form, time.gmtime(moment))


def to_json(document: object, status: int = 200, *headers: Tuple[str, str]) -> Answer:
    """Return an answer in JSON. Its type is exactly this: an SDK sees no error in
    anything else [scf.cloud.content-type]."""
    return Answer(status, (("Content-Type", "application/json"), *headers),
                  json.dumps(document).encode())


# ---- what a request means ----

class Ask:
    """A request, and what its path means. `call` is a key of CALLS, `document` the
    members of the query and of a body in JSON. A request to be passed on to a function
    has a `target`: the path that the function sees."""

    def __init__(self, caller: "Caller") -> None:
        self.caller, self.method, self.head = caller, caller.command, caller.head
        # the target, and Host, may be a whole URL [any.cloud.host]
        target = re.sub(r"(?i)^https?://[^/?]*/?", "/", caller.path)
        self.path, _, self.query = target.partition("?")
        self.body = b""
        self.document: Document = {}
        for self.vendor, pattern in PATHS:
            found = pattern.fullmatch(self.path)
            if found:
                self._take(found.groupdict(""))
                break
        self.id = emulator.RULES[self.vendor].new_id()

    def _take(self, parts: Dict[str, str]) -> None:
        """Take the parts of a path; what a call needs besides is in its document."""
        self.space, self.name, self.qualifier = (urllib.parse.unquote(parts.get(
            name, "")) for name in ("space", "name", "qualifier"))
        self.target = (parts["target"] or "/") if "target" in parts else ""
        self.upload = parts.get("upload", "")
        words = parts.get("rest", "an upload" if self.upload else "").split("/")
        names = [urllib.parse.unquote(word) for word in words[1::2]] + ["", ""]
        words[1::2] = "*" * len(words[1::2])
        self.call = "%s %s" % (self.method, "/".join(words))
        self.is_service, self.trigger = words[0] == "services", names[1]
        if self.vendor == "fg" and names[0]:
            urn = URN.fullmatch(names[0])
            self.space, self.name, self.qualifier = urn.groups("") if urn else (
                "-", names[0], "")
        elif not self.is_service:
            self.name = self.name or names[0]

    def word(self, name: str) -> str:
        """Return what the request's cloud calls it, see WORDS."""
        return WORDS[name][self.vendor]


def read_document(ask: Ask) -> None:
    """Read the members of a query and a body, and what they mean. Raises Fault."""
    field, is_scf = ask.head.get, ask.vendor == "scf"
    is_form = is_scf and (ask.method == "GET"
                          or "form-urlencoded" in field("content-type"))
    form = "&" + ask.body.decode("utf-8", "replace") if is_form else ""
    document: Document = dict(urllib.parse.parse_qsl(ask.query + form))
    if is_form and any("." in name for name in document):  # [scf.cloud.form]
        raise Fault("unsupported", "nested parameters must come as JSON")
    if ask.body and ask.method in ("POST", "PUT") and not (
            is_form or "/invocations" in ask.call or ask.call == UPLOAD):
        document.update(parse_object(ask.body, "the body"))
    if is_scf:
        version = field("x-tc-version") or document.get("Version", SCF_VERSION)
        if version != SCF_VERSION:
            raise Fault("no-version", "version '%s' is not served here" % version)
        ask.call = field("x-tc-action") or member(document, "Action", "")
    space, qualifier = ask.word("space"), ask.word("qualifier")
    if space and not ask.space:
        ask.space = member(document, space, "") or ask.word("default_space")
    ask.name = ask.name or member(document, ask.word("name"), "")
    ask.qualifier = ask.qualifier or member(document, qualifier, "")
    document.pop(qualifier, None)
    ask.document = document


# ---- files ----

def write_through(path: str, data: bytes) -> None:
    """Write a file, as far as to the disk."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def remove(path: str) -> None:
    """Remove a file, if there is one."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


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


# ---- functions ----

KEPT = ("document", "triggers", "created", "modified", "id")


class Function:
    """A version of a function, or with an empty name of a service of FC, and what runs
    it: a platform, from its first call on."""

    def __init__(self, key: Key, document: Document, code: str = "",
                 triggers: Optional[Dict[str, Document]] = None, created: float = 0,
                 modified: float = 0, id: str = "") -> None:
        self.key = key
        self.vendor, self.space, self.name = key
        self.document = document    # the vendor's, as it was sent
        self.code = code            # a ZIP, or a folder from the command line
        self.triggers = triggers or {}
        self.created = created or time.time()
        self.modified = modified or self.created
        self.id = id or uuid.uuid4().hex
        self.folder = ""            # that keeps it
        self.lock = threading.Lock()    # of what follows
        self.platform: Optional[emulator.Platform] = None
        self.port = 0               # of fc, as chosen; 0: none yet, or one that is free
        self.is_retired = False
        self.has_ended = threading.Event()

    def kept(self) -> Document:
        """Return what is kept of it, besides its code."""
        return {name: getattr(self, name) for name in KEPT}

    def changed(self, **changes: Any) -> "Function":
        """Return another version."""
        return Function(self.key, code=self.code, **{
            **self.kept(), "modified": time.time(), **changes})

    def size(self) -> int:
        """Return the size of its package; 0 for a folder."""
        return os.path.getsize(self.code) if os.path.isfile(self.code) else 0

    def has_port(self, port: int) -> bool:
        """Tell whether its instance has that port, or may have it again."""
        return self.port == port and not self.has_ended.is_set()

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


def log_tail(function: emulator.Function, outcome: emulator.Outcome) -> bytes:
    """Return the end of a log within the vendor's lines [any.log.tail]."""
    facts = dict(
        request_id=outcome.request_id, call="Invoke", utc=utc(ISO_TIME, time.time()),
        duration=round(outcome.duration_ms), exact="%.3f" % outcome.duration_ms,
        billed=math.ceil(outcome.duration_ms), peak_mb="%.3f" % outcome.peak_mb,
        memory_mb=function.memory_mb,
        version=WORDS["newest"][function.protocol].partition(",")[0],
        error="" if outcome.kind == "ok" else ", Error: " + outcome.message)
    before, after = (line.format(**facts).encode("utf-8", "backslashreplace")
                     for line in emulator.RULES[function.protocol].LOG_LINES)
    end = b"" if outcome.log[-1:] in (b"", b"\n") else b"\n"
    whole: bytes = before + outcome.log + end + after
    return whole[-emulator.LOG_TAIL_BYTES:]


class Cloud:
    """The functions of three clouds, and the folder that keeps them. Each version has a
    folder of its own there, with function.json and code.zip, written to the side and
    renamed; then the older one loses its function.json, and goes when it has ended. A
    crash leaves the old version, the new one, or both [any.cloud.state].

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
        self.lock = threading.Lock()    # of what follows
        self.functions: Dict[Key, Function] = {}
        self.uploads: Set[str] = set()      # names of packages in `aside`
        self.waiting: Dict[Key, int] = collections.Counter()    # asynchronous events
        self.leaving: List[Function] = []   # older versions, until they have ended
        os.makedirs(root, mode=0o700, exist_ok=True)
        self._lock_file = lock_folder(root)
        shutil.rmtree(self.aside, ignore_errors=True)
        os.mkdir(self.aside, mode=0o700)
        for name in sorted(os.listdir(root)):
            if re.fullmatch("(fc|fg|scf),.*,.*,[0-9]+", name):
                self._find_again(os.path.join(root, name))

    def _find_again(self, folder: str) -> None:
        """Take the version that a folder keeps; remove one that a crash has left."""
        path = os.path.join(folder, "function.json")
        if not os.path.exists(path):
            shutil.rmtree(folder)
            return
        try:
            with open(path, "rb") as file:
                kept = json.loads(file.read())
            vendor, space, name, _ = os.path.basename(folder).split(",")
            code = os.path.join(folder, "code.zip") if name else ""
            function = Function((vendor, space, name), code=code, **{
                one: kept[one] for one in KEPT})
            function.folder = folder
            if name and not zipfile.is_zipfile(code):
                raise ValueError("%s is no ZIP" % code)
            read_settings(vendor, name, function.document)
            show(self, function)
        except (Fault, OSError, ValueError, TypeError, KeyError, AttributeError,
                RecursionError) as error:
            self.note("%s is damaged and skipped: %r" % (folder, error))
            return
        if function.key in self.functions:
            shutil.rmtree(self.functions[function.key].folder, ignore_errors=True)
        self.functions[function.key] = function

    def find(self, key: Key) -> Function:
        """Return a function, or a service. Raises Fault."""
        function, (vendor, space, name) = self.functions.get(key), key
        if function is not None:
            return function
        if name and (vendor == "fg" or space == WORDS["default_space"][vendor] or any(
                one[:2] == key[:2] for one in list(self.functions))):
            raise Fault("no-function", "function '%s' does not exist" % name)
        raise Fault("no-space", "'%s' does not exist" % space)

    def list(self, vendor: str, space: Optional[str] = None) -> List[Function]:
        """Return the functions of a vendor, and perhaps of one space, by name."""
        found = [one for one in list(self.functions.values()) if one.vendor == vendor
                 and one.name and space in (None, one.space)]
        return sorted(found, key=lambda one: one.key)

    def url(self, function: Function) -> str:
        """Return where a function is called by plain HTTP."""
        vendor, space, name = function.key
        return "%s%s%s/%s/%s/" % (self.origin, PREFIX, vendor, space or "-", name)

    # -- keeping them --

    def stage(self, package: bytes) -> str:
        """Write a package to the side, and unpack it once to see that it can be; return
        its path. Raises Fault, OSError."""
        path = os.path.join(self.aside, uuid.uuid4().hex)
        try:
            write_through(path, package)
            emulator.open_package(path)[1]()
        except (ValueError, OSError) as error:
            remove(path)
            if isinstance(error, OSError):
                raise
            raise Fault("zip", str(error).replace(path, "the package"))
        return path

    def put(self, old: Optional[Function], new: Optional[Function],
            staged: str = "") -> None:
        """Let a new version take an old one's place; None: there is none. `staged` is
        a new package. Raises Fault when somebody was faster, OSError when the disk is
        full; then nothing has changed."""
        one = new or old
        assert one is not None
        try:
            with self.lock:
                if self.functions.get(one.key) is not old:
                    raise Fault("conflict" if old else "function-exists" if one.name
                                else "space-exists", "'%s' %s" % (
                        one.name or one.space, "was just changed by another call"
                        if old else "already exists"))
                if new is not None:
                    self._save(new, staged or new.code)
                    self.functions[one.key] = new
                if old is not None:
                    if old.folder:
                        remove(os.path.join(old.folder, "function.json"))
                    self.leaving = [old, *(each for each in self.leaving
                                           if not each.has_ended.is_set())]
                if new is None:
                    del self.functions[one.key]
        finally:
            remove(staged)
        if old is not None:
            emulator.start_thread(self._retire, old)
        elif one.name:
            self.note("%s %s is at %s" % (one.vendor, one.name, self.url(one)))

    def _save(self, function: Function, code: str) -> None:
        """Keep a version, unless it is a folder from the command line."""
        if os.path.isdir(code):
            return
        aside = os.path.join(self.aside, uuid.uuid4().hex)
        try:
            os.mkdir(aside, mode=0o700)
            if code:
                os.link(code, os.path.join(aside, "code.zip"))
            write_through(os.path.join(aside, "function.json"),
                          json.dumps(function.kept(), indent=1).encode())
            function.folder = os.path.join(self.root, "%s,%s,%s,%019d" % (
                *function.key, time.time_ns()))
            os.rename(aside, function.folder)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        function.code = code and os.path.join(function.folder, "code.zip")

    def _retire(self, old: Function) -> None:
        old.retire()
        if old.folder:
            shutil.rmtree(old.folder, ignore_errors=True)

    def close(self, drain: bool = False) -> None:
        """Stop everything; with `drain` what was accepted comes to its outcome."""
        threads = [emulator.start_thread(one.retire, drain)
                   for one in [*self.functions.values(), *self.leaving]]
        for thread in threads:
            thread.join()
        shutil.rmtree(self.aside, ignore_errors=True)
        self._lock_file.close()

    # -- running them --

    def _submit(self, function: Function, invocation: emulator.Invocation) -> None:
        """Give an invocation to a function's platform. Raises Fault."""
        caller = invocation.caller
        with function.lock:
            is_open = not function.is_retired
            if is_open:
                function.platform = function.platform or self._start(function)
                if isinstance(caller, Caller):
                    caller.waits_for = function.platform, invocation
                    caller.defer()
                    invocation.is_carried = function.vendor == "fc"
                function.platform.submit(invocation)
        if is_open:
            if invocation.is_carried and isinstance(
                    invocation.instance, emulator.PushInstance):
                invocation.instance.exchange(invocation)  # faster than another thread
            return
        new = self.find(function.key)  # it was updated, or deleted, a moment ago
        if new is function:
            raise Fault("internal", "the platform stops")
        self._submit(new, invocation)

    def _start(self, function: Function) -> emulator.Platform:
        """Return a new platform; the function's lock is held. Raises Fault."""
        settings = read_settings(function.vendor, function.name, function.document)
        if function.vendor == "fc":  # [fc.cloud.port]
            port = settings.setdefault("port", emulator.RULES["fc"].DEFAULT_PORT)
            for one in self.leaving:
                if one.has_port(port) and one != function:
                    one.has_ended.wait()
            with self.lock:  # others that start at the same time want it, too
                if any(one.has_port(port) and one != function
                       for one in [*self.list("fc"), *self.leaving]):
                    settings["port"] = 0
                function.port = settings["port"]
        try:
            return emulator.Platform(
                function.vendor, function.code, on_log=self.on_log, on_note=lambda text:
                self.note("%s: %s" % (function.name, text)),
                **{**settings, **self.settings})
        except ValueError as error:
            raise Fault("internal", error)

    def invoke(self, function: Function, ask: Ask, event: bytes,
               shape: Callable[[emulator.Outcome], Reply], wants_log: bool = False,
               http: Optional[emulator.HttpRequest] = None) -> None:
        """Invoke a function for a caller, whom the thread that has the outcome answers.
        `shape` makes the answer; the outcome has the log as callers see it, or none.
        Raises Fault."""
        caller = ask.caller

        def deliver(outcome: emulator.Outcome) -> None:
            if not invocation.answer.begun:
                caller.send(ask, shape(outcome._replace(log=log_tail(
                    caller.waits_for[0].function, outcome) if wants_log else b"")))
                return
            if outcome.kind not in ("ok", "function-error"):
                caller.closing = True  # half an answer must look like half an answer
                emulator.shut(caller.connection)
            caller.release()

        invocation = emulator.Invocation(ask.id, event, http, deliver, caller)
        self._submit(function, invocation)

    def invoke_later(self, function: Function, ask: Ask, event: bytes) -> None:
        """Accept an asynchronous event. Raises Fault [any.cloud.async]."""
        def finish(outcome: emulator.Outcome) -> None:
            self._count(function.key, -1)
            self.note(("%s: asynchronous %s: %s %s" % (
                function.name, ask.id, outcome.kind, outcome.message)).rstrip())

        check_size(event, int(ask.word("async_bytes")))
        self._count(function.key, 1)
        try:
            self._submit(function, emulator.Invocation(ask.id, event, None, finish))
        except Fault:
            self._count(function.key, -1)
            raise

    def _count(self, key: Key, more: int) -> None:
        """Count what waits for an outcome. Raises Fault [any.cloud.async-full]."""
        with self.lock:
            if more > 0 and self.waiting[key] >= ASYNC_QUEUE:
                raise Fault("queue-full", "%d events wait already" % ASYNC_QUEUE)
            self.waiting[key] += more


# ---- calls that all three have ----

def find(cloud: Cloud, ask: Ask) -> Function:
    """Return the function, or service, that is meant. Raises Fault."""
    if not ask.name and not ask.is_service:
        raise Fault("missing", ask.word("name") + " is missing")
    function = cloud.find((ask.vendor, ask.space, ask.name))
    if ask.qualifier not in ["", *ask.word("newest").split(",")]:
        raise Fault("no-qualifier", "there is no version '%s'" % ask.qualifier)
    return function


def show(cloud: Cloud, function: Function) -> Document:
    """Return the object of a function, or service [any.cloud.document]."""
    return VIEWS[function.vendor](cloud, function)


def get(cloud: Cloud, ask: Ask) -> Reply:
    return show(cloud, find(cloud, ask))


def list_functions(cloud: Cloud, ask: Ask) -> Reply:
    start = whole_number(ask.document, ask.word("list_from"), 0)
    limit = whole_number(ask.document, ask.word("list_limit"), 20)
    end, part = start + min(limit, LIST_LIMIT), member(
        ask.document, ask.word("list_name"), "")
    space = ask.space if ask.vendor == "fc" else member(
        ask.document, ask.word("list_space"), "") or None
    found = [one for one in cloud.list(ask.vendor, space) if part in one.name]
    shown = [show(cloud, one) for one in found[start:end]]
    if ask.vendor == "scf":  # its SDK warns of any other member
        return {"TotalCount": len(found), "Functions": [
            {name: one[name] for name in SCF_LISTED} for one in shown]}
    if ask.vendor == "fc":
        return {"functions": shown, "nextToken": str(end) if found[end:] else ""}
    return {"functions": shown, "count": len(shown), "next_marker": min(
        end, len(found))}


def take_code(cloud: Cloud, ask: Ask) -> str:
    """Return the staged package that a document holds. Raises Fault."""
    members = ask.word("package").split(",")
    text = "".join(member(ask.document, path, "") for path in members)
    uploaded = os.path.basename(member(ask.document, "code.ossObjectName", ""))
    if not text and uploaded in cloud.uploads:
        staged = os.path.join(cloud.aside, uuid.uuid4().hex)
        os.link(os.path.join(cloud.aside, uploaded), staged)
        return staged
    if not text:
        raise Fault("no-code", "%s is missing" % members[0])
    try:
        package = base64.b64decode("".join(text.split()), validate=True)
    except ValueError as error:
        raise Fault("base64", "the package is not base64: %s" % error)
    if len(package) > int(ask.word("package_mib")) * MIB:
        raise Fault("zip-size", "the limit is %s MiB" % ask.word("package_mib"))
    return cloud.stage(package)


def create(cloud: Cloud, ask: Ask) -> Reply:
    document = merge(ask.vendor, {}, ask.document)
    if ask.is_service:
        ask.space = required(document, "serviceName")
    else:
        required(document, ask.word("name"))
        runtime = member(document, ask.word("runtime"), "Python2.7")
        if not re.fullmatch(ask.word("runtimes"), runtime):
            raise Fault("runtime", "'%s' is no custom runtime" % runtime)
        if ask.vendor == "scf" and member(document, "Type", "Event") != "Event":
            raise Fault("unsupported", "only functions of Type Event are run here")
    for name in {ask.space, ask.name} - {""}:
        check_name(ask.vendor, name)
    if ask.vendor == "fc" and ask.space and ask.name:
        cloud.find(("fc", ask.space, ""))
    function = Function((ask.vendor, ask.space, ask.name), document)
    read_settings(ask.vendor, ask.name, document)
    cloud.put(None, function, "" if ask.is_service else take_code(cloud, ask))
    return {} if ask.vendor == "scf" else show(cloud, function)


def update(cloud: Cloud, ask: Ask) -> Reply:
    function, staged = find(cloud, ask), ""
    new = function.changed(document=merge(ask.vendor, function.document, ask.document))
    read_settings(ask.vendor, ask.name, new.document)
    if ask.call.lower().endswith("code") or ask.document.get("code"):
        staged = take_code(cloud, ask)
    cloud.put(function, new, staged)
    return {} if ask.vendor == "scf" else show(cloud, new)


def delete(cloud: Cloud, ask: Ask) -> Reply:
    function = find(cloud, ask)
    if ask.vendor == "fc" and (function.triggers or (
            ask.is_service and cloud.list("fc", ask.space))):
        raise Fault("not-empty", "'%s' still has %s" % (
            ask.name or ask.space, "triggers" if ask.name else "functions"))
    cloud.put(function, None)
    return {}


def invoke(cloud: Cloud, ask: Ask) -> Optional[Reply]:
    function, event, field = find(cloud, ask), ask.body, ask.head.get
    if ask.vendor == "scf":
        event, field = read_event(ask), lambda name: member(ask.document, name, "")
    if ask.call.endswith("-async") or (
            field(ask.word("call_type")).lower() == ask.word("async") != ""):
        cloud.invoke_later(function, ask, event)
        return accept(ask, function)
    cloud.invoke(function, ask, event, lambda outcome: RESULTS[ask.vendor](
        ask, function, outcome), field(ask.word("log_type")).lower() == "tail")
    return None


def accept(ask: Ask, function: Function) -> Reply:
    """Return the answer to an asynchronous invocation."""
    if ask.vendor == "scf":  # [scf.cloud.async]
        return answer_scf(ask, function, emulator.Outcome("ok", b"", ask.id, 0))
    if ask.vendor == "fg":  # [fg.cloud.async]
        return to_json({"request_id": ask.id}, 202)
    task = ask.head.get("x-fc-async-task-id") or ask.head.get(
        "x-fc-stateful-async-invocation-id")
    return Answer(202, (("X-Fc-Async-Task-Id", task),) if task else ())


# ---- triggers of scf and fc ----

def show_trigger(cloud: Cloud, function: Function, name: str) -> Document:
    """Return the object of a trigger."""
    url, one = cloud.url(function), function.triggers[name]
    if function.vendor == "scf":
        return {"TriggerName": name, "Type": "apigw", "TriggerDesc": one["config"],
                "Enable": 1, "Qualifier": "$LATEST", "TriggerAttribute": url,
                "AddTime": utc(SCF_TIME, one["created"]),
                "ModTime": utc(SCF_TIME, one["changed"])}
    return {"triggerName": name, "triggerType": "http", "triggerConfig": one["config"],
            "qualifier": "LATEST", "triggerId": function.id, "status": "",
            "description": "", "httpTrigger": {"urlInternet": url, "urlIntranet": url},
            "createdTime": utc(ISO_TIME, one["created"]),
            "lastModifiedTime": utc(ISO_TIME, one["changed"])}


def find_trigger(cloud: Cloud, ask: Ask, is_there: bool = True
                 ) -> Tuple[Function, str]:
    """Return a function and the name of its trigger. Raises Fault."""
    function = find(cloud, ask)
    name = ask.trigger or required(ask.document, ask.word("trigger"))
    if is_there and name not in function.triggers:
        raise Fault("no-trigger", "trigger '%s' does not exist" % name)
    if not is_there and name in function.triggers:
        raise Fault("trigger-exists", "trigger '%s' already exists" % name)
    return function, name


def put_trigger(cloud: Cloud, ask: Ask) -> Reply:
    """Create a trigger, or change one: then the path names it [fc.cloud.trigger]."""
    function, name = find_trigger(cloud, ask, ask.trigger != "")
    kind, member_name = ask.word("trigger_kind"), ask.word("trigger_config")
    if not ask.trigger and required(ask.document, ask.word("trigger_type")) != kind:
        raise Fault("unsupported", "only triggers of type %s are run here" % kind)
    old = function.triggers.get(name, {"config": "{}", "created": time.time()})
    config = ask.document.get(member_name)
    text = json.dumps(config) if isinstance(config, dict) else member(
        ask.document, member_name, old["config"])
    member(parse_object(text, member_name), "api.requestConfig", {})
    new = function.changed(triggers={**function.triggers, name: {
        **old, "config": text, "changed": time.time()}})
    cloud.put(function, new)
    shown = show_trigger(cloud, new, name)
    return {"TriggerInfo": shown} if ask.vendor == "scf" else shown


def delete_trigger(cloud: Cloud, ask: Ask) -> Reply:
    function, name = find_trigger(cloud, ask)
    cloud.put(function, function.changed(triggers={
        one: trigger for one, trigger in function.triggers.items() if one != name}))
    return {}


def get_trigger(cloud: Cloud, ask: Ask) -> Reply:
    return show_trigger(cloud, *find_trigger(cloud, ask))


def list_triggers(cloud: Cloud, ask: Ask) -> Reply:
    function = find(cloud, ask)
    shown = [show_trigger(cloud, function, name) for name in function.triggers]
    return {"Triggers": shown, "TotalCount": len(shown)} if ask.vendor == "scf" else {
        "triggers": shown}


# ---- Tencent SCF ----

def show_scf(cloud: Cloud, function: Function) -> Document:
    """Return what GetFunction shows, and in part ListFunctions."""
    limits = emulator.RULES["scf"].LIMITS
    return {**{path: limits[setting].default
               for vendor, path, setting, _, _ in NUMBERS if vendor == "scf"},
            "Handler": "index.main_handler", "Environment": {"Variables": []},
            "Description": "", "Type": "Event", **function.document,
            "FunctionName": function.name, "FunctionId": "lam-" + function.id[:8],
            "Namespace": function.space, "Status": "Active", "StatusDesc": "",
            "StatusReasons": [], "AvailableStatus": "Available", "Tags": [],
            "Layers": [], "FunctionVersion": "$LATEST", "Qualifier": "$LATEST",
            "CodeSize": function.size(), "AddTime": utc(SCF_TIME, function.created),
            "ModTime": utc(SCF_TIME, function.modified), "Triggers": [
                show_trigger(cloud, function, name) for name in function.triggers]}


def read_event(ask: Ask) -> bytes:
    """Return the event of Invoke or InvokeFunction. Raises Fault."""
    name = "Event" if ask.call == "InvokeFunction" else "ClientContext"
    text: str = member(ask.document, name, "")
    event = text.encode("utf-8", "backslashreplace")
    check_size(event, int(emulator.RULES["scf"].LIMITS["event_bytes"].default))
    try:
        json.loads(event or b"{}")  # [scf.cloud.event]
    except (ValueError, RecursionError) as error:
        raise Fault("event", "the event is not JSON: %s" % error)
    return event


def answer_scf(ask: Ask, function: Function, outcome: emulator.Outcome) -> Document:
    """Return the answer to an invocation [scf.cloud.result]."""
    text = outcome.body.decode("utf-8", "replace")
    return {"Result": {
        "MemUsage": int(outcome.peak_mb * MIB), "RetMsg": text,
        "ErrMsg": "" if outcome.kind == "ok" else text,
        "Log": outcome.log.decode("utf-8", "replace"),
        "BillDuration": math.ceil(outcome.duration_ms),
        "Duration": round(outcome.duration_ms, 2),
        "FunctionRequestId": outcome.request_id,
        "InvokeResult": {"ok": 0, "function-error": 1}.get(outcome.kind, -1)}}


def list_namespaces(cloud: Cloud, ask: Ask) -> Reply:
    spaces = sorted({"default"} | {one.space for one in cloud.list("scf")})
    return {"Namespaces": [{"Name": name} for name in spaces],
            "TotalCount": len(spaces)}


# ---- Alibaba FC ----

def show_fc(cloud: Cloud, function: Function) -> Document:
    """Return the object of a function, or of a service."""
    found = {**function.document, "createdTime": utc(ISO_TIME, function.created),
             "lastModifiedTime": utc(ISO_TIME, function.modified)}
    if not function.name:
        return {**found, "serviceName": function.space, "serviceId": function.id}
    return {"handler": "", "timeout": 60, "memorySize": 512, **found,
            "functionName": function.name, "functionId": function.id,
            "functionArn": "acs:fc:local:0:functions/" + function.name,
            "state": "Active", "lastUpdateStatus": "Successful",
            "codeSize": function.size(), "codeChecksum": ""}


def show_code(cloud: Cloud, ask: Ask) -> Reply:
    return {"url": cloud.url(find(cloud, ask)), "checksum": ""}


def answer_fc(ask: Ask, function: Function, outcome: emulator.Outcome) -> Answer:
    """Return the answer to an invocation [fc.cloud.invoke]."""
    headers = outcome.headers + (
        ("X-Fc-Invocation-Duration", "%.2f" % outcome.duration_ms),
        ("X-Fc-Max-Memory-Usage", "%.2f" % outcome.peak_mb),
        ("X-Fc-Invocation-Service-Version", "LATEST"))
    if outcome.log:
        headers += (("X-Fc-Log-Result", base64.b64encode(outcome.log).decode()),)
    return Answer(outcome.status, headers, outcome.body)


def list_services(cloud: Cloud, ask: Ask) -> Reply:
    return {"services": [show_fc(cloud, one) for one in list(cloud.functions.values())
                         if one.vendor == "fc" and not one.name], "nextToken": ""}


def offer_upload(cloud: Cloud, ask: Ask) -> Reply:
    """Say where Serverless Devs may put a package [fc.cloud.upload]."""
    return {"credentials": dict.fromkeys(
        ("AccessKeyId", "AccessKeySecret", "SecurityToken"), "local"), "ossRegion":
        "local", "ossBucket": "local", "objectName": "upload-%s.zip" % uuid.uuid4().hex}


def take_upload(cloud: Cloud, ask: Ask) -> Reply:
    """Keep a package that is put there until it is used."""
    os.replace(cloud.stage(ask.body), os.path.join(cloud.aside, ask.upload))
    cloud.uploads.add(ask.upload)
    return Answer(200, (("ETag", '"%s"' % hashlib.md5(ask.body).hexdigest()),))


# ---- Huawei FunctionGraph ----

def show_fg(cloud: Cloud, function: Function) -> Document:
    """Return the object of a function."""
    return {"handler": "", "timeout": 3, "memory_size": 128, "user_data": "",
            "code_type": "zip", **function.document,
            "func_urn": "urn:fss:local:0:function:%s:%s:latest" % function.key[1:],
            "func_name": function.name, "package": function.space,
            "project_name": "local", "version": "latest", "cpu": 300,
            "code_size": function.size(), "digest": function.id,
            "last_modified": utc(SCF_TIME, function.modified)}


def answer_fg(ask: Ask, function: Function, outcome: emulator.Outcome) -> Answer:
    """Return the answer to an invocation [fg.cloud.fields]."""
    is_v1 = ask.head.get("x-cff-request-version").lower() == "v1"
    billed = math.ceil(outcome.duration_ms)
    headers = outcome.headers + (
        ("X-Cff-Invoke-Summary", json.dumps({
            "duration": round(outcome.duration_ms, 3), "billingDuration": billed,
            "memorySize": function.document.get("memory_size", 128),
            "memoryUsed": round(outcome.peak_mb, 3)})),
        ("X-CFF-Billing-Duration", str(billed)),
        ("X-Cff-Response-Version", "v1" if is_v1 else "v0"))
    if outcome.log:
        headers += (("X-Cff-Function-Log", base64.b64encode(outcome.log).decode()),)
    if not is_v1 or outcome.status != 200:  # [fg.cloud.version]
        return Answer(outcome.status, headers, outcome.body)
    return to_json({"request_id": outcome.request_id, "status": outcome.status,
                    "log": outcome.log.decode("utf-8", "replace"), "result":
                    outcome.body.decode("utf-8", "replace")}, 200, *headers)


def list_versions(cloud: Cloud, ask: Ask) -> Reply:
    return {"versions": [get(cloud, ask)], "count": 1, "next_marker": 1}


VIEWS = {"scf": show_scf, "fc": show_fc, "fg": show_fg}
RESULTS: Dict[str, Callable[[Ask, Function, emulator.Outcome], Reply]] = {
    "scf": answer_scf, "fc": answer_fc, "fg": answer_fg}


# ---- HTTP triggers and gateways ----

def call_http(cloud: Cloud, ask: Ask) -> None:
    """Pass a request to a function, as it is or as its cloud's gateway would."""
    function = find(cloud, ask)
    if ask.vendor == "fc":  # [fc.http.pass]
        target = ask.target + ("?" + ask.query if ask.query else "")
        cloud.invoke(function, ask, ask.body, lambda outcome: Answer(
            outcome.status, outcome.headers, outcome.body), False,
            emulator.HttpRequest(ask.method, target, ask.head.fields))
    elif ask.vendor == "fg":
        cloud.invoke(function, ask, apig_event(function, ask), answer_apig)
    else:
        settings = next((parse_object(one["config"], "TriggerDesc")
                         for one in function.triggers.values()), {})
        cloud.invoke(function, ask, apigw_event(function, ask, settings),
                     lambda outcome: answer_apigw(settings, outcome))


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


def apigw_event(function: Function, ask: Ask, settings: Document) -> bytes:
    """Return the event that Tencent's API gateway makes of a request: keys in
    alphabetical order, no blanks, no body where there is none [scf.apigw.event]."""
    event: Document = {
        "headerParameters": {}, "headers": {
            **ask.head.table, "x-anonymous-consumer": "true", "x-api-requestid": ask.id,
            "x-api-scheme": "http", "x-b3-traceid": ask.id, "x-qualifier": "$LATEST"},
        "httpMethod": ask.method, "path": ask.target, "pathParameters": {},
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


def apig_event(function: Function, ask: Ask) -> bytes:
    """Return the event that Huawei's APIG makes of a request [fg.apig.event]."""
    query = dict(urllib.parse.parse_qsl(ask.query, keep_blank_values=True))
    return json.dumps({
        "body": base64.b64encode(ask.body).decode(), "headers": ask.head.table,
        "httpMethod": ask.method, "isBase64Encoded": True, "path": ask.target,
        "pathParameters": {"": ask.target.lstrip("/")}, "queryStringParameters": query,
        "requestContext": {"apiId": function.id, "requestId": ask.id, "stage":
                           "RELEASE", "sourceIp": ask.caller.client_address[0]}}
        ).encode()


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


def answer_apigw(settings: Document, outcome: emulator.Outcome) -> Answer:
    """Return what Tencent's API gateway makes of an outcome [scf.apigw.answer]."""
    if outcome.kind != "ok" or not is_true(settings, "api.isIntegratedResponse"):
        return Answer(200, (("Content-Type", "text/plain; charset=utf-8"),),
                      outcome.body)
    try:
        return integrated(outcome.body)
    except (ValueError, RecursionError):
        return to_json({"errno": 403, "error": "Invalid scf response format. please "
                        "check your scf response format."}, 403)


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

# How requests are signed: field and form of the date ("": Unix seconds), how far it
# may be off [any.cloud.signature-date], and what is signed between the scheme's name
# and the hash of a request.
SCHEMES = {
    "TC3-HMAC-SHA256": ("x-tc-timestamp", "", 300, "{date}\n{scope}\n"),
    "ACS3-HMAC-SHA256": ("x-acs-date", "%Y-%m-%dT%H:%M:%SZ", 900, ""),
    "FC": ("date", "%a, %d %b %Y %H:%M:%S GMT", 900, ""),
    "SDK-HMAC-SHA256": ("x-sdk-date", "%Y%m%dT%H%M%SZ", 900, "{date}\n")}


def hmac_of(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode("utf-8", "backslashreplace"), "sha256")


def signed_text(ask: Ask, scheme: str, names: str, is_other: bool) -> str:
    """Return what a signature covers; `is_other`: as some clients differ."""
    field, path, host = ask.head.get, ask.path, ask.head.get("host")
    if scheme == "FC":  # of some calls the query, too
        own = "".join("%s:%s\n" % pair for pair in sorted(ask.head.table.items())
                      if pair[0].startswith("x-fc-"))
        query = "\n" + "\n".join(sorted(urllib.parse.unquote(ask.query).split("&")))
        return "\n".join((
            ask.method, field("content-md5"), field("content-type"), field("date"),
            own + urllib.parse.unquote(path)
            + query * (is_other or "/proxy/" in path)))
    if is_other:  # Tencent's Node SDK signs the host without its port
        host = host.partition(":")[0]
    if scheme == "SDK-HMAC-SHA256":
        path = urllib.parse.quote(urllib.parse.unquote(path), safe="/-_.~") + "/"
    query = "&".join("%s=%s" % tuple(urllib.parse.quote(one, safe="-_.~")
                                     for one in pair) for pair in sorted(
        urllib.parse.parse_qsl(ask.query, keep_blank_values=True)))
    fields = "".join("%s:%s\n" % (name, host if name == "host" else field(name))
                     for name in names.split(";"))
    body = b"UNSIGNED-PAYLOAD" if field("x-tc-content-sha256") else ask.body
    return "\n".join((ask.method, path, query, fields, names,
                      hashlib.sha256(body).hexdigest()))


def signature(scheme: str, text: str, secret: bytes, date: str, scope: List[str]
              ) -> str:
    """Return the signature of a text; `scope` is that of the key, TC3 has one."""
    if scheme == "FC":
        return base64.b64encode(hmac_of(secret, text)).decode()
    if scheme == "TC3-HMAC-SHA256":
        secret = functools.reduce(hmac_of, scope, b"TC3" + secret)
    stamp = SCHEMES[scheme][3].format(date=date, scope="/".join(scope))
    text_hash = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
    return hmac_of(secret, "%s\n%s%s" % (scheme, stamp, text_hash)).hex()


def verify(ask: Ask, keys: Dict[str, str]) -> None:
    """Raise Fault unless the request is signed with one of the keys, and lately."""
    scheme, _, rest = ask.head.get("authorization").partition(" ")
    if scheme not in SCHEMES:
        raise Fault("no-signature", "signed by none of " + ", ".join(SCHEMES))
    date_field, form, skew_s, _ = SCHEMES[scheme]
    parts: Dict[str, str] = dict(re.findall(r"(\w+)=([^,\s]+)", rest))
    names, given = parts.get("SignedHeaders", ""), parts.get("Signature", "")
    identity, *scope = parts.get("Credential", parts.get("Access", "")).split("/")
    if scheme == "FC":
        identity, _, given = rest.strip().rpartition(":")
    elif scheme == "ACS3-HMAC-SHA256" and date_field not in names:
        raise Fault("no-signature", date_field + " must be signed")
    if identity not in keys:
        raise Fault("no-key", "invalid access key ID '%s'" % identity)
    date, secret = ask.head.get(date_field), keys[identity].encode()
    try:
        moment = calendar.timegm(time.strptime(date, form)) if form else int(date[:15])
    except ValueError:
        moment = 0
    if abs(time.time() - moment) > skew_s:
        raise Fault("signature-date", "the date of the signature: '%s'" % date)
    texts = [signed_text(ask, scheme, names, is_other) for is_other in (False, True)]
    if not any([hmac.compare_digest(
            signature(scheme, text, secret, date, scope).encode(), given.encode())
            for text in texts]):
        raise Fault("signature", "the signature does not match; signed must be, with | "
                    "for line ends: " + texts[0].replace("\n", "|"))


# ---- the server ----

Call = Callable[[Cloud, Ask], Optional[Reply]]
CALLS: Dict[str, Dict[str, Union[Call, Reply]]] = {  # [any.cloud.calls]
    "scf": {
        "CreateFunction": create, "GetFunction": get, "ListFunctions": list_functions,
        "UpdateFunctionCode": update, "UpdateFunctionConfiguration": update,
        "DeleteFunction": delete, "Invoke": invoke, "InvokeFunction": invoke,
        "CreateTrigger": put_trigger, "DeleteTrigger": delete_trigger,
        "ListTriggers": list_triggers, "ListNamespaces": list_namespaces,
        "ListVersionByFunction": {"FunctionVersion": ["$LATEST"], "TotalCount": 1},
        "ListAliases": {"Aliases": [], "TotalCount": 0},
        "GetFunctionEventInvokeConfig": {"AsyncTriggerConfig": {}}},
    "fc": {
        "POST functions": create, "GET functions": list_functions,
        "GET functions/*": get, "PUT functions/*": update,
        "DELETE functions/*": delete, "GET functions/*/code": show_code,
        "POST functions/*/invocations": invoke,
        "POST functions/*/triggers": put_trigger,
        "GET functions/*/triggers": list_triggers,
        "GET functions/*/triggers/*": get_trigger,
        "PUT functions/*/triggers/*": put_trigger,
        "DELETE functions/*/triggers/*": delete_trigger,
        "GET functions/*/versions": {"versions": []},
        "GET functions/*/aliases": {"aliases": []},
        "GET tempBucketToken": offer_upload, UPLOAD: take_upload,
        "GET services": list_services, "POST services": create,
        "GET services/*": get, "PUT services/*": update, "DELETE services/*": delete},
    "fg": {
        "POST functions": create, "GET functions": list_functions,
        "GET functions/*/config": get, "GET functions/*/code": get,
        "PUT functions/*/config": update, "PUT functions/*/code": update,
        "DELETE functions/*": delete, "GET functions/*/versions": list_versions,
        "POST functions/*/invocations": invoke,
        "POST functions/*/invocations-async": invoke,
        "GET triggers/*": to_json([])},
}


def answer(cloud: Cloud, ask: Ask) -> Optional[Reply]:
    """Answer a request; None: whoever has the outcome does. Raises Fault."""
    if ask.path == "/-/functions":
        return show_all(cloud)
    if cloud.keys and not (ask.path.startswith(PREFIX) or ask.call == UPLOAD):
        verify(ask, cloud.keys)
    if ask.target:
        call_http(cloud, ask)
        return None
    read_document(ask)
    call = CALLS[ask.vendor].get(ask.call)
    if call is None:
        raise Fault("no-action", "'%s' is not served here" % (
            ask.call if ask.vendor == "scf" else ask.path))
    return call(cloud, ask) if callable(call) else call


def show_all(cloud: Cloud) -> Document:
    """Return the list of all functions."""
    return {"functions": [{
        "protocol": one.vendor, "space": one.space, "name": one.name,
        "url": cloud.url(one), "waiting": cloud.waiting[one.key],
        "instances": len(one.platform.instances) if one.platform else 0}
        for vendor in VENDORS for one in cloud.list(vendor)]}


def refuse(ask: Ask, fault: Fault) -> Answer:
    """Return the answer to a request that is refused [any.cloud.error]."""
    code, text = ERRORS[fault.condition][ask.vendor], str(fault)
    status, _, code = (INVALID[ask.vendor] if code == "*" else code).rpartition(":")
    if ask.call == UPLOAD:  # of an object store
        return Answer(int(status), (("Content-Type", "application/xml"),), (
            "<Error><Code>%s</Code><Message>%s</Message></Error>" % (
                code, html.escape(text))).encode("utf-8", "backslashreplace"))
    return to_json({
        "scf": {"Response": {"Error": {"Code": code, "Message": text},
                             "RequestId": ask.id}},
        "fc": {"RequestId": ask.id, "Code": code, "Message": text, "ErrorCode": code,
               "ErrorMessage": text},
        "fg": {"error_code": code, "error_msg": text, "request_id": ask.id}
        }[ask.vendor], int(status or 200))


def complete(ask: Ask, reply: Reply) -> Answer:
    """Return an answer in the form of its interface, with its id
    [any.cloud.request-id]."""
    if not isinstance(reply, Answer):
        reply = to_json({"Response": {**reply, "RequestId": ask.id}}) if (
            ask.vendor == "scf") else to_json(reply) if reply else Answer(204)
    known = {name.lower() for name, _ in reply.headers}
    return reply._replace(headers=reply.headers + tuple(
        (name, ask.id) for name in ask.word("id_fields").split(",")
        if name and name.lower() not in known))


class Door(emulator.Server):
    """A server for callers. Raises OSError when it cannot listen."""

    def __init__(self, cloud: Cloud, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(host, port, Caller, cloud)
        cloud.origin = "http://%s:%d" % (
            "[%s]" % self.host if ":" in self.host else self.host, self.port)


class Caller(emulator.Handler):
    """A connection of a caller."""

    idle_limit_s = emulator.KEEP_ALIVE_S
    waits_for: Tuple[emulator.Platform, emulator.Invocation]    # while it is deferred

    def respond(self) -> None:
        """Answer a request."""
        ask = Ask(self)
        try:
            ask.body = self.read_body(BODY_BYTES)
            reply = self._reply(ask)
        except emulator.BodyTooLarge as error:
            reply = refuse(ask, Fault("event-size", error))
        if reply is not None:
            self.send(ask, reply)

    def send(self, ask: Ask, reply: Reply) -> None:
        """Send an answer, deferred or not."""
        status, headers, body = complete(ask, reply)
        if status != 204:  # that would be a body of none
            headers += (("Content-Length", str(len(body))),)
        self.answer(emulator.format_head(emulator.status_line(status), headers),
                    b"" if self.command == "HEAD" else body)

    def withdraw(self) -> bool:
        """A caller hung up while its event runs [any.caller.gone]; the outcome ends it.
        """
        platform, invocation = self.waits_for
        platform.cancel(invocation)
        return False

    def _reply(self, ask: Ask) -> Optional[Reply]:
        try:
            return answer(self.app, ask)
        except Fault as fault:
            return refuse(ask, fault)
        except OSError as error:
            return refuse(ask, Fault("internal", "the state cannot be kept: %s"
                                     % error.strerror))


# ---- command line ----

def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Return the options. Exits with 2 when they are wrong."""
    parser = argparse.ArgumentParser(
        prog="cloud.py", usage="%(prog)s [{fc|scf|fg} FOLDER --name NAME] [options]",
        description="Serve the APIs of three clouds.")
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
    options = parser.parse_args(argv)
    if bool(options.protocol) != bool(options.folder):
        parser.error("give both PROTOCOL and FOLDER, or none")
    return options


def read_object(option: str, path: Optional[str]) -> Document:
    """Return the object in a file. Raises Fault or ValueError that names the option."""
    return parse_object(emulator.read_file(option, path), "%s %s" % (
        option, path)) if path else {}


def add_folder(cloud: Cloud, options: argparse.Namespace) -> None:
    """Register the folder of the command line. Raises Fault, ValueError."""
    vendor, code = options.protocol, os.path.abspath(options.folder)
    document = merge(vendor, {}, read_object("--document", options.document))
    if not os.path.isdir(code):
        raise ValueError("%s is no folder" % code)
    check_name(vendor, options.name)
    read_settings(vendor, options.name, document)
    cloud.put(None, Function((vendor, WORDS["default_space"][vendor], options.name),
                             document, code))


def serve(options: argparse.Namespace, root: str, talk: emulator.Talk) -> int:
    """Serve until a signal comes; return its number. Raises Fault, ValueError, OSError.
    """
    keys = read_object("--credentials", options.credentials)
    if not all(isinstance(secret, str) for secret in keys.values()):
        raise ValueError("--credentials: each secret must be a text")
    host, port = emulator.serve_address(options.serve, 0)
    news, _ = emulator.catch_signals()
    number = int(signal.SIGINT)
    cloud = Cloud(root, keys, lambda text: talk.line("cloud: " + text),
                  None if options.quiet else talk.write, cores=emulator.choose_core(),
                  watch=options.watch)
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
        number = serve(options, root, talk)
    except (Fault, ValueError, OSError) as error:
        talk.line("cloud: %s" % error)
        return 2
    finally:
        if not options.state:
            shutil.rmtree(root, ignore_errors=True)
    return 130 if number == signal.SIGINT else 0


if __name__ == "__main__":
    sys.exit(main())
