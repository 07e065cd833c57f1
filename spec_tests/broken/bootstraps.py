#!/usr/bin/env python3
# bootstraps.py: bootstraps that break one rule each (MIT).
"""Run a broken bootstrap: `python3 spec_tests/broken/bootstraps.py NAME`.

Each row of the table below is a correct bootstrap with one step of it replaced, and the
rule which that breaks. `Scf`, `Fg` and `Fc` are the correct ones.
"""

import atexit
import contextlib
import json
import os
import pathlib
import re
import select
import signal
import socket
import sys
import threading
import time
import unicodedata
import urllib.parse
from typing import Any, Callable, Dict, List, Optional, Tuple, Type

TESTS = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS / "kit")]

import wire  # noqa: E402
from broken.base_bootstrap import Base, Failure, Fc, Fg, Pull, Scf  # noqa: E402

BROKEN: Dict[str, Tuple[str, str, Any]] = {}  # name -> protocol, rule, class


def breaks(name: str, base: Type[Base], rule: str, **steps: Any) -> None:
    """Enter a bootstrap into the table that does these steps its own way."""
    BROKEN[name] = base.__name__.lower(), rule, type(name, (base,), steps)


# ---- events ----


def only_json(self: Any, event: bytes, context: Dict[str, Any]) -> bytes:
    if not re.match(rb"^\s*[\[{\"\d]", event):
        raise Failure("ValueError", "the event is no JSON")
    return Base.handle(self, event, context)


def changed(change: Callable[[bytes], bytes]) -> Callable[..., bytes]:
    """Return a step that handles the event as something else."""
    return lambda self, event, context: Base.handle(self, change(event), context)


def keep_chunk_sizes(self: Any, answer: wire.Message) -> None:
    if answer.header("transfer-encoding"):
        answer = answer._replace(body=wire.chunked(answer.body))
    Pull.serve(self, answer)


breaks("JsonOnly", Scf, "any.event.opaque", handle=only_json)
breaks("Trims", Scf, "any.event.opaque",
       handle=changed(lambda event: event.rstrip(b"\n")))
breaks("TextOnly", Fg, "any.event.opaque", handle=changed(
    lambda event: event.decode("utf-8", "replace").encode()))
breaks("StopsAtNul", Fg, "any.event.opaque",
       handle=changed(lambda event: event.split(b"\0")[0]))
breaks("CutsLargeEvents", Scf, "any.event.large",
       handle=changed(lambda event: event[:131072]))
breaks("CutsLargeResults", Fg, "any.event.large", post=lambda self, kind, id_, body:
       Pull.post(self, kind, id_, body[:131072]))
breaks("KeepsChunkSizes", Scf, "any.http.chunked-event", serve=keep_chunk_sizes)
breaks("ChunkedInOneCase", Scf, "any.http.chunked-event", is_event=lambda self, answer:
       answer.header("transfer-encoding") in (None, "chunked")
       and Pull.is_event(self, answer))

# ---- polls ----


def wait_after_interim(self: Any, method: str) -> wire.Message:
    answer: wire.Message = self.channel.read(self.limit_s, to=method)
    while answer.status < 200:
        if method == "POST":
            signal.pause()
        answer = self.channel.read(self.limit_s, to=method)
    return answer


def interim_is_final(self: Any, method: str) -> wire.Message:
    answer: wire.Message = self.channel.read(self.limit_s, to=method)
    if answer.status < 200:
        self.drop()
    return answer


def half_of(cut: wire.Closed) -> wire.Message:
    """Return what came of a message. Raises Closed if its head is not whole."""
    head, blank, body = cut.seen.partition(b"\r\n\r\n")
    if not blank:
        raise cut
    return wire.Message(*wire.parse_head(head), body, head)


def take_half(sign: str) -> Callable[..., wire.Message]:
    """Return a step that takes half an answer for a whole one, if that tells why."""
    def read(self: Any, method: str) -> wire.Message:
        try:
            return Pull.read(self, method)
        except wire.Closed as cut:
            if sign not in cut.what:
                raise
            self.drop()
            return half_of(cut)

    return read


def poll_once(self: Any) -> Optional[wire.Message]:
    answer: wire.Message = self.exchange("GET", self.poll_path, None)
    return answer if self.is_event(answer) else None


def poll_without_pause(self: Any) -> Optional[wire.Message]:
    while True:
        try:
            return poll_once(self)
        except wire.WireError:
            pass
        except OSError:
            return None


def follow_redirects(self: Any) -> Optional[wire.Message]:
    answer: wire.Message = self.exchange("GET", self.poll_path, None)
    while answer.status == 302:
        answer = self.exchange("GET", answer.header("location") or "/", None)
    return answer if self.is_event(answer) else None


def give_up(self: Any) -> Optional[wire.Message]:
    try:
        return poll_once(self)
    except ConnectionRefusedError:
        os._exit(1)
    except wire.WireError:
        return None


def notice_204(self: Any, answer: wire.Message) -> bool:
    self.was_204 = answer.status == 204
    return Pull.is_event(self, answer)


breaks("CaseSensitive", Scf, "any.http.header-case", is_event=lambda self, answer:
       answer.status == 200 and "Request_Id" in dict(answer.headers))
breaks("LengthInOneCase", Scf, "any.http.header-case", is_event=lambda self, answer:
       "content-length" not in dict(answer.headers) and Pull.is_event(self, answer))
breaks("WaitsAfterInterim", Fg, "any.http.interim", read=wait_after_interim)
breaks("TakesAnySuccess", Scf, "any.poll.retry", is_event=lambda self, answer:
       200 <= answer.status < 300 and bool(answer.header(self.id_header)))
breaks("PausesTooLong", Scf, "any.poll.pause", pause=lambda self: time.sleep(7))
breaks("NoPauseAfterCut", Scf, "any.poll.pause", poll=poll_without_pause)
breaks("InterimIsFinal", Scf, "any.http.interim", read=interim_is_final)
breaks("DiesOn500", Scf, "any.poll.retry", is_event=lambda self, answer:
       os._exit(1) if answer.status >= 500 else Pull.is_event(self, answer))
breaks("TakesAnyStatus", Scf, "any.poll.retry", is_event=lambda self, answer: True)
breaks("FollowsRedirects", Scf, "any.poll.retry", poll=follow_redirects)
breaks("DiesOnLostPoll", Fg, "any.poll.retry", poll=poll_once)
breaks("TakesHalfEvents", Fg, "any.poll.retry", read=take_half(""))
breaks("NoPause", Scf, "any.poll.pause", pause=lambda self: time.sleep(0.001))
breaks("PausesAfterErrorsOnly", Fg, "any.poll.pause", is_event=notice_204,
       was_204=False, pause=lambda self: None if self.was_204 else Pull.pause(self))
breaks("GivesUp", Scf, "any.poll.pause", poll=give_up)
breaks("HangsUpEarly", Scf, "scf.next.no-timeout", limit_s=0.2)
breaks("HangsUpEarlyFg", Fg, "fg.request.no-timeout", limit_s=0.2)
breaks("IgnoresMissingId", Fg, "any.poll.retry",
       is_event=lambda self, answer: answer.status == 200)
breaks("TakesErrorsWithId", Fg, "any.poll.retry",
       is_event=lambda self, answer: bool(answer.header(self.id_header)))

# ---- results ----


def told(base: Type[Base], **changes: Callable[[wire.Message], object],
         ) -> Callable[..., Dict[str, Any]]:
    """Return a step that tells the handler something else."""
    made: Any = base
    return lambda self, message: {**made.context(self, message), **{
        name: change(message) for name, change in changes.items()}}


