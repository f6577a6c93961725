"""QEMU's own client and shell work against our server unchanged."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from qemu.qmp import EventListener, ExecuteError, QMPClient
from support.fake_machine import FakeMachine

from balloonvq.errors import LostData
from balloonvq.qmp.commands import BALLOON_PATHS, Commands
from balloonvq.qmp.messages import Greeting
from balloonvq.qmp.server import QMPServer

GIB = 1 << 30


@pytest.fixture
def machine() -> FakeMachine:
    return FakeMachine()


@pytest.fixture
def server(machine: FakeMachine) -> Iterator[QMPServer]:
    with tempfile.TemporaryDirectory(prefix="bln-") as folder:
        commands = Commands(machine, version=Greeting(version=(0, 1, 0), package="balloonctl 0.1.0"))
        with QMPServer(Path(folder) / "m.sock", commands) as server:
            yield server


def talk(server: QMPServer, conversation: Callable[[QMPClient], Awaitable[None]]) -> None:
    """Run a conversation with QEMU's client."""

    async def run() -> None:
        client = QMPClient("test")
        await client.connect(str(server.path))
        try:
            await conversation(client)
        finally:
            await client.disconnect()

    asyncio.run(run())


def test_qemus_client_understands_the_greeting(server: QMPServer) -> None:
    async def conversation(client: QMPClient) -> None:
        assert client.greeting is not None
        assert client.greeting.QMP.version["package"] == "balloonctl 0.1.0"
        assert list(client.greeting.QMP.capabilities) == []

    talk(server, conversation)


def test_qemus_client_moves_the_balloon_and_hears_of_it(machine: FakeMachine, server: QMPServer) -> None:
    async def conversation(client: QMPClient) -> None:
        with client.listener("BALLOON_CHANGE") as listener:
            assert await client.execute("balloon", {"value": GIB // 2}) == {}
            event = await asyncio.wait_for(listener.get(), 5)
        assert event["data"] == {"actual": GIB // 2}
        assert await client.execute("query-balloon") == {"actual": GIB // 2}
        assert await client.execute("query-status") == {"status": "running", "running": True}

    talk(server, conversation)
    assert machine.target_pages == GIB // 2 // 4096


def test_qemus_client_reads_guest_statistics(server: QMPServer) -> None:
    async def conversation(client: QMPClient) -> None:
        where = {"path": BALLOON_PATHS[0], "property": "guest-stats-polling-interval"}
        assert await client.execute("qom-set", where | {"value": 2}) == {}
        assert await client.execute("qom-get", where) == 2
        stats: Any = await client.execute("qom-get", where | {"property": "guest-stats"})
        assert stats["stats"]["stat-free-memory"] == 4096

    talk(server, conversation)


def test_qemus_client_takes_our_errors_with_their_document(machine: FakeMachine, server: QMPServer) -> None:
    machine.raises = LostData("a page lost what its task wrote", why="because")

    async def conversation(client: QMPClient) -> None:
        with pytest.raises(ExecuteError) as caught:
            await client.execute("x-check")
        error = caught.value.error.error
        assert (error.class_, error.desc) == ("GenericError", "a page lost what its task wrote")
        with pytest.raises(ExecuteError) as caught:
            await client.execute("nonsense")
        assert caught.value.error.error.class_ == "CommandNotFound"
        assert await client.execute("query-name") == {"name": "fake"}

    talk(server, conversation)


def test_qemus_client_runs_several_verbs_at_once(machine: FakeMachine, server: QMPServer) -> None:
    async def conversation(client: QMPClient) -> None:
        names = await asyncio.gather(*(client.execute("query-name") for _ in range(20)))
        assert names == [{"name": "fake"}] * 20

    talk(server, conversation)


def test_qemus_client_hears_of_the_end(machine: FakeMachine, server: QMPServer) -> None:
    async def conversation(client: QMPClient) -> None:
        with client.listener("SHUTDOWN") as listener:
            closing = asyncio.create_task(asyncio.to_thread(server.close))
            assert isinstance(listener, EventListener)
            event = await asyncio.wait_for(listener.get(), 5)
            await closing
        assert event["data"]["guest"] is False

    with contextlib.suppress(EOFError):  # how qemu.qmp says that the server hung up
        talk(server, conversation)


def qmp_shell(server: QMPServer, *lines: str) -> subprocess.CompletedProcess[str]:
    """Run QEMU's shell with these lines at its prompt."""
    return subprocess.run(
        [sys.executable, "-m", "qemu.qmp.qmp_shell", str(server.path)],
        input="".join(line + "\n" for line in lines),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=os.environ | {"HOME": str(server.path.parent)},
    )


def test_qmp_shell_greets_and_executes(machine: FakeMachine, server: QMPServer) -> None:
    result = qmp_shell(server, "balloon value=536870912", "query-balloon", "query-name", "nonsense")
    assert result.returncode == 0, result.stderr
    assert "Connected to QEMU 0.1.0" in result.stdout
    assert '{"return": {}' in result.stdout
    assert '"return": {"actual": 536870912}' in result.stdout
    assert '"return": {"name": "fake"}' in result.stdout
    assert "The command nonsense has not been found" in result.stdout
    assert machine.target_pages == 131072


def test_qmp_shell_shows_events(machine: FakeMachine, server: QMPServer) -> None:
    result = qmp_shell(server, "balloon value=536870912", "query-name", "")
    assert "'event': 'BALLOON_CHANGE'" in result.stdout, result.stdout


def test_qmp_shell_completes_our_verbs(server: QMPServer) -> None:
    # The shell fills its completion from query-commands; ask it as readline would.
    code = (
        "import sys; from qemu.qmp.qmp_shell import QMPShell\n"
        "with QMPShell(sys.argv[1]) as shell:\n"
        "    shell.connect()\n"
        "    print(shell._completer.complete('x-st', 0), shell._completer.complete('query-b', 0))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(server.path)],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env=os.environ | {"HOME": str(server.path.parent)},
    )
    assert result.stdout.split() == ["x-stats", "query-balloon"], result.stderr
