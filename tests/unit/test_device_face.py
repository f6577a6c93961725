"""The Python face of the device: counters, faults, the thread, wrong arguments."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator

import pytest
from support.driver_rig import ALL, DEFLATE, INFLATE, STATS, drain, rig
from support.waiting import never, open_descriptors, until

from balloonvq.device import FAULTS, BalloonDevice
from balloonvq.errors import CoreError, InvalidArgument
from balloonvq.features import feature_names, status_names
from balloonvq.memory import PAGE_SIZE, GuestMemory


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    with GuestMemory(64 * PAGE_SIZE) as memory:
        yield memory


def test_a_new_device_knows_nothing(memory: GuestMemory) -> None:
    device = BalloonDevice(memory, features=ALL)
    assert set(dataclasses.astuple(device.counters())) == {0}
    assert device.stats().updates == device.stats().time_ns == 0
    assert device.broken() is None
    assert device.queue_calls(INFLATE) == (0, 0)
    assert device.queue_depth(INFLATE) == 0
    assert device.latency(INFLATE).count == 0
    assert device.latency(STATS) is None
    assert device.cpu_ns == 0
    assert not device.holds(63)
    with pytest.raises(CoreError):
        device.holds(64)
    device.close()
    device.close()


def test_wrong_arguments_are_named(memory: GuestMemory) -> None:
    device = BalloonDevice(memory, features=ALL)
    with pytest.raises(InvalidArgument, match="no fault 'gremlins'"):
        device.set_faults(gremlins=1)
    for value in (-1, 1 << 70, "much"):
        with pytest.raises(InvalidArgument, match="cannot be"):
            device.set_faults(lose_kicks=value)
    for pages in (65, -1, 1 << 40):
        with pytest.raises(InvalidArgument):
            device.set_target(pages)
    for queue in (3, 4, 1 << 20):
        with pytest.raises(CoreError):
            device.kick_fd(queue)
    device.close()
    for size in (0, 3, 65536):
        with pytest.raises(InvalidArgument, match="queues of"):
            BalloonDevice(memory, features=ALL, queue_size_max=size)
    with pytest.raises(InvalidArgument, match="burn"):
        BalloonDevice(memory, features=ALL, discard="burn")


def test_devices_leave_no_descriptor(memory: GuestMemory) -> None:
    before = open_descriptors()
    for _ in range(30):
        device = BalloonDevice(memory, features=ALL)
        device.start()
        device.close()
    assert open_descriptors() == before


def test_every_fault_has_its_effect_and_ends() -> None:
    assert len(FAULTS) == 6
    with rig() as r:
        device = r.device
        device.set_faults(wrong_used_len=1)
        r.settle(5)
        assert r.ring(INFLATE).used_slot(0)[1] == 0xDEADBEEF
        device.set_faults(stall_queues=1 << INFLATE)
        device.set_target(10)
        r.request(INFLATE, 2)
        assert device.process(INFLATE) == 0
        device.set_faults(fail_discards=1)
        r.settle(10)
        assert device.counters().discard_failed == 1
        assert device.counters().held_pages == 10
        drain(device.call_fd(INFLATE))
        device.set_faults(lose_calls=1)
        device.set_target(11)
        r.request(INFLATE, 3)
        device.process(INFLATE)
        never(lambda: device.actual_pages == 11)
        # A driver that lost the interrupt goes on at the next one.
        os.eventfd_write(device.call_fd(INFLATE), 1)
        until(lambda: device.actual_pages == 11)


def test_a_lost_kick_stalls_until_the_next_one() -> None:
    with rig() as r:
        r.device.start()
        until(lambda: r.device.stats().updates)  # the kick of probe is not the one to be lost
        r.device.set_faults(lose_kicks=1)
        r.device.set_target(5)
        r.request(INFLATE, 1)
        never(lambda: r.device.actual_pages)
        os.eventfd_write(r.device.kick_fd(INFLATE), 1)
        until(lambda: r.device.actual_pages == 5)


def test_an_acknowledgement_delay_is_felt_and_does_not_delay_the_end() -> None:
    with rig() as r:
        r.device.start()
        r.device.set_faults(ack_delay_ns=10**12)
        r.device.set_target(5)
        until(lambda: r.device.queue_depth(INFLATE) == 1)
        never(lambda: r.device.actual_pages)
        r.device.set_faults()
        until(lambda: r.device.actual_pages == 5)
        r.device.set_faults(ack_delay_ns=10**12)
        r.device.set_target(0)
        until(lambda: r.device.queue_depth(DEFLATE) == 1)
        # Closing the rig must not take a thousand seconds.


def test_latency_is_measured() -> None:
    with rig() as r:
        r.device.set_faults(ack_delay_ns=3_000_000)
        r.settle(600)
        latency = r.device.latency(INFLATE)
        assert latency.count == 3
        assert 3_000_000 * 0.9 <= latency.p50_ns <= latency.p90_ns <= latency.p999_ns
        assert latency.max_ns >= 3_000_000


def test_names_of_bits() -> None:
    assert feature_names(ALL | 1 << 3 | 1 << 100) == (
        "MUST_TELL_HOST",
        "STATS_VQ",
        "DEFLATE_ON_OOM",
        "bit 3",
        "INDIRECT_DESC",
        "EVENT_IDX",
        "VERSION_1",
        "bit 100",
    )
    assert status_names(0x5F) == ("ACKNOWLEDGE", "DRIVER", "DRIVER_OK", "FEATURES_OK", "bit 4", "NEEDS_RESET")
