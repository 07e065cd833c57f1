# base_bootstrap.py: a small correct bootstrap that others break in one place (MIT).
"""A correct bootstrap for each protocol, in the fewest lines, made to be broken.

Every step is a method of its own, so that a broken variant overrides exactly one of
them. It carries the test handler of spec_tests/README.md.
"""

import json
import os
import pathlib
import select
import signal
import socket
import sys
import threading
import time
from typing import Any, Dict, List, Optional, Tuple

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent / "kit"))

import wire  # noqa: E402


class Failure(Exception):
    """The handler failed: type and message of the error."""


class Base:
    """The test handler and what all protocols share."""

    exit_status = 0  # after SIGTERM

    def __init__(self) -> None:
        self.count = self.running = 0
        self.stopping = False
        # A handler could come just before a call that blocks, and wait for its end.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=self.await_sigterm, daemon=True).start()
        self.prepare()

    def await_sigterm(self) -> None:
        """Wait for SIGTERM."""
        while True:
            signal.sigwait({signal.SIGTERM})
            self.on_sigterm()

    def prepare(self) -> None:
        """Load the handler."""

    def on_sigterm(self) -> None:
        """End now if idle, after the invocations if any run."""
        self.stopping = True
        self.end_if_done()

    def end_if_done(self) -> None:
        """End if told to, and nothing runs."""
        if self.stopping and not self.running:
            os._exit(self.exit_status)

    def handle(self, event: bytes, context: Dict[str, Any]) -> bytes:
        """Return the result of the event. Raises Failure."""
        self.count += 1
        if not event.startswith(b'{"do":"'):
            return event
        order = json.loads(event)
        word = order["do"]
        if word == "raise":
            raise Failure(order["type"], order["message"])
        if word == "exit":
            os._exit(order["status"])
        if word == "sleep":
            self.sleep(order["seconds"])
        if word == "print":
            self.write_log(order["text"])
        results: Dict[str, str] = {
            "echo": order.get("text", ""), "sleep": "slept", "print": "printed",
            "size": "x" * order.get("bytes", 0), "context": json.dumps(context),
            "env": self.env(order.get("name", "")), "count": str(self.count)}
        if word not in results:
            raise Failure("Unsupported", "no such instruction")
        return results[word].encode()

    def env(self, name: str) -> str:
        """Return what the handler finds in that variable."""
        return os.environ.get(name, "")

    def sleep(self, seconds: float) -> None:
        """Let the handler take its time."""
        time.sleep(seconds)

    def write_log(self, text: str) -> None:
        """Print what the handler prints."""
        print(text, flush=True)

    def outcome(self, event: bytes, context: Dict[str, Any]) -> Tuple[str, bytes]:
        """Return `response` or `error`, and the body of it."""
        try:
            return "response", self.handle(event, context)
        except Failure as failure:
            return "error", self.report(*failure.args)

    def report(self, type_: str, message: str) -> bytes:
        """Return the body of an error report."""
        return json.dumps({"errorType": type_, "errorMessage": message}).encode()


# ---- pull ----


