"""The live view, and its one-line form. Numbers have a fixed width, so that nothing jitters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from balloonctl.render.machines import state_text
from balloonctl.render.status import gauge
from balloonctl.render.units import count, duration, size

__all__ = ["History", "rates", "render_watch", "sparkline", "watch_line"]

#: Status documents, oldest first.
History = Sequence[Mapping[str, Any]]

_BLOCKS = " ▁▂▃▄▅▆▇█"

#: Columns of a terminal from which on all words have room beside the figures, and rates beside the totals.
_WIDE, _RATES = 66, 52


def sparkline(values: Sequence[float], width: int) -> str:
    """The newest `width` values as blocks, the largest a full one; anything above zero shows."""
    shown = list(values)[-width:]
    top = max(shown, default=0)
    blocks = "".join(
        _BLOCKS[0] if value <= 0 or top <= 0 else _BLOCKS[max(1, round(value / top * (len(_BLOCKS) - 1)))]
        for value in shown
    )
    return blocks.rjust(width)


def _moved(status: Mapping[str, Any]) -> int:
    """PFNs that went through the queues so far; from a foreign peer what its balloon shows."""
    counters = status.get("counters")
    if counters is None:
        return int(status.get("actual_pages", 0))
    return int(counters["inflated_pages"]) + int(counters["deflated_pages"])


def rates(history: History, of: str = "") -> list[float]:
    """Differences a second between neighbours, by the machine's own monotonic clock.

    Args:
        history: the documents.
        of: a counter; empty for the PFNs that moved either way.
    """

    def value(status: Mapping[str, Any]) -> float:
        return float(status["counters"][of] or 0) if of else float(_moved(status))

    result = []
    for older, newer in pairwise(history):
        span = newer["monotonic_ns"] - older["monotonic_ns"]
        result.append(abs(value(newer) - value(older)) / span * 1e9 if span > 0 else 0.0)
    return result


def _latest(history: History, of: str = "") -> float:
    found = rates(history[-2:], of)
    return found[-1] if found else 0.0


def _per_second(history: History, of: str) -> str:
    return f"{count(_latest(history, of)):>11}/s"


def watch_line(history: History) -> str:
    """One look on one line, for a pipe or a log."""
    status = history[-1]
    parts = [
        str(status.get("time", "")),
        f"{status['state']:<10}",
        f"target {size(status.get('target_bytes')):>11}",
        f"actual {size(status.get('actual_bytes')):>11}",
        f"guest {size(status.get('guest_usable_bytes')):>11}",
        f"{count(_latest(history)):>11} PFNs/s",
    ]
    counters = status.get("counters")
    if counters is not None:
        depth = sum(queue["depth"] for queue in status["queues"])
        parts += [
            f"depth {depth:>3}",
            f"kicks {count(counters['kicks']):>9} +{count(counters['kicks_suppressed']):>9} suppressed",
            f"interrupts {count(counters['interrupts']):>9}",
            f"acked {size(status['returned_acknowledged_bytes']):>11}",
            f"measured {size(status['returned_measured_bytes']):>11}",
            f"oom {count(counters['oom_events']):>5}",
        ]
    return "  ".join(filter(None, parts))


def _head(status: Mapping[str, Any], interval: float, *, paused: bool) -> Text:
    """Which machine, and how we look at it."""
    text = Text.assemble((str(status.get("machine", "?")), "bold"), "  ", state_text(status["state"]))
    if status.get("design"):
        text.append(f", design {status['design']}", "none")
    if "uptime_ns" in status:
        text.append(f", up {duration(status['uptime_ns'])}", "none")
    text.append(f"   every {interval:g} s")
    if paused:
        text.append("   ‖ paused", "bold yellow")
    return text


def _bar(actual: int, target: int, ram: int, width: int) -> Text:
    """Gauge and share; the terminal has so many columns."""
    share = f"{actual / ram:>5.0%}" if ram else ""
    return gauge(actual, target, ram, max(10, width - 20)) + f" {share}"


def _narrow(rows: Sequence[tuple[str, str, str, str]]) -> Table:
    """Two words a row, each before its figure. Where even that has no room the words are cut, and not the figures."""
    grid = Table.grid(padding=(0, 1))
    for _ in range(2):
        grid.add_column()
        grid.add_column(justify="right", no_wrap=True, min_width=11)
    for row in rows:
        grid.add_row(*row)
    return grid


def _narrow_balloon(status: Mapping[str, Any], width: int) -> Group:
    """What `_balloon` shows."""
    parts: list[RenderableType] = []
    ram, actual = status.get("ram_bytes"), status.get("actual_bytes")
    if ram is not None and actual is not None:
        parts.append(_bar(actual, status.get("target_bytes", actual), ram, width))
    pairs = (
        ("target", "target_bytes", "actual", "actual_bytes"),
        ("left", "guest_usable_bytes", "of", "ram_bytes"),
        ("free", "guest_free_bytes", "used", "guest_used_bytes"),
        ("acked", "returned_acknowledged_bytes", "measured", "returned_measured_bytes"),
    )
    rows = [
        (one, size(status.get(first)), other, size(status.get(second))) for one, first, other, second in pairs
    ]
    parts.append(_narrow([row for row in rows if row[1::2] != ("-", "-")]))
    return Group(*parts)


def _balloon(status: Mapping[str, Any], width: int) -> Table:
    """Gauge and sizes."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, min_width=9)
    grid.add_column(no_wrap=True)
    ram, actual = status.get("ram_bytes"), status.get("actual_bytes")
    target = status.get("target_bytes", actual)
    if ram is not None and actual is not None and target is not None:
        grid.add_row("balloon", _bar(actual, target, ram, width))
        grid.add_row("target", f"{size(target):>11}   actual {size(actual):>11}")
    grid.add_row(
        "guest", f"{size(status.get('guest_usable_bytes')):>11}   of     {size(ram):>11}   left to it"
    )
    if status.get("guest_free_bytes") is not None:
        grid.add_row(
            "",
            f"{size(status['guest_free_bytes']):>11}   free   {size(status['guest_used_bytes']):>11}   used",
        )
    if "returned_acknowledged_bytes" in status:
        grid.add_row(
            "host",
            f"{size(status['returned_acknowledged_bytes']):>11}   acked  "
            f"{size(status['returned_measured_bytes']):>11}   measured as returned",
        )
    return grid


