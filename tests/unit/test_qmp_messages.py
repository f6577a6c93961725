"""QMP's messages: what is accepted, what is refused, and in which words."""

from __future__ import annotations

import tracemalloc

import pytest

from balloonvq.errors import CommandFailed, LostData, ProtocolError
from balloonvq.qmp.messages import (
    MAX_NESTING,
    MAX_OBJECT_BYTES,
    BadInput,
    Command,
    Decoder,
    Error,
    Event,
    Greeting,
    Return,
    encode,
    error_reply,
    parse_command,
    parse_message,
)


def decode(data: bytes) -> list[object]:
    return list(Decoder().feed(data))


def refusal(data: bytes) -> str:
    (result,) = decode(data)
    assert isinstance(result, BadInput), result
    return result.description


def test_an_object_a_line_is_decoded() -> None:
    assert decode(b'{"execute": "x"}\n{"a": [1, {"b": "}"}]}\r\n') == [
        {"execute": "x"},
        {"a": [1, {"b": "}"}]},
    ]


def test_several_objects_on_one_line_are_decoded() -> None:
    assert decode(b'{"a": 1}{"b": 2} {"c": 3}\n') == [{"a": 1}, {"b": 2}, {"c": 3}]


def test_an_object_needs_no_newline() -> None:
    assert decode(b'{"execute": "x"}') == [{"execute": "x"}]


def test_half_a_line_is_kept_until_its_other_half_arrives() -> None:
    decoder = Decoder()
    assert decoder.feed(b'{"execute": "quer') == []
    assert decoder.pending_bytes == 17
    assert decoder.feed(b'y-balloon"}\n') == [{"execute": "query-balloon"}]
    assert decoder.pending_bytes == 0


def test_blank_lines_are_nothing() -> None:
    assert decode(b"\n \t\r\n\n") == []


def test_brackets_and_escapes_in_strings_do_not_end_an_object() -> None:
    assert decode(b'{"a": "}\\"}{\\\\"}\n') == [{"a": '}"}{\\'}]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"garbage\n", "cannot start with 'g'"),
        (b"\xff\xfe\n", "byte 0xff"),
        (b"}\n", "cannot start with '}'"),
        (b"[1, 2]\n", "must be a JSON object"),
        (b'"text"\n', "must be a JSON object"),
        (b"-12\n", "must be a JSON object"),
        (b'{"a": }\n', "JSON parse error"),
        (b'{"a": 1\n', "line ended"),
        (b'{"a": "x\n', "line ended"),
        (b'{"a": "x\\\n', "line ended"),
        (b'{"a": NaN}\n', "NaN"),
        (b'{"a": -Infinity}\n', "-Infinity"),
        (b'{"a": 1e999}\n', "out of range"),
        (b'{"a": 1, "a": 2}\n', "duplicate key 'a'"),
        (b'{"a": "\xff"}\n', "UTF-8"),
        (b'{"a": "\x01"}\n', "JSON parse error"),
        (b'{"a": ' + b"9" * 5000 + b"}\n", "JSON parse error"),
        (b'{"a": [1}]\n', "JSON parse error"),
        (b'{"a":' + b"[" * 100_000 + b"\n", "nesting"),
    ],
)
def test_what_is_no_message_is_refused_with_a_reason(line: bytes, words: str) -> None:
    assert words in refusal(line)


def test_the_line_after_a_refused_one_is_understood() -> None:
    results = decode(b'nonsense {"a": 1}\n{"b": 2}\n')
    assert isinstance(results[0], BadInput)
    assert results[1:] == [{"b": 2}]


def test_the_deepest_nesting_that_is_allowed_is_parsed() -> None:
    levels = MAX_NESTING - 1
    (document,) = decode(b'{"a":' + b"[" * levels + b"]" * levels + b"}\n")
    assert isinstance(document, dict)
    assert encode(Return(value=document))


def test_an_object_of_the_largest_size_is_accepted_and_one_byte_more_is_not() -> None:
    def sized(size: int) -> bytes:
        return b'{"a": "' + b"x" * (size - 9) + b'"}'

    assert isinstance(decode(sized(MAX_OBJECT_BYTES) + b"\n")[0], dict)
    assert "size limit" in refusal(sized(MAX_OBJECT_BYTES + 1) + b"\n")


def test_a_line_of_ten_megabytes_is_refused_once_and_not_kept() -> None:
    decoder = Decoder()
    results: list[object] = []
    chunk = b"x" * 65536
    tracemalloc.start()
    try:
        results += decoder.feed(b'{"a": "')
        for _ in range(160):
            results += decoder.feed(chunk)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(results) == 1
    assert isinstance(results[0], BadInput)
    assert decoder.pending_bytes == 0
    assert peak < 4 * MAX_OBJECT_BYTES
    assert decoder.feed(b'"}\n{"b": 1}\n') == [{"b": 1}]


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({}, "QMP input lacks member 'execute'"),
        ({"execute": 1}, "QMP input member 'execute' must be a string"),
        ({"execute": "x", "arguments": []}, "QMP input member 'arguments' must be an object"),
        ({"execute": "x", "foo": 1}, "QMP input member 'foo' is unexpected"),
        ({"exec-oob": "x"}, "QMP input member 'exec-oob' is unexpected"),
    ],
)
def test_what_is_no_command_is_refused_in_qemus_words(document: dict[str, object], words: str) -> None:
    with pytest.raises(CommandFailed) as caught:
        parse_command(document)
    assert caught.value.what == words


def test_null_is_an_id_and_no_id_is_none() -> None:
    assert parse_command({"execute": "x", "id": None}).as_document() == {"execute": "x", "id": None}
    assert "id" not in Return(value={}).as_document()


@pytest.mark.parametrize(
    "document",
    [
        {"QMP": {}},
        {"QMP": {"version": {"qemu": {"major": "9"}}}},
        {"event": 1},
        {"event": "X", "timestamp": {"seconds": "now"}},
        {"error": "no"},
        {"error": {"class": "GenericError"}},
        {"hello": "world"},
        {"execute": 5},
    ],
)
def test_a_malformed_message_is_a_protocol_error(document: dict[str, object]) -> None:
    with pytest.raises(ProtocolError):
        parse_message(document)


def test_the_greeting_of_a_qemu_is_understood() -> None:
    greeting = parse_message(
        {
            "QMP": {
                "version": {"qemu": {"micro": 0, "minor": 1, "major": 9}, "package": "v9.1.0"},
                "capabilities": ["oob"],
            }
        }
    )
    assert greeting == Greeting(version=(9, 1, 0), package="v9.1.0", capabilities=("oob",))


def test_our_errors_travel_whole() -> None:
    reply = error_reply(LostData("a page is lost", why="because", hint="look"), "id-1").as_document()
    assert reply["id"] == "id-1"
    assert reply["error"]["class"] == "GenericError"
    assert reply["error"]["desc"] == "a page is lost"
    assert reply["error"]["data"]["error"] == "LostData"
    assert reply["error"]["data"]["exit_code"] == 3


def test_an_event_has_the_time_of_its_making() -> None:
    event = Event.now("BALLOON_CHANGE", {"actual": 1})
    assert event.seconds > 1_700_000_000
    assert 0 <= event.microseconds < 1_000_000


def test_every_message_is_one_line_of_ascii() -> None:
    for message in (
        Greeting(),
        Command(execute="é\n"),
        Return(value="\ud800"),
        Error(description="ü"),
        Event.now("X"),
    ):
        line = encode(message)
        assert line.endswith(b"\n")
        assert line.count(b"\n") == 1
        assert line.isascii()
