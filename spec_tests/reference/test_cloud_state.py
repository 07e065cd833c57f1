# test_cloud_state.py: what cloud.py keeps, who may have it, and how it is told (MIT).
"""Restart cloud.py over a folder of its own, kill it, damage files, sign requests."""

import base64
import concurrent.futures
import contextlib
import functools
import hashlib
import hmac
import io
import json
import os
import pathlib
import re
import signal
import subprocess
import time
import zipfile
from typing import Any, Callable, Dict, Iterator, List, Tuple

import cloud
import fork_server
import pytest
import scripted_bootstrap
from cloud_harness import VENDORS, Client, Local, local, package, zipped
from harness import fifo, run, until
from implementations import start_words

__all__ = ["fifo", "local", "package"]

START = start_words(pathlib.Path(cloud.__file__))


@contextlib.contextmanager
def program(*words: str) -> Iterator[Tuple["subprocess.Popen[bytes]", Client]]:
    """Run cloud.py as a process; give a caller of it."""
    process = fork_server.start(
        [*START, "--serve", "0", *words], cwd="/", env=os.environ,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    said = iter(process.stderr.readline, b"")
    found = next(filter(None, (re.search(rb"serving on http://127.0.0.1:(\d+)", line)
                               for line in said)))
    client = Client(int(found.group(1)))
    try:
        yield process, client
    finally:
        client.close()
        process.send_signal(signal.SIGINT)  # it puts its folders away
        process.wait(20)
        process.stderr.close()


def restart(local: Local) -> None:
    """Stop, and begin again over the same folder."""
    local.stop()
    local.notes.clear()
    local.start()


@VENDORS
def test_any_cloud_state(local: Local, vendor: str) -> None:
    """A restart finds functions, settings, triggers and code again."""
    local.create(vendor, "hello")
    if vendor == "scf":
        local.scf("CreateTrigger", FunctionName="hello", TriggerName="t", Type="apigw")
    before = local.get(vendor, "hello").json()
    assert until(lambda: len(list(local.root.glob("*,hello,*"))) == 1)  # the newest
    names = sorted(os.listdir(local.root))
    restart(local)
    after = local.get(vendor, "hello").json()
    for one in (before, after):
        one.get("Response", {}).pop("RequestId", None)
    if vendor == "scf":  # its URL has another port
        assert [one["Response"]["Triggers"].pop()["TriggerName"]
                for one in (before, after)] == ["t", "t"]
    assert after == before and sorted(os.listdir(local.root)) == names
    assert local.result(vendor, "hello", ["say", "hi"]) == "hi"


DAMAGE = {"no-json": ("function.json", b"{"), "other": ("function.json", b"[1]"),
          "lacks": ("function.json", b'{"document": {}}'), "code": ("code", b"PK")}


@VENDORS
@pytest.mark.parametrize("name", DAMAGE)
def test_any_cloud_state__damaged(local: Local, vendor: str, name: str) -> None:
    """A damaged function is named and skipped, and can be created anew."""
    local.create(vendor, "good")
    local.create(vendor, "damaged")
    prefix, data = DAMAGE[name]
    for path in local.root.glob("*,damaged,*/%s*" % prefix):
        path.write_bytes(data)
    restart(local)
    assert list(local.listed()) == ["good"] and len(local.notes) == 1
    assert "damaged" in local.notes[0]
    assert local.create(vendor, "damaged").status == 200
    assert local.result(vendor, "damaged", ["say", "hi"]) == "hi"


def test_any_cloud_state__killed(tmp_path: pathlib.Path) -> None:
    """Killed amid updates, it comes back with one of the versions, code and settings
    of the same one."""
    for round_s in (0.03, 0.08):
        with program("--state", str(tmp_path)) as (process, client):
            client.package = numbered(1)
            client.create("fc", "hello", timeout=1)
            end, number = time.monotonic() + round_s, 1
            while time.monotonic() < end:
                number = number % 50 + 1
                client.update("fc", "hello", numbered(number), timeout=number)
            os.kill(process.pid, signal.SIGKILL)
        with program("--state", str(tmp_path)) as (process, client):
            timeout = client.get("fc", "hello").json()["timeout"]
            [folder] = tmp_path.glob("*,hello,*")
            assert (folder / "code.zip").read_bytes() == numbered(timeout)


def numbered(number: int) -> bytes:
    """Return a package that differs from others."""
    return zipped({"bootstrap": b"%d" % number})


def test_any_cloud_state__full(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk a change is refused, and the function is as before."""
    def full(number: int) -> None:
        raise OSError(28, "No space left on device")

    local.create("fg", "hello")
    before = local.get("fg", "hello").json()
    monkeypatch.setattr(os, "fsync", full)
    assert local.create("fg", "other").code() == "500 FSS.0500"
    assert local.update("fg", "hello", local.package).code() == "500 FSS.0500"
    assert local.update("fg", "hello", b"", timeout=8).code() == "500 FSS.0500"
    monkeypatch.undo()
    assert local.get("fg", "hello").json() == before
    assert list(local.listed()) == ["hello"]


def test_any_cloud_lock(local: Local) -> None:
    """A second process does not get the folder, and says who has it."""
    done = run([*START, "--serve", "0", "--state", str(local.root)])
    assert done.status == 2 and "in use by process %d" % os.getpid() in done.err


# ---- signatures ----

SECRET = b"secret"
BODY = b'{"a":1}'
Signer = Callable[[str, float, bytes], Dict[str, str]]      # host, time, secret


def digest(text: str) -> str:
    """Return a SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()


def mac(key: bytes, text: str) -> bytes:
    """Return an HMAC."""
    return hmac.new(key, text.encode(), "sha256").digest()


def tc3(host: str, now: float, secret: bytes) -> Dict[str, str]:
    """Sign as Tencent's SDK for Python does."""
    stamp, day = str(int(now)), time.strftime("%Y-%m-%d", time.gmtime(now))
    text = "POST\n/\n\ncontent-type:application/json\nhost:%s\n\n" \
        "content-type;host\n%s" % (host, digest(BODY.decode()))
    key = mac(mac(mac(b"TC3" + secret, day), "scf"), "tc3_request")
    signed = mac(key, "TC3-HMAC-SHA256\n%s\n%s/scf/tc3_request\n%s" % (
        stamp, day, digest(text))).hex()
    return {"Content-Type": "application/json", "X-TC-Timestamp": stamp,
            "X-TC-Action": "ListFunctions", "Authorization":
            "TC3-HMAC-SHA256 Credential=key/%s/scf/tc3_request, "
            "SignedHeaders=content-type;host, Signature=%s" % (day, signed)}


def tc3_node(host: str, now: float, secret: bytes) -> Dict[str, str]:
    """Sign as Tencent's SDK for Node does: without the port."""
    return tc3(host.partition(":")[0], now, secret)


def acs3(host: str, now: float, secret: bytes) -> Dict[str, str]:
    """Sign as Alibaba's newer SDKs do."""
    date = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now))
    text = "POST\n/2023-03-30/functions\nb=&prefix=~%%20a\nhost:%s\n" \
        "x-acs-date:%s\n\nhost;x-acs-date\n%s" % (host, date, digest(BODY.decode()))
    signed = mac(secret, "ACS3-HMAC-SHA256\n" + digest(text)).hex()
    return {"x-acs-date": date, "Authorization": "ACS3-HMAC-SHA256 Credential=key,"
            "SignedHeaders=host;x-acs-date,Signature=" + signed}


