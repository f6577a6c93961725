"""Verdicts of the explorer, bugs with their timelines, and the matrix of all designs."""

from __future__ import annotations

import sys
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from shlex import join
from textwrap import wrap
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from balloonctl.render.live import confirmed, render_live
from balloonctl.render.timeline import BAD, drawn, length, seen
from balloonctl.render.units import duration, plural

__all__ = [
    "KINDS",
    "SIGNS",
    "design_name",
    "heading",
    "line",
    "render_explore",
    "render_matrix",
    "render_replay",
    "render_rest",
    "render_scenarios",
    "replay_command",
    "totals",
    "verdict",
]

#: Verdict -> its sign and how it looks.
SIGNS = {"PROVED": ("✓", "green"), "BUG": ("✗", BAD), "INCOMPLETE": ("?", "yellow")}

#: Kind -> its letter in the matrix, its name in a heading, what the letter means.
KINDS = {
    "deadlock": ("D", "DEADLOCK", "deadlock"),
    "error": ("B", "BUG", "BUG() or another error"),
    "invariant": ("I", "BROKEN INVARIANT", "a state breaks an invariant"),
    "at rest": ("E", "WRONG AT REST", "wrong at the end, when all are at rest"),
    "livelock": ("L", "LIVELOCK", "livelock"),
    "race": ("R", "RACE", "race on guarded data"),
}


#: Where the names of scenarios begin, behind the verdict; what lies between columns.
_NAME_AT, _GAP = max(len(f"{sign} {name}") for name, (sign, _) in SIGNS.items()) + 2, 2

#: Columns that there are to be for what is told of a scenario; fewest for names beside it, and where it begins else.
_TOLD, _NAMES, _BELOW = 40, 16, 4


def design_name(result: Mapping[str, Any]) -> str:
    """The design with the options that were set."""
    return " ".join([result["design"], *(f"{name}={value}" for name, value in result["set"].items())])


def _own(result: Mapping[str, Any], member: str) -> list[str]:
    """The option that `replay` needs for a design or a scenario of a file, where alone it is found."""
    return [f"--{member}", result[member]] if ":" in result[member] else []


def replay_command(result: Mapping[str, Any], string: str) -> str:
    """What shows a schedule again."""
    return join(["balloonctl", "replay", string, *_own(result, "design"), *_own(result, "scenario")])


class _Joined:
    """Parts with bars between them; a part that does not fit begins a line."""

    def __init__(self, parts: Iterable[Text]) -> None:
        self.parts = list(parts)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        line = Text()
        for part in self.parts:
            if line and len(line) + 3 + len(part) > options.max_width:
                yield line
                line = Text("  ")
            elif line:
                line.append(" | ", "dim")
            line.append_text(part)
        yield line


def _bug(result: Mapping[str, Any]) -> RenderableType:
    """A bug: its heading, its timeline, and in words what it has come to."""
    schedule = None if result["schedule"] is None else seen(result)
    name = KINDS[result["kind"]][1]
    heading = [Text.assemble((name, BAD), f"  {design_name(result)} / ", (result["scenario"], "bold"))]
    if schedule is not None:
        heading.append(Text(length(schedule)))
    heading.append(Text(plural(result["states"], "state")))
    if result["replay"]:
        heading.append(Text(replay_command(result, result["replay"])))
    parts: list[RenderableType] = ["", _Joined(heading)]
    if schedule is not None:
        parts += drawn(schedule)
    parts.append(Text.assemble((f" *** {name} *** ", BAD), result["what"]))
    if result["live"] is not None:
        parts.append(Text(" ") + confirmed(result["live"]))
    fewest = result["fewest_preemptions"]
    if fewest is not None:
        words = [f" With fewer preemptions: {length(fewest)}", replay_command(result, fewest["replay"])]
        parts.append(_Joined(map(Text, words)))
    return Group(*parts)


