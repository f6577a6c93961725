"""The C kernel of the product search against a search in plain Python, over random tables and fields of any width."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from balloonvq.errors import BalloonError
from balloonvq.explore.kernel import Event, Fields, Kernel
from balloonvq.ffi import CData, lib

TIME = -1

#: (local state of each actor, value of each object, who runs); object 0 is the clock, whose 0 is idle.
State = tuple[tuple[int, ...], tuple[int, ...], int]


@dataclass
class System:
    """Actors with random tables, and where their states are kept in an int."""

    seed: int
    actors: int
    objects: int
    widths: list[int]
    one_cpu: bool = False
    explore_time: bool = False
    shifts: list[int] = field(init=False)
    known: dict[State, list[tuple[int, int, State]]] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.shifts = [0, *itertools.accumulate(self.widths)]

    def random(self, *about: object) -> random.Random:
        """The same numbers for the same words."""
        return random.Random(repr((self.seed, about)))

    # -- the tables ------------------------------------------------------------

    def touched(self, actor: int, node: int) -> list[int]:
        """The objects that a node's step depends on."""
        return [
            index
            for index in range(self.objects)
            if self.random("touched", actor, node, index).random() < 0.5
        ]

    def relaxes(self, actor: int, node: int) -> bool:
        return self.random("relaxes", actor, node).random() < 0.3

    def gives_way(self, actor: int, node: int) -> bool:
        return self.relaxes(actor, node) or self.random("gives way", actor, node).random() < 0.3

    def outcomes(self, actor: int, state: State) -> list[tuple[int, dict[int, int]]]:
        """(next node, new values) of each outcome of an actor's step; none if it is blocked."""
        node = state[0][actor]
        touched = self.touched(actor, node)
        choose = self.random("step", actor, node, [state[1][index] for index in touched])
        if node == 3 or choose.random() < 0.25:
            return []
        return [
            (choose.choice([node, node + 1, 0]) % 4, {index: choose.randrange(3) for index in touched})
            for _ in range(choose.choice([1, 1, 1, 2]))
        ]

    def owner(self, actor: int, state: State) -> int:
        """Whom a blocked actor waits for."""
        node = state[0][actor]
        values = [state[1][index] for index in self.touched(actor, node)]
        return self.random("owner", actor, node, values).randrange(-1, self.actors)

    def ticked(self, state: State) -> int:
        """The clock after a step of time."""
        return self.random("tick", state[1][0]).randrange(3)

    def broken(self, state: State) -> bool:
        """An invariant of the last object."""
        return self.random("broken", state[1][-1]).random() < 0.2

    # -- a plain search ----------------------------------------------------------

    def steps(self, state: State) -> list[tuple[int, int, State]]:
        """All steps: (actor, choice, state)."""
        if state not in self.known:
            self.known[state] = self._steps(state)
        return self.known[state]

    def _steps(self, state: State) -> list[tuple[int, int, State]]:
        nodes, values, running = state
        found = []
        for actor in range(self.actors):
            for choice, (node, new) in enumerate(self.outcomes(actor, state)):
                after = tuple(new.get(index, value) for index, value in enumerate(values))
                there = (*nodes[:actor], node, *nodes[actor + 1 :])
                found.append((actor, choice, (there, after, actor + 1 if self.one_cpu else 0)))
        spinning = all(self.relaxes(actor, nodes[actor]) for actor, _, _ in found)
        if values[0] and (spinning or self.explore_time) and self.ticked(state) != values[0]:
            found.append((TIME, 0, (nodes, (self.ticked(state), *values[1:]), running)))
        if running and not self.gives_way(running - 1, nodes[running - 1]):
            found = [step for step in found if step[0] == running - 1] or found
        return found

    @property
    def first(self) -> State:
        return (0,) * self.actors, (1,) * self.objects, 0

    def layers(self) -> list[set[State]]:
        """All states, by the number of steps to them."""
        found = [{self.first}]
        seen = {self.first}
        while found[-1]:
            found.append({there for state in found[-1] for _, _, there in self.steps(state)} - seen)
            seen |= found[-1]
        return found[:-1]

    def costs(self, state: State, last: int, actor: int) -> int:
        """Whether a step preempts."""
        if self.one_cpu or TIME in (last, actor) or last == actor or self.gives_way(last, state[0][last]):
            return 0
        return int(any(one == last for one, _, _ in self.steps(state)))

    def cheapest(self, goals: set[State]) -> tuple[int, int] | None:
        """(preemptions, steps) of the best schedule to a goal, by relaxing every step until nothing changes."""
        best = {(self.first, TIME): (0, 0)}
        changed = True
        while changed:
            changed = False
            for (state, last), (cost, length) in list(best.items()):
                if state in goals:
                    continue
                for actor, _, there in self.steps(state):
                    place = there, last if actor == TIME else actor
                    price = cost + self.costs(state, last, actor), length + 1
                    if price < best.get(place, (1 << 30, 0)):
                        best[place] = price
                        changed = True
        return min((price for (state, _), price in best.items() if state in goals), default=None)

    # -- as ints -----------------------------------------------------------------

    def packed(self, state: State) -> int:
        numbers = (*state[0], *state[1], state[2])
        return sum(number << shift for number, shift in zip(numbers, self.shifts, strict=True))

    def unpacked(self, number: int) -> State:
        numbers = [
            number >> shift & ((1 << width) - 1)
            for shift, width in zip(self.shifts, [*self.widths, 8], strict=True)
        ]
        return tuple(numbers[: self.actors]), tuple(numbers[self.actors : -1]), numbers[-1]

    def mask(self, fields: list[int]) -> int:
        return sum(((1 << self.widths[one]) - 1) << self.shifts[one] for one in fields)


