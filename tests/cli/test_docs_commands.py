"""The commands in README and docs are run, and what they print is compared with what the pages show.

A block is replayed if it is fenced as `console`. In it:

    $ command        is run by bash, in a folder and a runtime directory that the page has for itself
    text             is expected; runs of blanks are equal to each other
    … inside a line  matches anything in that line
    … alone          matches any number of lines

A command that fails, fails the test; write `|| echo "exit code $?"` where failing is what is shown. A
block that cannot be run has the comment `<!-- not run: why -->` in the line above it. A Python file that the commands
need is a `python` block with the comment `<!-- file: NAME -->` in the line above it.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
BLOCK = re.compile(
    r"(?:<!-- not run: (?P<why>[^>]+?) -->\n)?```console\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)
FILE = re.compile(r"<!-- file: (?P<name>[\w.]+) -->\n```python\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass
class Step:
    """A command of a page and what the page says it prints."""

    command: str
    line: int
    expected: list[str] = field(default_factory=list)


def steps_of(page: str) -> list[Step]:
    """The commands of a page that are to be run, in order."""
    steps: list[Step] = []
    for block in BLOCK.finditer(page):
        if block["why"]:
            continue
        first = page.count("\n", 0, block.start("text")) + 1
        inside: list[Step] = []
        for number, line in enumerate(block["text"].splitlines(), first):
            if line.startswith("$ "):
                inside.append(Step(line[2:], number))
            else:
                assert inside, f"line {number}: a console block begins with a command"
                inside[-1].expected.append(line)
        steps += inside
    return steps


def pattern_of(expected: list[str]) -> re.Pattern[str]:
    """A pattern for the lines that a page shows."""
    parts = []
    for line in expected:
        if line.strip() == "…":
            parts.append(r"(?:[^\n]*\n)*")
        else:
            words = " ".join(line.split())
            parts.append(".*".join(re.escape(piece) for piece in words.split("…")) + r"\n")
    return re.compile("".join(parts))


def normal(output: str) -> str:
    """Output with its blanks and empty edges evened out."""
    lines = [" ".join(line.split()) for line in output.strip("\n").splitlines()]
    return "".join(f"{line}\n" for line in lines)


PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    if "_build" not in path.parts and steps_of(path.read_text())
)


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_do_what_it_shows(page: str, runtime_dir: Path, tmp_path: Path) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BALLOONCTL_")}
    environment = inherited | {
        "BALLOONCTL_RUNTIME_DIR": str(runtime_dir),
        "COLUMNS": "100",
        "HOME": str(tmp_path),
        "NO_COLOR": "1",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    text = (ROOT / page).read_text()
    for file in FILE.finditer(text):
        (tmp_path / file["name"]).write_text(file["text"])
    for step in steps_of(text):
        done = subprocess.run(
            ["bash", "-c", step.command],
            cwd=tmp_path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
            check=False,
        )
        where = f"{page}:{step.line}: $ {step.command}\n{done.stdout}"
        assert done.returncode == 0, where
        assert pattern_of(step.expected).fullmatch(normal(done.stdout)), (
            f"{where}\nexpected:\n{step.expected}"
        )


def test_pages_are_found() -> None:
    assert {"README.md", "docs/tutorial.md", "docs/how-to/deadlock.md", "docs/how-to/scripts.md"} <= set(
        PAGES
    )


def test_every_block_that_is_not_run_says_why() -> None:
    fences = re.compile(r"^```(?:sh|shell|bash|shell-session)\b", re.MULTILINE)
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    assert [str(path) for path in pages if fences.search(path.read_text())] == []


def test_ellipses_match_parts_of_lines_and_whole_lines() -> None:
    assert pattern_of(["a … c", "…", "end"]).fullmatch(normal("a   b c\nanything\nmore\nend\n"))
    assert pattern_of(["…"]).fullmatch("")
    assert not pattern_of(["a"]).fullmatch(normal("b\n"))
    assert not pattern_of([]).fullmatch(normal("unexpected\n"))


def test_a_block_that_is_not_run_is_left_out() -> None:
    page = (
        "<!-- not run: it is an example -->\n```console\n$ false\n```\ntext\n```console\n$ true\nout\n```\n"
    )
    assert [(step.command, step.line, step.expected) for step in steps_of(page)] == [("true", 7, ["out"])]
