# test_gateway_calls.py: what callers of reference/gateway.py see (MIT).
"""Dispatch, fields, streams and failures, through a real container and real workers."""

import os
import pathlib
import re
import signal
import socket
from typing import Any, Dict, Iterator, List, Set, Tuple

import gateways
import pytest
from gateways import DIE, HALF, HANG, Container, call_of, profile, until

FUNCTIONS = {
    "functions": [
        profile("echo"), profile("other", env={"COLOUR": "red"}, handler="a.b"),
        profile("rated", rateLimit={"maxTokenCount": 2, "fillInterval": 1e9}),
        profile("twice", rateLimit={"maxTokenCount": 2, "fillInterval": 1e9}),
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
        profile("deaf", env={"START": "deaf"}, worker={"initializationTimeout": 300}),
        profile("windows", command=[str(gateways.HERE / "workers" / "windows.sh")]),
        profile("huge", memory_mb=1 << 20), profile("cold"),
        profile("once", worker={"disposable": True}),
        profile("in-turn", worker={"disposable": True, "dispatchMode": "round-robin"})],
    "services": [
        {"name": "last", "functions": [{"name": "echo", "proportion": 0},
                                       {"name": "inits", "proportion": 0},
                                       {"name": "other", "proportion": 0}]},
        {"name": "first", "functions": [{"name": "other"}, {"name": "echo"}]},
        {"name": "half", "functions": [{"name": "other", "proportion": 0.5},
                                       {"name": "echo"}]}]}


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    """One container for all tests of this file; it ends without a trace. It sees its
    peers' addresses as IPv6 has them, mapped."""
    with Container(FUNCTIONS, "--default-function", "echo", "--launches", "16",
                   "--host", "::") as made:
        yield made
        assert made.stop() == 0


# ---- dispatch and fields ----


def served_by(container: Container, **fields: str) -> str:
    """Return the function that gets an event with these fields."""
    env = container.ask("POST", "/invoke", call_of("env"), {
        name.replace("_", "-"): value for name, value in fields.items()}).json["env"]
    return str(env["FC_FUNCTION_NAME"])


@pytest.mark.parametrize("fields, wanted", [
    ({"x_noslated_dispatch": "other", "x_fc_function_name": "once"}, "other"),
    ({"x_noslated_dispatch": "function:other"}, "other"),
    ({"x_fc_function_name": "other"}, "other"), ({"x_fc_function_name": "outer"}, "echo"),
    ({}, "echo")])
def test_fcc_dispatch_order(container: Container, fields: Dict[str, str],
                            wanted: str) -> None:
    """The header wins, then FC's name of the function, then the default."""
    assert served_by(container, **fields) == wanted


@pytest.mark.parametrize("service, wanted", [
    ("last", {"other"}), ("first", {"other"}), ("half", {"echo", "other"})])
def test_fcc_dispatch_service(container: Container, service: str,
                              wanted: Set[str]) -> None:
    """Proportions decide by chance; what is missing to 1 goes to the last."""
    assert {served_by(container, x_noslated_dispatch="service:" + service)
            for _ in range(30)} == wanted


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


def test_fcc_fields_pass(container: Container) -> None:
    """Method, target and fields arrive in order, duplicates too; those of the connection
    do not, and a worker hears its own name, memory and limit in whole seconds."""
    passed = [["X-Mine", "1"], ["X-Fc-Region", "here"], ["x-mine", "2"]]
    seen = container.ask("POST", "/a?b=1", call_of("request"), [
        *((name, value) for name, value in passed), ("Connection", "X-Hop"), ("X-Hop", "2"),
        ("Keep-Alive", "3"), ("X-Fc-Control-Path", "/http-invoke"),
        ("X-Fc-Function-Name", "outer"), ("X-Fc-Function-Timeout", "6.2"),
        ("X-Fc-Request-Id", "1-x")]).json
    assert (seen["method"], seen["target"]) == ("POST", "/a?b=1")
    assert [pair for pair in seen["fields"] if pair in passed] == passed
    fields = {name.lower(): value for name, value in seen["fields"]}
    assert not {"connection", "x-hop", "keep-alive"} & set(fields)
    assert [fields["x-fc-" + name] for name in (
        "function-name", "function-memory", "function-timeout", "request-id",
        "control-path")] == ["echo", "64", "7", "1-x", "/http-invoke"]


