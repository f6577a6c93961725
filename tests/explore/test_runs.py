"""Runs of one actor that stand in the same objects do not see each other."""

from __future__ import annotations

import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
from test_local_state import CHANGES, Slots, Turns

from balloonvq.driver.designs import find
from balloonvq.errors import InvalidArgument
from balloonvq.explore import automaton, naive, product
from balloonvq.explore.local_state import Reach
from balloonvq.explore.scenarios import SCENARIOS, program
from balloonvq.explore.verdict import Outcome
from balloonvq.explore.world import Nondeterminism, Program, World
from balloonvq.runtime import Stopped
from balloonvq.runtime.runs import Fed, Run

Build = Callable[[Any], None]


def same(name: str, build: Build) -> None:
    """Asserts that the search finds what brute force finds."""
    expected = naive.findings(Program(name, build))
    found = product.findings(Program(name, build))
    assert (found.ends, found.livelocks) == (expected.ends, expected.livelocks), name
    assert product.explore(Program(name, build)).outcome is naive.explore(Program(name, build)).outcome, name


# -- what is changed and read again ----------------------------------------------------


class Weak:
    __slots__ = ("__weakref__", "number")

    def __init__(self) -> None:
        self.number = 0


class Shadowed(Slots):
    """Its slot cannot be written to by its name."""

    left = property(lambda _: [1])  # type: ignore[assignment]

    def __init__(self) -> None:
        self.number = 0


class Frozen(dict[str, int]):
    """Whoever puts it back does it in another way."""

    def clear(self) -> None:
        raise TypeError

    update = clear  # type: ignore[assignment]


class Forgetful:
    """Says 0 for what has been deleted."""

    __slots__ = ("number",)

    def __init__(self) -> None:
        self.number = 0

    def __getattr__(self, name: str) -> int:
        if name != "number":
            raise AttributeError(name)
        return 0


class One:
    number = 1


class Two:
    number = 2


def _function(*, count: bool) -> Any:
    def counts(number: int, seen: list[int] = []) -> int:  # noqa: B006 - the point
        seen.append(number)
        return len(seen)

    def counts_by_name(number: int, *, seen: dict[int, int] = {}) -> int:  # noqa: B006 - the point
        seen[len(seen)] = number
        return len(seen)

    return counts if count else counts_by_name


def _hidden_list() -> Any:
    items = [0, 1, 2, 3, 4, 5, 6]
    return SimpleNamespace(pop=items.pop)


def _deleted(item: Any) -> int:
    try:
        object.__getattribute__(item, "number")
    except AttributeError:
        return 1
    return 0


def _delete_or_set(item: Any) -> None:
    if _deleted(item):
        item.number = 0
    else:
        del item.number


def _closure() -> Any:
    number = 0

    def count(*, by: int) -> int:
        nonlocal number
        number += by
        return number

    return count


def _generator() -> Any:
    def numbers() -> Iterator[int]:
        yield from range(100)

    return SimpleNamespace(made=None, numbers=numbers)


def _next_number(item: Any) -> None:
    if item.made is None:
        item.made = item.numbers()
    next(item.made)


def _raises(item: Any) -> None:
    try:
        raise ValueError(1 if item.error is None else item.error.args[0] + 1)
    except ValueError as error:
        item.error = error


