from collections.abc import Callable
from types import CodeType, FrameType
from typing import Any

def unchanged(seen: tuple[list[Any], ...], /) -> bool: ...
def stack(
    frame: FrameType | None,
    end: CodeType,
    points: dict[tuple[int, int], Any],
    unknown: Callable[[CodeType, int], Any],
    /,
) -> list[Any] | None: ...
def place(
    below: set[str] | frozenset[str],
    places: dict[tuple[int, int], tuple[str, int]],
    unknown: Callable[[FrameType | None], tuple[str, int]],
    frame: FrameType | None,
    /,
) -> tuple[str, int]: ...
def add_frames(
    kind: type,
    found: list[Any],
    met: dict[int, int],
    add: Callable[[Any], None],
    simple: dict[type, bool],
    missing: object,
    distinct: Callable[[object], bool],
    frames: list[Any],
    /,
) -> bool: ...
