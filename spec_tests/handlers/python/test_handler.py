"""The test handler for the bootstraps of reference/; spec_tests/README.md has its contract.

Name it `test_handler.handle`. The event says what to do; see `handle`.
"""
import itertools
import json
import os
import sys
import time
import types

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Callable, Dict, List

INSTRUCTION = b'{"do":"'  # what starts otherwise is echoed
invocations = itertools.count(1)


def handle(event: "Any", context: "Any") -> "Any":
    """Do what the event says; echo it byte for byte if it says nothing."""
    count = next(invocations)
    if not context.event_bytes.startswith(INSTRUCTION) or not isinstance(event, dict):
        return context.event_bytes
    word = event["do"]
    if word == "echo":
        return event["text"]
    if word == "raise":
        raise new_error(event["type"], event["message"])
    if word == "sleep":
        time.sleep(event["seconds"])
        return "slept"
    if word == "exit":
        leave(event["status"])
    if word == "print":
        print(event["text"])
        return "printed"
    if word == "size":
        return b"x" * event["bytes"]
    if word == "context":
        return describe(context)
    if word == "env":
        return os.environ.get(event["name"], "")
    if word == "count":
        return str(count)
    raise new_error("Unsupported", "the test handler does not know " + repr(word))


def application(environ: "Dict[str, Any]",
                start_response: "Callable[..., Any]") -> "List[bytes]":
    """Do what the body of an HTTP invocation says (fc)."""
    data = environ["wsgi.input"].read()
    context = types.SimpleNamespace(
        event_bytes=data, request_id=environ.get("HTTP_X_FC_REQUEST_ID"),
        memory_mb=int(environ.get("HTTP_X_FC_FUNCTION_MEMORY") or 0),
        time_limit_ms=1000 * int(environ.get("HTTP_X_FC_FUNCTION_TIMEOUT") or 0),
        function_name=environ.get("HTTP_X_FC_FUNCTION_NAME"))
    order = json.loads(data.decode()) if data.startswith(INSTRUCTION) else {}
    if order.get("do") == "answer":
        start_response("%d X" % order["status"], [tuple(one) for one in order["fields"]])
        return [order["text"].encode()]
    result = request_of(environ) if order.get("do") == "request" else handle(
        order or data, context)
    start_response("200 OK", [("Content-Type", "application/octet-stream")])
    if isinstance(result, dict):
        result = json.dumps(result)
    return [result if isinstance(result, bytes) else result.encode()]


def request_of(environ: "Dict[str, Any]") -> "Dict[str, Any]":
    """Return an HTTP invocation as it came."""
    fields = {name[5:].replace("_", "-"): value for name, value in environ.items()
              if name.startswith("HTTP_")}
    fields["Content-Type"] = environ["CONTENT_TYPE"]
    return {"method": environ["REQUEST_METHOD"], "target": environ["REQUEST_URI"],
            "fields": sorted(fields.items())}


def new_error(name: str, message: str) -> Exception:
    """Return an error whose type has the given name."""
    error = type(name, (Exception,), {})(message)
    assert isinstance(error, Exception)
    return error


def leave(status: int) -> None:
    """End the process at once, whatever else it is doing."""
    sys.stdout.flush()
    os._exit(status)


def describe(context: "Any") -> "Dict[str, Any]":
    names = ("request_id", "memory_mb", "time_limit_ms", "function_name")
    values = {name: getattr(context, name) for name in names}
    return {name: value for name, value in values.items() if value is not None}
