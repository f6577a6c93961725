"""The contract between a benchmark and what runs it, and the runner.

A benchmark is a module of this package with a `Definition` named ``BENCHMARK`` and a line in
`balloonvq.bench.BENCHMARKS`; the command line, exports, comparison and charts come by themselves.
It makes rows; a *round* measures each row once, one after the other, so that drift of the machine
falls on all of them. What matters are ratios: a row names the rows that it is held `against`, the
limit of the machine first, and ratios are taken within a round, never between rounds.

A whole one::

    class Copy:
        def __init__(self, size_bytes: int) -> None:
            self.rows = (
                Row("memset", "one pass that only writes", bytes=size_bytes),
                Row("memcpy", "read and write", bytes=size_bytes, against=(Against("memset", at_most=2.5),)),
            )
            self.notes = ()

        def round(self) -> dict[str, Sample]:
            return {"memset": Sample(time_of(...)), "memcpy": Sample(time_of(...), {"copied_bytes": ...})}

        def close(self) -> None: ...

    BENCHMARK = Definition(
        "copy", "What memory can do", Copy, (Parameter("size", 64 << 20, "Bytes of a pass", kind="size"),)
    )

Seconds are measured in C where an operation is shorter than about 10 us; single operations go into a
`Histogram` there, whose percentiles are reported beside the samples.
"""

from __future__ import annotations

import difflib
import itertools
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol

from balloonvq.bench.results import Better, Fact, Ratio, Result, RowResult, outliers, ratios
from balloonvq.errors import InternalError, InvalidArgument
from balloonvq.histogram import Histogram

__all__ = [
    "Against",
    "Benchmark",
    "Definition",
    "Interrupted",
    "Parameter",
    "Plan",
    "Row",
    "Sample",
    "Value",
    "measure",
    "points",
]

#: What a parameter can be.
Value = int | str | bool

#: Rounds at most, however short they are.
RUNS_MAX = 100_000

#: A round shorter than this is as much noise as measurement, seconds.
SHORT_ROUND_S = 0.01

#: (Largest - smallest) / median beyond which a row is called unsteady.
UNSTEADY = 0.5


@dataclass(frozen=True, slots=True)
class Parameter:
    """Something that can be set, and scanned: ``--queue-size 64``, ``--scan queue-size=64,256``."""

    name: str
    """As on the command line: queue-size."""
    default: Value
    """Its type is the parameter's."""
    about: str
    """One sentence, the option's help."""
    kind: Literal["size", "count", "text", "flag"] = "text"
    """size: bytes, typed as 64M; count: a whole number; flag: on or off; text: anything, or one of `choices`."""
    choices: tuple[str, ...] = ()
    """For text: what it may be; empty: anything."""
    least: int = 0
    """For a count: the smallest."""
    most: int = 1 << 32
    """For a count: the largest."""

    @property
    def key(self) -> str:
        """Its name as an argument of `Definition.create` and in the document: queue_size, size_bytes."""
        return self.name.replace("-", "_") + ("_bytes" if self.kind == "size" else "")


@dataclass(frozen=True, slots=True)
class Against:
    """A row that another is held against."""

    row: str
    """Its name."""
    at_most: float | None = None
    """The largest ratio that is wanted; None: there is no such wish."""


@dataclass(frozen=True, slots=True)
class Row:
    """What a benchmark measures once a round."""

    name: str
    """Short, unique within the benchmark; rows that belong together begin with the same word."""
    about: str
    """What is done, in a line."""
    unit: str = "ns"
    """Of the sample. Times are nanoseconds."""
    per: str = ""
    """What the unit is for: "buffer"; empty if the sample is the whole."""
    better: Better = "lower"
    bytes: int | None = None
    """Bytes that a sample in nanoseconds handles: makes a rate of it."""
    against: tuple[Against, ...] = ()
    """What it is held against in the same round, the machine's limit first; same unit as this one."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One row in one round."""

    value: float
    """In the row's unit; finite and not negative, nor zero where there are ratios."""
    facts: Mapping[str, float] = field(default_factory=dict)
    """Side figures of this round, the unit in the name: syscalls_per_array, returned_bytes, python_share."""
    histogram: Histogram | None = None
    """Single operations of this round. A fresh one each round; those that count are added up."""


class Benchmark(Protocol):
    """A benchmark that is set up."""

    @property
    def rows(self) -> Sequence[Row]:
        """In the order in which they are shown; does not change once it is set up."""
        ...

    @property
    def notes(self) -> Sequence[str]:
        """What a reader of the figures should know of this run; asked after the last round."""
        ...

    def round(self) -> Mapping[str, Sample]:
        """Measures every row once, in whatever order is fair; by name."""
        ...

    def close(self) -> None:
        """Ends what it started."""
        ...


