"""What a measurement says: one document for every benchmark, and the statistics in it.

`Report` is ``balloonctl/bench/1``. It keeps the raw samples, so that whatever is derived from them
(medians, ratios) can be derived anew; `compare`, the exports and the charts read nothing else.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from balloonvq.counters import Latency

__all__ = ["Better", "Fact", "Ratio", "Report", "Result", "RowResult", "Skipped", "outliers", "ratios"]

#: Which way a figure should go.
Better = Literal["lower", "higher"]

#: Modified z-score beyond which a sample is an outlier (Iglewicz and Hoaglin, 1993).
OUTLIER_SCORE = 3.5

#: Samples below which none is called an outlier.
OUTLIER_SAMPLES = 5

#: A sample this near the median, as a share of it, is no outlier however still the others are.
OUTLIER_SHARE = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """A row's cost in times another row's, taken round by round."""

    row: str
    """The other row."""
    median: float
    """Of the ratios of the rounds, not the ratio of the medians; below 1 is cheaper than the other row."""
    min: float
    max: float
    at_most: float | None = None
    """The ratio that is to be reached; null: none was set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fact:
    """A side figure of a row."""

    name: str
    """With its unit: _bytes, _ns, _share (a part of 1), _per_array and so on."""
    median: float
    """Over the rounds."""
    min: float
    max: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RowResult:
    """One row of a benchmark."""

    name: str
    about: str
    """What was done, in a line."""
    unit: str
    """Of the samples: ns, or what the benchmark says."""
    per: str
    """What the unit is for: buffer, array; empty: the whole of what `about` says."""
    better: Better
    """Which way is better."""
    bytes: int | None
    """Bytes that one sample handles, where a rate makes sense."""
    samples: tuple[float, ...]
    """One a round, in the order of the rounds."""
    median: float
    min: float
    max: float
    against: tuple[Ratio, ...]
    """The rows that it is held against; the limit first."""
    latency: Latency | None
    """Percentiles of single operations, over all rounds; null: they were not measured one by one."""
    bucket_ns: tuple[int, ...]
    """Lowest value of each bucket of their histogram that is not empty."""
    bucket_counts: tuple[int, ...]
    """Values in each of these buckets."""
    facts: tuple[Fact, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """One benchmark with one set of parameters."""

    benchmark: str
    about: str
    parameters: dict[str, int | str | bool]
    """All of them, sizes in bytes."""
    runs: int
    """Rounds that count."""
    warmup: int
    """Rounds before them that do not."""
    elapsed_ns: int
    """Of all rounds that count."""
    rows: tuple[RowResult, ...]
    notes: tuple[str, ...]
    """What the benchmark has to say about this run, such as why it could not pin its threads."""
    warnings: tuple[str, ...]
    """Why the figures may not be trusted, and the option that helps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A benchmark that could not be run here."""

    benchmark: str
    what: str
    why: str
    hint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """``balloonctl/bench/1``: what one run of `bench` measured."""

    schema: str = "balloonctl/bench/1"
    started: str
    """RFC 3339."""
    host: dict[str, str]
    """What the figures should be read with: processor, cores, kernel, huge pages, compiler, commit."""
    results: tuple[Result, ...]
    skipped: tuple[Skipped, ...] = ()
    """By `bench all`: what could not be measured here."""
    interrupted: bool = False
    """Whether Ctrl-C came before all was measured; the last result may have fewer rounds than were asked for."""


def ratios(samples: Sequence[float], others: Sequence[float], better: Better) -> list[float]:
    """Costs in times the other row's, round by round: above 1 is worse, whichever way the figures go."""
    if better == "lower":
        return [one / other for one, other in zip(samples, others, strict=True)]
    return [other / one for one, other in zip(samples, others, strict=True)]


def outliers(samples: Sequence[float]) -> list[int]:
    """Positions of the samples that lie far from the others.

    Far is a modified z-score, 0.6745 x distance / median distance, beyond `OUTLIER_SCORE`. Where more than half
    of the samples are equal the median distance is 0; then all that is not near the median is far. Under
    `OUTLIER_SAMPLES` samples nothing can be said.
    """
    if len(samples) < OUTLIER_SAMPLES:
        return []
    middle = statistics.median(samples)
    distances = [abs(sample - middle) for sample in samples]
    spread = statistics.median(distances)
    return [
        number
        for number, distance in enumerate(distances)
        if 0.6745 * distance > OUTLIER_SCORE * spread and distance > OUTLIER_SHARE * abs(middle)
    ]
