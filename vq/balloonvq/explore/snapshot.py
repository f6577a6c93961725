"""What a build has made, to be put back to what it was: cheaper than to build it again.

A `Snapshot` goes through all that code can reach and change: attributes, slots, lists, dicts, sets, the variables of
closures. It is taken while nobody has run yet; `restore` writes all of it back, in place and in order.

What a build has made is told from what was there before by the snapshot of an earlier build, whose objects are still
alive: what both reach is older than the later one. That is left alone, as it is when a program is built again, and
what it remembers goes on from execution to execution. All else is made anew by each build and has to be known through
and through. Where it is not - what C keeps to itself, a class that the build has made - the snapshot is not
`complete`, and there is nothing to restore.

What is assumed: no state in global variables and none in the code of functions, as in
`balloonvq.explore.local_state`; and that whatever runs when an object is collected changes nothing that is older than
that object.
"""

from __future__ import annotations

import struct
import types
from collections.abc import Callable, Iterable
from enum import Enum
from operator import is_not
from typing import Any, Final

__all__ = ["Snapshot"]

_POINTER_BYTES: Final = struct.calcsize("P")

_MISSING: Final = object()

#: What does not change and leads nowhere.
_PLAIN: Final[frozenset[type[object]]] = frozenset(
    {int, str, bytes, float, complex, bool, type(None), type(...), type(NotImplemented)}
)

_BY_IDENTITY: Final[tuple[object, object]] = (object.__hash__, object.__eq__)

#: Not through the class, which may do something else with the names of attributes.
_get: Final = object.__getattribute__


class Snapshot:
    """What everything that an object leads to is made of.

    Args:
        root: the object.
        lasting: classes of objects that are not looked into: they do not change, or somebody else sees to that.
        earlier: that of an earlier build. None for the first: it cannot be restored.
    """

    __slots__ = (
        "_attributes", "_cells", "_dicts", "_functions", "_lists", "_older", "_sets", "_slots", "complete", "met",
    )  # fmt: skip

    def __init__(self, root: object, lasting: frozenset[type[object]], earlier: Snapshot | None) -> None:
        #: Whether all that may change is in the lists below.
        self.complete = earlier is not None
        #: By id, which is theirs as long as they live.
        self.met: dict[int, Any] = {id(_MISSING): _MISSING}
        self._older = None if earlier is None else earlier.met
        # Each with what it was.
        self._attributes: list[tuple[Any, type, dict[str, Any], dict[str, Any]]] = []
        self._slots: list[tuple[Any, type, tuple[Any, ...], tuple[Any, ...]]] = []
        self._lists: list[tuple[list[Any], list[Any]]] = []
        self._dicts: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        self._sets: list[tuple[set[Any], set[Any]]] = []
        self._cells: list[tuple[types.CellType, Any]] = []
        self._functions: list[tuple[types.FunctionType, tuple[Any, ...]]] = []
        self._walk(root, _PLAIN | lasting)

    def _walk(self, root: object, skipped: frozenset[type[object]]) -> None:
        met, adders = self.met, _ADDERS
        older = self._older or {}
        first = self._older is None
        waiting = [root]
        while waiting and (first or self.complete):
            item = waiting.pop()
            kind = type(item)
            if kind in skipped:
                continue
            number = id(item)
            if number in met or number in older:
                continue
            met[number] = item
            waiting += (adders.get(kind) or _adder(kind))(self, item)

    def restore(self) -> bool:
        """Puts everything back; False if something cannot be: then what is there now is of no use."""
        if not (self._same_functions() and self._restore_attributes() and self._restore_slots()):
            return False
        for items, content in self._lists:
            items[:] = content
        for entries, before in self._dicts:
            entries.clear()
            entries.update(before)
        for members, filled in self._sets:
            _fill(members, filled)
        for cell, value in self._cells:
            if value is not _MISSING:
                cell.cell_contents = value
            elif _in_cell(cell) is not _MISSING:
                del cell.cell_contents
        return True

    def _same_functions(self) -> bool:
        return not any(
            now is not before
            for function, parts in self._functions
            for now, before in zip(_parts(function), parts, strict=True)
        )

    def _restore_attributes(self) -> bool:
        for item, kind, attributes, before in self._attributes:
            if type(item) is not kind or _get(item, "__dict__") is not attributes:
                return False
            attributes.clear()
            attributes.update(before)
        return True

    def _restore_slots(self) -> bool:
        for item, kind, slots, values in self._slots:
            if type(item) is not kind:
                return False
            for slot, value in zip(slots, values, strict=True):
                if value is not _MISSING:
                    slot.__set__(item, value)
                elif _in_slot(slot, item) is not _MISSING:
                    slot.__delete__(item)
        return True

    # -- what objects are made of: each remembers it and returns what it leads to ------------

    def has_attributes(self, item: Any) -> Iterable[Any]:
        """The attributes of an object."""
        attributes = _get(item, "__dict__")
        before = {**attributes}
        self._attributes.append((item, type(item), attributes, before))
        return before.values()

    def has_slots(self, item: Any, slots: tuple[Any, ...]) -> Iterable[Any]:
        """The slots of an object."""
        values = tuple([_in_slot(slot, item) for slot in slots])
        self._slots.append((item, type(item), slots, values))
        return values

    def has_items(self, items: list[Any]) -> Iterable[Any]:
        """What is in a list."""
        content = [*items]
        self._lists.append((items, content))
        return content

    def has_entries(self, entries: dict[Any, Any]) -> Iterable[Any]:
        """What is in a dict."""
        before = {**entries}
        self._dicts.append((entries, before))
        self._are_keys(before)
        return (*before, *before.values())

    def has_members(self, members: set[Any]) -> Iterable[Any]:
        """What is in a set."""
        before = members.copy()
        self._sets.append((members, before))
        self._are_keys(before)
        if self.complete:
            # In which order one goes through it depends on all that ever was in it: from now on on this only.
            order = tuple(members)
            _fill(members, before)
            self.complete = not any(map(is_not, members, order))
        return before

    def has_content(self, cell: types.CellType) -> Iterable[Any]:
        """What a variable of a closure is bound to."""
        content = _in_cell(cell)
        self._cells.append((cell, content))
        return (content,)

    def has_parts(self, function: types.FunctionType) -> Iterable[Any]:
        """What a function is made of."""
        parts = _parts(function)
        self._functions.append((function, parts))
        # Not what is in them: state in global variables is nobody's here.
        self.is_older(function.__globals__)
        return (*parts, *(function.__closure__ or ()))

    def is_older(self, item: Any) -> None:
        """Says that it must have been there before."""
        if self._older is None:
            self.met[id(item)] = item
        elif id(item) not in self._older:
            self.complete = False

    def _are_keys(self, items: Iterable[Any]) -> None:
        """Looks whether items are told from each other without running code that looks at what may have changed."""
        if not all(type(item) in _PLAIN or _is_key(item) for item in items):
            self.complete = False


