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


def compare(step: spec.Step, seen: wire.Message, names: Names) -> None:
    """Raise Mismatch unless a message is the one of the transcript; the JSON of a
    bootstrap, or of a refusal, may have more members."""
    words = seen.start.split(" ")
    names.match(step.line, words[1] if step.who in ("P<", "B<") else " ".join(words[:2]),
                step.who)
    for name, value in step.headers:
        found = seen.header(name)
        if found is None:
            raise Mismatch(f"a field {name}", f"{seen.start} without it")
        names.match(value, found, f"{name}:")
    body = seen.body.decode("utf-8", "replace")
    if (step.who[0] == "B" or step.line[0] == "4") and step.body.startswith("{"):
        wanted, members = document(step.body), document(body)
        for name, value in wanted.items():
            if isinstance(value, str):
                names.match(value, str(members.get(name)), name)
            else:
                same(value, members.get(name), name)
    elif step.body or not step.who.startswith("B"):
        names.match(step.body, body, "body")


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
    instance: Optional[Instance] = None
    is_settled = False
    for step in steps:
        if step.line in ("GET /pre-freeze", "GET /pre-stop") and not is_settled:
            settle(run, transcript, names)
            is_settled = True
        if instance is None:
            instance = run.server() if run.protocol == "fc" else run.instance()
        if step.line == "GET /pre-stop":
            run.end_input()
        act(instance, step, names)
    if not is_settled:
        settle(run, transcript, names)
    if instance is not None:
        run.discard(instance)


def settle(run: PlatformRun, transcript: spec.Transcript, names: Names) -> None:
    """Compare the outcome and what the caller sees."""
    kind = transcript.outcome
    if (transcript.protocol, kind) == ("fc", "response-too-large"):
        kind += " or ok"  # [fc.limits.result] is a MAY
    outcome = run.outcome(kind)
    names.request_id = names.request_id or outcome.request_id
    if outcome.kind in transcript.outcome and transcript.result:
        seen = outcome.body.decode("utf-8", "replace")
        names.match(transcript.result, seen, "result")


def act(instance: Instance, step: spec.Step, names: Names) -> None:
    """Do one message or deed of the bootstrap, or compare one of the platform."""
    word, _, argument = step.line.partition(" ")
    body = names.filled(step.body).encode()
    if step.who == "B>":
        instance.asked = instance.open()
        instance.send(instance.asked, wire.request_bytes(
            word, names.filled(argument), step.headers, None if word == "GET" else body))
    elif step.who == "B<":
        names_of = {name.lower() for name, _ in step.headers}
        length = [] if "content-length" in names_of else [("Content-Length", str(len(body)))]
        instance.answer_bytes(wire.head_bytes(
            f"HTTP/1.1 {step.line} X", [*step.headers, *length]) + body)
    elif step.who in ("P<", "P>"):
        got = instance.request(argument) if step.who == "P>" else \
            instance.read(instance.asked)
        compare(step, got, names)
    elif word == "close":
        instance.close(instance.asked)
    elif word == "exit":
        instance.end("exit", status=int(argument))
    elif word == "eat":
        instance.end("eat", bytes=256 << 20)
    elif word != "silence":
        raise ValueError(f"no such deed: {step.line}")


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
            compare(step, exchange.request, names)
        elif step.who == "P<":
            assert exchange is not None
            fields = merged(kit.event_headers(transcript.protocol, names.request_id)
                            if step.body else [], step, names)
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
            compare(step, run.final(channel), names)
        else:
            watch(run.process, step.line, run.patience_s)


def watch(process: kit.Process, line: str, limit_s: float) -> None:
    """See that the bootstrap does what a `!` line says."""
    word, _, argument = line.partition(" ")
    if word == "exit":
        same(int(argument), process.wait(limit_s), "exit status")
    elif word != "silence":
        raise ValueError(f"a bootstrap cannot be made to {line}")
