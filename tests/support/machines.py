"""Small machines for tests."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from balloonvq.machine import Machine, MachineConfig

MIB = 1 << 20


def small(**options: Any) -> Machine:
    """A machine of 16 MiB, with whatever options."""
    return Machine.create(MachineConfig(**{"ram_bytes": 16 * MIB, "name": "test"} | options))


@contextlib.contextmanager
def running(**options: Any) -> Iterator[Machine]:
    """A small machine that loses no page of its guest programs."""
    machine = small(**options)
    try:
        yield machine
        counts = machine.pages.counts()
        assert counts.violations == 0
    finally:
        lost = machine.stop()
    assert lost == 0


def settle(machine: Machine, pages: int) -> None:
    """Sets a target and waits until it is reached."""
    machine.set_target(pages)
    result = machine.wait(20_000_000_000)
    assert result.outcome == "reached", result
    assert machine.actual_pages == pages
