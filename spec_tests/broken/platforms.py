#!/usr/bin/env python3
# platforms.py: platforms that break one rule each (MIT).
"""Run a broken platform: `python3 spec_tests/broken/platforms.py NAME P CODE …`.

NAME is in the table below, which is filled bit by bit: it gets the platform file of the
protocol, a module of reference/, and changes one thing in it before it runs: a row of a
table, what a function judges, or a step on the wire. `correct` changes nothing.
"""

from __future__ import annotations

import functools
import inspect
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
from typing import Any, Callable, Dict, Tuple

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "reference"), str(ROOT / "spec_tests")]

import emulator  # noqa: E402
from broken.edited_platforms import EDITED, UNUSUAL  # noqa: E402
import fc_platform  # noqa: E402
import fg_platform  # noqa: E402
import scf_platform  # noqa: E402

PLATFORMS: Dict[str, Any] = {"fc": fc_platform, "scf": scf_platform, "fg": fg_platform}
IN_THE_TOOL = ("sends_all_at_once", "no_code_folder_fc", "no_code_folder_scf",
               "no_code_folder_fg",  # what the small ones do not try
               *(name for name, protocol, *_ in EDITED if protocol.endswith("!")))
Change = Callable[[Any], object]
BROKEN: Dict[str, Tuple[str, str, Change]] = {}  # name -> protocol, rule, what to do


def breaks(name: str, protocol: str, rule: str, change: Change) -> None:
    """Enter a platform into the table: the rule that it breaks, and by what change."""
    BROKEN[name] = protocol, rule, change


# ---- tables ----


def row(states: str, call: str, action: str, after: str = "") -> Change:
    """Let a call in these states mean something else."""
    def change(platform: Any) -> None:
        platform.REFUSALS.setdefault("refuse", (404, "not now"))  # scf refuses nothing
        for state in states.split():
            platform.STATES[state, call] = platform.STATES[state, call]._replace(
                action=action, state=after or state)

    return change


def field(table: str, name: str, *instead: Tuple[str, str]) -> Change:
    """Take a header field or a variable away, or put others in its place."""
    return lambda platform: setattr(platform, table, (
        *(one for one in getattr(platform, table) if one.name != name),
        *(platform.Field(*one) for one in instead)))


def put(name: str, value: object) -> Change:
    """Let a name of the platform stand for something else."""
    return lambda platform: setattr(platform, name, value)


def edit(*pairs: str, program: Any = None) -> Change:
    """Run those definitions of a platform file, or of that program, once more that have
    other words in some places; all of them would take ten times as long."""
    def change(platform: Any) -> None:
        file = program or platform
        before = after = re.split(r"(?m)^(?=\w)", inspect.getsource(file))
        for words, others in zip(pairs[::2], pairs[1::2]):
            if sum(block.count(words) for block in after) != 1:
                raise LookupError(f"{file.__name__} has not once {words!r}")
            after = [block.replace(words, others) for block in after]
        for block, other in zip(before, after):
            if block != other:
                exec(compile(other, file.__file__, "exec"), vars(file))

    return change


def both(*changes: Change) -> Change:
    """Make more than one change."""
    return lambda platform: [change(platform) for change in changes]


STATES = "starting idle issued running stopping"
breaks("next_means_ready", "scf", "scf.next.blocks",
       row("starting", "next", "hold", "idle"))
breaks("repeated_ready_is_refused", "scf", "scf.ready.repeat",
       row("idle issued running stopping", "ready", "refuse"))
breaks("repeated_next_is_held", "scf", "scf.next.same-event",
       row("running", "next", "hold"))
breaks("late_result_is_refused", "scf", "scf.result.locked", both(
    row("idle", "response", "refuse"), row("idle", "error", "refuse")))
breaks("early_result_is_refused", "scf", "scf.result.locked",
       row("starting", "response", "refuse"))
breaks("unfetched_result_counts", "scf", "scf.result.locked",
       row("issued", "response", "finish", "idle"))
