# test_cloud.py: what the three interfaces for callers have in common (MIT).
"""Ask cloud.py as the vendors' clients ask, and look at every byte of the answers."""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import threading
from typing import Any, Dict, Tuple, Union

import cloud
import pytest
import scripted_bootstrap
from cloud_harness import (CALLS, NAMES, VENDORS, Client, Local, hello, local, package,
                           zipped)
from harness import code, fifo, until

__all__ = ["code", "fifo", "hello", "local", "package"]

HANDLER = {"scf": "Handler", "fc": "handler", "fg": "handler"}
TIMEOUT = {"scf": "Timeout", "fc": "timeout", "fg": "timeout"}


def in_words(condition: str, vendor: str) -> str:
    """Return status and code of a condition."""
    code = cloud.ERRORS[condition][vendor]
    return "200 " + code if vendor == "scf" else (
        cloud.INVALID[vendor] if code == "*" else code).replace(":", " ")


@pytest.mark.parametrize("path,fields,code", (
    ("/", {}, "200 InvalidAction"), ("/", {"X_TC_Action": "Nap"}, "200 InvalidAction"),
    ("/", {"X_TC_Action": "Invoke", "X_TC_Version": "2017-01-01"}, "200 NoSuchVersion"),
    ("/2023-03-30/nap", {}, "404 PathNotSupported"),
    ("/2020-01-01/functions", {}, "404 PathNotSupported"),
    ("/v2/any%7Bthing/fgs/nap", {}, "404 FSS.0404"), ("/nap", {},
                                                      "404 PathNotSupported")))
def test_any_cloud_vendor(local: Local, path: str, fields: Dict[str, str],
                          code: str) -> None:
    """The path tells whose error it is."""
    assert local.ask("POST", path, {}, **fields).code() == code


URN = "urn:fss:r:p:function:default:hello"
# calls of a cloud in which each interface has a function hello
REFUSED: Tuple[Tuple[str, str, Union[bytes, Dict[str, object]], str], ...] = (
    ("scf", "GetFunction", {}, "MissingParameter"),
    ("scf", "GetFunction", {"FunctionName": 7}, "InvalidParameter"),
    ("scf", "GetFunction", {"FunctionName": "hello", "Namespace": "n"},
     "ResourceNotFound.Namespace"),
    ("scf", "GetFunction", {"FunctionName": "hello", "Qualifier": "3"},
     "ResourceNotFound.Qualifier"),
    ("scf", "ListFunctions", {"Limit": "x"}, "InvalidParameter"),
    ("scf", "CreateFunction", {"FunctionName": "web", "Runtime": "CustomRuntime",
                               "Type": "HTTP"}, "UnsupportedOperation"),
    ("scf", "CreateFunction", {"FunctionName": "cos", "Runtime": "CustomRuntime",
                               "Code": {"CosObjectName": "x"}},
     "MissingParameter.Code"),
    ("scf", "CreateTrigger", {"FunctionName": "hello", "TriggerName": "t",
                              "Type": "timer"}, "UnsupportedOperation"),
    ("scf", "DeleteTrigger", {"FunctionName": "hello", "TriggerName": "t"},
     "ResourceNotFound.Trigger"),
    ("scf", "UpdateFunctionCode", {"FunctionName": "hello"}, "MissingParameter.Code"),
    ("scf", "Invoke", {"FunctionName": "hello", "ClientContext":
                       '"%s"' % ("x" * 6291456)}, "InvalidParameter.RequestTooLarge"),
    # a timer does not fire here; s gives up at this code
    ("fc", "POST functions/hello/triggers",
     {"triggerName": "web", "triggerType": "timer"}, "400 InvalidArgument"),
    ("fc", "GET functions/hello/triggers/no", b"", "404 TriggerNotFound"),
    ("fc", "GET functions/hello?qualifier=9", b"", "404 VersionNotFound"),
    ("fg", "GET functions/hello/config", b"", "404 FSS.1051"),
    ("fg", "GET functions/%s:v9/config" % URN, b"", "404 FSS.1052"),
    ("fg", "POST functions/%s/invocations" % URN, b"x" * 6291457, "413 FSS.1201"))


