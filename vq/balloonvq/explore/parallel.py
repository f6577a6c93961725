"""Many scenarios at once: any `concurrent.futures.Executor` serves, processes of this machine by default.

A scenario is explored by one process from its first state to its verdict, so a verdict and its counts
do not depend on how many there are. Results come in the order of the tasks.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from balloonvq.errors import BalloonError, InvalidArgument
from balloonvq.explore import scenarios
from balloonvq.explore.scenarios import Result, Scenario
from balloonvq.explore.search import Limits, OnLayer

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future
    from multiprocessing.connection import Connection

    from balloonvq.explore.properties import Property

__all__ = ["Task", "Work", "connected", "explore_all", "processes", "processors"]

#: How long the scheduler of a cluster may take to answer.
CONNECT_S = 10


T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Work(Protocol[T_co]):
    """What can be done in another process."""

    def run(self, on_layer: OnLayer | None = None) -> T_co:
        """Does it; `on_layer` is told how far a search is."""


@dataclass(frozen=True, slots=True)
class Task:
    """One design in one scenario, in words that mean the same in another process."""

    design: str
    """As `balloonvq.driver.designs.find` takes it."""
    scenario: Scenario
    options: dict[str, str]
    limits: Limits
    write_to: Path | None = None
    """Where its search is kept, see `balloonvq.explore.checkpoint`."""
    resume: Path | None = None
    """The search that it goes on with."""
    only: Property | None = None
    """The property to judge, if not all."""

    def run(self, on_layer: OnLayer | None = None) -> Result:
        """Explores it."""
        from balloonvq.driver.designs import find

        kept: dict[str, Any] = {}
        if self.write_to is not None:
            kept["write_to"] = self.write_to
        if self.resume is not None:
            from balloonvq.explore.checkpoint import read

            kept["resume"] = read(self.resume)
        return scenarios.run(
            find(self.design),
            self.scenario,
            options=self.options,
            limits=self.limits,
            on_layer=on_layer,
            only=self.only,
            **kept,
        )


def processors() -> int:
    """How many processes can work at once here."""
    return len(os.sched_getaffinity(0))


def explore_all(
    tasks: Sequence[Work[T]],
    *,
    jobs: int = 1,
    executor: Executor | None = None,
    on_layer: OnLayer | None = None,
) -> Generator[T, None, None]:
    """The results of the tasks, in their order, each as soon as it is there.

    Close the iterator, or leave it before its end, and no process of it is left.

    Args:
        tasks: what is explored.
        jobs: how many processes explore, this one included.
        executor: explores all of them instead.
        on_layer: told how far a search is that runs in this process.

    Raises:
        BalloonError: whatever a task raises.
    """
    if executor is not None:
        yield from _spread(tasks, executor)
        return
    # The first result is there before other processes have begun.
    here = 1 if jobs > 1 else len(tasks)
    yield from (task.run(on_layer) for task in tasks[:here])
    if tasks[here:]:
        with processes(jobs - 1) as pool:
            yield from _spread(tasks[here:], pool, helps=True, on_layer=on_layer)


def _run(task: Work[T]) -> T:
    return task.run()


def _spread(
    tasks: Sequence[Work[T]], executor: Executor, *, helps: bool = False, on_layer: OnLayer | None = None
) -> Generator[T, None, None]:
    """All tasks to an executor; `helps` explores here, too, what nobody has begun yet."""
    with _undisturbed():
        futures = [executor.submit(_run, task) for task in tasks]
    mine: dict[int, T] = {}
    try:
        for number, future in enumerate(futures):
            while helps and number not in mine and not future.done():
                free = (later for later in range(number, len(tasks)) if futures[later].cancel())
                taken = next(free, None)
                if taken is None:
                    break
                mine[taken] = tasks[taken].run(on_layer)
            yield mine.pop(number) if number in mine else _result(future)
    finally:
        for future in futures:
            future.cancel()


def _result(future: Future[T]) -> T:
    from concurrent.futures import CancelledError

    try:
        return future.result()
    except CancelledError as error:
        raise BalloonError("a worker was lost", why=str(error) or "its task was cancelled") from error


# -- processes of this machine ---------------------------------------------------------


def _begin(alive: Connection) -> None:
    """In a worker: ends it when the other end of the pipe is closed, also by the death of who holds it.

    What a design prints goes to stderr: stdout is the results' of who started the worker.
    """
    sys.stdout = sys.stderr

    def wait() -> None:
        alive.poll(None)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def processes(count: int) -> Iterator[Executor]:
    """That many processes; when this ends, however it does, they end, too, whatever they are at."""
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    # A new interpreter each: a fork would copy locks that threads of this process hold.
    context = get_context("spawn")
    theirs, ours = context.Pipe(duplex=False)
    pool = ProcessPoolExecutor(count, mp_context=context, initializer=_begin, initargs=(theirs,))
    try:
        yield pool
    finally:
        ours.close()
        pool.shutdown(cancel_futures=True)
        theirs.close()


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Processes started in here are born deaf to Ctrl-C, which they must not answer; ours comes afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# -- other machines -----------------------------------------------------------------------


@contextmanager
def connected(name: str) -> Iterator[Executor]:
    """The executor of that name: ``dask:ADDRESS`` is the cluster whose scheduler listens there.

    Raises:
        InvalidArgument: for an unknown kind of executor.
        BalloonError: if dask.distributed is not installed, or nobody answers there.
    """
    kind, _, address = name.partition(":")
    if kind != "dask" or not address:
        raise InvalidArgument(
            f"there is no executor {name!r}", why="it is dask:ADDRESS", hint="--executor dask:tcp://host:8786"
        )
    try:
        distributed: Any = import_module("distributed")
    except ImportError as error:
        raise BalloonError(
            "dask.distributed is not installed",
            why=str(error),
            hint="pip install 'balloonctl[dask]', here and on the workers",
        ) from error
    try:
        client = distributed.Client(address, timeout=CONNECT_S, set_as_default=False)
    except (OSError, ValueError) as error:
        raise BalloonError(
            f"no scheduler answers at {address}", why=str(error), hint="dask scheduler; dask worker ADDRESS"
        ) from error
    with client, client.get_executor(pure=False, retries=0) as executor:
        yield executor
