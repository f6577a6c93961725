"""The vhost-user back end: a front end of our own sets it up, uses it, leaves it, and attacks it."""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.front_end import GUEST_FEATURES, PROTOCOL, USER_BASE, Closed, FrontEnd
from support.waiting import open_descriptors, until

from balloonvq.device import BalloonDevice
from balloonvq.errors import InvalidArgument, MachineError
from balloonvq.features import Status
from balloonvq.memory import PAGE_SIZE
from balloonvq.vhost_user.backend import Backend
from balloonvq.vhost_user.messages import (
    HEADER_BYTES,
    PROTOCOL_FEATURES_BIT,
    MemoryRegion,
    MemoryTable,
    Plain,
    ProtocolFeature,
    Region,
    Request,
    Value,
    VringAddresses,
    VringDescriptor,
    VringState,
    encode,
)
from balloonvq.vhost_user.session import SharedMemory

INFLATE, DEFLATE, STATS = range(3)


class Rig:
    """A device with its thread, served at a socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.states: list[tuple[str, str]] = []
        self.memory = SharedMemory()
        self.device = BalloonDevice(self.memory.map, features=GUEST_FEATURES)
        self.device.start(None)
        self.backend = Backend(
            self.device,
            self.memory,
            socket_path=path,
            on_state=lambda state, why: self.states.append((state, why)),
        )
        self.backend.start()

    def guest(self, **options) -> FrontEnd:
        return FrontEnd(self.path).guest(**options)

    def gone(self, times: int = 1) -> None:
        """Waits until so many front ends have been cleaned up after."""
        until(lambda: [state for state, _ in self.states].count("gone") >= times, f"gone, {self.states}")

    def close(self) -> None:
        self.backend.close()
        self.device.close()
        self.memory.map.close()


@pytest.fixture
def rig(tmp_path) -> Iterator[Rig]:
    rig = Rig(tmp_path / "s")
    yield rig
    rig.close()


def held(rig) -> int:
    return rig.device.counters().held_pages


def blocks(front: FrontEnd) -> int:
    return os.fstat(front.file).st_blocks * 512 // PAGE_SIZE


# ---- an ordinary guest -----------------------------------------------------


def test_negotiation(rig) -> None:
    with FrontEnd(rig.path) as front:
        assert front.number(Request.GET_FEATURES) == GUEST_FEATURES | PROTOCOL_FEATURES_BIT
        protocol = ProtocolFeature(front.number(Request.GET_PROTOCOL_FEATURES))
        for name in (
            "MQ",
            "REPLY_ACK",
            "BACKEND_REQ",
            "CONFIG",
            "CONFIGURE_MEM_SLOTS",
            "STATUS",
            "RESET_DEVICE",
        ):
            assert ProtocolFeature[name] in protocol
        assert front.number(Request.GET_QUEUE_NUM) == 3
        assert front.number(Request.GET_MAX_MEM_SLOTS) == 64
        front.guest()
        # T-45: bit 30 is the socket's, and no driver's.
        assert rig.device.driver_features == GUEST_FEATURES
        assert rig.device.status == Status.ACKNOWLEDGE | Status.DRIVER | Status.FEATURES_OK | Status.DRIVER_OK
    rig.gone()
    assert [state for state, _ in rig.states] == ["connected", "live", "idle", "gone"]
    assert rig.device.status == 0


def test_pages_leave_the_file_and_come_back(rig) -> None:
    with rig.guest() as front:
        front.memory.populate(0, front.pages * PAGE_SIZE)
        assert blocks(front) == front.pages
        front.request(INFLATE, range(1000, 1256))
        rig.device.flush()
        assert (blocks(front), held(rig)) == (front.pages - 256, 256)
        front.write_actual(256)
        assert rig.device.actual_pages == 256
        front.request(DEFLATE, range(1000, 1100))
        assert held(rig) == 156
        assert front.memory.read(1000 * PAGE_SIZE, 8) == bytes(8)


def test_statistics(rig) -> None:
    with rig.guest() as front:
        front.memory.write(0x50000, struct.pack("<HQHQ", 4, 12345, 77, 1))
        front.queues[STATS].add(0x50000, 20)
        os.eventfd_write(front.queues[STATS].kick_fd, 1)
        until(lambda: rig.device.stats().updates == 1)
        assert rig.device.stats().values == {4: 12345, 77: 1}
        assert rig.device.request_stats()
        assert front.taken(STATS)


def test_configuration_space(rig) -> None:
    with rig.guest() as front:
        rig.device.set_target(77)
        assert front.config(0, 4) == (77).to_bytes(4, "little")
        front.write_actual(5)
        assert front.config(0, 16) == struct.pack("<IIII", 77, 5, 0, 0)
        assert front.config(2, 4) == struct.pack("<IIII", 77, 5, 0, 0)[2:6]
        assert front.config(0, 60) == struct.pack("<IIII", 77, 5, 0, 0).ljust(60, b"\0")  # T-48
        assert front.config(200, 56) == bytes(56)
        from balloonvq.vhost_user.messages import Config

        front.send(Config(Request.SET_CONFIG, 0, 0, struct.pack("<III", 1, 9, 3)))
        assert front.config(0, 16) == struct.pack("<IIII", 77, 9, 0, 0)


def test_config_change_goes_to_the_channel(rig) -> None:
    with rig.guest() as front:
        assert rig.backend.hears_changes
        rig.device.set_target(9)
        assert front.channel is not None
        assert front.channel.recv(64) == struct.pack("=III", 2, 1, 0)
        assert front.num_pages() == 9


def test_config_change_goes_down_a_pipe(rig) -> None:
    """User Mode Linux gives the writing end of a pipe."""
    with FrontEnd(rig.path) as front:
        front.negotiate()
        reader, writer = os.pipe()
        front.send(Plain(Request.SET_BACKEND_REQ_FD), writer)
        os.close(writer)
        rig.device.set_target(0)
        front.map()
        for index in range(3):
            front.vring(index)
        for pages in range(1, 20):
            rig.device.set_target(pages)
            assert os.read(reader, 12) == struct.pack("=III", 2, 1, 0)
        os.close(reader)


def test_without_a_channel_the_target_waits_to_be_read(rig) -> None:
    with rig.guest(protocol=int(ProtocolFeature.REPLY_ACK | ProtocolFeature.CONFIG)) as front:
        assert not rig.backend.hears_changes
        rig.device.set_target(9)
        assert front.num_pages() == 9


# ---- rings come and go -----------------------------------------------------


def test_get_vring_base_stops_exactly(rig) -> None:
    with rig.guest() as front:
        for turn in range(1, 70):
            front.request(INFLATE, [turn + 500])
        assert front.base(INFLATE) == 69
        front.offer(INFLATE, [900])
        assert not front.taken(INFLATE, 0.05)
        assert not rig.device.holds(900)
        # Goes on where it was, once a kick comes again.
        front.send(VringState(Request.SET_VRING_BASE, INFLATE, 69))
        front.send(
            VringDescriptor(Request.SET_VRING_KICK, INFLATE, missing=False), front.queues[INFLATE].kick_fd
        )
        assert front.taken(INFLATE)
        assert rig.device.holds(900)


def test_enable_and_disable(rig) -> None:
    with rig.guest() as front:
        front.send(VringState(Request.SET_VRING_ENABLE, INFLATE, 0))
        front.offer(INFLATE, [600])
        assert not front.taken(INFLATE, 0.05)
        front.send(VringState(Request.SET_VRING_ENABLE, INFLATE, 1))
        assert front.taken(INFLATE)
        front.request(INFLATE, [601])


def test_what_waits_at_the_start_is_called_for(rig) -> None:
    """The call descriptor is there before the queue looks at its ring."""
    with rig.guest() as front:
        call = front.queues[INFLATE].call_fd
        for turn in range(50):
            front.send(VringState(Request.SET_VRING_ENABLE, INFLATE, 0))
            front.offer(INFLATE, [600 + turn])
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(call)
            front.send(VringState(Request.SET_VRING_ENABLE, INFLATE, 1))
            assert select.select([call], [], [], 5)[0]
            assert front.taken(INFLATE)


def test_a_request_of_gigabytes_does_not_hold_up_the_end(rig) -> None:
    """A chain may name 2^30 pages; a reset cuts it short."""
    with rig.guest() as front:
        table = 0x60000
        piece = front.pages * PAGE_SIZE // 2
        segments = 60
        front.memory.write(
            table,
            b"".join(
                struct.pack("<QIHH", 0, piece, 1 if index < segments - 1 else 0, index + 1)
                for index in range(segments)
            ),
        )
        ring = front.rings(DEFLATE)
        front.memory.write(ring.desc, struct.pack("<QIHH", table, 16 * segments, 4, 0))
        front.memory.write(ring.driver, struct.pack("<HHH", 0, 1, 0))
        os.eventfd_write(front.queues[DEFLATE].kick_fd, 1)
        until(lambda: rig.device.counters().pfns_never_inflated > 0)
        begun = time.monotonic()
    rig.gone()
    assert time.monotonic() - begun < 2
    assert rig.device.counters().requests == 0


def test_a_ring_without_a_kick_is_polled(rig) -> None:
    with rig.guest() as front:
        front.base(DEFLATE)
        front.send(VringDescriptor(Request.SET_VRING_KICK, DEFLATE, missing=True))
        front.offer(DEFLATE, [1])  # kicks an eventfd that nobody has any more
        assert front.taken(DEFLATE)


def test_a_front_end_without_protocol_features_needs_no_enable(rig) -> None:
    with FrontEnd(rig.path) as front:
        front.send_raw(encode(Value(Request.SET_FEATURES, GUEST_FEATURES)))
        front.send_raw(encode(MemoryTable(front.regions())), [front.file])
        kick = os.eventfd(0)
        from balloonvq.queue import DriverQueue, ring_config

        front.queues[0] = DriverQueue(
            front.memory, "inflate", ring_config(GUEST_FEATURES, 64, front.rings(0)), kick, kick
        )
        front.eventfds.append(kick)
        rings = front.rings(0)
        for message in (
            VringState(Request.SET_VRING_NUM, 0, 64),
            VringAddresses(
                0, 0, USER_BASE + rings.desc, USER_BASE + rings.device, USER_BASE + rings.driver, 0
            ),
        ):
            front.send_raw(encode(message))
        front.send_raw(encode(VringDescriptor(Request.SET_VRING_KICK, 0, missing=False)), [kick])
        front.request(INFLATE, [5])
        assert held(rig) == 1


def test_call_comes_before_the_features_are_known(rig) -> None:
    """QEMU hands out call descriptors when it makes the device, long before the driver runs."""
    with FrontEnd(rig.path) as front:
        front.send(Value(Request.SET_PROTOCOL_FEATURES, PROTOCOL))
        call = os.eventfd(0)
        front.eventfds.append(call)
        front.send(VringDescriptor(Request.SET_VRING_CALL, STATS, missing=False), call)
        front.guest()
        front.send(VringState(Request.SET_VRING_ENABLE, STATS, 0))
        front.send(VringDescriptor(Request.SET_VRING_CALL, STATS, missing=False), call)
        front.send(VringState(Request.SET_VRING_ENABLE, STATS, 1))
        front.memory.write(0x50000, struct.pack("<HQ", 4, 1))
        front.queues[STATS].add(0x50000, 10)
        os.eventfd_write(front.queues[STATS].kick_fd, 1)
        until(rig.device.request_stats)
        assert os.eventfd_read(call) >= 1


def test_status_protocol_as_qemu_speaks_it(rig) -> None:
    """vhost_user_set_features and vhost_user_dev_start of QEMU's hw/virtio/vhost-user.c."""
    with FrontEnd(rig.path) as front:
        front.send(Value(Request.SET_PROTOCOL_FEATURES, PROTOCOL | ProtocolFeature.STATUS))
        for _ in range(2):
            front.send(Value(Request.SET_FEATURES, GUEST_FEATURES | PROTOCOL_FEATURES_BIT))
            assert front.number(Request.GET_STATUS) == 0
            front.send(Value(Request.SET_STATUS, Status.FEATURES_OK))
            front.map()
            for index in range(3):
                front.vring(index)
            front.offer(INFLATE, [5])
            assert not front.taken(INFLATE, 0.05)  # CORE-DEV-02
            front.send(
                Value(
                    Request.SET_STATUS,
                    Status.FEATURES_OK | Status.ACKNOWLEDGE | Status.DRIVER | Status.DRIVER_OK,
                )
            )
            assert front.taken(INFLATE)
            assert front.base(INFLATE) == 1
            front.send(Value(Request.SET_STATUS, 0))
            assert held(rig) == 0


