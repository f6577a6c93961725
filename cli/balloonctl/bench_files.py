"""What `bench` writes for other programs: CSV, Markdown, and files that pyperf reads.

Each is made from a `balloonctl/bench/1` document and nothing else.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from balloonctl.render.bench import figure, parameters, rate, ratio_text

__all__ = ["as_csv", "as_markdown", "as_pyperf"]

_PERCENTILES = ("p50_ns", "p90_ns", "p99_ns", "p999_ns", "max_ns")


def as_csv(document: Mapping[str, Any]) -> str:
    """A line a row: what it is, its figures, its first ratio, its side figures, and all samples.

    Parameters and side figures have columns named ``parameter:NAME`` and ``fact:NAME``; the last column
    has the samples, separated by blanks.
    """
    results = document["results"]
    names = dict.fromkeys(name for result in results for name in result["parameters"])
    facts = dict.fromkeys(
        fact["name"] for result in results for row in result["rows"] for fact in row["facts"]
    )
    head = ["benchmark", *(f"parameter:{name}" for name in names)]
    head += ["row", "unit", "per", "better", "bytes", "runs", "median", "min", "max"]
    head += ["against", "ratio", "ratio_min", "ratio_max", *_PERCENTILES]
    head += [*(f"fact:{name}" for name in facts), "samples"]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(head)
    for result in results:
        for row in result["rows"]:
            ratio = row["against"][0] if row["against"] else {}
            latency = row["latency"] or {}
            values = {fact["name"]: fact["median"] for fact in row["facts"]}
            writer.writerow(
                [
                    result["benchmark"],
                    *(result["parameters"].get(name, "") for name in names),
                    *(row[name] for name in ("name", "unit", "per", "better")),
                    "" if row["bytes"] is None else row["bytes"],
                    result["runs"],
                    *(row[name] for name in ("median", "min", "max")),
                    *(ratio.get(name, "") for name in ("row", "median", "min", "max")),
                    *(latency.get(name, "") for name in _PERCENTILES),
                    *(values.get(name, "") for name in facts),
                    " ".join(map(repr, row["samples"])),
                ]
            )
    return out.getvalue()


def _cell(text: str) -> str:
    """Text that stays within its cell of a Markdown table."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ")


def as_markdown(document: Mapping[str, Any]) -> str:
    """A table a benchmark, and the host below."""

    def lines() -> Iterator[str]:
        for result in document["results"]:
            yield f"### {_cell(result['benchmark'])}: {_cell(parameters(result))}"
            yield ""
            yield "| row | median | min | max | rate | ratio |"
            yield "|---|---:|---:|---:|---:|---|"
            for row in result["rows"]:
                cells = [
                    row["name"],
                    *(figure(row[name], row) for name in ("median", "min", "max")),
                    rate(row),
                    "; ".join(ratio_text(ratio).plain for ratio in row["against"]),
                ]
                yield f"| {' | '.join(map(_cell, cells))} |"
            yield ""
        yield "; ".join(
            f"{name.replace('_', ' ')} {_cell(value)}" for name, value in document["host"].items()
        )

    return "\n".join(lines()) + "\n"


def as_pyperf(document: Mapping[str, Any]) -> str:
    """A benchmark suite of pyperf, format 1.0: one benchmark a row, one run with all its samples.

    Times become seconds. Rows in units that pyperf does not know keep their figures without a unit.
    """
    began = datetime.fromisoformat(document["started"]).replace(tzinfo=None)
    host = document["host"]
    common = {
        "cpu_model_name": host.get("processor", "unknown"),
        "cpu_count": int(host.get("cores", "1")),
        "python_version": host.get("python", "unknown"),
        "platform": f"Linux-{host.get('kernel', 'unknown')}",
        "balloonctl_commit": host.get("commit", "unknown"),
        "balloonctl_version": host.get("version", "unknown"),
    }
    benchmarks = []
    for result in document["results"]:
        took = result["elapsed_ns"] / 1e9
        metadata = common | {"date": _pyperf_date(began), "duration": took}
        began += timedelta(seconds=took)
        for row in result["rows"]:
            values = _pyperf_values(row)
            if not values:
                continue  # pyperf refuses zeros
            words = [result["benchmark"], row["name"], parameters(result)]
            own = {"name": ", ".join(filter(None, words)), "description": row["about"], "loops": 1}
            if row["unit"] == "ns":
                own["unit"] = "second"
            benchmarks.append({"metadata": own, "runs": [{"metadata": metadata, "values": values}]})
    return json.dumps({"version": "1.0", "metadata": {}, "benchmarks": benchmarks}) + "\n"


def _pyperf_date(when: datetime) -> str:
    """As pyperf writes dates; it wants microseconds."""
    return when.isoformat(sep=" ", timespec="microseconds")


def _pyperf_values(row: Mapping[str, Any]) -> Sequence[float]:
    """The samples in seconds, if all are positive."""
    scale = 1e-9 if row["unit"] == "ns" else 1.0
    values = [sample * scale for sample in row["samples"]]
    return values if all(value > 0 for value in values) else []
