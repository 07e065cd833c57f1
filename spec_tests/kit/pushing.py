# pushing.py: what a platform may do to the server of an fc bootstrap (MIT).
"""Ways to send a request, and several of them, for test_bootstrap_fc.py."""

import time
from typing import Dict, List

import wire
from kit import Mismatch, PushRun, document, instruction, same

__all__ = ["CUT", "ends_after_result", "expecting", "piecewise", "runs_together",
           "tells_context"]

CUT: Dict[str, bytes] = {
    "half-line": b"POST /inv",
    "half-head": b"POST /invoke HTTP/1.1\r\nHost: x\r\nContent-Le",
    "half-body": b"POST /invoke HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc",
    "garbage": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
}


def runs_together(run: PushRun, requests: int, seconds: float) -> None:
    """Raise Mismatch unless requests that sleep do so at the same time, which takes less
    than four at a time would."""
    began = time.monotonic()
    channels = [run.connect() for _ in range(requests)]
    for channel in channels:
        channel.send(run.invocation(instruction("sleep", seconds=seconds)))
    for channel in channels:
        same(b"slept", channel.read(run.patience_s, to="POST").body)
    took_s = time.monotonic() - began
    if took_s >= requests * seconds / 4:
        raise Mismatch(f"{requests} requests of {seconds} s, all side by side",
                       f"{took_s:.2f} s, as long as at most four at a time")


def piecewise(run: PushRun, event: bytes, how: str) -> bytes:
    """Send an invocation in pieces; return the result."""
    whole = run.invocation(event)
    cuts = [len(whole) - len(event)] if how == "two-writes" else range(1, len(whole))
    edges: List[int] = [0, *cuts, len(whole)]
    channel = run.connect()
    for begin, end in zip(edges, edges[1:]):
        channel.send(whole[begin:end])
    return run.read_result(channel.read(run.patience_s, to="POST")).body


def expecting(run: PushRun, event: bytes) -> bytes:
    """Send an invocation whose body waits for 100 Continue; return the result."""
    fields = [*run.headers(), ("Content-Type", "application/octet-stream"),
              ("Expect", "100-continue"), ("Content-Length", str(len(event)))]
    channel = run.connect()
    channel.send(wire.request_bytes("POST", "/invoke", fields))
    try:
        answer = channel.read(0.5, to="POST")
    except wire.Silence:  # a client sends the body anyway after a moment
        answer = None
    channel.send(event)
    while answer is None or answer.status == 100:
        answer = channel.read(run.patience_s, to="POST")
    return run.read_result(answer).body


def tells_context(run: PushRun) -> None:
    """Raise Mismatch unless the handler is told what the common fields say."""
    fields = [(name, "1-0000-kit" if name == "X-Fc-Request-Id" else value)
              for name, value in run.headers()]
    body = instruction("context")
    data = wire.request_bytes("POST", "/invoke", [
        *fields, ("Content-Type", "application/octet-stream")], body)
    told = document(run.ask(data, "POST").body)
    same({"request_id": "1-0000-kit", "memory_mb": 128, "time_limit_ms": 3000,
          "function_name": "kit"}, told)


def ends_after_result(run: PushRun, pause_s: float, requests: int = 1) -> None:
    """Raise Mismatch unless a server that is busy by then gives the answers first."""
    channels = [run.connect() for _ in range(requests)]
    for number, channel in enumerate(channels, 1):
        order = instruction("sleep", seconds=pause_s + 0.2 * number)
        channel.send(run.invocation(order))
    time.sleep(pause_s)
    run.process.popen.terminate()
    for channel in channels:
        same(b"slept", channel.read(run.patience_s, to="POST").body,
             "the answer to an event that ran when SIGTERM came")
    run.process.wait(run.patience_s)
