# scripted_bootstrap.py: a bootstrap that obeys a script in its event (MIT).
"""Be a real process behind a platform, and do what the event says, step by step.

`place(folder, plan)` makes this the bootstrap of a code folder. An event that is a JSON
list is a script, whose steps are those of STEPS; its result is what the last step
returned. Any other event is echoed. For fc a GET of `/do/HEX` is a script too. `plan`
maps `start`, `after` (each result; scf and fg) and paths of hooks to scripts; it holds
for the first process only, unless its member `always` is true.
"""

import posix
import sys
import time
from _socket import IPPROTO_TCP, SHUT_WR, TCP_CORK

import light_http
from light_http import signal, to_json

TYPE_CHECKING = False  # it is started some hundred times: no import without need
if TYPE_CHECKING:
    import pathlib
    from typing import Any, Dict, List, Optional

kept = []  # type: List[bytearray]
served = [0]
apis = []  # type: List[Api]


# ---- for tests ----


def place(folder: "pathlib.Path", plan: "Optional[Dict[str, Any]]" = None) -> str:
    """Write the bootstrap and its plan into a folder; return the folder."""
    light_http.place(folder, __file__)
    if plan:
        (folder / "plan").write_text(to_json(plan))
    return str(folder)


def path_of(script: "List[Any]") -> str:
    """Return the path that makes an fc function run a script."""
    return "/do/" + to_json(script).encode().hex()


# ---- steps: each gets the peer (fc) and its arguments, and may return a result ----


def note(word: str) -> None:
    """Append a line to the file `notes` of the code folder."""
    with open(light_http.FOLDER + "/notes", "a") as file:
        file.write(word + "\n")


def kill(number: int) -> None:
    """End or stop this process by a signal, without a core file."""
    import resource
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    posix.kill(posix.getpid(), number)
    time.sleep(0.1 if number == signal.SIGSTOP else 3600)  # until it takes effect


def fork(own_session: bool = False, megabytes: int = 0) -> str:
    """Leave a child behind that takes so much memory; return its process id."""
    ready, tell_ready = posix.pipe()
    child = posix.fork()
    if child == 0:
        if own_session:
            posix.setsid()
        posix.write(tell_ready, b"!")  # a signal that came before may have been lost
        alloc(megabytes)
        while True:
            time.sleep(3600)
    posix.read(ready, 1)
    posix.close(ready)
    posix.close(tell_ready)
    return str(child)


def alloc(megabytes: int) -> None:
    """Take memory, and keep it."""
    kept.append(bytearray(b"x") * (megabytes << 20))


def flood(total: int, unit: str) -> str:
    """Print so many bytes of a repeated unit (hexadecimal)."""
    piece = bytes.fromhex(unit) * (65536 // (len(unit) // 2))
    while total > 0:
        total -= posix.write(1, piece[:total])
    return "flooded"


def tell(path: str) -> None:
    """Open a FIFO for writing and close it: whoever reads it goes on."""
    with open(path, "w"):
        pass


def wait(path: str) -> None:
    """Wait until somebody opens the FIFO for writing and closes it."""
    with open(path) as file:
        file.read()


def later(path: str, script: "List[Any]") -> None:
    """Go on; run the script in a thread when the FIFO opens."""
    light_http.aside(run, [["wait", path], *script], None)


def on_term(word: str) -> None:
    """Note each SIGTERM from now on; end then, unless the word is `ignore`. Call it
    before there are other threads."""
    # a handler may be missed by a main thread that is just about to accept()
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])

    def watch() -> None:
        while True:
            signal.sigwait([signal.SIGTERM])
            note("SIGTERM")
            if word != "ignore":
                posix._exit(0)

    light_http.aside(watch)


# ---- steps that speak to the runtime API (scf, fg) on a connection of their own ----


def post(text: str) -> light_http.Socket:
    """Send, and wait for no answer. `{response}`, `{error}` and `{next}` in the text
    become the paths of this event."""
    for name in ("response", "error", "next"):
        text = text.replace("{%s}" % name, apis[0].path(name))
    peer = apis[0].connect()
    peer.sendall(text.encode("latin-1"))
    apis[0].kept.append(peer)
    return peer


def ask(text: str) -> str:
    """Send; return first line and body of the answer."""
    start, _, body, _ = light_http.read_message(post(text))
    return start + " " + body.decode("latin-1")


def half(text: str) -> None:
    """Send, end the stream, and wait until the other side ends it."""
    peer = post(text)
    peer.shutdown(SHUT_WR)
    while peer.recv(65536):
        pass


def fail(text: str) -> str:
    """Let the result of this event be an error."""
    apis[0].kind = "error"
    return text


def spawn(fifo: str) -> None:
    """Start a program; until somebody writes to the pipe that is its input, it uses the
    memory of this process, which waits."""
    posix.posix_spawn("/bin/true", ["true"], {}, file_actions=[
        (posix.POSIX_SPAWN_OPEN, 0, fifo, posix.O_RDONLY, 0)])


