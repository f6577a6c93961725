"""Locking designs: who may do what to the balloon at the same time.

A design is a few operations, written in the steps of `Balloon`:

    fill(n)            take up to n pages from the guest and give them to the host
    leak(n)            take up to n pages back
    migrate(new, old)  replace an isolated balloon page (compaction)
    on_oom()           the OOM notifier
    scan(nr)           the shrinker, in designs that have one
    resize()           the size worker
    drain()            teardown

`find` turns a name, or ``path/to/file.py:ClassName``, into a class.
"""

from __future__ import annotations

import difflib
import importlib

from balloonvq.driver.designs.base import Design, choose_options
from balloonvq.errors import InvalidArgument

__all__ = ["DESIGNS", "Design", "choose_options", "find", "is_file"]

#: Class path by name, in the order of history; modules load when they are asked for.
DESIGNS = {
    "coarse": "balloonvq.driver.designs.coarse:Coarse",
    "split": "balloonvq.driver.designs.split:Split",
    "split-deflating": "balloonvq.driver.designs.split_deflating:SplitDeflating",
    "upstream": "balloonvq.driver.designs.upstream:Upstream",
    "shrinker": "balloonvq.driver.designs.shrinker:Shrinker",
    "modern": "balloonvq.driver.designs.modern:Modern",
    "reference": "balloonvq.driver.designs.reference:Reference",
}


def is_file(name: str) -> bool:
    """Whether a design's name means a file of the user."""
    return ".py:" in name or name.endswith(".py") or "/" in name


def find(name: str) -> type[Design]:
    """The design of that name, or of ``path/to/file.py:ClassName``.

    Raises:
        InvalidArgument: if there is none, naming the near matches.
        DesignError: if the file does not import, or its class is no design, naming the line.
    """
    path = DESIGNS.get(name)
    if path is not None:
        module, _, attribute = path.partition(":")
        design: type[Design] = getattr(importlib.import_module(module), attribute)
        return design
    if is_file(name):
        from balloonvq.driver.designs.load import load

        return load(name)
    near = difflib.get_close_matches(name, DESIGNS)
    raise InvalidArgument(
        f"there is no locking design {name!r}",
        why=f"the designs are {', '.join(DESIGNS)}",
        hint=f"did you mean {near[0]}?" if near else "path/to/file.py:ClassName is one of your own",
    )
