"""A vhost-user front end for tests: a guest of our own memory, its driver half, and any message one likes."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from balloonvq.features import Feature
from balloonvq.memory import PAGE_SIZE, GuestMemory
from balloonvq.queue import DriverQueue, RingAddresses, ring_config, ring_layout
from balloonvq.vhost_user.messages import (
    HEADER_BYTES,
    PROTOCOL_FEATURES_BIT,
    Config,
    MemoryTable,
    Message,
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

#: Where the guest's memory lies in the front end's addresses: nowhere that is real.
USER_BASE = 0x7F00_0000_0000

GUEST_FEATURES = int(
    Feature.MUST_TELL_HOST
    | Feature.STATS_VQ
    | Feature.DEFLATE_ON_OOM
    | Feature.EVENT_IDX
    | Feature.INDIRECT_DESC
    | Feature.VERSION_1
)
PROTOCOL = int(ProtocolFeature.REPLY_ACK | ProtocolFeature.BACKEND_REQ | ProtocolFeature.CONFIG)

RING_BYTES = 0x10000
DATA = 0x40000


class Closed(Exception):
    """The back end closed the connection."""


@dataclass
class FrontEnd:
    """One connection. `guest()` sets everything up; the parts can be had one by one."""

    path: Path | str | None = None
    pages: int = 4096
    timeout: float = 5.0
    connection: socket.socket = field(init=False)

    def __post_init__(self) -> None:
        self.connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.connection.settimeout(self.timeout)
        if self.path is not None:
            self.connection.connect(str(self.path))
        self.file = os.memfd_create("guest", os.MFD_CLOEXEC)
        os.ftruncate(self.file, self.pages * PAGE_SIZE)
        self.memory = GuestMemory.empty()
        self.memory.add_region(0, self.pages * PAGE_SIZE, self.file, 0)
        self.queues: dict[int, DriverQueue] = {}
        self.eventfds: list[int] = []
        self.channel: socket.socket | None = None
        self.sent = 0

    # -- bytes ---------------------------------------------------------------

    def send_raw(self, data: bytes, descriptors: tuple[int, ...] | list[int] = ()) -> None:
        try:
            socket.send_fds(self.connection, [data], list(descriptors))
        except (BrokenPipeError, ConnectionResetError) as error:
            raise Closed from error

    def receive(self) -> tuple[int, bytes]:
        """A reply's request and payload."""
        header = self._exactly(HEADER_BYTES)
        request, flags, size = struct.unpack("=III", header)
        assert flags == 1 | 4, f"flags {flags:#x}"
        return request, self._exactly(size)

    def _exactly(self, size: int) -> bytes:
        data = b""
        while len(data) < size:
            try:
                piece = self.connection.recv(size - len(data))
            except ConnectionResetError as error:
                raise Closed from error
            if not piece:
                raise Closed
            data += piece
        return data

    def closed(self) -> bool:
        """Waits until the back end hangs up; what it still says is thrown away."""
        try:
            while self.connection.recv(4096):
                pass
        except ConnectionResetError:
            return True
        except TimeoutError:
            return False
        return True

    # -- messages ------------------------------------------------------------

    def send(self, message: Message, *descriptors: int) -> None:
        """Sends, and waits for the acknowledgement that it was done."""
        self.send_raw(encode(message, need_reply=True), descriptors)
        _, payload = self.receive()
        value = int.from_bytes(payload, "little")
        if value:
            raise Closed

    def ask(self, message: Message) -> bytes:
        self.send_raw(encode(message))
        return self.receive()[1]

    def number(self, request: Request) -> int:
        return int.from_bytes(self.ask(Plain(request)), "little")

    def base(self, index: int) -> int:
        """Stops a ring; its index."""
        payload = self.ask(VringState(Request.GET_VRING_BASE, index, 0))
        got, base = struct.unpack("=II", payload)
        assert got == index
        return int(base)

    def config(self, offset: int, size: int) -> bytes:
        payload = self.ask(Config(Request.GET_CONFIG, offset, 0, bytes(size)))
        return payload[12:]

    def num_pages(self) -> int:
        return int.from_bytes(self.config(0, 4), "little")

    def write_actual(self, pages: int) -> None:
        self.send(Config(Request.SET_CONFIG, 4, 0, pages.to_bytes(4, "little")))

    # -- a guest, step by step -----------------------------------------------

    def negotiate(self, features: int = GUEST_FEATURES, protocol: int = PROTOCOL) -> None:
        self.send_raw(encode(Plain(Request.SET_OWNER)))
        offered = self.number(Request.GET_FEATURES)
        assert offered & PROTOCOL_FEATURES_BIT
        self.send(Value(Request.SET_PROTOCOL_FEATURES, protocol & self.number(Request.GET_PROTOCOL_FEATURES)))
        if protocol & ProtocolFeature.BACKEND_REQ:
            self.channel, theirs = socket.socketpair()
            self.channel.settimeout(self.timeout)
            self.send(Plain(Request.SET_BACKEND_REQ_FD), theirs.fileno())
            theirs.close()
        self.send(Value(Request.SET_FEATURES, features | PROTOCOL_FEATURES_BIT))

    def regions(self) -> tuple[Region, ...]:
        """All of the guest's memory in one."""
        return (Region(0, self.pages * PAGE_SIZE, USER_BASE, 0),)

    def map(self, regions: tuple[Region, ...] | None = None) -> None:
        regions = self.regions() if regions is None else regions
        self.send(MemoryTable(regions), *[self.file] * len(regions))

    def rings(self, index: int) -> RingAddresses:
        base = index * RING_BYTES
        return RingAddresses(desc=base, driver=base + 0x4000, device=base + 0x8000)

    def vring(self, index: int, size: int = 64, features: int = GUEST_FEATURES) -> DriverQueue:
        """Sets a vring up from scratch, and runs it."""
        kick = os.eventfd(0, os.EFD_CLOEXEC)
        call = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self.eventfds += [kick, call]
        ring_layout(0, size)
        queue = DriverQueue(
            self.memory,
            ("inflate", "deflate", "stats")[index],
            ring_config(features, size, self.rings(index)),
            kick,
            call,
        )
        self.queues[index] = queue
        self.send(VringState(Request.SET_VRING_NUM, index, size))
        self.send(VringState(Request.SET_VRING_BASE, index, 0))
        self.address(index)
        self.send(VringDescriptor(Request.SET_VRING_CALL, index, missing=False), call)
        self.send(VringDescriptor(Request.SET_VRING_KICK, index, missing=False), kick)
        self.send(VringState(Request.SET_VRING_ENABLE, index, 1))
        return queue

    def address(self, index: int) -> None:
        rings = self.rings(index)
        self.send(
            VringAddresses(
                index, 0, USER_BASE + rings.desc, USER_BASE + rings.device, USER_BASE + rings.driver, 0
            )
        )

    def guest(self, *, protocol: int = PROTOCOL) -> FrontEnd:
        """Everything up to a live driver with three queues."""
        self.negotiate(protocol=protocol)
        self.map()
        for index in range(3):
            self.vring(index)
        return self

    def offer(self, index: int, pfns: range | list[int]) -> None:
        """Puts one request on a ring and kicks."""
        address = DATA + index * RING_BYTES + self.sent % 16 * 0x1000
        self.sent += 1
        data = struct.pack(f"<{len(pfns)}I", *pfns)
        self.memory.write(address, data)
        self.queues[index].add(address, len(data))
        os.eventfd_write(self.queues[index].kick_fd, 1)

    def taken(self, index: int, seconds: float = 5.0) -> bool:
        """Waits for one request to come back."""
        from support.waiting import until

        with contextlib.suppress(AssertionError):
            return bool(until(self.queues[index].get_buf, "used", seconds))
        return False

    def request(self, index: int, pfns: range | list[int]) -> None:
        """One request, there and back."""
        self.offer(index, pfns)
        assert self.taken(index)

    def close(self) -> None:
        self.connection.close()
        if self.channel is not None:
            self.channel.close()
        for queue in self.queues.values():
            queue.close()
        for descriptor in self.eventfds:
            os.close(descriptor)
        self.memory.close()
        os.close(self.file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
