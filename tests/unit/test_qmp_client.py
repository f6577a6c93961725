"""The blocking client: good servers, bad servers, and a machine in the same process."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.fake_machine import FakeMachine, eventually

from balloonvq.errors import (
    BalloonError,
    CommandFailed,
    CoreError,
    Deadlock,
    InvalidArgument,
    KernelBug,
    MachineStopped,
    MachineUnreachable,
    NoSuchMachine,
    ProtocolError,
    WaitTimeout,
)
from balloonvq.qmp.client import Client, LocalClient, QMPClient, restore_error
from balloonvq.qmp.commands import Commands
from balloonvq.qmp.messages import Greeting
from balloonvq.qmp.server import QMPServer

QEMU_GREETING = b'{"QMP": {"version": {"qemu": {"micro": 0, "minor": 1, "major": 9}, "package": ""}, "capabilities": ["oob"]}}\r\n'


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine()


@pytest.fixture
def path() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bln-") as folder:
        yield Path(folder) / "m.sock"


@pytest.fixture
def server(machine: FakeMachine, path: Path) -> Iterator[QMPServer]:
    with QMPServer(
        path, Commands(machine, version=Greeting(version=(0, 1, 0), package="balloonctl"))
    ) as server:
        yield server


@pytest.fixture(params=["socket", "local"])
def client(request: pytest.FixtureRequest, machine: FakeMachine, server: QMPServer) -> Iterator[Client]:
    client: Client = (
        LocalClient(Commands(machine)) if request.param == "local" else QMPClient.connect(server.path)
    )
    yield client
    client.close()


@pytest.fixture
def scripted(path: Path) -> Iterator[Callable[[Callable[[socket.socket], None]], Path]]:
    """A server that does with its one client what a test says."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    threads: list[threading.Thread] = []

    def serve(act: Callable[[socket.socket], None]) -> Path:
        def run() -> None:
            connection, _ = listener.accept()
            with connection:
                act(connection)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return path

    yield serve
    for thread in threads:
        thread.join(5)
    listener.close()


Scripted = Callable[[Callable[[socket.socket], None]], Path]


# ---- the same over a socket and in the process -----------------------------


def test_a_verb_returns_its_value(client: Client) -> None:
    assert client.execute("query-name") == {"name": "fake"}
    assert client.execute("x-deadlock") is None
    assert client.execute("x-status")["device_status"] == ["ACKNOWLEDGE", "DRIVER"]


def test_a_machines_error_comes_back_in_its_class(machine: FakeMachine, client: Client) -> None:
    machine.raises = KernelBug("the kernel said BUG()", why="a page was freed twice", hint="look")
    with pytest.raises(KernelBug) as caught:
        client.execute("x-check")
    assert (caught.value.what, caught.value.why, caught.value.hint) == (
        "the kernel said BUG()",
        "a page was freed twice",
        "look",
    )
    assert caught.value.exit_code == 3


def test_a_refused_verb_is_a_failed_command(client: Client) -> None:
    with pytest.raises(CommandFailed, match="has not been found") as caught:
        client.execute("nonsense")
    assert caught.value.error_class == "CommandNotFound"
    with pytest.raises(CommandFailed, match="is unexpected"):
        client.execute("query-name", {"x": 1})


def test_events_go_to_the_callback_in_the_calling_thread(machine: FakeMachine, client: Client) -> None:
    machine.hold = True
    client.execute("balloon", {"value": (1 << 30) - 8192})
    seen: list[tuple[str, Any]] = []

    def on_event(name: str, data: Any) -> None:
        assert threading.current_thread() is threading.main_thread()
        seen.append((name, data["actual"]))

    def drive() -> None:
        eventually(lambda: machine.waits)
        machine.move(1)
        eventually(lambda: seen)
        machine.move(2)

    driver = threading.Thread(target=drive)
    driver.start()
    result = client.execute("x-wait", on_event=on_event)
    driver.join()
    assert result["outcome"] == "reached"
    assert seen[0] == ("BALLOON_CHANGE", (1 << 30) - 4096)


