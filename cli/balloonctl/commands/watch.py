"""watch: the counters, live on a terminal, a line an interval elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from balloonctl.command import command
from balloonctl.context import App, pass_app
from balloonctl.peer import status_of
from balloonctl.render.watch import History, render_watch, watch_line
from balloonctl.sizes import DURATION, WholeNumber

if TYPE_CHECKING:
    from balloonvq.qmp.client import Client

__all__ = ["look", "look_options", "watch"]

#: Seconds that the sparklines show.
MINUTE = 60.0

_SHORTEST, _LONGEST = 0.1, 60.0


class View:
    """What the keys change."""

    def __init__(self, interval: float) -> None:
        self.interval = interval
        self.paused = False
        self.done = False

    def press(self, key: str) -> bool:
        """Takes a key; True if it means anything."""
        match key:
            case "c-c":  # raw mode: the terminal sends no signal
                raise KeyboardInterrupt
            case "q" | "Q" | "c-d" | "escape":
                self.done = True
            case "p" | " ":
                self.paused = not self.paused
            case "+" | "=":
                self.interval = min(_LONGEST, self.interval * 2)
            case "-":
                self.interval = max(_SHORTEST, self.interval / 2)
            case _:
                return False
        return True


def look_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """How often, and how many times."""
    interval = click.option(
        "--interval",
        type=DURATION,
        default="1s",
        show_default=True,
        help="Time between two looks, as 500ms or 2s.",
    )
    count = click.option(
        "--count", type=WholeNumber(min=1), metavar="N", help="End after N looks.  [default: never]"
    )
    return interval(count(function))


@command("watch")
@look_options
@pass_app
def watch(app: App, /, interval: float, count: int | None) -> int:
    """Show the counters live.

    Keys: p or space pauses, + and - change the interval, q leaves. Where stdout is not a terminal: a line an
    interval, with --json a status document a line. Rates come from the machine's own clock.
    """
    look(app, app.client(), interval, count)
    return 0


def look(app: App, client: Client, interval: float, count: int | None) -> None:
    """Shows a machine's counters until somebody has seen enough: live, or a line an interval."""
    if app.live:
        _screen(app, client, interval, count)
    else:
        _lines(app, client, interval, count)


def _lines(app: App, client: Client, interval: float, count: int | None) -> None:
    """One line an interval, paced by our monotonic clock without drift."""
    history: deque[dict[str, Any]] = deque(maxlen=2)
    due = time.monotonic()
    seen = 0
    while count is None or seen < count:
        if seen:
            due = max(due + interval, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
        document = status_of(client)
        history.append(document)
        app.emit_line(document, lambda _: watch_line(list(history)))
        seen += 1


def _screen(app: App, client: Client, interval: float, count: int | None) -> None:
    """The whole terminal, until q."""
    import select

    from prompt_toolkit.input import create_input
    from rich.live import Live

    view = View(interval)
    history: deque[dict[str, Any]] = deque(maxlen=int(MINUTE / _SHORTEST))
    keys = create_input()
    seen = 0

    def take() -> None:
        nonlocal seen
        history.append(status_of(client))
        seen += 1
        newest = history[-1]["monotonic_ns"]
        while newest - history[0]["monotonic_ns"] > MINUTE * 1e9:
            history.popleft()

    with (
        keys.raw_mode(),
        Live(console=app.stdout, screen=True, auto_refresh=False, vertical_overflow="crop") as live,
    ):
        draw = _drawer(app, live.update, history, view)
        due = time.monotonic()
        while not view.done:
            if not view.paused and time.monotonic() >= due:
                take()
                due = time.monotonic() + view.interval
                draw()
            if count is not None and seen >= count:
                return
            rest = _LONGEST if view.paused else max(0.0, due - time.monotonic())
            with suppress(InterruptedError):
                select.select([keys.fileno()], [], [], rest)
            before = view.interval
            for press in [*keys.read_keys(), *keys.flush_keys()]:
                if view.press(str(press.key.value if hasattr(press.key, "value") else press.key)):
                    draw()
            if view.interval != before:
                due = min(due, time.monotonic() + view.interval)
            if keys.closed:
                return


def _drawer(app: App, update: Callable[..., None], history: History, view: View) -> Callable[[], None]:
    """Draws what there is to see now."""

    def draw() -> None:
        picture: Any = render_watch(
            list(history), interval=view.interval, paused=view.paused, width=app.stdout.width
        )
        update(picture, refresh=True)

    return draw
