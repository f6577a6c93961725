"""The machine: memory, device, guest and driver put together; what the commands drive.

    Machine
    ├── memory    GuestMemory      memfds, or what the user chose
    ├── device    BalloonDevice    C, its own thread
    └── guest     Kernel           tasks of a ThreadRuntime
        └── driver BalloonDriver   with a locking design

All methods may be called from any thread. Those that block (`wait`, `oom`,
`statistics`) block only their caller.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import PurePath
from typing import Literal, TypeVar

from balloonvq.counters import (
    CompactReport,
    DeadlockReport,
    DeadlockTask,
    KernelStack,
    MachineState,
    OomOutcome,
    OomReport,
    ShortReason,
    StatsReport,
    Status,
    WaitResult,
    to_document,
)
from balloonvq.device import BalloonDevice, DiscardMethod
from balloonvq.driver.designs import choose_options, find, is_file
from balloonvq.driver.driver import BalloonDriver
from balloonvq.errors import (
    BalloonError,
    DesignError,
    DeviceBroken,
    InternalError,
    InvalidArgument,
    MachineStopped,
    RuleBroken,
)
from balloonvq.guest.compaction import compact
from balloonvq.guest.hog import MemoryHog
from balloonvq.guest.kernel import Kernel
from balloonvq.guest.pages import PageAllocator
from balloonvq.guest.tasks import UserTask
from balloonvq.host import check_available, shared_cpu
from balloonvq.machine_base import EVENT_INTERVAL, Ended, MachineBase, negative_interval
from balloonvq.memory import PAGE_SIZE, GuestMemory, is_private
from balloonvq.queue import ring_layout
from balloonvq.runtime import Stopped
from balloonvq.runtime.threads import ThreadRuntime, ThreadTask
from balloonvq.statistics import collect
from balloonvq.units import size as human

__all__ = ["Machine", "MachineConfig"]

T = TypeVar("T")

#: Bytes of guest memory that are touched between two progress reports.
TOUCH_STEP = 64 << 20

#: A driver that works and makes no progress for this long is called stalled.
STALLED_NS = 2_000_000_000

#: Room for PFN arrays and buffers beside the rings, in the kernel's area.
KERNEL_EXTRA_BYTES = 64 << 10

#: How often a waiter looks whether an OOM run is over, when nothing wakes it.
OOM_LOOK_NS = 20_000_000

#: Values of `MachineConfig.clock` and the greatest `MachineConfig.seed`.
CLOCKS = ("real", "virtual")
SEED_MAX = (1 << 64) - 1

#: Seconds that tasks have to end when the machine stops.
STOP_SECONDS = 3.0

#: Seconds of real time without any progress after which a verb that runs guest code gives up.
STUCK_SECONDS = 10.0

#: Pages that `oom --while-filling` asks for: a few rounds of the notifier.
WHILE_FILLING_PAGES = 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class MachineConfig:
    """What a machine is made of.

    Attributes:
        name: how commands address it.
        ram_bytes: guest memory; whole pages.
        touch_bytes: how much of it the guest has written before the balloon starts;
            None is all of it.
        used_bytes: how much a resident program owns all the time; None is 5 %.
        fragmented: free pages come in an order drawn from `seed`.
        design: name of the locking design, or ``path/to/file.py:ClassName``.
        design_options: values of the design's options that are not the default.
        deflate_on_oom, must_tell_host, event_idx, indirect: features on offer.
        queue_size: descriptors a queue, a power of 2 up to 32768.
        memory: where guest memory comes from; see `balloonvq.memory`.
        discard: how the device gives pages back; None is what frees that memory: dontneed if it is
            private to the process, else punch.
        seed: for everything that is drawn.
        stats_interval: seconds between statistics requests; 0 = only when asked.
        pin: put guest tasks and device thread on one processor. They take turns, so
            that saves waking another processor for every request.
        clock: real, or virtual (time jumps when everybody waits).
    """

    name: str = "default"
    ram_bytes: int = 1 << 30
    touch_bytes: int | None = None
    used_bytes: int | None = None
    fragmented: bool = False
    design: str = "reference"
    design_options: Mapping[str, str] = field(default_factory=dict)
    deflate_on_oom: bool = True
    must_tell_host: bool = True
    event_idx: bool = True
    indirect: bool = True
    queue_size: int = 128
    memory: str = "memfd"
    discard: DiscardMethod | None = None
    seed: int = 0
    stats_interval: int = 0
    pin: bool = True
    clock: Literal["real", "virtual"] = "real"


class Machine(MachineBase):
    """A running guest with a balloon. Make one with `Machine.create`."""

    # -- life ----------------------------------------------------------------

    @classmethod
    def create(cls, config: MachineConfig, on_progress: Callable[[int, int], None] | None = None) -> Machine:
        """Boots a machine.

        Args:
            config: what it is made of.
            on_progress: called with (bytes touched, bytes to touch) while guest memory
                is being touched.

        Raises:
            InvalidArgument: if the configuration cannot work.
            NotEnoughMemory: if the host cannot back the guest.
            BalloonError: if the file that is to be its memory cannot be made.
        """
        return cls(config, on_progress)

    def __init__(self, config: MachineConfig, on_progress: Callable[[int, int], None] | None = None) -> None:
        super().__init__(config.name)
        self.config = config
        self._check(config)
        design = find(config.design)
        choose_options(design, config.design_options)
        self._deadlock: DeadlockReport | None = None
        self._trouble: BalloonError | None = None
        self._abandoned = False
        self._polling = False
        self._oom_lock = threading.Lock()
        #: When the target was last set, by the runtime's clock; at first when the machine began.
        self._target_set_ns = 0
        with contextlib.ExitStack() as cleanup:
            self._build(config, design, cleanup, on_progress)
            self._cleanup = cleanup.pop_all()
        self.stats_polling_interval = config.stats_interval

    def _build(
        self,
        config: MachineConfig,
        design: type,
        cleanup: contextlib.ExitStack,
        on_progress: Callable[[int, int], None] | None,
    ) -> None:
        cpu = shared_cpu() if config.pin else None
        self.memory = GuestMemory(config.ram_bytes, config.memory)
        cleanup.callback(self._unless_abandoned, self.memory.close)
        self._touch(on_progress)
        kernel_pages = _kernel_pages(config.queue_size)
        self.pages = PageAllocator(
            self.memory.size_pages, kernel_pages, shuffled=config.fragmented, seed=config.seed
        )
        cleanup.callback(self._unless_abandoned, self.pages.close)
        self.device = BalloonDevice(
            self.memory,
            features=BalloonDevice.offer(
                must_tell_host=config.must_tell_host,
                deflate_on_oom=config.deflate_on_oom,
                event_idx=config.event_idx,
                indirect=config.indirect,
            ),
            discard=config.discard or ("dontneed" if is_private(config.memory) else "punch"),
            queue_size_max=config.queue_size,
            # How late pages leave, and how many at once, would depend on the real time.
            owed_max_bytes=0 if config.clock == "virtual" else None,
        )
        cleanup.callback(self._unless_abandoned, self.device.close)
        self.runtime = ThreadRuntime(
            virtual_clock=config.clock == "virtual",
            cpu=cpu,
            on_deadlock=self._on_deadlock,
            on_crash=self._on_crash,
        )
        cleanup.callback(self._stop_runtime)
        self._repoll = self.runtime.wait_queue("statistics interval")
        self.kernel = Kernel(self.runtime, self.memory, self.pages, kernel_pages * PAGE_SIZE)
        self.driver = BalloonDriver(
            self.runtime,
            self.kernel,
            self.device,
            design,
            queue_size=config.queue_size,
            design_options=config.design_options,
        )
        self._target_set_ns = self.runtime.now_ns()
        self.device.start(cpu)
        with self.runtime.adopted("boot", "initialisation"):
            self._start_resident(config)
        self._run("boot", "initialisation", self.driver.probe)
        self._pump_stop = os.eventfd(0, os.EFD_CLOEXEC)
        cleanup.callback(os.close, self._pump_stop)
        self._pump = threading.Thread(target=self._pump_events, name="events", daemon=True)
        self._pump.start()
        cleanup.callback(self._stop_pump)

    @staticmethod
    def _check(config: MachineConfig) -> None:
        ram = config.ram_bytes
        if ram <= 0 or ram % PAGE_SIZE:
            raise InvalidArgument(
                f"a guest cannot have {ram} bytes of memory",
                why=f"memory is whole pages of {PAGE_SIZE} bytes, at least one",
                hint="--ram 1G",
            )
        ring_layout(0, config.queue_size)
        smallest = (_kernel_pages(config.queue_size) + 256) * PAGE_SIZE
        if ram < smallest:
            raise InvalidArgument(
                f"a guest of {human(ram)} is too small",
                why=f"queues of {config.queue_size} and the driver need {human(smallest)}",
                hint=f"--ram {-(-smallest // (1 << 20))}M",
            )
        for name in ("touch_bytes", "used_bytes"):
            size = getattr(config, name)
            if size is not None and not 0 <= size <= ram:
                raise InvalidArgument(
                    f"{name.removesuffix('_bytes')} cannot be {size} bytes", why=f"the guest has {ram} bytes"
                )
        if config.stats_interval < 0:
            raise negative_interval(config.stats_interval)
        if config.clock not in CLOCKS:
            raise InvalidArgument(
                f"there is no clock {config.clock!r}", why=f"the clocks are {', '.join(CLOCKS)}"
            )
        if not 0 <= config.seed <= SEED_MAX:
            raise InvalidArgument(f"a seed cannot be {config.seed}", why=f"seeds are 0 to {SEED_MAX}")
        if config.discard == "punch" and is_private(config.memory):
            raise InvalidArgument(
                f"holes cannot be punched in {config.memory} memory",
                why="it is private to the process, and no file",
                hint="--discard dontneed",
            )
        check_available(ram, f"a guest of {human(ram)}", "--ram", ram)

    def _touch(self, on_progress: Callable[[int, int], None] | None) -> None:
        """Makes guest memory resident, as a guest does that has used it."""
        total = self.config.ram_bytes if self.config.touch_bytes is None else self.config.touch_bytes
        total = total // PAGE_SIZE * PAGE_SIZE
        done = 0
        while done < total:
            step = min(TOUCH_STEP, total - done)
            self.memory.populate(done, step)
            done += step
            if on_progress is not None:
                on_progress(done, total)

    def _start_resident(self, config: MachineConfig) -> None:
        """The program that always runs: it owns pages, and finds out if they are lost."""
        used = config.ram_bytes // 20 if config.used_bytes is None else config.used_bytes
        self._resident: UserTask | None = None
        pages = used // PAGE_SIZE
        if not pages:
            return
        if pages > self.pages.free_pages():
            raise InvalidArgument(
                f"a program cannot own {used} bytes",
                why=f"{self.kernel.free_bytes} bytes are free after boot",
                hint="a smaller --used",
            )
        self._resident = UserTask(self.kernel, "resident")
        self._resident.allocate(pages)

    def _ending(self) -> int:
        return self.check()["lost_pages"] if self._trouble is None else 0

    def _stop_runtime(self) -> None:
        if not self.runtime.stop(STOP_SECONDS):
            # Its thread may be anywhere in guest memory or rings: they are left to the end of the process.
            self._abandoned = True
            raise self._stuck("a task of the guest did not end", "it does not wait in a runtime primitive")
        self.driver.close()
        self.runtime.close()

    def _unless_abandoned(self, close: Callable[[], None]) -> None:
        if not self._abandoned:
            close()

    def _stuck(self, what: str, why: str) -> BalloonError:
        """The error for guest code that does not go on, with the place where each task stands."""
        design = self.config.design
        users_file = str(PurePath(design.rpartition(":")[0])) if is_file(design) else ""
        standing = "; ".join(
            f"{name} stands at {where}"
            for name, where in self.runtime.standing(users_file)
            if not where.startswith(("?", PurePath(__file__).name))
        )
        why = f"{why}: {standing}" if standing else why
        if users_file:
            return DesignError(
                what,
                why=why,
                hint=f"look for a loop or a wait there, in {design}; a fill that gets no page calls vb.no_memory()",
            )
        return InternalError(what, why=why)

    def _run(self, name: str, role: str, function: Callable[[], T]) -> T:
        """Runs guest code in a task of its own, and does not wait for ever.

        Raises:
            MachineStopped: if the machine ends meanwhile.
            DesignError: if nothing at all has happened in the guest for `STUCK_SECONDS`.
            BalloonError: whatever the function raises.
        """
        result: list[T] = []
        raised: list[BalloonError] = []

        def body() -> None:
            try:
                result.append(function())
            except BalloonError as error:
                raised.append(error)

        try:
            task = self.runtime.spawn(name, role, body)
        except Stopped:
            raise MachineStopped(f"machine {self.name} has ended") from None
        seen: tuple[object, ...] | None = None
        since = time.monotonic()
        while not self.runtime.join(task, 0.5):
            now = self._progress()
            if now != seen:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since >= STUCK_SECONDS:
                raise self._stuck(
                    f"the guest stands still: {role}", f"nothing has moved for {STUCK_SECONDS:.0f} s"
                )
        if raised:
            raise raised[0]
        if result and not self.runtime.stopping:
            return result[0]
        if self._trouble is not None and task.error is not None:
            raise self._trouble
        raise MachineStopped(f"machine {self.name} has ended")

    def in_guest(self, name: str, role: str, function: Callable[[], T]) -> T:
        """Runs a function as a task of the guest, for programs that use its kernel directly.

        Args:
            name: of the task, such as O.
            role: what reports call it.
            function: what it does; it may block as guest code does.

        Raises:
            MachineStopped: if the machine ends meanwhile.
            DesignError: if the guest stands still.
            BalloonError: whatever the function raises.
        """
        return self._run(name, role, function)

    def _progress(self) -> tuple[object, ...]:
        """Whatever changes when anything moves."""
        kernel = self.kernel
        with self._attached("watch", "sees that the guest goes on"):
            return (
                self.device.counters().requests,
                self.pages.counts(),
                kernel.oom_events.value,
                kernel.faults.value,
                self.config.clock == "virtual" and self.runtime.now_ns(),
            )

    def _stop_pump(self) -> None:
        os.eventfd_write(self._pump_stop, 1)
        self._pump.join()

    # -- events and trouble --------------------------------------------------

    def _pump_events(self) -> None:
        """Turns writes of `actual` into BALLOON_CHANGE events, a few a second."""
        poller = select.poll()
        poller.register(self.device.actual_fd, select.POLLIN)
        poller.register(self._pump_stop, select.POLLIN)
        last = 0
        while True:
            ready = {fd for fd, _ in poller.poll()}
            if self._pump_stop in ready:
                return
            actual = self.device.take_actual()
            if self.config.clock == "real":  # what is seen on a virtual one must not depend on real time
                self._unmoved_ns(self.runtime.now_ns())
            if actual != last:
                last = actual
                self._emit("BALLOON_CHANGE", {"actual": self.ram_bytes - actual * PAGE_SIZE})
            if _readable(self._pump_stop, EVENT_INTERVAL):
                return

    def _on_deadlock(self, tasks: tuple[DeadlockTask, ...]) -> None:
        report = DeadlockReport(design=self.config.design, tasks=tasks)
        with self._lock:
            if self._deadlock is not None:
                return
            self._deadlock = report
        self._emit("X_DEADLOCK", {"report": to_document(report)})
        self.driver.vb.settled.wake_all()

    def _on_crash(self, task: ThreadTask, error: BaseException) -> None:
        """A task of the guest kernel ended with an error: the machine is in trouble."""
        trouble = error if isinstance(error, BalloonError) else self._crashed(task, error)
        with self._lock:
            if self._trouble is None:
                self._trouble = trouble
        self._emit("X_TROUBLE", {"error": trouble.as_document()})
        if hasattr(self.driver, "vb"):
            self.driver.vb.settled.wake_all()

    def _crashed(self, task: ThreadTask, error: BaseException) -> BalloonError:
        """The error for a task that ended with an exception of Python, with the line."""
        where = ""
        trace = error.__traceback__
        while trace is not None:
            code = trace.tb_frame.f_code
            where = f" at {PurePath(code.co_filename).name}:{trace.tb_lineno} in {code.co_qualname}"
            trace = trace.tb_next
        what = f"task {task.name} ended with {type(error).__name__}{where}"
        return (DesignError if is_file(self.config.design) else InternalError)(what, why=str(error))

    def deadlock(self) -> DeadlockReport | None:
        """The first deadlock, if there was one."""
        return self._deadlock

    @property
    def trouble(self) -> BalloonError | None:
        """What ended a task of the guest kernel, or the broken device, if anything did."""
        if self._trouble is not None:
            return self._trouble
        broken = self.device.broken()
        if broken is None:
            return None
        queue, reason = broken
        return DeviceBroken(
            "the device needs a reset", why=f"{queue} queue: {reason}", hint=f"balloonctl stop {self.name}"
        )

    # -- figures -------------------------------------------------------------

    @property
    def ram_bytes(self) -> int:
        """Guest memory."""
        return self.config.ram_bytes

    @property
    def target_pages(self) -> int:
        """Size of the balloon that was asked for."""
        with self._attached("figure", "reads the target"):
            return self.device.target_pages

    @property
    def actual_pages(self) -> int:
        """Size of the balloon as the driver reported it."""
        with self._attached("figure", "reads the size"):
            return self.device.actual_pages

    @property
    def state(self) -> MachineState:
        """What the machine as a whole is doing."""
        if self._stopping:
            return "stopping"
        if self._deadlock is not None:
            return "deadlocked"
        trouble = self.trouble
        if isinstance(trouble, DeviceBroken):
            return "broken"
        if trouble is not None:
            return "bug"
        return "stalled" if self._stalled() else "running"

    def _measured(self) -> tuple[int, int, int]:
        memory = self.memory
        return (memory.size_bytes, *memory.allocated())

    def status(self) -> Status:
        """A snapshot of everything.

        Raises:
            MachineStopped: if the machine has ended.
        """
        with self._attached("status", "reads figures"):
            return self._status()

    def _status(self) -> Status:
        kernel, driver = self.kernel, self.driver
        outside = self._from_outside((index, queue.size) for index, queue in enumerate(driver.queues))
        counts = self.pages.counts()
        queues = tuple(
            replace(status, kicks=queue.kicks, kicks_suppressed=queue.kicks_suppressed)
            for status, queue in zip(outside.queues, driver.queues, strict=True)
        )
        return replace(
            outside,
            design=self.config.design,
            design_options=dict(driver.design.option),
            guest_free_bytes=counts.free * PAGE_SIZE,
            guest_used_bytes=counts.user * PAGE_SIZE,
            memory=self.config.memory,
            stack=KernelStack(size_bytes=kernel.stacks.size_bytes, peak_bytes=kernel.stacks.peak_bytes),
            counters=replace(
                outside.counters,
                kicks=sum(queue.kicks for queue in driver.queues),
                kicks_suppressed=sum(queue.kicks_suppressed for queue in driver.queues),
                oom_events=kernel.oom_events.value,
                oom_kills=kernel.oom_kills.value,
                oom_deflated_pages=driver.oom_deflated_pages.value,
                migrated_pages=driver.migrated_pages.value,
                migrations_refused=driver.migrations_refused.value,
                lost_pages=kernel.lost_pages.value,
                page_violations=counts.violations,
            ),
            queues=queues,
        )

    def _trouble_text(self) -> str | None:
        if self._deadlock is not None:
            names = ", ".join(task.task for task in self._deadlock.tasks)
            return f"tasks {names} wait for each other's locks"
        trouble = self.trouble
        if trouble is None:
            return None
        return f"{trouble.what}: {trouble.why}" if trouble.why else trouble.what

    # -- the balloon ---------------------------------------------------------

    def set_target(self, pages: int) -> None:
        """Asks the driver for a balloon of that many pages.

        Raises:
            InvalidArgument: if the guest has fewer.
        """
        self._target_set_ns = self.runtime.now_ns()
        self._moves(self._target_set_ns)
        self.memory.allocated_peak_bytes()  # what leaves is counted from the fullest moment
        self.device.set_target(pages)
        self.driver.config_changed()
        self.driver.vb.settled.wake_all()

    @property
    def _stalled_ns(self) -> int:
        return STALLED_NS

    def _now_ns(self) -> int:
        return self.runtime.now_ns()

    def _settled(self) -> bool:
        return super()._settled() and not self._driver_busy()

    def _driver_busy(self) -> bool:
        """Whether the size worker runs, will run, or has not looked at the target yet."""
        # In this order: a worker that starts in between is at work before it looks at the target.
        return self.driver.seen_target != self.device.target_pages or self.driver.resizing

    def _short_reason(self) -> ShortReason | None:
        if self._deadlock is not None:
            return "deadlocked"
        trouble = self.trouble
        if isinstance(trouble, DeviceBroken):
            return "device-broken"
        if trouble is not None:
            return "kernel-bug"
        # Asked first: a worker that comes to rest after this look has written `actual` before it.
        busy = self._driver_busy()
        target, actual = self.device.target_pages, self.device.actual_pages
        if actual == target:
            return None
        if self.driver.vb.out_of_puff.value and actual < target:
            return "guest-has-no-free-pages"
        if busy:
            return None
        if actual < target:
            return "deflated-by-oom"
        return None

    def wait(self, timeout_ns: int | None = None, abandoned: Callable[[], bool] | None = None) -> WaitResult:
        """Waits until the balloon has its size, or until it is clear that it will not get it now.

        Args:
            timeout_ns: give up after that long; None never.
            abandoned: asked now and then; True ends the wait as a timeout does.

        Raises:
            MachineStopped: if the machine ends meanwhile.
        """
        return self._run("wait", "waiting for the target", lambda: self._wait(timeout_ns, abandoned))

    def _wait(self, timeout_ns: int | None, abandoned: Callable[[], bool] | None) -> WaitResult:
        runtime = self.runtime
        started = runtime.now_ns()
        target = self.device.target_pages
        progress = (self.device.counters().requests, started)
        ended: Ended | None = None

        def look() -> bool:
            nonlocal ended, progress
            if self.device.target_pages != target:
                ended = "short", "target-changed"
            elif (reason := self._short_reason()) is not None:
                ended = "short", reason
            elif self.device.actual_pages == target and not self._driver_busy():
                ended = "reached", None
            now = runtime.now_ns()
            self._unmoved_ns(now)
            requests = self.device.counters().requests
            if requests != progress[0]:
                progress = (requests, now)
            elif ended is None and now - progress[1] >= STALLED_NS:
                ended = "short", "driver-stalled"
            if ended is None and (
                (timeout_ns is not None and now - started >= timeout_ns)
                or (abandoned is not None and abandoned())
            ):
                ended = "timeout", None
            return ended is not None

        while ended is None:
            step = STALLED_NS // 8
            if timeout_ns is not None:
                step = max(1, min(step, timeout_ns - (runtime.now_ns() - started)))
            self.driver.vb.settled.wait_until(look, step)
        if self._trouble is not None and not isinstance(self._trouble, RuleBroken):
            raise self._trouble
        if ended[0] != "timeout":
            # The device acknowledges before it gives memory back; what is told has left.
            self.device.flush()
        return self._wait_result(ended, target, runtime.now_ns() - self._target_set_ns)

    @contextlib.contextmanager
    def _task(self, name: str, role: str) -> Iterator[None]:
        """The calling thread as a task; a stop becomes MachineStopped.

        So does one that came in the meantime without reaching this task: what it saw of the
        others, which were ending, means nothing.
        """
        if self._stopping:
            raise MachineStopped(f"machine {self.name} has ended")
        with self._attached(name, role):
            yield
            if self.runtime.stopping:
                raise Stopped

    @contextlib.contextmanager
    def _attached(self, name: str, role: str) -> Iterator[None]:
        """The calling thread as a task, even while the machine ends: its memory stays until the task is over."""
        try:
            with self.runtime.adopted(name, role):
                yield
        except Stopped:
            raise MachineStopped(f"machine {self.name} has ended") from None

    def sleep(self, duration_ns: int) -> None:
        """Lets that much of the machine's time pass."""
        if self.config.clock == "virtual":
            # Virtual time stands still while anybody runs, for ever if that is for ever.
            self._run("script", "script", lambda: self.runtime.sleep(duration_ns))
            return
        with self._task("script", "script"):
            self.runtime.sleep(duration_ns)

    # -- memory pressure -----------------------------------------------------

    def oom(
        self, size_bytes: int | None = None, gfp_fs: bool = True, while_filling: bool = False
    ) -> OomReport:
        """Runs a program that allocates until memory is out, and reports what became of it.

        Args:
            size_bytes: how much it allocates; None is all that is free and half of the balloon.
            gfp_fs: whether its allocations may enter the filesystem. Without, it can neither
                wait for the filesystem nor call the killer.
            while_filling: have it hold the filesystem lock, and let the size worker fill
                until the guest has no free page first: the scene of the 2017 review.

        Raises:
            MachineStopped: if the machine ends meanwhile.
            RuleBroken: if the guest kernel met a BUG().
        """
        fs = gfp_fs and not while_filling
        with self._oom_lock:
            return self._run(
                "caller", "oom", lambda: self._oom(size_bytes, gfp_fs=fs, while_filling=while_filling)
            )

    def _oom(self, size_bytes: int | None, *, gfp_fs: bool, while_filling: bool) -> OomReport:
        free = self.pages.free_pages()
        held = self.driver.vb.num_pages.value
        if size_bytes is not None:
            pages = -(-size_bytes // PAGE_SIZE)
        elif while_filling:
            pages = WHILE_FILLING_PAGES
        else:
            pages = free + max(self.runtime.batch, held // 2)
        broken = self._broken_rules()
        hog = MemoryHog(self.kernel, pages, gfp_fs=gfp_fs, while_filling=while_filling)
        self.runtime.spawn("O", hog.role, hog.run)
        previous = self.device.target_pages
        if while_filling:
            hog.progress.wait_until(lambda: hog.has_fs)
            # Everything: the worker fills until it finds no free page.
            self.set_target(self.memory.size_pages)
        self._until_over(hog)
        deadlock = None if hog.over else self._deadlock
        if while_filling:
            self.set_target(previous)
        since = {name: number - broken[name] for name, number in self._broken_rules().items()}
        return self._oom_report(hog, deadlock, {name: number for name, number in since.items() if number})

    def _broken_rules(self) -> dict[str, int]:
        """The counters of `BROKEN_RULES`."""
        counted = self.device.counters()
        return {
            "page_violations": self.pages.counts().violations,
            "pfns_duplicate": counted.pfns_duplicate,
            "pfns_out_of_range": counted.pfns_out_of_range,
            "pfns_never_inflated": counted.pfns_never_inflated,
        }

    def _until_over(self, hog: MemoryHog) -> None:
        """Until the program has ended, or it is clear that it never will.

        Raises:
            RuleBroken: if a task of the guest kernel met a BUG().
        """

        def over() -> bool:
            return hog.over or self._deadlock is not None or self._trouble is not None

        while not over():
            # A deadlock or a crash elsewhere does not wake this queue: hence the limit.
            hog.progress.wait_until(over, OOM_LOOK_NS)
        if self._trouble is not None:
            raise self._trouble

    def _oom_report(
        self, hog: MemoryHog, deadlock: DeadlockReport | None, broken: dict[str, int]
    ) -> OomReport:
        outcome: OomOutcome = "fitted"
        if deadlock is not None:
            outcome = "deadlocked"
        elif hog.stuck:
            outcome = "livelocked"
        elif hog.victim is not None:
            outcome = "killed"
        elif hog.wait.rounds:
            outcome = "relieved"
        return OomReport(
            outcome=outcome,
            requested_bytes=hog.pages * PAGE_SIZE,
            allocated_bytes=hog.got * PAGE_SIZE,
            rounds=hog.wait.rounds,
            balloon_pages=hog.wait.freed_pages,
            waited_ns=hog.wait.waited_ns,
            longest_wait_ns=hog.wait.longest_ns,
            killed=hog.victim,
            lost_pages=hog.lost,
            broken_rules=broken,
            while_filling=hog.while_filling,
            gfp_fs=hog.gfp_fs,
            deadlock=deadlock,
        )

    def compact(self, pages: int | None = None) -> CompactReport:
        """Runs compaction over the balloon's pages."""
        return self._run("C", "compaction", partial(compact, self.kernel, self.driver.migrate, pages))

    def check(self) -> dict[str, int]:
        """Lets every guest program check its pages: checked_pages, lost_pages."""
        checked = lost = 0
        with self._attached("check", "checks pages"):
            for task in list(self.kernel.tasks):
                task_checked, task_lost = task.check()
                checked += task_checked
                lost += task_lost
        return {"checked_pages": checked, "lost_pages": lost}

    # -- statistics ----------------------------------------------------------

    def statistics(self, refresh: bool = True) -> StatsReport:
        """The guest's statistics; asks the driver for fresh ones first if `refresh`.

        Raises:
            MachineStopped: if the machine has ended.
        """
        with self._task("statistics", "asks for statistics"):
            return collect(self.device, refresh=refresh, ended=lambda: self._stopping)

    def _poll_every(self, seconds: int) -> None:
        with self._lock:
            self._stats_interval = seconds
            start = seconds > 0 and not self._polling
            self._polling = self._polling or start
        if start:
            self.runtime.spawn("P", "statistics poller", self._poll_stats)
        else:
            self._repoll.wake_all()

    def _poll_stats(self) -> None:
        while True:
            with self._lock:
                seconds = self._stats_interval
                if not seconds:
                    self._polling = False
                    return
            self.device.request_stats()
            self._repoll.wait_until(partial(self._interval_is_not, seconds), seconds * 1_000_000_000)

    def _interval_is_not(self, seconds: int) -> bool:
        return self._stats_interval != seconds


def _kernel_pages(queue_size: int) -> int:
    """Pages for three rings, PFN arrays and buffers."""
    layout = ring_layout(0, queue_size)
    ring = layout.desc_bytes + layout.driver_bytes + layout.device_bytes + 3 * 64
    return -(-(3 * ring + KERNEL_EXTRA_BYTES) // PAGE_SIZE)


def _readable(fd: int, seconds: float) -> bool:
    """Waits up to that long for a descriptor to become readable."""
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(seconds * 1000))
