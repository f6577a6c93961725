"""What an exploration found: PROVED, BUG or INCOMPLETE, with what each means and its bounds."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from balloonvq.explore.world import Bounds

__all__ = ["Bug", "Decision", "Findings", "Kind", "Outcome", "Schedule", "Verdict"]

Decision = tuple[int, int]


class Outcome(Enum):
    """The three verdicts. Only PROVED is a pass."""

    PROVED = "PROVED"
    BUG = "BUG"
    INCOMPLETE = "INCOMPLETE"


class Kind(Enum):
    """What can be wrong."""

    DEADLOCK = "deadlock"
    """Somebody waits for ever who must not."""
    ERROR = "error"
    """An actor raised: a BUG(), a failed assertion, any exception."""
    INVARIANT = "invariant"
    """A state breaks a declared invariant."""
    AT_REST = "at rest"
    """Everybody is at rest and a declared invariant does not hold."""
    LIVELOCK = "livelock"
    """A fair circle without progress."""
    RACE = "race"
    """Two actors can reach guarded data at the same time, one of them without the guard."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """A path from the first state: decisions at every scheduling point."""

    decisions: tuple[Decision, ...]
    preemptions: int
    minimal: str
    """In which sense it is proven minimal: length, preemptions, or empty."""
    loop: int | None = None
    """Of a livelock: the index of the first decision of the circle."""

    def __len__(self) -> int:
        return len(self.decisions)


@dataclass(frozen=True, slots=True)
class Bug:
    """What is wrong, and the schedules that show it."""

    kind: Kind
    what: str
    """Of all ways to say it the one that does not depend on the schedule."""
    shortest: Schedule
    fewest_preemptions: Schedule | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to one exploration."""

    outcome: Outcome
    engine: str
    program: str
    bounds: Bounds
    states: int
    """States (P) or maximal executions (N, D, R) seen."""
    transitions: int
    seconds: float
    bug: Bug | None = None
    why: str = ""
    """Of INCOMPLETE: what stopped the search."""
    layers: int = 0
    """Longest schedule that was covered completely (P)."""
    estimate: int | None = None
    """Of INCOMPLETE: a guess at the number of all states, from the growth of the layers."""
    checked: int = 0
    """Operations of real executions that were compared with the learned automata (P)."""


@dataclass(slots=True)
class Findings:
    """All ends of a program, for comparing engines. Filled only when an engine is told to go on after bugs."""

    ends: set[Hashable] = field(default_factory=set)
    """(values, fate of each actor) of every end, deadlocks and dead actors included."""
    livelocks: set[Hashable] = field(default_factory=set)
    """Values of the world in which a circle without progress was found."""
    races: set[Any] = field(default_factory=set)
    broken: set[str] = field(default_factory=set)
    """Names of invariants broken somewhere."""
    complete: bool = True
