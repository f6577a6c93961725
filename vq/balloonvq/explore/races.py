"""Data races on guarded objects, found in one execution with vector clocks.

Accesses to an object under its declared guard are not scheduling points, which is sound
only if *every* access that could come between is under the guard, too. So an access
without the guard is looked at: if another actor's access to the same object is
ordered neither before nor after it by anything that the two actors did, and one of them
writes, then both orders were possible and the declaration is wrong.

Operations on the same object order actors (locks, words, queues: the model is
sequentially consistent); accesses to the guarded object itself do not, or it would hide
its own races. Product search asks a stronger question of every state, see
`Product.races`; this one serves engines that only have executions.
"""

from __future__ import annotations

from balloonvq.explore.operations import Operation
from balloonvq.runtime.controlled import Place
from balloonvq.runtime.execution import Execution

__all__ = ["race"]


def race(execution: Execution) -> str | None:
    """The first race of an execution that kept its log and places, both ends named; or None."""
    if execution.log is None or execution.places is None:
        return None
    width = len(execution.actors)
    guarded = {operation.object for operation in execution.world.operations if operation.open}
    clocks = [[0] * width for _ in range(width)]
    objects: dict[int, list[int]] = {}
    seen: dict[int, list[tuple[int, int, Operation, Place]]] = {}
    for (actor, operation, _, _, _), place in zip(execution.log, execution.places, strict=True):
        if operation is None:
            # Time's step: everybody was waiting, so it orders all.
            joined = [max(column) for column in zip(*clocks, strict=True)]
            clocks = [list(joined) for _ in clocks]
            continue
        mine = clocks[actor]
        mine[actor] += 1
        index = operation.object
        if index not in guarded:
            before = objects.get(index, mine)
            mine[:] = [max(a, b) for a, b in zip(mine, before, strict=True)]
            objects[index] = list(mine)
            continue
        for other, count, theirs, where in seen.get(index, ()):
            conflict = (operation.writes or theirs.writes) and (operation.open or theirs.open)
            if other != actor and conflict and mine[other] < count:
                ends = sorted(
                    f"{execution.actors[who].name} {what.kind} at {at[0].rpartition('/')[2]}:{at[1]}"
                    for who, what, at in ((other, theirs, where), (actor, operation, place))
                )
                return f"{operation.name}: {' and '.join(ends)}"
        seen.setdefault(index, []).append((actor, mine[actor], operation, place))
    return None
