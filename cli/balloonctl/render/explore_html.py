"""What `explore --html` writes: verdicts, the matrix, and a timeline a bug, on one page.

The timelines are those of the terminal (`balloonctl.render.timeline`), step for step; only the bars of held locks
are drawn instead of set in letters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from balloonctl.render.explore import KINDS, SIGNS, design_name, replay_command, totals, verdict
from balloonctl.render.live import confirmed
from balloonctl.render.page import page, table
from balloonctl.render.timeline import length, rows, seen, summary

__all__ = ["explore_page"]

_CLASSES = {"PROVED": "good", "BUG": "bad", "INCOMPLETE": "open"}

#: Distance of two lock bars, in pixels.
_BAR = 9

_STYLE = """\
.steps { line-height: 1.45; } .steps th, .steps td { border: 0; padding: 1px 1.5rem 1px 0; white-space: pre-wrap; }
.steps td.step { text-align: right; color: var(--dim); padding-right: 1rem; }
.steps td.place { color: var(--dim); white-space: nowrap; } .steps tr.stuck td { color: var(--bad); }
.steps .change { color: var(--mark); } .steps .loop td { color: var(--dim); }
.verdict { font-weight: bold; } details { margin: 1rem 0; }
"""


def _bars(bars: str, colour: str) -> str:
    """The locks that an actor holds, as lines behind its cell: ┌ begins in the middle, └ ends there."""
    images, places, sizes = [], [], []
    for slot, sign in enumerate(bars):
        if sign == " ":
            continue
        images.append(f"linear-gradient({colour},{colour})")
        edge = {"┌": "bottom", "└": "top"}.get(sign, "top")
        places.append(f"{slot * _BAR + 2}px {edge}")
        sizes.append(f"2px {'100%' if sign == '│' else '50%'}")
    if not images:
        return ""
    return (
        f"background-image:{','.join(images)};background-position:{','.join(places)};"
        f"background-size:{','.join(sizes)};background-repeat:no-repeat;"
    )


def _timeline(schedule: Mapping[str, Any]) -> str:
    """A table: a row a step, a column an actor."""
    steps = rows(schedule)
    actors = schedule["actors"]
    gutters = [max((len(row.bars[actor]) for row in steps), default=0) for actor in range(len(actors))]
    colours = [f"var(--a{actor % 4})" for actor in range(len(actors))]
    heads = "".join(
        f'<th style="color:{colour};padding-left:{gutter * _BAR + 6}px">{escape(actor["name"])}  '
        f"{escape(actor['role'])}</th>"
        for actor, colour, gutter in zip(actors, colours, gutters, strict=True)
    )
    lines = [f"<tr><th>#</th>{heads}<th></th></tr>"]
    for row in steps:
        cells = []
        for actor, (gutter, colour) in enumerate(zip(gutters, colours, strict=True)):
            style = f"padding-left:{gutter * _BAR + 6}px;{_bars(row.bars[actor], colour)}"
            words = ""
            if row.actor == actor:
                extra = f'<span class="change">{escape(row.extra)}</span>' if row.extra else ""
                words = "  ".join(filter(None, [escape(row.text), extra]))
            elif row.actor is None and actor == 0:
                words = escape(row.text)
            cells.append(f'<td style="{style}">{words}</td>')
        kind = ' class="stuck"' if row.bad else ' class="loop"' if row.actor is None else ""
        lines.append(
            f'<tr{kind}><td class="step">{escape(row.label)}</td>{"".join(cells)}'
            f'<td class="place">{escape(row.place)}</td></tr>'
        )
    return table(lines, "steps")


def _anchor(result: Mapping[str, Any]) -> str:
    return escape(f"{design_name(result)} {result['scenario']}".replace(" ", "."), quote=True)


def _replay(string: str, result: Mapping[str, Any]) -> str:
    return f"<p><code>{escape(replay_command(result, string))}</code></p>"


def _bug(result: Mapping[str, Any]) -> str:
    """A bug: what it is, its timeline, and in words what it has come to."""
    name = KINDS[result["kind"]][1]
    where = escape(f"{design_name(result)} / {result['scenario']}")
    parts = [
        f'<h2 id="{_anchor(result)}"><span class="bad">{escape(name)}</span> {where}</h2>',
        f"<p>{escape(result['what'])}</p>",
    ]
    if result["schedule"] is not None:
        schedule = seen(result)
        parts.append(f'<p class="dim">{escape(length(schedule))}, {result["states"]:,} states</p>')
        parts.append(_timeline(schedule))
        said = summary(schedule)
        if said:
            parts.append(f"<p>{escape(said)}</p>")
    if result["live"] is not None:
        parts.append(f"<p>{escape(confirmed(result['live']).plain)}</p>")
    if result["replay"]:
        parts.append(_replay(result["replay"], result))
    fewest = result["fewest_preemptions"]
    if fewest is not None:
        inside = _timeline(seen({**result, "schedule": fewest})) + _replay(fewest["replay"], result)
        parts.append(
            f"<details><summary>With fewer preemptions: {escape(length(fewest))}</summary>{inside}</details>"
        )
    return "\n".join(parts)


def _verdicts(results: Sequence[Mapping[str, Any]]) -> str:
    """A row a scenario."""
    lines = []
    for result in results:
        kind = _CLASSES[result["verdict"]]
        name = escape(result["scenario"])
        if result["verdict"] == "BUG":
            name = f'<a href="#{_anchor(result)}">{name}</a>'
        lines.append(
            f'<tr><td class="verdict {kind}">{SIGNS[result["verdict"]][0]} {result["verdict"]}</td><td>{name}</td>'
            f'<td>{escape(verdict(result).plain)}</td><td class="number dim">{result["seconds"] * 1e3:,.0f} ms</td></tr>'
        )
    return table(lines)


def explore_page(document: Mapping[str, Any], version: str) -> str:
    """The page of a `balloonctl/explore/1` document.

    Args:
        document: what `explore --json` prints.
        version: the program that made it, for the last line.
    """
    by_design: dict[str, list[Mapping[str, Any]]] = {}
    for result in document["results"]:
        by_design.setdefault(design_name(result), []).append(result)
    parts: list[str] = [f"<p>{escape(totals(document['results'], document['seconds']).plain)}</p>"]
    for design, results in by_design.items():
        parts += [f"<h2>design {escape(design)}</h2>", _verdicts(results)]
    parts += [_bug(result) for result in document["results"] if result["verdict"] == "BUG"]
    title = f"balloonctl explore: {next(iter(by_design))}" if len(by_design) == 1 else "balloonctl explore"
    return page(title, "\n".join(parts), style=_STYLE, foot=escape(version))
