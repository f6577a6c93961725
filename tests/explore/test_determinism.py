"""A program that is no function of what it observes is an error that names the line, never a verdict."""

from __future__ import annotations

import itertools

import pytest

from balloonvq.explore import product
from balloonvq.explore.world import Nondeterminism, Program

counter = itertools.count()


def test_chance_is_found() -> None:
    def build(rt) -> None:
        word = rt.shared("word")

        def actor() -> None:
            word.value = next(counter)
            word.value = 0

        rt.spawn("A", "", actor)
        rt.spawn("B", "", actor)

    with pytest.raises(Nondeterminism, match=r"test_determinism\.py:\d+"):
        product.explore(Program("chance", build))


def test_state_that_actors_share_in_secret_is_found() -> None:
    def build(rt) -> None:
        word, secret = rt.shared("word"), []

        def first() -> None:
            word.value = 1
            secret.append(1)
            word.value = 2

        def second() -> None:
            word.value = 3
            word.value = 10 + len(secret)

        rt.spawn("A", "", first)
        rt.spawn("B", "", second)

    with pytest.raises(Nondeterminism, match=r"test_determinism\.py:\d+"):
        product.explore(Program("secret", build))


def test_a_late_actor_is_refused() -> None:
    def build(rt) -> None:
        rt.spawn("A", "", lambda: rt.spawn("B", "", lambda: None))

    with pytest.raises(Nondeterminism, match="spawned while"):
        product.explore(Program("late", build))


def test_another_world_the_second_time_is_found() -> None:
    names = itertools.count()

    def build(rt) -> None:
        word = rt.shared(f"word {next(names)}")
        rt.spawn("A", "", lambda: word.value)

    with pytest.raises(Nondeterminism, match="another world"):
        product.explore(Program("other", build))


def test_state_kept_from_turn_to_turn_is_found() -> None:
    def build(rt) -> None:
        word, kept = rt.shared("word"), []

        def turn() -> None:
            kept.append(1)
            word.value = len(kept) % 3

        rt.spawn("A", "", turn, repeats=True)

    with pytest.raises(Nondeterminism, match="turns"):
        product.explore(Program("kept", build))
