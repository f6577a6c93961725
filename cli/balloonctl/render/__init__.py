"""Documents as Rich draws them: pure functions, no machine, no terminal."""

from __future__ import annotations

__all__: list[str] = []
