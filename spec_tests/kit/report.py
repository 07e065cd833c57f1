# report.py: verdicts, and the pages that show them (MIT).
"""Hold the verdicts of a run; write them as report.json and report.html."""

import collections
import html
import json
import pathlib
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

import spec
import wire

__all__ = ["VERDICTS", "Verdict", "count", "plain", "write"]

VERDICTS = ("pass", "fail", "unsupported", "excluded", "error")
WORST_FIRST = ("error", "fail", "unsupported", "excluded", "pass")
MARKS = {"pass": "✓", "fail": "✗", "unsupported": "–", "excluded": "∅", "error": "!"}
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


# ---- for the terminal ----


def plain(verdict: Verdict) -> str:
    """Return a failure for the terminal: rule, place, expected, seen, the wire."""
    place = f"[{verdict.rule}] SPEC.md:{verdict.line}" if verdict.tried else "[any rule]"
    lines = [f"{place}  {verdict.role} {verdict.implementation}, {verdict.protocol}: "
             f"{verdict.verdict}"]
    if verdict.expected:
        lines.append(f"  expected: {verdict.expected}")
    lines.append(f"  seen:     {verdict.seen}")
    told = [frame for frame in verdict.frames if frame.text]
    for frame in told[-FRAMES_SHOWN:]:
        lines.append(f"  --- {frame.who}")
        lines += ["  | " + line.rstrip("\r") for line in frame.text.split("\n")]
    return "\n".join(lines)


# ---- for files ----


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
    known = {rule.id: rule for rule in text.rules if rule.role == role
             and rule.id.split(".")[0] in {"any", *(head[0] for head in heads)}}
    rules = [*known, *sorted({one.rule for one in verdicts} - set(known))]
    rows = [row(text, known.get(rule), rule, [
        [one for one in verdicts if one.rule == rule
         and (one.protocol, one.implementation) == head] for head in heads])
        for rule in rules]
    names = "".join(f"<th>{html.escape(' '.join(head))}</th>" for head in heads)
    return (f"<h2>{html.escape(role)}</h2><table><tr><th>rule</th>{names}</tr>\n"
            + "\n".join(rows) + "</table>")


def row(text: spec.Spec, rule: Optional[spec.Rule], name: str,
        cells: Sequence[Sequence[Verdict]]) -> str:
    """Return a line of a table: the rule, its sentence, and what became of it."""
    about = f"SPEC.md:{rule.line}<br>{html.escape(rule.text)}" if rule else ""
    reason = text.exclusions.get(name, "not judged: there is no check")
    parts = [f"<td><b>{html.escape(name)}</b> {about}</td>"]
    parts += [cell(one) if one else "<td></td>" for one in cells]
    if not any(cells):
        parts[1:] = [f'<td colspan="{len(cells)}">{html.escape(reason)}</td>']
    return f"<tr>{''.join(parts)}</tr>"


def cell(verdicts: Sequence[Verdict]) -> str:
    """Return the worst verdict of a rule; what failed shows the wire."""
    kinds = {one.verdict for one in verdicts}
    kind = next(one for one in WORST_FIRST if one in kinds)
    passed = sum(one.verdict == "pass" for one in verdicts)
    bad = [one for one in verdicts if one.verdict in ("fail", "error")]
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
