#!/usr/bin/env python3
# fg_bootstrap.py: a custom runtime for Huawei FunctionGraph, complete here (MIT).
# CPython 3.6 or later, standard library only. SPEC.md has the rules that are cited.
"""Run a Python handler on Huawei FunctionGraph.

Copy this file into the function's package as `bootstrap` (mode 755), beside a handler,
say `index.py` with `def handler(event, context)`:

    python3 emulator.py fg ./package --event '{"key": "value"}'
    RUNTIME_API_ADDR=127.0.0.1:9001 ./package/bootstrap

Handler: `file.function` or `folder/file.function`, also async, in the code folder, the
working one or that of this file. Event: UTF-8 that is JSON (no NaN) arrives as value,
other UTF-8 as str, all else as bytes; `context.event_bytes` has it untouched.
Result: bytes go out as they are, str as UTF-8, None as nothing, all else as JSON.
An exception fails the invocation; SystemExit and KeyboardInterrupt end the process.
It does not: run two events at once, limit time or memory, install packages, speak TLS.
"""
import os
import sys

# The package may have a select.py or an email.py: not meant for us, so that its folders
# have to wait; but meant for the handler, which must not find ours instead.
CODE_FOLDER = os.environ.get("RUNTIME_CODE_ROOT") or "."  # [fg.start.cwd]
FOLDERS = [os.path.realpath(one) for one in (CODE_FOLDER, ".", __file__ + "/..")]
SEARCHED, LOADED = sys.path[:], set(sys.modules)
sys.path[:] = [one for one in SEARCHED if os.path.realpath(one) not in FOLDERS]
OWN = {entry.partition(".")[0] for folder in FOLDERS if os.path.isdir(folder)
       for entry in os.listdir(folder) if entry.endswith((".py", ".so"))
       or os.path.exists(os.path.join(folder, entry, "__init__.py"))}
OWN = {one for one in OWN if any(at.find_spec(one, None) for at in sys.meta_path)}
import json
import select
import signal
import socket
from time import monotonic

LOOP = OWN and __import__("asyncio").new_event_loop()  # else when needed: 40 ms
TYPE_CHECKING = False  # a typing import would cost a third of the cold start
if TYPE_CHECKING:
    from typing import Any, Dict, Optional, Tuple

__version__, SPEC_VERSION = "0.1.0", "0.1"
__all__ = ["Context", "main"]

PAUSE_MIN_S, PAUSE_MAX_S = 0.05, 2.0  # after a poll without an event, longer each time
DECODER = json.JSONDecoder(parse_constant=int)  # int() refuses NaN, as RFC 8259 does
ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))

# ---- the cloud ----

NEXT = "/v1/runtime/invocation/request"
RESPONSE = "/v1/runtime/invocation/response/"
ERROR = "/v1/runtime/invocation/error/"
HOST, _, PORT = os.environ.get("RUNTIME_API_ADDR", "").rpartition(":")
HANDLER = os.environ.get("RUNTIME_HANDLER") or "index.handler"


class Context:
    """What FunctionGraph says of an invocation; the getters are its own runtime's."""
    protocol, function_name = "fg", os.environ.get("RUNTIME_FUNC_NAME") or None
    function_version = os.environ.get("RUNTIME_FUNC_VERSION") or None
    memory_mb = int(os.environ.get("RUNTIME_MEMORY") or 0) or None
    time_limit_ms = int(os.environ.get("RUNTIME_TIMEOUT") or 0) * 1000 or None

    def __init__(self, headers: "Dict[str, str]", event: bytes) -> None:
        self.headers = headers  # by lower-case name
        self.event_bytes = event  # [any.event.opaque]
        self.received_s = monotonic()
        self.request_id = headers.get("x-cff-request-id", "")
        self.invoke_type = headers.get("x-cff-invoke-type")
        self.credentials = {
            name: headers.get("x-cff-security-" + end) or headers.get("x-cff-" + end)
            for name, end in (("access_key_id", "access-key"),
                              ("access_key_secret", "secret-key"),
                              ("security_token", "token"))}

    getRequestID = lambda self: self.request_id
    getFunctionName = lambda self: self.function_name
    getMemorySize = lambda self: self.memory_mb
    getRemainingTimeInMilliSeconds = lambda self: self.remaining_ms()
    getAccessKey = getSecurityAccessKey = lambda self: self.credentials["access_key_id"]
    getSecretKey = lambda self: self.credentials["access_key_secret"]
    getSecuritySecretKey = getSecretKey
    getSecurityToken = lambda self: self.credentials["security_token"]
    getToken = lambda self: self.headers.get("x-cff-auth-token")
    getUserData = lambda self, key, default=None: os.environ.get(key, default)
    getLogger = lambda self: self  # which logs:
    debug = info = warn = warning = error = lambda self, text: log(f"{text}\n")

    def remaining_ms(self) -> "Optional[int]":
        """Return the most that can be left of the time limit."""
        used_ms = int((monotonic() - self.received_s) * 1000)
        return self.time_limit_ms and max(0, self.time_limit_ms - used_ms)


