"""What a frame that stands in a call keeps to itself, found in its bytecode.

Two things are looked for at each instruction.

The evaluation stack. Python does not show it, and in ``a.value > b.value`` the first
value lies only there while the second is being read. The bytecode is therefore interpreted
abstractly, to say whether what lies below the call on the stack is known anyway:
constants and variables, the exit method of a with statement, the iterator of a loop over a variable that
holds a list or tuple of items that differ from each other, or over a ``range`` of constants, variables, attributes
and their lengths, if the loop's variables are local ones: these tell its position. What was made from a variable is no
longer known once the variable is assigned to. Anything else, an opcode that this file does not know included, means
no. What is assumed: attributes and lengths that a ``range`` is made from, and a list that a loop goes over, do not
change inside the loop; such attributes observe nothing; and what a with statement enters keeps nothing that it has
observed, but for what the variable behind ``as`` shows.

What was called shows its arguments in its own frame. What is written in C does not, and may gather values while it
calls back: a frame that stands in a built-in function, or in an instruction that goes through an iterable, is not known.

The variables. One that is not read again before it is assigned to says nothing about what the code will do
(what compilers call a dead variable), unless something on the stack was made from it.
"""

from __future__ import annotations

import builtins
import dis
import functools
import types
from enum import Enum
from typing import NamedTuple

__all__ = ["Hidden", "hidden", "instruction_at"]


class Hidden(NamedTuple):
    """What a call at an instruction hides."""

    over: tuple[str, ...]
    """The variables over which loops around it iterate; the items of each must differ."""
    told_by: frozenset[str]
    """The variables that tell what is on the stack."""
    needed: frozenset[str]
    """The local variables that may be read before they are assigned to."""


class _Kind(Enum):
    """What may lie on the evaluation stack."""

    KNOWN = "constant, variable, method of one, exit method"
    PLAIN = "attribute that is not shared, or what a function made of such"
    FUNCTION = "one that makes plain values of plain values"
    BUILTIN = "any other function or class that may keep what it works on to itself"
    RANGE_CLASS = "the class range"
    RANGE = "a range"
    ITERATOR = "of a loop"
    VALUE = "anything"


class _Item(NamedTuple):
    """What lies at one place of the stack."""

    kind: _Kind
    origin: int = -1
    """Offset of the instruction that put it there."""
    names: frozenset[str] = frozenset()
    """The variables that it was made from."""
    variable: str = ""
    """The variable that it is, or iterates over."""


_Stack = tuple[_Item, ...]

#: Of 3.11: what precedes a CALL, and performs it where the interpreter has specialised it. Nothing elsewhere.
_PRECALL = dis.opmap.get("PRECALL", -1)

_PURE_LOADS = frozenset({
    "LOAD_FAST", "LOAD_FAST_CHECK", "LOAD_FAST_BORROW", "LOAD_CONST", "LOAD_SMALL_INT", "LOAD_GLOBAL", "LOAD_DEREF",
    "LOAD_CLOSURE", "PUSH_NULL", "LOAD_METHOD",
})  # fmt: skip

_NO_EFFECT = frozenset({
    "NOP", "RESUME", "CACHE", "KW_NAMES", "EXTENDED_ARG", "MAKE_CELL", "COPY_FREE_VARS",
})  # fmt: skip

#: What takes off the stack and leaves the rest as it is.
_TAKING = ("STORE_", "POP_", "DELETE_", "RETURN_", "FOR_ITER", "END_FOR", "JUMP_IF_")

_ENDS = frozenset({"RETURN_VALUE", "RETURN_CONST", "RERAISE", "RAISE_VARARGS"})

#: What is left known of a call by what it was made from.
_TOLD = frozenset(
    {_Kind.KNOWN, _Kind.FUNCTION, _Kind.BUILTIN, _Kind.RANGE_CLASS, _Kind.RANGE, _Kind.ITERATOR}
)

#: What a frame can stand in so that the frames of what it called show the rest; not what gathers values in C.
_SHOWING = frozenset({
    "CALL", "CALL_KW", "LOAD_ATTR", "LOAD_METHOD", "STORE_ATTR", "DELETE_ATTR", "BEFORE_WITH",
})  # fmt: skip

#: What may keep values to itself while it calls back.
_KEEPING = frozenset({_Kind.FUNCTION, _Kind.BUILTIN, _Kind.RANGE_CLASS})

