"""Where an actor stands: its local state, read off the suspended code.

An actor is a function of what it observed, so its history is always an exact
description of its local state. But histories never come back and never meet: a
retry loop has a new one each turn, and ten `num_pages.add(1)` whose results
nobody looks at have as many as there are orders. So wherever it can be done
soundly the local state is read off the actor's frames instead: for each frame the
instruction and the local variables, followed through lists, dicts and objects down to
plain values. Two histories that end in equal local states are then one node.

"Where it can be done soundly": Python does not show a frame's evaluation stack, and in
``a.value > b.value`` the first value lies only there while the second is being read.
`clean` therefore interprets the bytecode abstractly and says, for an instruction, whether
what lies below the call on the stack is known anyway: constants and variables, the exit
method of a with statement, the iterator of a loop over ``range`` (its
position is the loop variable) or over a variable that holds a list or tuple of items that differ
from each other. Anything else, an opcode that this file does not know
included, means no: the actor then has the local state of its history, which is always right.

What is assumed: no state in global variables, and none inside objects of C extensions,
which cannot be looked into. Merges are checked by running the code along both
histories (`balloonvq.explore.automaton`).
"""

from __future__ import annotations

import dis
import types
from collections.abc import Hashable, Iterator
from enum import Enum
from typing import Any

__all__ = ["Atom", "clean", "fingerprint"]


class Atom:
    """Base of the explorer's own objects: fingerprints know them by name and do not look inside."""

    __slots__ = ()


_PLAIN = (int, str, bytes, float, bool, type(None), Enum)
_FIXED = (type, types.ModuleType, types.CodeType, types.BuiltinFunctionType, types.MappingProxyType)
_MISSING = object()

# -- the evaluation stack ----------------------------------------------------------

#: What may lie on the stack without being part of the local state.
_KNOWN = "known"
_RANGE = "range"
_RANGE_CLASS = "class range"
_VALUE = "value"
#: Prefix of the tag of the iterator over a variable.
_OVER = "over "

_PURE_LOADS = frozenset({
    "LOAD_FAST", "LOAD_FAST_CHECK", "LOAD_FAST_BORROW", "LOAD_CONST", "LOAD_SMALL_INT", "LOAD_GLOBAL", "LOAD_DEREF",
    "LOAD_CLOSURE", "PUSH_NULL", "LOAD_METHOD",
})  # fmt: skip

#: For each code and instruction the variables whose iterators lie on the stack; None: not clean.
_clean: dict[types.CodeType, dict[int, tuple[str, ...] | None]] = {}


def _after(instruction: dis.Instruction, before: list[str], *, jump: bool) -> list[str]:
    """The stack after an instruction, by tags."""
    name = instruction.opname
    effect = dis.stack_effect(instruction.opcode, instruction.arg, jump=jump)
    stack = list(before)
    if name in _PURE_LOADS:
        tag = _KNOWN
        if instruction.argval == "range" and name == "LOAD_GLOBAL":
            tag = _RANGE_CLASS
        elif name.startswith("LOAD_FAST"):
            tag = _OVER + str(instruction.argval)
        # LOAD_GLOBAL may push a NULL below the value.
        return [*stack, *[_KNOWN] * (effect - 1), tag]
    if name == "GET_ITER":
        if stack[-1] != _RANGE and not stack[-1].startswith(_OVER):
            stack[-1] = _VALUE
        elif stack[-1].startswith(_OVER):
            stack[-1] = "iter " + stack[-1]
        return stack
    if name == "SWAP":
        # Puts a returned value below the exit method of a with statement.
        other = -(instruction.arg or 1)
        stack[-1], stack[other] = stack[other], stack[-1]
        return stack
    if name == "BEFORE_WITH":
        return [*stack[:-1], _KNOWN, _VALUE]
    if name == "PRECALL":
        # 3.11 counts the arguments here and the callable at CALL.
        return stack[: len(stack) + effect]
    if name == "CALL":
        kept = len(stack) + effect - 1
        return [*stack[:kept], _RANGE if _RANGE_CLASS in stack[kept:] else _VALUE]
    if effect >= 0:
        return [*stack, *[_VALUE] * effect] if effect or not stack else _unknown_top(name, stack)
    rest = stack[:effect]
    return (
        rest
        if name.startswith(("STORE_", "POP_", "DELETE_", "RETURN_", "FOR_ITER", "END_FOR"))
        else _unknown_top(name, rest)
    )


def _unknown_top(name: str, stack: list[str]) -> list[str]:
    """An instruction that replaced the top of the stack, as far as we know."""
    if name in {"NOP", "RESUME", "CACHE", "KW_NAMES", "EXTENDED_ARG", "MAKE_CELL", "COPY_FREE_VARS"}:
        return stack
    if name.startswith(("JUMP", "STORE_", "DELETE_")):
        return stack
    return [*stack[:-1], _VALUE] if stack else stack


