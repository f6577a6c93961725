"""Engine P: the product of the learned automata, searched with state matching.

A state is one int: for each actor the number of its local state, for each
object the number of its value, side by side in bit fields. A step of actor A
depends on A's own field and the fields of the few objects that it touches, so

    state & mask of A's local state  ->  difference: next state = state ^ difference

is a table that soon holds all that A can do, whatever the others are at. A search
step is: shift, mask, look up, exclusive or, look up in the set of known states. That, and all else that is
done once a state, is C (``csrc/explore.h``, `balloonvq.explore.kernel`); states are
known by their index there. The tables are filled on demand by the only slow part, `_compute`, which performs the
operation and whatever is glued to it (`balloonvq.explore.world`) and asks the
automaton for the actor's next local state. What C finds suspicious is judged here.

What is explored: all states that any schedule reaches, within the program's `Bounds`.
Why sound and complete: the tables are the operations' own transition functions; an
actor is a function of what it observed (checked, `balloonvq.explore.automaton`);
states are matched exactly (fields, no hashes), and the search ends when no new
state is found. Limits are those of `explore`: states and seconds; hitting one
gives INCOMPLETE.

Order: breadth first over steps, so the first bug found has a shortest schedule. No
predecessors are stored; the schedule is found backwards, layer by layer. Of several bugs and schedules of the
same length the choice does not depend on how states are numbered. The
schedule with the fewest preemptions is a second search over (state, who ran last),
in order of (preemptions, steps). A preemption is a step of another actor while the one
that ran last could go on and was not about to give way. Time's steps are none.

Livelocks are looked for when everything else is proven: see `balloonvq.explore.liveness`.
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import math
import random
import time
from bisect import bisect_right
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from balloonvq.explore.automaton import Automaton, Node, TooManyLocalStates, verify
from balloonvq.explore.kernel import Event, Fields, Kernel
from balloonvq.explore.operations import Operation, Raised
from balloonvq.explore.verdict import Bug, Findings, Kind, Outcome, Schedule, Verdict
from balloonvq.explore.world import CLOCK, NOTHING, Nondeterminism, Program, Revised, World, tick
from balloonvq.ffi import CData, lib
from balloonvq.runtime.controlled import TICK, Decision, Execution, Place

if TYPE_CHECKING:
    from balloonvq.explore.checkpoint import Checkpoint

__all__ = [
    "Limits",
    "OnLayer",
    "Product",
    "Progress",
    "Search",
    "Widened",
    "explore",
    "findings",
    "started",
]


class Limits(NamedTuple):
    """Where a search gives up."""

    states: int = 5_000_000
    seconds: float = 600.0


class Progress(NamedTuple):
    """How far a search is."""

    layers: int
    """All schedules of so many steps have been looked at."""
    states: int
    """So far."""
    frontier: int
    """States of the last layer, whose steps have not been looked at."""
    seconds: float
    estimate: int | None
    """A guess at the number of all states; None while there is nothing to guess from."""


OnLayer = Callable[[Progress], None]


class Layer(NamedTuple):
    """All states that so many steps lead to and fewer do not."""

    end: int
    """Index behind its last state."""
    size: int
    """States from which the search goes on."""
    transitions: int
    """Steps of all layers before it."""


class Effect(NamedTuple):
    """What an operation does to one value of its object."""

    observed: Any
    after: int
    """Number of the object's value after it."""
    following: int
    """The actor's next local state."""


#: Kinds of operations that spin: time may pass there.
_RELAXING: Final = frozenset({"relax", "cpu_relax"})


def _flags(node: Node) -> int:
    """What the kernel has to know of a local state, ``enum explore_node_flag``."""
    operation = node.operation
    if operation is None:
        return int(lib.EXPLORE_GIVES_WAY | (lib.EXPLORE_FAILED if node.error is not None else 0))
    return int(
        (lib.EXPLORE_RELAXES if operation.kind in _RELAXING else 0)
        | (lib.EXPLORE_GIVES_WAY if operation.gives_way else 0)
        | (lib.EXPLORE_UNGUARDED if operation.open else 0)
    )


#: Seconds from one checkpoint to the next.
SAVE_S: Final = 10.0


class Widened(Exception):
    """A bit field was too narrow; the search starts again with a wider one."""


class _Bug(Exception):  # control flow inside one search
    def __init__(self, kind: Kind, what: str, states: set[int]) -> None:
        super().__init__(what)
        self.kind = kind
        self.what = what
        #: Indices of all states of the layer in which this is wrong.
        self.states = states


class Special:
    """A table entry that is no plain step.

    Attributes:
        moves: (decision, difference) of each outcome; empty if blocked.
        owner: the owner of the mutex on which the actor is blocked while it holds
            another one, or -1. Only such an actor can be part of a circle.
        open: the actor is about to touch guarded data without the guard.
    """

    __slots__ = ("moves", "open", "owner")

    def __init__(
        self,
        moves: tuple[tuple[Decision, int], ...] = (),
        *,
        owner: int = -1,
        open_: bool = False,
    ) -> None:
        self.moves = moves
        self.owner = owner
        self.open = open_


