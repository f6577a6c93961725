"""What learning has used is put back to what its build made: exactly, or not at all."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial
from itertools import count
from types import MethodType
from typing import Any, NamedTuple

import examples
import pytest

from balloonvq.driver.designs import find
from balloonvq.explore import naive, product, programs
from balloonvq.explore.local_state import Atom, Reach
from balloonvq.explore.scenarios import SCENARIOS, program
from balloonvq.explore.snapshot import Snapshot
from balloonvq.explore.world import Nondeterminism, Program
from balloonvq.runtime import controlled
from balloonvq.runtime.controlled import Fed

# -- one object ------------------------------------------------------------------


class Colour(Enum):
    RED = 1


class Pair(NamedTuple):
    first: Any
    second: Any


class Slotted:
    __slots__ = ("__private", "empty", "left")

    def __init__(self) -> None:
        self.left: Any = 1
        self.__private = [1]

    def hide(self) -> None:
        self.__private = [2]


class Both(Slotted):
    """With slots and attributes."""


@dataclass(frozen=True)
class Frozen:
    items: list[int] = field(default_factory=lambda: [1, 2])


class Inner:
    def __init__(self) -> None:
        self.number: Any = 1


class Other(Inner):
    pass


class Stubborn:
    """Has its own idea of attributes."""

    def __init__(self) -> None:
        vars(self)["number"] = 1

    def __getattribute__(self, name: str) -> Any:
        return 7 if name == "number" else object.__getattribute__(self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AssertionError


class Hidden(Atom):
    """What fingerprints do not look into."""

    def __init__(self) -> None:
        self.count = 0


class State:
    """All kinds of plain state, one inside the other."""

    def __init__(self) -> None:
        self.flag: Any = 0
        self.items: list[Any] = [1, [2], Inner()]
        self.by_name: dict[Any, Any] = {"a": 1, Colour.RED: {"deep": [3]}, (1, "b"): 4}
        self.seen: set[Any] = {"one", "two", "three"}
        self.slotted = Slotted()
        self.both = Both()
        self.both.left = {}
        self.frozen = Frozen()
        self.pair = Pair([1], frozenset({Colour.RED}))
        self.inner = Inner()
        self.stubborn = Stubborn()
        self.hidden = Hidden()
        self.colour = Colour.RED
        self.push = self.items.append
        self.circle = self
        held = [1]
        late: Any

        def function(first: list[int] = [], *, second: dict[str, int] = {}) -> object:  # noqa: B006
            nonlocal held, late
            first.append(1)
            second["b"] = 1
            held = [*held, 2]
            late = 1
            return late

        function.calls = [0]  # type: ignore[attr-defined]
        self.function: Any = function
        self.method = MethodType(function, [5])

    def turn(self) -> None:
        """What the actor does."""


def _function_turn(state: State) -> None:
    state.function()
    state.function.calls.append(1)
    state.function.more = 1


RESTORED: dict[str, Callable[[State], object]] = {
    "nothing": lambda state: None,
    "attribute": lambda state: setattr(state, "flag", 1),
    "attribute of another class": lambda state: setattr(state, "flag", False),
    "new attribute": lambda state: setattr(state, "new", 0),
    "deleted attribute": lambda state: delattr(state, "flag"),
    "order of attributes": lambda state: vars(state).update(flag=vars(state).pop("flag")),
    "attribute behind the class": lambda state: vars(state.stubborn).update(number=2),
    "list": lambda state: state.items.append(2),
    "list in a list": lambda state: state.items[1].clear(),
    "order of a list": lambda state: state.items.reverse(),
    "object in a list": lambda state: setattr(state.items[2], "number", 2),
    "another list": lambda state: setattr(state, "items", [1, [2], Inner()]),
    "bound method of a list": lambda state: state.push(1),
    "key": lambda state: state.by_name.__setitem__("b", 1),
    "value": lambda state: state.by_name.__setitem__("a", True),
    "order of keys": lambda state: state.by_name.__setitem__("a", state.by_name.pop("a")),
    "deep in a dict": lambda state: state.by_name[Colour.RED]["deep"].append(4),
    "member": lambda state: state.seen.add("four"),
    "no member": lambda state: state.seen.clear(),
    "slot": lambda state: setattr(state.slotted, "left", 2),
    "deleted slot": lambda state: delattr(state.slotted, "left"),
    "slot that was empty": lambda state: setattr(state.slotted, "empty", 2),
    "private slot": lambda state: state.slotted.hide(),
    "slot of a base": lambda state: setattr(state.both, "left", 3),
    "in a slot": lambda state: state.both.left.update(a=1),
    "attribute beside slots": lambda state: setattr(state.both, "right", 3),
    "in a frozen object": lambda state: state.frozen.items.append(3),
    "of a frozen object": lambda state: object.__setattr__(state.frozen, "items", []),
    "in a tuple": lambda state: state.pair.first.append(2),
    "deep inside": lambda state: setattr(state.inner, "number", 2),
    "the explorer's own objects": lambda state: setattr(state.hidden, "count", 2),
    "variables, defaults and attributes of a function": _function_turn,
    "what a method is bound to": lambda state: state.method(),
}

GIVEN_UP: dict[str, Callable[[State], object]] = {
    "all attributes": lambda state: setattr(state, "__dict__", dict(vars(state))),
    "class": lambda state: setattr(state.inner, "__class__", Other),
    "class with slots": lambda state: setattr(state.slotted, "__class__", _Same),
    "code of a function": lambda state: setattr(state.function, "__code__", _other.__code__),
    "defaults of a function": lambda state: setattr(state.function, "__defaults__", ([],)),
}


class _Same(Slotted):
    __slots__ = ()


def _other_maker() -> Callable[..., object]:
    held: Any = 1
    late: Any = 1

    def other(first: list[int] = [], *, second: dict[str, int] = {}) -> object:  # noqa: B006
        nonlocal held, late
        held = late = 2
        return held

    return other


_other = _other_maker()


def taken(make: Callable[[], object]) -> tuple[Any, Snapshot, Snapshot]:
    """The second of two equal objects, its snapshot, and the first one's."""
    first = Snapshot(make(), frozenset(), None)
    second = make()
    return second, Snapshot(second, frozenset(), first), first


