"""The runtime on real threads.

Every blocking point goes through one raw lock, `_guard`, under which the
wait-for graph is exact: who owns which mutex, who waits for which. A task that
is about to sleep on a mutex first walks from that mutex's owner to what the
owner waits for, and so on; if the walk comes back to itself the circle is
closed *now*, and the deadlock is reported before the task parks. No timer is
involved, and there are no false alarms: a circle of sleeping lock waiters can
never resolve itself.

A stopping runtime throws `Stopped` into every blocked task, so that even
deadlocked threads unwind and can be joined.

Time is real, or virtual. Virtual time stands still while any task runs and
jumps to the next deadline when every task is blocked, so scripts neither wait
nor depend on the speed of the machine. A task that waits for the device counts
as running for `DEVICE_GRACE_NS` of real time, since the device is a real thread
that will answer soon; after that it counts as blocked, or a stalled device
would stop the clock for ever.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import select
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator
from contextvars import ContextVar
from pathlib import PurePath
from types import CodeType, FrameType
from typing import TypeVar

from balloonvq.counters import DeadlockTask, HeldLock
from balloonvq.errors import InternalError
from balloonvq.runtime import Stopped, WaitQueue
from balloonvq.runtime._mutex import Mutex
from balloonvq.runtime.frames import callers, current_frames

__all__ = [
    "Parking",
    "ThreadMutex",
    "ThreadRuntime",
    "ThreadShared",
    "ThreadTask",
    "ThreadWaitQueue",
    "ThreadWork",
]

T = TypeVar("T")

#: How long a wait for the device counts as running under the virtual clock. A device that takes longer
#: is stalled, and everybody else's time limits may run out.
DEVICE_GRACE_NS = 2_000_000_000

#: One jiffy of the emulated kernel (HZ=1000): what `relax` sleeps.
JIFFY_NS = 1_000_000

_HERE = __file__


class ThreadTask:
    """A task and the thread that runs it."""

    __slots__ = (
        "_pollers",
        "busy",
        "done",
        "error",
        "finished",
        "held",
        "ident",
        "name",
        "parked",
        "parker",
        "role",
        "stack_bytes",
        "thread",
        "waiting_for",
        "waiting_where",
        "wake_fd",
    )

    def __init__(self, name: str, role: str) -> None:
        self.name = name
        self.role = role
        self.held: list[ThreadMutex] = []
        self.waiting_for: ThreadMutex | None = None
        self.waiting_where = ""
        self.parker = threading.Lock()
        self.parker.acquire()
        self.parked = False
        self.busy = True
        self.finished = False
        #: Set when it has given everything back: the runtime may go.
        self.done = threading.Event()
        self.error: BaseException | None = None
        self.thread: threading.Thread | None = None
        self.ident = 0
        self.stack_bytes = 0
        self.wake_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._pollers: dict[ThreadWaitQueue, select.epoll] = {}

    def poller(self, queue: ThreadWaitQueue, stop_fd: int) -> select.epoll:
        """This task's epoll set for a wait queue.

        Edge-triggered, so each write to an eventfd wakes every waiter once and
        nobody has to drain it: an interrupt must not be eaten by one of two
        waiters.
        """
        poller = self._pollers.get(queue)
        if poller is None:
            poller = select.epoll()
            poller.register(stop_fd, select.EPOLLIN)
            poller.register(self.wake_fd, select.EPOLLIN | select.EPOLLET)
            for fd in queue.fds:
                poller.register(fd, select.EPOLLIN | select.EPOLLET)
            self._pollers[queue] = poller
        return poller

    def close(self) -> None:
        for poller in self._pollers.values():
            poller.close()
        self._pollers.clear()
        os.close(self.wake_fd)
        self.done.set()


def _where(code: CodeType | None, lasti: int) -> str:
    """file:line of an instruction; resolved only when somebody asks, for it is slow."""
    if code is None:
        return "?"
    for start, end, line in code.co_lines():
        if start <= lasti < end and line is not None:
            return f"{PurePath(code.co_filename).name}:{line}"
    return PurePath(code.co_filename).name


def _stack(frame: FrameType | None, below: Collection[str] = ()) -> tuple[str, ...]:
    """A thread's stack from outside this file and those `below`, innermost last."""
    lines = []
    while frame is not None:
        name = frame.f_code.co_filename
        if name not in (_HERE, threading.__file__) and name not in below:
            lines.append(f"{_where(frame.f_code, frame.f_lasti)} in {frame.f_code.co_qualname}")
        frame = frame.f_back
    return tuple(reversed(lines))


