"""oom: a guest task that allocates until memory is out, and what became of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from balloonctl.command import command
from balloonctl.context import App, pass_app
from balloonctl.failures import Interrupted
from balloonctl.peer import ask, status_of
from balloonctl.render.units import PAGE, count
from balloonctl.render.units import size as human
from balloonctl.sizes import Size, SizeType
from balloonvq.errors import Deadlock, InvalidArgument, LostData, RuleBroken

__all__ = ["oom", "rules_broken"]


@command("oom")
@click.argument("size", type=SizeType(), required=False)
@click.option(
    "--while-filling",
    is_flag=True,
    help="Let it happen while the balloon is being filled: the 2017 deadlock's moment.",
)
@click.option("--no-fs", is_flag=True, help="Allocate without __GFP_FS: no filesystem reclaim, no OOM kill.")
@pass_app
def oom(app: App, /, size: Size | None, while_filling: bool, no_fs: bool) -> int:
    """Let a guest task allocate until memory is out.

    With DEFLATE_ON_OOM the balloon gives pages up (relieved); without, or when it is empty, the OOM killer
    ends a task (killed). Without SIZE it wants all that is free and half of the balloon,
    but at least 1 MiB more than is free; with --while-filling 4 MiB.

    Exit code 3 if nobody will ever go on: the tasks wait for each other (deadlocked: the report shows who holds
    what and waits for what), or the task may not kill and retries without end (livelocked); and if a rule was
    broken meanwhile: pages lost what the task had written, or the driver named pages that it should not have.
    """
    from balloonctl.render.oom import render_oom

    client = app.client()
    arguments: dict[str, Any] = {"gfp-fs": not no_fs, "while-filling": while_filling}
    if size is not None:
        ram = status_of(client).get("ram_bytes", 0)
        amount = size.resolve(ram)
        if ram and amount > ram:
            raise InvalidArgument(
                f"{size} is more than the guest has", why=f"the guest has {human(ram)} of memory"
            )
        if size.is_rounded(ram):
            app.note(f"{size} of {human(ram)} is rounded down to {amount // PAGE} pages")
        arguments["size"] = amount
    try:
        report = ask(client, "x-oom", arguments)
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted",
            why="the guest's task goes on allocating",
            hint="balloonctl status shows how far it is",
        ) from None
    app.emit(report, render_oom)
    verdict(report)
    return 0


def verdict(report: dict[str, Any]) -> None:
    """Raises what the report says about broken rules."""
    if report["outcome"] == "deadlocked":
        circle = report.get("deadlock") or {}
        names = [task["task"] for task in circle.get("tasks", ())]
        raise Deadlock(
            "the guest is deadlocked",
            report=circle,
            why=f"{len(names)} tasks wait for each other in a circle: {' -> '.join([*names, *names[:1]])}"
            if names
            else "its tasks wait for each other in a circle",
            hint="balloonctl stop ends the machine; --design reference waits for no memory under a lock",
        )
    if report["outcome"] == "livelocked":
        raise RuleBroken(
            "the guest is livelocked: its task can neither allocate nor kill",
            why=f"it retried {count(report['rounds'])} times and was given up; without __GFP_FS it may not call the OOM killer",
            hint="balloonctl deflate gives it memory; with DEFLATE_ON_OOM the balloon does so by itself",
        )
    if report.get("lost_pages"):
        raise LostData(
            f"{count(report['lost_pages'])} pages of the task lost what it had written",
            why="the host discarded them while they were the task's",
            hint="balloonctl status counts them as lost_pages",
        )
    broken = report.get("broken_rules")
    if broken:
        raise rules_broken(broken)


def rules_broken(broken: Mapping[str, int]) -> RuleBroken:
    """The error for counters of broken rules that are not 0."""
    from balloonctl.render.oom import broken_text

    return RuleBroken(
        "the driver broke the balloon's rules",
        why=broken_text(broken),
        hint="balloonctl status counts them since the start; balloonctl explore DESIGN shows how a design comes to it",
    )
