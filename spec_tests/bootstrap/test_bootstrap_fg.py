# test_bootstrap_fg.py: what SPEC.md chapter 8 asks of a bootstrap (MIT).
"""One rule each, on each implementation for Huawei FunctionGraph."""

import pytest

import pulling
import wire
from kit import Bootstrap, event_headers, instruction, same


@pytest.mark.parametrize("name", sorted(pulling.WITHOUT_ID))
def test_any_poll_retry__fg_no_event(bootstrap: Bootstrap, name: str) -> None:
    """What has no id, or another status than 200, is no event."""
    with bootstrap.used_pull() as run:
        pulling.survives(run, pulling.WITHOUT_ID[name])


def test_fg_request_no_timeout(bootstrap: Bootstrap) -> None:
    """A poll that is held is not given up."""
    pulling.holds_on(bootstrap.pull())


@pytest.mark.parametrize("request_id", [
    "1", "00000000-0000-4000-8000-000000000000", "ABC-def-123", "x" * 100])
def test_fg_response_id(bootstrap: Bootstrap, request_id: str) -> None:
    """The result goes to the path that ends in the id of the event."""
    with bootstrap.used_pull() as run:
        run.last_id = request_id
        event = wire.response(200, event_headers("fg", request_id), b"which id?")
        same(("response", b"which id?"), run.answer(event)[:2])


def test_fg_response_id__error(bootstrap: Bootstrap) -> None:
    """An error goes to the path that ends in the id of the event."""
    with bootstrap.used_pull() as run:
        same("error", run.invoke(instruction("raise", type="T", message="m")).kind)


def test_fg_response_id__decoy(bootstrap: Bootstrap) -> None:
    """The id is that of the field, not of a value that names the field."""
    with bootstrap.used_pull() as run:
        same(b"which id?", pulling.framed(run, "decoys", b"which id?").body)


def test_fg_start_cwd(bootstrap: Bootstrap) -> None:
    """The bootstrap works in another working directory as well."""
    run = bootstrap.pull(folder="/")
    run.alive()
