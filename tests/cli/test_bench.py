"""bench: its options, its files, and how two of them are compared."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from syrupy.assertion import SnapshotAssertion

from balloonctl.bench_files import as_csv, as_markdown, as_pyperf
from balloonctl.commands import bench
from balloonctl.render.bench import render_comparison, render_report
from balloonctl.render.bench_html import bench_page
from balloonvq.bench import compare as comparing
from balloonvq.bench.measure import Against, Definition, Parameter, Plan, Row, Sample, measure
from balloonvq.bench.results import Report
from balloonvq.counters import to_document
from balloonvq.errors import BalloonError, InvalidArgument
from balloonvq.histogram import Histogram

SCHEMAS = Path(__file__).resolve().parent.parent.parent / "docs/reference/schemas"
Call = Callable[..., Any]

HOST = {
    "processor": "A processor",
    "cores": "2",
    "memory_bytes": "8589934592",
    "kernel": "6.1.0",
    "compiler": "gcc 12.2.0",
    "python": "3.11.7",
    "version": "0.1.0",
    "commit": "0123456789ab",
    "load_average": "0.10",
}


class Copying:
    """Copies nothing: its samples are made of its parameters."""

    def __init__(self, size_bytes: int = 1 << 20, depth: int = 4, sibling: bool = False) -> None:
        self.rows = (
            Row("limit", "one pass", bytes=size_bytes),
            Row("copy", "what | is measured", bytes=size_bytes, against=(Against("limit", 1.5),)),
            Row("slow", "the naive way", bytes=size_bytes, against=(Against("limit", 2.0), Against("copy"))),
            Row("trip", "one operation", per="array"),
            Row("rate", "operations", unit="Mops/s", better="higher"),
        )
        self.notes = ("pinned to processors 0 and 1",)
        self.base = size_bytes / 1000 * depth
        self.number = 0

    def round(self) -> dict[str, Sample]:
        self.number += 1
        drift = self.base * (1 + self.number % 4 / 100)
        trips = Histogram()
        for value in range(800, 1200, 7):
            trips.record(value * self.number)
        return {
            "limit": Sample(drift),
            "copy": Sample(drift * 1.25, {"syscalls_per_array": 1.4, "returned_bytes": 1 << 20}),
            "slow": Sample(drift * 7.5, {"python_share": 0.093, "device_cpu_ns": 1.25e6}),
            "trip": Sample(4.6, histogram=trips),
            "rate": Sample(12.5 + self.number % 3),
        }

    def close(self) -> None:
        pass


COPY = Definition(
    "copy",
    "What copying costs.",
    Copying,
    (
        Parameter("size", 1 << 20, "Bytes of a pass.", kind="size"),
        Parameter("depth", 4, "Passes.", kind="count", least=1, most=64),
        Parameter("sibling", False, "Whether a sibling runs.", kind="flag"),
    ),
    runs=6,
    warmup=1,
)


def refuses(**_: Any) -> Copying:
    raise BalloonError("there is no guest here", why="it is not installed", hint="apt install guest")


ABSENT = Definition("absent", "A guest that is not here.", refuses)


@pytest.fixture
def benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Benchmarks that take no time instead of the real ones."""
    table = {"copy": COPY, "absent": ABSENT}
    lines = {"copy": "What copying costs.", "absent": "A guest that is not here."}
    monkeypatch.setattr(bench, "BENCHMARKS", lines)
    monkeypatch.setattr(bench, "find", table.__getitem__)
    monkeypatch.setattr("balloonvq.host.facts", lambda: dict(HOST))


def report(scale: float = 1.0, **values: Any) -> Report:
    """A run of the copying benchmark on a machine so many times slower."""
    result = measure(COPY, {"size_bytes": round((1 << 20) * scale), **values}, Plan())
    parameters = {**result.parameters, "size_bytes": 1 << 20}
    result = replace(result, parameters=parameters, warnings=(), elapsed_ns=1_500_000_000)
    return Report(started="2026-01-02T03:04:05+00:00", host=HOST, results=(result,))


