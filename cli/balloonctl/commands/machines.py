"""start, ps, stop: machines in the background, or the session's own."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

import click

from balloonctl.command import command, complete_machine
from balloonctl.connection import PRIVATE_MACHINE, PrivateConnection
from balloonctl.context import DEFAULT_MACHINE, App, pass_app
from balloonctl.render.units import size as human
from balloonctl.sizes import Size, SizeType, WholeNumber
from balloonvq.errors import InvalidArgument, MachineExists

if TYPE_CHECKING:
    from balloonctl.background import MachineEntry

__all__ = ["default_fields", "feature_options", "ps", "queue_size", "start", "stop"]

_MAX_QUEUE = 32768


def queue_size(ctx: click.Context, param: click.Parameter, value: int) -> int:
    """A split ring has a power of two descriptors."""
    del ctx, param
    if not 1 <= value <= _MAX_QUEUE or value & (value - 1):
        below = 1 << (max(1, min(value, _MAX_QUEUE)).bit_length() - 1)
        near = sorted({below, min(below * 2, _MAX_QUEUE)})
        raise InvalidArgument(
            f"a queue cannot have {value} descriptors",
            why=f"a split ring's size is a power of two from 1 to {_MAX_QUEUE}",
            hint="--queue-size " + " or ".join(map(str, near)),
        )
    return value


def feature_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What the device of any guest offers, and how often it asks for statistics."""
    function = click.option(
        "--stats-interval",
        type=WholeNumber(0, 2**32 - 1),
        default=0,
        show_default=True,
        metavar="SECONDS",
        help="Ask the guest for statistics this often; 0 asks only when you do.",
    )(function)
    for name, feature in reversed(
        (
            ("deflate-on-oom", "VIRTIO_BALLOON_F_DEFLATE_ON_OOM"),
            ("must-tell-host", "VIRTIO_BALLOON_F_MUST_TELL_HOST"),
            ("event-idx", "VIRTIO_F_EVENT_IDX"),
            ("indirect", "VIRTIO_F_INDIRECT_DESC"),
        )
    ):
        function = click.option(
            f"--{name}/--no-{name}", default=True, show_default=True, help=f"Offer {feature}."
        )(function)
    return function


