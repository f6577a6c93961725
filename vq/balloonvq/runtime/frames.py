"""Where the threads of this process stand."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Iterator
from types import FrameType

__all__ = ["callers", "current_frames"]

_turn = threading.Lock()


def current_frames() -> dict[int, FrameType]:
    """The innermost frame of every thread, by the thread's ident; of the calling one the caller's.

    `sys._current_frames` allocates under a lock of the interpreter. Before Python 3.11.9 a garbage collection that
    begins there can run into that lock and hang the process (https://github.com/python/cpython/issues/106883),
    so none may begin.
    """
    with _turn:
        collects = gc.isenabled()
        gc.disable()
        try:
            frames = sys._current_frames()  # noqa: SLF001 - documented, for debuggers
        finally:
            if collects:
                gc.enable()
    frames[threading.get_ident()] = sys._getframe(1)  # noqa: SLF001 - the same
    return frames


def callers(frame: FrameType | None) -> Iterator[FrameType]:
    """A frame and all that it will come back to, innermost first."""
    while frame is not None:
        yield frame
        frame = frame.f_back
