"""Two measurements, row by row: is the new one slower, and is that more than noise?

What is compared is the median of a row's samples, or with `relative` of its ratios to its limit, which
travel between machines and days. The error of a median is its interval by order statistics: with n
samples x1 <= ... <= xn the median lies between x(k) and x(n+1-k) with 95 per cent, k taken from the
binomial distribution; nothing is assumed about how the samples are spread. Under six samples not even
smallest to largest is that certain, and smallest to largest is what is used. The errors of both medians,
which are independent, add up as squares of their logarithms.

A row fails by its ratio alone: how noisy a benchmark may be is for who chooses `fail_above`. The
verdict says whether the error allows that nothing changed.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from balloonvq.bench.results import Better, Report, Result, RowResult, ratios
from balloonvq.errors import BalloonError, InvalidArgument

__all__ = ["Compared", "Comparison", "HostDifference", "compare", "interval", "load"]

#: A file larger than this is none of ours; raw samples of hours fit.
FILE_MAX = 256 << 20

#: Each tail that an interval leaves out.
TAIL = 0.025


@dataclass(frozen=True, slots=True, kw_only=True)
class HostDifference:
    """A fact about the machine that is not the same in both files."""

    name: str
    old: str
    new: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """A row that both files have."""

    benchmark: str
    parameters: dict[str, int | str | bool]
    """Those of the new file."""
    row: str
    unit: str
    """Of `old` and `new`; x for ratios to the limit."""
    per: str
    """What the unit is for."""
    better: Better
    old: float
    """Median."""
    new: float
    ratio: float
    """New cost in times the old cost; above 1 is slower, whichever way the figures go."""
    low: float
    """Smallest ratio that the errors of both medians allow, with 95 per cent."""
    high: float
    limit: bool
    """A row that only shows what the machine can do: shown, and never a regression."""
    verdict: Literal["slower", "faster", "same"]
    """same: the errors allow a ratio of 1."""
    failed: bool
    """The ratio is above 1 + `fail_above`, and the row is no limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """``balloonctl/bench-compare/1``: a new measurement in times an old one."""

    schema: str = "balloonctl/bench-compare/1"
    old: str
    """The file."""
    new: str
    relative: bool
    """Whether ratios to the limit rows were compared, instead of the samples themselves."""
    fail_above: float | None
    """The slowdown that is allowed, 0.05 for 5 %; null: any."""
    rows: tuple[Compared, ...]
    left_out: tuple[str, ...]
    """Rows that could not be compared, and why."""
    host: tuple[HostDifference, ...]
    """In what the machines differ."""
    regressions: int
    """Rows that failed."""


def load(path: Path) -> Report:
    """A file that `bench --json` wrote.

    Raises:
        BalloonError: if it cannot be read.
        InvalidArgument: if it is none; says where it goes wrong.
    """
    hint = "give a file that `balloonctl bench NAME --json FILE` wrote"
    try:
        with path.open("rb") as file:
            data = file.read(FILE_MAX + 1)
    except OSError as error:
        raise BalloonError(f"cannot read {path}", why=error.strerror or str(error), hint=hint) from None
    if len(data) > FILE_MAX:
        raise InvalidArgument(f"{path} is no measurement", why=f"it is over {FILE_MAX} bytes", hint=hint)
    try:
        head = msgspec.json.decode(data, type=dict[str, msgspec.Raw])
        schema = msgspec.json.decode(head.get("schema", b'""'), type=str)
        if schema != "balloonctl/bench/1":
            raise InvalidArgument(
                f"{path} is no measurement",
                why=f"its schema is {schema!r}, not 'balloonctl/bench/1'",
                hint=hint,
            )
        report = msgspec.json.decode(data, type=Report)
    except (msgspec.MsgspecError, RecursionError, ValueError) as error:
        raise InvalidArgument(f"{path} is no measurement", why=str(error), hint=hint) from None
    trouble = next(_contradictions(report), None)
    if trouble is not None:
        raise InvalidArgument(f"{path} contradicts itself", why=trouble, hint=hint)
    return report


def _contradictions(report: Report) -> Iterator[str]:
    """What the types do not say and the rest relies on."""
    for result in report.results:
        names = {row.name: row for row in result.rows}
        if len(names) != len(result.rows):
            yield f"bench {result.benchmark} has a row twice"
        for row in result.rows:
            where = f"row {row.name!r} of bench {result.benchmark}"
            if not row.samples or len(row.samples) != result.runs:
                yield f"{where} has {len(row.samples)} samples in {result.runs} rounds"
            if not all(math.isfinite(sample) and sample >= 0 for sample in row.samples):
                yield f"{where} has samples that are no measurements"
            for other in row.against:
                if other.row not in names:
                    yield f"{where} is held against {other.row!r}, which is not there"


def interval(samples: Sequence[float]) -> tuple[float, float]:
    """Between what the median lies with 95 per cent, by order statistics; see the module."""
    ordered = sorted(samples)
    count = len(ordered)
    # The largest k with P(X < k) <= TAIL, for X binomial with n = count and p = 1/2.
    below, k = 0.0, 0
    while True:
        below += math.comb(count, k) / 2**count
        if below > TAIL or k >= count // 2:
            break
        k += 1
    k = max(k, 1)
    return ordered[k - 1], ordered[count - k]