class Pull(Base):
    """The loop of scf and fg."""

    poll_path = result_path = id_header = ""
    host, port = "127.0.0.1", 0
    limit_s = 1e6  # wait for ever: a poll is a long poll
    first_pause_s, last_pause_s = 0.05, 2.0

    def __init__(self) -> None:
        super().__init__()
        self.channel: Optional[wire.Channel] = None
        self.seen: List[bytes] = []
        self.pause_s = self.first_pause_s

    def exchange(self, method: str, path: str, body: Optional[bytes]) -> wire.Message:
        """Send one request, on the open connection if there is one."""
        data = self.request(method, path, body)
        self.notice()
        if self.channel is None:
            self.channel = self.connect()
        try:
            self.channel.send(data)
            return self.read(method)
        except wire.WireError:
            self.drop()
            raise

    def tried(self, method: str, path: str,
              body: Optional[bytes] = None) -> Optional[wire.Message]:
        """Send one request; return the answer, or nothing if none comes."""
        try:
            return self.exchange(method, path, body)
        except (OSError, wire.WireError):
            return None

    def connect(self) -> wire.Channel:
        """Return a new connection. Raises OSError."""
        return wire.connect(self.host, self.port, self.note, "platform")

    def notice(self) -> None:
        """Forget a connection that the platform has closed meanwhile."""
        if self.channel and select.select([self.channel.sock], [], [], 0)[0]:
            self.drop()

    def note(self, who: str, data: bytes) -> None:
        """Keep no log."""

    def request(self, method: str, path: str, body: Optional[bytes]) -> bytes:
        """Return the bytes of a request."""
        return wire.request_bytes(method, path, (), body)

    def read(self, method: str) -> wire.Message:
        """Return the final answer; interim ones are skipped."""
        assert self.channel is not None
        answer = self.channel.read(self.limit_s, to=method)
        while answer.status < 200:
            answer = self.channel.read(self.limit_s, to=method)
        if self.is_last(answer):
            self.drop()
        return answer

    def is_last(self, answer: wire.Message) -> bool:
        """Tell whether the platform closes the connection behind an answer."""
        return "close" in (answer.header("connection") or "").lower() \
            or answer.start.startswith("HTTP/1.0")

    def drop(self) -> None:
        """Close the connection."""
        if self.channel is not None:
            self.channel.close()
            self.channel = None

    def start(self) -> None:
        """Say that the bootstrap is ready, where there is a call for it."""

    def poll(self) -> Optional[wire.Message]:
        """Return an event, or nothing if this poll brought none."""
        answer = self.tried("GET", self.poll_path)
        return answer if answer and self.is_event(answer) else None

    def is_event(self, answer: wire.Message) -> bool:
        """Tell whether an answer carries an event."""
        return answer.status == 200 and bool(answer.header(self.id_header))

    def context(self, answer: wire.Message) -> Dict[str, Any]:
        """Return what the handler is told beside the event."""
        return {"request_id": answer.header(self.id_header)}

    def serve(self, answer: wire.Message) -> None:
        """Handle one event and post what became of it."""
        self.running = 1
        kind, body = self.outcome(answer.body, self.context(answer))
        self.post(kind, answer.header(self.id_header) or "", body)
        self.running = 0

    def post(self, kind: str, request_id: str, body: bytes) -> None:
        """Post a result; what the platform says to it changes nothing."""
        self.tried("POST", self.path_of(kind, request_id), body)

    def path_of(self, kind: str, request_id: str) -> str:
        """Return where a result is posted to."""
        return self.result_path.format(kind=kind, id=request_id)

    def pause(self) -> None:
        """Wait after a poll that brought nothing, each time longer."""
        time.sleep(self.pause_s)
        self.pause_s = min(2 * self.pause_s, self.last_pause_s)

    def recover(self) -> None:
        """Begin with the least pause again, as there was an event."""
        self.pause_s = self.first_pause_s

    def run(self) -> None:
        """Poll and serve until told to stop."""
        self.start()
        while not self.stopping:
            answer = self.poll()
            if answer is None:
                self.pause()
            else:
                self.recover()
                self.serve(answer)


class Scf(Pull):
    """Tencent SCF."""

    poll_path = "/runtime/invocation/next"
    result_path = "/runtime/invocation/{kind}"
    id_header = "Request_Id"

    def __init__(self) -> None:
        super().__init__()
        self.host = os.environ.get("SCF_RUNTIME_API", "127.0.0.1")
        self.port = int(os.environ.get("SCF_RUNTIME_API_PORT", "0"))

    def start(self) -> None:
        while not self.ready():
            self.pause()

    def ready(self) -> Optional[wire.Message]:
        """Call `ready`; return the answer, or nothing if none comes."""
        return self.tried("POST", "/runtime/init/ready", b" ")

    def context(self, answer: wire.Message) -> Dict[str, Any]:
        return {"request_id": answer.header("Request_Id"),
                "memory_mb": int(answer.header("Memory_Limit_In_Mb") or 0),
                "time_limit_ms": int(answer.header("Time_Limit_In_Ms") or 0),
                "function_name": os.environ.get("SCF_FUNCTIONNAME", "")}


class Fg(Pull):
    """Huawei FunctionGraph."""

    poll_path = "/v1/runtime/invocation/request"
    result_path = "/v1/runtime/invocation/{kind}/{id}"
    id_header = "X-Cff-Request-Id"

    def __init__(self) -> None:
        super().__init__()
        self.host, _, port = os.environ.get("RUNTIME_API_ADDR", ":0").partition(":")
        self.port = int(port)

    def context(self, answer: wire.Message) -> Dict[str, Any]:
        return {"request_id": answer.header("X-Cff-Request-Id"),
                "memory_mb": int(os.environ["RUNTIME_MEMORY"]),
                "time_limit_ms": int(os.environ["RUNTIME_TIMEOUT"]) * 1000,
                "function_name": os.environ["RUNTIME_FUNC_NAME"]}