def test_reset_device(rig) -> None:
    with rig.guest() as front:
        front.request(INFLATE, [5])
        front.write_actual(1)
        front.send(Plain(Request.RESET_DEVICE))
        assert (rig.device.status, rig.device.actual_pages, held(rig)) == (0, 0, 0)
        front.offer(INFLATE, [6])
        assert not front.taken(INFLATE, 0.05)
        front.send(Value(Request.SET_FEATURES, GUEST_FEATURES | PROTOCOL_FEATURES_BIT))
        for index in range(3):
            front.vring(index)
        front.request(INFLATE, [7])


def test_a_driver_that_is_loaded_again_may_want_other_features(rig) -> None:
    with rig.guest() as front:
        for index in range(3):
            front.send(VringState(Request.SET_VRING_ENABLE, index, 0))
        fewer = GUEST_FEATURES & ~0b10
        front.send(Value(Request.SET_FEATURES, fewer | PROTOCOL_FEATURES_BIT))
        assert rig.device.driver_features == fewer
        front.vring(INFLATE, features=fewer)
        front.request(INFLATE, [7])


# ---- memory ----------------------------------------------------------------


def test_memory_is_replaced_while_the_guest_runs(rig) -> None:
    with rig.guest() as front:
        front.request(INFLATE, range(1000, 1010))
        half = front.pages // 2 * PAGE_SIZE
        front.map((Region(0, half, USER_BASE, 0), Region(half, half, USER_BASE + (1 << 40), half)))
        assert held(rig) == 10
        front.request(INFLATE, [1009, 1010, front.pages - 1])
        assert held(rig) == 12
        front.map((Region(0, half, USER_BASE, 0),))
        assert held(rig) == 11
        front.request(INFLATE, [front.pages - 2])
        assert rig.device.counters().pfns_out_of_range == 1


