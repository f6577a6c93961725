"""`python -m balloonctl` is the command."""

from __future__ import annotations

from balloonctl.main import run

if __name__ == "__main__":
    run()
