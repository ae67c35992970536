"""The terminal of standard input: its modes while a reply is written, and its reports, which are no input.

Typed text is not echoed while a reply is written, and no stop leaves the terminal that way: shells with job control
set their own modes when a job stops, and few put the job's back when it continues.
"""

from __future__ import annotations

import os
import re
import select
import signal
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

from cerebrum_cli.terminal.interrupts import RESTORE_ON_EXIT

PASTE_ON, PASTE_OFF = "\x1b[?2004h", "\x1b[?2004l"  # bracketed paste: a terminal marks where a paste begins and ends
REPORT = re.compile(
    r"\x1b(?:\[(?:[IO]|<[\d;]*[mM]|M...|\d+;\d+;\d+M"  # the focus, and the mouse
    r"|[?>=][\d;]*\$?[a-z]|[\d;]+[nt])"  # modes, versions and sizes
    r"|(?:\]\d+;|P[>|\d$+]|_G)[^\x07\x1b]*(?:\x07|\x1b\\))",  # colors and other texts
    re.DOTALL,
)
EDITED = {ord("\n"): "\r", 0: "\x04"}  # Enter and Ctrl-D as a terminal that edits lines passes them on: the keys
MAX_TYPED = 65_536  # bytes, more than any terminal holds
Modes = list[Any]  # of a terminal, as in the `termios` module


class Keyboard:
    """The terminal of standard input and its initial modes; does nothing if standard input is no terminal."""

    def __init__(self) -> None:
        self._initial_modes: Modes | None = None
        self._modes: Modes | None = None  # those to set again when the process continues
        self._marks_pastes = False
        self._typed_before = ""
        if sys.stdin is not None and sys.stdin.isatty():
            self._descriptor = sys.stdin.fileno()
            self._initial_modes = termios.tcgetattr(self._descriptor)

    def restore(self) -> None:
        self._set_modes(self._initial_modes, marks_pastes=False)

    @contextmanager
    def without_echo(self, types_ahead: bool = False) -> Iterator[None]:
        """Turn off echo, so that typed text does not land in the answer; a shell reads it afterwards.

        With `types_ahead` line editing is off too, so that the text reaches the prompt unchanged; Ctrl-C still works.
        What was typed before is read, for `take_typed_before`.
        """
        handlers = {}
        if self._initial_modes and threading.current_thread() is threading.main_thread():
            actions = {signal.SIGTSTP: self._on_stop, signal.SIGQUIT: self._on_stop, signal.SIGCONT: self._on_continue}
            handlers = {number: signal.signal(number, action) for number, action in actions.items()}
        RESTORE_ON_EXIT.append(self.restore)
        try:
            if self._initial_modes:
                modes = list(self._initial_modes)
                modes[3] &= ~termios.ECHO
                if types_ahead:
                    modes[0] &= ~termios.ICRNL
                    modes[3] &= ~termios.ICANON
                    modes[3] |= termios.NOFLSH  # Ctrl-C drops neither typed text nor output
                if self._set_modes(modes, marks_pastes=types_ahead) and types_ahead:
                    self._read_typed_before()
            yield
        finally:
            self.restore()
            RESTORE_ON_EXIT.remove(self.restore)
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def take_typed_before(self) -> str:
        """What was typed in the initial modes, with the characters that its keys send in later ones."""
        typed, self._typed_before = self._typed_before, ""
        return typed

    def _read_typed_before(self) -> None:
        """Read what was typed before the modes changed; the terminal has echoed it."""
        with suppress(OSError):  # the terminal was closed
            if select.select([self._descriptor], [], [], 0)[0]:
                typed = os.read(self._descriptor, MAX_TYPED).decode(errors="replace")
                self._typed_before += typed.translate(EDITED)
                if not typed.endswith("\n"):
                    os.write(self._descriptor, b"\r\n")

    @contextmanager
    def prompting(self) -> Iterator[None]:
        modes, self._modes = self._modes, None
        try:
            yield
        finally:
            self._set_modes(modes, marks_pastes=True)

    @contextmanager
    def released(self) -> Iterator[None]:
        """Give another program the terminal in its initial modes; restore the current ones on exit.

        What is typed meanwhile in a chat is read, for `take_typed_before`.
        """
        modes, types_ahead = self._current_modes(), self._marks_pastes
        try:
            self.restore()
            yield
        finally:
            if self._set_modes(modes, marks_pastes=types_ahead) and types_ahead:
                self._read_typed_before()

    def _on_stop(self, signum: int, _: FrameType | None) -> None:
        """Stop, or end, as the signal does by default, but with the terminal's initial modes."""
        modes, marks_pastes = self._current_modes(), self._marks_pastes
        self.restore()
        handler = signal.signal(signum, signal.SIG_DFL)
        self._modes, self._marks_pastes = modes, marks_pastes
        os.kill(os.getpid(), signum)
        signal.signal(signum, handler)

    def _on_continue(self, _: int, __: FrameType | None) -> None:
        self._set_modes(self._modes, self._marks_pastes)

    def _current_modes(self) -> Modes | None:
        if self._initial_modes is None:
            return None
        try:
            return termios.tcgetattr(self._descriptor)
        except termios.error:  # the terminal was closed
            return None

    def _set_modes(self, modes: Modes | None, marks_pastes: bool) -> bool:
        """Set modes, as `_apply` does, and whether pastes are marked."""
        if modes is None or not self._apply(modes):
            return False
        if marks_pastes or self._marks_pastes:
            self._marks_pastes = marks_pastes
            marks = PASTE_ON if marks_pastes else PASTE_OFF
            with suppress(OSError):  # the terminal was closed
                os.write(self._descriptor, marks.encode())
        return True

    def _apply(self, modes: Modes) -> bool:
        """Set the terminal's modes now, or when the process continues in the foreground; whether they are set."""
        self._modes = modes
        try:
            if os.tcgetpgrp(self._descriptor) != os.getpgrp():  # in the background that would stop this process
                return False
            termios.tcsetattr(self._descriptor, termios.TCSANOW, modes)
        except (termios.error, OSError):  # the terminal was closed
            return False
        return True


def without_reports(text: str) -> str:
    """Input without what a terminal reports in modes that other programs left on, or answers to their queries."""
    return REPORT.sub("", text)
