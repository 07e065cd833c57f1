# test_lifecycle_hooks.py: initialise, freeze and stop hooks, and health checks (MIT).
"""The function's server is the test: it answers hooks and checks in every way."""

import contextlib
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, Optional

import pytest

import wire
import emulator
from emulator import HEALTH_FIELDS, check_health_config
from harness import Harness, no_thread_once, outcome_of, until

LIMITS: Dict[str, Any] = {"initializer_timeout_s": 0.15, "pre_freeze_timeout_s": 0.15,
          "pre_stop_timeout_s": 0.15}
AMPLE: Dict[str, Any] = {"initializer_timeout_s": 20, "pre_freeze_timeout_s": 20,
         "pre_stop_timeout_s": 20}


def status(number: int, body: bytes = b"") -> bytes:
    """Return an answer with that status."""
    return wire.response(number, (), body)


# what a hook answers -> what it means; broken: fails, and the instance ends
ANSWERS: Dict[str, Any] = {
    "200": (status(200), "done"), "204": (b"HTTP/1.1 204 X\r\n\r\n", "done"),
    "299": (status(299), "done"), "200 and a body": (status(200, b"no"), "done"),
    "100, 200": (b"HTTP/1.1 100 X\r\n\r\n" + status(200), "done"),
    "302": (status(302), "failed"), "400": (status(400), "failed"),
    "404": (status(404), "failed"), "500": (status(500), "broken"),
    "503": (status(503), "broken"), "nothing": (None, "late"),
    "garbage": (b"\x16\x03\x01\r\n\r\n", "failed"), "close": (b"", "failed"),
    "a long head": (b"HTTP/1.1 200 OK\r\nX: %s\r\n\r\n" % (b"x" * 70000), "failed"),
    "half a head": (b"HTTP/1.1 200 OK\r\nContent-", "failed"),
    "half a body": (b"HTTP/1.1 200 OK\r\nContent-length: 9\r\n\r\nhalf", "failed")}
HOOK_CASES = pytest.mark.parametrize("reply,meaning", ANSWERS.values(),
                                     ids=list(ANSWERS))


def limits_for(meaning: str) -> Dict[str, Any]:
    """Return limits that are short only where one has to run out."""
    return LIMITS if meaning == "late" else AMPLE


def hooked(path: str, replies: List[Optional[bytes]]) -> Callable[
        [wire.Message], Optional[bytes]]:
    """Return a server that answers that path so, once each, and echoes the rest."""
    def answer(request: wire.Message) -> Optional[bytes]:
        if request.path == path and replies:
            return replies.pop(0)
        return status(200, request.body)

    return answer


@pytest.fixture
def make() -> Iterator[Callable[..., Harness]]:
    """Make platforms of fc with these settings; they end with the test."""
    with contextlib.ExitStack() as stack:
        yield lambda **settings: stack.enter_context(Harness("fc", **settings))


# ---- initialise ----


@HOOK_CASES
def test_fc_initialize_once(reply: Optional[bytes], meaning: str) -> None:
    """The Initializer comes first and succeeds once, or the instance goes."""
    with Harness("fc", initializer=True, **limits_for(meaning)) as harness:
        harness.serve(hooked("/initialize", [reply]))
        kind = {"done": "ok", "late": "init-timeout"}.get(meaning, "init-error")
        assert harness.outcome(b"first")[0] == kind
        assert harness.outcome(b"second") == ("ok", b"second")
        again = [] if kind == "ok" else ["/initialize"]
        first = ["/invoke"] if kind == "ok" else []
        assert harness.seen == ["/initialize", *first, *again, "/invoke"]
        assert harness.platform.counts["cold_starts"] == 1 + len(again)


def test_fc_initialize_form(make: Callable[..., Harness]) -> None:
    """It is POST /initialize with an empty body and the fields of a call."""
    harness = make(initializer=True)
    caller = harness.event(b"event")
    function = harness.accept()
    request = function.request()
    assert request.start == "POST /initialize HTTP/1.1" and request.body == b""
    assert request.header("x-fc-control-path") == "/initialize"
    assert request.header("x-fc-function-name") == "function"
    assert harness.state()["instances"][0]["state"] == "initializing"
    function.reply()
    assert function.request().header("x-fc-control-path") == "/invoke"
    function.reply(b"done")
    assert outcome_of(caller) == ("ok", b"done")


