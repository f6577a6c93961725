"""A real Linux guest without virtualisation: User Mode Linux with a shell on its console.

Debian's package user-mode-linux brings the kernel and its modules. The guest has a root of its own,
made here: a static busybox, the balloon's module, and an init that runs the lines it reads.
Commands go in by its console and their output comes back with an exit status::

    with UserModeLinux("/run/balloon.sock") as guest:
        guest.run("insmod /virtio_balloon.ko")
        guest.run("grep ^balloon /proc/vmstat")

Guest memory is a file in a temporary folder: the kernel maps it, and hands its descriptor to the
back end. The folder must allow mappings to be executed; one in memory is best.

On processors whose XSAVE area is larger than this kernel expects it dies at once; it is then
started again with a small library (`uml_ptrace.c`), which is compiled when needed.
"""

from __future__ import annotations

import contextlib
import os
import re
import select
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from balloonvq.closing import Closing
from balloonvq.errors import BalloonError
from balloonvq.units import size as human

__all__ = ["GuestError", "UserModeLinux", "missing"]

KERNEL = "linux.uml"
MODULES = Path("/usr/lib/uml/modules")
BUSYBOX = Path("/bin/busybox")

#: Seconds until the guest's shell must answer after the start, and to a command.
BOOT_SECONDS = 60.0
COMMAND_SECONDS = 60.0

_READY = "balloonctl-guest-ready"
_XSAVE = "ptrace set fp regs failed"
_SHIM = Path(__file__).with_name("uml_ptrace.c")

_INIT = f"""#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
stty -echo -icanon -opost
mount -t tmpfs -o size=64% tmp /tmp
echo 1 > /proc/sys/vm/overcommit_memory
echo 1 > /proc/sys/kernel/printk
echo {_READY}
while IFS= read -r line; do
    eval "$line"
    echo "<<$?>>"
done
poweroff -f
"""

_STATUS = re.compile(rb"<<(\d+)>>\r?\n")


class GuestError(BalloonError):
    """The guest did not start, or did not answer."""


def missing() -> str:
    """What keeps a guest from running here, for a person; empty if nothing does."""
    if shutil.which(KERNEL) is None:
        return "User Mode Linux is not installed (Debian: user-mode-linux)"
    if not _is_static(BUSYBOX):
        return "a static busybox is not installed (Debian: busybox-static)"
    if shutil.which("cpio") is None:
        return "cpio is not installed (Debian: cpio)"
    if _module() is None:
        return f"the kernel's module virtio_balloon.ko is not below {MODULES}"
    return ""


def _is_static(path: Path) -> bool:
    """Whether it is a program that needs no loader."""
    try:
        return path.is_file() and b"/lib64/ld-linux" not in path.read_bytes()[:4096]
    except OSError:
        return False


def _module() -> Path | None:
    return next(iter(sorted(MODULES.glob("*/kernel/drivers/virtio/virtio_balloon.ko"))), None)


def _memory_folder(size_bytes: int) -> Path:
    """A folder with room for guest memory that may be executed, in memory if there is one."""
    candidates = [Path("/dev/shm"), Path(tempfile.gettempdir()), Path("/var/tmp")]  # noqa: S108
    for path in candidates:
        with contextlib.suppress(OSError):
            fs = os.statvfs(path)
            if fs.f_bavail * fs.f_frsize > size_bytes * 5 // 4 and not fs.f_flag & os.ST_NOEXEC:
                return path
    raise GuestError(
        f"there is no room for guest memory of {human(size_bytes)}",
        why=f"none of {', '.join(map(str, candidates))} has it and may be executed from",
        hint="mount -t tmpfs, or free some space",
    )


