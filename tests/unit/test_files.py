"""Files that are whole or not there."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from balloonvq.files import written_whole


def test_a_file_takes_the_place_of_the_old_one_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "report"
    path.write_text("old")
    path.chmod(0o640)
    with written_whole(path) as file:
        file.write(b"new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_left_of_a_file_that_was_not_finished(tmp_path: Path) -> None:
    def interrupted() -> None:
        with written_whole(tmp_path / "report") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with written_whole(path) as file:
            file.write(b"through")
        assert os.read(reader, 100) == b"through"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_is_followed(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_text("old")
    link = tmp_path / "link"
    link.symlink_to(there)
    with written_whole(link) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert there.read_text() == "new"


def test_a_full_device_is_an_error_and_stays_a_device() -> None:
    full = Path("/dev/full")

    def write() -> None:
        with written_whole(full) as file:
            file.write(b"x")

    with pytest.raises(OSError, match="No space"):
        write()
    assert stat.S_ISCHR(full.stat().st_mode)


def test_a_pipe_without_a_name_of_its_own_is_written_to() -> None:
    reader, writer = os.pipe()
    with written_whole(Path(f"/dev/fd/{writer}")) as file:
        file.write(b"report")
    assert os.read(reader, 100) == b"report"
    os.close(reader)
    os.close(writer)


def test_a_link_to_itself_is_an_error_of_the_system(tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(link)
    with pytest.raises(OSError, match="link"), written_whole(link):
        pass
    assert list(tmp_path.iterdir()) == [link]


@pytest.mark.parametrize("folder", ["/dev/fd", "/proc/self/fd"])
def test_an_open_descriptor_is_written_to_from_where_it_stands(tmp_path: Path, folder: str) -> None:
    path = tmp_path / "log"
    with path.open("w+b", buffering=0) as log:
        log.write(b"before\n")
        inode = path.stat().st_ino
        with written_whole(Path(f"{folder}/{log.fileno()}")) as file:
            file.write(b"within\n")
        log.write(b"after\n")
    assert path.read_bytes() == b"before\nwithin\nafter\n"
    assert path.stat().st_ino == inode
    assert list(tmp_path.iterdir()) == [path]


def test_a_descriptor_that_is_not_open_cannot_be_written() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    with pytest.raises(OSError, match="descriptor"), written_whole(Path(f"/dev/fd/{writer}")):
        pytest.fail("it was opened")
