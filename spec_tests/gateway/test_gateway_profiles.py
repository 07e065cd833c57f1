# test_gateway_profiles.py: which lists of functions reference/gateway.py takes (MIT).
"""What is wrong in a list is named, by PUT to a running container; the old list stays."""

import json
from typing import Any, Dict, Iterator, List, Tuple

import pytest
from gateways import Container, profile

GOOD = profile("a")


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    """One container for all lists; it keeps the one that it began with."""
    with Container([profile("kept")]) as made:
        yield made
        assert list(made.stats()["functions"]) == ["kept"]


def refused(container: Container, document: Any) -> str:
    """Return why a list is refused."""
    found = container.ask("PUT", "/-/profiles", json.dumps(document).encode())
    assert (found.status, found.json["errorType"]) == (400, "InvalidProfiles")
    return str(found.json["errorMessage"])


def changed(path: str, value: Any) -> Dict[str, Any]:
    """Return a good profile with one field set."""
    item: Dict[str, Any] = json.loads(json.dumps(GOOD))
    outer, _, inner = path.rpartition(".")
    (item.setdefault(outer, {}) if outer else item)[inner] = value
    return item


BAD_FIELDS: List[Tuple[str, Any]] = [
    ("name", ""), ("name", 7), ("name", "a\r\nX-Evil: 1"), ("handler", "a.b\n"),
    ("name", None), ("name", "\u4e2d\u6587"), ("name", "caf\u00e9"), ("name", "a b"),
    ("name", " a"), ("runtime", "nodejs"), ("runtime", "aworker"),
    ("url", "https://host/code.zip"), ("url", "/code"), ("url", "file:///a%00b"),
    ("url", 1), ("signature", ""), ("handler", 1), ("initializer", True),
    ("command", []), ("command", "python3 x"), ("command", ["a", 1]),
    ("namespace", {}), ("environments", {}), ("environments", [{"key": "A"}]),
    ("environments", [{"key": "NOSLATE_X", "value": ""}]),
    ("environments", [{"key": "FC_SERVER_PORT", "value": "1"}]),
    ("environments", [{"key": "A=B", "value": ""}]),
    ("environments", [{"key": "A", "value": "\0"}]),
    ("resourceLimit", []), ("resourceLimit.memory", 0), ("resourceLimit.memory", "1M"),
    ("resourceLimit.memory", 1.5), ("resourceLimit.cpu", 2), ("rateLimit", 1),
    ("rateLimit.maxTokenCount", -1), ("rateLimit.tokensPerFill", "1"),
    ("rateLimit.fillInterval", 0), ("worker", None), ("worker.maxActivateRequests", 0),
    ("worker.maxActivateRequests", True), ("worker.replicaCountLimit", 0),
    ("worker.reservationCount", -1), ("worker.initializationTimeout", 0),
    ("worker.initializationTimeout", float("nan")),
    ("resourceLimit.memory", 10 ** 309), ("rateLimit.maxTokenCount", 10 ** 309), ("worker.disposable", 1),
    ("worker.fastFailRequestsOnStarting", "no"), ("worker.disableRequestQueue", None),
    ("worker.dispatchMode", "random"), ("worker.shrinkStrategy", "LRU")]


@pytest.mark.parametrize("path, value", BAD_FIELDS,
                         ids=[f"{path}={str(value)[:20]!r}" for path, value in BAD_FIELDS])
def test_fcc_profile_all__field(container: Container, path: str, value: Any) -> None:
    """A field of the wrong kind refuses the list, by its name."""
    message = refused(container, [GOOD, changed(path, value)])
    assert message.startswith(f"functions[1].{path}: expected ")


BAD_LISTS = {
    **{"no-" + field: ([{key: value for key, value in GOOD.items() if key != field}],
                       f"functions[0].{field}: missing")
       for field in ("name", "runtime", "url", "signature")},
    "text": ("none", "functions: expected a list"),
    "unknown-top": ([changed("colour", "red")], "functions[0].colour: unknown field"),
    "twice": ([GOOD, GOOD], "functions[1].name: a is there twice"),
    "no-object": ([1], "functions[0]: expected an object"),
    "unknown-list": ({"functions": [], "function": []}, "function: unknown field"),
    "services": ({"services": {}}, "services: expected a list"),
    "service-name": ({"services": [{"functions": []}]}, "services[0].name: missing"),
    "service-name-kind": ({"services": [{"name": "caf\u00e9", "functions": []}]},
                          "services[0].name: expected a text of visible ASCII"),
    "empty": ({}, "functions: missing"),
    "service-missing": ({"services": [{"name": "s"}]}, "services[0].functions: missing"),
    "service-empty": ({"services": [{"name": "s", "functions": []}]},
                      "services[0].functions: expected"),
    "service-function": (
        {"functions": [GOOD],
         "services": [{"name": "s", "functions": [{"name": "a"}, {"name": "b"}]}]},
        "services: s has no function b"),
    "service-share": (
        {"functions": [GOOD],
         "services": [{"name": "s", "functions": [{"name": "a", "proportion": 2}]}]},
        "services[0].functions[0].proportion: expected"),
}


@pytest.mark.parametrize("name", sorted(BAD_LISTS))
def test_fcc_profile_all__list(container: Container, name: str) -> None:
    """What is wrong with the list itself is named as well."""
    document, message = BAD_LISTS[name]
    assert refused(container, document).startswith(message)


@pytest.mark.parametrize("text, seen", [
    (b'[{"name": "b", "signature": "1", "signature": "2"}]', "signature: is there twice"),
    (b'[{"name": "b", "worker": {"x": 1, "x": 1}}]', "x: is there twice"),
    (b"[" * 100000, "maximum recursion depth"), (b"{", "Expecting property name")],
    ids=["twice", "twice-inside", "deep", "no-json"])
def test_fcc_profile_all__text(container: Container, text: bytes, seen: str) -> None:
    """So is what is wrong with the text."""
    found = container.ask("PUT", "/-/profiles", text)
    assert found.status == 400 and found.json["errorMessage"].startswith(seen)


def test_fcc_profile_all__large(container: Container) -> None:
    """A list over 8 MiB is not read."""
    assert container.ask("PUT", "/-/profiles", b" " * (9 << 20)).status == 413


def test_fcc_profile_all__allowed() -> None:
    """An empty list is a list; unknown fields inside `worker` are allowed."""
    with Container([]) as container:
        text = json.dumps([changed("worker.v8Options", ["x"])]).encode()
        assert container.ask("PUT", "/-/profiles", text).status == 200
        assert list(container.stats()["functions"]) == ["a"]
