"""Where an actor stands: its local state, read off the suspended code.

An actor is a function of what it observed, so its history is always an exact
description of its local state. But histories never come back and never meet: a
retry loop has a new one each turn, and ten `num_pages.add(1)` whose results
nobody looks at have as many as there are orders. So wherever it can be done
soundly the local state is read off the actor's frames instead: for each frame the
instruction and the local variables, followed through lists, dicts and objects down to
plain values. Two histories that end in equal local states are then one node.

"Where it can be done soundly" is a matter of the evaluation stack, which Python does not show: see
`balloonvq.explore.bytecode`. Where something on it cannot be told, the actor has the local state of its history,
which is always right. Variables that the code does not read again are left out: histories that differ in nothing else
are one node.

What is assumed, beside what `balloonvq.explore.bytecode` does: no state in global variables and classes, and none in
attributes of functions or of what is derived from list, dict, set, tuple, str and numbers. An object with room for
what only C sees, of a kind that is not known here, is taken for a new one each time, so that nothing that holds it is
merged. A sample of the merges is checked by going on with the code along both histories
(`balloonvq.explore.automaton`).

Most of what frames show is what the actor's function reaches anyway, and that changes seldom. `Reach` walks it once
and again when it has changed; frames only point into it.
"""

from __future__ import annotations

import functools
import struct
import types
from collections import deque
from collections.abc import Callable, Collection, Hashable, Sequence, ValuesView
from enum import Enum
from itertools import islice
from operator import is_
from typing import Any, NamedTuple, cast

from balloonvq.explore._local_state import add_frames, stack, unchanged
from balloonvq.explore.bytecode import hidden, instruction_at

__all__ = ["Atom", "Reach", "fingerprint"]


class Atom:
    """Base of the explorer's own objects: fingerprints know them by name and do not look inside."""

    __slots__ = ()


_MISSING = object()

#: Not through the class, which may do something else with the names of attributes.
_get = object.__getattribute__

_POINTER_BYTES = struct.calcsize("P")

# -- frames ------------------------------------------------------------------------


class _Point(NamedTuple):
    """What is known of a code at an instruction."""

    code: types.CodeType
    """Kept, so that its id stays its own."""
    number: int
    """Of the code and the instruction itself: the interpreter counts differently once it has specialised a call."""
    over: tuple[str, ...] | None
    """What a call at this instruction hides on the stack: None if something unknown, else the names of the variables
    over which the frame iterates."""
    names: tuple[str, ...]
    """The variables of a frame there that count: those that are read again, or tell what the stack hides."""


#: By the address of the code and what a frame says of where it stands in it.
_Points = dict[tuple[int, int], _Point]

_numbers: dict[tuple[int, int], int] = {}


@functools.cache
def _points(
    left_out: frozenset[str], own: frozenset[str]
) -> tuple[_Points, Callable[[types.CodeType, int], _Point]]:
    """The points that are known, and what is called for one that is not."""
    points: _Points = {}
    return points, functools.partial(_point, points, left_out, own)


def _point(
    points: _Points, left_out: frozenset[str], own: frozenset[str], code: types.CodeType, last: int
) -> _Point:
    """What is known of a code that stands in a call at instruction `last`; looked up in `points` from then on."""
    at = instruction_at(code, last)
    number = _numbers.setdefault((id(code), at), len(_numbers))
    over: tuple[str, ...] | None = ()
    names: tuple[str, ...] = ()
    if code.co_filename not in own:
        found = hidden(code, at)
        if found is None or not found.told_by.isdisjoint(left_out):
            over = None
        else:
            shared = (*code.co_cellvars, *code.co_freevars)
            counting = (found.needed | found.told_by).union(shared) - left_out
            names = tuple(name for name in dict.fromkeys((*code.co_varnames, *shared)) if name in counting)
            over = found.over
    point = _Point(code, number, over, names)
    points[id(code), last] = point
    return point


def _distinct(items: object) -> bool:
    """Whether each item of a list or tuple tells its position."""
    if not isinstance(items, tuple | list):
        return False
    found = set()
    for item in items:
        walk = _Walk(frozenset())
        walk.add(item)
        found.add(tuple(walk.found))
    return len(found) == len(items)


# -- local variables ---------------------------------------------------------------


class _Walk:
    """One fingerprint: a flat list, in which each object stands with its kind and the number of its parts.

    Objects are numbered in the order in which they are met, so circles end.
    """

    __slots__ = ("found", "left_out", "met", "reach")

    def __init__(self, left_out: frozenset[str], reach: Reach | None = None) -> None:
        self.left_out = left_out
        self.met: dict[int, int] = {}
        self.found: list[Any] = []
        #: Told what would have to change for the walk to find something else.
        self.reach = reach

    def add(self, item: Any) -> None:
        """Appends an object and all that it is made of."""
        kind = type(item)
        add = _ADDERS.get(kind) or _adder(kind)
        if add is _add_plain:
            self.found += (kind, item)
        elif add is _add_atom:
            self.found += (kind, getattr(item, "name", ""))
        elif add in _WHOLE:
            add(self, item)
        else:
            number = len(self.met)
            before = self.met.setdefault(id(item), number)
            if before == number:
                add(self, item)
            else:
                self.found += (_Walk, before)


