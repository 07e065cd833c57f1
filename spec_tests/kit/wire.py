# wire.py: HTTP/1.1 on plain sockets, for the conformance kit (MIT).
"""Speak HTTP byte by byte, keep what was seen, and be able to misbehave.

The kit plays both sides with this: `Listener` is a platform's runtime API or any other
server, `Channel` one connection. Nothing here knows a protocol, nothing is imported
from `reference/`, and every wait has a limit.
"""

import itertools
import os
import queue
import random
import re
import socket
import threading
import time
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

# ---- limits ----

HEAD_LIMIT_BYTES = 64 * 1024
BODY_LIMIT_BYTES = 64 * 1024 * 1024
SHOWN_BYTES = 2000  # of one message in a report; the rest is counted, not shown

SERVER_PORTS = itertools.count(os.getpid() * 7919)  # far from another process's
PORTS_GIVEN: Set[int] = set()  # a port is given once, so no late caller errs
PORTS_LOCK = threading.Lock()
STATUS_LINE = r"^HTTP/1\.[01] [1-5]\d\d( .*)?$"
REQUEST_LINE = r"^[A-Z-]+ \S+ HTTP/1\.[01]$"
Headers = Sequence[Tuple[str, str]]


def looks(limit_s: float) -> Iterator[None]:
    """Yield at once, and then again and again until the limit, for who has to look
    where nothing tells; the pauses grow to 20 ms, as some looks are dear."""
    deadline = time.monotonic() + limit_s
    pause_s = 0.001
    yield
    while time.monotonic() < deadline:
        time.sleep(pause_s)
        pause_s = min(2 * pause_s, 0.02)
        yield


# ---- model ----


class WireError(Exception):
    """The peer did not say what HTTP wants; `seen` holds the bytes it did send."""

    def __init__(self, what: str, seen: bytes = b"") -> None:
        super().__init__(what)
        self.what, self.seen = what, seen

    def told(self) -> str:
        """Return both for people."""
        return f"{self.what}: {show(self.seen)}" if self.seen else self.what


class Silence(WireError):
    """The peer said nothing more within the limit."""


class Closed(WireError):
    """The peer closed or reset the connection."""


class Garbage(WireError):
    """The peer sent something that is not HTTP."""


class Frame(NamedTuple):
    """What one side sent at once, shortened for people."""

    who: str
    text: str


class Message(NamedTuple):
    """One request or response, as it was on the wire and in its parts."""

    start: str
    headers: Tuple[Tuple[str, str], ...]
    body: bytes
    raw_head: bytes = b""
    end: str = "whole"  # or silence or closed: what came instead of the rest
    body_bytes: int = 0  # where the body was cut short for the kit
    body_sum: int = 0  # its CRC-32 then

    @property
    def status(self) -> int:
        """Return the status of a response; 0 if there is none."""
        found = re.match(r"\S+ (\d+)( |$)", self.start)
        return int(found[1]) if found else 0

    @property
    def method(self) -> str:
        """Return the method of a request."""
        return self.start.split(" ")[0]

    @property
    def path(self) -> str:
        """Return the target of a request."""
        return self.start.split(" ")[1]

    def header(self, name: str) -> Optional[str]:
        """Return the first value of that field, in any case of letters."""
        return next(iter(self.values(name)), None)

    def values(self, name: str) -> List[str]:
        """Return every value of that field."""
        return [value for key, value in self.headers if key.lower() == name.lower()]


NOT_PLAIN = re.compile(r"[^\r\n\t -~]")  # every frame goes through it, so it is quick


def escaped(found: "re.Match[str]") -> str:
    """Return the character, or an escape if it cannot be printed."""
    return found[0] if found[0].isprintable() else f"\\x{ord(found[0]):02x}"


def show(data: bytes) -> str:
    """Return bytes for people: text as it is, the rest escaped, long ones cut."""
    text = NOT_PLAIN.sub(escaped, data[:SHOWN_BYTES].decode("utf-8", "backslashreplace"))
    rest = len(data) - SHOWN_BYTES
    return text + (f"\n… and {rest} bytes more" if rest > 0 else "")