def test_memory_is_replaced_under_load(rig) -> None:
    with rig.guest() as front:
        end = threading.Event()
        done = []

        def drive() -> None:
            while not end.is_set():
                front.request(INFLATE, range(1000, 1064))
                front.request(DEFLATE, range(1000, 1064))
                done.append(1)

        thread = threading.Thread(target=drive)
        thread.start()
        try:
            for _ in range(100):
                front.map()
        finally:
            end.set()
            thread.join()
        assert done
        assert held(rig) == 0
        counters = rig.device.counters()
        assert counters.pfns_duplicate == counters.pfns_never_inflated == counters.pfns_out_of_range == 0


def test_regions_need_not_be_aligned(rig) -> None:
    """A file offset in the middle of a page, as behind a firmware image."""
    with FrontEnd(rig.path) as front:
        front.negotiate()
        size = front.pages * PAGE_SIZE
        file = os.memfd_create("odd", os.MFD_CLOEXEC)
        os.ftruncate(file, size + PAGE_SIZE)
        front.eventfds.append(file)
        front.memory.close()
        os.close(front.file)
        front.file = os.dup(file)
        from balloonvq.memory import GuestMemory

        front.memory = GuestMemory.empty()
        front.memory.add_region(0, size, file, 256)
        front.send(MemoryTable((Region(0, size, USER_BASE, 256),)), file)
        for index in range(3):
            front.vring(index)
        front.memory.populate(0, size)
        whole = blocks(front)
        front.request(INFLATE, range(1000, 1010))
        rig.device.flush()
        # A guest page lies in two of the host's; only those wholly inside may go (T-49).
        assert blocks(front) == whole - 9
        assert held(rig) == 10


