"""shrinker: upstream without the OOM notifier (Linux 4.20 to 5.6).

71994620bb25 (4.20) replaced the notifier by a shrinker. Shrinkers are called from kswapd and from every direct
reclaim, many at once, long before memory is out. The size worker reclaims, too: when it inflates against a full
guest, its own allocation shrinks the balloon, which it then fills again, "basically a busy no-op" as the commit says
that brought the notifier back (5.7). Until 5.4 the loop over the pages subtracted the sum of what
was freed instead of the last part, so a scan that took three rounds went below zero and emptied the
balloon; and it never ends while pages are counted but none can be taken off the list.
"""

from __future__ import annotations

from balloonvq.driver.designs.upstream import Upstream

__all__ = ["Shrinker"]

#: `want` is an unsigned long.
_UNSIGNED_LONG = 1 << 64


class Shrinker(Upstream):
    """As upstream; reclaim deflates, OOM does not."""

    name = "shrinker"
    kernels = "4.20-5.6"
    summary = "deflated by every reclaim, inflation's own included; the scan of 5.3 can empty the balloon"
    pressure = "shrinker"

    def scan(self, nr: int) -> int:
        """`freed` is cumulative and is subtracted in every round, as in 5.3."""
        vb = self.vb
        want = nr
        freed = 0
        while vb.num_pages.value and want:
            leaked = self.leak(want)
            freed += leaked
            want = (want - freed) % _UNSIGNED_LONG
            if not leaked:
                # The kernel goes round at once.
                vb.runtime.cpu_relax()
        self.publish()
        return freed
