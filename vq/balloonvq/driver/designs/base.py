"""What every locking design has."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import ClassVar, Literal

from balloonvq.driver.balloon import PFNS_MAX, Balloon
from balloonvq.errors import InvalidArgument
from balloonvq.guest.pages import Batch

__all__ = ["Design", "choose_options"]


class Design(ABC):
    """A locking design, bound to one balloon.

    Args:
        vb: the balloon.
        towards_target: pages that the host wants above (positive) or below what the
            driver holds.
        publish: writes num_pages into the configuration field `actual`: PUBLISH, two steps.
        requeue: runs the size worker once more.
        options: one of the allowed values for each option that is not to be the default.

    Attributes:
        vb, towards_target, publish, requeue: as above.
        option: the value of each option.
    """

    #: As the user types it.
    name: ClassVar[str] = ""
    #: Which kernels had it.
    kernels: ClassVar[str] = ""
    #: What it is known for, one line.
    summary: ClassVar[str] = ""
    #: Allowed values by option; the first is the default.
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    #: What calls it when memory is short: the OOM notifier (`on_oom`) or reclaim's shrinkers (`scan`).
    pressure: ClassVar[Literal["notifier", "shrinker"]] = "notifier"

    def __init__(
        self,
        vb: Balloon,
        *,
        towards_target: Callable[[], int],
        publish: Callable[[], None],
        requeue: Callable[[], None],
        **options: str,
    ) -> None:
        self.vb = vb
        self.towards_target = towards_target
        self.publish = publish
        self.requeue = requeue
        self.option = choose_options(type(self), options)
        self.probe()

    def probe(self) -> None:  # noqa: B027 - a design may need nothing
        """Makes locks, shared words and PFN arrays, as a driver does at probe."""

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

    def scan(self, nr: int) -> int:
        """The shrinker: frees some `nr` pages and returns how many. Called by any reclaimer, many at once."""
        raise NotImplementedError

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

    def drain(self) -> None:
        """Teardown: leaks until num_pages is 0.

        The kernel's loop spins while compaction holds the last pages; this one gives way.
        """
        vb = self.vb
        while vb.num_pages.value:
            if not self.leak(vb.num_pages.value):
                vb.runtime.relax()


def choose_options(design: type[Design], given: Mapping[str, str]) -> dict[str, str]:
    """The value of each of a design's options.

    Raises:
        InvalidArgument: for an option or a value that the design does not know, with the near ones.
    """
    called = design.name or design.__name__
    for name, value in given.items():
        if name not in design.options:
            near = difflib.get_close_matches(name, design.options)
            known = ", ".join(f"{option}={'|'.join(values)}" for option, values in design.options.items())
            raise InvalidArgument(
                f"the design {called} has no option {name!r}",
                why=f"its options are {known}" if known else "it has no options",
                hint=f"--set {near[0]}={value}" if near else "",
            )
        if value not in design.options[name]:
            near = difflib.get_close_matches(value, design.options[name])
            raise InvalidArgument(
                f"option {name} of the design {called} cannot be {value!r}",
                why=f"its values are {', '.join(design.options[name])}",
                hint=f"--set {name}={near[0]}" if near else "",
            )
    return {name: given.get(name, values[0]) for name, values in design.options.items()}