def fc2(host: str, now: float, secret: bytes, resource: str = "/2016-08-15/services"
        ) -> Dict[str, str]:
    """Sign as Alibaba's fc2 does."""
    date = time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(now))
    signed = mac(secret, "POST\n\napplication/json\n%s\nx-fc-log-type:Tail\n%s" % (
        date, resource))
    return {"Date": date, "x-fc-log-type": "Tail", "Content-Type": "application/json",
            "Authorization": "FC key:" + base64.b64encode(signed).decode()}


def huawei(host: str, now: float, secret: bytes) -> Dict[str, str]:
    """Sign as Huawei's SDK does: the path is encoded anew, and ends with a slash."""
    date = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    text = "POST\n/v2/p/fgs/functions/urn%%3Afss%%3Aa/code/\n\nhost:%s\n" \
        "x-sdk-date:%s\n\nhost;x-sdk-date\n%s" % (host, date, digest(BODY.decode()))
    signed = mac(secret, "SDK-HMAC-SHA256\n%s\n%s" % (date, digest(text)))
    return {"X-Sdk-Date": date, "Authorization": "SDK-HMAC-SHA256 Access=key, "
            "SignedHeaders=host;x-sdk-date, Signature=" + signed.hex()}


SIGNERS = pytest.mark.parametrize("sign,path,limit_s,refused", (
    (tc3, "/", 300, "200 AuthFailure."), (tc3_node, "/", 300, "200 AuthFailure."),
    (acs3, "/2023-03-30/functions?prefix=~%20a&b=", 900, "403 "),
    (fc2, "/2016-08-15/services", 900, "403 "),
    # of some calls the query counts, too: in order, decoded
    (functools.partial(fc2, resource="/2016-08-15/proxy/s/f/\na=b c\nd=e"),
     "/2016-08-15/proxy/s/f/?d=e&a=b%20c", 900, "403 "),
    (functools.partial(fc2, resource="/2016-08-15/tempBucketToken\n"),  # by Node
     "/2016-08-15/tempBucketToken", 900, "403 "),
    (huawei, "/v2/p/fgs/functions/urn:fss:a/code", 900, "401 APIGW.0301")))


