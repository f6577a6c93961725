"""The emulated kernel: allocation paths, the killer, programs and their pages, statistics."""

from __future__ import annotations

import struct
import threading
from collections.abc import Callable, Iterator

import pytest
from support.waiting import never, until

from balloonvq.counters import stat_name
from balloonvq.errors import InvalidArgument
from balloonvq.guest.guest_stats import collect, encode
from balloonvq.guest.kernel import NOFS_ROUNDS_MAX, AllocationStuck, Kernel, OomWait
from balloonvq.guest.pages import PageAllocator, Place
from balloonvq.guest.tasks import TaskKilled, UserTask
from balloonvq.memory import PAGE_SIZE, GuestMemory
from balloonvq.runtime.threads import ThreadRuntime, ThreadTask

PAGES, KERNEL = 512, 12


class Guest(Kernel):
    """A kernel with its surroundings."""

    def __init__(self, *, virtual: bool) -> None:
        self.crashes: list[BaseException] = []
        memory = GuestMemory(PAGES * PAGE_SIZE)
        runtime = ThreadRuntime(
            virtual_clock=virtual, on_crash=lambda _task, error: self.crashes.append(error)
        )
        super().__init__(runtime, memory, PageAllocator(PAGES, KERNEL), KERNEL * PAGE_SIZE)

    def run(self, *functions: Callable[[], object]) -> list[ThreadTask]:
        tasks = [
            self.runtime.spawn(f"T{index}", "test", function) for index, function in enumerate(functions)
        ]
        for task in tasks:
            assert self.runtime.join(task, 20), task.name
        return tasks

    def exhaust(self, leave: int = 0) -> UserTask:
        """A program that owns all free pages but some."""
        program = UserTask(self, "big")
        program.allocate(self.pages.free_pages() - leave)
        return program


@pytest.fixture(params=[False, True], ids=["real", "virtual"])
def guest(request: pytest.FixtureRequest) -> Iterator[Guest]:
    guest = Guest(virtual=request.param)
    with guest.runtime.adopted("main", "main"):
        yield guest
    assert guest.runtime.stop()
    guest.runtime.close()
    assert guest.pages.counts().violations == 0
    guest.pages.close()
    guest.memory.close()
    assert guest.crashes == []


def test_what_is_free_is_given_without_reclaim(guest: Guest) -> None:
    batch = guest.alloc(10_000, Place.USER)
    assert len(batch) == 256
    assert guest.alloc_stalls.value == 0
    guest.pages.free(batch, Place.USER)
    wait = OomWait()
    assert len(guest.alloc(3, Place.PRIVATE, wait=wait)) == 3
    assert (wait.rounds, wait.waited_ns) == (0, 0)


def test_noretry_gives_up_after_reclaim(guest: Guest) -> None:
    guest.exhaust()
    assert guest.alloc(1, Place.PRIVATE, noretry=True) is None
    assert guest.alloc_stalls.value == 1
    assert guest.oom_events.value == guest.oom_kills.value == 0


def test_reclaim_waits_for_the_filesystem_unless_it_may_not_enter(guest: Guest) -> None:
    guest.exhaust()
    got: list[object] = []
    with guest.fs_lock:
        # The owner itself does not wait for itself, nor does NOFS.
        assert guest.alloc(1, Place.PRIVATE, noretry=True) is None
        guest.run(lambda: got.append(guest.alloc(1, Place.PRIVATE, fs=False, noretry=True)))
        assert got == [None]
        task = guest.runtime.spawn(
            "R", "reclaim", lambda: got.append(guest.alloc(1, Place.PRIVATE, noretry=True))
        )
        until(lambda: guest.reclaimers.value == 1)
        never(lambda: task.finished, 0.02)
    assert guest.runtime.join(task, 10)
    assert got == [None, None]
    assert guest.reclaimers.value == 0


def test_a_page_that_comes_during_reclaim_ends_it(guest: Guest) -> None:
    program = guest.exhaust()
    got: list[object] = []
    with guest.fs_lock:
        task = guest.runtime.spawn("R", "reclaim", lambda: got.append(guest.alloc(5, Place.PRIVATE)))
        until(lambda: guest.reclaimers.value)
        assert program.exit() == 0
    assert guest.runtime.join(task, 10)
    assert len(got[0]) == 5
    assert guest.oom_events.value == 0


def test_notifiers_come_before_the_killer(guest: Guest) -> None:
    program = guest.exhaust(leave=40)
    reserve = guest.pages.take(40, Place.PRIVATE)

    def notifier() -> int:
        nonlocal reserve
        if reserve is None:
            return 0
        freed, reserve = reserve, None
        guest.pages.free(freed, Place.PRIVATE)
        return len(freed)

    guest.notifiers.append(notifier)
    wait = OomWait()
    assert len(guest.alloc(10, Place.USER, wait=wait)) == 10
    assert (wait.rounds, wait.freed_pages, wait.victim) == (1, 40, None)
    assert len(guest.alloc(256, Place.USER, wait=wait)) == 30
    assert len(guest.alloc(256, Place.USER, wait=wait)) == 256
    assert (wait.rounds, wait.victim, program.killed) == (2, "big", True)


def test_nofs_is_stuck_and_kills_nobody(guest: Guest) -> None:
    program = guest.exhaust()
    wait = OomWait()
    with pytest.raises(AllocationStuck):
        guest.alloc(1, Place.USER, fs=False, wait=wait)
    assert wait.rounds == wait.fruitless == NOFS_ROUNDS_MAX
    assert wait.waited_ns == wait.longest_ns > 0
    assert not program.killed
    assert guest.oom_lock.owner is None