def test_regions_added_and_removed(rig) -> None:
    with FrontEnd(rig.path) as front:
        front.negotiate(protocol=PROTOCOL | ProtocolFeature.CONFIGURE_MEM_SLOTS)
        half = front.pages // 2 * PAGE_SIZE
        low, high = Region(0, half, USER_BASE, 0), Region(half, half, USER_BASE + half, half)
        front.send(MemoryRegion(Request.ADD_MEM_REG, low), front.file)
        front.send(MemoryRegion(Request.ADD_MEM_REG, high), front.file)
        for index in range(3):
            front.vring(index)
        front.request(INFLATE, [front.pages - 1])
        front.send(MemoryRegion(Request.REM_MEM_REG, high))
        assert held(rig) == 0
        front.send(MemoryRegion(Request.ADD_MEM_REG, high), front.file)
        front.send(MemoryRegion(Request.REM_MEM_REG, high), front.file)  # with a descriptor that nobody needs
        front.request(INFLATE, [1000])
        assert held(rig) == 1
        with pytest.raises(Closed):
            front.send(MemoryRegion(Request.REM_MEM_REG, high))


# ---- front ends that leave -------------------------------------------------


def test_the_next_front_end_finds_a_clean_device(rig) -> None:
    before = open_descriptors()
    for turn in range(1, 6):
        with rig.guest() as front:
            front.memory.populate(0, front.pages * PAGE_SIZE)
            front.request(INFLATE, range(500, 756))
            front.write_actual(256)
        rig.gone(turn)
        assert (rig.device.status, rig.device.actual_pages, held(rig)) == (0, 0, 0)
        assert open_descriptors() == before
    assert rig.memory.map.size_bytes == 0


