# test_emulator_samples.py: bootstraps as people and vendors really write them (MIT).
"""Run small bash bootstraps with all the habits that samples have, good and bad.

They send form-encoded bodies, dump heads into a file with `-LD`, give results as an
argument of curl, leave the content type empty, or poll twice. The platform has to be
content with each, without noting a breach.
"""

import pathlib
from typing import Any, Dict, List

import pytest
from emulator import Outcome, Platform
from harness import within
from test_emulator_concurrency import Attached

API = {"scf": "http://$SCF_RUNTIME_API:$SCF_RUNTIME_API_PORT/runtime",
       "fg": "http://$RUNTIME_API_ADDR/v1/runtime"}
NEXT = {"scf": "invocation/next", "fg": "invocation/request"}
RESULT = {"scf": "invocation/%s", "fg": "invocation/%s/$ID"}
ID = {"scf": "request_id", "fg": "x-cff-request-id"}

SAMPLE = """#! /bin/bash
set -u
unset http_proxy
API="{api}"
{ready}
while true; do
  HEAD="$(mktemp)"
  EVENT=$({fetch})
  ID=$(grep -Fi {id} "$HEAD" | tr -d '[:space:]' | cut -d: -f2)
  RESPONSE="Echoing request: $EVENT"
  if [ "$EVENT" = fail ]; then
    curl -sS -X POST "$API/{error}" -d "$RESPONSE" -o /dev/null
  else
    {post}
  fi
done
"""
READY = {
    "one-blank": 'curl -s -X POST "$API/init/ready" -d " " -o /dev/null',
    "json": "curl -s -X POST \"$API/init/ready\" -H 'Content-Type: application/json' "
            "-d '{}'",
    "no-body": 'curl -s -X POST "$API/init/ready"',
    "twice": 'for _ in 1 2; do curl -s -X POST "$API/init/ready" -d " "; done'}
FETCH = {
    "dump": 'curl -sS -LD "$HEAD" -X GET "$API/{next}"',
    "get": 'curl -s -D "$HEAD" "$API/{next}"',
    "http-1.0": 'curl -0 -s -D "$HEAD" "$API/{next}"',
    "compressed": 'curl -s --compressed -D "$HEAD" "$API/{next}"'}
POST = {
    "argument": 'curl -X POST "$API/{response}" -d "$RESPONSE" -sS -o /dev/null',
    "stdin": 'echo -n "$RESPONSE" | curl -sS --data-binary @- "$API/{response}"',
    "chunked": 'echo -n "$RESPONSE" | curl -sS -X POST -H "Transfer-Encoding: chunked" '
               '-T - "$API/{response}"',
    "expect": 'curl -sS -H "Expect: 100-continue" -d "$RESPONSE" "$API/{response}"',
    "no-type": 'curl -sS -H "Content-Type;" -d "$RESPONSE" "$API/{response}"',
    "http-1.0": 'curl -0 -sS -d "$RESPONSE" "$API/{response}"',
    "trailing-query": 'curl -sS -d "$RESPONSE" "$API/{response}?from=sample"'}


def sample(protocol: str, folder: pathlib.Path, **habits: str) -> str:
    """Write a bootstrap with these habits; return its folder."""
    paths = {"next": NEXT[protocol], "response": RESULT[protocol] % "response",
             "error": RESULT[protocol] % "error"}
    text = SAMPLE.format(
        api=API[protocol], id=ID[protocol], error=paths["error"],
        ready=READY[habits.get("ready", "one-blank")] if protocol == "scf" else "",
        fetch=FETCH[habits.get("fetch", "dump")].format(**paths),
        post=POST[habits.get("post", "argument")].format(**paths))
    (folder / "bootstrap").write_text(text)
    (folder / "bootstrap").chmod(0o755)
    return str(folder)