def picture(snapshot: Snapshot) -> list[Any]:
    """What a snapshot knows, without saying which objects they are: two of equal objects are equal."""
    numbers = {id(item): number for number, item in enumerate(snapshot.met.values())}

    def shown(item: Any) -> Any:
        if isinstance(item, tuple | dict):
            parts: Iterable[Any] = (*item, *item.values()) if isinstance(item, dict) else item
            return (type(item), *map(shown, parts))
        if type(item) in {int, str, bool, float, bytes, type(None)}:
            return (type(item), item)
        # Other objects by the order in which they were met; what is not looked into, by its name or itself.
        known = getattr(item, "name", id(item)) if isinstance(item, Atom) else id(item)
        return (type(item), numbers.get(id(item), known))

    found: list[Any] = [list(map(type, snapshot.met.values()))]
    for name in ("_attributes", "_slots", "_lists", "_dicts", "_cells", "_functions"):
        for item, *what in getattr(snapshot, name):
            shown_what = [tuple(one) if isinstance(one, list) else one for one in what]
            found.append((name, numbers[id(item)], *map(shown, shown_what)))
    found += [("_sets", tuple(map(shown, before))) for _, before in snapshot._sets]
    return found


@pytest.mark.parametrize("change", RESTORED.values(), ids=RESTORED)
def test_what_has_changed_is_put_back(change: Callable[[State], object]) -> None:
    state, snapshot, first = taken(State)
    assert snapshot.complete
    before = picture(snapshot)
    reach = Reach([state.turn], frozenset(), {})
    number = reach.look()
    change(state)
    assert change is RESTORED["nothing"] or picture(Snapshot(state, frozenset(), first)) != before
    assert snapshot.restore()
    after = Snapshot(state, frozenset(), first)
    assert picture(after) == before
    # The very same objects, not only equal ones.
    assert list(after.met) == list(snapshot.met)
    assert reach.look() == number
    # And again, since it is what it was.
    change(state)
    assert snapshot.restore()
    assert picture(Snapshot(state, frozenset(), first)) == before
    assert picture(Snapshot(State(), frozenset(), first)) == before


