#!/usr/bin/env python3
# bootstraps.py: bootstraps that break one rule each (MIT).
"""Run a broken bootstrap: `python3 spec_tests/broken/bootstraps.py NAME`.

NAME is that of a class; `Scf`, `Fg` and `Fc` are the correct ones. Each of the others
overrides one step of a correct one and names the `rule` that it breaks.
"""

import os
import pathlib
import re
import signal
import socket
import sys
import threading
from typing import Any, Dict, Optional, Tuple, Type

TESTS = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS / "kit")]

import wire  # noqa: E402
from broken.base_bootstrap import (  # noqa: E402
    BROKEN_CLASSES, Base, Failure, Fc, Fg, Scf)

CORRECT: Dict[str, Type[Base]] = {"scf": Scf, "fg": Fg, "fc": Fc}


# ---- events ----


class JsonOnly(Scf, rule="any.event.opaque"):
    def handle(self, event: bytes, context: Dict[str, Any]) -> bytes:
        if not re.match(rb"^\s*[\[{\"\d]", event):
            raise Failure("ValueError", "the event is no JSON")
        return super().handle(event, context)


class Trims(Scf, rule="any.event.opaque"):
    def handle(self, event: bytes, context: Dict[str, Any]) -> bytes:
        return super().handle(event.rstrip(b"\n"), context)


class TextOnly(Fg, rule="any.event.opaque"):
    def handle(self, event: bytes, context: Dict[str, Any]) -> bytes:
        return super().handle(event.decode("utf-8", "replace").encode(), context)


class StopsAtNul(Fg, rule="any.event.opaque"):
    def handle(self, event: bytes, context: Dict[str, Any]) -> bytes:
        return super().handle(event.split(b"\0")[0], context)


class CutsLargeEvents(Scf, rule="any.event.large"):
    def handle(self, event: bytes, context: Dict[str, Any]) -> bytes:
        return super().handle(event[:131072], context)


class CutsLargeResults(Fg, rule="any.event.large"):
    def post(self, kind: str, request_id: str, body: bytes) -> None:
        super().post(kind, request_id, body[:131072])


class KeepsChunkSizes(Scf, rule="any.http.chunked-event"):
    def serve(self, answer: wire.Message) -> None:
        if answer.header("transfer-encoding"):
            answer = answer._replace(body=wire.chunked(answer.body))
        super().serve(answer)


class ChunkedInOneCase(Scf, rule="any.http.chunked-event"):
    def is_event(self, answer: wire.Message) -> bool:
        coding = answer.header("transfer-encoding") or "chunked"
        return coding == "chunked" and super().is_event(answer)



# ---- polls ----


class CaseSensitive(Scf, rule="any.http.header-case"):
    def is_event(self, answer: wire.Message) -> bool:
        return answer.status == 200 and "Request_Id" in dict(answer.headers)


class LengthInOneCase(Scf, rule="any.http.header-case"):
    def is_event(self, answer: wire.Message) -> bool:
        return "content-length" not in dict(answer.headers) and super().is_event(answer)


class WaitsAfterInterim(Fg, rule="any.http.interim"):
    def read(self, method: str) -> wire.Message:
        assert self.channel is not None
        answer = self.channel.read(self.limit_s(), to=method)
        while answer.status < 200:
            if method == "POST":
                signal.pause()
            answer = self.channel.read(self.limit_s(), to=method)
        return answer


class TakesAnySuccess(Scf, rule="any.poll.retry"):
    def is_event(self, answer: wire.Message) -> bool:
        return 200 <= answer.status < 300 and bool(answer.header(self.id_header))


class NoPauseAfterCut(Scf, rule="any.poll.pause"):
    def poll(self) -> Optional[wire.Message]:
        while True:
            try:
                answer = self.exchange("GET", self.poll_path, None)
                return answer if self.is_event(answer) else None
            except wire.WireError:
                pass
            except OSError:
                return None


