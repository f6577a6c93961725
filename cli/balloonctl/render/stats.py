"""The guest's statistics, each with its unit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from balloonctl.render.units import count, size

__all__ = ["MEANING", "render_stats"]

#: Name -> (unit, what it counts). A name that is not here is shown as a bare number.
MEANING: dict[str, tuple[str, str]] = {
    "stat-swap-in": ("bytes", "swapped in"),
    "stat-swap-out": ("bytes", "swapped out"),
    "stat-major-faults": ("faults", "page faults that read a disk"),
    "stat-minor-faults": ("faults", "page faults that did not"),
    "stat-free-memory": ("bytes", "memory that nobody uses"),
    "stat-total-memory": ("bytes", "memory of the guest"),
    "stat-available-memory": ("bytes", "memory for new tasks"),
    "stat-disk-caches": ("bytes", "caches that can be dropped"),
    "stat-htlb-pgalloc": ("pages", "huge pages allocated"),
    "stat-htlb-pgfail": ("pages", "huge pages that failed"),
    "stat-oom-kills": ("kills", "tasks that the OOM killer ended"),
    "stat-alloc-stalls": ("stalls", "allocations that had to wait"),
    "stat-async-scans": ("pages", "scanned by background reclaim"),
    "stat-direct-scans": ("pages", "scanned by direct reclaim"),
    "stat-async-reclaims": ("pages", "reclaimed in the background"),
    "stat-direct-reclaims": ("pages", "reclaimed directly"),
}

#: What a guest sends for "I do not know".
_UNREPORTED = 2**64 - 1


def render_stats(document: Mapping[str, Any]) -> RenderableType:
    """A row a statistic."""
    last = document["last_update"] or "never"
    heading = Text(f"updates {count(document['updates'])}, the last {last}")
    if not document["stats"]:
        return heading
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("statistic", no_wrap=True)
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("unit", no_wrap=True)
    table.add_column("")
    for name, value in document["stats"].items():
        unit, words = MEANING.get(name, ("", ""))
        if value in {-1, _UNREPORTED}:
            table.add_row(name, "-", unit, words)
        elif unit == "bytes":
            number, prefix = size(value).rsplit(" ", 1)
            table.add_row(name, number, prefix, words)
        else:
            table.add_row(name, count(value), unit, words)
    return Group(heading, table)
