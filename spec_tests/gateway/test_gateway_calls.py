# test_gateway_calls.py: what callers of reference/gateway.py see (MIT).
"""Dispatch, fields, streams and failures, through a real container and real workers."""

import os
import pathlib
import re
import signal
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Dict, Iterator, Set, Tuple

import gateways
import pytest
from gateways import Container, call_of, profile, until

FUNCTIONS = {
    "functions": [
        profile("echo"), profile("other", env={"COLOUR": "red"}, handler="a.b"),
        profile("rated", rateLimit={"maxTokenCount": 2, "fillInterval": 1e9}),
        profile("refilled", rateLimit={"maxTokenCount": 1, "fillInterval": 50}),
        profile("queueless", worker={"disableRequestQueue": True}),
        profile("crash", env={"START": "crash"}),
        profile("silent", env={"START": "hang"}, worker={"initializationTimeout": 80}),
        profile("refuses", env={"INIT": "404"}, initializer="x.y"),
        profile("hangs", env={"INIT": "hang"}, initializer="x.y",
                worker={"initializationTimeout": 1000}),
        profile("dies", env={"INIT": "exit"}, initializer="x.y"),
        profile("inits", env={"INIT": "204"}, initializer="x.y"),
        profile("nowhere", url="file:///nowhere/at/all"),
        profile("no-program", command=["./no-such-program"]),
        profile("fixed", env={"START": "8"}, worker={"initializationTimeout": 300}),
        profile("windows", command=[str(gateways.HERE / "workers" / "windows.sh")]),
        profile("huge", memory_mb=1 << 20),
        profile("once", worker={"disposable": True})],
    "services": [
        {"name": "last", "functions": [{"name": "echo", "proportion": 0},
                                       {"name": "inits", "proportion": 0},
                                       {"name": "other", "proportion": 0}]},
        {"name": "first", "functions": [{"name": "other"}, {"name": "echo"}]},
        {"name": "half", "functions": [{"name": "other", "proportion": 0.5},
                                       {"name": "echo"}]}]}


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    """One container for all tests of this file; it ends without a trace."""
    with Container(FUNCTIONS, "--default-function", "echo", "--launches", "16") as made:
        yield made
        assert made.stop() == 0


# ---- dispatch and fields ----


def test_fcc_dispatch_order(container: Container) -> None:
    """The header wins, then FC's name of the function, then the default."""
    assert container.invoke(b"", "function:other").status == 200
    named = container.ask("POST", "/invoke", call_of("env"),
                          {"X-Fc-Function-Name": "other"}).json["env"]
    default = container.ask("POST", "/invoke", call_of("env"),
                            {"X-Fc-Function-Name": "outer"}).json["env"]
    assert (named["FC_FUNCTION_NAME"], default["FC_FUNCTION_NAME"]) == ("other", "echo")


@pytest.mark.parametrize("service, wanted", [
    ("last", {"other"}), ("first", {"other"}), ("half", {"echo", "other"})])
def test_fcc_dispatch_service(container: Container, service: str,
                              wanted: Set[str]) -> None:
    """Proportions decide by chance; what is missing to 1 goes to the last."""
    found = {container.invoke(call_of("env"), "service:" + service).json["env"][
        "FC_FUNCTION_NAME"] for _ in range(30)}
    assert found == wanted


def test_fcc_worker_environment(container: Container) -> None:
    """A worker gets the variables of the table and its profile's, nothing else."""
    found = container.invoke(call_of("env"), "other").json
    env = found["env"]
    assert set(env) - {"TERM", "TZ", "LANG", "LC_CTYPE"} == {
        "PATH", "HOME", "TMPDIR", "FC_SERVER_PORT", "FC_CUSTOM_LISTEN_PORT",
        "FC_FUNC_CODE_PATH", "FC_FUNCTION_NAME", "FC_FUNCTION_HANDLER",
        "FC_FUNCTION_MEMORY_SIZE", "FC_INSTANCE_ID", "NOSLATE_WORKER_ID",
        "NOSLATE_WORKER_SECRET", "COLOUR"}
    assert env["HOME"] == found["cwd"] == str(gateways.WORKER.parent)
    assert (env["FC_FUNCTION_HANDLER"], env["FC_FUNCTION_MEMORY_SIZE"]) == ("a.b", "64")


