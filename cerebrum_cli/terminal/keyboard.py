"""Terminal modes of standard input while a reply is written: typed text is not echoed."""

from __future__ import annotations

import contextlib
import os
import sys
import termios
from collections.abc import Iterator
from typing import Any

from cerebrum_cli.core.signals import RESTORE_ON_EXIT

PASTE_ON, PASTE_OFF = "\x1b[?2004h", "\x1b[?2004l"  # bracketed paste: a terminal marks where a paste begins and ends


class Keyboard:
    """The terminal of standard input and its initial modes; does nothing if standard input is no terminal."""

    def __init__(self) -> None:
        self._initial_modes: list[Any] | None = None
        self._modes: list[Any] | None = None  # those of a reply
        self._marks_pastes = False
        if sys.stdin is not None and sys.stdin.isatty():
            self._descriptor = sys.stdin.fileno()
            self._initial_modes = termios.tcgetattr(self._descriptor)

    def restore(self) -> None:
        self._set_modes(self._initial_modes, marks_pastes=False)

    @contextlib.contextmanager
    def without_echo(self, types_ahead: bool = False) -> Iterator[None]:
        """Turn off echo, so that typed text does not land in the answer; a shell reads it afterwards.

        With `types_ahead` line editing is off too, so that the text reaches the prompt unchanged; Ctrl-C still works.
        """
        RESTORE_ON_EXIT.append(self.restore)
        try:
            if self._initial_modes:
                modes = list(self._initial_modes)
                modes[3] &= ~termios.ECHO
                if types_ahead:
                    modes[0] &= ~termios.ICRNL
                    modes[3] &= ~termios.ICANON
                self._modes = modes
                self._set_modes(modes, marks_pastes=types_ahead)
            yield
        finally:
            self.restore()
            RESTORE_ON_EXIT.remove(self.restore)

    @contextlib.contextmanager
    def prompting(self) -> Iterator[None]:
        """Let the prompt set its own modes, and return to those of a reply."""
        try:
            yield
        finally:
            self._set_modes(self._modes, marks_pastes=True)

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """Give another program the terminal in its initial modes, and return to those of a reply, if there are any."""
        marks_pastes = self._marks_pastes
        try:
            self.restore()
            yield
        finally:
            self._set_modes(self._modes, marks_pastes)

    def _set_modes(self, modes: list[Any] | None, marks_pastes: bool) -> None:
        if modes is None or not self._apply(modes):
            return
        if marks_pastes or self._marks_pastes:
            self._marks_pastes = marks_pastes
            marks = PASTE_ON if marks_pastes else PASTE_OFF
            with contextlib.suppress(OSError):  # the terminal was closed
                os.write(self._descriptor, marks.encode())

    def _apply(self, modes: list[Any]) -> bool:
        """Set the terminal's modes; whether they are set, which a process in the background cannot do."""
        try:
            if os.tcgetpgrp(self._descriptor) != os.getpgrp():  # it would be stopped
                return False
            termios.tcsetattr(self._descriptor, termios.TCSANOW, modes)
        except (termios.error, OSError):  # the terminal was closed
            return False
        return True
