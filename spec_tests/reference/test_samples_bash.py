# test_samples_bash.py: what a handler in bash may do to its shell and to curl (MIT).
"""Run the bash samples under the emulator, with handlers as people write them."""

import json
import pathlib
import shutil
from typing import Dict, List, Sequence

import pytest
from harness import run
from implementations import START_EMULATOR

ROOT = pathlib.Path(__file__).resolve().parents[2]
STRICT = "set -euo pipefail; IFS=$'\\n\\t'; cd /; trap 'exit 9' ERR EXIT; echo reads\n"
HANDLER = """handler() {
  case $(cat "$1") in
%s
    *) echo "fine $INVOCATION" ;;
  esac
}
main_handler() { handler "$1"; }
"""
HABITS = {  # what the handler does, and the outcome of that event alone
    "set-e": ("set -e; echo done", "ok"),
    "set-e-fails": ("set -e; false; echo done", "function-error"),
    "unset": ('echo "hello $NAME_THAT_NOBODY_SET"', "function-error"),
    "exit-fails": ("exit 3", "function-error"),
    "return": ("return 3", "function-error"),
    "fail": ("_fail Refused 'not \"today\" \\ &'", "function-error"),
    "trap": ("trap 'exit 4' EXIT ERR DEBUG", "function-error"),
    "signals": ("trap '' TERM INT CHLD", "ok"),
    "variables": ("_work=/none _handler='' _entry='' PATH='' TMPDIR=/none", "ok"),
    "exec": ("exec true", "ok"),
    "background": ("(for _ in {1..9999}; do echo late; done) & echo done", "ok"),
    "killed": ("kill -KILL $BASHPID", "function-error"),
}


def outcomes(protocol: str, code: pathlib.Path, *events: str,
             options: Sequence[str] = ()) -> List[Dict[str, str]]:
    """Return what becomes of the events, one after the other if no option says else."""
    lines = [json.dumps({"id": number, "event": event})
             for number, event in enumerate(events)]
    command = [*START_EMULATOR, protocol, str(code), "--jsonl", "--quiet", *options,
               *(["--port", "0"] if protocol == "fc" else [])]
    done = run(command, "\n".join(lines).encode(), HOME=str(code))
    return [json.loads(line) for line in done.out.splitlines()]


def copied(protocol: str, folder: pathlib.Path, handler: str = "") -> pathlib.Path:
    """Return a copy of the sample, with this handler if one is given."""
    code = folder / "code"
    shutil.copytree(ROOT / "examples" / "bash" / protocol, code)
    if handler:
        (code / "index.sh").write_text(handler)
    return code


@pytest.mark.parametrize("protocol,first", (  # scf and fg call a handler alike
    ("scf", ""), ("fg", STRICT), ("fc", ""), ("fc", STRICT)), ids=(
        "scf", "fg-strict", "fc", "fc-strict"))
def test_any_error_survive(protocol: str, first: str, tmp_path: pathlib.Path) -> None:
    """What a handler does to its shell ends with its event, which alone fails by it."""
    arms = "\n".join("    %s) %s ;;" % (name, HABITS[name][0]) for name in HABITS)
    code = copied(protocol, tmp_path, first + HANDLER % arms)
    events = [event for name in HABITS for event in (name, "fine")]
    seen = outcomes(protocol, code, *events)
    assert {name: one["kind"] for name, one in zip(HABITS, seen[::2])} == {
        name: kind for name, (_, kind) in HABITS.items()}
    assert [one["body"] for one in seen[1::2]] == [
        "fine %d\n" % count for count in range(2, len(events) + 1, 2)]


def test_fc_concurrency_bootstrap__one_handler(tmp_path: pathlib.Path) -> None:
    """Events that come together are handled one after the other, none in another's
    place; the connections that wait do not keep the sample from ending (fc)."""
    code = copied("fc", tmp_path)
    (code / "index.sh").write_text("handler() { cat; }\n")
    events = ["event %d" % number for number in range(60)]
    options = ["--concurrency", "8", "--parallel", "8"]
    seen = outcomes("fc", code, *events, options=options)
    assert sorted(one["body"] for one in seen) == sorted(events)
    assert all(one["body"] == events[int(one["id"])] for one in seen)
