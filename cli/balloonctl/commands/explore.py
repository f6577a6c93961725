"""explore: every interleaving of a locking design, or a statement about how many were not looked at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from balloonctl.command import CONFIGURATION, command
from balloonctl.commands.machines import complete_design, complete_design_option, design_options
from balloonctl.context import App, pass_app
from balloonctl.output import Format, report
from balloonctl.sizes import Number, WholeNumber
from balloonctl.streams import prints_to_stderr
from balloonvq.counters import to_document
from balloonvq.errors import BalloonError

if TYPE_CHECKING:
    from balloonctl.config import Configuration
    from balloonvq.driver.designs import Design
    from balloonvq.explore.live import Confirmation
    from balloonvq.explore.matrix import Cell, Survey
    from balloonvq.explore.parallel import Task
    from balloonvq.explore.properties import Property
    from balloonvq.explore.scenarios import Result, Scenario
    from balloonvq.explore.search import Limits, Progress
    from balloonvq.explore.timeline import Timeline
    from balloonvq.explore.verdict import Schedule

__all__ = ["confirmation_members", "explore", "timeline_members"]

_BUG, _INCOMPLETE = 3, 5

#: Runs of each bug on real threads, if nobody says how many.
_CONFIRM = 10


def _complete_scenario(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The scenarios that come with balloonvq."""
    del ctx, param
    from balloonvq.explore.scenarios import SCENARIOS

    return [name for name in SCENARIOS if name.startswith(incomplete)]


