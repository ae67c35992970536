"""Sources of a chat's questions: a pipe, or the plain prompt of a terminal, which `prompt.py` extends."""

from __future__ import annotations

import select
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple

from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.text import Texts, strip_controls
from cerebrum_cli.terminal.interrupts import Signals, ignore_ctrl_c, raise_at_prompt
from cerebrum_cli.terminal.keyboard import Keyboard, without_reports
from cerebrum_cli.terminal.streams import Streams

FENCE = '"""'
MAX_TERMINAL_LINE = 4095  # bytes that a Linux terminal passes on of a line; it drops the rest
PASTE_GAP_S = 0.05  # lines that follow sooner were pasted
PROMPT, CONTINUATION = "> ", "... "
MAX_LINE, EDGE_LINES = 200, 4  # characters of a line, lines at each end of a question shown again


class InputLine(NamedTuple):
    """A question or a slash command as it was read; a literal one is a question, whatever it begins with.

    `pasted` are the parts that were pasted as several lines.
    """

    text: str
    is_literal: bool = False
    pasted: Texts = ()

    @property
    def typed(self) -> str:
        """The text without what was pasted; nothing of a literal one."""
        if self.is_literal:
            return ""
        typed = self.text
        for part in self.pasted:
            typed = typed.replace(part, "\n")
        return typed


class ScriptInput:
    redraws = False

    def __init__(self, text: str, streams: Streams) -> None:
        self._lines = split_questions(text)
        self._streams = streams

    def read(self) -> InputLine:
        for line in self._lines:
            if not self._streams.is_quiet:
                echo(self._streams, line.text)
            return line
        raise EOFError

    def edit(self, _: str, /) -> str:
        raise UsageError("cannot edit while questions are piped in", "ask again instead")

    def confirm(self, _: str, __: bool = True, /) -> bool:
        return False


def echo(streams: Streams, question: str) -> None:
    """Write a question as it looks once it was typed."""
    prompt = PROMPT
    for line in question.split("\n"):
        show_prompt(streams, prompt + line, "\n")
        prompt = CONTINUATION


def show_prompt(streams: Streams, prompt: str, end: str = "") -> None:
    """Write a prompt, and what was typed behind it, where the answers are shown, but never into a pipe of answers."""
    text = strip_controls(prompt)
    if streams.out_is_terminal:
        streams.answer(streams.styled(text, "question") + end, is_styled=True)
    else:
        streams.draw(streams.on_stderr.styled(text, "question") + end, is_styled=True)


def shorten_question(question: str) -> str:
    """Shorten a long question to its first and last lines; the last ones usually ask."""
    lines = question.removesuffix("\n").split("\n")
    hidden = len(lines) - 2 * EDGE_LINES
    if hidden > 1:
        lines[EDGE_LINES:-EDGE_LINES] = [f"({hidden} more lines)"]
    for index, line in enumerate(lines):
        if len(line) > MAX_LINE:
            words = line[:MAX_LINE].rpartition(" ")[0]
            lines[index] = f"{words or line[:MAX_LINE]} ..."
    return "\n".join(lines)


def split_questions(text: str) -> Iterator[InputLine]:
    """Questions and commands in lines, which end in LF or CRLF: other separators, such as U+2028, are text."""
    lines = iter(text.replace("\r\n", "\n").split("\n"))
    for line in lines:
        if line.strip():
            yield read_block(line, lines)


def read_block(text: str, lines: Iterator[str]) -> InputLine:
    """Read the further lines of a block, if a text opens one."""
    while (line := parse_input(text)) is None:
        text += f"\n{next(lines, FENCE)}"
    return line


def parse_input(text: str) -> InputLine | None:
    """A question or a slash command; None while a block is open: it begins and ends with three quotes."""
    block = text.strip()
    if not block.startswith(FENCE):
        return InputLine(text)
    if len(block) < 2 * len(FENCE) or not block.endswith(FENCE):
        return None
    return InputLine(block.removeprefix(FENCE).removesuffix(FENCE).strip("\n"), is_literal=True)


@dataclass
class PlainPrompt:
    """A prompt for dumb terminals and screen readers, which reads plain lines.

    One that `redraws` its line has typed text wait for it, unseen, while no question is being read.
    """

    redraws: ClassVar[bool] = False
    streams: Streams
    keyboard: Keyboard
    signals: Signals
    is_ended: bool = False

    def read(self) -> InputLine:
        with self.signals.acting(raise_at_prompt):
            is_typed_ahead = self._has_input(0)
            lines = [self._read_line(PROMPT)]
            with suppress(EOFError):  # it ends the chat when it is read again
                while not is_typed_ahead and self._has_input(PASTE_GAP_S):
                    lines.append(self._read_line(""))
            if len(lines) > 1:
                return InputLine("\n".join(lines), is_literal=True)
            return read_block(lines[0], iter(lambda: self._read_line(CONTINUATION), None))

    def edit(self, text: str) -> str:
        """Edit a text and return the result. Raises UsageError if the editor fails, or does not write UTF-8.

        The editor gets the terminal in its initial modes and handles Ctrl-C itself; SIGTERM and SIGHUP end it.
        """
        with tempfile.TemporaryDirectory(prefix="cerebrum-") as directory:
            path = Path(directory) / "text.md"
            path.write_text(text + "\n", encoding="utf-8")
            with self.keyboard.released(), self.signals.acting(ignore_ctrl_c):
                self.streams.edit(path)
            try:
                return path.read_text(encoding="utf-8").rstrip("\n")
            except (OSError, UnicodeDecodeError) as error:
                raise UsageError(f"the edited text cannot be read: {error}", "set $EDITOR to another editor") from error

    def confirm(self, question: str, default: bool = True) -> bool:
        with self.keyboard.released():
            return self.streams.confirm(question, default)

    def _has_input(self, timeout: float) -> bool:
        return self.streams.in_is_terminal and bool(select.select([sys.stdin], [], [], timeout)[0])

    def _read_line(self, prompt: str) -> str:
        if sys.stdin is None or self.is_ended:  # None: closed by the parent process
            raise EOFError
        show_prompt(self.streams, prompt)
        line = sys.stdin.buffer.readline()
        if not line:
            self.is_ended = True  # a terminal says so once
            show_prompt(self.streams, "", "\n")
            raise EOFError
        if self.streams.in_is_terminal and len(line) > MAX_TERMINAL_LINE:
            while self._has_input(PASTE_GAP_S) and sys.stdin.buffer.readline():  # the rest of the paste
                pass
            problem = f"the terminal truncates lines at {MAX_TERMINAL_LINE} bytes; nothing was sent"
            raise UsageError(problem, "split the line, or use /file PATH")
        return without_reports(line.decode(errors="replace")).rstrip("\r\n")


# Where the questions of a chat come from. `read` raises EOFError at the end, KeyboardInterrupt on Ctrl-C.
InputSource = ScriptInput | PlainPrompt
