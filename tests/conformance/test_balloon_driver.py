"""The balloon driver against the checklist's BAL-DRV rows for bits 0 to 2; the test plays the device."""

from __future__ import annotations

import contextlib
import struct
import threading
from collections.abc import Callable

import pytest
from support.driver_rig import ALL, DEFLATE, INFLATE, KERNEL_PAGES, STATS, Rig, rig
from support.waiting import never, until

from balloonvq.counters import STAT_NAMES
from balloonvq.features import Feature
from balloonvq.guest.guest_stats import STAT_BYTES, encode
from balloonvq.guest.pages import Place
from balloonvq.guest.tasks import TaskKilled, UserTask
from balloonvq.memory import PAGE_SIZE

DESIGNS = pytest.mark.parametrize("design", ["modern", "coarse"])
WITHOUT_TELL = ALL & ~int(Feature.MUST_TELL_HOST)
WITHOUT_OOM = ALL & ~int(Feature.DEFLATE_ON_OOM)


def in_task(r: Rig, function: Callable[[], object]) -> threading.Thread:
    """Runs a function in a task, while the test goes on playing the device."""
    return r.runtime.spawn("T", "test", function)


def play_device(r: Rig, task: object) -> None:
    until(lambda: (r.acknowledge(INFLATE), r.acknowledge(DEFLATE), task.finished)[2])
    assert task.error is None


def listed(r: Rig) -> set[int]:
    return {pfn for pfn in range(r.memory.size_pages) if r.pages.where(pfn) is Place.LISTED}


def held(r: Rig) -> set[int]:
    return {pfn for pfn in range(r.memory.size_pages) if r.device.holds(pfn)}


@pytest.mark.parametrize("features", [ALL, WITHOUT_OOM, int(Feature.MUST_TELL_HOST)])
def test_bal_drv_01_must_tell_host_is_taken_when_offered(features: int) -> None:
    with rig(features) as r:
        assert r.device.driver_features & Feature.MUST_TELL_HOST


@DESIGNS
def test_bal_drv_06_09_10_the_target_decides_the_direction(design: str) -> None:
    with rig(design=design) as r:
        r.settle(300)
        assert (r.ring(INFLATE).avail_idx, r.ring(DEFLATE).avail_idx) == (2, 0)
        r.settle(40)
        assert (r.ring(INFLATE).avail_idx, r.ring(DEFLATE).avail_idx) == (2, 2)
        # A notification without a change asks for nothing.
        r.settle(40)
        assert (r.ring(INFLATE).avail_idx, r.ring(DEFLATE).avail_idx) == (2, 2)


@DESIGNS
def test_bal_drv_07_08_requests_are_le32_page_numbers_that_were_handed_over(design: str) -> None:
    with rig(design=design) as r:
        r.device.set_target(300)
        given = r.request(INFLATE, 1)
        assert len(given) == len(set(given)) == 256
        assert all(KERNEL_PAGES <= pfn < r.memory.size_pages for pfn in given)
        r.settle(300)
        given += r.request(INFLATE, 2)
        assert set(given) == listed(r) == held(r)
        r.device.set_target(10)
        taken = r.request(DEFLATE, 1)
        assert set(taken) < set(given)
        r.settle(10)
        assert listed(r) == held(r)
        assert r.device.counters().pfns_never_inflated == 0


@DESIGNS
def test_bal_drv_11_a_page_may_be_swapped_at_equality(design: str) -> None:
    with rig(design=design) as r:
        r.settle(5)
        before = held(r)
        old = r.pages.isolate()
        new = r.pages.take(1, Place.PRIVATE)
        task = in_task(r, lambda: r.driver.migrate(new, old))
        # The new page is told before the old one.
        assert r.request(INFLATE, 2) == list(new)
        never(lambda: r.ring(DEFLATE).avail_idx, 0.01)
        r.acknowledge(INFLATE)
        assert r.request(DEFLATE, 1) == list(old)
        play_device(r, task)
        assert held(r) == before - set(old) | set(new)
        assert r.pages.where(next(iter(old))) is Place.FREE
        assert r.device.actual_pages == 5


