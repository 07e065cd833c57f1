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

Handler. The platform's handler setting `file.function` names it; `pkg/file.function`
and `pkg.file.function` work too. The file is looked for in the platform's code
directory, then the working directory, then the folder of this file. What cannot
be loaded is told on stderr and ends the process with status 1 before the platform
is called: no platform has a better place for it, and each shows it as a failed start.

Event. Valid UTF-8 that is JSON (RFC 8259: no NaN) arrives as the Python value, any
other valid UTF-8 as str, anything else as bytes. So an empty event is ''. The
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
result of the current invocation (fc: of each) is out. A second signal kills. A
platform that has gone away is polled at growing intervals, up to 2 s, until then.

It does not: limit time or memory, run two events at once on scf and fg, install
packages, speak TLS, or change the working directory.
"""
import importlib
import json
import os
import signal
import socket
import sys

TYPE_CHECKING = False  # a typing import would cost a third of the cold start
if TYPE_CHECKING:
    from types import FrameType, ModuleType
    from typing import Any, Callable, Dict, List, Optional, Tuple

    Handler = Callable[..., Any]
    Headers = Dict[str, str]
    Fields = List[Tuple[str, str]]
    Reply = Tuple[int, Headers, bytes]

__version__ = "0.1.0"
SPEC_VERSION = "0.1"  # not __spec__: the import system owns that name
__all__ = ["Context", "decode_event", "encode_result", "load_handler", "main"]

# ---- the protocols side by side ----
# Settings are variables. Context fields are the first of these that is not empty:
# header fields in lower case (names are compared so), variables in capitals.

PROTOCOLS = {
    "scf": {
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
HOOKS = {
    "/initialize": "initialize",
    "/pre-freeze": "pre_freeze",
    "/pre-stop": "pre_stop",
}
DEFAULT_HANDLER = "index.main_handler"
FC_DEFAULT_PORT = 9000

# ---- limits ----

HEAD_MAX_BYTES = 65536  # the clouds allow 8 KB; what a broken peer costs ends here
BODY_MAX_BYTES = 64 * 1024 * 1024  # twice the largest event of any of the three
JOIN_MAX_BYTES = 65536  # below it, copying a body is cheaper than a second write
PAUSE_MIN_S = 0.05  # after the first poll without an event, doubled after each other
PAUSE_MAX_S = 2.0


def log(text: str) -> None:
    """Write one line to stderr, which is the function's log."""
    sys.stderr.write("bootstrap: {}\n".format(text))
    sys.stderr.flush()


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

    traceback.print_exception(type(error), error, error.__traceback__)
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

    def remaining_ms(self) -> "Optional[int]":
        """Return what is left of the time limit since the event arrived here.

        The platform's clock started earlier, so this is the most it can be.
        """
        from time import monotonic

        if self.time_limit_ms is None:
            return None
        spent_ms = int((monotonic() - self._received_s) * 1000)
        return max(0, self.time_limit_ms - spent_ms)

    @property
    def request_id(self) -> str:
        return self._find("request_id") or ""

    @property
    def memory_mb(self) -> "Optional[int]":
        return self._number("memory_mb")

    @property
    def time_limit_ms(self) -> "Optional[int]":
        limit_s = self._number("time_limit_s")
        return self._number("time_limit_ms") if limit_s is None else limit_s * 1000

    @property
    def function_name(self) -> "Optional[str]":
        return self._find("function_name")

    @property
    def function_version(self) -> "Optional[str]":
        return self._find("function_version")

    @property
    def invoke_type(self) -> "Optional[str]":
        """On fg alone: `sync` or `async`."""
        return self._find("invoke_type")

    @property
    def credentials(self) -> "Dict[str, str]":
        """Temporary keys of the function's role, as many of the three as were given."""
        names = ("access_key_id", "access_key_secret", "security_token")
        found = [(name, self._find(name)) for name in names]
        return {name: value for name, value in found if value}

    def _find(self, field: str) -> "Optional[str]":
        for name in PROTOCOLS[self.protocol].get(field, "").split():
            value = self.headers.get(name) or os.environ.get(name)
            if value:  # fc sends what it does not know as an empty field
                return value
        return None

    def _number(self, field: str) -> "Optional[int]":
        value = self._find(field) or ""
        return int(value) if value.isdecimal() else None


