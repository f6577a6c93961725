"""A background machine of the tests: runs a FakeMachine in place of the real one.

Its options say what goes wrong: `fail`, `die`, `slow` or `hang`. With `gate`, a fifo, it is made once somebody has written there.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.fake_machine import FakeMachine

from balloonctl import background
from balloonvq.errors import NotEnoughMemory

Progress = Callable[[int, int], None]


class Hanging(FakeMachine):
    def stop(self) -> None:
        time.sleep(600)


def make(options: dict[str, Any], on_progress: Progress) -> FakeMachine:
    machine: FakeMachine = FakeMachine(name=options["name"])
    for done in (0, 50, 100):
        on_progress(done, 100)
        time.sleep(0.06 if done < 100 and options.get("progress") else 0)
    if options.get("fail") == "memory":
        raise NotEnoughMemory("too little memory", why="2 GiB are wanted", hint="--ram 1G")
    if options.get("fail") == "bug":
        raise ZeroDivisionError("oops")
    if options.get("die"):
        os.write(2, b"cannot go on\n")
        os._exit(9)
    if "slow" in options:
        Path(options["slow"]).write_text(str(os.getpid()))
        time.sleep(600)
    if "gate" in options:
        Path(options["gate"]).read_text()
    if options.get("hang"):
        machine = Hanging(name=options["name"])
    if "cwd" in options:
        Path(options["cwd"]).write_text(str(Path.cwd()))
    return machine


if __name__ == "__main__":
    background.run_child(sys.argv[1:], make)
