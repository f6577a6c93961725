"""Local states are merged where the frames show everything, and only there."""

from __future__ import annotations

import gc
import sys
from array import array
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import count
from random import Random
from threading import Lock
from types import CodeType, FrameType, SimpleNamespace
from typing import Any

import pytest

from balloonvq.explore import naive, product
from balloonvq.explore._local_state import add_frames, place, stack, unchanged
from balloonvq.explore.local_state import Atom, Reach
from balloonvq.explore.verdict import Outcome
from balloonvq.explore.world import Nondeterminism, Program


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


def test_a_range_of_an_observed_value_is_not_taken_for_another() -> None:
    def build(rt) -> None:
        turns, out = rt.shared("turns", 1), rt.shared("out")

        def reader() -> None:
            for _ in range(turns.value):
                out.add(1)

        def writer() -> None:
            turns.value = 2

        rt.spawn("R", "", reader)
        rt.spawn("W", "", writer)

    assert {end[0][-1] for end in ends(build).ends} == {1, 2}


def test_a_loop_variable_that_is_assigned_to_does_not_tell_the_position() -> None:
    def build(rt) -> None:
        out = rt.shared("out")

        def actor() -> None:
            for turn in range(3):
                turn = 0  # noqa: PLW2901
                out.add(turn + 1)

        rt.spawn("A", "", actor)

    assert {end[0][-1] for end in ends(build).ends} == {3}


def test_a_loop_variable_that_only_counts_does_not_tell_the_position() -> None:
    def build(rt) -> None:
        out = rt.shared("out")

        def actor() -> None:
            for retries in range(3):  # noqa: B007 - its name counts
                out.add(1)

        rt.spawn("A", "", actor)

    found = product.findings(Program("program", build, statistics=frozenset({"retries"})))
    assert {end[0][-1] for end in found.ends} == {3}


def test_one_of_two_constants_on_the_stack_is_not_forgotten() -> None:
    def build(rt) -> None:
        a, b, out = rt.shared("a"), rt.shared("b"), rt.shared("out")

        def reader() -> None:
            out.value = max(5 if a.value else 3, b.value)

        def writer() -> None:
            a.value = 1

        rt.spawn("R", "", reader)
        rt.spawn("W", "", writer)

    assert {end[0][-1] for end in ends(build).ends} == {3, 5}


def test_what_was_loaded_from_a_variable_before_it_changed_is_not_forgotten() -> None:
    def build(rt) -> None:
        a, b, out = rt.shared("a"), rt.shared("b"), rt.shared("out")

        def reader() -> None:
            seen = a.value
            out.value = max(seen, (seen := 0), b.value)

        def writer() -> None:
            a.value = 1

        rt.spawn("R", "", reader)
        rt.spawn("W", "", writer)

    assert {end[0][-1] for end in ends(build).ends} == {0, 1}


def test_a_variable_that_is_only_on_the_stack_is_not_forgotten() -> None:
    def build(rt) -> None:
        a, b, out = rt.shared("a"), rt.shared("b"), rt.shared("out")

        def reader() -> None:
            seen = a.value
            out.value = max(seen, b.value)

        def writer() -> None:
            a.value = 1

        rt.spawn("R", "", reader)
        rt.spawn("W", "", writer)

    assert {end[0][-1] for end in ends(build).ends} == {0, 1}


def test_a_variable_that_only_a_handler_reads_is_not_forgotten() -> None:
    def build(rt) -> None:
        a, b, out = rt.shared("a"), rt.shared("b"), rt.shared("out")

        def reader() -> None:
            seen = a.value
            try:
                b.add(1)
                raise ValueError
            except ValueError:
                out.value = seen

        def writer() -> None:
            a.value = 1

        rt.spawn("R", "", reader)
        rt.spawn("W", "", writer)

    assert {end[0][-1] for end in ends(build).ends} == {0, 1}


