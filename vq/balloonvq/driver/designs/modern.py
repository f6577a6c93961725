"""modern: upstream with a later insertion in migration (Linux 5.7 to 2026).

5.7 ("switch back to OOM handler for VIRTIO_BALLOON_F_DEFLATE_ON_OOM") brought the notifier of
`upstream` back after the excursion to a `shrinker`. The rewrite of January 2026 puts a migrated page on the list
only after the host was told, and outside `balloon_lock`; that is how it is here.
"""

from __future__ import annotations

from balloonvq.driver.designs.upstream import Upstream
from balloonvq.guest.pages import Batch

__all__ = ["Modern"]


class Modern(Upstream):
    """As upstream; migration lists the new page last."""

    name = "modern"
    kernels = "5.7-2026"
    summary = "balloon_lock taken after allocation; OOM is relieved even while the worker fills"

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
