# test_platform_pull.py: what SPEC.md chapters 7 and 8 ask of a platform (MIT).
"""One rule each, beside the cases of test_platform_generated.py."""

import re
import subprocess
from typing import Dict

import pytest

import wire
from kit import DIALECTS, Mismatch, document, same
from platform_run import CLOCKED, Instance, Outcome, PlatformRun, PlatformUnderTest


def times_out_soon(run: PlatformRun, instance: Instance) -> None:
    """Raise Mismatch unless the event of a CLOCKED platform is a timeout in 2.2 s: more
    than what is left of its limit by now, less than the whole limit."""
    run.patience_s = 2.2
    run.outcome("timeout")
    run.discard(instance)


@pytest.mark.parametrize("parked", [False, True])
def test_any_poll_reset(pull_platform: PlatformUnderTest, parked: bool) -> None:
    """When the connection that brought the event is reset, the next poll gets it, too,
    also one that was held by then."""
    with pull_platform.used_run() as run:
        instance = run.idle_one()
        first = instance.park()
        run.issue(b"precious")
        instance.read(first)
        second = instance.park() if parked else None
        instance.close(first, reset=True)
        same(b"precious", instance.fetch(second).body)
        run.finish(instance)


def test_any_poll_reset__result(pull_platform: PlatformUnderTest) -> None:
    """A client that has read the event, and then resets, may still give the result."""
    with pull_platform.used_run() as run:
        instance = run.idle_one()
        first = instance.park()
        run.issue(b"precious")
        id_header = DIALECTS[run.protocol].id_header
        instance.request_id = instance.read(first).header(id_header) or ""
        instance.close(first, reset=True)
        run.settle()
        run.finish(instance)


# ---- scf ----


def test_scf_env_handler(platform: PlatformUnderTest) -> None:
    """_HANDLER is the function's handler."""
    run = platform.run("--handler", "mine.handle")
    same("mine.handle", run.starting().environ.get("_HANDLER"))


def test_scf_next_headers(platform: PlatformUnderTest) -> None:
    """The event comes with its id, the memory in MB and the time limit in ms."""
    run = platform.run("--memory", "256", "--timeout", "5")
    instance = run.ready()
    reply = instance.fetch()
    same(("256", "5000"), (reply.header("Memory_Limit_In_Mb"),
                           reply.header("Time_Limit_In_Ms")))
    same(reply.header("Request_Id"), run.finish(instance).request_id)


def test_any_limits_clock__scf(platform: PlatformUnderTest) -> None:
    """The clock runs from the issue, not from the fetch."""
    with platform.used_run(*CLOCKED) as run:
        instance = run.ready()
        run.wait(1.5)
        instance.fetch()
        times_out_soon(run, instance)


def test_any_limits_clock__scf_refetch(platform: PlatformUnderTest) -> None:
    """Fetching again does not start the clock again."""
    with platform.running(*CLOCKED) as (run, instance):
        for _ in range(2):
            run.wait(0.75)
            instance.fetch()
        times_out_soon(run, instance)


SCF_DOCUMENTS: Dict[str, Dict[str, object]] = {
    "timeout": {"errorCode": -1, "statusCode": 433,
                "errorMessage": "Invoking task timed out after 1 seconds"},
    "init-error": {"errorCode": -1, "statusCode": 445,
                   "errorMessage": "User process exit when initializing"},
    "exit": {"errorCode": -1, "statusCode": 439,
             "errorMessage": "User process exit when running"},
    "function-error": {"errorCode": 1, "statusCode": 430, "stackTrace": "it failed",
                       "errorMessage": "user code exception caught"},
}


def failed(run: PlatformRun, kind: str) -> Outcome:
    """Return the outcome of an event that fails in this way."""
    instance = run.starting() if kind == "init-error" else run.ready()
    if kind != "init-error":
        instance.fetch()
    if kind == "function-error":
        instance.result(b"it failed", "error")
    elif kind != "timeout":
        instance.end("exit", status=0)
    outcome = run.outcome(kind)
    run.discard(instance)
    return outcome


@pytest.mark.parametrize("kind", sorted(SCF_DOCUMENTS))
def test_scf_outcome_document(platform: PlatformUnderTest, kind: str) -> None:
    """The caller of a failure sees the error document with the values of the table."""
    with platform.used_run("--timeout", "1") as run:
        outcome = failed(run, kind)
        same({**SCF_DOCUMENTS[kind], "requestId": outcome.request_id},
             document(outcome.body))


