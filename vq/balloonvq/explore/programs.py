"""Random small programs, on which all engines must agree.

`generate(seed)` makes a program of 2 or 3 actors with a few operations each on locks,
words, a wait queue, timers and choices, small enough for engine N. A program is
a tree of plain tuples, interpreted by `_Body`, so that it can be printed
(`describe`) when an agreement fails.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from balloonvq.explore.world import Bounds, Program, SharedObject

__all__ = ["describe", "generate"]

Step = tuple[Any, ...]
Code = tuple[Step, ...]


class OopsError(Exception):
    """What a generated actor raises: its BUG()."""


class _Generator:
    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.budget = 0
        self.number = 0

    def program(self) -> tuple[Code, ...]:
        actors = self.random.choice([2, 2, 3])
        codes = []
        for _ in range(actors):
            self.budget = self.random.randint(2, 6 if actors == 2 else 3)
            codes.append(self.block(depth=0))
        return tuple(codes)

    def block(self, depth: int) -> Code:
        """Steps; numbered in front, so that no two are equal (`balloonvq.explore.local_state`)."""
        steps: list[Step] = []
        while self.budget > 0 and (not steps or self.random.random() < 0.8):
            self.number += 1
            steps.append((self.number, *self.step(depth)))
        return tuple(steps)

    def step(self, depth: int) -> Step:
        self.budget -= 1
        pick = self.random.choice
        word = pick("xy")
        kind = self.random.randrange(15 if depth < 2 else 6)
        if kind == 0:
            return ("write", word, self.random.randrange(3))
        if kind == 1:
            return ("add", word, 1)
        if kind == 2:
            return ("increment", word)
        if kind == 3:
            return ("wake",)
        if kind == 4:
            return ("sleep", pick([1, 2]))
        if kind == 5:
            return ("oops if", word, self.random.randrange(4))
        if kind in {6, 7, 8}:
            return ("with", pick("mn"), self.block(depth + 1))
        if kind == 9:
            return ("try", pick("mn"), self.block(depth + 1))
        if kind == 10:
            self.budget -= 1
            return ("wait", word, pick([None, None, 1]))
        if kind == 11:
            self.budget -= 1
            return ("spin", word)
        if kind == 12:
            return ("choose", 2, self.block(depth + 1))
        if kind == 13:
            return ("spin lock", pick("mn"), self.block(depth + 1))
        return ("guarded", self.random.randrange(3))


class _Body:
    """Runs one actor's code."""

    def __init__(self, objects: dict[str, Any], runtime: Any, code: Code) -> None:
        self.objects = objects
        self.runtime = runtime
        self.code = code

    def __call__(self) -> None:
        self.run(self.code)

    def run(self, code: Code) -> None:
        for step in code:
            do = getattr(self, "do_" + step[1].replace(" ", "_"))
            do(*step[2:])

    def do_write(self, word: str, value: int) -> None:
        self.objects[word].value = value

    def do_add(self, word: str, delta: int) -> None:
        self.objects[word].add(delta)

    def do_increment(self, word: str) -> None:
        self.objects[word].value += 1

    def do_wake(self) -> None:
        self.objects["q"].wake_all()

    def do_sleep(self, duration: int) -> None:
        self.runtime.sleep(duration)

    def do_oops_if(self, word: str, value: int) -> None:
        if self.objects[word].value == value:
            raise OopsError(f"{word} is {value}")

    def do_with(self, mutex: str, code: Code) -> None:
        with self.objects[mutex]:
            self.run(code)

    def do_try(self, mutex: str, code: Code) -> None:
        if self.objects[mutex].trylock():
            try:
                self.run(code)
            finally:
                self.objects[mutex].unlock()

    def do_wait(self, word: str, timeout: int | None) -> None:
        self.objects["q"].wait_until(lambda: self.objects[word].value, timeout)

    def do_spin(self, word: str) -> None:
        while not self.objects[word].value:
            self.runtime.relax()

    def do_spin_lock(self, mutex: str, code: Code) -> None:
        while not self.objects[mutex].trylock():
            self.runtime.relax()
        try:
            self.run(code)
        finally:
            self.objects[mutex].unlock()

    def do_choose(self, options: int, code: Code) -> None:
        if self.runtime.choose("choice", options):
            self.run(code)

    def do_guarded(self, value: int) -> None:
        with self.objects["g"]:
            self.objects["data"].apply("set", value)
            self.objects["z"].add(self.objects["data"].apply("get"))


def _build(codes: tuple[Code, ...]) -> Callable[[Any], None]:
    def build(runtime: Any) -> None:
        objects: dict[str, Any] = {name: runtime.mutex(name) for name in "mng"}
        objects |= {name: runtime.shared(name) for name in "xyz"}
        objects["q"] = runtime.wait_queue("q")
        data = SharedObject(
            "data",
            0,
            {"set": lambda _, value: (value, None), "get": lambda value: (value, value)},
            reads=frozenset({"get"}),
            guard="g",
        )
        objects["data"] = runtime.shared_object(data)
        for index, code in enumerate(codes):
            runtime.spawn("ABC"[index], "generated", _Body(objects, runtime, code))

    return build


def generate(seed: int, bounds: Bounds = Bounds()) -> Program:  # noqa: B008 - immutable
    """A random program; the same for the same seed."""
    codes = _Generator(seed).program()
    return Program(f"random {seed}", _build(codes), bounds, steps_max=2000)


def describe(seed: int) -> str:
    """The generated program, readable."""
    lines: list[str] = []

    def tell(code: Code, depth: int) -> None:
        for step in code:
            inner = step[-1] if isinstance(step[-1], tuple) else ()
            words = step[:-1] if isinstance(step[-1], tuple) else step
            lines.append("    " * depth + " ".join(map(str, words)))
            tell(inner, depth + 1)

    for index, code in enumerate(_Generator(seed).program()):
        lines.append(f"{'ABC'[index]}:")
        tell(code, 1)
    return "\n".join(lines)
