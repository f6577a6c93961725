"""A schedule as something to look at: pure data, for any renderer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

from balloonvq.explore.replay import execute
from balloonvq.explore.world import Program
from balloonvq.runtime.controlled import Actor, Decision, Place
from balloonvq.runtime.execution import Execution, error_text

__all__ = ["Change", "End", "Line", "Timeline", "timeline"]

#: Operations that nobody wants to see one by one.
PRIVATE = frozenset({"finish", "arm", "disarm", "done", "read", "now"})


@dataclass(frozen=True, slots=True)
class Change:
    """A value that a step changed: num_pages 3 -> 4."""

    name: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.name} {self.before} -> {self.after}"


@dataclass(frozen=True, slots=True)
class Line:
    """One operation, or a run of private ones."""

    step: int
    """The scheduling point that it belongs to, from 1."""
    actor: int | None
    """Whose column; None for time."""
    text: str
    place: str
    """file:line of the code's own step."""
    held: tuple[tuple[str, ...], ...]
    """For each actor the locks that it holds after this."""
    changes: tuple[Change, ...]
    private: bool
    """Changes nothing that others see."""
    folded: int = 1
    """How many operations this line stands for."""


@dataclass(frozen=True, slots=True)
class End:
    """What became of an actor."""

    actor: int
    fate: str
    """finished, waits for W, or its error."""
    wants: str
    """The operation that it is blocked in; empty if it has ended."""
    place: str
    holds: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Timeline:
    """A whole schedule."""

    actors: tuple[tuple[str, str], ...]
    """Name and role of each column."""
    lines: tuple[Line, ...]
    ends: tuple[End, ...]
    loop: int | None
    """The step with which a livelock's circle begins."""


def _short(place: Place) -> str:
    return "" if not place[1] else f"{PurePath(place[0]).name}:{place[1]}"


def timeline(
    program: Program, decisions: Sequence[Decision], *, fold: bool = True, loop: int | None = None
) -> Timeline:
    """Executes a schedule and describes it.

    Args:
        program: what.
        decisions: the schedule.
        fold: join runs of private operations of one actor into a line.
        loop: see `Schedule.loop`.
    """
    execution = execute(program, decisions)
    lines = _lines(execution)
    return Timeline(
        actors=tuple((actor.name, actor.role) for actor in execution.actors),
        lines=tuple(_folded(lines) if fold else lines),
        ends=tuple(_end(execution, actor) for actor in execution.actors),
        loop=None if loop is None else loop + 1,
    )


def _lines(execution: Execution) -> list[Line]:
    assert execution.log is not None
    assert execution.places is not None
    held: list[list[str]] = [[] for _ in execution.actors]
    lines = []
    step = 0
    for (actor, operation, observed, before, after), place in zip(
        execution.log, execution.places, strict=True
    ):
        if operation is None:
            step += 1
            lines.append(Line(step, None, "time passes", "", _frozen(held), (), private=False))
            continue
        step += operation.visible
        text = repr(operation)
        if operation.kind in {"trylock", "choose", "schedule"}:
            text += f" -> {observed}"
        if operation.kind in {"lock", "trylock"} and after == actor != before:
            held[actor].append(operation.name)
        elif operation.kind == "unlock" and operation.name in held[actor]:
            held[actor].remove(operation.name)
        kind = execution.world.objects[operation.object].kind
        changes: tuple[Change, ...] = ()
        if kind in {"word", "object"} and repr(before) != repr(after):
            changes = (Change(operation.name, repr(before), repr(after)),)
        private = not changes and operation.kind in PRIVATE
        lines.append(Line(step, actor, text, _short(place), _frozen(held), changes, private=private))
    return lines


def _frozen(held: list[list[str]]) -> tuple[tuple[str, ...], ...]:
    return tuple(tuple(names) for names in held)


def _folded(lines: list[Line]) -> list[Line]:
    found: list[Line] = []
    for line in lines:
        last = found[-1] if found else None
        if last is not None and line.private and last.private and last.actor == line.actor:
            text = f"{last.text.partition(' (+')[0]} (+{last.folded})"
            found[-1] = replace(last, text=text, folded=last.folded + 1)
        else:
            found.append(line)
    return found


def _end(execution: Execution, actor: Actor) -> End:
    holds = tuple(
        spec.name
        for spec in execution.world.objects
        if spec.kind == "mutex" and execution.values[spec.index] == actor.index
    )
    if actor.finished:
        if actor.error is None:
            return End(actor.index, "finished", "", "", holds)
        trace = actor.error.__traceback__
        place = ""
        while trace is not None:
            name = trace.tb_frame.f_code.co_filename
            if not name.endswith(("runtime/controlled.py", "explore/world.py")):
                place = _short((name, trace.tb_lineno))
            trace = trace.tb_next
        return End(actor.index, error_text(actor.error), "", place, holds)
    operation = actor.pending
    fate = "can go on"
    if operation is not None and operation.blocks:
        value = execution.values[operation.object]
        if operation.kind == "lock" and value >= 0:
            fate = f"waits for {execution.actors[value].name}"
        elif operation.transition(value, actor.index) is None:
            fate = "waits"
    return End(actor.index, fate, repr(operation), _short(actor.where), holds)
