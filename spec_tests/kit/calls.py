# calls.py: every call in every state, made from the tables of SPEC.md (MIT).
"""Generate (state, call, id, body) cases for scf and fg, and try one of them.

The expectation comes from the row of the states table; that nothing else has changed is
seen from how the invocation goes on and ends.
"""

from typing import Iterator, List, NamedTuple, Sequence, Tuple

import platform_run
import spec
import wire
from kit import Mismatch, document, same
from platform_run import Instance, Parts, PlatformRun
from wire import Message

EVENT = b'{"what": "the event"}'
NEXT_EVENT = b'{"what": "the next event"}'
RESULT = b"the result"
UNKNOWN_ID = "11111111-2222-4333-8444-555555555555"


class Case(NamedTuple):
    """One call in one state: the row of the table, and what varies within it."""

    protocol: str
    state: str
    call: str
    action: str
    rule: str
    method: str
    kind: str  # ready, poll, response or error
    id: str  # right, unknown, previous, empty, malformed, or nothing
    body: str  # none, ok, limit, over, half-sent, chunked

    @property
    def name(self) -> str:
        """Return the id of the generated test."""
        parts = (self.state, self.call, self.kind, self.id, self.body)
        return "-".join([self.rule, *(part for part in parts if part)])


# ---- generating ----

SMALL = ("none", "ok", "limit", "half-sent", "chunked")
STRAY_IDS = ("unknown", "previous", "empty", "malformed")


def cases(text: spec.Spec, protocol: str) -> Iterator[Case]:
    """Yield every case of the protocol's states table."""
    try:
        table = text.table(protocol, "state", "call", "action", "next state", "rule")
    except KeyError:
        return
    for row in table.records():
        if row["call"] == "issue":
            continue
        for kind, request_id, body in variants(protocol, row["state"], row["call"]):
            yield Case(protocol, row["state"], row["call"], row["action"], row["rule"],
                       "GET" if kind == "poll" else "POST", kind, request_id, body)


def variants(protocol: str, state: str, call: str) -> List[Tuple[str, str, str]]:
    """Return the kinds, ids and bodies that a call comes in."""
    if call == "ready":
        return [("ready", "", body) for body in ("none", "ok", "chunked", "half-sent")]
    if call in ("next", "request"):
        return [("poll", "", "none"), ("poll", "", "half-sent")]
    kinds = [call] if call in ("response", "error") else ["response", "error"]
    bodies = {"oversize": ("over",), "stray": (*SMALL, "over")}.get(call, SMALL)
    ids: Sequence[str] = [""]
    if protocol == "fg":
        ids = (STRAY_IDS if call == "stray" else
               ["right"] if state == "running" else ["unknown"])
    return [(kind, one, body) for kind in kinds for one in ids for body in bodies
            if call != "stray" or one == "unknown" or body == "ok"]


# ---- trying ----


def attempt(platform: platform_run.PlatformUnderTest, case: Case) -> None:
    """Bring an instance into the state, make the call, compare. Raises Mismatch."""
    if case.state == "stopping":
        with platform.used_run("--grace", "60", "--idle", "50") as run:
            attempt_stopping(run, case)
        return
    with platform.used_run() as run:
        instance, previous_id = reach(run, case.state)
        if case.body == "half-sent":
            send_half(instance, case, previous_id)
            go_on(run, instance, case.state)
        elif case.kind == "poll":
            attempt_poll(run, instance, case)
        else:
            compare(case, instance.ask(*parts_of(instance, case, previous_id)))
            conclude(run, instance, case)


def reach(run: PlatformRun, state: str) -> Tuple[Instance, str]:
    """Return a bootstrap in that state, and the id of a finished invocation."""
    run.serve(b"earlier")
    assert run.idle is not None
    previous_id = run.idle.request_id
    if state == "starting":
        return run.starting(EVENT), previous_id
    if state == "running":
        return run.fetched(EVENT), previous_id
    instance, run.idle = run.idle, None
    if state == "issued":
        run.issue(EVENT)
        run.settle()
    return instance, previous_id


