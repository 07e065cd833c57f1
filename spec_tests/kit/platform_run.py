# platform_run.py: a platform under test, and the bootstraps that it starts (MIT).
"""Start `COMMAND P CODE --jsonl …`, feed it events, and be the bootstrap it starts.

A check gets a `PlatformUnderTest`, borrows a `PlatformRun` from it (one running
platform), and drives both ends: events and outcomes as JSON lines, and the process that
the platform has started (`Instance`), which is played_bootstrap.py.
"""

import base64
import contextlib
import json
import marshal
import os
import pathlib
import queue
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import zipfile
from typing import (Any, Callable, ContextManager, Dict, Iterator, List, NamedTuple, Optional,
                    Sequence, Tuple, Union)

import fork_server
import kit
import light_http
import wire
from kit import Mismatch
from wire import Message

# Options that several checks have in common, so that they can share a platform.
LIMITED = ("--timeout", "1", "--grace", "60")
CLOCKED = ("--parallel", "4", "--timeout", "2.5")
PAIR = ("--parallel", "2", "--max-instances", "2")
USER = {"MY_SETTING": "a b=c", "lower_1": "", "NO_ASCII": "\u00e9\u4e2d", "BLANKS": " x ",
        "LANG": "mine", "TMPDIR": "/tmp/mine", "FCX": "1", "SCFX": "1", "RUNTIMEX": "1"}
CONFIGURED = ("--name", "mine", "--memory", "256", "--timeout", "4.5", "--handler", "a.b",
              *(word for name in USER for word in ("--env", f"{name}={USER[name]}")))

PLAYED = str(pathlib.Path(__file__).resolve().with_name("played_bootstrap.py"))
RESULT_BYTES = 1000  # the limits that the kit sets, unless `limits` is missing
EVENT_BYTES = 2000
SHOWN_BYTES = 65536  # of a body, that an instance hands on to the kit
GARBAGE_LINES = 5  # of a platform's stdout that are kept for people
QUIET_S = 0.1  # a wrong answer to a call that has to wait would come at once
SETTLE_S = 0.06  # for steps of the platform that cannot be seen from outside

Parts = Sequence[Union[bytes, int]]


class Outcome(NamedTuple):
    """One line of the platform's stdout."""

    kind: str
    body: bytes
    request_id: str
    violations: Tuple[str, ...]
    status: int
    headers: Tuple[Tuple[str, str], ...]  # names in lower case
    line: Dict[str, Any]


def outcome_of(line: Dict[str, Any]) -> Outcome:
    """Return a line as an outcome. Raises ValueError, TypeError, KeyError."""
    body = (base64.b64decode(line["body_base64"]) if "body_base64" in line
            else str(line.get("body", "")).encode())
    return Outcome(line["kind"], body, str(line.get("request_id", "")),
                   tuple(str(one["rule"]) for one in line.get("violations", ())),
                   int(line.get("status", 200)),
                   tuple((str(name).lower(), str(value))
                         for name, value in line.get("headers", ())), line)


class Environment(Dict[str, str]):
    """The variables of a process; one that is missed is a mismatch."""

    def __missing__(self, name: str) -> str:
        raise Mismatch(f"the variable {name}", "it is not set")


def state_of(process_id: int) -> str:
    """Return the letter that the system has for what a process does; "" for none."""
    try:
        with open(f"/proc/{process_id}/stat", encoding="latin-1") as file:
            return file.read().rpartition(")")[2].split()[0]
    except OSError:
        return ""


