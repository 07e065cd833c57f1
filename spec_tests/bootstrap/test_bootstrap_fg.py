# test_bootstrap_fg.py: what SPEC.md chapter 8 asks of a bootstrap (MIT).
"""One rule each, on each implementation for Huawei FunctionGraph."""

import pytest

import pulling
import wire
from kit import Bootstrap, event_headers, instruction, same, waits


def test_any_poll_retry__fg_no_event(bootstrap: Bootstrap) -> None:
    """What has no id, or another status than 200, is no event."""
    with bootstrap.used_pull() as run:
        pulling.survives(run, pulling.WITHOUT_ID)


@waits
@pytest.mark.parametrize("which", ["first", "later", "begun"])
def test_fg_request_no_timeout(bootstrap: Bootstrap, which: str) -> None:
    """A poll that is held, or whose answer comes to a halt, is not given up."""
    run = bootstrap.pull()
    if which == "later":
        run.invoke(b"before")
    pulling.holds_on(run, which == "begun")


IDS = ("1", "00000000-0000-4000-8000-000000000000", "ABC-def-123", "x" * 100, "007-1e5",
       "null", "-a-")


@pytest.mark.parametrize("word", ["echo", "raise"])
def test_fg_response_id(bootstrap: Bootstrap, word: str) -> None:
    """Each result goes to the path that ends in the id of its own event."""
    with bootstrap.used_pull() as run:
        for request_id in IDS:
            run.last_id = request_id
            event = instruction(word, text="which id?", type="T", message="m")
            kind = run.answer(wire.response(200, event_headers("fg", request_id), event)).kind
            same("response" if word == "echo" else "error", kind, request_id)


def test_fg_response_id__field(bootstrap: Bootstrap) -> None:
    """The id is that of the field: not of a value that names it, without blanks."""
    with bootstrap.used_pull() as run:
        for framing in ("decoys", "many-blanks", "lower-case"):
            result = pulling.framed(run, pulling.NAMED[framing], b"which id?")
            same(b"which id?", result.body, framing)


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_any_result_once__fg_bare(puller: Bootstrap, kind: str) -> None:
    """An event without credentials brings a result, one that nobody waits for, too."""
    with puller.used_pull() as run:
        run.last_id = f"bare-{kind}"
        fields = [("X-Cff-Request-Id", run.last_id), ("X-CFF-Invoke-Type", kind)]
        result = run.answer(wire.response(200, fields, b"an event"))
        same(("response", b"an event"), (result.kind, result.body), "kind and body")


def test_fg_start_cwd(bootstrap: Bootstrap) -> None:
    """The bootstrap works in another working directory as well."""
    run = bootstrap.pull(folder="/")
    run.alive()
