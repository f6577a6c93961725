"""A schedule on real threads: the same design and guest code, forced, and the end compared.

One execution under the controlled scheduler writes the script: every operation with what it observed.
`confirm` then runs the program again and again, each actor on a thread of its own
(`balloonvq.runtime.baton`), over real guest memory, a C page allocator, C rings and the C balloon
device (`balloonvq.explore.live_guest`). A run confirms the schedule if

* each operation comes when the script says so and finds what the script says;
* after the last step every object has the value that the explorer gave it, and every actor has
  ended, died or stands as the explorer says;
* the end is there for real: of a deadlock, the threads are let go and block in real locks, or nothing
  ever moves again; of a BUG(), it was raised on a real thread, and data that it says are lost are
  gone from guest memory; of a value that is wrong at rest, it is so in the allocator and the
  device when all threads have come to rest; of a livelock, `ROUNDS` rounds change nothing.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from balloonvq.counters import DeadlockTask
from balloonvq.explore import live_guest, model
from balloonvq.explore.live_guest import LiveGuest
from balloonvq.explore.model import PagesValue
from balloonvq.explore.operations import Operation, Raised
from balloonvq.explore.replay import Ending, ending, execute
from balloonvq.explore.verdict import Kind
from balloonvq.explore.world import Program, World
from balloonvq.guest import pages
from balloonvq.runtime.baton import BatonActor, BatonRuntime, Diverged, Step
from balloonvq.runtime.controlled import BELOW, Decision
from balloonvq.runtime.execution import Execution, error_text

__all__ = ["ROUNDS", "Confirmation", "confirm"]

#: How often a livelock's loop is gone round in each run.
ROUNDS = 10

#: Files that no report shows: threads stand in them for the explorer's sake.
_BELOW = frozenset({*BELOW, live_guest.__file__, pages.__file__, __file__})

Key = tuple[int, str, Hashable]


@dataclass(frozen=True, slots=True)
class Confirmation:
    """What became of a schedule on real threads."""

    times: int
    """Runs that were asked for."""
    confirmed: int
    """Runs that ended as the explorer says. The first that does not is the last."""
    seconds: float
    difference: str
    """What the first other run did, with its step; empty if there is none."""
    why: str
    seen: tuple[str, ...]
    """What the first run showed, in sentences."""
    tasks: tuple[DeadlockTask, ...]
    """Of a deadlock: who is in it, with real stacks."""

    @property
    def holds(self) -> bool:
        """Whether every run ended as the explorer says."""
        return self.confirmed == self.times


@dataclass(frozen=True, slots=True)
class _Script:
    """What a run has to be like."""

    program: Program
    world: World
    steps: tuple[Step, ...]
    end: Ending | None
    values: list[Any]
    """At the end."""
    fates: tuple[str | Raised | Key, ...]
    """Of each actor: finished, its error, or the operation before which it stands."""
    untold: int | None
    """The object whose operation raised last: what it did to the value, the model does not say."""
    marks: frozenset[int]
    """Scheduling points at which a livelock is where it was."""
    mark_values: list[Any]


def _script(program: Program, decisions: Sequence[Decision], loop: int | None) -> _Script:
    """Executes a schedule under the controlled scheduler and writes down what happens."""
    once = execute(program, decisions)
    end = ending(once, loop)
    execution, marks, mark_values = once, frozenset[int](), list[Any]()
    if loop is not None:
        stem, circle = list(decisions[:loop]), list(decisions[loop:])
        execution = execute(program, stem + circle * ROUNDS)
        marks = frozenset(range(loop, loop + len(circle) * ROUNDS + 1, len(circle)))
        mark_values = execute(program, stem).values
    steps = _steps(execution)
    raised = execution.log is not None and execution.log and isinstance(execution.log[-1][2], Raised)
    return _Script(
        program=program,
        world=execution.world,
        steps=steps,
        end=end,
        values=execution.values,
        fates=tuple(_fate(actor.finished, actor.error, actor.pending) for actor in execution.actors),
        untold=steps[-1].key[0] if raised else None,
        marks=marks,
        mark_values=mark_values,
    )


def _steps(execution: Execution) -> tuple[Step, ...]:
    assert execution.log is not None
    point = 0
    steps = []
    for actor, operation, observed, _, _ in execution.log:
        if operation is None:
            point += 1
            steps.append(Step(point, -1, (0, "tick", None), None, visible=True, text="time passes"))
            continue
        point += operation.visible
        text = f"{execution.actors[actor].name}: {operation!r}"
        steps.append(Step(point, actor, _key(operation), observed, operation.visible, text))
    return tuple(steps)


def _key(operation: Operation) -> Key:
    return (operation.object, operation.kind, operation.argument)


def _fate(finished: bool, error: BaseException | None, pending: Operation | None) -> str | Raised | Key:
    if finished:
        return "finished" if error is None else Raised(error)
    return "before its first step" if pending is None else _key(pending)


def _comparable(world: World, values: Sequence[Any]) -> list[Any]:
    """Values without what is not compared: the clock's, who of two is listed first, who is too late for a wake-up."""
    found: list[Any] = []
    for spec, value in zip(world.objects, values, strict=True):
        match spec.kind:
            case "clock" | "nothing":
                found.append(None)
            case "wait queue":
                found.append(tuple(value[:2]))
            case _ if isinstance(value, PagesValue):
                found.append(value._replace(listed=tuple(sorted(value.listed))))
            case _:
                found.append(value)
    return found


