# test_clients.py: bootstraps as people write them with curl (MIT).
"""Run small bash bootstraps with all the habits that samples have, good and bad.

They send form-encoded bodies, dump heads into a file with `-LD`, give results as an
argument of curl, leave the content type empty, or speak HTTP/1.0. The platform has to
be content with each, without noting a breach.
"""

import pathlib
from typing import Dict

import pytest
from emulator import Platform
from harness import within

API = {"scf": "http://$SCF_RUNTIME_API:$SCF_RUNTIME_API_PORT/runtime/invocation",
       "fg": "http://$RUNTIME_API_ADDR/v1/runtime/invocation"}
SAMPLE = """#! /bin/bash
set -u
API={api}
{ready}
while true; do
  HEAD="$(mktemp)"
  EVENT=$(curl -s {fetch} "$API/{next}")
  ID=$(grep -Fi x-cff-request-id "$HEAD" | tr -d '[:space:]' | cut -d: -f2)
  RESULT="Echoing request: $EVENT"
  if [ "$EVENT" = fail ]; then
    curl -sS -X POST "$API/error{own}" -d "$RESULT" -o /dev/null
  else
    {post} "$API/response{own}"
  fi
done
"""
READY = {"one-blank": '-d " "', "no-body": "",
         "json": "-H 'Content-Type: application/json' -d '{}'",
         "twice": '-d " " "$API/../init/ready"'}
FETCH = {"dump": '-LD "$HEAD" -X GET', "http-1.0": '-0 -D "$HEAD"',
         "compressed": '--compressed -D "$HEAD"'}
POST = {"argument": 'curl -sS -X POST -d "$RESULT"',
        "stdin": 'echo -n "$RESULT" | curl -sS --data-binary @-',
        "chunked": 'echo -n "$RESULT" | curl -sS -X POST -T - '
                   '-H "Transfer-Encoding: chunked"',
        "expect": 'curl -sS -H "Expect: 100-continue" -d "$RESULT"',
        "no-type": 'curl -sS -H "Content-Type;" -d "$RESULT"',
        "http-1.0": 'curl -0 -sS -d "$RESULT"'}
HABITS = [("scf", {"ready": name}) for name in READY] + [
    (protocol, {habit: name}) for protocol in ("scf", "fg")
    for habit, names in (("fetch", FETCH), ("post", POST)) for name in names]


@pytest.mark.parametrize("protocol,habits", HABITS, ids=[
    "%s-%s" % (protocol, "-".join(*habits.items())) for protocol, habits in HABITS])
def test_any_http_body__curl(protocol: str, habits: Dict[str, str],
                             tmp_path: pathlib.Path) -> None:
    """The sample serves event after event, its error too, and breaks no rule."""
    is_scf = protocol == "scf"
    (tmp_path / "bootstrap").write_text(SAMPLE.format(
        api=API[protocol], next="next" if is_scf else "request",
        own="" if is_scf else "/$ID", fetch=FETCH[habits.get("fetch", "dump")],
        post=POST[habits.get("post", "argument")],
        ready='curl -s -X POST "$API/../init/ready" %s' % READY[
            habits.get("ready", "one-blank")] if is_scf else ""))
    (tmp_path / "bootstrap").chmod(0o755)
    with Platform(protocol, str(tmp_path), timeout_s=20, init_timeout_s=20) as platform:
        first, failed, last = [within(30, lambda: platform.invoke(event)) for event in (
            b'{"key": "v"}', b"fail", b"a&b=c")]
    assert first.body == b'Echoing request: {"key": "v"}', first
    assert failed.kind == "function-error" and last.body == b"Echoing request: a&b=c"
    assert not first.violations + failed.violations + last.violations


def test_library() -> None:
    """The example of the documentation works: a platform inside a `with`."""
    code = str(pathlib.Path(__file__).resolve().parents[2] / "examples/bash/scf")
    with Platform("scf", code=code) as platform:
        outcome = platform.invoke(b'{"key": "value"}')
        assert outcome.kind == "ok" and not outcome.violations