def invoke(handler: "Handler", context: Context) -> "Tuple[bool, bytes]":
    """Call the handler and return (ok, body)."""
    try:
        return True, encode_result(handler(decode_event(context.event_bytes), context))
    except Exception as error:
        return False, describe_error(error)
    finally:
        flush_output()


def flush_output() -> None:
    """Put what was printed into the log; a frozen or killed process cannot."""
    try:
        sys.stdout.flush()
    except (AttributeError, OSError, ValueError):
        pass  # nobody reads the log; that is no reason to fail an invocation


# ---- loading the handler ----

def code_folders(protocol: str) -> "List[str]":
    # [fg.start.cwd] the working directory may be another one than the code's
    named = os.environ.get(PROTOCOLS[protocol]["code"])
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
        module = importlib.import_module(name)
    except Exception as error:
        describe_error(error)
        raise ConfigError("cannot import {}: {!r}".format(path, error))
    actual = getattr(module, "__file__", None) or ""
    if os.path.realpath(actual) != os.path.realpath(path):
        message = "cannot import {}: '{}' is the name of another module; rename it"
        raise ConfigError(message.format(path, name))
    return module


# ---- stopping ----

class Stop:
    """SIGTERM and SIGINT, noticed where the process waits and nowhere else.

    A signal raises nothing, so an event that has arrived is never lost to it.
    """

    def __init__(self) -> None:
        import select  # loaded by socket already

        self.requested = False
        self._new_poll = select.poll
        self._process_id = os.getpid()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        # Written by the interpreter itself: a signal just before poll() wakes it, too.
        signal.set_wakeup_fd(self._wake_write)
        for number in (signal.SIGTERM, signal.SIGINT):  # [any.stop.bootstrap]
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: "Optional[FrameType]") -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one kills
        if os.getpid() == self._process_id:
            self.requested = True
        else:  # a process that the handler forked; it shall die as if we were not here
            os.kill(os.getpid(), number)

    def wake(self) -> None:
        os.write(self._wake_write, b"\0")

    def poller(self, sock: "Optional[socket.socket]" = None) -> "Any":
        """Return what `wait` waits for: the socket, if any, and a signal."""
        poll = self._new_poll()
        if sock is not None:
            poll.register(sock, 1)  # POLLIN
        poll.register(self._wake_read, 1)
        return poll

    def wait(self, poller: "Any", limit_ms: "Optional[float]" = None) -> bool:
        """Return True if the socket is readable, False on a wake-up or at the limit."""
        ready = poller.poll(limit_ms)
        if ready and ready[0][0] != self._wake_read:
            return True  # first: an event that has arrived comes before a signal
        if ready:
            os.read(self._wake_read, 4096)
        return False

    def pause(self, seconds: float) -> None:
        """Sleep, but end the process if told to."""
        self.wait(self.poller(), seconds * 1000)
        self.exit_if_requested()

    def exit_if_requested(self) -> None:
        if self.requested:
            raise SystemExit(0)


# ---- HTTP/1.1 on a plain socket, both directions ----

