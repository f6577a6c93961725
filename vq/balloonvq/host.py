"""What the host can give: memory and processors."""

from __future__ import annotations

import contextlib
import os
import platform
import re
import subprocess
from pathlib import Path

from balloonvq.errors import InternalError, NotEnoughMemory
from balloonvq.units import size as human

__all__ = ["available_bytes", "check_available", "facts", "shared_cpu"]


def available_bytes() -> int:
    """Memory that the host can still give, within the control group's limit if there is one."""
    available = _meminfo("MemAvailable")
    with contextlib.suppress(OSError, ValueError):
        group = _cgroup_directory()
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
        available = min(available, max(0, limit - used))
    return available


def check_available(needed_bytes: int, what: str, option: str, size_bytes: int) -> None:
    """Refuses what the host has no memory for, before any of it is taken.

    Args:
        needed_bytes: all that may be resident at the same time.
        what: what it is for, as in "cannot back WHAT".
        option: the option that decides how much that is; the hint names it.
        size_bytes: what the option says now.

    Raises:
        NotEnoughMemory: if less is available.
    """
    available = available_bytes()
    if needed_bytes > available:
        smaller = size_bytes * (available * 3 // 4) // needed_bytes
        raise NotEnoughMemory(
            f"the host cannot back {what}",
            why=f"{human(available)} are available",
            hint=f"{option} {max(1, smaller >> 20)}M, or end something that uses memory",
        )


def _meminfo(name: str) -> int:
    """Bytes of a line of /proc/meminfo."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        found, _, value = line.partition(":")
        if found == name:
            return int(value.split()[0]) * 1024
    raise InternalError(f"/proc/meminfo has no {name}")


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
    """What a figure should be read with: processor, cores, kernel, huge page settings, versions, load."""
    import balloonvq
    from balloonvq.ffi import ffi, lib

    return {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "memory_bytes": str(_meminfo("MemTotal")),
        "kernel": platform.release(),
        "anonymous_huge_pages": _setting("enabled"),
        "shmem_huge_pages": _setting("shmem_enabled"),
        "compiler": ffi.string(lib.balloonvq_compiler()).decode(),
        "python": platform.python_version(),
        "version": balloonvq.__version__,
        "commit": _commit(),
        "load_average": f"{os.getloadavg()[0]:.2f}",
    }


def _processor() -> str:
    """Its name by /proc/cpuinfo, whatever the architecture calls it there."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() in {"model name", "Model", "cpu model", "uarch"}:
                return value.strip()
    return platform.machine() or "unknown"


def _setting(name: str) -> str:
    """The chosen one of a transparent huge page setting, which stands in brackets."""
    with contextlib.suppress(OSError):
        text = (Path("/sys/kernel/mm/transparent_hugepage") / name).read_text()
        found = re.search(r"\[(\w+)\]", text)
        return found[1] if found else text.strip()
    return "unknown"


def _commit() -> str:
    """The commit of the checkout that this package is run from, with a plus if files changed; else "none"."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return "none"
    command = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return told.stdout.strip()
    return "none"
