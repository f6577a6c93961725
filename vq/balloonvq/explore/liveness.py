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

Tarjan's algorithm, iterative, steps recomputed from the tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from balloonvq.runtime.controlled import TICK, Decision

if TYPE_CHECKING:
    from balloonvq.explore.product import Search

__all__ = ["fair_circles", "livelock"]


class _Graph:
    """Steps that are no progress."""

    def __init__(self, search: Search) -> None:
        self.search = search
        operations = search.product.world.operations
        self.progress = any(operation.progress for operation in operations)

    def steps(self, state: int) -> list[tuple[Decision, int]]:
        found = list(self.search.steps(state))
        if not self.progress:
            return found
        product = self.search.product
        plain = self.search.plain(state)
        return [
            (decision, target)
            for decision, target in found
            if decision == TICK
            or not any(micro.operation.progress for micro in product.micros(plain, decision)[0])
        ]

    def components(self, states: set[int]) -> Iterator[list[int]]:
        """Strongly connected components with at least one step, of the graph on these states."""
        index: dict[int, int] = {}
        low: dict[int, int] = {}
        on_stack: set[int] = set()
        stack: list[int] = []
        for root in states:
            if root in index:
                continue
            work = [(root, iter(self.steps(root)))]
            index[root] = low[root] = len(index)
            stack.append(root)
            on_stack.add(root)
            while work:
                state, steps = work[-1]
                for _, target in steps:
                    if target not in states:
                        continue
                    if target not in index:
                        index[target] = low[target] = len(index)
                        stack.append(target)
                        on_stack.add(target)
                        work.append((target, iter(self.steps(target))))
                        break
                    if target in on_stack:
                        low[state] = min(low[state], index[target])
                else:
                    work.pop()
                    if work:
                        parent = work[-1][0]
                        low[parent] = min(low[parent], low[state])
                    if low[state] == index[state]:
                        component = []
                        while True:
                            member = stack.pop()
                            on_stack.discard(member)
                            component.append(member)
                            if member == state:
                                break
                        if len(component) > 1 or any(t == state for _, t in self.steps(state)):
                            yield component

    def locks(self, state: int, actor: int) -> bool:
        """Whether the actor is about to take a mutex; asked of one that never moves, so any state will do."""
        product = self.search.product
        operation = product.automata[actor].nodes[product.nodes(self.search.plain(state))[actor]].operation
        return operation is not None and operation.kind == "lock"

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
    yield from _Graph(search).fair(search.seen)


def livelock(search: Search) -> tuple[list[Decision], list[Decision], str] | None:
    """(stem, loop, what) of a livelock near the first state, or None."""
    circles = list(fair_circles(search))
    if not circles:
        return None
    depth = {state: number for number, layer in enumerate(search.layers) for state in layer}
    component = min(circles, key=lambda circle: min(depth[state] for state in circle))
    entry = min(component, key=lambda state: (depth[state], state))
    loop = _tour(_Graph(search), set(component), entry)
    product = search.product
    actors = sorted({decision[0] for decision in loop if decision != TICK})
    names = ", ".join(product.world.actors[actor].name for actor in actors)
    return search.path(entry), loop, f"{names or 'the clock'} for ever without progress"


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
