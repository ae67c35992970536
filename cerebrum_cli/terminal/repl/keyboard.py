"""The keyboard while nobody reads it: what is typed into a reply is not shown in it, and waits for the next prompt."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

try:
    import termios
except ImportError:  # Windows shows nothing before it is read
    termios = None  # type: ignore[assignment]


class Keyboard:
    """The terminal that standard input is, and the modes it was found in; where it is none nothing is changed."""

    def __init__(self) -> None:
        self._found: list[Any] | None = None
        if termios is not None and sys.stdin is not None and sys.stdin.isatty():
            self._descriptor = sys.stdin.fileno()
            self._found = termios.tcgetattr(self._descriptor)

    def restore(self) -> None:
        """Give the terminal the modes it was found in."""
        self._set(self._found)

    @contextlib.contextmanager
    def unechoed(self) -> Iterator[None]:
        """Keep the terminal from showing what is typed, and from changing it for the prompt: Enter stays Enter.

        Ctrl-C stays a signal.
        """
        try:
            self._set(self._quiet())
            yield
        finally:
            self.restore()

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Give another program the terminal as it was found, and take it back as it is now."""
        now = self._now()
        try:
            self.restore()
            yield
        finally:
            self._set(now)

    def _now(self) -> list[Any] | None:
        if self._found is None:
            return None
        try:
            return termios.tcgetattr(self._descriptor)
        except termios.error:  # the terminal is gone
            return None

    def _quiet(self) -> list[Any] | None:
        if self._found is None:
            return None
        quiet = list(self._found)
        quiet[0] &= ~termios.ICRNL
        quiet[3] &= ~(termios.ECHO | termios.ICANON)
        return quiet

    def _set(self, modes: list[Any] | None) -> None:
        if modes is not None:
            with contextlib.suppress(termios.error):  # the terminal is gone
                termios.tcsetattr(self._descriptor, termios.TCSANOW, modes)
