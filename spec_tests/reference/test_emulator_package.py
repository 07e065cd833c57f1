# test_emulator_package.py: code packages and start commands, good and bad (MIT).
"""Give the emulator folders, ZIPs and programs as people really make them."""

import errno
import os
import pathlib
import socket
import stat
import struct
import sys
import tempfile
import zipfile
from typing import Any, Dict, List, Tuple

import emulator
import misbehave
import pytest
from emulator import Outcome, Platform
from harness import within

Entry = Tuple[str, bytes, int]  # name, content, mode with type
FILE, LINK = stat.S_IFREG | 0o644, stat.S_IFLNK | 0o777


def make_zip(path: pathlib.Path, *entries: Entry) -> str:
    """Write a ZIP with these entries; return its path."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content, mode in entries:
            info = zipfile.ZipInfo("x")
            info.filename = name  # as it is: the constructor would cut a NUL
            info.external_attr = mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return str(path)


def bootstrap_entry(tmp_path: pathlib.Path, mode: int = 0o755) -> Entry:
    """Return a working bootstrap as a ZIP entry."""
    code = pathlib.Path(misbehave.place(tmp_path / "source"))
    return "bootstrap", (code / "bootstrap").read_bytes(), stat.S_IFREG | mode


def invoke(code: str, protocol: str = "scf", event: bytes = b"hello",
           **settings: Any) -> Outcome:
    """Return the outcome of one event on a platform of its own."""
    if protocol == "fc":
        settings.setdefault("port", 0)
    with Platform(protocol, code, **settings) as platform:
        return within(20, lambda: platform.invoke(event))


# ---- packages ----


@pytest.mark.parametrize("protocol", ("scf", "fg", "fc"))
def test_any_package_mode(protocol: str, tmp_path: pathlib.Path) -> None:
    """A ZIP keeps its execute bits, and the unpacked folder is gone afterwards."""
    path = make_zip(tmp_path / "code.zip", bootstrap_entry(tmp_path))
    port: Dict[str, Any] = {"port": 0} if protocol == "fc" else {}
    with Platform(protocol, path, **port) as one:
        assert within(20, lambda: one.invoke(b"hello")).body == b"hello"
        assert os.stat(os.path.join(one.folder, "bootstrap")).st_mode & 0o777 == 0o755
    assert not os.path.exists(one.folder)


def test_any_package_mode_missing(tmp_path: pathlib.Path) -> None:
    """A ZIP without the execute bit gives start-error, and says what to do."""
    path = make_zip(tmp_path / "code.zip", bootstrap_entry(tmp_path, 0o644))
    outcome = invoke(path)
    assert outcome.kind == "start-error"
    assert outcome.message.startswith("bootstrap in %s is not executable. Run: "
                                      "chmod 755 bootstrap " % path)


def test_any_package_zip_link_inside(tmp_path: pathlib.Path) -> None:
    """A link that stays in the folder works."""
    _, program, mode = bootstrap_entry(tmp_path)
    path = make_zip(tmp_path / "code.zip", ("bootstrap", b"bin/run", LINK),
                    ("bin/", b"", stat.S_IFDIR | 0o755), ("bin/run", program, mode))
    assert invoke(path).body == b"hello"


HOSTILE: List[Tuple[str, List[Entry]]] = [
    ("parent", [("../out", b"x", FILE)]), ("inner-parent", [("a/../../out", b"x", FILE)]),
    ("absolute", [("/tmp/out", b"x", FILE)]), ("backslash", [("..\\out", b"x", FILE)]),
    ("share", [("\\\\host\\out", b"x", FILE)]), ("drive", [("C:\\out", b"x", FILE)]),
    ("drive-slash", [("c:/out", b"x", FILE)]),
    ("device", [("null", b"", stat.S_IFCHR | 0o666)]),
    ("fifo", [("pipe", b"", stat.S_IFIFO | 0o666)]),
    ("socket", [("sock", b"", stat.S_IFSOCK | 0o666)]),
    ("link-out", [("link", b"../out", LINK)]), ("link-absolute", [("link", b"/etc", LINK)]),
    ("link-chain", [("a", b"b", LINK), ("b", b"..", LINK)]),
    ("through-link", [("link", b"..", LINK), ("link/out", b"x", FILE)]),
    ("through-absolute-link", [("link", b"/tmp", LINK), ("link/out", b"x", FILE)]),
    ("through-link-later", [("a", b"d/b/../..", LINK), ("d/b", b"..", LINK),
                            ("d/x", b"x", FILE), ("a/temporary/out", b"x", LINK)]),
    ("link-out-later", [("a", b"d/b/../..", LINK), ("d/b", b"..", LINK),
                        ("d/x", b"x", FILE)]),
    ("link-nowhere", [("link", b"", LINK)]), ("link-nul", [("link", b"a\0b", LINK)]),
    ("same-name", [("a", b"..", LINK), ("a", b"x", FILE)]), ("no-name", [("", b"x", FILE)])]


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("entries", [case[1] for case in HOSTILE],
                         ids=["any.package.zip-" + case[0] for case in HOSTILE])
def test_any_package_zip(entries: List[Entry], tmp_path: pathlib.Path,
                         monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry that leads out of the folder, or is no file, refuses the package."""
    parent = tmp_path / "temporary"
    parent.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(parent))
    path = make_zip(tmp_path / "code.zip", bootstrap_entry(tmp_path), *entries)
    with pytest.raises(ValueError) as refused:
        Platform("scf", path)
    assert list(parent.iterdir()) == [] and not os.path.exists("/tmp/out")
    assert "the ZIP" in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("limit,value,word", (("ZIP_BYTES", 100000, "unpacks to more"),
                                              ("ZIP_ENTRIES", 3, "entries")))