def test_a_code_that_looks_at_its_variables_keeps_all() -> None:
    def build(rt) -> None:
        a, out = rt.shared("a"), rt.shared("out")

        def reader() -> None:
            first = a.value
            out.add(1)
            out.add(locals()["first"])

        def writer() -> None:
            a.value = 1

        rt.spawn("R", "", reader)
        rt.spawn("W", "", writer)

    assert {end[0][-1] for end in ends(build).ends} == {1, 2}


def test_a_variable_that_nobody_reads_again_does_not_multiply_states() -> None:
    def explored(*, reads: bool) -> tuple[int, int]:
        def build(rt) -> None:
            a, out = rt.shared("a"), rt.shared("out")

            def reader() -> None:
                first = a.value
                out.add(1)
                out.add(1)
                out.add(first)

            def forgetful() -> None:
                first = a.value
                out.add(0 if first < 0 else 1)
                out.add(1)
                out.add(0)

            def writer() -> None:
                a.value = 1

            rt.spawn("R", "", reader if reads else forgetful)
            rt.spawn("W", "", writer)

        return len(ends(build).ends), product.explore(Program("program", build)).states

    # R has read 0 or 1, and W is done or not: three pairs before each of the three operations, or two.
    assert explored(reads=True) == (2, 14)
    assert explored(reads=False) == (1, 10)


def _read(word):
    return word.value


def _sum(a, c):
    return sum(map(_read, [a, c]))


def _sum_onto(a, c):
    seen = a.value
    return sum(map(_read, [c]), seen)


def _greatest(a, c):
    seen = a.value
    return max(seen, *map(_read, [c]))


def _gathered(a, c):
    return tuple(map(_read, [a, c]))[0]  # noqa: RUF015 - what it gathers is the point


def _added(a, c):
    def both():
        yield a.value
        yield c.value

    items: list[int] = []
    items += both()
    return items[0]


def _spread(a, c):
    def first(one, other):
        return one

    def both():
        yield a.value
        yield c.value

    return first(*both())


def _sorted(a, c):
    return sorted([c, a], key=_read)[-1] is a and a.value  # noqa: FURB192 - likewise


def _in_a_cell(a, c):
    seen = a.value

    def look():
        return seen

    look()
    return max(seen, (seen := 0), c.value)


def _on_a_stack_of_exits(a, c):
    found = []
    with ExitStack() as stack:
        stack.callback(found.append, a.value)
        _read(c)
    return found[0]


@pytest.mark.parametrize(
    "observe",
    [_sum, _sum_onto, _greatest, _gathered, _added, _spread, _sorted, _in_a_cell, _on_a_stack_of_exits],
)
def test_what_c_gathers_while_it_calls_back_is_not_forgotten(observe) -> None:
    for wrong in (0, 1):

        def build(rt, wrong=wrong) -> None:
            a, c = rt.shared("a"), rt.shared("c")

            def reader() -> None:
                if observe(a, c) == wrong:
                    raise AssertionError

            def writer() -> None:
                a.value = 1

            rt.spawn("R", "", reader)
            rt.spawn("W", "", writer)

        assert product.explore(Program("program", build)).outcome is Outcome.BUG


class _Saver:
    """What is entered keeps what it has observed, against the rules."""

    def __init__(self, word) -> None:
        self._word = word

    def __enter__(self) -> None:
        self._seen = self._word.value

    def __exit__(self, *_: object) -> None:
        if self._seen:
            raise AssertionError


def test_an_actor_that_ends_in_another_way_than_the_automaton_says_is_an_error() -> None:
    def build(rt) -> None:
        a, c = rt.shared("a"), rt.shared("c")

        def reader() -> None:
            with _Saver(a):
                _read(c)

        def writer() -> None:
            a.value = 1

        rt.spawn("R", "", reader)
        rt.spawn("W", "", writer)

    with pytest.raises(Nondeterminism, match="the end"):
        product.explore(Program("program", build))


