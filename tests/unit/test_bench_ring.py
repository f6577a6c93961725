"""The ring benchmark: its rows, what they count, and the kernel's ringtest beside it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from balloonvq.bench.measure import Plan, measure
from balloonvq.bench.ring import BENCHMARK, PROGRAM_BUFFERS, PROGRAMS, Ring, Ringtest
from balloonvq.errors import BalloonError, InvalidArgument

#: So few that a round takes some milliseconds; the smallest that the command allows.
BUFFERS = 2048

LIMITS = ["line", "slots", "eventfds"]
OURS = [
    "alone K=1",
    "alone K=32",
    "polling K=1",
    "polling K=16",
    "polling K=32",
    "polling K=64",
    "polling one",
    "sleeping K=1",
    "sleeping K=32",
    "sleeping one",
]


@pytest.fixture(scope="module")
def round_of_all():
    """One round with 256 descriptors, as (benchmark, samples)."""
    ring = Ring(queue_size=256, buffers=BUFFERS, cpus="none", ringtest="")
    yield ring, ring.round()
    ring.close()


def test_every_row_is_there_and_no_figure_is_zero(round_of_all):
    ring, samples = round_of_all
    assert [row.name for row in ring.rows] == LIMITS + OURS == list(samples)
    assert all(sample.value > 0 for sample in samples.values())


def test_each_buffer_came_back_once(round_of_all):
    _, samples = round_of_all
    sent = dict.fromkeys(OURS, BUFFERS) | {"polling one": BUFFERS // 8, "sleeping one": BUFFERS // 32}
    assert {name: samples[name].facts["buffers"] for name in OURS} == sent


def test_single_operations_are_counted_where_one_buffer_is_out_at_a_time(round_of_all):
    _, samples = round_of_all
    counted = {name: samples[name].histogram.count for name in samples if samples[name].histogram}
    assert counted == {"polling one": BUFFERS // 8, "sleeping one": BUFFERS // 32}
    assert sum(count for _, count in samples["polling one"].histogram.buckets()) == BUFFERS // 8


def test_every_sleep_is_ended_by_a_notification_and_pollers_do_not_sleep(round_of_all):
    _, samples = round_of_all
    sleeping, polling = samples["sleeping one"].facts, samples["polling K=1"].facts
    assert sleeping["sleeps"] <= sleeping["kicks"] + sleeping["calls"]
    # An event word far away is passed once in 65536 buffers.
    assert max(polling["kicks"], polling["calls"]) <= 1
    assert polling["sleeps"] == 0


def test_a_ring_of_one_descriptor_has_no_larger_batches():
    ring = Ring(queue_size=1, buffers=BUFFERS, cpus="none", ringtest="")
    assert [row.name for row in ring.rows if "K=" in row.name] == [
        "alone K=1",
        "polling K=1",
        "sleeping K=1",
    ]
    assert all(sample.value > 0 for sample in ring.round().values())
    ring.close()


def test_the_runner_accepts_its_rows():
    result = measure(
        BENCHMARK, {"queue_size": 64, "buffers": BUFFERS, "cpus": "none"}, Plan(runs=2, warmup=0)
    )
    assert [row.name for row in result.rows] == LIMITS + OURS
    assert result.notes == ("the threads are bound to no processor",)
    by_name = {row.name: row for row in result.rows}
    assert [other.row for other in by_name["polling K=32"].against] == ["slots"]
    assert by_name["sleeping one"].latency.count == 2 * (BUFFERS // 32)


@pytest.mark.parametrize("size", [0, 3, 65536])
def test_a_size_that_no_ring_has_is_refused(size):
    with pytest.raises(InvalidArgument, match=f"cannot have {size} descriptors"):
        Ring(queue_size=size, buffers=BUFFERS, cpus="none", ringtest="")


@pytest.mark.parametrize("cpus", ["0", "a,b", "0,100000", "-1,0", ""])
def test_processors_that_are_none_are_refused(cpus):
    with pytest.raises(InvalidArgument, match="names no two processors") as caught:
        Ring(queue_size=16, buffers=BUFFERS, cpus=cpus, ringtest="")
    assert "--cpus auto" in caught.value.hint


def test_threads_are_bound_to_the_processors_that_were_named():
    cpu = min(os.sched_getaffinity(0))
    ring = Ring(queue_size=16, buffers=BUFFERS, cpus=f"{cpu},{cpu}", ringtest="")
    sleeping = ring.round()["sleeping one"].facts
    assert ring.bound
    assert ring.notes == (f"driver on processor {cpu}, device on processor {cpu}",)
    # With one processor for both, each buffer takes a side that sleeps so that the other can run.
    assert sleeping["sleeps"] > 0
    assert sleeping["kicks"] + sleeping["calls"] > 0
    ring.close()


# ---- the kernel's ringtest --------------------------------------------------------------------


def fake_ringtest(folder: Path, recipe: str) -> Path:
    """A folder that looks like the kernel's, whose programs are `recipe`."""
    folder.mkdir(parents=True)
    (folder / "virtio_ring_0_9.c").write_text("/* nothing */\n")
    (folder / "main.o").write_text("not for this processor\n")
    (folder / "Makefile").write_text(
        f"{' '.join(PROGRAMS)}:\n\tprintf '#!/bin/sh\\n{recipe}\\n' > $@\n\tchmod +x $@\n"
    )
    return folder


