#!/usr/bin/env python3
# Custom Runtime Reference: the bootstrap side of fc, scf and fg in one file.
# CPython 3.6 or later, standard library only. MIT licence. SPEC.md says why.
"""Run Python handlers as a custom runtime of three clouds.

Put this file into a code package under the name `bootstrap` (mode 755) beside a
handler, say `index.py` with `def main_handler(event, context)`. Which platform
started it, it learns from the environment (see PROTOCOLS):

    python3 emulator.py scf ./package --event '{"key": "value"}'
    SCF_RUNTIME_API=127.0.0.1 SCF_RUNTIME_API_PORT=9001 ./package/bootstrap
    FC_SERVER_PORT=9000 FC_FUNCTION_HANDLER=index.main_handler ./package/bootstrap

Handler. The platform's handler setting names it: `file.function`, `pkg/file.function`
or `pkg.file.function`, looked for in the platform's code directory, then the working
directory, then the folder of this file. What cannot be loaded is told on stderr and
ends the process with status 1: each platform shows that as a failed start.

Event. Valid UTF-8 that is JSON (RFC 8259: no NaN) arrives as the Python value, any
other valid UTF-8 as str (so an empty event is ''), anything else as bytes. The
untouched bytes are always in `context.event_bytes`.

Result. bytes go out as they are, str as UTF-8, None as nothing, everything else as
compact JSON. An exception, also one while the result is encoded, fails the
invocation with `errorType`, `errorMessage` and `stackTrace`; its traceback goes to
stderr. SystemExit and KeyboardInterrupt end the process, as in any program.

On fc this is a threaded server, and handlers run concurrently. HTTP invocations go
to the handler if its parameters are named `environ, start_response` (then events
come as requests for POST /invoke, too), else to the WSGI application that the
handler's module calls `application`. The module's functions `initialize(context)`,
`pre_freeze(context)` and `pre_stop(context)`, where they exist, are the hooks.

SIGTERM and SIGINT end the process with status 0: at once while idle, else when the
result of each running invocation is out. A second signal kills. A platform that has
gone away is polled at growing intervals, up to 2 s, until then.

It does not: limit time or memory, run two events at once on scf and fg, install
packages, speak TLS, or change the working directory.
"""
import json
import os
import select
import signal
import socket
import sys
from time import monotonic

TYPE_CHECKING = False  # a typing import would cost a third of the cold start
if TYPE_CHECKING:
    from types import FrameType, ModuleType
    from typing import Any, Callable, Dict, List, Optional, Tuple

    Handler = Callable[..., Any]
    Headers = Dict[str, str]
    Fields = List[Tuple[str, str]]

__version__ = "0.1.0"
SPEC_VERSION = "0.1"  # not __spec__: the import system owns that name
__all__ = ["Context", "decode_event", "encode_result", "load_handler", "main"]

# ---- the protocols side by side ----
# Paths of calls; and for everything else the names to look under, the first that is
# not empty counts: header fields in lower case (they are compared so), variables in
# capitals. A process with one of the variables of `sign` was started by that platform.

PROTOCOLS = {
    "scf": {
        "sign": "SCF_RUNTIME_API",
        "port": "SCF_RUNTIME_API_PORT",
        "handler": "_HANDLER",
        "code": "USER_CODE_ROOT",
        "ready": "/runtime/init/ready",
        "next": "/runtime/invocation/next",
        "response": "/runtime/invocation/response",
        "error": "/runtime/invocation/error",
        "request_id": "request_id",
        "memory_mb": "memory_limit_in_mb",
        "time_limit_ms": "time_limit_in_ms",
        "function_name": "SCF_FUNCTIONNAME",
        "function_version": "SCF_FUNCTIONVERSION",
        "access_key_id": "TENCENTCLOUD_SECRETID",
        "access_key_secret": "TENCENTCLOUD_SECRETKEY",
        "security_token": "TENCENTCLOUD_SESSIONTOKEN",
    },
    "fg": {
        "sign": "RUNTIME_API_ADDR",
        "handler": "RUNTIME_HANDLER",
        "code": "RUNTIME_CODE_ROOT",
        "next": "/v1/runtime/invocation/request",
        "response": "/v1/runtime/invocation/response/{id}",
        "error": "/v1/runtime/invocation/error/{id}",
        "request_id": "x-cff-request-id",
        "memory_mb": "RUNTIME_MEMORY",
        "time_limit_s": "RUNTIME_TIMEOUT",
        "function_name": "RUNTIME_FUNC_NAME",
        "function_version": "RUNTIME_FUNC_VERSION",
        "access_key_id": "x-cff-security-access-key x-cff-access-key",
        "access_key_secret": "x-cff-security-secret-key x-cff-secret-key",
        "security_token": "x-cff-security-token",
        "invoke_type": "x-cff-invoke-type",
    },
    "fc": {
        "sign": "FC_SERVER_PORT FC_CUSTOM_LISTEN_PORT FC_FUNC_CODE_PATH",
        # The first is in no document but in every tool; where both are, they agree.
        "port": "FC_SERVER_PORT FC_CUSTOM_LISTEN_PORT",
        "handler": "FC_FUNCTION_HANDLER",
        "code": "FC_FUNC_CODE_PATH",
        "request_id": "x-fc-request-id",
        "memory_mb": "x-fc-function-memory FC_FUNCTION_MEMORY_SIZE",
        "time_limit_s": "x-fc-function-timeout FC_TIMEOUT",
        "function_name": "x-fc-function-name FC_FUNCTION_NAME",
        "function_version": "x-fc-version-id FC_FUNCTION_VERSION FC_VER_ID",
        "access_key_id": "x-fc-access-key-id ALIBABA_CLOUD_ACCESS_KEY_ID",
        "access_key_secret": "x-fc-access-key-secret ALIBABA_CLOUD_ACCESS_KEY_SECRET",
        "security_token": "x-fc-security-token ALIBABA_CLOUD_SECURITY_TOKEN",
    },
}  # type: Dict[str, Dict[str, str]]
HOOKS = {"/initialize": "initialize", "/pre-freeze": "pre_freeze",
         "/pre-stop": "pre_stop"}