def test_events_without_a_callback_are_kept(machine: FakeMachine, client: Client) -> None:
    machine.move(1)
    client.execute("query-name")
    machine.move(2)
    actual = [data["actual"] for _, data in client.events(timeout=0.05)]
    assert actual == [(1 << 30) - 4096, (1 << 30) - 8192]


def test_waiting_for_an_event_ends_in_time(client: Client) -> None:
    begun = time.monotonic()
    assert list(client.events(timeout=0.05)) == []
    assert 0.04 < time.monotonic() - begun < 1


def test_a_verb_that_takes_too_long_is_given_up(machine: FakeMachine, client: Client) -> None:
    machine.hold = True
    client.execute("balloon", {"value": 4096})
    with pytest.raises(WaitTimeout) as caught:
        client.execute("x-wait", timeout=0.03)
    assert caught.value.exit_code == 124
    machine.move(machine.target_pages)
    assert client.execute("query-name") == {"name": "fake"}


def test_a_client_can_be_closed_twice(client: Client) -> None:
    client.close()
    client.close()


# ---- bad servers -----------------------------------------------------------


def test_a_missing_socket_is_no_such_machine(path: Path) -> None:
    with pytest.raises(NoSuchMachine):
        QMPClient.connect(path)


def test_a_dead_socket_is_unreachable(path: Path) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.close()
    with pytest.raises(MachineUnreachable) as caught:
        QMPClient.connect(path)
    assert "nobody listens" in caught.value.why


def test_a_file_is_unreachable(path: Path) -> None:
    path.write_text("")
    with pytest.raises(MachineUnreachable):
        QMPClient.connect(path)


def test_a_datagram_socket_is_unreachable(path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        with pytest.raises(MachineUnreachable, match="cannot connect"):
            QMPClient.connect(path)


def test_a_path_that_is_too_long_is_refused(path: Path) -> None:
    with pytest.raises(InvalidArgument, match="too long"):
        QMPClient.connect(path.parent / ("x" * 120))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"SSH-2.0-OpenSSH_9.2\r\n", "SSH-2.0"),
        (b"\x00\x01\x02\x03", "00"),
        (b'{"hello": "world"}\n', "hello"),
        (b'{"return": {}}\n', "return"),
        (b'{"QMP": 5}\n', "no version"),
        (b"", "closed"),
        (b'{"error": {"class": "GenericError", "desc": "too many clients"}}\n', "too many clients"),
    ],
)
def test_a_foreign_server_is_unreachable_and_quoted(scripted: Scripted, answer: bytes, words: str) -> None:
    path = scripted(lambda connection: connection.sendall(answer))
    with pytest.raises(MachineUnreachable) as caught:
        QMPClient.connect(path, timeout=2)
    assert words in caught.value.why


def test_a_silent_server_is_unreachable_in_time(scripted: Scripted) -> None:
    done = threading.Event()
    path = scripted(lambda _connection: bool(done.wait(5)) and None)
    begun = time.monotonic()
    with pytest.raises(MachineUnreachable, match="does not answer"):
        QMPClient.connect(path, timeout=0.1)
    assert time.monotonic() - begun < 2
    done.set()


def test_a_machine_that_dies_is_noticed(scripted: Scripted) -> None:
    def act(connection: socket.socket) -> None:
        connection.sendall(QEMU_GREETING)
        connection.recv(4096)
        connection.sendall(b'{"return": {}, "id": "balloonctl-1"}\n')
        connection.recv(4096)

    client = QMPClient.connect(scripted(act))
    with pytest.raises(MachineStopped):
        client.execute("x-wait")
    with pytest.raises(MachineStopped):
        client.execute("x-wait")
    client.close()


