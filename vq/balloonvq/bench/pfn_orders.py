"""In which order a guest gives its pages to the balloon, as lists of page frame numbers.

``contiguous``   rising, from 0
``fresh``        as a Linux 6.1 guest gave 512 MiB of its 1 GiB soon after it had booted
``frag``         the same after its free memory had been fragmented
``shuffled``     a permutation of all of them, drawn from a seed

`fresh` and `frag` were recorded from a real guest, whose 1 GiB is PFNs 0 to 262143; they are in ``data`` beside this
module, packed: the differences of neighbours (modulo 2^32), their lowest bytes first, then all second ones,
and so on, compressed by zlib.
"""

from __future__ import annotations

import sys
import zlib
from array import array
from importlib import resources
from itertools import accumulate, pairwise

from balloonvq.errors import InvalidArgument

__all__ = ["ORDERS", "RECORDED", "RECORDED_PAGES", "RECORDED_RAM_PAGES", "order", "pack", "unpack"]

ORDERS = ("contiguous", "fresh", "frag", "shuffled")

#: Those that were recorded, how many PFNs each has, and how many pages the guest had.
RECORDED = ("fresh", "frag")
RECORDED_PAGES = 131072
RECORDED_RAM_PAGES = 262144

_WORD = 1 << 32
_BYTES = 4


def pack(pfns: array[int]) -> bytes:
    """The packed form of an order."""
    differences = array("I", [(after - before) % _WORD for before, after in pairwise([0, *pfns])])
    raw = _little_endian(differences).tobytes()
    return zlib.compress(b"".join(raw[byte::_BYTES] for byte in range(_BYTES)), 9)


def unpack(packed: bytes) -> array[int]:
    """What was packed.

    Raises:
        zlib.error: if it is damaged.
    """
    planes = zlib.decompress(packed)
    count = len(planes) // _BYTES
    raw = bytearray(len(planes))
    for byte in range(_BYTES):
        raw[byte::_BYTES] = planes[byte * count : (byte + 1) * count]
    differences = array("I")
    differences.frombytes(raw)
    return array("I", accumulate(_little_endian(differences), lambda pfn, step: (pfn + step) % _WORD))


def _little_endian(words: array[int]) -> array[int]:
    """The words as a little-endian machine has them in memory, or back."""
    if sys.byteorder == "big":
        words = words[:]
        words.byteswap()
    return words


def order(name: str, pages: int, seed: int = 1) -> array[int]:
    """The first `pages` PFNs in an order.

    Args:
        name: one of `ORDERS`.
        pages: how many; of a shuffled order also how many there are. Recorded ones end earlier if they have fewer.
        seed: of a shuffled order.

    Raises:
        InvalidArgument: if there is no such order.
    """
    if name not in ORDERS:
        raise InvalidArgument(f"there is no order {name!r}", why=f"the orders are {', '.join(ORDERS)}")
    if name in RECORDED:
        packed = resources.files("balloonvq.bench").joinpath("data", f"{name}.pfns").read_bytes()
        return unpack(packed)[:pages]
    pfns = array("I", range(pages))
    if name == "shuffled":
        _shuffle(pfns, seed)
    return pfns


def _shuffle(pfns: array[int], seed: int) -> None:
    """Fisher and Yates, with the numbers of a 64-bit linear congruence: the same everywhere."""
    state = seed
    for last in range(len(pfns) - 1, 0, -1):
        state = (state * 6364136223846793005 + 1442695040888963407) % (1 << 64)
        other = (state >> 32) * (last + 1) >> 32
        pfns[last], pfns[other] = pfns[other], pfns[last]
