"""Livelocks: fair circles without progress.

After a complete search, the states and steps form a finite graph. An execution that
never ends goes round in one of its strongly connected components. It is a livelock
if no step of the circle is declared as progress, and if it can happen under a
fair scheduler: nobody who could always go on is left out for ever.

* An actor is treated *weakly* fairly: if it can go on in every state of the component, one of its
  steps must lie inside. A component that fails this contains no smaller one that
  passes (there too the actor can always go on and never does), so it is dropped as a whole.
* A mutex is handed over, as Linux does since 4.10: who waits for one and could take it again and
  again takes it in the end. So an actor that is at a lock which it could take in some state of the
  component must move inside, or those states are taken out and the rest is searched again.
* Time does not stand still because somebody spins: if the clock could tick in some state of
  the component, it ticks inside. Two spinners that are never at relax at the same moment do not
  get around that, so a smaller component without those states does not pass either.

On one processor without preemption "can go on" means: the running actor leaves the
processor. Then everybody is treated *strongly* fairly, since who gives way again and again
lets each of the others run in the end: an actor that could go on in some state of the component
moves inside it. Here a smaller component may pass, one without those states, so they are
taken out and the rest is searched again. A spinner that never gives way owes nobody
anything, and is found as the livelock that it is.

A circle of the product leads each actor back to the local state where it was, so every step of it
stays inside a circle of that actor's automaton. Most steps do not, and are left out before
anything else is done. What is left goes through Tarjan's algorithm, iterative.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from balloonvq.runtime.controlled import TICK, Decision

if TYPE_CHECKING:
    from balloonvq.explore.product import Search

__all__ = ["fair_circles", "livelock"]


_Node = TypeVar("_Node", bound=Hashable)


def components(nodes: Iterable[_Node], steps: Callable[[_Node], Iterable[_Node]]) -> Iterator[list[_Node]]:
    """Strongly connected components with at least one step; `steps` leads to some of the nodes."""
    index: dict[_Node, int] = {}
    low: dict[_Node, int] = {}
    on_stack: set[_Node] = set()
    stack: list[_Node] = []
    for root in nodes:
        if root in index:
            continue
        work = [(root, iter(steps(root)))]
        index[root] = low[root] = len(index)
        stack.append(root)
        on_stack.add(root)
        while work:
            node, targets = work[-1]
            for target in targets:
                if target not in index:
                    index[target] = low[target] = len(index)
                    stack.append(target)
                    on_stack.add(target)
                    work.append((target, iter(steps(target))))
                    break
                if target in on_stack:
                    low[node] = min(low[node], index[target])
            else:
                work.pop()
                if work:
                    parent = work[-1][0]
                    low[parent] = min(low[parent], low[node])
                if low[node] == index[node]:
                    component = []
                    while True:
                        member = stack.pop()
                        on_stack.discard(member)
                        component.append(member)
                        if member == node:
                            break
                    if len(component) > 1 or node in steps(node):
                        yield component


def _targets(edges: dict[int, list[int]], node: int) -> list[int]:
    return edges.get(node, [])


class _Graph:
    """Steps that are no progress."""

    def __init__(self, search: Search) -> None:
        self.search = search
        self.product = search.product
        operations = self.product.world.operations
        self.progress = any(operation.progress for operation in operations)
        self.timers = self.product.has_timers
        #: For each actor: what of a state its step depends on, where it may be on a circle -> its outcomes.
        self.circular = self._circular()
        #: The same for the actors that have any: with what finds it in a state.
        self.rows = [
            (
                self.product.actor_shift[actor],
                self.product.actor_mask[actor],
                self.product.masks[actor],
                moves,
            )
            for actor, moves in enumerate(self.circular)
            if moves
        ]

    def _circular(self) -> list[dict[int, tuple[tuple[Decision, int], ...]]]:
        """For each actor the keys of its table with a step that may be part of a circle, and all outcomes there."""
        product = self.product
        product.fill(self.search.seen)
        free = product.ticking_fields() if self.timers else set()
        #: (actor, key, {field: (before, after)})
        left: list[tuple[int, int, dict[int, tuple[int, int]]]] = []
        for actor, table in enumerate(product.tables):
            for key in table:
                moves = product.moves(actor, key)
                left.extend((actor, key, product.changes(key, key + delta, free)) for _, delta in moves)
        while True:
            edges: dict[int, dict[int, list[int]]] = {}
            for _, _, changes in left:
                for field, (before, after) in changes.items():
                    edges.setdefault(field, {}).setdefault(before, []).append(after)
            circles: dict[int, dict[int, int]] = {}
            for field, targets in edges.items():
                inside = components(targets, partial(_targets, targets))
                circles[field] = {value: number for number, circle in enumerate(inside) for value in circle}
            kept = [
                step
                for step in left
                if all(
                    before in circles[field] and circles[field][before] == circles[field].get(after)
                    for field, (before, after) in step[2].items()
                )
            ]
            if len(kept) == len(left):
                break
            left = kept
        found: list[dict[int, tuple[tuple[Decision, int], ...]]] = [{} for _ in range(product.count)]
        for actor, key, _ in left:
            found[actor][key] = product.moves(actor, key)
        return found

    def candidates(self) -> set[int]:
        """States from which a step leads on that may be part of a circle."""
        product = self.product
        states = list(self.search.seen)
        found: set[int] = set()
        for shift, field, masks, moves in self.rows:
            found.update(state for state in states if state & masks[(state >> shift) & field] in moves)
        if self.timers:
            clock, idle = product.clock_mask, product.clock_idle
            found.update(state for state in states if state & clock != idle)
        return found

    def steps(self, state: int) -> list[tuple[Decision, int]]:
        """The steps from a state that may be part of a circle without progress."""
        product = self.product
        if self.search.one_cpu or (self.timers and state & product.clock_mask != product.clock_idle):
            found = [
                (decision, target)
                for decision, target in self.search.steps(state)
                if decision == TICK or product.key(decision[0], state) in self.circular[decision[0]]
            ]
        else:
            found = []
            for shift, field, masks, moves in self.rows:
                for decision, delta in moves.get(state & masks[(state >> shift) & field], ()):
                    found.append((decision, state + delta))
        if not self.progress:
            return found
        plain = self.search.plain(state)
        return [
            (decision, target)
            for decision, target in found
            if decision == TICK
            or not any(micro.operation.progress for micro in product.micros(plain, decision)[0])
        ]

    def components(self, states: set[int]) -> Iterator[list[int]]:
        """Strongly connected components with at least one step, of the graph on these states."""
        known: dict[int, list[int]] = {}

        def targets(state: int) -> list[int]:
            found = known.get(state)
            if found is None:
                found = known[state] = [target for _, target in self.steps(state) if target in states]
            return found

        return components(states, targets)

    def locks(self, state: int, actor: int) -> bool:
        """Whether the actor is about to take a mutex; asked of one that never moves, so any state will do."""
        product = self.search.product
        operation = product.automata[actor].nodes[product.nodes(self.search.plain(state))[actor]].operation
        return operation is not None and operation.kind == "lock"

    def fair_circles(self) -> Iterator[list[int]]:
        """The fair components of all states."""
        yield from self.fair(self.candidates())

    def fair(self, states: set[int]) -> Iterator[list[int]]:
        """The fair components."""
        for component in self.components(states):
            inside = set(component)
            moved: set[int] = set()
            able: dict[int, set[int]] = {}
            for state in component:
                able[state] = {decision[0] for decision, _ in self.search.steps(state)}
                moved.update(decision[0] for decision, target in self.steps(state) if target in inside)
            always = set.intersection(*able.values())
            owed = set.union(*able.values()) - moved
            if TICK[0] in owed:
                continue
            if not self.search.one_cpu:
                owed = {actor for actor in owed if self.locks(component[0], actor)}
            left_out = {state for state, actors in able.items() if actors & owed}
            if always - moved:
                continue
            if left_out:
                yield from self.fair(inside - left_out)
            else:
                yield component


def fair_circles(search: Search) -> Iterator[list[int]]:
    """All fair components without progress."""
    yield from _Graph(search).fair_circles()


def livelock(search: Search) -> tuple[list[Decision], list[Decision], str] | None:
    """(stem, loop, what) of a livelock near the first state, or None."""
    graph = _Graph(search)
    circles = list(graph.fair_circles())
    if not circles:
        return None
    depth = {state: number for number, layer in enumerate(search.layers) for state in layer}
    nearest = min(depth[state] for circle in circles for state in circle)
    stem, entry = search.path({state for circle in circles for state in circle if depth[state] == nearest})
    component = next(circle for circle in circles if entry in circle)
    loop = _tour(graph, set(component), entry)
    product = search.product
    actors = sorted({decision[0] for decision in loop if decision != TICK})
    names = ", ".join(product.world.actors[actor].name for actor in actors)
    return stem, loop, f"{names or 'the clock'} for ever without progress"


def _tour(graph: _Graph, inside: set[int], entry: int) -> list[Decision]:
    """A closed walk from `entry` in which every actor that moves inside the component moves."""
    wanted = {d[0] for state in inside for d, target in graph.steps(state) if target in inside}
    walk: list[Decision] = []
    at = entry
    while wanted:
        leg, at = _leg(graph, inside, at, lambda d, _t, w=frozenset(wanted): d[0] in w)
        walk += leg
        wanted -= {decision[0] for decision in leg}
    if at != entry:
        leg, at = _leg(graph, inside, at, lambda _d, target: target == entry)
        walk += leg
    return walk


def _leg(graph: _Graph, inside: set[int], start: int, goal) -> tuple[list[Decision], int]:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """A shortest walk from `start` whose last step satisfies goal(decision, target)."""
    frontier: list[tuple[int, list[Decision]]] = [(start, [])]
    seen = {start}
    while frontier:
        following: list[tuple[int, list[Decision]]] = []
        for state, walk in frontier:
            for decision, target in graph.steps(state):
                if target not in inside:
                    continue
                if goal(decision, target):
                    return [*walk, decision], target
                if target not in seen:
                    seen.add(target)
                    following.append((target, [*walk, decision]))
        frontier = following
    raise AssertionError("a strongly connected component is not connected")
