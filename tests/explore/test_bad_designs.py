"""Designs that no explorer can explore: each is an error that names the line, and none hangs it."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from balloonvq.driver.designs import find, load
from balloonvq.errors import DesignError
from balloonvq.explore import standstill
from balloonvq.explore.matrix import row
from balloonvq.explore.model import Attributes
from balloonvq.explore.scenarios import SCENARIOS, run
from balloonvq.explore.suspects import suspects
from balloonvq.explore.verdict import Outcome
from balloonvq.explore.world import Nondeterminism

HEAD = """
import random, socket, threading, time
from balloonvq.driver.designs.modern import Modern

LOCK = threading.Lock()
CALLS, COUNT = [0], 0


class Mine(Modern):
"""

LEAK = """
    def leak(self, n):
{}
        return super().leak(n)
"""

PROBE = """
    calls, all = 0, []

    def probe(self):
        super().probe()
        self.ours = self.vb.runtime.shared("ours")
        self.seen = []
"""

#: What leak begins with, and the line of the file that it stands still in.
STANDSTILLS = {
    "loops": ("while True:\n    n += 1", (12, 13)),
    "loops and swallows": (
        "while True:\n    try:\n        n += 1\n    except Exception:\n        pass",
        (12, 13, 14),
    ),
    "sleeps and swallows everything": (
        "while True:\n    try:\n        time.sleep(1000)\n    except BaseException:\n        pass",
        (14, 15),
    ),
    "sleeps": ("time.sleep(1000)", (12,)),
    "locks twice": ("LOCK.acquire()\nLOCK.acquire()", (13,)),
    "reads a socket": ("ours, theirs = socket.socketpair()\nwith ours, theirs:\n    ours.recv(1)", (14,)),
}


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    monkeypatch.setattr(standstill, "STANDSTILL_S", 1.0)
    path = tmp_path / "mine.py"

    def write(body: str) -> str:
        path.write_text(HEAD + body)
        return f"{path}:Mine"

    return write


def indented(lines: str) -> str:
    return "\n".join("        " + line for line in lines.splitlines())


@pytest.mark.parametrize("case", STANDSTILLS)
def test_a_design_that_does_not_go_on_is_interrupted(case: str, mine: Callable[[str], str]) -> None:
    code, lines = STANDSTILLS[case]
    design = find(mine(LEAK.format(indented(code))))
    began = time.monotonic()
    with pytest.raises(DesignError, match="the design does not go on") as caught:
        run(design, SCENARIOS["teardown"])
    assert time.monotonic() - began < 8
    assert caught.value.exit_code == 1
    assert any(f"mine.py:{line}:" in caught.value.what for line in lines), caught.value.what
    assert caught.value.why == "R has come to no further step for 1 s"
    # What was interrupted leaves nothing behind.
    assert run(find("modern"), SCENARIOS["teardown"]).verdict.outcome is Outcome.PROVED


def test_so_is_one_that_stands_still_in_its_probe_and_in_a_survey(mine: Callable[[str], str]) -> None:
    name = mine("    def probe(self):\n        while True:\n            pass\n")
    with pytest.raises(DesignError, match=r"mine\.py:1[12]: the design does not go on") as caught:
        row(name, {}, [SCENARIOS["teardown"]])
    assert "its probe" in caught.value.why


def test_a_file_whose_import_does_not_end_is_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "IMPORT_S", 1.0)
    path = tmp_path / "mine.py"
    path.write_text("x = 1\nwhile True:\n    x += 1\n")
    with pytest.raises(DesignError, match=r"mine\.py:[23] does not import") as caught:
        find(f"{path}:Mine")
    assert "not come to its end" in caught.value.why


def test_an_exploration_that_takes_long_is_no_standstill(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step of every actor counts, whatever it is."""
    monkeypatch.setattr(standstill, "STANDSTILL_S", 0.5)
    result = run(find("modern"), SCENARIOS["fill-oom-compaction"])
    assert result.verdict.outcome is Outcome.BUG


