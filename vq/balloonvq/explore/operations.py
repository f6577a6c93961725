"""Operations: the only way in which an actor touches anything that another actor can see.

An operation works on *one* object of the world and is a pure function of that
object's value and of the actor's number::

    transition(value, actor) -> None                   blocked: not enabled now
                             -> (new value, observed)  one atomic step

Purity is what makes everything else possible: whether an operation is enabled can
be asked without performing it, a step can be repeated, undone and tabulated, and
two engines that never share code for *searching* share exactly this much for
*stepping*.

An operation that raises does not raise: it observes `Raised`, which the
runtime turns into an exception inside the actor. So an error is an observed value
like any other, and an actor stays a function of what it observed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from balloonvq.explore.local_state import Atom

__all__ = ["Operation", "Raised", "Transition"]

#: (value of the object, number of the actor) -> None or (new value, observed value).
Transition = Callable[[Any, int], tuple[Any, Any] | None]


class Raised:
    """An exception as an observed value; equal to another of the same type and text."""

    __slots__ = ("error", "key")

    def __init__(self, error: BaseException) -> None:
        self.error = error
        self.key = (type(error).__qualname__, str(error))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Raised) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        return f"{self.key[0]}({self.key[1]})"


class Operation(Atom):
    """One kind of step on one object with one argument; a world makes each only once.

    Attributes:
        kind: lock, trylock, unlock, read, write, add, enqueue, schedule, finish,
            wake, choose, relax, arm, disarm, asleep, take, done, queue, or the name
            of a `SharedObject`'s operation.
        object: the number of the object in its world.
        argument: what the operation was given, for reports.
        transition: the step.
        visible: whether it is a scheduling point: others may run before it.
        blocks: whether the transition can answer None.
        writes: whether it can change the value. Two operations on an object that
            do not write are independent.
        options: for `choose`, how many outcomes; otherwise 0.
        idle: an actor that is blocked here has nothing to do and is not deadlocked.
        gives_way: the actor leaves the processor here although it could go on
            (sleep, relax): where one processor without preemption may switch.
        open: it touches guarded data without the guard: allowed only where nobody
            else can reach that data at the same time. See `balloonvq.explore.races`.
        progress: a cycle that contains it is no livelock.
        direct: it has one outcome and does not depend on what its actor did before.
        simple: it is always enabled and has one outcome.
    """

    __slots__ = (
        "argument",
        "blocks",
        "direct",
        "gives_way",
        "idle",
        "index",
        "kind",
        "name",
        "object",
        "open",
        "options",
        "progress",
        "simple",
        "transition",
        "visible",
        "writes",
    )

    def __init__(
        self,
        index: int,
        kind: str,
        object_: int,
        name: str,
        transition: Transition,
        *,
        argument: Hashable = None,
        visible: bool = True,
        blocks: bool = False,
        writes: bool = True,
        options: int = 0,
        idle: bool = False,
        gives_way: bool = False,
        open_: bool = False,
    ) -> None:
        self.index = index
        self.kind = kind
        self.object = object_
        self.name = name
        self.transition = transition
        self.argument = argument
        self.visible = visible
        self.blocks = blocks
        self.writes = writes
        self.options = options
        self.idle = idle
        self.gives_way = gives_way
        self.open = open_
        self.progress = False
        self.direct = not options and kind not in {"relax", "cpu_relax"}
        self.simple = not blocks and not options and kind not in {"relax", "cpu_relax"}

    def __repr__(self) -> str:
        if self.argument is None or self.argument == ():
            return f"{self.kind}({self.name})"
        argument = self.argument
        if isinstance(argument, tuple):
            return f"{self.kind}({', '.join([self.name, *map(str, argument)])})"
        return f"{self.kind}({self.name}, {argument})"
