# test_cloud_sdks.py: the vendors' own SDKs, unmodified, against cloud.py (MIT).
"""Each client creates, shows, lists, invokes, updates and deletes a function, and sees
each kind of error as its own. Skipped where `pip install '.[sdk]'` was not run.
"""

import base64
import json
import pathlib
import subprocess
import sys
from typing import Any, List, Tuple

import pytest
from cloud_harness import Local, local, package, zipped

__all__ = ["local", "package"]

SEED = {  # the package of the vendor's page
    "bootstrap": rb"""#! /bin/bash
set -euo pipefail
source ./"$(echo $_HANDLER | cut -d. -f1).sh"
API="http://$SCF_RUNTIME_API:$SCF_RUNTIME_API_PORT"
curl -d " " -X POST -s "$API/runtime/init/ready"
while true
do
    HEADERS="$(mktemp)"
    EVENT_DATA=$(curl -sS -LD "$HEADERS" -X GET -s "$API/runtime/invocation/next")
    RESPONSE=$($(echo "$_HANDLER" | cut -d. -f2) "$EVENT_DATA")
    curl -X POST -s "$API/runtime/invocation/response" -d "$RESPONSE"
done
""", "index.sh": rb"""function main_handler () {
    EVENT_DATA=$1
    echo "$EVENT_DATA" 1>&2;
    RESPONSE="Echoing request: '$EVENT_DATA'"
    echo $RESPONSE
}
"""}


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy of the machine would catch calls to loopback."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def url(local: Local) -> str:
    """The one line that a user changes."""
    return "http://127.0.0.1:%d" % local.port


def coded(local: Local) -> str:
    """Return the package in base64."""
    return base64.b64encode(local.package).decode()


# ---- Tencent: the two programs of the seed, on Python 3, with another endpoint ----

PROGRAM = """
from tencentcloud.common import credential
from tencentcloud.common.profile.client_profile import ClientProfile
from tencentcloud.common.profile.http_profile import HttpProfile
from tencentcloud.common.exception.tencent_cloud_sdk_exception import (
    TencentCloudSDKException)
from tencentcloud.scf.v20180416 import scf_client, models
from base64 import b64encode
try:
    cred = credential.Credential("SecretId", "secretKey")
    httpProfile = HttpProfile()
    httpProfile.endpoint = "%s"
    clientProfile = ClientProfile()
    clientProfile.httpProfile = httpProfile
    client = scf_client.ScfClient(cred, "ap-guangzhou", clientProfile)
%s
    req.from_json_string(params)
%s
    print(resp.to_json_string())
except TencentCloudSDKException as err:
    print(err)
"""
CREATE = """
    req = models.CreateFunctionRequest()
    f = open('demo.zip', 'rb')
    code = f.read()
    f.close()
    params = '{"FunctionName":"CustomRuntime-Bash","Code":{"ZipFile":"' \\
        + b64encode(code).decode() \\
        + '"},"Timeout":3,"Runtime":"CustomRuntime","InitTimeout":3}'
"""
INVOKE = """
    req = models.InvokeRequest()
    params = '{"FunctionName":"CustomRuntime-Bash","ClientContext":"{ ' \\
        '\\\\"key1\\\\": \\\\"test value 1\\\\", ' \\
        '\\\\"key2\\\\": \\\\"test value 2\\\\" }"}'
"""


def run_seed(folder: pathlib.Path, url: str, what: str, call: str) -> Any:
    """Run a program of the seed; return what it prints."""
    pytest.importorskip("tencentcloud.scf")
    text = PROGRAM % (url, what, "    resp = client.%s(req)" % call)
    done = subprocess.run([sys.executable, "-c", text], cwd=folder, check=True,
                          stdout=subprocess.PIPE, timeout=60)
    return json.loads(done.stdout)


