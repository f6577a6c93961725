"""A guest and a host small enough to explore, under the shipped designs unchanged.

What a design calls is what it calls on the live machine: `Balloon`, and below it the allocator of
`balloonvq.guest.kernel` with its own lines. Here only what lies below them is another thing:

============  ======================================================================
pages         places, the LIFO balloon list and the host's set: one object, so that a section
              under pages_lock is one step, and who breaks ownership is told at once
PFN arrays    an object each; the host reads it when it gets to it
queues        one request; popped, used and taken in separate steps
config        `actual` is a word, the target a constant
============  ======================================================================

Left out: kicks (the host may look at any time), the pages of other kernel users, killing anybody but the caller.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dis import get_instructions
from functools import cache
from inspect import getattr_static
from types import CodeType, FunctionType, TracebackType
from typing import Any, NamedTuple, cast

from balloonvq.driver import balloon as driver_balloon
from balloonvq.driver.balloon import OUT_OF_PUFF_NS, PFNS_MAX, Balloon, PageList
from balloonvq.driver.designs import Design
from balloonvq.errors import KernelBug, LostData
from balloonvq.explore.local_state import Atom
from balloonvq.explore.world import Nondeterminism, SharedObject, Unattended
from balloonvq.guest.kernel import AllocationStuck, Kernel, OomWait
from balloonvq.guest.pages import PFN_BYTES, Batch, PageCounts, PfnArray, Place
from balloonvq.guest.stack import DEPTH_AT_RECLAIM_BYTES as DEPTH_BYTES
from balloonvq.guest.stack import KernelStacks
from balloonvq.guest.tasks import TaskKilled, UserTask
from balloonvq.queue import DriverQueue
from balloonvq.runtime import Mutex
from balloonvq.runtime.controlled import BELOW, ControlledRuntime, place_of

__all__ = ["STATISTICS", "Guest", "Page", "available", "counts"]

BELOW.update((__file__, driver_balloon.__file__))

#: Words and attributes that only count.
STATISTICS = frozenset({
    "out_of_puff", "oom_events", "oom_kills", "alloc_stalls", "minor faults", "lost_pages", "reclaimers",
    "task ids", "in oom notifiers", "in shrinkers", "peak_bytes",
})  # fmt: skip

#: The queues and the interrupts that they raise.
INFLATE, DEFLATE = ("inflate queue", 1), ("deflate queue", 2)

#: Of the driver, and in reach of the OOM notifier or soon to be.
_DRIVERS = frozenset({Place.PRIVATE, Place.LISTED, Place.IN_FLIGHT})


class PagesValue(NamedTuple):
    """All pages at one moment."""

    places: tuple[Place, ...]
    listed: tuple[int, ...]
    """The balloon list, from its head."""
    host: frozenset[int]
    """Pages that the host has."""
    oom: tuple[bool, bool, bool] | None
    """Of a graded OOM call: the driver had pages all the time, the call has come to a lock, another task has
    released some since then."""
    lost: frozenset[int] = frozenset()
    """Pages that the host has discarded since a program wrote to them."""

    def __repr__(self) -> str:
        return ", ".join(
            f"{pfn} {place.name.lower()}{' (host)' if pfn in self.host else ''}"
            for pfn, place in enumerate(self.places)
        )


class Page(Batch):
    """A batch of one page, made of plain values."""

    __slots__ = ()

    def __init__(self, *pfns: int) -> None:
        super().__init__(pfns, len(pfns))

    def __iter__(self) -> Iterator[int]:
        return iter(self.pfns)


# -- pages: pure functions ---------------------------------------------------------


def available(value: PagesValue) -> bool:
    """Whether the driver has pages, those that compaction isolated left out."""
    return not _DRIVERS.isdisjoint(value[0])


def counts(value: PagesValue) -> tuple[int, int, int]:
    """(listed, isolated, the host's)."""
    places, host = value[0], value[2]
    return places.count(Place.LISTED), places.count(Place.ISOLATED), len(host)


def _seen(value: PagesValue) -> PagesValue:
    """After every step: what an OOM call in progress has seen."""
    oom = value[3]
    if oom is None:
        return value
    always, waits, released = oom
    return value._replace(oom=(always and available(value), waits, released))


def _require(value: PagesValue, pfn: int, place: Place, doing: str) -> None:
    if value[0][pfn] is not place:
        raise KernelBug(
            f"pages that are not {place.name} were {doing}", why=f"page {pfn} is {value[0][pfn].name}"
        )


def _put(value: PagesValue, pfn: int, to: Place) -> PagesValue:
    places, listed, host, oom, lost = value
    return PagesValue((*places[:pfn], to, *places[pfn + 1 :]), listed, host, oom, lost)


def _take(value: PagesValue, to: str) -> tuple[PagesValue, int | None]:
    if Place.FREE not in value[0]:
        return value, None
    pfn = value[0].index(Place.FREE)
    return _seen(_put(value, pfn, Place[to])), pfn


def _free(value: PagesValue, pfn: int, place: str) -> tuple[PagesValue, None]:
    _require(value, pfn, Place[place], "freed")
    if pfn in value[2]:
        raise KernelBug("a page was freed before the host gave it back", why=f"page {pfn}")
    return _free_any(value, pfn, place)


def _free_any(value: PagesValue, pfn: int, place: str) -> tuple[PagesValue, None]:
    _require(value, pfn, Place[place], "freed")
    places, listed, host, oom, lost = _put(value, pfn, Place.FREE)
    if oom is not None and place == Place.IN_FLIGHT.name:
        oom = (oom[0], oom[1], oom[1])
    return _seen(PagesValue(places, listed, host, oom, lost)), None


def _insert(value: PagesValue, pfn: int) -> tuple[PagesValue, None]:
    _require(value, pfn, Place.PRIVATE, "listed")
    places, listed, host, oom, lost = _put(value, pfn, Place.LISTED)
    return _seen(PagesValue(places, (pfn, *listed), host, oom, lost)), None


def _unlink(value: PagesValue, locked: int, to: Place) -> tuple[PagesValue, int | None]:
    """Takes the first page off the list that nobody has locked; the first `locked` are."""
    if locked >= len(value[1]):
        return value, None
    pfn = value[1][locked]
    places, listed, host, oom, lost = _put(value, pfn, to)
    return _seen(PagesValue(places, (*listed[:locked], *listed[locked + 1 :]), host, oom, lost)), pfn


def _dequeue(value: PagesValue, locked: int = 0) -> tuple[PagesValue, int | None]:
    if not value[1] and Place.ISOLATED not in value[0]:
        raise KernelBug(
            "balloon_page_dequeue: BUG()",
            why="the balloon list is empty, no page is isolated, and the driver wanted one",
        )
    return _unlink(value, locked, Place.IN_FLIGHT)


def _isolate(value: PagesValue, locked: int = 0) -> tuple[PagesValue, int | None]:
    return _unlink(value, locked, Place.ISOLATED)


def _putback(value: PagesValue, pfn: int) -> tuple[PagesValue, None]:
    _require(value, pfn, Place.ISOLATED, "put back")
    places, listed, host, oom, lost = _put(value, pfn, Place.LISTED)
    return _seen(PagesValue(places, (pfn, *listed), host, oom, lost)), None


def _replace(value: PagesValue, new: int, old: int) -> tuple[PagesValue, None]:
    _require(value, old, Place.ISOLATED, "replaced")
    return _insert(_put(value, old, Place.IN_FLIGHT), new)


def _inflate(value: PagesValue, pfns: tuple[int, ...]) -> tuple[PagesValue, None]:
    for pfn in pfns:
        if value[0][pfn] in {Place.FREE, Place.USER}:
            raise KernelBug(
                "lost data: the host discards a page that is not the balloon's",
                why=f"page {pfn} is {value[0][pfn].name}",
            )
        if pfn in value[2]:
            raise KernelBug("a page was inflated that the host has already", why=f"page {pfn}")
    return value._replace(host=value[2] | {*pfns}), None


def _deflate(value: PagesValue, pfns: tuple[int, ...]) -> tuple[PagesValue, None]:
    for pfn in pfns:
        if pfn not in value[2]:
            raise KernelBug("a page was deflated that the host has not got yet", why=f"page {pfn}")
    return _deflate_any(value, pfns)


def _inflate_any(value: PagesValue, pfns: tuple[int, ...]) -> tuple[PagesValue, None]:
    discarded = {pfn for pfn in pfns if value[0][pfn] is Place.USER}
    return value._replace(host=value[2] | {*pfns}, lost=value[4] | discarded), None


def _deflate_any(value: PagesValue, pfns: tuple[int, ...]) -> tuple[PagesValue, None]:
    return value._replace(host=value[2] - {*pfns}), None


def _write(value: PagesValue, pfn: int) -> tuple[PagesValue, None]:
    _require(value, pfn, Place.USER, "written to by a program")
    return value._replace(lost=value[4] - {pfn}), None


def _check(value: PagesValue, pfn: int) -> tuple[PagesValue, None]:
    if pfn in value[4]:
        raise LostData("lost data: a program's page is not what it wrote", why=f"page {pfn}")
    return value, None


def _oom_begins(value: PagesValue) -> tuple[PagesValue, None]:
    return value._replace(oom=(available(value), False, False)), None


def _oom_waits(value: PagesValue) -> tuple[PagesValue, None]:
    oom = value[3]
    return value if oom is None else value._replace(oom=(oom[0], True, oom[2])), None


def _oom_ends(value: PagesValue) -> tuple[PagesValue, str]:
    """How an OOM call that freed nothing could have done better; empty if it could not."""
    places, oom = value[0], value[3]
    assert oom is not None
    grade = ""
    if oom[2]:
        grade = "freed by another"
    elif oom[0]:
        grade = "listed" if Place.LISTED in places else "in hand" if Place.PRIVATE in places else "in flight"
    elif Place.ISOLATED in places:
        grade = "isolated"
    return value._replace(oom=None), grade


@cache
def _pages(start: PagesValue) -> SharedObject:
    """All pages, as they are at the start."""
    return SharedObject(
        "pages",
        start,
        {
            "count": lambda value: (value, tuple(map(value.places.count, Place))),
            "take": _take,
            "free": _free,
            "free_any": _free_any,
            "insert": _insert,
            "dequeue": _dequeue,
            "isolate": _isolate,
            "putback": _putback,
            "replace": _replace,
            "inflate": _inflate,
            "inflate_any": _inflate_any,
            "deflate": _deflate,
            "deflate_any": _deflate_any,
            "write": _write,
            "check": _check,
            "oom_begins": _oom_begins,
            "oom_waits": _oom_waits,
            "oom_ends": _oom_ends,
        },
        reads=frozenset({"count", "check"}),
        stands_for="pages",
    )


@cache
def _page_locks(times: int) -> SharedObject:
    """How often others may still have locked pages."""
    return SharedObject("page locks of others", times, {"taken": lambda left: (max(0, left - 1), left > 0)})


class Pages(Atom):
    """What `PageAllocator` is on the live machine: each method one step."""

    def __init__(
        self, runtime: ControlledRuntime, free: int, listed: int, *, lenient: bool, locked: int
    ) -> None:
        places = (Place.LISTED,) * listed + (Place.FREE,) * free
        start = PagesValue(places, tuple(range(listed)), frozenset(range(listed)), None)
        self.name = "pages"
        self._runtime = runtime
        self._count = free + listed
        self._free = "free_any" if lenient else "free"
        #: How often somebody else may still have locked pages when the list is gone through.
        self._locked = runtime.shared_object(_page_locks(locked)) if locked else None
        self.object = runtime.shared_object(_pages(start))

    def take(self, count: int, to: Place) -> Page | None:
        del count
        return self._page("take", to.name)

    def free(self, batch: Batch, place: Place) -> None:
        for pfn in batch:
            self.object.apply(self._free, pfn, place.name)

    def list_insert(self, batch: Batch) -> None:
        for pfn in batch:
            self.object.apply("insert", pfn)

    def list_dequeue(self, count: int) -> Page | None:
        del count
        locked = self._trylocks_failed()
        return self._page("dequeue", *locked)

    def isolate(self) -> Page | None:
        locked = self._trylocks_failed()
        return self._page("isolate", *locked)

    def _trylocks_failed(self) -> tuple[int, ...]:
        """How many pages at the head of the list others have locked: none (), one or all."""
        if self._locked is None:
            return ()
        locked = self._runtime.choose("pages that others have locked: 0, 1, all", 3)
        if not locked or not self._locked.apply("taken"):
            return ()
        return (1,) if locked == 1 else (self._count,)

    def putback(self, page: Batch) -> None:
        for pfn in page:
            self.object.apply("putback", pfn)

    def write(self, page: Batch) -> None:
        """A program writes to its page."""
        for pfn in page:
            self.object.apply("write", pfn)

    def check(self, page: Batch) -> None:
        """A program checks what it wrote.

        Raises:
            LostData: if the host has discarded it since.
        """
        for pfn in page:
            self.object.apply("check", pfn)

    def replace_isolated(self, new: Batch, old: Batch) -> None:
        for pair in zip(new, old, strict=True):
            self.object.apply("replace", *pair)

    def adjust_managed(self, pages: int) -> None:
        """Nobody looks."""

    def counts(self) -> PageCounts:
        """How many pages are where, at one moment."""
        numbers: tuple[int, int, int, int, int, int, int] = self.object.apply("count")
        return PageCounts(*numbers, 0, 0)

    def _page(self, operation: str, *arguments: Any) -> Page | None:
        pfn = self.object.apply(operation, *arguments)
        return None if pfn is None else Page(pfn)


# -- what requests are made of -----------------------------------------------------


class ArrayValue(NamedTuple):
    """A PFN array in memory. To clear it is to start counting again: what was written stays until it is overwritten."""

    filled: int
    """PFNs that its user has put in."""
    memory: tuple[int, ...]
    """All that was ever written there."""

    def __repr__(self) -> str:
        return repr(self.memory[: self.filled])


def _append(value: ArrayValue, pfns: tuple[int, ...]) -> tuple[ArrayValue, None]:
    end = value[0] + len(pfns)
    return ArrayValue(end, (*value[1][: value[0]], *pfns, *value[1][end:])), None


@cache
def _array(name: str) -> SharedObject:
    """An empty array."""
    return SharedObject(
        name,
        ArrayValue(0, ()),
        {
            "clear": lambda value: (ArrayValue(0, value[1]), None),
            "append": _append,
            "read": lambda value: (value, value[1][: value[0]]),
            "look": lambda value, count: (value, value[1][:count]),
        },
        reads=frozenset({"read", "look"}),
        stands_for="pfn array",
    )


class Array(Atom):
    """A `PfnArray`: an object, since the host reads what is there when it looks."""

    def __init__(self, runtime: ControlledRuntime, name: str) -> None:
        self.name = name
        self.object = runtime.shared_object(_array(name))

    @property
    def address(self) -> Array:
        return self

    @property
    def size_bytes(self) -> tuple[int, ...]:
        """Not a size but the contents, for the queue to hold against what the host reads."""
        return self.read()

    def clear(self) -> None:
        self.object.apply("clear")

    def append(self, pages: Batch) -> None:
        self.object.apply("append", tuple(pages))

    def read(self) -> tuple[int, ...]:
        return cast("tuple[int, ...]", self.object.apply("read"))

    def look(self, count: int) -> tuple[int, ...]:
        """What the host reads, who has a descriptor of that length."""
        return cast("tuple[int, ...]", self.object.apply("look", count))

    def __len__(self) -> int:
        return len(self.read())


class _Request(NamedTuple):
    state: str
    """idle, added, popped, used, reset"""
    actor: int
    """Who added it."""
    array: str
    pfns: tuple[int, ...]
    """What was in the array then."""

    def __repr__(self) -> str:
        return f"{self.state} {list(self.pfns)}" if self.pfns else self.state


_IDLE = _Request("idle", -1, "", ())


def _add(value: _Request, actor: int, array: str, pfns: tuple[int, ...]) -> tuple[_Request, None]:
    if value[0] == "reset":
        raise KernelBug("the host was told something after the reset")
    if value[0] != "idle":
        raise KernelBug("a second request on a queue", why=f"one of {value[2]} is {value[0]}")
    return _Request("added", actor, array, pfns), None


def _pop(value: _Request) -> tuple[_Request, tuple[str, tuple[int, ...]]] | None:
    return (value._replace(state="popped"), value[2:]) if value[0] == "added" else None


def _use(value: _Request) -> tuple[_Request, None]:
    return value._replace(state="used"), None


def _get_buf(value: _Request, actor: int) -> tuple[_Request, bool]:
    if value[0] != "used":
        return value, False
    if value[1] != actor:
        raise KernelBug("a task took the acknowledgement of another one")
    return _IDLE, True


def _reset(value: _Request) -> tuple[_Request, None]:
    if value[0] != "idle":
        raise KernelBug("the device was reset with a request in flight")
    return _IDLE._replace(state="reset"), None


@cache
def _queue(name: str) -> SharedObject:
    """An idle queue."""
    return SharedObject(
        name,
        _IDLE,
        {"add": _add, "pop": _pop, "use": _use, "get_buf": _get_buf, "reset": _reset},
        personal=frozenset({"add", "get_buf"}),
        idle=frozenset({"pop"}),
        stands_for="virtqueue",
    )


class Queue(Atom):
    """A virtqueue with room for the one request that there may be."""

    def __init__(self, runtime: ControlledRuntime, name: str, call_fd: int) -> None:
        self.name = name
        self.call_fd = call_fd
        self.object = runtime.shared_object(_queue(name))

    def submit(self, array: Array, pfns: tuple[int, ...]) -> None:
        """From now on the host may look at any time."""
        self.object.apply("add", array.name, pfns)

    def get_buf(self) -> bool:
        return cast("bool", self.object.apply("get_buf"))


@cache
def _hand(name: str) -> SharedObject:
    """An empty list of private pages."""
    return SharedObject(
        name,
        (),
        {
            "add": lambda value, pfns: ((*value, pfns), None),
            "take_all": lambda value: ((), value),
        },
    )


class Hand(Atom):
    """A `PageList`."""

    def __init__(self, runtime: ControlledRuntime, name: str) -> None:
        self.name = name
        self.object = runtime.shared_object(_hand(name))

    def add(self, pages: Batch) -> None:
        self.object.apply("add", tuple(pages))

    def take_all(self) -> list[Page]:
        return [Page(*pfns) for pfns in self.object.apply("take_all")]


# -- kernel and balloon ------------------------------------------------------------


@cache
def _chain(name: str) -> SharedObject:
    """Of a chain of callbacks: (registered, callers inside)."""
    return SharedObject(
        name,
        (True, 0),
        {
            "enter": lambda value: ((value[0], value[1] + value[0]), value[0]),
            "leave": lambda value: ((value[0], value[1] - 1), None),
            "remove": lambda value: ((False, value[1]), None),
            "drained": lambda value: None if value[1] else (value, None),
        },
        blocks=frozenset({"drained"}),
    )


class Chain(Atom):
    """`Notifiers`, with what is registered in an object: teardown takes the driver's callback away."""

    def __init__(self, runtime: ControlledRuntime, name: str, *, removable: bool) -> None:
        self.name = name
        self._removable = removable
        self._function: Callable[..., int] | None = None
        self._object = runtime.shared_object(_chain(name))

    def append(self, function: Callable[..., int]) -> None:
        self._function = function

    def remove(self, function: Callable[..., int]) -> None:
        del function
        if self._function is not None:
            self._object.apply("remove")
            self._object.apply("drained")

    def call(self, *arguments: int) -> int:
        if self._function is None:
            return 0
        if not self._removable:
            return self._function(*arguments)
        if not self._object.apply("enter"):
            return 0
        freed = self._function(*arguments)
        self._object.apply("leave")
        return freed

    def __len__(self) -> int:
        return int(self._function is not None)


class Depth(Atom):
    """The deepest stack of any task, over all executions of a program. Nobody decides by it."""

    def __init__(self) -> None:
        self.bytes = 0


class _Stacks(KernelStacks):
    """Stacks that tell a `Depth` how deep they were."""

    def __init__(self, runtime: ControlledRuntime, deepest: Depth) -> None:
        self._deepest = deepest
        super().__init__(runtime)

    @property
    def peak_bytes(self) -> int:
        return self._deepest.bytes

    @peak_bytes.setter
    def peak_bytes(self, peak: int) -> None:
        self._deepest.bytes = max(self._deepest.bytes, peak)


class ModelKernel(Kernel, Atom):
    """`Kernel`, whose allocator runs as it is, on model pages.

    Args:
        runtime: where it runs.
        pages: its pages.
        removable: whether notifiers can be taken away.
        rounds: OOM rounds without progress after which a caller that may not kill gives up; 0 is never.
        grades: the kinds of an OOM call that comes back with nothing which count as a bug.
        deepest: told how deep stacks get.
    """

    def __init__(
        self,
        runtime: ControlledRuntime,
        pages: Pages,
        *,
        removable: bool,
        rounds: int,
        grades: frozenset[str],
        deepest: Depth,
    ) -> None:
        super().__init__(runtime, cast("Any", None), cast("Any", pages), 0)
        self.stacks = _Stacks(runtime, deepest)
        self.name = "kernel"
        self.world_runtime = runtime
        self.notifiers = cast("Any", Chain(runtime, "oom notifiers", removable=removable))
        self.shrinkers = cast("Any", Chain(runtime, "shrinkers", removable=removable))
        #: By name; a descriptor points at one.
        self.arrays: dict[str, Array] = {}
        #: Tasks in an OOM call that is graded and has not taken a lock yet.
        self.first_lock: set[str] = set()
        if isinstance(runtime, ControlledRuntime):
            runtime.keep(self.first_lock)
        self._rounds = rounds
        self._grades = grades
        self._model = pages

    def pfn_array(self, name: str) -> PfnArray:
        """An array that is an object of the world."""
        array = Array(self.world_runtime, name)
        self.arrays[array.name] = array
        return cast("PfnArray", array)

    def _wait_for_fs(self, *, fs: bool) -> None:
        if fs and not self.fs_lock.held_by_me():
            with self.fs_lock:
                pass

    def out_of_memory(self, *, fs: bool, task: UserTask | None, wait: OomWait) -> None:
        """The steps of `Kernel.out_of_memory`; the one that is killed is always the caller."""
        del task
        watched = self._model.object if self._grades else None
        name = self.runtime.this_task().name
        if watched is not None:
            watched.apply("oom_begins")
            self.first_lock.add(name)
        with self.stacks.frame(DEPTH_BYTES, "the way to the OOM notifier"):
            freed = self.notifiers.call()
        if watched is not None:
            self.first_lock.discard(name)
            grade = watched.apply("oom_ends")
            if not freed and grade in self._grades:
                raise KernelBug(f"OOM came back with nothing, and pages were {grade}")
        if freed:
            return
        if fs:
            raise TaskKilled("the caller")
        if self._rounds:
            wait.fruitless += 1
            if wait.fruitless >= self._rounds:
                raise AllocationStuck

    def waits(self) -> None:
        """Called before a lock of the design is taken."""
        if self.first_lock:
            name = self.runtime.this_task().name
            if name in self.first_lock:
                self.first_lock.discard(name)
                self._model.object.apply("oom_waits")

    def reclaim_all(self) -> None:
        """What kswapd does."""
        self._shrink()


class OomMutex(Atom):
    """A design's mutex: from the first one on that an OOM call takes, it can be said to wait."""

    __slots__ = ("_kernel", "_mutex", "name")

    def __init__(self, mutex: Mutex, kernel: ModelKernel) -> None:
        self.name = mutex.name
        self._mutex = mutex
        self._kernel = kernel

    def lock(self) -> None:
        """Mutex.lock."""
        self._kernel.waits()
        self._mutex.lock()

    def trylock(self) -> bool:
        """Mutex.trylock."""
        return self._mutex.trylock()

    def unlock(self) -> None:
        """Mutex.unlock."""
        self._mutex.unlock()

    def held_by_me(self) -> bool:
        """Mutex.held_by_me."""
        return self._mutex.held_by_me()

    __enter__ = lock

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._mutex.unlock()


class DesignRuntime(Atom):
    """The runtime that a design sees: its mutexes tell when an OOM call waits."""

    #: As fingerprints know it.
    name = ""

    def __init__(self, runtime: ControlledRuntime, kernel: ModelKernel) -> None:
        self._runtime = runtime
        self._kernel = kernel
        self.mutexes: list[Mutex] = []

    def mutex(self, name: str) -> OomMutex:
        mutex = self._runtime.mutex(name)
        self.mutexes.append(mutex)
        return OomMutex(mutex, self._kernel)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)


