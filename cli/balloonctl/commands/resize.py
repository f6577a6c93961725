"""inflate, deflate, target: set the balloon's target, and wait until it is reached.

QMP's `balloon` counts what is left to the guest; people count the balloon.
Both figures stand in every result.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from balloonctl.command import BalloonCommand, command
from balloonctl.context import App, pass_app
from balloonctl.failures import Interrupted
from balloonctl.peer import deadlock_report, status_of, wait_for_target
from balloonctl.render.units import PAGE, pages
from balloonctl.render.units import size as human
from balloonctl.sizes import DURATION, REQUEST_PAGES, Size, SizeType
from balloonvq.errors import (
    BalloonError,
    Deadlock,
    DeviceBroken,
    InvalidArgument,
    KernelBug,
    MachineUnreachable,
    WaitTimeout,
)

if TYPE_CHECKING:
    from balloonvq.qmp.client import Client

__all__ = ["deflate", "inflate", "target"]


#: Seconds that a machine has to take a command, however short the --timeout for carrying it out is.
LEAST_PATIENCE = 1.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What a command is about to ask for, in bytes of balloon."""

    verb: str
    size: Size
    ram: int
    actual: int
    before: int
    """Target before."""
    after: int
    """Target after."""

    @property
    def moved_pages(self) -> int:
        """Pages that have to move from where the balloon is now."""
        return abs(self.after - self.actual) // PAGE

    def as_document(self) -> dict[str, Any]:
        """``balloonctl/plan/1``, for --dry-run."""
        return {
            "schema": "balloonctl/plan/1",
            "verb": self.verb,
            "size_bytes": self.size.resolve(self.ram),
            "ram_bytes": self.ram,
            "actual_bytes": self.actual,
            "target_before_bytes": self.before,
            "target_bytes": self.after,
            "target_pages": self.after // PAGE,
            "guest_usable_bytes": self.ram - self.after,
            "direction": "inflate"
            if self.after > self.actual
            else "deflate"
            if self.after < self.actual
            else "none",
            "pages": self.moved_pages,
            "requests": -(-self.moved_pages // REQUEST_PAGES),
        }


def make_plan(verb: str, size: Size, status: dict[str, Any]) -> Plan:
    """The new target.

    Raises:
        InvalidArgument: if no guest of this size can have it.
        BalloonError: if this guest cannot have it now.
    """
    ram = status.get("ram_bytes")
    actual = status.get("actual_bytes")
    if ram is None or actual is None:
        raise BalloonError(
            "the size of the guest's memory is unknown",
            why="this QMP server does not answer query-memory-size-summary, so a balloon's size means nothing to it",
        )
    if status.get("state") == "waiting":
        raise BalloonError(
            "no guest is attached",
            why=status.get("trouble") or "the balloon is offered, and no guest's driver uses it",
            hint="start a guest with it; balloonctl watch shows when it is there",
        )
    before = int(status.get("target_bytes", actual))
    amount = size.resolve(ram)
    if amount > ram:
        raise InvalidArgument(
            f"{size} is more than the guest has",
            why=f"the guest has {human(ram)} of memory",
            hint="balloonctl target 0 gives everything back" if verb == "deflate" else "50% takes half of it",
        )
    after = {"inflate": before + amount, "deflate": before - amount, "target": amount}[verb]
    now = f"state: target {human(before)}, actual {human(actual)}, memory {human(ram)}"
    if after > ram:
        raise BalloonError(
            f"the balloon cannot grow by {size}",
            why=f"{human(before)} + {human(amount)} is more than the guest has ({now})",
            hint=f"at most {human(ram - before)} are left to take: balloonctl inflate {(ram - before) // PAGE}p"
            if ram > before
            else "balloonctl deflate SIZE makes it smaller",
        )
    if after == ram:
        raise InvalidArgument(
            "a balloon of all memory leaves nothing to the guest",
            why=f"the guest has {human(ram)}, and QMP's balloon has to leave it something",
            hint=f"balloonctl target {ram // PAGE - 1}p leaves one page",
        )
    if after < 0:
        raise _too_much_back(size, before, int(actual), now, status)
    return Plan(verb, size, int(ram), int(actual), before, after)


def _too_much_back(size: Size, target: int, actual: int, now: str, status: dict[str, Any]) -> BalloonError:
    """Why `deflate` cannot ask for less: it counts from the target, whatever the balloon has now."""
    why = f"its target is {human(target)}, and deflate counts from that ({now})"
    hint = "balloonctl target 0 gives everything back to the guest" if target else ""
    if actual > target:
        balloon = status.get("balloon") or {}
        if balloon.get("state") == "short" and balloon.get("reason") in _REASONS:
            _, words, hint = _REASONS[balloon["reason"]]
            why += f"; it is above its target: {words}"
        else:
            hint = "balloonctl watch shows it on its way to its target"
    return BalloonError(f"the balloon cannot shrink by {size}", why=why, hint=hint)


_REASONS: dict[str, tuple[type[BalloonError], str, str]] = {
    "guest-has-no-free-pages": (
        BalloonError,
        "the guest has no free pages",
        "balloonctl status shows who has them; the balloon goes on by itself when the guest frees some",
    ),
    "driver-stalled": (
        BalloonError,
        "the driver is stalled: it does not move any more, though its target is not reached",
        "balloonctl status; see whether requests wait in a queue",
    ),
    "deflated-by-oom": (
        BalloonError,
        "the guest was out of memory and took pages out of the balloon",
        "balloonctl status shows the OOM events; balloonctl target SIZE asks again",
    ),
    "target-changed": (
        BalloonError,
        "somebody else set another one meanwhile",
        "balloonctl status shows where it stands; balloonctl target SIZE sets yours again",
    ),
    "deadlocked": (
        Deadlock,
        "the guest is deadlocked: its tasks wait for each other in a circle",
        "balloonctl status shows the circle; balloonctl stop ends the machine",
    ),
    "device-broken": (
        DeviceBroken,
        "the device met a ring that it cannot go on with and wants a reset",
        "balloonctl status says what is wrong; balloonctl stop ends the machine",
    ),
    "no-guest": (
        BalloonError,
        "the guest went away",
        "the target is kept for the next guest; balloonctl status shows when one is attached",
    ),
    "kernel-bug": (
        KernelBug,
        "the guest kernel reached a BUG()",
        "balloonctl status says which; balloonctl stop ends the machine",
    ),
}


def shortfall(result: dict[str, Any], status: dict[str, Any], limit: float | None) -> BalloonError:
    """Why the balloon is not where it should be."""
    figures = f"state: target {human(result['target_bytes'])}, actual {human(result['actual_bytes'])}"
    if status.get("guest_free_bytes") is not None:
        figures += f", free in the guest {human(status['guest_free_bytes'])}"
    above = result["actual_bytes"] > result["target_bytes"]
    what = (
        f"the balloon stopped at {human(result['actual_bytes'])}"
        f"{', above its target' if above else ''} of {human(result['target_bytes'])}"
    )
    if result["outcome"] == "timeout":
        return WaitTimeout(
            f"the target of {human(result['target_bytes'])} was not reached within {limit:g} s",
            why=f"the machine goes on towards it ({figures})",
            hint="balloonctl status; --timeout waits longer, --no-wait not at all",
        )
    kind, words, hint = _REASONS.get(
        str(result.get("reason")), (BalloonError, f"reason: {result.get('reason')}", "balloonctl status")
    )
    trouble = status.get("trouble")
    if result.get("reason") == "target-changed":
        what = f"the target of {human(result['target_bytes'])} was replaced"
        words += f", {human(status['target_bytes'])}"
    return kind(what, why=f"{words} ({figures})" + (f"; {trouble}" if trouble else ""), hint=hint)


def _options(function: Callable[..., int]) -> Callable[..., int]:
    """What the three commands share."""
    for decorate in (
        pass_app,
        click.option(
            "--dry-run", is_flag=True, help="Show pages, requests and the new target; send nothing."
        ),
        click.option(
            "--timeout",
            type=DURATION,
            help="Stop waiting after this long (500ms, 10s, 2m), exit 124; the machine goes on.",
        ),
        click.option(
            "--wait/--no-wait", default=True, show_default=True, help="Wait until the target is reached."
        ),
    ):
        function = decorate(function)
    return function


def resize(app: App, verb: str, size: Size, *, wait: bool, timeout: float | None, dry_run: bool) -> int:
    """The three commands."""
    from balloonctl.render.resize import render_plan, render_resize

    if timeout is not None and not wait:
        raise click.UsageError("--timeout limits the waiting that --no-wait leaves out")
    patience = None if timeout is None else max(timeout, LEAST_PATIENCE)
    client, status = _meet(app, start=not dry_run, patience=patience)
    plan = make_plan(verb, size, status)
    if size.is_rounded(plan.ram):
        app.note(f"{size} of {human(plan.ram)} is rounded down to {pages(size.resolve(plan.ram) // PAGE)}")
    if verb != "target" and "target_bytes" not in status:
        app.note(f"this machine does not tell its target; counting from its balloon of {human(plan.actual)}")
    if dry_run:
        app.emit(plan.as_document(), render_plan)
        return 0
    client.execute("balloon", {"value": plan.ram - plan.after}, timeout=patience)
    if not wait:
        sent = {"outcome": "sent", "target_bytes": plan.after, "actual_bytes": plan.actual}
        app.emit(_both_figures(plan, "balloonctl/sent/1", sent), render_resize)
        return 0
    result = _wait(app, client, plan, timeout)
    app.emit(_both_figures(plan, "balloonctl/wait/1", result), render_resize)
    if result["outcome"] == "reached":
        return 0
    if result.get("reason") == "deadlocked":
        _show_circle(app, client)
    raise shortfall(result, status_of(client), timeout)


def _meet(app: App, *, start: bool, patience: float | None) -> tuple[Client, dict[str, Any]]:
    """The machine and its status.

    Raises:
        WaitTimeout: if it takes longer than `patience` seconds to answer.
    """
    begun = time.monotonic()
    try:
        client = app.client(start=start, timeout=patience)
        return client, status_of(client, patience)
    except MachineUnreachable as error:
        if patience is None or time.monotonic() - begun < patience:
            raise
        raise WaitTimeout(error.what, why=error.why, hint=error.hint) from None


def _both_figures(plan: Plan, schema: str, result: dict[str, Any]) -> dict[str, Any]:
    """The outcome with both figures: the balloon's size, and what is left to the guest."""
    return {
        **result,
        "schema": schema,
        "start_bytes": plan.actual,
        "ram_bytes": plan.ram,
        "guest_usable_bytes": plan.ram - result["actual_bytes"],
    }


def _wait(app: App, client: Client, plan: Plan, timeout: float | None) -> dict[str, Any]:
    """Waits with a progress bar; Ctrl-C ends the waiting and not the machine."""
    from balloonctl.progress import moving

    now = plan.actual
    direction = "deflating" if plan.after < plan.actual else "inflating"

    def on_actual(actual: int) -> None:
        nonlocal now
        now = actual
        advance(actual)

    try:
        with moving(app, direction, plan.actual, plan.after) as advance:
            return wait_for_target(
                client, ram_bytes=plan.ram, target_bytes=plan.after, timeout=timeout, on_actual=on_actual
            )
    except KeyboardInterrupt:
        raise Interrupted(
            "interrupted",
            why=f"the machine goes on towards its target of {human(plan.after)} (actual {human(now)})",
            hint=f"balloonctl target {now // PAGE}p keeps it where it was, balloonctl watch shows it",
        ) from None


def _show_circle(app: App, client: Client) -> None:
    """The deadlock report on stderr: the result has been printed, this explains the error."""
    report = deadlock_report(client)
    if report is not None and not app.settings.output.is_json:
        from balloonctl.render.deadlock import render_deadlock

        app.stderr.print(render_deadlock(report))


def _size_command(verb: str, text: str, size: SizeType) -> BalloonCommand:
    """One of the three commands."""

    @command(verb, help=text)
    @click.argument("size", type=size)
    @_options
    def run(app: App, /, **options: Any) -> int:
        return resize(app, verb, **options)

    run.instead_of_negative = "`deflate SIZE` makes the balloon smaller, `inflate SIZE` larger"
    return run


_SIZES = """

    SIZE is 64M or 64MiB (2^20), 64MB (10^6), bytes, 25% of the guest's memory, or 100p (pages of 4096 bytes).

    What is left to the guest is its memory minus the balloon."""

inflate = _size_command(
    "inflate",
    "Make the balloon larger BY a size: it takes that much memory from the guest and gives it to the host."
    + _SIZES,
    SizeType(),
)
deflate = _size_command(
    "deflate",
    "Make the balloon smaller BY a size: the guest gets that much memory back." + _SIZES,
    SizeType(),
)
target = _size_command(
    "target",
    "Make the balloon as large AS a size, whatever it is now; `target 0` gives everything back." + _SIZES,
    SizeType(zero=True),
)
