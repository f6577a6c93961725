"""Replay strings: a schedule in about twenty characters.

``bx1.k3f9.102.7c2a`` is

* ``bx1``, the version of this format;
* ``k3f9``, a hash of the program's name and bounds;
* the deviations from the default policy (`run_on`): for each, how many steps the default
  policy is followed, which other possible decision is taken then, and one character of hash
  over the trace up to there; last, how many more steps there are;
* three characters of hash over the whole trace, and a check character over the text.

The string of a livelock has one part more before the last, ``bx1.20dn.00mb1n210011014.c.8bk4``: how
many of the last steps are its loop.

Numbers are written with four bits and a continuation bit a character. Steps are scheduling
points, so a string survives changes of private code, of line numbers and of comments; it does
not survive another order or kind of operations, and then says where it went wrong: the hashes at
the deviations bound the first step that differs, and whoever has the recorded
steps (`steps`) is told exactly.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from balloonvq.errors import BalloonError, InvalidArgument
from balloonvq.explore.operations import Raised
from balloonvq.explore.verdict import Kind, Schedule
from balloonvq.explore.world import Program, Revised, World
from balloonvq.runtime.controlled import Decision
from balloonvq.runtime.execution import Execution, run_on

__all__ = ["Ending", "Meaning", "ReplayDiffers", "decode", "encode", "ending", "execute", "replay", "steps"]

VERSION = "bx1"
ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


class ReplayDiffers(BalloonError):
    """The program no longer does what it did when the string was made."""


class _Enough(Exception):
    """The schedule is over."""


def steps(execution: Execution) -> list[str]:
    """Each operation of an execution in words, without places: what the hashes are made from."""
    assert execution.log is not None
    return [
        "time passes"
        if operation is None
        else f"{execution.actors[actor].name}: {operation!r} -> {observed!r}"
        for actor, operation, observed, _, _ in execution.log
    ]


def _hash(text: str, characters: int) -> str:
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
    return "".join(ALPHABET[(number >> 5 * place) & 31] for place in range(characters))


def _check(text: str) -> str:
    # Weights make exchanged neighbours visible; 31 is prime, so every single wrong character is.
    total = sum(
        (place % 30 + 1) * (ALPHABET.index(c) if c in ALPHABET else 0) for place, c in enumerate(text)
    )
    return ALPHABET[total % 31]


def _number(value: int) -> str:
    digits = ""
    while True:
        digits += ALPHABET[value & 15 | (16 if value > 15 else 0)]
        value >>= 4
        if not value:
            return digits


def _label(program: Program) -> str:
    return _hash(f"{program.name} {program.bounds}", 4)


class _Forced(Execution):
    """An execution whose strategy knows what it wants: it may have a parked spinner go round once more."""

    def enabled(self) -> list[Decision]:
        """All possible decisions."""
        return self.possible(super().enabled())


def execute(program: Program, decisions: Sequence[Decision]) -> Execution:
    """Runs a schedule to its last step, log and places kept.

    Raises:
        InvalidArgument: if a step is not possible.
    """
    world = World(program)
    while True:
        queue = list(decisions)

        def strategy(found: list[Decision], execution: Execution, queue: list[Decision] = queue) -> Decision:
            if not queue:
                raise _Enough
            wanted = queue.pop(0)
            if wanted not in found:
                raise InvalidArgument(f"step {execution.steps + 1} of the schedule is not possible")
            return wanted

        execution = _Forced(world, strategy, places=True)
        try:
            execution.run()
        except Revised:
            continue
        except _Enough:
            pass
        return execution


@dataclass(frozen=True, slots=True)
class Ending:
    """How an execution has ended, if that is a bug."""

    kind: Kind
    what: str
    """As `Bug.what`."""
    actors: tuple[int, ...]
    """Of a deadlock, those in it; of a livelock, those in the loop; of an error, who died."""


def ending(execution: Execution, loop: int | None = None) -> Ending | None:
    """What is wrong at the end of an execution, or None; races are not looked for.

    Args:
        execution: has run.
        loop: of a livelock: the index of the first decision of its circle.
    """
    actors = execution.actors
    world = execution.world
    if loop is not None:
        inside = tuple(sorted({actor for actor, _ in execution.decisions[loop:] if actor >= 0}))
        names = ", ".join(actors[index].name for index in inside)
        return Ending(Kind.LIVELOCK, f"{names or 'the clock'} for ever without progress", inside)
    broken = world.broken(execution.values, at_rest=False)
    if broken is not None:
        return Ending(Kind.INVARIANT, broken, ())
    for actor in actors:
        if actor.error is not None:
            return Ending(Kind.ERROR, f"{actor.name}: {Raised(actor.error)!r}", (actor.index,))
    stuck = _circle(execution)
    if not stuck and not Execution.enabled(execution):
        stuck = [actor.index for actor in execution.stuck]
        if not stuck:
            wrong = world.broken(execution.values, at_rest=True)
            return None if wrong is None else Ending(Kind.AT_REST, wrong, ())
    if not stuck:
        return None
    waits = (f"{actors[index].name} waits in {actors[index].pending!r}" for index in stuck)
    return Ending(Kind.DEADLOCK, ", ".join(waits), tuple(stuck))


def _circle(execution: Execution) -> list[int]:
    """The actors that wait for each other's locks, or nothing."""
    for start in execution.actors:
        path: list[int] = []
        actor = start
        while actor.index not in path:
            path.append(actor.index)
            operation = actor.pending
            if actor.finished or operation is None or operation.kind != "lock":
                break
            owner = execution.values[operation.object]
            if owner < 0:
                break
            actor = execution.actors[owner]
        else:
            if actor is start:
                return sorted(path)
    return []


