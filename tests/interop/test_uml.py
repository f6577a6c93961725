"""A real Linux kernel on our device: User Mode Linux 6.1 and its own virtio_balloon.

One guest serves most tests; each leaves it with an empty balloon. What the guest says of itself comes
from its /proc, over its console.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
from support.waiting import open_descriptors, until

from balloonvq.bench.uml import GuestError, UserModeLinux
from balloonvq.memory import PAGE_SIZE
from balloonvq.vhost_machine import VhostConfig, VhostMachine

#: They measure, and load the machine: never beside other tests.
pytestmark = pytest.mark.stress

MIB = 256  # pages
MODULE = "/virtio_balloon.ko"


def machine_at(path, **options) -> VhostMachine:
    return VhostMachine(VhostConfig(socket=str(path), **options))


@pytest.fixture(scope="module")
def machine(tmp_path_factory) -> Iterator[VhostMachine]:
    before = open_descriptors()
    with machine_at(tmp_path_factory.mktemp("uml") / "s") as machine:
        yield machine
    assert open_descriptors() <= before


@pytest.fixture(scope="module")
def guest(machine) -> Iterator[UserModeLinux]:
    with UserModeLinux(machine.config.socket) as guest:
        guest.run(f"insmod {MODULE}")
        until(lambda: machine.state == "running")
        yield guest
    until(lambda: machine.state == "waiting")


@pytest.fixture(autouse=True)
def empty(request) -> Iterator[None]:
    yield
    if "guest" in request.fixturenames:
        resize(request.getfixturevalue("machine"), 0)


def resize(machine: VhostMachine, pages: int) -> None:
    machine.set_target(pages)
    result = machine.wait(30_000_000_000)
    assert (result.outcome, result.actual_bytes) == ("reached", pages * PAGE_SIZE)


def free_pages(guest: UserModeLinux) -> int:
    """Pages that nobody owns: MemFree, and those that the processor keeps at hand.

    The kernel takes pages off the free list in batches, so MemFree alone moves in steps.
    """
    text = guest.run("cat /proc/zoneinfo")
    free = at_hand = 0
    for line in text.splitlines():
        words = line.split()
        if words[:1] == ["nr_free_pages"]:
            free += int(words[1])
        elif words[:1] == ["count:"]:
            at_hand += int(words[1])
    return free + at_hand


def dirty(guest: UserModeLinux, keep_mib: int = 12) -> None:
    """Lets the guest write nearly all memory that it has free, and give it up again."""
    size = (guest.meminfo()["MemFree"] >> 20) - keep_mib
    guest.run("mount -o remount,size=100% /tmp")
    guest.run(f"dd if=/dev/zero of=/tmp/all bs=1M count={size} 2>&1; rm /tmp/all")


# ---- probing and statistics -------------------------------------------------


def test_the_driver_probes_and_negotiates(machine, guest) -> None:
    status = machine.status()
    assert status.features == (
        "MUST_TELL_HOST",
        "STATS_VQ",
        "DEFLATE_ON_OOM",
        "INDIRECT_DESC",
        "EVENT_IDX",
        "VERSION_1",
    )
    assert status.device_status == ("ACKNOWLEDGE", "DRIVER", "DRIVER_OK", "FEATURES_OK")
    assert [(queue.name, queue.size) for queue in status.queues] == [
        ("inflate", 256),
        ("deflate", 256),
        ("stats", 256),
    ]
    # T-45: the guest never sees bit 30, which vhost-user uses for itself. Linux shows bit 0 first.
    features = guest.run("cat /sys/bus/virtio/devices/virtio0/features").strip()
    assert {bit for bit, value in enumerate(features) if value == "1"} == {0, 1, 2, 28, 29, 32}
    assert guest.run("readlink /sys/bus/virtio/devices/virtio0/driver").strip().endswith("/virtio_balloon")
    assert 0 < status.ram_bytes <= 256 << 20
    assert (status.design, status.guest_free_bytes, status.counters.oom_kills) == (None, None, None)


def test_statistics_agree_with_proc(machine, guest) -> None:
    for _ in range(5):
        before, faults_before = guest.meminfo(), guest.vmstat()["pgfault"]
        stats = machine.statistics().stats
        after, faults_after = guest.meminfo(), guest.vmstat()["pgfault"]
        # The guest forks to tell us, so numbers that moved meanwhile lie between the two looks.
        for name, field in (
            ("stat-free-memory", "MemFree"),
            ("stat-total-memory", "MemTotal"),
            ("stat-available-memory", "MemAvailable"),
        ):
            low, high = sorted((before[field], after[field]))
            assert low - 64 * PAGE_SIZE <= stats[name] <= high + 64 * PAGE_SIZE
        assert stats["stat-total-memory"] == before["MemTotal"]
        assert faults_before <= stats["stat-minor-faults"] <= faults_after
    assert machine.status().counters.stats_updates >= 5


def test_statistics_are_asked_for_regularly(machine, guest) -> None:
    before = machine.statistics(refresh=False).updates
    machine.stats_polling_interval = 1
    until(lambda: machine.statistics(refresh=False).updates >= before + 2)
    machine.stats_polling_interval = 0


# ---- sizes ------------------------------------------------------------------


def test_every_page_asked_for_and_no_other(machine, guest) -> None:
    resize(machine, 1000)
    resize(machine, 0)  # the caches of the first time are warm
    counters = guest.vmstat()
    start = inflated = deflated = 0
    for pages in (1, 257, 256, 4096, 20000, 19999, 3, 5000, 0):
        free = free_pages(guest)
        resize(machine, pages)
        moved = free - free_pages(guest)
        inflated += max(0, pages - start)
        deflated += max(0, start - pages)
        now = guest.vmstat()
        assert now["balloon_inflate"] - counters["balloon_inflate"] == inflated
        assert now["balloon_deflate"] - counters["balloon_deflate"] == deflated
        # Nothing but the balloon takes pages, except for a slab or a page table now and then.
        assert abs(moved - (pages - start)) <= 16, f"{start} -> {pages}: {moved}"
        assert machine.status().held_pages == machine.actual_pages == pages
        start = pages


def test_blocks_leave_the_file_once_the_guest_dirtied_them(machine, guest) -> None:
    dirty(guest)
    before = machine.status()
    resize(machine, 64 * MIB)
    after = machine.status()
    gone = (before.memory_allocated_bytes - after.memory_allocated_bytes) // PAGE_SIZE
    assert after.returned_acknowledged_bytes == 64 * MIB * PAGE_SIZE
    assert after.returned_measured_bytes >= gone * PAGE_SIZE
    # All of them, but for pages that the guest had never written, and those that it wrote meanwhile.
    never_written = (before.ram_bytes - before.memory_allocated_bytes) // PAGE_SIZE
    assert never_written < 24 * MIB
    assert 64 * MIB - never_written - 64 <= gone <= 64 * MIB
    resize(machine, 0)
    guest.run("dd if=/dev/urandom of=/tmp/new bs=1M count=100 2>&1; rm /tmp/new")
    assert machine.status().memory_allocated_bytes > after.memory_allocated_bytes


def test_a_guest_without_free_pages_stops_short_and_goes_on(machine, guest) -> None:
    resize(machine, 100 * MIB)
    free = guest.meminfo()["MemFree"]
    guest.run(f"dd if=/dev/urandom of=/tmp/full bs=1M count={(free >> 20) - 30} 2>&1")
    machine.set_target(machine.ram_bytes // PAGE_SIZE - 20 * MIB)
    result = machine.wait(60_000_000_000)
    assert (result.outcome, result.reason) == ("short", "driver-stalled")
    guest.run("rm /tmp/full")
    actual = machine.actual_pages
    until(lambda: machine.actual_pages > actual)


# ---- out of memory ----------------------------------------------------------


def test_out_of_memory_takes_from_the_balloon(machine, guest) -> None:
    resize(machine, 128 * MIB)
    free = guest.meminfo()["MemFree"]
    need = (free >> 20) + 40
    kills = guest.vmstat()["oom_kill"]
    _, status = guest.run_for_status(f"dd if=/dev/zero of=/dev/null bs={need}M count=1 2>&1")
    assert status == 0
    assert guest.vmstat()["oom_kill"] == kills
    assert machine.actual_pages <= 128 * MIB - 20 * MIB
    until(lambda: machine.status().balloon.reason == "deflated-by-oom")
    assert machine.status().held_pages == machine.actual_pages


def test_without_the_bit_the_program_is_killed(tmp_path) -> None:
    with (
        machine_at(tmp_path / "s", deflate_on_oom=False) as machine,
        UserModeLinux(machine.config.socket) as guest,
    ):
        guest.run(f"insmod {MODULE}")
        until(lambda: machine.state == "running")
        total = guest.meminfo()["MemTotal"]
        resize(machine, 128 * MIB)
        # Without the bit the pages do not even count as the guest's.
        assert guest.meminfo()["MemTotal"] == total - 128 * MIB * PAGE_SIZE
        need = (guest.meminfo()["MemFree"] >> 20) + 40
        _, status = guest.run_for_status(f"dd if=/dev/zero of=/dev/null bs={need}M count=1 2>&1")
        assert status == 128 + signal.SIGKILL
        assert guest.vmstat()["oom_kill"] == 1
        assert machine.actual_pages == 128 * MIB


# ---- data -------------------------------------------------------------------


def test_guest_data_survives_a_thousand_steps(machine, guest) -> None:
    guest.run("dd if=/dev/urandom of=/tmp/data bs=1M count=48 2>&1")
    before = guest.run("md5sum /tmp/data")
    rng = random.Random(9)
    for _ in range(1000):
        pages = rng.choice(
            [rng.randrange(80 * MIB), rng.randrange(2000), machine.actual_pages + rng.randrange(300)]
        )
        machine.set_target(pages)
        if rng.random() < 0.7:  # the others are overtaken by the next one
            result = machine.wait(30_000_000_000)
            assert result.outcome == "reached", result
    resize(machine, 100 * MIB)
    assert guest.run("md5sum /tmp/data") == before
    resize(machine, 0)
    assert guest.run("md5sum /tmp/data; rm /tmp/data") == before
    counters = machine.status().counters
    assert (counters.pfns_duplicate, counters.pfns_never_inflated, counters.pfns_out_of_range) == (0, 0, 0)


# ---- life and death ---------------------------------------------------------


def test_module_is_unloaded_and_loaded_again(machine, guest) -> None:
    for _ in range(3):
        resize(machine, 8 * MIB)
        guest.run("rmmod virtio_balloon")
        # The driver gives everything back on its way out.
        assert (machine.actual_pages, machine.status().held_pages, machine.state) == (0, 0, "waiting")
        counters = guest.vmstat()
        assert counters["balloon_inflate"] == counters["balloon_deflate"]
        guest.run(f"insmod {MODULE}")
        until(lambda: machine.actual_pages == 8 * MIB)  # the host's wish is still there
        resize(machine, 0)


def test_the_guest_reboots(machine, guest) -> None:
    resize(machine, 8 * MIB)
    guest.send("reboot -f")
    guest.wait_for_boot()
    status = machine.status()
    assert (status.state, status.held_pages, status.actual_pages) == ("waiting", 0, 0)
    guest.run(f"insmod {MODULE}")
    until(lambda: machine.actual_pages == 8 * MIB)
    assert guest.vmstat()["balloon_inflate"] == 8 * MIB


def test_the_guest_is_killed_and_another_comes(tmp_path) -> None:
    before = open_descriptors()
    with machine_at(tmp_path / "s") as machine:
        for _ in range(2):
            with UserModeLinux(machine.config.socket) as guest:
                guest.run(f"insmod {MODULE}")
                until(lambda: machine.state == "running")
                machine.set_target(32 * MIB)
                guest.kill()
            until(lambda: machine.state == "waiting")
            # Its queues stop first, then its memory goes.
            until(lambda: machine.status().memory_allocated_bytes == 0)
    assert open_descriptors() == before


def test_the_back_end_is_killed_and_comes_back(tmp_path, runtime_dir) -> None:
    """Through the command: another process serves, and dies with a guest attached."""

    def balloonctl(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "balloonctl", "-m", "vm", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def status() -> dict[str, object]:
        return json.loads(balloonctl("status", "--json").stdout)

    path = tmp_path / "s"
    assert balloonctl("serve", "--vhost-user", str(path), "--background", "vm").returncode == 0
    assert "no guest is attached" in balloonctl("inflate", "1M").stderr
    with UserModeLinux(path) as guest:
        guest.run(f"insmod {MODULE}")
        until(lambda: status()["state"] == "running")
        done = balloonctl("inflate", "32M", "--json")
        assert (done.returncode, json.loads(done.stdout)["outcome"]) == (0, "reached")
        assert guest.vmstat()["balloon_inflate"] == 32 * MIB
        assert "stat-free-memory" in json.loads(balloonctl("stats", "--json").stdout)["stats"]
        refused = balloonctl("oom")
        assert refused.returncode == 1
        assert "only an emulated guest" in refused.stderr

        os.kill(int(str(status()["pid"])), signal.SIGKILL)
        assert guest.run("echo alive") == "alive\n"
        assert path.exists()  # the dead socket is in the way of nobody
        assert balloonctl("serve", "--vhost-user", str(path), "--background", "vm").returncode == 0
        assert status()["state"] == "waiting"
        # This kernel gives the device up for good, and its driver waits for an answer that never comes
        # (a reboot hangs in it): the guest is ended from outside, and the next one finds the back end.
        guest.kill()
    with UserModeLinux(path) as guest:
        guest.run(f"insmod {MODULE}")
        until(lambda: status()["state"] == "running")
        assert balloonctl("inflate", "16M").returncode == 0
        assert guest.vmstat()["balloon_inflate"] == 16 * MIB
    assert balloonctl("stop", "vm").returncode == 0
    assert not path.exists()


# ---- the harness ------------------------------------------------------------


def test_the_library_for_large_xsave_areas_keeps_processes_alive() -> None:
    """Every write of floating point state goes the long way; programs still compute what they did."""
    with UserModeLinux(None, shim=True, environment={"UML_PTRACE_ALWAYS": "1"}) as guest:
        for _ in range(20):
            assert guest.run("echo 7 | awk '{ printf \"%.6f\", $1 / 3 }'") == "2.333333"
        with pytest.raises(GuestError):
            guest.run("false")
