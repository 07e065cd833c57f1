# test_cloud_vendors.py: what each of the three interfaces has of its own (MIT).
"""Requests as the vendors' clients send them, and the answers that they need."""

import base64
import concurrent.futures
import contextlib
import io
import json
import zipfile
from typing import Any, Dict, List

import emulator
import pytest
from cloud_harness import URN, Client, Local, hello, local, package, zipped

__all__ = ["hello", "local", "package"]


# ---- scf ----

def test_scf_cloud_content_type(local: Local) -> None:
    """Errors too have status 200 and a type without parameters."""
    for method, fields in (("POST", {}), ("POST", {"X_TC_Action": "GetFunction"}),
                           ("GET", {})):
        reply = local.ask(method, "/", b"", **fields)
        assert reply.status == 200
        assert reply.fields["content-type"] == "application/json"
        assert sorted(reply.json()["Response"]) == ["Error", "RequestId"]


def test_scf_cloud_result(hello: Local) -> None:
    """Result has each member, of its type; RetMsg is the result as text."""
    result = hello.invoke("scf", "hello", ["say", '"x"']).result()
    memory, took, billed = (result.pop(name) for name in (
        "MemUsage", "Duration", "BillDuration"))
    assert memory > 1048576 and isinstance(memory, int)
    assert 0 < took <= billed < took + 1 and len(result.pop("FunctionRequestId")) == 36
    assert result == {"RetMsg": '"x"', "ErrMsg": "", "Log": "", "InvokeResult": 0}


@pytest.mark.parametrize("step,number,text", (
    (["fail", "oh no"], 1, "oh no"), (["exit", 3], -1, "User process exit")))
def test_scf_cloud_result__failed(hello: Local, step: List[Any], number: int,
                                  text: str) -> None:
    """A function that fails is no error of the interface."""
    result = hello.invoke("scf", "hello", step).result()
    assert result["InvokeResult"] == number and result["RetMsg"] == result["ErrMsg"]
    assert text in json.loads(result["ErrMsg"]).get("stackTrace", result["ErrMsg"])


@pytest.mark.parametrize("word", ("Tail", "tail"))
def test_any_log_tail__scf(hello: Local, word: str) -> None:
    """With Tail the log comes within the vendor's lines."""
    result = hello.invoke("scf", "hello", ["out", 2, "printed\n"], ["say", "x"],
                          LogType=word).result()
    lines = result["Log"].splitlines()
    id_text = "RequestId: " + result["FunctionRequestId"]
    assert lines[:4] == ["START " + id_text, "Event " + id_text, "printed",
                         "END " + id_text]
    assert lines[4].startswith("Report " + id_text)


def test_any_log_tail__cut(hello: Local) -> None:
    """Of a long log the last 4096 bytes come."""
    reply = hello.invoke("fc", "hello", ["out", 2, "a" + "b" * 9000], ["say", "x"],
                         X_Fc_Log_Type="Tail")
    log = base64.b64decode(reply.fields["x-fc-log-result"])
    assert len(log) == 4096 and log.startswith(b"bbb") and b"Invoke End" in log


def test_scf_cloud_async(hello: Local) -> None:
    """A call of type Event gets a Result that is empty but for the id."""
    result = hello.later("scf", "hello", b"1").result()
    assert len(result.pop("FunctionRequestId")) == 36
    assert result == {"BillDuration": 0, "Duration": 0, "ErrMsg": "", "Log": "",
                      "InvokeResult": 0, "MemUsage": 0, "RetMsg": ""}


@pytest.mark.parametrize("action,member", (("Invoke", "ClientContext"),
                                           ("InvokeFunction", "Event")))