class InterimIsFinal(Scf, rule="any.http.interim"):
    def read(self, method: str) -> wire.Message:
        assert self.channel is not None
        answer = self.channel.read(self.limit_s(), to=method)
        if answer.status < 200:
            self.drop()
        return answer


class DiesOn500(Scf, rule="any.poll.retry"):
    def is_event(self, answer: wire.Message) -> bool:
        if answer.status >= 500:
            os._exit(1)
        return super().is_event(answer)


class TakesAnyStatus(Scf, rule="any.poll.retry"):
    def is_event(self, answer: wire.Message) -> bool:
        return True


class FollowsRedirects(Scf, rule="any.poll.retry"):
    def poll(self) -> Optional[wire.Message]:
        answer = self.exchange("GET", self.poll_path, None)
        while answer.status == 302:
            answer = self.exchange("GET", answer.header("location") or "/", None)
        return answer if self.is_event(answer) else None


class DiesOnLostPoll(Fg, rule="any.poll.retry"):
    def poll(self) -> Optional[wire.Message]:
        answer = self.exchange("GET", self.poll_path, None)
        return answer if self.is_event(answer) else None


class TakesHalfEvents(Fg, rule="any.poll.retry"):
    def read(self, method: str) -> wire.Message:
        try:
            return super().read(method)
        except wire.Closed as cut:
            head, blank, body = cut.seen.partition(b"\r\n\r\n")
            if not blank:
                raise
            start, headers = wire.parse_head(head)
            self.drop()
            return wire.Message(start, headers, body, head)


class NoPause(Scf, rule="any.poll.pause"):
    def pause(self) -> None:
        pass


class PausesAfterErrorsOnly(Fg, rule="any.poll.pause"):
    def is_event(self, answer: wire.Message) -> bool:
        self.was_204 = answer.status == 204
        return super().is_event(answer)

    def pause(self) -> None:
        if not self.was_204:
            super().pause()


class GivesUp(Scf, rule="any.poll.pause"):
    def poll(self) -> Optional[wire.Message]:
        try:
            answer = self.exchange("GET", self.poll_path, None)
        except ConnectionRefusedError:
            os._exit(1)
        except wire.WireError:
            return None
        return answer if self.is_event(answer) else None


class HangsUpEarly(Scf, rule="scf.next.no-timeout"):
    def limit_s(self) -> float:
        return 0.2


class HangsUpEarlyFg(Fg, rule="fg.request.no-timeout"):
    def limit_s(self) -> float:
        return 0.2


class IgnoresMissingId(Fg, rule="any.poll.retry"):
    def is_event(self, answer: wire.Message) -> bool:
        return answer.status == 200


class TakesErrorsWithId(Fg, rule="any.poll.retry"):
    def is_event(self, answer: wire.Message) -> bool:
        return bool(answer.header(self.id_header))



# ---- results ----


class NoReady(Scf, rule="scf.ready.before-next"):
    def start(self) -> None:
        pass


class EmptyReady(Scf, rule="scf.ready.body"):
    def start(self) -> None:
        self.exchange("POST", "/runtime/init/ready", b"")


class ReadyMustBe200(Scf, rule="scf.ready.refused"):
    def start(self) -> None:
        if self.exchange("POST", "/runtime/init/ready", b" ").status != 200:
            os._exit(1)


class NeedsFunctionName(Scf, rule="scf.env.tolerant"):
    def start(self) -> None:
        os.environ["SCF_FUNCTIONNAME"]
        super().start()


class PostsTwice(Scf, rule="any.result.once"):
    def post(self, kind: str, request_id: str, body: bytes) -> None:
        super().post(kind, request_id, body)
        super().post(kind, request_id, body)


class PostsTwiceFg(Fg, rule="any.result.once"):
    def post(self, kind: str, request_id: str, body: bytes) -> None:
        super().post(kind, request_id, body)
        super().post(kind, request_id, body)


class HandlesAnEventOnce(Scf, rule="any.result.once"):
    def serve(self, answer: wire.Message) -> None:
        request_id = (answer.header("request_id") or "").encode()
        if request_id not in self.seen:
            super().serve(answer)
        self.seen.append(request_id)


