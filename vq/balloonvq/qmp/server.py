"""The QMP socket of a machine.

One thread does all socket work for all clients (it waits in epoll), and each
client has one thread that executes its commands::

    peer's bytes ──> I/O thread ──> inbox ──> client's thread ──> machine
    peer        <── I/O thread <── outgoing <──────┘
                                       ^── events, from any thread of the machine

The two are apart so that a verb that takes long (`x-wait`, `x-oom`) keeps only
its own client waiting, so that events reach that client meanwhile, and so that
a peer that hangs up in the middle of a wait is noticed at once: the verb is told
through `abandoned`.

Nothing a peer does makes the machine wait. Queues are bounded in both
directions: a client is not read while its inbox is full, its next command does
not start while its replies are unread, and one that leaves more than
`MAX_UNREAD` messages unread is dropped when the next event comes. An event that
only repeats the last unread one with a newer value (BALLOON_CHANGE) takes its place.

The socket has mode 0600 from the moment it can be seen. It is removed at the
end only if it is still the one that was made.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from balloonvq.closing import Closing
from balloonvq.errors import (
    BalloonError,
    CommandFailed,
    InternalError,
    MachineError,
    MachineExists,
    MachineStopped,
)
from balloonvq.qmp.commands import Commands
from balloonvq.qmp.messages import (
    ABSENT,
    BadInput,
    Decoder,
    Error,
    Event,
    Message,
    Return,
    encode,
    error_reply,
    parse_command,
)
from balloonvq.unix_sockets import path_too_long

__all__ = ["MAX_CLIENTS", "MAX_UNREAD", "QMPServer"]

#: Clients at a time; the next one is told and turned away.
MAX_CLIENTS = 256

#: Messages that a client may leave unread before an event drops it.
MAX_UNREAD = 1024

#: Commands that a client may have waiting before it is no longer read.
MAX_INBOX = 64

#: Replies that a client may leave unread before its next command has to wait.
_REPLIES_AHEAD = 16

#: Events of which only the last one matters.
_STATE_EVENTS = frozenset({"BALLOON_CHANGE"})

_CHUNK = 1 << 16
_READABLE, _WRITABLE, _HUNG_UP = select.EPOLLIN, select.EPOLLOUT, select.EPOLLHUP | select.EPOLLERR

_log = logging.getLogger(__name__)

_Input: TypeAlias = dict[str, Any] | BadInput


class _Client:
    """One connection.

    `connection`, `decoder` and `interest` belong to the I/O thread; everything else
    is guarded by `changed`.
    """

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.decoder = Decoder()
        self.interest = _READABLE
        self.changed = threading.Condition()
        self.inbox: deque[_Input] = deque()
        self.outgoing: deque[tuple[str, bytes]] = deque()
        """Messages with the name of their event, empty for replies."""
        self.sent_bytes = 0
        """How much of the first outgoing message is on its way."""
        self.negotiated = False
        self.busy = False
        """A command is being executed."""
        self.ended = False
        """The peer will send no more; what it sent is still executed."""
        self.gone = False
        """Nobody reads the replies any more."""
        self.thread: threading.Thread | None = None

    @property
    def finished(self) -> bool:
        """Everything that the peer will ever get has been sent. Call with `changed` held."""
        return self.ended and not self.inbox and not self.busy and not self.outgoing


class QMPServer(Closing):
    """Serves `commands` on a unix socket at `path`, from construction to `close`.

    Usable as a context manager. Events of the machine go to every client that
    has negotiated its capabilities.

    :raise InvalidArgument: the path does not fit into a socket address.
    :raise MachineExists: something is at the path already.
    :raise MachineError: the socket cannot be made there.
    """

    def __init__(self, path: str | Path, commands: Commands, *, max_clients: int = MAX_CLIENTS) -> None:
        self.path = Path(path)
        self._commands = commands
        self._max_clients = max_clients
        self._greeting = encode(commands.version)
        self._lock = threading.Lock()
        self._clients: dict[int, _Client] = {}
        self._draining = False
        self._said_goodbye = False
        self._closing_until: float | None = None
        self._listener = _listen(self.path)
        status = self.path.stat()
        self._identity = (status.st_dev, status.st_ino)
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._wake, _READABLE)
        self._epoll.register(self._listener, _READABLE)
        self._threads: list[threading.Thread] = []
        self._unsubscribe = commands.machine.subscribe(self.broadcast)
        self._io_thread = threading.Thread(target=self._run, name="qmp-io", daemon=True)
        self._io_thread.start()

    # ---- for any thread ----------------------------------------------------

    @property
    def client_count(self) -> int:
        """Connections at this moment."""
        with self._lock:
            return len(self._clients)

    def broadcast(self, name: str, data: dict[str, Any] | None = None) -> None:
        """Send an event to every client that has negotiated. Never waits for one of them."""
        message = encode(Event.now(name, data))
        with self._lock:
            self._said_goodbye = self._said_goodbye or name == "SHUTDOWN"
            clients = list(self._clients.values())
        for client in clients:
            with client.changed:
                if not client.negotiated or client.gone:
                    continue
                unread = client.outgoing
                # The first message may be half sent already.
                if name in _STATE_EVENTS and len(unread) > 1 and unread[-1][0] == name:
                    unread[-1] = (name, message)
                elif len(unread) >= MAX_UNREAD:
                    _log.warning("dropped a QMP client that left %d messages unread", len(unread))
                    client.gone = True
                else:
                    unread.append((name, message))
        self._wake_up()

    def drain(self, timeout: float) -> bool:
        """Refuse new commands, abandon the waiting ones, and wait for those in hand to end.

        Returns whether all ended within `timeout` seconds. A machine calls it before it
        lets go of what its verbs use.
        """
        deadline = time.monotonic() + timeout
        self._draining = True
        with self._lock:
            clients = list(self._clients.values())
        for client in clients:
            with client.changed:
                while client.busy:
                    if not client.changed.wait(deadline - time.monotonic()) and time.monotonic() >= deadline:
                        return False
        return True

    def close(self, reason: str = "host-qmp-quit", *, flush: float = 0.5) -> None:
        """Say SHUTDOWN, send what is unread within `flush` seconds, hang up, remove the socket.

        All threads have ended when it returns, except those of verbs that do not come
        back; they are daemons and are reported in the log. A second call does nothing.
        """
        if self._closing_until is not None:
            return
        self._draining = True
        self._unsubscribe()
        # A machine that was stopped first has said it already.
        if not self._said_goodbye:
            self.broadcast("SHUTDOWN", {"guest": False, "reason": reason})
        self._closing_until = time.monotonic() + flush
        self._wake_up()
        self._io_thread.join()
        for thread in self._threads:
            thread.join(timeout=1.0)
            if thread.is_alive():
                _log.error("a QMP command did not end in time: %s", thread.name)
        self._remove_socket()
        self._epoll.close()
        with self._lock:
            os.close(self._wake)
            self._wake = -1

    def owns_socket(self) -> bool:
        """Whether the socket at `path` is still the one that was made: clients can come."""
        try:
            status = self.path.lstat()
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._identity

    def _remove_socket(self) -> None:
        try:
            if self.owns_socket():
                self.path.unlink()
        except OSError as error:
            _log.debug("could not remove %s: %s", self.path, error)

    def _wake_up(self) -> None:
        with self._lock:
            if self._wake >= 0:
                os.eventfd_write(self._wake, 1)

    # ---- the I/O thread ----------------------------------------------------

    def _run(self) -> None:
        try:
            while not self._may_end():
                for number, happened in self._epoll.poll(self._patience()):
                    if number == self._wake:
                        os.eventfd_read(self._wake)
                    elif number == self._listener.fileno():
                        self._accept()
                    elif number in self._clients:
                        self._handle(self._clients[number], happened)
                for client in list(self._clients.values()):
                    self._refresh(client)
        except Exception:  # noqa: BLE001 - whatever it is, the sockets have to be closed
            _log.exception("the QMP thread died")
        finally:
            for client in list(self._clients.values()):
                self._hang_up(client)
            self._listener.close()

    def _patience(self) -> float | None:
        """How long epoll may wait."""
        return None if self._closing_until is None else 0.02

    def _may_end(self) -> bool:
        """Whether the server is closing and nobody has anything to read left, or time is up."""
        if self._closing_until is None:
            return False
        if time.monotonic() >= self._closing_until:
            return True
        return not any(client.outgoing or client.busy for client in self._clients.values())

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            # The peer may be gone again, or this process out of descriptors; do not spin on the latter.
            _log.warning("could not accept a QMP client: %s", error)
            time.sleep(0.01)
            return
        connection.setblocking(False)
        if len(self._clients) >= self._max_clients or self._closing_until is not None:
            refusal = Error(description=f"too many clients ({self._max_clients} are connected)")
            try:
                connection.send(encode(refusal))
            except OSError as error:
                _log.debug("could not tell a QMP client that it is one too many: %s", error)
            connection.close()
            return
        client = _Client(connection)
        client.outgoing.append(("", self._greeting))
        client.thread = threading.Thread(
            target=self._work, args=(client,), name=f"qmp-client-{connection.fileno()}", daemon=True
        )
        self._threads = [thread for thread in self._threads if thread.is_alive()]
        self._threads.append(client.thread)
        with self._lock:
            self._clients[connection.fileno()] = client
        self._epoll.register(connection, client.interest)
        client.thread.start()

    def _handle(self, client: _Client, happened: int) -> None:
        if happened & _READABLE and client.interest & _READABLE:
            self._read(client)
        if happened & _HUNG_UP:
            with client.changed:
                client.gone = True

    def _read(self, client: _Client) -> None:
        try:
            data = client.connection.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            with client.changed:
                client.gone = True
            return
        inputs = client.decoder.feed(data)
        with client.changed:
            client.inbox.extend(inputs)
            client.ended = client.ended or not data
            client.changed.notify_all()

    def _refresh(self, client: _Client) -> None:
        """Send what can be sent, hang up on whom nothing is left to do for, wait for the right things."""
        with client.changed:
            self._send(client)
            if client.gone or client.finished:
                client.gone = True
                client.changed.notify_all()
            wanted = 0
            if not client.ended and len(client.inbox) < MAX_INBOX:
                wanted |= _READABLE
            if client.outgoing:
                wanted |= _WRITABLE
            gone = client.gone
        if gone:
            self._hang_up(client)
        elif wanted != client.interest:
            client.interest = wanted
            self._epoll.modify(client.connection, wanted)

    def _send(self, client: _Client) -> None:
        """Write until the socket is full. Call with `changed` held."""
        try:
            while client.outgoing and not client.gone:
                message = client.outgoing[0][1]
                client.sent_bytes += client.connection.send(memoryview(message)[client.sent_bytes :])
                if client.sent_bytes == len(message):
                    client.outgoing.popleft()
                    client.sent_bytes = 0
                    client.changed.notify_all()
        except BlockingIOError:
            return
        except OSError:
            client.gone = True

    def _hang_up(self, client: _Client) -> None:
        with client.changed:
            client.gone = True
            client.changed.notify_all()
        number = client.connection.fileno()
        self._epoll.unregister(client.connection)
        with self._lock:
            del self._clients[number]
        client.connection.close()

    # ---- a client's thread -------------------------------------------------

    def _work(self, client: _Client) -> None:
        """Execute the client's commands in their order until it is gone."""

        def abandoned() -> bool:
            return client.gone or self._draining

        while True:
            with client.changed:
                while not client.gone and (not client.inbox or len(client.outgoing) > _REPLIES_AHEAD):
                    client.changed.wait()
                if client.gone:
                    return
                received = client.inbox.popleft()
                client.busy = True
            reply = self._answer(client, received, abandoned)
            with client.changed:
                client.outgoing.append(("", reply))
                client.busy = False
                client.changed.notify_all()
            self._wake_up()

    def _answer(self, client: _Client, received: _Input, abandoned: Callable[[], bool]) -> bytes:
        """The reply to one piece of input, as it goes over the wire. Never raises."""
        message_id: object = ABSENT
        reply: Message
        try:
            if isinstance(received, BadInput):
                raise CommandFailed(received.description)
            message_id = received.get("id", ABSENT)
            command = parse_command(received)
            if self._draining:
                raise MachineStopped(f"the machine {self._commands.machine.name} is being stopped")
            if command.execute == "qmp_capabilities":
                value: Any = _negotiate(command.arguments, negotiated=client.negotiated)
                with client.changed:
                    client.negotiated = True
            elif not client.negotiated:
                raise CommandFailed(
                    "Expecting capabilities negotiation with 'qmp_capabilities'",
                    error_class="CommandNotFound",
                )
            else:
                value = self._commands.execute(command.execute, command.arguments, abandoned)
            reply = Return(value=value, id=message_id)
            return encode(reply)
        except BalloonError as error:
            reply = error_reply(error, message_id)
        except Exception as error:  # noqa: BLE001 - a bug in one verb must not end the client's thread
            _log.exception("a QMP command failed unexpectedly: %s", received)
            bug = InternalError(
                f"{type(error).__name__}: {error}",
                why="the machine met an error that balloonctl did not expect",
                hint="please report it; the machine's log has the traceback",
            )
            reply = error_reply(bug, message_id)
        return encode(reply)


