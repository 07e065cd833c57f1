# test_platform_peers.py: what a platform does with peers that are hasty or slow (MIT).
"""Bootstraps that hang up, that send on, that do not read, and that end meanwhile.

Each mechanism that these checks look for can be left out of a platform without a trace
elsewhere. `pull_platform` is one for scf or fg, `platform` any of the three.
"""

import functools
import zlib
from typing import List

import pytest

import faults
import kit
import wire
from kit import Mismatch, same, waits
from platform_run import (CLOCKED, LIMITED, PAIR, Instance, PlatformRun,
                          PlatformUnderTest)

LARGE_BYTES = 6 << 20  # the limit of a message, and more than any buffer holds
AMPLE = ("--timeout", "60")  # for large ones on a busy machine
HEAD_LIMIT_S = 10  # head_timeout_s


# ---- slow ----


@waits
def test_any_limits_slow(pull_platform: PlatformUnderTest) -> None:
    """A request whose head comes byte by byte, and never ends, is dropped in time."""
    pull_platform.needs("slow-heads")
    with pull_platform.bare_run("--timeout", "60") as run:
        instance = run.fetched()
        number = instance.open()
        instance.send(number, b"GET /")
        for _ in range(HEAD_LIMIT_S + 1):
            run.wait(1.0)
            instance.send(number, b"x")
        reply = instance.read(number, 1.0)
        if reply.status == 408:  # that is said, too
            reply = instance.read(number, 1.0)
        same("closed", reply.end, "the connection")
        run.discard(instance)
        run.outcome("exit")


def test_any_limits_slow__in_time(pull_platform: PlatformUnderTest) -> None:
    """A poll that comes byte by byte, and soon enough, brings the event."""
    with pull_platform.used_run(*AMPLE) as run:
        instance = run.ready()
        number = instance.open()
        for place, byte in enumerate(instance.poll_bytes()):
            instance.send(number, bytes([byte]))
            run.wait(0.0 if place else 0.2)  # that the first one comes alone
        same(b"hello", instance.fetch(number).body)
        run.finish(instance)