def test_the_killer_takes_the_biggest(guest: Guest) -> None:
    small, big, middle = (UserTask(guest, name) for name in ("small", "big", "middle"))
    for program, pages in ((small, 10), (big, 300), (middle, guest.pages.free_pages() - 310)):
        program.allocate(pages)
    assert small.allocate(5) == 5
    assert (small.killed, big.killed, middle.killed) == (False, True, False)
    assert guest.oom_kills.value == 1
    assert guest.tasks == [small, middle]
    assert big.exit() == 0


def test_a_program_that_is_itself_the_biggest_dies(guest: Guest) -> None:
    program = UserTask(guest, "greedy")
    wait = OomWait()
    with pytest.raises(TaskKilled) as caught:
        program.allocate(PAGES, wait=wait)
    assert caught.value.victim == "greedy"
    assert guest.pages.counts().user == 0
    assert guest.oom_lock.owner is None
    assert wait.rounds == 1


def test_whoever_does_not_get_oom_lock_retries(guest: Guest) -> None:
    program = guest.exhaust()
    inside, go_on = threading.Event(), threading.Event()
    calls: list[int] = []

    def notifier() -> int:
        calls.append(1)
        inside.set()
        go_on.wait(10)
        return 0

    guest.notifiers.append(notifier)
    got: list[object] = []
    first = guest.runtime.spawn("A", "first", lambda: got.append(guest.alloc(1, Place.USER)))
    assert inside.wait(10)
    stalls = guest.alloc_stalls.value
    second = guest.runtime.spawn("B", "second", lambda: got.append(guest.alloc(1, Place.USER)))
    # It is no lock wait: the second looks again and again, and calls no notifier. Virtual time passes
    # only while nobody runs, so there it sleeps its first jiffy.
    until(lambda: guest.alloc_stalls.value > stalls)
    assert not guest.oom_lock._waiters
    assert calls == [1]
    program.exit()
    go_on.set()
    main = guest.runtime.current()
    # Joining is waiting: virtual time may pass meanwhile.
    with guest.runtime._guard:
        guest.runtime._block(main)
    for task in (first, second):
        assert guest.runtime.join(task, 10)
    with guest.runtime._guard:
        guest.runtime._unblock(main)
    assert [len(batch) for batch in got] == [1, 1]


def test_regression_a_program_killed_by_another_stops_allocating(guest: Guest) -> None:
    # The victim runs on until it looks; what it gets after its death must not be lost.
    victim = UserTask(guest, "victim")
    stamp = guest.memory.stamp
    dead = threading.Event()

    def slow_stamp(pfns: object, count: int, owner: int) -> None:
        stamp(pfns, count, owner)
        if owner == victim._owner and not victim.killed:
            victim.kill(by=None)
            dead.set()

    guest.memory.stamp = slow_stamp
    with pytest.raises(TaskKilled):
        victim.allocate(300)
    assert dead.is_set()
    assert guest.pages.counts().user == 0
    assert guest.tasks == []


def test_programs_find_pages_that_lost_their_content(guest: Guest) -> None:
    program = UserTask(guest, "careful")
    assert program.allocate(300) == 300
    assert program.check() == (300, 0)
    pfns = [pfn for batch in program._batches for pfn in batch]
    guest.memory.write(pfns[0] * PAGE_SIZE, bytes(8))
    guest.memory.write(pfns[299] * PAGE_SIZE + 3584, b"\xff" * 8)
    assert program.check() == (300, 2)
    assert program.exit() == 2
    assert guest.lost_pages.value == 2
    assert guest.pages.counts().user == 0
    assert program.check() == (0, 0)


def test_patterns_differ_between_owners_and_pages(guest: Guest) -> None:
    one, other = UserTask(guest, "one"), UserTask(guest, "other")
    one.allocate(2)
    other.allocate(1)
    (a, b), (c,) = one._batches[0], other._batches[0]
    page = guest.memory.read(a * PAGE_SIZE, PAGE_SIZE)
    assert page != guest.memory.read(b * PAGE_SIZE, PAGE_SIZE)
    guest.memory.write(c * PAGE_SIZE, page)
    assert other.check() == (1, 1)


def test_boot_memory_is_aligned_and_ends(guest: Guest) -> None:
    first = guest.boot_alloc(3)
    second = guest.boot_alloc(100, align=64)
    assert (first, second) == (0, 64)
    with pytest.raises(InvalidArgument) as caught:
        guest.boot_alloc(KERNEL * PAGE_SIZE)
    assert caught.value.why == "164 are in use"


def test_statistics_tell_what_the_guest_sees(guest: Guest) -> None:
    program = UserTask(guest, "p")
    program.allocate(100)
    values = collect(guest)
    assert set(values) == set(range(16))
    assert values[3] == 100
    assert values[4] == values[6] == guest.free_bytes == (PAGES - KERNEL - 100) * PAGE_SIZE
    assert values[5] == PAGES * PAGE_SIZE
    guest.pages.adjust_managed(-20)
    assert collect(guest)[5] == (PAGES - 20) * PAGE_SIZE
    data = encode(values)
    assert dict(struct.iter_unpack("<HQ", data)) == values
    assert [stat_name(tag) for tag in (4, 15, 16)] == [
        "stat-free-memory",
        "stat-direct-reclaims",
        "stat-unknown-16",
    ]
