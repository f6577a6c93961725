"""Small programs with known verdicts."""

from __future__ import annotations

from typing import Any

from balloonvq.explore.world import Bounds, Program, SharedObject


def two_locks(rt: Any) -> None:
    a, b = rt.mutex("a"), rt.mutex("b")

    def first() -> None:
        with a, b:
            pass

    def second() -> None:
        with b, a:
            pass

    rt.spawn("A", "", first)
    rt.spawn("B", "", second)


def ordered_locks(rt: Any) -> None:
    a, b = rt.mutex("a"), rt.mutex("b")

    def both() -> None:
        with a, b:
            pass

    rt.spawn("A", "", both)
    rt.spawn("B", "", both)


def lost_wake_up(rt: Any) -> None:
    queue, flag = rt.wait_queue("queue"), rt.shared("flag")

    def waiter() -> None:
        queue.wait_until(lambda: flag.value)

    def waker() -> None:
        queue.wake_all()
        flag.value = 1

    rt.spawn("A", "", waiter)
    rt.spawn("B", "", waker)


def wake_up(rt: Any) -> None:
    queue, flag = rt.wait_queue("queue"), rt.shared("flag")

    def waiter() -> None:
        queue.wait_until(lambda: flag.value)

    def waker() -> None:
        flag.value = 1
        queue.wake_all()

    rt.spawn("A", "", waiter)
    rt.spawn("B", "", waker)


def spin_under_lock(rt: Any) -> None:
    mutex, flag = rt.mutex("mutex"), rt.shared("flag")

    def spinner() -> None:
        with mutex:
            while not flag.value:
                rt.relax()

    def setter() -> None:
        with mutex:
            flag.value = 1

    rt.spawn("A", "", spinner)
    rt.spawn("B", "", setter)


def busy_spin(rt: Any) -> None:
    flag = rt.shared("flag")

    def spinner() -> None:
        while not flag.value:
            rt.cpu_relax()

    def setter() -> None:
        flag.value = 1

    rt.spawn("A", "", spinner)
    rt.spawn("B", "", setter)


def lost_update(rt: Any) -> None:
    word = rt.shared("word")

    def increment() -> None:
        word.value += 1

    rt.spawn("A", "", increment)
    rt.spawn("B", "", increment)
    rt.invariant("no update is lost", lambda value: value == 2, word, at_rest=True)


def assertion(rt: Any) -> None:
    word = rt.shared("word")

    def writer() -> None:
        word.value = 1
        word.value = 2

    def checker() -> None:
        if word.value == 1:
            raise AssertionError("saw the middle")

    rt.spawn("A", "", writer)
    rt.spawn("B", "", checker)


def invariant_inside(rt: Any) -> None:
    """Broken only between two accesses under the guard: a scheduling point because it is watched."""
    mutex = rt.mutex("mutex")
    pair = rt.shared_object(
        SharedObject(
            "pair",
            (0, 0),
            {"left": lambda v: ((v[0] + 1, v[1]), None), "right": lambda v: ((v[0], v[1] + 1), None)},
            guard="mutex",
        )
    )

    def both() -> None:
        with mutex:
            pair.apply("left")
            pair.apply("right")

    rt.spawn("A", "", both)
    rt.invariant("equal", lambda v: v[0] == v[1], pair)


def race(rt: Any) -> None:
    mutex = rt.mutex("mutex")
    data = rt.shared_object(
        SharedObject(
            "data",
            0,
            {"set": lambda _, v: (v, None), "get": lambda v: (v, v)},
            reads=frozenset({"get"}),
            guard="mutex",
        )
    )

    def careful() -> None:
        with mutex:
            data.apply("set", 1)

    def careless() -> None:
        data.apply("get")

    rt.spawn("A", "", careful)
    rt.spawn("B", "", careless)


def host(rt: Any) -> None:
    """A request, a daemon that repeats, an interrupt, a work item."""
    ring = rt.shared_object(
        SharedObject(
            "ring",
            (0, 0),
            {
                "add": lambda v: ((v[0] + 1, v[1]), None),
                "pop": lambda v: None if not v[0] else ((v[0] - 1, v[1] + 1), None),
                "get": lambda v: ((v[0], v[1] - 1), True) if v[1] else (v, False),
            },
            idle=frozenset({"pop"}),
        )
    )
    acked = rt.wait_queue("acked")
    acked.attach(7)

    def turn() -> None:
        ring.apply("pop")
        rt.interrupt(7)

    def size() -> None:
        for _ in range(2):
            ring.apply("add")
            acked.wait_until(lambda: ring.apply("get"))

    work = rt.work("W", "size worker", size)
    rt.spawn("H", "host", turn, daemon=True, repeats=True)
    rt.spawn("U", "user", work.queue)


def trylock(rt: Any) -> None:
    """B's trylock can fail although A does nothing under its lock."""
    mutex, failed = rt.mutex("mutex"), rt.shared("failed")

    def holder() -> None:
        with mutex:
            pass

    def trier() -> None:
        if mutex.trylock():
            mutex.unlock()
        else:
            failed.value = 1

    rt.spawn("A", "", holder)
    rt.spawn("B", "", trier)
    rt.invariant("never fails", lambda value: value == 0, failed, at_rest=True)


def polite_forever(rt: Any) -> None:
    """Two that take and give back for ever: each step moves, nothing is achieved."""
    a, b = rt.mutex("a"), rt.mutex("b")

    def actor(mine: Any, other: Any) -> None:
        while True:
            mine.lock()
            if other.trylock():
                break
            mine.unlock()
            rt.relax()
        other.unlock()
        mine.unlock()

    rt.spawn("A", "", lambda: actor(a, b))
    rt.spawn("B", "", lambda: actor(b, a))


def program(build: Any, **bounds: bool) -> Program:
    return Program(build.__name__, build, Bounds(**bounds))
