"""The runtime under a controlled scheduler: one operation at a time, in any order one likes.

Each actor is a greenlet. A primitive makes an `Operation` of what it is asked for, and hands it to whoever runs the
actors:

* `balloonvq.runtime.execution`: all of them, with a strategy that decides at every scheduling point;
* `balloonvq.runtime.runs`: one alone, told by its caller what each of its operations observes. An
  actor is a deterministic function of what it observes, so this is enough to learn
  all that it can ever do (`balloonvq.explore.automaton`).

Plain Python state of the code under test is made by the program's `build`. What that itself does with
mutexes and words happens before the first state, in one go.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
from collections.abc import Callable, Hashable
from pathlib import Path
from types import CodeType, FrameType, TracebackType
from typing import Any, Final, TypeVar, cast

from greenlet import getcurrent, greenlet

from balloonvq.errors import InternalError, InvalidArgument
from balloonvq.explore import world as model
from balloonvq.explore._local_state import place
from balloonvq.explore.local_state import Atom, Reach, fingerprint
from balloonvq.explore.operations import Operation, Raised, Transition
from balloonvq.explore.world import (
    CLOCK,
    FROM_RUNTIME,
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
    "BELOW",
    "NOWHERE",
    "SHIPPED",
    "TICK",
    "Actor",
    "ControlledMutex",
    "ControlledRuntime",
    "Decision",
    "Place",
    "give_back",
    "place_of",
    "take_greenlet",
    "users_place_of",
]

T = TypeVar("T")

#: Who goes on, and with which outcome of a choice.
Decision = tuple[int, int]
#: The clock goes on.
TICK: Final[Decision] = (-1, 0)
#: file and line of the code that called a primitive.
Place = tuple[str, int]

#: Files whose frames are no place in somebody's design.
_OWN: Final = frozenset({__file__})

#: Files below a design: a step is shown at the line that asked for it, the with statement of a
#: contextmanager included. A model adds its own.
BELOW: Final[set[str]] = {__file__, contextlib.__file__}

#: All files of balloonvq, the shipped designs included.
SHIPPED: Final = frozenset(
    {
        contextlib.__file__,
        *(f"{root}/{name}" for root, _, names in os.walk(Path(__file__).parent.parent) for name in names),
    }
)

#: Where no frame is of a file that is looked for.
NOWHERE: Final[Place] = ("?", 0)


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
        "users_where",
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
        self.where: Place = NOWHERE
        self.users_where: Place = NOWHERE
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


class ControlledRuntime(Atom):
    """The primitives; what is derived from it says what `perform` does.

    Args:
        world: where objects and operations are remembered from one execution to the next.
    """

    batch = 1
    #: As fingerprints know it.
    name = ""

    def __init__(self, world: World) -> None:
        self.world = world
        self._shipped = world.program.shipped
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
            raise Nondeterminism(
                f"building {world.program.name} again made another first state", hint=FROM_RUNTIME
            )

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
        return NOWHERE
    code = frame.f_code
    _placed.append(code)
    return _places.setdefault((id(code), frame.f_lasti), (code.co_filename, frame.f_lineno))


#: place_of(frame): the innermost line that is not of a file `BELOW` a design.
place_of: Final = functools.partial(place, BELOW, _places, _place)

#: users_place_of(frame): the innermost line of a file that is not shipped, or `NOWHERE`.
users_place_of: Final = functools.partial(place, SHIPPED, _places, _place)


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


def take_greenlet() -> greenlet:
    """A greenlet out of the pool; it runs the job that it is switched to with."""
    free = _pool.free
    found = free.pop() if free else greenlet(_worker)
    found.parent = getcurrent()
    return found


def give_back(used: greenlet) -> None:
    """Puts a greenlet whose job has ended into the pool, unless Ctrl-C has ended the greenlet as well."""
    if not used.dead:
        _pool.free.append(used)
