# replay.py: plays the transcripts of SPEC.md, either side of them (MIT).
"""Replay one transcript against a platform, or against a bootstrap, and compare."""

import pathlib
import re
import shlex
from typing import Callable, Dict, List, Optional, Tuple

import kit
import spec
import wire
from kit import Mismatch, document, same

from platform_run import PlatformUnderTest, Instance, PlatformRun


def can_play(transcript: spec.Transcript) -> bool:
    """Tell whether JSON lines can carry it; a caller who leaves is not among that."""
    return all(step.line != "leave" for step in transcript.steps)


# ---- comparing ----


class Names:
    """What `{id}` stands for, once it has been seen."""

    def __init__(self) -> None:
        self.request_id = ""

    def pattern(self, text: str) -> str:
        """Return a regular expression for a text with `{id}` and `*`."""
        escaped = re.escape(text).replace(r"\*", ".*").replace(r"\{id\}", "{id}")
        known = re.escape(self.request_id) if self.request_id else r"(?P<id>[\w-]+)"
        return escaped.replace("{id}", known, 1).replace("{id}", r"[\w-]+")

    def match(self, wanted: str, seen: str, what: str) -> None:
        """Raise Mismatch unless the text fits; learn the id from it."""
        found = re.fullmatch(self.pattern(wanted), seen, re.DOTALL)
        if not found:
            raise Mismatch(f"{what} {wanted!r}", repr(seen))
        self.request_id = found.groupdict().get("id") or self.request_id

    def filled(self, text: str) -> str:
        """Return a text to send, with the id in its place."""
        return text.replace("{id}", self.request_id).replace("*", "")


def compare(step: spec.Step, start: str, headers: wire.Headers, body: bytes,
            names: Names) -> None:
    """Raise Mismatch unless a message is the one of the transcript."""
    words = start.split(" ")
    seen = words[1] if step.who in ("P<", "B<") else " ".join(words[:2])
    names.match(step.line, seen, step.who)
    for name, value in step.headers:
        values = [one for key, one in headers if key.lower() == name.lower()]
        if not values:
            raise Mismatch(f"a field {name}", f"{start} without it")
        names.match(value, values[0], f"{name}:")
    compare_body(step, body.decode("utf-8", "replace"), names)


def compare_body(step: spec.Step, seen: str, names: Names) -> None:
    """Raise Mismatch unless the body fits; a bootstrap's JSON may have more members."""
    if step.who.startswith("B") and step.body.startswith("{"):
        wanted, found = document(step.body), document(seen)
        same(wanted, {name: found.get(name) for name in wanted}, "body")
    elif step.body or not step.who.startswith("B"):
        names.match(step.body, seen, "body")


# ---- against a platform ----


def against_platform(platform: PlatformUnderTest, transcript: spec.Transcript) -> None:
    """Play the bootstrap and the caller; compare what the platform says."""
    platform.needs(*NEEDS.get(transcript.outcome, ()))
    steps = list(transcript.steps)
    spoil = SPOILS.get(steps[0].line) if steps else None
    with platform.bare_run(*shlex.split(transcript.options)) as run:
        if spoil is None:
            run.issue(transcript.event.encode())
            play(run, steps, transcript)
            return
        with run.changed_bootstrap() as program:
            spoil(program)
            run.issue(transcript.event.encode())
            play(run, [], transcript)


NEEDS = {"out-of-memory": ("memory",), "throttled": ("instances",)}
SPOILS: Dict[str, Callable[[pathlib.Path], object]] = {
    "missing": lambda program: program.unlink(),
    "not-executable": lambda program: program.chmod(0o644)}


def play(run: PlatformRun, steps: List[spec.Step], transcript: spec.Transcript) -> None:
    """Do the steps, and look at the outcome when the result must have been given."""
    names = Names()
    player = (PushPlayer if transcript.protocol == "fc" else PullPlayer)(run, names)
    is_settled = False
    for step in steps:
        if step.line in ("GET /pre-freeze", "GET /pre-stop") and not is_settled:
            settle(run, transcript, names)
            is_settled = True
        player.step(step)
    if not is_settled:
        settle(run, transcript, names)
    if player.started is not None:
        run.discard(player.started)


def settle(run: PlatformRun, transcript: spec.Transcript, names: Names) -> None:
    """Compare the outcome and what the caller sees."""
    kind = transcript.outcome
    if (transcript.protocol, kind) == ("fc", "response-too-large"):
        kind += " or ok"  # [fc.limits.result] is a MAY
    outcome = run.outcome(kind)
    if outcome.kind not in transcript.outcome:
        return
    names.request_id = names.request_id or outcome.request_id
    if transcript.result:
        seen = outcome.body.decode("utf-8", "replace")
        names.match(transcript.result, seen, "result")


