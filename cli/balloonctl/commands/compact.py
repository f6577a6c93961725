"""compact and check: the guest moves its pages, and verifies what is in them."""

from __future__ import annotations

import click

from balloonctl.command import command
from balloonctl.commands.oom import rules_broken
from balloonctl.context import App, pass_app
from balloonctl.peer import ask, status_of
from balloonctl.render.units import count
from balloonctl.sizes import WholeNumber
from balloonvq.errors import LostData

__all__ = ["check", "compact"]


@command("compact")
@click.argument("pages", type=WholeNumber(min=1), required=False)
@pass_app
def compact(app: App, /, pages: int | None) -> int:
    """Let the guest's compaction move balloon pages: PAGES of them, or as many as it finds.

    The driver tells the host about each pair: the new page is inflated, the old one deflated.
    """
    from balloonctl.render.compact import render_compact

    app.emit(ask(app.client(), "x-compact", {} if pages is None else {"pages": pages}), render_compact)
    return 0


@command("check")
@pass_app
def check(app: App, /) -> int:
    """Let the guest's tasks verify the content of all their pages; exit 3 if one lost it.

    Exit code 3 also if the driver has broken a rule since the start, which `status` counts: it named a page that the
    balloon held already, did not hold, or cannot hold, or the guest handled one that was not where it should have been.
    """
    from balloonctl.render.compact import render_check
    from balloonvq.counters import BROKEN_RULES

    client = app.client()
    report = {"schema": "balloonctl/check/1", **ask(client, "x-check")}
    counters = status_of(client).get("counters") or {}
    report["broken_rules"] = {name: counters[name] for name in BROKEN_RULES if counters.get(name)}
    app.emit(report, render_check)
    if report["lost_pages"]:
        raise LostData(
            f"{count(report['lost_pages'])} of {count(report['checked_pages'])} pages lost what their task had written",
            why="the host discarded them while they were the task's",
            hint="balloonctl status counts them as lost_pages",
        )
    if report["broken_rules"]:
        raise rules_broken(report["broken_rules"])
    return 0
