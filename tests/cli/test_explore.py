"""The command `explore` on results written by hand: what it draws, its JSON, exit codes and errors."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result as Ran
from explored import CALM, CROWD, CROWDED, DEADLOCK, LIVELOCK, OOM, PAGES, broken, proved, unfinished
from rich.console import Console
from test_render import draw

from balloonctl.commands.explore import _row
from balloonctl.render.explore import render_explore, render_matrix, render_properties, render_scenarios
from balloonctl.render.explore_html import explore_page
from balloonvq.explore import live, parallel
from balloonvq.explore import scenarios as library
from balloonvq.explore.live import Confirmation
from balloonvq.explore.scenarios import Result, Scenario
from balloonvq.explore.search import Limits
from balloonvq.explore.verdict import Kind


def document(*results: Result, given: Mapping[str, str] | None = None) -> dict[str, Any]:
    rows = [_row(result.design, dict(given or {}), result) for result in results]
    return {"schema": "balloonctl/explore/1", "seconds": 1.25, "interrupted": False, "results": rows}


# ---- what is drawn ----------------------------------------------------------


@pytest.mark.parametrize("width", [80, 120])
def test_a_deadlock(width: int, snapshot: Any) -> None:
    assert draw(render_explore(document(broken())), width) == snapshot


@pytest.mark.parametrize("width", [80, 120])
def test_four_actors(width: int, snapshot: Any) -> None:
    result = broken(CROWD, timeline=CROWDED, kind=Kind.ERROR, what="C: KernelBug: BUG() in putback")
    assert draw(render_explore(document(result)), width) == snapshot


@pytest.mark.parametrize("width", [80, 120])
def test_a_livelock(width: int, snapshot: Any) -> None:
    result = broken(timeline=LIVELOCK, kind=Kind.LIVELOCK, what="W and O go round")
    assert draw(render_explore(document(result)), width) == snapshot


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_regression_the_page_that_moved_is_named_in_full(width: int) -> None:
    text = draw(render_explore(document(broken(timeline=PAGES, kind=Kind.ERROR, what="W: KernelBug"))), width)
    words = " ".join(re.sub(r"\w+\.py:\d+|[│┌└]", " ", text).split())
    assert "page 1: free -> private" in words
    assert "page 1: private -> private (host), page 2: in_flight -> in_flight (host)" in words
    assert "page 0: listed (host) -> isolated (host)" in words
    assert "…" not in text


def test_regression_the_page_that_moved_is_named_on_the_page() -> None:
    html = explore_page(document(broken(timeline=PAGES, kind=Kind.ERROR, what="W: KernelBug")), "")
    assert escape("page 0: listed (host) -> isolated (host)") in html


def _thrice(kind: Kind, *whats: str, timelines: tuple[Any, ...] = (PAGES, DEADLOCK, PAGES)) -> dict[str, Any]:
    """The document of as many bugs; the first is the shortest, unless told otherwise."""
    scenarios = (OOM, CROWD, CALM)
    drawn = zip(scenarios, timelines, whats, strict=True)
    return document(*(broken(one, timeline=line, kind=kind, what=what) for one, line, what in drawn))


@pytest.mark.parametrize("width", [80, 120])
def test_regression_the_same_bug_is_drawn_once_where_it_is_shortest(width: int, snapshot: Any) -> None:
    whats = ("O: KernelBug(freed)", "W: KernelBug(freed)", "P: KernelBug(freed)")
    drawn = _thrice(Kind.ERROR, *whats, timelines=(DEADLOCK, PAGES, DEADLOCK))
    drawn["results"][0]["live"] = {"times": 10, "confirmed": 2, "difference": "W has ended", "why": ""}
    drawn["results"][2]["live"] = {"times": 10, "confirmed": 10, "difference": "", "why": ""}
    text = draw(render_explore(drawn), width)
    assert text.count("*** BUG ***") == 1
    assert f"BUG  coarse / {CROWD.name} | 3 steps" in text
    assert re.search(rf"^  {OOM.name} +5 steps  bx1.k3f9.102.7c2a$", text, re.MULTILINE)
    assert re.search(rf"^  {CALM.name} +5 steps  bx1.k3f9.102.7c2a$", text, re.MULTILINE)
    assert text == snapshot
    page = explore_page(drawn, "")
    assert page.count('class="steps"') == 3


def test_regression_bugs_of_which_another_thing_is_wrong_are_all_drawn() -> None:
    text = draw(render_explore(_thrice(Kind.ERROR, "O: KernelBug(a)", "W: KernelBug(b)", "W: KernelBug(a)")))
    assert text.count("*** BUG ***") == 2
    assert "The same in 1 more scenario; balloonctl replay STRING shows one:" in text
    round_ = "O for ever without progress"
    elsewhere = replace(
        LIVELOCK, lines=(*LIVELOCK.lines[:-1], replace(LIVELOCK.lines[-1], place="split.py:7"))
    )
    circles = (LIVELOCK, elsewhere, LIVELOCK)
    text = draw(render_explore(_thrice(Kind.LIVELOCK, round_, round_, round_, timelines=circles)))
    assert text.count("*** LIVELOCK ***") == 2


def test_regression_the_same_bug_in_a_scenario_of_ones_own_names_its_file() -> None:
    drawn = _thrice(Kind.AT_REST, "stale", "stale", "stale")
    for result in drawn["results"]:
        result["design"] = "a b.py:Mine"
    drawn["results"][1]["scenario"] = "own.py:MINE"
    text = draw(render_explore(drawn), 120)
    assert "balloonctl replay STRING --design 'a b.py:Mine' shows one:" in text
    assert re.search(
        r"^  own\.py:MINE +5 steps  bx1\.k3f9\.102\.7c2a --scenario own\.py:MINE$", text, re.MULTILINE
    )


def test_a_schedule_with_fewer_preemptions_is_named_beside_the_shortest() -> None:
    drawn = document(broken(fewest=DEADLOCK))
    text = draw(render_explore(drawn))
    assert "With fewer preemptions: 5 steps, 0 preemptions (minimal)" in text
    assert "balloonctl replay bx1.k3f9.311.0d4c" in text
    member = drawn["results"][0]["fewest_preemptions"]
    assert (member["length"], member["preemptions"], member["replay"]) == (5, 0, "bx1.k3f9.311.0d4c")
    assert member["steps"] == drawn["results"][0]["schedule"]["steps"]


def test_nothing_is_said_where_the_shortest_schedule_preempts_least() -> None:
    drawn = document(broken())
    assert drawn["results"][0]["fewest_preemptions"] is None
    assert "With fewer preemptions" not in draw(render_explore(drawn))


@pytest.mark.parametrize("width", [80, 120])
def test_all_verdicts(width: int, snapshot: Any) -> None:
    drawn = document(proved(), broken(), unfinished(), given={"insert": "late"})
    assert draw(render_explore(drawn), width) == snapshot


@pytest.mark.parametrize("width", [40, 60, 80])
def test_long_names_leave_room_for_what_is_told(width: int, snapshot: Any) -> None:
    long = replace(CALM, name="fill+oom-nofs-fs-lock+compaction+user")
    longer = replace(CALM, name="fill+oom-nofs-fs-lock+compaction+kswapd")
    drawn = document(proved(), proved(long), broken(longer), unfinished())
    assert draw(render_explore(drawn), width).split("\n\n")[0] == snapshot


@pytest.mark.parametrize("width", [80, 120])
def test_the_matrix(width: int, snapshot: Any) -> None:
    results = [
        proved(CALM, "coarse"),
        broken(OOM, "coarse"),
        proved(CALM, "split-deflating"),
        broken(OOM, "split-deflating", LIVELOCK, Kind.LIVELOCK),
        unfinished(CROWD, "split-deflating"),
    ]
    assert draw(render_matrix(document(*results)), width) == snapshot


def test_the_scenarios(snapshot: Any) -> None:
    rows = [
        {"name": one.name, "actors": one.actors, "summary": one.summary, "thorough": one is CROWD}
        for one in (CALM, CROWD)
    ]
    assert draw(render_scenarios({"scenarios": rows})) == snapshot


@pytest.mark.parametrize("kind", Kind)
def test_every_kind_has_a_name_and_a_letter(kind: Kind) -> None:
    text = draw(render_matrix(document(broken(kind=kind))))
    assert "number: steps" in text
    assert "***" in draw(render_explore(document(broken(kind=kind))))


@pytest.mark.parametrize("width", range(30, 200, 7))
@pytest.mark.parametrize("timeline", [DEADLOCK, CROWDED, LIVELOCK, PAGES])
def test_no_width_loses_a_step_or_a_line_number(width: int, timeline: Any) -> None:
    text = draw(render_explore(document(broken(timeline=timeline))), width)
    for line in timeline.lines:
        assert line.place[:15] in text
        assert line.text.partition("(")[0] in text or line.changes


def test_colour_adds_no_words() -> None:
    results = document(proved(), broken(), unfinished())
    console = Console(width=80, force_terminal=True, color_system="truecolor", _environ={})
    with console.capture() as captured:
        console.print(render_explore(results))
    assert "\x1b[" in captured.get()
    from rich.text import Text

    plain = "\n".join(line.rstrip() for line in Text.from_ansi(captured.get()).plain.splitlines())
    assert plain == draw(render_explore(results))


def test_the_page_has_every_step_and_fetches_nothing() -> None:
    drawn = document(proved(), broken(fewest=LIVELOCK), broken(CROWD, timeline=CROWDED), unfinished())
    html = explore_page(drawn, "balloonctl 0 <dev>")
    for timeline in (DEADLOCK, CROWDED, LIVELOCK):
        for line in timeline.lines:
            assert line.place in html
            assert escape(line.text) in html or line.changes
    assert "balloonctl 0 &lt;dev&gt;" in html
    assert not re.search(r"src=|href=\"(?!#)|url\(|<script", html)
    anchors = re.findall(r'href="#([^"]+)"', html)
    assert len(anchors) == 2
    assert all(f'id="{anchor}"' in html for anchor in anchors)


def test_what_a_design_says_is_no_markup_on_the_page() -> None:
    html = explore_page(document(broken(what="<script>alert(1)</script>")), "")
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


# ---- the command ------------------------------------------------------------


class Explorer:
    """Stands in for the library."""

    def __init__(self) -> None:
        self.verdicts: dict[str, Callable[..., Result]] = {}
        self.calls: list[tuple[str, str, dict[str, str], Limits]] = []
        #: How often bugs were to be confirmed, and whether the third time is to fail.
        self.confirmed: list[int] = []
        self.differs = False

    def program(self, design: Any, scenario: Scenario, options: Mapping[str, str]) -> None:
        """Refuses nothing."""

    def confirm(self, explored: None, decisions: Any, *, loop: int | None, times: int) -> Confirmation:
        """The real threads of results that are invented."""
        del explored, decisions, loop
        self.confirmed.append(times)
        if self.differs:
            return Confirmation(times, 2, 0.1, "step 3: W has ended", "the schedule has O: lock(b)", (), ())
        return Confirmation(times, times, 0.1, "", "", ("they sleep",), ())

    def run(
        self,
        design: Any,
        scenario: Scenario,
        *,
        options: Mapping[str, str] | None = None,
        limits: Limits | None = None,
        on_layer: object = None,
        only: object = None,
    ) -> Result:
        assert limits is not None
        self.calls.append((design.name, scenario.name, dict(options or {}), limits))
        return self.verdicts.get(scenario.name, proved)(scenario, design.name)


@pytest.fixture
def explorer(monkeypatch: pytest.MonkeyPatch) -> Explorer:
    explorer = Explorer()
    monkeypatch.setattr(library, "SCENARIOS", {one.name: one for one in (CALM, OOM, CROWD)})
    monkeypatch.setattr(
        library,
        "scenarios_for",
        lambda design, thorough=False: (
            (CALM, OOM) if design is not None and design.name == "coarse" else (CALM, OOM, CROWD)
        ),
    )
    monkeypatch.setattr(
        library, "fits_design", lambda design, one: design.name != "coarse" or one is not CROWD
    )
    monkeypatch.setattr(parallel, "processors", lambda: 1)
    monkeypatch.setattr(library, "run", explorer.run)
    monkeypatch.setattr(library, "program", explorer.program)
    monkeypatch.setattr(live, "confirm", explorer.confirm)
    return explorer


def test_all_scenarios_of_a_design_are_proved(explorer: Explorer, call: Callable[..., Ran]) -> None:
    result = call("explore", "coarse")
    assert result.exit_code == 0
    assert [name for _, name, _, _ in explorer.calls] == ["fill-alone", "oom-while-filling"]
    assert result.stdout.count("PROVED") == 3
    assert result.stderr == ""


def test_a_bug_is_exit_code_3(explorer: Explorer, call: Callable[..., Ran]) -> None:
    explorer.verdicts["oom-while-filling"] = broken
    explorer.verdicts["oom-and-compaction"] = unfinished
    result = call("explore", "modern")
    assert result.exit_code == 3
    assert "*** DEADLOCK ***" in result.stdout


def test_incomplete_is_exit_code_5_and_never_a_pass(explorer: Explorer, call: Callable[..., Ran]) -> None:
    explorer.verdicts["oom-and-compaction"] = unfinished
    result = call("explore", "modern")
    assert result.exit_code == 5
    assert "? INCOMPLETE" in result.stdout


def test_ctrl_c_keeps_what_was_found(explorer: Explorer, call: Callable[..., Ran]) -> None:
    def interrupted(*_: object) -> Result:
        raise KeyboardInterrupt

    explorer.verdicts["oom-while-filling"] = broken
    explorer.verdicts["oom-and-compaction"] = interrupted
    result = call("explore", "modern")
    assert result.exit_code == 130
    assert "*** DEADLOCK ***" in result.stdout
    assert "1 PROVED" in result.stdout
    assert "2 of 3 scenarios were explored" in result.stderr


@pytest.mark.parametrize("options", ["--json", "--all --by scenario --json"])
def test_ctrl_c_keeps_what_was_found_as_json_too(
    explorer: Explorer, call: Callable[..., Ran], options: str
) -> None:
    def interrupted(*_: object) -> Result:
        raise KeyboardInterrupt

    explorer.verdicts["oom-while-filling"] = broken
    explorer.verdicts["oom-and-compaction"] = interrupted
    names = [] if "--all" in options else ["modern"]
    result = call("explore", *names, *options.split())
    assert result.exit_code == 130
    document = json.loads(result.stdout)
    assert document["interrupted"] is True
    assert {one["scenario"] for one in document["results"]} == {"fill-alone", "oom-while-filling"}
    assert [json.loads(line)["schema"] for line in result.stderr.splitlines()] == [
        "balloonctl/note/1",
        "balloonctl/error/1",
    ]


def test_ctrl_c_keeps_a_matrix(explorer: Explorer, call: Callable[..., Ran]) -> None:
    def interrupted(scenario: Scenario, design: str) -> Result:
        if design == "coarse":
            return proved(scenario, design)
        raise KeyboardInterrupt

    explorer.verdicts["oom-while-filling"] = interrupted
    result = call("explore", "--all", "--by", "scenario")
    assert result.exit_code == 130
    assert "- not explored, or means nothing for this design" in result.stdout
    assert "3 PROVED" in result.stdout
    assert call("explore", "modern", "--html", "-").stdout == ""


@pytest.mark.parametrize("output", ["json", "table"])
def test_ctrl_c_keeps_designs_of_the_matrix_of_properties(
    call: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    def two_of(surveys: list[Any], **how: Any) -> Iterator[Any]:
        yield from explore_all(surveys[:2], **how)
        raise KeyboardInterrupt

    explore_all = parallel.explore_all
    monkeypatch.setattr(parallel, "explore_all", two_of)
    args = ("explore", "--all", "--scenario", "teardown", "--max-states", "3", "--jobs", "1")
    result = call(*args, "--output", output)
    assert result.exit_code == 130
    assert re.search(r"2 of \d+ designs were explored", result.stderr)
    if output == "json":
        document = json.loads(result.stdout)
        assert (document["interrupted"], len(document["rows"])) == (True, 2)
    else:
        assert "coarse" in result.stdout


def test_thorough_is_not_for_some_scenarios(explorer: Explorer, call: Callable[..., Ran]) -> None:
    result = call("explore", "coarse", "--thorough", "--scenario", "fill-alone")
    assert result.exit_code == 2
    assert "give one of them" in result.stderr
    assert not explorer.calls


def test_options_and_limits_reach_the_library(explorer: Explorer, call: Callable[..., Ran]) -> None:
    args = ("--scenario", "fill-alone", "--set", "insert=late", "--max-states", "10", "--max-seconds", "2")
    assert call("explore", "split", *args).exit_code == 0
    assert explorer.calls == [("split", "fill-alone", {"insert": "late"}, Limits(10, 2.0))]


def test_a_scenario_that_was_asked_for_is_run_even_if_it_does_not_fit(
    explorer: Explorer, call: Callable[..., Ran]
) -> None:
    assert call("explore", "coarse", "--scenario", "oom-and-compaction").exit_code == 0
    assert [name for _, name, _, _ in explorer.calls] == ["oom-and-compaction"]


def test_json(explorer: Explorer, call: Callable[..., Ran]) -> None:
    explorer.verdicts["oom-while-filling"] = broken
    result = call("explore", "coarse", "--json")
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    assert found["schema"] == "balloonctl/explore/1"
    calm, oom = found["results"]
    assert (calm["verdict"], calm["kind"], calm["schedule"]) == ("PROVED", None, None)
    assert calm["bounds"] == ["1 actor", "2 free pages", "batch 1"]
    assert (oom["verdict"], oom["kind"], oom["replay"]) == ("BUG", "deadlock", "bx1.k3f9.102.7c2a")
    assert (oom["states"], oom["transitions"], oom["seconds"]) == (1234, 5678, 0.25)
    schedule = oom["schedule"]
    assert (schedule["length"], schedule["preemptions"], schedule["minimal"]) == (5, 1, True)
    assert schedule["steps"][1]["changes"] == [{"name": "num_pages", "before": "3", "after": "4"}]
    assert schedule["steps"][1]["place"] == "coarse.py:33"
    assert schedule["ends"][0]["holds"] == ["balloon_lock"]


def test_all_is_a_matrix(explorer: Explorer, call: Callable[..., Ran]) -> None:
    explorer.verdicts["oom-while-filling"] = broken
    result = call("explore", "--all", "--by", "scenario")
    assert result.exit_code == 3
    assert "D 5" in result.stdout
    assert "D deadlock" in result.stdout
    assert "- means nothing for this design" in result.stdout
    assert len(explorer.calls) == 7 * 3 - 1


def test_all_of_one_scenario(explorer: Explorer, call: Callable[..., Ran]) -> None:
    assert call("explore", "--all", "--by", "scenario", "--scenario", "oom-and-compaction").exit_code == 0
    assert [(design, name) for design, name, _, _ in explorer.calls if design == "coarse"] == []
    assert len(explorer.calls) == 6


def cell(property_: str, length: int | None = None, verdict: str | None = "PROVED") -> dict[str, Any]:
    return {
        "property": property_,
        "verdict": verdict if length is None else "BUG",
        "scenarios": 3,
        "kind": None if length is None else "deadlock",
        "what": "",
        "length": length,
        "preemptions": length and 1,
        "scenario": length and "oom-while-filling",
        "replay": length and "bx1.k3f9.102.7c2a",
    }


def by_property() -> dict[str, Any]:
    names = ["deadlock", "spin on one CPU", "wrong acknowledgement"]
    rows: list[dict[str, Any]] = [
        {"design": "coarse", "set": {}, "cells": [cell(names[0], 11), cell(names[1]), cell(names[2])]},
        {
            "design": "split-deflating",
            "set": {},
            "cells": [cell(names[0]), cell(names[1], 22), cell(names[2], None, "INCOMPLETE")],
        },
        {
            "design": "split",
            "set": {"insert": "late", "pfns": "per-direction"},
            "cells": [cell(names[0]), cell(names[1], None, None), cell(names[2], 17)],
        },
    ]
    for row in rows:
        row |= {"stack_bytes": 8192, "states": 1000, "seconds": 1.0}
    return {
        "schema": "balloonctl/matrix/1",
        "seconds": 3.0,
        "interrupted": False,
        "properties": names,
        "rows": rows,
    }


@pytest.mark.parametrize("width", [80, 120])
def test_the_matrix_of_properties(width: int, snapshot: Any) -> None:
    assert draw(render_properties(by_property()), width) == snapshot


def test_a_matrix_of_properties_in_which_something_is_open_says_so() -> None:
    text = draw(render_properties(by_property()))
    assert "? incomplete, no verdict" in text
    assert "- no scenario can show it" in text


def test_all_is_a_matrix_of_properties(call: Callable[..., Ran]) -> None:
    result = call("explore", "--all", "--scenario", "oom-while-emptying", "--jobs", "1", "--json")
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    assert found["schema"] == "balloonctl/matrix/1"
    split = next(row for row in found["rows"] if row["design"] == "split")
    cells = {one["property"]: one for one in split["cells"]}
    assert [*cells] == found["properties"]
    assert (cells["BUG()"]["verdict"], cells["BUG()"]["length"]) == ("BUG", 12)
    assert cells["teardown"]["verdict"] is None
    assert cells["deadlock"]["verdict"] == "PROVED"
    replayed = json.loads(call("replay", cells["BUG()"]["replay"], "--json").stdout)
    assert (replayed["scenario"], replayed["schedule"]["length"]) == ("oom-while-emptying", 12)


def test_a_limit_leaves_the_matrix_open(call: Callable[..., Ran]) -> None:
    args = ("explore", "--all", "--scenario", "teardown", "--max-states", "3", "--jobs", "2")
    result = call(*args)
    assert result.exit_code == 5
    assert "? incomplete, no verdict" in result.stdout
    assert " ✓ " not in result.stdout


MINE_TOO = """
from balloonvq.explore.scenarios import Scenario