_Adder = Callable[[Snapshot, Any], Iterable[Any]]


def _is_key(item: Any) -> bool:
    kind = type(item)
    if kind is tuple:
        return all(map(_is_key, item))
    by_identity = (kind.__hash__, kind.__eq__) == _BY_IDENTITY
    return by_identity or kind in _PLAIN or issubclass(kind, Enum)


def _fill(members: set[Any], before: set[Any]) -> None:
    members.clear()
    members.update(before)


def _in_slot(slot: Any, item: Any) -> Any:
    try:
        return slot.__get__(item)
    except AttributeError:
        return _MISSING


def _in_cell(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return _MISSING


def _parts(function: types.FunctionType) -> tuple[Any, ...]:
    return (function.__code__, function.__defaults__, function.__kwdefaults__, function.__dict__)


def _add_new(snapshot: Snapshot, item: Any) -> Iterable[Any]:
    """What must be older and is not, or cannot be looked into."""
    del item
    snapshot.complete = False
    return ()


def _add_frozen(snapshot: Snapshot, item: Any) -> Iterable[Any]:
    del snapshot
    return (type(item), *item)


def _add_number(snapshot: Snapshot, item: Any) -> Iterable[Any]:
    del snapshot
    return (type(item),)


def _add_method(snapshot: Snapshot, item: Any) -> Iterable[Any]:
    del snapshot
    return (item.__func__, item.__self__)


def _add_builtin(snapshot: Snapshot, item: Any) -> Iterable[Any]:
    owner = item.__self__
    if owner is None or isinstance(owner, types.ModuleType):
        snapshot.complete = False
    return (owner,)


#: How instances of a class are gone through; filled by `_adder`.
_ADDERS: dict[type, _Adder] = {
    list: Snapshot.has_items,
    dict: Snapshot.has_entries,
    set: Snapshot.has_members,
    tuple: _add_frozen,
    frozenset: _add_frozen,
    types.CellType: Snapshot.has_content,
    types.FunctionType: Snapshot.has_parts,
    types.MethodType: _add_method,
    types.BuiltinFunctionType: _add_builtin,
    types.ModuleType: _add_new,
    types.CodeType: _add_new,
}


def _adder(kind: type) -> _Adder:
    """How instances of a class are gone through."""
    return _ADDERS.setdefault(kind, _made_adder(kind))


def _made_adder(kind: type) -> _Adder:
    if issubclass(kind, type | Enum):
        return _add_new
    attributes = [vars(base)["__dict__"] for base in kind.__mro__ if "__dict__" in vars(base)]
    slots = tuple(
        [
            value
            for base in kind.__mro__
            for value in vars(base).values()
            # Classes of C show some of their fields like this, too.
            if type(value) is types.MemberDescriptorType and "__slots__" in vars(base)
        ]
    )
    if not attributes and not slots and issubclass(kind, tuple | int):
        return _add_frozen if issubclass(kind, tuple) else _add_number
    room = len(slots) + (kind.__dictoffset__ > 0) + (kind.__weakrefoffset__ > 0)
    if (
        kind.__itemsize__
        or kind.__basicsize__ != object.__basicsize__ + room * _POINTER_BYTES
        or any(type(one) is not types.GetSetDescriptorType for one in attributes)
    ):
        # C keeps something there, or the class has its own idea of what its attributes are.
        return _add_new

    def add(snapshot: Snapshot, item: Any) -> Iterable[Any]:
        found: list[Any] = [kind]
        if attributes:
            found += snapshot.has_attributes(item)
        if slots:
            found += snapshot.has_slots(item, slots)
        return found

    return add
