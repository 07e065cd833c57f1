#!/usr/bin/env python3
# fc_bootstrap.py: a custom runtime for Alibaba Function Compute, complete here (MIT).
# CPython 3.6 or later, standard library only. SPEC.md has the rules that are cited.
"""Run a Python handler on Alibaba Function Compute.

Copy this file into the function's package as `bootstrap` (mode 755), beside a handler,
say `index.py` with `def handler(event, context)`:

    python3 emulator.py fc ./package --event '{"key": "value"}'
    FC_SERVER_PORT=9000 FC_FUNCTION_HANDLER=index.handler ./package/bootstrap

Handler: `file.function` or `folder/file.function`, also async, in the code folder, the
working one or that of this file. Event: UTF-8 that is JSON (no NaN) arrives as value,
other UTF-8 as str, all else as bytes; `context.event_bytes` has it untouched. A handler
that says `json.loads(event)`, as with FC's own Python runtime, gets bytes, as there.
Result: bytes go out as they are, str as UTF-8, None as nothing, all else as JSON.
An exception fails the invocation; SystemExit and KeyboardInterrupt end the process.

Each connection has a thread, so handlers run concurrently. HTTP invocations go to the
handler if its parameters are named `environ, start_response` (and so do events, then),
else to the WSGI application that its module calls `application`. The module's functions
`initialize(context)`, `pre_freeze(context)` and `pre_stop(context)` are the hooks.
It does not: limit time or memory, install packages, speak TLS.
"""
import os
import sys

# The package may have a select.py or an email.py: not meant for us, so that its folders
# have to wait; but meant for the handler, which must not find ours instead.
CODE_FOLDER = os.environ.get("FC_FUNC_CODE_PATH") or "."
FOLDERS = [os.path.realpath(one) for one in (CODE_FOLDER, ".", __file__ + "/..")]
SEARCHED, LOADED = sys.path[:], set(sys.modules)
sys.path[:] = [one for one in SEARCHED if os.path.realpath(one) not in FOLDERS]
OWN = {entry.partition(".")[0] for folder in FOLDERS if os.path.isdir(folder)
       for entry in os.listdir(folder) if entry.endswith((".py", ".so"))
       or os.path.exists(os.path.join(folder, entry, "__init__.py"))}
OWN = {one for one in OWN if any(at.find_spec(one, None) for at in sys.meta_path)}
import io
import json
import re
import select
import signal
import socket
import socketserver
import threading
from http.server import BaseHTTPRequestHandler
from time import monotonic, sleep
from urllib.parse import unquote_to_bytes
from wsgiref.handlers import SimpleHandler

ASYNCIO = OWN and __import__("asyncio")  # else when needed: 40 ms
if ASYNCIO:
    ASYNCIO.new_event_loop().close()  # which imports what it lacks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, Optional, Tuple

__version__, SPEC_VERSION = "0.1.0", "0.1"
__all__ = ["Context", "main"]

LINE_MAX_BYTES = 65536  # of a head, which has 8 KB in the cloud
DECODER = json.JSONDecoder(parse_constant=int)  # int() refuses NaN, as RFC 8259 does
ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))

# ---- the cloud ----

ENV = dict(os.environ)
# [fc.start.port] The first is in no document but in every tool.
PORT = ENV.get("FC_SERVER_PORT") or ENV.get("FC_CUSTOM_LISTEN_PORT") or "9000"
HANDLER = ENV.get("FC_FUNCTION_HANDLER") or "index.handler"
CALLS = ("POST /invoke", "POST /initialize", "GET /pre-freeze", "GET /pre-stop")
# The vendor's pages differ in which of the two counts, so both say the same.
# [fc.invoke.status] [fc.invoke.success-field]
ANSWERS = {True: ("200 OK", "x-fc-status: 200\r\n"), False: (
    "404 Not Found", "Content-Type: application/json\r\nx-fc-status: 404\r\n")}