class Product:
    """States, steps and tables of one program.

    What has been learned of the actors stays when a search has to start again: a local state and
    what it leads to do not depend on which operations are scheduling points.

    Args:
        world: the world, its facts included.
    """

    def __init__(self, world: World) -> None:
        self.world = world
        self.automata: list[Automaton] = []
        self._values: list[list[Hashable]] = []
        self._numbers: list[dict[Hashable, int]] = []
        #: In the order in which numbers were given: (actor, local state, number of the value, choice) and what
        #: that does, or (-1, numbers of all values) for time's step. None while it is being found out.
        self.learned: dict[tuple[int, ...], Effect | None] = {}
        #: Bits of each actor's and of each object's field.
        self.widths: list[int] = []
        #: Operations of random real executions that were compared with the automata; None before.
        self.sampled: int | None = None
        #: Whether tables and first state are those of what is known of the world.
        self.ready = False
        #: Layers of a search that was left, to go on from; their states are in the kernel.
        self.left: list[Layer] = []
        self._kernel: Kernel | None = None
        #: Steps of the longest of these; 0 before.
        self.longest = 0

    def _begin(self) -> None:
        """The first local state of every actor; what is still missing of it."""
        world = self.world
        while not self.automata or len(self.automata) < len(world.actors):
            # The first automaton's run completes the world.
            self.automata.append(Automaton(world, len(self.automata)))
        if not self.widths:
            self.count = len(world.actors)
            #: Objects that are part of a state: all but "nothing".
            self.objects: list[int] = [spec.index for spec in world.objects if spec.kind != "nothing"]
            self._values = [[] for _ in world.objects]
            self._numbers = [{} for _ in world.objects]
            self.known(NOTHING, None)
            self.widths = [10] * self.count + [4] * len(self.objects)

    # -- packing -------------------------------------------------------------

    def start(self) -> None:
        """Sets the fields' places, empties all tables and finds the first state; to be called first.

        Raises:
            Revised, Widened: start again.
        """
        self._begin()
        self.ready = False
        self.left = []
        self._lay_out()
        count = self.count
        self.masks: list[list[int]] = [[] for _ in range(count)]
        #: Of each actor and local state: what the actor can do, by what of a state that depends on.
        self.tables: list[list[dict[int, int | Special]]] = [[] for _ in range(count)]
        #: Actors of whose tables entries were removed because their node depends on more than was known then.
        self._emptied: set[int] = set()
        for index in range(count):
            self._cover(index)
        self.initial = self._first()
        self.ready = True

    def _lay_out(self) -> None:
        """The fields' places, from their widths; one that is too narrow for what is known by now gets more bits."""
        count = self.count
        self.widths = widths = [
            size.bit_length() + 4 if (size - 1) >> width else width
            for size, width in zip(self._field_sizes(), self.widths, strict=True)
        ]
        self.shifts = [0, *itertools.accumulate(widths)]
        self.bits = self.shifts.pop()
        self.actor_shift = self.shifts[:count]
        self.actor_mask = [(1 << width) - 1 for width in widths[:count]]
        #: Of each object; "nothing" has no bits.
        self.object_shift = [0] * len(self._values)
        self.object_mask = [0] * len(self._values)
        for index, shift, width in zip(self.objects, self.shifts[count:], widths[count:], strict=True):
            self.object_shift[index] = shift
            self.object_mask[index] = (1 << width) - 1
        looked_at = {index for one in self.world.invariants if not one.at_rest for index in one.objects}
        #: The fields of the objects that invariants of every state look at, and what they say of their values.
        self.watched = sum(self.object_mask[index] << self.object_shift[index] for index in looked_at)
        self._broken: dict[int, str | None] = {}
        self._make_kernel()

    def _make_kernel(self) -> None:
        """A kernel for fields in these places, without entries and states."""
        bounds, count = self.world.bounds, self.count
        places = dict(zip(self.objects, range(count, len(self.widths)), strict=True))
        fields = list(zip(self.shifts, self.widths, strict=True))
        self._kernel = Kernel(
            Fields(fields[:count], fields[places[CLOCK]], self.bits),
            idle=self.number(CLOCK, (0, ())),
            one_cpu=bounds.one_cpu,
            explore_time=bounds.explore_time,
        )
        ticking = sum(
            ((1 << self.widths[field]) - 1) << self.shifts[field] for field in self.ticking_fields()
        )
        self._kernel.set_node(self._kernel.time, 0, ticking)
        self._kernel.set_node(self._kernel.watch, 0, self.watched)

    @property
    def kernel(self) -> Kernel:
        """The tables and the states of the search, in C."""
        assert self._kernel is not None
        return self._kernel

    def grow(self) -> None:
        """Gives fields the place that they need by now; a search that was left moves along."""
        left, narrow, widths = self.left, self.kernel, self.widths
        self.start()
        # (end of a field, bits that it gets there), from the top so that the lower ones stay where they are.
        ends = itertools.accumulate(widths)
        gaps = [
            (end, new - old) for end, old, new in zip(ends, widths, self.widths, strict=True) if old != new
        ]
        if left:
            self.kernel.widen(narrow, left[-1].end, gaps[::-1])
            self.left = left
            self.forget()
        narrow.close()

    def narrow(self) -> None:
        """Makes fields wide enough for eight times as many numbers as are known by now, and fills the last word with them."""
        self.widths = [(8 * size - 1).bit_length() for size in self._field_sizes()]
        rest = -(sum(self.widths) + self.count.bit_length()) % 64
        more, left = divmod(rest, len(self.widths))
        self.widths = [min(width + more + (field < left), 32) for field, width in enumerate(self.widths)]
        self.start()

    def _field_sizes(self) -> list[int]:
        """How many numbers each field has to be wide enough for."""
        nodes, values = self.sizes()
        return nodes + [values[index] for index in self.objects]

    def _cover(self, actor: int) -> None:
        """Makes tables for the local states that have none. A step from one depends on at least its object."""
        masks, nodes = self.masks[actor], self.automata[actor].nodes
        if len(masks) == len(nodes):
            return
        full = self.actor_mask[actor]
        if len(nodes) - 1 > full:
            raise Widened
        for entry in nodes[len(masks) :]:
            mask = full << self.actor_shift[actor]
            if entry.operation is not None:
                mask |= self._object_bits(entry.operation.object)
            self.kernel.set_node(actor, entry.index, mask, _flags(entry))
            masks.append(mask)
            self.tables[actor].append({})

    def _object_bits(self, index: int) -> int:
        """The bits of an object's field."""
        return self.object_mask[index] << self.object_shift[index]

    def number(self, index: int, value: Hashable) -> int:
        """The number of a value of an object, which fits its field."""
        return self._fitting(index, self.known(index, value))

    def _fitting(self, index: int, number: int) -> int:
        """This number of a value of an object.

        Raises:
            Widened: if it does not fit the object's field.
        """
        if number > self.object_mask[index]:
            raise Widened
        return number

    def known_values(self, index: int) -> list[Hashable]:
        """All values of an object that were met so far, by number."""
        return self._values[index]

    def known(self, index: int, value: Hashable) -> int:
        """The number of a value of an object, which need not fit its field."""
        found = self._numbers[index].setdefault(value, len(self._values[index]))
        if found == len(self._values[index]):
            self._values[index].append(value)
        return found

    def _first(self) -> int:
        """The first state: each actor before its first scheduling point."""
        state = self._with_numbers(0, self.first_numbers())
        for actor in range(self.count):
            state = self._glue(actor, [0], state)
            self._cover(actor)
        return state

    def first_numbers(self) -> list[int]:
        """The numbers of all values at the start."""
        return [self.known(index, value) for index, value in enumerate(self.world.start)]

    def _with_numbers(self, state: int, numbers: Iterable[int]) -> int:
        """The state in which the objects have the values with these numbers."""
        for index, number in enumerate(numbers):
            state ^= (self._field(state, index) ^ self._fitting(index, number)) << self.object_shift[index]
        return state

    def _field(self, state: int, index: int) -> int:
        """The number of an object's value."""
        return state >> self.object_shift[index] & self.object_mask[index]

    def nodes(self, state: int) -> list[int]:
        """Each actor's local state."""
        return [
            (state >> shift) & mask for shift, mask in zip(self.actor_shift, self.actor_mask, strict=True)
        ]

    def value(self, state: int, index: int) -> Any:
        """One object's value."""
        return self._values[index][self._field(state, index)]

    def values(self, state: int) -> list[Any]:
        """Each object's value."""
        return [self.value(state, index) for index in range(len(self._values))]

    # -- one step ------------------------------------------------------------

    def _operate(self, actor: int, path: list[int], state: int, choice: int = 0) -> int | None:
        """Performs one operation: the state after it, or None if it is blocked.

        Args:
            actor: whose.
            path: local states, the one with the operation last; the next one is added.
            state: before it.
            choice: its outcome, of several.
        """
        node = path[-1]
        index = self.automata[actor].nodes[node].operation.object  # type: ignore[union-attr]
        shift, full = self.object_shift[index], self.object_mask[index]
        before = state >> shift & full
        effect = self.perform(actor, node, before, choice)
        if effect is None:
            return None
        _, after, following = effect
        if after > full or following > self.actor_mask[actor]:
            raise Widened
        path.append(following)
        return state ^ (before ^ after) << shift ^ (node ^ following) << self.actor_shift[actor]

    def _glue(self, actor: int, path: list[int], state: int) -> int:
        """Performs what is glued to the last operation, as `_operate`."""
        nodes = self.automata[actor].nodes
        while True:
            entry = nodes[path[-1]]
            if entry.operation is None or entry.operation.visible:
                return state
            after = self._operate(actor, path, state)
            if after is None:
                raise Nondeterminism(
                    f"{entry.operation!r} blocks although its guard is held", why=str(entry.place)
                )
            state = after

    def step(self, actor: int, state: int, choice: int = 0) -> tuple[list[int], int] | None:
        """A step in full: (the actor's local states from before it to after it, the state after it).

        None if it is blocked.
        """
        path = [state >> self.actor_shift[actor] & self.actor_mask[actor]]
        after = self._operate(actor, path, state, choice)
        return None if after is None else (path, self._glue(actor, path, after))

    def performed(self, state: int, decision: Decision) -> list[tuple[Operation, Place]]:
        """The operations of an actor's step that is possible, and where they are called."""
        actor, choice = decision
        found = self.step(actor, state, choice)
        assert found is not None
        nodes = self.automata[actor].nodes
        return [(cast("Operation", nodes[node].operation), nodes[node].place) for node in found[0][:-1]]

    def perform(self, actor: int, node: int, before: int, choice: int = 0) -> Effect | None:
        """What the operation of a local state does to the value with this number, or None if it is blocked.

        Whatever gets a number gets it here or in `tick`, and `learned` says in which order.
        """
        key = actor, node, before, choice
        effect = self.learned.get(key)
        if effect is None:
            automaton = self.automata[actor]
            operation = automaton.nodes[node].operation
            assert operation is not None
            index = operation.object
            value = self._values[index][before]
            result = (value, choice) if operation.options else operation.transition(value, actor)
            if result is None:
                return None
            after, observed = result
            self.learned[key] = None
            following = automaton.step(node, observed)
            effect = self.learned[key] = Effect(observed, self.known(index, after), following)
        return effect

    def learn_again(self, learned: Iterable[tuple[int, ...]]) -> None:
        """Does what another product had in `learned`, so that all numbers are the same.

        Raises:
            Revised: if a fact is missing.
            ValueError: if this is not possible here.
        """
        for actor, *numbers in learned:
            if actor == TICK[0]:
                if len(numbers) != len(self._values):
                    raise ValueError("a step of time has too few values")
                self.tick(numbers)
                continue
            node, before, choice = numbers
            if min(actor, node, before, choice) < 0 or self.operation(actor, node) is None:
                raise ValueError("a step of an actor that has ended")
            if self.perform(actor, node, before, choice) is None:
                raise ValueError("a step that is blocked")

    def sizes(self) -> tuple[list[int], list[int]]:
        """How many local states each actor has, and values each object, by now."""
        return [len(automaton.nodes) for automaton in self.automata], [len(known) for known in self._values]

    def meaning(self, nodes: list[int], values: list[int]) -> str:
        """The first so many local states and values, in words: two products with the same words number them alike."""
        lines = []
        for automaton, count in zip(self.automata, nodes, strict=True):
            lines += [f"{node.operation!r} {node.place} {node.holds}" for node in automaton.nodes[:count]]
        for known, count in zip(self._values, values, strict=True):
            lines += [repr(value) for value in known[:count]]
        return "\n".join(lines)

    def _compute(self, actor: int, state: int) -> int | Special:
        """Fills one table entry."""
        node = (state >> self.actor_shift[actor]) & self.actor_mask[actor]
        operation = self.automata[actor].nodes[node].operation
        found = 0 if operation is None else self._entry(actor, node, operation, state)
        key = state & self.masks[actor][node]
        self.tables[actor][node][key] = found
        self._tell(actor, key, found)
        return found

    def _tell(self, actor: int, key: int, found: int | Special) -> None:
        """Puts an entry into the kernel's table."""
        if not isinstance(found, Special):
            self.kernel.add(actor, key, (found,) if found else ())
            return
        differences = [difference for _, difference in found.moves]
        self.kernel.add(actor, key, differences, open_=found.open, owner=found.owner)

    def supply(self, table: int, state: int) -> None:
        """Adds an entry that the kernel found to be missing."""
        kernel = self.kernel
        if table == kernel.time:
            after = self.ticked(state)
            kernel.add(table, state, () if after is None else (state ^ after,))
        elif table == kernel.watch:
            kernel.add(table, state, () if self.broken(state) is None else (0,))
        else:
            self._compute(table, state)

    def walk(
        self,
        function: Callable[..., int],
        *arguments: object,
        begin: int = 0,
        end: int = 0,
        ask: Callable[[CData], None] | None = None,
        deadline: float = math.inf,
    ) -> tuple[int, int]:
        """Has a function of the kernel go over states, and gives it the entries that are missing.

        Args:
            function: what.
            arguments: of it, before the cursor.
            begin: index of the first state.
            end: behind the last one.
            ask: called with the cursor where the kernel wants to know more: EXPLORE_JUDGE, EXPLORE_EVENTS.
            deadline: by `time.monotonic`.

        Returns:
            (what the function returned, transitions).

        Raises:
            _Enough: after the deadline.
        """
        return self.kernel.walk(function, *arguments, begin=begin, end=end, answer=self.answer(ask, deadline))

    def answer(
        self, ask: Callable[[CData], None] | None = None, deadline: float = math.inf
    ) -> Callable[[int, CData], None]:
        """What to do when the kernel comes back before its end, see `walk`."""
        kernel, fields = self.kernel, (1 << self.bits) - 1

        def answer(result: int, cursor: CData) -> None:
            if time.monotonic() > deadline:
                raise _Enough
            if result == lib.EXPLORE_MISSING:
                self.supply(cursor.table, kernel.state(cursor.state) & fields)
            elif result != lib.EXPLORE_MORE:
                assert ask is not None
                ask(cursor)

        return answer

    def _entry(self, actor: int, node: int, operation: Operation, state: int) -> int | Special:
        nodes = self.automata[actor].nodes
        moves: list[tuple[Decision, int]] = []
        failed = False
        for choice in range(operation.options or 1):
            step = self.step(actor, state, choice)
            self._cover(actor)
            if step is None:
                if operation.kind == "lock" and nodes[node].holds:
                    return Special(owner=self.value(state, operation.object))
                return 0
            path, after = step
            if len(path) > 2:
                self._touch(actor, path)
            failed = failed or nodes[path[-1]].error is not None
            moves.append(((actor, choice), after ^ state))
        # A step that changes nothing must not look like a blocked one.
        if not failed and len(moves) == 1 and not operation.open and moves[0][1]:
            return moves[0][1]
        return Special(tuple(moves), open_=operation.open)

    def _touch(self, actor: int, path: list[int]) -> None:
        """Makes the entries of the first local state depend on the objects of all operations that follow from it."""
        node, *glued = path[:-1]
        nodes, masks = self.automata[actor].nodes, self.masks[actor]
        wanted = masks[node]
        for passed in glued:
            wanted |= self._object_bits(nodes[passed].operation.object)  # type: ignore[union-attr]
        if wanted != masks[node]:
            masks[node] = wanted
            self.kernel.set_node(actor, node, wanted, _flags(nodes[node]))
            if self.tables[actor][node]:
                self.tables[actor][node] = {}
                self._emptied.add(actor)

    def entry(self, actor: int, state: int) -> int | Special:
        """What an actor can do in a state."""
        node = state >> self.actor_shift[actor] & self.actor_mask[actor]
        found = self.tables[actor][node].get(state & self.masks[actor][node])
        return self._compute(actor, state) if found is None else found

    def moves(self, actor: int, state: int) -> tuple[tuple[Decision, int], ...]:
        """The outcomes of an actor's next step: (decision, difference); none if it is blocked."""
        entry = self.entry(actor, state)
        if isinstance(entry, Special):
            return entry.moves
        return (((actor, 0), entry),) if entry else ()

    def forget(self) -> None:
        """Says that tables may lack entries of any state that was found."""
        self._emptied.update(range(self.count))

    def fill(self) -> None:
        """Computes the entries for the states found that were removed when more was found to depend on."""
        while self._emptied:
            self.walk(lib.explore_fill, self._emptied.pop(), end=self.kernel.count)

    def ticking_fields(self) -> set[int]:
        """The fields that time's step may change."""
        kinds = {"clock", "wait queue"}
        return {
            self.count + number
            for number, index in enumerate(self.objects)
            if self.world.objects[index].kind in kinds
        }

    # -- successors, in full -------------------------------------------------

    def operation(self, actor: int, node: int) -> Operation | None:
        """What an actor is about to do in a local state."""
        return self.automata[actor].nodes[node].operation

    def gives_way(self, actor: int, state: int) -> bool:
        """Whether the actor is about to relax, sleep or wait."""
        node = (state >> self.actor_shift[actor]) & self.actor_mask[actor]
        operation = self.operation(actor, node)
        return operation is None or operation.gives_way

    def _relaxes(self, actor: int, state: int) -> bool:
        node = (state >> self.actor_shift[actor]) & self.actor_mask[actor]
        operation = self.automata[actor].nodes[node].operation
        return operation is not None and operation.kind in _RELAXING

    def ticked(self, state: int) -> int | None:
        """The state after time's step, if a timer runs."""
        after = self.tick([self._field(state, index) for index in range(len(self._values))])
        return None if after is None else self._with_numbers(state, after)

    def tick(self, numbers: Sequence[int]) -> list[int] | None:
        """The numbers of all values after time's step, if a timer runs."""
        values = [known[number] for known, number in zip(self._values, numbers, strict=True)]
        after = tick(values, absolute=self.world.bounds.absolute_time)
        if after is None:
            return None
        if any(value not in known for value, known in zip(after, self._numbers, strict=True)):
            self.learned[TICK[0], *numbers] = None
        return [self.known(index, value) for index, value in enumerate(after)]

    def successors(self, state: int, running: int = -1) -> list[tuple[Decision, int]]:
        """All steps; on one processor, those that the running actor leaves possible."""
        found: list[tuple[Decision, int]] = []
        relaxing = True
        for actor in range(self.count):
            moves = self.moves(actor, state)
            if moves:
                if relaxing and not self._relaxes(actor, state):
                    relaxing = False
                found.extend((decision, state ^ difference) for decision, difference in moves)
        if relaxing or self.world.bounds.explore_time:
            after = self.ticked(state)
            if after is not None:
                found.append((TICK, after))
        if self.world.bounds.one_cpu and running >= 0 and not self.gives_way(running, state):
            mine = [step for step in found if step[0][0] == running]
            return mine or found
        return found

    # -- properties ----------------------------------------------------------

    def stuck(self, state: int) -> list[int]:
        """The actors that have not ended, are no daemons and are not idle where they are."""
        found: list[int] = []
        if self.world.excuses and self.world.excused(self.values(state)):
            return found
        for actor, node in enumerate(self.nodes(state)):
            operation = self.automata[actor].nodes[node].operation
            if operation is not None and not operation.idle and not self.world.actors[actor].daemon:
                found.append(actor)
        return found

    def fates(self, state: int) -> tuple[str, ...]:
        """As `Execution.fate`, for each actor."""
        found = []
        for actor, node in enumerate(self.nodes(state)):
            entry = self.automata[actor].nodes[node]
            if entry.operation is not None:
                found.append(repr(entry.operation))
            else:
                found.append("finished" if entry.error is None else repr(Raised(entry.error)))
        return tuple(found)

    def circle(self, state: int) -> tuple[int, ...]:
        """Actors that wait for each other's mutexes in a circle."""
        owners: dict[int, int] = {}
        for actor in range(self.count):
            entry = self.entry(actor, state)
            if isinstance(entry, Special) and entry.owner >= 0:
                owners[actor] = entry.owner
        for actor in owners:
            seen = [actor]
            following = owners.get(actor)
            while following is not None and following not in seen:
                seen.append(following)
                following = owners.get(following)
            if following == actor:
                return tuple(sorted(seen))
        return ()

    def races(self, state: int) -> str | None:
        """Two steps possible now that touch the same guarded data, one of them without the guard."""
        if not any(
            operation is not None and operation.open
            for operation in map(self.operation, range(self.count), self.nodes(state))
        ):
            return None
        steps: dict[int, list[tuple[Operation, Place]]] = {}
        for decision, _ in self.successors(state):
            if decision != TICK:
                steps.setdefault(decision[0], []).extend(self.performed(state, decision))
        for actor, other in itertools.permutations(steps, 2):
            first, place = steps[actor][0]
            if not first.open:
                continue
            for second, there in steps[other]:
                if second.object == first.object and (second.writes or first.writes):
                    return self.race_text((actor, first, place), (other, second, there))
        return None

    def race_text(self, *both: tuple[int, Operation, Place]) -> str:
        """Both places of a race, smaller first."""
        sides = [
            f"{self.world.actors[actor].name} {operation.kind} at {file.rpartition('/')[2]}:{line}"
            for actor, operation, (file, line) in both
        ]
        return f"{both[0][1].name}: {' and '.join(sorted(sides))}"

    def deadlock_text(self, actors: tuple[int, ...] | list[int], state: int) -> str:
        """Who waits for what."""
        nodes = self.nodes(state)
        return ", ".join(
            f"{self.world.actors[actor].name} waits in {self.automata[actor].nodes[nodes[actor]].operation!r}"
            for actor in actors
        )

    def judge(self, state: int) -> tuple[Kind, str] | None:
        """What is wrong with a state in itself: slow, complete, used by every search but the first."""
        broken = self.broken(state)
        if broken is not None:
            return Kind.INVARIANT, broken
        for actor, node in enumerate(self.nodes(state)):
            error = self.automata[actor].nodes[node].error
            if error is not None:
                return Kind.ERROR, f"{self.world.actors[actor].name}: {Raised(error)!r}"
        circle = self.circle(state)
        if circle:
            return Kind.DEADLOCK, self.deadlock_text(circle, state)
        race = self.races(state)
        if race is not None:
            return Kind.RACE, race
        if not self.successors(state):
            return self.judge_end(state)
        return None

    def judge_end(self, state: int) -> tuple[Kind, str] | None:
        """What is wrong with a state in which nobody can go on."""
        stuck = self.stuck(state)
        if stuck:
            return Kind.DEADLOCK, self.deadlock_text(stuck, state)
        broken = self.world.broken(self.values(state), at_rest=True)
        return None if broken is None else (Kind.AT_REST, broken)

    def broken(self, state: int) -> str | None:
        """The name of the first invariant of every state that this one breaks."""
        key = state & self.watched
        if key not in self._broken:
            self._broken[key] = self.world.broken(self.values(key), at_rest=False)
        return self._broken[key]

    @property
    def has_timers(self) -> bool:
        """Whether anybody has ever armed a timer."""
        return len(self._values[CLOCK]) > 1

    @property
    def loops(self) -> bool:
        """Whether any actor's automaton has a circle: without one the product has none."""
        return any(automaton.loops for automaton in self.automata)

    def close(self) -> None:
        """Ends live runs, and gives the memory of the states back."""
        for automaton in self.automata:
            automaton.close()
        if self._kernel is not None:
            self._kernel.close()


