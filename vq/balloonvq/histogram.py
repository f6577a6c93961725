"""Log-linear buckets of nanoseconds: the Python face of csrc/histogram.h."""

from __future__ import annotations

from collections.abc import Iterable

from balloonvq.counters import Latency
from balloonvq.ffi import CData, ffi, lib

__all__ = ["Histogram"]


class Histogram:
    """Counts values in buckets that are 6 per cent wide; C code fills it through `handle`."""

    def __init__(self) -> None:
        #: A `struct histogram *`, for the C function that measures.
        self.handle: CData = ffi.new("struct histogram *")
        lib.histogram_init(self.handle)

    def record(self, ns: int) -> None:
        """Adds one value."""
        lib.histogram_record(self.handle, ns)

    @property
    def count(self) -> int:
        """Values recorded."""
        return int(self.handle.count)

    def quantile(self, permille: int) -> int:
        """The value below which so many thousandths lie, ns; 0 while empty."""
        return int(lib.histogram_quantile(self.handle, permille))

    def latency(self) -> Latency:
        """Its percentiles."""
        return Latency(
            count=self.count,
            p50_ns=self.quantile(500),
            p90_ns=self.quantile(900),
            p99_ns=self.quantile(990),
            p999_ns=self.quantile(999),
            max_ns=int(self.handle.max) if self.count else 0,
        )

    def buckets(self) -> list[tuple[int, int]]:
        """(lowest value in ns, count) of every bucket that is not empty, ascending."""
        counts = ffi.unpack(self.handle.buckets, lib.HISTOGRAM_BUCKETS)
        return [(int(lib.histogram_low(number)), count) for number, count in enumerate(counts) if count]

    @classmethod
    def merged(cls, parts: Iterable[Histogram]) -> Histogram:
        """One with the values of all parts; none of them may be in use."""
        total = cls()
        into = total.handle
        for part in parts:
            into.count += part.handle.count
            into.sum += part.handle.sum
            into.min = min(into.min, part.handle.min)
            into.max = max(into.max, part.handle.max)
            for number, count in enumerate(ffi.unpack(part.handle.buckets, lib.HISTOGRAM_BUCKETS)):
                if count:
                    into.buckets[number] += count
        return total
