"""Somebody who types into a program at a terminal, and what the screen shows."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pexpect
from screen import Screen

TIMEOUT_S = 30


class Person:
    """A person at a terminal of so many columns and rows, which answers what programs ask of one."""

    def __init__(self, argv: list[str], env: dict[str, str], cwd: Path, columns: int = 80, rows: int = 24) -> None:
        self._pty: Any = pexpect.spawn(argv[0], argv[1:], env=env, cwd=str(cwd), dimensions=(rows, columns))
        self.screen = Screen(columns, rows, self._pty.send)
        self.output = ""
        self._before: list[str] = []
        self.echoed = True

    def _show(self, data: bytes) -> None:
        self.output += data.decode(errors="replace")
        self.screen.feed(data)

    def wait_for(self, text: str) -> None:
        """Wait until the screen shows a text in more lines than when something was last typed."""
        self._wait(lambda: self._count(text, self.screen.lines) > self._count(text, self._before), text)

    def wait_for_lines(self, lines: int) -> None:
        """Wait until the screen shows so many lines more than when something was last typed."""
        self._wait(lambda: len(self.screen.lines) >= len(self._before) + lines, f"{lines} lines")

    def _wait(self, came: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not came():
            assert time.monotonic() < deadline, f"{what!r} never came: {self.screen.lines[-50:]}"
            try:
                self._show(self._pty.read_nonblocking(4096, 0.2))
            except pexpect.TIMEOUT:
                continue

    def resize(self, columns: int, rows: int) -> None:
        """Make the window another size."""
        self.screen.resize(columns, rows)
        self._pty.setwinsize(rows, columns)

    def _count(self, text: str, lines: list[str]) -> int:
        return sum(text in line for line in lines)

    def type(self, text: str | bytes) -> None:
        self._before = self.screen.lines
        self._pty.send(text)

    def kill(self, number: signal.Signals) -> None:
        self._pty.kill(number)

    @property
    def echoes(self) -> bool:
        """Whether the terminal shows what is typed."""
        return bool(self._pty.getecho())

    def hang_up(self) -> None:
        """Close the terminal, and leave whatever runs in it alone."""
        self._pty.ptyproc.fileobj.close()
        self._pty.ptyproc.closed = self._pty.closed = True

    def end(self) -> int:
        """Read to the end, and return the exit code as a shell tells it; `echoed` tells how the terminal was left."""
        try:
            while True:
                self._show(self._pty.read_nonblocking(4096, TIMEOUT_S))
        except pexpect.EOF:
            self.echoed = self.echoes
            self._pty.close()
        code = self._pty.exitstatus
        return int(128 + self._pty.signalstatus if code is None else code)

    def close(self) -> None:
        self._pty.close(force=True)