@pytest.fixture
def document() -> dict[str, Any]:
    return json.loads(json.dumps(to_document(report())))


def saved(path: Path, value: Any) -> str:
    path.write_text(json.dumps(value if isinstance(value, dict) else to_document(value)))
    return str(path)


# ---- the command -------------------------------------------------------------


@pytest.mark.usefixtures("benchmarks")
def test_a_benchmark_says_what_it_measured(call: Call) -> None:
    result = call("--json", "bench", "copy", "--size", "2M", "--runs", "3")
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    jsonschema.validate(document, json.loads((SCHEMAS / "bench-1.json").read_text()))
    (measured,) = document["results"]
    assert measured["parameters"] == {"size_bytes": 2 << 20, "depth": 4, "sibling": False}
    assert [len(row["samples"]) for row in measured["rows"]] == [3] * 5
    assert measured["rows"][1]["against"][0]["median"] == pytest.approx(1.25)
    assert document["host"] == HOST


@pytest.mark.usefixtures("benchmarks")
def test_a_scan_measures_every_combination(call: Call) -> None:
    result = call("bench", "copy", "--json", "--scan", "size=1M,2M", "--scan", "depth=1,2", "--sibling")
    found = [one["parameters"] for one in json.loads(result.stdout)["results"]]
    assert found == [
        {"size_bytes": size << 20, "depth": depth, "sibling": True} for size in (1, 2) for depth in (1, 2)
    ]


@pytest.mark.usefixtures("benchmarks")
@pytest.mark.parametrize(
    ("typed", "what", "hint"),
    [
        ("dept=1", "bench copy has no parameter 'dept'", "--scan depth=…"),
        ("depth", "--scan depth has no values", "--scan depth=VALUE,VALUE"),
        ("depth=,", "--scan depth=, has no values", "--scan depth=VALUE,VALUE"),
        ("size=1M,x", "x is not a size", "write a size as"),
        ("depth=1,65", "65 is not a whole number from 1 to 64", ""),
    ],
)
def test_scans_that_cannot_be(call: Call, typed: str, what: str, hint: str) -> None:
    result = call("bench", "copy", "--scan", typed)
    assert result.exit_code == 2
    assert what in result.stderr
    assert hint in result.stderr


@pytest.mark.usefixtures("benchmarks")
def test_all_leaves_out_what_cannot_be_measured_here(call: Call) -> None:
    result = call("bench", "all", "--json", "--depth", "2", "--scan", "size=1M,2M")
    document = json.loads(result.stdout)
    assert result.exit_code == 0
    assert [one["parameters"]["size_bytes"] >> 20 for one in document["results"]] == [1, 2]
    assert {one["parameters"]["depth"] for one in document["results"]} == {2}
    assert document["skipped"] == [
        {
            "benchmark": "absent",
            "what": "there is no guest here",
            "why": "it is not installed",
            "hint": "apt install guest",
        }
    ]
    assert "not measured: there is no guest here" in call("bench", "all").stdout
    assert call("bench", "all", "--scan", "nothing=1").exit_code == 2


class Stopped(Copying):
    """Ctrl-C comes in the round after the warm-up and two that count."""

    def round(self) -> dict[str, Sample]:
        if self.number == 3:
            raise KeyboardInterrupt
        return super().round()


