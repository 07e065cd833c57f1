#!/usr/bin/env python3
# spec.py: reads SPEC.md. Part of custom-runtime-reference (MIT).
"""Read SPEC.md as data: rules, tables, transcripts, diagrams, appendices.

    python3 spec_tests/kit/spec.py            # how much of each there is
    python3 spec_tests/kit/spec.py --json     # everything, for ports in other languages
    python3 spec_tests/kit/spec.py --lint     # every breach of the form, with its line

It does not judge what the text says, only whether it has the promised form.
"""

import dataclasses
import functools
import json
import pathlib
import re
import sys
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

ROOT = pathlib.Path(__file__).resolve().parents[2]
SPEC_PATH = ROOT / "SPEC.md"

# ---- model ----

ROLES = ("platform", "bootstrap", "gateway", "handler", "caller", "worker")
PROTOCOLS = ("any", "fc", "scf", "fg", "fcc")


class FormError(ValueError):
    """SPEC.md breaks its own form; says where and why."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(f"SPEC.md:{line}: {reason}")
        self.line, self.reason = line, reason


@dataclasses.dataclass(frozen=True)
class Rule:
    """One named rule: a list item with one keyword, one role and its marks."""

    id: str
    level: str
    role: str
    text: str
    marks: Tuple[str, ...]
    line: int
    section: Tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Table:
    """One table; `section` is the path of headings above it."""

    section: Tuple[str, ...]
    header: Tuple[str, ...]
    rows: Tuple[Tuple[str, ...], ...]
    line: int

    def records(self) -> List[Dict[str, str]]:
        """Return each row as a dict by header, back-quotes removed; a row of a states
        table once for each of its states and calls."""
        found = [dict(zip(self.header, (plain(cell) for cell in row)))
                 for row in self.rows]
        if "next state" not in self.header:
            return found
        return [{**row, "state": state, "call": call, "next state":
                 row["next state"].replace("the same", state)}
                for row in found for state in row["state"].split(", ")
                for call in row["call"].split(", ")]


@dataclasses.dataclass(frozen=True)
class Step:
    """One message of a transcript: `B>`, `P<`, `P>`, `B<` or `!`."""

    who: str
    line: str
    headers: Tuple[Tuple[str, str], ...]
    body: str


@dataclasses.dataclass(frozen=True)
class Transcript:
    """One dialogue; `replay` is `both`, or `platform` if no bootstrap plays it."""

    replay: str
    protocol: str
    outcome: str
    event: str
    options: str
    status: str
    result: str
    steps: Tuple[Step, ...]
    line: int


@dataclasses.dataclass(frozen=True)
class Diagram:
    """One Mermaid state diagram as (state, next state, label) edges."""

    section: Tuple[str, ...]
    edges: Tuple[Tuple[str, str, str], ...]
    line: int


@dataclasses.dataclass(frozen=True)
class Spec:
    """All of SPEC.md that is data. `errors` holds what could not be read."""

    rules: Tuple[Rule, ...]
    tables: Tuple[Table, ...]
    transcripts: Tuple[Transcript, ...]
    diagrams: Tuple[Diagram, ...]
    sources: Dict[str, int]
    questions: Dict[str, int]
    exclusions: Dict[str, str]
    errors: Tuple[FormError, ...]
    version: str = ""

    def rule(self, rule_id: str) -> Rule:
        """Return the rule of that name. Raises KeyError if there is none."""
        for rule in self.rules:
            if rule.id == rule_id:
                return rule
        raise KeyError(rule_id)

    def table(self, protocol: str, *header: str) -> Table:
        """Return the protocol's one table with these columns. Raises KeyError."""
        wanted = {name.lower() for name in header}
        for table in self.tables:
            columns = {name.lower() for name in table.header}
            if wanted <= columns and protocol_of(table.section) == protocol:
                return table
        raise KeyError(f"no table of {protocol} with columns {', '.join(header)}")


class Line(NamedTuple):
    """One line of prose with its number and the headings above it."""

    number: int
    text: str
    section: Tuple[str, ...]


class Fence(NamedTuple):
    """One fenced block."""

    info: str
    lines: Tuple[str, ...]
    number: int
    section: Tuple[str, ...]


# ---- forms ----