DEFAULT_HANDLER = "index.main_handler"
FC_DEFAULT_PORT = "9000"  # [fc.start.port]

# ---- limits ----

HEAD_MAX_BYTES = 65536  # the clouds allow 8 KB; what a broken peer costs ends here
BODY_MAX_BYTES = 64 * 1024 * 1024  # twice the largest event of any of the three
JOIN_MAX_BYTES = 65536  # below it, copying a body is cheaper than a second write
PAUSE_MIN_S = 0.05  # after the first poll without an event, doubled after each other
PAUSE_MAX_S = 2.0


def put_out(file: "Any", text: str) -> None:
    """Put text, and what was printed before it, into the function's log, which stdout
    and stderr are; a frozen or killed process cannot."""
    try:
        if text:  # an unbuffered file makes a system call to write nothing
            file.write(text)
        file.flush()
    except (AttributeError, OSError, ValueError):
        pass  # nobody reads the log; that is no reason to fail an invocation


def log(text: str) -> None:
    """Write one line to stderr."""
    put_out(sys.stderr, "bootstrap: {}\n".format(text))


def look_up(protocol: str, what: str, headers: "Headers") -> str:
    """Return the first value that is not empty under its names, or ''."""
    for name in PROTOCOLS[protocol].get(what, "").split():
        value = headers.get(name) or os.environ.get(name)
        if value:  # fc sends what it does not know as an empty field
            return value
    return ""