def test_any_package_zip_bomb(limit: str, value: int, word: str, tmp_path: pathlib.Path,
                              monkeypatch: pytest.MonkeyPatch) -> None:
    """What unpacks to too much is refused while it is being unpacked."""
    monkeypatch.setattr(emulator, limit, value)
    path = make_zip(tmp_path / "code.zip", *(
        ("zeros%d" % number, bytes(40000), FILE) for number in range(4)))
    with pytest.raises(ValueError, match=word):
        Platform("scf", path)


@pytest.mark.parametrize("content", (b"", b"PK", b"hello", b"PK\5\6" + bytes(17)))
def test_any_package_zip__broken(content: bytes, tmp_path: pathlib.Path) -> None:
    """A file that is no ZIP is refused by its name."""
    (tmp_path / "code.zip").write_bytes(content)
    with pytest.raises(ValueError, match="code.zip"):
        Platform("scf", str(tmp_path / "code.zip"))


@pytest.mark.parametrize("method", (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA,
                                    zipfile.ZIP_BZIP2), ids=("deflate", "lzma", "bzip2"))
@pytest.mark.parametrize("mode", (FILE, LINK), ids=("file", "link"))
def test_any_package_zip__garbled(method: int, mode: int, tmp_path: pathlib.Path) -> None:
    """Compressed data that cannot be read refuses the package, whatever the method."""
    path = tmp_path / "code.zip"
    info = zipfile.ZipInfo("a")
    info.external_attr, info.compress_type = mode << 16, method
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, bytes(range(256)) * 9)
    data = bytearray(path.read_bytes())
    data[40:80] = b"\xff" * 40  # behind the entry's head and the method's own
    path.write_bytes(data)
    with pytest.raises(ValueError, match="code.zip"):
        Platform("scf", str(path))


@pytest.mark.parametrize("spoilt", ("checksum", "cut", "encrypted"))
def test_any_package_zip__spoilt(spoilt: str, tmp_path: pathlib.Path) -> None:
    """A ZIP whose content is damaged or locked is refused, and leaves nothing."""
    path = pathlib.Path(make_zip(tmp_path / "code.zip", ("a", b"hello" * 99, FILE)))
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\1\2")
    if spoilt == "checksum":
        data[central + 16] ^= 1
    if spoilt == "encrypted":
        data[central + 8] |= 1
        data[6] |= 1
    path.write_bytes(data[20:] if spoilt == "cut" else data)
    with pytest.raises(ValueError, match="code.zip"):
        Platform("scf", str(path))


def test_package_missing(tmp_path: pathlib.Path) -> None:
    """A path that does not exist is refused by its name."""
    with pytest.raises(ValueError, match="nowhere"):
        Platform("scf", str(tmp_path / "nowhere"))