HEADING = re.compile(r"^(#{1,6})\s+(.*?)\s*#*$")
RULE = re.compile(r"^- \*\*([A-Za-z0-9_.-]+\.[A-Za-z0-9_.-]+)\*\* +(.*)$")
RULE_ID = re.compile(r"^(any|fcc|fc|scf|fg)(\.[a-z0-9]+(-[a-z0-9]+)*)+$")
ID_IN_TEXT = re.compile(
    r"(?<![\w./-])((?:any|fcc|fc|scf|fg)(?:\.[a-z0-9]+(?:-[a-z0-9]+)*){2,3})(?![\w/.])")
MARKS = re.compile(r"\s*\[((?:[DSOC]:[^\[\]]+))\]\s*$")
MARK = re.compile(r"^[DSOC]:\S+$")
KEYWORD = re.compile(r"\b(MUST NOT|SHOULD NOT|MUST|SHOULD|MAY)\b")
EDGE = re.compile(r"^\s*(\[\*\]|\w[\w-]*)\s*-->\s*(\[\*\]|\w[\w-]*)\s*(?::\s*(.*))?$")
STEP = re.compile(r"^(B>|P<|P>|B<|!) ?(.*)$")
STEP_HEADER = re.compile(r"^  ([!-9;-~]+): ?(.*)$")
BORDER = re.compile(r"^\|[\s:|-]+\|\s*$")
TRANSCRIPT_KEYS = ("outcome", "event", "options", "status", "result")
KEY_ROW = re.compile(
    r"^(?:- )?\*\*([^*]+)\*\*|^\|\s*(?:\*\*|`)?([^|*`]+?)(?:\*\*|`)?\s*\|")


def plain(cell: str) -> str:
    """Return a table cell without back-quotes and outer blanks."""
    return cell.strip().replace("`", "").replace("\\|", "|")


def protocol_of(section: Sequence[str]) -> str:
    """Return the protocol whose chapter this is, or `any`."""
    for title in section[:2]:
        found = re.search(r"`(fcc|fc|scf|fg)`", title)
        if found:
            return found.group(1)
    return "any"


def appendix_of(section: Sequence[str]) -> str:
    """Return the letter of the appendix, or nothing."""
    for title in section:
        found = re.match(r"(?:Appendix )?([A-E])\b[. :]", title + " ")
        if found:
            return found.group(1)
    return ""


# ---- reading ----


def scan(text: str) -> Tuple[List[Line], List[Fence], List[FormError]]:
    """Split the text into prose lines and fenced blocks."""
    prose: List[Line] = []
    fences: List[Fence] = []
    section: List[str] = []
    fence: Optional[Tuple[str, str, int, List[str]]] = None
    for number, line in enumerate(text.split("\n"), 1):
        mark = re.match(r"^ {0,3}(```+|~~~+)\s*(.*)$", line)
        if fence is not None:
            if mark and not mark.group(2) and mark.group(1).startswith(fence[0]):
                fences.append(Fence(fence[1], tuple(fence[3]), fence[2],
                                    tuple(section)))
                fence = None
            else:
                fence[3].append(line)
        elif mark:
            fence = (mark.group(1), mark.group(2).strip(), number, [])
        else:
            heading = HEADING.match(line)
            if heading:
                del section[max(0, len(heading.group(1)) - 2):]
                section.append(heading.group(2))
            prose.append(Line(number, line, tuple(section)))
    errors = [FormError(fence[2], "fence is never closed")] if fence else []
    return prose, fences, errors


def items(prose: Sequence[Line]) -> Iterator[Tuple[int, str]]:
    """Yield each list item that looks like a rule, unwrapped, with its line."""
    position = 0
    while position < len(prose):
        line = prose[position]
        position += 1
        if not line.text.startswith("- **"):
            continue
        words = [line.text]
        while position < len(prose) and re.match(r"^ {2,}\S", prose[position].text):
            if re.match(r"^ {2,}([-*] |\d+\. |Note:)", prose[position].text):
                break
            words.append(prose[position].text.strip())
            position += 1
        yield line.number, " ".join(words)


def read_rule(number: int, item: str) -> Rule:
    """Return the rule in a list item. Raises FormError."""
    found = RULE.match(item)
    if not found:
        raise FormError(number, "a rule is `- **part.topic.detail** The ROLE …`")
    rule_id, rest = found.groups()
    if not RULE_ID.match(rule_id):
        raise FormError(number, f"{rule_id}: ids are lower case words in dots, "
                        f"the first one of {', '.join(PROTOCOLS)}")
    marks = MARKS.search(rest)
    if not marks:
        raise FormError(number, f"{rule_id}: no mark such as [D:scf-2] at the end")
    text = rest[:marks.start()].strip()
    keywords = KEYWORD.findall(text)
    if len(keywords) != 1:
        raise FormError(number, f"{rule_id}: {len(keywords)} keywords, one expected")
    role = re.match(rf"The ({'|'.join(ROLES)})\b", text)
    if not role:
        raise FormError(number, f"{rule_id}: does not begin with The and one of "
                        + ", ".join(ROLES))
    split = tuple(mark.strip() for mark in marks.group(1).split(";"))
    bad = [mark for mark in split if not MARK.match(mark)]
    if bad:
        raise FormError(number, f"{rule_id}: bad mark {bad[0]!r}")
    return Rule(rule_id, keywords[0], role.group(1), text, split, number)


