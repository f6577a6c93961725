"""States, steps and tables of the product of the learned automata.

A state is one int: for each actor the number of its local state, for each
object the number of its value, side by side in bit fields. A step of actor A
depends on A's own field and the fields of the few objects that it touches, so

    state & mask of A's local state  ->  difference: next state = state ^ difference

is a table that soon holds all that A can do, whatever the others are at. A search
step is: shift, mask, look up, exclusive or, look up in the set of known states. That, and all else that is
done once a state, is C (``csrc/explore.h``, `balloonvq.explore.kernel`); states are
known by their index there. The tables are filled on demand by the only slow part, `Product._compute`, which performs the
operation and whatever is glued to it (`balloonvq.explore.world`) and asks the
automaton for the actor's next local state. What C finds suspicious is judged here.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

from balloonvq.explore.automaton import Automaton, Node
from balloonvq.explore.kernel import Fields, Kernel, State
from balloonvq.explore.operations import Operation, Raised
from balloonvq.explore.verdict import Kind
from balloonvq.explore.world import CLOCK, NOTHING, Nondeterminism, World, tick
from balloonvq.ffi import CData, lib
from balloonvq.runtime.controlled import TICK, Decision, Place

if TYPE_CHECKING:
    from balloonvq.explore.search import Layer

__all__ = ["Effect", "Enough", "Product", "Special", "Widened"]


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


class Widened(Exception):
    """A bit field was too narrow; the search starts again with a wider one."""


class Enough(Exception):
    """A schedule is over, or time is."""


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
        #: Of a state: all but who runs on one processor, which the kernel puts above them.
        self.state_mask = (1 << self.bits) - 1
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
        for actor, automaton in enumerate(self.automata):
            operation = automaton.nodes[0].operation
            if operation is not None and not operation.visible:
                glued = self.step(actor, state)
                assert glued is not None
                state = glued[1]
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

    def step(self, actor: int, state: int, choice: int = 0) -> tuple[list[int], int] | None:
        """A step in full: (the actor's local states from before it to after it, the state after it).

        It is one operation and what is glued to it. None if it is blocked.

        Args:
            actor: whose.
            state: before it.
            choice: the outcome of its operation, of several.
        """
        nodes, learned = self.automata[actor].nodes, self.learned
        actor_shift, actor_mask = self.actor_shift[actor], self.actor_mask[actor]
        node = state >> actor_shift & actor_mask
        operation = nodes[node].operation
        assert operation is not None
        path = [node]
        while True:
            index = operation.object
            shift, full = self.object_shift[index], self.object_mask[index]
            before = state >> shift & full
            effect = learned.get((actor, node, before, choice)) or self.perform(actor, node, before, choice)
            if effect is None:
                if operation.visible:
                    return None
                raise Nondeterminism(
                    f"{operation!r} blocks although its guard is held", why=str(nodes[node].place)
                )
            _, after, following = effect
            if after > full or following > actor_mask:
                raise Widened
            path.append(following)
            state ^= (before ^ after) << shift ^ (node ^ following) << actor_shift
            operation = nodes[following].operation
            if operation is None or operation.visible:
                return path, state
            node, choice = following, 0

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

    def _compute(self, actor: int, state: int, words: State | None = None) -> int | Special:
        """Fills one table entry; `words` is the state as the kernel has it, if it is there."""
        node = state >> self.actor_shift[actor] & self.actor_mask[actor]
        operation = self.automata[actor].nodes[node].operation
        found = 0 if operation is None else self._entry(actor, node, operation, state)
        self.tables[actor][node][state & self.masks[actor][node]] = found
        kernel = self.kernel
        if words is None:
            words = kernel.split(state)
        if isinstance(found, int):
            kernel.add(actor, words, (found,) if found else ())
        else:
            differences = [difference for _, difference in found.moves]
            kernel.add(actor, words, differences, open_=found.open, owner=found.owner)
        return found

    def supply(self, table: int, words: State) -> None:
        """Adds an entry that the kernel found to be missing for a state of its own."""
        kernel = self.kernel
        state = kernel.joined(words) & self.state_mask
        if table == kernel.time:
            after = self.ticked(state)
            kernel.add(table, words, () if after is None else (state ^ after,))
        elif table == kernel.watch:
            kernel.add(table, words, () if self.broken(state) is None else (0,))
        else:
            self._compute(table, state, words)

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
            Enough: after the deadline.
        """
        return self.kernel.walk(function, *arguments, begin=begin, end=end, answer=self.answer(ask, deadline))

    def answer(
        self, ask: Callable[[CData], None] | None = None, deadline: float = math.inf
    ) -> Callable[[int, CData], None]:
        """What to do when the kernel comes back before its end, see `walk`."""
        kernel, missing = self.kernel, lib.EXPLORE_MISSING

        def answer(result: int, cursor: CData) -> None:
            if deadline != math.inf and time.monotonic() > deadline:
                raise Enough
            if result == missing:
                self.supply(cursor.table, kernel.words(cursor.state))
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
            if len(self.masks[actor]) < len(nodes):
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
