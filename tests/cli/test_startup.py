"""Starting is quick: what `--help` and `status` import, and that the rest stays where it is."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

SHOW = """
import sys
sys.argv = ["balloonctl", *sys.argv[1:]]
from balloonctl.main import run
try:
    run()
except SystemExit:
    pass
print(*sorted(sys.modules), sep="\\n", file=sys.stderr)
"""


def modules(*args: str) -> set[str]:
    """Everything that a command line imports."""
    result = subprocess.run([sys.executable, "-c", SHOW, *args], capture_output=True, text=True, check=True)
    return set(result.stderr.split())


@pytest.mark.parametrize("args", [("--help",), ("inflate", "--help")])
def test_help_imports_nothing_heavy(args: tuple[str, ...]) -> None:
    found = modules(*args)
    heavy = {
        "asyncio",
        "balloonctl.background",
        "balloonvq._core",
        "balloonvq.explore",
        "balloonvq.machine",
        "bitmath",
        "cffi",
        "greenlet",
        "humanize",
        "importlib.metadata",
        "json",
        "logging",
        "msgspec",
        "platformdirs",
        "prompt_toolkit",
        "psutil",
        "rich",
        "tomllib",
    }
    assert found & heavy == set()
    assert len([name for name in found if name.startswith("balloonctl.commands.")]) <= len(args) - 1


def test_only_the_shell_and_the_keys_of_watch_import_prompt_toolkit() -> None:
    import balloonctl

    package = Path(balloonctl.__file__).parent
    found = {
        str(path.relative_to(package))
        for path in package.rglob("*.py")
        if "import prompt_toolkit" in (text := path.read_text()) or "from prompt_toolkit" in text
    }
    assert found == {"shell.py", "commands/watch.py"}


@pytest.mark.stress
def test_help_is_quick() -> None:
    """Processor time, the best of several: what a busy machine adds is not the command's fault."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "balloonctl", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(once() for _ in range(7)) < 0.150