# ---- push ----


class Fc(Base):
    """Alibaba FC: an HTTP server with a thread for each connection."""

    address = "0.0.0.0"
    idle_limit_s = 1e6
    backlog = 1024
    counting = threading.Lock()

    def port(self) -> int:
        """Return the port to listen on."""
        return int(os.environ.get("FC_SERVER_PORT")
                   or os.environ.get("FC_CUSTOM_LISTEN_PORT") or "9000")

    def run(self) -> None:
        """Accept connections until told to stop."""
        server = socket.socket()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((self.address, self.port()))
        server.listen(self.backlog)
        while True:
            peer, _ = server.accept()
            self.begin(peer)

    def begin(self, peer: socket.socket) -> None:
        """Serve a connection in a thread of its own."""
        threading.Thread(target=self.serve, args=(peer,), daemon=True).start()

    def serve(self, peer: socket.socket) -> None:
        """Answer each request of a connection, one after the other."""
        channel = wire.Channel(peer, lambda who, data: None, "platform")
        try:
            while True:
                request = self.read(channel, peer)
                with self.counting:
                    self.running += 1
                try:
                    self.answer(channel, request)
                finally:
                    with self.counting:
                        self.running -= 1
                    self.end_if_done()
        except (OSError, wire.WireError):
            channel.close()

    def read(self, channel: wire.Channel, peer: socket.socket) -> wire.Message:
        """Return the next request."""
        return channel.read(self.idle_limit_s)

    def answer(self, channel: wire.Channel, request: wire.Message) -> None:
        """Answer one request."""
        path = request.header("x-fc-control-path") or request.path
        if path == "/invoke":
            kind, body = self.outcome(request.body, self.context(request))
            self.send(channel, self.result(kind, body))
        elif path in ("/initialize", "/pre-freeze", "/pre-stop"):
            self.send(channel, self.hook())
        elif request.header("x-fc-control-path") in ("/http-invoke", "", None):
            self.send(channel, self.http(request))
        else:
            self.send(channel, wire.response(404, [("x-fc-status", "404")]))

    def send(self, channel: wire.Channel, data: bytes) -> None:
        """Send an answer."""
        channel.send(data)

    def hook(self) -> bytes:
        """Return the answer to a hook."""
        return wire.response(200)

    def http(self, request: wire.Message) -> bytes:
        """Return the answer to an HTTP invocation."""
        status, fields, body = self.http_parts(request)
        if status in (204, 304):
            return wire.head_bytes(f"HTTP/1.1 {status} X", fields)
        whole = wire.response(status, fields, body)
        return self.headed(whole, len(body)) if request.method == "HEAD" else whole

    def headed(self, whole: bytes, size: int) -> bytes:
        """Return the answer to HEAD, which has no body."""
        return whole[:len(whole) - size]

    def http_parts(self, request: wire.Message) -> Tuple[int, wire.Headers, bytes]:
        """Return status, fields and body of the answer to an HTTP invocation."""
        order = json.loads(request.body) if request.body.startswith(b'{"do":"') else {}
        if order.get("do") == "request":
            return 200, [], json.dumps(self.seen(request)).encode()
        if order.get("do") == "answer":
            return order["status"], order["fields"], order["text"].encode()
        kind, body = self.outcome(request.body, self.context(request))
        return (200, [], body) if kind == "response" else (
            500, [("x-fc-status", "404")], body)

    def seen(self, request: wire.Message) -> Dict[str, Any]:
        """Return what the handler has of an HTTP invocation."""
        return {"method": request.method, "target": request.path,
                "fields": request.headers}

    def result(self, kind: str, body: bytes) -> bytes:
        """Return the answer to /invoke."""
        status = 200 if kind == "response" else 404
        return wire.response(status, [("x-fc-status", str(status))], body)

    def context(self, request: wire.Message) -> Dict[str, Any]:
        """Return what the handler is told beside the event."""
        return {"request_id": request.header("x-fc-request-id"),
                "memory_mb": int(request.header("x-fc-function-memory") or 0),
                "time_limit_ms":
                    1000 * int(request.header("x-fc-function-timeout") or 0),
                "function_name": request.header("x-fc-function-name")}
