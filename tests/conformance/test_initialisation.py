"""Initialisation, status and configuration: CORE-DRV and CORE-DEV rows of the checklist, by id."""

from __future__ import annotations

import itertools
import os
import re

import pytest
from support.driver_rig import ALL, DEFLATE, INFLATE, STATS, SpyDevice, drain, rig
from support.waiting import never, until

from balloonvq.device import BalloonDevice
from balloonvq.driver.driver import NegotiationFailed
from balloonvq.errors import BalloonError, CoreError, InvalidArgument
from balloonvq.features import Feature, Status
from balloonvq.guest.kernel import OomWait
from balloonvq.memory import PAGE_SIZE, GuestMemory
from balloonvq.queue import RingAddresses, ring_layout

OPTIONAL = [
    Feature.MUST_TELL_HOST,
    Feature.STATS_VQ,
    Feature.DEFLATE_ON_OOM,
    Feature.INDIRECT_DESC,
    Feature.EVENT_IDX,
]
SUBSETS = [
    sum(chosen, Feature(0)) | Feature.VERSION_1
    for count in range(len(OPTIONAL) + 1)
    for chosen in itertools.combinations(OPTIONAL, count)
]


# -- the driver ----------------------------------------------------------------


def test_core_drv_01_02_status_is_written_as_the_steps_finish() -> None:
    with rig() as r:
        assert r.device.statuses() == [0, 1, 3, 11, 15]
        assert r.device.status == 15


def test_core_drv_03_a_second_try_begins_with_a_reset() -> None:
    with rig(probe=False) as r:
        for _ in range(2):
            r.device.fail_at, r.device.fail_value = "queue", DEFLATE
            with pytest.raises(InvalidArgument):
                r.probe()
            assert r.device.status & Status.FAILED
            assert r.driver.queues == ()
        r.device.fail_at = None
        r.device.log.clear()
        r.probe()
        assert r.device.statuses() == [0, 1, 3, 11, 15]
        r.settle(300)


@pytest.mark.parametrize("features", SUBSETS, ids=hex)
def test_core_drv_05_06_10_28_core_dev_06_any_offer_is_used(features: int) -> None:
    with rig(int(features)) as r:
        assert r.device.driver_features == features
        r.settle(100)
        assert (STATS in r.device.views) is bool(features & Feature.STATS_VQ)


def test_core_drv_07_08_09_12_unknown_bits_are_ignored() -> None:
    with rig(lie=(1 << 128) - 1) as r:
        accepted = [value for what, value, _ in r.device.log if what == "accept"]
        assert accepted == [ALL]
        assert r.device.status == 15


def test_core_drv_11_24_29_without_version_1_the_driver_fails_and_stops() -> None:
    with rig(lie=ALL & ~int(Feature.VERSION_1), probe=False) as r:
        with pytest.raises(NegotiationFailed, match="VERSION_1"):
            r.probe()
        assert r.device.statuses() == [0, 1, 3, 131]
        assert r.device.views == {}
        assert not any(what in {"accept", "queue", "write"} for what, _, _ in r.device.log)


def test_core_drv_11_refused_features_fail_the_driver() -> None:
    class Refusing(SpyDevice):
        def set_status(self, status: int) -> None:
            super().set_status(status & ~Status.FEATURES_OK)

    with rig(probe=False) as r:
        r.device.__class__ = Refusing
        with pytest.raises(NegotiationFailed, match="refused"):
            r.probe()
        assert r.device.status & Status.FAILED
        assert r.device.views == {}


def test_core_drv_14_15_16_18_only_fields_that_exist_are_accessed() -> None:
    with rig() as r:
        r.settle(400)
        r.settle(10)
        assert {value for what, value, _ in r.device.log if what == "read"} == {0}
        assert {value for what, value, _ in r.device.log if what == "write"} == {4}


def test_core_drv_19_20_21_22_the_order_of_initialisation() -> None:
    with rig() as r:
        until(lambda: ("read", 0, 0) in r.device.log)
        # A letter a step; reading the configuration is allowed anywhere.
        letters = {"offer": "o", "accept": "a", "queue": "q", "read": "r", "write": "w"}
        trace = "".join(
            f"<{value}>" if what == "status" else letters[what] for what, value, _ in list(r.device.log)
        )
        assert re.fullmatch(r"<0><1><3>[or]*a<11>[or]*q{3}r*<15>[rw]*", trace), trace
        own = [entry.what for entry in r.driver.trace]
        assert own[:4] == ["status", "status", "status", "features"]


@pytest.mark.parametrize("step", ["accept", "queue"])
def test_core_drv_23_24_a_failing_step_ends_initialisation(step: str) -> None:
    with rig(probe=False) as r:
        r.device.fail_at = step
        with pytest.raises(BalloonError):
            r.probe()
        assert r.device.status & Status.FAILED
        assert not r.device.status & Status.DRIVER_OK
        assert r.device.log[-1][:2] == ("status", r.device.status)
        assert [what for what, _, _ in r.device.log].count(step) == 1


