"""What must hold, beyond what the model's own steps refuse.

The pages, the queues and the arrays raise where a step breaks ownership (`balloonvq.explore.model`): that is where most
invariants of docs/explanation/locking.md are. Here are those that need a look from outside.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from balloonvq.explore.model import counts

if TYPE_CHECKING:
    from balloonvq.explore.model import Guest
    from balloonvq.runtime.controlled import ControlledRuntime

__all__ = ["CHECKS", "GRADES", "declare"]

#: What may be checked at rest.
CHECKS = frozenset({"count", "actual", "target"})

#: Where pages may be when OOM comes back with nothing.
GRADES = frozenset({"listed", "in hand", "in flight", "freed by another", "isolated"})


def _counted(num_pages: int, pages: Any) -> bool:
    listed, isolated, host = counts(pages)
    return num_pages == listed + isolated == host


def declare(runtime: ControlledRuntime, guest: Guest, checks: frozenset[str]) -> None:
    """Declares the invariants of a guest."""
    num_pages = guest.vb.num_pages
    runtime.invariant("num_pages is below 0", lambda value: value >= 0, num_pages)
    if "count" in checks:
        runtime.invariant(
            "num_pages is not what is listed and isolated, or not what the host has",
            _counted,
            num_pages,
            guest.pages.object,
            at_rest=True,
        )
    if "actual" in checks:
        runtime.invariant(
            "actual is stale", lambda told, held: told == held, guest.actual, num_pages, at_rest=True
        )
    if "target" in checks:
        runtime.invariant(
            "the target is not reached", lambda held: held == guest.target, num_pages, at_rest=True
        )
    if guest.removable:
        runtime.invariant(
            "the driver is gone and the host has pages of it",
            lambda pages: not counts(pages)[2],
            guest.pages.object,
            at_rest=True,
        )