#: How a thing is made, changed, and what a change makes of it.
PRIVATE: dict[str, tuple[Callable[[], Any], Callable[[Any], object], Callable[[Any], int]]] = {
    "attribute": (
        lambda: SimpleNamespace(n=0),
        lambda item: setattr(item, "n", item.n + 1),
        lambda item: item.n,
    ),
    "list": (lambda: [0], lambda item: item.append(1), len),
    "order of a list": (lambda: [1, 2], lambda item: item.reverse(), lambda item: item[0]),
    "list in a list": (lambda: [[0], [0]], lambda item: item[1].append(1), lambda item: len(item[1])),
    "list in a tuple": (
        lambda: (frozenset({1}), [0]),
        lambda item: item[1].append(1),
        lambda item: len(item[1]),
    ),
    "dict": (dict, lambda item: item.__setitem__(len(item), 1), len),
    "order of a dict": (
        lambda: {"a": 1, "b": 2},
        lambda item: item.update(a=item.pop("a")),
        lambda item: [*item].index("a"),
    ),
    "ordered dict": (
        lambda: OrderedDict(a=1, b=2),
        lambda item: item.move_to_end(next(iter(item))),
        lambda item: [*item].index("a"),
    ),
    "default dict": (lambda: defaultdict(int), lambda item: item[len(item)], len),
    "empty set": (set, lambda item: item.add(len(item)), len),
    "set": (lambda: {1, 2, 3}, lambda item: item.add(len(item) + 9), len),
    "deque": (deque, lambda item: item.append(1), len),
    "bytearray": (bytearray, lambda item: item.append(1), len),
    "slot": (lambda: Slots(0), lambda item: setattr(item, "left", item.left + 1), lambda item: item.left),
    "slot beside a weak reference": (
        Weak,
        lambda item: setattr(item, "number", item.number + 1),
        lambda item: item.number,
    ),
    "slot behind a property": (
        Shadowed,
        lambda item: setattr(item, "number", item.number + 1),
        lambda item: item.number,
    ),
    "slot of which the class tells something else": (Forgetful, _delete_or_set, _deleted),
    "attributes of a frozen dict's owner": (
        lambda: SimpleNamespace(n=0, frozen=Frozen(a=1)),
        lambda item: setattr(item, "n", item.n + item.frozen["a"]),
        lambda item: item.n,
    ),
    "deleted attribute": (
        lambda: SimpleNamespace(n=0),
        lambda item: delattr(item, "n") if hasattr(item, "n") else setattr(item, "n", 0),
        lambda item: len(vars(item)),
    ),
    "all attributes": (
        lambda: SimpleNamespace(n=SimpleNamespace(n=0)),
        lambda item: setattr(item, "n", SimpleNamespace(n=item.n.n + 1)),
        lambda item: item.n.n,
    ),
    "class": (
        One,
        lambda item: setattr(item, "__class__", Two if type(item) is One else One),
        lambda item: item.number,
    ),
    "variable of a closure": (_closure, lambda item: item(by=1), lambda item: item(by=0)),
    "default argument": (lambda: _function(count=True), lambda item: item(1), lambda item: item(1)),
    "default argument by name": (lambda: _function(count=False), lambda item: item(1), lambda item: item(1)),
    "what a builtin method works on": (_hidden_list, lambda item: item.pop(), lambda item: item.pop()),
    "generator": (_generator, _next_number, lambda item: next(item.made)),
    "error": (lambda: SimpleNamespace(error=None), _raises, lambda item: item.error.args[0]),
}


@pytest.mark.parametrize("at_once", [False, True], ids=["some", "all"])
@pytest.mark.parametrize("kind", PRIVATE)
def test_what_one_run_changes_no_other_one_finds(kind: str, *, at_once: bool) -> None:
    make, change, look = PRIVATE[kind]

    def build(rt: Any) -> None:
        out, item = rt.shared("out"), make()

        def actor() -> None:
            if at_once:
                change(item)
            # More than the runs that are kept.
            first = rt.choose("first", 10)
            if first % 2:
                change(item)
            rt.choose("second", 2)
            change(item)
            out.value = first * 100 + look(item)

        rt.spawn("A", "", actor)

    same(kind, build)


@pytest.mark.parametrize("kind", PRIVATE)
def test_nor_in_the_function_of_a_work_item(kind: str) -> None:
    make, change, look = PRIVATE[kind]

    def build(rt: Any) -> None:
        out, go = rt.shared("out"), rt.shared("go")

        def turn() -> None:
            # It keeps nothing from one turn to the next.
            item = held[0]
            held[0] = make()
            change(item)
            seen = go.value
            if seen:
                change(item)
            rt.choose("second", 2)
            out.value = seen * 100 + look(item)

        held = [make()]
        work = rt.work("W", "", turn)

        def asks() -> None:
            work.queue()
            go.value = 1

        rt.spawn("A", "", asks)

    expected = naive.findings(Program(kind, build))
    assert product.findings(Program(kind, build)).ends == expected.ends


def test_work_that_puts_its_own_state_back_is_one_turn_after_the_other() -> None:
    def build(rt: Any) -> None:
        a, out, state = rt.shared("a"), rt.shared("out"), SimpleNamespace(phase=0)

        def turn() -> None:
            was, state.phase = state.phase, 1
            seen = a.value
            rt.choose("again", 2)
            out.value = seen * 10 + was
            state.phase = 0

        work = rt.work("W", "", turn)

        def asks() -> None:
            work.queue()
            a.value = 1
            a.value = 2

        rt.spawn("A", "", asks)

    same("phases", build)


# -- equal is not the same ---------------------------------------------------------------


