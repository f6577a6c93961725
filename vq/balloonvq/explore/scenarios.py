"""Scenarios: which actors meet over how many pages; and the run of a design through one.

A scenario of one's own is a few lines:

    mine = Scenario("mine", "the worker fills while compaction moves", ("W", "C"), free=1, listed=1, target=2)
    print(run(find("modern"), mine).verdict.outcome)

What is wrong whenever it happens: a deadlock, BUG(), lost data, an early free, a wrong acknowledgement, a PFN array that
changes under the host, a full queue, a stack overflow, a negative count, a livelock. What may be looked for besides
is in `Scenario.checks`, since a design that fails one of these must not hide what else it does.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from balloonvq.driver.designs import Design, choose_options
from balloonvq.errors import InvalidArgument
from balloonvq.explore.invariants import CHECKS, GRADES, declare
from balloonvq.explore.model import STATISTICS, Attributes, Depth, Guest, Page
from balloonvq.explore.product import Keeping, explore
from balloonvq.explore.replay import encode
from balloonvq.explore.search import Limits, OnLayer
from balloonvq.explore.standstill import watched
from balloonvq.explore.suspects import suspected
from balloonvq.explore.timeline import Timeline, timeline
from balloonvq.explore.verdict import Verdict
from balloonvq.explore.world import Bounds, Program
from balloonvq.guest.compaction import compact
from balloonvq.guest.kernel import AllocationStuck
from balloonvq.guest.pages import Place
from balloonvq.guest.stack import DEPTH_AT_RECLAIM_BYTES
from balloonvq.guest.tasks import TaskKilled

if TYPE_CHECKING:
    from balloonvq.explore.checkpoint import Checkpoint
    from balloonvq.explore.properties import Property

__all__ = [
    "ACTORS",
    "PARTS",
    "SCENARIOS",
    "Result",
    "Scenario",
    "check_scenario",
    "combination",
    "fits_design",
    "program",
    "run",
    "scenarios_for",
]

#: Roles by the names of actors.
ACTORS = {
    "W": "size worker",
    "O": "OOM caller",
    "P": "another OOM caller",
    "C": "compaction",
    "U": "user",
    "K": "kswapd",
    "L": "reclaimer",
    "R": "teardown",
}

_FLAGS = frozenset({"nofs", "fs lock", "page locks", "lenient", "silent"})


@dataclass(frozen=True, slots=True)
class Scenario:
    """Who meets whom, over what."""

    name: str
    summary: str
    """One line."""
    actors: tuple[str, ...]
    """Keys of `ACTORS`."""
    free: int = 0
    """Pages on the free list at the start."""
    listed: int = 0
    """Pages in the balloon at the start."""
    target: int = 0
    """Pages that the host wants in it."""
    flags: frozenset[str] = frozenset()
    """nofs: OOM callers may neither enter the filesystem nor kill (no __GFP_FS).
    fs lock: OOM callers hold the filesystem lock.
    page locks: once somebody else holds the lock of the list's first page, or of all, so that trylock fails.
    lenient: a host that does as it is told, so that one sees what comes of it: programs find that data is lost.
    silent: a host may stop to acknowledge, a queue at a time, for good. Who then waits for it, or for somebody who
    does, does so in every kernel (wait_event has no timeout): that is no deadlock. All else must hold."""
    checks: frozenset[str] = frozenset({"count"})
    """count, actual, target: what must fit at rest. listed, in hand, in flight, freed by another, isolated: where
    pages may not be when OOM comes back with nothing."""
    turns: int = 2
    """Most runs of the size worker; 0 is as many as it likes."""
    rounds: int = 0
    """Fruitless OOM rounds after which a caller that may not kill gives up; 0 is never."""
    bounds: Bounds = field(default_factory=Bounds)
    thorough: bool = False
    """It takes long: run only if it is named, or with --thorough."""
    file: str = field(default="", compare=False)
    """The ``path/to/file.py:NAME`` that it was loaded from; empty if it was not."""

    @property
    def reference(self) -> str:
        """What `balloonvq.explore.load.find_scenario` finds it by."""
        return self.file or self.name


@dataclass(frozen=True, slots=True)
class Result:
    """What one design does in one scenario."""

    design: str
    options: dict[str, str]
    scenario: Scenario
    verdict: Verdict
    timeline: Timeline | None
    """Of the shortest schedule of a bug."""
    replay: str | None
    """Its replay string."""
    bounds: tuple[str, ...]
    """What the verdict holds for: actors, pages, batch."""
    seconds: float
    fewest_timeline: Timeline | None = None
    """Of the schedule with the fewest preemptions, where it preempts less than the shortest."""
    fewest_replay: str | None = None
    """Its replay string."""


def _shipped(*scenarios: Scenario) -> dict[str, Scenario]:
    return {scenario.name: scenario for scenario in scenarios}


_NOFS = frozenset({"nofs", "fs lock"})
_EMPTY_HANDED = GRADES - {"isolated"}
_LOCKS = frozenset({"page locks"})
_SILENT = frozenset({"silent"})
_TARGET = frozenset({"count", "actual", "target"})
_ONE_CPU = Bounds(one_cpu=True)

SCENARIOS: dict[str, Scenario] = _shipped(
    Scenario(
        "oom-while-filling",
        "the worker inflates while a GFP_NOFS allocation is out of memory",
        ("W", "O"),
        listed=1,
        target=2,
        flags=_NOFS,
    ),
    Scenario(
        "oom-while-filling-kernel",
        "the worker inflates while a GFP_KERNEL allocation is out of memory",
        ("W", "O"),
        free=1,
        listed=1,
        target=2,
    ),
    Scenario(
        "oom-while-leaking",
        "the worker deflates for the host while an allocation is out of memory",
        ("W", "O"),
        listed=2,
        target=1,
    ),
    Scenario(
        "oom-while-emptying",
        "the worker deflates the last page while an allocation is out of memory",
        ("W", "O"),
        listed=1,
        target=0,
    ),
    Scenario("two-ooms", "two allocations are out of memory at once", ("O", "P"), listed=2, target=2),
    Scenario(
        "compaction-while-filling",
        "the worker inflates while compaction moves a page",
        ("W", "C"),
        free=2,
        listed=1,
        target=2,
    ),
    Scenario(
        "compaction-while-leaking",
        "the worker deflates while compaction moves a page",
        ("W", "C"),
        free=1,
        listed=2,
        target=1,
    ),
    Scenario(
        "compaction-while-emptying",
        "the worker deflates the page that compaction moves",
        ("W", "C"),
        free=1,
        listed=1,
        target=0,
    ),
    Scenario(
        "compaction-oom",
        "compaction moves a page while an allocation is out of memory",
        ("C", "O"),
        free=1,
        listed=1,
        target=1,
        rounds=2,
    ),
    Scenario("teardown", "the driver is removed", ("R",), listed=2),
    Scenario(
        "teardown-oom",
        "the driver is removed while an allocation is out of memory",
        ("R", "O"),
        listed=2,
        rounds=2,
    ),
    Scenario(
        "teardown-compaction",
        "the driver is removed while compaction moves a page",
        ("R", "C"),
        free=1,
        listed=1,
    ),
    Scenario("fill-user", "the worker inflates beside a program", ("W", "U"), free=2, target=1),
    Scenario(
        "data-while-filling",
        "what a program keeps in its page, while the worker inflates and a host is lenient",
        ("W", "O"),
        free=1,
        listed=1,
        target=2,
        flags=frozenset({"lenient"}),
        checks=frozenset(),
    ),
    Scenario(
        "data-of-another",
        "what a program keeps in its page, while the worker inflates, OOM deflates, and a host is lenient",
        ("W", "O", "U"),
        free=1,
        listed=1,
        target=2,
        flags=frozenset({"lenient"}),
        checks=frozenset(),
        turns=1,
        thorough=True,
    ),
    Scenario(
        "actual-while-filling",
        "what the host reads at rest, after inflation beside OOM",
        ("W", "O"),
        free=1,
        listed=1,
        target=2,
        checks=frozenset({"count", "actual"}),
    ),
    Scenario(
        "actual-while-leaking",
        "what the host reads at rest, after deflation beside OOM",
        ("W", "O"),
        listed=2,
        target=1,
        checks=frozenset({"count", "actual"}),
    ),
    Scenario(
        "empty-handed-filling",
        "OOM gets something while the worker inflates",
        ("W", "O"),
        free=1,
        target=2,
        checks=_EMPTY_HANDED,
        turns=1,
    ),
    Scenario(
        "empty-handed-leaking",
        "OOM gets something while the worker deflates",
        ("W", "O"),
        listed=1,
        target=0,
        checks=_EMPTY_HANDED,
    ),
    Scenario(
        "empty-handed-compaction",
        "OOM gets something while compaction holds a page",
        ("C", "O"),
        listed=1,
        target=1,
        checks=frozenset({"isolated"}),
        rounds=2,
    ),
    Scenario(
        "shrinkers",
        "two reclaimers shrink the balloon at once",
        ("K", "L"),
        listed=2,
        target=2,
    ),
    Scenario(
        "shrinker-while-filling",
        "the worker inflates while kswapd shrinks the balloon",
        ("W", "K"),
        free=1,
        listed=1,
        target=2,
    ),
    Scenario(
        "shrinker-compaction",
        "kswapd shrinks the balloon while compaction holds its page",
        ("C", "K"),
        free=1,
        listed=1,
        target=1,
    ),
    Scenario(
        "page-locks-leaking",
        "the worker deflates, and a page's lock is somebody else's",
        ("W",),
        listed=2,
        target=0,
        flags=_LOCKS,
    ),
    Scenario(
        "page-locks-oom",
        "an allocation is out of memory while the worker deflates, and a page's lock is somebody else's",
        ("W", "O"),
        listed=2,
        target=1,
        flags=_LOCKS,
    ),
    Scenario(
        "page-locks-compaction",
        "compaction moves a page while the worker deflates, and a page's lock is somebody else's",
        ("W", "C"),
        free=1,
        listed=2,
        target=1,
        flags=_LOCKS,
    ),
    Scenario(
        "page-locks-teardown",
        "the driver is removed, and a page's lock is somebody else's",
        ("R",),
        listed=2,
        flags=_LOCKS,
    ),
    Scenario(
        "silent-host-filling",
        "the worker inflates beside OOM, and a host stops to acknowledge",
        ("W", "O"),
        free=1,
        listed=1,
        target=2,
        flags=_SILENT,
        turns=1,
    ),
    Scenario(
        "silent-host-leaking",
        "the worker deflates beside OOM, and a host stops to acknowledge",
        ("W", "O"),
        listed=2,
        target=1,
        flags=_SILENT,
    ),
    Scenario(
        "silent-host-compaction",
        "compaction moves a page beside OOM, and a host stops to acknowledge",
        ("C", "O"),
        free=1,
        listed=1,
        target=1,
        flags=_SILENT,
        rounds=2,
    ),
    Scenario(
        "silent-host-teardown",
        "the driver is removed, and a host stops to acknowledge",
        ("R", "C"),
        free=1,
        listed=1,
        flags=_SILENT,
    ),
    Scenario(
        "one-cpu-filling",
        "the worker inflates beside OOM, on one processor without preemption",
        ("W", "O"),
        free=1,
        listed=1,
        target=2,
        bounds=_ONE_CPU,
    ),
    Scenario(
        "one-cpu-leaking",
        "the worker deflates beside OOM, on one processor without preemption",
        ("W", "O"),
        listed=2,
        target=1,
        bounds=_ONE_CPU,
    ),
    Scenario(
        "one-cpu-compaction",
        "compaction moves a page beside OOM, on one processor without preemption",
        ("C", "O"),
        free=1,
        listed=1,
        target=1,
        rounds=2,
        bounds=_ONE_CPU,
    ),
    Scenario(
        "one-cpu-teardown",
        "the driver is removed beside compaction, on one processor without preemption",
        ("R", "C"),
        free=1,
        listed=1,
        bounds=_ONE_CPU,
    ),
    Scenario(
        "one-cpu-shrinker",
        "kswapd shrinks the balloon beside compaction, on one processor without preemption",
        ("C", "K"),
        free=1,
        listed=1,
        target=1,
        bounds=_ONE_CPU,
    ),
    Scenario(
        "target-filling",
        "the target is reached although a program holds a page for a while",
        ("W", "U"),
        free=2,
        target=2,
        checks=_TARGET,
        turns=0,
    ),
    Scenario(
        "target-filling-compaction",
        "the target is reached although compaction moves a page",
        ("W", "C"),
        free=2,
        listed=1,
        target=2,
        checks=_TARGET,
        turns=0,
    ),
    Scenario(
        "target-leaking",
        "the target is reached although compaction has a page",
        ("W", "C"),
        free=1,
        listed=2,
        target=0,
        checks=_TARGET,
        turns=0,
    ),
    Scenario(
        "target-shrinker",
        "the target is reached although kswapd shrinks the balloon",
        ("W", "K"),
        free=1,
        listed=1,
        target=2,
        checks=_TARGET,
        turns=0,
    ),
    Scenario(
        "fill-oom-user",
        "the worker inflates while an allocation is out of memory and a program uses a page",
        ("W", "O", "U"),
        free=1,
        listed=1,
        target=2,
        turns=1,
        thorough=True,
    ),
    Scenario(
        "fill-oom-compaction",
        "the worker inflates while an allocation is out of memory and compaction moves a page",
        ("W", "O", "C"),
        free=1,
        listed=1,
        target=2,
        checks=frozenset({"count", "actual"}),
        turns=1,
        rounds=2,
        thorough=True,
    ),
)


# -- combinations --------------------------------------------------------------------

_OOMS = {
    "oom": frozenset(),
    "oom-nofs": frozenset({"nofs"}),
    "oom-fs-lock": frozenset({"fs lock"}),
    "oom-nofs-fs-lock": frozenset({"nofs", "fs lock"}),
}

#: What a combination is made of: at most one of each group, in this order.
PARTS: tuple[Mapping[str, tuple[str, ...]], ...] = (
    {"fill": ("W",), "leak": ("W",), "teardown": ("R",)},
    dict.fromkeys(_OOMS, ("O",)),
    {"compaction": ("C",)},
    {"user": ("U",)},
    {"kswapd": ("K",), "shrinkers": ("K", "L")},
)

#: Most actors in one, beside the two of the host.
COMBINED_MAX = 4


def combination(name: str) -> Scenario | None:
    """The scenario that a name such as ``fill+oom-nofs+compaction`` stands for; None if it stands for none.

    All that may be checked is, except for what OOM comes back with: not where compaction holds pages too, since those
    it has taken to move others to look like those in fill's hand; not beside teardown, which unregisters the notifier
    first of all.
    """
    parts = name.split("+")
    actors: list[str] = []
    left = list(parts)
    for group in PARTS:
        if left and left[0] in group:
            actors += group[left.pop(0)]
    if left or len(actors) < 2 or len(actors) > COMBINED_MAX:
        return None
    oom = next((part for part in parts if part in _OOMS), None)
    others = len({"C", "U"} & {*actors})
    free, listed, target = others, 1, 1
    if "fill" in parts:
        # With few actors a page more than there is, so that fill has one in its hand when memory is out.
        free, target = 1 + others, 3 + others if len(actors) < COMBINED_MAX else 2
    elif "leak" in parts:
        listed = 2
    checks = {"count", "actual"}
    if oom and not {"C", "R"} & {*actors}:
        checks |= _EMPTY_HANDED
    return Scenario(
        name,
        f"{', '.join(parts)} at once",
        tuple(actors),
        free=free,
        listed=listed,
        target=target,
        flags=_OOMS[oom] if oom else frozenset(),
        checks=frozenset(checks),
        turns=1 if len(actors) > 2 else 2,
        rounds=2 if oom else 0,
        thorough=True,
    )


def _combinations() -> Iterator[Scenario]:
    for parts in product(*[(None, *group) for group in PARTS]):
        found = combination("+".join(filter(None, parts)))
        if found is not None and found.name not in SCENARIOS:
            yield found


def fits_design(design: type[Design], scenario: Scenario) -> bool:
    """Whether a scenario means something for a design: only shrinkers are called by reclaim."""
    return design.pressure == "shrinker" or not {"K", "L"} & {*scenario.actors}


def scenarios_for(design: type[Design] | None, *, thorough: bool = False) -> tuple[Scenario, ...]:
    """The shipped scenarios that mean something for a design.

    Args:
        design: its class; None is any design.
        thorough: those that take long, and all combinations of 2 to 4 actors, as well.
    """
    return tuple(
        scenario
        for scenario in (*SCENARIOS.values(), *(_combinations() if thorough else ()))
        if thorough or not scenario.thorough
        if design is None or fits_design(design, scenario)
    )


# -- actors ------------------------------------------------------------------------


def _worker(guest: Guest, scenario: Scenario) -> Callable[[], object]:
    def size_worker() -> None:
        for _ in range(scenario.turns):
            guest.again = False
            guest.design.resize()
            if not guest.again:
                break

    def goes_on() -> None:
        guest.again = True
        while guest.again:
            guest.again = False
            guest.design.resize()

    return size_worker if scenario.turns else goes_on


def _out_of_memory(guest: Guest, scenario: Scenario) -> Callable[[], object]:
    kernel = guest.kernel

    may_enter = "nofs" not in scenario.flags

    def allocates() -> None:
        try:
            if "fs lock" in scenario.flags:
                with kernel.fs_lock:
                    kernel.alloc(1, Place.USER, fs=may_enter)
            else:
                kernel.alloc(1, Place.USER, fs=may_enter)
        except (TaskKilled, AllocationStuck):
            pass

    def allocates_and_uses() -> None:
        try:
            page = cast("Page", kernel.alloc(1, Place.USER, fs=may_enter))
            guest.pages.write(page)
            guest.pages.check(page)
        except (TaskKilled, AllocationStuck):
            pass

    return allocates_and_uses if guest.lenient else allocates


def _compacts(guest: Guest, scenario: Scenario) -> Callable[[], object]:
    del scenario
    kernel = guest.kernel

    def compacts() -> None:
        # Who compacts is an allocation of its own, as deep in its stack as one that reclaims.
        with kernel.stacks.frame(DEPTH_AT_RECLAIM_BYTES, "the way to compaction"):
            compact(kernel, guest.design.migrate, pages=1)

    return compacts


def _uses(guest: Guest, scenario: Scenario) -> Callable[[], object]:
    del scenario

    def program_() -> None:
        page = guest.pages.take(1, Place.USER)
        if page is not None:
            guest.pages.write(page)
            guest.pages.check(page)
            guest.pages.free(page, Place.USER)

    return program_


def _reclaims(guest: Guest, scenario: Scenario) -> Callable[[], object]:
    del scenario
    return guest.kernel.reclaim_all


def _removes(guest: Guest, scenario: Scenario) -> Callable[[], object]:
    del scenario
    return guest.remove


_BODIES: dict[str, Callable[[Guest, Scenario], Callable[[], object]]] = {
    "W": _worker,
    "O": _out_of_memory,
    "P": _out_of_memory,
    "C": _compacts,
    "U": _uses,
    "K": _reclaims,
    "L": _reclaims,
    "R": _removes,
}


#: Which type each field of a scenario is of, and how it is written.
_TYPES: dict[str, tuple[type, str]] = (
    dict.fromkeys(("name", "summary"), (str, "a string"))
    | dict.fromkeys(("free", "listed", "target", "turns", "rounds"), (int, "an integer"))
    | {
        "actors": (tuple, 'a tuple of strings, such as ("W", "O")'),
        "flags": (AbstractSet, 'a set of strings, such as frozenset({"nofs"})'),
        "checks": (AbstractSet, 'a set of strings, such as frozenset({"count"})'),
        "bounds": (Bounds, "balloonvq.explore.world.Bounds(...)"),
        "thorough": (bool, "True or False"),
    }
)


def _check_types(scenario: Scenario) -> None:
    """Refuses fields of another type; without this, the first use of one is an error of balloonvq's."""
    for name, (kind, written) in _TYPES.items():
        value = getattr(scenario, name)
        of_type = isinstance(value, kind) and (kind is not int or not isinstance(value, bool))
        inside = value if of_type and kind in {tuple, AbstractSet} else ()
        if not of_type or not all(isinstance(one, str) for one in inside):
            raise InvalidArgument(
                f"{name} of scenario {scenario.name} is {value!r}", why=f"it has to be {written}"
            )


