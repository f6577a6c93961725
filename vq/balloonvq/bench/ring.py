"""What a buffer's way through the split ring costs, in times what the machine itself needs.

The work of one buffer is that of the kernel's tools/virtio/ringtest: the driver half adds one
descriptor with a token and shows it, kicks if asked; the device half marks it used with a length,
calls if asked; the driver half takes the token back. csrc/bench_ring.c does all of it, over the same
two halves that balloon and machine use; here are only the rows.

With the folder of the kernel's ringtest, its programs run in the same rounds, and so does its
virtio_ring.c, compiled for user space, where the sources around that folder have it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from balloonvq.bench.measure import Against, Definition, Parameter, Row, Sample
from balloonvq.errors import BalloonError, InternalError, InvalidArgument
from balloonvq.ffi import check, ffi, lib
from balloonvq.histogram import Histogram

__all__ = ["BENCHMARK", "Ring", "Ringtest"]

#: Buffers a publication, of the rows that poll.
BATCHES = (1, 16, 32, 64)

#: The same, of the rows in which one thread plays both halves, and of those that sleep.
FEW_BATCHES = (1, 32)

#: Where a buffer costs a round trip between processors, so many fewer are sent: polling, sleeping.
FEWER_POLLING = 8
FEWER_SLEEPING = 32

#: What is wanted of K buffers a publication, in times ringtest's virtio_ring_0_9, and in times virtio_ring.c.
POLLING_GOALS = {1: 0.45, 32: 0.08}
ALONE_GOAL = 0.6

#: The programs of ringtest that are run.
PROGRAMS = ("virtio_ring_0_9", "virtio_ring_inorder", "ring")

#: The fewest buffers a program gets: its start and end, some milliseconds, count and must not weigh.
PROGRAM_BUFFERS = 1 << 21

#: Seconds after which a program of the kernel's is given up.
PROGRAM_SECONDS = 300.0

#: What the kernel's file is called in rows, and our program around it.
KERNEL_RING = "virtio_ring.c"
_TURNS = Path(__file__).with_name("virtio_ring_turns.c")


class Ringtest:
    """The kernel's ringtest, built in a temporary folder; its own folder is only read.

    Args:
        folder: tools/virtio/ringtest of the kernel's sources.

    Raises:
        BalloonError: if it is not there, or does not build.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.source = Path(folder)
        if not (self.source / "Makefile").is_file() or not (self.source / "virtio_ring_0_9.c").is_file():
            raise BalloonError(
                f"no ringtest in {folder}",
                why="it has no Makefile and virtio_ring_0_9.c",
                hint="give tools/virtio/ringtest of the kernel's sources; see docs/benchmarks.md",
            )
        #: Why there are no rows of virtio_ring.c; empty if there are.
        self.without_kernel_ring = ""
        self._folder = tempfile.TemporaryDirectory(prefix="balloonctl-ringtest-")
        try:
            self._build()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Removes what was built."""
        self._folder.cleanup()

    def _build(self) -> None:
        there = Path(self._folder.name)
        for file in self.source.iterdir():
            if file.name == "Makefile" or file.suffix in (".c", ".h"):
                shutil.copy(file, there)
        if why := _failure(["make", *PROGRAMS], there):
            raise BalloonError(
                f"ringtest in {self.source} does not build", why=why, hint="it needs make and a C compiler"
            )
        tools, kernel = self.source / "..", self.source / "../../.."
        ring = kernel / "drivers/virtio/virtio_ring.c"
        if not ring.is_file():
            self.without_kernel_ring = "drivers/virtio/virtio_ring.c is not beside ringtest"
            return
        words = ["cc", "-O2", "-w", "-pthread", "-fno-strict-overflow", "-fno-strict-aliasing", "-fno-common"]
        words += ["-U_FORTIFY_SOURCE", "-Ddata_race(x)=(x)", f"-I{tools}", f"-I{tools / '../include'}"]
        words += ["-include", str(kernel / "include/linux/kconfig.h")]
        why = _failure([*words, "-o", str(there / KERNEL_RING[:-2]), str(_TURNS), str(ring)], there)
        if why:
            self.without_kernel_ring = f"virtio_ring.c does not build for user space: {why}"

    def program_ns(self, program: str, queue_size: int, buffers: int, cpus: tuple[int, int]) -> float:
        """Nanoseconds a buffer that one of `PROGRAMS` takes, its start and end included.

        It gets `buffers`, or `PROGRAM_BUFFERS` if that is more.
        """
        buffers = max(buffers, PROGRAM_BUFFERS)
        words = [f"./{program}", f"--ring-size={queue_size}", f"--run-cycles={buffers}"]
        if cpus[0] >= 0:
            words += [f"--guest-affinity={cpus[0]}", f"--host-affinity={cpus[1]}"]
        started = time.perf_counter_ns()
        self._run(words)
        return (time.perf_counter_ns() - started) / buffers

    def kernel_ring_ns(self, queue_size: int, batch: int, buffers: int, cpu: int) -> float:
        """Nanoseconds a buffer that virtio_ring.c takes with one thread."""
        words = [f"./{KERNEL_RING[:-2]}", str(queue_size), str(batch), str(buffers)]
        return int(self._run(words, cpu)) / buffers

    def _run(self, words: list[str], cpu: int = -1) -> str:
        before = os.sched_getaffinity(0)
        if cpu >= 0:
            os.sched_setaffinity(0, {cpu})  # is inherited
        try:
            done = subprocess.run(
                words,
                cwd=self._folder.name,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=PROGRAM_SECONDS,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise BalloonError(f"{words[0]} of {self.source} does not run", why=str(error)) from error
        finally:
            os.sched_setaffinity(0, before)
        if done.returncode:
            raise BalloonError(
                f"{words[0]} of {self.source} failed",
                why=_cause(done.stderr) or f"it ended with {done.returncode}",
            )
        return done.stdout


def _failure(words: list[str], folder: Path) -> str:
    """Why a command did not succeed; empty if it did."""
    try:
        done = subprocess.run(
            words,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )
    except OSError as error:
        return str(error)
    return "" if done.returncode == 0 else _cause(done.stderr) or f"{words[0]} ended with {done.returncode}"


def _cause(text: str) -> str:
    """The line that tells why a tool failed: the first with an error, or the last one."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in lines if "error:" in line), lines[-1] if lines else "")