# ---- bytes ----


def response(status: int, headers: Headers = (), body: bytes = b"",
             reason: str = "X") -> bytes:
    """Return a whole response with Content-Length."""
    return head_bytes(f"HTTP/1.1 {status} {reason}",
                      [*headers, ("Content-Length", str(len(body)))]) + body


def request_bytes(method: str, path: str, headers: Headers = (),
                  body: Optional[bytes] = None) -> bytes:
    """Return a whole request; no Content-Length if there is no body at all."""
    fields = list(headers)
    if not any(name.lower() == "host" for name, _ in fields):
        fields.insert(0, ("Host", "127.0.0.1"))
    if body is not None:
        fields.append(("Content-Length", str(len(body))))
    return head_bytes(f"{method} {path} HTTP/1.1", fields) + (body or b"")


def head_bytes(start: str, headers: Headers) -> bytes:
    """Return a start line, header fields and the empty line."""
    lines = [start, *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("latin-1")


def odd_chunks(body: bytes) -> bytes:
    """Return a body as one chunk: capital letters, extensions, a trailer."""
    return b"%X;part=\"1\"\r\n%b\r\n0;last\r\nX-Trailer: yes\r\n\r\n" % (len(body), body)


def chunked(body: bytes, size: int = 7) -> bytes:
    """Return the body in chunks of `size` bytes, with the last one."""
    parts = [body[i:i + size] for i in range(0, len(body), size)]
    chunks = [b"%x\r\n%s\r\n" % (len(part), part) for part in parts]
    return b"".join(chunks) + b"0\r\n\r\n"


def chunked_body(data: bytes) -> bytes:
    """Return the body that such chunks stand for."""
    body, rest = b"", data
    while True:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size.partition(b";")[0], 16)
        if not length:
            return body
        body, rest = body + rest[:length], rest[length + 2:]


def parse_head(raw: bytes) -> Tuple[str, Tuple[Tuple[str, str], ...]]:
    """Return start line and fields. Raises Garbage for anything doubtful."""
    lines = raw.decode("latin-1").split("\r\n")
    fields = []
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not re.match(r"^[!#$%&'*+.^_`|~0-9A-Za-z-]+$", name):
            raise Garbage(f"not a header field: {line!r}", raw)
        fields.append((name, value.strip(" \t")))
    return lines[0], tuple(fields)


def free_port() -> int:
    """Return a TCP port that nobody has, below those of outgoing connections, and
    between those that emulator.py and gateway.py choose."""
    while True:
        port = 20000 + next(SERVER_PORTS) % 6000
        with PORTS_LOCK, socket.socket() as probe:
            try:
                if port not in PORTS_GIVEN:
                    probe.bind(("0.0.0.0", port))
                    PORTS_GIVEN.add(port)
                    return port
            except OSError:
                pass


def first_address(host: str) -> str:
    """Return this loopback address, or 127.0.0.1 where the system has no other."""
    with socket.socket() as probe:
        try:
            probe.bind((host, 0))
            return host
        except OSError:
            return "127.0.0.1"


# ---- one connection ----


