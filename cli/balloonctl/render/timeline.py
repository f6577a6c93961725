"""The timeline of a schedule: a row a step, a column an actor, time running down.

Left of an actor's steps stand bars, one for each lock that it holds: ┌ where it is
taken, └ where it is given back. Where columns would be too narrow, the actors
share one, and each step begins with its actor's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.text import Text

from balloonctl.render.units import plural

__all__ = ["BAD", "Row", "drawn", "length", "rows", "seen", "summary"]

BAD = "bold red"
_COLOURS = ("cyan", "magenta", "green", "blue")

#: An actor's column is at least so wide; with less all share one.
_NARROWEST = 22
_BETWEEN = 2
#: Two actors have columns of their own in a terminal so wide, even if many steps take two lines.
_USUAL = 80
#: A value in `name 3 -> 4` that is longer is cut.
_VALUE = 20


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(1, width - 1)] + "…"


def _pieces(text: str, width: int) -> list[str]:
    """A text in lines that fit; a word that does not fit is broken."""
    return wrap(text, max(4, width), subsequent_indent="  ", break_on_hyphens=False) or [""]


@dataclass(frozen=True, slots=True)
class Row:
    """What one line of a timeline needs of an actor's column."""

    label: str
    actor: int | None
    text: str
    extra: str = ""
    """A change, or who is waited for."""
    place: str = ""
    bars: tuple[str, ...] = ()
    """The gutter of each actor on the row's first line."""
    below: tuple[str, ...] = ()
    """And on its further lines."""
    bad: bool = False

    @property
    def words(self) -> str:
        """All that the row says, on one line."""
        return f"{self.text}  {self.extra}" if self.extra and self.text else self.text or self.extra


def _gutters(before: list[list[str]], held: Sequence[Sequence[str]]) -> tuple[list[str], list[str]]:
    """The bars of a row and of what is below it; `before` has a place a lock, and is moved on."""
    firsts, belows = [], []
    for slots, names in zip(before, held, strict=True):
        first = ""
        for number, name in enumerate(slots):
            if name and name not in names:
                slots[number] = ""
                first += "└"
            else:
                first += "│" if name else " "
        for name in names:
            if name in slots:
                continue
            at = slots.index("") if "" in slots else len(slots)
            if at == len(slots):
                slots.append("")
                first += " "
            slots[at] = name
            first = f"{first[:at]}┌{first[at + 1 :]}"
        firsts.append(first.rstrip())
        belows.append("".join("│" if name else " " for name in slots).rstrip())
    return firsts, belows


def _plain(text: str) -> str:
    """A value without the dress of enumerations: <Place.FREE: 0> is FREE."""
    return re.sub(r"<\w+\.(\w+): [^<>]*>", r"\1", text)


def _apart(before: str, after: str) -> tuple[str, str]:
    """Two long values, begun where they come apart."""
    if max(len(before), len(after)) > _VALUE:
        words, others = (re.split(r"(?<=[\s,(])", value) for value in (before, after))
        same = 0
        while same < min(len(words), len(others)) and words[same] == others[same]:
            same += 1
        if same:
            before, after = ("…" + "".join(value[same:]) for value in (words, others))
    return _cut(before, _VALUE), _cut(after, _VALUE)


def _places(value: str) -> dict[str, str]:
    """Where each page is, from "0 listed (host), 1 free"; empty if the value is no such thing."""
    found = [re.fullmatch(r"(\d+) ([a-z_]+(?: \(host\))?)", words) for words in value.split(", ")]
    return {page[1]: page[2] for page in found if page} if all(found) else {}


def _change(change: Mapping[str, Any]) -> str:
    """What a step changed; of all pages those that moved, one by one."""
    before, after = _plain(change["before"]), _plain(change["after"])
    was, now = _places(before), _places(after)
    moved = [
        f"page {page}: {was[page]} -> {now[page]}" for page in now if was.get(page, now[page]) != now[page]
    ]
    if moved:
        return ", ".join(moved)
    before, after = _apart(before, after)
    return f"{change['name']} {before} -> {after}"