class Members(dict):  # type: ignore[type-arg]
    """A dict whose values are attributes, too, as in FC's own Python runtime."""
    __getattr__ = dict.get


class Context:
    """What FC says about one invocation; None where it says nothing."""
    protocol, invoke_type = "fc", None

    def __init__(self, headers: "Dict[str, str]", event: bytes) -> None:
        self.headers = headers  # by lower-case name
        self.event_bytes = event  # [any.event.opaque]
        self.received_s = monotonic()
        self.request_id = headers.get("x-fc-request-id", "")
        self.function_name = self.find("function-name", "FC_FUNCTION_NAME")
        self.function_version = self.find("version-id", "FC_FUNCTION_VERSION")
        self.region = self.find("region", "FC_REGION")
        self.account_id = self.find("account-id", "FC_ACCOUNT_ID")
        memory_mb = self.find("function-memory", "FC_FUNCTION_MEMORY_SIZE")
        time_limit_s = int(self.find("function-timeout", "FC_TIMEOUT") or 0) or None
        self.memory_mb = int(memory_mb or 0) or None
        self.time_limit_ms = time_limit_s and time_limit_s * 1000
        self.credentials = Members({
            name: self.find(name.replace("_", "-"), "ALIBABA_CLOUD_" + name.upper())
            for name in ("access_key_id", "access_key_secret", "security_token")})
        self.function = Members(name=self.function_name, handler=HANDLER,
                                memory=self.memory_mb, timeout=time_limit_s)

    def find(self, field: str, variable: str) -> "Optional[str]":
        # FC sends what it does not know as an empty field. [fc.headers.tolerant]
        return self.headers.get("x-fc-" + field) or ENV.get(variable) or None

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


# ---- the handler ----

class Handler:
    """The function that HANDLER names, and its module."""

    def __init__(self) -> None:
        self.event_loop = None  # type: Any  # if functions are async
        name, _, function = HANDLER.replace("/", ".").rpartition(".")
        for loaded in set(sys.modules) - LOADED:
            if loaded.partition(".")[0] in OWN:
                del sys.modules[loaded]
        sys.path[:] = FOLDERS + SEARCHED
        try:
            __import__(name)
            self.module = sys.modules[name]
            self.function = getattr(self.module, function)
            assert callable(self.function), "it is not callable"
        except Exception as error:  # [any.instance.init-failed]
            describe_error(error)
            sys.exit(f"bootstrap: no handler '{HANDLER}' in {FOLDERS}: {error!r}")
        self.wants_bytes = wants_bytes(self.function)
        self.application = self.function
        if not takes_environ(self.function):
            self.application = getattr(self.module, "application", None)

    def run(self, function: "Callable[..., Any]", *arguments: "Any"
            ) -> "Tuple[bool, bytes]":
        """Return (whether it succeeded, result or error document)."""
        try:
            result = function(*arguments)
            if hasattr(result, "__await__"):
                result = self.wait_for(result)
            return True, encode_result(result)
        except Exception as error:  # [any.error.survive]
            return False, describe_error(error)

    def wait_for(self, coroutine: "Any") -> "Any":
        asyncio = ASYNCIO or __import__("asyncio")
        loop = self.event_loop
        if loop is None:  # for all, as clients stay with theirs; two are no harm
            loop = self.event_loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, daemon=True).start()
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result()


def wants_bytes(function: "Callable[..., Any]") -> bool:
    """Tell whether a handler says json.loads(event), and looks at no event's type."""
    code = getattr(function, "__code__", None)  # type: Any
    names = code.co_names if code and os.path.exists(code.co_filename) else ()
    if "loads" not in names or "isinstance" in names:
        return False
    with open(code.co_filename, encoding="latin-1") as file:
        call = r"\bloads\(\s*%s\s*[,)]" % "".join(code.co_varnames[:1])
        return bool(re.search(call, file.read()))