class PollsEarly(Scf, rule="scf.response.order"):
    def post(self, kind: str, request_id: str, body: bytes) -> None:
        path = self.response_path if kind == "response" else self.error_path
        wire.connect(self.host, self.port, self.note, "platform").send(
            self.request("POST", path, body))


class PollsEarlyAfterErrors(PollsEarly, rule="scf.response.order"):
    def post(self, kind: str, request_id: str, body: bytes) -> None:
        if kind == "response":
            Scf.post(self, kind, request_id, body)
        else:
            super().post(kind, request_id, body)


class DiesOn413(Scf, rule="any.result.once"):
    def read(self, method: str) -> wire.Message:
        answer = super().read(method)
        if answer.status == 413:
            os._exit(1)
        return answer


class InsistsOn200(Scf, rule="any.result.once"):
    def post(self, kind: str, request_id: str, body: bytes) -> None:
        path = self.response_path if kind == "response" else self.error_path
        while self.exchange("POST", path, body).status != 200:
            self.pause()


class RepeatsAfterHalfAnAnswer(Fg, rule="any.result.once"):
    def post(self, kind: str, request_id: str, body: bytes) -> None:
        path = self.response_path if kind == "response" else self.error_path
        try:
            self.exchange("POST", path.format(id=request_id), body)
        except wire.WireError:
            super().post(kind, request_id, body)


class DiesOnError(Scf, rule="any.error.survive"):
    def post(self, kind: str, request_id: str, body: bytes) -> None:
        super().post(kind, request_id, body)
        if kind == "error":
            os._exit(1)


class AcceptsAnyWord(Fg, rule="any.error.survive"):
    def outcome(self, event: bytes, context: Dict[str, Any]) -> Tuple[str, bytes]:
        return "response", super().outcome(event, context)[1]


class PlainErrors(Scf, rule="any.error.document"):
    def report(self, type_: str, message: str) -> bytes:
        if type_ == "Unsupported":
            return super().report(type_, message)
        return f"{type_}: {message}".encode()


class PrintsAnswers(Fg, rule="any.log.quiet"):
    def read(self, method: str) -> wire.Message:
        answer = super().read(method)
        if method == "POST":
            print(answer.body.decode(), flush=True)
        return answer


class FirstIdForEver(Fg, rule="fg.response.id"):
    def post(self, kind: str, request_id: str, body: bytes) -> None:
        self.seen.append(request_id.encode())
        super().post(kind, self.seen[0].decode(), body)


class GrepsForTheId(Fg, rule="fg.response.id"):
    def serve(self, answer: wire.Message) -> None:
        text = answer.raw_head.decode("latin-1")
        found = re.findall(r"(?i)x-cff-request-id[^A-Za-z0-9]*([\w-]*)", text)
        fields = (("X-Cff-Request-Id", found[0]),)
        super().serve(answer._replace(headers=fields))


class NeedsItsFolder(Fg, rule="fg.start.cwd"):
    def start(self) -> None:
        os.stat("bootstraps.py")


class OneShot(Scf, rule="any.instance.init-once"):
    def serve(self, answer: wire.Message) -> None:
        super().serve(answer)
        if self.count == 2:  # the probe has two events
            os._exit(0)


class IgnoresSigterm(Scf, rule="any.stop.bootstrap"):
    def on_sigterm(self, *_: object) -> None:
        pass


class IgnoresSigtermOnceUsed(Scf, rule="any.stop.bootstrap"):
    def on_sigterm(self, *_: object) -> None:
        if not self.count:
            super().on_sigterm()


