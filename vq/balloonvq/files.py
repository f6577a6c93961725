"""Files that are whole or not there."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["written_whole"]


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """A file that takes the place of `path` when the block has ended well; until then nothing changes there.

    An old file's permissions stay, and a link is followed. A device or a pipe is written to and stays what it is: nothing may take its place.

    Raises:
        OSError: if it cannot be written.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = None
    if mode is not None and not stat.S_ISREG(mode):
        # By its own name: /dev/stdout may lead to a pipe, which has no other.
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
