"""The permanent test: on 1,000 random programs every engine finds the same ends.

N is the oracle; programs with too many interleavings for it are passed over and replaced.
"""

from __future__ import annotations

import itertools

import pytest

from balloonvq.driver.designs import find
from balloonvq.explore import dpor, naive, product, programs, random_walk
from balloonvq.explore.scenarios import SCENARIOS, program, scenarios_for
from balloonvq.explore.verdict import Outcome
from balloonvq.explore.world import Bounds

CHUNKS = 25
PROGRAMS = 40
EXECUTIONS_MAX = 200


def same(seed: int, expected, found) -> None:
    assert expected.ends == found.ends, programs.describe(seed)
    assert expected.livelocks == found.livelocks, programs.describe(seed)
    assert expected.broken == found.broken, programs.describe(seed)


@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_all_engines_find_the_same_ends(chunk) -> None:
    compared = 0
    for seed in itertools.count(chunk * 100_000):
        program = programs.generate(seed)
        oracle = naive.findings(program, EXECUTIONS_MAX)
        if not oracle.complete:
            continue
        same(seed, oracle, product.findings(program))
        same(seed, oracle, product.findings(programs.generate(seed, Bounds(all_ops=True))))
        same(seed, oracle, dpor.findings(program))
        drawn = random_walk.findings(program, executions=10, seed=seed)
        assert drawn.ends <= oracle.ends
        assert drawn.livelocks <= oracle.livelocks
        compared += 1
        if compared == PROGRAMS:
            return


@pytest.mark.parametrize("chunk", range(4))
def test_product_and_partial_orders_agree_where_brute_force_is_too_slow(chunk) -> None:
    for seed in range(chunk * 1000 + 50_000, chunk * 1000 + 50_150):
        program = programs.generate(seed)
        same(seed, product.findings(program), dpor.findings(program))


def test_one_processor_agrees_with_brute_force() -> None:
    for seed in range(150):
        program = programs.generate(seed, Bounds(one_cpu=True))
        oracle = naive.findings(program, EXECUTIONS_MAX)
        if oracle.complete:
            same(seed, oracle, product.findings(program))


def test_explored_time_agrees_with_brute_force() -> None:
    compared = 0
    for seed in range(80):
        program = programs.generate(seed, Bounds(explore_time=True))
        oracle = naive.findings(program, EXECUTIONS_MAX)
        if oracle.complete:
            compared += 1
            same(seed, oracle, product.findings(program))
            same(seed, oracle, dpor.findings(program))
    assert compared > 30


def test_the_programs_are_worth_comparing() -> None:
    found = [product.findings(programs.generate(seed)) for seed in range(150)]
    deadlocks = [
        f for f in found if any("lock(" in str(end[1]) or "schedule" in str(end[1]) for end in f.ends)
    ]
    errors = [f for f in found if any("OopsError" in str(end[1]) for end in f.ends)]
    livelocks = [f for f in found if f.livelocks]
    several = [f for f in found if len(f.ends) > 1]
    assert min(map(len, (deadlocks, errors, livelocks, several))) >= 10


@pytest.mark.parametrize("scenario", [one.name for one in scenarios_for(find("split"))])
@pytest.mark.parametrize("design", ["split", "modern"])
def test_no_engine_contradicts_another_about_a_shipped_scenario(design: str, scenario: str) -> None:
    """N and D decide those that are small enough for them, and those whose bug comes early."""
    explored = program(find(design), SCENARIOS[scenario])
    expected = product.explore(explored).outcome
    # Partial orders say nothing about one processor.
    for engine in (naive,) if explored.bounds.one_cpu else (naive, dpor):
        verdict = engine.explore(explored, executions_max=60)
        if verdict.outcome is not Outcome.INCOMPLETE:
            assert verdict.outcome is expected, (verdict, expected)


@pytest.mark.parametrize(
    ("engine", "scenario"),
    [(naive, "teardown"), (dpor, "teardown"), (dpor, "fill-user"), (dpor, "teardown-oom")],
)
def test_scenarios_that_are_small_enough_are_proved_by_others_too(engine, scenario) -> None:
    assert engine.explore(program(find("modern"), SCENARIOS[scenario])).outcome is Outcome.PROVED


@pytest.mark.parametrize("engine", [naive, dpor])
def test_an_execution_that_was_given_up_is_no_verdict(engine) -> None:
    """Brute force takes a caller round its retry loop for ever, which no fair scheduler does."""
    explored = program(find("split"), SCENARIOS["two-ooms"])
    verdict = engine.explore(explored, executions_max=3)
    assert verdict.outcome is Outcome.INCOMPLETE
    assert "20000 steps" in verdict.why
