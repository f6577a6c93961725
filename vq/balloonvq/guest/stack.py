"""The kernel stack of a task, as far as the way to an OOM notifier uses it up.

Nothing is really stored on a stack here. A step that would need room there says how many bytes, and for how
long; what a task needs at once is its depth.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from balloonvq.errors import KernelBug
from balloonvq.runtime import Runtime

__all__ = ["DEPTH_AT_RECLAIM_BYTES", "THREAD_SIZE_BYTES", "KernelStacks"]

#: THREAD_SIZE of x86-64 since Linux 3.15 (6538b8ea886e); it was 8 KiB before.
THREAD_SIZE_BYTES = 16 << 10

#: How deep a task is when reclaim or OOM calls a driver. An estimate: an allocation that was reached through a
#: file system and the block layer stood some 7,000 bytes deep in the trace that made 3.15 double the stack.
DEPTH_AT_RECLAIM_BYTES = 7 << 10


class KernelStacks:
    """The depth of each task's stack, and the greatest depth that was seen.

    Args:
        runtime: whose tasks.
        size_bytes: of each stack.
    """

    def __init__(self, runtime: Runtime, size_bytes: int = THREAD_SIZE_BYTES) -> None:
        self.size_bytes = size_bytes
        #: Deepest so far, of any task.
        self.peak_bytes = 0
        self._runtime = runtime

    @contextmanager
    def frame(self, size_bytes: int, what: str) -> Iterator[None]:
        """Makes the calling task's stack deeper for the length of a with block.

        Raises:
            KernelBug: if the stack does not hold that much more.
        """
        task = self._runtime.this_task()
        before = task.stack_bytes
        depth = before + size_bytes
        self.peak_bytes = max(self.peak_bytes, depth)
        if depth > self.size_bytes:
            raise KernelBug(
                "kernel stack overflow",
                why=f"{what} of task {task.name} needs {size_bytes} bytes, and {before} of {self.size_bytes} are in use",
            )
        task.stack_bytes = depth
        try:
            yield
        finally:
            task.stack_bytes = before
