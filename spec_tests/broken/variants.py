#!/usr/bin/env python3
# variants.py: bootstraps that are unusual and break no rule (MIT).
"""Run one of them: `python3 spec_tests/broken/variants.py NAME`.

Each row of the table is a correct bootstrap that does many steps in another way that the
rules allow. No check may fail on them; what fails is a fault of the kit.
"""

import os
import pathlib
import socket
import sys
import time
from typing import Any, Dict, Optional, Tuple, Type

TESTS = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS / "kit")]

import wire  # noqa: E402
from broken.base_bootstrap import Base, Fc, Fg, Pull, Scf  # noqa: E402

# name -> protocol, features it lacks, class
VARIANTS: Dict[str, Tuple[str, Tuple[str, ...], Any]] = {}


def may(name: str, base: Type[Base], *without: str, **steps: Any) -> None:
    """Enter a bootstrap into the table that does these steps its own way."""
    VARIANTS[name] = base.__name__.lower(), without, type(name, (base,), steps)


def start_late(_: Any) -> None:
    time.sleep(0.3)


# ---- who polls ----


def old_request(self: Any, method: str, path: str, body: Optional[bytes]) -> bytes:
    self.drop()  # a connection for each request
    return Pull.request(self, method, path, body).replace(b"HTTP/1.1", b"HTTP/1.0", 1)


def chunked_request(self: Any, method: str, path: str, body: Optional[bytes]) -> bytes:
    if body is None:  # the last one on its connection
        self.drop()
        return wire.request_bytes(method, path, [("Connection", "close")])
    fields = [("transfer-encoding", "Chunked")]
    if not body:
        return wire.request_bytes(method, path, fields) + b"0\r\n\r\n"
    fields.append(("Expect", "100-continue"))
    return wire.request_bytes(method, path, fields) + wire.odd_chunks(body)


def rich_request(self: Any, method: str, path: str, body: Optional[bytes]) -> bytes:
    fields = [("host", f"{self.host}:{self.port}"), ("user-agent", "unusual/1"),
              ("accept", "*/*"), ("accept-encoding", "gzip, br"), ("x-empty", ""),
              ("connection", "keep-alive"), ("content-type", "text/plain")]
    if method == "GET":  # some clients say so
        fields.append(("content-length", "0"))
    return wire.request_bytes(method, path, fields, body)


class Dripping(wire.Channel):
    """It sends what is short byte by byte."""

    def send(self, data: bytes, limit_s: float = 20.0) -> None:
        for place in range(len(data) if len(data) < 1000 else 0):
            super().send(data[place:place + 1])
        if len(data) >= 1000:
            super().send(data)


def drip(self: Any) -> wire.Channel:
    made = Pull.connect(self)
    made.__class__ = Dripping
    return made


class Counting(wire.Channel):
    """It knows whether anything has come."""

    has_begun = False

    def more(self, deadline: float) -> None:
        super().more(deadline)
        self.has_begun = True


def count(self: Any) -> wire.Channel:
    made = Pull.connect(self)
    made.__class__ = Counting
    return made


def post_lost_ones_again(self: Any, kind: str, request_id: str, body: bytes) -> None:
    self.drop()
    channel = None
    try:
        self.channel = channel = self.connect()
        self.exchange("POST", self.path_of(kind, request_id), body)
    except (OSError, wire.WireError):
        if channel is None or not channel.has_begun:
            Pull.post(self, kind, request_id, body)


def poll_again_at_once(self: Any) -> Optional[wire.Message]:
    was_kept = self.channel is not None
    try:
        answer: wire.Message = self.exchange("GET", self.poll_path, None)
    except wire.WireError as error:
        return None if error.seen or not was_kept else Pull.poll(self)
    except OSError:
        return None
    return answer if self.is_event(answer) else None


def insist_on_ready(self: Any) -> None:
    while getattr(self.ready(), "status", 0) != 200:
        self.pause()


def with_trace(self: Any, type_: str, message: str) -> bytes:
    report = Base.report(self, type_, message)
    return b' {"stackTrace": ["a", "b"], "cause": null, ' + report[1:] + b"\n"


def pause_a_little_longer(self: Any) -> None:
    time.sleep(self.pause_s)
    self.pause_s = min(self.pause_s + 0.05, 2.0)


