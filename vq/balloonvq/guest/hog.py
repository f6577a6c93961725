"""The program of `balloonctl oom`: allocates until memory is out, and remembers what it went through."""

from __future__ import annotations

from balloonvq.guest.kernel import AllocationStuck, Kernel, OomWait
from balloonvq.guest.tasks import TaskKilled, UserTask

__all__ = ["MemoryHog"]


class MemoryHog:
    """One run of a program that wants more memory than is free.

    Args:
        kernel: the kernel it runs on.
        pages: how many it allocates.
        gfp_fs: whether its allocations may enter the filesystem. Without, it neither waits
            for the filesystem in reclaim nor may have anybody killed.
        while_filling: it holds the filesystem lock, as a journal commit does, and goes on only when
            the size worker has emptied the free list and stands in direct reclaim: the scene of
            the 2017 review.
    """

    def __init__(self, kernel: Kernel, pages: int, *, gfp_fs: bool, while_filling: bool) -> None:
        self.pages = pages
        self.gfp_fs = gfp_fs
        self.while_filling = while_filling
        self.wait = OomWait()
        #: Pages that it got, also those that it lost with its life.
        self.got = 0
        #: Pages of it that had lost their content when it let go.
        self.lost = 0
        #: The program that the OOM killer chose, if it came to that.
        self.victim: str | None = None
        #: Whether it was given up since it could neither be served nor kill.
        self.stuck = False
        #: Whether it holds the filesystem lock; `progress` is woken when that changes and at the end.
        self.has_fs = False
        #: Whether it has come to its end, killed or not.
        self.over = False
        self.progress = kernel.runtime.wait_queue("hog")
        self._kernel = kernel

    @property
    def role(self) -> str:
        """What reports call it."""
        return f"{'GFP_KERNEL' if self.gfp_fs else 'GFP_NOFS'} allocation -> OOM notifier"

    def run(self) -> None:
        """The program; runs in its own task."""
        try:
            if self.while_filling:
                with self._kernel.fs_lock:
                    self.has_fs = True
                    self.progress.wake_all()
                    kernel = self._kernel
                    kernel.reclaim_entered.wait_until(lambda: kernel.reclaimers.value > 0)
                    self._allocate()
            else:
                self._allocate()
            self.over = True
        finally:
            self.progress.wake_all()

    def _allocate(self) -> None:
        task = UserTask(self._kernel, "hog")
        try:
            task.allocate(self.pages, fs=self.gfp_fs, wait=self.wait)
        except TaskKilled:
            self.wait.victim = task.name
        except AllocationStuck:
            self.stuck = True
        self.got = task.allocated
        self.victim = self.wait.victim
        if not task.killed:
            self.lost = task.exit()
