"""What one actor can do, learned by running it alone.

A node is a local state: the operation that the actor is about to perform, and for
each value that the operation may observe the next node. Nodes are made on demand:
the search asks "actor W, at this node, observes this: where is it then?", and if
nobody asked before, the real code is run along a history that leads there.

Histories form a tree. Different histories are one node

* where the frames of the code show the whole local state, and it is the same
  (`balloonvq.explore.local_state`);
* where a function that repeats begins (`spawn(repeats=True)`, work items);
* where a wait whose condition was false enqueues again: it is where it was on entry.

Each of these is a statement about the code, and is *checked* rather than believed.
`verify` runs the code along second histories into merged nodes and along a
sample of all edges, and compares operation by operation. A difference raises
`Nondeterminism` with the line: a verdict is never built on a wrong automaton knowingly.
"""

from __future__ import annotations

import random
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from balloonvq.explore.operations import Operation, Raised
from balloonvq.explore.world import Nondeterminism, World
from balloonvq.runtime.controlled import Fed, Place

__all__ = ["Automaton", "Node", "TooManyLocalStates"]

#: Local states of one actor beyond which a scenario is too big.
NODES_MAX = 200_000

#: Live runs of an actor that are kept for going on from.
RUNS_MAX = 8


class TooManyLocalStates(Exception):
    """An actor's local states do not seem to end."""


@dataclass(slots=True)
class Node:
    """A local state of an actor."""

    index: int
    operation: Operation | None
    """What it is about to do; None at its end."""
    place: Place
    """File and line of the call."""
    parent: int
    observed: Any
    """What the parent's operation observed."""
    error: BaseException | None = None
    """What the actor raised; only at an end."""
    edges: dict[Any, int] = field(default_factory=dict)
    depth: int = 0
    holds: bool = False
    """Whether it holds a mutex here."""


