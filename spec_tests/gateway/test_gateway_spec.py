# test_gateway_spec.py: SPEC.md chapter 9 and reference/gateway.py say the same (MIT).
"""Compare tables with the code, and replay the transcripts of chapter 9."""

import json
import re
import shlex
import sys
from typing import Dict, Iterator, List, Tuple

import gateways
import pytest
import spec
from gateways import Answer, Container

import gateway

SPEC = spec.load()
FCC = [rule for rule in SPEC.rules if rule.id.startswith("fcc.")]
TRANSCRIPTS = sorted((one for one in SPEC.transcripts if one.protocol == "fcc"),
                     key=lambda one: "--pre-stop" in one.options)  # it is the last
pytestmark = pytest.mark.skipif(len(FCC) < 30, reason="chapter 9 is not there")


def rows(*header: str) -> List[Dict[str, str]]:
    """Return the table of chapter 9 with these columns."""
    return SPEC.table("fcc", *header).records()


def test_gateway_states() -> None:
    """The states table is the table in the code."""
    found = {(row["state"], row["call"]): (row["action"], row["next state"], row["rule"])
             for row in rows("state", "call", "action", "next state", "rule")}
    assert found == gateway.STATES


def test_gateway_endpoints() -> None:
    """What method and path alone tell is what the code tells by them."""
    found = {row["path"]: tuple(row["method"].split(", "))
             for row in rows("method", "path", "call")
             if re.fullmatch(r"/[a-z-]{2,}", row["path"])}
    assert found == gateway.ENDPOINTS


def test_gateway_limits() -> None:
    """Names, defaults, ranges and options of the limits agree."""
    found = {row["limit"]: (float(row["default"]), row["option"], row["range"])
             for row in rows("limit", "default", "range", "option")}
    assert found == {name: (limit.default, limit.option,
                            "0 or more" if limit.zero else "more than 0")
                     for name, limit in gateway.SETTINGS.items() if name != "port"}


def test_gateway_variables() -> None:
    """The variables that give a setting agree."""
    found = [row["variable"] for row in rows("variable", "value", "rule")]
    assert found == [*gateway.VARIABLES["port"], "NOSLATE_LOGDIR", *(
        variable for name, variables in gateway.VARIABLES.items() if name != "port"
        for variable in variables)]


def test_gateway_failures() -> None:
    """The names of failures and their statuses agree."""
    found = {row["failure"]: row["status for HTTP"]
             for row in rows("failure", "when", "status for HTTP")}
    assert found.pop("HandlerFailed").startswith("that of")
    assert found == {name: str(status) if status else "-"
                     for name, status in gateway.FAILURES.items()}


def test_gateway_profile_fields() -> None:
    """The fields of a profile agree."""
    found = {row["profile field"] for row in rows("profile field", "value", "default")}
    assert found == {path for path, field in gateway.PROFILE_FIELDS.items()
                     if field.kind is not gateway.OBJECT}


# ---- transcripts ----


def worker_profile(options: Dict[str, object]) -> Dict[str, object]:
    """Return the bootstrap with the test handler as a worker called hello."""
    return {"name": "hello", "runtime": "custom", "signature": "1",
            "url": (gateways.TESTS / "handlers" / "python").as_uri(),
            "command": [sys.executable, str(gateways.BOOTSTRAP)],
            "handler": "test_handler.handle", **options}


def exchanges(transcript: spec.Transcript) -> List[Tuple[spec.Step, spec.Step]]:
    """Return requests and answers, two by two."""
    return list(zip(transcript.steps[::2], transcript.steps[1::2]))


def ask(container: Container, step: spec.Step) -> Answer:
    """Send the request of a step."""
    method, path = shlex.split(step.line)[:2]
    return container.ask(method, path, step.body.replace("{id}", "1-x").encode(), {
        name: value.replace("{id}", "1-x") for name, value in step.headers})


def matches(pattern: str, text: str) -> bool:
    """Tell whether a text is as shown; `*` stands for anything."""
    parts = [re.escape(part) for part in pattern.split("*")]
    return re.fullmatch(".*".join(parts), text, re.DOTALL) is not None


def compare_body(wanted: str, found: bytes) -> None:
    """Compare a body; members of a JSON object may be more than are shown."""
    if not wanted.startswith("{"):
        assert matches(wanted, found.decode())
        return
    document = json.loads(found)
    for name, value in json.loads(wanted).items():
        assert matches(str(value), str(document[name])), document


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    """One container for all transcripts; its worker starts before the first of them."""
    with Container([worker_profile({})], "--default-function", "hello",
                   "--grace", "0.1") as made:
        made.invoke(b"", "hello")  # a start may take longer than a limit
        yield made


@pytest.mark.parametrize("transcript", TRANSCRIPTS,
                         ids=[f"{one.outcome}-{one.line}" for one in TRANSCRIPTS])
def test_gateway_transcripts(container: Container, transcript: spec.Transcript) -> None:
    """The gateway plays its part of each dialogue."""
    container.put(worker_profile(json.loads(transcript.options)
                                 if transcript.options[:1] == "{" else {}))
    for request, wanted in exchanges(transcript):
        found = ask(container, request)
        assert str(found.status) == wanted.line
        for name, value in wanted.headers:
            assert matches(value, found.headers.get(name.lower(), ""))
        compare_body(wanted.body, found.body)
