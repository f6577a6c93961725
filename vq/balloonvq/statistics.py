"""The guest's statistics as the host sees them, whoever the guest is."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from balloonvq.counters import StatsReport, stat_name
from balloonvq.device import BalloonDevice

__all__ = ["collect"]

#: How long a refresh waits for the driver's answer.
WAIT_NS = 1_000_000_000

_LOOK_SECONDS = 0.002


def collect(device: BalloonDevice, *, refresh: bool, ended: Callable[[], bool]) -> StatsReport:
    """What the driver sent last; with `refresh` it is asked first, and given a second to answer.

    Args:
        device: which has the statistics queue.
        refresh: whether to ask.
        ended: whether nobody will answer any more.
    """
    before = device.stats().updates
    if refresh and device.request_stats():
        deadline = time.monotonic_ns() + WAIT_NS
        while device.stats().updates == before and time.monotonic_ns() < deadline and not ended():
            time.sleep(_LOOK_SECONDS)
    stats = device.stats()
    seen = None
    if stats.time_ns:
        seen = datetime.fromtimestamp(stats.time_ns / 1e9, UTC).isoformat(timespec="seconds")
    return StatsReport(
        updates=stats.updates,
        last_update=seen,
        stats={stat_name(tag): value for tag, value in sorted(stats.values.items())},
    )
