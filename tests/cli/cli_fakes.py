"""A machine that needs no C: the real verbs and the real client, on figures that a test sets.

Run as a program it is balloonctl with such machines, for tests at a real terminal.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from balloonvq.counters import (
    Balloon,
    CompactReport,
    Counters,
    DeadlockReport,
    DeadlockTask,
    HeldLock,
    Latency,
    OomReport,
    QueueStatus,
    StatsReport,
    Status,
    WaitResult,
)
from balloonvq.errors import MachineExists, NoSuchMachine
from balloonvq.qmp.client import LocalClient
from balloonvq.qmp.commands import Commands

MIB = 1 << 20
PAGE = 4096

CIRCLE = DeadlockReport(
    design="coarse",
    detected_ns=12_400_000,
    tasks=(
        DeadlockTask(
            task="W",
            role="size worker",
            holds=(HeldLock(name="balloon_lock", where="coarse.py:41"),),
            wants="fs_lock",
            wants_where="reclaim.py:77",
            owner="O",
            stack=(
                "driver.py:210 in size_worker",
                "coarse.py:44 in fill",
                "pages.py:130 in allocate",
                "reclaim.py:77 in direct_reclaim",
            ),
        ),
        DeadlockTask(
            task="O",
            role="OOM caller",
            holds=(
                HeldLock(name="fs_lock", where="hog.py:58"),
                HeldLock(name="oom_lock", where="oom.py:31"),
            ),
            wants="balloon_lock",
            wants_where="coarse.py:63",
            owner="W",
            stack=("hog.py:60 in allocate_all", "oom.py:36 in out_of_memory", "coarse.py:63 in on_oom"),
        ),
    ),
)


@dataclass
class FakeMachine:
    """What `balloonvq.qmp.commands` asks of a machine, without any memory."""

    name: str = "fake"
    ram_bytes: int = 1024 * MIB
    target_pages: int = 0
    actual_pages: int = 0
    stats_polling_interval: int = 0
    state: str = "running"
    trouble: str | None = None
    reachable_pages: int | None = None
    """The balloon stops here."""
    stuck_pages: int | None = None
    """The balloon stops here on its way down."""
    reason: str = "guest-has-no-free-pages"
    hang: bool = False
    """The balloon never moves and nobody gives up."""
    clock_ns: int = 5_000_000_000
    tick_ns: int = 1_000_000_000
    counters: Counters = field(default_factory=Counters)
    circle: DeadlockReport | None = None
    oom_outcome: str = "relieved"
    lost_pages: int = 0
    broken_rules: dict[str, int] = field(default_factory=dict)
    stopped: bool = False
    targets: list[int] = field(default_factory=list)
    calls: list[tuple[str, Any]] = field(default_factory=list)
    _listeners: list[Callable[[str, dict[str, Any]], None]] = field(default_factory=list)

    def status(self) -> Status:
        self.clock_ns += self.tick_ns
        actual, target = self.actual_pages * PAGE, self.target_pages * PAGE
        settled = self.actual_pages == self.target_pages
        short = not settled and self.actual_pages in {self.reachable_pages, self.stuck_pages}
        c = self.counters
        queues = tuple(
            QueueStatus(
                name=name,
                size=128,
                depth=0,
                kicks=c.kicks if name == "inflate" else 0,
                kicks_suppressed=c.kicks_suppressed if name == "inflate" else 0,
                interrupts=c.interrupts if name == "inflate" else 0,
                interrupts_suppressed=0,
                latency=None
                if name == "stats"
                else Latency(
                    count=c.requests,
                    p50_ns=41_000,
                    p90_ns=60_000,
                    p99_ns=99_000,
                    p999_ns=120_000,
                    max_ns=130_500,
                )
                if name == "inflate"
                else Latency(),
            )
            for name in ("inflate", "deflate", "stats")
        )
        return Status(
            machine=self.name,
            state=self.state,
            pid=4242,
            design="modern",
            ram_bytes=self.ram_bytes,
            target_bytes=target,
            target_pages=self.target_pages,
            actual_bytes=actual,
            actual_pages=self.actual_pages,
            held_pages=self.actual_pages,
            guest_usable_bytes=self.ram_bytes - actual,
            guest_free_bytes=self.ram_bytes - actual - 51 * MIB,
            guest_used_bytes=51 * MIB,
            returned_acknowledged_bytes=actual,
            returned_measured_bytes=actual,
            memory_allocated_bytes=self.ram_bytes - actual,
            deflate_on_oom=True,
            must_tell_host=True,
            features=(
                "MUST_TELL_HOST",
                "STATS_VQ",
                "DEFLATE_ON_OOM",
                "EVENT_IDX",
                "INDIRECT_DESC",
                "VERSION_1",
            ),
            device_status=("ACKNOWLEDGE", "DRIVER", "FEATURES_OK", "DRIVER_OK"),
            discard="punch",
            balloon=Balloon(
                state="settled" if settled else "short" if short else "moving",
                reason=self.reason if short else None,
            ),
            counters=c,
            queues=queues,
            uptime_ns=self.clock_ns - 5_000_000_000,
            monotonic_ns=self.clock_ns,
            time="2026-11-22T21:00:00.000Z",
            trouble=self.trouble,
        )

    def set_target(self, pages: int) -> None:
        self.targets.append(pages)
        self.target_pages = pages

    def announce(self, event: str, data: dict[str, Any]) -> None:
        for listener in list(self._listeners):
            listener(event, data)

    def _move(self, pages: int) -> None:
        moved = pages - self.actual_pages
        requests = -(-abs(moved) // 256)
        c = self.counters
        self.counters = replace(
            c,
            inflated_pages=c.inflated_pages + max(0, moved),
            deflated_pages=c.deflated_pages + max(0, -moved),
            requests=c.requests + requests,
            kicks=c.kicks + requests,
            kicks_suppressed=c.kicks_suppressed + requests // 3,
            interrupts=c.interrupts + requests,
            discards=c.discards + requests,
            discard_ranges=c.discard_ranges + requests,
        )
        self.actual_pages = pages
        self.announce("BALLOON_CHANGE", {"actual": self.ram_bytes - pages * PAGE})

    def wait(self, timeout_ns: int | None, abandoned: Callable[[], bool] | None) -> WaitResult:
        begun = time.monotonic_ns()
        while self.hang and not (abandoned and abandoned()):
            if timeout_ns is not None and time.monotonic_ns() - begun >= timeout_ns:
                return self._result("timeout")
            time.sleep(0.005)
        goal = self.target_pages
        if self.reachable_pages is not None:
            goal = min(goal, self.reachable_pages)
        if self.stuck_pages is not None:
            goal = max(goal, self.stuck_pages)
        for part in range(1, 5):
            self._move(self.actual_pages + (goal - self.actual_pages) * part // 4)
        return self._result("reached" if goal == self.target_pages else "short")

    def _result(self, outcome: Any) -> WaitResult:
        return WaitResult(
            outcome=outcome,
            reason=self.reason if outcome == "short" else None,
            target_bytes=self.target_pages * PAGE,
            actual_bytes=self.actual_pages * PAGE,
            elapsed_ns=250_000_000,
        )

    def oom(self, size_bytes: int | None, gfp_fs: bool, while_filling: bool) -> OomReport:
        self.calls.append(("oom", (size_bytes, gfp_fs, while_filling)))
        wanted = size_bytes or 973 * MIB
        return OomReport(
            outcome=self.oom_outcome,
            requested_bytes=wanted,
            allocated_bytes=wanted if self.oom_outcome != "killed" else wanted // 2,
            rounds=4,
            balloon_pages=1024,
            waited_ns=1_234_000,
            longest_wait_ns=560_000,
            killed="hog" if self.oom_outcome == "killed" else None,
            lost_pages=self.lost_pages,
            broken_rules=self.broken_rules,
            while_filling=while_filling,
            gfp_fs=gfp_fs,
            deadlock=CIRCLE if self.oom_outcome == "deadlocked" else None,
        )

    def statistics(self, refresh: bool) -> StatsReport:
        self.calls.append(("stats", refresh))
        return StatsReport(
            updates=3,
            last_update="2026-11-22T21:00:00.000Z",
            stats={
                "stat-swap-in": 0,
                "stat-major-faults": 17,
                "stat-free-memory": 973 * MIB,
                "stat-total-memory": 1024 * MIB,
                "stat-disk-caches": 2**64 - 1,
                "stat-unknown-99": 7,
            },
        )

    def compact(self, pages: int | None) -> CompactReport:
        self.calls.append(("compact", pages))
        return CompactReport(isolated=32, migrated=30, refused=1, no_page=1)

    def check(self) -> dict[str, int]:
        return {"checked_pages": 13056, "lost_pages": self.lost_pages}

    def deadlock(self) -> DeadlockReport | None:
        return self.circle

    def set_faults(self, **fields: int) -> None:
        self.calls.append(("faults", fields))

    def subscribe(self, callback: Callable[[str, dict[str, Any]], None]) -> Callable[[], None]:
        self._listeners.append(callback)
        return lambda: self._listeners.remove(callback)

    def request_quit(self) -> None:
        self.stopped = True

    def stop(self) -> None:
        self.stopped = True


class FixedConnection:
    """A connection to one fake machine, whatever the options say."""

    def __init__(self, machine: FakeMachine) -> None:
        self.machine = machine

    def client(self, app: Any, *, start: bool, timeout: float | None) -> LocalClient:
        del app, start, timeout
        return LocalClient(Commands(self.machine))

    def second(self) -> LocalClient:
        return LocalClient(Commands(self.machine))

    def close(self) -> None:
        """Nothing is ours."""


@dataclass
class World:
    """Everything outside of the command: machines in the background, and those of sessions."""

    background: dict[str, FakeMachine] = field(default_factory=dict)
    started: list[dict[str, Any]] = field(default_factory=list)
    """Fields of each machine started in the background."""
    private: list[FakeMachine] = field(default_factory=list)
    configs: list[dict[str, Any]] = field(default_factory=list)
    """Fields of each machine that a session made."""
    lock: threading.Lock = field(default_factory=threading.Lock)


def fake_modules(world: World) -> tuple[ModuleType, ModuleType]:
    """Fakes for `balloonctl.background` and `balloonvq.machine`."""

    def connect(name: str, timeout: float = 5.0) -> LocalClient:
        if name not in world.background:
            raise NoSuchMachine(f"no machine {name} is running", hint=f"balloonctl start {name}")
        return LocalClient(Commands(world.background[name]))

    def start(
        name: str,
        options: dict[str, Any],
        on_progress: Callable[[int, int], None] | None = None,
        *,
        meanwhile: Callable[[], object] | None = None,
    ) -> None:
        del meanwhile
        fields = {"name": name, **options}
        if fields["name"] in world.background:
            raise MachineExists(
                f"machine {fields['name']} is running", hint=f"balloonctl stop {fields['name']}"
            )
        world.started.append(dict(fields))
        world.background[fields["name"]] = FakeMachine(name=fields["name"], ram_bytes=fields["ram_bytes"])
        if on_progress is not None:
            on_progress(fields["touch_bytes"], fields["touch_bytes"])

    def stop(name: str) -> None:
        if world.background.pop(name, None) is None:
            raise NoSuchMachine(f"no machine {name} is running", hint="balloonctl ps")

    def machine_names() -> list[str]:
        return list(world.background)

    def list_machines() -> list[dict[str, Any]]:
        return [
            {"name": name, "state": "alive", "pid": 1000 + number}
            for number, name in enumerate(world.background)
        ]

    def create(config: dict[str, Any], on_progress: Any = None) -> FakeMachine:
        machine = FakeMachine(name=config["name"], ram_bytes=config["ram_bytes"])
        world.configs.append(config)
        world.private.append(machine)
        return machine

    background = ModuleType("balloonctl.background")
    background.__dict__.update(
        connect=connect,
        start=start,
        stop=stop,
        list_machines=list_machines,
        machine_names=machine_names,
        runtime_dir=lambda: Path("run"),
    )
    module = ModuleType("balloonvq.machine")
    module.__dict__.update(MachineConfig=dict, Machine=type("Machine", (), {"create": staticmethod(create)}))
    return background, module


def program() -> None:
    """Balloonctl with fake machines."""
    import balloonctl
    from balloonctl.main import run

    world = World()
    hang = bool(os.environ.get("FAKE_HANG"))
    world.background["default"] = FakeMachine(name="default", hang=hang)
    background, module = fake_modules(world)
    sys.modules |= {"balloonctl.background": background, "balloonvq.machine": module}
    balloonctl.background = background
    run()


if __name__ == "__main__":
    program()
