"""Schedules that the explorer found, forced on real threads, C rings and guest memory."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import examples
import pytest
from examples import program as example

from balloonvq.device import BalloonDevice
from balloonvq.driver.designs import DESIGNS, find
from balloonvq.errors import BalloonError, InvalidArgument
from balloonvq.explore import live, live_guest, product, programs, replay
from balloonvq.explore.scenarios import SCENARIOS, program, run, scenarios_for
from balloonvq.explore.search import Limits
from balloonvq.explore.verdict import Kind
from balloonvq.explore.world import Program
from balloonvq.runtime import baton

#: Designs and scenarios with a bug: each kind of bug, each kind of scenario.
BUGS = [
    ("coarse", "oom-while-filling"),
    ("coarse", "actual-while-leaking"),
    ("coarse", "empty-handed-leaking"),
    ("coarse", "empty-handed-compaction"),
    ("split", "oom-while-filling"),
    ("split", "oom-while-filling-kernel"),
    ("split", "oom-while-emptying"),
    ("split", "compaction-while-filling"),
    ("split", "data-while-filling"),
    ("split", "empty-handed-filling"),
    ("split", "page-locks-oom"),
    ("split", "silent-host-leaking"),
    ("split", "one-cpu-leaking"),
    ("split-deflating", "oom-while-filling"),
    ("split-deflating", "data-while-filling"),
    ("upstream", "actual-while-filling"),
    ("upstream", "empty-handed-filling"),
    ("shrinker", "target-shrinker"),
    ("shrinker", "empty-handed-leaking"),
    ("modern", "fill-oom-compaction"),
    ("reference", "empty-handed-compaction"),
]


def found(design: str, scenario: str, **options: str):
    """(program, kind, schedule) of a bug."""
    result = run(find(design), SCENARIOS[scenario], options=options)
    bug = result.verdict.bug
    assert bug is not None
    return program(find(design), SCENARIOS[scenario], options), bug.kind, bug.shortest


def found_in(explored: Program):
    bug = product.explore(explored).bug
    assert bug is not None
    return bug.kind, bug.shortest


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


# -- what is confirmed --------------------------------------------------------------


@pytest.mark.parametrize(("design", "scenario"), BUGS)
def test_a_bug_is_there_on_real_threads(design: str, scenario: str) -> None:
    explored, kind, schedule = found(design, scenario)
    confirmation = live.confirm(explored, schedule.decisions, loop=schedule.loop, times=3)
    assert (confirmation.difference, confirmation.confirmed) == ("", 3)
    assert confirmation.holds
    assert confirmation.seen
    assert bool(confirmation.tasks) is (kind is Kind.DEADLOCK)


@pytest.mark.stress
@pytest.mark.parametrize("design", DESIGNS)
def test_every_shipped_bug_is_there_100_times_of_100(design: str) -> None:
    checked = 0
    for scenario in scenarios_for(find(design)):
        if scenario.thorough:
            continue
        bug = run(find(design), scenario, limits=Limits(400_000, 60.0)).verdict.bug
        if bug is not None:
            explored = program(find(design), scenario)
            for schedule in filter(None, (bug.shortest, bug.fewest_preemptions)):
                confirmation = live.confirm(explored, schedule.decisions, loop=schedule.loop)
                assert (scenario.name, confirmation.difference, confirmation.confirmed) == (
                    scenario.name,
                    "",
                    100,
                )
                checked += 1
    assert checked


def test_bugs_of_random_programs_are_there_on_real_threads() -> None:
    kinds = []
    for seed in range(60):
        explored = programs.generate(seed)
        bug = product.explore(explored).bug
        if bug is not None:
            schedule = bug.shortest
            confirmation = live.confirm(explored, schedule.decisions, loop=schedule.loop, times=2)
            assert (seed, confirmation.difference) == (seed, "")
            kinds.append(bug.kind)
    assert len(kinds) > 20
    assert {Kind.DEADLOCK, Kind.ERROR, Kind.LIVELOCK} <= {*kinds}


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (examples.two_locks, "in a circle"),
        (examples.lost_wake_up, "no thread can run any more"),
        (examples.assertion, "AssertionError on the thread of"),
        (examples.spin_under_lock, "rounds, and all values are what they were"),
        (examples.lost_update, "word is"),
    ],
)
def test_what_was_seen_is_told(build, said: str) -> None:
    explored = example(build)
    _, schedule = found_in(explored)
    confirmation = live.confirm(explored, schedule.decisions, loop=schedule.loop, times=2)
    assert confirmation.holds
    assert any(said in sentence for sentence in confirmation.seen), confirmation.seen


def test_a_schedule_without_a_bug_is_forced_too() -> None:
    explored = example(examples.ordered_locks)
    execution = replay.execute(explored, [])
    confirmation = live.confirm(explored, execution.decisions, times=2)
    assert confirmation.seen == ("the threads stand where the explorer's actors stand",)


def test_a_deadlock_is_told_with_locks_and_stacks() -> None:
    explored, _, schedule = found("coarse", "oom-while-filling")
    confirmation = live.confirm(explored, schedule.decisions, times=1)
    worker, caller = confirmation.tasks
    assert (worker.task, worker.wants, worker.owner) == ("W", "lock(fs_lock)", "O")
    assert (caller.task, caller.wants, caller.owner) == ("O", "lock(balloon_lock)", "W")
    assert [lock.name for lock in caller.holds] == ["fs_lock", "oom_lock"]
    assert [lock.where.partition(":")[0] for lock in worker.holds] == ["coarse.py"]
    assert caller.stack[-1].startswith("coarse.py:")
    assert caller.stack[-1].endswith("in Coarse.leak")


def test_others_may_close_circles_of_their_own_when_let_go() -> None:
    def build(rt) -> None:
        for name in ("A", "B"):
            lock = rt.mutex(name.lower())

            def twice(lock=lock) -> None:
                with lock, lock:
                    pass

            rt.spawn(name, "", twice)

    explored = Program("each with itself", build)
    _, schedule = found_in(explored)
    assert len(schedule) == 1
    confirmation = live.confirm(explored, schedule.decisions, times=50)
    assert (confirmation.difference, confirmation.confirmed) == ("", 50)
    assert [(task.task, task.owner) for task in confirmation.tasks] == [("A", "A")]


def test_lost_data_are_gone_from_guest_memory() -> None:
    explored, _, schedule = found("split", "data-while-filling")
    confirmation = live.confirm(explored, schedule.decisions, times=2)
    assert confirmation.holds
    assert any("wrote 4096 bytes; 4096 of them read as zero now" in told for told in confirmation.seen)


# -- what is not confirmed -------------------------------------------------------------


def test_data_that_are_not_really_lost_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Keeps(BalloonDevice):
        def __init__(self, *arguments, **named) -> None:
            super().__init__(*arguments, discard="none", **named)

    monkeypatch.setattr(live_guest, "BalloonDevice", Keeps)
    explored, _, schedule = found("split", "data-while-filling")
    confirmation = live.confirm(explored, schedule.decisions, times=5)
    assert not confirmation.holds
    assert confirmation.confirmed == 0
    assert "check(pages, " in confirmation.difference
    assert "LostData" in confirmation.why


def test_an_actual_that_is_not_stale_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(live_guest.ConfigActual):
        value = property(lambda _: 1, lambda *_: None)

    monkeypatch.setattr(live_guest, "ConfigActual", Late)
    explored, _, schedule = found("upstream", "actual-while-filling")
    confirmation = live.confirm(explored, schedule.decisions, times=1)
    assert confirmation.confirmed == 0
    assert "actual is 1" in confirmation.difference


def another_way(rt) -> None:
    """Takes its locks in another order where it does not run under the explorer."""
    locks = [rt.mutex("a"), rt.mutex("b")]
    if isinstance(rt, baton.BatonRuntime):
        locks.reverse()

    def first() -> None:
        with locks[0], locks[1]:
            pass

    def second() -> None:
        with locks[1], locks[0]:
            pass

    rt.spawn("A", "", first)
    rt.spawn("B", "", second)


def test_a_thread_that_does_something_else_is_named_with_its_step() -> None:
    explored = Program("another way", another_way)
    _, schedule = found_in(explored)
    confirmation = live.confirm(explored, schedule.decisions, times=3)
    assert (confirmation.confirmed, confirmation.difference) == (0, "step 0: A comes to lock(b)")
    assert confirmation.why == "the schedule has A: lock(a)"


def only_once(rt) -> None:
    """A deadlock that is only the explorer's: on real threads B has ended before."""
    a, b = rt.mutex("a"), rt.mutex("b")
    real = isinstance(rt, baton.BatonRuntime)

    def first() -> None:
        with a, b:
            pass

    def second() -> None:
        b.lock()
        if not real:
            a.lock()

    rt.spawn("A", "", first)
    rt.spawn("B", "", second)


