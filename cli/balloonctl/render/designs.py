"""The locking designs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

__all__ = ["render_designs"]


def _options(design: Mapping[str, Any]) -> str:
    """option=default|other, an option a line."""
    return "\n".join(f"{name}={'|'.join(values)}" for name, values in design["options"].items())


def _one(design: Mapping[str, Any]) -> RenderableType:
    """A design in full."""
    parts: list[RenderableType] = [Text(design["text"])]
    if design["options"]:
        parts += ["", Text("options, the default first", "bold"), Text(_options(design))]
    return Group(*parts, "", Text(design["source"], "dim"))


def render_designs(document: Mapping[str, Any]) -> RenderableType:
    """A row a design, or the text of one."""
    designs = document["designs"]
    if len(designs) == 1 and "text" in designs[0]:
        return _one(designs[0])
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("design", no_wrap=True)
    table.add_column("kernels", no_wrap=True)
    table.add_column("known for; options of --set, the default first", overflow="fold")
    for design in designs:
        about = Text(design["summary"])
        if design["options"]:
            about.append(f"\n{_options(design)}", "dim")
        table.add_row(Text(design["name"], "bold"), design["kernels"], about)
    return table