def _complete_property(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The rows of the matrix."""
    del ctx, param
    from balloonvq.explore.properties import Property

    return [one.slug for one in Property if one.slug.startswith(incomplete)]


def _schedule(schedule: Schedule, timeline: Timeline) -> dict[str, Any]:
    """A schedule and what happens in it, as JSON."""
    return {
        "length": len(schedule),
        "preemptions": schedule.preemptions,
        "minimal": bool(schedule.minimal),
        **timeline_members(timeline),
    }


def _fewest(result: Result) -> dict[str, Any] | None:
    """The schedule with the fewest preemptions and its replay string, where it is not the shortest one."""
    bug, timeline = result.verdict.bug, result.fewest_timeline
    if bug is None or bug.fewest_preemptions is None or timeline is None:
        return None
    return {**_schedule(bug.fewest_preemptions, timeline), "replay": result.fewest_replay}


def timeline_members(timeline: Timeline) -> dict[str, Any]:
    """A timeline as JSON."""
    return {
        "loop": timeline.loop,
        "actors": [{"name": name, "role": role} for name, role in timeline.actors],
        "steps": [
            {
                "step": line.step,
                "actor": line.actor,
                "operation": line.text,
                "place": line.place,
                "held": [list(names) for names in line.held],
                "changes": [
                    {"name": change.name, "before": change.before, "after": change.after}
                    for change in line.changes
                ],
                "folded": line.folded,
            }
            for line in timeline.lines
        ],
        "ends": [
            {
                "actor": end.actor,
                "fate": end.fate,
                "wants": end.wants,
                "place": end.place,
                "holds": list(end.holds),
            }
            for end in timeline.ends
        ],
    }


def confirmation_members(confirmation: Confirmation) -> dict[str, Any]:
    """What became of a schedule on real threads, as JSON."""
    return {
        "times": confirmation.times,
        "confirmed": confirmation.confirmed,
        "seconds": confirmation.seconds,
        "difference": confirmation.difference,
        "why": confirmation.why,
        "seen": list(confirmation.seen),
        "tasks": [to_document(task) for task in confirmation.tasks],
    }


def _design(name: str) -> type[Design]:
    """The design; what `find` hints at for `start` is said for this command."""
    from balloonvq.driver.designs import find

    try:
        return find(name)
    except BalloonError as error:
        error.hint = error.hint.replace("--design ", "balloonctl explore ", 1)
        raise


def _confirmed(task: Task, result: Result, times: int) -> dict[str, Any] | None:
    """What became of a bug's shortest schedule on real threads; None if that was not tried."""
    bug = result.verdict.bug
    if bug is None or not times:
        return None
    from balloonvq.explore import live
    from balloonvq.explore.scenarios import program

    shortest = bug.shortest
    explored = program(_design(task.design), task.scenario, task.options)
    try:
        confirmation = live.confirm(explored, shortest.decisions, loop=shortest.loop, times=times)
    except BalloonError as error:
        # The verdict stands without it: a thread that cannot be ended, say, or no memory for a guest.
        confirmation = live.Confirmation(times, 0, 0.0, str(error), error.why, (), ())
    return confirmation_members(confirmation)


def _row(design: str, given: dict[str, str], result: Result) -> dict[str, Any]:
    """A result as a member of the document, not yet tried on real threads; the design as it was typed."""
    verdict = result.verdict
    bug, timeline = verdict.bug, result.timeline
    return {
        "design": design,
        "set": given,
        "options": dict(result.options),
        "scenario": result.scenario.reference,
        "verdict": verdict.outcome.value,
        "kind": None if bug is None else bug.kind.value,
        "what": "" if bug is None else bug.what,
        "why": verdict.why,
        "engine": verdict.engine,
        "states": verdict.states,
        "transitions": verdict.transitions,
        "estimate": verdict.estimate,
        "clean_steps": max(0, verdict.layers - 1) if verdict.outcome.value == "INCOMPLETE" else None,
        "seconds": result.seconds,
        "bounds": list(result.bounds),
        "schedule": None if bug is None or timeline is None else _schedule(bug.shortest, timeline),
        "replay": result.replay,
        "fewest_preemptions": _fewest(result),
        "live": None,
    }


#: Scenarios from which on starting more processes pays.
_MANY = 4


def _jobs(asked: int | None, tasks: int) -> int:
    """How many processes explore, this one included."""
    from balloonvq.explore.parallel import processors

    if asked is None:
        asked = processors() if tasks >= _MANY else 1
    return min(asked, max(1, tasks))


def _searching(progress: Progress, limits: Limits) -> str:
    """How far a search is, in words."""
    from balloonctl.render.units import count, plural

    rate = count(round(progress.states / max(progress.seconds, 1e-3)))
    text = f"{plural(progress.states, 'state')}, {rate}/s, frontier {count(progress.frontier)}"
    if progress.estimate is not None:
        text += f", perhaps {count(progress.estimate)} in all"
        if progress.estimate > limits.states:
            text += f" (more than --max-states {count(limits.states)})"
    return f"{text}; all schedules of up to {plural(progress.layers, 'step')}: clean"


def _explored(
    app: App,
    tasks: list[Task],
    jobs: int | None,
    executor: str | None,
    *,
    confirm: int,
    streamed: bool,
    printed: bool,
) -> list[dict[str, Any]]:
    """The results. At Ctrl-C those that are there are written.

    Args:
        app: where to.
        tasks: what is explored.
        jobs: processes here; None is as many as pay.
        executor: other machines, instead.
        confirm: how often a bug is tried on real threads.
        streamed: write a line about each result as soon as it is there, and at Ctrl-C what follows the lines.
        printed: whether results go to stdout at all.
    """
    from balloonctl.render.explore import render_matrix, render_rest

    results: list[dict[str, Any]] = []
    stdout = app.stdout  # made here, for the real stdout, to which lines are written meanwhile
    try:
        with prints_to_stderr():
            _explore_into(results, app, tasks, jobs, executor, confirm=confirm, streamed=streamed)
    except KeyboardInterrupt:
        if results:
            document = _document(results, interrupted=True)
            if streamed:
                stdout.print(render_rest(document))
            elif printed:
                app.emit(document, render_matrix)
            app.note(f"{len(results)} of {len(tasks)} scenarios were explored")
        raise
    return results


def _explore_into(
    results: list[dict[str, Any]],
    app: App,
    tasks: list[Task],
    jobs: int | None,
    executor: str | None,
    *,
    confirm: int,
    streamed: bool,
) -> None:
    """Appends the results as they come."""
    from balloonctl.progress import exploring
    from balloonctl.render.explore import heading, line
    from balloonvq.explore.parallel import connected, explore_all

    width = max((len(task.scenario.reference) for task in tasks), default=0)
    with nullcontext() if executor is None else connected(executor) as pool, exploring(app) as bar:

        def on_layer(progress: Progress) -> None:
            bar.layer(_searching(progress, tasks[0].limits))

        every = explore_all(tasks, jobs=_jobs(jobs, len(tasks)), executor=pool, on_layer=on_layer)
        with closing(every) as coming:
            for number, task in enumerate(tasks):
                bar.scenario(number, len(tasks), f"{task.design} / {task.scenario.reference}")
                result = next(coming)
                results.append(_row(task.design, task.options, result))
                if streamed:
                    with bar.aside():
                        if number == 0:
                            app.stdout.print(heading(results[0]))
                        app.stdout.print(line(results[-1], width))
                        app.stdout.file.flush()
                results[-1]["live"] = _confirmed(task, result, confirm)


def _document(results: list[dict[str, Any]], *, interrupted: bool = False) -> dict[str, Any]:
    """What was found, as a document."""
    return {
        "schema": "balloonctl/explore/1",
        "seconds": sum(result["seconds"] for result in results),
        "interrupted": interrupted,
        "results": results,
    }


def _cell(cell: Cell) -> dict[str, Any]:
    """A cell of the matrix as JSON."""
    bug = cell.bug
    return {
        "property": cell.property.value,
        "verdict": None if cell.outcome is None else cell.outcome.value,
        "scenarios": cell.scenarios,
        "kind": None if bug is None else bug.kind.value,
        "what": "" if bug is None else bug.what,
        "length": None if bug is None else len(bug.shortest),
        "preemptions": None if bug is None else bug.shortest.preemptions,
        "scenario": cell.scenario,
        "replay": cell.replay,
    }


def _surveyed(app: App, surveys: list[Survey], jobs: int | None, executor: str | None) -> dict[str, Any]:
    """Designs by properties, as a document. At Ctrl-C those that are there are written."""
    from time import monotonic

    from balloonctl.render.explore import render_properties
    from balloonvq.explore.matrix import Property

    began = monotonic()
    rows: list[dict[str, Any]] = []

    def document(*, interrupted: bool) -> dict[str, Any]:
        return {
            "schema": "balloonctl/matrix/1",
            "seconds": monotonic() - began,
            "interrupted": interrupted,
            "properties": [property_.value for property_ in Property],
            "rows": rows,
        }

    try:
        _survey_into(rows, app, surveys, jobs, executor)
    except KeyboardInterrupt:
        if rows:
            app.emit(document(interrupted=True), render_properties)
            app.note(f"{len(rows)} of {len(surveys)} designs were explored")
        raise
    return document(interrupted=False)


def _survey_into(
    rows: list[dict[str, Any]], app: App, surveys: list[Survey], jobs: int | None, executor: str | None
) -> None:
    """Appends the rows as they come."""
    from balloonctl.progress import exploring
    from balloonvq.explore.parallel import connected, explore_all

    with nullcontext() if executor is None else connected(executor) as pool, exploring(app) as bar:
        every = explore_all(surveys, jobs=_jobs(jobs, len(surveys)), executor=pool)
        with closing(every) as coming:
            for number, survey in enumerate(surveys):
                bar.scenario(number, len(surveys), survey.design)
                row = next(coming)
                rows.append(
                    {
                        "design": row.design,
                        "set": dict(row.options),
                        "cells": [_cell(cell) for cell in row.cells],
                        "stack_bytes": row.stack_bytes,
                        "states": row.states,
                        "seconds": row.seconds,
                    }
                )


def _exit_code(results: Iterable[dict[str, Any]]) -> int:
    """3 if there is a bug, 5 if something stayed open, else 0."""
    verdicts = {result["verdict"] for result in results}
    return _BUG if "BUG" in verdicts else _INCOMPLETE if "INCOMPLETE" in verdicts else 0


def _check_checkpoint(ctx: click.Context, path: Path | None, *, alone: bool) -> None:
    """Refuses a checkpoint of a search that cannot have one, or at a path where none can be."""
    from balloonvq.explore.checkpoint import check_place

    if not alone:
        raise click.UsageError("a checkpoint is of one design in one --scenario, explored here", ctx)
    if path is not None:
        check_place(path)


def _by_property(ctx: click.Context, by: str | None, html: str | None, confirm: int | None) -> bool:
    """Whether --all prints properties, and not scenarios."""
    if by == "property" and html is not None:
        raise click.UsageError("--html shows a matrix by scenario", ctx)
    if html is not None or by == "scenario":
        return False
    if confirm:
        raise click.UsageError("--confirm is for --all --by scenario", ctx)
    return True


def _tell_narrowing(app: App, ctx: click.Context) -> None:
    """Says what keeps some scenarios out that nobody left out on the command line."""
    configuration: Configuration = ctx.meta[CONFIGURATION]
    for name in ("scenario", "property"):
        match ctx.get_parameter_source(name):
            case ParameterSource.DEFAULT_MAP:
                where = str(configuration.files["explore", name])
            case ParameterSource.ENVIRONMENT:
                where = f"BALLOONCTL_EXPLORE_{name.upper()}"
            case _:
                continue
        value = ctx.params[name]
        if value:
            words = value if isinstance(value, str) else ", ".join(value)
            app.note(f"not everything is explored: {where} narrows it to {name} {words}")


def _not_both(ctx: click.Context, both: object, why: str) -> None:
    if both:
        raise click.UsageError(f"{why}; give one of them", ctx)


def _tasks(
    designs: Iterable[tuple[str, type[Design]]],
    chosen: Sequence[Scenario],
    only: Property | None,
    *,
    every: bool,
    thorough: bool,
) -> list[tuple[str, type[Design], Scenario]]:
    """Which designs in which scenarios: those that were chosen, or all that fit and can show what is asked."""
    from balloonvq.explore.properties import shown_by
    from balloonvq.explore.scenarios import fits_design, scenarios_for

    tasks: list[tuple[str, type[Design], Scenario]] = []
    for name, kind in designs:
        if chosen:
            tasks += [(name, kind, one) for one in chosen if fits_design(kind, one) or not every]
        else:
            fitting = scenarios_for(kind, thorough=thorough)
            tasks += [(name, kind, one) for one in fitting if only is None or only in shown_by(one)]
    return tasks


@command("explore")
@click.argument("design", required=False, shell_complete=complete_design)
@click.option(
    "--scenario",
    multiple=True,
    metavar="NAME",
    shell_complete=_complete_scenario,
    help="Only this scenario; may be given again. A name of --list, actors such as fill+oom+compaction, or"
    " path/to/file.py:NAME.  [default: all of --list that fit the design]",
)
@click.option(
    "--set",
    multiple=True,
    metavar="OPTION=VALUE",
    callback=design_options,
    shell_complete=complete_design_option,
    help="Set an option of the design; may be given again.",
)
@click.option(
    "--property",
    metavar="NAME",
    shell_complete=_complete_property,
    help="Only what breaks this property, a row of --all, whatever else is wrong: deadlock, oom-page-listed, ...",
)
@click.option("--thorough", is_flag=True, help="Also what takes long: all combinations of 2 to 4 actors.")
@click.option("--list", is_flag=True, help="List the scenarios; explore nothing.")
@click.option("--all", is_flag=True, help="All designs: a row a property, a column a design.")
@click.option(
    "--by",
    type=click.Choice(["property", "scenario"]),
    help="With --all: what a row is.  [default: property; scenario with --html]",
)
@click.option(
    "--html", metavar="FILE", help="Write the results as a page to FILE, too; - is stdout, instead."
)
@click.option(
    "--max-states",
    type=WholeNumber(min=1),
    default=5_000_000,
    show_default=True,
    help="States of one scenario after which it is given up as INCOMPLETE.",
)
@click.option(
    "--max-seconds",
    type=Number(min=0, min_open=True),
    default=600.0,
    show_default=True,
    help="Time for one scenario after which it is given up as INCOMPLETE.",
)
@click.option(
    "--jobs",
    type=WholeNumber(min=1),
    metavar="N",
    help="Processes that explore scenarios at once; 1 keeps all in this one.  "
    "[default: the number of processors, if there are many scenarios]",
)
@click.option(
    "--executor",
    metavar="dask:ADDRESS",
    help="Explore on the dask cluster whose scheduler listens at ADDRESS (needs balloonctl[dask]).",
)
@click.option(
    "--confirm",
    type=WholeNumber(min=0),
    metavar="N",
    help=f"Force each bug N times on real threads too; 0 does not.  [default: {_CONFIRM}; with --all 0]",
)
@click.option(
    "--checkpoint",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Keep the search of the one --scenario in FILE: every 10 seconds, when it is given up, and at Ctrl-C.",
)
@click.option(
    "--resume",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Go on with the search in FILE, and keep it there.",
)
@click.pass_context
@pass_app
def explore(
    app: App,
    ctx: click.Context,
    /,
    design: str | None,
    scenario: tuple[str, ...],
    thorough: bool,
    by: str | None,
    html: str | None,
    max_states: int,
    max_seconds: float,
    jobs: int | None,
    executor: str | None,
    confirm: int | None,
    checkpoint: Path | None,
    resume: Path | None,
    **named: Any,
) -> int:
    """Look at every interleaving of a locking design: PROVED, a BUG with its shortest schedule, or INCOMPLETE.

    DESIGN is a name that `balloonctl designs` lists, or path/to/file.py:ClassName.
    Its own code runs; nothing is modelled twice. A bug that several scenarios have is drawn once, where its schedule is
    shortest; --json and --html have all. Exit code 0: all proved; 3: a bug; 5: incomplete.
    """
    # Those that are called as functions of Python are.
    options, every, only_list, property_name = (named[name] for name in ("set", "all", "list", "property"))
    if every and (design or options):
        raise click.UsageError("--all takes all designs as they are; leave out DESIGN and --set", ctx)
    by_property = every and _by_property(ctx, by, html, confirm)
    if property_name is not None and (not design or checkpoint or resume):
        raise click.UsageError("--property is for one DESIGN, and a search for it is not kept", ctx)
    if by and not every:
        raise click.UsageError("--by is for --all", ctx)
    if not (every or design or only_list):
        raise click.UsageError("name a DESIGN, or give --all or --list", ctx)
    if not only_list:
        _tell_narrowing(app, ctx)
    _not_both(ctx, scenario and thorough, "--thorough is for all scenarios, --scenario for some")
    _not_both(
        ctx, jobs is not None and executor is not None, "--jobs is for this machine, --executor for others"
    )
    from balloonctl.render import explore as render
    from balloonvq.driver.designs import DESIGNS, choose_options
    from balloonvq.explore.load import find_scenario
    from balloonvq.explore.parallel import Task
    from balloonvq.explore.properties import property_named
    from balloonvq.explore.scenarios import SCENARIOS, program, scenarios_for
    from balloonvq.explore.search import Limits

    names = list(DESIGNS) if every else [design] if design else []
    limits = Limits(max_states, max_seconds)
    found = [(name, _design(name)) for name in names]
    for _, kind in found:
        choose_options(kind, options)
    chosen = [find_scenario(name) for name in dict.fromkeys(scenario)]
    if only_list:
        fitting = found[0][1] if len(found) == 1 else None
        shown = chosen or [
            one for one in scenarios_for(fitting, thorough=True) if thorough or one.name in SCENARIOS
        ]
        rows = [
            {
                "name": one.reference,
                "actors": list(one.actors),
                "summary": one.summary,
                "thorough": one.thorough,
            }
            for one in shown
        ]
        app.emit({"schema": "balloonctl/scenarios/1", "scenarios": rows}, render.render_scenarios)
        return 0
    if by_property:
        from balloonvq.explore.matrix import surveys

        matrix = surveys(chosen or None, limits, thorough=thorough)
        document = _surveyed(app, matrix, jobs, executor)
        app.emit(document, render.render_properties)
        return _exit_code([cell for row in document["rows"] for cell in row["cells"]])
    only = None if property_name is None else property_named(property_name)
    tasks = _tasks(found, chosen, only, every=every, thorough=thorough)
    for _, kind, one in tasks:
        program(kind, one, options)  # refuses what makes no sense before anything has taken time
    times = (0 if every else _CONFIRM) if confirm is None else confirm
    if checkpoint or resume:
        _check_checkpoint(ctx, checkpoint, alone=len(tasks) == 1 and executor is None)
    printed = html != "-"
    streamed = printed and app.settings.output is Format.TABLE and not every
    work = [Task(name, one, options, limits, checkpoint or resume, resume, only) for name, _, one in tasks]
    with nullcontext() if html is None else report(html) as file:
        results = _explored(app, work, jobs, executor, confirm=times, streamed=streamed, printed=printed)
        document = _document(results)
        if file is not None:
            from balloonctl.commands.info import version_line
            from balloonctl.render.explore_html import explore_page

            file.write(explore_page(document, version_line()))
    if streamed and results:
        app.stdout.print(render.render_rest(document))
    elif printed:
        app.emit(document, render.render_matrix if every else render.render_explore)
    return _exit_code(results)
