"""Engine D: dynamic partial-order reduction with source sets and sleep sets.

Stateless: every execution is a real one, no automata, no states. It shares with engine P
nothing but the operations, which is what makes their agreement worth something.

Two steps are *independent* if they touch no common object, or only read it. Executions that
differ in the order of independent steps are the same for us; one of each class is run. After an
execution every *race* is looked at: two dependent steps of different actors, the
second not forced behind the first by what its actor did before. Its reversal is
another class, so before the first of the two somebody must be tried who can lead
there: one of the initials of what would come instead (Abdulla, Aronis, Jonsson and Sagonas,
"Source sets", 2017). Sleep sets keep a class from being begun twice.

What is special here:

* a step is an operation with what is glued to it, so it has a *set* of accesses; only the
  first, visible, operation races, the glued ones commute (`balloonvq.explore.world`);
* lock races with lock, not with the unlock between them: before an unlock the lock
  is not enabled, there is nothing to reverse. An actor that is blocked at the end of an
  execution races, too, with what it would have done;
* relax is independent of everything: parking only leaves out repetitions;
* a choice has all its outcomes tried;
* time's step depends on everything and never sleeps; where it competes with others
  (spinners, `explore_time`), everybody is tried.

All ends are found: final states, deadlocks, errors. States in between are not all visited: an
invariant of every state is judged in those that are, and may be broken in another. One processor without
preemption is a bound on schedules, under which "the other order" may not exist: refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from balloonvq.errors import InvalidArgument
from balloonvq.explore.naive import collect, judged
from balloonvq.explore.operations import Operation
from balloonvq.explore.verdict import Findings, Verdict
from balloonvq.explore.world import CLOCK, Program, Revised, World
from balloonvq.runtime.controlled import TICK, Decision
from balloonvq.runtime.execution import Execution, LogEntry

__all__ = ["explore", "findings"]

#: object -> (writes, only by unlocking)
Accesses = dict[int, tuple[bool, bool]]

_ALONE = frozenset({"relax", "cpu_relax", "choose", "finish"})
_CLOCK_ALONE = frozenset({"arm", "disarm", "asleep"})
#: Steps of different actors on one wait queue commute, but for waking.
_QUEUE_READS = frozenset({"enqueue", "schedule"})


def access(operation: Operation, before: object, after: object) -> tuple[int, bool, bool] | None:
    """(object, writes, is an unlock) of one operation, or None if it commutes with everything."""
    if operation.kind in _ALONE or (operation.object == CLOCK and operation.kind in _CLOCK_ALONE):
        return None
    writes = operation.writes and operation.kind not in _QUEUE_READS
    if operation.kind == "trylock" and before == after:
        writes = False
    return operation.object, writes, operation.kind == "unlock"


def accesses(entries: list[LogEntry]) -> Accesses:
    """What a step touches."""
    found: Accesses = {}
    for _, operation, _, before, after in entries:
        if operation is None:
            continue
        one = access(operation, before, after)
        if one is not None:
            index, writes, unlocks = one
            old = found.get(index)
            found[index] = (writes, unlocks) if old is None else (writes or old[0], unlocks and old[1])
    return found


def dependent(first: Accesses, second: Accesses) -> bool:
    """Whether the order of two steps matters."""
    return any(index in second and (one[0] or second[index][0]) for index, one in first.items())


class _Asleep(Exception):
    """Everything possible here was begun elsewhere."""


@dataclass(slots=True)
class _Frame:
    """A scheduling point on the current path."""

    enabled: list[Decision]
    chosen: Decision
    backtrack: set[int]
    sleep: dict[Decision, Accesses]
    done: dict[Decision, Accesses] = field(default_factory=dict)

    def following(self) -> Decision | None:
        """The next decision to try here."""
        for decision in self.enabled:
            if decision[0] in self.backtrack and decision not in self.done and decision not in self.sleep:
                return decision
        return None


@dataclass(slots=True)
class _Event:
    """A step as it happened."""

    actor: int
    accesses: Accesses
    operation: Operation | None
    first: tuple[int, bool, bool] | None
    number: int = 0
    clock: list[int] = field(default_factory=list)


class _Explorer:
    def __init__(self, world: World) -> None:
        self.world = world
        self.frames: list[_Frame] = []
        self.prefix = 0
        self.marks: list[int] = []

    def strategy(self, found: list[Decision], execution: Execution) -> Decision:
        depth = len(self.marks)
        assert execution.log is not None
        self.marks.append(len(execution.log))
        if depth < self.prefix:
            return self.frames[depth].chosen
        sleep: dict[Decision, Accesses] = {}
        if depth:
            parent = self.frames[depth - 1]
            step = accesses(execution.log[self.marks[depth - 1] :])
            tick = parent.chosen == TICK
            sleep = {
                decision: theirs
                for decision, theirs in (parent.sleep | parent.done).items()
                if not tick and decision[0] not in {parent.chosen[0], TICK[0]} and not dependent(step, theirs)
            }
        awake = [decision for decision in found if decision not in sleep]
        if not awake:
            raise _Asleep
        chosen = awake[0]
        everybody = TICK in found and len(found) > 1
        backtrack = {decision[0] for decision in found} if everybody else {chosen[0]}
        self.frames.append(_Frame(found, chosen, backtrack, sleep))
        return chosen

    def _events(self, execution: Execution) -> list[_Event]:
        log = execution.log
        assert log is not None
        ends = [*self.marks[1:], len(log)]
        events = []
        for begin, end in zip(self.marks, ends, strict=True):
            entries = log[begin:end]
            actor, operation, _, before, after = entries[0]
            first = None if operation is None else access(operation, before, after)
            events.append(_Event(actor, accesses(entries), operation, first))
        return events

    def races(self, execution: Execution) -> None:
        events = self._events(execution)
        last: dict[int, _Event] = {}
        counts: dict[int, int] = {}
        width = len(self.world.actors) + 1
        for index, event in enumerate(events):
            event.number = counts[event.actor] = counts.get(event.actor, 0) + 1
            if index >= self.prefix - 1:
                self._look(events, index, event, last.get(event.actor))
            clock = list(last[event.actor].clock) if event.actor in last else [0] * width
            for earlier in events[:index]:
                if event.actor < 0 or earlier.actor < 0 or dependent(earlier.accesses, event.accesses):
                    clock = [max(a, b) for a, b in zip(clock, earlier.clock, strict=True)]
            clock[event.actor] = event.number
            event.clock = clock
            last[event.actor] = event
        for actor in execution.actors:
            operation = actor.pending
            if not actor.finished and operation is not None:
                first = access(operation, 0, 1)
                pending = _Event(actor.index, {}, operation, first)
                if first is not None:
                    pending.accesses = {first[0]: (first[1], False)}
                self._look(events, len(events), pending, last.get(actor.index))

    def _look(self, events: list[_Event], index: int, event: _Event, previous: _Event | None) -> None:
        """All races of one step with earlier ones."""
        if event.actor < 0 and self.world.bounds.explore_time:
            # Time may pass earlier, too, if somebody arms a timer earlier.
            for place in range(index - 1, -1, -1):
                if events[place].actor >= 0:
                    self._reverse(events[:index], place, event)
        if event.first is None or event.actor < 0:
            return
        object_, writes, _ = event.first
        locks = event.operation is not None and event.operation.kind == "lock"
        for place in range(index - 1, -1, -1):
            earlier = events[place]
            if earlier.actor in {event.actor, -1}:
                continue
            touched = earlier.accesses.get(object_)
            if touched is None or not (writes or touched[0]) or (locks and touched[1]):
                continue
            if previous is not None and previous.clock[earlier.actor] >= earlier.number:
                continue
            self._reverse(events[:index], place, event)

    def _reverse(self, events: list[_Event], place: int, event: _Event) -> None:
        """Sees to it that before step `place` somebody is tried who leads to the other order."""
        frame = self.frames[place]
        first = events[place]
        instead = [e for e in events[place + 1 :] if e.clock[first.actor] < first.number]
        initials: list[int] = []
        seen: list[_Event] = []
        for candidate in [*instead, event]:
            tick = candidate.actor < 0
            behind = any(
                other.actor == candidate.actor or tick or other.actor < 0
                or dependent(other.accesses, candidate.accesses)
                for other in seen
            )  # fmt: skip
            if not behind and candidate.actor not in initials:
                initials.append(candidate.actor)
            seen.append(candidate)
        if frame.backtrack.intersection(initials):
            return
        possible = {decision[0] for decision in frame.enabled}
        usable = [actor for actor in initials if actor in possible]
        if usable:
            frame.backtrack.add(event.actor if event.actor in usable else usable[0])
        else:
            frame.backtrack |= possible

    def advance(self, log: list[LogEntry]) -> bool:
        """Moves to the next path; False if there is none."""
        while self.frames:
            depth = len(self.frames) - 1
            frame = self.frames[depth]
            if frame.chosen not in frame.done:
                end = self.marks[depth + 1] if depth + 1 < len(self.marks) else len(log)
                frame.done[frame.chosen] = accesses(log[self.marks[depth] : end])
            following = frame.following()
            if following is not None:
                frame.chosen = following
                self.prefix = len(self.frames)
                return True
            self.frames.pop()
        return False


def _run(world: World, visit: Callable[[Execution], bool], *, stops: bool) -> int:
    explorer = _Explorer(world)
    count = 0
    while True:
        explorer.marks = []
        execution = Execution(world, explorer.strategy, log=True, stop_on_error=stops, stop_on_broken=stops)
        asleep = False
        try:
            execution.run()
        except _Asleep:
            asleep = True
            explorer.marks.pop()
        count += 1
        if not asleep and not visit(execution):
            return count
        explorer.races(execution)
        assert execution.log is not None
        if not explorer.advance(execution.log):
            return count


def findings(program: Program, executions_max: int = 1_000_000) -> Findings:
    """All ends of a program, one execution for each class of executions."""
    return _findings(program, executions_max)[0]


def _findings(program: Program, executions_max: int = 1_000_000) -> tuple[Findings, int]:
    _refuse(program)
    world = World(program)
    while True:
        found = Findings()
        left = executions_max

        def visit(execution: Execution, found: Findings = found) -> bool:
            nonlocal left
            left -= 1
            collect(execution, found)
            return left > 0

        try:
            count = _run(world, visit, stops=False)
        except Revised:
            continue
        found.complete = found.complete and left > 0
        return found, count


def _refuse(program: Program) -> None:
    if program.bounds.one_cpu:
        raise InvalidArgument(
            "partial-order reduction does not work on one processor without preemption",
            why="the other order of two steps may not be a schedule there",
            hint="use the product search",
        )


def explore(program: Program, executions_max: int = 1_000_000, seconds: float = 60.0) -> Verdict:
    """One execution of each class, up to the first that is wrong."""
    _refuse(program)
    return judged(program, "D", _run, executions_max, seconds)