class Reach:
    """All objects that functions and other objects reach, and what they are made of: by content one number.

    Args:
        roots: which functions and objects; they must live as long as this.
        left_out: as for `fingerprint`.
        numbers: of the contents that were met before, to be shared by all whose numbers are compared.
    """

    __slots__ = (
        "_cells", "_content", "_dicts", "_holders", "_insides", "_kinds", "_left_out", "_numbers", "_objects", "_parts",
        "_roots", "_seen", "_sizes", "_slots", "_slotted", "_values", "met", "noticed", "number",
    )  # fmt: skip

    def __init__(
        self,
        roots: Sequence[object],
        left_out: frozenset[str],
        numbers: dict[Hashable, int],
    ) -> None:
        self._roots = roots
        self._left_out = left_out
        self._numbers = numbers
        #: Whether all that may change is in the lists below.
        self.noticed = False
        #: What they are made of, by number.
        self.number = -1
        #: The number of each object, by its id.
        self.met: dict[int, int] = {}
        self._begin()

    def _begin(self) -> None:
        # Objects, and what they were when they were walked: their kinds,
        self._objects: list[Any] = []
        self._kinds: list[type] = []
        # the dicts of their attributes,
        self._holders: list[Any] = []
        self._dicts: list[Any] = []
        # their slots,
        self._slotted: list[Any] = []
        self._slots: list[str] = []
        self._values: list[Any] = []
        # the variables of closures,
        self._cells: list[types.CellType] = []
        self._insides: list[Any] = []
        # and whatever can be gone through: lists, sets, the keys and values of dicts. All their content is one list.
        self._parts: list[Collection[Any]] = []
        self._sizes: list[int] = []
        self._content: list[Any] = []
        self._seen: tuple[list[Any], ...] = (
            self._cells, self._insides, self._objects, self._kinds, self._holders, self._dicts,
            self._slotted, self._slots, self._values, self._parts, self._sizes, self._content,
        )  # fmt: skip

    def look(self) -> int:
        """The number of what they are made of now."""
        if not (self.noticed and self.unchanged()):
            self._walk()
        return self.number

    def known(self) -> bool:
        """Whether all of them can be told by what they are made of."""
        self.look()
        return self.noticed

    def same(self, other: Reach) -> bool:
        """Whether they were the same objects, made of the same, when both were last walked.

        Equal content is not enough where somebody holds one of the objects: another one in its place is no longer his.
        """
        return (
            self.noticed and self.number == other.number and (self.met is other.met or self.met == other.met)
        )

    def unchanged(self) -> bool:
        """Whether all of them are what they were when they were last walked."""
        return unchanged(self._seen)

    def put_back(self) -> bool:
        """Makes all of them what they were when they were last walked; False where it cannot."""
        content = iter(self._content)
        entries: Any = None
        keys: list[Any] = []
        keys_changed = False
        for part, size in zip(self._parts, self._sizes, strict=True):
            before = [*islice(content, size)]
            changed = len(part) != size or not all(map(is_, part, before))
            # What a class derived from these does when it is written to is its own affair: it stays changed.
            kind = type(part)
            if isinstance(part, ValuesView):
                if (changed or keys_changed) and type(entries) is dict:
                    entries.clear()
                    entries.update(zip(keys, before, strict=True))
            elif isinstance(part, dict):
                # Its values follow.
                entries, keys, keys_changed = part, before, changed
            elif changed and kind is list:
                cast("list[Any]", part)[:] = before
            elif changed and kind is set and size < 2:
                # The order of more would be another one.
                cast("set[Any]", part).clear()
                cast("set[Any]", part).update(before)
        for item, name, value in zip(self._slotted, self._slots, self._values, strict=True):
            if _slot(item, name) is not value:
                try:
                    object.__setattr__(item, name, value)
                except AttributeError:
                    return False
        for cell, inside in zip(self._cells, self._insides, strict=True):
            cell.cell_contents = inside
        return self.unchanged()

    def _walk(self) -> None:
        self.noticed = True
        self._begin()
        walk = _Walk(self._left_out, self)
        try:
            for root in self._roots:
                self._walk_root(walk, root)
        except BaseException:
            self.noticed = False
            raise
        self.met = walk.met
        self.number = self._numbers.setdefault(tuple(walk.found), len(self._numbers))

    def _walk_root(self, walk: _Walk, root: object) -> None:
        if not isinstance(root, types.FunctionType):
            walk.add(root)
            return
        walk.found.append(id(root.__code__))
        _add_defaults(walk, root)
        for name, cell in zip(root.__code__.co_freevars, root.__closure__ or (), strict=True):
            if name not in self._left_out:
                walk.add(cell)

    def has_kind(self, item: Any) -> None:
        """Remembers the class of an object."""
        self._objects.append(item)
        self._kinds.append(type(item))

    def has_attributes(self, item: Any, attributes: dict[str, Any]) -> None:
        """Remembers the attributes of an object."""
        self._holders.append(item)
        self._dicts.append(attributes)
        self.has_entries(attributes)

    def has_slots(self, item: Any, names: tuple[str, ...]) -> None:
        """Remembers the slots of an object."""
        values = [_slot(item, name) for name in names]
        if _MISSING in values:
            self.noticed = False
        self._slotted += [item] * len(names)
        self._slots += names
        self._values += values

    def has_items(self, items: Collection[Any]) -> None:
        """Remembers what is in a list or set, or what the keys or values of a dict are."""
        before = len(self._content)
        self._content += items
        self._parts.append(items)
        self._sizes.append(len(self._content) - before)

    def has_entries(self, entries: dict[Any, Any]) -> None:
        """Remembers the keys and values of a dict."""
        self.has_items(entries)
        self.has_items(entries.values())

    def has_content(self, cell: types.CellType, content: Any) -> None:
        """Remembers what a variable is bound to."""
        self._cells.append(cell)
        self._insides.append(content)


