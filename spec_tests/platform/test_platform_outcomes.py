# test_platform_outcomes.py: what the caller sees of each outcome (MIT).
"""Status, fields and body, by the outcome tables of SPEC.md 6.8, 7.8 and 8.8; the
transcripts have the texts."""

import re
from typing import Dict, Tuple

import pytest

from kit import Mismatch, document, same
from platform_run import Instance, Outcome, PlatformRun, PlatformUnderTest

NEEDS = {"out-of-memory": "memory", "throttled": "instances",
         "response-too-large": "limits", "request-too-large": "limits"}
OPTIONS = {"out-of-memory": ("--memory", "100"),
           "throttled": ("--queue", "0", "--max-instances", "0")}
LIMITS = {"fc": ("--timeout", "1", "--initializer", "--init-timeout", "1",
                 "--max-event", "2000"),
          "scf": ("--timeout", "1", "--init-timeout", "1"),
          "fg": ("--timeout", "1", "--init-timeout", "1")}
ANSWERED = ("ok", "function-error")  # after these the instance surely serves on
HTTP = {"method": "GET", "path": "/page"}


def reached(platform: PlatformUnderTest, kind: str, **fields: object) -> Outcome:
    """Bring an event, or an HTTP invocation, to that outcome; return it."""
    if kind in NEEDS:
        platform.needs(NEEDS[kind])
    protocol = platform.implementation.protocol
    with platform.used_run(*LIMITS[protocol], *OPTIONS.get(kind, ())) as run:
        if kind not in ANSWERED:
            run.discard_idle()
        if kind in ("request-too-large", "throttled"):
            run.issue(b"x" * (2001 if kind[0] == "r" else 1), **fields)
        elif kind == "start-error":
            with run.changed_bootstrap() as program:
                program.unlink()
                run.issue(b"hello", **fields)
                return run.outcome(kind)
        else:
            bring = starts_badly if kind.startswith("init") else goes_wrong
            instance = bring(run, kind, **fields)
            outcome = run.outcome(kind, instance)
            if kind not in ANSWERED:
                run.discard_idle()
            return outcome
        return run.outcome(kind)


def starts_badly(run: PlatformRun, kind: str, **fields: object) -> Instance:
    """Have the initialisation fail, or take too long."""
    run.issue(b"hello", **fields)
    if run.protocol != "fc":
        instance = run.instance()
        if kind == "init-error":
            instance.end("exit", status=1)
        return instance
    instance = run.server()
    instance.request("/initialize")
    if kind == "init-error":
        instance.answer(404)
    return instance


def goes_wrong(run: PlatformRun, kind: str, **fields: object) -> Instance:
    """Have a bootstrap get the event, and do what leads to the outcome."""
    is_new = run.idle is None
    instance = run.fetched(b"hello", **fields)
    if run.protocol == "fc":
        if is_new:  # that was the Initializer
            instance.answer()
            instance.request()
        status = "404" if kind == "function-error" else "200"
        size = 9000 if kind == "response-too-large" else 1
        if kind in (*ANSWERED, "response-too-large"):
            instance.answer(int(status), [("X-Fc-Status", status), ("X-A", "a" * size)],
                            b"its body")
    elif kind == "response-too-large":
        instance.result(b"x" * (run.result_bytes + 1))
    elif kind in ANSWERED:
        instance.result(b"its body", "error" if kind[0] == "f" else "response")
    if kind == "exit":
        instance.end("exit", status=0)
    elif kind == "out-of-memory":
        instance.end("eat", bytes=200 << 20)
    elif kind == "bad-response":
        instance.send(instance.asked, b"nonsense\r\n\r\n")
        instance.close(instance.asked)
    return instance


def is_told(outcome: Outcome, name: str, *values: str) -> None:
    """Raise Mismatch unless the caller gets that field with these values."""
    same(list(values), [value for key, value in outcome.headers if key == name.lower()],
         f"{name} for the caller")


def is_like(wanted: str, seen: str) -> None:
    """Raise Mismatch unless a text for people has that form."""
    if not re.fullmatch(wanted, seen, re.DOTALL):
        raise Mismatch(f"a text like {wanted}", repr(seen))


# ---- fg ----

FG = {"ok": (200, "0"), "function-error": (200, "4002"), "timeout": (200, "4010"),
      "init-timeout": (200, "4211"), "init-error": (200, "4201"),
      "start-error": (200, "4202"), "exit": (200, "4204"),
      "response-too-large": (200, "4008"), "request-too-large": (413, "1201"),
      "out-of-memory": (200, "4205"), "throttled": (429, "0429")}


@pytest.mark.parametrize("kind", sorted(FG))
def test_fg_outcome_document(platform: PlatformUnderTest, kind: str) -> None:
    """The caller gets status, id and code, and is told whether it is a failure."""
    outcome = reached(platform, kind)
    status, code = FG[kind]
    same(status, outcome.status, "status")
    is_told(outcome, "X-Cff-Request-Id", outcome.request_id)
    is_told(outcome, "X-Func-Err-Code", code)
    is_told(outcome, "X-Is-Func-Err", "false" if kind == "ok" else "true")
    if kind in ("ok", "function-error"):
        same(b"its body", outcome.body, "body")
    else:
        seen = document(outcome.body)
        same({"error_code": f"FSS.{code}", "error_msg": seen.get("error_msg")}, seen)


# ---- scf ----


@pytest.mark.parametrize("text,shown", [
    (b"it failed", "it failed"), (b'{"a": "b\\n\xe4\xb8\xad"}\n', '{"a": "b\\n\u4e2d"}\n'),
    (b"", "")])
