"""What this costs, beside what it is held against, measured in one run.

`measure` has the contract that a benchmark fulfils and the runner; `results` the document that comes
out. A benchmark is a module here with a ``BENCHMARK`` and a line in `BENCHMARKS`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from balloonvq.bench.measure import Definition

__all__ = ["BENCHMARKS", "find"]

#: Every benchmark: the module's name and a line about it, in the order of `bench all`.
BENCHMARKS = {
    "ring": "What a buffer's way through the ring costs, in times what the machine itself needs.",
    "inflate": "How long an inflate takes, in times one hole or one madvise over the same bytes.",
    "deflate": "How long a deflate takes, and what a request costs that sleeps on both sides.",
    "oom": "How long a task out of memory waits for the balloon, with each locking design.",
    "startup": "How long --help, status and start take, beside an interpreter that does nothing.",
    "explore": "How fast the explorer is, from an execution to the whole matrix, beside SPIN.",
    "guest": "How fast a real Linux guest inflates and deflates, and what of it is the device.",
}


def find(name: str) -> Definition:
    """The benchmark of that name; this imports its module.

    Raises:
        KeyError: if there is none.
    """
    if name not in BENCHMARKS:
        raise KeyError(name)
    definition: Definition = import_module(f"balloonvq.bench.{name}").BENCHMARK
    return definition
