# test_security.py: hostile peers on every socket of the platform (MIT).
"""Whatever comes over a socket, from either side: nothing dies, hangs or is believed.

On real sockets with limits scaled down; and hundreds of mutated messages for each
listener (fuzz.py), in processes of their own.
"""

import contextlib
import json
import os
import pathlib
import re
import select
import socket
import subprocess
import sys
import threading
from typing import Dict, Iterator

import fork_server
import pytest
import test_platform_any
import wire
from emulator import HttpRequest
from harness import PROTOCOLS, Harness, Peer, background, code, event, run, scale
from implementations import START_EMULATOR

__all__ = ["code"]
TESTS = pathlib.Path(__file__).resolve().parent.parent
PATHS = {"scf": "/runtime/invocation/next", "fg": "/v1/runtime/invocation/request"}
SERVERS = ("door-fc", "api-scf")


class Target:
    """A server of ours to be attacked: a front door or a runtime API."""

    def __init__(self, name: str) -> None:
        side, protocol = name.split("-")
        self.harness = Harness(protocol)
        self.address = (self.harness.door.host, self.harness.door.port)
        self.path = "/-/state"
        if side == "api":
            self.first = self.harness.event(b"the event")
            self.address = self.harness.api()
            self.path = PATHS[protocol] + "/none"

    def send(self, data: bytes) -> Peer:
        """Connect, and send that."""
        peer = Peer(socket.create_connection(self.address, 5))
        with contextlib.suppress(wire.WireError):  # it may hang up in the middle
            peer.send(data)
        return peer

    def last_word(self, data: bytes) -> bytes:
        """Send that; return what comes before the other side closes."""
        return self.send(data).everything()

    def healthy(self) -> bool:
        """Tell whether a proper request is answered."""
        peer = self.send(wire.request_bytes("GET", self.path))
        status = peer.answer().status
        peer.close()
        return status in (200, 404)


@pytest.fixture(params=SERVERS)
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """Each server of ours; afterwards it must be well, and no thread have crashed."""
    found = Target(request.param)
    with found.harness:
        yield found
        assert found.healthy()


@pytest.mark.parametrize("start,more", (
    (b"GET /", b"x"), (b"GET / HTTP/1.1\r\nA: ", b"b"), (b"", b"\r\n")),
    ids=("target", "field", "empty lines"))
