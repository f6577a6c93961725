"""The balloon driver: initialisation, the size worker, statistics, the OOM notifier, removal."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from balloonvq.counters import STAT_NAMES
from balloonvq.device import BalloonDevice
from balloonvq.driver.balloon import Balloon
from balloonvq.driver.designs.base import Design
from balloonvq.errors import BalloonError, RuleBroken
from balloonvq.features import BALLOON_QUEUES, Feature, Status
from balloonvq.guest.guest_stats import STAT_BYTES, collect, encode
from balloonvq.guest.kernel import Kernel
from balloonvq.guest.pages import Batch
from balloonvq.queue import DriverQueue, RingAddresses, ring_config, ring_layout
from balloonvq.runtime import Runtime

__all__ = ["KNOWN_FEATURES", "BalloonDriver", "NegotiationFailed", "TraceEntry"]

#: What this driver can use. Any other bit on offer is ignored (CORE-DRV-08, CORE-DRV-09).
KNOWN_FEATURES = (
    Feature.MUST_TELL_HOST
    | Feature.STATS_VQ
    | Feature.DEFLATE_ON_OOM
    | Feature.INDIRECT_DESC
    | Feature.EVENT_IDX
    | Feature.VERSION_1
)

CONFIG_NUM_PAGES = 0
CONFIG_ACTUAL = 4

INFLATE, DEFLATE, STATS = range(3)


class NegotiationFailed(RuleBroken):
    """Driver and device could not agree; the driver has set FAILED (CORE-DRV-11)."""


@dataclass(frozen=True, slots=True)
class TraceEntry:
    """One transport access during initialisation or removal."""

    what: str
    """status, features, queue, config-read, config-write, kick, reset."""
    value: int
    """The value written, or the queue's index."""


