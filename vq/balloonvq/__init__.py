"""balloonvq: a virtio balloon, all of it, in one process.

A C virtqueue and a C balloon device, an emulated guest kernel with a balloon
driver whose locking design can be swapped, and the machine that puts them
together. The command `balloonctl` is built on this package; scripts that need
variables or loops should use it directly:

    >>> from balloonvq.machine import Machine, MachineConfig
    >>> with Machine.create(MachineConfig(ram_bytes=64 << 20)) as machine:  # doctest: +SKIP
    ...     machine.set_target(4096)
    ...     machine.wait().outcome
    'reached'
"""

from __future__ import annotations

__all__ = ["__version__", "core_version"]

#: The version of the distribution, as pyproject.toml has it.
__version__ = "0.1.0"


def core_version() -> dict[str, str | int]:
    """The C core that is loaded: its ``version``, and the ``abi`` of its binary interface.

    Raises:
        ImportError: if the core was not built.
    """
    from balloonvq.ffi import ffi, lib

    return {"version": ffi.string(lib.balloonvq_version()).decode(), "abi": int(lib.BALLOONVQ_ABI)}
