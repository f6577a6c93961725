"""What every command has: the global options behind its name, its part of the configuration, good manners about sizes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click
from click.core import ParameterSource

from balloonctl.config import Configuration
from balloonctl.context import App
from balloonctl.output import Format
from balloonvq.errors import InvalidArgument

__all__ = [
    "COMMON",
    "CONFIGURATION",
    "BalloonCommand",
    "agree_on_output",
    "command",
    "complete_machine",
    "global_options",
]

#: Where the group keeps the configuration in a context.
CONFIGURATION = "balloonctl.configuration"

#: Where a context keeps the formats that its command line names, before the command and behind it.
_TYPED_FORMATS = "balloonctl.formats"

_SETTINGS: dict[str, Any] = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


def complete_machine(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of the machines that run."""
    del ctx, param
    from balloonctl import background

    # Only the names: to look at a machine that died would use up the one time that this is told.
    return [name for name in background.machine_names() if name.startswith(incomplete)]


def agree_on_output(ctx: click.Context, name: str, form: Format) -> None:
    """Refuses a command line whose --json and --output name different formats.

    What stands in a configuration file or a variable contradicts nothing: a command line goes before.

    Args:
        ctx: of the command, or of the program.
        name: of the option: json or output.
        form: what it stands for.

    Raises:
        click.UsageError: if the other one was typed too, for another format.
    """
    if ctx.get_parameter_source(name) is not ParameterSource.COMMANDLINE or ctx.resilient_parsing:
        return
    typed: dict[str, Format] = ctx.meta.setdefault(_TYPED_FORMATS, {})
    typed[name] = form
    if len(set(typed.values())) > 1:
        raise click.UsageError(
            f"--json is --output json, not --output {typed['output']}; give one of them", ctx
        )


def _agreed(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
    """Callback of a global --output or --json."""
    if value is not None and param.name is not None:
        agree_on_output(ctx, param.name, Format.JSON if param.name == "json" else Format(value))
    return value


def global_options() -> list[click.Option]:
    """The global options, made anew for each owner."""
    return [
        click.Option(
            ["-m", "--machine"],
            metavar="NAME",
            shell_complete=complete_machine,
            help="Act on this background machine.  [default: default]",
        ),
        click.Option(
            ["--connect"],
            metavar="SOCKET",
            type=click.Path(),
            help="Act on whatever speaks QMP on this unix socket, such as a QEMU.",
        ),
        click.Option(
            ["--output"],
            type=click.Choice([form.value for form in Format]),
            callback=_agreed,
            help="Format of the result.  [default: table]",
        ),
        click.Option(
            ["--json"], is_flag=True, default=None, callback=_agreed, help="The same as --output json."
        ),
        click.Option(
            ["--color"],
            type=click.Choice(["auto", "always", "never"]),
            help="Whether to colour; wins over NO_COLOR and FORCE_COLOR.  [default: auto]",
        ),
        click.Option(["-q", "--quiet"], is_flag=True, default=None, help="Results and errors only."),
        click.Option(
            ["-v", "--verbose"],
            count=True,
            default=None,
            help="Say on stderr what the machine is asked, and how long it took; -vv its answers too.",
        ),
    ]


def changes(values: dict[str, Any]) -> dict[str, Any]:
    """The settings that given global options change; options not given are None."""
    given = {name: value for name, value in values.items() if value is not None}
    if given.pop("json", False):
        given["output"] = Format.JSON
    if "output" in given:
        given["output"] = Format(given["output"])
    return given


#: Names of the global options' parameters.
COMMON = tuple(str(option.name) for option in global_options())


def _take(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Hands a global option that stands behind the command's name to the invocation."""
    app = ctx.find_object(App)
    if app is None or value is None or ctx.resilient_parsing or param.name is None:
        return
    if param.name in {"json", "output"}:
        _agreed(ctx, param, value)
    app.adjust(**changes({param.name: value}))


def _section(info_name: str, parent: click.Context | None) -> tuple[str, ...]:
    """Where a command's table stands in the configuration: below those of the groups around it."""
    names = [info_name]
    while parent is not None and parent.parent is not None and parent.info_name:
        names.insert(0, parent.info_name)
        parent = parent.parent
    return tuple(name.replace("-", "_") for name in names)


class BalloonCommand(click.Command):
    """A command that also takes the global options, and reads its table of the configuration strictly."""

    #: What somebody may have meant who typed a negative size.
    instead_of_negative = ""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["context_settings"] = _SETTINGS | (kwargs.get("context_settings") or {})
        super().__init__(*args, **kwargs)
        taken = {opt for param in self.params for opt in param.opts}
        self.common: list[click.Option] = []
        for option in global_options():
            option.opts = [opt for opt in option.opts if opt not in taken]
            if not option.opts:
                continue
            option.callback = _take
            option.expose_value = False
            option.allow_from_autoenv = False
            self.common.append(option)
        self.params.extend(self.common)

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        """Checks the command's table of the configuration before its options are read."""
        configuration = parent.meta.get(CONFIGURATION) if parent is not None else None
        if isinstance(configuration, Configuration) and info_name and not extra.get("resilient_parsing"):
            own = [param for param in self.params if param not in self.common]
            section = _section(info_name, parent)
            configuration.check(section, [str(param.name) for param in own])
            for param in own:
                if isinstance(param, click.Option) and param.multiple:
                    configuration.listed(section, str(param.name))
        return super().make_context(info_name, args, parent, **extra)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Says that `-5M` is a negative size, rather than that there is no option -5.

        While a line is being completed it may end with an option whose value is what is completed; Click would
        stop there, and leave the arguments unread that the value may depend on.
        """
        if ctx.resilient_parsing and args and self._takes_value(args[-1]):
            args = args[:-1]
        everything = list(args)
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if re.match(r"-[\d.\u2212]|-inf|-nan", error.option_name, re.IGNORECASE):
                typed = next(
                    (arg for arg in everything if arg.startswith(error.option_name)), error.option_name
                )
                raise InvalidArgument(
                    f"{typed} is negative",
                    why=f"sizes and numbers of {self.name} count from 0 up",
                    hint=self.instead_of_negative or f"balloonctl {self.name} --help",
                ) from error
            raise

    def _takes_value(self, word: str) -> bool:
        """Whether this is an option that is nothing without a value."""
        return any(
            isinstance(param, click.Option) and word in param.opts and not (param.is_flag or param.count)
            for param in self.params
        )

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The command's own options; one line stands for the global ones."""
        records = [
            record
            for param in self.params
            if isinstance(param, click.Option)
            and param not in self.common
            and (record := param.get_help_record(ctx))
        ]
        records += [
            record for param in self.common if param.name == "json" and (record := param.get_help_record(ctx))
        ]
        help_option = self.get_help_option(ctx)
        if help_option is not None and (record := help_option.get_help_record(ctx)) and record not in records:
            records.append(record)
        with formatter.section("Options"):
            formatter.write_dl(records)
        with formatter.section("Global options, before or after the command"):
            formatter.write_text(" ".join(option.opts[-1] for option in self.common))


def command(name: str, **attributes: Any) -> Callable[[Callable[..., Any]], BalloonCommand]:
    """`click.command` for a `BalloonCommand`; its one-line help stands in main's table."""
    return click.command(name, cls=BalloonCommand, **attributes)