def read_tables(prose: Sequence[Line]) -> Tuple[List[Table], List[FormError]]:
    """Return every table, and each row that has too few or too many cells."""
    tables: List[Table] = []
    errors: List[FormError] = []
    position = 0
    while position + 1 < len(prose):
        head, rule = prose[position], prose[position + 1]
        position += 1
        if not (head.text.startswith("|") and BORDER.match(rule.text)):
            continue
        header, rows = cells(head.text), []
        position += 1
        while position < len(prose) and prose[position].text.startswith("|"):
            row = cells(prose[position].text)
            if len(row) != len(header):
                errors.append(FormError(prose[position].number,
                                        f"{len(row)} cells, {len(header)} columns"))
            rows.append(row)
            position += 1
        tables.append(Table(head.section, header, tuple(rows), head.number))
    return tables, errors


def cells(line: str) -> Tuple[str, ...]:
    """Return the cells of a table row; `\\|` is no border."""
    parts = re.split(r"(?<!\\)\|", line.strip().strip("|") if not line.rstrip()
                     .endswith("\\|") else line.strip()[1:])
    return tuple(part.strip() for part in parts)


def read_transcript(fence: Fence) -> Transcript:
    """Return the dialogue in a fence. Raises FormError with the line."""
    head: Dict[str, str] = {}
    lines = list(enumerate(fence.lines, fence.number + 1))
    while lines and lines[0][1].strip() != "---":
        number, line = lines.pop(0)
        name, colon, value = line.partition(":")
        if not colon or name not in TRANSCRIPT_KEYS:
            raise FormError(number, f"{name!r} is none of {', '.join(TRANSCRIPT_KEYS)}")
        head[name] = value[1:] if value.startswith(" ") else value
    if not lines:
        raise FormError(fence.number, "transcript without a line `---`")
    if not head.get("outcome"):
        raise FormError(fence.number, "transcript without `outcome:`")
    steps = read_steps(lines[1:])
    words = fence.info.split()[1:]
    if words not in ([], ["platform"]):
        raise FormError(fence.number, f"transcript {' '.join(words)}: not `platform`")
    return Transcript(words[0] if words else "both",
                      protocol_of(fence.section), head["outcome"].strip(),
                      head.get("event", "hello"), head.get("options", "").strip(),
                      head.get("status", "").strip(), head.get("result", ""),
                      tuple(steps), fence.number)


def read_steps(lines: Sequence[Tuple[int, str]]) -> List[Step]:
    """Return the messages after `---`. Raises FormError."""
    steps: List[Step] = []
    for number, line in lines:
        start, header = STEP.match(line), STEP_HEADER.match(line)
        if not line.strip():
            continue
        if start:
            steps.append(Step(start.group(1), start.group(2).strip(), (), ""))
        elif steps and line.startswith("  | "):
            steps[-1] = dataclasses.replace(steps[-1], body=steps[-1].body + line[4:])
        elif steps and header:
            pair = (header.group(1), header.group(2).strip())
            steps[-1] = dataclasses.replace(steps[-1],
                                            headers=steps[-1].headers + (pair,))
        else:
            raise FormError(number, f"not a message, header or body: {line!r}")
    return steps


def read_diagram(fence: Fence) -> Diagram:
    """Return the edges of a state diagram. Raises FormError."""
    edges = []
    for number, line in enumerate(fence.lines[1:], fence.number + 2):
        if not line.strip() or re.match(r"^\s*(%%|direction |note |state )", line):
            continue
        edge = EDGE.match(line)
        if not edge:
            raise FormError(number, f"not an edge `a --> b: call`: {line.strip()!r}")
        edges.append((edge.group(1), edge.group(2), (edge.group(3) or "").strip()))
    return Diagram(fence.section, tuple(edges), fence.number)


