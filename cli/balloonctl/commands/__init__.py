"""The commands, a file a command or a small family. `balloonctl.main.COMMANDS` lists them."""

from __future__ import annotations

__all__: list[str] = []