def test_a_front_end_that_dies_at_any_message(rig) -> None:
    """Cut at sixty places of a whole set-up, most of them within a message."""
    before = open_descriptors()
    script: list[tuple[bytes, list[bool]]] = []

    class Recorder(FrontEnd):
        def send_raw(self, data, descriptors=()) -> None:
            script.append((data, [descriptor == self.file for descriptor in descriptors]))
            super().send_raw(data, descriptors)

    with Recorder(rig.path) as front:
        front.guest()
    whole = b"".join(data for data, _ in script)
    rng = random.Random(4)
    cuts = sorted(rng.sample(range(len(whole)), 60))
    for turn, cut in enumerate(cuts, 2):
        with FrontEnd(rig.path) as front:
            event = os.eventfd(0, os.EFD_CLOEXEC)
            front.eventfds.append(event)
            left = cut
            for data, are_memory in script:
                piece = data[:left]
                if not piece:
                    break
                front.send_raw(piece, [front.file if memory else event for memory in are_memory])
                left -= len(piece)
        rig.gone(turn)
    until(lambda: open_descriptors() == before)
    with rig.guest() as front:
        front.request(INFLATE, [7])


def test_one_at_a_time(rig) -> None:
    with rig.guest() as first, FrontEnd(rig.path, timeout=0.1) as second:
        second.send_raw(encode(Plain(Request.GET_FEATURES)))
        with pytest.raises(TimeoutError):
            second.receive()
        first.request(INFLATE, [7])
        first.connection.close()
        second.connection.settimeout(5)
        assert second.receive()[0] == Request.GET_FEATURES


def test_our_own_end_with_a_guest_attached(tmp_path) -> None:
    before = open_descriptors()
    rig = Rig(tmp_path / "s")
    front = rig.guest()
    rig.close()
    assert front.closed()
    front.close()
    assert open_descriptors() == before
    assert not (tmp_path / "s").exists()


# ---- sockets ---------------------------------------------------------------


def test_a_dead_socket_is_replaced_and_a_live_one_is_not(tmp_path) -> None:
    path = tmp_path / "s"
    dead = socket.socket(socket.AF_UNIX)
    dead.bind(str(path))
    dead.close()
    rig = Rig(path)
    with pytest.raises(MachineError):
        Rig(path)
    rig.close()
    path.write_text("a file")
    with pytest.raises(InvalidArgument):
        Rig(path)
    with pytest.raises(InvalidArgument):
        Rig(tmp_path / ("x" * 200))


@pytest.mark.parametrize("listening", [True, False])
def test_a_socket_that_we_are_given(tmp_path, listening) -> None:
    memory = SharedMemory()
    device = BalloonDevice(memory.map, features=GUEST_FEATURES)
    front = FrontEnd()
    if listening:
        given = socket.socket(socket.AF_UNIX)
        given.bind(str(tmp_path / "s"))
        given.listen()
    else:
        front.connection.close()
        given, front.connection = socket.socketpair()
        front.connection.settimeout(5)
    backend = Backend(device, memory, descriptor=given.detach())
    backend.start()
    if listening:
        front.connection.connect(str(tmp_path / "s"))
    assert front.number(Request.GET_QUEUE_NUM) == 3
    backend.close()
    device.close()
    front.close()


