"""Machines that run in the background: a process and three files each.

In the runtime directory (0700, ours), for a machine NAME:

``NAME.sock``   its QMP socket
``NAME.lock``   locked with flock(2) for the machine's whole life; holds its pid and options as JSON
``NAME.log``    what it wrote to stderr

The lock alone says whether a machine lives. The kernel lets go of it however
the process ends, so nothing that a dead machine leaves behind blocks a new
one: whoever gets the lock may remove the rest. A lock file that is removed is
removed by the lock's owner; whoever locked a file that is no longer at its path
looks again.

How a start goes::

    start()                                   child
    takes the lock (second start: MachineExists)
    spawns the child, which inherits the lock and a pipe
    closes its own copy of the lock           makes the machine: {"progress": ...}
    reads the pipe                            makes the socket
    returns                  <────────────    {"ready": ...} or {"error": ...}

If the reader of the pipe goes away before ``ready`` (Ctrl-C, SIGKILL), the child ends too.

A machine whose lock or socket file is removed or replaced can no longer be found. It looks after
both once a second, and ends when one is gone, with a line in its log.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import re
import select
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Protocol, TypeAlias, TypedDict

from balloonvq.errors import (
    BalloonError,
    InternalError,
    InvalidArgument,
    MachineDied,
    MachineError,
    MachineExists,
    MachineUnreachable,
    NoSuchMachine,
)
from balloonvq.qmp.client import QMPClient, restore_error
from balloonvq.unix_sockets import PATH_BYTES_MAX, path_too_long, somebody_listens

if TYPE_CHECKING:
    import subprocess
    from types import FrameType

    from balloonvq.qmp.commands import MachineAPI
    from balloonvq.qmp.server import QMPServer

    class ServedMachine(MachineAPI, Protocol):
        """What `serve` runs: the verbs of QMP, and an end."""

        def stop(self) -> object:
            """End everything; verbs that are still waiting return or raise."""


__all__ = [
    "MachineEntry",
    "OnProgress",
    "StopMethod",
    "connect",
    "died",
    "list_machines",
    "machine_names",
    "runtime_dir",
    "serve",
    "start",
    "stop",
]

#: Names another directory for the files of the machines.
RUNTIME_VARIABLE = "BALLOONCTL_RUNTIME_DIR"

#: Told how much of the guest's memory was touched: bytes done, bytes in all.
OnProgress: TypeAlias = Callable[[int, int], None]

#: What it took to end a machine.
StopMethod: TypeAlias = Literal["quit", "terminated", "killed"]

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,39}", re.ASCII)

_POLL_SECONDS = 0.01

#: How often a machine looks whether its files are still there.
_LOOK_SECONDS = 1.0


class MachineEntry(TypedDict):
    """A machine as `list_machines` finds it."""

    name: str
    pid: int | None
    """None while nobody has said so: its first milliseconds."""
    state: Literal["starting", "alive", "dead"]
    """dead: it was killed; its leftovers have been removed by the time you read this."""
    socket: str
    log: str
    started: str | None
    """RFC 3339, UTC."""
    options: dict[str, Any]
    """What it was started with."""


# ---- names, files, the lock ------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Files:
    """The files of a machine."""

    name: str
    socket: Path
    lock: Path
    log: Path


def runtime_dir() -> Path:
    """The directory of the machines' files; made if it is missing.

    ``BALLOONCTL_RUNTIME_DIR``, else ``balloonctl`` in the user's runtime directory, else
    in a private directory below the temporary one.

    :raise MachineError: it cannot be made, or somebody else could reach into it.
    """
    hint = f"set {RUNTIME_VARIABLE} to a directory of yours"
    given = os.environ.get(RUNTIME_VARIABLE)
    try:
        if given:
            path = Path(given).absolute()
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
        else:
            path = _default_runtime_dir()
        status = path.stat()
    except OSError as error:
        where = given or error.filename or "balloonctl"
        raise MachineError(
            f"cannot make the runtime directory {where}", why=error.strerror or str(error), hint=hint
        ) from error
    if status.st_uid != os.geteuid():
        raise MachineError(
            f"the runtime directory {path} is not ours", why=f"it belongs to user {status.st_uid}", hint=hint
        )
    if stat.S_IMODE(status.st_mode) & 0o022:
        raise MachineError(
            f"others may write to the runtime directory {path}",
            why=f"its mode is {stat.S_IMODE(status.st_mode):o}",
            hint=f"chmod 700 {path}",
        )
    return path


def _default_runtime_dir() -> Path:
    """The choice of platformdirs, which falls back to a private directory; its warning about that is of no use here."""
    found = _private_runtime_dir()
    if found is not None:
        return found
    import warnings

    import platformdirs

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Path(platformdirs.user_runtime_dir("balloonctl", ensure_exists=True))


def _private_runtime_dir() -> Path | None:
    """The choice of platformdirs where that is there already, without the 15 ms that it takes in each command.

    None if it is missing, or anything about it is not plainly as it should be.
    """
    place = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    if "XDG_RUNTIME_DIR" not in os.environ and not os.path.lexists(place):
        if any(name in os.environ for name in ("TMPDIR", "TEMP", "TMP")):
            return None
        place = f"/tmp/runtime-{os.getuid()}"  # noqa: S108 - owner and mode are looked at
    path = Path(place) / "balloonctl"
    try:
        kinds = [os.lstat(one) for one in (place, path)]
    except OSError:
        return None
    for kind in kinds:
        private = kind.st_uid == os.geteuid() and stat.S_IMODE(kind.st_mode) == 0o700
        if not (stat.S_ISDIR(kind.st_mode) and private):
            return None
    return path if path.is_absolute() else None


def _files(name: str) -> _Files:
    """The files of the machine `name`.

    :raise InvalidArgument: no machine can have that name, or the socket's path is too long.
    :raise MachineError: see `runtime_dir`.
    """
    if not _NAME.fullmatch(name):
        raise InvalidArgument(
            f"{name!r} cannot be the name of a machine",
            why="a name has 1 to 40 of the characters A-Z a-z 0-9 . _ - and does not start with . or -",
        )
    return _files_in(runtime_dir(), name)


def _files_in(directory: Path, name: str) -> _Files:
    path = directory / name
    socket = Path(f"{path}.sock")
    if len(os.fsencode(socket)) > PATH_BYTES_MAX:
        raise path_too_long(socket, hint=f"set {RUNTIME_VARIABLE} to a directory with a shorter path")
    return _Files(name, socket, Path(f"{path}.lock"), Path(f"{path}.log"))


def _try_lock(path: Path, *, create: bool) -> int | None:
    """A descriptor that holds the lock at `path`; None if somebody else does.

    :raise OSError: the file cannot be opened or made.
    """
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
    while True:
        descriptor = os.open(path, flags, 0o600)
        try:
            if not _flock(descriptor):
                os.close(descriptor)
                return None
            # Its last owner may have removed the file between open and flock.
            if _is_at(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except (FileNotFoundError, NotADirectoryError):
        return False


def _write_info(descriptor: int, info: Mapping[str, Any]) -> None:
    """Replace what the lock file says of its owner.

    :raise OSError: the disk is full.
    """
    data = json.dumps(info).encode()
    # Readers may look at any time: first the new text, padded over the old one, then the length.
    os.pwrite(descriptor, data.ljust(os.fstat(descriptor).st_size), 0)
    os.ftruncate(descriptor, len(data))


def _read_info(path: Path) -> dict[str, Any]:
    """What the lock file says; empty if it says nothing."""
    try:
        info = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return info if isinstance(info, dict) else {}


def _owner(files: _Files) -> int | None:
    """The process that the lock file names, if it really has the file open."""
    pid = _read_info(files.lock).get("pid")
    if type(pid) is not int:
        return None
    try:
        lock = files.lock.stat()
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if os.path.samestat(entry.stat(), lock):
                    return pid
    except OSError:
        return None
    return None


def _clean(files: _Files, *, keep_log: bool) -> None:
    """Remove a machine's files; only the owner of the lock may."""
    for path in (files.socket, files.lock):
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        if not keep_log or files.log.stat().st_size == 0:
            files.log.unlink()