def test_scf_cloud_event(hello: Local, action: str, member: str) -> None:
    """An event that is no JSON is refused; the others come byte for byte."""
    for text in ("{", "hello", "'a'"):
        reply = hello.scf(action, FunctionName="hello", **{member: text})
        assert reply.code() == "200 InvalidParameterValue.ClientContext"
    for text in ('{ "a":  [1.0] }', "null", "\u00e9".join('""'), ""):
        reply = hello.scf(action, FunctionName="hello", **{member: text})
        assert reply.result()["RetMsg"] == text
    assert hello.scf(action, FunctionName="hello").result()["RetMsg"] == ""


FORM = b"Action=Invoke&Version=2018-04-16&FunctionName=hello&ClientContext=%7B%7D"


@pytest.mark.parametrize("method,path,body", (
    ("GET", "/?" + FORM.decode(), b""), ("POST", "/", FORM)))
def test_scf_cloud_form(hello: Local, method: str, path: str, body: bytes) -> None:
    """The older signatures send a query or a form."""
    form = {"Content_Type": "application/x-www-form-urlencoded"}
    assert hello.ask(method, path, body, **form).result()["RetMsg"] == "{}"
    nested = hello.ask("POST", "/", FORM + b"&Code.ZipFile=x", **form)
    assert nested.code() == "200 UnsupportedOperation"


def test_scf_cloud_env(local: Local) -> None:
    """An empty pair is no variable; the others are in the environment."""
    pairs = [{"Key": "", "Value": ""}, {"Key": "COLOUR", "Value": "red"}]
    assert local.create("scf", "hello", Environment={"Variables": pairs}).status == 200
    assert json.loads(local.result("scf", "hello", ["env"]))["COLOUR"] == "red"


def test_any_cloud_range__given(local: Local) -> None:
    """What the document says is what the function sees."""
    local.create("scf", "hello", MemorySize=256, Timeout=17, Handler="x.y")
    env = json.loads(local.result("scf", "hello", ["env"]))
    assert (env["_HANDLER"], env["SCF_FUNCTIONNAME"]) == ("x.y", "hello")
    local.create("fg", "hello", memory_size=256, timeout=17)
    env = json.loads(local.result("fg", "hello", ["env"]))
    assert (env["RUNTIME_MEMORY"], env["RUNTIME_TIMEOUT"]) == ("256", "17")


def test_any_cloud_calls__scf_lists(hello: Local) -> None:
    """The lists that tools ask for, a page of functions, and namespaces."""
    for name in ("hi", "hey"):
        hello.create("scf", name, Namespace="mine" if name == "hey" else "default")
    listed = hello.scf("ListFunctions", Offset=1, Limit=1, SearchKey="h")
    found = listed.json()["Response"]
    assert [one["FunctionName"] for one in found["Functions"]] == ["hi"]
    assert found["TotalCount"] == 3
    spaces = hello.scf("ListNamespaces").json()["Response"]["Namespaces"]
    assert [one["Name"] for one in spaces] == ["default", "mine"]
    for action in ("ListVersionByFunction", "ListAliases",
                   "GetFunctionEventInvokeConfig", "ListTriggers"):
        assert hello.scf(action, FunctionName="hello").code() == "200 -"


def test_scf_apigw_event(hello: Local) -> None:
    """The event has the members of the vendor's, in their order."""
    reply = hello.page("scf", "default/hello", "/a%20b?x=y", X_Own="Yes")
    event = reply.json()
    assert reply.body == json.dumps(event, sort_keys=True, separators=(",", ":")
                                    ).encode()
    headers, context = event.pop("headers"), event.pop("requestContext")
    assert event == {"headerParameters": {}, "httpMethod": "GET", "path": "/a%20b",
                     "pathParameters": {}, "queryString": {"x": "y"},
                     "queryStringParameters": {}}
    assert context.pop("serviceId").startswith("service-")
    assert context == {"httpMethod": "GET", "identity": {}, "path": "/",
                       "sourceIp": "127.0.0.1", "stage": "release"}
    assert headers["x-own"] == "Yes" and headers["x-api-scheme"] == "http"
    assert headers["x-b3-traceid"] == headers["x-api-requestid"]


