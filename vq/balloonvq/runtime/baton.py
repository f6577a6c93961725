"""The runtime on real threads, forced through a schedule.

A script says which operation comes when (`Step`), as an execution under the controlled
scheduler has recorded it. Each actor runs on a thread of its own. Before an
operation that is a scheduling point it waits for the baton; the thread that has
it performs the operation and runs on to its next scheduling point, where it hands
the baton to whoever the script names next. Nothing is forced in between, and
nothing is pretended: a lock is a real lock, an operation answers what it really
finds, and an answer that is not the script's ends the run as `Diverged`.

After the last step all threads stand before the operation that each would perform
next. `Baton.let_go` lets them run: those that are deadlocked block in real locks
then, which the wait-for graph of `balloonvq.runtime.threads` sees, and the rest goes its way.

Objects are declared in the order in which `ControlledRuntime` declares them, so the
numbers of the script's world fit. Each is made of

=============  ==========================================================================
mutex          `ThreadMutex`
word           `ThreadShared`
wait queue     `Parking`: prepare_to_wait, schedule, finish_wait, wake_up_all
work, object   a value under a lock, and a `Parking` for who has to wait for it; or
               what the caller puts in its place (`RealObject`)
=============  ==========================================================================

Time is virtual: it moves with the script, then when no thread runs any more.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from balloonvq.counters import DeadlockTask, HeldLock
from balloonvq.errors import BalloonError, InternalError
from balloonvq.explore import world as model
from balloonvq.explore.operations import Raised
from balloonvq.explore.world import CLOCK, NOTHING, SharedObject, World
from balloonvq.runtime import Runtime, Stopped, WaitQueue
from balloonvq.runtime.controlled import BELOW
from balloonvq.runtime.threads import Parking, ThreadMutex, ThreadRuntime, ThreadShared, ThreadTask

__all__ = ["BLOCKED", "Baton", "BatonActor", "BatonRuntime", "Diverged", "RealObject", "Step"]

T = TypeVar("T")

#: What a `RealObject` answers when the caller has to wait until it changes.
BLOCKED: Final = object()

#: Seconds for which one step may take before the run is given up. Far more than any needs: nothing but
#: a thread that blocks where the script says it does not can use them up.
PATIENCE: Final = 10.0

BELOW.add(__file__)


class Diverged(BalloonError):
    """A real thread did, or found, something else than the script says.

    Attributes:
        step: the number of the scheduling point, from 1; 0 is before the first.
    """

    def __init__(self, step: int, what: str, *, why: str = "") -> None:
        super().__init__(f"step {step}: {what}", why=why)
        self.step = step


@dataclass(frozen=True, slots=True)
class Step:
    """One operation of the script."""

    point: int
    """The scheduling point that it is or belongs to, from 1; 0 is before the first."""
    actor: int
    """Its actor; -1 is the clock."""
    key: tuple[int, str, Hashable]
    """Number of the object, kind, argument."""
    observed: Any
    """What the operation answers."""
    visible: bool
    """Whether it is a scheduling point."""
    text: str
    """In words, for reports."""


class RealObject(Protocol):
    """What stands for a `SharedObject` on real threads."""

    def perform(self, operation: str, actor: int, expected: Any, arguments: tuple[Any, ...]) -> Any:
        """Performs an operation, in one atomic step; `BLOCKED` if it cannot be performed now.

        Args:
            operation: one of the declared ones.
            actor: number of the caller, -1 while the program is built.
            expected: what the script says it answers; None if there is no script for it. Only a choice that
                belongs to the environment may depend on it: which of several free pages comes first.
            arguments: as of the operation.

        Raises:
            KernelBug: where the guest kernel would have noticed.
        """

    def peek(self) -> Any:
        """The value of the declared object, read off the real thing. Called while nobody runs."""


class BatonActor:
    """An actor, its thread and its place in the script."""

    def __init__(
        self, index: int, name: str, role: str, function: Callable[[], object], *, repeats: bool
    ) -> None:
        self.index = index
        self.name = name
        self.role = role
        self.function = function
        self.repeats = repeats
        self.task: ThreadTask | None = None
        #: Operations of its own that are to come, last first.
        self.script: list[Step] = []
        #: The operation that it is in or stands before.
        self.pending: tuple[int, str, Hashable] | None = None
        #: Whether its function has ended, and with what; being stopped is no end.
        self.finished = False
        self.error: BaseException | None = None
        self.stack_bytes = 0
        #: Operations that it has performed since it was let go.
        self.freed = 0
        self._gate = threading.Lock()
        self._gate.acquire()

    def wait(self) -> None:
        """Waits for the baton."""
        self._gate.acquire()

    def go(self) -> None:
        """Hands the baton to it; harmless if it has it."""
        with contextlib.suppress(RuntimeError):
            self._gate.release()


class Baton:
    """Who may go on.

    Args:
        steps: the script.
        advance: called for each step of the clock.
    """

    def __init__(self, steps: Sequence[Step], advance: Callable[[], None]) -> None:
        self._steps = steps
        self._advance = advance
        self._order = [step for step in steps if step.visible]
        self._next = 0
        self.actors: list[BatonActor] = []
        #: Set when the script is over, or the run has diverged.
        self.over = threading.Event()
        #: An actor has come to its first scheduling point, or to its end.
        self.arrived = threading.Event()
        self.failure: Diverged | None = None
        self.free = False
        self.ended = False
        #: Scheduling points after which `on_mark` is called while nobody runs.
        self.marks: frozenset[int] = frozenset()
        self.on_mark: Callable[[], None] = lambda: None
        self._started = False

    @property
    def point(self) -> int:
        """Scheduling points that were passed."""
        return self._order[self._next - 1].point if self._next else 0

    def begin(self, start: Callable[[BatonActor], None]) -> None:
        """Starts the threads one after the other, then the script."""
        for actor in self.actors:
            actor.script = [step for step in reversed(self._steps) if step.actor == actor.index]
        for actor in self.actors:
            self.arrived.clear()
            start(actor)
            if not self.arrived.wait(PATIENCE):
                self.fail(f"{actor.name} did not come to its first operation")
                return
        self._started = True
        if self.failure is None:
            self._pass_on(None)

    def fail(self, what: str, why: str = "") -> None:
        """The run has diverged; the first reason counts."""
        if self.failure is None:
            self.failure = Diverged(self.point, what, why=why)
        self.over.set()
        self.arrived.set()

    def _pass_on(self, me: BatonActor | None) -> bool:
        """Hands the baton to the next of the script, without waiting; whether that is the caller itself."""
        while True:
            if self._next and self._order[self._next - 1].point in self.marks:
                self.on_mark()
            if self._next == len(self._order):
                self.over.set()
                return False
            step = self._order[self._next]
            self._next += 1
            if step.actor >= 0:
                break
            self._advance()
        actor = self.actors[step.actor]
        if actor.finished:
            self.fail(f"{actor.name} has ended", why=f"the schedule goes on with {step.text}")
            return False
        if actor is not me:
            actor.go()
        return actor is me

    def _turn(self, actor: BatonActor) -> None:
        """Gives the baton away and waits until it is back."""
        if not self._started:
            self.arrived.set()
        elif self._pass_on(actor):
            return
        actor.wait()
        if self.ended:
            raise Stopped

    def arrive(self, actor: BatonActor, key: tuple[int, str, Hashable], text: Callable[[], str]) -> Any:
        """The actor is about to perform an operation; returns what the script says it will observe.

        Raises:
            Stopped: if the run is over.
        """
        if self.ended:
            raise Stopped
        actor.pending = key
        if self.free:
            return None
        if not actor.script:
            # Its part is over. What it stands before is compared in the end.
            self._turn(actor)
            return None
        step = actor.script[-1]
        if step.key != key:
            self.fail(f"{actor.name} comes to {text()}", why=f"the schedule has {step.text}")
            raise Stopped
        if step.visible:
            self._turn(actor)
        return step.observed

    def done(self, actor: BatonActor, observed: Any) -> None:
        """The actor has performed what it came to.

        Raises:
            Stopped: if it has observed something else than the script says.
        """
        actor.pending = None
        if self.free or not actor.script:
            actor.freed += 1
            return
        step = actor.script.pop()
        if observed != step.observed:
            self.fail(
                f"{actor.name}: {step.text} gives {observed!r}", why=f"the schedule has {step.observed!r}"
            )
            raise Stopped

    def finish(self, actor: BatonActor, error: BaseException | None) -> None:
        """The actor's function has ended."""
        actor.finished = True
        actor.error = error
        actor.pending = None
        if self.ended or self.free or self.failure is not None:
            self.arrived.set()
            return
        if actor.script:
            end = "ends" if error is None else f"ends with {type(error).__name__}: {error}"
            self.fail(f"{actor.name} {end}", why=f"the schedule has {actor.script[-1].text}")
        elif self._started:
            self._pass_on(None)
        else:
            self.arrived.set()

    def let_go(self) -> None:
        """From now on nothing is forced. The script must be over."""
        self.free = True
        for actor in self.actors:
            if not actor.finished:
                actor.go()

    def end(self) -> None:
        """Throws `Stopped` into whoever waits for the baton, and into whoever comes to an operation."""
        self.ended = True
        if not self.free:
            for actor in self.actors:
                if actor.task is not None and not actor.finished:
                    actor.go()