def test_fcc_worker_secret(container: Container) -> None:
    """Each worker has a secret, and every request carries it."""
    fields = dict(container.http(call_of("request")).json["fields"])
    own, other = [container.invoke(call_of("env"), name).json["env"][
        "NOSLATE_WORKER_SECRET"] for name in ("echo", "other")]
    assert fields["X-Noslate-Worker-Secret"] == own != other and len(own) == 32


def test_fcc_fields_hop(container: Container) -> None:
    """Nobody else sets the gateway's own fields, in either direction."""
    seen = container.http(call_of("request"), x_noslate_worker_secret="forged")
    assert b"forged" not in seen.body
    found = container.http(call_of("reply", status=200, fields=[
        ("X-Fc-Status", "404"), ("X-Fc-Other", "forged"), ("X-Noslate-Error", "forged"),
        ("X-Noslate-Worker-Secret", "its own")]))
    assert not {"x-fc-other", "x-noslate-worker-secret"} & set(found.headers)
    assert found.failure == (200, "404", "HandlerFailed")


def test_fcc_answer_fields(container: Container) -> None:
    """Status and fields reach the caller, duplicates too; those of a connection do not.
    """
    passed = [("Set-Cookie", "a=1"), ("Set-Cookie", "b=2")]
    found = container.http(call_of("reply", status=201, fields=[
        *passed, ("Connection", "X-Hop"), ("Connection", "keep-alive"), ("X-Hop", "1")]))
    assert found.status == 201
    assert [pair for pair in found.fields if pair in passed] == passed
    assert not {"connection", "x-hop"} & set(found.headers)


STALE = "HTTP/1.1 %s\r\nX-Fc-Status: 200\r\nContent-Length: 5\r\n\r\nstale"


@pytest.mark.parametrize("text", [STALE % "200 OK" * 2, STALE % "204 No Content"],
                         ids=["second-answer", "bodiless-with-body"])
def test_fcc_answer_fields__rest(container: Container, text: str) -> None:
    """What a worker sends beyond its answer is no answer to the next call."""
    container.http(call_of("say", text=text))
    assert container.http(b"hi").body == b"hi"


def test_fcc_answer_fields__late(container: Container, tmp_path: pathlib.Path) -> None:
    """Nor is what it sends later, as servers do that give up a silent connection."""
    gate, sent = tmp_path / "gate", tmp_path / "sent"
    order = call_of("say", text="HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ndone",
                    gate=str(gate), sent=str(sent),
                    more="HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n")
    assert container.http(order).body == b"done"
    gate.touch()
    until(sent.exists)
    assert container.http(b"hi").body == b"hi"


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


@pytest.mark.parametrize("method, path, control", [
    ("GET", "/invoke", "/http-invoke"), ("POST", "/invoke", ""), ("GET", "/-/stats", ""),
    ("POST", "/invoke?x=1", ""), ("GET", "/initialize", ""), ("POST", "/initialize", ""),
    ("GET", "/pre-freeze", ""), ("POST", "/pre-freeze", "")])
def test_fcc_invoke_kind(container: Container, method: str, path: str,
                         control: str) -> None:
    """X-Fc-Control-Path says what a request is, else method and path; as often as it
    comes, on one connection."""
    assert twice(container, method, path, control) == [(200, "")] * 2


@pytest.mark.parametrize("method, path, control", [
    ("GET", "/", ""), ("GET", "/invoke", ""), ("POST", "/invoke/x", ""),
    ("DELETE", "/initialize", ""), ("POST", "/-/stats", ""), ("GET", "/http-invoke", ""),
    ("GET", "/-/stats", "/unheard-of"), ("POST", "/invoke", "/unheard-of")])
def test_fcc_path_unknown(container: Container, method: str, path: str,
                          control: str) -> None:
    """What FC never calls is a failure by name; the connection stays."""
    assert twice(container, method, path, control) == [(404, "UnknownPath")] * 2