def test_scf_cloud_result__seed(local: Local, url: str, tmp_path: pathlib.Path) -> None:
    """They print the seed's answer; the function's URL answers the seed's echo."""
    (tmp_path / "demo.zip").write_bytes(zipped(SEED))
    assert list(run_seed(tmp_path, url, CREATE, "CreateFunction")) == ["RequestId"]
    answer = run_seed(tmp_path, url, INVOKE, "Invoke")
    result = answer["Result"]
    assert result["RetMsg"] == "Echoing request: '" \
        '{ "key1": "test value 1", "key2": "test value 2" }\''
    assert (result["ErrMsg"], result["Log"], result["InvokeResult"]) == ("", "", 0)
    assert answer["RequestId"] == result["FunctionRequestId"]
    echo = local.ask("GET", "/-/http/scf/default/CustomRuntime-Bash/").body.decode()
    event = json.loads(echo[echo.index("{"):echo.rindex("}") + 1])
    assert sorted(event) == [
        "headerParameters", "headers", "httpMethod", "path", "pathParameters",
        "queryString", "queryStringParameters", "requestContext"]
    assert sorted(event["requestContext"]) == ["httpMethod", "identity", "path",
                                               "serviceId", "sourceIp", "stage"]


def scf_client(url: str, **profile: Any) -> Any:
    """Return a client of Tencent's SDK."""
    scf = pytest.importorskip("tencentcloud.scf.v20180416.scf_client")
    credential = pytest.importorskip("tencentcloud.common.credential")
    profiles = pytest.importorskip("tencentcloud.common.profile.client_profile")
    http = pytest.importorskip("tencentcloud.common.profile.http_profile")
    chosen = profiles.ClientProfile(**profile)
    chosen.httpProfile = http.HttpProfile(endpoint=url)
    return scf.ScfClient(credential.Credential("key", "secret"), "ap-guangzhou", chosen)


def scf_call(client: Any, action: str, **members: object) -> Any:
    """Call by the SDK's own models; return the answer as an object, or (code, id)."""
    models = pytest.importorskip("tencentcloud.scf.v20180416.models")
    errors = pytest.importorskip(
        "tencentcloud.common.exception.tencent_cloud_sdk_exception")
    request = getattr(models, action + "Request")()
    request.from_json_string(json.dumps(members))
    try:
        return json.loads(getattr(client, action)(request).to_json_string())
    except errors.TencentCloudSDKException as error:
        assert error.requestId
        return error.code


@pytest.mark.filterwarnings("error")  # it warns of members that it does not know
def test_any_cloud_calls__tencent(local: Local, url: str) -> None:
    """The whole life of a function."""
    client, name = scf_client(url), {"FunctionName": "hello"}
    code = {"ZipFile": coded(local)}
    new = dict(name, Runtime="CustomRuntime", Code=code, Timeout=9)
    assert scf_call(client, "GetFunction", **name) == "ResourceNotFound.Function"
    assert list(scf_call(client, "CreateFunction", **new)) == ["RequestId"]
    assert scf_call(client, "CreateFunction", **new) == "ResourceInUse.Function"
    shown = scf_call(client, "GetFunction", **name)
    assert (shown["Status"], shown["Timeout"]) == ("Active", 9)
    assert scf_call(client, "ListFunctions")["TotalCount"] == 1
    call = dict(name, ClientContext='{"a": 1}')
    result = scf_call(client, "Invoke", LogType="Tail", **call)["Result"]
    assert result["RetMsg"] == '{"a": 1}' and "END RequestId" in result["Log"]
    assert scf_call(client, "Invoke", InvocationType="Event", **call)["Result"][
        "FunctionRequestId"]
    assert local.noted(": ok")
    event = scf_call(client, "InvokeFunction", Event='{"a": 1}', **name)
    assert event["Result"]["RetMsg"] == '{"a": 1}'
    failed = scf_call(client, "Invoke", ClientContext='[["fail", "no"]]', **name)
    assert failed["Result"]["InvokeResult"] == 1
    trigger = dict(name, TriggerName="t", Type="apigw", TriggerDesc="{}")
    assert scf_call(client, "CreateTrigger", **trigger)["TriggerInfo"]["Enable"] == 1
    for action, members in (("ListTriggers", {}), ("DeleteTrigger", trigger),
                            ("UpdateFunctionConfiguration", {"Timeout": 5}),
                            ("UpdateFunctionCode", code), ("ListAliases", {}),
                            ("ListVersionByFunction", {}), ("DeleteFunction", {})):
        assert "RequestId" in scf_call(client, action, **{**name, **members})