def _standing(frame: FrameType | None, users_file: str) -> str:
    """Where a thread stands, and the innermost line of a file of the user that has called it there."""
    where = (_stack(frame) or ("?",))[-1]
    for caller in callers(frame):
        if caller.f_code.co_filename == users_file:
            users = f"{_where(caller.f_code, caller.f_lasti)} in {caller.f_code.co_qualname}"
            return where if users == where else f"{where}, called from {users}"
    return where


class ThreadMutex(Mutex):
    """A mutex whose owner and waiters are known, with hand-over to the longest waiter.

    Taking a free mutex and releasing one that nobody waits for is done in C (mutex.c), and atomic. Everything
    else happens under the runtime's guard. A waiter lists itself first and then tries once more; an
    unlocker releases first and then looks for waiters: one of the two always
    sees the other.
    """

    __slots__ = ("_runtime", "name")

    def __init__(self, runtime: ThreadRuntime, name: str) -> None:
        super().__init__(runtime._task.get, deque())
        self.name = name
        self._runtime = runtime

    @property
    def owner(self) -> ThreadTask | None:
        return self._owner

    @property
    def taken_where(self) -> str:
        """file:line at which its owner took it."""
        return _where(self._code, self._lasti)

    def held_by_me(self) -> bool:
        return self._owner is self._runtime.current()

    def trylock(self) -> bool:
        task = self._runtime.current()
        if not self._take():
            return False
        self._own(task, sys._getframe(1))
        return True

    def _lock_slow(self, task: ThreadTask, frame: FrameType) -> None:
        runtime = self._runtime
        with runtime._guard:
            runtime._check_stop()
            self._waiters.append(task)
            if self._take():
                self._waiters.remove(task)
                self._own(task, frame)
                return
            task.waiting_for = self
            task.waiting_where = _where(frame.f_code, frame.f_lasti)
            circle = self._circle(task)
            task.parked = True
        if circle:
            runtime._report_deadlock(circle)
        with runtime._guard:
            # Handed over in between: the park below returns at once.
            if task.parked:
                runtime._block(task)
        task.parker.acquire()
        with runtime._guard:
            task.waiting_for = None
            if self._owner is not task:
                with contextlib.suppress(ValueError):
                    self._waiters.remove(task)
                raise Stopped
            self._code = frame.f_code
            self._lasti = frame.f_lasti

    def _circle(self, task: ThreadTask) -> list[ThreadTask]:
        """The tasks of the circle that this wait closes, or nothing. Called under the guard.

        An owner that has just taken a lock may not be listed as its owner yet; it
        runs, so no circle goes through it, and if it blocks it walks itself. A walk
        that meets a task twice has reached a circle that others closed before.
        """
        circle = [task]
        owner = self._owner
        while owner is not None and owner not in circle:
            circle.append(owner)
            if owner.waiting_for is None:
                return []
            owner = owner.waiting_for._owner
        return circle if owner is task else []

    def _no_task(self) -> ThreadTask:
        return self._runtime.current()

    def _not_mine(self, task: ThreadTask) -> None:
        raise InternalError(f"{task.name} unlocks {self.name}, which it does not hold")

    def _hand_over(self) -> None:
        """Gives the free mutex to the longest waiter, unless somebody was quicker."""
        runtime = self._runtime
        with runtime._guard:
            if self._waiters and not runtime.stopping and self._take():
                heir = self._waiters.popleft()
                self._owner = heir
                heir.held.append(self)
                # Now, not when its thread runs: whoever walks past it before must not see it wait.
                heir.waiting_for = None
                runtime._unpark(heir)


class ThreadShared:
    """A shared word. A plain attribute is one access each way; `add` is atomic under its own lock."""

    __slots__ = ("_lock", "name", "value")

    def __init__(self, name: str, value: int) -> None:
        self.name = name
        self.value = value
        self._lock = threading.Lock()

    def add(self, delta: int) -> int:
        with self._lock:
            self.value += delta
            return self.value


