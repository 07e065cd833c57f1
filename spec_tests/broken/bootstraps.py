#!/usr/bin/env python3
# bootstraps.py: bootstraps that break one rule each (MIT).
"""Run a broken bootstrap: `python3 spec_tests/broken/bootstraps.py NAME`.

NAME is that of a class; `Scf`, `Fg` and `Fc` are the correct ones. Each of the others
overrides one step of a correct one and names the rule that it breaks.
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
from broken.base_bootstrap import Base, Failure, Fc, Fg, Scf  # noqa: E402

CORRECT: Dict[str, Type[Base]] = {"scf": Scf, "fg": Fg, "fc": Fc}
BROKEN: Dict[str, Tuple[str, str, Type[Base]]] = {}  # name -> protocol, rule, class


def breaks(*pairs: Tuple[str, Type[Base]]) -> None:
    """Enter classes into the table, each under the rule that it breaks."""
    for rule, broken in pairs:
        protocol = next(name for name, correct in CORRECT.items()
                        if issubclass(broken, correct))
        BROKEN[broken.__name__] = (protocol, rule, broken)


# ---- events ----


class JsonOnly(Scf):
    def handle(self, event: bytes, context: Dict[str, Any]) -> bytes:
        if not re.match(rb"^\s*[\[{\"\d]", event):
            raise Failure("ValueError", "the event is no JSON")
        return super().handle(event, context)


class Trims(Scf):
    def handle(self, event: bytes, context: Dict[str, Any]) -> bytes:
        return super().handle(event.rstrip(b"\n"), context)


class TextOnly(Fg):
    def handle(self, event: bytes, context: Dict[str, Any]) -> bytes:
        return super().handle(event.decode("utf-8", "replace").encode(), context)


class StopsAtNul(Fg):
    def handle(self, event: bytes, context: Dict[str, Any]) -> bytes:
        return super().handle(event.split(b"\0")[0], context)


class CutsLargeEvents(Scf):
    def handle(self, event: bytes, context: Dict[str, Any]) -> bytes:
        return super().handle(event[:131072], context)


class CutsLargeResults(Fg):
    def post(self, kind: str, request_id: str, body: bytes) -> None:
        super().post(kind, request_id, body[:131072])


class KeepsChunkSizes(Scf):
    def serve(self, answer: wire.Message) -> None:
        if answer.header("transfer-encoding"):
            answer = answer._replace(body=wire.chunked(answer.body))
        super().serve(answer)


class ChunkedInOneCase(Scf):
    def is_event(self, answer: wire.Message) -> bool:
        coding = answer.header("transfer-encoding") or "chunked"
        return coding == "chunked" and super().is_event(answer)


breaks(("any.event.opaque", JsonOnly), ("any.event.opaque", Trims),
       ("any.event.opaque", TextOnly), ("any.event.opaque", StopsAtNul),
       ("any.event.large", CutsLargeEvents),
       ("any.event.large", CutsLargeResults),
       ("any.http.chunked-event", KeepsChunkSizes),
       ("any.http.chunked-event", ChunkedInOneCase))


# ---- polls ----


class CaseSensitive(Scf):
    def is_event(self, answer: wire.Message) -> bool:
        return answer.status == 200 and "Request_Id" in dict(answer.headers)


class LengthInOneCase(Scf):
    def is_event(self, answer: wire.Message) -> bool:
        return "content-length" not in dict(answer.headers) and super().is_event(answer)


class WaitsAfterInterim(Fg):
    def read(self, method: str) -> wire.Message:
        assert self.channel is not None
        answer = self.channel.read(self.limit_s(), to=method)
        while answer.status < 200:
            if method == "POST":
                signal.pause()
            answer = self.channel.read(self.limit_s(), to=method)
        return answer


class TakesAnySuccess(Scf):
    def is_event(self, answer: wire.Message) -> bool:
        return 200 <= answer.status < 300 and bool(answer.header(self.id_header))


class NoPauseAfterCut(Scf):
    def poll(self) -> Optional[wire.Message]:
        while True:
            try:
                answer = self.exchange("GET", self.poll_path, None)
                return answer if self.is_event(answer) else None
            except wire.WireError:
                pass
            except OSError:
                return None


class InterimIsFinal(Scf):
    def read(self, method: str) -> wire.Message:
        assert self.channel is not None
        answer = self.channel.read(self.limit_s(), to=method)
        if answer.status < 200:
            self.drop()
        return answer


class DiesOn500(Scf):
    def is_event(self, answer: wire.Message) -> bool:
        if answer.status >= 500:
            os._exit(1)
        return super().is_event(answer)


class TakesAnyStatus(Scf):
    def is_event(self, answer: wire.Message) -> bool:
        return True


class FollowsRedirects(Scf):
    def poll(self) -> Optional[wire.Message]:
        answer = self.exchange("GET", self.poll_path, None)
        while answer.status == 302:
            answer = self.exchange("GET", answer.header("location") or "/", None)
        return answer if self.is_event(answer) else None


class DiesOnLostPoll(Fg):
    def poll(self) -> Optional[wire.Message]:
        answer = self.exchange("GET", self.poll_path, None)
        return answer if self.is_event(answer) else None


class TakesHalfEvents(Fg):
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


class NoPause(Scf):
    def pause(self) -> None:
        pass


class PausesAfterErrorsOnly(Fg):
    def is_event(self, answer: wire.Message) -> bool:
        self.was_204 = answer.status == 204
        return super().is_event(answer)

    def pause(self) -> None:
        if not self.was_204:
            super().pause()


class GivesUp(Scf):
    def poll(self) -> Optional[wire.Message]:
        try:
            answer = self.exchange("GET", self.poll_path, None)
        except ConnectionRefusedError:
            os._exit(1)
        except wire.WireError:
            return None
        return answer if self.is_event(answer) else None


class HangsUpEarly(Scf):
    def limit_s(self) -> float:
        return 0.2


class HangsUpEarlyFg(Fg):
    def limit_s(self) -> float:
        return 0.2


class IgnoresMissingId(Fg):
    def is_event(self, answer: wire.Message) -> bool:
        return answer.status == 200


class TakesErrorsWithId(Fg):
    def is_event(self, answer: wire.Message) -> bool:
        return bool(answer.header(self.id_header))


breaks(("any.http.header-case", CaseSensitive),
       ("any.http.header-case", LengthInOneCase),
       ("any.http.interim", InterimIsFinal), ("any.http.interim", WaitsAfterInterim),
       ("any.poll.retry", TakesAnySuccess), ("any.poll.pause", NoPauseAfterCut),
       ("any.poll.retry", DiesOn500),
       ("any.poll.retry", TakesAnyStatus),
       ("any.poll.retry", FollowsRedirects),
       ("any.poll.retry", DiesOnLostPoll),
       ("any.poll.retry", TakesHalfEvents), ("any.poll.pause", NoPause),
       ("any.poll.pause", PausesAfterErrorsOnly),
       ("any.poll.pause", GivesUp), ("scf.next.no-timeout", HangsUpEarly),
       ("fg.request.no-timeout", HangsUpEarlyFg),
       ("any.poll.retry", IgnoresMissingId),
       ("any.poll.retry", TakesErrorsWithId))


# ---- results ----


class NoReady(Scf):
    def start(self) -> None:
        pass


class EmptyReady(Scf):
    def start(self) -> None:
        self.exchange("POST", "/runtime/init/ready", b"")


class ReadyMustBe200(Scf):
    def start(self) -> None:
        if self.exchange("POST", "/runtime/init/ready", b" ").status != 200:
            os._exit(1)


class NeedsFunctionName(Scf):
    def start(self) -> None:
        os.environ["SCF_FUNCTIONNAME"]
        super().start()


class PostsTwice(Scf):
    def post(self, kind: str, request_id: str, body: bytes) -> None:
        super().post(kind, request_id, body)
        super().post(kind, request_id, body)


class PostsTwiceFg(Fg):
    def post(self, kind: str, request_id: str, body: bytes) -> None:
        super().post(kind, request_id, body)
        super().post(kind, request_id, body)


class HandlesAnEventOnce(Scf):
    def serve(self, answer: wire.Message) -> None:
        request_id = (answer.header("request_id") or "").encode()
        if request_id not in self.seen:
            super().serve(answer)
        self.seen.append(request_id)


class PollsEarly(Scf):
    def post(self, kind: str, request_id: str, body: bytes) -> None:
        path = self.response_path if kind == "response" else self.error_path
        wire.connect(self.host, self.port, self.note, "platform").send(
            self.request("POST", path, body))


class PollsEarlyAfterErrors(PollsEarly):
    def post(self, kind: str, request_id: str, body: bytes) -> None:
        if kind == "response":
            Scf.post(self, kind, request_id, body)
        else:
            super().post(kind, request_id, body)


class DiesOn413(Scf):
    def read(self, method: str) -> wire.Message:
        answer = super().read(method)
        if answer.status == 413:
            os._exit(1)
        return answer


class InsistsOn200(Scf):
    def post(self, kind: str, request_id: str, body: bytes) -> None:
        path = self.response_path if kind == "response" else self.error_path
        while self.exchange("POST", path, body).status != 200:
            self.pause()


class RepeatsAfterHalfAnAnswer(Fg):
    def post(self, kind: str, request_id: str, body: bytes) -> None:
        path = self.response_path if kind == "response" else self.error_path
        try:
            self.exchange("POST", path.format(id=request_id), body)
        except wire.WireError:
            super().post(kind, request_id, body)


class DiesOnError(Scf):
    def post(self, kind: str, request_id: str, body: bytes) -> None:
        super().post(kind, request_id, body)
        if kind == "error":
            os._exit(1)


class AcceptsAnyWord(Fg):
    def outcome(self, event: bytes, context: Dict[str, Any]) -> Tuple[str, bytes]:
        return "response", super().outcome(event, context)[1]


class PlainErrors(Scf):
    def report(self, type_: str, message: str) -> bytes:
        if type_ == "Unsupported":
            return super().report(type_, message)
        return f"{type_}: {message}".encode()


class PrintsAnswers(Fg):
    def read(self, method: str) -> wire.Message:
        answer = super().read(method)
        if method == "POST":
            print(answer.body.decode(), flush=True)
        return answer


class FirstIdForEver(Fg):
    def post(self, kind: str, request_id: str, body: bytes) -> None:
        self.seen.append(request_id.encode())
        super().post(kind, self.seen[0].decode(), body)


class GrepsForTheId(Fg):
    def serve(self, answer: wire.Message) -> None:
        text = answer.raw_head.decode("latin-1")
        found = re.findall(r"(?i)x-cff-request-id[^A-Za-z0-9]*([\w-]*)", text)
        fields = (("X-Cff-Request-Id", found[0]),)
        super().serve(answer._replace(headers=fields))


class NeedsItsFolder(Fg):
    def start(self) -> None:
        os.stat("bootstraps.py")


class OneShot(Scf):
    def serve(self, answer: wire.Message) -> None:
        super().serve(answer)
        if self.count == 2:  # the probe has two events
            os._exit(0)


class IgnoresSigterm(Scf):
    def on_sigterm(self, *_: object) -> None:
        pass


class IgnoresSigtermOnceUsed(Scf):
    def on_sigterm(self, *_: object) -> None:
        if not self.count:
            super().on_sigterm()


class IgnoresSigtermInPauses(Fg):
    def pause(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        super().pause()


class DropsItsResultOnSigterm(Fg):
    def on_sigterm(self, *_: object) -> None:
        signal.pause()


class EndsWhileBusy(Scf):
    def on_sigterm(self, *_: object) -> None:
        os._exit(0)


class DiesOfLostReady(Scf):
    def start(self) -> None:
        self.exchange("POST", "/runtime/init/ready", b" ")


class PostsUntilAnswered(Scf):
    def post(self, kind: str, request_id: str, body: bytes) -> None:
        path = self.response_path if kind == "response" else self.error_path
        while True:
            try:
                self.exchange("POST", path, body)
                return
            except wire.WireError:
                pass


class LimitInSeconds(Fg):
    def context(self, answer: wire.Message) -> Dict[str, Any]:
        return {**super().context(answer),
                "time_limit_ms": int(os.environ["RUNTIME_TIMEOUT"])}


breaks(("scf.ready.before-next", NoReady), ("scf.ready.body", EmptyReady),
       ("scf.ready.refused", ReadyMustBe200), ("scf.ready.refused", DiesOfLostReady),
       ("scf.env.tolerant", NeedsFunctionName),
       ("any.result.once", PostsTwice),
       ("any.result.once", PostsTwiceFg),
       ("any.result.once", HandlesAnEventOnce),
       ("scf.response.order", PollsEarly),
       ("scf.response.order", PollsEarlyAfterErrors),
       ("any.result.once", DiesOn413),
       ("any.result.once", InsistsOn200),
       ("any.result.once", RepeatsAfterHalfAnAnswer),
       ("any.result.once", PostsUntilAnswered), ("any.result.once", LimitInSeconds),
       ("any.error.survive", DiesOnError),
       ("any.error.survive", AcceptsAnyWord),
       ("any.error.document", PlainErrors), ("any.log.quiet", PrintsAnswers),
       ("fg.response.id", FirstIdForEver), ("fg.response.id", GrepsForTheId),
       ("fg.start.cwd", NeedsItsFolder),
       ("any.instance.init-once", OneShot),
       ("any.stop.bootstrap", IgnoresSigterm),
       ("any.stop.bootstrap", IgnoresSigtermOnceUsed),
       ("any.stop.bootstrap", IgnoresSigtermInPauses),
       ("any.stop.bootstrap", DropsItsResultOnSigterm),
       ("any.stop.bootstrap", EndsWhileBusy))


# ---- fc ----


class Loopback(Fc):
    address = "127.0.0.1"


class SecondLoopback(Fc):
    address = "127.0.0.2"


class KnowsOnePortVariable(Fc):
    def port(self) -> int:
        return int(os.environ.get("FC_SERVER_PORT", "9000"))


class PrefersTheCustomPort(Fc):
    def port(self) -> int:
        return int(os.environ.get("FC_CUSTOM_LISTEN_PORT") or super().port())


class DiesOfSilence(Fc):
    lock = threading.Lock()
    silent = 0

    def serve(self, peer: socket.socket) -> None:
        is_silent = not peer.recv(1, socket.MSG_PEEK)
        with self.lock:
            self.silent += is_silent
            if self.silent > 1:  # the first one is the platform's probe
                os._exit(1)
        super().serve(peer)


class OneConnection(Fc):
    lock = threading.Lock()

    def serve(self, peer: socket.socket) -> None:
        with self.lock:
            super().serve(peer)


class OneAtATime(Fc):
    lock = threading.Lock()

    def answer(self, channel: wire.Channel, request: wire.Message) -> None:
        with self.lock:
            super().answer(channel, request)


class FourAtATime(Fc):
    places = threading.Semaphore(4)

    def answer(self, channel: wire.Channel, request: wire.Message) -> None:
        with self.places:
            super().answer(channel, request)


class GivesUpSlowRequests(Fc):
    def read(self, channel: wire.Channel, peer: socket.socket) -> wire.Message:
        peer.recv(1, socket.MSG_PEEK)
        return channel.read(0.2)


class ClosesConnections(Fc):
    def answer(self, channel: wire.Channel, request: wire.Message) -> None:
        super().answer(channel, request)
        channel.close()


class ClosesIdleConnections(Fc):
    idle_limit_s = 0.2


class Answers201(Fc):
    def result(self, kind: str, body: bytes) -> bytes:
        return super().result(kind, body).replace(b" 200 ", b" 201 ", 1)


class AlwaysAnswers200(Fc):
    def result(self, kind: str, body: bytes) -> bytes:
        return wire.response(200, [("x-fc-status", "200")], body)


class ErrorsWithoutField(Fc):
    def result(self, kind: str, body: bytes) -> bytes:
        return wire.response(404, (), body) if kind == "error" \
            else super().result(kind, body)


class ResultsWithoutField(Fc):
    def result(self, kind: str, body: bytes) -> bytes:
        return wire.response(200, (), body) if kind == "response" \
            else super().result(kind, body)


class RefusesHooks(Fc):
    def answer(self, channel: wire.Channel, request: wire.Message) -> None:
        hooks = ("/initialize", "/pre-freeze", "/pre-stop")
        if request.header("x-fc-control-path") in hooks:
            channel.send(wire.response(405))
        else:
            super().answer(channel, request)


class HangsUpOnHttp(Fc):
    def answer(self, channel: wire.Channel, request: wire.Message) -> None:
        if request.header("x-fc-control-path") == "/http-invoke":
            channel.close()
        else:
            super().answer(channel, request)


class KnowsNoHttp(Fc):
    def answer(self, channel: wire.Channel, request: wire.Message) -> None:
        if request.header("x-fc-control-path") == "/http-invoke":
            channel.send(wire.response(404, [("x-fc-status", "404")], b"{}"))
        else:
            super().answer(channel, request)


class LooksAtPathsOnly(Fc):
    def answer(self, channel: wire.Channel, request: wire.Message) -> None:
        super().answer(channel, request._replace(headers=()))


class TakesGetsForHooks(Fc):
    def answer(self, channel: wire.Channel, request: wire.Message) -> None:
        if request.start.startswith(("GET /pre-freeze ", "GET /pre-stop ")):
            channel.send(wire.response(200))
        else:
            super().answer(channel, request)


class NeedsTheControlPath(Fc):
    def answer(self, channel: wire.Channel, request: wire.Message) -> None:
        if not request.header("x-fc-control-path"):
            request = request._replace(start="POST /some/path HTTP/1.1")
        super().answer(channel, request)


class LimitInSecondsFc(Fc):
    def context(self, request: wire.Message) -> Dict[str, Any]:
        return {**super().context(request),
                "time_limit_ms": int(request.header("x-fc-function-timeout") or 0)}


class EndsWhileBusyFc(Fc):
    def on_sigterm(self, *_: object) -> None:
        os._exit(0)


class EndsAfterTheFirstAnswer(Fc):
    def answer(self, channel: wire.Channel, request: wire.Message) -> None:
        super().answer(channel, request)
        if self.stopping:
            os._exit(0)


class ReadsNoChunks(Fc):
    def answer(self, channel: wire.Channel, request: wire.Message) -> None:
        if request.header("transfer-encoding"):
            request = request._replace(body=b"")
        super().answer(channel, request)


class ChunkedInOneCaseFc(Fc):
    def answer(self, channel: wire.Channel, request: wire.Message) -> None:
        if (request.header("transfer-encoding") or "chunked") != "chunked":
            request = request._replace(body=b"")
        super().answer(channel, request)


class TrimsFc(Fc):
    def handle(self, event: bytes, context: Dict[str, Any]) -> bytes:
        return super().handle(event.strip(), context)


class CaseSensitiveFc(Fc):
    def answer(self, channel: wire.Channel, request: wire.Message) -> None:
        if "Content-Type" not in dict(request.headers) and request.path == "/invoke":
            request = request._replace(body=b"")
        super().answer(channel, request)


breaks(("fc.start.port", Loopback), ("fc.start.port", SecondLoopback),
       ("fc.start.port", KnowsOnePortVariable),
       ("fc.start.port", PrefersTheCustomPort),
       ("fc.start.silent-connection", DiesOfSilence),
       ("fc.start.silent-connection", OneConnection),
       ("fc.concurrency.bootstrap", OneAtATime),
       ("fc.concurrency.bootstrap", FourAtATime),
       ("fc.connection.keep-alive", GivesUpSlowRequests),
       ("fc.connection.keep-alive", ClosesConnections),
       ("fc.connection.keep-alive", ClosesIdleConnections),
       ("fc.invoke.status", Answers201), ("fc.invoke.status", AlwaysAnswers200),
       ("fc.invoke.status", ErrorsWithoutField),
       ("fc.invoke.success-field", ResultsWithoutField),
       ("fc.hook.answer", RefusesHooks), ("fc.http.bootstrap", HangsUpOnHttp),
       ("fc.http.bootstrap", KnowsNoHttp), ("fc.invoke.kind", LooksAtPathsOnly),
       ("fc.invoke.kind", TakesGetsForHooks),
       ("fc.invoke.kind", NeedsTheControlPath), ("fc.invoke.status", LimitInSecondsFc),
       ("any.stop.bootstrap", EndsWhileBusyFc),
       ("any.stop.bootstrap", EndsAfterTheFirstAnswer),
       ("any.http.chunked-event", ReadsNoChunks),
       ("any.http.chunked-event", ChunkedInOneCaseFc),
       ("any.event.opaque", TrimsFc),
       ("any.http.header-case", CaseSensitiveFc))


def main() -> None:
    """Be the one that the command line names."""
    table = {name: entry[2] for name, entry in BROKEN.items()}
    table.update({one.__name__: one for one in CORRECT.values()})
    chosen = table[sys.argv[1]]()
    assert isinstance(chosen, (Scf, Fg, Fc))
    chosen.run()


if __name__ == "__main__":
    main()
