"""The socket: one front end after another, and every descriptor accounted for.

A thread listens, takes one connection at a time, reads messages and lets a `Session` act on them.
The next front end waits in the socket's queue until the present one is gone.

Whatever ends a connection (the front end left, broke the protocol, was killed, or we are to end), the
session is closed: queues stop, the device is reset, memory is unmapped, descriptors are closed.
An error of the front end costs it its connection and nobody else anything.

Descriptors arrive as SCM_RIGHTS with the first byte of their message. They are collected while the
message is read, counted when it is complete, and closed unless somebody took them; if more come than
a message can have, the kernel drops the rest and says so, which ends the connection.
"""

from __future__ import annotations

import array
import contextlib
import errno
import logging
import os
import select
import socket
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from balloonvq.device import BalloonDevice
from balloonvq.errors import BalloonError, InvalidArgument, MachineError
from balloonvq.unix_sockets import path_too_long, somebody_listens
from balloonvq.vhost_user.layout import QueueLayout
from balloonvq.vhost_user.messages import (
    HEADER_BYTES,
    BackEndRequest,
    ProtocolError,
    ProtocolFeature,
    encode_back_end_request,
    encode_reply,
    parse,
    parse_header,
)
from balloonvq.vhost_user.session import Descriptors, Session, SharedMemory

__all__ = ["Backend", "FrontEndState"]

#: Told what became of the front end.
FrontEndState = Literal["connected", "live", "idle", "gone"]

#: Descriptors that are received at once: more than any message has.
_DESCRIPTORS_MAX = 16

#: Seconds within which a message that has begun must be complete, and a reply be taken.
_PATIENCE = 10.0

#: Seconds between two looks at queues that nobody kicks.
_POLL_SECONDS = 0.001

_log = logging.getLogger(__name__)


class _Gone(Exception):
    """The front end hung up, or we are to end."""