@dataclass(frozen=True, slots=True)
class Definition:
    """A benchmark that can be run."""

    name: str
    """Of its command and its module."""
    about: str
    """One sentence; the command's help."""
    create: Callable[..., Benchmark]
    """Sets it up; takes the parameters by their `key`. A `BalloonError` says that it cannot be run here."""
    parameters: tuple[Parameter, ...] = ()
    runs: int = 5
    """Rounds that count, unless somebody asks otherwise; together they should take about ten seconds."""
    warmup: int = 1


@dataclass(frozen=True, slots=True)
class Plan:
    """How often to measure; None is the benchmark's own choice."""

    runs: int | None = None
    """Rounds that count, at least."""
    warmup: int | None = None
    """Rounds before them."""
    min_time_s: float = 0.0
    """Rounds that count go on until they took this long."""


def points(definition: Definition, scans: Mapping[str, Sequence[Value]]) -> list[dict[str, Value]]:
    """Every combination of the values that parameters are to have, the last one changing fastest.

    Args:
        definition: whose parameters.
        scans: parameter name -> values.

    Raises:
        InvalidArgument: if it has no such parameter, or there are no values; names near ones.
    """
    known = {parameter.name: parameter for parameter in definition.parameters}
    for name, values in scans.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, cutoff=0.5)
            raise InvalidArgument(
                f"bench {definition.name} has no parameter {name!r}",
                why=f"near it are {', '.join(near)}"
                if near
                else f"it has {', '.join(known) or 'no parameters'}",
                hint=f"--scan {near[0]}=…" if near else f"balloonctl bench {definition.name} --help",
            )
        if not values:
            raise InvalidArgument(f"no values for {name}", hint=f"--scan {name}={known[name].default},…")
    keys = [known[name].key for name in scans]
    choices = [dict.fromkeys(values) for values in scans.values()]
    return [dict(zip(keys, values, strict=True)) for values in itertools.product(*choices)]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C while a benchmark was measured.

    Attributes:
        result: what the rounds before it measured.
    """

    def __init__(self, result: Result) -> None:
        super().__init__()
        self.result = result


def measure(
    definition: Definition,
    values: Mapping[str, Value] | None = None,
    plan: Plan | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Sets a benchmark up, warms it up, and measures.

    Args:
        definition: the benchmark.
        values: parameters by key; the others have their defaults.
        plan: how often.
        on_progress: called with (rounds done, rounds expected).

    Raises:
        InvalidArgument: if a number of rounds is none, or a value cannot be.
        BalloonError: whatever the benchmark says why it cannot be run.
        InternalError: if the benchmark broke its contract.
        Interrupted: on Ctrl-C after a round that counts.
    """
    plan = plan or Plan()
    runs = definition.runs if plan.runs is None else plan.runs
    warmup = definition.warmup if plan.warmup is None else plan.warmup
    if not 1 <= runs <= RUNS_MAX or not 0 <= warmup <= RUNS_MAX or not 0 <= plan.min_time_s < math.inf:
        raise InvalidArgument(
            f"{runs} runs after {warmup} for {plan.min_time_s} s cannot be measured",
            why=f"at least one run is needed, and {RUNS_MAX} are the most",
        )
    chosen: dict[str, Value] = {parameter.key: parameter.default for parameter in definition.parameters}
    if unknown := set(values or {}) - chosen.keys():
        raise InternalError(f"bench {definition.name} was given {', '.join(sorted(unknown))}")
    chosen |= values or {}
    tell = on_progress or _unheard
    benchmark = definition.create(**chosen)
    rounds: list[Mapping[str, Sample]] = []
    interrupted = False
    try:
        rows = tuple(benchmark.rows)
        _check_rows(rows)
        tell(0, warmup + runs)
        for number in range(warmup):
            _checked(benchmark.round(), rows)
            tell(number + 1, warmup + runs)
        started = time.perf_counter()
        try:
            while True:
                measured = _checked(benchmark.round(), rows)
                elapsed = time.perf_counter() - started
                rounds.append(measured)
                done = len(rounds)
                tell(warmup + done, warmup + max(runs, _needed(done, elapsed, plan.min_time_s)))
                if done >= runs and (elapsed >= plan.min_time_s or done >= RUNS_MAX):
                    break
        except KeyboardInterrupt:
            if not rounds:
                raise
            interrupted = True
        notes = tuple(benchmark.notes)
    finally:
        benchmark.close()
    results = tuple(_row_result(row, rounds) for row in rows)
    by_name = {row.name: row for row in results}
    results = tuple(_with_ratios(row, result, by_name) for row, result in zip(rows, results, strict=True))
    result = Result(
        benchmark=definition.name,
        about=definition.about,
        parameters=chosen,
        runs=len(rounds),
        warmup=warmup,
        elapsed_ns=round(elapsed * 1e9),
        rows=results,
        notes=notes,
        warnings=tuple(_warnings(results, elapsed / len(rounds), warmup)),
    )
    if interrupted:
        raise Interrupted(result)
    return result


