# conftest.py: how pytest runs the conformance kit (MIT).
"""Choose what is under test, run its checks side by side, print and report verdicts.

A check is an ordinary test function whose name is a rule id with underscores and whose
argument `bootstrap`, `puller` or `platform` is the thing under test. All selected
checks start in a small pool of threads when collection ends; pytest then walks through
them in order and waits for each one. In a run of everything the files of plain tests run
beside them, in copies of this process (file_processes.py).
"""

import concurrent.futures
import gc
import os
import pathlib
import shutil
import signal
import sys
import tempfile
import time
from typing import Any, Dict, Iterator, List, Optional, Set, Tuple

import pytest

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
# A script that says `env python3` gets the interpreter that runs the tests.
os.environ["PATH"] = os.pathsep.join((os.path.dirname(sys.executable),
                                      os.environ.get("PATH", os.defpath)))

COMPILED = HERE.parent / ".pytest_cache" / "bytecode"
if os.environ.pop("PYTHONDONTWRITEBYTECODE", None):  # not beside the source, then:
    sys.dont_write_bytecode = False  # thousands of processes would wait for a compiler
    sys.pycache_prefix = os.environ["PYTHONPYCACHEPREFIX"] = str(COMPILED)

import rooms  # noqa: E402, F401

import checks  # noqa: E402
import file_processes  # noqa: E402
import implementations  # noqa: E402
import kit  # noqa: E402
import report  # noqa: E402
import spec  # noqa: E402

SUBJECTS = tuple(checks.FIXTURES)
POOL_SIZE = 10  # most of the time a check waits for somebody else
WAITING = 12  # checks besides that do nothing else for seconds


# ---- options ----


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of README.md."""
    # --strict is an option of pytest itself, which reads more strictly then: fine
    group = parser.getgroup("conformance kit", "conformance kit; --strict, which is "
                            "pytest's own, makes it check SHOULD rules, too")
    group.addoption("--protocol", metavar="P", help="fc, scf or fg")
    group.addoption("--bootstrap", metavar="COMMAND", help="a bootstrap to judge")
    group.addoption("--platform", metavar="COMMAND", help="a platform to judge")
    group.addoption("--code", metavar="DIR", help="working folder of the bootstrap")
    group.addoption("--without", metavar="FEATURE", action="append", default=[],
                    help="declare a gap; repeatable: " + ", ".join(kit.FEATURES))
    group.addoption("--rule", metavar="ID", action="append", default=[],
                    help="check this rule only; repeatable")
    group.addoption("--patience", metavar="S", type=float, default=10.0,
                    help="longest wait for any step of the thing under test (10)")
    group.addoption("--hold", metavar="S", type=float, default=8.0,
                    help="how long a poll or an idle connection is held (8)")
    group.addoption("--slowest", metavar="N", type=int, default=0,
                    help="print the N checks that took longest")
    group.addoption("--report", metavar="DIR", help="write report.json and report.html")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse names that nobody knows, with the list of those that are known."""
    try:
        config.stash[RUN] = Session(config)
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leave nothing behind


def known(what: str, names: List[str], allowed: List[str]) -> None:
    """Raise ValueError if a name is not among the allowed ones."""
    for name in names:
        if name not in allowed:
            raise ValueError(f"unknown {what} {name!r}; known: {', '.join(allowed)}")


