"""Feature bits and the device status register (checklist 3.1, 3.2)."""

from __future__ import annotations

from enum import IntFlag

__all__ = ["BALLOON_QUEUES", "Feature", "Status", "feature_names", "status_names"]


class Feature(IntFlag):
    """Feature bits of the balloon and of the ring."""

    MUST_TELL_HOST = 1 << 0
    STATS_VQ = 1 << 1
    DEFLATE_ON_OOM = 1 << 2
    INDIRECT_DESC = 1 << 28
    EVENT_IDX = 1 << 29
    VERSION_1 = 1 << 32


class Status(IntFlag):
    """Bits of the device status register."""

    ACKNOWLEDGE = 1
    DRIVER = 2
    DRIVER_OK = 4
    FEATURES_OK = 8
    NEEDS_RESET = 64
    FAILED = 128


#: Queue names by index (BAL-DEV-01).
BALLOON_QUEUES = ("inflate", "deflate", "stats")


def feature_names(features: int) -> tuple[str, ...]:
    """The names of the bits that are set; a bit without a name is `bit n`."""
    return tuple(_name(Feature, bit) for bit in range(128) if features >> bit & 1)


def status_names(status: int) -> tuple[str, ...]:
    """The names of the status bits that are set."""
    return tuple(_name(Status, bit) for bit in range(8) if status >> bit & 1)


def _name(flags: type[Feature | Status], bit: int) -> str:
    try:
        return flags(1 << bit).name or f"bit {bit}"
    except ValueError:
        return f"bit {bit}"
