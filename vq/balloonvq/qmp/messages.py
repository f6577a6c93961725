"""The messages of QMP, and the bytes they are made of.

Sans-IO: nothing here reads or writes. A peer's bytes go into a `Decoder` in
any chunks, whole objects come out; an object becomes one of five messages:

=============  ===========================================================
`Greeting`     ``{"QMP": {"version": {...}, "capabilities": []}}``
`Command`      ``{"execute": "balloon", "arguments": {...}, "id": ...}``
`Return`       ``{"return": {...}, "id": ...}``
`Error`        ``{"error": {"class": "...", "desc": "..."}, "id": ...}``
`Event`        ``{"timestamp": {...}, "event": "...", "data": {...}}``
=============  ===========================================================

The decoder follows the input grammar below, which is stricter than JSON where
JSON leaves room for doubt and which has a bound for everything::

    input  = *( line newline )
    line   = *( object / blank )        objects need no newline to be seen

The first thing on a line that is not an acceptable object is answered with one
error, and the rest of the line is skipped without being kept, so a peer that
sends garbage costs at most `MAX_OBJECT_BYTES` of memory. What comes out depends on
the bytes alone, never on how they were cut into chunks: the end of an object
is found by counting brackets, byte by byte.
"""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeAlias

from balloonvq.errors import BalloonError, CommandFailed, ProtocolError

__all__ = [
    "ABSENT",
    "MAX_NESTING",
    "MAX_OBJECT_BYTES",
    "BadInput",
    "Command",
    "Decoder",
    "Error",
    "Event",
    "Greeting",
    "Message",
    "Return",
    "encode",
    "error_reply",
    "parse_command",
    "parse_message",
]

#: Bytes that one object may have; a longer one is refused and skipped.
MAX_OBJECT_BYTES = 1 << 20

#: Levels of objects and arrays. Far from where Python's JSON parser would give up.
MAX_NESTING = 200

JSONObject: TypeAlias = dict[str, Any]


# ---- bytes to objects ------------------------------------------------------


@dataclass(frozen=True, slots=True)
class BadInput:
    """A piece of input that is not an object; the connection goes on after it."""

    description: str
    """What is wrong, fit for the `desc` of an error reply."""


class _Refused(ValueError):
    """What our own hooks of the JSON parser do not accept."""


def _object_without_duplicates(pairs: list[tuple[str, Any]]) -> JSONObject:
    """Refuse an object with the same key twice: which one counts would be a guess."""
    result = dict(pairs)
    if len(result) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _Refused(f"duplicate key '{key[:40]}'")
            seen.add(key)
    return result


def _no_constant(name: str) -> NoReturn:
    """Refuse NaN and the infinities, which are Python's and not JSON's."""
    raise _Refused(f"invalid keyword '{name}'")


def _finite_float(text: str) -> float:
    """Refuse 1e999, which could not be sent back."""
    value = float(text)
    if not math.isfinite(value):
        raise _Refused(f"number out of range: {text[:40]}")
    return value


_loads = json.JSONDecoder(
    object_pairs_hook=_object_without_duplicates,
    parse_constant=_no_constant,
    parse_float=_finite_float,
).decode

_OUTSIDE_STRINGS = re.compile(rb'["{}\[\]\n]')
_INSIDE_STRINGS = re.compile(rb'["\\\n]')
_FIRST_BYTE = re.compile(rb"[^ \t\r\n]")


