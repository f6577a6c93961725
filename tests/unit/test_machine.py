"""The machine: targets, memory pressure, trouble, and the end."""

from __future__ import annotations

import dataclasses
import os
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from support.machines import MIB, running, settle, small
from support.waiting import never, open_descriptors, until

import balloonvq.machine as machine_module
from balloonvq.counters import to_document
from balloonvq.driver.designs import coarse
from balloonvq.errors import (
    BalloonError,
    InvalidArgument,
    MachineStopped,
    NotEnoughMemory,
)
from balloonvq.guest.kernel import NOFS_ROUNDS_MAX
from balloonvq.machine import Machine, MachineConfig
from balloonvq.memory import PAGE_SIZE

SECOND = 1_000_000_000

#: Queues by bit, for stall_queues.
STALL_INFLATE, STALL_DEFLATE, STALL_ALL = 1, 2, 7


# -- targets and figures -------------------------------------------------------


@pytest.mark.parametrize("design", ["modern", "coarse"])
@pytest.mark.parametrize("fragmented", [False, True])
def test_the_balloon_follows_its_target(design: str, fragmented: bool) -> None:
    with running(design=design, fragmented=fragmented, seed=3) as machine:
        total = machine.ram_bytes // PAGE_SIZE
        for pages in (1, 256, 257, 2000, 1999, 0, 1000, 1):
            settle(machine, pages)
            status = machine.status()
            counts = machine.pages.counts()
            assert status.balloon.state == "settled"
            assert status.held_pages == status.actual_pages == status.target_pages == counts.listed == pages
            assert status.returned_acknowledged_bytes == pages * PAGE_SIZE
            assert status.guest_usable_bytes == machine.ram_bytes - pages * PAGE_SIZE
            assert counts.free + counts.kernel + counts.user + counts.listed == total
            assert counts.private == counts.isolated == counts.in_flight == 0
            assert status.counters.inflated_pages - status.counters.deflated_pages == pages
        assert machine.check()["lost_pages"] == 0


def test_measured_bytes_are_blocks_that_left_the_file() -> None:
    with running() as machine:
        assert machine.status().memory_allocated_bytes == machine.ram_bytes
        settle(machine, 1000)
        status = machine.status()
        assert status.returned_measured_bytes == 1000 * PAGE_SIZE
        assert status.memory_allocated_bytes == machine.ram_bytes - 1000 * PAGE_SIZE
        # A deflated page is no memory again before somebody writes it.
        settle(machine, 0)
        status = machine.status()
        assert status.returned_acknowledged_bytes == 0
        assert status.returned_measured_bytes == 1000 * PAGE_SIZE


def test_memory_that_was_never_touched_gives_nothing_back() -> None:
    with running(touch_bytes=0, used_bytes=0) as machine:
        settle(machine, 1000)
        status = machine.status()
        assert status.returned_acknowledged_bytes == 1000 * PAGE_SIZE
        assert status.returned_measured_bytes == 0


def test_failed_discards_are_not_measured_as_returned() -> None:
    with running() as machine:
        machine.set_faults(fail_discards=1000)
        settle(machine, 512)
        status = machine.status()
        assert status.returned_acknowledged_bytes == 512 * PAGE_SIZE
        assert status.returned_measured_bytes == 0
        assert status.counters.discard_failures > 0


def test_the_method_none_gives_nothing_back() -> None:
    with running(discard="none") as machine:
        settle(machine, 512)
        assert machine.status().returned_measured_bytes == 0


@pytest.mark.parametrize("queue_size", [1, 2, 256, 32768])
def test_any_queue_size_works(queue_size: int) -> None:
    with running(queue_size=queue_size) as machine:
        settle(machine, 1500)
        settle(machine, 300)
        assert [queue.size for queue in machine.status().queues] == [queue_size] * 3
        assert machine.statistics().updates >= 2


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("must_tell_host", [False, True])
def test_features_on_offer_are_taken(event_idx: bool, must_tell_host: bool) -> None:
    with running(event_idx=event_idx, must_tell_host=must_tell_host, indirect=False) as machine:
        settle(machine, 700)
        settle(machine, 3)
        status = machine.status()
        assert ("EVENT_IDX" in status.features) is event_idx
        assert ("MUST_TELL_HOST" in status.features) is must_tell_host is status.must_tell_host
        assert "INDIRECT_DESC" not in status.features


