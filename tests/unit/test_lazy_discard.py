"""Memory that is given back after the acknowledgement: what is reported has left, and nothing is lost by it."""

from __future__ import annotations

import random

import pytest

from balloonvq.device import BalloonDevice
from balloonvq.guest.tasks import UserTask
from balloonvq.machine import Machine, MachineConfig
from balloonvq.memory import PAGE_SIZE, GuestMemory

RAM = 64 << 20


def small(**options: object) -> Machine:
    config: dict[str, object] = {"name": "lazy", "ram_bytes": RAM, "used_bytes": 4 << 20, **options}
    return Machine.create(MachineConfig(**config))  # type: ignore[arg-type]


@pytest.mark.parametrize("must_tell_host", [True, False])
@pytest.mark.parametrize("fragmented", [False, True])
def test_bal_dev_06_reached_means_that_the_memory_has_left(must_tell_host: bool, fragmented: bool) -> None:
    with small(must_tell_host=must_tell_host, fragmented=fragmented, seed=5) as machine:
        most = 0
        for pages in (1, 300, 5000, 9001):
            machine.set_target(pages)
            result = machine.wait()
            most = max(most, pages)
            assert result.outcome == "reached"
            assert result.returned_acknowledged_bytes == result.returned_measured_bytes == most * PAGE_SIZE
            assert machine.status().discard_backlog_bytes == 0
        counters = machine.device.counters()
        assert counters.lazy_pages == (9001 if must_tell_host else 0)
        assert counters.discard_pages == 9001


def test_bal_dev_06_programs_lose_nothing() -> None:
    draw = random.Random(17)
    with small(fragmented=True, seed=1) as machine:
        with machine.runtime.adopted("program", "owns memory"):
            programs = [UserTask(machine.kernel, f"program {number}") for number in range(3)]
            for program in programs:
                program.allocate(500)
        for _ in range(40):
            match draw.randrange(5):
                case 0:
                    machine.oom(draw.randrange(1, 24) << 20)
                case 1:
                    machine.compact(200)
                case _:
                    machine.set_target(draw.randrange(10000))
                    if draw.random() < 0.5:
                        machine.wait()
        assert machine.check()["lost_pages"] == 0
        machine.set_target(2000)
        machine.wait()
        counters = machine.status().counters
        assert counters.lost_pages == counters.page_violations == counters.pfns_never_inflated == 0
        assert machine.device.counters().lazy_pages > 0


def test_a_device_that_nobody_uses_has_nothing_to_flush() -> None:
    with GuestMemory(1 << 20) as memory:
        device = BalloonDevice(memory, features=0, owed_max_bytes=1 << 20)
        device.flush()
        device.start()
        device.flush()
        assert device.counters().owed_pages == device.counters().lazy_pages == 0
        device.close()
