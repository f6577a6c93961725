"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["written_whole"]

_STREAMS = {"/dev/stdout": 1, "/dev/stderr": 2}


def _descriptor(path: Path) -> int | None:
    """The open descriptor of this process that a path names; None if it names none."""
    name = str(path)
    found = re.fullmatch(r"/(?:dev|proc/self)/fd/([0-9]{1,9})", name, re.ASCII)
    return int(found[1]) if found else _STREAMS.get(name)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block has ended well; until then nothing changes there.

    An old file's permissions stay, and a link is followed. A device or a pipe is written to and stays what it is: nothing
    may take its place. Neither may it that of an open descriptor (`/dev/stdout`, `/dev/fd/3`), whatever that leads to:
    it is written to from where it stands.

    Raises:
        OSError: if it cannot be written.
    """
    descriptor = _descriptor(path)
    if descriptor is not None:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            yield file
        return
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and not stat.S_ISREG(mode):
        with path.open("wb") as file:
            yield file
        return
    target = path.resolve()
    partial = target.with_name(f".{target.name}-{os.urandom(4).hex()}")
    try:
        with partial.open("xb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), stat.S_IMODE(mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