MINE = Scenario("mine", "the worker fills while compaction moves a page", ("W", "C"), free=1, listed=1, target=2)
NONE = 7
WRONG = Scenario("wrong", "nobody knows X", ("X",), free=1)
TWICE = Scenario("twice", "two workers", ("W", "W"), free=1)
DEAD = Scenario("dead", "2017", ("W", "O"), listed=1, target=2, flags=frozenset({"nofs", "fs lock"}))
TYPE = Scenario("type", "a word for a number", ("W", "O"), free="x")
"""


def test_a_scenario_of_ones_own(call: Callable[..., Ran], home: Path) -> None:
    (home / "own.py").write_text(MINE_TOO)
    result = call("explore", "modern", "--scenario", "own.py:MINE")
    assert result.exit_code == 0
    assert re.search(r"PROVED +own\.py:MINE", result.stdout)
    assert "compaction moves" in call("explore", "--list", "--scenario", "own.py:MINE").stdout
    found = json.loads(call("explore", "coarse", "--scenario", "own.py:DEAD", "--json").stdout)
    text = found["results"][0]["replay"]
    again = call("replay", text, "--scenario", "own.py:DEAD", "--json")
    assert json.loads(again.stdout)["scenario"] == "own.py:DEAD"
    assert call("replay", text).exit_code == 2


SAME_NAME = """
from balloonvq.explore.scenarios import Scenario