class Decoder:
    """Turns a stream of bytes into objects.

    Feed it what arrived; it keeps what is not finished. It never raises on
    input, whatever the input.
    """

    def __init__(self, max_object_bytes: int = MAX_OBJECT_BYTES) -> None:
        self._max_object_bytes = max_object_bytes
        self._buffer = bytearray()
        self._scanned = 0
        self._nesting = 0
        self._in_string = False
        self._skipping = False

    @property
    def pending_bytes(self) -> int:
        """Bytes kept since the object they belong to is not finished."""
        return len(self._buffer)

    def feed(self, data: bytes) -> list[JSONObject | BadInput]:
        """Take the next bytes of the stream; return what they completed, in order."""
        results: list[JSONObject | BadInput] = []
        self._buffer += data
        while self._buffer:
            if self._skipping:
                newline = self._buffer.find(b"\n")
                if newline < 0:
                    self._buffer.clear()
                    break
                self._drop(newline + 1)
                self._skipping = False
            elif self._nesting == 0:
                first = _FIRST_BYTE.search(self._buffer)
                if first is None:
                    self._buffer.clear()
                    break
                self._drop(first.start())
                if self._buffer[0] == ord("{"):
                    self._nesting = self._scanned = 1
                else:
                    results.append(self._refuse(_describe_start(self._buffer[0])))
            else:
                result = self._finish_object()
                if result is None:
                    break
                results.append(result)
        return results

    def _finish_object(self) -> JSONObject | BadInput | None:
        """Look for the end of the object that starts the buffer; None if it is not there yet."""
        buffer = self._buffer
        position = self._scanned
        while True:
            pattern = _INSIDE_STRINGS if self._in_string else _OUTSIDE_STRINGS
            match = pattern.search(buffer, position)
            if match is None:
                position = len(buffer)
                break
            mark = buffer[match.start()]
            if mark == ord("\\"):
                # The escaped byte may be in the next chunk: stay before the backslash until it is here.
                if match.end() == len(buffer):
                    position = match.start()
                    break
                position = match.end() + (buffer[match.end()] != ord("\n"))
                continue
            position = match.end()
            if position > self._max_object_bytes:
                break
            if mark == ord('"'):
                self._in_string = not self._in_string
            elif mark == ord("\n"):
                return self._refuse("JSON parse error, the line ended before the object did")
            elif mark in b"{[":
                self._nesting += 1
                if self._nesting > MAX_NESTING:
                    return self._refuse(f"JSON nesting depth limit exceeded ({MAX_NESTING} levels)")
            else:
                self._nesting -= 1
                if self._nesting == 0:
                    return self._take(position)
        self._scanned = position
        if len(buffer) > self._max_object_bytes:
            return self._refuse(
                f"JSON token size limit exceeded (an object may have {self._max_object_bytes} bytes)"
            )
        return None

    def _take(self, end: int) -> JSONObject | BadInput:
        """Parse and remove the first `end` bytes."""
        try:
            value = _loads(self._buffer[:end].decode())
        except _Refused as error:
            return self._refuse(f"JSON parse error, {error}")
        except UnicodeDecodeError:
            return self._refuse("JSON parse error, invalid UTF-8 sequence in string")
        except json.JSONDecodeError as error:
            return self._refuse(f"JSON parse error, {error.msg} at character {error.pos}")
        except (ValueError, RecursionError) as error:
            # Integers beyond Python's limit of digits; nesting is bounded before the parser sees it.
            return self._refuse(f"JSON parse error, {str(error).partition(';')[0]}")
        self._drop(end)
        if not isinstance(value, dict):  # pragma: no cover - what starts with a brace and parses is an object
            return self._refuse("QMP input must be a JSON object")
        return value

    def _refuse(self, description: str) -> BadInput:
        """Give up on this line."""
        self._skipping = True
        self._nesting = self._scanned = 0
        self._in_string = False
        return BadInput(description)

    def _drop(self, count: int) -> None:
        """Remove the first bytes of the buffer and forget what was known of them."""
        del self._buffer[:count]
        self._scanned = self._nesting = 0
        self._in_string = False


def _describe_start(byte: int) -> str:
    """Say why nothing that starts with this byte can be a message."""
    if byte in b'["-0123456789':
        return "QMP input must be a JSON object"
    if 0x20 < byte < 0x7F:
        return f"JSON parse error, an object cannot start with '{chr(byte)}'"
    return f"JSON parse error, an object cannot start with byte 0x{byte:02x}"


