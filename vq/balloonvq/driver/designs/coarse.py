"""coarse: one mutex around everything (Linux 3.8 to 4.14).

e22504296d made balloon pages movable and put `balloon_lock` around the driver's
fields and both queues. fill allocates its pages *under* the lock. Since 3.19 the OOM
notifier takes the same lock, so an allocation inside fill that waits, through
direct reclaim, for a task that is itself out of memory never returns: the
deadlock of the 2017 review.
"""

from __future__ import annotations

from balloonvq.driver.balloon import PFNS_MAX
from balloonvq.driver.designs.base import Design
from balloonvq.guest.pages import Batch

__all__ = ["Coarse"]


class Coarse(Design):
    """One mutex, one PFN array; fill allocates under the mutex."""

    name = "coarse"
    kernels = "3.8-4.14"
    summary = "one balloon_lock; fill allocates under it and can deadlock with the OOM notifier"

    def probe(self) -> None:
        """One lock over driver fields and both queues, one array."""
        self.balloon_lock = self.vb.runtime.mutex("balloon_lock")
        self.pfns = self.vb.pfn_array("vb->pfns")

    def fill(self, n: int) -> int:
        """All of it under balloon_lock, the allocations too: what may deadlock."""
        vb = self.vb
        with self.balloon_lock:
            n = min(n, PFNS_MAX)
            self.pfns.clear()
            while len(self.pfns) < n:
                pages = vb.alloc(n - len(self.pfns))
                if pages is None:
                    vb.no_memory()
                    break
                vb.insert(pages)
                self.pfns.append(pages)
                vb.num_pages.value += len(pages)
                vb.adjust_managed(-len(pages))
            filled = len(self.pfns)
            if filled:
                vb.tell_host(vb.inflate_vq, self.pfns)
        return filled

    def leak(self, n: int) -> int:
        """Takes pages off the list, tells the host, frees them, under balloon_lock."""
        vb = self.vb
        with self.balloon_lock:
            n = min(n, PFNS_MAX, vb.num_pages.value)
            self.pfns.clear()
            taken = []
            while len(self.pfns) < n:
                pages = vb.dequeue(n - len(self.pfns))
                if pages is None:
                    break
                self.pfns.append(pages)
                taken.append(pages)
                vb.num_pages.value -= len(pages)
            leaked = len(self.pfns)
            if leaked:
                vb.tell_host(vb.deflate_vq, self.pfns)
            vb.adjust_managed(leaked)
            vb.release(taken)
        return leaked

    def migrate(self, new: Batch, old: Batch) -> bool:
        """Lists the new page before the host is told."""
        vb = self.vb
        if not self.balloon_lock.trylock():
            return False
        try:
            vb.replace_isolated(new, old)
            self.pfns.clear()
            self.pfns.append(new)
            vb.tell_host(vb.inflate_vq, self.pfns)
            self.pfns.clear()
            self.pfns.append(old)
            vb.tell_host(vb.deflate_vq, self.pfns)
        finally:
            self.balloon_lock.unlock()
        vb.release([old])
        return True