_Adder = Callable[[_Walk, Any], None]


def _add_plain(walk: _Walk, item: Any) -> None:
    walk.found += (type(item), item)


def _add_enum(walk: _Walk, item: Enum) -> None:
    # There is one object for each member, and it lives as long as its class.
    walk.found += (type(item), id(item))


def _add_atom(walk: _Walk, item: Any) -> None:
    walk.found += (type(item), getattr(item, "name", ""))


def _add_fixed(walk: _Walk, item: Any) -> None:
    walk.found += (type(item), id(item))


def _add_builtin(walk: _Walk, item: Any) -> None:
    # A function of a module, or a method that works on an object.
    walk.found += (type(item), item.__qualname__)
    walk.add(item.__self__)


def _add_sequence(walk: _Walk, item: Any) -> None:
    walk.found += (type(item), len(item))
    if walk.reach is not None and not isinstance(item, tuple):
        walk.reach.has_items(item)
    for entry in item:
        walk.add(entry)


def _add_dict(walk: _Walk, item: Any) -> None:
    walk.found += (type(item), len(item))
    if walk.reach is not None:
        walk.reach.has_entries(item)
    for key, value in item.items():
        walk.add(key)
        walk.add(value)


def _add_set(walk: _Walk, item: Any) -> None:
    if walk.reach is not None and not isinstance(item, frozenset):
        walk.reach.has_items(item)
    kept, texts = walk.found, []
    for entry in item:
        walk.found = []
        walk.add(entry)
        texts.append(repr(walk.found))
    walk.found = kept
    kept += (type(item), len(texts), *sorted(texts))


def _add_method(walk: _Walk, item: Any) -> None:
    walk.found += (type(item), id(item.__func__.__code__))
    walk.add(item.__self__)


def _add_function(walk: _Walk, item: Any) -> None:
    walk.found += (type(item), id(item.__code__))
    _add_defaults(walk, item)
    for cell in item.__closure__ or ():
        walk.add(cell)


def _add_defaults(walk: _Walk, item: types.FunctionType) -> None:
    for defaults in (item.__defaults__, item.__kwdefaults__):
        if defaults:
            walk.add(defaults)


def _add_cell(walk: _Walk, item: Any) -> None:
    try:
        inside = item.cell_contents
    except ValueError:
        walk.found += (type(item), "empty")
        if walk.reach is not None:
            walk.reach.noticed = False
    else:
        walk.found += (type(item), "full")
        if walk.reach is not None:
            walk.reach.has_content(item, inside)
        walk.add(inside)


def _add_error(walk: _Walk, item: Any) -> None:
    if walk.reach is not None:
        walk.reach.noticed = False
    walk.found += (type(item), len(item.args))
    for entry in item.args:
        walk.add(entry)


def _add_deque(walk: _Walk, item: Any) -> None:
    if walk.reach is not None:
        walk.reach.noticed = False
    walk.found += (item.__class__, len(item))
    for entry in item:
        walk.add(entry)


def _add_unknown(walk: _Walk, item: Any) -> None:
    # An iterator, or what C keeps to itself: each is its own state, so nothing is merged.
    if walk.reach is not None:
        walk.reach.noticed = False
    walk.found += (type(item), object())