@pytest.fixture
def locked(tmp_path: pathlib.Path, package: bytes) -> Iterator[Local]:
    """A cloud that checks signatures."""
    one = Local(tmp_path / "state", package, keys={"key": "secret"})
    yield one
    one.stop()


@SIGNERS
def test_any_cloud_signature(locked: Local, sign: Signer, path: str, limit_s: float,
                             refused: str) -> None:
    """The right signature is let in; another key, secret, body or none is not."""
    host, now = "127.0.0.1:%d" % locked.port, time.time()
    good = sign(host, now, SECRET)
    assert not locked.ask("POST", path, BODY, **good).code().startswith(refused)
    unknown = dict(good, Authorization=good["Authorization"].replace("key", "nokey", 1))
    for fields in (sign(host, now, b"other"), unknown, {}, {"Authorization": "SKIP"}):
        reply = locked.ask("POST", path, BODY, **fields)
        assert reply.code().startswith(refused) and b"secret" not in reply.body
    if "FC" not in good["Authorization"]:
        assert locked.ask("POST", path, b"{}", **good).code().startswith(refused)


@SIGNERS
def test_any_cloud_signature_date(locked: Local, sign: Signer, path: str,
                                  limit_s: float, refused: str) -> None:
    """A signature that is too old, or too new, is refused, whatever it is worth."""
    host = "127.0.0.1:%d" % locked.port
    for passed_s, good in ((limit_s - 9, True), (limit_s + 9, False),
                           (-limit_s - 9, False)):
        fields = sign(host, time.time() - passed_s, SECRET)
        code = locked.ask("POST", path, BODY, **fields).code()
        assert (not code.startswith(refused)) == good


def test_any_cloud_signature__text(locked: Local) -> None:
    """The refusal shows what must be signed, as one line; an older way to sign, in the
    parameters, is none."""
    reply = locked.ask("POST", "/v2/p/fgs/functions/urn:fss:a/code", BODY, **huawei(
        "127.0.0.1:%d" % locked.port, time.time(), b"other"))
    assert "POST|/v2/p/fgs/functions/urn%3Afss%3Aa/code/||host:127" in reply.json()[
        "error_msg"]
    reply = locked.ask("GET", "/?Action=ListFunctions&SecretId=key&Timestamp=%d&"
                       "SignatureMethod=HmacSHA256&Signature=x" % time.time())
    assert reply.code() == "200 AuthFailure.InvalidAuthorization"


