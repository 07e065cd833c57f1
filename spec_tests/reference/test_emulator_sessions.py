# test_emulator_sessions.py: the rules of emulator.py that need no I/O (MIT).
"""Try every (state, call) of the session classes, the parser and the tables.

What is expected stands in SPEC.md (states tables) or here, never in emulator.py.
"""

import itertools
import json
from typing import Any, Dict, List, Tuple, Union

import emulator
import pytest
import spec
from emulator import BadMessage, Facts, Function, PullSession, PushSession

Row = Dict[str, str]
OVERSIZE = "oversize"


def rows_of(protocol: str) -> List[Row]:
    """Return the rows of the states table in SPEC.md."""
    table = spec.load().table(protocol, "state", "call", "action", "next state", "rule")
    return table.records()


def rows(*protocols: str) -> List[Any]:
    """Return each row as a case that is named for it."""
    return [pytest.param(protocol, row, id="%s-%s-%s" % (
        row["rule"], row["state"], row["call"]))
        for protocol in protocols for row in rows_of(protocol)]


# ---- pull sessions ----

FIRST = {"scf": "ready", "fg": "request"}
POLL = {"scf": "next", "fg": "request"}
PULL_STATES = ("starting", "idle", "issued", "running", "stopping")
RESULTS = ("response", "error")
ID = {"right": "id-2", "previous": "id-1", "wrong": "id-9", "prefix": "id-", "empty": ""}


def session_in(protocol: str, state: str) -> PullSession:
    """Return a session in that state by the shortest way; no poll is parked."""
    session = PullSession(protocol)
    if state == "starting":
        return session
    session.receive(FIRST[protocol], "first")
    session.withdraw("first")
    if state in ("issued", "running"):
        session.issue("id-2")
    if state == "running":
        session.receive(POLL[protocol], "second")
    if state == "stopping":
        session.stop()
    assert session.state == state and not session.parked
    return session


def call_of(row: Row) -> Tuple[str, str, bool]:
    """Return (call, request id, oversize) that SPEC.md means by a call."""
    name = row["call"]
    return {"oversize": ("response", ID["right"], True),
            "stray": ("response", ID["wrong"], False)}.get(
                name, (name, ID["right"] if name in RESULTS else "", False))


@pytest.mark.parametrize("protocol,row", rows("scf", "fg"))
def test_pull_session_follows_the_states_table(protocol: str, row: Row) -> None:
    """Action, next state and rule of each call are those of SPEC.md."""
    session = session_in(protocol, row["state"])
    if row["call"] == "issue":
        session.issue("id-3")
        assert session.state == row["next state"]
        return
    call, request_id, oversize = call_of(row)
    move = session.receive(call, "poll", request_id, oversize)
    assert (move.action, session.state, move.rule) == (
        row["action"], row["next state"], row["rule"])


@pytest.mark.parametrize("protocol", ("scf", "fg"))
def test_pull_states_table_is_complete(protocol: str) -> None:
    """Each call of each endpoint has a row in each state; `issue` in idle alone."""
    calls = {"scf": ("ready", "next", "response", "error", OVERSIZE),
             "fg": ("request", "response", "error", OVERSIZE, "stray")}[protocol]
    pairs = set(itertools.product(PULL_STATES, calls)) | {("idle", "issue")}
    listed = {(row["state"], row["call"]) for row in rows_of(protocol)}
    assert listed == pairs


@pytest.mark.parametrize("protocol", ("fc", "scf", "fg"))
def test_states_table_equals_the_text(protocol: str) -> None:
    """The states table of the code is the one of SPEC.md, row by row."""
    told = {(row["state"], row["call"]): (row["action"], row["next state"], row["rule"])
            for row in rows_of(protocol)}
    assert emulator.STATES[protocol] == told


