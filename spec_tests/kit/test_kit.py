# test_kit.py: whatever is put under test, the kit gives a verdict (MIT).
"""Commands that cannot work, names that nobody knows, and the report."""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys
import time
import types
from typing import Any, Dict, List, Tuple

import pytest

import broken_ones
import checks
import conftest
import kit
import report
import spec
import test_bootstrap_any
import test_platform_any
import wire

ROOT = pathlib.Path(__file__).resolve().parents[2]
PATIENCE_S = 0.4
BOUND_S = 20.0  # far more than any of these needs, far less than for ever

GARBAGE = """
import os, socket, sys
port = os.environ.get("SCF_RUNTIME_API_PORT") or \
    os.environ.get("RUNTIME_API_ADDR", ":0").split(":")[1]
for word in (b"\\0\\xff", b"HELO\\r\\n\\r\\n", b"GET / HTTP/9\\r\\n\\r\\n"):
    socket.create_connection(("127.0.0.1", int(port))).sendall(word)
"""
COMMANDS: Dict[str, List[str]] = {
    "missing": ["/nonexistent/bootstrap"], "folder": ["/"], "ends": ["true"],
    "fails": ["false"], "silent": ["sleep", "60"], "prints": ["yes"],
    "garbage": [sys.executable, "-c", GARBAGE],
}


BAD = {"bootstrap": checks.Check(
           "any.error.survive", "bootstrap", test_bootstrap_any.test_any_error_survive,
           {}, "bad"),
       "platform": checks.Check(
           "any.result.bytes", "platform", test_platform_any.test_any_result_bytes,
           {"body": b""}, "bad")}


@pytest.mark.parametrize("protocol", kit.PROTOCOLS)
@pytest.mark.parametrize("name", sorted(COMMANDS))
@pytest.mark.parametrize("role", sorted(BAD))
def test_bad(role: str, name: str, protocol: str) -> None:
    """What cannot be a bootstrap or a platform fails, in bounded time, and is no error."""
    began = time.monotonic()
    verdict = checks.judge(BAD[role], kit.Implementation(
        name, protocol, tuple(COMMANDS[name]), "/", (), (), PATIENCE_S))
    assert verdict.verdict == "fail" and verdict.seen
    assert time.monotonic() - began < BOUND_S


def test_kit_fault() -> None:
    """A fault of the kit itself is the verdict error, with its traceback."""
    def faulty(**_: object) -> None:
        raise ZeroDivisionError

    base = broken_ones.correct("scf")
    check = checks.Check("any.error.survive", "puller", faulty, {}, "faulty")
    verdict = checks.judge(check, base)
    assert verdict.verdict == "error" and "ZeroDivisionError" in verdict.seen


def test_gone_meanwhile() -> None:
    """A bootstrap that dies between two connections fails; it is no error."""
    def faulty(pusher: kit.Bootstrap) -> None:
        with pusher.used_push() as run:
            run.process.popen.kill()
            run.process.wait(10)
            run.connect()

    check = checks.Check("fc.start.silent-connection", "pusher", faulty, {}, "dies")
    verdict = checks.judge(check, broken_ones.correct("fc"))
    assert verdict.verdict == "fail" and "refused" in verdict.seen
    assert report.plain(verdict).startswith("[fc.start.silent-connection] SPEC.md:")


def test_unsupported() -> None:
    """A feature that was declared missing is unsupported, not failed."""
    base = dataclasses.replace(broken_ones.correct("scf"), without=("count",))
    function = test_bootstrap_any.test_any_instance_init_once__count
    check = checks.Check("any.instance.init-once", "bootstrap", function, {}, "count")
    assert checks.judge(check, base).verdict == "unsupported"


@pytest.mark.parametrize("name,gap", [("ClosesConnections", "keep-alive"),
                                      ("RefusesHooks", "hooks"), ("KnowsNoHttp", "http")])
