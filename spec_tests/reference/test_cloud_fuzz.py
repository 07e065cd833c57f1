# test_cloud_fuzz.py: requests that nobody would send, to cloud.py (MIT).
"""Whatever comes, every answer is well-formed, and nothing dies.

CLOUD_FUZZ=20000 sends that many requests instead of some hundred.
"""

import base64
import json
import os
import pathlib
import random
import socketserver
import sys
import threading
import time
from typing import Any, Dict, List, Tuple

import cloud
import pytest
from cloud_harness import CODE, NAMES, NEW, Local, local, package

__all__ = ["local", "package"]

COUNT = int(os.environ.get("CLOUD_FUZZ", "250"))
WORDS = ["", "hello", "x" * 70, "é", "\ud800", "../..", "{", "null", "0", "-1", "%00",
         "LATEST", "urn:fss:a:b:function:default:hello", "http", "apigw", "2016-08-15"]
VALUES: List[Any] = [None, True, 0, -1, 3, 1e99, 10 ** 30, [], {}, [[]], {"a": None},
                     ["x", {"Key": 7}], *WORDS]
Case = Tuple[str, str, Dict[str, str], Any]


def word(chooser: random.Random) -> str:
    """Return a name, one of few that are good, or a bad one."""
    return chooser.choice((*["hello", "other"] * 8, *WORDS))


def document(chooser: random.Random, vendor: str, package: bytes) -> Dict[str, Any]:
    """Return a body for a create, an update, a trigger or a call."""
    outer, inner = CODE[vendor]
    return {**NEW[vendor], NAMES[vendor]: word(chooser), outer: {inner: chooser.choice(
            ["QUJD", base64.b64encode(package).decode(), "%"])},
            "serviceName": word(chooser), "ClientContext": "{}",
            "Namespace": "default", "Environment": {"Variables": []},
            "customRuntimeConfig": {"command": [], "port": 1}, "user_data": "{}",
            "instanceLifecycleConfig": {"initializer": {"timeout": 3}},
            "environmentVariables": {"A": "b"}, "TriggerName": "t",
            "Type": chooser.choice(("Event", "apigw")),
            "TriggerDesc": "{}", "triggerName": "t", "triggerType": "http",
            "triggerConfig": "{}", "Limit": 1, "Action": "Invoke"}


def broken(chooser: random.Random, found: Dict[str, Any]) -> Dict[str, Any]:
    """Return a document of which a member or two are something else."""
    for _ in range(chooser.randrange(3)):
        inside: Any = found
        while isinstance(inside, dict) and inside:
            name = chooser.choice(sorted(inside))
            if not isinstance(inside[name], dict) or chooser.random() < 0.5:
                inside[name] = chooser.choice(VALUES)
                break
            inside = inside[name]
    return found