@pytest.mark.parametrize("reply,meaning", (
    (status(404), "failed"), (None, "late"), (status(200), "done")),
    ids=("404", "nothing", "200"))
def test_fc_initialize_failed__caller_gone(reply: Optional[bytes],
                                           meaning: str) -> None:
    """The caller who needed the instance leaves meanwhile: the next one is served."""
    with Harness("fc", initializer=True, **limits_for(meaning)) as harness:
        caller = harness.event(b"gone")
        function = harness.accept()
        function.request()
        caller.close()
        assert harness.ends("cancelled")
        function.send(reply) if reply else None
        assert until(lambda: [one["state"] for one in harness.state()["instances"]]
                     in ([], ["frozen"]))
        harness.serve(lambda request: status(200, request.body))
        if meaning == "done":
            threading.Thread(target=harness._serve, args=(
                function, lambda request: status(200, request.body)),
                daemon=True).start()
        assert harness.outcome(b"next") == ("ok", b"next")


def test_fc_concurrency_limit__initializing() -> None:
    """Requests that arrive during the Initializer wait for it, then go together."""
    with Harness("fc", initializer=True, concurrency=3) as harness:
        callers = [harness.call("GET", "/x") for _ in range(3)]
        function = harness.accept()
        function.request()
        assert until(lambda: harness.platform.counts["accepted"] == 3)
        assert harness.quiet()
        function.reply()
        for peer in (function, harness.accept(), harness.accept()):
            peer.request()
            peer.reply(b"x")
        assert [caller.answer().body for caller in callers] == [b"x"] * 3


# ---- freeze ----


@HOOK_CASES
def test_fc_freeze_hook(reply: Optional[bytes], meaning: str) -> None:
    """The instance is frozen after any answer but 5xx, which ends it."""
    with Harness("fc", pre_freeze=True, **limits_for(meaning)) as harness:
        harness.serve(hooked("/pre-freeze", [reply]))
        assert harness.outcome(b"first") == ("ok", b"first")
        states = [] if meaning == "broken" else ["frozen"]
        assert until(lambda: harness.seen == ["/invoke", "/pre-freeze"] and states == [
            one["state"] for one in harness.state()["instances"]])
        assert harness.outcome(b"second") == ("ok", b"second")
        assert harness.platform.counts["cold_starts"] == (2 if meaning == "broken" else 1)


def test_fc_freeze_hook__each_time(make: Callable[..., Harness]) -> None:
    """Before each freeze the hook is called, and not while something runs."""
    harness = make(pre_freeze=True)
    harness.serve(lambda request: status(200, request.body))
    for count in (1, 2, 3):
        assert harness.outcome(b"event")[0] == "ok"
        assert until(lambda: harness.state()["instances"][0]["state"] == "frozen")
        assert harness.seen == ["/invoke", "/pre-freeze"] * count