def _analyse(code: types.CodeType) -> dict[int, tuple[str, ...] | None]:
    """For each instruction: whether all that lies below its operands is known, and on what condition."""
    instructions = list(dis.get_instructions(code))
    at = {instruction.offset: number for number, instruction in enumerate(instructions)}
    stacks: dict[int, list[str]] = {}
    work: list[tuple[int, list[str]]] = [(0, [])]
    while work:
        number, stack = work.pop()
        if number >= len(instructions):
            continue
        old = stacks.get(number)
        if old is not None:
            joined = [a if a == b else _VALUE for a, b in zip(old, stack, strict=False)]
            if joined == old:
                continue
            stack = joined
        stacks[number] = stack
        instruction = instructions[number]
        if instruction.opcode in dis.hasjrel or instruction.opcode in dis.hasjabs:
            work.append((at[instruction.argval], _after(instruction, stack, jump=True)))
        if instruction.opname not in {"RETURN_VALUE", "RETURN_CONST", "RERAISE", "RAISE_VARARGS"} and not (
            instruction.opname.startswith("JUMP_") and "_IF_" not in instruction.opname
        ):
            work.append((number + 1, _after(instruction, stack, jump=False)))
    found: dict[int, tuple[str, ...] | None] = {}
    for number, stack in stacks.items():
        instruction = instructions[number]
        after = _after(instruction, stack, jump=False)
        rest = after if instruction.opname.startswith(("STORE_", "DELETE_")) else after[:-1]
        over = tuple(tag[len("iter " + _OVER) :] for tag in rest if tag.startswith("iter "))
        found[instruction.offset] = None if _VALUE in rest else over
    # Instructions that only an exception reaches are not in the table: not clean.
    return found


def clean(code: types.CodeType, last: int) -> tuple[str, ...] | None:
    """What a frame of this code, in a call at instruction `last`, hides on its stack.

    None if something unknown, else the names of the variables over which it iterates.
    """
    table = _clean.get(code)
    if table is None:
        try:
            table = _analyse(code)
        except (IndexError, KeyError, ValueError):
            table = {}
        _clean[code] = table
    # The position may be that of a call's inline cache, behind the instruction.
    for offset in range(last, max(-2, last - 24), -2):
        if offset in table:
            return table[offset]
    return None


def _distinct(items: object) -> bool:
    """Whether each item of a list or tuple tells its position."""
    if not isinstance(items, tuple | list):
        return False
    return len({repr(_Walk(frozenset()).canonical(item)) for item in items}) == len(items)


# -- local variables ---------------------------------------------------------------


def _slots(item: object) -> Iterator[tuple[str, Any]]:
    for kind in type(item).__mro__:
        names = kind.__dict__.get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            value = getattr(item, name, _MISSING)
            if value is not _MISSING:
                yield name, value


class _Walk:
    """One fingerprint: objects are numbered in the order in which they are met, so circles end."""

    def __init__(self, left_out: frozenset[str]) -> None:
        self.left_out = left_out
        self.met: dict[int, int] = {}

    def canonical(self, item: Any) -> Hashable:
        if isinstance(item, _PLAIN):
            return (type(item).__name__, item)
        if isinstance(item, Atom):
            return ("model", type(item).__name__, getattr(item, "name", ""))
        if isinstance(item, _FIXED):
            return ("fixed", id(item))
        number = self.met.get(id(item))
        if number is not None:
            return ("again", number)
        self.met[id(item)] = len(self.met)
        return self._inside(item)

    def _inside(self, item: Any) -> Hashable:
        canonical = self.canonical
        kind = type(item).__name__
        if isinstance(item, tuple | list):
            return (kind, *[canonical(entry) for entry in item])
        if isinstance(item, dict):
            return (kind, *[(canonical(key), canonical(value)) for key, value in item.items()])
        if isinstance(item, set | frozenset):
            return (kind, *sorted(repr(canonical(entry)) for entry in item))
        if isinstance(item, types.MethodType):
            return (kind, id(item.__func__.__code__), canonical(item.__self__))
        if isinstance(item, types.FunctionType):
            return (kind, id(item.__code__), *[canonical(cell) for cell in item.__closure__ or ()])
        if isinstance(item, types.CellType):
            try:
                return (kind, canonical(item.cell_contents))
            except ValueError:
                return (kind,)
        if isinstance(item, BaseException):
            return (kind, *[canonical(entry) for entry in item.args])
        if hasattr(item, "__next__"):
            # An iterator in a variable: each is its own state, so nothing is merged.
            return (kind, id(item), object())
        state = [*getattr(item, "__dict__", {}).items(), *_slots(item)]
        return (kind, *[(name, canonical(value)) for name, value in state if name not in self.left_out])


def fingerprint(
    frame: types.FrameType | None, end: types.CodeType, own: frozenset[str], left_out: frozenset[str]
) -> Hashable:
    """The local state of the code that runs in `frame`, up to the frame that runs `end`.

    Args:
        frame: the innermost frame.
        end: where the actor's own code ends.
        own: files of the runtime: their frames count with their position only.
        left_out: names of local variables and attributes that only count.

    Returns:
        A value to compare, or None where the frames do not show the whole local state.
    """
    walk = _Walk(left_out)
    found: list[Hashable] = []
    while frame is not None and frame.f_code is not end:
        code = frame.f_code
        found.append((id(code), frame.f_lasti))
        if code.co_filename not in own:
            over = clean(code, frame.f_lasti)
            variables = frame.f_locals
            if over is None or not all(_distinct(variables.get(name)) for name in over):
                return None
            found.extend(
                (name, walk.canonical(value)) for name, value in variables.items() if name not in left_out
            )
        frame = frame.f_back
    return tuple(found)
