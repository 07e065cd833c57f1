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
FRAMES_SHOWN = 8  # of a failure on the terminal; the pages have all
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
          kills: str) -> None:
    """Write report.json and report.html into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {"counts": count(verdicts), "excluded": text.exclusions,
            "verdicts": [{**verdict._asdict(), "frames": [frame._asdict()
                          for frame in verdict.frames]} for verdict in verdicts]}
    (folder / "report.json").write_text(
        json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    (folder / "report.html").write_text(page(text, verdicts, kills), encoding="utf-8")


Cells = Dict[Tuple[str, str], List[Verdict]]


def columns(verdicts: Sequence[Verdict]) -> List[Tuple[str, str, str]]:
    """Return role, protocol and name of each implementation, in order."""
    return sorted({(one.role, one.protocol, one.implementation) for one in verdicts})


def cells(verdicts: Sequence[Verdict]) -> Cells:
    """Return the verdicts by rule and column."""
    found: Cells = {}
    for one in verdicts:
        column = " ".join((one.role, one.protocol, one.implementation))
        found.setdefault((one.rule, column), []).append(one)
    return found


def worst(verdicts: Sequence[Verdict]) -> str:
    """Return the verdict of a cell: the worst of its checks."""
    kinds = {one.verdict for one in verdicts}
    return next(kind for kind in WORST_FIRST if kind in kinds)


def page(text: spec.Spec, verdicts: Sequence[Verdict], kills: str) -> str:
    """Return the matrix as one page that needs nothing from elsewhere."""
    heads = columns(verdicts)
    found = cells(verdicts)
    known = [rule.id for rule in text.rules]
    rules = known + sorted({one.rule for one in verdicts} - set(known))
    shown = [rule for rule in rules if rule in text.exclusions
             or any((rule, " ".join(head)) in found for head in heads)]
    rows = "\n".join(row(text, rule, heads, found) for rule in shown)
    numbers = " · ".join(f"{number} {name}" for name, number in count(verdicts).items())
    head = "".join(f'<th scope="col"><span>{html.escape(role)}</span> '
                   f'<b>{html.escape(protocol)}</b> {html.escape(name)}</th>'
                   for role, protocol, name in heads)
    return PAGE.format(numbers=html.escape(numbers), head=head, rows=rows,
                       kills=html.escape(kills), style=STYLE, script=SCRIPT,
                       legend=" ".join(f'<span class="{name}">{mark}</span> {name}'
                                       for name, mark in MARKS.items()))


def row(text: spec.Spec, rule: str, heads: Sequence[Tuple[str, str, str]],
        found: Cells) -> str:
    """Return one line of the matrix: the rule and a cell for each implementation."""
    known = next((one for one in text.rules if one.id == rule), None)
    place = f"SPEC.md:{known.line} · {known.level}" if known else ""
    title = html.escape(known.text if known else "", quote=True)
    parts = [f'<th scope="row" title="{title}">{html.escape(rule)}'
             f"<small>{place}</small></th>"]
    for head in heads:
        here = found.get((rule, " ".join(head)), [])
        if here:
            parts.append(cell(here))
        elif rule in text.exclusions and concerns(known, head):
            reason = html.escape(text.exclusions[rule], quote=True)
            parts.append(f'<td class="excluded" title="{reason}">'
                         f'{MARKS["excluded"]}</td>')
        else:
            parts.append('<td class="none"></td>')
    kind = worst([one for head in heads for one in
                  found.get((rule, " ".join(head)), [])] or [EXCLUDED])
    return f'<tr data-worst="{kind}">{"".join(parts)}</tr>'


EXCLUDED = Verdict("", 0, "", "", "", "", "excluded")


def concerns(rule: Optional[spec.Rule], head: Tuple[str, str, str]) -> bool:
    """Tell whether a rule is about the role and protocol of a column."""
    return rule is not None and rule.role == head[0] \
        and rule.id.split(".")[0] in ("any", head[1])


def cell(verdicts: Sequence[Verdict]) -> str:
    """Return one cell; a failing one opens to show the wire."""
    kind = worst(verdicts)
    mark = f"{MARKS[kind]}"
    passed = sum(one.verdict == "pass" for one in verdicts)
    label = f"{kind}: {passed} of {len(verdicts)} checks pass"
    if kind in ("pass", "excluded"):
        return f'<td class="{kind}" title="{label}">{mark}</td>'
    bad = [one for one in verdicts if one.verdict != "pass"]
    inner = "".join(detail(one) for one in bad[:DETAILS_SHOWN])
    return (f'<td class="{kind}"><details><summary title="{label}" '
            f'aria-label="{label}">{mark}</summary><div>{inner}</div></details></td>')


def detail(verdict: Verdict) -> str:
    """Return what was expected and seen in one check, and its exchange."""
    frames = "".join(f"<h4>{html.escape(frame.who)}</h4><pre>{html.escape(frame.text)}"
                     "</pre>" for frame in verdict.frames)
    return (f"<h3>{html.escape(verdict.case)}</h3><p><b>{verdict.verdict}</b> "
            f"SPEC.md:{verdict.line}</p><p>expected: "
            f"<code>{html.escape(verdict.expected)}</code></p><p>seen: "
            f"<code>{html.escape(verdict.seen)}</code></p>{frames}")


STYLE = """
:root { color-scheme: light dark; --line: #8884; --good: #1a7f37; --bad: #c62828;
  --odd: #9a6700; --back: #fff; --text: #1b1b1b; --soft: #f3f4f6; }
@media (prefers-color-scheme: dark) { :root { --good: #57c773; --bad: #ff7b72;
  --odd: #e0b341; --back: #16181c; --text: #e6e6e6; --soft: #22262c; } }
body { font: 15px/1.45 system-ui, sans-serif; margin: 1.5rem; background: var(--back);
  color: var(--text); }
h1 { font-size: 1.3rem; } label { margin-right: 1rem; }
.frame { overflow: auto; max-height: 85vh; border: 1px solid var(--line); }
table { border-collapse: collapse; }
th, td { border-bottom: 1px solid var(--line); padding: .2rem .5rem; text-align: center;
  vertical-align: top; }
thead th { position: sticky; top: 0; background: var(--soft); font-weight: normal; }
thead th span { display: block; font-size: .75rem; }
tbody th { position: sticky; left: 0; background: var(--soft); text-align: left;
  font-weight: normal; white-space: nowrap; }
tbody th small { display: block; opacity: .7; }
.pass { color: var(--good); } .fail, .error { color: var(--bad); font-weight: bold; }
.unsupported, .excluded { color: var(--odd); }
summary { cursor: pointer; list-style-position: inside; }
summary:focus-visible, input:focus-visible { outline: 2px solid; outline-offset: 2px; }
details div { text-align: left; min-width: 24rem; max-width: 44rem; color: var(--text);
  font-weight: normal; }
pre, code { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85em; }
pre { background: var(--soft); padding: .4rem; margin: .2rem 0; }
h3, h4 { margin: .6rem 0 0; font-size: .9rem; }
"""
SCRIPT = """
const only = document.getElementById('only'), find = document.getElementById('find');
function show() {
  for (const row of document.querySelectorAll('tbody tr')) {
    const bad = ['fail', 'error'].includes(row.dataset.worst);
    const named = row.cells[0].textContent.includes(find.value.trim());
    row.hidden = only.checked && !bad || !named;
  }
}
only.addEventListener('change', show); find.addEventListener('input', show);
"""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Conformance report</title><style>{style}</style></head>
<body><h1>Conformance report</h1>
<p>{numbers}. {legend}. A cell holds the worst of its checks; open a failing one to see
what was on the wire. Point at a rule for its text.</p>
<p><label><input type="checkbox" id="only"> only failures</label>
<label>rule <input type="search" id="find" placeholder="scf.next"></label></p>
<div class="frame" tabindex="0" role="region" aria-label="Rules and implementations">
<table><thead><tr><th scope="col">rule</th>{head}</tr></thead>
<tbody>
{rows}
</tbody></table></div>
<details><summary>Kill table: which checks catch what is broken on purpose</summary>
<pre>{kills}</pre></details>
<script>{script}</script></body></html>
"""
