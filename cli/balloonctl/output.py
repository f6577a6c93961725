"""What a command says on stdout: a document, in one of four formats.

A command hands over a document, plain JSON values with a schema name, and a
function that draws it. The format decides which of the two is used; nothing
is shown to people that programs cannot get.
"""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, TextIO

from balloonvq.errors import BalloonError
from balloonvq.files import written_whole

__all__ = ["Document", "Format", "as_json", "as_plain", "report"]

#: JSON values with a "schema".
Document = Mapping[str, Any]


class Format(StrEnum):
    """The values of --output."""

    TABLE = "table"
    """For people. Free to change."""
    JSON = "json"
    """One indented document. Does not change within a schema version."""
    JSONL = "jsonl"
    """The same on one line."""
    PLAIN = "plain"
    """A line a value: its path, a tab, the value. For grep, cut and awk."""

    @property
    def is_json(self) -> bool:
        """Whether errors and notices are to be JSON as well."""
        return self in {Format.JSON, Format.JSONL}


def as_json(document: Document, *, indent: bool) -> str:
    """A document as JSON; one line unless indented."""
    import json

    ascii_only = not (getattr(sys.stdout, "encoding", None) or "utf-8").lower().startswith("utf")
    return json.dumps(document, indent=2 if indent else None, ensure_ascii=ascii_only, allow_nan=False)


def _leaves(path: str, value: Any) -> Iterator[tuple[str, str]]:
    """Every value below a path with its own path."""
    match value:
        case Mapping():
            for key, item in value.items():
                yield from _leaves(f"{path}.{key}" if path else str(key), item)
        case list() | tuple():
            for number, item in enumerate(value):
                yield from _leaves(f"{path}.{number}", item)
        case None:
            yield path, ""
        case bool():
            yield path, "true" if value else "false"
        case _:
            text = str(value)
            yield (
                path,
                text.replace("\\", r"\\").replace("\t", r"\t").replace("\n", r"\n").replace("\r", r"\r"),
            )


def as_plain(document: Document) -> str:
    """A document as `path<TAB>value` lines."""
    return "\n".join(f"{path}\t{value}" for path, value in _leaves("", document))


@contextlib.contextmanager
def report(target: str) -> Iterator[TextIO]:
    """A file for a report beside the document that goes to stdout.

    It is opened at once, so that nothing is computed for a file that cannot be written, and is complete or not there.

    Args:
        target: a file, or ``-`` for stdout.

    Raises:
        BalloonError: if it cannot be written.
    """
    if target == "-":
        yield sys.stdout
        return
    try:
        with written_whole(Path(target)) as raw:
            file = io.TextIOWrapper(raw, encoding="utf-8")
            yield file
            file.flush()
            file.detach()
    except OSError as error:
        raise BalloonError(
            f"cannot write {target}", why=error.strerror or str(error), hint="name a file that can be written"
        ) from error
