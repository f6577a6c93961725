"""Standard streams that are closed, full, gone, or in an encoding without our signs."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from balloonctl import streams

PROGRAM = [sys.executable, "-m", "balloonctl"]


def shell(line: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs a line of bash in which "$@" is balloonctl."""
    return subprocess.run(
        ["bash", "-c", line, "bash", *PROGRAM],
        env=os.environ | env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def printed_in_ascii(code: str) -> str:
    """What a program of Python prints to a stdout that takes ASCII."""
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout


@pytest.mark.parametrize("command", ["designs", "--help", "designs --json", "info --output plain"])
def test_a_reader_that_left_is_no_error(command: str) -> None:
    # Rich ended the process with 1 by itself.
    result = shell(f'"$@" {command} | (exec <&-; sleep 0.1); exit ${{PIPESTATUS[0]}}')
    assert (result.returncode, result.stderr) == (141, "")


def test_a_reader_of_errors_that_left() -> None:
    # An exception in the last flush of Python made it 120.
    result = shell('"$@" bogus 2>&1 | true; exit ${PIPESTATUS[0]}')
    assert result.returncode in {2, 141}
    assert result.stderr == ""


@pytest.mark.parametrize("command", ["designs", "--help", "--version", "info --output plain"])
@pytest.mark.parametrize(
    ("where", "reason"), [(">/dev/full", "No space left on device"), (">&-", "Bad file descriptor")]
)
def test_a_result_that_cannot_be_written(command: str, where: str, reason: str) -> None:
    result = shell(f'"$@" {command} {where}')
    assert result.returncode == 1
    error, why, hint = result.stderr.splitlines()
    assert error == f"error: cannot write the result: {reason}"
    assert why.startswith("why: stdout")
    assert hint.startswith("hint: ")


def test_errors_that_cannot_be_written() -> None:
    for where in ("2>/dev/full", "2>&-", "<&- >&- 2>&-"):
        result = shell(f'"$@" bogus {where}')
        assert (result.returncode, result.stdout, result.stderr) == (2, "", ""), where


def test_a_full_stderr_ends_nothing_that_can_go_on(tmp_path: Path) -> None:
    # The first note ended the command with 1, before it had done anything.
    env = {"BALLOONCTL_RUNTIME_DIR": str(tmp_path), "BALLOONCTL_START_RAM": "32M"}
    result = shell('"$@" -c "inflate 33%; expect actual 2703p; bogus" 2>/dev/full', **env)
    assert result.returncode == 2
    assert "actual 10.56 MiB" in result.stdout
    script = "printf 'bogus\nstatus\n' | "
    result = shell(script + '"$@" run -k - 2>/dev/full', **env)
    assert result.returncode == 2
    assert "balloon" in result.stdout


def test_no_stdin_is_an_empty_one() -> None:
    result = shell('"$@" run - <&-')
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("command", ["designs", "info", "--help", "designs modern", "designs --json"])
def test_an_encoding_without_our_signs(command: str) -> None:
    # The first sign raised UnicodeEncodeError.
    result = shell(f'"$@" {command}', PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.isascii()


def test_signs_become_ascii_of_the_same_width() -> None:
    code = "from balloonctl.streams import prepare; prepare(); print('✓ ✗ → 3 µs ┌█░ \N{SNOWMAN}')"
    assert printed_in_ascii(code) == "+ x > 3 us +#. ?\n"


def test_a_page_for_the_name_of_stdout_does_not_replace_the_file_behind_it(tmp_path: Path) -> None:
    # The page took the file's place, and the result went with the old one.
    line = '{ echo begun; "$@" explore modern --scenario two-ooms --html /dev/stdout; } >result'
    assert shell(f"cd {tmp_path} && {line}").returncode == 0
    text = (tmp_path / "result").read_text()
    assert text.startswith("begun\ndesign modern\n")
    assert "</html>" in text
    assert text.endswith(")\n")
    assert [path.name for path in tmp_path.iterdir()] == ["result"]


@pytest.mark.parametrize("color", ["never", "always"])
@pytest.mark.parametrize("command", ["designs", "explore --list", "info"])
def test_lines_in_a_pipe_have_no_blanks_at_their_ends(command: str, color: str) -> None:
    text = re.sub(r"\x1b\[[0-9;]*m", "", shell(f'"$@" {command} --color {color}').stdout)
    assert len(text.splitlines()) > 5
    assert [line for line in text.splitlines() if line != line.rstrip()] == []


def shown_texts(path: Path) -> set[str]:
    """The texts of a module that may be printed: all but docstrings, and the table of signs itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    scopes = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, scopes)}
    texts = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    return texts - docstrings


def test_every_sign_that_is_shown_has_one_in_ascii() -> None:
    root = Path(__file__).resolve().parent.parent.parent
    modules = [*(root / "cli").rglob("*.py"), *(root / "vq").rglob("*.py")]
    signs = {sign for path in modules for text in shown_texts(path) for sign in text if not sign.isascii()}
    assert {"\u2713", "\u2503"} <= signs
    text = "".join(sorted(signs))
    substitutes = streams._degrade(UnicodeEncodeError("ascii", text, 0, len(text), "not in range"))[0]
    assert "?" not in substitutes, [sign for sign, sub in zip(text, substitutes, strict=True) if sub == "?"]


def test_the_mark_of_the_target_in_ascii() -> None:
    code = """from balloonctl.render.status import gauge
from balloonctl.streams import prepare
prepare()
print(gauge(40, 20, 100, 10).plain)"""
    assert printed_in_ascii(code) == "##|#......\n"