class Session:
    """What is under test, the running checks and their verdicts."""

    def __init__(self, config: pytest.Config) -> None:
        option = config.getoption
        self.spec = spec.load() if spec.SPEC_PATH.exists() else spec.parse("")
        self.rules = checks.rule_names(self.spec)
        self.only: List[str] = option("--rule")
        self.stranger = option("--bootstrap") is not None \
            or option("--platform") is not None
        self.strict = bool(option("strict")) or not self.stranger
        known("rule", self.only, sorted(rule.id for rule in self.spec.rules))
        for name in ("--patience", "--hold"):
            if option(name) <= 0:
                raise ValueError(f"{name} must be more than 0, not {option(name):g}")
        if option("--report"):  # better now than after all checks
            try:
                pathlib.Path(option("--report")).mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise ValueError(f"--report {error.filename}: {error.strerror}") from None
        self.bootstraps, self.platforms = self.under_test(config)
        self.roles = [role for role, found in (("bootstrap", self.bootstraps),
                                               ("platform", self.platforms)) if found]
        self.protocols = {one.protocol for one in self.bootstraps + self.platforms}
        self.collected: List[str] = []  # before anything is deselected
        self.checked: Set[str] = set()  # rules that have a check here
        self.unchecked: List[str] = []  # rules asked for that have none
        self.begun, self.began = time.localtime(), time.monotonic()
        self.verdicts: List[report.Verdict] = []
        self.unusable: List[object] = []  # and this was said
        self.futures: Dict[str, "concurrent.futures.Future[report.Verdict]"] = {}
        self.pool = concurrent.futures.ThreadPoolExecutor(POOL_SIZE)
        self.waiting = concurrent.futures.ThreadPoolExecutor(WAITING)
        self.apart: Optional[file_processes.FileProcesses] = None

    def under_test(self, config: pytest.Config) -> Tuple[
            List[kit.Implementation], List[kit.Implementation]]:
        """Return bootstraps and platforms: the stranger's, or all of ours."""
        option = config.getoption
        gaps = [word for text in option("--without") for word in text.split(",")]
        known("feature", gaps, sorted(kit.FEATURES))
        protocol = kit.LONG_NAMES.get(option("--protocol"), option("--protocol"))
        if protocol is not None:
            known("protocol", [protocol], list(kit.PROTOCOLS))
        wanted = [protocol] if protocol else list(kit.PROTOCOLS)
        if not self.stranger:
            return (implementations.bootstraps(wanted),
                    implementations.platforms(wanted))
        if option("--bootstrap") is not None and not protocol:
            raise ValueError("--bootstrap needs --protocol, one of "
                             + ", ".join(kit.PROTOCOLS))
        found: List[List[kit.Implementation]] = []
        for text, folder in ((option("--bootstrap"), option("--code")),
                             (option("--platform"), str(pathlib.Path.cwd()))):
            words, place = kit.command_of(text, folder) if text is not None else ((), "")
            found.append([kit.Implementation(
                "yours", one, words, place, tuple(gaps), (), option("--patience"),
                option("--hold")) for one in wanted if text is not None])
        return found[0], found[1]

    def subjects(self, fixture: str, function_name: str) -> List[kit.Implementation]:
        """Return what a check with that argument and name is run on."""
        role = checks.FIXTURES[fixture][0]
        pool = self.platforms if role == "platform" else self.bootstraps
        protocols = checks.protocols_of(function_name, fixture)
        return [one for one in pool if one.protocol in protocols]

    def rule_of(self, item: pytest.Function) -> Optional[spec.Rule]:
        """Return the rule that a check is named for; generated ones say it."""
        params = getattr(getattr(item, "callspec", None), "params", {})
        return checks.find_rule(self.rules, item.originalname, params)


RUN: "pytest.StashKey[Session]" = pytest.StashKey()


# ---- collection ----


def pytest_ignore_collect(collection_path: pathlib.Path,
                          config: pytest.Config) -> Optional[bool]:
    """Leave our own tests alone when a stranger's work is judged."""
    ours = collection_path.name.startswith("test_") and collection_path not in checks.FILES
    return True if ours and config.stash[RUN].stranger else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each check one case for each implementation that it concerns."""
    session = metafunc.config.stash[RUN]
    for fixture in SUBJECTS:
        if fixture in metafunc.fixturenames:
            cases = session.subjects(fixture, metafunc.function.__name__)
            metafunc.parametrize(fixture, cases,
                                 ids=[f"{one.protocol}-{one.name}" for one in cases])


def pytest_make_parametrize_id(val: object) -> Optional[str]:
    """Name a long text or body by its size: a name is to be read."""
    if isinstance(val, (str, bytes)) and len(val) > 60:
        return f"{len(val)} like {ascii(val[:8])}"
    return None


def subject_of(item: pytest.Item) -> Optional[Tuple[str, kit.Implementation]]:
    """Return fixture and implementation of a check, or nothing for a plain test."""
    params = getattr(getattr(item, "callspec", None), "params", {})
    for fixture in SUBJECTS:
        if isinstance(params.get(fixture), kit.Implementation):
            return fixture, params[fixture]
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config,
                                  items: List[pytest.Item]) -> None:
    """Drop what was not asked for: other rules, SHOULD rules, tests of the kit."""
    session = config.stash[RUN]
    session.collected = [item.nodeid for item in items]
    kept: List[pytest.Item] = []
    dropped: List[pytest.Item] = []
    for item in items:
        assert isinstance(item, pytest.Function)
        (kept if asked_for(session, item) else dropped).append(item)
    items[:] = kept
    if dropped:
        config.hook.pytest_deselected(items=dropped)
    rules = [session.rule_of(item) for item in kept if isinstance(item, pytest.Function)]
    session.checked = {rule.id for rule in rules if rule}
    session.unchecked = sorted(set(session.only) - session.checked)


SELECTING = ("keyword", "markexpr", "usepdb", "collectonly", "deselect", "ignore",
             "ignore_glob", "lf", "stepwise")  # options of pytest


def is_whole(config: pytest.Config) -> bool:
    """Tell whether this is a run of everything of ours."""
    session = config.stash[RUN]
    places = {pathlib.Path(config.invocation_params.dir, text).resolve()
              for text in config.args}
    return places <= {HERE, HERE.parent} and not (session.stranger or session.only or any(
        config.getoption(name, None) for name in SELECTING))


def has_begin(item: pytest.Item) -> bool:
    """Tell whether a test's module wants to be started early."""
    return hasattr(sys.modules.get(item.path.stem), "begin")


