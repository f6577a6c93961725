"""The runtime under a controlled scheduler: one operation at a time, in any order one likes.

Each actor is a greenlet. A primitive hands the scheduler an `Operation`; the
scheduler picks who goes on; whoever is picked applies *its own* operation to the
values of the world and goes on with what it observed. There is no scheduler
greenlet: the decision is taken in the greenlet that has just stopped, which switches
straight to the next one, and not at all if it is itself the next. That makes an
operation a function call, and a change of actors one switch.

Two ways to run:

* `Execution`: all actors, with a strategy that decides at every scheduling point;
* `Run`: one actor alone, told by its caller what each of its operations observes. An
  actor is a deterministic function of what it observes, so this is enough to learn
  all that it can ever do (`balloonvq.explore.automaton`).

Plain Python state of the code under test is made anew for each execution, by
calling the program's `build`. Runs of one actor may stand in the same objects as long as
they leave them as they were built, which is looked at wherever one stops (`Fed`). What `build` itself does with
mutexes and words happens before the first state, in one go.

Parking: a spinner whose turn wrote nothing, found all values that it read unchanged
and is in the same local state as a turn ago would only do the same again. It is not
enabled until one of those values changes. Product search needs no parking, since there the turn is
a circle in a finite graph; engines without state matching could not end without it.
"""

from __future__ import annotations

import contextlib
import copy
import sys
import threading
from collections.abc import Callable, Hashable, Iterable, Sequence
from types import CodeType, FrameType, TracebackType
from typing import Any, Final, TypeVar, cast

from greenlet import getcurrent, greenlet

from balloonvq.errors import BalloonError, InternalError, InvalidArgument
from balloonvq.explore import world as model
from balloonvq.explore._local_state import place
from balloonvq.explore.local_state import Atom, Reach, fingerprint
from balloonvq.explore.operations import Operation, Raised, Transition
from balloonvq.explore.world import (
    CLOCK,
    NOTHING,
    Invariant,
    Nondeterminism,
    ObjectSpec,
    Revised,
    SharedObject,
    World,
)
from balloonvq.runtime import Runtime, Stopped, WaitQueue

__all__ = [
    "Actor",
    "ControlledRuntime",
    "Decision",
    "Execution",
    "Fed",
    "Foreseen",
    "LogEntry",
    "Place",
    "Run",
]

T = TypeVar("T")

#: Who goes on, and with which outcome of a choice.
Decision = tuple[int, int]
#: The clock goes on.
TICK: Final[Decision] = (-1, 0)
#: (actor, operation, observed, value before, value after); a tick is (-1, None, None, before, after).
LogEntry = tuple[int, Operation | None, Any, Any, Any]
#: file and line of the code that called a primitive.
Place = tuple[str, int]
#: An operation that an actor is going to perform, where, and what it is to observe.
Foreseen = tuple[Operation, Place, Any]

#: Files whose frames are no place in somebody's design.
_OWN: Final = frozenset({__file__})

#: Files below a design: a step is shown at the line that asked for it, the with statement of a
#: contextmanager included. A model adds its own.
BELOW: Final[set[str]] = {__file__, contextlib.__file__}


class Actor(Atom):
    """One actor in one execution; the `Task` of its function."""

    __slots__ = (
        "anchor",
        "asked",
        "asked_of",
        "blocked",
        "daemon",
        "error",
        "finished",
        "function",
        "held",
        "index",
        "name",
        "pending",
        "plain",
        "reach",
        "reads",
        "repeats",
        "role",
        "running",
        "stack_bytes",
        "turned",
        "where",
        "wrote",
    )

    def __init__(
        self, index: int, name: str, role: str, function: Callable[[], object], *, daemon: bool, repeats: bool
    ) -> None:
        self.index = index
        self.name = name
        self.role = role
        self.function = function
        self.daemon = daemon
        self.repeats = repeats
        self.plain: Decision = (index, 0)
        self.pending: Operation | None = None
        self.running: greenlet | None = None
        self.finished = False
        self.error: BaseException | None = None
        self.held: list[ControlledMutex] = []
        self.reads: dict[int, Any] = {}
        self.stack_bytes = 0
        self.wrote = True
        self.anchor: Hashable = None
        self.turned = False
        self.where: Place = ("?", 0)
        self.reach: Reach | None = None
        #: The operation and the value of which `blocked` says whether it blocks.
        self.asked: Operation | None = None
        self.asked_of: Any = None
        self.blocked = False


