"""Sizes for people, in messages and on screens."""

from __future__ import annotations

__all__ = ["size"]

_PREFIXES = ("B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB")


def size(value: float | None) -> str:
    """Bytes with a binary unit: ``512 MiB``, ``1.5 GiB``; a dash if it was not reported."""
    if value is None:
        return "-"
    number, prefix = float(value), 0
    while abs(number) >= 1024 and prefix < len(_PREFIXES) - 1:
        number /= 1024
        prefix += 1
    text = f"{number:.2f}".rstrip("0").rstrip(".")
    return f"{text} {_PREFIXES[prefix]}"
