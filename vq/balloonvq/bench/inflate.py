"""How long an inflate takes, in times the one system call that cannot be avoided.

Both rows of a round give back the same bytes of the same guest memory, written by the guest
just before:

* ``hole``: one fallocate(PUNCH_HOLE) over all of it; nothing can be faster.
* ``inflate``: the machine's balloon takes it: Python driver, ring, device threads, holes.

Only the second is timed by the clock that a user has: from setting the target to the
moment the driver has published the new size and the memory has left.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from balloonvq.errors import InternalError, InvalidArgument
from balloonvq.ffi import check, ffi, lib
from balloonvq.host import facts
from balloonvq.machine import Machine, MachineConfig
from balloonvq.memory import PAGE_SIZE, GuestMemory

__all__ = ["InflateBench", "Round", "run"]

#: Guest memory beside the bytes that are inflated: rings, arrays, and room to breathe.
EXTRA_BYTES = 64 << 20

#: Where the bytes of the `hole` row start: behind the kernel's pages.
HOLE_START = 32 << 20


@dataclass(frozen=True, slots=True)
class Round:
    """One measurement of both rows."""

    hole_ns: int
    """One hole over the bytes."""
    inflate_ns: int
    """The balloon over as many bytes."""
    returned_bytes: int
    """Bytes that had left the file when the inflate was over, by its blocks."""
    device_cpu_ns: int
    """Processor time of the device's threads during the inflate."""
    process_cpu_ns: int
    """Processor time of the whole process during the inflate."""

    @property
    def ratio(self) -> float:
        """The inflate in times the hole."""
        return self.inflate_ns / self.hole_ns


@dataclass(frozen=True, slots=True, kw_only=True)
class InflateBench:
    """``balloonctl/bench-inflate/1``: all rounds of a run."""

    schema: str = "balloonctl/bench-inflate/1"
    size_bytes: int
    """Touched guest memory that each row gives back."""
    design: str
    rounds: tuple[Round, ...]
    ratio_median: float
    """inflate / hole, median of the rounds."""
    ratio_min: float
    ratio_max: float
    hole_gib_per_s: float
    """Median."""
    inflate_gib_per_s: float
    """Median."""
    python_share: float
    """Median part of the inflate's processor time that was not the device's."""
    host: dict[str, str]
    """Facts about the machine that measured."""


def run(
    size_bytes: int,
    *,
    runs: int = 3,
    warmup: int = 1,
    design: str = "modern",
    on_progress: Callable[[int, int], None] | None = None,
) -> InflateBench:
    """Measures.

    Args:
        size_bytes: touched guest memory to give back in each row.
        runs: rounds that count.
        warmup: rounds before them that do not.
        design: locking design of the driver.
        on_progress: called with (rounds done, rounds in all).

    Raises:
        InvalidArgument: if the size is not whole pages or no round is asked for.
        InternalError: if the balloon did not get its size, or memory did not leave the file.
    """
    if size_bytes <= 0 or size_bytes % PAGE_SIZE:
        raise InvalidArgument(f"{size_bytes} bytes cannot be inflated", why="a size is whole pages")
    if runs < 1 or warmup < 0:
        raise InvalidArgument(
            f"{runs} runs after {warmup} cannot be measured", why="at least one run is needed"
        )
    config = MachineConfig(
        name="bench", ram_bytes=size_bytes + EXTRA_BYTES, touch_bytes=0, used_bytes=0, design=design
    )
    rounds: list[Round] = []
    with Machine.create(config) as machine:
        for number in range(warmup + runs):
            measured = _round(machine, size_bytes)
            if number >= warmup:
                rounds.append(measured)
            if on_progress is not None:
                on_progress(number + 1, warmup + runs)
    ratios = [r.ratio for r in rounds]
    gib = size_bytes / (1 << 30)
    return InflateBench(
        size_bytes=size_bytes,
        design=design,
        rounds=tuple(rounds),
        ratio_median=statistics.median(ratios),
        ratio_min=min(ratios),
        ratio_max=max(ratios),
        hole_gib_per_s=gib / (statistics.median(r.hole_ns for r in rounds) / 1e9),
        inflate_gib_per_s=gib / (statistics.median(r.inflate_ns for r in rounds) / 1e9),
        python_share=statistics.median(
            max(0, r.process_cpu_ns - r.device_cpu_ns) / max(1, r.process_cpu_ns) for r in rounds
        ),
        host=facts(),
    )


def _round(machine: Machine, size_bytes: int) -> Round:
    memory = machine.memory
    memory.populate(0, memory.size_bytes)
    hole_ns = _punch(memory, HOLE_START, size_bytes)
    memory.populate(0, memory.size_bytes)
    before = memory.allocated_bytes()
    device_cpu, process_cpu = machine.device.cpu_ns, time.process_time_ns()
    started = time.perf_counter_ns()
    machine.set_target(size_bytes // PAGE_SIZE)
    result = machine.wait()
    inflate_ns = time.perf_counter_ns() - started
    device_cpu = machine.device.cpu_ns - device_cpu
    process_cpu = time.process_time_ns() - process_cpu
    returned = before - memory.allocated_bytes()
    if result.outcome != "reached" or returned < size_bytes:
        raise InternalError(
            "the measured inflate did not do its work",
            why=f"{result.outcome}, {returned} of {size_bytes} bytes left the file",
        )
    machine.set_target(0)
    machine.wait()
    return Round(hole_ns, inflate_ns, returned, device_cpu, process_cpu)


def _punch(memory: GuestMemory, address: int, size_bytes: int) -> int:
    """Nanoseconds that one hole over the range takes."""
    out = ffi.new("struct discard **")
    check(lib.discard_create(memory.handle, lib.DISCARD_PUNCH, out), "make a discarder")
    try:
        started = time.perf_counter_ns()
        rc = lib.discard_range(out[0], address, size_bytes)
        elapsed = time.perf_counter_ns() - started
    finally:
        lib.discard_destroy(out[0])
    check(rc, "punch the hole that the rest is held against")
    return elapsed