# ---- what there is ---------------------------------------------------------


def machine_names() -> list[str]:
    """Names that have a lock file, sorted; whether their machines live is not looked at.

    :raise MachineError: see `runtime_dir`.
    """
    return sorted(lock.stem for lock in runtime_dir().glob("*.lock") if _NAME.fullmatch(lock.stem))


def list_machines() -> list[MachineEntry]:
    """Every machine, sorted by name; the leftovers of dead ones are removed, their logs stay.

    :raise MachineError: see `runtime_dir`.
    """
    directory = runtime_dir()
    entries = (_inspect(_files_in(directory, name)) for name in machine_names())
    return [entry for entry in entries if entry is not None]


def _inspect(files: _Files) -> MachineEntry | None:
    """The machine of these files, None if there is none; removes what a dead one left."""
    for _ in range(5):
        info = _read_info(files.lock)
        try:
            lock = _try_lock(files.lock, create=False)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _no_files(files, error) from error
        if lock is not None or _owner(files) is not None:
            break
        # Held by somebody who is not the owner: a second look at a dead machine at the same time as ours.
        time.sleep(_POLL_SECONDS)
    state: Literal["starting", "alive", "dead"] = "dead"
    if lock is None:
        # Whoever has just taken the lock has not written anything yet.
        state = "alive" if info.get("state") == "running" else "starting"
    else:
        info = _read_info(files.lock)
        _clean(files, keep_log=True)
        os.close(lock)
        if not info:
            return None
    return _entry(files, info, state)


