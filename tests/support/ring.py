"""A split ring read byte by byte, with no help from the code under test."""

from __future__ import annotations

from dataclasses import dataclass

from balloonvq.memory import GuestMemory

NEXT, WRITE, INDIRECT = 1, 2, 4


@dataclass(frozen=True)
class Desc:
    """One descriptor."""

    addr: int
    length: int
    flags: int
    next: int


@dataclass(frozen=True)
class RingView:
    """Where a ring lies; everything is read anew at each call."""

    memory: GuestMemory
    size: int
    desc: int
    avail: int
    used: int

    def _int(self, address: int, size: int) -> int:
        return int.from_bytes(self.memory.read(address, size), "little")

    @property
    def avail_flags(self) -> int:
        return self._int(self.avail, 2)

    @property
    def avail_idx(self) -> int:
        return self._int(self.avail + 2, 2)

    def avail_slot(self, index: int) -> int:
        return self._int(self.avail + 4 + 2 * (index % self.size), 2)

    @property
    def used_event(self) -> int:
        return self._int(self.avail + 4 + 2 * self.size, 2)

    @property
    def used_flags(self) -> int:
        return self._int(self.used, 2)

    @property
    def used_idx(self) -> int:
        return self._int(self.used + 2, 2)

    def used_slot(self, index: int) -> tuple[int, int]:
        address = self.used + 4 + 8 * (index % self.size)
        return self._int(address, 4), self._int(address + 4, 4)

    @property
    def avail_event(self) -> int:
        return self._int(self.used + 4 + 8 * self.size, 2)

    def descriptor(self, index: int, table: int | None = None) -> Desc:
        raw = self.memory.read((self.desc if table is None else table) + 16 * index, 16)
        part = lambda first, last: int.from_bytes(raw[first:last], "little")  # noqa: E731
        return Desc(part(0, 8), part(8, 12), part(12, 14), part(14, 16))

    def chain(self, head: int) -> list[Desc]:
        """The buffers of a chain, tables resolved; asserts what every chain must obey."""
        buffers: list[Desc] = []
        index = head
        for _ in range(self.size):
            assert index < self.size
            desc = self.descriptor(index)
            if desc.flags & INDIRECT:
                assert not desc.flags & NEXT, "SPLIT-DRV-10"
                assert desc.length
                assert desc.length % 16 == 0
                entry = 0
                for _ in range(desc.length // 16):
                    inner = self.descriptor(entry, desc.addr)
                    assert not inner.flags & INDIRECT, "SPLIT-DRV-08"
                    buffers.append(inner)
                    if not inner.flags & NEXT:
                        break
                    entry = inner.next
                    assert entry < desc.length // 16
                return buffers
            buffers.append(desc)
            if not desc.flags & NEXT:
                return buffers
            index = desc.next
        raise AssertionError("chain longer than the queue")

    def pfns(self, index: int) -> list[int]:
        """The PFNs of the request in an available slot (BAL-DRV-07: le32)."""
        data = b"".join(
            self.memory.read(buffer.addr, buffer.length) for buffer in self.chain(self.avail_slot(index))
        )
        return [int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)]
