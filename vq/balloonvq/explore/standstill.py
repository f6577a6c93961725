"""What to do with a design that does not come to its next step under the explorer."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from types import FrameType

import balloonvq
from balloonvq.errors import DesignError
from balloonvq.runtime import Stopped
from balloonvq.runtime.controlled import ControlledRuntime
from balloonvq.runtime.frames import callers
from balloonvq.runtime.watchdog import Watchdog, line_of

__all__ = ["STANDSTILL_S", "watched"]

#: Between two steps of a design lie microseconds.
STANDSTILL_S = 5.0

_OWN = str(Path(balloonvq.__file__).parent)
_ACTOR = ControlledRuntime._run_actor.__code__  # noqa: SLF001 - recognised on the stack
_BUILD = ControlledRuntime.__init__.__code__


def _runtime(frame: FrameType) -> tuple[ControlledRuntime | None, str]:
    """The runtime in which code of a design runs now, and what it is at."""
    for one in callers(frame):
        if one.f_code is _ACTOR:
            return one.f_locals["self"], one.f_locals["actor"].name
        if one.f_code is _BUILD:
            return one.f_locals["self"], ""
    return None, ""


def _place(frame: FrameType) -> Hashable:
    """Changes with every step of every actor; None where no design runs."""
    runtime, actor = _runtime(frame)
    if runtime is None:
        return None
    return id(runtime), actor, getattr(runtime, "steps", 0), id(getattr(runtime, "at", None))


def _report(frame: FrameType) -> BaseException:
    runtime, actor = _runtime(frame)
    assert runtime is not None
    where = line_of(frame, lambda file: file.startswith(_OWN)) if _mine(frame) else line_of(frame)
    error = DesignError(
        f"{where}: the design does not go on",
        why=f"{f'{actor} has' if actor else 'its probe has'} come to no further step for {STANDSTILL_S:g} s",
        hint="a loop that waits for somebody has vb.runtime.relax() in it; what blocks or sleeps is vb.runtime's",
    )
    if not actor:
        return error
    # Not as an error of the actor, which would be a verdict, nor for the design's own handlers.
    runtime.failure = error
    return Stopped()


def _mine(frame: FrameType | None) -> bool:
    """Whether there is a frame that is not of balloonvq: a design of the user."""
    return line_of(frame, lambda file: file.startswith(_OWN)) != "?"


def watched() -> Watchdog:
    """A watchdog over whatever is explored inside; it raises DesignError with the line."""
    return Watchdog(_place, _report, STANDSTILL_S)
