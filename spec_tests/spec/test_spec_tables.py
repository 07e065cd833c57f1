# test_spec_tables.py: the tables of SPEC.md and of the code say the same (MIT).
"""Compare environment, endpoints, header fields, states, limits and outcomes."""

from typing import Dict, List, Set, Tuple

import pytest

import emulator
import spec

PROTOCOLS = ("fc", "scf", "fg")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_states(the_spec: spec.Spec, protocol: str) -> None:
    """The states table is the dict STATES, with actions, next states and rules."""
    table = the_spec.table(protocol, "state", "call", "action", "next state", "rule")
    written = {(row["state"], row["call"]):
               (row["action"], row["next state"], row["rule"])
               for row in table.records()}
    coded = {key: tuple(row) for key, row in emulator.STATES[protocol].items()}
    assert coded == written


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_endpoints(the_spec: spec.Spec, protocol: str) -> None:
    """The endpoints table is the dict ENDPOINTS; what a caller chooses is not in it."""
    table = the_spec.table(protocol, "method", "path", "call", "rule")
    written = {(row["method"], row["path"].replace("{id}", "")): row["call"]
               for row in table.records() if row["path"].startswith("/")}
    assert emulator.ENDPOINTS[protocol] == written


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_header_fields(the_spec: spec.Spec, protocol: str) -> None:
    """The fields that go with an event are those of HEADERS."""
    table = the_spec.table(protocol, "field", "sent by", "value", "rule")
    written = {row["field"] for row in table.records()
               if row["sent by"] in ("platform", "platform, with the event")}
    coded = {field.name for field in emulator.HEADERS[protocol]}
    assert coded == written - {"Content-Type"}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_environment(the_spec: spec.Spec, protocol: str) -> None:
    """The variables of the bootstrap are those of ENVIRONMENT."""
    table = the_spec.table(protocol, "variable", "value", "rule")
    written = {row["variable"] for row in table.records()}
    assert {field.name for field in emulator.ENVIRONMENT[protocol]} == written


def limits(table: spec.Table) -> Dict[str, Tuple[str, str]]:
    """Return default and option of each limit that an option sets."""
    return {row["limit"]: (row["default"], row["option"]) for row in table.records()
            if row["option"].startswith("--")}


def common_limits(the_spec: spec.Spec) -> Dict[str, Tuple[str, str]]:
    """Return the limits of section 5.9."""
    return limits(the_spec.table("any", "limit", "default", "option", "rule"))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_limits(the_spec: spec.Spec, protocol: str) -> None:
    """The limits that an option sets are those of LIMITS, with their defaults."""
    table = the_spec.table(protocol, "limit", "default", "option", "rule")
    written = {**common_limits(the_spec), **limits(table)}
    coded = {name: (f"{limit.default:g}" if limit.default < 1e6 else
                    str(int(limit.default)), limit.option)
             for name, limit in emulator.LIMITS[protocol].items() if limit.option}
    if protocol == "fg":
        written["init_timeout_s"] = ("0", "--init-timeout")  # 0: the same as timeout_s
    assert coded == written


def outcomes(the_spec: spec.Spec, protocol: str) -> List[Tuple[str, str]]:
    """Return outcome and status of each row of the outcomes table."""
    table = the_spec.table(protocol, "outcome", "status", "rule")
    return [(row["outcome"], row["status"]) for row in table.records()]


class AnyFact(emulator.Facts):
    """Values for the texts of outcomes, which do not matter here."""

    def __missing__(self, name: str) -> str:
        return "0"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_outcomes(the_spec: spec.Spec, protocol: str) -> None:
    """Each outcome has the status of the table."""
    written = outcomes(the_spec, protocol)
    shown = [emulator.caller_answer(protocol, kind, b"", AnyFact(), False)
             for kind, _ in written]
    assert [str(answer[0]) for answer in shown] == [status for _, status in written]


def test_outcome_kinds(the_spec: spec.Spec) -> None:
    """The closed list of outcomes is KINDS, in the same order."""
    table = the_spec.table("any", "kind", "meaning")
    assert tuple(row["kind"] for row in table.records()) == emulator.KINDS


def rules_cited(protocol: str) -> Set[str]:
    """Return the rules that the states table of the code names."""
    return {row.rule for row in emulator.STATES[protocol].values()}


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_rules_exist(the_spec: spec.Spec, protocol: str) -> None:
    """The rules of the states table are rules of SPEC.md."""
    assert rules_cited(protocol) <= {rule.id for rule in the_spec.rules}