def _entry(
    files: _Files, info: Mapping[str, Any], state: Literal["starting", "alive", "dead"]
) -> MachineEntry:
    """A machine as its lock file describes it."""
    pid, started, options = info.get("pid"), info.get("started"), info.get("options")
    return MachineEntry(
        name=files.name,
        pid=pid if isinstance(pid, int) else None,
        state=state,
        socket=str(files.socket),
        log=str(files.log),
        started=started if isinstance(started, str) else None,
        options=options if isinstance(options, dict) else {},
    )


def connect(name: str, timeout: float = 5.0, starting: float = 60.0) -> QMPClient:
    """A conversation with the machine `name`.

    `timeout` is how long it may take to answer, in seconds; `starting` how long to wait
    for one that somebody has begun to start.

    :raise NoSuchMachine: there is none.
    :raise MachineDied: there was one.
    :raise MachineUnreachable: it is still starting, or does not answer.
    :raise InvalidArgument: no machine can have that name.
    """
    files = _files(name)
    deadline = time.monotonic() + starting
    was_alive = False
    while True:
        begun = time.monotonic()
        try:
            return QMPClient.connect(files.socket, timeout)
        except (NoSuchMachine, MachineUnreachable):
            entry = _inspect(files)
            if entry is None:
                raise _no_machine(name) from None
            if entry["state"] == "dead":
                raise died(entry) from None
            if time.monotonic() - begun >= timeout and entry["state"] == "alive":
                raise _silent(entry, timeout) from None
            # One that was starting when we knocked may have its socket by now: knock again.
            if was_alive:
                raise
            was_alive = entry["state"] == "alive"
            if time.monotonic() >= deadline:
                raise MachineUnreachable(
                    f"the machine {name} is still starting",
                    why=f"process {entry['pid']} is making it",
                    hint="try again",
                ) from None
        time.sleep(_POLL_SECONDS)


