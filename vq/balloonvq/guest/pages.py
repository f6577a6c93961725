"""Who has which page: the Python face of csrc/page_allocator.h.

Pages travel in batches, so that the interpreter does a constant amount of work
for up to 256 of them. A `Batch` is opaque to driver and designs: they count
it, hand it on, and never look at single pages.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum

from balloonvq.errors import InvalidArgument, KernelBug
from balloonvq.ffi import CData, check, ffi, lib
from balloonvq.memory import GuestMemory

__all__ = [
    "BATCH_MAX",
    "PFN_ARRAY_BYTES",
    "PFN_BYTES",
    "Batch",
    "PageAllocator",
    "PageCounts",
    "PfnArray",
    "Place",
]

#: Most pages in a batch: VIRTIO_BALLOON_ARRAY_PFNS_MAX.
BATCH_MAX = 256

#: Bytes of a PFN in a request (le32; T-11), and of a full array.
PFN_BYTES = 4
PFN_ARRAY_BYTES = BATCH_MAX * PFN_BYTES


#: C types, looked up once: of a batch's PFNs, and of what points at so many.
_PFNS = ffi.typeof(f"uint32_t[{BATCH_MAX}]")
_PFNS_POINTER = ffi.typeof(f"uint32_t (*)[{BATCH_MAX}]")

#: What each request of the driver calls, looked up once: `lib` and `ffi` search for a name each time.
_new = ffi.new
_alloc, _list_insert, _list_dequeue, _free = (
    lib.pa_alloc,
    lib.pa_list_insert,
    lib.pa_list_dequeue,
    lib.pa_free,
)


class Place(IntEnum):
    """Where a page is; every page is in exactly one place."""

    FREE = 0
    KERNEL = 1
    USER = 2
    PRIVATE = 3
    LISTED = 4
    ISOLATED = 5
    IN_FLIGHT = 6


class Batch:
    """Up to `BATCH_MAX` page frame numbers, in order.

    Attributes:
        pfns: C array of 32-bit PFNs.
        count: how many of them count.
    """

    __slots__ = ("count", "pfns")

    def __init__(self, pfns: CData | None = None, count: int = 0) -> None:
        self.pfns = ffi.new(_PFNS) if pfns is None else pfns
        self.count = count

    @classmethod
    def of(cls, *pfns: int) -> Batch:
        """A batch of the given PFNs."""
        batch = cls()
        for index, pfn in enumerate(pfns):
            batch.pfns[index] = pfn
        batch.count = len(pfns)
        return batch

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        return iter(ffi.unpack(self.pfns, self.count))

    def __repr__(self) -> str:
        return f"Batch({', '.join(map(str, list(self)[:4]))}{', …' if self.count > 4 else ''} n={self.count})"


class PfnArray:
    """An array of le32 PFNs in guest memory, which the device reads when it gets to it.

    A descriptor *points at* the array: changing it between `Balloon.tell_host`'s
    add and its acknowledgement changes what the device sees.

    Attributes:
        name: for traces.
        address: guest-physical.
    """

    __slots__ = ("_count", "_pfns", "address", "name")

    def __init__(self, memory: GuestMemory, address: int, name: str) -> None:
        self.name = name
        self.address = address
        #: What is there, as a C array: a slice of it knows where it ends.
        self._pfns = ffi.cast(_PFNS_POINTER, memory.at(address, PFN_ARRAY_BYTES))[0]
        self._count = 0

    def clear(self) -> None:
        """Empties the array; guest memory keeps its content."""
        self._count = 0

    def append(self, pages: Batch) -> None:
        """Adds the batch's PFNs; the host of an emulated guest is little-endian like its ring."""
        count, end = pages.count, self._count + pages.count
        self._pfns[end - count : end] = pages.pfns if count == BATCH_MAX else pages.pfns[0:count]
        self._count = end

    def __len__(self) -> int:
        return self._count

    @property
    def size_bytes(self) -> int:
        """Length of a buffer that holds exactly these PFNs."""
        return self._count * PFN_BYTES


@dataclass(frozen=True, slots=True)
class PageCounts:
    """How many pages are where, at one moment."""

    free: int
    kernel: int
    user: int
    private: int
    listed: int
    isolated: int
    in_flight: int
    violations: int
    """Operations refused since a page was not where the caller said."""
    managed: int
    """Pages that the kernel counts as its own (adjust_managed_page_count)."""


