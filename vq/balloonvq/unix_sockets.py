"""What can be learned about a unix socket from outside."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

__all__ = ["somebody_listens"]


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