def check_scenario(scenario: Scenario) -> None:
    """Refuses what no guest can be.

    Raises:
        InvalidArgument: for a field of another type, an unknown actor, flag or check, actors that never meet, or none.
    """
    _check_types(scenario)
    for given, known, what in (
        ({*scenario.actors}, ACTORS.keys(), "actor"),
        (scenario.flags, _FLAGS, "flag"),
        (scenario.checks, CHECKS | GRADES, "check"),
    ):
        unknown = sorted(given - known)
        if unknown:
            raise InvalidArgument(
                f"scenario {scenario.name} has an unknown {what} {unknown[0]!r}",
                why=f"there are {', '.join(sorted(known))}",
            )
    if {"W", "R"} <= {*scenario.actors}:
        raise InvalidArgument(
            f"scenario {scenario.name} has a size worker and a teardown at once",
            why="the driver cancels its work before it is removed",
        )
    if not scenario.actors or len({*scenario.actors}) < len(scenario.actors):
        raise InvalidArgument(
            f"scenario {scenario.name} has {'no actors' if not scenario.actors else 'an actor twice'}",
            why="it needs one of each at least once and at most once",
        )
    if min(scenario.free, scenario.listed, scenario.target, scenario.turns, scenario.rounds) < 0:
        raise InvalidArgument(f"scenario {scenario.name} has a number below 0")
    if not scenario.free + scenario.listed:
        raise InvalidArgument(f"scenario {scenario.name} has no pages", why="free and listed are both 0")


