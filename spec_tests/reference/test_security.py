# test_security.py: hostile peers on every socket of the platform (MIT).
"""Whatever comes over a socket, from either side: nothing dies, hangs or is believed.

Each item of SPEC.md chapter 11, on real sockets with limits scaled down; and 20,000
mutated messages for each listener (fuzz.py), in processes of their own.
"""

import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest

import emulator
import scripted_bootstrap
import wire
from emulator import HttpRequest, Platform
from harness import Peer, Harness, outcome_of, processes, until
from implementations import START_EMULATOR

TESTS = pathlib.Path(__file__).resolve().parent.parent
MIB = 1048576
PATHS = {"scf": "/runtime/invocation/next", "fg": "/v1/runtime/invocation/request"}
SERVERS = ("door-fc", "door-scf", "api-scf", "api-fg")


class Target:
    """A server of ours to be attacked: a front door or a runtime API."""

    def __init__(self, name: str) -> None:
        side, self.protocol = name.split("-")
        self.harness = Harness(self.protocol)
        self.address = (self.harness.door.host, self.harness.door.port)
        self.path = "/-/state"
        if side == "api":
            self.first = self.harness.event(b"the event")
            self.address = self.harness.api()
            self.path = PATHS[self.protocol] + "/none"

    def send(self, data: bytes) -> Peer:
        """Connect, and send that."""
        peer = Peer(socket.create_connection(self.address, 5))
        peer.send(data)
        return peer

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


def last_word(peer: Peer) -> bytes:
    """Return what comes before the other side closes."""
    return peer.everything()


# ---- slow and silent peers ----


@pytest.mark.parametrize("data",
                         (b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nA: b",
                                  b"GET / HTTP/1.1\r\nA: b\r\n\r"))
