"""Where the threads of this process stand."""

from __future__ import annotations

import gc
import sys
import threading
from types import FrameType

import pytest

from balloonvq.runtime.frames import current_frames


def test_every_thread_has_a_frame() -> None:
    go_on = threading.Event()
    thread = threading.Thread(target=go_on.wait)
    thread.start()
    try:
        frames = current_frames()
        assert frames[threading.get_ident()] is sys._getframe()
        assert thread.ident in frames
    finally:
        go_on.set()
        thread.join()


@pytest.mark.parametrize("collects", [True, False])
def test_no_collection_begins_meanwhile(monkeypatch: pytest.MonkeyPatch, collects: bool) -> None:
    # One that did hung the process: https://github.com/python/cpython/issues/106883.
    looked = []
    look = sys._current_frames

    def frames() -> dict[int, FrameType]:
        looked.append(gc.isenabled())
        return look()

    monkeypatch.setattr(sys, "_current_frames", frames)
    before = gc.isenabled()
    (gc.enable if collects else gc.disable)()
    try:
        current_frames()
        assert looked == [False]
        assert gc.isenabled() is collects
    finally:
        (gc.enable if before else gc.disable)()
