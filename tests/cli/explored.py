"""Results of the explorer, written by hand."""

from __future__ import annotations

from balloonvq.explore.scenarios import Result, Scenario
from balloonvq.explore.timeline import Change, End, Line, Timeline
from balloonvq.explore.verdict import Bug, Kind, Outcome, Schedule, Verdict
from balloonvq.explore.world import Bounds

OOM = Scenario("oom-while-filling", "the worker fills while a task runs out of memory", ("W", "O"))
CALM = Scenario("fill-alone", "the worker fills, nobody else is there", ("W",))
CROWD = Scenario("oom-and-compaction", "four meet", ("W", "O", "P", "C"))


def line(
    step: int,
    actor: int | None,
    text: str,
    place: str = "",
    held: tuple[tuple[str, ...], ...] = ((), ()),
    change: Change | None = None,
    folded: int = 1,
) -> Line:
    changes = () if change is None else (change,)
    return Line(step, actor, text, place, held, changes, private=False, folded=folded)


DEADLOCK = Timeline(
    actors=(("W", "size worker: fill"), ("O", "GFP_NOFS allocation -> OOM notifier")),
    lines=(
        line(1, 0, "lock(balloon_lock)", "coarse.py:31", (("balloon_lock",), ())),
        line(
            1,
            0,
            "write(num_pages, 4)",
            "coarse.py:33",
            (("balloon_lock",), ()),
            Change("num_pages", "3", "4"),
        ),
        line(2, 0, "lock(zone)", "page_allocator.py:120", (("balloon_lock", "zone"), ())),
        line(
            2,
            0,
            "take(free_pages, 1)",
            "page_allocator.py:123",
            (("balloon_lock", "zone"), ()),
            Change("free_pages", "(1, 2, 3)", "(2, 3)"),
        ),
        line(2, 0, "unlock(zone)", "page_allocator.py:131", (("balloon_lock",), ())),
        line(2, 0, "finish(config) (+3)", "coarse.py:35", (("balloon_lock",), ()), folded=4),
        line(3, 1, "lock(fs_lock)", "reclaim.py:31", (("balloon_lock",), ("fs_lock",))),
        line(4, None, "time passes", held=(("balloon_lock",), ("fs_lock",))),
        line(5, 1, "lock(oom_lock)", "oom.py:35", (("balloon_lock",), ("fs_lock", "oom_lock"))),
    ),
    ends=(
        End(0, "waits for O", "lock(fs_lock)", "reclaim.py:44", ("balloon_lock",)),
        End(1, "waits for W", "lock(balloon_lock)", "coarse.py:52", ("fs_lock", "oom_lock")),
    ),
    loop=None,
)

CROWDED = Timeline(
    actors=(
        ("W", "size worker: fill"),
        ("O", "OOM caller, holds the filesystem lock"),
        ("P", "OOM caller"),
        ("C", "compaction"),
    ),
    lines=(
        line(1, 0, "lock(balloon_lock)", "coarse.py:31", (("balloon_lock",), (), (), ())),
        line(2, 1, "trylock(oom_lock) -> True", "oom.py:35", (("balloon_lock",), ("oom_lock",), (), ())),
        line(3, 2, "trylock(oom_lock) -> False", "oom.py:35", (("balloon_lock",), ("oom_lock",), (), ())),
        line(4, 3, "read(isolated_pages)", "compaction.py:7", (("balloon_lock",), ("oom_lock",), (), ())),
    ),
    ends=(
        End(0, "can go on", "lock(zone)", "zone.py:3", ("balloon_lock",)),
        End(1, "waits for W", "lock(balloon_lock)", "coarse.py:52", ("oom_lock",)),
        End(2, "finished", "", "", ()),
        End(3, "KernelBug: BUG() in balloon_page_putback: the page is on no list", "", "coarse.py:90", ()),
    ),
    loop=None,
)

PAGES = Timeline(
    actors=(("W", "size worker"), ("HI", "host, inflate queue")),
    lines=(
        line(
            1,
            0,
            "take(pages, PRIVATE)",
            "kernel.py:149",
            change=Change("pages", "0 listed (host), 1 free, 2 free", "0 listed (host), 1 private, 2 free"),
        ),
        line(
            2,
            1,
            "inflate(pages, (1, 2))",
            change=Change(
                "pages",
                "0 isolated (host), 1 private, 2 in_flight",
                "0 isolated (host), 1 private (host), 2 in_flight (host)",
            ),
        ),
        line(
            3,
            0,
            "isolate(pages)",
            "split.py:60",
            change=Change("pages", "0 listed (host), 1 listed (host)", "0 isolated (host), 1 listed (host)"),
        ),
    ),
    ends=(
        End(0, "KernelBug: BUG()", "", "split.py:61", ()),
        End(1, "can go on", "pop(inflate queue)", "", ()),
    ),
    loop=None,
)

LIVELOCK = Timeline(
    actors=(("W", "size worker"), ("O", "OOM caller")),
    lines=(
        line(1, 0, "read(target)", "split.py:20"),
        line(2, 1, "trylock(balloon_lock) -> True", "split.py:33", ((), ("balloon_lock",))),
        line(3, 1, "unlock(balloon_lock)", "split.py:39"),
    ),
    ends=(
        End(0, "can go on", "read(target)", "split.py:20", ()),
        End(1, "can go on", "trylock(balloon_lock)", "split.py:33", ()),
    ),
    loop=2,
)


def verdict(
    outcome: Outcome, *, bug: Bug | None = None, why: str = "", estimate: int | None = None
) -> Verdict:
    return Verdict(outcome, "P", "program", Bounds(), 1234, 5678, 0.25, bug, why, 17, estimate, 40)


def proved(scenario: Scenario = CALM, design: str = "coarse") -> Result:
    bounds = ("1 actor", "2 free pages", "batch 1")
    return Result(design, {}, scenario, verdict(Outcome.PROVED), None, None, bounds, 0.25)


def broken(
    scenario: Scenario = OOM,
    design: str = "coarse",
    timeline: Timeline = DEADLOCK,
    kind: Kind = Kind.DEADLOCK,
    what: str = "W waits in lock(fs_lock), O waits in lock(balloon_lock)",
    fewest: Timeline | None = None,
) -> Result:
    shortest = Schedule(((0, 0),) * timeline.lines[-1].step, 1, "length", timeline.loop)
    calm = None if fewest is None else Schedule(((0, 0),) * fewest.lines[-1].step, 0, "preemptions")
    return Result(
        design,
        {},
        scenario,
        verdict(Outcome.BUG, bug=Bug(kind, what, shortest, calm)),
        timeline,
        "bx1.k3f9.102.7c2a",
        ("2 actors",),
        0.25,
        fewest,
        None if fewest is None else "bx1.k3f9.311.0d4c",
    )


def unfinished(scenario: Scenario = CROWD, design: str = "coarse") -> Result:
    found = verdict(Outcome.INCOMPLETE, why="more than 1,000 states", estimate=123456)
    return Result(design, {}, scenario, found, None, None, ("4 actors",), 0.25)
