# calls.py: every call in every state, made from the tables of SPEC.md (MIT).
"""Generate (state, call, id, body) cases for scf and fg, and try one of them.

The expectation comes from the row of the states table; that nothing else has changed is
seen from how the invocation goes on and ends.
"""

from typing import Iterator, NamedTuple, Tuple

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


class Form(NamedTuple):
    """What varies from call to call."""

    id: str  # right, unknown, previous, empty, malformed, or nothing
    body: str  # none, ok, limit, over, half-sent, chunked


class Case(NamedTuple):
    """Calls of one kind in one state: the row of the table, and what varies within it."""

    protocol: str
    state: str
    call: str
    action: str
    rule: str
    kind: str  # ready, poll, response or error
    stays: bool  # in its state
    forms: Tuple[Form, ...]

    @property
    def name(self) -> str:
        """Return the id of the generated test."""
        return "-".join((self.rule, self.state, self.call, self.kind))


# ---- generating ----

BODIES = {"ready": ("none", "ok", "chunked", "half-sent"), "poll": ("none", "half-sent"),
          "oversize": ("over",)}
SMALL = ("none", "ok", "limit", "half-sent", "chunked")
STRAY = (*(Form("unknown", body) for body in (*SMALL, "over")),
         *(Form(one, "ok") for one in ("previous", "empty", "malformed")))


def cases(text: spec.Spec, protocol: str) -> Iterator[Case]:
    """Yield every case of the protocol's states table."""
    try:
        table = text.table(protocol, "state", "call", "action", "next state", "rule")
    except KeyError:
        return
    for row in table.records():
        state, call, action = row["state"], row["call"], row["action"]
        kinds = {"issue": [], "ready": ["ready"], "next": ["poll"], "request": ["poll"],
                 "oversize": ["response", "error"], "stray": ["response", "error"],
                 }.get(call, [call])
        for kind in kinds:
            yield Case(protocol, state, call, action, row["rule"], kind,
                       kind != "poll" and state == row["next state"],
                       forms(protocol, state, call, kind))


def forms(protocol: str, state: str, call: str, kind: str) -> Tuple[Form, ...]:
    """Return the ids and bodies that a call comes with."""
    if call == "stray":
        return STRAY
    if protocol == "fg" and kind != "poll" and state != "running":
        return (Form("unknown", "over" if call == "oversize" else "ok"),)  # all else is stray
    request_id = "right" if protocol == "fg" and kind != "poll" else ""
    bodies = BODIES.get(call) or BODIES.get(kind) or SMALL
    return tuple(Form(request_id, body) for body in bodies)


# ---- trying ----


def attempt(platform: platform_run.PlatformUnderTest, case: Case) -> None:
    """Bring an instance into the state, make the calls, compare: in a row those that
    leave it there. Raises Mismatch."""
    if case.state == "stopping":
        with platform.used_run("--grace", "60", "--idle", "50") as run:
            attempt_stopping(run, case)
        return
    with platform.used_run() as run:
        for row in [case.forms] if case.stays else [(form,) for form in case.forms]:
            instance, previous_id = reach(run, case.state)
            if case.kind == "poll" and row[0].body != "half-sent":
                attempt_poll(run, instance, case)
                continue
            for form in row:
                make(instance, case, form, previous_id)
            conclude(run, instance, case, row[-1].body)


def make(instance: Instance, case: Case, form: Form, previous_id: str) -> None:
    """Make the call in that form. Raises Mismatch."""
    parts = parts_of(instance, case.kind, form, previous_id)
    if form.body == "half-sent":  # it ends before its announced length
        number = instance.open()
        instance.send(number, *parts)
        instance.close(number)
    else:
        compare(case, instance.ask(*parts), f"{form.id} {form.body}".strip())


def reach(run: PlatformRun, state: str) -> Tuple[Instance, str]:
    """Return a bootstrap in that state, and the id of a finished invocation."""
    if run.idle is None:
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
    for form in case.forms:
        if case.kind == "poll" and form.body != "half-sent":
            instance.held(instance.park())
        else:
            make(instance, case, form, instance.request_id)
    instance.order("print", to=1, text=b"")


def parts_of(instance: Instance, kind: str, form: Form,
             previous_id: str) -> Parts:
    """Return what the call consists of: bytes, and how many `x` follow them."""
    if kind == "poll":
        return [instance.poll_bytes()[:-5]]
    ids = {"unknown": UNKNOWN_ID, "previous": previous_id, "empty": "",
           "malformed": "a%20b%00;.."}
    path = "/runtime/init/ready" if kind == "ready" else \
        instance.result_path(kind, ids.get(form.id, instance.request_id))
    limit = instance.run.result_bytes
    size = {"none": 0, "limit": limit, "over": limit + 1}.get(form.body, len(RESULT))
    field = ("Content-Length", str(size))
    sent = {"ok": RESULT, "half-sent": RESULT[:5]}.get(form.body, size)
    if form.body == "chunked":
        field, sent = ("Transfer-Encoding", "chunked"), wire.chunked(RESULT)
    return [wire.request_bytes("POST", path, [field]), sent]


def compare(case: Case, reply: Message, form: str) -> None:
    """Raise Mismatch unless the answer is what the action says."""
    status = {"refuse": 404, "overflow": 413}.get(case.action, 200)
    same(status, reply.status, f"{case.action}, {form}: status")
    if status == 200:
        same(b"", reply.body, f"{case.action}, {form}: body of the answer")
    if case.action == "refuse":
        seen = document(reply.body)
        same([], sorted({"error_code", "error_msg"} - set(seen)), "members that it lacks")


def conclude(run: PlatformRun, instance: Instance, case: Case, body: str) -> None:
    """See that the invocation goes on, or has the outcome that the action says."""
    kind = {"finish": "ok", "fail": "function-error",
            "overflow": "response-too-large"}.get(case.action)
    if kind is None or body == "half-sent":
        is_ready = case.rule == "scf.ready.first" and body != "half-sent"
        go_on(run, instance, "idle" if is_ready else case.state,
              case.rule if case.action in ("ignore", "refuse") else "", is_ready=is_ready)
        return
    outcome = run.outcome(kind)
    if kind == "ok":
        bodies = {"none": b"", "limit": b"x" * run.result_bytes}
        same(bodies.get(body, RESULT), outcome.body, "result of the outcome")
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
