"""The runner of benchmarks and its statistics, on figures that are known."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balloonvq.bench.compare import interval
from balloonvq.bench.measure import (
    Against,
    Definition,
    Interrupted,
    Parameter,
    Plan,
    Row,
    Sample,
    measure,
    points,
)
from balloonvq.bench.results import outliers, ratios
from balloonvq.errors import BalloonError, InternalError, InvalidArgument
from balloonvq.histogram import Histogram

FIGURES = st.lists(st.floats(1e-3, 1e12), min_size=1, max_size=60)


class Scripted:
    """A benchmark that measures what it is told: a limit, and a row held against it."""

    def __init__(self, script=((100.0, 150.0),), better="lower", at_most=None, **_):
        self.rows = (
            Row("limit", "the limit", better=better),
            Row("row", "the row", better=better, against=(Against("limit", at_most),)),
        )
        self.notes = ("a note",)
        self.script = itertools.cycle(script)
        self.rounds = 0
        self.closed = False

    def round(self):
        self.rounds += 1
        limit, row = next(self.script)
        return {"limit": Sample(limit), "row": Sample(row, {"size_bytes": row * 2})}

    def close(self):
        self.closed = True


def scripted(*script, plan=None, **more):
    """(what it measured, the benchmark)."""
    made = []

    def create(**values):
        made.append(Scripted(script, **more, **values))
        return made[0]

    definition = Definition("scripted", "About it.", create)
    return measure(definition, plan=plan or Plan(runs=len(script), warmup=0)), made[0]


@pytest.mark.parametrize("whole", [0, 1, 3])
def test_ctrl_c_leaves_the_rounds_before_it(whole) -> None:
    made = []

    class Stopped(Scripted):
        def round(self):
            if self.rounds == 1 + whole:
                raise KeyboardInterrupt
            return super().round()

    def create():
        made.append(Stopped())
        return made[0]

    with pytest.raises(KeyboardInterrupt) as caught:
        measure(Definition("stopped", "About it.", create), plan=Plan(runs=5, warmup=1))
    assert made[0].closed
    if whole:
        assert isinstance(caught.value, Interrupted)
        assert caught.value.result.runs == whole
        assert [len(row.samples) for row in caught.value.result.rows] == [whole, whole]
    else:
        assert type(caught.value) is KeyboardInterrupt


def test_median_min_and_max_of_known_samples() -> None:
    result, _ = scripted((10, 1), (10, 9), (10, 4), (10, 100))
    row = result.rows[1]
    assert row.samples == (1, 9, 4, 100)
    assert (row.median, row.min, row.max) == (6.5, 1, 100)


def test_ratios_are_paired_round_by_round() -> None:
    # The machine doubles its price in the second round: the ratio of medians would be 2, every round says 1.5.
    result, _ = scripted((100, 150), (200, 300), (10, 15))
    ratio = result.rows[1].against[0]
    assert (ratio.row, ratio.median, ratio.min, ratio.max) == ("limit", 1.5, 1.5, 1.5)


def test_a_ratio_is_a_cost_whichever_way_the_figure_goes() -> None:
    result, _ = scripted((100, 50), better="higher")
    assert result.rows[1].against[0].median == 2


@given(FIGURES, st.sampled_from(["lower", "higher"]), st.floats(0.001, 1000))
def test_ratios_do_not_depend_on_the_unit(samples: list[float], better: str, scale: float) -> None:
    others = samples[::-1]
    once = ratios(samples, others, better)
    again = ratios([one * scale for one in samples], [one * scale for one in others], better)
    assert again == pytest.approx(once)


def test_warm_up_rounds_do_not_count() -> None:
    result, benchmark = scripted((1, 1), (1, 1), (5, 6), (5, 6), (5, 6), plan=Plan(runs=3, warmup=2))
    assert (benchmark.rounds, result.warmup, result.runs) == (5, 2, 3)
    assert result.rows[0].samples == (5, 5, 5)


def test_a_minimum_time_adds_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(0, 0.25)
    monkeypatch.setattr("balloonvq.bench.measure.time.perf_counter", lambda: next(clock))
    result, _ = scripted((1, 2), plan=Plan(runs=2, warmup=0, min_time_s=2.0))
    assert result.runs == 8
    assert result.elapsed_ns == 2_000_000_000


def test_progress_counts_warm_up_too() -> None:
    seen = []
    definition = Definition("scripted", "", Scripted, runs=2, warmup=1)
    measure(definition, on_progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]


def test_a_benchmark_is_closed_when_a_round_fails() -> None:
    benchmark = Scripted()
    benchmark.round = lambda: {"limit": Sample(1.0)}
    with pytest.raises(InternalError, match="a round did not measure row"):
        measure(Definition("broken", "", lambda: benchmark))
    assert benchmark.closed


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_what_is_no_measurement_is_refused(value: float) -> None:
    with pytest.raises(InternalError):
        scripted((value, 1.0))


def test_a_ratio_to_nothing_is_refused() -> None:
    with pytest.raises(InternalError, match="limit"):
        scripted((0.0, 1.0))


def test_a_row_cannot_be_held_against_another_unit() -> None:
    benchmark = Scripted()
    benchmark.rows = (Row("a", "", unit="pages"), Row("b", "", against=(Against("a"),)))
    with pytest.raises(InternalError, match="b cannot be held against a"):
        measure(Definition("broken", "", lambda: benchmark))


@pytest.mark.parametrize("plan", [Plan(runs=0), Plan(warmup=-1), Plan(min_time_s=math.inf)])
def test_a_plan_that_cannot_be(plan: Plan) -> None:
    with pytest.raises(InvalidArgument):
        measure(Definition("scripted", "", Scripted), plan=plan)


# ---- outliers and warnings ---------------------------------------------------


def test_outliers_are_found() -> None:
    assert outliers([10, 11, 10, 12, 50, 11]) == [4]
    assert outliers([10, 10, 10, 10, 10.1]) == []  # not far, however still the others are
    assert outliers([10, 10, 10, 10, 30]) == [4]
    assert outliers([1, 50, 1000]) == []  # too few to say


@given(FIGURES, st.floats(0.001, 1000))
def test_outliers_do_not_depend_on_the_unit(samples: list[float], scale: float) -> None:
    # Powers of two, so that scaling rounds nothing.
    scale = 2.0 ** round(math.log2(scale))
    assert outliers([sample * scale for sample in samples]) == outliers(samples)


@given(FIGURES)
def test_fewer_than_half_are_outliers_and_the_median_is_none(samples: list[float]) -> None:
    found = outliers(samples)
    assert len(found) * 2 <= len(samples)
    middle = statistics.median(samples)
    assert all(samples[number] != middle for number in found)


def warnings_of(*rows: float) -> str:
    result, _ = scripted(*((100.0, row) for row in rows))
    return "\n".join(warning for warning in result.warnings if "took only" not in warning)


def test_a_cold_first_round_names_warmup() -> None:
    assert "--warmup 2" in warnings_of(500, 100, 101, 102, 103, 100)


def test_a_stray_round_names_runs() -> None:
    said = warnings_of(100, 101, 102, 103, 900, 100)
    assert "1 of 6 rounds is far from the others (row)" in said
    assert "--runs 18" in said


def test_unsteady_rounds_name_runs() -> None:
    assert "differ by more than half of their median (row): --runs 18" in warnings_of(
        100, 120, 140, 160, 180, 90
    )


def test_one_round_names_runs() -> None:
    assert warnings_of(100) == "1 round cannot show how much the figures spread: --runs 5"


def test_a_short_round_names_min_time() -> None:
    result, _ = scripted(*[(100, 100)] * 6)
    assert [warning for warning in result.warnings if "--min-time" in warning]


def test_steady_rounds_are_not_warned_of() -> None:
    assert warnings_of(100, 101, 102, 103, 100, 99) == ""


# ---- parameters and scans ----------------------------------------------------

SCANNED = Definition(
    "scanned",
    "",
    Scripted,
    (Parameter("queue-size", 256, "", kind="count"), Parameter("size", 1 << 20, "", kind="size")),
)


def test_a_scan_is_every_combination() -> None:
    assert points(SCANNED, {"queue-size": [64, 256], "size": [1, 2]}) == [
        {"queue_size": 64, "size_bytes": 1},
        {"queue_size": 64, "size_bytes": 2},
        {"queue_size": 256, "size_bytes": 1},
        {"queue_size": 256, "size_bytes": 2},
    ]
    assert points(SCANNED, {}) == [{}]
    assert points(SCANNED, {"queue-size": [64, 64]}) == [{"queue_size": 64}]


def test_an_unknown_parameter_names_near_ones() -> None:
    with pytest.raises(InvalidArgument) as caught:
        points(SCANNED, {"queue-siz": [1]})
    assert "queue-size" in caught.value.why
    assert caught.value.hint == "--scan queue-size=…"


def test_parameters_that_are_not_given_have_their_defaults() -> None:
    result = measure(SCANNED, {"queue_size": 64}, Plan(runs=1, warmup=0))
    assert result.parameters == {"queue_size": 64, "size_bytes": 1 << 20}


# ---- percentiles -------------------------------------------------------------


def filled(values: list[int]) -> Histogram:
    histogram = Histogram()
    for value in values:
        histogram.record(value)
    return histogram


@given(st.lists(st.lists(st.integers(0, 1 << 40), max_size=30), max_size=5))
def test_merged_histograms_have_all_values(parts: list[list[int]]) -> None:
    together = filled([value for part in parts for value in part])
    merged = Histogram.merged(map(filled, parts))
    assert merged.buckets() == together.buckets()
    assert merged.latency() == together.latency()


@given(st.lists(st.integers(1, 1 << 40), min_size=1, max_size=200))
def test_percentiles_are_known_to_a_sixteenth(values: list[int]) -> None:
    latency = filled(values).latency()
    exact = sorted(values)[math.ceil(len(values) / 2) - 1]
    assert exact <= latency.p50_ns <= exact * 17 / 16 + 1
    assert latency.max_ns == max(values)


def test_histograms_of_all_rounds_are_added_up() -> None:
    class Timed(Scripted):
        def round(self):
            samples = super().round()
            return samples | {"row": Sample(1.0, histogram=filled([1000, 2000]))}

    result = measure(Definition("timed", "", Timed), plan=Plan(runs=3, warmup=1))
    row = result.rows[1]
    assert row.latency is not None
    assert row.latency.count == 6
    assert sum(row.bucket_counts) == 6
    assert row.bucket_ns == tuple(sorted(row.bucket_ns))
    assert result.rows[0].latency is None


# ---- the interval of a median ------------------------------------------------


def test_intervals_of_the_median_are_those_of_the_tables() -> None:
    # Order statistics at 95 per cent: n = 6: 1 and 6; 10: 2 and 9; 20: 6 and 15; 100: 40 and 61.
    for count, low, high in [(1, 1, 1), (5, 1, 5), (6, 1, 6), (10, 2, 9), (20, 6, 15), (100, 40, 61)]:
        assert interval(list(range(1, count + 1))) == (low, high)


@given(FIGURES)
def test_the_median_lies_within_its_interval(samples: list[float]) -> None:
    low, high = interval(samples)
    assert min(samples) <= low <= statistics.median(samples) <= high <= max(samples)


def test_every_benchmark_of_the_table_has_its_module() -> None:
    from balloonvq.bench import BENCHMARKS, find

    for name in BENCHMARKS:
        definition = find(name)
        assert definition.name == name
        keys = [parameter.key for parameter in definition.parameters]
        assert len(set(keys)) == len(keys)
    with pytest.raises(KeyError):
        find("nothing")


def test_a_benchmark_that_cannot_be_set_up_says_so() -> None:
    def create() -> Scripted:
        raise BalloonError("there is no guest here")

    with pytest.raises(BalloonError, match="no guest"):
        measure(Definition("absent", "", create))