breaks("error_is_a_result", "scf", "any.result.outcome",
       row("running", "error", "finish", "idle"))
breaks("error_is_a_result_fg", "fg", "any.result.outcome",
       row("running", "error", "finish", "idle"))
breaks("any_size_will_do", "scf", "any.result.size",
       row("running", "oversize", "finish", "idle"))
breaks("any_id_is_right", "fg", "fg.result.unknown-id", both(
    row("running", "stray", "finish", "idle"),
    row("running", "oversize", "overflow", "idle")))
breaks("unknown_id_is_ignored", "fg", "fg.result.unknown-id",
       row(STATES, "stray", "ignore"))
breaks("second_poll_gets_the_event", "fg", "fg.request.blocks",
       row("running", "request", "deliver"))
breaks("not_fetched_is_timeout", "scf", "any.event.timeout",
       lambda platform: platform.ON_TIME.update(issued="timeout"))
breaks("timeout_is_an_error", "fg", "any.event.timeout",
       lambda platform: platform.ON_TIME.update(running="function-error"))
breaks("exit_is_an_error", "fg", "any.outcome.exit",
       lambda platform: platform.ON_EXIT.update(running="function-error"))
breaks("memory_in_bytes", "scf", "scf.next.headers", field(
    "HEADERS", "Memory_Limit_In_Mb", ("Memory_Limit_In_Mb", "{memory_mb}000000")))
breaks("no_handler_variable", "scf", "scf.env.handler",
       field("ENVIRONMENT", "_HANDLER"))
breaks("host_name_as_address", "scf", "scf.env.api", field(
    "ENVIRONMENT", "SCF_RUNTIME_API", ("SCF_RUNTIME_API", "localhost")))
breaks("two_id_fields", "fg", "fg.request.headers",
       field("HEADERS", "", ("X-Cff-Request-Id", "another")))
breaks("no_invoke_type", "fg", "fg.request.headers",
       field("HEADERS", "X-CFF-Invoke-Type"))
breaks("timeout_in_ms", "fg", "fg.env.table", field(
    "ENVIRONMENT", "RUNTIME_TIMEOUT", ("RUNTIME_TIMEOUT", "{timeout_whole_s}000")))
breaks("no_user_data", "fg", "fg.env.table", field(
    "ENVIRONMENT", "RUNTIME_USERDATA", ("RUNTIME_USERDATA", "none")))
breaks("credentials_for_all", "fg", "any.credentials.role",
       field("HEADERS", "", ("X-CFF-Access-Key", "everybody")))
breaks("no_control_path", "fc", "fc.invoke.control-path",
       field("HEADERS", "X-Fc-Control-Path", ("X-Fc-Path", "{control_path}")))
breaks("no_region", "fc", "fc.headers.common", field("HEADERS", "X-Fc-Region"))
breaks("names_itself_as_caller", "fc", "fc.headers.forwarded",
       field("HEADERS", "", ("X-Forwarded-For", "127.0.0.1")))
breaks("one_port_variable", "fc", "fc.env.port", field(
    "ENVIRONMENT", "FC_CUSTOM_LISTEN_PORT", ("FC_CUSTOM_LISTEN_PORT", "9000")))
for protocol in PLATFORMS:
    breaks("no_code_folder_" + protocol, protocol, "any.start.code-folder",
           put("CODE_ROOT", "/nowhere"))
breaks("hands_on_its_environment", "scf", "any.env.inherited",
       lambda platform: platform.INHERITED.update(dict.fromkeys(os.environ, "")))

# ---- what is judged ----


def sends_all_at_once(_: Any) -> None:
    if "--concurrency" in sys.argv[:-1]:
        place = sys.argv.index("--concurrency") + 1
        sys.argv[place] = sys.argv[place].replace("2", "3")


breaks("takes_any_variable", "fg", "any.env.names", put("check_env", lambda env: None))
breaks("status_wins", "fc", "fc.answer.outcome", put(
    "judge_answer", lambda is_http, status, field:
    "function-error" if status == 404 and not is_http else "ok"))
