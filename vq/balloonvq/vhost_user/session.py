"""What the messages of one front end do to the device.

A session belongs to one connection. It keeps for each vring what the front end has said about
it, and starts its queue once everything is there::

    runs = size and addresses known, kick came, enabled, features agreed on

Whatever takes one of these away stops the queue exactly, at an index that is remembered; whatever
gives it back starts it there. That one mechanism serves GET_VRING_BASE, SET_VRING_ENABLE, memory
tables that are replaced while the guest runs, and the end of the connection.

Ring addresses come in the front end's own address space and are translated with the memory table;
the core then checks that each area lies inside one region. Nothing else of the front end's numbers
becomes a pointer.

A front end that does not speak STATUS gets a device status all the same: DRIVER and FEATURES_OK at
SET_FEATURES, DRIVER_OK with its first ring.
"""

from __future__ import annotations

import itertools
import os
import stat
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from balloonvq.closing import Closing
from balloonvq.device import QUEUE_FDS, BalloonDevice, QueueFd
from balloonvq.errors import CoreError
from balloonvq.features import BALLOON_QUEUES, Status
from balloonvq.memory import GuestMemory
from balloonvq.queue import RingAddresses
from balloonvq.vhost_user.layout import QueueLayout, queue_of
from balloonvq.vhost_user.messages import (
    PROTOCOL_FEATURES_BIT,
    Config,
    MemoryRegion,
    MemoryTable,
    Message,
    Plain,
    ProtocolError,
    ProtocolFeature,
    Region,
    Request,
    Value,
    VringAddresses,
    VringDescriptor,
    VringState,
)

__all__ = ["Descriptors", "Session", "SharedMemory"]

#: Regions in all; the core's own limit (GM_REGIONS_MAX).
SLOTS = 64

_QUEUE_SIZE_MAX = 32768
_SETUP = Status.ACKNOWLEDGE | Status.DRIVER

_OFFERED = (
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIG
    | ProtocolFeature.RESET_DEVICE
    | ProtocolFeature.CONFIGURE_MEM_SLOTS
    | ProtocolFeature.STATUS
)


_WHICH: dict[Request, QueueFd] = {
    Request.SET_VRING_KICK: "kick",
    Request.SET_VRING_CALL: "call",
    Request.SET_VRING_ERR: "err",
}


class Descriptors(Closing):
    """Received descriptors: each is taken by somebody, or closed at the end of the message."""

    def __init__(self, descriptors: Sequence[int] = ()) -> None:
        self._open = list(descriptors)

    def __len__(self) -> int:
        return len(self._open)

    def extend(self, descriptors: Sequence[int]) -> None:
        """Adds more of the same message."""
        self._open.extend(descriptors)

    def take(self) -> int:
        """The next descriptor, now the caller's."""
        return self._open.pop(0)

    def close(self) -> None:
        """Closes those that nobody has taken."""
        while self._open:
            os.close(self._open.pop())


class SharedMemory:
    """The memory of whatever guest is attached; empty while none is.

    `lock` is held while it is exchanged, and by whoever measures it.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.map = GuestMemory.empty()

    def exchange(self, device: BalloonDevice, fresh: GuestMemory) -> None:
        """Gives the device another map, and unmaps the old one.

        Raises:
            CoreError: if a queue is running, or memory is short; `fresh` is closed then.
        """
        with self.lock:
            try:
                device.set_memory(fresh)
            except BaseException:
                fresh.close()
                raise
            old, self.map = self.map, fresh
            old.close()

    def close(self) -> None:
        """Unmaps it; the device must be gone."""
        with self.lock:
            self.map.close()


@dataclass(slots=True)
class _Vring:
    """What was said about a vring."""

    size: int = 0
    addresses: VringAddresses | None = None
    base: int = 0
    """Available index at which it goes on."""
    started: bool = False
    """Its kick came."""
    polled: bool = False
    """There is no kick descriptor: look again and again."""
    enabled: bool = False
    queue: int | None = None
    """The device's queue that runs on it."""
    descriptors: dict[QueueFd, int] = field(default_factory=dict)
    """The front end's; the device gets copies while the queue runs."""

    @property
    def configured(self) -> bool:
        """Whether it is known where the ring lies."""
        return self.size > 0 and self.addresses is not None


