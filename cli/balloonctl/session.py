"""Many commands in one process: the shell, `run FILE`, `-c`, and a script on stdin.

Every line goes through one `Session.dispatch`, which takes it apart as a shell
would and hands it to the same group of commands that the command line uses.
A session has a machine of its own unless it was given one by name or socket.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from balloonctl.context import App, Voice
from balloonctl.failures import Leave
from balloonctl.main import execute, main
from balloonvq.errors import BalloonError, InvalidArgument

if TYPE_CHECKING:
    from balloonctl.config import Configuration
    from balloonctl.connection import Connection

__all__ = ["Recording", "Session", "require", "script_lines", "split_line"]

_SHEBANG = "#!/usr/bin/env -S balloonctl run"
_HEADER = "# Recorded by balloonctl; replay it with: balloonctl run"

#: These end a script even with --keep-going: nobody is there to hear the rest.
_ENDINGS = {130, 141}

#: How deep scripts may run each other.
_MOST_SCRIPTS = 16


def _pieces(line: str) -> Iterator[str]:
    """The text of each command of a line: cut at every `;` and before a `#` that are not quoted."""
    quote, start, escaped = "", 0, False
    for position, char in enumerate(line):
        if escaped:
            escaped = False
        elif char == "\\" and quote != "'":
            escaped = True
        elif quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char == ";":
            yield line[start:position]
            start = position + 1
        elif char == "#" and (position == 0 or line[position - 1] in " \t;"):
            yield line[start:position]
            return
    yield line[start:]


def split_line(line: str) -> list[tuple[str, list[str]]]:
    """The commands of a line, each as typed and as words: quotes as in a shell, `;` between, `#` begins a comment.

    Raises:
        InvalidArgument: if a quote is not closed.
    """
    import shlex

    try:
        commands = [(piece.strip(), shlex.split(piece)) for piece in _pieces(line)]
    except ValueError as error:
        raise InvalidArgument("a quote is not closed", why=f"in: {line.strip()}") from error
    return [(text, words) for text, words in commands if words]


class Recording:
    """A file that becomes a script: every line that worked, as it was typed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            old = path.read_text(encoding="utf-8") if path.exists() else ""
            if old and _HEADER not in old:
                raise InvalidArgument(
                    f"{path} exists and is not a recording",
                    why="it would be overwritten",
                    hint="choose another name",
                )
            self._file: TextIO = path.open("w", encoding="utf-8")
        except OSError as error:
            raise BalloonError(f"cannot record to {path}", why=error.strerror or str(error)) from error
        self._write(f"{_SHEBANG}\n{_HEADER}")

    def _write(self, line: str) -> None:
        self._file.write(line + "\n")
        self._file.flush()

    def machine(self, fields: Mapping[str, Any]) -> None:
        """The machine that the session made by itself, as the `start` line that makes the same."""
        from shlex import quote

        flags = {"deflate_on_oom", "must_tell_host", "event_idx", "indirect", "pin"}
        plain = {"design", "queue_size", "seed"}
        sizes = {"ram_bytes": "ram", "touch_bytes": "touch", "used_bytes": "used"}
        words = ["start"]
        for name, value in fields.items():
            option = "--" + sizes.get(name, name).replace("_", "-")
            if name in sizes or name in plain:
                words += [option, str(value)]
            elif name in flags:
                words.append(option if value else option.replace("--", "--no-", 1))
            elif name == "design_options":
                words += [word for pair in value.items() for word in ("--set", "=".join(pair))]
            elif value and name == "fragmented":
                words.append(option)
            elif value and name in {"stats_interval", "memory", "discard"}:
                words += [option, quote(str(value))]
        self._write(" ".join(words))

    def line(self, line: str, code: int) -> None:
        """A line that was run; a failed one stays as a comment, since it would end the replay."""
        line = line.strip()
        if line and not line.startswith("#"):
            self._write(line if code == 0 else f"# exit code {code}: {line}")

    def close(self) -> None:
        """Makes the script executable."""
        self._file.close()
        self.path.chmod(self.path.stat().st_mode | 0o111)