class Searched:
    """The same system in the kernel."""

    def __init__(self, system: System) -> None:
        self.system = system
        count = system.actors
        places = list(zip(system.shifts, system.widths, strict=False))
        self.kernel = kernel = Kernel(
            Fields(places[:count], places[count], system.shifts[-1]),
            idle=0,
            one_cpu=system.one_cpu,
            explore_time=system.explore_time,
        )
        for actor, node in itertools.product(range(count), range(4)):
            objects = [count + index for index in system.touched(actor, node)]
            flags = lib.EXPLORE_RELAXES * system.relaxes(actor, node)
            flags |= lib.EXPLORE_GIVES_WAY * system.gives_way(actor, node)
            kernel.set_node(actor, node, system.mask([actor, *objects]), flags)
        kernel.set_node(kernel.time, 0, system.mask([count]))
        kernel.set_node(kernel.watch, 0, system.mask([count + system.objects - 1]))
        self.goals: set[State] = set()
        self.events: list[Event] = []
        self.transitions = 0

    def plain(self, index: int) -> State:
        return self.system.unpacked(self.kernel.state(index))

    def answer(self, result: int, cursor: CData) -> None:
        kernel, system = self.kernel, self.system
        if result == lib.EXPLORE_EVENTS:
            self.events += kernel.events()
            return
        state = self.plain(cursor.state)
        packed = kernel.state(cursor.state) & ((1 << system.shifts[-1]) - 1)
        if result == lib.EXPLORE_JUDGE:
            goal = lib.EXPLORE_GOAL if state in self.goals else lib.EXPLORE_FINE
            lib.explore_judged(kernel.handle, cursor.state, goal)
        elif cursor.table == kernel.time:
            after = system.packed((state[0], (system.ticked(state), *state[1][1:]), 0))
            kernel.add(kernel.time, kernel.split(packed), [packed ^ after] if packed != after else [])
        elif cursor.table == kernel.watch:
            kernel.add(kernel.watch, kernel.split(packed), [0] if system.broken(state) else [])
        else:
            actor = cursor.table
            differences = []
            for node, new in system.outcomes(actor, state):
                values = tuple(new.get(index, value) for index, value in enumerate(state[1]))
                there = (*state[0][:actor], node, *state[0][actor + 1 :])
                differences.append(packed ^ system.packed((there, values, 0)))
            owner = -1 if differences else system.owner(actor, state)
            kernel.add(actor, kernel.split(packed), differences, owner=owner)

    def walk(self, function: object, *arguments: object, begin: int = 0, end: int = 0) -> int:
        result, transitions = self.kernel.walk(
            function,
            *arguments,
            begin=begin,
            end=end,
            answer=self.answer,  # type: ignore[arg-type]
        )
        self.transitions += transitions
        self.events += self.kernel.events()
        return result

    def layers(self) -> list[int]:
        """Where each layer ends."""
        system = self.system
        self.kernel.begin(system.packed(system.first))
        ends, begin = [1], 0
        while begin < ends[-1]:
            end = ends[-1]
            self.walk(lib.explore_layer, begin=begin, end=end)
            begin = end
            ends.append(self.kernel.count)
        return ends[:-1]