def call_ready_once(self: Any) -> None:
    self.exchange("POST", "/runtime/init/ready", b" ")


def insist_on_ready(self: Any) -> None:
    if self.exchange("POST", "/runtime/init/ready", b" ").status != 200:
        os._exit(1)


def need_function_name(self: Any) -> None:
    os.environ["SCF_FUNCTIONNAME"]
    Scf.start(self)


def post_twice(self: Any, kind: str, request_id: str, body: bytes) -> None:
    for _ in range(2):
        Pull.post(self, kind, request_id, body)


def post_and_go_on(self: Any, kind: str, request_id: str, body: bytes) -> None:
    wire.connect(self.host, self.port, self.note, "platform").send(
        self.request("POST", self.path_of(kind, request_id), body))


def insist_on_200(self: Any, kind: str, request_id: str, body: bytes) -> None:
    while self.exchange("POST", self.path_of(kind, request_id), body).status != 200:
        self.pause()


def repeat_after_half_an_answer(self: Any, kind: str, request_id: str,
                                body: bytes) -> None:
    with contextlib.suppress(wire.WireError):
        self.exchange("POST", self.path_of(kind, request_id), body)
        return
    Pull.post(self, kind, request_id, body)


def post_until_answered(self: Any, kind: str, request_id: str, body: bytes) -> None:
    while True:
        try:
            self.exchange("POST", self.path_of(kind, request_id), body)
            return
        except wire.WireError:
            pass


def die_on_error(self: Any, kind: str, request_id: str, body: bytes) -> None:
    Pull.post(self, kind, request_id, body)
    if kind == "error":
        os._exit(1)


def post_the_first_id(self: Any, kind: str, request_id: str, body: bytes) -> None:
    self.seen.append(request_id.encode())
    Pull.post(self, kind, self.seen[0].decode(), body)


def handle_an_event_once(self: Any, answer: wire.Message) -> None:
    request_id = (answer.header("request_id") or "").encode()
    if request_id not in self.seen:
        Pull.serve(self, answer)
    self.seen.append(request_id)


def grep_for_the_id(self: Any, answer: wire.Message) -> None:
    text = answer.raw_head.decode("latin-1")
    found = re.findall(r"(?i)x-cff-request-id[^A-Za-z0-9]*([\w-]*)", text)
    Pull.serve(self, answer._replace(headers=(("X-Cff-Request-Id", found[0]),)))


def serve_once(self: Any, answer: wire.Message) -> None:
    Pull.serve(self, answer)
    if self.count == 2:  # the probe has two events
        os._exit(0)


def die_on_413(self: Any, method: str) -> wire.Message:
    answer = Pull.read(self, method)
    return os._exit(1) if answer.status == 413 else answer


def print_answers(self: Any, method: str) -> wire.Message:
    answer = Pull.read(self, method)
    if method == "POST":
        print(answer.body.decode(), flush=True)
    return answer


def end_unless_pausing(self: Any) -> None:
    if self.pause_s == self.first_pause_s:
        Base.on_sigterm(self)


breaks("NoReady", Scf, "scf.ready.before-next", start=lambda self: None)
breaks("EmptyReady", Scf, "scf.ready.body",
       start=lambda self: self.exchange("POST", "/runtime/init/ready", b""))
breaks("ReadyMustBe200", Scf, "scf.ready.refused", start=insist_on_ready)
breaks("NeedsFunctionName", Scf, "scf.env.tolerant", start=need_function_name)
breaks("PostsTwice", Scf, "any.result.once", post=post_twice)
breaks("PostsTwiceFg", Fg, "any.result.once", post=post_twice)
breaks("HandlesAnEventOnce", Scf, "any.result.once", serve=handle_an_event_once)
breaks("PollsEarly", Scf, "scf.response.order", post=post_and_go_on)
breaks("PollsEarlyAfterErrors", Scf, "scf.response.order",
       post=lambda self, kind, *rest: (
           Pull.post if kind == "response" else post_and_go_on)(self, kind, *rest))
breaks("DiesOn413", Scf, "any.result.once", read=die_on_413)
breaks("InsistsOn200", Scf, "any.result.once", post=insist_on_200)
breaks("RepeatsAfterHalfAnAnswer", Fg, "any.result.once",
       post=repeat_after_half_an_answer)
breaks("DiesOnError", Scf, "any.error.survive", post=die_on_error)
breaks("AcceptsAnyWord", Fg, "any.error.survive", outcome=lambda self, event, context:
       ("response", Base.outcome(self, event, context)[1]))
breaks("PlainErrors", Scf, "any.error.document", report=lambda self, type_, message:
       Base.report(self, type_, message) if type_ == "Unsupported"
       else f"{type_}: {message}".encode())
breaks("PrintsAnswers", Fg, "any.log.quiet", read=print_answers)
breaks("FirstIdForEver", Fg, "fg.response.id", post=post_the_first_id)
breaks("GrepsForTheId", Fg, "fg.response.id", serve=grep_for_the_id)
breaks("NeedsItsFolder", Fg, "fg.start.cwd",
       start=lambda self: os.stat("bootstraps.py"))
breaks("OneShot", Scf, "any.instance.init-once", serve=serve_once)
breaks("IgnoresSigterm", Scf, "any.stop.bootstrap", on_sigterm=lambda self: None)
breaks("IgnoresSigtermOnceUsed", Scf, "any.stop.bootstrap", on_sigterm=lambda self:
       None if self.count else Base.on_sigterm(self))
breaks("IgnoresSigtermInPauses", Fg, "any.stop.bootstrap",
       on_sigterm=end_unless_pausing)
breaks("DropsItsResultOnSigterm", Fg, "any.stop.bootstrap", post=lambda self, *rest:
       None if self.stopping else Pull.post(self, *rest))
breaks("EndsWhileBusy", Scf, "any.stop.bootstrap",
       on_sigterm=lambda self: os._exit(0))
breaks("DiesOfLostReady", Scf, "scf.ready.refused", start=call_ready_once)
breaks("PostsUntilAnswered", Scf, "any.result.once", post=post_until_answered)
breaks("LimitInSeconds", Fg, "any.context.handler", context=told(
    Fg, time_limit_ms=lambda answer: int(os.environ["RUNTIME_TIMEOUT"])))

# ---- fc: a server ----


def die_of_silence(self: Any, peer: socket.socket) -> None:
    is_silent = not peer.recv(1, socket.MSG_PEEK)
    with self.counting:
        self.silent += is_silent
        if self.silent > 1:  # the first one is the platform's probe
            os._exit(1)
    Fc.serve(self, peer)


def within(place: Any, step: Callable[..., object]) -> Callable[..., None]:
    """Return the step, done by so many at a time as the lock lets in."""
    def one_by_one(*arguments: object) -> None:
        with place:
            step(*arguments)

    return one_by_one


def give_up_slow_requests(self: Any, channel: wire.Channel,
                          peer: socket.socket) -> wire.Message:
    peer.recv(1, socket.MSG_PEEK)
    return channel.read(0.2)


def answer_and_close(self: Any, channel: wire.Channel, request: wire.Message) -> None:
    Fc.answer(self, channel, request)
    channel.close()


def answer_and_end(self: Any, channel: wire.Channel, request: wire.Message) -> None:
    Fc.answer(self, channel, request)
    if self.stopping:
        os._exit(0)