class ConfigError(Exception):
    """The process cannot work as it was started; `status` is its exit status."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.status = status


# ---- event, result, context ----

def refuse_constant(name: str) -> None:
    raise ValueError(name + " is not JSON")


DECODER = json.JSONDecoder(parse_constant=refuse_constant)
ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def decode_event(event: bytes) -> "Any":
    """Return the JSON value, else the text, else the bytes."""
    try:
        text = event.decode("utf-8")
    except ValueError:
        return event
    try:
        return DECODER.decode(text)
    except (ValueError, RecursionError):
        return text


def encode_json(value: "Any") -> bytes:
    # A lone surrogate becomes \udxxx, which JSON allows and UTF-8 does not.
    return ENCODER.encode(value).encode("utf-8", "backslashreplace")


def encode_result(result: "Any") -> bytes:
    """Return the bytes of a result. Raises TypeError or ValueError if it has none."""
    if isinstance(result, str):
        return result.encode("utf-8")
    if isinstance(result, (bytes, bytearray, memoryview)):
        return bytes(result)
    return b"" if result is None else encode_json(result)


def describe_error(error: Exception) -> bytes:
    """Return the document of a failed invocation and log the traceback."""
    import traceback

    lines = traceback.format_exception(type(error), error, error.__traceback__)
    put_out(sys.stderr, "".join(lines))
    trace = error.__traceback__ and error.__traceback__.tb_next  # our own frame is out
    try:
        message = str(error)
    except Exception:
        message = "(the error's own __str__ failed)"
    return encode_json({  # [any.error.document]
        "errorType": type(error).__name__,
        "errorMessage": message,
        "stackTrace": [entry.rstrip() for entry in traceback.format_tb(trace)],
    })


class Context:
    """What the platform says about one invocation; None where it says nothing."""

    def __init__(self, protocol: str, headers: "Headers", event: bytes,
                 received_s: float) -> None:
        self.protocol = protocol
        self.headers = headers  # by lower-case name [any.http.header-case]
        self.event_bytes = event  # [any.event.opaque]
        self._received_s = received_s

    def _find(self, what: str) -> "Optional[str]":
        return look_up(self.protocol, what, self.headers) or None

    def _number(self, what: str, unit: int = 1) -> "Optional[int]":
        value = self._find(what) or ""
        return int(value) * unit if value.isdecimal() else None

    def _time_limit_ms(self) -> "Optional[int]":
        limit_ms = self._number("time_limit_ms")
        return self._number("time_limit_s", 1000) if limit_ms is None else limit_ms

    def _credentials(self) -> "Dict[str, str]":
        names = ("access_key_id", "access_key_secret", "security_token")
        found = [(name, self._find(name)) for name in names]
        return {name: value for name, value in found if value}

    # Looked up when they are asked for: most handlers never do.
    request_id = property(lambda self: self._find("request_id") or "")
    memory_mb = property(lambda self: self._number("memory_mb"))
    time_limit_ms = property(_time_limit_ms)
    function_name = property(lambda self: self._find("function_name"))
    function_version = property(lambda self: self._find("function_version"))
    invoke_type = property(lambda self: self._find("invoke_type"))  # fg: sync or async
    credentials = property(_credentials)  # of the function's role, as far as given

    def remaining_ms(self) -> "Optional[int]":
        """Return what is left of the time limit since the event arrived here.

        The platform's clock started earlier, so this is the most it can be.
        """
        limit_ms = self._time_limit_ms()
        if limit_ms is None:
            return None
        return max(0, limit_ms - int((monotonic() - self._received_s) * 1000))


def invoke(handler: "Handler", context: Context) -> "Tuple[bool, bytes]":
    """Call the handler and return (ok, body)."""
    try:
        return True, encode_result(handler(decode_event(context.event_bytes), context))
    except Exception as error:
        return False, describe_error(error)
    finally:
        flush_output()


def flush_output() -> None:
    """Put half lines out, too."""
    put_out(sys.stdout, "")
    put_out(sys.stderr, "")


# ---- loading the handler ----

def code_folders(protocol: str) -> "List[str]":
    # [fg.start.cwd] the working directory may be another one than the code's
    named = look_up(protocol, "code", {})
    paths = [named, os.getcwd(), os.path.dirname(os.path.realpath(__file__))]
    folders = [os.path.abspath(path) for path in paths if path]
    return sorted(set(folders), key=folders.index)


def load_handler(spec: str, folders: "List[str]") -> "Tuple[ModuleType, Handler]":
    """Import `file.function` from the first of the folders that has the file.

    Raises ConfigError, with a message for people, if that cannot be done.
    """
    path, _, name = spec.rpartition(".")
    parts = path.replace("/", ".").split(".")
    if not name or not all(parts):
        raise ConfigError("handler '{}' is not file.function".format(spec))
    file = os.path.join(*parts) + ".py"
    found = [at for at in folders if os.path.isfile(os.path.join(at, file))]
    if not found:
        message = "handler '{}': there is no {} in {}"
        raise ConfigError(message.format(spec, file, " or ".join(folders)))
    sys.path.insert(0, found[0])
    module = import_module(".".join(parts), os.path.join(found[0], file))
    handler = getattr(module, name, None)
    if not callable(handler):
        what = "is not callable" if hasattr(module, name) else "does not exist"
        raise ConfigError("handler '{}': {} {} in {}".format(spec, name, what, file))
    return module, handler


def import_module(name: str, path: str) -> "ModuleType":
    try:
        __import__(name)  # importlib would cost a millisecond of the cold start
    except Exception as error:
        describe_error(error)
        raise ConfigError("cannot import {}: {!r}".format(path, error))
    actual = getattr(sys.modules[name], "__file__", None) or ""
    if os.path.realpath(actual) != os.path.realpath(path):
        message = "cannot import {}: '{}' is the name of another module; rename it"
        raise ConfigError(message.format(path, name))
    return sys.modules[name]


# ---- stopping ----

class Stop:
    """SIGTERM and SIGINT, noticed where the process waits and nowhere else.

    A signal raises nothing, so an event that has arrived is never lost to it.
    """

    def __init__(self) -> None:
        self.requested = False
        self._process_id = os.getpid()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        # Written by the interpreter itself: a signal just before poll() wakes it, too.
        signal.set_wakeup_fd(self._wake_write)
        for number in (signal.SIGTERM, signal.SIGINT):  # [any.stop.bootstrap]
            signal.signal(number, self._on_signal)
        if hasattr(os, "register_at_fork"):  # from 3.7 on
            os.register_at_fork(after_in_child=self._let_go)

    def _on_signal(self, number: int, frame: "Optional[FrameType]") -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one kills
        if os.getpid() == self._process_id:
            self.requested = True
        else:  # Python 3.6, forked by the handler
            os.kill(os.getpid(), number)

    def _let_go(self) -> None:
        """A process that the handler forked dies of a signal as if we were not here,
        even of one that comes just before it waits for something."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT):
            if signal.getsignal(number) == self._on_signal:
                signal.signal(number, signal.SIG_DFL)

    def wake(self) -> None:
        os.write(self._wake_write, b"\0")

    def poller(self, sock: "Optional[socket.socket]" = None) -> "Any":
        """Return what `wait` waits for: the socket, if any, and a signal."""
        poll = select.poll()
        poll.register(self._wake_read, select.POLLIN)
        if sock is not None:
            poll.register(sock, select.POLLIN)
        return poll

    def wait(self, poller: "Any", limit_s: "Optional[float]" = None) -> bool:
        """Return True if the socket is readable, False on a wake-up or at the limit."""
        ready = poller.poll(None if limit_s is None else limit_s * 1000)
        for number, _ in ready:
            if number != self._wake_read:
                return True  # first: an event that has arrived comes before a signal
        if ready:
            os.read(self._wake_read, 4096)
        return False

    def wait_idle(self, poller: "Any", limit_s: "Optional[float]" = None) -> bool:
        """Do as `wait`, but end the process if told to."""
        is_readable = self.wait(poller, limit_s)
        if self.requested and not is_readable:
            raise SystemExit(0)
        return is_readable