class Parking:
    """Tasks that sleep until somebody lets them go on, in the kernel's four steps.

    `ThreadWaitQueue` does all of them in one call and listens to eventfds; this is for who has to stop
    between them. Virtual time only.
    """

    __slots__ = ("_runtime", "_sleeping", "waiting", "woken")

    def __init__(self, runtime: ThreadRuntime) -> None:
        #: Tasks between `enqueue` and the next `wake_all`; those that it has woken and that have not slept since.
        self.waiting: set[ThreadTask] = set()
        self.woken: set[ThreadTask] = set()
        #: A task may be on the queue and sleep elsewhere: its condition may take a mutex.
        self._sleeping: set[ThreadTask] = set()
        self._runtime = runtime

    def enqueue(self) -> None:
        """prepare_to_wait: from now on a wake-up is not missed."""
        with self._runtime._guard:
            task = self._runtime.current()
            self.waiting.add(task)
            self.woken.discard(task)

    def schedule(self, deadline_ns: int | None = None) -> bool:
        """Sleeps; True when woken, also before, False at the deadline.

        Raises:
            Stopped: when the runtime stops.
        """
        runtime = self._runtime
        task = runtime.current()
        sleeper = None
        with runtime._guard:
            runtime._check_stop()
            sleeps = task not in self.woken and (deadline_ns is None or deadline_ns > runtime._virtual_now)
            if sleeps:
                task.parked = True
                self._sleeping.add(task)
                if deadline_ns is not None:
                    sleeper = runtime._add_sleeper(deadline_ns, task, parked=True)
                runtime._block(task)
        if sleeps:
            task.parker.acquire()
        with runtime._guard:
            if sleeper is not None:
                sleeper.over = True
            self._sleeping.discard(task)
            runtime._check_stop()
            woken = task in self.woken
            self.woken.discard(task)
            return woken

    def finish(self) -> None:
        """finish_wait: off the queue."""
        with self._runtime._guard:
            task = self._runtime.current()
            self.waiting.discard(task)
            self.woken.discard(task)

    def wake_all(self) -> None:
        """Lets everybody on the queue go on."""
        runtime = self._runtime
        with runtime._guard:
            for task in self.waiting & self._sleeping:
                runtime._unpark(task)
            self.woken |= self.waiting
            self.waiting.clear()


class ThreadWaitQueue:
    """Waiters of a condition, woken by other tasks or by eventfds.

    Args:
        runtime: whose tasks wait.
        name: as reports show it.
        idle: waiting here is having nothing to do, not waiting for the device's answer.
    """

    __slots__ = ("_runtime", "_waiters", "fds", "idle", "name")

    def __init__(self, runtime: ThreadRuntime, name: str, *, idle: bool = False) -> None:
        self.name = name
        self.idle = idle
        self.fds: list[int] = []
        self._runtime = runtime
        self._waiters: list[ThreadTask] = []

    def attach(self, fd: int) -> None:
        self.fds.append(fd)

    def wake_all(self) -> None:
        # A waiter lists itself before it looks at its condition, so one that is not listed yet will see
        # what the caller has changed.
        if not self._waiters:
            return
        runtime = self._runtime
        with runtime._guard:
            for task in self._waiters:
                runtime._unblock(task)
                os.eventfd_write(task.wake_fd, 1)

    def wait_until(self, condition: Callable[[], T], timeout_ns: int | None = None) -> T:
        """Sleeps until condition() is true; returns its value, or a false one after timeout_ns.

        Raises:
            Stopped: when the runtime stops.
        """
        value = condition()
        if value:
            return value
        runtime = self._runtime
        task = runtime.current()
        poller = task.poller(self, runtime._stop_fd)
        deadline = None if timeout_ns is None else runtime.now_ns() + timeout_ns
        with runtime._guard:
            self._waiters.append(task)
        try:
            while not (value := condition()):
                runtime._check_stop()
                if deadline is not None and runtime.now_ns() >= deadline:
                    break
                runtime._poll(task, poller, deadline, device=bool(self.fds) and not self.idle)
            return value
        finally:
            with runtime._guard:
                self._waiters.remove(task)


