# test_gateway_rules.py: the rules of chapter 9 that need no process (MIT).
"""Profiles, dispatch, tokens, scaling and the strict parser of reference/gateway.py."""

import json
from typing import Any, Dict, List, Tuple

import gateways
import pytest

import gateway

SETTINGS = {name: limit.default for name, limit in gateway.LIMITS.items()}
GOOD = gateways.profile("a")


def changed(path: str, value: Any) -> Dict[str, Any]:
    """Return a good profile with one field set."""
    item: Dict[str, Any] = json.loads(json.dumps(GOOD))
    outer, _, inner = path.rpartition(".")
    (item.setdefault(outer, {}) if outer else item)[inner] = value
    return item


def made(**worker: Any) -> gateway.Profile:
    """Return a profile with these worker settings."""
    return gateway.Profile(gateways.profile("a", worker=worker), SETTINGS)


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
    ("worker.initializationTimeout", float("nan")), ("worker.disposable", 1),
    ("worker.fastFailRequestsOnStarting", "no"), ("worker.disableRequestQueue", None),
    ("worker.dispatchMode", "random"), ("worker.shrinkStrategy", "LRU")]


@pytest.mark.parametrize("path, value", BAD_FIELDS,
                         ids=[f"{path}={value!r}" for path, value in BAD_FIELDS])
def test_fcc_profile_all__field(path: str, value: Any) -> None:
    """A field of the wrong kind refuses the list, by its name."""
    with pytest.raises(ValueError, match=rf"^functions\[1\]\.{path}: expected "):
        gateway.read_profiles([GOOD, changed(path, value)], SETTINGS)


@pytest.mark.parametrize("path", ["resourceLimit.memory", "rateLimit.maxTokenCount"])
def test_fcc_profile_all__huge(path: str) -> None:
    """A number beyond what a float can hold is no number here."""
    with pytest.raises(ValueError, match=rf"^functions\[0\]\.{path}: expected "):
        gateway.read_profiles([changed(path, 10 ** 309)], SETTINGS)


BAD_LISTS = {
    "text": ("none", "profiles: expected an object"),
    "unknown-top": ([changed("colour", "red")], "functions[0].colour: unknown field"),
    "twice": ([GOOD, GOOD], "functions[1].name: a is there twice"),
    "no-object": ([1], "functions[0]: expected an object"),
    "unknown-list": ({"functions": [], "function": []}, "profiles.function: unknown"),
    "services": ({"services": {}}, "profiles.services: expected a list"),
    "service-name": ({"services": [{"functions": []}]}, "services[0].name: missing"),
    "service-name-kind": ({"services": [{"name": "caf\u00e9", "functions": []}]},
                          "services[0].name: expected a text of visible ASCII"),
    "empty": ({}, "profiles.functions: missing"),
    "service-missing": ({"services": [{"name": "s"}]}, "services[0].functions: missing"),
    "service-empty": ({"services": [{"name": "s", "functions": []}]},
                      "services[0].functions: expected"),
    "service-function": (
        {"services": [{"name": "s", "functions": [{"name": "b"}]}]},
        'services[0].functions[0].name: no function "b"'),
    "service-share": (
        {"functions": [GOOD],
         "services": [{"name": "s", "functions": [{"name": "a", "proportion": 2}]}]},
        "services[0].functions[0].proportion: expected"),
}


@pytest.mark.parametrize("name", sorted(BAD_LISTS))
def test_fcc_profile_all__list(name: str) -> None:
    """What is wrong with the list itself is named as well."""
    document, message = BAD_LISTS[name]
    with pytest.raises(ValueError) as error:
        gateway.read_profiles(document, SETTINGS)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("field", ["name", "runtime", "url", "signature"])
def test_fcc_profile_all__missing(field: str) -> None:
    """A required field that is missing is named."""
    item = {key: value for key, value in GOOD.items() if key != field}
    with pytest.raises(ValueError, match=rf"^functions\[0\]\.{field}: missing"):
        gateway.read_profiles([item], SETTINGS)