def read_keys(prose: Sequence[Line], letter: str) -> Dict[str, Tuple[int, str]]:
    """Return the first cell or bold word of each row or item of an appendix."""
    keys: Dict[str, Tuple[int, str]] = {}
    for line in prose:
        found = KEY_ROW.match(line.text)
        if appendix_of(line.section) != letter or not found:
            continue
        key = (found.group(1) or found.group(2)).strip().rstrip(":.")
        if not re.match(r"^[:-]+$", key):
            keys.setdefault(key, (line.number, line.text[found.end():].strip(" |:")))
    return keys


def parse(text: str) -> Spec:
    """Return the whole of a SPEC.md; what cannot be read is in `errors`."""
    prose, fences, errors = scan(text)
    tables, bad_rows = read_tables(prose)
    errors += bad_rows
    rules: List[Rule] = []
    sections = {line.number: line.section for line in prose}
    for number, item in items(prose):
        try:
            if RULE.match(item):
                rules.append(dataclasses.replace(read_rule(number, item),
                                                 section=sections[number]))
        except FormError as error:
            errors.append(error)
    transcripts: List[Transcript] = []
    diagrams: List[Diagram] = []
    for fence in fences:
        try:
            if fence.info.split(" ")[0] == "transcript":
                transcripts.append(read_transcript(fence))
            elif fence.info == "mermaid" and fence.lines[:1] \
                    and fence.lines[0].startswith("stateDiagram"):
                diagrams.append(read_diagram(fence))
        except FormError as error:
            errors.append(error)
    return Spec(tuple(rules), tuple(tables), tuple(transcripts), tuple(diagrams),
                {key: line for key, (line, _) in read_keys(prose, "A").items()},
                {key: line for key, (line, _) in read_keys(prose, "B").items()},
                {key: why for key, (_, why) in read_keys(prose, "C").items()
                 if RULE_ID.match(key)}, tuple(errors),
                "".join(re.findall(r"\AVersion (\S+)\.\s", text.partition("\n\n")[2])))


@functools.lru_cache(maxsize=None)
def load(path: pathlib.Path = SPEC_PATH) -> Spec:
    """Read and parse SPEC.md, once. Raises OSError if it is missing."""
    return parse(path.read_text(encoding="utf-8"))


# ---- form ----


def lint(spec: Spec) -> List[FormError]:
    """Return each breach of the form, in order of lines."""
    errors = list(spec.errors)
    seen: Dict[str, int] = {}
    for rule in spec.rules:
        if rule.id in seen:
            errors.append(FormError(rule.line,
                                    f"{rule.id} is also in line {seen[rule.id]}"))
        seen.setdefault(rule.id, rule.line)
        errors += [FormError(rule.line, f"{rule.id}: {mark} does not resolve")
                   for mark in rule.marks if not resolves(mark, spec)]
    for excluded in spec.exclusions:
        if excluded not in seen:
            errors.append(FormError(0, f"Appendix C excludes {excluded}: no such rule"))
    for table in spec.tables:
        if "rule" in table.header and appendix_of(table.section) == "":
            errors += [FormError(table.line, f"table cites {name}: no such rule")
                       for row in table.records() for name in row["rule"].split()
                       if name.strip(",;") and RULE_ID.match(name.strip(",;"))
                       and name.strip(",;") not in seen]
    return sorted(errors, key=lambda error: error.line)


def resolves(mark: str, spec: Spec) -> bool:
    """Tell whether a mark names a key of Appendix A, or a question of B."""
    kind, _, key = mark.partition(":")
    return key in (spec.questions if kind == "C" else spec.sources)


def cited(text: str) -> Iterator[str]:
    """Yield each word that has the form of a rule id."""
    for found in ID_IN_TEXT.finditer(text):
        yield found.group(1)


# ---- command line ----


def main(argv: Sequence[str]) -> int:
    """Run the command; exit status 1 if --lint finds something."""
    if any(word not in ("--json", "--lint") for word in argv):
        print(__doc__, file=sys.stderr)
        return 2
    spec = load()
    if "--json" in argv:
        data = {**dataclasses.asdict(spec), "errors": [str(e) for e in spec.errors]}
        json.dump(data, sys.stdout, ensure_ascii=False, indent=1)
        print()
        return 0
    breaches = lint(spec)
    if "--lint" in argv:
        print("\n".join(str(error) for error in breaches) or "SPEC.md has the form")
        return 1 if breaches else 0
    for name in ("rules", "tables", "transcripts", "diagrams", "sources", "questions",
                 "exclusions"):
        print(f"{name:12} {len(getattr(spec, name))}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
