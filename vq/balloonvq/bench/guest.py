"""A real guest: how fast its driver inflates and deflates, and what of that is the device's time.

The guest is User Mode Linux with its own virtio_balloon (`balloonvq.bench.uml`), which needs no
virtualisation. Its kernel is traced by ptrace, so a request costs it much more than it would a guest
on a hypervisor: the figures say what driver, ring and device do together, and are no claim about a VM.

A round writes nearly all guest memory, so that pages to give back are there, then inflates and
deflates by `size_bytes`. Time is from setting the target until the driver reports it reached. The
device's share is the processor time of its thread; the rest is the guest's and that of the
configuration messages. A round trip is an inflate or deflate of one page: configuration change, read
of the target, one request, its interrupt, and the write of the size that ends it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from balloonvq.bench.uml import UserModeLinux
from balloonvq.errors import BalloonError, InvalidArgument
from balloonvq.host import facts
from balloonvq.memory import PAGE_SIZE
from balloonvq.vhost_machine import VhostConfig, VhostMachine

__all__ = ["GuestBench", "GuestRound", "run"]

#: Guest memory beyond what the balloon takes: the kernel, its files, and room to breathe.
EXTRA_MIB = 96

#: Steps of one page, for the round trip.
TRIPS = 200

_WAIT_NS = 60_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestRound:
    """One way there and back."""

    inflate_ns: int
    inflate_device_ns: int
    """Processor time of the device's thread."""
    inflate_requests: int
    returned_bytes: int
    """By which the guest's memory file shrank."""
    deflate_ns: int
    deflate_device_ns: int
    deflate_requests: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GuestBench:
    """``balloonctl/bench-guest/1``: inflate and deflate of a real guest."""

    schema: str = "balloonctl/bench-guest/1"
    guest: str
    """Its kernel."""
    size_bytes: int
    """Of each inflate and deflate."""
    rounds: tuple[GuestRound, ...]
    inflate_pages_per_s: float
    """Median over the rounds."""
    inflate_gib_per_s: float
    inflate_device_share: float
    """Device's processor time by elapsed time, median."""
    deflate_pages_per_s: float
    deflate_gib_per_s: float
    deflate_device_share: float
    round_trip_ns: int
    """Setting a target one page away until the driver reports it, median."""
    round_trip_p99_ns: int
    service_p50_ns: int
    """Of an inflate request within the device, from the ring to the ring."""
    boot_ns: int
    host: dict[str, str]


def run(
    size_bytes: int,
    *,
    runs: int = 5,
    warmup: int = 1,
    on_progress: Callable[[int, int], None] | None = None,
) -> GuestBench:
    """Boots a guest and measures.

    Args:
        size_bytes: of each inflate; the guest gets `EXTRA_MIB` more.
        runs: rounds that count.
        warmup: rounds before that do not.
        on_progress: called with (rounds done, rounds in all).

    Raises:
        InvalidArgument: if the size is not whole pages or too small.
        GuestError: if no guest can be started here.
    """
    pages = size_bytes // PAGE_SIZE
    if size_bytes % PAGE_SIZE or pages < 256:
        raise InvalidArgument(
            f"a round of {size_bytes} bytes cannot be measured",
            why="it is whole pages, at least 256",
            hint="--size 128M",
        )
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        VhostMachine(VhostConfig(name="bench", socket=str(Path(folder) / "s"))) as machine,
        UserModeLinux(Path(folder) / "s", memory_mib=(size_bytes >> 20) + EXTRA_MIB) as guest,
    ):
        kernel = guest.run("uname -sr").strip()
        guest.run("insmod /virtio_balloon.ko")
        if machine.state != "running":
            raise BalloonError("the guest's driver does not run", why=guest.run("dmesg | tail -5"))
        rounds = []
        for turn in range(warmup + runs):
            one = _round(machine, guest, pages)
            if turn >= warmup:
                rounds.append(one)
            if on_progress is not None:
                on_progress(turn + 1, warmup + runs)
        trips = [_reach(machine, 1 - turn % 2) for turn in range(TRIPS)]
        latency = machine.device.latency(0)
        assert latency is not None
        return _sum_up(
            kernel, size_bytes, rounds, trips, service_p50_ns=latency.p50_ns, boot_ns=guest.boot_ns
        )


def _round(machine: VhostMachine, guest: UserModeLinux, pages: int) -> GuestRound:
    free = guest.meminfo()["MemFree"] >> 20
    guest.run("mount -o remount,size=100% /tmp")
    guest.run(f"dd if=/dev/zero of=/tmp/dirt bs=1M count={max(1, free - 16)} 2>/dev/null; rm /tmp/dirt")
    before = machine.status()
    cpu = machine.device.cpu_ns
    inflate = _reach(machine, pages)
    full, full_cpu = machine.status(), machine.device.cpu_ns
    deflate = _reach(machine, 0)
    return GuestRound(
        inflate_ns=inflate,
        inflate_device_ns=full_cpu - cpu,
        inflate_requests=full.counters.requests - before.counters.requests,
        returned_bytes=max(0, before.memory_allocated_bytes - full.memory_allocated_bytes),
        deflate_ns=deflate,
        deflate_device_ns=machine.device.cpu_ns - full_cpu,
        deflate_requests=machine.status().counters.requests - full.counters.requests,
    )


def _reach(machine: VhostMachine, pages: int) -> int:
    """Nanoseconds until the driver says that it has that many."""
    begun = time.monotonic_ns()
    machine.set_target(pages)
    result = machine.wait(_WAIT_NS)
    ended = time.monotonic_ns()
    if result.outcome != "reached":
        raise BalloonError(
            f"the guest did not get to {pages} pages", why=str(result.reason or result.outcome)
        )
    return ended - begun


def _sum_up(
    kernel: str,
    size_bytes: int,
    rounds: list[GuestRound],
    trips: list[int],
    *,
    service_p50_ns: int,
    boot_ns: int,
) -> GuestBench:
    inflate_s = statistics.median(one.inflate_ns for one in rounds) / 1e9
    deflate_s = statistics.median(one.deflate_ns for one in rounds) / 1e9
    return GuestBench(
        guest=kernel,
        size_bytes=size_bytes,
        rounds=tuple(rounds),
        inflate_pages_per_s=size_bytes / PAGE_SIZE / inflate_s,
        inflate_gib_per_s=size_bytes / 2**30 / inflate_s,
        inflate_device_share=statistics.median(one.inflate_device_ns / one.inflate_ns for one in rounds),
        deflate_pages_per_s=size_bytes / PAGE_SIZE / deflate_s,
        deflate_gib_per_s=size_bytes / 2**30 / deflate_s,
        deflate_device_share=statistics.median(one.deflate_device_ns / one.deflate_ns for one in rounds),
        round_trip_ns=int(statistics.median(trips)),
        round_trip_p99_ns=sorted(trips)[len(trips) * 99 // 100],
        service_p50_ns=service_p50_ns,
        boot_ns=boot_ns,
        host=facts(),
    )