def test_scf_apigw_event__body(hello: Local) -> None:
    """A body comes as text, or in base64."""
    for body, shown in (
            (b"text", {"body": "text"}), ("\u00e9".encode(), {"body": "\u00e9"}),
            (b"\xff", {"body": "/w==", "isBase64Encoded": True})):
        event = hello.page("scf", "default/hello", "/", body).json()
        assert {name: event[name] for name in ("body", "isBase64Encoded")
                if name in event} == shown


def test_scf_apigw_query(hello: Local) -> None:
    """Repeated parameters are a list, bare ones true."""
    event = hello.page("scf", "default/hello", "/?a=b&a=c&i&x=&%C3%A9=1+2").json()
    assert event["queryString"] == {"a": ["b", "c"], "i": True, "x": "",
                                    "\u00e9": "1 2"}


def test_scf_apigw_answer(hello: Local) -> None:
    """Pass-through: the result, also that of a failure, with 200."""
    reply = hello.page("scf", "default/hello", "/", b"x")
    assert reply.status == 200 and reply.fields["content-type"].startswith("text/plain")
    hello.create("scf", "broken", zipped({"a": b""}))
    reply = hello.page("scf", "default/broken", "/")
    assert reply.status == 200 and b"Bootstrap not exist" in reply.body


INTEGRATED = json.dumps({"api": {"isIntegratedResponse": "TRUE", "requestConfig": {
    "method": "ANY", "path": "/p"}}, "release": {"environmentName": "test"}})


@pytest.fixture
def integrated(local: Local) -> Local:
    """Functions of scf and fg that answer with the body of the request."""
    script = b"#!/bin/sh\nexport PATH=$PATH:/usr/bin\n" + RELAY
    for vendor in ("scf", "fg"):
        local.create(vendor, "relay", zipped({"bootstrap": script}))
    local.scf("CreateTrigger", FunctionName="relay", TriggerName="t", Type="apigw",
              TriggerDesc=INTEGRATED)
    return local


RELAY = b"""exec python3 -c '
import base64, json, os, urllib.request
scf = os.environ.get("SCF_RUNTIME_API")
base = "http://" + (scf + ":" + os.environ["SCF_RUNTIME_API_PORT"] + "/runtime/" if scf
                    else os.environ["RUNTIME_API_ADDR"] + "/v1/runtime/")
def call(path, data=None):
    return urllib.request.urlopen(urllib.request.Request(base + path, data))
if scf:
    call("init/ready", b" ")
while True:
    answer = call("invocation/next" if scf else "invocation/request")
    event, key = json.load(answer), answer.headers.get("X-Cff-Request-Id")
    body = event.get("body", "").encode()
    if event.get("isBase64Encoded"):
        body = base64.b64decode(body)
    if event["path"] == "/event":
        body = json.dumps({"statusCode": 200, "body": json.dumps(event)}).encode()
    call("invocation/response" + ("" if scf else "/" + key), body)
'
"""
ANSWERS = (
    (b'{"statusCode":201,"headers":{"A":"b","Set-Cookie":["c","d"]},"body":"x"}', 201),
    (b'{"statusCode":200,"isBase64Encoded":true,"body":"eA=="}', 200),
    (b'"text"', 0), (b"text", 0), (b'{"statusCode":200,"body":7}', 0),
    (b'{"body":"x"}', 0), (b'{"statusCode":0,"body":"x"}', 0),
    (b'{"statusCode":200,"headers":{"A":"b\\r\\nC: d"}}', 0),
    (b'{"statusCode":200,"isBase64Encoded":true,"body":"%"}', 0))


def test_scf_apigw_answer__integrated(integrated: Local) -> None:
    """The result says status, fields and body; else it is 403."""
    for body, status in ANSWERS:
        reply = integrated.page("scf", "default/relay", "/", body)
        assert (reply.status, reply.body) == (status, b"x") if status else (
            reply.status == 403 and reply.json()["errno"] == 403)
    event = integrated.scf("ListTriggers", FunctionName="relay").json()["Response"]
    assert event["Triggers"][0]["TriggerAttribute"].endswith("/scf/default/relay/")