#: Functions that only look at their arguments.
_FUNCTIONS = frozenset({"len", "min", "max", "abs", "int"})

#: The attribute of shared words, which is not plain.
_SHARED = "value"

#: Functions that look at the variables of their caller.
_LOOKING = frozenset({"locals", "vars", "dir", "eval", "exec", "super"})


def instruction_at(code: types.CodeType, last: int) -> int:
    """The offset of the instruction that an interpreter that says `last` is in."""
    opcodes = code.co_code
    while last > 0 and not opcodes[last]:
        last -= 2  # an inline cache lies behind its instruction
    if last >= 0 and opcodes[last] == _PRECALL:
        last += 2
        while not opcodes[last]:
            last += 2
    return last


def hidden(code: types.CodeType, offset: int) -> Hidden | None:
    """What a call at the instruction at an offset hides; None if something that nothing tells.

    That is also the answer for instructions that only an exception reaches, and for code that is not understood.
    """
    analysis = _analysis(code)
    return None if analysis is None else analysis.hidden(offset)


@functools.cache
def _analysis(code: types.CodeType) -> _Analysis | None:
    try:
        return _Analysis(code)
    except (IndexError, KeyError, ValueError):
        return None


def _names(items: _Stack) -> frozenset[str]:
    return frozenset().union(*(item.names for item in items))


def _value(items: _Stack) -> _Item:
    """What was made from these, and may be anything."""
    return _Item(_Kind.VALUE, names=_names(items))