def test_fcc_profile_all__allowed() -> None:
    """An empty list is a list; unknown fields inside `worker` are allowed."""
    assert gateway.read_profiles([], SETTINGS) == ({}, {})
    functions, _ = gateway.read_profiles([changed("worker.v8Options", ["x"])], SETTINGS)
    assert list(functions) == ["a"]


def test_fcc_disposable_one__profile() -> None:
    """A disposable function has one call a worker and no reservation."""
    profile = made(disposable=True, maxActivateRequests=9, reservationCount=3)
    assert (profile.max_active, profile.reserved) == (1, 0)


DISPATCH = {
    "name": (("b", "a", "c"), "b"),
    "function": (("function:b", "a", "c"), "b"),
    "service-first": (("service:s", "", ""), "a"),
    "fc-name": (("", "a", "c"), "a"),
    "fc-name-unknown": (("", "outer", "c"), "c"),
    "nothing": (("", "outer", ""), "UnknownFunction"),
    "no-service": (("service:t", "", ""), "UnknownService"),
    "kind": (("queue:a", "", ""), "BadDispatch"),
    "empty": (("service:", "", ""), "BadDispatch"),
}


@pytest.mark.parametrize("name", sorted(DISPATCH))
def test_fcc_dispatch_order__table(name: str) -> None:
    """Header first, then the name that FC sends, then the default."""
    given, wanted = DISPATCH[name]
    try:
        found = gateway.choose_function(*given, ["a", "b"], {"s": [("a", 0.5)]}, 0.1)
    except gateway.Failure as failure:
        found = failure.name
    assert found == wanted


@pytest.mark.parametrize("chance, wanted", [(0.0, "a"), (0.19, "a"), (0.2, "b"),
                                            (0.49, "b"), (0.5, "c"), (0.999, "c")])
def test_fcc_dispatch_service(chance: float, wanted: str) -> None:
    """Proportions decide; the remainder goes to the last."""
    services = {"s": [("a", 0.2), ("b", 0.3), ("c", 0.1)]}
    assert gateway.choose_function("service:s", "", "", [], services, chance) == wanted


def test_fcc_limit_rate__bucket() -> None:
    """The bucket is full at first, gains by interval, and never overflows."""
    profile = gateway.Profile(changed("rateLimit", {
        "maxTokenCount": 3, "tokensPerFill": 2, "fillInterval": 500}), SETTINGS)
    broker = gateway.Broker(profile, 100.0)
    taken = [broker.take_token(at) for at in (
        100.0, 100.1, 100.2, 100.3, 100.5, 100.5, 100.6, 103.0, 103.0, 103.0, 103.0)]
    assert taken == [True, True, True, False, True, True, False, True, True, True, False]


#       reserved, max, active, ready, starting, low ticks -> change, low ticks
PLANS = {
    "idle": ((0, 10, 0, 3, 0, 0), (0, 1)),
    "idle-sixth": ((0, 10, 0, 3, 0, 5), (-3, 0)),
    "reserved": ((2, 10, 0, 3, 0, 5), (-1, 0)),
    "reserved-missing": ((2, 10, 0, 1, 0, 5), (1, 0)),
    "reserved-starting": ((2, 10, 0, 0, 2, 0), (0, 0)),
    "middle": ((0, 10, 7, 1, 0, 5), (0, 0)),
    "low": ((0, 10, 6, 1, 0, 5), (0, 0)),
    "low-shrinks-to-0.7": ((0, 10, 8, 4, 0, 5), (-2, 0)),
    "keeps-the-last-with-calls": ((0, 10, 1, 2, 0, 5), (-1, 0)),
    "high": ((0, 10, 8, 1, 0, 0), (1, 0)),
    "full": ((0, 10, 20, 2, 0, 0), (1, 0)),
    "high-but-starting": ((0, 10, 20, 2, 1, 0), (0, 0)),
    "high-at-limit": ((0, 1, 4, 4, 0, 0), (0, 0)),
}


