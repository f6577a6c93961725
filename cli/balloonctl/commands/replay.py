"""replay: a schedule that the explorer found, once more."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from balloonctl.command import command
from balloonctl.commands.explore import confirmation_members, timeline_members
from balloonctl.commands.machines import complete_design
from balloonctl.context import App, pass_app
from balloonctl.sizes import WholeNumber
from balloonctl.streams import prints_to_stderr
from balloonvq.errors import InvalidArgument

if TYPE_CHECKING:
    from balloonvq.explore.world import Program
    from balloonvq.runtime.execution import Execution

__all__ = ["replay"]

_FAILED = 1

#: Runs on real threads, if nobody says how many.
_TIMES = 100


class _Known(NamedTuple):
    """A program that a string may mean."""

    design: str
    options: dict[str, str]
    changed: dict[str, str]
    """Those of the options that are not as by default."""
    scenario: str
    program: Program


def _known(names: list[str], scenario: str | None) -> Iterator[_Known]:
    """Each design with all its options in each of its scenarios, or in that one."""
    from balloonvq.driver.designs import find
    from balloonvq.explore.load import find_scenario
    from balloonvq.explore.scenarios import fits_design, program, scenarios_for

    only = None if scenario is None else find_scenario(scenario)
    for name in names:
        design = find(name)
        for values in product(*design.options.values()):
            options = dict(zip(design.options, values, strict=True))
            changed = {
                option: value for option, value in options.items() if value != design.options[option][0]
            }
            for one in scenarios_for(design, thorough=True) if only is None else [only]:
                if fits_design(design, one):
                    yield _Known(name, options, changed, one.reference, program(design, one, options))


def _waiting(execution: Execution) -> str:
    """Who waits for ever, in words; an actor that has nothing to do does not."""
    return ", ".join(
        f"{actor.name} waits in {actor.pending!r}"
        for actor in execution.actors
        if not actor.finished
        and actor.pending is not None
        and actor.pending.blocks
        and not actor.pending.idle
    )


@command("replay")
@click.argument("string")
@click.option(
    "--design",
    metavar="DESIGN",
    shell_complete=complete_design,
    help="Of a design of your own: path/to/file.py:ClassName.",
)
@click.option("--scenario", metavar="SCENARIO", help="Of a scenario of your own: path/to/file.py:NAME.")
@click.option(
    "--live",
    is_flag=True,
    help="Force it on real threads too, over guest memory, C rings and the C device, and compare the end.",
)
@click.option(
    "--times",
    type=WholeNumber(min=1),
    help=f"With --live: how often.  [default: {_TIMES}]",
)
@click.pass_context
@pass_app
def replay(
    app: App,
    ctx: click.Context,
    /,
    string: str,
    design: str | None,
    scenario: str | None,
    live: bool,
    times: int | None,
) -> int:
    """Execute the schedule that STRING stands for, and show its timeline.

    `balloonctl explore` prints such a string with each bug. It counts steps, so it outlives changes of line numbers and
    of private code; where the design's steps have changed, this says so, and exits with 1. So it does if a run with
    --live ends otherwise than the explorer says.
    """
    if times is not None and not live:
        raise click.UsageError("--times counts runs on real threads; give --live", ctx)
    from balloonctl.render.explore import render_replay
    from balloonvq.driver.designs import DESIGNS
    from balloonvq.explore import replay as library
    from balloonvq.explore.standstill import watched
    from balloonvq.explore.timeline import timeline

    seen: list[_Known] = []

    def programs() -> Iterator[Program]:
        for known in _known([design] if design else list(DESIGNS), scenario):
            seen.append(known)
            yield known.program

    try:
        meaning = library.decode(string, programs())
    except InvalidArgument as error:
        error.hint = error.hint or (
            "balloonctl explore DESIGN finds its bugs again"
            if (design and scenario) or not seen
            else "give --design path/to/file.py:ClassName or --scenario path/to/file.py:NAME for one of your own"
        )
        raise
    meant = meaning.program
    known = next(one for one in seen if one.program is meant)
    confirmation = None
    with prints_to_stderr():
        with watched():
            execution = library.replay(string, [meant])
        decisions = execution.decisions
        loop = meaning.loop(decisions)
        end = library.ending(execution, loop)
        shown = timeline(meant, decisions, loop=loop)
        if live:
            from balloonvq.explore.live import confirm

            confirmation = confirm(meant, decisions, loop=loop, times=times or _TIMES)
    document: dict[str, Any] = {
        "schema": "balloonctl/replay/1",
        "design": known.design,
        "set": known.changed,
        "options": known.options,
        "scenario": known.scenario,
        "kind": None if end is None else end.kind.value,
        "what": _waiting(execution) if end is None else end.what,
        "schedule": {"length": len(decisions), **timeline_members(shown)},
        "replay": string.strip(),
        "live": None if confirmation is None else confirmation_members(confirmation),
    }
    app.emit(document, render_replay)
    return 0 if confirmation is None or confirmation.holds else _FAILED