def test_core_drv_25_t_37_no_kick_before_driver_ok(monkeypatch: pytest.MonkeyPatch) -> None:
    kicks: list[int] = []
    with rig(probe=False) as r:
        write = os.eventfd_write

        def spy(fd: int, value: int) -> None:
            if fd in {r.device.kick_fd(queue) for queue in range(3)}:
                kicks.append(r.device.status)
            write(fd, value)

        monkeypatch.setattr(os, "eventfd_write", spy)
        r.probe()
        assert r.ring(STATS).avail_idx == 1
        r.settle(10)
        assert kicks
        assert all(status & Status.DRIVER_OK for status in kicks)
        monkeypatch.undo()


def test_core_drv_26_a_request_in_flight_is_not_changed() -> None:
    with rig() as r:
        r.device.set_target(300)
        pfns = r.request(INFLATE, 1)
        ring = r.ring(INFLATE)
        before = ring.descriptor(ring.avail_slot(0))
        r.device.set_target(100)
        never(lambda: ring.pfns(0) != pfns or ring.descriptor(ring.avail_slot(0)) != before)
        r.settle(100)


def test_core_drv_27_removal_gives_back_then_resets_then_forgets() -> None:
    with rig() as r:
        r.settle(600)
        free = r.pages.free_pages()

        def remove() -> None:
            r.driver.remove()

        task = r.runtime.spawn("R", "remove", remove)
        until(lambda: (r.acknowledge(DEFLATE), task.finished)[1])
        assert task.error is None
        assert r.device.statuses()[-1] == 0
        assert r.device.log[-2] == ("write", 4, 0)
        assert r.pages.free_pages() == free + 600
        assert r.driver.queues == ()
        # Nobody is asked to help in an OOM any more.
        assert r.driver.oom_deflated_pages.value == 0
        with r.runtime.adopted("X", "out of memory"):
            wait = OomWait()
            with r.kernel.oom_lock:
                r.kernel.out_of_memory(fs=False, task=None, wait=wait)
            assert (wait.freed_pages, wait.fruitless) == (0, 1)


# -- the device ----------------------------------------------------------------


class Bare:
    """A device and the steps of a driver, one at a time."""

    def __init__(self, features: int = ALL, pages: int = 256) -> None:
        self.memory = GuestMemory(pages * PAGE_SIZE)
        self.device = BalloonDevice(self.memory, features=features, queue_size_max=16)

    def negotiate(self, features: int) -> int:
        self.device.set_status(0)
        self.device.set_status(1)
        self.device.set_status(3)
        self.device.set_driver_features(features)
        self.device.set_status(11)
        return self.device.status


@pytest.fixture
def bare():
    bare = Bare()
    yield bare
    bare.device.close()
    bare.memory.close()


def test_core_dev_01_10_status_starts_at_zero_and_returns_to_it(bare: Bare) -> None:
    assert bare.device.status == 0
    assert bare.negotiate(ALL) == 11
    bare.device.set_status(15)
    bare.device.set_status(0)
    assert bare.device.status == 0


def test_core_drv_02_core_dev_a_cleared_bit_is_refused(bare: Bare) -> None:
    bare.negotiate(ALL)
    with pytest.raises(CoreError):
        bare.device.set_status(3)
    assert bare.device.status == 11


def test_core_dev_02_nothing_is_taken_before_driver_ok() -> None:
    with rig(probe=False) as r:
        start = r.driver._start
        looked: list[int] = []
        r.driver._start = lambda: (looked.append(r.ring(STATS).used_idx), start())
        set_status = r.device.set_status

        def eager(status: int) -> None:
            if status & Status.DRIVER_OK and r.device.views:
                os.eventfd_write(r.device.kick_fd(STATS), 1)
                assert r.device.process(STATS) == 0
                assert drain(r.device.call_fd(STATS)) == 0
            set_status(status)

        r.device.set_status = eager
        r.probe()
        assert looked == [0]
        # T-37: it is found afterwards.
        assert r.device.process(STATS) == 1
        assert r.device.stats().updates == 1


def test_core_dev_03_04_a_broken_ring_is_announced() -> None:
    with rig() as r:
        r.device.set_target(5)
        r.request(INFLATE, 1)
        drain(r.device.config_fd)
        ring = r.ring(INFLATE)
        r.memory.write(ring.avail + 2, (100).to_bytes(2, "little"))
        assert r.device.process(INFLATE) < 0
        assert r.device.status & Status.NEEDS_RESET
        queue, reason = r.device.broken()
        assert queue == "inflate"
        assert "index" in reason
        # The size worker may have taken the notification already: it was sent all the same.
        assert r.device.counters().config_changes >= 2
        # CORE-DRV-04: the driver waits for an acknowledgement that will not come, and can be stopped.