def case(chooser: random.Random, package: bytes) -> Case:
    """Return a request."""
    fields = {"Content-Type": chooser.choice(("application/json", "text/plain",
                                              "application/x-www-form-urlencoded"))}
    vendor = chooser.choice(list(cloud.CALLS))
    call = chooser.choice(sorted(cloud.CALLS[vendor]))
    method, path = "POST", "/"
    if vendor == "scf":
        fields["X-TC-Action"] = chooser.choice((call, call, call, "Nap", ""))
    else:
        method, _, rest = call.partition(" ")
        words = [("urn:fss:a:b:function:default:" if vendor == "fg" else "")
                 + word(chooser) if one == "*" else one for one in rest.split("/")]
        base = "/v2/p/fgs/" if vendor == "fg" else "/%s/" % chooser.choice(
            ("2023-03-30", "2021-04-06", "2016-08-15"))
        if vendor == "fc" and chooser.random() < 0.5:
            base += "services/%s/" % quoted(word(chooser))
        path = base + "/".join(quoted(one) for one in words)
    if chooser.random() < 0.1:
        method = chooser.choice(("GET", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"))
    if chooser.random() < 0.2:
        path += "?" + "&".join("%s=%s" % (quoted(chooser.choice(WORDS)), quoted(
            chooser.choice(WORDS))) for _ in range(2))
    body: Any = broken(chooser, document(chooser, vendor, package))
    if chooser.random() < 0.2:
        text = json.dumps(body).encode()
        body = chooser.choice((text[:chooser.randrange(len(text))], b"\xff\x00", b"",
                               text + b"}", b"[" * 5000))
    return method, path, fields, body


def quoted(text: str) -> str:
    """Return a word as a part of a path."""
    return "".join(one if one.isascii() and one.isalnum() else "".join(
        "%%%02X" % byte for byte in one.encode("utf-8", "surrogatepass"))
        for one in text)


SIGNED = ["", "SKIP", "FC", "FC key:", "FC key:\xff", "TC3-HMAC-SHA256",
          "TC3-HMAC-SHA256 Credential=key", "ACS3-HMAC-SHA256 Credential=key",
          "ACS3-HMAC-SHA256 Credential=key,SignedHeaders=x-acs-date;;,Signature=\xe9",
          "SDK-HMAC-SHA256 Access=key, SignedHeaders=host;x, Signature=1",
          "TC3-HMAC-SHA256 Credential=key/a/b/c, SignedHeaders=host, Signature=1"]
DATES = ["", "0", "9" * 400, "nan", "-1", "20260101T000000Z", "now"]


def test_any_cloud_signature__fuzz(tmp_path: pathlib.Path, package: bytes,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a signature looks like, it is refused in the interface's form."""
    one, faults = Local(tmp_path / "state", package, keys={"key": "secret"}), []
    monkeypatch.setattr(socketserver.BaseServer, "handle_error",
                        lambda *_: faults.append(repr(sys.exc_info()[1])))
    chooser, now = random.Random(COUNT), time.gmtime()
    forms = {"x-tc-timestamp": str(int(time.time())),
             "date": time.strftime("%a, %d %b %Y %H:%M:%S GMT", now),
             "x-acs-date": time.strftime("%Y-%m-%dT%H:%M:%SZ", now),
             "x-sdk-date": time.strftime("%Y%m%dT%H%M%SZ", now)}
    try:
        for path in ("/", "/2023-03-30/functions?a", "/v2/p/fgs/functions",
                     "/2016-08-15/proxy/a/b?c"):
            for text in SIGNED:
                fields = {name: chooser.choice((good, good, *DATES))
                          for name, good in forms.items()}
                reply = one.ask("POST", path, b"{}", Authorization=text, **fields)
                assert not faults and reply.code().startswith(
                    ("200 Auth", "403 ", "401 APIGW")), (path, text, reply)
    finally:
        one.stop()


def test_any_cloud_error__fuzz(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each answer has the form of its interface; there is no error of our own."""
    faults: List[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: faults.append(str(args)))
    monkeypatch.setattr(socketserver.BaseServer, "handle_error",
                        lambda *_: faults.append(repr(sys.exc_info()[1])))
    chooser, codes = random.Random(COUNT), set()
    for number in range(COUNT):
        method, path, fields, body = case(chooser, local.package)
        reply = local.ask(method, path, body, **fields)
        assert not faults, (number, method, path, fields, body, faults)
        is_json = reply.fields.get("content-type") == "application/json"
        assert is_json or reply.status in (200, 202, 204)
        if method != "HEAD" and is_json:
            codes.add(reply.code())
            check(reply.status, reply.json(), path)
    assert "200 -" in codes and len(codes) > 10  # it comes far enough
    assert local.create("scf", "hello-again").status == 200
    assert local.result("scf", "hello-again", ["say", "hi"]) == "hi"


def check(status: int, document: Any, path: str) -> None:
    """Raise AssertionError unless an answer has its vendor's form."""
    if path.partition("?")[0] == "/":
        answer = document["Response"]
        assert status == 200 and answer["RequestId"]
        assert "Error" not in answer or answer["Error"]["Code"] in {
            error["scf"] for error in cloud.ERRORS.values()}
    elif status >= 400:
        code = document.get("Code") or document.get("error_code")
        column = "fg" if "error_code" in document else "fc"
        assert "%d:%s" % (status, code) in {cloud.INVALID[column], *(
            error[column] for error in cloud.ERRORS.values())}
        assert document.get("Message") or document.get("error_msg")