def _check_design(design: type[Design], scenario: Scenario) -> None:
    """Refuses a design that a scenario means nothing for."""
    check_scenario(scenario)
    if not fits_design(design, scenario):
        raise InvalidArgument(
            f"scenario {scenario.name} reclaims, and the design {design.name} has no shrinker"
        )


def program(
    design: type[Design],
    scenario: Scenario,
    options: Mapping[str, str] | None = None,
    deepest: Depth | None = None,
) -> Program:
    """A design in a scenario, for any engine.

    Args:
        design: its class.
        scenario: shipped, or one's own.
        options: of the design, where they are not to be the default.
        deepest: told how deep stacks get.

    Raises:
        InvalidArgument: if the scenario makes no sense, or the design has no such option.
    """
    _check_design(design, scenario)
    chosen = choose_options(design, options or {})
    attributes = Attributes()

    def build(runtime: Any) -> None:
        guest = Guest(
            runtime,
            design,
            chosen,
            actors=scenario.actors,
            free=scenario.free,
            listed=scenario.listed,
            target=scenario.target,
            removable="R" in scenario.actors,
            rounds=scenario.rounds,
            grades=scenario.checks & GRADES,
            lenient="lenient" in scenario.flags,
            silent="silent" in scenario.flags,
            locked=1 if "page locks" in scenario.flags else 0,
            deepest=deepest,
            attributes=attributes,
        )
        for actor in scenario.actors:
            runtime.spawn(actor, ACTORS[actor], _BODIES[actor](guest, scenario))
        runtime.spawn("HI", "host, inflate queue", guest.host_inflates, daemon=True, repeats=True)
        runtime.spawn("HD", "host, deflate queue", guest.host_deflates, daemon=True, repeats=True)
        declare(runtime, guest, scenario.checks)

    settings = "".join(f" {option}={value}" for option, value in sorted(chosen.items()))
    return Program(
        f"{design.name or design.__name__}{settings} / {scenario.name}",
        build,
        bounds=scenario.bounds,
        statistics=STATISTICS,
        shipped=design.__module__.startswith("balloonvq."),
    )


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _bounds(scenario: Scenario) -> tuple[str, ...]:
    found = [
        f"{_plural(len(scenario.actors), 'actor')} and two host queues",
        _plural(scenario.free + scenario.listed, "page"),
        "batches of 1",
    ]
    if "W" in scenario.actors:
        turns = _plural(scenario.turns, "turn") if scenario.turns else "any number of turns"
        found.append(f"{turns} of the size worker")
    if scenario.rounds:
        found.append(_plural(scenario.rounds, "fruitless OOM round"))
    flags = ("one_cpu", "explore_time", "all_ops")
    found.extend(flag.replace("_", " ") for flag in flags if getattr(scenario.bounds, flag))
    return tuple(found)