# -- one run ---------------------------------------------------------------------


class _Run:
    """One run of a script."""

    def __init__(self, script: _Script) -> None:
        self.script = script
        self.guest = LiveGuest()
        self.runtime = BatonRuntime(
            script.world,
            script.steps,
            real=self.guest.real,
            real_word=self.guest.real_word,
            ring=self.guest.ring,
        )
        self.seen: list[str] = []
        self.tasks: tuple[DeadlockTask, ...] = ()
        self._marked: list[list[Any]] = []

    def run(self) -> None:
        """Forces the script and compares the end.

        Raises:
            Diverged: if anything is otherwise.
        """
        baton = self.runtime.baton
        baton.marks = self.script.marks
        baton.on_mark = lambda: self._marked.append(self._values())
        try:
            with self.runtime.run(self.script.program.build):
                self._same_values(self.script.values, self._values())
                self._same_fates()
                self._same_end()
        finally:
            # A thread that cannot be ended may be anywhere in it: then it is left to the end of the process.
            if self.runtime.ended:
                self.guest.close()

    def _values(self) -> list[Any]:
        return _comparable(self.script.world, self.runtime.values())

    def _diverged(self, what: str, why: str = "") -> Diverged:
        return Diverged(self.runtime.baton.point, what, why=why)

    def _same_values(self, expected: Sequence[Any], found: list[Any]) -> None:
        world = self.script.world
        for spec, then, now in zip(world.objects, _comparable(world, expected), found, strict=True):
            if then != now and spec.index != self.script.untold:
                raise self._diverged(f"{spec.name} is {now!r}", why=f"the explorer has {then!r}")

    def _same_fates(self) -> None:
        for actor, then in zip(self.runtime.baton.actors, self.script.fates, strict=True):
            now = self._fate(actor)
            if now != then:
                raise self._diverged(f"{actor.name}: {now!r}", why=f"the explorer has {then!r}")

    @staticmethod
    def _fate(actor: BatonActor) -> str | Raised | Key:
        if actor.finished:
            return "finished" if actor.error is None else Raised(actor.error)
        return "before its first step" if actor.pending is None else actor.pending

    # -- ends ------------------------------------------------------------------

    def _same_end(self) -> None:
        end = self.script.end
        match None if end is None else end.kind:
            case Kind.DEADLOCK:
                assert end is not None
                self._deadlock(end)
            case Kind.AT_REST | Kind.INVARIANT:
                assert end is not None
                self._broken(end)
            case Kind.LIVELOCK:
                self._livelock()
            case Kind.ERROR:
                self._error()
            case _:
                self.seen.append("the threads stand where the explorer's actors stand")

    def _deadlock(self, end: Ending) -> None:
        """The threads are let go: they block, and nothing can ever wake them."""
        runtime = self.runtime
        actors = [runtime.baton.actors[index] for index in end.actors]
        runtime.settle(end.actors)
        for actor in actors:
            if actor.finished or actor.freed or actor.pending != self.script.fates[actor.index]:
                raise self._diverged(
                    f"{actor.name} went on when it was let go", why=f"it has come to {self._fate(actor)!r}"
                )
        self.tasks = tuple(runtime.report(actor, _BELOW) for actor in actors)
        if runtime.circle:
            self.seen.append("the threads sleep in real locks, in a circle: each waits for the next")
        else:
            self._same_values(self.script.values, self._values())
            self.seen.append("the threads sleep, no thread can run any more, and no timer is set")
        for task in self.tasks:
            owner = f", which {task.owner} has" if task.owner else ""
            self.seen.append(f"{task.task} sleeps in {task.wants} at {task.wants_where}{owner}")

    def _broken(self, end: Ending) -> None:
        """A value is wrong in the real things."""
        runtime = self.runtime
        if end.kind is Kind.AT_REST:
            runtime.settle(())
            self._same_values(self.script.values, self._values())
            moved = [actor.name for actor in runtime.baton.actors if actor.freed]
            if moved:
                raise self._diverged(
                    f"{', '.join(moved)} went on when let go", why="the explorer has all at rest"
                )
        values = runtime.values()
        for invariant in self.script.world.invariants:
            if invariant.name == end.what:
                looked = [values[index] for index in invariant.objects]
                if invariant.predicate(*looked):
                    raise self._diverged(f"on real threads it does hold: {end.what}")
                self.seen += [
                    self._told(index, value) for index, value in zip(invariant.objects, looked, strict=True)
                ]
                return
        raise self._diverged(f"nothing is known of {end.what!r}")

    def _told(self, index: int, value: Any) -> str:
        spec = self.script.world.objects[index]
        if spec.name == "actual":
            return f"the device's configuration space says actual {value}"
        if isinstance(value, PagesValue):
            listed, isolated, host = model.counts(value)
            return f"the allocator has {listed} pages listed and {isolated} isolated, the device has {host}"
        return f"{spec.name} is {value!r}"

    def _livelock(self) -> None:
        """Every round has ended where it began."""
        if len(self._marked) != ROUNDS + 1:
            raise self._diverged(f"{max(0, len(self._marked) - 1)} rounds were seen, and not {ROUNDS}")
        for found in self._marked:
            self._same_values(self.script.mark_values, found)
        self.seen.append(f"{ROUNDS} rounds, and all values are what they were before the first")

    def _error(self) -> None:
        for actor in self.runtime.baton.actors:
            if actor.error is not None:
                name = type(actor.error).__name__
                self.seen.append(f"{name} on the thread of {actor.name}, {_raised_at(actor.error)}")
                self.seen.append(error_text(actor.error))
        self.seen += self.guest.notes