@pytest.mark.usefixtures("benchmarks")
def test_ctrl_c_keeps_what_was_measured(call: Call, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    table = {"absent": ABSENT, "copy": COPY, "stopped": replace(COPY, name="stopped", create=Stopped)}
    monkeypatch.setattr(bench, "BENCHMARKS", dict.fromkeys(table, ""))
    monkeypatch.setattr(bench, "find", table.__getitem__)
    earlier = tmp_path / "earlier.csv"
    earlier.write_text("what was there")
    result = call("bench", "all", "--json", "--csv", str(earlier))
    assert result.exit_code == 130
    document = json.loads(result.stdout)
    jsonschema.validate(document, json.loads((SCHEMAS / "bench-1.json").read_text()))
    assert document["interrupted"] is True
    assert [(one["benchmark"], one["runs"]) for one in document["results"]] == [("copy", 6), ("stopped", 2)]
    assert [one["benchmark"] for one in document["skipped"]] == ["absent"]
    assert earlier.read_text() == "what was there"
    assert "stopped" in call("bench", "stopped").stdout
    # Stdout is for something else, and nothing was measured.
    assert call("bench", "stopped", "--csv", "-").stdout == ""
    assert call("bench", "stopped", "--json", "--warmup", "4").stdout == ""


@pytest.mark.usefixtures("benchmarks")
def test_alone_what_cannot_be_measured_is_an_error(call: Call) -> None:
    result = call("bench", "absent")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: there is no guest here\nwhy: it is not installed\n")


@pytest.mark.usefixtures("benchmarks")
def test_an_error_is_json_only_if_the_result_would_be(call: Call, tmp_path: Path) -> None:
    assert call("bench", "absent", "--json", str(tmp_path / "out.json")).stderr.startswith("error: ")
    assert call("bench", "absent", "--json").stderr.startswith("{")
    assert call("--json", "bench", "absent").stderr.startswith("{")
    assert call("bench", "compare", "--json", "absent", "absent").stderr.startswith("{")


@pytest.mark.usefixtures("benchmarks")
def test_options_come_from_the_environment_too(call: Call) -> None:
    result = call("bench", "copy", "--json", env={"BALLOONCTL_BENCH_COPY_RUNS": "2"})
    assert json.loads(result.stdout)["results"][0]["runs"] == 2


def test_a_benchmark_that_does_not_exist(call: Call) -> None:
    result = call("bench", "inflat")
    assert result.exit_code == 2
    assert "no such command: 'inflat'; did you mean inflate or deflate?" in result.stderr


def test_the_list_of_benchmarks_imports_none_of_them(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "find", pytest.fail)
    result = call("bench", "--help")
    assert result.exit_code == 0
    assert all(f"\n  {name} " in result.stdout for name in bench.BENCHMARKS)


# ---- files -------------------------------------------------------------------


@pytest.mark.usefixtures("benchmarks")
def test_files_are_written_beside_the_table(call: Call, tmp_path: Path) -> None:
    names = {form: tmp_path / f"out.{form}" for form in ("json", "csv", "markdown", "html", "pyperf")}
    result = call(
        "bench", "copy", *(word for form, path in names.items() for word in (f"--{form}", str(path)))
    )
    assert result.exit_code == 0
    assert result.stdout.startswith("copy ")
    document = json.loads(names["json"].read_text())
    assert names["csv"].read_text() == as_csv(document)
    assert names["markdown"].read_text() == as_markdown(document)
    assert names["pyperf"].read_text() == as_pyperf(document)
    assert names["html"].read_text().startswith("<!doctype html>")


@pytest.mark.usefixtures("benchmarks")
def test_a_dash_is_stdout_instead_of_the_table(call: Call) -> None:
    assert call("bench", "copy", "--csv", "-").stdout.startswith("benchmark,parameter:size_bytes,")
    assert call("bench", "copy", "--markdown", "-").stdout.startswith("### copy: size 1 MiB")
    assert json.loads(call("bench", "copy", "--json", "-").stdout)["schema"] == "balloonctl/bench/1"
    assert json.loads(call("bench", "copy", "--json").stdout)["schema"] == "balloonctl/bench/1"
    for line in ("--json --output plain", "--output plain --json -"):
        assert call("bench", "copy", *line.split()).exit_code == 2, line
    both = call("bench", "copy", "--csv", "-", "--html", "-")
    assert (both.exit_code, both.stdout) == (2, "")
    assert "cannot both have stdout" in both.stderr


def test_a_file_that_cannot_be_written_is_refused_before_measuring(call: Call, tmp_path: Path) -> None:
    # 1 TiB is more than any machine here can measure: it is not reached.
    result = call("bench", "inflate", "--size", "1T", "--csv", str(tmp_path / "no" / "such" / "folder"))
    assert result.exit_code == 1
    assert "cannot write" in result.stderr


@pytest.mark.usefixtures("benchmarks")
def test_no_file_is_left_when_measuring_fails(call: Call, tmp_path: Path) -> None:
    assert call("bench", "absent", "--csv", str(tmp_path / "out.csv")).exit_code == 1
    assert list(tmp_path.iterdir()) == []


def test_csv_has_every_figure(document: dict[str, Any]) -> None:
    lines = list(csv.DictReader(io.StringIO(as_csv(document))))
    (result,) = document["results"]
    assert len(lines) == len(result["rows"])
    for line, row in zip(lines, result["rows"], strict=True):
        assert line["row"] == row["name"]
        assert line["parameter:size_bytes"] == "1048576"
        assert [float(value) for value in line["samples"].split()] == row["samples"]
        assert float(line["median"]) == row["median"]
        if row["against"]:
            assert line["against"] == row["against"][0]["row"]
            assert float(line["ratio"]) == row["against"][0]["median"]
        for fact in row["facts"]:
            assert float(line[f"fact:{fact['name']}"]) == fact["median"]
        if row["latency"]:
            assert int(line["p99_ns"]) == row["latency"]["p99_ns"]


def test_markdown_has_a_line_a_row(document: dict[str, Any], snapshot: SnapshotAssertion) -> None:
    text = as_markdown(document)
    tables = [line for line in text.splitlines() if line.startswith("|")]
    assert len(tables) == 2 + len(document["results"][0]["rows"])
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in tables} == {7}
    assert text == snapshot