MINE = Scenario("two-ooms", "a worker and no OOM", ("W", "O"), listed=1, target=2, flags=frozenset({"nofs", "fs lock"}))
"""


def test_regression_a_bug_in_a_scenario_of_ones_own_is_shown_by_the_command_that_is_printed(
    call: Callable[..., Ran], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    (home / "a folder").mkdir()
    (home / "a folder/own.py").write_text(SAME_NAME)
    (home / "mine.py").write_text(MINE)
    name = "a folder/own.py:MINE"
    arguments = ["explore", "mine.py:Mine", "--scenario", name, "--confirm", "0"]
    shown = call(*arguments, "--html", "page.html")
    command, _ = re.findall(r"balloonctl (replay bx1\S+ --design .*)$", shown.stdout, re.MULTILINE)
    again = call(*shlex.split(command), "--json")
    assert again.exit_code == 0
    assert json.loads(again.stdout)["scenario"] == name
    assert f"mine.py:Mine / {name}" in shown.stdout
    assert f"mine.py:Mine / {name}" in call(*shlex.split(command)).stdout
    page = unescape((home / "page.html").read_text())
    assert f"<code>balloonctl {command}</code>" in page
    assert f"mine.py:Mine / {name}</h2>" in page
    found = json.loads(call(*arguments, "--json").stdout)["results"][0]
    assert found["scenario"] == name
    assert found["replay"] in command


@pytest.mark.parametrize(
    ("text", "name", "code", "words"),
    [
        (MINE_TOO, "MIN", 1, ("own.py has no scenario MIN", "hint: --scenario own.py:MINE")),
        (MINE_TOO, "NONE", 1, ("own.py:5: NONE is no scenario", "it is of int")),
        (MINE_TOO, "WRONG", 1, ("own.py:6: scenario wrong has an unknown actor 'X'",)),
        (MINE_TOO, "TWICE", 1, ("own.py:7: scenario twice has an actor twice",)),
        (MINE_TOO, "TYPE", 1, ("own.py:9: free of scenario type is 'x'", "why: it has to be an integer")),
        ("x = 1\nimport nothing_of_that_name\n", "MINE", 1, ("own.py:2 does not import", "ModuleNotFound")),
        ("x = 1\n\nMINE = Scenario(\n", "MINE", 1, ("own.py:3 does not import", "SyntaxError")),
        (MINE_TOO, "", 2, ("names a file and no scenario",)),
    ],
)
def test_a_scenario_file_with_a_mistake_names_the_line(
    text: str, name: str, code: int, words: tuple[str, ...], call: Callable[..., Ran], home: Path
) -> None:
    (home / "own.py").write_text(text)
    result = call("explore", "modern", "--scenario", f"own.py:{name}")
    assert result.exit_code == code
    for word in words:
        assert word in result.stderr


def test_a_combination_of_actors_by_name(call: Callable[..., Ran]) -> None:
    result = call("explore", "coarse", "--scenario", "fill+oom-nofs-fs-lock+user")
    assert result.exit_code == 3
    assert re.search(r"BUG +fill\+oom-nofs-fs-lock\+user +deadlock after", result.stdout)


def test_a_file_that_leaves_scenarios_out_is_told_of(
    explorer: Explorer, call: Callable[..., Ran], tmp_path: Path
) -> None:
    file = tmp_path / "balloonctl.toml"
    file.write_text('[explore]\nscenario = ["oom-while-filling", "fill-alone"]\n')
    narrowed = "balloonctl.toml narrows it to scenario oom-while-filling, fill-alone"
    result = call("explore", "coarse")
    assert result.stderr == f"note: not everything is explored: {narrowed}\n"
    assert len(explorer.calls) == 2
    assert narrowed in call("explore", "--all", "--by", "scenario").stderr
    assert narrowed in call("explore", "coarse", "--thorough").stderr
    assert call("explore", "coarse", "--scenario", "fill-alone").stderr == ""
    file.unlink()
    assert call("explore", "coarse").stderr == ""
    result = call("explore", "coarse", env={"BALLOONCTL_EXPLORE_SCENARIO": "fill-alone"})
    assert "BALLOONCTL_EXPLORE_SCENARIO narrows it to scenario fill-alone" in result.stderr
    file.write_text('[explore]\nproperty = "deadlock"\n')
    assert "narrows it to property deadlock" in call("explore", "coarse").stderr


def test_list(explorer: Explorer, call: Callable[..., Ran]) -> None:
    assert "four meet" in call("explore", "--list").stdout
    assert "four meet" not in call("explore", "coarse", "--list").stdout
    found = json.loads(call("explore", "--list", "--json").stdout)
    assert found["schema"] == "balloonctl/scenarios/1"
    assert [one["name"] for one in found["scenarios"]] == [
        "fill-alone",
        "oom-while-filling",
        "oom-and-compaction",
    ]
    assert explorer.calls == []


@pytest.mark.usefixtures("explorer")
@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("coars",), 2, ("no locking design 'coars'", "hint: did you mean coarse?")),
        (
            ("coarse", "--scenario", "oom-while-filing"),
            2,
            ("oom-while-filing", "--scenario oom-while-filling"),
        ),
        (
            ("coarse", "--scenario", "xyzzy"),
            2,
            ("is near it", "balloonctl explore --list shows all"),
        ),
        (("split", "--set", "insrt=late"), 2, ("no option 'insrt'", "--set insert=late")),
        (("split", "--set", "insert"), 2, ("is not OPTION=VALUE",)),
        ((), 2, ("name a DESIGN, or give --all or --list",)),
        (("--all", "coarse"), 2, ("--all takes all designs",)),
        (("coarse", "--by", "scenario"), 2, ("--by is for --all",)),
        (("--all", "--by", "property", "--html", "-"), 2, ("--html shows a matrix by scenario",)),
        (("--all", "--confirm", "5"), 2, ("--confirm is for --all --by scenario",)),
        (("coarse", "--scenario", "fill+user+oom"), 2, ("no combination", "fill|leak|teardown")),
        (("coarse", "--scenario", "none.py:MINE"), 1, ("cannot read the scenario file none.py",)),
        (("missing.py:Mine",), 1, ("cannot read the design file missing.py",)),
        (("coarse", "--max-states", "0"), 2, ("--max-states",)),
    ],
)
def test_errors(args: tuple[str, ...], code: int, words: tuple[str, ...], call: Callable[..., Ran]) -> None:
    result = call("explore", *args)
    assert result.exit_code == code
    assert result.stdout == ""
    for word in words:
        assert word in result.stderr


@pytest.mark.usefixtures("explorer")
def test_completion(call: Callable[..., Ran]) -> None:
    env = {
        "_BALLOONCTL_COMPLETE": "bash_complete",
        "COMP_WORDS": "balloonctl explore coarse --scenario oom-w",
        "COMP_CWORD": "4",
    }
    assert "oom-while-filling" in call(env=env).stdout


# ---- with the real explorer -------------------------------------------------


MINE = """
from balloonvq.driver.designs.coarse import Coarse