class Search:
    """One breadth-first search.

    Args:
        product: what is searched.
        limits: where it gives up.
        on_layer: called with this search after each layer, see `Search.progress`.
        gather: go on after bugs and collect them here instead.
    """

    def __init__(
        self,
        product: Product,
        limits: Limits,
        on_layer: OnLayer | None = None,
        gather: Findings | None = None,
    ) -> None:
        self.product = product
        self.limits = limits
        self.on_layer = on_layer
        self.gather = gather
        #: Called with this search every `SAVE_S` seconds between two layers.
        self.on_save: Callable[[Search], None] | None = None
        self.saved = time.monotonic()
        self.one_cpu = product.world.bounds.one_cpu
        self.layers: list[Layer] = []
        #: States found.
        self.states = 0
        self.transitions = 0
        self.stopped = ""
        #: What was found wrong since `_settle` was last called, with the states' indices.
        self._wrong: dict[tuple[Kind, str], set[int]] = {}

    def state(self, index: int) -> int:
        """A state, without who runs on one processor."""
        return self.product.kernel.state(index) & ((1 << self.product.bits) - 1)

    def run(self) -> _Bug | None:
        """Explores; the first bug, or None (then `stopped` says whether all was seen)."""
        product = self.product
        if not self.layers:
            product.kernel.begin(product.initial)
            self.layers = [Layer(1, 1, 0)]
        self.states = self.layers[-1].end
        started = time.monotonic()
        try:
            if len(self.layers) == 1:
                product.walk(lib.explore_check, end=1)
                self._note()
                self._settle()
            while True:
                begin = self.layers[-2].end if len(self.layers) > 1 else 0
                size = self._expand(begin, self.layers[-1].end)
                if self.on_layer is not None:
                    self.on_layer(self.progress(size, time.monotonic() - started))
                if not size:
                    return None
                self.layers.append(Layer(product.kernel.count, size, self.transitions))
                if self.on_save is not None and time.monotonic() - self.saved > SAVE_S:
                    self.save()
                if self.states > self.limits.states:
                    self.stopped = f"more than {self.limits.states:,} states"
                    return None
                if time.monotonic() - started > self.limits.seconds:
                    self.stopped = f"more than {self.limits.seconds:g} seconds"
                    return None
        except _Bug as bug:
            return bug

    def save(self) -> None:
        """Has what was looked at so far written down."""
        if self.on_save is not None:
            self.on_save(self)
            self.saved = time.monotonic()

    @contextlib.contextmanager
    def saved_at_interrupt(self) -> Iterator[None]:
        """Ctrl-C inside saves what was found before it goes on its way."""
        try:
            yield
        except KeyboardInterrupt:
            self.save()
            raise

    def resume(self, layers: list[Layer]) -> None:
        """Goes on from layers that another search of this product has found, and that the kernel has."""
        self.layers = list(layers)
        self.transitions = layers[-1].transitions if layers else 0

    def progress(self, frontier: int, seconds: float) -> Progress:
        """How far this search is, with the size of the layer that was just found."""
        return Progress(len(self.layers), self.states, frontier, seconds, self.estimate())

    def estimate(self) -> int | None:
        """A guess at the number of all states, from the sizes of the layers.

        They grow and shrink like a bell. Beyond its top the rest is taken for a geometric series; before,
        growth is thought to fall evenly to none half way to the length of a random execution.
        """
        size = self.layers[-1].size
        if len(self.layers) < _LAYERS_MIN:
            return None
        growth = math.log(size / self.layers[-_LAYERS_MIN].size) / (_LAYERS_MIN - 1)
        if growth < 0:
            return self.states + int(size / math.expm1(-growth))
        left = self.product.longest / 2 - len(self.layers)
        if growth == 0 or left <= 0:
            return None
        width = math.sqrt(left / growth)
        return int(size * math.exp(min(growth * left / 2, 60.0)) * width * math.sqrt(2 * math.pi))

    def _bug(self, kind: Kind, what: str, state: int) -> None:
        if self.gather is None:
            self._wrong.setdefault((kind, what), set()).add(state)
        elif kind is Kind.RACE:
            self.gather.races.add(what)
        elif kind in {Kind.INVARIANT, Kind.AT_REST}:
            self.gather.broken.add(what)

    def _settle(self) -> None:
        """Ends the search if something is wrong; what it is does not depend on how states are numbered."""
        if self._wrong:
            kinds = list(Kind)
            kind, what = min(self._wrong, key=lambda wrong: (kinds.index(wrong[0]), wrong[1]))
            raise _Bug(kind, what, self._wrong[kind, what])

    def _note(self) -> None:
        """Judges what the kernel has met."""
        for event in self.product.kernel.events():
            self._judge(event)

    def _judge(self, event: Event) -> None:
        product, index = self.product, event.state
        state = self.state(index)
        if event.kind == lib.EXPLORE_END:
            self._ended(index, state)
        elif event.kind == lib.EXPLORE_CIRCLE:
            self._bug(Kind.DEADLOCK, product.deadlock_text(product.circle(state), state), index)
        elif event.kind == lib.EXPLORE_OPEN:
            race = product.races(state)
            if race is not None:
                self._bug(Kind.RACE, race, index)
        elif event.kind == lib.EXPLORE_BROKEN:
            self._bug(Kind.INVARIANT, product.broken(state) or "", index)
        else:
            error = product.automata[event.actor].nodes[product.nodes(state)[event.actor]].error
            assert error is not None
            self._bug(Kind.ERROR, f"{product.world.actors[event.actor].name}: {Raised(error)!r}", index)

    def _ended(self, index: int, state: int) -> None:
        """A state from which no step leads on."""
        product = self.product
        if self.gather is not None:
            self.gather.ends.add((tuple(product.values(state)), product.fates(state)))
        wrong = product.judge_end(state)
        if wrong is not None:
            self._bug(*wrong, index)

    def _count(self) -> None:
        kernel = self.product.kernel
        self.states = kernel.count - kernel.excluded

    def _look(self, cursor: CData) -> None:
        """Judges what was met in a part of a layer, see ``explore_layer``."""
        if self.one_cpu or cursor.part > self.product.count:
            # What the actors' steps lead to counts once all of them were looked at.
            self._count()
        self._note()
        self._settle()

    def _expand(self, begin: int, end: int) -> int:
        """Finds all states one step after a layer that are new; how many there are."""
        product = self.product
        _, transitions = product.walk(lib.explore_layer, begin=begin, end=end, ask=self._look)
        self._count()
        self.transitions += transitions
        return product.kernel.count - end

    def path(self, goals: set[int]) -> tuple[list[Decision], int]:
        """A shortest schedule to one of these states, all found at the same depth; (schedule, state), by index.

        Of all shortest ones it is one with the fewest preemptions, and always the same one, however states are
        numbered.
        """
        product, kernel = self.product, self.product.kernel
        ends = [layer.end for layer in self.layers]
        depth = bisect_right(ends, min(goals))
        for index in goals:
            lib.explore_mark(kernel.handle, index)
        for number in reversed(range(depth)):
            begin = ends[number - 1] if number else 0
            product.walk(lib.explore_mark_before, begin=begin, end=ends[number])
        kernel.check(lib.explore_begin_schedule(kernel.handle))
        product.walk(lib.explore_shortest, [*ends[:depth], kernel.count], depth + 1)
        lib.explore_unmark(kernel.handle)
        steps = kernel.schedule()
        return [(step.actor, step.choice) for step in steps], steps[-1].state if steps else 0