def _sameness(result: Mapping[str, Any]) -> Hashable:
    """Equal for bugs that are the same one, as far as can be told.

    That is what is wrong; of an error whoever dies of it; of a livelock also the lines between which it goes round, since
    all say the same of themselves.
    """
    what, schedule = result["what"], result["schedule"]
    if result["kind"] == "error":
        what = what.partition(": ")[2] or what
    circle: frozenset[str] = frozenset()
    if schedule is not None and schedule["loop"] is not None:
        circle = frozenset(step["place"] for step in schedule["steps"] if step["step"] >= schedule["loop"])
    return design_name(result), result["kind"], what, circle


def _steps(result: Mapping[str, Any]) -> int:
    """How long the shortest schedule is; one that nobody has is longest."""
    return sys.maxsize if result["schedule"] is None else int(result["schedule"]["length"])


def _others(results: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    """Further scenarios with a bug that has been drawn, a line each."""
    command = join(["balloonctl", "replay", "STRING", *_own(results[0], "design")])
    yield Text(f" The same in {plural(len(results), 'more scenario')}; {command} shows one:")
    rows = []
    for result in results:
        schedule, string = result["schedule"], result["replay"]
        steps = "" if schedule is None else plural(schedule["length"], "step")
        words = "" if string is None else " ".join([string, join(_own(result, "scenario"))]).rstrip()
        rows.append((result["scenario"], steps, words))
    names, lengths = (max(len(row[column]) for row in rows) for column in (0, 1))
    for result, (name, steps, words) in zip(results, rows, strict=True):
        yield Text(f"  {name:<{names}}  {steps:>{lengths}}  {words}".rstrip())
        live = result["live"]
        if live is not None and live["confirmed"] < live["times"]:
            yield Text("    ") + confirmed(live)


def _bugs(results: Iterable[Mapping[str, Any]]) -> Iterator[RenderableType]:
    """Each bug once, where its schedule is shortest, and below it where else it is."""
    found: dict[Hashable, list[Mapping[str, Any]]] = {}
    for result in results:
        if result["verdict"] == "BUG":
            found.setdefault(_sameness(result), []).append(result)
    for same in found.values():
        drawn_one = min(same, key=_steps)
        yield _bug(drawn_one)
        others = [result for result in same if result is not drawn_one]
        if others:
            yield from _others(others)


# ---- documents --------------------------------------------------------------


def verdict(result: Mapping[str, Any]) -> Text:
    """What one scenario has come to, on one line if it fits."""
    match result["verdict"]:
        case "PROVED":
            return Text(", ".join([plural(result["states"], "state"), *result["bounds"]]))
        case "BUG":
            name = KINDS[result["kind"]][1]
            schedule = result["schedule"]
            after = (
                f": {result['what']}" if schedule is None else f" after {plural(schedule['length'], 'step')}"
            )
            return Text(f"{'BUG()' if name == 'BUG' else name.lower()}{after}")
        case _:
            guess = result["estimate"]
            size = f", perhaps {plural(guess, 'state')} in all" if guess else ""
            clean = plural(result["clean_steps"], "step")
            return Text(
                f"{result['why']} ({plural(result['states'], 'state')} seen{size}; "
                f"all schedules of up to {clean} are clean)"
            )


def totals(results: Sequence[Mapping[str, Any]], seconds: float) -> Text:
    """How many of each verdict."""
    numbers = {name: sum(result["verdict"] == name for result in results) for name in SIGNS}
    text = Text()
    for name, number in numbers.items():
        if number:
            sign, style = SIGNS[name]
            text.append(", " if text else "")
            text.append(f"{sign} {number} {name}", style)
    states = sum(result["states"] for result in results)
    return text.append(f"  ({plural(states, 'state')}, {duration(seconds * 1e9)})")


def heading(result: Mapping[str, Any]) -> Text:
    """What the lines below are about."""
    return Text(f"design {design_name(result)}")


class _Line:
    """One scenario's verdict, on a line if it fits.

    What is told of it stands in a column of its own, and a name that would reach into that has a line to itself. Where the
    console is too narrow for the column, it goes on below the name.
    """

    def __init__(self, result: Mapping[str, Any], width: int) -> None:
        self._result = result
        self._width = width

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        sign, style = SIGNS[self._result["verdict"]]
        line = Text(f"{sign} {self._result['verdict']}", style)
        line = Text.assemble(line, " " * (_NAME_AT - len(line)), (self._result["scenario"], "bold"))
        told = verdict(self._result)
        names = min(self._width, options.max_width - _NAME_AT - _GAP - _TOLD)
        indent = _NAME_AT + names + _GAP if names >= min(self._width, _NAMES) else _BELOW
        behind = len(line) + _GAP
        beside = behind <= indent or behind + len(told) <= options.max_width
        if not beside:
            yield line
            line = Text()
        for part in told.wrap(console, max(1, options.max_width - indent), overflow="fold"):
            part.rstrip()
            yield Text.assemble(line, " " * max(_GAP, indent - len(line)), part)
            line = Text()


def line(result: Mapping[str, Any], width: int) -> _Line:
    """One scenario's verdict; `width` is that of the longest name among them."""
    return _Line(result, width)


def render_rest(document: Mapping[str, Any]) -> RenderableType:
    """What follows the lines: a timeline of each bug, then how many of each verdict."""
    results = document["results"]
    return Group(*_bugs(results), "", totals(results, document["seconds"]))


def render_explore(document: Mapping[str, Any]) -> RenderableType:
    """A line a scenario, the timelines of the bugs below, then how many of each."""
    results = document["results"]
    if not results:
        return Text("no scenario fits this design")
    width = max(len(result["scenario"]) for result in results)
    lines = [line(result, width) for result in results]
    return Group(heading(results[0]), *lines, render_rest(document))


def render_replay(document: Mapping[str, Any]) -> RenderableType:
    """One schedule again, with what is wrong at its end, and what became of it on real threads."""
    schedule = seen(document)
    heading = [
        Text.assemble(("REPLAY", "bold"), f"  {design_name(document)} / ", (document["scenario"], "bold")),
        Text(plural(schedule["length"], "step")),
        Text(document["replay"]),
    ]
    parts: list[RenderableType] = [_Joined(heading), *drawn(schedule)]
    if document["kind"] is not None:
        name = KINDS[document["kind"]][1]
        parts.append(Text.assemble((f" *** {name} *** ", BAD), document["what"]))
    if document["live"] is not None:
        parts.append(render_live(document["live"]))
    return Group(*parts)


def _matrix_cell(result: Mapping[str, Any] | None) -> Text:
    """A tick, the letter of the bug with the length of its schedule, or a question mark."""
    if result is None:
        return Text("-", "dim")
    sign, style = SIGNS[result["verdict"]]
    if result["verdict"] != "BUG":
        return Text(sign, style)
    schedule = result["schedule"]
    return Text(
        f"{KINDS[result['kind']][0]}{'' if schedule is None else ' ' + str(schedule['length'])}", style
    )


class _Matrix:
    """A row a scenario, a column a design; names are broken at hyphens where the console is narrow."""

    def __init__(self, results: Sequence[Mapping[str, Any]]) -> None:
        self.designs = list(dict.fromkeys(result["design"] for result in results))
        self.scenarios = list(dict.fromkeys(result["scenario"] for result in results))
        self.cells = {(result["scenario"], result["design"]): result for result in results}

    @property
    def full(self) -> bool:
        """Whether every scenario was run with every design."""
        return len(self.cells) == len(self.designs) * len(self.scenarios)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        headings = [design.replace("-", "-\n") for design in self.designs]
        taken = sum(max(3, *map(len, heading.split("\n"))) + 1 for heading in headings)
        room = max(12, options.max_width - taken - 2)
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0, header_style="bold")
        table.add_column("scenario", no_wrap=True, vertical="bottom")
        for heading in headings:
            table.add_column(heading, justify="center", no_wrap=True, vertical="bottom")
        for scenario in self.scenarios:
            name = "\n  ".join(wrap(scenario, room - 2 if len(scenario) > room else room))
            cells = (_matrix_cell(self.cells.get((scenario, design))) for design in self.designs)
            table.add_row(name, *cells)
        yield table