def instead(is_meant: Callable[[wire.Message], bool],
            act: Callable[[wire.Channel], object]) -> Callable[..., None]:
    """Return a step that does something else with such requests."""
    def answer(self: Any, channel: wire.Channel, request: wire.Message) -> None:
        if is_meant(request):
            act(channel)
        else:
            Fc.answer(self, channel, request)

    return answer


def misread(is_meant: Callable[[wire.Message], object],
            **parts: object) -> Callable[..., None]:
    """Return a step that takes such requests for ones with other parts."""
    def answer(self: Any, channel: wire.Channel, request: wire.Message) -> None:
        changes: Any = parts if is_meant(request) else {}
        Fc.answer(self, channel, request._replace(**changes))

    return answer


def is_http(request: wire.Message) -> bool:
    return request.header("x-fc-control-path") == "/http-invoke"


breaks("Loopback", Fc, "fc.start.port", address="127.0.0.1")
breaks("SecondLoopback", Fc, "fc.start.port", address="127.0.0.2")
breaks("KnowsOnePortVariable", Fc, "fc.start.port",
       port=lambda self: int(os.environ.get("FC_SERVER_PORT", "9000")))
breaks("PrefersTheCustomPort", Fc, "fc.start.port", port=lambda self:
       int(os.environ.get("FC_CUSTOM_LISTEN_PORT") or Fc.port(self)))
breaks("DiesOfSilence", Fc, "fc.start.silent-connection",
       serve=die_of_silence, silent=0)
breaks("OneConnection", Fc, "fc.start.silent-connection",
       serve=within(threading.Lock(), Fc.serve))
breaks("OneAtATime", Fc, "fc.concurrency.bootstrap",
       answer=within(threading.Lock(), Fc.answer))
breaks("FourAtATime", Fc, "fc.concurrency.bootstrap",
       answer=within(threading.Semaphore(4), Fc.answer))
breaks("GivesUpSlowRequests", Fc, "fc.connection.keep-alive",
       read=give_up_slow_requests)
breaks("ClosesConnections", Fc, "fc.connection.keep-alive", answer=answer_and_close)
breaks("ClosesIdleConnections", Fc, "fc.connection.keep-alive", idle_limit_s=0.2)
breaks("Answers201", Fc, "fc.invoke.status", result=lambda self, kind, body:
       Fc.result(self, kind, body).replace(b" 200 ", b" 201 ", 1))
breaks("AlwaysAnswers200", Fc, "fc.invoke.status", result=lambda self, kind, body:
       wire.response(200, [("x-fc-status", "200")], body))
breaks("ErrorsWithoutField", Fc, "fc.invoke.status", result=lambda self, kind, body:
       wire.response(404, (), body) if kind == "error" else Fc.result(self, kind, body))
breaks("ResultsWithoutField", Fc, "fc.invoke.success-field",
       result=lambda self, kind, body: wire.response(200, (), body)
       if kind == "response" else Fc.result(self, kind, body))
breaks("RefusesHooks", Fc, "fc.hook.answer", answer=instead(
    lambda request: request.header("x-fc-control-path") in (
        "/initialize", "/pre-freeze", "/pre-stop"),
    lambda channel: channel.send(wire.response(405))))
breaks("HangsUpOnHttp", Fc, "fc.http.bootstrap",
       answer=instead(is_http, lambda channel: channel.close()))
breaks("KnowsNoHttp", Fc, "fc.http.bootstrap", answer=instead(is_http, lambda channel:
       channel.send(wire.response(404, [("x-fc-status", "404")], b"{}"))))
breaks("LooksAtPathsOnly", Fc, "fc.invoke.kind",
       answer=misread(lambda request: True, headers=()))
breaks("TakesGetsForHooks", Fc, "fc.invoke.kind", answer=instead(
    lambda request: request.start.startswith(("GET /pre-freeze ", "GET /pre-stop ")),
    lambda channel: channel.send(wire.response(200))))
breaks("NeedsTheControlPath", Fc, "fc.invoke.kind", answer=misread(
    lambda request: not request.header("x-fc-control-path"),
    start="POST /some/path HTTP/1.1"))
breaks("LimitInSecondsFc", Fc, "any.context.handler", context=told(
    Fc, time_limit_ms=lambda request: int(
        request.header("x-fc-function-timeout") or 0)))
breaks("EndsWhileBusyFc", Fc, "any.stop.bootstrap",
       on_sigterm=lambda self: os._exit(0))
breaks("EndsAfterTheFirstAnswer", Fc, "any.stop.bootstrap", answer=answer_and_end)
breaks("ReadsNoChunks", Fc, "any.http.chunked-event", answer=misread(
    lambda request: request.header("transfer-encoding"), body=b""))
breaks("ChunkedInOneCaseFc", Fc, "any.http.chunked-event", answer=misread(
    lambda request: request.header("transfer-encoding") not in (None, "chunked"),
    body=b""))
breaks("TrimsFc", Fc, "any.event.opaque", handle=changed(bytes.strip))
breaks("CaseSensitiveFc", Fc, "any.http.header-case", answer=misread(
    lambda request: "Content-Type" not in dict(request.headers)
    and request.path == "/invoke", body=b""))

# ---- what the handler has, and what is made of it ----

BOM = b"\xef\xbb\xbf"


def give_up_sleep(self: Any, seconds: float) -> None:
    time.sleep(min(seconds, 0.3))
    if seconds > 0.3:
        raise Failure("Timeout", "the handler was too slow")


def end_after(events: int) -> Callable[..., bytes]:
    """Return a step that ends the process at that event."""
    return lambda self, event, context: os._exit(0) if self.count == events else \
        Base.handle(self, event, context)


def end_after_errors(self: Any, type_: str, message: str) -> bytes:
    self.errors = getattr(self, "errors", 0) + 1
    return os._exit(1) if self.errors == 5 else Base.report(self, type_, message)


def begin_anew(self: Any, event: bytes, context: Dict[str, Any]) -> bytes:
    self.count = 0
    return Base.handle(self, event, context)


def end_with_zero(self: Any) -> None:
    if "no_such_file" in " ".join(os.environ.values()):
        os._exit(0)


KEPT: List[Any] = []


def keep(step: Callable[..., Any], made: Callable[..., object]) -> Callable[..., Any]:
    """Return the step, with something made before it that nobody takes back."""
    def keeping(*arguments: Any) -> Any:
        KEPT.append(made(*arguments))
        return step(*arguments)

    return keeping


def open_file(*_: object) -> int:
    return os.open(os.devnull, os.O_RDONLY)


def end_late(self: Any) -> None:
    if self.stopping:
        time.sleep(4)
    Base.end_if_done(self)


def first_context(self: Any, answer: wire.Message) -> Dict[str, Any]:
    if not KEPT:
        KEPT.append((Fc if isinstance(self, Fc) else Scf).context(self, answer))
    found: Dict[str, Any] = KEPT[0]
    return found


def previous_context(self: Any, answer: wire.Message) -> Dict[str, Any]:
    KEPT.append(Fg.context(self, answer))
    found: Dict[str, Any] = KEPT[-2:][0]
    return found


def post_the_previous_id(self: Any, kind: str, request_id: str, body: bytes) -> None:
    KEPT.append(request_id)
    Pull.post(self, kind, KEPT[-2:][0], body)


def poll_for_ever(self: Any) -> None:
    self.start()
    while True:
        answer = self.poll()
        self.pause() if answer is None else self.serve(answer)