def test_a_target_that_does_not_fit_is_refused() -> None:
    with running() as machine:
        for pages in (machine.ram_bytes // PAGE_SIZE + 1, 1 << 32, 1 << 64, -1):
            with pytest.raises(InvalidArgument, match="does not fit the guest"):
                machine.set_target(pages)
        assert machine.target_pages == 0


# -- why the balloon stops short -----------------------------------------------


def test_short_since_the_guest_has_no_free_pages() -> None:
    with running() as machine:
        machine.set_target(machine.ram_bytes // PAGE_SIZE)
        result = machine.wait(20 * SECOND)
        assert (result.outcome, result.reason) == ("short", "guest-has-no-free-pages")
        # What was acknowledged has left, as after a wait that reached its target.
        assert result.returned_measured_bytes >= result.returned_acknowledged_bytes > 0
        status = machine.status()
        assert status.balloon.state == "short"
        # All that could be given is given by then, nothing is on its way.
        assert status.guest_free_bytes == 0
        assert result.actual_bytes == status.actual_bytes == machine.pages.counts().listed * PAGE_SIZE
        # Memory that comes back is taken, without being asked again.
        with machine.runtime.adopted("X", "ends a program"):
            machine._resident.exit()
        until(lambda: machine.pages.counts().user == 0 and machine.pages.counts().free == 0)
        settle(machine, 10)


def test_short_since_the_driver_is_stalled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "STALLED_NS", 80_000_000)
    with running() as machine:
        machine.set_faults(stall_queues=STALL_INFLATE)
        machine.set_target(512)
        result = machine.wait(20 * SECOND)
        assert (result.outcome, result.reason) == ("short", "driver-stalled")
        assert result.actual_bytes == 0
        status = machine.status()
        assert (status.state, status.balloon.state) == ("stalled", "short")
        assert status.balloon.reason == "driver-stalled"
        machine.set_faults()
        assert machine.wait(20 * SECOND).outcome == "reached"
        status = machine.status()
        assert (status.state, status.balloon.state) == ("running", "settled")


def test_a_lost_call_stalls_a_driver_that_sleeps_already(monkeypatch: pytest.MonkeyPatch) -> None:
    """As docs/how-to/faults.md says; one that finds its request done does not need the call."""
    monkeypatch.setattr(machine_module, "STALLED_NS", 500_000_000)
    with running() as machine:
        machine.set_faults(lose_calls=1, ack_delay_ns=100_000_000)
        machine.set_target(256)
        result = machine.wait(20 * SECOND)
        assert (result.outcome, result.reason, result.actual_bytes) == ("short", "driver-stalled", 0)
        status = machine.status()
        assert status.returned_acknowledged_bytes == 256 * PAGE_SIZE
        assert status.counters.interrupts == 0


def test_a_stalled_driver_is_called_so_though_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "STALLED_NS", 500_000_000)
    with running() as machine:
        machine.set_faults(stall_queues=STALL_INFLATE)
        machine.set_target(512)
        status = machine.status()
        assert (status.state, status.balloon.state) == ("running", "moving")
        until(lambda: machine.status().balloon.reason == "driver-stalled")
        assert machine.status().state == "stalled"
        # A new target is a new chance, and time that it was at rest does not count.
        machine.set_target(400)
        assert machine.status().state == "running"
        machine.set_faults()
        assert machine.wait(20 * SECOND).outcome == "reached"
        rested = time.monotonic_ns()
        until(lambda: time.monotonic_ns() - rested > 600_000_000)
        assert machine.status().state == "running"
        machine.set_faults(stall_queues=STALL_DEFLATE)
        machine.set_target(0)
        assert machine.status().state == "running"
        until(lambda: machine.status().state == "stalled")


def test_short_since_the_target_changed() -> None:
    with running() as machine:
        machine.set_faults(stall_queues=STALL_INFLATE)
        machine.set_target(512)
        results: list[Any] = []
        waiter = threading.Thread(target=lambda: results.append(machine.wait(20 * SECOND)))
        waiter.start()
        until(lambda: machine.driver.vb.settled._waiters)
        machine.set_target(400)
        waiter.join(10)
        assert [(result.outcome, result.reason) for result in results] == [("short", "target-changed")]
        assert results[0].target_bytes == 512 * PAGE_SIZE
        machine.set_faults()
        assert machine.wait(20 * SECOND).outcome == "reached"


