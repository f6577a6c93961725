"""The results of bench: a table of rows a benchmark, ratios in front, what they are made of below."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from balloonctl.render.units import count, duration, size

__all__ = ["figure", "render_report"]


def figure(value: float, row: Mapping[str, Any]) -> str:
    """A sample of a row for people."""
    per = f"/{row['per']}" if row["per"] else ""
    if row["unit"] == "ns":
        return duration(value) + per
    digits = 0 if value >= 1000 or value == int(value) else 1 if value >= 100 else 2
    return f"{value:,.{digits}f} {row['unit']}{per}"


def _rate(row: Mapping[str, Any]) -> str:
    """Bytes a second, of the median."""
    if row["bytes"] is None or row["unit"] != "ns" or not row["median"]:
        return ""
    return f"{row['bytes'] / row['median'] * 1e9 / 2**30:.2f} GiB/s"


def fact(name: str, value: float) -> str:
    """A side figure for people, by the unit in its name."""
    stem, _, unit = name.rpartition("_")
    words = (stem if unit in {"bytes", "ns", "share"} else name).replace("_", " ")
    match unit:
        case "bytes":
            return f"{words} {size(value)}"
        case "ns":
            return f"{words} {duration(value)}"
        case "share":
            return f"{words} {value:.1%}"
    return f"{words} {count(value) if value == int(value) else f'{value:.2f}'}"


def _ratios(row: Mapping[str, Any]) -> Iterable[Text]:
    """What a row is in times the others."""
    for ratio in row["against"]:
        text = Text.assemble((f"{ratio['median']:.2f}", "bold"), f" × {ratio['row']}")
        if ratio["at_most"] is not None:
            reached = ratio["median"] <= ratio["at_most"]
            text.append(
                f"  ≤ {ratio['at_most']:g} {'✓' if reached else '✗'}", style="green" if reached else "red"
            )
        yield text


def _parameters(result: Mapping[str, Any]) -> str:
    """The parameters as words."""
    return ", ".join(
        f"{name.removesuffix('_bytes').replace('_', '-')} {size(value) if name.endswith('_bytes') else value}"
        for name, value in result["parameters"].items()
    )


def _result(result: Mapping[str, Any]) -> Iterable[RenderableType]:
    """A benchmark: heading, rows, side figures, remarks."""
    runs, warmup = result["runs"], result["warmup"]
    yield Text.assemble((result["benchmark"], "bold"), f"  {_parameters(result)}")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    table.add_column("row", no_wrap=True)
    for name in ("median", "min", "max", "rate"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("ratio")
    for row in result["rows"]:
        table.add_row(
            row["name"],
            *(figure(row[name], row) for name in ("median", "min", "max")),
            _rate(row),
            Text("\n").join(_ratios(row)),
        )
    yield table
    for row in result["rows"]:
        if row["facts"]:
            words = ", ".join(fact(one["name"], one["median"]) for one in row["facts"])
            yield Text(f"{row['name']}: {words}")
    yield Text(f"{runs} round{'s' if runs != 1 else ''} after {warmup} to warm up", style="dim")
    for note in result["notes"]:
        yield Text(note, style="dim")


def render_report(document: Mapping[str, Any]) -> RenderableType:
    """All results of a run, and what they should be read with."""
    host = document["host"]
    parts: list[RenderableType] = []
    for result in document["results"]:
        parts += [*_result(result), Text()]
    parts.append(
        Text(
            f"{host['processor']}, {host['cores']} cores, Linux {host['kernel']}, {host['compiler']}, "
            f"Python {host['python']}, commit {host['commit']}, load {host['load_average']}",
            style="dim",
        )
    )
    return Group(*parts)