def run_out(r: Rig) -> UserTask:
    """A program that wants everything that is free and more."""
    program = UserTask(r.kernel, "hog")

    def body() -> None:
        with contextlib.suppress(TaskKilled):
            program.allocate(r.pages.free_pages() + 10)

    play_device(r, in_task(r, body))
    return program


@DESIGNS
def test_bal_drv_12_without_bit_2_oom_takes_nothing_back(design: str) -> None:
    with rig(WITHOUT_OOM, design=design) as r:
        r.settle(100)
        program = run_out(r)
        assert program.killed
        assert r.ring(DEFLATE).avail_idx == 0
        assert r.device.actual_pages == 100


@DESIGNS
def test_bal_drv_13_with_bit_2_oom_takes_pages_back(design: str) -> None:
    with rig(design=design) as r:
        r.settle(100)
        program = run_out(r)
        assert not program.killed
        assert r.ring(DEFLATE).avail_idx == 1
        assert r.device.actual_pages == 0
        assert r.device.target_pages == 100


@DESIGNS
@pytest.mark.parametrize("features", [ALL, WITHOUT_TELL])
def test_bal_drv_14_15_16_every_page_is_announced_and_stays_untouched_until_then(
    design: str, features: int
) -> None:
    with rig(features, design=design) as r:
        r.settle(50)
        r.device.set_target(20)
        taken = r.request(DEFLATE, 1)
        assert len(taken) == 30
        # The acknowledgement is held back: nobody gets these pages.
        never(lambda: any(r.pages.where(pfn) is Place.FREE for pfn in taken))
        assert {r.pages.where(pfn) for pfn in taken} == {Place.IN_FLIGHT}
        r.settle(20)
        assert {r.pages.where(pfn) for pfn in taken} == {Place.FREE}


@DESIGNS
def test_bal_drv_17_pages_are_not_touched_while_they_are_given(design: str) -> None:
    with rig(design=design) as r:
        r.device.set_target(20)
        given = r.request(INFLATE, 1)
        for pfn in given:
            r.memory.write(pfn * PAGE_SIZE, b"\xa5" * PAGE_SIZE)
        never(lambda: r.device.actual_pages)
        assert all(r.memory.read(pfn * PAGE_SIZE, PAGE_SIZE) == b"\xa5" * PAGE_SIZE for pfn in given)
        assert not {Place.FREE, Place.USER} & {r.pages.where(pfn) for pfn in given}
        r.settle(20)


@DESIGNS
def test_bal_drv_18_no_deflate_of_what_is_not_acknowledged(design: str) -> None:
    with rig(design=design) as r:
        r.device.set_target(200)
        r.request(INFLATE, 1)
        r.device.set_target(0)
        never(lambda: r.ring(DEFLATE).avail_idx)
        r.settle(0)
        assert r.ring(DEFLATE).avail_idx == 1
        assert r.device.counters().pfns_never_inflated == 0


@DESIGNS
def test_bal_drv_19_20_21_actual_follows_the_acknowledgement(design: str) -> None:
    with rig(design=design) as r:
        r.device.set_target(400)
        r.request(INFLATE, 1)
        never(lambda: r.device.actual_pages)
        r.acknowledge(INFLATE)
        until(lambda: r.device.actual_pages == 256)
        r.request(INFLATE, 2)
        never(lambda: r.device.actual_pages != 256)
        r.settle(400)
        r.device.set_target(0)
        r.request(DEFLATE, 1)
        never(lambda: r.device.actual_pages != 400)
        r.settle(0)


def stats_buffer(r: Rig, number: int) -> dict[int, int]:
    ring = r.ring(STATS)
    until(lambda: ring.avail_idx >= number)
    [desc] = ring.chain(ring.avail_slot(number - 1))
    assert desc.flags == 0, "an output buffer"
    assert desc.length % 10 == 0, "BAL-DRV-26 as T-01 reads it"
    data = r.memory.read(desc.addr, desc.length)
    return dict(struct.unpack_from("<HQ", data, at) for at in range(0, len(data), 10))


