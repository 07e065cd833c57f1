#!/usr/bin/env python3
# platforms.py: platforms that break one rule each (MIT).
"""Run a broken platform: `python3 spec_tests/broken/platforms.py NAME P CODE …`.

NAME is that of a function below. It gets the platform file of the protocol, a module
of reference/, and changes one thing in it before it runs: a row of a table, what a
function judges, or a step on the wire. `correct` changes nothing.
"""

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
sys.path.insert(0, str(ROOT / "reference"))

import emulator  # noqa: E402
import fc_platform  # noqa: E402
import fg_platform  # noqa: E402
import scf_platform  # noqa: E402

PLATFORMS: Dict[str, Any] = {"fc": fc_platform, "scf": scf_platform, "fg": fg_platform}
IN_THE_TOOL = ("sends_all_at_once",)  # the small one sends one at a time
Change = Callable[[Any], object]
BROKEN: Dict[str, Tuple[str, str, Change]] = {}  # name -> protocol, rule, what to do


def breaks(*entries: Tuple[str, str, Change]) -> None:
    """Enter changes into the table: protocol, the rule that is broken, what to do."""
    for protocol, rule, change in entries:
        name = change.__name__
        name += "_" + protocol if name in BROKEN else ""
        BROKEN[name] = protocol, rule, change


def correct(_: Any) -> None:
    """Change nothing."""


# ---- tables ----


def row(platform: Any, state: str, call: str, action: str, after: str) -> None:
    """Let a call in a state mean something else."""
    platform.STATES[state, call] = platform.STATES[state, call]._replace(
        action=action, state=after)


def field(platform: Any, table: str, name: str, *instead: Tuple[str, str]) -> None:
    """Take a header field or a variable away, or put others in its place."""
    kept = [one for one in getattr(platform, table) if one.name != name]
    setattr(platform, table, (*kept, *(platform.Field(*one) for one in instead)))


def next_means_ready(platform: Any) -> None:
    row(platform, "starting", "next", "hold", "idle")


def repeated_ready_is_refused(platform: Any) -> None:
    for state in ("idle", "issued", "running", "stopping"):
        row(platform, state, "ready", "refuse", state)


def repeated_next_is_held(platform: Any) -> None:
    row(platform, "running", "next", "hold", "running")


def late_result_is_refused(platform: Any) -> None:
    for call in ("response", "error"):
        row(platform, "idle", call, "refuse", "idle")


def early_result_is_refused(platform: Any) -> None:
    row(platform, "starting", "response", "refuse", "starting")


def unfetched_result_counts(platform: Any) -> None:
    row(platform, "issued", "response", "finish", "idle")


def error_is_a_result(platform: Any) -> None:
    row(platform, "running", "error", "finish", "idle")


def any_size_will_do(platform: Any) -> None:
    row(platform, "running", "oversize", "finish", "idle")


def any_id_is_right(platform: Any) -> None:
    for call, action in (("stray", "finish"), ("oversize", "overflow")):
        row(platform, "running", call, action, "idle")


def unknown_id_is_ignored(platform: Any) -> None:
    for state in ("starting", "idle", "issued", "running", "stopping"):
        row(platform, state, "stray", "ignore", state)


def second_poll_gets_the_event(platform: Any) -> None:
    row(platform, "running", "request", "deliver", "running")


def not_fetched_is_timeout(platform: Any) -> None:
    platform.ON_TIME["issued"] = "timeout"


def timeout_is_an_error(platform: Any) -> None:
    platform.ON_TIME["running"] = "function-error"


def exit_is_an_error(platform: Any) -> None:
    platform.ON_EXIT["running"] = "function-error"


def memory_in_bytes(platform: Any) -> None:
    field(platform, "HEADERS", "Memory_Limit_In_Mb",
          ("Memory_Limit_In_Mb", "{memory_mb}000000"))


def no_handler_variable(platform: Any) -> None:
    field(platform, "ENVIRONMENT", "_HANDLER")


