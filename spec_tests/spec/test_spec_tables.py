# test_spec_tables.py: the tables of SPEC.md and of the code say the same (MIT).
"""Compare environment, endpoints, header fields, states, limits and outcomes."""

import json
import re
from typing import Any, Dict, List, Set, Tuple

import pytest

import emulator
import fc_platform
import fg_platform
import scf_platform
import spec

RULES: Dict[str, Any] = {"fc": fc_platform, "scf": scf_platform, "fg": fg_platform}
PROTOCOLS = pytest.mark.parametrize("protocol", tuple(RULES))


@PROTOCOLS
def test_states(the_spec: spec.Spec, protocol: str) -> None:
    """The states table is the dict STATES, with actions, next states and rules."""
    table = the_spec.table(protocol, "state", "call", "action", "next state", "rule")
    written = {(row["state"], row["call"]):
               (row["action"], row["next state"], row["rule"])
               for row in table.records()}
    coded = {key: tuple(row) for key, row in RULES[protocol].STATES.items()}
    assert coded == written
    assert {row[2] for row in coded.values()} <= {rule.id for rule in the_spec.rules}


@PROTOCOLS
def test_endpoints(the_spec: spec.Spec, protocol: str) -> None:
    """The endpoints table is the dict ENDPOINTS; what a caller chooses is not in it."""
    table = the_spec.table(protocol, "method", "path", "call", "rule")
    written = {(row["method"], row["path"].replace("{id}", "")): row["call"]
               for row in table.records() if row["path"].startswith("/")}
    assert RULES[protocol].ENDPOINTS == written


@PROTOCOLS
def test_header_fields(the_spec: spec.Spec, protocol: str) -> None:
    """The fields that go with an event are those of HEADERS."""
    table = the_spec.table(protocol, "field", "sent by", "value", "rule")
    written = {row["field"] for row in table.records()
               if row["sent by"] in ("platform", "platform, with the event")}
    coded = {field.name for field in RULES[protocol].HEADERS}
    assert coded - {"Content-Type"} == written - {"Content-Type"}


@PROTOCOLS
def test_environment(the_spec: spec.Spec, protocol: str) -> None:
    """The variables of the bootstrap are those of ENVIRONMENT."""
    table = the_spec.table(protocol, "variable", "value", "rule")
    written = {row["variable"] for row in table.records()}
    assert {field.name for field in RULES[protocol].ENVIRONMENT} == written


def limits(the_spec: spec.Spec, chapter: str) -> Dict[str, Tuple[str, str]]:
    """Return default and option of each limit that an option sets."""
    table = the_spec.table(chapter, "limit", "default", "option", "rule")
    return {row["limit"]: (row["default"], row["option"]) for row in table.records()
            if row["option"].startswith("--")}


@PROTOCOLS
def test_limits(the_spec: spec.Spec, protocol: str) -> None:
    """The limits that an option sets are those of 5.9 and of the protocol's chapter."""
    written = {**limits(the_spec, "any"), **limits(the_spec, protocol)}
    if protocol == "fg":
        written["init_timeout_s"] = ("0", "--init-timeout")  # 0: the same as timeout_s
    tool, own = emulator.LIMITS[protocol], RULES[protocol].LIMITS
    coded = {name: (f"{limit.default:.15g}", limit.option)
             for name, limit in tool.items() if limit.option}
    assert coded == written
    assert own == {name: tool[name] for name in own}
    assert set(limits(the_spec, protocol)) <= set(own)


# ---- what callers see ----

FACTS = dict.fromkeys(("timeout", "init_timeout", "duration", "size"), "N")
FACTS.update(request_id="ID", event_bytes="M", result_bytes="M", peak_mb="X.XX",
             message="\u2026")


def outcome_rows(the_spec: spec.Spec, protocol: str) -> List[Dict[str, str]]:
    """Return the rows of the outcomes table."""
    return the_spec.table(protocol, "outcome", "status", "rule").records()