class Wire:
    """Messages on one connection, read strictly.

    Reading raises OSError if the connection ends and ValueError if it is not HTTP; a
    message that is cut anywhere is never returned.
    """

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock = sock
        self.buffer = b""  # what was received, consumed up to `start`
        self.start = 0
        self.has_received = False  # anything, since the caller last reset it

    def send(self, head: bytes, body: bytes) -> None:
        if len(body) <= JOIN_MAX_BYTES:
            self.sock.sendall(head + body)
        else:
            self.sock.sendall(head)
            self.sock.sendall(body)

    def receive(self, size: int) -> bytes:
        data = self.sock.recv(size)
        if not data:
            raise ConnectionError("the peer closed the connection")
        self.has_received = True
        return data

    def is_drained(self) -> bool:
        return self.start == len(self.buffer)

    def read_until(self, mark: bytes) -> str:
        """Return the text before the mark and consume both."""
        end = self.buffer.find(mark, self.start)
        while end < 0:
            rest = self.buffer[self.start:]
            if len(rest) > HEAD_MAX_BYTES or b"\n\n" in rest:
                raise ValueError("not an HTTP head")
            self.buffer, self.start = rest + self.receive(65536), 0
            end = self.buffer.find(mark)
        text = self.buffer[self.start:end].decode("latin-1")
        self.start = end + len(mark)
        return text

    def read_exactly(self, count: int) -> bytes:
        data = self.buffer[self.start:self.start + count]
        self.start += len(data)
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
        start, *lines = head.split("\r\n")
        if head.count("\r") + head.count("\n") > 2 * len(lines) or "\0" in head:
            raise ValueError("stray CR, LF or NUL in an HTTP head")
        headers = {}  # type: Headers
        for line in lines:
            name, colon, value = line.partition(":")
            if not colon or not name or " " in name or "\t" in name:
                raise ValueError("malformed HTTP header field")
            name, value = name.lower(), value.strip(" \t")
            headers[name] = headers[name] + ", " + value if name in headers else value
        return start, headers

    def read_body(self, headers: "Headers") -> "Optional[bytes]":
        """Return the body, or None if no field announces one."""
        coding, length = headers.get("transfer-encoding"), headers.get("content-length")
        if coding is not None:
            if length is not None or coding.lower() != "chunked":
                raise ValueError("the length of the body is ambiguous")
            return self.read_chunks()
        if length is None:
            return None
        if not length.isdecimal() or int(length) > BODY_MAX_BYTES:
            raise ValueError("Content-Length is malformed or above the limit")
        return self.read_exactly(int(length))

    def read_chunks(self) -> bytes:
        parts, total = [], 0
        while True:
            digits = self.read_until(b"\r\n").partition(";")[0].strip(" \t")
            if not digits or digits.strip("0123456789abcdefABCDEF"):
                raise ValueError("malformed chunk size")
            size = int(digits, 16)
            total += size
            if total > BODY_MAX_BYTES:
                raise ValueError("chunked body above the limit")
            if size == 0:
                break
            parts.append(self.read_exactly(size))
            if self.read_exactly(2) != b"\r\n":
                raise ValueError("malformed end of a chunk")
        while self.read_until(b"\r\n"):
            pass  # trailer fields mean nothing here
        return b"".join(parts)

    def read_to_end(self) -> bytes:
        parts = [self.buffer[self.start:], self.sock.recv(1 << 20)]
        while parts[-1]:
            parts.append(self.sock.recv(1 << 20))
        return b"".join(parts)


# ---- pull: scf and fg ----

