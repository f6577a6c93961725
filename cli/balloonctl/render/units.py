"""Numbers for people: sizes, counts, times. Exact where it fits, never more than four figures where it does not."""

from __future__ import annotations

from balloonvq.units import size

__all__ = ["PAGE", "count", "duration", "pages", "plural", "rate", "size"]

#: Bytes of a balloon page, whatever the guest's page size is.
PAGE = 4096


def count(value: float | None) -> str:
    """A count: ``131,072``; a dash if it was not reported."""
    return "-" if value is None else f"{round(value):,}"


def plural(number: int, noun: str) -> str:
    """A number of things: ``1 step``, ``12 steps``."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def pages(value: int | None) -> str:
    """A number of pages: ``131,072 pages``."""
    return f"{count(value)} page{'' if value == 1 else 's'}"


def rate(per_second: float) -> str:
    """Bytes a second."""
    return f"{size(per_second)}/s"


def duration(nanoseconds: float | None) -> str:
    """A span of time in its natural unit: ``850 ns``, ``1.2 ms``, ``3.4 s``, ``2 min 5 s``, ``3 h 2 min``."""
    if nanoseconds is None:
        return "-"
    if nanoseconds < 60e9:
        for unit, scale in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
            if nanoseconds >= scale:
                number = nanoseconds / scale
                digits = 0 if number >= 99.95 else 1 if number >= 9.995 else 2
                text = f"{number:.{digits}f}"
                return f"{text.rstrip('0').rstrip('.') if digits else text} {unit}"
        return f"{nanoseconds:.0f} ns"
    seconds = int(nanoseconds // 1e9)
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if minutes < 60:
        return f"{minutes} min {seconds % 60} s"
    if hours < 24:
        return f"{hours} h {minutes % 60} min"
    return f"{days} d {hours % 24} h"
