"""The results of bench: ratios first, then what they are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from balloonctl.render.units import duration, size

__all__ = ["render_inflate"]


def render_inflate(document: Mapping[str, Any]) -> RenderableType:
    """A row a round, the ratio below."""
    heading = Text(f"{size(document['size_bytes'])} of touched guest memory, design {document['design']}")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in ("round", "one hole", "inflate", "ratio", "device CPU", "other CPU"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, row in enumerate(document["rounds"], 1):
        table.add_row(
            str(number),
            duration(row["hole_ns"]),
            duration(row["inflate_ns"]),
            f"{row['inflate_ns'] / row['hole_ns']:.2f}",
            duration(row["device_cpu_ns"]),
            duration(max(0, row["process_cpu_ns"] - row["device_cpu_ns"])),
        )
    result = Text.assemble(
        "inflate takes ",
        (f"{document['ratio_median']:.2f}", "bold"),
        f" times one hole (median; {document['ratio_min']:.2f} to {document['ratio_max']:.2f}), "
        f"{document['inflate_gib_per_s']:.2f} of {document['hole_gib_per_s']:.2f} GiB/s",
    )
    host = document["host"]
    where = Text(
        f"{host['processor']}, {host['cores']} cores, Linux {host['kernel']}, Python {host['python']}, "
        f"load {host['load_average']}",
        style="dim",
    )
    return Group(heading, table, result, where)
