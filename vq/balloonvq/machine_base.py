"""What every machine has, wherever its guest runs: a device, events, an end, and figures seen from outside."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from abc import abstractmethod
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Literal

from balloonvq.closing import Closing
from balloonvq.counters import (
    Balloon,
    Counters,
    MachineState,
    QueueStatus,
    ShortReason,
    Status,
    WaitResult,
)
from balloonvq.device import BalloonDevice
from balloonvq.errors import InvalidArgument
from balloonvq.features import BALLOON_QUEUES, Feature, feature_names, status_names
from balloonvq.memory import PAGE_SIZE

__all__ = ["EVENT_INTERVAL", "Ended", "MachineBase", "negative_interval"]

#: BALLOON_CHANGE events are at least this many seconds apart, except for the last one.
EVENT_INTERVAL = 0.05

#: How a wait has ended: (outcome, why the balloon came short).
Ended = tuple[Literal["reached", "short", "timeout"], ShortReason | None]

_STATS_QUEUE = BALLOON_QUEUES.index("stats")


class MachineBase(Closing):
    """A device and what is told of it.

    Args:
        name: how commands address the machine.

    Attributes:
        name: how commands address the machine.
        device: the balloon device; set by the subclass.
    """

    device: BalloonDevice

    def __init__(self, name: str) -> None:
        self.name = name
        self._lock = threading.Lock()
        self._subscribers: list[Callable[[str, dict[str, object]], None]] = []
        self._quit = threading.Event()
        self._stopping = False
        self._stats_interval = 0
        self._started_ns = time.monotonic_ns()
        #: (requests, pages) of whoever looked last, and when they were first seen so, by the machine's clock.
        self._last_move = ((0, 0), 0)
        self._cleanup = contextlib.ExitStack()

    # -- life ----------------------------------------------------------------

    def stop(self) -> int:
        """Ends the machine and all that it has. Calling it again is harmless.

        Returns the guest pages that were found to have lost their content.
        """
        with self._lock:
            if self._stopping:
                return 0
            self._stopping = True
        self._emit("SHUTDOWN", {"guest": False, "reason": "host-qmp-quit"})
        lost = self._ending()
        self._cleanup.close()
        return lost

    def _ending(self) -> int:
        """What is to be done while everything still is there; returns the guest pages found lost."""
        return 0

    def close(self) -> None:
        """Ends the machine, as `stop` does."""
        self.stop()

    def request_quit(self) -> None:
        """Asks whoever runs the machine to stop it."""
        self._quit.set()

    def wait_quit(self, timeout: float | None = None) -> bool:
        """Waits until somebody asked for the end; whether somebody did."""
        return self._quit.wait(timeout)

    # -- events --------------------------------------------------------------

    def subscribe(self, callback: Callable[[str, dict[str, object]], None]) -> Callable[[], None]:
        """Calls callback(name, data) at every event, from any thread; returns how to end that."""
        with self._lock:
            self._subscribers.append(callback)

        def unsubscribe() -> None:
            with self._lock, contextlib.suppress(ValueError):
                self._subscribers.remove(callback)

        return unsubscribe

    def _emit(self, event: str, data: dict[str, object]) -> None:
        with self._lock:
            subscribers = list(self._subscribers)
        for callback in subscribers:
            callback(event, data)

    # -- figures -------------------------------------------------------------

    @property
    @abstractmethod
    def ram_bytes(self) -> int:
        """Guest memory; 0 while there is none."""

    @property
    @abstractmethod
    def state(self) -> MachineState:
        """What the machine as a whole is doing."""

    @property
    def target_pages(self) -> int:
        """Size of the balloon that was asked for."""
        return self.device.target_pages

    @property
    def actual_pages(self) -> int:
        """Size of the balloon as the driver reported it."""
        return self.device.actual_pages

    @property
    def stats_polling_interval(self) -> int:
        """Seconds between statistics requests; 0 = only when asked."""
        return self._stats_interval

    @stats_polling_interval.setter
    def stats_polling_interval(self, seconds: int) -> None:
        if seconds < 0:
            raise negative_interval(seconds)
        self._poll_every(seconds)

    @abstractmethod
    def _poll_every(self, seconds: int) -> None:
        """Sets `_stats_interval` and begins to poll, or tells whoever does."""

    @property
    @abstractmethod
    def _stalled_ns(self) -> int:
        """A balloon that should move, and has not for this long, is stalled."""

    @abstractmethod
    def _now_ns(self) -> int:
        """The machine's clock."""

    @abstractmethod
    def _short_reason(self) -> ShortReason | None:
        """Why the balloon will not get to its target by itself now; None if it is there or moving."""

    def _settled(self) -> bool:
        """Whether the balloon has its size, and its driver rests as far as can be seen."""
        return self.device.actual_pages == self.device.target_pages

    def _resting(self) -> bool:
        """Whether there is no reason for the balloon to move."""
        return self._settled() or self._short_reason() is not None

    def _stalled(self) -> bool:
        """Whether the balloon should move, and has not for `_stalled_ns`."""
        now = self._now_ns()
        if self._resting():
            self._moves(now)
            return False
        return self._unmoved_ns(now) >= self._stalled_ns

    def _balloon(self) -> Balloon:
        """How the balloon is."""
        reason = self._short_reason()
        if reason is None and self._stalled():
            reason = "driver-stalled"
        if reason is not None:
            return Balloon(state="short", reason=reason)
        return Balloon(state="settled" if self._settled() else "moving")

    @abstractmethod
    def _trouble_text(self) -> str | None:
        """One sentence when something is wrong."""

    @abstractmethod
    def _measured(self) -> tuple[int, int, int]:
        """Bytes of guest memory: its size, what it occupies on the host now, and the most that it has."""

    def _from_outside(self, queues: Iterable[tuple[int, int]]) -> Status:
        """A snapshot of what can be seen without a look into the guest.

        Args:
            queues: index and size of each queue that is in use.
        """
        device = self.device
        counted = device.counters()
        ram, allocated, peak = self._measured()
        actual, target = device.actual_pages, device.target_pages
        return Status(
            machine=self.name,
            state=self.state,
            pid=os.getpid(),
            design=None,
            design_options=None,
            ram_bytes=ram,
            target_bytes=target * PAGE_SIZE,
            target_pages=target,
            actual_bytes=actual * PAGE_SIZE,
            actual_pages=actual,
            held_pages=counted.held_pages,
            guest_usable_bytes=ram - actual * PAGE_SIZE,
            guest_free_bytes=None,
            guest_used_bytes=None,
            returned_acknowledged_bytes=counted.held_pages * PAGE_SIZE,
            returned_measured_bytes=max(0, peak - allocated),
            memory_allocated_bytes=allocated,
            discard_backlog_bytes=counted.owed_pages * PAGE_SIZE,
            deflate_on_oom=bool(device.driver_features & Feature.DEFLATE_ON_OOM),
            must_tell_host=bool(device.driver_features & Feature.MUST_TELL_HOST),
            features=feature_names(device.driver_features),
            device_status=status_names(device.status),
            memory=None,
            discard=device.discard,
            balloon=self._balloon(),
            stack=None,
            counters=Counters(
                inflated_pages=counted.inflated_pages,
                deflated_pages=counted.deflated_pages,
                requests=counted.requests,
                kicks=counted.kicks,
                kicks_suppressed=None,
                interrupts=counted.calls,
                interrupts_suppressed=counted.calls_suppressed,
                config_changes=counted.config_changes,
                oom_events=None,
                oom_kills=None,
                oom_deflated_pages=None,
                migrated_pages=None,
                migrations_refused=None,
                discards=counted.discard_syscalls,
                discard_ranges=counted.discard_ranges,
                discard_failures=counted.discard_failed,
                pfns_duplicate=counted.pfns_duplicate,
                pfns_out_of_range=counted.pfns_out_of_range,
                pfns_never_inflated=counted.pfns_never_inflated,
                lost_pages=None,
                page_violations=None,
                stats_updates=device.stats().updates,
            ),
            queues=tuple(self._queue_status(queue, size) for queue, size in queues),
            uptime_ns=time.monotonic_ns() - self._started_ns,
            monotonic_ns=time.monotonic_ns(),
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            trouble=self._trouble_text(),
        )

    def _queue_status(self, queue: int, size: int) -> QueueStatus:
        calls, suppressed = self.device.queue_calls(queue)
        # The device keeps one statistics buffer on purpose; that is not a backlog.
        kept = 1 if queue == _STATS_QUEUE else 0
        return QueueStatus(
            name=BALLOON_QUEUES[queue],
            size=size,
            depth=max(0, self.device.queue_depth(queue) - kept),
            kicks=None,
            kicks_suppressed=None,
            interrupts=calls,
            interrupts_suppressed=suppressed,
            latency=self.device.latency(queue),
        )

    def _moves(self, now_ns: int) -> None:
        """The balloon is not expected to move, or is from now on."""
        self._last_move = ((self.device.counters().requests, self.device.actual_pages), now_ns)

    def _unmoved_ns(self, now_ns: int) -> int:
        """For how long whoever looked has found neither an acknowledged request nor a new size."""
        if (self.device.counters().requests, self.device.actual_pages) != self._last_move[0]:
            self._moves(now_ns)
        return now_ns - self._last_move[1]

    def _wait_result(self, ended: Ended, target: int, elapsed_ns: int) -> WaitResult:
        """The answer to a wait for `target` pages, asked when its balloon is as it has ended."""
        _, allocated, peak = self._measured()
        return WaitResult(
            outcome=ended[0],
            reason=ended[1],
            target_bytes=target * PAGE_SIZE,
            actual_bytes=self.device.actual_pages * PAGE_SIZE,
            returned_acknowledged_bytes=self.device.counters().held_pages * PAGE_SIZE,
            returned_measured_bytes=max(0, peak - allocated),
            elapsed_ns=elapsed_ns,
        )

    # -- trouble to order ----------------------------------------------------

    def set_faults(self, **faults: int) -> None:
        """Injects trouble into the device; see `balloonvq.device.FAULTS`."""
        self.device.set_faults(**faults)


def negative_interval(seconds: int) -> InvalidArgument:
    """The error for statistics to be asked for every so many seconds."""
    return InvalidArgument("a polling interval cannot be negative", why=f"{seconds} s were asked for")