def twice(container: Container, method: str, path: str, control: str
          ) -> List[Tuple[int, str]]:
    """Ask on one connection; return status and failure of each answer."""
    fields = {"X-Fc-Control-Path": control} if control else {}
    body = b"x" if method == "POST" else b""
    with container.connection() as own:
        found = [container.ask(method, path, body, fields, own) for _ in range(2)]
    return [(one.status, one.failure[2]) for one in found]


def test_fcc_admin_local(container: Container) -> None:
    """Administration shows what there is, and is not reachable through FC."""
    container.invoke(b"x")
    found = container.stats()
    assert found["counts"]["ok"] >= 1 and found["functions"]["echo"]["queued"] == 0
    assert {"id", "pid", "state", "active", "served"} == set(
        found["functions"]["echo"]["workers"][0])
    passed = container.ask("GET", "/-/stats", b"", {"X-Fc-Control-Path": "/http-invoke"})
    assert (passed.status, passed.body) == (200, b"")


# ---- streams ----


@pytest.mark.parametrize("size, chunked", [
    (0, False), (1, False), (65537, False), (32 << 20, False), (0, True), (1, True),
    (65537, True), (4 << 20, True)])
def test_fcc_stream_both(container: Container, size: int, chunked: bool) -> None:
    """Bodies of any size up to the limit pass unchanged in both directions."""
    body = os.urandom(1024) * (size // 1024) + b"x" * (size % 1024)
    with container.connection() as connection:
        fields = {"X-Fc-Control-Path": "/invoke", "x-noslated-dispatch": "echo"}
        parts = [body[at:at + 262144] for at in range(0, size, 262144)]
        connection.request("POST", "/invoke", iter(parts) if chunked else body, fields,
                           encode_chunked=chunked)
        assert connection.getresponse().read() == body


def test_fcc_stream_both__down(container: Container, tmp_path: pathlib.Path) -> None:
    """The caller has the first part before the worker makes the second; a body that ends
    with the worker's connection ends properly for the caller."""
    gate = tmp_path / "gate"
    with container.connection() as connection:
        connection.request("POST", "/invoke", call_of(
            "say", text="HTTP/1.0 200 OK\r\n\r\nfirst", gate=str(gate), more="second",
            then="close"), {"x-noslated-dispatch": "echo"})
        response = connection.getresponse()
        assert response.read(5) == b"first"
        gate.touch()
        assert response.read() == b"second"


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
    "InitTimeout/port": ("deaf", b"", 503, "it must read FC_SERVER_PORT"),
    "InitTimeout/hook": ("hangs", b"", 503, "has not answered its initializer within 1 s"),
    "MemoryPoolFull": ("huge", b"", 503, r"needs \d+ bytes"),
    "BadAnswer": ("once", call_of("say", text="what?\r\n\r\n"), 502, "what"),
    "BadAnswer/length": ("once", call_of("say", text=HALF.replace("10", "x")), 502,
                         "Length"),
    "BadAnswer/upgrade": ("once", call_of("say", text="HTTP/1.1 101 X\r\n\r\n"), 502,
                          "upgrade"),
    "WorkerDied": ("once", DIE, 502, "its worker is gone"),
}


@pytest.mark.parametrize("name", sorted(FAILURES))
def test_fcc_error_status(container: Container, name: str) -> None:
    """Each failure has its name, its reason, and its status for HTTP, in the log as well
    [fcc.log.access]; events get 404. No worker stays that could not start."""
    function, event, status, reason = FAILURES[name]
    wanted, request_id = name.partition("/")[0], "1-" + name
    found = container.http(event, function=function, X_Fc_Request_Id=request_id)
    assert found.failure == (status, "404", wanted)
    assert found.json["errorType"] == wanted
    assert re.search(reason, found.json["errorMessage"])
    line = container.log(request_id)
    assert (line["status"], line["error"]) == (status, wanted)
    assert container.stats()["counts"][wanted]
    if wanted != "InitTimeout":  # takes long
        assert container.invoke(event, function).failure == (404, "404", wanted)
    if status == 503:  # [fcc.launch.failed]
        until(lambda: not container.function(function)["workers"])


