"""The doorway to the C core: `ffi`, `lib`, and one `check`.

Nothing else imports `balloonvq._core`. A call into `lib` releases the
interpreter lock, so C may sleep or work for long without stopping Python.
"""

from __future__ import annotations

import errno
import os
from typing import Any

from balloonvq._core import ffi, lib  # type: ignore[import-not-found,import-untyped,unused-ignore]
from balloonvq.errors import CoreError, NotEnoughMemory

__all__ = ["CData", "check", "ffi", "lib"]

#: A C object; cffi has no static types.
CData = Any


def check(rc: int, doing: str) -> int:
    """Returns rc if the core succeeded (rc >= 0).

    Args:
        rc: what the core returned: 0, a count, or a negative errno.
        doing: what was being done, for the message: "map the guest's memory".

    Raises:
        NotEnoughMemory: on ENOMEM and ENOSPC.
        CoreError: on any other error.
    """
    if rc >= 0:
        return rc
    number = -rc
    reason = os.strerror(number)
    if number in (errno.ENOMEM, errno.ENOSPC):
        raise NotEnoughMemory(
            f"cannot {doing}",
            why=f"{reason} ({errno.errorcode[number]})",
            hint="use less memory: a smaller --ram, or a smaller --touch",
        )
    raise CoreError(f"cannot {doing}", errno=number, why=f"{reason} ({errno.errorcode.get(number, number)})")
