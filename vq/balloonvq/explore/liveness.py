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

A circle of the product leads each actor back to the local state where it was, and each object to its value, so
every step of it stays inside a circle of that field's values. Most steps do not, and are left out before
anything else is done. What is left goes through Tarjan's algorithm, iterative, in C
(``csrc/explore_circles.c``), which also says who can go on in each state of a component and who moves inside.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from functools import partial, reduce
from operator import and_
from typing import TYPE_CHECKING, TypeVar

from balloonvq.ffi import lib
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
    """Steps that may be part of a circle without progress; states by index."""

    def __init__(self, search: Search) -> None:
        self.search = search
        self.product = product = search.product
        self.kernel = product.kernel
        product.fill()
        progress = any(operation.progress for operation in product.world.operations)
        for actor, key, choice in self._circular():
            micros = product.micros(key, (actor, choice))[0] if progress else []
            if not any(micro.operation.progress for micro in micros):
                self.kernel.set_circular(actor, key, choice)
        product.walk(lib.explore_graph, end=self.kernel.count)

    def _circular(self) -> list[tuple[int, int, int]]:
        """The steps that may be part of a circle: (actor, key of its table, outcome)."""
        product = self.product
        free = product.ticking_fields() if product.has_timers else set()
        #: (actor, key, outcome, {field: (before, after)})
        left: list[tuple[int, int, int, dict[int, tuple[int, int]]]] = []
        for actor, table in enumerate(product.tables):
            for key in table:
                for (_, choice), difference in product.moves(actor, key):
                    left.append((actor, key, choice, product.changes(key, key ^ difference, free)))
        while True:
            edges: dict[int, dict[int, list[int]]] = {}
            for *_, changes in left:
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
                    for field, (before, after) in step[3].items()
                )
            ]
            if len(kept) == len(left):
                return [step[:3] for step in left]
            left = kept

    def locks(self, index: int, actor: int) -> bool:
        """Whether the actor is about to take a mutex; asked of one that never moves, so any state will do."""
        product = self.product
        operation = product.operation(actor, product.nodes(self.search.state(index))[actor])
        return operation is not None and operation.kind == "lock"

    def fair_circles(self, states: list[int] | None = None) -> Iterator[list[int]]:
        """The fair components of these states, or of all."""
        # Sets of actors are bits, time's above those of all actors.
        count = self.product.count
        for component in self.kernel.components(states):
            able, moved = self.kernel.fairness(component, self.product.answer())
            owed = ~moved
            if owed >> count & 1 and any(actors >> count for actors in able):
                continue
            if reduce(and_, able) & owed:
                continue
            if not self.search.one_cpu:
                owed = sum(
                    1 << actor
                    for actor in range(count)
                    if owed >> actor & 1 and self.locks(component[0], actor)
                )
            rest = [index for index, actors in zip(component, able, strict=True) if not actors & owed]
            if len(rest) < len(component):
                yield from self.fair_circles(rest)
            else:
                yield component


def fair_circles(search: Search) -> Iterator[list[int]]:
    """All fair components without progress, as indices of states."""
    yield from _Graph(search).fair_circles()


def livelock(search: Search) -> tuple[list[Decision], list[Decision], str] | None:
    """(stem, loop, what) of a livelock near the first state, or None."""
    graph = _Graph(search)
    circles = list(graph.fair_circles())
    if not circles:
        return None
    # Indices are given layer by layer.
    nearest = min(map(min, circles))
    end = next(layer.end for layer in search.layers if nearest < layer.end)
    stem, entry = search.path({index for circle in circles for index in circle if index < end})
    component = next(circle for circle in circles if entry in circle)
    loop = _tour(graph, set(component), entry)
    product = search.product
    actors = sorted({decision[0] for decision in loop if decision != TICK})
    names = ", ".join(product.world.actors[actor].name for actor in actors)
    return stem, loop, f"{names or 'the clock'} for ever without progress"


def _tour(graph: _Graph, inside: set[int], entry: int) -> list[Decision]:
    """A closed walk from `entry` in which every actor that moves inside the component moves."""
    wanted = {
        step.actor for index in inside for step in graph.kernel.circular_steps(index) if step.state in inside
    }
    walk: list[Decision] = []
    at = entry
    while wanted:
        leg, at = _leg(graph, inside, at, lambda actor, _, w=frozenset(wanted): actor in w)
        walk += leg
        wanted -= {decision[0] for decision in leg}
    if at != entry:
        leg, at = _leg(graph, inside, at, lambda _, target: target == entry)
        walk += leg
    return walk


def _leg(graph: _Graph, inside: set[int], start: int, goal) -> tuple[list[Decision], int]:  # type: ignore[no-untyped-def]  # noqa: ANN001
    """A shortest walk from `start` whose last step satisfies goal(actor, target)."""
    frontier: list[tuple[int, list[Decision]]] = [(start, [])]
    seen = {start}
    while frontier:
        following: list[tuple[int, list[Decision]]] = []
        for index, walk in frontier:
            for actor, choice, target in graph.kernel.circular_steps(index):
                if target not in inside:
                    continue
                if goal(actor, target):
                    return [*walk, (actor, choice)], target
                if target not in seen:
                    seen.add(target)
                    following.append((target, [*walk, (actor, choice)]))
        frontier = following
    raise AssertionError("a strongly connected component is not connected")