def test_any_limits_slow(target: Target, data: bytes,
                         monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that is not completed is dropped."""
    monkeypatch.setattr(emulator, "HEAD_TIMEOUT_S", 0.05)
    answer = last_word(target.send(data))
    assert answer == b"" or answer.startswith(b"HTTP/1.1 408 ")


def drip(peer: Peer, data: bytes) -> None:
    """Send a byte every 10 ms until the peer hangs up."""
    pause = threading.Event()
    try:
        while not pause.wait(0.01):
            peer.sock.sendall(data)
    except OSError:
        pass


@pytest.mark.parametrize("start,more", ((b"GET /", b"x"), (b"GET / HTTP/1.1\r\nA: ",
                                                           b"b"),
                                        (b"", b"\r\n"), (b"\r", b"\n")),
                         ids=("target", "field", "empty lines", "line ends"))
def test_any_limits_slow__dripping(target: Target, start: bytes, more: bytes,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """A head that comes byte by byte is dropped as well, in the same time."""
    monkeypatch.setattr(emulator, "HEAD_TIMEOUT_S", 0.1)
    peer = target.send(start)
    thread = threading.Thread(target=drip, args=(peer, more), daemon=True)
    thread.start()
    thread.join(4)
    assert not thread.is_alive()
    peer.sock.close()


@pytest.mark.parametrize("framing", ("Content-Length: 9", "Transfer-Encoding: chunked"))
def test_any_limits_slow__body(target: Target, framing: str,
                               monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that stops coming is dropped."""
    monkeypatch.setattr(emulator, "SILENCE_S", 0.05)
    monkeypatch.setattr(emulator, "LINGER_S", 0.05)
    peer = target.send(("POST %s HTTP/1.1\r\n%s\r\n\r\n3\r\n" % (
        target.path, framing)).encode())
    assert b"HTTP/1.1 2" not in last_word(peer)


def test_any_limits_slow__silent_crowd(target: Target) -> None:
    """A hundred peers that say nothing keep nobody from being served."""
    crowd = [target.send(b"G" * (number % 2)) for number in range(100)]
    assert target.healthy()
    for peer in crowd:
        peer.sock.close()


def test_any_limits_slow__too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the limit of connections further ones are closed at once, then served."""
    monkeypatch.setattr(emulator, "MAX_CONNECTIONS", 5)
    with Harness("scf") as harness:
        crowd = [harness.caller() for _ in range(5)]
        assert until(lambda: len(harness.door.connections) == 5)
        assert last_word(harness.caller()) == b""
        for peer in crowd:
            peer.close()
        assert until(lambda: not harness.door.connections)
        assert harness.state()["protocol"] == "scf"


# ---- large heads, lying lengths ----

BOMBS = {"101 fields": b"A: b\r\n" * 101, "10,000 fields": b"A: b\r\n" * 10000,
         "64 KiB field": b"A: " + b"b" * 65536 + b"\r\n",
         "100 KB field": b"A: " + b"b" * 100000 + b"\r\n",
         "1 MiB field": b"A: " + b"b" * MIB + b"\r\n", "1 MiB name": b"A" * MIB}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=list(BOMBS))
def test_any_limits_head(target: Target, bomb: bytes) -> None:
    """A head that is too large is answered 431, or cut off."""
    peer = target.send(b"GET %s HTTP/1.1\r\n" % target.path.encode())
    try:
        peer.send(bomb + b"\r\n")
    except wire.WireError:
        pass  # it has hung up in the middle
    answer = last_word(peer)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")


def test_any_limits_head__target(target: Target) -> None:
    """A target of 60 KB is refused or unknown, no more."""
    answer = target.send(b"GET /%s HTTP/1.1\r\n\r\n" % (b"x" * 60000)).answer()
    assert answer.status in (400, 404)


def test_any_limits_slow__endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A body without end that nobody wants is not read for ever, nor waited for."""
    monkeypatch.setattr(emulator, "SKIP_BYTES", 1000)
    with Harness("scf") as harness:
        peer = harness.caller(b"POST /-/nothing HTTP/1.1\r\nTransfer-Encoding: chunked\r\n"
                              b"\r\nfffff\r\n%s" % (b"x" * 2000))
        assert last_word(peer).startswith(b"HTTP/1.1 404 ")


LENGTHS = (0, 1, 5 * MIB, 33 * MIB, 65 * MIB, 10 ** 12, 10 ** 15 - 1)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("path", ("/-/state", "/-/health", "/-/invoke", "/-/nothing",
                                  "/runtime/invocation/response",
                                  "/runtime/init/ready"))
def test_any_http_no_effect__complete_lying(target: Target, path: str,
                                            length: int) -> None:
    """A body that is announced and does not come has no effect."""
    peer = target.send(b"POST %s HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (
        path.encode(), length, b"x" * min(length, 1)))
    peer.sock.shutdown(socket.SHUT_WR)
    answer = last_word(peer)
    refused = b"request-too-large" in answer or path.endswith("response")
    assert length <= 1 or refused or b"HTTP/1.1 2" not in answer
    assert answer == b"" or answer.startswith(b"HTTP/1.1 ")
    assert target.harness.platform.counts["ok"] == 0


# ---- smuggling ----

STATUS = re.compile(rb"HTTP/1\.1 (\d\d\d) ")
SECOND = b"GET /-/state HTTP/1.1\r\n\r\n"
SMUGGLED = {
    "both lengths": b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "both, reversed": b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n"
                      b"\r\n0\r\n\r\n",
    "two lengths": b"Content-Length: 0\r\nContent-Length: 40\r\n\r\n",
    "the same twice": b"Content-Length: 0\r\nContent-Length: 0\r\n\r\n",
    "length list": b"Content-Length: 0, 0\r\n\r\n",
    "length +0": b"Content-Length: +0\r\n\r\n",
    "length 0x0": b"Content-Length: 0x0\r\n\r\n",
    "length -0": b"Content-Length: -0\r\n\r\n",
    "length 0_0": b"Content-Length: 0_0\r\n\r\n",
    "no length": b"Content-Length:\r\n\r\n",
    "length and space": b"Content-Length : 0\r\n\r\n",
    "length with tab": b"Content-Length\t: 0\r\n\r\n",
    "other digits": "Content-Length: \u0660\r\n\r\n".encode(),
    "xchunked": b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked, identity": b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "identity": b"Transfer-Encoding: identity\r\n\r\n",
    "coding with VT": b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "two codings": b"Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n"
                   b"\r\n0\r\n\r\n",
    "folded coding": b"A: b\r\n Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "folded value": b"Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
    "bare LF": b"A: b\nContent-Length: 40\r\n\r\n", "bare CR": b"A: b\rC: d\r\n\r\n",
    "NUL": b"A: b\0\r\n\r\n", "no colon": b"Abc\r\n\r\n", "no name": b": b\r\n\r\n",
    "name with space": b"A b: c\r\n\r\n", "name with bytes": b"A\xe9: b\r\n\r\n",
    "chunk size": b"Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n",
    "chunk size with plus": b"Transfer-Encoding: chunked\r\n\r\n+0\r\n\r\n",
    "chunk size with line": b"Transfer-Encoding: chunked\r\n\r\n0_0\r\n\r\n",
    "bare LF in chunks": b"Transfer-Encoding: chunked\r\n\r\n1\nx\r\n0\r\n\r\n",
    "chunk too long": b"Transfer-Encoding: chunked\r\n\r\n1\r\nxy\r\n0\r\n\r\n"}


