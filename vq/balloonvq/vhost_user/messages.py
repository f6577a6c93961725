"""vhost-user messages, sans-IO: every length and index is checked, nothing is done.

A message is a header of three 32-bit numbers in host byte order and a payload::

    0        4        8        12
    +--------+--------+--------+---------------- - -
    | request| flags  | size   | payload, `size` bytes
    +--------+--------+--------+---------------- - -
              bits 0-1 version (1), bit 2 reply, bit 3 reply wanted

File descriptors travel beside the bytes; `parse` is told how many came and refuses a
message that has too few or too many (`Descriptors` in `backend` closes them).

Whatever the bytes, `parse_header` and `parse` return a message or raise `ProtocolError`.
What a message does not say by itself, such as whether its vring exists, is for `session`.

Source: QEMU, docs/interop/vhost-user.rst, sections "Message Specification" and
"Front-end message types"; numbers above 38 are of its newer versions.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import TypeAlias

from balloonvq.errors import BalloonError

__all__ = [
    "CONFIG_MAX",
    "HEADER_BYTES",
    "PROTOCOL_FEATURES_BIT",
    "REGIONS_MAX",
    "BackEndRequest",
    "Config",
    "Header",
    "MemoryRegion",
    "MemoryTable",
    "Message",
    "Plain",
    "ProtocolError",
    "ProtocolFeature",
    "Region",
    "Request",
    "Value",
    "VringAddresses",
    "VringDescriptor",
    "VringState",
    "encode",
    "encode_back_end_request",
    "encode_reply",
    "parse",
    "parse_header",
]

#: VHOST_USER_F_PROTOCOL_FEATURES: on the socket it says that protocol features exist. To a guest it
#: is a bit that the specification reserves, so no guest is shown it (T-45).
PROTOCOL_FEATURES_BIT = 1 << 30

HEADER_BYTES = 12

#: Regions of one SET_MEM_TABLE, as the protocol draws it; more come with ADD_MEM_REG.
REGIONS_MAX = 8

#: Bytes of configuration space in one message (VHOST_USER_MAX_CONFIG_SIZE).
CONFIG_MAX = 256

_VERSION = 1
_VERSION_MASK = 3
_REPLY = 1 << 2
_NEED_REPLY = 1 << 3

_NO_DESCRIPTOR = 1 << 8
_VRING_MASK = 0xFF

_HEADER = struct.Struct("=III")
_U64 = struct.Struct("=Q")
_STATE = struct.Struct("=II")
_ADDRESSES = struct.Struct("=IIQQQQ")
_COUNT = struct.Struct("=II")
_REGION = struct.Struct("=QQQQ")
_SINGLE = struct.Struct("=QQQQQ")
_CONFIG = struct.Struct("=III")

#: A file's offset is signed.
_OFFSET_MAX = (1 << 63) - 1
_ADDRESS_END = 1 << 64


class ProtocolError(BalloonError):
    """The front end sent what vhost-user does not allow; the connection is closed."""


class Request(IntEnum):
    """What a front end may ask that this back end knows."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SET_BACKEND_REQ_FD = 21
    GET_CONFIG = 24
    SET_CONFIG = 25
    RESET_DEVICE = 34
    GET_MAX_MEM_SLOTS = 36
    ADD_MEM_REG = 37
    REM_MEM_REG = 38
    SET_STATUS = 39
    GET_STATUS = 40


class BackEndRequest(IntEnum):
    """What a back end may ask on its own channel."""

    CONFIG_CHANGE = 2


class ProtocolFeature(IntFlag):
    """Protocol features that this back end offers.

    INFLIGHT_SHMFD is not among them: this device finishes chains in ring order, so what was in work
    when a back end died is what lies between the used and the available index, and a front end that
    starts the ring again at the used index loses nothing.
    """

    MQ = 1 << 0
    REPLY_ACK = 1 << 3
    BACKEND_REQ = 1 << 5
    CONFIG = 1 << 9
    RESET_DEVICE = 1 << 13
    CONFIGURE_MEM_SLOTS = 1 << 15
    STATUS = 1 << 16


# ---- messages --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Header:
    """A checked header."""

    request: Request
    need_reply: bool
    size: int
    """Bytes of payload that follow."""


@dataclass(frozen=True, slots=True)
class Plain:
    """A request without a payload."""

    request: Request


@dataclass(frozen=True, slots=True)
class Value:
    """A request with one 64-bit number."""

    request: Request
    value: int


@dataclass(frozen=True, slots=True)
class VringState:
    """A vring and a number."""

    request: Request
    index: int
    number: int


@dataclass(frozen=True, slots=True)
class VringAddresses:
    """Where a vring lies, in the front end's own addresses ("user addresses")."""

    index: int
    flags: int
    descriptors: int
    used: int
    available: int
    log: int


@dataclass(frozen=True, slots=True)
class VringDescriptor:
    """A vring's kick, call or error descriptor; it travels beside the message."""

    request: Request
    index: int
    missing: bool
    """Bit 8: none comes, poll instead."""


