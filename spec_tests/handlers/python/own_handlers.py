"""Handlers and a WSGI application for test_bootstrap_files.py."""
import json
import os
import signal
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Iterable


RESULTS = {
    "bytes": b"\xff", "bytearray": bytearray(b"a"), "text": "z\xfcrich", "none": None,
    "zero": 0, "object": {"\xe4": [1, None]}, "surrogate": ["\udc80"],
    "nan": float("nan"), "set": {1}, "half": "\udc80"}
value = 1


def show(event: "Any", context: "Any") -> str:
    return "%s %r" % (type(event).__name__, str(event)[:20])


def give(event: "Any", context: "Any") -> "Any":
    return RESULTS[event]


def leave(event: "Any", context: "Any") -> None:
    raise SystemExit(7)


async def wait(event: "Any", context: "Any") -> "Any":
    return event


def say(event: "Any", context: "Any") -> str:
    print("\u540d")
    sys.stderr.write("half")
    if event == "die":
        print(file=sys.stderr)
        os.kill(os.getpid(), signal.SIGKILL)
    return "said"


def know(event: "Any", context: "Any") -> "Any":
    return [context.request_id, context.function_name, context.memory_mb,
            context.time_limit_ms, context.credentials["access_key_id"],
            context.protocol, context.invoke_type, 0 < context.remaining_ms() <= 3000]


# ---- as the vendors' own runtimes want them ----

def scf(event: "Any", context: "Any") -> "Any":
    return [context["request_id"], context["memory_limit_in_mb"],
            context["function_name"]]


def fg(event: "Any", context: "Any") -> "Any":
    context.getLogger().info("logged")
    return [context.getRequestID(), context.getFunctionName(), context.getMemorySize(),
            context.getAccessKey(), context.getUserData("MINE", "")]


def fc(event: "Any", context: "Any") -> "Any":
    return [json.loads(event), context.credentials.access_key_id, context.function.name,
            json.loads("[1]")]


def either(event: "Any", context: "Any") -> str:
    kind = type(event).__name__
    if isinstance(event, str):
        event = json.loads(event)
    return "%s %d" % (kind, event["a"])


def bytes_alone(event: "Any", context: "Any") -> str:
    return "%s %s" % (type(event).__name__, json.loads(event))


# ---- fc: hooks and HTTP invocations ----

def initialize(context: "Any") -> None:
    print("initialised")


def pre_stop(context: "Any") -> None:
    raise ValueError("never")


def application(environ: "Any", start_response: "Any") -> "Iterable[Any]":
    path = environ["PATH_INFO"]
    if path == "/error":
        raise FileNotFoundError("no")
    if path == "/name":
        start_response("200 OK", [("X-Name", "\u540d")])
        return []
    if path == "/split":
        start_response("200 OK", [("X-Name", "a\r\nSet-Cookie: b")])
        return []
    if path == "/short":
        start_response("200 OK", [("Content-Length", "9")])
        return [b"short"]
    if path == "/environ":
        start_response("200 OK", [])
        names = ("CONTENT_LENGTH", "HTTP_COOKIE", "HTTP_TRANSFER_ENCODING", "REMOTE_ADDR",
                 "wsgi.input_terminated", "QUERY_STRING", "HTTP_X_A", "SERVER_PORT")
        seen = {name: environ[name] for name in names if name in environ}
        return [repr(sorted(seen.items())).encode(), environ["wsgi.input"].read()]
    start_response("201 Created", [("X-Path", path), ("Connection", "close")])
    if path == "/stream":
        return (part for part in (b"one", b"", b"two"))
    if path == "/endless":
        return iter(lambda: b"x" * 65536, b"")
    return [path.encode("latin-1"), environ["wsgi.input"].read()]


class Application:
    """A handler that is a WSGI application."""

    def __call__(self, environ: "Any", start_response: "Any") -> "Iterable[bytes]":
        start_response("200 OK", [])
        if environ["PATH_INFO"] == "/exit":
            raise SystemExit(7)
        return [b"only ", environ["PATH_INFO"].encode("latin-1")]


only = Application()
