"""What the engines say about small programs whose answer is known."""

from __future__ import annotations

import gc

import examples
import pytest
from examples import program

from balloonvq.errors import InvalidArgument
from balloonvq.explore import dpor, naive, product, random_walk
from balloonvq.explore.search import Limits
from balloonvq.explore.verdict import Kind, Outcome
from balloonvq.explore.world import Bounds, Program

WRONG = {
    examples.two_locks: Kind.DEADLOCK,
    examples.lost_wake_up: Kind.DEADLOCK,
    examples.spin_under_lock: Kind.LIVELOCK,
    examples.lost_update: Kind.AT_REST,
    examples.assertion: Kind.ERROR,
    examples.trylock: Kind.AT_REST,
}
RIGHT = [examples.ordered_locks, examples.wake_up, examples.host]


@pytest.mark.parametrize("build", WRONG, ids=lambda build: build.__name__)
@pytest.mark.parametrize("all_ops", [False, True])
def test_each_engine_finds_the_bug(build, all_ops) -> None:
    verdicts = [
        product.explore(program(build, all_ops=all_ops)),
        naive.explore(program(build, all_ops=all_ops)),
        dpor.explore(program(build, all_ops=all_ops)),
        random_walk.explore(program(build, all_ops=all_ops)),
    ]
    assert [(Outcome.BUG, WRONG[build])] * 4 == [(v.outcome, v.bug.kind) for v in verdicts]


@pytest.mark.parametrize("build", RIGHT, ids=lambda build: build.__name__)
@pytest.mark.parametrize("all_ops", [False, True])
def test_engines_prove_what_is_right(build, all_ops) -> None:
    p = program(build, all_ops=all_ops)
    assert product.explore(p).outcome is Outcome.PROVED
    assert dpor.explore(p).outcome is Outcome.PROVED
    assert naive.explore(p).outcome is Outcome.PROVED
    assert random_walk.explore(p, executions=50).outcome is Outcome.INCOMPLETE


def test_the_deadlock_of_two_locks_takes_two_steps_and_one_preemption() -> None:
    bug = product.explore(program(examples.two_locks)).bug
    assert (len(bug.shortest), bug.shortest.preemptions) == (2, 1)
    assert (bug.shortest.minimal, bug.fewest_preemptions.minimal) == ("length", "preemptions")
    assert bug.what == "A waits in lock(b), B waits in lock(a)"


def test_shortest_and_fewest_preemptions_differ_where_they_must() -> None:
    def build(rt) -> None:
        turn, hit = rt.shared("turn"), rt.shared("hit")

        def stepper() -> None:
            turn.value = 1
            turn.value = 2

        def watcher() -> None:
            # Seen at once after one step (a preemption), or after a long private way without one.
            if turn.value == 1:
                raise AssertionError("hit")
            for number in range(6):
                hit.value = number
            if turn.value == 2:
                raise AssertionError("hit")

        rt.spawn("A", "", stepper)
        rt.spawn("B", "", watcher)

    bug = product.explore(Program("differ", build)).bug
    assert (len(bug.shortest), bug.shortest.preemptions) == (2, 1)
    assert bug.fewest_preemptions.preemptions == 0
    assert len(bug.fewest_preemptions) > len(bug.shortest)


@pytest.mark.parametrize("all_ops", [False, True])
def test_a_watched_object_is_seen_in_between(all_ops) -> None:
    for engine in (product, naive, dpor, random_walk):
        bug = engine.explore(program(examples.invariant_inside, all_ops=all_ops)).bug
        assert (bug.kind, bug.what) == (Kind.INVARIANT, "equal")
        assert len(bug.shortest) >= 1


def test_an_invariant_broken_for_one_step_between_two_actors_is_found_by_all_engines() -> None:
    def build(rt) -> None:
        word = rt.shared("word")

        def up_and_down() -> None:
            word.add(1)
            word.add(-1)

        rt.spawn("A", "", up_and_down)
        rt.spawn("B", "", up_and_down)
        rt.invariant("at most 1", lambda value: value <= 1, word)

    for engine in (product, naive, dpor, random_walk):
        bug = engine.explore(Program("both up", build)).bug
        assert (bug.kind, bug.what) == (Kind.INVARIANT, "at most 1")