@pytest.mark.parametrize("state", PULL_STATES)
@pytest.mark.parametrize("call", RESULTS)
@pytest.mark.parametrize("oversize", (False, True), ids=("fits", OVERSIZE))
@pytest.mark.parametrize("which", ID)
def test_fg_result_unknown_id(state: str, call: str, oversize: bool, which: str) -> None:
    """Only the id of the running invocation is accepted, whatever the size."""
    session = session_in("fg", state)
    move = session.receive(call, None, ID[which], oversize)
    counts = state == "running" and which == "right"
    assert (move.rule == "fg.result.unknown-id") == (not counts)
    assert (move.action == "refuse") == (not counts)
    assert session.state == ("idle" if counts else state)


@pytest.mark.parametrize("which", ID)
def test_any_result_outcome__scf_needs_no_id(which: str) -> None:
    """On scf no id is looked at: the state alone decides."""
    assert session_in("scf", "running").receive(
        "response", None, ID[which]).action == "finish"


@pytest.mark.parametrize("protocol", ("scf", "fg"))
@pytest.mark.parametrize("call", RESULTS)
def test_any_result_first__second_result(protocol: str, call: str) -> None:
    """The second result of an invocation changes nothing, under its own id too."""
    session = session_in(protocol, "running")
    session.receive(call, None, "id-2")
    assert session.receive(call, None, "id-2").action in ("ignore", "refuse")
    session.issue("id-3")
    session.receive(POLL[protocol])
    if protocol == "fg":
        assert session.receive(call, None, "id-2").action == "refuse"
    assert session.state == "running"


PARKED = [  # protocol, polls parked before the issue, polls that get the event
    ("scf", ["a"], ["a"]), ("scf", ["a", "b"], ["a", "b"]), ("scf", [], []),
    ("fg", ["a"], ["a"]), ("fg", ["a", "b"], ["a"]), ("fg", [], [])]


@pytest.mark.parametrize("protocol,polls,served", PARKED)
def test_polls_parked(protocol: str, polls: List[str], served: List[str]) -> None:
    """A parked poll gets the event at the issue: on scf all of them, on fg the oldest."""
    session = session_in(protocol, "idle")
    for poll in polls:
        assert session.receive(POLL[protocol], poll).action == "hold"
    assert session.take_polls() == []
    session.issue("id-2")
    assert session.take_polls() == served
    assert session.take_polls() == []
    assert session.state == ("running" if served else "issued")
    assert session.parked == polls[len(served):]


@pytest.mark.parametrize("protocol", ("scf", "fg"))
def test_any_poll_dead_undeliver(protocol: str) -> None:
    """An event that no poll could take waits for the next poll."""
    session = session_in(protocol, "idle")
    session.receive(POLL[protocol], "dead")
    session.issue("id-2")
    assert session.take_polls() == ["dead"]
    assert session.delivered("id-2", False) == [] and session.state == "issued"
    assert session.receive(POLL[protocol], "alive").action == "deliver"


@pytest.mark.parametrize("protocol", ("scf", "fg"))
@pytest.mark.parametrize("state", PULL_STATES)
def test_any_poll_dead_undeliver_late(protocol: str, state: str) -> None:
    """Taking back another event, or in another state, changes nothing."""
    session = session_in(protocol, state)
    assert session.delivered("id-1", False) == [] and session.state == state


@pytest.mark.parametrize("protocol", ("scf", "fg"))
@pytest.mark.parametrize("state", ("starting", "idle", "stopping"))
def test_any_poll_dead_withdraw(protocol: str, state: str) -> None:
    """A poll whose client has gone is forgotten, once."""
    session = session_in(protocol, state)
    session.receive(POLL[protocol], "gone")
    assert session.withdraw("gone") is True
    assert session.withdraw("gone") is False
    assert session.parked == []


@pytest.mark.parametrize("protocol", ("scf", "fg"))
@pytest.mark.parametrize("state", PULL_STATES)
def test_stopped_session_issues_nothing(protocol: str, state: str) -> None:
    """After stop() polls wait for ever and no result counts."""
    session = session_in(protocol, state)
    session.stop()
    assert session.receive(POLL[protocol], "poll").action == "hold"
    assert session.receive("response", None, "id-2").action in ("ignore", "refuse")
    assert session.take_polls() == [] and session.state == "stopping"
    with pytest.raises(KeyError):
        session.issue("id-4")