def _others(found: list[Decision], execution: Execution) -> tuple[Decision, list[Decision]]:
    """The default decision and the rest, in order."""
    default = run_on(found, execution)
    return default, [decision for decision in execution.possible(found) if decision != default]


def encode(program: Program, schedule: Schedule) -> str:
    """The replay string of a schedule."""
    world = World(program)
    while True:
        try:
            return _encode(program, world, schedule)
        except Revised:
            continue


def _encode(program: Program, world: World, schedule: Schedule) -> str:
    queue = list(schedule.decisions)
    body = ""
    gap = 0

    def strategy(found: list[Decision], execution: Execution) -> Decision:
        nonlocal body, gap
        if not queue:
            raise _Enough
        wanted = queue.pop(0)
        default, others = _others(found, execution)
        if wanted == default:
            gap += 1
        else:
            body += _number(gap) + _number(others.index(wanted)) + _hash("\n".join(steps(execution)), 1)
            gap = 0
        return wanted

    execution = Execution(world, strategy, log=True)
    with contextlib.suppress(_Enough):
        execution.run()
    loop = "" if schedule.loop is None else f".{_number(len(schedule) - schedule.loop)}"
    trace = _hash("\n".join(steps(execution)), 3)
    text = f"{VERSION}.{_label(program)}.{body}{_number(gap)}{loop}.{trace}"
    return text + _check(text)


@dataclass(frozen=True, slots=True)
class Meaning:
    """What a replay string says."""

    program: Program
    deviations: list[tuple[int, int, str]]
    """(default decisions before it, which of the others, hash of the trace up to there) of each."""
    last: int
    """Default decisions after the last of them."""
    trace: str
    """Hash of the whole trace."""
    loop_steps: int | None
    """Of a livelock: how many of the last steps are its loop."""

    def loop(self, decisions: Sequence[Decision]) -> int | None:
        """The index of the first decision of the loop in the schedule, as `Schedule.loop`."""
        return None if self.loop_steps is None else len(decisions) - self.loop_steps


@dataclass(slots=True)
class _Text:
    """The middle part, being read."""

    text: str
    at: int = 0

    @property
    def over(self) -> bool:
        return self.at >= len(self.text)

    def character(self) -> str:
        if self.over:
            raise InvalidArgument("the replay string ends too early", why="a part of it is cut off")
        self.at += 1
        return self.text[self.at - 1]

    def number(self) -> int:
        value = shift = 0
        while True:
            digit = ALPHABET.index(self.character())
            value |= (digit & 15) << shift
            shift += 4
            if digit < 16:
                return value


