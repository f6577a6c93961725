"""Designs by properties: a tick, or the shortest schedule that breaks it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from balloonvq.driver.designs import DESIGNS, Design, find
from balloonvq.explore.model import Depth
from balloonvq.explore.properties import Property, shown_by, survey
from balloonvq.explore.replay import encode
from balloonvq.explore.scenarios import Scenario, fits_design, program, scenarios_for
from balloonvq.explore.search import Limits, OnLayer
from balloonvq.explore.standstill import watched
from balloonvq.explore.suspects import suspected
from balloonvq.explore.verdict import Bug, Outcome
from balloonvq.explore.world import Program

__all__ = ["VARIANTS", "Cell", "Property", "Row", "Survey", "row", "surveys"]

#: Options whose verdicts are not those of the design as it is, and are shown beside it.
VARIANTS: tuple[tuple[str, Mapping[str, str]], ...] = (
    ("split", {"insert": "late"}),
    ("split", {"pfns": "per-direction"}),
    ("split", {"insert": "late", "pfns": "per-direction"}),
)


@dataclass(frozen=True, slots=True)
class Cell:
    """One property of one design."""

    property: Property
    outcome: Outcome | None
    """None: no scenario would show it. PROVED holds up to where the design has failed otherwise."""
    scenarios: int
    """How many scenarios would show it."""
    bug: Bug | None = None
    scenario: str | None = None
    """Where the shortest schedule was found."""
    replay: str | None = None
    """Its replay string."""


@dataclass(frozen=True, slots=True)
class Row:
    """One design with its options."""

    design: str
    options: Mapping[str, str]
    """Those that are not as by default."""
    cells: tuple[Cell, ...]
    """In the order of `Property`."""
    stack_bytes: int
    """The deepest stack of any task in any scenario."""
    states: int
    seconds: float


def row(
    name: str,
    options: Mapping[str, str],
    scenarios: Iterable[Scenario] | None = None,
    limits: Limits = Limits(),  # noqa: B008 - an immutable tuple
    *,
    thorough: bool = False,
) -> Row:
    """Surveys one design.

    Args:
        name: as `find` takes it.
        options: that are not as by default.
        scenarios: in which, as far as they mean something for the design; None is all that are shipped.
        limits: of each.
        thorough: if scenarios is None, all that take long, too.

    Raises:
        InvalidArgument, DesignError: see `find` and `program`.
        Nondeterminism: see `survey`.
        DesignError: if the design does not come to its next step, too.
    """
    began = time.monotonic()
    design: type[Design] = find(name)
    deepest = Depth()
    states = 0
    shown: dict[Property, int] = dict.fromkeys(Property, 0)
    open_: set[Property] = set()
    best: dict[Property, tuple[Bug, Scenario, Program]] = {}
    chosen = scenarios_for(design, thorough=thorough) if scenarios is None else scenarios
    for scenario in chosen:
        if not fits_design(design, scenario):
            continue
        explored = program(design, scenario, options, deepest)
        with watched(), suspected(design):
            found = survey(explored, limits)
        states += found.states
        for property_ in shown_by(scenario) | found.broken.keys():
            shown[property_] += 1
            bug = found.broken.get(property_)
            if bug is None:
                if not found.complete:
                    open_.add(property_)
            elif property_ not in best or len(bug.shortest) < len(best[property_][0].shortest):
                best[property_] = bug, scenario, explored
    return Row(
        design=name,
        options=dict(options),
        cells=tuple(_cell(property_, shown[property_], property_ in open_, best) for property_ in Property),
        stack_bytes=deepest.bytes,
        states=states,
        seconds=time.monotonic() - began,
    )


@dataclass(frozen=True, slots=True)
class Survey:
    """A row to be found, in words that mean the same in another process."""

    design: str
    options: Mapping[str, str]
    scenarios: tuple[Scenario, ...] | None
    limits: Limits
    thorough: bool = False

    def run(self, on_layer: OnLayer | None = None) -> Row:
        """Finds it; nobody is told of layers, of which there are many searches' in turn."""
        del on_layer
        return row(self.design, self.options, self.scenarios, self.limits, thorough=self.thorough)


def surveys(
    scenarios: Iterable[Scenario] | None = None,
    limits: Limits = Limits(),  # noqa: B008 - an immutable tuple
    *,
    thorough: bool = False,
) -> list[Survey]:
    """The matrix to be: all shipped designs, then those options of theirs that make a difference.

    Args:
        scenarios: as for `row`.
        limits: as for `row`.
        thorough: as for `row`.
    """
    chosen = None if scenarios is None else tuple(scenarios)
    designs = [*((name, {}) for name in DESIGNS), *VARIANTS]
    return [Survey(name, options, chosen, limits, thorough) for name, options in designs]


def _cell(
    property_: Property, scenarios: int, open_: bool, best: Mapping[Property, tuple[Bug, Scenario, Program]]
) -> Cell:
    if property_ in best:
        bug, scenario, explored = best[property_]
        return Cell(
            property_, Outcome.BUG, scenarios, bug, scenario.reference, encode(explored, bug.shortest)
        )
    outcome = (Outcome.INCOMPLETE if open_ else Outcome.PROVED) if scenarios else None
    return Cell(property_, outcome, scenarios)
