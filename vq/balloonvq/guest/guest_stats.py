"""What the guest reports on the statistics queue (checklist 3.5)."""

from __future__ import annotations

import struct

from balloonvq.counters import STAT_NAMES
from balloonvq.guest.kernel import Kernel
from balloonvq.guest.pages import PageCounts
from balloonvq.memory import PAGE_SIZE

__all__ = ["STAT_BYTES", "collect", "encode"]

#: le16 tag and le64 value, packed: 10 bytes (BAL-DRV-27, T-01).
_ENTRY = struct.Struct("<HQ")
STAT_BYTES = _ENTRY.size


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
