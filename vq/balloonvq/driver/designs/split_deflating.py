"""split-deflating: split with the flag that the thread proposes for concurrent deflation (2017, never merged).

To the question whether two leaks at once are needed at all, Wei Wang answered with a flag: who finds it set waits
until it is clear and counts what the other one released. The flag is read and written in separate steps, so two may
find it clear. Who waits for it spins, with oom_lock held. Counted is a difference of num_pages, which fill
changes as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from balloonvq.driver.balloon import PFNS_MAX
from balloonvq.driver.designs.split import Split

__all__ = ["SplitDeflating"]


class SplitDeflating(Split):
    """A flag keeps a second leaker out of the body of leak, nearly always."""

    name = "split-deflating"
    kernels = "proposed in 2017"
    summary = "split, and a test-and-set of two steps: a second leaker spins, and counts what was not its own"
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {
        # What a leaker that has waited does: count what the other released (as the text says), or go on and leak as
        # well (as the code is).
        "waiter": ("return", "fall-through"),
    }

    def probe(self) -> None:
        """The locks of split, and the flag."""
        super().probe()
        self.deflating = self.vb.runtime.shared("deflating")

    def leak(self, n: int) -> int:
        """[READ flag], and either wait for it to clear, or [flag := 1] and leak."""
        vb = self.vb
        if self.deflating.value:
            before = vb.num_pages.value
            while self.deflating.value:
                vb.runtime.cpu_relax()
            counted = before - vb.num_pages.value
            if self.option["waiter"] == "return":
                return counted
        else:
            self.deflating.value = 1
        leaked = super().leak(n)
        self.deflating.value = 0
        return leaked

    def on_oom(self) -> int:
        """Leak with the flag, PUBLISH."""
        freed = self.leak(PFNS_MAX)
        self.publish()
        return freed
