"""Waiting in tests: by looking until a deadline, never by sleeping and hoping."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

#: Long enough for a loaded machine; nobody waits that long unless something is wrong.
DEADLINE_S = 10.0


def until(condition: Callable[[], T], what: str = "", seconds: float = DEADLINE_S) -> T:
    """The first true value of condition(); fails the test when none comes in time."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() >= deadline:
            raise AssertionError(f"never happened within {seconds} s: {what or condition}")
        time.sleep(0.0005)
    return value


def never(condition: Callable[[], object], seconds: float = 0.05) -> None:
    """Fails when condition() becomes true within a while: for things that must not happen meanwhile."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert not condition()
        time.sleep(0.001)


def open_descriptors() -> int:
    """How many file descriptors this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))
