"""Guest memory: the Python face of csrc/guest_memory.h."""

from __future__ import annotations

import os
from types import TracebackType
from typing import Self

from balloonvq.errors import InvalidArgument
from balloonvq.ffi import CData, check, ffi, lib

__all__ = ["PAGE_SHIFT", "PAGE_SIZE", "GuestMemory"]

#: The balloon's page, whatever the host's: 4096 bytes (BAL-DRV-07).
PAGE_SIZE = 4096
PAGE_SHIFT = 12


class GuestMemory:
    """A guest's RAM: one memfd at guest-physical 0, or regions added by a front end.

    Args:
        size_bytes: bytes of RAM; a multiple of `PAGE_SIZE`, at most 16 TiB (T-17).

    Raises:
        InvalidArgument: if the size is not whole pages.
        NotEnoughMemory: if the host has no room for the mapping.
    """

    def __init__(self, size_bytes: int) -> None:
        if size_bytes <= 0 or size_bytes % PAGE_SIZE:
            raise InvalidArgument(
                f"guest memory of {size_bytes} bytes is not whole pages",
                why=f"a page is {PAGE_SIZE} bytes",
            )
        out = ffi.new("struct gm **")
        check(lib.gm_create(size_bytes, out), "map the guest's memory")
        self._gm: CData = out[0]

    @classmethod
    def empty(cls) -> GuestMemory:
        """A memory map without any memory; see `add_region`."""
        self = cls.__new__(cls)
        out = ffi.new("struct gm **")
        check(lib.gm_create_empty(out), "make a memory map")
        self._gm = out[0]
        return self

    def add_region(self, guest_address: int, size_bytes: int, descriptor: int, offset: int) -> None:
        """Maps a piece of a file; the map gets a copy of the descriptor.

        Raises:
            CoreError: if the region overlaps another, or the file ends before it does.
        """
        copy = os.dup(descriptor)
        try:
            check(
                lib.gm_add_region(self._gm, guest_address, size_bytes, copy, offset),
                f"map {size_bytes:#x} bytes of guest memory at {guest_address:#x}",
            )
        except BaseException:
            os.close(copy)
            raise

    def guard(self) -> None:
        """Survives files that somebody else shrinks: what has no file any more reads as zeroes."""
        check(lib.gm_guard(self._gm), "guard guest memory")

    @property
    def handle(self) -> CData:
        """The C object, for the other faces."""
        return self._gm

    @property
    def size_bytes(self) -> int:
        """Bytes of RAM."""
        return int(lib.gm_size(self._gm))

    @property
    def size_pages(self) -> int:
        """Pages of RAM."""
        return self.size_bytes >> PAGE_SHIFT

    def allocated_bytes(self) -> int:
        """Bytes that the file behind the memory occupies now, counted by the file system."""
        return check(lib.gm_allocated_bytes(self._gm), "measure guest memory")

    def allocated_peak_bytes(self) -> int:
        """The most that `allocated_bytes` has been."""
        return check(lib.gm_allocated_peak(self._gm), "measure guest memory")

    def populate(self, address: int, size_bytes: int) -> None:
        """Makes a range resident and dirty, as a guest does that has used it.

        Raises:
            NotEnoughMemory: if the host cannot back it.
        """
        check(lib.gm_populate(self._gm, address, size_bytes), "touch guest memory")

    def stamp(self, pfns: CData, count: int, owner: int) -> None:
        """Writes the owner's pattern into the pages."""
        check(lib.gm_stamp(self._gm, pfns, count, owner), "write guest pages")

    def verify(self, pfns: CData, count: int, owner: int) -> int:
        """How many of the pages no longer hold the owner's pattern."""
        return check(lib.gm_verify(self._gm, pfns, count, owner, ffi.NULL, 0), "check guest pages")

    def read(self, address: int, size_bytes: int) -> bytes:
        """A copy of guest memory."""
        buffer = ffi.new("uint8_t[]", size_bytes)
        check(lib.gm_read(self._gm, address, buffer, size_bytes), "read guest memory")
        return bytes(ffi.buffer(buffer))

    def write(self, address: int, data: bytes) -> None:
        """Writes bytes to a guest-physical address."""
        check(lib.gm_write(self._gm, address, data, len(data)), "write guest memory")

    def at(self, address: int, size_bytes: int) -> CData:
        """The host address of a guest-physical range.

        Raises:
            InvalidArgument: if the range is not wholly inside guest memory.
        """
        host = lib.gm_at(self._gm, address, size_bytes)
        if host == ffi.NULL:
            raise InvalidArgument(f"guest-physical {address:#x}+{size_bytes:#x} is outside guest memory")
        return host

    def close(self) -> None:
        """Unmaps everything; the object must not be used afterwards."""
        if self._gm:
            lib.gm_destroy(self._gm)
            self._gm = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()
