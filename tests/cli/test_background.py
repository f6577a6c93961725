"""Background machines: start, stop, list, and everything that can go wrong with them."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import background_child
from support.fake_machine import eventually

from balloonctl import background
from balloonvq.errors import (
    InternalError,
    InvalidArgument,
    MachineDied,
    MachineError,
    MachineExists,
    MachineUnreachable,
    NoSuchMachine,
    NotEnoughMemory,
)

COMMAND = [sys.executable, background_child.__file__]


def exists(pid: int) -> bool:
    """Whether the process runs; a zombie does not, unless other threads of it still close its files."""
    process = Path(f"/proc/{pid}")
    try:
        state = (process / "stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z" or len(list((process / "task").iterdir())) > 1
    except OSError:
        return False


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory; whatever still runs in it at the end is killed."""
    path = Path(tempfile.mkdtemp(prefix="bln-"))
    monkeypatch.setenv("BALLOONCTL_RUNTIME_DIR", str(path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(entry for entry in sys.path if entry))
    yield path
    for lock in path.glob("*.lock"):
        with contextlib.suppress(OSError, ValueError, KeyError):
            os.kill(json.loads(lock.read_text())["pid"], signal.SIGKILL)
    shutil.rmtree(path)


def start(name: str = "m", **options: Any) -> background.MachineEntry:
    return background.start(name, options, command=COMMAND)


# ---- a machine's life ------------------------------------------------------


def test_a_started_machine_can_be_talked_to_and_stopped(folder: Path) -> None:
    entry = start(colour="red")
    assert (entry["name"], entry["state"], entry["options"]) == ("m", "alive", {"colour": "red"})
    assert background.list_machines() == [entry]
    pid = entry["pid"]
    assert pid is not None
    with background.connect("m") as client:
        assert client.execute("query-name") == {"name": "m"}
        assert client.greeting.package.startswith("balloonctl ")
    assert background.stop("m") == "quit"
    eventually(lambda: not exists(pid))
    assert list(folder.iterdir()) == []
    assert background.list_machines() == []


def test_its_files_are_private(folder: Path) -> None:
    start()
    for path in folder.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    background.stop("m")


def test_it_is_nobodys_child_and_in_no_terminals_session(folder: Path) -> None:
    pid = start()["pid"]
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    assert int(fields[1]) != os.getpid()
    assert int(fields[3]) not in {os.getsid(0), pid}
    background.stop("m")


def test_it_inherits_nothing_but_its_lock(folder: Path) -> None:
    with tempfile.TemporaryFile() as secret:
        os.set_inheritable(secret.fileno(), True)
        pid = start()["pid"]
        targets = {str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir()}
    files = {target for target in targets if target.startswith("/")}
    assert files == {"/dev/null", str(folder / "m.log"), str(folder / "m.lock")}
    background.stop("m")


def test_it_starts_where_it_was_called_and_then_leaves_the_file_system_alone(folder: Path) -> None:
    note = folder / "cwd"
    pid = start(cwd=str(note))["pid"]
    assert note.read_text() == str(Path.cwd())
    assert Path(f"/proc/{pid}/cwd").readlink() == Path("/")
    background.stop("m")
    note.unlink()


def test_who_asks_for_a_machine_that_is_not_there_hears_who_is(folder: Path) -> None:
    start("big")
    with pytest.raises(NoSuchMachine) as caught:
        background.connect("bgi")
    assert (caught.value.why, caught.value.hint) == ("there is big", "balloonctl start bgi")
    with pytest.raises(NoSuchMachine) as caught:
        background.stop("bgi")
    assert caught.value.hint == "balloonctl ps lists those that run"
    background.stop("big")


def test_progress_is_passed_on(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    background.start("m", {"progress": True}, lambda done, total: seen.append((done, total)), command=COMMAND)
    assert seen == [(0, 100), (50, 100), (100, 100)]
    background.stop("m")


def test_several_machines_live_side_by_side(folder: Path) -> None:
    for name in ("b", "a", "a.lock"):
        start(name)
    assert [entry["name"] for entry in background.list_machines()] == ["a", "a.lock", "b"]
    for name in ("a", "b", "a.lock"):
        background.stop(name)
    assert list(folder.iterdir()) == []


# ---- names and directories -------------------------------------------------


@pytest.mark.parametrize("name", ["", ".", "..", ".x", "-x", "a/b", "a b", "é", "x" * 41, "a\n", "../x"])
def test_a_bad_name_is_refused(folder: Path, name: str) -> None:
    for act in (start, background.connect, background.stop):
        with pytest.raises(InvalidArgument, match="cannot be the name"):
            act(name)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("name", ["a", "x" * 40, "A.b_c-1", "0"])
def test_a_good_name_is_accepted(folder: Path, name: str) -> None:
    with pytest.raises(NoSuchMachine):
        background.connect(name)


def test_a_path_that_is_too_long_for_a_socket_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BALLOONCTL_RUNTIME_DIR", str(folder / ("d" * 90)))
    with pytest.raises(InvalidArgument, match="too long") as caught:
        start("machine")
    assert "BALLOONCTL_RUNTIME_DIR" in caught.value.hint


def test_the_runtime_directory_is_made_and_private(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BALLOONCTL_RUNTIME_DIR", str(folder / "a" / "b"))
    assert background.runtime_dir() == folder / "a" / "b"
    assert stat.S_IMODE((folder / "a" / "b").stat().st_mode) == 0o700


def test_a_directory_that_others_may_write_is_refused(folder: Path) -> None:
    folder.chmod(0o777)
    with pytest.raises(MachineError, match="others may write") as caught:
        start()
    assert caught.value.hint == f"chmod 700 {folder}"


def test_another_users_directory_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(MachineError, match="not ours"):
        background.runtime_dir()


def test_without_a_runtime_directory_of_the_user_there_is_a_private_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("BALLOONCTL_RUNTIME_DIR")
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    path = background.runtime_dir()
    assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0
    if path.is_relative_to(folder):
        shutil.rmtree(path.parent)


def test_the_users_runtime_directory_is_used(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BALLOONCTL_RUNTIME_DIR")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(folder))
    assert background.runtime_dir() == folder / "balloonctl"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_file_that_cannot_be_made_is_an_error_and_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real = os.open

    def refuse(path: Any, flags: int, *rest: Any, **named: Any) -> int:
        if str(path).endswith(".log"):
            raise OSError(number, os.strerror(number), path)
        return real(path, flags, *rest, **named)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(MachineError) as caught:
        start()
    assert caught.value.why == os.strerror(number)
    assert "BALLOONCTL_RUNTIME_DIR" in caught.value.hint
    assert list(folder.iterdir()) == []


def test_a_full_file_system_is_an_error_and_leaves_nothing(folder: Path) -> None:
    # A real one: a tmpfs with inodes for the directory and a single file.
    code = (
        "import os, sys\n"
        "from balloonctl import background\n"
        "from balloonvq.errors import MachineError\n"
        "try:\n"
        "    background.start('m', {}, command=[sys.executable, '-c', 'pass'])\n"
        "except MachineError as error:\n"
        "    print(error.why, '|', os.listdir(os.environ['BALLOONCTL_RUNTIME_DIR']))\n"
    )
    mount = 'mount -t tmpfs -o nr_inodes=2,mode=700 none "$1" || exit 77; exec "$2" -c "$3"'
    result = subprocess.run(
        [
            "unshare",
            "--user",
            "--map-root-user",
            "--mount",
            "sh",
            "-c",
            mount,
            "-",
            folder,
            sys.executable,
            code,
        ],
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    if result.returncode == 77 or "unshare" in result.stderr:
        pytest.skip("no mount in a user namespace here")
    assert result.stdout.strip() == "No space left on device | []", result.stderr


# ---- starts that fail ------------------------------------------------------


def test_a_second_start_is_refused_and_says_who_runs(folder: Path) -> None:
    entry = start()
    with pytest.raises(MachineExists) as caught:
        start()
    assert str(entry["pid"]) in caught.value.why
    assert str(entry["started"]) in caught.value.why
    assert caught.value.hint == "balloonctl stop m"
    with background.connect("m") as client:
        assert client.execute("query-name") == {"name": "m"}
    background.stop("m")


def test_of_ten_starts_at_once_one_succeeds(folder: Path) -> None:
    outcomes: list[str] = []

    def run() -> None:
        try:
            start()
            outcomes.append("started")
        except MachineExists:
            outcomes.append("exists")
        except Exception as error:  # noqa: BLE001 - told to the test's own thread
            outcomes.append(repr(error))

    threads = [threading.Thread(target=run) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["exists"] * 9 + ["started"]
    background.stop("m")


def test_a_machines_own_error_comes_back_in_its_class(folder: Path) -> None:
    with pytest.raises(NotEnoughMemory) as caught:
        start(fail="memory")
    assert (caught.value.what, caught.value.why, caught.value.hint) == (
        "too little memory",
        "2 GiB are wanted",
        "--ram 1G",
    )
    assert list(folder.iterdir()) == []


def test_a_bug_while_starting_asks_for_a_report(folder: Path) -> None:
    with pytest.raises(InternalError, match="ZeroDivisionError") as caught:
        start(fail="bug")
    assert "ZeroDivisionError: oops" in (folder / "m.log").read_text()
    assert "m.log" in caught.value.hint
    eventually(lambda: background.list_machines() == [])
    assert start()["state"] == "alive"
    background.stop("m")


def test_a_machine_that_dies_while_starting_gives_its_last_words(folder: Path) -> None:
    with pytest.raises(MachineError, match="died while it was starting") as caught:
        start(die=True)
    assert caught.value.why == "cannot go on"
    assert [path.name for path in folder.iterdir()] == ["m.log"]


def test_a_program_that_cannot_run_is_an_error(folder: Path) -> None:
    with pytest.raises(MachineError):
        background.start("m", {}, command=[str(folder / "missing")])
    assert list(folder.iterdir()) == []


def run_starter(note: Path) -> subprocess.Popen[bytes]:
    """A process that starts a machine which takes for ever."""
    code = (
        "import sys\n"
        "from balloonctl import background\n"
        "background.start('m', {'slow': sys.argv[1]}, command=sys.argv[2:])\n"
    )
    return subprocess.Popen([sys.executable, "-c", code, note, *COMMAND], stderr=subprocess.PIPE)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_the_machine_goes_away_with_who_starts_it(folder: Path, number: signal.Signals) -> None:
    with tempfile.TemporaryDirectory() as other:
        note = Path(other) / "pid"
        starter = run_starter(note)
        pid = int(eventually(lambda: note.exists() and note.read_text()))
        starter.send_signal(number)
        starter.communicate()
        eventually(lambda: not exists(pid))
        assert list(folder.iterdir()) == []


def test_a_machine_that_is_starting_is_there_already_and_can_be_stopped(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as other:
        note = Path(other) / "pid"
        starter = run_starter(note)
        pid = int(eventually(lambda: note.exists() and note.read_text()))
        assert [entry["state"] for entry in background.list_machines()] == ["starting"]
        with pytest.raises(MachineExists, match="there already") as caught:
            start()
        assert "is starting it" in caught.value.why
        with pytest.raises(MachineUnreachable, match="still starting"):
            background.connect("m", starting=0.05)
        assert background.stop("m", 4) == "terminated"
        assert b"ended while it was starting" in starter.communicate()[1]
        eventually(lambda: not exists(pid))
        assert list(folder.iterdir()) == []


def test_connecting_waits_for_a_machine_that_somebody_else_is_starting(folder: Path) -> None:
    with tempfile.TemporaryDirectory() as other:
        gate = Path(other) / "gate"
        os.mkfifo(gate)
        starter = threading.Thread(target=start, kwargs={"gate": str(gate)})
        starter.start()
        eventually(lambda: [entry["state"] for entry in background.list_machines()] == ["starting"])
        names: list[Any] = []

        def ask() -> None:
            with background.connect("m") as client:
                names.append(client.execute("query-name"))

        asker = threading.Thread(target=ask)
        asker.start()
        gate.write_text("go on")
        asker.join(10)
        starter.join(10)
        assert names == [{"name": "m"}]
        background.stop("m")


# ---- machines that died ----------------------------------------------------


def kill(entry: background.MachineEntry) -> None:
    pid = entry["pid"]
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not exists(pid))


def test_a_killed_machine_is_listed_once_and_cleaned_up(folder: Path) -> None:
    kill(start())
    assert (folder / "m.sock").exists()
    assert [entry["state"] for entry in background.list_machines()] == ["dead"]
    assert background.list_machines() == []
    assert list(folder.iterdir()) == []


def test_a_killed_machine_does_not_block_a_new_one(folder: Path) -> None:
    kill(start())
    assert start()["state"] == "alive"
    background.stop("m")


def test_connecting_to_a_killed_machine_says_so(folder: Path) -> None:
    entry = start()
    kill(entry)
    with pytest.raises(NoSuchMachine, match="no longer running") as caught:
        background.connect("m")
    assert str(entry["pid"]) in caught.value.why
    assert list(folder.iterdir()) == []


def test_a_killed_machine_is_told_with_its_last_words_and_names_alone_do_not_use_that_up(
    folder: Path,
) -> None:
    entry = start()
    Path(entry["log"]).write_text("first\nsomething went wrong\n")
    kill(entry)
    assert background.machine_names() == ["m"]
    with pytest.raises(MachineDied) as caught:
        background.connect("m")
    assert str(entry["started"]) in caught.value.why
    assert caught.value.why.endswith(f"{entry['log']} is: something went wrong")
    assert caught.value.hint.startswith("balloonctl start m ")
    with pytest.raises(NoSuchMachine) as told:
        background.connect("m")
    assert not isinstance(told.value, MachineDied)


def test_stopping_a_killed_machine_says_so(folder: Path) -> None:
    kill(start())
    with pytest.raises(NoSuchMachine):
        background.stop("m")
    assert list(folder.iterdir()) == []


def test_a_client_learns_that_its_machine_was_killed(folder: Path) -> None:
    entry = start()
    with background.connect("m") as client:
        kill(entry)
        with pytest.raises(MachineError, match="the machine ended"):
            client.execute("query-name")


def test_the_log_of_a_dead_machine_is_kept(folder: Path) -> None:
    entry = start()
    Path(entry["log"]).write_text("something went wrong\n")
    kill(entry)
    background.list_machines()
    assert [path.name for path in folder.iterdir()] == ["m.log"]


def test_a_foreign_socket_and_rubbish_in_the_directory_block_nothing(folder: Path) -> None:
    with socket.socket(socket.AF_UNIX) as foreign:
        foreign.bind(str(folder / "m.sock"))
    (folder / "x.lock").write_text("no JSON")
    (folder / ".hidden.lock").write_text("{}")
    assert background.list_machines() == []
    assert start()["state"] == "alive"
    background.stop("m")


def test_a_lock_file_may_name_a_process_that_is_not_its_owner(folder: Path) -> None:
    # A dead machine's pid may belong to anybody by now; nobody gets a signal for that.
    with subprocess.Popen(["sleep", "60"]) as bystander, (folder / "m.lock").open("w") as lock:
        json.dump({"pid": bystander.pid}, lock)
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(MachineUnreachable, match="does not end"):
            background.stop("m", 0.2)
        assert bystander.poll() is None
        bystander.kill()


# ---- files that go away ----------------------------------------------------


@pytest.mark.parametrize("missing", ["m.lock", "m.sock"])
def test_a_machine_whose_file_is_removed_ends_and_says_why(folder: Path, missing: str) -> None:
    pid = start()["pid"]
    assert pid is not None
    (folder / missing).unlink()
    eventually(lambda: not exists(pid))
    assert f"{folder / missing} was removed or replaced" in (folder / "m.log").read_text()
    assert not (folder / "m.sock").exists()


def test_a_machine_whose_directory_is_removed_ends(folder: Path) -> None:
    pid = start()["pid"]
    assert pid is not None
    shutil.rmtree(folder)
    eventually(lambda: not exists(pid))
    folder.mkdir()


def test_a_machine_whose_lock_file_is_replaced_leaves_the_new_one_alone(folder: Path) -> None:
    pid = start()["pid"]
    assert pid is not None
    (folder / "m.lock").unlink()
    (folder / "m.lock").write_text("another's")
    eventually(lambda: not exists(pid))
    assert (folder / "m.lock").read_text() == "another's"


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_a_start_does_not_take_a_socket_from_somebody_who_listens(folder: Path, kind: int) -> None:
    path = folder / "m.sock"
    with socket.socket(socket.AF_UNIX, kind) as foreign:
        foreign.bind(str(path))
        if kind == socket.SOCK_STREAM:
            foreign.listen(0)
        with pytest.raises(MachineExists, match=re.escape(f"somebody listens at {path}")):
            start()
        assert [entry.name for entry in folder.iterdir()] == ["m.sock"]
    assert start()["state"] == "alive"
    background.stop("m")


# ---- machines that do not want to end --------------------------------------


def test_a_machine_ends_at_sigterm(folder: Path) -> None:
    pid = start()["pid"]
    assert pid is not None
    os.kill(pid, signal.SIGTERM)
    eventually(lambda: not exists(pid))
    assert list(folder.iterdir()) == []


def test_a_machine_that_hangs_in_its_end_is_terminated(folder: Path) -> None:
    pid = start(hang=True)["pid"]
    assert pid is not None
    assert background.stop("m", 1.0) == "terminated"
    eventually(lambda: not exists(pid))
    assert list(folder.iterdir()) == []


def test_a_stopped_process_is_named_within_the_time_that_it_was_given(folder: Path) -> None:
    pid = start()["pid"]
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    begun = time.monotonic()
    with pytest.raises(MachineUnreachable, match="the machine m does not answer") as caught:
        background.connect("m", 0.3)
    assert 0.3 <= time.monotonic() - begun < 3
    assert f"process {pid} is stopped" in caught.value.why
    assert caught.value.hint.startswith(f"kill -CONT {pid} ")
    background.stop("m", 1.0)


def test_a_machine_that_hears_nothing_is_killed(folder: Path) -> None:
    pid = start()["pid"]
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    begun = time.monotonic()
    assert background.stop("m", 1.0) == "killed"
    assert time.monotonic() - begun < 3
    eventually(lambda: not exists(pid))
    assert list(folder.iterdir()) == []


def test_a_stopped_machine_is_gone_for_its_waiting_clients(folder: Path) -> None:
    start()
    with background.connect("m") as client:
        assert background.stop("m") == "quit"
        with pytest.raises(MachineError) as caught:
            list(client.events())
        assert caught.value.why == "it was asked to quit"


# ---- imports ---------------------------------------------------------------


def test_the_module_is_quick_to_import() -> None:
    output = subprocess.run(
        [sys.executable, "-c", "import sys, balloonctl.background; print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)},
    ).stdout
    assert not {"asyncio", "click", "rich", "msgspec", "platformdirs", "logging"} & set(output.split())