def try_ready(times: int) -> Callable[..., None]:
    """Return a step that ends after so many refusals."""
    def start(self: Any) -> None:
        for _ in range(times):
            if getattr(self.ready(), "status", 0) == 200:
                return
            time.sleep(0.05)
        os._exit(1)

    return start


def ready_aside(self: Any) -> None:
    made = wire.connect(self.host, self.port, self.note, "platform")
    made.send(self.request("POST", "/runtime/init/ready", b" "))
    KEPT.append(made)


def join_fields(fields: Any) -> Any:
    found: Dict[str, str] = {}
    for name, value in fields:
        found[name] = f"{found[name]}, {value}" if name in found else value
    return list(found.items())


def count_from_the_first_byte(self: Any, channel: wire.Channel, peer: socket.socket,
                              ) -> wire.Message:
    if not channel.buffer:
        channel.more(time.monotonic() + 1e6)
    with self.counting:
        self.running += 1
    try:
        return Fc.read(self, channel, peer)
    finally:
        self.running -= 1


def only(is_meant: Callable[[bytes], Any], change: Callable[[bytes], bytes],
         ) -> Dict[str, Any]:
    """Return the steps that give another result for such ones."""
    def post(self: Any, kind: str, request_id: str, body: bytes) -> None:
        Pull.post(self, kind, request_id, change(body) if is_meant(body) else body)

    def result(self: Any, kind: str, body: bytes) -> bytes:
        return Fc.result(self, kind, change(body) if is_meant(body) else body)

    return {"result": result, "post": post}


def as_json(event: bytes) -> bytes:
    try:
        return json.dumps(json.loads(event)).encode()
    except ValueError:
        return event


for name, change in {
        "Strips": bytes.strip, "DropsTheMark": lambda text: text.removeprefix(BOM),
        "TakesABlankForNothing": lambda text: b"" if text == b" " else text,
        "UnixLines": lambda text: text.replace(b"\r\n", b"\n"),
        "FormatsJson": lambda text: text if text[:7] == b'{"do":"' else as_json(text),
        "Unescapes": lambda text: urllib.parse.unquote_to_bytes(text),
        "Plus": lambda text: text.replace(b"+", b" "),
        "Normalizes": lambda text: unicodedata.normalize("NFC", text.decode(
            "utf-8", "surrogateescape")).encode("utf-8", "surrogateescape"),
        "Latin1": lambda text: text.decode("latin-1").encode("ascii", "replace"),
        "NothingIsNull": lambda text: text or b"null",
        "OneLine": lambda text: text.split(b"\n")[0],
        "At65536": lambda text: text[:65536]}.items():
    each = Fc if len(name) % 2 else Scf
    breaks(f"{name}{each.__name__}", each, "any.event.opaque", handle=changed(change))


def both_break(name: str, rule: str, **steps: Any) -> None:
    """Enter one that polls and one that serves."""
    for each in (Scf, Fc):
        breaks(name + each.__name__, each, rule, **steps)


both_break("AddsALineEnd", "any.result.opaque", **only(
    lambda body: True, lambda body: body + b"\n"))
both_break("StripsResults", "any.result.opaque", **only(lambda body: True, bytes.strip))
both_break("GivesNullForNothing", "any.result.opaque", **only(
    lambda body: not body, lambda body: b"null"))
both_break("QuotesText", "any.result.opaque", **only(
    lambda body: body == b"x ", lambda body: b'"x "'))
both_break("PrintsAtTheEnd", "any.log.handler",
           write_log=lambda self, text: atexit.register(print, text))
both_break("PrintsInvain", "any.log.handler", write_log=lambda self, text: None)
both_break("PrintsTwice", "any.log.handler",
           write_log=lambda self, text: print(text, text, sep="\n", flush=True))
both_break("PrintsLate", "any.log.handler", write_log=lambda self, text:
           threading.Timer(0.2, print, (text,), {"flush": True}).start())
both_break("HidesVariables", "any.env.handler", env=lambda self, name:
           os.environ.get(name, "") if "_" in name else "")
both_break("UpperCaseVariables", "any.env.handler", env=lambda self, name:
           os.environ.get(name.upper(), ""))
both_break("EndsAHandler", "any.time.handler", sleep=give_up_sleep)
both_break("ShortErrors", "any.error.document", report=lambda self, type_, message:
           Base.report(self, type_, message[:1024]))
both_break("NamesNoType", "any.error.document", report=lambda self, type_, message:
           json.dumps({"errorMessage": message}).encode())
both_break("EndsAfterAHundred", "any.instance.init-once", handle=end_after(100))
both_break("EndsAfterFiveErrors", "any.error.survive", report=end_after_errors)
both_break("BeginsAnew", "any.instance.init-once", handle=begin_anew)
both_break("EndsWithZero", "any.instance.init-failed", prepare=end_with_zero)
both_break("KeepsEvents", "any.instance.resources", handle=keep(
    Base.handle, lambda self, event, context: bytes(event)))
both_break("KeepsFiles", "any.instance.resources", handle=keep(Base.handle, open_file))
both_break("KeepsThreads", "any.instance.resources", handle=keep(
    Base.handle, lambda *_: threading.Thread(
        target=threading.Event().wait, daemon=True).start()))
both_break("KeepsProcesses", "any.instance.resources", handle=keep(
    Base.handle, lambda *_: os.fork() or os._exit(0)))
both_break("EndsLate", "any.stop.bootstrap", end_if_done=end_late)
both_break("OneLessThanTheLimit", "any.event.large",
           handle=changed(lambda event: event[:(6 << 20) - 1]))
breaks("FirstContext", Scf, "any.context.handler", context=first_context)
breaks("PreviousContext", Fg, "any.context.handler", context=previous_context)
breaks("FirstContextFc", Fc, "any.context.handler", context=first_context)
breaks("KnowsOneFunction", Fg, "any.context.handler", context=told(
    Fg, function_name=lambda answer: "kit"))
breaks("KnowsOneMemory", Fg, "any.context.handler", context=told(
    Fg, memory_mb=lambda answer: 128))
breaks("LimitInOneCase", Scf, "any.http.header-case", context=told(
    Scf, time_limit_ms=lambda answer: int(dict(answer.headers).get(
        "Time_Limit_In_Ms", "0"))))
breaks("IdInLowerCaseFc", Fc, "any.http.header-case", context=told(
    Fc, request_id=lambda request: dict(request.headers).get("X-Fc-Request-Id")))
breaks("KeepsBlanks", Scf, "any.http.header-case", context=told(
    Scf, request_id=lambda answer: re.findall(
        r"(?i)request_id: ?(.*?)\r", answer.raw_head.decode("latin-1") + "\r")[0]))

# ---- connections of a poll ----


def limited(is_meant: Callable[[Any], bool]) -> Callable[..., wire.Message]:
    """Return a step that refuses such answers."""
    def read(self: Any, method: str) -> wire.Message:
        answer = Pull.read(self, method)
        if is_meant(answer):
            raise wire.Garbage("more than I can take")
        return answer

    return read


def with_channel(kind: Type[wire.Channel]) -> Callable[..., wire.Channel]:
    """Return the step that makes connections of this kind."""
    def connect(self: Any) -> wire.Channel:
        made = Pull.connect(self)
        made.__class__ = kind
        return made

    return connect


class SmallChunks(wire.Channel):
    """It reads no chunk of more than 64 KiB."""

    def chunks(self, deadline: float) -> bytes:
        while b"\r\n" not in self.buffer:
            self.more(deadline)
        if int(self.buffer.split(b"\r\n")[0].split(b";")[0], 16) > 65536:
            raise wire.Garbage("a large chunk")
        return super().chunks(deadline)