def preemptions(product: Product, decisions: tuple[Decision, ...]) -> int:
    """How many steps of a schedule preempt the actor that ran last."""
    state = product.initial
    last = -1
    count = 0
    for decision in decisions:
        steps = product.successors(state)
        count += _cost(product, state, steps, last, decision)
        state = dict(steps)[decision]
        if decision != TICK:
            last = decision[0]
    return count


def _cost(
    product: Product, state: int, steps: list[tuple[Decision, int]], last: int, decision: Decision
) -> int:
    if decision == TICK or last in {-1, decision[0]}:
        return 0
    could = any(other[0] == last for other, _ in steps)
    return int(could and not product.gives_way(last, state))


def fewest_preemptions(
    product: Product, kind: Kind, what: str, limits: Limits
) -> tuple[tuple[Decision, ...], int] | None:
    """The schedule to a state with this bug that preempts least and then is shortest; None at a limit.

    To be called after a search of this product.
    """
    kernel = product.kernel
    deadline = time.monotonic() + limits.seconds

    def judge(cursor: CData) -> None:
        wrong = product.judge(kernel.state(cursor.state))
        if wrong is None:
            judgement = lib.EXPLORE_FINE
        elif wrong[0] is kind and (wrong[1] == what or kind is not Kind.INVARIANT):
            judgement = lib.EXPLORE_GOAL
        else:
            judgement = lib.EXPLORE_WRONG
        lib.explore_judged(kernel.handle, cursor.state, judgement)

    kernel.check(lib.explore_begin_schedule(kernel.handle))
    try:
        result, _ = product.walk(lib.explore_fewest, limits.states, ask=judge, deadline=deadline)
    except _Enough:
        return None
    if result == lib.EXPLORE_NONE:
        return None
    return tuple((step.actor, step.choice) for step in kernel.schedule()), kernel.preemptions()


