"""Sizes, numbers and durations as people type them.

A size means what libvirt and QEMU mean: ``64M`` and ``64MiB`` are 2^26 bytes,
``64MB`` is 64 * 10^6, a bare number counts bytes. ``50%`` of the guest's
memory and ``100p`` (pages of 4 KiB) are our own. bitmath knows the units; the
number is kept exact, since a float would hide half a byte.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from math import isnan, nan
from typing import Any, ClassVar

import click

from balloonctl.failures import origin
from balloonctl.render.units import PAGE, pages, size
from balloonvq.errors import InvalidArgument

__all__ = ["DURATION", "REQUEST_PAGES", "Duration", "Number", "Size", "SizeType", "WholeNumber", "parse_size"]

#: PFNs that the driver puts into one request.
REQUEST_PAGES = 256

_EXAMPLES = "write a size as 64M, 64MiB, 64MB, 67108864, 16384p (pages) or 25% (of the guest's memory)"
_NUMBER_UNIT = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(?P<unit>[A-Za-z%]*)")
_MAX_DIGITS = 40


@dataclass(frozen=True, slots=True)
class Size:
    """A size; how many bytes `percent` is depends on the guest."""

    text: str
    """As it was typed."""
    bytes: int | None = None
    percent: Fraction | None = None

    def resolve(self, ram_bytes: int) -> int:
        """Bytes; a percentage is rounded down to whole pages."""
        if self.bytes is not None:
            return self.bytes
        assert self.percent is not None
        return int(ram_bytes * self.percent / 100) // PAGE * PAGE

    def is_rounded(self, ram_bytes: int) -> bool:
        """Whether `resolve` had to round."""
        return self.percent is not None and ram_bytes * self.percent / 100 % PAGE != 0

    def __str__(self) -> str:
        return self.text


def _unit_bytes(unit: str, text: str) -> int:
    """Bytes of one unit, by bitmath: its own names first, then NIST's for a bare prefix."""
    if unit in {"", "B"}:
        return 1
    if unit == "p":
        return PAGE
    if unit.endswith(("b", "bit", "bits")):
        raise InvalidArgument(
            f"{text} counts bits, memory is counted in bytes",
            why="a small b stands for bits",
            hint="write a capital B: 64MB is 64 million bytes, 64MiB is 2^26",
        )
    import bitmath  # type: ignore[import-untyped]

    name = "kB" if unit == "KB" else unit
    try:
        value = bitmath.parse_string(f"1{name}")
    except ValueError:
        try:
            value = bitmath.parse_string(f"1{name}", strict=False, system=bitmath.NIST)
        except ValueError:
            raise InvalidArgument(f"{text} is not a size: {unit} is no unit", hint=_EXAMPLES) from None
    return int(value.bytes)


def _refuse(text: str) -> InvalidArgument:
    """Why a text without the form of a size is none."""
    stripped = text.strip()
    if not stripped:
        return InvalidArgument("the size is empty", hint=_EXAMPLES)
    if re.fullmatch(r"[-\u2212][\d.].*|-inf.*", stripped, re.IGNORECASE):
        return InvalidArgument(f"{text} is negative", why="a size counts bytes from 0 up", hint=_EXAMPLES)
    if re.match(r"[+-]?(nan|inf)", stripped, re.IGNORECASE):
        return InvalidArgument(f"{text} is not a number of bytes", hint=_EXAMPLES)
    return InvalidArgument(f"{text} is not a size", hint=_EXAMPLES)