class IgnoresSigtermInPauses(Fg, rule="any.stop.bootstrap"):
    def pause(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        super().pause()


class DropsItsResultOnSigterm(Fg, rule="any.stop.bootstrap"):
    def on_sigterm(self, *_: object) -> None:
        signal.pause()


class EndsWhileBusy(Scf, rule="any.stop.bootstrap"):
    def on_sigterm(self, *_: object) -> None:
        os._exit(0)


class DiesOfLostReady(Scf, rule="scf.ready.refused"):
    def start(self) -> None:
        self.exchange("POST", "/runtime/init/ready", b" ")


class PostsUntilAnswered(Scf, rule="any.result.once"):
    def post(self, kind: str, request_id: str, body: bytes) -> None:
        path = self.response_path if kind == "response" else self.error_path
        while True:
            try:
                self.exchange("POST", path, body)
                return
            except wire.WireError:
                pass


class LimitInSeconds(Fg, rule="any.result.once"):
    def context(self, answer: wire.Message) -> Dict[str, Any]:
        return {**super().context(answer),
                "time_limit_ms": int(os.environ["RUNTIME_TIMEOUT"])}



# ---- fc ----


class Loopback(Fc, rule="fc.start.port"):
    address = "127.0.0.1"


class SecondLoopback(Fc, rule="fc.start.port"):
    address = "127.0.0.2"


class KnowsOnePortVariable(Fc, rule="fc.start.port"):
    def port(self) -> int:
        return int(os.environ.get("FC_SERVER_PORT", "9000"))


class PrefersTheCustomPort(Fc, rule="fc.start.port"):
    def port(self) -> int:
        return int(os.environ.get("FC_CUSTOM_LISTEN_PORT") or super().port())


class DiesOfSilence(Fc, rule="fc.start.silent-connection"):
    lock = threading.Lock()
    silent = 0

    def serve(self, peer: socket.socket) -> None:
        is_silent = not peer.recv(1, socket.MSG_PEEK)
        with self.lock:
            self.silent += is_silent
            if self.silent > 1:  # the first one is the platform's probe
                os._exit(1)
        super().serve(peer)


class OneConnection(Fc, rule="fc.start.silent-connection"):
    lock = threading.Lock()

    def serve(self, peer: socket.socket) -> None:
        with self.lock:
            super().serve(peer)


class OneAtATime(Fc, rule="fc.concurrency.bootstrap"):
    lock = threading.Lock()

    def answer(self, channel: wire.Channel, request: wire.Message) -> None:
        with self.lock:
            super().answer(channel, request)


class FourAtATime(Fc, rule="fc.concurrency.bootstrap"):
    places = threading.Semaphore(4)

    def answer(self, channel: wire.Channel, request: wire.Message) -> None:
        with self.places:
            super().answer(channel, request)


class GivesUpSlowRequests(Fc, rule="fc.connection.keep-alive"):
    def read(self, channel: wire.Channel, peer: socket.socket) -> wire.Message:
        peer.recv(1, socket.MSG_PEEK)
        return channel.read(0.2)


class ClosesConnections(Fc, rule="fc.connection.keep-alive"):
    def answer(self, channel: wire.Channel, request: wire.Message) -> None:
        super().answer(channel, request)
        channel.close()


class ClosesIdleConnections(Fc, rule="fc.connection.keep-alive"):
    idle_limit_s = 0.2


class Answers201(Fc, rule="fc.invoke.status"):
    def result(self, kind: str, body: bytes) -> bytes:
        return super().result(kind, body).replace(b" 200 ", b" 201 ", 1)


class AlwaysAnswers200(Fc, rule="fc.invoke.status"):
    def result(self, kind: str, body: bytes) -> bytes:
        return wire.response(200, [("x-fc-status", "200")], body)


class ErrorsWithoutField(Fc, rule="fc.invoke.status"):
    def result(self, kind: str, body: bytes) -> bytes:
        return wire.response(404, (), body) if kind == "error" \
            else super().result(kind, body)


class ResultsWithoutField(Fc, rule="fc.invoke.success-field"):
    def result(self, kind: str, body: bytes) -> bytes:
        return wire.response(200, (), body) if kind == "response" \
            else super().result(kind, body)


class RefusesHooks(Fc, rule="fc.hook.answer"):
    def answer(self, channel: wire.Channel, request: wire.Message) -> None:
        hooks = ("/initialize", "/pre-freeze", "/pre-stop")
        if request.header("x-fc-control-path") in hooks:
            channel.send(wire.response(405))
        else:
            super().answer(channel, request)


class HangsUpOnHttp(Fc, rule="fc.http.bootstrap"):
    def answer(self, channel: wire.Channel, request: wire.Message) -> None:
        if request.header("x-fc-control-path") == "/http-invoke":
            channel.close()
        else:
            super().answer(channel, request)


class KnowsNoHttp(Fc, rule="fc.http.bootstrap"):
    def answer(self, channel: wire.Channel, request: wire.Message) -> None:
        if request.header("x-fc-control-path") == "/http-invoke":
            channel.send(wire.response(404, [("x-fc-status", "404")], b"{}"))
        else:
            super().answer(channel, request)


class LooksAtPathsOnly(Fc, rule="fc.invoke.kind"):
    def answer(self, channel: wire.Channel, request: wire.Message) -> None:
        super().answer(channel, request._replace(headers=()))


class TakesGetsForHooks(Fc, rule="fc.invoke.kind"):
    def answer(self, channel: wire.Channel, request: wire.Message) -> None:
        if request.start.startswith(("GET /pre-freeze ", "GET /pre-stop ")):
            channel.send(wire.response(200))
        else:
            super().answer(channel, request)


class NeedsTheControlPath(Fc, rule="fc.invoke.kind"):
    def answer(self, channel: wire.Channel, request: wire.Message) -> None:
        if not request.header("x-fc-control-path"):
            request = request._replace(start="POST /some/path HTTP/1.1")
        super().answer(channel, request)


class LimitInSecondsFc(Fc, rule="fc.invoke.status"):
    def context(self, request: wire.Message) -> Dict[str, Any]:
        return {**super().context(request),
                "time_limit_ms": int(request.header("x-fc-function-timeout") or 0)}


class EndsWhileBusyFc(Fc, rule="any.stop.bootstrap"):
    def on_sigterm(self, *_: object) -> None:
        os._exit(0)


class EndsAfterTheFirstAnswer(Fc, rule="any.stop.bootstrap"):
    def answer(self, channel: wire.Channel, request: wire.Message) -> None:
        super().answer(channel, request)
        if self.stopping:
            os._exit(0)


class ReadsNoChunks(Fc, rule="any.http.chunked-event"):
    def answer(self, channel: wire.Channel, request: wire.Message) -> None:
        if request.header("transfer-encoding"):
            request = request._replace(body=b"")
        super().answer(channel, request)


class ChunkedInOneCaseFc(Fc, rule="any.http.chunked-event"):
    def answer(self, channel: wire.Channel, request: wire.Message) -> None:
        if (request.header("transfer-encoding") or "chunked") != "chunked":
            request = request._replace(body=b"")
        super().answer(channel, request)


class TrimsFc(Fc, rule="any.event.opaque"):
    def handle(self, event: bytes, context: Dict[str, Any]) -> bytes:
        return super().handle(event.strip(), context)


class CaseSensitiveFc(Fc, rule="any.http.header-case"):
    def answer(self, channel: wire.Channel, request: wire.Message) -> None:
        if "Content-Type" not in dict(request.headers) and request.path == "/invoke":
            request = request._replace(body=b"")
        super().answer(channel, request)



# name -> protocol, rule, class
BROKEN: Dict[str, Tuple[str, str, Type[Base]]] = {
    one.__name__: (protocol, one.rule, one) for one in BROKEN_CLASSES
    for protocol, correct in CORRECT.items() if issubclass(one, correct)}


def main() -> None:
    """Be the one that the command line names."""
    table = {name: entry[2] for name, entry in BROKEN.items()}
    table.update({one.__name__: one for one in CORRECT.values()})
    chosen = table[sys.argv[1]]()
    assert isinstance(chosen, (Scf, Fg, Fc))
    chosen.run()


if __name__ == "__main__":
    main()
