"""What `bench --html` writes: tables and charts of a run on one page."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Any

from balloonctl.render.bench import fact, figure, parameters, rate, ratio_text
from balloonctl.render.charts import CHART_STYLE, Bar, Hill, bars, hills, lines
from balloonctl.render.page import page, table
from balloonctl.render.units import duration, size

__all__ = ["bench_page"]

_Result = Mapping[str, Any]

_STYLE = """\
h2 small { font-weight: normal; color: var(--dim); } .warning { color: var(--open); }
details { margin: 0.5rem 0; } th.number { text-align: right; } td.number, td.name { white-space: nowrap; } td.about { max-width: 28rem; color: var(--dim); }
"""


def _limits(result: _Result) -> set[str]:
    """Rows that others are held against and that are held against none."""
    named = {ratio["row"] for row in result["rows"] for ratio in row["against"]}
    return {row["name"] for row in result["rows"] if row["name"] in named and not row["against"]}


def _table(result: _Result) -> str:
    """A row a row; no column that would be empty."""
    rates = any(rate(row) for row in result["rows"])
    against = any(row["against"] for row in result["rows"])
    numbers = ["median", "min", "max", *(["rate"] * rates)]
    head = "".join(f'<th class="number">{name}</th>' for name in numbers)
    lines_of = [f"<tr><th>row</th>{head}{'<th>ratio</th>' * against}<th>what it does</th></tr>"]
    for row in result["rows"]:
        bare = {**row, "per": ""}
        figures = [figure(row["median"], row), figure(row["min"], bare), figure(row["max"], bare)]
        cells = [f'<td class="name">{escape(row["name"])}</td>']
        cells += [f'<td class="number">{escape(words)}</td>' for words in (*figures, *([rate(row)] * rates))]
        if against:
            cells.append(f'<td class="name">{"<br>".join(_ratio(ratio) for ratio in row["against"])}</td>')
        cells.append(f'<td class="about">{escape(row["about"])}</td>')
        lines_of.append(f"<tr>{''.join(cells)}</tr>")
    return table(lines_of)


def _ratio(ratio: Mapping[str, Any]) -> str:
    kind = ""
    if ratio["at_most"] is not None:
        kind = "good" if ratio["median"] <= ratio["at_most"] else "bad"
    return f'<span class="{kind}" title="{ratio["min"]:.2f} to {ratio["max"]:.2f}">{escape(ratio_text(ratio).plain)}</span>'


def _charts(result: _Result) -> Iterator[str]:
    """The rows of each unit as bars, then the distributions of single operations."""
    limits = _limits(result)
    for unit in dict.fromkeys((row["unit"], row["per"]) for row in result["rows"]):
        rows = [row for row in result["rows"] if (row["unit"], row["per"]) == unit]
        if unit[1]:
            yield f'<p class="dim">{escape("Time" if unit[0] == "ns" else unit[0])} for each {escape(unit[1])}:</p>'
        yield bars(
            [Bar(row["name"], row["samples"], row["median"], row["name"] in limits) for row in rows],
            lambda value, row={**rows[0], "per": ""}: figure(value, row),  # type: ignore[misc]
            f"medians of {result['benchmark']}",
        )
    timed = [row for row in result["rows"] if row["bucket_ns"] and row["latency"]]
    if timed:
        yield '<p class="dim">Single operations, with p50, p99 and p99.9:</p>'
        marks = {"p50": "p50_ns", "p99": "p99_ns", "p99.9": "p999_ns"}
        yield hills(
            [
                Hill(
                    row["name"],
                    row["bucket_ns"],
                    row["bucket_counts"],
                    {name: row["latency"][key] for name, key in marks.items()},
                )
                for row in timed
            ],
            duration,
            f"single operations of {result['benchmark']}",
        )


def _side(result: _Result) -> str:
    """Side figures, folded away."""
    found = [
        f"<tr><td>{escape(row['name'])}</td><td>"
        f"{escape(', '.join(fact(one['name'], one['median']) for one in row['facts']))}</td></tr>"
        for row in result["rows"]
        if row["facts"]
    ]
    return f"<details><summary>Side figures</summary>{table(found)}</details>" if found else ""


def _one(result: _Result) -> Iterator[str]:
    """A benchmark."""
    yield f"<h2>{escape(result['benchmark'])} <small>{escape(parameters(result))}</small></h2>"
    yield f"<p>{escape(result['about'])}</p>"
    yield _table(result)
    yield from _charts(result)
    yield _side(result)
    for warning in result["warnings"]:
        yield f'<p class="warning">{escape(warning)}</p>'
    for note in (
        *result["notes"],
        f"{result['runs']} rounds after {result['warmup']} to warm up, in {duration(result['elapsed_ns'])}",
    ):
        yield f'<p class="dim">{escape(note)}</p>'


def _scanned(results: Sequence[_Result]) -> Iterator[str]:
    """For each benchmark measured with several values of one number: its rows over that number."""
    for benchmark in dict.fromkeys(result["benchmark"] for result in results):
        own = [result for result in results if result["benchmark"] == benchmark]
        varied = [
            name
            for name in own[0]["parameters"]
            if len({str(result["parameters"].get(name)) for result in own}) > 1
        ]
        if len(varied) != 1 or not all(type(result["parameters"].get(varied[0])) is int for result in own):
            continue
        name = varied[0]
        own.sort(key=lambda result: result["parameters"][name])
        yield f"<h2>{escape(benchmark)} <small>by {escape(name.removesuffix('_bytes').replace('_', '-'))}</small></h2>"
        for unit in dict.fromkeys((row["unit"], row["per"]) for row in own[0]["rows"]):
            series: dict[str, list[tuple[float, float]]] = {}
            for result in own:
                for row in result["rows"]:
                    if (row["unit"], row["per"]) == unit:
                        series.setdefault(row["name"], []).append((result["parameters"][name], row["median"]))
            template = {"unit": unit[0], "per": ""}
            yield lines(
                series,
                lambda value, row=template: figure(value, row),  # type: ignore[misc]
                size if name.endswith("_bytes") else "{:g}".format,
                f"{benchmark} by {name}",
            )


def _host(host: Mapping[str, str]) -> Iterable[str]:
    yield "<h2>The machine</h2>"
    yield table(
        f"<tr><td>{escape(name.replace('_', ' '))}</td><td>{escape(_host_value(name, value))}</td></tr>"
        for name, value in host.items()
    )


def _host_value(name: str, value: str) -> str:
    return size(int(value)) if name.endswith("_bytes") and value.isdigit() else value


def bench_page(document: Mapping[str, Any], version: str) -> str:
    """The page of a `balloonctl/bench/1` document.

    Args:
        document: what `bench --json` prints.
        version: the program that made it, for the last line.
    """
    results = document["results"]
    parts = [
        (
            f'<p class="dim">Measured {escape(document["started"])}. Bars are medians, dots rounds. '
            "A ratio is a row's cost in times another row's, taken within each round.</p>"
        )
    ]
    parts += _scanned(results)
    for result in results:
        parts += _one(result)
    for skipped in document["skipped"]:
        words = ": ".join(filter(None, [skipped["what"], skipped["why"]]))
        parts.append(f"<h2>{escape(skipped['benchmark'])}</h2><p>not measured: {escape(words)}</p>")
    parts += _host(document["host"])
    names = dict.fromkeys(result["benchmark"] for result in results)
    return page(
        f"balloonctl bench: {', '.join(names)}",
        "\n".join(parts),
        style=CHART_STYLE + _STYLE,
        foot=escape(version),
    )