def _silent(entry: MachineEntry, timeout: float) -> MachineUnreachable:
    """What to raise since a machine took a connection and said nothing."""
    name, pid = entry["name"], entry["pid"]
    stopped = _process_state(pid) in {"T", "t"}
    return MachineUnreachable(
        f"the machine {name} does not answer",
        why=f"its process {pid} is stopped, by SIGSTOP or a debugger"
        if stopped
        else f"its process {pid} runs, but sent no greeting within {timeout:g} s",
        hint=(f"kill -CONT {pid} lets it go on, " if stopped else "") + f"balloonctl stop {name} ends it",
    )


def _process_state(pid: int | None) -> str:
    """The letter of proc(5) for what a process does; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""


def _no_machine(name: str) -> NoSuchMachine:
    others = [other for other in machine_names() if other != name]
    return NoSuchMachine(
        f"no machine {name} is running",
        why=f"there is {', '.join(others)}" if others else "",
        hint=_how_to_start(name),
    )


def _how_to_start(name: str) -> str:
    return "balloonctl start" + ("" if name == "default" else f" {name}")


def died(entry: MachineEntry) -> MachineDied:
    """What to raise about an entry that is dead: the machine has ended by itself, or was killed."""
    since = f", which ran since {entry['started']}," if entry["started"] else ""
    log = Path(entry["log"])
    words = _last_words(log)
    left = f"the last line of its log {log} is: {words}" if words else "it left no message"
    return MachineDied(
        f"the machine {entry['name']} is no longer running",
        why=f"process {entry['pid'] or '?'}{since} ended without being asked to; {left}",
        hint=f"{_how_to_start(entry['name'])} makes a new one; what the old one had is lost",
    )


def _no_files(files: _Files, error: OSError) -> MachineError:
    """What to raise since a file cannot be made."""
    hint = {
        errno.ENOSPC: f"free some space there, or set {RUNTIME_VARIABLE} to another directory",
        errno.EDQUOT: f"free some space there, or set {RUNTIME_VARIABLE} to another directory",
    }.get(error.errno or 0, f"set {RUNTIME_VARIABLE} to a directory of yours")
    return MachineError(
        f"cannot make the files of the machine {files.name} in {files.lock.parent}",
        why=error.strerror or str(error),
        hint=hint,
    )


# ---- start -----------------------------------------------------------------


def start(
    name: str,
    options: Mapping[str, Any] | None = None,
    on_progress: OnProgress | None = None,
    *,
    command: Sequence[str] | None = None,
    meanwhile: Callable[[], object] | None = None,
) -> MachineEntry:
    """Start a machine and return when it can be connected to.

    `options` are the fields of `MachineConfig`; they must have a JSON form. `command`
    is what runs in place of this module, for tests; it gets the arguments of `run_child`.
    `meanwhile` is called while the machine's process comes up: for what takes time and has to be done anyway.

    :raise MachineExists: one of that name runs or starts.
    :raise InvalidArgument: no machine can have that name, or these options.
    :raise MachineError: its files cannot be made, or its process died.
    :raise BalloonError: whatever kept the machine from coming up, in its own class.
    """
    files = _files(name)
    options = dict(options or {})
    lock = _lock_for_start(files)
    try:
        _refuse_foreign_socket(files)
    except BaseException:
        files.lock.unlink(missing_ok=True)
        os.close(lock)
        raise
    try:
        reader, process = _spawn(files, options, lock, command)
    except OSError as error:
        _clean(files, keep_log=False)
        raise _no_files(files, error) from error
    except BaseException:
        _clean(files, keep_log=False)
        raise
    finally:
        os.close(lock)
    try:
        if meanwhile is not None:
            meanwhile()
        # The process that we made has made another one and ended: the machine is nobody's child.
        process.wait()
        _follow(files, reader, on_progress)
    except BaseException:
        os.close(reader)
        _clean_up_after(files)
        raise
    os.close(reader)
    entry = _inspect(files)
    if entry is None or entry["state"] == "dead":
        raise _no_machine(name) if entry is None else died(entry)
    return entry


def _lock_for_start(files: _Files) -> int:
    """The lock of a machine that does not run.

    :raise MachineExists: it does, or somebody is starting it.
    :raise MachineError: the lock file cannot be made.
    """
    deadline = time.monotonic() + 1.0
    while True:
        try:
            lock = _try_lock(files.lock, create=True)
        except OSError as error:
            raise _no_files(files, error) from error
        if lock is not None:
            return lock
        # Without an owner it is only somebody who looks whether the machine lives, for a moment.
        pid = _owner(files)
        if pid is not None or time.monotonic() >= deadline:
            break
        time.sleep(_POLL_SECONDS)
    info = _read_info(files.lock)
    doing = "is starting it" if info.get("state") == "starting" else "runs it"
    raise MachineExists(
        f"a machine {files.name} is there already",
        why=f"process {pid or '?'} {doing} since {info.get('started', 'a moment')}",
        hint=f"balloonctl stop {files.name}",
    )


def _refuse_foreign_socket(files: _Files) -> None:
    """Keeps a start from taking away the socket of somebody who lives; call with the lock.

    :raise MachineExists: somebody listens where the machine's socket is to be.
    """
    if somebody_listens(files.socket):
        raise MachineExists(
            f"somebody listens at {files.socket} already",
            why=f"it is no machine that balloonctl knows, or its lock file {files.lock.name} was removed",
            hint="end whoever listens there, or start the machine under another name",
        )


def _spawn(
    files: _Files, options: dict[str, Any], lock: int, command: Sequence[str] | None
) -> tuple[int, subprocess.Popen[bytes]]:
    """Run the child; returns the end of the pipe on which it reports, and its process.

    :raise OSError: a file or the process cannot be made.
    """
    import subprocess

    files.socket.unlink(missing_ok=True)
    _write_info(lock, _info(files, options, "starting"))
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    log = os.open(files.log, flags, 0o600)
    reader = writer = -1
    try:
        reader, writer = os.pipe()
        # -P: a json.py in the user's directory is not ours.
        prefix = command or [sys.executable, "-P", "-m", "balloonctl.background"]
        process = subprocess.Popen(
            [*prefix, str(files.lock.parent), files.name, json.dumps(options), str(lock), str(writer)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=(lock, writer),
            start_new_session=True,
        )
    except BaseException:
        if reader >= 0:
            os.close(reader)
        raise
    finally:
        os.close(log)
        if writer >= 0:
            os.close(writer)
    return reader, process


def _info(files: _Files, options: Mapping[str, Any], state: str) -> dict[str, Any]:
    """What stands in a lock file."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return {"name": files.name, "pid": os.getpid(), "state": state, "started": now, "options": dict(options)}


