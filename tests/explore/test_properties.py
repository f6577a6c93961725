"""What each design does wrong, property by property: a change of a design, a scenario or the engine is seen here."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest

from balloonvq.driver.balloon import PFNS_MAX
from balloonvq.driver.designs import DESIGNS, find
from balloonvq.errors import InvalidArgument
from balloonvq.explore import invariants, model
from balloonvq.explore.live import confirm
from balloonvq.explore.matrix import VARIANTS, row
from balloonvq.explore.product import explore
from balloonvq.explore.properties import RULES, Property, broken_by, judge, property_named, shown_by, survey
from balloonvq.explore.scenarios import SCENARIOS, Scenario, combination, program, run, scenarios_for
from balloonvq.explore.search import Limits
from balloonvq.explore.verdict import Kind, Outcome
from balloonvq.explore.world import Program, World
from balloonvq.guest import stack
from balloonvq.runtime.execution import Execution

#: Design and options -> the length of the shortest schedule of what is broken, and the deepest stack in bytes. All
#: properties that are not named are proved, but for those that no scenario would show: none.
EXPECTED: dict[tuple[str, ...], tuple[dict[str, int], int]] = {
    ("coarse",): (
        {"deadlock": 11, "OOM: freed by another": 37, "OOM: isolated": 21, "stale actual": 54},
        7168,
    ),
    ("split",): (
        {
            "BUG()": 12,
            "lost or early free": 21,
            "OOM: page listed": 21,
            "OOM: in fill's hand": 20,
            "OOM: isolated": 19,
            "stale actual": 44,
            "livelock": 53,
        },
        8192,
    ),
    ("split-deflating",): (
        {
            "BUG()": 16,
            "lost or early free": 23,
            "OOM: page listed": 24,
            "OOM: in fill's hand": 23,
            "OOM: isolated": 22,
            "stale actual": 49,
            "livelock": 25,
            "spin on one CPU": 22,
        },
        8192,
    ),
    ("upstream",): (
        {
            "OOM: in fill's hand": 18,
            "OOM: freed by another": 37,
            "OOM: isolated": 21,
            "stale actual": 49,
            "livelock": 53,
        },
        7168,
    ),
    ("shrinker",): (
        {
            "OOM: in fill's hand": 13,
            "OOM: freed by another": 21,
            "stale actual": 44,
            "livelock": 39,
            "target missed": 44,
        },
        7168,
    ),
    ("modern",): (
        {
            "OOM: in fill's hand": 18,
            "OOM: freed by another": 37,
            "OOM: isolated": 21,
            "stale actual": 49,
            "livelock": 53,
        },
        7168,
    ),
    ("reference",): ({"OOM: isolated": 24}, 7168),
    ("split", "insert=late"): (
        {"BUG()": 12, "OOM: in fill's hand": 20, "OOM: isolated": 19, "stale actual": 44, "livelock": 52},
        8192,
    ),
    ("split", "pfns=per-direction"): (
        {
            "BUG()": 12,
            "lost or early free": 21,
            "OOM: page listed": 21,
            "OOM: in fill's hand": 20,
            "OOM: isolated": 19,
            "stale actual": 44,
            "livelock": 53,
            "wrong acknowledgement": 19,
        },
        7172,
    ),
    ("split", "insert=late", "pfns=per-direction"): (
        {
            "BUG()": 12,
            "lost or early free": 22,
            "OOM: in fill's hand": 20,
            "OOM: isolated": 19,
            "stale actual": 44,
            "livelock": 52,
            "wrong acknowledgement": 19,
        },
        7172,
    ),
}


def options(*given: str) -> dict[str, str]:
    return dict(one.split("=") for one in given)


@pytest.mark.parametrize("design", EXPECTED, ids=" ".join)
def test_the_matrix(design: tuple[str, ...]) -> None:
    expected, stack_bytes = EXPECTED[design]
    found = row(design[0], options(*design[1:]))
    assert {
        cell.property.value: len(cell.bug.shortest) for cell in found.cells if cell.bug is not None
    } == expected
    rest = {cell.outcome for cell in found.cells if cell.bug is None}
    assert rest == {Outcome.PROVED}
    assert found.stack_bytes == stack_bytes


def test_every_row_of_the_matrix_is_expected() -> None:
    variants = [(name, *(f"{option}={value}" for option, value in given.items())) for name, given in VARIANTS]
    assert {*EXPECTED} == {*((name,) for name in DESIGNS), *variants}


@pytest.mark.parametrize("module", [model, invariants, stack])
def test_what_the_model_refuses_has_a_property(module) -> None:
    """Every first argument of KernelBug and of LostData, and every name of an invariant."""
    texts = []
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            if name in {"KernelBug", "LostData", "invariant"} and node.args:
                first = node.args[0]
                part = first.values[0] if isinstance(first, ast.JoinedStr) else first
                if isinstance(part, ast.Constant):
                    texts.append(part.value)
    assert texts
    for text in texts:
        assert any(rule.startswith(text) or text.startswith(rule) for rule in RULES), text


@pytest.mark.parametrize(
    "scenario", ["oom-while-leaking", "one-cpu-leaking", "oom-while-filling", "teardown"]
)
@pytest.mark.parametrize("design", ["coarse", "split-deflating", "reference"])
def test_a_survey_begins_with_the_bug_of_an_exploration(design: str, scenario: str) -> None:
    explored = program(find(design), SCENARIOS[scenario])
    verdict = explore(explored)
    found = survey(explored)
    assert found.complete
    if verdict.bug is None:
        assert not found.broken
    else:
        first = broken_by(verdict.bug.kind, verdict.bug.what, one_cpu=explored.bounds.one_cpu)
        assert len(found.broken[first].shortest) == len(verdict.bug.shortest)


def test_a_failure_does_not_hide_another_one() -> None:
    found = survey(program(find("split"), SCENARIOS["empty-handed-filling"]))
    assert {Property.IN_HAND, Property.LISTED} <= found.broken.keys()


def test_a_survey_that_was_given_up_proves_nothing() -> None:
    found = row("modern", {}, [SCENARIOS["compaction-while-filling"]], Limits(states=50))
    assert {cell.outcome for cell in found.cells} == {Outcome.INCOMPLETE, None}


def test_a_scenario_shows_what_it_checks() -> None:
    alone = Scenario("alone", "", ("R",), listed=1, checks=frozenset())
    assert Property.TEARDOWN in shown_by(alone)
    assert Property.ACTUAL not in shown_by(alone)
    assert Property.SPIN in shown_by(SCENARIOS["one-cpu-leaking"])
    assert Property.LIVELOCK not in shown_by(SCENARIOS["one-cpu-leaking"])
    shown = frozenset().union(*map(shown_by, SCENARIOS.values()))
    assert shown == {*Property}


class Greedy(find("split")):
    """Its notifier has room for ten requests on the stack."""

    name = "greedy"

    def on_oom(self) -> int:
        with self.vb.stack_array(10 * PFNS_MAX):
            return super().on_oom()


def test_a_stack_that_overflows_is_found() -> None:
    found = survey(program(Greedy, SCENARIOS["two-ooms"]))
    bug = found.broken[Property.STACK]
    assert bug.kind is Kind.ERROR
    assert "kernel stack overflow" in bug.what


def test_combinations_are_named_by_their_actors() -> None:
    found = combination("fill+oom-nofs+compaction+user")
    assert found.actors == ("W", "O", "C", "U")
    assert found.flags == {"nofs"}
    assert combination("leak+shrinkers").actors == ("W", "K", "L")
    for wrong in ("fill", "oom+fill", "fill+leak", "fill+fill", "fill+oom+oom-nofs", "", "fill+"):
        assert combination(wrong) is None
    names = [one.name for one in scenarios_for(find("modern"), thorough=True)]
    assert len(names) == len({*names})
    assert sum("+" in name for name in names) == 4 * 5 * 2 * 2 - 10
    assert not any("+" in name for name in (one.name for one in scenarios_for(find("modern"))))


@pytest.mark.parametrize(
    "name",
    [
        "leak+oom-nofs-fs-lock+user",
        "teardown+oom-nofs+user",
        "oom-fs-lock+compaction+user",
        "fill+oom-nofs+user",
    ],
)
def test_reference_is_proven_in_combinations(name: str) -> None:
    assert run(find("reference"), combination(name)).verdict.outcome is Outcome.PROVED


def test_the_page_about_reference_shows_the_figures_of_the_matrix() -> None:
    text = (Path(__file__).parents[2] / "docs" / "reference-design.md").read_text()
    table = {
        line.split("|")[1].strip(): line.split("|")[2:-1] for line in text.splitlines() if "| ✓ |" in line
    }
    for property_ in Property:
        expected = [str(EXPECTED[design,][0].get(property_.value, "✓")) for design in DESIGNS]
        assert [cell.strip() for cell in table[property_.value]] == expected


def test_a_property_is_judged_beyond_what_else_is_broken() -> None:
    result = run(find("split"), SCENARIOS["oom-while-leaking"], only=Property.ACKNOWLEDGEMENT)
    assert result.verdict.outcome is Outcome.PROVED
    assert result.verdict.checked > 0
    options = {"pfns": "per-direction"}
    broken = run(
        find("split"), SCENARIOS["oom-while-leaking"], options=options, only=Property.ACKNOWLEDGEMENT
    )
    assert "a PFN array changed" in broken.verdict.bug.what
    explored = program(find("split"), SCENARIOS["oom-while-leaking"], options)
    assert confirm(explored, broken.verdict.bug.shortest.decisions, times=3).confirmed == 3


@pytest.mark.parametrize("property_", Property)
def test_every_property_has_a_name_for_a_command_line(property_: Property) -> None:
    assert property_named(property_.slug) is property_named(property_.value) is property_
    assert not set(property_.slug) - set("abcdefghijklmnopqrstuvwxyz-")


def test_an_unknown_property_is_told_which_there_are() -> None:
    with pytest.raises(InvalidArgument, match="no property 'dedlock'") as caught:
        property_named("dedlock")
    assert caught.value.hint == "did you mean deadlock?"


def test_an_array_keeps_what_was_written_until_it_is_overwritten() -> None:
    """Or a host would be said to find an emptied array, where it reads what was there."""
    seen = []

    def build(runtime) -> None:
        array = model.Array(runtime, "pfns")

        def task() -> None:
            array.append(model.Page(3))
            array.append(model.Page(4))
            array.clear()
            seen.append((array.read(), array.look(2)))
            array.append(model.Page(5))
            seen.append((array.read(), array.look(2)))

        runtime.spawn("W", "writes", task)

    Execution(World(Program("array", build))).run()
    assert seen == [((), (3, 4)), ((5,), (5, 4))]


def test_a_verdict_that_stays_open_says_how_far_it_came() -> None:
    scenario = SCENARIOS["empty-handed-leaking"]
    property_ = property_named("oom-page-listed")
    verdict = judge(program(find("modern"), scenario), property_, Limits(states=100))
    assert verdict.outcome is Outcome.INCOMPLETE
    assert verdict.layers > 1
    assert verdict.estimate is not None
