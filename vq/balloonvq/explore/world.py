"""A world: the shared objects of a program, by number, and the operations on them.

A world outlives executions. The first time that a program is built it fills the
world in; every later build must declare the same objects in the same order (or the
program is not deterministic, and that is an error). Values are hashable and never
changed in place; a state's values are a plain list, one entry an object.

=============  ==========================================  =============================
object         value                                       operations
=============  ==========================================  =============================
mutex          number of its owner, -1                     lock, trylock, unlock
word           int                                         read, write, add
wait queue     three bit sets of actors: enqueued, woken,  enqueue, schedule, finish,
               out of time                                 wake
work           1 queued | 2 running                        queue, take, done or rest, read
shared object  anything hashable                           as declared
clock (no 0)   (now, ((time left, actor, queue), ...))     arm, disarm, asleep
none (no 1)    None                                        choose, relax
=============  ==========================================  =============================

Which operations are scheduling points
--------------------------------------
*Not* `unlock`, *not* an access to data whose declared guard is held, *not* finish,
arm, disarm and done: each is glued to the operation before it. This is Lipton's
reduction: each of these commutes to the left over anything that another actor may
do in between, so an execution with something in between has the same end as one
without. Where that argument fails, the operation is a scheduling point after all:

* an `unlock` does not commute with another actor's `trylock`, which fails before it
  and succeeds after. So the unlocks of a mutex on which anybody ever calls trylock
  are scheduling points (A: lock, unlock; B: trylock. Glued together, B never fails).
  The same holds for a work item whose state anybody reads;
* an invariant sees values in between. Operations that write to what an invariant watches are
  scheduling points;
* an access *without* the declared guard is a scheduling point, and a race if somebody
  else can reach the same data at that moment;
* time is a schedulable step (`explore_time`): then arm is one, too.

Such facts are found while running. When one appears that earlier steps did not know
of, `Revised` ends the search and the engine starts again; facts are only ever
added, so this ends.

`all_ops=True` makes every operation a scheduling point. The tests compare both.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from balloonvq.errors import BalloonError
from balloonvq.explore.local_state import Atom
from balloonvq.explore.operations import Operation, Raised, Transition

__all__ = [
    "FROM_RUNTIME",
    "Bounds",
    "Nondeterminism",
    "Program",
    "Revised",
    "SharedObject",
    "Unattended",
    "World",
]

CLOCK, NOTHING = 0, 1

#: Kinds that are glued to the operation before them, unless a fact says otherwise.
GLUED = frozenset({"unlock", "finish", "arm", "disarm", "done"})


#: What helps against `Nondeterminism` whose cause is not known.
FROM_RUNTIME: Final = "state that several actors share, time and chance must come from the runtime"


class Nondeterminism(BalloonError):
    """A program that, given the same observed values, did something else: no verdict is possible."""


class Revised(Exception):
    """A fact was learned that makes more operations scheduling points: start again."""


class Unattended(Revised):
    """An actor writes an attribute of a design of which nobody has noted who reads it: start again from nothing."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """The choices under which a verdict holds; part of every verdict."""

    all_ops: bool = False
    """Every operation is a scheduling point."""
    one_cpu: bool = False
    """One processor without preemption: actors change only where the running one blocks or gives way."""
    explore_time: bool = False
    """A timer may expire while others could still run."""
    absolute_time: bool = False
    """`now_ns` is the model's time; otherwise it is always 0, so that retry loops come back to the same state."""


@dataclass(frozen=True)
class Program:
    """What is explored: a function that declares objects and actors on a runtime.

    It is called once an execution, so plain Python state of the code under test
    begins anew each time.
    """

    name: str
    build: Callable[[Any], object]
    bounds: Bounds = field(default_factory=Bounds)
    statistics: frozenset[str] = frozenset()
    """Names of shared words and of attributes that only count: no part of a state."""
    guards: Mapping[str, str] = field(default_factory=dict)
    """Shared word -> the mutex that guards it."""
    steps_max: int = 20_000
    """Operations after which an execution is given up."""
    shipped: bool = False
    """Whether all of its code is balloonvq's own, so that no line of a user's file is looked for."""