def _flow(history: History, width: int) -> RenderableType:
    """PFNs a second, with the last minute."""
    found = rates(history)
    newest, peak = count(found[-1] if found else 0), count(max(found, default=0))
    if width < _WIDE:
        return Group(
            _narrow([("PFNs/s", newest, "peak", peak)]), Text(sparkline(found, max(10, width - 1)), "cyan")
        )
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True, min_width=9)
    grid.add_column(no_wrap=True)
    grid.add_row("PFNs/s", f"{newest:>11}   peak   {peak:>11}")
    grid.add_row("", Text(sparkline(found, max(10, width - 14)), "cyan"))
    return grid


def _counters(history: History, width: int) -> Table:
    """Totals of what the queues do, and rates where they have room."""
    status = history[-1]
    counters = status["counters"]
    roomy = width >= _RATES
    table = Table.grid(padding=(0, 2 if roomy else 1))
    table.add_column(min_width=22 if roomy else None)
    table.add_column(justify="right", no_wrap=True, min_width=13)
    if roomy:
        table.add_column(justify="right", no_wrap=True, min_width=13)
    for label, name in (
        ("requests", "requests"),
        ("kicks sent", "kicks"),
        ("kicks suppressed", "kicks_suppressed"),
        ("interrupts", "interrupts"),
        ("interrupts suppressed", "interrupts_suppressed"),
        ("discards", "discards"),
        ("OOM events", "oom_events"),
        ("OOM kills", "oom_kills"),
        ("pages to OOM", "oom_deflated_pages"),
        ("lost pages", "lost_pages"),
    ):
        if counters[name] is None:  # a guest elsewhere does not tell
            continue
        bad = name in {"lost_pages", "oom_kills"} and counters[name]
        value = Text(("✗ " if bad else "") + count(counters[name]), "bold red" if bad else "bold")
        table.add_row(label, value, *([_per_second(history, name)] if roomy else []))
    if width < _WIDE:
        for queue in status["queues"]:
            table.add_row(f"{queue['name']} depth", f"{queue['depth']}/{queue['size']}")
        return table
    depths = "   ".join(f"{queue['name']} {queue['depth']:>4}/{queue['size']}" for queue in status["queues"])
    outer = Table.grid()
    outer.add_row(table)
    outer.add_row(f"queue depth  {depths}")
    return outer


def render_watch(history: History, *, interval: float, paused: bool, width: int) -> RenderableType:
    """The whole screen: 23 lines, and one about trouble. The keys stand above what a lower terminal cuts off.

    Args:
        history: status documents of up to a minute, oldest first.
        interval: seconds between two looks.
        paused: whether looking has stopped.
        width: columns of the terminal.
    """
    if not history:
        return Text("waiting for the machine …")
    status = history[-1]
    width = min(width, 100)
    keys = "p pause   + - interval   q quit" if width >= _WIDE else "p  + -  q"
    parts: list[RenderableType] = [_head(status, interval, paused=paused), Text(keys, "dim")]
    if status.get("trouble"):
        parts.append(Text(f"✗ {status['trouble']}", "bold red", no_wrap=True, overflow="ellipsis"))
    balloon = _balloon if width >= _WIDE else _narrow_balloon
    parts += ["", balloon(status, width), "", _flow(history, width)]
    if status.get("counters"):
        parts += ["", _counters(history, width)]
    return Group(*parts)