# ---- messages --------------------------------------------------------------


class _Absent:
    """The id of a message that has none: ``null`` is an id as good as any."""

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT = _Absent()


def _with_id(document: JSONObject, message_id: object) -> JSONObject:
    if message_id is not ABSENT:
        document["id"] = message_id
    return document


@dataclass(frozen=True, slots=True, kw_only=True)
class Greeting:
    """What a server says first."""

    version: tuple[int, int, int] = (0, 0, 0)
    """QEMU's version, or balloonctl's."""
    package: str = ""
    """Who built it; starts with ``balloonctl`` for a machine of ours."""
    capabilities: tuple[object, ...] = ()
    """Optional abilities, such as ``oob``."""

    def as_document(self) -> JSONObject:
        """The message as a JSON object."""
        return {"QMP": {"version": self.version_document(), "capabilities": list(self.capabilities)}}

    def version_document(self) -> JSONObject:
        """The answer to ``query-version``."""
        major, minor, micro = self.version
        return {"qemu": {"major": major, "minor": minor, "micro": micro}, "package": self.package}


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """What a client asks for."""

    execute: str
    """The verb."""
    arguments: JSONObject = field(default_factory=dict)
    id: object = ABSENT
    """Any JSON value, given back in the reply; `ABSENT` if the client sent none."""

    def as_document(self) -> JSONObject:
        """The message as a JSON object; empty arguments are left out."""
        document: JSONObject = {"execute": self.execute}
        if self.arguments:
            document["arguments"] = self.arguments
        return _with_id(document, self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Return:
    """A command that worked."""

    value: Any
    id: object = ABSENT

    def as_document(self) -> JSONObject:
        """The message as a JSON object."""
        return _with_id({"return": self.value}, self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Error:
    """A command that did not work."""

    error_class: str = "GenericError"
    """GenericError, CommandNotFound, DeviceNotActive, DeviceNotFound or KVMMissingCap."""
    description: str
    """One sentence for people."""
    data: JSONObject | None = None
    """Ours: the error as `balloonctl/error/1`. QMP's clients ignore members that they do not know."""
    id: object = ABSENT

    def as_document(self) -> JSONObject:
        """The message as a JSON object."""
        error: JSONObject = {"class": self.error_class, "desc": self.description}
        if self.data is not None:
            error["data"] = self.data
        return _with_id({"error": error}, self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened without being asked for."""

    name: str
    """Such as ``BALLOON_CHANGE``."""
    data: JSONObject = field(default_factory=dict)
    seconds: int
    """Wall clock since 1970; -1 if the server could not tell."""
    microseconds: int
    """Its fraction, 0 to 999999; -1 if the server could not tell."""

    @classmethod
    def now(cls, name: str, data: JSONObject | None = None) -> Event:
        """An event that happens at this moment."""
        seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
        return cls(name=name, data=data or {}, seconds=seconds, microseconds=nanoseconds // 1000)

    def as_document(self) -> JSONObject:
        """The message as a JSON object; empty data are left out."""
        document: JSONObject = {
            "timestamp": {"seconds": self.seconds, "microseconds": self.microseconds},
            "event": self.name,
        }
        if self.data:
            document["data"] = self.data
        return document


Message: TypeAlias = Greeting | Command | Return | Error | Event


def encode(message: Message) -> bytes:
    """A message as one line of ASCII JSON, newline included.

    :raise ValueError: a NaN or an infinity is in it: a bug of whoever built it.
    :raise TypeError: something in it has no JSON form: likewise.
    """
    return json.dumps(message.as_document(), allow_nan=False, separators=(", ", ": ")).encode("ascii") + b"\n"


# ---- objects to messages ---------------------------------------------------


def parse_command(document: JSONObject) -> Command:
    """Read an object as a command, refusing what QEMU refuses, in QEMU's words.

    :raise CommandFailed: it is not a command; `what` is the `desc` to answer with.
    """
    for member, value in document.items():
        if member == "execute":
            if not isinstance(value, str):
                raise CommandFailed("QMP input member 'execute' must be a string")
        elif member == "arguments":
            if not isinstance(value, dict):
                raise CommandFailed("QMP input member 'arguments' must be an object")
        elif member != "id":
            raise CommandFailed(f"QMP input member '{member[:80]}' is unexpected")
    if "execute" not in document:
        raise CommandFailed("QMP input lacks member 'execute'")
    return Command(
        execute=document["execute"],
        arguments=document.get("arguments", {}),
        id=document.get("id", ABSENT),
    )


def parse_message(document: JSONObject) -> Message:
    """Read an object as whatever message it is; the client's side of the protocol.

    Members that are not known are ignored, so that a newer QEMU is understood.

    :raise ProtocolError: it is no message, or one with a member of a wrong type.
    """
    if "QMP" in document:
        return _parse_greeting(document)
    if "event" in document:
        return _parse_event(document)
    if "error" in document:
        return _parse_error(document)
    if "return" in document:
        return Return(value=document["return"], id=document.get("id", ABSENT))
    if "execute" in document:
        try:
            return parse_command(document)
        except CommandFailed as error:
            raise ProtocolError(error.what) from None
    raise ProtocolError(f"the peer sent an object that is no QMP message: {_excerpt(document)}")


def _parse_greeting(document: JSONObject) -> Greeting:
    body = document["QMP"]
    version = body.get("version") if isinstance(body, dict) else None
    triple = version.get("qemu") if isinstance(version, dict) else None
    if not isinstance(version, dict) or not isinstance(triple, dict):
        raise ProtocolError(f"the peer's greeting has no version: {_excerpt(document)}")
    numbers = [triple.get(part) for part in ("major", "minor", "micro")]
    capabilities = body.get("capabilities", [])
    package = version.get("package", "")
    if not all(type(number) is int for number in numbers) or not isinstance(capabilities, list):
        raise ProtocolError(f"the peer's greeting is malformed: {_excerpt(document)}")
    major, minor, micro = (int(number or 0) for number in numbers)
    return Greeting(version=(major, minor, micro), package=str(package), capabilities=tuple(capabilities))


def _parse_event(document: JSONObject) -> Event:
    name, data = document["event"], document.get("data", {})
    timestamp = document.get("timestamp", {})
    if not isinstance(name, str) or not isinstance(data, dict) or not isinstance(timestamp, dict):
        raise ProtocolError(f"the peer's event is malformed: {_excerpt(document)}")
    seconds, microseconds = timestamp.get("seconds", -1), timestamp.get("microseconds", -1)
    if type(seconds) is not int or type(microseconds) is not int:
        raise ProtocolError(f"the peer's event is malformed: {_excerpt(document)}")
    return Event(name=name, data=data, seconds=seconds, microseconds=microseconds)


def _parse_error(document: JSONObject) -> Error:
    body = document["error"]
    if not isinstance(body, dict):
        raise ProtocolError(f"the peer's error is malformed: {_excerpt(document)}")
    error_class, description, data = body.get("class"), body.get("desc"), body.get("data")
    if not isinstance(error_class, str) or not isinstance(description, str):
        raise ProtocolError(f"the peer's error is malformed: {_excerpt(document)}")
    return Error(
        error_class=error_class,
        description=description,
        data=data if isinstance(data, dict) else None,
        id=document.get("id", ABSENT),
    )


def _excerpt(document: JSONObject) -> str:
    """The beginning of a document, for a message."""
    text = json.dumps(document)
    return text if len(text) <= 120 else text[:117] + "..."


def error_reply(error: BalloonError, message_id: object = ABSENT) -> Error:
    """How an error of ours travels: QEMU's two members, and the whole of it in `data`."""
    if isinstance(error, CommandFailed):
        return Error(
            error_class=error.error_class, description=error.what, data=error.document, id=message_id
        )
    return Error(description=error.what, data=error.as_document(), id=message_id)
