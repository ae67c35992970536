"""Sources of a chat's questions: a pipe, or the plain prompt of a terminal, which `prompt.py` extends."""

from __future__ import annotations

import contextlib
import select
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.terminal.interrupts import Signals, ignore_ctrl_c, raise_at_prompt
from cerebrum_cli.terminal.keyboard import Keyboard
from cerebrum_cli.terminal.repl.external_programs import edit_file
from cerebrum_cli.terminal.streams import Streams

FENCE = '"""'
MAX_TERMINAL_LINE = 4095  # bytes that a Linux terminal passes on of a line; it drops the rest
PASTE_GAP_S = 0.05  # lines that follow sooner were pasted
PROMPT, CONTINUATION = "> ", "... "
MAX_LINE, EDGE_LINES = 200, 4  # characters of a line, lines at each end of a question shown again


class ScriptInput:
    redraws = False

    def __init__(self, text: str, echo: Callable[[str], None]) -> None:
        self._questions = split_questions(text)
        self._echo = echo

    def read(self) -> str:
        for question in self._questions:
            self._echo(prompt_text(question))
            return question
        raise EOFError

    def edit(self, _: str, /) -> str:
        raise UsageError("cannot edit while questions are piped in", "ask again instead")

    def confirm(self, _: str, /) -> bool:
        return False


def prompt_text(question: str) -> str:
    return PROMPT + question.replace("\n", f"\n{CONTINUATION}") + "\n"


def shorten_question(question: str) -> str:
    """Shorten a long question to its first and last lines; the last ones usually ask."""
    lines = question.splitlines()
    if len(lines) > 2 * EDGE_LINES + 1:
        lines = [*lines[:EDGE_LINES], "...", *lines[-EDGE_LINES:]]
    for index, line in enumerate(lines):
        if len(line) > MAX_LINE:
            lines[index] = f"{line[:MAX_LINE]} ..."
    return "\n".join(lines)


def split_questions(text: str) -> Iterator[str]:
    lines = iter(text.splitlines())
    for line in lines:
        if line.strip():
            yield read_question(line, lines)


def read_question(text: str, lines: Iterator[str]) -> str:
    while not is_complete(text) and (line := next(lines, None)) is not None:
        text += f"\n{line}"
    return strip_fences(text)


def is_complete(text: str) -> bool:
    stripped = text.strip()
    return not _opens_block(stripped) or stripped[len(FENCE) :].endswith(FENCE)


def strip_fences(text: str) -> str:
    stripped = text.strip()
    inner = stripped.removeprefix(FENCE).removesuffix(FENCE)
    is_quoted_line = stripped == f"{FENCE}{inner}{FENCE}" and "\n" not in inner and FENCE not in inner
    if is_quoted_line or _opens_block(stripped):
        return inner.strip("\n")
    return text


def _opens_block(stripped: str) -> bool:
    first = stripped.partition("\n")[0]
    return first.startswith(FENCE) and FENCE not in first[len(FENCE) :]


@dataclass
class PlainPrompt:
    """A prompt for dumb terminals and screen readers, which reads plain lines.

    One that `redraws` its line has typed text wait for it, unseen, while no question is being read.
    """

    redraws: ClassVar[bool] = False
    streams: Streams
    keyboard: Keyboard
    signals: Signals
    is_ended: bool = field(default=False, init=False)

    def read(self) -> str:
        with self.signals.acting(raise_at_prompt):
            is_typed_ahead = self._has_input(0)
            lines = [self._read_line(PROMPT)]
            with contextlib.suppress(EOFError):  # it ends the chat when it is read again
                while not (is_typed_ahead or lines[0].startswith("/")) and self._has_input(PASTE_GAP_S):
                    lines.append(self._read_line(""))
            return read_question("\n".join(lines), iter(lambda: self._read_line(CONTINUATION), None))

    def edit(self, text: str) -> str:
        """Edit a text and return the result. Raises UsageError if the editor fails, or does not write UTF-8.

        The editor gets the terminal in its initial modes and handles Ctrl-C itself; SIGTERM and SIGHUP end it.
        """
        with tempfile.TemporaryDirectory(prefix="cerebrum-") as directory:
            path = Path(directory) / "text.md"
            path.write_text(text + "\n", encoding="utf-8")
            with self.keyboard.released(), self.signals.acting(ignore_ctrl_c):
                edit_file(path)
            try:
                return path.read_text(encoding="utf-8").rstrip("\n")
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(f"the edited text cannot be read: {error}", "set $EDITOR to another editor") from error

    def confirm(self, question: str) -> bool:
        with self.keyboard.released():
            return self.streams.confirm(question)

    def _has_input(self, timeout: float) -> bool:
        return self.streams.in_is_terminal and bool(select.select([sys.stdin], [], [], timeout)[0])

    def _read_line(self, prompt: str) -> str:
        if sys.stdin is None or self.is_ended:  # None: closed by the parent process
            raise EOFError
        self.streams.answer(prompt)
        line = sys.stdin.buffer.readline()
        if not line:
            self.is_ended = True  # a terminal says so once
            raise EOFError
        if self.streams.in_is_terminal and len(line) > MAX_TERMINAL_LINE:
            while self._has_input(PASTE_GAP_S) and sys.stdin.buffer.readline():  # the rest of the paste
                pass
            problem = f"the terminal truncates lines at {MAX_TERMINAL_LINE} bytes; nothing was sent"
            raise UsageError(problem, "split the line, or use /file PATH")
        return line.decode("utf-8", "replace").rstrip("\r\n")


# Where the questions of a chat come from. `read` raises EOFError at the end, KeyboardInterrupt on Ctrl-C.
InputSource = ScriptInput | PlainPrompt