@pytest.mark.parametrize("members,code", (
    ({"FunctionName": "a"}, "InvalidParameterValue.FunctionName"),
    ({"Runtime": "Python3.6"}, "InvalidParameterValue.Runtime"),
    ({"Timeout": 901}, "LimitExceeded.Timeout"),
    ({"InitTimeout": 1}, "LimitExceeded.InitTimeout"),
    ({"MemorySize": 1}, "InvalidParameterValue.MemorySize"),
    ({"Handler": "a\nb"}, "InvalidParameterValue.Handler"),
    ({"Environment": {"Variables": [{"Key": "SCF_A", "Value": "b"}]}},
     "InvalidParameterValue.EnvironmentSystemProtect"),
    ({"Code": {}}, "MissingParameter.Code"),
    ({"Code": {"ZipFile": "%"}}, "InvalidParameterValue.ZipFileBase64BinasciiError"),
    ({"Code": {"ZipFile": "QUJD"}}, "InvalidParameterValue.ZipFile")))
def test_any_cloud_error__tencent(local: Local, url: str, members: Any, code: str
                                  ) -> None:
    """The SDK raises each error with its code."""
    new = {"FunctionName": "hello", "Runtime": "CustomRuntime",
           "Code": {"ZipFile": coded(local)}}
    assert scf_call(scf_client(url), "CreateFunction", **{**new, **members}) == code


@pytest.mark.parametrize("profile,method", (
    ({}, "POST"), ({}, "GET"), ({"signMethod": "HmacSHA256"}, "POST")))
def test_scf_cloud_form__tencent(local: Local, url: str, profile: Any, method: str
                                 ) -> None:
    """Every encoding that the SDK has for plain parameters."""
    client = scf_client(url, **profile)
    client.profile.httpProfile.reqMethod = method
    local.create("scf", "hello")
    answer = scf_call(client, "Invoke", FunctionName="hello", ClientContext="[1]")
    assert answer["Result"]["RetMsg"] == "[1]"


# ---- Alibaba ----

def alibaba(module: str, url: str) -> Tuple[Any, Any]:
    """Return (client, models) of one of the newer SDKs."""
    client = pytest.importorskip(module + ".client")
    openapi = pytest.importorskip("alibabacloud_tea_openapi.models")
    return client.Client(openapi.Config(
        access_key_id="key", access_key_secret="secret", endpoint=url)), \
        pytest.importorskip(module + ".models")


def code_of(call: Any, *arguments: Any) -> Any:
    """Return the code of the error that a call raises; its status for the others."""
    try:
        answer = call(*arguments)
    except Exception as error:  # each SDK has its own kind
        return getattr(error, "code", None) or getattr(error, "err_code", None) \
            or getattr(error, "error_code", None)
    return getattr(answer, "status_code", None)