@pytest.mark.parametrize("all_ops", [False, True])
def test_an_access_without_the_guard_is_a_race_with_both_places(all_ops) -> None:
    for engine in (product, random_walk):
        bug = engine.explore(program(examples.race, all_ops=all_ops)).bug
        assert bug.kind is Kind.RACE
        assert bug.what.startswith("data: A set at examples.py:")
        assert "B get at examples.py:" in bug.what


def test_one_processor_without_preemption_hangs_in_a_busy_loop_only() -> None:
    assert product.explore(program(examples.busy_spin)).outcome is Outcome.PROVED
    bug = product.explore(program(examples.busy_spin, one_cpu=True)).bug
    assert (bug.kind, bug.what) == (Kind.LIVELOCK, "A for ever without progress")
    assert product.explore(program(examples.two_locks, one_cpu=True)).outcome is Outcome.PROVED


def test_a_livelock_is_a_stem_and_a_loop() -> None:
    schedule = product.explore(program(examples.spin_under_lock)).bug.shortest
    assert 0 < schedule.loop < len(schedule)


def test_a_circle_of_steps_that_all_change_something_is_found() -> None:
    bug = product.explore(program(examples.polite_forever)).bug
    assert (bug.kind, bug.what) == (Kind.LIVELOCK, "A, B for ever without progress")


def test_declared_progress_is_no_livelock() -> None:
    def build(rt) -> None:
        word = rt.shared("word")
        rt.spawn("A", "", lambda: setattr(word, "value", 1 - word.value), repeats=True)
        if declared:
            rt.progress(word, "write")

    declared = False
    assert product.explore(Program("flip", build)).bug.kind is Kind.LIVELOCK
    declared = True
    assert product.explore(Program("flip", build)).outcome is Outcome.PROVED


def test_time_does_not_pass_while_others_run_unless_asked_for() -> None:
    def build(rt) -> None:
        word = rt.shared("word")

        def sleeper() -> None:
            rt.sleep(1)
            word.value = 1

        def reader() -> None:
            for _ in range(3):
                if word.value:
                    raise AssertionError("time passed")

        rt.spawn("A", "", sleeper)
        rt.spawn("B", "", reader)

    assert product.explore(Program("time", build)).outcome is Outcome.PROVED
    assert product.explore(Program("time", build, Bounds(explore_time=True))).bug.kind is Kind.ERROR


def test_timers_expire_in_order() -> None:
    def build(rt) -> None:
        word = rt.shared("word")

        def after(duration, value):
            def run() -> None:
                rt.sleep(duration)
                if word.value != value:
                    raise AssertionError("out of order")
                word.value = value + 1

            return run

        rt.spawn("A", "", after(20, 1))
        rt.spawn("B", "", after(10, 0))

    assert product.explore(Program("order", build)).outcome is Outcome.PROVED


def test_a_limit_is_incomplete_and_never_a_pass() -> None:
    def build(rt) -> None:
        words = [rt.shared(f"w{index}") for index in range(4)]
        for index, word in enumerate(words):
            rt.spawn("ABCD"[index], "", lambda word=word: [setattr(word, "value", n) for n in range(9)])

    verdict = product.explore(Program("big", build), Limits(states=500))
    assert verdict.outcome is Outcome.INCOMPLETE
    assert "500 states" in verdict.why


def test_data_choices_are_all_tried() -> None:
    def build(rt) -> None:
        def actor() -> None:
            if rt.choose("dice", 6) == 4:
                raise AssertionError("four")

        rt.spawn("A", "", actor)

    for engine in (product, naive, dpor):
        assert engine.explore(Program("dice", build)).bug.kind is Kind.ERROR