def compare(
    old: Report,
    new: Report,
    *,
    names: tuple[str, str] = ("OLD", "NEW"),
    relative: bool = False,
    fail_above: float | None = None,
) -> Comparison:
    """Compares.

    Args:
        old: what was measured before.
        new: what is judged.
        names: of the files.
        relative: compare ratios to the limit rows; rows without one are left out.
        fail_above: slowdown beyond which a row fails.

    Raises:
        InvalidArgument: if they have no row in common.
    """
    rows: list[Compared] = []
    left_out: list[str] = []
    used = set()
    for result in new.results:
        found = _same(result, old.results)
        if found is None:
            left_out.append(f"{_named(result)}: not in {names[0]}")
            continue
        used.add(id(found))
        for row in result.rows:
            try:
                rows.append(_compared(result, row, found, relative=relative, fail_above=fail_above))
            except _Unlike as error:
                left_out.append(f"{_named(result)}, {row.name}: {error}")
        here = {row.name for row in result.rows}
        left_out += [
            f"{_named(found)}, {row.name}: not in {names[1]}" for row in found.rows if row.name not in here
        ]
    left_out += [f"{_named(result)}: not in {names[1]}" for result in old.results if id(result) not in used]
    if not rows:
        raise InvalidArgument(
            "the two measurements have nothing in common",
            why="; ".join(left_out[:3]) if old.results and new.results else "one of them is empty",
            hint="measure the same benchmarks with the same parameters",
        )
    return Comparison(
        old=names[0],
        new=names[1],
        relative=relative,
        fail_above=fail_above,
        rows=tuple(rows),
        left_out=tuple(left_out),
        host=tuple(_differences(old.host, new.host)),
        regressions=sum(row.failed for row in rows),
    )


class _Unlike(Exception):
    """Why a row cannot be compared."""


def _named(result: Result) -> str:
    words = [f"{name}={value}" for name, value in result.parameters.items()]
    return " ".join([f"bench {result.benchmark}", *words])


def _same(result: Result, others: Sequence[Result]) -> Result | None:
    """The measurement of the same thing: the same parameters, or none that both know and that differs."""
    same = [other for other in others if other.benchmark == result.benchmark]
    for other in same:
        if other.parameters == result.parameters:
            return other
    fitting = [
        other
        for other in same
        if all(result.parameters.get(name, value) == value for name, value in other.parameters.items())
    ]
    return fitting[0] if len(fitting) == 1 else None


def _compared(
    result: Result, row: RowResult, old_result: Result, *, relative: bool, fail_above: float | None
) -> Compared:
    old = next((one for one in old_result.rows if one.name == row.name), None)
    if old is None:
        raise _Unlike("it is new")
    if (old.unit, old.per, old.better) != (row.unit, row.per, row.better):
        raise _Unlike(f"it was in {old.unit}, and is in {row.unit}")
    before, after, better = old.samples, row.samples, row.better
    if relative:
        before, after, better = _to_limit(old, old_result), _to_limit(row, result), "lower"
    if min(before) <= 0 or min(after) <= 0:
        raise _Unlike("a sample is 0")
    old_low, old_high = interval(before)
    new_low, new_high = interval(after)
    old_middle, new_middle = statistics.median(before), statistics.median(after)
    ratio = new_middle / old_middle
    low = ratio / _error(new_middle / new_low, old_high / old_middle)
    high = ratio * _error(new_high / new_middle, old_middle / old_low)
    if better == "higher":
        ratio, low, high = 1 / ratio, 1 / high, 1 / low
    if not all(map(math.isfinite, (ratio, low, high))):
        raise _Unlike("the figures are too far from each other for a ratio")
    limit = not row.against and any(ratio.row == row.name for one in result.rows for ratio in one.against)
    return Compared(
        benchmark=result.benchmark,
        parameters=result.parameters,
        row=row.name,
        unit="x" if relative else row.unit,
        per=row.against[0].row if relative else row.per,
        better=better,
        old=old_middle,
        new=new_middle,
        ratio=ratio,
        low=low,
        high=high,
        limit=limit,
        verdict="slower" if low > 1 else "faster" if high < 1 else "same",
        failed=not limit and fail_above is not None and ratio > 1 + fail_above,
    )


def _error(one: float, other: float) -> float:
    """The factor that two independent ones make together."""
    return math.exp(math.hypot(math.log(one), math.log(other)))


def _to_limit(row: RowResult, result: Result) -> tuple[float, ...]:
    """A row's ratios to its limit."""
    if not row.against:
        raise _Unlike("it is held against no other row")
    other = next(one for one in result.rows if one.name == row.against[0].row)
    if min(other.samples) <= 0 or min(row.samples) <= 0:
        raise _Unlike("a sample is 0")
    return tuple(ratios(row.samples, other.samples, row.better))


def _differences(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[HostDifference]:
    """Facts that should be the same; the load never is."""
    for name in dict.fromkeys([*old, *new]):
        before, after = old.get(name, ""), new.get(name, "")
        if before != after and name != "load_average":
            yield HostDifference(name=name, old=before, new=after)
