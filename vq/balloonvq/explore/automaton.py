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
`verify` goes on with the code that came to a merged node on a second history, runs it from the start along a
sample of all edges, and compares operation by operation. A difference raises
`Nondeterminism` with the line: a verdict is never built on a wrong automaton knowingly.
"""

from __future__ import annotations

import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from balloonvq.explore.operations import Operation, Raised
from balloonvq.explore.world import Nondeterminism, World
from balloonvq.runtime.controlled import Fed, Foreseen, Place

__all__ = ["Automaton", "Node", "TooManyLocalStates", "verify"]

#: Local states of one actor beyond which a scenario is too big.
NODES_MAX = 200_000

#: Live runs of an actor that are kept for going on from.
RUNS_MAX = 8

#: Live runs of an actor that came to a merged node and are kept for `verify`.
SECONDS_MAX = 32


#: Operations that `verify` goes on for.
WALK_STEPS = 24


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
        #: Edges that were merged into a node reached before.
        self.merged = 0
        #: (node, run that came there on another history than the first).
        self._seconds: list[tuple[int, Fed]] = []
        self._random = random.Random(index)
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

    def _keep_second(self, run: Fed, node: int) -> None:
        """Keeps a run for `verify`; each of all that there are is as likely to be among those kept."""
        self.merged += 1
        if self.nodes[node].operation is None:
            run.close()
        elif len(self._seconds) < SECONDS_MAX:
            self._seconds.append((node, run))
        else:
            place = self._random.randrange(self.merged)
            if place < SECONDS_MAX:
                (node, run), self._seconds[place] = self._seconds[place], (node, run)
            run.close()

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
            end = _ending(run.actor.error)
            target = self._ends.get(end)
        else:
            target = self._target(node, operation, anchor)
        if target is None:
            target = self._add(run, node, observed)
            if operation is None:
                self._ends[end] = target
            self._keep(run, target)
        else:
            self._keep_second(run, target)
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

    def _rerun(self, node: int, run: Fed | None = None) -> Fed:
        """A run along the history of a node, each operation compared; in the objects of a closed run, or new ones."""
        path = self.history(node)
        ahead = self._foreseen(path)
        if run is None:
            run = Fed(self.world, self.index, ahead=ahead)
        else:
            run.begin(self.index, ahead)
        self._came(run, path, node)
        return run

    def _foreseen(self, path: list[tuple[int, Any]]) -> list[Foreseen]:
        """What a run does that goes through these (node, observed) pairs."""
        nodes = self.nodes
        return [
            (cast("Operation", nodes[node].operation), nodes[node].place, observed) for node, observed in path
        ]

    def _came(self, run: Fed, path: list[tuple[int, Any]], node: int) -> None:
        """Checks that a run that was to go through these pairs has come to a node.

        Raises:
            Nondeterminism: if not.
        """
        if run.ahead:
            node = path[len(path) - len(run.ahead)][0]
        try:
            self.compare(node, run)
        except Nondeterminism:
            run.close()
            raise

    def compare(self, node: int, run: Fed) -> None:
        """Checks that a run stands where the automaton says.

        Raises:
            Nondeterminism: if not.
        """
        operation, _, place = run.at
        if operation is None:
            self.compare_end(node, run.actor.error)
        elif operation is not self.nodes[node].operation or place != self.nodes[node].place:
            raise self.differs(self.nodes[node], operation, place)

    def compare_end(self, node: int, error: BaseException | None) -> None:
        """Checks that the automaton says that the actor ends here, and with this error.

        Raises:
            Nondeterminism: if not.
        """
        expected = self.nodes[node]
        if expected.operation is not None or _ending(expected.error) != _ending(error):
            raise self.differs(expected, None, ("?", 0), error)

    def differs(
        self, expected: Node, operation: Operation | None, place: Place, error: BaseException | None = None
    ) -> Nondeterminism:
        """The error for an actor that did something else than before."""
        name = self.world.actors[self.index].name
        return Nondeterminism(
            f"{name} did something else with the same observed values: {_what(operation, place, error)}",
            why=f"before it was {_what(expected.operation, expected.place, expected.error)}",
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

    def verify_merged(self, random_: random.Random) -> int:
        """Goes on with the runs that came to a merged node; the operations compared.

        Raises:
            Nondeterminism: at the first difference.
        """
        compared = 0
        while self._seconds:
            node, run = self._seconds.pop()
            try:
                compared += self._walk(run, node, random_)
            finally:
                run.close()
        return compared

    def verify_from_start(self, random_: random.Random, run: Fed | None) -> tuple[int, Fed]:
        """Runs the code to any node and on from there; (operations compared, the run, closed).

        Args:
            random_: chooses.
            run: a closed one, in whose objects this actor is to run; None for new ones.

        Raises:
            Nondeterminism: at the first difference.
        """
        node = random_.randrange(len(self.nodes))
        run = self._rerun(node, run)
        try:
            return self.nodes[node].depth + self._walk(run, node, random_), run
        finally:
            run.close()

    def _walk(self, run: Fed, node: int, random_: random.Random) -> int:
        """Goes on from a node along known edges, through merged nodes, comparing; the operations compared."""
        path: list[tuple[int, Any]] = []
        for _ in range(WALK_STEPS):
            edges = self.nodes[node].edges
            if not edges:
                break
            observed = random_.choice(list(edges))
            path.append((node, observed))
            node = edges[observed]
        if path:
            run.feed(path[0][1], ahead=self._foreseen(path[1:]))
            self._came(run, path, node)
        return len(path)

    def close(self) -> None:
        """Ends the live runs."""
        for run in (*self._runs.values(), *(run for _, run in self._seconds)):
            run.close()
        self._runs.clear()
        self._seconds.clear()


def _ending(error: BaseException | None) -> Raised | None:
    """An end as a value."""
    return None if error is None else Raised(error)


def _what(operation: Operation | None, place: Place, error: BaseException | None) -> str:
    """An operation, or an end, in words."""
    if operation is not None:
        return f"{operation!r} at {place[0]}:{place[1]}"
    return "the end" if error is None else f"the end with {Raised(error)!r}"


def verify(automata: Sequence[Automaton], seed: int = 0, samples: int = 4) -> int:
    """Compares the real code with what was learned; returns how many operations were compared.

    The runs from the start are those of all actors by turns in the same objects, so that one that
    reaches in secret what another has changed shows as well.

    Args:
        automata: of all actors.
        seed: of the choices.
        samples: edges of each automaton to which the code is run from the start.

    Raises:
        Nondeterminism: at the first difference.
    """
    choices = [random.Random(seed) for _ in automata]
    compared = sum(map(Automaton.verify_merged, automata, choices))
    for sample in range(samples):
        run = None
        for turn in range(len(automata)):
            index = (sample + turn) % len(automata)
            found, run = automata[index].verify_from_start(choices[index], run)
            compared += found
    return compared