def complete_design(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The designs that come with balloonvq."""
    del ctx, param
    from balloonvq.driver.designs import DESIGNS

    return [name for name in DESIGNS if name.startswith(incomplete)]


def complete_design_option(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """OPTION=VALUE of the design that the line names, if it comes with balloonvq: a user's file is not run for this."""
    from balloonvq.driver.designs import DESIGNS, find

    design = ctx.params.get("design")
    if design not in DESIGNS:
        return []
    given = {chosen.partition("=")[0] for chosen in ctx.params.get(str(param.name)) or ()}
    pairs = [
        f"{name}={value}"
        for name, values in find(design).options.items()
        if name not in given
        for value in values
    ]
    return [pair for pair in pairs if pair.startswith(incomplete)]


def _design(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """A design in a file is meant from here, wherever its machine will run."""
    del ctx, param
    file, colon, name = value.rpartition(":")
    return f"{os.path.abspath(file)}:{name}" if colon and file else value  # noqa: PTH100 - no link is resolved


def _memory(ctx: click.Context, param: click.Parameter, value: str) -> str:
    """A path is meant from here, wherever its machine will run."""
    del ctx, param
    return os.path.abspath(value) if "/" in value else value  # noqa: PTH100 - no link is resolved


def design_options(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> dict[str, str]:
    """OPTION=VALUE, once or more."""
    options = {}
    for given in value:
        name, equals, chosen = given.partition("=")
        if not equals:
            raise click.BadParameter(f"{given!r} is not OPTION=VALUE", ctx, param)
        options[name.strip()] = chosen.strip()
    return options


def machine_fields(*, ram: Size, touch: Size, used: Size, **same: Any) -> dict[str, Any]:
    """The options of `start` as the fields of MachineConfig."""
    ram_bytes = ram.resolve(0)
    # Not all of it can be used: the driver has some.
    for name, share, most in (("touch", touch, "100%"), ("used", used, "50%")):
        if share.resolve(ram_bytes) > ram_bytes:
            raise InvalidArgument(
                f"--{name} {share} is more than the guest has",
                why=f"the guest has {human(ram_bytes)}",
                hint=f"--{name} {most}",
            )
    return {
        "ram_bytes": ram_bytes,
        "touch_bytes": touch.resolve(ram_bytes),
        "used_bytes": used.resolve(ram_bytes),
        "design_options": same.pop("set"),
        **same,
    }


@contextmanager
def _design_first(fields: Mapping[str, Any]) -> Iterator[None]:
    """Where a machine is in the way, complains about a wrong design instead: it would be the next error.

    Without one the machine complains; nothing is loaded twice for that.
    """
    try:
        yield
    except MachineExists:
        from balloonvq.driver.designs import choose_options, find

        choose_options(find(fields["design"]), fields["design_options"])
        raise


def default_fields() -> dict[str, Any]:
    """What `start` without arguments would make, with configuration and environment."""
    root = click.get_current_context().find_root()
    ctx = start.make_context("start", [], parent=root)
    options = {name: value for name, value in ctx.params.items() if name != "name"}
    if options["clock"] is None:
        del options["clock"]
    return machine_fields(**options)


@command("start")
@click.argument("name", required=False)
@click.option(
    "--ram", type=SizeType(percent=False), default="1G", show_default=True, help="Memory of the guest."
)
@click.option(
    "--touch",
    type=SizeType(zero=True),
    default="100%",
    show_default=True,
    help="Memory that the guest has written to before anything begins, so that the host has to back it.",
)
@click.option(
    "--used",
    type=SizeType(zero=True),
    default="5%",
    show_default=True,
    help="Memory that guest tasks own and check; the rest is free.",
)
@click.option(
    "--fragmented", is_flag=True, help="Hand out pages in a shuffled order, as a long-lived guest does."
)
@click.option(
    "--design",
    default="reference",
    show_default=True,
    metavar="DESIGN",
    callback=_design,
    shell_complete=complete_design,
    help="Locking design of the driver: one that `balloonctl designs` lists, or path/to/file.py:ClassName.",
)
@click.option(
    "--set",
    multiple=True,
    metavar="OPTION=VALUE",
    callback=design_options,
    shell_complete=complete_design_option,
    help="Set an option of the design; may be given again.",
)
@feature_options
@click.option(
    "--queue-size",
    type=int,
    default=128,
    show_default=True,
    callback=queue_size,
    help="Descriptors of each queue.",
)
@click.option(
    "--memory",
    default="memfd",
    show_default=True,
    metavar="memfd|anon|huge|PATH",
    callback=_memory,
    help="Where guest memory comes from: shared memory (memfd); private anonymous memory, with huge pages if it is huge; or "
    "PATH: a new file, or one without a name if that is a directory; it goes when the machine does.",
)
@click.option(
    "--discard",
    type=click.Choice(["punch", "dontneed", "none"]),
    show_default="what frees that memory",
    help="How the device gives memory back to the host.",
)
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of everything that is random.")
@click.option(
    "--pin/--no-pin",
    default=True,
    show_default=True,
    help="Let guest tasks and the device share one processor.",
)
@click.option(
    "--clock",
    type=click.Choice(["real", "virtual"]),
    help="Clock of the guest's timers.  [default: virtual in scripts, else real]",
)
@pass_app
def start(app: App, /, name: str | None, **options: Any) -> int:
    """Start a machine in the background: an emulated guest with a balloon.

    It goes on until `stop`. In a shell or a script this makes the session's own machine.
    """
    from balloonctl.progress import touching

    if options["clock"] is None:
        del options["clock"]
    fields = machine_fields(**options)
    connection = app.connection
    if isinstance(connection, PrivateConnection):
        with _design_first(fields), touching(app) as on_progress:
            connection.start(fields | {"name": name or PRIVATE_MACHINE}, on_progress)
        document = {"schema": "balloonctl/start/1", "machine": name or PRIVATE_MACHINE, "private": True}
    else:
        from balloonctl import background

        if options.get("clock") == "virtual":
            raise InvalidArgument(
                "a machine in the background cannot have a virtual clock",
                why="that one moves only while a script or a shell of the same process waits",
                hint="use start --clock virtual as a line of a script, or leave --clock out",
            )
        name = name or app.settings.machine or DEFAULT_MACHINE
        with _design_first(fields), touching(app) as on_progress:
            # The table is for later; its modules load while the machine's own do, in another process.
            background.start(
                name, fields, on_progress, meanwhile=lambda: import_module("balloonctl.render.machines")
            )
        document = {"schema": "balloonctl/start/1", "machine": name, "private": False}
    from balloonctl.render.machines import render_start

    document |= {
        "design": fields["design"],
        "ram_bytes": fields["ram_bytes"],
        "touch_bytes": fields["touch_bytes"],
    }
    app.emit(document, render_start)
    return 0


#: Seconds that `ps` gives a machine to answer.
_PATIENCE = 1.0

#: Members of a status that a row of `ps` has.
_SHOWN = (
    "state",
    "pid",
    "design",
    "ram_bytes",
    "target_bytes",
    "actual_bytes",
    "guest_usable_bytes",
    "uptime_ns",
)


def _row(entry: MachineEntry) -> dict[str, Any]:
    """A machine's entry, with where its balloon stands if it answers in time."""
    from balloonctl import background
    from balloonvq.errors import BalloonError

    if entry["state"] == "dead":
        return entry | {"trouble": background.died(entry).why}
    if entry["state"] != "alive":
        return dict(entry)
    try:
        client = background.connect(entry["name"], timeout=_PATIENCE)
        try:
            status = client.execute("x-status", timeout=_PATIENCE)
        finally:
            client.close()
    except BalloonError as error:
        return entry | {"state": "silent", "trouble": error.why or error.what}
    return entry | {name: status[name] for name in _SHOWN}


@command("ps")
@pass_app
def ps(app: App, /) -> int:
    """List the machines that run, with what they are doing."""
    from balloonctl import background
    from balloonctl.render.machines import render_ps

    rows = [_row(entry) for entry in background.list_machines()]
    connection = app.connection
    if isinstance(connection, PrivateConnection) and connection.running:
        from balloonctl.peer import status_of

        status = status_of(app.client())
        rows.insert(0, {"name": status["machine"], "private": True} | {name: status[name] for name in _SHOWN})
    app.emit({"schema": "balloonctl/ps/1", "machines": rows}, render_ps)
    return 0


@command("stop")
@click.argument("name", required=False, shell_complete=complete_machine)
@click.option("--all", is_flag=True, help="End every background machine.")
@pass_app
def stop(app: App, /, name: str | None, **options: bool) -> int:
    """End a background machine; in a shell or a script, end the session's own.

    Its memory goes back to the host. Without NAME: the default machine.
    """
    from balloonctl.render.machines import render_stop

    everything = options["all"]
    if name and everything:
        raise click.UsageError("give NAME or --all, not both")
    connection = app.connection
    if isinstance(connection, PrivateConnection) and not everything and name in {None, PRIVATE_MACHINE}:
        stopped = [PRIVATE_MACHINE] if connection.stop() else []
    else:
        from balloonctl import background

        if everything:
            stopped = []
            for entry in background.list_machines():
                if entry["state"] == "dead":
                    app.note(f"{entry['name']} was no longer running: {background.died(entry).why}")
                else:
                    stopped.append(entry["name"])
        else:
            stopped = [name or app.settings.machine or DEFAULT_MACHINE]
        for machine in stopped:
            background.stop(machine)
    app.emit({"schema": "balloonctl/stop/1", "stopped": stopped}, render_stop)
    return 0