def render_matrix(document: Mapping[str, Any]) -> RenderableType:
    """The matrix, what its signs mean, and how many of each verdict there are."""
    results = document["results"]
    matrix = _Matrix(results)
    kinds = {result["kind"] for result in results} - {None}
    legend = ["✓ proved"]
    legend += [f"{letter} {meaning}" for kind, (letter, _, meaning) in KINDS.items() if kind in kinds]
    if kinds:
        legend.append("number: steps of the shortest schedule")
    if any(result["verdict"] == "INCOMPLETE" for result in results):
        legend.append("? incomplete, no verdict")
    if not matrix.full:
        unknown = "not explored, or " if document["interrupted"] else ""
        legend.append(f"- {unknown}means nothing for this design")
    numbers = totals(results, document["seconds"])
    return Group(matrix, "", _Joined(map(Text, legend)), numbers)


_AT_ONCE = (
    "one of fill, leak, teardown; of oom, oom-nofs, oom-fs-lock, oom-nofs-fs-lock; compaction; user; and for designs "
    "with a shrinker kswapd or shrinkers"
)


def _property_cell(cell: Mapping[str, Any]) -> Text:
    """A tick, the length of the shortest schedule, a question mark, or a dash."""
    if cell["verdict"] is None:
        return Text("-", "dim")
    sign, style = SIGNS[cell["verdict"]]
    return Text(str(cell["length"]) if cell["verdict"] == "BUG" else sign, style)


