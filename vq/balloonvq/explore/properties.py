"""The properties of a design, one by one: which of them a bug breaks, and which of them a scenario can show.

An exploration ends at its first bug. A *survey* goes on: it notes the shortest schedule that breaks each
property, goes no further beyond a state in which something is broken, and searches all the rest. So what a design
does wrong in one way does not hide what else it does, and a property without a schedule holds in every interleaving
of the scenario, up to where the design has failed otherwise.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from typing import TYPE_CHECKING

from balloonvq.errors import InvalidArgument
from balloonvq.explore.automaton import TooManyLocalStates, verify
from balloonvq.explore.comparison import confirm, sample
from balloonvq.explore.liveness import livelock
from balloonvq.explore.product import started
from balloonvq.explore.search import Limits, Search, preemptions
from balloonvq.explore.tables import Product
from balloonvq.explore.verdict import Bug, Kind, Outcome, Schedule, Verdict
from balloonvq.explore.world import Program

if TYPE_CHECKING:
    from balloonvq.explore.scenarios import Scenario

__all__ = ["Property", "Survey", "broken_by", "judge", "property_named", "shown_by", "survey"]


class Property(Enum):
    """What is asked of a design, in the order of the matrix."""

    DEADLOCK = "deadlock"
    """Nobody waits for ever who must not."""
    BUG = "BUG()"
    """balloon_page_dequeue never meets its BUG(), and nothing else raises."""
    DATA = "lost or early free"
    """A page is the right one's to write: no data is lost, none is free before the host has given it back, and
    none is given back before the host has it."""
    LISTED = "OOM: page listed"
    """OOM never comes back with nothing while a page is on the list."""
    IN_HAND = "OOM: in fill's hand"
    """Nor while fill has one that it has allocated."""
    BY_ANOTHER = "OOM: freed by another"
    """Nor when another leaker has released one meanwhile, or has one in flight."""
    ISOLATED = "OOM: isolated"
    """Nor while compaction has one."""
    COUNT = "wrong count"
    """num_pages is never negative, and at rest what is listed, isolated and the host's."""
    ACTUAL = "stale actual"
    """At rest `actual` is num_pages."""
    LIVELOCK = "livelock"
    """No fair circle without progress."""
    SPIN = "spin on one CPU"
    """Nor on one processor without preemption."""
    STACK = "stack overflow"
    """The stack of no task is deeper than 16 KiB."""
    ACKNOWLEDGEMENT = "wrong acknowledgement"
    """At most one request a queue, everybody takes his own acknowledgement, and no array changes before it."""
    TEARDOWN = "teardown"
    """Nothing is told after the reset, none is in flight then, and no page is left behind."""
    TARGET = "target missed"
    """If the host's wish stops changing and no OOM occurs, the target is reached."""

    @property
    def slug(self) -> str:
        """Its name for a command line: ``oom-page-listed``."""
        return re.sub(r"[^a-z0-9]+", "-", self.value.lower().replace("'", "")).strip("-")


#: What is said of a broken rule -> the property. Whatever else is raised is `Property.BUG`.
RULES: Mapping[str, Property] = {
    "lost data: ": Property.DATA,
    "pages that are not ": Property.DATA,
    "a page was freed before the host gave it back": Property.DATA,
    "a page was inflated that the host has already": Property.DATA,
    "a page was deflated that the host has not got yet": Property.DATA,
    "balloon_page_dequeue: BUG()": Property.BUG,
    "OOM came back with nothing, and pages were listed": Property.LISTED,
    "OOM came back with nothing, and pages were in hand": Property.IN_HAND,
    "OOM came back with nothing, and pages were in flight": Property.BY_ANOTHER,
    "OOM came back with nothing, and pages were freed by another": Property.BY_ANOTHER,
    "OOM came back with nothing, and pages were isolated": Property.ISOLATED,
    "num_pages is below 0": Property.COUNT,
    "num_pages is not what is listed and isolated, or not what the host has": Property.COUNT,
    "actual is stale": Property.ACTUAL,
    "the target is not reached": Property.TARGET,
    "the driver is gone and the host has pages of it": Property.TEARDOWN,
    "the host was told something after the reset": Property.TEARDOWN,
    "the device was reset with a request in flight": Property.TEARDOWN,
    "a second request on a queue": Property.ACKNOWLEDGEMENT,
    "a task took the acknowledgement of another one": Property.ACKNOWLEDGEMENT,
    "a PFN array changed before the host had read it": Property.ACKNOWLEDGEMENT,
    "kernel stack overflow": Property.STACK,
}


def broken_by(kind: Kind, what: str, *, one_cpu: bool = False) -> Property:
    """The property that a bug breaks."""
    if kind is Kind.DEADLOCK:
        return Property.DEADLOCK
    if kind is Kind.LIVELOCK:
        return Property.SPIN if one_cpu else Property.LIVELOCK
    return next((rule for text, rule in RULES.items() if text in what), Property.BUG)


def shown_by(scenario: Scenario) -> frozenset[Property]:
    """The properties that a scenario would show to be broken."""
    found = {Property.DEADLOCK, Property.BUG, Property.DATA, Property.ACKNOWLEDGEMENT, Property.STACK}
    found.add(Property.SPIN if scenario.bounds.one_cpu else Property.LIVELOCK)
    if "R" in scenario.actors:
        found.add(Property.TEARDOWN)
    by_check = {
        "count": Property.COUNT,
        "actual": Property.ACTUAL,
        "target": Property.TARGET,
        "listed": Property.LISTED,
        "in hand": Property.IN_HAND,
        "in flight": Property.BY_ANOTHER,
        "freed by another": Property.BY_ANOTHER,
        "isolated": Property.ISOLATED,
    }
    return frozenset(found | {by_check[check] for check in scenario.checks})


