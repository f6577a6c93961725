"""The balloon device: the Python face of csrc/balloon_device.h and csrc/worker.h.

`BalloonDevice` is the host's side, whoever the driver is. Its first half is what a transport does
(features, status, configuration space, queues); the emulated guest's driver calls it directly,
as a real one reaches it through registers or messages. Its second half is what the host does
(target, statistics, faults, counters).
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from typing import Literal

from balloonvq.counters import Latency
from balloonvq.errors import InvalidArgument
from balloonvq.features import BALLOON_QUEUES, Feature
from balloonvq.ffi import CData, check, ffi, lib
from balloonvq.histogram import Histogram
from balloonvq.memory import GuestMemory
from balloonvq.queue import RingAddresses, ring_config

__all__ = [
    "FAULTS",
    "QUEUE_FDS",
    "BalloonDevice",
    "DeviceCounters",
    "DeviceStats",
    "DiscardMethod",
    "QueueFd",
    "Step",
]

#: How pages go back to the host.
DiscardMethod = Literal["punch", "dontneed", "free", "none"]

_METHODS = {
    "punch": lib.DISCARD_PUNCH,
    "dontneed": lib.DISCARD_DONTNEED,
    "free": lib.DISCARD_FREE,
    "none": lib.DISCARD_NONE,
}

#: num_pages is a le32.
PFN_MAX = 0xFFFFFFFF

#: The eventfds of a queue that a front end can bring.
QueueFd = Literal["kick", "call", "err"]
QUEUE_FDS: tuple[QueueFd, ...] = ("kick", "call", "err")

_FDS = {"kick": lib.BLN_FD_KICK, "call": lib.BLN_FD_CALL, "err": lib.BLN_FD_ERR}

#: What a pass does with a request, step by step; the second one, `read`, is `BalloonDevice.step_read`.
Step = Literal["pop", "act", "use", "call"]

_STEPS = {
    "pop": lib.BLN_STEP_POP,
    "act": lib.BLN_STEP_ACT,
    "use": lib.BLN_STEP_USE,
    "call": lib.BLN_STEP_CALL,
}

#: What each request calls, looked up once: `lib` searches for a name each time.
_config_read32, _config_write32 = lib.bln_config_read32, lib.bln_config_write32

#: Most PFNs of a request that is done in steps.
STEP_PFNS_MAX = 4096

#: Fields of `struct bln_faults`: injected trouble.
FAULTS = ("ack_delay_ns", "stall_queues", "lose_kicks", "lose_calls", "wrong_used_len", "fail_discards")


@dataclass(frozen=True, slots=True)
class DeviceCounters:
    """Counts since the device was made; see `struct bln_counters`."""

    requests: int
    inflated_pages: int
    deflated_pages: int
    pfns_duplicate: int
    pfns_out_of_range: int
    pfns_never_inflated: int
    odd_bytes: int
    kicks: int
    calls: int
    calls_suppressed: int
    config_changes: int
    resets: int
    stats_requests: int
    held_pages: int
    owed_pages: int
    lazy_pages: int
    discard_ranges: int
    discard_syscalls: int
    discard_pages: int
    discard_failed: int
    discard_partial: int


_COUNTED = tuple(name for name in DeviceCounters.__dataclass_fields__ if not name.startswith("discard_"))
_DISCARD_COUNTED = ("ranges", "syscalls", "pages", "failed", "partial")


@dataclass(frozen=True, slots=True)
class DeviceStats:
    """The last statistics buffer."""

    updates: int
    """Non-empty buffers since reset."""
    time_ns: int
    """CLOCK_REALTIME of the last; 0 = never."""
    values: dict[int, int]
    """By tag."""


class BalloonDevice:
    """A balloon device over some guest memory.

    Args:
        memory: must outlive the device.
        features: offered; VERSION_1 is always added (CORE-DEV-15).
        discard: how pages go back.
        queue_size_max: largest ring; a power of 2 up to 32768.
        owed_max_bytes: how much may be acknowledged and not yet given back; None is 1 GiB.

    Raises:
        InvalidArgument: for features it cannot honour (CORE-DEV-08) or a bad size.
    """

    def __init__(
        self,
        memory: GuestMemory,
        *,
        features: int,
        discard: DiscardMethod = "punch",
        queue_size_max: int = 32768,
        owed_max_bytes: int | None = None,
    ) -> None:
        if discard not in _METHODS:
            raise InvalidArgument(
                f"a device cannot give pages back by {discard!r}",
                why=f"the methods are {', '.join(_METHODS)}",
            )
        options = ffi.new("struct bln_options *")
        options.features = features
        options.discard = _METHODS[discard]
        options.queue_size_max = queue_size_max
        # For the core 0 means its own choice; less than a page is nothing at all.
        options.owed_max = 0 if owed_max_bytes is None else max(1, owed_max_bytes)
        out = ffi.new("struct bln_device **")
        rc = lib.bln_create(memory.handle, options, out)
        if rc == -errno.EINVAL:
            raise InvalidArgument(
                f"a device cannot offer features {features:#x} with queues of {queue_size_max}",
                why="the size is a power of 2 up to 32768, the features those of `balloonvq.features`",
            )
        check(rc, "make the balloon device")
        self._dev: CData = out[0]
        self._worker: CData | None = None
        self._memory = memory
        self.discard = discard

    # -- what a transport does -----------------------------------------------

    @property
    def features(self) -> int:
        """Offered."""
        return int(lib.bln_features(self._dev))

    @property
    def driver_features(self) -> int:
        """Accepted by the driver."""
        return int(lib.bln_driver_features(self._dev))

    def set_driver_features(self, features: int) -> None:
        """Accepts features; CoreError after FEATURES_OK (CORE-DRV-22)."""
        check(lib.bln_set_driver_features(self._dev, features), "accept features after FEATURES_OK")

    @property
    def status(self) -> int:
        """The status register; see `balloonvq.features.Status`."""
        return int(lib.bln_status(self._dev))

    def set_status(self, status: int) -> None:
        """Writes the status register; 0 resets.

        Raises:
            CoreError: if a bit would be cleared (CORE-DRV-02).
        """
        check(lib.bln_set_status(self._dev, status), f"write status {status:#x}")

    def config_read32(self, offset: int) -> int:
        """A le32 of the configuration space; one access, so never torn."""
        value: int = _config_read32(self._dev, offset)
        return value if value >= 0 else check(value, f"read configuration at {offset}")

    def config_write32(self, offset: int, value: int) -> None:
        """Writes a le32 of the configuration space; only `actual` takes it."""
        rc = _config_write32(self._dev, offset, value)
        if rc < 0:
            check(rc, f"write configuration at {offset}")

    def config_read(self, offset: int, size: int) -> bytes:
        """Bytes of the configuration space; beyond its end they are 0 (T-48)."""
        inside = max(0, min(size, lib.BLN_CONFIG_BYTES - offset))
        value = ffi.new("uint8_t[]", max(1, inside))
        check(lib.bln_config_read(self._dev, offset if inside else 0, value, inside), "read configuration")
        return bytes(ffi.buffer(value, inside)).ljust(size, b"\0")

    def config_write(self, offset: int, data: bytes) -> None:
        """Writes bytes; those of `actual` are taken, all others and those beyond the end are not."""
        inside = data[: max(0, lib.BLN_CONFIG_BYTES - offset)]
        if inside:
            check(lib.bln_config_write(self._dev, offset, inside, len(inside)), "write configuration")

    @property
    def config_generation(self) -> int:
        """Changes whenever the device changes its configuration."""
        return int(lib.bln_config_generation(self._dev))

    def queue_size_max(self, queue: int) -> int:
        """Largest size of a queue; 0 when it is not there (TRN-03)."""
        return int(lib.bln_queue_size_max(self._dev, queue))

    def queue_enable(self, queue: int, size: int, rings: RingAddresses) -> None:
        """Sets a queue up and enables it.

        Raises:
            CoreError: if size, alignment or place are not valid.
        """
        config = ring_config(0, size, rings)
        check(lib.bln_queue_enable(self._dev, queue, config), f"enable the {BALLOON_QUEUES[queue]} queue")

    def queue_start(self, queue: int, size: int, rings: RingAddresses, base: int) -> None:
        """Starts a queue at an available index.

        Raises:
            CoreError: if size, alignment or place are not valid.
        """
        config = ring_config(0, size, rings)
        check(lib.bln_queue_start(self._dev, queue, config, base), f"start the {BALLOON_QUEUES[queue]} queue")

    def queue_stop(self, queue: int) -> int:
        """Stops a queue; the available index at which it is to go on. Nothing of it is touched any more."""
        return check(lib.bln_queue_stop(self._dev, queue), f"stop the {BALLOON_QUEUES[queue]} queue")

    def queue_set_fd(self, queue: int, which: QueueFd, descriptor: int | None) -> None:
        """Uses a front end's eventfd, which becomes the device's; None goes back to its own.

        Raises:
            CoreError: if nobody can wait for it; it is closed then.
        """
        rc = lib.bln_queue_set_fd(self._dev, queue, _FDS[which], -1 if descriptor is None else descriptor)
        if rc < 0 and descriptor is not None:
            os.close(descriptor)
        check(rc, f"use the {which} descriptor of the {BALLOON_QUEUES[queue]} queue")

    def set_memory(self, memory: GuestMemory) -> None:
        """Goes on with other guest memory; the old map may be closed then.

        Raises:
            CoreError: while a queue runs.
            NotEnoughMemory: if there is no room for the page record.
        """
        check(lib.bln_set_memory(self._dev, memory.handle), "exchange guest memory")
        self._memory = memory

    def kick_fd(self, queue: int) -> int:
        """Eventfd that the driver writes to notify a queue."""
        return check(lib.bln_kick_fd(self._dev, queue), "find the kick eventfd")

    def call_fd(self, queue: int) -> int:
        """Eventfd that the device writes when it has used buffers of a queue."""
        return check(lib.bln_call_fd(self._dev, queue), "find the call eventfd")

    @property
    def config_fd(self) -> int:
        """Eventfd of configuration changes."""
        return int(lib.bln_config_fd(self._dev))

    # -- what the host does --------------------------------------------------

    def start(self, cpu: int | None = None) -> None:
        """Starts the device thread, on a processor if one is given, and the one that gives memory back."""
        out = ffi.new("struct bln_worker **")
        check(lib.bln_worker_start(self._dev, -1 if cpu is None else cpu, out), "start the device thread")
        self._worker = out[0]

    def process(self, queue: int) -> int:
        """One pass over a queue by the calling thread; only while no device thread runs."""
        return int(lib.bln_process(self._dev, queue))

    def step(self, queue: int, step: Step) -> int:
        """One step of one inflate or deflate request; see `bln_step`. What it returns is said there.

        Raises:
            CoreError: if it is not the next step, or the queue is not started.
        """
        return check(lib.bln_step(self._dev, queue, _STEPS[step], ffi.NULL, 0), f"{step} a request")

    def step_read(self, queue: int) -> tuple[int, ...]:
        """The step that reads the PFNs of the request in hand, and what it has read; see `step`.

        Raises:
            CoreError: as `step`, and for a request of more than 4096 PFNs.
        """
        pfns = ffi.new("uint32_t[]", STEP_PFNS_MAX)
        count = check(
            lib.bln_step(self._dev, queue, lib.BLN_STEP_READ, pfns, STEP_PFNS_MAX), "read a request"
        )
        return tuple(ffi.unpack(pfns, count))

    @property
    def cpu_ns(self) -> int:
        """Processor time of the device: its threads, and calls of `flush`."""
        if not self._worker:
            return 0
        return int(lib.bln_worker_cpu_ns(self._worker) + lib.bln_flush_cpu_ns(self._dev))

    def set_target(self, pages: int) -> None:
        """Writes num_pages and raises a configuration change.

        Raises:
            InvalidArgument: above the guest's pages.
        """
        if not 0 <= pages <= PFN_MAX or lib.bln_set_target(self._dev, pages) < 0:
            raise InvalidArgument(
                f"a balloon of {pages} pages does not fit the guest",
                why=f"it has {self._memory.size_pages} pages",
            )

    @property
    def target_pages(self) -> int:
        """The host's wish: configuration field num_pages."""
        return int(lib.bln_target(self._dev))

    @property
    def actual_pages(self) -> int:
        """What the driver says it holds."""
        return int(lib.bln_actual(self._dev))

    @property
    def actual_fd(self) -> int:
        """Eventfd raised by the first write of `actual` after `take_actual`."""
        return int(lib.bln_actual_fd(self._dev))

    def take_actual(self) -> int:
        """`actual_pages`; `actual_fd` is raised no more."""
        return int(lib.bln_actual_take(self._dev))

    def flush(self) -> None:
        """Gives memory back that is acknowledged and still owed: the calling thread does that."""
        check(lib.bln_flush(self._dev), "give memory back")

    def request_stats(self) -> bool:
        """Asks the driver for fresh statistics; False when it holds no buffer to give back."""
        rc = lib.bln_stats_request(self._dev)
        if rc in (-errno.EAGAIN, -errno.EOPNOTSUPP):
            return False
        check(rc, "ask for statistics")
        return True

    def stats(self) -> DeviceStats:
        """The last statistics buffer."""
        stats = ffi.new("struct bln_stats *")
        lib.bln_stats_get(self._dev, stats)
        entries = {int(stats.entries[i].tag): int(stats.entries[i].value) for i in range(stats.count)}
        return DeviceStats(int(stats.updates), int(stats.time_ns), entries)

    def counters(self) -> DeviceCounters:
        """Counts since the device was made."""
        c = ffi.new("struct bln_counters *")
        lib.bln_counters_get(self._dev, c)
        own = {name: int(getattr(c, name)) for name in _COUNTED}
        own |= {f"discard_{name}": int(getattr(c.discard, name)) for name in _DISCARD_COUNTED}
        return DeviceCounters(**own)

    def queue_calls(self, queue: int) -> tuple[int, int]:
        """(calls sent, calls suppressed) of a queue; zeros while it is not enabled."""
        counters = ffi.new("struct vq_device_counters *")
        if lib.bln_queue_counters(self._dev, queue, counters) < 0:
            return 0, 0
        return int(counters.calls), int(counters.calls_suppressed)

    def queue_depth(self, queue: int) -> int:
        """Buffers that are visible and not acknowledged."""
        return max(0, int(lib.bln_queue_depth(self._dev, queue)))

    def latency(self, queue: int) -> Latency | None:
        """Service time of a queue's requests; None for queues that have none."""
        histogram = Histogram()
        if lib.bln_latency(self._dev, queue, histogram.handle) < 0:
            return None
        return histogram.latency()

    def holds(self, pfn: int) -> bool:
        """Whether the page is in the balloon by the device's own record."""
        return check(lib.bln_holds(self._dev, pfn), f"look page {pfn} up") == 1

    def broken(self) -> tuple[str, str] | None:
        """(queue, reason) when the device needs a reset, else None."""
        queue = ffi.new("unsigned *")
        reason = lib.bln_broken(self._dev, queue)
        if reason == lib.VQ_OK:
            return None
        return BALLOON_QUEUES[queue[0]], ffi.string(lib.vq_broken_text(reason)).decode()

    def set_faults(self, **faults: int) -> None:
        """Injects trouble; see `FAULTS`. Fields that are not named become 0.

        Raises:
            InvalidArgument: for an unknown field or a value out of range.
        """
        value = ffi.new("struct bln_faults *")
        for name, number in faults.items():
            if name not in FAULTS:
                raise InvalidArgument(
                    f"there is no fault {name!r}", why=f"the faults are {', '.join(FAULTS)}"
                )
            try:
                setattr(value, name, number)
            except (OverflowError, TypeError) as error:
                raise InvalidArgument(f"fault {name} cannot be {number!r}", why=str(error)) from None
        lib.bln_set_faults(self._dev, value)

    def close(self) -> None:
        """Stops the device thread and frees the device."""
        if self._worker is not None:
            lib.bln_worker_stop(self._worker)
            self._worker = None
        if self._dev:
            lib.bln_destroy(self._dev)
            self._dev = None

    @staticmethod
    def offer(*, must_tell_host: bool, deflate_on_oom: bool, event_idx: bool, indirect: bool) -> int:
        """The features to offer."""
        features = Feature.STATS_VQ | Feature.VERSION_1
        if must_tell_host:
            features |= Feature.MUST_TELL_HOST
        if deflate_on_oom:
            features |= Feature.DEFLATE_ON_OOM
        if event_idx:
            features |= Feature.EVENT_IDX
        if indirect:
            features |= Feature.INDIRECT_DESC
        return int(features)
