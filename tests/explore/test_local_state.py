"""Local states are merged where the frames show everything, and only there."""

from __future__ import annotations

from balloonvq.explore import naive, product
from balloonvq.explore.verdict import Outcome
from balloonvq.explore.world import Program


def ends(build):
    program = Program("program", build)
    found = product.findings(program)
    assert naive.findings(program).ends == found.ends
    return found


def test_a_value_on_the_evaluation_stack_is_not_forgotten() -> None:
    def build(rt) -> None:
        a, b, out = rt.shared("a"), rt.shared("b"), rt.shared("out")

        def reader() -> None:
            out.value = a.value * 10 + b.value

        def writer() -> None:
            a.value = 1
            b.value = 1

        rt.spawn("R", "", reader)
        rt.spawn("W", "", writer)

    assert {end[0][-1] for end in ends(build).ends} == {0, 1, 10, 11} - {10} | {10}


def test_a_loop_over_equal_items_is_not_cut_short() -> None:
    def build(rt) -> None:
        count = rt.shared("count")

        def actor() -> None:
            for _ in [7, 7, 7]:
                rt.relax()
            items = [5, 5]
            for _ in items:
                rt.relax()
            count.value = 1

        rt.spawn("A", "", actor)

    found = ends(build)
    assert not found.livelocks
    assert {end[0][-1] for end in found.ends} == {1}


def test_an_iterator_in_a_variable_is_not_taken_for_another() -> None:
    def build(rt) -> None:
        out = rt.shared("out")

        def actor() -> None:
            items = iter([1, 1, 2])
            while next(items) == 1:
                rt.relax()
            out.value = 9

        rt.spawn("A", "", actor)

    found = ends(build)
    assert not found.livelocks
    assert {end[0][-1] for end in found.ends} == {9}


def test_results_that_nobody_keeps_do_not_multiply_states() -> None:
    def build(rt) -> None:
        word = rt.shared("word")

        def actor() -> None:
            for _ in range(8):
                word.add(1)

        for name in "ABC":
            rt.spawn(name, "", actor)

    verdict = product.explore(Program("adds", build))
    assert (verdict.outcome, verdict.states) == (Outcome.PROVED, 9**3)


def test_a_counter_of_turns_in_an_object_is_seen() -> None:
    class Patience:
        def __init__(self) -> None:
            self.left = 3

    def build(rt) -> None:
        flag = rt.shared("flag")

        def actor() -> None:
            patience = Patience()
            while not flag.value and patience.left:
                patience.left -= 1
                rt.relax()

        rt.spawn("A", "", actor)

    found = ends(build)
    assert not found.livelocks
    assert found.ends


def test_a_value_returned_out_of_a_with_statement_is_not_forgotten() -> None:
    def build(rt) -> None:
        mutex, word, out = rt.mutex("mutex"), rt.shared("word"), rt.shared("out")

        def reads() -> int:
            with mutex:
                return word.value

        def reader() -> None:
            out.value = reads() + 1

        def writer() -> None:
            if mutex.trylock():
                mutex.unlock()
            word.value = 1

        rt.spawn("R", "", reader)
        rt.spawn("W", "", writer)

    # Some try the lock, so the unlock after the read is a scheduling point, with the value on the stack.
    assert {end[0][-1] for end in ends(build).ends} == {1, 2}