@pytest.mark.parametrize("change", GIVEN_UP.values(), ids=GIVEN_UP)
def test_what_cannot_be_put_back_is_said(change: Callable[[State], object]) -> None:
    state, snapshot, _ = taken(State)
    change(state)
    assert not snapshot.restore()


def test_one_goes_through_a_set_in_the_same_order_again() -> None:
    # In a table of eight these collide: who came first is met first.
    for members in ((0, 8), (8, 0), (0, 8, 16, 24)):
        items, snapshot, _ = taken(lambda members=members: [set(members)])
        assert snapshot.complete
        order = list(items[0])
        for changed in ((8,), (16, 8, 0), (1, 2, 3, 4, 5, 6, 7)):
            items[0].clear()
            items[0].update(changed)
            items[0].discard(8)
            assert snapshot.restore()
            assert list(items[0]) == order
            items[0].add(32)
            grown = list(items[0])
            assert snapshot.restore()
            items[0].add(32)
            assert list(items[0]) == grown


def _class_of_its_own() -> object:
    class Own:
        items: list[int] = []  # noqa: RUF012

    return Own()


def _code_of_its_own() -> object:
    names: dict[str, Any] = {}
    exec("def function(): return state", names)
    return names["function"]


class Hashed:
    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hashed)


class Items(list[Any]):
    pass


class ItemsByName(dict[Any, Any]):
    pass


class Named(int):
    pass


UNKNOWN: dict[str, Callable[[], object]] = {
    "deque": lambda: deque([1]),
    "iterator": lambda: iter([1]),
    "generator": lambda: (one for one in [1]),
    "partial": lambda: partial(int),
    "count": count,
    "bytearray": bytearray,
    "error": ValueError,
    "subclass of list": Items,
    "subclass of dict": ItemsByName,
    "number with attributes": lambda: Named(1),
    "class": lambda: type("Own", (), {}),
    "object of a class of its own": _class_of_its_own,
    "function of its own": _code_of_its_own,
    "key that tells itself from others": lambda: {Hashed(): 1},
    "member that tells itself from others": lambda: {Hashed()},
}


@pytest.mark.parametrize("make", UNKNOWN.values(), ids=UNKNOWN)
def test_what_is_not_known_through_and_through_is_not_put_back(make: Callable[[], object]) -> None:
    assert not taken(lambda: [make()])[1].complete


def test_the_first_of_all_is_not_put_back() -> None:
    assert not Snapshot(State(), frozenset(), None).complete


def test_what_is_older_is_left_as_it_is() -> None:
    log: list[Any] = []
    numbers = count()
    inner, snapshot, first = taken(lambda: [log, numbers, []])
    assert snapshot.complete
    log.append([1])
    inner[2].append(1)
    assert snapshot.restore()
    assert log == [[1]]
    assert inner[2] == []
    # What came to it since is older than a third one, too.
    log[0].append(2)
    third = Snapshot([log, numbers, []], frozenset(), first)
    log[0].append(3)
    assert third.complete
    assert third.restore()
    assert log == [[1, 2, 3]]


# -- learning ---------------------------------------------------------------------


class Unbegun(Fed):
    """A build in which nobody has run."""

    def begin(self, *arguments: Any) -> None:
        del arguments


def _new(run: Fed) -> Fed:
    new = Unbegun(run.world, 0)
    new.__class__ = Fed
    # By these runs differ, whatever they are built of.
    new._anchored, new._main, new._built = run._anchored, run._main, run._built
    return new