class RuntimeApi:
    """The platform's HTTP server, on one connection that is kept while it lasts."""

    def __init__(self, host: str, port: int, stop: Stop,
                 clock: "Callable[[], float]") -> None:
        self.address = (host, port)
        self.stop = stop
        self.clock = clock
        self.fields = " HTTP/1.1\r\nHost: {}:{}\r\n".format(host, port)
        self.wire = None  # type: Optional[Wire]
        self.poller = None  # type: Any  # of the wire

    def connect(self) -> Wire:
        # Not create_connection(): it would load the idna codec, 5 ms of a cold start.
        is_ipv6 = ":" in self.address[0]
        sock = socket.socket(socket.AF_INET6 if is_ipv6 else socket.AF_INET)
        try:
            sock.connect(self.address)
        except OSError:
            sock.close()
            raise
        self.wire, self.poller = Wire(sock), self.stop.poller(sock)
        return self.wire

    def close(self) -> None:
        if self.wire is not None:
            self.wire.sock.close()
            self.wire = None

    def get(self, path: str) -> "Reply":
        """Return (status, headers, body), waiting without limit, unless told to stop.

        Like `post`, raises OSError or ValueError if there is no whole answer.
        """
        return self.call("GET " + path + self.fields + "\r\n", b"", self.wait_idle)

    def post(self, path: str, kind: str, body: bytes) -> "Reply":
        """Return (status, headers, body)."""
        head = "POST %s%sContent-Type: %s\r\nContent-Length: %d\r\n\r\n" % (
            path, self.fields, kind, len(body))
        try:
            return self.call(head, body, None)
        except OSError:
            # Once more, if not a byte of an answer came: a kept connection may have
            # been closed by the platform, unread. If it did read, the repetition does
            # no harm: an fg result names its invocation, and an scf result that comes
            # twice is ignored, since we have not asked for another event yet.
            # [any.result.once] [scf.result.locked] [fg.result.unknown-id]
            if self.has_received:
                raise
            return self.call(head, body, None)

    def call(self, head: str, body: bytes, wait: "Optional[Callable[[], None]]"
             ) -> "Reply":
        self.has_received = False
        wire = self.wire or self.connect()
        wire.has_received = False
        try:
            return self.exchange(wire, head, body, wait)
        except (OSError, ValueError):
            self.has_received = wire.has_received
            self.close()
            raise

    def exchange(self, wire: Wire, head: str, body: bytes,
                 wait: "Optional[Callable[[], None]]") -> "Reply":
        try:
            wire.send(head.encode("latin-1"), body)
        except OSError:
            pass  # the platform may have answered before it hung up: read on
        status = 100
        while status < 200:  # the real answer follows [any.http.interim]
            if wait is not None and wire.is_drained():
                wait()
            line, headers = wire.read_head()
            status = 200 if line == "HTTP/1.1 200 OK" else parse_status(line)
        content = b"" if status in (204, 304) else wire.read_body(headers)
        keep = content is not None and line.startswith("HTTP/1.1")
        if content is None:
            content = wire.read_to_end()
        # Bytes after the answer belong to no question of ours.
        if not keep or not wire.is_drained() or "connection" in headers and (
                "close" in headers["connection"].lower()):
            self.close()
        return status, headers, content

    def wait_idle(self) -> None:
        # No time limit [scf.next.no-timeout] [fg.request.no-timeout], but from the
        # first byte of an event on, a signal has to wait instead.
        while not self.stop.wait(self.poller):
            self.stop.exit_if_requested()


def parse_status(line: str) -> int:
    version, code = line[:9], line[9:12]
    if (version not in ("HTTP/1.1 ", "HTTP/1.0 ") or len(code) < 3 or code < "100"
            or not code.isdecimal() or line[12:13] not in ("", " ")):
        raise ValueError("not an HTTP/1 status line")
    return int(code)


def serve_pull(protocol: str, handler: "Handler") -> None:
    """Ask for events, one after another, until a signal ends the process."""
    from time import monotonic

    names = PROTOCOLS[protocol]
    stop = Stop()
    api = RuntimeApi(*runtime_api_address(protocol), stop=stop, clock=monotonic)
    pause_s = PAUSE_MIN_S
    is_ready = "ready" not in names
    while not stop.requested:
        started_s = monotonic()
        # [scf.ready.before-next] [scf.ready.body]
        is_ready = is_ready or post(api, names["ready"], "text/plain", b" ")
        context = poll_event(api, protocol) if is_ready else None
        if context is None:  # [any.poll.retry] [any.poll.pause]
            if monotonic() - started_s > PAUSE_MAX_S:
                pause_s = PAUSE_MIN_S  # it was held: a long poll that came to its end
            stop.pause(pause_s)
            pause_s = min(2 * pause_s, PAUSE_MAX_S)
            continue
        pause_s = PAUSE_MIN_S
        ok, body = invoke(handler, context)  # [any.error.survive]
        path = names["response" if ok else "error"]
        kind = "application/octet-stream" if ok else "application/json"
        # One result for each poll and no poll before it, since a poll would bring the
        # same event again. [any.result.once] [scf.response.order] [fg.response.id]
        post(api, path.replace("{id}", context.request_id), kind, body)


