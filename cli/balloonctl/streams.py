"""The three standard streams: what they cannot show, and what becomes of them when nobody can write to them."""

from __future__ import annotations

import codecs
import contextlib
import errno
import io
import os
import sys
from collections.abc import Iterator
from typing import TextIO

__all__ = ["output_is_lost", "prepare", "prints_to_stderr", "silence"]

#: What a sign becomes where the encoding lacks it; of the same width, so that columns stay aligned.
_SIGNS = str.maketrans(
    "✓✗→←↑↓×µ·…–—−│─●○░▒▓█▁▂▃▄▅▆▇┃‖≤▏▎▍▌▋▊▉",
    "+x><^vxu..---|-*o.:##__..::#||<::::###",
) | dict.fromkeys(map(ord, "┌┐└┘├┤┬┴┼"), "+")

_ERRORS = "balloonctl-signs"

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


def _degrade(error: UnicodeError) -> tuple[str, int]:
    """An ASCII sign in the place of one that cannot be encoded."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end].translate(_SIGNS)
    return "".join(char if char.isascii() else "?" for char in text), error.end


def prepare() -> None:
    """Opens what was closed (`>&-`), and lets every stream degrade rather than fail at a character.

    A closed stdout becomes one that refuses, so that a result is not lost without a word; its number is
    taken, so that no file is opened under it.
    """
    codecs.register_error(_ERRORS, _degrade)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_WRONLY if name == "stderr" else os.O_RDONLY)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and not stream.encoding.lower().startswith("utf"):
            stream.reconfigure(errors=_ERRORS)


def output_is_lost(error: OSError) -> bool:
    """Whether an error means that stdout takes nothing more, rather than that some file or socket failed."""
    if error.filename is not None:
        return False
    if error.errno == errno.EBADF:
        import fcntl

        try:
            return fcntl.fcntl(1, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY
        except OSError:
            return True
    return error.errno in _NO_ROOM


class _Prints(io.TextIOBase):
    """Stands in for stdout; what is printed goes to stderr as it is then, and is lost where nobody reads that."""

    def __init__(self, stdout: TextIO) -> None:
        super().__init__()
        self._stdout = stdout

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.flush()

    def isatty(self) -> bool:
        """Whether results are shown at a terminal; progress is drawn only then."""
        return self._stdout.isatty()


@contextlib.contextmanager
def prints_to_stderr() -> Iterator[None]:
    """Around code of the user: what it prints goes to stderr, since stdout is for results.

    Nor does a print of its own fail when the reader of either is gone, which would be taken for what the code does.
    """
    stdout = sys.stdout
    with contextlib.redirect_stdout(_Prints(stdout)):
        yield


def silence(*streams: object) -> None:
    """Points streams at /dev/null, so that Python's own flush at exit says nothing about what they hold."""
    for stream in streams:
        try:
            number = stream.fileno()  # type: ignore[attr-defined]
        except (OSError, ValueError, AttributeError):
            continue
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, number)
        os.close(null)