@pytest.mark.parametrize("name", sorted(PLANS))
def test_fcc_scale_down__plan(name: str) -> None:
    """Load decides what a tick does; the replica limit here is 4."""
    (reserved, max_active, *load, low_ticks), wanted = PLANS[name]
    profile = made(reservationCount=reserved, maxActivateRequests=max_active,
                   replicaCountLimit=4)
    active, ready, starting = load
    assert gateway.plan_workers(profile, active, ready, starting, low_ticks, 6) == wanted


@pytest.mark.parametrize("settings, said", [
    ({"timeot_s": 5}, "timeot_s is not a setting; known: timeout_s, "),
    ({"timeout_s": "5"}, "timeout_s: expected a number above 0"),
    ({"tick_s": 0}, "tick_s: expected a number from 0.01")])
def test_settings_of_the_library(settings: Any, said: str) -> None:
    """A setting that is unknown or out of range is refused by its name."""
    with pytest.raises(ValueError, match="^" + said):
        gateway.Agent(settings)


@pytest.mark.parametrize("strategy, wanted", [("FIFO", [0, 1]), ("FILO", [3, 2]),
                                              ("LCC", [2, 0])])
def test_fcc_scale_victims(strategy: str, wanted: List[int]) -> None:
    """Oldest, newest, or those with the fewest calls go first."""
    agent = gateway.Agent()
    broker = gateway.Broker(made(shrinkStrategy=strategy), 0.0)
    for number, active in enumerate((1, 3, 0, 2)):
        worker = gateway.Worker(agent, broker, number)
        worker.state, worker.active = "ready", active
        broker.workers.append(worker)
    assert [broker.workers.index(one) for one in broker.victims(2)] == wanted
    agent.end()


@pytest.mark.parametrize("path, status, field, wanted", [
    ("/invoke", 200, "", True), ("/invoke", 500, "", True), ("/invoke", 404, "", False),
    ("/invoke", 404, "200", True), ("/invoke", 200, "404", False),
    ("/http-invoke", 404, "", True), ("/http-invoke", 404, "404", False)])
def test_fcc_answer_status__judge_table(path: str, status: int, field: str,
                                        wanted: bool) -> None:
    """X-Fc-Status decides; without it 404 is a failure for events only."""
    assert gateway.judge_answer(path, status, field) == wanted


HEADS = {
    "no-target": "GET", "two-blanks": "GET  / HTTP/1.1",
    "folded": "GET / HTTP/1.1\r\n A: b",
    "blank-before-colon": "GET / HTTP/1.1\r\nA : b",
    "bare-lf": "GET / HTTP/1.1\r\nA: b\nC: d",
    "bare-cr": "GET / HTTP/1.1\r\nA: b\rC: d", "nul": "GET / HTTP/1.1\r\nA: \0",
    "no-colon": "GET / HTTP/1.1\r\nA", "no-name": "GET / HTTP/1.1\r\n: b",
    "two-lengths": "GET / HTTP/1.1\r\nContent-Length: 1\r\ncontent-length: 1",
    "signed-length": "GET / HTTP/1.1\r\nContent-Length: +1",
    "both": "GET / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked",
    "other-coding": "GET / HTTP/1.1\r\nTransfer-Encoding: gzip, chunked",
    "many": "GET / HTTP/1.1" + "\r\nA: b" * 101,
}


@pytest.mark.parametrize("name", sorted(HEADS))
def test_any_http_framing__gateway(name: str) -> None:
    """What could be read in two ways is not read at all."""
    with pytest.raises(gateway.BadMessage):
        gateway.parse_head(HEADS[name])


@pytest.mark.parametrize("pair", [("A", "b\r\nC: d"), ("A\r\nB", "c"), ("A", "b\n"),
                                  ("A", "b\r"), ("A", "\0")])
def test_any_security_values__gateway(pair: Tuple[str, str]) -> None:
    """No field smuggles a line in."""
    with pytest.raises(gateway.BadMessage):
        gateway.split_lines(["%s: %s" % pair], frozenset())
