"""The prompt. The only module that imports prompt_toolkit at its top.

A watcher thread has a conversation of its own with the machine: it feeds the
counters in the toolbar and prints events above the prompt, also while nobody
types. While a command runs it keeps quiet, since the command says what
happens.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from types import FrameType
from typing import Any

import click
from click.shell_completion import ShellComplete
from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter, ThreadedCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import FormattedText
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.patch_stdout import patch_stdout

from balloonctl.context import Voice, colour_wanted
from balloonctl.failures import Leave
from balloonctl.main import main
from balloonctl.output import as_json
from balloonctl.peer import status_of
from balloonctl.render.units import count, size
from balloonctl.session import Session
from balloonctl.shell_history import history_file
from balloonvq.errors import BalloonError

__all__ = ["Shell", "ShellCompleter", "toolbar_text"]

_REFRESH = 0.5

#: How a completion ends behind which more of the same word follows.
_GOES_ON = ("=", "/", ",", "+")


def toolbar_text(status: dict[str, Any] | None) -> str:
    """The counters below the prompt, each of a fixed width."""
    if status is None:
        return " no machine yet: the first command that needs one makes it "
    balloon = f"{size(status.get('actual_bytes')):>9} of {size(status.get('target_bytes')):>9}"
    parts = [
        f" {status.get('machine', 'machine')} {status['state']}",
        f"balloon {balloon}",
        f"guest {size(status.get('guest_usable_bytes')):>9}",
    ]
    counters = status.get("counters")
    if counters is not None:
        parts += [f"oom {count(counters['oom_events']):>3}", f"kicks {count(counters['kicks']):>7}"]
    return " │ ".join(parts)


class ShellCompleter(Completer):
    """Click's completion of commands, options and values, with their help, at our prompt."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        """What could stand before the cursor."""
        text = document.text_before_cursor.rpartition(";")[2].lstrip()
        words = text.split()
        incomplete = words.pop() if words and not text[-1].isspace() else ""
        complete = ShellComplete(main, {"obj": self._session}, "balloonctl", "_BALLOONCTL_COMPLETE")
        try:
            items = complete.get_completions(words, incomplete)
        except Exception:  # noqa: BLE001 - a line that cannot be parsed yet has no completions
            return
        others = [item for item in items if item.type not in {"file", "dir"}]
        if len(others) < len(items):
            # One item stands for all paths, which go on behind a slash.
            yield from self._paths.get_completions(Document(incomplete), complete_event)
        fitting = [item for item in others if item.value and item.value.startswith(incomplete)]
        for item in fitting:
            whole = len(fitting) == len(items) == 1 and not item.value.endswith(_GOES_ON)
            yield Completion(
                item.value + " " * whole,
                -len(incomplete),
                display=item.value,
                display_meta=item.help or "",
            )


class _Watcher(threading.Thread):
    """Looks at the machine while the prompt waits."""

    def __init__(self, session: Session, show: Any) -> None:
        super().__init__(name="shell-watcher", daemon=True)
        self.status: dict[str, Any] | None = None
        self.quiet = False
        self._session = session
        self._show = show
        self._ending = threading.Event()

    def stop(self) -> None:
        """Ends the thread; returns when it has ended."""
        self._ending.set()
        self.join(timeout=2)

    def run(self) -> None:
        """Conversations with whatever machine there is, one after the other."""
        while not self._ending.is_set():
            client = self._session.connection.second()
            if client is None:
                self.status = None
                self._ending.wait(_REFRESH)
                continue
            with suppress(BalloonError, OSError):
                self._talk(client)
            self.status = None
            with suppress(BalloonError, OSError):
                client.close()
            self._ending.wait(_REFRESH)

    def _talk(self, client: Any) -> None:
        """One conversation, until the machine ends or is another one."""
        current = getattr(self._session.connection, "machine", None)
        while not self._ending.is_set() and getattr(self._session.connection, "machine", None) is current:
            self.status = status_of(client)
            latest: dict[str, Any] = {}
            for name, data in client.events(_REFRESH):
                latest[name] = data
                if len(latest) > 1 or name != "BALLOON_CHANGE":
                    break
                if self.quiet or self._ending.is_set():
                    break
            if not self.quiet:
                for name, data in latest.items():
                    self._show(name, data, self.status)


