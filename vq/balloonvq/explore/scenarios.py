"""Scenarios: which actors meet over how many pages; and the run of a design through one.

A scenario of one's own is a few lines:

    mine = Scenario("mine", "the worker fills while compaction moves", actors=("W", "C"), free=1, listed=1, target=2)
    print(run(find("modern"), mine).verdict.outcome)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from balloonvq.driver.designs import Design
from balloonvq.explore.product import Limits
from balloonvq.explore.timeline import Timeline
from balloonvq.explore.verdict import Verdict
from balloonvq.explore.world import Bounds

__all__ = ["SCENARIOS", "Result", "Scenario", "run", "scenarios_for"]


@dataclass(frozen=True, slots=True)
class Scenario:
    """Who meets whom, over what."""

    name: str
    summary: str
    """One line."""
    actors: tuple[str, ...]
    """W size worker, O and P OOM callers, C compaction, U user, K and L reclaimers, R teardown."""
    free: int = 0
    """Pages on the free list at the start."""
    listed: int = 0
    """Pages in the balloon at the start."""
    target: int = 0
    """Pages that the host wants in it."""
    flags: frozenset[str] = frozenset()
    """nofs: OOM callers hold the filesystem lock and may not kill."""
    bounds: Bounds = field(default_factory=Bounds)


@dataclass(frozen=True, slots=True)
class Result:
    """What one design does in one scenario."""

    design: str
    options: dict[str, str]
    scenario: Scenario
    verdict: Verdict
    timeline: Timeline | None
    """Of the shortest schedule of a bug."""
    replay: str | None
    """Its replay string."""
    bounds: tuple[str, ...]
    """What the verdict holds for: actors, pages, batch."""
    seconds: float


SCENARIOS: dict[str, Scenario] = {}


def scenarios_for(design: type[Design]) -> tuple[Scenario, ...]:
    """The shipped scenarios that mean something for a design."""
    return tuple(
        scenario
        for scenario in SCENARIOS.values()
        if design.pressure == "shrinker" or not {"K", "L"} & {*scenario.actors}
    )


def run(
    design: type[Design],
    scenario: Scenario,
    *,
    options: Mapping[str, str] | None = None,
    limits: Limits | None = None,
) -> Result:
    """Explores one design in one scenario."""
    raise NotImplementedError
