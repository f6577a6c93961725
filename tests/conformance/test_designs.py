"""Every locking design on real threads: what all of them keep, and what some are known to break."""

from __future__ import annotations

import contextlib
import itertools
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.machines import MIB, running, settle, small
from support.waiting import until

from balloonvq import machine as machine_module
from balloonvq.driver.designs import DESIGNS, Design, choose_options, find
from balloonvq.errors import DesignError, InvalidArgument, KernelBug
from balloonvq.guest.stack import DEPTH_AT_RECLAIM_BYTES, THREAD_SIZE_BYTES
from balloonvq.guest.tasks import UserTask
from balloonvq.machine import Machine

INFLATE, DEFLATE = 1, 2  # bits of stall_queues
PAGE = 4096
SECOND = 1_000_000_000


def option_sets(name: str) -> list[dict[str, str]]:
    options = find(name).options
    return [
        dict(zip(options, values, strict=True))
        for values in itertools.product(*options.values())
        # Where num_pages grows is a question of insert=late only.
        if values[:2] != ("early", "before")
    ]


SETS = [
    pytest.param(name, chosen, id="-".join([name, *chosen.values()]))
    for name in DESIGNS
    for chosen in option_sets(name)
]


def at_rest(machine: Machine) -> None:
    """All records of the balloon agree."""
    until(lambda: not machine.driver.resizing)
    counts = machine.pages.counts()
    pages = machine.driver.vb.num_pages.value
    assert counts.listed + counts.isolated == pages
    assert machine.device.counters().held_pages == pages
    assert machine.actual_pages == pages
    assert (counts.private, counts.in_flight, counts.violations) == (0, 0, 0)
    assert counts.free + counts.kernel + counts.user + pages == machine.memory.size_pages
    feature = machine.config.deflate_on_oom
    assert counts.managed == machine.memory.size_pages - (0 if feature else pages)


def remove(machine: Machine) -> None:
    """Takes the driver away, with nothing left behind."""
    with machine.runtime.adopted("R", "remove"):
        machine.driver.remove()
    counts = machine.pages.counts()
    assert (counts.listed, counts.isolated, counts.private, counts.in_flight) == (0, 0, 0, 0)
    assert machine.device.status == 0
    assert len(machine.kernel.notifiers) == len(machine.kernel.shrinkers) == 0


# -- what every design does -------------------------------------------------------


@pytest.mark.parametrize(("design", "options"), SETS)
def test_each_design_does_its_work(design: str, options: dict[str, str]) -> None:
    with running(design=design, design_options=options) as machine:
        for pages in (1, 256, 2000, 700, 0, 1500):
            settle(machine, pages)
            at_rest(machine)
        report = machine.compact(300)
        assert (report.isolated, report.migrated) == (300, 300)
        at_rest(machine)
        remove(machine)


@pytest.mark.parametrize(("design", "options"), SETS)
@pytest.mark.parametrize("fs", [True, False], ids=["fs", "nofs"])
def test_each_design_relieves_a_task_that_is_out_of_memory(
    design: str, options: dict[str, str], fs: bool
) -> None:
    with running(design=design, design_options=options) as machine:
        settle(machine, 2000)
        report = machine.oom(gfp_fs=fs)
        # With a shrinker it does not come to OOM.
        by_shrinker = find(design).pressure == "shrinker"
        assert report.outcome == ("fitted" if by_shrinker else "relieved")
        assert report.killed is None
        assert report.lost_pages == 0
        assert machine.driver.vb.num_pages.value <= 1000
        assert machine.kernel.stacks.peak_bytes >= DEPTH_AT_RECLAIM_BYTES
        if not by_shrinker:
            # Two reclaimers may have written `actual` in the wrong order.
            at_rest(machine)
        settle(machine, 1800)
        at_rest(machine)


