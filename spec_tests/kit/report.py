# report.py: verdicts, and the pages that show them (MIT).
"""Hold the verdicts of a run; write them as report.json and report.html."""

import collections
import html
import json
import os
import pathlib
import re
from typing import Dict, List, NamedTuple, Sequence, Tuple

import spec
import wire

VERDICTS = ("pass", "fail", "unsupported", "excluded", "error")
# The worst first, each with its mark on the page.
MARKS = {"error": "!", "fail": "✗", "unsupported": "–", "pass": "✓"}
FRAMES_SHOWN = 8  # of a failure; report.json has all
FRAME_CHARACTERS = 400  # of each of them
DETAILS_SHOWN = 5  # failing cases behind one cell
TEXT_CHARACTERS = 1500  # of what was expected, and of what was seen


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
    text: str = ""  # of the rule


class Judged(NamedTuple):
    """What was judged, when, and for how long; rules without a check, each with why."""

    command: str
    begun: str = ""
    took_s: float = 0.0
    strict: bool = False
    not_judged: Dict[str, str] = {}


def count(verdicts: Sequence[Verdict]) -> Dict[str, int]:
    """Return how many verdicts of each kind there are, `excluded` left out."""
    numbers = collections.Counter(verdict.verdict for verdict in verdicts)
    return {name: numbers[name] for name in VERDICTS if name != "excluded"}


def cut(text: str, most: int = TEXT_CHARACTERS) -> str:
    """Return a text for people, the middle of a long one left out."""
    half = most // 2
    return text if len(text) <= most else \
        f"{text[:half]} … ({len(text) - most} characters) … {text[-half:]}"


def plain(verdict: Verdict) -> str:
    """Return a failure for the terminal: rule, place, expected, seen, the wire."""
    place = f"[{verdict.rule}] SPEC.md:{verdict.line}" if verdict.tried else "[any rule]"
    lines = [f"{place}  {verdict.role} {verdict.implementation}, {verdict.protocol}: "
             f"{verdict.verdict}"]
    if verdict.tried and verdict.text:
        lines.append(f"  {verdict.text}")
    if verdict.expected:
        lines.append(f"  expected: {cut(verdict.expected)}")
    lines.append(f"  seen:     {cut(verdict.seen)}")
    for frame in [one for one in verdict.frames if one.text][-FRAMES_SHOWN:]:
        lines.append(f"  --- {frame.who}")
        lines += ["  | " + line.rstrip("\r") for line in
                  cut(frame.text, FRAME_CHARACTERS).split("\n")]
    return "\n".join(lines)