# -- checks against the real code ----------------------------------------------------


def confirm(product: Product, decisions: tuple[Decision, ...]) -> int:
    """Executes a schedule for real and compares each operation with the tables; operations compared.

    Raises:
        Nondeterminism: at the first difference.
    """
    queue = list(decisions)

    def strategy(found: list[Decision], execution: Execution) -> Decision:
        if not queue:
            raise _Enough
        wanted = queue.pop(0)
        if wanted not in execution.possible(found):
            raise Nondeterminism(
                f"step {execution.steps + 1}, {wanted}, is not possible in the real execution"
            )
        return wanted

    execution = Execution(product.world, strategy, places=True)
    with contextlib.suppress(_Enough):
        execution.run()
    return compare(product, execution)


class _Enough(Exception):
    """A schedule is over, or time is."""


def compare(product: Product, execution: Execution) -> int:
    """Compares the log of a real execution with the automata; operations compared.

    Raises:
        Nondeterminism: at the first difference.
    """
    at = [0] * product.count
    numbers = product.first_numbers()
    assert execution.log is not None
    assert execution.places is not None
    for (actor, operation, observed, _, after), place in zip(execution.log, execution.places, strict=True):
        if operation is None:
            numbers = product.tick(numbers) or numbers
            continue
        automaton = product.automata[actor]
        node = automaton.nodes[at[actor]]
        if node.operation is not operation or node.place != place:
            raise automaton.differs(node, operation, place)
        index = operation.object
        effect = product.perform(actor, at[actor], numbers[index], observed if operation.options else 0)
        if (
            effect is None
            or effect.observed != observed
            or product.known_values(index)[effect.after] != after
        ):
            raise automaton.differs(node, operation, place)
        at[actor] = effect.following
        numbers[index] = effect.after
    return len(execution.log)


