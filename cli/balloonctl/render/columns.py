"""Cells in columns, for what is shown often: drawn by rich.table, a status takes four times as long."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

__all__ = ["Columns"]

#: Spaces between two columns.
_GAP = 2


class Columns:
    """Rows of cells; a row may have fewer than the others.

    A row that is too wide for the terminal ends with an ellipsis, or its last cell goes on below itself.

    Args:
        rows: the cells.
        right: indices of the columns that are aligned to the right.
        fold: whether the last cell of a row goes on in further lines.
    """

    def __init__(
        self, rows: Sequence[Sequence[Text]], *, right: Collection[int] = (), fold: bool = False
    ) -> None:
        self._rows = rows
        self._right = right
        self._fold = fold
        self._widths = [0] * max(map(len, rows), default=0)
        for row in rows:
            for column, cell in enumerate(row):
                self._widths[column] = max(self._widths[column], cell.cell_len)

    @property
    def width(self) -> int:
        """Of the longest row there could be."""
        return sum(self._widths) + _GAP * (len(self._widths) - 1)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        room = options.max_width
        for row in self._rows:
            line = Text()
            for column, cell in enumerate(row[:-1]):
                filling = " " * (self._widths[column] - cell.cell_len)
                if column in self._right:
                    line.append(filling).append_text(cell)
                else:
                    line.append_text(cell).append(filling)
                line.append(" " * _GAP)
            last, column = row[-1], len(row) - 1
            if column in self._right:
                line.append(" " * (self._widths[column] - last.cell_len))
            left = max(1, room - line.cell_len)
            if self._fold and last.cell_len > left:
                for part in last.wrap(console, left, overflow="fold"):
                    part.rstrip()
                    yield from (line + part).render(console, "\n")
                    line = Text(" " * line.cell_len)
            else:
                line.append_text(last).truncate(room, overflow="ellipsis")
                yield from line.render(console, "\n")
