"""events: what the machine announces, a JSON object a line."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import click

from balloonctl.command import command
from balloonctl.context import App, pass_app
from balloonctl.output import Document, Format
from balloonctl.sizes import WholeNumber

__all__ = ["events"]


def _line(document: Document) -> str:
    """An event for people; its data is short enough to stay JSON."""
    return f"{document['time']}  {document['event']:<16}  {json.dumps(document['data'])}"


@command("events")
@click.option("--count", type=WholeNumber(min=1), metavar="N", help="End after N events.  [default: never]")
@click.option("--text", is_flag=True, help="Lines for people instead of JSON.")
@pass_app
def events(app: App, /, count: int | None, text: bool) -> int:
    """Print events as they come, a JSON object a line, until Ctrl-C."""
    client = app.client()
    if not text and app.settings.output is Format.TABLE:
        app.adjust(output=Format.JSONL)
    seen = 0
    while True:
        for name, data in client.events(1.0):
            document: dict[str, Any] = {
                "schema": "balloonctl/event/1",
                "event": name,
                "data": data,
                "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            }
            app.emit_line(document, _line)
            seen += 1
            if seen == count:
                return 0