def test_statistics_are_no_part_of_a_state() -> None:
    def build(rt) -> None:
        count, flag = rt.shared("count"), rt.shared("flag")

        def spinner() -> None:
            while not flag.value:
                count.add(1)
                rt.relax()

        rt.spawn("A", "", spinner)
        rt.spawn("B", "", lambda: setattr(flag, "value", 1))

    verdict = product.explore(Program("counting", build, statistics=frozenset({"count"})))
    assert verdict.outcome is Outcome.PROVED
    assert verdict.states < 20


def test_who_waits_for_a_work_item_to_rest_is_woken() -> None:
    def build(rt) -> None:
        settled = rt.wait_queue("settled")
        done = rt.shared("done")

        def size() -> None:
            if done.add(1) == 1:
                work.queue()

        work = rt.work("W", "size worker", size, at_rest=settled)
        work.queue()
        rt.spawn("U", "user", lambda: settled.wait_until(lambda: not work.pending))
        rt.invariant("both runs", lambda value: value == 2, done, at_rest=True)

    for engine in (product, naive, dpor):
        assert engine.explore(Program("rest", build)).outcome is Outcome.PROVED


def test_actors_know_who_they_are_and_what_they_hold() -> None:
    def build(rt) -> None:
        mutex = rt.mutex("mutex")

        def actor() -> None:
            assert not mutex.held_by_me()
            with mutex:
                assert mutex.held_by_me()
                assert rt.this_task().name in {"A", "B"}

        rt.spawn("A", "", actor)
        rt.spawn("B", "", actor)

    assert product.explore(Program("held", build)).outcome is Outcome.PROVED


def test_code_that_unwinds_after_the_end_touches_nothing() -> None:
    def build(rt) -> None:
        mutex, word = rt.mutex("mutex"), rt.shared("word")

        def actor() -> None:
            try:
                mutex.lock()
                mutex.lock()
            finally:
                word.value = 7

        rt.spawn("A", "", actor)

    found = naive.findings(Program("unwinds", build))
    assert {end[0][-1] for end in found.ends} == {0}
    assert found.ends == product.findings(Program("unwinds", build)).ends


def test_a_mutex_that_is_taken_again_and_again_is_handed_over() -> None:
    def build(rt) -> None:
        mutex, flag = rt.mutex("mutex"), rt.shared("flag")

        def retries() -> None:
            while True:
                with mutex:
                    if flag.value:
                        return
                rt.relax()

        def sets() -> None:
            with mutex:
                flag.value = 1

        rt.spawn("A", "", retries)
        rt.spawn("B", "", sets)

    assert product.explore(Program("handed over", build)).outcome is Outcome.PROVED


def test_a_bug_on_one_processor_has_a_schedule() -> None:
    def build(rt) -> None:
        a, b = rt.mutex("a"), rt.mutex("b")

        def sleeps(first, second) -> None:
            with first:
                rt.sleep(1)
                with second:
                    pass

        rt.spawn("A", "", lambda: sleeps(a, b))
        rt.spawn("B", "", lambda: sleeps(b, a))

    verdict = product.explore(Program("asleep with a lock", build, Bounds(one_cpu=True)))
    assert verdict.bug.kind is Kind.DEADLOCK
    assert len(verdict.bug.shortest) >= 4
    assert verdict.checked >= 4


@pytest.mark.parametrize(
    "engine",
    [product.explore, naive.explore, dpor.explore, random_walk.explore],
    ids=lambda one: one.__module__,
)
def test_a_program_without_actors_is_no_program(engine) -> None:
    with pytest.raises(InvalidArgument, match="program nothing has no actors"):
        engine(Program("nothing", lambda runtime: None))


def test_what_there_was_before_is_looked_through_for_circles_again_afterwards() -> None:
    seen: list[int] = []

    def build(rt) -> None:
        seen.append(gc.get_freeze_count())
        word = rt.shared("word")
        rt.spawn("W", "", lambda: word.add(1))

    before = gc.get_threshold()
    product.explore(Program("program", build))
    assert min(seen) > 0
    assert (gc.get_freeze_count(), gc.get_threshold()) == (0, before)
    # Whoever has frozen objects of his own keeps them so.
    gc.freeze()
    try:
        product.explore(Program("program", build))
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()