@pytest.mark.parametrize("protocol", ("scf", "fg"))
@pytest.mark.parametrize("state", ("starting", "issued", "running", "stopping"))
def test_any_event_issue__scf_needs_idle(protocol: str, state: str) -> None:
    """An event is issued to an idle instance only, one at a time."""
    with pytest.raises(KeyError):
        session_in(protocol, state).issue("id-5")


# ---- push sessions ----

PUSH_CALLS = ("connect", "initialized", "refused", "invoke", "settled", "quiet", "stop")
PUSH_WAYS = {"starting": (), "initializing": ("connect",),
             "idle": ("connect", "initialized"),
             "busy": ("connect", "initialized", "invoke"),
             "frozen": ("connect", "initialized", "quiet"),
             "stopping": ("connect", "initialized", "stop")}


def push_session_in(state: str, concurrency: int = 2) -> PushSession:
    """Return a session in that state by the shortest way."""
    session = PushSession(concurrency)
    for call in PUSH_WAYS[state]:
        session.move(call)
    assert session.state == state
    return session


@pytest.mark.parametrize("state", PUSH_WAYS)
@pytest.mark.parametrize("call", PUSH_CALLS)
def test_push_session_follows_the_states_table(state: str, call: str) -> None:
    """A call has the action and next state of SPEC.md; one not listed does nothing."""
    told = {(row["state"], row["call"]): (row["action"], row["next state"])
            for row in rows_of("fc")}
    session = push_session_in(state)
    action = session.move(call)
    assert (action, session.state) == told.get((state, call), ("", state))


@pytest.mark.parametrize("concurrency", (1, 2, 5))
@pytest.mark.parametrize("start", ("idle", "frozen"))
def test_fc_concurrency_limit(concurrency: int, start: str) -> None:
    """At most `concurrency` run; each that settles makes room for one."""
    session = push_session_in(start, concurrency)
    first = [session.move("invoke") for _ in range(concurrency)]
    assert all(first) and session.move("invoke") == ""
    session.move("settled")
    assert session.move("invoke") == "send" and session.move("invoke") == ""


def test_fc_freeze_idle_not_while_busy() -> None:
    """With two running, the first that settles leaves the instance busy."""
    session = push_session_in("busy")
    session.move("invoke")
    session.move("settled")
    assert session.state == "busy" and session.move("quiet") == ""
    session.move("settled")
    assert session.state == "idle" and session.move("quiet") == "freeze"


ANSWERS = [  # HTTP call, status, x-fc-status, outcome
    (False, 200, "", "ok"), (False, 404, "", "function-error"),
    (False, 200, "404", "function-error"), (False, 404, "200", "ok"),
    (False, 500, "", "ok"), (False, 302, "", "ok"),
    (True, 404, "", "ok"), (True, 500, "", "ok"),
    (True, 200, "404", "function-error"), (True, 404, "404", "function-error"),
    (True, 404, "200", "ok")]


@pytest.mark.parametrize("is_http,status,field,kind", ANSWERS)
def test_fc_answer_outcome(is_http: bool, status: int, field: str, kind: str) -> None:
    """Status and X-Fc-Status decide between ok and function-error."""
    assert emulator.judge_answer(is_http, status, field) == kind


@pytest.mark.parametrize("status,verdict", (
    (200, "done"), (204, "done"), (299, "done"), (300, "failed"), (404, "failed"),
    (499, "failed"), (500, "broken"), (503, "broken"), (599, "broken")))
def test_fc_hook_success(status: int, verdict: str) -> None:
    """2xx is success, 5xx a broken instance, everything else a failure."""
    assert emulator.judge_hook(status) == verdict


# ---- endpoints ----

