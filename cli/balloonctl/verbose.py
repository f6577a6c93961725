"""-v and -vv: what is asked of a machine, what it answers, and what the library logs, on stderr."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from balloonctl.context import Voice
    from balloonvq.qmp.client import Client, OnEvent

__all__ = ["LoggedClient", "log_to"]


class LoggedClient:
    """A client that says what goes through it.

    Args:
        client: who does the work.
        voice: who says it; its verbosity decides how much.
    """

    def __init__(self, client: Client, voice: Voice) -> None:
        self._client = client
        self._voice = voice

    @property
    def is_local(self) -> bool:
        """See `Client`."""
        return self._client.is_local

    def execute(
        self,
        verb: str,
        arguments: Mapping[str, Any] | None = None,
        on_event: OnEvent | None = None,
        timeout: float | None = None,
    ) -> Any:
        """See `Client`."""
        self._say(f"> {verb} {json.dumps(arguments)}" if arguments else f"> {verb}")
        begun = time.monotonic()
        ending = "failed"
        try:
            value = self._client.execute(verb, arguments, on_event, timeout)
            ending = "done"
        finally:
            self._say(f"< {verb} {ending} after {(time.monotonic() - begun) * 1000:.1f} ms")
        if self._voice.settings.verbose > 1:
            self._say(f"< {json.dumps(value)}")
        return value

    def events(self, timeout: float | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
        """See `Client`."""
        return self._client.events(timeout)

    def close(self) -> None:
        """See `Client`."""
        self._client.close()

    def _say(self, text: str) -> None:
        self._voice.note(text, level="log")


class _Handler(logging.Handler):
    """Log records as notes."""

    def __init__(self, voice: Voice) -> None:
        super().__init__()
        self._voice = voice

    def emit(self, record: logging.LogRecord) -> None:
        """One record."""
        self._voice.note(self.format(record), level="log")


def log_to(voice: Voice) -> None:
    """Has the library's log said by `voice`: with -v from INFO on, with -vv all of it."""
    level = logging.DEBUG if voice.settings.verbose > 1 else logging.INFO
    logging.basicConfig(level=level, handlers=[_Handler(voice)], force=True)