def _step_words(step: Mapping[str, Any]) -> tuple[str, str]:
    """A step's operation, and what it changed; for plain words of memory the change says both."""
    changes = step["changes"]
    extra = ", ".join(map(_change, changes))
    plain = len(changes) == 1 and re.fullmatch(r"-?\d+", changes[0]["after"])
    if plain and re.match(rf"(write|add)\({re.escape(changes[0]['name'])}\b", step["operation"]):
        return extra, ""
    return step["operation"], extra


def seen(result: Mapping[str, Any]) -> dict[str, Any]:
    """The schedule without actors that did nothing and do not matter, such as an idle host."""
    schedule = result["schedule"]
    own = [
        index
        for index in range(len(schedule["actors"]))
        if any(step["actor"] == index for step in schedule["steps"])
        or any(_stuck(result, end) for end in schedule["ends"] if end["actor"] == index)
    ] or list(range(len(schedule["actors"])))
    number = {index: at for at, index in enumerate(own)} | {None: None}
    return {
        **schedule,
        "actors": [schedule["actors"][index] for index in own],
        "steps": [
            {**step, "actor": number[step["actor"]], "held": [step["held"][index] for index in own]}
            for step in schedule["steps"]
        ],
        "ends": [
            {**end, "actor": number[end["actor"]], "stuck": _stuck(result, end)}
            for end in schedule["ends"]
            if end["actor"] in number
        ],
    }


def _stuck(result: Mapping[str, Any], end: Mapping[str, Any]) -> bool:
    """Whether an actor waits for ever or has died; one that has nothing to do waits, too, and may."""
    fate = end["fate"]
    name = result["schedule"]["actors"][end["actor"]]["name"]
    if fate == "waits":
        return re.search(rf"\b{re.escape(name)} waits\b", result["what"]) is not None
    return fate not in {"finished", "can go on"}


def rows(schedule: Mapping[str, Any]) -> list[Row]:
    """The rows of a schedule: its steps, then who waits for ever or has died."""
    actors = len(schedule["actors"])
    slots: list[list[str]] = [[] for _ in range(actors)]
    nothing = ("",) * actors
    rows: list[Row] = []
    last = 0
    below: tuple[str, ...] = nothing
    for step in schedule["steps"]:
        if schedule["loop"] is not None and step["step"] == schedule["loop"] != last:
            rows.append(Row("", None, "from here on, again and again:", bars=below, below=below))
        firsts, belows = _gutters(slots, step["held"])
        below = tuple(belows)
        text, extra = _step_words(step)
        label = str(step["step"]) if step["step"] != last else ""
        last = step["step"]
        rows.append(Row(label, step["actor"], text, extra, step["place"], tuple(firsts), below))
    if schedule["loop"] is not None:
        rows.append(Row("", None, f"and again from step {schedule['loop']}", bars=below, below=below))
        return rows
    for end in schedule["ends"]:
        fate = end["fate"]
        if not end["stuck"]:
            continue
        text, extra = (end["wants"], fate) if end["wants"] else (fate, "")
        rows.append(Row("X", end["actor"], text, extra, end["place"], below, below, bad=True))
    return rows


def _widths(
    rows: Sequence[Row], actors: Sequence[Mapping[str, Any]], gutters: list[int], room: int
) -> list[int]:
    """How wide each actor's column is: as wide as it would like, or a fair share of the room."""
    likes = []
    for index, actor in enumerate(actors):
        own = [row for row in rows if row.actor == index]
        place = max((len(row.place) for row in own), default=0)
        words = max((len(row.words) for row in own), default=0)
        heading = len(f"{actor['name']}  {actor['role']}")
        likes.append(max(gutters[index] + words + (place + 2 if place else 0), heading))
    room -= _BETWEEN * (len(likes) - 1)
    widths = [0] * len(likes)
    left = sorted(range(len(likes)), key=lambda index: likes[index])
    while left:
        share = room // len(left)
        index = left.pop(0)
        widths[index] = min(likes[index], share)
        room -= widths[index]
    return widths