def test_core_dev_07_16_sets_that_are_not_valid_leave_features_ok_clear(bare: Bare) -> None:
    for features in (ALL & ~int(Feature.VERSION_1), ALL | 1 << 3, ALL | 1 << 34, 1 << 127):
        try:
            assert not bare.negotiate(features) & Status.FEATURES_OK
        except OverflowError:
            assert features >> 64
    assert bare.negotiate(ALL) & Status.FEATURES_OK


def test_core_dev_08_bits_that_are_not_implemented_cannot_be_offered(bare: Bare) -> None:
    known = {0, 1, 2, 28, 29, 32}
    for bit in range(64):
        if bit in known:
            BalloonDevice(bare.memory, features=1 << bit).close()
        else:
            with pytest.raises(InvalidArgument):
                BalloonDevice(bare.memory, features=1 << bit)


def test_core_dev_09_a_set_that_was_taken_is_taken_again(bare: Bare) -> None:
    for features in SUBSETS[::5] * 2:
        assert bare.negotiate(int(features)) == 11


def test_core_dev_11_nothing_moves_after_a_reset() -> None:
    with rig() as r:
        r.settle(20)
        assert drain(r.device.call_fd(INFLATE)) == 1
        r.device.set_target(40)
        r.request(INFLATE, 2)
        ring = r.ring(INFLATE)
        used = ring.used_idx
        r.device.set_status(0)
        assert r.device.process(INFLATE) == 0
        assert ring.used_idx == used
        assert drain(r.device.call_fd(INFLATE)) == 0
        drain(r.device.config_fd)
        r.device.set_target(50)
        assert drain(r.device.config_fd) == 0
        # T-14: what it held is forgotten.
        assert (r.device.actual_pages, r.device.counters().held_pages) == (0, 0)


def test_core_dev_12_configuration_is_readable_before_features_ok(bare: Bare) -> None:
    bare.device.set_target(77)
    assert [bare.device.config_read32(offset) for offset in (0, 4, 8, 12)] == [77, 0, 0, 0]
    for offset in (13, 16, 1 << 31):
        with pytest.raises(CoreError):
            bare.device.config_read32(offset)


def test_core_dev_13_changes_by_the_device_are_announced_those_by_the_driver_are_not(bare: Bare) -> None:
    bare.negotiate(ALL)
    bare.device.set_status(15)
    drain(bare.device.config_fd)
    generation = bare.device.config_generation
    bare.device.set_target(9)
    assert drain(bare.device.config_fd) == 1
    assert bare.device.config_generation != generation
    generation = bare.device.config_generation
    bare.device.config_write32(4, 9)
    assert drain(bare.device.config_fd) == 0
    assert bare.device.config_generation == generation
    assert drain(bare.device.actual_fd) == 1


def test_bal_dev_02_only_actual_is_writable(bare: Bare) -> None:
    bare.device.set_target(5)
    for offset in (0, 8, 12):
        bare.device.config_write32(offset, 0x01020304)
    assert [bare.device.config_read32(offset) for offset in (0, 4, 8, 12)] == [5, 0, 0, 0]
    bare.device.config_write32(4, 0xFFFFFFFF)
    assert bare.device.actual_pages == 0xFFFFFFFF


def test_core_dev_15_version_1_is_always_on_offer() -> None:
    bare = Bare(features=0)
    assert bare.device.features == Feature.VERSION_1
    bare.device.close()
    bare.memory.close()


def test_core_drv_22_features_are_fixed_after_features_ok(bare: Bare) -> None:
    bare.negotiate(ALL)
    with pytest.raises(CoreError):
        bare.device.set_driver_features(ALL)


def test_bal_dev_01_queues_that_were_not_offered_are_not_there(bare: Bare) -> None:
    assert [bare.device.queue_size_max(queue) for queue in range(4)] == [16, 16, 16, 0]
    other = Bare(features=0)
    assert [other.device.queue_size_max(queue) for queue in range(3)] == [16, 16, 0]
    other.device.close()
    other.memory.close()


def test_split_drv_01_misplaced_rings_are_refused(bare: Bare) -> None:
    bare.negotiate(ALL)
    layout = ring_layout(ALL, 16)
    end = bare.memory.size_bytes
    for rings in (
        RingAddresses(8, 4096, 8192),
        RingAddresses(0, 4097, 8192),
        RingAddresses(0, 4096, 8194),
        RingAddresses(end - layout.desc_bytes + 16, 4096, 8192),
        RingAddresses(0, end, 8192),
        RingAddresses(0, 4096, (1 << 64) - 4),
    ):
        with pytest.raises(CoreError):
            bare.device.queue_enable(0, 16, rings)
    bare.device.queue_enable(0, 16, RingAddresses(0, 4096, 8192))
    with pytest.raises(CoreError):
        bare.device.queue_enable(0, 16, RingAddresses(0, 4096, 8192))