breaks("every_4xx_is_an_error", "fc", "fc.answer.outcome", put(
    "judge_answer", lambda is_http, status, field: "function-error" if field == "404"
    or not field and not is_http and status >= 400 else "ok"))
breaks("not_found_is_an_error", "fc", "fc.answer.outcome", put(
    "judge_answer", lambda is_http, status, field: "function-error"
    if "404" in (field, str(status)) and field != "200" else "ok"))
breaks("hooks_always_succeed", "fc", "fc.initialize.failed",
       put("judge_hook", lambda status: "done"))
breaks("hooks_must_say_200", "fc", "fc.hook.success",
       put("judge_hook", lambda status: "done" if status == 200 else "failed"))
breaks("passes_every_field", "fc", "fc.headers.reserved-response",
       put("pass_fields", lambda fields, dropped: list(fields)))
breaks("any_path_will_do", "fc", "fc.limits.request",
       put("request_problem", lambda function, target, headers: ""))
breaks("sends_all_at_once", "fc", "fc.concurrency.limit", sends_all_at_once)

# ---- the process ----


def step(path: str, instead: Callable[..., object]) -> Change:
    """Have a method done by another function, which gets the old one first."""
    owner, _, name = path.partition(".")

    def change(platform: Any) -> None:
        old = getattr(getattr(platform, owner), name)
        setattr(getattr(platform, owner), name,
                lambda *arguments: instead(old, *arguments))

    return change


def served_before(answer: bool) -> Change:
    """Have every instance say this of itself."""
    return lambda platform: setattr(platform.Instance, "has_served", property(
        lambda _: answer, lambda *_: None))


def no_group_is_there(old: Any, group: int, number: int) -> None:
    if not number:
        raise ProcessLookupError
    old(group, number)


def without_stderr(popen: Any, *words: Any, **settings: Any) -> Any:
    return popen(*words, **dict(settings, stderr=subprocess.DEVNULL))


def receive_late(receive: Any, self: Any, call: str, *arguments: object) -> object:
    time.sleep(0.05 * (call == "response"))
    if self.process.poll() is not None:
        raise OSError
    return receive(self, call, *arguments)


def forget_the_last(exchange: Any, self: Any, *arguments: object) -> object:
    answer = exchange(self, *arguments)
    if self.ended.wait(0.05):
        raise fc_platform.Failure("exit", "the end was faster")
    return answer


breaks("wants_a_first_line", "fg", "fg.start.shell",
       put("SHELL_SCRIPT", re.compile(rb"(?!)")))
breaks("kills_the_leader_alone", "scf", "any.process.group",
       lambda platform: setattr(os, "killpg", os.kill))
breaks("no_grace_for_children", "scf", "any.stop.order",
       step("os.killpg", no_group_is_there))
breaks("no_grace_for_children_fc", "fc", "any.stop.order",
       step("os.killpg", no_group_is_there))
breaks("never_freezes", "fc", "fc.freeze.idle", step(
    "os.killpg", lambda old, group, number:
    number == signal.SIGSTOP or old(group, number)))
breaks("unfetched_is_lost", "scf", "any.event.requeue", served_before(False))
breaks("starts_for_ever", "scf", "any.event.requeue", served_before(True))
breaks("loses_stderr", "scf", "any.log.streams", lambda platform: setattr(
    subprocess, "Popen", functools.partial(without_stderr, subprocess.Popen)))
breaks("last_results_do_not_count", "fg", "any.result.first",
       step("Instance.receive", receive_late))
breaks("last_answers_do_not_count", "fc", "any.result.first",
       step("Platform.exchange", forget_the_last))

# ---- the wire: what http.server has, as far as it goes ----


def look_and_answer(answer: Any, self: Any, *arguments: object) -> None:
    """Close the connection behind an answer that something came before."""
    self.connection.setblocking(False)
    try:
        self.close_connection = self.close_connection or bool(self.rfile.peek(1))
    except OSError:
        pass
    finally:
        self.connection.setblocking(True)
    answer(self, *arguments)