def poll_event(api: RuntimeApi, protocol: str) -> "Optional[Context]":
    """Return the next invocation, or None if the poll brought none."""
    names = PROTOCOLS[protocol]
    try:
        status, headers, body = api.get(names["next"])
    except (OSError, ValueError) as error:
        log("no event: {}".format(error))
        return None
    if status != 200:  # redirects too: only the platform itself has events
        log("no event: GET {} was answered {}".format(names["next"], status))
        return None
    context = Context(protocol, headers, body, api.clock())
    if "{id}" in names["response"] and len(context.request_id.split()) != 1:
        return None  # there would be no path to answer on [any.poll.retry]
    return context


def post(api: RuntimeApi, path: str, kind: str, body: bytes) -> bool:
    """Return whether the platform took it; if not, the log has the reason."""
    try:
        status = api.post(path, kind, body)[0]
    except (OSError, ValueError) as error:
        log("POST {} failed: {}".format(path, error))
        return False
    if not 200 <= status < 300:
        log("POST {} was refused with status {}".format(path, status))
    return 200 <= status < 300


def runtime_api_address(protocol: str) -> "Tuple[str, int]":
    if protocol == "scf":
        host = os.environ["SCF_RUNTIME_API"]
        port = os.environ.get("SCF_RUNTIME_API_PORT", "")
    else:
        host, _, port = os.environ["RUNTIME_API_ADDR"].rpartition(":")
    if not host or not is_port(port):
        raise ConfigError("the runtime API's address is not HOST and PORT", 2)
    return host.strip("[]"), int(port)


def is_port(text: str) -> bool:
    return text.isdecimal() and 0 < int(text) < 65536


# ---- push: fc ----

class Request:
    """One request of the platform. Raises ValueError if it is none."""

    def __init__(self, wire: Wire) -> None:
        line, self.headers = wire.read_head()
        parts = line.split(" ")
        if len(parts) != 3 or parts[2] not in ("HTTP/1.1", "HTTP/1.0"):
            raise ValueError("not an HTTP/1 request line")
        self.method, self.target, self.version = parts
        self.path, _, self.query = self.target.partition("?")
        self.wire = wire
        close = "close" in self.headers.get("connection", "").lower()
        self.keep_alive = self.version == "HTTP/1.1" and not close
        if "expect" in self.headers and wire.is_drained():
            wire.send(b"HTTP/1.1 100 Continue\r\n\r\n", b"")  # or curl waits 1 s
        self.body = wire.read_body(self.headers) or b""

    def answer(self, status: str, fields: "Fields", body: bytes) -> None:
        length = ("Content-Length", str(len(body)))
        self.send(status, fields + [length], b"" if self.method == "HEAD" else body)

    def send(self, status: str, fields: "Fields", start: bytes) -> None:
        """Send the head and the start of the body in one write."""
        lines = ["HTTP/1.1 " + status]
        lines += [name + ": " + value for name, value in fields]
        if not self.keep_alive:
            lines.append("Connection: close")
        self.wire.send("\r\n".join(lines + ["", ""]).encode("latin-1"), start)


