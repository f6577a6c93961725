"""Starting is quick: what `--help` and `status` import, and that the rest stays where it is."""

from __future__ import annotations

import re
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


#: What only some commands need.
SELDOM = {
    "asyncio",
    "balloonvq._core",
    "balloonvq.explore",
    "balloonvq.machine",
    "bitmath",
    "cffi",
    "greenlet",
    "logging",
    "msgspec",
    "platformdirs",
    "prompt_toolkit",
    "psutil",
    "subprocess",
    "tempfile",
    "traceback",
}


def test_status_imports_what_it_shows(runtime_dir: Path) -> None:
    modules("start", "--ram", "16M", "--touch", "0")
    found = modules("status")
    assert found & (SELDOM | {"balloonctl.sizes", "decimal", "fractions", "rich.table"}) == set()
    assert len(found) < 220  # measured: 204


def test_start_leaves_the_machine_to_the_machine(runtime_dir: Path) -> None:
    found = modules("start", "--ram", "16M", "--touch", "0")
    needed = {"bitmath", "subprocess"}
    assert found & (SELDOM - needed) == set()


def test_the_table_of_a_start_loads_while_the_machine_comes_up(
    runtime_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from balloonctl import background

    order = []
    follow = background._follow
    monkeypatch.setattr(background, "_follow", lambda *rest: (order.append("ready"), follow(*rest)))
    background.start("early", {"ram_bytes": 16 << 20}, meanwhile=lambda: order.append("meanwhile"))
    background.stop("early")
    assert order == ["meanwhile", "ready"]


def test_the_quick_choice_of_a_runtime_directory_is_that_of_platformdirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import platformdirs

    from balloonctl.background import _private_runtime_dir

    place = tmp_path / "run"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(place))
    assert _private_runtime_dir() is None  # missing
    chosen = Path(platformdirs.user_runtime_dir("balloonctl", ensure_exists=True))
    assert chosen == place / "balloonctl"
    assert _private_runtime_dir() == chosen


@pytest.mark.parametrize("spoil", ["open", "open inside", "link", "file", "relative"])
def test_the_quick_choice_is_none_where_anything_is_odd(
    spoil: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from balloonctl.background import _private_runtime_dir

    monkeypatch.chdir(tmp_path)
    place = tmp_path / "run"
    place.mkdir(mode=0o700)
    inside = place / "balloonctl"
    if spoil == "file":
        inside.touch(mode=0o700)
    else:
        inside.mkdir(mode=0o700)
    if spoil.startswith("open"):
        (inside if "inside" in spoil else place).chmod(0o755)
    link = tmp_path / "link"
    link.symlink_to(place)
    monkeypatch.setenv("XDG_RUNTIME_DIR", {"link": str(link), "relative": "run"}.get(spoil, str(place)))
    assert _private_runtime_dir() is None


def test_a_command_without_configuration_reads_no_toml() -> None:
    assert "tomllib" not in modules("--help")


@pytest.mark.parametrize(
    ("module", "users"),
    [
        ("prompt_toolkit", {"balloonctl/shell.py", "balloonctl/commands/watch.py"}),
        ("greenlet", {f"balloonvq/runtime/{name}.py" for name in ("controlled", "execution", "runs")}),
        ("asyncio", set()),
    ],
)
def test_only_its_users_import_a_heavy_module(module: str, users: set[str]) -> None:
    import balloonctl
    import balloonvq

    packages = [Path(package.__file__ or "").parent for package in (balloonctl, balloonvq)]
    line = re.compile(rf"^\s*(?:import|from) {module}\b", re.MULTILINE)
    found = {
        str(path.relative_to(package.parent))
        for package in packages
        for path in package.rglob("*.py")
        if line.search(path.read_text())
    }
    assert found == users


@pytest.mark.stress
def test_help_is_quick() -> None:
    """Processor time, the best of several: what a busy machine adds is not the command's fault."""

    def once() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run([sys.executable, "-m", "balloonctl", "--help"], capture_output=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert min(once() for _ in range(7)) < 0.120