class ThreadWork:
    """A work item with a thread of its own."""

    __slots__ = ("_at_rest", "_fds", "_function", "_queued", "_ready", "_running", "task")

    def __init__(
        self,
        runtime: ThreadRuntime,
        name: str,
        role: str,
        function: Callable[[], None],
        interrupts: tuple[int, ...],
        at_rest: WaitQueue | None,
    ) -> None:
        self._function = function
        self._at_rest = at_rest
        self._queued = False
        self._running = False
        self._fds = interrupts
        self._ready = ThreadWaitQueue(runtime, f"{name} work", idle=True)
        for fd in interrupts:
            self._ready.attach(fd)
        self.task = runtime.spawn(name, role, self._loop)

    @property
    def pending(self) -> bool:
        # In the order in which an order travels: eventfd or queued flag, then running. Queued once more in
        # the end: a run may queue the next one and end between the looks.
        return self._queued or self._raised() or self._running or self._queued

    def queue(self) -> None:
        self._queued = True
        # A work item that queues itself does not wait: then nobody has to be woken.
        if self._ready._waiters:
            self._ready.wake_all()

    def nudge(self) -> None:
        self._ready.wake_all()

    def _raised(self) -> bool:
        """Whether an interrupt waits to be taken."""
        poller = select.poll()
        for fd in self._fds:
            poller.register(fd, select.POLLIN)
        return bool(poller.poll(0))

    def _take(self) -> bool:
        # An interrupt and a queued flag are one order to run. While it is queued nobody looks at the
        # eventfds: an interrupt stays in them, and makes it run once more.
        if not (self._queued or self._raised()):
            return False
        # Running before the order is taken: `pending` must see it in one of the places.
        self._running = True
        if not self._queued:
            for fd in self._fds:
                # This work item is the only reader of these eventfds, so draining is safe.
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(fd)
        self._queued = False
        return True

    def _loop(self) -> None:
        while True:
            # As `_take` while it is queued, without a look at the eventfds: most runs queue the next one.
            if self._queued:
                self._running = True
                self._queued = False
            else:
                self._ready.wait_until(self._take)
            try:
                self._function()
            finally:
                self._running = False
            if self._at_rest is not None and not self._queued:
                self._at_rest.wake_all()


class _Sleeper:
    """A task's place in the order of virtual deadlines."""

    __slots__ = ("over", "parked", "task")

    def __init__(self, task: ThreadTask, *, parked: bool) -> None:
        self.task = task
        self.parked = parked
        #: The task was woken by something else: its deadline means nothing any more.
        self.over = False


