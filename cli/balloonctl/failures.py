"""How a command fails: error, why, hint, and an exit code.

Every exception that leaves a command becomes one `Failure` here; the shell, a
script and a single command print the same three lines, or with `--json` the
same object, on stderr.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from balloonctl.streams import output_is_lost, silence
from balloonvq.errors import BalloonError, CommandFailed, InternalError

if TYPE_CHECKING:
    from balloonctl.context import Voice

__all__ = [
    "EXIT_CODES",
    "OTHER_ERRORS",
    "Failure",
    "Interrupted",
    "Leave",
    "describe",
    "origin",
    "report",
]

#: The exit codes of every command: the table of `--help` and of the documentation.
EXIT_CODES: tuple[tuple[int, str], ...] = (
    (0, "it worked"),
    (1, "the operation failed, or a bug of balloonctl"),
    (2, "the command line, a size or a configuration file is wrong"),
    (3, "driver or device broke a rule: deadlock, livelock, lost data, bad ring"),
    (4, "a benchmark got slower than --fail-above allows"),
    (5, "the explorer gave up before it had looked at everything"),
    (124, "--timeout was hit"),
    (130, "interrupted by Ctrl-C"),
    (141, "the reader of our output went away"),
)

_INTERRUPTED = 130
_BROKEN_PIPE = 141
_USAGE = 2
_CANNOT_WRITE = "CannotWrite"

#: What `error` is called where no BalloonError stands behind it: its exit code, and what it means.
OTHER_ERRORS: dict[str, tuple[int, str]] = {
    "UsageError": (_USAGE, "The command line is wrong; the hint names the help."),
    "FileError": (1, "A file that an option or argument names cannot be opened."),
    _CANNOT_WRITE: (1, "The result cannot be written: stdout is closed or full."),
}


class Interrupted(BalloonError):
    """Ctrl-C, with a word about what goes on without us."""

    exit_code = _INTERRUPTED


class Leave(BaseException):
    """`exit` was typed: the session ends here. Not an error."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What a person or a program is told about an error."""

    error: str
    """Class of the error: NoSuchMachine, UsageError ..."""
    what: str
    why: str = ""
    hint: str = ""
    exit_code: int = 1
    silent: bool = False
    """True: the exit code says it all."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Further members of the JSON object, such as the line of a script."""

    def as_document(self) -> dict[str, Any]:
        """``balloonctl/error/1``."""
        return {
            "schema": "balloonctl/error/1",
            "error": self.error,
            "what": self.what,
            "why": self.why,
            "hint": self.hint,
            "exit_code": self.exit_code,
            **self.extra,
        }


def origin(ctx: click.Context | None, parameter: click.Parameter | None) -> str:
    """Where a parameter's value came from, when it was not typed: "from BALLOONCTL_OUTPUT", else ""."""
    if ctx is None or parameter is None or parameter.name is None:
        return ""
    source = ctx.get_parameter_source(parameter.name)
    if source is ParameterSource.ENVIRONMENT:
        prefix = ctx.auto_envvar_prefix
        name = parameter.envvar if isinstance(parameter.envvar, str) else f"{prefix}_{parameter.name}".upper()
        return f"the value comes from the environment variable {name}"
    if source is ParameterSource.DEFAULT_MAP:
        return "the value comes from a configuration file; `balloonctl info` names it"
    return ""


def describe(error: BaseException) -> Failure:
    """The failure that an exception stands for."""
    match error:
        case CommandFailed(document=dict() as document):
            return Failure(
                str(document.get("error", "CommandFailed")),
                str(document.get("what", error.what)),
                str(document.get("why", error.why) or ""),
                str(document.get("hint", error.hint) or ""),
                error.exit_code,
            )
        case BalloonError():
            return Failure(type(error).__name__, error.what, error.why, error.hint, error.exit_code)
        case click.UsageError():
            return _usage(error)
        case click.ClickException():
            return Failure(type(error).__name__, _sentence(error.format_message()), exit_code=error.exit_code)
        case KeyboardInterrupt() | click.Abort() | EOFError():
            return Failure("Interrupted", "interrupted", exit_code=_INTERRUPTED)
        case BrokenPipeError():
            return Failure("BrokenPipe", "nobody reads our output", exit_code=_BROKEN_PIPE, silent=True)
        case OSError() if error.errno == errno.EPIPE:
            return Failure("BrokenPipe", "nobody reads our output", exit_code=_BROKEN_PIPE, silent=True)
        case OSError() if output_is_lost(error):
            return Failure(
                _CANNOT_WRITE,
                f"cannot write the result: {os.strerror(error.errno or errno.EIO)}",
                "stdout takes nothing more, or is closed; what the command did is done",
                "write to a file or a disk that has room",
            )
        case _:
            bug = InternalError(
                f"internal error: {type(error).__name__}: {error}",
                why="this is a bug of balloonctl, not of your command",
                hint="set BALLOONCTL_DEBUG=1, run it again and report the traceback",
            )
            return Failure("InternalError", bug.what, bug.why, bug.hint, bug.exit_code)


def _sentence(message: str) -> str:
    """Click's message as the first line of ours: no full stop, a small first letter."""
    line = " ".join(message.split()).rstrip(".")
    head = line.split(" ", 1)[0]
    return line if head.isupper() else line[:1].lower() + line[1:]


def _usage(error: click.UsageError) -> Failure:
    """A usage error: what is wrong, the usage line, and where the help is."""
    ctx = error.ctx
    path, why, hint = "balloonctl", "", "balloonctl --help"
    if ctx is not None:
        path = " ".join(["balloonctl", *ctx.command_path.split()[1:]])
        hint = f"{path} --help"
        usage = ctx.command.collect_usage_pieces(ctx)
        why = f"usage: {path} {' '.join(usage)}"
    if isinstance(error, click.BadParameter):
        why = origin(ctx, error.param) or why
    what = error.format_message()
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        what = f"{path} needs a command"  # its message is the whole help
    return Failure("UsageError", _sentence(what), why, hint, _USAGE)


def report(error: BaseException, voice: Voice, extra: Mapping[str, Any] | None = None) -> int:
    """Prints an exception on stderr.

    Args:
        error: what ended the command.
        voice: format and colour to speak in.
        extra: further members for the JSON object.

    Returns:
        The exit code.
    """
    failure = describe(error)
    if failure.exit_code == _BROKEN_PIPE or failure.error == _CANNOT_WRITE:
        silence(sys.stdout)
    try:
        _tell(error, failure, voice, extra)
    except OSError as unheard:  # stderr is broken; what stdout has been given still goes there
        silence(sys.stderr)
        return _BROKEN_PIPE if unheard.errno == errno.EPIPE else failure.exit_code
    return failure.exit_code


def _tell(error: BaseException, failure: Failure, voice: Voice, extra: Mapping[str, Any] | None) -> None:
    """Prints a failure."""
    if os.environ.get("BALLOONCTL_DEBUG") == "1":
        import traceback

        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, click.exceptions.NoArgsIsHelpError) and not voice.settings.output.is_json:
        click.echo(error.format_message(), err=True)
        return
    if failure.exit_code == _INTERRUPTED and sys.stderr.isatty():
        click.echo(err=True)  # the terminal has just echoed ^C
    if not failure.silent:
        if extra:
            failure = replace(failure, extra=dict(extra))
        voice.fail(failure)
    sys.stderr.flush()