def _follow(files: _Files, reader: int, on_progress: OnProgress | None) -> None:
    """Read the child's reports until it is ready.

    :raise BalloonError: it reported an error.
    :raise MachineError: it died without a word.
    """
    with os.fdopen(reader, "rb", closefd=False) as reports:
        for line in reports:
            report = json.loads(line)
            if "ready" in report:
                return
            if "error" in report:
                raise restore_error(report["error"])
            if on_progress is not None:
                on_progress(int(report["bytes"]), int(report["total_bytes"]))
    raise MachineError(
        f"the machine {files.name} died while it was starting",
        why=_last_words(files.log) or "it left no message",
        hint=f"its log is {files.log}",
    )


def _last_words(log: Path) -> str:
    """The last line of a machine's log."""
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        return ""
    return lines[-1].strip()[:200] if lines else ""


def _clean_up_after(files: _Files) -> None:
    """Remove the files of a start that failed, once its process has let go of the lock."""
    deadline = time.monotonic() + 5.0
    while time.monotonic() < deadline:
        try:
            lock = _try_lock(files.lock, create=False)
        except OSError:
            break
        if lock is not None:
            _clean(files, keep_log=True)
            os.close(lock)
            break
        time.sleep(_POLL_SECONDS)


# ---- stop ------------------------------------------------------------------


