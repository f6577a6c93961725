"""bench: what the balloon costs, beside what it cannot cost less than.

A thin layer: the benchmarks, their parameters and their rows are `balloonvq.bench`'s; a command is made
for each line of its table when it is called.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from balloonctl.command import BalloonCommand
from balloonctl.context import App
from balloonctl.sizes import DURATION, Size, SizeType
from balloonvq.bench import BENCHMARKS, find
from balloonvq.errors import InvalidArgument

if TYPE_CHECKING:
    from balloonvq.bench.measure import Definition, Parameter, Plan, Value

__all__ = ["bench"]


class BenchGroup(click.Group):
    """Makes the command of a benchmark from its definition; its own commands stand behind them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The benchmarks in the order of the table, then what is done with results."""
        return [*BENCHMARKS, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A benchmark's command; this imports its module."""
        if cmd_name in BENCHMARKS:
            return _command(find(cmd_name))
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, from the table alone."""
        own = {name: self.commands[name].get_short_help_str(100) for name in super().list_commands(ctx)}
        with formatter.section("Commands"):
            formatter.write_dl([*BENCHMARKS.items(), *own.items()])


@click.group("bench", cls=BenchGroup, context_settings={"help_option_names": ["-h", "--help"]})
def bench() -> None:
    """Measure, on a machine of its own; what counts are ratios within one run.

    The size of a row is real memory that is written and given back, so mind what the host can spare.
    """


def _type(parameter: Parameter) -> click.ParamType[Any]:
    """How the value of a parameter is typed, on its own and in a list of --scan."""
    match parameter.kind:
        case "size":
            return SizeType(percent=False)
        case "count":
            return click.IntRange(parameter.least, parameter.most)
        case "flag":
            return click.BOOL
        case _:
            return click.Choice(parameter.choices) if parameter.choices else click.STRING


def _default(parameter: Parameter) -> Any:
    """The default as one would type it."""
    if parameter.kind != "size":
        return parameter.default
    number, unit = int(parameter.default), ""
    for unit in ("K", "M", "G", "T"):  # noqa: B007 - the last one that fits is wanted
        number //= 1024
        if number % 1024:
            break
    return f"{number}{unit}"


def _option(parameter: Parameter) -> click.Option:
    """A parameter as an option."""
    name = f"--{parameter.name}"
    return click.Option(
        [f"{name}/--no-{parameter.name}" if parameter.kind == "flag" else name],
        type=_type(parameter),
        default=_default(parameter),
        show_default=True,
        help=parameter.about,
    )


def _value(typed: Any) -> Value:
    """What the benchmark gets for a typed value."""
    if isinstance(typed, Size):
        assert typed.bytes is not None
        return typed.bytes
    value: Value = typed
    return value


def _plan_options(definition: Definition) -> list[click.Parameter]:
    """How often to measure."""
    return [
        click.Option(
            ["--runs"],
            type=click.IntRange(1, 100_000),
            default=definition.runs,
            show_default=True,
            help="Rounds that count, at least.",
        ),
        click.Option(
            ["--warmup"],
            type=click.IntRange(0, 100_000),
            default=definition.warmup,
            show_default=True,
            help="Rounds before that do not.",
        ),
        click.Option(["--min-time"], type=DURATION, help="Go on until the rounds that count took this long."),
        click.Option(
            ["--scan", "scans"],
            multiple=True,
            metavar="NAME=VALUE,…",
            help="Measure with each value of an option above; may be given again for every combination.",
        ),
    ]


def _command(definition: Definition) -> BalloonCommand:
    """The command of a benchmark."""

    def callback(runs: int, warmup: int, min_time: float | None, scans: Sequence[str], **typed: Any) -> int:
        from balloonvq.bench.measure import Plan

        app = click.get_current_context().find_object(App)
        assert app is not None
        values = {
            parameter.key: _value(typed[parameter.name.replace("-", "_")])
            for parameter in definition.parameters
        }
        plan = Plan(runs=runs, warmup=warmup, min_time_s=min_time or 0.0)
        return _measure(app, [(definition, values)], plan, _scans(definition, scans))

    return BalloonCommand(
        definition.name,
        callback=callback,
        params=[*map(_option, definition.parameters), *_plan_options(definition)],
        help=definition.about,
        short_help=BENCHMARKS[definition.name],
    )


def _scans(definition: Definition, typed: Sequence[str]) -> dict[str, list[Value]]:
    """The values of each --scan, read as the option reads them; names are checked later."""
    known = {parameter.name: parameter for parameter in definition.parameters}
    found: dict[str, list[Value]] = {}
    for text in typed:
        name, equals, values = text.partition("=")
        if not equals:
            raise InvalidArgument(f"--scan {text} has no values", hint=f"--scan {name}=VALUE,VALUE")
        words = [word for word in values.split(",") if word]
        kind = _type(known[name]) if name in known else click.STRING
        found[name] = [_value(kind.convert(word, None, click.get_current_context())) for word in words]
    return found


def _measure(
    app: App,
    tasks: Sequence[tuple[Definition, Mapping[str, Value]]],
    plan: Plan,
    scans: Mapping[str, Sequence[Value]],
) -> int:
    """Runs benchmarks and says what they measured."""
    from balloonctl.progress import rounds
    from balloonctl.render.bench import render_report
    from balloonvq.bench.measure import measure, points
    from balloonvq.bench.results import Report
    from balloonvq.counters import to_document
    from balloonvq.host import facts

    started = datetime.now(UTC).isoformat(timespec="seconds")
    host = facts()
    todo = [(one, {**values, **point}) for one, values in tasks for point in points(one, scans)]
    results = []
    for number, (definition, values) in enumerate(todo, 1):
        place = f" {number}/{len(todo)}" if len(todo) > 1 else ""
        with rounds(app, f"{definition.name}{place}") as advance:
            results.append(measure(definition, values, plan, advance))
    report = Report(started=started, host=host, results=tuple(results))
    app.emit(to_document(report), render_report)
    for result in results:
        for warning in result.warnings:
            app.warn(warning)
    return 0
