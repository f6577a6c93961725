"""The explorer's benchmark measures each row, and what it measures is true."""

from __future__ import annotations

import pytest

from balloonvq.bench import explore
from balloonvq.bench.explore import COLD, Explore
from balloonvq.errors import InvalidArgument
from balloonvq.explore import product
from balloonvq.explore.parallel import Task
from balloonvq.explore.scenarios import SCENARIOS
from balloonvq.explore.search import Limits


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> Explore:
    """The benchmark with a matrix of two scenarios."""
    monkeypatch.setattr(explore, "EXECUTIONS_S", 0.02)
    monkeypatch.setattr(explore, "SEARCHES", 1)
    monkeypatch.setattr(explore, "EXPLORATIONS", 1)
    benchmark = Explore(jobs=1, parts="engine,matrix,pairs,cold")
    assert len(benchmark.tasks) > 100
    benchmark.tasks = [Task("coarse", SCENARIOS[name], {}, Limits()) for name in ("two-ooms", "teardown")]
    return benchmark


def test_every_row_is_measured(small: Explore) -> None:
    found = small.round()
    assert found.keys() == {row.name for row in small.rows}
    assert all(sample.value > 0 for sample in found.values())
    states = product.explore(explore.program(explore.find("coarse"), SCENARIOS["teardown"])).states
    assert found["matrix"].facts == {"scenarios": 2, "states": 588 + states}
    assert "two-ooms" in small.notes[-1]


def test_a_search_and_its_states() -> None:
    assert explore._search().facts == {"states": 311_296}


def test_a_command_that_does_not_report_is_an_error() -> None:
    with pytest.raises(explore.InternalError, match="did not report"):
        explore._until(b"no such words", "explore", COLD[0], "--scenario", "teardown", "--confirm", "0")


def test_without_spin_the_rows_about_it_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(explore.shutil, "which", lambda _: None)
    benchmark = Explore(jobs=2, parts="cold,engine")
    assert "cold spin" not in {row.name for row in benchmark.rows}
    assert "not installed" in benchmark.notes[0]


def test_only_the_parts_that_are_wanted_are_measured(small: Explore) -> None:
    pairs = Explore(jobs=1, parts="pairs")
    pairs.tasks = small.tasks
    assert pairs.round().keys() == {"two actors, slowest", "two actors, median"}
    assert pairs.round().keys() == {row.name for row in pairs.rows}
    assert pairs.notes == pairs._slowest, "one scenario is the slowest, of the last round"
    with pytest.raises(InvalidArgument) as wrong:
        Explore(jobs=1, parts="engines")
    assert "engine, matrix, pairs, cold" in wrong.value.why