class PushServer:
    """What the platform calls: a thread for each connection, kept while it lasts."""

    def __init__(self, module: "ModuleType", handler: "Handler") -> None:
        import threading
        from time import monotonic

        self.module = module
        self.handler = handler
        other = getattr(module, "application", None)
        self.application = handler if is_wsgi(handler) else other
        self.stop = Stop()
        self.fatal = None  # type: Optional[BaseException]
        self.clock = monotonic
        self.new_thread = threading.Thread
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
        self.finish()

    def accept(self, listener: socket.socket) -> None:
        try:
            sock = listener.accept()[0]
        except OSError as error:  # too many open files, say
            log("cannot accept a connection: {}".format(error))
            self.stop.wait(self.stop.poller(), PAUSE_MIN_S * 1000)
            return
        # A thread each, also for one that only waits. [fc.concurrency.bootstrap]
        thread = self.new_thread(target=self.serve_connection, args=(sock,))
        thread.daemon = True
        self.threads[sock] = thread
        thread.start()

    def finish(self) -> None:
        """Let each connection answer what has arrived, and end it."""
        for sock, thread in list(self.threads.items()):
            try:
                sock.shutdown(socket.SHUT_RD)  # what was received can still be read
            except OSError:
                pass
            thread.join()

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
            wire.send((head.format(len(text)) + "\r\n\r\n").encode(), text)
            return False
        self.dispatch(request)
        return request.keep_alive

    def dispatch(self, request: Request) -> None:
        context = Context("fc", request.headers, request.body, self.clock())
        kind = kind_of(request)
        if kind in HOOKS:  # [fc.hook.answer]
            hook = getattr(self.module, HOOKS[kind], None)
            ok, body = True, b""
            if hook is not None:
                ok, body = invoke(lambda event, context: hook(context), context)
            request.answer("200 OK" if ok else "404 Not Found", [], body)
        elif kind == "/invoke" and self.application is not self.handler:
            ok, body = invoke(self.handler, context)
            answer_invocation(request, ok, body)
        elif self.application is not None:  # [fc.http.bootstrap]
            WsgiCall(request).run(self.application)
        else:
            message = "no WSGI application: the handler takes events only"
            error = {"errorType": "NotAnHttpHandler", "errorMessage": message}
            answer_invocation(request, False, encode_json(error))


OK_HEAD = b"HTTP/1.1 200 OK\r\nx-fc-status: 200\r\nContent-Length: %d\r\n\r\n"


def kind_of(request: Request) -> str:
    """Return the control path; for a caller who sends none, what the path means."""
    control = request.headers.get("x-fc-control-path")  # [fc.invoke.control-path]
    if control:
        return control
    if request.path in HOOKS and request.method in ("GET", "POST"):
        return request.path
    is_event = request.path == "/invoke" and request.method == "POST"
    return "/invoke" if is_event else "/http-invoke"