def test_an_equal_list_in_the_place_of_another_is_not_the_same() -> None:
    def build(rt: Any) -> None:
        a, out, state = rt.shared("a"), rt.shared("out"), SimpleNamespace(items=[1])

        def reader() -> None:
            mine = [1]
            state.items = mine
            seen = a.value
            out.add(0)
            if seen:
                state.items.append(5)
            out.add(0)
            assert state.items is mine
            out.add(len(mine))

        def writer() -> None:
            a.value = 1

        rt.spawn("R", "", reader)
        rt.spawn("W", "", writer)

    same("alias", build)


def test_whoever_holds_the_list_that_another_run_has_replaced_still_holds_the_right_one() -> None:
    def build(rt: Any) -> None:
        out, state = rt.shared("out"), SimpleNamespace(items=[1])

        def actor() -> None:
            items = state.items
            first = rt.choose("first", 2)
            if first:
                state.items = [1]
            rt.choose("second", 2)
            items.append(2)
            length = len(state.items)
            items.pop()
            out.value = first * 10 + length

        rt.spawn("A", "", actor)

    same("held", build)


# -- what closing a run does -----------------------------------------------------------------


class Guard:
    def __init__(self) -> None:
        self.exits = 0

    def __enter__(self) -> int:
        found, self.exits = self.exits, 0
        return found

    def __exit__(self, *_: object) -> None:
        self.exits += 1


def _with_finally(rt: Any) -> None:
    out, state = rt.shared("out"), SimpleNamespace(ended=0)

    def actor() -> None:
        was, state.ended = state.ended, 0
        try:
            first, second = rt.choose("first", 12), rt.choose("second", 3)
            out.value = first * 10 + second + 1000 * was
        finally:
            state.ended = 1

    rt.spawn("A", "", actor)


def _with_except(rt: Any) -> None:
    out, log = rt.shared("out"), []

    def actor() -> None:
        was = len(log)
        log.clear()
        try:
            first, second = rt.choose("first", 12), rt.choose("second", 3)
        except BaseException:
            log.append(1)
            raise
        out.value = first * 10 + second + 1000 * was

    rt.spawn("A", "", actor)


def _with_exit(rt: Any) -> None:
    out, guard = rt.shared("out"), Guard()

    def actor() -> None:
        with guard as was:
            first, second = rt.choose("first", 12), rt.choose("second", 3)
            out.value = first * 10 + second + 1000 * was

    rt.spawn("A", "", actor)


def _with_generator(rt: Any) -> None:
    out, state = rt.shared("out"), SimpleNamespace(left=0)

    @contextmanager
    def inside() -> Iterator[int]:
        was, state.left = state.left, 0
        try:
            yield was
        finally:
            state.left = 1

    def actor() -> None:
        with inside() as was:
            first, second = rt.choose("first", 12), rt.choose("second", 3)
            out.value = first * 10 + second + 1000 * was

    rt.spawn("A", "", actor)


def _with_many_merged(rt: Any) -> None:
    out, state = rt.shared("out"), SimpleNamespace(ended=0)

    def actor() -> None:
        was, state.ended = state.ended, 0
        try:
            number = min(rt.choose("first", 40) + rt.choose("second", 40), 1)
            # A new fact, which ends this run before it is the automaton's.
            rt.relax()
            out.value = rt.choose("third", 5) + 10 * number + 100 * was
        finally:
            state.ended += 1

    rt.spawn("A", "", actor)


@pytest.mark.parametrize(
    "build", [_with_finally, _with_except, _with_exit, _with_generator, _with_many_merged]
)
def test_what_a_run_does_while_it_is_closed_nobody_sees(build: Build) -> None:
    same("closed", build)


def test_what_a_run_raises_while_it_is_closed_is_no_error_of_another() -> None:
    def build(rt: Any) -> None:
        out = rt.shared("out")

        def actor() -> None:
            try:
                out.value = rt.choose("first", 12) * 10 + rt.choose("second", 3)
            except Stopped:
                raise InvalidArgument("closed") from None

        rt.spawn("A", "", actor)

    same("raises", build)


def test_a_mutex_that_a_closed_run_held_is_no_other_runs() -> None:
    def build(rt: Any) -> None:
        mutex, out = rt.mutex("mutex"), rt.shared("out")

        def actor() -> None:
            assert not mutex.held_by_me()
            with mutex:
                first = rt.choose("first", 12)
                assert mutex.held_by_me()
            assert not mutex.held_by_me()
            out.value = first * 10 + rt.choose("second", 2)

        def tries() -> None:
            if mutex.trylock():
                mutex.unlock()

        rt.spawn("A", "", actor)
        rt.spawn("T", "", tries)

    same("held", build)


