"""A machine whose guest runs elsewhere: the device, offered to a vhost-user front end.

    VhostMachine
    ├── device    BalloonDevice    C, its own thread
    ├── memory    SharedMemory     whatever the front end gives; empty while none is there
    └── backend   Backend          a socket and a thread

It answers the same verbs as an emulated machine (`balloonvq.qmp.commands.MachineAPI`), so the same
commands act on it. What needs a look into the guest it does not know: such fields of its status are
None, and `oom`, `compact` and `check` say that only an emulated guest can do them.

The host's wish outlives the guest: a guest that reboots finds the target it had.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from balloonvq.counters import (
    CompactReport,
    DeadlockReport,
    MachineState,
    OomReport,
    ShortReason,
    StatsReport,
    Status,
    WaitResult,
)
from balloonvq.device import BalloonDevice, DiscardMethod
from balloonvq.errors import BalloonError, MachineStopped
from balloonvq.features import Feature
from balloonvq.machine_base import EVENT_INTERVAL, Ended, MachineBase
from balloonvq.memory import PAGE_SIZE
from balloonvq.statistics import collect
from balloonvq.vhost_user.backend import Backend, FrontEndState
from balloonvq.vhost_user.layout import QueueLayout
from balloonvq.vhost_user.session import SharedMemory

__all__ = ["VhostConfig", "VhostMachine"]

#: A guest that makes no request for this long on its way to the target is called stalled. Linux tries
#: again five times a second when it finds no page.
STALLED_NS = 5_000_000_000

#: A balloon below a target that it had reached, and at rest for this long, was deflated by its guest.
#: Sooner it may be one that is still on its way to an older target.
AT_REST_NS = 2_000_000_000

#: How often a waiter looks when nothing wakes it.
LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class VhostConfig:
    """What a served device is made of.

    Attributes:
        name: how commands address it.
        socket: where to listen; or
        fd: a socket that we were started with.
        queue_layout: how the front end numbers vrings (T-42).
        stats, must_tell_host, deflate_on_oom, event_idx, indirect: features on offer.
        queue_size: most descriptors of a queue, a power of 2 up to 32768.
        discard: how the device gives pages back.
        stats_interval: seconds between statistics requests; 0 = only when asked.
        cpu: processor of the device's thread; None is any.
    """

    name: str = "vhost"
    socket: str | None = None
    fd: int | None = None
    queue_layout: QueueLayout = "auto"
    stats: bool = True
    must_tell_host: bool = True
    deflate_on_oom: bool = True
    event_idx: bool = True
    indirect: bool = True
    queue_size: int = 32768
    discard: DiscardMethod = "punch"
    stats_interval: int = 0
    cpu: int | None = None

    @property
    def features(self) -> int:
        """The features on offer; with any choice of these the two numberings of queues agree."""
        features = BalloonDevice.offer(
            must_tell_host=self.must_tell_host,
            deflate_on_oom=self.deflate_on_oom,
            event_idx=self.event_idx,
            indirect=self.indirect,
        )
        return features if self.stats else features & ~int(Feature.STATS_VQ)


class VhostMachine(MachineBase):
    """A served device. It listens from the moment it is made.

    Raises:
        InvalidArgument: if the configuration cannot work.
        MachineError: if somebody else listens at the socket, or it cannot be made.
    """

    def __init__(self, config: VhostConfig) -> None:
        super().__init__(config.name)
        self.config = config
        self._changed = threading.Condition()
        self._last_end = ""
        #: When the target was last set, CLOCK_MONOTONIC.
        self._target_set_ns = time.monotonic_ns()
        self._reached: int | None = None
        self._moved_ns = 0
        with contextlib.ExitStack() as cleanup:
            self.memory = SharedMemory()
            cleanup.callback(self.memory.close)
            self.device = BalloonDevice(
                self.memory.map,
                features=config.features,
                discard=config.discard,
                queue_size_max=config.queue_size,
            )
            cleanup.callback(self.device.close)
            self.device.start(config.cpu)
            self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            cleanup.callback(os.close, self._wake)
            self.backend = Backend(
                self.device,
                self.memory,
                socket_path=config.socket,
                descriptor=config.fd,
                layout=config.queue_layout,
                on_state=self._on_state,
            )
            cleanup.callback(self.backend.close)
            self._pump = threading.Thread(target=self._pump_events, name="events", daemon=True)
            self._pump.start()
            cleanup.callback(self._stop_pump)
            self._cleanup = cleanup.pop_all()
        self.backend.start()
        self.stats_polling_interval = config.stats_interval

    # -- life ----------------------------------------------------------------

    def _ending(self) -> int:
        self._notify()
        return 0  # no page can be checked from here

    def _stop_pump(self) -> None:
        os.eventfd_write(self._wake, 1)
        self._pump.join()

    # -- events --------------------------------------------------------------

    def _on_state(self, state: FrontEndState, why: str) -> None:
        """What became of the front end; from the backend's thread."""
        if state == "gone":
            self._last_end = why
        elif state == "connected":
            self._last_end = ""
        self._moves(time.monotonic_ns())
        self._emit("X_FRONT_END", {"state": state, "reason": why})
        self._notify()

    def _notify(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _pump_events(self) -> None:
        """Turns writes of `actual` into BALLOON_CHANGE events, and asks for statistics when it is time."""
        poller = select.poll()
        poller.register(self.device.actual_fd, select.POLLIN)
        poller.register(self._wake, select.POLLIN)
        told = previous = 0
        told_at = asked = 0.0
        while not self._stopping:
            now = time.monotonic()
            interval = self._stats_interval
            due = [asked + interval] if interval else []
            if self.device.actual_pages != told:
                due.append(told_at + EVENT_INTERVAL)
            poller.poll(max(0.0, min(due) - now) * 1000 + 1 if due else None)
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._wake)
            now = time.monotonic()
            actual = self.device.take_actual()
            if actual != previous:
                previous, self._moved_ns = actual, time.monotonic_ns()
                self._unmoved_ns(self._moved_ns)
                if actual == self.target_pages:
                    self._reached = actual
            self._notify()  # waiters at once, watchers a few times a second
            if actual != told and now >= told_at + EVENT_INTERVAL:
                told, told_at = actual, now
                self._emit("BALLOON_CHANGE", {"actual": self.ram_bytes - actual * PAGE_SIZE})
            if interval and now >= asked + interval:
                asked = now
                self.device.request_stats()

    # -- figures -------------------------------------------------------------

    @property
    def ram_bytes(self) -> int:
        """Guest memory that the front end shares with us; 0 while there is none."""
        with self.memory.lock:
            return self.memory.map.size_bytes

    @property
    def state(self) -> MachineState:
        """waiting: no guest's driver runs."""
        if self._stopping:
            return "stopping"
        if self.device.broken() is not None:
            return "broken"
        if not self.backend.live:
            return "waiting"
        return "stalled" if self._stalled() else "running"

    def status(self) -> Status:
        """A snapshot of everything that can be seen from outside the guest."""
        return self._from_outside(self.backend.queues)

    def _measured(self) -> tuple[int, int, int]:
        with self.memory.lock:
            map_ = self.memory.map
            return (map_.size_bytes, *map_.allocated())

    def _trouble_text(self) -> str | None:
        broken = self.device.broken()
        if broken is not None:
            return f"the device needs a reset: {broken[0]} queue: {broken[1]}"
        if self._last_end and not self.backend.attached:
            return f"the last front end was sent away: {self._last_end}"
        return None

    # -- the balloon ---------------------------------------------------------

    def set_target(self, pages: int) -> None:
        """Asks the guest for a balloon of that many pages.

        Raises:
            InvalidArgument: if the guest has fewer.
            BalloonError: if there is no guest, or it cannot be told before its driver looks by itself.
        """
        if not self.backend.live:
            raise self._no_guest()
        with self.memory.lock:
            self.memory.map.allocated_peak_bytes()  # before pages go
        self._reached = None
        self._target_set_ns = time.monotonic_ns()
        self._moves(self._target_set_ns)
        self.device.set_target(pages)
        if self.actual_pages == pages:
            self._reached = pages
        self._notify()
        if not self.backend.hears_changes:
            raise BalloonError(
                "the guest cannot be told of its new target",
                why="the front end gave no channel for configuration changes (BACKEND_REQ and CONFIG)",
                hint="the target is set; the driver reads it when it is loaded again",
            )

    def _no_guest(self) -> BalloonError:
        where = self.config.socket or f"descriptor {self.config.fd}"
        return BalloonError(
            "no guest is attached",
            why=self._trouble_text()
            or ("a front end is connected, its driver does not run" if self.backend.attached else ""),
            hint=f"start a guest with a vhost-user balloon at {where}",
        )

    @property
    def _stalled_ns(self) -> int:
        return STALLED_NS

    def _now_ns(self) -> int:
        return time.monotonic_ns()

    def _resting(self) -> bool:
        return not self.backend.live or super()._resting()

    def _short_reason(self) -> ShortReason | None:
        if self.device.broken() is not None:
            return "device-broken"
        if not self.backend.live and self.target_pages:
            return "no-guest"
        reached = self._reached
        fell = reached is not None and reached == self.target_pages and self.actual_pages < reached
        if fell and time.monotonic_ns() - self._moved_ns >= AT_REST_NS:
            # It was there, and nobody asked for less: the guest was out of memory. Linux does not fill up
            # again before the next configuration change.
            return "deflated-by-oom"
        return None

    def wait(self, timeout_ns: int | None = None, abandoned: Callable[[], bool] | None = None) -> WaitResult:
        """Waits until the balloon has its size, or until it is clear that it will not get it now.

        Args:
            timeout_ns: give up after that long; None never.
            abandoned: asked now and then; True ends the wait as a timeout does.

        Raises:
            MachineStopped: if the machine ends meanwhile.
            BalloonError: if there is no guest.
        """
        if not self.backend.live:
            raise self._no_guest()
        begun = moved = time.monotonic_ns()
        target = self.target_pages
        progress = (self.device.counters().requests, self.actual_pages)
        while True:
            if self._stopping:
                raise MachineStopped(f"machine {self.name} has ended")
            now = time.monotonic_ns()
            self._unmoved_ns(now)
            seen = (self.device.counters().requests, self.actual_pages)
            if seen != progress:
                progress, moved = seen, now
            ended = self._ended(target, stalled=now - moved >= STALLED_NS)
            if self._stopping:
                # It looks like a guest that has gone.
                raise MachineStopped(f"machine {self.name} has ended")
            given_up = timeout_ns is not None and now - begun >= timeout_ns
            if ended is None and (given_up or (abandoned is not None and abandoned())):
                ended = "timeout", None
            if ended is not None:
                if ended[0] != "timeout":
                    # The device acknowledges before it gives memory back; what is told has left.
                    self.device.flush()
                return self._wait_result(ended, target, time.monotonic_ns() - self._target_set_ns)
            rest = LOOK_SECONDS
            if timeout_ns is not None:
                rest = min(rest, max(0.0, (timeout_ns - (now - begun)) / 1e9))
            with self._changed:
                if self.actual_pages == progress[1]:
                    self._changed.wait(rest)

    def _ended(self, target: int, *, stalled: bool) -> Ended | None:
        """How a wait for `target` has ended, None if it has not."""
        if self.target_pages != target:
            return "short", "target-changed"
        reason = self._short_reason()
        if reason is not None:
            return "short", reason
        if self.actual_pages == target:
            return "reached", None
        return ("short", "driver-stalled") if stalled else None

    def sleep(self, duration_ns: int) -> None:
        """Lets that much time pass; a guest elsewhere has the host's clock.

        Raises:
            MachineStopped: if the machine ends meanwhile.
        """
        deadline = time.monotonic_ns() + duration_ns
        with self._changed:
            while (rest := deadline - time.monotonic_ns()) > 0 and not self._stopping:
                self._changed.wait(rest / 1e9)
        if self._stopping:
            raise MachineStopped(f"machine {self.name} has ended")

    # -- statistics ----------------------------------------------------------

    def statistics(self, refresh: bool = True) -> StatsReport:
        """The guest's statistics; asks its driver for fresh ones first if `refresh`."""
        return collect(self.device, refresh=refresh, ended=lambda: self._stopping)

    def _poll_every(self, seconds: int) -> None:
        self._stats_interval = seconds
        os.eventfd_write(self._wake, 1)

    # -- what only an emulated guest can do ----------------------------------

    def oom(
        self, size_bytes: int | None = None, gfp_fs: bool = True, while_filling: bool = False
    ) -> OomReport:
        """Not from here."""
        del size_bytes, gfp_fs, while_filling
        self._elsewhere(
            "run a program in it out of memory", "run a program in the guest that allocates too much"
        )

    def compact(self, pages: int | None = None) -> CompactReport:
        """Not from here."""
        del pages
        self._elsewhere("run its compaction", "echo 1 > /proc/sys/vm/compact_memory, in the guest")

    def check(self) -> dict[str, int]:
        """Not from here."""
        self._elsewhere("look at the pages of its programs", "checksum them in the guest")

    def deadlock(self) -> DeadlockReport | None:
        """None: a guest's locks cannot be seen from here."""
        return None

    def _elsewhere(self, what: str, hint: str) -> NoReturn:
        raise BalloonError(
            f"only an emulated guest lets balloonctl {what}",
            why=f"the guest of {self.name} runs behind {Path(self.config.socket or 'a socket').name}",
            hint=hint,
        )