@dataclass(frozen=True, slots=True)
class Survey:
    """What a program breaks, property by property."""

    broken: Mapping[Property, Bug]
    """The shortest schedule of each."""
    complete: bool
    why: str
    """What stopped the search, if it is not complete."""
    states: int
    transitions: int
    layers: int
    """As in `Verdict`."""
    estimate: int | None
    """As in `Verdict`."""
    seconds: float
    checked: int
    """Operations of real executions that were compared with the learned automata."""


class _Surveying(Search):
    """A search that notes each property's first bug, and goes no further from a state that is broken."""

    def __init__(self, product: Product, limits: Limits) -> None:
        super().__init__(product, limits)
        self.found: dict[Property, Bug] = {}
        self._dead: set[int] = set()

    def _settle(self) -> None:
        """Notes what was found wrong; the first one is the shortest, since states are met layer by layer."""
        kinds = list(Kind)
        for kind, what in sorted(self._wrong, key=lambda wrong: (kinds.index(wrong[0]), wrong[1])):
            states = self._wrong[kind, what]
            self._dead |= states
            property_ = broken_by(kind, what, one_cpu=self.one_cpu)
            if property_ not in self.found:
                decisions = tuple(self.path(states)[0])
                cost = 0 if self.one_cpu else preemptions(self.product, decisions)
                self.found[property_] = Bug(kind, what, Schedule(decisions, cost, "length"))
        self._wrong.clear()

    def _expand(self, begin: int, end: int) -> int:
        size = super()._expand(begin, end)
        for index in self._dead:
            # They must not be part of a circle either.
            self.product.kernel.exclude(index, skip=index >= end)
        size -= sum(index >= end for index in self._dead)
        self._dead.clear()
        self._count()
        return size

    def _ended(self, index: int, state: int) -> None:
        """All that is wrong at an end, not only the first of it."""
        product, world = self.product, self.product.world
        stuck = product.stuck(state)
        if stuck:
            self._bug(Kind.DEADLOCK, product.deadlock_text(stuck, state), index)
            return
        for broken in world.all_broken(product.values(state)):
            self._bug(Kind.AT_REST, broken, index)


def survey(program: Program, limits: Limits = Limits()) -> Survey:  # noqa: B008 - an immutable tuple
    """Searches a program for the shortest schedule that breaks each property.

    Raises:
        Nondeterminism: if the program is no function of what its actors observe.
    """
    found: Survey = started(program, lambda product: _survey(product, limits))
    return found


def _survey(product: Product, limits: Limits) -> Survey:
    began = time.monotonic()
    search = _Surveying(product, limits)
    try:
        if product.sampled is None:
            product.sampled = sample(product)
            product.narrow()
        search = _Surveying(product, limits)
        search.run()
        why = search.stopped
    except TooManyLocalStates as error:
        why = str(error)
    if not why and product.loops:
        circle = livelock(search)
        if circle is not None:
            stem, loop, what = circle
            schedule = Schedule((*stem, *loop), 0, "", loop=len(stem))
            kind = broken_by(Kind.LIVELOCK, what, one_cpu=search.one_cpu)
            search.found[kind] = Bug(Kind.LIVELOCK, what, schedule)
    checked = (product.sampled or 0) + verify(product.automata)
    checked += sum(confirm(product, bug.shortest.decisions) for bug in search.found.values())
    return Survey(
        broken=search.found,
        complete=not why,
        why=why,
        states=search.states,
        transitions=search.transitions,
        layers=len(search.layers),
        estimate=search.estimate() if why and search.layers else None,
        seconds=time.monotonic() - began,
        checked=checked,
    )


def property_named(name: str) -> Property:
    """A property by its slug or as the matrix calls it.

    Raises:
        InvalidArgument: for a name that is neither.
    """
    for property_ in Property:
        if name.lower() in {property_.slug, property_.value.lower()}:
            return property_
    slugs = [property_.slug for property_ in Property]
    near = get_close_matches(name.lower(), slugs, 1, 0.5)
    raise InvalidArgument(
        f"there is no property {name!r}",
        why=f"the properties are {', '.join(slugs)}",
        hint=f"did you mean {near[0]}?"
        if near
        else "balloonctl explore --all shows what each design does with them",
    )


def judge(program: Program, property_: Property, limits: Limits = Limits()) -> Verdict:  # noqa: B008
    """A verdict on one property, whatever else the program breaks.

    PROVED holds up to where the program has failed otherwise.

    Raises:
        Nondeterminism: see `survey`.
    """
    found = survey(program, limits)
    bug = found.broken.get(property_)
    outcome = Outcome.PROVED if found.complete else Outcome.INCOMPLETE
    return Verdict(
        outcome=outcome if bug is None else Outcome.BUG,
        engine="P",
        program=program.name,
        bounds=program.bounds,
        states=found.states,
        transitions=found.transitions,
        seconds=found.seconds,
        bug=bug,
        why="" if bug is not None else found.why,
        layers=found.layers,
        estimate=found.estimate if bug is None else None,
        checked=found.checked,
    )
