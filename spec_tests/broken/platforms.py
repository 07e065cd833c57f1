#!/usr/bin/env python3
# platforms.py: platforms that break one rule each (MIT).
"""Run a broken platform: `python3 spec_tests/broken/platforms.py NAME P CODE …`.

NAME is that of a function below, which changes one thing in the emulator before it
runs; `correct` changes nothing. Most of them change one row of a table.
"""

import os
import pathlib
import sys
from typing import Callable, Dict, Optional, Tuple

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "reference"))

import emulator  # noqa: E402
from emulator import Field, Row  # noqa: E402

Break = Callable[[], None]
BROKEN: Dict[str, Tuple[str, str, Break]] = {}  # name -> protocol, rule, what to do


def breaks(protocol: str, rule: str, change: Break) -> None:
    """Enter a change into the table under the rule that it breaks."""
    BROKEN[change.__name__] = (protocol, rule, change)


def correct() -> None:
    """Change nothing."""


def row(protocol: str, state: str, call: str, action: str, after: str) -> None:
    """Let a call in a state mean something else."""
    old = emulator.STATES[protocol][state, call]
    emulator.STATES[protocol][state, call] = Row(action, after, old.rule)


def without(table: Dict[str, Tuple[Field, ...]], protocol: str, name: str,
            *more: Field) -> None:
    """Take a field or a variable away, or put another one in its place."""
    table[protocol] = tuple(field for field in table[protocol]
                            if field.name != name) + more


# ---- scf: the states table ----


def next_means_ready() -> None:
    row("scf", "starting", "next", "hold", "idle")


def repeated_ready_is_refused() -> None:
    for state in ("idle", "issued", "running", "stopping"):
        row("scf", state, "ready", "refuse", state)


def repeated_next_is_held() -> None:
    row("scf", "running", "next", "hold", "running")


def late_result_is_refused() -> None:
    for call in ("response", "error"):
        row("scf", "idle", call, "refuse", "idle")


def early_result_is_refused() -> None:
    row("scf", "starting", "response", "refuse", "starting")


def unfetched_result_counts() -> None:
    row("scf", "issued", "response", "finish", "idle")


def error_is_a_result() -> None:
    row("scf", "running", "error", "finish", "idle")


def any_size_will_do() -> None:
    row("scf", "running", "oversize", "finish", "idle")


for rule, change in [("scf.next.blocks", next_means_ready),
                     ("scf.ready.repeat", repeated_ready_is_refused),
                     ("scf.next.same-event", repeated_next_is_held),
                     ("scf.result.locked", late_result_is_refused),
                     ("scf.result.locked", early_result_is_refused),
                     ("scf.result.locked", unfetched_result_counts),
                     ("any.result.outcome", error_is_a_result),
                     ("any.result.size", any_size_will_do)]:
    breaks("scf", rule, change)


# ---- fg: the states table ----


def any_id_is_right() -> None:
    for call, action in (("stray", "finish"), ("oversize", "overflow")):
        row("fg", "running", call, action, "idle")


def unknown_id_is_ignored() -> None:
    for state in ("starting", "idle", "issued", "running", "stopping"):
        row("fg", state, "stray", "ignore", state)


def second_poll_gets_the_event() -> None:
    row("fg", "running", "request", "deliver", "running")


def error_is_a_result_fg() -> None:
    row("fg", "running", "error", "finish", "idle")


def all_polls_get_the_event() -> None:
    emulator.POLLS_SHARE_EVENT["fg"] = True


for rule, change in [("fg.result.unknown-id", any_id_is_right),
                     ("fg.result.unknown-id", unknown_id_is_ignored),
                     ("fg.request.blocks", second_poll_gets_the_event),
                     ("any.result.outcome", error_is_a_result_fg),
                     ("fg.request.blocks", all_polls_get_the_event)]:
    breaks("fg", rule, change)


# ---- fields and variables ----


def memory_in_bytes() -> None:
    without(emulator.HEADERS, "scf", "Memory_Limit_In_Mb",
            Field("Memory_Limit_In_Mb", "{memory_mb}000000"))


def no_handler_variable() -> None:
    without(emulator.ENVIRONMENT, "scf", "_HANDLER")


def host_name_as_address() -> None:
    without(emulator.ENVIRONMENT, "scf", "SCF_RUNTIME_API",
            Field("SCF_RUNTIME_API", "localhost"))


def two_id_fields() -> None:
    without(emulator.HEADERS, "fg", "", Field("X-Cff-Request-Id", "another"))


def no_invoke_type() -> None:
    without(emulator.HEADERS, "fg", "X-CFF-Invoke-Type")


def timeout_in_ms() -> None:
    without(emulator.ENVIRONMENT, "fg", "RUNTIME_TIMEOUT",
            Field("RUNTIME_TIMEOUT", "{timeout_ms}"))


def no_user_data() -> None:
    without(emulator.ENVIRONMENT, "fg", "RUNTIME_USERDATA",
            Field("RUNTIME_USERDATA", "none"))


def credentials_for_all() -> None:
    without(emulator.HEADERS, "fg", "", Field("X-CFF-Access-Key", "everybody"))


def no_control_path() -> None:
    emulator.HEADERS["fc"] = tuple(
        field._replace(name="X-Fc-Path") if field.name == "X-Fc-Control-Path" else field
        for field in emulator.HEADERS["fc"])


def no_region() -> None:
    without(emulator.HEADERS, "fc", "X-Fc-Region")