class Shell:
    """The prompt of a session."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.voice = Voice(session.settings)
        self._watcher = _Watcher(session, self._announce)
        self._busy = False

    def _announce(self, name: str, data: dict[str, Any], status: dict[str, Any] | None) -> None:
        """An event above the prompt."""
        if name == "BALLOON_CHANGE":
            left = int(data["actual"])
            ram = (status or {}).get("ram_bytes")
            balloon = f"balloon {size(ram - left)}, " if ram is not None else ""
            text = f"{balloon}{size(left)} left to the guest"
        else:
            text = ", ".join(
                f"{key} {value}" for key, value in data.items() if not isinstance(value, dict | list)
            )
        if self.session.settings.quiet:
            return
        # In one piece, and on whatever stderr is now: while the prompt is shown that is prompt_toolkit's proxy,
        # which prints whole lines above the prompt and draws it again below.
        sys.stderr.write(self._line_of(name, text or "announced") + "\n")
        sys.stderr.flush()

    def _line_of(self, name: str, text: str) -> str:
        """An announcement as it is printed, with its colours."""
        if self.session.settings.output.is_json:
            note = {"schema": "balloonctl/note/1", "level": name, "text": text}
            return as_json(note, indent=False)
        if not colour_wanted(self.session.settings.color, sys.stderr):
            return f"{name}: {text}"
        return f"{click.style(f'{name}:', fg='yellow')} {text}"

    def _history(self) -> History:
        """What was typed before; kept in memory only where the state directory cannot be written."""
        path = history_file()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(mode=0o600)
        except OSError:
            return InMemoryHistory()
        return FileHistory(str(path))

    def _prompt(self) -> FormattedText:
        return FormattedText([("bold", "balloonctl"), ("", "> ")])

    def run(self) -> int:
        """Reads and runs lines until Ctrl-D or `exit`."""
        prompt: PromptSession[str] = PromptSession(
            history=self._history(),
            completer=ThreadedCompleter(ShellCompleter(self.session)),
            complete_while_typing=False,
            bottom_toolbar=lambda: toolbar_text(self._watcher.status),
            refresh_interval=_REFRESH,
            enable_open_in_editor=False,
        )
        coloured = colour_wanted(self.session.settings.color, sys.stdout)
        if not coloured:
            from prompt_toolkit.output import ColorDepth

            prompt.color_depth = ColorDepth.DEPTH_1_BIT
        self.voice.note("help lists the commands, TAB completes, Ctrl-D leaves")
        self._watcher.start()
        before = signal.signal(signal.SIGINT, self._interrupt)
        try:
            while True:
                try:
                    with patch_stdout(raw=True):
                        line = prompt.prompt(self._prompt)
                except KeyboardInterrupt:
                    continue
                except EOFError:
                    return 0
                try:
                    self._dispatch(line)
                except KeyboardInterrupt:  # just after the line was done
                    continue
                except Leave:
                    return 0
        finally:
            signal.signal(signal.SIGINT, before)
            self._watcher.stop()

    def _dispatch(self, line: str) -> None:
        """Runs a line; Ctrl-C ends the line and never the shell."""
        self._watcher.quiet = True
        try:
            self._busy = True
            self.session.dispatch(line)
        except KeyboardInterrupt:
            # A second one, while the first was being reported.
            pass
        finally:
            self._busy = False
            self._watcher.quiet = False

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        """Ctrl-C: between two lines there is nothing that it could end."""
        del number, frame
        if self._busy:
            raise KeyboardInterrupt