def handle_whole_heads(handle: Any, self: Any) -> None:
    if b"\r\n\r\n" in (self.rfile.peek(1) or b"\r\n\r\n"):
        handle(self)
    else:
        self.close_connection = True


def forget_one_length(parse: Any, self: Any) -> object:
    is_parsed: object = parse(self)
    if "transfer-encoding" in self.headers:
        del self.headers["content-length"]
    return is_parsed


def refuse_large_results(parse: Any, self: Any) -> object:
    is_parsed: object = parse(self)
    if len(self.headers.get("content-length", "")) > 6:
        self.send_error(413)
        raise OSError
    return is_parsed


def block(answer: Any, self: Any, *arguments: object) -> object:
    with getattr(self.server, "instance", self.server).changed:
        return answer(self, *arguments)


def dial_with_limit(dial: Any, self: Any, deadline: float) -> Any:
    connection = dial(self, deadline)
    connection.sock.settimeout(self.function.timeout_s)
    return connection


for suffix, protocol in (("", "scf"), ("_fg", "fg")):
    breaks("dead_polls_get_events" + suffix, protocol, "any.poll.dead",
           step("Session.delivered", lambda delivered, self, request_id, reached:
                delivered(self, request_id, True)))
breaks("reset_polls_keep_events", "fg", "any.poll.reset",
       step("Session.reset", lambda reset, self, request_id: None))
breaks("reset_is_a_refetch", "fg", "any.poll.reset", step(
    "Session.reset", lambda reset, self, request_id: setattr(self, "state", "issued")))
breaks("drops_what_comes_early", "scf", "any.http.reuse",
       step("RuntimeApi.answer", look_and_answer))
breaks("wants_heads_at_once", "scf", "any.limits.slow",
       step("RuntimeApi.handle_one_request", handle_whole_heads))
breaks("takes_two_lengths", "fg", "any.http.framing",
       step("RuntimeApi.parse_request", forget_one_length))
breaks("reads_no_large_results", "fg", "any.result.size",
       step("RuntimeApi.parse_request", refuse_large_results))
breaks("never_continues", "scf", "any.http.continue",
       step("RuntimeApi.handle_expect_100", lambda old, self: True))
breaks("takes_what_no_client_sends", "fg", "any.http.malformed",
       put("HEAD", re.compile(rb"(?s).*")))  # http.server alone lets much pass
breaks("has_no_time_for_slow_readers", "scf", "any.event.bytes",
       lambda platform: setattr(platform.RuntimeApi, "timeout", 0.15))
breaks("writes_and_forgets_the_time", "fg", "any.event.timeout",
       step("RuntimeApi.answer", block))
breaks("each_byte_gives_more_time", "fc", "any.event.timeout", both(
    step("Platform.dial", dial_with_limit),
    lambda platform: setattr(threading.Timer, "start", lambda self: None)))
breaks("loopback_will_do", "fc", "fc.start.probe", put("HOST", "127.0.0.1"))


for name, protocol, rule, *pairs in EDITED:
    breaks(name, protocol.rstrip("!"), rule, edit(
        *pairs, program=emulator if protocol.endswith("!") else None))


def main() -> int:
    """Be the one that the command line names; return the exit status."""
    name, protocol = sys.argv[1:3]
    del sys.argv[1]  # the platform reads the rest
    if name in BROKEN:
        BROKEN[name][2](PLATFORMS[protocol])
    pairs = [word for one in UNUSUAL if one[0] in name.split("+") for word in one[3:]]
    if pairs:  # else what is broken would be whole again
        edit(*pairs)(PLATFORMS[protocol])
    program: Any = emulator if name in IN_THE_TOOL else PLATFORMS[protocol]
    status: int = program.main()
    return status


if __name__ == "__main__":
    sys.exit(main())