@st.composite
def systems(draw: st.DrawFn) -> System:
    actors, objects = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    widths = [draw(st.sampled_from([2, 3, 17, 32])) for _ in range(actors)]
    widths += [draw(st.sampled_from([2, 5, 31, 32])) for _ in range(objects)]
    return System(
        draw(st.integers(0, 1 << 30)), actors, objects, widths, draw(st.booleans()), draw(st.booleans())
    )


def circular(searched: Searched) -> None:
    """Takes the steps that may be part of a circle into the graph."""
    system = searched.system
    fields = list(zip(system.shifts, system.widths, strict=False))
    searched.kernel.find_circular([field for number, field in enumerate(fields) if number != system.actors])
    searched.walk(lib.explore_graph, end=searched.kernel.count)


def strongly_connected(system: System, states: set[State]) -> Iterator[set[State]]:
    """Sets of states that lead to each other, in these states only, by asking what each leads to."""
    ahead: dict[State, set[State]] = {}
    for state in states:
        ahead[state], todo = set(), [state]
        while todo:
            fresh = {there for _, _, there in system.steps(todo.pop()) if there in states} - ahead[state]
            ahead[state] |= fresh
            todo += fresh
    done: set[State] = set()
    for state in states:
        if state in ahead[state] and state not in done:
            component = {other for other in ahead[state] if state in ahead[other]}
            done |= component
            yield component


@given(systems())
@settings(max_examples=150, deadline=None)
def test_layers_steps_and_ends_are_those_of_a_plain_search(system: System) -> None:
    searched = Searched(system)
    ends = searched.layers()
    layers = system.layers()
    found = [searched.plain(index) for index in range(searched.kernel.count)]
    begins = [0, *ends]
    assert [set(found[begin:end]) for begin, end in itertools.pairwise(begins)] == layers
    assert len(set(found)) == len(found)
    assert searched.transitions == sum(len(system.steps(state)) for state in found)
    events = {(event.kind, searched.plain(event.state)) for event in searched.events}
    assert {state for kind, state in events if kind == lib.EXPLORE_END} == {
        state for state in found if not system.steps(state)
    }
    # The invariants were asked about all states but the first.
    broken = {state for kind, state in events if kind == lib.EXPLORE_BROKEN}
    assert broken == set(filter(system.broken, found[1:]))


@given(systems())
@settings(max_examples=60, deadline=None)
def test_actors_that_wait_in_a_circle_are_met(system: System) -> None:
    searched = Searched(system)
    searched.layers()
    met = {searched.plain(event.state) for event in searched.events if event.kind == lib.EXPLORE_CIRCLE}
    for index in range(searched.kernel.count):
        state = searched.plain(index)
        owners = [
            -1 if system.outcomes(actor, state) else system.owner(actor, state)
            for actor in range(system.actors)
        ]
        circle = False
        for actor in range(system.actors):
            follower = owners[actor]
            for _ in range(system.actors):
                circle = circle or follower == actor
                follower = owners[follower] if follower >= 0 else -1
        assert (state in met) == circle