class PullPlayer:
    """The bootstrap's part of a pull protocol."""

    def __init__(self, run: PlatformRun, names: Names) -> None:
        self.run, self.names = run, names
        self.started: Optional[Instance] = None
        self.number = 0

    @property
    def instance(self) -> Instance:
        """Return the bootstrap, once the platform has started it."""
        self.started = self.started or self.run.instance()
        return self.started

    def step(self, step: spec.Step) -> None:
        """Do one message or deed."""
        if step.who == "B>":
            method, path = self.names.filled(step.line).split(" ")
            body = None if method == "GET" else self.names.filled(step.body).encode()
            self.number = self.instance.open()
            self.instance.send(self.number,
                               wire.request_bytes(method, path, step.headers, body))
        elif step.who == "P<":
            reply = self.instance.read(self.number)
            compare(step, reply.start, reply.headers, reply.body, self.names)
        elif step.line == "close":
            self.instance.close(self.number)
        else:
            deed(self.instance, step.line)


class PushPlayer:
    """The bootstrap's part of fc."""

    def __init__(self, run: PlatformRun, names: Names) -> None:
        self.run, self.names = run, names
        self.started: Optional[Instance] = None

    def step(self, step: spec.Step) -> None:
        """Do one message or deed."""
        if self.started is None:
            self.started = self.run.instance()
            self.started.listen()
        instance = self.started
        if step.who == "P>":
            if step.line == "GET /pre-stop":
                self.run.end_input()
            request = instance.request(step.line.split(" ")[1])
            compare(step, request.start, request.headers, request.body, self.names)
        elif step.who == "B<":
            instance.answer_bytes(answer_bytes(step, self.names))
        elif step.line == "close":
            instance.close(instance.asked)
        else:
            deed(instance, step.line)


def answer_bytes(step: spec.Step, names: Names) -> bytes:
    """Return a response as the transcript has it; its own length, if it says one."""
    headers = list(step.headers)
    body = names.filled(step.body).encode()
    if not any(name.lower() == "content-length" for name, _ in headers):
        headers.append(("Content-Length", str(len(body))))
    return wire.head_bytes(f"HTTP/1.1 {step.line} X", headers) + body


def deed(instance: Instance, line: str) -> None:
    """Do what a `!` line says."""
    word, _, argument = line.partition(" ")
    if word == "exit":
        instance.end("exit", status=int(argument))
    elif word == "eat":
        instance.end("eat", bytes=256 << 20)
    elif word != "silence":
        raise ValueError(f"no such deed: {line}")


# ---- against a bootstrap ----

HOOKS = ("POST /initialize", "GET /pre-freeze", "GET /pre-stop")


def against_bootstrap(bootstrap: kit.Bootstrap, transcript: spec.Transcript) -> None:
    """Play the platform; compare what the bootstrap says and does."""
    if any(step.line in HOOKS for step in transcript.steps):
        bootstrap.needs("hooks")
    if transcript.protocol == "fc":
        push(bootstrap.push(), transcript)
    else:
        pull(bootstrap.pull(), transcript)


def pull(run: kit.PullRun, transcript: spec.Transcript) -> None:
    """Be the runtime API of the dialogue."""
    names = Names()
    names.request_id = "00000000-0000-4000-8000-000000000042"
    exchange: Optional[wire.Exchange] = None
    for step in transcript.steps:
        if step.who == "B>":
            exchange = run.request(step.line)
            got = exchange.request
            compare(step, got.start, got.headers, got.body, names)
        elif step.who == "P<":
            assert exchange is not None
            is_event = step.body != ""
            fields = merged(kit.event_headers(transcript.protocol, names.request_id)
                            if is_event else [], step, names)
            exchange.reply(int(step.line), fields, names.filled(step.body).encode())
        else:
            watch(run.process, step.line, run.patience_s)


def merged(usual: List[Tuple[str, str]], step: spec.Step,
           names: Names) -> List[Tuple[str, str]]:
    """Return the usual fields, overridden by those of the transcript."""
    fields: Dict[str, Tuple[str, str]] = {name.lower(): (name, value)
                                          for name, value in usual}
    fields.update({name.lower(): (name, names.filled(value))
                   for name, value in step.headers})
    return list(fields.values())


def push(run: kit.PushRun, transcript: spec.Transcript) -> None:
    """Be the platform's client of the dialogue."""
    names = Names()
    names.request_id = "1-00000000-00000000-000000000042"
    channel = run.connect()
    for step in transcript.steps:
        if step.who == "P>":
            if "keep-alive" in run.kind.without:
                channel = run.connect()
            method, path = step.line.split(" ")
            body = names.filled(step.body).encode() if method == "POST" else None
            channel.send(wire.request_bytes(
                method, path, merged(run.headers(path), step, names), body))
        elif step.who == "B<":
            got = channel.read(run.patience_s, to="POST")
            compare(step, got.start, got.headers, got.body, names)
        else:
            watch(run.process, step.line, run.patience_s)


def watch(process: kit.Process, line: str, limit_s: float) -> None:
    """See that the bootstrap does what a `!` line says."""
    word, _, argument = line.partition(" ")
    if word == "exit":
        same(int(argument), process.wait(limit_s), "exit status")
    elif word != "silence":
        raise ValueError(f"a bootstrap cannot be made to {line}")