def test_declared_gap(name: str, gap: str) -> None:
    """What was declared missing makes no other check fail, transcripts included."""
    bootstrap = dataclasses.replace(
        broken_ones.start(name, "bootstrap", "fc"), without=(gap,))
    checks.trust(bootstrap)
    of_fc = [one for one in checks.all_checks(spec.load()) if one.name.startswith(
        ("test_fc_bootstrap", "test_fc_hook", "test_fc_http", "test_fc_connection",
         "test_fc_invoke_kind"))
        and checks.FIXTURES[one.fixture][0] == "bootstrap"]
    verdicts = [checks.judge(check, bootstrap) for check in of_fc]
    checks.release(bootstrap)
    found = {(one.verdict, one.seen) for one in verdicts}
    assert found == {("pass", ""), ("unsupported", gap)}, found


COPYING = f"""
import sys
sys.path.insert(0, {str(ROOT / "spec_tests" / "kit")!r})
import file_processes
from file_processes import note as pytest_runtest_logreport
MADE = []
def pytest_collection_finish(session):
    MADE.append(file_processes.FileProcesses(session.config, session.items))
def pytest_runtest_protocol(item):
    return True if MADE and MADE[0].show(item) else None
def pytest_sessionfinish():
    MADE[0].stop()
"""


@pytest.mark.parametrize("text,seen", [
    ("import pytest\ndef test_good(): pass\ndef test_bad(): assert [1] == [2]\n"
     "@pytest.mark.skip(reason='just so')\ndef test_left(): pass\n",
     r"\.Fs(?s:.*)At index 0 diff: 1 != 2(?s:.*)1 failed, 1 passed, 1 skipped"),
    ("import os\ndef test_last(): os._exit(3)\n", r"terminated abruptly(?s:.*)1 failed"),
], ids=["verdicts", "death"])
def test_file_process(tmp_path: pathlib.Path, text: str, seen: str) -> None:
    """What the process of a file says of a test counts; if it says nothing, that test
    has failed."""
    (tmp_path / "conftest.py").write_text(COPYING)
    (tmp_path / "test_it.py").write_text(text)
    done = subprocess.run([sys.executable, "-m", "pytest", "-q", str(tmp_path)],
                          stdout=subprocess.PIPE, text=True, timeout=60)
    assert re.search(seen, done.stdout), done.stdout


def test_contract_options() -> None:
    """README.md names every option that the kit passes to a platform."""
    places = [*(ROOT / "spec_tests" / "platform").glob("*.py"),
              *(ROOT / "spec_tests" / "kit" / name for name in (
                  "platform_run.py", "calls.py", "faults.py"))]
    passed = {word for path in places for word in re.findall(
        r'"(--[a-z-]+)"', path.read_text(encoding="utf-8"))}
    for transcript in spec.load().transcripts:
        passed.update(re.findall(r"--[a-z-]+", transcript.options))
    contract = (ROOT / "spec_tests" / "README.md").read_text(encoding="utf-8")
    assert passed - set(re.findall(r"--[a-z-]+", contract)) == set()


REFUSED: Dict[str, Tuple[Dict[str, Any], str]] = {
    "protocol": ({"--protocol": "gopher"}, "known: fc, scf, fg"),
    "feature": ({"--without": ["beauty"]}, "known: binary"),
    "rule": ({"--rule": ["scf.next.nothing-such"]}, "scf.next.blocks"),
    "no-protocol": ({"--bootstrap": "true"}, "--bootstrap needs --protocol"),
    "empty": ({"--protocol": "fg", "--bootstrap": ""}, "the command is empty"),
    "code": ({"--protocol": "fg", "--bootstrap": "true", "--code": "/no/such/folder"},
             "/no/such/folder: no such folder"),
    "hold": ({"--hold": -1.0}, "--hold must be more than 0, not -1"),
    "patience": ({"--patience": 0.0}, "--patience must be more than 0, not 0"),
    "report": ({"--report": __file__}, "--report %s: File exists" % __file__),
}


def pytest_run(*options: str) -> "subprocess.CompletedProcess[str]":
    """Run one file of the kit in a process of its own."""
    return subprocess.run([sys.executable, "-m", "pytest",
                           "spec_tests/bootstrap/test_bootstrap_scf.py", *options],
                          cwd=ROOT, text=True, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT, timeout=120)


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused(name: str, pytestconfig: pytest.Config) -> None:
    """A name that nobody knows is refused with the list of known ones."""
    options, text = REFUSED[name]
    options = {"--protocol": None, **options}  # whatever this run is about
    config: Any = types.SimpleNamespace(getoption=lambda option: options.get(
        option, pytestconfig.getoption(option)))
    with pytest.raises(ValueError, match=re.escape(text)):
        conftest.Session(config)