class PlainChunks(wire.Channel):
    """It knows no extensions."""

    def line(self, end: bytes, deadline: float) -> bytes:
        line = super().line(end, deadline)
        if b";" in line and b":" not in line:
            raise wire.Garbage("what is this")
        return line


class NoTrailers(wire.Channel):
    """It expects nothing behind the last chunk."""

    def line(self, end: bytes, deadline: float) -> bytes:
        line = super().line(end, deadline)
        if line.startswith(b"X-Trailer"):
            raise wire.Garbage("what is this")
        return line


class OneInterim(wire.Channel):
    """It skips one interim answer."""

    def read(self, limit_s: float, to: str = "") -> wire.Message:
        while b"\r\n\r\n" not in self.buffer:
            self.more(time.monotonic() + limit_s)
        if bytes(self.buffer).startswith(b"HTTP/1.1 103"):
            raise wire.Garbage("what is this")
        return super().read(limit_s, to)


def from_proxy(self: Any) -> wire.Channel:
    place = os.environ.get("http_proxy", f"http://{self.host}:{self.port}").split("/")[2]
    return wire.connect(place.split(":")[0], int(place.split(":")[1]), self.note, "platform")


def read_in_time(self: Any, method: str) -> wire.Message:
    answer: wire.Message = self.channel.read(self.limit_s, to=method)
    while answer.status < 200:
        answer = self.channel.read(0.05, to=method)
    return answer


def lose_the_closed(self: Any) -> Optional[wire.Message]:
    answer = Pull.poll(self)
    return None if answer and self.is_last(answer) else answer


def end_when_closed(self: Any, answer: wire.Message) -> bool:
    return Pull.is_last(self, answer) and os._exit(1)


def follow(*statuses: int) -> Callable[..., wire.Message]:
    """Return a step that follows answers with these statuses, as browsers do."""
    def exchange(self: Any, method: str, path: str,
                 body: Optional[bytes]) -> wire.Message:
        answer: wire.Message = Pull.exchange(self, method, path, body)
        if answer.status not in statuses:
            return answer
        place = "/" + (answer.header("location") or "///").split("/", 3)[3]
        is_same = answer.status in (307, 308)
        return Pull.exchange(self, method if is_same else "GET", place,
                             body if is_same else None)

    return exchange


def only_for(path: str, step: Callable[..., wire.Message],
             ) -> Callable[..., wire.Message]:
    """Return the step, done for paths that contain this."""
    return lambda self, method, target, body: (
        step if path in target else Pull.exchange)(self, method, target, body)


def call_at_the_end(self: Any) -> None:
    self.drop()
    self.exchange("POST", "/v1/runtime/exit", b"")
    os._exit(0)


def call_between(self: Any, kind: str, request_id: str, body: bytes) -> None:
    Pull.post(self, kind, request_id, body)
    if kind == "error":
        self.exchange("POST", "/runtime/log", body)


breaks("KnowsOneAddress", Scf, "any.api.address", connect=lambda self: wire.connect(
    "127.0.0.1", self.port, self.note, "platform"))
breaks("KnowsOnePort", Fg, "any.api.address", connect=lambda self: wire.connect(
    self.host, 9001, self.note, "platform"))
breaks("UsesProxies", Scf, "any.api.address", connect=from_proxy)
breaks("SaysGoodbye", Fg, "any.api.calls", on_sigterm=call_at_the_end)
breaks("LogsByHttp", Scf, "any.api.calls", post=call_between)
breaks("PollsElsewhere", Scf, "any.api.calls", poll_path="/runtime/next")
breaks("SmallHeads", Scf, "any.http.head", read=limited(
    lambda answer: len(answer.raw_head) > 8192))
breaks("SmallFields", Fg, "any.http.head", read=limited(
    lambda answer: any(len(value) > 4096 for _, value in answer.headers)))
breaks("FewFields", Fg, "any.http.head", read=limited(
    lambda answer: len(answer.headers) > 32))
breaks("SmallChunks", Scf, "any.http.chunked-event", connect=with_channel(SmallChunks))
breaks("PlainChunks", Fg, "any.http.chunked-event", connect=with_channel(PlainChunks))
breaks("NoTrailers", Scf, "any.http.chunked-event", connect=with_channel(NoTrailers))
breaks("OneInterim", Scf, "any.http.interim", connect=with_channel(OneInterim))
breaks("NoTimeAfterInterim", Fg, "any.http.interim", read=read_in_time)
breaks("LosesTheClosed", Scf, "any.http.close", poll=lose_the_closed)
breaks("EndsWhenClosed", Fg, "any.http.close", is_last=end_when_closed)
breaks("NoticesNoClose", Scf, "any.http.close", notice=lambda self: None)
breaks("FollowsAfterResults", Scf, "any.http.redirect",
       exchange=only_for("/response", follow(301, 302, 303)))
breaks("FollowsWithResults", Fg, "any.http.redirect",
       exchange=only_for("/response", follow(307, 308)))
breaks("Follows308", Fg, "any.http.redirect",
       exchange=only_for("/request", follow(308)))
breaks("FollowsAfterReady", Scf, "any.http.redirect",
       exchange=only_for("/ready", follow(301, 302, 303, 307, 308)))

# ---- polls and results that go wrong ----


def end_at(*statuses: int) -> Callable[..., bool]:
    """Return a step that ends the process at these statuses."""
    return lambda self, answer: os._exit(1) if answer.status in statuses else Pull.is_event(
        self, answer)


def count_failures(most: int, which: Any) -> Callable[..., Optional[wire.Message]]:
    """Return a step that gives up after so many failures in a row."""
    def poll(self: Any) -> Optional[wire.Message]:
        try:
            answer: wire.Message = self.exchange("GET", self.poll_path, None)
        except which:
            self.failures += 1
            return os._exit(1) if self.failures == most else None
        except (OSError, wire.WireError):
            return None
        self.failures = 0
        return answer if self.is_event(answer) else None

    return poll


def count_refusals(self: Any, answer: wire.Message) -> bool:
    self.failures = 0 if answer.status == 200 else self.failures + 1
    return Pull.is_event(self, answer) if self.failures < 5 else os._exit(1)


def busy_while_away(self: Any) -> Optional[wire.Message]:
    while True:
        try:
            answer: wire.Message = self.exchange("GET", self.poll_path, None)
            return answer if self.is_event(answer) else None
        except ConnectionRefusedError:
            time.sleep(1e-4)
        except (OSError, wire.WireError):
            return None


def post_again(status: int) -> Callable[..., None]:
    """Return a step that posts once more after such an answer."""
    def post(self: Any, kind: str, request_id: str, body: bytes) -> None:
        path = self.path_of(kind, request_id)
        if getattr(self.tried("POST", path, body), "status", 0) == status:
            Pull.post(self, kind, request_id, body)

    return post


def read_for(limit_s: float, meant: str) -> Callable[..., wire.Message]:
    """Return a step that gives up after that time."""
    def read(self: Any, method: str) -> wire.Message:
        assert self.channel is not None
        if method != meant:
            return Pull.read(self, method)
        return self.channel.read(limit_s, to=method)  # type: ignore[no-any-return]

    return read


def post_when_slow(self: Any, kind: str, request_id: str, body: bytes) -> None:
    self.limit_s = 0.2
    try:
        self.exchange("POST", self.path_of(kind, request_id), body)
    except wire.Silence:
        self.limit_s = 1e6
        Pull.post(self, kind, request_id, body)
    except (OSError, wire.WireError):
        pass
    self.limit_s = 1e6


