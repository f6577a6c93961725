"""Versions, paths, settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

__all__ = ["render_info"]


def _section(title: str, rows: Sequence[tuple[str, ...]]) -> list[RenderableType]:
    """A heading and its rows."""
    grid = Table.grid(padding=(0, 2))
    for _ in rows[0] if rows else ():
        grid.add_column(overflow="fold")
    for row in rows:
        grid.add_row(*(f"  {cell}" if number == 0 else cell for number, cell in enumerate(row)))
    return [Text(title, "bold"), grid]


def render_info(document: Mapping[str, Any]) -> RenderableType:
    """Everything, in three sections."""

    def shown(value: Any) -> str:
        if isinstance(value, list):
            return ", ".join(value) or "none"
        return "-" if value is None else str(value)

    settings = [(row["name"], shown(row["value"]), row["origin"]) for row in document["settings"]]
    return Group(
        *_section("versions", [(name, shown(value)) for name, value in document["versions"].items()]),
        *_section(
            "paths", [(name.replace("_", " "), shown(value)) for name, value in document["paths"].items()]
        ),
        *_section("settings", settings),
    )
