"""The runtime on real threads: locks and their wait-for graph, wait queues, work items, both clocks, the end."""

from __future__ import annotations

import contextlib
import faulthandler
import inspect
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.waiting import never, open_descriptors, until

from balloonvq.counters import DeadlockTask
from balloonvq.errors import InternalError
from balloonvq.runtime import Stopped, threads
from balloonvq.runtime.threads import JIFFY_NS, ThreadMutex, ThreadRuntime, ThreadTask, ThreadWork

SECOND = 1_000_000_000


class Rig(ThreadRuntime):
    """A runtime that remembers what it reported."""

    def __init__(self, *, virtual_clock: bool = False) -> None:
        self.circles: list[tuple[DeadlockTask, ...]] = []
        self.crashes: list[BaseException] = []
        super().__init__(
            virtual_clock=virtual_clock,
            on_deadlock=self.circles.append,
            on_crash=lambda _task, error: self.crashes.append(error),
        )

    def go(self, *functions: Callable[[], object]) -> list[ThreadTask]:
        """Spawns tasks named A, B, C ..."""
        return [
            self.spawn(name, f"task {name}", function)
            for name, function in zip("ABCDEFGH", functions, strict=False)
        ]

    def run(self, *functions: Callable[[], object]) -> None:
        """Spawns tasks and waits for their end."""
        for task in self.go(*functions):
            assert self.join(task, 20), f"{task.name} does not end"
        assert self.crashes == []


@contextlib.contextmanager
def rigged(*, virtual_clock: bool) -> Iterator[Rig]:
    rig = Rig(virtual_clock=virtual_clock)
    yield rig
    assert rig.stop(), "a task did not end"
    rig.close()


@pytest.fixture
def rig() -> Iterator[Rig]:
    with rigged(virtual_clock=False) as rig:
        yield rig


@pytest.fixture
def virtual() -> Iterator[Rig]:
    with rigged(virtual_clock=True) as rig:
        yield rig


@pytest.fixture(params=["real", "virtual"])
def either(request: pytest.FixtureRequest) -> Iterator[Rig]:
    with rigged(virtual_clock=request.param == "virtual") as rig:
        yield rig


def waiting(rig: Rig, mutex: ThreadMutex, count: int) -> Callable[[], bool]:
    return lambda: len(mutex._waiters) == count and all(task.parked for task in mutex._waiters)


def line_of(function: Callable[..., object], text: str) -> str:
    """file:line of the only line of a function that holds a text."""
    lines, first = inspect.getsourcelines(function)
    (offset,) = [index for index, line in enumerate(lines) if text in line]
    return f"{Path(__file__).name}:{first + offset}"


# -- mutexes -------------------------------------------------------------------


def test_a_mutex_goes_to_the_longest_waiter(rig: Rig) -> None:
    mutex = rig.mutex("m")
    order: list[str] = []
    with rig.adopted("main", "main"):
        mutex.lock()
        for index, name in enumerate("ABCDE"):

            def take(name: str = name) -> None:
                with mutex:
                    order.append(name)

            rig.spawn(name, "taker", take)
            until(waiting(rig, mutex, index + 1))
        assert mutex.held_by_me()
        mutex.unlock()
        until(lambda: len(order) == 5)
    assert order == list("ABCDE")


def test_trylock_takes_a_free_mutex_only(rig: Rig) -> None:
    mutex = rig.mutex("m")
    with rig.adopted("main", "main"):
        assert mutex.trylock()
        assert mutex.held_by_me()
        assert not mutex.trylock()
        got: list[bool] = []
        rig.run(lambda: got.append(mutex.trylock()), lambda: got.append(mutex.held_by_me()))
        assert got == [False, False]
        mutex.unlock()
        assert not mutex.held_by_me()

        def take_and_release() -> None:
            got.append(mutex.trylock())
            mutex.unlock()

        rig.run(take_and_release)
        assert got[-1]


def test_only_the_owner_unlocks(rig: Rig) -> None:
    mutex = rig.mutex("m")
    with rig.adopted("main", "main"):
        with pytest.raises(InternalError, match="main unlocks m, which it does not hold"):
            mutex.unlock()
        mutex.lock()
        [task] = rig.go(mutex.unlock)
        assert rig.join(task, 10)
        assert isinstance(task.error, InternalError)
        assert rig.crashes == [task.error]
        mutex.unlock()
        with pytest.raises(InternalError):
            mutex.unlock()