class Channel:
    """One TCP connection with a buffer, a log and a limit on every wait."""

    def __init__(self, sock: socket.socket, log: Callable[[str, bytes], None],
                 peer: str) -> None:
        self.sock, self.log, self.peer = sock, log, peer
        self.buffer = bytearray()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, data: bytes, limit_s: float = 20.0) -> None:
        """Send all of it. Raises Closed if the peer is gone, Silence if it is deaf."""
        self.log("kit", data)
        try:
            self.sock.settimeout(limit_s)
            self.sock.sendall(data)
        except socket.timeout:
            raise Silence("does not read what is sent to it") from None
        except OSError as error:
            raise Closed(f"cannot be written to: {error.strerror}") from None

    def more(self, deadline: float) -> None:
        """Read at least one byte into the buffer. Raises Silence or Closed."""
        try:
            self.sock.settimeout(max(1e-6, deadline - time.monotonic()))
            data = self.sock.recv(1 << 18)
        except socket.timeout:
            raise Silence("nothing more arrived in time", bytes(self.buffer)) from None
        except OSError as error:
            raise Closed(f"connection lost: {error.strerror}",
                         bytes(self.buffer)) from None
        if not data:
            raise Closed("connection closed", bytes(self.buffer))
        self.buffer += data

    def take(self, count: int, deadline: float) -> bytes:
        """Return exactly that many bytes."""
        while len(self.buffer) < count:
            self.more(deadline)
        with memoryview(self.buffer) as view:  # one copy: it may be 32 MB
            data = bytes(view[:count])
        del self.buffer[:count]
        return data

    def line(self, end: bytes, deadline: float) -> bytes:
        """Return all bytes up to `end`, without it."""
        while True:
            place = self.buffer.find(end)
            if place >= 0:
                return self.take(place + len(end), deadline)[:-len(end)]
            if len(self.buffer) > HEAD_LIMIT_BYTES:
                raise Garbage("no end of head", bytes(self.buffer))
            self.more(deadline)

    def read(self, limit_s: float, to: str = "") -> Message:
        """Return the next message; `to` is the method it answers. Raises WireError."""
        deadline = time.monotonic() + limit_s
        partial = b""
        try:
            partial = self.line(b"\r\n\r\n", deadline)
            start, headers = parse_head(partial)
            message = Message(start, headers, b"", partial)
            if not re.match(STATUS_LINE if to else REQUEST_LINE, start):
                raise Garbage(f"bad start line {start!r}", partial)
            if to and message.status in (102, 103):  # nobody asked for it
                return self.read(deadline - time.monotonic(), to)
            if to and message.status in (100, 101):
                return message
            if "expect" in {name.lower() for name, _ in headers}:
                self.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
            body = b"" if to == "HEAD" else self.body(message, deadline, bool(to))
        except WireError as error:
            seen = (partial + b"\r\n\r\n" if partial else b"") + bytes(self.buffer)
            self.log(self.peer, seen)
            raise type(error)(error.what, seen) from None
        except OSError as error:
            raise Closed(f"connection lost: {error.strerror}", partial) from None
        self.log(self.peer, partial + b"\r\n\r\n" + body)
        return message._replace(body=body)

    def body(self, message: Message, deadline: float, is_response: bool) -> bytes:
        """Return the body in whichever of the framings HTTP/1.1 has."""
        if is_response and message.status in (204, 304):
            return b""
        if (message.header("transfer-encoding") or "").lower() == "chunked":
            return self.chunks(deadline)
        length = message.header("content-length")
        if length is not None:
            if not re.match(r"^\d+$", length) or int(length) > BODY_LIMIT_BYTES:
                raise Garbage(f"bad Content-Length {length!r}")
            return self.take(int(length), deadline)
        return self.rest(deadline) if is_response else b""

    def rest(self, deadline: float) -> bytes:
        """Return everything up to the end of the connection."""
        try:
            while True:
                self.more(deadline)
        except Closed:
            return self.take(len(self.buffer), deadline)

    def chunks(self, deadline: float) -> bytes:
        """Return a chunked body, trailer fields dropped."""
        parts: List[bytes] = []
        while True:
            size = self.line(b"\r\n", deadline).split(b";")[0].strip()
            if not re.match(rb"^[0-9a-fA-F]{1,8}$", size):
                raise Garbage(f"bad chunk size {size!r}")
            if int(size, 16) == 0:
                while self.line(b"\r\n", deadline):
                    pass
                return b"".join(parts)
            parts.append(self.take(int(size, 16), deadline))
            if self.take(2, deadline) != b"\r\n":
                raise Garbage("chunk without its end")

    def close(self, reset: bool = False) -> None:
        """Close, politely or with a reset."""
        try:
            if reset:
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER,
                                     b"\1\0\0\0\0\0\0\0")
            else:
                self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.sock.close()


