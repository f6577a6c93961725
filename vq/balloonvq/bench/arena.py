"""Guest memory to give back and take again: what the benchmarks of the balloon have in common.

An `Arena` is memory of one kind with a `struct bench_rig` on top of it (csrc/bench_balloon.h): a device, and
a driver in C that does nothing but send arrays. All pages are written before each measurement, and after each one
it is looked whether exactly the pages that were to go are gone.
"""

from __future__ import annotations

import contextlib
import os
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from balloonvq.bench.measure import Sample
from balloonvq.errors import InternalError, InvalidArgument
from balloonvq.features import Feature
from balloonvq.ffi import CData, check, ffi, lib
from balloonvq.guest.pages import PageAllocator
from balloonvq.machine import Machine, MachineConfig
from balloonvq.memory import PAGE_SIZE, GuestMemory, is_private

__all__ = ["EXTRA_BYTES", "Arena", "bare_machine", "chosen", "last_cpu", "memory_name", "sibling"]

INFLATE, DEFLATE = 0, 1

#: Guest memory of a whole path beside the bytes that move: rings, arrays, and room to breathe.
EXTRA_BYTES = 64 << 20


def chosen(text: str, known: tuple[str, ...], what: str) -> tuple[str, ...]:
    """The words of a list with commas, in the order of `known`; empty `known`: as they come.

    Raises:
        InvalidArgument: if one of them is not known, or there is none.
    """
    words = tuple(dict.fromkeys(word for word in text.split(",") if word))
    unknown = [word for word in words if known and word not in known]
    if unknown or not words:
        raise InvalidArgument(
            f"{what} cannot be {text!r}", why=f"it is one or more of {', '.join(known)}, with commas between"
        )
    return tuple(word for word in known if word in words) if known else words


def memory_name(backing: str) -> str:
    """How rows over that memory are called."""
    return "file" if "/" in backing else backing


def bare_machine(ram_bytes: int, design: str, memory: str = "memfd") -> Machine:
    """A machine whose guest has touched nothing and runs no program, for a whole path."""
    return Machine.create(
        MachineConfig(
            name="bench", ram_bytes=ram_bytes, touch_bytes=0, used_bytes=0, memory=memory, design=design
        )
    )


@contextlib.contextmanager
def sibling() -> Iterator[None]:
    """A thread of this process that runs meanwhile, on a processor of its own if there are two."""
    out = ffi.new("struct bench_sibling **")
    check(lib.bench_sibling_start(out), "start a thread")
    try:
        yield
    finally:
        lib.bench_sibling_stop(out[0])


@dataclass(frozen=True, slots=True)
class Report:
    """One measurement, `struct bench_report`."""

    pages: int
    ns: int
    cpu_ns: int
    requests: int
    ranges: int
    syscalls: int

    def sample(self, **facts: float) -> Sample:
        """Nanoseconds a page, with the side figures that every row has."""
        return Sample(
            self.ns / self.pages,
            {
                "syscalls_per_array": self.syscalls / max(1, self.requests),
                "cpu_ns_per_page": self.cpu_ns / self.pages,
                **facts,
            },
        )


