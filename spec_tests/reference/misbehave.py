# misbehave.py: a bootstrap that breaks whatever its event tells it to break (MIT).
"""Be a bootstrap of fc, scf or fg whose event begins with the name of a deed.

`place(folder)` makes this the bootstrap of a code folder. The event `exit 3` ends the
process, `half` sends half a message, and so on (PULL_DEEDS, PUSH_DEEDS); any other
event is echoed. A file `mode` in the folder names a fault of the start; it is removed
by the first process that reads it, so the next one starts properly. HTTP is spoken on
plain sockets, since the point is to get it wrong.
"""

import posix
import time
from _socket import SHUT_WR

import light_http
from light_http import read_message

TYPE_CHECKING = False  # it is started some hundred times: no import without need
if TYPE_CHECKING:
    import pathlib
    from typing import Callable, Dict, NoReturn, Optional, Tuple
    Head = Dict[str, str]

HANG_S = 60.0  # longer than any limit of a test


def place(folder: "pathlib.Path", mode: str = "") -> str:
    """Write the bootstrap, and the fault of its first start; return the folder."""
    light_http.place(folder, __file__)
    if mode:
        (folder / "mode").write_text(mode)
    return str(folder)


# ---- both directions ----


def hang(*_: object) -> "NoReturn":
    """Do nothing until somebody kills this process."""
    while True:
        time.sleep(HANG_S)


def leave(status: str) -> "NoReturn":
    """End the process, with a status or by a signal (negative)."""
    if int(status) < 0:
        posix.kill(posix.getpid(), -int(status))
    posix._exit(int(status))


def env() -> bytes:
    """Return the environment as JSON."""
    return light_http.to_json(light_http.ENVIRON).encode()


def take_mode() -> str:
    """Return the fault of this start; there is one only once."""
    path = light_http.FOLDER + "/mode"
    try:
        with open(path) as file:
            mode = file.read()
        posix.unlink(path)
        return mode
    except OSError:
        return ""


# ---- pull: scf and fg ----


class Api:
    """The runtime API, asked over a new connection each time."""

    def __init__(self) -> None:
        self.is_scf = "SCF_RUNTIME_API" in light_http.ENVIRON
        host, _, port = ((
            "%(SCF_RUNTIME_API)s:%(SCF_RUNTIME_API_PORT)s" if self.is_scf else
            "%(RUNTIME_API_ADDR)s") % light_http.ENVIRON).partition(":")
        self.address = (host, int(port))
        self.event_id = ""

    def send(self, data: bytes) -> light_http.Socket:
        """Send raw bytes on a connection of their own; return it."""
        peer = light_http.connect(*self.address)
        peer.sendall(data)
        return peer

    def ask(self, method: str, path: str,
            body: bytes = b"") -> "Tuple[str, Head, bytes]":
        """Return (start line, fields, body) of the answer to a proper call."""
        with self.send(self.call(method, path, body)) as peer:
            start, fields, answer, _ = read_message(peer)
        return start, fields, answer

    def call(self, method: str, path: str, body: bytes = b"", size: int = -1) -> bytes:
        """Return the bytes of a call; `size` is what it announces."""
        head = "%s %s HTTP/1.1\r\nHost: api\r\nContent-Length: %d\r\n\r\n" % (
            method, path, len(body) if size < 0 else size)
        return head.encode() + body

    def poll_call(self) -> bytes:
        """Return the bytes of a poll."""
        return self.call("GET", "/runtime/invocation/next" if self.is_scf
                         else "/v1/runtime/invocation/request")

    def next(self) -> bytes:
        """Wait for an event and note its id."""
        with self.send(self.poll_call()) as peer:
            _, fields, event, _ = read_message(peer)
        self.event_id = fields.get("request_id") or fields.get("x-cff-request-id") or ""
        return event

    def path(self, kind: str, event_id: "Optional[str]" = None) -> str:
        """Return the path of a result: `response` or `error`."""
        if self.is_scf:
            return "/runtime/invocation/" + kind
        return "/v1/runtime/invocation/%s/%s" % (
            kind, self.event_id if event_id is None else event_id)

    def respond(self, body: bytes, kind: str = "response") -> str:
        """Post a result; return the first line of the answer."""
        return self.ask("POST", self.path(kind), body)[0]