def outcomes_of(code: str, protocol: str, *events: bytes) -> List[Outcome]:
    """Return what becomes of events."""
    settings: Dict[str, Any] = (
        {"port": 0} if protocol == "fc" else {"init_timeout_s": 20})
    with Platform(protocol, code, timeout_s=20, **settings) as platform:
        return [within(30, lambda: platform.invoke(event)) for event in events]


HABITS = [("scf", {"ready": name}) for name in READY] + [
    (protocol, {habit: name}) for protocol in ("scf", "fg")
    for habit, names in (("fetch", FETCH), ("post", POST)) for name in names]


@pytest.mark.parametrize("protocol,habits", HABITS, ids=[
    "%s-%s" % (protocol, "-".join(*habits.items())) for protocol, habits in HABITS])
def test_sample(protocol: str, habits: Dict[str, str], tmp_path: pathlib.Path) -> None:
    """The sample serves event after event, its error too, and breaks no rule."""
    code = sample(protocol, tmp_path, **habits)
    first, failed, last = outcomes_of(code, protocol, b'{"key": "v"}', b"fail", b"a&b=c")
    assert first.body == b'Echoing request: {"key": "v"}', first
    assert failed.kind == "function-error" and last.body == b"Echoing request: a&b=c"
    assert not first.violations + failed.violations + last.violations


@pytest.fixture(autouse=True)
def scratch(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the samples forget their temporary files where pytest finds them."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))


def attached(protocol: str) -> Attached:
    """Return a platform whose bootstrap is the test."""
    return Attached(protocol)


@pytest.mark.parametrize("protocol", ("scf", "fg"))
def test_go_client(protocol: str) -> None:
    """What Go's client sends counts: an empty content type, gzip, one connection."""
    one = attached(protocol)
    with one.platform:
        one.start()
        channel = one.dial()
        fields = [("User-Agent", "Go-http-client/1.1"), ("Content-Type", ""),
                  ("Accept-Encoding", "gzip")]
        for number in range(3):
            invocation = one.submit(b"%d" % number)
            channel.send(one.poll())
            assert channel.read(10, "GET").body == b"%d" % number
            channel.send(one.result(invocation, b"done", *fields))
            assert channel.read(10, "POST").body == b""
            assert one.outcome().body == b"done"
        assert not one.platform.violations
        channel.close()


def test_double_polling() -> None:
    """A client that asks for each event twice, on two connections, gets it twice (scf)."""
    one = attached("scf")
    with one.platform:
        one.start()
        for number in range(3):
            polls = [one.park(), one.park()]
            invocation = one.submit(b"%d" % number)
            assert [poll.read(10, "GET").body for poll in polls] == [b"%d" % number] * 2
            one.ask(one.result(invocation, b"done"))
            assert one.outcome().body == b"done"
        assert not one.platform.violations


def test_bash_fc_messages(tmp_path: pathlib.Path) -> None:
    """The bash sample takes each message from its listener, also one that comes while
    a read gives up: here that is every 2 ms, not every second."""
    sample = pathlib.Path(__file__).resolve().parents[2] / "examples/bash/fc"
    text = (sample / "bootstrap").read_text()
    assert "read -r -t 1 " in text
    (tmp_path / "bootstrap").write_text(text.replace("read -r -t 1 ", "read -r -t 0.002 "))
    (tmp_path / "bootstrap").chmod(0o755)
    (tmp_path / "index.sh").write_text("handler() { cat; }\n")
    events = [b"%d" % number for number in range(60)]
    assert [one.body for one in outcomes_of(str(tmp_path), "fc", *events)] == events


def test_library() -> None:
    """The example of the documentation works: a platform inside a `with`."""
    code = str(pathlib.Path(__file__).resolve().parents[2] / "examples/bash/scf")
    settings: Dict[str, Any] = {"timeout_s": 3}
    with Platform("scf", code=code, **settings) as platform:
        outcome = platform.invoke(b'{"key": "value"}')
        assert outcome.kind == "ok" and not outcome.violations