def test_fg_apig_answer(integrated: Local) -> None:
    """The result says status, fields and body; else it is 500 and FSS.1206."""
    for body, status in ANSWERS:
        reply = integrated.page("fg", "default/relay", "/", body)
        assert (reply.status, reply.body) == (status, b"x") if status else (
            reply.code() == "500 FSS.1206")
    reply = integrated.page("fg", "default/relay", "/", b"{}")
    assert reply.json()["error_msg"].endswith("statusCode can not be 0")


@pytest.mark.parametrize("vendor,name,method", (("scf", "apigw", "GET"),
                                                ("fg", "apig", "POST")))
def test_scf_apigw_event__sample(local: Local, vendor: str, name: str, method: str
                                 ) -> None:
    """A gateway's event has the members of the one that --sample-event prints."""
    sample = json.loads(emulator.SAMPLE_EVENTS)[vendor][name]
    events: List[bytes] = []
    local.cloud.on_log = events.append
    local.create(vendor, "relay", zipped({"bootstrap": b"#!/bin/sh\n" + RELAY.replace(
        b"    body = event", b"    print(json.dumps(event), flush=True)\n"
        b"    body = event", 1)}))
    local.ask(method, "/-/http/%s/default/relay/hello?name=you" % vendor)
    text = b"".join(events).decode()
    event = json.loads(next(line for line in text.splitlines() if line[:1] == "{"))
    assert sorted(event) == sorted(sample)
    assert sorted(event["requestContext"]) == sorted(sample["requestContext"])
    assert event["queryString" if vendor == "scf" else "queryStringParameters"] == {
        "name": "you"}


# ---- fc ----

@pytest.mark.parametrize("fields,code", ((
    {"X_FC_LOG_TYPE": "tail"}, "200 -"), ({"x_fc_invocation_type": "ASYNC"}, "202 -")))
def test_fc_cloud_invoke(hello: Local, fields: Dict[str, str], code: str) -> None:
    """The body is the result, byte for byte; names and values count in any case."""
    reply = hello.call("fc", "POST functions/hello/invocations?qualifier=LATEST",
                       b"\xff\x00", **fields)
    assert reply.code() == code and "x-fc-request-id" in reply.fields
    assert reply.body == (b"\xff\x00" if code == "200 -" else b"")
    assert ("x-fc-log-result" in reply.fields) == (code == "200 -")


def test_fc_cloud_invoke__failed(hello: Local) -> None:
    """A failure has its type in a field and 200."""
    reply = hello.invoke("fc", "hello", ["exit", 3])
    assert reply.status == 200 and b"errorMessage" in reply.body
    assert reply.fields["x-fc-error-type"] == "InvocationError"


@pytest.mark.parametrize("version", ("2021-04-06", "2016-08-15"))
def test_fc_cloud_generations(local: Local, version: str) -> None:
    """A service, its functions and its qualifiers, as the older interfaces have them.
    """
    code = {"zipFile": base64.b64encode(local.package).decode()}
    create = {"functionName": "f", "runtime": "custom", "handler": "h", "code": code,
              "caPort": 9000, "initializationTimeout": 30, "description": None}
    service, function = {"serviceName": "s", "description": "d"}, "/s/functions"
    for call, body, code_shown, shown in (
            ("POST" + function, create, "404 ServiceNotFound", b""),
            ("POST", service, "200 -", b'"serviceName": "s"'),
            ("POST", service, "409 ServiceAlreadyExists", b""),
            ("POST" + function, create, "200 -", b'"codeSize": '),
            ("POST/s.LATEST/functions/f/invocations", b"hi", "200 -", b"hi"),
            ("POST/s/functions/f/invocations?qualifier=LATEST", b"hi", "200 -", b"hi"),
            ("GET/s.9/functions/f", b"", "404 VersionNotFound", b""),
            ("GET", b"", "200 -", b'"serviceName": "s"'),
            ("PUT/s", {"description": "e"}, "200 -", b'"description": "e"'),
            ("DELETE/s", b"", "409 FunctionNotEmpty", b""),
            ("DELETE/s/functions/f", b"", "204 -", b""),
            ("DELETE/s", b"", "204 -", b""),
            ("GET/s", b"", "404 ServiceNotFound", b"")):
        method, slash, path = call.partition("/")
        reply = local.ask(method, "/%s/services%s%s" % (version, slash, path), body)
        assert (call, reply.code()) == (call, code_shown) and shown in reply.body