def deed_fail(api: Api, rest: str) -> None:
    """Report an error."""
    api.respond(rest.encode(), "error")


def deed_last(api: Api, rest: str) -> None:
    """Give a result, and never poll again."""
    api.respond(rest.encode())
    hang()


def deed_sleep(api: Api, rest: str) -> None:
    """Be slow."""
    time.sleep(float(rest))
    api.respond(b"slept")


def deed_large(api: Api, rest: str) -> None:
    """Give a result of so many bytes."""
    api.respond(b"x" * int(rest))


def deed_garbage(api: Api, rest: str) -> None:
    """Say something that is no HTTP, then give the result."""
    with api.send(b"\x16\x03\x01 hello\r\n\r\n") as peer:
        start = read_message(peer)[0]
    api.respond(start.encode())


def deed_half(api: Api, rest: str) -> None:
    """Send half a result and hang up, then give the whole one."""
    with api.send(api.call("POST", api.path("response"), b"half", 100)) as peer:
        peer.shutdown(SHUT_WR)
        try:
            read_message(peer)
        except OSError:
            pass
    api.respond(b"whole")


def deed_half_exit(api: Api, rest: str) -> None:
    """Send half a result and die."""
    api.send(api.call("POST", api.path("response"), b"half", 100))
    posix._exit(0)


def deed_wrong_id(api: Api, rest: str) -> None:
    """Give a result for another id first; the result is the answer to that."""
    start, _, document = api.ask("POST", api.path("response", rest), b"wrong")
    api.respond(start.encode() + b" " + document)


def deed_twice(api: Api, rest: str) -> None:
    """Give two results."""
    api.respond(b"first")
    api.respond(b"second")


def deed_unknown(api: Api, rest: str) -> None:
    """Call something that is not there; the result is the answer."""
    method, path = rest.split(" ")
    api.respond(api.ask(method, path)[0].encode())


def deed_ready(api: Api, rest: str) -> None:
    """Say again that it is ready."""
    api.respond(api.ask("POST", "/runtime/init/ready", b" ")[0].encode())


def deed_again(api: Api, rest: str) -> None:
    """Ask for the event twice more; the result is what came."""
    api.respond(api.next() + b"|" + api.next())


def deed_poll_hang(api: Api, rest: str) -> None:
    """Ask for an event again and again while this one runs, and give no result."""
    while True:
        api.next()
        time.sleep(0.01)


def deed_dead_polls(api: Api, rest: str) -> None:
    """Give a result, then leave polls behind that nobody waits for."""
    api.respond(b"left")
    for _ in range(int(rest)):
        api.send(api.poll_call()).close()


def deed_last_words(api: Api, rest: str) -> None:
    """Give a result and end at once, without waiting for the answer."""
    api.send(api.call("POST", api.path("response"), b"last words"))
    posix._exit(7)


def deed_fork(api: Api, rest: str) -> None:
    """Leave a child behind, then end."""
    if posix.fork() == 0:
        hang()
    posix._exit(0)


def deed_child(api: Api, rest: str) -> None:
    """Have a child that lives on; the result is its pid."""
    child = posix.fork()
    if child == 0:
        import signal
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        hang()
    api.respond(str(child).encode())


def deed_print(api: Api, rest: str) -> None:
    """Print so many bytes."""
    for word in rest.split():
        posix.write(1, b"p" * int(word))
    api.respond(b"printed")


PULL_DEEDS = {
    "fail": deed_fail, "last": deed_last, "sleep": deed_sleep, "large": deed_large,
    "garbage": deed_garbage, "half": deed_half, "half-exit": deed_half_exit,
    "wrong-id": deed_wrong_id, "twice": deed_twice, "unknown": deed_unknown,
    "ready": deed_ready, "again": deed_again,
    "poll-hang": deed_poll_hang, "dead-polls": deed_dead_polls,
    "last-words": deed_last_words, "fork": deed_fork, "child": deed_child,
    "print": deed_print, "hang": hang, "exit": lambda api, rest: leave(rest),
    "pid": lambda api, rest: api.respond(str(posix.getpid()).encode()),
    "cwd": lambda api, rest: api.respond(posix.getcwd().encode()),
    "env": lambda api, rest: api.respond(env()),
}  # type: Dict[str, Callable[[Api, str], object]]


