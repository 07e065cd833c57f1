# test_packages.py: code packages and start commands, good and bad (MIT).
"""Give the emulator folders, ZIPs and programs as people really make them."""

import json
import os
import pathlib
import socket
import stat
import struct
import sys
import tempfile
import zipfile
from typing import Any, List, Tuple

import pytest
import scripted_bootstrap
from emulator import Outcome, Platform
from harness import PROTOCOLS, code, event, scale, within

__all__ = ["code"]

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


def bootstrap_entry(code: str, mode: int = 0o755) -> Entry:
    """Return a working bootstrap as a ZIP entry."""
    content = pathlib.Path(code, "bootstrap").read_bytes()
    return "bootstrap", content, stat.S_IFREG | mode


def invoke(code: str, protocol: str = "scf", body: bytes = b"hello",
           **settings: Any) -> Outcome:
    """Return the outcome of one event on a platform of its own."""
    if protocol == "fc":
        settings.setdefault("port", 0)
    with Platform(protocol, code, **settings) as platform:
        return within(20, lambda: platform.invoke(body))


# ---- packages ----


@PROTOCOLS
def test_any_package_mode__kept(protocol: str, code: str,
                                tmp_path: pathlib.Path) -> None:
    """A ZIP keeps its execute bits, and the unpacked folder is gone afterwards."""
    path = make_zip(tmp_path / "code.zip", ("data/", b"", stat.S_IFDIR | 0o755),
                    bootstrap_entry(code), ("data/file", b"x", FILE))
    settings: Any = {"port": 0} if protocol == "fc" else {}
    with Platform(protocol, path, **settings) as one:
        outcome = within(20, lambda: one.invoke(event(["argv"])))
        program = pathlib.Path(json.loads(outcome.body)[0])
        assert program.stat().st_mode & 0o777 == 0o755
        assert (program.parent / "data" / "file").read_bytes() == b"x"
    assert not program.parent.exists()


def test_any_package_mode__missing(code: str, tmp_path: pathlib.Path) -> None:
    """A ZIP without the execute bit gives start-error, and says what to do."""
    path = make_zip(tmp_path / "code.zip", bootstrap_entry(code, 0o644))
    outcome = invoke(path)
    assert outcome.kind == "start-error"
    assert "not executable" in outcome.message
    assert "chmod 755 bootstrap" in outcome.message


HOSTILE: List[Tuple[str, List[Entry]]] = [
    ("parent", [("../out", b"x", FILE)]), ("inner", [("a/../../out", b"x", FILE)]),
    ("absolute", [("/tmp/out", b"x", FILE)]), ("backslash", [("..\\out", b"x", FILE)]),
    ("share", [("\\\\host\\out", b"x", FILE)]), ("drive", [("C:\\out", b"x", FILE)]),
    ("drive-slash", [("c:/out", b"x", FILE)]), ("no-name", [("", b"x", FILE)]),
    ("device", [("null", b"", stat.S_IFCHR | 0o666)]),
    ("fifo", [("pipe", b"", stat.S_IFIFO | 0o666)]),
    ("socket", [("sock", b"", stat.S_IFSOCK | 0o666)]),
    ("link-out", [("link", b"../out", LINK)]), ("link-root", [("link", b"/", LINK)]),
    ("link-inside", [("link", b"bootstrap", LINK)]),
    ("through-link", [("link", b"..", LINK), ("link/out", b"x", FILE)]),
    ("file-as-folder", [("a", b"x", FILE), ("a/b", b"x", FILE)])]


@pytest.mark.parametrize("entries", [case[1] for case in HOSTILE],
                         ids=[case[0] for case in HOSTILE])
