"""Writes the output of the commands in docs/thread.md anew: `python scripts/record_thread.py`.

What a command prints goes below it, as at a terminal of 100 columns; durations become an
ellipsis. tests/cli/test_docs_commands.py runs the same commands and compares, as it does for every page.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/thread.md"
BLOCK = re.compile(r"(?<=```console\n)(.*?)(?=^```$)", re.DOTALL | re.MULTILINE)


def run(command: str) -> str:
    """What bash prints for a command, both streams."""
    with tempfile.TemporaryDirectory(prefix="bln-") as folder:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("BALLOONCTL_")}
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=folder,
            env=kept
            | {
                "BALLOONCTL_RUNTIME_DIR": folder,
                "COLUMNS": "100",
                "HOME": folder,
                "NO_COLOR": "1",
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"error: {command} ended with exit code {done.returncode}\n{done.stdout}")
    lines = [line.rstrip() for line in done.stdout.strip("\n").splitlines()]
    text = re.sub(r"(?m)\d[\d.]* (?:[nµm]?s|min)(?= |\)|$)", "…", "\n".join(lines))
    return f"$ {command}\n{text}\n"


def main() -> int:
    """Rewrites every console block of the page."""
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(
        BLOCK.sub(
            lambda block: "".join(run(line[2:]) for line in block[1].splitlines() if line.startswith("$ ")),
            page,
        ),
        encoding="utf-8",
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
