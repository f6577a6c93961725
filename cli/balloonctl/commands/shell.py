"""shell, and what happens without a command: a shell, or a script on stdin."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

import click

from balloonctl.command import CONFIGURATION, command
from balloonctl.context import App, pass_app

__all__ = ["bare", "shell_command"]


def _shell(ctx: click.Context, app: App, record: str | None = None) -> int:
    """The prompt, on a terminal."""
    from balloonctl.session import Recording, Session
    from balloonctl.shell import Shell

    recording = None if record is None else Recording(Path(record))
    session = Session(app, ctx.meta[CONFIGURATION], clock="real", recording=recording)
    try:
        return Shell(session).run()
    finally:
        session.close()


@command("shell")
@click.option(
    "--record",
    type=click.Path(dir_okay=False),
    metavar="FILE",
    help="Write the lines that worked to a script.",
)
@pass_app
@click.pass_context
def shell_command(ctx: click.Context, app: App, /, record: str | None) -> int:
    """Type commands at a prompt.

    The shell drives a machine of its own, which ends with it, unless -m or --connect name one. TAB completes,
    Ctrl-C ends a command, Ctrl-D the shell; the counters stand below the prompt and events above it.
    """
    if app.session is not None:
        raise click.UsageError("this is a shell already")
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise click.UsageError("the shell needs a terminal; `balloonctl run -` reads a script from stdin")
    return _shell(ctx, app, record)


def bare(app: App, ctx: click.Context, commands: str | None) -> int:
    """No command was named: -c, a terminal, or a script on stdin."""
    if app.session is not None:
        raise click.UsageError("no command", ctx)
    if commands is None and sys.stdin.isatty():
        if not sys.stdout.isatty():
            raise click.UsageError("the shell needs a terminal on stdout too", ctx)
        return _shell(ctx, app)
    from balloonctl.session import Session

    if commands is not None:
        lines, name = iter(commands.splitlines()), "-c"
    else:
        first = sys.stdin.readline()
        if not first:
            click.echo(ctx.get_help())
            return 0
        lines, name = itertools.chain([first], sys.stdin), "stdin"
    session = Session(app, ctx.meta[CONFIGURATION], clock="virtual")
    try:
        return session.run_script(lines, name)
    finally:
        session.close()
