"""The status of a machine: a screen of it, or less where the peer tells less."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from balloonctl.render.columns import Columns
from balloonctl.render.machines import state_text
from balloonctl.render.units import count, duration, pages, size

__all__ = ["gauge", "render_status"]

_REASONS = {
    "guest-has-no-free-pages": "the guest has no free pages",
    "driver-stalled": "the driver is stalled",
    "deflated-by-oom": "the guest was out of memory and deflated it",
    "target-changed": "the target was changed",
    "deadlocked": "the guest is deadlocked",
    "device-broken": "the device is broken",
    "kernel-bug": "the guest kernel reached a BUG()",
    "no-guest": "no guest is attached",
}

#: How trouble names the exception that ended a task.
_RAISED = re.compile(r"^task .+? ended with (\w+)")

_COUNTERS = (
    ("moved", ("inflated_pages", "deflated_pages", "requests", "migrated_pages", "migrations_refused")),
    ("notified", ("kicks", "kicks_suppressed", "interrupts", "interrupts_suppressed", "config_changes")),
    ("out of memory", ("oom_events", "oom_kills", "oom_deflated_pages")),
    ("given back", ("discards", "discard_ranges", "discard_failures")),
    ("statistics", ("stats_updates",)),
    (
        "broken",
        ("lost_pages", "page_violations", "pfns_duplicate", "pfns_out_of_range", "pfns_never_inflated"),
    ),
)

#: Columns of a terminal from which on three counters stand in a row, and two.
_WIDE, _MIDDLE = 96, 70

#: Columns of the queues in groups that stay together: member, upper and lower line of the heading.
_QUEUE_COLUMNS = (
    (("size", "", "size"), ("depth", "", "depth")),
    (("kicks", "kicks", "sent"), ("kicks_suppressed", "kicks", "supp.")),
    (("interrupts", "irqs", "sent"), ("interrupts_suppressed", "irqs", "supp.")),
    (("p50_ns", "time", "p50"), ("p99_ns", "time", "p99"), ("max_ns", "time", "max")),
)

#: What a counter is called within its family, where its own name would repeat it.
_SHORT = {
    "inflated_pages": "pages inflated",
    "deflated_pages": "pages deflated",
    "migrated_pages": "pages migrated",
    "migrations_refused": "migrations refused",
    "kicks_suppressed": "kicks suppressed",
    "interrupts_suppressed": "irqs suppressed",
    "config_changes": "config changes",
    "oom_events": "events",
    "oom_kills": "kills",
    "oom_deflated_pages": "pages deflated",
    "discards": "system calls",
    "discard_ranges": "ranges",
    "discard_failures": "failures",
    "lost_pages": "pages lost",
    "page_violations": "violations",
    "pfns_duplicate": "PFNs twice",
    "pfns_out_of_range": "PFNs outside",
    "pfns_never_inflated": "PFNs not held",
    "stats_updates": "updates",
}


def gauge(actual: int, target: int, ram: int, width: int) -> Text:
    """A bar of the guest's memory: filled up to actual, a mark at target."""
    filled = round(width * actual / ram) if ram else 0
    mark = min(width - 1, round(width * target / ram)) if ram else 0
    text = Text()
    for cell in range(width):
        if cell == mark:
            text.append("┃", "bold magenta")
        elif cell < filled:
            text.append("█", "cyan")
        else:
            text.append("░", "dim")
    return text


def _balloon_text(status: Mapping[str, Any]) -> Text:
    """settled, and whether that is all; moving; or short and why."""
    balloon = status.get("balloon") or {}
    state = balloon.get("state", "-")
    if state == "short":
        reason = str(balloon.get("reason"))
        where = "above" if status["actual_bytes"] > status["target_bytes"] else "short of"
        words = _REASONS.get(reason, reason)
        # An exception of Python is no BUG() of a kernel: most often it is a slip in a design of the user.
        if reason == "kernel-bug" and (raised := _RAISED.search(status.get("trouble") or "")):
            words = f"a task of the guest ended with {raised[1]}"
        return Text.assemble((f"✗ {where} its target", "yellow"), f": {words}")
    if state == "settled" and status["state"] == "waiting":
        return Text(_REASONS["no-guest"])
    if state == "settled" and status.get("discard_backlog_bytes"):
        return Text.assemble(("✓ settled", "green"), ": acknowledged; the host is still getting memory back")
    return Text(f"✓ {state}" if state == "settled" else state, "green" if state == "settled" else "cyan")