def post_three_times(self: Any, kind: str, request_id: str, body: bytes) -> None:
    for _ in range(3):
        try:
            self.exchange("POST", self.path_of(kind, request_id), body)
            return
        except wire.WireError as error:
            if error.seen:
                return


def serve_others(self: Any, answer: wire.Message) -> None:
    if answer.body not in self.seen:
        Pull.serve(self, answer)
    if answer.body == b"again":
        self.seen.append(answer.body)


def post_both(self: Any, kind: str, request_id: str, body: bytes) -> None:
    Pull.post(self, kind, request_id, body)
    if kind == "error":
        Pull.post(self, "response", request_id, body)


def hold_first(self: Any) -> Optional[wire.Message]:
    self.limit_s = 1e6 if not self.count else 0.2
    return Pull.poll(self)


for status in (206, 304, 401, 410, 429):
    breaks(f"EndsAt{status}", Scf, "any.poll.retry", is_event=end_at(status))
breaks("EndsAfterThreeFailures", Scf, "any.poll.retry",
       poll=count_failures(3, (OSError, wire.WireError)), failures=0)
breaks("EndsAfterFiveFailures", Fg, "any.poll.retry",
       poll=count_failures(5, (OSError, wire.WireError)), failures=0)
breaks("EndsAfterThreeRefusals", Scf, "any.poll.retry",
       poll=count_failures(3, ConnectionRefusedError), failures=0)
breaks("EndsAfterFiveAnswers", Fg, "any.poll.retry", is_event=count_refusals, failures=0)
breaks("TakesPartial", Fg, "any.poll.retry", is_event=lambda self, answer:
       answer.status in (200, 206) and bool(answer.header(self.id_header)))
breaks("BusyWhileAway", Scf, "any.poll.pause", poll=busy_while_away)
breaks("PausesTheSame", Fg, "any.poll.pause", pause=lambda self: time.sleep(0.4))
breaks("PausesMoreAndMore", Scf, "any.poll.pause", last_pause_s=60.0)
breaks("NeverRecovers", Fg, "any.poll.pause", recover=lambda self: None)
breaks("PausesTooShort", Fg, "any.poll.pause", first_pause_s=0.002)
for status in (204, 302, 429, 503):
    breaks(f"RepeatsAt{status}", Scf, "any.result.once",
           post=post_again(status))
breaks("PostsAgainWhenSlow", Scf, "any.result.once", post=post_when_slow)
breaks("PostsThreeTimes", Fg, "any.result.once", post=post_three_times)
breaks("ServesNoEventTwice", Fg, "any.result.once", serve=serve_others)
breaks("PostsErrorsAsResults", Scf, "any.result.once", post=post_both)
breaks("PostsNoEmptyResult", Fg, "any.result.once", post=lambda self, kind, id_, body:
       Pull.post(self, kind, id_, body) if body else None)
breaks("GivesUpOnAnswers", Scf, "any.result.patience", read=read_for(0.2, "POST"))
breaks("GivesUpOnAnswersFg", Fg, "any.result.patience", read=read_for(0.2, "POST"))
breaks("HangsUpLater", Scf, "scf.next.no-timeout", poll=hold_first)
breaks("HangsUpLaterFg", Fg, "fg.request.no-timeout", poll=hold_first)
breaks("PostsThePreviousId", Fg, "fg.response.id", post=post_the_previous_id)
breaks("LowerCaseIds", Fg, "fg.response.id", post=lambda self, kind, id_, body:
       Pull.post(self, kind, id_.lower(), body))
breaks("ShortIds", Fg, "fg.response.id", post=lambda self, kind, id_, body:
       Pull.post(self, kind, id_[:36], body))
breaks("PollsOnAfterSigterm", Scf, "any.stop.bootstrap", run=poll_for_ever)
breaks("GivesUpReady", Scf, "scf.ready.refused", start=try_ready(3))
breaks("PollsBesideReady", Scf, "scf.ready.before-next", start=ready_aside)

# ---- servers ----


def hang_up_on_long_heads(self: Any, channel: wire.Channel, peer: socket.socket,
                          ) -> wire.Message:
    request = Fc.read(self, channel, peer)
    if len(request.raw_head) > 6000:
        raise wire.Garbage("too long")
    return request


def hundred_requests(self: Any, channel: wire.Channel, request: wire.Message) -> None:
    Fc.answer(self, channel, request)
    self.served[channel] = self.served.get(channel, 0) + 1
    if self.served[channel] == 100:
        channel.close()


def close_after_errors(self: Any, channel: wire.Channel, request: wire.Message) -> None:
    Fc.answer(self, channel, request)
    if b'"raise"' in request.body:
        channel.close()


def read_heads_in_time(self: Any, channel: wire.Channel, peer: socket.socket,
                       ) -> wire.Message:
    while b"\r\n\r\n" not in channel.buffer:
        is_begun = bool(channel.buffer)
        channel.more(time.monotonic() + (0.2 if is_begun else 1e6))
    return Fc.read(self, channel, peer)


def first_request_in_time(self: Any, channel: wire.Channel, peer: socket.socket,
                          ) -> wire.Message:
    is_new = channel not in self.served
    self.served[channel] = 1
    if is_new and not channel.buffer:
        channel.more(time.monotonic() + 0.2)
    return Fc.read(self, channel, peer)


def take_half_requests(self: Any, channel: wire.Channel, peer: socket.socket,
                       ) -> wire.Message:
    try:
        return Fc.read(self, channel, peer)
    except wire.Closed as cut:
        return half_of(cut)


def die_of_lost_peers(self: Any, peer: socket.socket) -> None:
    channel = wire.Channel(peer, lambda who, data: None, "platform")
    try:
        while True:
            request = self.read(channel, peer)
            self.answer(channel, request)
            time.sleep(0.02)
            peer.send(b"")
    except wire.Closed as error:
        if error.seen or "lost" in error.what or "written" in error.what:
            os._exit(1)
        self.end_if_done()
    except (OSError, wire.WireError):
        channel.close()


def count_lost_peers(self: Any, peer: socket.socket) -> None:
    channel = wire.Channel(peer, lambda who, data: None, "platform")
    with contextlib.suppress(OSError, wire.WireError):
        while True:
            request = self.read(channel, peer)
            self.running += 1
            self.answer(channel, request)
            if select.select([peer], [], [], 0)[0] and not peer.recv(1, socket.MSG_PEEK):
                return
            self.running -= 1
            self.end_if_done()
    channel.close()


def twice_the_length(self: Any, kind: str, body: bytes) -> bytes:
    return Fc.result(self, kind, body).replace(
        b"\r\n\r\n", b"\r\nContent-Length: %d\r\n\r\n" % len(body), 1)


def by_characters(self: Any, kind: str, body: bytes) -> bytes:
    answer = Fc.result(self, kind, body)
    size = len(body.decode("utf-8", "replace"))
    return answer.replace(b"Content-Length: %d" % len(body), b"Content-Length: %d" % size, 1)


def parts_with(**parts: Any) -> Callable[..., Tuple[int, wire.Headers, bytes]]:
    """Return a step that changes a part of the answers to HTTP invocations."""
    def http_parts(self: Any, request: wire.Message) -> Tuple[int, wire.Headers, bytes]:
        status, fields, body = Fc.http_parts(self, request)
        return (parts.get("status", lambda one: one)(status),
                parts.get("fields", list)(fields), parts.get("body", bytes)(body))

    return http_parts