NONE, METHOD = ("", "", 404), ("", "", 405)
FG = "/v1/runtime/invocation/"
CALLS = [
    ("scf", "POST", "/runtime/init/ready", ("ready", "", 200)),
    ("scf", "GET", "/runtime/invocation/next", ("next", "", 200)),
    ("scf", "GET", "/runtime/invocation/next?a=b", ("next", "", 200)),
    ("scf", "POST", "/runtime/invocation/response", ("response", "", 200)),
    ("scf", "POST", "/runtime/invocation/error", ("error", "", 200)),
    ("scf", "GET", "/runtime/init/ready", METHOD),
    ("scf", "PUT", "/runtime/invocation/response", METHOD),
    ("scf", "POST", "/runtime/invocation/next", METHOD),
    ("scf", "get", "/runtime/invocation/next", METHOD),
    ("scf", "HEAD", "/runtime/invocation/next", METHOD),
    ("scf", "POST", "/runtime/invocation/response/", NONE),
    ("scf", "POST", "/runtime/invocation/response/abc", NONE),
    ("scf", "GET", "/runtime//invocation/next", NONE),
    ("scf", "GET", "/runtime/invocation/../invocation/next", NONE),
    ("scf", "GET", "/runtime/invocation/%6eext", NONE),
    ("scf", "GET", "/Runtime/invocation/next", NONE),
    ("scf", "GET", "*", NONE), ("scf", "GET", "/", NONE), ("scf", "GET", "", NONE),
    ("scf", "GET", FG + "request", NONE),
    ("fg", "GET", FG + "request", ("request", "", 200)),
    ("fg", "POST", FG + "response/abc", ("response", "abc", 200)),
    ("fg", "POST", FG + "error/abc?x=/y", ("error", "abc", 200)),
    ("fg", "POST", FG + "response/", ("response", "", 200)),
    ("fg", "POST", FG + "response/%2e%2e", ("response", "%2e%2e", 200)),
    ("fg", "POST", FG + "response/..", ("response", "..", 200)),
    ("fg", "POST", FG + "response/a/b", NONE),
    ("fg", "POST", FG + "response/../response/abc", NONE),
    ("fg", "POST", FG + "response//abc", NONE),
    ("fg", "POST", FG + "response/abc/", NONE),
    ("fg", "POST", FG + "request", METHOD),
    ("fg", "POST", FG + "request/abc", NONE),
    ("fg", "GET", FG + "response/abc", METHOD),
    ("fg", "PUT", FG + "error/abc", METHOD),
    ("fg", "GET", "/runtime/invocation/next", NONE)]


@pytest.mark.parametrize("protocol,method,target,found", CALLS, ids=[
    "any.api.unknown-%s-%s-%s" % case[:3] for case in CALLS])
def test_find_call(protocol: str, method: str, target: str,
                   found: Tuple[str, str, int]) -> None:
    """Only the paths of the endpoints table are calls; 405 is for another method."""
    assert emulator.find_call(protocol, method, target) == found


# ---- heads ----

GET = "GET / HTTP/1.1\r\n"
BAD_HEADS = [
    ("", "any.http.malformed"), ("GET", "any.http.malformed"),
    ("GET /\x00 HTTP/1.1", "any.http.malformed"),
    ("GET / HTTP/1.1\nHost: a", "any.http.malformed"),
    ("GET / HTTP/1.1\rHost: a", "any.http.malformed"),
    (GET + "no colon", "any.http.malformed"), (GET + ": no name", "any.http.malformed"),
    (GET + "A b: c", "any.http.malformed"), (GET + "A : b", "any.http.malformed"),
    (GET + " A: b", "any.http.malformed"),
    (GET + "A: b\r\n folded", "any.http.malformed"),
    (GET + "A: b\r\n\tfolded: c", "any.http.malformed"),
    (GET + "A: b\nC: d", "any.http.malformed"),
    (GET + "A: b\rC: d", "any.http.malformed"),
    (GET + "A: b\x00", "any.http.malformed"), (GET + "A: \x07", "any.http.malformed"),
    (GET + "A: \x7f", "any.http.malformed"), (GET + "A\x00: b", "any.http.malformed"),
    (GET + "A(: b", "any.http.malformed"), (GET + "\xe4: b", "any.http.malformed"),
    (GET + "A: b\r\n", "any.http.malformed"),
    (GET + "Content-Length: 1\r\nContent-Length: 1", "any.http.framing"),
    (GET + "Content-Length: 1\r\ncontent-length: 2", "any.http.framing"),
    (GET + "Content-Length: 1, 1", "any.http.framing"),
    (GET + "Content-Length: -1", "any.http.framing"),
    (GET + "Content-Length: +1", "any.http.framing"),
    (GET + "Content-Length: 0x1", "any.http.framing"),
    (GET + "Content-Length: 1 1", "any.http.framing"),
    (GET + "Content-Length: 1_0", "any.http.framing"),
    (GET + "Content-Length: ", "any.http.framing"),
    (GET + "Content-Length: \xb2", "any.http.framing"),
    (GET + "Content-Length: " + "9" * 17, "any.http.framing"),
    (GET + "Content-Length: 1\r\nTransfer-Encoding: chunked", "any.http.framing"),
    (GET + "Transfer-Encoding: gzip", "any.http.framing"),
    (GET + "Transfer-Encoding: gzip, chunked", "any.http.framing"),
    (GET + "Transfer-Encoding: ", "any.http.framing"),
    (GET + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
     "any.http.framing")]


