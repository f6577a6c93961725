"""The results of bench: ratios first, then what they are made of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from balloonctl.render.units import duration, size

__all__ = ["render_guest", "render_inflate"]


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
    return Group(heading, table, result, _where(document["host"]))


def _where(host: Mapping[str, str]) -> Text:
    """What the figures should be read with."""
    return Text(
        f"{host['processor']}, {host['cores']} cores, Linux {host['kernel']}, Python {host['python']}, "
        f"load {host['load_average']}",
        style="dim",
    )


def render_guest(document: Mapping[str, Any]) -> RenderableType:
    """A row a round and direction; rates and the round trip below."""
    heading = Text(f"{size(document['size_bytes'])} there and back, guest {document['guest']}")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, header_style="bold")
    for name in ("round", "", "time", "GiB/s", "device CPU", "share", "returned"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, row in enumerate(document["rounds"], 1):
        for way in ("inflate", "deflate"):
            elapsed = row[f"{way}_ns"]
            table.add_row(
                str(number) if way == "inflate" else "",
                way,
                duration(elapsed),
                f"{document['size_bytes'] / 2**30 / elapsed * 1e9:.2f}",
                duration(row[f"{way}_device_ns"]),
                f"{row[f'{way}_device_ns'] / elapsed:.0%}",
                size(row["returned_bytes"]) if way == "inflate" else "",
            )
    lines = [
        Text.assemble(
            f"{way} ",
            (f"{document[f'{way}_pages_per_s']:,.0f} pages/s", "bold"),
            f", {document[f'{way}_gib_per_s']:.2f} GiB/s, {document[f'{way}_device_share']:.0%} of the time in the device",
        )
        for way in ("inflate", "deflate")
    ]
    trip = Text.assemble(
        "one page, from the host's wish to the driver's report: ",
        (duration(document["round_trip_ns"]), "bold"),
        f" (p99 {duration(document['round_trip_p99_ns'])}); a request stays {duration(document['service_p50_ns'])} "
        "in the device (p50)",
    )
    return Group(heading, table, *lines, trip, _where(document["host"]))