def test_fc_freeze_hook__no_thread(make: Callable[..., Harness],
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a thread for the hook the caller is answered, and the hook comes later."""
    tried = no_thread_once("_freeze_after_hook", monkeypatch)
    harness = make(pre_freeze=True)
    harness.serve(lambda request: status(200, request.body))
    assert harness.outcome(b"event") == ("ok", b"event")
    assert until(lambda: harness.state()["instances"][0]["state"] == "frozen")
    assert tried.is_set() and harness.seen == ["/invoke", "/pre-freeze"]


def test_fc_health_check__no_thread(make: Callable[..., Harness],
                                    monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a thread for a check the checks go on when there is one."""
    tried = no_thread_once("_check_again", monkeypatch)
    harness = make(health_check=check(), freeze=False)
    health = Health()
    harness.serve(health)
    assert harness.outcome(b"event")[0] == "ok"
    assert tried.wait(10) and health.more(3)


def test_any_limits_clock__health_period(make: Callable[..., Harness],
                                         monkeypatch: pytest.MonkeyPatch) -> None:
    """The next check is due a period after the last was sent, not after its answer."""
    harness = make(health_check=check(period_s=100), freeze=False)
    due: List[float] = []
    set_timer = harness.platform.loop.set_timer

    def watch(timer: emulator.Timer, deadline: float) -> None:
        if 80 < deadline - time.monotonic() < 200:
            due.append(deadline)
        set_timer(timer, deadline)

    monkeypatch.setattr(harness.platform.loop, "set_timer", watch)
    caller = harness.event(b"event")
    function = harness.accept()
    assert function.request().path == "/health"
    asked = time.monotonic()
    assert until(lambda: time.monotonic() > asked + 0.05)
    function.reply()
    function.request()
    function.reply()
    assert outcome_of(caller)[0] == "ok"
    assert len(due) == 1 and due[0] <= asked + 100


def test_fc_freeze_hook__event_meanwhile(make: Callable[..., Harness]) -> None:
    """An event that comes during the hook is served at once and is not frozen."""
    harness = make(pre_freeze=True)
    caller = harness.event(b"first")
    function = harness.accept()
    function.request()
    function.reply(b"first")
    assert outcome_of(caller) == ("ok", b"first")
    assert function.request().start == "GET /pre-freeze HTTP/1.1"
    caller = harness.event(b"second")
    second = harness.accept()
    assert second.request().body == b"second"
    function.reply()  # the hook ends while the event runs
    assert harness.state()["instances"][0]["state"] == "busy"
    second.reply(b"second")
    assert outcome_of(caller) == ("ok", b"second")


def test_fc_freeze_thaw__second_hook(make: Callable[..., Harness]) -> None:
    """An event during the hook brings no further hook to the frozen instance."""
    harness, go = make(pre_freeze=True), threading.Event()

    def answer(request: wire.Message) -> bytes:
        if request.path == "/pre-freeze":
            go.wait(8)
        return status(200, request.body)

    harness.serve(answer)
    assert harness.outcome(b"first") == ("ok", b"first")
    assert until(lambda: harness.seen == ["/invoke", "/pre-freeze"])
    assert harness.outcome(b"second") == ("ok", b"second")
    go.set()
    for _ in range(2):
        assert until(lambda: harness.state()["instances"][0]["state"] == "frozen")
        assert harness.outcome(b"next") == ("ok", b"next")
    assert until(lambda: harness.state()["instances"][0]["state"] == "frozen")
    assert harness.seen.count("/pre-freeze") == 3


def test_fc_freeze_idle__switched_off(make: Callable[..., Harness]) -> None:
    """Without freezing there is no hook, and the instance stays idle."""
    harness = make(pre_freeze=True, freeze=False)
    harness.serve(lambda request: status(200, request.body))
    assert harness.outcome(b"a")[0] == harness.outcome(b"b")[0] == "ok"
    assert harness.state()["instances"][0]["state"] == "idle"
    assert harness.seen == ["/invoke", "/invoke"]


# ---- stop ----


@HOOK_CASES
def test_fc_stop_hook(reply: Optional[bytes], meaning: str) -> None:
    """The stop goes on after any answer of the hook, and after none."""
    with Harness("fc", pre_stop=True, **limits_for(meaning)) as harness:
        harness.serve(hooked("/pre-stop", [reply]))
        assert harness.outcome(b"event")[0] == "ok"
    assert harness.seen == ["/invoke", "/pre-stop"]
    assert not harness.platform.instances


def test_fc_stop_order__hook_is_waited_for(make: Callable[..., Harness]) -> None:
    """A pre-freeze hook that runs is waited for before the pre-stop hook."""
    harness = make(pre_freeze=True, pre_stop=True)
    caller = harness.event(b"first")
    function = harness.accept()
    function.request()
    function.reply()
    assert outcome_of(caller)[0] == "ok"
    assert function.request().path == "/pre-freeze"
    closing = threading.Thread(target=harness.close)
    closing.start()
    assert until(lambda: not harness.platform.instances) and harness.quiet()
    function.reply()
    assert function.request().path == "/pre-stop"
    function.reply()
    closing.join(10)
    assert not closing.is_alive()


def test_any_instance_idle__pre_stop() -> None:
    """An instance that is idle for long is stopped with its hook, and replaced."""
    with Harness("fc", pre_stop=True, idle_s=0.1) as harness:
        harness.serve(lambda request: status(200, request.body))
        assert harness.outcome(b"a") == ("ok", b"a")
        assert until(lambda: not harness.state()["instances"])
        assert until(lambda: harness.seen == ["/invoke", "/pre-stop"])
        assert harness.outcome(b"b") == ("ok", b"b")
        assert harness.platform.counts["cold_starts"] == 2


# ---- health checks ----


def check(**fields: float) -> Dict[str, Any]:
    """Return a health check that is quick, with these fields."""
    return {"path": "/health", "period_s": 0.02, "timeout_s": 1, **fields}


class Health:
    """A server whose health is what the test says."""

    def __init__(self) -> None:
        self.reply: Optional[bytes] = status(200)
        self.checks = 0

    def __call__(self, request: wire.Message) -> Optional[bytes]:
        """Answer a check, or echo."""
        if request.path == "/health":
            self.checks += 1
            return self.reply
        return status(200, request.body)

    def more(self, count: int) -> bool:
        """Wait for so many further checks."""
        goal = self.checks + count
        return until(lambda: self.checks >= goal)


@pytest.mark.parametrize("reply,good", (
    (status(200), True), (status(204), True), (status(302), True), (status(399), True),
    (status(400), False), (status(404), False), (status(500), False), (None, False),
    (b"", False), (b"junk\r\n\r\n", False)),
    ids=("200", "204", "302", "399", "400", "404", "500", "nothing", "close", "junk"))
def test_fc_health_first(reply: Optional[bytes], good: bool) -> None:
    """A bad first check, after the Initializer, is a start-error."""
    health = Health()
    health.reply = reply
    with Harness("fc", initializer=True, health_check=check(timeout_s=0.2, period_s=9)
                 ) as harness:
        harness.serve(health)
        kind, body = harness.outcome(b"event")
        assert kind == ("ok" if good else "start-error")
        assert harness.seen[:2] == ["/initialize", "/health"]
        assert good or b'"Code":"FunctionNotStarted"' in body


def test_fc_health_check__answer(make: Callable[..., Harness]) -> None:
    """A check is a GET of the path, and goes on while the instance is idle."""
    harness = make(health_check=check(), freeze=False)
    requests: List[wire.Message] = []

    def answer(request: wire.Message) -> bytes:
        requests.append(request)
        return status(200)

    harness.serve(answer)
    assert harness.outcome(b"event")[0] == "ok"
    assert until(lambda: harness.seen.count("/health") >= 4)
    assert requests[0].start == "GET /health HTTP/1.1"


@pytest.mark.parametrize("failures,successes", ((1, 1), (3, 1), (2, 3)))
def test_fc_health_thresholds(failures: int, successes: int) -> None:
    """So many bad checks in a row close the instance, so many good ones open it."""
    health = Health()
    with Harness("fc", freeze=False, health_check=check(
            failure_threshold=failures, success_threshold=successes)) as harness:
        harness.serve(health)
        assert harness.outcome(b"first")[0] == "ok"
        health.reply = status(500)
        assert until(lambda: any("unhealthy" in note for note in harness.notes))
        caller = harness.event(b"waits")
        assert until(lambda: harness.state()["queued"] == 1) and health.more(2)
        assert "/invoke" not in harness.seen[-2:]
        health.reply = status(200)
        assert outcome_of(caller) == ("ok", b"waits")


def test_fc_health_thresholds__not_in_a_row(make: Callable[..., Harness]) -> None:
    """Bad checks with a good one between them do not count together."""
    harness = make(freeze=False, health_check=check(failure_threshold=2))
    replies = [status(200)] + [status(500), status(200)] * 5
    harness.serve(lambda request: replies.pop(0) if replies
                  and request.path == "/health" else status(200))
    assert harness.outcome(b"event")[0] == "ok"
    assert until(lambda: not replies)
    assert not any("unhealthy" in note for note in harness.notes)


def test_fc_health_check__frozen(make: Callable[..., Harness]) -> None:
    """A frozen instance is not checked; during a request it is."""
    harness = make(health_check=check())
    health = Health()
    harness.serve(lambda request: None if request.body == b"hang" else health(request))
    assert harness.outcome(b"event")[0] == "ok"
    assert until(lambda: harness.state()["instances"][0]["state"] == "frozen")
    caller = harness.event(b"hang")
    assert health.more(3)
    caller.close()


def test_fc_health_check__not_cut_off(make: Callable[..., Harness]) -> None:
    """A check that is under way when the last event ends comes to its end first."""
    harness = make(health_check=check(failure_threshold=1))
    event, checked = threading.Event(), threading.Event()
    checks: List[wire.Message] = []

    def answer(request: wire.Message) -> bytes:
        if request.path == "/health":
            checks.append(request)
            assert len(checks) != 2 or checked.wait(10)
        elif request.body == b"first":
            assert event.wait(10)
        return status(200, request.body)

    harness.serve(answer)
    caller = harness.event(b"first")
    assert until(lambda: len(checks) == 2)
    event.set()
    assert outcome_of(caller) == ("ok", b"first")
    assert harness.state()["instances"][0]["state"] == "idle"
    checked.set()
    assert until(lambda: harness.state()["instances"][0]["state"] == "frozen")
    assert harness.outcome(b"second") == ("ok", b"second")


def test_fc_health_check__freezing(make: Callable[..., Harness]) -> None:
    """While the hook before a freeze runs there is no check."""
    harness, go = make(health_check=check(), pre_freeze=True), threading.Event()

    def answer(request: wire.Message) -> bytes:
        if request.path == "/pre-freeze":
            go.wait(8)
        return status(200)

    harness.serve(answer)
    assert harness.outcome(b"event")[0] == "ok"
    assert until(lambda: harness.seen[-1:] == ["/pre-freeze"])
    until(lambda: False, 0.1)  # several periods
    assert harness.seen[-1] == "/pre-freeze"
    go.set()
    assert until(lambda: harness.state()["instances"][0]["state"] == "frozen")


def test_fc_health_check__frozen_recovers(make: Callable[..., Harness]) -> None:
    """An instance that became unhealthy while it worked can become healthy again."""
    harness = make(health_check=check(failure_threshold=1), queue_timeout_s=5)
    health, gate = Health(), threading.Event()

    def answer(request: wire.Message) -> Optional[bytes]:
        assert request.body != b"first" or gate.wait(10)
        return health(request)

    harness.serve(answer)
    caller = harness.event(b"first")
    assert until(lambda: "/invoke" in harness.seen)
    health.reply = status(500)
    assert until(lambda: any("unhealthy" in note for note in harness.notes))
    gate.set()
    assert outcome_of(caller) == ("ok", b"first")
    health.reply = status(200)
    assert harness.outcome(b"second") == ("ok", b"second")


def test_fc_health_check__fields_initial_delay(make: Callable[..., Harness]) -> None:
    """The sixth field: the first check is sent after the delay, not before."""
    harness = make(health_check=check(initial_delay_s=0.1, period_s=9))
    asked_at: List[float] = []

    def answer(request: wire.Message) -> bytes:
        asked_at.append(time.monotonic())
        return status(200)

    harness.serve(answer)
    began = time.monotonic()
    assert harness.outcome(b"event")[0] == "ok"
    assert harness.seen == ["/health", "/invoke"] and asked_at[0] - began > 0.1


FIELDS = [(name, value) for name, (_, low, high, _) in HEALTH_FIELDS.items()
          for value in (-1, high + 1, "x")]


@pytest.mark.parametrize("name,value", FIELDS + [("path", ""), ("path", "health"), (
    "path", "/a b"), ("path", "/\r\nX: y"), ("path", "/" + "x" * 2048), ("path", 5)])
def test_fc_health_check__fields(name: str, value: object) -> None:
    """A field out of its range is refused by its vendor's name."""
    word = HEALTH_FIELDS[name][0] if name in HEALTH_FIELDS else "httpGetUrl"
    with pytest.raises(ValueError, match=word):
        check_health_config({"path": "/health", name: value})
