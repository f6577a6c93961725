"""Where the shell keeps what was typed; apart from the shell, since `info` names it too."""

from __future__ import annotations

from pathlib import Path

__all__ = ["history_file"]


def history_file() -> Path:
    """The history file, there or not."""
    import platformdirs

    return platformdirs.user_state_path("balloonctl") / "history"