def test_any_package_zip__no_files(tmp_path: pathlib.Path,
                                   monkeypatch: pytest.MonkeyPatch) -> None:
    """A platform that cannot be made leaves no folder behind."""
    path = make_zip(tmp_path / "code.zip", bootstrap_entry(tmp_path))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))

    def no_files(name: str) -> object:
        assert os.listdir(tmp_path / "temporary")
        raise OSError(errno.EMFILE, "no file is left")

    monkeypatch.setattr("emulator.Loop", no_files)
    with pytest.raises(OSError, match="no file is left"):
        Platform("scf", path)
    assert os.listdir(tmp_path / "temporary") == []


# ---- programs ----


def test_any_start_executable__fifo(tmp_path: pathlib.Path) -> None:
    """A bootstrap that is no file is not opened: a FIFO would block."""
    os.mkfifo(tmp_path / "bootstrap", 0o755)
    outcome = invoke(str(tmp_path))
    assert outcome.kind == "start-error" and "is not there" in outcome.message


OTHER = 40 if os.uname().machine.startswith("x86") else 62  # ARM, or x86-64


def elf(machine: int) -> bytes:
    """Return the first bytes of a little-endian program for a processor."""
    return b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HH", 2, machine) + bytes(44)


PROGRAMS: List[Tuple[str, bytes, int, str]] = [
    ("not-executable", b"#!/bin/sh\n", 0o644, "chmod 755"),
    ("crlf", b"#!/bin/sh\r\necho\r\n", 0o755, "Windows line ends"),
    ("crlf-python", b"#!/usr/bin/env python3\r\n", 0o755, "Windows line ends"),
    ("architecture", elf(OTHER), 0o755, "another processor architecture"),
    ("half-a-program", elf(OTHER)[:12], 0o755, "cannot|another|program"),
    ("empty", b"", 0o755, "is empty"),
    ("no-first-line", b"echo hello\n", 0o755, "#!/bin/sh"),
    ("byte-order-mark", b"\xef\xbb\xbf#!/bin/sh\n", 0o755, "#!/bin/sh|byte order"),
    ("no-interpreter", b"#!/no/such/program\n", 0o755, "interpreter"),
    ("no-interpreter-name", b"#!\n", 0o755, "interpreter"),
    ("interpreter-is-folder", b"#!/tmp\n", 0o755, "interpreter|cannot be started")]


@pytest.mark.parametrize("protocol", ("scf", "fc"))
@pytest.mark.parametrize("content,mode,words", [case[1:] for case in PROGRAMS],
                         ids=["any.start.executable-" + case[0] for case in PROGRAMS])
def test_any_start_executable(protocol: str, content: bytes, mode: int, words: str,
                              tmp_path: pathlib.Path) -> None:
    """A bootstrap that cannot run gives start-error; the message says what to do."""
    (tmp_path / "bootstrap").write_bytes(content)
    (tmp_path / "bootstrap").chmod(mode)
    outcome = invoke(str(tmp_path), protocol)
    assert outcome.kind == "start-error" and "bootstrap" in outcome.message
    assert any(word in outcome.message for word in words.split("|")), outcome.message


@pytest.mark.parametrize("protocol", ("scf", "fg", "fc"))
@pytest.mark.parametrize("where", ("nowhere", "folder", "below", "dead-link"))
def test_any_start_bootstrap(protocol: str, where: str, tmp_path: pathlib.Path) -> None:
    """Without a file `bootstrap` at the top: start-error that says where it belongs."""
    if where == "folder":
        (tmp_path / "bootstrap").mkdir()
    if where == "below":
        misbehave.place(tmp_path / "function")
    if where == "dead-link":
        (tmp_path / "bootstrap").symlink_to("nothing")
    outcome = invoke(str(tmp_path), protocol)
    assert outcome.kind == "start-error" and "top of the folder" in outcome.message


@pytest.mark.parametrize("line", (b"#! /bin/sh\n", b"#!/usr/bin/env sh\n",
                                  b"#!/bin/sh -u\n"))
def test_any_start_bootstrap__exec(line: bytes, tmp_path: pathlib.Path) -> None:
    """A first line with a blank, with env or with an option starts."""
    (tmp_path / "bootstrap").write_bytes(line + b"exit 7\n")
    (tmp_path / "bootstrap").chmod(0o755)
    outcome = invoke(str(tmp_path))
    assert outcome.kind == "init-error" and "status 7" in outcome.message


COMMANDS: List[Tuple[Tuple[str, ...], str]] = [
    (("no-such-command-anywhere",), "no-such-command-anywhere"),
    (("./no-such-file",), "no-such-file"), (("/no/such/file", "x"), "/no/such/file")]


