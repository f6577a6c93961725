"""Frozen snapshots: what a machine says about itself.

One object feeds the table, the JSON document and the live view, so the three
cannot disagree. Field names are the JSON names; integers carry their unit in
the name (`_bytes`, `_pages`, `_ns`). A field that is None was not reported.

The documents and their schema names:

* `Status`          ``balloonctl/status/1``
* `OomReport`       ``balloonctl/oom/1``
* `StatsReport`     ``balloonctl/stats/1``
* `WaitResult`      ``balloonctl/wait/1``
* `CompactReport`   ``balloonctl/compact/1``
* `DeadlockReport`  ``balloonctl/deadlock/1``
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import msgspec

__all__ = [
    "STAT_NAMES",
    "Balloon",
    "CompactReport",
    "Counters",
    "DeadlockReport",
    "DeadlockTask",
    "HeldLock",
    "KernelStack",
    "Latency",
    "OomReport",
    "QueueStatus",
    "StatsReport",
    "Status",
    "WaitResult",
    "stat_name",
    "to_document",
]

#: Name of a statistic by its tag: those of QEMU's `guest-stats`, so that a script written for QEMU reads
#: ours. 0-9 are in the specification, 10-15 are Linux 6.12's (T-47).
STAT_NAMES = (
    "stat-swap-in",
    "stat-swap-out",
    "stat-major-faults",
    "stat-minor-faults",
    "stat-free-memory",
    "stat-total-memory",
    "stat-available-memory",
    "stat-disk-caches",
    "stat-htlb-pgalloc",
    "stat-htlb-pgfail",
    "stat-oom-kills",
    "stat-alloc-stalls",
    "stat-async-scans",
    "stat-direct-scans",
    "stat-async-reclaims",
    "stat-direct-reclaims",
)

#: What the machine as a whole is doing.
MachineState = Literal["running", "waiting", "stalled", "deadlocked", "broken", "bug", "stopping"]

#: Where the balloon stands against its target.
BalloonState = Literal["settled", "moving", "short"]

#: Why the balloon stopped short of its target, or why a wait ended early.
ShortReason = Literal[
    "guest-has-no-free-pages",
    "driver-stalled",
    "deflated-by-oom",
    "target-changed",
    "deadlocked",
    "device-broken",
    "kernel-bug",
    "no-guest",
]


#: How an OOM run ended.
OomOutcome = Literal["relieved", "killed", "fitted", "livelocked", "deadlocked"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """Everything that is counted since the machine started."""

    inflated_pages: int = 0
    """Pages that came into the balloon, by the device's record."""
    deflated_pages: int = 0
    """Pages that went back to the guest."""
    requests: int = 0
    """Inflate and deflate requests that the device acknowledged."""
    kicks: int = 0
    """Times the driver notified the device, all queues."""
    kicks_suppressed: int | None = 0
    """Publications for which the device had asked for no kick."""
    interrupts: int = 0
    """Used-buffer notifications that the device sent, all queues."""
    interrupts_suppressed: int = 0
    """Publications of used entries for which the driver had asked for none."""
    config_changes: int = 0
    """Configuration change notifications."""
    oom_events: int | None = 0
    """Times the guest was out of memory and called its notifiers."""
    oom_kills: int | None = 0
    """Tasks that the OOM killer ended."""
    oom_deflated_pages: int | None = 0
    """Pages that the balloon gave up to the OOM notifier."""
    migrated_pages: int | None = 0
    """Balloon pages that compaction moved."""
    migrations_refused: int | None = 0
    """Migrations that the driver answered with EAGAIN."""
    discards: int = 0
    """System calls that gave memory back."""
    discard_ranges: int = 0
    """Merged ranges in those calls."""
    discard_failures: int = 0
    """Ranges that the host refused."""
    pfns_duplicate: int = 0
    """PFNs inflated twice (T-15)."""
    pfns_out_of_range: int = 0
    """PFNs outside guest memory (T-15)."""
    pfns_never_inflated: int = 0
    """PFNs deflated though the device did not hold them (T-15)."""
    lost_pages: int | None = 0
    """Guest pages found without what their task had written."""
    page_violations: int | None = 0
    """Times the guest handled a page that was not where it should have been."""
    stats_updates: int = 0
    """Statistics buffers received."""