def test_pyperf_reads_its_file_back(document: dict[str, Any], tmp_path: Path) -> None:
    pyperf = pytest.importorskip("pyperf")
    path = tmp_path / "out.json"
    path.write_text(as_pyperf(document))
    suite = pyperf.BenchmarkSuite.load(str(path))
    rows = document["results"][0]["rows"]
    assert len(suite) == len(rows)
    for one, row in zip(suite, rows, strict=True):
        scale = 1e-9 if row["unit"] == "ns" else 1
        assert one.get_values() == pytest.approx([sample * scale for sample in row["samples"]])
        assert one.get_name() == f"copy, {row['name']}, size 1 MiB, depth 4, no sibling"
        assert one.get_unit() == "second" or row["unit"] != "ns"
        assert one.median() == pytest.approx(row["median"] * scale)


def test_the_page_is_self_contained(document: dict[str, Any]) -> None:
    scanned = {**document, "results": [*document["results"], *document["results"]]}
    scanned["results"][1] = {
        **scanned["results"][1],
        "parameters": {"size_bytes": 2 << 20, "depth": 4, "sibling": False},
    }
    text = bench_page(scanned, "balloonctl 0 <&>")
    assert re.findall(r"https?://|@import|@font-face|<script|<link|<img|src=", text) == []
    assert "what | is measured" in text
    assert "balloonctl 0 &lt;&amp;&gt;" in text or "balloonctl 0 <&>" not in text
    charts = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    # By size: ns, ns/array and Mops/s; then for each of two runs: the same three, and the percentiles.
    assert len(charts) == 3 + 2 * 4
    assert "NaN" not in text
    assert "inf" not in "".join(charts)


def test_what_comes_from_a_benchmark_is_escaped_on_the_page(document: dict[str, Any]) -> None:
    (result,) = document["results"]
    result["notes"] = ["<script>alert(1)</script>"]
    result["rows"][0]["name"] = "<b>bold</b>"
    result["rows"][1]["against"][0]["row"] = "<b>bold</b>"
    text = bench_page(document, "")
    assert "<script>" not in text
    assert "<b>bold" not in text


