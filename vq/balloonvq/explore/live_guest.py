"""What stands for the model's objects when a schedule is forced on real threads.

===========  ==========================================================================
pages        the C page allocator; guest memory in a memfd, every page written before; and the record
             of the C balloon device, which really discards
PFN arrays   arrays in guest memory; what the host reads is what the C device reads from there
queues       C split rings of one descriptor, the driver half and the device half; the host's
             steps are `BalloonDevice.step`, its interrupt is the device's eventfd
actual       the field of the device's configuration space
===========  ==========================================================================

A program's page holds the program's pattern from the moment at which it is its own. So what the model raises because
the wrong page is named is raised here because bytes are gone, because allocator
and device both claim a page, or because the device has counted what should not be.

Two choices are the schedule's, since they are nobody's in the program: which of several free pages an
allocation gets, and which of the listed pages compaction isolates.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from balloonvq.device import BalloonDevice
from balloonvq.driver.driver import CONFIG_ACTUAL
from balloonvq.errors import KernelBug, LostData
from balloonvq.explore.model import DEFLATE, INFLATE, ArrayValue, PagesValue, available
from balloonvq.explore.world import SharedObject
from balloonvq.features import Feature, Status
from balloonvq.guest.pages import PFN_ARRAY_BYTES, PFN_BYTES, Batch, PageAllocator, PfnArray, Place
from balloonvq.memory import PAGE_SIZE, GuestMemory
from balloonvq.queue import DriverQueue, RingAddresses, ring_config, ring_layout
from balloonvq.runtime.baton import BLOCKED, RealObject

__all__ = ["LiveGuest"]

#: Pages for rings and PFN arrays; the model's page 0 is the page after them.
KERNEL_PAGES = 16

#: There is never more than one request a queue, so a second one finds the ring full.
QUEUE_SIZE = 1

_FEATURES = int(Feature.VERSION_1 | Feature.MUST_TELL_HOST | Feature.DEFLATE_ON_OOM)

_QUEUES = (INFLATE[0], DEFLATE[0])
_INTERRUPTS = (INFLATE[1], DEFLATE[1])


class LiveGuest:
    """Memory, allocator, device and rings of one run. Made when the program declares its pages."""

    def __init__(self) -> None:
        self.memory: GuestMemory
        self.pages: PageAllocator
        self.device: BalloonDevice
        self.queues: list[DriverQueue] = []
        self.arrays: dict[str, _Array] = {}
        #: The queue whose request an actor has popped and not read yet.
        self.in_hand: dict[int, int] = {}
        #: What was seen happen to somebody's data, in sentences.
        self.notes: list[str] = []
        self._next_address = 0
        self._cleanup = ExitStack()
        self._booted = False

    # -- what stands for what -------------------------------------------------

    def real(self, declaration: SharedObject) -> RealObject | None:
        """What stands for a declared object; None if its value is all there is."""
        if declaration.stands_for == "pages":
            self._boot(declaration.initial)  # type: ignore[arg-type]
            return _Pages(self)
        if not self._booted:
            return None
        if declaration.stands_for == "pfn array":
            self.arrays[declaration.name] = array = _Array(self, declaration.name)
            return array
        if declaration.stands_for == "virtqueue":
            return _Queue(self, _QUEUES.index(declaration.name))
        return None

    def real_word(self, name: str, value: int) -> ConfigActual | None:
        """What stands for a shared word."""
        if not self._booted or name != "actual":
            return None
        word = ConfigActual(self.device)
        word.value = value
        return word

    def ring(self, interrupt: int) -> bool:
        """The device's last step of a request: whether its interrupt has come."""
        if not self._booted or interrupt not in _INTERRUPTS:
            return True
        queue = _INTERRUPTS.index(interrupt)
        self.device.step(queue, "call")
        try:
            return os.eventfd_read(self.device.call_fd(queue)) > 0
        except BlockingIOError:
            return False

    def close(self) -> None:
        """Frees everything; no thread may be in it."""
        self._cleanup.close()

    # -- booting ---------------------------------------------------------------

    def _boot(self, start: PagesValue) -> None:
        """A guest whose driver is ready, with the balloon that the model starts with."""
        count = KERNEL_PAGES + len(start.places)
        self.memory = GuestMemory(count * PAGE_SIZE)
        self._cleanup.callback(self.memory.close)
        self.memory.populate(KERNEL_PAGES * PAGE_SIZE, len(start.places) * PAGE_SIZE)
        self.pages = PageAllocator(count, KERNEL_PAGES)
        self._cleanup.callback(self.pages.close)
        self.device = BalloonDevice(self.memory, features=_FEATURES, queue_size_max=QUEUE_SIZE)
        self._cleanup.callback(self.device.close)
        self._probe()
        self._booted = True
        if start.listed:
            self._inflate(start.listed)

    def _probe(self) -> None:
        device = self.device
        status = Status(0)
        device.set_status(0)
        for bit in (Status.ACKNOWLEDGE, Status.DRIVER):
            status |= bit
            device.set_status(int(status))
        device.set_driver_features(_FEATURES)
        status |= Status.FEATURES_OK
        device.set_status(int(status))
        layout = ring_layout(_FEATURES, QUEUE_SIZE)
        for index, name in enumerate(_QUEUES):
            rings = RingAddresses(
                desc=self.kernel_memory(layout.desc_bytes),
                driver=self.kernel_memory(layout.driver_bytes),
                device=self.kernel_memory(layout.device_bytes),
            )
            config = ring_config(_FEATURES, QUEUE_SIZE, rings)
            queue = DriverQueue(self.memory, name, config, device.kick_fd(index), device.call_fd(index))
            self._cleanup.callback(queue.close)
            self.queues.append(queue)
            device.queue_enable(index, QUEUE_SIZE, rings)
        device.set_status(int(status | Status.DRIVER_OK))

    def _inflate(self, listed: tuple[int, ...]) -> None:
        """Gives the host the first pages, in one real request, and lists them in order."""
        pages = self.pages.take(len(listed), Place.PRIVATE)
        assert pages is not None
        array = PfnArray(self.memory, self.kernel_memory(PFN_ARRAY_BYTES), "pfns at the start")
        array.append(pages)
        self.queues[0].add(array.address, array.size_bytes)
        self.device.process(0)
        self.queues[0].get_buf()
        os.eventfd_read(self.device.call_fd(0))
        self.pages.list_insert(Batch.of(*(real(pfn) for pfn in reversed(listed))))

    def kernel_memory(self, size_bytes: int) -> int:
        """Guest-physical address of memory for a ring or an array."""
        address = self._next_address
        self._next_address = -(-(address + size_bytes) // 64) * 64
        if self._next_address > KERNEL_PAGES * PAGE_SIZE:
            raise KernelBug("the guest's kernel has no room for another PFN array")
        return address


def real(pfn: int) -> int:
    """The real number of a page of the model."""
    return pfn + KERNEL_PAGES


def _model(pages: Batch | None) -> int | None:
    """The model's number of a batch of one page."""
    return None if pages is None else next(iter(pages)) - KERNEL_PAGES


class ConfigActual:
    """The field `actual`, as the driver writes it and the host reads it."""

    name = "actual"

    def __init__(self, device: BalloonDevice) -> None:
        self._device = device

    @property
    def value(self) -> int:
        """What the host reads."""
        return self._device.config_read32(CONFIG_ACTUAL)

    @value.setter
    def value(self, value: int) -> None:
        self._device.config_write32(CONFIG_ACTUAL, value & 0xFFFFFFFF)


class _Pages:
    """The page allocator, and the host's hold on the pages."""

    def __init__(self, guest: LiveGuest) -> None:
        self._guest = guest
        self._allocator = guest.pages
        self._memory = guest.memory
        self._device = guest.device
        #: Who wrote its pattern into a page last, until it frees the page in good order.
        self._owners: dict[int, int] = {}
        #: As `PagesValue.oom`.
        self._oom: tuple[bool, bool, bool] | None = None

    def perform(self, operation: str, actor: int, expected: Any, arguments: tuple[Any, ...]) -> Any:
        step = getattr(self, f"_{operation}")
        match operation:
            case "take":
                result = step(actor, expected, *arguments)
            case "isolate":
                result = step(expected, *arguments)
            case "write":
                result = step(actor, *arguments)
            case _:
                result = step(*arguments)
        return self._seen(result)

    def peek(self) -> PagesValue:
        numbers = range(self._memory.size_pages - KERNEL_PAGES)
        places = tuple(self._allocator.where(real(pfn)) for pfn in numbers)
        # The C list has no order that one could look up without taking pages off it.
        listed = tuple(pfn for pfn in numbers if places[pfn] is Place.LISTED)
        host = frozenset(pfn for pfn in numbers if self._device.holds(real(pfn)))
        lost = frozenset(pfn for pfn in self._owners if not self._intact(pfn))
        return PagesValue(places, listed, host, self._oom, lost)

    def _seen(self, result: Any) -> Any:
        """After every step: what an OOM call in progress has seen."""
        if self._oom is not None:
            always, waits, released = self._oom
            self._oom = (always and available(self.peek()), waits, released)
        return result

    def _choose(
        self, wanted: Any, take: Callable[[], Batch | None], put: Callable[[Batch], None], *, last_first: bool
    ) -> Batch | None:
        """The wanted one of the pages that may come, the others as they were; or whichever comes."""
        others: list[Batch] = []
        found = take()
        while found is not None and isinstance(wanted, int) and _model(found) != wanted:
            others.append(found)
            found = take()
        for other in reversed(others) if last_first else others:
            put(other)
        return found

    def _take(self, actor: int, expected: Any, place: str) -> int | None:
        to = Place[place]
        found = self._choose(
            expected,
            lambda: self._allocator.take(1, to),
            lambda page: self._allocator.free(page, to),
            last_first=True,
        )
        pfn = _model(found)
        if pfn is not None and to is Place.USER:
            self._write(actor, pfn)
        return pfn

    def _isolate(self, expected: Any, locked: int = 0) -> int | None:
        with self._locked(locked):
            found = self._choose(expected, self._allocator.isolate, self._allocator.putback, last_first=False)
        return _model(found)

    def _dequeue(self, locked: int = 0) -> int | None:
        with self._locked(locked):
            return _model(self._allocator.list_dequeue(1))

    @contextmanager
    def _locked(self, locked: int) -> Iterator[None]:
        """Holds the page locks of that many pages at the head of the list, as somebody else would."""
        pages: list[int] = []
        others: list[Batch] = []
        while len(pages) < locked and (page := self._off_the_list()) is not None:
            others.append(page)
            pages += page
        for page in reversed(others):
            self._allocator.list_insert(page)
        for pfn in pages:
            self._allocator.trylock(pfn)
        try:
            yield
        finally:
            for pfn in pages:
                self._allocator.unlock(pfn)

    def _off_the_list(self) -> Batch | None:
        """The page at the head of the list, for a moment private; None if there is none."""
        if not self._allocator.counts().listed:
            return None
        page = self._allocator.list_dequeue(1)
        if page is not None:
            self._allocator.move(page, Place.IN_FLIGHT, Place.PRIVATE)
        return page

    def _count(self) -> tuple[int, ...]:
        counts = self._allocator.counts()
        return (
            counts.free,
            0,
            counts.user,
            counts.private,
            counts.listed,
            counts.isolated,
            counts.in_flight,
        )

    def _free(self, pfn: int, place: str) -> None:
        if self._allocator.where(real(pfn)) is Place[place] and self._device.holds(real(pfn)):
            self._guest.notes.append(f"page {pfn} is freed, and in the device's record of the balloon")
            raise KernelBug("a page was freed before the host gave it back", why=f"page {pfn}")
        self._free_any(pfn, place)

    def _free_any(self, pfn: int, place: str) -> None:
        self._allocator.free(Batch.of(real(pfn)), Place[place])
        if pfn in self._owners and self._intact(pfn):
            # From now on its content is nobody's loss.
            del self._owners[pfn]
        if self._oom is not None and place == Place.IN_FLIGHT.name:
            self._oom = (self._oom[0], self._oom[1], self._oom[1])

    def _insert(self, pfn: int) -> None:
        self._allocator.list_insert(Batch.of(real(pfn)))

    def _putback(self, pfn: int) -> None:
        self._allocator.putback(Batch.of(real(pfn)))

    def _replace(self, new: int, old: int) -> None:
        self._allocator.replace_isolated(Batch.of(real(new)), Batch.of(real(old)))

    # -- programs ---------------------------------------------------------------

    def _write(self, actor: int, pfn: int) -> None:
        if self._allocator.where(real(pfn)) is not Place.USER:
            raise KernelBug("pages that are not USER were written to by a program", why=f"page {pfn}")
        self._owners[pfn] = actor + 1
        self._memory.stamp(Batch.of(real(pfn)).pfns, 1, actor + 1)

    def _intact(self, pfn: int) -> bool:
        """Whether a page that a program wrote still holds that."""
        return not self._memory.verify(Batch.of(real(pfn)).pfns, 1, self._owners[pfn])

    def _check(self, pfn: int) -> None:
        if pfn not in self._owners or self._intact(pfn):
            return
        zeroes = self._memory.read(real(pfn) * PAGE_SIZE, PAGE_SIZE).count(0)
        self._guest.notes.append(
            f"page {pfn} of guest memory: a program wrote {PAGE_SIZE} bytes; {zeroes} of them read as zero now"
        )
        raise LostData("lost data: a program's page is not what it wrote", why=f"page {pfn}")

    # -- the host ---------------------------------------------------------------

    def _inflate(self, pfns: tuple[int, ...]) -> None:
        before = self._device.counters().pfns_duplicate
        self._inflate_any(pfns)
        for pfn in pfns:
            place = self._allocator.where(real(pfn))
            if place in {Place.FREE, Place.USER} and self._device.holds(real(pfn)):
                self._guest.notes.append(
                    f"page {pfn}: {place.name} in the guest's allocator, and in the device's record of the balloon"
                )
                raise KernelBug(
                    "lost data: the host discards a page that is not the balloon's",
                    why=f"page {pfn} is {place.name}",
                )
        if self._device.counters().pfns_duplicate > before:
            raise KernelBug("a page was inflated that the host has already", why=f"pages {list(pfns)}")

    def _inflate_any(self, pfns: tuple[int, ...]) -> None:
        del pfns
        self._device.step(0, "act")

    def _deflate(self, pfns: tuple[int, ...]) -> None:
        before = self._device.counters().pfns_never_inflated
        self._deflate_any(pfns)
        if self._device.counters().pfns_never_inflated > before:
            self._guest.notes.append(
                f"the device counted a deflated page that it does not hold; the request names pages {list(pfns)}"
            )
            raise KernelBug("a page was deflated that the host has not got yet", why=f"pages {list(pfns)}")

    def _deflate_any(self, pfns: tuple[int, ...]) -> None:
        del pfns
        self._device.step(1, "act")

    # -- how an OOM call is graded -------------------------------------------------

    def _oom_begins(self) -> None:
        self._oom = (available(self.peek()), False, False)

    def _oom_waits(self) -> None:
        if self._oom is not None:
            self._oom = (self._oom[0], True, self._oom[2])

    def _oom_ends(self) -> str:
        assert self._oom is not None
        always, _, released = self._oom
        self._oom = None
        counts = self._allocator.counts()
        if released:
            return "freed by another"
        if always:
            return "listed" if counts.listed else "in hand" if counts.private else "in flight"
        return "isolated" if counts.isolated else ""


class _Array:
    """A PFN array in guest memory."""

    def __init__(self, guest: LiveGuest, name: str) -> None:
        self._guest = guest
        self.array = PfnArray(guest.memory, guest.kernel_memory(PFN_ARRAY_BYTES), name)
        self._written_bytes = 0

    def perform(self, operation: str, actor: int, expected: Any, arguments: tuple[Any, ...]) -> Any:
        del expected
        if operation == "clear":
            return self.array.clear()
        if operation == "append":
            self.array.append(Batch.of(*(real(pfn) for pfn in arguments[0])))
            self._written_bytes = max(self._written_bytes, self.array.size_bytes)
            return None
        if operation == "read":
            return self._pfns(self.array.size_bytes)
        queue = self._guest.in_hand.pop(actor)
        return tuple(pfn - KERNEL_PAGES for pfn in self._guest.device.step_read(queue))

    def peek(self) -> ArrayValue:
        return ArrayValue(len(self.array), self._pfns(self._written_bytes))

    def _pfns(self, size_bytes: int) -> tuple[int, ...]:
        data = self._guest.memory.read(self.array.address, size_bytes)
        return tuple(
            int.from_bytes(data[at : at + PFN_BYTES], "little") - KERNEL_PAGES
            for at in range(0, len(data), PFN_BYTES)
        )


class _Queue:
    """A split ring: the driver half, and the device half inside the device."""

    def __init__(self, guest: LiveGuest, index: int) -> None:
        self._guest = guest
        self._index = index
        self._driver = guest.queues[index]
        self._device = guest.device
        self._request: tuple[int, str, tuple[int, ...]] = (-1, "", ())
        self._popped = False
        self._reset = False

    def perform(self, operation: str, actor: int, expected: Any, arguments: tuple[Any, ...]) -> Any:
        del expected
        match operation:
            case "add":
                return self._add(actor, *arguments)
            case "pop":
                return self._pop(actor)
            case "use":
                self._popped = False
                self._device.step(self._index, "use")
                return None
            case "get_buf":
                return self._get_buf(actor)
            case _:
                return self._stop()

    def peek(self) -> tuple[Any, ...]:
        if self._reset:
            return ("reset", -1, "", ())
        if not self._driver.outstanding:
            return ("idle", -1, "", ())
        if not self._device.queue_depth(self._index):
            return ("used", *self._request)
        return ("popped" if self._popped else "added", *self._request)

    def _add(self, actor: int, array: str, pfns: tuple[int, ...]) -> None:
        if self._reset:
            raise KernelBug("the host was told something after the reset")
        if self._driver.outstanding == self._driver.size:
            # What `DriverQueue.submit` would say: the ring has one descriptor.
            raise KernelBug("a second request on a queue", why=f"one of {self._request[1]} is outstanding")
        real_array = self._guest.arrays[array].array
        self._driver.submit(real_array.address, real_array.size_bytes)
        self._request = (actor, array, pfns)

    def _pop(self, actor: int) -> Any:
        if self._reset or not self._device.step(self._index, "pop"):
            return BLOCKED
        self._popped = True
        self._guest.in_hand[actor] = self._index
        return self._request[1:]

    def _get_buf(self, actor: int) -> bool:
        if not self._driver.get_buf():
            return False
        if self._request[0] != actor:
            raise KernelBug("a task took the acknowledgement of another one")
        return True

    def _stop(self) -> None:
        if self._driver.outstanding:
            raise KernelBug("the device was reset with a request in flight")
        self._device.queue_stop(self._index)
        self._reset = True
