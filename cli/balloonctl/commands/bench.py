"""bench: what the balloon costs, beside what it cannot cost less than."""

from __future__ import annotations

import click

from balloonctl.command import BalloonCommand
from balloonctl.context import App, pass_app
from balloonctl.sizes import Size, SizeType

__all__ = ["bench"]


@click.group("bench", context_settings={"help_option_names": ["-h", "--help"]})
def bench() -> None:
    """Measure, on a machine of its own; every figure is a ratio within one run.

    The size of a row is real memory that is written and given back, so mind what the host can spare.
    """


@bench.command("inflate", cls=BalloonCommand)
@click.option(
    "--size",
    type=SizeType(percent=False),
    default="4G",
    show_default=True,
    help="Touched guest memory to give back in each row.",
)
@click.option("--runs", type=click.IntRange(1, 1000), default=3, show_default=True, help="Rounds that count.")
@click.option(
    "--warmup", type=click.IntRange(0, 100), default=1, show_default=True, help="Rounds before that do not."
)
@click.option("--design", default="modern", show_default=True, help="Locking design of the driver.")
@click.option(
    "--fail-above",
    type=click.FloatRange(min=0),
    metavar="RATIO",
    help="Exit 4 if the median ratio is larger.",
)
@pass_app
def inflate(app: App, /, size: Size, runs: int, warmup: int, design: str, fail_above: float | None) -> int:
    """How long an inflate takes, in times one hole over the same bytes.

    Each round touches the guest's memory, punches one hole over it with one system call, touches it again,
    and lets the balloon take as much: driver, ring, device thread and holes.
    """
    from balloonctl.progress import rounds
    from balloonctl.render.bench import render_inflate
    from balloonvq.bench.inflate import run
    from balloonvq.counters import to_document

    assert size.bytes is not None
    with rounds(app, "measuring") as advance:
        result = run(size.bytes, runs=runs, warmup=warmup, design=design, on_progress=advance)
    document = to_document(result)
    app.emit(document, render_inflate)
    if fail_above is not None and document["ratio_median"] > fail_above:
        app.warn(f"the median ratio {document['ratio_median']:.2f} is above {fail_above:g}")
        return 4
    return 0


@bench.command("guest", cls=BalloonCommand)
@click.option(
    "--size",
    type=SizeType(percent=False),
    default="128M",
    show_default=True,
    help="Guest memory to take and give back in each round.",
)
@click.option("--runs", type=click.IntRange(1, 1000), default=5, show_default=True, help="Rounds that count.")
@click.option(
    "--warmup", type=click.IntRange(0, 100), default=1, show_default=True, help="Rounds before that do not."
)
@pass_app
def guest(app: App, /, size: Size, runs: int, warmup: int) -> int:
    """How fast a real Linux guest inflates and deflates, and what of it is the device.

    The guest is User Mode Linux with its own driver; it has to be installed (Debian: user-mode-linux,
    busybox-static, cpio).
    """
    from balloonctl.progress import rounds
    from balloonctl.render.bench import render_guest
    from balloonvq.bench.guest import run
    from balloonvq.counters import to_document

    assert size.bytes is not None
    with rounds(app, "measuring") as advance:
        result = run(size.bytes, runs=runs, warmup=warmup, on_progress=advance)
    app.emit(to_document(result), render_guest)
    return 0
