# report.py: verdicts, and the pages that show them (MIT).
"""Hold the verdicts of a run; write them as report.json and report.html."""

import collections
import html
import json
import pathlib
from typing import Dict, List, NamedTuple, Sequence, Tuple

import spec
import wire

VERDICTS = ("pass", "fail", "unsupported", "excluded", "error")
# The worst first, each with its mark on the page.
MARKS = {"error": "!", "fail": "✗", "unsupported": "–", "excluded": "∅", "pass": "✓"}
FRAMES_SHOWN = 8  # of a failure; report.json has all
DETAILS_SHOWN = 5  # failing cases behind one cell


class Verdict(NamedTuple):
    """What became of one check of one implementation."""

    rule: str
    line: int
    case: str
    role: str
    protocol: str
    implementation: str
    verdict: str = "pass"
    expected: str = ""
    seen: str = ""
    frames: Tuple[wire.Frame, ...] = ()
    took_s: float = 0.0
    tried: bool = True  # False: what is under test cannot be used at all


def count(verdicts: Sequence[Verdict]) -> Dict[str, int]:
    """Return how many verdicts of each kind there are, `excluded` left out."""
    numbers = collections.Counter(verdict.verdict for verdict in verdicts)
    return {name: numbers[name] for name in VERDICTS if name != "excluded"}


def plain(verdict: Verdict) -> str:
    """Return a failure for the terminal: rule, place, expected, seen, the wire."""
    place = f"[{verdict.rule}] SPEC.md:{verdict.line}" if verdict.tried else "[any rule]"
    lines = [f"{place}  {verdict.role} {verdict.implementation}, {verdict.protocol}: "
             f"{verdict.verdict}"]
    if verdict.expected:
        lines.append(f"  expected: {verdict.expected}")
    lines.append(f"  seen:     {verdict.seen}")
    for frame in [one for one in verdict.frames if one.text][-FRAMES_SHOWN:]:
        lines.append(f"  --- {frame.who}")
        lines += ["  | " + line.rstrip("\r") for line in frame.text.split("\n")]
    return "\n".join(lines)


def write(folder: pathlib.Path, text: spec.Spec, verdicts: Sequence[Verdict],
          judged: str) -> None:
    """Write report.json and report.html into the folder; `judged` says of what."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {"judged": judged, "counts": count(verdicts), "excluded": text.exclusions,
            "verdicts": [{**verdict._asdict(), "frames": [frame._asdict()
                          for frame in verdict.frames]} for verdict in verdicts]}
    (folder / "report.json").write_text(
        json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "report.html").write_text(page(text, verdicts, judged), encoding="utf-8")


def page(text: spec.Spec, verdicts: Sequence[Verdict], judged: str) -> str:
    """Return one page that needs nothing from elsewhere: a table for each role."""
    numbers = ", ".join(f"{number} {name}" for name, number in count(verdicts).items())
    legend = " ".join(f"{mark} {name}" for name, mark in MARKS.items())
    tables = [table(text, role, [one for one in verdicts if one.role == role])
              for role in sorted({one.role for one in verdicts})]
    return PAGE % (html.escape(judged), numbers, legend, "\n".join(tables))


def table(text: spec.Spec, role: str, verdicts: Sequence[Verdict]) -> str:
    """Return the table of a role: a row for each rule, a column for what was judged."""
    heads = sorted({(one.protocol, one.implementation) for one in verdicts})
    known = {rule.id: f"SPEC.md:{rule.line}<br>{html.escape(rule.text)}"
             for rule in text.rules if rule.role == role
             and rule.id.split(".")[0] in {"any", *(head[0] for head in heads)}}
    names = "".join(f"<th>{html.escape(' '.join(head))}</th>" for head in heads)
    rows = [f"<h2>{html.escape(role)}</h2><table><tr><th>rule</th>{names}</tr>"]
    for rule in [*known, *sorted({one.rule for one in verdicts} - set(known))]:
        found = [one for one in verdicts if one.rule == rule]
        cells = "".join(cell([one for one in found if (
            one.protocol, one.implementation) == head]) for head in heads)
        why = html.escape(text.exclusions.get(rule, "not judged: there is no check"))
        rows.append(f"<tr><td><b>{html.escape(rule)}</b> {known.get(rule, '')}</td>"
                    + (cells if found else f'<td colspan="{len(heads)}">{why}</td>'))
    return "</tr>\n".join(rows) + "</tr></table>"


def cell(verdicts: Sequence[Verdict]) -> str:
    """Return the worst verdict of a rule; what failed shows the wire."""
    if not verdicts:
        return "<td></td>"
    kinds = {one.verdict for one in verdicts}
    kind = next(one for one in MARKS if one in kinds)
    passed = sum(one.verdict == "pass" for one in verdicts)
    bad: List[Verdict] = [one for one in verdicts if one.verdict in ("fail", "error")]
    inner = "".join(f"<details open><summary>{html.escape(one.case)}</summary>"
                    f"<pre>{html.escape(plain(one))}</pre></details>"
                    for one in bad[:DETAILS_SHOWN])
    return f'<td class="{kind}">{MARKS[kind]} {passed}/{len(verdicts)}{inner}</td>'


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Conformance report</title><style>
:root { color-scheme: light dark; } body { font: 15px/1.4 system-ui, sans-serif; }
table { border-collapse: collapse; } td, th { border-bottom: 1px solid #8884;
  padding: .2rem .5rem; text-align: left; vertical-align: top; max-width: 40rem; }
.pass { color: #1a7f37; } .fail, .error { color: #c62828; } .unsupported { color: #9a6700; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
</style></head><body><h1>Conformance report</h1>
<p>Judged: %s. %s. Legend: %s; behind it, how many checks of the rule pass.</p>
%s
</body></html>
"""