class Ring:
    """The ring's rows, the machine's limits, and the kernel's own if there is a `ringtest`.

    Args:
        queue_size: descriptors of the ring.
        buffers: how many are sent in a row; where each costs a way between processors, fewer.
        cpus: "auto", "none", or two processors: "0,1", of the driver's and of the device's thread.
        ringtest: tools/virtio/ringtest of the kernel's sources; empty: without.

    Raises:
        InvalidArgument: if the size is no power of 2, or the processors are none.
        BalloonError: if ringtest is not there, or does not build.
    """

    def __init__(self, queue_size: int, buffers: int, cpus: str, ringtest: str) -> None:
        if queue_size & (queue_size - 1) or not 0 < queue_size <= lib.VQ_SIZE_MAX:
            raise InvalidArgument(
                f"a split virtqueue cannot have {queue_size} descriptors",
                why="the size is a power of 2 from 1 to 32768",
            )
        self.queue_size = queue_size
        #: A multiple of every batch.
        self.buffers = buffers = buffers - buffers % max(BATCHES)
        self.cpus, said = _processors(cpus)
        self.bound = True
        self._said = said
        self.ringtest = Ringtest(ringtest) if ringtest else None
        self._measured: dict[str, Callable[[], Sample]] = {}
        rows: list[Row] = []

        def row(
            name: str, about: str, sample: Callable[[], Sample], *against: tuple[str, float | None]
        ) -> None:
            self._measured[name] = sample
            known = {one.name for one in rows}
            rows.append(
                Row(
                    name,
                    about,
                    per="round trip",
                    against=tuple(Against(other, goal) for other, goal in against if other in known),
                )
            )

        polling, sleeping = buffers // FEWER_POLLING, buffers // FEWER_SLEEPING
        row(
            "line",
            "a cache line there and another back, between the two processors",
            lambda: self._limit(lib.bench_ping_pong, polling),
        )
        row(
            "slots",
            "a queue of slots: one thread fills, the other empties",
            lambda: self._limit(lib.bench_slots, buffers, queue_size),
        )
        row(
            "eventfds",
            "two threads wake each other by eventfds",
            lambda: self._limit(lib.bench_eventfds, sleeping),
        )
        few = [k for k in FEW_BATCHES if k <= queue_size]
        if self.ringtest:
            for program in PROGRAMS:
                row(program, "ringtest, polling, the ring full", self._program(program))
            for k in few if not self.ringtest.without_kernel_ring else ():
                row(
                    f"{KERNEL_RING} K={k}",
                    "the kernel's driver half, one thread plays both",
                    self._kernel_ring(k),
                )
        for k in few:
            row(
                f"alone K={k}",
                f"one thread plays both halves, {_each(k)}",
                self._ring(lib.BENCH_RING_ALONE, k, queue_size, buffers),
                (f"{KERNEL_RING} K={k}", ALONE_GOAL),
            )
        for k in (k for k in BATCHES if k <= queue_size):
            row(
                f"polling K={k}",
                f"two threads poll, the ring full, {_each(k)}",
                self._ring(lib.BENCH_RING_POLLING, k, queue_size, buffers),
                ("slots", None),
                ("virtio_ring_0_9", POLLING_GOALS.get(k)),
                ("virtio_ring_inorder", None),
                ("ring", None),
            )
        row(
            "polling one",
            "two threads poll, one buffer out at a time",
            self._ring(lib.BENCH_RING_POLLING, 1, 1, polling),
            ("line", None),
        )
        for k in few:
            row(
                f"sleeping K={k}",
                f"two threads sleep on eventfds when idle, {_each(k)}",
                self._ring(lib.BENCH_RING_SLEEPING, k, queue_size, buffers),
                ("eventfds", None),
            )
        row(
            "sleeping one",
            "two threads sleep on eventfds, one buffer out at a time",
            self._ring(lib.BENCH_RING_SLEEPING, 1, 1, sleeping),
            ("eventfds", None),
        )
        self.rows = tuple(rows)

    @property
    def notes(self) -> tuple[str, ...]:
        """Where the threads ran, and what is missing."""
        said = [self._said]
        if not self.bound:
            said.append(
                "the threads could not be bound to their processors: the scheduler put them where it liked"
            )
        if self.ringtest and self.ringtest.without_kernel_ring:
            said.append(f"no rows of virtio_ring.c: {self.ringtest.without_kernel_ring}")
        return tuple(said)

    def close(self) -> None:
        """Removes what was built."""
        if self.ringtest:
            self.ringtest.close()

    def round(self) -> Mapping[str, Sample]:
        """Every row once, in their order."""
        return {name: sample() for name, sample in self._measured.items()}

    def _see(self, bound: int) -> None:
        if self.cpus[0] >= 0:
            self.bound = self.bound and bool(bound)

    def _limit(self, measure: Callable[..., int], rounds: int, *more: int) -> Sample:
        """What the machine itself needs for so many round trips."""
        out = ffi.new("struct bench_limit *")
        cpus = ffi.new("struct bench_cpus *", self._c_cpus())[0]
        check(measure(rounds, *more, cpus, out), "measure a limit of the machine")
        self._see(out.bound)
        return Sample(out.ns / out.rounds)

    def _ring(self, way: int, batch: int, outstanding: int, buffers: int) -> Callable[[], Sample]:
        """Sends buffers through the ring."""
        options = ffi.new(
            "struct bench_ring_options *",
            {
                "way": way,
                "queue_size": self.queue_size,
                "batch": batch,
                "outstanding": outstanding,
                "buffers": buffers,
                "cpus": self._c_cpus(),
            },
        )

        def sample() -> Sample:
            out = ffi.new("struct bench_ring_result *")
            check(lib.bench_ring_run(options, out), "send buffers through the ring")
            if not out.buffers == out.served == buffers:
                raise InternalError(
                    "the ring lost buffers",
                    why=f"of {buffers}, {out.served} were served and {out.buffers} came back",
                )
            self._see(out.bound)
            trips = None
            if out.trip.count:
                trips = Histogram()
                ffi.memmove(trips.handle, ffi.addressof(out, "trip"), ffi.sizeof("struct histogram"))
            facts = {
                "buffers": out.buffers,
                "kicks": out.kicks,
                "calls": out.calls,
                "sleeps": out.sleeps,
            }
            return Sample(out.ns / buffers, facts, trips)

        return sample

    def _program(self, program: str) -> Callable[[], Sample]:
        def sample() -> Sample:
            assert self.ringtest is not None
            return Sample(self.ringtest.program_ns(program, self.queue_size, self.buffers, self.cpus))

        return sample

    def _kernel_ring(self, batch: int) -> Callable[[], Sample]:
        def sample() -> Sample:
            assert self.ringtest is not None
            ns = self.ringtest.kernel_ring_ns(self.queue_size, batch, self.buffers, self.cpus[0])
            return Sample(ns)

        return sample

    def _c_cpus(self) -> dict[str, int]:
        """A C `struct bench_cpus`."""
        return {"driver": self.cpus[0], "device": self.cpus[1]}