# ---- HTTP/1.1 on a plain socket, both directions ----

VERSIONS = ("HTTP/1.1", "HTTP/1.0")


class Wire:
    """Messages on one connection, read strictly.

    Reading raises OSError if the connection ends and ValueError if it is not HTTP; a
    message that is cut anywhere is never returned.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.data = b""  # what was received, consumed up to `at`
        self.at = 0

    def is_drained(self) -> bool:
        return self.at == len(self.data)

    def send(self, head: str, body: bytes) -> None:
        if len(body) <= JOIN_MAX_BYTES:
            self.sock.sendall(head.encode("latin-1") + body)
        else:
            self.sock.sendall(head.encode("latin-1"))
            self.sock.sendall(body)

    def receive(self, size: int) -> bytes:
        data = self.sock.recv(size)
        if not data:
            raise ConnectionError("the peer closed the connection")
        return data

    def read_until(self, mark: bytes) -> str:
        """Return the text before the mark and consume both."""
        end = self.data.find(mark, self.at)
        while end < 0:
            rest = self.data[self.at:]
            if len(rest) > HEAD_MAX_BYTES or b"\n\n" in rest:
                raise ValueError("not an HTTP head")
            self.data, self.at = rest + self.receive(65536), 0
            end = self.data.find(mark)
        start, self.at = self.at, end + len(mark)
        return self.data[start:end].decode("latin-1")

    def read_exactly(self, count: int) -> bytes:
        data = self.data[self.at:self.at + count]
        self.at += len(data)
        if len(data) == count:
            return data
        parts, missing = [data], count - len(data)
        while missing:
            # A peer that sends in pieces would wait 40 ms for our delayed ACK.
            if hasattr(socket, "TCP_QUICKACK"):
                self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
            parts.append(self.receive(min(missing, 1 << 20)))
            missing -= len(parts[-1])
        return b"".join(parts)

    def read_head(self) -> "Tuple[str, Headers]":
        """Return (start line, fields by lower-case name)."""
        head = self.read_until(b"\r\n\r\n")
        lines = head.split("\r\n")
        if head.count("\r") + head.count("\n") > 2 * len(lines) - 2 or "\0" in head:
            raise ValueError("stray CR, LF or NUL in an HTTP head")
        start, headers = lines.pop(0), {}  # type: str, Headers
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon or not name or " " in name or "\t" in name:
                raise ValueError("malformed HTTP header field")
            name, value = name.lower(), value.strip(" \t")
            headers[name] = headers[name] + ", " + value if name in headers else value
        return start, headers

    def read_body(self, headers: "Headers") -> "Optional[bytes]":
        """Return the body, or None if no field announces one."""
        length = headers.get("content-length")
        if "transfer-encoding" in headers:
            if length is not None or headers["transfer-encoding"].lower() != "chunked":
                raise ValueError("the length of the body is ambiguous")
            return self.read_chunks()
        if length is None:
            return None
        if not length.isdecimal() or int(length) > BODY_MAX_BYTES:
            raise ValueError("Content-Length is malformed or above the limit")
        return self.read_exactly(int(length))

    def read_chunks(self) -> bytes:
        parts, size, total = [], 1, 0
        while size:
            digits = self.read_until(b"\r\n").partition(";")[0].strip(" \t")
            if not digits or digits.strip("0123456789abcdefABCDEF"):
                raise ValueError("malformed chunk size")
            size = int(digits, 16)
            total += size
            if total > BODY_MAX_BYTES:
                raise ValueError("chunked body above the limit")
            parts.append(self.read_exactly(size))
            if size and self.read_exactly(2) != b"\r\n":
                raise ValueError("malformed end of a chunk")
        while self.read_until(b"\r\n"):
            pass  # trailer fields mean nothing here
        return b"".join(parts)

    def read_to_end(self) -> bytes:
        parts = [self.data[self.at:], self.sock.recv(1 << 20)]
        while parts[-1]:
            parts.append(self.sock.recv(1 << 20))
        return b"".join(parts)


def is_kept(version: str, headers: "Headers") -> bool:
    choice = headers.get("connection", "").lower()
    return version == "HTTP/1.1" and "close" not in choice


# ---- pull: scf and fg ----

class PullLoop:
    """Asks the platform for events, on one connection that is kept while it lasts."""

    def __init__(self, protocol: str, handler: "Handler") -> None:
        self.protocol = protocol
        self.paths = PROTOCOLS[protocol]
        self.handler = handler
        address = look_up(protocol, "sign", {})
        if "port" in self.paths:
            address += ":" + look_up(protocol, "port", {})
        host, _, port = address.rpartition(":")
        message = "the runtime API's address is not HOST and PORT"
        self.address = (host.strip("[]"), parse_port(port if host else "", message))
        self.fields = " HTTP/1.1\r\nHost: {}\r\n".format(address)
        self.stop = Stop()
        self.usual = b""  # a whole 200 to a result: most are the same, byte for byte
        self.wire = None  # type: Optional[Wire]
        self.poller = None  # type: Any  # of the wire

    def run(self) -> None:
        """Handle one event after another, until a signal ends the process."""
        pause_s = PAUSE_MIN_S
        is_ready = "ready" not in self.paths
        while not self.stop.requested:
            started_s = monotonic()
            if not is_ready:  # [scf.ready.before-next] [scf.ready.body]
                answer = self.call("POST", "ready", "", "text/plain", b" ")
                is_ready = answer is not None
            context = self.poll() if is_ready else None
            if context is not None:
                pause_s = PAUSE_MIN_S
                self.handle(context)
                continue
            # [any.poll.retry] [any.poll.pause]
            if monotonic() - started_s > PAUSE_MAX_S:
                pause_s = PAUSE_MIN_S  # it was held: a long poll that came to its end
            self.stop.wait_idle(self.stop.poller(), pause_s)
            pause_s = min(2 * pause_s, PAUSE_MAX_S)

    def poll(self) -> "Optional[Context]":
        """Return the next invocation, or None if the poll brought none."""
        found = self.call("GET", "next")
        if found is None:
            return None
        context = Context(self.protocol, found[0], found[1], monotonic())
        if "{id}" in self.paths["response"] and len(context.request_id.split()) != 1:
            return None  # there would be no path to answer on [any.poll.retry]
        return context

    def handle(self, context: Context) -> None:
        """Run the handler and post what became of it."""
        ok, body = invoke(self.handler, context)  # [any.error.survive]
        name = "response" if ok else "error"
        kind = "application/octet-stream" if ok else "application/json"
        # One result for each poll and no poll before it, since a poll would bring the
        # same event again. [any.result.once] [scf.response.order] [fg.response.id]
        self.call("POST", name, context.request_id, kind, body)

    def call(self, method: str, name: str, request_id: str = "", kind: str = "",
             body: bytes = b"") -> "Optional[Tuple[Headers, bytes]]":
        """Return (headers, body) of a good answer, or None: the log has the reason.

        GET asks for an event and waits without limit, unless told to stop.
        """
        path = self.paths[name].replace("{id}", request_id)
        head, is_poll = method + " " + path + self.fields, method == "GET"
        if not is_poll:
            head += "Content-Type: %s\r\nContent-Length: %d\r\n" % (kind, len(body))
        for is_last in (is_poll, True):
            try:
                status, headers, content = self.exchange(head + "\r\n", body, is_poll)
                # Not a redirect: only the platform itself has events.
                if status == 200 or 200 < status < 300 and not is_poll:
                    return headers, content
                fault = "was answered with status {}".format(status)
                break
            except (OSError, ValueError) as error:
                fault = "failed: {}".format(error)
                has_answer = self.wire is not None and self.wire.data != b""
                self.close()
                # A result once more, if not a byte of an answer came: the platform may
                # have closed a kept connection, unread. If it did read it, no harm is
                # done: an fg result names its invocation, and an scf result that comes
                # twice is ignored, since we have not asked for another event yet.
                # [any.result.once] [scf.result.locked] [fg.result.unknown-id]
                if has_answer or is_last:
                    break
        log("{} {} {}".format(method, path, fault))
        return None

    def exchange(self, head: str, body: bytes, is_poll: bool
                 ) -> "Tuple[int, Headers, bytes]":
        wire = self.wire or self.connect()
        wire.data, wire.at = b"", 0  # so that it tells whether any answer has come
        try:
            wire.send(head, body)
        except OSError:
            pass  # the platform may have answered before it hung up: read on
        if not is_poll:
            wire.data = wire.receive(65536)
            if wire.data == self.usual:
                return 200, {}, b""
        status = 100
        while status < 200:  # the real answer follows [any.http.interim]
            # No time limit [scf.next.no-timeout] [fg.request.no-timeout], but from the
            # first byte of an event on, a signal has to wait instead.
            while is_poll and wire.is_drained():
                if self.stop.wait_idle(self.poller):
                    break
            line, headers = wire.read_head()
            status = 200 if line == "HTTP/1.1 200 OK" else parse_status(line)
        content = b"" if status in (204, 304) else wire.read_body(headers)
        rest = wire.read_to_end() if content is None else b""
        # Bytes after the answer belong to no question of ours.
        if (content is None or not wire.is_drained()
                or not is_kept(line[:8], headers)):
            self.close()
        elif status == 200 and headers.get("content-length") == "0" and not is_poll:
            self.usual = wire.data
        return status, headers, content or rest

    def connect(self) -> Wire:
        # Not create_connection(): it would load the idna codec, 5 ms of a cold start.
        is_ipv6 = ":" in self.address[0]
        sock = socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET)
        self.wire, self.poller = Wire(sock), self.stop.poller(sock)
        sock.connect(self.address)
        return self.wire

    def close(self) -> None:
        if self.wire is not None:
            self.wire.sock.close()
            self.wire = None


def parse_status(line: str) -> int:
    version, code = (line + "  ").split(" ")[:2]
    if (version not in VERSIONS or len(code) != 3 or not code.isdecimal()
            or code < "100"):
        raise ValueError("not an HTTP/1 status line")
    return int(code)


def parse_port(text: str, message: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise ConfigError(message, 2)
    return int(text)


# ---- push: fc ----

# The vendor's pages differ in which of the two counts, so both say the same.
# [fc.invoke.status] [fc.invoke.success-field]
ANSWERS = {
    True: ("200 OK", "x-fc-status: 200\r\n"),
    False: ("404 Not Found", "Content-Type: application/json\r\nx-fc-status: 404\r\n"),
}


class Request:
    """One request of the platform. Raises ValueError if it is none."""

    def __init__(self, wire: Wire) -> None:
        line, self.headers = wire.read_head()
        parts = line.split(" ")
        if len(parts) != 3 or parts[2] not in VERSIONS:
            raise ValueError("not an HTTP/1 request line")
        self.method, target, self.version = parts
        self.path, _, self.query = target.partition("?")
        self.keep_alive = is_kept(self.version, self.headers)
        self.wire = wire
        if "expect" in self.headers and wire.is_drained():
            wire.send("HTTP/1.1 100 Continue\r\n\r\n", b"")  # or curl waits 1 s
        self.body = wire.read_body(self.headers) or b""

    def answer(self, status: str, fields: str, body: bytes) -> None:
        fields += "Content-Length: {}\r\n".format(len(body))
        self.send(status, fields, b"" if self.method == "HEAD" else body)

    def send(self, status: str, fields: str, start: bytes) -> None:
        """Send the head and the start of the body in one write."""
        end = "\r\n" if self.keep_alive else "Connection: close\r\n\r\n"
        self.wire.send("HTTP/1.1 " + status + "\r\n" + fields + end, start)


class PushServer:
    """What the platform calls: a thread for each connection, kept while it lasts."""

    def __init__(self, module: "ModuleType", handler: "Handler") -> None:
        self.module = module
        self.handler = handler
        other = getattr(module, "application", None)
        self.application = handler if is_wsgi(handler) else other
        self.stop = Stop()
        self.fatal = None  # type: Optional[BaseException]
        self.threads = {}  # type: Dict[socket.socket, Any]

    def run(self, port: int) -> None:
        """Serve until a signal ends the process."""
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("0.0.0.0", port))  # [fc.start.port]
            except OSError as error:
                raise ConfigError("cannot listen on port {}: {}".format(port, error))
            listener.listen(1024)
            poller = self.stop.poller(listener)
            while not self.stop.requested and self.fatal is None:
                if self.stop.wait(poller):
                    self.accept(listener)
        if self.fatal is not None:
            raise self.fatal  # ends the process as it would one without threads
        for sock, thread in list(self.threads.items()):
            try:
                sock.shutdown(socket.SHUT_RD)  # what has arrived is still answered
            except OSError:
                pass
            thread.join()

    def accept(self, listener: socket.socket) -> None:
        import threading

        sock = None
        try:
            sock = listener.accept()[0]
            # A thread each, also for one that only waits. [fc.concurrency.bootstrap]
            thread = threading.Thread(target=self.serve_connection, args=(sock,))
            thread.daemon = True
            self.threads[sock] = thread
            thread.start()
        except (OSError, RuntimeError) as error:  # too many open files or threads, say
            log("cannot accept a connection: {}".format(error))
            if sock is not None:
                del self.threads[sock]
                sock.close()
            self.stop.wait(self.stop.poller(), PAUSE_MIN_S)

    def serve_connection(self, sock: socket.socket) -> None:
        try:
            wire = Wire(sock)
            # No time limit while idle. [fc.connection.keep-alive]
            while self.serve_request(wire) and not self.stop.requested:
                pass
        except OSError:
            pass  # gone, or a probe that sent nothing [fc.start.silent-connection]
        except BaseException as error:  # exit() in a handler must end the process
            self.fatal = error
            self.stop.wake()
        finally:
            self.threads.pop(sock, None)
            sock.close()

    def serve_request(self, wire: Wire) -> bool:
        """Answer one request; return whether the connection may carry another."""
        try:
            request = Request(wire)
        except ValueError as error:
            text = "{}\n".format(error).encode()
            head = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: {}"
            wire.send(head.format(len(text)) + "\r\n\r\n", text)
            return False
        self.dispatch(request)
        return request.keep_alive

    def dispatch(self, request: Request) -> None:
        context = Context("fc", request.headers, request.body, monotonic())
        kind = kind_of(request)
        if kind in HOOKS:  # [fc.hook.answer]
            hook = getattr(self.module, HOOKS[kind], None)
            ok, body = True, b""
            if hook is not None:
                ok, body = invoke(lambda event, context: hook(context), context)
            request.answer(ANSWERS[ok][0], "", body)
        elif kind == "/invoke" and self.application is not self.handler:
            ok, body = invoke(self.handler, context)
            request.answer(ANSWERS[ok][0], ANSWERS[ok][1], body)
        elif self.application is not None:  # [fc.http.bootstrap]
            WsgiCall(request).run(self.application)
        else:
            message = "no WSGI application: the handler takes events only"
            error = {"errorType": "NotAnHttpHandler", "errorMessage": message}
            request.answer(ANSWERS[False][0], ANSWERS[False][1], encode_json(error))


def kind_of(request: Request) -> str:
    """Return the control path; for a caller who sends none, what the path means."""
    control = request.headers.get("x-fc-control-path")  # [fc.invoke.kind]
    if control:
        return control
    if request.path in HOOKS and request.method in ("GET", "POST"):
        return request.path
    is_event = request.path == "/invoke" and request.method == "POST"
    return "/invoke" if is_event else "/http-invoke"


# ---- HTTP invocations: WSGI ----

OWN_FIELDS = ("connection", "keep-alive", "transfer-encoding", "upgrade")


def is_wsgi(handler: "Handler") -> bool:
    call = handler if hasattr(handler, "__code__") else type(handler).__call__
    code = getattr(call, "__code__", None)
    names = code.co_varnames[:code.co_argcount] if code else ()
    return tuple(names[-2:]) == ("environ", "start_response")


def new_environ(request: Request) -> "Dict[str, Any]":
    import io
    from urllib.parse import unquote_to_bytes

    host, _, port = request.headers.get("host", "").rpartition(":")
    environ = {
        "REQUEST_METHOD": request.method,
        "SCRIPT_NAME": "",
        "PATH_INFO": unquote_to_bytes(request.path).decode("latin-1"),
        "QUERY_STRING": request.query,
        "SERVER_NAME": host or "localhost",
        "SERVER_PORT": port or FC_DEFAULT_PORT,
        "SERVER_PROTOCOL": request.version,
        "CONTENT_TYPE": request.headers.get("content-type", ""),
        "CONTENT_LENGTH": str(len(request.body)),
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(request.body),
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": False,
        "wsgi.run_once": False,
    }  # type: Dict[str, Any]
    for name, value in request.headers.items():
        # A caller's field with underscores could pass for one of the platform's.
        if "_" not in name and name not in ("content-type", "content-length"):
            environ["HTTP_" + name.upper().replace("-", "_")] = value
    return environ


class WsgiCall:
    """One call of a WSGI application (PEP 3333), answered while it produces."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.status = ""  # until start_response() was called
        self.fields = ""
        self.has_body = True
        self.due = None  # type: Optional[int]  # bytes of an announced body
        self.is_sent = False  # the head
        self.is_lost = False  # nobody takes the answer any more
        self.is_chunked = False

    def run(self, application: "Handler") -> None:
        try:
            parts = application(new_environ(self.request), self.start_response)
            try:
                if isinstance(parts, (list, tuple)):
                    body = b"".join(parts)
                    self.write(body, len(body))
                else:
                    for part in parts:
                        if part:
                            self.write(part)
                self.finish()
            finally:
                if hasattr(parts, "close"):
                    parts.close()
        except Exception as error:
            if self.is_sent:
                self.request.keep_alive = False  # the cut answer has to tell
            if self.is_lost:  # which is no fault of the application
                log("the caller of {} has gone".format(self.request.path))
                return
            body = describe_error(error)
            if not self.is_sent:
                fields = ANSWERS[False][1]
                self.request.answer("500 Internal Server Error", fields, body)
        finally:
            flush_output()

    def start_response(self, status: str, headers: "Fields", exc_info: "Any" = None
                       ) -> "Callable[[bytes], None]":
        if exc_info and self.is_sent:
            raise exc_info[1]
        if self.status and not exc_info:
            raise RuntimeError("start_response() was called twice")
        names = {name.lower(): value for name, value in headers}
        if "x-fc-status" not in names:
            headers = list(headers) + [("x-fc-status", "200")]
        lines = [name + ": " + value for name, value in headers
                 if name.lower() not in OWN_FIELDS]
        if any(mark in line for mark in "\r\n\0" for line in lines + [status]):
            raise ValueError("CR, LF or NUL in a header field")
        "".join(lines + [status]).encode("latin-1")  # must fail now or cut the answer
        self.status, self.fields = status, "\r\n".join(lines + [""])
        self.due = int(names["content-length"]) if "content-length" in names else None
        self.has_body = (self.request.method != "HEAD"
                         and status[:3] not in ("204", "304"))
        return self.write

    def write(self, data: bytes, total: "Optional[int]" = None) -> None:
        """Send data, after the head if that is due; `total` is the body's size."""
        if not self.status:
            raise RuntimeError("start_response() was not called")
        if (not self.is_sent and self.due is None
                and self.status[:3] not in ("204", "304")):
            self.choose_framing(total)
        if self.due is not None:
            data = data[:self.due]
            self.due -= len(data)
        if not self.has_body:
            data = b""
        elif self.is_chunked and data:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        try:
            if self.is_sent:
                self.request.wire.send("", data)
            else:
                self.is_sent = True
                self.request.send(self.status, self.fields, data)
        except OSError:
            self.is_lost = True
            raise

    def choose_framing(self, total: "Optional[int]") -> None:
        if total is not None:
            self.fields += "Content-Length: {}\r\n".format(total)
            self.due = total
        elif self.has_body and self.request.version == "HTTP/1.1":
            self.fields += "Transfer-Encoding: chunked\r\n"
            self.is_chunked = True
        elif self.has_body:
            self.request.keep_alive = False  # the end of the connection ends the body

    def finish(self) -> None:
        if not self.is_sent:
            self.write(b"")
        if self.is_chunked:
            self.request.wire.send("0\r\n\r\n", b"")
        if self.due and self.has_body:
            raise RuntimeError("the body is shorter than its Content-Length")


# ---- start ----

def start() -> None:
    signed = [name for name in PROTOCOLS if look_up(name, "sign", {})]
    if not signed:
        raise ConfigError(
            "no platform started this: expected SCF_RUNTIME_API (scf), RUNTIME_API_ADDR"
            " (fg) or FC_SERVER_PORT (fc) in the environment; try emulator.py", 2)
    protocol = signed[0]
    spec = look_up(protocol, "handler", {}) or DEFAULT_HANDLER
    module, handler = load_handler(spec, code_folders(protocol))
    if protocol == "fc":
        port = look_up(protocol, "port", {}) or FC_DEFAULT_PORT
        message = "FC_SERVER_PORT '{}' is not a port".format(port)
        PushServer(module, handler).run(parse_port(port, message))
    else:
        PullLoop(protocol, handler).run()


def main() -> int:
    """Serve until told to stop; return the exit status."""
    # What a handler prints must be in the log even if the process is killed next.
    if hasattr(sys.stdout, "reconfigure"):  # from 3.7 on
        sys.stdout.reconfigure(line_buffering=True)
    try:
        start()
    except ConfigError as error:  # [any.instance.init-failed]
        log(str(error))
        return error.status
    return 0


if __name__ == "__main__":
    sys.exit(main())
