# cloud_harness.py: a running cloud.py and a caller of its interfaces (MIT).
"""Give a test the interfaces of cloud.py as plain calls, in the form in which the SDKs
send them, and the same for what all three can do: `create`, `invoke` and so on.
"""

import base64
import http.client
import io
import json
import pathlib
import zipfile
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Union

import pytest
import scripted_bootstrap
from cloud import Cloud, Door
from harness import until

__all__ = ["Client", "Local", "Reply", "VENDORS", "hello", "local", "package", "zipped"]

VENDORS = pytest.mark.parametrize("vendor", ("scf", "fc", "fg"))
CODE = {"scf": ("Code", "ZipFile"), "fc": ("code", "zipFile"),
        "fg": ("func_code", "file")}
NEW: Dict[str, Dict[str, Any]] = {
    "scf": {"Runtime": "CustomRuntime", "InitTimeout": 10, "Timeout": 20},
    "fc": {"runtime": "custom.debian10", "handler": "index.handler", "timeout": 20},
    "fg": {"runtime": "Custom", "handler": "index.handler", "timeout": 20,
           "memory_size": 128, "package": "default", "code_type": "zip"},
}
NAMES = {"scf": "FunctionName", "fc": "functionName", "fg": "func_name"}
BASES = {"fc": "/2023-03-30/", "fg": "/v2/project/fgs/"}
URN = "urn%3Afss%3Alocal%3Aproject%3Afunction%3Adefault%3A"     # as Python's SDK has it
CALLS = {what: dict(zip(("scf", "fc", "fg"), calls)) for what, *calls in (
    ("create", "CreateFunction", "POST functions", "POST functions"),
    ("get", "GetFunction", "GET functions/*", "GET functions/*/config"),
    ("code", "UpdateFunctionCode", "PUT functions/*", "PUT functions/*/code"),
    ("config", "UpdateFunctionConfiguration", "PUT functions/*",
     "PUT functions/*/config"),
    ("delete", "DeleteFunction", "DELETE functions/*", "DELETE functions/*"),
    ("invoke", "Invoke", "POST functions/*/invocations",
     "POST functions/*/invocations"),
    ("later", "Invoke", "POST functions/*/invocations",
     "POST functions/*/invocations-async"))}


class Reply(NamedTuple):
    """An answer; field names in lower case."""

    status: int
    fields: Dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body."""
        return json.loads(self.body)

    def result(self) -> Dict[str, Any]:
        """Return the member Result of an answer of SCF."""
        found: Dict[str, Any] = self.json()["Response"]["Result"]
        return found

    def code(self) -> str:
        """Return the status, and the vendor's code when this is an error."""
        document = self.json() if self.body[:1] == b"{" else {}
        error = document.get("Response", {}).get("Error", {})
        code = error.get("Code") or document.get("Code") or document.get("error_code")
        return "%d %s" % (self.status, code or "-")


def zipped(files: Dict[str, bytes]) -> bytes:
    """Return a package; each file may be executed."""
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, data in files.items():
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o100755 << 16
            archive.writestr(entry, data)
    return target.getvalue()


