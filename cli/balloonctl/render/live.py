"""What became of a schedule on real threads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from balloonctl.render.deadlock import render_tasks

__all__ = ["confirmed", "render_live"]


def confirmed(live: Mapping[str, Any]) -> Text:
    """One line: how many runs ended as the explorer says, and how the first other one went."""
    numbers = f"{live['confirmed']}/{live['times']}"
    if live["confirmed"] == live["times"]:
        return Text.assemble("confirmed on real threads ", (numbers, "bold green"))
    text = Text.assemble(
        ("✗ NOT confirmed on real threads", "bold red"),
        f" {numbers}: run {live['confirmed'] + 1}: {live['difference']}",
    )
    return text.append(f" ({live['why']})") if live["why"] else text


def render_live(live: Mapping[str, Any]) -> RenderableType:
    """What was seen, the stacks of those who wait for ever, and the line of `confirmed`."""
    parts: list[RenderableType] = []
    if live["seen"]:
        parts += ["", Text("on real threads", "bold")]
        parts += [Text(f"  {sentence}") for sentence in live["seen"]]
    parts += render_tasks(live["tasks"])
    return Group(*parts, confirmed(live))