def test_ringtest_is_built_elsewhere_and_runs_in_every_round(tmp_path):
    calls = tmp_path / "calls"
    folder = fake_ringtest(tmp_path / "tools/virtio/ringtest", f"echo $$0 $$* >> {calls}")
    before = sorted(folder.iterdir())
    ring = Ring(queue_size=64, buffers=BUFFERS, cpus="none", ringtest=str(folder))
    samples = ring.round()
    assert all(samples[program].value > 0 for program in PROGRAMS)
    assert [line.split() for line in calls.read_text().splitlines()] == [
        [f"./{program}", "--ring-size=64", f"--run-cycles={PROGRAM_BUFFERS}"] for program in PROGRAMS
    ]
    goals = {row.name: {other.row: other.at_most for other in row.against} for row in ring.rows}
    assert goals["polling K=1"]["virtio_ring_0_9"] == 0.45
    assert goals["polling K=32"]["virtio_ring_0_9"] == 0.08
    assert "no rows of virtio_ring.c: drivers/virtio/virtio_ring.c is not beside ringtest" in ring.notes
    assert sorted(folder.iterdir()) == before
    built = ring.ringtest._folder.name
    ring.close()
    assert not Path(built).exists()


def test_a_kernel_ring_that_does_not_build_is_left_out_with_a_note(tmp_path):
    folder = fake_ringtest(tmp_path / "tools/virtio/ringtest", "true")
    (tmp_path / "drivers/virtio").mkdir(parents=True)
    (tmp_path / "drivers/virtio/virtio_ring.c").write_text("#error not today\n")
    ringtest = Ringtest(folder)
    assert ringtest.without_kernel_ring.startswith("virtio_ring.c does not build for user space: ")
    # The first of the kernel's headers is what is missing.
    assert "error: " in ringtest.without_kernel_ring
    ringtest.close()


def test_a_folder_without_ringtest_is_refused(tmp_path):
    with pytest.raises(BalloonError, match="no ringtest in") as caught:
        Ringtest(tmp_path)
    assert caught.value.why == "it has no Makefile and virtio_ring_0_9.c"
    assert "tools/virtio/ringtest" in caught.value.hint


def test_ringtest_that_does_not_build_is_refused_and_leaves_nothing(tmp_path, monkeypatch):
    folder = fake_ringtest(tmp_path / "ringtest", "true")
    (folder / "Makefile").write_text(f"{' '.join(PROGRAMS)}:\n\t@echo broken here >&2; false\n")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(scratch))
    with pytest.raises(BalloonError, match="does not build"):
        Ringtest(folder)
    assert not list(scratch.iterdir())


def test_a_program_that_fails_is_named(tmp_path):
    folder = fake_ringtest(tmp_path / "ringtest", "echo no ring today >&2; exit 3")
    ringtest = Ringtest(folder)
    with pytest.raises(BalloonError, match="virtio_ring_0_9") as caught:
        ringtest.program_ns("virtio_ring_0_9", 256, BUFFERS, (-1, -1))
    assert caught.value.why == "no ring today"
    ringtest.close()