def request_seen(container: Container, method: str = "POST", path: str = "/a?b=1",
                 **headers: str) -> Tuple[Dict[str, Any], Dict[str, str]]:
    """Return what a worker saw of an HTTP invocation."""
    seen = container.http(call_of("request"), method, path, **headers).json
    return seen, {name.lower(): value for name, value in seen["fields"]}


def test_fcc_fields_pass(container: Container) -> None:
    """Method, target and fields arrive; those of the connection do not."""
    seen, fields = request_seen(container, X_Mine="1", Connection="X-Hop", X_Hop="2",
                                Keep_Alive="3", X_Fc_Region="here")
    assert (seen["method"], seen["target"]) == ("POST", "/a?b=1")
    assert (fields["x-mine"], fields["x-fc-region"]) == ("1", "here")
    assert not {"connection", "x-hop", "keep-alive"} & set(fields)


def test_fcc_fields_pass__own(container: Container) -> None:
    """A worker hears its own name, memory and limit in whole seconds, and the id."""
    _, fields = request_seen(container, X_Fc_Function_Name="outer",
                             X_Fc_Function_Timeout="6.2", X_Fc_Request_Id="1-x")
    assert [fields["x-fc-" + name] for name in (
        "function-name", "function-memory", "function-timeout", "request-id",
        "control-path")] == ["echo", "64", "7", "1-x", "/http-invoke"]


def test_fcc_worker_secret(container: Container) -> None:
    """Each worker has a secret, every request carries it, nobody else can set it."""
    _, fields = request_seen(container, X_Noslate_Worker_Secret="forged")
    own = container.invoke(call_of("env")).json["env"]["NOSLATE_WORKER_SECRET"]
    other = container.invoke(call_of("env"), "other").json["env"]["NOSLATE_WORKER_SECRET"]
    assert fields["x-noslate-worker-secret"] == own != other and len(own) == 32


def test_fcc_answer_fields(container: Container) -> None:
    """Status and fields reach the caller, duplicates too; forged ones do not."""
    order = call_of("reply", status=201, fields=[
        ["Set-Cookie", "a=1"], ["Set-Cookie", "b=2"], ["Connection", "X-Hop"],
        ["Connection", "keep-alive"], ["X-Hop", "1"]])
    wire = container.raw(b"POST /page HTTP/1.1\r\nX-Fc-Control-Path: /http-invoke\r\n"
                         b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(order)
                         + order)
    with wire:
        head = wire.makefile("rb").read().split(b"\r\n\r\n")[0]
    assert head.startswith(b"HTTP/1.1 201 ")
    assert head.count(b"Set-Cookie: ") == 2 and b"X-Hop" not in head


STALE = "HTTP/1.1 %s\r\nX-Fc-Status: 200\r\nContent-Length: 5\r\n\r\nstale"


@pytest.mark.parametrize("text", [STALE % "200 OK" * 2, STALE % "204 No Content"],
                         ids=["second-answer", "bodiless-with-body"])
def test_fcc_answer_fields__rest(container: Container, text: str) -> None:
    """What a worker sends beyond its answer is no answer to the next call."""
    container.http(call_of("garbage", text=text))
    assert container.http(b"hi").body == b"hi"


