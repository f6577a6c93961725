"""Properties of QMP's messages: what goes out comes back, however the bytes are cut, and nothing raises."""

from __future__ import annotations

import itertools
import json

from hypothesis import given
from hypothesis import strategies as st

from balloonvq.qmp.messages import (
    ABSENT,
    BadInput,
    Command,
    Decoder,
    Error,
    Event,
    Greeting,
    Return,
    encode,
    parse_message,
)

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
objects = st.dictionaries(st.text(), values, max_size=4)
ids = values | st.just(ABSENT)
numbers = st.integers(min_value=0)

messages = st.one_of(
    st.builds(
        Greeting,
        version=st.tuples(numbers, numbers, numbers),
        package=st.text(),
        capabilities=st.lists(st.text(), max_size=3).map(tuple),
    ),
    st.builds(Command, execute=st.text(), arguments=objects, id=ids),
    st.builds(Return, value=values, id=ids),
    st.builds(Error, error_class=st.text(), description=st.text(), data=st.none() | objects, id=ids),
    st.builds(Event, name=st.text(), data=objects, seconds=st.integers(), microseconds=st.integers()),
)

#: Bytes that look enough like QMP to reach every corner of the decoder.
fragments = st.sampled_from(
    [
        b"{",
        b"}",
        b"[",
        b"]",
        b'"',
        b"\\",
        b"\n",
        b" ",
        b":",
        b",",
        b"a",
        b"1",
        b"\xc3",
        b"\xa4",
        b'{"a":1}',
        b"NaN",
    ]
)
streams = st.lists(fragments | st.binary(max_size=3), max_size=40).map(b"".join)


def in_pieces(stream: bytes, cuts: list[int], limit: int = 1 << 20) -> list[object]:
    decoder = Decoder(limit)
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    return [result for begin, end in itertools.pairwise(edges) for result in decoder.feed(stream[begin:end])]


@given(st.lists(messages, max_size=5), st.lists(st.integers(min_value=0), max_size=12))
def test_messages_survive_the_wire_however_they_are_cut(sent: list[object], cuts: list[int]) -> None:
    stream = b"".join(encode(message) for message in sent)  # type: ignore[arg-type]
    assert [parse_message(document) for document in in_pieces(stream, cuts)] == sent  # type: ignore[arg-type]


@given(streams, st.lists(st.integers(min_value=0), max_size=60), st.integers(min_value=2, max_value=60))
def test_the_cuts_never_change_what_is_understood(stream: bytes, cuts: list[int], limit: int) -> None:
    whole = in_pieces(stream, [], limit)
    assert in_pieces(stream, cuts, limit) == whole
    assert in_pieces(stream, list(range(len(stream))), limit) == whole


@given(st.binary(max_size=300) | streams)
def test_any_bytes_give_objects_or_reasons(stream: bytes) -> None:
    decoder = Decoder()
    for result in decoder.feed(stream):
        assert isinstance(result, BadInput) or json.dumps(result, allow_nan=False)
    assert decoder.pending_bytes <= len(stream)


@given(streams)
def test_a_connection_recovers_at_the_next_line(stream: bytes) -> None:
    assert Decoder().feed(stream + b'\n{"execute": "x"}\n')[-1] == {"execute": "x"}