def attempt_stopping(run: PlatformRun, case: Case) -> None:
    """Make the call to an instance that was told to end and does not."""
    if run.stopped is None:
        run.stopped = run.stubborn()
        run.idle = None
        run.end_input()
        run.settle()
    instance = run.stopped
    if case.body == "half-sent":
        send_half(instance, case, instance.request_id)
    elif case.kind == "poll":
        instance.held(instance.park())
    else:
        compare(case, instance.ask(*parts_of(instance, case, instance.request_id)))
    instance.order("print", to=1, text=b"")


def parts_of(instance: Instance, case: Case, previous_id: str) -> Parts:
    """Return what the call consists of: bytes, and how many `x` follow them."""
    if case.kind == "poll":
        return [instance.poll_bytes()[:-5]]
    ids = {"unknown": UNKNOWN_ID, "previous": previous_id, "empty": "",
           "malformed": "a%20b%00;.."}
    path = "/runtime/init/ready" if case.kind == "ready" else \
        instance.result_path(case.kind, ids.get(case.id, instance.request_id))
    limit = instance.run.result_bytes
    size = {"none": 0, "limit": limit, "over": limit + 1}.get(case.body, len(RESULT))
    field = ("Content-Length", str(size))
    body = {"ok": RESULT, "half-sent": RESULT[:5]}.get(case.body, size)
    if case.body == "chunked":
        field, body = ("Transfer-Encoding", "chunked"), wire.chunked(RESULT)
    return [wire.request_bytes(case.method, path, [field]), body]


def send_half(instance: Instance, case: Case, previous_id: str) -> None:
    """Send a call that ends before its announced length."""
    number = instance.open()
    instance.send(number, *parts_of(instance, case, previous_id))
    instance.close(number)


def compare(case: Case, reply: Message) -> None:
    """Raise Mismatch unless the answer is what the action says."""
    status = {"refuse": 404, "overflow": 413}.get(case.action, 200)
    same(status, reply.status, f"{case.action}: status")
    if status == 200:
        same(b"", reply.body, f"{case.action}: body of the answer")
    if case.action == "refuse":
        seen = document(reply.body)
        same([], sorted({"error_code", "error_msg"} - set(seen)), "members that it lacks")


def conclude(run: PlatformRun, instance: Instance, case: Case) -> None:
    """See that the invocation goes on, or has the outcome that the action says."""
    kind = {"finish": "ok", "fail": "function-error",
            "overflow": "response-too-large"}.get(case.action)
    if kind is None:
        go_on(run, instance, "idle" if case.rule == "scf.ready.first" else case.state,
              case.rule if case.action in ("ignore", "refuse") else "",
              is_ready=case.rule == "scf.ready.first")
        return
    outcome = run.outcome(kind)
    if kind == "ok":
        bodies = {"none": b"", "limit": b"x" * run.result_bytes}
        same(bodies.get(case.body, RESULT), outcome.body, "result of the outcome")
    run.idle = instance


def go_on(run: PlatformRun, instance: Instance, state: str, rule: str = "",
          is_ready: bool = False) -> None:
    """Bring the invocation to an ordinary end. Raises Mismatch if that fails."""
    event = EVENT
    if state == "starting" and run.protocol == "scf" and not is_ready:
        instance.ready()
    if state == "idle" and not is_ready:
        event = NEXT_EVENT
        run.issue(event)
    if state != "running":
        same(event, instance.fetch().body, "the event afterwards")
    outcome = run.finish(instance)
    if rule and "violations" in outcome.line and not outcome.violations:
        raise Mismatch(f"a violation of {rule} on record", "none")


def attempt_poll(run: PlatformRun, instance: Instance, case: Case) -> None:
    """Poll; see that the poll is held or answered, and by what in the end."""
    number = instance.park()
    first_id = instance.request_id
    if case.action == "deliver":
        same(EVENT, instance.fetch(number).body, "the event")
        if case.state == "running":
            same(first_id, instance.request_id, "the request id of the same event")
        run.finish(instance)
        return
    if case.protocol == "fg" and case.state == "starting":
        same(EVENT, instance.fetch(number).body, "the event for the first poll")
        run.finish(instance)
        return
    held = instance.held(number)
    if case.state == "running":
        run.finish(instance)
    if case.state == "starting":
        instance.ready()
    else:
        run.issue(NEXT_EVENT)
    wanted = EVENT if case.state == "starting" else NEXT_EVENT
    same(wanted, instance.fetch(held).body, "the event on the poll that was held")
    run.finish(instance)