class BalloonDriver:
    """A driver on an emulated guest.

    Args:
        runtime: where its tasks run.
        kernel: the guest kernel.
        device: the device, reached as a transport would.
        design: the locking design.
        queue_size: descriptors a queue (at most what the device offers).
        design_options: values of the design's options that are not the default.
    """

    def __init__(
        self,
        runtime: Runtime,
        kernel: Kernel,
        device: BalloonDevice,
        design: type[Design],
        *,
        queue_size: int,
        design_options: Mapping[str, str] | None = None,
    ) -> None:
        self.runtime = runtime
        self.kernel = kernel
        self.device = device
        self.queue_size = queue_size
        #: Transport accesses in order, for tests and for `--trace`.
        self.trace: list[TraceEntry] = []
        #: Pages that the OOM notifier gave back.
        self.oom_deflated_pages = runtime.shared("oom_deflated_pages")
        self.migrated_pages = runtime.shared("migrated_pages")
        self.migrations_refused = runtime.shared("migrations_refused")
        #: The target that the size worker last looked at.
        self.seen_target = 0
        self._design_class = design
        self._design_options = dict(design_options or {})
        self._queues: list[DriverQueue] = []
        self.features = 0

    # -- initialisation ------------------------------------------------------

    def probe(self) -> None:
        """Initialises the device in the order of the specification (CORE-DRV-19, BAL-DRV-05).

        Raises:
            NegotiationFailed: if the device lacks VERSION_1 or refuses the accepted
                features; FAILED is set.
            BalloonError: if a later step fails; FAILED is set.
        """
        self._set_status(0)
        self._set_status(Status.ACKNOWLEDGE)
        self._set_status(Status.ACKNOWLEDGE | Status.DRIVER)
        try:
            self._negotiate()
            self._set_up()
        except BalloonError:
            self._set_status(self.device.status | Status.FAILED)
            self.close()
            raise
        self._set_status(self.device.status | Status.DRIVER_OK)
        self._start()

    def _negotiate(self) -> None:
        offered = self.device.features
        self.features = offered & int(KNOWN_FEATURES)
        if not self.features & Feature.VERSION_1:
            raise NegotiationFailed("the device does not offer VERSION_1", why=f"it offers {offered:#x}")
        self._note("features", self.features)
        self.device.set_driver_features(self.features)
        self._set_status(self.device.status | Status.FEATURES_OK)
        if not self.device.status & Status.FEATURES_OK:
            raise NegotiationFailed("the device refused the accepted features", why=f"{self.features:#x}")

    def _set_up(self) -> None:
        """Queues, the statistics buffer, the design: everything before DRIVER_OK."""
        count = 3 if self.features & Feature.STATS_VQ else 2
        for index in range(count):
            self._find_vq(index)
        self.vb = Balloon(
            self.runtime,
            self.kernel,
            inflate_vq=self._queues[INFLATE],
            deflate_vq=self._queues[DEFLATE],
            deflate_on_oom=bool(self.features & Feature.DEFLATE_ON_OOM),
        )
        self.design = self._design_class(
            self.vb,
            towards_target=self._towards_target,
            publish=self.publish,
            requeue=self._requeue,
            **self._design_options,
        )
        if self.stats_vq is not None:
            self._stats_bytes = len(STAT_NAMES) * STAT_BYTES
            self._stats_buffer = self.kernel.boot_alloc(self._stats_bytes, align=64)
            self._add_stats(self.stats_vq)

    def _find_vq(self, index: int) -> None:
        self._note("queue", index)
        size = min(self.queue_size, self.device.queue_size_max(index))
        layout = ring_layout(self.features, size)
        alloc = self.kernel.boot_alloc
        rings = RingAddresses(
            desc=alloc(layout.desc_bytes, max(layout.desc_align, 64)),
            driver=alloc(layout.driver_bytes, max(layout.driver_align, 64)),
            device=alloc(layout.device_bytes, max(layout.device_align, 64)),
        )
        queue = DriverQueue(
            self.kernel.memory,
            BALLOON_QUEUES[index],
            ring_config(self.features, size, rings),
            self.device.kick_fd(index),
            self.device.call_fd(index),
        )
        self._queues.append(queue)
        self.device.queue_enable(index, size, rings)

    def _start(self) -> None:
        """After DRIVER_OK: kick the statistics queue, start the workers, register notifier or shrinker."""
        runtime = self.runtime
        if self.stats_vq is not None:
            self._note("kick", STATS)
            self.stats_vq.kick()
            self._stats_work = runtime.work(
                "S", "statistics worker", self._refresh_stats, interrupts=(self.stats_vq.call_fd,)
            )
        if self.vb.deflate_on_oom:
            # Without the feature the driver must not take pages back by itself (BAL-DRV-12).
            if self.design.pressure == "shrinker":
                self.kernel.shrinkers.append(self._shrink)
                self.kernel.start_kswapd()
            else:
                self.kernel.notifiers.append(self._oom_notify)
        self._size_work = runtime.work(
            "W",
            "size worker",
            self._resize,
            interrupts=(self.device.config_fd,),
            at_rest=self.vb.settled,
        )
        # The host may have set a target before we were there.
        self._size_work.queue()

    # -- the size worker -----------------------------------------------------

    @property
    def resizing(self) -> bool:
        """Whether the size worker runs or is about to."""
        return self._size_work.pending

    def config_changed(self) -> None:
        """The host, in this process, has just raised a configuration change."""
        self._size_work.nudge()

    def _resize(self) -> None:
        held = self.vb.num_pages.value
        self.design.resize()
        if self.vb.num_pages.value != held:
            self.vb.out_of_puff.value = 0

    def _requeue(self) -> None:
        self._size_work.queue()

    def _towards_target(self) -> int:
        """Pages that the host wants above or below what we hold (BAL-DRV-06)."""
        target = self.device.config_read32(CONFIG_NUM_PAGES)
        self.seen_target = target
        return target - self.vb.num_pages.value

    def publish(self) -> None:
        """PUBLISH: [a := num_pages] [config.actual := a] (BAL-DRV-19, BAL-DRV-20)."""
        self.device.config_write32(CONFIG_ACTUAL, self.vb.num_pages.value & 0xFFFFFFFF)

    # -- other actors --------------------------------------------------------

    def _oom_notify(self) -> int:
        freed = self.design.on_oom()
        self.oom_deflated_pages.add(freed)
        self.vb.settled.wake_all()
        return freed

    def _shrink(self, nr: int) -> int:
        freed = self.design.scan(nr)
        self.oom_deflated_pages.add(freed)
        self.vb.settled.wake_all()
        return freed

    def migrate(self, new: Batch, old: Batch) -> bool:
        """Compaction's callback; see `Design.migrate`."""
        moved = self.design.migrate(new, old)
        (self.migrated_pages if moved else self.migrations_refused).add(1)
        return moved

    # -- statistics ----------------------------------------------------------

    @property
    def stats_vq(self) -> DriverQueue | None:
        """The statistics queue, if it was negotiated."""
        return self._queues[STATS] if len(self._queues) > STATS else None

    @property
    def queues(self) -> tuple[DriverQueue, ...]:
        """All queues, by index."""
        return tuple(self._queues)

    def _refresh_stats(self) -> None:
        """The device gave the buffer back: fill it anew (BAL-DRV-22..26)."""
        queue = self.stats_vq
        if queue is not None and queue.get_buf():
            self._add_stats(queue)
            queue.kick()

    def _add_stats(self, queue: DriverQueue) -> None:
        self.kernel.memory.write(self._stats_buffer, encode(collect(self.kernel)))
        queue.add(self._stats_buffer, self._stats_bytes)

    # -- removal -------------------------------------------------------------

    def remove(self) -> None:
        """Gives every page back, then resets the device, then deletes the queues (CORE-DRV-27).

        Runs in the calling task; the size worker must be at rest.
        """
        if self.vb.deflate_on_oom:
            if self.design.pressure == "shrinker":
                self.kernel.shrinkers.remove(self._shrink)
            else:
                self.kernel.notifiers.remove(self._oom_notify)
        self.design.drain()
        self.publish()
        self._set_status(0)
        self.close()

    def close(self) -> None:
        """Frees the driver halves of the queues."""
        for queue in self._queues:
            queue.close()
        self._queues.clear()

    # -- transport -----------------------------------------------------------

    def _set_status(self, status: int) -> None:
        self._note("status", int(status))
        self.device.set_status(int(status))

    def _note(self, what: str, value: int) -> None:
        self.trace.append(TraceEntry(what, value))