def test_the_right_side_of_an_or_is_merged() -> None:
    def build(rt) -> None:
        a, b, out = rt.shared("a"), rt.shared("b"), rt.shared("out")

        def either():
            return a.value or b.value

        def reader() -> None:
            for _ in range(6):
                either()
                out.add(1)

        def writer() -> None:
            a.value = 1

        rt.spawn("R", "", reader)
        rt.spawn("W", "", writer)

    assert product.explore(Program("program", build)).states < 60


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


@dataclass(slots=True)
class Slots:
    left: int


@dataclass(frozen=True)
class Frozen:
    name: str = ""


class Thawed(Frozen):
    """What its own slot is bound to may change."""

    __slots__ = ("left",)

    left: int


class Private:
    __slots__ = ("__left",)

    def __init__(self) -> None:
        self.__left = 1

    def count(self) -> None:
        self.__left -= 1


class Inner:
    def __init__(self) -> None:
        self.deep = SimpleNamespace(value=1)


class Other(Inner):
    pass


class Turns:
    """What an actor's function reaches, in all ways in which it may change."""

    def __init__(self) -> None:
        self.flag: Any = 0
        self.items: list[Any] = [1]
        self.by_name: dict[str, Any] = {"a": 1}
        self.seen: set[Any] = {1}
        self.slots = Slots(1)
        self.thawed = Thawed()
        self.thawed.left = 1
        self.private = Private()
        self.inner = Inner()
        self.queue = deque([1])
        self.counted = 0

    def turn(self) -> None:
        """What the actor does."""


