# test_bootstrap_scf.py: what SPEC.md chapter 7 asks of a bootstrap (MIT).
"""One rule each, on each implementation for Tencent SCF."""

import time

import pytest

import pulling
import wire
from kit import Bootstrap, Mismatch, instruction, same, waits

READY = "/runtime/init/ready"
FAILING = instruction("raise", type="T", message="m")


def test_scf_ready_before_next(bootstrap: Bootstrap) -> None:
    """The first call is POST ready; next comes when that is answered."""
    run = bootstrap.pull()
    exchange = run.call("POST", READY)
    run.quiet(0.1, "while ready is not answered")
    exchange.reply()
    poll = run.call("GET", "/runtime/invocation/next")
    same(b"first", run.hand(poll, b"first").body)


REFUSALS = {
    **{str(status): wire.response(status) for status in (202, 204, 404, 503)},
    "with-body": wire.response(500, (), b"broken"),
    "closing": wire.response(200, [("Connection", "close")], b"{}")}


@pytest.mark.parametrize("name", sorted(REFUSALS))
def test_scf_ready_refused(bootstrap: Bootstrap, name: str) -> None:
    """A ready that is answered otherwise does not keep the bootstrap from working."""
    run = bootstrap.pull()
    run.call("POST", READY).send(REFUSALS[name])
    run.alive()


@pytest.mark.parametrize("piece", [b"", b"HTTP/1.1 200 OK\r\nContent-Le"],
                         ids=("before", "within"))
def test_scf_ready_refused__cut(bootstrap: Bootstrap, piece: bytes) -> None:
    """A ready whose connection fails does not keep the bootstrap from working."""
    run = bootstrap.pull()
    run.call("POST", READY).drop(piece)
    run.alive()


@waits
@pytest.mark.parametrize("how", ["refused", "dropped"])
def test_scf_ready_refused__long(bootstrap: Bootstrap, how: str) -> None:
    """A platform that is not there yet, or refuses ready for long, is asked further."""
    run = bootstrap.pull()
    for _ in range(6):
        exchange = run.request("ready again, or a poll")
        exchange.reply(503) if how == "refused" else exchange.drop()
    run.alive()


def test_any_poll_pause__scf_ready(puller: Bootstrap) -> None:
    """Who posts ready again waits before."""
    run = puller.pull()
    exchange = run.request("ready")
    began = time.monotonic()
    while time.monotonic() < began + 0.7:  # one quick one among many is enough
        exchange.reply(503)
        replied = time.monotonic()
        exchange = run.request("ready again, or a poll")
        paused_s = time.monotonic() - replied
        if exchange.request.path == READY and paused_s < 0.04:
            raise Mismatch("a pause of 50 ms before ready again", f"{paused_s:.3f} s")
    exchange.reply(503)
    run.alive()


@pytest.mark.parametrize("status", [302, 307])
def test_any_http_redirect__scf_ready(puller: Bootstrap, status: int) -> None:
    """No redirect of ready is followed."""
    run = puller.pull()
    run.call("POST", READY).send(pulling.redirect(run, status))
    run.alive()


@waits
def test_any_result_patience__scf_ready(puller: Bootstrap) -> None:
    """The answer to ready may take its time."""
    run = puller.pull()
    exchange = run.call("POST", READY)
    run.quiet(run.kind.hold_s, f"while ready is not answered for {run.kind.hold_s} s")
    exchange.reply()
    run.alive()


def test_any_stop_bootstrap__scf_ready(puller: Bootstrap) -> None:
    """A bootstrap ends at SIGTERM also while its ready is refused."""
    run = puller.pull()
    for _ in range(3):
        run.request("ready again, or a poll").drop()
    run.process.terminate()
    run.process.ends_in_grace(run.patience_s)


def test_scf_ready_body(bootstrap: Bootstrap) -> None:
    """The body of ready is one space."""
    run = bootstrap.pull()
    exchange = run.call("POST", READY)
    exchange.reply()
    same(b" ", exchange.request.body, "body of ready")


def test_scf_env_tolerant(bootstrap: Bootstrap) -> None:
    """The API's address, its port and the handler are all that is needed."""
    needed = ("PATH", "TMPDIR", "SCF_RUNTIME_API", "SCF_RUNTIME_API_PORT", "_HANDLER")
    run = bootstrap.pull(only=needed)
    if "context" not in run.kind.without:
        same("response", run.invoke(instruction("context")).kind)
    run.alive()


@waits
@pytest.mark.parametrize("which", ["first", "later", "begun"])
def test_scf_next_no_timeout(bootstrap: Bootstrap, which: str) -> None:
    """A poll that is held, or whose answer comes to a halt, is not given up."""
    run = bootstrap.pull()
    if which == "later":
        run.invoke(b"before")
    pulling.holds_on(run, which == "begun")


@pytest.mark.parametrize("event", [b"first", FAILING], ids=("response", "error"))
def test_scf_response_order(bootstrap: Bootstrap, event: bytes) -> None:
    """There is no poll while the result has no answer."""
    with bootstrap.used_pull() as run:
        exchange = run.answered(event)
        run.quiet(0.1, "before the result is answered")
        exchange.reply()


@waits
def test_scf_response_order__slow(bootstrap: Bootstrap) -> None:
    """There is no poll either when the answer takes its time."""
    run = bootstrap.pull()
    exchange = run.answered(b"first")
    run.quiet(run.kind.hold_s, "before the result is answered")
    exchange.reply()
    run.alive()
