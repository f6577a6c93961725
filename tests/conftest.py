"""Fixtures that every kind of test may use."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a shell starts what it puts in the background. Tests press Ctrl-C, and their children inherit this.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def root() -> Path:
    """The top of the repository."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture
def runtime_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory of its own for the machines of a test; they are stopped at its end.

    It lies directly under the temporary folder, since a unix socket's path holds 107 bytes.
    """
    path = Path(tempfile.mkdtemp(prefix="bln-"))
    monkeypatch.setenv("BALLOONCTL_RUNTIME_DIR", str(path))
    yield path
    if any(path.iterdir()):
        subprocess.run(
            [sys.executable, "-m", "balloonctl", "stop", "--all"],
            env=os.environ | {"BALLOONCTL_RUNTIME_DIR": str(path)},
            capture_output=True,
            timeout=30,
            check=False,
        )
    shutil.rmtree(path, ignore_errors=True)
