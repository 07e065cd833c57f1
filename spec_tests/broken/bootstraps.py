#!/usr/bin/env python3
# bootstraps.py: bootstraps that break one rule each (MIT).
"""Run a broken bootstrap: `python3 spec_tests/broken/bootstraps.py NAME`.

Each row of the table below is a correct bootstrap with one step of it replaced, and the
rule which that breaks. `Scf`, `Fg` and `Fc` are the correct ones.
"""

import os
import pathlib
import re
import signal
import socket
import sys
import threading
from typing import Any, Callable, Dict, Optional, Tuple, Type

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


def take_half_events(self: Any, method: str) -> wire.Message:
    try:
        return Pull.read(self, method)
    except wire.Closed as cut:
        head, blank, body = cut.seen.partition(b"\r\n\r\n")
        if not blank:
            raise
        start, headers = wire.parse_head(head)
        self.drop()
        return wire.Message(start, headers, body, head)


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
breaks("NoPauseAfterCut", Scf, "any.poll.pause", poll=poll_without_pause)
breaks("InterimIsFinal", Scf, "any.http.interim", read=interim_is_final)
breaks("DiesOn500", Scf, "any.poll.retry", is_event=lambda self, answer:
       os._exit(1) if answer.status >= 500 else Pull.is_event(self, answer))
breaks("TakesAnyStatus", Scf, "any.poll.retry", is_event=lambda self, answer: True)
breaks("FollowsRedirects", Scf, "any.poll.retry", poll=follow_redirects)
breaks("DiesOnLostPoll", Fg, "any.poll.retry", poll=poll_once)
breaks("TakesHalfEvents", Fg, "any.poll.retry", read=take_half_events)
breaks("NoPause", Scf, "any.poll.pause", pause=lambda self: None)
breaks("PausesAfterErrorsOnly", Fg, "any.poll.pause", is_event=notice_204,
       pause=lambda self: None if self.was_204 else Pull.pause(self))
breaks("GivesUp", Scf, "any.poll.pause", poll=give_up)
breaks("HangsUpEarly", Scf, "scf.next.no-timeout", limit_s=0.2)
breaks("HangsUpEarlyFg", Fg, "fg.request.no-timeout", limit_s=0.2)
breaks("IgnoresMissingId", Fg, "any.poll.retry",
       is_event=lambda self, answer: answer.status == 200)
breaks("TakesErrorsWithId", Fg, "any.poll.retry",
       is_event=lambda self, answer: bool(answer.header(self.id_header)))

# ---- results ----


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
    try:
        self.exchange("POST", self.path_of(kind, request_id), body)
    except wire.WireError:
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


def pause_without_sigterm(self: Any) -> None:
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    Pull.pause(self)


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
breaks("IgnoresSigterm", Scf, "any.stop.bootstrap", on_sigterm=lambda self, *_: None)
breaks("IgnoresSigtermOnceUsed", Scf, "any.stop.bootstrap", on_sigterm=lambda self, *_:
       None if self.count else Base.on_sigterm(self))
breaks("IgnoresSigtermInPauses", Fg, "any.stop.bootstrap", pause=pause_without_sigterm)
breaks("DropsItsResultOnSigterm", Fg, "any.stop.bootstrap",
       on_sigterm=lambda self, *_: signal.pause())
breaks("EndsWhileBusy", Scf, "any.stop.bootstrap",
       on_sigterm=lambda self, *_: os._exit(0))
breaks("DiesOfLostReady", Scf, "scf.ready.refused", start=call_ready_once)
breaks("PostsUntilAnswered", Scf, "any.result.once", post=post_until_answered)
breaks("LimitInSeconds", Fg, "any.context.handler", context=lambda self, answer: {
       **Fg.context(self, answer), "time_limit_ms": int(os.environ["RUNTIME_TIMEOUT"])})

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
breaks("LimitInSecondsFc", Fc, "any.context.handler", context=lambda self, request: {
       **Fc.context(self, request),
       "time_limit_ms": int(request.header("x-fc-function-timeout") or 0)})
breaks("EndsWhileBusyFc", Fc, "any.stop.bootstrap",
       on_sigterm=lambda self, *_: os._exit(0))
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


def main() -> None:
    """Be the one that the command line names."""
    table: Dict[str, Any] = {name: entry[2] for name, entry in BROKEN.items()}
    table.update({one.__name__: one for one in (Scf, Fg, Fc)})
    table[sys.argv[1]]().run()


if __name__ == "__main__":
    main()