# ---- how it looks ------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 120])
def test_a_run_on_a_terminal(document: dict[str, Any], width: int, snapshot: SnapshotAssertion) -> None:
    console = Console(width=width, color_system=None, record=True, file=io.StringIO(), highlight=False)
    console.print(render_report(document))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert text == snapshot


def test_a_comparison_on_a_terminal(snapshot: SnapshotAssertion) -> None:
    compared = comparing.compare(report(), report(1.2), names=("old.json", "new.json"), fail_above=0.05)
    console = Console(width=80, color_system=None, record=True, file=io.StringIO(), highlight=False)
    console.print(render_comparison(to_document(compared)))
    assert console.export_text() == snapshot


@pytest.mark.parametrize("width", [120, 80, 60, 40])
def test_ratio_and_verdict_of_a_comparison_are_whole_on_every_terminal(width: int) -> None:
    document = to_document(comparing.compare(report(), report(1.2), fail_above=0.05))
    for row, name in zip(document["rows"], LONG_ROWS, strict=False):
        row |= {"row": name, "unit": "ns", "per": "page"}
    console = Console(width=width, color_system=None, record=True, file=io.StringIO(), highlight=False)
    console.print(render_comparison(document))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= width
    assert ("old/page" in text) == (width >= 80)
    assert ("a wider terminal shows old, new" in text) == (width < 80)
    lines = [line.rstrip() for line in text.splitlines() if line.startswith("memfd")]
    assert len(lines) == len(LONG_ROWS)
    for line, row in zip(lines, document["rows"], strict=False):
        assert f" {row['ratio']:.3f} " in line
        assert line.endswith((" machine slower", " \u2717 slower", " same"))
        assert (f" {row['low']:.2f} \u2026 {row['high']:.2f} " in line) == (width > 40)
        assert "\u2026" not in line.replace(" \u2026 ", "")
    whole = " ".join(text.split())
    assert all(name in whole for name in LONG_ROWS) == (width > 60)


#: Of bench inflate.
LONG_ROWS = (
    "memfd limit",
    "memfd contiguous",
    "memfd shuffled firecracker",
    "memfd shuffled qemu sibling",
    "memfd path",
)


# ---- compare -----------------------------------------------------------------


def test_a_slower_run_exits_4_above_the_limit_only(call: Call, tmp_path: Path) -> None:
    old = saved(tmp_path / "old.json", report())
    slower = saved(tmp_path / "slower.json", report(1.2))
    assert call("bench", "compare", old, slower).exit_code == 0
    assert call("bench", "compare", old, slower, "--fail-above", "5%").exit_code == 4
    assert call("bench", "compare", old, slower, "--fail-above", "25%").exit_code == 0
    assert call("bench", "compare", slower, old, "--fail-above", "0%").exit_code == 0
    assert call("bench", "compare", old, old, "--fail-above", "0%").exit_code == 0


def test_the_document_of_a_comparison(call: Call, tmp_path: Path) -> None:
    old = saved(tmp_path / "old.json", report())
    new = saved(tmp_path / "new.json", report(1.2))
    result = call("--json", "bench", "compare", old, new, "--fail-above", "5%")
    document = json.loads(result.stdout)
    jsonschema.validate(document, json.loads((SCHEMAS / "bench-compare-1.json").read_text()))
    rows = {row["row"]: row for row in document["rows"]}
    assert rows["copy"]["ratio"] == pytest.approx(1.2, rel=1e-3)
    assert rows["copy"]["low"] <= rows["copy"]["ratio"] <= rows["copy"]["high"]
    assert {name for name, row in rows.items() if row["failed"]} == {"copy", "slow"}
    assert rows["limit"]["limit"]
    assert rows["limit"]["verdict"] == "slower"
    assert (rows["trip"]["ratio"], rows["trip"]["verdict"]) == (1, "same")
    assert document["regressions"] == 2


