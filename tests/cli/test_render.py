"""What each document looks like: fixed width, no colour, compared as text."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from typing import Any

import pytest
from cli_fakes import CIRCLE, MIB, PAGE, FakeMachine
from rich.console import Console, RenderableType

from balloonctl.render.compact import render_check, render_compact
from balloonctl.render.deadlock import render_deadlock
from balloonctl.render.info import render_info
from balloonctl.render.machines import render_ps, render_start, render_stop
from balloonctl.render.oom import render_oom
from balloonctl.render.resize import render_plan, render_resize
from balloonctl.render.stats import render_stats
from balloonctl.render.status import render_status
from balloonctl.render.units import count, duration, size
from balloonctl.render.watch import rates, render_watch, sparkline, watch_line
from balloonvq.counters import Counters, to_document


def draw(renderable: RenderableType, width: int = 80) -> str:
    console = Console(
        file=io.StringIO(),
        width=width,
        color_system=None,
        _environ={},
        highlight=False,
        emoji=False,
        markup=False,
    )
    console.print(renderable)
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= width
    return "\n".join(line.rstrip() for line in text.splitlines())


def busy() -> FakeMachine:
    machine = FakeMachine(target_pages=512 * 256, actual_pages=384 * 256, reachable_pages=384 * 256)
    machine.counters = Counters(
        inflated_pages=98304,
        requests=384,
        kicks=300,
        kicks_suppressed=84,
        interrupts=290,
        oom_events=2,
        oom_kills=1,
    )
    return machine


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_status(width: int, snapshot: Any) -> None:
    assert draw(render_status(to_document(busy().status())), width) == snapshot


def test_a_column_of_the_queues_that_does_not_fit_stands_below() -> None:
    machine = busy()
    machine.counters = replace(machine.counters, kicks=123_456_789, interrupts=123_456_789, requests=1)
    text = draw(render_status(to_document(machine.status())), 80)
    assert "…" not in text
    assert text.count("queue  ") == 2
    assert "41 µs" in text


def test_one_of_a_thing_is_called_so() -> None:
    machine = busy()
    machine.counters = Counters(kicks=1, config_changes=1, pfns_duplicate=1, inflated_pages=1, discards=1)
    text = draw(render_status(to_document(machine.status())), 120)
    for words in ("1  kick ", "1  config change\n", "1  PFN twice", "1  page inflated", "1  system call "):
        assert words in text


@pytest.mark.parametrize("width", [30, 60])
def test_ps_on_a_narrow_terminal(width: int, snapshot: Any) -> None:
    rows = [
        {"name": "a", "state": "dead", "trouble": "it was killed"},
        {"name": "b", "state": "starting", "pid": 7},
        {"name": "c", **to_document(busy().status())},
    ]
    assert draw(render_ps({"machines": rows}), width) == snapshot


def test_status_without_a_guest() -> None:
    document = to_document(FakeMachine().status()) | {"state": "waiting", "device_status": []}
    text = draw(render_status(document), 120)
    assert re.search("^balloon +no guest is attached$", text, re.MULTILINE)
    assert re.search("^device +no driver; ", text, re.MULTILINE)
    assert "settled" not in text


def test_status_in_trouble(snapshot: Any) -> None:
    machine = busy()
    machine.state, machine.trouble = "broken", "inflate queue: descriptor 7 points outside guest memory"
    machine.counters = replace(machine.counters, lost_pages=3)
    assert draw(render_status(to_document(machine.status()))) == snapshot


def test_a_slip_in_a_design_is_not_called_a_bug_of_the_kernel() -> None:
    trouble = "task W ended with ValueError at mine.py:5 in Mine.fill: my own mistake"
    document = to_document(busy().status())
    document |= {"state": "bug", "trouble": trouble, "balloon": {"state": "short", "reason": "kernel-bug"}}
    text = draw(render_status(document))
    assert "short of its target: a task of the guest ended with ValueError" in text
    assert "BUG()" not in text
    text = draw(render_status(document | {"trouble": "balloon_page_dequeue: BUG(): the list is empty"}))
    assert "short of its target: the guest kernel reached a BUG()" in text


def test_settled_is_not_all_while_the_host_waits_for_memory() -> None:
    document = to_document(FakeMachine().status())
    assert "✓ settled\n" in draw(render_status(document))
    text = draw(render_status(document | {"discard_backlog_bytes": 3 * MIB}))
    assert "✓ settled: acknowledged; the host is still getting memory back\n" in text
    assert "3 MiB on their way back" in text


def test_status_of_a_foreign_machine(snapshot: Any) -> None:
    document = {
        "schema": "balloonctl/status/1",
        "state": "running",
        "ram_bytes": 1 << 30,
        "guest_usable_bytes": 1 << 29,
        "actual_bytes": 1 << 29,
        "actual_pages": 1 << 17,
        "monotonic_ns": 1,
    }
    assert draw(render_status(document)) == snapshot
    assert "512 MiB" in watch_line([document])


@pytest.mark.parametrize("width", [80, 120])
def test_deadlock(width: int, snapshot: Any) -> None:
    assert draw(render_deadlock(to_document(CIRCLE)), width) == snapshot


def test_deadlock_of_five_is_three_a_row(snapshot: Any) -> None:
    tasks = [
        {**task, "task": f"T{number}"}
        for number in range(5)
        for task in to_document(CIRCLE)["tasks"][number % 2 : number % 2 + 1]
    ]
    text = draw(render_deadlock({"design": "split", "tasks": tasks, "detected_ns": 0}))
    assert text == snapshot
    assert "T0: " in text
    assert "T4: " in text


@pytest.mark.parametrize("outcome", ["relieved", "killed", "fitted", "deadlocked"])
def test_oom(outcome: str, snapshot: Any) -> None:
    machine = FakeMachine(oom_outcome=outcome)
    assert draw(render_oom(to_document(machine.oom(None, True, outcome == "deadlocked")))) == snapshot


def test_stats(snapshot: Any) -> None:
    assert draw(render_stats(to_document(FakeMachine().statistics(refresh=True)))) == snapshot
    assert draw(render_stats({"updates": 0, "last_update": None, "stats": {}})) == "updates 0, the last never"


def test_small_results(snapshot: Any) -> None:
    result = {
        "outcome": "reached",
        "start_bytes": 0,
        "target_bytes": 64 * MIB,
        "actual_bytes": 64 * MIB,
        "guest_usable_bytes": 960 * MIB,
        "ram_bytes": 1024 * MIB,
        "elapsed_ns": 31_000_000,
    }
    plan = {
        "target_before_bytes": 0,
        "target_bytes": 64 * MIB,
        "target_pages": 64 * MIB // PAGE,
        "pages": 64 * MIB // PAGE,
        "requests": 64,
        "direction": "inflate",
        "guest_usable_bytes": 960 * MIB,
        "ram_bytes": 1024 * MIB,
    }
    started = {
        "machine": "default",
        "private": False,
        "ram_bytes": 1 << 30,
        "touch_bytes": 1 << 30,
        "design": "modern",
    }
    info = {
        "versions": {"balloonctl": "0.1.0", "core": None},
        "paths": {"configuration_read": []},
        "settings": [{"name": "output", "value": None, "origin": "default"}],
    }
    parts = [
        render_resize(result),
        render_resize(result | {"outcome": "short", "actual_bytes": 32 * MIB}),
        render_resize(result | {"outcome": "sent", "elapsed_ns": None}),
        render_plan(plan),
        render_start(started),
        render_stop({"stopped": ["a", "b"]}),
        render_stop({"stopped": []}),
        render_ps({"machines": []}),
        render_ps(
            {"machines": [{"name": "a", "state": "dead"}, {"name": "b", **to_document(busy().status())}]}
        ),
        render_compact(to_document(FakeMachine().compact(None))),
        render_check({"checked_pages": 100, "lost_pages": 0}),
        render_check({"checked_pages": 100, "lost_pages": 1}),
        render_info(info),
    ]
    assert "\n\n".join(map(draw, parts)) == snapshot


def history(n: int) -> list[dict[str, Any]]:
    machine = FakeMachine()
    found = []
    for number in range(n):
        machine.set_target(256 * number * number)
        machine.wait(None, None)
        found.append(to_document(machine.status()))
    return found


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_watch(width: int, snapshot: Any) -> None:
    assert draw(render_watch(history(12), interval=1, paused=False, width=width), width) == snapshot


def test_watch_fits_a_small_terminal_and_needs_no_history() -> None:
    assert "waiting" in draw(render_watch([], interval=1, paused=False, width=40), 40)
    assert "paused" in draw(render_watch(history(2), interval=1, paused=True, width=60), 60)


@pytest.mark.parametrize("width", [30, 40, 51, 52, 65, 66, 80])
def test_no_figure_of_the_live_view_is_cut(width: int) -> None:
    # At 40 columns "324 MiB of 1 GiB" was "324 MiB   of           1", and 12,345,678/s was nothing at all.
    documents = history(2)
    counters = {name: 12_345_678 + number for number, name in enumerate(documents[0]["counters"])}
    for number, document in enumerate(documents):
        document["counters"] = {name: value * number for name, value in counters.items()}
        document |= {
            name: 700 * MIB + number * 10_000_000
            for number, name in enumerate(name for name in document if name.endswith("_bytes"))
        }
    text = draw(render_watch(documents, interval=1, paused=False, width=width), width)
    shown = {name for name in counters if re.search(rf"(?<![\d,]){count(counters[name])}(?![\d,])", text)}
    assert shown >= {"requests", "kicks", "interrupts_suppressed", "oom_kills", "lost_pages"}
    for name in ("target", "actual", "guest_usable", "guest_free", "returned_measured"):
        assert f" {size(documents[-1][f'{name}_bytes'])}" in text, name
    assert count(rates(documents)[-1]) in text
    assert text.count("0/128") == 3


@pytest.mark.parametrize("trouble", [None, "tasks O, W wait for each other's locks: " + "a long story, " * 9])
def test_the_live_view_fits_24_rows(trouble: str | None) -> None:
    documents = [document | {"trouble": trouble} for document in history(12)]
    lines = draw(render_watch(documents, interval=1, paused=True, width=80)).splitlines()
    assert len(lines) <= 24
    assert "q quit" in lines[1]


def test_numbers_of_the_live_view_do_not_jitter() -> None:
    lines = [draw(render_watch(history(n), interval=1, paused=False, width=80)).splitlines() for n in (2, 12)]
    assert len(lines[0]) == len(lines[1])
    for one, other in zip(*lines, strict=True):
        if one.startswith(("requests", "kicks", "interrupts", "target", "PFNs")):
            assert len(one) == len(other)


def test_rates_come_from_the_machine_s_clock() -> None:
    documents = history(3)
    assert rates(documents, "inflated_pages") == [256.0, 768.0]
    assert rates(documents) == [256.0, 768.0]
    assert rates([documents[0], documents[0]]) == [0.0]
    assert rates(documents[:1]) == []


def test_the_sparkline_shows_everything_above_zero() -> None:
    assert sparkline([0, 1, 1000], 5) == "   ▁█"
    assert sparkline([], 3) == "   "
    assert sparkline([0, 0], 2) == "  "


def test_units() -> None:
    assert [size(value) for value in (0, 1023, 1024, 1536, 1 << 30, None)] == [
        "0 B",
        "1023 B",
        "1 KiB",
        "1.5 KiB",
        "1 GiB",
        "-",
    ]
    assert [count(value) for value in (0, 131072, None)] == ["0", "131,072", "-"]
    spans = (0, 850, 1200, 999_950, 99_960_000, 3.4e9, 59.99e9, 125e9, 11_000e9, 200_000e9, None)
    assert [duration(span) for span in spans] == [
        "0 ns",
        "850 ns",
        "1.2 µs",
        "1000 µs",
        "100 ms",
        "3.4 s",
        "60 s",
        "2 min 5 s",
        "3 h 3 min",
        "2 d 7 h",
        "-",
    ]