class Instance:
    """One process that the platform started, at the end of a control connection."""

    def __init__(self, run: "PlatformRun", sock: socket.socket) -> None:
        self.run = run
        self.sock = sock
        self.lines = sock.makefile("rb")
        sock.settimeout(run.patience_s + 1.0)  # than the instance's own
        hello = marshal.load(self.lines)
        self.pid: int = hello["pid"]
        self.environ = Environment(hello["environ"])
        self.cwd: str = hello["cwd"]
        self.argv: List[str] = hello["argv"]
        self.last_number = 0
        self.request_id = ""
        self.asked = 0
        self.unread = 0  # answers to orders that nobody waited for
        self.got = Message("", (), b"")

    def order(self, word: str, **arguments: object) -> Dict[str, Any]:
        """Give an order, return the answer. Raises Mismatch if the instance is gone."""
        try:
            self.sock.sendall(marshal.dumps({"do": word, **arguments}))
            while self.unread:
                marshal.load(self.lines)
                self.unread -= 1
            answer: Dict[str, Any] = marshal.load(self.lines)
            return answer
        except (OSError, EOFError) as error:
            is_late = isinstance(error, socket.timeout)
            raise Mismatch(f"the bootstrap to live on (it was told to {word})",
                           "it does not move" if is_late else "its process is gone"
                           ) from None

    def end(self, word: str, **arguments: object) -> None:
        """Give an order that ends the process; nothing is answered."""
        self.run.note("bootstrap", f"! {word} {arguments or ''}"[:200].encode())
        self.tell(word, **arguments)

    def tell(self, word: str, **arguments: object) -> None:
        """Give an order; do not wait for an answer."""
        with contextlib.suppress(OSError):
            self.sock.sendall(marshal.dumps({"do": word, **arguments}))

    def reaped(self) -> None:
        """Wait until the platform has taken note of the end. Raises Mismatch."""
        if not any(not state_of(self.pid) for _ in wire.looks(self.run.patience_s)):
            raise Mismatch("the end of a process to be noticed", "it is there, or a zombie")

    def frozen(self, process_id: int = 0) -> None:
        """Wait until the process, or one of its own, stands still. Raises Mismatch."""
        if not any(state_of(process_id or self.pid) == "T" for _ in wire.looks(self.run.patience_s)):
            raise Mismatch("a process that is stopped", "it runs")

    # -- as a client of the runtime API --

    def address(self) -> Tuple[str, int]:
        """Return host and port of the runtime API, from the environment."""
        if self.run.protocol == "scf":
            return (self.environ["SCF_RUNTIME_API"],
                    int(self.environ["SCF_RUNTIME_API_PORT"]))
        host, _, port = self.environ["RUNTIME_API_ADDR"].partition(":")
        return host, int(port)

    def open(self) -> int:
        """Open a connection to the runtime API; return its number."""
        self.connected("open")
        return self.last_number

    def connected(self, word: str, **arguments: object) -> Dict[str, Any]:
        """Give an order that opens a connection; return the answer. Raises Mismatch."""
        self.last_number += 1
        host, port = self.address()
        answer = self.order(word, n=self.last_number, host=host, port=port, **arguments)
        if "failed" in answer:
            raise Mismatch("a runtime API that can be reached", answer["failed"])
        return answer

    def send(self, number: int, *parts: Union[bytes, int]) -> bool:
        """Send bytes, or that many `x`; tell whether the peer took them."""
        self.note_sent(number, parts)
        return "failed" not in self.order("send", n=number, parts=parts)

    def note_sent(self, number: int, parts: Parts) -> None:
        """Write down what the instance sends."""
        self.run.note(self.who("bootstrap", number), b"".join(
            part if isinstance(part, bytes) else b"(%d x)" % part for part in parts))

    def call(self, *parts: Union[bytes, int]) -> Message:
        """Send on a connection of its own; return what arrives within the patience."""
        self.note_sent(self.last_number + 1, parts)
        answer = self.connected("call", parts=parts, limit_s=self.run.patience_s)
        return self.reply_of(answer, self.last_number)

    def read(self, number: int, limit_s: Optional[float] = None,
             bodiless: bool = False) -> Message:
        """Return what arrives on that connection within the limit."""
        return self.reply_of(self.order(
            "read", n=number, bodiless=bodiless,
            limit_s=self.run.patience_s if limit_s is None else limit_s), number)

    def who(self, side: str, number: int) -> str:
        """Return who speaks, and on which of several connections."""
        return f"{side}, connection {number} of process {self.pid}"

    def reply_of(self, answer: Dict[str, Any], number: int) -> Message:
        """Return and write down what the instance has read."""
        head, body = answer["head"], answer["body"]
        self.run.note(self.who("platform", number), head + b"\r\n\r\n" + body if head else
                      b"(%s)" % answer["end"].encode())
        try:
            start, headers = wire.parse_head(head) if head else ("", ())
        except wire.Garbage as bad:
            raise Mismatch("an HTTP head", bad.what) from None
        got = Message(start, headers, body, head, answer["end"], answer["body_bytes"],
                      answer["body_sum"])
        if "chunked" in got.values("transfer-encoding") and got.end == "whole":
            got = got._replace(body=wire.chunked_body(body))
        return got

    def close(self, number: int, reset: bool = False) -> None:
        """Close that connection."""
        self.run.note(self.who("bootstrap", number), b"! reset" if reset else b"! close")
        self.order("close", n=number, reset=reset)

    # -- as the server of fc --

    def listen(self, host: str = "0.0.0.0") -> None:
        """Listen on the port that the environment names."""
        port = int(self.environ["FC_SERVER_PORT"])
        answer = self.order("listen", n=0, host=host, port=port)
        if "failed" in answer:
            raise Mismatch("a port that is free", answer["failed"])

    def request(self, path: str = "", limit_s: Optional[float] = None) -> Message:
        """Return the next request of the platform, which must have that path."""
        answer = self.order("request", n=0, limit_s=self.run.patience_s
                            if limit_s is None else limit_s)
        self.asked = answer["n"] or self.asked
        reply = self.reply_of(answer, self.asked)
        if path and reply.start.split(" ")[1:2] != [path]:
            raise Mismatch(f"a request for {path}", reply.start or reply.end)
        return reply

    def answer(self, status: int = 200, headers: wire.Headers = (),
               body: bytes = b"") -> None:
        """Answer the request that came last."""
        self.answer_bytes(wire.response(status, headers, body))

    def answer_bytes(self, data: bytes) -> None:
        """Answer with these bytes; the instance may be frozen or killed right after."""
        self.let_send(self.asked, data)

    def give(self, body: bytes) -> None:
        """Give the result; the instance may be killed right after."""
        if self.run.protocol == "fc":
            self.answer(200, [("x-fc-status", "200")], body)
        else:
            self.let_send(self.open(), self.post_bytes(body))

    def let_send(self, number: int, data: bytes) -> None:
        """Have bytes sent; do not wait until they are."""
        self.note_sent(number, [data])
        self.tell("send", n=number, parts=[data])
        self.unread += 1

    def ask(self, *parts: Union[bytes, int]) -> Message:
        """Send on a connection of its own; return the whole answer."""
        reply = self.call(*parts)
        if reply.end != "whole":
            raise Mismatch("a whole answer", f"{reply.end} after {reply.start!r}")
        return reply

    def ready(self, body: bytes = b" ") -> Message:
        """Call POST /runtime/init/ready (scf)."""
        return self.ask(wire.request_bytes("POST", "/runtime/init/ready", (), body))

    def poll_bytes(self) -> bytes:
        """Return the bytes of a poll."""
        return wire.request_bytes("GET", kit.DIALECTS[self.run.protocol].poll)

    def park(self) -> int:
        """Send a poll, read nothing; return the connection's number."""
        number = self.open()
        self.send(number, self.poll_bytes())
        return number

    def fetch(self, number: Optional[int] = None) -> Message:
        """Return the event that a poll brings; a new poll unless one is given, or is
        answered without an event [fg.request.empty]."""
        deadline = time.monotonic() + self.run.patience_s
        if number is None:
            reply = self.call(self.poll_bytes())
        else:
            reply = self.read(number)
            self.close(number)
        while reply.status == 204 and time.monotonic() < deadline:
            reply = self.call(self.poll_bytes())
        return self.noted(reply)

    def catch(self) -> int:
        """Poll until there is an event; return the connection, which stays open."""
        deadline = time.monotonic() + self.run.patience_s
        while True:
            number = self.park()
            reply = self.read(number)
            if reply.status != 204 or time.monotonic() > deadline:
                self.noted(reply)
                return number
            self.close(number)

    def noted(self, reply: Message) -> Message:
        """Return an event, which is now that of the instance. Raises Mismatch."""
        if reply.end != "whole" or reply.status != 200:
            raise Mismatch("an event", f"{reply.end}, {reply.start!r}")
        self.request_id = reply.header(kit.DIALECTS[self.run.protocol].id_header) or ""
        self.got = reply
        return reply

    def held(self, number: int, limit_s: float = QUIET_S) -> Optional[int]:
        """Return the connection of a poll that brings nothing for the moment, or None if
        it is answered without an event [fg.request.empty]. Raises Mismatch otherwise."""
        reply = self.read(number, limit_s)
        if reply.status == 204:
            self.close(number)
            return None
        if reply.end != "silence" or reply.start:
            raise Mismatch("no answer to the poll yet", f"{reply.end} {reply.start!r}")
        return number

    def next_event(self) -> Message:
        """Return what brings the next event: a poll's answer, or on fc a request."""
        return self.request() if self.run.protocol == "fc" else self.fetch()

    def result_path(self, kind: str = "response",
                    request_id: Optional[str] = None) -> str:
        """Return the path for a result of that kind."""
        dialect = kit.DIALECTS[self.run.protocol]
        form = dialect.response if kind == "response" else dialect.error
        return form.format(id=self.request_id if request_id is None else request_id)

    def post_bytes(self, body: Optional[bytes], headers: wire.Headers = ()) -> bytes:
        """Return the bytes of a result, or of its head, with these fields."""
        return wire.request_bytes("POST", self.result_path(), headers, body)

    def result(self, body: bytes, kind: str = "response") -> Message:
        """Post a result for the event fetched last; return the answer."""
        return self.ask(wire.request_bytes("POST", self.result_path(kind), (), body))


