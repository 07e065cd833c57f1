# light_http.py: what the kit's own bootstraps have in common, quick to load (MIT).
"""Start programs of ours as bootstraps; give them sockets and HTTP.

One run of the tests starts more than a thousand of them. `socket`, `signal`, `json` and
`threading` load enum, re, selectors and others, which is half the time of a start, and
`os` is a tenth; so this stands on the C modules beneath them, and who needs one of those
only now and then imports it there.
"""

import _socket
import _thread
import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    import pathlib
    import signal as signal
    from typing import Any, Callable, Dict, Optional, Tuple, Union
else:
    import _signal as signal  # for those who import this, too

FOLDER = sys.argv[0].rpartition("/")[0] or "."  # the code package
ENVIRON = {name.decode("utf-8", "surrogateescape"):
           value.decode("utf-8", "surrogateescape")
           for name, value in posix.environ.items()}
PROGRAM = """#!%s -IS
import sys
sys.path[:0] = [%r, %r]
sys.pycache_prefix = %r
sys.dont_write_bytecode = %r
import %s as program
program.main()
"""
JSON_WORDS = {"true": True, "false": False, "null": None}
Timeout = _socket.timeout


def place(folder: "pathlib.Path", source: str) -> str:
    """Make a folder the code package of a program of ours; return the folder."""
    import os  # loaded already where this is called
    folder.mkdir(exist_ok=True)
    program = folder / "bootstrap"
    prefix = os.environ.get("PYTHONPYCACHEPREFIX")
    program.write_text(PROGRAM % (
        sys.executable, os.path.dirname(os.path.abspath(__file__)),
        os.path.dirname(os.path.abspath(source)), prefix,
        sys.dont_write_bytecode and not prefix,
        os.path.basename(source).partition(".")[0]))
    program.chmod(0o755)
    return str(folder)


def literal(text: "Union[bytes, str]") -> "Any":
    """Return what a JSON text of our own stands for. Raises SyntaxError, NameError,
    ValueError."""
    return eval(text, {"__builtins__": {}}, JSON_WORDS)


def to_json(value: object) -> str:
    """Return the value as JSON."""
    import json
    return json.dumps(value)


def aside(function: "Callable[..., object]", *arguments: object) -> None:
    """Call it in a thread of its own."""
    _thread.start_new_thread(function, arguments)


# ---- sockets ----


class Socket(_socket.socket):
    """A TCP socket, with as much of `socket.socket` as is needed here."""

    def accept(self) -> "Tuple[Socket, object]":
        """Return the next connection and the address of its peer."""
        descriptor, address = self._accept()  # type: ignore[attr-defined]
        return Socket(fileno=descriptor), address

    def __enter__(self) -> "Socket":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connect(host: str, port: int, limit_s: "Optional[float]" = None) -> Socket:
    """Return a new connection; the limit is that of each step. Raises OSError."""
    made = Socket()
    made.settimeout(limit_s)
    try:
        made.connect((host, port))
    except OSError:
        made.close()
        raise
    return made


def listen(host: str, port: int, backlog: int = 256) -> Socket:
    """Return a listening socket. Raises OSError."""
    made = Socket()
    made.setsockopt(_socket.SOL_SOCKET, _socket.SO_REUSEADDR, 1)
    made.bind((host, port))
    made.listen(backlog)
    return made


def reset(sock: Socket) -> None:
    """Break a connection off."""
    sock.setsockopt(_socket.SOL_SOCKET, _socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


# ---- HTTP ----


def more(peer: Socket) -> bytes:
    """Return what arrives next. Raises OSError at the end of the stream."""
    data = peer.recv(1 << 18)
    if not data:
        raise OSError("end of stream")
    return data


def read_message(peer: Socket,
                 rest: bytes = b"") -> "Tuple[str, Dict[str, str], bytes, bytes]":
    """Return (start line, fields, body, bytes beyond). Raises OSError at the end."""
    data = rest
    while b"\r\n\r\n" not in data:
        data += more(peer)
    head, _, data = data.partition(b"\r\n\r\n")
    start, *lines = head.decode("latin-1").split("\r\n")
    pairs = (line.split(":", 1) for line in lines)
    fields = {name.lower(): value.strip() for name, value in pairs}
    if fields.get("transfer-encoding") == "chunked":
        body, data = read_chunks(peer, data)
        return start, fields, body, data
    size = int(fields.get("content-length", "0"))
    while len(data) < size:
        data += more(peer)
    return start, fields, data[:size], data[size:]


def read_chunks(peer: Socket, data: bytes) -> "Tuple[bytes, bytes]":
    """Return (body, bytes beyond) of a chunked body without trailers."""
    body = b""
    while True:
        while b"\r\n" not in data:
            data += more(peer)
        size = int(data.partition(b"\r\n")[0], 16)
        data = data.partition(b"\r\n")[2]
        while len(data) < size + 2:
            data += more(peer)
        body, data = body + data[:size], data[size + 2:]
        if not size:
            return body, data