def stop(name: str, timeout: float = 10.0) -> StopMethod:
    """End a machine and return once its process is gone; says what it took.

    It is asked to quit; if it has not within half of `timeout` seconds, SIGTERM, after
    another quarter SIGKILL. Only a process that holds the machine's lock is signalled.

    :raise NoSuchMachine: there is none.
    :raise MachineUnreachable: it does not end, or its process cannot be found.
    :raise BalloonError: it has ended, and reported this while it did.
    """
    files = _files(name)
    try:
        lock = os.open(files.lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        missing = _no_machine(name)
        missing.hint = "balloonctl ps lists those that run"
        raise missing from None
    except OSError as error:
        raise _no_files(files, error) from error
    try:
        method = _stop(files, lock, timeout)
    finally:
        os.close(lock)
    _raise_last_error(files)
    return method


def _raise_last_error(files: _Files) -> None:
    """Passes on what went wrong while the machine ended.

    :raise BalloonError: that, in its own class.
    """
    try:
        document = json.loads(files.log.read_text(errors="replace").splitlines()[-1])
    except (OSError, ValueError, IndexError):
        return
    if isinstance(document, dict) and document.get("schema") == "balloonctl/error/1":
        raise restore_error(document)


def _stop(files: _Files, lock: int, timeout: float) -> StopMethod:
    """`stop` with the lock file open; to get its lock is to see the machine end."""
    if _flock(lock):
        entry = _entry(files, _read_info(files.lock), "dead")
        if _is_at(lock, files.lock):
            _clean(files, keep_log=True)
        raise died(entry)
    with contextlib.suppress(BalloonError), QMPClient.connect(files.socket, timeout / 8) as client:
        client.execute("quit", timeout=timeout / 8)
        if _ends(files, lock, timeout / 2):
            return "quit"
    steps: tuple[tuple[signal.Signals, StopMethod], ...] = (
        (signal.SIGTERM, "terminated"),
        (signal.SIGKILL, "killed"),
    )
    for number, method in steps:
        if _signal(files, lock, number) and _ends(files, lock, timeout / 4):
            return method
    if _ends(files, lock, 0):
        return "quit"
    raise MachineUnreachable(
        f"the machine {files.name} does not end",
        why=f"process {_read_info(files.lock).get('pid', '?')} still holds its lock {files.lock}",
        hint="look at the process; it may be stopped by a debugger or wait for a disk",
    )


def _ends(files: _Files, lock: int, seconds: float) -> bool:
    """Wait that long for the machine to end; removes what it left."""
    deadline = time.monotonic() + seconds
    while not _flock(lock):
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL_SECONDS)
    # Somebody may have started a new one already, with a new lock file.
    if _is_at(lock, files.lock):
        _clean(files, keep_log=False)
    return True


def _signal(files: _Files, lock: int, number: signal.Signals) -> bool:
    """Send a signal to the owner of the lock, if that is who the lock file says."""
    pid = _read_info(files.lock).get("pid")
    if type(pid) is not int:
        return False
    try:
        process = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        # Checked after the pidfd was taken: from here on it cannot come to mean another process.
        if not _is_at(lock, files.lock) or _owner(files) != pid:
            return False
        signal.pidfd_send_signal(process, number)
    except OSError:
        return False
    finally:
        os.close(process)
    return True


# ---- the child -------------------------------------------------------------


#: Makes the machine from the options; a test's own child brings its own.
Factory: TypeAlias = "Callable[[dict[str, Any], OnProgress], ServedMachine]"


class _StopStarting(BaseException):
    """SIGTERM or SIGINT came while the machine was being made."""


