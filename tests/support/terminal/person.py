"""A user at a terminal: types into a program and reads its screen."""

import re
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pexpect
from screen import Screen

TIMEOUT_S = 30
SHELL = "shell% "  # the prompt of `open_shell`
KEYS = {"Enter": "\r", "Tab": "\t", "Backspace": "\x7f", "Up": "\x1b[A", "Right": "\x1b[C", "Left": "\x1b[D"}
KEYS |= {f"Ctrl-{letter}": chr(ord(letter) & 31) for letter in "ACEJLRUXZ"}
KEYS |= {"Escape": "\x1b", "Paste": "\x1b[200~", "/Paste": "\x1b[201~"}
KEYS |= {"New Shift": "\x1b[57441;2u", "New Shift-Enter": "\x1b[13;2u", "New Shift-Space": "\x1b[32;2u"}
KEYS |= {"New Super-A": "\x1b[97;9u", "New Ctrl-C": "\x1b[99;5u"}  # as newer terminals send them


def keys(text: str) -> str:
    """What a terminal sends for a text with keys such as <Enter>."""
    return re.sub("<([^<>]+)>", lambda key: KEYS[key[1]], text.replace("\n", "\r"))


class Person:
    """A program in a terminal of its own, what is typed into it, and its screen."""

    def __init__(self, argv: list[str], env: dict[str, str], cwd: Path, columns: int = 80, rows: int = 24) -> None:
        self._pty: Any = pexpect.spawn(argv[0], argv[1:], env=env, cwd=str(cwd), dimensions=(rows, columns))
        self._pty.ptyproc.delayafterclose = 0.01
        self.screen = Screen(columns, rows, self._pty.send)
        self.output = ""
        self._lines_before: list[str] = []
        self._typed: str | bytes = ""
        self.has_echo_at_end = True

    def _read(self, timeout: float) -> None:
        data = self._pty.read_nonblocking(4096, timeout)
        self.output += data.decode(errors="replace")
        self.screen.feed(data)

    def wait_for(self, text: str) -> None:
        """Wait until more lines of the screen show a text than when something was last typed."""
        self.wait_until(lambda: self._count(text, self.screen.lines) > self._count(text, self._lines_before), text)

    def wait_for_output(self, text: str) -> None:
        """Wait until a text has been written, even if it has been erased since."""
        self.wait_until(lambda: text in self.output, text)

    def wait_for_lines(self, count: int) -> None:
        """Wait until the screen shows more lines than when something was last typed."""
        self.wait_until(lambda: len(self.screen.lines) >= len(self._lines_before) + count, f"{count} lines")

    def wait_until_still(self) -> None:
        """Wait until the screen has not changed for a second."""
        lines, since = self.screen.lines, time.monotonic()
        while time.monotonic() - since < 1:
            with suppress(pexpect.TIMEOUT):
                self._read(0.2)
            if lines != self.screen.lines:
                lines, since = self.screen.lines, time.monotonic()

    def wait_until(self, condition: Callable[[], bool], expected: str) -> None:
        deadline = time.monotonic() + TIMEOUT_S
        while not condition():
            if time.monotonic() > deadline:
                raise self._failure(f"timed out waiting for {expected!r}")
            try:
                self._read(0.2)
            except pexpect.TIMEOUT:
                continue
            except pexpect.EOF:
                problem = f"the program ended with exit code {self._exit_code()} before it showed {expected!r}"
                raise self._failure(problem) from None

    def _failure(self, problem: str) -> AssertionError:
        after = f" after {self._typed!r}" if self._typed else ""
        return AssertionError("\n".join([f"{problem}{after}; its screen:", *self.screen.lines[-50:]]))

    def resize(self, columns: int, rows: int) -> None:
        self.screen.resize(columns, rows)
        self._pty.setwinsize(rows, columns)

    def _count(self, text: str, lines: list[str]) -> int:
        return sum(text in line for line in lines)

    def type(self, text: str | bytes, shows: str | None = None) -> None:
        """Type a text, and wait until more lines than before show another, if one is given."""
        self._lines_before, self._typed = self.screen.lines, text
        self._pty.send(text)
        if shows is not None:
            self.wait_for(shows)

    def play(self, steps: Iterable[tuple[str, str]]) -> None:
        """Type texts with keys such as <Enter>, and wait each time until the screen shows another text."""
        for typed, shown in steps:
            if typed:
                self.type(keys(typed))
            self.wait_for(shown)

    def kill(self, number: signal.Signals) -> None:
        self._pty.kill(number)

    @property
    def has_echo(self) -> bool:
        return bool(self._pty.getecho())

    def hang_up(self) -> None:
        """Close the terminal and leave the program running."""
        self._pty.ptyproc.fileobj.close()
        self._pty.ptyproc.closed = self._pty.closed = True

    def leave(self) -> None:
        """Press Ctrl-D, and expect the program to exit without an error."""
        self.type("\x04")
        assert self.end() == 0

    def end(self) -> int:
        """Read to the end and return the exit code as a shell does; `has_echo_at_end` is the final echo mode."""
        try:
            while True:
                self._read(TIMEOUT_S)
        except pexpect.EOF:
            self.has_echo_at_end = self.has_echo
        except pexpect.TIMEOUT:
            raise self._failure("timed out waiting for the end of the program") from None
        return self._exit_code()

    def _exit_code(self) -> int:
        self._pty.wait()
        code = self._pty.exitstatus
        return int(128 + self._pty.signalstatus if code is None else code)

    def close(self) -> None:
        self._pty.close(force=True)


OpenTerminal = Callable[..., Person]