def test_garbage_instead_of_a_reply_is_a_protocol_error(scripted: Scripted) -> None:
    def act(connection: socket.socket) -> None:
        connection.sendall(QEMU_GREETING)
        connection.recv(4096)
        connection.sendall(b'{"return": {}, "id": "balloonctl-1"}\n')
        connection.recv(4096)
        connection.sendall(b"Segmentation fault\n")
        connection.recv(4096)

    client = QMPClient.connect(scripted(act))
    with pytest.raises(ProtocolError) as caught:
        client.execute("query-balloon")
    assert "Segmentation fault" in caught.value.why
    client.close()


def test_a_qemu_is_understood(scripted: Scripted) -> None:
    event = (
        b'{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "RTC_CHANGE", "data": {"offset": 1}}\r\n'
    )

    def act(connection: socket.socket) -> None:
        connection.sendall(QEMU_GREETING)
        assert b"qmp_capabilities" in connection.recv(4096)
        connection.sendall(event + b'{"return": {}, "id": "balloonctl-1"}\r\n')
        assert b"query-balloon" in connection.recv(4096)
        connection.sendall(b'{"return": {"late": 1}, "id": "balloonctl-0"}\r\n' + event)
        connection.sendall(b'{"return": {"actual": 5}, "id": "balloonctl-2", "newer": 1}\r\n')
        assert b"x-status" in connection.recv(4096)
        connection.sendall(
            b'{"id": "balloonctl-3", "error": {"class": "CommandNotFound", "desc": "The command x-status has not been found"}}'
        )
        connection.recv(4096)

    client = QMPClient.connect(scripted(act))
    assert client.greeting.version == (9, 1, 0)
    assert client.execute("query-balloon") == {"actual": 5}
    assert list(client.events(timeout=0.02)) == [("RTC_CHANGE", {"offset": 1})] * 2
    with pytest.raises(CommandFailed) as caught:
        client.execute("x-status")
    assert caught.value.error_class == "CommandNotFound"
    client.close()


def test_the_end_of_the_machine_ends_the_events(server: QMPServer) -> None:
    client = QMPClient.connect(server.path)
    server.close()
    seen: list[str] = []
    with pytest.raises(MachineStopped) as caught:
        seen.extend(name for name, _ in client.events())
    assert caught.value.why == "it was asked to quit"
    client.close()


def test_a_goodbye_is_heard_by_whoever_asks_only_afterwards(server: QMPServer) -> None:
    with QMPClient.connect(server.path) as client:
        server.close()
        with pytest.raises(MachineStopped) as caught:
            client.execute("query-status")
    assert caught.value.why == "it was asked to quit"


def test_ctrl_c_in_a_local_verb_abandons_it(machine: FakeMachine) -> None:
    machine.hold = True
    machine.set_target(5)
    client = LocalClient(Commands(machine))

    def interrupt(_name: str, _data: Any) -> None:
        raise KeyboardInterrupt

    threading.Timer(0.02, machine.move, [1]).start()
    with pytest.raises(KeyboardInterrupt):
        client.execute("x-wait", on_event=interrupt)
    eventually(lambda: not machine.waits)
    client.close()


# ---- errors and imports ----------------------------------------------------


def test_every_error_class_survives_the_wire() -> None:
    for error in (
        Deadlock("a", why="b", hint="c"),
        CoreError("a", errno=5, why="b", hint="c"),
        WaitTimeout("a"),
    ):
        back = restore_error(error.as_document())
        assert type(back) is type(error)
        assert back.as_document() == error.as_document()


@pytest.mark.parametrize("name", ["NotOfOurs", "annotations", 5, None, "CommandFailed"])
def test_an_unknown_error_class_keeps_its_exit_code(name: object) -> None:
    back = restore_error({"schema": "balloonctl/error/1", "error": name, "what": "x", "exit_code": 7})
    assert isinstance(back, CommandFailed)
    assert isinstance(back, BalloonError)
    assert back.exit_code == 7


def test_the_client_is_quick_to_import() -> None:
    code = "import sys, balloonvq.qmp.client; print(*sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    ).stdout
    assert not {"asyncio", "msgspec", "logging", "click", "rich"} & set(output.split())
