"""Test what is particular to reference/bootstrap.py.

What any bootstrap must do is tested over the wire by the kit; here are the rules that
this file makes for itself: how an event becomes a value and a value a result, what the
context knows, how a handler is found, how long it pauses, what it loads, where it runs.
"""
import contextlib
import http.client
import io
import json
import math
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import sys
import time
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
BOOTSTRAP = ROOT / "reference" / "bootstrap.py"
TEST_HANDLER = ROOT / "spec_tests" / "handlers" / "python" / "test_handler.py"
sys.path.insert(0, str(BOOTSTRAP.parent))

import bootstrap  # noqa: E402
from implementations import interpreters  # noqa: E402
import wire  # noqa: E402

LIMIT_S = 20.0
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"


# ---- a scripted platform ----

class Platform:
    """The runtime API of fg, answering what a test tells it to."""

    def __init__(self) -> None:
        self.listener = socket.socket()
        self.listener.settimeout(LIMIT_S)
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(16)
        self.sock: Optional[socket.socket] = None
        self.process: Optional["subprocess.Popen[bytes]"] = None

    def start(self, argv: List[str], **env: str) -> "subprocess.Popen[bytes]":
        """Start a bootstrap as a child of this platform."""
        port = self.listener.getsockname()[1]
        env = {"PATH": os.environ["PATH"], "RUNTIME_API_ADDR": f"127.0.0.1:{port}",
               "RUNTIME_HANDLER": "test_handler.handle", "RUNTIME_TIMEOUT": "3",
               "HOME": "/", "LANG": "C.UTF-8", **env}
        self.process = subprocess.Popen(argv, env=env, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE)
        return self.process

    def request(self) -> Tuple[str, bytes]:
        """Return (start line, body) of the next request, on any connection."""
        data = b""
        while not data:
            if self.sock is None:
                self.sock = self.listener.accept()[0]
                self.sock.settimeout(LIMIT_S)
            data = self.sock.recv(65536)
            if not data:
                self.hang_up()
        while not is_whole(data):
            data += self.sock_recv()
        head, _, body = data.partition(b"\r\n\r\n")
        return head.split(b"\r\n")[0].decode(), body

    def sock_recv(self) -> bytes:
        assert self.sock is not None
        return self.sock.recv(65536)

    def send(self, data: bytes) -> None:
        assert self.sock is not None
        self.sock.sendall(data)

    def hang_up(self) -> None:
        if self.sock is not None:
            self.sock.close()
        self.sock = None

    def event(self, body: bytes, request_id: str = "r1") -> Tuple[str, bytes]:
        """Answer a poll with an event and return the bootstrap's next request."""
        head = f"HTTP/1.1 200 OK\r\nX-CFF-Request-Id: {request_id}\r\n"
        self.send(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        return self.request()

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
        self.hang_up()
        self.listener.close()


def is_whole(data: bytes) -> bool:
    head, end, body = data.partition(b"\r\n\r\n")
    length = head.lower().partition(b"content-length:")[2].split(b"\r\n")[0]
    return bool(end) and len(body) >= int(length or b"0")


@pytest.fixture
def stub() -> Iterator[Platform]:
    found = Platform()
    yield found
    found.close()


@pytest.fixture
def package(tmp_path: pathlib.Path) -> pathlib.Path:
    """Return a code package: `bootstrap`, mode 755, and the test handler beside it."""
    program = tmp_path / "bootstrap"
    shutil.copy(str(BOOTSTRAP), str(program))
    program.chmod(0o755)
    shutil.copy(str(TEST_HANDLER), str(tmp_path))
    return tmp_path


PYTHONS = [path for version, path in interpreters().items() if version >= (3, 6)]


# ---- event and result ----

EVENTS: Dict[str, Tuple[bytes, Any]] = {
    "object": (b'{"a": [1, 2.5, null, true]}', {"a": [1, 2.5, None, True]}),
    "string": (b'"text"', "text"),
    "surrounded": (b" \n7\n", 7),
    "empty": (b"", ""),
    "text": ("zürich".encode(), "zürich"),
    "half-json": (b'{"a":', '{"a":'),
    "nan": (b"NaN", "NaN"),
    "infinity": (b"[-Infinity]", "[-Infinity]"),
    "deep": (b"[" * 100000, "[" * 100000),
    "utf-16": ('{"a": 1}'.encode("utf-16"), '{"a": 1}'.encode("utf-16")),
    "binary": (b"\xff\x00", b"\xff\x00"),
}


@pytest.mark.parametrize("name", EVENTS)
def test_event_rule(name: str) -> None:
    """An event is the JSON value, else the text, else the bytes."""
    event, value = EVENTS[name]
    found = bootstrap.decode_event(event)
    assert found == value and type(found) is type(value)


RESULTS: Dict[str, Tuple[Any, bytes]] = {
    "bytes": (b"\xff", b"\xff"),
    "bytearray": (bytearray(b"a"), b"a"),
    "text": ("zürich", "zürich".encode()),
    "none": (None, b""),
    "zero": (0, b"0"),
    "object": ({"ä": [1, None]}, '{"ä":[1,null]}'.encode()),
    "surrogate": (["\udc80"], b'["\\udc80"]'),
}


@pytest.mark.parametrize("name", RESULTS)
def test_result_rule(name: str) -> None:
    """A result is bytes as they are, UTF-8 text, nothing, or compact JSON."""
    result, body = RESULTS[name]
    assert bootstrap.encode_result(result) == body


@pytest.mark.parametrize("result", [math.nan, object(), {1, 2}, "\udc80"],
                         ids=["nan", "object", "set", "surrogate"])
def test_result_refused(result: Any) -> None:
    """What has no result fails the invocation; the bootstrap survives."""
    ok, body = bootstrap.invoke(lambda event, context: result, context_of("fg", {}))
    assert not ok and json.loads(body)["errorType"] in (
        "TypeError", "ValueError", "UnicodeEncodeError")


def fail(error: BaseException) -> Callable[[Any, Any], Any]:
    """Return a handler that raises that error."""
    def handler(event: Any, context: Any) -> Any:
        raise error
    return handler


def test_error_document() -> None:
    """An error is told by type, message and a trace that starts at the handler."""
    ok, body = bootstrap.invoke(fail(KeyError("größe")), context_of("fg", {}))
    document = json.loads(body)
    assert not ok and document["errorType"] == "KeyError"
    assert document["errorMessage"] == "'größe'"
    assert "in handler" in document["stackTrace"][0]


def test_error_exit() -> None:
    """SystemExit of a handler is not an error of the function but an exit."""
    with pytest.raises(SystemExit):
        bootstrap.invoke(fail(SystemExit(3)), context_of("fg", {}))


# ---- context ----

@pytest.mark.parametrize("name", ("stdout", "stderr"))
def test_output_without_line_feed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a handler has printed is in the log when it ends, half lines too."""
    log = io.BytesIO()
    monkeypatch.setattr(sys, name, io.TextIOWrapper(log, line_buffering=True))
    context = context_of("scf", {})
    assert bootstrap.invoke(lambda event, context: getattr(sys, name).write("part") and
                            None, context)[0]
    assert log.getvalue() == b"part"


def context_of(protocol: str, headers: Dict[str, str]) -> bootstrap.Context:
    return bootstrap.Context(protocol, headers, b"event", time.monotonic())


SCF = {"request_id": "i", "memory_limit_in_mb": "128", "time_limit_in_ms": "3000"}
FG = {"x-cff-request-id": "i", "x-cff-access-key": "old", "x-cff-invoke-type": "async",
      "x-cff-security-access-key": "ak", "x-cff-security-secret-key": "sk"}
FC = {"x-fc-request-id": "i", "x-fc-function-memory": "128",
      "x-fc-function-timeout": "3", "x-fc-function-name": "",
      "x-fc-access-key-id": "ak"}
VARIABLES = {
    "SCF_FUNCTIONNAME": "f", "TENCENTCLOUD_SECRETID": "ak", "RUNTIME_MEMORY": "128",
    "RUNTIME_TIMEOUT": "3", "RUNTIME_FUNC_NAME": "f", "FC_FUNCTION_NAME": "f",
}


@pytest.mark.parametrize("protocol, headers", [("scf", SCF), ("fg", FG), ("fc", FC)],
                         ids=["scf", "fg", "fc"])
def test_context(protocol: str, headers: Dict[str, str],
                 monkeypatch: pytest.MonkeyPatch) -> None:
    """The context says the same on each platform, wherever that puts it."""
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    context = context_of(protocol, headers)
    assert (context.request_id, context.function_name) == ("i", "f")
    assert (context.memory_mb, context.time_limit_ms) == (128, 3000)
    assert context.credentials["access_key_id"] == "ak"
    assert context.invoke_type == ("async" if protocol == "fg" else None)
    assert context.event_bytes == b"event" and context.headers is headers


def test_context_remaining() -> None:
    """The remaining time counts down to 0, from when the event arrived."""
    late = bootstrap.Context("scf", SCF, b"", time.monotonic() - 1)
    gone = bootstrap.Context("scf", SCF, b"", time.monotonic() - 9)
    left = late.remaining_ms()
    assert left is not None and 0 < left <= 2000
    assert gone.remaining_ms() == 0


def test_context_unknown() -> None:
    """What the platform does not say, or says wrongly, is None."""
    context = context_of("scf", {"time_limit_in_ms": "soon"})
    assert context.time_limit_ms is None and context.remaining_ms() is None
    assert context.memory_mb is None and context.request_id == ""


# ---- loading the handler ----

@pytest.fixture
def code(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Return a folder with some code; imports of it are forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    source = "def run(event, context):\n    return __name__\nvalue = 1\n"
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("unit_one.py", "deep/unit_two.py", "deep/er/unit-three.py", "this.py"):
        (tmp_path / name).write_text(source)
    (tmp_path / "unit_bad.py").write_text("import no_such_module_at_all\n")
    return tmp_path


@pytest.mark.parametrize("spec, name", [
    ("unit_one.run", "unit_one"), ("deep/unit_two.run", "deep.unit_two"),
    ("deep.unit_two.run", "deep.unit_two"), ("deep/er/unit-three.run", None),
], ids=["plain", "slash", "dot", "hyphen"])
def test_load(spec: str, name: Optional[str], code: pathlib.Path) -> None:
    """A handler is found by `file.function`, with folders after `/` or `.`."""
    module, handler = bootstrap.load_handler(spec, ["/nowhere", str(code)])
    assert handler(None, None) == (name or "deep.er.unit-three")


@pytest.mark.parametrize("spec, said", [
    ("unit_none.run", "there is no unit_none.py in"), ("unit_one.no", "does not exist"),
    ("unit_one.value", "is not callable"), ("unit_one", "is not file.function"),
    ("../unit_one.run", "is not file.function"), ("", "is not file.function"),
    ("unit_bad.run", "no_such_module_at_all"), ("json.run", "there is no json.py"),
    ("this.run", "another module"),
])
def test_load_refused(spec: str, said: str, code: pathlib.Path,
                      capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be loaded is told in one message."""
    sys.modules["this"] = sys.modules["json"]
    with pytest.raises(bootstrap.ConfigError, match=said) as caught:
        bootstrap.load_handler(spec, [str(code)])
    assert caught.value.status == 1


@pytest.mark.parametrize("env, status, said", [
    ({}, 2, "no platform started this"),
    ({"RUNTIME_API_ADDR": "here"}, 2, "not HOST and PORT"),
    ({"SCF_RUNTIME_API": "h", "SCF_RUNTIME_API_PORT": "0"}, 2, "not HOST and PORT"),
    ({"FC_SERVER_PORT": "http"}, 2, "is not a port"),
    ({"FC_SERVER_PORT": "9", "FC_FUNCTION_HANDLER": "no.no"}, 1, "there is no no.py"),
], ids=["nothing", "fg-address", "scf-port", "fc-port", "handler"])
def test_any_instance_init_failed(env: Dict[str, str], status: int, said: str,
                                  package: pathlib.Path) -> None:
    """A process that cannot work ends at once, with one line on stderr."""
    handlers = {"_HANDLER": "test_handler.handle",
                "RUNTIME_HANDLER": "test_handler.handle",
                "FC_FUNCTION_HANDLER": "test_handler.handle"}
    run = subprocess.run([sys.executable, str(package / "bootstrap")],
                         env={**handlers, **env}, stdout=subprocess.PIPE,
                         stderr=subprocess.PIPE, timeout=LIMIT_S)
    assert run.returncode == status and run.stdout == b""
    assert said in run.stderr.decode() and run.stderr.count(b"\n") == 1


# ---- the pull loop ----

def test_pauses(stub: Platform, package: pathlib.Path) -> None:
    """After polls without an event the pause doubles, from 50 ms."""
    stub.start([sys.executable, str(package / "bootstrap")])
    moments = []
    for _ in range(4):
        stub.request()
        moments.append(time.monotonic())
        stub.send(b"HTTP/1.1 204 No Content\r\n\r\n")
    gaps = [after - before for before, after in zip(moments, moments[1:])]
    assert gaps[0] >= 0.045 and gaps[1] >= 0.09 and gaps[2] >= 0.18


def test_pause_ends_on_signal(stub: Platform, package: pathlib.Path) -> None:
    """A platform that has gone away is waited for, until a signal comes."""
    process = stub.start([sys.executable, str(package / "bootstrap")])
    stub.request()
    stub.listener.close()
    stub.hang_up()
    assert process.stderr is not None
    process.stderr.readline()
    process.send_signal(signal.SIGINT)
    assert process.wait(LIMIT_S) == 0


def test_signal_after_event(stub: Platform, package: pathlib.Path) -> None:
    """An event that arrives together with SIGTERM is still answered."""
    process = stub.start([sys.executable, str(package / "bootstrap")])
    stub.request()
    process.send_signal(signal.SIGSTOP)
    stub.send(b"HTTP/1.1 200 OK\r\nX-Cff-Request-Id: r\r\n"
                  b"Content-Length: 2\r\n\r\nhi")
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    line, body = stub.request()
    assert line.split()[1].endswith("/response/r") and body == b"hi"
    stub.send(OK)
    assert process.wait(LIMIT_S) == 0


def test_line_feeds_in_event(stub: Platform, package: pathlib.Path) -> None:
    """Empty lines in an event that comes with its head are no malformed head."""
    stub.start([sys.executable, str(package / "bootstrap")])
    stub.request()
    assert stub.event(b"\n\n" * 9)[1] == b"\n\n" * 9


def test_forked_process_dies(stub: Platform, package: pathlib.Path) -> None:
    """A process that the handler forked dies of SIGTERM; the bootstrap goes on."""
    (package / "forks.py").write_text(
        "import os, signal, time\n"
        "def handle(event, context):\n"
        "    reader, writer = os.pipe()\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        # Python drops signals while it forks
        "        os.write(writer, signal.getsignal(signal.SIGTERM).name.encode())\n"
        "        time.sleep(60)\n"
        "    disposition = os.read(reader, 99).decode()\n"
        "    os.kill(child, signal.SIGTERM)\n"
        "    return [disposition, os.WTERMSIG(os.waitpid(child, 0)[1])]\n")
    stub.start([sys.executable, str(package / "bootstrap")],
               RUNTIME_HANDLER="forks.handle")
    stub.request()
    assert json.loads(stub.event(b"")[1]) == ["SIG_DFL", 15]
    stub.send(OK)
    assert stub.request()[0].startswith("GET ")


def test_error_without_log(stub: Platform, package: pathlib.Path) -> None:
    """A handler's failure is reported even when nobody reads the log."""
    process = stub.start([sys.executable, str(package / "bootstrap")])
    stub.request()
    assert process.stderr is not None
    process.stderr.close()
    start, body = stub.event(b'{"do":"raise","type":"T","message":"M"}')
    assert start.startswith("POST ") and json.loads(body)["errorType"] == "T"


# ---- the push server ----

WEB = """
def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/error":
        raise FileNotFoundError("no")
    if path == "/name":
        start_response("200 OK", [("X-Name", "\\u540d")])
        return []
    if path == "/text":
        start_response("200 OK", [])
        return (part for part in ["no bytes"])
    write = start_response("201 Created", [("X-Path", path), ("Connection", "close")])
    if path == "/stream":
        return (part for part in (b"one", b"", b"two"))
    if path == "/endless":
        return iter(lambda: b"x" * 65536, b"")
    if path == "/late":
        write(b"half")
        raise ValueError("no")
    return [environ["QUERY_STRING"].encode(), environ["wsgi.input"].read()]

def handle(event, context):
    if event == "exit":
        raise SystemExit(7)
    return context.request_id

def initialize(context):
    print("initialised")

def pre_stop(context):
    raise ValueError("never")

class Application:
    def __call__(self, environ, start_response):
        start_response("200 OK", [])
        return [environ["PATH_INFO"].encode("latin-1")]

only = Application()
"""


class Server:
    """bootstrap.py as fc runs it, with one connection to it."""

    def __init__(self, package: pathlib.Path, handler: str) -> None:
        (package / "web.py").write_text(WEB)
        port = wire.free_port()
        self.process = subprocess.Popen(
            [sys.executable, str(package / "bootstrap")], stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE, text=True,
            env={"FC_SERVER_PORT": str(port), "FC_FUNCTION_HANDLER": handler})
        self.connection = http.client.HTTPConnection("127.0.0.1", port, LIMIT_S)
        deadline_s = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline_s:
            with contextlib.suppress(ConnectionRefusedError):
                self.connection.connect()
                return
            time.sleep(0.002)

    def ask(self, method: str, path: str, body: bytes = b"",
            **fields: str) -> Tuple[int, Optional[str], bytes]:
        """Return (status, x-fc-status, body)."""
        names = {name.replace("_", "-"): value for name, value in fields.items()}
        self.connection.request(method, path, body or None, names)
        reply = self.connection.getresponse()
        return reply.status, reply.headers.get("X-Fc-Status"), reply.read()

    def close(self) -> None:
        self.connection.close()
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def server(package: pathlib.Path) -> Iterator[Server]:
    found = Server(package, "web.handle")
    yield found
    found.close()


@pytest.mark.parametrize("method, path, answer", [
    ("POST", "/invoke", (200, "200", b"id")),
    ("GET", "/a?b=1", (201, "200", b"b=1")),
    ("PUT", "/invoke", (201, "200", b"")),
    ("GET", "/stream", (201, "200", b"onetwo")),
    ("HEAD", "/stream", (201, "200", b"")),
    ("POST", "/initialize", (200, None, b"")),
    ("GET", "/pre-freeze", (200, None, b"")),
    ("GET", "/initialize", (200, None, b"")),
])
def test_push_routes(method: str, path: str, answer: Tuple[int, Optional[str], bytes],
                     server: Server) -> None:
    """Without a control path, method and path tell event, hook and HTTP apart."""
    for _ in range(2):
        assert server.ask(method, path, x_fc_request_id="id") == answer


def test_push_control_path(server: Server) -> None:
    """The control path decides, whatever the path of the caller is."""
    control = {"x_fc_control_path": "/http-invoke"}
    assert server.ask("POST", "/invoke", b"body", **control) == (201, "200", b"body")
    control = {"x_fc_control_path": "/invoke", "x_fc_request_id": "id"}
    assert server.ask("POST", "/other", b"body", **control) == (200, "200", b"id")


def test_push_head(server: Server) -> None:
    """HEAD is answered without a body whatever it asks for; the connection lasts."""
    address = server.connection.host, server.connection.port
    with socket.create_connection(address, 10) as sock, sock.makefile("rb") as file:
        sock.sendall(b"HEAD / HTTP/1.1\r\nX-Fc-Control-Path: /invoke\r\n"
                     b"X-Fc-Request-Id: id\r\n\r\n"
                     b"GET /a?b=1 HTTP/1.1\r\nConnection: close\r\n\r\n")
        first, second, body = file.read().split(b"\r\n\r\n")
    assert b"Content-Length: 2" in first and second.startswith(b"HTTP/1.1 201")
    assert body == b"b=1"


def test_push_failures(server: Server) -> None:
    """A failed hook is 404; a failed application is 500 and says so to the platform."""
    assert server.ask("GET", "/pre-stop")[0] == 404
    status, verdict, body = server.ask("GET", "/error")
    assert (status, verdict) == (500, "404")
    assert json.loads(body)["errorType"] == "FileNotFoundError"


@pytest.mark.parametrize("path, error", [("/name", "UnicodeEncodeError"),
                                         ("/text", "TypeError")])
def test_push_failures__text(path: str, error: str, server: Server) -> None:
    """So does one whose fields are not Latin-1 or whose body is not bytes."""
    status, verdict, body = server.ask("GET", path)
    assert (status, verdict) == (500, "404")
    assert json.loads(body)["errorType"] == error


def test_push_cut_answer(server: Server) -> None:
    """An application that fails after it began cuts its answer short."""
    with pytest.raises(http.client.IncompleteRead):
        server.ask("GET", "/late")


def test_push_caller_gone(server: Server) -> None:
    """A caller who leaves a stream is no fault of the application: one line says so."""
    server.connection.request("GET", "/endless")
    server.connection.getresponse().close()
    server.connection.close()
    assert server.process.stderr is not None
    assert server.process.stderr.readline() == (
        "bootstrap: the caller of /endless has gone\n")
    assert server.ask("GET", "/again")[0] == 201


def test_push_exit(server: Server) -> None:
    """SystemExit in a handler's thread ends the process with its status."""
    server.connection.request("POST", "/invoke", b"exit")
    assert server.process.wait(LIMIT_S) == 7


FULL = """
import threading

start = threading.Thread.start

def fail_once(thread):
    threading.Thread.start = start
    raise RuntimeError("can't start new thread")

def handle(event, context):
    threading.Thread.start = fail_once
    return "full"
"""


def test_push_too_many_threads(package: pathlib.Path) -> None:
    """A connection that can get no thread is closed; the others are served on."""
    (package / "full.py").write_text(FULL)
    server = Server(package, "full.handle")
    assert server.ask("POST", "/invoke", b"x") == (200, "200", b"full")
    address = server.connection.host, server.connection.port
    with socket.create_connection(address, LIMIT_S) as sock:
        assert sock.recv(1) == b""
    assert server.ask("POST", "/invoke", b"x") == (200, "200", b"full")
    server.process.terminate()
    assert server.process.wait(LIMIT_S) == 0
    server.close()


def test_push_wsgi_handler(package: pathlib.Path) -> None:
    """A handler that is a WSGI application gets events as requests, too."""
    server = Server(package, "web.only")
    assert server.ask("GET", "/%C3%A9")[2] == b"/\xc3\xa9"
    assert server.ask("POST", "/invoke", b"event") == (200, "200", b"/invoke")
    assert server.ask("POST", "/initialize")[0] == 200
    server.close()


def test_push_no_application(package: pathlib.Path) -> None:
    """A handler for events alone refuses an HTTP invocation as an error."""
    (package / "events.py").write_text("def handle(event, context):\n    return event\n")
    server = Server(package, "events.handle")
    status, verdict, body = server.ask("GET", "/")
    assert (status, verdict) == (404, "404")
    assert json.loads(body)["errorType"] == "NotAnHttpHandler"
    server.close()


# ---- what it costs and where it runs ----

LIST = "import sys; print(' '.join(sys.modules))"
ALLOWED = "import json, os, select, signal, socket, sys, time; "


def modules_of(python: str, code: str) -> List[str]:
    run = subprocess.check_output([python, "-c", code + LIST])
    return run.decode().split()


@pytest.mark.parametrize("python", PYTHONS)
def test_modules_at_first_poll(python: str, stub: Platform,
                               package: pathlib.Path) -> None:
    """No file is loaded before the first poll but of seven modules and their needs."""
    (package / "modules.py").write_text(
        "import sys\n"
        "def handle(event, context):\n"
        "    return ' '.join(set(sys.modules) - set(sys.builtin_module_names))\n")
    stub.start([python, str(package / "bootstrap")],
               RUNTIME_HANDLER="modules.handle")
    stub.request()
    seen = stub.event(b"")[1].decode().split()
    assert set(seen) - set(modules_of(python, ALLOWED)) == {"modules"}


def test_imports_at_the_top() -> None:
    """The file imports seven modules at its top and no other."""
    lines = BOOTSTRAP.read_text(encoding="utf-8").splitlines()
    found = [line.split()[1] for line in lines if line.startswith(("import ", "from "))]
    assert found == ["json", "os", "select", "signal", "socket", "sys", "time"]


@pytest.mark.parametrize("python", PYTHONS)
def test_interpreter(python: str, stub: Platform, package: pathlib.Path) -> None:
    """Alone, without .py, executed as `bootstrap`, it works on each interpreter."""
    program = package / "bootstrap"
    lines = program.read_text(encoding="utf-8").splitlines(True)
    assert lines[0] == "#!/usr/bin/env python3\n"
    program.write_text("".join([f"#!{python}\n"] + lines[1:]), encoding="utf-8")
    process = stub.start([str(program)])
    assert stub.request()[0] == "GET /v1/runtime/invocation/request HTTP/1.1"
    assert stub.event(b'{"do":"echo","text":"hi"}')[1] == b"hi"
    stub.send(OK)
    stub.request()
    failed = json.loads(stub.event(b'{"do":"raise","type":"T","message":"M"}')[1])
    assert (failed["errorType"], failed["errorMessage"]) == ("T", "M")
    stub.send(OK)
    stub.request()
    process.terminate()
    assert process.wait(LIMIT_S) == 0