class PageAllocator:
    """All pages of the guest.

    Args:
        pages: PFNs 0 .. pages-1.
        kernel_pages: how many of the first belong to the kernel for good.
        shuffled: hand pages out in an order drawn from the seed (a fragmented guest).
        seed: for that order.

    Raises:
        InvalidArgument: if the kernel's pages leave nothing for anybody else.
    """

    def __init__(self, pages: int, kernel_pages: int, *, shuffled: bool = False, seed: int = 0) -> None:
        out = ffi.new("struct pa **")
        order = lib.PA_SHUFFLED if shuffled else lib.PA_ASCENDING
        rc = lib.pa_create(pages, kernel_pages, order, seed, out)
        if rc == -errno.EINVAL:
            raise InvalidArgument(f"a guest of {pages} pages cannot have {kernel_pages} kernel pages")
        check(rc, "make the guest's page allocator")
        self._pa: CData = out[0]

    @property
    def handle(self) -> CData:
        """The C allocator, for what uses it from C."""
        return self._pa

    def take(self, count: int, to: Place) -> Batch | None:
        """Takes up to `count` (at most `BATCH_MAX`) free pages; None if there is none."""
        if count > BATCH_MAX:  # noqa: PLR1730 - a call of min takes a tenth of the whole
            count = BATCH_MAX
        pfns = _new(_PFNS)
        got = _alloc(self._pa, pfns, count, to)
        if got > 0:
            return Batch(pfns, got)
        check(got, "allocate pages")
        return None

    def free(self, batch: Batch, place: Place) -> None:
        """Puts pages that are in `place` on the free list.

        Raises:
            KernelBug: if one of them is somewhere else.
        """
        rc = _free(self._pa, batch.pfns, batch.count, place)
        if rc:
            self._check(rc, batch, place, "freed")

    def move(self, batch: Batch, place: Place, to: Place) -> None:
        """Moves pages from one place to another; see `free` for errors."""
        self._check(
            lib.pa_move(self._pa, batch.pfns, batch.count, place, to), batch, place, f"moved to {to.name}"
        )

    def list_insert(self, batch: Batch) -> None:
        """Puts private pages at the head of the balloon list."""
        rc = _list_insert(self._pa, batch.pfns, batch.count)
        if rc:
            self._check(rc, batch, Place.PRIVATE, "listed")

    def list_dequeue(self, count: int) -> Batch | None:
        """Takes up to `count` pages off the head of the balloon list.

        None when every listed page is locked or pages are isolated.

        Raises:
            KernelBug: when the list is empty and nothing is isolated, as
                balloon_page_dequeue answers with BUG().
        """
        if count > BATCH_MAX:  # noqa: PLR1730 - as in `take`
            count = BATCH_MAX
        pfns = _new(_PFNS)
        got = _list_dequeue(self._pa, pfns, count)
        if got > 0:
            return Batch(pfns, got)
        if got == -errno.ENODATA:
            raise KernelBug(
                "balloon_page_dequeue: BUG()",
                why="the balloon list is empty, no page is isolated, and the driver wanted one",
            )
        check(got, "take pages off the balloon list")
        return None

    def isolate(self) -> Batch | None:
        """Takes one listed page for compaction, with its page lock; None if there is none."""
        batch = Batch()
        if not lib.pa_isolate(self._pa, batch.pfns):
            return None
        batch.count = 1
        return batch

    def putback(self, page: Batch) -> None:
        """Puts an isolated page back and drops its lock."""
        self._check(lib.pa_putback(self._pa, page.pfns[0]), page, Place.ISOLATED, "put back")

    def replace_isolated(self, new: Batch, old: Batch) -> None:
        """Lists the private page `new`; the isolated page `old` is in flight to the free list, unlocked.

        One step, as the section that ends a migration is.
        """
        self._check(
            lib.pa_replace_isolated(self._pa, new.pfns[0], old.pfns[0]), old, Place.ISOLATED, "replaced"
        )

    def trylock(self, pfn: int) -> bool:
        """Takes a page's lock if it is free."""
        return bool(lib.pa_trylock(self._pa, pfn))

    def unlock(self, pfn: int) -> None:
        """Releases a page's lock.

        Raises:
            CoreError: if nobody holds it.
        """
        check(lib.pa_unlock(self._pa, pfn), f"unlock page {pfn}")

    def adjust_managed(self, pages: int) -> None:
        """Adds to the pages that the kernel counts as its own; may be negative."""
        lib.pa_adjust_managed(self._pa, pages)

    def where(self, pfn: int) -> Place:
        """The place of a page."""
        return Place(check(lib.pa_where(self._pa, pfn), f"find page {pfn}"))

    def counts(self) -> PageCounts:
        """How many pages are where, at one moment."""
        counts = ffi.new("struct pa_counts *")
        lib.pa_counts_get(self._pa, counts)
        free, kernel, user, private, listed, isolated, in_flight = map(int, counts.pages)
        return PageCounts(
            free=free,
            kernel=kernel,
            user=user,
            private=private,
            listed=listed,
            isolated=isolated,
            in_flight=in_flight,
            violations=int(counts.violations),
            managed=int(counts.managed),
        )

    def free_pages(self) -> int:
        """Pages on the free list."""
        return self.counts().free

    def _check(self, rc: int, batch: Batch, place: Place, doing: str) -> None:
        if rc == 0:
            return
        if rc == -errno.EBADF:
            wrong = [pfn for pfn in batch if self.where(pfn) is not place]
            example = f"page {wrong[0]} is {self.where(wrong[0]).name}" if wrong else "a page came twice"
            raise KernelBug(
                f"pages that are not {place.name} were {doing}",
                why=f"{len(wrong)} of {len(batch)}: {example}",
            )
        check(rc, f"handle pages that were {doing}")

    def close(self) -> None:
        """Frees the allocator; it must not be used afterwards."""
        if self._pa:
            lib.pa_destroy(self._pa)
            self._pa = None