def post_late(self: Any, *rest: Any) -> None:
    time.sleep(0.05)
    Pull.post(self, *rest)


may("OldHttp", Scf, request=old_request, first_pause_s=0.2, start=insist_on_ready,
    report=with_trace, post=post_late)
may("ChunkedAndAgain", Scf, request=chunked_request, start=Scf.ready, exit_status=1,
    prepare=start_late, pause=pause_a_little_longer, connect=count,
    post=post_lost_ones_again)
may("DripsManyFields", Fg, request=rich_request, connect=drip, poll=poll_again_at_once,
    report=with_trace, prepare=start_late, post=post_late)

# ---- who serves ----


def split(data: bytes) -> Tuple[str, wire.Headers, bytes]:
    """Return start line, fields and body of an answer."""
    head, _, body = data.partition(b"\r\n\r\n")
    return (*wire.parse_head(head), body)


def send_hints(self: Any, channel: wire.Channel, data: bytes) -> None:
    for interim in (b"100 Continue\r\n", b"103 Early Hints\r\nLink: </x>\r\n", b"102 X\r\n"):
        channel.send(b"HTTP/1.1 " + interim + b"\r\n")
    send_chunked(self, channel, data)


def send_chunked(self: Any, channel: wire.Channel, data: bytes) -> None:
    start, fields, body = split(data)
    own = [("server", "unusual"), ("date", "Thu, 01 Jan 1970 00:00:00 GMT"),
           *((name.lower(), value) for name, value in fields if not body
             or name.lower() != "content-length"),
           ("connection", "keep-alive"), ("keep-alive", "timeout=86400"),
           ("x-empty", "")]
    if body:
        own.append(("transfer-encoding", "chunked"))
    send_pieces(channel, wire.head_bytes(start.replace(" X", ""), own)
                + (wire.odd_chunks(body) if body else b""))


def send_pieces(channel: wire.Channel, data: bytes) -> None:
    for place in range(0, min(len(data), 200)):
        channel.send(data[place:place + 1])
    channel.send(data[200:])


def send_and_close(self: Any, channel: wire.Channel, data: bytes) -> None:
    start, fields, body = split(data)
    own = [one for one in fields if one[0].lower() != "content-length"]
    channel.send(wire.head_bytes(start.replace("HTTP/1.1", "HTTP/1.0"), own) + body)
    channel.close()


def fail_with_200(self: Any, request: wire.Message) -> Tuple[int, wire.Headers, bytes]:
    status, fields, body = Fc.http_parts(self, request)
    is_failure = dict(fields).get("x-fc-status") == "404"
    return 200 if is_failure else status, fields, body


def join_fields(self: Any, request: wire.Message) -> Dict[str, Any]:
    found = Fc.seen(self, request)
    joined: Dict[str, str] = {}
    for name, value in found["fields"]:
        key = name.lower()
        joined[key] = f"{joined[key]}, {value}" if key in joined else value
    return {**found, "fields": sorted(joined.items())}


def end_after_pre_stop(self: Any, channel: wire.Channel, request: wire.Message) -> None:
    time.sleep(0.03)
    Fc.answer(self, channel, request)
    if (request.header("x-fc-control-path") or request.path) == "/pre-stop":
        os._exit(0)


def dual_stack(self: Any) -> None:
    made = socket.create_server(("::", self.port()), family=socket.AF_INET6,
                                dualstack_ipv6=True, backlog=1024)
    while True:
        peer, _ = made.accept()
        self.begin(peer)


may("ChunksAfterHints", Fc, send=send_hints, http_parts=fail_with_200, seen=join_fields,
    answer=end_after_pre_stop, prepare=start_late, run=dual_stack, exit_status=1,
    hook=lambda self: wire.response(
        200, [("x-fc-status", "200"), ("Content-Type", "text/plain")], b"done\n"))
may("ClosesWithoutHttp", Fc, "keep-alive", "http", "fidelity", send=send_and_close,
    http=lambda self, request: wire.response(
        404, [("x-fc-status", "404")], b"" if request.method == "HEAD" else b"{}"))


def main() -> None:
    """Be the one that the command line names."""
    VARIANTS[sys.argv[1]][2]().run()


if __name__ == "__main__":
    main()
