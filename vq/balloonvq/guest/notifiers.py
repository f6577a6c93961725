"""Functions that the kernel calls when memory is short: OOM notifiers, shrinkers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from balloonvq.runtime import Runtime

__all__ = ["Notifiers"]

F = TypeVar("F", bound=Callable[..., int])


class Notifiers(Generic[F]):
    """A list of callbacks that are called by any task, many at once.

    As with the kernel's blocking notifier chains and its list of shrinkers, whoever takes a callback away
    waits until nobody is in it any more.
    """

    def __init__(self, runtime: Runtime, name: str) -> None:
        self._functions: tuple[F, ...] = ()
        self._callers = runtime.shared(f"in {name}")
        self._left = runtime.wait_queue(name)

    def append(self, function: F) -> None:
        """Registers a callback."""
        self._functions = (*self._functions, function)

    def remove(self, function: F) -> None:
        """Takes a callback away, and sleeps until nobody is inside any.

        Raises:
            ValueError: if it is not registered.
        """
        kept = list(self._functions)
        kept.remove(function)
        self._functions = tuple(kept)
        self._left.wait_until(lambda: self._callers.value == 0)

    def call(self, *arguments: int) -> int:
        """Calls all of them; returns the sum of what they freed."""
        if not self._functions:
            return 0
        # Counted before the list is read: `remove` changes the list and then looks at the count.
        self._callers.add(1)
        try:
            return sum(function(*arguments) for function in self._functions)
        finally:
            if self._callers.add(-1) == 0:
                self._left.wake_all()

    def __len__(self) -> int:
        return len(self._functions)

    def __iter__(self) -> Iterator[F]:
        return iter(self._functions)
