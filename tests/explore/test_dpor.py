"""Partial-order reduction on programs from the literature, whose number of classes is known."""

from __future__ import annotations

import math

import pytest

from balloonvq.errors import InvalidArgument
from balloonvq.explore import dpor
from balloonvq.explore.world import Bounds, Program


def executions(build) -> int:
    """Executions that D ran to their end."""
    verdict = dpor.explore(Program("program", build))
    assert verdict.bug is None
    return verdict.states


@pytest.mark.parametrize("readers", [1, 2, 3, 5])
def test_readers_and_a_writer_have_two_to_the_n_classes(readers) -> None:
    def build(rt) -> None:
        word = rt.shared("x")
        rt.spawn("W", "", lambda: setattr(word, "value", 1))
        for index in range(readers):
            rt.spawn(f"R{index}", "", lambda: word.value)

    assert executions(build) == 2**readers


@pytest.mark.parametrize("writers", [2, 3, 4])
def test_writers_of_one_word_have_n_factorial_classes(writers) -> None:
    def build(rt) -> None:
        word = rt.shared("x")
        for index in range(writers):
            rt.spawn(f"W{index}", "", lambda index=index: setattr(word, "value", index))

    assert executions(build) == math.factorial(writers)


def test_a_lock_around_everything_leaves_only_the_orders_of_locking() -> None:
    def build(rt) -> None:
        mutex, word = rt.mutex("m"), rt.shared("x")

        def actor() -> None:
            with mutex:
                word.value += 1
                word.value += 1

        for name in "ABC":
            rt.spawn(name, "", actor)

    assert executions(build) == 6


def test_independent_actors_have_one_class() -> None:
    def build(rt) -> None:
        for name in "ABCDE":
            word = rt.shared(name)
            rt.spawn(name, "", lambda word=word: [setattr(word, "value", n) for n in range(5)])

    assert executions(build) == 1


def test_the_indexer_has_one_class_below_twelve_threads() -> None:
    # Flanagan and Godefroid, 2005: threads insert into a hash table and collide from 12 threads on.
    size, messages = 128, 4

    def build(rt) -> None:
        table = [rt.shared(f"slot {slot}") for slot in range(size)]

        def thread(number: int) -> None:
            for message in range(messages):
                word = (message + 1) * 11 + number
                slot = word * 7 % size
                while table[slot].value:
                    slot = (slot + 1) % size
                table[slot].value = word

        for number in range(6):
            rt.spawn(f"T{number}", "", lambda number=number: thread(number))

    assert executions(build) == 1


def test_one_processor_is_refused() -> None:
    program = Program("one", lambda rt: rt.spawn("A", "", lambda: None), Bounds(one_cpu=True))
    with pytest.raises(InvalidArgument, match="one processor"):
        dpor.explore(program)
