"""The command at a real terminal: the prompt, the live view, Ctrl-C, a closed pipe. Machines are fakes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

PROGRAM = Path(__file__).with_name("cli_fakes.py")

pytestmark = pytest.mark.terminal


class Terminal:
    """A pseudo terminal with balloonctl in it."""

    def __init__(self, *args: str) -> None:
        self.child = pexpect.spawn(
            sys.executable,
            [str(PROGRAM), *args],
            env=os.environ | {"TERM": "xterm-256color", "COLUMNS": "100", "PROMPT_TOOLKIT_NO_CPR": "1"},
            dimensions=(34, 100),
            encoding="utf-8",
            timeout=20,
        )

    def sees(self, text: str) -> None:
        """Waits until the text was drawn; escape sequences and spaces may stand between any two characters."""
        characters = [re.escape(char) for char in text if not char.isspace()]
        self.child.expect(r"(?:\x1b\[[0-9;?]*[A-Za-z]|\s)*".join(characters))

    def types(self, text: str) -> None:
        self.child.send(text)

    def ends(self) -> int:
        self.child.expect(pexpect.EOF)
        self.child.close()
        code = self.child.exitstatus
        assert code is not None
        return int(code)


@pytest.fixture
def terminal(home: Path) -> Iterator[type[Terminal]]:
    opened: list[Terminal] = []

    class Opened(Terminal):
        def __init__(self, *args: str) -> None:
            super().__init__(*args)
            opened.append(self)

    yield Opened
    for one in opened:
        one.child.close(force=True)


def test_the_prompt(terminal: type[Terminal], home: Path) -> None:
    shell = terminal()
    shell.sees("Ctrl-D leaves")
    shell.sees("balloonctl>")
    shell.types("inflate 64M\r")
    shell.sees("this session makes its own machine")
    shell.sees("reached: 16,384 pages")
    shell.sees("balloonctl>")
    shell.types("expect actual 1M\r")
    shell.sees("error:")
    shell.sees("actual is 64 MiB, expected 1 MiB")
    shell.types("half a line\x03")
    shell.sees("balloonctl>")
    shell.types("defl\t")
    shell.sees("deflate")
    shell.types("1M\r")  # the space was put there
    shell.sees("reached: 256 pages")
    shell.sees("balloonctl>")
    shell.types("\x04")
    assert shell.ends() == 0
    history = (home / "state/balloonctl/history").read_text()
    assert "+inflate 64M" in history
    assert "+deflate 1M" in history


def test_the_shell_records(terminal: type[Terminal], home: Path) -> None:
    shell = terminal("shell", "--record", "session.balloon")
    shell.sees("balloonctl>")
    shell.types("inflate 64M\r")
    shell.sees("reached")
    shell.sees("balloonctl>")
    shell.types("exit\r")
    assert shell.ends() == 0
    assert "inflate 64M\n" in (home / "session.balloon").read_text()


def test_the_live_view_and_its_keys(terminal: type[Terminal]) -> None:
    watch = terminal("watch", "--interval", "100ms")
    watch.sees("every 0.1 s")
    watch.sees("kicks suppressed")
    watch.types("p")
    watch.sees("paused")
    watch.types("+")
    watch.sees("every 0.2 s")
    watch.types("q")
    assert watch.ends() == 0
    assert "\x1b[?1049l" in (watch.child.before or "")


def test_ctrl_c_in_the_live_view_restores_the_terminal(terminal: type[Terminal]) -> None:
    watch = terminal("watch")
    watch.sees("default")
    watch.types("\x03")
    assert watch.ends() == 130
    assert "\x1b[?1049l" in (watch.child.before or "")


def test_ctrl_c_while_inflating(terminal: type[Terminal], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_HANG", "1")
    inflate = terminal("inflate", "64M")
    inflate.sees("inflating")
    inflate.types("\x03")
    inflate.sees("the machine goes on towards its target of 64 MiB")
    assert inflate.ends() == 130


def run(*args: str, **kwargs: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **kwargs,
    )  # type: ignore[call-overload,no-any-return]


def test_no_progress_without_a_terminal() -> None:
    with run("inflate", "64M") as process:
        stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "\x1b" not in stdout + stderr
    assert stderr == ""


def test_a_reader_that_goes_away() -> None:
    with run("watch", "--interval", "10ms") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.wait(timeout=30) == 141
        assert process.stderr.read() == ""


def test_ctrl_c_on_a_pipe() -> None:
    with run("watch", "--interval", "10ms") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        process.stdout.read()
        assert process.wait(timeout=30) == 130
        assert "Traceback" not in process.stderr.read()
