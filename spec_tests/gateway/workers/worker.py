"""A worker for tests of the gateway: a server on a plain socket that does what it is told.

The body of a call is JSON whose member `do` names a function of DEEDS, or it is echoed.
START and INIT in the environment spoil the start and the initializer.
"""
import itertools
import os
import sys
import time
from _socket import IPPROTO_TCP, TCP_NODELAY

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "../../kit"))

import light_http  # noqa: E402

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Iterator, List, Tuple

initialized: "List[str]" = []   # one entry for each call of the hook


class Call:
    """One request, its whole body, and the way back."""

    def __init__(self, wire: light_http.Socket, head: bytes, rest: bytes) -> None:
        self.wire = wire
        self.rest = rest
        line, *fields = head.decode("latin-1").split("\r\n")
        self.method, self.target, _ = line.split(" ")
        self.fields = [tuple(field.split(": ", 1)) for field in fields]
        self.headers = {field[0].lower(): field[1] for field in self.fields}
        self.body = b"".join(self.parts())

    def parts(self) -> "Iterator[bytes]":
        """Yield the body as it comes."""
        if "transfer-encoding" in self.headers:
            while True:
                while b"\r\n" not in self.rest:
                    self.more()
                size, _, self.rest = self.rest.partition(b"\r\n")
                yield from self.counted(int(size, 16))
                while len(self.rest) < 2:
                    self.more()
                self.rest = self.rest[2:]
                if not int(size, 16):
                    return
        yield from self.counted(int(self.headers.get("content-length", "0")))

    def more(self) -> None:
        data = self.wire.recv(65536)
        if not data:
            raise OSError("half a body")
        self.rest += data

    def counted(self, left: int) -> "Iterator[bytes]":
        while left:
            data, self.rest = self.rest[:left], self.rest[left:]
            data = data or self.wire.recv(min(left, 65536))
            if not data:
                raise OSError("half a body")
            left -= len(data)
            yield data

    def answer(self, body: bytes, status: int = 200, *fields: "Tuple[str, str]") -> None:
        lines = ["HTTP/1.1 %d Word" % status, "Content-Length: %d" % len(body)]
        lines += ["%s: %s" % pair for pair in fields]
        self.wire.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + body)

    def json(self, value: "Any") -> None:
        self.answer(light_http.to_json(value).encode())


# ---- deeds ----


def forever() -> None:
    """Hang."""
    while True:
        time.sleep(3600)

COUNTER = itertools.count(1)


def count(call: Call, order: "Dict[str, Any]") -> None:
    """Answer with how many such calls there have been, this one included."""
    call.json(next(COUNTER))


def pid(call: Call, order: "Dict[str, Any]") -> None:
    call.json(os.getpid())


def env(call: Call, order: "Dict[str, Any]") -> None:
    call.json({"env": dict(os.environ), "cwd": os.getcwd(),
               "initialized": len(initialized)})


def request(call: Call, order: "Dict[str, Any]") -> None:
    call.json({"method": call.method, "target": call.target, "fields": call.fields})


def reply(call: Call, order: "Dict[str, Any]") -> None:
    call.answer(order.get("body", "").encode(), order["status"],
                *[(name, value) for name, value in order.get("fields", [])])


def die(call: Call, order: "Dict[str, Any]") -> None:
    """End before the head, within the body, or after the whole answer."""
    if order["when"] == "body":
        call.wire.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
    if order["when"] == "after":
        call.answer(b"done")
    os._exit(3)


def garbage(call: Call, order: "Dict[str, Any]") -> None:
    call.wire.sendall(order["text"].encode())


def extra(call: Call, order: "Dict[str, Any]") -> None:
    """Answer, send something more when the file `gate` is there, then make `sent`."""
    call.answer(b"done")
    wait_for(order["gate"])
    call.wire.sendall(order["text"].encode())
    os.close(os.open(order["sent"], os.O_CREAT))


def hang(call: Call, order: "Dict[str, Any]") -> None:
    """Say nothing, or stop within the body."""
    if order.get("when") == "body":
        call.wire.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
    forever()


def wait_for(gate: str) -> None:
    """Wait until that file is there."""
    while not os.path.exists(gate):
        time.sleep(0.002)


def hold(call: Call, order: "Dict[str, Any]") -> None:
    """Answer when the file `gate` is there."""
    wait_for(order["gate"])
    call.json(os.getpid())


def drip(call: Call, order: "Dict[str, Any]") -> None:
    """Answer in two chunks, the second when the file `gate` is there."""
    call.wire.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                      b"5\r\nfirst\r\n")
    wait_for(order["gate"])
    call.wire.sendall(b"6\r\nsecond\r\n0\r\n\r\n")


def old(call: Call, order: "Dict[str, Any]") -> None:
    """Answer as HTTP/1.0 does: the end of the connection ends the body."""
    call.wire.sendall(b"HTTP/1.0 200 OK\r\n\r\nuntil the end")
    raise OSError("closed on purpose")


def close(call: Call, order: "Dict[str, Any]") -> None:
    """Close the connection instead of answering."""
    raise OSError("closed on purpose")


def eat(call: Call, order: "Dict[str, Any]") -> None:
    """Take memory and keep it."""
    taken = b"x" * order["bytes"]
    forever()
    call.json(len(taken))


def fork(call: Call, order: "Dict[str, Any]") -> None:
    """Leave a child behind."""
    call.json(os.posix_spawnp("sleep", ["sleep", "1000"], os.environ))


def orphan(call: Call, order: "Dict[str, Any]") -> None:
    """Leave a child behind whose parent has ended; answer with its id."""
    call.json(int(os.popen("sleep 1000 >&- 2>&- & echo $!").read()))


DEEDS = {deed.__name__: deed for deed in (
    count, pid, env, request, reply, die, garbage, extra, hang, hold, drip, old, close,
    eat, fork, orphan)}


# ---- serving ----


def serve(call: Call) -> None:
    """Do what the call says."""
    if call.target == "/initialize":
        initialized.append(call.method)
        word = os.environ.get("INIT", "200")
        if word == "hang":
            forever()
        if word == "exit":
            os._exit(4)
        call.answer(b"", int(word))
    elif call.body.startswith(b'{"do"'):
        order = light_http.literal(call.body)
        DEEDS[order["do"]](call, order)
    else:
        call.answer(call.body)


def connection(wire: light_http.Socket) -> None:
    """Serve one connection until it ends."""
    wire.setsockopt(IPPROTO_TCP, TCP_NODELAY, 1)
    rest = b""
    try:
        while True:
            while b"\r\n\r\n" not in rest:
                data = wire.recv(65536)
                if not data:
                    return
                rest += data
            head, _, rest = rest.partition(b"\r\n\r\n")
            call = Call(wire, head, rest)
            serve(call)
            rest = call.rest
    except OSError:
        pass
    finally:
        wire.close()


def main() -> None:
    """Listen where the gateway says."""
    word = os.environ.get("START", "")
    if word == "crash":
        sys.exit("no reason to live")
    if word == "hang":
        forever()
    if word.startswith("/"):
        wait_for(word)
    port = 0 if word == "8" else int(os.environ["FC_SERVER_PORT"])
    listener = light_http.listen("127.0.0.1", port, 1024)
    print("worker is up", flush=True)
    while True:
        wire, _ = listener.accept()
        light_http.aside(connection, wire)