def test_fc_cloud_deleted(hello: Local) -> None:
    """204 has no length; a function with triggers stays."""
    hello.call("fc", "POST functions/hello/triggers", TRIGGER)
    assert hello.delete("fc", "hello").code() == "409 FunctionNotEmpty"
    for path in ("functions/hello/triggers/web", "functions/hello"):
        reply = hello.call("fc", "DELETE " + path)
        assert reply.status == 204 and "content-length" not in reply.fields


TRIGGER = {"triggerName": "web", "triggerType": "http",
           "triggerConfig": '{"authType": "anonymous", "methods": ["GET"]}'}


def test_fc_cloud_trigger(hello: Local) -> None:
    """It shows its configuration as it came, and the function's URL, which works."""
    shown = hello.call("fc", "POST functions/hello/triggers", TRIGGER).json()
    assert shown["triggerConfig"] == TRIGGER["triggerConfig"]
    assert shown["qualifier"] == "LATEST"
    assert hello.call("fc", "POST functions/hello/triggers", TRIGGER).code() == \
        "409 TriggerAlreadyExists"
    changed = hello.call("fc", "PUT functions/hello/triggers/web",
                         {"triggerConfig": "{}"}).json()
    assert (changed["triggerConfig"], changed["triggerName"]) == ("{}", "web")
    listed = hello.call("fc", "GET functions/hello/triggers").json()["triggers"]
    assert listed == [hello.call("fc", "GET functions/hello/triggers/web").json()]
    url = listed[0]["httpTrigger"]["urlInternet"].partition(str(hello.port))[2]
    assert hello.ask("POST", url, b"hi").body == b"hi"


def test_fc_cloud_upload(local: Local) -> None:
    """What Serverless Devs uploads is the package of the create that follows."""
    place = local.ask("GET", "/2016-08-15/tempBucketToken").json()
    target = "/123/" + place["objectName"]
    refused = local.ask("PUT", target, b"no zip")
    assert refused.status == 400 and refused.body.startswith(b"<Error>")
    assert "etag" in local.ask("PUT", target, local.package).fields
    code = {"ossBucketName": place["ossBucket"], "ossObjectName": target[1:]}
    new = {"runtime": "custom", "handler": "h"}
    for name in ("one", "two"):
        made = local.call("fc", "POST functions", dict(
            new, functionName=name, code=code))
        assert made.status == 200 and local.result("fc", name, ["say", "hi"]) == "hi"
    lost = dict(code, ossObjectName="123/upload-%s.zip" % ("0" * 32))
    assert local.call("fc", "POST functions", dict(
        new, functionName="three", code=lost)).code() == "400 InvalidArgument"


