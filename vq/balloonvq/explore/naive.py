"""Engine N: every interleaving, by brute force.

Depth first over the decisions, each execution run from the start. No
reduction, no matching, no tables: slow and obviously right. It is the oracle that the
other engines are compared with on small programs, and is kept for ever.

The only thing that it does not enumerate are turns of a spinner that would repeat the last
turn (see parking in `balloonvq.runtime.execution`). An execution in which nobody
but parked spinners is left never ends: a livelock.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from balloonvq.explore.operations import Raised
from balloonvq.explore.verdict import Bug, Findings, Kind, Outcome, Schedule, Verdict
from balloonvq.explore.world import Nondeterminism, Program, Revised, World
from balloonvq.runtime.controlled import Decision
from balloonvq.runtime.execution import Execution

__all__ = ["Run", "collect", "executions", "explore", "findings", "judge", "judged"]


class Run(Protocol):
    """What makes an engine: which executions there are."""

    def __call__(self, world: World, visit: Callable[[Execution], bool], *, stops: bool) -> int:
        """Runs executions and hands each to `visit` until that returns False; how many."""


def executions(world: World, visit: Callable[[Execution], bool], *, stops: bool = False) -> int:
    """Runs every execution and hands each to `visit` until that returns False; how many.

    `stops` ends an execution at an error and at a broken invariant.
    """
    prefix: list[int] = []
    count = 0
    while True:
        taken: list[tuple[int, int]] = []

        def strategy(
            found: list[Decision],
            _: Execution,
            taken: list[tuple[int, int]] = taken,
            prefix: list[int] = prefix,
        ) -> Decision:
            depth = len(taken)
            index = prefix[depth] if depth < len(prefix) else 0
            if index >= len(found):
                raise Nondeterminism(f"step {depth + 1} had more alternatives when it was run before")
            taken.append((index, len(found)))
            return found[index]

        execution = Execution(world, strategy, stop_on_error=stops, stop_on_broken=stops).run()
        count += 1
        if not visit(execution):
            return count
        while taken and taken[-1][0] + 1 == taken[-1][1]:
            taken.pop()
        if not taken:
            return count
        prefix = [index for index, _ in taken]
        prefix[-1] += 1


def collect(execution: Execution, found: Findings) -> None:
    """Adds an execution's end to the findings."""
    if execution.ending == "bound":
        found.complete = False
    elif execution.spinning:
        found.livelocks.add(execution.outcome[0])
    else:
        found.ends.add(execution.outcome)
        if not execution.stuck:
            broken = execution.world.broken(execution.values, at_rest=True)
            if broken is not None:
                found.broken.add(broken)


def findings(program: Program, executions_max: int = 1_000_000) -> Findings:
    """All ends and livelocks of a program."""
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
            executions(world, visit)
        except Revised:
            continue
        found.complete = found.complete and left > 0
        return found


def judge(execution: Execution) -> tuple[Kind, str] | None:
    """What is wrong with the end of an execution."""
    for actor in execution.actors:
        if actor.error is not None:
            return Kind.ERROR, f"{actor.name}: {Raised(actor.error)!r}"
    if execution.broken is not None:
        return Kind.INVARIANT, execution.broken
    if execution.ending == "bound":
        return None  # given up in the middle: nobody has come to his end
    stuck = execution.stuck
    if execution.spinning:
        return Kind.LIVELOCK, f"{', '.join(a.name for a in execution.spinning)} for ever without progress"
    if stuck:
        return Kind.DEADLOCK, ", ".join(f"{actor.name} waits in {actor.pending!r}" for actor in stuck)
    broken = execution.world.broken(execution.values, at_rest=True)
    return None if broken is None else (Kind.AT_REST, broken)


def judged(program: Program, engine: str, run: Run, executions_max: int, seconds: float) -> Verdict:
    """The verdict on the executions that `run` makes, up to the first that is wrong."""
    world = World(program)
    started = time.monotonic()
    count = steps = 0
    bug: Bug | None = None
    why = ""

    def visit(execution: Execution) -> bool:
        nonlocal bug, why, count, steps
        count += 1
        steps += execution.steps
        if execution.ending == "bound":
            why = f"an execution of more than {program.steps_max} steps"
        wrong = judge(execution)
        if wrong is not None:
            bug = Bug(*wrong, Schedule(tuple(execution.decisions), 0, ""))
            return False
        if count >= executions_max:
            why = f"more than {executions_max:,} executions"
        elif time.monotonic() - started > seconds:
            why = f"more than {seconds:g} seconds"
        return not why

    while True:
        try:
            run(world, visit, stops=True)
        except Revised:
            count = steps = 0
            continue
        outcome = Outcome.BUG if bug is not None else Outcome.INCOMPLETE if why else Outcome.PROVED
        spent = time.monotonic() - started
        return Verdict(outcome, engine, program.name, program.bounds, count, steps, spent, bug, why)


def explore(program: Program, executions_max: int = 1_000_000, seconds: float = 60.0) -> Verdict:
    """All executions, or those up to the first that is wrong; no claim of a shortest one."""
    return judged(program, "N", executions, executions_max, seconds)
