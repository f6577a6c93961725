"""The C kernel of the product search: states as ints on this side, as rows of 64-bit words on the other.

What is in it, and what it leaves to its caller, stands in ``csrc/explore.h``. States are known by their index
there, in the order in which they were found, and cross over only where somebody has to look at one.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

from balloonvq.errors import BalloonError
from balloonvq.ffi import CData, ffi, lib

__all__ = ["Event", "Fields", "Kernel", "State", "Step"]

#: States that C looks at before Python has a turn, which is when Ctrl-C is seen: some hundredths of a second.
BUDGET = 1 << 17

_WORD = (1 << 64) - 1

#: The words of a state, the lowest first: a list, or where the kernel has them.
State = Sequence[int] | CData

#: What a function returns that need not be called again.
_ENDS = frozenset({lib.EXPLORE_DONE, lib.EXPLORE_NONE})


class Fields(NamedTuple):
    """Where things are in a state: (first bit, bits) of each."""

    actors: Sequence[tuple[int, int]]
    clock: tuple[int, int]
    bits: int
    """Of all fields; on one processor the number of who runs comes above them."""


class Event(NamedTuple):
    """Something that was met in a layer, see ``enum explore_event_kind``."""

    kind: int
    actor: int
    state: int
    """Index."""


class Step(NamedTuple):
    """A step to a state."""

    actor: int
    """-1 for time's."""
    choice: int
    state: int
    """Index."""