def test_any_cloud_calls__alibaba(local: Local, url: str) -> None:
    """2023-03-30: the whole life of a function, its trigger, its errors."""
    client, models = alibaba("alibabacloud_fc20230330", url)
    runtime = pytest.importorskip("alibabacloud_tea_util.models").RuntimeOptions()
    new = models.CreateFunctionRequest(body=models.CreateFunctionInput(
        function_name="hello", runtime="custom.debian10", handler="h", timeout=9,
        code=models.InputCodeLocation(zip_file=coded(local))))
    get = models.GetFunctionRequest()
    assert code_of(client.get_function, "hello", get) == "FunctionNotFound"
    assert client.create_function(new).body.state == "Active"
    assert code_of(client.create_function, new) == "FunctionAlreadyExists"
    assert client.get_function("hello", get).body.timeout == 9
    assert len(client.list_functions(models.ListFunctionsRequest()).body.functions) == 1

    def invoke(body: bytes, **headers: str) -> Any:
        return client.invoke_function_with_options(
            "hello", models.InvokeFunctionRequest(body=body),
            models.InvokeFunctionHeaders(**headers), runtime)

    answer = invoke(b"\xff", x_fc_log_type="Tail")
    assert answer.body.read() == b"\xff" and "x-fc-log-result" in answer.headers
    assert invoke(b"1", x_fc_invocation_type="Async").status_code == 202
    failed = invoke(json.dumps([["exit", 3]]).encode())
    assert failed.headers["x-fc-error-type"] == "InvocationError"
    update = models.UpdateFunctionRequest(body=models.UpdateFunctionInput(
        timeout=7, code=models.InputCodeLocation(zip_file=coded(local))))
    assert client.update_function("hello", update).body.timeout == 7
    trigger = models.CreateTriggerRequest(body=models.CreateTriggerInput(
        trigger_name="t", trigger_type="http", trigger_config='{"methods":["GET"]}'))
    made = client.create_trigger("hello", trigger).body
    assert made.http_trigger.url_internet.startswith(url)
    assert code_of(client.delete_function, "hello") == "FunctionNotEmpty"
    assert client.delete_trigger("hello", "t").status_code == 204
    assert client.delete_function("hello").status_code == 204


def test_fc_cloud_generations__2021(local: Local, url: str) -> None:
    """2021-04-06: the whole life of a service and a function."""
    client, models = alibaba("alibabacloud_fc_open20210406", url)
    new = models.CreateFunctionRequest(
        function_name="f", runtime="custom", handler="h", ca_port=9000,
        code=models.Code(zip_file=coded(local)))
    assert code_of(client.create_function, "s", new) == "ServiceNotFound"
    service = models.CreateServiceRequest(service_name="s")
    assert client.create_service(service).body.service_name == "s"
    assert client.create_function("s", new).body.function_name == "f"
    assert code_of(client.create_function, "s", new) == "FunctionAlreadyExists"
    answer = client.invoke_function("s", "f", models.InvokeFunctionRequest(body=b"hi"))
    assert answer.body == b"hi"
    assert client.update_function("s", "f", models.UpdateFunctionRequest(
        timeout=8)).body.timeout == 8
    assert client.delete_function("s", "f").status_code == 204
    assert client.delete_service("s").status_code == 204


def test_fc_cloud_generations__2016(local: Local, url: str, tmp_path: pathlib.Path
                                    ) -> None:
    """2016-08-15, the package fc2: the same, with triggers and requests by HTTP."""
    fc2 = pytest.importorskip("fc2")
    client = fc2.Client(endpoint=url, accessKeyID="key", accessKeySecret="secret")
    (tmp_path / "code.zip").write_bytes(local.package)
    path = str(tmp_path / "code.zip")
    client.create_service("s")
    assert client.create_function("s", "f", "custom", "h", codeZipFile=path
                                  ).data["functionName"] == "f"
    assert client.invoke_function("s", "f", payload=b"hi").data == b"hi"
    tail = client.invoke_function("s", "f", payload=b"hi",
                                  headers={"x-fc-log-type": "Tail"})
    assert tail.headers["X-Fc-Log-Result"]
    client.invoke_function("s", "f", headers={"x-fc-invocation-type": "Async"})
    assert client.update_function("s", "f", timeout=8, codeZipFile=path
                                  ).data["timeout"] == 8
    trigger: List[Any] = ["s", "f", "t", "http", {"methods": ["GET"]}, None, None]
    assert client.create_trigger(*trigger).data["triggerName"] == "t"
    assert client.do_http_request("POST", "s", "f", "/a", body=b"x").content == b"x"
    client.delete_trigger("s", "f", "t")
    client.delete_function("s", "f")
    assert code_of(client.get_function, "s", "f") == "FunctionNotFound"
    client.delete_service("s")