STEPS = {
    "ask": ask, "half": half, "drop": lambda text: post(text).close(), "fail": fail,
    "post": lambda text: post(text) and None,
    "out": lambda fd, text: posix.write(fd, text.encode()) and None,
    "exit": lambda status: posix._exit(status), "kill": kill, "fork": fork,
    "alloc": alloc, "fork-alloc": lambda size: fork(False, size) and None, "flood": flood, "tell": tell,
    "wait": wait, "later": later, "spawn": spawn,
    "note": note, "on-term": on_term, "hang": lambda: time.sleep(3600),
    "sleep": time.sleep, "say": lambda text: text, "pid": lambda: str(posix.getpid()),
    "count": lambda: str(served[0]), "env": lambda: to_json(light_http.ENVIRON),
    "argv": lambda: to_json(sys.argv),
}  # type: Dict[str, Any]


def run(script: "List[Any]", peer: "Optional[light_http.Socket]") -> "Optional[bytes]":
    """Run a script; return its result, or None when it has answered by itself."""
    result = b""  # type: Optional[bytes]
    for word, *arguments in script:
        if peer is not None and word in RAW:
            RAW[word](peer, *arguments)
            result = None
        else:
            found = STEPS[word](*arguments)
            result = result if found is None else found.encode()
    return result


def send(peer: light_http.Socket, text: str, count: int = 1) -> None:
    """Send a text, latin-1, as it is."""
    peer.sendall(text.encode("latin-1") * count)


RAW = {"send": send, "reset": light_http.reset,
       "cork": lambda peer: peer.setsockopt(IPPROTO_TCP, TCP_CORK, 1),  # until it closes
       "close": lambda peer: peer.close(),
       "shut": lambda peer: peer.shutdown(SHUT_WR)}  # type: Dict[str, Any]


def take_plan() -> "Dict[str, Any]":
    """Return the plan for this process."""
    path = light_http.FOLDER + "/plan"
    try:
        with open(path) as file:
            plan = light_http.literal(file.read())  # type: Dict[str, Any]
        if not plan.get("always"):
            posix.unlink(path)
        return plan
    except OSError:
        return {}


def script_of(event: bytes) -> "Optional[List[Any]]":
    """Return the script in an event, or None."""
    try:
        found = light_http.literal(event) if event[:2] == b"[[" else None
        return found if isinstance(found, list) else None
    except (SyntaxError, NameError, ValueError):
        return None


# ---- pull ----


class Api:
    """The runtime API, and the event that is being handled."""

    def __init__(self) -> None:
        self.is_scf = "SCF_RUNTIME_API" in light_http.ENVIRON
        self.port = int(light_http.ENVIRON["SCF_RUNTIME_API_PORT"] if self.is_scf else
                        light_http.ENVIRON["RUNTIME_API_ADDR"].rpartition(":")[2])
        self.event_id = ""
        self.kind = ""
        self.kept = []  # type: List[light_http.Socket]

    def connect(self) -> light_http.Socket:
        """Return a new connection."""
        return light_http.connect("127.0.0.1", self.port)

    def path(self, name: str) -> str:
        """Return the path of `next`, `response` or `error`."""
        if self.is_scf:
            return "/runtime/invocation/" + name
        base = "/v1/runtime/invocation/"
        return base + ("request" if name == "next" else name + "/" + self.event_id)

    def call(self, peer: light_http.Socket, method: str, path: str,
             body: bytes = b"") -> bytes:
        """Make a call on the connection; return the body of the answer."""
        peer.sendall(b"%s %s HTTP/1.1\r\nHost: api\r\nContent-Length: %d\r\n\r\n" % (
            method.encode(), path.encode(), len(body)) + body)
        _, fields, answer, _ = light_http.read_message(peer)
        self.event_id = fields.get("x-cff-request-id", "")
        return answer


def pull() -> None:
    """Be a bootstrap of scf or fg."""
    plan = take_plan()
    api = Api()
    apis.append(api)
    run(plan.get("start", []), None)
    peer = api.connect()
    if api.is_scf:
        api.call(peer, "POST", "/runtime/init/ready")
    while True:
        event = api.call(peer, "GET", api.path("next"))
        served[0] += 1
        api.kind = "response"
        script = script_of(event)
        result = event if script is None else run(script, None)
        api.call(peer, "POST", api.path(api.kind), result or b"")
        run(plan.get("after", []), None)


# ---- push ----


def push() -> None:
    """Be a bootstrap of fc."""
    plan = take_plan()
    run(plan.get("start", []), None)
    server = light_http.listen(plan.get("host", "0.0.0.0"),
                               int(light_http.ENVIRON["FC_SERVER_PORT"]),
                               plan.get("backlog", 256))
    run(plan.get("listening", []), None)
    while True:
        peer, _ = server.accept()
        light_http.aside(serve, peer, plan)


def serve(peer: light_http.Socket, plan: "Dict[str, Any]") -> None:
    """Answer on one connection until it ends, or until a script ends it."""
    rest = b""
    while True:
        try:
            start, _, body, rest = light_http.read_message(peer, rest)
            target = start.split(" ")[1]
            script = script_of(body) or plan.get(target)
            if target.startswith("/do/"):
                script = light_http.literal(bytes.fromhex(target[4:]))
            served[0] += target == "/invoke"
            result = body if script is None else run(script, peer)
            if result is not None:
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
                             % len(result) + result)
        except OSError:
            peer.close()
            return


def main() -> None:
    """Be a bootstrap of the protocol that the environment shows."""
    (push if "FC_SERVER_PORT" in light_http.ENVIRON else pull)()