@dataclass(frozen=True, slots=True)
class Region:
    """A piece of guest memory in a file."""

    guest_address: int
    size: int
    user_address: int
    offset: int
    """Where in the file it begins."""


@dataclass(frozen=True, slots=True)
class MemoryTable:
    """All of guest memory; a descriptor a region travels beside it."""

    regions: tuple[Region, ...]


@dataclass(frozen=True, slots=True)
class MemoryRegion:
    """One region that comes or goes."""

    request: Request
    region: Region


@dataclass(frozen=True, slots=True)
class Config:
    """A piece of the configuration space; a question carries bytes too, without meaning."""

    request: Request
    offset: int
    flags: int
    data: bytes


Message: TypeAlias = (
    Plain | Value | VringState | VringAddresses | VringDescriptor | MemoryTable | MemoryRegion | Config
)

_PLAIN = frozenset(
    {
        Request.GET_FEATURES,
        Request.SET_OWNER,
        Request.RESET_OWNER,
        Request.GET_PROTOCOL_FEATURES,
        Request.GET_QUEUE_NUM,
        Request.SET_BACKEND_REQ_FD,
        Request.RESET_DEVICE,
        Request.GET_MAX_MEM_SLOTS,
        Request.GET_STATUS,
    }
)
_VALUE = frozenset({Request.SET_FEATURES, Request.SET_PROTOCOL_FEATURES, Request.SET_STATUS})
_VRING_STATE = frozenset(
    {Request.SET_VRING_NUM, Request.SET_VRING_BASE, Request.GET_VRING_BASE, Request.SET_VRING_ENABLE}
)
_VRING_DESCRIPTOR = frozenset({Request.SET_VRING_KICK, Request.SET_VRING_CALL, Request.SET_VRING_ERR})


def _sizes() -> dict[Request, tuple[int, int]]:
    """Least and most bytes of payload by request."""
    sizes = dict.fromkeys(_PLAIN, (0, 0))
    sizes |= dict.fromkeys(_VALUE | _VRING_DESCRIPTOR, (_U64.size, _U64.size))
    sizes |= dict.fromkeys(_VRING_STATE, (_STATE.size, _STATE.size))
    sizes[Request.SET_VRING_ADDR] = (_ADDRESSES.size, _ADDRESSES.size)
    sizes[Request.SET_MEM_TABLE] = (_COUNT.size, _COUNT.size + REGIONS_MAX * _REGION.size)
    sizes |= dict.fromkeys((Request.ADD_MEM_REG, Request.REM_MEM_REG), (_SINGLE.size, _SINGLE.size))
    sizes |= dict.fromkeys(
        (Request.GET_CONFIG, Request.SET_CONFIG), (_CONFIG.size, _CONFIG.size + CONFIG_MAX)
    )
    return sizes


_SIZES = _sizes()


# ---- parsing ---------------------------------------------------------------


def parse_header(data: bytes) -> Header:
    """A header from its 12 bytes, with a size that its request can have.

    Raises:
        ProtocolError: for another version, a reply, an unknown request or an impossible size.
    """
    if len(data) != HEADER_BYTES:
        raise ProtocolError(f"a header of {len(data)} bytes", why=f"it has {HEADER_BYTES}")
    number, flags, size = _HEADER.unpack(data)
    if flags & _VERSION_MASK != _VERSION:
        raise ProtocolError(f"a message of version {flags & _VERSION_MASK}", why="this is version 1")
    if flags & _REPLY:
        raise ProtocolError("a reply that nobody asked for")
    try:
        request = Request(number)
    except ValueError:
        raise ProtocolError(f"request {number} is unknown, or of a feature that is not offered") from None
    least, most = _SIZES[request]
    if not least <= size <= most:
        raise ProtocolError(f"{request.name} with {size} bytes", why=f"it has {least} to {most}")
    return Header(request, bool(flags & _NEED_REPLY), size)


def parse(request: Request, payload: bytes, descriptors: int) -> Message:
    """A message from its payload and the number of descriptors that came with it.

    Raises:
        ProtocolError: if anything about it cannot be right.
    """
    least, most = _SIZES[request]
    if not least <= len(payload) <= most:
        raise ProtocolError(f"{request.name} with {len(payload)} bytes", why=f"it has {least} to {most}")
    message = _parse(request, payload)
    wanted = _descriptors(message)
    if descriptors not in wanted:
        raise ProtocolError(
            f"{request.name} with {descriptors} descriptors", why=f"it has {' or '.join(map(str, wanted))}"
        )
    return message