#: Length at which a random execution has said enough; a program that never ends has no other.
SAMPLE_STEPS: Final = 500


def sample(product: Product, executions: int = 10, seed: int = 0) -> int:
    """Random executions of all actors together, each operation compared; operations compared."""
    random_ = random.Random(seed)
    compared = 0

    def strategy(found: list[Decision], execution: Execution) -> Decision:
        if execution.steps >= SAMPLE_STEPS:
            raise _Enough
        return found[int(random_.random() * len(found))]

    for _ in range(executions):
        execution = Execution(product.world, strategy, places=True)
        with contextlib.suppress(_Enough):
            execution.run()
        compared += compare(product, execution)
        product.longest = max(product.longest, execution.steps)
    return compared


# -- the engine ----------------------------------------------------------------------

#: Layers from whose growth the number of all states is guessed.
_LAYERS_MIN: Final = 8

#: New objects after which Python looks for circles of them; with its own few hundred that is a sixth of the time.
_OBJECTS: Final = 50_000

#: Times that a search may start again because a fact was found or a field was too narrow.
_STARTS_MAX: Final = 200


def started(program: Program, work: Callable[[Product], Any]) -> Any:
    """Calls work(product), again whenever a fact or a width was found."""
    before = gc.get_threshold()
    gc.set_threshold(max(_OBJECTS, before[0]) if before[0] else 0, *before[1:])
    try:
        return _started(program, work)
    finally:
        # Now that the product is out of reach: Python looks for circles at once, and what it finds in use it keeps long.
        gc.set_threshold(*before)


