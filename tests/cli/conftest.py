"""Fixtures of the command's tests: a world without real machines."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import balloonctl
from balloonctl.main import main

sys.path.insert(0, str(Path(__file__).parent))

from cli_fakes import FakeMachine, FixedConnection, World, fake_modules


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing of the person who runs the tests gets in."""
    for name in list(os.environ):
        if name.startswith("BALLOONCTL_") or name in {"NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE"}:
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Fakes for the modules that need a real machine."""
    world = World()
    background, module = fake_modules(world)
    monkeypatch.setitem(sys.modules, "balloonctl.background", background)
    monkeypatch.setattr(balloonctl, "background", background, raising=False)
    monkeypatch.setitem(sys.modules, "balloonvq.machine", module)
    return world


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine()


@pytest.fixture
def call(world: World) -> Callable[..., Result]:
    """Runs a command line alone, in the fake world."""

    def call(*args: str, stdin: str | None = None, env: dict[str, str] | None = None) -> Result:
        return CliRunner(catch_exceptions=False).invoke(main, list(args), input=stdin, env=env)

    return call


@pytest.fixture
def on(machine: FakeMachine, world: World) -> Callable[..., Result]:
    """Runs a command line on the fake machine."""

    def on(*args: str, env: dict[str, str] | None = None) -> Result:
        runner = CliRunner(catch_exceptions=False)
        return runner.invoke(main, list(args), env=env, obj=FixedConnection(machine))

    return on