NONDETERMINISM = {
    "chance": "if random.random() < 0.5:\n    self.publish()",
    "time": "if time.perf_counter_ns() // 1000 % 2:\n    self.publish()",
    "a global variable": "CALLS[0] += 1\nif CALLS[0] % 3 == 0:\n    self.publish()",
    "a global number": "global COUNT\nCOUNT += 1\nif COUNT % 3 == 0:\n    self.publish()",
    "a list": "self.seen.append(n)\nif len(self.seen) > 1:\n    self.publish()",
    "a class attribute": "Mine.calls += 1\nif Mine.calls % 2:\n    self.publish()",
    "a list of the class": "self.all.append(n)\nif len(self.all) % 2:\n    self.publish()",
    "a lock": "if not LOCK.acquire(False):\n    raise ValueError('both in leak')\n"
    "try:\n    return super().leak(n)\nfinally:\n    LOCK.release()",
    "the order of a set": "CALLS[0] += 1\n"
    "junk = [object() for _ in range(CALLS[0] % 7)]\n"
    "for word in {type('Key', (), {'word': word}) for word in (self.vb.num_pages, self.ours)}:\n"
    "    word.word.value",
}


#: What is suspected, and what stands in its line.
CAUSES = {
    "chance": ("random.random", "random.random"),
    "time": ("time.perf_counter_ns", "perf_counter_ns"),
    "a global variable": ("the global variable CALLS", "CALLS[0] +="),
    "a global number": ("the global variable COUNT", "COUNT +="),
    "a list": ("what self.seen holds", "seen.append"),
    "a class attribute": ("the class attribute calls", "Mine.calls +="),
    "a list of the class": ("the class attribute all", "all.append"),
    "a lock": ("the global variable LOCK", "LOCK.acquire"),
    "the order of a set": ("the order of a set", "for word in"),
}


@pytest.mark.parametrize("case", NONDETERMINISM)
def test_a_design_that_is_not_deterministic_is_an_error_with_the_line(
    case: str, mine: Callable[[str], str]
) -> None:
    design = find(mine(PROBE + LEAK.format(indented(NONDETERMINISM[case]))))
    with pytest.raises(Nondeterminism) as caught:
        run(design, SCENARIOS["teardown-oom"])
    assert caught.value.exit_code == 1
    # Where it is now and where it was before, in the design's own file; with the lock one has left that.
    leak = range(len(HEAD.splitlines()) + len(PROBE.splitlines()), 100)
    places = [re.findall(r"mine\.py:(\d+)", text) for text in (caught.value.what, caught.value.why)]
    assert len([*filter(None, places)]) == (1 if case == "a lock" else 2), (
        caught.value.what,
        caught.value.why,
    )
    assert all(int(place[-1]) in leak for place in places if place)
    cause, line = CAUSES[case]
    written = next(
        number
        for number, text in enumerate(Path(design.probe.__code__.co_filename).read_text().splitlines(), 1)
        if line in text
    )
    assert re.search(
        rf"perhaps it is .*{re.escape(cause)} at \S*mine\.py:{written}[; ]", caught.value.hint
    ), caught.value.hint


def test_only_what_may_be_the_cause_is_suspected(mine: Callable[[str], str]) -> None:
    body = """
    LIMIT = 3
    seen = ()

    def probe(self):
        super().probe()
        self.mine = list(range(3))
        CALLS = [1]
        self.most = max(CALLS)

    def leak(self, n):
        time = {1: n}
        for number in sorted({n, 1}):
            time[number] = self.LIMIT + self.most + len(self.seen) + len(self.pfns)
        return super().leak(n)
"""
    assert suspects(find(mine(body))) == []
    assert suspects(find("modern")) == []


@pytest.mark.parametrize(
    "body",
    [
        PROBE + "        CALLS[0] += 1\n        self.vb.runtime.shared(f'word {CALLS[0]}')\n",
        LEAK.format(indented("self.vb.runtime.mutex('late')")),
    ],
    ids=["another world each time", "a mutex made while it runs"],
)
def test_objects_are_made_once_and_at_probe(body: str, mine: Callable[[str], str]) -> None:
    with pytest.raises(Nondeterminism, match=r"building|while") as caught:
        run(find(mine(body)), SCENARIOS["teardown-oom"])
    assert "mine.py:" in caught.value.why


# -- attributes ------------------------------------------------------------------------

HELPER = """
    @staticmethod
    def helper(item, number):
        setattr(item, "calls", number)
"""

BEGINS = """
    def probe(self):
        super().probe()
        self.calls = 0
"""