# ---- the platform ----


class PlatformRun:
    """One running platform: its stdin and stdout, and the instances that called in."""

    def __init__(self, subject: "PlatformUnderTest", options: Sequence[str],
                 package: Optional[Tuple[str, int]] = None,
                 env: Optional[Dict[str, str]] = None) -> None:
        self.implementation = subject.implementation
        self.protocol = self.implementation.protocol
        self.patience_s = self.implementation.patience_s
        self.options = tuple(options)
        self.frames = subject.frames
        self.arrived: "queue.Queue[Instance]" = queue.Queue()
        self.outcomes: "queue.Queue[Dict[str, Any]]" = queue.Queue()
        self.idle: Optional[Instance] = None
        self.stopped: Optional[Instance] = None
        self.processes: List[int] = []
        self.result_bytes = subject.result_bytes()
        self.garbage: List[bytes] = []
        self.issued = 0
        self.last_id = ""  # of the invocation whose outcome came last
        self.control = socket.socket()
        self.control.bind(("127.0.0.1", 0))
        self.control.listen(64)
        self.code = pathlib.Path(tempfile.mkdtemp("", "code-", kit.SCRATCH))
        self.errors = tempfile.TemporaryFile()
        (self.code / "script").write_text(str(self.control.getsockname()[1]))
        light_http.place(self.code, PLAYED)
        code = self.zip(*package) if package else self.code
        threading.Thread(target=self.accept, daemon=True).start()
        self.popen = self.launch(code, {**os.environ, **(env or {})})
        kit.RUNNING.add(self)
        self.listener = threading.Thread(target=self.listen, daemon=True)
        self.listener.start()

    def zip(self, name: str, mode: int) -> pathlib.Path:
        """Return the code as a ZIP file, with this entry, in this mode, besides; or with
        its own in that mode."""
        target = self.code / "code.zip"
        with zipfile.ZipFile(target, "w") as package:
            for path in (self.code / "bootstrap", self.code / "script"):
                entry = zipfile.ZipInfo.from_file(path, path.name)
                if path.name == name:
                    entry.external_attr = mode << 16
                package.writestr(entry, path.read_bytes())
            if name not in package.namelist():
                entry = zipfile.ZipInfo(name)
                entry.external_attr = mode << 16
                package.writestr(entry, "/etc/passwd")
        return target

    def launch(self, code: pathlib.Path, env: Dict[str, str]) -> "subprocess.Popen[bytes]":
        """Start the platform. Raises Mismatch."""
        command = [*self.implementation.command, self.protocol, str(code), "--jsonl",
                   *self.options]
        try:
            return fork_server.start(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                stderr=self.errors, cwd=self.implementation.folder, env=env)
        except OSError as error:
            self.control.close()
            shutil.rmtree(self.code, ignore_errors=True)
            raise Mismatch("a command that starts",
                           f"{command[0]}: {error.strerror}") from None

    def accept(self) -> None:
        """Take in each instance that the platform starts."""
        while True:
            try:
                sock, _ = self.control.accept()
                instance = Instance(self, sock)
                self.processes.append(instance.pid)
                self.arrived.put(instance)
            except (OSError, EOFError, ValueError, KeyError, TypeError):
                if self.control.fileno() < 0:
                    return

    def listen(self) -> None:
        """Read the outcomes as they come."""
        assert self.popen.stdout is not None
        for line in self.popen.stdout:
            try:
                outcome = json.loads(line)
                outcome["kind"] + ""
                self.outcomes.put(outcome)
            except (ValueError, KeyError, TypeError):
                if len(self.garbage) < GARBAGE_LINES:
                    self.garbage.append(line[:200])

    def note(self, who: str, data: bytes) -> None:
        """Write down what was sent."""
        self.frames.append(wire.Frame(who, wire.show(data)))

    def tail(self) -> str:
        """Return the end of what the platform said on stderr, and any garbage."""
        return wire.show(self.said()[-800:]) + wire.show(b"".join(self.garbage)[:300])

    def said(self) -> bytes:
        """Return all that came to the platform's stderr, also from bootstraps."""
        return os.pread(self.errors.fileno(), 1 << 26, 0)

    def issue(self, event: bytes, **fields: object) -> None:
        """Hand an event to the platform; for fc also method, path and headers."""
        self.issued += 1
        line: Dict[str, object] = {"id": self.issued, **fields}
        try:
            line["event"] = event.decode()
        except UnicodeDecodeError:
            line["event_base64"] = base64.b64encode(event).decode()
        self.note("caller", event)
        assert self.popen.stdin is not None
        try:
            self.popen.stdin.write(json.dumps(line).encode() + b"\n")
            self.popen.stdin.flush()
        except OSError:
            raise Mismatch("a platform that takes events", "its stdin is closed; "
                           + self.tail()) from None

    def wait_for(self, source: "queue.Queue[Any]", what: str, limit_s: float) -> Any:
        """Return the next thing from a queue. Raises Mismatch if nothing comes."""
        deadline = time.monotonic() + limit_s
        while True:
            try:
                return source.get(timeout=0.05)
            except queue.Empty:
                pass
            if self.popen.poll() is not None:
                self.listener.join(1.0)  # what it said last; or a child holds the pipe
                if source.empty():
                    raise Mismatch(what, "the platform ended with status "
                                   f"{self.popen.returncode}; {self.tail()}")
            if time.monotonic() > deadline:
                raise Mismatch(what, f"nothing in {limit_s} s; {self.tail()}")

    def outcome(self, kind: str = "", instance: Optional[Instance] = None) -> Outcome:
        """Return the next outcome, which must be of that kind if one is given; after it
        the instance, if one is given, is idle."""
        line = self.wait_for(self.outcomes, f"an outcome {kind}", self.patience_s)
        try:
            found = outcome_of(line)
        except (ValueError, TypeError, KeyError):
            raise Mismatch("an outcome as in spec_tests/README.md", str(line)) from None
        self.last_id = found.request_id
        self.note("outcome", json.dumps(line)[:1500].encode())
        if kind and found.kind not in kind.split(" or "):
            raise Mismatch(f"the outcome {kind}", f"{found.kind}: "
                           f"{wire.show(found.body)} {line.get('message', '')}")
        self.idle = instance or self.idle
        return found

    def no_outcome(self) -> None:
        """Raise Mismatch if there is an outcome already."""
        if not self.outcomes.empty():
            raise Mismatch("no outcome yet", str(self.outcomes.get()))

    @contextlib.contextmanager
    def held_up(self) -> Iterator[None]:
        """Have the platform stand still for a while, as on a busy machine."""
        os.killpg(self.popen.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(self.popen.pid, signal.SIGCONT)

    def no_instance(self) -> None:
        """Raise Mismatch if a process was started that nobody has met."""
        if not self.arrived.empty():
            raise Mismatch("no other process to be started", "there is one")

    def settle(self) -> None:
        """Let the platform do what it does by itself; there is nothing to wait for."""
        time.sleep(SETTLE_S)

    def end_input(self) -> None:
        """Tell the platform that no more events come."""
        assert self.popen.stdin is not None
        self.popen.stdin.close()

    def instance(self) -> Instance:
        """Return the next process that the platform starts."""
        wanted = "the bootstrap to be started"
        try:
            found: Instance = self.wait_for(self.arrived, wanted, self.patience_s)
        except Mismatch:
            if self.outcomes.empty():
                raise
            raise Mismatch(wanted, f"the outcome {self.outcomes.get()}") from None
        return found

    def stop(self) -> None:
        """Kill the platform and what it started."""
        kit.RUNNING.discard(self)
        for process_id in self.processes:
            kill_if(process_id, str(self.code), os.killpg)
        for number, limit_s in ((signal.SIGTERM, 1.0), (signal.SIGKILL, 5.0)):
            with contextlib.suppress(OSError):
                os.killpg(self.popen.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.popen.wait(limit_s)
        self.listener.join(1.0)  # it has come to the end, unless a child holds the pipe
        for stream in (self.popen.stdin, self.popen.stdout):
            with contextlib.suppress(OSError):
                if stream is not None:
                    stream.close()
        with contextlib.suppress(OSError):
            self.control.shutdown(socket.SHUT_RDWR)  # or accept() waits for ever
        self.control.close()
        self.errors.close()
        shutil.rmtree(self.code, ignore_errors=True)

    kill = stop  # at the end of the kit

    def wait(self, seconds: float) -> None:
        """Let time pass that a clock of the platform must not count."""
        time.sleep(seconds)

    def discard(self, instance: Instance) -> None:
        """End a bootstrap that is not to be used again, frozen or not."""
        kill_if(instance.pid, str(self.code))
        instance.reaped()
        self.settle()

    def abandon(self, *instances: Instance) -> None:
        """End bootstraps in each of which an event runs, whatever becomes of it."""
        for instance in instances:
            self.discard(instance)
            self.outcome()

    def discard_idle(self) -> None:
        """End the idle bootstrap, if there is one, so that the next one is new."""
        if self.idle is not None:
            instance, self.idle = self.idle, None
            self.discard(instance)

    @contextlib.contextmanager
    def changed_bootstrap(self) -> Iterator[pathlib.Path]:
        """Lend a copy of the file `bootstrap`, in its place; put that back afterwards.
        What this process writes cannot be executed as long as one that another thread
        starts at that moment has it open, so what is put back was never written to."""
        program = self.code / "bootstrap"
        whole = program.rename(self.code / "whole")
        shutil.copy(whole, program)
        yield program
        whole.replace(program)

    def wrap_bootstrap(self, script: str) -> None:
        """Put this script in the place of the bootstrap, which is `child` beside it. It
        is written by a process of its own: see changed_bootstrap()."""
        (self.code / "bootstrap").rename(self.code / "child")
        subprocess.run(["sh", "-c", 'printf "%s\n" "$2" > "$1/bootstrap"; '
                        'chmod 755 "$1/bootstrap"', "sh", str(self.code), script],
                       check=True)

    def ends(self) -> None:
        """Raise Mismatch unless the platform ends by itself, with status 0."""
        try:
            kit.same(0, self.popen.wait(self.patience_s), "exit status of the platform")
        except subprocess.TimeoutExpired:
            raise Mismatch("a platform that ends after its input", "it runs") from None

    def refused(self) -> None:
        """Raise Mismatch unless the platform refuses to start, with a message."""
        try:
            status = self.popen.wait(self.patience_s)
        except subprocess.TimeoutExpired:
            raise Mismatch("a platform that refuses its options", "it runs") from None
        if status == 0 or not self.tail():
            raise Mismatch("a status that is not 0, and a message", f"status {status}")

    # -- the bootstrap in a given state --

    def starting(self, event: bytes = b"hello") -> Instance:
        """Return a new bootstrap before its first call; the event waits for it."""
        self.discard_idle()
        self.issue(event)
        return self.instance()

    def ready(self, event: bytes = b"hello") -> Instance:
        """Return a new bootstrap of scf or fg that gets the event when it polls."""
        instance = self.starting(event)
        if self.protocol == "scf":
            instance.ready()
        return instance

    def server(self) -> Instance:
        """Return the next bootstrap of fc that is started, listening."""
        instance = self.instance()
        instance.listen()
        return instance

    def idle_one(self) -> Instance:
        """Return a bootstrap that has served an event, and is idle."""
        self.serve(b"before")
        instance, self.idle = self.idle, None
        assert instance is not None
        return instance

    def fetched(self, event: bytes = b"hello", **fields: object) -> Instance:
        """Return a bootstrap that has just fetched the event, or on fc a request."""
        instance, self.idle = self.idle, None
        if instance is not None or self.protocol == "fc":
            self.issue(event, **fields)
        if self.protocol == "fc":
            instance = instance or self.server()
            instance.got = instance.request()
            return instance
        instance = instance or self.ready(event)
        kit.same(event[:SHOWN_BYTES], instance.fetch().body, "the event as the body")
        return instance

    def finish(self, instance: Instance, body: bytes = b"done") -> Outcome:
        """Give the result of that event; return its outcome, an ok."""
        if self.protocol == "fc":
            instance.give(body)
        else:
            status = instance.result(body).status
            kit.same(200, status, "status of the answer to a result")
        found = self.outcome("ok", instance)
        kit.same(body, found.body, "the body of the outcome")
        return found

    def stubborn(self) -> Instance:
        """Return a bootstrap that has served an event, and ignores SIGTERM."""
        instance = self.fetched()
        instance.order("ignore", signal=15)
        self.finish(instance)
        return instance

    def pair(self) -> List[Instance]:
        """Return two new bootstraps before their first calls, with an event for each."""
        first = self.starting(b"one")
        self.issue(b"two")
        return [first, self.instance()]

    def serve(self, event: bytes = b"hello", body: bytes = b"done") -> Outcome:
        """Have this event served with this result."""
        return self.finish(self.fetched(event), body)


def kill_if(process_id: int, word: str, kill: Callable[[int, int], None] = os.kill,
            ) -> None:
    """Kill a process, or its group, frozen or not, if it is still the one with that
    command line."""
    with contextlib.suppress(OSError):
        with open(f"/proc/{process_id}/cmdline", "rb") as file:
            if word.encode() in file.read():
                kill(process_id, signal.SIGKILL)


# ---- what a check gets ----

class PlatformUnderTest(kit.Subject):
    """A platform under test."""

    wanted = "a platform that does as in spec_tests/README.md"

    def options(self, more: Sequence[str]) -> Tuple[str, ...]:
        """Return the options of a platform: one instance, limits scaled down, these."""
        usual = ["--max-instances", "1"]
        if self.implementation.protocol == "fc":
            usual += ["--port", "0", *([] if "--freeze" in more else ["--no-freeze"])]
        elif "limits" not in self.implementation.without:
            usual += ["--max-result", str(RESULT_BYTES),
                      "--max-event", str(EVENT_BYTES)]
        if self.implementation.protocol == "fg" and "--init-timeout" not in more:
            usual += ["--init-timeout", "60"]  # else it is --timeout, perhaps short
        return (*usual, *more)

    def result_bytes(self) -> int:
        """Return the limit for results that is in force."""
        return 6 * 1024 * 1024 if "limits" in self.implementation.without \
            else RESULT_BYTES

    def run(self, *options: str, package: Optional[Tuple[str, int]] = None,
            env: Optional[Dict[str, str]] = None) -> PlatformRun:
        """Start a platform with these options; it dies with the check. See zip()."""
        run = PlatformRun(self, self.options(options), package, env)
        self.runs.append(run)
        return run

    def used_run(self, *options: str) -> ContextManager[PlatformRun]:
        """Lend a platform that other checks left in order, or a new one."""
        return self._lend(self.options(options))

    def bare_run(self, *options: str) -> ContextManager[PlatformRun]:
        """Lend a platform with these options and its own limits; no bootstrap must be
        left of one whose options a transcript has, too."""
        port = ("--port", "0") if self.implementation.protocol == "fc" else ()
        return self._lend((*port, *options))

    @contextlib.contextmanager
    def new_run(self, *options: str) -> Iterator[PlatformRun]:
        """Lend such a platform, without a bootstrap that is idle."""
        with self.used_run(*options) as run:
            run.discard_idle()
            yield run

    @contextlib.contextmanager
    def running(self, *options: str, event: bytes = b"hello",
                ) -> Iterator[Tuple[PlatformRun, Instance]]:
        """Lend such a platform, and a bootstrap of it that has fetched an event."""
        with self.used_run(*options) as run:
            yield run, run.fetched(event)

    @contextlib.contextmanager
    def fetched(self, event: bytes = b"hello", **fields: object) -> Iterator[Instance]:
        """Lend a bootstrap that has fetched an event; it gives a result afterwards."""
        with self.used_run() as run:
            instance = run.fetched(event, **fields)
            yield instance
            run.finish(instance)

    def answered(self, status: int, headers: wire.Headers, body: bytes,
                 outcome: str = "ok", **fields: object) -> Outcome:
        """Answer an invocation of fc so; return its outcome, which must be of that
        kind."""
        with self.used_run() as run:
            instance = run.fetched(b"" if fields else b"hello", **fields)
            instance.answer(status, headers, body)
            return run.outcome(outcome, instance)

    @contextlib.contextmanager
    def _lend(self, wanted: Tuple[str, ...]) -> Iterator[PlatformRun]:
        with self.lend(lambda: PlatformRun(self, wanted), "", *wanted) as run:
            run.patience_s = self.implementation.patience_s  # it may have had less
            yield run
            run.no_outcome()

    def exchange(self) -> None:
        """Raise Mismatch unless one result and one error come through as such."""
        with self.used_run() as run:
            run.serve(b"flumqat", b"taquml")
            instance = run.fetched(b"flumqat")
            if run.protocol == "fc":
                instance.answer(404, [("x-fc-status", "404")], b"{}")
            else:
                instance.result(b"{}", "error")
            run.outcome("function-error", instance)