def test_refused__shown() -> None:
    """It is a usage error of pytest, without a traceback."""
    done = pytest_run("--protocol", "gopher", "--collect-only")
    assert done.returncode == 4 and "known: fc, scf, fg" in done.stdout
    assert "Traceback" not in done.stdout


UNCHECKED = {
    "any.result.bytes": "it binds the platform",
    "fg.response.id": "it is one of fg",
    "any.poll.pause": "it is a SHOULD, see --strict",
}


def test_report(tmp_path: pathlib.Path) -> None:
    """--report writes both files, with the wire behind a failure; and of a rule that was
    asked for and has no check here, the reason is told."""
    rules = [word for rule in UNCHECKED for word in ("--rule", rule)]
    done = pytest_run("-p", "no:cacheprovider", "--protocol", "scf",
                      "--bootstrap", "/nonexistent/x", *rules,
                      "--rule", "scf.ready.before-next", "--report", str(tmp_path))
    for rule, reason in UNCHECKED.items():
        assert f"{rule} is not checked here: {reason}" in done.stdout, done.stdout
    assert done.returncode == 1 and "[any rule]" in done.stdout
    data = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert data["counts"]["fail"] == len(data["verdicts"]) > 0
    assert "scf.ready.before-next" in page and "No such file" in page
    assert "http://" not in page and "https://" not in page


def test_not_usable(tmp_path: pathlib.Path) -> None:
    """What cannot be tried at all is said once; the report has it for each rule."""
    done = pytest_run("-p", "no:cacheprovider", "--protocol", "scf", "--bootstrap",
                      "/nonexistent/x", "--report", str(tmp_path))
    assert re.search(r"(?m)^[= ]*1 failed, ", done.stdout), done.stdout
    assert "any.start.executable" in done.stdout
    verdicts = json.loads((tmp_path / "report.json").read_text())["verdicts"]
    assert len(verdicts) > 5
    assert {one["verdict"] for one in verdicts} == {"fail"}
    assert not any(one["tried"] for one in verdicts)


def test_not_judged(pytestconfig: pytest.Config) -> None:
    """Of what binds a stranger's platform the rules without a check are named, with the
    reason; none of another protocol or role."""
    options: Dict[str, Any] = {"--protocol": "fc", "--platform": "true",
                               "--bootstrap": None, "--rule": [], "strict": True}
    config: Any = types.SimpleNamespace(getoption=lambda option: options.get(
        option, pytestconfig.getoption(option)))
    session = conftest.Session(config)
    session.checked = {"any.start.bootstrap"}
    missed = conftest.not_judged(session)
    assert {"any.caller.gone", "fc.upgrade.pass", "any.security.secrets"} <= set(missed)
    assert not {"any.start.bootstrap", "any.poll.dead", "scf.env.api",
                "fc.start.port"} & set(missed)
    assert all(missed.values())


def test_report_is_short() -> None:
    """A failure says the rule's sentence, and cuts what is long, wherever it is shown."""
    long = "x" * 6_000_000
    verdict = report.Verdict("any.event.bytes", 7, long, "platform", "scf", "it", "fail",
                             long, long, (wire.Frame("kit", long),) * 20, text="The rule.")
    assert len(report.plain(verdict)) < 10_000
    assert "SPEC.md:7" in report.plain(verdict) and "The rule." in report.plain(verdict)
    page = report.page(spec.load(), [verdict], report.Judged("it", "now", 2.0))
    assert len(page) < 20_000 and "The rule." in page
    assert "bootstrap</h2>" not in page and "any.poll.dead" not in page


def test_report_escapes() -> None:
    """What a peer sends cannot become markup of the report."""
    evil = "<script>alert(1)</script>"
    verdict = report.Verdict("any.event.bytes", 1, evil, "platform", "scf", "it",
                             "fail", evil, evil, (wire.Frame(evil, evil),))
    page = report.page(spec.parse(""), [verdict], report.Judged(evil, evil), evil)
    assert evil not in page and "&lt;script&gt;" in page
