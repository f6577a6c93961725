"""modern: allocate first, lock then (Linux 5.7 to today).

c7cdff0e8647 (4.15) moved fill's allocations out of `balloon_lock`, which ends the deadlock
of `coarse`: nothing that the OOM notifier waits for is waited for under a
lock that the notifier takes. 5.7 brought the notifier back after an
excursion to a shrinker. Since 2026 migration puts the new page on the list only
after the host was told.
"""

from __future__ import annotations

from balloonvq.driver.balloon import PFNS_MAX
from balloonvq.driver.designs.coarse import Coarse
from balloonvq.guest.pages import Batch

__all__ = ["Modern"]


class Modern(Coarse):
    """One mutex, taken after fill has its pages."""

    name = "modern"
    kernels = "5.7-2026"
    summary = "balloon_lock taken after allocation; OOM is relieved even while the worker fills"

    def fill(self, n: int) -> int:
        """Allocates to a private list first; balloon_lock covers the rest."""
        vb = self.vb
        n = min(n, PFNS_MAX)
        private: list[Batch] = []
        got = 0
        while got < n:
            pages = vb.alloc(n - got)
            if pages is None:
                vb.no_memory()
                break
            private.append(pages)
            got += len(pages)
        with self.balloon_lock:
            self.pfns.clear()
            for pages in private:
                vb.insert(pages)
                self.pfns.append(pages)
                vb.num_pages.value += len(pages)
                vb.adjust_managed(-len(pages))
            if got:
                vb.tell_host(vb.inflate_vq, self.pfns)
        return got

    def migrate(self, new: Batch, old: Batch) -> bool:
        """Lists the new page only after the host was told."""
        vb = self.vb
        if not self.balloon_lock.trylock():
            return False
        try:
            self.pfns.clear()
            self.pfns.append(new)
            vb.tell_host(vb.inflate_vq, self.pfns)
            self.pfns.clear()
            self.pfns.append(old)
            vb.tell_host(vb.deflate_vq, self.pfns)
        finally:
            self.balloon_lock.unlock()
        vb.replace_isolated(new, old)
        vb.release([old])
        return True
