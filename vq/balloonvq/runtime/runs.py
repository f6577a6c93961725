"""One actor of a program alone, told by its caller what each of its operations observes.

Runs of an actor may stand in the same objects, those that the program has built, as long as
they leave them as they were built, which is looked at wherever one stops. One that changes them is put into
objects of its own by its caller (`balloonvq.explore.automaton`).
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, cast

from greenlet import getcurrent, greenlet

from balloonvq.explore.local_state import Reach
from balloonvq.explore.operations import Operation, Raised
from balloonvq.explore.world import World
from balloonvq.runtime import Stopped
from balloonvq.runtime.controlled import (
    BELOW,
    NOWHERE,
    Actor,
    ControlledMutex,
    ControlledRuntime,
    Place,
    give_back,
    place_of,
    take_greenlet,
    users_place_of,
)

__all__ = ["Fed", "Foreseen", "Run"]

BELOW.add(__file__)

#: An operation that an actor is going to perform, where, and what it is to observe.
Foreseen = tuple[Operation, Place, Any]


class Fed(ControlledRuntime):
    """What a program has built, for actors that run in it one at a time, see `Run`.

    Args:
        world: the world.
    """

    def __init__(self, world: World) -> None:
        #: Who runs, or ran last.
        self.run: Run | None = None
        self._as_built: Reach | None = None
        super().__init__(world)

    def perform(self, operation: Operation, anchor: Hashable = None) -> Any:
        run = self.run
        if run is None:
            return ControlledRuntime.perform(self, operation)
        unwinding = sys.exc_info()[1]
        if isinstance(unwinding, KeyboardInterrupt):
            # What the code does on its way out of with and finally, after Ctrl-C, is no step of the actor.
            raise unwinding
        actor = run.actor
        if actor.turned:
            actor.turned = False
            anchor = "turn"
        actor.pending = operation
        frame = sys._getframe(1)
        where = place_of(frame)
        ahead = run.ahead
        if ahead and operation is ahead[-1][0] and where == ahead[-1][1]:
            observed = ahead.pop()[2]
        else:
            if anchor is None and run.anchored and not ahead:
                state = self._fingerprint(actor, frame)
                run.told = state is not None
                if state is not None:
                    anchor = (state, tuple(mutex.name for mutex in actor.held))
            run.at = (operation, anchor, where)
            if not self._shipped:
                run.users_place = users_place_of(frame)
            self._main.switch()
            if self.ended:
                raise Stopped
            observed = run.fed
        if observed.__class__ is Raised:
            raise observed.error
        return observed

    def _local_state(self) -> Hashable:
        return ControlledRuntime._local_state(self) if cast("Run", self.run).anchored else None

    def _roots(self, actor: Actor) -> list[object]:
        """All functions that are known at the start by content: nobody but this actor changes anything here."""
        world = self.world
        left_out = world.program.statistics
        if world.known_functions is None:
            functions = [other.function for other in self.actors]
            all_known = Reach(functions, left_out, {}).known()
            world.known_functions = {
                other.index
                for other in self.actors
                if all_known or Reach([other.function], left_out, {}).known()
            }
        return [
            actor.function,
            *(other.function for other in self.actors if other.index in world.known_functions),
            *self.kept,
        ]

    # -- several runs in the same objects -------------------------------------

    def share(self, index: int) -> bool:
        """Lets many runs of an actor stand in what was built; False if not all that they may change can be told.

        To be called before the first of them begins. None of them sees another one, as long as whatever one
        changes is put back before another one goes on.
        """
        actor = self.actors[index]
        reach = Reach(self._roots(actor), self.world.program.statistics, self.world.reached)
        if reach.known() and len(self.world.known_functions or ()) == len(self.actors):
            self._as_built = reach
            # It is walked anew when something has changed.
            actor.reach = copy.copy(reach)
        return self._as_built is not None

    def changed(self, actor: Actor) -> bool:
        """Whether anything is not as it was built, if several runs of this actor stand in it."""
        if self._as_built is None:
            return False
        reach = cast("Reach", actor.reach)
        run = cast("Run", self.run)
        if not run.told:
            reach.look()
        return not reach.same(self._as_built)

    def put_back(self) -> bool:
        """Puts everything back to what was built, if it is not as it was; False if that cannot be done."""
        built = self._as_built
        if built is None or not (built.unchanged() or built.put_back()):
            return False
        cast("Run", self.run).actor.reach = copy.copy(built)
        return True

    def enter(self, run: Run) -> None:
        """Lets a run go on in the greenlet that it is switched to next; it comes back here."""
        self.run = run
        self.current = run.actor
        self._main = getcurrent()

    def unwind(self, running: greenlet) -> None:
        """Ends the actor of the run that has entered."""
        self.ended = True
        self.perform = self._perform_ended  # type: ignore[method-assign]
        try:
            running.throw(Stopped)
        finally:
            self.ended = False
            del self.perform

    def live(self, actor: Actor) -> greenlet:
        """An actor's life; where to go on after it."""
        self._run_actor(actor)
        return self._main

    def failed(self) -> BaseException | None:
        """Why the last run cannot go on, if it cannot."""
        failure, self.failure = self.failure, None
        return failure