class ControlledMutex(Atom):
    """See `balloonvq.runtime.Mutex`."""

    __slots__ = ("_lock", "_runtime", "_trylock", "_unlock", "name", "spec")

    def __init__(self, runtime: ControlledRuntime, spec: ObjectSpec) -> None:
        self.name = spec.name
        self.spec = spec
        self._runtime = runtime
        if spec.fixed is None:
            world = runtime.world
            spec.fixed = (
                world.operation(spec, "lock", model.lock, blocks=True),
                world.operation(spec, "trylock", model.trylock),
                world.operation(spec, "unlock", model.unlock),
            )
        self._lock, self._trylock, self._unlock = spec.fixed

    def lock(self) -> None:
        runtime = self._runtime
        runtime.perform(self._lock)
        if runtime.current is not None:
            runtime.current.held.append(self)

    def trylock(self) -> bool:
        runtime = self._runtime
        if not self.spec.watched:
            runtime.revise(self.spec)
        if not runtime.perform(self._trylock):
            return False
        if runtime.current is not None:
            runtime.current.held.append(self)
        return True

    def unlock(self) -> None:
        runtime = self._runtime
        if runtime.ended:
            return
        runtime.perform(self._unlock)
        if runtime.current is not None:
            runtime.current.held.remove(self)

    def held_by_me(self) -> bool:
        current = self._runtime.current
        return current is not None and self in current.held

    __enter__ = lock

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.unlock()


class ControlledShared(Atom):
    """See `balloonvq.runtime.Shared`."""

    __slots__ = ("_guard", "_runtime", "name", "spec")

    def __init__(self, runtime: ControlledRuntime, spec: ObjectSpec, guard: str | None) -> None:
        self.name = spec.name
        self.spec = spec
        self._runtime = runtime
        self._guard = guard

    def _do(self, kind: str, make: Callable[..., Any], argument: Hashable, *, writes: bool) -> Any:
        runtime = self._runtime
        guarded, open_ = (False, False) if self._guard is None else runtime.guarding(self._guard)
        operation = self.spec.operations.get((kind, argument, guarded))
        if operation is None:
            transition = make(argument) if writes else make
            operation = runtime.world.operation(
                self.spec, kind, transition, argument=argument, writes=writes, guarded=guarded, open_=open_
            )
        return runtime.perform(operation)

    @property
    def value(self) -> int:
        return cast("int", self._do("read", model.read, None, writes=False))

    @value.setter
    def value(self, value: int) -> None:
        self._do("write", model.write, value, writes=True)

    def add(self, delta: int) -> int:
        return cast("int", self._do("add", model.add, delta, writes=True))


