# test_bootstrap_files.py: what the bootstraps of reference/ promise beyond SPEC.md (MIT).
"""Start each in a package of its own and look from outside: events, results, context,
how a handler is found, the log, WSGI.
"""

import ast
import contextlib
import json
import os
import pathlib
import re
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
from typing import Dict, Iterator, Optional, Tuple

import pytest
import wire

ROOT = pathlib.Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "reference"
HANDLERS = ROOT / "spec_tests" / "handlers" / "python" / "own_handlers.py"
LIMIT_S = 20.0
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"

ENVS: Dict[str, Dict[str, str]] = {
    "scf": {"SCF_FUNCTIONNAME": "f", "TENCENTCLOUD_SECRETID": "ak"}, "fc": {},
    "fg": {"RUNTIME_FUNC_NAME": "f", "RUNTIME_MEMORY": "128", "RUNTIME_TIMEOUT": "3",
           "MINE": "u"}}
FIELDS = {
    "scf": "Request_Id: i\r\nMemory_Limit_In_Mb: 128\r\nTime_Limit_In_Ms: 3000\r\n",
    "fg": "X-CFF-Request-Id: i\r\nX-Cff-Access-Key: old\r\nX-CFF-Invoke-Type: async\r\n"
          "X-Cff-Security-Access-Key: ak\r\n",
    "fc": "X-Fc-Request-Id: i\r\nX-Fc-Function-Memory: 128\r\nX-Fc-Function-Name: f\r\n"
          "X-Fc-Function-Timeout: 3\r\nX-Fc-Access-Key-Id: ak\r\n"}
VARIABLE = {"scf": "_HANDLER", "fg": "RUNTIME_HANDLER", "fc": "FC_FUNCTION_HANDLER"}


class Function:
    """A bootstrap beside a handler, whose platform is the test."""

    def __init__(self, protocol: str, handler: str, folder: pathlib.Path,
                 **env: str) -> None:
        self.protocol = protocol
        (folder / "bootstrap").write_bytes(
            (REFERENCE / f"{protocol}_bootstrap.py").read_bytes())
        (folder / "mine.py").write_bytes(HANDLERS.read_bytes())
        self.listener = socket.socket()
        self.listener.settimeout(LIMIT_S)
        self.listener.bind(("127.0.0.1", 0))
        self.listener.listen(16)
        port = str(self.listener.getsockname()[1])
        self.port = wire.free_port()
        self.env = {
            "scf": {"SCF_RUNTIME_API": "127.0.0.1", "SCF_RUNTIME_API_PORT": port},
            "fg": {"RUNTIME_API_ADDR": "127.0.0.1:" + port},
            "fc": {"FC_SERVER_PORT": str(self.port)}}[protocol]
        self.process = subprocess.Popen(
            [sys.executable, "-S", str(folder / "bootstrap")], stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, cwd=folder,
            env={"PATH": os.environ["PATH"], VARIABLE[protocol]: handler,
                 **ENVS[protocol], **self.env, **env})
        self.channel: Optional[wire.Channel] = None

    def __enter__(self) -> "Function":
        return self

    def __exit__(self, *_: object) -> None:
        self.printed()

    def connect(self) -> wire.Channel:
        """Return the connection between the two."""
        for _ in wire.looks(LIMIT_S) if self.channel is None else ():
            with contextlib.suppress(ConnectionRefusedError):
                sock = (socket.create_connection(("127.0.0.1", self.port), LIMIT_S)
                        if self.protocol == "fc" else self.listener.accept()[0])
                self.channel = wire.Channel(sock, lambda who, data: None, "test")
                break
        assert self.channel is not None
        return self.channel

    def send(self, event: bytes) -> None:
        """Send an event, which a pull bootstrap has to ask for."""
        while self.protocol != "fc" and self.read().start.startswith("POST"):
            self.connect().send(OK)
        start = "POST /invoke HTTP/1.1" if self.protocol == "fc" else "HTTP/1.1 200 OK"
        head = f"{start}\r\n{FIELDS[self.protocol]}Content-Length: {len(event)}\r\n\r\n"
        self.connect().send(head.encode() + event)

    def read(self, to: str = "POST") -> wire.Message:
        """Return what comes next from the bootstrap."""
        return self.connect().read(LIMIT_S, to if self.protocol == "fc" else "")

    def invoke(self, event: bytes) -> Tuple[bool, bytes]:
        """Return (whether the handler succeeded, body)."""
        self.send(event)
        message = self.read()
        if self.protocol != "fc":
            self.connect().send(OK)
        return "/error" not in message.start and " 404 " not in message.start, message.body

    def ask(self, request: str, *fields: Tuple[str, str]) -> wire.Message:
        """Return the answer of fc to a request."""
        method, path = request.split(" ")
        self.connect().send(wire.request_bytes(method, path, fields, b""))
        return self.read(method)

    def printed(self) -> Tuple[bytes, bytes]:
        """Kill the bootstrap; return what it has printed."""
        self.process.kill()
        printed = self.process.communicate()
        self.listener.close()
        if self.channel is not None:
            self.channel.close()
        return printed


