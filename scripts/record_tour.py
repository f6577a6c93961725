"""Records the tour as docs/images/tour.svg: `python scripts/record_tour.py [--check]`.

The SVG names no web font, so that showing the README fetches nothing. Figures
differ from run to run; `masked` takes them out, and a test compares what is
left with a fresh tour, so that the picture cannot go stale unnoticed.
"""

from __future__ import annotations

import html
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "scripts/tour.balloon"
PICTURE = ROOT / "docs/images/tour.svg"
WIDTH = 100

CODE_FORMAT = """\
<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<title>balloonctl run scripts/tour.balloon</title>
<style>
.{unique_id}-matrix {{
  font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  font-size: {char_height}px;
  line-height: {line_height}px;
  font-variant-east-asian: full-width;
}}
.{unique_id}-title {{ font-size: 18px; font-weight: bold; font-family: sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">
{matrix}
</g>
</g>
</svg>
"""


def run_tour() -> str:
    """What the tour prints, with colours."""
    with tempfile.TemporaryDirectory(prefix="bln-") as runtime:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("BALLOONCTL_")}
        done = subprocess.run(
            [sys.executable, "-m", "balloonctl", "run", SCRIPT],
            env=kept
            | {"BALLOONCTL_RUNTIME_DIR": runtime, "FORCE_COLOR": "1", "COLUMNS": str(WIDTH), "TERM": "xterm"},
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        sys.stderr.write(done.stderr)
        raise SystemExit(f"error: the tour ended with exit code {done.returncode}")
    return done.stdout


def as_svg(output: str) -> str:
    """A picture of a terminal that shows the output."""
    with Path(os.devnull).open("w") as nowhere:
        console = Console(record=True, width=WIDTH, file=nowhere, force_terminal=True, _environ={})
        console.print(Text("$ make try", style="bold"))
        console.print(Text.from_ansi(output.rstrip()))
        return console.export_svg(
            title="balloonctl", theme=MONOKAI, code_format=CODE_FORMAT, unique_id="tour"
        )


def text_of(svg: str) -> str:
    """The lines of text in a picture made by `as_svg`."""
    lines: dict[float, list[tuple[float, str]]] = {}
    for attributes, content in re.findall(
        r"<text ([^>]*)>([^<]*)</text>", svg.partition('class="tour-matrix"')[2]
    ):
        x, y = (
            float(found[1]) if (found := re.search(rf'\b{axis}="([\d.]+)"', attributes)) else 0
            for axis in "xy"
        )
        lines.setdefault(y, []).append((x, html.unescape(content).replace("\xa0", " ")))
    rows = [" ".join(piece for _, piece in sorted(lines[y])) for y in sorted(lines)]
    return "\n".join(rows)


def masked(text: str) -> str:
    """Text without what changes from run to run: numbers, their units, the s of what they count, bars and spacing."""
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text)
    text = re.sub(r"\d[\d,.:]*(?:\s?(?:[kMGT]i?B|[KMGT]|bytes|[nµm]?s|min|%|/s))*(?![A-Za-z])", "N", text)
    text = re.sub(r"[^\x00-\x7f]+", " ", text)
    text = re.sub(r"s\b", "", text)
    return "\n".join(row for line in text.splitlines() if (row := " ".join(line.split())))


def main(arguments: list[str]) -> int:
    """Writes the picture, or with --check says whether it still shows the tour."""
    output = run_tour()
    if arguments == ["--check"]:
        # Both through the picture, so that both lose the same white space.
        fresh = masked(text_of(as_svg(output)))
        shown = masked(text_of(PICTURE.read_text())) if PICTURE.exists() else ""
        if fresh != shown:
            print(f"{PICTURE.relative_to(ROOT)} no longer shows the tour: make generate", file=sys.stderr)
            return 1
        return 0
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text(as_svg(output))
    print(PICTURE.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