class Kernel:
    """Tables and states of one search.

    Args:
        fields: of a state.
        idle: the clock's number when no timer runs.
        one_cpu: as in `balloonvq.explore.world.Bounds`.
        explore_time: the same.

    Raises:
        BalloonError: for too many actors, or when memory ends.
    """

    def __init__(self, fields: Fields, *, idle: int, one_cpu: bool, explore_time: bool) -> None:
        count = len(fields.actors)
        if count > lib.EXPLORE_ACTORS_MAX:
            raise BalloonError(
                f"the explorer cannot take {count} actors",
                why=f"it takes at most {lib.EXPLORE_ACTORS_MAX}",
                hint="explore a scenario with fewer actors",
            )
        #: Bits of a state.
        self.bits = fields.bits + (count.bit_length() if one_cpu else 0)
        self._words = -(-self.bits // 64)
        #: The first bit of each word of a state.
        self._shifts = tuple(range(0, 64 * self._words, 64))
        layout = ffi.new("struct explore_layout *")
        layout.words = self._words
        layout.actors = count
        layout.clock_shift, layout.clock_width = fields.clock
        layout.clock_idle = idle
        layout.top = fields.bits
        layout.one_cpu = one_cpu
        layout.explore_time = explore_time
        out = ffi.new("struct explore **")
        shifts, widths = zip(*fields.actors, strict=True) if count else ((), ())
        self.check(lib.explore_create(layout, shifts, widths, out))
        self.handle: CData = ffi.gc(out[0], lib.explore_destroy)
        #: Tables that are no actor's.
        self.time = count
        self.watch = count + 1

    def close(self) -> None:
        """Gives its memory back."""
        ffi.release(self.handle)

    @staticmethod
    def check(result: int) -> int:
        """What a function of the kernel returned, if it did not fail.

        Raises:
            BalloonError: when memory ends.
        """
        if result < 0:
            number = -result
            raise BalloonError(
                "the explorer cannot go on",
                why=f"{os.strerror(number)} ({errno.errorcode.get(number, number)})",
                hint="explore a scenario with fewer actors, or give up earlier: --max-states",
            )
        return result

    def split(self, number: int) -> State:
        """A state as words."""
        return [number >> shift & _WORD for shift in self._shifts]

    def joined(self, words: State) -> int:
        """A state as a number."""
        number: int = words[0]
        for place in range(1, self._words):
            number |= words[place] << 64 * place
        return number

    def walk(
        self,
        function: Callable[..., int],
        *arguments: object,
        begin: int,
        end: int,
        answer: Callable[[int, CData], object],
    ) -> tuple[int, int]:
        """Calls a function of the kernel that takes a cursor until it is at its end; (its result, transitions).

        Args:
            function: what.
            arguments: of it, before the cursor.
            begin: index of the first state.
            end: behind the last one.
            answer: told why it came back before its end, and the cursor; see ``enum explore_result``.
        """
        cursor = ffi.new("struct explore_cursor *")
        cursor.next, cursor.begin, cursor.end = begin, begin, end
        while True:
            result = self.check(function(self.handle, *arguments, cursor, BUDGET))
            if result in _ENDS:
                return result, int(cursor.transitions)
            answer(result, cursor)

    # -- tables ----------------------------------------------------------------

    def set_node(self, table: int, node: int, mask: int, flags: int = 0) -> None:
        """See ``explore_set_node``."""
        self.check(lib.explore_set_node(self.handle, table, node, self.split(mask), flags))

    def add(
        self,
        table: int,
        words: State,
        differences: Sequence[int] = (),
        *,
        open_: bool = False,
        owner: int = -1,
    ) -> None:
        """Adds an entry, see ``explore_add``."""
        changes = [difference >> shift & _WORD for difference in differences for shift in self._shifts]
        result = lib.explore_add(self.handle, table, words, changes, len(differences), open_, owner)
        if result < 0:
            self.check(result)

    def set_progress(self, actor: int, state: int, choice: int) -> None:
        """See ``explore_set_progress``."""
        self.check(lib.explore_set_progress(self.handle, actor, self.split(state), choice))

    def find_circular(self, fields: Sequence[tuple[int, int]]) -> None:
        """See ``explore_find_circular``; fields are (first bit, bits)."""
        shifts, widths = zip(*fields, strict=True) if fields else ((), ())
        self.check(lib.explore_find_circular(self.handle, shifts, widths, len(fields)))

    # -- states ----------------------------------------------------------------

    @property
    def count(self) -> int:
        """States, those taken out included: one more than the last index."""
        return int(lib.explore_count(self.handle))

    @property
    def excluded(self) -> int:
        """States that were taken out."""
        return int(lib.explore_excluded(self.handle))

    def words(self, index: int) -> State:
        """A state as words, until another one is added."""
        return lib.explore_state(self.handle, index)

    def state(self, index: int) -> int:
        """A state."""
        return self.joined(self.words(index))

    def begin(self, state: int) -> None:
        """Forgets all states but this one, the first."""
        lib.explore_clear(self.handle)
        self.check(lib.explore_add_state(self.handle, self.split(state)))

    def exclude(self, index: int, *, skip: bool) -> None:
        """See ``explore_exclude``."""
        lib.explore_exclude(self.handle, index, skip)

    @property
    def state_bytes(self) -> int:
        """Bytes of a state on disk."""
        return -(-self.bits // 8)

    def written(self, count: int) -> bytes:
        """The first states, `state_bytes` bytes each."""
        body = bytearray(count * self.state_bytes)
        self.check(
            lib.explore_export(self.handle, 0, count, ffi.from_buffer("uint8_t[]", body), self.state_bytes)
        )
        return bytes(body)

    def read(self, body: bytes, size: int) -> None:
        """Adds states of so many bytes each.

        Raises:
            ValueError: if one has too many bits, or is there twice.
        """
        result = lib.explore_import(self.handle, ffi.from_buffer(body), len(body) // size, size)
        if result in {-errno.EINVAL, -errno.EEXIST}:
            raise ValueError("a state that cannot be, or one twice")
        self.check(result)

    def widen(self, narrow: Kernel, count: int, gaps: Sequence[tuple[int, int]]) -> None:
        """Adds the first states of a kernel whose fields were narrower: (bit, bits to put there), from the top down."""
        self.check(lib.explore_widen(self.handle, narrow.handle, count, gaps, len(gaps)))

    def events(self) -> list[Event]:
        """What was met since this was last asked."""
        out = ffi.new("struct explore_event const **")
        count = lib.explore_events(self.handle, out)
        found = out[0]
        return [Event(found[i].kind, found[i].actor, found[i].state) for i in range(count)]

    # -- schedules and circles ---------------------------------------------------

    def schedule(self) -> list[Step]:
        """The schedule that was found."""
        preemptions = ffi.new("uint32_t *")
        count = lib.explore_schedule(self.handle, ffi.NULL, 0, preemptions)
        steps = ffi.new("struct explore_step[]", count)
        lib.explore_schedule(self.handle, steps, count, preemptions)
        return list(_steps(steps, count))

    def preemptions(self) -> int:
        """And how often it preempts."""
        preemptions = ffi.new("uint32_t *")
        lib.explore_schedule(self.handle, ffi.NULL, 0, preemptions)
        return int(preemptions[0])

    def components(self, states: Iterable[int] | None = None) -> list[list[int]]:
        """Strongly connected components of the graph on these states, or on all; see ``explore_components``."""
        chosen = ffi.NULL if states is None else ffi.new("uint32_t[]", list(states))
        number = 0 if states is None else len(chosen)
        self.walk(lib.explore_components, chosen, number, begin=0, end=0, answer=lambda *_: None)
        out = ffi.new("uint32_t const **")
        return [
            ffi.unpack(out[0], size)
            for number in range(lib.explore_component_count(self.handle))
            if (size := lib.explore_component(self.handle, number, out))
        ]

    def fairness(
        self, component: Sequence[int], answer: Callable[[int, CData], object]
    ) -> tuple[list[int], int]:
        """(of each state of a component who can go on, who moves inside), one bit an actor, see ``explore_fairness``."""
        states = ffi.new("uint32_t[]", component)
        able = ffi.new("uint64_t[]", len(component))
        moved = ffi.new("uint64_t *")
        self.walk(lib.explore_fairness, states, able, moved, begin=0, end=len(component), answer=answer)
        return ffi.unpack(able, len(component)), int(moved[0])

    def circular_steps(self, index: int) -> list[Step]:
        """The steps of the graph from a state."""
        out = ffi.new("struct explore_step const **")
        count = lib.explore_circular_steps(self.handle, index, out)
        return list(_steps(out[0], count))


def _steps(found: CData, count: int) -> Iterator[Step]:
    for number in range(count):
        step = found[number]
        yield Step(step.actor, step.choice, step.state)