def _raised_at(error: BaseException) -> str:
    """The innermost line of the design or the kernel; the host has none."""
    trace, place = error.__traceback__, "in a step of the device"
    while trace is not None:
        if trace.tb_frame.f_code.co_filename not in _BELOW:
            place = f"raised at {PurePath(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


def confirm(
    program: Program, decisions: Sequence[Decision], *, loop: int | None = None, times: int = 100
) -> Confirmation:
    """Forces a schedule on real threads, again and again, and compares the end with the explorer's.

    Args:
        program: what.
        decisions: the schedule.
        loop: of a livelock: the index of the first decision of its circle.
        times: how often; at least once. The first run that ends otherwise is the last.

    Raises:
        InvalidArgument: if the schedule is not possible under the explorer either.
        BalloonError: if a thread of the program cannot be ended.
    """
    started = time.monotonic()
    script = _script(program, decisions, loop)
    first: _Run | None = None
    confirmed = 0
    difference = why = ""
    for _ in range(times):
        run = _Run(script)
        try:
            run.run()
        except Diverged as error:
            difference, why = str(error), error.why
            break
        confirmed += 1
        first = first or run
    return Confirmation(
        times=times,
        confirmed=confirmed,
        seconds=time.monotonic() - started,
        difference=difference,
        why=why,
        seen=() if first is None else tuple(first.seen),
        tasks=() if first is None else first.tasks,
    )
