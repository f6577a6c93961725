"""The shipped designs in the shipped scenarios: each verdict is one of the engine's, with its bounds."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from balloonvq.driver.designs import DESIGNS, Design, find
from balloonvq.errors import InvalidArgument
from balloonvq.explore import naive
from balloonvq.explore import replay as strings
from balloonvq.explore.automaton import Automaton
from balloonvq.explore.scenarios import SCENARIOS, Scenario, program, run, scenarios_for
from balloonvq.explore.search import Limits
from balloonvq.explore.verdict import Kind, Outcome
from balloonvq.explore.world import Bounds, World
from balloonvq.guest.pages import Batch


def bug(design: str, scenario: str, **options: str):
    result = run(find(design), SCENARIOS[scenario], options=options)
    assert result.verdict.outcome is Outcome.BUG
    return result, result.verdict.bug


def test_coarse_deadlocks_between_the_worker_and_a_nofs_allocation() -> None:
    result, found = bug("coarse", "oom-while-filling")
    assert found.kind is Kind.DEADLOCK
    assert found.shortest.minimal
    worker, caller = result.timeline.ends[:2]
    assert worker.holds == ("balloon_lock",)
    assert worker.wants == "lock(fs_lock)"
    assert worker.fate == "waits for O"
    assert {*caller.holds} == {"fs_lock", "oom_lock"}
    assert caller.wants == "lock(balloon_lock)"
    assert caller.fate == "waits for W"
    assert caller.place.startswith("coarse.py:")


def test_a_replay_string_leads_to_the_same_deadlock() -> None:
    result, _ = bug("coarse", "oom-while-filling")
    execution = strings.replay(result.replay, [program(find("coarse"), SCENARIOS["oom-while-filling"])])
    assert [actor.name for actor in execution.stuck] == ["W", "O"]


def test_the_schedule_with_the_fewest_preemptions_can_be_replayed() -> None:
    result, found = bug("split", "data-while-filling")
    assert found.fewest_preemptions.preemptions < found.shortest.preemptions
    explored = program(find("split"), SCENARIOS["data-while-filling"])
    execution = strings.replay(result.fewest_replay, [explored])
    assert tuple(execution.decisions) == found.fewest_preemptions.decisions
    assert len(result.fewest_timeline.lines) >= len(found.shortest)


def test_steps_are_shown_at_lines_of_the_design_or_the_kernel() -> None:
    result, _ = bug("split", "oom-while-filling-kernel")
    assert {line.place.partition(":")[0] for line in result.timeline.lines} <= {
        "",
        "base.py",
        "kernel.py",
        "split.py",
    }


@pytest.mark.parametrize("design", ["upstream", "modern"])
def test_upstream_trades_the_deadlock_for_a_page_that_nobody_reaches(design: str) -> None:
    # Livelocks are judged after a complete search: there is no deadlock.
    result, found = bug(design, "oom-while-filling")
    assert found.kind is Kind.LIVELOCK
    worker = result.timeline.ends[0]
    assert worker.wants == "lock(fs_lock)"
    assert worker.holds == ()
    assert run(find(design), SCENARIOS["oom-while-filling-kernel"]).verdict.outcome is Outcome.PROVED


#: Compaction's isolated page is out of anybody's reach, and is so in every design.
OUT_OF_REACH = "empty-handed-compaction"


@pytest.mark.parametrize("scenario", [name for name in SCENARIOS if "shrinker" not in name])
def test_reference_is_proven(scenario: str) -> None:
    result = run(find("reference"), SCENARIOS[scenario])
    if scenario == OUT_OF_REACH:
        assert "isolated" in result.verdict.bug.what
    else:
        assert result.verdict.outcome is Outcome.PROVED, result.verdict.bug
        assert result.verdict.checked > 0


def test_split_gives_back_a_page_before_the_host_has_it() -> None:
    _, found = bug("split", "oom-while-filling-kernel")
    assert "the host has not got yet" in found.what


def test_split_loses_data() -> None:
    _, found = bug("split", "data-while-filling")
    assert "lost data" in found.what
    late = run(find("split"), SCENARIOS["data-while-filling"], options={"insert": "late"})
    assert late.verdict.outcome is Outcome.PROVED


@pytest.mark.parametrize("insert", ["early", "late"])
def test_two_leakers_of_split_meet_bug(insert: str) -> None:
    _, found = bug("split", "oom-while-leaking", insert=insert)
    assert "BUG()" in found.what


def test_counting_before_the_insert_meets_bug() -> None:
    _, found = bug("split", "oom-while-filling-kernel", insert="late", count="before")
    assert "BUG()" in found.what


def test_the_deflating_flag_does_not_help() -> None:
    _, found = bug("split-deflating", "oom-while-leaking")
    assert "BUG()" in found.what


@pytest.mark.parametrize("design", ["coarse", "upstream", "modern"])
def test_publishing_outside_of_the_lock_leaves_actual_stale(design: str) -> None:
    _, found = bug(design, "actual-while-leaking")
    assert (found.kind, found.what) == (Kind.AT_REST, "actual is stale")


def test_oom_of_upstream_does_not_reach_the_hand() -> None:
    _, found = bug("upstream", "empty-handed-filling")
    assert "in hand" in found.what


def test_oom_of_modern_kills_although_another_leaker_has_freed_a_page() -> None:
    _, found = bug("modern", "empty-handed-leaking")
    assert "freed by another" in found.what


def test_a_scenario_of_ones_own_names_its_bounds() -> None:
    mine = Scenario("mine", "fill beside compaction", ("W", "C"), free=1, listed=1, target=2, turns=1)
    result = run(find("modern"), mine)
    assert result.verdict.outcome is Outcome.PROVED
    assert result.bounds == (
        "2 actors and two host queues",
        "2 pages",
        "batches of 1",
        "1 turn of the size worker",
    )
    assert result.replay is result.timeline is None


def test_giving_up_is_no_proof() -> None:
    result = run(find("modern"), SCENARIOS["compaction-while-filling"], limits=Limits(states=100))
    assert result.verdict.outcome is Outcome.INCOMPLETE


@pytest.mark.parametrize("design", DESIGNS)
def test_teardown_alone_is_the_same_to_the_oracle(design: str) -> None:
    explored = program(find(design), replace(SCENARIOS["teardown"], listed=1))
    assert run(find(design), SCENARIOS["teardown"]).verdict.outcome is Outcome.PROVED
    assert naive.explore(explored).outcome is Outcome.PROVED


class NeverTells(Design):
    """A design with a planted bug: frees without a word to the host."""

    name = "never-tells"

    def fill(self, n: int) -> int:
        return 0

    def leak(self, n: int) -> int:
        pages = self.vb.dequeue(1)
        self.vb.release([pages])
        self.vb.num_pages.value -= 1
        return 1

    def migrate(self, new: Batch, old: Batch) -> bool:
        return False


def test_a_page_freed_without_telling_the_host_is_found() -> None:
    found = run(NeverTells, SCENARIOS["teardown"]).verdict.bug
    assert "freed before the host gave it back" in found.what


def test_shrinkers_are_for_designs_that_have_one() -> None:
    assert "shrinkers" not in {scenario.name for scenario in scenarios_for(find("modern"))}
    assert "shrinkers" in {scenario.name for scenario in scenarios_for(find("shrinker"))}
    with pytest.raises(InvalidArgument, match="no shrinker"):
        run(find("modern"), SCENARIOS["shrinkers"])


@pytest.mark.parametrize(
    "changes",
    [
        {"actors": ("X",)},
        {"flags": frozenset({"nofss"})},
        {"checks": frozenset({"counts"})},
        {"actors": ("W", "R")},
    ],
)
def test_what_no_guest_can_be_is_refused(changes) -> None:
    with pytest.raises(InvalidArgument, match="oom-while-filling"):
        run(find("modern"), replace(SCENARIOS["oom-while-filling"], **changes))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", 7),
        ("summary", None),
        ("actors", "WO"),
        ("actors", ("W", 7)),
        ("free", "x"),
        ("listed", None),
        ("target", 1.5),
        ("turns", True),
        ("rounds", "2"),
        ("flags", "nofs"),
        ("flags", frozenset({1, "nofs"})),
        ("checks", ("count",)),
        ("bounds", {}),
        ("thorough", "no"),
    ],
)
def test_regression_a_value_of_another_type_is_refused_by_name(field: str, value: object) -> None:
    wrong = replace(SCENARIOS["oom-while-filling"], **{field: value})
    with pytest.raises(InvalidArgument, match=f"^{field} of scenario .* is {re.escape(repr(value))}$"):
        run(find("modern"), wrong)


def test_reference_is_proven_with_all_three_actors_at_once() -> None:
    """rounds: the notifier counts its calls, so an unbounded retry loop has no end of states."""
    everybody = Scenario(
        "everybody",
        "fill beside OOM beside compaction",
        ("W", "O", "C"),
        free=1,
        listed=1,
        target=2,
        checks=frozenset({"count", "actual"}),
        turns=1,
        rounds=2,
    )
    assert run(find("reference"), everybody).verdict.outcome is Outcome.PROVED


# -- hosts, processors and locks that are not as usual ------------------------------


def test_the_flag_spins_for_ever_on_one_processor() -> None:
    result, found = bug("split-deflating", "one-cpu-leaking")
    assert (found.kind, found.what) == (Kind.LIVELOCK, "O for ever without progress")
    assert "cpu_relax" in {line.text.partition("(")[0] for line in result.timeline.lines}
    fair = replace(SCENARIOS["one-cpu-leaking"], bounds=Bounds())
    assert "BUG()" in run(find("split-deflating"), fair).verdict.bug.what


def test_a_program_notices_that_its_data_is_lost() -> None:
    result, found = bug("split", "data-of-another")
    assert found.what == "U: LostData(lost data: a program's page is not what it wrote)"
    assert "write(pages, 1)" in {line.text for line in result.timeline.lines}


def test_waiting_for_a_silent_host_is_no_deadlock_but_a_circle_of_locks_is() -> None:
    silent = replace(SCENARIOS["oom-while-filling"], flags=frozenset({"nofs", "fs lock", "silent"}))
    found = run(find("coarse"), silent).verdict.bug
    assert (found.kind, len(found.shortest)) == (Kind.DEADLOCK, 11)
    ends = naive.findings(
        program(find("reference"), replace(SCENARIOS["silent-host-teardown"], actors=("R",)))
    ).ends
    assert any("for ever" in end[1][-1] for end in ends)
    assert {fate for end in ends for fate in end[1][:1]} > {"finished"}


class Impatient(NeverTells):
    """Leaks without looking at who has locked the page."""

    name = "impatient"

    def leak(self, n: int) -> int:
        vb = self.vb
        pages = vb.dequeue(n)
        self.pfns.clear()
        self.pfns.append(pages)
        vb.tell_host(vb.deflate_vq, self.pfns)
        vb.release([pages])
        vb.num_pages.value -= 1
        return 1

    def probe(self) -> None:
        self.pfns = self.vb.pfn_array("pfns")


def test_a_leak_that_takes_every_page_for_unlocked_is_found() -> None:
    assert run(Impatient, SCENARIOS["teardown"]).verdict.outcome is Outcome.PROVED
    found = run(Impatient, SCENARIOS["page-locks-teardown"]).verdict.bug
    assert found.kind is Kind.ERROR
    assert found.what.startswith("R: TypeError")


class GivesUp(find("modern")):
    """Does not try again when it has got fewer pages than the host wants."""

    name = "gives-up"

    def resize(self) -> None:
        if (difference := self.towards_target()) > 0:
            self.fill(difference)
            self.publish()


def test_a_target_that_is_given_up_is_missed() -> None:
    found = run(GivesUp, SCENARIOS["target-filling"]).verdict.bug
    assert (found.kind, found.what) == (Kind.AT_REST, "the target is not reached")
    assert run(find("modern"), SCENARIOS["target-filling"]).verdict.outcome is Outcome.PROVED


class LeavesPages(find("modern")):
    """Its teardown forgets to leak."""

    name = "leaves-pages"

    def drain(self) -> None:
        """Nothing."""


def test_pages_that_the_host_keeps_after_teardown_are_missed() -> None:
    found = run(LeavesPages, SCENARIOS["teardown"]).verdict.bug
    assert (found.kind, found.what) == (Kind.AT_REST, "the driver is gone and the host has pages of it")


@pytest.mark.parametrize("scenario", ["fill-oom-compaction", "actual-while-leaking", "data-of-another"])
def test_a_replay_knows_what_the_search_found_out(scenario: str) -> None:
    """Unlocks of a mutex on which somebody calls trylock late are scheduling points from the first step on."""
    for design in ("split", "upstream"):
        result = run(find(design), SCENARIOS[scenario])
        if result.verdict.bug is not None:
            execution = strings.replay(result.replay, [program(find(design), SCENARIOS[scenario])])
            assert len(execution.decisions) == len(result.verdict.bug.shortest)


class WaitsInTheNotifier(find("coarse")):
    """Its OOM notifier takes a lock turn after turn until fill has begun."""

    name = "waits-in-the-notifier"

    def probe(self) -> None:
        super().probe()
        self.gate = self.vb.runtime.mutex("gate")
        self.begun = self.vb.runtime.shared("begun")

    def fill(self, n: int) -> int:
        self.begun.value = 1
        return 0

    def on_oom(self) -> int:
        while True:
            if self.begun.value:
                return 0
            with self.gate:
                pass
            self.vb.runtime.relax()


def test_an_oom_call_comes_to_its_first_lock_once() -> None:
    """Before it and after it the code may stand at the same place with the same variables."""
    scenario = Scenario(
        "waits", "", ("W", "O"), free=0, listed=1, target=2, checks=frozenset({"freed by another"}), turns=1
    )
    explored = program(WaitsInTheNotifier, scenario)
    assert run(WaitsInTheNotifier, scenario).verdict.outcome is Outcome.PROVED
    world = World(explored)
    world.spins = True
    automaton = Automaton(world, 1)
    node, kinds = 0, []
    while kinds.count("relax") < 3:
        operation = automaton.nodes[node].operation
        kinds.append(operation.kind)
        observed = {"trylock": True, "read": 0}.get(operation.kind)
        node = automaton.step(node, observed)
    automaton.close()
    assert kinds.count("oom_waits") == 1
