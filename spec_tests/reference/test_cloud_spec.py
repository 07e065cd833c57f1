# test_cloud_spec.py: chapter 12 of SPEC.md is what cloud.py does (MIT).
"""Its tables are the code's, its exchanges are replayed."""

import base64
import json
import re
from typing import Any, Dict, List, NamedTuple, Tuple

import cloud
import pytest
import spec
from cloud_harness import VENDORS, Local, local, package

__all__ = ["local", "package"]

SPEC = spec.load()


def rows(*header: str) -> List[Dict[str, str]]:
    """Return the rows of the table with these columns."""
    return SPEC.table("any", *header).records()


def test_any_cloud_error__table() -> None:
    """The conditions, and what each interface calls them."""
    written = {row["condition"]: [row["`%s`" % one] for one in cloud.VENDORS]
               for row in rows("condition", "`scf`", "`fc`", "`fg`", "meaning")}
    known = {name: [cloud.INVALID.get(vendor, "") if code == "*" else code or "-"
                    for vendor, code in one.items()]
             for name, one in cloud.ERRORS.items()}
    assert written == {name: [code.replace(":", " ") for code in codes]
                       for name, codes in known.items()}


def listed(vendor: str, *header: str) -> List[Tuple[Dict[str, str], str]]:
    """Return the rows of a table, with each thing that is listed for an interface."""
    return [(row, one) for row in rows(header[0], "`scf`", "`fc`", "`fg`", *header[1:])
            for one in row["`%s`" % vendor].split(", ") if one != "-"]


@VENDORS
def test_any_cloud_calls__table(vendor: str) -> None:
    """The calls of an interface."""
    written = [call for _, call in listed(vendor, "call", "answer")]
    assert sorted(written) == sorted(cloud.CALLS[vendor])


@VENDORS
def test_any_cloud_range__table(vendor: str) -> None:
    """The members that are limits, and their ranges."""
    written = [(row["limit"], text) for row, text in listed(vendor, "limit")]
    assert sorted(written) == sorted(
        (limit, "%s %d-%d" % (path, low, high))
        for one, path, limit, low, high in cloud.NUMBERS if one == vendor)


class Message(NamedTuple):
    """A request or an answer of an exchange."""

    start: str
    fields: Dict[str, str]
    body: str


def exchanges() -> List[List[Message]]:
    """Return the exchanges of SPEC.md."""
    _, fences, _ = spec.scan(spec.SPEC_PATH.read_text(encoding="utf-8"))
    found = []
    for fence in fences:
        if fence.info == "exchange":
            messages: List[Message] = []
            for line in fence.lines:
                if line[:2] in ("> ", "< "):
                    messages.append(Message(line, {}, ""))
                elif line.startswith("  | "):
                    messages[-1] = messages[-1]._replace(body=line[4:])
                else:
                    name, _, value = line.strip().partition(": ")
                    messages[-1].fields[name] = value
            found.append(messages)
    return found


def matches(shown: Any, seen: Any) -> bool:
    """Tell whether what was seen is what is shown, `*` standing for any text; objects
    may have more members."""
    if isinstance(shown, dict) and isinstance(seen, dict):
        return all(name in seen and matches(value, seen[name])
                   for name, value in shown.items())
    if isinstance(shown, str) and isinstance(seen, str):
        return bool(re.fullmatch(".*".join(map(re.escape, shown.split("*"))), seen,
                                 re.DOTALL))
    return bool(shown == seen)


@pytest.mark.parametrize("messages", exchanges(), ids=lambda one: one[0].start[2:])
def test_any_cloud_calls__exchange(local: Local, messages: List[Message]) -> None:
    """An exchange goes as it is written."""
    code = base64.b64encode(local.package).decode()
    for sent, shown in zip(messages[::2], messages[1::2]):
        method, path = sent.start[2:].split()
        seen = local.ask(method, path, sent.body.replace("{package}", code).encode(),
                         **sent.fields)
        assert seen.status == int(shown.start[2:])
        for name, value in shown.fields.items():
            assert matches(value, seen.fields[name.lower()]), name
        if shown.body[:1] == "{":
            assert matches(json.loads(shown.body), seen.json()), seen
        else:
            assert matches(shown.body, seen.body.decode())


def test_any_cloud_calls__three_exchanges() -> None:
    """Each interface has a create, an invocation and a failure."""
    assert [len(messages) for messages in exchanges()] == [6, 6, 6]