def _started(program: Program, work: Callable[[Product], Any]) -> Any:
    product = Product(World(program))
    try:
        for _ in range(_STARTS_MAX):
            try:
                if product.ready:
                    product.grow()
                else:
                    product.start()
                return work(product)
            except Widened:
                continue
            except Revised:
                product.ready = False
    finally:
        product.close()
    raise Nondeterminism(f"{program.name} keeps changing while it is explored")


class Keeping(NamedTuple):
    """A search on disk."""

    identity: str
    """Of what is explored, see `balloonvq.explore.checkpoint.identity`."""
    path: Path | None
    """Where it is written every `SAVE_S` seconds, when it is given up, and at Ctrl-C."""
    resume: Checkpoint | None
    """What it goes on from."""


def explore(
    program: Program,
    limits: Limits = Limits(),  # noqa: B008 - an immutable tuple
    *,
    on_layer: OnLayer | None = None,
    samples: int = 10,
    keeping: Keeping | None = None,
) -> Verdict:
    """Explores a program completely, or to its first bug.

    Args:
        program: what.
        limits: where to give up.
        on_layer: told how far the search is after each layer.
        samples: random real executions to compare with the tables.
        keeping: where the search is kept on disk, and where it goes on from.

    Raises:
        InvalidArgument: if the program has no actors, or it cannot go on from that file.
        Nondeterminism: if the program is no function of what its actors observe.
    """
    if keeping is not None and keeping.resume is not None:
        keeping.resume.check(program, keeping.identity)

    def work(product: Product) -> Verdict:
        return _explore(product, limits, on_layer, samples, keeping or Keeping("", None, None))

    found: Verdict = started(program, work)
    return found