CHANGES: dict[str, Callable[[Turns], object]] = {
    "attribute": lambda turns: setattr(turns, "flag", 1),
    "attribute of another class": lambda turns: setattr(turns, "flag", False),
    "new attribute": lambda turns: setattr(turns, "other", 0),
    "deleted attribute": lambda turns: delattr(turns, "flag"),
    "all attributes": lambda turns: setattr(turns, "__dict__", {}),
    "class": lambda turns: setattr(turns.inner, "__class__", Other),
    "item": lambda turns: turns.items.append(2),
    "item of another class": lambda turns: turns.items.__setitem__(0, True),
    "key": lambda turns: turns.by_name.__setitem__("b", 1),
    "value": lambda turns: turns.by_name.__setitem__("a", 2),
    "end of a deque": lambda turns: turns.queue.append(2),
    "member": lambda turns: turns.seen.add(2),
    "slot": lambda turns: setattr(turns.slots, "left", 0),
    "deleted slot": lambda turns: delattr(turns.slots, "left"),
    "slot of a class derived from a frozen one": lambda turns: setattr(turns.thawed, "left", 0),
    "private slot": lambda turns: turns.private.count(),
    "deep inside": lambda turns: setattr(turns.inner.deep, "value", 2),
    "the same object twice": lambda turns: setattr(turns, "flag", turns.items),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_what_a_function_reaches_is_looked_at_again_when_it_has_changed(change) -> None:
    numbers: dict[Any, int] = {}
    turns = Turns()
    reach = Reach([turns.turn], frozenset(), numbers)
    before = reach.look()
    assert reach.look() == before
    change(turns)
    assert reach.look() != before
    # And it is found to be the same as that of another run that came there.
    other = Turns()
    change(other)
    assert Reach([other.turn], frozenset(), numbers).look() == reach.look()


def test_what_a_function_reaches_comes_back_to_what_it_was() -> None:
    turns = Turns()
    reach = Reach([turns.turn], frozenset({"counted"}), {})
    before = reach.look()
    turns.counted += 1
    assert reach.look() == before
    turns.items = [1]
    turns.flag = int("0")
    assert reach.look() == before
    turns.items.append(2)
    assert reach.look() != before


def test_variables_of_a_closure_are_reached() -> None:
    left = 2

    def turn() -> None:
        nonlocal left
        left -= 1

    reach = Reach([turn], frozenset(), {})
    before = reach.look()
    turn()
    assert reach.look() != before


def test_state_that_only_another_actors_function_shows_is_seen() -> None:
    class Notifier:
        def __init__(self) -> None:
            self.calls = 0

    class Chain(Atom):
        def __init__(self, notifier: Notifier) -> None:
            self.notifier = notifier

        def call(self) -> int:
            self.notifier.calls += 1
            return self.notifier.calls

    def build(rt) -> None:
        word, notifier = rt.shared("word"), Notifier()
        chain = Chain(notifier)

        def allocates() -> None:
            while word.value < 3:
                word.value = chain.call()
                rt.relax()

        def worker() -> None:
            assert notifier.calls >= 0
            word.add(0)

        rt.spawn("O", "", allocates)
        rt.spawn("W", "", worker)

    found = ends(build)
    assert not found.livelocks
    assert {end[0][-1] for end in found.ends} == {3}


@dataclass
class Plain:
    number: int = 1


class Slotted:
    __slots__ = ("__dict__", "__weakref__", "number")

    def __init__(self) -> None:
        self.number = 1


class Derived(deque[int]):
    pass


def merged(make: Callable[[], Any]) -> bool:
    """Whether two functions that hold things made alike are taken for the same."""
    numbers: dict[Any, int] = {}

    def number() -> int:
        held = make()

        def function() -> Any:
            return held

        return Reach([function], frozenset(), numbers).look()

    return number() == number()


ALIKE: dict[str, Callable[[], Any]] = {
    "attributes": Plain,
    "attributes and slots": Slotted,
    "deque": lambda: deque([1, 2]),
    "derived from deque": lambda: Derived([1]),
    "namespace": SimpleNamespace,
    "object": object,
}

#: What C keeps cannot be seen.
UNKNOWN: dict[str, Callable[[], Any]] = {
    "random": Random,
    "lock": Lock,
    "bytearray": lambda: bytearray(b"1"),
    "partial": lambda: partial(int),
    "array": lambda: array("I", [1]),
    "count": lambda: count(1),
    "iterator": lambda: iter([1]),
}


@pytest.mark.parametrize("make", ALIKE.values(), ids=ALIKE)
def test_equal_things_are_merged(make: Callable[[], Any]) -> None:
    assert merged(make)


@pytest.mark.parametrize("make", UNKNOWN.values(), ids=UNKNOWN)
def test_what_c_keeps_to_itself_is_not_merged(make: Callable[[], Any]) -> None:
    assert not merged(make)


class Interrupted(list[int]):
    """A list that cannot be gone through."""

    def __iter__(self) -> Iterator[int]:
        raise OSError("no")


def test_an_error_while_it_is_looked_at_what_has_changed_is_told() -> None:
    inside = [Interrupted()]
    with pytest.raises(OSError, match="no"):
        unchanged(([], [], [], [], [], [], [], [], [], inside, [0], []))
    with pytest.raises(TypeError, match="in lists"):
        unchanged(([], [], (), [], [], [], [], [], [], [], [], []))  # type: ignore[arg-type]
    with pytest.raises(IndexError):
        unchanged(([], []))
    with pytest.raises(IndexError):
        unchanged(([], [], [inside], [], [], [], [], [], [], [], [], []))


def test_what_is_looked_at_may_let_go_of_everything() -> None:
    class Clearing:
        @property
        def slot(self) -> int:
            for one in seen:
                one.clear()
            return 1

    class Gone(list[int]):
        def __iter__(self) -> Iterator[int]:
            for one in seen:
                one.clear()
            yield 1

    seen: tuple[list[Any], ...] = ([], [], [], [], [], [], [], ["slot", "slot"], [1, 1], [], [], [])
    seen[6].extend([Clearing(), Clearing()])
    with pytest.raises(IndexError):
        unchanged(seen)
    seen = ([], [], [], [], [], [], [], [], [], [Gone(), Gone()], [1, 1], [1, 1])
    with pytest.raises(IndexError):
        unchanged(seen)

    def stopped(first: object, second: object) -> FrameType:
        return sys._getframe()

    def let_go(value: object) -> bool:
        frames.clear()
        return True

    for over in (), ("first",):
        frames: list[Any] = []
        frame = stopped([1], [2])
        frames += [(frame.f_code, 0, over, tuple(reversed(("second", "first")))), frame]
        del frame
        found: list[Any] = []
        assert add_frames(int, found, {}, let_go, {}, None, let_go, frames)
        assert found == [0]


def test_variables_that_are_not_bound_are_not_made() -> None:
    variables = defaultdict(list, bound=1)
    frame: Any = SimpleNamespace(f_locals=variables)
    found: list[Any] = []
    point = (None, 0, (), ("bound", "missing"))
    assert add_frames(Turns, found, {}, found.append, {int: True}, None, bool, [point, frame])
    assert found == [0, int, 1, None]
    assert variables == {"bound": 1}


def test_an_error_while_frames_are_looked_at_is_told() -> None:
    frame = sys._getframe()
    end = test_an_error_while_it_is_looked_at_what_has_changed_is_told.__code__

    def unknown(code: CodeType, last: int) -> Any:
        raise LookupError(code.co_name, last)

    with pytest.raises(LookupError, match="test_an_error_while_frames"):
        stack(frame, end, {}, unknown)
    assert stack(frame, frame.f_code, {}, unknown) == []
    assert stack(None, end, {}, unknown) == []
    with pytest.raises(TypeError):
        stack(frame)  # type: ignore[call-arg]
    with pytest.raises(LookupError, match="test_an_error_while_frames"):
        place(set(), {}, lambda frame: unknown(frame.f_code, 0), frame)  # type: ignore[union-attr]
    assert place(set(), {}, lambda frame: (str(frame), 0), None) == ("None", 0)
    with pytest.raises(TypeError):
        place(set())  # type: ignore[call-arg]

    def add(value: object) -> None:
        raise LookupError(value)

    point = (frame.f_code, 0, (), ("frame",))
    with pytest.raises(LookupError, match="<frame at"):
        add_frames(int, [], {}, add, {}, None, bool, [point, frame])
    with pytest.raises(TypeError):
        add_frames(int, [])  # type: ignore[call-arg]


def test_looking_at_frames_keeps_nothing() -> None:
    class Held:
        name = "held"

    held, unbound, other, listed = Held(), object(), [2], [1]
    point = (sys._getframe().f_code, 0, ("listed",), ("held", "gone", "number", "other", "listed"))
    number = 3

    def once() -> list[Any]:
        found: list[Any] = []
        met = {id(listed): 7}
        frames = stack(sys._getframe(1), once.__code__, {}, lambda *_: point)
        assert frames is not None
        assert place({__file__}, {}, lambda frame: (str(frame is None), 0), sys._getframe())[1] == 0
        simple = {Held: False, int: True}
        assert add_frames(Turns, found, met, found.append, simple, unbound, bool, frames[:2])
        assert not add_frames(Turns, found, met, found.append, simple, unbound, lambda _: False, frames[:2])
        assert unchanged(([], [], [held], [Held], [held], [held.__dict__], [], [], [], [other], [1], [2]))
        return found[:10]

    assert once() == [0, Held, "held", unbound, int, 3, other, Turns, 7, 0]
    # Small objects that Python makes once, lists of lists that it keeps: all that by now.
    gc.collect()
    counted = [
        held,
        unbound,
        other,
        listed,
        point,
        Held,
        Turns,
        point[0],
        sys._getframe(),
        number,
        True,
        None,
    ]
    counts = [sys.getrefcount(one) for one in counted]
    for _ in range(1000):
        once()
    gc.collect()
    assert all(abs(sys.getrefcount(one) - count) < 50 for one, count in zip(counted, counts, strict=True))