@pytest.mark.parametrize("rest", SMUGGLED.values(), ids=list(SMUGGLED))
def test_any_http_framing__smuggled(target: Target, rest: bytes) -> None:
    """A request of doubtful length is refused, and nothing behind it is read."""
    answer = last_word(target.send(
        b"POST %s HTTP/1.1\r\nHost: a\r\n" % target.path.encode() + rest + SECOND))
    assert STATUS.findall(answer) == [b"400"]


STARTS = (b"GET /\r\n\r\n", b"GET  / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1 x\r\n\r\n",
          b"GET / HTTP/1.10\r\n\r\n", b"GET / HTTP/2.0\r\n\r\n",
          b"GET / http/1.1\r\n\r\n",
          b" GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\nA: b\r\n\r\n",
          b"G\x00T / HTTP/1.1\r\n\r\n",
          b"GET /\x00 HTTP/1.1\r\n\r\n", b"GET /\t HTTP/1.1\r\n\r\n",
          b"G(T / HTTP/1.1\r\n\r\n",
          b"\x16\x03\x01\x02\x00\x01\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")


@pytest.mark.parametrize("start", STARTS)
def test_any_http_malformed__start_line(target: Target, start: bytes) -> None:
    """A first line that is not method, target and version is refused."""
    answer = last_word(target.send(start + SECOND))
    assert STATUS.findall(answer) == [b"400"]


