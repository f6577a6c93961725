"""The results of bench: a table of rows a benchmark, ratios last, what they are made of below."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType
from rich.table import Table
from rich.text import Text

from balloonctl.render.units import count, duration, size

__all__ = [
    "fact",
    "figure",
    "host_line",
    "parameters",
    "rate",
    "ratio_text",
    "render_comparison",
    "render_report",
]

#: Columns of a terminal from which everything fits.
WIDE_FROM = 110

#: Cells that the name of a compared row has at least before the error is left out.
_NAME_WIDTH = 20

#: Cells of the longest bar.
BAR_WIDTH = 24


# ---- words, also for the exports ----------------------------------------------


def figure(value: float, row: Mapping[str, Any]) -> str:
    """A sample of a row for people."""
    per = f"/{row['per']}" if row["per"] else ""
    if row["unit"] == "ns":
        return _time(value) + per
    if row["unit"] == "x":
        return f"{value:.2f} × {row['per']}"
    digits = 0 if value >= 1000 or value == int(value) else 1 if value >= 100 else 2
    return f"{value:,.{digits}f} {row['unit']}{per}"


def _time(ns: float) -> str:
    """Nanoseconds with three figures, which stand below each other in a column: 8.90 ms, 23.0 ms."""
    if ns >= 60e9:
        return duration(ns)
    number, unit = next(
        (
            (ns / scale, unit)
            for unit, scale in (("s", 1e9), ("ms", 1e6), ("µs", 1e3))
            if ns >= scale * 0.9995
        ),
        (ns, "ns"),
    )
    return f"{number:.{0 if number >= 99.95 else 1 if number >= 9.995 else 2}f} {unit}"


def rate(row: Mapping[str, Any]) -> str:
    """Bytes a second, of the median; empty where there is no such thing."""
    if row["bytes"] is None or row["unit"] != "ns" or not row["median"]:
        return ""
    speed = row["bytes"] / row["median"] * 1e9 / 2**30
    return f"{speed:.{0 if speed >= 100 else 1 if speed >= 10 else 2}f} GiB/s"


def _fact_parts(name: str, value: float) -> tuple[str, str]:
    """(what it is, the figure with its unit), by the unit in the name."""
    stem, _, unit = name.rpartition("_")
    words = (stem if unit in {"bytes", "ns", "share"} else name).replace("_", " ")
    match unit:
        case "bytes":
            return words, size(value)
        case "ns":
            return words, _time(value)
        case "share":
            return words, f"{value:.1%}"
    return words, count(value) if value == int(value) else f"{value:.2f}"


def fact(name: str, value: float) -> str:
    """A side figure for people."""
    return " ".join(_fact_parts(name, value))


def _times(ratio: float) -> str:
    """A ratio with about three figures."""
    if ratio >= 100:
        return f"{ratio:,.0f}"
    return f"{ratio:.2f}" if ratio >= 0.1 else f"{ratio:.2g}"


def ratio_text(ratio: Mapping[str, Any], *, goal: bool = True) -> Text:
    """What a row is in times another: the median, and whether it is what it should be; with `goal` what that is."""
    text = Text.assemble((_times(ratio["median"]), "bold"), f" × {ratio['row']}")
    if ratio["at_most"] is not None:
        reached = ratio["median"] <= ratio["at_most"]
        words = f" {'✓' if reached else '✗'}" + (f" ≤ {ratio['at_most']:g}" if goal else "")
        text.append(words, style="green" if reached else "red")
    return text


def parameters(result: Mapping[str, Any]) -> str:
    """The parameters as words: size 1 GiB, design modern."""

    def words() -> Iterator[str]:
        for name, value in result["parameters"].items():
            called = name.removesuffix("_bytes").replace("_", "-")
            if isinstance(value, bool):
                yield called if value else f"no {called}"
            elif value != "":
                yield f"{called} {size(value) if name.endswith('_bytes') else value}"

    return ", ".join(words())


def host_line(host: Mapping[str, str]) -> str:
    """What the figures should be read with, in a line."""
    return (
        f"{host.get('processor')}, {host.get('cores')} cores, Linux {host.get('kernel')}, {host.get('compiler')}, "
        f"Python {host.get('python')}, commit {host.get('commit')}, load {host.get('load_average')}"
    )


# ---- a run ----------------------------------------------------------------------


class _Wide:
    """One drawing for wide terminals, one for the others."""

    def __init__(self, wide: RenderableType, narrow: RenderableType) -> None:
        self._wide = wide
        self._narrow = narrow

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        yield self._wide if options.max_width >= WIDE_FROM else self._narrow


def _table(*columns: str) -> Table:
    """Figures to the right; the first and the last column are words."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="bold")
    for number, name in enumerate(columns):
        words = number == 0 or name in {"ratio", ""}
        table.add_column(name, justify="left" if words else "right", no_wrap=name != "ratio")
    return table