def test_any_cloud_error__refused(hello: Local) -> None:
    """Each condition has its code."""
    for vendor, call, body, code in REFUSED:
        reply = hello.call(vendor, call, body)
        assert (call, reply.code().replace("200 ", "")) == (call, code)
    assert sorted(hello.get("fc", "none").json()) == [
        "Code", "ErrorCode", "ErrorMessage", "Message", "RequestId"]


@pytest.mark.parametrize("host", ("http://127.0.0.1:1", "scf.localhost", "x:1"))
def test_any_cloud_host(local: Local, host: str) -> None:
    """Host may be anything, a whole URL as Tencent's SDK sends it."""
    reply = local.ask("POST", "/", {}, X_TC_Action="ListFunctions", Host=host)
    assert reply.json()["Response"]["TotalCount"] == 0


@VENDORS
def test_any_cloud_request_id(hello: Local, vendor: str) -> None:
    """Every answer has an id of its own; an invocation has that of its event."""
    replies = [hello.get(vendor, "hello"), hello.get(vendor, "none"),
               hello.invoke(vendor, "hello", ["say", "x"])]
    ids = [{reply.json()["Response"]["RequestId"]} if vendor == "scf" else
           {reply.fields[name.lower()]
            for name in cloud.WORDS["id_fields"][vendor].split(",")}
           for reply in replies]
    assert [len(one) for one in ids] == [1, 1, 1] and len(set.union(*ids)) == 3
    if vendor == "scf":
        assert ids[2] == {replies[2].result()["FunctionRequestId"]}


@pytest.mark.parametrize("vendor,name,good", (
    ("scf", "ab", True), ("scf", "a", False), ("scf", "a_", False), ("fc", "_a", True),
    ("fc", "a" * 64, True), ("fc", "a" * 65, False), ("fc", "1a", False),
    ("fg", "a", True), ("fg", "a-", False), ("scf", "../a", False),
    ("fc", "a,b", False)))
def test_any_cloud_name(local: Local, vendor: str, name: str, good: bool) -> None:
    """What the cloud refuses as a name is refused."""
    assert (local.create(vendor, name).status == 200) == good or vendor == "scf"
    assert (name in local.listed()) == good


@VENDORS
def test_any_cloud_runtime(local: Local, vendor: str) -> None:
    """A function that is no custom runtime is refused."""
    name = {"scf": "Runtime"}.get(vendor, "runtime")
    for runtime in ("Python3.6", "custom-container", "http"):
        assert local.create(vendor, "hello", **{name: runtime}).code() in (
            "200 InvalidParameterValue.Runtime", "400 InvalidArgument", "400 FSS.1005")
    assert local.listed() == {}


HOSTILE = zipped({"../bootstrap": b""})
PACKAGES = (("", "no-code"), ("%%%", "base64"), ("QUJDR", "base64"), ("QUJD", "zip"),
            (HOSTILE, "zip"))


