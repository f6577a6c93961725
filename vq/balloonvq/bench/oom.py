"""How long a task that is out of memory waits for the balloon, with each locking design.

The guest's memory is full: the balloon holds `size_bytes`, a program the rest. Another program then
allocates `demand_bytes`, again and again until the balloon is used up or `events` are through. Its
first allocation fails, goes through direct reclaim to the OOM notifier (or the shrinker, in the
design that has one), the driver takes pages off its list, tells the device, frees them, and the
allocation has its page. That wait is the sample; *relief* is the time until the whole demand is
met, with the *pages* that the balloon gave up for it, and the *rounds* of the notifier.

A design's row ``… filling`` measures the same while the host wants more than the guest has, so that
the size worker tries to fill all the time: there the designs differ in what they hold while they
wait.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from dataclasses import dataclass

from balloonvq.bench.arena import bare_machine
from balloonvq.bench.measure import Against, Definition, Parameter, Row, Sample
from balloonvq.driver.designs import DESIGNS, find
from balloonvq.errors import BalloonError, InvalidArgument
from balloonvq.guest.kernel import OomWait
from balloonvq.guest.tasks import TaskKilled, UserTask
from balloonvq.histogram import Histogram
from balloonvq.host import check_available
from balloonvq.machine import Machine
from balloonvq.memory import PAGE_SIZE
from balloonvq.units import size as human

__all__ = ["BENCHMARK", "Oom"]

#: Guest memory beside the balloon.
EXTRA_BYTES = 32 << 20

#: What a notifier gives at once.
ROUND_PAGES = 256

#: How long the size worker may take to find that there is no free page.
PUFF_NS = 2_000_000_000


@dataclass(frozen=True, slots=True)
class _Event:
    """One program that ran out of memory."""

    first_ns: int
    """From the failed allocation until it had a page."""
    relief_ns: int
    """From asking for the demand until all of it was there."""
    pages: int
    rounds: int
    reclaims: int


@dataclass(slots=True)
class _Scene:
    """A machine and the row that it is measured for."""

    row: str
    machine: Machine
    filling: bool


class Oom:
    """A machine a design.

    Args:
        size_bytes: of the balloon.
        demand_bytes: what a program wants that runs out of memory.
        events: programs a round and row.
        design: one design, or all.

    Raises:
        InvalidArgument: if the sizes do not fit each other, or there is no such design.
        NotEnoughMemory: if the host has less than the machines of all designs need.
    """

    def __init__(self, size_bytes: int, demand_bytes: int, events: int, design: str) -> None:
        whole = ROUND_PAGES * PAGE_SIZE
        if size_bytes % whole or demand_bytes % whole or not 0 < demand_bytes <= size_bytes:
            raise InvalidArgument(
                f"a balloon of {size_bytes} bytes cannot be asked for {demand_bytes}",
                why=f"both are multiples of {whole}, and the balloon is the larger",
                hint="--size 64M --demand 2M",
            )
        designs = tuple(DESIGNS) if design == "all" else (design,)
        needed = len(designs) * (size_bytes + EXTRA_BYTES)  # the programs write all of it
        check_available(needed, f"balloons of {human(size_bytes)}", "--size", size_bytes)
        self.pages = size_bytes // PAGE_SIZE
        self.demand = demand_bytes // PAGE_SIZE
        self.events = events
        self._scenes: list[_Scene] = []
        rows = []
        notes = []
        with contextlib.ExitStack() as stack:
            for name in designs:
                machine = stack.enter_context(bare_machine(size_bytes + EXTRA_BYTES, name))
                self._scenes.append(_Scene(name, machine, filling=False))
                rows.append(Row(name, "failed allocation to its first page; the size worker rests"))
                if find(name).pressure == "shrinker":
                    notes.append(f"{name} has no row for filling: its own inflation deflates it")
                    continue
                filling = f"{name} filling"
                self._scenes.append(_Scene(filling, machine, filling=True))
                rows.append(
                    Row(filling, "the same while the size worker tries to fill", against=(Against(name),))
                )
            self._stack = stack.pop_all()
        self.rows = tuple(rows)
        self.notes = tuple(notes)

    def close(self) -> None:
        """Ends the machines."""
        self._stack.close()

    def round(self) -> dict[str, Sample]:
        """The events of every row."""
        return {scene.row: self._measured(scene) for scene in self._scenes}

    def _measured(self, scene: _Scene) -> Sample:
        machine = scene.machine
        machine.set_target(self.pages)
        if machine.wait().outcome != "reached":
            raise BalloonError("the balloon did not get its size", why=str(machine.status().state))
        found: list[_Event] = machine.in_guest("O", "runs out of memory", lambda: self._events(scene))
        machine.set_target(0)
        machine.wait()
        if not found:
            raise BalloonError(f"no allocation failed with {scene.row}")
        times = Histogram()
        for event in found:
            times.record(event.first_ns)
        middle = statistics.median
        facts = {
            "relief_ns": middle(event.relief_ns for event in found),
            "pages": middle(event.pages for event in found),
            "rounds": middle(event.rounds for event in found),
            "reclaims": middle(event.reclaims for event in found),
            "events": len(found),
        }
        return Sample(middle(event.first_ns for event in found), facts, times)

    def _events(self, scene: _Scene) -> list[_Event]:
        """Fills the memory, then runs out of it; in a task of the guest."""
        machine = scene.machine
        kernel, balloon = machine.kernel, machine.driver.vb
        rest, hog = UserTask(kernel, "rest"), UserTask(kernel, "hog")
        found: list[_Event] = []
        try:
            rest.allocate(kernel.pages.free_pages())
            if scene.filling:
                machine.set_target(machine.memory.size_pages)
                balloon.settled.wait_until(lambda: balloon.out_of_puff.value, PUFF_NS)
            for _ in range(-(-self.events // 4) if scene.filling else self.events):
                free = kernel.pages.free_pages()
                if free:  # a round gave more than was wanted, since the worker had taken some of it
                    rest.allocate(free)
                if balloon.num_pages.value < self.demand:
                    break
                event = self._event(machine, hog)
                if event is not None:
                    found.append(event)
        except TaskKilled:
            pass  # the balloon was used up before: what was measured counts
        finally:
            for task in (hog, rest):
                if not task.killed:
                    task.exit()
        return found

    def _event(self, machine: Machine, hog: UserTask) -> _Event | None:
        """One demand; None if there was a free page after all."""
        kernel, given = machine.kernel, machine.driver.oom_deflated_pages
        pages, stalls = given.value, kernel.alloc_stalls.value
        first, later = OomWait(), OomWait()
        started = time.perf_counter_ns()
        hog.allocate(1, wait=first)
        if self.demand > 1:
            hog.allocate(self.demand - 1, wait=later)
        relief_ns = time.perf_counter_ns() - started
        if not first.waited_ns:
            return None
        return _Event(
            first_ns=first.waited_ns,
            relief_ns=relief_ns,
            pages=given.value - pages,
            rounds=first.rounds + later.rounds,
            reclaims=kernel.alloc_stalls.value - stalls,
        )


BENCHMARK = Definition(
    "oom",
    "How long a task that is out of memory waits for the first page from the balloon, with each locking design.",
    Oom,
    (
        Parameter("size", 64 << 20, "The balloon.", kind="size"),
        Parameter("demand", 2 << 20, "What a program wants that runs out of memory.", kind="size"),
        Parameter("events", 32, "Programs a round and row, at most.", kind="count", least=1, most=100_000),
        Parameter("design", "all", "A locking design, or all."),
    ),
    runs=3,
)