def _same(run: Fed, new: Fed) -> None:
    """Compares a run that was put back with a new one."""
    shown, numbers = [], {}
    for one in (run, new):
        roots = (one, *(actor.function for actor in one.actors))
        snapshot = Snapshot(roots, controlled._LASTING, one.world.first_build)
        assert snapshot.complete
        shown.append(
            (
                picture(snapshot),
                [
                    {
                        name: getattr(actor, name)
                        for name in controlled.Actor.__slots__
                        if name not in {"function", "reach"}
                    }
                    for actor in one.actors
                ],
                [
                    Reach(one._roots(actor), one.world.program.statistics, numbers).look()
                    for actor in one.actors
                    if actor.index in (one.world.known_functions or ())
                ],
            )
        )
    assert shown[0] == shown[1]
    for actor in run.actors:
        if actor.reach is not None and actor.reach.noticed:
            again = Reach(run._roots(actor), run.world.program.statistics, run.world.reached)
            assert actor.reach.look() == again.look()


@pytest.fixture
def restored(monkeypatch: pytest.MonkeyPatch) -> list[Fed]:
    """The runs whose objects were put back; each is compared with a new build then."""
    found: list[Fed] = []
    restore = Fed._restore

    def checked(run: Fed) -> bool:
        if not restore(run):
            return False
        found.append(run)
        _same(run, _new(run))
        return True

    monkeypatch.setattr(Fed, "_restore", checked)
    return found


@pytest.mark.parametrize("scenario", ["page-locks-oom", "oom-while-filling", "teardown-oom", "two-ooms"])
@pytest.mark.parametrize("design", ["coarse", "modern", "reference", "split"])
def test_shipped_designs_are_put_back(restored: list[Fed], design: str, scenario: str) -> None:
    product.explore(program(find(design), SCENARIOS[scenario]))
    assert restored


def test_random_programs_are_put_back(restored: list[Fed]) -> None:
    for seed in range(60):
        product.findings(programs.generate(seed))
    assert len(restored) > 30


@pytest.mark.parametrize(
    "build", [examples.host, examples.wake_up, examples.race, examples.assertion, examples.busy_spin]
)
def test_examples_are_put_back(restored: list[Fed], build: Callable[[Any], None]) -> None:
    product.findings(examples.program(build))
    assert restored


def same_ends(build: Callable[[Any], object]) -> None:
    """Compares with brute force, which builds anew each time."""
    explored = Program("program", build)
    found, expected = product.findings(explored), naive.findings(explored)
    assert (found.ends, found.livelocks) == (expected.ends, expected.livelocks)
    assert len(expected.ends) > 1


class Design:
    """Of somebody: it decides by plain state of all kinds, which its actor changes."""

    def __init__(self, rt: Any) -> None:
        self.words = [rt.shared(f"word {number}") for number in range(2)]
        self.out = rt.shared("out")
        self.seen: list[int] = []
        self.by_value: dict[int, list[int]] = {}
        self.members: set[int] = set()
        self.slotted = Slotted()
        self.inner = Inner()
        self.hidden = Hidden()

    def look(self) -> None:
        """Says what it is made of after four values that somebody else writes."""
        for word in (*self.words, *self.words):
            value = word.value
            self.seen.append(value)
            self.by_value.setdefault(value, []).append(len(self.seen))
            self.members.add(value)
            self.slotted.left = Pair(self.slotted.left, value)
            self.inner.number += value
            self.hidden.count += value
            if value:
                self.inner = Inner()
                vars(self).setdefault("found", len(self.seen))
        self.out.value = (
            1000 * len(self.seen)
            + 100 * sum(map(len, self.by_value.values()))
            + 10 * len(self.members)
            + self.hidden.count
            + vars(self).get("found", 0)
        )


def test_a_design_with_plain_state_of_all_kinds_is_learned_as_if_it_were_built_anew(
    restored: list[Fed],
) -> None:
    def build(rt: Any) -> None:
        design = Design(rt)

        def writer() -> None:
            for word in design.words:
                word.value = 1

        rt.spawn("R", "", design.look)
        rt.spawn("W", "", writer)

    same_ends(build)
    assert restored