def test_any_limits_slow__dripping(target: Target, start: bytes, more: bytes,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that comes byte by byte is dropped in time."""
    scale(monkeypatch, HEAD_TIMEOUT_S=0.1, LINGER_S=0.1)
    peer, pause = target.send(start), threading.Event()

    def drip() -> None:
        with contextlib.suppress(OSError):
            while not pause.wait(0.01):
                peer.sock.sendall(more)

    thread = background(drip)
    thread.join(4)
    assert not thread.is_alive()
    peer.sock.close()


def test_any_limits_slow__afterwards(target: Target, monkeypatch: pytest.MonkeyPatch
                                     ) -> None:
    """Who sent a head in two parts has all the time before the next one."""
    scale(monkeypatch, HEAD_TIMEOUT_S=0.4)
    request = wire.request_bytes("GET", target.path)
    peer = target.send(request[:9])
    assert not select.select([peer.sock], [], [], 0.05)[0]  # the first part is read
    peer.send(request[9:])
    peer.answer()
    assert not select.select([peer.sock], [], [], 0.45)[0]
    peer.send(request)
    assert peer.answer().status in (200, 404)
    peer.close()


@pytest.mark.parametrize("framing", ("Content-Length: 9", "Transfer-Encoding: chunked"))
def test_any_limits_slow__body(target: Target, framing: str,
                               monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that stops coming is dropped."""
    scale(monkeypatch, SILENCE_S=0.05, LINGER_S=0.05)
    assert b"HTTP/1.1 2" not in target.last_word(
        ("POST %s HTTP/1.1\r\n%s\r\n\r\n3\r\n" % (target.path, framing)).encode())


STATUS = re.compile(rb"HTTP/1\.1 (\d\d\d) ")
SECOND = b"GET /-/state HTTP/1.1\r\n\r\n"
SMUGGLED = [b"POST /-/state HTTP/1.1\r\n" + rest + b"\r\n" for rest in (
    b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n",
    b"Content-Length: 0\r\nContent-Length: 40\r\n",
    b"Content-Length: 0\r\nContent-Length: 0\r\n", b"Content-Length: 0, 0\r\n",
    b"Content-Length: -0\r\n", b"Content-Length: 0_0\r\n", b"Content-Length:\r\n",
    b"Content-Length\t: 0\r\n", "Content-Length: \u0660\r\n".encode(),
    b"Transfer-Encoding: xchunked\r\n\r\n0\r\n",
    b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n",
    b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n0\r\n",
    b"A: b\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n",
    b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n",
    b"A: b\nContent-Length: 40\r\n", b": b\r\n", b"A\xe9: b\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n0x0\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n+0\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n0_0\r\n",
    b"Transfer-Encoding: chunked\r\n\r\n1\nx\r\n0\r\n")]
STARTS = [start + b"\r\n\r\n" for start in (
    b"GET /", b"GET  / HTTP/1.1", b"GET / HTTP/1.1 x", b"GET / HTTP/1.10",
    b"GET / HTTP/2.0", b"GET / http/1.1", b" GET / HTTP/1.1", b"GET / HTTP/1.1\nA: b",
    b"G\0T / HTTP/1.1", b"GET /\0 HTTP/1.1", b"GET /\t HTTP/1.1")]
BAD = [bad.replace(b"{line}", b"POST /-/state HTTP/1.1\r\n")
       for _, bad in test_platform_any.BAD.values()]


def test_any_http_framing__smuggled(target: Target) -> None:
    """A request that is none, or of doubtful length, is refused, and nothing behind it
    is read."""
    seen = {bad: STATUS.findall(target.last_word(bad + SECOND))
            for bad in SMUGGLED + STARTS + BAD}
    assert seen == {bad: [b"431" if len(bad) > 800 else b"400"]  # [any.limits.head]
                    for bad in seen}


@pytest.mark.parametrize("field", (
    b"A:b", b"A: \t b \t", b"A:", b"A: b\r\na: c", b"A: \xe4\x80", b"A: b: c",
    b"Content-Length: 007\r\n\r\n1234567", b"\r\n".join([b"A: b"] * 100),
    b"TRANSFER-ENCODING: Chunked\r\n\r\n0\r\n"))
def test_any_http_body__legal(field: bytes) -> None:
    """What is legal is taken: no blanks, empty or repeated values, latin-1."""
    with Harness("scf", max_instances=0) as harness:
        peer = harness.caller(b"POST /-/invoke HTTP/1.1\r\n%s\r\n\r\n" % field)
        assert peer.answer("POST").header("x-outcome") == "throttled"


@pytest.mark.parametrize("text", ("x\r\nInjected: y", "x\nInjected: y", "x\0y"))
def test_any_security_values__caller(text: str) -> None:
    """A call made from a program cannot smuggle lines to the function, nor stick."""
    with Harness("fc") as harness:
        harness.serve(lambda request: wire.response(200))
        for request in (HttpRequest("GET" + text, "/"), HttpRequest("GET", "/" + text),
                        HttpRequest("GET", "/", (("A" + text, "b"),)),
                        HttpRequest("GET", "/", (("A", text),))):
            with pytest.raises(ValueError):
                harness.platform.invoke(b"", http=request)
        assert harness.platform.invoke(b"", http=HttpRequest("GET", "/")).kind == "ok"
        assert harness.seen == ["/"]


SECRETS = {"access_key_id": "AKIA-5b1d77aa", "access_key_secret": "secret-93ac05e1",
           "security_token": "token-77e0b3c2", "auth_token": "auth-12fe90d4"}


@PROTOCOLS
def test_any_security_secrets(protocol: str, code: str, tmp_path: pathlib.Path) -> None:
    """Credentials are in no argument list, log line, trace, note, answer or state."""
    keys, trace = tmp_path / "keys", tmp_path / "trace"
    keys.write_text(json.dumps(SECRETS))
    events = [event(["say", "x"]), event(["exit", 3]), event(["hang"]), b"y"]
    done = run(
        [*START_EMULATOR, protocol, code, "--credentials", str(keys),
         "--trace", str(trace), "--timeout", "0.3", "--env", "MINE=mine-4e2f", *[
             word for one in events for word in ("--event", one.decode())],
         *(("--port", "0", "--initializer") if protocol == "fc" else ())])
    text = done.out.decode() + done.err + trace.read_text()
    assert "timeout" in text and text.count("x") > 1
    assert not [value for value in (*SECRETS.values(), "mine-4e2f") if value in text]


@PROTOCOLS
def test_any_security_secrets__process(protocol: str, code: str) -> None:
    """Credentials are in no argument and no state; of open files a bootstrap gets its
    output alone."""
    with Harness(protocol, code, credentials=SECRETS) as harness:
        process = pathlib.Path("/proc", harness.outcome(event(["pid"]))[1].decode())
        words = (process / "cmdline").read_text() + json.dumps(harness.state())
        links = {one.name: os.readlink(one) for one in (process / "fd").iterdir()}
    assert not [value for value in SECRETS.values() if value in words]
    assert links["0"] == "/dev/null" and links["1"] == links["2"]
    assert all(link.startswith("socket:") for name, link in links.items()
               if int(name) > 2)


FUZZED, COUNT = ("scf", "fg", "door", "answers"), 400


@pytest.fixture(scope="module", autouse=True)
def fuzzers() -> Iterator[Dict[str, "subprocess.Popen[bytes]"]]:
    """Start all fuzzers; they work while the other tests run."""
    fuzz = fork_server.offer((sys.executable, "-c", "fuzz"), str(TESTS / "tools"), "fuzz")
    running = {kind: fork_server.start(
        [*fuzz, kind, str(COUNT)], cwd="/", env=os.environ, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT) for kind in FUZZED}
    yield running
    for one in running.values():
        one.kill()


@pytest.mark.parametrize("kind", FUZZED)
def test_any_http_no_effect__fuzzed(
        kind: str, fuzzers: Dict[str, "subprocess.Popen[bytes]"]) -> None:
    """Hundreds of broken messages: no crash, no hang, each answer well-formed."""
    said = fuzzers[kind].stdout
    assert said is not None
    *_, last = said.read().splitlines() or [b"nothing"]
    assert fuzzers[kind].wait(10) == 0, last
    result = json.loads(last)
    assert result["wrong"] == [] and result["count"] == COUNT
    assert len(result["seen"]) >= 3  # they were of many kinds