def test_ratios_to_the_limit_do_not_see_a_slower_machine(call: Call, tmp_path: Path) -> None:
    old = saved(tmp_path / "old.json", report())
    new = saved(tmp_path / "new.json", report(3))
    assert call("bench", "compare", old, new, "--relative", "--fail-above", "1%").exit_code == 0
    assert call("bench", "compare", old, new, "--fail-above", "1%").exit_code == 4


def noisy(tmp_path: Path, *samples: float) -> Report:
    document = to_document(report())
    document["results"][0]["rows"][1]["samples"] = samples
    return comparing.load(Path(saved(tmp_path / "noisy.json", document)))


def test_a_difference_within_the_error_is_called_so(tmp_path: Path) -> None:
    before = noisy(tmp_path, 90, 100, 110, 95, 105, 100)
    after = noisy(tmp_path, 100, 112, 130, 90, 112, 115)
    compared = {row.row: row for row in comparing.compare(before, after, fail_above=0.05).rows}
    assert compared["copy"].ratio == pytest.approx(1.12)
    assert compared["copy"].low < 1 < compared["copy"].high
    assert (compared["copy"].verdict, compared["copy"].failed) == ("same", True)


def test_errors_of_both_medians_add_up_as_squares(tmp_path: Path) -> None:
    # Medians 100 and 200; the intervals of six samples are smallest to largest: 100 / 1.25 to 100 x 1.25.
    before = noisy(tmp_path, 80, 100, 100, 100, 100, 125)
    after = noisy(tmp_path, 160, 200, 200, 200, 200, 250)
    row = {row.row: row for row in comparing.compare(before, after).rows}["copy"]
    factor = math.exp(math.sqrt(2) * math.log(1.25))
    assert (row.ratio, row.low, row.high) == pytest.approx((2, 2 / factor, 2 * factor))


def test_a_figure_that_should_be_high_is_worse_when_it_is_low(tmp_path: Path) -> None:
    document = to_document(report())
    rate = document["results"][0]["rows"][4]
    rate["samples"] = [value / 2 for value in rate["samples"]]
    worse = comparing.load(Path(saved(tmp_path / "worse.json", document)))
    compared = {row.row: row for row in comparing.compare(report(), worse, fail_above=0.05).rows}
    assert compared["rate"].ratio == pytest.approx(2)
    assert compared["rate"].low <= 2 <= compared["rate"].high
    assert compared["rate"].failed


def test_rows_that_only_one_file_has_are_named(tmp_path: Path) -> None:
    document = to_document(report())
    document["results"][0]["rows"][3]["name"] = "another"
    document["host"]["kernel"] = "6.2.0"
    other = comparing.load(Path(saved(tmp_path / "other.json", document)))
    compared = comparing.compare(report(), other)
    assert [line.partition(", ")[2] for line in compared.left_out] == [
        "another: it is new",
        "trip: not in NEW",
    ]
    assert [(one.name, one.old, one.new) for one in compared.host] == [("kernel", "6.1.0", "6.2.0")]


def test_files_with_nothing_in_common(call: Call, tmp_path: Path) -> None:
    old = saved(tmp_path / "old.json", report())
    new = saved(tmp_path / "new.json", report(depth=8))
    result = call("bench", "compare", old, new)
    assert result.exit_code == 2
    assert "the two measurements have nothing in common" in result.stderr
    assert "depth=8" in result.stderr


def test_a_parameter_that_is_new_does_not_matter(tmp_path: Path) -> None:
    document = to_document(report())
    del document["results"][0]["parameters"]["sibling"]
    old = comparing.load(Path(saved(tmp_path / "old.json", document)))
    assert len(comparing.compare(old, report()).rows) == 5