def seen_with(**parts: Any) -> Callable[..., Dict[str, Any]]:
    """Return a step that changes a part of what the handler has of them."""
    def seen(self: Any, request: wire.Message) -> Dict[str, Any]:
        found = Fc.seen(self, request)
        return {name: parts.get(name, lambda one: one)(value)
                for name, value in found.items()}

    return seen


def without_empty(self: Any, kind: str, body: bytes) -> bytes:
    return Fc.result(self, kind, body) if body else wire.head_bytes(
        "HTTP/1.1 204 X", [("x-fc-status", "200")])


def hook_of(paths: Tuple[str, ...], answer: bytes) -> Callable[..., None]:
    """Return a step that answers these hooks so."""
    return instead(lambda request: (request.header("x-fc-control-path") or request.path)
                   in paths, lambda channel: channel.send(answer))


def count_hooks(self: Any) -> bytes:
    self.count += 1
    return Fc.hook(self)


def hook_once(self: Any) -> bytes:
    self.hooks += 1
    return wire.response(200 if self.hooks == 1 else 409)


def number(text: Optional[str]) -> int:
    return int(text or "") if text is not None else 0


NO_FIELD = "x-fc-control-path"
breaks("KnowsNoDefaultPort", Fc, "fc.start.port", port=lambda self: int(
    os.environ.get("FC_SERVER_PORT") or os.environ["FC_CUSTOM_LISTEN_PORT"]))
breaks("OtherDefaultPort", Fc, "fc.start.port", port=lambda self: int(
    os.environ.get("FC_SERVER_PORT") or os.environ.get("FC_CUSTOM_LISTEN_PORT", "8080")))
breaks("TenConnections", Fc, "fc.start.silent-connection",
       serve=within(threading.Semaphore(10), Fc.serve))
breaks("HundredAtATime", Fc, "fc.concurrency.bootstrap",
       answer=within(threading.Semaphore(100), Fc.answer))
breaks("ClosesAfterAHundred", Fc, "fc.connection.keep-alive", answer=hundred_requests,
       served={})
breaks("ClosesAfterErrors", Fc, "fc.connection.keep-alive", answer=close_after_errors)
breaks("GivesUpSlowHeads", Fc, "fc.connection.keep-alive", read=read_heads_in_time)
breaks("GivesUpNewConnections", Fc, "fc.connection.keep-alive",
       read=first_request_in_time, served={})
breaks("GivesUpHandlers", Fc, "fc.connection.keep-alive", sleep=give_up_sleep)
breaks("TakesHalfRequests", Fc, "fc.connection.lost", read=take_half_requests)
breaks("DiesOfLostPeers", Fc, "fc.connection.lost", serve=die_of_lost_peers)
breaks("CountsLostPeers", Fc, "fc.connection.lost", serve=count_lost_peers)
breaks("TwoLengths", Fc, "fc.answer.framing", result=twice_the_length)
breaks("LengthInCharacters", Fc, "fc.answer.framing", result=by_characters)
breaks("BodyAfterHead", Fc, "fc.answer.framing",
       headed=lambda self, whole, size: whole)
breaks("LineBehindAnswers", Fc, "fc.answer.framing", result=lambda self, kind, body:
       Fc.result(self, kind, body) + b"\r\n")
breaks("NoContentForNothing", Fc, "fc.invoke.status", result=without_empty)
breaks("FailsWith500", Fc, "fc.invoke.status", result=lambda self, kind, body:
       Fc.result(self, kind, body).replace(b" 404 ", b" 500 ", 1))
breaks("EmptyErrors", Fc, "fc.invoke.status", result=lambda self, kind, body:
       Fc.result(self, kind, body if kind == "response" else b""))
breaks("FieldOnlyWithText", Fc, "fc.invoke.success-field", result=lambda self, kind, body:
       Fc.result(self, kind, body) if body else wire.response(200))
breaks("HooksAreEvents", Fc, "fc.hook.answer", hook=count_hooks)
breaks("HooksOnlyOnce", Fc, "fc.hook.answer", hook=hook_once, hooks=0)
breaks("HooksAre204", Fc, "fc.hook.answer", hook=lambda self: b"HTTP/1.1 204 X\r\n\r\n")
breaks("NoPreFreeze", Fc, "fc.hook.answer", answer=hook_of(
    ("/pre-freeze",), wire.response(404)))
breaks("HooksNeedTheField", Fc, "fc.hook.answer", answer=instead(
    lambda request: not request.header(NO_FIELD) and request.path != "/invoke",
    lambda channel: channel.send(wire.response(404, [("x-fc-status", "404")]))))
breaks("UnknownIsAnEvent", Fc, "fc.invoke.unknown", answer=misread(
    lambda request: request.header(NO_FIELD) not in (
        "/invoke", "/http-invoke", "/initialize", "/pre-freeze", "/pre-stop", "", None),
    headers=(("X-Fc-Control-Path", "/invoke"),)))
breaks("PrefixesOfKinds", Fc, "fc.invoke.unknown", answer=misread(
    lambda request: (request.header(NO_FIELD) or "").startswith("/pre-"),
    headers=(("X-Fc-Control-Path", "/pre-stop"),)))
breaks("HttpErrorsAre500", Fc, "fc.http.failure", http_parts=parts_with(
    fields=lambda fields: [one for one in fields if one[0] != "x-fc-status"]))
breaks("HttpFailsAlways", Fc, "fc.http.failure", http_parts=parts_with(
    fields=lambda fields: [*fields, ("x-fc-status", "404")]))
breaks("DropsTheQuery", Fc, "fc.http.fidelity", seen=seen_with(
    target=lambda text: text.partition("?")[0]))
breaks("DecodesTargets", Fc, "fc.http.fidelity", seen=seen_with(
    target=urllib.parse.unquote))
breaks("CleansPaths", Fc, "fc.http.fidelity", seen=seen_with(
    target=lambda text: text.replace("//", "/")))
breaks("DropsAnEmptyQuery", Fc, "fc.http.fidelity", seen=seen_with(
    target=lambda text: text.rstrip("?")))
breaks("LastFieldWins", Fc, "fc.http.fidelity", seen=seen_with(
    fields=lambda fields: list({name.lower(): value for name, value in fields}.items())))
breaks("DropsAuthorization", Fc, "fc.http.fidelity", seen=seen_with(
    fields=lambda fields: [one for one in fields if one[0] != "Authorization"]))
breaks("MethodIsPost", Fc, "fc.http.fidelity", seen=seen_with(method=lambda text: "POST"))
breaks("IgnoresBodiesOfDelete", Fc, "fc.http.fidelity", answer=misread(
    lambda request: request.method == "DELETE", body=b""))
breaks("IgnoresBodiesOfGet", Fc, "fc.http.fidelity", answer=misread(
    lambda request: request.method == "GET", body=b""))
breaks("OneCookie", Fc, "fc.http.fidelity", http_parts=parts_with(
    fields=lambda fields: list(dict(fields).items())))
breaks("JoinsCookies", Fc, "fc.http.fidelity", http_parts=parts_with(fields=join_fields))
breaks("AlwaysStatus200", Fc, "fc.http.fidelity", http_parts=parts_with(
    status=lambda status: 200))
breaks("StatusesOfErrors", Fc, "fc.http.fidelity", http_parts=parts_with(
    status=lambda status: 502 if status == 503 else status))