def parse_size(text: str, *, zero: bool = False, percent: bool = True, aligned: bool = True) -> Size:
    """A size from what somebody typed.

    Args:
        text: such as ``64MiB``.
        zero: whether nothing at all is a size here.
        percent: whether ``50%`` has a meaning here.
        aligned: whether it has to be whole pages.

    Raises:
        InvalidArgument: if it is none; the hint says how to write it.
    """
    found = _NUMBER_UNIT.fullmatch(text.strip())
    if found is None or len(text) > _MAX_DIGITS:
        raise _refuse(text)
    number, unit = Fraction(found["number"]), found["unit"]
    if number == 0 and not zero:
        raise InvalidArgument(f"{text} is nothing", why="the size has to be at least one page of 4096 bytes")
    if unit == "%":
        if not percent:
            raise InvalidArgument(
                f"{text}: there is nothing yet to take a share of", hint="write a size as 64M or 1G"
            )
        if number > 100:
            raise InvalidArgument(f"{text} is more than all of the guest's memory", hint="write 100% or less")
        return Size(text, percent=number)
    exact = number * _unit_bytes(unit, text)
    if exact.denominator != 1:
        raise InvalidArgument(
            f"{text} is {float(exact):g} bytes, not a whole number of bytes", hint=_EXAMPLES
        )
    value = int(exact)
    if aligned and value % PAGE:
        raise _unaligned(text, value)
    return Size(text, bytes=value)


def _unaligned(text: str, value: int) -> InvalidArgument:
    """Names both neighbours of a size that is not whole pages."""
    below = value // PAGE
    neighbours = [f"{n}p ({size(n * PAGE)})" for n in (below, below + 1) if n > 0]
    return InvalidArgument(
        f"{text} is not a whole number of pages",
        why=f"it is {value} bytes, {pages(below)} of {PAGE} bytes and {value % PAGE} bytes more",
        hint="the nearest sizes are " + " and ".join(neighbours)
        if len(neighbours) > 1
        else f"the smallest is {neighbours[0]}",
    )


class SizeType(click.ParamType[Size]):
    """Click's face of `parse_size`."""

    name = "size"

    def __init__(self, *, zero: bool = False, percent: bool = True, aligned: bool = True) -> None:
        self.zero = zero
        self.percent = percent
        self.aligned = aligned

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Size:
        """A typed text as a size; a size stays what it is."""
        if isinstance(value, Size):
            return value
        try:
            return parse_size(str(value), zero=self.zero, percent=self.percent, aligned=self.aligned)
        except InvalidArgument as error:
            where = origin(ctx, param)
            error.why = "; ".join(filter(None, [error.why, where]))
            raise


class Duration(click.ParamType[float]):
    """Seconds: ``500ms``, ``1s``, ``2m``, ``1h`` or a bare number of seconds."""

    name = "duration"
    _units: ClassVar = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """A typed text as seconds; more than none, less than a year."""
        found = re.fullmatch(r"([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*([a-z]*)", str(value).strip())
        if found is None or found[2] not in self._units:
            raise InvalidArgument(
                f"{value} is not a time", why=origin(ctx, param), hint="write a time as 500ms, 1s, 2m or 1h"
            )
        seconds = float(found[1]) * self._units[found[2]]
        if not 0 < seconds <= 366 * 24 * 3600:
            raise InvalidArgument(
                f"{value} is not a useful time",
                why=origin(ctx, param),
                hint="write more than 0 and less than a year",
            )
        return seconds


DURATION = Duration()


def _range(low: float | None, high: float | None, *, above: bool) -> str:
    """The numbers of a range in words; `above` leaves the lowest out."""
    if low is None:
        return "" if high is None else f" up to {high}"
    if high is None:
        return f" above {low}" if above else f" from {low} up"
    return f" above {low} and up to {high}" if above else f" from {low} to {high}"


class WholeNumber(click.IntRange):
    """click's range of integers, whose errors say what is allowed."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """A typed text as a number of the range."""
        try:
            return int(super().convert(value, param, ctx))
        except click.BadParameter:
            allowed = _range(self.min, self.max, above=self.min_open)
            self.fail(f"{value} is not a whole number{allowed}", param, ctx)


class Number(click.FloatRange):
    """click's range of floats, likewise; without NaN."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """A typed text as a number of the range."""
        number = nan
        with suppress(click.BadParameter):
            number = float(super().convert(value, param, ctx))
        if isnan(number):
            allowed = _range(self.min, self.max, above=self.min_open)
            self.fail(f"{value} is not a number{allowed}", param, ctx)
        return number
