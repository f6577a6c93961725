"""Compaction, as far as the balloon feels it: isolate a balloon page, move it, or put it back."""

from __future__ import annotations

from collections.abc import Callable

from balloonvq.counters import CompactReport
from balloonvq.guest.kernel import Kernel
from balloonvq.guest.pages import Batch, Place

__all__ = ["compact"]


def compact(
    kernel: Kernel, migrate: Callable[[Batch, Batch], bool], pages: int | None = None
) -> CompactReport:
    """Moves balloon pages to other free pages.

    Args:
        kernel: whose pages.
        migrate: the driver's migration callback: migrate(new, old) returns False for
            EAGAIN. On success the old page belongs to the driver, which has
            released it.
        pages: most pages to try; at most as many as the balloon lists now, which None means.

    Returns:
        What became of each page.
    """
    isolated = migrated = refused = no_page = 0
    listed = kernel.pages.counts().listed
    tried = listed if pages is None else min(pages, listed)
    for _ in range(tried):
        old = kernel.pages.isolate()
        if old is None:
            break
        isolated += 1
        new = kernel.pages.take(1, Place.PRIVATE)
        if new is None:
            kernel.pages.putback(old)
            no_page += 1
            break
        if migrate(new, old):
            migrated += 1
        else:
            kernel.pages.putback(old)
            kernel.pages.free(new, Place.PRIVATE)
            refused += 1
    return CompactReport(isolated=isolated, migrated=migrated, refused=refused, no_page=no_page)
