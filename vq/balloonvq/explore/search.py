"""Goes through the states of a product, layer by layer, and finds schedules to them.

Order: breadth first over steps, so the first bug found has a shortest schedule. No
predecessors are stored; the schedule is found backwards, layer by layer. Of several bugs and schedules of the
same length the choice does not depend on how states are numbered. The
schedule with the fewest preemptions is a second search over (state, who ran last),
in order of (preemptions, steps). A preemption is a step of another actor while the one
that ran last could go on and was not about to give way. Time's steps are none.
"""

from __future__ import annotations

import contextlib
import math
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

from balloonvq.explore.kernel import Event
from balloonvq.explore.operations import Raised
from balloonvq.explore.tables import Enough, Product
from balloonvq.explore.verdict import Findings, Kind
from balloonvq.ffi import CData, lib
from balloonvq.runtime.controlled import TICK, Decision

__all__ = [
    "Layer",
    "Limits",
    "OnLayer",
    "Progress",
    "Search",
    "Wrong",
    "fewest_preemptions",
    "preemptions",
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


#: Seconds from one checkpoint to the next.
SAVE_S: Final = 10.0

#: Layers from whose growth the number of all states is guessed.
_LAYERS_MIN: Final = 8


class Wrong(Exception):
    """Something is wrong with states of one layer: where a search ends."""

    def __init__(self, kind: Kind, what: str, states: set[int]) -> None:
        super().__init__(what)
        self.kind = kind
        self.what = what
        #: Indices of all states of the layer in which this is wrong.
        self.states = states


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
        return self.product.kernel.state(index) & self.product.state_mask

    def run(self) -> Wrong | None:
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
        except Wrong as bug:
            return bug

    def save(self) -> None:
        """Has what was looked at so far written down."""
        if self.on_save is not None and self.layers:
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
        if len(self.layers) < _LAYERS_MIN:
            return None
        size = self.layers[-1].size
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
            raise Wrong(kind, what, self._wrong[kind, what])

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
    except Enough:
        return None
    if result == lib.EXPLORE_NONE:
        return None
    return tuple((step.actor, step.choice) for step in kernel.schedule()), kernel.preemptions()