class Counted:
    """What an actor's function holds: it is asked for a number, which is another one each time."""

    def __init__(self) -> None:
        self.numbers: Any = [1]

    def next(self) -> int:
        """One more than before."""
        self.numbers.append(1)
        return len(self.numbers)


class Recounted(Counted):
    def next(self) -> int:
        """Another class from now on."""
        self.__class__ = Thrice  # type: ignore[assignment]
        return Counted.next(self)


class Thrice(Counted):
    def next(self) -> int:
        """Three times the number."""
        return 3 * super().next()


class Replaced(Counted):
    def next(self) -> int:
        """All attributes are others from now on."""
        self.__dict__ = {"numbers": [*self.numbers, 1]}
        return len(self.numbers)


class InDeque(Counted):
    def __init__(self) -> None:
        self.numbers = deque([1])


class InIterator(Counted):
    def __init__(self) -> None:
        self.numbers = count(2)

    def next(self) -> int:
        """The iterator's next number."""
        return next(self.numbers)


def _in_class() -> Any:
    class Own(Counted):
        count = 1

        def next(self) -> int:
            Own.count += 1
            return Own.count

    return Own()


def _in_function() -> Any:
    def following(numbers: list[int] = []) -> int:  # noqa: B006
        numbers.append(1)
        following.count += 1  # type: ignore[attr-defined]
        return len(numbers) + following.count  # type: ignore[attr-defined]

    following.count = 0  # type: ignore[attr-defined]
    return following


def _in_closure() -> Any:
    numbers = 1

    def following() -> int:
        nonlocal numbers
        numbers += 1
        return numbers

    return following


@pytest.mark.parametrize(
    ("make", "again"),
    [
        (Counted, True),
        (_in_closure, True),
        (_in_function, True),
        # Some runs do not change it and can be used again, those that do cannot.
        (Recounted, True),
        (Replaced, True),
        (InDeque, False),
        (InIterator, False),
        (_in_class, False),
    ],
)
def test_what_an_actor_has_changed_is_never_met_by_a_later_run(
    restored: list[Fed], make: Callable[[], Any], again: bool
) -> None:
    def build(rt: Any) -> None:
        words, out, made = [rt.shared(name) for name in "abc"], rt.shared("out"), make()
        following = made.next if isinstance(made, Counted) else made

        def reader() -> None:
            for word in words:
                if word.value:
                    following()
            out.value = following()

        def writer() -> None:
            for word in words:
                word.value = 1

        rt.spawn("R", "", reader)
        rt.spawn("W", "", writer)

    same_ends(build)
    assert bool(restored) == again


def test_state_that_outlives_builds_is_not_hidden() -> None:
    outlives: list[int] = []

    def build(rt: Any) -> None:
        word = rt.shared("word")

        def actor() -> None:
            outlives.append(1)
            word.value = len(outlives) % 7

        for name in "AB":
            rt.spawn(name, "", actor)

    with pytest.raises(Nondeterminism, match=r"test_snapshot\.py:\d+"):
        product.explore(Program("outlives", build))


def test_what_an_error_holds_is_shown_as_it_was_then(restored: list[Fed]) -> None:
    def build(rt: Any) -> None:
        words, found = [rt.shared(name) for name in "ab"], []

        def reader() -> None:
            found.extend(word.value for word in words)
            if any(found):
                raise ValueError(found)

        def writer() -> None:
            for word in words:
                word.value = 1

        rt.spawn("R", "", reader)
        rt.spawn("W", "", writer)

    bug = product.explore(Program("error", build)).bug
    assert bug is not None
    assert "[1, 0]" in bug.what
    assert restored


def test_learning_builds_seldom() -> None:
    explored = program(find("modern"), SCENARIOS["page-locks-oom"])
    builds = count()

    def counted(rt: Any) -> object:
        if isinstance(rt, Fed):
            next(builds)
        return explored.build(rt)

    product.explore(replace(explored, build=counted))
    assert next(builds) < 20