@pytest.fixture(params=["scf", "fg", "fc"])
def protocol(request: pytest.FixtureRequest) -> str:
    """Each protocol in turn."""
    return str(request.param)


def test_first_use(protocol: str, tmp_path: pathlib.Path) -> None:
    """The emulator runs a copy beside the handler that the head of the file shows, with
    nothing configured."""
    program = REFERENCE / f"{protocol}_bootstrap.py"
    shutil.copy(program, tmp_path / "bootstrap")
    (tmp_path / "bootstrap").chmod(0o755)
    shown = re.findall(r"`index.py` with `(.*?)`:", program.read_text(encoding="utf-8"))
    (tmp_path / "index.py").write_text(shown[0] + ":\n    return event\n")
    port = ["--port", "0"] if protocol == "fc" else []
    done = subprocess.run([sys.executable, str(REFERENCE / "emulator.py"), protocol,
                           str(tmp_path), *port, "--event", '{"key": "value"}'],
                          stdout=subprocess.PIPE, timeout=LIMIT_S)
    assert json.loads(done.stdout) == {"key": "value"}


EVENTS: Dict[bytes, str] = {
    b'{"a": [1, null]}': "dict \"{'a': [1, None]}\"", b'"text"': "str 'text'",
    b" \n7\n": "int '7'", b"": "str ''", b'{"a":': "str '{\"a\":'", b"NaN": "str 'NaN'",
    b"[-Infinity]": "str '[-Infinity]'", b"[" * 100000: "str %r" % ("[" * 20),
    b"\xff\x00": "bytes \"b'\\\\xff\\\\x00'\""}


def test_event(protocol: str, tmp_path: pathlib.Path) -> None:
    """An event is the JSON value, else the text, else the bytes."""
    with Function(protocol, "mine.show", tmp_path) as function:
        assert {event: function.invoke(event)[1].decode() for event in EVENTS} == EVENTS


RESULTS = {"bytes": b"\xff", "bytearray": b"a", "text": "zürich".encode(), "none": b"",
           "zero": b"0", "object": '{"ä":[1,null]}'.encode(), "surrogate": b'["\\udc80"]'}
REFUSED = {"nan": "ValueError", "set": "TypeError", "half": "UnicodeEncodeError"}


def test_result(protocol: str, tmp_path: pathlib.Path) -> None:
    """A result is bytes as they are, UTF-8, nothing or JSON; all else fails."""
    with Function(protocol, "mine.give", tmp_path) as function:
        given = {name: function.invoke(name.encode()) for name in {**RESULTS, **REFUSED}}
    assert {name: given[name] for name in RESULTS} == {
        name: (True, body) for name, body in RESULTS.items()}
    assert {name: json.loads(given[name][1])["errorType"] for name in REFUSED} == REFUSED


def test_async_handler(protocol: str, tmp_path: pathlib.Path) -> None:
    """A handler may be a coroutine function; SystemExit ends the process."""
    with Function(protocol, "mine.wait", tmp_path) as function:
        assert [function.invoke(b"1"), function.invoke(b"2")] == [(True, b"1"), (True, b"2")]
    with Function(protocol, "mine.leave", tmp_path) as function:
        function.send(b"")
        assert function.process.wait(LIMIT_S) == 7


def test_context(protocol: str, tmp_path: pathlib.Path) -> None:
    """The context says the same on each platform, wherever that puts it; a handler of
    the vendor's own Python runtime finds what it asks for."""
    with Function(protocol, "mine.know", tmp_path) as function:
        known = json.loads(function.invoke(b"")[1])
    kind = "async" if protocol == "fg" else None
    assert known == ["i", "f", 128, 3000, "ak", protocol, kind, True]
    vendor = {"scf": ["i", 128, "f"], "fg": ["i", "f", 128, "ak", "u"],
              "fc": [{"a": 1}, "ak", "f", [1]]}[protocol]
    with Function(protocol, "mine." + protocol, tmp_path) as function:
        assert json.loads(function.invoke(b'{"a": 1}')[1]) == vendor


