"""upstream: allocate first, lock then (Linux 4.15 to 4.19).

c7cdff0e8647 moved fill's allocations out of `balloon_lock`, which ends the deadlock of `coarse`: nothing that
the OOM notifier waits for is waited for under a lock that the notifier takes. The price: while the size
worker sleeps its 200 ms, the pages it has so far lie on a private list, and the notifier cannot reach them.
"""

from __future__ import annotations

from balloonvq.driver.balloon import PFNS_MAX
from balloonvq.driver.designs.coarse import Coarse
from balloonvq.guest.pages import Batch

__all__ = ["Upstream"]


class Upstream(Coarse):
    """One mutex, taken after fill has its pages."""

    name = "upstream"
    kernels = "4.15-4.19"
    summary = "balloon_lock taken after allocation; ends the deadlock, hides fill's private pages from OOM"

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
