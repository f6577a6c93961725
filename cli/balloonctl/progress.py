"""Progress on stderr, drawn only for a person who watches."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from balloonctl.context import Voice
from balloonctl.render.units import PAGE

__all__ = ["Exploring", "exploring", "moving", "rounds", "touching"]

#: Exploring that takes less shows nothing.
_PATIENCE_S = 1.0


def _ignore(*_: object) -> None:
    """Where progress goes when nobody watches."""


@contextmanager
def touching(voice: Voice) -> Iterator[Callable[[int, int], None]]:
    """A bar while a machine touches its memory; gives the function that moves it (done, all bytes)."""
    if not voice.live:
        yield _ignore
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("touching memory"),
        BarColumn(bar_width=None),
        DownloadColumn(binary_units=True),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=voice.stderr, transient=True, expand=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


@contextmanager
def moving(voice: Voice, verb: str, start_bytes: int, target_bytes: int) -> Iterator[Callable[[int], None]]:
    """A bar while the balloon moves: pages, rate, time left; gives the function told the balloon's size."""
    total = abs(target_bytes - start_bytes)
    if not voice.live or total == 0:
        yield _ignore
        return
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    from balloonctl.render.units import count, rate

    class Pages(ProgressColumn):
        """Pages done and to do."""

        def render(self, task: Task) -> Text:
            return Text(f"{count(task.completed // PAGE)} of {count((task.total or 0) // PAGE)} pages")

    class Rate(ProgressColumn):
        """Bytes a second."""

        def render(self, task: Task) -> Text:
            return Text("" if task.speed is None else rate(task.speed), justify="right")

    columns = (
        TextColumn(verb),
        BarColumn(bar_width=None),
        Pages(),
        Rate(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=voice.stderr, transient=True, expand=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda actual: progress.update(task, completed=min(total, abs(actual - start_bytes)))


@contextmanager
def rounds(voice: Voice, verb: str) -> Iterator[Callable[[int, int], None]]:
    """A bar over the rounds of a benchmark; gives the function that moves it (done, all)."""
    if not voice.live:
        yield _ignore
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(verb), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(compact=True))
    with Progress(*columns, console=voice.stderr, transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


class Exploring:
    """A bar over scenarios; this one draws nothing."""

    def scenario(self, done: int, total: int, what: str) -> None:
        """So many are done, and this one is what is waited for."""

    def layer(self, text: str) -> None:
        """What the search says of itself while it runs."""

    @contextmanager
    def aside(self) -> Iterator[None]:
        """While something else is written."""
        yield


@contextmanager
def exploring(voice: Voice) -> Iterator[Exploring]:
    """A bar over scenarios, drawn when it takes over a second."""
    if not voice.live:
        yield Exploring()
        return
    from threading import Timer

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("exploring"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
        TextColumn("{task.fields[search]}", markup=False, style="dim"),
    )
    progress = Progress(*columns, console=voice.stderr, transient=True)
    task = progress.add_task("", total=None, search="")

    class Drawn(Exploring):
        def scenario(self, done: int, total: int, what: str) -> None:
            progress.update(task, completed=done, total=total, description=what, search="")

        def layer(self, text: str) -> None:
            progress.update(task, search=text)

        @contextmanager
        def aside(self) -> Iterator[None]:
            shown = progress.live.is_started
            progress.stop()
            yield
            if shown:
                progress.start()

    patience = Timer(_PATIENCE_S, progress.start)
    patience.daemon = True
    patience.start()
    try:
        yield Drawn()
    finally:
        patience.cancel()
        patience.join()
        progress.stop()