def _negotiate(arguments: dict[str, Any], *, negotiated: bool) -> dict[str, Any]:
    """The verb ``qmp_capabilities``; there is no capability to enable.

    :raise CommandFailed: it was done before, or something is asked for that there is not.
    """
    if negotiated:
        raise CommandFailed(
            "Capabilities negotiation is already complete, command ignored", error_class="CommandNotFound"
        )
    for name in arguments:
        if name != "enable":
            raise CommandFailed(f"Parameter '{name[:80]}' is unexpected")
    enable = arguments.get("enable", [])
    if not isinstance(enable, list):
        raise CommandFailed("Invalid parameter type for 'enable', expected: array")
    if enable:
        raise CommandFailed(f"Capability {', '.join(str(name)[:40] for name in enable)} not available")
    return {}


def _listen(path: Path) -> socket.socket:
    """A listening socket that only its owner may connect to.

    :raise InvalidArgument: the path is too long.
    :raise MachineExists: something is there.
    :raise MachineError: the system refused.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # The node in the file system takes its mode from the socket, so nobody can connect in between.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(os.fspath(path))
        listener.listen(MAX_CLIENTS)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if "too long" in str(error):
            raise path_too_long(path) from None
        if isinstance(error, FileExistsError) or "in use" in str(error):
            raise MachineExists(
                f"there is something at {path} already",
                why="a machine has its socket there, or one that was killed left it behind",
                hint="remove it if no machine uses it",
            ) from None
        raise MachineError(
            f"cannot make the socket {path}",
            why=error.strerror or str(error),
            hint="check the directory's permissions and its free space",
        ) from error
    except BaseException:
        listener.close()
        raise
    return listener
