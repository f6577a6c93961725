"""Allocation in the emulated kernel: free list, direct reclaim, OOM, the killer.

The steps are those of the Linux page allocator as far as a balloon driver can
feel them:

    take from the free list
    direct reclaim: a caller that may enter the filesystem waits for its lock
    take again; a NORETRY caller gives up here
    trylock oom_lock; whoever fails starts over (a retry loop, not a lock wait)
    take again
    out of memory: call the notifiers; if they freed nothing, kill - unless the
    caller may not enter the filesystem, which retries without killing

Where a driver has a shrinker (Linux 4.20 to 5.6) every direct reclaim calls it, in as
many tasks at once as there are, and so does kswapd, which whoever finds memory
short wakes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from balloonvq.errors import InvalidArgument
from balloonvq.guest.notifiers import Notifiers
from balloonvq.guest.pages import PFN_ARRAY_BYTES, Batch, PageAllocator, PfnArray, Place
from balloonvq.guest.stack import DEPTH_AT_RECLAIM_BYTES, KernelStacks
from balloonvq.guest.tasks import UserTask
from balloonvq.memory import PAGE_SIZE, GuestMemory
from balloonvq.runtime import Runtime, Work

__all__ = ["AllocationStuck", "Kernel", "OomWait"]

#: OOM rounds without any progress after which a GFP_NOFS allocation is given up. The real kernel
#: would retry for ever.
NOFS_ROUNDS_MAX = 64

#: Pages that reclaim asks a shrinker for: SHRINK_BATCH.
SHRINK_BATCH = 128


class AllocationStuck(Exception):
    """A GFP_NOFS allocation can neither be served nor kill: the real kernel would loop."""


@dataclass(slots=True)
class OomWait:
    """What a task went through because memory was out."""

    rounds: int = 0
    """Times it called the notifiers."""
    freed_pages: int = 0
    """Pages that notifiers freed for it."""
    waited_ns: int = 0
    """From each failed allocation to its success, in sum."""
    longest_ns: int = 0
    fruitless: int = 0
    """Rounds since a notifier last freed anything."""
    victim: str | None = None
    """The program that was killed for it."""


class Kernel:
    """The guest kernel's memory management.

    Args:
        runtime: where its tasks run.
        memory: guest RAM.
        pages: who has which page; the first kernel_bytes of RAM are the kernel's.
        kernel_bytes: size of that area, from which `boot_alloc` hands out.
    """

    def __init__(
        self, runtime: Runtime, memory: GuestMemory, pages: PageAllocator, kernel_bytes: int
    ) -> None:
        self.runtime = runtime
        self.memory = memory
        self.pages = pages
        self.fs_lock = runtime.mutex("fs_lock")
        self.oom_lock = runtime.mutex("oom_lock")
        #: OOM notifiers: called with oom_lock held.
        self.notifiers: Notifiers[Callable[[], int]] = Notifiers(runtime, "oom notifiers")
        #: Shrinkers: called with the number of pages that are wanted, by any task that reclaims.
        self.shrinkers: Notifiers[Callable[[int], int]] = Notifiers(runtime, "shrinkers")
        self.stacks = KernelStacks(runtime)
        self.tasks: list[UserTask] = []
        self.oom_events = runtime.shared("oom_events")
        self.oom_kills = runtime.shared("oom_kills")
        self.alloc_stalls = runtime.shared("alloc_stalls")
        self.faults = runtime.shared("minor faults")
        self.lost_pages = runtime.shared("lost_pages")
        #: Tasks that wait in direct reclaim; `reclaim_entered` is woken when it grows.
        self.reclaimers = runtime.shared("reclaimers")
        self.reclaim_entered = runtime.wait_queue("reclaim")
        self._kswapd: Work | None = None
        self._boot_next = 0
        self._boot_end = kernel_bytes
        self._task_ids = runtime.shared("task ids")

    def boot_alloc(self, size_bytes: int, align: int = 8) -> int:
        """Guest-physical address of kernel memory that is never given back.

        Raises:
            InvalidArgument: if the kernel's area is used up.
        """
        address = -(-self._boot_next // align) * align
        if address + size_bytes > self._boot_end:
            raise InvalidArgument(
                f"the kernel's {self._boot_end} bytes cannot hold {size_bytes} more",
                why=f"{self._boot_next} are in use",
            )
        self._boot_next = address + size_bytes
        return address

    def pfn_array(self, name: str) -> PfnArray:
        """A new array for the driver's requests, in kernel memory."""
        return PfnArray(self.memory, self.boot_alloc(PFN_ARRAY_BYTES, align=64), name)

    def next_task_id(self) -> int:
        """A number no other task of this guest has; part of the pattern in its pages."""
        return self._task_ids.add(1)

    # -- allocation ----------------------------------------------------------

    def alloc(
        self,
        count: int,
        to: Place,
        *,
        fs: bool = True,
        noretry: bool = False,
        task: UserTask | None = None,
        wait: OomWait | None = None,
    ) -> Batch | None:
        """Allocates from 1 to `count` pages.

        Args:
            count: how many are wanted; at most `Runtime.batch` come at once.
            to: where they go, `Place.USER` or `Place.PRIVATE`.
            fs: whether direct reclaim may enter the filesystem (__GFP_FS).
            noretry: give up after direct reclaim (__GFP_NORETRY): None comes back.
            task: the program that allocates; the killer knows it as the current task.
            wait: filled with what the caller went through.

        Raises:
            TaskKilled: if the OOM killer chose `task`.
            AllocationStuck: if the caller may not kill and nothing else helps.
        """
        pages = self.pages.take(min(count, self.runtime.batch), to)
        if pages is not None:
            return pages
        started = self.runtime.now_ns()
        wait = wait if wait is not None else OomWait()
        try:
            return self._alloc_slow(count, to, fs=fs, noretry=noretry, task=task, wait=wait)
        finally:
            waited = self.runtime.now_ns() - started
            wait.waited_ns += waited
            wait.longest_ns = max(wait.longest_ns, waited)

    def _alloc_slow(
        self, count: int, to: Place, *, fs: bool, noretry: bool, task: UserTask | None, wait: OomWait
    ) -> Batch | None:
        count = min(count, self.runtime.batch)
        while True:
            self.direct_reclaim(fs=fs)
            pages = self.pages.take(count, to)
            if pages is not None or noretry:
                return pages
            if not self.oom_lock.trylock():
                # Somebody else is handling it; the kernel sleeps a jiffy and starts over.
                self.runtime.relax()
                continue
            try:
                pages = self.pages.take(count, to)
                if pages is not None:
                    return pages
                self.out_of_memory(fs=fs, task=task, wait=wait)
            finally:
                self.oom_lock.unlock()
            pages = self.pages.take(count, to)
            if pages is not None:
                return pages
            if wait.fruitless >= NOFS_ROUNDS_MAX:
                raise AllocationStuck
            self.runtime.relax()

    def direct_reclaim(self, *, fs: bool) -> None:
        """Waits for the filesystem lock if reclaim may enter it, then calls the shrinkers."""
        self.alloc_stalls.add(1)
        if self._kswapd is not None:
            self._kswapd.queue()
        self._wait_for_fs(fs=fs)
        self._shrink()

    def _wait_for_fs(self, *, fs: bool) -> None:
        """Waits until the filesystem lock is free; one's own does not count."""
        if not fs or self.fs_lock.held_by_me():
            return
        self.reclaimers.add(1)
        self.reclaim_entered.wake_all()
        try:
            with self.fs_lock:
                pass
        finally:
            self.reclaimers.add(-1)

    def _shrink(self) -> None:
        """Asks every shrinker for a batch; the caller's stack is deep already."""
        if self.shrinkers:
            with self.stacks.frame(DEPTH_AT_RECLAIM_BYTES, "reclaim"):
                self.shrinkers.call(min(SHRINK_BATCH, self.runtime.batch))

    def start_kswapd(self) -> None:
        """From now on whoever has to reclaim wakes a task that reclaims, too."""
        if self._kswapd is None:
            self._kswapd = self.runtime.work("K", "kswapd", self._shrink)

    def out_of_memory(self, *, fs: bool, task: UserTask | None, wait: OomWait) -> None:
        """Calls the notifiers, and the killer if they freed nothing. oom_lock is held."""
        self.oom_events.add(1)
        wait.rounds += 1
        with self.stacks.frame(DEPTH_AT_RECLAIM_BYTES, "the way to the OOM notifier"):
            freed = self.notifiers.call()
        if freed:
            wait.freed_pages += freed
            wait.fruitless = 0
        elif fs:
            wait.victim = self._kill(task)
        else:
            wait.fruitless += 1

    def _kill(self, current: UserTask | None) -> str | None:
        """Ends the biggest program and returns its name. Its memory is free when this returns or raises."""
        victim = max(self.tasks, key=lambda task: task.pages, default=None)
        if victim is None:
            return None
        self.oom_kills.add(1)
        victim.kill(by=current)
        return victim.name

    # -- figures -------------------------------------------------------------

    @property
    def free_bytes(self) -> int:
        """On the free list."""
        return self.pages.free_pages() * PAGE_SIZE
