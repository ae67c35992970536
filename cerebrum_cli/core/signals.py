"""Signals during native calls and imports, which no exception may interrupt."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

RESTORE_ON_EXIT: list[Callable[[], None]] = []  # called by `exit_process`


def exit_process(code: int) -> NoReturn:
    """Exit without cleanup, which may be what hangs; only the terminal is restored."""
    for restore in RESTORE_ON_EXIT:
        restore()
    os._exit(code)


@contextlib.contextmanager
def exit_on_second_interrupt() -> Iterator[None]:
    """Exit at the second Ctrl-C during a native call of seconds: Python's handlers run only after it.

    On other threads than the main one this does nothing, since there no call keeps the handlers from running.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    previous = signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)

    def watch() -> None:
        interrupts = 0
        while number := os.read(read_end, 1):
            interrupts += number[0] == signal.SIGINT
            if interrupts == 2:
                exit_process(128 + signal.SIGINT)

    watcher = threading.Thread(target=watch, name="interrupts", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(previous)
        os.close(write_end)
        watcher.join()
        os.close(read_end)


def is_importing(frame: FrameType | None) -> bool:
    """Whether an import is running in this frame or below it: an exception there can be lost, or leave a lock taken."""
    while frame and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None
