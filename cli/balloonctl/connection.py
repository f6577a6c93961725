"""Which machine the commands drive.

* `BackgroundConnection`: a machine with a name, in a process of its own. The
  default one is started when none runs.
* `SocketConnection`: whatever speaks QMP behind a unix socket.
* `PrivateConnection`: a machine inside this process, for a shell or a script;
  made by the first command that needs it, or by a `start` line.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Protocol

from balloonctl.context import DEFAULT_MACHINE
from balloonctl.render.units import size
from balloonvq.errors import BalloonError, MachineDied, MachineExists, NoSuchMachine

if TYPE_CHECKING:
    from balloonctl.context import App
    from balloonvq.machine import Machine
    from balloonvq.qmp.client import Client

__all__ = ["PRIVATE_MACHINE", "BackgroundConnection", "Connection", "PrivateConnection", "SocketConnection"]

#: Name of the machine that lives in a shell or a script.
PRIVATE_MACHINE = "session"

#: Seconds that a machine has to answer when it is first spoken to.
_ANSWER_SECONDS = 5.0

#: Told how much of the guest's memory has been touched: bytes done, bytes in all.
OnProgress = Callable[[int, int], None]


class Connection(Protocol):
    """The machine of a command or of a session."""

    def client(self, app: App, *, start: bool, timeout: float | None) -> Client:
        """The conversation of the commands; opened, or the machine started, when first asked for.

        Args:
            app: who asks.
            start: whether the default machine may be started when there is none.
            timeout: seconds that a machine has to answer; None for the usual.
        """

    def second(self) -> Client | None:
        """Another conversation with the same machine, for a watcher; None while there is no machine."""

    def close(self) -> None:
        """Ends the conversation, and the machine if it is ours."""


class _Opened(ABC):
    """What connections over a socket share: one conversation, kept open."""

    def __init__(self) -> None:
        self._client: Client | None = None

    @abstractmethod
    def _open(self, timeout: float) -> Client:
        """Begins a conversation; the machine has that many seconds to answer."""

    def client(self, app: App, *, start: bool, timeout: float | None) -> Client:
        """The conversation of the commands."""
        del app, start
        if self._client is None:
            self._client = self._open(timeout or _ANSWER_SECONDS)
        return self._client

    def second(self) -> Client | None:
        """A second conversation, None if the machine is gone."""
        try:
            return self._open(_ANSWER_SECONDS)
        except BalloonError:
            return None

    def close(self) -> None:
        """Hangs up; the machine goes on."""
        if self._client is not None:
            with suppress(BalloonError, OSError):
                self._client.close()
            self._client = None


class SocketConnection(_Opened):
    """A machine behind a socket that somebody named with --connect; nothing is ever started for it."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def _open(self, timeout: float) -> Client:
        from balloonvq.qmp.client import QMPClient

        return QMPClient.connect(self.path, timeout)


class BackgroundConnection(_Opened):
    """A background machine by name."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def _open(self, timeout: float) -> Client:
        from balloonctl import background

        return background.connect(self.name, timeout)

    def client(self, app: App, *, start: bool, timeout: float | None) -> Client:
        """The conversation; starts the default machine, and says so, when none runs.

        Raises:
            MachineDied: if it ran and died. A new one in its place would look like the old one with its balloon gone.
        """
        if self._client is None:
            patience = timeout or _ANSWER_SECONDS
            try:
                self._client = self._open(patience)
            except MachineDied:
                raise
            except NoSuchMachine:
                if not start or self.name != DEFAULT_MACHINE:
                    raise
                self._start(app)
                self._client = self._open(patience)
        return self._client

    def _start(self, app: App) -> None:
        from balloonctl import background
        from balloonctl.commands.machines import default_fields
        from balloonctl.progress import touching

        fields = default_fields()
        app.note(
            f"no machine runs: starting {self.name} ({size(fields['ram_bytes'])}, design {fields['design']})"
        )
        with suppress(MachineExists), touching(app) as on_progress:  # somebody else may have been faster
            background.start(self.name, fields, on_progress)


class PrivateConnection:
    """The machine of a shell or a script."""

    def __init__(self, *, clock: str, on_start: Callable[[Mapping[str, Any]], None] | None = None) -> None:
        self.clock = clock
        self._on_start = on_start
        self._machine: Machine | None = None
        self._client: Client | None = None

    @property
    def machine(self) -> Machine | None:
        """The machine of the moment."""
        return self._machine

    @property
    def running(self) -> bool:
        """Whether there is a machine at the moment."""
        return self._machine is not None

    def client(self, app: App, *, start: bool, timeout: float | None) -> Client:
        """The machine; made with the defaults when there is none."""
        del timeout
        if self._client is None:
            if not start:
                raise NoSuchMachine(
                    "this session has no machine yet",
                    why="it is made by the first command that needs it",
                    hint="start",
                )
            from balloonctl.commands.machines import default_fields
            from balloonctl.progress import touching

            fields = default_fields()
            app.note(
                f"this session makes its own machine ({size(fields['ram_bytes'])}, design {fields['design']})"
            )
            with touching(app) as on_progress:
                self.start(fields, on_progress)
            if self._on_start is not None:
                self._on_start(fields)
        assert self._client is not None
        return self._client

    def start(self, fields: Mapping[str, Any], on_progress: OnProgress | None) -> None:
        """Makes the machine.

        Args:
            fields: of MachineConfig; a missing clock and name are filled in.
            on_progress: told how much memory was touched.

        Raises:
            MachineExists: if this session has one.
        """
        if self._machine is not None:
            raise MachineExists(
                "this session has a machine already",
                why="a session drives one machine at a time",
                hint="stop",
            )
        from balloonvq.machine import Machine, MachineConfig

        given = {name: value for name, value in fields.items() if value is not None}
        config = MachineConfig(**({"clock": self.clock, "name": PRIVATE_MACHINE} | given))
        self._machine = Machine.create(config, on_progress)
        self._client = self._talk()

    def _talk(self) -> Client:
        from balloonvq.qmp.client import LocalClient
        from balloonvq.qmp.commands import Commands

        assert self._machine is not None
        return LocalClient(Commands(self._machine))

    def second(self) -> Client | None:
        """A second conversation with the machine."""
        return None if self._machine is None else self._talk()

    def stop(self) -> bool:
        """Ends the machine; False if there was none."""
        machine, client = self._machine, self._client
        self._machine = self._client = None
        if client is not None:
            with suppress(BalloonError):
                client.close()
        if machine is not None:
            machine.stop()
        return machine is not None

    def close(self) -> None:
        """Ends the machine with the session."""
        self.stop()