#: The counters that only a driver, or a guest's kernel, that breaks a rule makes other than 0.
BROKEN_RULES = ("page_violations", "pfns_duplicate", "pfns_out_of_range", "pfns_never_inflated")


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Service time of a queue's requests in the device, nanoseconds."""

    count: int = 0
    p50_ns: int = 0
    p90_ns: int = 0
    p99_ns: int = 0
    p999_ns: int = 0
    max_ns: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueStatus:
    """One virtqueue."""

    name: str
    """inflate, deflate or stats."""
    size: int
    """Number of descriptors."""
    depth: int
    """Buffers visible to the device and not acknowledged."""
    kicks: int | None
    kicks_suppressed: int | None
    interrupts: int
    interrupts_suppressed: int
    latency: Latency | None = None
    """None for the statistics queue."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelStack:
    """The kernel stacks of the guest's tasks, as far as reclaim and the OOM notifier use them."""

    size_bytes: int = 16 << 10
    """Of each stack."""
    peak_bytes: int = 0
    """The deepest that any task was, with an estimate of what lies above the driver; 0: nobody got there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Balloon:
    """Where the balloon stands."""

    state: BalloonState
    """settled: actual equals target; moving: on its way; short: it will not get there by itself now."""
    reason: ShortReason | None = None
    """Set when state is short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """``balloonctl/status/1``: a machine at one moment."""

    schema: str = "balloonctl/status/1"
    machine: str
    """Its name."""
    state: MachineState
    """waiting: no guest's driver runs; stalled: the driver does not move, though its target is not reached, and
    nothing below says why."""
    pid: int
    """Process that runs it."""
    design: str | None
    """Locking design of the driver; None: a driver of its own, in a guest elsewhere."""
    design_options: dict[str, str] | None = field(default_factory=dict)
    """The value of each of its options."""
    ram_bytes: int
    target_bytes: int
    """Size of the balloon that the host asked for."""
    target_pages: int
    actual_bytes: int
    """Size of the balloon as the driver reported it (config field `actual`)."""
    actual_pages: int
    held_pages: int
    """Pages in the balloon by the device's own record (T-39)."""
    guest_usable_bytes: int
    """ram - actual: what QMP's `balloon` counts."""
    guest_free_bytes: int | None
    """On the guest's free list."""
    guest_used_bytes: int | None
    """Owned by guest tasks."""
    returned_acknowledged_bytes: int
    """held_pages in bytes: what the driver gave and the device acknowledged."""
    returned_measured_bytes: int
    """Bytes that left the file behind guest memory since its fullest moment."""
    memory_allocated_bytes: int
    """Bytes that the file occupies now."""
    discard_backlog_bytes: int = 0
    """Acknowledged, and still to be given back (only with MUST_TELL_HOST); `wait` waits for it."""
    deflate_on_oom: bool
    must_tell_host: bool
    features: tuple[str, ...]
    """Negotiated feature names."""
    device_status: tuple[str, ...]
    """Status bits that are set."""
    memory: str | None = None
    """Where guest memory comes from: memfd, anon, huge or a path; None: the guest is elsewhere."""
    discard: str
    """punch, dontneed, free or none."""
    balloon: Balloon
    stack: KernelStack | None = KernelStack()
    counters: Counters
    queues: tuple[QueueStatus, ...]
    uptime_ns: int
    monotonic_ns: int
    """Clock of this snapshot; differences give rates."""
    time: str
    """RFC 3339, UTC."""
    trouble: str | None = None
    """One sentence when state is not running."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WaitResult:
    """``balloonctl/wait/1``: how waiting for the target ended."""

    schema: str = "balloonctl/wait/1"
    outcome: Literal["reached", "short", "timeout"]
    reason: ShortReason | None = None
    target_bytes: int
    """The target that was waited for."""
    actual_bytes: int
    returned_acknowledged_bytes: int | None = None
    """As in `Status`, when the wait ended."""
    returned_measured_bytes: int | None = None
    """As in `Status`, when the wait ended."""
    elapsed_ns: int
    """From the setting of the target to the end of the wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OomReport:
    """``balloonctl/oom/1``: what an OOM run did."""

    schema: str = "balloonctl/oom/1"
    outcome: OomOutcome
    """relieved: got everything, with the balloon's help; killed: the OOM killer ended a task;
    fitted: memory did not run out; livelocked: a caller that may not kill retried without end, until
    it was given up; deadlocked: nobody will ever go on."""
    requested_bytes: int
    """What the task wanted to allocate."""
    allocated_bytes: int
    """What it got, also what it lost again when it was killed."""
    rounds: int
    """Times its allocation ran into OOM."""
    balloon_pages: int
    """Pages that the balloon freed for it."""
    waited_ns: int
    """Time from the failed allocations to their success or the kill, in sum."""
    longest_wait_ns: int
    killed: str | None = None
    """The task that the OOM killer chose."""
    lost_pages: int = 0
    """Pages of the task that lost their content, found when it let go."""
    broken_rules: dict[str, int] = field(default_factory=dict)
    """How often a rule was broken meanwhile, by the counter of `balloonctl/status/1` that counts it; empty: never."""
    while_filling: bool = False
    gfp_fs: bool = True
    deadlock: DeadlockReport | None = None
    """Set when outcome is deadlocked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StatsReport:
    """``balloonctl/stats/1``: the guest's statistics as the device received them."""

    schema: str = "balloonctl/stats/1"
    updates: int
    """Buffers received since reset; 0: the guest has not sent any."""
    last_update: str | None
    """RFC 3339, None if never."""
    stats: dict[str, int]
    """By name (`stat-free-memory`, ...; QEMU's names); an unknown tag t is `stat-unknown-t`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CompactReport:
    """``balloonctl/compact/1``: a run of the emulated compaction."""

    schema: str = "balloonctl/compact/1"
    isolated: int
    """Balloon pages taken off the list."""
    migrated: int
    refused: int
    """Put back since the driver answered EAGAIN."""
    no_page: int
    """Put back since there was no free page to move to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldLock:
    """A lock and where it was taken."""

    name: str
    where: str
    """file.py:line of the lock call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlockTask:
    """One task of the circle."""

    task: str
    """Short name: W, O, C ..."""
    role: str
    """size worker, OOM caller ..."""
    holds: tuple[HeldLock, ...]
    """In the order in which they were taken."""
    wants: str
    """The lock it waits for."""
    wants_where: str
    owner: str
    """The task that has it."""
    stack: tuple[str, ...]
    """Innermost last: `file.py:line in function`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlockReport:
    """``balloonctl/deadlock/1``: a circle in the wait-for graph, as lockdep would report it."""

    schema: str = "balloonctl/deadlock/1"
    design: str
    tasks: tuple[DeadlockTask, ...] = field(default=())
    detected_ns: int = 0
    """From the moment the circle closed to its detection."""


def stat_name(tag: int) -> str:
    """The name of a tag; a tag nobody has named is `stat-unknown-TAG`."""
    return STAT_NAMES[tag] if tag < len(STAT_NAMES) else f"stat-unknown-{tag}"


def to_document(value: Any) -> Any:
    """A snapshot as plain JSON values: dicts, lists, strings, integers, booleans, None."""
    return msgspec.to_builtins(value)
