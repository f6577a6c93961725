"""How long the commands take that one types most, from the start of the process to its end.

Warm: everything was run before, so that bytecode is compiled and files are in the page cache. The row
``python`` is an interpreter that does nothing; no command can be faster.
"""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from balloonvq.bench.measure import Against, Definition, Row, Sample
from balloonvq.errors import InternalError

__all__ = ["BENCHMARK", "Startup"]

#: Seconds that a command may take.
_PATIENCE = 60.0


class Startup:
    """Machines of their own, in a runtime directory of their own."""

    def __init__(self) -> None:
        limit = (Against("python"),)
        self.rows = (
            Row("python", "an interpreter that does nothing"),
            Row("--help", "balloonctl --help; to be under 120 ms", against=limit),
            Row("status", "balloonctl status of a machine that runs; to be under 200 ms", against=limit),
            Row("start", "balloonctl start --touch 0: a machine of 1 GiB; to be under 500 ms", against=limit),
            Row("stop", "balloonctl stop", against=limit),
        )
        self.notes: tuple[str, ...] = ()
        self._folder = tempfile.TemporaryDirectory(prefix="bench-")
        self._environment = {
            name: value
            for name, value in os.environ.items()
            if name not in {"PYTHONDONTWRITEBYTECODE", "PYTHONPROFILEIMPORTTIME"}
            and not name.startswith("BALLOONCTL_")
        } | {"BALLOONCTL_RUNTIME_DIR": self._folder.name}
        script = Path(sys.executable).with_name("balloonctl")
        self._program = [str(script)] if script.exists() else [sys.executable, "-m", "balloonctl"]

    def round(self) -> dict[str, Sample]:
        """Every command once."""
        samples = {
            "python": self._timed(sys.executable, "-c", ""),
            "--help": self._timed(*self._program, "--help"),
            "start": self._timed(*self._program, "start", "--touch", "0"),
        }
        try:
            samples["status"] = self._timed(*self._program, "status")
        finally:
            samples["stop"] = self._timed(*self._program, "stop")
        return samples

    def close(self) -> None:
        """Ends a machine that an error left behind."""
        subprocess.run(
            [*self._program, "stop", "--all"],
            env=self._environment,
            capture_output=True,
            timeout=_PATIENCE,
            check=False,
        )
        self._folder.cleanup()

    def _timed(self, *command: str) -> Sample:
        """Runs a command; the process that `start` leaves behind is not part of its processor time."""
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        started = time.perf_counter_ns()
        done = subprocess.run(
            command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            check=False,
        )
        elapsed = time.perf_counter_ns() - started
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            raise InternalError(f"{' '.join(command)} failed", why=done.stderr.strip())
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return Sample(elapsed, {"cpu_ns": cpu * 1e9})


BENCHMARK = Definition(
    "startup",
    "How long --help, status and start take, beside an interpreter that does nothing.",
    Startup,
    runs=10,
    warmup=2,
)
