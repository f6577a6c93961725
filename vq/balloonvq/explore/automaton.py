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

To go on from a node the code has to stand there. Where the run that came there first has gone on, one that came to a
merged node goes on along known edges, or the code is run again from the start. All runs of an actor stand in the
same objects: what it shares with others are operations, and their results come from the search. One that changes
plain objects is made again in objects of its own, and what it has changed is put back (`balloonvq.runtime.runs.Fed`).

Each of these is a statement about the code, and is *checked* rather than believed.
`verify` goes on with the code that came to a merged node on a second history, runs it from the start along a
sample of all edges, and compares operation by operation. A difference raises
`Nondeterminism` with the line: a verdict is never built on a wrong automaton knowingly.
"""

from __future__ import annotations

import random
import traceback
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from balloonvq.explore.operations import Operation, Raised
from balloonvq.explore.world import FROM_RUNTIME, Nondeterminism, Revised, World
from balloonvq.runtime.controlled import NOWHERE, SHIPPED, Place
from balloonvq.runtime.runs import Fed, Foreseen, Run

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
    users_place: Place
    """The innermost line there of a file of the user."""
    parent: int
    observed: Any
    """What the parent's operation observed."""
    error: BaseException | None = None
    """What the actor raised; only at an end."""
    edges: dict[Any, int] = field(default_factory=dict)
    sources: list[int] = field(default_factory=list)
    """The nodes that lead to it, in the order in which that was learned."""
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
        self._runs: dict[int, Run] = {}
        #: Edges that were merged into a node reached before.
        self.merged = 0
        #: (node, run that came there on another history than the first).
        self._seconds: list[tuple[int, Run]] = []
        self._random = random.Random(index)
        fed = Fed(world)
        #: What all runs stand in that have left it as it was built; None if that cannot be told.
        self._shared = fed if fed.share(index) else None
        run = Run(fed, index, anchored=True)
        if run.changed:
            self._close(run)
            run = self._alone([], anchored=True)
        self._add(run, -1, None)
        self._keep(run, 0)

    # -- learning ------------------------------------------------------------

    def _add(self, run: Run, parent: int, observed: Any) -> int:
        operation, anchor, place = run.at
        if len(self.nodes) >= NODES_MAX:
            raise TooManyLocalStates(
                f"{self.world.actors[self.index].name} has more than {NODES_MAX} local states, "
                f"the last at {place[0]}:{place[1]}"
            )
        node = Node(len(self.nodes), operation, place, run.users_place, parent, observed)
        if parent >= 0:
            node.depth = self.nodes[parent].depth + 1
        node.holds = run.holds
        if operation is None:
            node.error = run.error
        elif anchor is not None and anchor not in {"again", "turn"}:
            self._anchors[operation, anchor] = node.index
        self.nodes.append(node)
        return node.index

    def _keep(self, run: Run, node: int) -> None:
        if self.nodes[node].operation is None:
            self._close(run)
            return
        if node in self._runs:
            self._close(run)
            return
        if len(self._runs) >= RUNS_MAX:
            self._close(self._runs.pop(next(iter(self._runs))))
        self._runs[node] = run

    def _keep_second(self, run: Run, node: int) -> None:
        """Keeps a run for `verify`; each of all that there are is as likely to be among those kept."""
        self.merged += 1
        if self.nodes[node].operation is None:
            self._close(run)
        elif len(self._seconds) < SECONDS_MAX:
            self._seconds.append((node, run))
        else:
            place = self._random.randrange(self.merged)
            if place < SECONDS_MAX:
                (node, run), self._seconds[place] = self._seconds[place], (node, run)
            self._close(run)

    def step(self, node: int, observed: Any) -> int:
        """The node after `node` when its operation observes this."""
        found = self.nodes[node].edges.get(observed)
        if found is not None:
            return found
        try:
            return self._learn(node, observed)
        except Revised:
            # The run was closed where it found that out; the automaton is used again.
            self._put_back()
            raise

    def _learn(self, node: int, observed: Any) -> int:
        run = self._runs.pop(node, None) or self._passing(node) or self._rerun(node)
        run.feed(observed, anchored=True)
        if run.changed:
            self._close(run)
            if not run.finished:
                path = [*self.history(node), (node, observed)]
                run = self._alone(path, anchored=True)
                if run.ahead:
                    self._came(run, path, node)
        operation, anchor, _ = run.at
        end = None
        if operation is None:
            end = _ending(run.error)
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
        self.nodes[target].sources.append(node)
        return target

    def _passing(self, node: int) -> Run | None:
        """The nearest run that came to a merged node from which edges lead here, gone on to here, or None."""
        nodes = self.nodes
        merged = {at: place for place, (at, _) in enumerate(self._seconds)}
        following = {node: node}
        waiting = [node]
        for target in waiting:
            if len(waiting) > nodes[node].depth:
                # To look further would soon cost more than to run from the start.
                break
            for source in nodes[target].sources:
                if source in following:
                    continue
                following[source] = target
                if source in merged:
                    _, run = self._seconds[merged[source]]
                    self._seconds[merged[source]] = self._seconds[-1]
                    self._seconds.pop()
                    self._follow(run, self._path(source, node, following))
                    return run
                waiting.append(source)
        return None

    def _path(self, node: int, end: int, following: dict[int, int]) -> list[tuple[int, Any]]:
        """The (node, observed) pairs from a node to another one, through those that follow."""
        path = []
        while node != end:
            after = following[node]
            path.append((node, next(seen for seen, to in self.nodes[node].edges.items() if to == after)))
            node = after
        return path

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

    def _rerun(self, node: int) -> Run:
        """A run along the history of a node, each operation compared."""
        path = self.history(node)
        if self._shared is None:
            run = self._alone(path)
        else:
            run = Run(self._shared, self.index, ahead=self._foreseen(path))
        self._came(run, path, node)
        return run

    def _alone(self, path: list[tuple[int, Any]], *, anchored: bool = False) -> Run:
        """A run through these (node, observed) pairs that may change what it stands in."""
        return Run(Fed(self.world), self.index, anchored=anchored, ahead=self._foreseen(path))

    def _close(self, run: Run) -> None:
        """Closes a run, and puts back what it has changed of what others stand in, be it while it was unwound."""
        run.close()
        if run.runtime is self._shared:
            self._put_back()

    def _put_back(self) -> None:
        """Puts back what a closed run has left of what others stand in, or ends those."""
        shared = self._shared
        if shared is None or shared.put_back():
            return
        self._shared = None
        for other in (*self._runs.values(), *(second for _, second in self._seconds)):
            if other.runtime is shared:
                other.close()
        self._runs = {node: other for node, other in self._runs.items() if other.runtime is not shared}
        self._seconds = [(node, other) for node, other in self._seconds if other.runtime is not shared]

    def _foreseen(self, path: list[tuple[int, Any]]) -> list[Foreseen]:
        """What a run does that goes through these (node, observed) pairs."""
        nodes = self.nodes
        return [
            (cast("Operation", nodes[node].operation), nodes[node].place, observed) for node, observed in path
        ]

    def _came(self, run: Run, path: list[tuple[int, Any]], node: int) -> None:
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

    def compare(self, node: int, run: Run) -> None:
        """Checks that a run stands where the automaton says.

        Raises:
            Nondeterminism: if not.
        """
        operation, _, place = run.at
        if operation is None:
            self.compare_end(node, run.error)
        elif operation is not self.nodes[node].operation or place != self.nodes[node].place:
            raise self.differs(self.nodes[node], operation, place, run.users_place)

    def compare_end(self, node: int, error: BaseException | None) -> None:
        """Checks that the automaton says that the actor ends here, and with this error.

        Raises:
            Nondeterminism: if not.
        """
        expected = self.nodes[node]
        if expected.operation is not None or _ending(expected.error) != _ending(error):
            raise self.differs(expected, None, NOWHERE, NOWHERE, error)

    def differs(
        self,
        expected: Node,
        operation: Operation | None,
        place: Place,
        users_place: Place,
        error: BaseException | None = None,
    ) -> Nondeterminism:
        """The error for an actor that did something else than before."""
        name = self.world.actors[self.index].name
        now = _what(operation, place, users_place, error)
        before = _what(expected.operation, expected.place, expected.users_place, expected.error)
        return Nondeterminism(
            f"{name} did something else with the same observed values: {now}",
            why=f"before it was {before}",
            hint=FROM_RUNTIME,
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
                self._close(run)
        return compared

    def verify_from_start(self, random_: random.Random, fed: Fed) -> int:
        """Runs the code to any node and on from there; operations compared.

        Args:
            random_: chooses.
            fed: what the actor is to run in, whatever others have left there.

        Raises:
            Nondeterminism: at the first difference.
        """
        node = random_.randrange(len(self.nodes))
        path = self.history(node)
        run = Run(fed, self.index, ahead=self._foreseen(path))
        try:
            self._came(run, path, node)
            return len(path) + self._walk(run, node, random_)
        finally:
            run.close()

    def _walk(self, run: Run, node: int, random_: random.Random) -> int:
        """Goes on from a node along known edges, through merged nodes, comparing; the operations compared."""
        path: list[tuple[int, Any]] = []
        for _ in range(WALK_STEPS):
            edges = self.nodes[node].edges
            if not edges:
                break
            observed = random_.choice(list(edges))
            path.append((node, observed))
            node = edges[observed]
        self._follow(run, path)
        return len(path)

    def _follow(self, run: Run, path: list[tuple[int, Any]]) -> None:
        """Goes on through these (node, observed) pairs of known edges, each operation compared.

        Raises:
            Nondeterminism: at the first difference.
        """
        if path:
            node, observed = path[-1]
            run.feed(path[0][1], ahead=self._foreseen(path[1:]))
            self._came(run, path, self.nodes[node].edges[observed])

    def close(self) -> None:
        """Ends the live runs."""
        for run in (*self._runs.values(), *(run for _, run in self._seconds)):
            run.close()
        self._runs.clear()
        self._seconds.clear()


def _ending(error: BaseException | None) -> Raised | None:
    """An end as a value."""
    return None if error is None else Raised(error)


def _what(operation: Operation | None, place: Place, users_place: Place, error: BaseException | None) -> str:
    """An operation, or an end, in words."""
    if operation is not None:
        text = f"{operation!r} at {place[0]}:{place[1]}"
        called = "called from"
    elif error is not None:
        text = f"the end with {Raised(error)!r}"
        called = "raised at"
        users = [
            at for at in traceback.walk_tb(error.__traceback__) if at[0].f_code.co_filename not in SHIPPED
        ]
        if users:
            users_place = users[-1][0].f_code.co_filename, users[-1][1]
    else:
        return "the end"
    if users_place in {place, NOWHERE}:
        return text
    return f"{text}, {called} {users_place[0]}:{users_place[1]}"


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
        fed = Fed(automata[0].world)
        for turn in range(len(automata)):
            index = (sample + turn) % len(automata)
            compared += automata[index].verify_from_start(choices[index], fed)
    return compared