@pytest.mark.parametrize(("design", "options"), SETS)
def test_only_coarse_deadlocks_when_memory_runs_out_while_it_fills(
    design: str, options: dict[str, str]
) -> None:
    with small(design=design, design_options=options) as machine:
        settle(machine, 1000)
        report = machine.oom(while_filling=True)
        if design == "coarse":
            assert report.outcome == "deadlocked"
            assert report.deadlock is not None
            assert {task.task for task in report.deadlock.tasks} == {"W", "O"}
            return
        assert report.outcome == ("fitted" if design == "shrinker" else "relieved")
        assert report.killed is None
        machine.wait(5 * SECOND)
        settle(machine, 500)
        if not design.startswith("split"):
            # There the notifier may have given pages back before the host had taken them.
            at_rest(machine)


@pytest.mark.parametrize("design", DESIGNS)
def test_without_the_feature_no_design_helps_in_oom_and_managed_pages_follow(design: str) -> None:
    with running(design=design, deflate_on_oom=False) as machine:
        settle(machine, 2000)
        at_rest(machine)
        assert machine.oom(8 * MIB).outcome == "killed"
        assert machine.actual_pages == 2000
        at_rest(machine)
        remove(machine)


@pytest.mark.parametrize("design", ["coarse", "upstream", "modern", "reference"])
def test_one_lock_designs_keep_everything_under_load(design: str) -> None:
    with running(design=design, fragmented=True, ram_bytes=8 * MIB) as machine:
        end = time.monotonic() + 0.7
        errors: list[BaseException] = []

        def repeat(what: Any) -> None:
            try:
                while time.monotonic() < end:
                    what()
            except BaseException as error:  # noqa: BLE001 - shown below
                errors.append(error)

        targets = itertools.cycle([1200, 100, 900, 0, 1000])

        def resize() -> None:
            machine.set_target(next(targets))
            time.sleep(0.003)

        # Small enough that coarse's fill does not have to reclaim.
        verbs = [resize, lambda: machine.compact(20), lambda: machine.oom(MIB), machine.check]
        threads = [threading.Thread(target=repeat, args=(verb,)) for verb in verbs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert machine.trouble is None
        if design == "reference":
            machine.wait(5 * SECOND)
            at_rest(machine)  # even without a last turn of the size worker
        settle(machine, 300)
        at_rest(machine)
        remove(machine)


# -- what some break ---------------------------------------------------------------


@contextlib.contextmanager
def oom_beside_a_stalled_queue(
    machine: Machine, queue: int, target: int, pages: int, seen: Any
) -> Iterator[list[Any]]:
    """The size worker waits for a queue that does not answer, and a task is out of memory meanwhile."""
    machine.set_faults(stall_queues=queue)
    before = machine.device.queue_depth(queue - 1)
    machine.set_target(target)
    until(lambda: machine.device.queue_depth(queue - 1) == before + 1)
    reports: list[Any] = []

    def run() -> None:
        try:
            reports.append(machine.oom((machine.pages.free_pages() + pages) * PAGE))
        except KernelBug as bug:
            reports.append(bug)

    thread = threading.Thread(target=run)
    thread.start()
    until(seen)
    yield reports
    machine.set_faults()
    thread.join()


@pytest.mark.parametrize("insert", ["early", "late"])
def test_split_loses_data_of_programs_unless_it_inserts_late(insert: str) -> None:
    with small(design="split", design_options={"insert": insert}) as machine:
        settle(machine, 256)
        # The second 256 pages are listed (early), and the host has not heard of them. They are the newest.
        machine.set_faults(stall_queues=INFLATE)
        machine.set_target(512)
        until(lambda: machine.device.queue_depth(0) == 1)
        with machine.runtime.adopted("O", "allocates"):
            victim = UserTask(machine.kernel, "victim")
            victim.allocate(machine.pages.free_pages() + 100)
        assert machine.kernel.oom_kills.value == 0
        assert machine.driver.oom_deflated_pages.value == 256
        assert machine.check()["lost_pages"] == 0
        # Now the host gets to the request, and discards what belongs to a program.
        machine.set_faults()
        until(lambda: not machine.driver.resizing)
        machine.device.flush()
        assert machine.check()["lost_pages"] == (100 if insert == "early" else 0)
        assert machine.device.counters().pfns_never_inflated == (256 if insert == "early" else 0)


def test_two_leakers_of_split_run_into_bug() -> None:
    # W has taken all pages off the list and not subtracted them yet: "is the (!dequeued_page) test safe?"
    with small(design="split") as machine:
        settle(machine, 256)
        bugged = lambda: machine.trouble is not None  # noqa: E731
        with oom_beside_a_stalled_queue(machine, DEFLATE, 0, 100, bugged) as reports:
            pass
        assert isinstance(reports[0], KernelBug)
        assert "balloon_page_dequeue" in reports[0].what
        assert machine.state == "bug"


@pytest.mark.parametrize("waiter", ["return", "fall-through"])
def test_the_flag_keeps_the_second_leaker_out_when_it_comes_late_enough(waiter: str) -> None:
    with small(design="split-deflating", design_options={"waiter": waiter}) as machine:
        settle(machine, 256)
        spinning = lambda: machine.kernel.oom_events.value == 1  # noqa: E731
        with oom_beside_a_stalled_queue(machine, DEFLATE, 0, 100, spinning) as reports:
            time.sleep(0.02)
            assert reports == []
        assert machine.trouble is None
        if waiter == "return":
            # It counts what W has released.
            assert (reports[0].outcome, reports[0].balloon_pages) == ("relieved", 256)
        else:
            # It goes on to leak, when nothing is left.
            assert reports[0].outcome == "killed"


@pytest.mark.parametrize("pfns", ["stack", "per-direction", "oom"])
def test_one_array_a_direction_is_overwritten_while_the_host_has_yet_to_read_it(pfns: str) -> None:
    with small(design="split", design_options={"pfns": pfns}) as machine:
        settle(machine, 512)
        lock: Any = machine.driver.design.deflate_lock  # type: ignore[attr-defined]
        with oom_beside_a_stalled_queue(machine, DEFLATE, 256, 100, lambda: lock._waiters):
            pass
        until(lambda: not machine.driver.resizing)
        wrong = machine.device.counters().pfns_never_inflated
        held = machine.device.counters().held_pages
        if pfns == "per-direction":
            # The pages of OOM were given back twice, those of the size worker never.
            assert wrong == 256
            assert held == machine.driver.vb.num_pages.value + 256
        else:
            assert wrong == 0
            assert held == machine.driver.vb.num_pages.value


@pytest.mark.parametrize("design", ["upstream", "modern", "reference"])
def test_oom_reaches_the_pages_in_fills_hand_in_reference_only(design: str) -> None:
    # Fill has taken all that was free, wants more and sleeps its 200 ms.
    with small(design=design, used_bytes=15 * MIB) as machine:
        free = machine.pages.free_pages()
        assert 50 < free < 250
        machine.set_target(free + 100)
        until(lambda: machine.driver.vb.out_of_puff.value == 1)
        assert machine.pages.counts().private == free
        report = machine.oom(10 * PAGE)
        if design == "reference":
            assert (report.outcome, report.balloon_pages) == ("relieved", free)
        else:
            assert (report.outcome, report.balloon_pages) == ("killed", 0)
        machine.wait(5 * SECOND)


def test_shrinker_inflation_against_a_full_guest_is_a_busy_no_op() -> None:
    with small(design="shrinker", used_bytes=4 * MIB) as machine:
        most = machine.pages.free_pages()
        machine.set_target(most + 1000)
        machine.wait(SECOND // 2)
        counters = machine.device.counters()
        # Far more pages went in and out than there are, and the balloon is no larger for it.
        assert counters.inflated_pages > 3 * most
        assert counters.held_pages <= most
        settle(machine, 500)


def test_shrinker_may_stop_short_and_think_that_it_is_done() -> None:
    # The last 256 pages that fill allocates come out of the balloon, and fill returns 256: no difference is left.
    with small(design="shrinker") as machine:
        machine.set_target(machine.memory.size_pages)
        # Reclaim may take pages out more than once on the way: then more than all are inflated.
        until(lambda: machine.device.counters().inflated_pages >= machine.memory.size_pages)
        until(lambda: not machine.driver.resizing)
        assert machine.driver.vb.num_pages.value < machine.pages.counts().listed + 1 < machine.target_pages
        assert machine.pages.free_pages() > 0


def test_the_scan_of_5_3_empties_the_balloon_when_it_needs_three_rounds() -> None:
    with small(design="shrinker") as machine:
        settle(machine, 2000)
        with machine.runtime.adopted("K", "reclaimer"):
            freed = machine.driver.design.scan(600)
        assert freed == 2000
        at_rest(machine)


# -- options -----------------------------------------------------------------------


def test_options_default_to_the_first_value() -> None:
    assert choose_options(find("split"), {"pfns": "oom"}) == {
        "insert": "early",
        "count": "after",
        "pfns": "oom",
    }


@pytest.mark.parametrize(
    ("design", "options", "words"),
    [
        ("modren", {}, ["'modren'", "did you mean modern?"]),
        ("zzz", {}, ["coarse, split"]),
        ("split", {"insrt": "late"}, ["'insrt'", "insert=early|late", "--set insert=late"]),
        ("split", {"insert": "laet"}, ["'laet'", "early, late", "--set insert=late"]),
        ("modern", {"insert": "late"}, ["has no options"]),
    ],
)
def test_unknown_names_get_the_near_ones(design: str, options: dict[str, str], words: list[str]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        small(design=design, design_options=options)
    text = f"{caught.value.what} {caught.value.why} {caught.value.hint}"
    for word in words:
        assert word in text


@pytest.mark.parametrize("name", DESIGNS)
def test_each_design_says_what_it_is(name: str) -> None:
    design = find(name)
    assert design.name == name
    assert design.kernels
    assert 20 < len(design.summary) < 110


# -- designs of the user -----------------------------------------------------------

GOOD = """
    from balloonvq.driver.designs.modern import Modern

    class Mine(Modern):
        "Counts late."

        options = {"when": ("late", "later")}

        def leak(self, n):
            return super().leak(n)
"""


@pytest.fixture
def design_file(tmp_path: Path) -> Any:
    def write(text: str, name: str = "Mine") -> str:
        path = tmp_path / "mine.py"
        path.write_text(textwrap.dedent(text).lstrip("\n"))
        return f"{path}:{name}"

    return write


def test_a_design_from_a_file(design_file: Any) -> None:
    where = design_file(GOOD)
    with running(design=where, design_options={"when": "later"}) as machine:
        settle(machine, 600)
        at_rest(machine)
        assert machine.status().design == where
        assert machine.status().design_options == {"when": "later"}
    assert (find(where).name, find(where).summary) == ("Mine", "Counts late.")


@pytest.mark.parametrize("order", ["free-first", "tell-first"])
def test_the_design_of_the_how_to(root: Path, design_file: Any, order: str) -> None:
    page = (root / "docs/how-to/write-a-design.md").read_text()
    source = page.partition("```python\n")[2].partition("```")[0]
    with running(design=design_file(source, "Hasty"), design_options={"order": order}) as machine:
        settle(machine, 2000)
        assert machine.oom().outcome == "relieved"
        at_rest(machine)
        remove(machine)


MODERN = "from balloonvq.driver.designs.modern import Modern\n"


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ("x = 1\ny = = 2\n", "Mine", ["mine.py:2 does not import", "SyntaxError"]),
        ("x = 1\n\nimport nothing_of_that_name\n", "Mine", ["mine.py:3 does not import", "nothing_of"]),
        ("def f():\n    raise OSError('oops')\nf()\n", "Mine", ["mine.py:2 does not import", "oops"]),
        ("raise SystemExit(0)\n", "Mine", ["mine.py:1 does not import"]),
        (MODERN + "class Mine(Modern): pass\n", "Mein", ["no class Mein", "mine.py:Mine"]),
        ("x = 1\n", "Mine", ["no class that derives from Design"]),
        ("x = 1\nclass Mine: pass\n", "Mine", ["mine.py:2", "is no design"]),
        ("Mine = 7\n", "Mine", ["is no design"]),
        (
            "from balloonvq.driver.designs import Design\n\nclass Mine(Design):\n    def fill(self, n): return 0\n",
            "Mine",
            ["mine.py:3", "lacks leak, migrate"],
        ),
        (
            MODERN + "class Mine(Modern):\n    def leak(self): return 0\n",
            "Mine",
            ["mine.py:3", "leak(self, n)"],
        ),
    ],
)
def test_a_file_that_is_no_design(design_file: Any, text: str, name: str, words: list[str]) -> None:
    with pytest.raises(DesignError) as caught:
        small(design=design_file(text, name))
    text = f"{caught.value.what} {caught.value.why} {caught.value.hint}"
    for word in words:
        assert word in text
    assert caught.value.exit_code == 1


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DesignError, match="cannot read"):
        small(design=f"{tmp_path}/none.py:Mine")
    with pytest.raises(InvalidArgument, match="no class"):
        small(design=f"{tmp_path}/none.py")