def test_a_descriptor_that_is_no_socket() -> None:
    memory = SharedMemory()
    device = BalloonDevice(memory.map, features=GUEST_FEATURES)
    reader, writer = os.pipe()
    with pytest.raises(InvalidArgument):
        Backend(device, memory, descriptor=reader)
    os.close(reader)
    os.close(writer)
    device.close()


# ---- hostile front ends ----------------------------------------------------

PAGE = PAGE_SIZE
BAD = {
    "vring above the number": [VringState(Request.SET_VRING_NUM, 3, 64)],
    "vring far above": [VringState(Request.GET_VRING_BASE, 2**32 - 1, 0)],
    "size no power of 2": [VringState(Request.SET_VRING_NUM, 0, 63)],
    "size zero": [VringState(Request.SET_VRING_NUM, 0, 0)],
    "size huge": [VringState(Request.SET_VRING_NUM, 0, 65536)],
    "base of 17 bits": [VringState(Request.SET_VRING_BASE, 0, 65536)],
    "enable 2": [VringState(Request.SET_VRING_ENABLE, 0, 2)],
    "features not offered": [Value(Request.SET_FEATURES, GUEST_FEATURES | 1 << 40)],
    "no VERSION_1": [Value(Request.SET_FEATURES, 0b10)],
    "protocol features not offered": [Value(Request.SET_PROTOCOL_FEATURES, 1 << 12)],
    "status of nine bits": [Value(Request.SET_STATUS, 0x100)],
    "status bits taken away": [Value(Request.SET_STATUS, 3), Value(Request.SET_STATUS, 1)],
    "logging": [VringAddresses(0, 1, 0, 0, 0, 0)],
    "a region that is not there": [MemoryRegion(Request.REM_MEM_REG, Region(0, PAGE, 0, 0))],
}


@pytest.mark.parametrize("name", BAD)
def test_a_wrong_message_ends_the_connection(rig, name) -> None:
    before = open_descriptors()
    with FrontEnd(rig.path) as front:
        front.send(Value(Request.SET_PROTOCOL_FEATURES, PROTOCOL))
        *before_it, wrong = BAD[name]
        for message in before_it:
            front.send(message)
        with pytest.raises(Closed):
            front.send(wrong)
        assert front.closed()
    rig.gone()
    assert rig.states[-1][1], "no reason was given"
    assert open_descriptors() == before


@pytest.mark.parametrize(
    "regions",
    [
        (Region(0, 2 * PAGE, USER_BASE, 0), Region(PAGE, PAGE, USER_BASE + (1 << 30), 0)),
        (Region(0, 2 * PAGE, USER_BASE, 0), Region(1 << 30, PAGE, USER_BASE + PAGE, 0)),
        (Region(0, 1 << 40, USER_BASE, 0),),
        (Region(0, PAGE, USER_BASE, 1 << 40),),
        (Region(1 << 63, PAGE, USER_BASE, 0), Region(1 << 63, PAGE, USER_BASE + PAGE, 0)),
    ],
    ids=["overlap", "overlap in user addresses", "file too short", "offset past the end", "same place"],
)
def test_memory_that_cannot_be(rig, regions) -> None:
    before = open_descriptors()
    with FrontEnd(rig.path) as front:
        front.negotiate()
        with pytest.raises(Closed):
            front.map(regions)
        assert front.closed()
    rig.gone()
    assert open_descriptors() == before


def test_memory_that_is_no_file(rig) -> None:
    reader, writer = os.pipe()
    zero = os.open("/dev/zero", os.O_RDWR)
    readonly = os.open(__file__, os.O_RDONLY)
    before = open_descriptors()
    for turn, descriptor in enumerate((reader, zero, readonly), 1):
        with FrontEnd(rig.path) as front:
            front.negotiate()
            with pytest.raises(Closed):
                front.send(MemoryTable((Region(0, PAGE, USER_BASE, 0),)), descriptor)
        rig.gone(turn)
    assert open_descriptors() == before
    for descriptor in (reader, writer, zero, readonly):
        os.close(descriptor)