def test_any_package_zip__hostile(entries: List[Entry], code: str,
                                  tmp_path: pathlib.Path,
                                  monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry that leads out of the folder, or is no file, refuses the package."""
    parent = tmp_path / "temporary"
    parent.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(parent))
    path = make_zip(tmp_path / "code.zip", bootstrap_entry(code), *entries)
    with pytest.raises(ValueError) as refused:
        Platform("scf", path)
    assert list(parent.iterdir()) == [] and not os.path.exists("/tmp/out")
    assert "code.zip" in str(refused.value) or "the ZIP" in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("limit,value,word", (("ZIP_BYTES", 100000, "unpacks to more"),
                                              ("ZIP_ENTRIES", 3, "entries")))
def test_any_package_zip__bomb(limit: str, value: int, word: str,
                               tmp_path: pathlib.Path,
                               monkeypatch: pytest.MonkeyPatch) -> None:
    """What unpacks to too much is refused while it is being unpacked."""
    scale(monkeypatch, **{limit: value})
    path = make_zip(tmp_path / "code.zip", *(
        ("zeros%d" % number, bytes(40000), FILE) for number in range(4)))
    with pytest.raises(ValueError, match=word):
        Platform("scf", path)


@pytest.mark.parametrize("method", (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA,
                                    zipfile.ZIP_BZIP2),
                         ids=("deflate", "lzma", "bzip2"))
def test_any_package_zip__garbled(method: int, tmp_path: pathlib.Path) -> None:
    """Compressed data that cannot be read refuses the package, whatever the method."""
    path = tmp_path / "code.zip"
    info = zipfile.ZipInfo("a")
    info.external_attr, info.compress_type = FILE << 16, method
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(info, bytes(range(256)) * 9)
    data = bytearray(path.read_bytes())
    data[40:80] = b"\xff" * 40  # behind the entry's head and the method's own
    path.write_bytes(data)
    with pytest.raises(ValueError, match="code.zip"):
        Platform("scf", str(path))


SPOILT = ("checksum", "cut", "encrypted", "empty", "no zip", "end alone", "missing")


@pytest.mark.parametrize("spoilt", SPOILT)
def test_any_package_zip__spoilt(spoilt: str, tmp_path: pathlib.Path) -> None:
    """What is damaged, locked, no ZIP or not there is refused by its name."""
    path = pathlib.Path(make_zip(tmp_path / "code.zip", ("a", b"hello" * 99, FILE)))
    data = bytearray(path.read_bytes())
    central = data.index(b"PK\1\2")
    if spoilt == "checksum":
        data[central + 16] ^= 1
    if spoilt == "encrypted":
        data[central + 8] |= 1
        data[6] |= 1
    path.write_bytes({"cut": bytes(data[20:]), "empty": b"", "no zip": b"hello",
                      "end alone": b"PK\5\6" + bytes(17)}.get(spoilt, bytes(data)))
    if spoilt == "missing":
        path.unlink()
    with pytest.raises(ValueError, match="code.zip"):
        Platform("scf", str(path))


# ---- programs ----

OTHER = 40 if os.uname().machine.startswith("x86") else 62  # ARM, or x86-64


def elf(machine: int) -> bytes:
    """Return the first bytes of a little-endian program for a processor."""
    return b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HH", 2, machine) + bytes(44)


PROGRAMS: List[Tuple[str, bytes, int, str]] = [
    ("not-executable", b"#!/bin/sh\n", 0o644, "chmod 755"),
    ("crlf", b"#!/bin/sh\r\necho\r\n", 0o755, "Windows line ends"),
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
                         ids=[case[0] for case in PROGRAMS])
def test_any_start_executable__said(protocol: str, content: bytes, mode: int,
                                    words: str, tmp_path: pathlib.Path) -> None:
    """A bootstrap that cannot run gives start-error; the message says what to do."""
    (tmp_path / "bootstrap").write_bytes(content)
    (tmp_path / "bootstrap").chmod(mode)
    outcome = invoke(str(tmp_path), protocol)
    assert outcome.kind == "start-error" and "bootstrap" in outcome.message
    assert any(word in outcome.message for word in words.split("|")), outcome.message


def test_fg_start_shell(tmp_path: pathlib.Path) -> None:
    """fg runs a script without #! by /bin/sh, and says so; others do not run it."""
    scripted_bootstrap.place(tmp_path)
    (tmp_path / "bootstrap").rename(tmp_path / "program")
    (tmp_path / "bootstrap").write_text('cd "$RUNTIME_CODE_ROOT"\nexec ./program\n')
    (tmp_path / "bootstrap").chmod(0o755)
    notes: List[str] = []
    with Platform("fg", str(tmp_path), on_note=notes.append) as platform:
        assert platform.invoke(b"hello").kind == "ok"
    assert ["/bin/sh runs it" in note for note in notes] == [True]


@pytest.mark.parametrize("where", ("nowhere", "folder", "below", "dead-link", "fifo"))
def test_any_start_bootstrap__place(where: str, tmp_path: pathlib.Path) -> None:
    """Without a file `bootstrap` at the top: start-error that says where it belongs."""
    program = tmp_path / "bootstrap"
    if where == "folder":
        program.mkdir()
    if where == "below":
        scripted_bootstrap.place(tmp_path / "function")
    if where == "dead-link":
        program.symlink_to("nothing")
    if where == "fifo":
        os.mkfifo(program, 0o755)  # to open it would block
    outcome = invoke(str(tmp_path))
    assert outcome.kind == "start-error" and "top of the folder" in outcome.message


@pytest.mark.parametrize("line", (b"#! /bin/sh\n", b"#!/usr/bin/env sh\n",
                                  b"#!/bin/sh -u\n"))
def test_any_start_bootstrap__exec(line: bytes, tmp_path: pathlib.Path) -> None:
    """A first line with a blank, with env or with an option starts."""
    (tmp_path / "bootstrap").write_bytes(line + b"exit 7\n")
    (tmp_path / "bootstrap").chmod(0o755)
    outcome = invoke(str(tmp_path))
    assert outcome.kind == "init-error" and "status 7" in outcome.message


def test_fc_start_command__no_shell(code: str) -> None:
    """The words of the command reach the program without a shell."""
    words = ["$HOME", "a b", "", "*", ";", "'"]
    outcome = invoke(os.path.relpath(code), "fc", event(["argv"]),
                     command=[sys.executable, "bootstrap", *words])
    assert json.loads(outcome.body) == ["bootstrap", *words]


def test_fc_start_port__taken(code: str) -> None:
    """An occupied port gives start-error at once, and names the port."""
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = other.getsockname()[1]
        outcome = invoke(code, "fc", port=port)
    assert outcome.kind == "start-error" and outcome.status == 412
    assert str(port) in outcome.message and "--port 0" in outcome.message


@pytest.mark.parametrize("plan,code_word,message", (
    ({"host": "127.0.0.1"}, "FunctionNotStarted", "Bind 0.0.0.0"),
    ({"start": [["hang"]]}, "FunctionNotStarted", "within 0.4 s"),
    ({"start": [["exit", 9]]}, "CAExited", "status 9")),
    ids=("loopback", "deadline", "exit"))
def test_fc_start_failed__said(plan: Any, code_word: str, message: str,
                               code: str) -> None:
    """A server that does not start is told why."""
    scripted_bootstrap.place(pathlib.Path(code), plan)
    outcome = invoke(code, "fc", start_timeout_s=0.4)
    assert outcome.kind == "start-error" and message in outcome.message
    assert ('"Code":"%s"' % code_word).encode() in outcome.body