def test_event_of_the_vendor(tmp_path: pathlib.Path) -> None:
    """On fc a handler that looks at the type of its event gets the value, though it says
    json.loads(event) where that would be text; whoever only says it gets bytes."""
    with Function("fc", "mine.either", tmp_path) as function:
        assert function.invoke(b'{"a": 1}') == (True, b"dict 1")
        assert function.invoke(b'"{\\"a\\": 2}"') == (True, b"str 2")
    with Function("fc", "mine.bytes_alone", tmp_path) as function:
        assert function.invoke(b'"x"') == (True, b'bytes x')


@pytest.mark.parametrize("protocol,handler", [  # scf and fg find it alike
    ("scf", "mine.value"), ("fg", "nowhere.show"), ("scf", "mine"), ("fg", "../mine.show"),
    *(("fc", one) for one in ("mine.value", "nowhere.show", "mine", "../mine.show"))])
def test_any_instance_init_failed(protocol: str, handler: str,
                                  tmp_path: pathlib.Path) -> None:
    """A handler that cannot be loaded is told, and ends the process."""
    with Function(protocol, handler, tmp_path) as function:
        assert function.process.wait(LIMIT_S) == 1
        said = function.printed()[1].decode()
    assert said.splitlines()[-1].startswith(f"bootstrap: no handler '{handler}' ")


OWN_NAMES = ("asyncio", "email", "html", "http", "json", "linecache", "math", "queue", "select",
             "selectors", "signal", "socket", "threading", "token", "traceback")
SHADOWS = """import sys
import {names}
missed = [one.__name__ for one in ({names}) if not hasattr(one, "OWN")]


async def handler(event, context):
    if event == "bad":
        raise ValueError("told")
    return missed
""".format(names=", ".join(OWN_NAMES))


def test_modules_of_the_package(protocol: str, tmp_path: pathlib.Path) -> None:
    """A handler finds the modules of its package, whatever they are called, as without
    a bootstrap; and the bootstrap finds its own."""
    for name in OWN_NAMES:
        (tmp_path / (name + ".py")).write_text("OWN = True\n")
    (tmp_path / "shadows.py").write_text(SHADOWS)
    (tmp_path / "alone.py").write_text("import shadows\nprint(shadows.missed)\n")
    alone = subprocess.run([sys.executable, "alone.py"], stdout=subprocess.PIPE,
                           cwd=tmp_path, check=True)
    with Function(protocol, "shadows.handler", tmp_path) as function:
        assert function.invoke(b"")[1].decode().replace('"', "'") == (
            alone.stdout.decode().replace(" ", "").strip())
        assert json.loads(function.invoke(b"bad")[1])["errorMessage"] == "told"