class Counter(Atom):
    """A shared word that only counts: no operation, no part of any state. Always 0 to its readers."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    @property
    def value(self) -> int:
        return 0

    @value.setter
    def value(self, value: int) -> None:
        del value

    def add(self, delta: int) -> int:
        del delta
        return 0


class ControlledWaitQueue(Atom):
    """See `balloonvq.runtime.WaitQueue`: the kernel's four steps, each an operation."""

    __slots__ = ("_enqueue", "_finish", "_runtime", "_schedule", "_wake", "name", "spec")

    def __init__(self, runtime: ControlledRuntime, spec: ObjectSpec) -> None:
        self.name = spec.name
        self.spec = spec
        self._runtime = runtime
        if spec.fixed is None:
            world = runtime.world
            spec.fixed = (
                world.operation(spec, "enqueue", model.enqueue),
                world.operation(spec, "schedule", model.schedule, blocks=True, gives_way=True),
                world.operation(spec, "finish", model.finish),
                world.operation(spec, "wake", model.wake),
            )
        self._enqueue, self._schedule, self._finish, self._wake = spec.fixed

    def attach(self, fd: int) -> None:
        self._runtime.interrupts.setdefault(fd, []).append(self.wake_all)

    def wake_all(self) -> None:
        self._runtime.perform(self._wake)

    def wait_until(self, condition: Callable[[], T], timeout_ns: int | None = None) -> T:
        runtime = self._runtime
        if timeout_ns is not None:
            runtime.arm(timeout_ns, self.spec.index)
        anchor: Hashable = None
        try:
            while True:
                runtime.perform(self._enqueue, anchor)
                value = condition()
                if value:
                    return value
                if not runtime.perform(self._schedule):
                    return condition()
                # The condition was false and changed nothing: the actor is where it was on entry.
                anchor = "again"
        finally:
            if not runtime.ended:
                runtime.perform(self._finish)
                if timeout_ns is not None:
                    runtime.disarm()


class ControlledWork(Atom):
    """See `balloonvq.runtime.Work`: an actor of its own that takes, runs, and is done.

    Where somebody wants to know that it has come to rest, its end looks at whether the item is
    queued again. That does not commute with queueing then and is a scheduling point, called "rest".
    """

    __slots__ = (
        "_at_rest",
        "_done",
        "_queue",
        "_read",
        "_runtime",
        "_take",
        "name",
        "spec",
        "task",
    )

    def __init__(
        self,
        runtime: ControlledRuntime,
        name: str,
        role: str,
        function: Callable[[], None],
        spec: ObjectSpec,
        at_rest: WaitQueue | None,
    ) -> None:
        world = runtime.world
        self.name = spec.name
        self.spec = spec
        self._runtime = runtime
        self._at_rest = at_rest
        self._queue = world.operation(spec, "queue", model.work_queue)
        self._take = world.operation(spec, "take", model.work_take, blocks=True, idle=True)
        self._done = (
            world.operation(spec, "done", model.work_done)
            if at_rest is None
            else world.operation(spec, "rest", model.work_rest)
        )
        self._read = world.operation(spec, "read", model.read, writes=False)

        def turn() -> None:
            # In a closure, so that what the function works on can be told from the actor's.
            self._turn(function)

        self.task = runtime.spawn(name, role, turn, repeats=True)

    def _turn(self, function: Callable[[], None]) -> None:
        runtime = self._runtime
        runtime.perform(self._take)
        function()
        rests = runtime.perform(self._done)
        if self._at_rest is not None and rests:
            self._at_rest.wake_all()

    def queue(self) -> None:
        self._runtime.perform(self._queue)

    def nudge(self) -> None:
        """Nothing: an interrupt queues the item in its own step here."""

    @property
    def pending(self) -> bool:
        if not self.spec.watched:
            self._runtime.revise(self.spec)
        return cast("int", self._runtime.perform(self._read)) != 0


