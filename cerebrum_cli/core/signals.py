"""Signals during imports, which no exception may interrupt, and exits without cleanup."""

from __future__ import annotations

import os
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

RESTORE_ON_EXIT: list[Callable[[], None]] = []  # called by `exit_process`


def exit_process(code: int) -> NoReturn:
    """Exit without cleanup, which may be what hangs; only the terminal is restored."""
    for restore in RESTORE_ON_EXIT:
        restore()
    os._exit(code)


def is_importing(frame: FrameType | None) -> bool:
    """Whether an import is running in this frame or below it: an exception there can be lost, or leave a lock taken."""
    while frame and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None
