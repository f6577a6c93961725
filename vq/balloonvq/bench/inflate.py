"""How long an inflate takes, in times the one system call that cannot be avoided.

Both rows of a round give back the same bytes of the same guest memory, written by the guest
just before:

* ``hole``: one fallocate(PUNCH_HOLE) over all of it; nothing can be faster.
* ``inflate``: the machine's balloon takes it: Python driver, ring, device threads, holes.

Only the second is timed by the clock that a user has: from setting the target to the
moment the driver has published the new size and the memory has left.
"""

from __future__ import annotations

import time

from balloonvq.bench.measure import Against, Definition, Parameter, Row, Sample
from balloonvq.errors import InternalError, InvalidArgument
from balloonvq.ffi import check, ffi, lib
from balloonvq.machine import Machine, MachineConfig
from balloonvq.memory import PAGE_SIZE, GuestMemory

__all__ = ["BENCHMARK", "Inflate"]

#: Guest memory beside the bytes that are inflated: rings, arrays, and room to breathe.
EXTRA_BYTES = 64 << 20

#: Where the bytes of the `hole` row start: behind the kernel's pages.
HOLE_START = 32 << 20


class Inflate:
    """A machine whose balloon takes `size_bytes`, beside one hole over as many.

    Args:
        size_bytes: touched guest memory to give back in each row.
        design: locking design of the driver.

    Raises:
        InvalidArgument: if the size is not whole pages.
    """

    def __init__(self, size_bytes: int, design: str) -> None:
        if size_bytes <= 0 or size_bytes % PAGE_SIZE:
            raise InvalidArgument(f"{size_bytes} bytes cannot be inflated", why="a size is whole pages")
        self.size_bytes = size_bytes
        self.rows = (
            Row("hole", "one fallocate(PUNCH_HOLE) over all bytes", bytes=size_bytes),
            Row(
                "inflate",
                "the balloon takes as much: driver, ring, device, holes",
                bytes=size_bytes,
                against=(Against("hole"),),
            ),
        )
        self.notes: tuple[str, ...] = ()
        self.machine = Machine.create(
            MachineConfig(
                name="bench", ram_bytes=size_bytes + EXTRA_BYTES, touch_bytes=0, used_bytes=0, design=design
            )
        )

    def close(self) -> None:
        """Ends the machine."""
        self.machine.stop()

    def round(self) -> dict[str, Sample]:
        """One hole, then one inflate, each over memory that was just written."""
        machine, size_bytes = self.machine, self.size_bytes
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
        facts = {
            "returned_bytes": returned,
            "device_cpu_ns": device_cpu,
            "process_cpu_ns": process_cpu,
            "python_share": max(0, process_cpu - device_cpu) / max(1, process_cpu),
        }
        return {"hole": Sample(hole_ns), "inflate": Sample(inflate_ns, facts)}


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


BENCHMARK = Definition(
    "inflate",
    "How long an inflate takes, in times one hole over the same bytes.",
    Inflate,
    (
        Parameter("size", 1 << 30, "Touched guest memory to give back in each row.", kind="size"),
        Parameter("design", "modern", "Locking design of the driver."),
    ),
)