class ControlledObject(Atom):
    """A `SharedObject` in an execution; `apply` is one atomic step."""

    __slots__ = ("_runtime", "declaration", "name", "spec")

    def __init__(self, runtime: ControlledRuntime, spec: ObjectSpec, declaration: SharedObject) -> None:
        self.name = spec.name
        self.spec = spec
        self.declaration = declaration
        self._runtime = runtime

    def apply(self, operation: str, *arguments: Hashable) -> Any:
        """Performs one declared operation and returns its result."""
        runtime = self._runtime
        declaration = self.declaration
        guarded = open_ = False
        if declaration.guard is not None:
            guarded, open_ = runtime.guarding(declaration.guard)
        found = self.spec.operations.get((operation, arguments, guarded))
        if found is None:
            blocks = operation in declaration.blocks
            found = runtime.world.operation(
                self.spec,
                operation,
                self._transition(operation, arguments),
                argument=arguments,
                blocks=blocks,
                writes=operation not in declaration.reads,
                idle=operation in declaration.idle,
                guarded=guarded and not blocks,
                open_=open_,
            )
        return runtime.perform(found)

    def _transition(self, operation: str, arguments: tuple[Hashable, ...]) -> Transition:
        function = self.declaration.operations.get(operation)
        if function is None:
            raise InvalidArgument(
                f"{self.name} has no operation {operation!r}",
                why=f"it has {', '.join(sorted(self.declaration.operations))}",
            )
        personal = operation in self.declaration.personal
        pure = operation in self.declaration.reads

        def transition(value: Any, actor: int) -> tuple[Any, Any] | None:
            try:
                result = function(value, actor, *arguments) if personal else function(value, *arguments)
            except Exception as error:
                return (value, Raised(error))
            if pure and result is not None and result[0] != value:
                raise InternalError(f"{self.name}.{operation} is declared as a read and changed the value")
            return result

        return transition

    def peek(self) -> Any:
        """The value now, without an operation: for `build` and for reports, never for actors."""
        return self._runtime.values[self.spec.index]


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