def host_name_as_address(platform: Any) -> None:
    field(platform, "ENVIRONMENT", "SCF_RUNTIME_API", ("SCF_RUNTIME_API", "localhost"))


def two_id_fields(platform: Any) -> None:
    field(platform, "HEADERS", "", ("X-Cff-Request-Id", "another"))


def no_invoke_type(platform: Any) -> None:
    field(platform, "HEADERS", "X-CFF-Invoke-Type")


def timeout_in_ms(platform: Any) -> None:
    field(platform, "ENVIRONMENT", "RUNTIME_TIMEOUT",
          ("RUNTIME_TIMEOUT", "{timeout_whole_s}000"))


def no_user_data(platform: Any) -> None:
    field(platform, "ENVIRONMENT", "RUNTIME_USERDATA", ("RUNTIME_USERDATA", "none"))


def credentials_for_all(platform: Any) -> None:
    field(platform, "HEADERS", "", ("X-CFF-Access-Key", "everybody"))


def no_control_path(platform: Any) -> None:
    field(platform, "HEADERS", "X-Fc-Control-Path", ("X-Fc-Path", "{control_path}"))


def no_region(platform: Any) -> None:
    field(platform, "HEADERS", "X-Fc-Region")


def one_port_variable(platform: Any) -> None:
    field(platform, "ENVIRONMENT", "FC_CUSTOM_LISTEN_PORT",
          ("FC_CUSTOM_LISTEN_PORT", "9000"))


def hands_on_its_environment(platform: Any) -> None:
    platform.INHERITED.update({name: "" for name in os.environ})


breaks(("scf", "scf.next.blocks", next_means_ready),
       ("scf", "scf.ready.repeat", repeated_ready_is_refused),
       ("scf", "scf.next.same-event", repeated_next_is_held),
       ("scf", "scf.result.locked", late_result_is_refused),
       ("scf", "scf.result.locked", early_result_is_refused),
       ("scf", "scf.result.locked", unfetched_result_counts),
       ("scf", "any.result.outcome", error_is_a_result),
       ("fg", "any.result.outcome", error_is_a_result),
       ("scf", "any.result.size", any_size_will_do),
       ("fg", "fg.result.unknown-id", any_id_is_right),
       ("fg", "fg.result.unknown-id", unknown_id_is_ignored),
       ("fg", "fg.request.blocks", second_poll_gets_the_event),
       ("scf", "any.event.timeout", not_fetched_is_timeout),
       ("fg", "any.event.timeout", timeout_is_an_error),
       ("fg", "any.outcome.exit", exit_is_an_error),
       ("scf", "scf.next.headers", memory_in_bytes),
       ("scf", "scf.env.handler", no_handler_variable),
       ("scf", "scf.env.api", host_name_as_address),
       ("fg", "fg.request.headers", two_id_fields),
       ("fg", "fg.request.headers", no_invoke_type),
       ("fg", "fg.env.table", timeout_in_ms), ("fg", "fg.env.table", no_user_data),
       ("fg", "any.credentials.role", credentials_for_all),
       ("fc", "fc.invoke.control-path", no_control_path),
       ("fc", "fc.headers.common", no_region), ("fc", "fc.env.port", one_port_variable),
       ("scf", "any.env.inherited", hands_on_its_environment))


# ---- what is judged ----


def takes_any_variable(platform: Any) -> None:
    platform.check_env = lambda env: None


def status_wins(platform: Any) -> None:
    platform.judge_answer = lambda is_http, status, field: \
        "function-error" if status == 404 and not is_http else "ok"


def every_4xx_is_an_error(platform: Any) -> None:
    platform.judge_answer = lambda is_http, status, field: \
        "function-error" if field == "404" or not field and not is_http \
        and status >= 400 else "ok"


def not_found_is_an_error(platform: Any) -> None:
    platform.judge_answer = lambda is_http, status, field: \
        "function-error" if "404" in (field, str(status)) and field != "200" else "ok"


def hooks_always_succeed(platform: Any) -> None:
    platform.judge_hook = lambda status: "done"