@pytest.mark.parametrize("head,rule", BAD_HEADS, ids=[
    "%s-%r" % (rule, head[:40]) for head, rule in BAD_HEADS])
def test_bad_head(head: str, rule: str) -> None:
    """A head that is not beyond doubt is refused, under the rule that it breaks."""
    with pytest.raises(BadMessage) as refused:
        emulator.parse_head(head)
    assert refused.value.violation.rule == rule
    assert refused.value.status == 400


GOOD_HEADS = [
    (GET + "A:b", "a", "b"), (GET + "A: \t b \t", "a", "b"), (GET + "A:", "a", ""),
    (GET + "A: b\r\na: c", "a", "b, c"), (GET + "A: \xe4\x80", "a", "\xe4\x80"),
    (GET + "A: b: c", "a", "b: c"), (GET + "Content-Length: 007", "content-length", "007"),
    (GET + "TRANSFER-ENCODING: Chunked", "transfer-encoding", "Chunked"),
    (GET + "\r\n".join("A%d: b" % n for n in range(100)), "a99", "b"),
    ("HTTP/1.1 200 OK then\r\nA: b", "a", "b"), ("HTTP/1.1 200\r\nA: b", "a", "b")]


@pytest.mark.parametrize("head,name,value", GOOD_HEADS, ids=[
    repr(case[0][:40]) for case in GOOD_HEADS])
def test_good_head(head: str, name: str, value: str) -> None:
    """What is legal is taken: no blanks, empty values, repeated fields, latin-1."""
    assert emulator.parse_head(head).get(name) == value


@pytest.mark.parametrize("head,keeps", (
    ("GET / HTTP/1.1", True), ("GET / HTTP/1.1\r\nConnection: close", False),
    ("GET / HTTP/1.1\r\nConnection: TE, Close", False), ("GET / HTTP/1.0", False),
    ("GET / HTTP/1.0\r\nConnection: Keep-Alive", True), ("HTTP/1.1 200 OK", True),
    ("HTTP/1.0 200 OK", False)))
def test_any_http_reuse(head: str, keeps: bool) -> None:
    """HTTP/1.1 keeps the connection unless told otherwise, 1.0 the other way round."""
    assert emulator.parse_head(head).keep_alive is keeps


@pytest.mark.parametrize("name,value", (
    ("A", "b\r\nC: d"), ("A", "b\n"), ("A", "\r"), ("A", "\x00"), ("A b", "c"),
    ("A\r\nB", "c"), ("", "c"), ("A:", "c")))
def test_any_security_values(name: str, value: str) -> None:
    """No field is sent whose name or value would end the line."""
    with pytest.raises(ValueError):
        emulator.format_head("HTTP/1.1 200 OK", [(name, value)])


# ---- functions ----