def answer_invocation(request: Request, ok: bool, body: bytes) -> None:
    # The vendor's pages differ in which of the two counts, so both say the same.
    # [fc.invoke.status] [fc.invoke.success-field]
    if ok and request.keep_alive:  # the usual answer, formatted in one go
        request.wire.send(OK_HEAD % len(body), body)
    elif ok:
        request.answer("200 OK", [("x-fc-status", "200")], body)
    else:
        fields = [("Content-Type", "application/json"), ("x-fc-status", "404")]
        request.answer("404 Not Found", fields, body)


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
        "SERVER_PORT": port or str(FC_DEFAULT_PORT),
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
        self.fields = []  # type: Fields
        self.due = None  # type: Optional[int]  # bytes of an announced body
        self.is_sent = False  # the head
        self.is_chunked = False

    def run(self, application: "Handler") -> None:
        try:
            parts = application(new_environ(self.request), self.start_response)
            try:
                if isinstance(parts, (list, tuple)) and not self.is_sent:
                    parts = [b"".join(parts)]
                    self.announce(len(parts[0]))
                for part in parts:
                    if part:
                        self.write(part)
                self.finish()
            finally:
                if hasattr(parts, "close"):
                    parts.close()
        except Exception as error:  # or the caller has gone: then the answer fails, too
            body = describe_error(error)
            if self.is_sent:
                self.request.keep_alive = False  # the cut answer has to tell
            else:
                fields = [("Content-Type", "application/json"), ("x-fc-status", "404")]
                self.request.answer("500 Internal Server Error", fields, body)
        finally:
            flush_output()

    def start_response(self, status: str, headers: "Fields", exc_info: "Any" = None
                       ) -> "Callable[[bytes], None]":
        if exc_info and self.is_sent:
            raise exc_info[1]
        if self.status and not exc_info:
            raise RuntimeError("start_response() was called twice")
        text = "".join([status] + [name + value for name, value in headers])
        if "\r" in text or "\n" in text or "\0" in text:
            raise ValueError("CR, LF or NUL in a header field")
        fields = [pair for pair in headers if pair[0].lower() not in OWN_FIELDS]
        values = {name.lower(): value for name, value in fields}
        if "x-fc-status" not in values:
            fields.append(("x-fc-status", "200"))
        self.status, self.fields = status, fields
        self.due = int(values["content-length"]) if "content-length" in values else None
        return self.write

    def has_body(self) -> bool:
        return self.request.method != "HEAD" and self.status[:3] not in ("204", "304")

    def announce(self, length: int) -> None:
        if self.due is None and self.status[:3] not in ("204", "304"):
            self.fields.append(("Content-Length", str(length)))
            self.due = length

    def write(self, data: bytes) -> None:
        """Send data, with the head before it if that is still due."""
        if not self.status:
            raise RuntimeError("start_response() was not called")
        if self.due is not None:
            data = data[:self.due]
            self.due -= len(data)
        elif not self.is_sent and self.has_body():
            self.is_chunked = self.request.version == "HTTP/1.1"
            if self.is_chunked:
                self.fields.append(("Transfer-Encoding", "chunked"))
            self.request.keep_alive &= self.is_chunked  # else its end ends the body
        if not self.has_body():
            data = b""
        elif self.is_chunked and data:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if self.is_sent:
            self.request.wire.send(b"", data)
        else:
            self.is_sent = True
            self.request.send(self.status, self.fields, data)

    def finish(self) -> None:
        if not self.is_sent:
            self.write(b"")
        if self.is_chunked:
            self.request.wire.send(b"0\r\n\r\n", b"")
        if self.due and self.has_body():
            raise RuntimeError("the body is shorter than its Content-Length")


# ---- start ----

def find_protocol() -> "Optional[str]":
    """Return the platform that started this process, by its variables."""
    if os.environ.get("SCF_RUNTIME_API"):
        return "scf"
    if os.environ.get("RUNTIME_API_ADDR"):
        return "fg"
    names = ("FC_SERVER_PORT", "FC_CUSTOM_LISTEN_PORT", "FC_FUNC_CODE_PATH")
    return "fc" if any(os.environ.get(name) for name in names) else None


def fc_port() -> int:
    # FC_SERVER_PORT is in no document but in every tool; where both are, they agree.
    port = (os.environ.get("FC_SERVER_PORT") or os.environ.get("FC_CUSTOM_LISTEN_PORT")
            or str(FC_DEFAULT_PORT))
    if not is_port(port):
        raise ConfigError("FC_SERVER_PORT '{}' is not a port".format(port), 2)
    return int(port)


def start() -> None:
    protocol = find_protocol()
    if protocol is None:
        raise ConfigError(
            "no platform started this: expected SCF_RUNTIME_API (scf), RUNTIME_API_ADDR"
            " (fg) or FC_SERVER_PORT (fc) in the environment; try emulator.py", 2)
    spec = os.environ.get(PROTOCOLS[protocol]["handler"]) or DEFAULT_HANDLER
    module, handler = load_handler(spec, code_folders(protocol))
    if protocol == "fc":
        PushServer(module, handler).run(fc_port())
    else:
        serve_pull(protocol, handler)


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
