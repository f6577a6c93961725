"""bench oom: what it counts is what the machine did."""

from __future__ import annotations

import pytest

from balloonvq.bench.measure import Plan, measure
from balloonvq.bench.oom import BENCHMARK
from balloonvq.errors import InvalidArgument


def rows(**values: object) -> dict:
    result = measure(
        BENCHMARK,
        {"size_bytes": 4 << 20, "demand_bytes": 2 << 20, "events": 8, **values},
        Plan(runs=1, warmup=0),
    )
    return {row.name: row for row in result.rows}


def facts(row) -> dict[str, float]:
    return {fact.name: fact.median for fact in row.facts}


def test_a_demand_of_two_rounds_takes_two_rounds() -> None:
    row = rows(design="modern")["modern"]
    found = facts(row)
    # A balloon of 4 MiB meets two demands of 2 MiB, each with two rounds of 256 pages.
    assert (found["events"], found["pages"], found["rounds"]) == (2, 512, 2)
    assert 0 < row.median <= found["relief_ns"]
    assert row.latency is not None
    assert row.latency.count == 2


def test_the_shrinker_is_called_by_reclaim() -> None:
    found = facts(rows(design="shrinker")["shrinker"])
    assert found["rounds"] == 0
    assert found["reclaims"] >= 1
    # Not always all 512: the size worker fills again meanwhile, and puts back what it has in hand when memory ends.
    assert found["pages"] > 0


def test_the_oldest_design_waits_for_the_sleep_of_a_worker_that_fills() -> None:
    measured = rows(design="coarse", events=4)
    # no_memory sleeps 200 ms under balloon_lock; half of it is far from what a busy machine adds to the others.
    assert measured["coarse filling"].median > 50e6
    assert measured["coarse"].median < 50e6


@pytest.mark.parametrize(
    "values", [{"demand_bytes": 4096}, {"demand_bytes": 8 << 20}, {"size_bytes": 0}, {"design": "nothing"}]
)
def test_sizes_that_do_not_fit(values: dict[str, object]) -> None:
    with pytest.raises(InvalidArgument):
        rows(**values)