Settings = Dict[str, Any]
BAD_SETTINGS: List[Tuple[str, Settings, str]] = [
    ("xx", {}, "protocol 'xx'"), ("scf", {"timeout_s": 0}, "timeout_s"),
    ("scf", {"timeout_s": -1}, "timeout_s"), ("scf", {"timeout_s": 1e999}, "timeout_s"),
    ("scf", {"timeout_s": float("nan")}, "timeout_s"),
    *[(protocol, {name: value}, "%s .%s. .*at most 1000000, not" % (name, limit.option))
      for protocol, table in emulator.LIMITS.items() for name, limit in table.items()
      if name.endswith("_s") for value in (1000001, 1e10, 1e308)],
    ("scf", {"timeout_s": 10 ** 400}, "timeout_s"),
    ("scf", {"memory_mb": 10 ** 400}, "memory_mb"),
    ("scf", {"memory_mb": 1.5}, "memory_mb"), ("scf", {"queue": -1}, "queue"),
    ("scf", {"max_instances": 0.5}, "max_instances"),
    ("scf", {"queue": -1}, "0 or more"), ("fc", {"idle_s": 0}, "more than 0"),
    ("scf", {"start_timeout_s": 1}, "start_timeout_s is not a setting of scf"),
    ("scf", {"image": "x"}, "image is not a setting of scf"),
    ("fg", {"command": ["x"]}, "command is not a setting of fg"),
    ("fg", {"concurrency": 2}, "concurrency is not a setting of fg"),
    ("scf", {"no_such": 1}, "no_such"), ("fc", {"concurrency": 0}, "concurrency"),
    ("fc", {"concurrency": 201}, "concurrency"), ("scf", {"concurrency": 0}, "concurrency"),
    ("fc", {"init_timeout_s": 1}, "init_timeout_s is not a setting of fc"),
    ("fc", {"port": 70000}, "port .--port. must be 0 to 65535"),
    ("fc", {"port": -1}, "port"), ("fc", {"port": "80"}, "port"),
    ("fc", {"port": True}, "port"), ("scf", {"port": 70000}, "port"),
    ("fc", {"command": ["x", "a\0b"]}, "command"), ("fc", {"command": [1]}, "command"),
    ("fc", {"command": ["x", "\ud800"]}, "command"),
    ("scf", {"name": "\ud800"}, "name"), ("fg", {"env": {"A": "\ud800"}}, "variable A"),
    ("fg", {"env": {"A": 1}}, "variable A")]


@pytest.mark.parametrize("protocol,settings,words", BAD_SETTINGS, ids=[
    "%s-%a" % (case[0], case[1]) for case in BAD_SETTINGS])
def test_bad_setting(protocol: str, settings: Settings, words: str) -> None:
    """A setting that is unknown or out of range is refused by its name."""
    with pytest.raises(ValueError, match=words):
        Function(protocol, **settings)


BAD_ENV = [
    ("scf", "1A", "x", "any.env.names"), ("scf", "", "x", "any.env.names"),
    ("scf", "A-B", "x", "any.env.names"), ("scf", "_A", "x", "any.env.names"),
    ("scf", "A\n", "x", "any.env.names"), ("scf", "\xc4", "x", "any.env.names"),
    ("scf", "A=B", "x", "any.env.names"), ("scf", "A", "\0", "holds a NUL"),
    ("scf", "SCF_A", "x", "any.env.names"), ("scf", "QCLOUD_A", "x",
                                                "any.env.names"),
    ("scf", "TENCENTCLOUD_A", "x", "any.env.names"),
    ("fg", "RUNTIME_A", "x", "any.env.names"), ("fc", "FC_A", "x",
                                                   "any.env.names"),
    ("scf", "A", "x" * 4096, "any.env.size"), ("fg", "A", "x" * 4096, "any.env.size"),
    ("fc", "A", "x" * 4096, "any.env.size"),
    ("fc", "A", "\xe4" * 2048, "any.env.size")]


@pytest.mark.parametrize("protocol,name,value,rule", BAD_ENV, ids=[
    "%s-%s-%r-%d" % (case[3], case[0], case[1], number)
    for number, case in enumerate(BAD_ENV)])