def _each(batch: int) -> str:
    return "one buffer a publication" if batch == 1 else f"{batch} buffers a publication"


def _processors(wish: str) -> tuple[tuple[int, int], str]:
    """The processors of driver and device, -1 for none in particular; and what there is to say of it."""
    allowed = sorted(os.sched_getaffinity(0))
    if wish == "auto" and len(allowed) < 2:
        return (
            -1,
            -1,
        ), "only one processor is allowed here: both threads share it, so none can poll while the other works"
    if wish == "none":
        return (-1, -1), "the threads are bound to no processor"
    words = [str(cpu) for cpu in allowed[:2]] if wish == "auto" else wish.split(",")
    if len(words) != 2 or not all(word.isdecimal() and int(word) in allowed for word in words):
        raise InvalidArgument(
            f"--cpus {wish} names no two processors",
            why=f"those allowed here are {', '.join(map(str, allowed))}",
            hint="--cpus auto, --cpus none, or two numbers: --cpus 0,1",
        )
    driver, device = map(int, words)
    return (driver, device), f"driver on processor {driver}, device on processor {device}"


BENCHMARK = Definition(
    "ring",
    "What a buffer's way through the ring costs, in times what the machine itself needs.",
    Ring,
    (
        Parameter(
            "queue-size", 256, "Descriptors of the ring, a power of 2.", kind="count", least=1, most=32768
        ),
        Parameter(
            "buffers",
            1 << 18,
            "Buffers of a row; where each has to wait for the other processor, fewer.",
            kind="count",
            least=1 << 11,
            most=1 << 30,
        ),
        Parameter(
            "cpus", "auto", "Processors of driver and device: two numbers, auto (the first two), or none."
        ),
        Parameter("ringtest", "", "The kernel's tools/virtio/ringtest, to be built and measured beside."),
    ),
)