class ControlledRuntime(Atom):
    """The primitives; `Execution` and `Fed` say what `perform` does.

    Args:
        world: where objects and operations are remembered from one execution to the next.
    """

    batch = 1
    #: As fingerprints know it.
    name = ""

    def __init__(self, world: World) -> None:
        self.world = world
        self.actors: list[Actor] = []
        self.current: Actor | None = None
        self.ended = False
        self.interrupts: dict[int, list[Callable[[], None]]] = {}
        #: See `keep`.
        self.kept: list[object] = []
        self.failure: BaseException | None = None
        self._main: greenlet = getcurrent()
        clock, nothing = world.objects[CLOCK], world.objects[NOTHING]
        self.values: list[Any] = [clock.initial, nothing.initial]
        if clock.fixed is None:
            clock.fixed = (
                world.operation(clock, "asleep", model.asleep, blocks=True, writes=False),
                world.operation(clock, "disarm", model.disarm),
            )
            self._relax = world.operation(nothing, "relax", model.relax, writes=False, gives_way=True)
            self._cpu_relax = world.operation(nothing, "cpu_relax", model.relax, writes=False)
            nothing.fixed = (self._relax, self._cpu_relax)
            clock.fixed = (*clock.fixed, world.operation(clock, "now", model.read, writes=False))
        self._asleep, self._disarm, self._now = clock.fixed
        self._spins_on = self._relax, self._cpu_relax = cast("tuple[Operation, Operation]", nothing.fixed)
        world.program.build(self)
        if not world.actors:
            raise InvalidArgument(
                f"program {world.program.name} has no actors",
                why="its build function spawned none, so nothing would happen",
                hint="runtime.spawn(name, role, function) makes one",
            )
        if not world.complete:
            world.complete = True
            world.start = list(self.values)
        elif world.start != self.values or len(self.actors) != len(world.actors):
            raise Nondeterminism(f"building {world.program.name} again made another first state")

    # -- declarations, for `build` -------------------------------------------

    def _declare(self, kind: str, name: str, initial: Hashable) -> ObjectSpec:
        values = self.values
        world = self.world
        if world.complete and len(values) < len(world.objects):
            spec = world.objects[len(values)]
            if spec.kind == kind and spec.name == name and spec.initial == initial:
                values.append(initial)
                return spec
        try:
            spec = world.declare(len(values), kind, name, initial)
        except Nondeterminism as error:
            file, line = place_of(sys._getframe(1))
            error.why += f", at {file}:{line}"
            raise
        values.append(initial)
        return spec

    def mutex(self, name: str) -> ControlledMutex:
        return ControlledMutex(self, self._declare("mutex", name, -1))

    def shared(self, name: str, value: int = 0) -> ControlledShared | Counter:
        program = self.world.program
        if name in program.statistics:
            return Counter(name)
        return ControlledShared(self, self._declare("word", name, value), program.guards.get(name))

    def wait_queue(self, name: str) -> ControlledWaitQueue:
        return ControlledWaitQueue(self, self._declare("wait queue", name, (0, 0, 0)))

    def shared_object(self, declaration: SharedObject) -> ControlledObject:
        """A model object."""
        spec = self._declare("object", declaration.name, declaration.initial)
        return ControlledObject(self, spec, declaration)

    def work(
        self,
        name: str,
        role: str,
        function: Callable[[], None],
        *,
        interrupts: tuple[int, ...] = (),
        at_rest: WaitQueue | None = None,
    ) -> ControlledWork:
        spec = self._declare("work", f"{name} work", 0)
        work = ControlledWork(self, name, role, function, spec, at_rest)
        for fd in interrupts:
            self.interrupts.setdefault(fd, []).append(work.queue)
        return work

    def spawn(
        self,
        name: str,
        role: str,
        function: Callable[[], object],
        *,
        daemon: bool = False,
        repeats: bool = False,
    ) -> Actor:
        """Declares an actor.

        Args:
            name: its column: W, O, C.
            role: what it is, in words.
            function: what it does.
            daemon: waiting for ever is no deadlock for it (a host, a user waiting for memory).
            repeats: call the function again when it returns. It must keep no state of its own from
                one call to the next; what it knows lies in objects of the world.
        """
        self.world.declare_actor(len(self.actors), name, role, daemon=daemon, repeats=repeats)
        actor = Actor(len(self.actors), name, role, function, daemon=daemon, repeats=repeats)
        self.actors.append(actor)
        return actor

    def invariant(
        self, name: str, predicate: Callable[..., bool], *objects: Any, at_rest: bool = False
    ) -> None:
        """Declares what must always hold, or hold whenever nobody can go on.

        Args:
            name: as the report says it is broken.
            predicate: called with the values of `objects`, in order; a pure function.
            objects: what it looks at. Changes of these become scheduling points, unless `at_rest`.
            at_rest: evaluate only when nobody runs.
        """
        world = self.world
        if world.complete:
            return
        indices = tuple(item.spec.index for item in objects)
        world.invariants.append(Invariant(name, predicate, indices, at_rest))
        if not at_rest:
            for index in indices:
                world.objects[index].watched = True
                for operation in world.objects[index].operations.values():
                    operation.visible = operation.visible or operation.writes

    def watch(self, item: Any) -> None:
        """Says beforehand that somebody looks at this, as trylock at a mutex: its unlocks are scheduling points.

        Where it is not said, the first trylock says so and the search begins again. But a replay in which
        that trylock comes late, or not at all, has to know from its first step on.
        """
        world = self.world
        if world.complete:
            return
        spec = world.objects[item.spec.index]
        spec.watched = True
        for operation in spec.operations.values():
            operation.visible = operation.visible or operation.writes

    def excuse(self, predicate: Callable[..., bool], *objects: Any) -> None:
        """Declares when waiting for ever is nobody's mistake: at an end where this holds there is no deadlock.

        Args:
            predicate: called with the values of `objects`, in order; a pure function.
            objects: what it looks at.
        """
        if not self.world.complete:
            self.world.excuses.append((predicate, tuple(item.spec.index for item in objects)))

    def progress(self, item: Any, kind: str) -> None:
        """Declares an operation as progress: a circle that performs it is no livelock."""
        world = self.world
        world.progress.add((item.spec.index, kind))
        for operation in item.spec.operations.values():
            if operation.kind == kind:
                operation.progress = True

    def keep(self, state: object) -> None:
        """Says that plain state of the explorer's own objects, which fingerprints do not look into, counts."""
        self.kept.append(state)

    # -- primitives ----------------------------------------------------------

    def this_task(self) -> Actor:
        if self.current is None:
            raise InternalError("nobody runs: a program is being built")
        return self.current

    def perform(self, operation: Operation, anchor: Hashable = None) -> Any:
        """Performs an operation for the current actor; outside of any actor, at once."""
        del anchor
        result = operation.transition(self.values[operation.object], -2)
        if result is None:
            raise InvalidArgument(f"building {self.world.program.name} blocks in {operation!r}")
        self.values[operation.object], observed = result
        if isinstance(observed, Raised):
            raise observed.error
        return observed

    def _perform_ended(self, operation: Operation, anchor: Hashable = None) -> Any:
        del operation, anchor
        raise Stopped

    def revise(self, spec: ObjectSpec) -> None:
        """Makes changes of an object scheduling points from now on."""
        try:
            self.world.watch(spec.index)
        except Revised as revised:
            self.failure = revised
            raise

    def guarding(self, guard: str | None) -> tuple[bool, bool]:
        """(the guard is held, there is a guard and it is not held)."""
        if guard is None or self.current is None:
            return (False, False)
        held = any(mutex.name == guard for mutex in self.current.held)
        return (held, not held)

    def arm(self, duration_ns: int, queue: int = -1) -> None:
        """Starts the current actor's timer."""
        spec = self.world.objects[CLOCK]
        argument = (duration_ns, queue)
        operation = spec.operations.get(("arm", argument, False))
        if operation is None:
            operation = self.world.operation(spec, "arm", model.arm(*argument), argument=argument)
        self.perform(operation)

    def disarm(self) -> None:
        """Stops the timer of the current actor's wait."""
        self.perform(self._disarm)

    def sleep(self, duration_ns: int) -> None:
        self.arm(duration_ns)
        self.perform(self._asleep)

    def relax(self) -> None:
        if self.current is not None:
            self.perform(self._relax, self._local_state())

    def cpu_relax(self) -> None:
        """One turn of a busy loop, which does not leave the processor."""
        if self.current is not None:
            self.perform(self._cpu_relax, self._local_state())

    def _local_state(self) -> Hashable:
        """For a spinner: the local state, so that a turn can be told to be like the last."""
        if not self.world.spins:
            try:
                self.world.found_spinner()
            except Revised as revised:
                self.failure = revised
                raise
        return self._fingerprint(cast("Actor", self.current), sys._getframe(2))

    def _fingerprint(self, actor: Actor, frame: FrameType) -> Hashable:
        """The local state of an actor that stands in this frame."""
        left_out = self.world.program.statistics
        if actor.reach is None:
            actor.reach = Reach(self._roots(actor), left_out, self.world.reached)
        return fingerprint(frame, _ACTOR_CODE, _OWN, left_out, actor.reach)

    def _roots(self, actor: Actor) -> list[object]:
        """What most of what an actor's code works on is reached from: its function."""
        return [actor.function]

    def now_ns(self) -> int:
        if not self.world.bounds.absolute_time:
            return 0
        return cast("int", self.perform(self._now)[0])

    def choose(self, name: str, options: int) -> int:
        spec = self.world.objects[NOTHING]
        operation = spec.operations.get(("choose", name, False))
        if operation is None:
            operation = self.world.operation(
                spec, "choose", model.choose, argument=name, writes=False, options=options
            )
        return cast("int", self.perform(operation))

    def interrupt(self, fd: int) -> None:
        """What a write to this eventfd does: wakes and queues all that were attached, one step each."""
        for effect in self.interrupts.get(fd, ()):
            effect()

    # -- running an actor ----------------------------------------------------

    def _run_actor(self, actor: Actor) -> None:
        """An actor's whole life in its greenlet."""
        try:
            if not actor.repeats:
                actor.function()
            while actor.repeats:
                actor.pending = None
                actor.function()
                actor.turned = True
                if actor.pending is None:
                    raise InvalidArgument(f"actor {actor.name} repeats a function without any operation")
        except Stopped:
            pass
        except KeyboardInterrupt as error:
            # A person ends the exploration, not the actor its life.
            self.failure = error
        except (Revised, Nondeterminism, InternalError, InvalidArgument) as error:
            # What a program or a design does wrong only because it is being unwound is nobody's step.
            at_fault = isinstance(error, Revised | Nondeterminism) or not (actor.held or self.ended)
            if self.failure is None and at_fault:
                self.failure = error
            actor.error = error
        except BaseException as error:
            actor.error = error
        actor.finished = True