@pytest.mark.parametrize("rest", (
    b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", b"Content-Length: 9\r\n\r\nhalf"))
def test_any_http_no_effect(rest: bytes) -> None:
    """What is no valid HTTP reaches no function through its HTTP trigger."""
    with Harness("fc", event_bytes=1000) as harness:
        peer = harness.caller(b"POST /up HTTP/1.1\r\n" + rest)
        peer.sock.shutdown(socket.SHUT_WR)
        assert b"HTTP/1.1 2" not in last_word(peer)
        assert harness.platform.counts["ok"] == 0


# ---- control characters ----

SPLIT = ("x\r\nInjected: y", "x\nInjected: y", "x\rInjected: y", "x\0y",
         "\r\n\r\nGET / HTTP/1.1")
REQUESTS: Dict[str, Callable[[str], HttpRequest]] = {
    "method": lambda text: HttpRequest("GET" + text, "/"),
    "target": lambda text: HttpRequest("GET", "/" + text),
    "name": lambda text: HttpRequest("GET", "/", (("A" + text, "b"),)),
    "value": lambda text: HttpRequest("GET", "/", (("A", text),))}


@pytest.mark.parametrize("text", SPLIT)
@pytest.mark.parametrize("where", REQUESTS)
def test_any_security_values__caller(where: str, text: str) -> None:
    """A call made from a program cannot smuggle lines to the function, nor stick."""
    with Harness("fc") as harness:
        seen: List[Tuple[Any, ...]] = []

        def answer(request: wire.Message) -> bytes:
            seen.append(request.headers)
            return wire.response(200)

        harness.serve(answer)
        with pytest.raises(ValueError):
            harness.platform.invoke(b"", http=REQUESTS[where](text))
        assert harness.platform.invoke(b"", http=HttpRequest("GET", "/")).kind == "ok"
        assert not [pair for pair in seen[0] if pair[0].lower() == "injected"]
        harness.platform.drain(5)
        assert harness.state()["instances"][0]["state"] in ("idle", "frozen")


BROKEN_SETTINGS = [("fc", setting, "a\r\nInjected: b") for setting in (
    "name", "handler", "version", "credentials")] + [("fg", "credentials",
                                                      "a\r\nB: c")] + [
    (protocol, setting, "a\0b") for protocol in ("fc", "scf", "fg")
    for setting in ("name", "handler", "version", "region")] + [
    ("fc", "command", ["sh", word]) for word in ("a\0b", "\ud800", 1)]


@pytest.mark.parametrize("protocol,setting,value", BROKEN_SETTINGS)
def test_any_security_values__settings(protocol: str, setting: str, value: Any) -> None:
    """A setting that would break a field or a variable is refused before any event."""
    if setting == "credentials":
        value = {"access_key_id": value}
    with pytest.raises(ValueError, match=setting + "|access_key_id"):
        Platform(protocol, ".", **{setting: value}).close()


# ---- ids ----

IDS = ("", "/", "..", ".", "%2e%2e", "../response/ID", "ID/", "/ID", "ID/..", "ID%00",
       "ID%20",
       "ID;a", "ID#", "ID/error", "*", "ID\xa0", "%49D", "ID.", "id", "undefined",
       "null",
       "x" * 5000, "ID,ID")


@pytest.mark.parametrize("trick", IDS)
@pytest.mark.parametrize("kind", ("response", "error"))
def test_fg_result_unknown_id__tricks(trick: str, kind: str) -> None:
    """Nothing but the id itself is taken for it."""
    with Harness("fg") as harness:
        caller = harness.event(b"the event")
        address = harness.api()
        own = fetch(address)
        name = trick.replace("ID", own).replace("id", own.upper() + "0")
        base = "/v1/runtime/invocation/"
        assert post(address, base + kind + "/" + name) == 404
        assert post(address, base + "response/" + own) == 200
        assert outcome_of(caller) == ("ok", b"body")


def fetch(address: Tuple[str, int], protocol: str = "fg") -> str:
    """Ask for the event; return its id."""
    peer = Peer(socket.create_connection(address, 5))
    peer.send(wire.request_bytes("GET", PATHS[protocol]))
    own = peer.answer().header("x-cff-request-id") or ""
    peer.close()
    return own


def post(address: Tuple[str, int], path: str) -> int:
    """Post a result; return the status of the answer."""
    peer = Peer(socket.create_connection(address, 5))
    peer.send(wire.request_bytes("POST", path, (), b"body"))
    status = peer.answer("POST").status
    peer.close()
    return status


def test_any_security_instance() -> None:
    """The id of another instance's invocation is unknown in this one, either way."""
    with Harness("fg", max_instances=2) as harness:
        callers, places = [], []
        for _ in range(2):
            callers.append(harness.event(b"event"))
            places.append(harness.api())
        ids = [fetch(place) for place in places]
        path = "/v1/runtime/invocation/response/"
        assert places[0] != places[1]
        assert [post(places[0], path + ids[1]),
                post(places[1], path + ids[0])] == [404] * 2
        assert [post(places[one], path + ids[one]) for one in (0, 1)] == [200, 200]
        assert [outcome_of(caller) for caller in callers] == [("ok", b"body")] * 2


@pytest.mark.parametrize("protocol", ("fc", "scf", "fg"))
def test_any_security_loopback(protocol: str) -> None:
    """Front door and runtime APIs listen on loopback only."""
    with Harness(protocol) as harness:
        hosts = [harness.door.host]
        if protocol != "fc":
            harness.event(b"event")
            hosts.append(harness.api()[0])
        assert set(hosts) == {"127.0.0.1"}


# ---- secrets and environment ----

SECRETS = {"access_key_id": "AKIA-5b1d77aa", "access_key_secret": "secret-93ac05e1",
           "security_token": "token-77e0b3c2", "auth_token": "auth-12fe90d4"}


@pytest.fixture
def code(tmp_path: pathlib.Path) -> Iterator[str]:
    """The function's folder; what is left of its processes is killed."""
    folder = scripted_bootstrap.place(tmp_path / "code")
    yield folder
    for process_id in processes(folder):
        os.kill(int(process_id), signal.SIGKILL)


@pytest.mark.parametrize("protocol", ("fc", "scf", "fg"))
def test_any_security_secrets(protocol: str, code: str, tmp_path: pathlib.Path) -> None:
    """Credentials are in no argument list, log line, trace, note, answer or state."""
    keys, trace = tmp_path / "keys", tmp_path / "trace"
    keys.write_text(json.dumps(SECRETS))
    events = [[["say", "x"]], [["exit", 3]], [["hang"]], [["say", "y"]]]
    done = subprocess.run(
        [*START_EMULATOR, protocol, code, "--credentials", str(keys),
         "--trace", str(trace), "--timeout", "0.3", "--env", "MINE=mine-4e2f", *[
             word for one in events for word in ("--event", json.dumps(one))],
         *(("--port", "0", "--initializer") if protocol == "fc" else ())],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=60, check=False)
    text = done.stdout.decode() + trace.read_text()
    assert "timeout" in text and text.count("x") > 1
    assert not [value for value in (*SECRETS.values(), "mine-4e2f") if value in text]


@pytest.mark.parametrize("protocol", ("fc", "scf", "fg"))
def test_any_security_secrets__argv(protocol: str, code: str) -> None:
    """Neither the bootstrap's argument list nor /-/state shows a credential."""
    with Harness(protocol, code, credentials=SECRETS,
                 env={"MINE": "mine-4e2f"}) as harness:
        process_id = harness.outcome(b'[["pid"]]')[1].decode()
        words = pathlib.Path("/proc/%s/cmdline" % process_id).read_text()
        text = words + json.dumps(harness.state()) + "".join(harness.notes)
    assert code in words
    assert not [value for value in (*SECRETS.values(), "mine-4e2f") if value in text]


@pytest.mark.parametrize("protocol", ("fc", "scf", "fg"))
def test_any_env_inherited(protocol: str, code: str,
                           monkeypatch: pytest.MonkeyPatch) -> None:
    """The bootstrap sees the documented variables, the user's and four more."""
    for name in ("HTTP_PROXY", "https_proxy", "AWS_SECRET_ACCESS_KEY", "PYTHONPATH",
                 "LD_PRELOAD_", "SSH_AUTH_SOCK", "PORT"):
        monkeypatch.setenv(name, "the emulator's own")
    with Harness(protocol, code, env={"MINE": "1"}, credentials=SECRETS) as harness:
        env = json.loads(harness.outcome(b'[["env"]]')[1])
    known = {field.name for field in emulator.ENVIRONMENT[protocol]}
    extra = set(env) - known - {"MINE", "PATH", "HOME", "TMPDIR", "LANG"}
    assert extra <= {"LC_CTYPE"}  # Python itself may set it (PEP 538)
    assert "the emulator's own" not in env.values()


@pytest.mark.parametrize("protocol", ("fc", "scf", "fg"))
def test_any_env_inherited__files(protocol: str, code: str) -> None:
    """The bootstrap has no open file of the emulator but its output and no input."""
    with Harness(protocol, code) as harness:
        process_id = harness.outcome(b'[["pid"]]')[1].decode()
        folder = pathlib.Path("/proc/%s/fd" % process_id)
        links = {path.name: os.readlink(path) for path in folder.iterdir()}
    assert links["0"] == "/dev/null" and links["1"] == links["2"]
    assert not [link for name, link in links.items()
                if int(name) > 2 and not link.startswith("socket:")]


# ---- fuzzing ----

FUZZED = ("scf", "fg", "door", "answers")


@pytest.fixture(scope="module")
def fuzzers() -> Iterator[Dict[str, "subprocess.Popen[bytes]"]]:
    """Start all fuzzers; they work while the other tests run."""
    running = {kind: subprocess.Popen(
        [sys.executable, str(TESTS / "tools" / "fuzz.py"), kind, "20000"], stdout=subprocess.PIPE,
        stderr=subprocess.PIPE) for kind in FUZZED}
    yield running
    for one in running.values():
        one.kill()
        one.wait()


@pytest.fixture(autouse=True)
def started(fuzzers: Dict[str, "subprocess.Popen[bytes]"]) -> None:
    """Let the fuzzers start with the first test of this file."""


@pytest.mark.parametrize("kind", FUZZED)
def test_any_http_no_effect__fuzzed(kind: str,
                                    fuzzers: Dict[str,
                                                  "subprocess.Popen[bytes]"]) -> None:
    """20,000 broken messages: no crash, no hang, each answer well-formed or none."""
    out, said = fuzzers[kind].communicate(timeout=110)
    assert fuzzers[kind].returncode == 0, said.decode()[-3000:]
    result = json.loads(out)
    assert result["wrong"] == [] and result["count"] == 20000
    assert len(result["seen"]) >= 3  # they were of many kinds