def answer(protocol: str, kind: str, **more: Any) -> Tuple[int, Dict[str, str], bytes]:
    """Return what the code shows the caller of a function that posted `posted`."""
    facts = {"start_error": "S", **FACTS}
    status, headers, body = RULES[protocol].caller_answer(
        kind, b"posted", facts, **more)
    return status, dict(headers), body


@PROTOCOLS
def test_outcomes(the_spec: spec.Spec, protocol: str) -> None:
    """Each outcome has the status of the table, in an HTTP call too."""
    for row in outcome_rows(the_spec, protocol):
        assert answer(protocol, row["outcome"])[0] == int(row["status"]), row
        if "HTTP: 502" in row["what the caller sees"]:
            assert answer(protocol, row["outcome"], is_http=True)[0] == 502, row


def listed(text: str) -> Set[str]:
    """Return the parts of `a, b or c`."""
    return set(re.split(", | or ", text))


def test_scf_outcome_document(the_spec: spec.Spec) -> None:
    """The error document has the members of the table in this order, without blanks."""
    for row in outcome_rows(the_spec, "scf")[1:]:
        code, texts, status = re.findall(
            r"errorCode (-?1), (.*), statusCode (\d+)", row["what the caller sees"])[0]
        message, _, trace = texts.partition(", stackTrace = ")
        if row["outcome"] == "start-error":
            assert listed(message) == {"ReloadFail: %s\\n" % reason for reason in
                                       scf_platform.START_ERRORS.values()}
            message = "ReloadFail: S\\n"
        assert answer("scf", row["outcome"])[2].decode() == (
            '{"errorCode":%s,"errorMessage":"%s","requestId":"ID",%s"statusCode":%s}'
            % (code, message, '"stackTrace":"posted",' if trace else "", status))


def test_fg_outcome_document(the_spec: spec.Spec) -> None:
    """Fields, code and text are those of the table; what was posted stays as it is."""
    for row in outcome_rows(the_spec, "fg"):
        kind, shown = row["outcome"], row["what the caller sees"]
        _, headers, body = answer("fg", kind)
        code, _, message = shown.rpartition("Code: ")[2].partition(", ")
        assert headers == {"X-Cff-Request-Id": "ID", "X-Func-Err-Code": code,
                           "X-Is-Func-Err": "false" if kind == "ok" else "true"}
        if kind == "start-error":
            assert listed(message) == set(fg_platform.START_ERRORS.values())
            message = "S"
        assert body == (b"posted" if "X-Func-Err-Code" in shown else json.dumps(
            {"error_code": "FSS." + code, "error_msg": message},
            separators=(",", ":")).encode())


def test_fc_outcome_document(the_spec: spec.Spec) -> None:
    """Failures of the function have an error type, those of the platform a code."""
    rows = {row["outcome"]: row["what the caller sees"]
            for row in outcome_rows(the_spec, "fc")}
    for kind, shown in rows.items():
        _, headers, body = answer("fc", kind)
        error_type = re.search(r"X-Fc-Error-Type: (\w+)", shown)
        assert headers["X-Fc-Request-Id"] == "ID"
        assert headers.get("X-Fc-Error-Type") == (error_type and error_type[1])
        document = re.search(r"\{.*\}", rows[kind.replace("out-of-memory", "exit")])
        if "start document" in shown:
            check_start_document(json.loads(body), shown.rpartition("Code ")[2])
        else:
            assert body.decode() == (document[0] if document else "posted") or (
                document and "\u2026" in document[0])


def check_start_document(document: Dict[str, str], codes: str) -> None:
    """AssertionError unless it has its five members and one of the codes."""
    assert list(document) == ["RequestId", "Code", "Message", "ErrorCode",
                              "ErrorMessage"]
    assert document["ErrorCode"] == document["Code"]
    assert document["ErrorMessage"] == document["Message"]
    if document["Code"] == "S":
        assert listed(codes) == set(fc_platform.START_ERRORS.values())
    else:
        assert codes.partition(",")[0] == document["Code"]


def test_outcome_kinds(the_spec: spec.Spec) -> None:
    """The closed list of outcomes is KINDS, in the same order."""
    table = the_spec.table("any", "kind", "meaning")
    assert tuple(row["kind"] for row in table.records()) == emulator.KINDS


