"""balloonctl: the command. Parsing, rendering, shell and scripts; no virtio logic.

Files in reading order:

* `main`        the lazy group of commands and the entry point
* `command`     what every command has: the global options, its configuration
* `context`     one invocation: its settings, its consoles, its connection
* `connection`  which machine the commands drive
* `peer`        the questions every machine answers, QEMU included
* `commands/`   a file a command or a small family
* `render/`     pure functions from a document to what Rich draws
* `session`     many commands in one process: shell, run, -c, a pipe
* `failures`    errors as three lines or as JSON, and the exit codes
"""

from __future__ import annotations

__all__: list[str] = []
