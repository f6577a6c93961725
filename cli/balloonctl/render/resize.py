"""The result of inflate, deflate and target: both figures on two lines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from balloonctl.render.units import count, duration, pages, rate, size

__all__ = ["render_plan", "render_resize"]

_OUTCOMES = {
    "reached": ("✓ reached", "green"),
    "short": ("✗ stopped before its target", "red"),
    "timeout": ("✗ timed out", "red"),
    "sent": ("→ sent, not waited for", "cyan"),
}


def render_resize(document: Mapping[str, Any]) -> Table:
    """What happened, and what is left to the guest."""
    words, style = _OUTCOMES.get(document["outcome"], (document["outcome"], ""))
    outcome = Text(words, style)
    elapsed = document.get("elapsed_ns")
    moved = abs(document["actual_bytes"] - document["start_bytes"])
    if elapsed and moved:
        speed = f"{pages(moved // 4096)} in {duration(elapsed)}, {rate(moved / elapsed * 1e9)}"
        outcome.append(f": {speed}", "none")
    grid = Table.grid(padding=(0, 2))
    grid.add_row("outcome", outcome)
    grid.add_row(
        "balloon", f"target {size(document['target_bytes'])}, actual {size(document['actual_bytes'])}"
    )
    left = f"{size(document['guest_usable_bytes'])} of {size(document['ram_bytes'])} left to it"
    grid.add_row("guest", left)
    if document.get("returned_measured_bytes") is not None:
        acknowledged = size(document["returned_acknowledged_bytes"])
        measured = size(document["returned_measured_bytes"])
        grid.add_row("host", f"{acknowledged} acknowledged, {measured} measured as returned")
    return grid


def render_plan(document: Mapping[str, Any]) -> Table:
    """What --dry-run would have done."""
    grid = Table.grid(padding=(0, 2))
    target = f"{size(document['target_before_bytes'])} -> {size(document['target_bytes'])}"
    grid.add_row("target", f"{target} ({pages(document['target_pages'])})")
    words = {"inflate": "go into the balloon", "deflate": "go back to the guest", "none": "have to move"}
    grid.add_row("pages", f"{count(document['pages'])} {words[document['direction']]}")
    grid.add_row("requests", f"{count(document['requests'])} of up to 256 page numbers")
    left = f"{size(document['guest_usable_bytes'])} of {size(document['ram_bytes'])} would be left to it"
    grid.add_row("guest", left)
    grid.add_row("sent", "nothing (dry run)")
    return grid
