"""SPIN judges the exported automata the same, state for state."""

from __future__ import annotations

import re
import shutil
import subprocess

import examples
import pytest
from examples import program

from balloonvq.errors import InvalidArgument
from balloonvq.explore import product, programs, promela
from balloonvq.explore.verdict import Kind, Outcome

pytestmark = pytest.mark.skipif(
    shutil.which("spin") is None or shutil.which("cc") is None, reason="spin and a C compiler are needed"
)


def spin(text: str, folder) -> tuple[int, int]:
    """(errors, states stored)."""
    (folder / "model.pml").write_text(text)
    subprocess.run(["spin", "-a", "model.pml"], cwd=folder, check=True, capture_output=True)
    command = ["cc", "-O0", "-w", "-DSAFETY", "-DNOREDUCE", "-o", "pan", "pan.c"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    done = subprocess.run(["./pan", "-m1000000"], cwd=folder, check=True, capture_output=True, text=True)
    errors = re.search(r"errors: (\d+)", done.stdout)
    stored = re.search(r"(\d+) states, stored", done.stdout)
    return int(errors[1]), int(stored[1])


@pytest.mark.parametrize("build", [examples.ordered_locks, examples.wake_up, examples.host])
def test_what_is_proved_has_the_same_number_of_states(build, tmp_path) -> None:
    verdict = product.explore(program(build))
    assert verdict.outcome is Outcome.PROVED
    assert (0, verdict.states) == spin(promela.export(program(build)), tmp_path)


@pytest.mark.parametrize("build", [examples.two_locks, examples.lost_wake_up, examples.assertion])
def test_what_is_wrong_is_wrong_for_spin(build, tmp_path) -> None:
    errors, _ = spin(promela.export(program(build)), tmp_path)
    assert errors == 1


def test_random_programs_agree(tmp_path) -> None:
    compared = 0
    for seed in range(100):
        p = programs.generate(seed)
        verdict = product.explore(p)
        try:
            text = promela.export(p)
        except InvalidArgument:
            continue
        errors, stored = spin(text, tmp_path)
        wrong = verdict.bug is not None and verdict.bug.kind in {Kind.DEADLOCK, Kind.ERROR}
        assert wrong == (errors == 1), programs.describe(seed)
        if verdict.outcome is Outcome.PROVED:
            assert verdict.states == stored, programs.describe(seed)
        compared += 1
        if compared == 6:
            return


def test_timers_are_refused() -> None:
    def build(rt) -> None:
        rt.spawn("A", "", lambda: rt.sleep(1))

    with pytest.raises(InvalidArgument, match="timers"):
        promela.export(program(build))