breaks("LongHeadsHangUp", Fc, "any.http.head", read=hang_up_on_long_heads)
breaks("NeedsMemory", Fc, "fc.headers.tolerant", context=told(
    Fc, memory_mb=lambda request: number(request.header("x-fc-function-memory"))))
breaks("NeedsTheName", Fc, "fc.headers.tolerant", context=told(
    Fc, function_name=lambda request: request.values("x-fc-function-name")[0]))
breaks("Answers500WithoutMemory", Fc, "fc.headers.tolerant", answer=instead(
    lambda request: not request.header("x-fc-function-memory"),
    lambda channel: channel.send(wire.response(500))))
breaks("WaitsForHalfRequests", Fc, "any.stop.bootstrap", read=count_from_the_first_byte)

# ---- now and then ----


def at_times(every: int, otherwise: Callable[..., Any]) -> Callable[..., None]:
    """Return the step of posting that is done otherwise each so many times."""
    def post(self: Any, *rest: Any) -> None:
        (otherwise if self.count % every == 0 else Pull.post)(self, *rest)

    return post


def end_if_away(self: Any, kind: str, request_id: str, body: bytes) -> None:
    try:
        self.exchange("POST", self.path_of(kind, request_id), body)
    except ConnectionRefusedError:
        os._exit(1)
    except (OSError, wire.WireError):
        pass


def read_small_answers(self: Any, method: str) -> wire.Message:
    answer = Pull.read(self, method)
    return answer if method == "GET" or len(answer.body) < 65536 else os._exit(1)


def post_in_time(self: Any, kind: str, request_id: str, body: bytes) -> None:
    if self.channel is None:
        self.channel = self.connect()
    self.channel.sock.settimeout(0.2)
    self.channel.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)  # and no more
    try:
        self.channel.sock.sendall(self.request("POST", self.path_of(kind, request_id), body))
        self.read("POST")
    except (OSError, wire.WireError):
        self.drop()


def ready_for_ever(self: Any) -> None:
    self.running = 1
    Scf.start(self)
    self.running = 0


def pause_after_answers(self: Any, answer: wire.Message) -> bool:
    self.pause_s = 0.0 if answer.status in (200, 404) else self.first_pause_s
    return Pull.is_event(self, answer)


def without_pause(self: Any) -> None:
    time.sleep(self.pause_s)
    self.pause_s = min(2 * self.pause_s, self.last_pause_s) or self.first_pause_s


def send_in_time(self: Any, channel: wire.Channel, data: bytes) -> None:
    channel.send(data, 0.02)


def last_context(self: Any, request: wire.Message) -> Dict[str, Any]:
    return {**Fc.context(self, request), "request_id": self.last_id}


def note_early(self: Any, channel: wire.Channel, peer: socket.socket) -> wire.Message:
    while b"\r\n\r\n" not in channel.buffer:
        channel.more(time.monotonic() + 1e6)
    found = re.search(rb"(?i)x-fc-request-id: *([\w-]+)", bytes(channel.buffer))
    self.last_id = found[1].decode() if found else ""
    return Fc.read(self, channel, peer)


def outcome_of_the_last(self: Any, event: bytes, context: Dict[str, Any],
                        ) -> Tuple[str, bytes]:
    kind, body = Base.outcome(self, event, context)
    if kind == "error":
        self.failed_s = time.monotonic()
    is_late = time.monotonic() - self.failed_s < 0.3 and body == b"slept"
    return ("error" if is_late else kind), body


def keep_connection(self: Any) -> None:
    KEPT.append(self.channel)
    self.channel = None


def keep_lost_peers(self: Any, channel: wire.Channel, peer: socket.socket,
                    ) -> wire.Message:
    try:
        return Fc.read(self, channel, peer)
    except wire.WireError:
        KEPT.append(peer.dup())
        raise


def serve_sync(self: Any, answer: wire.Message) -> None:
    if answer.header("x-cff-invoke-type") != "async":
        Pull.serve(self, answer)


def serve_with_key(self: Any, answer: wire.Message) -> None:
    if not answer.header("x-cff-access-key"):
        os._exit(1)
    Pull.serve(self, answer)


def busy_ready(self: Any) -> None:
    answer = self.ready()
    while not answer or answer.status != 200:
        if not answer:
            self.pause()
        answer = self.ready()


def needs_a_length(self: Any, channel: wire.Channel, request: wire.Message) -> None:
    if request.method == "POST" and request.header("content-length") is None \
            and request.header("transfer-encoding") is None:
        channel.send(wire.response(411))
    else:
        Fc.answer(self, channel, request)


breaks("LosesEachSeventh", Scf, "any.result.once", post=at_times(
    7, lambda self, *rest: None))
breaks("DoublesEachTenth", Fg, "any.result.once", post=at_times(10, post_twice))
breaks("FailsEachFifth", Scf, "any.result.once", post=at_times(
    5, lambda self, kind, *rest: Pull.post(self, "error", *rest)))
breaks("EndsWhenAResultFindsNobody", Fg, "any.result.once", post=end_if_away)
breaks("ReadsSmallAnswers", Scf, "any.result.once", read=read_small_answers)
breaks("EndsAfterTenFailures", Scf, "any.poll.retry",
       poll=count_failures(10, (OSError, wire.WireError)), failures=0)
breaks("TakesUntilReset", Scf, "any.poll.retry", read=take_half("lost"))
breaks("PostsInTime", Fg, "any.result.patience", post=post_in_time)
breaks("ReadyForEver", Scf, "any.stop.bootstrap", start=ready_for_ever)
breaks("NoPauseAfter404", Scf, "any.poll.pause", is_event=pause_after_answers,
       pause=without_pause)
breaks("NoPauseWithoutId", Fg, "any.poll.pause", is_event=pause_after_answers,
       pause=without_pause)
breaks("SendsInTime", Fc, "fc.connection.keep-alive", send=send_in_time)
breaks("NotesEarly", Fc, "fc.concurrency.bootstrap", read=note_early,
       context=last_context)
breaks("FailsWithAnother", Fc, "fc.concurrency.bootstrap", outcome=outcome_of_the_last,
       failed_s=0.0)
breaks("NeedsALength", Fc, "fc.hook.answer", answer=needs_a_length)

breaks("Pool150", Fc, "fc.concurrency.bootstrap",
       answer=within(threading.Semaphore(150), Fc.answer))
breaks("NoResultIfAsync", Fg, "any.result.once", serve=serve_sync)
breaks("NeedsCredentials", Fg, "any.result.once", serve=serve_with_key)
breaks("TakesVariablesAway", Scf, "any.env.handler", env=lambda self, name:
       "" if name == "_HANDLER" else os.environ.get(name, ""))
breaks("BusyReady", Scf, "any.poll.pause", start=busy_ready)
breaks("HttpIsText", Fc, "fc.http.fidelity", http_parts=parts_with(
    body=lambda body: body.decode("utf-8", "replace").encode()))
breaks("KeepsLostConnections", Scf, "any.instance.resources", drop=keep_connection)
breaks("KeepsErrors", Fg, "any.instance.resources", report=keep(Base.report, open_file))
breaks("KeepsLostPeers", Fc, "any.instance.resources", read=keep_lost_peers)


def main() -> None:
    """Be the one that the command line names."""
    table: Dict[str, Any] = {name: entry[2] for name, entry in BROKEN.items()}
    table.update({one.__name__: one for one in (Scf, Fg, Fc)})
    table[sys.argv[1]]().run()


if __name__ == "__main__":
    main()
