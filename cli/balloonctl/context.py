"""One invocation: its settings, its two consoles, and the machine it talks to.

Click passes an `App` to every command (`click.pass_obj`). It is made by the
group from flag, environment and configuration file, corrected by the options
that stand behind the command's name, and makes everything heavy when somebody
first asks for it.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TextIO

import click

from balloonctl.output import Document, Format, as_json, as_plain
from balloonctl.streams import silence

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from balloonctl.connection import Connection
    from balloonctl.failures import Failure
    from balloonctl.session import Session
    from balloonvq.qmp.client import Client

__all__ = ["DEFAULT_MACHINE", "App", "Settings", "Voice", "colour_wanted", "pass_app"]

DEFAULT_MACHINE = "default"


@dataclass(frozen=True, slots=True)
class Settings:
    """The global options."""

    machine: str | None = None
    """A background machine's name; None: nobody said."""
    connect: str | None = None
    """Path of a QMP socket, of whatever machine."""
    output: Format = Format.TABLE
    color: str = "auto"
    quiet: bool = False
    verbose: int = 0


def colour_wanted(flag: str, stream: TextIO) -> bool:
    """Whether to colour: flag, then NO_COLOR, then FORCE_COLOR, then whether it is a terminal."""
    if flag != "auto":
        return flag == "always"
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return _is_terminal(stream)


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty() and os.environ.get("TERM") != "dumb"
    except ValueError:  # closed
        return False


def _without_trailing_blanks(text: str) -> str:
    """The lines without the blanks that fill up a table's last column; colours stay."""
    return re.sub(r"(?: |\x1b\[[0-9;]*m)+$", lambda end: end[0].replace(" ", ""), text, flags=re.MULTILINE)


def _console(stream: TextIO, flag: str, *, stderr: bool) -> Console:
    """Rich's console on a stream, with our colour decision instead of its own."""
    from rich.console import Console

    terminal = _is_terminal(stream)

    class OurConsole(Console):
        """Leaves a broken pipe to whoever knows its exit code, and the blanks at the ends of lines out of files."""

        def print(self, *objects: Any, **how: Any) -> None:
            if terminal:
                super().print(*objects, **how)
                return
            with self.capture() as drawn:
                super().print(*objects, **how)
            self.file.write(_without_trailing_blanks(drawn.get()))
            self.file.flush()

        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    colour = colour_wanted(flag, stream)
    known = os.environ.get("TERM", "") not in {"", "dumb"}
    return OurConsole(
        file=stream,
        stderr=stderr,
        color_system=("auto" if known else "standard") if colour else None,
        no_color=not colour,
        force_terminal=colour or terminal,
        highlight=False,
        markup=False,
        emoji=False,
    )


class Voice:
    """How a command speaks: results on stdout, everything else on stderr."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @cached_property
    def stdout(self) -> Console:
        """The only way to a styled stdout."""
        return _console(sys.stdout, self.settings.color, stderr=False)

    @cached_property
    def stderr(self) -> Console:
        """The only way to a styled stderr."""
        return _console(sys.stderr, self.settings.color, stderr=True)

    @property
    def live(self) -> bool:
        """Whether progress may be drawn: somebody watches both streams and wants to hear."""
        return (
            not self.settings.quiet
            and not self.settings.output.is_json
            and _is_terminal(sys.stdout)
            and _is_terminal(sys.stderr)
        )

    def emit(self, document: Document, render: Callable[[Document], RenderableType]) -> None:
        """The result of a command, on stdout."""
        match self.settings.output:
            case Format.TABLE:
                from rich.text import Text

                drawn = render(document)
                self.stdout.print(drawn, soft_wrap=isinstance(drawn, Text))
            case Format.PLAIN:
                click.echo(as_plain(document))
            case form:
                click.echo(as_json(document, indent=form is Format.JSON))

    def emit_line(self, document: Document, render: Callable[[Document], str]) -> None:
        """One item of a stream: a line of text, or of JSON."""
        if self.settings.output.is_json:
            click.echo(as_json(document, indent=False))
        elif self.settings.output is Format.PLAIN:
            click.echo(as_plain(document) + "\n")
        else:
            click.echo(render(document))
        sys.stdout.flush()

    def note(self, text: str, *, level: str = "note") -> None:
        """A remark that is not the result, on stderr; --quiet drops it, and so does a stderr without room."""
        if self.settings.quiet:
            return
        try:
            if self.settings.output.is_json:
                note = {"schema": "balloonctl/note/1", "level": level, "text": text}
                click.echo(as_json(note, indent=False), err=True)
            else:
                self._line(level, text, {"note": "cyan", "log": "dim"}.get(level, "yellow"))
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            silence(sys.stderr)

    def warn(self, text: str) -> None:
        """A remark that one should read."""
        self.note(text, level="warning")

    def fail(self, failure: Failure) -> None:
        """An error as three lines, or as one JSON object."""
        if self.settings.output.is_json:
            click.echo(as_json(failure.as_document(), indent=False), err=True)
            return
        where = failure.extra.get("where")
        if where:
            click.echo(f"{where}: {failure.extra.get('command', '')}", err=True)
        self._line("error", failure.what, "bold red")
        if failure.why:
            self._line("why", failure.why, "yellow")
        if failure.hint:
            self._line("hint", failure.hint, "green")

    def _line(self, label: str, text: str, style: str) -> None:
        """`label: text`; Rich is loaded only for colour."""
        if colour_wanted(self.settings.color, sys.stderr):
            from rich.text import Text

            self.stderr.print(Text.assemble((f"{label}:", style), f" {text}"), soft_wrap=True)
        else:
            click.echo(f"{label}: {text}", err=True, color=False)


class App(Voice):
    """What a command gets from Click."""

    def __init__(
        self, settings: Settings, *, session: Session | None = None, connection: Connection | None = None
    ) -> None:
        super().__init__(settings)
        self.session = session
        self._given = connection

    def adjust(self, **changes: Any) -> None:
        """Takes an option that stands behind the command's name."""
        if {"machine", "connect"} & changes.keys():
            self._given = None
            self.__dict__.pop("connection", None)
        self.settings = replace(self.settings, **changes)
        if "verbose" in changes:
            self.log()
        self.__dict__.pop("stdout", None)
        self.__dict__.pop("stderr", None)
        click.get_current_context().color = colour_wanted(self.settings.color, sys.stdout)

    @cached_property
    def connection(self) -> Connection:
        """The machine of this command; nothing is opened before `client`."""
        if self._given is not None:
            return self._given
        from balloonctl.connection import BackgroundConnection, SocketConnection

        if self.settings.connect is not None:
            return SocketConnection(self.settings.connect)
        return BackgroundConnection(self.settings.machine or DEFAULT_MACHINE)

    def client(self, *, start: bool = True, timeout: float | None = None) -> Client:
        """The machine to talk to.

        Args:
            start: whether the default machine may be started when none runs.
            timeout: seconds that it has to answer; None for the usual.
        """
        client = self.connection.client(self, start=start, timeout=timeout)
        if not self.settings.verbose:
            return client
        from balloonctl.verbose import LoggedClient

        return LoggedClient(client, self)

    def log(self) -> None:
        """Has what the library logs said as -v asks for."""
        from balloonctl.verbose import log_to

        log_to(self)

    def close(self) -> None:
        """Lets go of a connection that this command opened; a session keeps its own."""
        opened = self.__dict__.get("connection")
        if opened is not None and opened is not self._given:
            opened.close()


pass_app = click.make_pass_decorator(App)