# ---- fg ----


@pytest.mark.parametrize("name,value", [("RUNTIME_TIMEOUT", "7"),
                                        ("RUNTIME_CPU", "400")])
def test_fg_env_table__values(platform: PlatformUnderTest, name: str,
                              value: str) -> None:
    """Seconds, MB and millicores, as decimal numbers."""
    with platform.used_run("--timeout", "7", "--memory", "256") as run:
        instance = run.starting()
        same((value, "256"),
             (instance.environ[name], instance.environ["RUNTIME_MEMORY"]))
        run.abandon(instance)


def test_fg_env_table__userdata(platform: PlatformUnderTest) -> None:
    """RUNTIME_USERDATA is a JSON object of the user's variables."""
    run = platform.run("--env", "A=1", "--env", "B=two words")
    environ = run.starting().environ
    same({"A": "1", "B": "two words"}, document(environ["RUNTIME_USERDATA"]))


@pytest.mark.parametrize("rule,name,wanted", [
    ("fg.request.headers", "X-Cff-Request-Id", r"[A-Za-z0-9-]+"),
    ("fg.request.headers", "X-CFF-Invoke-Type", "sync")])
def test_fg_request_fields(platform: PlatformUnderTest, rule: str, name: str,
                           wanted: str) -> None:
    """The event comes with exactly one such field."""
    with platform.used_run() as run:
        instance = run.starting()
        values = instance.fetch().values(name)
        if len(values) != 1 or not re.fullmatch(wanted, values[0]):
            raise Mismatch(f"one field {name}: {wanted}", repr(values))
        run.finish(instance)


def test_fg_start_shell(platform: PlatformUnderTest) -> None:
    """A bootstrap that is a script without #! is run by /bin/sh."""
    with platform.new_run() as run, run.changed_bootstrap() as program:
        # in a process of its own: see changed_bootstrap()
        subprocess.run(["sed", "-i", '1c exec "$RUNTIME_CODE_ROOT/whole"', str(program)],
                       check=True)
        run.serve()


def test_fg_api_error_document(platform: PlatformUnderTest) -> None:
    """A refused call is answered with error_code and error_msg, both strings."""
    with platform.fetched() as instance:
        path = instance.result_path("response", "nobody")
        reply = instance.ask(wire.request_bytes("POST", path, (), b"x"))
        same({"error_code": str, "error_msg": str},
             {name: type(value) for name, value in document(reply.body).items()})


def test_fg_request_blocks__one(platform: PlatformUnderTest) -> None:
    """One of several held polls gets the event."""
    with platform.used_run() as run:
        instance = run.idle_one()
        polls = [instance.park() for _ in range(3)]
        run.settle()
        run.issue(b"hello")
        replies = [instance.read(number, 0.3) for number in polls]
        served = [one for one in replies if one.status == 200]
        same([b"hello"], [one.body for one in served])
        instance.request_id = served[0].header("X-Cff-Request-Id") or ""
        for number in polls:
            instance.close(number)
        run.finish(instance)


def test_any_limits_clock__fg(platform: PlatformUnderTest) -> None:
    """The clock runs from the issue, not from the fetch."""
    with platform.used_run(*CLOCKED) as run:
        instance = run.idle_one()
        run.issue(b"hello")
        run.wait(1.5)
        instance.fetch()
        times_out_soon(run, instance)


def test_fg_outcome_document__error(platform: PlatformUnderTest) -> None:
    """The caller of a failed function sees the posted body."""
    with platform.running() as (run, instance):
        instance.result(b"\0 it failed \xff", "error")
        same(b"\0 it failed \xff", run.outcome("function-error", instance).body)


FG_DOCUMENTS = {
    "timeout": ("4010", "call invoke timeout 1s"),
    "init-error": ("4201", "function initialization failed"),
    "exit": ("4204", "runtime process is exited"),
}


@pytest.mark.parametrize("kind", sorted(FG_DOCUMENTS))
def test_fg_outcome_document(platform: PlatformUnderTest, kind: str) -> None:
    """The caller of a failure sees code and text of the table."""
    with platform.used_run("--timeout", "1") as run:
        code, text = FG_DOCUMENTS[kind]
        same({"error_code": f"FSS.{code}", "error_msg": text},
             document(failed(run, kind).body))
