# test_packages.py: code packages and start commands, good and bad (MIT).
"""Give the emulator folders, ZIPs and programs as people really make them."""

import json
import os
import pathlib
import socket
import stat
import struct
import tempfile
import zipfile
from typing import Any, Dict, List, Tuple

import pytest
import scripted_bootstrap
from emulator import Outcome, Platform
from harness import PROTOCOLS, code, event, scale

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


def bootstrap_entry(code: str) -> Entry:
    """Return a working bootstrap as a ZIP entry."""
    return "bootstrap", pathlib.Path(code, "bootstrap").read_bytes(), FILE | 0o111


def invoke(code: str, protocol: str = "scf", body: bytes = b"hello",
           **settings: Any) -> Outcome:
    """Return the outcome of one event on a platform of its own."""
    if protocol == "fc":
        settings.setdefault("port", 0)
    with Platform(protocol, code, **settings) as platform:
        return platform.invoke(body)


@PROTOCOLS
def test_any_package_mode__kept(protocol: str, code: str,
                                tmp_path: pathlib.Path) -> None:
    """A ZIP keeps its execute bits, and the unpacked folder is gone afterwards."""
    path = make_zip(tmp_path / "code.zip", ("data/", b"", stat.S_IFDIR | 0o755),
                    bootstrap_entry(code), ("data/file", b"x", FILE))
    settings: Any = {"port": 0} if protocol == "fc" else {}
    with Platform(protocol, path, **settings) as one:
        outcome = one.invoke(event(["argv"]))
        program = pathlib.Path(json.loads(outcome.body)[0])
        assert program.stat().st_mode & 0o777 == 0o755
        assert (program.parent / "data" / "file").read_bytes() == b"x"
    assert not program.parent.exists()


HOSTILE: Dict[str, List[Entry]] = {
    **{name: [(name, b"x", FILE)] for name in (
        "../out", "a/../../out", "/tmp/out", "..\\out", "\\\\host\\out", "C:\\out",
        "")},
    "device": [("null", b"", stat.S_IFCHR | 0o666)],
    "fifo": [("pipe", b"", stat.S_IFIFO | 0o666)],
    "link-inside": [("link", b"bootstrap", LINK)],
    "through-link": [("link", b"..", LINK), ("link/out", b"x", FILE)],
    "file-as-folder": [("a", b"x", FILE), ("a/b", b"x", FILE)]}


@pytest.mark.parametrize("entries", HOSTILE.values(), ids=list(HOSTILE))
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


def test_any_package_zip__bomb(tmp_path: pathlib.Path,
                               monkeypatch: pytest.MonkeyPatch) -> None:
    """What unpacks to too much is refused while it is being unpacked."""
    scale(monkeypatch, ZIP_BYTES=100000)
    path = make_zip(tmp_path / "code.zip", *(
        ("zeros%d" % number, bytes(40000), FILE) for number in range(4)))
    with pytest.raises(ValueError, match="unpacks to more"):
        Platform("scf", path)


@pytest.mark.parametrize("spoilt", ("checksum", "cut", "encrypted", "empty", "missing"))
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
    path.write_bytes({"cut": bytes(data[20:]), "empty": b""}.get(spoilt, bytes(data)))
    if spoilt == "missing":
        path.unlink()
    with pytest.raises(ValueError, match="code.zip"):
        Platform("scf", str(path))


ELF = b"\x7fELF\2\1\1"
OTHER = 40 if os.uname().machine.startswith("x86") else 62  # ARM, or x86-64


PROGRAMS: Dict[str, Tuple[bytes, int, str]] = {
    "not-executable": (b"#!/bin/sh\n", 0o644, "chmod 755"),
    "crlf": (b"#!/bin/sh\r\necho\r\n", 0o755, "Windows line ends"),
    "architecture": (ELF + bytes(9) + struct.pack("<HH", 2, OTHER) + bytes(44), 0o755,
                     "another processor architecture"),
    "no-first-line": (b"echo hello\n", 0o755, "#!/bin/sh"),
    "empty": (b"", 0o755, "is empty"),
    "byte-order-mark": (b"\xef\xbb\xbf#!/bin/sh\n", 0o755, "#!/bin/sh|byte order"),
    "no-interpreter": (b"#!/no/such/program\n", 0o755, "interpreter")}


@pytest.mark.parametrize("protocol", ("scf", "fc"))
@pytest.mark.parametrize("content,mode,words", PROGRAMS.values(), ids=list(PROGRAMS))
def test_any_start_executable__said(protocol: str, content: bytes, mode: int,
                                    words: str, tmp_path: pathlib.Path) -> None:
    """A bootstrap that cannot run gives start-error; the message says what to do."""
    (tmp_path / "bootstrap").write_bytes(content)
    (tmp_path / "bootstrap").chmod(mode)
    outcome = invoke(str(tmp_path), protocol)
    assert outcome.kind == "start-error" and "bootstrap" in outcome.message
    assert any(word in outcome.message for word in words.split("|")), outcome.message


def test_fc_start_port__taken(code: str) -> None:
    """An occupied port gives start-error at once, and names the port."""
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = other.getsockname()[1]
        outcome = invoke(code, "fc", port=port)
    assert outcome.kind == "start-error" and outcome.status == 412
    assert str(port) in outcome.message and "--port 0" in outcome.message


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