def run(
    design: type[Design],
    scenario: Scenario,
    *,
    options: Mapping[str, str] | None = None,
    limits: Limits | None = None,
    on_layer: OnLayer | None = None,
    write_to: Path | None = None,
    resume: Checkpoint | None = None,
    only: Property | None = None,
) -> Result:
    """Explores one design in one scenario, to its first bug.

    Args:
        design: its class.
        scenario: shipped, or one's own.
        options: of the design, where they are not to be the default.
        limits: where to give up, with the verdict INCOMPLETE.
        on_layer: told how far the search is.
        write_to: where the search is kept, to go on from when it is given up.
        resume: such a search.
        only: the property to judge, beyond bugs that break others; such a search is not kept.

    Raises:
        InvalidArgument: see `program`.
        Nondeterminism: if the design keeps shared state outside of the runtime's objects.
        DesignError: if the design does not come to its next step.
    """
    started = time.monotonic()
    explored = program(design, scenario, options)
    keeping = None
    if write_to is not None or resume is not None:
        import inspect

        from balloonvq.explore.checkpoint import identity

        keeping = Keeping(identity(explored, Path(inspect.getfile(design))), write_to, resume)
    shown = text = fewest_shown = fewest_text = None
    with watched(), suspected(design):
        if only is None:
            verdict = explore(explored, limits or Limits(), on_layer=on_layer, keeping=keeping)
        else:
            from balloonvq.explore.properties import judge

            verdict = judge(explored, only, limits or Limits())
        if verdict.bug is not None:
            shortest, fewest = verdict.bug.shortest, verdict.bug.fewest_preemptions
            shown = timeline(explored, shortest.decisions, loop=shortest.loop)
            text = encode(explored, shortest)
            if fewest is not None and fewest.preemptions < shortest.preemptions:
                fewest_shown = timeline(explored, fewest.decisions)
                fewest_text = encode(explored, fewest)
    return Result(
        design=design.name or design.__name__,
        options=choose_options(design, options or {}),
        scenario=scenario,
        verdict=verdict,
        timeline=shown,
        replay=text,
        bounds=_bounds(scenario),
        seconds=time.monotonic() - started,
        fewest_timeline=fewest_shown,
        fewest_replay=fewest_text,
    )