@VENDORS
def test_any_cloud_package(local: Local, vendor: str,
                           monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that cannot be is refused, and leaves nothing behind."""
    for package, condition in PACKAGES:
        assert local.create(vendor, "hello", package).code() == in_words(
            condition, vendor)
    monkeypatch.setitem(cloud.WORDS["package_mib"], vendor, "0")
    assert local.create(vendor, "hello").code() == in_words("zip-size", vendor)
    assert local.listed() == {} and os.listdir(local.root / "aside") == []


@VENDORS
def test_any_cloud_document(local: Local, vendor: str) -> None:
    """Get shows what was sent, but the code; an update changes what it names."""
    members: Dict[str, Any] = {HANDLER[vendor]: "a.b", TIMEOUT[vendor]: 9,
                               "somethingNew": {"x": [1]}, "nothing": None}
    local.create(vendor, "hello", **members)
    local.update(vendor, "hello", b"", **{TIMEOUT[vendor]: 11, HANDLER[vendor]: None})
    document = local.get(vendor, "hello").json()
    shown = document["Response"] if vendor == "scf" else document
    assert shown[HANDLER[vendor]] == "a.b" and shown[TIMEOUT[vendor]] == 11
    assert shown["somethingNew"] == {"x": [1]} and "nothing" not in shown
    assert shown[NAMES[vendor]] == "hello" and "UEsDB" not in json.dumps(document)


@VENDORS
def test_any_cloud_one_create(local: Local, vendor: str) -> None:
    """Of eight creates at once one succeeds; the others are told that it exists."""
    def create(_: int) -> str:
        with contextlib.closing(Client(local.port, local.package)) as client:
            return client.create(vendor, "hello").code()

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        codes = sorted(pool.map(create, range(8)))
    assert codes.count("200 -") == 1
    assert codes.count(in_words("function-exists", vendor)) == 7


@VENDORS
@pytest.mark.parametrize("change", ("update", "delete"))
def test_any_cloud_update(local: Local, vendor: str, change: str,
                          fifo: Any) -> None:
    """What runs when its function is changed ends on the old code."""
    here, go = fifo("here"), fifo("go")
    local.create(vendor, "hello")
    with concurrent.futures.ThreadPoolExecutor(1) as pool, contextlib.closing(
            Client(local.port)) as other:
        running = pool.submit(other.result, vendor, "hello", ["tell", here],
                              ["wait", go], ["say", "old"])
        scripted_bootstrap.wait(here)
        if change == "update":
            local.update(vendor, "hello", zipped({"bootstrap": b"#!/bin/sh\nexit 3\n"}))
        else:
            local.delete(vendor, "hello")
        scripted_bootstrap.tell(go)
        assert running.result() == "old"
    assert local.result(vendor, "hello", ["say", "x"]) != "x" if change == "update" \
        else local.invoke(vendor, "hello").code() == in_words("no-function", vendor)


def test_any_cloud_error__conflict(local: Local) -> None:
    """Who changes a version that is not the last one any more is told so."""
    local.create("fc", "hello")
    old = local.cloud.find(("fc", "", "hello"))
    local.update("fc", "hello", b"", timeout=7)
    with pytest.raises(cloud.Fault) as caught:
        local.cloud.put(old, None)
    assert caught.value.condition == "conflict"
    assert local.get("fc", "hello").json()["timeout"] == 7


@VENDORS
def test_any_caller_gone__cloud(local: Local, vendor: str, fifo: Any) -> None:
    """A caller who hangs up costs nobody anything; his event runs on, or is ended."""
    here, go = fifo("here"), fifo("go")
    local.create(vendor, "hello")
    caller = Client(local.port)
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(caller.result, vendor, "hello", ["tell", here],
                            ["wait", go])
        scripted_bootstrap.wait(here)
        caller.peer.sock.shutdown(2)
        assert asked.exception() is not None
    caller.close()
    assert local.result(vendor, "hello", ["say", "hi"]) == "hi"


def test_any_cloud_on_demand(local: Local) -> None:
    """A hundred functions cost no process and no thread; the one that is called has
    one, and loses it when it is deleted."""
    local.listed()
    before = threading.active_count()
    for number in range(100):
        local.create(("scf", "fc", "fg")[number % 3], "hello%d" % number)
    assert threading.active_count() <= before
    assert {one["instances"] for one in local.listed().values()} == {0}
    process = local.result("scf", "hello0", ["pid"])
    assert local.listed()["hello0"]["instances"] == 1
    local.delete("scf", "hello0")
    assert until(lambda: not pathlib.Path("/proc/" + process).exists())


@VENDORS
def test_any_cloud_async(local: Local, vendor: str, fifo: Any) -> None:
    """An event is accepted before it runs, up to a size; its outcome is a note."""
    go, limit = fifo("go"), int(cloud.WORDS["async_bytes"][vendor])
    local.create(vendor, "hello")
    status = local.later(vendor, "hello", json.dumps([["wait", go]]).encode()).status
    assert status == (200 if vendor == "scf" else 202)
    local.update(vendor, "hello", b"", **{TIMEOUT[vendor]: 9})
    assert local.listed()["hello"]["waiting"] == 1
    scripted_bootstrap.tell(go)
    assert local.noted("hello: asynchronous ") and local.noted(": ok")
    assert until(lambda: local.listed()["hello"]["waiting"] == 0)
    assert local.later(vendor, "hello", b'"%s"' % (b"x" * limit)).code() == in_words(
        "event-size", vendor)


@VENDORS
def test_any_cloud_async_full(local: Local, vendor: str, fifo: Any,
                              monkeypatch: pytest.MonkeyPatch) -> None:
    """When too many wait the next one is refused; the others lose nothing."""
    monkeypatch.setattr(cloud, "ASYNC_QUEUE", 3)
    local.create(vendor, "hello")
    go = [fifo("go%d" % number) for number in range(3)]
    for path in go:
        local.later(vendor, "hello", json.dumps([["wait", path]]).encode())
    assert local.later(vendor, "hello", b"1").code() == in_words("queue-full", vendor)
    local.delete(vendor, "hello")
    for path in go:
        scripted_bootstrap.tell(path)
    assert until(lambda: sum(": ok" in note for note in local.notes) == 3)


@pytest.mark.parametrize("vendor,member,limit,low,high", cloud.NUMBERS)
def test_any_cloud_range(local: Local, vendor: str, member: str, limit: str, low: int,
                         high: int) -> None:
    """Both ends of each range are taken, what lies beyond is refused."""
    for number in (low, high, low - 1, high + 1):
        *outer, name = member.split(".")
        value: Any = {name: number}
        for part in reversed(outer):
            value = {part: value}
        reply = local.create(vendor, "hello", **value)
        assert ("Invalid" not in reply.code() and "FSS" not in reply.code()
                and "Limit" not in reply.code()) == (low <= number <= high)
        local.delete(vendor, "hello")


def variables(vendor: str, env: Dict[str, Any]) -> Dict[str, Any]:
    """Return the members of a document that set variables."""
    if vendor == "scf":
        return {"Environment": {"Variables": [
            {"Key": name, "Value": value} for name, value in env.items()]}}
    return {"environmentVariables": env} if vendor == "fc" else {
        "user_data": json.dumps(env)}


@VENDORS
def test_any_cloud_error__member(local: Local, vendor: str) -> None:
    """A member that is wrong is refused by its own code."""
    for env, condition in (
            ({"1a": "x"}, "env"), ({"A": 1}, "member" if vendor == "scf" else "env"),
            ({"A": "x" * 5000}, "env-size"),
            ({"FC_A": "x", "SCF_A": "x", "RUNTIME_A": "x"}, "env-reserved")):
        reply = local.create(vendor, "hello", **variables(vendor, env))
        assert reply.code() == in_words(condition, vendor)
    for name, value, condition in ((HANDLER, "a\nb", "handler"), (HANDLER, 7, "member"),
                                   (TIMEOUT, "7", "member")):
        members: Dict[str, Any] = {name[vendor]: value}
        reply = local.create(vendor, "hello", **members)
        assert reply.code() == in_words(condition, vendor)


@VENDORS
def test_any_cloud_error__body(local: Local, vendor: str) -> None:
    """A body that is no JSON object is refused in the vendor's form."""
    for body in (b"{", b"[]", b"\xff", b"7", b"[" * 100000):
        reply = local.call(vendor, CALLS["create"][vendor], body)
        assert reply.code() == in_words("member", vendor)
        assert reply.fields["content-type"] == "application/json"


@VENDORS
def test_any_cloud_error__unknown(local: Local, vendor: str) -> None:
    """A function that is not there is unknown to every call; one that is there exists.
    """
    unknown = in_words("no-function", vendor)
    assert {local.get(vendor, "none").code(), local.delete(vendor, "none").code(),
            local.update(vendor, "none").code(), local.invoke(vendor, "none").code(),
            local.later(vendor, "none", b"1").code(), local.update(
                vendor, "none", local.package).code()} == {unknown}
    local.create(vendor, "hello")
    assert local.create(vendor, "hello").code() == in_words("function-exists", vendor)


def test_any_cloud_error__start(local: Local) -> None:
    """A bootstrap that cannot run is an outcome, not an error of the interface."""
    for vendor, shown in (("scf", '"InvokeResult": -1'), ("fc", "CAFileNotFound"),
                          ("fg", "FSS.4202")):
        local.create(vendor, "broken", zipped({"index.sh": b""}))
        assert shown in local.invoke(vendor, "broken").body.decode()
