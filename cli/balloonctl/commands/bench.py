"""bench: what the balloon costs, beside what it cannot cost less than.

A thin layer: the benchmarks, their parameters and their rows are `balloonvq.bench`'s; a command is made
for each line of its table when it is called.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from balloonctl.command import BalloonCommand, agree_on_output
from balloonctl.context import App, pass_app
from balloonctl.failures import origin
from balloonctl.output import Format, report
from balloonctl.sizes import DURATION, Size, SizeType, WholeNumber
from balloonvq.bench import BENCHMARKS, find
from balloonvq.errors import BalloonError, InternalError, InvalidArgument, RuleBroken

if TYPE_CHECKING:
    from balloonvq.bench.measure import Definition, Parameter, Plan, Value
    from balloonvq.bench.results import Report

__all__ = ["bench"]

_REGRESSION = 4


class BenchGroup(click.Group):
    """Makes the command of a benchmark from its definition; `all` and `compare` stand behind them."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The benchmarks in the order of the table, then all of them, then what is done with results."""
        return [*BENCHMARKS, "all", *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """A benchmark's command; this imports its module."""
        if cmd_name in BENCHMARKS:
            return _command([find(cmd_name)], cmd_name, find(cmd_name).about, BENCHMARKS[cmd_name])
        if cmd_name == "all":
            return _command([find(name) for name in BENCHMARKS], "all", _ALL + _ALL_MORE, _ALL)
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that the first word names, or an error that names its neighbours."""
        name = args[0]
        if not ctx.resilient_parsing and not name.startswith("-") and name not in self.list_commands(ctx):
            from difflib import get_close_matches

            near = get_close_matches(name, self.list_commands(ctx), n=3)
            meant = f"; did you mean {' or '.join(near)}?" if near else ""
            raise click.UsageError(f"no such command: {name!r}{meant}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, from the table alone: nothing is imported for it."""
        own = {name: self.commands[name].get_short_help_str(100) for name in super().list_commands(ctx)}
        with formatter.section("Benchmarks"):
            formatter.write_dl([*BENCHMARKS.items(), ("all", _ALL)])
        with formatter.section("Results"):
            formatter.write_dl([*own.items()])


_ALL = "Every benchmark, one after the other."
_ALL_MORE = (
    " An option goes to those that have it; the others keep their own way."
    " What cannot be measured here is left out, and the result says why."
)


@click.group("bench", cls=BenchGroup, context_settings={"help_option_names": ["-h", "--help"]})
def bench() -> None:
    """Measure, on a machine of its own; what counts are ratios within one run.

    The size of a row is real memory that is written and given back, so mind what the host can spare.
    """


# ---- parameters as options ------------------------------------------------------


def _type(parameter: Parameter) -> click.ParamType[Any]:
    """How the value of a parameter is typed, on its own and in a list of --scan."""
    match parameter.kind:
        case "size":
            return SizeType(percent=False)
        case "count":
            return WholeNumber(parameter.least, parameter.most)
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


def _option(parameter: Parameter, *, own_default: bool) -> click.Option:
    """A parameter as an option; without `own_default` not giving it leaves each benchmark its own."""
    name = f"--{parameter.name}"
    return click.Option(
        [f"{name}/--no-{parameter.name}" if parameter.kind == "flag" else name],
        type=_type(parameter),
        default=_default(parameter) if own_default else None,
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


def _plan_options(definition: Definition | None) -> list[click.Option]:
    """How often to measure; the defaults are the benchmark's."""
    return [
        click.Option(
            ["--runs"],
            type=WholeNumber(1, 100_000),
            default=definition and definition.runs,
            show_default=True,
            help="Rounds that count, at least.",
        ),
        click.Option(
            ["--warmup"],
            type=WholeNumber(0, 100_000),
            default=definition and definition.warmup,
            show_default=True,
            help="Rounds before that do not.",
        ),
        click.Option(["--min-time"], type=DURATION, help="Go on until the rounds that count took this long."),
        click.Option(
            ["--scan"],
            multiple=True,
            metavar="NAME=VALUE,…",
            help="Measure with each value of an option above; may be given again for every combination.",
        ),
    ]


def _export_options() -> list[click.Option]:
    """Where results go beside the terminal."""

    def option(name: str, what: str, **more: Any) -> click.Option:
        return click.Option([f"--{name}"], metavar="FILE", help=what, **more)

    return [
        option(
            "json",
            "Write the document to FILE, too; without FILE it is the same as --output json.",
            is_flag=False,
            flag_value="-",
        ),
        option("csv", "Write a line a row to FILE, too; - is stdout, instead."),
        option("markdown", "Write tables to FILE, likewise."),
        option("html", "Write a page with charts to FILE, likewise."),
        option("pyperf", "Write what `python -m pyperf` reads to FILE, likewise."),
    ]


def _command(definitions: Sequence[Definition], name: str, text: str, line: str) -> BalloonCommand:
    """The command of one benchmark, or of all."""
    alone = definitions[0] if len(definitions) == 1 else None
    parameters = {parameter.name: parameter for one in definitions for parameter in one.parameters}

    def callback(
        runs: int | None, warmup: int | None, min_time: float | None, scan: Sequence[str], **typed: Any
    ) -> int:
        from balloonvq.bench.measure import Plan

        app = click.get_current_context().find_object(App)
        assert app is not None
        files = {form: typed.pop(form) for form in ("json", "csv", "markdown", "html", "pyperf")}
        tasks = []
        for one in definitions:
            given = {parameter.key: typed[parameter.name.replace("-", "_")] for parameter in one.parameters}
            tasks.append((one, {key: _value(value) for key, value in given.items() if value is not None}))
        plan = Plan(runs=runs, warmup=warmup, min_time_s=min_time or 0.0)
        return _run(app, tasks, plan, _scans(parameters, scan), files)

    return BalloonCommand(
        name,
        callback=callback,
        params=[
            *(_option(parameter, own_default=alone is not None) for parameter in parameters.values()),
            *_plan_options(alone),
            *_export_options(),
        ],
        help=text,
        short_help=line,
    )


def _scans(known: Mapping[str, Parameter], typed: Sequence[str]) -> dict[str, list[Value]]:
    """The values of each --scan, read as the option reads them; names are checked later."""
    found: dict[str, list[Value]] = {}
    for text in typed:
        name, equals, values = text.partition("=")
        words = [word for word in values.split(",") if word]
        if not equals or not words:
            raise InvalidArgument(f"--scan {text} has no values", hint=f"--scan {name}=VALUE,VALUE")
        kind = _type(known[name]) if name in known else click.STRING
        found[name] = [_value(kind.convert(word, None, click.get_current_context())) for word in words]
    return found


# ---- running --------------------------------------------------------------------


def _run(
    app: App,
    tasks: Sequence[tuple[Definition, Mapping[str, Value]]],
    plan: Plan,
    scans: Mapping[str, Sequence[Value]],
    files: Mapping[str, str | None],
) -> int:
    """Runs benchmarks, writes the files that are asked for, and says what was measured."""
    from balloonvq.counters import to_document

    targets = {form: target for form, target in files.items() if target is not None}
    to_stdout = [form for form, target in targets.items() if target == "-"]
    if len(to_stdout) > 1:
        raise InvalidArgument(
            f"--{to_stdout[0]} and --{to_stdout[1]} cannot both have stdout", hint=f"--{to_stdout[1]} FILE"
        )
    if to_stdout == ["json"]:
        agree_on_output(click.get_current_context(), "json", Format.JSON)
        app.adjust(output=Format.JSON)
        del targets["json"], to_stdout[0]
    with ExitStack() as stack:
        opened = {form: stack.enter_context(report(target)) for form, target in targets.items()}
        measured = _measured(app, tasks, plan, scans)
        document = to_document(measured)
        if measured.interrupted:
            _tell(app, document, printed=not to_stdout)
            raise KeyboardInterrupt  # files stay as they were
        for form, file in opened.items():
            file.write(_written(form, document))
    _tell(app, document, printed=not to_stdout)
    return 0


def _tell(app: App, document: Mapping[str, Any], *, printed: bool) -> None:
    """What was measured, unless something else has stdout, and why it may not be trusted."""
    from balloonctl.render.bench import render_report

    if printed:
        app.emit(document, render_report)
    for result in document["results"]:
        for warning in result["warnings"]:
            app.warn(f"bench {result['benchmark']}: {warning}")


def _written(form: str, document: Mapping[str, Any]) -> str:
    """A document as a file of that form."""
    from balloonctl import bench_files
    from balloonctl.commands.info import version_line
    from balloonctl.output import as_json
    from balloonctl.render.bench_html import bench_page

    forms: dict[str, Callable[[], str]] = {
        "json": lambda: as_json(document, indent=True) + "\n",
        "csv": lambda: bench_files.as_csv(document),
        "markdown": lambda: bench_files.as_markdown(document),
        "html": lambda: bench_page(document, version_line()),
        "pyperf": lambda: bench_files.as_pyperf(document),
    }
    return forms[form]()


def _measured(
    app: App,
    tasks: Sequence[tuple[Definition, Mapping[str, Value]]],
    plan: Plan,
    scans: Mapping[str, Sequence[Value]],
) -> Report:
    """The report of all tasks, or of those before Ctrl-C. Of several, those that cannot be run here are left out."""
    from balloonctl.progress import rounds
    from balloonvq.bench.measure import Interrupted, measure
    from balloonvq.bench.results import Report, Skipped
    from balloonvq.host import facts

    todo = list(_points(tasks, scans))
    started = datetime.now(UTC).isoformat(timespec="seconds")
    host = facts()
    results, skipped, interrupted = [], [], False
    try:
        for number, (definition, values) in enumerate(todo, 1):
            place = f" {number}/{len(todo)}" if len(todo) > 1 else ""
            try:
                with rounds(app, f"{definition.name}{place}") as advance:
                    results.append(measure(definition, values, plan, advance))
            except BalloonError as error:
                if len(tasks) == 1 or isinstance(error, InternalError | RuleBroken):
                    raise
                skipped.append(
                    Skipped(benchmark=definition.name, what=error.what, why=error.why, hint=error.hint)
                )
    except KeyboardInterrupt as interruption:
        if isinstance(interruption, Interrupted):
            results.append(interruption.result)
        if not results:
            raise
        interrupted = True
    return Report(
        started=started, host=host, results=tuple(results), skipped=tuple(skipped), interrupted=interrupted
    )


def _points(
    tasks: Sequence[tuple[Definition, Mapping[str, Value]]], scans: Mapping[str, Sequence[Value]]
) -> Iterator[tuple[Definition, dict[str, Value]]]:
    """Every measurement to make. Of several benchmarks each takes the scans of parameters that it has."""
    from balloonvq.bench.measure import points

    if len(tasks) > 1:
        everywhere = {parameter.name for one, _ in tasks for parameter in one.parameters}
        for name in scans:
            if name not in everywhere:
                raise InvalidArgument(
                    f"no benchmark has a parameter {name!r}", why=f"they have {', '.join(sorted(everywhere))}"
                )
    for one, values in tasks:
        own = {parameter.name for parameter in one.parameters}
        mine = {name: choice for name, choice in scans.items() if len(tasks) == 1 or name in own}
        for point in points(one, mine):
            yield one, {**values, **point}


# ---- comparing ------------------------------------------------------------------


class Percentage(click.ParamType[float]):
    """A share of something: 5% is 0.05. A number without the sign could mean either, and is refused."""

    name = "percentage"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """A typed text as a share; nothing negative."""
        if isinstance(value, float):
            return value
        found = re.fullmatch(r"([0-9]{1,6}(?:\.[0-9]{0,6})?)\s*%", str(value).strip())
        if found is None:
            self._refuse(str(value).strip(), origin(ctx, param))
        return float(found[1]) / 100

    def _refuse(self, text: str, why: str) -> NoReturn:
        if re.fullmatch(r"[0-9]+(\.[0-9]*)?", text):
            raise InvalidArgument(
                f"{text} is no percentage: it has no %",
                why=why or "without it, 0.05 could be a twentieth or a twentieth of a per cent",
                hint=f"write {text}% for {text} per cent",
            )
        raise InvalidArgument(f"{text} is no percentage", why=why, hint="write it as 5% or 12.5%")


@bench.command("compare", cls=BalloonCommand)
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option(
    "--fail-above",
    type=Percentage(),
    metavar="PERCENT",
    help="Exit 4 if a row is slower by more than this, as 5%.",
)
@click.option(
    "--relative",
    is_flag=True,
    help="Compare the rows' ratios to their limits, which travel between machines.",
)
@pass_app
def compare(app: App, /, old: Path, new: Path, fail_above: float | None, relative: bool) -> int:
    """Hold a measurement against an earlier one, row by row.

    OLD and NEW are files that `--json FILE` wrote. The error of a ratio comes from how the rounds spread.
    """
    from balloonctl.render.bench import render_comparison
    from balloonvq.bench.compare import compare as compared
    from balloonvq.bench.compare import load
    from balloonvq.counters import to_document

    comparison = compared(
        load(old), load(new), names=(str(old), str(new)), relative=relative, fail_above=fail_above
    )
    app.emit(to_document(comparison), render_comparison)
    return _REGRESSION if comparison.regressions else 0