def test_a_deadlock_that_is_none_is_noticed() -> None:
    explored = Program("only once", only_once)
    _, schedule = found_in(explored)
    confirmation = live.confirm(explored, schedule.decisions, times=1)
    assert confirmation.confirmed == 0
    assert confirmation.difference == "step 2: B: 'finished'"


def test_a_thread_that_blocks_elsewhere_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baton, "PATIENCE", 0.2)
    release = threading.Event()

    def build(rt) -> None:
        word = rt.shared("word")
        real = isinstance(rt, baton.BatonRuntime)

        def blocks() -> None:
            word.value = 1
            if real:
                release.wait(20)
            word.value = 2

        rt.spawn("A", "", blocks)

    explored = Program("blocks elsewhere", build)
    threads = threading.active_count()
    with pytest.raises(BalloonError, match="cannot be ended") as caught:
        live.confirm(explored, [(0, 0), (0, 0)], times=1)
    assert "A stands at threading.py" in caught.value.why or "test_live.py" in caught.value.why
    release.set()
    deadline = time.monotonic() + 10
    while threading.active_count() > threads:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_nothing_is_left_over() -> None:
    cases = [found("coarse", "oom-while-filling"), found("split", "data-while-filling")]
    cases.append(found("shrinker", "oom-while-filling"))
    for explored, _, schedule in cases:
        live.confirm(explored, schedule.decisions, loop=schedule.loop, times=1)
    threads, descriptors = threading.active_count(), open_descriptors()
    for explored, _, schedule in cases:
        assert live.confirm(explored, schedule.decisions, loop=schedule.loop, times=20).holds
    assert (threading.active_count(), open_descriptors()) == (threads, descriptors)