def takes_environ(function: "Callable[..., Any]") -> bool:
    """Tell whether a handler is a WSGI application, by the names of its parameters."""
    call = function if hasattr(function, "__code__") else type(function).__call__
    code = getattr(call, "__code__", None)
    names = code.co_varnames[:code.co_argcount] if code else ()
    return tuple(names[-2:]) == ("environ", "start_response")


# ---- the server ----

class Server(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """A thread for each connection, which is kept while it lasts."""
    allow_reuse_address = True
    request_queue_size = 1024

    def __init__(self, port: int, handler: Handler) -> None:
        self.handler = handler
        self.threads = {}  # type: Dict[Any, threading.Thread]  # by connection
        self.fatal = None  # type: Optional[BaseException]
        self.is_stopping, self.process_id = False, os.getpid()
        self.pipe, self.wake_fd = os.pipe()
        os.set_blocking(self.wake_fd, False)
        super().__init__(("0.0.0.0", port), Request)  # [fc.start.port]
        # The interpreter writes, so that a signal just before select() is noticed, too.
        signal.set_wakeup_fd(self.wake_fd)
        for number in (signal.SIGTERM, signal.SIGINT):  # [any.stop.bootstrap]
            signal.signal(number, self.on_signal)

    def on_signal(self, number: int, frame: "Any") -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one kills
        if os.getpid() != self.process_id:  # so does the first what the handler forked
            os.kill(os.getpid(), number)
        self.is_stopping = True

    def run(self) -> None:
        """Serve until a signal comes and what has arrived is answered."""
        while not self.is_stopping and self.fatal is None:
            if self.fileno() in select.select([self.pipe, self.fileno()], [], [])[0]:
                try:
                    self.process_request(*self.get_request())
                except (OSError, RuntimeError):  # no file or thread is left just now
                    sleep(0.05)
            else:
                os.read(self.pipe, 4096)
        if self.fatal is not None:
            raise self.fatal  # exit() in a handler: as in a program without threads
        for connection, thread in self.threads.items():
            try:
                connection.shutdown(socket.SHUT_RD)  # idle ones end by that
            except OSError:
                pass
            thread.join()

    def process_request(self, request: "Any", client_address: "Any") -> None:
        # A thread each, also for one that only waits. [fc.concurrency.bootstrap]
        thread = threading.Thread(target=self.process_request_thread, daemon=True,
                                  args=(request, client_address))
        thread.start()
        self.threads = {one: its for one, its in self.threads.items() if its.is_alive()}
        self.threads[request] = thread


class Request(BaseHTTPRequestHandler):
    """One request of a connection after another. The inherited parser is slower."""
    disable_nagle_algorithm = True
    server = None  # type: Any

    def handle_one_request(self) -> None:
        self.command, self.close_connection = "", True
        try:
            self.read_request()
            self.dispatch()
        except ValueError as error:
            self.answer("400 Bad Request", "", f"{error}\n".encode())
        except OSError:  # gone, or a probe that sent nothing
            self.close_connection = True  # [fc.start.silent-connection]
        except BaseException as error:  # exit() in a handler must end the process
            self.server.fatal, self.close_connection = error, True
            os.write(self.server.wake_fd, b"\0")

    def read_request(self) -> None:
        """Raises ValueError if it is none; no time limit. [fc.connection.keep-alive]"""
        words = self.read_line().split(" ")
        if len(words) != 3 or words[2] not in ("HTTP/1.1", "HTTP/1.0"):
            raise ValueError("not an HTTP/1 request line")
        self.command, self.target, self.request_version = words
        self.path, _, self.query = self.target.partition("?")
        headers = {}  # type: Dict[str, str]
        for line in iter(self.read_line, ""):
            name, colon, value = line.partition(":")
            if not colon or not name or name.split() != [name]:
                raise ValueError("malformed HTTP header field")
            name, value = name.lower(), value.strip()
            if name in headers:
                value = headers[name] + ("; " if name == "cookie" else ", ") + value
            headers[name] = value  # [any.http.header-case]
        if "expect" in headers:
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")  # or curl waits 1 s
        self.fields = headers
        self.body = self.read_body(headers)
        self.close_connection = (self.request_version != "HTTP/1.1"
                                 or "close" in headers.get("connection", "").lower())

    def read_line(self) -> str:
        line = self.rfile.readline(LINE_MAX_BYTES)
        if line[-1:] != b"\n":
            raise ConnectionError("the request broke off")
        return line.decode("latin-1").rstrip("\r\n")

    def read_body(self, headers: "Dict[str, str]") -> bytes:
        length, coding = headers.get("content-length"), headers.get("transfer-encoding")
        if coding is None:
            body = self.rfile.read(int(length or 0))
            if len(body) < int(length or 0):
                raise ConnectionError("the request broke off")
            return body
        if length is not None or coding.lower() != "chunked":
            raise ValueError("the length of the body is ambiguous")
        parts, size = [], 1
        while size:
            size = int(self.read_line().partition(";")[0], 16)
            parts.append(self.rfile.read(size))
            while self.read_line():  # the end of the chunk, or the trailer
                pass
        return b"".join(parts)  # [any.http.chunked-event]

    def answer(self, status: str, fields: str, body: bytes) -> None:
        log()  # what was printed is out before the result
        if self.close_connection:
            fields += "Connection: close\r\n"
        head = f"HTTP/1.1 {status}\r\n{fields}Content-Length: {len(body)}\r\n\r\n"
        content = b"" if self.command == "HEAD" else body
        self.wfile.write(head.encode("latin-1") + content)

    def dispatch(self) -> None:
        handler = self.server.handler  # type: Handler
        context = Context(self.fields, self.body)
        kind = self.fields.get("x-fc-control-path")  # [fc.invoke.kind]
        if not kind and f"{self.command} {self.path}" in CALLS:
            kind = self.path
        if kind in ("/initialize", "/pre-freeze", "/pre-stop"):  # [fc.hook.answer]
            hook = getattr(handler.module, kind[1:].replace("-", "_"), None)
            ok, body = handler.run(hook, context) if hook else (True, b"")
            self.answer(ANSWERS[ok][0], "", body)
        elif kind == "/invoke" and handler.application is not handler.function:
            event = self.body if handler.wants_bytes else decode_event(self.body)
            ok, body = handler.run(handler.function, event, context)
            self.answer(*ANSWERS[ok], body)
        elif handler.application and kind in (None, "", "/invoke", "/http-invoke"):
            WsgiCall(self).run(handler.application)  # [fc.http.bootstrap]
        else:  # [fc.invoke.unknown]
            self.answer(*ANSWERS[False], encode_result({
                "errorType": "NotAnHttpHandler",
                "errorMessage": "no WSGI application: the handler takes events only"}))


# ---- HTTP invocations: WSGI ----

class WsgiCall(SimpleHandler):
    """One call of a WSGI application (PEP 3333), answered while it produces."""
    os_environ = {}  # type: Dict[str, str]
    environ = status = headers = result = bytes_sent = None  # type: Any

    def __init__(self, request: Request) -> None:
        super().__init__(io.BytesIO(request.body), io.BytesIO(), sys.stderr, {})
        self.request = request
        self.has_begun = self.is_lost = self.is_chunked = False

    def add_cgi_vars(self) -> None:
        request, fields = self.request, self.request.fields
        host, _, port = fields.get("host", "").rpartition(":")
        self.environ.update({
            "REQUEST_METHOD": request.command, "REQUEST_URI": request.target,
            "PATH_INFO": unquote_to_bytes(request.path).decode("latin-1"),
            "SCRIPT_NAME": "", "QUERY_STRING": request.query,
            "SERVER_NAME": host or "localhost", "SERVER_PORT": port or PORT,
            "SERVER_PROTOCOL": request.request_version,
            "REMOTE_ADDR": fields.get("x-fc-client-ip") or request.client_address[0],
            "CONTENT_TYPE": fields.get("content-type", ""),
            "CONTENT_LENGTH": str(len(request.body)),
            "wsgi.input_terminated": True})
        for name, value in fields.items():
            # A caller's field with underscores could pass for one of the platform's.
            if "_" not in name and name not in (
                    "content-type", "content-length", "transfer-encoding"):
                self.environ["HTTP_" + name.upper().replace("-", "_")] = value

    def start_response(self, status: str, headers: "Any", exc_info: "Any" = None
                       ) -> "Any":
        own = [field for field in headers if field[0].lower() not in (
            "connection", "keep-alive", "transfer-encoding", "upgrade")]
        if not any(name.lower() == "x-fc-status" for name, _ in own):
            own.append(("x-fc-status", "200"))
        text = status + "".join(name + value for name, value in own)
        if any(mark in text for mark in "\r\n\0"):
            raise ValueError("CR, LF or NUL in a header field")
        text.encode("latin-1")  # must fail now or cut the answer
        return super().start_response(status, own, exc_info)

    def finish_response(self) -> None:
        if isinstance(self.result, (list, tuple)):
            self.result = [b"".join(self.result)]  # one block has a length
        super().finish_response()

    def send_headers(self) -> None:
        """Leave the head for the first write, so that both go out in one piece."""
        log()  # what was printed is out before the result
        may_have_body = self.status[:3] not in ("204", "304")
        self.has_body = may_have_body and self.request.command != "HEAD"
        if may_have_body and "Content-Length" not in self.headers:
            self.set_content_length()  # if there is only one block
        if self.has_body and "Content-Length" not in self.headers:
            self.is_chunked = self.request.request_version == "HTTP/1.1"
            self.request.close_connection |= not self.is_chunked
        if self.is_chunked:
            self.headers["Transfer-Encoding"] = "chunked"
        self.head = f"HTTP/1.1 {self.status}\r\n{self.headers}".encode("latin-1")
        self.headers_sent = True

    def _write(self, data: bytes) -> None:
        if not self.has_body:
            data = b""
        elif self.is_chunked and data:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        data, self.head, self.has_begun = self.head + data, b"", True
        try:
            self.request.wfile.write(data)
        except OSError:
            log(f"bootstrap: the caller of {self.request.path} has gone\n")
            self.is_lost = self.request.close_connection = True
            raise

    def finish_content(self) -> None:
        super().finish_content()
        self._write(b"")  # the head, if the application gave nothing
        if self.is_chunked:
            self.request.wfile.write(b"0\r\n\r\n")
        length = self.headers["Content-Length"]
        if self.has_body and length and int(length) != self.bytes_sent:
            raise RuntimeError("the body is not as long as its Content-Length")

    def handle_error(self) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, Exception):
            raise  # exit(), say
        if self.is_lost:
            return  # which is no fault of the application
        body = describe_error(error)
        if self.has_begun:
            self.request.close_connection = True  # the cut answer has to tell
        else:
            self.request.answer("500 Internal Server Error", ANSWERS[False][1], body)


# ---- start ----

def main() -> None:
    """Serve until a signal comes."""
    # Each printed line is in the log at once, before a kill, and any text fits there.
    sys.stdout = sys.stdout and open(1, "w", 1, "utf-8", "replace", None, False)
    sys.stderr = sys.stderr and open(2, "w", 1, "utf-8", "replace", None, False)
    try:
        server = Server(int(PORT), Handler())
    except (OSError, OverflowError, ValueError) as error:
        sys.exit(f"bootstrap: cannot listen on port '{PORT}': {error}")
    server.run()


if __name__ == "__main__":
    main()
