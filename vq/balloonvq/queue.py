"""The driver half of a virtqueue: the Python face of csrc/virtqueue.h."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass

from balloonvq.errors import BalloonError, DeviceBroken, InvalidArgument, KernelBug
from balloonvq.ffi import CData, check, ffi, lib
from balloonvq.memory import GuestMemory

__all__ = ["DriverQueue", "Layout", "RingAddresses", "ring_layout"]

#: What each request calls, looked up once: `lib` searches for a name each time.
_submit, _get_buf = lib.vq_driver_submit, lib.vq_driver_get_buf


@dataclass(frozen=True, slots=True)
class Layout:
    """Sizes and alignments of a ring's three areas, bytes."""

    desc_bytes: int
    driver_bytes: int
    device_bytes: int
    desc_align: int
    driver_align: int
    device_align: int


@dataclass(frozen=True, slots=True)
class RingAddresses:
    """Where the three areas lie, guest-physical."""

    desc: int
    driver: int
    device: int


def ring_layout(features: int, size: int) -> Layout:
    """The layout of a ring of `size` descriptors.

    Raises:
        InvalidArgument: if the size is no power of 2 from 1 to 32768 (SPLIT-DRV-02).
    """
    layout = ffi.new("struct vq_layout *")
    if not 0 < size <= lib.VQ_SIZE_MAX or lib.vq_layout(features, size, layout) < 0:
        raise InvalidArgument(
            f"a split virtqueue cannot have {size} descriptors",
            why="the size is a power of 2 from 1 to 32768",
        )
    return Layout(
        layout.desc_bytes,
        layout.driver_bytes,
        layout.device_bytes,
        layout.desc_align,
        layout.driver_align,
        layout.device_align,
    )


def ring_config(features: int, size: int, rings: RingAddresses) -> CData:
    """A C `struct vq_config`."""
    return ffi.new(
        "struct vq_config *",
        {
            "features": features,
            "size": size,
            "desc_addr": rings.desc,
            "driver_addr": rings.driver,
            "device_addr": rings.device,
            "chain_max": 0,
        },
    )


class DriverQueue:
    """A virtqueue as the driver sees it: add, kick, get_buf.

    One task at a time may use it; which lock sees to that is the locking
    design's business. Its memory stays safe even if none does.

    Args:
        memory: where the ring lies.
        name: inflate, deflate or stats.
        config: the ring's place and the negotiated features.
        kick_fd: eventfd that the device listens to.
        call_fd: eventfd that the device raises.

    Raises:
        CoreError: if the ring's place is not valid.
    """

    def __init__(self, memory: GuestMemory, name: str, config: CData, kick_fd: int, call_fd: int) -> None:
        self.name = name
        self.size = int(config.size)
        self.kick_fd = kick_fd
        self.call_fd = call_fd
        self._memory = memory
        out = ffi.new("struct vq_driver **")
        check(lib.vq_driver_create(memory.handle, config, out), f"set up the {name} queue")
        self._vq: CData = out[0]
        self._counters = ffi.new("struct vq_driver_counters *")

    def add(self, address: int, size_bytes: int) -> None:
        """Adds one device-readable buffer and makes it visible. The device reads it later.

        Raises:
            KernelBug: if the ring has no free descriptor; the balloon never has
                more than one request a queue outstanding.
            InvalidArgument: if the buffer is empty or outside guest memory.
        """
        rc = lib.vq_driver_send(self._vq, address, size_bytes)
        if rc < 0:
            raise self._refused(rc, address, size_bytes)

    def submit(self, address: int, size_bytes: int) -> None:
        """`add`, and `kick`."""
        rc = _submit(self._vq, address, size_bytes)
        if rc > 0:
            os.eventfd_write(self.kick_fd, 1)
        elif rc < 0:
            raise self._refused(rc, address, size_bytes)

    def _refused(self, rc: int, address: int, size_bytes: int) -> BalloonError:
        """Why a buffer cannot be added."""
        if rc == -errno.ENOSPC:
            return KernelBug(
                f"no free descriptor in the {self.name} queue",
                why=f"{self.outstanding} of {self.size} buffers are outstanding",
            )
        if rc == -errno.EIO:
            return self._broken()
        return InvalidArgument(f"cannot add buffer {address:#x}+{size_bytes} to the {self.name} queue")

    def kick(self) -> None:
        """Notifies the device unless it asked not to be (SPLIT-DRV-20..25)."""
        if lib.vq_driver_kick_needed(self._vq):
            os.eventfd_write(self.kick_fd, 1)

    def get_buf(self) -> int:
        """Takes a used buffer back: its address, or 0 if there is none.

        An interrupt is asked for at the next one before this one is handed out, as the kernel's
        virtqueue_get_buf does, so a waiter who got 0 may sleep.

        Raises:
            DeviceBroken: if the device wrote nonsense into the used ring.
        """
        address: int = _get_buf(self._vq)
        if address < 0:
            raise self._broken()
        return address

    def _broken(self) -> DeviceBroken:
        reason = ffi.string(lib.vq_broken_text(lib.vq_driver_broken(self._vq))).decode()
        return DeviceBroken(f"the device broke the {self.name} queue", why=reason)

    @property
    def outstanding(self) -> int:
        """Buffers added and not yet taken back."""
        return int(lib.vq_driver_outstanding(self._vq))

    @property
    def kicks(self) -> int:
        """Times the device was notified."""
        lib.vq_driver_counters_get(self._vq, self._counters)
        return int(self._counters.kicks)

    @property
    def kicks_suppressed(self) -> int:
        """Publications for which the device had asked for no kick."""
        lib.vq_driver_counters_get(self._vq, self._counters)
        return int(self._counters.kicks_suppressed)

    def close(self) -> None:
        """Frees the driver half; the ring memory stays the guest's."""
        if self._vq:
            lib.vq_driver_destroy(self._vq)
            self._vq = None