def test_fc_cloud_upload__deploy(local: Local) -> None:
    """The requests of `s deploy`, `s invoke` and `s remove`, in their order."""
    function = "/2023-03-30/functions/hello"
    new = {"functionName": "hello", "runtime": "custom.debian10", "cpu": 0.1,
           "handler": "index.handler", "memorySize": 128, "diskSize": 512}
    trigger = dict(TRIGGER, qualifier="LATEST")
    place = local.ask("GET", "/2016-08-15/tempBucketToken").json()["objectName"]
    code = {"ossBucketName": "local", "ossObjectName": "123/" + place}
    for method, path, body, status in (
            ("GET", function, b"", 404), ("GET", function + "/triggers/web", b"", 404),
            ("GET", function + "/async-invoke-config?qualifier=LATEST", b"", 404),
            ("GET", function + "/vpc-bindings", b"", 404),
            ("GET", function + "/scaling-config?qualifier=LATEST", b"", 404),
            ("GET", function + "/concurrency", b"", 404),
            ("PUT", "/123/" + place, local.package, 200), ("GET", function, b"", 404),
            ("POST", "/2023-03-30/functions", dict(new, code=code), 200),
            ("GET", function + "/triggers/web", b"", 404),
            ("POST", function + "/triggers", trigger, 200),
            ("GET", function, b"", 200), ("GET", function + "/triggers/web", b"", 200),
            ("POST", function + "/invocations?qualifier=LATEST", b"hi", 200),
            ("GET", "/2023-03-30/scaling-configs?functionName=hello", b"", 404),
            ("GET", function + "/aliases", b"", 200),
            ("GET", function + "/versions", b"", 200),
            ("GET", function + "/triggers", b"", 200),
            ("DELETE", function + "/triggers/web", b"", 204),
            ("DELETE", function, b"", 204), ("GET", function, b"", 404)):
        assert (path, local.ask(method, path, body).status) == (path, status)


def test_fc_cloud_proxy(local: Local) -> None:
    """The account's path comes whole; a function's URL is cut off."""
    for name, plan in (("whole", "/2016-08-15/proxy/s.LATEST/whole/a%20b?q=1"),
                       ("cut", "/a%20b?q=1")):
        script = json.dumps({plan: [["say", name]], "always": True})
        package = zipped({"bootstrap": bootstrap_of(local), "plan": script.encode()})
        local.ask("POST", "/2016-08-15/services", {"serviceName": "s"})
        local.ask("POST", "/2016-08-15/services/s/functions", {
            "functionName": name, "runtime": "custom", "handler": "h",
            "code": {"zipFile": base64.b64encode(package).decode()}})
    assert local.ask("GET", "/2016-08-15/proxy/s.LATEST/whole/a%20b?q=1").body \
        == b"whole"
    assert local.ask("GET", "/-/http/fc/s/cut/a%20b?q=1").body == b"cut"


def bootstrap_of(local: Local) -> bytes:
    """Return the scripted bootstrap."""
    with zipfile.ZipFile(io.BytesIO(local.package)) as archive:
        return archive.read("bootstrap")


def test_fc_cloud_port(tmp_path: Any, package: bytes) -> None:
    """The first function has the port of its document, a second one that is free."""
    port = emulator.free_port()
    one = Local(tmp_path / "state", package)
    del one.cloud.settings["port"]
    try:
        seen = []
        for name in ("first", "second"):
            one.create("fc", name, customRuntimeConfig={"port": port})
            seen.append(int(json.loads(one.result("fc", name, ["env"]))[
                "FC_SERVER_PORT"]))
        assert seen[0] == port != seen[1]
    finally:
        one.stop()


def test_fc_cloud_port__at_once(tmp_path: Any, package: bytes) -> None:
    """Functions that start at the same time do not share one: each gets its events."""
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        bootstrap = archive.read("bootstrap")
    large = zipped({"bootstrap": bootstrap, **{  # it takes a while to unpack it
        "data/%d" % number: b"" for number in range(200)}})
    port, names = emulator.free_port(), ["first", "second", "third"]
    one = Local(tmp_path / "state", large)
    del one.cloud.settings["port"]

    def name_of(name: str) -> str:
        with contextlib.closing(Client(one.port)) as client:
            env = client.result("fc", name, ["env"])
        return str(json.loads(env).get("FC_FUNCTION_NAME"))

    try:
        for name in names:
            one.create("fc", name, customRuntimeConfig={"port": port})
        with concurrent.futures.ThreadPoolExecutor() as callers:
            assert list(callers.map(name_of, names)) == names
    finally:
        one.stop()


