# played_bootstrap.py: a bootstrap that does what the kit tells it, however wrong (MIT).
"""Be the process that a platform under test starts; obey the kit.

The kit writes a code folder whose `bootstrap` runs this, with a file `script` beside it
that holds the kit's own address. There it reports its environment, then gets one order
after the other (a dict in Python's marshal format: same interpreter, quick to load) and
answers each. It speaks no protocol: it opens, listens, sends bytes, reads bytes, closes,
and ends itself in every way there is.
"""

import marshal
import posix
import sys
import time

import light_http
import scripted_bootstrap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Optional

SHOWN_BYTES = 65536  # of a body that is sent to the kit; of the rest only the size

sockets = {}  # type: Dict[int, light_http.Socket]
numbers = iter(range(1000, 1 << 30))  # of those that are accepted, each once


def read_message(sock: light_http.Socket, limit_s: float, bodiless: bool,
                 ) -> "Dict[str, Any]":
    """Return what arrived: `end` is whole, silence or closed."""
    deadline = time.monotonic() + limit_s
    data = bytearray()
    end = "whole"
    while end == "whole" and not is_whole(data, bodiless):
        sock.settimeout(max(0.001, deadline - time.monotonic()))
        try:
            data += light_http.more(sock)
        except light_http.Timeout:
            end = "silence"
        except OSError:
            end = "closed"
    head, _, body = bytes(data).partition(b"\r\n\r\n")
    return {"end": end, "head": head, "body": body[:SHOWN_BYTES],
            "body_bytes": len(body), "body_sum": sum_of(body)}


def sum_of(body: bytes) -> int:
    """Return a checksum of what the kit does not get, 0 if it gets all."""
    if len(body) <= SHOWN_BYTES:
        return 0
    import zlib  # for very few
    return zlib.crc32(body)


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


def next_request(server: light_http.Socket, limit_s: float) -> "Dict[str, Any]":
    """Return the next request on any connection of this server, old or new."""
    import select  # most never do this, and there are many
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        accepted = {sock: number for number, sock in sockets.items() if number >= 1000}
        left = max(0.0, deadline - time.monotonic())
        for sock in select.select([server, *accepted], [], [], left)[0]:
            if sock is server:
                sockets[next(numbers)] = server.accept()[0]
                break
            message = read_message(sock, limit_s, False)
            if message["head"]:
                return dict(message, n=accepted[sock])
            sockets.pop(accepted[sock]).close()
            break
    return {"end": "silence", "head": b"", "body": b"", "body_bytes": 0,
            "body_sum": 0, "n": 0}


def end_noted(number: int, _: object) -> None:
    """End by this signal; note it beside the program first."""
    with open("%s/signal-%d-%d" % (light_http.FOLDER, number, posix.getpid()), "w"):
        posix._exit(0)


def obey(order: "Dict[str, Any]") -> "Optional[Dict[str, Any]]":
    """Do one order; return the answer to it."""
    word, number = order["do"], order.get("n", 0)
    if word == "open":
        sockets[number] = light_http.connect(order["host"], order["port"], 5)
    elif word == "listen":
        sockets[number] = light_http.listen(order["host"], order["port"])
    elif word == "send":
        sockets[number].settimeout(10)
        for part in order["parts"]:
            sockets[number].sendall(b"x" * part if isinstance(part, int) else part)
    elif word == "call":  # most of what happens, so it is one order
        obey(dict(order, do="open"))
        try:
            obey(dict(order, do="send"))
        except OSError:
            pass  # what was refused early is answered all the same
        answer = read_message(sockets[number], order["limit_s"], False)
        sockets.pop(number).close()
        return answer
    elif word == "read":
        return read_message(sockets[number], order["limit_s"], order["bodiless"])
    elif word == "request":
        return next_request(sockets[number], order["limit_s"])
    elif word == "close":
        sock = sockets.pop(number)
        if order.get("reset"):
            light_http.reset(sock)
        sock.close()
    elif word == "fork":
        return {"child": int(scripted_bootstrap.fork(
            False, order.get("bytes", 0) >> 20))}
    elif word == "exit":
        posix._exit(order["status"])
    elif word == "kill":
        scripted_bootstrap.kill(order["signal"])
    elif word == "ignore":
        light_http.signal.signal(order["signal"], light_http.signal.SIG_IGN)
    elif word == "obey":
        light_http.signal.signal(order["signal"], end_noted)
    elif word == "print":
        posix.write(order["to"], order["text"])
    elif word == "eat":
        scripted_bootstrap.alloc(order["bytes"] >> 20)
    return {}


def main() -> None:
    """Report to the kit and obey until it hangs up."""
    with open(light_http.FOLDER + "/script", encoding="utf-8") as file:
        port = int(file.read())
    control = light_http.connect("127.0.0.1", port)
    orders = open(control.fileno(), "rb", closefd=False)
    hello = {"pid": posix.getpid(), "environ": light_http.ENVIRON,
             "cwd": posix.getcwd(), "argv": sys.argv}  # type: Dict[str, Any]
    control.sendall(marshal.dumps(hello))
    while True:
        try:
            answer = obey(marshal.load(orders))
        except EOFError:
            return
        except OSError as error:
            answer = {"failed": str(error)}
        control.sendall(marshal.dumps(answer))