# ---- side by side ----


def test_sample_events() -> None:
    """The events of triggers are those that --sample-event prints."""
    text = spec.SPEC_PATH.read_text(encoding="utf-8").partition("\n### 10.1 ")[2]
    written = re.findall(r"(?s)`(\w+)`:\n\n```json\n(.*?)```", text.partition("\n## ")[0])
    samples = json.loads(emulator.SAMPLE_EVENTS)
    assert [(protocol, json.dumps(json.loads(events))) for protocol, events in written] \
        == [(protocol, json.dumps(events)) for protocol, events in samples.items()]


def test_options(the_spec: spec.Spec) -> None:
    """The options that set no limit are those of the emulator. Each setting has one but
    for two, and those that are more than one word."""
    table = the_spec.table("any", "option", "takes", "of", "meaning")
    assert [tuple(row.values()) for row in table.records()] == [
        (option.name, option.takes.replace("|", "/") or "-", "all" if
         option.protocols == emulator.PROTOCOLS else ", ".join(option.protocols),
         (option.needs and f"with {option.needs}: ") + option.text)
        for option in emulator.OPTIONS if option.name.startswith("-")]
    for protocol in RULES:
        given = {option.setting for option in emulator.options_of(protocol).values()}
        assert set(emulator.setting_names(protocol)) - given == {
            "command", "credentials", "env", "region", "version"}


def side_by_side(protocol: str) -> Dict[str, str]:
    """Return what chapter 10 has to say of a protocol, so far as the code knows."""
    rules, limits = RULES[protocol], emulator.LIMITS[protocol]

    def told(name: str) -> str:
        return emulator.quantity(name.rpartition("_")[2], limits[name].default)

    if protocol == "fc":
        return {"time to get ready": "%s, Initializer %s" % (
            told("start_timeout_s"), told("initializer_timeout_s")),
            "default time limit": told("timeout_s"),
            "events at a time": "1 to %d" % rules.MAX_CONCURRENCY,
            "event, result": told("event_bytes") + ", no limit known",
            "hooks": ", ".join(rules.HOOK_NAMES), "repeated poll": "-"}
    poll = {call for _, call in rules.STATES} & {"next", "request"}
    stray = rules.STATES["idle", "response" if protocol == "scf" else "stray"]
    return {"time to get ready": told("init_timeout_s").replace(
        "as --timeout", "as the time limit"),
        "default time limit": told("timeout_s"), "events at a time": "1",
        "event, result": "%s, %s" % (told("event_bytes"), told("result_bytes")),
        "hooks": "none", "repeated poll": {
            "deliver": "the same event again", "hold": "held"}[
                rules.STATES["running", poll.pop()].action],
        "second result": {"ignore": "200, ignored", "refuse": "404, refused"}[
            stray.action]}


@PROTOCOLS
def test_side_by_side(the_spec: spec.Spec, protocol: str) -> None:
    """Numbers and verdicts of chapter 10 are those of the code; each variable, call and
    header field that it names is one of that protocol."""
    table = the_spec.table("any", "", "`fc`", "`scf`", "`fg`")
    cells = {row[""]: row[f"`{protocol}`"] for row in table.records()}
    rules = RULES[protocol]
    assert {name: cells[name] for name in side_by_side(protocol)} == side_by_side(
        protocol)
    assert rules.CODE_ROOT in cells["code folder"]
    known = {field.name for field in (*rules.ENVIRONMENT, *rules.HEADERS)}
    known |= {"X-Fc-Status", "X-Fc-Error-Type", "X-Func-Err-Code"}
    paths = [path for _, path in rules.ENDPOINTS]
    for named in re.findall("`([^`]+)`", " ".join(cells.values())):
        if re.fullmatch("[A-Z_]+[A-Z]|[A-Z][a-z]+([-_][A-Z][a-z]+)+", named):
            assert named in known, named
        elif re.match("GET|POST", named):
            path = named.split()[1].replace("{id}", "").strip("\u2026")
            assert any(one.endswith(path) for one in paths), named