def hooks_must_say_200(platform: Any) -> None:
    platform.judge_hook = lambda status: "done" if status == 200 else "failed"


def passes_every_field(platform: Any) -> None:
    platform.pass_fields = lambda fields, dropped: list(fields)


def any_path_will_do(platform: Any) -> None:
    platform.request_problem = lambda function, target, headers: ""


def sends_all_at_once(_: Any) -> None:
    if "--concurrency" in sys.argv[:-1]:
        place = sys.argv.index("--concurrency") + 1
        sys.argv[place] = sys.argv[place].replace("2", "3")


breaks(("fg", "any.env.names", takes_any_variable),
       ("fc", "fc.answer.outcome", status_wins),
       ("fc", "fc.answer.outcome", every_4xx_is_an_error),
       ("fc", "fc.answer.outcome", not_found_is_an_error),
       ("fc", "fc.initialize.failed", hooks_always_succeed),
       ("fc", "fc.hook.success", hooks_must_say_200),
       ("fc", "fc.headers.reserved-response", passes_every_field),
       ("fc", "fc.limits.request", any_path_will_do),
       ("fc", "fc.concurrency.limit", sends_all_at_once))


# ---- the process ----


def signals(change: Callable[[int, int], object]) -> None:
    """Let a signal to a group mean something else; the old meaning if this is None."""
    killpg = os.killpg
    os.killpg = lambda group, number: None if change(group, number) is not None \
        else killpg(group, number)


def kills_the_leader_alone(_: Any) -> None:
    os.killpg = os.kill


def no_grace_for_children(_: Any) -> None:
    def nobody_there(group: int, number: int) -> None:
        if not number:
            raise ProcessLookupError

    signals(nobody_there)


def never_freezes(_: Any) -> None:
    signals(lambda group, number: number == signal.SIGSTOP or None)


def unfetched_is_lost(platform: Any) -> None:
    platform.Instance.has_served = property(lambda _: False, lambda *_: None)


def starts_for_ever(platform: Any) -> None:
    platform.Instance.has_served = property(lambda _: True, lambda *_: None)


def loses_stderr(_: Any) -> None:
    popen: Any = subprocess.Popen
    setattr(subprocess, "Popen", lambda *words, **settings: popen(
        *words, **dict(settings, stderr=subprocess.DEVNULL)))


def last_results_do_not_count(platform: Any) -> None:
    receive = platform.Instance.receive

    def forget(self: Any, call: str, *arguments: object) -> object:
        time.sleep(0.05 * (call == "response"))
        if self.process.poll() is not None:
            raise OSError
        return receive(self, call, *arguments)

    platform.Instance.receive = forget


def last_answers_do_not_count(platform: Any) -> None:
    exchange = platform.Platform.exchange

    def forget(self: Any, *arguments: object) -> object:
        answer = exchange(self, *arguments)
        if self.ended.wait(0.05):
            raise platform.Failure("exit", "the end was faster")
        return answer

    platform.Platform.exchange = forget


breaks(("scf", "any.process.group", kills_the_leader_alone),
       ("scf", "any.stop.order", no_grace_for_children),
       ("fc", "any.stop.order", no_grace_for_children),
       ("scf", "any.event.requeue", unfetched_is_lost),
       ("scf", "any.event.requeue", starts_for_ever),
       ("scf", "any.log.streams", loses_stderr),
       ("fg", "any.result.first", last_results_do_not_count),
       ("fc", "any.result.first", last_answers_do_not_count),
       ("fc", "fc.freeze.idle", never_freezes))


# ---- the wire: what http.server has, as far as it goes ----


def dead_polls_get_events(platform: Any) -> None:
    delivered = platform.Session.delivered
    platform.Session.delivered = lambda self, request_id, reached: \
        delivered(self, request_id, True)


def has_more(handler: Any) -> bool:
    """Tell whether something has arrived, and was not read."""
    handler.connection.setblocking(False)
    try:
        return bool(handler.rfile.peek(1))
    except OSError:
        return False
    finally:
        handler.connection.setblocking(True)