def _properties(names: Sequence[str], rows: Sequence[Mapping[str, Any]], headings: Sequence[str]) -> Table:
    """A row a property, a column a design; last how deep its stacks get."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=0, header_style="bold")
    table.add_column("property", no_wrap=True, vertical="bottom")
    for heading in headings:
        table.add_column(heading, justify="center", no_wrap=True, vertical="bottom")
    for number, name in enumerate(names):
        table.add_row(name, *(_property_cell(row["cells"][number]) for row in rows))
    table.add_row(
        Text("stack used, KiB", "dim"), *(Text(f"{row['stack_bytes'] / 1024:.3g}", "dim") for row in rows)
    )
    return table


def render_properties(document: Mapping[str, Any]) -> RenderableType:
    """Designs by properties; the variants of designs in a table of their own."""
    rows, names = document["rows"], document["properties"]
    plain = [row for row in rows if not row["set"]]
    variants = [row for row in rows if row["set"]]
    parts: list[RenderableType] = [
        _properties(names, plain, [row["design"].replace("-", "-\n") for row in plain])
    ]
    if variants:
        headings = [
            "\n".join([row["design"], *(f"{name}={value}" for name, value in row["set"].items())])
            for row in variants
        ]
        parts += ["", _properties(names, variants, headings)]
    verdicts = {cell["verdict"] for row in rows for cell in row["cells"]}
    legend = [
        "✓ proved, up to where the design has failed otherwise",
        "number: steps of the shortest schedule",
    ]
    if "INCOMPLETE" in verdicts:
        legend.append("? incomplete, no verdict")
    if None in verdicts:
        legend.append("- no scenario can show it")
    broken = [cell for row in rows for cell in row["cells"] if cell["verdict"] == "BUG"]
    if broken:
        legend.append("--json names the scenario and the replay string of each")
    states = sum(row["states"] for row in rows)
    counted = Text(f"{plural(states, 'state')}, {duration(document['seconds'] * 1e9)}", "dim")
    return Group(*parts, "", _Joined(map(Text, legend)), counted)


def render_scenarios(document: Mapping[str, Any]) -> RenderableType:
    """A row a scenario."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("scenario", no_wrap=True)
    table.add_column("actors", no_wrap=True)
    table.add_column("what happens", overflow="fold")
    for scenario in document["scenarios"]:
        name = Text(scenario["name"], "bold")
        late = scenario["thorough"]
        table.add_row(name, " ".join(scenario["actors"]), f"{scenario['summary']}{' *' if late else ''}")
    notes = [f"2 to 4 actors at once, by name: --scenario fill+oom+compaction; {_AT_ONCE}"]
    if any(scenario["thorough"] for scenario in document["scenarios"]):
        notes.insert(0, "* takes long: explored only if it is named, or with --thorough")
    return Group(table, "", *(Text(note) for note in notes))
