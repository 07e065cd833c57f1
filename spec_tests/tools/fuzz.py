#!/usr/bin/env python3
# fuzz.py: thousands of broken messages for every socket of emulator.py (MIT).
"""Throw mutated messages at one side of the emulator and see that it stays well.

    python3 spec_tests/tools/fuzz.py {scf|fg|door|answers} COUNT [SEED]

`scf` and `fg` are runtime APIs, `door` is the front door of an fc function, `answers`
are those of an fc function's server. Prints one JSON line: how many answers of each
status (or outcomes of each kind) there were, and everything that was not as it must be:
a crash, an answer that is no HTTP, something left behind. A message that hangs ends the
program after a minute, with a traceback.
"""

import collections
import contextlib
import faulthandler
import json
import pathlib
import random
import re
import socket
import sys
import threading
from typing import Counter, Dict, List, Tuple

TESTS = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(TESTS))

import rooms  # noqa: E402, F401

from harness import Harness, Peer, held, until  # noqa: E402
from wire import WireError  # noqa: E402

EMPTY = b" HTTP/1.1\r\nHost: a\r\n\r\n"
RESULT = (b" HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
          b"Content-Length: 4\r\n\r\nbody")
CHUNKS = (b" HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n"
          b"Expect: 100-continue\r\n\r\n"
          b"3;x=y\r\nabc\r\n4\r\nbody\r\n0\r\nTrailer: x\r\n\r\n")
VALID: Dict[str, List[bytes]] = {
    "scf": [b"GET /runtime/invocation/next" + EMPTY,
            b"POST /runtime/init/ready" + RESULT,
            b"POST /runtime/invocation/response" + RESULT,
            b"POST /runtime/invocation/error" + CHUNKS],
    "fg": [b"GET /v1/runtime/invocation/request" + EMPTY,
           b"POST /v1/runtime/invocation/response/00-11" + RESULT,
           b"POST /v1/runtime/invocation/error/" + CHUNKS],
    "door": [b"POST /-/invoke" + RESULT, b"POST /-/invoke" + CHUNKS,
             b"GET /-/state" + EMPTY, b"POST /a/b?c=d" + CHUNKS,
             b"GET /chat HTTP/1.1\r\nUpgrade: websocket\r\n"
             b"Connection: Upgrade\r\n\r\n"],
    "answers": [b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody",
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
                b"4\r\nbody\r\n0\r\n\r\n",
                b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 X\r\nx-fc-status: 404\r\n"
                b"Content-Length: 0\r\n\r\n", b"HTTP/1.0 204 No Content\r\n\r\n"]}
WORDS = [
    b"\r\n", b"\n", b"\r", b"\r\n\r\n", b"\0", b" ", b"\t", b":", b";", b",", b"0",
    b"-1", b"ffffffff", b"99999999999999999999", b"%0d%0a", b"../", b" folded\r\n",
    b"\xff\xfe", b"chunked", b"Transfer-Encoding: chunked\r\n", b"HTTP/9.9",
    b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"HTTP/1.1", b"HTTP/1.0",
    b"Connection: close\r\n", b"Expect: 100-continue\r\n", b"x" * 300, b"\x1b[2J",
    b"GET / HTTP/1.1\r\n\r\n"]
ANSWER = re.compile(rb"HTTP/1\.1 ([1-5]\d\d) [ -~]*\r\n"
                    rb"((?:[!-9;-~]+: [^\r\n\0]*\r\n)*)\r\n")


def mutate(chance: random.Random, message: bytes) -> bytes:
    """Return the message with one to four faults in it."""
    def below(limit: int) -> int:  # costs a third of randrange()
        return int(chance.random() * limit)

    for _ in range(1 + below(4)):
        place = below(len(message) + 1)
        end = min(len(message), place + (1, 1, 2, 8, 40)[below(5)])
        before, inside, after = message[:place], message[place:end], message[end:]
        word = WORDS[below(len(WORDS))]
        message = (before + word + inside + after,                  # insert
                   before + after,                                  # remove
                   before + word + after,                           # replace
                   before + bytes([below(256)]) + message[place + 1:],
                   before + inside * (2 + below(3)) + after,        # repeat
                   before if chance.random() < 0.3 else message     # cut
                   )[below(6)]
    return message


# ---- requests to servers of ours ----


