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

A circle of the product leads each actor back to the local state where it was, and each object to its value. Most
steps change something to a value from which no step leads on, or from one to which none leads, and are
left out before anything else is done. What is left goes through Tarjan's algorithm, iterative. Both are C
(``csrc/explore_circles.c``), which also says who can go on in each state of a component and who moves inside.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import reduce
from operator import and_
from typing import TYPE_CHECKING

from balloonvq.ffi import lib
from balloonvq.runtime.controlled import TICK, Decision

if TYPE_CHECKING:
    from balloonvq.explore.search import Search

__all__ = ["fair_circles", "livelock"]


class _Graph:
    """Steps that may be part of a circle without progress; states by index."""

    def __init__(self, search: Search) -> None:
        self.search = search
        self.product = product = search.product
        self.kernel = product.kernel
        product.fill()
        if any(operation.progress for operation in product.world.operations):
            self._exclude_progress()
        free = product.ticking_fields() if product.has_timers else set()
        places = enumerate(zip(product.shifts, product.widths, strict=True))
        self.kernel.find_circular([place for field, place in places if field not in free])
        product.walk(lib.explore_graph, end=self.kernel.count)

    def _exclude_progress(self) -> None:
        product = self.product
        for actor, tables in enumerate(product.tables):
            for key in itertools.chain(*tables):
                for decision, _ in product.moves(actor, key):
                    if any(operation.progress for operation, _ in product.performed(key, decision)):
                        self.kernel.set_progress(actor, key, decision[1])

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
