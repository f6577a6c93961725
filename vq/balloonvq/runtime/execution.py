"""All actors of a program together, one operation at a time, under a strategy.

The scheduler picks who goes on; whoever is picked applies *its own* operation to the
values of the world and goes on with what it observed. There is no scheduler
greenlet: the decision is taken in the greenlet that has just stopped, which switches
straight to the next one, and not at all if it is itself the next. That makes an
operation a function call, and a change of actors one switch.

Plain Python state of the code under test is made anew for each execution.

Parking: a spinner whose turn wrote nothing, found all values that it read unchanged
and is in the same local state as a turn ago would only do the same again. It is not
enabled until one of those values changes. Product search needs no parking, since there the turn is
a circle in a finite graph; engines without state matching could not end without it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable
from typing import Any, cast

from greenlet import getcurrent, greenlet

from balloonvq.errors import BalloonError
from balloonvq.explore import world as model
from balloonvq.explore.operations import Operation, Raised
from balloonvq.explore.world import CLOCK, World
from balloonvq.runtime import Stopped
from balloonvq.runtime.controlled import (
    BELOW,
    NOWHERE,
    TICK,
    Actor,
    ControlledRuntime,
    Decision,
    Place,
    give_back,
    place_of,
    take_greenlet,
    users_place_of,
)

__all__ = ["Execution", "LogEntry", "error_text", "run_on"]

BELOW.add(__file__)

#: (actor, operation, observed, value before, value after); a tick is (-1, None, None, before, after).
LogEntry = tuple[int, Operation | None, Any, Any, Any]


def run_on(found: list[Decision], execution: Execution) -> Decision:
    """The default policy: the running actor goes on; else the next one by number; time last."""
    running = execution.running
    last = -1 if running is None else running.index
    for decision in found:
        if decision[0] == last:
            return decision
    for decision in found:
        if decision[0] > last:
            return decision
    return found[0]


class Execution(ControlledRuntime):
    """All actors together, under a strategy.

    Args:
        world: the world.
        strategy: called with the possible decisions (at least one; never called when
            nobody can go on) and this execution; returns one of them. None is the default
            policy `run_on`, for speed without recording `decisions`.
        log: keep every operation in `log`.
        places: keep file and line of every operation in `places`, and the innermost line of a file of the
            user in `users_places`.
        stop_on_error: end the execution when an actor raises; otherwise that actor is dead, with
            its locks held, and the others go on.
        stop_on_broken: end the execution at a scheduling point where an invariant of every state does not
            hold, whose name `broken` says.
    """

    def __init__(
        self,
        world: World,
        strategy: Callable[[list[Decision], Execution], Decision] | None = None,
        *,
        log: bool = False,
        places: bool = False,
        stop_on_error: bool = True,
        stop_on_broken: bool = False,
    ) -> None:
        self.strategy = strategy or run_on
        self.log: list[LogEntry] | None = [] if log or places else None
        self.places: list[Place] | None = [] if places else None
        self.users_places: list[Place] = []
        self.decisions: list[Decision] = []
        self.steps = 0
        self.choice = 0
        #: rest, bound, error or broken.
        self.ending = "rest"
        self.broken: str | None = None
        self.running: Actor | None = None
        self._starting = False
        self._stop_on_error = stop_on_error
        self._one_cpu = world.bounds.one_cpu
        self._explore_time = world.bounds.explore_time
        self._careful = world.spins or self.log is not None
        self._steps_max = world.program.steps_max
        if strategy is None and not self._careful:
            self.perform = self._perform_on  # type: ignore[method-assign]
        self._live: list[Actor] = []
        super().__init__(world)
        self._stop_on_broken = stop_on_broken and not all(one.at_rest for one in world.invariants)

    def perform(self, operation: Operation, anchor: Hashable = None) -> Any:
        actor = self.current
        if actor is None:
            return ControlledRuntime.perform(self, operation)
        if self.places is not None:
            frame = sys._getframe(1)
            actor.where = place_of(frame)
            if not self._shipped:
                actor.users_where = users_place_of(frame)
        if operation.visible:
            actor.pending = operation
            if anchor is not None or operation in self._spins_on:
                # Not where it was a turn ago, or not known to be: no spin.
                if anchor is None or anchor != actor.anchor:
                    actor.wrote = True
                actor.anchor = anchor
            following = None if self._starting else self._dispatch()
            if following is not actor:
                (self._main if following is None else following.running).switch()  # type: ignore[union-attr]
                if self.ended:
                    raise Stopped
        values = self.values
        index = operation.object
        before = values[index]
        after, observed = operation.transition(before, actor.index)  # type: ignore[misc]
        if operation.options:
            observed = self.choice
        values[index] = after
        if self._careful:
            self._note(actor, operation, observed, before, after)
        if observed.__class__ is Raised:
            raise observed.error
        return observed

    def _perform_on(self, operation: Operation, anchor: Hashable = None) -> Any:
        """`perform` under the default policy: whoever runs goes on as long as it can, without a decision."""
        actor = self.current
        if actor is None or self._starting or not operation.direct or self.steps >= self._steps_max:
            return Execution.perform(self, operation, anchor)
        values = self.values
        index = operation.object
        result = operation.transition(values[index], actor.index)
        if result is None:
            return Execution.perform(self, operation, anchor)
        self.steps += 1
        values[index], observed = result
        if observed.__class__ is Raised:
            raise observed.error
        return observed

    def _note(self, actor: Actor, operation: Operation, observed: Any, before: Any, after: Any) -> None:
        """What a turn of a spinner has touched, and the log."""
        if operation in self._spins_on:
            actor.reads = {}
            actor.wrote = False
        elif after != before:
            actor.wrote = True
        else:
            actor.reads[operation.object] = before
        if self.log is not None:
            self.log.append((actor.index, operation, observed, before, after))
            if self.places is not None:
                self.places.append(actor.where)
                self.users_places.append(actor.users_where)

    def parked(self, actor: Actor) -> bool:
        """Whether this actor, about to relax, would only do again what it did."""
        values = self.values
        return not actor.wrote and all(values[index] == value for index, value in actor.reads.items())

    def enabled(self) -> list[Decision]:
        """All possible decisions, in the order of the actors, the clock last."""
        found: list[Decision] = []
        values = self.values
        for actor in self._live:
            operation = actor.pending
            if operation.simple:  # type: ignore[union-attr]
                found.append(actor.plain)
            elif operation.blocks:  # type: ignore[union-attr]
                value = values[operation.object]  # type: ignore[union-attr]
                if actor.asked is not operation or actor.asked_of is not value:
                    # Values are never changed in place, so the answer holds as long as it is this one.
                    actor.asked, actor.asked_of = operation, value
                    actor.blocked = operation.transition(value, actor.index) is None  # type: ignore[union-attr]
                if not actor.blocked:
                    found.append(actor.plain)
            elif operation.options:  # type: ignore[union-attr]
                found.extend((actor.index, option) for option in range(operation.options))  # type: ignore[union-attr]
            elif not self.parked(actor):
                found.append(actor.plain)
        if values[CLOCK][1] and (self._explore_time or self._relaxing(found)):
            found.append(TICK)
        return self._mine(found) if self._one_cpu else found

    def possible(self, found: list[Decision]) -> list[Decision]:
        """The enabled decisions, and the turns of parked spinners, which change nothing."""
        parked = [
            actor.plain
            for actor in self._live
            if actor.pending in self._spins_on and actor.plain not in found
        ]
        return [*found, *parked]

    def _relaxing(self, found: list[Decision]) -> bool:
        """Whether whoever can go on is at most about to relax: then the clock can, too."""
        return all(self.actors[index].pending in self._spins_on for index, _ in found)

    def _mine(self, found: list[Decision]) -> list[Decision]:
        """On one processor: the running actor's decisions, unless it blocks or gives way."""
        running = self.running
        if running is None or running.finished or running.pending is None or running.pending.gives_way:
            return found
        return [decision for decision in found if decision[0] == running.index] or found

    def _dispatch(self) -> Actor | None:
        """Decides who goes on; None ends the execution."""
        while True:
            if self._stop_on_broken:
                self.broken = self.world.broken(self.values, at_rest=False)
                if self.broken is not None:
                    self.ending = "broken"
                    return None
            found = self.enabled()
            if not found:
                return None
            if self.steps >= self._steps_max:
                self.ending = "bound"
                return None
            try:
                decision = self.strategy(found, self)
            except BaseException as error:
                self.failure = error
                return None
            self.steps += 1
            self.decisions.append(decision)
            index = decision[0]
            if index >= 0:
                self.current = self.running = actor = self.actors[index]
                self.choice = decision[1]
                return actor
            self._tick()

    def _tick(self) -> None:
        after = model.tick(self.values, absolute=self.world.bounds.absolute_time)
        assert after is not None
        if self.log is not None:
            self.log.append((-1, None, None, self.values[CLOCK], after[CLOCK]))
            if self.places is not None:
                self.places.append(("clock", 0))
                self.users_places.append(NOWHERE)
        self.values = after

    def _job(self, actor: Actor) -> Callable[[], greenlet]:
        def job() -> greenlet:
            self._run_actor(actor)
            actor.pending = None
            if self.ended or self._starting:
                return self._main
            self._live.remove(actor)
            if self.failure is not None:
                return self._main
            if actor.error is not None and self._stop_on_error:
                self.ending = "error"
                return self._main
            following = self._dispatch()
            return self._main if following is None else cast("greenlet", following.running)

        return job

    def run(self) -> Execution:
        """Runs to the end; returns itself.

        Raises:
            Revised: if a fact was found that earlier executions did not know.
            Nondeterminism: if the program is not a function of what it observes.
        """
        self._main = getcurrent()
        self._live = list(self.actors)
        self._starting = True
        for actor in self.actors:
            self.current = actor
            actor.running = take_greenlet()
            actor.running.switch(self._job(actor))
            if self.failure is not None:
                break
        self._starting = False
        self._live = [actor for actor in self._live if not actor.finished]
        if self.failure is None:
            if self._stop_on_error and any(actor.error is not None for actor in self.actors):
                self.ending = "error"
            else:
                following = self._dispatch()
                if following is not None:
                    cast("greenlet", following.running).switch()
        self._end()
        if self.failure is not None:
            raise self.failure
        return self

    def _end(self) -> None:
        """Unwinds whoever is blocked and takes all greenlets back."""
        self.ended = True
        # Whatever the code does while it unwinds touches nothing any more.
        self.perform = self._perform_ended  # type: ignore[method-assign]
        for actor in self.actors:
            if actor.running is None:
                continue
            if not actor.finished:
                pending = actor.pending
                self.current = actor
                actor.running.throw(Stopped)
                # It has unwound, which says nothing about where the execution left it.
                actor.finished = False
                actor.error = None
                actor.pending = pending
            give_back(actor.running)
            actor.running = None
        self.current = None

    # -- reports -------------------------------------------------------------

    @property
    def outcome(self) -> tuple[Any, ...]:
        """The end of this execution as a value: objects, then for each actor what became of it."""
        return (tuple(self.values), tuple(self.fate(actor) for actor in self.actors))

    def fate(self, actor: Actor) -> str:
        """Finished, an error, or what it waits for."""
        if actor.finished:
            return "finished" if actor.error is None else repr(Raised(actor.error))
        return repr(actor.pending)

    @property
    def stuck(self) -> list[Actor]:
        """The actors that wait for ever and must not; spinners included."""
        if self.world.excused(self.values):
            return []
        return [
            actor
            for actor in self.actors
            if not actor.finished
            and not actor.daemon
            and not (actor.pending is not None and actor.pending.idle)
        ]

    @property
    def spinning(self) -> list[Actor]:
        """The parked spinners at the end."""
        return [actor for actor in self.actors if not actor.finished and actor.pending in self._spins_on]


def error_text(error: BaseException) -> str:
    """An actor's error in one line."""
    why = error.why if isinstance(error, BalloonError) else ""
    text = f"{type(error).__name__}: {error}"
    return f"{text} ({why})" if why else text