def test_guest_memory_far_up_costs_nothing(rig) -> None:
    """The page record covers 2^32 pages at most, and only what is used of it is real."""
    with FrontEnd(rig.path) as front:
        front.negotiate()
        front.map((*front.regions(), Region(1 << 63, PAGE, USER_BASE + (1 << 41), 0)))
        for index in range(3):
            front.vring(index)
        front.request(INFLATE, [1000, 2**32 - 1])
        assert held(rig) == 1


@pytest.mark.parametrize("address", [0, USER_BASE - 1, USER_BASE + 4096 * PAGE, 2**64 - 16])
def test_a_ring_outside_memory(rig, address) -> None:
    with FrontEnd(rig.path) as front:
        front.guest()
        front.base(INFLATE)
        good = USER_BASE + 0x20000
        for places in ((address, good, good), (good, address, good), (good, good, address)):
            with FrontEnd(rig.path) as _waiting:
                pass
            try:
                front.send(VringAddresses(INFLATE, 0, *places, 0))
                front.send(
                    VringDescriptor(Request.SET_VRING_KICK, INFLATE, missing=False), front.queues[0].kick_fd
                )
            except Closed:
                return
        pytest.fail("a ring outside memory was taken")


def test_a_ring_across_the_end_of_memory(rig) -> None:
    with FrontEnd(rig.path) as front:
        front.guest()
        front.base(INFLATE)
        end = USER_BASE + front.pages * PAGE
        front.send(VringAddresses(INFLATE, 0, end - 16, USER_BASE, USER_BASE, 0))
        with pytest.raises(Closed):
            front.send(
                VringDescriptor(Request.SET_VRING_KICK, INFLATE, missing=False), front.queues[0].kick_fd
            )


@pytest.mark.parametrize("count", [0, 2, 8, 15, 17, 40])
def test_a_wrong_number_of_descriptors(rig, count) -> None:
    before = open_descriptors()
    with FrontEnd(rig.path) as front:
        front.negotiate()
        front.send_raw(encode(MemoryTable(front.regions())), [front.file] * count)
        assert front.closed()
    rig.gone()
    assert open_descriptors() == before


def test_descriptors_with_messages_that_have_none(rig) -> None:
    before = open_descriptors()
    with FrontEnd(rig.path) as front:
        front.send_raw(encode(Plain(Request.GET_FEATURES)), [front.file] * 3)
        assert front.closed()
    rig.gone()
    assert open_descriptors() == before


def test_a_kick_that_nobody_can_wait_for(rig) -> None:
    with rig.guest() as front:
        front.base(INFLATE)
        with pytest.raises(Closed):
            front.send(VringDescriptor(Request.SET_VRING_KICK, INFLATE, missing=False), front.file)
    rig.gone()


def test_a_broken_ring_is_told_of(rig) -> None:
    with rig.guest() as front:
        error = os.eventfd(0)
        front.eventfds.append(error)
        front.send(VringDescriptor(Request.SET_VRING_ERR, INFLATE, missing=False), error)
        front.memory.write(front.rings(INFLATE).driver + 2, struct.pack("<H", 1000))
        os.eventfd_write(front.queues[INFLATE].kick_fd, 1)
        assert os.eventfd_read(error) == 1
        assert rig.device.broken() == ("inflate", "available index ran ahead by more than the queue size")
        assert front.config(0, 16)
    rig.gone()
    with rig.guest() as front:
        front.request(INFLATE, [3])


def test_memory_that_is_taken_away(rig) -> None:
    """A front end shrinks the file behind our mapping: the next access would be a SIGBUS."""
    for turn, left in enumerate((0, 0x1000, 0x4000), 1):
        with rig.guest() as front:
            front.request(INFLATE, [7])
            os.ftruncate(front.file, left)
            os.eventfd_write(front.queues[INFLATE].kick_fd, 1)
            os.eventfd_write(front.queues[DEFLATE].kick_fd, 1)
            until(rig.device.broken)
            assert rig.device.queue_depth(DEFLATE) == 0
            assert front.config(0, 16)
            front.queues.clear()  # their memory is gone for us too
        rig.gone(turn)
    with rig.guest() as front:
        front.request(INFLATE, [3])


