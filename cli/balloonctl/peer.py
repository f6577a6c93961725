"""The questions that every machine answers, ours or QEMU.

Our machines have verbs of their own (`x-status`, `x-wait` ...). A QEMU knows
only `balloon` and `query-balloon`; what can be learned from those is put into
the same documents, and what cannot is left out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from balloonctl.render.units import PAGE
from balloonvq.errors import BalloonError, CommandFailed

if TYPE_CHECKING:
    from balloonvq.qmp.client import Client, OnEvent

__all__ = ["ForeignPeer", "ask", "deadlock_report", "is_unknown_verb", "status_of", "wait_for_target"]

#: Seconds without any change after which a foreign guest counts as stalled.
STALLED_AFTER = 10.0

_POLL = 0.2

#: Seconds that a machine has to tell how its own wait ended.
_GRACE = 1.0


class ForeignPeer(BalloonError):
    """The peer is a QMP server, but not one of our machines."""


def is_unknown_verb(error: BaseException) -> bool:
    """Whether the peer does not know the verb at all."""
    return isinstance(error, CommandFailed) and error.error_class == "CommandNotFound"


def ask(
    client: Client, verb: str, arguments: Mapping[str, Any] | None = None, *, on_event: OnEvent | None = None
) -> Any:
    """Runs one of our own verbs.

    Raises:
        ForeignPeer: if the peer does not have it.
    """
    try:
        return client.execute(verb, arguments, on_event=on_event)
    except CommandFailed as error:
        if not is_unknown_verb(error):
            raise
        raise ForeignPeer(
            "this machine cannot do that",
            why=f"its QMP server has no command {verb}; it is not a balloonctl machine",
            hint="inflate, deflate, target, status and watch work with every QMP server",
        ) from error


def status_of(client: Client, timeout: float | None = None) -> dict[str, Any]:
    """The status document; from a foreign peer, the members that QMP's own commands tell.

    Raises:
        WaitTimeout: if the machine does not answer within `timeout` seconds.
    """
    try:
        document: dict[str, Any] = client.execute("x-status", timeout=timeout)
    except CommandFailed as error:
        if not is_unknown_verb(error):
            raise
        return _foreign_status(client)
    return document


def _foreign_status(client: Client) -> dict[str, Any]:
    """A status from query-balloon, query-status and query-memory-size-summary."""
    left = int(client.execute("query-balloon")["actual"])
    ram = None
    try:
        summary = client.execute("query-memory-size-summary")
        ram = int(summary["base-memory"]) + int(summary.get("plugged-memory", 0))
    except CommandFailed:
        pass
    document: dict[str, Any] = {
        "schema": "balloonctl/status/1",
        "state": str(client.execute("query-status").get("status", "running")),
        "guest_usable_bytes": left,
        "monotonic_ns": time.monotonic_ns(),
    }
    if ram is not None:
        document |= {"ram_bytes": ram, "actual_bytes": ram - left, "actual_pages": (ram - left) // PAGE}
    return document


def deadlock_report(client: Client) -> dict[str, Any] | None:
    """The circle of waiting tasks, if there is one."""
    try:
        report: dict[str, Any] | None = client.execute("x-deadlock")
    except CommandFailed as error:
        if not is_unknown_verb(error):
            raise
        return None
    return report


def wait_for_target(
    client: Client,
    *,
    ram_bytes: int,
    target_bytes: int,
    timeout: float | None,
    on_actual: Callable[[int], None],
) -> dict[str, Any]:
    """Waits until the balloon has its target or will not get there.

    Args:
        client: the machine.
        ram_bytes: the guest's memory, to turn what is left into the balloon's size.
        target_bytes: what we wait for; a foreign peer does not tell it.
        timeout: seconds, None for ever.
        on_actual: told the balloon's size in bytes whenever it changes.

    Returns:
        A ``balloonctl/wait/1`` document.
    """

    def on_event(name: str, data: Any) -> None:
        if name == "BALLOON_CHANGE":
            on_actual(ram_bytes - int(data["actual"]))

    # A machine of this process cannot be stopped without us, and its clock may not be ours.
    patience = None if timeout is None or client.is_local else timeout + _GRACE
    limit = {} if timeout is None else {"timeout": timeout}
    try:
        result: dict[str, Any] = client.execute("x-wait", limit, on_event, patience)
    except CommandFailed as error:
        if not is_unknown_verb(error):
            raise
        return _poll(client, ram_bytes, target_bytes, timeout, on_actual)
    return result


def _poll(
    client: Client, ram_bytes: int, target_bytes: int, timeout: float | None, on_actual: Callable[[int], None]
) -> dict[str, Any]:
    """The same with query-balloon, woken by events or every 200 ms."""
    begun = changed = time.monotonic()
    last = -1
    while True:
        actual = ram_bytes - int(client.execute("query-balloon")["actual"])
        now = time.monotonic()
        if actual != last:
            last, changed = actual, now
            on_actual(actual)
        outcome, reason = "", None
        if actual == target_bytes:
            outcome = "reached"
        elif timeout is not None and now - begun >= timeout:
            outcome = "timeout"
        elif now - changed >= STALLED_AFTER:
            outcome, reason = "short", "driver-stalled"
        if outcome:
            return {
                "schema": "balloonctl/wait/1",
                "outcome": outcome,
                "reason": reason,
                "target_bytes": target_bytes,
                "actual_bytes": actual,
                "elapsed_ns": int((now - begun) * 1e9),
            }
        rest = _POLL if timeout is None else max(0.01, min(_POLL, begun + timeout - now))
        next(iter(client.events(rest)), None)