def decode(text: str, programs: Iterable[Program]) -> Meaning:
    """What a replay string says.

    Raises:
        InvalidArgument: if the string is of another version, mistyped, or of no program here.
    """
    text = text.strip().lower()
    parts = text.split(".")
    if parts[0] != VERSION:
        raise InvalidArgument(
            f"a replay string begins with {VERSION}, this one with {parts[0]!r}",
            why="another version wrote it, or it is no replay string",
        )
    if len(parts) not in {4, 5} or len(parts[1]) != 4 or len(parts[-1]) != 4 or not all(parts):
        raise InvalidArgument(
            f"{text!r} is no complete replay string",
            why="it has four parts, joined by dots: bx1.k3f9.102.7c2a; that of a livelock has five",
        )
    wrong = sorted(set(text) - set(ALPHABET) - {"."} - set(VERSION))
    if wrong or _check(text[:-1]) != text[-1]:
        raise InvalidArgument(
            f"{text!r} has a typing error",
            why=f"the letter {wrong[0]!r} is never used"
            if wrong
            else "its last character is a check, and does not fit",
        )
    program = next((program for program in programs if _label(program) == parts[1]), None)
    if program is None:
        raise InvalidArgument(
            f"no program here has the mark {parts[1]!r}", why="the scenario was renamed, or is not loaded"
        )
    loop = _Text(parts[3]).number() if len(parts) == 5 else None
    middle = _Text(parts[2])
    deviations: list[tuple[int, int, str]] = []
    while True:
        gap = middle.number()
        if middle.over:
            return Meaning(program, deviations, gap, parts[-1][:3], loop)
        deviations.append((gap, middle.number(), middle.character()))


def replay(text: str, programs: Iterable[Program], recorded: Sequence[str] | None = None) -> Execution:
    """Executes a replay string; log and places are kept.

    Args:
        text: the string.
        programs: among which to look.
        recorded: the `steps` of the original execution, if somebody kept them.

    Raises:
        InvalidArgument: see `decode`.
        ReplayDiffers: if the execution is not the one that the string was made from.
    """
    meaning = decode(text, programs)
    world = World(meaning.program)
    while True:
        try:
            execution = _replay(world, meaning.deviations, meaning.last, recorded)
        except Revised:
            continue
        break
    _compare(execution, recorded)
    if _hash("\n".join(steps(execution)), 3) != meaning.trace:
        raise _differs(execution, len(meaning.deviations), recorded)
    _comes_back(meaning, execution)
    return execution


def _comes_back(meaning: Meaning, execution: Execution) -> None:
    """Looks whether the loop of a livelock ends where it began."""
    loop = meaning.loop(execution.decisions)
    if loop is None:
        return
    if not 0 <= loop < len(execution.decisions):
        raise InvalidArgument(
            "the loop of the replay string is longer than its schedule",
            why=f"{meaning.loop_steps} of {len(execution.decisions)} steps",
        )
    if execute(meaning.program, execution.decisions[:loop]).values != execution.values:
        raise ReplayDiffers(
            f"the loop of the last {meaning.loop_steps} steps does not come back to where it began",
            why="the program has changed since",
            hint="explore it again",
        )


def _replay(
    world: World, deviations: list[tuple[int, int, str]], last: int, recorded: Sequence[str] | None
) -> Execution:
    queue = list(deviations)
    left = queue[0][0] if queue else last

    def strategy(found: list[Decision], execution: Execution) -> Decision:
        nonlocal left
        default, others = _others(found, execution)
        if left:
            left -= 1
            return default
        if not queue:
            raise _Enough
        _, which, check = queue.pop(0)
        if which >= len(others) or _hash("\n".join(steps(execution)), 1) != check:
            _compare(execution, recorded)
            raise _differs(execution, len(deviations) - len(queue) - 1, recorded)
        left = queue[0][0] if queue else last
        return others[which]

    execution = Execution(world, strategy, places=True)
    with contextlib.suppress(_Enough):
        execution.run()
    return execution


def _compare(execution: Execution, recorded: Sequence[str] | None) -> None:
    """Names the first step that is not as recorded."""
    done = steps(execution)
    for number, (now, then) in enumerate(zip(done, recorded or (), strict=False), 1):
        if now != then:
            raise ReplayDiffers(f"step {number} is {now!r} and was {then!r}", why="the program has changed")


def _differs(execution: Execution, deviation: int, recorded: Sequence[str] | None) -> ReplayDiffers:
    done = steps(execution)
    if recorded is not None and len(done) != len(recorded):
        shorter = min(len(done), len(recorded))
        now = done[shorter] if shorter < len(done) else "nothing"
        then = recorded[shorter] if shorter < len(recorded) else "nothing"
        return ReplayDiffers(f"step {shorter + 1} is {now!r} and was {then!r}", why="the program has changed")
    where = "after the last deviation" if deviation else "from the start"
    return ReplayDiffers(
        f"the replay differs from its original {where}, at or before step {len(done)}",
        why=f"the last step now is {done[-1] if done else 'none'!r}; the program has changed since",
        hint="explore it again",
    )
