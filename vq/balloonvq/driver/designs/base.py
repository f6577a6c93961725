"""What every locking design has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

from balloonvq.driver.balloon import PFNS_MAX, Balloon
from balloonvq.guest.pages import Batch

__all__ = ["Design"]


class Design(ABC):
    """A locking design, bound to one balloon.

    Args:
        vb: the balloon. Locks and PFN arrays are made here, as the driver does at probe.
        towards_target: pages that the host wants above (positive) or below what the
            driver holds.
        publish: writes num_pages into the configuration field `actual`.
        requeue: runs the size worker once more.
    """

    #: As the user types it.
    name: ClassVar[str]
    #: Which kernels had it.
    kernels: ClassVar[str]
    #: What it is known for, one line.
    summary: ClassVar[str]

    def __init__(
        self,
        vb: Balloon,
        *,
        towards_target: Callable[[], int],
        publish: Callable[[], None],
        requeue: Callable[[], None],
    ) -> None:
        self.vb = vb
        self.towards_target = towards_target
        self.publish = publish
        self.requeue = requeue

    @abstractmethod
    def fill(self, n: int) -> int:
        """Inflates by up to min(n, 256) pages; returns by how many."""

    @abstractmethod
    def leak(self, n: int) -> int:
        """Deflates by up to min(n, 256) pages; returns by how many."""

    @abstractmethod
    def migrate(self, new: Batch, old: Batch) -> bool:
        """Replaces the isolated page `old` by the private page `new`; False is EAGAIN.

        On success `old` has been released.
        """

    def on_oom(self) -> int:
        """The OOM notifier: returns the pages freed. Called with oom_lock held."""
        freed = self.leak(PFNS_MAX)
        self.publish()
        return freed

    def resize(self) -> None:
        """The size worker: one fill or leak, PUBLISH, and again while there is a difference."""
        difference = self.towards_target()
        if difference == 0:
            return
        if difference > 0:
            difference -= self.fill(difference)
        else:
            difference += self.leak(-difference)
        self.publish()
        if difference:
            self.requeue()