#: What R and O both do in leak, or one of them in on_oom.
CONFLICTS = {
    "both write": LEAK.format(indented("self.calls = n")),
    "both count": LEAK.format(indented("self.calls = getattr(self, 'calls', 0) + 1")),
    "both write by setattr": HELPER + LEAK.format(indented("self.helper(self, n)")),
    "both write a default of the class": "    calls = 0\n" + LEAK.format(indented("self.calls = n")),
    "both write, whatever is raised": HELPER
    + LEAK.format(indented("try:\n    self.helper(self, n)\nexcept Exception:\n    pass")),
    "both delete": BEGINS + LEAK.format(indented("if hasattr(self, 'calls'):\n    delattr(self, 'calls')")),
    "both set a property": """
    @property
    def both(self):
        return self.calls

    @both.setter
    def both(self, number):
        self.calls = number
"""
    + LEAK.format(indented("self.both = n")),
    "both write a slot": "    __slots__ = ('calls',)\n" + LEAK.format(indented("self.calls = n")),
    "both replace an object by an equal one": BEGINS.replace("0", "[0]")
    + LEAK.format(indented("self.calls = [0]")),
    "one writes in a finally": HELPER
    + LEAK.format(indented("try:\n    self.publish()\nfinally:\n    self.helper(self, n)")),
    "one writes by setattr, both read": BEGINS
    + HELPER
    + LEAK.format(indented("if self.calls > 1000:\n    self.publish()"))
    + "\n    def on_oom(self):\n        self.helper(self, 5)\n        return super().on_oom()\n",
}


@pytest.mark.parametrize("case", CONFLICTS)
def test_an_attribute_that_several_actors_use_and_one_writes_is_an_error(
    case: str, mine: Callable[[str], str]
) -> None:
    with pytest.raises(
        Nondeterminism, match=r"uses the design's attribute calls, which [RO] writes"
    ) as caught:
        run(find(mine(CONFLICTS[case])), SCENARIOS["teardown-oom"])
    assert "mine.py:" in caught.value.what + caught.value.why


#: What one actor may do with an attribute that only it uses.
ALONE = {
    "writes": "self.calls = n",
    "writes by setattr": "setattr(self, 'calls', n)",
    "deletes": "self.calls = n\ndelattr(self, 'calls')",
    "misses it": "assert not hasattr(self, 'calls')\nif n < 0:\n    self.calls = n",
    "sets a property": "self.both = n\nassert self.both == n",
    "fills a slot": "self.slot = n\nassert self.slot == n",
    "keeps it for a while": "self.calls = n\nself.publish()\nassert self.calls == n\nself.calls = 0",
}

SETS = """
    __slots__ = ("slot",)

    @property
    def both(self):
        return self.calls

    @both.setter
    def both(self, number):
        setattr(self, "calls", number)
"""


@pytest.mark.parametrize("case", ALONE)
def test_an_attribute_of_one_actor_is_none(case: str, mine: Callable[[str], str]) -> None:
    design = find(mine(SETS + LEAK.format(indented(ALONE[case]))))
    assert run(design, SCENARIOS["teardown"]).verdict.outcome is Outcome.PROVED


def test_reading_what_nobody_writes_is_not_attended(
    mine: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: set[str] = set()
    found: set[str] = set()
    read = Attributes.read

    def tell(self: Attributes, runtime: Any, name: str) -> None:
        told.add(name)
        found.update(self.found)
        read(self, runtime, name)

    monkeypatch.setattr(Attributes, "read", tell)
    body = BEGINS + "        self.other = 1\n" + LEAK.format(indented("self.calls = self.calls + self.other"))
    run(find(mine(body)), SCENARIOS["teardown"])
    assert "calls" in told
    assert "other" not in told
    # What a method names need not be found while it runs.
    assert not found


def test_sleeping_outside_of_the_runtime_is_no_step(mine: Callable[[str], str]) -> None:
    """As docs/how-to/write-a-design.md says."""
    found = [
        run(find(mine(LEAK.format(indented(code)))), SCENARIOS["teardown-oom"]).verdict
        for code in ("pass", "time.sleep(1e-4)")
    ]
    assert len({(verdict.outcome, verdict.states, verdict.transitions) for verdict in found}) == 1