class Run:
    """One actor that runs alone; its caller says what each operation observes.

    Args:
        fed: what it runs in.
        index: which actor.
        anchored: say in `at` what tells the first local state from others.
        ahead: as for `feed`; the first of them is where the actor begins.
    """

    __slots__ = (
        "_held", "_pending", "_running", "_stack_bytes", "actor", "ahead", "anchored", "at", "error", "fed",
        "finished", "runtime", "told", "users_place",
    )  # fmt: skip

    def __init__(
        self, fed: Fed, index: int, *, anchored: bool = False, ahead: Iterable[Foreseen] = ()
    ) -> None:
        self.runtime = fed
        self.actor = fed.actors[index]
        self.anchored = anchored
        #: (operation, anchor, place) that the actor has stopped at; the operation is None at the end.
        self.at: tuple[Operation | None, Hashable, Place] = (None, None, NOWHERE)
        #: The innermost line there of a file of the user.
        self.users_place: Place = NOWHERE
        #: What is still ahead, the next one last.
        self.ahead = [*ahead][::-1]
        self.fed: Any = None
        self.finished = False
        #: Whether the local state was looked at where it stands.
        self.told = False
        #: What the actor has raised.
        self.error: BaseException | None = None
        self._held: list[ControlledMutex] = []
        self._pending: Operation | None = None
        self._stack_bytes = 0
        self._running: greenlet | None = take_greenlet()
        self._go_on(self._begin)

    @property
    def holds(self) -> bool:
        """Whether the actor holds a mutex."""
        return bool(self._held)

    @property
    def changed(self) -> bool:
        """Whether the actor has changed anything that other runs stand in."""
        return self.runtime.changed(self.actor)

    def feed(self, observed: Any, *, anchored: bool = False, ahead: Sequence[Foreseen] = ()) -> None:
        """Lets the actor go on to its next operation.

        Args:
            observed: what its operation observes.
            anchored: say in `at` what tells the local state there from others. It is the slow part.
            ahead: operations that it then performs without stopping. Where it is about to do anything else it
                stops, and what is left of them stays in `ahead`.
        """
        self.fed = observed
        self.anchored = anchored
        self.ahead = [*ahead][::-1]
        self._go_on()

    def close(self) -> None:
        """Ends the actor."""
        running, self._running = self._running, None
        if running is None:
            return
        if not (self.finished or running.dead):
            self._enter()
            self.runtime.unwind(running)
        give_back(running)

    def _begin(self) -> greenlet:
        following = self.runtime.live(self.actor)
        self.at = (None, None, NOWHERE)
        self.users_place = NOWHERE
        return following

    def _enter(self) -> None:
        actor = self.actor
        actor.held = self._held
        actor.pending = self._pending
        actor.stack_bytes = self._stack_bytes
        actor.turned = False
        actor.finished = False
        actor.error = None
        self.runtime.enter(self)

    def _go_on(self, *job: Callable[[], greenlet]) -> None:
        self._enter()
        self.told = False
        actor = self.actor
        try:
            cast("greenlet", self._running).switch(*job)
        finally:
            # Ctrl-C may come just when the actor is back.
            self._pending = actor.pending
            self._stack_bytes = actor.stack_bytes
            self.finished = actor.finished
            self.error = actor.error
        failure = self.runtime.failed()
        if failure is not None:
            self.close()
            raise failure