class Automaton:
    """The local states of one actor that a search has met so far.

    Args:
        world: the world.
        index: which actor.
    """

    def __init__(self, world: World, index: int) -> None:
        self.world = world
        self.index = index
        self.nodes: list[Node] = []
        self._ends: dict[Raised | None, int] = {}
        self._anchors: dict[Hashable, int] = {}
        self._runs: dict[int, Fed] = {}
        #: (node, observed) edges that were merged into a node reached before.
        self.merged: list[tuple[int, Any]] = []
        run = Fed(world, index, anchored=True)
        self._add(run, -1, None)
        self._keep(run, 0)

    # -- learning ------------------------------------------------------------

    def _add(self, run: Fed, parent: int, observed: Any) -> int:
        operation, anchor, place = run.at
        if len(self.nodes) >= NODES_MAX:
            raise TooManyLocalStates(
                f"{self.world.actors[self.index].name} has more than {NODES_MAX} local states, "
                f"the last at {place[0]}:{place[1]}"
            )
        node = Node(len(self.nodes), operation, place, parent, observed)
        if parent >= 0:
            node.depth = self.nodes[parent].depth + 1
        node.holds = bool(run.actor.held)
        if operation is None:
            node.error = run.actor.error
        elif anchor is not None and anchor not in {"again", "turn"}:
            self._anchors[operation, anchor] = node.index
        self.nodes.append(node)
        return node.index

    def _keep(self, run: Fed, node: int) -> None:
        if self.nodes[node].operation is None:
            run.close()
            return
        if node in self._runs:
            run.close()
            return
        if len(self._runs) >= RUNS_MAX:
            self._runs.pop(next(iter(self._runs))).close()
        self._runs[node] = run

    def step(self, node: int, observed: Any) -> int:
        """The node after `node` when its operation observes this."""
        found = self.nodes[node].edges.get(observed)
        return self._learn(node, observed) if found is None else found

    def _learn(self, node: int, observed: Any) -> int:
        run = self._runs.pop(node, None) or self._rerun(node)
        run.feed(observed, anchored=True)
        operation, anchor, _ = run.at
        end = None
        if operation is None:
            end = Raised(run.actor.error) if run.actor.error is not None else None
            target = self._ends.get(end)
        else:
            target = self._target(node, operation, anchor)
        if target is None:
            target = self._add(run, node, observed)
            if operation is None:
                self._ends[end] = target
            self._keep(run, target)
        else:
            # Another run of this node may be kept already; this one is as good.
            self._keep(run, target)
            self.merged.append((node, observed))
        self.nodes[node].edges[observed] = target
        return target

    def _target(self, node: int, operation: Operation, anchor: Hashable) -> int | None:
        """The node that a loop comes back to, or None for a new one."""
        if anchor is None:
            return None
        if anchor == "turn":
            if operation is not self.nodes[0].operation:
                raise Nondeterminism(
                    f"{self.world.actors[self.index].name} begins its turns with different operations",
                    why=f"first with {self.nodes[0].operation!r}, then with {operation!r}",
                    hint="a function that repeats must keep what it knows in objects of the world",
                )
            return 0
        if anchor == "again":
            while node >= 0:
                if self.nodes[node].operation is operation:
                    return node
                node = self.nodes[node].parent
            return None
        return self._anchors.get((operation, anchor))

    def history(self, node: int) -> list[tuple[int, Any]]:
        """The (node, observed) pairs on the way from the start to a node."""
        found = []
        while node > 0:
            entry = self.nodes[node]
            found.append((entry.parent, entry.observed))
            node = entry.parent
        found.reverse()
        return found

    def _rerun(self, node: int) -> Fed:
        run = Fed(self.world, self.index)
        self.compare(0, run)
        for parent, observed in self.history(node):
            run.feed(observed)
            self.compare(self.nodes[parent].edges[observed], run)
        return run

    def compare(self, node: int, run: Fed) -> None:
        """Checks that a run stands where the automaton says.

        Raises:
            Nondeterminism: if not.
        """
        expected = self.nodes[node]
        operation, _, place = run.at
        if operation is expected.operation and place == expected.place:
            return
        if operation is None and expected.operation is None:
            return
        raise self.differs(expected, operation, place)

    def differs(self, expected: Node, operation: Operation | None, place: Place) -> Nondeterminism:
        """The error for an actor that did something else than before."""
        name = self.world.actors[self.index].name
        return Nondeterminism(
            f"{name} did something else with the same observed values: {operation!r} at {place[0]}:{place[1]}",
            why=f"before it was {expected.operation!r} at {expected.place[0]}:{expected.place[1]}",
            hint="state that several actors share, time and chance must come from the runtime",
        )

    @property
    def loops(self) -> bool:
        """Whether the actor can come back to a local state."""
        waiting = [0] * len(self.nodes)
        for node in self.nodes:
            for target in node.edges.values():
                waiting[target] += 1
        free = [node for node, count in enumerate(waiting) if not count]
        freed = 0
        while free:
            freed += 1
            for target in self.nodes[free.pop()].edges.values():
                waiting[target] -= 1
                if not waiting[target]:
                    free.append(target)
        return freed < len(self.nodes)

    # -- checking ------------------------------------------------------------

    def verify(self, seed: int = 0, samples: int = 16) -> int:
        """Runs the real code along sampled histories; returns how many edges were compared.

        Raises:
            Nondeterminism: at the first difference.
        """
        random_ = random.Random(seed)
        merged = self.merged if len(self.merged) <= samples else random_.sample(self.merged, samples)
        starts = [*merged]
        for _ in range(min(samples, len(self.nodes))):
            node = random_.randrange(len(self.nodes))
            if self.nodes[node].edges:
                starts.append((node, random_.choice(list(self.nodes[node].edges))))
        compared = 0
        for node, observed in starts:
            run = self._rerun(node)
            try:
                compared += self.nodes[node].depth + self._walk(run, node, observed, random_)
            finally:
                run.close()
        return compared

    def _walk(self, run: Fed, node: int, observed: Any, random_: random.Random, steps: int = 24) -> int:
        """Goes on from a node along known edges, through merged nodes, comparing."""
        for step in range(steps):
            run.feed(observed)
            node = self.nodes[node].edges[observed]
            self.compare(node, run)
            if not self.nodes[node].edges:
                return step + 1
            observed = random_.choice(list(self.nodes[node].edges))
        return steps

    def close(self) -> None:
        """Ends the live runs."""
        for run in self._runs.values():
            run.close()
        self._runs.clear()
