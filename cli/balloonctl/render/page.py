"""One self-contained HTML page: no script, no font, no picture from elsewhere; light and dark."""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

__all__ = ["page", "table"]

_STYLE = """\
:root { color-scheme: light dark; --ink: #1d2329; --dim: #5c6770; --line: #d5dade; --paper: #ffffff; --sheet: #f5f7f8;
  --good: #18733a; --bad: #b3261e; --open: #8a5a00; --mark: #8a5a00;
  --a0: #0b6e8f; --a1: #8b3a94; --a2: #2d7a2d; --a3: #2f55b8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e7ea; --dim: #98a3ac; --line: #39424a; --paper: #15191d;
  --sheet: #1d2328; --good: #5fcf86; --bad: #ff8a80; --open: #e6b450; --mark: #e6b450;
  --a0: #5cc8ea; --a1: #d990e2; --a2: #7fd07f; --a3: #8fb0ff; } }
body { margin: 2rem auto; max-width: 78rem; padding: 0 1rem; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2.5rem; }
code, pre, .steps { font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; font-size: 13px; }
table { border-collapse: collapse; } th { text-align: left; }
th, td { padding: 0.25rem 0.75rem 0.25rem 0; vertical-align: top; border-bottom: 1px solid var(--line); }
td.number { text-align: right; font-variant-numeric: tabular-nums; }
a { color: inherit; } .dim { color: var(--dim); } .good { color: var(--good); } .bad { color: var(--bad); }
.open { color: var(--open); } .scroll { overflow-x: auto; }
"""


def table(rows: Iterable[str], kind: str = "") -> str:
    """A table that scrolls by itself where it is too wide; its rows are HTML."""
    lines = "\n".join(rows)
    attribute = f' class="{kind}"' if kind else ""
    return f'<div class="scroll"><table{attribute}>\n{lines}\n</table></div>'


def page(title: str, body: str, *, style: str = "", foot: str = "") -> str:
    """A page.

    Args:
        title: plain text.
        body: HTML; whoever makes it escapes what came from elsewhere.
        style: rules beyond those of every page.
        foot: HTML of the last line.
    """
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE}{style}</style>\n</head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{body}\n"
        + (f'<footer class="dim"><p>{foot}</p></footer>\n' if foot else "")
        + "</body>\n</html>\n"
    )