def test_a_thread_that_is_no_task_may_not_lock(rig: Rig) -> None:
    mutex = rig.mutex("m")
    for take in (mutex.lock, mutex.trylock):
        with pytest.raises(InternalError, match="is no task"):
            take()
    # ... and has not taken anything by trying.
    with rig.adopted("main", "main"):
        assert mutex.trylock()
        mutex.unlock()


def test_a_task_holds_its_mutexes_in_the_order_in_which_it_took_them(rig: Rig) -> None:
    first, second, third = (rig.mutex(name) for name in "abc")
    with rig.adopted("main", "test") as task:
        first.lock()
        second.lock()
        third.lock()
        assert task.held == [first, second, third]
        second.unlock()
        assert task.held == [first, third]
        assert second.trylock()
        assert task.held == [first, third, second]
        for mutex in (first, second, third):
            mutex.unlock()
        assert task.held == []


def test_a_mutex_keeps_nothing_of_who_had_it(rig: Rig) -> None:
    mutex = rig.mutex("m")

    def turn() -> None:
        with mutex:
            pass

    with rig.adopted("main", "test") as task:
        turn()
        before = [sys.getrefcount(thing) for thing in (task, turn.__code__, mutex)]
        for _ in range(1000):
            turn()
        assert [sys.getrefcount(thing) for thing in (task, turn.__code__, mutex)] == before


def test_a_mutex_is_released_by_an_error_in_its_block(rig: Rig) -> None:
    mutex = rig.mutex("m")
    with rig.adopted("main", "main"):
        with pytest.raises(ZeroDivisionError), mutex:
            raise ZeroDivisionError
        assert mutex.trylock()
        mutex.unlock()


def test_mutual_exclusion_under_contention(either: Rig) -> None:
    mutex = either.mutex("m")
    total = [0]

    def work() -> None:
        for _ in range(2000):
            with mutex:
                value = total[0]
                if value % 64 == 0:
                    either.relax() if value % 1024 == 0 else time.sleep(0)
                total[0] = value + 1

    either.run(*[work] * 4)
    assert total == [8000]
    assert either.circles == []


def test_shared_words_add_atomically(rig: Rig) -> None:
    word = rig.shared("n", 5)
    rig.run(*[lambda: [word.add(2) for _ in range(5000)]] * 4)
    assert word.value == 5 + 4 * 5000 * 2
    word.value = 3
    assert word.add(-4) == -1


# -- deadlocks -----------------------------------------------------------------


def test_two_tasks_that_wait_for_each_other_are_reported(either: Rig) -> None:
    first, second = either.mutex("first"), either.mutex("second")
    meet = threading.Barrier(2)

    def a() -> None:
        with first:  # A takes first
            meet.wait()
            with second:  # A wants second
                pass

    def b() -> None:
        second.lock()  # B takes second
        meet.wait()
        first.lock()  # B wants first

    either.go(a, b)
    until(lambda: either.circles)
    [circle] = either.circles
    by_name = {task.task: task for task in circle}
    assert set(by_name) == {"A", "B"}
    for name, function, holds, wants, owner in (
        ("A", a, "first", "second", "B"),
        ("B", b, "second", "first", "A"),
    ):
        task = by_name[name]
        assert task.role == f"task {name}"
        assert [(lock.name, lock.where) for lock in task.holds] == [
            (holds, line_of(function, f"# {name} takes {holds}"))
        ]
        assert (task.wants, task.owner) == (wants, owner)
        where = line_of(function, f"# {name} wants {wants}")
        assert task.wants_where == where
        assert any(
            frame.startswith(f"{where} in ") and frame.endswith(f".{name.lower()}") for frame in task.stack
        )
        assert not any(frame.startswith("threads.py") for frame in task.stack)


def test_three_tasks_in_a_circle_are_reported_once(rig: Rig) -> None:
    locks = [rig.mutex(f"lock {index}") for index in range(3)]
    meet = threading.Barrier(3)

    def task(index: int) -> Callable[[], None]:
        def body() -> None:
            with locks[index]:
                meet.wait()
                locks[(index + 1) % 3].lock()

        return body

    rig.go(*map(task, range(3)))
    until(lambda: rig.circles)
    [circle] = rig.circles
    assert sorted((t.task, t.holds[0].name, t.wants, t.owner) for t in circle) == [
        ("A", "lock 0", "lock 1", "B"),
        ("B", "lock 1", "lock 2", "C"),
        ("C", "lock 2", "lock 0", "A"),
    ]
    # Each waits for the next one of the report.
    assert all(t.owner == n.task for t, n in zip(circle, circle[1:] + circle[:1], strict=True))
    never(lambda: len(rig.circles) > 1)