# ---- event, result, error ----

def decode_event(event: bytes) -> "Any":
    try:
        text = event.decode("utf-8")
        return DECODER.decode(text)
    except UnicodeDecodeError:
        return event
    except (ValueError, RecursionError):
        return text


def encode_result(result: "Any") -> bytes:
    if isinstance(result, (bytes, bytearray, memoryview)):
        return bytes(result)
    if result is None or isinstance(result, str):
        return (result or "").encode("utf-8")
    # A lone surrogate becomes \udxxx, which JSON allows and UTF-8 does not.
    return ENCODER.encode(result).encode("utf-8", "backslashreplace")


def describe_error(error: Exception) -> bytes:
    """Log the traceback and return the document of a failed invocation."""
    # Without the module `traceback`: a token.py in the package breaks its import.
    sys.__excepthook__(type(error), error, error.__traceback__)
    steps, at = [], error.__traceback__ and error.__traceback__.tb_next
    while at:
        code = at.tb_frame.f_code
        steps.append(f"{code.co_filename}, line {at.tb_lineno}, in {code.co_name}")
        at = at.tb_next
    try:
        message = str(error)
    except Exception:
        message = "(the error's own __str__ failed)"
    return encode_result({"errorType": type(error).__name__,  # [any.error.document]
                          "errorMessage": message, "stackTrace": steps})


def log(text: str = "") -> None:
    """Put text on stderr; what was printed before, half lines too, is out by then."""
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
        sys.stdout.flush()
    except (AttributeError, OSError, ValueError):
        pass  # nobody reads the log, which is no reason to fail an invocation


class Handler:
    """The function that HANDLER names."""
    def __init__(self) -> None:
        self.loop = LOOP  # type: Any  # if the function is async
        module, _, name = HANDLER.replace("/", ".").rpartition(".")
        for loaded in set(sys.modules) - LOADED:
            if loaded.partition(".")[0] in OWN:
                del sys.modules[loaded]
        sys.path[:] = FOLDERS + SEARCHED
        try:
            __import__(module)  # importlib would cost a millisecond
            self.function = getattr(sys.modules[module], name)
            assert callable(self.function), "it is not callable"
        except Exception as error:  # [any.instance.init-failed]
            describe_error(error)
            sys.exit(f"bootstrap: no handler '{HANDLER}' in {FOLDERS}: {error!r}")

    def invoke(self, context: Context) -> "Tuple[bool, bytes]":
        """Return (whether it succeeded, result or error document)."""
        try:
            result = self.function(decode_event(context.event_bytes), context)
            if hasattr(result, "__await__"):
                self.loop = self.loop or __import__("asyncio").new_event_loop()
                result = self.loop.run_until_complete(result)
            return True, encode_result(result)
        except Exception as error:  # [any.error.survive]
            return False, describe_error(error)


# ---- signals, and HTTP/1.1, for which a port has a library ----

