"""Replay strings and timelines."""

from __future__ import annotations

import examples
import pytest
from examples import program

from balloonvq.errors import InvalidArgument
from balloonvq.explore import product, programs, replay
from balloonvq.explore.timeline import timeline
from balloonvq.explore.world import Program


def found(build):
    p = program(build)
    bug = product.explore(p).bug
    return p, bug.fewest_preemptions or bug.shortest


@pytest.fixture
def deadlock():
    p, schedule = found(examples.two_locks)
    return p, schedule, replay.encode(p, schedule)


def test_a_string_is_short_and_comes_back(deadlock) -> None:
    p, schedule, text = deadlock
    assert len(text) <= 20
    execution = replay.replay(text, [program(examples.wake_up), p])
    assert list(schedule.decisions) == execution.decisions
    assert [actor.name for actor in execution.stuck] == ["A", "B"]


def test_every_bug_of_random_programs_comes_back() -> None:
    count = 0
    for seed in range(60):
        p = programs.generate(seed)
        bug = product.explore(p).bug
        if bug is not None:
            count += 1
            execution = replay.replay(replay.encode(p, bug.shortest), [p])
            assert list(bug.shortest.decisions) == execution.decisions
    assert count > 20


def test_each_wrong_character_is_noticed(deadlock) -> None:
    p, _, text = deadlock
    for place in range(4, len(text)):
        for letter in replay.ALPHABET:
            if text[place] not in {".", letter}:
                with pytest.raises(InvalidArgument):
                    replay.replay(text[:place] + letter + text[place + 1 :], [p])


def test_another_version_and_another_program_say_so(deadlock) -> None:
    p, _, text = deadlock
    with pytest.raises(InvalidArgument, match="begins with bx1, this one with 'bx9'"):
        replay.replay("bx9" + text[3:], [p])
    with pytest.raises(InvalidArgument, match="no program here"):
        replay.replay(text, [program(examples.wake_up)])
    with pytest.raises(InvalidArgument, match="complete"):
        replay.replay(text[:8], [p])
    with pytest.raises(InvalidArgument, match="typing error") as caught:
        replay.replay(text[:-2] + "u" + text[-1], [p])
    assert caught.value.why == "the letter 'u' is never used"


def changed(rt) -> None:
    a, b = rt.mutex("a"), rt.mutex("b")

    def first() -> None:
        with a, b:
            pass

    def second() -> None:
        a.lock()
        b.lock()

    rt.spawn("A", "", first)
    rt.spawn("B", "", second)


def test_a_changed_program_stops_at_the_first_step_that_differs(deadlock) -> None:
    p, schedule, text = deadlock
    other = Program("two_locks", changed)
    recorded = replay.steps(replay.execute(p, schedule.decisions))
    with pytest.raises(replay.ReplayDiffers, match=r"step 2|differs"):
        replay.replay(text, [other])
    with pytest.raises(replay.ReplayDiffers) as caught:
        replay.replay(text, [other], recorded)
    assert "A: lock(a)" in str(caught.value) or "B: lock(b)" in str(caught.value)


def test_a_timeline_names_locks_places_and_who_waits_for_whom(deadlock) -> None:
    p, schedule, _ = deadlock
    told = timeline(p, schedule.decisions)
    assert [line.text for line in told.lines] == ["lock(a)", "lock(b)"]
    assert told.lines[-1].held == (("a",), ("b",))
    assert all(line.place.startswith("examples.py:") for line in told.lines)
    assert [(end.fate, end.wants, end.holds) for end in told.ends] == [
        ("waits for B", "lock(b)", ("a",)),
        ("waits for A", "lock(a)", ("b",)),
    ]


def test_a_timeline_shows_changes_and_errors() -> None:
    p, schedule = found(examples.assertion)
    told = timeline(p, schedule.decisions)
    assert "word 0 -> 1" in [str(change) for line in told.lines for change in line.changes]
    assert told.ends[1].fate == "AssertionError: saw the middle"
    assert told.ends[1].place.startswith("examples.py:")


def test_private_steps_fold() -> None:
    def build(rt) -> None:
        word = rt.shared("word")
        rt.spawn("A", "", lambda: [word.value for _ in range(5)])

    p = Program("reads", build)
    decisions = [(0, 0)] * 5
    assert [line.folded for line in timeline(p, decisions).lines] == [5]
    assert len(timeline(p, decisions, fold=False).lines) == 5