def test_fcc_launch_ready(container: Container) -> None:
    """The initializer is called once where there is one, and never where not."""
    found = [container.invoke(call_of("env"), name).json["initialized"]
             for name in ("inits", "inits", "echo")]
    assert found == [1, 1, 0]


def test_fcc_queue_disabled(container: Container) -> None:
    """Without a queue the first call fails at once, and launches a worker."""
    found = container.http(b"x", function="queueless")
    assert found.failure == (503, "404", "QueueDisabled")
    until(lambda: container.pids("queueless"))
    assert container.invoke(b"x", "queueless").status == 200


@pytest.mark.parametrize("event, timeout_s, failure, stays", [
    (call_of("say", then="close"), "10", (502, "404", "WorkerDied"), False),
    (call_of("say", text="HTTP/1.1 two hundred\r\n\r\n"), "10", (502, "404", "BadAnswer"),
     True),
    (HANG, "0.1", (504, "404", "HeadTimeout"), False)], ids=["closed", "garbage", "late"])
def test_fcc_timeout_retire(container: Container, event: bytes, timeout_s: str,
                            failure: Tuple[int, str, str], stays: bool) -> None:
    """A worker that closes a connection without an answer gets no more calls, nor does
    one that is late [fcc.timeout.head]; after what is no HTTP it goes on."""
    before = container.invoke(call_of("pid")).json
    assert container.http(event, X_Fc_Function_Timeout=timeout_s).failure == failure
    assert (container.invoke(call_of("pid")).json == before) == stays


def test_fcc_limit_rate(container: Container) -> None:
    """The bucket is full at first; the third of three calls finds no token."""
    found = [container.http(b"", function="rated").failure[::2] for _ in range(3)]
    assert found == [(200, ""), (200, ""), (429, "RateLimited")]
    assert container.http(b"", function="refilled").status == 200
    until(lambda: container.http(b"", function="refilled").status == 200)


@pytest.mark.parametrize("then, timeout_s, error", [
    ("exit", 10, "StreamBroken"), ("hang", 0.2, "BodyTimeout")],
    ids=["died", "fcc.timeout.body"])
def test_fcc_error_late(container: Container, then: str, timeout_s: float,
                        error: str) -> None:
    """Within a body the connection is cut, if the worker dies or a second after the
    deadline [fcc.timeout.body]; the gateway lives."""
    container.invoke(b"warm")
    event = call_of("say", text=HALF, then=then)
    with container.raw(
            b"POST /invoke HTTP/1.1\r\nConnection: close\r\nX-Fc-Request-Id: 1-%s\r\n"
            b"X-Fc-Function-Timeout: %g\r\nContent-Length: %d\r\n\r\n"
            % (then.encode(), timeout_s, len(event)) + event) as caller:
        found = caller.makefile("rb").read()
    assert found.endswith(b"\r\n\r\nhalf") and b"Content-Length: 10" in found
    line = container.log("1-" + then)
    assert (line["status"], line["error"], line["bytes"]) == (200, error, 4)
    assert container.invoke(b"on").body == b"on"


def test_fcc_worker_exit(container: Container) -> None:
    """A killed worker fails its call at once; the next call gets another one."""
    pid = container.invoke(call_of("pid")).json
    call = container.later(HANG)
    until(container.active)
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


def test_fcc_limit_rate__idle(container: Container) -> None:
    """A call that was given to such a worker has its token already."""
    pid = container.invoke(call_of("pid"), "twice").json
    os.kill(pid, signal.SIGKILL)
    until(lambda: pid not in container.processes(), "the worker is dead")
    assert container.invoke(b"hi", "twice").body == b"hi"


def test_fcc_disposable_one(container: Container) -> None:
    """Three calls, three processes, none of them left, nor what they have forked
    [fcc.stop.signals]; one that ends after a whole answer has served its call."""
    pids = {container.invoke(call_of("pid"), "once").json for _ in range(3)}
    child = container.invoke(call_of("fork"), "once").json
    assert container.invoke(call_of("say", text=HALF.replace("10", "4"), then="exit"),
                            "once").body == b"half"
    assert len(pids) == 3
    until(lambda: not container.function("once")["workers"])
    until(lambda: not {child, *pids} & set(container.processes()), "all are gone")


