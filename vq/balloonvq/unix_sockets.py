"""Paths of unix sockets: how long they may be, and whether somebody listens."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from balloonvq.errors import InvalidArgument

__all__ = ["PATH_BYTES_MAX", "path_too_long", "somebody_listens"]

#: Bytes of a socket's path, without the zero at its end (struct sockaddr_un).
PATH_BYTES_MAX = 107


def path_too_long(
    path: Path, *, hint: str = "use a shorter directory, or a relative path"
) -> InvalidArgument:
    """What to raise about a path that does not fit into a socket address."""
    return InvalidArgument(
        f"the socket path is too long: {path}",
        why=f"it has {len(os.fsencode(path))} bytes, a socket address holds {PATH_BYTES_MAX}",
        hint=hint,
    )


def somebody_listens(path: Path) -> bool:
    """Whether a process has a socket at `path`; False for a dead one, another kind of file, or none.

    A listener whose queue is full counts, and so does a datagram socket.

    :raise OSError: it cannot be found out: no permission, or the path is too long.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            # EPROTOTYPE: it is of another type.
            if isinstance(error, BlockingIOError) or error.errno == errno.EPROTOTYPE:
                return True
            raise
    return True