def _parse(request: Request, payload: bytes) -> Message:
    if request in _PLAIN:
        return Plain(request)
    if request in _VALUE:
        return Value(request, _U64.unpack(payload)[0])
    if request in _VRING_STATE:
        return VringState(request, *_STATE.unpack(payload))
    if request in _VRING_DESCRIPTOR:
        (value,) = _U64.unpack(payload)
        if value & ~(_NO_DESCRIPTOR | _VRING_MASK):
            raise ProtocolError(f"{request.name} with {value:#x}", why="only bits 0 to 8 mean something")
        return VringDescriptor(request, value & _VRING_MASK, bool(value & _NO_DESCRIPTOR))
    if request is Request.SET_VRING_ADDR:
        return _addresses(VringAddresses(*_ADDRESSES.unpack(payload)))
    if request is Request.SET_MEM_TABLE:
        return _table(payload)
    if request in {Request.ADD_MEM_REG, Request.REM_MEM_REG}:
        return MemoryRegion(request, _region(Region(*_SINGLE.unpack(payload)[1:])))
    return _config(request, payload)


def _descriptors(message: Message) -> tuple[int, ...]:
    """How many descriptors may come with it."""
    match message:
        case MemoryTable(regions):
            return (len(regions),)
        case MemoryRegion(Request.ADD_MEM_REG):
            return (1,)
        case MemoryRegion():
            return (0, 1)  # some front ends send it one, which is closed unused
        case VringDescriptor():
            return (0,) if message.missing else (1,)
        case Plain(Request.SET_BACKEND_REQ_FD):
            return (1,)
        case _:
            return (0,)


def _addresses(addresses: VringAddresses) -> VringAddresses:
    if addresses.flags:
        raise ProtocolError(f"vring address flags {addresses.flags:#x}", why="dirty logging is not offered")
    return addresses


def _table(payload: bytes) -> MemoryTable:
    count, _padding = _COUNT.unpack_from(payload)
    room, rest = divmod(len(payload) - _COUNT.size, _REGION.size)
    # User Mode Linux always sends two places, and uses the first `count`.
    if rest or not 0 < count <= room:
        raise ProtocolError(f"SET_MEM_TABLE of {count} regions in {len(payload)} bytes")
    regions = tuple(
        _region(Region(*_REGION.unpack_from(payload, _COUNT.size + i * _REGION.size))) for i in range(count)
    )
    return MemoryTable(regions)


def _region(region: Region) -> Region:
    """The region, if its last byte has a guest address, a user address and an offset."""
    if (
        region.size == 0
        or region.guest_address + region.size > _ADDRESS_END
        or region.user_address + region.size > _ADDRESS_END
        or region.offset + region.size > _OFFSET_MAX
    ):
        raise ProtocolError(
            f"a region of {region.size:#x} bytes at {region.guest_address:#x}",
            why="it is empty, or its end has no address",
        )
    return region


def _config(request: Request, payload: bytes) -> Config:
    offset, size, flags = _CONFIG.unpack_from(payload)
    data = payload[_CONFIG.size :]
    if size != len(data) or offset > CONFIG_MAX or offset + size > CONFIG_MAX:
        raise ProtocolError(
            f"{request.name} of {size} bytes at {offset} with {len(data)} bytes",
            why=f"a configuration space ends at {CONFIG_MAX}",
        )
    return Config(request, offset, flags, data)


# ---- encoding --------------------------------------------------------------


def _payload(message: Message) -> tuple[Request, bytes]:
    """A message's request and payload."""
    match message:
        case Plain(request):
            return request, b""
        case Value(request, value):
            return request, _U64.pack(value)
        case VringState(request, index, number):
            return request, _STATE.pack(index, number)
        case VringDescriptor(request, index, missing):
            return request, _U64.pack(index | (_NO_DESCRIPTOR if missing else 0))
        case VringAddresses(index, flags, descriptors, used, available, log):
            return Request.SET_VRING_ADDR, _ADDRESSES.pack(index, flags, descriptors, used, available, log)
        case MemoryTable(regions):
            packed = b"".join(_pack_region(region) for region in regions)
            return Request.SET_MEM_TABLE, _COUNT.pack(len(regions), 0) + packed
        case MemoryRegion(request, region):
            return request, _U64.pack(0) + _pack_region(region)
        case Config(request, offset, flags, data):
            return request, _CONFIG.pack(offset, len(data), flags) + data


def _pack_region(region: Region) -> bytes:
    return _REGION.pack(region.guest_address, region.size, region.user_address, region.offset)


def encode(message: Message, *, need_reply: bool = False) -> bytes:
    """A message as a front end sends it."""
    request, payload = _payload(message)
    return _HEADER.pack(request, _VERSION | (_NEED_REPLY if need_reply else 0), len(payload)) + payload


def encode_reply(message: Message | int, request: Request | None = None) -> bytes:
    """A reply: a message of the same kind as the request, or a number for `request`."""
    if isinstance(message, int):
        assert request is not None
        payload = _U64.pack(message)
    else:
        request, payload = _payload(message)
    return _HEADER.pack(request, _VERSION | _REPLY, len(payload)) + payload


def encode_back_end_request(request: BackEndRequest) -> bytes:
    """A request of ours without a payload; no reply is wanted, since some channels are one-way pipes."""
    return _HEADER.pack(request, _VERSION, 0)
