# test_platform_pull.py: what SPEC.md chapters 7 and 8 ask of a platform (MIT).
"""One rule each, beside the cases of test_platform_generated.py."""

import re
import subprocess

import pytest

import wire
from kit import Mismatch, document, same, waits
from platform_run import CLOCKED, Instance, PlatformRun, PlatformUnderTest


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
        run.issue(b"precious")
        first = instance.catch()
        second = instance.park() if parked else None
        instance.close(first, reset=True)
        same(b"precious", instance.fetch(second).body)
        run.finish(instance)


def test_any_poll_reset__result(pull_platform: PlatformUnderTest) -> None:
    """A client that has read the event, and then resets, may still give the result."""
    with pull_platform.used_run() as run:
        instance = run.idle_one()
        run.issue(b"precious")
        instance.close(instance.catch(), reset=True)
        run.settle()
        run.finish(instance)


# ---- scf ----


def test_scf_env_handler(platform: PlatformUnderTest) -> None:
    """_HANDLER is index.main_handler where none is configured."""
    with platform.fetched() as instance:
        same("index.main_handler", instance.environ["_HANDLER"])


def test_scf_next_headers(platform: PlatformUnderTest) -> None:
    """The event comes with its id, the memory in MB and the time limit in ms."""
    with platform.used_run("--memory", "256", "--timeout", "5.5") as run:
        instance = run.fetched()
        same((["256"], ["5500"]), tuple(instance.got.values(name) for name in (
            "Memory_Limit_In_Mb", "Time_Limit_In_Ms")))
        same([run.finish(instance).request_id], instance.got.values("Request_Id"))


@waits
def test_any_limits_clock__scf(platform: PlatformUnderTest) -> None:
    """The clock runs from the issue, not from the fetch."""
    with platform.used_run(*CLOCKED) as run:
        instance = run.ready()
        run.wait(1.5)
        instance.fetch()
        times_out_soon(run, instance)


@waits
def test_any_limits_clock__scf_refetch(platform: PlatformUnderTest) -> None:
    """Fetching again does not start the clock again."""
    with platform.running(*CLOCKED) as (run, instance):
        for _ in range(2):
            run.wait(0.75)
            instance.fetch()
        times_out_soon(run, instance)


@pytest.mark.parametrize("body", [b"", b'{"ready": false}', b"x" * 900])
def test_scf_ready_first(platform: PlatformUnderTest, body: bytes) -> None:
    """The first `ready` ends the initialisation, whatever it says; more of them change
    nothing."""
    with platform.used_run() as run:
        instance = run.starting()
        for _ in range(5):
            reply = instance.ready(body)
            same((200, b""), (reply.status, reply.body), "the answer")
        instance.fetch()
        run.finish(instance)


def test_scf_next_same_event(platform: PlatformUnderTest) -> None:
    """Each further `next` brings the same body and fields, on one connection or more."""
    with platform.used_run() as run:
        instance = run.ready(b"\0 once more")
        first = instance.fetch()
        for _ in range(6):
            again = instance.fetch()
            same((first.body, sorted(first.headers)), (again.body, sorted(again.headers)))
        run.finish(instance)


@waits
def test_scf_next_same_event__held(platform: PlatformUnderTest) -> None:
    """All of several polls that are held get the event when it is issued."""
    with platform.used_run() as run:
        instance = run.idle_one()
        polls = [instance.park() for _ in range(3)]
        run.settle()
        run.issue(b"for all")
        for number in polls:
            same(b"for all", instance.fetch(number).body)
        run.finish(instance)


# ---- fg ----


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
        seen = document(reply.body)
        same([str, str], [type(seen.get(name)) for name in ("error_code", "error_msg")])


def test_fg_request_blocks__one(platform: PlatformUnderTest) -> None:
    """One of several held polls gets the event, and the next event another one."""
    with platform.used_run() as run:
        instance = run.idle_one()
        polls = [instance.park() for _ in range(3)]
        run.settle()
        for event in (b"first", b"second", b"third"):
            run.issue(event)
            run.settle()
            replies = [(number, instance.read(number, 0.3)) for number in polls]
            served = [one for one in replies if one[1].start and one[1].status != 204]
            is_empty = any(one.status == 204 for _, one in replies)
            if is_empty and not served:  # it may do so [fg.request.empty]
                instance.fetch()
            else:
                same([(200, event)], [(one.status, one.body) for _, one in served],
                     "answers to the polls")
                polls.remove(served[0][0])
                instance.close(served[0][0])
                instance.request_id = served[0][1].header("X-Cff-Request-Id") or ""
            run.finish(instance)
            if is_empty:
                return


def test_fg_request_empty(platform: PlatformUnderTest) -> None:
    """Where a poll is answered without an event, it is by 204, no body and no id."""
    with platform.used_run() as run:
        run.idle = run.idle_one()
        number = run.idle.park()
        reply = run.idle.read(number, run.implementation.hold_s / 2)
        run.idle.close(number)
        if reply.start:
            same((204, b"", None),
                 (reply.status, reply.body, reply.header("x-cff-request-id")))


@waits
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


@pytest.mark.parametrize("kind,body", [("error", b""), ("response", b"x")])
def test_fg_result_unknown_id__form(platform: PlatformUnderTest, kind: str,
                                     body: bytes) -> None:
    """A wrong id is one, too, that begins or ends like the right one, or contains it."""
    with platform.running() as (run, instance):
        for wrong in ("x" + instance.request_id, instance.request_id + "x",
                      instance.request_id[:-1], instance.request_id.upper() + "X",
                      instance.request_id + "/", instance.request_id.swapcase()):
            if wrong == instance.request_id:
                continue  # it has no letters
            path = instance.result_path(kind, wrong)
            reply = instance.ask(wire.request_bytes("POST", path, (), body))
            same(404, reply.status, f"status for {wrong}")
        run.finish(instance)