@functools.lru_cache(maxsize=None)
def pattern(size: int) -> bytes:
    """Return so many bytes, no two parts of which are alike, nor all of them text."""
    return (b"".join(b"%d\xff" % number for number in range(size // 6)) + b"." * size)[:size]


def test_any_event_bytes__slow_reader(pull_platform: PlatformUnderTest) -> None:
    """A large event reaches a bootstrap in full that does not read it at once."""
    with pull_platform.bare_run(*AMPLE) as run:
        instance = run.idle_one()
        number = instance.park()
        run.settle()
        run.issue(pattern(LARGE_BYTES))
        run.wait(0.8)
        fetched_whole(instance.fetch(number), LARGE_BYTES)
        run.finish(instance)


def fetched_whole(got: wire.Message, size: int) -> None:
    """Raise Mismatch unless a message brought the whole pattern."""
    same(size, got.body_bytes, "bytes of the event")
    same(zlib.crc32(pattern(size)), got.body_sum, "checksum of the event")


@pytest.mark.parametrize("size", [65_537, LARGE_BYTES])
def test_any_event_bytes__large(platform: PlatformUnderTest, size: int) -> None:
    """A large event arrives byte for byte."""
    with platform.bare_run(*AMPLE) as run:
        instance = run.fetched(pattern(size))
        fetched_whole(instance.got, size)
        run.finish(instance)


@pytest.mark.parametrize("size", [65_537, 1 << 20])
@pytest.mark.parametrize("rule,chunk", [("any.result.bytes", 0), ("any.http.body", 1 << 20),
                                        ("any.http.body", 5000)])
def test_any_result_large(platform: PlatformUnderTest, rule: str, size: int,
                          chunk: int) -> None:
    """A large result reaches the caller byte for byte, also in few or many chunks."""
    body = pattern(size)
    field = ("Transfer-Encoding", "chunked") if chunk else ("Content-Length", str(size))
    with platform.bare_run(*AMPLE) as run:
        instance = run.fetched()
        head = (wire.head_bytes("HTTP/1.1 200 OK", [field]) if run.protocol == "fc" else
                instance.post_bytes(None, [field]))
        if run.protocol != "fc":
            instance.asked = instance.open()
        instance.answer_bytes(head + (wire.chunked(body, chunk) if chunk else body))
        seen = run.outcome("ok", instance).body
        same((size, zlib.crc32(body)), (len(seen), zlib.crc32(seen)), "size and checksum")


def test_any_event_timeout__unread(platform: PlatformUnderTest) -> None:
    """The limit strikes where an event is never read."""
    with platform.bare_run("--timeout", "1") as run:
        instance = deaf(run)
        run.outcome("timeout or not-fetched")
        instance.reaped()
        run.settle()


def test_any_instance_on_demand__unread(platform: PlatformUnderTest) -> None:
    """Where an event is never read, the next one goes to another instance."""
    platform.needs("instances")
    with platform.bare_run(*PAIR, "--timeout", "5") as run:
        instance = deaf(run)
        run.serve(b"another")
        run.abandon(instance)
        run.discard_idle()


def deaf(run: PlatformRun) -> Instance:
    """Return a bootstrap to which a large event is sent, and which does not read it."""
    if run.protocol == "fc":
        run.issue(b"x" * LARGE_BYTES)
        instance = run.server()
    else:
        instance = run.ready(b"x" * LARGE_BYTES)
        instance.park()
    run.settle()
    return instance


@pytest.mark.parametrize("half", [False, True])
@waits
def test_any_event_timeout__held(platform: PlatformUnderTest, half: bool) -> None:
    """A handler, or a body on its way, may take its time if the limit allows it."""
    hold_s = platform.implementation.hold_s
    with platform.bare_run("--timeout", str(30 + hold_s)) as run:
        instance = run.fetched()
        head, number = b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n", instance.asked
        if run.protocol != "fc":
            number = instance.open()
            head = instance.post_bytes(None, [("Content-Length", "8")])
        instance.send(number, *((head, b"half") if half else ()))
        run.wait(hold_s)
        instance.asked = number
        instance.answer_bytes(b"done" if half else head + b"all done")
        same(b"halfdone" if half else b"all done", run.outcome("ok").body)
        run.discard(instance)


@waits
def test_any_init_timeout__held(pull_platform: PlatformUnderTest) -> None:
    """A bootstrap may take its time to begin if the limit allows it."""
    hold_s = pull_platform.implementation.hold_s
    with pull_platform.bare_run("--init-timeout", str(30 + hold_s)) as run:
        instance = run.starting()
        run.wait(hold_s)
        if run.protocol == "scf":
            instance.ready()
        instance.fetch()
        run.finish(instance)
        run.discard_idle()


@waits
def test_any_http_reuse__held(pull_platform: PlatformUnderTest) -> None:
    """A connection is kept for as long as nothing comes."""
    with pull_platform.bare_run("--idle", "3600") as run:
        held(run, run.idle_one(), False)


@waits
def test_scf_next_blocks__held(platform: PlatformUnderTest) -> None:
    """A poll is held for as long as there is no event."""
    with platform.bare_run("--idle", "3600") as run:
        held(run, run.idle_one(), True)


@waits
def test_fg_request_blocks__held(platform: PlatformUnderTest) -> None:
    """A poll is held for as long as there is no event."""
    with platform.bare_run("--idle", "3600") as run:
        held(run, run.idle_one(), True)


def held(run: PlatformRun, instance: Instance, is_poll: bool) -> None:
    """Let time pass over a connection that was used, or over a poll on it; then there is
    an event."""
    number = instance.open()
    instance.send(number, wire.request_bytes("GET", "/"))
    same(404, instance.read(number).status)
    if is_poll:
        instance.send(number, instance.poll_bytes())
    run.wait(run.implementation.hold_s)
    if not is_poll:
        instance.send(number, instance.poll_bytes())
    run.issue(b"at last")
    same(b"at last", instance.fetch(number).body)
    run.finish(instance)
    run.discard_idle()


# ---- gone ----


@pytest.mark.parametrize("reset", [False, True])
def test_any_poll_dead__not_fetched(pull_platform: PlatformUnderTest,
                                    reset: bool) -> None:
    """A poll whose connection is gone has fetched nothing."""
    with pull_platform.used_run(*LIMITED) as run:
        instance = run.idle_one()
        instance.close(instance.park(), reset)
        run.settle()
        run.issue(b"precious")
        run.outcome("not-fetched")
        run.discard(instance)


@pytest.mark.parametrize("pause", [True, False])
@pytest.mark.parametrize("place", [0, 2, 4])
def test_any_poll_dead__one_lives(pull_platform: PlatformUnderTest, place: int,
                                  pause: bool) -> None:
    """Of several polls the one whose connection is there brings the event."""
    with pull_platform.used_run() as run:
        instance = run.idle_one()
        polls: List[int] = []
        for _ in range(5):
            polls.append(instance.park())
            run.settle()
        living = polls.pop(place)
        for number in polls:
            instance.close(number, reset=number % 2 == 0)
        if pause:
            run.settle()
        run.issue(b"precious")
        same(b"precious", instance.fetch(living).body)
        run.finish(instance)


def test_any_event_requeue__scf_first(platform: PlatformUnderTest) -> None:
    """A bootstrap that ends before it fetches its very first event costs this event."""
    with platform.used_run() as run:
        instance = run.ready()
        run.settle()
        instance.end("exit", status=0)
        run.outcome("exit")


@pytest.mark.parametrize("polls", [False, True])
def test_any_event_requeue(pull_platform: PlatformUnderTest, polls: bool) -> None:
    """An event that nobody had fetched when its instance ended is served by the next
    one, and before any other."""
    with pull_platform.used_run(*CLOCKED, "--max-instances", "1") as run:
        instance = run.idle_one()
        if polls:
            instance.close(instance.park())
            run.settle()
        run.issue(b"first")
        run.settle()
        run.issue(b"second")
        run.settle()
        instance.end("exit", status=0)
        following = run.instance()
        if run.protocol == "scf":
            following.ready()
        for event in (b"first", b"second"):
            same(event, following.fetch().body, "the event for the next instance")
            run.finish(following)


@pytest.mark.parametrize("size", [4, 100_000])
def test_any_result_first__busy(platform: PlatformUnderTest, size: int) -> None:
    """A result counts whose sender has ended by the time that the platform looks."""
    with platform.bare_run(*AMPLE) as run:
        instance = run.fetched()
        number, head = instance.asked, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size
        if run.protocol != "fc":
            head = instance.post_bytes(None, [("Content-Length", str(size))])
        with run.held_up():
            if run.protocol != "fc":  # on a connection that nobody has accepted yet
                number = [instance.open() for _ in range(3)][-1]
            instance.end("send", n=number, parts=[head, size])
            instance.end("exit", status=0)
            faults.wait_gone(instance.pid, run.patience_s)
        same(size, len(run.outcome("ok").body), "bytes of the result")
        instance.reaped()
        run.settle()


def test_any_result_first__large(pull_platform: PlatformUnderTest) -> None:
    """A large result counts whose sender ends right behind its last byte."""
    with pull_platform.bare_run(*AMPLE) as run:
        instance = run.fetched()
        head = instance.post_bytes(None, [("Content-Length", str(LARGE_BYTES))])
        ends_behind(instance, instance.open(), head)
        same(LARGE_BYTES, len(run.outcome("ok").body), "bytes of the result")
        instance.reaped()
        run.settle()


def test_any_result_first__fc_large(platform: PlatformUnderTest) -> None:
    """A large answer counts whose sender ends right behind its last byte."""
    with platform.running() as (run, instance):
        ends_behind(instance, instance.asked,
                    b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % LARGE_BYTES)
        same(LARGE_BYTES, len(run.outcome("ok").body), "bytes of the result")
        instance.reaped()
        run.settle()


def ends_behind(instance: Instance, number: int, head: bytes) -> None:
    """Have the bootstrap send a large message and end, with nothing in between."""
    instance.end("send", n=number, parts=[head, LARGE_BYTES])
    instance.end("exit", status=0)


def test_any_stop_order__child(platform: PlatformUnderTest) -> None:
    """What a shell has started may end in order although the shell ends at once."""
    run = platform.run("--grace", "30")
    run.wrap_bootstrap(f"#!/bin/sh\n'{run.code}/child' &\nwait")
    instance = run.stubborn()
    run.end_input()
    run.wait(0.3)
    instance.order("print", to=1, text=b"in order\n")
    instance.end("exit", status=0)
    run.ends()


# ---- hasty ----

REFUSED = {
    "nonsense": ("any.http.malformed", b"NONSENSE\r\n\r\n", 400),
    "two-lengths": ("any.http.framing", b"POST /x HTTP/1.1\r\n"
                    b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    "bad-chunk": ("any.http.framing", b"POST /x HTTP/1.1\r\n"
                  b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n", 400),
    "long-field": ("any.limits.head", b"GET /x HTTP/1.1\r\nX-A: " + b"a" * 70_000
                   + b"\r\n\r\n", 431),
    "many-fields": ("any.limits.head", b"GET /x HTTP/1.1\r\n"
                    + b"X-A: b\r\n" * 101 + b"\r\n", 431)}


@pytest.mark.parametrize("name,rule", [(name, REFUSED[name][0]) for name in REFUSED])
def test_any_http_refused(pull_platform: PlatformUnderTest, name: str,
                          rule: str) -> None:
    """A refusal reaches a peer that has sent more, as far as it could."""
    pull_platform.needs("hostile")
    _, head, status = REFUSED[name]
    with pull_platform.fetched() as instance:
        number = instance.open()
        instance.send(number, head, LARGE_BYTES)
        same(status, instance.read(number).status, "status")
        instance.close(number)


@pytest.mark.parametrize("path,status", [("/no/such/call", 404), ("{poll}", 405)])
def test_any_api_unknown__large(pull_platform: PlatformUnderTest, path: str,
                                status: int) -> None:
    """The refusal of a call with a large body can be read by who has sent it all, and
    the connection serves on."""
    with pull_platform.running() as (run, instance):
        path = path.format(poll=kit.DIALECTS[run.protocol].poll)
        refused_whole(run, instance, path, status)


def test_fg_result_unknown_id__large(platform: PlatformUnderTest) -> None:
    """So it is with a large result for an id that is not that of the event."""
    with platform.running() as (run, instance):
        refused_whole(run, instance, instance.result_path("response", "nobody"), 404)


def refused_whole(run: PlatformRun, instance: Instance, path: str, status: int) -> None:
    """Post a large body where it is refused, then the result on the same connection."""
    number = instance.open()
    length = [("Content-Length", str(LARGE_BYTES))]
    same(True, instance.send(number, wire.request_bytes("POST", path, length),
                             LARGE_BYTES), "all taken")
    same(status, instance.read(number).status, "status")
    instance.send(number, instance.post_bytes(b"done"))
    same(200, instance.read(number).status, "status of the result that follows")
    instance.close(number)
    run.outcome("ok", instance)


def test_any_result_size__chunked(pull_platform: PlatformUnderTest) -> None:
    """The answer to chunks that are too large reaches a peer that has sent more."""
    size = pull_platform.result_bytes() + LARGE_BYTES
    with pull_platform.running() as (run, instance):
        number = instance.open()
        head = instance.post_bytes(None, [("Transfer-Encoding", "chunked")])
        instance.send(number, head, b"%x\r\n" % size, size, b"\r\n0\r\n\r\n")
        same(413, instance.read(number).status, "status")
        instance.close(number)
        run.outcome("response-too-large", instance)


def test_any_result_size__read_away(pull_platform: PlatformUnderTest) -> None:
    """A result that is much too large is read to its end, then all goes on."""
    size = pull_platform.result_bytes() + LARGE_BYTES
    with pull_platform.running() as (run, instance):
        number = instance.open()
        head = instance.post_bytes(None, [("Content-Length", str(size))])
        same(True, instance.send(number, head, size), "all taken")
        same(413, instance.read(number).status, "status")
        run.outcome("response-too-large")
        run.issue(b"next")
        instance.send(number, instance.poll_bytes())
        same(b"next", instance.fetch(number).body, "the event on the same connection")
        run.finish(instance)


def test_any_http_reuse__behind_a_poll(pull_platform: PlatformUnderTest) -> None:
    """A call sent behind a poll that is held is answered after it."""
    with pull_platform.used_run() as run:
        instance = run.idle_one()
        number = instance.park()
        path, status = ("/runtime/init/ready", b"200") if run.protocol == "scf" else \
            (instance.result_path("error", "nobody"), b"404")
        instance.send(number, wire.request_bytes("POST", path, (), b" "))
        run.settle()
        run.issue(b"hello")
        first = instance.read(number)
        if first.status == 204:  # it may do so [fg.request.empty]
            instance.close(number)
            instance.fetch()
            run.finish(instance)
            return
        same(b"hello", first.body[:5], "the event on the poll")
        instance.request_id = first.header(
            kit.DIALECTS[run.protocol].id_header) or ""
        second = first.body[5:] or instance.read(number).start.encode()
        if second[8:12] != b" " + status:
            raise Mismatch(f"the status {status!r} after the event", repr(second[:80]))
        instance.close(number)
        run.finish(instance)


# ---- slow to answer, fc ----


def test_any_event_timeout__fc_drip(platform: PlatformUnderTest) -> None:
    """An answer that comes byte by byte, and never ends, is a timeout."""
    with platform.running(*LIMITED) as (run, instance):
        instance.send(instance.asked, b"HTTP/1.1 200 OK\r\nX-Long: ")
        for _ in range(25):
            if run.outcomes.empty():
                instance.answer_bytes(b"x")  # its process may be gone meanwhile
                run.wait(0.1)
        same(False, run.outcomes.empty(), "an outcome after 1 s, while it drips")
        run.outcome("timeout")
        instance.reaped()
        run.settle()


def test_fc_invoke_answer__drip(platform: PlatformUnderTest) -> None:
    """An answer that comes byte by byte is one like any other."""
    with platform.running() as (run, instance):
        for byte in wire.response(200, [("x-fc-status", "200")], b"done"):
            instance.send(instance.asked, bytes([byte]))
        same(b"done", run.outcome("ok", instance).body)
