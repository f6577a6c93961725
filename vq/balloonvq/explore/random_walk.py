"""Engine R: random schedules, for scenarios too big to finish.

Two distributions, both from a seed, so a run can be repeated:

* a uniform walk takes each possible decision with equal probability;
* PCT (Burckhardt, Kothari, Musuvathi and Nagarakatte, 2010) gives actors random
  priorities, always runs the highest that can, and lowers the running one at d-1
  random steps. A bug that needs d ordering constraints in n actors and k steps is
  hit by one run with a probability of at least 1 / (n * k**(d-1)).

It never proves anything: its verdict is BUG or INCOMPLETE.
"""

from __future__ import annotations

import random
import time

from balloonvq.explore.naive import collect, judge
from balloonvq.explore.races import race
from balloonvq.explore.verdict import Bug, Findings, Kind, Outcome, Schedule, Verdict
from balloonvq.explore.world import Program, Revised, World
from balloonvq.runtime.controlled import Decision
from balloonvq.runtime.execution import Execution

__all__ = ["Pct", "Uniform", "explore", "findings"]


class Uniform:
    """Each decision with equal probability."""

    def __init__(self, random_: random.Random) -> None:
        self._random = random_.random

    def __call__(self, found: list[Decision], execution: Execution) -> Decision:
        """Decides."""
        del execution
        return found[int(self._random() * len(found))]


class Pct:
    """Priorities with depth-1 changes.

    Args:
        random_: where chance comes from.
        steps: how long an execution is thought to be.
        depth: ordering constraints of the bugs looked for.
    """

    def __init__(self, random_: random.Random, steps: int, depth: int = 3) -> None:
        self._random = random_
        self._changes = {random_.randrange(max(1, steps)): number for number in range(depth - 1)}
        self._priority: dict[int, float] = {}

    def __call__(self, found: list[Decision], execution: Execution) -> Decision:
        """Decides."""
        priority = self._priority
        for decision in found:
            if decision[0] not in priority:
                priority[decision[0]] = 1.0 + self._random.random()
        best = max(found, key=lambda decision: priority[decision[0]])
        change = self._changes.pop(execution.steps, None)
        if change is not None:
            priority[best[0]] = -1.0 - change
            best = max(found, key=lambda decision: priority[decision[0]])
        outcomes = [decision for decision in found if decision[0] == best[0]]
        return best if len(outcomes) == 1 else self._random.choice(outcomes)


def _strategy(number: int, random_: random.Random, steps: int) -> Uniform | Pct:
    return Pct(random_, steps) if number % 2 else Uniform(random_)


def findings(program: Program, executions: int = 1000, seed: int = 0) -> Findings:
    """Ends met in that many random executions, half of them uniform and half PCT."""
    world = World(program)
    found = Findings(complete=False)
    random_ = random.Random(seed)
    number = steps = 0
    while number < executions:
        try:
            execution = Execution(world, _strategy(number, random_, steps), stop_on_error=False).run()
        except Revised:
            found = Findings(complete=False)
            number = 0
            continue
        number += 1
        steps = max(steps, execution.steps)
        collect(execution, found)
    return found


def explore(program: Program, executions: int = 10_000, seconds: float = 10.0, seed: int = 0) -> Verdict:
    """Random executions until one ends badly or the budget is spent."""
    world = World(program)
    random_ = random.Random(seed)
    started = time.monotonic()
    number = steps = transitions = 0
    bug: Bug | None = None
    while number < executions and time.monotonic() - started < seconds:
        try:
            strategy = _strategy(number, random_, steps)
            watched = any(operation.open for operation in world.operations)
            execution = Execution(world, strategy, places=watched, stop_on_broken=True).run()
        except Revised:
            continue
        number += 1
        transitions += execution.steps
        steps = max(steps, execution.steps)
        wrong = judge(execution)
        seen = race(execution)
        if seen is not None:
            wrong = Kind.RACE, seen
        if wrong is not None:
            bug = Bug(*wrong, Schedule(tuple(execution.decisions), 0, ""))
            break
    return Verdict(
        outcome=Outcome.INCOMPLETE if bug is None else Outcome.BUG,
        engine="R",
        program=program.name,
        bounds=program.bounds,
        states=number,
        transitions=transitions,
        seconds=time.monotonic() - started,
        bug=bug,
        why="" if bug is not None else f"{number:,} random executions prove nothing",
    )
