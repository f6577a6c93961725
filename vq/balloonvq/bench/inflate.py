"""How long an inflate takes, in times the system calls that cannot be avoided, one for each piece of memory.

Rows are named by memory, order and what is special: ``memfd frag no-tell``. For each kind of memory

``limit``        one fallocate a file, or one madvise, over as many touched bytes, at the start and the end of the round
an order         the device alone, driven from C: PFN arrays of 256 in, holes out; with MUST_TELL_HOST, so that
                 the clock stops when all owed memory has left
``no-tell``      the same without that feature: memory leaves before each acknowledgement
``sibling``      the same while another thread of the process runs
``qemu``         page by page
``firecracker``  sorted and merged within each array
``path``         the whole: target, Python driver, ring, device, holes, over rising pages

All figures are nanoseconds a page, so that orders of different lengths can be compared. Each row
begins with all memory given back at once and written anew, and is held to exactly the bytes that had to leave.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass

from balloonvq.bench.arena import EXTRA_BYTES, Arena, bare_machine, chosen, memory_name, sibling
from balloonvq.bench.measure import Against, Definition, Parameter, Row, Sample
from balloonvq.bench.pfn_orders import ORDERS, RECORDED, RECORDED_PAGES, RECORDED_RAM_PAGES, order
from balloonvq.errors import InternalError, InvalidArgument
from balloonvq.guest.pages import PageAllocator
from balloonvq.host import check_available, shared_cpu
from balloonvq.memory import PAGE_SIZE, is_private
from balloonvq.units import size as human

__all__ = ["BENCHMARK", "Inflate"]

WAYS = ("device", "naive", "path")


@dataclass(frozen=True, slots=True)
class Device:
    """A row that an `Arena` measures."""

    row: Row
    order: str
    how: str
    """tell, no-tell, qemu or firecracker."""
    beside: bool
    """With a sibling thread."""


class Inflate:
    """Inflates over guest memory of some kinds.

    Args:
        size_bytes: touched guest memory to give back in each row; recorded orders have at most 512 MiB.
        memory: kinds of memory, with commas.
        orders: orders of pages, likewise; "all" leaves recorded ones out where the size is less than theirs,
            since they need a guest of 1 GiB.
        rows: which ways are measured: device, naive, path.
        sibling: measure also beside a running thread.
        design: locking design of the driver of the whole path.

    Raises:
        InvalidArgument: if the size is not whole pages, or a list has what there is not.
        NotEnoughMemory: if the host has less than all rows need.
    """

    def __init__(
        self, size_bytes: int, memory: str, orders: str, rows: str, sibling: bool, design: str
    ) -> None:
        if size_bytes <= 0 or size_bytes % PAGE_SIZE:
            raise InvalidArgument(f"{size_bytes} bytes cannot be inflated", why="a size is whole pages")
        self.size_bytes = size_bytes
        self.ways = chosen(rows, WAYS, "--rows")
        self.backings = chosen(memory, (), "--memory")
        pages = size_bytes // PAGE_SIZE
        if orders == "all":
            self.names = tuple(name for name in ORDERS if name not in RECORDED or pages >= RECORDED_PAGES)
        else:
            self.names = chosen(orders, ORDERS, "--orders")
        self._scattered = "frag" if "frag" in self.names else "shuffled"
        self.beside = sibling
        self.notes: tuple[str, ...] = ()
        ram = RECORDED_RAM_PAGES if set(self.names) & set(RECORDED) else 0
        self.ram_pages = max(ram, pages)
        #: What the limit takes: no more than the shortest order.
        self.limit_pages = min([pages, *(RECORDED_PAGES for name in self.names if name in RECORDED)])
        self._check_room(size_bytes)
        self.pfns = {
            name: order(name, self.ram_pages if name == "shuffled" else pages) for name in self.names
        }
        self._planned = {backing: tuple(self._plan(backing)) for backing in self.backings}
        self.rows = tuple(self._all_rows())
        self._cleanup = contextlib.ExitStack()
        with contextlib.ExitStack() as cleanup:
            self._arenas = {
                backing: cleanup.enter_context(contextlib.closing(Arena(backing, self.ram_pages)))
                for backing in self.backings
            }
            self._allocators = {
                backing: cleanup.enter_context(contextlib.closing(PageAllocator(self.ram_pages, 0)))
                for backing in self.backings
                if "path" in self.ways
            }
            self._machines = {
                backing: cleanup.enter_context(bare_machine(size_bytes + EXTRA_BYTES, design, backing))
                for backing in self.backings
                if "path" in self.ways
            }
            self._cleanup = cleanup.pop_all()

    def _check_room(self, size_bytes: int) -> None:
        """Refuses what the host has no memory for, before the orders are computed."""
        touched = self.ram_pages * PAGE_SIZE
        if "path" in self.ways:  # the machine's memory is written while the arena has what the limit left
            touched = max(touched, touched - self.limit_pages * PAGE_SIZE + size_bytes + EXTRA_BYTES)
        check_available(touched, f"an inflate of {human(size_bytes)}", "--size", size_bytes)

    def close(self) -> None:
        """Gives all memory back."""
        self._cleanup.close()

    # -- which rows ------------------------------------------------------------

    def _all_rows(self) -> Iterator[Row]:
        for backing, planned in self._planned.items():
            kind = memory_name(backing)
            call = "one madvise" if is_private(backing) else "one fallocate a file"
            yield _row(f"{kind} limit", f"{call} over touched bytes")
            for device in planned:
                yield device.row
            if "path" in self.ways:
                against = [Against(f"{kind} limit")]
                if "device" in self.ways and "contiguous" in self.names:
                    wish = None if _pages_may_be_huge(backing) else 1.15
                    against.append(Against(f"{kind} contiguous", wish))
                yield _row(
                    f"{kind} path", "the whole: target, Python driver, ring, device, holes", tuple(against)
                )

    def _plan(self, backing: str) -> Iterator[Device]:
        """The rows of an arena."""
        for name in self.names:
            for beside in (
                (False, True) if self.beside and name in {"contiguous", self._scattered} else (False,)
            ):
                # Row by row over huge pages only tells that they are split, again and again.
                if "naive" in self.ways and name == self._scattered and backing != "huge":
                    yield self._naive(backing, name, "qemu", "page by page, as QEMU does", beside)
                    if not beside:
                        about = "each array sorted and merged, as Firecracker does"
                        yield self._naive(backing, name, "firecracker", about, beside)
                if "device" in self.ways:
                    yield self._device(backing, name, "tell", beside)
                    if not beside and backing != "huge":
                        yield self._device(backing, name, "no-tell", beside)

    def _naive(self, backing: str, name: str, how: str, about: str, beside: bool) -> Device:
        kind = memory_name(backing)
        row = _row(_name(kind, name, how, beside), about, (Against(f"{kind} limit"),))
        return Device(row, name, how, beside)

    def _device(self, backing: str, name: str, how: str, beside: bool) -> Device:
        kind = memory_name(backing)
        against = [Against(f"{kind} limit", _wish(backing, name, how, beside))]
        if name == "frag" and how == "tell" and "naive" in self.ways and backing != "huge":
            against.append(Against(_name(kind, name, "qemu", beside), 1 / 10 if beside else 1 / 3.5))
        about = "the device alone" if how == "tell" else "the same without MUST_TELL_HOST"
        return Device(_row(_name(kind, name, how, beside), about, tuple(against)), name, how, beside)

    # -- a round ---------------------------------------------------------------

    def round(self) -> dict[str, Sample]:
        """Every row once, the limits of each kind of memory before and after its rows."""
        samples: dict[str, Sample] = {}
        for backing in self.backings:
            kind = memory_name(backing)
            limits = [self._limit(backing)]
            for device in self._planned[backing]:
                samples[device.row.name] = self._measure(self._arenas[backing], device)
            limits.append(self._limit(backing))
            samples[f"{kind} limit"] = Sample(
                sum(limits) / len(limits), {"first_ns": limits[0], "last_ns": limits[-1]}
            )
            if backing in self._machines:
                samples[f"{kind} path"] = self._path(backing)
        return samples

    def _limit(self, backing: str) -> float:
        arena = self._arenas[backing]
        arena.touch()
        return arena.in_one(self.limit_pages).sample().value

    def _measure(self, arena: Arena, device: Device) -> Sample:
        arena.touch()
        pfns = self.pfns[device.order]
        facts = {}
        if arena.backing == "huge":
            facts["huge_share"] = arena.huge_bytes() / (arena.pages * PAGE_SIZE)
        with contextlib.ExitStack() as stack:
            if device.beside:
                stack.enter_context(sibling())
            if device.how == "qemu":
                return arena.page_by_page(pfns).sample()
            if device.how == "firecracker":
                return arena.merged(pfns).sample()
            rig = stack.enter_context(arena.rig(must_tell_host=device.how == "tell"))
            report = arena.inflate(rig, pfns)
            arena.deflate(rig, pfns)
            if device.how == "tell" and arena.backing != "huge" and not device.beside:
                facts["first_touch_ns"] = arena.first_touch_ns(pfns)
            return report.sample(**facts)

    def _path(self, backing: str) -> Sample:
        """Inflates a machine, over memory that was just written.

        Python's part is what is left when two things are taken away: what the device used, and what a driver in C
        uses that does the same with the same kind of memory on the same processor. It takes pages
        off a free list, fills arrays, kicks, sleeps, and lists the pages, as any driver must.

        Raises:
            InternalError: if the balloon did not get its size, or memory did not leave.
        """
        machine = self._machines[backing]
        memory = machine.memory
        pages = self.size_bytes // PAGE_SIZE
        # By the guest: pages leave for less on the processor that wrote them, which is that of its tasks.
        machine.in_guest("U", "writes all memory", lambda: memory.populate(0, memory.size_bytes))
        before = memory.allocated_bytes()
        device_cpu, process_cpu = machine.device.cpu_ns, time.process_time_ns()
        requests = machine.device.counters()
        started = time.perf_counter_ns()
        machine.set_target(pages)
        result = machine.wait()
        elapsed = time.perf_counter_ns() - started
        device_cpu = machine.device.cpu_ns - device_cpu
        process_cpu = time.process_time_ns() - process_cpu
        counters = machine.device.counters()
        returned = before - memory.allocated_bytes()
        if result.outcome != "reached" or returned < self.size_bytes:
            raise InternalError(
                "the measured inflate did not do its work",
                why=f"{result.outcome}, {returned} of {self.size_bytes} bytes left",
            )
        machine.set_target(0)
        machine.wait()
        arrays = max(1, counters.requests - requests.requests)
        driver_ns = self._driver_ns(backing)
        python = max(0.0, process_cpu - device_cpu - arrays * driver_ns)
        return Sample(
            elapsed / pages,
            {
                "syscalls_per_array": (counters.discard_syscalls - requests.discard_syscalls) / arrays,
                "cpu_ns_per_page": process_cpu / pages,
                "python_share": python / max(1, process_cpu),
                "python_ns_per_array": python / arrays,
                "c_driver_ns_per_array": driver_ns,
            },
        )

    def _driver_ns(self, backing: str) -> float:
        """Processor time of a driver in C for each array of the same inflate."""
        arena = self._arenas[backing]
        arena.touch()
        with arena.rig(must_tell_host=True) as rig:
            pages = self.size_bytes // PAGE_SIZE
            driver_ns, _ = arena.drive(rig, self._allocators[backing], pages, shared_cpu())
        # Memory of another kind comes next, and the host need not have room for both.
        arena.in_one(self.limit_pages)
        return driver_ns


def _name(kind: str, name: str, how: str, beside: bool) -> str:
    words = [kind, name, *([] if how == "tell" else [how]), *(["sibling"] if beside else [])]
    return " ".join(words)


def _row(name: str, about: str, against: tuple[Against, ...] = ()) -> Row:
    return Row(name, about, per="page", bytes=PAGE_SIZE, against=against)


def _pages_may_be_huge(backing: str) -> bool:
    """Whether the limit may be that of huge pages, which other rows have other reasons to miss."""
    return backing == "huge" or "/" in backing


def _wish(backing: str, name: str, how: str, beside: bool) -> float | None:
    """What a row is to cost at most, in times the limit."""
    if _pages_may_be_huge(backing):
        return None
    if beside:
        return 2.0 if name == "contiguous" else None
    if name in {"contiguous", "fresh"}:
        return 1.2 if is_private(backing) else 1.1
    if name == "shuffled":
        return 1.5 if how == "tell" else 6.0
    return None


BENCHMARK = Definition(
    "inflate",
    "How long an inflate takes, in times one hole a file or one madvise over the same bytes.",
    Inflate,
    (
        Parameter("size", 512 << 20, "Touched guest memory to give back in each row.", kind="size"),
        Parameter(
            "memory",
            "memfd",
            "Kinds of guest memory, with commas: memfd, anon, huge, a path.",
        ),
        Parameter(
            "orders", "all", f"Orders of the pages, with commas: {', '.join(ORDERS)}; all that fit the size."
        ),
        Parameter("rows", ",".join(WAYS), "What is measured, with commas: device, naive ways, whole path."),
        Parameter("sibling", True, "Measure also while another thread of the process runs.", kind="flag"),
        Parameter("design", "reference", "Locking design of the driver of the whole path."),
    ),
    runs=3,
    warmup=0,
)