@dataclass(slots=True)
class ObjectSpec(Atom):
    """One object of the world."""

    index: int
    kind: str
    name: str
    initial: Hashable
    operations: dict[Hashable, Operation] = field(default_factory=dict)
    watched: bool = False
    """An invariant or an actor reads its state: writes to it are scheduling points, unlock and done too."""
    fixed: tuple[Operation, ...] | None = None
    """The operations that each build has, in the order in which its runtime wants them; None before the first."""


@dataclass(frozen=True, slots=True)
class Invariant:
    """A predicate on the values of some objects."""

    name: str
    predicate: Callable[..., bool]
    objects: tuple[int, ...]
    at_rest: bool


@dataclass(frozen=True, slots=True)
class ActorSpec:
    """One actor: its column."""

    index: int
    name: str
    role: str
    daemon: bool
    """Waiting for ever is no deadlock for it."""
    repeats: bool
    """When its function returns it is called again."""


class SharedObject(Atom):
    """The declaration of a model object: a name, a first value, and pure functions.

    Args:
        name: as reports show it.
        initial: its first value; hashable, like every value.
        operations: by name, ``f(value, *arguments)`` -> ``(new value, result)``, or None
            to block. An exception reaches the actor as if the call had raised it. A
            function that takes the actor's number is listed in `personal`.
        reads: names of the operations that never change the value.
        personal: names of the operations whose first argument after the value is the
            number of the calling actor.
        blocks: names of the operations that may return None.
        idle: names of the blocking operations in which an actor may wait for ever.
        guard: the name of the mutex that protects it; an access under the guard is no
            scheduling point.
        stands_for: what is in its place when a schedule is forced on real threads: pages, pfn array or
            virtqueue; empty, if the value itself is used there, under a real lock.
    """

    def __init__(
        self,
        name: str,
        initial: Hashable,
        operations: Mapping[str, Callable[..., tuple[Any, Any] | None]],
        *,
        reads: frozenset[str] = frozenset(),
        personal: frozenset[str] = frozenset(),
        blocks: frozenset[str] = frozenset(),
        idle: frozenset[str] = frozenset(),
        guard: str | None = None,
        stands_for: str = "",
    ) -> None:
        self.name = name
        self.initial = initial
        self.operations = operations
        self.reads = reads
        self.personal = personal
        self.blocks = blocks | idle
        self.idle = idle
        self.guard = guard
        self.stands_for = stands_for


