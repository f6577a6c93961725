"""vhost-user messages: whatever the bytes, a message or a ProtocolError; what is encoded comes back."""

from __future__ import annotations

import struct

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from balloonvq.vhost_user.messages import (
    CONFIG_MAX,
    HEADER_BYTES,
    REGIONS_MAX,
    Config,
    MemoryRegion,
    MemoryTable,
    Plain,
    ProtocolError,
    Region,
    Request,
    Value,
    VringAddresses,
    VringDescriptor,
    VringState,
    encode,
    encode_reply,
    parse,
    parse_header,
)

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)


@st.composite
def regions(draw: st.DrawFn) -> Region:
    size = draw(st.integers(1, 2**48))
    return Region(
        draw(st.integers(0, 2**64 - size)),
        size,
        draw(st.integers(0, 2**64 - size)),
        draw(st.integers(0, 2**63 - 1 - size)),
    )


def _of(*names: str) -> st.SearchStrategy[Request]:
    return st.sampled_from([Request[name] for name in names])


configs = st.integers(0, CONFIG_MAX).flatmap(
    lambda offset: st.builds(
        Config, _of("GET_CONFIG", "SET_CONFIG"), st.just(offset), U32, st.binary(max_size=CONFIG_MAX - offset)
    )
)
messages = st.one_of(
    st.builds(
        Plain,
        _of(
            "GET_FEATURES",
            "SET_OWNER",
            "RESET_OWNER",
            "GET_PROTOCOL_FEATURES",
            "GET_QUEUE_NUM",
            "SET_BACKEND_REQ_FD",
            "RESET_DEVICE",
            "GET_MAX_MEM_SLOTS",
            "GET_STATUS",
        ),
    ),
    st.builds(Value, _of("SET_FEATURES", "SET_PROTOCOL_FEATURES", "SET_STATUS"), U64),
    st.builds(
        VringState, _of("SET_VRING_NUM", "SET_VRING_BASE", "GET_VRING_BASE", "SET_VRING_ENABLE"), U32, U32
    ),
    st.builds(VringAddresses, U32, st.just(0), U64, U64, U64, U64),
    st.builds(
        VringDescriptor,
        _of("SET_VRING_KICK", "SET_VRING_CALL", "SET_VRING_ERR"),
        st.integers(0, 255),
        st.booleans(),
    ),
    st.builds(MemoryTable, st.lists(regions(), min_size=1, max_size=REGIONS_MAX).map(tuple)),
    st.builds(MemoryRegion, _of("ADD_MEM_REG", "REM_MEM_REG"), regions()),
    configs,
)


def descriptors_of(message: object) -> int:
    match message:
        case MemoryTable(table):
            return len(table)
        case (
            MemoryRegion(Request.ADD_MEM_REG)
            | VringDescriptor(missing=False)
            | Plain(Request.SET_BACKEND_REQ_FD)
        ):
            return 1
        case _:
            return 0


@given(messages, st.booleans())
def test_what_is_encoded_comes_back(message, need_reply) -> None:
    data = encode(message, need_reply=need_reply)
    header = parse_header(data[:HEADER_BYTES])
    assert (header.need_reply, header.size) == (need_reply, len(data) - HEADER_BYTES)
    assert parse(header.request, data[HEADER_BYTES:], descriptors_of(message)) == message


@given(messages, st.integers(0, 20))
def test_a_wrong_number_of_descriptors_is_refused(message, count) -> None:
    data = encode(message)
    allowed = {descriptors_of(message)}
    if isinstance(message, MemoryRegion) and message.request is Request.REM_MEM_REG:
        allowed = {0, 1}
    request = parse_header(data[:HEADER_BYTES]).request
    if count in allowed:
        assert parse(request, data[HEADER_BYTES:], count) == message
    else:
        with pytest.raises(ProtocolError):
            parse(request, data[HEADER_BYTES:], count)


@given(st.binary(max_size=20))
@example(struct.pack("=III", 1, 1, 0))
def test_any_header_is_one_or_an_error(data) -> None:
    try:
        header = parse_header(data)
    except ProtocolError:
        return
    assert 0 <= header.size <= 12 + 8 + REGIONS_MAX * 32 + CONFIG_MAX


@given(st.sampled_from(Request), st.binary(max_size=400), st.integers(0, 20))
def test_any_payload_is_a_message_or_an_error(request_, payload, descriptors) -> None:
    try:
        message = parse(request_, payload, descriptors)
    except ProtocolError:
        return
    if not isinstance(message, MemoryTable):  # may have unused places
        assert encode(message)[HEADER_BYTES:][-32:] == payload[-32:]


@given(messages, st.data())
def test_a_changed_message_is_a_message_or_an_error(message, data) -> None:
    """Near misses: one byte of a good message is another."""
    raw = bytearray(encode(message))
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    try:
        header = parse_header(bytes(raw[:HEADER_BYTES]))
        parse(header.request, bytes(raw[HEADER_BYTES:]), descriptors_of(message))
    except ProtocolError:
        pass


@pytest.mark.parametrize(
    "region",
    [
        Region(0, 0, 0, 0),
        Region(2**64 - 1, 2, 0, 0),
        Region(0, 2, 2**64 - 1, 0),
        Region(0, 2, 0, 2**63 - 2),
    ],
)
def test_a_region_has_an_end(region) -> None:
    with pytest.raises(ProtocolError):
        parse(Request.ADD_MEM_REG, encode(MemoryRegion(Request.ADD_MEM_REG, region))[HEADER_BYTES:], 1)


def test_unused_places_of_a_table_are_ignored() -> None:
    """User Mode Linux sends two places always."""
    region = Region(4096, 4096, 0, 0)
    payload = struct.pack("=II", 1, 0) + struct.pack("=QQQQ", 4096, 4096, 0, 0) + bytes(32)
    assert parse(Request.SET_MEM_TABLE, payload, 1) == MemoryTable((region,))
    for count in (0, 3, 2**32 - 1):
        with pytest.raises(ProtocolError):
            parse(Request.SET_MEM_TABLE, struct.pack("=II", count, 0) + payload[8:], count % 16)


def test_replies_carry_the_reply_flag() -> None:
    assert encode_reply(7, Request.GET_FEATURES) == struct.pack("=IIIQ", 1, 5, 8, 7)
    assert encode_reply(VringState(Request.GET_VRING_BASE, 1, 9)) == struct.pack("=IIIII", 11, 5, 8, 1, 9)