_ACTOR_CODE: Final[CodeType] = ControlledRuntime._run_actor.__code__


def _conforms(runtime: ControlledRuntime) -> Runtime:
    """For the type checker: the driver's code runs here unchanged."""
    return runtime


#: By the address of the code and what a frame says of where it stands in it.
_places: dict[tuple[int, int], Place] = {}
#: These codes, kept so that each address stays its own.
_placed: list[CodeType] = []


def _place(frame: FrameType | None) -> Place:
    """A place that is not known yet; it is from then on."""
    if frame is None:
        return ("?", 0)
    code = frame.f_code
    _placed.append(code)
    return _places.setdefault((id(code), frame.f_lasti), (code.co_filename, frame.f_lineno))


def place_of(frame: FrameType | None) -> Place:
    """The innermost line that is not of this file or a model's."""
    return place(BELOW, _places, _place, frame)


# -- greenlets that are used again ---------------------------------------------------


class _Pool(threading.local):
    """Greenlets that wait for a job; a greenlet belongs to the thread that made it."""

    def __init__(self) -> None:
        self.free: list[greenlet] = []


_pool: Final = _Pool()


def _worker(job: Callable[[], greenlet]) -> None:
    while True:
        following = job()
        del job  # It keeps a whole execution, which nobody needs while this one waits for another.
        job = following.switch()