class Session:
    """What the lines of a shell or a script share."""

    def __init__(
        self,
        app: App,
        configuration: Configuration | None,
        *,
        clock: str,
        connection: Connection | None = None,
        recording: Recording | None = None,
    ) -> None:
        """Begins a session.

        Args:
            app: the invocation that began it; its settings hold for every line.
            configuration: what its command line was read with.
            clock: of the machine that it may make: real or virtual.
            connection: the machine, where it is neither private nor named by the settings.
            recording: where lines are written to.
        """
        from balloonctl.connection import PrivateConnection

        self._scripts = 0
        self.settings = app.settings
        self.configuration = configuration
        self.recording = recording
        self.connection: Connection
        if connection is not None:
            self.connection = connection
        elif app.settings.machine is not None or app.settings.connect is not None:
            self.connection = app.connection
        else:
            self.connection = PrivateConnection(
                clock=clock, on_start=None if recording is None else recording.machine
            )

    def dispatch(self, line: str, where: Mapping[str, Any] | None = None) -> int:
        """Runs one line.

        Args:
            line: one command, or several with `;` between them; the first that fails ends it.
            where: members for the error object, such as the file and the line's number.

        Returns:
            The exit code of the command that failed, else 0.

        Raises:
            Leave: on `exit`.
        """
        code, commands = 0, list[tuple[str, list[str]]]()
        voice = Voice(self.settings)
        code = execute(lambda: commands.extend(split_line(line)), [], voice, where)
        for text, words in commands:
            argv = words[1:] if words[0] == "balloonctl" else words
            code = self._run(argv, voice, where and {**where, "command": text})
            if code:
                break
        if self.recording is not None:
            self.recording.line(line, code)
        return code

    def _run(self, argv: list[str], voice: Voice, where: Mapping[str, Any] | None) -> int:
        """Runs one command."""
        own = {"--json", "--output", "--color"} & {word.partition("=")[0] for word in argv}

        def call() -> Any:
            return main.main(argv, prog_name="balloonctl", standalone_mode=False, obj=self)

        return execute(call, argv, None if own else voice, where)

    def run_script(self, lines: Iterable[str], name: str, *, keep_going: bool = False) -> int:
        """Runs a script to its end, or to the first line that fails.

        Args:
            lines: of the script.
            name: of its file, for messages.
            keep_going: whether to go on after a line that failed.

        Returns:
            The exit code of the first line that failed, else 0.

        Raises:
            BalloonError: if scripts run each other without end.
        """
        if self._scripts >= _MOST_SCRIPTS:
            raise BalloonError(
                f"scripts run each other more than {_MOST_SCRIPTS} deep",
                why=f"{name} would be the next; does it run itself?",
                hint="a script that ends runs no script that runs it",
            )
        first = 0
        self._scripts += 1
        try:
            for number, text in enumerate(lines, 1):
                line = text.strip()
                if not line or line.startswith("#"):
                    continue
                where = {"where": f"{name}:{number}", "file": name, "line": number, "command": line}
                code = self.dispatch(line, where)
                first = first or code
                if code in _ENDINGS or (code and not keep_going):
                    return code if code in _ENDINGS else first
        except Leave:
            pass
        finally:
            self._scripts -= 1
        return first

    def close(self) -> None:
        """Ends the session, and its machine."""
        try:
            self.connection.close()
        finally:
            if self.recording is not None:
                self.recording.close()


def script_lines(path: str) -> Iterable[str]:
    """The lines of a script, one at a time as they arrive on `-`.

    Raises:
        BalloonError: if there is no such file.
    """
    if path == "-":
        yield from sys.stdin
        return
    try:
        with Path(path).open(encoding="utf-8") as file:
            yield from file
    except (OSError, UnicodeDecodeError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise BalloonError(f"cannot read the script {path}", why=reason) from error


def require(app: App) -> Session:
    """The session that a command runs in.

    Raises:
        click.UsageError: if it runs alone.
    """
    if app.session is None:
        raise click.UsageError("this works in a shell or a script only")
    return app.session