def test_bad_variable(protocol: str, name: str, value: str, rule: str) -> None:
    """A variable that the cloud would refuse is refused by its name."""
    with pytest.raises(ValueError) as refused:
        Function(protocol, env={name: value})
    assert ("%d bytes" % 4097 if rule == "any.env.size" else repr(name)[1:-1]) in str(
        refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("protocol,name", (
    ("scf", "FC_A"), ("scf", "RUNTIME_A"), ("fg", "SCF_A"), ("fg", "FC_A"),
    ("fc", "RUNTIME_A"), ("fc", "SCF_A"), ("scf", "scf_a"), ("fc", "A_1")))
def test_any_env_user(protocol: str, name: str) -> None:
    """What another cloud reserves is the user's; 4096 bytes in all are allowed."""
    value = "x" * (4096 - len(name))
    assert Function(protocol, env={name: value}).env == {name: value}


@pytest.mark.parametrize("port,instances", ((9000, 1), (1, 1), (0, 8)))
def test_any_instance_on_demand__fc_port(port: int, instances: int) -> None:
    """With a fixed port there is one instance; with port 0 there may be more."""
    assert Function("fc", port=port).max_instances == instances


@pytest.mark.parametrize("timeout_s,init_s,used", ((7, None, 7), (7, 2, 2)))
def test_any_init_timeout__fg(timeout_s: float, init_s: Union[float, None],
                              used: float) -> None:
    """On fg initialisation has the function's time limit unless told otherwise."""
    more: Settings = {} if init_s is None else {"init_timeout_s": init_s}
    assert Function("fg", timeout_s=timeout_s, **more).init_timeout_s == used


# ---- what callers see ----

FACTS = Facts(request_id="ID", timeout="3", init_timeout="65", size="9", limit="8",
              duration="120", peak_mb="1.50", message="M", start_error="S")
SCF_SHOWN = {
    "function-error": (1, "user code exception caught", 430),
    "timeout": (-1, "Invoking task timed out after 3 seconds", 433),
    "not-fetched": (-1, "Waiting for event timed out after 3 seconds", 433),
    "init-timeout": (-1, "Initializing task timed out after 65 seconds", 450),
    "init-error": (-1, "User process exit when initializing", 445),
    "start-error": (1, "ReloadFail: S\n", 443),
    "exit": (-1, "User process exit when running", 439),
    "response-too-large": (
        -1, "The size of response exceeds the upper limit (6MB)", 407),
    "request-too-large": (
        -1, "The size of request exceeds the upper limit (6MB)", 406),
    "out-of-memory": (-1, "Memory limit exceeded", 434),
    "throttled": (-1, "Resource limit reached", 432),
    "cancelled": (-1, "Request canceled", 499)}


@pytest.mark.parametrize("kind", SCF_SHOWN)
def test_scf_outcome_document(kind: str) -> None:
    """The error document has these members in this order, without blanks."""
    code, message, status = SCF_SHOWN[kind]
    shown = emulator.caller_answer("scf", kind, b'{"a"}', FACTS, False)
    trace = '"stackTrace":"{\\"a\\"}",' if kind == "function-error" else ""
    document = '{"errorCode":%d,"errorMessage":%s,"requestId":"ID",%s"statusCode":%d}' % (
        code, json.dumps(message), trace, status)
    assert shown == (200, (), document.encode())


FG_SHOWN = {
    "timeout": (200, "4010", "call invoke timeout 3s"),
    "not-fetched": (200, "4010", "call invoke timeout 3s"),
    "init-timeout": (200, "4211", "runtime initialization timed out after 65s"),
    "init-error": (200, "4201", "function initialization failed"),
    "start-error": (200, "4202", "S"), "exit": (200, "4204", "runtime process is exited"),
    "response-too-large": (200, "4008", "response body size 9 exceeds the limit of 8"),
    "request-too-large": (413, "1201", "the size of request body is beyond "
                                       "maximum:8, body size:9"),
    "out-of-memory": (200, "4205", "runtime memory limit exceeded"),
    "throttled": (429, "0429", "too many requests"),
    "cancelled": (200, "4208", "function invocation is canceled")}


@pytest.mark.parametrize("kind", FG_SHOWN)
def test_fg_outcome_document(kind: str) -> None:
    """Status, the three fields, code and text are those of the table."""
    status, code, message = FG_SHOWN[kind]
    shown = emulator.caller_answer("fg", kind, b"", FACTS, False)
    assert shown == (status, (
        ("X-Cff-Request-Id", "ID"), ("X-Func-Err-Code", code), ("X-Is-Func-Err", "true")),
        json.dumps({"error_code": "FSS." + code, "error_msg": message},
                   separators=(",", ":")).encode())


@pytest.mark.parametrize("kind,code,failed", (("ok", "0", "false"),
                                              ("function-error", "4002", "true")))
def test_fg_outcome_document__error(kind: str, code: str, failed: str) -> None:
    """What the bootstrap posted reaches the caller byte for byte, errors too."""
    assert emulator.caller_answer("fg", kind, b"\xff\0", FACTS, False) == (200, (
        ("X-Cff-Request-Id", "ID"), ("X-Func-Err-Code", code),
        ("X-Is-Func-Err", failed)), b"\xff\0")


FC_SHOWN = {
    "timeout": ("InvocationError",
                "Function timed out after 3 seconds (maxMemoryUsage: 1.50MB)"),
    "exit": ("InvocationError", "Process exited unexpectedly before completing request "
                                "(duration: 120ms, maxMemoryUsage: 1.50MB)"),
    "out-of-memory": ("FunctionOOMError",
                      "Process exited unexpectedly before completing request "
                      "(duration: 120ms, maxMemoryUsage: 1.50MB)"),
    "init-timeout": ("InitializationError", "Initializer timed out after 65 seconds"),
    "init-error": ("InitializationError", "M")}


@pytest.mark.parametrize("is_http,status", ((False, 200), (True, 502)),
                         ids=("event", "http"))
@pytest.mark.parametrize("kind", FC_SHOWN)
def test_fc_outcome_document__function(kind: str, is_http: bool, status: int) -> None:
    """Failures of the function have an error type; 200 for events, 502 for HTTP."""
    error_type, message = FC_SHOWN[kind]
    seen, headers, body = emulator.caller_answer("fc", kind, b"lost", FACTS, is_http)
    assert (seen, dict(headers)["X-Fc-Error-Type"]) == (status, error_type)
    assert dict(headers)["X-Fc-Request-Id"] == "ID"
    assert json.loads(body) == {"errorMessage": message}


@pytest.mark.parametrize("kind,status,code", (
    ("start-error", 412, "S"), ("bad-response", 502, "BadResponse"),
    ("response-too-large", 502, "BadResponse"),
    ("request-too-large", 400, "InvalidArgument"),
    ("throttled", 429, "ResourceExhausted"), ("cancelled", 499, "ClientClosedRequest")))
@pytest.mark.parametrize("is_http", (False, True), ids=("event", "http"))
def test_fc_outcome_document__platform(kind: str, status: int, code: str,
                                       is_http: bool) -> None:
    """The platform's own failures have the status of the table and a start document."""
    seen, headers, body = emulator.caller_answer("fc", kind, b"lost", FACTS, is_http)
    document = json.loads(body)
    assert (seen, document["Code"], document["RequestId"]) == (status, code, "ID")
    assert "X-Fc-Error-Type" not in dict(headers)
    assert (document["ErrorCode"], document["ErrorMessage"]) == (
        code, document["Message"])


@pytest.mark.parametrize("protocol", ("fc", "scf", "fg"))
@pytest.mark.parametrize("is_http", (False, True), ids=("event", "http"))
def test_outcome_table_is_complete(protocol: str, is_http: bool) -> None:
    """Every outcome of SPEC.md for the protocol has an answer with the status told."""
    table = spec.load().table(protocol, "outcome", "status", "what the caller sees")
    for row in table.records():
        status = emulator.caller_answer(protocol, row["outcome"], b"", FACTS, is_http)[0]
        wanted = 502 if is_http and "HTTP: 502" in row["what the caller sees"] else int(
            row["status"])
        assert status == wanted or protocol != "fc" and is_http, row["outcome"]
