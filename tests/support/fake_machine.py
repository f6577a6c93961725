"""A machine without memory, driver or device: what QMP, its server and the background machines need of one.

Its balloon has its target at once, unless `hold` is set: then it stays where it is and `wait` waits.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from balloonvq.counters import (
    Balloon,
    CompactReport,
    Counters,
    DeadlockReport,
    OomReport,
    StatsReport,
    Status,
    WaitResult,
)

PAGE = 4096


@dataclass
class FakeMachine:
    """Satisfies `balloonvq.qmp.commands.MachineAPI`."""

    name: str = "fake"
    ram_bytes: int = 1 << 30
    hold: bool = False
    state: Any = "running"
    target_pages: int = 0
    actual_pages: int = 0
    stats_polling_interval: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    raises: BaseException | None = None
    """Raised by `check`."""
    waits: int = 0
    """Waits that are going on."""
    stopped: bool = False

    def __post_init__(self) -> None:
        self.changed = threading.Condition()
        self.listeners: list[Callable[[str, dict[str, Any]], None]] = []

    def set_target(self, pages: int) -> None:
        with self.changed:
            self.target_pages = pages
            if not self.hold:
                self.actual_pages = pages
            self.changed.notify_all()
        if not self.hold:
            self.emit("BALLOON_CHANGE", {"actual": self.ram_bytes - pages * PAGE})

    def move(self, pages: int) -> None:
        """The driver reports `pages`."""
        with self.changed:
            self.actual_pages = pages
            self.changed.notify_all()
        self.emit("BALLOON_CHANGE", {"actual": self.ram_bytes - pages * PAGE})

    def emit(self, name: str, data: dict[str, Any]) -> None:
        for listener in list(self.listeners):
            listener(name, data)

    def sleep(self, duration_ns: int) -> None:
        self.slept_ns = getattr(self, "slept_ns", 0) + duration_ns

    def wait(self, timeout_ns: int | None, abandoned: Callable[[], bool] | None) -> WaitResult:
        begun = time.monotonic_ns()
        outcome: Any = "reached"
        with self.changed:
            self.waits += 1
            try:
                while self.actual_pages != self.target_pages:
                    if abandoned is not None and abandoned():
                        outcome = "short"
                        break
                    if timeout_ns is not None and time.monotonic_ns() - begun >= timeout_ns:
                        outcome = "timeout"
                        break
                    self.changed.wait(0.01)
            finally:
                self.waits -= 1
        return WaitResult(
            outcome=outcome,
            target_bytes=self.target_pages * PAGE,
            actual_bytes=self.actual_pages * PAGE,
            elapsed_ns=time.monotonic_ns() - begun,
        )

    def status(self) -> Status:
        return Status(
            machine=self.name,
            state=self.state,
            pid=1,
            design="modern",
            ram_bytes=self.ram_bytes,
            target_bytes=self.target_pages * PAGE,
            target_pages=self.target_pages,
            actual_bytes=self.actual_pages * PAGE,
            actual_pages=self.actual_pages,
            held_pages=self.actual_pages,
            guest_usable_bytes=self.ram_bytes - self.actual_pages * PAGE,
            guest_free_bytes=0,
            guest_used_bytes=0,
            returned_acknowledged_bytes=0,
            returned_measured_bytes=0,
            memory_allocated_bytes=0,
            deflate_on_oom=True,
            must_tell_host=False,
            features=("VIRTIO_F_VERSION_1",),
            device_status=("ACKNOWLEDGE", "DRIVER"),
            discard="punch",
            balloon=Balloon(state="settled"),
            counters=Counters(),
            queues=(),
            uptime_ns=1,
            monotonic_ns=1,
            time="2026-11-22T00:00:00Z",
        )

    def oom(self, size_bytes: int | None, gfp_fs: bool, while_filling: bool) -> OomReport:
        return OomReport(
            outcome="relieved",
            requested_bytes=size_bytes or self.ram_bytes,
            allocated_bytes=size_bytes or self.ram_bytes,
            rounds=1,
            balloon_pages=256,
            waited_ns=1,
            longest_wait_ns=1,
            gfp_fs=gfp_fs,
            while_filling=while_filling,
        )

    def statistics(self, refresh: bool) -> StatsReport:
        self.calls.append(f"statistics {refresh}")
        return StatsReport(
            updates=1,
            last_update="2026-11-22T00:00:00+00:00",
            stats={"stat-free-memory": 4096, "stat-unknown-77": 5},
        )

    def compact(self, pages: int | None) -> CompactReport:
        count = 3 if pages is None else pages
        return CompactReport(isolated=count, migrated=count, refused=0, no_page=0)

    def check(self) -> dict[str, int]:
        if self.raises is not None:
            raise self.raises
        return {"checked_pages": 10, "lost_pages": 0}

    def deadlock(self) -> DeadlockReport | None:
        return DeadlockReport(design="coarse") if self.state == "deadlocked" else None

    def set_faults(self, **fields: int) -> None:
        self.faults = fields

    def subscribe(self, callback: Callable[[str, dict[str, Any]], None]) -> Callable[[], None]:
        self.listeners.append(callback)
        return lambda: self.listeners.remove(callback)

    def request_quit(self) -> None:
        self.calls.append("quit")

    def stop(self) -> None:
        self.stopped = True


def eventually(condition: Callable[[], Any], seconds: float = 5.0) -> Any:
    """What `condition` returns once that is true; fails if it is not within the time."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.002)
    return result
