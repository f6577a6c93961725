"""stats: the guest's own statistics, by the statistics queue."""

from __future__ import annotations

import click

from balloonctl.command import command
from balloonctl.context import App, pass_app
from balloonctl.peer import ask

__all__ = ["stats"]


@command("stats")
@click.option(
    "--refresh/--no-refresh",
    default=True,
    show_default=True,
    help="Ask the guest anew, or show what it last sent.",
)
@pass_app
def stats(app: App, /, refresh: bool) -> int:
    """Show the statistics that the guest sent, each with its unit.

    The names are QEMU's; a tag that nobody knows is kept as stat-unknown-N.
    """
    from balloonctl.render.stats import render_stats

    report = ask(app.client(), "x-stats", {"refresh": refresh})
    if not report["updates"]:
        app.note("the guest has not sent any statistics yet")
    app.emit(report, render_stats)
    return 0
