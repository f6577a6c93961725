"""Which vring number is which queue (checklist T-42, T-43).

The specification numbers the five queues once and for all (BAL-DEV-01). Linux counts only
those whose feature was negotiated, and so do the devices of most VMMs. The two agree as long as
features come in the order of the queues: none, {1}, {1, 3}, {1, 3, 5}.

    features      inflate deflate  stats  hints  reporting
    1, 3, 5          0       1       2      3       4        both
    5   spec         0       1                      4
    5   dense        0       1                      2        Linux
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

__all__ = ["QueueLayout", "is_prefix", "queue_of"]

QueueLayout = Literal["spec", "dense", "auto"]

#: The feature bit of each queue beyond the first two, by its number in the specification.
_FEATURE_OF = {2: 1, 3: 3, 4: 5}


def _dense(features: int) -> list[int]:
    """The queues that are there, in order: their position is their dense number."""
    return [0, 1, *(queue for queue, bit in _FEATURE_OF.items() if features >> bit & 1)]


def is_prefix(features: int) -> bool:
    """Whether both numberings agree on these features."""
    queues = _dense(features)
    return queues == list(range(len(queues)))


def queue_of(index: int, features: int, layout: QueueLayout, seen: Iterable[int] = ()) -> int | None:
    """The queue of a vring, by its number in the specification; None if there is none.

    Args:
        index: the vring's number.
        features: as negotiated.
        layout: how vrings are numbered. auto looks at which ones were set up: a driver that counts
            densely leaves no gap below, one that follows the specification does.
        seen: the vrings that were set up so far.
    """
    queues = _dense(features)
    if layout == "auto":
        layout = "dense" if set(range(index)) <= set(seen) else "spec"
    if layout == "dense":
        return queues[index] if index < len(queues) else None
    return index if index in queues else None