class Session:
    """One front end's view of the device.

    Args:
        device: nobody else uses its transport half meanwhile.
        memory: where the guest's memory goes.
        layout: how vrings are numbered.
        on_change: called when the guest goes live or stops being so.
    """

    def __init__(
        self,
        device: BalloonDevice,
        memory: SharedMemory,
        layout: QueueLayout = "auto",
        on_change: Callable[[], None] | None = None,
    ) -> None:
        self.device = device
        self.protocol_features = ProtocolFeature(0)
        self.channel: int | None = None
        """Where our own requests go: a socket or a pipe."""
        self._memory = memory
        self._layout = layout
        self._on_change = on_change or (lambda: None)
        self._features: int | None = None
        self._regions: list[tuple[Region, int]] = []
        # As many as the specification's numbering needs for what is offered.
        queues = [queue for queue in range(len(BALLOON_QUEUES)) if device.queue_size_max(queue)]
        self._vrings = [_Vring() for _ in range(queues[-1] + 1)]

    # -- what others ask -----------------------------------------------------

    @property
    def live(self) -> bool:
        """Whether a driver runs."""
        return any(vring.queue is not None for vring in self._vrings)

    @property
    def queues(self) -> list[tuple[int, int]]:
        """Running queues and their sizes, in the specification's order."""
        return sorted((vring.queue, vring.size) for vring in self._vrings if vring.queue is not None)

    @property
    def polled_queues(self) -> list[int]:
        """Running queues that nobody kicks."""
        return [vring.queue for vring in self._vrings if vring.polled and vring.queue is not None]

    @property
    def hears_changes(self) -> bool:
        """Whether the front end can be told that the configuration changed."""
        return self.channel is not None and ProtocolFeature.CONFIG in self.protocol_features

    # -- messages ------------------------------------------------------------

    def handle(self, message: Message, descriptors: Descriptors) -> Message | int | None:
        """Does what a message says.

        Returns:
            The reply that its kind of message always has, None for those that have none.

        Raises:
            ProtocolError: if it cannot be done; the connection is to be closed.
        """
        try:
            return self._handle(message, descriptors)
        except CoreError as error:
            raise ProtocolError(error.what, why=error.why) from error

    def _handle(self, message: Message, descriptors: Descriptors) -> Message | int | None:
        match message:
            case Plain(request):
                return self._plain(request, descriptors)
            case Value(request, value):
                self._value(request, value)
            case VringState(request, index, number):
                return self._vring_state(request, self._vring(index), index, number)
            case VringAddresses():
                vring = self._vring(message.index)
                self._pause(vring)
                vring.addresses = message
                self._run(message.index)
            case VringDescriptor():
                self._vring_descriptor(message, descriptors)
            case MemoryTable(regions):
                self._set_regions([(region, descriptors.take()) for region in regions])
            case MemoryRegion(Request.ADD_MEM_REG, region):
                self._add_region(region, descriptors)
            case MemoryRegion(_, region):
                self._remove_region(region)
            case Config():
                return self._config(message)
        return None

    def _plain(self, request: Request, descriptors: Descriptors) -> int | None:
        match request:
            case Request.GET_FEATURES:
                return self.device.features | PROTOCOL_FEATURES_BIT
            case Request.GET_PROTOCOL_FEATURES:
                return int(_OFFERED)
            case Request.GET_QUEUE_NUM:
                return len(self._vrings)
            case Request.GET_MAX_MEM_SLOTS:
                return SLOTS
            case Request.GET_STATUS:
                return self.device.status
            case Request.SET_BACKEND_REQ_FD:
                self._drop_channel()
                self.channel = descriptors.take()
            case Request.RESET_DEVICE:
                self._reset()
            case Request.RESET_OWNER:  # deprecated: disables all rings
                for vring in self._vrings:
                    self._pause(vring)
                    vring.enabled = False
            case _:  # SET_OWNER
                pass
        return None

    def _value(self, request: Request, value: int) -> None:
        if request is Request.SET_PROTOCOL_FEATURES:
            if value & ~int(_OFFERED):
                raise ProtocolError(f"protocol features {value:#x}", why=f"{int(_OFFERED):#x} are offered")
            self.protocol_features = ProtocolFeature(value)
        elif request is Request.SET_FEATURES:
            self._set_features(value)
        else:
            self._set_status(value)

    # -- features and status -------------------------------------------------

    def _set_features(self, features: int) -> None:
        """Takes the driver's features: anew, unless they are the ones that hold already."""
        accepted = features & ~PROTOCOL_FEATURES_BIT
        if accepted & ~self.device.features:
            raise ProtocolError(
                f"features {accepted:#x}", why=f"{self.device.features:#x} are offered (CORE-DEV-07)"
            )
        protocol = bool(features & PROTOCOL_FEATURES_BIT)
        if self.device.status & Status.FEATURES_OK:
            if accepted == self.device.driver_features:
                self._features = features
                return
            if self.live:
                raise ProtocolError("other features while queues run", why="CORE-DRV-22")
            self._reset()
        self._features = features
        self.device.set_driver_features(accepted)
        if not protocol:
            for vring in self._vrings:
                vring.enabled = True
        if ProtocolFeature.STATUS not in self.protocol_features:
            self._agree()

    def _agree(self) -> None:
        """FEATURES_OK in the name of a front end that does not say it.

        Raises:
            ProtocolError: if the device refuses the features (T-46).
        """
        status = self.device.status | _SETUP | Status.FEATURES_OK
        self.device.set_status(status)
        if not self.device.status & Status.FEATURES_OK:
            raise ProtocolError(
                f"features {self.device.driver_features:#x}", why="the device cannot work with these"
            )

    def _set_status(self, value: int) -> None:
        if value > 0xFF:
            raise ProtocolError(f"device status {value:#x}", why="it has 8 bits")
        if value == 0:
            self._reset()
            return
        self.device.set_status(value)
        self._on_change()

    def _reset(self) -> None:
        """To the initial state of the device; the front end keeps its connection and memory.

        The device's own reset stops the queues, wherever they are: even a request of gigabytes is cut short.
        """
        self.device.set_status(0)
        for vring in self._vrings:
            if vring.queue is not None:
                self._let_go(vring)
            vring.enabled = False
            vring.started = False
            vring.base = 0
        self._features = None
        self._on_change()

    # -- vrings --------------------------------------------------------------

    def _vring(self, index: int) -> _Vring:
        if index >= len(self._vrings):
            raise ProtocolError(f"vring {index}", why=f"this balloon has {len(self._vrings)}")
        return self._vrings[index]

    def _vring_state(self, request: Request, vring: _Vring, index: int, number: int) -> VringState | None:
        match request:
            case Request.SET_VRING_NUM:
                if not 0 < number <= _QUEUE_SIZE_MAX or number & (number - 1):
                    raise ProtocolError(f"vring {index} of {number}", why="a power of 2 up to 32768")
                self._idle(vring, index)
                vring.size = number
            case Request.SET_VRING_BASE:
                if number > 0xFFFF:
                    raise ProtocolError(f"vring {index} at {number}", why="an index has 16 bits")
                self._idle(vring, index)
                vring.base = number
            case Request.SET_VRING_ENABLE:
                if number > 1:
                    raise ProtocolError(f"vring {index} enabled {number}", why="0 or 1")
                vring.enabled = number == 1
                if vring.enabled:
                    self._run(index)
                else:
                    self._pause(vring)
            case _:
                self._pause(vring)
                vring.started = False
                vring.polled = False
                self._forget(vring, "kick")
                return VringState(request, index, vring.base)
        return None

    @staticmethod
    def _idle(vring: _Vring, index: int) -> None:
        if vring.queue is not None:
            raise ProtocolError(f"vring {index} is changed while it runs")

    def _vring_descriptor(self, message: VringDescriptor, descriptors: Descriptors) -> None:
        vring = self._vring(message.index)
        which = _WHICH[message.request]
        self._forget(vring, which)
        if not message.missing:
            vring.descriptors[which] = descriptors.take()
        if vring.queue is not None:
            self._hand_over(vring, which)
        if which == "kick":
            vring.started = True
            vring.polled = message.missing
            self._run(message.index)

    def _hand_over(self, vring: _Vring, which: QueueFd) -> None:
        """Gives the device a copy of a running vring's descriptor, or takes it back."""
        assert vring.queue is not None
        descriptor = vring.descriptors.get(which)
        self.device.queue_set_fd(vring.queue, which, None if descriptor is None else os.dup(descriptor))

    def _forget(self, vring: _Vring, which: QueueFd) -> None:
        descriptor = vring.descriptors.pop(which, None)
        if descriptor is not None:
            os.close(descriptor)

    def _queue(self, index: int) -> int | None:
        """The device's queue of a vring."""
        features = self.device.driver_features
        seen = [number for number, vring in enumerate(self._vrings) if vring.configured]
        queue = queue_of(index, features, self._layout, seen)
        return queue if queue is not None and self.device.queue_size_max(queue) else None

    def _run(self, index: int) -> None:
        """Starts a vring's queue if everything is there for it."""
        vring = self._vrings[index]
        if vring.queue is not None or not (vring.configured and vring.started and vring.enabled):
            return
        if self._features is None:
            raise ProtocolError(f"vring {index} starts before SET_FEATURES")
        if not self.device.status & Status.FEATURES_OK:
            self._agree()
        queue = self._queue(index)
        if queue is None:
            raise ProtocolError(
                f"vring {index} is no queue", why=f"with features {self.device.driver_features:#x}"
            )
        rings = self._rings(index)
        vring.queue = queue
        try:
            # Descriptors first: the device may call for what it finds as soon as the queue starts.
            for which in QUEUE_FDS:
                self._hand_over(vring, which)
            self.device.queue_start(queue, vring.size, rings, vring.base)
        except BaseException:
            self._let_go(vring)
            raise
        if ProtocolFeature.STATUS not in self.protocol_features:
            self.device.set_status(self.device.status | Status.DRIVER_OK)
        self._on_change()

    def _pause(self, vring: _Vring) -> None:
        """Stops a vring's queue where it is; nothing of the ring is touched afterwards."""
        if vring.queue is None:
            return
        vring.base = self.device.queue_stop(vring.queue)
        self._let_go(vring)
        self._on_change()

    def _let_go(self, vring: _Vring) -> None:
        """Takes the front end's descriptors back from a queue that is stopped."""
        assert vring.queue is not None
        for which in QUEUE_FDS:
            self.device.queue_set_fd(vring.queue, which, None)
        vring.queue = None

    def _rings(self, index: int) -> RingAddresses:
        """Where a vring lies, guest-physical."""
        addresses = self._vrings[index].addresses
        assert addresses is not None
        return RingAddresses(
            desc=self._guest_address(addresses.descriptors),
            driver=self._guest_address(addresses.available),
            device=self._guest_address(addresses.used),
        )

    def _guest_address(self, user_address: int) -> int:
        for region, _ in self._regions:
            offset = user_address - region.user_address
            if 0 <= offset < region.size:
                return region.guest_address + offset
        raise ProtocolError(f"ring address {user_address:#x}", why="it is outside guest memory")

    # -- memory --------------------------------------------------------------

    def _set_regions(self, regions: list[tuple[Region, int]]) -> None:
        """Replaces guest memory; running queues go on in the new one. Takes the descriptors."""
        running = [index for index, vring in enumerate(self._vrings) if vring.queue is not None]
        try:
            fresh = self._map([region for region, _ in regions], [fd for _, fd in regions])
            for index in running:
                self._pause(self._vrings[index])
            self._memory.exchange(self.device, fresh)
        except BaseException:
            kept = {fd for _, fd in self._regions}
            for _, descriptor in regions:
                if descriptor not in kept:
                    os.close(descriptor)
            raise
        old, self._regions = self._regions, regions
        kept = {fd for _, fd in regions}
        for _, descriptor in old:
            if descriptor not in kept:
                os.close(descriptor)
        for index in running:
            self._run(index)

    @staticmethod
    def _map(regions: Sequence[Region], descriptors: Sequence[int]) -> GuestMemory:
        """A memory map with copies of the descriptors.

        Raises:
            ProtocolError: if regions overlap, or a descriptor is no file.
            CoreError: if one cannot be mapped, for one since its file is too short.
        """
        by_user = sorted(regions, key=lambda region: region.user_address)
        for below, above in itertools.pairwise(by_user):
            if below.user_address + below.size > above.user_address:
                raise ProtocolError("regions overlap in the front end's addresses")
        fresh = GuestMemory.empty()
        try:
            for region, descriptor in zip(regions, descriptors, strict=True):
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise ProtocolError("a memory region without a file", why="it cannot be given back")
                fresh.add_region(region.guest_address, region.size, descriptor, region.offset)
            fresh.guard()
        except BaseException:
            fresh.close()
            raise
        return fresh

    def _add_region(self, region: Region, descriptors: Descriptors) -> None:
        if len(self._regions) == SLOTS:
            raise ProtocolError(f"more than {SLOTS} regions")
        self._set_regions([*self._regions, (region, descriptors.take())])

    def _remove_region(self, region: Region) -> None:
        """The offset is ignored, as the protocol has it."""

        def same(other: Region) -> bool:
            return (other.guest_address, other.user_address, other.size) == (
                region.guest_address,
                region.user_address,
                region.size,
            )

        rest = [pair for pair in self._regions if not same(pair[0])]
        if len(rest) == len(self._regions):
            raise ProtocolError(f"no region at {region.guest_address:#x}", why="it cannot be removed")
        self._set_regions(rest)

    # -- configuration space -------------------------------------------------

    def _config(self, message: Config) -> Config | None:
        """Reads beyond our 16 bytes are zeroes, writes there are nobody's (T-48)."""
        if message.request is Request.GET_CONFIG:
            return Config(
                message.request,
                message.offset,
                message.flags,
                self.device.config_read(message.offset, len(message.data)),
            )
        # Of what is written only the driver's own field is taken, so nothing read-only changes.
        self.device.config_write(message.offset, message.data)
        return None

    # -- the end -------------------------------------------------------------

    def _drop_channel(self) -> None:
        if self.channel is not None:
            os.close(self.channel)
            self.channel = None

    def close(self) -> None:
        """The front end is gone: stop, forget, unmap, close everything that came from it."""
        self._reset()
        for vring in self._vrings:
            for which in QUEUE_FDS:
                self._forget(vring, which)
        self._drop_channel()
        self._memory.exchange(self.device, GuestMemory.empty())
        for _, descriptor in self._regions:
            os.close(descriptor)
        self._regions = []
        self._on_change()
