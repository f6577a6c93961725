"""Where guest memory comes from: memfd, anonymous, huge pages, a file; each gives back what it says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.machines import MIB, running, settle
from support.waiting import open_descriptors

from balloonvq.errors import BalloonError, InvalidArgument, NotEnoughMemory
from balloonvq.machine import Machine, MachineConfig
from balloonvq.memory import PAGE_SIZE, GuestMemory


@pytest.fixture(params=["memfd", "anon", "huge", "directory", "file"])
def backing(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each kind of memory."""
    kinds = {"directory": str(tmp_path), "file": str(tmp_path / "guest")}
    return kinds.get(request.param, request.param)


def test_t_50_measured_bytes_are_honest_for_each_kind(backing: str) -> None:
    with running(memory=backing, ram_bytes=32 * MIB) as machine:
        status = machine.status()
        assert status.memory == backing
        assert status.discard == ("dontneed" if backing in {"anon", "huge"} else "punch")
        assert status.memory_allocated_bytes == machine.ram_bytes
        assert status.returned_measured_bytes == 0
        most = 0
        for pages in (1000, 2048, 5000, 700):
            settle(machine, pages)
            most = max(most, pages)
            assert machine.status().returned_measured_bytes == most * PAGE_SIZE
        assert machine.status().memory_allocated_bytes == machine.ram_bytes - most * PAGE_SIZE
        assert machine.status().counters.discard_failures == 0


@pytest.mark.parametrize("must_tell_host", [True, False])
def test_programs_lose_nothing_in_any_kind(backing: str, must_tell_host: bool) -> None:
    with running(
        memory=backing, ram_bytes=32 * MIB, used_bytes=8 * MIB, fragmented=True, must_tell_host=must_tell_host
    ) as machine:
        for pages in (3000, 100, 4000, 0):
            settle(machine, pages)
            assert machine.check()["lost_pages"] == 0
        machine.set_target(4000)
        machine.oom(16 * MIB)
        assert machine.check()["lost_pages"] == 0


def test_memory_that_a_program_adds_later_counts_when_it_leaves() -> None:
    with running(memory="anon", touch_bytes=0, used_bytes=0) as machine:
        assert machine.status().memory_allocated_bytes < MIB
        machine.oom(8 * MIB)
        full = machine.status().memory_allocated_bytes
        assert full >= 8 * MIB
        settle(machine, machine.pages.free_pages())
        assert machine.status().returned_measured_bytes >= 8 * MIB
        assert machine.status().memory_allocated_bytes < MIB


def test_a_file_is_made_anew_and_goes_with_the_machine(tmp_path: Path) -> None:
    path = tmp_path / "guest"
    with running(memory=str(path)) as machine:
        assert path.stat().st_size == machine.ram_bytes
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(InvalidArgument) as refused:
            Machine.create(MachineConfig(ram_bytes=16 * MIB, memory=str(path)))
        assert "there already" in refused.value.why
    assert not path.exists()


def test_a_file_that_was_there_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("precious")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    for taken in (path, link):
        with pytest.raises(InvalidArgument):
            GuestMemory(MIB, str(taken))
    assert path.read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


def test_a_name_that_somebody_else_took_meanwhile_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "guest"
    with GuestMemory(MIB, str(path)):
        path.unlink()
        path.write_text("precious")
    assert path.read_text() == "precious"


def test_a_directory_gets_a_file_without_a_name(tmp_path: Path) -> None:
    with running(memory=str(tmp_path)):
        assert not list(tmp_path.iterdir())


def test_a_shrunk_file_does_not_end_the_machine(tmp_path: Path) -> None:
    path = tmp_path / "guest"
    with GuestMemory(4 * MIB, str(path)) as memory:
        memory.populate(0, 4 * MIB)
        os.truncate(path, MIB)
        assert memory.read(2 * MIB, 8) == bytes(8)


@pytest.mark.parametrize(
    ("given", "says", "error"),
    [
        ("paper", "it is memfd, anon, huge, or a path", InvalidArgument),
        ("", "it is memfd, anon, huge, or a path", InvalidArgument),
        ("/dev/null", "there already", InvalidArgument),
        ("./no-such-directory/guest", "No such file or directory", BalloonError),
        ("/dev/null/guest", "Not a directory", BalloonError),
    ],
)
def test_what_cannot_be_memory_is_refused(given: str, says: str, error: type[BalloonError]) -> None:
    with pytest.raises(error) as refused:
        GuestMemory(MIB, given)
    assert type(refused.value) is error
    assert says in refused.value.why


def test_a_file_that_does_not_fit_is_refused_before_it_is_touched(tmp_path: Path) -> None:
    room = os.statvfs(tmp_path)
    with pytest.raises((NotEnoughMemory, InvalidArgument)):
        GuestMemory((room.f_bavail * room.f_frsize // MIB + 1024) * MIB, str(tmp_path / "guest"))
    assert not list(tmp_path.iterdir())


def test_nothing_stays_open_after_a_refusal(tmp_path: Path) -> None:
    room = os.statvfs(tmp_path)
    before = open_descriptors()
    for _ in range(3):
        with pytest.raises((NotEnoughMemory, InvalidArgument)):
            GuestMemory((room.f_bavail * room.f_frsize // MIB + 1024) * MIB, str(tmp_path / "guest"))
    assert open_descriptors() == before


def test_holes_in_private_memory_are_refused() -> None:
    with pytest.raises(InvalidArgument) as refused:
        Machine.create(MachineConfig(ram_bytes=16 * MIB, memory="anon", discard="punch"))
    assert refused.value.hint == "--discard dontneed"
