"""How long a deflate takes, and what a request costs that sleeps on both sides.

``device``      the device alone, driven from C: arrays of 256 PFNs in, pages the guest's again
``first touch`` what the guest pays for each page then: the host has to find and clear one
``touch again`` a write to pages that are there already, which first touch is held against
``path``        the whole: target, Python driver, ring, device
``round trip``  a request of one page, driver and device sleeping on eventfds on one processor, as a machine does
``eventfds``    two threads there that wake each other by eventfds and do nothing else
"""

from __future__ import annotations

import contextlib
import statistics
import time
from array import array

from balloonvq.bench.arena import EXTRA_BYTES, Arena, bare_machine, chosen, last_cpu, memory_name
from balloonvq.bench.measure import Against, Definition, Parameter, Row, Sample
from balloonvq.bench.pfn_orders import ORDERS, RECORDED, RECORDED_RAM_PAGES, order
from balloonvq.errors import InternalError, InvalidArgument
from balloonvq.ffi import CData, check, ffi, lib
from balloonvq.guest.pages import PageAllocator
from balloonvq.histogram import Histogram
from balloonvq.host import check_available, shared_cpu
from balloonvq.memory import PAGE_SIZE
from balloonvq.units import size as human

__all__ = ["BENCHMARK", "Deflate"]

#: Into how many parts the round trips of a round are cut.
TURNS = 10


class Deflate:
    """Deflates over guest memory of a kind, and single requests.

    Args:
        size_bytes: guest memory to take back in each row.
        memory: kind of memory.
        orders: orders of pages, with commas.
        requests: round trips in a round.
        design: locking design of the driver of the whole path.

    Raises:
        InvalidArgument: if the size is not whole pages, or a list has what there is not.
        NotEnoughMemory: if the host has less than that.
    """

    def __init__(self, size_bytes: int, memory: str, orders: str, requests: int, design: str) -> None:
        if size_bytes <= 0 or size_bytes % PAGE_SIZE:
            raise InvalidArgument(f"{size_bytes} bytes cannot be deflated", why="a size is whole pages")
        self.requests = requests
        self.pages = size_bytes // PAGE_SIZE
        names = chosen(orders, ORDERS, "--orders")
        ram = max(self.pages, RECORDED_RAM_PAGES if set(names) & set(RECORDED) else 0)
        needed = max(ram * PAGE_SIZE, size_bytes + EXTRA_BYTES)  # the machine's memory is never written
        check_available(needed, f"a deflate of {human(size_bytes)}", "--size", size_bytes)
        self.pfns: dict[str, array[int]] = {
            name: order(name, ram if name == "shuffled" else self.pages) for name in names
        }
        self.kind = memory_name(memory)
        cpu = last_cpu()
        self._cpu = -1 if cpu is None else cpu
        self.notes: tuple[str, ...] = ()
        self.rows = (
            *(Row(f"device {name}", "the device alone", per="page", bytes=PAGE_SIZE) for name in self.pfns),
            Row("touch again", "a write to each page that is there", per="page", bytes=PAGE_SIZE),
            *(
                Row(
                    f"first touch {name}",
                    "a write to each page that came back",
                    per="page",
                    bytes=PAGE_SIZE,
                    against=(Against("touch again"),),
                )
                for name in self.pfns
            ),
            Row("path", "the whole: target, Python driver, ring, device", per="page", bytes=PAGE_SIZE),
            Row("eventfds", "two threads wake each other by eventfds", per="turn"),
            Row(
                "round trip",
                "a request of one page, both sides asleep",
                per="turn",
                against=(Against("eventfds", 1.5),),
            ),
        )
        self._cleanup = contextlib.ExitStack()
        with contextlib.ExitStack() as cleanup:
            self._arena = cleanup.enter_context(contextlib.closing(Arena(memory, ram)))
            self._allocator = cleanup.enter_context(contextlib.closing(PageAllocator(ram, 0)))
            self._machine = cleanup.enter_context(bare_machine(size_bytes + EXTRA_BYTES, design, memory))
            self._cleanup = cleanup.pop_all()

    def close(self) -> None:
        """Gives all memory back."""
        self._cleanup.close()

    def round(self) -> dict[str, Sample]:
        """Every row once."""
        samples: dict[str, Sample] = {}
        arena = self._arena
        with arena.rig(must_tell_host=True) as rig:
            for name, pfns in self.pfns.items():
                arena.touch()
                arena.inflate(rig, pfns)
                samples[f"device {name}"] = arena.deflate(rig, pfns).sample()
                samples[f"first touch {name}"] = Sample(arena.first_touch_ns(pfns))
            first = next(iter(self.pfns.values()))
            arena.first_touch_ns(first)
            samples["touch again"] = Sample(arena.first_touch_ns(first))
            samples |= self._wake_ups(rig)
        samples["path"] = self._path()
        return samples

    def _wake_ups(self, rig: CData) -> dict[str, Sample]:
        """Eventfds alone and round trips by turns, so that neither has the quieter moment; medians of the turns."""
        each = Histogram()
        limit = ffi.new("struct bench_limit *")
        turns = max(1, self.requests // TURNS)
        alone, trips = [], []
        for _ in range(TURNS):
            cpus = ffi.new("struct bench_cpus *", [self._cpu, self._cpu])
            check(lib.bench_eventfds(turns, cpus[0], limit), "wake a thread")
            alone.append(limit.ns / limit.rounds)
            before = each.handle.sum
            check(lib.bench_rig_round_trips(rig, 0, turns, self._cpu, each.handle), "send single requests")
            trips.append((each.handle.sum - before) / turns)
        return {
            "eventfds": Sample(statistics.median(alone)),
            "round trip": Sample(statistics.median(trips), histogram=each),
        }

    def _path(self) -> Sample:
        """Deflates a machine.

        Raises:
            InternalError: if it did not come to that.
        """
        machine = self._machine
        for pages in (self.pages, 0):
            before = machine.device.counters()
            device_cpu, process_cpu = machine.device.cpu_ns, time.process_time_ns()
            started = time.perf_counter_ns()
            machine.set_target(pages)
            result = machine.wait()
            elapsed = time.perf_counter_ns() - started
            if result.outcome != "reached":
                raise InternalError("the measured deflate did not do its work", why=result.outcome)
        used = time.process_time_ns() - process_cpu - (machine.device.cpu_ns - device_cpu)
        arrays = max(1, machine.device.counters().requests - before.requests)
        # As in an inflate: what a driver in C does for the same is not Python's.
        with self._arena.rig(must_tell_host=True) as rig:
            _, driver_ns = self._arena.drive(rig, self._allocator, self.pages, shared_cpu())
        facts = {
            "python_ns_per_array": max(0.0, used / arrays - driver_ns),
            "c_driver_ns_per_array": driver_ns,
        }
        return Sample(elapsed / self.pages, facts)


BENCHMARK = Definition(
    "deflate",
    "How long a deflate takes, and what a request costs that sleeps on both sides.",
    Deflate,
    (
        Parameter("size", 512 << 20, "Guest memory to take back in each row.", kind="size"),
        Parameter("memory", "memfd", "Kind of guest memory; a path is one too."),
        Parameter("orders", "contiguous,frag", "Orders of the pages, with commas."),
        Parameter("requests", 2000, "Round trips in a round.", kind="count", least=10, most=1_000_000),
        Parameter("design", "reference", "Locking design of the driver of the whole path."),
    ),
    runs=5,
    warmup=0,
)