def changed(**change: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda document: {**document, **change}


def row_with(**change: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def change_it(document: dict[str, Any]) -> dict[str, Any]:
        document["results"][0]["rows"][1].update(change)
        return document

    return change_it


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (changed(schema="balloonctl/bench/2"), "its schema is 'balloonctl/bench/2'"),
        (changed(schema=3), "Expected `str`, got `int`"),
        (changed(results=None), "$.results"),
        (changed(results=[]), "one of them is empty"),
        (row_with(samples=[]), "has 0 samples in 6 rounds"),
        (row_with(samples=[1, 2, "3", 4, 5, 6]), "Expected `float`, got `str`"),
        (row_with(samples=[1, 2, -3, 4, 5, 6]), "has samples that are no measurements"),
        (row_with(name="limit"), "has a row twice"),
        (row_with(better="sideways"), "Invalid enum value 'sideways'"),
        (
            row_with(against=[{"row": "nobody", "median": 1, "min": 1, "max": 1}]),
            "is held against 'nobody', which is not there",
        ),
    ],
)
def test_files_that_are_no_measurements(
    call: Call, tmp_path: Path, document: dict[str, Any], change: Callable[..., Any], why: str
) -> None:
    good = saved(tmp_path / "good.json", document)
    bad = saved(tmp_path / "bad.json", change(json.loads(json.dumps(document))))
    for files in ((good, bad), (bad, good)):
        result = call("bench", "compare", *files)
        assert result.exit_code == 2
        assert result.stderr.count("\n") == 3
        assert why in result.stderr


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"schema":' * 5000,
        b'{"schema": "balloonctl/bench/1"}',
        b'{"schema": "balloonctl/bench/1", "started": "", "host": {}, "results": NaN}',
        b"\x7fELF",
    ],
    ids=["empty", "no-utf8", "list", "null", "deep-list", "deep-object", "no-results", "nan", "binary"],
)
def test_hostile_files(call: Call, tmp_path: Path, document: dict[str, Any], content: bytes) -> None:
    good = saved(tmp_path / "good.json", document)
    bad = tmp_path / "bad.json"
    bad.write_bytes(content)
    result = call("bench", "compare", str(bad), good)
    assert result.exit_code == 2
    assert f"{bad} is no measurement" in result.stderr


@pytest.mark.parametrize("number", ["1e999", "1e400", "-0.0", "123456789" * 60])
def test_hostile_numbers(call: Call, tmp_path: Path, document: dict[str, Any], number: str) -> None:
    good = saved(tmp_path / "good.json", document)
    text = json.dumps(document).replace('"samples": [', f'"samples": [{number}, ')
    text = re.sub(r'"runs": \d+', '"runs": 7', text)
    bad = tmp_path / "bad.json"
    bad.write_text(text)
    assert call("bench", "compare", good, str(bad)).exit_code == 2


def test_files_that_cannot_be_read(call: Call, tmp_path: Path) -> None:
    result = call("bench", "compare", str(tmp_path / "absent"), str(tmp_path))
    assert result.exit_code == 1
    assert "No such file" in result.stderr
    assert "Is a directory" in call("bench", "compare", str(tmp_path), str(tmp_path)).stderr


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=200)
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    text = json.dumps(to_document(report())).encode()
    begin = data.draw(st.integers(0, len(text)))
    damaged = (
        text[:begin] + data.draw(st.binary(max_size=8)) + text[data.draw(st.integers(begin, len(text))) :]
    )
    path = tmp_path / "damaged.json"
    path.write_bytes(damaged)
    with contextlib.suppress(InvalidArgument):  # and no other error
        comparing.compare(report(), comparing.load(path))


@pytest.mark.parametrize("typed", ["5", "-5%", "five%", "%", "1e3%", "nan%"])
def test_percentages_that_are_none(call: Call, typed: str) -> None:
    result = call("bench", "compare", "a", "b", "--fail-above", typed)
    assert result.exit_code == 2
    assert ("hint: write 5% for 5 per cent" in result.stderr) == (typed == "5")