def test_any_cloud_signature__alibaba(tmp_path: pathlib.Path, package: bytes) -> None:
    """Both of Alibaba's schemes, and Tencent's and Huawei's, as the SDKs sign."""
    one = Local(tmp_path / "state", package, keys={"key": "secret"})
    try:
        url = "http://127.0.0.1:%d" % one.port
        client, models = alibaba("alibabacloud_fc20230330", url)
        assert client.list_functions(models.ListFunctionsRequest(prefix="a b")
                                     ).body.functions == []
        fc2 = pytest.importorskip("fc2").Client(
            endpoint=url, accessKeyID="key", accessKeySecret="secret")
        assert fc2.list_services().data["services"] == []
        assert scf_call(scf_client(url), "ListFunctions")["TotalCount"] == 0
        client, models = huawei(url)
        assert client.list_functions(models.ListFunctionsRequest(maxitems="5")
                                     ).functions == []
        missing = models.ShowFunctionConfigRequest(function_urn=URN)
        assert code_of(client.show_function_config, missing) == "FSS.1051"
    finally:
        one.stop()


# ---- Huawei ----

URN = "urn:fss:r:project:function:default:hello"


def huawei(url: str) -> Tuple[Any, Any]:
    """Return (client, models) of Huawei's SDK."""
    models = pytest.importorskip("huaweicloudsdkfunctiongraph.v2")
    basic = pytest.importorskip("huaweicloudsdkcore.auth.credentials").BasicCredentials(
        "key", "secret", "project")
    return models.FunctionGraphClient.new_builder().with_credentials(
        basic).with_endpoint(url).build(), models


def test_any_cloud_calls__huawei(local: Local, url: str) -> None:
    """The whole life of a function."""
    client, models = huawei(url)
    code = models.FuncCode(file=coded(local))
    new = models.CreateFunctionRequest(body=models.CreateFunctionRequestBody(
        func_name="hello", package="default", runtime="Custom", timeout=9,
        handler="index.handler", memory_size=128, code_type="zip", func_code=code,
        code_filename="x.zip", user_data='{"A": "b"}'))
    config = models.ShowFunctionConfigRequest(function_urn=URN)
    assert code_of(client.show_function_config, config) == "FSS.1051"
    urn = client.create_function(new).func_urn
    assert code_of(client.create_function, new) == "FSS.1061"
    assert client.show_function_config(config).timeout == 9
    assert client.list_functions(models.ListFunctionsRequest()).count == 1
    call = models.InvokeFunctionRequest(
        function_urn=urn, body={"a": 1}, x_cff_log_type="tail",
        x_cff_request_version="v1")
    answer = client.invoke_function(call)
    assert (answer.result, answer.status) == ('{"a": 1}', 200)
    assert "Start invoke request" in answer.log and answer.x_cff_request_id
    call.x_cff_request_version = "v0"
    assert client.invoke_function(call).raw_content == b'{"a": 1}'
    later = models.AsyncInvokeFunctionRequest(function_urn=urn, body={"a": 1})
    assert client.async_invoke_function(later).request_id and local.noted(": ok")
    assert client.update_function_code(models.UpdateFunctionCodeRequest(
        function_urn=urn, body=models.UpdateFunctionCodeRequestBody(
            code_type="zip", code_filename="x.zip", func_code=code))).code_size
    assert client.update_function_config(models.UpdateFunctionConfigRequest(
        function_urn=urn, body=models.UpdateFunctionConfigRequestBody(
            func_name="hello", runtime="Custom", timeout=8, handler="index.handler",
            memory_size=128))).timeout == 8
    assert client.delete_function(models.DeleteFunctionRequest(
        function_urn=URN)).status_code == 204