def _bar(row: Mapping[str, Any], longest: float) -> str:
    """A median as a bar; what is too short for a cell still shows."""
    eighths = round(row["median"] / longest * BAR_WIDTH * 8) if longest else 0
    return "█" * (eighths // 8) + ("", *"▏▎▍▌▋▊▉")[eighths % 8] if eighths else "▏"


def _spread(row: Mapping[str, Any]) -> str:
    """Smallest to largest as a share of the median."""
    return f"{(row['max'] - row['min']) / row['median']:.0%}" if row["median"] else ""


def _rows(result: Mapping[str, Any], *, wide: bool) -> Table:
    """The rows; on a wide terminal with smallest, largest and a bar.

    Bars of rows with different units have scales of their own.
    """
    rows = result["rows"]
    rates = any(rate(row) for row in rows)
    against = any(row["against"] for row in rows)
    # What all figures are for stands once, in the head.
    units = {row["per"] for row in rows}
    common = next(iter(units)) if len(units) == 1 else ""
    table = _table(
        *("row", f"median/{common}" if common else "median"),
        *(("min", "max") if wide else ("spread",)),
        *(["rate"] * rates),
        *([""] * wide),
        *(["ratio"] * against),
    )
    longest: dict[tuple[str, str], float] = {}
    for row in rows:
        unit = (row["unit"], row["per"])
        longest[unit] = max(longest.get(unit, 0.0), row["median"])
    if not wide:
        table.padding = (0, 0, 0, 0)
    for row in rows:
        bare = {**row, "per": ""}
        spread = [figure(row[name], bare) for name in ("min", "max")] if wide else [_spread(row)]
        median = figure(row["median"], bare if common else row)
        cells: list[RenderableType] = [row["name"], Text(median, style="bold")]
        cells += [Text(words, style="dim") for words in spread]
        if rates:
            cells.append(rate(row))
        if wide:
            cells.append(Text(_bar(row, longest[row["unit"], row["per"]]), style="cyan"))
        if against:
            cells.append(Text("\n").join(ratio_text(ratio, goal=wide) for ratio in row["against"]))
        table.add_row(*cells)
    return table


def _latencies(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Percentiles of single operations."""
    table = _table("single operations", "p50", "p90", "p99", "p99.9", "max", "n")
    for row in rows:
        latency = row["latency"]
        if latency:
            table.add_row(
                row["name"],
                *(_time(latency[name]) for name in ("p50_ns", "p90_ns", "p99_ns", "p999_ns", "max_ns")),
                count(latency["count"]),
            )
    return table


class _Facts:
    """Side figures: a table where it fits, else a line a row."""

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows = [row for row in rows if row["facts"]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        names = dict.fromkeys(one["name"] for row in self._rows for one in row["facts"])
        table = _table("side figures", *(_fact_parts(name, 0)[0] for name in names))
        for row in self._rows:
            values = {one["name"]: one["median"] for one in row["facts"]}
            told = [_fact_parts(name, values[name])[1] if name in values else "" for name in names]
            table.add_row(row["name"], *told)
        if console.measure(table, options=options.update(max_width=10_000)).maximum <= options.max_width:
            yield table
            return
        for row in self._rows:
            words = ", ".join(fact(one["name"], one["median"]) for one in row["facts"])
            yield Text.assemble(f"{row['name']}: ", (words, "dim"))


def _result(result: Mapping[str, Any]) -> Iterable[RenderableType]:
    """A benchmark: heading, rows, percentiles, side figures, remarks."""
    runs, warmup = result["runs"], result["warmup"]
    yield Text.assemble((result["benchmark"], "bold cyan"), f"  {parameters(result)}")
    yield Text()
    yield _Wide(_rows(result, wide=True), _rows(result, wide=False))
    if any(row["latency"] for row in result["rows"]):
        yield Text()
        yield _latencies(result["rows"])
    yield Text()
    if any(row["facts"] for row in result["rows"]):
        yield _Facts(result["rows"])
        yield Text()
    yield Text(
        f"{runs} round{'s' if runs != 1 else ''} after {warmup} to warm up, in {duration(result['elapsed_ns'])}",
        style="dim",
    )
    for note in result["notes"]:
        yield Text(note, style="dim")


def _legend(results: Sequence[Mapping[str, Any]]) -> Iterator[Text]:
    """What the signs behind ratios mean, if there are any."""
    ratios = [ratio for result in results for row in result["rows"] for ratio in row["against"]]
    if any(ratio["at_most"] is not None for ratio in ratios):
        yield Text(
            "✓ the ratio is within its goal, ✗ it is above; --output json has the goals as at_most",
            style="dim",
        )


def render_report(document: Mapping[str, Any]) -> RenderableType:
    """All results of a run, and what they should be read with."""
    parts: list[RenderableType] = []
    for result in document["results"]:
        parts += [*_result(result), Text()]
    for skipped in document["skipped"]:
        parts += [
            Text.assemble((skipped["benchmark"], "bold yellow"), f"  not measured: {skipped['what']}"),
            *(Text(f"{name}: {skipped[name]}", style="dim") for name in ("why", "hint") if skipped[name]),
            Text(),
        ]
    parts += _legend(document["results"])
    parts.append(Text(host_line(document["host"]), style="dim"))
    return Group(*parts)


# ---- two runs -------------------------------------------------------------------

_STYLES = {"slower": "red", "faster": "green", "same": ""}


def _change(row: Mapping[str, Any]) -> Text:
    """The verdict on a row, in words and a colour."""
    style = "bold red" if row["failed"] else "dim" if row["limit"] else _STYLES[row["verdict"]]
    if row["failed"]:
        return Text("✗ slower" if row["verdict"] == "slower" else "✗ slower?", style=style)
    return Text("machine " * row["limit"] + row["verdict"], style=style)


class _Compared:
    """The rows of a comparison.

    Where there is no room, old and new go first; then the rows' names wrap, and then the error goes. Ratio and
    verdict are whole on every terminal.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._rows = rows

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        names = ("old", "new", "error")
        wraps = max(0, max(len(row["row"]) for row in self._rows) - _NAME_WIDTH)
        for left_out, tight, spare in ((0, False, 0), (0, True, 0), (2, True, wraps), (3, True, wraps)):
            table = self._table(names[left_out:], tight=tight)
            needed = console.measure(table, options=options.update(max_width=10_000)).maximum
            if needed - spare <= options.max_width:
                break
        yield table
        if left_out:
            what = ", ".join(names[:left_out])
            yield Text(f"a wider terminal shows {what}; --output json has them", style="dim")

    def _table(self, columns: Sequence[str], *, tight: bool) -> Table:
        """With some of old, new and error; `tight`: one space between columns."""
        # What all figures are for stands once, in the head; in times another row it is part of the figure.
        units = {"" if row["unit"] == "x" else row["per"] for row in self._rows}
        common = units.pop() if len(units) == 1 else ""
        figures = [name for name in columns if name != "error"]
        heads = [f"{name}/{common}" if common else name for name in figures]
        table = _table("row", *heads, "ratio ", *["error"] * ("error" in columns), "")
        table.columns[0].no_wrap, table.columns[0].overflow = False, "fold"
        if tight:
            table.padding = (0, 0, 0, 0)
        for row in self._rows:
            shown = {**row, "per": ""} if common else row
            error = Text(f"{row['low']:.2f} … {row['high']:.2f}", style="dim")
            table.add_row(
                row["row"],
                *(figure(row[name], shown) for name in figures),
                Text(f"{row['ratio']:.3f}", style="bold"),
                *[error] * ("error" in columns),
                _change(row),
            )
        return table


def render_comparison(document: Mapping[str, Any]) -> RenderableType:
    """A table a benchmark, and the verdict."""
    parts: list[RenderableType] = [
        Text(f"{document['new']} in times {document['old']}: above 1 is slower; same is within the error"),
        Text(),
    ]
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in document["rows"]:
        groups.setdefault((row["benchmark"], parameters(row)), []).append(row)
    for (benchmark, words), rows in groups.items():
        heading = Text.assemble((benchmark, "bold cyan"), f"  {words}")
        parts += [heading, Text(), _Compared(rows), Text()]
    parts += [Text(words, style="dim") for words in document["left_out"]]
    parts += [
        Text(f"{one['name'].replace('_', ' ')}: {one['old']} → {one['new']}", style="yellow")
        for one in document["host"]
    ]
    if any(row["failed"] and row["verdict"] == "same" for row in document["rows"]):
        parts.append(
            Text("slower? may be noise: the error allows a ratio of 1; measure both with more --runs")
        )
    if document["fail_above"] is not None:
        failed = document["regressions"]
        parts.append(
            Text(
                f"{failed} of {len(document['rows'])} rows slower by more than {document['fail_above'] * 100:g} %",
                style="bold red" if failed else "green",
            )
        )
    return Group(*parts)