class Client:
    """One connection to the interfaces."""

    def __init__(self, port: int, package: bytes = b"") -> None:
        self.port, self.package = port, package
        self.peer = http.client.HTTPConnection("127.0.0.1", port, timeout=30)

    def close(self) -> None:
        """Close it."""
        self.peer.close()

    def ask(self, method: str, path: str, body: Union[bytes, object] = b"",
            **fields: str) -> Reply:
        """Send a request on the connection; `_` in names of fields means `-`."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.peer.request(method, path, data, {
            name.replace("_", "-"): value for name, value in fields.items()})
        answer = self.peer.getresponse()
        return Reply(answer.status, {name.lower(): value for name, value in
                                     answer.getheaders()}, answer.read())

    def call(self, vendor: str, call: str, body: Union[bytes, object] = b"",
             **fields: str) -> Reply:
        """Make a call: an action of SCF, else a method and a path."""
        if vendor == "scf":
            return self.ask("POST", "/", body or {}, X_TC_Action=call,
                            X_TC_Version="2018-04-16", Content_Type="application/json")
        method, _, path = call.partition(" ")
        return self.ask(method, BASES[vendor] + path, body, **fields)

    def scf(self, action: str, **members: object) -> Reply:
        """Call SCF."""
        return self.call("scf", action, members)

    # -- what all three have --

    def _do(self, what: str, vendor: str, name: str, body: Union[bytes, object] = b"",
            **fields: str) -> Reply:
        """Make one of CALLS for a function."""
        if vendor == "scf":
            body = {NAMES["scf"]: name, **(body if isinstance(body, dict) else {})}
        return self.call(vendor, CALLS[what][vendor].replace(
            "*", URN + name if vendor == "fg" else name), body, **fields)

    def create(self, vendor: str, name: str, code: Union[str, bytes, None] = None,
               **members: object) -> Reply:
        """Create a function, of the package unless `code` is another, or a text."""
        outer, inner = CODE[vendor]
        package = self.package if code is None else code
        text = package if isinstance(package, str) else base64.b64encode(
            package).decode()
        return self._do("create", vendor, name, {
            **NEW[vendor], outer: {inner: text}, NAMES[vendor]: name, **members})

    def get(self, vendor: str, name: str) -> Reply:
        """Return the object of a function."""
        return self._do("get", vendor, name)

    def update(self, vendor: str, name: str, package: bytes = b"",
               **members: object) -> Reply:
        """Give a function another package, or other settings."""
        code: Dict[str, Any] = {CODE[vendor][1]: base64.b64encode(package).decode()}
        if vendor != "scf":
            code = {CODE[vendor][0]: code}
        return self._do("code" if package else "config", vendor, name, {
            **members, **(code if package else {})})

    def delete(self, vendor: str, name: str) -> Reply:
        """Delete a function."""
        return self._do("delete", vendor, name)

    def invoke(self, vendor: str, name: str, *steps: List[Any], **how: str) -> Reply:
        """Invoke a function with a script."""
        event = json.dumps(steps)
        return self._do("invoke", vendor, name, {"ClientContext": event, **how} if (
            vendor == "scf") else event.encode(), **how)

    def result(self, vendor: str, name: str, *steps: List[Any]) -> str:
        """Return the result of a script."""
        reply = self.invoke(vendor, name, *steps)
        return str(reply.result()["RetMsg"]) if vendor == "scf" else reply.body.decode()

    def later(self, vendor: str, name: str, event: bytes) -> Reply:
        """Invoke a function asynchronously."""
        fields = {"X_Fc_Invocation_Type": "Async"} if vendor == "fc" else {}
        return self._do("later", vendor, name, {
            "InvocationType": "Event", "ClientContext": event.decode()} if (
                vendor == "scf") else event, **fields)

    def page(self, vendor: str, name: str, target: str, body: bytes = b"",
             **fields: str) -> Reply:
        """Ask a function's own URL, by GET or with a body by POST."""
        return self.ask("POST" if body else "GET", "/-/http/%s/%s%s" % (
            vendor, name, target), body, **fields)

    def listed(self) -> Dict[str, Dict[str, Any]]:
        """Return GET /-/functions by name."""
        found = self.ask("GET", "/-/functions").json()["functions"]
        return {one["name"]: one for one in found}


class Local(Client):
    """A cloud with a door, and a connection to it."""

    def __init__(self, root: pathlib.Path, package: bytes, **settings: Any) -> None:
        self.root, self.package = root, package
        self.notes: List[str] = []
        self.settings = {"grace_s": 0.5, "port": 0, **settings}
        self.start()

    def start(self) -> None:
        """Serve what the folder holds."""
        self.cloud = Cloud(str(self.root), note=self.notes.append, **self.settings)
        self.door = Door(self.cloud)
        super().__init__(self.door.port, self.package)

    def stop(self, drain: bool = False) -> None:
        """Stop everything."""
        self.close()
        self.door.close()
        self.cloud.close(drain)
        self.door.join(5)

    def noted(self, text: str) -> bool:
        """Wait until a note has the text."""
        return until(lambda: any(text in note for note in self.notes))


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The scripted bootstrap as a package."""
    folder = pathlib.Path(scripted_bootstrap.place(tmp_path_factory.mktemp("code")))
    return zipped({"bootstrap": (folder / "bootstrap").read_bytes()})


@pytest.fixture
def local(tmp_path: pathlib.Path, package: bytes) -> Iterator[Local]:
    """A cloud without functions."""
    one = Local(tmp_path / "state", package)
    yield one
    one.stop()


@pytest.fixture
def hello(local: Local) -> Local:
    """A cloud with a function of this name in each interface."""
    for vendor in ("scf", "fc", "fg"):
        local.create(vendor, "hello")
    return local
