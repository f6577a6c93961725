"""Guest memory: the Python face of csrc/guest_memory.h.

Where a guest's RAM comes from is told by its backing, one of

``memfd``    shared memory of its own, small pages; the host takes them back by punching holes. From 64 MiB up
             it is four files, in which two threads can do so at once
``anon``     private anonymous memory, small pages; MADV_DONTNEED
``huge``     the same with huge pages, wherever the kernel has one (MADV_HUGEPAGE)
a path       a file; anything with a slash in it. In a directory a file without a name is made, which is gone
             with the process, however it ends. A file that has a name must be a new one; it is removed when
             the memory is closed. On a tmpfs that is mounted with huge=always its pages are huge.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from balloonvq.closing import Closing
from balloonvq.errors import BalloonError, InvalidArgument, NotEnoughMemory
from balloonvq.ffi import CData, check, ffi, lib
from balloonvq.units import size as human

__all__ = ["BACKINGS", "PAGE_SHIFT", "PAGE_SIZE", "GuestMemory", "is_private"]

#: The balloon's page, whatever the host's: 4096 bytes (BAL-DRV-07).
PAGE_SIZE = 4096
PAGE_SHIFT = 12

#: Backings that are no path.
BACKINGS = ("memfd", "anon", "huge")


def is_private(backing: str) -> bool:
    """Whether memory of that backing belongs to one process, so that there is nothing to punch holes in."""
    return backing in {"anon", "huge"}


class GuestMemory(Closing):
    """A guest's RAM from guest-physical 0 on, or regions added by a front end.

    Args:
        size_bytes: bytes of RAM; a multiple of `PAGE_SIZE`, at most 16 TiB (T-17).
        backing: where it comes from, see above.

    Raises:
        InvalidArgument: if the size is not whole pages, or the backing cannot be used.
        BalloonError: if the file cannot be made.
        NotEnoughMemory: if the host has no room for the mapping.
    """

    def __init__(self, size_bytes: int, backing: str = "memfd") -> None:
        if size_bytes <= 0 or size_bytes % PAGE_SIZE:
            raise InvalidArgument(
                f"guest memory of {size_bytes} bytes is not whole pages",
                why=f"a page is {PAGE_SIZE} bytes",
            )
        self.backing = backing
        self._file: tuple[str, int] | None = None
        if backing not in BACKINGS:
            self._map_file(size_bytes, backing)
            return
        out = ffi.new("struct gm **")
        if is_private(backing):
            pages = lib.GM_HUGE if backing == "huge" else lib.GM_SMALL
            rc = lib.gm_create_anonymous(size_bytes, pages, out)
        else:
            rc = lib.gm_create(size_bytes, out)
        check(rc, "map the guest's memory")
        self._gm: CData = out[0]

    def _map_file(self, size_bytes: int, path: str) -> None:
        if "/" not in path:
            raise InvalidArgument(
                f"guest memory cannot be {path!r}",
                why=f"it is {', '.join(BACKINGS)}, or a path",
                hint=f"a file here is ./{path}",
            )
        descriptor, named = _open_new(path)
        if named:
            self._file = (os.path.abspath(path), os.fstat(descriptor).st_ino)  # noqa: PTH100
        out = ffi.new("struct gm **")
        try:
            check(lib.gm_create_empty(out), "make a memory map")
            self._gm = out[0]
            _make_room(path, descriptor, size_bytes)
            self.add_region(0, size_bytes, descriptor, 0)
            self._try_hole(path)
            # Whoever finds the file can shrink it.
            self.guard()
        except BaseException:
            self.close()
            raise
        finally:
            os.close(descriptor)

    def _try_hole(self, path: str) -> None:
        """Finds out whether the file system can take pages back."""
        out = ffi.new("struct discard **")
        check(lib.discard_create(self._gm, lib.DISCARD_PUNCH, out), "make a discarder")
        rc = lib.discard_range(out[0], 0, self.size_bytes)
        lib.discard_destroy(out[0])
        if rc == -errno.EOPNOTSUPP:
            raise InvalidArgument(
                f"guest memory cannot be {path}",
                why="its file system cannot punch holes, so nothing would ever be given back",
                hint="a file on tmpfs, hugetlbfs, ext4, xfs or btrfs",
            )
        check(rc, f"punch a hole in {path}")

    @classmethod
    def empty(cls) -> GuestMemory:
        """A memory map without any memory; see `add_region`."""
        self = cls.__new__(cls)
        self.backing = "front end"
        self._file = None
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
        """Bytes that the host has allocated for the memory now, counted by the kernel."""
        return check(lib.gm_allocated_bytes(self._gm), "measure guest memory")

    def allocated_peak_bytes(self) -> int:
        """The most that `allocated_bytes` has been."""
        return check(lib.gm_allocated_peak(self._gm), "measure guest memory")

    def allocated(self) -> tuple[int, int]:
        """`allocated_bytes` and `allocated_peak_bytes` by one look."""
        now, peak = ffi.new("int64_t *"), ffi.new("int64_t *")
        check(lib.gm_allocated(self._gm, now, peak), "measure guest memory")
        return int(now[0]), int(peak[0])

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
        """The host address of a guest-physical range, as devices see memory: within one region.

        Raises:
            InvalidArgument: if the range is not wholly inside one region of guest memory.
        """
        host = lib.gm_at(self._gm, address, size_bytes)
        if host == ffi.NULL:
            raise InvalidArgument(
                f"guest-physical {address:#x}+{size_bytes:#x} is not within one region of guest memory"
            )
        return host

    def close(self) -> None:
        """Unmaps everything; the object must not be used afterwards."""
        if self._gm:
            lib.gm_destroy(self._gm)
            self._gm = None
            if self._file is not None:
                _remove(*self._file)


def _open_new(path: str) -> tuple[int, bool]:
    """A new file, and whether it has a name.

    Raises:
        InvalidArgument: if there is one already.
        BalloonError: if none can be made.
    """
    flags = os.O_RDWR | os.O_CLOEXEC
    try:
        if stat.S_ISDIR(os.stat(path).st_mode):  # noqa: PTH116 - the path is the user's own spelling
            return os.open(path, flags | os.O_TMPFILE, 0o600), False
    except FileNotFoundError:
        pass
    except OSError as error:
        raise BalloonError(f"guest memory cannot be made in {path}", why=error.strerror or "") from error
    try:
        return os.open(path, flags | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600), True
    except FileExistsError:
        raise InvalidArgument(
            f"guest memory cannot be {path}",
            why="that is there already, and it might be needed",
            hint="name a file that is not there, or a directory",
        ) from None
    except OSError as error:
        raise BalloonError(f"guest memory cannot be {path}", why=error.strerror or "") from error


def _make_room(path: str, descriptor: int, size_bytes: int) -> None:
    """Gives a new file its size.

    Raises:
        InvalidArgument: if it cannot have that one.
        NotEnoughMemory: if its file system has less room than that.
    """
    try:
        os.ftruncate(descriptor, size_bytes)
    except OSError as error:
        raise InvalidArgument(
            f"{path} cannot be {human(size_bytes)} long", why=error.strerror or "", hint="another --ram"
        ) from error
    room = os.fstatvfs(descriptor)
    free = room.f_bavail * room.f_frsize
    if room.f_blocks and free < size_bytes:  # no blocks: a file system without a limit
        raise NotEnoughMemory(
            f"{path} cannot hold a guest of {human(size_bytes)}",
            why=f"{human(free)} are free in its file system",
            hint=f"--ram {max(1, free >> 20)}M, or another place",
        )


def _remove(path: str, inode: int) -> None:
    """Takes a file's name away, if it still is that of the same file."""
    with contextlib.suppress(OSError):
        if os.lstat(path).st_ino == inode:
            os.unlink(path)  # noqa: PTH108
