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

import contextlib
import statistics
import tempfile
import time
from pathlib import Path

from balloonvq.bench.measure import Definition, Parameter, Row, Sample
from balloonvq.bench.uml import UserModeLinux
from balloonvq.errors import BalloonError, InvalidArgument
from balloonvq.histogram import Histogram
from balloonvq.memory import PAGE_SIZE
from balloonvq.vhost_machine import VhostConfig, VhostMachine

__all__ = ["BENCHMARK", "Guest"]

#: Guest memory beyond what the balloon takes: the kernel, its files, and room to breathe.
EXTRA_MIB = 96

#: Steps of one page in a round, for the round trip.
TRIPS = 50

_WAIT_NS = 60_000_000_000


class Guest:
    """A booted guest whose driver runs.

    Args:
        size_bytes: of each inflate; the guest gets `EXTRA_MIB` more.

    Raises:
        InvalidArgument: if the size is not whole pages or too small.
        GuestError: if no guest can be started here.
    """

    def __init__(self, size_bytes: int) -> None:
        self.pages = size_bytes // PAGE_SIZE
        if size_bytes % PAGE_SIZE or self.pages < 256:
            raise InvalidArgument(
                f"a round of {size_bytes} bytes cannot be measured",
                why="it is whole pages, at least 256",
                hint="--size 128M",
            )
        self.rows = (
            Row("inflate", "the guest gives: target set until its driver reports it", bytes=size_bytes),
            Row("deflate", "the guest takes it back, likewise", bytes=size_bytes),
            Row("round trip", "an inflate or deflate of one page, likewise"),
        )
        with contextlib.ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
            self.machine = stack.enter_context(
                VhostMachine(VhostConfig(name="bench", socket=str(folder / "s")))
            )
            self.guest = stack.enter_context(
                UserModeLinux(folder / "s", memory_mib=(size_bytes >> 20) + EXTRA_MIB)
            )
            kernel = self.guest.run("uname -sr").strip()
            self.guest.run("insmod /virtio_balloon.ko")
            if self.machine.state != "running":
                raise BalloonError("the guest's driver does not run", why=self.guest.run("dmesg | tail -5"))
            self._stack = stack.pop_all()
        self.notes = (f"guest {kernel}, booted in {self.guest.boot_ns / 1e9:.1f} s",)

    def close(self) -> None:
        """Ends guest and machine."""
        self._stack.close()

    def round(self) -> dict[str, Sample]:
        """Dirties the guest's memory, then there and back, then single pages."""
        free = self.guest.meminfo()["MemFree"] >> 20
        self.guest.run("mount -o remount,size=100% /tmp")
        self.guest.run(
            f"dd if=/dev/zero of=/tmp/dirt bs=1M count={max(1, free - 16)} 2>/dev/null; rm /tmp/dirt"
        )
        before = self.machine.status()
        inflate = self._moved(self.pages)
        full = self.machine.status()
        deflate = self._moved(0)
        inflate = Sample(
            inflate.value,
            {
                **inflate.facts,
                "returned_bytes": max(0, before.memory_allocated_bytes - full.memory_allocated_bytes),
            },
        )
        trips = Histogram()
        times = [self._reach(1 - turn % 2) for turn in range(TRIPS)]
        for ns in times:
            trips.record(ns)
        latency = self.machine.device.latency(0)
        assert latency is not None
        return {
            "inflate": inflate,
            "deflate": deflate,
            "round trip": Sample(statistics.median(times), {"in_device_p50_ns": latency.p50_ns}, trips),
        }

    def _moved(self, pages: int) -> Sample:
        """There, with what it cost the device's thread."""
        cpu, requests = self.machine.device.cpu_ns, self.machine.status().counters.requests
        elapsed = self._reach(pages)
        cpu = self.machine.device.cpu_ns - cpu
        return Sample(
            elapsed,
            {
                "device_cpu_ns": cpu,
                "device_share": cpu / elapsed,
                "requests": self.machine.status().counters.requests - requests,
            },
        )

    def _reach(self, pages: int) -> int:
        """Nanoseconds until the driver says that it has that many."""
        begun = time.perf_counter_ns()
        self.machine.set_target(pages)
        result = self.machine.wait(_WAIT_NS)
        ended = time.perf_counter_ns()
        if result.outcome != "reached":
            raise BalloonError(
                f"the guest did not get to {pages} pages", why=str(result.reason or result.outcome)
            )
        return ended - begun


BENCHMARK = Definition(
    "guest",
    "How fast a real Linux guest inflates and deflates, and what of it is the device. The guest is User Mode "
    "Linux with its own driver; it has to be installed (Debian: user-mode-linux, busybox-static, cpio).",
    Guest,
    (Parameter("size", 128 << 20, "Guest memory to take and give back in each round.", kind="size"),),
)