# ---- fg ----

@pytest.mark.parametrize("urn", (
    "urn:fss:r:p:function:default:hello", "urn:fss:r:p:function:default:hello:latest",
    "urn%3Afss%3Ar%3Ap%3Afunction%3Adefault%3Ahello%3Alatest"))
def test_fg_cloud_urn(hello: Local, urn: str) -> None:
    """Colons may be encoded; any region and project will do; a version may be there."""
    reply = hello.ask("GET", "/v2/p/fgs/functions/%s/config" % urn)
    assert reply.json()["func_urn"] == "urn:fss:local:0:function:default:hello:latest"


def test_fg_cloud_version(hello: Local) -> None:
    """v0: the result; v1: a document with it as a text."""
    step = ["say", '{"a": 1}']
    assert hello.invoke("fg", "hello", step).body == b'{"a": 1}'
    reply = hello.invoke("fg", "hello", step, X_CFF_Request_Version="v1",
                      X_Cff_Log_Type="tail").json()
    assert reply["result"] == '{"a": 1}' and reply["status"] == 200
    assert "Start invoke request '%s'" % reply["request_id"] in reply["log"]
    plain = hello.invoke("fg", "hello", step, X_CFF_Request_Version="v1")
    assert plain.json()["log"] == ""


def test_fg_cloud_fields(hello: Local) -> None:
    """The fields tell id, cost, log, and whether the function failed."""
    good = hello.invoke("fg", "hello", ["out", 2, "printed\n"], ["say", "x"],
                     X_Cff_Log_Type="tail").fields
    assert (good["x-func-err-code"], good["x-is-func-err"],
            good["x-cff-response-version"]) == ("0", "false", "v0")
    assert b"printed" in base64.b64decode(good["x-cff-function-log"])
    summary = json.loads(good["x-cff-invoke-summary"])
    assert summary["memorySize"] == 128 and summary["memoryUsed"] > 1
    assert int(good["x-cff-billing-duration"]) == summary["billingDuration"]
    bad = hello.invoke("fg", "hello", ["fail", "no"])
    assert bad.status == 200 and bad.fields["x-is-func-err"] == "true"


def test_fg_cloud_async(hello: Local) -> None:
    """An event is accepted with its id."""
    reply = hello.later("fg", "hello", b"1")
    assert reply.status == 202
    assert reply.json() == {"request_id": reply.fields["x-request-id"]}


def test_any_cloud_calls__fg_lists(hello: Local) -> None:
    """A page of functions, those of a package, versions, triggers."""
    hello.create("fg", "hi", package="other")
    found = hello.call("fg", "GET functions?maxitems=1&marker=1").json()
    assert [one["func_name"] for one in found["functions"]] == ["hi"]
    assert (found["count"], found["next_marker"]) == (1, 2)
    found = hello.call("fg", "GET functions?package_name=other").json()
    assert [one["func_name"] for one in found["functions"]] == ["hi"]
    assert hello.call("fg", "GET functions/%shello/versions" % URN).json()["count"] == 1
    assert hello.call("fg", "GET triggers/%shello" % URN).json() == []


def test_fg_apig_event(integrated: Local) -> None:
    """The event has the members that the gateway gives."""
    event = integrated.page("fg", "default/relay", "/event?x=y", b"\xff",
                            X_Own="Yes").json()
    assert event.pop("headers")["x-own"] == "Yes"
    assert sorted(event.pop("requestContext")) == ["apiId", "requestId", "sourceIp",
                                                   "stage"]
    assert event == {"body": "/w==", "httpMethod": "POST", "isBase64Encoded": True,
                     "path": "/event", "pathParameters": {"": "event"},
                     "queryStringParameters": {"x": "y"}}
