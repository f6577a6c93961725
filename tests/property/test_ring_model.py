"""The split ring against a plain-Python model of it, which decodes the ring's bytes by itself."""

from __future__ import annotations

import errno
from collections import deque
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from support.ring import INDIRECT, NEXT, WRITE, RingView

from balloonvq.features import Feature
from balloonvq.ffi import ffi, lib
from balloonvq.memory import GuestMemory
from balloonvq.queue import RingAddresses, ring_config, ring_layout

MASK = 0xFFFF
MIB = 1 << 20

#: Where things lie: rings from 64 KiB, indirect tables from 1 MiB, buffers from 2 MiB.
TABLES, BUFFERS = MIB, 2 * MIB


def need_event(event: int, new: int, old: int) -> bool:
    """Whether stepping from old to new writes the slot `event`: by walking, not by the formula."""
    index = old
    while index != new:
        if index == event:
            return True
        index = (index + 1) & MASK
    return False


@dataclass
class Buffer:
    """A buffer on its way."""

    token: int
    segments: list[tuple[int, int]]
    readable: int
    indirect: bool
    head: int = -1
    length: int = 0


class Halves:
    """Driver half and device half on one ring."""

    def __init__(self, size: int, features: int, fill: int = 0) -> None:
        self.memory = GuestMemory(4 * MIB)
        layout = ring_layout(features, size)
        at = 64 << 10
        rings = []
        for length, align in (
            (layout.desc_bytes, layout.desc_align),
            (layout.driver_bytes, layout.driver_align),
            (layout.device_bytes, layout.device_align),
        ):
            at = -(-at // align) * align
            rings.append(at)
            at += length
        self.memory.write(64 << 10, bytes([fill]) * (at - (64 << 10)))
        self.guard = at
        self.memory.write(at, b"\x5a" * 64)
        self.view = RingView(self.memory, size, *rings)
        config = ring_config(features, size, RingAddresses(*rings))
        out = ffi.new("struct vq_driver **")
        assert lib.vq_driver_create(self.memory.handle, config, out) == 0
        self.driver = out[0]
        out = ffi.new("struct vq_device **")
        assert lib.vq_device_create(self.memory.handle, config, out) == 0
        self.device = out[0]
        self.chain = ffi.new("struct vq_chain *")
        self.token = ffi.new("uint64_t *")
        self.length = ffi.new("uint32_t *")

    def add(self, buffer: Buffer, table: int = 0) -> int:
        segments = ffi.new("struct vq_segment[]", buffer.segments)
        readable, writable = buffer.readable, len(buffer.segments) - buffer.readable
        if buffer.indirect:
            return lib.vq_driver_add_indirect(self.driver, segments, readable, writable, table, buffer.token)
        return lib.vq_driver_add(self.driver, segments, readable, writable, buffer.token)

    def get_used(self) -> tuple[int, int, int]:
        rc = lib.vq_driver_get_used(self.driver, self.token, self.length)
        return rc, self.token[0], self.length[0]

    def close(self) -> None:
        lib.vq_driver_destroy(self.driver)
        lib.vq_device_destroy(self.device)
        self.memory.close()


class RingModel(RuleBasedStateMachine):
    """Any order of calls that a driver and a device may make."""

    @initialize(
        order=st.integers(0, 6),
        event_idx=st.booleans(),
        indirect=st.booleans(),
        fill=st.sampled_from([0, 255]),
    )
    def start(self, order: int, event_idx: bool, indirect: bool, fill: int) -> None:
        self.size = 1 << order
        self.event_idx, self.may_indirect = event_idx, indirect
        features = int(Feature.VERSION_1)
        features |= int(Feature.EVENT_IDX) if event_idx else 0
        features |= int(Feature.INDIRECT_DESC) if indirect else 0
        self.h = Halves(self.size, features, fill)
        view = self.h.view
        # SPLIT-DRV-19: whatever the memory held, the driver starts from zero.
        assert (view.avail_idx, view.used_idx, view.avail_flags, view.used_flags) == (0, 0, 0, 0)
        assert (view.used_event, view.avail_event) == (0, 0)
        self.free = self.size
        self.staged: list[Buffer] = []
        self.visible: deque[Buffer] = deque()
        self.popped: list[Buffer] = []
        self.pushed: list[Buffer] = []
        self.used: deque[Buffer] = deque()
        self.avail_idx = self.used_idx = self.driver_next = self.device_next = 0
        self.kick_from = self.call_from = 0
        self.tokens = 0
        self.calls_off = self.kicks_off = False
        self.table_of: dict[int, int] = {}
        self.counts = dict.fromkeys(("added", "used", "popped", "pushed"), 0)

    # -- the driver's side -------------------------------------------------

    @rule(
        lengths=st.lists(st.integers(1, 5000), min_size=1, max_size=6),
        split=st.integers(0, 6),
        indirect=st.booleans(),
    )
    def add(self, lengths: list[int], split: int, indirect: bool) -> None:
        self.tokens += 1
        slot = self.tokens % 64
        segments, at = [], BUFFERS + slot * 32768
        for length in lengths:
            segments.append((at, length))
            at += length
        buffer = Buffer(self.tokens, segments, min(split, len(lengths)), indirect)
        table = next(t for t in range(TABLES, BUFFERS, 256) if t not in self.table_of.values())
        rc = self.h.add(buffer, table)
        needs = 1 if indirect else len(lengths)
        if indirect and not self.may_indirect:
            assert rc == -errno.EOPNOTSUPP
        elif len(lengths) > self.size:
            assert rc == -errno.EINVAL
        elif needs > self.free:
            assert rc == -errno.ENOSPC
        else:
            assert rc == 0
            self.free -= needs
            if indirect:
                self.table_of[buffer.token] = table
            self.staged.append(buffer)
            self.counts["added"] += 1

    @rule(token=st.integers(0, 3))
    def add_nonsense(self, token: int) -> None:
        bad = [
            Buffer(1, [], 0, False),
            Buffer(1, [(BUFFERS, 0)], 1, False),
            Buffer(1, [(4 * MIB - 1, 2)], 1, False),
            Buffer(1, [((1 << 64) - 1, 2)], 1, False),
        ][token]
        assert self.h.add(bad) in {-errno.EINVAL, -errno.EFAULT, -errno.ENOSPC}

    @rule()
    def publish(self) -> None:
        before = self.avail_idx
        assert lib.vq_driver_publish(self.h.driver) == len(self.staged)
        for buffer in self.staged:
            buffer.head = self.h.view.avail_slot(self.avail_idx)
            self.check_chain(buffer)
            self.avail_idx = (self.avail_idx + 1) & MASK
            self.visible.append(buffer)
        assert self.avail_idx == (before + len(self.staged)) & MASK
        self.staged = []

    def check_chain(self, buffer: Buffer) -> None:
        view = self.h.view
        head = view.descriptor(buffer.head)
        assert bool(head.flags & INDIRECT) is buffer.indirect
        assert not (head.flags & INDIRECT and head.flags & NEXT)
        chain = view.chain(buffer.head)
        assert [(desc.addr, desc.length) for desc in chain] == buffer.segments
        assert [bool(desc.flags & WRITE) for desc in chain] == [
            index >= buffer.readable for index in range(len(chain))
        ]

    @rule()
    def kick_needed(self) -> None:
        old, self.kick_from = self.kick_from, self.avail_idx
        view = self.h.view
        wanted = old != self.avail_idx and (
            need_event(view.avail_event, self.avail_idx, old) if self.event_idx else not view.used_flags & 1
        )
        assert lib.vq_driver_kick_needed(self.h.driver) == wanted

    @rule()
    def get_used(self) -> None:
        rc, token, length = self.h.get_used()
        assert rc == bool(self.used)
        if self.used:
            buffer = self.used.popleft()
            assert (token, length) == (buffer.token, buffer.length)
            self.free += 1 if buffer.indirect else len(buffer.segments)
            self.table_of.pop(buffer.token, None)
            self.driver_next = (self.driver_next + 1) & MASK
            self.counts["used"] += 1

    @rule()
    def disable_calls(self) -> None:
        lib.vq_driver_disable_calls(self.h.driver)
        if not self.event_idx:
            assert self.h.view.avail_flags == 1

    @rule(after=st.integers(0, 5))
    def enable_calls(self, after: int) -> None:
        if after:
            count = after if self.event_idx else 1
            answer = lib.vq_driver_enable_calls_after(self.h.driver, after)
        else:
            count = 1
            answer = lib.vq_driver_enable_calls(self.h.driver)
        assert answer == (len(self.used) >= count)
        if self.event_idx:
            assert self.h.view.used_event == (self.driver_next + count - 1) & MASK
        else:
            assert self.h.view.avail_flags == 0

    # -- the device's side ---------------------------------------------------

    @rule()
    def pop(self) -> None:
        rc = lib.vq_device_pop(self.h.device, self.h.chain)
        assert rc == bool(self.visible)
        if not self.visible:
            return
        buffer = self.visible.popleft()
        chain = self.h.chain
        assert chain.head == buffer.head
        assert [
            (chain.segments[i].guest_addr, chain.segments[i].len) for i in range(chain.count)
        ] == buffer.segments
        assert chain.readable == buffer.readable
        assert chain.readable_bytes == sum(length for _, length in buffer.segments[: buffer.readable])
        assert chain.writable_bytes == sum(length for _, length in buffer.segments[buffer.readable :])
        assert all(
            chain.segments[i].base == self.h.memory.at(*buffer.segments[i]) for i in range(chain.count)
        )
        self.device_next = (self.device_next + 1) & MASK
        self.popped.append(buffer)
        self.counts["popped"] += 1

    @precondition(lambda self: self.popped)
    @rule(which=st.integers(0, 63), part=st.integers(0, 100))
    def push(self, which: int, part: int) -> None:
        buffer = self.popped.pop(which % len(self.popped))
        room = sum(length for _, length in buffer.segments[buffer.readable :])
        buffer.length = room * part // 100
        lib.vq_device_push(self.h.device, buffer.head, buffer.length)
        self.pushed.append(buffer)
        self.counts["pushed"] += 1

    @rule()
    def publish_used(self) -> None:
        assert lib.vq_device_publish(self.h.device) == len(self.pushed)
        for buffer in self.pushed:
            assert self.h.view.used_slot(self.used_idx) == (buffer.head, buffer.length)
            self.used_idx = (self.used_idx + 1) & MASK
        self.used.extend(self.pushed)
        self.pushed = []

    @rule()
    def call_needed(self) -> None:
        old, self.call_from = self.call_from, self.used_idx
        view = self.h.view
        wanted = old != self.used_idx and (
            need_event(view.used_event, self.used_idx, old) if self.event_idx else not view.avail_flags & 1
        )
        assert lib.vq_device_call_needed(self.h.device) == wanted

    @rule()
    def disable_kicks(self) -> None:
        lib.vq_device_disable_kicks(self.h.device)
        if not self.event_idx:
            assert self.h.view.used_flags == 1

    @rule()
    def enable_kicks(self) -> None:
        assert lib.vq_device_enable_kicks(self.h.device) == bool(self.visible)
        if self.event_idx:
            assert self.h.view.avail_event == self.device_next
        else:
            assert self.h.view.used_flags == 0

    # -- at every step -------------------------------------------------------

    @invariant()
    def the_ring_is_what_the_model_says(self) -> None:
        if not hasattr(self, "h"):
            return
        view, h = self.h.view, self.h
        assert view.avail_idx == self.avail_idx
        assert view.used_idx == self.used_idx
        allowed = {0} if self.event_idx else {0, 1}
        assert view.avail_flags in allowed, "SPLIT-DRV-12, SPLIT-DRV-14"
        assert view.used_flags in allowed, "SPLIT-DEV-20, SPLIT-DEV-22"
        assert lib.vq_driver_free(h.driver) == self.free
        on_the_way = self.staged, self.visible, self.popped, self.pushed, self.used
        assert lib.vq_driver_outstanding(h.driver) == sum(map(len, on_the_way))
        assert lib.vq_device_pending(h.device) == len(self.visible)
        assert lib.vq_driver_broken(h.driver) == lib.vq_device_broken(h.device) == lib.VQ_OK
        assert h.memory.read(h.guard, 64) == b"\x5a" * 64
        for buffer in (*self.visible, *self.popped, *self.pushed):
            # SPLIT-DRV-26, SPLIT-DEV-06: nobody changes a chain that is exposed.
            self.check_chain(buffer)

    @invariant()
    def counters_agree(self) -> None:
        if not hasattr(self, "h"):
            return
        driver = ffi.new("struct vq_driver_counters *")
        lib.vq_driver_counters_get(self.h.driver, driver)
        device = ffi.new("struct vq_device_counters *")
        lib.vq_device_counters_get(self.h.device, device)
        assert (driver.added, driver.used) == (self.counts["added"], self.counts["used"])
        assert (device.popped, device.pushed) == (self.counts["popped"], self.counts["pushed"])

    def teardown(self) -> None:
        if hasattr(self, "h"):
            self.h.close()


RingModel.TestCase.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
TestRingModel = RingModel.TestCase


@pytest.mark.parametrize("event_idx", [False, True])
@pytest.mark.parametrize("size", [1, 4])
def test_split_drv_03_split_dev_07_indices_wrap(size: int, event_idx: bool) -> None:
    # More than 65536 buffers, in batches whose size does not divide the ring's.
    features = int(Feature.VERSION_1) | (int(Feature.EVENT_IDX) if event_idx else 0)
    h = Halves(size, features)
    lengths = ffi.new("uint32_t *")
    segment = ffi.new("struct vq_segment[]", [(BUFFERS, 64)])
    done = sent = kicks = calls = 0
    while done < 66_000:
        batch = min(1 + done % 3, size)
        for _ in range(batch):
            sent += 1
            assert lib.vq_driver_add(h.driver, segment, 1, 0, sent) == 0
        lib.vq_driver_publish(h.driver)
        kicks += lib.vq_driver_kick_needed(h.driver)
        for _ in range(batch):
            assert lib.vq_device_pop(h.device, h.chain) == 1
            lib.vq_device_push(h.device, h.chain.head, 0)
        lib.vq_device_publish(h.device)
        calls += lib.vq_device_call_needed(h.device)
        assert lib.vq_device_enable_kicks(h.device) == 0
        for _ in range(batch):
            assert lib.vq_driver_get_used(h.driver, h.token, lengths) == 1
            done += 1
            assert h.token[0] == done
        assert lib.vq_driver_enable_calls(h.driver) == 0
        if not 10 < done & MASK < 65_500:
            assert h.view.avail_idx == h.view.used_idx == done & MASK
    assert kicks == calls == sum(1 for _ in batches(size))
    h.close()


def batches(size: int):
    done = 0
    while done < 66_000:
        yield done
        done += min(1 + done % 3, size)


@pytest.mark.parametrize("event_idx", [False, True])
def test_set_base_continues_anywhere(event_idx: bool) -> None:
    # A ring whose indices stand just before the wrap, as a front end hands it over.
    features = int(Feature.VERSION_1) | (int(Feature.EVENT_IDX) if event_idx else 0)
    h = Halves(8, features)
    base = 65_530
    view = h.view
    lib.vq_device_set_base(h.device, base, base)
    assert lib.vq_device_avail_base(h.device) == base
    for number in range(20):
        index = (base + number) & MASK
        h.memory.write(
            view.desc + 16 * (number % 8), (BUFFERS).to_bytes(8, "little") + (64).to_bytes(8, "little")
        )
        h.memory.write(view.avail + 4 + 2 * (index % 8), (number % 8).to_bytes(2, "little"))
        h.memory.write(view.avail + 2, ((index + 1) & MASK).to_bytes(2, "little"))
        assert lib.vq_device_pop(h.device, h.chain) == 1
        assert h.chain.head == number % 8
        lib.vq_device_push(h.device, h.chain.head, 5)
        assert lib.vq_device_publish(h.device) == 1
        assert view.used_idx == (index + 1) & MASK
        assert view.used_slot(index) == (number % 8, 5)
    h.close()
