"""What the guest reports on the statistics queue (checklist 3.5).

Names are those of QEMU's `guest-stats` property, so that a script written for
QEMU reads ours.
"""

from __future__ import annotations

import struct

from balloonvq.guest.kernel import Kernel
from balloonvq.guest.pages import PageCounts
from balloonvq.memory import PAGE_SIZE

__all__ = ["STAT_BYTES", "STAT_NAMES", "collect", "encode", "stat_name"]

#: Name by tag; 0-9 are in the specification, 10-15 are Linux 6.12's (T-47).
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

#: le16 tag and le64 value, packed: 10 bytes (BAL-DRV-27, T-01).
_ENTRY = struct.Struct("<HQ")
STAT_BYTES = _ENTRY.size


def stat_name(tag: int) -> str:
    """The name of a tag; a tag nobody has named is `stat-unknown-TAG`."""
    return STAT_NAMES[tag] if tag < len(STAT_NAMES) else f"stat-unknown-{tag}"


def collect(kernel: Kernel) -> dict[int, int]:
    """Value by tag. Always the same set of tags (BAL-DRV-30)."""
    counts: PageCounts = kernel.pages.counts()
    free = counts.free * PAGE_SIZE
    values = dict.fromkeys(range(len(STAT_NAMES)), 0)
    values.update(
        {
            3: kernel.faults.value,
            4: free,
            5: counts.managed * PAGE_SIZE,
            6: free,
            10: kernel.oom_kills.value,
            11: kernel.alloc_stalls.value,
        }
    )
    return values


def encode(values: dict[int, int]) -> bytes:
    """The buffer for the statistics queue."""
    return b"".join(_ENTRY.pack(tag, value & 0xFFFFFFFFFFFFFFFF) for tag, value in values.items())
