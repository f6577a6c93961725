"""Locking designs: who may do what to the balloon at the same time.

A design is five operations, written in the steps of `Balloon`:

    fill(n)            take up to n pages from the guest and give them to the host
    leak(n)            take up to n pages back
    migrate(new, old)  replace an isolated balloon page (compaction)
    on_oom()           the OOM notifier
    resize()           the size worker

`find` turns a name, or ``path/to/file.py:ClassName``, into a class.
"""

from __future__ import annotations

import difflib
import importlib

from balloonvq.driver.designs.base import Design
from balloonvq.errors import InvalidArgument

__all__ = ["DESIGNS", "Design", "find"]

#: Class path by name; modules load when they are asked for.
DESIGNS = {
    "modern": "balloonvq.driver.designs.modern:Modern",
    "coarse": "balloonvq.driver.designs.coarse:Coarse",
}


def find(name: str) -> type[Design]:
    """The design of that name.

    Raises:
        InvalidArgument: if there is none, naming the near matches.
    """
    path = DESIGNS.get(name)
    if path is None:
        near = difflib.get_close_matches(name, DESIGNS)
        raise InvalidArgument(
            f"there is no locking design {name!r}",
            why=f"the designs are {', '.join(sorted(DESIGNS))}",
            hint=f"--design {near[0]}" if near else "",
        )
    module, _, attribute = path.partition(":")
    design: type[Design] = getattr(importlib.import_module(module), attribute)
    return design