class _Reporter:
    """The child's end of the pipe, and the watch over its other end.

    While the machine is being made the process may spend seconds inside C, so a
    thread waits for the reader to go away and then ends the process.
    """

    def __init__(self, descriptor: int, files: _Files) -> None:
        self._descriptor = descriptor
        self._files = files
        self._settled = threading.Lock()
        self._done = os.eventfd(0, os.EFD_CLOEXEC)
        self._last_progress = 0.0
        self._watch = threading.Thread(target=self._watch_reader, name="parent-watch", daemon=True)
        self._watch.start()

    def progress(self, done_bytes: int, total_bytes: int) -> None:
        """Report how far the machine is, at most 20 times a second."""
        now = time.monotonic()
        if done_bytes < total_bytes and now - self._last_progress < 0.05:
            return
        self._last_progress = now
        self._send({"progress": "touching", "bytes": done_bytes, "total_bytes": total_bytes})

    def settle(self, report: Mapping[str, Any]) -> bool:
        """Send the last report, ready or error; False if nobody reads it any more."""
        with self._settled:
            heard = self._send(report)
            os.eventfd_write(self._done, 1)
        self._watch.join()
        os.close(self._descriptor)
        os.close(self._done)
        return heard

    def _send(self, report: Mapping[str, Any]) -> bool:
        try:
            os.write(self._descriptor, json.dumps(report).encode() + b"\n")
        except BrokenPipeError:
            return False
        return True

    def _watch_reader(self) -> None:
        poll = select.poll()
        poll.register(self._descriptor, 0)
        poll.register(self._done, select.POLLIN)
        happened = dict(poll.poll())
        if self._done in happened:
            return
        with self._settled:
            if not dict(poll.poll(0)).get(self._done):
                _clean(self._files, keep_log=False)
                os._exit(1)


def serve(files: _Files, options: dict[str, Any], factory: Factory, *, lock: int, reports: int) -> None:
    """Be a machine: make it, serve QMP for it until it is to end, end it.

    `lock` holds the machine's lock already; `reports` is where the parent listens.
    Returns when everything is closed; the lock is let go of by the end of the process.
    """
    from balloonvq import __version__
    from balloonvq.qmp.commands import Commands
    from balloonvq.qmp.messages import Greeting
    from balloonvq.qmp.server import QMPServer

    _leave_guest_memory_out_of_cores()
    wakeup_read, wakeup_write = os.pipe()
    reporter = _Reporter(reports, files)

    def stop_starting(_number: int, _frame: FrameType | None) -> None:
        raise _StopStarting

    def stop_running(_number: int, _frame: FrameType | None) -> None:
        os.write(wakeup_write, b"s")

    def quit_running() -> None:
        os.write(wakeup_write, b"q")

    _on_signals(stop_starting)
    machine: ServedMachine | None = None
    server: QMPServer | None = None
    try:
        _write_info(lock, _info(files, options, "starting"))
        machine = factory({"name": files.name, **options}, reporter.progress)
        major, minor, micro = (int(part) for part in __version__.split(".")[:3])
        greeting = Greeting(version=(major, minor, micro), package=f"balloonctl {__version__}")
        commands = Commands(machine, version=greeting, on_quit=quit_running)
        server = QMPServer(files.socket, commands)
        # From here on nothing relative is opened; do not keep a file system busy.
        os.chdir("/")
        _on_signals(stop_running)
        _write_info(lock, _info(files, options, "running"))
    except BaseException as error:  # noqa: BLE001 - whatever it is, the parent has to hear of it
        _on_signals(signal.SIG_IGN)
        _end(machine, server, "host-error")
        problem = _as_balloon_error(error, files)
        _clean(files, keep_log=isinstance(problem, InternalError))
        reporter.settle({"error": problem.as_document()})
        return
    if not reporter.settle({"ready": {"pid": os.getpid()}}):
        os.write(wakeup_write, b"s")
    reason = _wait_for_end(wakeup_read, files, lock, server)
    # A second SIGTERM ends a machine that hangs in its own end.
    _on_signals(signal.SIG_DFL)
    server.drain(2.0)
    _end(machine, server, reason)
    # Files that are missing may be somebody else's by now; what is left tells the next command.
    if reason != "host-error":
        _clean(files, keep_log=True)


