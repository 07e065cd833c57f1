# test_bootstrap_scf.py: what SPEC.md chapter 7 asks of a bootstrap (MIT).
"""One rule each, on each implementation for Tencent SCF."""

import time

import pytest

import pulling
from kit import Bootstrap, Mismatch, instruction, same


def test_scf_ready_before_next(bootstrap: Bootstrap) -> None:
    """The first call is POST ready; next comes when that is answered."""
    run = bootstrap.pull()
    run.call("POST", "/runtime/init/ready").reply()
    poll = run.call("GET", "/runtime/invocation/next")
    same(b"first", run.hand(poll, b"first").body)


@pytest.mark.parametrize("status", [400, 404, 500, 503])
def test_scf_ready_refused(bootstrap: Bootstrap, status: int) -> None:
    """A ready that is refused does not keep the bootstrap from working."""
    run = bootstrap.pull()
    run.call("POST", "/runtime/init/ready").reply(status)
    run.alive()


@pytest.mark.parametrize("piece", [b"", b"HTTP/1.1 200 OK\r\nContent-Le"],
                         ids=("before", "within"))
def test_scf_ready_refused__cut(bootstrap: Bootstrap, piece: bytes) -> None:
    """A ready whose connection fails does not keep the bootstrap from working."""
    run = bootstrap.pull()
    run.call("POST", "/runtime/init/ready").drop(piece)
    run.alive()


def test_scf_ready_body(bootstrap: Bootstrap) -> None:
    """The body of ready is one space."""
    run = bootstrap.pull()
    exchange = run.call("POST", "/runtime/init/ready")
    exchange.reply()
    same(b" ", exchange.request.body, "body of ready")


def test_scf_env_tolerant(bootstrap: Bootstrap) -> None:
    """The API's address, its port and the handler are all that is needed."""
    needed = ("PATH", "TMPDIR", "SCF_RUNTIME_API", "SCF_RUNTIME_API_PORT", "_HANDLER")
    run = bootstrap.pull(only=needed)
    run.alive()


def test_scf_next_no_timeout(bootstrap: Bootstrap) -> None:
    """A poll that is held is not given up."""
    pulling.holds_on(bootstrap.pull())


EARLY_S = 0.1


@pytest.mark.parametrize("event", [b"first", instruction("raise", type="T", message="m")],
                         ids=("response", "error"))
def test_scf_response_order(bootstrap: Bootstrap, event: bytes) -> None:
    """There is no poll while the result has no answer."""
    with bootstrap.used_pull() as run:
        exchange = run.answered(event)
        time.sleep(EARLY_S)
        if not run.api.arrived.empty():
            raise Mismatch("no request before the result is answered",
                           run.api.arrived.get().request.start)
        exchange.reply()
        run.alive()