def test_handler_in_a_folder(protocol: str, tmp_path: pathlib.Path) -> None:
    """A handler is found by `file.function`, with folders before it."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "mine.py").write_bytes(HANDLERS.read_bytes())
    with Function(protocol, "deep/mine.show", tmp_path) as function:
        assert function.invoke(b"x") == (True, b"str 'x'")


@pytest.mark.parametrize("protocol", ["scf", "fg"])
def test_signal_after_event(protocol: str, tmp_path: pathlib.Path) -> None:
    """An event that arrives together with SIGTERM is still answered."""
    with Function(protocol, "mine.show", tmp_path) as function:
        function.invoke(b"")
        assert function.read().start.startswith("GET ")
        function.process.send_signal(signal.SIGSTOP)
        head = f"HTTP/1.1 200 OK\r\n{FIELDS[protocol]}Content-Length: 2\r\n\r\nhi"
        function.connect().send(head.encode())
        function.process.send_signal(signal.SIGTERM)
        function.process.send_signal(signal.SIGCONT)
        assert function.read().body == b"str 'hi'"
        function.connect().send(OK)
        assert function.process.wait(LIMIT_S) == 0


def test_log(protocol: str, tmp_path: pathlib.Path) -> None:
    """Any text may be printed in any locale, and all of it is out before a kill."""
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    with Function(protocol, "mine.say", tmp_path, **ascii_only) as function:
        assert function.invoke(b"") == (True, b"said")
        function.send(b"die")
        function.process.wait(LIMIT_S)
        assert function.printed() == ("\u540d\n".encode() * 2, b"halfhalf\n")


@pytest.fixture
def web(tmp_path: pathlib.Path) -> Iterator[Function]:
    with Function("fc", "mine.know", tmp_path) as function:
        function.connect()
        yield function


ROUTES = {  # method, path and control path -> status, body
    ("GET /a?b=1", ""): (201, b"/a"), ("PUT /invoke", ""): (201, b"/invoke"),
    ("POST /invoke", "/http-invoke"): (201, b"/invoke"),
    ("GET /%C3%A9", ""): (201, b"/\xc3\xa9"), ("GET /stream", ""): (201, b"onetwo"),
    ("HEAD /stream", ""): (201, b""), ("POST /initialize", ""): (200, b""),
    ("GET /pre-freeze", ""): (200, b""), ("GET /x", "/pre-freeze"): (200, b"")}


def test_routes(web: Function) -> None:
    """The control path tells the kinds apart, else method and path; and again."""
    for _ in range(2):
        answers = [web.ask(line, ("X-Fc-Control-Path", path)) for line, path in ROUTES]
        assert [(one.status, one.body) for one in answers] == list(ROUTES.values())


def test_failed_application(web: Function) -> None:
    """A failed application is 500 and says so to the platform, an answer that cannot be
    completed is cut; the server goes on."""
    for path, error in (("/error", "FileNotFoundError"), ("/name", "UnicodeEncodeError"),
                        ("/split", "ValueError")):
        answer = web.ask("GET " + path)
        assert (answer.status, answer.header("x-fc-status")) == (500, "404")
        assert json.loads(answer.body)["errorType"] == error
    assert web.ask("GET /pre-stop").status == 404
    assert web.ask("GET /a").status == 201
    with pytest.raises(wire.WireError):
        web.ask("GET /short")


def test_files_run_out(web: Function) -> None:
    """A server whose files have run out waits for one between its attempts to accept,
    and serves who has waited."""
    assert web.ask("GET /a").status == 201
    most = resource.prlimit(web.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(web.process.pid, resource.RLIMIT_NOFILE, (3, most[1]))
    web.channel = None
    web.connect().send(wire.request_bytes("GET", "/a", (), b""))
    before = waits_of(web.process.pid)
    assert any(waits_of(web.process.pid) > before + 3 for _ in wire.looks(LIMIT_S))
    resource.prlimit(web.process.pid, resource.RLIMIT_NOFILE, most)
    assert web.read("GET").status == 201


def waits_of(process_id: int) -> int:
    """Return how often the first thread of a process has waited for something."""
    text = pathlib.Path(f"/proc/{process_id}/status").read_text()
    return int(re.findall(r"\nvoluntary_ctxt_switches:\t(\d+)", text)[0])


def test_caller_gone(web: Function) -> None:
    """A caller who leaves a stream is no fault of the application: one line says so."""
    web.connect().send(b"GET /endless HTTP/1.1\r\n\r\n")
    assert web.connect().sock.recv(12) == b"HTTP/1.1 201"
    web.connect().close()
    assert web.process.stderr is not None
    assert select.select([web.process.stderr], [], [], LIMIT_S)[0], "nothing was said"
    assert web.process.stderr.readline() == b"bootstrap: the caller of /endless has gone\n"


def test_environ(web: Function) -> None:
    """An application finds a chunked body decoded, its length, the cookies, the peer."""
    web.connect().send(
        b"POST /environ?a=b HTTP/1.1\r\nTransfer-Encoding: chunked\r\nX_A: c\r\n"
        b"Cookie: a=1\r\nCookie: b=2\r\nHost: h:80\r\n\r\n2\r\nhi\r\n0\r\n\r\n")
    body = web.read().body.decode()
    assert body.endswith("]hi") and dict(ast.literal_eval(body[:-2])) == {
        "CONTENT_LENGTH": "2", "HTTP_COOKIE": "a=1; b=2", "REMOTE_ADDR": "127.0.0.1",
        "wsgi.input_terminated": True, "QUERY_STRING": "a=b", "SERVER_PORT": "80"}


def test_wsgi_handler(tmp_path: pathlib.Path) -> None:
    """A handler that is a WSGI application gets events as requests, too, and may exit."""
    with Function("fc", "mine.only", tmp_path) as function:
        assert function.invoke(b"event") == (True, b"only /invoke")
        assert function.ask("POST /initialize").status == 200
        function.connect().send(b"GET /exit HTTP/1.1\r\n\r\n")
        assert function.process.wait(LIMIT_S) == 7