def _add_object(walk: _Walk, item: Any) -> None:
    found, left_out, reach = walk.found, walk.left_out, walk.reach
    attributes = getattr(item, "__dict__", None)
    own: Any = type(item)
    slots = _slots(own)
    if reach is not None:
        reach.has_kind(item)
        if attributes is not None:
            reach.has_attributes(item, attributes)
        if slots and not _frozen(own):
            reach.has_slots(item, slots)
    found.append(type(item))
    if attributes:
        add, adders = walk.add, _ADDERS
        for name, value in attributes.items():
            if name not in left_out:
                kind = type(value)
                how = adders.get(kind)
                if how is _add_plain:
                    found += (name, kind, value)
                elif how is _add_atom:
                    found += (name, kind, getattr(value, "name", ""))
                else:
                    found.append(name)
                    add(value)
    for name in slots:
        value = _slot(item, name)
        if value is not _MISSING and name not in left_out:
            kind = type(value)
            if _ADDERS.get(kind) is _add_plain:
                found += (name, kind, value)
            else:
                found.append(name)
                walk.add(value)
    found.append(_MISSING)


#: What has no parts to look into; anything else is numbered when it is met.
_WHOLE: frozenset[_Adder] = frozenset({_add_plain, _add_enum, _add_atom, _add_fixed})

#: How instances of a class are appended; filled by `_adder`.
_ADDERS: dict[type, _Adder] = {}

#: Of classes whose instances are told by their value (True) or their name, the same; filled likewise.
_SIMPLE: dict[type, bool] = {}

_BASES: tuple[tuple[Any, _Adder], ...] = (
    (Enum, _add_enum),
    ((int, str, bytes, float, bool, type(None)), _add_plain),
    (Atom, _add_atom),
    ((type, types.ModuleType, types.CodeType, types.MappingProxyType), _add_fixed),
    (types.BuiltinFunctionType, _add_builtin),
    ((tuple, list), _add_sequence),
    (dict, _add_dict),
    ((set, frozenset), _add_set),
    (types.MethodType, _add_method),
    (types.FunctionType, _add_function),
    (types.CellType, _add_cell),
    (BaseException, _add_error),
    (deque, _add_deque),
)


def _adder(kind: type) -> _Adder:
    """How instances of a class are appended."""
    add = next((add for bases, add in _BASES if issubclass(kind, bases)), None)
    if add is None:
        add = _add_unknown if hasattr(kind, "__next__") or _has_more(kind) else _add_object
    if add in {_add_plain, _add_atom}:
        _SIMPLE[kind] = add is _add_plain
    return _ADDERS.setdefault(kind, add)


def _slot(item: Any, name: str) -> Any:
    """What is in a slot, `_MISSING` for nothing: what the class says instead does not count."""
    try:
        return _get(item, name)
    except AttributeError:
        return _MISSING


@functools.cache
def _frozen(kind: type) -> bool:
    """Whether it is a dataclass whose attributes are not assigned to; those of a class derived from one may be."""
    parameters = kind.__dict__.get("__dataclass_params__")
    return parameters is not None and bool(parameters.frozen)


def _has_more(kind: type) -> bool:
    """Whether its instances have room for more than attributes and slots: something that C keeps there."""
    pointers = len(_slots(kind)) + (kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0)
    return kind.__itemsize__ != 0 or kind.__basicsize__ > object.__basicsize__ + pointers * _POINTER_BYTES


@functools.cache
def _slots(kind: type) -> tuple[str, ...]:
    """The names of all slots of a class for values, private ones as the class stores them."""
    found: list[str] = []
    for base in kind.__mro__:
        names = base.__dict__.get("__slots__", ())
        prefix = f"_{base.__name__.lstrip('_')}"
        for name in (names,) if isinstance(names, str) else names:
            private = name.startswith("__") and not name.endswith("__") and prefix != "_"
            if name not in {"__dict__", "__weakref__"}:
                found.append(prefix + name if private else name)
    return tuple(found)


def fingerprint(
    frame: types.FrameType | None,
    end: types.CodeType,
    own: frozenset[str],
    left_out: frozenset[str],
    reach: Reach,
) -> Hashable:
    """The local state of the code that runs in `frame`, up to the frame that runs `end`.

    Args:
        frame: the innermost frame.
        end: where the actor's own code ends.
        own: files of the runtime: their frames count with their position only.
        left_out: names of local variables and attributes that only count.
        reach: of the actor's function.

    Returns:
        A value to compare, or None where the frames do not show the whole local state.
    """
    frames = stack(frame, end, *_points(left_out, own))
    if frames is None:
        return None
    walk = _Walk(left_out)
    found = walk.found
    found.append(reach.look())
    walk.met = met = reach.met.copy()
    if not add_frames(_Walk, found, met, walk.add, _SIMPLE, _MISSING, _distinct, frames):
        return None
    return tuple(found)