def test_nothing_is_left_over_by_a_run_that_differs() -> None:
    explored = Program("another way", another_way)
    _, schedule = found_in(explored)
    live.confirm(explored, schedule.decisions, times=1)
    threads, descriptors = threading.active_count(), open_descriptors()
    for _ in range(20):
        assert not live.confirm(explored, schedule.decisions, times=1).holds
    assert (threading.active_count(), open_descriptors()) == (threads, descriptors)


# -- replay strings with a loop ---------------------------------------------------------


def test_the_string_of_a_livelock_carries_its_loop() -> None:
    explored, kind, schedule = found("upstream", "oom-while-filling")
    assert kind is Kind.LIVELOCK
    text = replay.encode(explored, schedule)
    assert text.count(".") == 4
    meaning = replay.decode(text, [explored])
    execution = replay.replay(text, [explored])
    assert tuple(execution.decisions) == schedule.decisions
    assert meaning.loop(execution.decisions) == schedule.loop
    end = replay.ending(execution, schedule.loop)
    assert end is not None
    assert (end.kind, end.what) == (Kind.LIVELOCK, "O for ever without progress")


def test_a_string_without_its_loop_is_read_too() -> None:
    explored, _, schedule = found("upstream", "oom-while-filling")
    text = ".".join(
        part for place, part in enumerate(replay.encode(explored, schedule).split(".")) if place != 3
    )
    text = text[:-1] + replay._check(text[:-1])
    assert tuple(replay.replay(text, [explored]).decisions) == schedule.decisions
    assert replay.decode(text, [explored]).loop_steps is None


def test_a_loop_that_is_none_is_refused() -> None:
    explored, _, schedule = found("upstream", "oom-while-filling")
    parts = replay.encode(explored, schedule).split(".")
    for steps, error in ((replay._number(5), replay.ReplayDiffers), (replay._number(500), InvalidArgument)):
        text = ".".join([*parts[:3], steps, parts[4]])
        text = text[:-1] + replay._check(text[:-1])
        with pytest.raises(error, match="loop"):
            replay.replay(text, [explored])