def exchange(address: Tuple[str, int], message: bytes) -> bytes:
    """Send a message, and the end of the stream; return the answers."""
    may_be_held = b"GET " in message  # a poll, with something behind it
    peer = Peer(socket.create_connection(address, 10))
    peer.sock.settimeout(0.1 if may_be_held else 10)
    try:
        peer.sock.sendall(message)
        peer.sock.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: peer.sock.recv(65536), b""))
    except (ConnectionError, socket.timeout) as error:
        if may_be_held or isinstance(error, ConnectionError):
            return b""  # closed with bytes unread, or held
        raise
    finally:
        peer.reset()


def check_answers(data: bytes, seen: Counter[str]) -> str:
    """Count the answers; return what is no well-formed answer."""
    if not data:
        seen["closed"] += 1
    while data:
        head = ANSWER.match(data)
        if not head:
            return repr(data[:200])
        seen[head[1].decode()] += 1
        length = re.search(rb"(?i)\r\ncontent-length: (\d+)\r\n", data[:head.end()])
        data = data[head.end() + (int(length[1]) if length else 0):]
    return ""


def fuzz_requests(kind: str, count: int, chance: random.Random) -> Dict[str, object]:
    """Send mutated requests to a server of ours."""
    seen: Counter[str] = collections.Counter()
    wrong: List[str] = []
    with (Harness("fc", timeout_s=1000, max_instances=0, queue=0) if kind == "door"
          else Harness(kind, timeout_s=1000)) as harness:
        address = (harness.door.host, harness.door.port)
        if kind != "door":
            caller = harness.event(b"the event")  # stays, so that polls are not held
            address = harness.api()
        for number in range(count):
            message = mutate(chance, chance.choice(VALID[kind]))
            bad = check_answers(exchange(address, message), seen)
            if bad or harness.crashes:
                wrong.append("%r: %s %s" % (message, bad, harness.crashes))
                harness.crashes.clear()
            if number % 200 == 0 and not alive(kind, address):
                wrong.append("no answer after %r" % message)
    return {"kind": kind, "count": count, "seen": seen, "wrong": wrong[:20]}


def alive(kind: str, address: Tuple[str, int]) -> bool:
    """Tell whether a valid request is answered over the real listener."""
    peer = Peer(socket.create_connection(address, 10))
    peer.send(b"GET /-/health HTTP/1.1\r\n\r\n")
    status = peer.answer().status
    peer.close()
    return status == (200 if kind == "door" else 404)


# ---- answers of a function's server ----


GOOD = VALID["answers"][0]
KINDS = ("ok", "function-error", "bad-response", "response-too-large")


def fuzz_answers(count: int, chance: random.Random) -> Dict[str, object]:
    """Let a function's server answer events with mutated answers."""
    seen: Counter[str] = collections.Counter()
    wrong: List[str] = []
    answers = [mutate(chance, chance.choice(VALID["answers"])) for _ in range(count)]
    with Harness("fc", timeout_s=1000, freeze=False) as harness:
        threading.Thread(target=serve, args=(harness, answers),
                         daemon=True).start()
        for message in answers:
            kind = harness.platform.invoke(b"x").kind
            seen[kind] += 1
            if harness.crashes or kind not in KINDS:
                wrong.append("%r: %s %s" % (message, kind, harness.crashes))
                harness.crashes.clear()
        if all(harness.platform.invoke(b"x").body != b"body" for _ in range(count)):
            wrong.append("no result at the end")  # some answers met no request
    return {"kind": "answers", "count": count, "seen": seen, "wrong": wrong[:20]}


def serve(harness: Harness, answers: List[bytes]) -> None:
    """Be a server that gives each answer on a connection of its own, then good ones."""
    waiting = iter(answers)
    while True:
        try:
            peer = harness.accept()
        except OSError:
            return  # the end
        with contextlib.suppress(WireError):  # a connection may serve nothing
            peer.request()
            peer.send(next(waiting, GOOD))
        peer.close()


def main() -> int:
    """Fuzz, and print the result."""
    kind, count, seed = sys.argv[1], int(sys.argv[2]), int((sys.argv + ["1"])[3])
    faulthandler.dump_traceback_later(100, exit=True)
    before = held()
    chance = random.Random(seed)
    result = (fuzz_answers(count, chance) if kind == "answers"
              else fuzz_requests(kind, count, chance))
    if not until(lambda: held() <= before, 5):
        result["wrong"] = ["left behind: %s, then %s" % (before, held())]
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    main()
