"""start, stop, ps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.text import Text

from balloonctl.render.units import duration, size

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table

__all__ = ["render_ps", "render_serve", "render_start", "render_stop", "state_text"]

_STATES = {
    "running": "green",
    "paused": "yellow",
    "stopping": "yellow",
    "stalled": "bold red",
    "deadlocked": "bold red",
    "broken": "bold red",
    "bug": "bold red",
    "dead": "red",
    "silent": "red",
    "starting": "yellow",
    "waiting": "yellow",
}


def state_text(state: str) -> Text:
    """A machine's state; trouble carries a sign as well as a colour."""
    return Text(f"✗ {state}" if "red" in _STATES.get(state, "") else state, _STATES.get(state, ""))


def render_start(document: Mapping[str, Any]) -> Text:
    """The machine that now runs."""
    which = (
        "the machine of this session" if document["private"] else f"{document['machine']} in the background"
    )
    return Text(
        f"started {which}: {size(document['ram_bytes'])} of memory, "
        f"{size(document['touch_bytes'])} touched, design {document['design']}"
    )


def render_serve(document: Mapping[str, Any]) -> Text:
    """The device that now waits for a guest."""
    return Text(
        f"serving {document['machine']} in the background at {document['socket']}: "
        f"{' '.join(document['offered'])}"
    )


def render_stop(document: Mapping[str, Any]) -> Text:
    """The machines that no longer run."""
    return Text(
        "stopped " + ", ".join(document["stopped"]) if document["stopped"] else "no machine was running"
    )


class _Machines:
    """A row a machine; where the rows do not fit, a few short lines a machine."""

    def __init__(self, machines: Sequence[Mapping[str, Any]]) -> None:
        self._machines = machines

    def _table(self) -> Table:
        """The rows."""
        from rich import box
        from rich.table import Table

        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
        for name in ("name", "state", "pid", "design"):
            table.add_column(name, no_wrap=True)
        for name in ("target", "actual", "memory", "up"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in self._machines:
            pid = row.get("pid")
            table.add_row(
                row["name"],
                state_text(row.get("state") or "-"),
                "-" if pid is None else str(pid),
                row.get("design") or "-",
                size(row.get("target_bytes")),
                size(row.get("actual_bytes")),
                size(row.get("ram_bytes")),
                duration(row.get("uptime_ns")),
            )
        return table

    def _lines(self) -> Iterator[Text]:
        """The same in lines that may be wrapped."""
        for row in self._machines:
            yield Text.assemble((row["name"], "bold"), "  ", state_text(row.get("state") or "-"))
            if "target_bytes" in row:
                sizes = (f"{name} {size(row[f'{name}_bytes'])}" for name in ("target", "actual"))
                yield Text(f"  {', '.join(sizes)}, memory {size(row.get('ram_bytes'))}")
            about = [
                f"design {row['design']}" if row.get("design") else "",
                f"pid {row['pid']}" if row.get("pid") is not None else "",
                f"up {duration(row['uptime_ns'])}" if "uptime_ns" in row else "",
            ]
            if any(about):
                yield Text(f"  {', '.join(filter(None, about))}")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        table = self._table()
        if console.measure(table, options=options.update(max_width=10_000)).maximum <= options.max_width:
            yield table
        else:
            yield from self._lines()


def render_ps(document: Mapping[str, Any]) -> RenderableType:
    """The machines, and below them what is wrong with those that are in trouble."""
    machines = document["machines"]
    if not machines:
        return Text("no machine is running")
    from rich.console import Group

    troubles = [Text(f"✗ {row['name']}: {row['trouble']}", "red") for row in machines if row.get("trouble")]
    return Group(_Machines(machines), *troubles)