def drops_what_comes_early(platform: Any) -> None:
    handle = platform.RuntimeApi.handle_one_request

    def handle_one(self: Any) -> None:
        handle(self)
        self.close_connection = self.close_connection or has_more(self)

    platform.RuntimeApi.handle_one_request = handle_one


def wants_heads_at_once(platform: Any) -> None:
    handle = platform.RuntimeApi.handle_one_request

    def handle_whole(self: Any) -> None:
        if b"\r\n\r\n" in (self.rfile.peek(1) or b"\r\n\r\n"):
            handle(self)
        else:
            self.close_connection = True

    platform.RuntimeApi.handle_one_request = handle_whole


def parses(platform: Any, change: Callable[[Any], object]) -> None:
    """Do something to each request whose head is read."""
    parse_request = platform.RuntimeApi.parse_request

    def parse(self: Any) -> object:
        is_parsed = parse_request(self)
        change(self)
        return is_parsed

    platform.RuntimeApi.parse_request = parse


def takes_two_lengths(platform: Any) -> None:
    def forget_one(request: Any) -> None:
        if "transfer-encoding" in request.headers:
            del request.headers["content-length"]

    parses(platform, forget_one)


def reads_no_large_results(platform: Any) -> None:
    def refuse(request: Any) -> None:
        if len(request.headers.get("content-length", "")) > 6:
            request.send_error(413)
            raise OSError

    parses(platform, refuse)


def never_continues(platform: Any) -> None:
    platform.RuntimeApi.handle_expect_100 = lambda self: True


def takes_what_no_client_sends(platform: Any) -> None:
    platform.HEAD = re.compile(rb"(?s).*")  # http.server alone lets much pass


def has_no_time_for_slow_readers(platform: Any) -> None:
    platform.RuntimeApi.timeout = 0.15


def writes_and_forgets_the_time(platform: Any) -> None:
    answer = platform.RuntimeApi.answer

    def block(self: Any, *arguments: object) -> object:
        with getattr(self.server, "instance", self.server).changed:
            return answer(self, *arguments)

    platform.RuntimeApi.answer = block


def each_byte_gives_more_time(platform: Any) -> None:
    dial = platform.Platform.dial

    def dial_with_limit(self: Any, deadline: float) -> Any:
        connection = dial(self, deadline)
        connection.sock.settimeout(self.function.timeout_s)
        return connection

    platform.Platform.dial = dial_with_limit
    threading.Timer.start = lambda self: None  # type: ignore[method-assign]


def loopback_will_do(platform: Any) -> None:
    platform.HOST = "127.0.0.1"


breaks(("scf", "any.poll.dead", dead_polls_get_events),
       ("fg", "any.poll.dead", dead_polls_get_events),
       ("scf", "any.http.reuse", drops_what_comes_early),
       ("scf", "any.limits.slow", wants_heads_at_once),
       ("fg", "any.http.framing", takes_two_lengths),
       ("fg", "any.result.size", reads_no_large_results),
       ("scf", "any.http.continue", never_continues),
       ("fg", "any.http.malformed", takes_what_no_client_sends),
       ("scf", "any.event.bytes", has_no_time_for_slow_readers),
       ("fg", "any.event.timeout", writes_and_forgets_the_time),
       ("fc", "any.event.timeout", each_byte_gives_more_time),
       ("fc", "fc.start.probe", loopback_will_do))


def main() -> int:
    """Be the one that the command line names; return the exit status."""
    name, protocol = sys.argv[1:3]
    del sys.argv[1]  # the platform reads the rest
    changes = {"correct": correct, **{key: entry[2] for key, entry in BROKEN.items()}}
    changes[name](PLATFORMS[protocol])
    program: Any = emulator if name in IN_THE_TOOL else PLATFORMS[protocol]
    status: int = program.main()
    return status


if __name__ == "__main__":
    sys.exit(main())