def _wait_for_end(
    wakeup: int, files: _Files, lock: int, server: QMPServer
) -> Literal["host-qmp-quit", "host-signal", "host-error"]:
    """Wait until the machine is to end, and look after its files meanwhile; QEMU's word for why it ends."""
    poll = select.poll()
    poll.register(wakeup, select.POLLIN)
    while not poll.poll(_LOOK_SECONDS * 1000):
        for what, path, is_there in (
            ("lock file", files.lock, _is_at(lock, files.lock)),
            ("socket", files.socket, server.owns_socket()),
        ):
            if not is_there:
                print(  # noqa: T201 - stderr is the log
                    f"the machine ends: its {what} {path} was removed or replaced, so no command finds it",
                    file=sys.stderr,
                )
                return "host-error"
    return "host-qmp-quit" if os.read(wakeup, 1) == b"q" else "host-signal"


def _end(machine: ServedMachine | None, server: QMPServer | None, reason: str) -> None:
    """Stop the machine, then its server, so that verbs in hand can still answer. Never raises."""
    for thing in (machine.stop if machine else None, (lambda: server.close(reason)) if server else None):
        if thing is not None:
            try:
                thing()
            except Exception as error:  # noqa: BLE001 - it ends either way
                import traceback

                traceback.print_exc()
                if isinstance(error, BalloonError):
                    # The last line of the log: what `stop` reads.
                    print(json.dumps(error.as_document()), file=sys.stderr)  # noqa: T201


def _as_balloon_error(error: BaseException, files: _Files) -> BalloonError:
    """The error as one that can be sent to the parent."""
    if isinstance(error, BalloonError):
        return error
    if isinstance(error, _StopStarting):
        return MachineError(
            f"the machine {files.name} was ended while it was starting", why="it got a signal"
        )
    if isinstance(error, OSError) and error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES}:
        return _no_files(files, error)
    import traceback

    traceback.print_exception(error)
    return InternalError(
        f"the machine {files.name} could not be made: {type(error).__name__}: {error}",
        why="it met an error that balloonctl did not expect",
        hint=f"please report it with the log {files.log}",
    )


def _on_signals(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, handler)


def _leave_guest_memory_out_of_cores() -> None:
    """Keep a core dump small: without shared memory, where the guest's memory is."""
    with contextlib.suppress(OSError):
        Path("/proc/self/coredump_filter").write_text("0x31")


def run_child(arguments: Sequence[str], factory: Factory) -> NoReturn:
    """Be the process that `start` made: directory, name, options as JSON, two descriptors."""
    if os.fork():
        os._exit(0)
    directory, name, options, lock, reports = arguments
    for descriptor in (int(lock), int(reports)):
        os.set_inheritable(descriptor, False)
    status = 1
    try:
        serve(
            _files_in(Path(directory), name),
            json.loads(options),
            factory,
            lock=int(lock),
            reports=int(reports),
        )
        status = 0
    except BaseException:  # noqa: BLE001 - the log is all that is left to tell
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.flush()
        # Not sys.exit: a verb that hangs in a thread must not keep the process alive.
        os._exit(status)


def _real_machine(options: dict[str, Any], on_progress: OnProgress) -> ServedMachine:
    """The machine that every user gets: an emulated one, or a device for a guest elsewhere."""
    if options.pop("kind", None) == "vhost-user":
        from balloonvq.vhost_machine import VhostConfig, VhostMachine

        return VhostMachine(VhostConfig(**options))
    from balloonvq.machine import Machine, MachineConfig

    return Machine.create(MachineConfig(**options), on_progress)


if __name__ == "__main__":
    run_child(sys.argv[1:], _real_machine)