# -- Ctrl-C at the worst time ---------------------------------------------------------------------


def _one_word(rt: Any) -> None:
    word = rt.shared("word")
    rt.spawn("A", "", lambda: word.add(1))


def test_a_run_that_has_ended_is_not_unwound_if_ctrl_c_comes_as_it_does() -> None:
    class Interrupted:
        dead = False

        def __init__(self, running: Any) -> None:
            self._running = running
            self.throw = running.throw

        def switch(self) -> None:
            self._running.switch()
            raise KeyboardInterrupt

    run = Run(Fed(World(Program("one word", _one_word))), 0)
    running: Any = run._running
    run._running = Interrupted(running)
    with pytest.raises(KeyboardInterrupt):
        run.feed(0)
    assert run.finished
    run._running = running
    run.close()
    same("after Ctrl-C", _one_word)


def test_no_run_goes_on_in_what_ctrl_c_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    lives = Fed.live

    def live(self: Fed, actor: Any) -> Any:
        lives(self, actor)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Fed, "live", live)
        run = Run(Fed(World(Program("one word", _one_word))), 0)
        with pytest.raises(KeyboardInterrupt):
            run.feed(0)
        run.close()
    same("after Ctrl-C", _one_word)


# -- how many objects there are ------------------------------------------------------------------


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[Fed]:
    """All that was built for runs."""
    made: list[Fed] = []
    before = Fed.__init__

    def begin(self: Fed, world: Any) -> None:
        made.append(self)
        before(self, world)

    monkeypatch.setattr(Fed, "__init__", begin)
    return made


@pytest.mark.parametrize("name", ["teardown-oom", "fill-oom-compaction"])
def test_all_runs_of_an_actor_of_a_design_stand_in_one_build(name: str, builds: list[Fed]) -> None:
    scenario = SCENARIOS[name]
    product.explore(program(find("modern"), scenario))
    # Two hosts; and `verify` takes new ones for each of its samples.
    assert len(builds) == len(scenario.actors) + 2 + 4


def _sharing(build: Build) -> bool:
    """Whether the first actor's runs still stand in the same objects after a search."""

    def search(made: product.Product) -> bool:
        product._findings(made, product.Limits())
        return made.automata[0]._shared is not None

    return bool(product.started(Program("program", build), search))


def _three_choices(make: Callable[[], Any], change: Callable[[Any], object]) -> Build:
    def build(rt: Any) -> None:
        item = make()

        def actor() -> None:
            first = rt.choose("first", 3)
            if first:
                change(item)
            rt.choose("second", 3)
            assert first or not item

        rt.spawn("A", "", actor)

    return build


def test_runs_part_where_a_change_cannot_be_put_back(builds: list[Fed]) -> None:
    assert _sharing(_three_choices(list, lambda item: item.append(1)))
    before = len(builds)
    assert not _sharing(_three_choices(lambda: {1, 2, 3}, lambda item: item.discard(3)))
    # One for each run from the start from then on.
    assert len(builds) > before + 3


def test_runs_part_at_once_where_it_cannot_be_told_what_there_is() -> None:
    assert not _sharing(_three_choices(deque, lambda item: item.append(1)))


# -- putting back ---------------------------------------------------------------------------------

#: What nothing brings back.
KEPT = {"all attributes", "class", "end of a deque"}


def _plain(turns: Turns) -> Any:
    """All that is in it."""
    inner = type(turns.inner), turns.inner.deep.value
    slots = turns.slots.left, turns.thawed.left, turns.private._Private__left  # type: ignore[attr-defined]
    lists = turns.items, [*turns.by_name.items()], turns.seen, [*turns.queue]
    return [*vars(turns)], turns.flag.__class__, turns.flag, *map(repr, lists), slots, inner


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_put_back_or_said_to_stay(name: str) -> None:
    turns = Turns()
    reach = Reach([turns.turn], frozenset(), {})
    before, holds, items = reach.look(), _plain(turns), turns.items
    assert reach.unchanged()
    CHANGES[name](turns)
    if name == "end of a deque":
        # It was not known in the first place.
        assert not reach.known()
        return
    assert not reach.unchanged()
    assert reach.put_back() is (name not in KEPT)
    if name not in KEPT:
        assert reach.unchanged()
        assert reach.look() == before
        assert _plain(turns) == holds
        assert turns.items is items


