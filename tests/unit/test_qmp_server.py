"""The socket of a machine: good peers, bad peers, many peers."""

from __future__ import annotations

import json
import socket
import stat
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.fake_machine import FakeMachine, eventually

from balloonvq.errors import InvalidArgument, KernelBug, MachineError, MachineExists
from balloonvq.qmp.commands import Commands
from balloonvq.qmp.messages import Greeting
from balloonvq.qmp.server import MAX_UNREAD, QMPServer


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class Peer:
    """A client that sends whatever it is told to."""

    def __init__(self, path: Path, *, negotiate: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(5)
        self.socket.connect(str(path))
        self.lines = self.socket.makefile("rb")
        self.greeting = self.read()
        if negotiate:
            assert self.ask("qmp_capabilities") == {"return": {}}

    def read(self) -> Any:
        line = self.lines.readline()
        return json.loads(line) if line else None

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def ask(self, verb: str, **arguments: Any) -> Any:
        self.send(json.dumps({"execute": verb, "arguments": arguments}).encode() + b"\n")
        return self.read()

    def close(self) -> None:
        self.lines.close()
        self.socket.close()


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine()


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bln-") as folder:
        yield Path(folder) / "m.sock"


@pytest.fixture
def server(machine: FakeMachine, path: Path) -> Iterator[QMPServer]:
    before = set(threading.enumerate())
    descriptors = open_descriptors()
    with QMPServer(
        path, Commands(machine, version=Greeting(version=(0, 1, 0), package="balloonctl"))
    ) as server:
        yield server
    assert set(threading.enumerate()) <= before, "a thread was left behind"
    assert not path.exists()
    assert machine.listeners == []
    eventually(lambda: open_descriptors() <= descriptors)


@pytest.fixture
def connect(server: QMPServer) -> Iterator[Callable[..., Peer]]:
    peers: list[Peer] = []

    def connect(**options: Any) -> Peer:
        peers.append(Peer(server.path, **options))
        return peers[-1]

    yield connect
    for peer in peers:
        peer.close()


Connect = Callable[..., Peer]


def test_the_greeting_is_qmps(connect: Connect) -> None:
    assert connect().greeting == {
        "QMP": {
            "version": {"qemu": {"major": 0, "minor": 1, "micro": 0}, "package": "balloonctl"},
            "capabilities": [],
        }
    }


def test_only_the_owner_may_connect(server: QMPServer) -> None:
    assert stat.S_IMODE(server.path.stat().st_mode) == 0o600


def test_nothing_works_before_negotiation(connect: Connect) -> None:
    peer = connect(negotiate=False)
    assert peer.ask("query-balloon")["error"]["class"] == "CommandNotFound"
    assert peer.ask("foo")["error"]["desc"] == "Expecting capabilities negotiation with 'qmp_capabilities'"
    assert "not available" in peer.ask("qmp_capabilities", enable=["oob"])["error"]["desc"]
    assert "unexpected" in peer.ask("qmp_capabilities", x=1)["error"]["desc"]
    assert "expected: array" in peer.ask("qmp_capabilities", enable="oob")["error"]["desc"]
    assert peer.ask("qmp_capabilities", enable=[]) == {"return": {}}
    assert "already complete" in peer.ask("qmp_capabilities")["error"]["desc"]
    assert "return" in peer.ask("query-balloon")


def test_the_id_comes_back_whatever_it_is(connect: Connect) -> None:
    peer = connect()
    for message_id in (1, "a", None, [1, {"x": "\ud800"}], 1.5):
        peer.send(json.dumps({"execute": "query-name", "id": message_id}).encode() + b"\n")
        assert peer.read() == {"return": {"name": "fake"}, "id": message_id}
        peer.send(json.dumps({"execute": "nonsense", "id": message_id}).encode() + b"\n")
        assert peer.read()["id"] == message_id


def test_commands_are_answered_in_their_order(connect: Connect) -> None:
    peer = connect()
    count = 500
    peer.send(b"".join(b'{"execute": "query-name", "id": %d}\n' % number for number in range(count)))
    assert [peer.read()["id"] for _ in range(count)] == list(range(count))


def test_a_machines_error_travels_as_a_document(machine: FakeMachine, connect: Connect) -> None:
    machine.raises = KernelBug("the kernel said BUG()", why="a page was freed twice")
    error = connect().ask("x-check")["error"]
    assert (error["class"], error["desc"]) == ("GenericError", "the kernel said BUG()")
    assert (error["data"]["error"], error["data"]["exit_code"]) == ("KernelBug", 3)


def test_a_bug_of_a_verb_is_an_error_and_not_the_end(machine: FakeMachine, connect: Connect) -> None:
    machine.raises = ZeroDivisionError("oops")
    peer = connect()
    assert peer.ask("x-check")["error"]["data"]["error"] == "InternalError"
    machine.raises = None
    assert "return" in peer.ask("x-check")


def test_events_reach_those_who_negotiated(machine: FakeMachine, connect: Connect) -> None:
    silent, first, second = connect(negotiate=False), connect(), connect()
    machine.move(256)
    for peer in (first, second):
        event = peer.read()
        assert (event["event"], event["data"]) == ("BALLOON_CHANGE", {"actual": (1 << 30) - (1 << 20)})
        assert event["timestamp"]["seconds"] > 0
    assert silent.ask("qmp_capabilities") == {"return": {}}


def test_events_arrive_while_a_verb_waits(machine: FakeMachine, connect: Connect) -> None:
    machine.hold = True
    machine.set_target(2)
    peer = connect()
    peer.send(b'{"execute": "x-wait"}\n')
    eventually(lambda: machine.waits)
    machine.move(1)
    assert peer.read()["event"] == "BALLOON_CHANGE"
    machine.move(2)
    assert {("return" in message) for message in (peer.read(), peer.read())} == {True, False}


def test_a_waiting_verb_keeps_only_its_own_client_waiting(machine: FakeMachine, connect: Connect) -> None:
    machine.hold = True
    machine.set_target(2)
    waiting, other = connect(), connect()
    waiting.send(b'{"execute": "x-wait"}\n')
    eventually(lambda: machine.waits)
    assert "return" in other.ask("query-balloon")
    assert machine.waits == 1


def test_a_wait_is_abandoned_when_its_client_hangs_up(
    machine: FakeMachine, server: QMPServer, connect: Connect
) -> None:
    machine.hold = True
    machine.set_target(2)
    peer = connect()
    peer.send(b'{"execute": "x-wait"}\n')
    eventually(lambda: machine.waits)
    peer.close()
    eventually(lambda: not machine.waits and not server.client_count)


def test_a_peer_that_only_stops_sending_gets_its_replies(connect: Connect) -> None:
    # As `printf ... | nc -N -U` does.
    peer = connect(negotiate=False)
    peer.send(b'{"execute": "qmp_capabilities"}{"execute": "query-name"}')
    peer.socket.shutdown(socket.SHUT_WR)
    assert [peer.read(), peer.read(), peer.read()] == [{"return": {}}, {"return": {"name": "fake"}}, None]


def test_half_a_line_and_a_hang_up_harm_nobody(server: QMPServer, connect: Connect) -> None:
    peer = connect()
    peer.send(b'{"execute": "bal')
    peer.close()
    eventually(lambda: server.client_count == 0)
    assert "return" in connect().ask("query-balloon")


def test_garbage_is_answered_and_the_conversation_goes_on(connect: Connect) -> None:
    peer = connect()
    for garbage in (b"hello\n", b"\x00\xff\xfe\n", b'{"execute": }\n', b"[" * 5000 + b"\n", b"{}\n", b"[]\n"):
        peer.send(garbage)
        reply = peer.read()
        assert reply["error"]["class"] == "GenericError"
        assert "id" not in reply
    assert "return" in peer.ask("query-balloon")


def test_a_line_of_ten_megabytes_is_answered_once(connect: Connect) -> None:
    peer = connect()
    peer.send(b'{"execute": "' + b"x" * 10_000_000 + b'"}\n{"execute": "query-name"}\n')
    assert "size limit" in peer.read()["error"]["desc"]
    assert peer.read() == {"return": {"name": "fake"}}


def test_a_hundred_clients_at_once_are_served(machine: FakeMachine, server: QMPServer) -> None:
    failures: list[BaseException] = []

    def talk() -> None:
        try:
            peer = Peer(server.path)
            for _ in range(5):
                assert "return" in peer.ask("query-name")
            peer.close()
        except Exception as error:  # noqa: BLE001 - told to the test's own thread
            failures.append(error)

    threads = [threading.Thread(target=talk) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    eventually(lambda: server.client_count == 0)


def test_one_client_too_many_is_told_so(machine: FakeMachine, path: Path) -> None:
    with QMPServer(path, Commands(machine), max_clients=2) as server:
        first, second = Peer(path), Peer(path)
        third = Peer(path, negotiate=False)
        assert "too many clients (2" in third.greeting["error"]["desc"]
        assert third.read() is None
        first.close()
        eventually(lambda: server.client_count == 1)
        fourth = Peer(path)
        assert "return" in fourth.ask("query-name")
        for peer in (second, third, fourth):
            peer.close()


def test_a_client_that_reads_nothing_is_dropped_and_holds_up_nobody(
    machine: FakeMachine, server: QMPServer, connect: Connect
) -> None:
    deaf, listening = connect(), connect()
    filler = {"text": "x" * 4000}
    begun = time.monotonic()
    for number in range(3 * MAX_UNREAD):
        machine.emit("X_FILLER", filler)
        if number % 100 == 0:
            assert "return" in _next_reply(listening)
    assert time.monotonic() - begun < 5
    eventually(lambda: server.client_count == 1)
    assert "return" in _next_reply(listening)
    deaf.close()


def _next_reply(peer: Peer) -> Any:
    peer.send(b'{"execute": "query-name"}\n')
    while "event" in (message := peer.read()):
        pass
    return message


def test_a_suspended_client_finds_the_last_value_when_it_wakes(
    machine: FakeMachine, connect: Connect
) -> None:
    peer = connect()
    for pages in range(20 * MAX_UNREAD):
        machine.move(pages)
    last = None
    while last != (1 << 30) - (20 * MAX_UNREAD - 1) * 4096:
        last = peer.read()["data"]["actual"]


def test_a_client_that_sends_and_never_reads_stops_being_read(connect: Connect) -> None:
    peer = connect()
    peer.socket.settimeout(0.3)
    with pytest.raises(TimeoutError):
        peer.send(b'{"execute": "query-commands"}\n' * 1_000_000)
    assert "return" in connect().ask("query-name")


def test_quit_is_answered(machine: FakeMachine, connect: Connect) -> None:
    assert connect().ask("quit") == {"return": {}}
    assert machine.calls == ["quit"]


def test_clients_hear_of_the_end(machine: FakeMachine, path: Path) -> None:
    server = QMPServer(path, Commands(machine))
    peer = Peer(path)
    server.close("host-signal")
    event = peer.read()
    assert (event["event"], event["data"]) == ("SHUTDOWN", {"guest": False, "reason": "host-signal"})
    assert peer.read() is None
    peer.close()
    server.close()


def test_draining_abandons_waits_and_refuses_commands(
    machine: FakeMachine, server: QMPServer, connect: Connect
) -> None:
    machine.hold = True
    machine.set_target(2)
    peer, other = connect(), connect()
    peer.send(b'{"execute": "x-wait"}\n')
    eventually(lambda: machine.waits)
    assert server.drain(5)
    assert machine.waits == 0
    assert peer.read()["error"]["data"]["error"] == "MachineStopped"
    assert other.ask("query-name")["error"]["data"]["error"] == "MachineStopped"


def test_a_client_that_does_not_read_does_not_hold_up_the_end(machine: FakeMachine, path: Path) -> None:
    server = QMPServer(path, Commands(machine))
    peer = Peer(path)
    for _ in range(MAX_UNREAD):
        machine.emit("X_FILLER", {"text": "x" * 4000})
    begun = time.monotonic()
    server.close(flush=0.1)
    assert time.monotonic() - begun < 2
    peer.close()


def test_a_socket_that_took_its_place_is_left_alone(machine: FakeMachine, path: Path) -> None:
    server = QMPServer(path, Commands(machine))
    path.unlink()
    path.write_text("another's")
    server.close()
    assert path.read_text() == "another's"


def test_a_path_that_is_taken_is_not_taken_over(server: QMPServer, machine: FakeMachine) -> None:
    with pytest.raises(MachineExists):
        QMPServer(server.path, Commands(machine))
    assert server.path.exists()


def test_a_path_that_is_too_long_is_refused(machine: FakeMachine, path: Path) -> None:
    with pytest.raises(InvalidArgument, match="too long"):
        QMPServer(path.parent / ("x" * 120), Commands(machine))


def test_a_folder_that_is_not_there_is_an_error(machine: FakeMachine, path: Path) -> None:
    with pytest.raises(MachineError) as caught:
        QMPServer(path.parent / "missing" / "m.sock", Commands(machine))
    assert "No such file" in caught.value.why