def test_a_task_that_locks_twice_is_a_circle_of_one(rig: Rig) -> None:
    mutex = rig.mutex("m")

    def twice() -> None:
        mutex.lock()
        mutex.lock()

    rig.go(twice)
    until(lambda: rig.circles)
    [[task]] = rig.circles
    assert (task.task, task.wants, task.owner) == ("A", "m", "A")


def test_regression_a_bystander_of_a_deadlock_waits_and_ends(rig: Rig) -> None:
    # Its walk enters the circle and never comes back to it: it must end all the same.
    first, second = rig.mutex("first"), rig.mutex("second")
    meet = threading.Barrier(2)

    def crossing(one: ThreadMutex, other: ThreadMutex) -> Callable[[], None]:
        def body() -> None:
            with one:
                meet.wait()
                other.lock()

        return body

    rig.go(crossing(first, second), crossing(second, first))
    until(lambda: rig.circles)
    faulthandler.dump_traceback_later(30, exit=True)
    try:
        bystander = rig.spawn("X", "bystander", first.lock)
        until(lambda: bystander in first._waiters)
        until(lambda: bystander.parked)
        assert rig.stop()
    finally:
        faulthandler.cancel_dump_traceback_later()
    assert len(rig.circles) == 1
    assert bystander.finished


def test_regression_an_heir_that_has_not_woken_waits_for_nothing(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The heir of a hand-over owns the mutex before its thread runs again. Whoever comes in between
    # must see an owner that waits for nothing.
    mutex = rig.mutex("m")
    unpark = rig._unpark
    with rig.adopted("main", "main"):
        mutex.lock()
        heir = rig.spawn("H", "heir", lambda: (mutex.lock(), mutex.unlock()))
        until(waiting(rig, mutex, 1))
        monkeypatch.setattr(rig, "_unpark", lambda _task: None)
        mutex.unlock()
        assert mutex.owner is heir
        assert heir.waiting_for is None
        faulthandler.dump_traceback_later(30, exit=True)
        with rig._guard:
            assert mutex._circle(rig.current()) == []
            unpark(heir)
        faulthandler.cancel_dump_traceback_later()
        monkeypatch.undo()
        with mutex:
            pass
    assert rig.circles == []


def test_random_lock_orders_that_are_sound_never_alarm(either: Rig) -> None:
    # Locks are always taken in rising order, so no circle is possible, whatever the timing.
    locks = [either.mutex(f"lock {index}") for index in range(6)]
    done = [0] * 6

    def worker(seed: int) -> Callable[[], None]:
        draw = random.Random(seed)

        def body() -> None:
            for _ in range(400):
                chosen = sorted(draw.sample(range(6), draw.randint(1, 4)))
                taken = []
                for index in chosen:
                    if draw.random() < 0.2:
                        if locks[index].trylock():
                            taken.append(index)
                    else:
                        locks[index].lock()
                        taken.append(index)
                    if draw.random() < 0.1:
                        time.sleep(0)
                if draw.random() < 0.02:
                    either.relax()
                draw.shuffle(taken)
                for index in taken:
                    locks[index].unlock()
                done[seed] += 1

        return body

    either.run(*map(worker, range(6)))
    assert done == [400] * 6
    assert either.circles == []
    assert all(lock.owner is None and not lock._waiters for lock in locks)


def test_random_lock_orders_that_are_unsound_alarm_or_end(rig: Rig) -> None:
    # Any order: most runs deadlock. Whatever happens is either an end or a reported circle.
    for seed in range(15):
        inner = Rig()
        locks = [inner.mutex(f"lock {index}") for index in range(3)]

        def body(draw: random.Random, inner: Rig = inner, locks: list[ThreadMutex] = locks) -> None:
            for _ in range(200):
                chosen = draw.sample(range(3), 2)
                for index in chosen:
                    locks[index].lock()
                    time.sleep(0)
                for index in chosen:
                    locks[index].unlock()

        tasks = [
            inner.spawn(str(n), "any order", lambda n=n, seed=seed: body(random.Random(seed * 7 + n)))
            for n in range(4)
        ]
        until(lambda inner=inner, tasks=tasks: inner.circles or all(task.finished for task in tasks))
        assert inner.stop()
        inner.close()
        for circle in inner.circles:
            held = {lock.name: task.task for task in circle for lock in task.holds}
            assert all(held[task.wants] == task.owner for task in circle)


# -- the end -------------------------------------------------------------------


def test_stop_reaches_tasks_wherever_they_are_blocked(either: Rig) -> None:
    mutex = either.mutex("m")
    queue = either.wait_queue("q")
    timed = either.wait_queue("timed")
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    timed.attach(fd)
    ended: list[str] = []

    def blocked(name: str, block: Callable[[], object]) -> Callable[[], None]:
        def body() -> None:
            try:
                block()
            except Stopped:
                ended.append(name)
                raise

        return body

    work = either.work("W", "work", lambda: None)
    # While main runs, virtual time stands still.
    with either.adopted("main", "main"):
        mutex.lock()
        tasks = either.go(
            blocked("mutex", mutex.lock),
            blocked("sleep", lambda: either.sleep(10**15)),
            blocked("wait", lambda: queue.wait_until(lambda: False)),
            blocked("timed wait", lambda: timed.wait_until(lambda: False, 10**15)),
        )
        until(lambda: waiting(either, mutex, 1)() and queue._waiters and timed._waiters)
        assert either.stop()
    assert sorted(ended) == ["mutex", "sleep", "timed wait", "wait"]
    assert all(task.finished and task.error is None for task in tasks)
    assert work.task.finished
    assert either.stop()
    os.close(fd)


def test_nothing_starts_after_the_stop(rig: Rig) -> None:
    assert rig.stop()
    with pytest.raises(Stopped):
        rig.spawn("A", "late", lambda: None)


def test_regression_stop_waits_for_adopted_threads(rig: Rig) -> None:
    # What the runtime's owner frees after the stop is in the hands of adopted threads too.
    queue = rig.wait_queue("q")
    left = threading.Event()
    leave = threading.Event()

    def outside() -> None:
        with contextlib.suppress(Stopped), rig.adopted("X", "outside"):
            try:
                queue.wait_until(lambda: False)
            finally:
                leave.wait()
                left.set()

    thread = threading.Thread(target=outside)
    thread.start()
    until(lambda: queue._waiters)
    assert not rig.stop(timeout=0.05)
    assert not left.is_set()
    leave.set()
    assert rig.stop()
    assert left.is_set()
    thread.join()


def test_regression_no_thread_is_adopted_after_the_stop(rig: Rig) -> None:
    assert rig.stop()
    with pytest.raises(Stopped), rig.adopted("X", "late"):
        pytest.fail("adopted by a runtime that has ended")


def test_a_task_may_stop_its_own_runtime(rig: Rig) -> None:
    results: list[bool] = []
    rig.spawn("B", "blocked", lambda: rig.sleep(10**15))
    [task] = rig.go(lambda: results.append(rig.stop()))
    assert rig.join(task, 10)
    assert results == [True]


def test_a_crash_is_kept_and_reported(rig: Rig) -> None:
    def crash() -> None:
        raise ValueError("broken")

    [task] = rig.go(crash)
    assert rig.join(task, 10)
    assert task.finished
    assert isinstance(task.error, ValueError)
    assert rig.crashes == [task.error]


def test_no_descriptor_and_no_thread_is_left(rig: Rig) -> None:
    # The first turn opens what the process opens once; other tests' last descriptors close meanwhile.
    before, threads = 0, 0
    for turn in range(20):
        if turn == 1:
            before, threads = open_descriptors(), threading.active_count()
        inner = ThreadRuntime()
        queue = inner.wait_queue("q")
        mutex = inner.mutex("m")
        inner.work("W", "work", lambda: None)
        inner.spawn("A", "a", lambda queue=queue: queue.wait_until(lambda: False, 10**9))
        inner.spawn("B", "b", lambda mutex=mutex: (mutex.lock(), mutex.unlock()))
        with inner.adopted("X", "x"):
            queue.wait_until(lambda: False, 0)
        assert inner.stop()
        inner.close()
    until(lambda: open_descriptors() == before)
    until(lambda: threading.active_count() == threads)


# -- wait queues ---------------------------------------------------------------


def test_a_condition_that_holds_is_not_waited_for(either: Rig) -> None:
    queue = either.wait_queue("q")
    got: list[object] = []
    either.run(lambda: got.append(queue.wait_until(lambda: "now")))
    assert got == ["now"]


def test_wake_all_wakes_all(either: Rig) -> None:
    queue = either.wait_queue("q")
    word = either.shared("w")
    got: list[int] = []
    tasks = either.go(*[lambda: got.append(queue.wait_until(lambda: word.value))] * 4)
    until(lambda: len(queue._waiters) == 4)
    queue.wake_all()
    never(lambda: got)
    word.value = 7
    queue.wake_all()
    for task in tasks:
        assert either.join(task, 10)
    assert got == [7] * 4


def test_one_interrupt_wakes_both_waiters(either: Rig) -> None:
    queue = either.wait_queue("acked")
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    queue.attach(fd)
    word = either.shared("w")
    for round_ in range(1, 50):
        tasks = either.go(*[lambda round_=round_: queue.wait_until(lambda: word.value >= round_)] * 2)
        if round_ % 2:
            until(lambda: len(queue._waiters) == 2)
        word.value = round_
        os.eventfd_write(fd, 1)
        for task in tasks:
            assert either.join(task, 10), f"a waiter slept through interrupt {round_}"
    os.close(fd)


def test_interrupts_are_not_lost_between_check_and_sleep(either: Rig) -> None:
    # Ping-pong over two eventfds: one lost wake-up stops it.
    ping, pong = (either.wait_queue(name) for name in ("ping", "pong"))
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
    ping.attach(fds[0])
    pong.attach(fds[1])
    turn = either.shared("turn")
    rounds = 2000

    def player(queue: object, mine: int, other_fd: int) -> Callable[[], None]:
        def body() -> None:
            for number in range(mine, rounds, 2):
                queue.wait_until(lambda number=number: turn.value == number)
                turn.value = number + 1
                os.eventfd_write(other_fd, 1)

        return body

    either.run(player(ping, 0, fds[1]), player(pong, 1, fds[0]))
    assert turn.value == rounds
    for fd in fds:
        os.close(fd)


def test_a_timeout_returns_the_false_value(either: Rig) -> None:
    queue = either.wait_queue("q")
    got: list[tuple[object, int]] = []

    def body() -> None:
        started = either.now_ns()
        value = queue.wait_until(list, 20_000_000)
        got.append((value, either.now_ns() - started))

    either.run(body)
    [(value, took)] = got
    assert value == []
    assert took >= 20_000_000


def test_an_error_in_the_condition_leaves_no_waiter(either: Rig) -> None:
    queue = either.wait_queue("q")
    looks = [0]

    def condition() -> bool:
        looks[0] += 1
        if looks[0] == 2:
            raise ZeroDivisionError
        return False

    [task] = either.go(lambda: queue.wait_until(condition))
    assert either.join(task, 10)
    assert isinstance(task.error, ZeroDivisionError)
    assert queue._waiters == []


# -- work items ----------------------------------------------------------------


def test_work_coalesces_and_never_runs_beside_itself(either: Rig) -> None:
    running = [0]
    runs: list[int] = []
    started, go_on = threading.Event(), threading.Event()

    def function() -> None:
        running[0] += 1
        runs.append(running[0])
        started.set()
        go_on.wait()
        running[0] -= 1

    work = either.work("W", "work", function)
    assert not work.pending
    work.queue()
    assert work.pending
    assert started.wait(10)
    for _ in range(5):
        work.queue()
    assert work.pending
    go_on.set()
    until(lambda: not work.pending)
    assert runs == [1, 1]


def test_regression_who_waits_for_rest_is_woken_when_the_work_is_no_longer_pending(either: Rig) -> None:
    # Woken before, a waiter looked too early and slept on until its time limit.
    rest = either.wait_queue("rest")
    work = either.work("W", "work", lambda: None, at_rest=rest)
    waited: list[int] = []

    def wait() -> None:
        for _ in range(300):
            work.queue()
            before = either.now_ns()
            rest.wait_until(lambda: not work.pending, 10**10)
            waited.append(either.now_ns() - before)

    task = either.spawn("A", "waits", wait)
    until(lambda: task.finished)
    assert max(waited) < 10**9


def test_work_runs_at_interrupts(either: Rig) -> None:
    fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
    runs = either.shared("runs")
    work = either.work("W", "work", lambda: runs.add(1), interrupts=tuple(fds))
    for round_ in range(1, 200):
        os.eventfd_write(fds[round_ % 2], 3)
        until(lambda round_=round_: runs.value >= round_)
        until(lambda: not work.pending)
        assert runs.value == round_
    assert either.stop()
    for fd in fds:
        os.close(fd)


def test_work_that_queues_itself_runs_again(either: Rig) -> None:
    left = either.shared("left", 100)

    def function() -> None:
        if left.add(-1):
            work.queue()

    work = either.work("W", "work", function)
    work.queue()
    until(lambda: left.value == 0)
    until(lambda: not work.pending)


def test_regression_work_that_requeues_itself_under_the_look_is_pending() -> None:
    # Queued again and at the end of its run between the two looks.
    class Work(ThreadWork):
        __slots__ = ("_queued",)

        def __init__(self) -> None:
            self._queued = False

        def _raised(self) -> bool:
            return False

        @property
        def _running(self) -> bool:
            self._queued = True
            return False

    assert Work().pending


def test_no_order_to_run_is_lost(rig: Rig) -> None:
    # Whoever queues work after storing something finds that the work has seen it.
    stored = rig.shared("stored")
    seen = rig.shared("seen")

    def function() -> None:
        seen.value = stored.value

    work = rig.work("W", "work", function)
    for number in range(1, 1500):
        stored.value = number
        work.queue()
        if number % 3 == 0:
            until(lambda number=number: seen.value == number)
    until(lambda: seen.value == 1499)


# -- time ----------------------------------------------------------------------


def test_real_sleep_takes_real_time(rig: Rig) -> None:
    started = time.monotonic_ns()
    rig.run(lambda: rig.sleep(20_000_000), rig.relax)
    assert time.monotonic_ns() - started >= 20_000_000


def test_virtual_sleep_jumps(virtual: Rig) -> None:
    started = time.monotonic()
    virtual.run(lambda: virtual.sleep(1000 * SECOND))
    assert virtual.now_ns() == 1000 * SECOND
    assert time.monotonic() - started < 5
    virtual.run(virtual.relax)
    assert virtual.now_ns() == 1000 * SECOND + JIFFY_NS


def test_virtual_deadlines_come_in_order(virtual: Rig) -> None:
    events: list[tuple[int, str]] = []

    def sleeper(name: str, *naps: int) -> Callable[[], None]:
        def body() -> None:
            for nap in naps:
                virtual.sleep(nap)
                events.append((virtual.now_ns(), name))

        return body

    with virtual.adopted("main", "main"):
        # While main runs, time stands still, so all start at 0.
        tasks = virtual.go(sleeper("a", 5, 5, 5), sleeper("b", 7, 7), sleeper("c", 1, 20))
        until(lambda: len(virtual._sleepers) == 3)
        assert virtual.now_ns() == 0
    for task in tasks:
        assert virtual.join(task, 10)
    assert events == [(1, "c"), (5, "a"), (7, "b"), (10, "a"), (14, "b"), (15, "a"), (21, "c")]


def test_virtual_time_stands_still_while_a_task_runs(virtual: Rig) -> None:
    go_on = threading.Event()
    runner, sleeper = virtual.go(go_on.wait, lambda: virtual.sleep(SECOND))
    never(lambda: sleeper.finished or virtual.now_ns())
    go_on.set()
    assert virtual.join(sleeper, 10)
    assert virtual.join(runner, 10)
    assert virtual.now_ns() == SECOND


def test_a_lock_waiter_lets_virtual_time_pass(virtual: Rig) -> None:
    mutex = virtual.mutex("m")
    times: list[int] = []

    def holder() -> None:
        with mutex:
            virtual.sleep(SECOND)

    def waiter() -> None:
        with mutex:
            times.append(virtual.now_ns())

    with virtual.adopted("main", "main"):
        tasks = [virtual.spawn("H", "holder", holder)]
        until(lambda: mutex.owner)
        tasks.append(virtual.spawn("W", "waiter", waiter))
        until(waiting(virtual, mutex, 1))
    for task in tasks:
        assert virtual.join(task, 10)
    assert times == [SECOND]


def test_virtual_timeouts_are_exact(virtual: Rig) -> None:
    queue = virtual.wait_queue("q")
    times: list[int] = []

    def body() -> None:
        queue.wait_until(lambda: False, 3 * SECOND)
        times.append(virtual.now_ns())
        queue.wait_until(lambda: False, 4 * SECOND)
        times.append(virtual.now_ns())

    virtual.run(body)
    assert times == [3 * SECOND, 7 * SECOND]


def test_regression_a_timeout_that_was_not_needed_does_not_move_time(virtual: Rig) -> None:
    queue = virtual.wait_queue("q")
    word = virtual.shared("w")
    with virtual.adopted("main", "main"):
        waiter = virtual.spawn("A", "waiter", lambda: queue.wait_until(lambda: word.value, 5 * SECOND))
        until(lambda: virtual._sleepers)
        word.value = 1
        queue.wake_all()
        assert virtual.join(waiter, 10)
        times: list[int] = []
        sleeper = virtual.spawn(
            "B", "sleeper", lambda: (virtual.sleep(8 * SECOND), times.append(virtual.now_ns()))
        )
        until(lambda: not sleeper.busy)
    assert virtual.join(sleeper, 10)
    assert times == [8 * SECOND]


def test_regression_a_stale_timeout_does_not_stop_the_clock(virtual: Rig) -> None:
    # A wait with a time limit ends early; then its task waits for a mutex whose owner sleeps beyond that
    # limit. Counting the lock waiter as busy at the old limit would stop the clock for ever.
    queue = virtual.wait_queue("q")
    word = virtual.shared("w")
    mutex = virtual.mutex("m")

    def waiter() -> None:
        queue.wait_until(lambda: word.value, SECOND)
        with mutex:
            pass

    def owner() -> None:
        with mutex:
            word.value = 1
            queue.wake_all()
            virtual.sleep(10 * SECOND)

    with virtual.adopted("main", "main"):
        a = virtual.spawn("A", "waiter", waiter)
        until(lambda: virtual._sleepers)
        b = virtual.spawn("B", "owner", owner)
        until(waiting(virtual, mutex, 1))
    assert virtual.join(a, 10)
    assert virtual.join(b, 10)
    assert virtual.now_ns() == 10 * SECOND


def test_regression_a_wake_up_on_the_way_to_sleep_does_not_move_time(virtual: Rig) -> None:
    # The wake-up comes between the last look at the condition and the sleep.
    queue = virtual.wait_queue("q")
    looks = [0]
    times: list[int] = []

    def condition() -> bool:
        looks[0] += 1
        if looks[0] == 2:
            queue.wake_all()
        return looks[0] > 2

    def waiter() -> None:
        queue.wait_until(condition)
        times.append(virtual.now_ns())

    with virtual.adopted("main", "main"):
        sleeper = virtual.spawn("S", "sleeper", lambda: virtual.sleep(SECOND))
        until(lambda: not sleeper.busy)
        task = virtual.spawn("A", "waiter", waiter)
    assert virtual.join(task, 10)
    assert virtual.join(sleeper, 10)
    assert times == [0]


def test_a_wait_for_the_device_holds_the_clock_for_its_grace_time(
    virtual: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    grace_ns = 50_000_000
    monkeypatch.setattr(threads, "DEVICE_GRACE_NS", grace_ns)
    queue = virtual.wait_queue("acked")
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    queue.attach(fd)
    answered = virtual.shared("answered")
    times: list[int] = []

    def waiter() -> None:
        queue.wait_until(lambda: answered.value)
        times.append(virtual.now_ns())

    with virtual.adopted("main", "main"):
        sleeper = virtual.spawn("S", "sleeper", lambda: virtual.sleep(SECOND))
        until(lambda: not sleeper.busy)
        task = virtual.spawn("A", "waiter", waiter)
        until(lambda: queue._waiters)
    answered.value = 1
    os.eventfd_write(fd, 1)
    assert virtual.join(task, 10)
    assert times == [0]
    # A device that never answers does not stop the clock.
    assert virtual.join(sleeper, 10)
    started = time.monotonic_ns()
    virtual.run(lambda: queue.wait_until(lambda: False, SECOND))
    assert time.monotonic_ns() - started >= grace_ns
    assert virtual.now_ns() == 2 * SECOND
    os.close(fd)