class World(Atom):
    """Objects, actors, operations and invariants of one program."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.bounds = program.bounds
        self.objects: list[ObjectSpec] = []
        self.actors: list[ActorSpec] = []
        self.operations: list[Operation] = []
        self.invariants: list[Invariant] = []
        #: (predicate, objects): see `ControlledRuntime.excuse`.
        self.excuses: list[tuple[Callable[..., bool], tuple[int, ...]]] = []
        self.progress: set[tuple[int, str]] = set()
        #: The values after the first build.
        self.start: list[Any] = []
        self.complete = False
        self.spins = False
        #: What actors' functions reach, by content; see `balloonvq.explore.local_state.Reach`.
        self.reached: dict[Hashable, int] = {}
        #: Actors whose functions reach nothing at the start that has no content; None while that is not known.
        self.known_functions: set[int] | None = None
        self.declare(CLOCK, "clock", "clock", (0, ()))
        self.declare(NOTHING, "nothing", "", None)

    # -- declaring -----------------------------------------------------------

    def declare(self, index: int, kind: str, name: str, initial: Hashable) -> ObjectSpec:
        """The object with that number; made on the first build, compared on later ones."""
        if index < len(self.objects):
            spec = self.objects[index]
            if spec.kind != kind or spec.name != name or spec.initial != initial:
                raise Nondeterminism(
                    f"building {self.program.name} again made another world",
                    why=f"object {index} was {spec.kind} {spec.name!r} and now is {kind} {name!r}",
                    hint=FROM_RUNTIME,
                )
            return spec
        if self.complete:
            raise Nondeterminism(
                f"{kind} {name!r} is made while {self.program.name} runs",
                why="objects and actors of a program are declared before it starts",
            )
        spec = ObjectSpec(index, kind, name, initial)
        self.objects.append(spec)
        return spec

    def declare_actor(self, index: int, name: str, role: str, *, daemon: bool, repeats: bool) -> ActorSpec:
        """The actor with that number, as `declare`."""
        if index < len(self.actors):
            spec = self.actors[index]
            if spec.name != name:
                raise Nondeterminism(
                    f"building {self.program.name} again made other actors",
                    why=f"actor {index} was {spec.name!r} and now is {name!r}",
                    hint=FROM_RUNTIME,
                )
            return spec
        if self.complete:
            raise Nondeterminism(
                f"actor {name!r} is spawned while {self.program.name} runs",
                why="the explorer needs all actors before it starts",
                hint="declare it in the scenario and let it wait for its order",
            )
        spec = ActorSpec(index, name, role, daemon, repeats)
        self.actors.append(spec)
        return spec

    def watch(self, index: int) -> None:
        """From now on changes of this object are scheduling points.

        Raises:
            Revised: if an operation on it has been treated otherwise before.
        """
        spec = self.objects[index]
        if spec.watched:
            return
        spec.watched = True
        changed = False
        for operation in spec.operations.values():
            if (
                not operation.visible
                and operation.writes
                and operation.kind not in {"arm", "disarm", "finish"}
            ):
                operation.visible = changed = True
        if changed:
            raise Revised(spec.name)

    def found_spinner(self) -> None:
        """From now on executions remember what an actor has read since its last turn.

        Raises:
            Revised: the first time.
        """
        if not self.spins:
            self.spins = True
            raise Revised("relax")

    def operation(
        self,
        spec: ObjectSpec,
        kind: str,
        transition: Transition,
        *,
        argument: Hashable = None,
        blocks: bool = False,
        writes: bool = True,
        options: int = 0,
        idle: bool = False,
        gives_way: bool = False,
        guarded: bool = False,
        open_: bool = False,
    ) -> Operation:
        """The operation of that kind and argument on an object; made once."""
        key = (kind, argument, guarded)
        found = spec.operations.get(key)
        if found is not None:
            return found
        glued = kind in GLUED or guarded
        if glued and spec.watched and writes and kind not in {"arm", "disarm", "finish"}:
            glued = False
        if kind == "arm" and self.bounds.explore_time:
            glued = False
        made = Operation(
            len(self.operations),
            kind,
            spec.index,
            spec.name,
            transition,
            argument=argument,
            visible=self.bounds.all_ops or not glued,
            blocks=blocks,
            writes=writes,
            options=options,
            idle=idle,
            gives_way=gives_way,
            open_=open_,
        )
        made.progress = (spec.index, kind) in self.progress
        spec.operations[key] = made
        self.operations.append(made)
        return made

    # -- states --------------------------------------------------------------

    def initial(self) -> list[Any]:
        """The values of all objects at the start."""
        return [spec.initial for spec in self.objects]

    def broken(self, values: list[Any], *, at_rest: bool) -> str | None:
        """The name of the first invariant that these values break."""
        for invariant in self.invariants:
            if invariant.at_rest and (not at_rest or self.excused(values)):
                continue
            if not invariant.predicate(*[values[index] for index in invariant.objects]):
                return invariant.name
        return None

    def all_broken(self, values: list[Any]) -> list[str]:
        """The names of all invariants that these values at rest break."""
        return [
            invariant.name
            for invariant in self.invariants
            if not (invariant.at_rest and self.excused(values))
            and not invariant.predicate(*[values[index] for index in invariant.objects])
        ]

    def excused(self, values: list[Any]) -> bool:
        """Whether in a state with these values waiting for ever is nobody's mistake, and no rest."""
        return any(predicate(*[values[index] for index in objects]) for predicate, objects in self.excuses)


# -- transitions of the built-in objects ------------------------------------------


def lock(owner: int, actor: int) -> tuple[int, None] | None:
    """Blocked while anybody holds it; a second lock by its owner blocks for ever."""
    return (actor, None) if owner < 0 else None


def trylock(owner: int, actor: int) -> tuple[int, bool]:
    """Takes it if free."""
    return (actor, True) if owner < 0 else (owner, False)


def unlock(owner: int, actor: int) -> tuple[int, Any]:
    """Only the owner may."""
    if owner != actor:
        return (owner, Raised(RuntimeError("unlocks a mutex that it does not hold")))
    return (-1, None)