class ModelBalloon(Balloon):
    """`Balloon` with lists and stack arrays that are objects; each actor has a stack of its own."""

    def __init__(self, *arguments: Any, actors: Sequence[str], **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._on_stack = {actor: self.pfn_array(f"pfns on {actor}'s stack") for actor in actors}

    def page_list(self, name: str) -> PageList:
        """A list of private pages."""
        return cast("PageList", Hand(cast("ModelKernel", self.kernel).world_runtime, name))

    def reserve_stack_arrays(self, count: int) -> None:
        """There is one a stack."""

    @contextmanager
    def stack_array(self, pfns: int = PFNS_MAX) -> Iterator[PfnArray]:
        """The array on the calling task's stack."""
        with self.kernel.stacks.frame(pfns * PFN_BYTES, "a PFN array"):
            array = self._on_stack[self.runtime.this_task().name]
            array.clear()
            yield array

    def no_memory(self) -> None:
        """msleep(200), without those who only look on."""
        self.runtime.sleep(OUT_OF_PUFF_NS)


@cache
def _silence() -> SharedObject:
    """Whether a queue's host has stopped for good."""
    return SharedObject(
        "silence of the host",
        False,
        {"begins": lambda _: (True, None), "for ever": lambda _: None},
        idle=frozenset({"for ever"}),
    )


class Attributes(Atom):
    """Which actor writes and which reads the attributes of a design, over all executions of a program.

    Each actor is learned alone, so what one leaves in an attribute the other would never see: such state
    has to be in objects of the runtime.
    """

    def __init__(self) -> None:
        #: Attributes that actors write though no method of the design names them.
        self.found: set[str] = set()
        self._writers: dict[str, tuple[str, str]] = {}
        self._readers: dict[str, dict[str, str]] = {}

    def read(self, runtime: ControlledRuntime, name: str) -> None:
        """An actor reads an attribute.

        Raises:
            Nondeterminism: if another one writes it.
        """
        actor = runtime.current
        if actor is not None and actor.name not in self._readers.get(name, ()):
            self._readers.setdefault(name, {})[actor.name] = self._place()
            self._check(runtime, name)

    def written(self, runtime: ControlledRuntime, name: str, *, attended: bool) -> None:
        """An actor writes an attribute.

        Args:
            runtime: where.
            name: of the attribute.
            attended: whether those that read it say so.

        Raises:
            Nondeterminism: if another one reads or writes it.
            Unattended: if that would not be known.
        """
        actor = runtime.current
        if actor is not None:
            if not attended:
                self.found.add(name)
                runtime.failure = Unattended(name)
                raise runtime.failure
            self.read(runtime, name)
            if name not in self._writers:
                self._writers[name] = actor.name, self._place()
                self._check(runtime, name)

    def _check(self, runtime: ControlledRuntime, name: str) -> None:
        writer, where = self._writers.get(name, ("", ""))
        for reader, place in self._readers[name].items():
            if writer and reader != writer:
                # At once: before the actor has unwound it may stop at an unlock, to be run again from the start.
                runtime.failure = Nondeterminism(
                    f"{place}: {reader} uses the design's attribute {name}, which {writer} writes",
                    why=f"{writer} writes it at {where}; what several actors share must be an object of the runtime",
                    hint="vb.runtime.shared(name) in probe makes a word",
                )
                raise runtime.failure

    @staticmethod
    def _place() -> str:
        file, line = place_of(sys._getframe(1))  # noqa: SLF001 - as everywhere in the explorer
        return f"{file}:{line}"


class _Attended:
    """An attribute whose readers `Attributes` is told."""

    def __set_name__(self, owner: type, name: str) -> None:
        self._owner = owner
        self._name = name

    def __get__(self, item: Any, owner: type | None = None) -> Any:
        if item is None:
            return getattr(super(self._owner, cast("Any", owner)), self._name)
        own = vars(item)
        if self._name not in own:
            return getattr(super(self._owner, item), self._name)
        if "attended" in own:
            runtime, attributes = own["attended"]
            attributes.read(runtime, self._name)
        return own[self._name]

    def __set__(self, item: Any, value: Any) -> None:
        vars(item)[self._name] = value

    def __delete__(self, item: Any) -> None:
        if self._name not in vars(item):
            raise AttributeError(self._name)
        del vars(item)[self._name]


@cache
def _attending(design: type[Design], found: frozenset[str]) -> type[Design]:
    """A design that tells `Attributes` what is done to its attributes.

    Those that are only read after the build are read as fast as ever: to look at each of them costs a sixth of an
    exploration. Which are written is seen in the methods; what is written in other ways is found when it happens.
    """

    def set_by(name: str) -> bool:
        # A property and its like: the attributes in which it keeps things are attended.
        return hasattr(getattr_static(design, name, None), "__set__")

    attended = {name: _Attended() for name in found | _written(design) if not set_by(name)}

    def note(item: Any, name: str) -> None:
        told = vars(item).get("attended")
        if told is not None:
            runtime, attributes = told
            attributes.written(runtime, name, attended=name in attended or set_by(name))

    def write(item: Any, name: str, value: Any) -> None:
        object.__setattr__(item, name, value)
        note(item, name)

    def delete(item: Any, name: str) -> None:
        object.__delattr__(item, name)
        note(item, name)

    own = {"__setattr__": write, "__delattr__": delete, "name": design.name}
    return type(design.__name__, (design,), {**own, **attended})


def _written(design: type[Design]) -> set[str]:
    """The names of the attributes that methods of a design write, but for those that build it."""
    found: set[str] = set()
    waiting = [
        value.__code__
        for base in design.__mro__
        for name, value in vars(base).items()
        if isinstance(value, FunctionType) and name not in {"__init__", "probe"}
    ]
    for code in waiting:
        waiting += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        found.update(
            instruction.argval
            for instruction in get_instructions(code)
            if instruction.opname in {"STORE_ATTR", "DELETE_ATTR"}
        )
    return found


@cache
def _trying(design: type[Design]) -> frozenset[str]:
    """The functions of a design that call trylock."""
    return frozenset(
        {
            name
            for base in design.__mro__
            for name, value in vars(base).items()
            if isinstance(value, FunctionType) and "trylock" in value.__code__.co_names
        }
    )


class Guest:
    """Guest, driver and host around one design, for a program's `build`.

    Args:
        runtime: of this execution.
        design: the class under test.
        options: of the design.
        actors: names of the tasks that will call into it.
        free, listed: pages at the start.
        target: pages that the host wants.
        removable, rounds, grades: as in `ModelKernel`.
        lenient: the host does as it is told: it discards pages that a program uses, and does not mind when it is
            given back what it has not got.
        silent: a queue's host may stop for good, before or after it has done what it was asked for, without a word.
        locked: how often others may have locked pages of the list.
        deepest: told how deep stacks get.
        attributes: told who uses which attribute of the design.
    """

    def __init__(
        self,
        runtime: ControlledRuntime,
        design: type[Design],
        options: dict[str, str],
        *,
        actors: Sequence[str],
        free: int,
        listed: int,
        target: int,
        removable: bool,
        rounds: int,
        grades: frozenset[str],
        lenient: bool = False,
        silent: bool = False,
        locked: int = 0,
        deepest: Depth | None = None,
        attributes: Attributes | None = None,
    ) -> None:
        self.runtime = runtime
        self.lenient = lenient
        self.removable = removable
        self.target = target
        self.pages = Pages(runtime, free, listed, lenient=lenient, locked=locked)
        self.kernel = ModelKernel(
            runtime,
            self.pages,
            removable=removable,
            rounds=rounds,
            grades=grades,
            deepest=deepest or Depth(),
        )
        self._silence = runtime.shared_object(_silence()) if silent else None
        if self._silence is not None:
            runtime.excuse(bool, self._silence)
        self.inflate_vq = Queue(runtime, *INFLATE)
        self.deflate_vq = Queue(runtime, *DEFLATE)
        designs_runtime = DesignRuntime(runtime, self.kernel)
        self.vb = ModelBalloon(
            designs_runtime,
            self.kernel,
            inflate_vq=cast("DriverQueue", self.inflate_vq),
            deflate_vq=cast("DriverQueue", self.deflate_vq),
            deflate_on_oom=True,
            actors=actors,
        )
        self.actual = runtime.shared("actual", listed)
        self.again = False
        attributes = attributes or Attributes()
        self.design = _attending(design, frozenset(attributes.found))(
            self.vb,
            towards_target=self.towards_target,
            publish=self.publish,
            requeue=self.requeue,
            **options,
        )
        # On real threads all actors share the design as it is, and the schedule has been checked here before.
        if isinstance(runtime, ControlledRuntime):
            vars(self.design)["attended"] = (runtime, attributes)
        trying = _trying(design)
        if trying - {"migrate"} or (trying and "C" in actors):
            for mutex in designs_runtime.mutexes:
                runtime.watch(mutex)
        runtime.watch(self.kernel.oom_lock)
        if listed:
            self.vb.num_pages.value = listed
        if self.design.pressure == "shrinker":
            self.kernel.shrinkers.append(self.design.scan)
        else:
            self.kernel.notifiers.append(self.design.on_oom)

    # -- what the driver gives a design ----------------------------------------

    def towards_target(self) -> int:
        """Pages that the host wants above or below what the driver holds."""
        return self.target - self.vb.num_pages.value

    def publish(self) -> None:
        """PUBLISH, two steps."""
        self.actual.value = self.vb.num_pages.value

    def requeue(self) -> None:
        """One more turn of the size worker."""
        if self.runtime.this_task().name != "W":
            raise NotImplementedError("the model's size worker is queued by itself only")
        self.again = True

    def remove(self) -> None:
        """Teardown: callbacks away, everything leaked, published, reset."""
        self.kernel.notifiers.remove(self.design.on_oom)
        self.kernel.shrinkers.remove(self.design.scan)
        self.design.drain()
        self.publish()
        self.inflate_vq.object.apply("reset")
        self.deflate_vq.object.apply("reset")

    # -- the host -----------------------------------------------------------------

    def host_inflates(self) -> None:
        """A turn of the actor HI."""
        self._host(self.inflate_vq, "inflate_any" if self.lenient else "inflate")

    def host_deflates(self) -> None:
        """A turn of the actor HD."""
        self._host(self.deflate_vq, "deflate_any" if self.lenient else "deflate")

    def _host(self, queue: Queue, act: str) -> None:
        """Pop, read the array, act, use, interrupt."""
        name, then = queue.object.apply("pop")
        silence = self._silence
        until = (
            0 if silence is None else self.runtime.choose("the host goes on, stops here, acts and stops", 3)
        )
        if silence is not None and until == 1:
            silence.apply("begins")
            silence.apply("for ever")
        pfns = self.kernel.arrays[name].look(len(then))
        if pfns != then:
            raise KernelBug(
                "a PFN array changed before the host had read it", why=f"{name} was {then} and is {pfns}"
            )
        self.pages.object.apply(act, pfns)
        if silence is not None and until:
            silence.apply("begins")
            silence.apply("for ever")
        queue.object.apply("use")
        self.runtime.interrupt(queue.call_fd)
