# test_packages.py: code packages and start commands, good and bad (MIT).
"""Give the emulator folders, ZIPs and programs as people really make them."""

import json
import os
import pathlib
import re
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import zipfile
from typing import Any, Dict, List, Tuple

import emulator
import pytest
from emulator import Outcome, Platform
from harness import PROTOCOLS, background, code, event, scale

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


OTHER = 40 if os.uname().machine.startswith("x86") else 62  # ARM, or x86-64
OWN = struct.unpack_from("=H", pathlib.Path(sys.executable).read_bytes(), 18)[0]


def elf(machine: int, loader: bytes = b"") -> bytes:
    """Return the first bytes of a little-endian program for a processor."""
    return (b"\x7fELF\2\1\1" + bytes(9) + struct.pack("<HHI", 2, machine, 1)
            + struct.pack("<QQQIHHHHHH", 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
            + struct.pack("<IIQQQQQQ", 3, 4, 120, 0, 0, *[len(loader)] * 2, 1) + loader)


PROGRAMS: List[Tuple[str, bytes, int, str]] = [
    ("not-executable", b"#!/bin/sh\n", 0o644, "chmod 755"),
    ("crlf", b"#!/bin/sh\r\necho\r\n", 0o755, "Windows line ends"),
    ("architecture", elf(OTHER), 0o755, "another processor architecture"),
    ("half-a-program", elf(OTHER)[:12], 0o755, "cannot|another|program"),
    ("empty", b"", 0o755, "is empty"),
    ("no-first-line", b"echo hello\n", 0o755, "#!/bin/sh"),
    ("byte-order-mark", b"\xef\xbb\xbf#!/bin/sh\n", 0o755, "byte order mark"),
    ("two-byte-letters", "\ufeff#!/bin/sh\n".encode("utf-16-le"), 0o755, "byte order"),
    ("loader", elf(OWN, b"/lib/ld-none.so.1\0"), 0o755, "linker) /lib/ld-none.so.1"),
    ("loader-breaks-off", elf(OWN, b"/lib/ld")[:70], 0o755, "cannot be started"),
    ("no-interpreter", b"#!/no/such/program\n", 0o755, "interpreter"),
    ("no-interpreter-name", b"#!\n", 0o755, "interpreter"),
    ("interpreter-is-folder", b"#!/tmp\n", 0o755, "interpreter|cannot be started")]


@pytest.mark.parametrize("name,content,mode,words", PROGRAMS,
                         ids=[row[0] for row in PROGRAMS])
def test_any_start_executable__said(name: str, content: bytes, mode: int, words: str,
                                    tmp_path: pathlib.Path) -> None:
    """A bootstrap that cannot run gives start-error; the message says what to do."""
    (tmp_path / "bootstrap").write_bytes(content)
    (tmp_path / "bootstrap").chmod(mode)
    outcome = invoke(str(tmp_path))
    assert outcome.kind == "start-error" and "bootstrap" in outcome.message
    assert any(word in outcome.message for word in words.split("|")), outcome.message
    assert b"not exist" not in outcome.body and b"NotFound" not in outcome.body


def test_fc_start_port__taken(code: str) -> None:
    """An occupied port gives start-error at once, and names the port."""
    with socket.socket() as other:
        other.bind(("0.0.0.0", 0))
        other.listen()
        port = other.getsockname()[1]
        outcome = invoke(code, "fc", port=port)
    assert outcome.kind == "start-error" and outcome.status == 412
    assert str(port) in outcome.message and "--port 0" in outcome.message


def test_fc_start_failed__closed_at_once(code: str, monkeypatch: pytest.MonkeyPatch
                                         ) -> None:
    """After a failed start nothing is under way, so the end waits for nothing."""
    monkeypatch.setattr(emulator, "LAST_WORDS_S", 600)
    pathlib.Path(code, "bootstrap").write_text("#!/bin/sh\nexit 3\n")
    platform = Platform("fc", code, port=0)
    assert platform.invoke(b"x").kind == "start-error"
    closing = background(platform.close)
    closing.join(8)  # it would give up after more than 10 s
    assert not closing.is_alive()


LISTEN = """
import os, socket, sys
with socket.socket(socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET) as one:
    one.bind((sys.argv[1], int(os.environ.get("FC_SERVER_PORT", 0)) * int(sys.argv[2])))
    one.listen()
    print("listens on", one.getsockname()[1], flush=True)
    one.accept()
"""


@pytest.mark.parametrize("host,factor,said", (
    ("::1", "1", r"listens on \[::1\]:PORT only.*Bind 0.0.0.0"),
    ("0.0.0.0", "0", r"listens on 0.0.0.0:PORT, not on port \d+;.*FC_SERVER"),
    ("::1", "0", r"listens on \[::1\]:PORT, not on port \d+;.*0.0.0.0:")))
def test_fc_start_port__elsewhere(host: str, factor: str, said: str, code: str) -> None:
    """Where the server does listen is named."""
    log: List[bytes] = []
    outcome = invoke(code, "fc", start_timeout_s=1, on_log=log.append,
                     command=[sys.executable, "-IS", "-c", LISTEN, host, factor])
    port = b"".join(log).split()[-1].decode()
    assert outcome.kind == "start-error"
    assert re.search(said.replace("PORT", port), outcome.message), outcome.message


SERVER = "#!%s\n%s" % (sys.executable, LISTEN.replace("sys.argv[1]", "'0.0.0.0'"))


@pytest.mark.parametrize("protocol,program,said", (
    ("scf", "#!/bin/sh\n: ${RUNTIME_API_ADDR:?}\n", "RUNTIME_API_ADDR.* fg"),
    ("fg", "#!/bin/sh\n: ${SCF_RUNTIME_API:?}\n", "SCF_RUNTIME_API.* scf"),
    ("fc", "#!/bin/sh\n: ${SCF_RUNTIME_API:?}\n", "SCF_RUNTIME_API.* scf"),
    ("scf", SERVER.replace("int(sys.argv[2])", "1"), "FC_SERVER_PORT.* fc"),
    ("fg", SERVER.replace("int(sys.argv[2])", "1").replace("FC_SERVER_", ""),
     r"server, on 0.0.0.0:\d+: `emulator.py fc CODE --port \d+`")))
def test_any_init_exit__other_protocol(protocol: str, program: str, said: str,
                                       tmp_path: pathlib.Path) -> None:
    """A bootstrap made for another protocol is told so."""
    (tmp_path / "bootstrap").write_text(program)
    (tmp_path / "bootstrap").chmod(0o755)
    limit: Any = {} if protocol == "fc" else {"init_timeout_s": 1}
    outcome = invoke(str(tmp_path), protocol, **limit)
    assert re.search(said, outcome.message), outcome.message


NOEXEC = """mount -t tmpfs -o noexec none "$1" || exit 99
cp -r "$2"/. "$1" && exec "$3" "$4" scf "$1" --event x"""


@pytest.mark.parametrize("zipped", (False, True), ids=("folder", "ZIP"))
def test_any_start_executable__noexec(zipped: bool, code: str,
                                      tmp_path: pathlib.Path) -> None:
    """Where no program can run the mount is named, and chmod is not."""
    place = tmp_path / "place"
    place.mkdir()
    script, env = NOEXEC, dict(os.environ)
    if zipped:
        env["TMPDIR"] = str(place)
        script = script.replace('scf "$1"', "scf " + make_zip(
            tmp_path / "code.zip", bootstrap_entry(code)))
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script, "sh", str(place), code,
                           sys.executable, emulator.__file__], env=env, timeout=30,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    said = done.stderr.decode()
    if done.returncode != 1 and "start-error" not in said:
        pytest.skip("nothing can be mounted here: " + said)
    assert "%s is mounted noexec" % place in said and "chmod" not in said
    assert ("TMPDIR" in said) == zipped


def test_any_package_zip__backslash(tmp_path: pathlib.Path) -> None:
    """Names as Windows writes paths are told, at once and where a file is missed."""
    notes: List[str] = []
    path = make_zip(tmp_path / "code.zip", ("function\\bootstrap", b"", FILE))
    outcome = invoke(path, on_note=notes.append)
    assert "backslash" in notes[0] and "code.zip" in notes[0]
    assert "function\\bootstrap, whose backslash" in outcome.message
