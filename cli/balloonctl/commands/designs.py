"""designs: what `start --design` takes."""

from __future__ import annotations

from typing import Any

import click

from balloonctl.command import command
from balloonctl.context import App, pass_app

__all__ = ["designs"]


def _complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The designs that come with balloonvq."""
    del ctx, param
    from balloonvq.driver.designs import DESIGNS

    return [name for name in DESIGNS if name.startswith(incomplete)]


def _row(name: str) -> dict[str, Any]:
    """A design as a member of the document."""
    from balloonvq.driver.designs import find

    design = find(name)
    return {
        "name": name,
        "kernels": design.kernels,
        "summary": design.summary,
        "options": {option: list(values) for option, values in design.options.items()},
    }


def _about(name: str) -> dict[str, Any]:
    """What only the explanation of one design has: its text, and where it is written."""
    import inspect
    import sys

    from balloonvq.driver.designs import find

    design = find(name)
    module = sys.modules[design.__module__]
    text = inspect.getdoc(module) or inspect.getdoc(design) or ""
    return {"text": text, "source": str(module.__file__)}


@command("designs")
@click.argument("name", required=False, shell_complete=_complete)
@pass_app
def designs(app: App, /, name: str | None) -> int:
    """List the locking designs, with the options that --set changes.

    With NAME, also path/to/file.py:ClassName: what the design is known for, and where its source is.
    """
    from balloonctl.render.designs import render_designs
    from balloonvq.driver.designs import DESIGNS

    rows = [_row(name) | _about(name)] if name else [_row(known) for known in DESIGNS]
    app.emit({"schema": "balloonctl/designs/1", "designs": rows}, render_designs)
    return 0
