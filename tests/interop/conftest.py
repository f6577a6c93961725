"""What the tests with a real kernel need; they skip where it is not installed, and never in CI."""

from __future__ import annotations

import os

import pytest

from balloonvq.bench.uml import missing


@pytest.fixture(autouse=True, scope="session")
def _kernel() -> None:
    """Skips with the reason. CI installs the kernel, so a missing one is an error there."""
    why = missing()
    if why and os.environ.get("CI"):
        pytest.fail(f"CI runs these tests: {why}")
    if why:
        pytest.skip(why)
