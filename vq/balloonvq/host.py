"""What the host can give: memory and processors."""

from __future__ import annotations

import contextlib
import os
import platform
from pathlib import Path

import psutil

__all__ = ["available_bytes", "facts", "shared_cpu"]


def available_bytes() -> int:
    """Memory that the host can still give, within the control group's limit if there is one."""
    available = int(psutil.virtual_memory().available)
    with contextlib.suppress(OSError, ValueError):
        group = _cgroup_directory()
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        available = min(available, max(0, limit - used))
    return available


def _cgroup_directory() -> Path:
    """The unified control group of this process.

    Raises:
        OSError: if there is none.
    """
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        number, _, path = line.split(":", 2)
        if number == "0":
            return Path("/sys/fs/cgroup" + path)
    raise OSError("no unified control group")


def shared_cpu() -> int | None:
    """The processor that guest and device share, spread over machines by process number.

    None when there is only one to choose from.
    """
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[os.getpid() % len(allowed)] if len(allowed) > 1 else None


def facts() -> dict[str, str]:
    """What a figure should be read with: processor, cores, kernel, Python, huge page setting."""
    cpu = "unknown"
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                cpu = line.partition(":")[2].strip()
                break
    huge = "unknown"
    with contextlib.suppress(OSError):
        huge = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled").read_text().strip()
    return {
        "processor": cpu,
        "cores": str(len(os.sched_getaffinity(0))),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "shmem_huge_pages": huge,
        "load_average": f"{os.getloadavg()[0]:.2f}",
    }