class Mine(Coarse):
    '''Coarse by another name.'''
"""


PRINTS = """
from balloonvq.driver.designs.coarse import Coarse

print("said at import")


class Mine(Coarse):
    def probe(self):
        print("said by probe")
        super().probe()

    def leak(self, n):
        print("said by leak")
        return super().leak(n)
"""


def test_regression_what_a_design_prints_is_no_part_of_the_result(
    call: Callable[..., Ran], home: Path
) -> None:
    (home / "mine.py").write_text(PRINTS)
    said = {"said at import", "said by probe", "said by leak"}
    found = call("explore", "mine.py:Mine", "--scenario", "oom-while-filling", "--confirm", "1", "--json")
    assert found.exit_code == 3
    (bug,) = json.loads(found.stdout)["results"]
    assert bug["live"]["confirmed"] == 1
    assert {*found.stderr.splitlines()} == said
    again = call("replay", bug["replay"], "--design", "mine.py:Mine", "--live", "--times", "1", "--json")
    assert json.loads(again.stdout)["live"]["confirmed"] == 1
    assert {*again.stderr.splitlines()} == said
    shown = call("explore", "mine.py:Mine", "--scenario", "oom-while-filling")
    assert "DEADLOCK" in shown.stdout
    assert "said" not in shown.stdout


def test_regression_what_a_design_prints_in_a_worker_is_no_part_of_the_result(home: Path) -> None:
    (home / "mine.py").write_text(PRINTS)
    scenarios = [word for name in ("two-ooms", "oom-while-filling") for word in ("--scenario", name)]
    command = [
        sys.executable,
        "-m",
        "balloonctl",
        "explore",
        "mine.py:Mine",
        *scenarios,
        "--jobs",
        "2",
        "--json",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 3
    assert len(json.loads(done.stdout)["results"]) == 2
    assert "said by leak" in done.stderr


@pytest.mark.parametrize("own", [False, True])
def test_a_bug_that_is_found_is_replayed(own: bool, call: Callable[..., Ran], home: Path) -> None:
    (home / "mine.py").write_text(MINE)
    design = "mine.py:Mine" if own else "coarse"
    found = call("explore", design, "--scenario", "oom-while-filling", "--json")
    assert found.exit_code == 3
    (bug,) = json.loads(found.stdout)["results"]
    assert bug["kind"] == "deadlock"
    again = call("replay", bug["replay"], *(["--design", design] if own else []), "--json")
    assert again.exit_code == 0
    replayed = json.loads(again.stdout)
    assert replayed["schema"] == "balloonctl/replay/1"
    assert {name: replayed[name] for name in ("design", "options", "scenario", "replay")} == {
        name: bug[name] for name in ("design", "options", "scenario", "replay")
    }
    assert {name: bug["schedule"][name] for name in replayed["schedule"]} == replayed["schedule"]
    shown = call("replay", bug["replay"], *(["--design", design] if own else []))
    assert "X " in shown.stdout
    assert "W holds balloon_lock, wants fs_lock" in shown.stdout
    if own:
        lost = call("replay", bug["replay"])
        assert lost.exit_code == 2
        assert "hint: give --design path/to/file.py:ClassName or --scenario" in lost.stderr


def test_a_bug_is_confirmed_on_real_threads(explorer: Explorer, call: Callable[..., Ran]) -> None:
    explorer.verdicts["oom-while-filling"] = broken
    result = call("explore", "coarse")
    assert result.exit_code == 3
    assert "confirmed on real threads 10/10" in result.stdout
    assert "confirmed on real threads 100/100" in call("explore", "coarse", "--confirm", "100").stdout
    assert explorer.confirmed == [10, 100]
    member = json.loads(call("explore", "coarse", "--json").stdout)["results"][1]["live"]
    assert (member["times"], member["confirmed"], member["difference"]) == (10, 10, "")


def test_confirmation_can_be_left_out(explorer: Explorer, call: Callable[..., Ran]) -> None:
    explorer.verdicts["oom-while-filling"] = broken
    assert "real threads" not in call("explore", "coarse", "--confirm", "0").stdout
    assert call("explore", "--all", "--by", "scenario").exit_code == 3
    assert explorer.confirmed == []
    assert call("explore", "--all", "--by", "scenario", "--confirm", "5").exit_code == 3
    assert set(explorer.confirmed) == {5}


def test_a_bug_that_is_not_there_on_real_threads_is_told(
    explorer: Explorer, call: Callable[..., Ran]
) -> None:
    explorer.verdicts["oom-while-filling"] = broken
    explorer.differs = True
    result = call("explore", "coarse")
    assert result.exit_code == 3
    flat = " ".join(result.stdout.split())
    assert (
        "✗ NOT confirmed on real threads 2/10: run 3: step 3: W has ended (the schedule has O: lock(b))"
        in flat
    )


def test_replay_live_forces_the_deadlock_on_real_threads(call: Callable[..., Ran]) -> None:
    bug = json.loads(call("explore", "coarse", "--scenario", "oom-while-filling", "--json").stdout)[
        "results"
    ][0]
    assert (bug["live"]["confirmed"], bug["live"]["times"]) == (10, 10)
    shown = call("replay", bug["replay"], "--live", "--times", "5")
    assert shown.exit_code == 0
    assert shown.stdout.splitlines()[-1] == "confirmed on real threads 5/5"
    assert "in a circle: each waits for the next" in shown.stdout
    assert "#2 oom_lock" in shown.stdout
    found = json.loads(call("replay", bug["replay"], "--live", "--json").stdout)
    assert (found["kind"], found["what"]) == (bug["kind"], bug["what"])
    assert (found["live"]["confirmed"], found["live"]["times"]) == (100, 100)
    assert [task["owner"] for task in found["live"]["tasks"]] == ["O", "W"]


def test_replay_shows_a_livelock_with_its_loop(call: Callable[..., Ran]) -> None:
    explored = call("explore", "upstream", "--scenario", "oom-while-filling", "--json", "--confirm", "1")
    bug = json.loads(explored.stdout)["results"][0]
    assert bug["live"]["confirmed"] == 1
    found = json.loads(call("replay", bug["replay"], "--json").stdout)
    assert found["kind"] == "livelock"
    assert found["live"] is None
    assert found["schedule"]["loop"] == bug["schedule"]["loop"]
    shown = call("replay", bug["replay"])
    assert "*** LIVELOCK *** O for ever without progress" in shown.stdout


def test_replay_live_that_differs_is_exit_code_1(
    call: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch
) -> None:
    explorer = Explorer()
    explorer.differs = True
    monkeypatch.setattr(live, "confirm", explorer.confirm)
    explored = call("explore", "coarse", "--scenario", "oom-while-filling", "--json", "--confirm", "0")
    string = json.loads(explored.stdout)["results"][0]["replay"]
    result = call("replay", string, "--live")
    assert result.exit_code == 1
    assert explorer.confirmed == [100]
    assert "NOT confirmed on real threads 2/100" in result.stdout


def test_times_without_live_is_refused(call: Callable[..., Ran]) -> None:
    result = call("replay", "bx1.ne6d.00m40r5.zrtz", "--times", "3")
    assert result.exit_code == 2
    assert "give --live" in result.stderr


def test_a_replay_string_with_a_typing_error(call: Callable[..., Ran]) -> None:
    result = call("replay", "bx1.ne6d.00m40r5.zrtz")
    assert result.exit_code == 2
    assert "typing error" in result.stderr
    assert "begins with bx1" in call("replay", "bx9.ne6d.00m40r5.zrtz").stderr


def test_a_scenario_that_means_nothing_for_the_design_is_refused_at_once(call: Callable[..., Ran]) -> None:
    result = call("explore", "modern", "--scenario", "oom-while-leaking", "--scenario", "shrinkers")
    assert result.exit_code == 2
    assert "shrinker" in result.stderr
    assert result.stdout == ""


def test_the_real_scenarios_are_listed_and_limits_hold(call: Callable[..., Ran]) -> None:
    assert "oom-while-filling" in call("explore", "modern", "--list").stdout
    result = call("explore", "modern", "--scenario", "oom-while-filling", "--max-states", "10")
    assert result.exit_code == 5
    assert "more than 10 states" in result.stdout


def test_the_page_is_written_beside_the_result(
    explorer: Explorer, call: Callable[..., Ran], tmp_path: Path
) -> None:
    result = call("explore", "coarse", "--html", str(tmp_path / "coarse.html"))
    assert result.exit_code == 0
    assert "2 PROVED" in result.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["coarse.html"]
    assert "2 PROVED" in (tmp_path / "coarse.html").read_text()


def test_the_page_can_go_to_stdout(explorer: Explorer, call: Callable[..., Ran]) -> None:
    result = call("explore", "coarse", "--html", "-")
    assert result.stdout.startswith("<!doctype html>")
    assert result.stdout.endswith("</html>\n")


def test_a_page_that_cannot_be_written_is_said_before_anything_is_explored(
    explorer: Explorer, call: Callable[..., Ran], tmp_path: Path
) -> None:
    result = call("explore", "coarse", "--html", str(tmp_path / "none" / "coarse.html"))
    assert result.exit_code == 1
    assert "cannot write" in result.stderr
    assert not explorer.calls


def test_a_property_is_explored_for_by_its_name(call: Callable[..., Ran]) -> None:
    result = call("explore", "split", "--property", "oom-page-listed", "--confirm", "0", "--json")
    assert result.exit_code == 3
    results = json.loads(result.stdout)["results"]
    assert {one["scenario"] for one in results} == {"empty-handed-filling", "empty-handed-leaking"}
    assert [one["what"] for one in results if one["verdict"] == "BUG"] == [
        "O: KernelBug(OOM came back with nothing, and pages were listed)"
    ]


def test_a_property_needs_a_design_and_has_to_exist(call: Callable[..., Ran]) -> None:
    assert call("explore", "--all", "--property", "deadlock").exit_code == 2
    wrong = call("explore", "split", "--property", "dedlock")
    assert wrong.exit_code == 2
    assert "did you mean deadlock?" in wrong.stderr