class Arena:
    """Guest memory of a kind.

    Args:
        backing: what it is made of; see `balloonvq.memory`.
        pages: how many the guest can give.

    Raises:
        InvalidArgument: if there cannot be such memory.
        NotEnoughMemory: if the host has none.
    """

    def __init__(self, backing: str, pages: int) -> None:
        self.backing = backing
        self.pages = pages
        self._area = pages * PAGE_SIZE
        self.memory = GuestMemory(self._area + int(lib.bench_area_bytes(pages)), backing)
        self._method = lib.DISCARD_DONTNEED if is_private(backing) else lib.DISCARD_PUNCH
        self._report = ffi.new("struct bench_report *")

    def close(self) -> None:
        """Gives the memory back."""
        self.memory.close()

    def touch(self) -> None:
        """Gives all pages back in one piece and writes to them anew, also to the rig's.

        How its memory left before would show in a row otherwise: pages that went one by one, in any
        order, come back scattered over the host's memory, and huge ones only where nothing small is left.
        """
        self.in_one(self.pages)
        self.memory.populate(0, self.memory.size_bytes)

    def in_one(self, pages: int) -> Report:
        """The first pages by one system call for each file: the machine's limit."""
        return self._take(
            pages, lambda: lib.bench_in_one(self.memory.handle, 0, pages * PAGE_SIZE, self._report)
        )

    def page_by_page(self, pfns: array[int]) -> Report:
        """As QEMU does."""
        return self._naive(lib.bench_page_by_page, pfns)

    def merged(self, pfns: array[int]) -> Report:
        """As Firecracker does."""
        return self._naive(lib.bench_merged, pfns)

    def _naive(self, how: Callable[..., int], pfns: array[int]) -> Report:
        given = ffi.from_buffer("uint32_t[]", pfns)
        return self._gone(len(pfns), lambda: how(self.memory.handle, given, len(pfns), self._report))

    def first_touch_ns(self, pfns: array[int]) -> float:
        """Writes to these pages; nanoseconds each."""
        given = ffi.from_buffer("uint32_t[]", pfns)
        ns = check(lib.bench_touch(self.memory.handle, given, len(pfns)), "write guest pages")
        return ns / len(pfns)

    @contextlib.contextmanager
    def rig(self, *, must_tell_host: bool) -> Iterator[CData]:
        """A device and its driver in C; for `inflate`, `deflate`, `drive` and `lib.bench_rig_round_trips`."""
        features = Feature.VERSION_1 | Feature.EVENT_IDX
        if must_tell_host:
            features |= Feature.MUST_TELL_HOST
        out = ffi.new("struct bench_rig **")
        rc = lib.bench_rig_create(
            self.memory.handle, self._area, self.pages, int(features), self._method, out
        )
        check(rc, "make the device that is measured")
        try:
            yield out[0]
        finally:
            lib.bench_rig_destroy(out[0])

    def inflate(self, rig: CData, pfns: array[int]) -> Report:
        """Arrays in, holes out."""
        given = ffi.from_buffer("uint32_t[]", pfns)
        return self._gone(len(pfns), lambda: lib.bench_rig_run(rig, INFLATE, given, len(pfns), self._report))

    def deflate(self, rig: CData, pfns: array[int]) -> Report:
        """The way back."""
        given = ffi.from_buffer("uint32_t[]", pfns)
        return self._take(len(pfns), lambda: lib.bench_rig_run(rig, DEFLATE, given, len(pfns), self._report))

    def drive(self, rig: CData, allocator: PageAllocator, pages: int, cpu: int | None) -> tuple[float, float]:
        """Inflates as a driver in C does, and deflates; see `bench_rig_drive`.

        Args:
            rig: made with MUST_TELL_HOST.
            allocator: whose pages those of the arena are; they are free before and after.
            pages: how many.
            cpu: the processor that driver and device thread share; None is any.

        Returns the driver's processor time for each array, nanoseconds, on the way in and on the way back.
        """
        used = ffi.new("uint64_t *")
        arrays = -(-pages // lib.BENCH_ARRAY)
        each = []
        for queue in (INFLATE, DEFLATE):
            rc = lib.bench_rig_drive(rig, allocator.handle, queue, pages, -1 if cpu is None else cpu, used)
            check(rc, "drive a device from C")
            each.append(used[0] / arrays)
        return each[0], each[1]

    def _gone(self, pages: int, measured: Callable[[], int]) -> Report:
        """Measures, and counts what really left.

        Raises:
            InternalError: if it is not what should have.
        """
        before = self.memory.allocated_bytes()
        report = self._take(pages, measured)
        gone = before - self.memory.allocated_bytes()
        if gone != pages * PAGE_SIZE or self._report.failed:
            raise InternalError(
                "what was measured did not do its work",
                why=f"{gone} of {pages * PAGE_SIZE} bytes left {self.backing}, {self._report.failed} refused",
            )
        return report

    def _take(self, pages: int, measured: Callable[[], int]) -> Report:
        check(measured(), f"measure over {self.backing} memory")
        report: Any = self._report
        return Report(
            pages=pages,
            ns=int(report.ns),
            cpu_ns=int(report.cpu_ns),
            requests=int(report.requests),
            ranges=int(report.ranges),
            syscalls=int(report.syscalls),
        )

    def huge_bytes(self) -> int:
        """How much of anonymous memory is in huge pages now, by smaps."""
        wanted = int(ffi.cast("uintptr_t", self.memory.at(0, PAGE_SIZE)))
        ours = False
        with open("/proc/self/smaps", encoding="ascii", errors="replace") as maps:  # noqa: PTH123
            for line in maps:
                first = line.split(" ", 1)[0]
                if "-" in first:
                    start, end = (int(number, 16) for number in first.split("-"))
                    ours = start <= wanted < end
                elif ours and first == "AnonHugePages:":
                    return int(line.split()[1]) << 10
        return 0


def last_cpu() -> int | None:
    """The processor on which both sides of a round trip run; None where there is no choice."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[-1] if len(allowed) > 1 else None
