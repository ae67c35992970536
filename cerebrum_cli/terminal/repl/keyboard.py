"""Terminal modes of standard input: text typed during a reply is not echoed and waits for the next prompt."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

try:
    import termios
except ImportError:  # Windows does not echo input before it is read
    termios = None  # type: ignore[assignment]


class Keyboard:
    """The terminal of standard input and its initial modes; does nothing if standard input is no terminal."""

    def __init__(self) -> None:
        self._initial_modes: list[Any] | None = None
        if termios is not None and sys.stdin is not None and sys.stdin.isatty():
            self._descriptor = sys.stdin.fileno()
            self._initial_modes = termios.tcgetattr(self._descriptor)

    def restore(self) -> None:
        """Restore the terminal's initial modes."""
        self._set_modes(self._initial_modes)

    @contextlib.contextmanager
    def without_echo(self) -> Iterator[None]:
        """Turn off echo and line editing, so that text typed ahead reaches the prompt unchanged; Ctrl-C still works."""
        modes = self._initial_modes and list(self._initial_modes)
        if modes:
            modes[0] &= ~termios.ICRNL
            modes[3] &= ~(termios.ECHO | termios.ICANON)
        try:
            self._set_modes(modes)
            yield
        finally:
            self.restore()

    @contextlib.contextmanager
    def released(self) -> Iterator[None]:
        """Give another program the terminal in its initial modes; restore the current ones on exit."""
        modes = self._current_modes()
        try:
            self.restore()
            yield
        finally:
            self._set_modes(modes)

    def _current_modes(self) -> list[Any] | None:
        if self._initial_modes is None:
            return None
        try:
            return termios.tcgetattr(self._descriptor)
        except termios.error:  # the terminal was closed
            return None

    def _set_modes(self, modes: list[Any] | None) -> None:
        if modes is not None:
            with contextlib.suppress(termios.error):  # the terminal was closed
                termios.tcsetattr(self._descriptor, termios.TCSANOW, modes)
