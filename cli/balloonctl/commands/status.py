"""status: where the balloon stands, and all counters."""

from __future__ import annotations

from balloonctl.command import command
from balloonctl.context import App, pass_app
from balloonctl.output import Format
from balloonctl.peer import deadlock_report, status_of

__all__ = ["status"]


@command("status")
@pass_app
def status(app: App, /) -> int:
    """Show where the balloon stands, and all counters.

    `acknowledged` is what driver and device agree on; `measured` is what has really left the file behind the
    guest's memory. A deadlocked machine's circle of waiting tasks is shown below.
    """
    from balloonctl.render.status import render_status

    client = app.client()
    document = status_of(client)
    app.emit(document, render_status)
    if document["state"] == "deadlocked" and app.settings.output is Format.TABLE:
        report = deadlock_report(client)
        if report is not None:
            from balloonctl.render.deadlock import render_deadlock

            app.stdout.print(render_deadlock(report))
    return 0
