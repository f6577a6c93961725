"""The balloon as a locking design sees it: shared state, and the steps to write operations in.

A design may call what `Balloon` offers and what its runtime offers (`vb.runtime`: mutexes, shared words,
wait queues, sleep, relax), nothing else. Each method is one step in the sense of
docs/explanation/locking.md; between two steps any other task may run.

State that two tasks can reach lives in objects made here or by the runtime: words in `Runtime.shared`,
pages in the balloon's list or a `page_list`, PFNs in a `pfn_array`. What a design keeps in attributes of
its own belongs to one task.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from balloonvq.guest.kernel import Kernel
from balloonvq.guest.pages import BATCH_MAX, PFN_BYTES, Batch, PfnArray, Place
from balloonvq.queue import DriverQueue
from balloonvq.runtime import Runtime

__all__ = ["OUT_OF_PUFF_NS", "PFNS_MAX", "Balloon", "PageList"]

#: Most PFNs in a request: VIRTIO_BALLOON_ARRAY_PFNS_MAX.
PFNS_MAX = BATCH_MAX

#: Members of an enumeration, looked up once.
PRIVATE, IN_FLIGHT = Place.PRIVATE, Place.IN_FLIGHT

#: How long fill sleeps when it can get no page: msleep(200).
OUT_OF_PUFF_NS = 200_000_000


class PageList:
    """Private pages of the driver that several tasks reach: a list_head, guarded by a lock of the design.

    Attributes:
        name: for traces.
    """

    __slots__ = ("_batches", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self._batches: list[Batch] = []

    def add(self, pages: Batch) -> None:
        """Puts pages on the list."""
        self._batches.append(pages)

    def take_all(self) -> list[Batch]:
        """Empties the list; returns what was on it, in the order in which it came."""
        batches, self._batches = self._batches, []
        return batches


class Balloon:
    """What fill, leak, migrate and the OOM notifier share (`struct virtio_balloon`).

    Attributes:
        runtime: locks, shared words, time.
        kernel: the guest kernel below.
        inflate_vq, deflate_vq: the two queues.
        num_pages: pages that the driver counts as inflated, as a shared word.
        deflate_on_oom: whether the feature was negotiated.
    """

    def __init__(
        self,
        runtime: Runtime,
        kernel: Kernel,
        *,
        inflate_vq: DriverQueue,
        deflate_vq: DriverQueue,
        deflate_on_oom: bool,
    ) -> None:
        self.runtime = runtime
        self.kernel = kernel
        self.inflate_vq = inflate_vq
        self.deflate_vq = deflate_vq
        self.deflate_on_oom = deflate_on_oom
        self.num_pages = runtime.shared("num_pages")
        #: 1 while fill has found no free page and has not made progress since.
        self.out_of_puff = runtime.shared("out_of_puff")
        #: Woken when the size worker comes to rest, runs out of puff, or OOM shrinks the balloon.
        self.settled = runtime.wait_queue("settled")
        self._stack_arrays: list[PfnArray] = []
        self._acked = runtime.wait_queue("acked")
        self._acked.attach(inflate_vq.call_fd)
        self._acked.attach(deflate_vq.call_fd)

    def pfn_array(self, name: str) -> PfnArray:
        """A new array in guest memory, for a design's constructor (allocated at probe)."""
        return self.kernel.pfn_array(name)

    def page_list(self, name: str) -> PageList:
        """A new list of private pages, for a design's constructor. Whoever uses it holds the design's lock for it."""
        return PageList(name)

    def reserve_stack_arrays(self, count: int) -> None:
        """Makes guest memory for that many `stack_array` at once, for a design's constructor."""
        self._stack_arrays += [self.pfn_array(f"pfns on stack {number}") for number in range(count)]

    @contextmanager
    def stack_array(self, pfns: int = PFNS_MAX) -> Iterator[PfnArray]:
        """An empty array for `pfns` PFNs on the calling task's kernel stack, for the length of a with block.

        Raises:
            KernelBug: if the stack overflows.
        """
        with self.kernel.stacks.frame(pfns * PFN_BYTES, "a PFN array"):
            try:
                array = self._stack_arrays.pop()
            except IndexError:
                array = self.pfn_array("pfns on stack")
            array.clear()
            try:
                yield array
            finally:
                self._stack_arrays.append(array)

    # -- steps ---------------------------------------------------------------

    def alloc(self, count: int) -> Batch | None:
        """ALLOC(fs, noretry): from 1 to `count` pages for the balloon, or None.

        Direct reclaim inside may wait for the filesystem lock.
        """
        return self.kernel.alloc(count, PRIVATE, fs=True, noretry=True)

    def alloc_nowait(self, count: int) -> Batch | None:
        """[take from the free list]: GFP_NOWAIT, from 1 to `count` pages, or None. Never sleeps."""
        return self.kernel.pages.take(count, PRIVATE)

    def reclaim(self) -> None:
        """[direct reclaim], without the allocation: what lies between the two looks of ALLOC."""
        self.kernel.direct_reclaim(fs=True)

    def no_memory(self) -> None:
        """Out of puff: sleeps 200 ms, holding whatever the caller holds."""
        self.out_of_puff.value = 1
        self.settled.wake_all()
        self.runtime.sleep(OUT_OF_PUFF_NS)

    def insert(self, pages: Batch) -> None:
        """INSERT: puts the pages at the list's head, under pages_lock."""
        self.kernel.pages.list_insert(pages)

    def dequeue(self, count: int) -> Batch | None:
        """DEQ: from 1 to `count` pages from the list's head, or None if all are locked or isolated.

        Raises:
            KernelBug: BUG(), if the list is empty and nothing is isolated.
        """
        return self.kernel.pages.list_dequeue(count)

    def tell_host(self, queue: DriverQueue, array: PfnArray) -> None:
        """TELL: adds a descriptor for the array, kicks, and sleeps until a buffer of the queue is used."""
        queue.submit(array.address, array.size_bytes)
        self._acked.wait_until(queue.get_buf)

    def release(self, batches: Iterable[Batch]) -> None:
        """Frees pages that leak took off the list."""
        for pages in batches:
            self.kernel.pages.free(pages, IN_FLIGHT)

    def give_back(self, batches: Iterable[Batch]) -> None:
        """Frees private pages: allocated, and never told to the host."""
        for pages in batches:
            self.kernel.pages.free(pages, PRIVATE)

    def replace_isolated(self, new: Batch, old: Batch) -> None:
        """[pages_lock: INSERT(new), isolated--]: the old page is in the caller's hand afterwards."""
        self.kernel.pages.replace_isolated(new, old)

    def adjust_managed(self, pages: int) -> None:
        """Without DEFLATE_ON_OOM ballooned pages do not count as the kernel's."""
        if not self.deflate_on_oom:
            self.kernel.pages.adjust_managed(pages)