@pytest.mark.parametrize("kind", ["default argument", "default argument by name", "variable of a closure"])
def test_so_is_a_change_inside_a_function(kind: str) -> None:
    make, change, look = PRIVATE[kind]
    function = make()
    reach = Reach([function], frozenset(), {})
    assert reach.known()
    change(function)
    change(function)
    assert not reach.unchanged()
    assert reach.put_back()
    # What a first call finds.
    assert look(function) == look(make())


def test_what_a_class_says_of_an_emptied_slot_does_not_count() -> None:
    item = Forgetful()

    def function() -> object:
        return item

    reach = Reach([function], frozenset(), {})
    assert reach.known()
    del item.number
    assert not reach.unchanged()
    assert not reach.known()


def test_a_weak_reference_changes_nothing() -> None:
    item = Weak()

    def function() -> object:
        return item

    reach = Reach([function], frozenset(), {})
    reach.look()
    reference = weakref.ref(item)
    assert reach.unchanged()
    item.number = 5
    assert reach.put_back()
    assert reference() is item
    assert item.number == 0


def test_a_set_of_several_is_not_put_back() -> None:
    """They would come in another order."""
    items = {1, 2, 3}

    def function() -> object:
        return items

    reach = Reach([function], frozenset(), {})
    reach.look()
    items.add(4)
    assert not reach.put_back()


def test_equal_content_in_other_objects_is_not_the_same() -> None:
    state = SimpleNamespace(items=[1])

    def function() -> object:
        return state

    numbers: dict[Any, int] = {}
    before, now = Reach([function], frozenset(), numbers), Reach([function], frozenset(), numbers)
    before.look()
    now.look()
    assert now.same(before)
    state.items = [1]
    assert now.look() == before.number
    assert not now.same(before)


# -- going on from a merged node ---------------------------------------------------------------------


class Later:
    """What is entered keeps what it has observed, against the rules."""

    def __init__(self, word: Any, other: Any) -> None:
        self._word = word
        self._other = other

    def __enter__(self) -> None:
        self._seen = self._word.value

    def __exit__(self, *_: object) -> None:
        self._other.add(1 + self._seen)


def _passed(*, keeps: bool) -> Build:
    def build(rt: Any) -> None:
        a, b, c, out = rt.shared("a"), rt.shared("b"), rt.shared("c"), rt.shared("out")

        def reader() -> None:
            if keeps:
                with Later(a, b):
                    c.add(0)
            else:
                a.value  # noqa: B018 - nobody wants it
                c.add(0)
                b.add(1)
            out.value = rt.choose("last", 3)

        def writer() -> None:
            a.value = 1

        rt.spawn("R", "", reader)
        rt.spawn("W", "", writer)

    return build


def test_a_run_that_is_not_where_it_is_said_to_be_does_not_go_on_for_another() -> None:
    reader = automaton.Automaton(World(Program("passed", _passed(keeps=True))), 0)
    inside = reader.step(0, 0)
    assert reader.step(0, 1) == inside
    last = reader.step(reader.step(inside, 0), 0)
    reader.step(last, 0)
    # Now the run that has observed 1 is to go on to there.
    with pytest.raises(Nondeterminism, match="something else") as caught:
        reader.step(last, 1)
    assert "add(b, 2)" in caught.value.what
    reader.close()


def test_a_run_that_came_to_a_merged_node_goes_on_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    passed = []
    before = automaton.Automaton._passing

    def passing(self: automaton.Automaton, node: int) -> Any:
        run = before(self, node)
        passed.append(run is not None)
        return run

    monkeypatch.setattr(automaton.Automaton, "_passing", passing)
    same("passed", _passed(keeps=False))
    assert any(passed)


def test_an_actor_with_too_many_local_states_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automaton, "NODES_MAX", 20)

    def build(rt: Any) -> None:
        word = rt.shared("word")

        def actor() -> None:
            number = 0
            while True:
                number += 1
                word.value = number % 2

        rt.spawn("A", "", actor)

    verdict = product.explore(Program("for ever", build))
    assert verdict.outcome is Outcome.INCOMPLETE
    assert "more than 20 local states" in verdict.why


# -- random programs ------------------------------------------------------------------------------------

