"""How fast the engines are on this machine: plain functions, also for `balloonctl bench explore`.

Run it: ``python tests/explore/bench_engines.py``.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

from balloonvq.explore import product
from balloonvq.explore.world import Bounds, Program, World
from balloonvq.runtime.controlled import Execution


def lock_rounds(actors: int, operations: int) -> Program:
    """Actors that lock and unlock one mutex; every operation is a scheduling point."""

    def build(rt: Any) -> None:
        mutex = rt.mutex("lock")

        def actor() -> None:
            for _ in range(operations // 2):
                mutex.lock()
                mutex.unlock()

        for index in range(actors):
            rt.spawn("ABCDEFGH"[index], "locks and unlocks", actor)

    return Program(f"{actors} actors x {operations} operations", build, Bounds(all_ops=True))


def executions_per_second(strategy: Any = None, seconds: float = 1.0) -> float:
    """Bare controlled executions of 2 actors x 30 operations; best of several turns.

    Args:
        strategy: None is the default policy.
        seconds: how long to measure.
    """
    world = World(lock_rounds(2, 30))
    Execution(world, strategy).run()
    best = 0.0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        started = time.perf_counter()
        for _ in range(200):
            Execution(world, strategy).run()
        best = max(best, 200 / (time.perf_counter() - started))
    return best


def uniform() -> Callable[..., Any]:
    """A strategy that draws every decision."""
    draw = random.Random(0).random
    return lambda found, _: found[int(draw() * len(found))]


def product_search(actors: int, turns: int = 3) -> tuple[int, float, float]:
    """(states, seconds of the search, seconds with learning and checks), best of several turns."""
    search = whole = float("inf")
    states = 0
    for _ in range(turns):
        started = time.perf_counter()
        verdict = product.explore(lock_rounds(actors, 30))
        whole = min(whole, time.perf_counter() - started)
        tables = product.Product(World(lock_rounds(actors, 30)))
        tables.start()
        for _ in range(2):
            started = time.perf_counter()
            product.Search(tables, product.Limits()).run()
            search = min(search, time.perf_counter() - started)
        tables.close()
        states = verdict.states
    return states, search, whole


def figures() -> Iterator[str]:
    """A line a figure."""
    yield f"bare executions, default policy: {executions_per_second():>10,.0f} /s"
    yield f"bare executions, random:         {executions_per_second(uniform()):>10,.0f} /s"
    for actors in (2, 3, 4):
        states, search, whole = product_search(actors)
        yield (
            f"{actors} actors x 30: {states:>8,} states; search {search * 1e3:8.1f} ms"
            f" = {states / search:>10,.0f} states/s; with learning and checks {whole * 1e3:8.1f} ms"
        )


if __name__ == "__main__":
    for line in figures():
        print(line)  # noqa: T201 - a program
