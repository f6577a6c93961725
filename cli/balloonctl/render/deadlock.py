"""A circle of waiting tasks, as lockdep would report it: a column a task.

Each column says what its task holds and where it took it, what it wants and
who has that, and where it stands. More than three tasks are put below each
other, three a row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from balloonctl.render.units import duration

__all__ = ["render_deadlock", "render_tasks"]

_COLUMNS = 3
_BAD = "bold red"


def _heading(report: Mapping[str, Any]) -> Text:
    """Who waits for whom: the circle on one line."""
    tasks = report["tasks"]
    text = Text.assemble(
        ("✗ deadlock", _BAD),
        f": {len(tasks)} tasks wait for each other in a circle (design {report['design']}",
    )
    if report.get("detected_ns"):
        text.append(f", noticed after {duration(report['detected_ns'])}")
    text.append(")")
    for number, task in enumerate(tasks):
        text.append(f"\n  {task['task']}" if number == 0 else ", which", "bold" if number == 0 else "none")
        text.append(" waits for ")
        text.append(task["wants"], _BAD)
        text.append(" of ")
        text.append(task["owner"], "bold")
    return text


def _holds(task: Mapping[str, Any]) -> Text:
    """The locks that a task has, in the order in which it took them."""
    if not task["holds"]:
        return Text("holds nothing")
    wanted = Text("holds")
    for number, lock in enumerate(task["holds"], 1):
        wanted.append(f"\n #{number} ")
        wanted.append(lock["name"], "bold yellow")
        wanted.append(f"\n    at {lock['where']}")
    return wanted


def _wants(task: Mapping[str, Any]) -> Text:
    """The lock that it waits for."""
    return Text.assemble(
        "waits for\n    ",
        (task["wants"], _BAD),
        f"\n    at {task['wants_where']}",
        *(("\n    held by ", (task["owner"], "bold")) if task["owner"] else ()),
    )


def _stack(task: Mapping[str, Any]) -> RenderableType:
    """Where it stands, innermost first as the kernel prints it; a long frame goes on below itself."""
    frames = Table.grid(padding=(0, 1))
    frames.add_column(justify="right", no_wrap=True)
    frames.add_column(overflow="fold")
    for number, frame in enumerate(reversed(task["stack"])):
        frames.add_row(f" {number}", frame)
    return Group(Text("stack, innermost first"), frames)


def _row_of(tasks: Sequence[Mapping[str, Any]]) -> Table:
    """Up to three tasks beside each other."""
    table = Table(box=box.HORIZONTALS, show_header=True, header_style="bold", expand=True, show_lines=True)
    for task in tasks:
        table.add_column(f"{task['task']}: {task['role']}", overflow="fold", ratio=1, vertical="top")
    for part in (_holds, _wants, _stack):
        table.add_row(*(part(task) for task in tasks))
    return table


def render_tasks(tasks: Sequence[Mapping[str, Any]]) -> list[RenderableType]:
    """What each holds, waits for, and where it stands."""
    groups = zip_longest(*[iter(tasks)] * min(_COLUMNS, max(1, len(tasks))))
    return [_row_of([task for task in group if task is not None]) for group in groups]


def render_deadlock(report: Mapping[str, Any]) -> RenderableType:
    """The whole report."""
    return Group(_heading(report), *render_tasks(report["tasks"]))