@pytest.mark.parametrize("command,word", COMMANDS, ids=[case[1] for case in COMMANDS])
def test_fc_start_failed__missing(command: Tuple[str, ...], word: str,
                                  tmp_path: pathlib.Path) -> None:
    """A start command that does not exist: CAFileNotFound, named in the message."""
    outcome = invoke(str(tmp_path), "fc", command=command)
    assert outcome.kind == "start-error" and b'"Code":"CAFileNotFound"' in outcome.body
    assert word in outcome.message


def test_fc_start_command__words(tmp_path: pathlib.Path) -> None:
    """The words of the command reach the program without a shell."""
    code = misbehave.place(tmp_path / "code")
    program = tmp_path / "code" / "run.py"
    program.write_text("import os, sys\nopen('words', 'w').write(repr(sys.argv[1:]))\n"
                       "os.execv('./bootstrap', ['./bootstrap'])\n")
    words = ("$HOME", "a b", "", "*", ";", "'")
    outcome = invoke(code, "fc", command=(sys.executable, "run.py") + words)
    assert outcome.body == b"hello"
    assert (tmp_path / "code" / "words").read_text() == repr(list(words))


@pytest.mark.parametrize("protocol", ("scf", "fc"))
def test_start_cwd(protocol: str, tmp_path: pathlib.Path) -> None:
    """The working directory is the code folder, also for a relative CODE."""
    code = misbehave.place(tmp_path / "code")
    relative = os.path.relpath(code)
    assert invoke(relative, protocol, b"cwd").body.decode() == os.path.realpath(code)


# ---- servers ----


def test_fc_start_port_taken(tmp_path: pathlib.Path) -> None:
    """An occupied port gives start-error at once, and names the port."""
    code = misbehave.place(tmp_path / "code")
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = other.getsockname()[1]
        outcome = invoke(code, "fc", port=port)
    assert outcome.kind == "start-error" and outcome.status == 412
    assert str(port) in outcome.message and "--port 0" in outcome.message


def test_fc_start_probe__address(tmp_path: pathlib.Path) -> None:
    """A server on 127.0.0.1 alone does not start, and is told to bind 0.0.0.0."""
    code = misbehave.place(tmp_path / "code", "loopback")
    if emulator.reachable_host() == "127.0.0.1":
        pytest.skip("this host has no 127.0.0.2")
    outcome = invoke(code, "fc", start_timeout_s=0.4)
    assert outcome.kind == "start-error" and "Bind 0.0.0.0" in outcome.message


def test_fc_start_failed__deadline(tmp_path: pathlib.Path) -> None:
    """A server that never listens fails at the deadline, and is told the port."""
    outcome = invoke(misbehave.place(tmp_path / "code", "silent"), "fc",
                     start_timeout_s=0.3)
    assert outcome.kind == "start-error" and "within 0.3 s" in outcome.message
    assert b'"Code":"FunctionNotStarted"' in outcome.body


def test_fc_start_failed__exit(tmp_path: pathlib.Path) -> None:
    """A server that ends before it listens: CAExited, with its status."""
    outcome = invoke(misbehave.place(tmp_path / "code", "exit 9"), "fc")
    assert b'"Code":"CAExited"' in outcome.body
    assert "9" in outcome.message and "bootstrap" in outcome.message


@pytest.mark.parametrize("protocol", ("scf", "fg", "fc"))
@pytest.mark.parametrize("handler", ("nowhere.handler", "index.nothing", "../x.y", "x"))
def test_handler_that_does_not_exist(protocol: str, handler: str,
                                     tmp_path: pathlib.Path) -> None:
    """The reference bootstrap says what is missing, and the start fails at once."""
    source = pathlib.Path(emulator.__file__).with_name(
        protocol + "_bootstrap.py").read_text()
    (tmp_path / "bootstrap").write_text("#!%s\n%s" % (sys.executable, source))
    (tmp_path / "bootstrap").chmod(0o755)
    (tmp_path / "index.py").write_text("def handler(event, context):\n    pass\n")
    logs: List[bytes] = []
    outcome = invoke(str(tmp_path), protocol, handler=handler, on_log=logs.append)
    assert outcome.kind in ("init-error", "start-error"), outcome
    assert handler.split(".")[-1] in b"".join(logs).decode()