def read(value: Any, actor: int) -> tuple[Any, Any]:
    """READ_ONCE."""
    del actor
    return (value, value)


def write(argument: Any) -> Transition:
    """WRITE_ONCE of a certain value."""

    def transition(value: Any, actor: int) -> tuple[Any, Any]:
        del value, actor
        return (argument, None)

    return transition


def add(delta: int) -> Transition:
    """atomic_add_return of a certain difference."""

    def transition(value: Any, actor: int) -> tuple[Any, Any]:
        del actor
        return (value + delta, value + delta)

    return transition


def enqueue(value: tuple[int, int, int], actor: int) -> tuple[tuple[int, int, int], None]:
    """prepare_to_wait: on the queue, and asleep from the next schedule on."""
    waiting, woken, late = value
    return ((waiting | 1 << actor, woken & ~(1 << actor), late), None)


def schedule(value: tuple[int, int, int], actor: int) -> tuple[tuple[int, int, int], bool] | None:
    """Sleeps: back when woken (True) or out of time (False)."""
    waiting, woken, late = value
    bit = 1 << actor
    if woken & bit:
        return ((waiting, woken & ~bit, late), True)
    if late & bit:
        return ((waiting & ~bit, woken, late & ~bit), False)
    return None


def finish(value: tuple[int, int, int], actor: int) -> tuple[tuple[int, int, int], None]:
    """finish_wait: off the queue."""
    keep = ~(1 << actor)
    return ((value[0] & keep, value[1] & keep, value[2] & keep), None)


def wake(value: tuple[int, int, int], actor: int) -> tuple[tuple[int, int, int], None]:
    """wake_up_all: everybody on the queue leaves it and may run."""
    del actor
    return ((0, value[1] | value[0], value[2]), None)


def work_queue(value: int, actor: int) -> tuple[int, None]:
    """queue_work: nothing changes if it is queued."""
    del actor
    return (value | 1, None)


def work_take(value: int, actor: int) -> tuple[int, None] | None:
    """The worker takes a queued item."""
    del actor
    return (2, None) if value & 1 else None


def work_done(value: int, actor: int) -> tuple[int, None]:
    """The item's function has returned."""
    del actor
    return (value & ~2, None)


def work_rest(value: int, actor: int) -> tuple[int, bool]:
    """The item's function has returned; observes whether it will not run again."""
    del actor
    return (value & ~2, not value & 1)


def choose(value: Any, actor: int) -> tuple[Any, Any]:
    """The outcome is the scheduler's; the value does not change."""
    del actor
    return (value, 0)


def relax(value: Any, actor: int) -> tuple[Any, Any]:
    """Nothing happens but that others may run."""
    del actor
    return (value, None)


Clock = tuple[int, tuple[tuple[int, int, int], ...]]


def arm(duration: int, queue: int) -> Transition:
    """Starts the actor's timer; when it expires, a waiter of that queue (or -1: a sleeper) goes on."""

    def transition(value: Clock, actor: int) -> tuple[Clock, None]:
        return ((value[0], tuple(sorted((*value[1], (duration, actor, queue))))), None)

    return transition


def disarm(value: Clock, actor: int) -> tuple[Clock, None]:
    """Stops the actor's timers that belong to a queue."""
    return ((value[0], tuple(timer for timer in value[1] if timer[1] != actor or timer[2] < 0)), None)


def asleep(value: Clock, actor: int) -> tuple[Clock, None] | None:
    """Blocked until the actor's timer has expired."""
    return None if any(timer[1] == actor and timer[2] < 0 for timer in value[1]) else (value, None)


def tick(values: list[Any], *, absolute: bool) -> list[Any] | None:
    """Moves time to the next expiry; None if no timer runs. The only step on several objects."""
    now, timers = values[CLOCK]
    if not timers:
        return None
    elapsed = timers[0][0]
    after = list(values)
    after[CLOCK] = (
        now + elapsed if absolute else 0,
        tuple((left - elapsed, actor, queue) for left, actor, queue in timers if left > elapsed),
    )
    for left, actor, queue in timers:
        if left == elapsed and queue >= 0:
            waiting, woken, late = after[queue]
            after[queue] = (waiting, woken, late | 1 << actor)
    return after