def test_short_since_oom_deflated_it() -> None:
    with running() as machine:
        settle(machine, 2000)
        report = machine.oom()
        assert report.outcome == "relieved"
        # The worker does not fill again until the host asks for something.
        result = machine.wait(20 * SECOND)
        assert (result.outcome, result.reason) == ("short", "deflated-by-oom")
        assert machine.status().balloon.reason == "deflated-by-oom"


def scribble(machine: Machine) -> None:
    """Makes the driver's available index nonsense, as a guest gone wild would, and kicks."""
    queue = machine.driver.queues[0]
    address = AVAIL[0] + 2
    index = int.from_bytes(machine.memory.read(address, 2), "little")
    machine.memory.write(address, ((index + queue.size + 1) & 0xFFFF).to_bytes(2, "little"))
    os.eventfd_write(queue.kick_fd, 1)


AVAIL: list[int] = []


@pytest.fixture
def avail(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Where the available rings of the machine made next lie."""
    AVAIL.clear()
    enable = machine_module.BalloonDevice.queue_enable

    def noting(self: Any, queue: int, size: int, rings: Any) -> None:
        AVAIL.append(rings.driver)
        enable(self, queue, size, rings)

    monkeypatch.setattr(machine_module.BalloonDevice, "queue_enable", noting)
    return AVAIL


def test_short_since_the_device_is_broken(avail: list[int]) -> None:
    with running() as machine:
        settle(machine, 100)
        scribble(machine)
        until(lambda: machine.state == "broken")
        status = machine.status()
        assert "NEEDS_RESET" in status.device_status
        assert status.trouble is not None
        assert "inflate queue" in status.trouble
        assert status.balloon.reason == "device-broken"
        machine.set_target(200)
        result = machine.wait(20 * SECOND)
        assert (result.outcome, result.reason) == ("short", "device-broken")


def test_regression_a_worker_that_starts_under_the_look_counts_as_busy() -> None:
    # It sees the new target between two looks, and is at work at the second.
    class Driver:
        seen_target = 1
        looks = 0

        @property
        def resizing(self) -> bool:
            self.looks += 1
            started, self.seen_target = self.seen_target == 2, 2
            return started

    class Device:
        target_pages = 2

    class Looking:
        driver, device = Driver(), Device()

    assert Machine._driver_busy(Looking())


def test_a_wait_ends_at_its_time_limit_and_when_it_is_abandoned() -> None:
    with running() as machine:
        machine.set_faults(stall_queues=STALL_ALL)
        machine.set_target(100)
        started = time.monotonic()
        assert machine.wait(30_000_000).outcome == "timeout"
        assert machine.wait(0).outcome == "timeout"
        assert machine.wait(None, lambda: True).outcome == "timeout"
        assert time.monotonic() - started < 5
        machine.set_faults()
        assert machine.wait(20 * SECOND).outcome == "reached"


# -- out of memory -------------------------------------------------------------


@pytest.mark.parametrize("design", ["modern", "coarse"])
def test_oom_is_relieved_by_the_balloon(design: str) -> None:
    with running(design=design) as machine:
        settle(machine, 2000)
        report = machine.oom()
        assert report.outcome == "relieved"
        assert report.allocated_bytes == report.requested_bytes
        assert report.rounds == -(-1000 // 256)
        assert report.balloon_pages == report.rounds * 256
        assert report.waited_ns >= report.longest_wait_ns > 0
        assert report.lost_pages == 0
        status = machine.status()
        assert status.counters.oom_events == report.rounds
        assert status.counters.oom_kills == 0
        assert status.counters.oom_deflated_pages == report.balloon_pages
        assert status.actual_pages == 2000 - report.balloon_pages == status.held_pages


def test_oom_kills_without_deflate_on_oom() -> None:
    with running(deflate_on_oom=False) as machine:
        settle(machine, 2000)
        report = machine.oom()
        assert (report.outcome, report.killed) == ("killed", "hog")
        assert report.balloon_pages == 0
        status = machine.status()
        assert status.counters.oom_kills == 1
        assert status.actual_pages == 2000
        assert [task.name for task in machine.kernel.tasks] == ["resident"]


def test_oom_kills_the_biggest_program() -> None:
    with running(used_bytes=10 * MIB) as machine:
        report = machine.oom(6 * MIB)
        assert (report.outcome, report.killed) == ("killed", "resident")
        assert report.allocated_bytes == report.requested_bytes


def test_oom_that_fits() -> None:
    with running() as machine:
        report = machine.oom(MIB + 1)
        assert report.outcome == "fitted"
        assert report.requested_bytes == report.allocated_bytes == MIB + PAGE_SIZE
        assert report.rounds == 0
        assert machine.pages.counts().user * PAGE_SIZE == machine.ram_bytes // 20 // PAGE_SIZE * PAGE_SIZE


def test_oom_without_fs_cannot_kill() -> None:
    with running() as machine:
        report = machine.oom(gfp_fs=False)
        assert report.outcome == "livelocked"
        assert report.rounds == NOFS_ROUNDS_MAX
        assert machine.status().counters.oom_kills == 0
        settle(machine, 1000)
        assert machine.oom(gfp_fs=False).outcome == "relieved"


@pytest.mark.parametrize("clock", ["real", "virtual"])
def test_while_filling_modern_is_relieved(clock: str) -> None:
    with running(clock=clock) as machine:
        for _ in range(3):
            report = machine.oom(while_filling=True)
            assert report.outcome == "relieved"
            assert report.while_filling
            assert not report.gfp_fs
            assert report.balloon_pages >= 1024
            assert machine.target_pages == 0
            assert machine.wait(20 * SECOND).outcome == "reached"


@pytest.mark.parametrize("clock", ["real", "virtual"])
def test_while_filling_coarse_deadlocks_and_can_be_stopped(clock: str) -> None:
    events: list[str] = []
    with running(design="coarse", clock=clock) as machine:
        machine.subscribe(lambda event, _data: events.append(event))
        started = time.monotonic()
        report = machine.oom(while_filling=True)
        assert time.monotonic() - started < 10
        assert report.outcome == "deadlocked"
        deadlock = report.deadlock
        assert deadlock is not None
        assert deadlock.design == "coarse"
        worker, caller = sorted(deadlock.tasks, key=lambda task: task.task, reverse=True)
        assert (worker.task, worker.role, worker.wants, worker.owner) == ("W", "size worker", "fs_lock", "O")
        assert [lock.name for lock in worker.holds] == ["balloon_lock"]
        assert (caller.task, caller.wants, caller.owner) == ("O", "balloon_lock", "W")
        assert [lock.name for lock in caller.holds] == ["fs_lock", "oom_lock"]
        assert any(re.search(r"coarse\.py:\d+ in Coarse\.fill$", frame) for frame in worker.stack)
        assert any(re.search(r"coarse\.py:\d+ in Coarse\.leak$", frame) for frame in caller.stack)
        lines = Path(coarse.__file__).read_text().splitlines()
        for where in (worker.holds[0].where, caller.wants_where):
            file, _, line = where.partition(":")
            assert file == "coarse.py"
            assert "balloon_lock" in lines[int(line) - 1]
        status = machine.status()
        assert status.state == "deadlocked"
        assert status.balloon.reason == "deadlocked"
        assert status.trouble is not None
        assert "W" in status.trouble
        assert machine.deadlock() == deadlock
        assert events.count("X_DEADLOCK") == 1
        assert machine.wait(SECOND).reason == "deadlocked"
        # A bystander that runs into the circle hangs too, but nothing else does.
        assert machine.oom(20 * MIB).outcome == "deadlocked"
        assert machine.status().state == "deadlocked"


def test_one_oom_at_a_time_whoever_asks() -> None:
    with running() as machine:
        settle(machine, 2000)
        reports: list[Any] = []
        threads = [threading.Thread(target=lambda: reports.append(machine.oom())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(reports) == 4
        assert {report.outcome for report in reports} <= {"relieved", "killed"}
        assert machine.pages.counts().user <= 2000


# -- compaction ----------------------------------------------------------------


@pytest.mark.parametrize("design", ["modern", "coarse"])
def test_compaction_moves_balloon_pages(design: str) -> None:
    with running(design=design) as machine:
        settle(machine, 300)
        before = {pfn for pfn in range(machine.ram_bytes // PAGE_SIZE) if machine.device.holds(pfn)}
        report = machine.compact(200)
        assert (report.isolated, report.migrated, report.refused, report.no_page) == (200, 200, 0, 0)
        after = {pfn for pfn in range(machine.ram_bytes // PAGE_SIZE) if machine.device.holds(pfn)}
        assert len(after) == 300
        assert len(after - before) > 0
        status = machine.status()
        assert status.counters.migrated_pages == 200
        assert status.actual_pages == status.held_pages == 300
        counts = machine.pages.counts()
        assert (counts.listed, counts.isolated, counts.private, counts.in_flight) == (300, 0, 0, 0)
        settle(machine, 0)
        assert machine.compact().isolated == 0


def test_compaction_is_refused_while_the_balloon_lock_is_held() -> None:
    with running() as machine:
        settle(machine, 50)
        with machine.runtime.adopted("L", "lock holder"):
            locked, unlock = threading.Event(), threading.Event()

            def hold() -> None:
                with machine.driver.design.balloon_lock:
                    locked.set()
                    unlock.wait()

            machine.runtime.spawn("H", "holder", hold)
            assert locked.wait(10)
        report = machine.compact(20)
        unlock.set()
        until(lambda: machine.driver.design.balloon_lock.owner is None)
        assert (report.isolated, report.migrated, report.refused) == (20, 0, 20)
        assert machine.status().counters.migrations_refused == 20
        assert machine.pages.counts().listed == 50
        assert machine.compact(20).migrated == 20


def test_compaction_without_a_free_page_puts_back() -> None:
    with running() as machine:
        machine.set_target(machine.ram_bytes // PAGE_SIZE)
        machine.wait(20 * SECOND)
        until(lambda: machine.pages.free_pages() == 0)
        report = machine.compact()
        assert (report.isolated, report.no_page, report.migrated) == (1, 1, 0)
        assert machine.pages.counts().isolated == 0


def test_compaction_beside_inflation_deflation_and_oom() -> None:
    with running(fragmented=True, seed=9) as machine:
        over = threading.Event()
        failures: list[BaseException] = []

        def compacting() -> None:
            try:
                while not over.is_set():
                    machine.compact(50)
            except BaseException as error:  # noqa: BLE001
                failures.append(error)

        thread = threading.Thread(target=compacting)
        thread.start()
        for pages in (2000, 100, 3000, 0, 1500):
            machine.set_target(pages)
            assert machine.wait(20 * SECOND).outcome == "reached"
        machine.oom()
        over.set()
        thread.join(20)
        assert failures == []
        counts = machine.pages.counts()
        assert counts.isolated == counts.private == counts.in_flight == 0
        status = machine.status()
        assert status.actual_pages == status.held_pages == counts.listed
        assert machine.check()["lost_pages"] == 0
        assert status.counters.pfns_duplicate == status.counters.pfns_never_inflated == 0


# -- statistics ----------------------------------------------------------------


def test_statistics_are_fresh() -> None:
    with running() as machine:
        settle(machine, 1000)
        report = machine.statistics()
        assert report.last_update is not None
        assert report.stats["stat-total-memory"] == machine.ram_bytes
        assert report.stats["stat-free-memory"] == machine.status().guest_free_bytes
        settle(machine, 2000)
        again = machine.statistics()
        assert again.updates > report.updates
        assert again.stats["stat-free-memory"] == report.stats["stat-free-memory"] - 1000 * PAGE_SIZE
        assert machine.statistics(refresh=False) == again


def test_regression_toggling_the_polling_interval_leaves_one_poller() -> None:
    with running(stats_interval=1000) as machine:
        for _ in range(5):
            machine.stats_polling_interval = 0
            machine.stats_polling_interval = 1000
        until(lambda: sum(task.name == "P" for task in machine.runtime._tasks) == 1)
        machine.stats_polling_interval = 0
        until(lambda: not any(task.name == "P" for task in machine.runtime._tasks))
        with pytest.raises(InvalidArgument):
            machine.stats_polling_interval = -1


# -- lost data and trouble -----------------------------------------------------


def test_lost_data_is_found() -> None:
    machine = small()
    resident = machine._resident
    assert resident is not None
    batch = resident._batches[0]
    machine.memory.write(batch.pfns[3] * PAGE_SIZE, bytes(PAGE_SIZE))
    machine.memory.write(batch.pfns[7] * PAGE_SIZE + 512, b"x")
    assert machine.check() == {"checked_pages": resident.pages, "lost_pages": 2}
    assert machine.stop() == 2


def test_a_crash_of_a_guest_task_is_the_machines_trouble() -> None:
    with running() as machine:
        events: list[tuple[str, dict[str, Any]]] = []
        machine.subscribe(lambda event, data: events.append((event, data)))

        def crash() -> None:
            raise ValueError("oops")

        machine.runtime.spawn("X", "crashes", crash)
        until(lambda: machine.trouble)
        assert machine.state == "bug"
        trouble = machine.status().trouble or ""
        assert re.fullmatch(r"task X ended with ValueError at test_machine\.py:\d+ in .*crash: oops", trouble)
        assert [name for name, _ in events] == ["X_TROUBLE"]
        assert events[0][1]["error"]["error"] == "InternalError"


def test_balloon_change_events_end_with_the_last_value() -> None:
    with running() as machine:
        seen: list[int] = []
        unsubscribe = machine.subscribe(lambda _event, data: seen.append(data["actual"]))
        settle(machine, 3000)
        until(lambda: seen and seen[-1] == machine.ram_bytes - 3000 * PAGE_SIZE)
        assert len(seen) <= 12
        unsubscribe()
        unsubscribe()
        count = len(seen)
        settle(machine, 0)
        never(lambda: len(seen) != count, 0.1)


# -- equal seeds ---------------------------------------------------------------


def timeless(document: Any) -> Any:
    """A document without what differs from run to run by right.

    Those are times and the process, and how many notifications were suppressed: the device is a
    thread of its own, whatever the guest's clock.
    """
    if isinstance(document, dict):
        dropped = {"pid", "time", "uptime_ns", "monotonic_ns", "latency", "last_update"}
        dropped |= {"kicks", "kicks_suppressed", "interrupts", "interrupts_suppressed"}
        return {key: timeless(value) for key, value in document.items() if key not in dropped}
    return [timeless(value) for value in document] if isinstance(document, list | tuple) else document


def test_equal_seeds_give_equal_documents_under_the_virtual_clock() -> None:
    def story() -> list[Any]:
        documents = []
        with running(clock="virtual", fragmented=True, seed=42) as machine:
            for pages in (2000, 500, 2500):
                machine.set_target(pages)
                documents.append(machine.wait())
            documents += [machine.compact(100), machine.oom(), machine.wait(), machine.statistics()]
            machine.sleep(SECOND)
            documents.append(machine.status())
        return [timeless(to_document(document)) for document in documents]

    first, second = story(), story()
    for one, other in zip(first, second, strict=True):
        assert one == other


def test_virtual_sleep_costs_no_time() -> None:
    with running(clock="virtual") as machine:
        started = time.monotonic()
        machine.sleep(1000 * SECOND)
        assert machine.runtime.now_ns() >= 1000 * SECOND
        assert time.monotonic() - started < 5


# -- configurations that cannot work -------------------------------------------


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"ram_bytes": 0}, InvalidArgument, "cannot have 0 bytes"),
        ({"ram_bytes": -PAGE_SIZE}, InvalidArgument, "cannot have -4096 bytes"),
        ({"ram_bytes": 16 * MIB + 1}, InvalidArgument, "cannot have 16777217 bytes"),
        ({"ram_bytes": PAGE_SIZE}, InvalidArgument, "too small"),
        ({"ram_bytes": 1 << 50}, NotEnoughMemory, "cannot back a guest of 1 PiB"),
        ({"queue_size": 0}, InvalidArgument, "0 descriptors"),
        ({"queue_size": 100}, InvalidArgument, "100 descriptors"),
        ({"queue_size": 65536}, InvalidArgument, "65536 descriptors"),
        ({"queue_size": -1}, InvalidArgument, "-1 descriptors"),
        ({"queue_size": 1 << 40}, InvalidArgument, "descriptors"),
        ({"design": "modren"}, InvalidArgument, "no locking design 'modren'"),
        ({"touch_bytes": -1}, InvalidArgument, "touch cannot be -1"),
        ({"touch_bytes": 17 * MIB}, InvalidArgument, "touch cannot be"),
        ({"used_bytes": 17 * MIB}, InvalidArgument, "used cannot be"),
        ({"used_bytes": 16 * MIB}, InvalidArgument, "a program cannot own"),
        ({"stats_interval": -1}, InvalidArgument, "negative"),
        ({"discard": "burn"}, InvalidArgument, "burn"),
        ({"clock": "sundial"}, InvalidArgument, "sundial"),
        ({"seed": -1}, InvalidArgument, "-1"),
        ({"seed": 1 << 64}, InvalidArgument, "18446744073709551616"),
    ],
)
def test_wrong_configurations_explain_themselves_and_leave_nothing(
    options: dict[str, Any], kind: type[BalloonError], words: str
) -> None:
    descriptors, threads = open_descriptors(), threading.active_count()
    with pytest.raises(BalloonError) as caught:
        small(**options)
    assert type(caught.value) is kind
    assert words in caught.value.what
    assert caught.value.why
    assert open_descriptors() == descriptors
    assert threading.active_count() == threads


def test_the_smallest_guest_that_is_hinted_works() -> None:
    with pytest.raises(InvalidArgument) as caught:
        small(ram_bytes=MIB)
    match = re.fullmatch(r"--ram (\d+)M", caught.value.hint)
    assert match is not None
    with running(ram_bytes=int(match[1]) * MIB) as machine:
        settle(machine, 50)


# -- the end -------------------------------------------------------------------


def test_a_failure_half_way_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    descriptors, threads = open_descriptors(), threading.active_count()
    for owner, name in (
        (machine_module.PageAllocator, "__init__"),
        (machine_module.BalloonDevice, "__init__"),
        (machine_module.BalloonDevice, "start"),
        (machine_module.BalloonDevice, "queue_enable"),
        (machine_module.BalloonDriver, "_start"),
        (machine_module.UserTask, "allocate"),
        (machine_module.Machine, "_pump_events"),
    ):
        with monkeypatch.context() as patch:

            def fail(*_args: object, **_options: object) -> None:
                raise InvalidArgument("does not work", why="the test says so")

            if name == "_pump_events":
                patch.setattr(threading.Thread, "start", fail)
            else:
                patch.setattr(owner, name, fail)
            with pytest.raises(InvalidArgument, match="does not work"):
                small()
        assert open_descriptors() == descriptors, name
        until(lambda: threading.active_count() == threads, name)


def test_an_interrupt_while_memory_is_touched_leaves_nothing() -> None:
    descriptors = open_descriptors()

    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Machine.create(MachineConfig(ram_bytes=16 * MIB), interrupt)
    assert open_descriptors() == descriptors


def test_progress_of_touching_ends_with_all_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine_module, "TOUCH_STEP", 3 * MIB)
    reports: list[tuple[int, int]] = []
    Machine.create(MachineConfig(ram_bytes=16 * MIB), lambda *report: reports.append(report)).stop()
    assert reports == [(done * MIB, 16 * MIB) for done in (3, 6, 9, 12, 15, 16)]


def resident_kib() -> int:
    text = Path("/proc/self/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+) kB", text)[1])


def test_machines_leave_nothing_behind() -> None:
    small(ram_bytes=4 * MIB).stop()
    descriptors, threads = open_descriptors(), threading.active_count()
    memory = 0
    for number in range(100):
        machine = small(ram_bytes=4 * MIB, touch_bytes=MIB)
        machine.set_target(100)
        if number % 3 == 0:
            machine.wait(20 * SECOND)
        if number % 5 == 0:
            machine.oom(MIB)
        machine.stop()
        if number == 20:
            memory = resident_kib()
    assert open_descriptors() == descriptors
    assert threading.active_count() == threads
    assert resident_kib() - memory < 8 << 10


def test_stopping_twice_is_harmless_and_everything_says_so() -> None:
    machine = small()
    assert machine.stop() == 0
    assert machine.stop() == 0
    for use in (
        machine.wait,
        machine.oom,
        machine.compact,
        machine.check,
        machine.status,
        machine.statistics,
        lambda: machine.sleep(1),
    ):
        with pytest.raises(MachineStopped, match="machine test has ended"):
            use()


@pytest.mark.parametrize("clock", ["real", "virtual"])
def test_stop_in_the_middle_of_an_inflation(clock: str) -> None:
    for delay in range(8):
        machine = small(clock=clock, touch_bytes=0)
        machine.set_faults(ack_delay_ns=200_000)
        machine.set_target(3000)
        until(lambda machine=machine, delay=delay: machine.device.counters().requests >= delay)
        machine.stop()


def test_regression_stop_during_waits_of_other_threads() -> None:
    # A waiter must be out of the machine before its memory goes.
    for _ in range(15):
        machine = small(touch_bytes=0)
        machine.set_faults(stall_queues=STALL_ALL)
        machine.set_target(1000)
        ended: list[BaseException | None] = []

        def use(what: Any, ended: list[BaseException | None] = ended) -> None:
            try:
                what()
                ended.append(None)
            except BaseException as error:  # noqa: BLE001
                ended.append(error)  # noqa: B023

        def looking(machine: Machine = machine) -> None:
            while True:
                machine.status()
                machine.statistics(refresh=False)

        threads = [
            threading.Thread(target=use, args=(what,))
            for what in (machine.wait, lambda machine=machine: machine.sleep(1000 * SECOND), looking, looking)
        ]
        for thread in threads:
            thread.start()
        until(lambda machine=machine: machine.driver.vb.settled._waiters)
        machine.stop()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        assert [type(error) for error in ended] == [MachineStopped] * 4, ended


def test_stop_during_oom_of_another_thread() -> None:
    machine = small()
    settle(machine, 2000)
    machine.set_faults(stall_queues=STALL_DEFLATE)
    ended: list[BaseException] = []

    def use() -> None:
        try:
            machine.oom()
        except BaseException as error:  # noqa: BLE001
            ended.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    until(lambda: machine.kernel.oom_events.value)
    machine.stop()
    thread.join(10)
    assert [type(error) for error in ended] == [MachineStopped]


def test_asking_for_the_end() -> None:
    with running() as machine:
        assert not machine.wait_quit(0)
        machine.request_quit()
        assert machine.wait_quit(0)


def test_configurations_are_values() -> None:
    config = MachineConfig(name="a")
    assert dataclasses.replace(config, name="b").name == "b"
    assert config == MachineConfig(name="a")


def test_regression_the_same_target_again_refills_a_balloon_that_oom_deflated() -> None:
    with Machine.create(MachineConfig(ram_bytes=32 << 20, used_bytes=0)) as machine:
        machine.set_target(2048)
        machine.wait()
        assert machine.oom().outcome == "relieved"
        assert machine.wait().reason == "deflated-by-oom"
        machine.set_target(2048)
        assert machine.wait().outcome == "reached"


def test_regression_the_time_of_an_inflate_counts_from_the_target() -> None:
    # Counted from the wait, an inflate that was over by then ran at hundreds of GiB/s.
    with Machine.create(MachineConfig(ram_bytes=32 << 20, used_bytes=0)) as machine:
        before = time.monotonic_ns()
        machine.set_target(2048)
        until(lambda: machine.actual_pages == 2048)
        elapsed = machine.wait().elapsed_ns
        assert 0 < elapsed <= time.monotonic_ns() - before
        assert elapsed >= 8 * 1000  # eight requests take longer than a microsecond each


def test_regression_compaction_ends_with_the_pages_that_there_are() -> None:
    # It isolated the pages that it had just put on the list, for as long as it was asked to.
    with Machine.create(MachineConfig(ram_bytes=32 << 20, used_bytes=0)) as machine:
        machine.set_target(100)
        machine.wait()
        assert machine.compact(10**9).isolated == 100


def test_a_killed_program_is_reported_with_what_it_had() -> None:
    config = MachineConfig(ram_bytes=32 << 20, used_bytes=0, deflate_on_oom=False)
    with Machine.create(config) as machine:
        free = machine.pages.free_pages()
        report = machine.oom()
        assert report.outcome == "killed"
        assert report.allocated_bytes == free * PAGE_SIZE
