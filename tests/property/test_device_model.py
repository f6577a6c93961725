"""The balloon device against a set: any PFN arrays, framed in any way."""

from __future__ import annotations

import itertools
import struct

from hypothesis import given, settings
from hypothesis import strategies as st

from balloonvq.device import BalloonDevice
from balloonvq.features import Feature
from balloonvq.ffi import ffi, lib
from balloonvq.memory import PAGE_SIZE, GuestMemory
from balloonvq.queue import RingAddresses, ring_config, ring_layout

PAGES, KERNEL = 128, 32
SIZE = 16
BUFFERS = 24 * PAGE_SIZE
INFLATE, DEFLATE = 0, 1
FEATURES = int(Feature.VERSION_1 | Feature.STATS_VQ | Feature.INDIRECT_DESC | Feature.EVENT_IDX)


class Rig:
    """A device, and driver halves that the test frames its requests with."""

    def __init__(self, features: int) -> None:
        self.memory = GuestMemory(PAGES * PAGE_SIZE)
        self.memory.populate(0, PAGES * PAGE_SIZE)
        for pfn in range(KERNEL, PAGES):
            self.memory.write(pfn * PAGE_SIZE, self.content(pfn))
        self.device = BalloonDevice(self.memory, features=features, queue_size_max=SIZE)
        for status in (0, 1, 3):
            self.device.set_status(status)
        self.device.set_driver_features(features)
        self.device.set_status(11)
        layout = ring_layout(features, SIZE)
        self.drivers = []
        for queue in range(3 if features & Feature.STATS_VQ else 2):
            base = queue * 4 * PAGE_SIZE
            rings = RingAddresses(base, base + PAGE_SIZE, base + 2 * PAGE_SIZE)
            assert layout.device_bytes <= PAGE_SIZE
            out = ffi.new("struct vq_driver **")
            config = ring_config(features, SIZE, rings)
            assert lib.vq_driver_create(self.memory.handle, config, out) == 0
            self.drivers.append(out[0])
            self.device.queue_enable(queue, SIZE, rings)
        self.device.set_status(15)

    @staticmethod
    def content(pfn: int) -> bytes:
        return struct.pack("<I", pfn) * 1024

    def request(self, queue: int, data: bytes, cuts: list[int]) -> int:
        """Sends bytes cut into descriptors; returns the used length."""
        self.memory.write(BUFFERS, data)
        edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
        pieces = [(BUFFERS + a, b - a) for a, b in itertools.pairwise(edges)]
        segments = ffi.new("struct vq_segment[]", pieces)
        driver = self.drivers[queue]
        assert lib.vq_driver_add(driver, segments, len(pieces), 0, 7) == 0
        lib.vq_driver_publish(driver)
        assert self.device.process(queue) == 1
        length = ffi.new("uint32_t *")
        assert lib.vq_driver_get_used(driver, ffi.NULL, length) == 1
        lib.vq_driver_enable_calls(driver)
        return int(length[0])

    def close(self) -> None:
        self.device.close()
        for driver in self.drivers:
            lib.vq_driver_destroy(driver)
        self.memory.close()


pfns = st.integers(KERNEL, PAGES - 1) | st.integers(KERNEL, KERNEL + 8)
wild = st.sampled_from([PAGES, PAGES + 1, 1 << 20, (1 << 32) - 1])
requests = st.tuples(
    st.sampled_from([INFLATE, INFLATE, DEFLATE]),
    st.lists(pfns | pfns | pfns | wild, min_size=1, max_size=40),
    st.integers(0, 3),
    st.lists(st.integers(0, 200), max_size=3),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(requests, max_size=8), st.booleans(), st.booleans())
def test_t_15_t_16_t_24_t_28_any_requests(
    story: list[tuple[int, list[int], int, list[int]]], tell: bool, event_idx: bool
) -> None:
    features = FEATURES | (1 if tell else 0)
    features &= ~0 if event_idx else ~int(Feature.EVENT_IDX)
    rig = Rig(features)
    try:
        held: set[int] = set()
        gone: set[int] = set()
        inflated = deflated = duplicate = outside = never = odd = 0
        for queue, array, tail, cuts in story:
            data = b"".join(struct.pack("<I", pfn) for pfn in array) + b"\xff" * tail
            assert rig.request(queue, data, cuts) == 0, "T-27"
            odd += tail
            for pfn in array:
                if pfn >= PAGES:
                    outside += 1
                elif queue == INFLATE:
                    duplicate += pfn in held
                    inflated += pfn not in held
                    held.add(pfn)
                    gone.add(pfn)
                else:
                    never += pfn not in held
                    deflated += pfn in held
                    held.discard(pfn)
            assert rig.memory.allocated_bytes() == (PAGES - len(gone)) * PAGE_SIZE
        counters = rig.device.counters()
        assert counters.requests == len(story)
        assert counters.held_pages == len(held)
        assert (counters.inflated_pages, counters.deflated_pages) == (inflated, deflated)
        assert (counters.pfns_duplicate, counters.pfns_out_of_range) == (duplicate, outside)
        assert (counters.pfns_never_inflated, counters.odd_bytes) == (never, odd)
        assert {pfn for pfn in range(PAGES) if rig.device.holds(pfn)} == held
        assert rig.device.broken() is None
        for pfn in range(KERNEL, PAGES):
            expected = bytes(PAGE_SIZE) if pfn in gone else rig.content(pfn)
            assert rig.memory.read(pfn * PAGE_SIZE, PAGE_SIZE) == expected, pfn
    finally:
        rig.close()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 20) | st.integers(0, 65535), st.integers(0, (1 << 64) - 1)), max_size=40
    ),
    st.integers(0, 9),
    st.lists(st.integers(0, 400), max_size=3),
)
def test_bal_dev_08_09_bal_drv_28_29_any_statistics(
    entries: list[tuple[int, int]], tail: int, cuts: list[int]
) -> None:
    # Any tags in any order, cut anywhere; unknown ones are kept, the last of a duplicate wins.
    rig = Rig(FEATURES)
    try:
        data = b"".join(struct.pack("<HQ", tag, value) for tag, value in entries) + b"\x01" * tail
        if not data:
            return
        rig.memory.write(BUFFERS, data)
        edges = sorted({0, len(data), *(cut % (len(data) + 1) for cut in cuts)})
        pieces = [(BUFFERS + a, b - a) for a, b in itertools.pairwise(edges)]
        segments = ffi.new("struct vq_segment[]", pieces)
        driver = rig.drivers[2]
        assert lib.vq_driver_add(driver, segments, len(pieces), 0, 7) == 0
        lib.vq_driver_publish(driver)
        assert rig.device.process(2) == 1
        # BAL-DEV-07: it is kept until the host wants news.
        assert lib.vq_driver_get_used(driver, ffi.NULL, ffi.NULL) == 0
        stats = rig.device.stats()
        assert stats.values == dict(entries)
        assert stats.updates == bool(entries)
        assert rig.device.request_stats()
        assert lib.vq_driver_get_used(driver, ffi.NULL, ffi.NULL) == 1
        assert not rig.device.request_stats()
    finally:
        rig.close()