def test_fcc_answer_fields__late(container: Container, tmp_path: pathlib.Path) -> None:
    """Nor is what it sends later, as servers do that give up a silent connection."""
    gate, sent = tmp_path / "gate", tmp_path / "sent"
    order = call_of("extra", gate=str(gate), sent=str(sent),
                    text="HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
    assert container.http(order).body == b"done"
    gate.touch()
    until(sent.exists)
    assert container.http(b"hi").body == b"hi"


def test_fcc_fields_hop(container: Container) -> None:
    """Nobody else sets the gateway's own fields, in either direction."""
    _, fields = request_seen(container, X_Noslate_Worker_Secret="forged")
    found = container.http(call_of("reply", status=200, fields=[
        ["X-Fc-Status", "200"], ["X-Fc-Other", "forged"], ["X-Noslate-Error", "forged"],
        ["X-Noslate-Worker-Secret", fields["x-noslate-worker-secret"]]]))
    assert fields["x-noslate-worker-secret"] != "forged"
    assert not {"x-fc-other", "x-noslate-error", "x-noslate-worker-secret"} & set(
        found.headers)


@pytest.mark.parametrize("kind, status, field, wanted", [
    ("invoke", 404, "", (404, "404", "HandlerFailed")),
    ("invoke", 404, "200", (404, "200", "")),
    ("invoke", 500, "404", (500, "404", "HandlerFailed")),
    ("http", 404, "", (404, "200", "")),
    ("http", 418, "404", (418, "404", "HandlerFailed"))])
def test_fcc_answer_status(container: Container, kind: str, status: int, field: str,
                           wanted: Tuple[int, str, str]) -> None:
    """A handler's own 404 is told from a failure by X-Fc-Status."""
    order = call_of("reply", status=status, body="as it is",
                    fields=[["x-fc-status", field]] if field else [])
    found = (container.http if kind == "http" else container.invoke)(order)
    assert found.failure == wanted and found.body == b"as it is"


# ---- endpoints ----


@pytest.mark.parametrize("method, path, control, status", [
    ("GET", "/", "", 404), ("GET", "/invoke", "", 404), ("POST", "/invoke/x", "", 404),
    ("DELETE", "/initialize", "", 404), ("GET", "/invoke", "/http-invoke", 200),
    ("POST", "/invoke", "", 200), ("GET", "/-/stats", "", 200),
    ("GET", "/-/stats", "/http-invoke", 200), ("POST", "/invoke", "/unheard-of", 404),
    ("GET", "/http-invoke", "", 404), ("POST", "/invoke?x=1", "", 200)])
def test_fcc_invoke_kind(container: Container, method: str, path: str, control: str,
                         status: int) -> None:
    """X-Fc-Control-Path says what a request is, else method and path."""
    found = container.ask(method, path, b"", {"X-Fc-Control-Path": control}
                          if control else {})
    assert found.status == status
    if status == 404:  # [fcc.path.unknown]
        assert found.failure == (404, "404", "UnknownPath")


def test_fcc_path_unknown(container: Container) -> None:
    """What FC never calls is a failure by name; the connection stays."""
    with container.connection() as own:
        for _ in range(2):
            found = container.ask("POST", "/favicon.ico", b"x", own=own)
            assert found.failure == (404, "404", "UnknownPath")


def test_fcc_admin_local(container: Container) -> None:
    """Administration is not reachable through FC."""
    container.invoke(b"x")
    found = container.stats()
    assert found["counts"]["ok"] >= 1 and found["functions"]["echo"]["queued"] == 0
    assert {"id", "pid", "state", "active", "served"} == set(
        found["functions"]["echo"]["workers"][0])
    passed = container.ask("GET", "/-/stats", b"", {"X-Fc-Control-Path": "/http-invoke"})
    assert passed.body == b""


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("path", ["/initialize", "/pre-freeze"])
def test_fcc_invoke_kind__methods(container: Container, method: str, path: str) -> None:
    """Hooks are answered 200, by either method, as often as they come."""
    assert [container.ask(method, path).status for _ in range(2)] == [200, 200]


# ---- streams ----


@pytest.mark.parametrize("size", [0, 1, 65536, 65537, 32 << 20])
@pytest.mark.parametrize("chunked", [False, True], ids=["length", "chunked"])
def test_fcc_stream_both(container: Container, size: int, chunked: bool) -> None:
    """Bodies of any size pass unchanged in both directions."""
    body = os.urandom(1024) * (size // 1024) + b"x" * (size % 1024)
    with container.connection() as connection:
        fields = {"X-Fc-Control-Path": "/invoke", "x-noslated-dispatch": "echo"}
        parts = [body[at:at + 262144] for at in range(0, size, 262144)]
        connection.request("POST", "/invoke", iter(parts) if chunked else body, fields,
                           encode_chunked=chunked)
        assert connection.getresponse().read() == body


def test_fcc_stream_both__down(container: Container, tmp_path: pathlib.Path) -> None:
    """The caller has the first part before the worker makes the second."""
    gate = tmp_path / "gate"
    with container.connection() as connection:
        connection.request("POST", "/invoke", call_of("drip", gate=str(gate)),
                           {"x-noslated-dispatch": "echo"})
        response = connection.getresponse()
        assert response.read(5) == b"first"
        gate.touch()
        assert response.read() == b"second"


def test_fcc_stream_both__old_worker(container: Container) -> None:
    """A body that ends with the worker's connection ends properly for the caller."""
    assert container.invoke(call_of("old")).body == b"until the end"


@pytest.mark.parametrize("method, status", [("HEAD", 200), ("POST", 204), ("POST", 304)])
def test_fcc_stream_both__bodiless(container: Container, method: str,
                                   status: int) -> None:
    """Answers without a body leave the connection usable."""
    order = call_of("reply", status=status)
    with container.connection() as connection:
        for _ in range(2):
            connection.request(method, "/", order, {"X-Fc-Control-Path": "/http-invoke"})
            response = connection.getresponse()
            assert (response.status, response.read()) == (status, b"")


# ---- failures ----

# name: function, event, status for HTTP, and what the message says
FAILURES = {
    "UnknownFunction": ("nobody", b"", 404, "no function 'nobody'"),
    "UnknownService": ("service:x", b"", 404, "no service 'x'"),
    "BadDispatch": ("queue:x", b"", 400, "not 'queue:x'"),
    "BadDispatch/empty": ("service:", b"", 400, "not 'service:'"),
    "RequestTooLarge": ("echo", b"x" * ((32 << 20) + 1), 413, "33554433 bytes exceed"),
    "CodeMissing": ("nowhere", b"", 503, "no folder /nowhere"),
    "CodeMissing/program": ("no-program", b"", 503, "no-such-program is not there"),
    "CodeMissing/line-ends": ("windows", b"", 503, "has Windows line ends"),
    "InitFailed": ("crash", b"", 503, r"ended with status 1 before it could serve: "
                   r"(?s:.*)no reason to live"),
    "InitFailed/404": ("refuses", b"", 503, "the initializer of refuses answered 404"),
    "InitFailed/exit": ("dies", b"", 503, "ended with status 4 before it could serve"),
    "InitTimeout": ("silent", b"", 503, r"nothing listens on its port \d+; it must read"),
    "InitTimeout/port": ("fixed", b"", 503, "it must read FC_SERVER_PORT"),
    "InitTimeout/hook": ("hangs", b"", 503, "has not answered its initializer within 1 s"),
    "MemoryPoolFull": ("huge", b"", 503, r"needs \d+ bytes"),
    "QueueDisabled": ("queueless", b"", 503, "has no free worker"),
    "BadAnswer": ("echo", call_of("garbage", text="what?\r\n\r\n"), 502, "what"),
    "BadAnswer/length": ("echo", call_of("garbage", text="HTTP/1.1 200 OK\r\n"
                                         "Content-Length: x\r\n\r\n"), 502, "Length"),
    "BadAnswer/upgrade": ("echo", call_of("garbage", text="HTTP/1.1 101 X\r\n\r\n"),
                          502, "upgrade"),
    "WorkerDied": ("once", call_of("die", when="head"), 502, "its worker is gone"),
}


@pytest.mark.parametrize("name", sorted(FAILURES))
def test_fcc_error_status(container: Container, name: str) -> None:
    """Each failure has its name, its reason, and its status for HTTP; events get 404."""
    function, event, status, reason = FAILURES[name]
    wanted = name.partition("/")[0]
    found = container.http(event, function=function)
    assert found.failure == (status, "404", wanted)
    assert found.json["errorType"] == wanted
    assert re.search(reason, found.json["errorMessage"])
    if wanted not in ("InitTimeout", "QueueDisabled"):  # slow; has a worker by now
        assert container.invoke(event, function).failure == (404, "404", wanted)


def test_fcc_launch_ready(container: Container) -> None:
    """The initializer is called once where there is one, and never where not."""
    found = [container.invoke(call_of("env"), name).json["initialized"]
             for name in ("inits", "inits", "echo")]
    assert found == [1, 1, 0]


def test_fcc_launch_failed__timeout(container: Container) -> None:
    """A worker that is not ready in time is given up, and killed."""
    assert container.invoke(b"x", "silent").failure[2] == "InitTimeout"
    until(lambda: not container.function("silent")["workers"])


def test_fcc_queue_disabled(container: Container) -> None:
    """Without a queue the first call fails at once, and launches a worker."""
    found = container.invoke(b"x", "queueless")
    assert found.status == 200 or found.failure[2] == "QueueDisabled"
    until(lambda: container.pids("queueless"))
    assert container.invoke(b"x", "queueless").status == 200


def test_fcc_worker_exit__connection(container: Container) -> None:
    """A worker that closes a connection without an answer gets no more calls."""
    before = container.invoke(call_of("pid")).json
    assert container.http(call_of("close")).failure == (502, "404", "WorkerDied")
    assert container.invoke(call_of("pid")).json != before


def test_fcc_worker_exit__garbage(container: Container) -> None:
    """What is no HTTP is a failure of its own, and the worker goes on."""
    before = container.invoke(call_of("pid")).json
    order = call_of("garbage", text="HTTP/1.1 two hundred\r\n\r\n")
    assert container.http(order).failure == (502, "404", "BadAnswer")
    assert container.invoke(call_of("pid")).json == before


def test_fcc_limit_rate(container: Container) -> None:
    """The bucket is full at first; the third of three calls finds no token."""
    found = [container.http(b"", function="rated").status for _ in range(3)]
    assert found == [200, 200, 429]
    assert container.http(b"", function="refilled").status == 200
    until(lambda: container.http(b"", function="refilled").status == 200)


def test_fcc_timeout_head(container: Container) -> None:
    """A late answer fails at the deadline."""
    container.invoke(b"warm")
    found = container.http(call_of("hang"), X_Fc_Function_Timeout="0.1")
    assert found.failure == (504, "404", "HeadTimeout")


def test_fcc_timeout_retire(container: Container) -> None:
    """A worker in which a call was late gets no more calls."""
    before = container.invoke(call_of("pid")).json
    container.invoke(call_of("hang"), X_Fc_Function_Timeout="0.1")
    assert container.invoke(call_of("pid")).json != before


def cut(container: Container, event: bytes, timeout_s: str = "10") -> bytes:
    """Return all that a caller gets whose answer is cut."""
    container.invoke(b"warm")
    head = (b"POST /invoke HTTP/1.1\r\nConnection: close\r\n"
            b"X-Fc-Function-Timeout: %s\r\nContent-Length: %d\r\n\r\n"
            % (timeout_s.encode(), len(event)))
    with container.raw(head + event) as wire:
        return wire.makefile("rb").read()


def test_fcc_error_late(container: Container) -> None:
    """A worker that dies within the body: the connection is cut, the gateway lives."""
    found = cut(container, call_of("die", when="body"))
    assert found.endswith(b"\r\n\r\nhalf") and b"Content-Length: 10" in found
    assert container.invoke(b"on").body == b"on"


def test_fcc_timeout_body(container: Container) -> None:
    """A body that is not there a second after the deadline is broken off."""
    assert cut(container, call_of("hang", when="body"), "0.2").endswith(b"half")
    assert until(lambda: [line for line in container.log()
                          if line["error"] == "BodyTimeout"])


def test_fcc_worker_exit(container: Container) -> None:
    """A killed worker fails its call at once; the next call gets another one."""
    pid = container.invoke(call_of("pid")).json
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(container.invoke, call_of("hang"))
        until(lambda: container.function()["workers"][0]["active"])
        os.kill(pid, signal.SIGKILL)
        assert call.result().failure == (404, "404", "WorkerDied")
    assert container.invoke(call_of("pid")).json != pid


def test_fcc_retry_none__idle(container: Container) -> None:
    """A worker killed while idle costs no call: nothing was sent to it."""
    for _ in range(3):
        pid = container.invoke(call_of("pid")).json
        os.kill(pid, signal.SIGKILL)
        until(lambda: pid not in container.processes(), "the worker is dead")
        assert container.invoke(b"hi").body == b"hi"


def test_fcc_worker_exit__after(container: Container) -> None:
    """A worker that ends after a whole answer has served its call."""
    assert container.invoke(call_of("die", when="after"), "once").body == b"done"


def test_fcc_stop_signals__forks(container: Container) -> None:
    """What a worker has forked ends with it."""
    child = container.invoke(call_of("fork"), "once").json
    until(lambda: child not in container.processes(), "the child is gone")


def test_fcc_disposable_one(container: Container) -> None:
    """Three calls, three processes, none of them left."""
    pids = {container.invoke(call_of("pid"), "once").json for _ in range(3)}
    assert len(pids) == 3
    until(lambda: not container.function("once")["workers"])


# ---- callers that misbehave ----


@pytest.mark.parametrize("when", ["head", "body"])
def test_fcc_caller_gone(container: Container, when: str) -> None:
    """A caller that hangs up frees the worker's slot at once."""
    order = call_of("hang", when=when)
    caller = container.raw(b"POST /invoke HTTP/1.1\r\nContent-Length: %d\r\n\r\n"
                           % len(order) + order)
    until(lambda: container.stats()["calls"])
    assert when == "head" or caller.recv(4096)
    caller.close()
    until(lambda: container.stats()["calls"] == 0)


def test_fcc_caller_gone__slow(container: Container) -> None:
    """One that pauses within its body holds up nobody, and costs no worker its life."""
    before = container.invoke(call_of("pid")).json
    with container.raw(b"POST /invoke HTTP/1.1\r\nContent-Length: 9\r\n\r\nhalf"):
        until(lambda: container.stats()["calls"])
        assert container.invoke(call_of("pid")).json == before
    until(lambda: container.stats()["calls"] == 0)


HALVES = {
    "half-a-body": b"POST /invoke HTTP/1.1\r\nContent-Length: 99999\r\n\r\nhalf",
    "half-a-chunk": b"POST /invoke HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nhal",
    "bad-chunk": b"POST /invoke HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "half-a-head": b"POST /invoke HT",
    "no-http": b"\x16\x03\x01\x02\x00\x01",
}


@pytest.mark.parametrize("name", sorted(HALVES))
def test_fcc_caller_gone__half(container: Container, name: str) -> None:
    """Half a request, or none, costs nobody anything."""
    with container.raw(HALVES[name]) as wire:
        wire.shutdown(socket.SHUT_WR)
        assert b" 200 " not in wire.makefile("rb").read()
    until(lambda: container.stats()["calls"] == 0)
    assert container.invoke(b"on").body == b"on"


def test_fcc_limit_calls__flood(container: Container) -> None:
    """Three hundred connections at once are all answered."""
    request = b"POST /invoke HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi"
    wires = [container.raw(request) for _ in range(300)]
    found = [wire.recv(4096)[:15] for wire in wires]
    for wire in wires:
        wire.close()
    assert set(found) == {b"HTTP/1.1 200 OK"}


def test_fcc_log_access(container: Container) -> None:
    """Each call has one line that says who served it and how long it took."""
    container.invoke(b"four", "once", X_Fc_Request_Id="1-log")
    line = until(lambda: [line for line in container.log()
                          if line["request_id"] == "1-log"])[0]
    assert (line["function"], line["new_worker"], line["status"], line["bytes"],
            line["error"]) == ("once", True, 200, 4, None)
    assert line["worker"].startswith("once-")
    assert 0 < line["queue_ms"] <= line["first_byte_ms"] <= line["total_ms"]


@pytest.mark.parametrize("kind, function, event, status", [
    ("invoke", "service:x", b"", 404), ("http", "queue:x", b"", 400),
    ("http", "echo", call_of("close"), 502), ("invoke", "echo", call_of("close"), 404)])
def test_fcc_log_access__status(container: Container, kind: str, function: str,
                                event: bytes, status: int) -> None:
    """The status of a line is the one that the caller got, also of a failure."""
    call = container.http if kind == "http" else container.invoke
    request_id = f"1-status-{kind}-{status}-{function}"
    assert call(event, function=function, X_Fc_Request_Id=request_id).status == status
    line = until(lambda: [line for line in container.log()
                          if line["request_id"] == request_id])[0]
    assert line["status"] == status and container.stats()["counts"][line["error"]]


def test_fcc_log_worker(container: Container) -> None:
    """What a worker prints is in its files."""
    worker = container.invoke(call_of("env")).json["env"]["NOSLATE_WORKER_ID"]
    files = list(container.folder.glob(f"noslate-*/logs/workers/{worker}/*"))
    assert sorted(path.name for path in files) == ["stderr.log", "stdout.log"]
    assert any("worker is up" in path.read_text() for path in files)


def test_fcc_launch_demand(container: Container) -> None:
    """Parallel calls to a cold function share its first workers."""
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda _: container.invoke(call_of("pid"), "other").json,
                              range(8)))
    assert len(set(found)) == 1
