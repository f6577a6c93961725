"""The other end of QMP: a blocking client, and one for a machine in this process.

`QMPClient` talks to whatever serves QMP on a unix socket, a machine of
balloonctl or a QEMU. `LocalClient` has the same methods and calls the verbs
directly, for sessions that run their machine themselves. Neither may be used by two
threads at once.

Only plain sockets: a command that asks for a status pays no event loop.
"""

from __future__ import annotations

import errno
import json
import math
import os
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias

from balloonvq import errors
from balloonvq.closing import Closing
from balloonvq.errors import (
    BalloonError,
    CommandFailed,
    CoreError,
    Deadlock,
    MachineStopped,
    MachineUnreachable,
    NoSuchMachine,
    ProtocolError,
    QMPError,
    WaitTimeout,
)
from balloonvq.qmp.messages import (
    BadInput,
    Command,
    Decoder,
    Error,
    Event,
    Greeting,
    Message,
    Return,
    encode,
    parse_message,
)
from balloonvq.unix_sockets import path_too_long

if TYPE_CHECKING:
    from balloonvq.qmp.commands import Commands

__all__ = ["Client", "LocalClient", "OnEvent", "QMPClient", "restore_error"]

#: Called with the name and the data of an event.
OnEvent: TypeAlias = Callable[[str, dict[str, Any]], None]

#: Bytes of one message from a server; QEMU's answers to introspection are long.
MAX_REPLY_BYTES = 64 << 20

#: Events kept for `events` while nobody asks; older ones are forgotten.
MAX_EVENTS_KEPT = 1024

_CHUNK = 1 << 16