class _Analysis:
    """Instructions by their numbers, and what goes on around them."""

    def __init__(self, code: types.CodeType) -> None:
        listing = dis.Bytecode(code)
        self._instructions = list(listing)
        self._at = {instruction.offset: number for number, instruction in enumerate(self._instructions)}
        self._following = [self._successors(number) for number in range(len(self._instructions))]
        self._handlers = [
            (entry.start, entry.end, self._at[entry.target])
            for entry in listing.exception_entries  # type: ignore[attr-defined]
        ]
        self._bits = {name: 1 << number for number, name in enumerate(code.co_varnames)}
        self._looks = not _LOOKING.isdisjoint(code.co_names)
        self._found = self._stacks()
        self._read = self._read_later()

    def hidden(self, offset: int) -> Hidden | None:
        """See `hidden`."""
        number = self._at.get(offset, -1)
        if number not in self._found:
            return None
        before, instruction = self._found[number], self._instructions[number]
        after = self._after(number, before, jump=False)
        stores = instruction.opname.startswith(("STORE_", "DELETE_"))
        rest = after if stores else after[:-1]
        called = before[len(rest) :]
        if not self._shows(number) or not _KEEPING.isdisjoint(item.kind for item in called):
            return None
        if not all(item.kind in _TOLD for item in rest):
            return None
        over = tuple(item.variable for item in rest if item.kind is _Kind.ITERATOR and item.variable)
        needed = frozenset(
            name for name, bit in self._bits.items() if self._looks or self._read[number] & bit
        )
        # What was called may be an object that has its arguments, or keep them in C.
        return Hidden(over, _names(before) | _names(rest), needed)

    def _shows(self, number: int) -> bool:
        """Whether what an instruction has called shows what it works on, see `_SHOWING`."""
        instruction = self._instructions[number]
        if instruction.opname == "CALL_FUNCTION_EX":
            # It goes through the positional arguments itself, which matters if something that was called makes them.
            return self._instructions[number - 1].opname != "CALL"
        return instruction.opname in _SHOWING

    def _successors(self, number: int) -> list[tuple[int, bool]]:
        """What may come after an instruction, unless it raises: (number, whether it is jumped to)."""
        instruction = self._instructions[number]
        found = []
        if instruction.opcode in dis.hasjrel or instruction.opcode in dis.hasjabs:
            found.append((self._at[instruction.argval], True))
        always = instruction.opname.startswith("JUMP_") and "_IF_" not in instruction.opname
        if not always and instruction.opname not in _ENDS and number + 1 < len(self._instructions):
            found.append((number + 1, False))
        return found

    # -- the stack -----------------------------------------------------------

    def _stacks(self) -> dict[int, _Stack]:
        """What lies on the stack before each instruction that is reached without an exception."""
        stacks: dict[int, _Stack] = {}
        work: list[tuple[int, _Stack]] = [(0, ())]
        while work:
            number, stack = work.pop()
            old = stacks.get(number)
            if old is not None:
                stack = tuple(a if a == b else _value((a, b)) for a, b in zip(old, stack, strict=False))
                if stack == old:
                    continue
            stacks[number] = stack
            work += [
                (following, self._after(number, stack, jump=jump))
                for following, jump in self._following[number]
            ]
        return stacks

    def _after(self, number: int, stack: _Stack, *, jump: bool) -> _Stack:
        """The stack after an instruction."""
        instruction = self._instructions[number]
        name, offset = instruction.opname, instruction.offset
        effect = dis.stack_effect(instruction.opcode, instruction.arg, jump=jump)
        if name in _PURE_LOADS:
            return (*stack, *self._loaded(instruction, effect))
        if name == "SWAP":
            # Puts a returned value below the exit method of a with statement.
            items = list(stack)
            other = -(instruction.arg or 1)
            items[-1], items[other] = items[other], items[-1]
            return tuple(items)
        if name == "COPY":
            return (*stack, _value(stack[-(instruction.arg or 1) :][:1]))
        if name.startswith("BUILD_"):
            kept = len(stack) + effect - 1
            return (*stack[:kept], _value(stack[kept:]))
        if name == "BEFORE_WITH":
            return (*stack[:-1], _Item(_Kind.KNOWN, offset, stack[-1].names), _value(stack[-1:]))
        if name == "GET_ITER":
            return (*stack[:-1], self._iterator(number, stack[-1]))
        if name == "FOR_ITER" and not jump:
            return (*stack, _value(stack[-1:]))
        if name == "PRECALL":
            # 3.11 counts the arguments here and the callable at CALL.
            kept = len(stack) + effect - 1
            return (*stack[:kept], self._with_arguments(stack[kept:]))
        if name == "CALL":
            kept = len(stack) + effect - 1
            return (*stack[:kept], self._called(stack[kept:], offset))
        if name == "LOAD_ATTR" and effect == 0 and stack[-1].kind in {_Kind.KNOWN, _Kind.PLAIN}:
            plain = instruction.argval != _SHARED
            return (*stack[:-1], _Item(_Kind.PLAIN if plain else _Kind.VALUE, -1, stack[-1].names))
        if name in {"STORE_FAST", "DELETE_FAST", "STORE_DEREF", "DELETE_DEREF"}:
            return self._assigned(number, stack[: len(stack) + effect])
        if "STORE_FAST" in name:
            raise ValueError(f"{name} assigns to more than one variable")
        return self._taken(name, stack, effect)

    @staticmethod
    def _loaded(instruction: dis.Instruction, count: int) -> _Stack:
        """What is pushed: LOAD_GLOBAL may push a NULL below the value."""
        name, pushed = instruction.opname, _Item(_Kind.KNOWN, instruction.offset)
        top = pushed
        if name.startswith("LOAD_FAST"):
            top = pushed._replace(names=frozenset({instruction.argval}), variable=instruction.argval)
        elif name == "LOAD_DEREF":
            top = pushed._replace(names=frozenset({instruction.argval}))
        elif name == "LOAD_GLOBAL" and instruction.argval == "range":
            top = pushed._replace(kind=_Kind.RANGE_CLASS)
        elif name == "LOAD_GLOBAL" and instruction.argval in _FUNCTIONS:
            top = pushed._replace(kind=_Kind.FUNCTION)
        elif name == "LOAD_GLOBAL" and hasattr(builtins, instruction.argval):
            top = pushed._replace(kind=_Kind.BUILTIN)
        return (*(pushed,) * (count - 1), top)

    @staticmethod
    def _with_arguments(items: _Stack) -> _Item:
        """Something callable that was given arguments."""
        if all(item.kind is not _Kind.VALUE for item in items):
            return items[0]._replace(names=_names(items))
        kind = _Kind.BUILTIN if items[0].kind in _KEEPING else _Kind.VALUE
        return _Item(kind, names=_names(items))

    @staticmethod
    def _called(items: _Stack, offset: int) -> _Item:
        """What a call returns: NULL, callable and arguments, the arguments already part of the callable in 3.11."""
        kinds = {item.kind for item in items}
        if _Kind.VALUE not in kinds and _Kind.RANGE_CLASS in kinds:
            return _Item(_Kind.RANGE, offset, _names(items))
        if _Kind.VALUE not in kinds and _Kind.FUNCTION in kinds:
            return _Item(_Kind.PLAIN, -1, _names(items))
        return _value(items)

    @staticmethod
    def _taken(name: str, stack: _Stack, effect: int) -> _Stack:
        """The stack after any other instruction."""
        if effect < 0 and name.startswith(_TAKING):
            return stack[:effect]
        if not stack or (effect == 0 and (name in _NO_EFFECT or name.startswith("JUMP"))):
            return stack
        # As far as we know it has replaced the top, which was made from all that it took, and what it pushed.
        kept = len(stack) + min(effect, 0) - 1
        return (*stack[:kept], *(_value(stack[kept:]),) * (max(effect, 0) + 1))

    def _iterator(self, number: int, item: _Item) -> _Item:
        """What iterates over an item."""
        variables = self._loop_variables(number + 1)
        iterable = item.kind is _Kind.RANGE or (item.kind is _Kind.KNOWN and item.variable)
        if not variables or not iterable or not variables.isdisjoint(item.names):
            return _value((item,))
        return _Item(_Kind.ITERATOR, self._instructions[number].offset, item.names | variables, item.variable)

    def _loop_variables(self, number: int) -> frozenset[str]:
        """The variables that a loop assigns to; none unless all are plain ones."""
        instructions = self._instructions
        while instructions[number].opname == "EXTENDED_ARG":
            number += 1
        if instructions[number].opname != "FOR_ITER":
            return frozenset()
        number, count = number + 1, 1
        if instructions[number].opname == "UNPACK_SEQUENCE":
            number, count = number + 1, instructions[number].arg or 0
        stores = instructions[number : number + count]
        if any(store.opname != "STORE_FAST" for store in stores):
            return frozenset()
        return frozenset(store.argval for store in stores)

    def _assigned(self, number: int, stack: _Stack) -> _Stack:
        """The stack when a variable has changed: what was made from it can no longer be told."""
        name = self._instructions[number].argval
        if self._instructions[number - 1].opname == "BEFORE_WITH":
            # What has been entered shows what its exit method has.
            return (*stack[:-1], stack[-1]._replace(names=stack[-1].names | {name}))
        above = self._above_iterator(number)
        own = -1 if above is None else len(stack) - 1 - above
        return tuple(
            _value((item,)) if name in item.names and at != own else item for at, item in enumerate(stack)
        )

    def _above_iterator(self, number: int) -> int | None:
        """How many values lie above its iterator after a loop's assignment to one of its variables; None for others."""
        instructions = self._instructions
        first = number
        while instructions[first - 1].opname == "STORE_FAST":
            first -= 1
        before = instructions[first - 1]
        if before.opname == "FOR_ITER":
            return 0 if first == number else None
        if before.opname == "UNPACK_SEQUENCE" and instructions[first - 2].opname == "FOR_ITER":
            left = (before.arg or 0) - 1 - (number - first)
            return left if left >= 0 else None
        return None

    # -- variables -----------------------------------------------------------

    def _read_later(self) -> list[int]:
        """The variables that may be read before they are assigned to, after each instruction, by their bits."""
        count = len(self._instructions)
        following = [[number for number, _ in entry] for entry in self._following]
        for begin, end, handler in self._handlers:
            for number, instruction in enumerate(self._instructions):
                if begin <= instruction.offset < end:
                    following[number].append(handler)
        reads, keeps = [0] * count, [-1] * count
        for number, instruction in enumerate(self._instructions):
            if "_FAST" not in instruction.opname:
                continue
            if instruction.opname == "STORE_FAST":
                keeps[number] = ~self._bits.get(instruction.argval, 0)
            else:
                names = instruction.argval if isinstance(instruction.argval, tuple) else (instruction.argval,)
                for name in names:
                    reads[number] |= self._bits.get(name, 0)
        before, after = [0] * count, [0] * count
        changed = True
        while changed:
            changed = False
            for number in reversed(range(count)):
                found = 0
                for other in following[number]:
                    found |= before[other]
                after[number] = found
                found = found & keeps[number] | reads[number]
                if found != before[number]:
                    before[number] = found
                    changed = True
        return after
