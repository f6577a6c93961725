"""The primitives that driver, guest and designs are written in.

A driver source never imports threading, time or random. It asks a `Runtime`
for locks, wait queues, shared words and time, so that the same lines run on
real threads (`balloonvq.runtime.threads`) and under a controlled scheduler that
tries every interleaving.

Each method of these classes that may block or that touches shared state is one
scheduling point, in the sense of the kernel primitive it is named after:

========================  ==================================================
here                      in the kernel
========================  ==================================================
``Mutex.lock / trylock``  ``mutex_lock``, ``mutex_trylock``
``Shared.value``          ``READ_ONCE`` on reading, ``WRITE_ONCE`` on writing
``Shared.add``            ``atomic64_add_return``
``WaitQueue.wait_until``  ``wait_event``
``WaitQueue.wake_all``    ``wake_up_all``
``Work.queue``            ``queue_work``
``Runtime.sleep``         ``msleep``
``Runtime.relax``         ``schedule_timeout_uninterruptible(1)``
``Runtime.cpu_relax``     ``cpu_relax``
``Runtime.spawn``         ``kthread_run``
========================  ==================================================
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Protocol, TypeVar

__all__ = ["Mutex", "Runtime", "Shared", "Stopped", "Task", "WaitQueue", "Work"]

T = TypeVar("T")


class Stopped(BaseException):
    """Thrown into every task that is blocked when its runtime stops.

    Not an `Exception`, so that a design's own error handling cannot swallow it.
    """


class Task(Protocol):
    """A thread of the guest kernel or of a guest program."""

    @property
    def name(self) -> str:
        """Short name, as columns and reports show it: W, O, C."""

    @property
    def role(self) -> str:
        """What it is, in words: size worker, OOM caller."""

    @property
    def finished(self) -> bool:
        """Whether its function has returned or raised."""

    @property
    def error(self) -> BaseException | None:
        """What it raised, if it did."""

    stack_bytes: int
    """How much of its kernel stack is in use, as far as `balloonvq.guest.stack` counts it."""


class Mutex(Protocol):
    """A sleeping lock with an owner. Not recursive."""

    @property
    def name(self) -> str:
        """As reports show it."""

    def lock(self) -> None:
        """Takes the lock, sleeping while another task holds it."""

    def trylock(self) -> bool:
        """Takes the lock if it is free; never sleeps."""

    def unlock(self) -> None:
        """Releases it; only its owner may."""

    def held_by_me(self) -> bool:
        """Whether the calling task holds it."""

    def __enter__(self) -> None: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None: ...


class Shared(Protocol):
    """An integer that several tasks read and write without a common lock."""

    value: int
    """Reading is READ_ONCE, writing is WRITE_ONCE; ``x.value += 1`` is both, with a gap between."""

    def add(self, delta: int) -> int:
        """Adds in one atomic step; returns the new value."""


class WaitQueue(Protocol):
    """Tasks that sleep until a condition holds."""

    def attach(self, fd: int) -> None:
        """Makes every write to this eventfd a `wake_all`: how an interrupt reaches its waiters."""

    def wait_until(self, condition: Callable[[], T], timeout_ns: int | None = None) -> T:
        """Sleeps until condition() is true and returns its value; a false one after timeout_ns.

        The four steps of the kernel: enqueue, check, schedule, check again.
        """

    def wake_all(self) -> None:
        """Lets every waiter check its condition again."""


class Work(Protocol):
    """A work item: never runs concurrently with itself."""

    @property
    def pending(self) -> bool:
        """Whether it is queued or running, or an interrupt that queues it has been raised."""

    def nudge(self) -> None:
        """Lets it look for interrupts now.

        For a host in the same process that has just raised one, so that virtual time cannot run
        ahead of it.
        """

    def queue(self) -> None:
        """Runs it once more, soon; queueing a queued item changes nothing."""


class Runtime(Protocol):
    """Where a driver and its guest run."""

    @property
    def batch(self) -> int:
        """Most pages that one step of the guest moves: 256 live, 1 under the explorer."""

    def this_task(self) -> Task:
        """The calling task."""

    def mutex(self, name: str) -> Mutex:
        """A new mutex."""

    def shared(self, name: str, value: int = 0) -> Shared:
        """A new shared word."""

    def wait_queue(self, name: str) -> WaitQueue:
        """A new wait queue."""

    def work(
        self,
        name: str,
        role: str,
        function: Callable[[], None],
        *,
        interrupts: tuple[int, ...] = (),
        at_rest: WaitQueue | None = None,
    ) -> Work:
        """A work item with its own task; a write to one of the eventfds queues it.

        `at_rest` is woken whenever a run has ended and no further one is queued: after
        `Work.pending` has become false, so that who waits for that looks at the right moment.
        """

    def spawn(self, name: str, role: str, function: Callable[[], object]) -> Task:
        """Starts a task."""

    def sleep(self, duration_ns: int) -> None:
        """Sleeps for at least that long, in this runtime's time."""

    def relax(self) -> None:
        """Lets others run: one turn of a retry loop."""

    def cpu_relax(self) -> None:
        """One turn of a busy loop: unlike `relax`, who does this does not give up its processor."""

    def now_ns(self) -> int:
        """This runtime's monotonic clock, nanoseconds."""

    def choose(self, name: str, options: int) -> int:
        """A choice that the environment makes: 0 .. options-1, 0 being the ordinary one."""
