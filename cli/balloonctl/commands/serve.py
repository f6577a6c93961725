"""serve: the device for a guest elsewhere, in a virtual machine monitor or in User Mode Linux."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from balloonctl.command import command
from balloonctl.commands.machines import feature_options, queue_size
from balloonctl.commands.watch import look, look_options
from balloonctl.connection import PrivateConnection
from balloonctl.context import App, pass_app
from balloonctl.sizes import WholeNumber
from balloonvq.errors import InvalidArgument

if TYPE_CHECKING:
    from types import FrameType

    from balloonvq.vhost_machine import VhostMachine

__all__ = ["serve"]

#: What QEMU's vhost-user.json calls this kind of back end.
_CAPABILITIES = {"type": "balloon", "features": []}


@command("serve")
@click.option(
    "--vhost-user",
    "--socket-path",
    "vhost_user",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="SOCKET",
    help="Listen here for a front end.",
)
@click.option(
    "--fd", type=WholeNumber(min=0), metavar="N", help="Use this socket, which we were started with."
)
@click.option(
    "--background", metavar="NAME", help="Run as the background machine NAME instead of in the foreground."
)
@click.option(
    "--qmp",
    type=click.Path(path_type=Path),
    metavar="SOCKET",
    help="In the foreground, take commands here: balloonctl --connect SOCKET inflate 64M.",
)
@click.option(
    "--queue-layout",
    type=click.Choice(["auto", "spec", "dense"]),
    default="auto",
    show_default=True,
    help="How the guest numbers its queues: by the specification, counting only those that are there, or see.",
)
@click.option("--stats/--no-stats", default=True, show_default=True, help="Offer VIRTIO_BALLOON_F_STATS_VQ.")
@feature_options
@click.option(
    "--queue-size",
    type=int,
    default=32768,
    show_default=True,
    callback=queue_size,
    help="Most descriptors of a queue.",
)
@click.option(
    "--discard",
    type=click.Choice(["punch", "dontneed", "none"]),
    default="punch",
    show_default=True,
    help="How the device gives memory back to the host.",
)
@look_options
@click.option("--print-capabilities", is_flag=True, help="Print what this back end is, as JSON, and leave.")
@pass_app
def serve(
    app: App,
    /,
    vhost_user: Path | None,
    fd: int | None,
    background: str | None,
    qmp: Path | None,
    interval: float,
    count: int | None,
    print_capabilities: bool,
    **options: Any,
) -> int:
    """Offer the balloon device to a guest elsewhere, over vhost-user.

    The front end is a virtual machine monitor or User Mode Linux; the guest needs shared memory. One front end
    at a time; when it goes, the next may come. In the foreground the counters are shown as by `watch`.
    """
    if print_capabilities:
        import json

        click.echo(json.dumps(_CAPABILITIES))
        return 0
    if (vhost_user is None) == (fd is None):
        raise click.UsageError("give --vhost-user SOCKET or --fd N")
    fields = options | {"socket": str(vhost_user.absolute()) if vhost_user else None, "fd": fd}
    if background is not None:
        return _in_background(app, background, fields, qmp=qmp)
    if isinstance(app.connection, PrivateConnection):
        raise InvalidArgument(
            "serve would keep this session to itself",
            why="a session drives its own machine",
            hint="serve --background NAME",
        )
    _in_foreground(app, fields, qmp, interval, count)
    return 0


def _in_background(app: App, name: str, fields: dict[str, Any], *, qmp: Path | None) -> int:
    """A machine of its own process; ps, stop and -m know it."""
    from balloonctl import background
    from balloonctl.render.machines import render_serve

    if fields["fd"] is not None:
        raise click.UsageError("--fd is a descriptor of this process; --background makes another")
    if qmp is not None:
        raise click.UsageError("--qmp is for the foreground; a background machine has its own socket")
    background.start(name, {"kind": "vhost-user"} | fields)
    app.emit(
        {
            "schema": "balloonctl/serve/1",
            "machine": name,
            "socket": fields["socket"],
            "offered": _offered(fields),
        },
        render_serve,
    )
    return 0


def _offered(fields: dict[str, Any]) -> list[str]:
    """Names of the features on offer."""
    from balloonvq.features import feature_names
    from balloonvq.vhost_machine import VhostConfig

    return list(feature_names(VhostConfig(**fields).features))


def _in_foreground(
    app: App, fields: dict[str, Any], qmp: Path | None, interval: float, count: int | None
) -> None:
    """Until Ctrl-C, SIGTERM or q."""
    from balloonvq.qmp.client import LocalClient
    from balloonvq.qmp.commands import Commands
    from balloonvq.qmp.server import QMPServer
    from balloonvq.vhost_machine import VhostConfig, VhostMachine

    with _ends_on_sigterm(), VhostMachine(VhostConfig(**fields)) as machine:
        commands = Commands(machine)
        with contextlib.ExitStack() as cleanup:
            if qmp is not None:
                server = QMPServer(qmp, commands)
                cleanup.callback(server.close, "host-signal")
            if not app.live:
                cleanup.callback(_tell(app, machine))
                where = fields["socket"] or f"descriptor {fields['fd']}"
                app.note(f"listening at {where}")
            look(app, LocalClient(commands), interval, count)


def _tell(app: App, machine: VhostMachine) -> Any:
    """Says on stderr who comes and goes; returns how to end that."""

    def on_event(name: str, data: dict[str, object]) -> None:
        if name == "X_FRONT_END":
            reason = f": {data['reason']}" if data["reason"] else ""
            app.note(f"front end {data['state']}{reason}")

    return machine.subscribe(on_event)


@contextlib.contextmanager
def _ends_on_sigterm() -> Iterator[None]:
    """SIGTERM ends us as cleanly as Ctrl-C, with exit code 0, as back ends are expected to."""

    def end(_number: int, _frame: FrameType | None) -> None:
        raise SystemExit(0)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