def _cell(row: Row, width: int) -> list[tuple[str, str]]:
    """A row's words in its actor's column: lines of (words, place at the right)."""
    inner = width - (len(row.place) + 2 if row.place else 0)
    if len(row.words) <= inner:
        return [(row.words, row.place)]
    lines = _pieces(row.text, width)
    if row.text and row.extra:
        lines += [f"  {piece}" for piece in _pieces(row.extra, width - 2)]
    elif row.extra:
        lines = _pieces(row.extra, width)
    if not row.place:
        return [(line, "") for line in lines]
    for number, line in enumerate(lines):
        if len(line) <= inner:
            return [(text, row.place if at == number else "") for at, text in enumerate(lines)]
    return [*((line, "") for line in lines), ("", _cut(row.place, width))]


def _place_at(words: str, place: str, width: int, place_width: int) -> int:
    """Where a place begins: below those of other rows if it can, else as far right as it goes."""
    if not place:
        return len(words)
    aligned = width - place_width
    return aligned if len(words) + 2 <= aligned else max(len(words), width - len(place))


class _Timeline:
    """The rows of a schedule, as wide as the console."""

    def __init__(self, schedule: Mapping[str, Any]) -> None:
        self.actors: Sequence[Mapping[str, Any]] = schedule["actors"]
        self.rows = rows(schedule)
        self.number = max((len(row.label) for row in self.rows), default=1) + 1
        widths = [
            max((len(bars) for row in self.rows for bars in (row.bars[actor], row.below[actor])), default=0)
            for actor in range(len(self.actors))
        ]
        self.gutters = [width + 1 if width else 0 for width in widths]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        room = options.max_width - self.number - 2
        widths = _widths(self.rows, self.actors, self.gutters, room)
        shared = len(widths) > 1 and any(
            width < _NARROWEST and width < like
            for width, like in zip(widths, _widths(self.rows, self.actors, self.gutters, 10_000), strict=True)
        )
        lines = list(self._shared(room))
        if not shared:
            columns = list(self._columns(widths))
            if len(columns) <= 1.5 * len(lines) or (len(widths) == 2 and options.max_width >= _USUAL):
                lines = columns
        for line in lines:
            line.rstrip()
            line.no_wrap = True
            line.truncate(options.max_width, overflow="ellipsis")
            yield line

    @staticmethod
    def _style(actor: int) -> str:
        return _COLOURS[actor % len(_COLOURS)]

    def _label(self, text: str, *, bad: bool) -> Text:
        return Text(f"{text:>{self.number}}  ", BAD if bad else "dim")

    def _columns(self, widths: list[int]) -> Iterator[Text]:
        """A column an actor."""
        roles = [
            wrap(about["role"], max(4, width - len(about["name"]) - 2), break_on_hyphens=False) or [""]
            for about, width in zip(self.actors, widths, strict=True)
        ]
        for number in range(max(map(len, roles))):
            heading = self._label("" if number else "#", bad=False)
            for actor, (role, width) in enumerate(zip(roles, widths, strict=True)):
                name = self.actors[actor]["name"]
                words = (
                    (name if not number else " " * len(name))
                    + "  "
                    + (role[number] if number < len(role) else "")
                )
                heading.append(words.ljust(width + _BETWEEN), f"bold {self._style(actor)}")
            yield heading
        places = [
            max((len(row.place) for row in self.rows if row.actor == actor), default=0)
            for actor in range(len(widths))
        ]
        for row in self.rows:
            if row.actor is None:
                cells = [(f"── {row.text} ──", "")]
            else:
                at = row.actor
                cells = _cell(row, widths[at] - self.gutters[at])
            for number, (words, place) in enumerate(cells):
                line = self._label(row.label if number == 0 else "", bad=row.bad)
                bars = row.bars if number == 0 else row.below
                for actor, width in enumerate(widths):
                    inner = width - self.gutters[actor]
                    if row.actor is None and actor == 0 and not any(bars):
                        line.append(words, "dim")
                        break
                    if row.actor is None and actor == 0:
                        line.append(bars[0].ljust(self.gutters[0]), self._style(0))
                        line.append(_cut(words, inner).ljust(inner + _BETWEEN), "dim")
                        continue
                    line.append(bars[actor].ljust(self.gutters[actor]), self._style(actor))
                    if actor != row.actor:
                        line.append(" " * (inner + _BETWEEN))
                        continue
                    self._words(line, row, words)
                    column = _place_at(words, place, inner, places[actor])
                    line.append(" " * (column - len(words)))
                    line.append(place, "dim")
                    line.append(" " * max(0, inner - column - len(place)) + " " * _BETWEEN)
                yield line

    def _shared(self, room: int) -> Iterator[Text]:
        """One column for all, with the actor's name in front."""
        for actor, about in enumerate(self.actors):
            line = self._label("#" if actor == 0 else "", bad=False)
            line.append(f"{about['name']}  {about['role']}", f"bold {self._style(actor)}")
            yield line
        names = max(len(actor["name"]) for actor in self.actors)
        width = room - names - 2 - sum(self.gutters)
        place_width = max((len(row.place) for row in self.rows), default=0)
        column = min(
            width,
            max((len(row.words) for row in self.rows if row.actor is not None), default=0) + place_width + 2,
        )
        for row in self.rows:
            cells = [(f"── {row.text} ──", "")] if row.actor is None else _cell(row, column)
            for number, (words, place) in enumerate(cells):
                line = self._label(row.label if number == 0 else "", bad=row.bad)
                for actor, bars in enumerate(row.bars if number == 0 else row.below):
                    line.append(bars.ljust(self.gutters[actor]), self._style(actor))
                name = "" if row.actor is None or number else self.actors[row.actor]["name"]
                line.append(name.ljust(names + 2), f"bold {self._style(row.actor or 0)}")
                self._words(line, row, words)
                line.append(" " * (_place_at(words, place, column, place_width) - len(words)))
                line.append(place, "dim")
                yield line

    @staticmethod
    def _words(line: Text, row: Row, words: str) -> None:
        """The words of a step; a change stands out."""
        if row.bad:
            line.append(words, BAD)
        elif row.extra and row.text and words.endswith(row.extra):
            line.append(words[: -len(row.extra)])
            line.append(row.extra, "yellow")
        elif words and words.strip() in row.extra:
            line.append(words, "yellow")
        else:
            line.append(
                words,
                "dim" if row.actor is None else "yellow" if " -> " in words and "(" not in words else "",
            )


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def summary(schedule: Mapping[str, Any]) -> str:
    """Who holds and wants what at the end: a sentence an actor."""
    sentences = []
    for end in schedule["ends"]:
        name = schedule["actors"][end["actor"]]["name"]
        parts = []
        if end["holds"]:
            parts.append(f"holds {_and(end['holds'])}")
        lock = re.fullmatch(r"lock\((.+)\)", end["wants"])
        if not end["stuck"] and not end["holds"]:
            continue
        if end["fate"] == "finished":
            parts.append("has finished")
        elif end["fate"] == "can go on":
            parts.append("can go on")
        elif not end["wants"]:
            pass  # dead: what it died of stands in its column, and is the verdict
        else:
            parts.append(f"wants {lock[1]}" if lock else f"waits in {end['wants']}")
        if parts:
            sentences.append(f"{name} {', '.join(parts)}")
    return ";  ".join(sentences)


def length(schedule: Mapping[str, Any]) -> str:
    """How long a schedule is, in which sense it is minimal."""
    words = f"{plural(schedule['length'], 'step')}, {plural(schedule['preemptions'], 'preemption')}"
    return f"{words} (minimal)" if schedule["minimal"] else words


def drawn(schedule: Mapping[str, Any]) -> list[RenderableType]:
    """The timeline, and in words what it has come to."""
    words = summary(schedule)
    return [_Timeline(schedule), *([Text(f" {words}")] if words else [])]