def pull(mode: str) -> None:
    """Be a bootstrap of scf or fg."""
    api = Api()
    word, _, rest = mode.partition(" ")
    if word == "early":  # a result before there was any event
        api.respond(b"early")
    elif word == "poll-first":
        api.next()
    elif word == "ready-only":
        api.ask("POST", "/runtime/init/ready", b" ")
        hang()
    elif word == "exit":
        leave(rest)
    elif word:
        hang()
    if api.is_scf:
        api.ask("POST", "/runtime/init/ready", b" ")
    while True:
        event = api.next()
        word, _, rest = event.decode("latin-1").partition(" ")
        deed = PULL_DEEDS.get(word)
        if deed is None:
            api.respond(event)
        else:
            deed(api, rest)


# ---- push: fc ----


def answer(status: str, body: bytes = b"", *fields: str, size: int = -1) -> bytes:
    """Return the bytes of an answer; `size` is what it announces."""
    lines = ["HTTP/1.1 %s X" % status, *fields,
             "Content-Length: %d" % (len(body) if size < 0 else size), "", ""]
    return "\r\n".join(lines).encode() + body


def slowly(rest: str) -> bytes:
    """Be slow."""
    time.sleep(float(rest))
    return answer("200", b"slept")


PUSH_DEEDS = {
    "fail": lambda rest: answer("404", rest.encode(), "x-fc-status: 404"),
    "sleep": slowly, "hang": hang,
    "large": lambda rest: answer("200", b"x" * int(rest)),
    "head": lambda rest: answer("200", b"", "X-Long: " + "x" * int(rest)),
    "garbage": lambda rest: b"\x16\x03\x01 hello\r\n\r\n",
    "two-lengths": lambda rest: answer("200", b"x", "Content-Length: 1"),
    "half": lambda rest: answer("200", b"half", size=100),
    "half-head": lambda rest: b"HTTP/1.1 200 OK\r\nContent-Le",
    "close": lambda rest: b"",
    "status": lambda rest: answer(rest, b"status"),
    "pid": lambda rest: answer("200", str(posix.getpid()).encode()),
    "cwd": lambda rest: answer("200", posix.getcwd().encode()),
    "env": lambda rest: answer("200", env()),
    "exit": leave,
}  # type: Dict[str, Callable[[str], Optional[bytes]]]
KEPT = ("fail", "sleep", "large", "head", "status", "pid", "cwd", "env")


def serve(peer: light_http.Socket, mode: str) -> None:
    """Answer on one connection until it ends, or until a deed ends it."""
    rest = b""
    with peer:
        while True:
            try:
                start, fields, body, rest = read_message(peer, rest)
            except OSError:
                return
            method, target, _ = start.split(" ")
            text = body.decode("latin-1")
            if target == "/initialize" and mode.startswith("initialize "):
                text = mode.partition(" ")[2]
            elif target != "/invoke":
                text = target.strip("/").replace("/", " ")
            word, _, argument = text.partition(" ")
            deed = PUSH_DEEDS.get(word)
            reply = answer("200", body) if deed is None else deed(argument)
            peer.sendall(reply or b"")
            if deed is not None and word not in KEPT:
                return


def push(mode: str) -> None:
    """Be a bootstrap of fc."""
    word, _, rest = mode.partition(" ")
    if word == "exit":
        leave(rest)
    if word == "silent":
        hang()
    host = "127.0.0.1" if word == "loopback" else "0.0.0.0"
    server = light_http.listen(host, int(light_http.ENVIRON["FC_SERVER_PORT"]))
    while True:
        peer, _ = server.accept()
        light_http.aside(serve, peer, mode)


def main() -> None:
    """Be a bootstrap of the protocol that the environment shows."""
    (push if "FC_SERVER_PORT" in light_http.ENVIRON else pull)(take_mode())