class BatonMutex(ThreadMutex):
    """A real mutex; each call is announced first."""

    __slots__ = ("_baton_runtime", "_index")

    def __init__(self, runtime: BatonRuntime, index: int, name: str) -> None:
        super().__init__(runtime.threads, name)
        self._baton_runtime = runtime
        self._index = index

    def lock(self) -> None:
        self._baton_runtime.perform((self._index, "lock", None), self.name, self._lock_now)

    def trylock(self) -> bool:
        taken: bool = self._baton_runtime.perform((self._index, "trylock", None), self.name, self._try_now)
        return taken

    def unlock(self, *_: object) -> None:
        runtime = self._baton_runtime
        if not runtime.baton.ended:
            runtime.perform((self._index, "unlock", None), self.name, self._unlock_now)
        elif self.held_by_me():
            ThreadMutex.unlock(self)

    __enter__ = lock
    __exit__ = unlock

    def _lock_now(self, expected: Any) -> None:
        del expected
        task = self._runtime.current()
        frame = _outside()
        if self._take():
            self._own(task, frame)
        else:
            self._lock_slow(task, frame)

    def _try_now(self, expected: Any) -> bool:
        del expected
        if not self._take():
            return False
        self._own(self._runtime.current(), _outside())
        return True

    def _unlock_now(self, expected: Any) -> Raised | None:
        del expected
        if not self.held_by_me():
            return Raised(RuntimeError("unlocks a mutex that it does not hold"))
        ThreadMutex.unlock(self)
        return None