def test_scf_outcome_document(platform: PlatformUnderTest, text: bytes,
                              shown: str) -> None:
    """The document of a failure has the text of the error and the id of the event, no
    blanks, and its keys in order."""
    with platform.running() as (run, instance):
        request_id = instance.request_id
        instance.result(text, "error")
        outcome = run.outcome("function-error", instance)
    same(200, outcome.status, "status")
    same({"errorCode": 1, "errorMessage": "user code exception caught",
          "requestId": request_id, "stackTrace": shown, "statusCode": 430},
         document(outcome.body))
    if not re.match(rb'\{"errorCode":1,"errorMessage":"[^"]*","requestId":"[^"]*",'
                    rb'"stackTrace":"', outcome.body):
        raise Mismatch("keys in order, no blanks", repr(outcome.body))


TOO_LATE = {"fc": r"Function timed out after 0\.5 seconds \(maxMemoryUsage: .*",
            "scf": r"Invoking task timed out after 0\.5 seconds", "fg":
            r"call invoke timeout 0\.5s"}


def test_any_event_timeout__number(platform: PlatformUnderTest) -> None:
    """The limit that was missed is named without needless zeros."""
    with platform.running("--timeout", "0.5") as (run, instance):
        seen = document(run.outcome("timeout").body)
        text = seen.get("errorMessage") or seen.get("error_msg") or ""
        run.discard(instance)
    is_like(TOO_LATE[platform.implementation.protocol], text)


# ---- start-error, each kind ----

START = {"scf": ("errorMessage", {"mode": "ReloadFail: Bootstrap not executable\n",
                                  "": "ReloadFail: Bootstrap cannot be started\n"}),
         "fg": ("error_msg", {"mode": "runtime bootstrap file is not executable",
                              "": "runtime bootstrap file cannot be started"})}


@pytest.mark.parametrize("why", ["mode", ""])
def test_scf_outcome_document__start(platform: PlatformUnderTest, why: str) -> None:
    """The caller is told why the bootstrap cannot be started."""
    cannot_start(platform, why)


@pytest.mark.parametrize("why", ["mode", ""])
def test_fg_outcome_document__start(platform: PlatformUnderTest, why: str) -> None:
    """The caller is told why the bootstrap cannot be started."""
    cannot_start(platform, why)


def cannot_start(platform: PlatformUnderTest, why: str) -> None:
    """Spoil the bootstrap so; raise Mismatch unless the caller is told."""
    with platform.new_run() as run, run.changed_bootstrap() as program:
        if why == "mode":
            program.chmod(0o644)
        else:
            program.write_bytes(b"\x7fELF this is no program")
        run.issue(b"hello")
        member, texts = START[run.protocol]
        same(texts[why], document(run.outcome("start-error").body).get(member))


# ---- fc ----

FC: Dict[str, Tuple[int, str, int]] = {  # status and type or code; status over HTTP
    "ok": (200, "", 200), "function-error": (200, "InvocationError", 404),
    "timeout": (200, "InvocationError", 502), "exit": (200, "InvocationError", 502),
    "init-timeout": (200, "InitializationError", 502),
    "init-error": (200, "InitializationError", 502),
    "out-of-memory": (200, "FunctionOOMError", 502),
    "start-error": (412, "CAFileNotFound", 412), "bad-response": (502, "BadResponse", 502),
    "response-too-large": (502, "BadResponse", 502),
    "request-too-large": (400, "InvalidArgument", 400),
    "throttled": (429, "ResourceExhausted", 429)}


EXITED = (r"Process exited unexpectedly before completing request "
          r"\(duration: \d+ms, maxMemoryUsage: \d+\.\d\dMB\)")
FC_TEXTS = {"exit": EXITED, "out-of-memory": EXITED, "timeout":
            r"Function timed out after 1 seconds \(maxMemoryUsage: \d+\.\d\dMB\)"}


def test_fc_outcome_document__exit(platform: PlatformUnderTest) -> None:
    """The caller is told how a process ended, and what was its start command."""
    run = platform.run("--", "./bootstrap", "a word")
    run.starting().end("exit", status=2)
    is_like(r".*Function instance exited unexpectedly\(code 2, message:no such file or "
            r"directory\) with start command '\./bootstrap a word '.*",
            document(run.outcome("start-error").body)["Message"])


@pytest.mark.parametrize("is_http", [False, True])
@pytest.mark.parametrize("kind", sorted(FC))
def test_fc_outcome_document(platform: PlatformUnderTest, kind: str,
                             is_http: bool) -> None:
    """The caller gets status and id, and type or code of a failure."""
    outcome = reached(platform, kind, **(HTTP if is_http else {}))
    status, name, http_status = FC[kind]
    same(http_status if is_http else status, outcome.status, "status")
    if kind in ("ok", "function-error"):
        same(b"its body", outcome.body, "body")
    if name.endswith("Error"):
        if not is_http or kind != "function-error":  # else it is the answer as it is
            is_told(outcome, "X-Fc-Error-Type", name)
        if kind != "function-error":
            seen = document(outcome.body)
            same(["errorMessage"], sorted(seen), "members")
            is_like(FC_TEXTS.get(kind, ".+"), seen["errorMessage"])
    elif name:
        seen = document(outcome.body)
        same([name, name, outcome.request_id], [seen.get(key) for key in (
            "Code", "ErrorCode", "RequestId")], "Code, ErrorCode, RequestId")
        same(sorted(seen), ["Code", "ErrorCode", "ErrorMessage", "Message", "RequestId"])