class Platform:
    """The other side: its signals, and its server, on one connection that is kept."""
    def __init__(self) -> None:
        self.sock = None  # type: Any
        self.data = bytearray()  # received and not yet read
        self.is_stopping, self.process_id = False, os.getpid()
        self.pipe, end = os.pipe()
        os.set_blocking(end, False)
        # Signals are noticed in `wait`: raised elsewhere they could lose an event.
        signal.set_wakeup_fd(end)
        for number in (signal.SIGTERM, signal.SIGINT):  # [any.stop.bootstrap]
            signal.signal(number, self.on_signal)

    def on_signal(self, number: int, frame: "Any") -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one kills
        if os.getpid() != self.process_id:  # so does the first what the handler forked
            os.kill(os.getpid(), number)
        self.is_stopping = True

    def wait(self, *files: "Any", limit_s: "Optional[float]" = None) -> None:
        """Wait until a file can be read, or for the limit. Exits on a signal before."""
        while select.select([self.pipe, *files], [], [], limit_s)[0] == [self.pipe]:
            os.read(self.pipe, 4096)  # it may have been a signal for somebody else
            if self.is_stopping:
                sys.exit(0)

    def ask(self, method: str, path: str, body: bytes = b"") -> "Any":
        """Return what `exchange` does, or None: the log has the reason."""
        try:
            return self.exchange(method, path, body)
        except (OSError, ValueError) as error:
            log(f"bootstrap: {method} {path} failed: {error}\n")
            self.sock = None

    def exchange(self, method: str, path: str, body: bytes
                 ) -> "Tuple[Dict[str, str], bytes]":
        """Return (headers by lower-case name, body) of a good answer, however late."""
        if self.sock and select.select([self.sock], [], [], 0)[0]:
            self.sock = None  # closed meanwhile: better a new one than a result lost
        if not self.sock:
            # Not create_connection(): its idna codec would cost 5 ms of a cold start.
            self.sock, self.data = socket.socket(), bytearray()
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.sock.connect((HOST, int(PORT)))
        head = (f"{method} {path} HTTP/1.1\r\nHost: {HOST}:{PORT}\r\n"
                f"Content-Length: {len(body)}\r\n\r\n")
        self.sock.sendall(head.encode("latin-1") + body)
        if method == "GET":  # no limit, but a signal ends it [fg.request.no-timeout]
            self.wait(self.sock)
        status = 100
        while status < 200:  # the real answer follows [any.http.interim]
            start, *lines = self.read(b"\r\n\r\n").decode("latin-1").split("\r\n")
            version, code = start.split(" ")[:2]
            status, pairs = int(code), [line.partition(":") for line in lines]
            # [any.http.header-case]
            headers = {name.lower(): value.strip() for name, _, value in pairs}
        if status != 200 and (method == "GET" or status > 299):
            raise ValueError(f"answered with status {status}")
        content = self.read_body(headers, "no length" if method == "GET" else "0")
        if version != "HTTP/1.1" or "close" in headers.get("connection", "").lower():
            self.sock = None
        return headers, content

    def read(self, mark: bytes, start: int = 0) -> bytes:
        """Return what comes before the mark, which is not looked for before `start`."""
        while self.data.find(mark, start) < 0:
            data = self.sock.recv(65536)
            if not data:
                raise ConnectionError("the answer broke off")
            self.data += data
        end = self.data.find(mark, start)
        part = bytes(self.data[:end])
        del self.data[:end + len(mark)]
        return part

    def read_body(self, headers: "Dict[str, str]", default: str) -> bytes:
        if "chunked" not in headers.get("transfer-encoding", "").lower():
            return self.read(b"", int(headers.get("content-length", default)))
        parts, size = [], int(self.read(b"\r\n").partition(b";")[0], 16)
        while size:
            parts.append(self.read(b"\r\n", size))
            size = int(self.read(b"\r\n").partition(b";")[0], 16)
        while self.read(b"\r\n"):
            pass  # the trailer
        return b"".join(parts)  # [any.http.chunked-event]


# ---- the protocol: SPEC.md 3.3, pull ----

def main() -> None:
    """Handle one event after another until a signal comes."""
    # Each printed line is in the log at once, before a kill, and any text fits there.
    sys.stdout = sys.stdout and open(1, "w", 1, "utf-8", "replace", None, False)
    sys.stderr = sys.stderr and open(2, "w", 1, "utf-8", "replace", None, False)
    if not HOST or not PORT.isdecimal():
        sys.exit("bootstrap: no platform started this; try emulator.py")
    handler, platform = Handler(), Platform()  # [any.instance.init-once]
    pause_s = PAUSE_MIN_S
    while not platform.is_stopping:
        asked_s = monotonic()
        answer = platform.ask("GET", NEXT)
        request_id = answer and answer[0].get("x-cff-request-id")
        if not request_id:
            if monotonic() - asked_s > PAUSE_MAX_S:
                pause_s = PAUSE_MIN_S  # a long poll came to its end
            platform.wait(limit_s=pause_s)  # [any.poll.retry] [any.poll.pause]
            pause_s = min(2 * pause_s, PAUSE_MAX_S)
            continue
        pause_s = PAUSE_MIN_S
        ok, body = handler.invoke(Context(*answer))
        log()
        # [any.result.once] [fg.response.id]
        platform.ask("POST", (RESPONSE if ok else ERROR) + request_id, body)


if __name__ == "__main__":
    main()