def _needed(done: int, elapsed: float, min_time_s: float) -> int:
    """Rounds that the minimum time will take, as far as one can tell."""
    return min(RUNS_MAX, math.ceil(min_time_s / max(elapsed, 1e-9) * done))


def _check_rows(rows: Sequence[Row]) -> None:
    """Whether rows are held against rows that there are, in the same unit."""
    known = {row.name: row for row in rows}
    if len(known) != len(rows) or not rows:
        raise InternalError("a benchmark needs rows, each with a name of its own")
    for row in rows:
        for other in row.against:
            found = known.get(other.row)
            if found is None or (found.unit, found.per, found.better) != (row.unit, row.per, row.better):
                raise InternalError(f"{row.name} cannot be held against {other.row}")


def _checked(samples: Mapping[str, Sample], rows: Sequence[Row]) -> Mapping[str, Sample]:
    """A round, if it measured what it had to."""
    limits = {other.row for row in rows for other in row.against}
    for row in rows:
        sample = samples.get(row.name)
        if (
            sample is None
            or not math.isfinite(sample.value)
            or sample.value < 0
            or (sample.value == 0 and (row.name in limits or row.against))
        ):
            raise InternalError(f"a round did not measure {row.name}", why=f"it gave {sample}")
    return samples


def _row_result(row: Row, rounds: Sequence[Mapping[str, Sample]]) -> RowResult:
    """A row over all rounds, without its ratios."""
    taken = [samples[row.name] for samples in rounds]
    values = [sample.value for sample in taken]
    names = dict.fromkeys(name for sample in taken for name in sample.facts)
    histograms = [sample.histogram for sample in taken if sample.histogram is not None]
    merged = Histogram.merged(histograms) if histograms else None
    buckets = merged.buckets() if merged is not None else []
    return RowResult(
        name=row.name,
        about=row.about,
        unit=row.unit,
        per=row.per,
        better=row.better,
        bytes=row.bytes,
        samples=tuple(values),
        median=statistics.median(values),
        min=min(values),
        max=max(values),
        against=(),
        latency=merged.latency() if merged is not None else None,
        bucket_ns=tuple(low for low, _ in buckets),
        bucket_counts=tuple(count for _, count in buckets),
        facts=tuple(
            _fact(name, [sample.facts[name] for sample in taken if name in sample.facts]) for name in names
        ),
    )


def _fact(name: str, values: Sequence[float]) -> Fact:
    return Fact(name=name, median=statistics.median(values), min=min(values), max=max(values))


def _with_ratios(row: Row, result: RowResult, by_name: Mapping[str, RowResult]) -> RowResult:
    """The result with what it is held against."""
    found = []
    for other in row.against:
        costs = ratios(result.samples, by_name[other.row].samples, row.better)
        found.append(
            Ratio(
                row=other.row,
                median=statistics.median(costs),
                min=min(costs),
                max=max(costs),
                at_most=other.at_most,
            )
        )
    return replace(result, against=tuple(found))


def _warnings(rows: Sequence[RowResult], round_s: float, warmup: int) -> list[str]:
    """Why the figures may not be trusted, each with the option that helps."""
    runs = len(rows[0].samples)
    said = []
    if round_s < SHORT_ROUND_S:
        said.append(f"a round took only {round_s * 1e3:.2g} ms: measure longer with --min-time 1s")
    if runs < 3:
        said.append(
            f"{runs} round{'s' if runs > 1 else ''} cannot show how much the figures spread: --runs 5"
        )
        return said
    far = {row.name: outliers(row.samples) for row in rows}
    cold = [
        row.name
        for row in rows
        if far[row.name] == [0] and (row.samples[0] > row.median) == (row.better == "lower")
    ]
    stray = [name for name, found in far.items() if found and name not in cold]
    unsteady = [
        row.name
        for row in rows
        if row.name not in cold + stray and row.max - row.min > UNSTEADY * abs(row.median)
    ]
    if cold:
        said.append(
            f"the first round was the slowest by far ({_names(cold)}): warm up longer with --warmup {warmup + 2}"
        )
    if stray:
        count = max(len(far[name]) for name in stray)
        said.append(
            f"{count} of {runs} rounds {'is' if count == 1 else 'are'} far from the others ({_names(stray)}): "
            f"something else ran; stop it, or take more rounds with --runs {runs * 3}"
        )
    if unsteady:
        said.append(
            f"the rounds differ by more than half of their median ({_names(unsteady)}): --runs {runs * 3}"
        )
    return said


def _names(names: Sequence[str]) -> str:
    """A few names."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _unheard(*_: int) -> None:
    """Where progress goes when nobody listens."""
