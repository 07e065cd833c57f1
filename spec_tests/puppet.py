# puppet.py: a bootstrap that does what the kit tells it, however wrong (MIT).
"""Be the process that a platform under test starts; obey the kit.

The kit copies this file into a code folder as `bootstrap`, with a file `script` beside
it that holds the kit's own address. There the puppet reports its environment and then
gets one order per line (JSON) and answers each with one line. It speaks no protocol: it
opens, listens, sends bytes, reads bytes, closes, and ends itself in every way there is.
"""

import binascii
import json
import os
import resource
import select
import signal
import socket
import sys
import time
import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

SHOWN_BYTES = 65536  # of a body that is sent to the kit; of the rest only the checksum

sockets = {}  # type: Dict[int, socket.socket]
eaten = []  # type: List[bytearray]


def text(data: bytes) -> str:
    """Return bytes in base64."""
    return binascii.b2a_base64(data, newline=False).decode()


def read_message(sock: socket.socket, limit_s: float,
                 bodiless: bool) -> "Dict[str, Any]":
    """Return what arrived: `end` is whole, silence or closed."""
    deadline = time.monotonic() + limit_s
    data = bytearray()
    end = "whole"
    while not is_whole(data, bodiless):
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            piece = sock.recv(1 << 18)
        except socket.timeout:
            end = "silence"
            break
        except OSError:
            piece = b""
        if not piece:
            end = "closed"
            break
        data += piece
    head, _, body = bytes(data).partition(b"\r\n\r\n")
    return {"end": end, "head": text(head), "body": text(body[:SHOWN_BYTES]),
            "body_bytes": len(body), "crc": zlib.crc32(body)}


def is_whole(data: bytearray, bodiless: bool) -> bool:
    """Tell whether a whole HTTP message has arrived."""
    place = data.find(b"\r\n\r\n")
    if place < 0:
        return False
    head = bytes(data[:place]).lower()
    if bodiless:
        return True
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name == b"content-length":
            return len(data) >= place + 4 + int(value)
        if name == b"transfer-encoding":
            return data.endswith(b"0\r\n\r\n")
    return not head.startswith(b"http/") or head[9:12] in (b"204", b"304", b"100")


def next_request(server: socket.socket, limit_s: float) -> "Dict[str, Any]":
    """Return the next request on any connection of this server, old or new."""
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        accepted = {sock: number for number, sock in sockets.items() if number >= 1000}
        left = max(0.0, deadline - time.monotonic())
        for sock in select.select([server, *accepted], [], [], left)[0]:
            if sock is server:
                sockets[max([999, *accepted.values()]) + 1] = server.accept()[0]
                break
            message = read_message(sock, limit_s, False)
            if message["head"]:
                return dict(message, n=accepted[sock])
            sockets.pop(accepted[sock]).close()
            break
    return {"end": "silence", "head": "", "body": "", "body_bytes": 0, "crc": 0, "n": 0}


def obey(order: "Dict[str, Any]") -> "Optional[Dict[str, Any]]":
    """Do one order; return the answer to it."""
    word, number = order["do"], order.get("n", 0)
    if word == "open":
        sockets[number] = socket.create_connection((order["host"], order["port"]), 5)
    elif word == "listen":
        server = socket.socket()
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.bind((order["host"], order["port"]))
        server.listen(64)
        sockets[number] = server
    elif word == "send":
        sockets[number].settimeout(10)
        for part in order["parts"]:
            sockets[number].sendall(b"x" * part if isinstance(part, int)
                                    else binascii.a2b_base64(part))
    elif word == "read":
        return read_message(sockets[number], order["limit_s"], order["bodiless"])
    elif word == "request":
        return next_request(sockets[number], order["limit_s"])
    elif word == "close":
        sock = sockets.pop(number)
        if order.get("reset"):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()
    elif word == "fork":
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
        return {"child": child}
    else:
        end(word, order)
    return {}


def end(word: str, order: "Dict[str, Any]") -> None:
    """End or stop this process, or print, or take memory."""
    if word == "exit":
        os._exit(order["status"])
    elif word == "kill":
        if order["signal"] not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(order["signal"], signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.kill(os.getpid(), order["signal"])
    elif word == "ignore":
        signal.signal(order["signal"], signal.SIG_IGN)
    elif word == "print":
        os.write(order["to"], binascii.a2b_base64(order["text"]))
    elif word == "eat":
        eaten.append(bytearray(b"x") * order["bytes"])


def main() -> None:
    """Report to the kit and obey until it hangs up."""
    folder = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(folder, "script"), encoding="utf-8") as file:
        port = int(file.read())
    control = socket.create_connection(("127.0.0.1", port))
    lines = control.makefile("rwb", buffering=0)
    hello = {"pid": os.getpid(), "environ": dict(os.environ), "cwd": os.getcwd(),
             "argv": sys.argv, "folder": folder}  # type: Dict[str, Any]
    lines.write(json.dumps(hello).encode() + b"\n")
    for line in control.makefile("rb"):
        try:
            answer = obey(json.loads(line))
        except OSError as error:
            answer = {"failed": str(error)}
        lines.write(json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    main()