def test_random_bytes(rig) -> None:
    """Whatever comes: an end of the connection, and a back end that serves the next one."""
    before = open_descriptors()
    rng = random.Random(1)
    for turn in range(1, 301):
        with FrontEnd(rig.path) as front:
            try:
                if turn % 2:
                    front.negotiate()
                    front.map()
                for _ in range(rng.randrange(1, 8)):
                    request = rng.choice([*Request, rng.randrange(60)])
                    size = rng.choice([0, 8, 8, 8, 40, 40, 72, 12, 28, rng.randrange(300)])
                    payload = rng.choice(
                        [
                            rng.randbytes(size),
                            struct.pack("=II", rng.randrange(4), rng.randrange(300)).ljust(size, b"\0")[
                                :size
                            ],
                        ]
                    )
                    flags = rng.choice([1, 1, 1, 9, rng.randrange(16)])
                    front.send_raw(
                        struct.pack("=III", request, flags, size) + payload,
                        [front.file] * rng.choice([0, 0, 0, 1, 2, 9]),
                    )
            except Closed:
                pass
        rig.gone(turn)
    until(lambda: open_descriptors() == before)
    with rig.guest() as front:
        front.request(INFLATE, [3])
    assert not any("balloonctl" in why for _, why in rig.states)


def test_random_messages_in_any_order(rig) -> None:
    """Right messages at the wrong time."""
    before = open_descriptors()
    rng = random.Random(2)
    for turn in range(1, 151):
        with FrontEnd(rig.path, pages=512) as front:
            events = [os.eventfd(0) for _ in range(3)]
            front.eventfds += events
            rings = [front.rings(index) for index in range(3)]
            try:
                front.send_raw(encode(Value(Request.SET_PROTOCOL_FEATURES, PROTOCOL)))
                for _ in range(40):
                    index = rng.randrange(3)
                    ring = rings[index]
                    message, descriptors = rng.choice(
                        [
                            (Value(Request.SET_FEATURES, GUEST_FEATURES | PROTOCOL_FEATURES_BIT), []),
                            (Value(Request.SET_FEATURES, GUEST_FEATURES & ~2), []),
                            (MemoryTable(front.regions()), [front.file]),
                            (VringState(Request.SET_VRING_NUM, index, 64), []),
                            (VringState(Request.SET_VRING_BASE, index, rng.randrange(65536)), []),
                            (VringState(Request.GET_VRING_BASE, index, 0), []),
                            (VringState(Request.SET_VRING_ENABLE, index, rng.randrange(2)), []),
                            (VringState(Request.SET_VRING_ENABLE, index, 1), []),
                            (
                                VringAddresses(
                                    index,
                                    0,
                                    USER_BASE + ring.desc,
                                    USER_BASE + ring.device,
                                    USER_BASE + ring.driver,
                                    0,
                                ),
                                [],
                            ),
                            (VringDescriptor(Request.SET_VRING_KICK, index, missing=False), [events[index]]),
                            (VringDescriptor(Request.SET_VRING_KICK, index, missing=True), []),
                            (VringDescriptor(Request.SET_VRING_CALL, index, missing=False), [events[index]]),
                            (VringDescriptor(Request.SET_VRING_ERR, index, missing=False), [events[index]]),
                            (Plain(Request.SET_BACKEND_REQ_FD), [events[index]]),
                            (Plain(Request.RESET_DEVICE), []),
                            (Plain(Request.RESET_OWNER), []),
                            (Value(Request.SET_STATUS, rng.choice([0, 1, 3, 11, 15])), []),
                        ]
                    )
                    front.send_raw(encode(message), descriptors)
                    if rng.random() < 0.3:
                        front.memory.write(ring.driver + 2, struct.pack("<H", rng.randrange(65536)))
                        os.eventfd_write(events[index], 1)
            except Closed:
                pass
        rig.gone(turn)
    until(lambda: open_descriptors() == before)
    with rig.guest() as front:
        front.request(INFLATE, [3])
    assert not any("balloonctl" in why for _, why in rig.states)


def test_a_header_that_is_never_completed(rig, monkeypatch) -> None:
    monkeypatch.setattr("balloonvq.vhost_user.backend._PATIENCE", 0.05)
    with FrontEnd(rig.path) as front:
        front.send_raw(b"\1" * (HEADER_BYTES - 1))
        assert front.closed()
