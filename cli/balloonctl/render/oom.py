"""What an OOM run did."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from balloonctl.render.deadlock import render_deadlock
from balloonctl.render.units import count, duration, pages, size

__all__ = ["broken_text", "render_oom"]

_BROKEN = {
    "page_violations": "pages handled that were not where they should have been",
    "pfns_duplicate": "PFNs inflated that the balloon held already",
    "pfns_out_of_range": "PFNs outside guest memory",
    "pfns_never_inflated": "PFNs deflated that the balloon did not hold",
}

_OUTCOMES = {
    "relieved": ("✓ relieved", "green", "the balloon gave up what the task still needed"),
    "fitted": ("✓ fitted", "green", "memory did not run out"),
    "killed": ("✗ killed", "yellow", "the OOM killer ended a task"),
    "livelocked": ("✗ livelocked", "bold red", "it may not kill, and retried in vain"),
    "deadlocked": ("✗ deadlocked", "bold red", "nobody will ever go on"),
}


def broken_text(broken: Mapping[str, int]) -> str:
    """Counters of broken rules in words."""
    return ", ".join(f"{count(number)} {_BROKEN.get(name, name)}" for name, number in broken.items())


def render_oom(report: Mapping[str, Any]) -> RenderableType:
    """The outcome, its figures, and the circle if there is one."""
    word, style, meaning = _OUTCOMES.get(report["outcome"], (report["outcome"], "", ""))
    if report.get("broken_rules"):
        word, style = word.replace("✓", "✗"), "bold red"
    grid = Table.grid(padding=(0, 2))
    grid.add_row("outcome", Text.assemble((word, style), f": {meaning}"))
    grid.add_row("allocated", f"{size(report['allocated_bytes'])} of {size(report['requested_bytes'])}")
    grid.add_row("out of memory", f"{count(report['rounds'])} time{'' if report['rounds'] == 1 else 's'}")
    grid.add_row(
        "from the balloon", f"{pages(report['balloon_pages'])} ({size(report['balloon_pages'] * 4096)})"
    )
    waited = f"{duration(report['waited_ns'])}, {duration(report['longest_wait_ns'])} at the longest"
    if report["outcome"] == "deadlocked":  # those figures are of the waits that ended
        waited = "without end" + (f", after {waited}" if report["waited_ns"] else "")
    grid.add_row("waited", waited)
    if report.get("killed"):
        grid.add_row("killed task", str(report["killed"]))
    how = [
        "while the balloon was being filled" if report.get("while_filling") else "",
        "" if report.get("gfp_fs", True) else "without __GFP_FS",
    ]
    if any(how):
        grid.add_row("how", ", ".join(filter(None, how)))
    if report.get("lost_pages"):
        grid.add_row("lost content", Text(f"✗ {pages(report['lost_pages'])}", "bold red"))
    if report.get("broken_rules"):
        grid.add_row("broken rules", Text(f"✗ {broken_text(report['broken_rules'])}", "bold red"))
    if report.get("deadlock"):
        return Group(grid, render_deadlock(report["deadlock"]))
    return grid