def test_bal_drv_22_to_30_the_statistics_queue() -> None:
    with rig() as r:
        ring = r.ring(STATS)
        first = stats_buffer(r, 1)
        assert set(first) == set(range(16)), "filled already (BAL-DRV-25, T-03)"
        assert r.device.kicked(STATS), "T-37"
        r.acknowledge(STATS)
        for number in range(2, 6):
            assert (ring.avail_idx, ring.used_idx) == (number - 1, number - 2), "BAL-DRV-22: one outstanding"
            r.settle(number * 100)
            assert r.device.request_stats()
            fresh = stats_buffer(r, number)
            assert set(fresh) == set(first), "BAL-DRV-30"
            assert fresh[4] == r.pages.free_pages() * PAGE_SIZE
            assert fresh[5] == r.memory.size_bytes
            never(lambda number=number: ring.avail_idx != number, 0.01)
            r.acknowledge(STATS)
            assert r.device.stats().values == fresh
            assert r.device.stats().updates == number


def test_bal_drv_27_a_statistic_is_ten_bytes() -> None:
    assert STAT_BYTES == 10
    assert encode({4: 0x1122334455667788}) == bytes.fromhex("0400 8877665544332211")
    assert encode({65535: -1}) == b"\xff" * 10
    assert len(STAT_NAMES) == len(set(STAT_NAMES)) == 16


def test_without_bit_1_there_is_no_statistics_queue() -> None:
    with rig(ALL & ~int(Feature.STATS_VQ)) as r:
        assert set(r.device.views) == {INFLATE, DEFLATE}
        r.settle(10)
        assert not r.device.request_stats()


def test_t_15_nonsense_is_counted_and_acknowledged() -> None:
    with rig() as r:
        r.settle(10)
        mine = sorted(held(r))
        r.device.set_target(14)
        r.request(INFLATE, 2)
        ring = r.ring(INFLATE)
        [desc] = ring.chain(ring.avail_slot(1))
        # Somebody scribbles over the driver's array: one held already, twice the same, two outside memory.
        nonsense = [mine[0], mine[0], r.memory.size_pages, 0xFFFFFFFF]
        r.memory.write(desc.addr, struct.pack("<4I", *nonsense))
        r.acknowledge(INFLATE)
        assert ring.used_idx == 2
        assert ring.used_slot(1) == (ring.avail_slot(1), 0), "T-27: length 0"
        counters = r.device.counters()
        assert (counters.pfns_duplicate, counters.pfns_out_of_range) == (2, 2)
        # T-39: the driver says 14, the record says 10.
        until(lambda: r.device.actual_pages == 14)
        assert counters.held_pages == 10
        r.settle(0)
        assert r.device.counters().pfns_never_inflated == 4


def test_t_24_pages_are_gone_before_the_used_entry_and_stable_after() -> None:
    with rig(WITHOUT_TELL) as r:
        before = r.memory.allocated_bytes()
        r.device.set_target(100)
        given = r.request(INFLATE, 1)
        assert r.memory.allocated_bytes() == before
        r.acknowledge(INFLATE)
        assert r.memory.allocated_bytes() == before - 100 * PAGE_SIZE
        # Without bit 0 the guest may write at once; nothing may take that away.
        r.memory.write(given[0] * PAGE_SIZE, b"mine")
        r.acknowledge(INFLATE)
        assert r.memory.read(given[0] * PAGE_SIZE, 4) == b"mine"


def test_split_drv_16_spurious_interrupts_are_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    with rig() as r:
        r.device.set_target(100)
        r.request(INFLATE, 1)
        for queue in range(3):
            os.eventfd_write(r.device.call_fd(queue), 1)
        os.eventfd_write(r.device.config_fd, 1)
        never(lambda: r.device.actual_pages)
        r.settle(100)
