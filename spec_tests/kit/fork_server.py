# fork_server.py: starts a program of ours many times for the price of one import (MIT).
"""Be `subprocess.Popen`, but copy a process that has imported the program already.

Four fifths of the time that a platform of ours takes to start go into importing
`http.server`, and the kit starts some hundred. For the programs that are offered here,
one process each imports it and then forks for every start: the copy gets words,
environment, folder and streams, and is in every other way a process like the original.
What is not offered, a stranger's command above all, is started as usual.
"""

import atexit
import gc
import importlib
import marshal
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from typing import IO, Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

Words = Tuple[str, ...]
NUMBER_BYTES = 4
OFFERED: "Dict[Words, Server]" = {}  # by the first words of a command
LOCK = threading.Lock()


# ---- in the kit ----


class Server:
    """The process that copies itself, as soon as somebody needs it."""

    def __init__(self, words: Words) -> None:
        self.words = words
        self.control: Optional[socket.socket] = None

    def ask(self, streams: Sequence[int]) -> socket.socket:
        """Have it copied; return the line to the copy."""
        with LOCK:
            if self.control is None:
                self.control, there = socket.socketpair()
                with there:
                    subprocess.Popen(self.words, stdin=there.fileno(),
                                     start_new_session=True)
            here, there = socket.socketpair()
            with there:
                socket.send_fds(self.control, [b"!"], [there.fileno(), *streams])
        return here


class Copy(subprocess.Popen[bytes]):
    """A process that was started by a server, for those who expect a Popen."""

    def __init__(self, server: Server, words: Sequence[str], cwd: str,
                 env: Mapping[str, str], stdin: Any, stdout: Any, stderr: Any) -> None:
        self.args, self.returncode = words, None
        theirs, self.stdin = end_of(stdin, os.O_WRONLY)
        its, self.stdout = end_of(stdout, os.O_RDONLY)
        errors, self.stderr = (os.dup(its), None) if stderr == subprocess.STDOUT else (
            end_of(stderr, os.O_RDONLY))
        self.line = server.ask((theirs, its, errors))
        for made, stream in ((theirs, stdin), (its, stdout), (errors, stderr)):
            if isinstance(stream, int):
                os.close(made)
        self.line.sendall(marshal.dumps((list(words), cwd, dict(env))))
        self.pid = self.number()

    def number(self) -> int:
        """Return the next number that the server tells: process id, then status."""
        data = self.line.recv(NUMBER_BYTES)
        return int.from_bytes(data, "big", signed=True) if data else -signal.SIGKILL

    def poll(self) -> Optional[int]:
        """Return the exit status, negative for a signal, or None while it runs."""
        return self.look(0)

    def wait(self, timeout: Optional[float] = None) -> int:
        """Return the exit status. Raises subprocess.TimeoutExpired."""
        status = self.look(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        return status

    def look(self, limit_s: Optional[float]) -> Optional[int]:
        """Return the exit status as soon as there is one, or None after that time."""
        looking = select.poll()  # select() knows no descriptor above 1023
        looking.register(self.line, select.POLLIN)
        limit_ms = None if limit_s is None else 1000 * limit_s
        if self.returncode is None and looking.poll(limit_ms):
            with LOCK:  # several threads may ask
                if self.returncode is None:
                    self.returncode = self.number()
        return self.returncode


def end_of(stream: Any, mode: int) -> Tuple[int, Optional[IO[bytes]]]:
    """Return the descriptor that the process gets, and our end of a pipe."""
    if stream == subprocess.DEVNULL:
        return os.open(os.devnull, os.O_RDWR), None
    if stream != subprocess.PIPE:
        return stream.fileno(), None
    reads, writes = os.pipe()
    if mode == os.O_WRONLY:
        return reads, open(writes, "wb")
    return writes, open(reads, "rb")


def offer(words: Words, folder: str, module: str) -> Words:
    """Start commands that begin with these words from copies of a process that has
    imported the module; return the words."""
    if words not in OFFERED:
        OFFERED[words] = Server((*words[:words.index("-c")], __file__, folder, module))
    return words


def start(command: Sequence[str], **settings: Any) -> "subprocess.Popen[bytes]":
    """Start a command in a session of its own. Raises OSError."""
    for words, server in list(OFFERED.items()):
        if tuple(command[:len(words)]) == words:
            return Copy(server, command[len(words):], **settings)
    return subprocess.Popen(command, start_new_session=True, **settings)


# ---- in the server ----


def serve(folder: str, module: str) -> None:
    """Import the module; be copied, and tell what becomes of the copies, until the
    kit has ended. A copy runs main()."""
    sys.path.insert(0, folder)
    program = importlib.import_module(module)
    gc.freeze()  # what is there stays to the end: no copy need look through it
    control = socket.socket(fileno=os.dup(0))
    ends, has_ended = os.pipe()
    os.set_blocking(has_ended, False)
    signal.set_wakeup_fd(has_ended)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    lines: Dict[int, int] = {}
    while True:
        ready = select.select([control.fileno(), ends], [], [])[0]
        if ends in ready:
            os.read(ends, 4096)
            tell_ends(lines)
        if control.fileno() in ready:
            word, given, _, _ = socket.recv_fds(control, 1, 4)
            if not word:
                return
            process_id = os.fork()
            if process_id == 0:
                signal.set_wakeup_fd(-1)
                become(given, [control.detach(), ends, has_ended, *lines.values()])
                leave(program.main)
            for descriptor in given[1:]:
                os.close(descriptor)
            lines[process_id] = given[0]
            tell(given[0], process_id)


def become(given: List[int], others: Sequence[int]) -> None:
    """Be the process that the line, the first of what is given, describes."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    for descriptor in others:
        os.close(descriptor)
    with open(given[0], "rb") as line:
        words, cwd, env = marshal.load(line)
    for number, descriptor in enumerate(given[1:]):
        os.dup2(descriptor, number)
        os.close(descriptor)
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    sys.argv[:] = ["-c", *words]


def leave(main: Callable[[], Optional[int]]) -> None:
    """Do what `sys.exit(main())` does, but give no memory back: that goes anyway, and to
    touch all of it costs as much as whatever else the copy does."""
    try:
        status = main()
    except SystemExit as error:
        if not isinstance(error.code, int):
            raise
        status = error.code
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)


def tell(line: int, number: int) -> None:
    """Tell the kit a number, if it still listens."""
    try:
        os.write(line, number.to_bytes(NUMBER_BYTES, "big", signed=True))
    except OSError:
        pass


def tell_ends(lines: Dict[int, int]) -> None:
    """Tell the exit status of each copy that has ended."""
    while lines:
        process_id, status = os.waitpid(-1, os.WNOHANG)
        if process_id == 0:
            return
        line = lines.pop(process_id)
        tell(line, os.waitstatus_to_exitcode(status))
        os.close(line)


if __name__ == "__main__":
    sys.path.pop(0)  # the kit is not a part of the program
    serve(*sys.argv[1:])