def asked_for(session: Session, item: pytest.Function) -> bool:
    """Tell whether the options ask for this test."""
    rule = session.rule_of(item)
    if set(SUBJECTS) & set(item.fixturenames) and subject_of(item) is None:
        return False  # nothing under test concerns it
    if subject_of(item) is None:
        return not session.stranger and not session.only
    if session.only and (rule is None or rule.id not in session.only):
        return False
    return session.strict or rule is None or not rule.level.startswith("SHOULD")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Start every selected check, then what other modules want started early."""
    run = session.config.stash[RUN]
    if session.config.option.collectonly:
        return
    gc.freeze()  # what was collected stays to the end: no need to walk through it
    if is_whole(session.config):
        run.apart = file_processes.FileProcesses(session.config, [
            item for item in session.items
            if subject_of(item) is None and not has_begin(item)])
    for module in sorted({item.path.stem for item in session.items if has_begin(item)}):
        sys.modules[module].begin(run.pool, run.waiting)
    for lane in lanes(session.items):
        run.futures.update((item.nodeid, concurrent.futures.Future()) for item in lane)
        pool = run.waiting if mostly_waits(lane[0]) else run.pool
        pool.submit(walk, run, lane)


def lanes(items: List[pytest.Item]) -> Iterator[List[pytest.Function]]:
    """Yield checks of one implementation that follow each other: one thread takes them
    in turn, so that a platform or bootstrap which one leaves in order serves the next."""
    groups: Dict[kit.Implementation, List[pytest.Function]] = {}
    for item in items:
        found = subject_of(item)
        if found is not None:
            assert isinstance(item, pytest.Function)
            if mostly_waits(item):
                yield [item]
                continue
            groups.setdefault(found[1], []).append(item)
    most = 1 + sum(map(len, groups.values())) // (8 * POOL_SIZE)  # no thread ends late
    longest = max(map(len, groups.values()), default=0)
    for start in reversed(range(0, longest, most)):  # what waits most stands last
        for group in groups.values():  # in turn: platforms wait, bash samples compute
            if group[start:]:
                yield group[start:start + most]


def mostly_waits(item: pytest.Function) -> bool:
    """Tell whether a check waits for most of its time."""
    return hasattr(item.function, "waits")


# ---- running ----


def walk(run: Session, lane: List[pytest.Function]) -> None:
    """Run the checks of a lane in turn, unless they have been called off."""
    for item in lane:
        future = run.futures[item.nodeid]
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(judge(run, item))
            except BaseException as error:  # who waits for the verdict is told
                future.set_exception(error)


def judge(session: Session, item: pytest.Function) -> report.Verdict:
    """Run one check and return its verdict; nothing is raised."""
    found = subject_of(item)
    assert found is not None
    rule = session.rule_of(item)
    params = dict(item.callspec.params)
    del params[found[0]]
    return checks.judge(
        checks.Check(rule.id if rule else item.originalname, found[0], item.function,
                     params, item.name), found[1], *((rule.line, rule.text) if rule else ()))


def pytest_runtest_protocol(item: pytest.Item) -> Optional[bool]:
    """Show a test that a process of its file has run."""
    apart = item.config.stash[RUN].apart
    return True if apart is not None and apart.show(item) else None


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """In such a process: tell what became of a test."""
    file_processes.note(report)


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Optional[object]:
    """Wait for a check's verdict instead of calling it a second time."""
    session = pyfuncitem.config.stash[RUN]
    future = session.futures.get(pyfuncitem.nodeid)
    if future is None:
        return None
    verdict = future.result()
    session.verdicts.append(verdict)
    if verdict.verdict == "unsupported":
        pytest.skip(f"unsupported: {verdict.seen}")
    if not verdict.tried:
        found = verdict.role, verdict.protocol, verdict.implementation
        if found in session.unusable:
            pytest.skip("not tried: what is under test cannot be used, see above")
        session.unusable.append(found)
    if verdict.verdict != "pass":
        pytest.fail(report.plain(verdict), pytrace=False)
    return True


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Stop what is left, write the report."""
    run = session.config.stash[RUN]
    for future in run.futures.values():
        future.cancel()
    if run.apart is not None:
        run.apart.stop()
    for pool in (run.pool, run.waiting):
        pool.shutdown(wait=True, cancel_futures=True)
    kit.stop_idle_runs()
    for made in COMPILED.glob(tempfile.gettempdir().lstrip("/") + "/*"):
        shutil.rmtree(made, ignore_errors=True)  # it does not come again
    gc.freeze()  # nor when pytest collects garbage ten times over before it leaves
    folder = session.config.getoption("--report")
    if folder and not session.config.option.collectonly:
        option = session.config.getoption
        judged = report.Judged(
            option("--bootstrap") or option("--platform") or "what is in this repository",
            time.strftime("%Y-%m-%d %H:%M", run.begun), time.monotonic() - run.began,
            run.strict, not_judged(run))
        report.write(pathlib.Path(folder), run.spec, run.verdicts, judged)


def not_judged(session: Session) -> Dict[str, str]:
    """Return the rules that bind what a stranger has put under test and have no check
    here, each with the reason."""
    whole = session.stranger and not session.only
    mine = [rule for rule in session.spec.rules if whole and rule.role in session.roles
            and rule.id.split(".")[0] in ("any", *session.protocols)
            and (session.strict or not rule.level.startswith("SHOULD"))
            and not (session.protocols == {"fc"} and "5.4 Pulling" in rule.section)]
    return {rule.id: why_unchecked(session, rule.id) for rule in mine
            if rule.id not in session.checked}


def why_unchecked(session: Session, name: str) -> str:
    """Say why a rule that was asked for has no check of what is under test."""
    rule = next(one for one in session.spec.rules if one.id == name)
    of_one = name.split(".")[0]
    if rule.role not in session.roles:
        return f"it binds the {rule.role}"
    if of_one != "any" and of_one not in session.protocols:
        return f"it is one of {of_one}"
    if rule.level.startswith("SHOULD") and not session.strict:
        return "it is a SHOULD, see --strict"
    return session.spec.exclusions.get(
        name, "only tests made for our own implementations show it")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Print how many verdicts of each kind there are."""
    for rule in config.stash[RUN].unchecked:
        terminalreporter.write_line(
            f"{rule} is not checked here: {why_unchecked(config.stash[RUN], rule)}")
    counts = report.count(config.stash[RUN].verdicts)
    if sum(counts.values()):
        terminalreporter.write_line("verdicts: " + ", ".join(
            f"{number} {name}" for name, number in counts.items()))
        terminalreporter.write_line(
            "(of each check on each implementation; pytest says failed for an error, "
            "skipped for unsupported, and counts plain tests, too)")
    missed = not_judged(config.stash[RUN])
    clouds = [name for name in missed if ".cloud." in name or ".api" in name]
    if missed and sum(counts.values()):
        terminalreporter.write_line("not judged, as no check shows them: " + ", ".join(
            [*(name for name in missed if name not in clouds),
             *([f"{len(clouds)} rules of chapter 12"] if clouds else [])]))
    slow = sorted(config.stash[RUN].verdicts, key=lambda one: -one.took_s)
    for one in slow[:config.getoption("slowest")]:
        terminalreporter.write_line(f"{one.took_s:6.2f} s  {one.case}")


@pytest.fixture(scope="session")
def the_spec(request: pytest.FixtureRequest) -> Iterator[spec.Spec]:
    """SPEC.md, parsed once."""
    yield request.config.stash[RUN].spec


@pytest.fixture(scope="session")
def collected(request: pytest.FixtureRequest) -> Iterator[List[str]]:
    """The names of all tests that were found; skips unless every file was looked at."""
    names = request.config.stash[RUN].collected
    files = {name.split("::")[0].rpartition("/")[2] for name in names}
    if files != {path.name for path in HERE.glob("*/test_*.py")}:
        pytest.skip("only a part of the tests was collected")
    yield names