def one_port_variable() -> None:
    without(emulator.ENVIRONMENT, "fc", "FC_CUSTOM_LISTEN_PORT",
            Field("FC_CUSTOM_LISTEN_PORT", "9000"))


for protocol, rule, change in [
        ("scf", "scf.next.headers", memory_in_bytes),
        ("scf", "scf.env.handler", no_handler_variable),
        ("scf", "scf.env.api", host_name_as_address),
        ("fg", "fg.request.headers", two_id_fields),
        ("fg", "fg.request.headers", no_invoke_type),
        ("fg", "fg.env.table", timeout_in_ms), ("fg", "fg.env.table", no_user_data),
        ("fg", "any.credentials.role", credentials_for_all),
        ("fc", "fc.invoke.control-path", no_control_path),
        ("fc", "fc.headers.common", no_region),
        ("fc", "fc.env.port", one_port_variable)]:
    breaks(protocol, rule, change)


# ---- outcomes, processes, HTTP ----


def replace(owner: object, name: str, function: object) -> None:
    """Put another function in the place of one of the emulator's."""
    assert hasattr(owner, name)
    setattr(owner, name, function)


def not_fetched_is_timeout() -> None:
    emulator.ON_TIME["issued"] = "timeout"


def exit_is_an_error() -> None:
    emulator.ON_EXIT["running"] = "function-error"


def dead_polls_get_events() -> None:
    replace(emulator.Stream, "peek", lambda self: None)
    replace(emulator.PullInstance, "gone", lambda self, connection: False)


def kills_the_leader_alone() -> None:
    def kill(self: emulator.Process, number: int) -> None:
        if not self.exited.is_set():
            os.kill(self.pid, number)

    replace(emulator.Process, "signal", kill)


def hands_on_its_environment() -> None:
    emulator.INHERITED.update({name: "" for name in os.environ})


def takes_any_variable() -> None:
    replace(emulator, "check_env", lambda protocol, env: dict(env))


def takes_two_lengths() -> None:
    strict = emulator.body_length

    def lenient(table: Dict[str, str]) -> Optional[int]:
        if "transfer-encoding" in table:
            table = {"transfer-encoding": table["transfer-encoding"]}
        return strict(table)

    replace(emulator, "body_length", lenient)


def never_continues() -> None:
    get = emulator.Message.get
    replace(emulator.Message, "get",
            lambda self, name: "" if name == "expect" else get(self, name))


def waits_for_ever() -> None:
    emulator.ON_TIME["running"] = "function-error"


for protocol, rule, change in [
        ("scf", "any.event.timeout", not_fetched_is_timeout),
        ("fg", "any.outcome.exit", exit_is_an_error),
        ("fg", "any.poll.dead", dead_polls_get_events),
        ("scf", "any.process.group", kills_the_leader_alone),
        ("scf", "any.env.inherited", hands_on_its_environment),
        ("fg", "any.env.names", takes_any_variable),
        ("fg", "any.http.framing", takes_two_lengths),
        ("scf", "any.http.continue", never_continues),
        ("fg", "any.event.timeout", waits_for_ever)]:
    breaks(protocol, rule, change)


# ---- fc ----


def status_wins() -> None:
    replace(emulator, "judge_answer", lambda is_http, status, field:
            "function-error" if status == 404 and not is_http else "ok")


def every_4xx_is_an_error() -> None:
    replace(emulator, "judge_answer", lambda is_http, status, field:
            "function-error" if field == "404" or not field and not is_http
            and status >= 400 else "ok")


def not_found_is_an_error() -> None:
    replace(emulator, "judge_answer", lambda is_http, status, field:
            "function-error" if "404" in (field, str(status)) and field != "200"
            else "ok")


def hooks_always_succeed() -> None:
    replace(emulator, "judge_hook", lambda status: "done")


def hooks_must_say_200() -> None:
    replace(emulator, "judge_hook",
            lambda status: "done" if status == 200 else "failed")


def passes_every_field() -> None:
    replace(emulator, "pass_fields", lambda fields, dropped: list(fields))


def never_freezes() -> None:
    replace(emulator.PushInstance, "_freeze", lambda self: None)


def loopback_will_do() -> None:
    replace(emulator, "reachable_host", lambda: "127.0.0.1")


def any_path_will_do() -> None:
    replace(emulator, "http_problem", lambda request, function: "")


def sends_all_at_once() -> None:
    move = emulator.PushSession.move

    def admit(self: emulator.PushSession, call: str) -> str:
        self.concurrency = 200
        return move(self, call)

    replace(emulator.PushSession, "move", admit)
    replace(emulator.PushInstance, "has_room", lambda self: True)


for rule, change in [("fc.answer.outcome", status_wins),
                     ("fc.answer.outcome", every_4xx_is_an_error),
                     ("fc.answer.outcome", not_found_is_an_error),
                     ("fc.initialize.failed", hooks_always_succeed),
                     ("fc.hook.success", hooks_must_say_200),
                     ("fc.headers.reserved-response", passes_every_field),
                     ("fc.freeze.idle", never_freezes),
                     ("fc.start.probe", loopback_will_do),
                     ("fc.limits.request", any_path_will_do),
                     ("fc.concurrency.limit", sends_all_at_once)]:
    breaks("fc", rule, change)


def main() -> int:
    """Be the one that the command line names; return the exit status."""
    changes = {name: entry[2] for name, entry in BROKEN.items()}
    changes.get(sys.argv[1], correct)()
    return emulator.main(sys.argv[2:])


if __name__ == "__main__":
    sys.exit(main())