def _take() -> greenlet:
    """A greenlet out of the pool; it runs the job that it is switched to with."""
    free = _pool.free
    found = free.pop() if free else greenlet(_worker)
    found.parent = getcurrent()
    return found


class Execution(ControlledRuntime):
    """All actors together, under a strategy.

    Args:
        world: the world.
        strategy: called with the possible decisions (at least one; never called when
            nobody can go on) and this execution; returns one of them. None is the default
            policy `run_on`, for speed without recording `decisions`.
        log: keep every operation in `log`.
        places: keep file and line of every operation in `places`.
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
            actor.where = place(BELOW, _places, _place, sys._getframe(1))
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
            actor.running = _take()
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
            _pool.free.append(actor.running)
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
        where = place(BELOW, _places, _place, frame)
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
        if actor.reach is None:
            return not self._as_built.unchanged()
        run = cast("Run", self.run)
        if not run.told:
            actor.reach.look()
        return not actor.reach.same(self._as_built)

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
        "finished", "runtime", "told",
    )  # fmt: skip

    def __init__(
        self, fed: Fed, index: int, *, anchored: bool = False, ahead: Iterable[Foreseen] = ()
    ) -> None:
        self.runtime = fed
        self.actor = fed.actors[index]
        self.anchored = anchored
        #: (operation, anchor, place) that the actor has stopped at; the operation is None at the end.
        self.at: tuple[Operation | None, Hashable, Place] = (None, None, ("?", 0))
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
        self._running: greenlet | None = _take()
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
        if not self.finished:
            self._enter()
            self.runtime.unwind(running)
        _pool.free.append(running)

    def _begin(self) -> greenlet:
        following = self.runtime.live(self.actor)
        self.at = (None, None, ("?", 0))
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
        cast("greenlet", self._running).switch(*job)
        actor = self.actor
        self._pending = actor.pending
        self._stack_bytes = actor.stack_bytes
        self.finished = actor.finished
        self.error = actor.error
        failure = self.runtime.failed()
        if failure is not None:
            self.close()
            raise failure


def error_text(error: BaseException) -> str:
    """An actor's error in one line."""
    why = error.why if isinstance(error, BalloonError) else ""
    text = f"{type(error).__name__}: {error}"
    return f"{text} ({why})" if why else text