class ThreadRuntime:
    """Tasks on real threads, an exact wait-for graph, real or virtual time.

    Args:
        virtual_clock: time stands still while any task runs (see the module's text).
        cpu: bind every task to this processor, or None. A driver and its device
            alternate, so sharing a processor saves the cost of waking a second one.
        on_deadlock: called once a circle, by the task that closed it, with its
            tasks.
        on_crash: called when a task ends with an exception that is not `Stopped`.
        on_still: called, under the runtime's own lock, each time that no task runs any more and none has a
            deadline: without help from outside nothing will ever happen again. With a virtual clock only.
    """

    batch = 256

    def __init__(
        self,
        *,
        virtual_clock: bool = False,
        cpu: int | None = None,
        on_deadlock: Callable[[tuple[DeadlockTask, ...]], None] | None = None,
        on_crash: Callable[[ThreadTask, BaseException], None] | None = None,
        on_still: Callable[[], None] | None = None,
    ) -> None:
        self._guard = threading.Lock()
        #: What the calling thread is here; a context variable, which is found in less time than a thread-local one.
        self._task: ContextVar[ThreadTask | None] = ContextVar("task", default=None)
        self._tasks: list[ThreadTask] = []
        self._stop_fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._stopped = threading.Event()
        self._virtual = virtual_clock
        self._virtual_now = 0
        self._busy = 0
        self._sleepers: list[tuple[int, int, _Sleeper]] = []
        self._sequence = itertools.count()
        self._cpu = cpu
        self._on_deadlock = on_deadlock
        self._on_crash = on_crash
        self._on_still = on_still

    # -- tasks ---------------------------------------------------------------

    @property
    def stopping(self) -> bool:
        return self._stopped.is_set()

    def current(self) -> ThreadTask:
        """The calling task.

        Raises:
            InternalError: if the calling thread is no task; see `adopted`.
        """
        task = self._task.get()
        if task is None:
            raise InternalError(f"thread {threading.current_thread().name} is no task of this runtime")
        return task

    def _new_task(self, name: str, role: str) -> ThreadTask:
        """A task that counts as running."""
        with self._guard:
            self._check_stop()
            task = ThreadTask(name, role)
            self._tasks.append(task)
            self._busy += 1
        return task

    this_task = current

    def spawn(self, name: str, role: str, function: Callable[[], object]) -> ThreadTask:
        task = self._new_task(name, role)
        task.thread = threading.Thread(target=self._run, args=(task, function), name=name, daemon=True)
        try:
            task.thread.start()
        except BaseException:
            self._retire(task)
            raise
        return task

    def _run(self, task: ThreadTask, function: Callable[[], object]) -> None:
        self._task.set(task)
        task.ident = threading.get_ident()
        if self._cpu is not None:
            # Best effort: a container may forbid it, and nothing depends on it but speed.
            with contextlib.suppress(OSError):
                os.sched_setaffinity(0, {self._cpu})
        try:
            function()
        except Stopped:
            pass
        except BaseException as error:
            task.error = error
            if self._on_crash is not None:
                self._on_crash(task, error)
        finally:
            self._retire(task)

    def _retire(self, task: ThreadTask) -> None:
        """The task is over: nobody waits for it, and it holds nothing of ours."""
        with self._guard:
            task.finished = True
            self._block(task)
            self._tasks.remove(task)
        task.close()

    @contextlib.contextmanager
    def adopted(self, name: str, role: str) -> Iterator[ThreadTask]:
        """Makes the calling thread a task for the length of a with block; nesting keeps the outer one.

        Raises:
            Stopped: if the runtime has been stopped.
        """
        task = self._task.get()
        if task is not None:
            yield task
            return
        task = self._new_task(name, role)
        task.ident = threading.get_ident()
        token = self._task.set(task)
        try:
            yield task
        finally:
            self._task.reset(token)
            self._retire(task)

    def join(self, task: ThreadTask, timeout: float | None = None) -> bool:
        """Waits for a task, and a spawned one's thread; whether it has ended."""
        if not task.done.wait(timeout):
            return False
        if task.thread is not None and task.thread.ident is not None:
            # Nothing of ours is left in it: it ends by itself.
            task.thread.join()
        return True

    def stop(self, timeout: float = 5.0) -> bool:
        """Throws `Stopped` into every blocked task and waits for all of them to end.

        Threads that were adopted count too: what the caller is going to free is in their
        hands as well. Returns whether all ended within the time. Calling it again is harmless.
        """
        with self._guard:
            self._stopped.set()
            tasks = list(self._tasks)
            for task in tasks:
                self._unpark(task)
        os.eventfd_write(self._stop_fd, 1)
        deadline = time.monotonic() + timeout
        me = threading.get_ident()
        return all(
            self.join(task, max(0.0, deadline - time.monotonic())) for task in tasks if task.ident != me
        )

    def standing(self, users_file: str = "") -> tuple[tuple[str, str], ...]:
        """The tasks that have not ended, by name, each with the file:line at which it stands.

        Args:
            users_file: whose innermost line is named as well, if the task was called from there.
        """
        with self._guard:
            tasks = [task for task in self._tasks if task.thread is not None]
        frames = current_frames()
        return tuple((task.name, _standing(frames.get(task.ident), users_file)) for task in tasks)

    def stack(self, task: ThreadTask, below: Collection[str] = ()) -> tuple[str, ...]:
        """The stack of a task that stands still, innermost last, without this file and those `below`."""
        return _stack(current_frames().get(task.ident), below)

    def close(self) -> None:
        """Gives the stop eventfd back; only after `stop` returned True."""
        os.close(self._stop_fd)

    def _check_stop(self) -> None:
        if self._stopped.is_set():
            raise Stopped

    # -- primitives ----------------------------------------------------------

    def mutex(self, name: str) -> ThreadMutex:
        return ThreadMutex(self, name)

    def shared(self, name: str, value: int = 0) -> ThreadShared:
        return ThreadShared(name, value)

    def wait_queue(self, name: str) -> ThreadWaitQueue:
        return ThreadWaitQueue(self, name)

    def work(
        self,
        name: str,
        role: str,
        function: Callable[[], None],
        *,
        interrupts: tuple[int, ...] = (),
        at_rest: WaitQueue | None = None,
    ) -> ThreadWork:
        return ThreadWork(self, name, role, function, interrupts, at_rest)

    def choose(self, name: str, options: int) -> int:
        """Live, the environment makes its choices itself."""
        del name, options
        return 0

    def relax(self) -> None:
        self.sleep(JIFFY_NS)

    def cpu_relax(self) -> None:
        # As if on a machine with a processor for everybody: Python's threads share one, which would stand still.
        self.relax()

    # -- time ----------------------------------------------------------------

    def now_ns(self) -> int:
        return self._virtual_now if self._virtual else time.monotonic_ns()

    def sleep(self, duration_ns: int) -> None:
        if not self._virtual:
            if self._stopped.wait(duration_ns / 1e9):
                raise Stopped
            return
        task = self.current()
        with self._guard:
            self._check_stop()
            task.parked = True
            self._add_sleeper(self._virtual_now + duration_ns, task, parked=True)
            self._block(task)
        task.parker.acquire()
        self._check_stop()

    def _add_sleeper(self, deadline: int, task: ThreadTask, *, parked: bool) -> _Sleeper:
        sleeper = _Sleeper(task, parked=parked)
        heapq.heappush(self._sleepers, (deadline, next(self._sequence), sleeper))
        return sleeper

    def _next_deadline(self) -> int | None:
        """The first deadline that somebody still waits for."""
        while self._sleepers and self._sleepers[0][2].over:
            heapq.heappop(self._sleepers)
        return self._sleepers[0][0] if self._sleepers else None

    def _block(self, task: ThreadTask) -> None:
        """The task stops being busy; under the guard. The last one moves virtual time."""
        if not task.busy:
            return
        task.busy = False
        self._busy -= 1
        if not self._virtual or self._busy:
            return
        if (deadline := self._next_deadline()) is None:
            if self._on_still is not None:
                self._on_still()
            return
        self._virtual_now = max(self._virtual_now, deadline)
        while (deadline := self._next_deadline()) is not None and deadline <= self._virtual_now:
            sleeper = heapq.heappop(self._sleepers)[2]
            if sleeper.parked:
                self._unpark(sleeper.task)
            else:
                self._unblock(sleeper.task)
                os.eventfd_write(sleeper.task.wake_fd, 1)

    def _unblock(self, task: ThreadTask) -> None:
        if not task.busy and not task.finished:
            task.busy = True
            self._busy += 1

    def _unpark(self, task: ThreadTask) -> None:
        if task.parked:
            task.parked = False
            self._unblock(task)
            task.parker.release()

    def _poll(self, task: ThreadTask, poller: select.epoll, deadline: int | None, *, device: bool) -> None:
        """One sleep of a waiter, until an event, the deadline or the stop."""
        if not self._virtual:
            poller.poll(-1 if deadline is None else max(0, deadline - time.monotonic_ns()) / 1e9)
            return
        if device and poller.poll(DEVICE_GRACE_NS / 1e9):
            return
        sleeper = None
        with self._guard:
            # A wake-up since the last look at the condition: the task has work, so time stands still.
            if poller.poll(0):
                return
            if deadline is not None:
                sleeper = self._add_sleeper(deadline, task, parked=False)
            self._block(task)
        try:
            poller.poll()
        finally:
            with self._guard:
                if sleeper is not None:
                    sleeper.over = True
                self._unblock(task)

    # -- deadlock ------------------------------------------------------------

    def _report_deadlock(self, circle: list[ThreadTask]) -> None:
        """Describes the circle. Its other members sleep in it, so their stacks stand still."""
        frames = current_frames()
        report = []
        for task in circle:
            wanted = task.waiting_for
            owner = wanted.owner if wanted is not None else None
            report.append(
                DeadlockTask(
                    task=task.name,
                    role=task.role,
                    holds=tuple(HeldLock(name=lock.name, where=lock.taken_where) for lock in task.held),
                    wants=wanted.name if wanted is not None else "",
                    wants_where=task.waiting_where,
                    owner=owner.name if owner is not None else "",
                    stack=_stack(frames.get(task.ident)),
                )
            )
        if self._on_deadlock is not None:
            self._on_deadlock(tuple(report))
