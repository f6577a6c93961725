"""A driver on a device without a thread: nothing is acknowledged before the test says so."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterator

from support.ring import RingView
from support.waiting import until

from balloonvq.device import BalloonDevice
from balloonvq.driver.designs import find
from balloonvq.driver.driver import BalloonDriver
from balloonvq.errors import InvalidArgument
from balloonvq.features import Feature
from balloonvq.guest.kernel import Kernel
from balloonvq.guest.pages import PageAllocator
from balloonvq.memory import PAGE_SIZE, GuestMemory
from balloonvq.queue import RingAddresses
from balloonvq.runtime.threads import ThreadRuntime

INFLATE, DEFLATE, STATS = range(3)
KERNEL_PAGES = 64

ALL = int(
    Feature.MUST_TELL_HOST
    | Feature.STATS_VQ
    | Feature.DEFLATE_ON_OOM
    | Feature.INDIRECT_DESC
    | Feature.EVENT_IDX
    | Feature.VERSION_1
)


class SpyDevice(BalloonDevice):
    """A device that writes down what the driver does to it, and can lie about its offer."""

    def __init__(self, memory: GuestMemory, *, features: int, lie: int | None = None) -> None:
        self.log: list[tuple[str, int, int]] = []
        self.views: dict[int, RingView] = {}
        self.lie = lie
        self.fail_at: str | None = None
        self.fail_value: int | None = None
        self.memory = memory
        super().__init__(memory, features=features, queue_size_max=16)

    def note(self, what: str, value: int = 0, more: int = 0) -> None:
        self.log.append((what, value, more))
        if what == self.fail_at and self.fail_value in {None, value}:
            raise InvalidArgument(f"{what} fails")

    @property
    def features(self) -> int:
        if hasattr(self, "_dev"):
            self.log.append(("offer", 0, 0))
        return super().features if self.lie is None else self.lie

    def set_driver_features(self, features: int) -> None:
        self.note("accept", features)
        super().set_driver_features(features)

    def set_status(self, status: int) -> None:
        self.log.append(("status", status, 0))
        super().set_status(status)

    def config_read32(self, offset: int) -> int:
        self.note("read", offset)
        return super().config_read32(offset)

    def config_write32(self, offset: int, value: int) -> None:
        self.note("write", offset, value)
        super().config_write32(offset, value)

    def queue_enable(self, queue: int, size: int, rings: RingAddresses) -> None:
        self.note("queue", queue)
        self.views[queue] = RingView(self.memory, size, rings.desc, rings.driver, rings.device)
        super().queue_enable(queue, size, rings)

    def kicked(self, queue: int) -> bool:
        """Whether a kick waits; it stays."""
        poller = select.poll()
        poller.register(self.kick_fd(queue), select.POLLIN)
        return bool(poller.poll(0))

    def statuses(self) -> list[int]:
        return [value for what, value, _ in self.log if what == "status"]


class Rig:
    """Guest and device; the test is the device's thread."""

    def __init__(self, features: int, *, design: str, lie: int | None, pages: int) -> None:
        self.memory = GuestMemory(pages * PAGE_SIZE)
        self.memory.populate(0, pages * PAGE_SIZE)
        self.pages = PageAllocator(pages, KERNEL_PAGES)
        self.device = SpyDevice(self.memory, features=features, lie=lie)
        self.runtime = ThreadRuntime(on_crash=lambda _task, error: self.crashes.append(error))
        self.crashes: list[BaseException] = []
        self.kernel = Kernel(self.runtime, self.memory, self.pages, KERNEL_PAGES * PAGE_SIZE)
        self.driver = BalloonDriver(self.runtime, self.kernel, self.device, find(design), queue_size=16)

    def probe(self) -> None:
        with self.runtime.adopted("boot", "initialisation"):
            self.driver.probe()

    def ring(self, queue: int) -> RingView:
        return self.device.views[queue]

    def request(self, queue: int, number: int) -> list[int]:
        """Waits for the queue's request of that number (from 1) and decodes it."""
        ring = self.ring(queue)
        until(lambda: ring.avail_idx >= number, f"request {number} on queue {queue}")
        return ring.pfns(number - 1)

    def acknowledge(self, queue: int) -> int:
        """Lets the device work a queue off."""
        return self.device.process(queue)

    def settle(self, pages: int) -> None:
        """Sets a target and plays the device until it is reached."""
        self.device.set_target(pages)

        def there() -> bool:
            self.acknowledge(INFLATE)
            self.acknowledge(DEFLATE)
            return self.device.actual_pages == pages and not self.driver.resizing

        until(there, f"{pages} pages")

    def close(self) -> None:
        assert self.runtime.stop()
        self.driver.close()
        self.runtime.close()
        self.device.close()
        self.pages.close()
        self.memory.close()


@contextlib.contextmanager
def rig(
    features: int = ALL,
    *,
    design: str = "modern",
    lie: int | None = None,
    pages: int = 2048,
    probe: bool = True,
) -> Iterator[Rig]:
    """A rig that is taken down at the end, without any crash of a guest task."""
    rig = Rig(features, design=design, lie=lie, pages=pages)
    try:
        if probe:
            rig.probe()
        yield rig
        assert rig.crashes == []
    finally:
        rig.close()


def drain(fd: int) -> int:
    """Reads an eventfd: how often it was raised."""
    with contextlib.suppress(BlockingIOError):
        return os.eventfd_read(fd)
    return 0