def test_any_cloud_signature__open(local: Local) -> None:
    """Without keys any signature will do; a function's own URL asks for none."""
    reply = local.ask("GET", "/2023-03-30/functions", Authorization="nonsense")
    assert reply.status == 200


# ---- the command line ----

def test_any_cloud_calls__folder(tmp_path: pathlib.Path) -> None:
    """A folder is a function as it lies there: what is edited runs, nothing of it is
    deleted."""
    script = b"#!/bin/sh\necho started >&2\nexit 1\n"
    (tmp_path / "bootstrap").write_bytes(script)
    (tmp_path / "bootstrap").chmod(0o755)
    with program("scf", str(tmp_path), "--name", "hello") as (process, client):
        result = client.invoke("scf", "hello").json()["Response"]["Result"]
        assert "User process exit when initializing" in result["ErrMsg"]
        client.delete("scf", "hello")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    assert (tmp_path / "bootstrap").read_bytes() == script


@pytest.mark.parametrize("words,said", (
    (["scf"], "give both"), (["scf", "/no/folder"], "no folder"),
    (["fc", "."], "'1' is no name"), (["--serve", "x:y"], "[HOST:]PORT"),
    (["--credentials", "/no/file"], "/no/file"), (["--document", "/no/file", "fg", "."],
                                                  "/no/file")))
def test_any_cloud_calls__usage(words: List[str], said: str) -> None:
    """What cannot be done is said in a line, with status 2."""
    name = ["--name", "1"] if words[0] == "fc" else []
    done = run([*START, "--serve", "0", *words, *name])
    assert done.status == 2 and said in done.err and "Traceback" not in done.err


def test_any_cloud_calls__watch(tmp_path: pathlib.Path, package: bytes) -> None:
    """With --watch an edited folder is started anew; --document holds its settings."""
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        (tmp_path / "bootstrap").write_bytes(archive.read("bootstrap"))
    (tmp_path / "bootstrap").chmod(0o755)
    (tmp_path / "new.json").write_text('{"memory_size": 256}')
    with program("fg", str(tmp_path), "--watch", "--document",
                 str(tmp_path / "new.json")) as (_, client):
        assert client.get("fg", "function").json()["memory_size"] == 256
        before = client.result("fg", "function", ["pid"])
        assert client.result("fg", "function", ["pid"]) == before
        (tmp_path / "more").write_text("edited")
        assert client.result("fg", "function", ["pid"]) != before


def test_any_stop_drain__cloud(tmp_path: pathlib.Path, package: bytes, fifo: Any
                               ) -> None:
    """SIGTERM lets what runs come to its end, asynchronous events too."""
    here, go = fifo("here"), fifo("go")
    with program("--quiet") as (process, client), \
            concurrent.futures.ThreadPoolExecutor(1) as pool:
        client.package = package
        client.create("scf", "hello")
        client.later("scf", "hello", json.dumps([["wait", fifo("later")]]).encode())
        asked = pool.submit(client.result, "scf", "hello", ["tell", here], ["wait", go],
                            ["say", "done"])
        scripted_bootstrap.wait(here)
        process.send_signal(signal.SIGTERM)
        scripted_bootstrap.tell(go)
        assert asked.result(20) == "done" and process.poll() is None
        scripted_bootstrap.tell(str(tmp_path / "later"))
        assert process.wait(10) == 0


def test_any_process_group__cloud(package: bytes) -> None:
    """SIGINT waits for nothing, and leaves no process."""
    with program("--quiet") as (process, client):
        client.package = package
        client.create("scf", "hello")
        pid = client.result("scf", "hello", ["pid"])
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    assert not os.path.exists("/proc/" + pid)


def test_any_security_secrets__cloud(locked: Local) -> None:
    """A secret, and what signs a request, are in no note and no file."""
    fields = tc3("127.0.0.1:%d" % locked.port, time.time(), SECRET)
    locked.ask("POST", "/", BODY, **fields)
    kept = b"".join(path.read_bytes() for path in locked.root.rglob("*")
                    if path.is_file())
    assert "secret" not in "".join(locked.notes) and b"secret" not in kept
    assert json.dumps(fields)[-40:] not in str(kept)
