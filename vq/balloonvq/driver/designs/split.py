"""split: an inflate_lock and a deflate_lock (v1 of October 2017, never merged).

Wei Wang's "virtio-balloon: replace the coarse-grained balloon_lock": a lock a queue around the request alone, PFN arrays
of one's own, an atomic num_pages. The deadlock of `coarse` is gone, and so is whatever one lock had kept together: a page is
listed before the host has it, num_pages follows the list late in both directions, and two leakers meet. The
options are the variants of the thread.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar

from balloonvq.driver.balloon import PFNS_MAX
from balloonvq.driver.designs.base import Design
from balloonvq.guest.pages import Batch, PfnArray

__all__ = ["Split"]


class Split(Design):
    """A mutex a queue, held while the host is told; list and count are outside."""

    name = "split"
    kernels = "v1 of 2017"
    summary = "a lock a queue; leaks pages that the host has not got yet, and runs into BUG()"
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {
        # When fill lists its pages: as it gets them (as posted), or all of them after TELL.
        "insert": ("early", "late"),
        # Where num_pages grows, with insert=late: after the pages are listed, or before.
        "count": ("after", "before"),
        # Where PFN arrays are: on the stack (as posted), one a direction, or a third for OOM.
        "pfns": ("stack", "per-direction", "oom"),
    }

    def probe(self) -> None:
        """Two locks, and the arrays that are not on the stack."""
        vb = self.vb
        self.inflate_lock = vb.runtime.mutex("inflate_lock")
        self.deflate_lock = vb.runtime.mutex("deflate_lock")
        self.early = self.option.get("insert", "early") == "early"
        self.count_first = self.option.get("count") == "before"
        self.inflate_pfns = self.deflate_pfns = self.oom_pfns = None
        pfns = self.option.get("pfns", "stack")
        if pfns != "stack":
            self.inflate_pfns = vb.pfn_array("vb->inflate_pfns")
            self.deflate_pfns = self.oom_pfns = vb.pfn_array("vb->deflate_pfns")
        if pfns == "oom":
            self.oom_pfns = vb.pfn_array("vb->oom_pfns")
        vb.reserve_stack_arrays(4)

    def _empty(self, array: PfnArray | None) -> AbstractContextManager[PfnArray]:
        """An array to fill: the given one, or one on the stack."""
        if array is None:
            return self.vb.stack_array()
        array.clear()
        return nullcontext(array)

    def fill(self, n: int) -> int:
        """Only TELL is under inflate_lock; num_pages grows last of all."""
        vb = self.vb
        n = min(n, PFNS_MAX)
        batches: list[Batch] = []
        with self._empty(self.inflate_pfns) as pfns:
            while len(pfns) < n:
                pages = vb.alloc(n - len(pfns))
                if pages is None:
                    vb.no_memory()
                    break
                if self.early:
                    vb.insert(pages)
                batches.append(pages)
                pfns.append(pages)
                vb.adjust_managed(-len(pages))
            filled = sum(map(len, batches))
            with self.inflate_lock:
                if filled:
                    vb.tell_host(vb.inflate_vq, pfns)
        if self.early:
            vb.num_pages.add(filled)
        else:
            self._insert_late(batches, filled)
        return filled

    def _insert_late(self, batches: list[Batch], filled: int) -> None:
        """The pages go on the list now that the host has them."""
        vb = self.vb
        if self.count_first:
            vb.num_pages.add(filled)
        for pages in batches:
            vb.insert(pages)
        if not self.count_first:
            vb.num_pages.add(filled)

    def leak(self, n: int) -> int:
        """Only TELL is under deflate_lock; num_pages shrinks last of all."""
        return self._leak(n, self.deflate_pfns)

    def on_oom(self) -> int:
        """Leak with the array that only the holder of oom_lock uses, if there is one."""
        freed = self._leak(PFNS_MAX, self.oom_pfns)
        self.publish()
        return freed

    def _leak(self, n: int, array: PfnArray | None) -> int:
        vb = self.vb
        n = min(n, PFNS_MAX, vb.num_pages.value)
        taken: list[Batch] = []
        leaked = 0
        with self._empty(array) as pfns:
            while leaked < n:
                pages = vb.dequeue(n - leaked)
                if pages is None:
                    break
                pfns.append(pages)
                taken.append(pages)
                leaked += len(pages)
            with self.deflate_lock:
                if leaked:
                    vb.tell_host(vb.deflate_vq, pfns)
        vb.adjust_managed(leaked)
        vb.release(taken)
        vb.num_pages.add(-leaked)
        return leaked

    def migrate(self, new: Batch, old: Batch) -> bool:
        """Both locks, each until its queue is told; lists the new page before that."""
        vb = self.vb
        if not self.inflate_lock.trylock():
            return False
        if not self.deflate_lock.trylock():
            self.inflate_lock.unlock()
            return False
        vb.replace_isolated(new, old)
        with vb.stack_array(pfns=1) as pfns:
            try:
                pfns.append(new)
                vb.tell_host(vb.inflate_vq, pfns)
            finally:
                self.inflate_lock.unlock()
            try:
                pfns.clear()
                pfns.append(old)
                vb.tell_host(vb.deflate_vq, pfns)
            finally:
                self.deflate_lock.unlock()
        vb.release([old])
        return True