def write(folder: pathlib.Path, text: spec.Spec, verdicts: Sequence[Verdict],
          judged: Judged) -> None:
    """Write report.json and report.html into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    data = {"judged": judged.command, "spec": text.version, "begun": judged.begun,
            "took_s": judged.took_s, "strict": judged.strict, "counts": count(verdicts),
            "excluded": text.exclusions, "not_judged": judged.not_judged,
            "verdicts": [{**verdict._asdict(), "frames": [frame._asdict()
                          for frame in verdict.frames]} for verdict in verdicts]}
    (folder / "report.json").write_text(
        json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    link = os.path.relpath(spec.SPEC_PATH, folder)
    (folder / "report.html").write_text(page(text, verdicts, judged, link),
                                        encoding="utf-8")


def page(text: spec.Spec, verdicts: Sequence[Verdict], judged: Judged,
         link: str = "SPEC.md") -> str:
    """Return one page that needs nothing from elsewhere: a table for each role."""
    rows = {"command": f"<code>{html.escape(judged.command)}</code>",
            "protocol": ", ".join(sorted({one.protocol for one in verdicts})),
            "text": f'<a href="{html.escape(link)}">SPEC.md</a> {text.version}'
                    + (", SHOULD rules, too" if judged.strict else ""),
            "when": f"{html.escape(judged.begun)}, {judged.took_s:.0f} s",
            "checks": ", ".join(f"{MARKS[name]} {number} {name}"
                                for name, number in count(verdicts).items() if number)}
    head = "".join(f"<dt>{name}<dd>{value}" for name, value in rows.items())
    tables = [table(text, role, [one for one in verdicts if one.role == role], link)
              for role in sorted({one.role for one in verdicts})]
    return PAGE % (head, "\n".join(tables))


def table(text: spec.Spec, role: str, verdicts: Sequence[Verdict], link: str) -> str:
    """Return the table of a role: a row for each rule that was judged, a column for each
    implementation."""
    heads = sorted({(one.protocol, one.implementation) for one in verdicts})
    names = "".join(f"<th>{html.escape(' '.join(head))}" for head in heads)
    rows = [f"<h2>{html.escape(role)}</h2><table><tr><th>rule{names}"]
    by_rule: Dict[str, List[Verdict]] = {}
    for one in sorted(verdicts, key=lambda one: one.line):
        by_rule.setdefault(one.rule, []).append(one)
    for rule, found in sorted(by_rule.items(), key=lambda one: not failed(one[1])):
        cells = "".join(cell([one for one in found if (
            one.protocol, one.implementation) == head], " ".join(head)) for head in heads)
        rows.append(f"<tr><td><b>{html.escape(rule)}</b> <a href=\"{html.escape(link)}\">"
                    f"SPEC.md:{found[0].line}</a><br>{prose(found[0].text)}{cells}")
        bad = failed(found)
        rows += [f'<tr class="detail"><td colspan="{1 + len(heads)}"><details open><summary>'
                 f"{html.escape(cut(one.case, 200))}</summary><pre>{html.escape(plain(one))}"
                 "</pre></details>" for one in bad[:DETAILS_SHOWN]]
        if len(bad) > DETAILS_SHOWN:
            rows.append(f'<tr class="detail"><td colspan="{1 + len(heads)}">and '
                        f"{len(bad) - DETAILS_SHOWN} more, see report.json")
    return "\n".join(rows) + "</table>"


def failed(verdicts: Sequence[Verdict]) -> List[Verdict]:
    """Return those that are no good; what has some stands first on the page."""
    return [one for one in verdicts if one.verdict in ("fail", "error")]


def prose(text: str) -> str:
    """Return a sentence of SPEC.md as HTML."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def cell(verdicts: Sequence[Verdict], head: str) -> str:
    """Return the worst verdict of a rule, and how many of its checks pass."""
    if not verdicts:
        return "<td>"
    kinds = {one.verdict for one in verdicts}
    kind = next(one for one in MARKS if one in kinds)
    passed = sum(one.verdict == "pass" for one in verdicts)
    return (f'<td class="{kind}" data-of="{html.escape(head)}">{MARKS[kind]} {kind} '
            f"{passed}/{len(verdicts)}")


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Conformance report</title><style>
:root { color-scheme: light dark; }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 75rem; margin: 1rem auto;
  padding: 0 .8rem; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; }
dt { opacity: .7; } dd { margin: 0; }
table { border-collapse: collapse; width: 100%%; }
th, td { border-top: 1px solid #8884; padding: .3rem .6rem .3rem 0; text-align: left;
  vertical-align: top; }
td[class] { white-space: nowrap; } .detail td { border: 0; padding: 0 0 .5rem 1rem; }
.pass { color: #1a7f37; } .fail, .error { color: #d1242f; font-weight: 600; }
.unsupported { color: #9a6700; } summary { cursor: pointer; }
pre { white-space: pre-wrap; font-size: 13px; background: #8882; padding: .5rem;
  margin: .2rem 0; }
@media (max-width: 40rem) { table, tbody, tr, td { display: block; } th { display: none; }
  td + td { border: 0; padding-top: 0; } td[data-of]::after { content: " " attr(data-of);
  opacity: .7; } .detail td { padding-left: 0; } }
</style></head><body><h1>Conformance report</h1>
<dl>%s</dl>
%s
</body></html>
"""
