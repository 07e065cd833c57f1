#!/usr/bin/env python3
# servant.py: a bootstrap of fc, scf and fg that obeys a script in its event (MIT).
"""Be a real process behind a platform, and do what the event says, step by step.

`place(folder, plan)` puts this file into a code folder as its bootstrap. An event that
is a JSON list is a script, whose steps are those of STEPS; its result is what the last
step returned. Any other event is echoed. For fc a GET of `/do/HEX` is a script too.
`plan` maps `start` and paths of hooks to scripts; it holds for the first process only,
unless its member `always` is true.
"""

import binascii
import json
import os
import resource
import signal
import socket
import sys
import threading
import time

TYPE_CHECKING = False  # it is started some hundred times: no import without need
if TYPE_CHECKING:
    import pathlib
    from typing import Any, Dict, List, Optional, Tuple

FOLDER = os.path.dirname(os.path.abspath(__file__))
kept = []  # type: List[bytearray]
served = [0]


# ---- for tests ----


def place(folder: "pathlib.Path", plan: "Optional[Dict[str, Any]]" = None) -> str:
    """Write the bootstrap and its plan into a folder; return the folder."""
    folder.mkdir(exist_ok=True)
    program = folder / "bootstrap"
    with open(__file__) as file:
        program.write_text("#!%s -IS\n%s" % (sys.executable, file.read()))
    program.chmod(0o755)
    if plan:
        (folder / "plan").write_text(json.dumps(plan))
    return str(folder)


def path_of(script: "List[Any]") -> str:
    """Return the path that makes an fc function run a script."""
    return "/do/" + binascii.b2a_hex(json.dumps(script).encode()).decode()


# ---- steps: each gets the peer (fc) and its arguments, and may return a result ----


def note(word: str) -> None:
    """Append a line to the file `notes` of the code folder."""
    with open(os.path.join(FOLDER, "notes"), "a") as file:
        file.write(word + "\n")


def kill(number: int) -> None:
    """End or stop this process by a signal, without a core file."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.kill(os.getpid(), number)
    time.sleep(0.1 if number == signal.SIGSTOP else 3600)  # until it takes effect


def fork(own_session: bool = False) -> str:
    """Leave a child behind; return its process id."""
    child = os.fork()
    if child == 0:
        if own_session:
            os.setsid()
        while True:
            time.sleep(3600)
    return str(child)


def alloc(megabytes: int) -> None:
    """Take memory, and keep it."""
    kept.append(bytearray(b"x") * (megabytes << 20))


def fork_alloc(megabytes: int) -> None:
    """Let a child take memory."""
    if os.fork() == 0:
        alloc(megabytes)
        time.sleep(3600)


def flood(total: int, unit: str) -> str:
    """Print so many bytes of a repeated unit (hexadecimal)."""
    piece = binascii.a2b_hex(unit) * (65536 // (len(unit) // 2))
    while total > 0:
        total -= os.write(1, piece[:total])
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
    threading.Thread(target=lambda: run([["wait", path], *script], None),
                     daemon=True).start()


def on_term(word: str) -> None:
    """Note a SIGTERM; end then, unless the word is `ignore`."""
    def handler(number: int, _: object) -> None:
        note("SIGTERM")
        if word != "ignore":
            os._exit(0)

    signal.signal(signal.SIGTERM, handler)


STEPS = {
    "out": lambda fd, text: os.write(fd, text.encode()) and None,
    "exit": lambda status: os._exit(status), "kill": kill, "fork": fork,
    "alloc": alloc, "fork-alloc": fork_alloc, "flood": flood, "tell": tell,
    "wait": wait, "later": later,
    "note": note, "on-term": on_term, "hang": lambda: time.sleep(3600),
    "sleep": time.sleep, "say": lambda text: text, "pid": lambda: str(os.getpid()),
    "count": lambda: str(served[0]), "env": lambda: json.dumps(dict(os.environ)),
    "argv": lambda: json.dumps(sys.argv),
}  # type: Dict[str, Any]


def run(script: "List[Any]", peer: "Optional[socket.socket]") -> "Optional[bytes]":
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


def send(peer: socket.socket, text: str, count: int = 1) -> None:
    """Send a text, latin-1, as it is."""
    peer.sendall(text.encode("latin-1") * count)


def reset(peer: socket.socket) -> None:
    """Break the connection off."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    peer.close()