class BatonShared:
    """A real shared word; each access is announced first."""

    __slots__ = ("_index", "_runtime", "_word", "name")

    def __init__(self, runtime: BatonRuntime, index: int, word: Any) -> None:
        self.name: str = word.name
        self._runtime = runtime
        self._index = index
        self._word = word

    @property
    def value(self) -> int:
        value: int = self._runtime.perform((self._index, "read", None), self.name, lambda _: self._word.value)
        return value

    @value.setter
    def value(self, value: int) -> None:
        def write(expected: Any) -> None:
            del expected
            self._word.value = value

        self._runtime.perform((self._index, "write", value), self.name, write)

    def add(self, delta: int) -> int:
        value: int = self._runtime.perform(
            (self._index, "add", delta), self.name, lambda _: self._word.add(delta)
        )
        return value

    def peek(self) -> int:
        """The value now."""
        value: int = self._word.value
        return value


class BatonWaitQueue:
    """The kernel's four steps on a `Parking`, each announced first."""

    __slots__ = ("_index", "_parking", "_runtime", "name")

    def __init__(self, runtime: BatonRuntime, index: int, name: str) -> None:
        self.name = name
        self._runtime = runtime
        self._index = index
        self._parking = Parking(runtime.threads)

    def attach(self, fd: int) -> None:
        def interrupted() -> None:
            self._runtime.perform((self._index, "wake", None), self.name, lambda _: self._rung(fd))

        self._runtime.interrupts.setdefault(fd, []).append(interrupted)

    def _rung(self, fd: int) -> None:
        """The interrupt handler: it runs if the device has really raised its interrupt."""
        if self._runtime.ring(fd):
            self._parking.wake_all()

    def wake_all(self) -> None:
        self._runtime.perform((self._index, "wake", None), self.name, lambda _: self._parking.wake_all())

    def wait_until(self, condition: Callable[[], T], timeout_ns: int | None = None) -> T:
        runtime = self._runtime
        deadline = None
        if timeout_ns is not None:
            deadline = runtime.arm(timeout_ns, self._index)
        try:
            while True:
                runtime.perform((self._index, "enqueue", None), self.name, lambda _: self._parking.enqueue())
                value = condition()
                if value:
                    return value
                if not runtime.perform(
                    (self._index, "schedule", None), self.name, lambda _: self._schedule(deadline)
                ):
                    return condition()
        finally:
            if not runtime.baton.ended:
                runtime.perform((self._index, "finish", None), self.name, lambda _: self._parking.finish())
                if timeout_ns is not None:
                    runtime.disarm()

    def _schedule(self, deadline: int | None) -> bool:
        runtime = self._runtime
        if runtime.baton.free:
            return self._parking.schedule(None if deadline is None else runtime.real_time(deadline))
        task = runtime.threads.current()
        if task not in self._parking.woken and (deadline is None or deadline > runtime.now):
            raise InternalError(f"{task.name} would sleep on {self.name}, and its schedule has it go on")
        # Woken, or out of time: comes back at once.
        return self._parking.schedule(0)

    def peek(self) -> tuple[int, int]:
        """Bit sets of the actors that wait and that were woken."""
        return self._bits(self._parking.waiting), self._bits(self._parking.woken)

    def _bits(self, tasks: set[ThreadTask]) -> int:
        return sum(1 << actor.index for actor in self._runtime.baton.actors if actor.task in tasks)