class Client(Protocol):
    """What a command needs of a machine, wherever the machine runs."""

    @property
    def is_local(self) -> bool:
        """Whether the machine runs in this process and ends with it."""

    def execute(
        self,
        verb: str,
        arguments: Mapping[str, Any] | None = None,
        on_event: OnEvent | None = None,
        timeout: float | None = None,
    ) -> Any:
        """Run a verb and return the value of its reply.

        Events that arrive meanwhile go to `on_event`, in the calling thread; without it
        they are kept for `events`. `timeout` is in seconds.

        :raise CommandFailed: the verb was refused.
        :raise BalloonError: the machine's own error, in its own class.
        :raise WaitTimeout: no reply within `timeout`.
        :raise MachineStopped: the machine ended.
        """

    def events(self, timeout: float | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """Events as name and data, until none came for `timeout` seconds; None: until the machine ends.

        :raise MachineStopped: the machine ended.
        """

    def close(self) -> None:
        """End the conversation. A second call does nothing."""


def restore_error(document: Mapping[str, Any], *, error_class: str = "GenericError") -> BalloonError:
    """The error behind a ``balloonctl/error/1`` document, in its own class if we know it.

    An unknown class becomes `CommandFailed` with the document's exit code.
    """
    name, what = document.get("error"), str(document.get("what", "the machine reported an error"))
    why, hint = str(document.get("why", "")), str(document.get("hint", ""))
    found = getattr(errors, name, None) if isinstance(name, str) and name in errors.__all__ else None
    if not isinstance(found, type) or not issubclass(found, BalloonError) or found is CommandFailed:
        return CommandFailed(what, error_class=error_class, document=dict(document), why=why, hint=hint)
    if issubclass(found, Deadlock):
        report = document.get("report")
        return found(what, report=report if isinstance(report, dict) else None, why=why, hint=hint)
    if issubclass(found, CoreError):
        number = document.get("errno")
        return found(what, errno=number if isinstance(number, int) else 0, why=why, hint=hint)
    return found(what, why=why, hint=hint)


# ---- over a socket ---------------------------------------------------------


class QMPClient(Closing):
    """A conversation with a QMP server; made by `connect`."""

    is_local = False

    def __init__(self, connection: socket.socket, path: Path) -> None:
        self.path = path
        self._socket = connection
        self._decoder = Decoder(MAX_REPLY_BYTES)
        self._arrived: deque[Message] = deque()
        self._events: deque[Event] = deque(maxlen=MAX_EVENTS_KEPT)
        self._last_id = 0
        self._shutdown = ""
        self.greeting = Greeting()
        """What the server said first; its package starts with ``balloonctl`` for a machine of ours."""

    @classmethod
    def connect(cls, path: str | Path, timeout: float = 5.0) -> Self:
        """Connect, read the greeting, negotiate; all of it within `timeout` seconds.

        :raise NoSuchMachine: there is nothing at the path.
        :raise MachineUnreachable: what is there cannot be used: dead, foreign, silent, full or forbidden.
        :raise InvalidArgument: the path does not fit into a socket address.
        """
        path = Path(path)
        deadline = time.monotonic() + timeout
        client = cls(_connect(path, timeout), path)
        try:
            client._meet(deadline)
        except BaseException:
            client.close()
            raise
        return client

    def close(self) -> None:
        """End the conversation. A second call does nothing."""
        self._socket.close()

    def execute(
        self,
        verb: str,
        arguments: Mapping[str, Any] | None = None,
        on_event: OnEvent | None = None,
        timeout: float | None = None,
    ) -> Any:
        """See `Client.execute`. After a `WaitTimeout` the client can still be used."""
        self._last_id += 1
        message_id = f"balloonctl-{self._last_id}"
        deadline = None if timeout is None else time.monotonic() + timeout
        self._send(encode(Command(execute=verb, arguments=dict(arguments or {}), id=message_id)))
        while True:
            message = self._receive(deadline)
            if message is None:
                raise WaitTimeout(
                    f"no reply to {verb} within {timeout:g} s", why="the machine is busy or stopped"
                )
            if isinstance(message, Event):
                self._note(message, on_event)
            elif isinstance(message, Return | Error) and message.id == message_id:
                return _value_of(message)
            elif isinstance(message, Error) and not isinstance(message.id, str):
                # Without an id it is about what we sent, which the server could not read.
                raise ProtocolError(f"the server did not understand {verb}", why=message.description)

    def events(self, timeout: float | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """See `Client.events`."""
        while True:
            while self._events:
                event = self._events.popleft()
                yield event.name, event.data
            message = self._receive(None if timeout is None else time.monotonic() + timeout)
            if message is None:
                return
            if isinstance(message, Event):
                self._note(message, None)

    # ---- inside ------------------------------------------------------------

    def _meet(self, deadline: float) -> None:
        """Greeting and negotiation.

        :raise MachineUnreachable: the other side is no QMP server, or does not want us.
        """
        try:
            first = self._receive(deadline)
        except (ProtocolError, MachineStopped) as error:
            raise MachineUnreachable(
                f"what listens at {self.path} is no machine",
                why=error.why or error.what,
                hint="check the path; it must be a QMP socket",
            ) from None
        if first is None:
            raise MachineUnreachable(
                f"what listens at {self.path} does not answer",
                why="no QMP greeting came; it may be stopped, busy with another client, or no QMP server",
                hint="a QEMU monitor serves one client at a time",
            )
        if isinstance(first, Error):
            raise MachineUnreachable(f"the machine at {self.path} turned us away", why=first.description)
        if not isinstance(first, Greeting):
            raise MachineUnreachable(
                f"what listens at {self.path} is no machine",
                why=f"it answered {encode(first)[:120].decode().strip()} in place of a QMP greeting",
                hint="check the path; it must be a QMP socket",
            )
        self.greeting = first
        try:
            self.execute("qmp_capabilities", timeout=max(0.0, deadline - time.monotonic()))
        except WaitTimeout as error:
            raise MachineUnreachable(f"the machine at {self.path} does not answer", why=error.why) from None
        except (QMPError, MachineStopped) as error:
            raise MachineUnreachable(f"the machine at {self.path} refused us", why=error.what) from None

    def _note(self, event: Event, on_event: OnEvent | None) -> None:
        if event.name == "SHUTDOWN":
            self._shutdown = str(event.data.get("reason", ""))
        if on_event is None:
            self._events.append(event)
        else:
            on_event(event.name, event.data)

    def _send(self, data: bytes) -> None:
        self._socket.settimeout(None)
        try:
            self._socket.sendall(data)
        except OSError as error:
            # It may have said why before it hung up.
            with suppress(BalloonError):
                while (message := self._receive(time.monotonic())) is not None:
                    if isinstance(message, Event):
                        self._note(message, None)
            raise self._stopped() from error

    def _stopped(self) -> MachineStopped:
        """What to raise since the other side is gone."""
        why = "it was asked to quit" if self._shutdown else "its socket was closed without a goodbye"
        return MachineStopped(
            "the machine ended",
            why=why,
            hint="" if self._shutdown else "balloonctl ps shows what is left of it",
        )

    def _receive(self, deadline: float | None) -> Message | None:
        """The next message; None when `deadline` (monotonic seconds) passed before it came.

        :raise MachineStopped: the other side hung up.
        :raise ProtocolError: it sent something that is no QMP.
        """
        while not self._arrived:
            patience = None if deadline is None else deadline - time.monotonic()
            if patience is not None and patience <= 0:
                # A message that is there already counts as in time.
                patience = 1e-6
            self._socket.settimeout(patience)
            try:
                data = self._socket.recv(_CHUNK)
            except TimeoutError:
                if deadline is not None and time.monotonic() < deadline:
                    continue
                return None
            except OSError as error:
                raise self._stopped() from error
            if not data:
                raise self._stopped()
            for result in self._decoder.feed(data):
                if isinstance(result, BadInput):
                    raise ProtocolError(
                        "the peer does not speak QMP",
                        why=f"it sent {_excerpt(data)} ({result.description})",
                        hint="check that the socket is a QMP socket",
                    )
                self._arrived.append(parse_message(result))
        return self._arrived.popleft()


def _value_of(reply: Return | Error) -> Any:
    """The value of a reply.

    :raise BalloonError: the reply is an error; ours in its own class, QEMU's as `CommandFailed`.
    """
    if isinstance(reply, Return):
        return reply.value
    if reply.data is not None and reply.data.get("schema") == "balloonctl/error/1":
        raise restore_error(reply.data, error_class=reply.error_class)
    raise CommandFailed(reply.description, error_class=reply.error_class)


def _excerpt(data: bytes) -> str:
    text = data[:60].decode("ascii", "backslashreplace").strip()
    return repr(text) + ("…" if len(data) > 60 else "")


def _connect(path: Path, timeout: float) -> socket.socket:
    """A connected socket.

    :raise NoSuchMachine: there is nothing at the path.
    :raise MachineUnreachable: nobody listens, or we may not connect.
    :raise InvalidArgument: the path is too long.
    """
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        connection.connect(os.fspath(path))
    except OSError as error:
        connection.close()
        if "too long" in str(error):
            raise path_too_long(path) from None
        if error.errno in {errno.ENOENT, errno.ENOTDIR}:
            raise NoSuchMachine(
                f"there is no machine at {path}",
                why="the socket does not exist",
                hint="balloonctl ps lists machines",
            ) from None
        why = {
            errno.ECONNREFUSED: "nobody listens on the socket; its machine was killed, or it is no socket",
            errno.EACCES: "permission denied; another user's machine",
            errno.EAGAIN: "its queue of connections is full",
            errno.EPROTOTYPE: "it is not a stream socket",
        }.get(error.errno or 0, error.strerror or "it did not accept the connection in time")
        raise MachineUnreachable(
            f"cannot connect to {path}", why=why, hint="balloonctl ps lists machines"
        ) from None
    except BaseException:
        connection.close()
        raise
    return connection


# ---- in this process -------------------------------------------------------


class LocalClient(Closing):
    """`Client` for a machine that runs in this process.

    Verbs are checked and executed by the same `Commands` that a server uses, so
    arguments, values and errors are the same as over a socket.
    """

    is_local = True

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._arrived: queue.SimpleQueue[tuple[str, dict[str, Any]] | None] = queue.SimpleQueue()
        self._unsubscribe: Callable[[], None] | None = commands.machine.subscribe(self._on_event)
        self._kept: deque[tuple[str, dict[str, Any]]] = deque(maxlen=MAX_EVENTS_KEPT)

    def close(self) -> None:
        """Stop listening to the machine; the machine itself goes on. A second call does nothing."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None

    def execute(
        self,
        verb: str,
        arguments: Mapping[str, Any] | None = None,
        on_event: OnEvent | None = None,
        timeout: float | None = None,
    ) -> Any:
        """See `Client.execute`.

        The verb runs in a thread of its own, so that events can be handed over and Ctrl-C
        works meanwhile. A verb that is given up on is told so and left behind.
        """
        given_up = threading.Event()
        outcome: list[Any] = []
        failure: list[BaseException] = []

        def run() -> None:
            try:
                outcome.append(self._commands.execute(verb, dict(arguments or {}), given_up.is_set))
            except BaseException as error:  # noqa: BLE001 - raised again in the calling thread
                failure.append(error)
            finally:
                self._arrived.put(None)

        self._keep_arrived()
        thread = threading.Thread(target=run, name=f"local-{verb}", daemon=True)
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        thread.start()
        try:
            while not (outcome or failure):
                self._hand_over(on_event, deadline)
                if time.monotonic() >= deadline and not (outcome or failure):
                    raise WaitTimeout(f"no reply to {verb} within {timeout:g} s", why="the machine is busy")
        except BaseException:
            given_up.set()
            raise
        thread.join()
        while not self._arrived.empty():
            self._hand_over(on_event, math.inf)
        if failure:
            raise failure[0]
        return json.loads(json.dumps(outcome[0]))

    def events(self, timeout: float | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """See `Client.events`; a machine in this process does not end by itself."""
        while True:
            while self._kept:
                yield self._kept.popleft()
            try:
                arrived = self._arrived.get(timeout=timeout)
            except queue.Empty:
                return
            if arrived is not None:
                yield arrived

    def _on_event(self, name: str, data: dict[str, Any]) -> None:
        self._arrived.put((name, data))

    def _keep_arrived(self) -> None:
        """What arrived before a command is not for its `on_event`."""
        while not self._arrived.empty():
            arrived = self._arrived.get()
            if arrived is not None:
                self._kept.append(arrived)

    def _hand_over(self, on_event: OnEvent | None, deadline: float) -> None:
        """Pass on one event, or return at the end of the verb or at the deadline."""
        try:
            patience = None if deadline == math.inf else max(0.0, deadline - time.monotonic())
            arrived = self._arrived.get(timeout=patience)
        except queue.Empty:
            return
        if arrived is None:
            return
        if on_event is None:
            self._kept.append(arrived)
        else:
            on_event(*arrived)