class UserModeLinux(Closing):
    """A guest. It boots when it is made, and is ended by `close`.

    Args:
        socket: where a back end listens; None for a guest without a balloon.
        memory_mib: its memory.
        shim: whether to begin with the library for large XSAVE areas; None: only if it is needed.

    Raises:
        GuestError: if it does not come up.
    """

    def __init__(
        self,
        socket: str | os.PathLike[str] | None,
        *,
        memory_mib: int = 256,
        shim: bool | None = None,
        environment: dict[str, str] | None = None,
    ) -> None:
        why = missing()
        if why:
            raise GuestError("no guest can be started", why=why)
        self._folder = Path(tempfile.mkdtemp(prefix="uml-"))
        self._process: subprocess.Popen[bytes] | None = None
        self._seen = b""
        self.boot_ns = 0
        try:
            root = _make_root(self._folder)
            command = [
                KERNEL,
                f"mem={memory_mib}M",
                f"initrd={root}",
                "rdinit=/init",
                "con=null",
                "con0=fd:0,fd:1",
                "quiet",
                f"uml_dir={self._folder}/",
            ]
            if socket is not None:
                command.append(f"virtio_uml.device={os.fspath(socket)}:5")
            variables = os.environ | {"TMPDIR": str(_memory_folder(memory_mib << 20))} | (environment or {})
            if not self._boot(command, variables, shim=bool(shim)):
                self._boot(command, variables, shim=True)
        except BaseException:
            self.close()
            raise

    def _boot(self, command: Sequence[str], variables: dict[str, str], *, shim: bool) -> bool:
        """Starts it and waits for its shell; False if it needs the shim."""
        if shim:
            variables = variables | {"LD_PRELOAD": str(_compile(self._folder))}
        begun = time.monotonic_ns()
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=variables,
            start_new_session=True,
        )
        try:
            self._until(re.compile(_READY.encode() + rb"\r?\n"), BOOT_SECONDS)
        except GuestError:
            if not shim and _XSAVE.encode() in self._seen:
                self._end()
                self._seen = b""
                return False
            raise
        self.boot_ns = time.monotonic_ns() - begun
        return True

    # -- its console ---------------------------------------------------------

    def send(self, line: str) -> None:
        """Types a line, without waiting for anything."""
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            os.write(self._process.stdin.fileno(), line.encode() + b"\n")
        except BrokenPipeError:
            raise self._died() from None

    def run(self, line: str, *, check: bool = True, seconds: float = COMMAND_SECONDS) -> str:
        """Runs a line in its shell and returns what it printed.

        Raises:
            GuestError: if it failed (with `check`), or did not end in time.
        """
        output, status = self.run_for_status(line, seconds=seconds)
        if check and status:
            raise GuestError(f"in the guest: {line}", why=f"exit status {status}: {output.strip()[-300:]}")
        return output

    def run_for_status(self, line: str, *, seconds: float = COMMAND_SECONDS) -> tuple[str, int]:
        """Runs a line; what it printed and its exit status."""
        self.send(line)
        before, match = self._until(_STATUS, seconds)
        return before.decode(errors="replace").replace("\r\n", "\n"), int(match.group(1))

    def wait_for_boot(self, seconds: float = BOOT_SECONDS) -> None:
        """After a `reboot` in the guest: until its shell is there again."""
        self._until(re.compile(_READY.encode() + rb"\r?\n"), seconds)

    def _until(self, pattern: re.Pattern[bytes], seconds: float) -> tuple[bytes, re.Match[bytes]]:
        """What the console said before the pattern, and the match."""
        assert self._process is not None
        assert self._process.stdout is not None
        descriptor = self._process.stdout.fileno()
        deadline = time.monotonic() + seconds
        while (match := pattern.search(self._seen)) is None:
            rest = deadline - time.monotonic()
            if rest <= 0 or not select.select([descriptor], [], [], rest)[0]:
                raise GuestError(
                    f"the guest did not answer within {seconds:g} s",
                    why=self._last_words() or "it said nothing",
                )
            data = os.read(descriptor, 65536)
            if not data:
                raise self._died()
            self._seen += data
        before, self._seen = self._seen[: match.start()], self._seen[match.end() :]
        return before, match

    def _died(self) -> GuestError:
        return GuestError("the guest ended", why=self._last_words() or "it said nothing")

    def _last_words(self) -> str:
        return self._seen.decode(errors="replace").strip()[-400:]

    # -- figures -------------------------------------------------------------

    def meminfo(self) -> dict[str, int]:
        """/proc/meminfo, bytes by name."""
        return {
            name.rstrip(":"): int(value) * 1024
            for name, value, *_ in (line.split() for line in self.run("cat /proc/meminfo").splitlines())
        }

    def vmstat(self) -> dict[str, int]:
        """/proc/vmstat."""
        lines = self.run("cat /proc/vmstat").splitlines()
        return {name: int(value) for name, value in (line.split() for line in lines)}

    # -- life ----------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether its kernel still runs."""
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """Ends it as a crash would."""
        self._end()

    def _end(self) -> None:
        """Kills the kernel and the processes that it made for its own."""
        if self._process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, 9)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()
        self._process = None

    def close(self) -> None:
        """Ends it and removes its files."""
        self._end()
        shutil.rmtree(self._folder, ignore_errors=True)


def _make_root(folder: Path) -> Path:
    """The guest's root as an initramfs."""
    module = _module()
    assert module is not None
    root = folder / "root"
    for name in ("bin", "proc", "sys", "dev", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy(BUSYBOX, root / "bin/busybox")
    shutil.copy(module, root / "virtio_balloon.ko")
    init = root / "init"
    init.write_text(_INIT)
    init.chmod(init.stat().st_mode | stat.S_IXUSR)
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    archive = folder / "initramfs"
    with archive.open("wb") as out:
        subprocess.run(
            ["cpio", "--quiet", "-o", "-H", "newc"], input=names.encode(), stdout=out, cwd=root, check=True
        )
    return archive


def _compile(folder: Path) -> Path:
    """The library for large XSAVE areas."""
    library = folder / "uml_ptrace.so"
    if not library.exists():
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise GuestError(
                "a C compiler is needed for User Mode Linux on this processor", hint="apt install gcc"
            )
        command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(library), str(_SHIM), "-ldl"]
        subprocess.run(command, check=True, capture_output=True)
    return library