class _Value:
    """A `SharedObject` as it is: its value under a lock."""

    def __init__(self, declaration: SharedObject) -> None:
        self._declaration = declaration
        self._value = declaration.initial
        self._lock = threading.Lock()

    def perform(self, operation: str, actor: int, expected: Any, arguments: tuple[Any, ...]) -> Any:
        del expected
        declaration = self._declaration
        function = declaration.operations[operation]
        who = (actor,) if operation in declaration.personal else ()
        with self._lock:
            result = function(self._value, *who, *arguments)
            if result is None:
                return BLOCKED
            self._value, observed = result
        return observed

    def peek(self) -> Any:
        return self._value


class BatonObject:
    """A `SharedObject`, or what stands for it; each operation is announced first."""

    __slots__ = ("_index", "_parking", "_real", "_runtime", "name")

    def __init__(self, runtime: BatonRuntime, index: int, name: str, real: RealObject) -> None:
        self.name = name
        self._runtime = runtime
        self._index = index
        self._real = real
        self._parking = Parking(runtime.threads)

    def apply(self, operation: str, *arguments: Hashable) -> Any:
        """Performs one declared operation and returns its result."""

        def perform(expected: Any) -> Any:
            return self._wait(operation, expected, arguments)

        return self._runtime.perform((self._index, operation, arguments), self.name, perform)

    def _wait(self, operation: str, expected: Any, arguments: tuple[Any, ...]) -> Any:
        runtime = self._runtime
        actor = -1 if runtime.actor is None else runtime.actor.index
        if not runtime.baton.free:
            result = self._real.perform(operation, actor, expected, arguments)
            if result is BLOCKED:
                raise InternalError(f"{operation}({self.name}) would block, and its schedule has it go on")
            return result
        while True:
            self._parking.enqueue()
            result = self._real.perform(operation, actor, expected, arguments)
            if result is not BLOCKED:
                self._parking.finish()
                # Whoever waits looks again, whatever has changed.
                self._parking.wake_all()
                return result
            self._parking.schedule()

    def peek(self) -> Any:
        """The value now."""
        return self._real.peek()


class BatonWork:
    """A work item: an actor of its own that takes, runs, and is done."""

    def __init__(
        self,
        runtime: BatonRuntime,
        index: int,
        name: str,
        role: str,
        function: Callable[[], None],
        at_rest: WaitQueue | None,
    ) -> None:
        def with_actor(step: Callable[[int, int], Any]) -> Callable[..., Any]:
            return lambda value: step(value, 0)

        self.name = f"{name} work"
        self._function = function
        self._at_rest = at_rest
        self._done = "done" if at_rest is None else "rest"
        operations = {
            "queue": with_actor(model.work_queue),
            "take": with_actor(model.work_take),
            "done": with_actor(model.work_done),
            "rest": with_actor(model.work_rest),
            "read": with_actor(model.read),
        }
        self._object = BatonObject(runtime, index, self.name, _Value(SharedObject(self.name, 0, operations)))
        self.task = runtime.spawn(name, role, self._turn, repeats=True)

    def _turn(self) -> None:
        self._object.apply("take")
        self._function()
        rests = self._object.apply(self._done)
        if self._at_rest is not None and rests:
            self._at_rest.wake_all()

    def queue(self) -> None:
        self._object.apply("queue")

    def nudge(self) -> None:
        """Nothing: an interrupt queues the item in its own step here."""

    @property
    def pending(self) -> bool:
        queued: int = self._object.apply("read")
        return queued != 0

    def peek(self) -> Any:
        """The value now."""
        return self._object.peek()