@given(systems(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_components_and_who_moves_in_them(system: System, choose: random.Random) -> None:
    searched = Searched(system)
    searched.layers()
    kernel = searched.kernel
    # The plain way takes their square.
    assume(kernel.count <= 200)
    states = [searched.plain(index) for index in range(kernel.count)]
    circular(searched)
    parts = [index for index in range(kernel.count) if choose.random() < 0.8]
    for chosen in (None, parts, []):
        found = kernel.components(chosen)
        allowed = set(states) if chosen is None else {states[index] for index in chosen}
        components = [{states[index] for index in component} for component in found]
        assert sorted(map(sorted, components)) == sorted(map(sorted, strongly_connected(system, allowed)))
        for component, inside in zip(found, components, strict=True):
            able, moved = kernel.fairness(component, searched.answer)
            assert able == [
                sum({1 << actor % (system.actors + 1) for actor, _, _ in system.steps(states[index])})
                for index in component
            ]
            assert moved == sum(
                {
                    1 << actor % (system.actors + 1)
                    for state in inside
                    for actor, _, there in system.steps(state)
                    if there in inside
                }
            )
    for component in kernel.components():
        inside = {states[index] for index in component}
        for index in component:
            steps = [(step.actor, step.choice, states[step.state]) for step in kernel.circular_steps(index)]
            assert [step for step in steps if step[2] in inside] == [
                step for step in system.steps(states[index]) if step[2] in inside
            ]


def walked(system: System, schedule: list[tuple[int, int]]) -> tuple[State, int]:
    """(the state that a schedule leads to, its preemptions)."""
    state, last, cost = system.first, TIME, 0
    for actor, choice in schedule:
        cost += system.costs(state, last, actor)
        (state,) = [there for one, number, there in system.steps(state) if (one, number) == (actor, choice)]
        last = last if actor == TIME else actor
    return state, cost


@given(systems(), st.randoms(use_true_random=False))
@settings(max_examples=80, deadline=None)
def test_schedules_are_the_best_ones(system: System, choose: random.Random) -> None:
    searched = Searched(system)
    ends = searched.layers()
    kernel = searched.kernel
    goal = choose.randrange(kernel.count)
    depth = next(number for number, end in enumerate(ends) if goal < end)
    assert lib.explore_mark(kernel.handle, goal) == 0
    for number in reversed(range(depth)):
        searched.walk(lib.explore_mark_before, begin=ends[number - 1] if number else 0, end=ends[number])
    assert lib.explore_begin_schedule(kernel.handle) == 0
    assert searched.walk(lib.explore_shortest, ends[: depth + 1], depth + 1) == lib.EXPLORE_DONE
    lib.explore_unmark(kernel.handle)
    schedule = [(step.actor, step.choice) for step in kernel.schedule()]
    assert len(schedule) == depth
    assert walked(system, schedule) == (searched.plain(goal), kernel.preemptions())

    # States that end are asked about, so they are what can be a goal.
    ended = {searched.plain(event.state) for event in searched.events if event.kind == lib.EXPLORE_END}
    searched.goals = set(choose.sample(sorted(ended), min(len(ended), 2)))
    assert lib.explore_begin_schedule(kernel.handle) == 0
    result = searched.walk(lib.explore_fewest, 1 << 40)
    best = system.cheapest(searched.goals)
    assert (result == lib.EXPLORE_DONE) == (best is not None)
    if best is not None:
        schedule = [(step.actor, step.choice) for step in kernel.schedule()]
        assert (kernel.preemptions(), len(schedule)) == best
        reached, cost = walked(system, schedule)
        assert reached in searched.goals
        assert cost == best[0]


@given(systems(), st.data())
@settings(max_examples=60, deadline=None)
def test_states_move_to_wider_fields_and_to_disk_and_back(system: System, data: st.DataObject) -> None:
    searched = Searched(system)
    searched.layers()
    kernel = searched.kernel
    more = [data.draw(st.sampled_from([0, 0, 4, 28])) for _ in system.widths]
    wide = System(
        system.seed,
        system.actors,
        system.objects,
        [min(width + bits, 32) for width, bits in zip(system.widths, more, strict=True)],
        system.one_cpu,
        system.explore_time,
    )
    gaps = [
        (system.shifts[one + 1], new - old)
        for one, (old, new) in enumerate(zip(system.widths, wide.widths, strict=True))
        if old != new
    ][::-1]
    count = data.draw(st.integers(0, kernel.count))
    moved = Searched(wide)
    moved.kernel.widen(kernel, count, gaps)
    assert [moved.plain(index) for index in range(moved.kernel.count)] == [
        searched.plain(index) for index in range(count)
    ]
    size = kernel.state_bytes
    body = kernel.written(count)
    assert [int.from_bytes(body[at : at + size], "little") for at in range(0, len(body), size)] == [
        kernel.state(index) for index in range(count)
    ]
    again = Searched(system)
    again.kernel.read(body, size)
    assert again.kernel.written(count) == body
    if count:
        with pytest.raises(ValueError, match="twice"):
            again.kernel.read(body, size)
    with pytest.raises(ValueError, match="cannot be"):
        again.kernel.read(b"\xff" * (8 * 64), 8 * 64)


def test_states_taken_out_are_not_counted_and_on_no_circle() -> None:
    system = next(
        one
        for one in (System(seed, 2, 2, [2, 2, 2, 2]) for seed in range(1000))
        if any(map(len, strongly_connected(one, set().union(*one.layers()))))
    )
    searched = Searched(system)
    searched.layers()
    circular(searched)
    (component, *_) = searched.kernel.components()
    searched.kernel.exclude(component[0], skip=False)
    searched.kernel.exclude(component[0], skip=True)
    assert searched.kernel.excluded == 1
    searched.walk(lib.explore_graph, end=searched.kernel.count)
    assert all(component[0] not in one for one in searched.kernel.components())


def test_a_circle_with_progress_is_none() -> None:
    kernel = Kernel(Fields([(0, 2)], (2, 1), 3), idle=0, one_cpu=False, explore_time=False)
    for node in range(3):
        kernel.set_node(0, node, 3)
        kernel.add(0, [node], [node ^ (node + 1) % 3])
    kernel.set_node(kernel.watch, 0, 0)
    kernel.add(kernel.watch, [0])
    kernel.begin(0)
    for index in range(3):
        kernel.walk(lib.explore_layer, begin=index, end=index + 1, answer=_never)
    for progress, components in ((None, 1), (1, 0)):
        if progress is not None:
            kernel.set_progress(0, progress, 0)
        kernel.find_circular([(0, 2)])
        kernel.walk(lib.explore_graph, begin=0, end=3, answer=_never)
        assert len(kernel.components()) == components
    with pytest.raises(BalloonError):
        kernel.set_progress(0, 0, 1)


def _never(result: int, cursor: CData) -> None:
    raise AssertionError(result, cursor)


def test_numbers_that_cannot_be_are_refused() -> None:
    with pytest.raises(BalloonError, match="cannot go on"):
        Kernel(Fields([(0, 33)], (40, 1), 41), idle=0, one_cpu=False, explore_time=False)
    with pytest.raises(BalloonError, match="cannot take 63 actors"):
        Kernel(
            Fields([(index, 1) for index in range(63)], (63, 1), 64),
            idle=0,
            one_cpu=False,
            explore_time=False,
        )
    kernel = Kernel(Fields([(0, 2)], (2, 1), 3), idle=0, one_cpu=False, explore_time=False)
    with pytest.raises(BalloonError):
        kernel.set_node(0, 4, 3)
    with pytest.raises(BalloonError):
        kernel.set_node(3, 0, 3)
    with pytest.raises(BalloonError):
        kernel.add(0, [0], [1])
    kernel.set_node(0, 0, 3)
    kernel.add(0, [0], [1])
    with pytest.raises(BalloonError):
        kernel.add(0, [4], [1])


def test_too_many_actors_are_named() -> None:
    actors = [(2 * actor, 2) for actor in range(lib.EXPLORE_ACTORS_MAX + 1)]

    def kernel(count: int) -> Kernel:
        fields = Fields(actors[:count], (2 * count, 2), 2 * count + 2)
        return Kernel(fields, idle=0, one_cpu=False, explore_time=False)

    kernel(len(actors) - 1).close()
    with pytest.raises(BalloonError, match="63 actors"):
        kernel(len(actors))
