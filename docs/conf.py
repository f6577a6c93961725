"""Sphinx: MyST pages, furo, warnings are errors (`make docs`)."""

from __future__ import annotations

import tomllib
from pathlib import Path

_project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]

project = "balloonctl"
author = "the balloonctl maintainers"
release = version = _project["version"]

extensions = ["myst_parser"]
exclude_patterns = ["_build", "benchmarks-full.md"]  # the second is included by benchmarks.md
nitpicky = True
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"balloonctl {release}"