def connect(host: str, port: int, log: Callable[[str, bytes], None], peer: str,
            limit_s: float = 5.0) -> Channel:
    """Return a connection to a server. Raises OSError."""
    return Channel(socket.create_connection((host, port), limit_s), log, peer)


# ---- a server of ours ----


class Exchange:
    """A request that arrived and waits for what the test wants to answer."""

    def __init__(self, channel: Channel, request: Message) -> None:
        self.channel, self.request = channel, request
        self.done = threading.Event()
        self.gone = False

    def reply(self, status: int = 200, headers: Headers = (),
              body: bytes = b"") -> None:
        """Answer with Content-Length and go on reading this connection."""
        self.send(response(status, headers, body))

    def send(self, *pieces: bytes, pause_s: float = 0.0) -> None:
        """Send raw bytes, each piece by itself, then go on reading."""
        try:
            for number, piece in enumerate(pieces):
                if number and pause_s:
                    time.sleep(pause_s)
                self.channel.send(piece)
        finally:
            self.done.set()

    def drop(self, *pieces: bytes, reset: bool = False) -> None:
        """Send raw bytes, if any, and close the connection."""
        self.gone = True
        try:
            for piece in pieces:
                self.channel.send(piece)
        finally:
            self.channel.close(reset)
            self.done.set()


class Listener:
    """A server on a port of its own that puts each request into one queue."""

    def __init__(self, log: Callable[[str, bytes], None], peer: str) -> None:
        self.log, self.peer = log, peer
        self.arrived: "queue.Queue[Exchange]" = queue.Queue()
        self.bad: List[WireError] = []
        self.channels: Dict[int, Channel] = {}
        self.open_exchanges: Dict[int, Exchange] = {}
        # Ours alone: a bootstrap that somebody has lost polls on for ever elsewhere.
        self.host = first_address("127.%d.%d.%d" % tuple(
            random.randrange(1, 255) for _ in range(3)))
        self.port = 0
        self.bind()
        self.open()

    def bind(self) -> None:
        """Take a port, or the same one again; nobody listens there yet."""
        self.sock = socket.socket()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.sock.bind((self.host, self.port))
        self.port = self.sock.getsockname()[1]

    def open(self) -> None:
        """Listen on the port."""
        self.sock.listen(128)
        threading.Thread(target=self.accept, args=(self.sock,), daemon=True).start()

    def leave(self) -> None:
        """Refuse connections, but keep the port from everybody else."""
        self.close()
        self.bind()

    def accept(self, sock: socket.socket) -> None:
        """Give each connection a thread until the socket is closed."""
        while True:
            try:
                peer, _ = sock.accept()
            except OSError:
                return
            channel = Channel(peer, self.note, self.peer)
            self.channels[id(channel)] = channel
            threading.Thread(target=self.serve, args=(channel,), daemon=True).start()

    def note(self, who: str, data: bytes) -> None:
        """Pass a log line on to whoever has the listener now."""
        self.log(who, data)

    def serve(self, channel: Channel) -> None:
        """Read one request after the other; each is answered by the test."""
        try:
            while True:
                exchange = Exchange(channel, channel.read(3600.0))
                self.open_exchanges[id(exchange)] = exchange
                self.arrived.put(exchange)
                exchange.done.wait(3600.0)
                self.open_exchanges.pop(id(exchange), None)
                if exchange.gone:
                    return
        except WireError as error:
            if error.seen:
                self.bad.append(error)
        finally:
            channel.close()
            self.channels.pop(id(channel), None)

    def close(self) -> None:
        """Stop listening and drop every connection."""
        try:
            self.sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        self.sock.close()
        for channel in list(self.channels.values()):
            channel.close()
        for exchange in list(self.open_exchanges.values()):
            exchange.gone = True
            exchange.done.set()
        while not self.arrived.empty():
            self.arrived.get_nowait()
