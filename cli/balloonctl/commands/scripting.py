"""run, expect, sleep, echo, help, exit: what a script is made of."""

from __future__ import annotations

import operator
import re
import sys
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

import click

from balloonctl.command import CONFIGURATION, command
from balloonctl.connection import PrivateConnection
from balloonctl.context import App, pass_app
from balloonctl.failures import Leave
from balloonctl.peer import status_of
from balloonctl.render.units import size as human
from balloonctl.sizes import DURATION, parse_size
from balloonvq.errors import BalloonError, InvalidArgument

__all__ = ["echo", "exit_command", "expect", "help_command", "run_command", "sleep"]

_COMPARE: dict[str, Callable[[Any, Any], bool]] = {
    "": operator.eq,
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@command("run")
@click.argument("file", type=click.Path(allow_dash=True, readable=False))
@click.option(
    "-k",
    "--keep-going",
    is_flag=True,
    help="Go on after a line that failed; exit with the first failure's code.",
)
@click.option(
    "--record",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Write the lines that worked to a script.",
)
@pass_app
@click.pass_context
def run_command(ctx: click.Context, app: App, /, file: str, keep_going: bool, record: str | None) -> int:
    """Run the commands in FILE, or on stdin for -.

    The script drives a machine of its own, on a virtual clock, unless -m or --connect name one. It ends with the
    first line that fails. `#` begins a comment; `expect`, `sleep` and `echo` are commands too.
    With `#!/usr/bin/env -S balloonctl run` as its first line FILE is a program.
    """
    from pathlib import Path

    from balloonctl.session import Recording, Session, script_lines

    name = "stdin" if file == "-" else file
    if app.session is not None:
        if record is not None:
            raise click.UsageError("a script inside a session is recorded with the session")
        return app.session.run_script(script_lines(file), name, keep_going=keep_going)
    lines = script_lines(file)
    session = Session(
        app,
        ctx.meta[CONFIGURATION],
        clock="virtual",
        recording=None if record is None else Recording(Path(record)),
    )
    try:
        return session.run_script(lines, name, keep_going=keep_going)
    finally:
        session.close()


def figures(status: Mapping[str, Any]) -> dict[str, Any]:
    """Everything in a status that has a name of its own: members, counters, the balloon's state."""
    found = {name: value for name, value in status.items() if not isinstance(value, Mapping | list | tuple)}
    found |= status.get("counters", {})
    found |= {f"balloon.{name}": value for name, value in status.get("balloon", {}).items()}
    return found


def look_up(status: Mapping[str, Any], name: str) -> tuple[str, Any]:
    """A figure by its name or by a short form: `actual` is actual_bytes, `free` guest_free_bytes.

    Raises:
        InvalidArgument: if nothing has that name.
    """
    found = figures(status)
    plain = name.replace("-", "_")
    for candidate in (
        plain,
        f"{plain}_bytes",
        f"guest_{plain}_bytes",
        f"returned_{plain}_bytes",
        f"{plain}_pages",
    ):
        if candidate in found:
            return candidate, found[candidate]
    short = {re.sub(r"^(guest|returned)_|_bytes$", "", known): known for known in found}
    close = get_close_matches(plain, [*found, *short], 3)
    raise InvalidArgument(
        f"the status has no figure {name}",
        why="expect compares a member of `status --json`, or a counter",
        hint=f"did you mean {' or '.join(close)}?"
        if close
        else "balloonctl status --output plain lists them",
    )


def _wanted(text: str, name: str, value: Any, ram: int) -> Any:
    """The expected value, read as what the figure is."""
    if name.endswith("_bytes"):
        return parse_size(text, zero=True, aligned=False).resolve(ram)
    if isinstance(value, bool):
        if text.lower() not in {"true", "false", "yes", "no"}:
            raise InvalidArgument(f"{name} is true or false, not {text}")
        return text.lower() in {"true", "yes"}
    if isinstance(value, int):
        if not re.fullmatch(r"\d+(_\d+)*", text):
            raise InvalidArgument(f"{name} is a number, not {text}")
        return int(text)
    return text


def complete_figure(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """What every status has a figure for, in the names of the JSON; no machine is asked."""
    del ctx, param
    from dataclasses import fields

    from balloonvq.counters import Balloon, Counters, Status

    nested = {"balloon", "counters", "design_options", "device_status", "features", "queues", "stack"}
    names = [field.name for field in fields(Status) if field.name not in nested]
    names += [field.name for field in fields(Counters)]
    names += [f"balloon.{field.name}" for field in fields(Balloon)]
    return [name for name in names if name.startswith(incomplete)]


@command("expect")
@click.argument("figure", metavar="FIGURE", shell_complete=complete_figure)
@click.argument("value", metavar="VALUE", nargs=-1, required=True)
@pass_app
def expect(app: App, /, figure: str, value: tuple[str, ...]) -> int:
    """Compare a figure of the status; exit 1 and show both values if it differs.

    FIGURE is a member of `status --json` or a counter; _bytes may be left out, and guest_ too.
    VALUE is a size, a number or a word; before it may stand != < <= > >= (quoted on a shell's command line).

    \b
      expect actual 64MiB
      expect oom_kills 0
      expect free '>=' 10%
      expect state running
    """  # noqa: D301 - a real backspace is click's mark for lines that stay as they are
    match = re.fullmatch(r"(==|!=|<=|>=|<|>|)\s*(.*)", " ".join(value))
    assert match is not None
    sign, text = match.groups()
    if not text:
        raise click.UsageError("expect needs a VALUE to compare with")
    status = status_of(app.client())
    name, found = look_up(status, figure)
    wanted = _wanted(text, name, found, int(status.get("ram_bytes", 0)))
    try:
        holds = _COMPARE[sign](found, wanted)
    except TypeError:
        holds = False
    if holds:
        return 0
    shown = (human(found), human(wanted)) if name.endswith("_bytes") else (str(found), str(wanted))
    raise BalloonError(
        f"{figure} is {shown[0]}, expected {sign + ' ' if sign else ''}{shown[1]}",
        why=f"{name} is {found}, expected {sign or '=='} {wanted}",
        hint="balloonctl status",
    )


@command("sleep")
@click.argument("time", type=DURATION)
@pass_app
def sleep(app: App, /, time: float) -> int:
    """Let time pass: on the clock of the session's own machine, else on ours."""
    from time import sleep as really_sleep

    connection = app.connection
    if isinstance(connection, PrivateConnection) and connection.running:
        app.client().execute("x-sleep", {"seconds": time})
    else:
        really_sleep(time)
    return 0


@click.command("echo", context_settings={"ignore_unknown_options": True})
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def echo(words: tuple[str, ...]) -> int:
    """Print words."""
    click.echo(" ".join(words))
    return 0


@click.command("exit")
def exit_command() -> int:
    """Leave the session; its machine ends."""
    raise Leave


def _complete_command(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of the commands of a session."""
    del param
    root = ctx.find_root()
    assert isinstance(root.command, click.Group)
    return [name for name in root.command.list_commands(root) if name.startswith(incomplete)]


@click.command("help")
@click.argument("names", metavar="[COMMAND]", nargs=-1, shell_complete=_complete_command)
@click.pass_context
def help_command(ctx: click.Context, names: tuple[str, ...]) -> int:
    """Explain the commands, or one of them."""
    from balloonctl.main import BalloonGroup

    root = ctx.find_root()
    app = root.find_object(App)
    assert isinstance(root.command, BalloonGroup)
    inside = app is not None and app.session is not None
    if not names and inside:
        formatter = root.make_formatter()
        root.command.format_commands(root, formatter)
        click.echo(formatter.getvalue().strip())
        return 0
    explained = root
    for name in names:
        group = explained.command
        if not isinstance(group, click.Group):
            raise click.UsageError(f"{explained.info_name} has no commands of its own", explained)
        _, found, _ = group.resolve_command(explained, [name])
        assert found is not None
        explained = click.Context(found, info_name=name, parent=explained)
    text = explained.get_help()
    click.echo(text.replace(f"Usage: {root.info_name} ", "Usage: ", 1) if inside else text)
    sys.stdout.flush()
    return 0