def cork(peer: socket.socket) -> None:
    """Hold back what is sent until the connection is closed."""
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)


RAW = {"send": send, "cork": cork, "reset": reset, "close": lambda peer: peer.close(),
       "shut": lambda peer: peer.shutdown(socket.SHUT_WR)}  # type: Dict[str, Any]


def take_plan() -> "Dict[str, Any]":
    """Return the plan for this process."""
    path = os.path.join(FOLDER, "plan")
    try:
        with open(path) as file:
            plan = json.load(file)  # type: Dict[str, Any]
        if not plan.get("always"):
            os.unlink(path)
        return plan
    except OSError:
        return {}


def read(peer: socket.socket,
         rest: bytes = b"") -> "Tuple[str, Dict[str, str], bytes, bytes]":
    """Return (start line, fields, body, bytes beyond). Raises OSError at the end."""
    data = rest
    while b"\r\n\r\n" not in data:
        data += more(peer)
    head, _, data = data.partition(b"\r\n\r\n")
    start, *lines = head.decode("latin-1").split("\r\n")
    fields = {name.lower(): value.strip() for name, _, value in
              (line.partition(":") for line in lines)}
    size = int(fields.get("content-length", "0"))
    while len(data) < size:
        data += more(peer)
    return start, fields, data[:size], data[size:]


def more(peer: socket.socket) -> bytes:
    """Return what arrives next. Raises OSError at the end of the stream."""
    data = peer.recv(1 << 18)
    if not data:
        raise OSError("end of stream")
    return data


def script_of(event: bytes) -> "Optional[List[Any]]":
    """Return the script in an event, or None."""
    try:
        found = json.loads(event) if event[:2] == b"[[" else None
        return found if isinstance(found, list) else None
    except ValueError:
        return None


# ---- pull ----


def pull() -> None:
    """Be a bootstrap of scf or fg."""
    plan = take_plan()
    run(plan.get("start", []), None)
    is_scf = "SCF_RUNTIME_API" in os.environ
    address = (("127.0.0.1", int(os.environ["SCF_RUNTIME_API_PORT"])) if is_scf else
               ("127.0.0.1", int(os.environ["RUNTIME_API_ADDR"].rpartition(":")[2])))
    base = "/runtime/invocation/" if is_scf else "/v1/runtime/invocation/"
    peer = socket.create_connection(address)
    if is_scf:
        ask(peer, "POST", "/runtime/init/ready", b"")
    while True:
        fields, event = ask(peer, "GET", base + ("next" if is_scf else "request"), b"")
        served[0] += 1
        script = script_of(event)
        result = event if script is None else run(script, None)
        own = "" if is_scf else "/" + fields["x-cff-request-id"]
        ask(peer, "POST", base + "response" + own, result or b"")
        run(plan.get("after", []), None)


def ask(peer: socket.socket, method: str, path: str,
        body: bytes) -> "Tuple[Dict[str, str], bytes]":
    """Make a call on the one connection; return fields and body of the answer."""
    peer.sendall(b"%s %s HTTP/1.1\r\nHost: api\r\nContent-Length: %d\r\n\r\n" % (
        method.encode(), path.encode(), len(body)) + body)
    _, fields, answer, _ = read(peer)
    return fields, answer


# ---- push ----


def push() -> None:
    """Be a bootstrap of fc."""
    plan = take_plan()
    run(plan.get("start", []), None)
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((plan.get("host", "0.0.0.0"), int(os.environ["FC_SERVER_PORT"])))
    server.listen(plan.get("backlog", 256))
    run(plan.get("listening", []), None)
    while True:
        peer, _ = server.accept()
        threading.Thread(target=serve, args=(peer, plan), daemon=True).start()


def serve(peer: socket.socket, plan: "Dict[str, Any]") -> None:
    """Answer on one connection until it ends, or until a script ends it."""
    rest = b""
    while True:
        try:
            start, _, body, rest = read(peer, rest)
            target = start.split(" ")[1]
            script = script_of(body) or plan.get(target)
            if target.startswith("/do/"):
                script = json.loads(binascii.a2b_hex(target[4:]))
            served[0] += target == "/invoke"
            result = body if script is None else run(script, peer)
            if result is not None:
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n"
                             % len(result) + result)
        except OSError:
            peer.close()
            return


if __name__ == "__main__":
    (push if "FC_SERVER_PORT" in os.environ else pull)()