def test_fcc_disposable_one__round_robin(container: Container) -> None:
    """Also in mode round-robin, where one worker may get more than its share."""
    event = call_of("hold", gate=str(container.gate))
    calls = [container.later(event, "in-turn") for _ in range(2)]
    until(lambda: sum(worker["active"] for worker in
                      container.function("in-turn")["workers"]) == 2)
    container.release()
    assert calls[0].result().json != calls[1].result().json


# ---- callers that misbehave ----


@pytest.mark.parametrize("text", ["", HALF], ids=["head", "body"])
def test_fcc_caller_gone(container: Container, text: str) -> None:
    """A caller that hangs up frees the worker's slot at once."""
    order = call_of("say", text=text, then="hang")
    caller = container.raw(b"POST /invoke HTTP/1.1\r\nContent-Length: %d\r\n\r\n"
                           % len(order) + order)
    until(lambda: container.stats()["calls"])
    assert not text or caller.recv(4096)
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
    "half-a-body": b"POST /invoke HTTP/1.1\r\nX-Fc-Request-Id: %s\r\n"
                   b"Content-Length: 9\r\n\r\nhalf",
    "half-a-chunk": b"POST /invoke HTTP/1.1\r\nX-Fc-Request-Id: %s\r\n"
                    b"Transfer-Encoding: chunked\r\n\r\n9\r\nhal",
    "bad-chunk": b"POST /invoke HTTP/1.1\r\nX-Fc-Request-Id: %s\r\n"
                 b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
    "half-a-head": b"POST /invoke HT", "no-http": b"\x16\x03\x01\x02\x00\x01",
}


@pytest.mark.parametrize("name", sorted(HALVES))
def test_fcc_caller_gone__half(container: Container, name: str) -> None:
    """Half a request, or none, costs nobody anything; the log has the status of one that
    was a call [fcc.log.access]."""
    with container.raw(HALVES[name].replace(b"%s", name.encode())) as caller:
        caller.shutdown(socket.SHUT_WR)
        assert caller.makefile("rb").read().startswith(b"HTTP/1.1 400 ")
    until(lambda: container.stats()["calls"] == 0)
    if b"%s" in HALVES[name]:
        line = container.log(name)
        assert (line["status"], line["error"]) == (400, "CallerGone")
    assert container.invoke(b"on").body == b"on"


def test_fcc_limit_calls__flood(container: Container) -> None:
    """A hundred and fifty connections at once are all answered."""
    request = b"POST /invoke HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi"
    wires = [container.raw(request) for _ in range(150)]
    found = [wire.recv(4096)[:15] for wire in wires]
    for wire in wires:
        wire.close()
    assert set(found) == {b"HTTP/1.1 200 OK"}


def test_fcc_log_access(container: Container) -> None:
    """Each call has one line that says who served it and how long it took."""
    container.invoke(b"four", "once", X_Fc_Request_Id="1-log")
    line = container.log("1-log")
    assert (line["function"], line["new_worker"], line["status"], line["bytes"],
            line["error"]) == ("once", True, 200, 4, None)
    assert line["worker"].startswith("once-")
    assert 0 < line["queue_ms"] <= line["first_byte_ms"] <= line["total_ms"]


def test_fcc_log_worker(container: Container) -> None:
    """What a worker prints is in its files."""
    worker = container.invoke(call_of("env")).json["env"]["NOSLATE_WORKER_ID"]
    files = list(container.folder.glob(f"noslate-*/logs/workers/{worker}/*"))
    assert sorted(path.name for path in files) == ["stderr.log", "stdout.log"]
    assert any("worker is up" in path.read_text() for path in files)


def test_fcc_launch_demand(container: Container) -> None:
    """Parallel calls to a cold function share its first workers."""
    calls: List[Any] = [container.later(call_of("pid"), "cold") for _ in range(8)]
    assert len({call.result().json for call in calls}) == 1