def _explore(
    product: Product, limits: Limits, on_layer: OnLayer | None, samples: int, keeping: Keeping
) -> Verdict:
    from balloonvq.explore.liveness import livelock

    started = time.monotonic()
    search = Search(product, limits, on_layer)

    def verdict(outcome: Outcome, *, bug: Bug | None = None, why: str = "", checked: int = 0) -> Verdict:
        return Verdict(
            outcome=outcome,
            engine="P",
            program=product.world.program.name,
            bounds=product.world.bounds,
            states=search.states,
            transitions=search.transitions,
            seconds=time.monotonic() - started,
            bug=bug,
            why=why,
            layers=len(search.layers),
            estimate=search.estimate() if outcome is Outcome.INCOMPLETE else None,
            checked=checked,
        )

    try:
        if product.sampled is None:
            if keeping.resume is not None:
                keeping.resume.prepare(product)
            # Before the search: most of what makes one start again shows in real executions.
            product.sampled = sample(product, samples)
            if keeping.resume is None:
                product.narrow()
        search = Search(product, limits, on_layer)
        wrong = _searched(search, keeping)
    except TooManyLocalStates as error:
        return verdict(Outcome.INCOMPLETE, why=str(error))

    with search.saved_at_interrupt():
        checked = (product.sampled or 0) + verify(product.automata)
        if wrong is not None:
            bug = _describe(product, search, wrong, limits)
            checked += confirm(product, bug.shortest.decisions)
            if bug.fewest_preemptions is not None:
                checked += confirm(product, bug.fewest_preemptions.decisions)
            return verdict(Outcome.BUG, bug=bug, checked=checked)
        if search.stopped:
            return verdict(Outcome.INCOMPLETE, why=search.stopped, checked=checked)
        if product.loops:
            circle = livelock(search)
            if circle is not None:
                stem, loop, what = circle
                decisions = tuple(stem + loop)
                cost = 0 if search.one_cpu else preemptions(product, decisions)
                schedule = Schedule(decisions, cost, "", loop=len(stem))
                checked += confirm(product, decisions)
                return verdict(Outcome.BUG, bug=Bug(Kind.LIVELOCK, what, schedule), checked=checked)
        return verdict(Outcome.PROVED, checked=checked)


def _searched(search: Search, keeping: Keeping) -> _Bug | None:
    """Runs a search, from where an earlier one was left, kept on disk where that is wanted."""
    product, path = search.product, keeping.path
    search.resume(product.left)
    if path is not None:
        from balloonvq.explore.checkpoint import write

        search.on_save = lambda search: write(path, search, keeping.identity)
    try:
        with search.saved_at_interrupt():
            wrong = search.run()
    except Widened:
        product.left = search.layers
        raise
    if search.stopped:
        search.save()
    return wrong


def _describe(product: Product, search: Search, wrong: _Bug, limits: Limits) -> Bug:
    decisions = tuple(search.path(wrong.states)[0])
    if search.one_cpu:
        return Bug(wrong.kind, wrong.what, Schedule(decisions, 0, "length"))
    shortest = Schedule(decisions, preemptions(product, decisions), "length")
    if shortest.preemptions == 0:
        return Bug(wrong.kind, wrong.what, shortest, Schedule(decisions, 0, "preemptions"))
    rest = Limits(limits.states, min(limits.seconds, 20.0))
    best = fewest_preemptions(product, wrong.kind, wrong.what, rest)
    if best is None:
        return Bug(wrong.kind, wrong.what, shortest)
    return Bug(wrong.kind, wrong.what, shortest, Schedule(best[0], best[1], "preemptions"))


def findings(program: Program, limits: Limits = Limits()) -> Findings:  # noqa: B008
    """All ends, livelocks and races of a program, for comparing engines."""
    found: Findings = started(program, lambda product: _findings(product, limits))
    return found


def _findings(product: Product, limits: Limits) -> Findings:
    from balloonvq.explore.liveness import fair_circles

    gathered = Findings()
    search = Search(product, limits, gather=gathered)
    search.run()
    gathered.complete = not search.stopped
    if product.loops:
        for component in fair_circles(search):
            gathered.livelocks.update(tuple(product.values(search.state(index))) for index in component)
    return gathered