def _overview(status: Mapping[str, Any]) -> Columns:
    """Where the balloon stands."""
    rows: list[tuple[Text, Text]] = []

    def add(name: str, value: Text | str) -> None:
        rows.append((Text(name), Text(value) if isinstance(value, str) else value))

    head = state_text(status["state"])
    details = [
        f"design {status['design']}" if status.get("design") else "",
        f"pid {status['pid']}" if "pid" in status else "",
        f"up {duration(status['uptime_ns'])}" if "uptime_ns" in status else "",
    ]
    head.append("".join(f", {detail}" for detail in details if detail), "none")
    add("machine", Text.assemble((str(status.get("machine", "?")), "bold"), "  ", head))
    if status.get("trouble"):
        add("trouble", Text(f"✗ {status['trouble']}", "bold red"))
    if "balloon" in status:
        add("balloon", _balloon_text(status))
    for name in ("target", "actual"):
        if f"{name}_bytes" in status:
            value = status[f"{name}_bytes"]
            add(name, f"{size(value)}  ({pages(status.get(f'{name}_pages', value // 4096))})")
    if {"ram_bytes", "actual_bytes"} <= status.keys():
        actual = status["actual_bytes"]
        bar = gauge(actual, status.get("target_bytes", actual), status["ram_bytes"], 40)
        add("", bar)
    guest = f"{size(status.get('guest_usable_bytes'))} of {size(status.get('ram_bytes'))} left to it"
    if status.get("guest_free_bytes") is not None:
        guest += f": {size(status['guest_free_bytes'])} free, {size(status['guest_used_bytes'])} used"
    add("guest", guest)
    if "returned_acknowledged_bytes" in status:
        backlog = status.get("discard_backlog_bytes")
        owed = f"; {size(backlog)} on their way back" if backlog else ""
        add(
            "host",
            f"{size(status['returned_acknowledged_bytes'])} acknowledged, "
            f"{size(status['returned_measured_bytes'])} measured as returned; "
            f"guest memory occupies {size(status['memory_allocated_bytes'])}{owed}",
        )
    if stack := (status.get("stack") or {}).get("peak_bytes"):
        add("stack", f"{size(stack)} of {size(status['stack']['size_bytes'])} in use on the way to deflation")
    if "features" in status:
        add("features", " ".join(status["features"]) or "none")
        memory = f"{status['memory']} memory, " if status.get("memory") else ""
        device = " ".join(status["device_status"]) or "no driver"
        add("device", f"{device}; {memory}discard by {status['discard']}")
    return Columns(rows, fold=True)


class _Queues:
    """A row a queue: how full, notified and not (suppressed) how often, how long a request takes.

    Columns that do not fit beside the others stand below them.
    """

    def __init__(self, queues: Sequence[Mapping[str, Any]]) -> None:
        self._names = [Text(""), Text("queue", "bold"), *(Text(queue["name"]) for queue in queues)]
        self._groups = [[_queue_column(queues, *one) for one in group] for group in _QUEUE_COLUMNS]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        block = [self._names]
        for group in self._groups:
            if len(block) > 1 and self._columns([*block, *group]).width > options.max_width:
                yield self._columns(block)
                yield ""
                block = [self._names]
            block += group
        yield self._columns(block)

    def _columns(self, columns: Sequence[Sequence[Text]]) -> Columns:
        return Columns(list(zip(*columns, strict=True)), right=range(1, len(columns)))


def _queue_column(queues: Sequence[Mapping[str, Any]], member: str, upper: str, lower: str) -> list[Text]:
    """A heading of two lines and the figure of each queue; a time is that of its latency."""
    cells = [Text(upper, "bold"), Text(lower, "bold")]
    for queue in queues:
        if member.endswith("_ns"):
            latency = queue.get("latency") or {}
            cells.append(Text(duration(latency[member]) if latency.get("count") else "-"))
        else:
            cells.append(Text(count(queue[member])))
    return cells


class _Counters:
    """The counters in families, as many a row as fit; what must stay at zero and does not is marked."""

    def __init__(self, counters: Mapping[str, int]) -> None:
        self._counters = counters

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = options.max_width
        yield _counters(self._counters, across=3 if width >= _WIDE else 2 if width >= _MIDDLE else 1)


def _singular(words: str) -> str:
    """What one of these is called: `page lost` for `pages lost`."""
    return re.sub(r"s\b", "", words, count=1)


def _counters(counters: Mapping[str, int], across: int) -> Columns:
    """So many of them in a row."""
    rows: list[list[Text]] = []
    known = {name for _, names in _COUNTERS for name in names}
    families = [*_COUNTERS, ("other", tuple(name for name in counters if name not in known))]
    for family, names in families:
        present = [name for name in names if counters.get(name) is not None]
        for start in range(0, len(present), across):
            cells = [Text(family if start == 0 else "", "bold")]
            for name in present[start : start + across]:
                bad = family == "broken" and counters[name] != 0
                number = f"✗ {count(counters[name])}" if bad else count(counters[name])
                words = _SHORT.get(name, name.replace("_", " "))
                cells += [
                    Text(number, "bold red" if bad else "bold" if counters[name] else "dim"),
                    Text(_singular(words) if counters[name] == 1 else words),
                ]
            rows.append(cells)
    return Columns(rows, right=range(1, 2 * across, 2))


def render_status(status: Mapping[str, Any]) -> RenderableType:
    """The whole status."""
    parts: list[RenderableType] = [_overview(status)]
    if status.get("queues"):
        parts += ["", _Queues(status["queues"])]
    if status.get("counters"):
        parts += ["", _Counters(status["counters"])]
    return Group(*parts)
