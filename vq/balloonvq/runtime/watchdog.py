"""A watchdog over code of the user that runs in this thread and may never come back.

A design under the explorer, or a file that is imported, can loop for ever, sleep, or take a lock that is not the
runtime's. None of that can be seen from inside. A second thread looks at the stack of the first one twice a second;
when it has stood at the same place for too long, a signal interrupts it, system calls included, and the
handler raises there. If the code has swallowed that, the next time it is raised once more in the handler that
swallows it. Nobody pays for it while all goes well.
"""

from __future__ import annotations

import signal
import sys
import sysconfig
import threading
from collections.abc import Callable, Hashable
from types import FrameType, TracebackType
from typing import Any

from balloonvq.runtime.frames import callers, current_frames

__all__ = ["Watchdog", "line_of"]

#: How often it looks.
_LOOK_S = 0.5

#: Ignored by default, and used by nobody else here.
_SIGNAL = signal.SIGURG

_LIBRARIES = tuple(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def line_of(frame: FrameType | None, but: Callable[[str], bool] = lambda _: False) -> str:
    """``file:line`` of the innermost frame that is neither of Python's libraries nor left out by `but`."""
    for one in callers(frame):
        file = one.f_code.co_filename
        if not (file.startswith((*_LIBRARIES, "<")) or but(file)):
            return f"{file}:{one.f_lineno}"
    return "?"


class Watchdog:
    """Ends a standstill of the thread that enters it. Only the main thread can be interrupted; others are not watched.

    Args:
        place: of the thread's innermost frame: a value that changes when the code has gone on, or None where it
            cannot stand still. Called in another thread.
        report: called with the innermost frame when it has stood still: what to raise there.
        limit_s: for how long it may.
    """

    def __init__(
        self,
        place: Callable[[FrameType], Hashable],
        report: Callable[[FrameType], BaseException],
        limit_s: float,
    ) -> None:
        self._place = place
        self._report = report
        self._limit_s = limit_s
        self._over = threading.Event()
        self._stood: Hashable = None
        #: Where it was raised last.
        self._raised: Hashable = None
        self._before: signal.Handlers | int | Callable[[int, FrameType | None], object] | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        self._before = signal.signal(_SIGNAL, self._interrupt)
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        if self._thread is not None:
            self._over.set()
            self._thread.join()
            signal.signal(_SIGNAL, self._before)
            if sys.gettrace() == self._insist:
                sys.settrace(None)

    def _watch(self) -> None:
        main = threading.main_thread().ident
        assert main is not None
        last: Hashable = None
        looks = 0
        while not self._over.wait(_LOOK_S):
            frame = current_frames().get(main)
            place = None if frame is None else self._place(frame)
            looks = looks + 1 if place is not None and place == last else 0
            last = place
            if looks * _LOOK_S >= self._limit_s:
                looks = 0
                self._stood = place
                signal.pthread_kill(main, _SIGNAL)

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        del number
        if frame is not None and self._stood is not None and self._place(frame) == self._stood:
            if self._raised == self._stood:
                for caller in callers(frame):
                    caller.f_trace = self._insist
                sys.settrace(self._insist)
            self._raised = self._stood
            raise self._report(frame)

    def _insist(self, frame: FrameType, event: str, argument: object) -> Any:
        """A trace function: raises at the next line, that of the handler that swallowed what was raised before."""
        del argument
        if event == "line" and self._place(frame) == self._stood:
            raise self._report(frame)
        return None if event == "call" else self._insist
