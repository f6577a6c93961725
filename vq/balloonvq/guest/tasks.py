"""Guest programs: they own pages, fill them with a pattern, and check it.

The pattern depends on the program, the page and the position, so a page that
the host discarded, or that two owners hold, is found when its owner looks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from balloonvq.guest.pages import Batch, Place

if TYPE_CHECKING:
    from balloonvq.guest.kernel import Kernel, OomWait

__all__ = ["TaskKilled", "UserTask"]


class TaskKilled(Exception):
    """The OOM killer ended the program that is allocating."""

    def __init__(self, victim: str) -> None:
        super().__init__(f"{victim} was killed")
        self.victim = victim


class UserTask:
    """A program in the guest.

    Args:
        kernel: the kernel it runs on.
        name: what the OOM report calls it.
    """

    def __init__(self, kernel: Kernel, name: str) -> None:
        self.name = name
        self._kernel = kernel
        self._owner = kernel.next_task_id()
        self._batches: list[Batch] = []
        self._mmap_lock = kernel.runtime.mutex(f"{name} mmap_lock")
        #: Pages that it owns.
        self.pages = 0
        #: Pages that it has ever got.
        self.allocated = 0
        #: Whether the OOM killer chose it.
        self.killed = False
        kernel.tasks.append(self)

    def allocate(self, pages: int, *, fs: bool = True, wait: OomWait | None = None) -> int:
        """Allocates and writes that many pages; returns how many it has got of them.

        Raises:
            TaskKilled: if the OOM killer chose this program; its pages are gone.
            AllocationStuck: as `Kernel.alloc`.
        """
        kernel = self._kernel
        got = 0
        while got < pages:
            batch = kernel.alloc(pages - got, Place.USER, fs=fs, task=self, wait=wait)
            if batch is None:
                break
            kernel.memory.stamp(batch.pfns, batch.count, self._owner)
            kernel.faults.add(batch.count)
            with self._mmap_lock:
                killed = self.killed
                if not killed:
                    self._batches.append(batch)
                    self.pages += batch.count
                    self.allocated += batch.count
            if killed:
                # By another task, after its pages were taken away: nobody would free these.
                kernel.pages.free(batch, Place.USER)
                raise TaskKilled(self.name)
            got += batch.count
        return got

    def check(self) -> tuple[int, int]:
        """Reads its pattern back: (pages checked, pages that lost it)."""
        with self._mmap_lock:
            lost = sum(
                self._kernel.memory.verify(batch.pfns, batch.count, self._owner) for batch in self._batches
            )
            return self.pages, lost

    def exit(self) -> int:
        """Checks its pages and frees them; returns how many had lost their content."""
        _, lost = self.check()
        if lost:
            self._kernel.lost_pages.add(lost)
        self._release()
        return lost

    def kill(self, *, by: UserTask | None) -> None:
        """Ends the program without a check, as the OOM killer and its reaper do.

        Raises:
            TaskKilled: if `by`, the task in whose allocation the killer runs, is this one.
        """
        self.killed = True
        self._release()
        if by is self:
            raise TaskKilled(self.name)

    def _release(self) -> None:
        with self._mmap_lock:
            batches, self._batches, self.pages = self._batches, [], 0
        for batch in reversed(batches):
            self._kernel.pages.free(batch, Place.USER)
        if self in self._kernel.tasks:
            self._kernel.tasks.remove(self)
