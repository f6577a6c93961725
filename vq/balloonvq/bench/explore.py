"""How fast the explorer is, beside SPIN where it is installed.

* ``executions``: controlled executions of two actors with 30 operations each, by the default policy: what a switch,
  an operation and the building of a program cost. Of many short turns the fastest counts; the median stands beside.
* ``search``: states a second that the product search finds, learning and checks included, with four actors of 30
  operations round one lock; the fastest of three.
* ``matrix``: every design in all its scenarios, by `jobs` processes.
* ``two actors``: its scenarios with two actors, one after the other in this process, and all of them five times; of
  each the fastest.
* ``cold deadlock``: from starting the command ``balloonctl explore coarse`` until its report of the deadlock of
  2017 is there.
* ``cold verdict`` and ``cold spin``: one scenario proved by the command, and its exported Promela model by
  SPIN, which generates, compiles and runs a verifier. Both find the same number of states. It is not the scenario of
  the deadlock, whose model has timers, and timers are not exported.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from balloonvq.bench.arena import chosen
from balloonvq.bench.measure import Against, Definition, Parameter, Row, Sample
from balloonvq.driver.designs import DESIGNS, find
from balloonvq.errors import BalloonError, InternalError
from balloonvq.explore import product, promela
from balloonvq.explore.parallel import Task, explore_all, processors
from balloonvq.explore.scenarios import SCENARIOS, program, scenarios_for
from balloonvq.explore.search import Limits
from balloonvq.explore.world import Bounds, Program, World
from balloonvq.runtime.execution import Execution

__all__ = ["BENCHMARK", "Explore", "lock_rounds"]

#: Design and scenario of the cold verdict: proved, without timers.
COLD = ("coarse", "two-ooms")

#: What the command prints of the deadlock of 2017.
DEADLOCK = b"oom-while-filling"

#: Seconds for which executions are counted in a round, and executions in a turn.
EXECUTIONS_S = 1.0
TURN = 100

#: What can be measured, each some rows.
PARTS = ("engine", "matrix", "pairs", "cold")

#: Searches of which the fastest counts.
SEARCHES = 3

#: Explorations of each scenario of two actors of which the fastest counts. Between two of them all others are explored:
#: what disturbs the machine for a second disturbs one of them.
EXPLORATIONS = 5


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


class Explore:
    """The explorer.

    Args:
        jobs: processes that explore the matrix; 0 is the number of processors.
        parts: what is measured: engine (executions and search), matrix, pairs (two actors), cold.
    """

    def __init__(self, jobs: int, parts: str) -> None:
        self.jobs = jobs or processors()
        self.tasks = [
            Task(design, scenario, {}, Limits())
            for design in DESIGNS
            for scenario in scenarios_for(find(design))
        ]
        self.wanted = chosen(parts, PARTS, "--parts")
        pairs = len(self._pairs())
        spin = "cold" in self.wanted and all(shutil.which(name) is not None for name in ("spin", "cc"))
        rows_of = {
            "engine": (
                Row(
                    "executions", "2 actors x 30 operations, default policy", "executions/s", better="higher"
                ),
                Row("search", "4 actors x 30 operations round one lock", "states/s", better="higher"),
            ),
            "matrix": (
                Row("matrix", f"all {len(self.tasks)} of {len(DESIGNS)} designs, {self.jobs} processes"),
            ),
            "pairs": (
                Row("two actors, slowest", f"of {pairs} scenarios, each alone"),
                Row("two actors, median", f"of {pairs} scenarios, each alone"),
            ),
            "cold": (
                Row("cold deadlock", "`explore coarse` until it reports the deadlock of 2017"),
                *([Row("cold spin", f"{' / '.join(COLD)} by SPIN: generate, compile, run")] if spin else []),
                Row(
                    "cold verdict",
                    f"`explore {COLD[0]} --scenario {COLD[1]}`",
                    against=(Against("cold spin"),) if spin else (),
                ),
            ),
        }
        self.rows = tuple(row for name in PARTS if name in self.wanted for row in rows_of[name])
        self._without_spin: tuple[str, ...] = (
            ("spin or cc is not installed, so nothing is held against it",)
            if "cold" in self.wanted and not spin
            else ()
        )
        self._slowest: tuple[str, ...] = ()
        self._spin = spin
        self._model = promela.export(program(find(COLD[0]), SCENARIOS[COLD[1]]))

    def _pairs(self) -> list[Task]:
        """The scenarios with two actors."""
        return [task for task in self.tasks if len(task.scenario.actors) == 2]

    @property
    def notes(self) -> tuple[str, ...]:
        """That SPIN is missing, and which scenario of two actors was the slowest in the last round."""
        return (*self._without_spin, *self._slowest)

    def close(self) -> None:
        """Nothing is kept."""

    def round(self) -> dict[str, Sample]:
        """Each once, or as often as its row says; what is long last."""
        found: dict[str, Sample] = {}
        if "engine" in self.wanted:
            found["executions"] = _executions()
            found["search"] = max((_search() for _ in range(SEARCHES)), key=lambda sample: sample.value)
        if "cold" in self.wanted:
            found["cold deadlock"] = Sample(_until(DEADLOCK, "explore", COLD[0], "--confirm", "0"))
            found["cold verdict"] = Sample(_until(b"", "explore", COLD[0], "--scenario", COLD[1]))
            if self._spin:
                found["cold spin"] = _spin(self._model)
        if "matrix" in self.wanted:
            found["matrix"] = self._matrix()
        if "pairs" in self.wanted:
            found |= self._two_actors()
        return found

    def _matrix(self) -> Sample:
        started = time.perf_counter_ns()
        with contextlib.closing(explore_all(self.tasks, jobs=self.jobs)) as results:
            all_ = list(results)
        elapsed = time.perf_counter_ns() - started
        states = sum(result.verdict.states for result in all_)
        return Sample(elapsed, {"scenarios": len(all_), "states": states})

    def _two_actors(self) -> dict[str, Sample]:
        pairs: dict[str, float] = {}
        for _ in range(EXPLORATIONS):
            for task in self._pairs():
                name = f"{task.design} / {task.scenario.name}"
                pairs[name] = min(pairs.get(name, math.inf), task.run().seconds * 1e9)
        slowest = max(pairs, key=pairs.__getitem__)
        self._slowest = (f"slowest scenario of two actors: {slowest}",)
        within = sum(ns <= 50e6 for ns in pairs.values())
        return {
            "two actors, slowest": Sample(pairs[slowest]),
            "two actors, median": Sample(
                statistics.median(pairs.values()), {"within_50_ms_share": within / len(pairs)}
            ),
        }


def _executions() -> Sample:
    """Bare executions a second: the fastest of many short turns, which nothing else on the machine disturbed."""
    world = World(lock_rounds(2, 30))
    Execution(world).run()
    rates = []
    end = time.perf_counter() + EXECUTIONS_S
    while (started := time.perf_counter()) < end:
        for _ in range(TURN):
            Execution(world).run()
        rates.append(TURN / (time.perf_counter() - started))
    return Sample(max(rates), {"median_per_s": statistics.median(rates)})


def _search() -> Sample:
    """States a second of a whole exploration."""
    started = time.perf_counter()
    verdict = product.explore(lock_rounds(4, 30))
    elapsed = time.perf_counter() - started
    return Sample(verdict.states / elapsed, {"states": verdict.states})


def _until(text: bytes, *arguments: str) -> int:
    """Nanoseconds from the start of the command until it has written this; its end, if that is nothing."""
    started = time.perf_counter_ns()
    with subprocess.Popen(
        [sys.executable, "-m", "balloonctl", *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        assert child.stdout is not None
        written = b""
        while not text or text not in written:
            some = os.read(child.stdout.fileno(), 1 << 16)
            if not some:
                break
            written += some
        elapsed = time.perf_counter_ns() - started
        child.kill()
    if text not in written or not written:
        raise InternalError(f"balloonctl {' '.join(arguments)} did not report what was waited for")
    return elapsed


def _spin(model: str) -> Sample:
    """SPIN's verdict about the model, and whether it is ours."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        (Path(folder) / "model.pml").write_text(model)
        steps = (
            ["spin", "-a", "model.pml"],
            ["cc", "-O2", "-w", "-DSAFETY", "-DNOREDUCE", "-o", "pan", "pan.c"],
            ["./pan", "-m1000000"],
        )
        started = time.perf_counter_ns()
        for step in steps:
            done = subprocess.run(step, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode:
                raise BalloonError(f"{step[0]} failed", why=(done.stderr or done.stdout).strip()[-200:])
        elapsed = time.perf_counter_ns() - started
    stored = re.search(r"(\d+) states, stored", done.stdout)
    ours = product.explore(program(find(COLD[0]), SCENARIOS[COLD[1]])).states
    if stored is None or int(stored[1]) != ours or "errors: 0" not in done.stdout:
        raise InternalError(
            "SPIN and the product search do not agree", why=f"{ours} states, and SPIN: {stored}"
        )
    return Sample(elapsed, {"states": ours})


BENCHMARK = Definition(
    "explore",
    "How fast the explorer is: executions, states, scenarios, and from the shell to a verdict, beside SPIN "
    "where it is installed.",
    Explore,
    (
        Parameter(
            "jobs",
            0,
            "Processes that explore the matrix; 0 is the number of processors.",
            kind="count",
            most=64,
        ),
        Parameter(
            "parts",
            ",".join(PARTS),
            "What is measured, with commas: the engine, the matrix, the pairs of actors, cold commands.",
        ),
    ),
    runs=1,
    warmup=0,
)
