"""Engine P: the product of the learned automata, searched with state matching.

What is explored: all states that any schedule reaches, within the program's `Bounds`.
Why sound and complete: the tables (`balloonvq.explore.tables`) are the operations' own transition functions; an
actor is a function of what it observed (checked, `balloonvq.explore.automaton`, `balloonvq.explore.comparison`);
states are matched exactly (fields, no hashes), and the search (`balloonvq.explore.search`) ends when no new
state is found. Limits are those of `explore`: states and seconds; hitting one
gives INCOMPLETE.

Livelocks are looked for when everything else is proven: see `balloonvq.explore.liveness`.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from balloonvq.explore.automaton import TooManyLocalStates, verify
from balloonvq.explore.comparison import confirm, sample
from balloonvq.explore.search import Limits, OnLayer, Search, Wrong, fewest_preemptions, preemptions
from balloonvq.explore.tables import Product, Widened
from balloonvq.explore.verdict import Bug, Findings, Kind, Outcome, Schedule, Verdict
from balloonvq.explore.world import FROM_RUNTIME, Nondeterminism, Program, Revised, Unattended, World

if TYPE_CHECKING:
    from balloonvq.explore.checkpoint import Checkpoint

__all__ = ["Keeping", "explore", "findings", "started"]


#: New objects after which Python looks for circles of them; with its own few hundred that is a sixth of the time.
_OBJECTS: Final = 50_000

#: Times that a search may start again because a fact was found or a field was too narrow.
_STARTS_MAX: Final = 200


def started(program: Program, work: Callable[[Product], Any]) -> Any:
    """Calls work(product), again whenever a fact or a width was found."""
    before = gc.get_threshold()
    gc.set_threshold(max(_OBJECTS, before[0]) if before[0] else 0, *before[1:])
    # What there is by now is not looked through again and again: of a long session it is more than all that is made here.
    freezing = gc.get_freeze_count() == 0
    if freezing:
        gc.freeze()
    try:
        return _started(program, work)
    finally:
        if freezing:
            gc.unfreeze()
        # Now that the product is out of reach: Python looks for circles at once, and what it finds in use it keeps long.
        gc.set_threshold(*before)


def _started(program: Program, work: Callable[[Product], Any]) -> Any:
    product = Product(World(program))
    try:
        for _ in range(_STARTS_MAX):
            try:
                if product.ready:
                    product.grow()
                else:
                    product.start()
                return work(product)
            except Widened:
                continue
            except Unattended:
                product.close()
                product = Product(World(program))
            except Revised:
                product.ready = False
    finally:
        product.close()
    raise Nondeterminism(f"{program.name} keeps changing while it is explored", hint=FROM_RUNTIME)


class Keeping(NamedTuple):
    """A search on disk."""

    identity: str
    """Of what is explored, see `balloonvq.explore.checkpoint.identity`."""
    path: Path | None
    """Where it is written every `search.SAVE_S` seconds, when it is given up, and at Ctrl-C."""
    resume: Checkpoint | None
    """What it goes on from."""


def explore(
    program: Program,
    limits: Limits = Limits(),  # noqa: B008 - an immutable tuple
    *,
    on_layer: OnLayer | None = None,
    keeping: Keeping | None = None,
) -> Verdict:
    """Explores a program completely, or to its first bug.

    Args:
        program: what.
        limits: where to give up.
        on_layer: told how far the search is after each layer.
        keeping: where the search is kept on disk, and where it goes on from.

    Raises:
        InvalidArgument: if the program has no actors, or it cannot go on from that file.
        Nondeterminism: if the program is no function of what its actors observe.
    """
    if keeping is not None and keeping.resume is not None:
        keeping.resume.check(program, keeping.identity)

    begun = time.monotonic()

    def work(product: Product) -> Verdict:
        return _explore(product, limits, on_layer, keeping or Keeping("", None, None), begun)

    found: Verdict = started(program, work)
    return found


def _explore(
    product: Product, limits: Limits, on_layer: OnLayer | None, keeping: Keeping, begun: float
) -> Verdict:
    from balloonvq.explore.liveness import livelock

    search = Search(product, limits, on_layer)

    def verdict(outcome: Outcome, *, bug: Bug | None = None, why: str = "", checked: int = 0) -> Verdict:
        return Verdict(
            outcome=outcome,
            engine="P",
            program=product.world.program.name,
            bounds=product.world.bounds,
            states=search.states,
            transitions=search.transitions,
            seconds=time.monotonic() - begun,
            bug=bug,
            why=why,
            layers=len(search.layers),
            estimate=search.estimate() if outcome is Outcome.INCOMPLETE else None,
            checked=checked,
        )

    try:
        if product.sampled is None:
            if keeping.resume is not None:
                keeping.resume.prepare(product)
            # Before the search: most of what makes one start again shows in real executions.
            product.sampled = sample(product)
            if keeping.resume is None:
                product.narrow()
        search = Search(product, limits, on_layer)
        wrong = _searched(search, keeping)
    except TooManyLocalStates as error:
        return verdict(Outcome.INCOMPLETE, why=str(error))

    with search.saved_at_interrupt():
        checked = (product.sampled or 0) + verify(product.automata)
        if wrong is not None:
            bug = _describe(product, search, wrong, limits)
            checked += confirm(product, bug.shortest.decisions)
            if bug.fewest_preemptions is not None:
                checked += confirm(product, bug.fewest_preemptions.decisions)
            return verdict(Outcome.BUG, bug=bug, checked=checked)
        if search.stopped:
            return verdict(Outcome.INCOMPLETE, why=search.stopped, checked=checked)
        if product.loops:
            circle = livelock(search)
            if circle is not None:
                stem, loop, what = circle
                decisions = tuple(stem + loop)
                cost = 0 if search.one_cpu else preemptions(product, decisions)
                schedule = Schedule(decisions, cost, "", loop=len(stem))
                checked += confirm(product, decisions)
                return verdict(Outcome.BUG, bug=Bug(Kind.LIVELOCK, what, schedule), checked=checked)
        return verdict(Outcome.PROVED, checked=checked)


def _searched(search: Search, keeping: Keeping) -> Wrong | None:
    """Runs a search, from where an earlier one was left, kept on disk where that is wanted."""
    product, path = search.product, keeping.path
    search.resume(product.left)
    if path is not None:
        from balloonvq.explore.checkpoint import write

        search.on_save = lambda search: write(path, search, keeping.identity)
    try:
        with search.saved_at_interrupt():
            wrong = search.run()
    except Widened:
        product.left = search.layers
        raise
    if search.stopped:
        search.save()
    return wrong


def _describe(product: Product, search: Search, wrong: Wrong, limits: Limits) -> Bug:
    decisions = tuple(search.path(wrong.states)[0])
    if search.one_cpu:
        return Bug(wrong.kind, wrong.what, Schedule(decisions, 0, "length"))
    shortest = Schedule(decisions, preemptions(product, decisions), "length")
    if shortest.preemptions == 0:
        return Bug(wrong.kind, wrong.what, shortest, Schedule(decisions, 0, "preemptions"))
    rest = Limits(limits.states, min(limits.seconds, 20.0))
    best = fewest_preemptions(product, wrong.kind, wrong.what, rest)
    if best is None:
        return Bug(wrong.kind, wrong.what, shortest)
    return Bug(wrong.kind, wrong.what, shortest, Schedule(best[0], best[1], "preemptions"))


def findings(program: Program, limits: Limits = Limits()) -> Findings:  # noqa: B008
    """All ends, livelocks and races of a program, for comparing engines."""
    found: Findings = started(program, lambda product: _findings(product, limits))
    return found


def _findings(product: Product, limits: Limits) -> Findings:
    from balloonvq.explore.liveness import fair_circles

    gathered = Findings()
    search = Search(product, limits, gather=gathered)
    search.run()
    gathered.complete = not search.stopped
    if product.loops:
        for component in fair_circles(search):
            gathered.livelocks.update(tuple(product.values(search.state(index))) for index in component)
    return gathered