class Backend:
    """Serves a device to vhost-user front ends.

    Args:
        device: its transport half is ours.
        memory: where the guest's memory goes.
        socket_path: where to listen; or
        descriptor: a socket that listens, or is connected, which becomes ours.
        layout: how front ends number vrings.
        on_state: called from the backend's thread: a state and a reason (empty if there is none).

    Raises:
        InvalidArgument: if the path or the descriptor cannot be used.
        MachineError: if somebody else listens there, or a socket cannot be made there.
    """

    def __init__(
        self,
        device: BalloonDevice,
        memory: SharedMemory,
        *,
        socket_path: str | os.PathLike[str] | None = None,
        descriptor: int | None = None,
        layout: QueueLayout = "auto",
        on_state: Callable[[FrontEndState, str], None] | None = None,
    ) -> None:
        self.connections = 0
        self._device = device
        self._memory = memory
        self._layout = layout
        self._on_state = on_state or (lambda _state, _why: None)
        self._session: Session | None = None
        self._live = False
        self._path: Path | None = None
        if socket_path is not None:
            self._path = Path(socket_path).absolute()
            self._socket = _listen(self._path)
        elif descriptor is not None:
            self._socket = _adopt(descriptor)
        else:
            raise InvalidArgument("a back end needs a socket", hint="--vhost-user SOCKET")
        self._stop = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="vhost-user", daemon=True)

    def start(self) -> None:
        """Begins to accept front ends."""
        self._thread.start()

    @property
    def attached(self) -> bool:
        """Whether a front end is connected."""
        return self._session is not None

    @property
    def live(self) -> bool:
        """Whether the guest's driver runs."""
        session = self._session
        return session is not None and session.live

    @property
    def queues(self) -> list[tuple[int, int]]:
        """The device's running queues and their sizes."""
        session = self._session
        return [] if session is None else session.queues

    @property
    def hears_changes(self) -> bool:
        """Whether the front end can be told of a new target."""
        session = self._session
        return session is not None and session.hears_changes

    def close(self) -> None:
        """Ends the connection and the socket. Calling it again is harmless."""
        if self._ended:
            return
        self._ended = True
        os.eventfd_write(self._stop, 1)
        if self._thread.ident is not None:
            self._thread.join()
        self._socket.close()
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.unlink()
        os.close(self._stop)

    # -- the thread ----------------------------------------------------------

    def _run(self) -> None:
        listening = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        try:
            if not listening:
                self._serve(self._socket.dup())
                return
            while True:
                self._wait(self._socket.fileno(), None)
                with contextlib.suppress(OSError):
                    connection, _ = self._socket.accept()
                    self._serve(connection)
        except _Gone:
            return

    def _serve(self, connection: socket.socket) -> None:
        """One front end, until it is gone."""
        why = ""
        with connection:
            connection.setblocking(False)
            session = Session(self._device, self._memory, self._layout, self._changed)
            self._session = session
            self.connections += 1
            self._on_state("connected", "")
            try:
                while True:
                    self._idle(connection, session)
                    self._message(connection, session)
            except _Gone as gone:
                why = str(gone)
            except ProtocolError as error:
                why = f"{error.what}: {error.why}" if error.why else error.what
            except BalloonError as error:
                why = error.what
            except OSError as error:
                why = error.strerror or str(error)
            except Exception:  # noqa: BLE001 - the next front end must find us alive
                why = "an error of balloonctl"
                _log.exception("vhost-user: connection closed")
            finally:
                session.close()
                self._session = None
        self._on_state("gone", why)

    def _changed(self) -> None:
        """A queue started or stopped."""
        live = self.live
        if live != self._live:
            self._live = live
            self._on_state("live" if live else "idle", "")

    def _wait(self, descriptor: int, timeout: float | None, events: int = select.POLLIN) -> bool:
        """Waits for one descriptor; False when the time is over.

        Raises:
            _Gone: if we are to end.
        """
        poller = select.poll()
        poller.register(descriptor, events)
        poller.register(self._stop, select.POLLIN)
        ready = dict(poller.poll(None if timeout is None else timeout * 1000))
        if self._stop in ready:
            raise _Gone
        return bool(ready)

    def _idle(self, connection: socket.socket, session: Session) -> None:
        """Until the next message: tell of configuration changes, look at queues that are not kicked."""
        poller = select.poll()
        poller.register(connection, select.POLLIN)
        poller.register(self._stop, select.POLLIN)
        poller.register(self._device.config_fd, select.POLLIN)
        while True:
            polled = session.polled_queues
            ready = dict(poller.poll(_POLL_SECONDS * 1000 if polled else None))
            if self._stop in ready:
                raise _Gone
            for queue in polled:
                os.eventfd_write(self._device.kick_fd(queue), 1)
            if self._device.config_fd in ready:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self._device.config_fd)
                self._tell(session)
            if connection.fileno() in ready:
                return

    def _tell(self, session: Session) -> None:
        """CONFIG_CHANGE on the back end's channel; without one the driver sees it when it next looks."""
        if not session.hears_changes:
            return
        channel = session.channel
        assert channel is not None
        message = encode_back_end_request(BackEndRequest.CONFIG_CHANGE)
        # 12 bytes go whole or not at all. If there is no room, the front end has not read 12-byte
        # messages that say the same, and will look at the newest configuration when it does.
        poller = select.poll()
        poller.register(channel, select.POLLOUT)
        if not any(event & select.POLLOUT for _, event in poller.poll(0)):
            return
        try:
            os.write(channel, message)
        except OSError as error:
            if error.errno != errno.EAGAIN:
                raise _Gone("its channel for our requests is broken") from error

    # -- one message ---------------------------------------------------------

    def _message(self, connection: socket.socket, session: Session) -> None:
        """Reads, does and answers one message.

        Raises:
            ProtocolError: if it is wrong; it was answered if an answer was wanted.
        """
        with Descriptors() as descriptors:
            header = parse_header(self._receive(connection, HEADER_BYTES, descriptors, first=True))
            payload = self._receive(connection, header.size, descriptors)
            try:
                message = parse(header.request, payload, len(descriptors))
                reply = session.handle(message, descriptors)
            except ProtocolError:
                if header.need_reply and ProtocolFeature.REPLY_ACK in session.protocol_features:
                    with contextlib.suppress(OSError):
                        self._send(connection, encode_reply(1, header.request))
                raise
        if reply is not None:
            self._send(connection, encode_reply(reply, header.request))
        # Asked afterwards: the message that negotiates acknowledgements is the first to get one.
        elif header.need_reply and ProtocolFeature.REPLY_ACK in session.protocol_features:
            self._send(connection, encode_reply(0, header.request))

    def _receive(
        self, connection: socket.socket, size: int, descriptors: Descriptors, *, first: bool = False
    ) -> bytes:
        """Exactly so many bytes, and the descriptors that come with them.

        Raises:
            _Gone: if the front end hangs up.
            ProtocolError: in the middle of a message, or with too many descriptors.
        """
        data = bytearray()
        deadline = time.monotonic() + _PATIENCE
        while len(data) < size:
            if not self._wait(connection.fileno(), max(0.0, deadline - time.monotonic())):
                raise ProtocolError("a message was not completed", why=f"within {_PATIENCE:g} s")
            try:
                piece, ancillary, flags, _ = connection.recvmsg(
                    size - len(data), socket.CMSG_SPACE(_DESCRIPTORS_MAX * 4), socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                continue
            for level, kind, rights in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    received = array.array("i")
                    received.frombytes(rights[: len(rights) - len(rights) % received.itemsize])
                    descriptors.extend(received)
            if flags & socket.MSG_CTRUNC:
                raise ProtocolError("a message with more descriptors than any has")
            if not piece:
                if first and not data:
                    raise _Gone
                raise ProtocolError("the front end hung up within a message")
            data += piece
        return bytes(data)

    def _send(self, connection: socket.socket, data: bytes) -> None:
        """All of it.

        Raises:
            ProtocolError: if the front end does not take it.
        """
        deadline = time.monotonic() + _PATIENCE
        view = memoryview(data)
        while view:
            if not self._wait(connection.fileno(), max(0.0, deadline - time.monotonic()), select.POLLOUT):
                raise ProtocolError("the front end does not take its reply", why=f"within {_PATIENCE:g} s")
            with contextlib.suppress(BlockingIOError):
                view = view[connection.send(view, socket.MSG_NOSIGNAL) :]


# ---- sockets ---------------------------------------------------------------


def _listen(path: Path) -> socket.socket:
    """A listening socket, where a dead one may lie.

    Raises:
        InvalidArgument: if the path is too long, or is something else.
        MachineError: if somebody listens there, or a socket cannot be made there.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        _clear(path)
        listener.bind(str(path))
        path.chmod(0o600)
        listener.listen(8)
    except OSError as error:
        listener.close()
        if "too long" in str(error):
            raise path_too_long(path) from None
        raise MachineError(
            f"cannot listen at {path}",
            why=error.strerror or str(error),
            hint="choose a path in a directory of yours",
        ) from error
    except BaseException:
        listener.close()
        raise
    listener.setblocking(False)
    return listener


def _clear(path: Path) -> None:
    """Removes a socket that nobody listens at."""
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise InvalidArgument(f"{path} is there already", why="it is no socket", hint="choose another path")
    if not somebody_listens(path):
        path.unlink()
        return
    raise MachineError(
        f"somebody listens at {path} already", why="another back end is running", hint="choose another path"
    )


def _adopt(descriptor: int) -> socket.socket:
    """A socket that we were started with.

    Raises:
        InvalidArgument: if it is none.
    """
    try:
        adopted = socket.socket(fileno=descriptor)
        adopted.setblocking(False)
    except OSError as error:
        raise InvalidArgument(
            f"descriptor {descriptor} is no socket", why=error.strerror or str(error)
        ) from error
    if adopted.family != socket.AF_UNIX or adopted.type != socket.SOCK_STREAM:
        adopted.detach()
        raise InvalidArgument(f"descriptor {descriptor} is no unix stream socket")
    os.set_inheritable(descriptor, False)
    return adopted
