"""reference: no deadlock, no BUG(), no lost data, no stale `actual`, no OOM that is turned away (ours).

Three rules; docs/reference-design.md argues that they are enough:

* `balloon_lock` covers every request, the list, num_pages *and* the writing of `actual`. Nobody
  waits for memory under it, only for the host.
* A page that fill has allocated is on the list `hand` at once: the step that takes it from the free list and
  the step that puts it there are one, under `hand_lock`. The host has not heard of these pages,
  so the OOM notifier frees them without asking anybody.
* Who frees pages for OOM must not see them taken by fill: after a call of the notifier the size worker
  stays away from the free list for 200 ms.
"""

from __future__ import annotations

from balloonvq.driver.balloon import OUT_OF_PUFF_NS, PFNS_MAX
from balloonvq.driver.designs.base import Design
from balloonvq.guest.pages import Batch

__all__ = ["Reference"]


class Reference(Design):
    """Lock order: balloon_lock, hand_lock. Only the first is held while anybody sleeps."""

    name = "reference"
    kernels = "ours"
    summary = (
        "balloon_lock covers list, count and `actual`; the OOM notifier reaches even the pages in fill's hand"
    )

    def probe(self) -> None:
        """Two locks, the array and the hand that they guard, and two totals."""
        vb = self.vb
        self.balloon_lock = vb.runtime.mutex("balloon_lock")
        self.hand_lock = vb.runtime.mutex("hand_lock")
        self.pfns = vb.pfn_array("vb->pfns")
        self.hand = vb.page_list("hand")
        #: Pages that were ever deflated and freed; grows under balloon_lock, after they are free.
        self.released = vb.runtime.shared("released")
        #: Calls of the notifier.
        self.ooms = vb.runtime.shared("ooms")
        #: How many of them the size worker has made room for; its own.
        self.ooms_seen = 0

    # -- the size worker -----------------------------------------------------

    def resize(self) -> None:
        """As ever, but a turn that moved nothing sleeps before the next, and `actual` is written by whoever counts."""
        difference = self.towards_target()
        if difference == 0:
            return
        if difference > 0:
            ooms = self.ooms.value
            if ooms != self.ooms_seen:
                # What the notifier has freed is for somebody else.
                self.ooms_seen = ooms
                self.vb.runtime.sleep(OUT_OF_PUFF_NS)
                self.requeue()
                return
            moved = self.fill(difference)
        else:
            moved = -self.leak(-difference)
            if not moved:
                # Compaction has what is left, or OOM was faster.
                self.vb.runtime.sleep(OUT_OF_PUFF_NS)
        if moved != difference:
            self.requeue()

    def fill(self, n: int) -> int:
        """Allocates into the hand, without a lock that is held while sleeping; then one section for the rest."""
        vb = self.vb
        n = min(n, PFNS_MAX)
        got = 0
        while got < n:
            count = self._take_to_hand(n - got)
            if not count:
                vb.reclaim()
                count = self._take_to_hand(n - got)
            if not count:
                vb.no_memory()
                break
            got += count
            if self.ooms.value != self.ooms_seen:
                break
        return self._inflate_hand()

    def _take_to_hand(self, count: int) -> int:
        """[take from the free list, put in the hand]; returns how many pages. Does not sleep on memory."""
        with self.hand_lock:
            pages = self.vb.alloc_nowait(count)
            if pages is None:
                return 0
            self.hand.add(pages)
            return len(pages)

    def _inflate_hand(self) -> int:
        """Gives the host what OOM has left in the hand."""
        vb = self.vb
        with self.balloon_lock:
            with self.hand_lock:
                batches = self.hand.take_all()
            if not batches:
                return 0
            self.pfns.clear()
            for pages in batches:
                self.pfns.append(pages)
            filled = len(self.pfns)
            vb.tell_host(vb.inflate_vq, self.pfns)
            for pages in batches:
                vb.insert(pages)
            vb.adjust_managed(-filled)
            vb.num_pages.value += filled
            self.publish()
        return filled

    # -- the ways out --------------------------------------------------------

    def leak(self, n: int) -> int:
        """Takes pages off the list, tells the host, counts, frees, under balloon_lock."""
        with self.balloon_lock:
            return self._deflate(n, None)

    def _deflate(self, n: int, first: Batch | None) -> int:
        """The body of leak; `first` has been taken off the list already. balloon_lock is held.

        num_pages is what is listed or isolated, plus what this call has taken, so DEQ never meets BUG().
        """
        vb = self.vb
        n = min(n, PFNS_MAX, vb.num_pages.value)
        self.pfns.clear()
        taken: list[Batch] = []
        pages = first
        while True:
            if pages is not None:
                self.pfns.append(pages)
                taken.append(pages)
            if len(self.pfns) >= n:
                break
            pages = vb.dequeue(n - len(self.pfns))
            if pages is None:
                break
        leaked = len(self.pfns)
        if leaked:
            vb.tell_host(vb.deflate_vq, self.pfns)
            vb.num_pages.value -= leaked
            self.publish()
            vb.adjust_managed(leaked)
            vb.release(taken)
            self.released.add(leaked)
        return leaked

    def on_oom(self) -> int:
        """First the hand, which nobody has to be asked for; then the list; at last what others released meanwhile."""
        vb = self.vb
        released = self.released.value
        self.ooms.add(1)
        with self.hand_lock:
            batches = self.hand.take_all()
        if batches:
            vb.give_back(batches)
            return sum(map(len, batches))
        with self.balloon_lock:
            others = self.released.value - released
            # One look at both: nothing gets into the hand while hand_lock is held, nothing on the list
            # while balloon_lock is, but what compaction puts back.
            first: Batch | None = None
            with self.hand_lock:
                batches = self.hand.take_all()
                if not batches and vb.num_pages.value:
                    first = vb.dequeue(PFNS_MAX)
            if batches:
                vb.give_back(batches)
                return sum(map(len, batches))
            if first is not None:
                return self._deflate(PFNS_MAX, first)
        return others

    def migrate(self, new: Batch, old: Batch) -> bool:
        """The host is told of both pages, then one takes the other's place, all under balloon_lock."""
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
            vb.replace_isolated(new, old)
        finally:
            self.balloon_lock.unlock()
        vb.release([old])
        return True