#: Statements on what an actor has for itself: s is its state, seen what it last observed.
STATEMENTS = [
    "s.n += seen", "s.n = 0", "s.n += 1",
    "s.items.append(seen)", "s.items.clear()", "s.items.append(1)", "s.items = [*s.items]", "s.items.reverse()",
    "mine = s.items", "mine.append(2)", "mine = [*s.items]", "s.items = mine",
    "s.by_name[seen] = s.n", "s.by_name.pop(seen, None)", "s.by_name = {**s.by_name}", "s.by_name.clear()",
    "s.tags.add(seen)", "s.tags.discard(seen)", "s.tags.clear()", "s.more.add(seen + 5)", "s.more.discard(1)",
    "s.slots.left += 1", "s.slots.left = seen", "s.slots = Slots(s.slots.left)",
    "s.deep.deep.n += 1", "s.deep = SimpleNamespace(deep=s.deep.deep)", "s.deep.deep.n = 0",
    "count(1)", "count(seen)", "keeps(seen)",
]  # fmt: skip

#: Operations.
OPERATIONS = [
    "seen = a.value", "seen = b.value", "a.value = told() % 3", "b.value = told() % 3", "a.add(told() % 2)",
    "seen = rt.choose('c', 3)", "b.add(1)",
]  # fmt: skip

TEXT = """
def build(rt):
    a, b, out, mutex = rt.shared("a"), rt.shared("b"), rt.shared("out"), rt.mutex("mutex")
"""

ACTOR = """
    def make_{name}():
        s = SimpleNamespace(n=0, items=[], by_name={{}}, tags=set(), more={{1, 2}}, slots=Slots(0))
        s.deep = SimpleNamespace(deep=SimpleNamespace(n=0))
        number = 0

        def count(by):
            nonlocal number
            number += by

        def keeps(item, kept=[]):
            kept[:] = [*kept, item][-2:]
            return sum(kept)

        def told():
            lists = len(s.items) + 2 * sum(s.items) + len(s.by_name) + 3 * sum(s.tags) + len(s.more)
            return s.n + lists + s.slots.left + s.deep.deep.n + 2 * number + keeps(0)

        def actor():
            seen, mine = 0, s.items
{body}
            out.value = told() + 3 * len(mine) + 5 * (mine is s.items)

        rt.spawn("{name}", "", actor)

    make_{name}()
"""


def _block(random: Random, indent: str, depth: int) -> tuple[list[str], int]:
    """Some lines, and the operations among them."""
    lines: list[str] = []
    operations = 0
    for _ in range(random.randrange(2, 5)):
        kind = random.random()
        if kind < 0.4 and operations < 3:
            lines.append(indent + random.choice(OPERATIONS))
            operations += 1
        elif kind < 0.55 and depth < 2:
            inside, found = _block(random, indent + "    ", depth + 1)
            last = random.choice(STATEMENTS)
            shapes = [
                ["if seen:", *inside],
                ["with mutex:", *inside],
                ["try:", *inside, f"{indent}finally:", f"{indent}    {last}"],
                [
                    "try:",
                    *inside,
                    f"{indent}except BaseException:",
                    f"{indent}    {last}",
                    f"{indent}    raise",
                ],
            ]
            shape = random.choice(shapes)
            lines += [indent + shape[0], *shape[1:]]
            operations += found
        else:
            lines.append(indent + random.choice(STATEMENTS))
    return lines, operations


def generate(seed: int) -> tuple[str, Build]:
    """The text of a random program of two actors with state of their own, and its `build`."""
    random = Random(seed)
    text = TEXT
    for name in "AB":
        body, _ = _block(random, " " * 12, 0)
        text += ACTOR.format(name=name, body="\n".join(body))
    found: dict[str, Any] = {"SimpleNamespace": SimpleNamespace, "Slots": Slots}
    exec(compile(text, f"<program {seed}>", "exec"), found)
    return text, found["build"]


@pytest.mark.parametrize("kept", [8, 1])
@pytest.mark.parametrize("chunk", range(4))
def test_random_programs_with_private_state_end_as_by_brute_force(
    chunk: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Fewer runs that are kept are closed sooner, and more are run from the start.
    monkeypatch.setattr(automaton, "RUNS_MAX", kept)
    monkeypatch.setattr(automaton, "SECONDS_MAX", kept)
    compared = 0
    for seed in range(chunk * 1000, chunk * 1000 + 60):
        text, build = generate(seed)
        expected = naive.findings(Program("random", build), 400)
        if not expected.complete:
            continue
        found = product.findings(Program("random", build))
        assert (found.ends, found.livelocks) == (expected.ends, expected.livelocks), f"{seed}{text}"
        compared += 1
    assert compared > 40