class BatonRuntime:
    """The primitives; a program's `build` declares on it what it declares on a `ControlledRuntime`.

    Args:
        world: of the script: its program is built, its objects are the numbers of the keys.
        steps: the script.
        real: what stands for a `SharedObject`; None for its value under a lock.
        real_word: likewise for a shared word.
        ring: called in the step in which an interrupt wakes its waiters; whether it was really raised.
    """

    batch = 1

    def __init__(
        self,
        world: World,
        steps: Sequence[Step],
        *,
        real: Callable[[SharedObject], RealObject | None] = lambda _: None,
        real_word: Callable[[str, int], Any] = lambda _name, _value: None,
        ring: Callable[[int], bool] = lambda _: True,
    ) -> None:
        self.world = world
        self.ring = ring
        self.settled = threading.Event()
        #: Whether all threads have ended after a run: what they used may be freed.
        self.ended = False
        #: Whether the actors that `settle` waits for have closed a circle of lock waiters.
        self.circle = False
        self._awaited: frozenset[str] = frozenset()
        self.threads = ThreadRuntime(
            virtual_clock=True, on_deadlock=self._on_deadlock, on_still=self.settled.set
        )
        self.baton = Baton(steps, self._advance)
        self.objects: list[Any] = [None, None]
        self.interrupts: dict[int, list[Callable[[], None]]] = {}
        #: The script's time, and (deadline, actor, wait queue or -1) of each timer that runs.
        self.now = 0
        self.timers: list[tuple[int, int, int]] = []
        self._real = real
        self._real_word = real_word
        self._local = threading.local()

    # -- declarations, for `build` -------------------------------------------

    def _declare(self, kind: str, name: str, make: Callable[[int], T]) -> T:
        index = len(self.objects)
        known = self.world.objects[index] if index < len(self.world.objects) else None
        if known is None or (known.kind, known.name) != (kind, name):
            raise InternalError(
                f"{kind} {name!r} is not what the world of {self.world.program.name} has there"
            )
        self.objects.append(None)
        made = make(index)
        self.objects[index] = made
        return made

    def mutex(self, name: str) -> BatonMutex:
        return self._declare("mutex", name, lambda index: BatonMutex(self, index, name))

    def shared(self, name: str, value: int = 0) -> BatonShared | ThreadShared:
        if name in self.world.program.statistics:
            return ThreadShared(name, value)
        word = self._real_word(name, value) or ThreadShared(name, value)
        return self._declare("word", name, lambda index: BatonShared(self, index, word))

    def wait_queue(self, name: str) -> BatonWaitQueue:
        return self._declare("wait queue", name, lambda index: BatonWaitQueue(self, index, name))

    def shared_object(self, declaration: SharedObject) -> BatonObject:
        """A model object, or what stands for it."""
        real = self._real(declaration) or _Value(declaration)
        name = declaration.name
        return self._declare("object", name, lambda index: BatonObject(self, index, name, real))

    def work(
        self,
        name: str,
        role: str,
        function: Callable[[], None],
        *,
        interrupts: tuple[int, ...] = (),
        at_rest: WaitQueue | None = None,
    ) -> BatonWork:
        work = self._declare(
            "work", f"{name} work", lambda index: BatonWork(self, index, name, role, function, at_rest)
        )
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
    ) -> BatonActor:
        """Declares an actor; `run` starts its thread."""
        del daemon
        actor = BatonActor(len(self.baton.actors), name, role, function, repeats=repeats)
        self.baton.actors.append(actor)
        return actor

    def invariant(
        self, name: str, predicate: Callable[..., bool], *objects: Any, at_rest: bool = False
    ) -> None:
        """Known from the script's world."""

    def progress(self, item: Any, kind: str) -> None:
        """Known from the script's world."""

    def watch(self, item: Any) -> None:
        """Known from the script's world."""

    def excuse(self, predicate: Callable[..., bool], *objects: Any) -> None:
        """Known from the script's world."""

    # -- primitives ----------------------------------------------------------

    @property
    def actor(self) -> BatonActor | None:
        """The calling thread's; None for the one that builds."""
        return getattr(self._local, "actor", None)

    def this_task(self) -> ThreadTask:
        return self.threads.current()

    def perform(self, key: tuple[int, str, Hashable], name: str, action: Callable[[Any], Any]) -> Any:
        """Waits for the baton where the script says so, performs an operation, compares what it gave.

        Args:
            key: number of the object, kind, argument.
            name: of the object, for reports.
            action: performs it; is given what the script says it observes.
        """
        actor = self.actor
        if actor is None:
            return action(None)
        baton = self.baton
        expected = baton.arrive(actor, key, lambda: _text(key, name))
        try:
            observed = action(expected)
        except InternalError as error:
            baton.fail(str(error), error.why)
            raise Stopped from None
        except Exception as error:
            baton.done(actor, Raised(error))
            raise
        baton.done(actor, observed)
        if observed.__class__ is Raised:
            raise observed.error
        return observed

    def arm(self, duration_ns: int, queue: int = -1) -> int:
        """Starts the calling actor's timer; its deadline by the script's time."""
        actor = self.actor
        assert actor is not None
        deadline = self.now + duration_ns

        def start(expected: Any) -> None:
            del expected
            self.timers.append((deadline, actor.index, queue))

        self.perform((CLOCK, "arm", (duration_ns, queue)), "clock", start)
        return deadline

    def disarm(self) -> None:
        """Stops the timers of the calling actor's waits."""
        actor = self.actor
        assert actor is not None

        def stop(expected: Any) -> None:
            del expected
            self.timers = [timer for timer in self.timers if timer[1] != actor.index or timer[2] < 0]

        self.perform((CLOCK, "disarm", None), "clock", stop)

    def sleep(self, duration_ns: int) -> None:
        deadline = self.arm(duration_ns)

        def asleep(expected: Any) -> None:
            del expected
            if deadline > self.now and not self.baton.free:
                raise InternalError("a sleeper goes on before its time")
            if deadline > self.now:
                self.threads.sleep(deadline - self.now)

        self.perform((CLOCK, "asleep", None), "clock", asleep)

    def relax(self) -> None:
        if self.actor is not None:
            self.perform((NOTHING, "relax", None), "", self._relaxes)

    def cpu_relax(self) -> None:
        """One turn of a busy loop."""
        if self.actor is not None:
            self.perform((NOTHING, "cpu_relax", None), "", self._relaxes)

    def _relaxes(self, expected: Any) -> None:
        del expected
        if self.baton.free:
            self.threads.relax()

    def now_ns(self) -> int:
        if not self.world.bounds.absolute_time:
            return 0

        def look(expected: Any) -> Any:
            # The clock's other half, the timers, is nobody's to see.
            return expected if expected is not None and expected[0] == self.now else (self.now, ())

        value: tuple[int, Any] = self.perform((CLOCK, "now", None), "clock", look)
        return value[0]

    def choose(self, name: str, options: int) -> int:
        """The environment's choice: the script's, or the ordinary one."""
        del options
        choice: int = self.perform(
            (NOTHING, "choose", name), name, lambda expected: 0 if expected is None else expected
        )
        return choice

    def interrupt(self, fd: int) -> None:
        """What a write to this eventfd does."""
        for effect in self.interrupts.get(fd, ()):
            effect()

    # -- time ----------------------------------------------------------------

    def _advance(self) -> None:
        """To the next expiry."""
        self.now = min(timer[0] for timer in self.timers)
        self.timers = [timer for timer in self.timers if timer[0] > self.now]

    def real_time(self, deadline: int) -> int:
        """A deadline of the script's time as one of the threads' time; for whoever was let go."""
        return self.threads.now_ns() + max(0, deadline - self.now)

    # -- a run ---------------------------------------------------------------

    @contextlib.contextmanager
    def run(self, build: Callable[[Any], object]) -> Iterator[None]:
        """Builds the program and forces the script; inside the with block it is over and nobody runs.

        Raises:
            Diverged: if it could not be forced.
            BalloonError: if a thread cannot be ended.
        """
        baton = self.baton
        try:
            build(self)
            baton.begin(self._start)
            if not baton.over.wait(PATIENCE):
                baton.fail("nobody goes on", why=self._standing())
            if baton.failure is not None:
                raise baton.failure
            yield
        finally:
            baton.end()
            if not self.threads.stop(PATIENCE):
                raise BalloonError("a thread of the replay cannot be ended", why=self._standing())
            for actor in baton.actors:
                # Also those that `stop` did not find any more: their threads may be about to end.
                if actor.task is not None:
                    self.threads.join(actor.task)
            self.threads.close()
            self.ended = True

    def _start(self, actor: BatonActor) -> None:
        actor.task = self.threads.spawn(actor.name, actor.role, lambda: self._live(actor))

    def _live(self, actor: BatonActor) -> None:
        """An actor's whole life in its thread."""
        self._local.actor = actor
        # The thread may be here before `spawn` has come back.
        actor.task = self.threads.current()
        try:
            actor.function()
            while actor.repeats:
                actor.function()
        except Stopped:
            return
        except BaseException as error:
            self.baton.finish(actor, error)
            return
        self.baton.finish(actor, None)

    def settle(self, stuck: Sequence[int]) -> None:
        """Lets all threads go, and waits until nothing can happen any more, or these actors are a closed circle.

        Others may go on after that: they may even close circles of their own.

        Raises:
            Diverged: if it does not come to that.
        """
        if all(actor.finished for actor in self.baton.actors):
            return
        self._awaited = frozenset(self.baton.actors[index].name for index in stuck)
        self.settled.clear()
        self.baton.let_go()
        if not self.settled.wait(PATIENCE):
            names = ", ".join(self.baton.actors[index].name for index in stuck)
            self.baton.fail(f"{names or 'the actors'} did not come to rest", why=self._standing())
            assert self.baton.failure is not None
            raise self.baton.failure

    def _on_deadlock(self, circle: tuple[DeadlockTask, ...]) -> None:
        if {task.task for task in circle} == self._awaited:
            self.circle = True
            self.settled.set()

    def _standing(self) -> str:
        return "; ".join(f"{name} stands at {where}" for name, where in self.threads.standing())

    def report(self, actor: BatonActor, below: frozenset[str]) -> DeadlockTask:
        """Where an actor's thread really stands: what it waits for, what it holds, its stack."""
        task = actor.task
        assert task is not None
        wanted = task.waiting_for
        owner = None if wanted is None else wanted.owner
        stack = self.threads.stack(task, below)
        return DeadlockTask(
            task=actor.name,
            role=actor.role,
            holds=tuple(HeldLock(name=lock.name, where=lock.taken_where) for lock in task.held),
            wants=_text(actor.pending, self.name(actor.pending)) if actor.pending else "",
            wants_where=stack[-1].partition(" in ")[0] if stack else "",
            owner="" if owner is None else owner.name,
            stack=stack,
        )

    def name(self, key: tuple[int, str, Hashable]) -> str:
        """The name of a key's object."""
        return self.world.objects[key[0]].name

    def values(self) -> list[Any]:
        """What `ControlledRuntime.values` are, read off the real things; the clock's and nothing's are left out."""
        owners = {actor.task: actor.index for actor in self.baton.actors}
        found: list[Any] = []
        for made in self.objects:
            if isinstance(made, BatonMutex):
                found.append(-1 if made.owner is None else owners[made.owner])
            else:
                found.append(None if made is None else made.peek())
        return found


def _text(key: tuple[int, str, Hashable], name: str) -> str:
    """An operation in words, as `Operation` says it."""
    _, kind, argument = key
    if argument is None or argument == ():
        return f"{kind}({name})"
    if isinstance(argument, tuple):
        return f"{kind}({', '.join([name, *map(str, argument)])})"
    return f"{kind}({name}, {argument})"


def _outside() -> Any:
    """The frame of whoever called a primitive: no file of the explorer's."""
    frame = sys._getframe(2)
    while frame.f_back is not None and frame.f_code.co_filename in BELOW:
        frame = frame.f_back
    return frame


def _conforms(runtime: BatonRuntime) -> Runtime:
    """For the type checker: the driver's code runs here unchanged."""
    return runtime