@pytest.mark.parametrize("clock", ["real", "virtual"])
def test_a_design_that_fails_is_named_with_its_line(design_file: Any, clock: str) -> None:
    where = design_file(MODERN + "class Mine(Modern):\n    def fill(self, n):\n        return self.nothing\n")
    with small(design=where, clock=clock) as machine:
        machine.set_target(10)
        with pytest.raises(DesignError, match=r"AttributeError at mine\.py:4 in Mine\.fill"):
            machine.wait()
        assert machine.state == "bug"


SOURCES = {
    "loops in fill": "    def fill(self, n):\n        while True:\n            pass\n",
    "blocks in fill": "    def fill(self, n):\n        import time; time.sleep(20)\n",
    "waits in a library": "    def fill(self, n):\n"
    "        import queue\n"
    "        try:\n            queue.Queue().get(timeout=3)\n"
    "        except queue.Empty:\n            return 0\n",
    "loops in migrate": "    def migrate(self, new, old):\n        while True:\n            self.vb.num_pages.value\n",
    "loops in probe": "    def probe(self):\n        while True:\n            pass\n",
}


@pytest.mark.parametrize("clock", ["real", "virtual"])
@pytest.mark.parametrize("what", ["blocks in fill", "waits in a library", "loops in migrate"])
def test_a_design_that_does_not_go_on_hangs_nobody(
    design_file: Any, what: str, clock: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine_module, "STUCK_SECONDS", 0.6)
    monkeypatch.setattr(machine_module, "STOP_SECONDS", 0.2)
    source = MODERN + "class Mine(Modern):\n    LEFT = False\n" + SOURCES[what]
    # Its thread outlives the machine; this lets it end.
    source = source.replace("while True", "while not self.LEFT").replace("time.sleep(20)", "time.sleep(3)")
    machine = small(design=design_file(source), clock=clock)
    machine.set_target(100)

    def work() -> None:
        machine.wait()
        machine.compact(1)

    stands = "stands at mine.py:"
    if what == "waits in a library":
        # Where it stands is not in the design's file; where it was called from is.
        stands = "in Queue.get, called from mine.py:"
    with pytest.raises(DesignError, match="stands still") as caught:
        work()
    assert stands in caught.value.why
    with pytest.raises(DesignError, match="did not end") as caught:
        machine.stop()
    assert stands in caught.value.why
    type(machine.driver.design).LEFT = True  # type: ignore[attr-defined]


def test_a_stack_that_overflows_is_a_bug(design_file: Any) -> None:
    text = MODERN + (
        "class Mine(Modern):\n"
        "    def deeper(self, n):\n"
        "        with self.vb.stack_array():\n"
        "            return self.deeper(n - 1) if n else 0\n"
        "    def on_oom(self):\n"
        "        return self.deeper(20)\n"
    )
    with small(design=design_file(text)) as machine:
        settle(machine, 1000)
        with pytest.raises(KernelBug, match="kernel stack overflow"):
            machine.oom()
        assert machine.state == "bug"
        assert machine.status().stack.peak_bytes > THREAD_SIZE_BYTES


def test_an_array_on_the_stack_is_accounted() -> None:
    with running(design="split") as machine:
        settle(machine, 1000)
        assert machine.status().stack.peak_bytes == 1024
        machine.oom()
        assert machine.status().stack.peak_bytes == DEPTH_AT_RECLAIM_BYTES + 1024
        assert issubclass(find("split"), Design)
