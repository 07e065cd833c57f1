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
    from typing import Any, Dict, List, Tuple

COUNTER = itertools.count(1)
initialized: "List[str]" = []   # one entry for each call of the hook


class Call:
    """One request, its whole body, the bytes beyond it, and the way back."""

    def __init__(self, wire: light_http.Socket, data: bytearray) -> None:
        self.wire = wire
        while b"\r\n\r\n" not in data:
            data += light_http.more(wire)
        head, _, data = data.partition(b"\r\n\r\n")
        line, *fields = head.decode("latin-1").split("\r\n")
        self.method, self.target, _ = line.split(" ")
        self.fields = [field.split(": ", 1) for field in fields]
        size = sum(int(value) for name, value in self.fields if name == "Content-Length")
        while len(data) < size:
            data += light_http.more(wire)
        self.body, self.rest = bytes(data[:size]), data[size:]

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


def wait_for(gate: str) -> None:
    """Wait until that file is there."""
    while not os.path.exists(gate):
        time.sleep(0.005)


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


def say(call: Call, order: "Dict[str, Any]") -> None:
    """Send a text as it is; when the file `gate` is there send `more`, then make `sent`;
    then `exit`, `hang` or `close`."""
    call.wire.sendall(order.get("text", "").encode())
    if "gate" in order:
        wait_for(order["gate"])
        call.wire.sendall(order["more"].encode())
    if "sent" in order:
        os.close(os.open(order["sent"], os.O_CREAT))
    then = order.get("then")
    if then == "exit":
        os._exit(3)
    if then == "hang":
        forever()
    if then == "close":
        raise OSError("closed on purpose")


def hold(call: Call, order: "Dict[str, Any]") -> None:
    """Answer when the file `gate` is there."""
    wait_for(order["gate"])
    call.json(os.getpid())


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
    count, pid, env, request, reply, say, hold, eat, fork, orphan)}


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
    rest = bytearray()
    try:
        while True:
            call = Call(wire, rest)
            serve(call)
            rest = call.rest
    except OSError:
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
    port = 0 if word == "deaf" else int(os.environ["FC_SERVER_PORT"])
    listener = light_http.listen("127.0.0.1", port, 1024)
    print("worker is up", flush=True)
    while True:
        wire, _ = listener.accept()
        light_http.aside(connection, wire)
