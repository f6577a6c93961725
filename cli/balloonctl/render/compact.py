"""The results of compact and check, a sentence each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from balloonctl.render.oom import broken_text
from balloonctl.render.units import count, pages

__all__ = ["render_check", "render_compact"]


def render_compact(document: Mapping[str, Any]) -> Text:
    """What became of the pages that were isolated."""
    return Text(
        f"isolated {pages(document['isolated'])}: {count(document['migrated'])} migrated, "
        f"{count(document['refused'])} refused by the driver, {count(document['no_page'])} without a page to move to"
    )


def render_check(document: Mapping[str, Any]) -> Text:
    """How many pages were looked at, how many had lost their content, and which rules were broken."""
    if document["lost_pages"]:
        words, style = f"✗ {pages(document['lost_pages'])} lost their content", "bold red"
    else:
        words, style = "✓ none lost its content", "green"
    text = Text.assemble(f"checked {pages(document['checked_pages'])}: ", (words, style))
    if document.get("broken_rules"):
        text.append(f"\n✗ broken rules: {broken_text(document['broken_rules'])}", "bold red")
    return text
