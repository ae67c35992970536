"""Standard streams: output for the answer, error for messages, input for piped text."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
import termios
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from io import StringIO, TextIOWrapper
from typing import Any, BinaryIO, TextIO

from cerebrum_cli.core.environment import environment
from cerebrum_cli.core.errors import CerebrumError, EngineError, OutputError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.terminal.escapes import strip_controls

STDIN_NOTICE_S = 2.0  # a pipe still open after this may never close
DUMB_TERMINALS = ("dumb", "unknown")  # values of TERM for terminals without control sequences


@dataclass(slots=True)
class PipedInput:
    """Piped standard input, with a notice if the first read takes long."""

    source: BinaryIO
    err: TextIO
    has_data: bool = False

    def read(self, size: int = -1) -> bytes:
        timer = threading.Timer(STDIN_NOTICE_S, self._notify)
        timer.daemon = True
        if self.err.isatty() and not self.has_data:
            timer.start()
        try:
            data = self.source.read(size)
        finally:
            timer.cancel()
        self.has_data = bool(data)
        return data

    def _notify(self) -> None:
        self.err.write("note: reading standard input; if there is none, redirect it: < /dev/null\n")
        self.err.flush()


@dataclass(frozen=True, slots=True)
class Streams:
    """The three streams of a command, and which of them are terminals."""

    out: TextIO
    err: TextIO
    piped: PipedInput | BinaryIO | None
    out_is_terminal: bool
    err_is_terminal: bool
    in_is_terminal: bool
    is_quiet: bool = False  # without notices and progress

    @property
    def can_redraw(self) -> bool:
        """Whether progress can be redrawn on standard error: a terminal with control sequences and no screen reader."""
        return self.err_is_terminal and not is_plain_terminal() and not self.is_quiet

    @property
    def can_style(self) -> bool:
        """Whether standard output is a terminal that shows colors and Markdown, and has no screen reader."""
        return self.out_is_terminal and not is_plain_terminal()

    @property
    def on_stderr(self) -> Streams:
        return replace(self, out=self.err, out_is_terminal=self.err_is_terminal)

    def answer(self, text: str) -> None:
        """Write a chunk of the answer and flush; control sequences are stripped on a terminal.

        Raises BrokenPipeError if the reader has closed the pipe, OutputError on other failures.
        """
        self.answer_styled(strip_controls(text) if self.out_is_terminal else text)

    def answer_styled(self, text: str) -> None:
        """Write a chunk of the answer with control sequences of our own."""
        with self.writing_answer():
            self.out.write(text)
            self.out.flush()

    @contextlib.contextmanager
    def writing_answer(self) -> Iterator[None]:
        """Raise the errors of `answer` for any way of writing it; later output is discarded silently."""
        try:
            yield
        except OSError as error:
            discard(self.out)
            if isinstance(error, BrokenPipeError):
                raise
            raise OutputError(f"standard output: {error.strerror}", "free disk space, or write elsewhere") from error

    def draw(self, text: str) -> None:
        """Write to standard error unfiltered, with control sequences of our own."""
        try:
            self.err.write(text)
            self.err.flush()
        except OSError:
            discard(self.err)

    def answer_prompt(self, text: str) -> None:
        """Write an exact prompt: byte for byte in a pipe, with a line break at the end on a terminal."""
        self.answer(f"{text}\n" if self.out_is_terminal and not text.endswith("\n") else text)

    def answer_object(self, value: dict[str, Any] | list[dict[str, Any]]) -> None:
        self.answer(json.dumps(value, ensure_ascii=False) + "\n")

    @property
    def can_ask(self) -> bool:
        return self.in_is_terminal and self.err_is_terminal

    def confirm(self, question: str, default: bool = True) -> bool:
        """Ask a yes-or-no question; Enter means the default. Without a terminal the answer is no."""
        if not self.can_ask:
            return False
        reply = self._ask(f"{question} {'[Y/n]' if default else '[y/N]'} ")
        return reply.strip().lower() in ("y", "yes") or (default and reply == "\n")

    def choose(self, question: str, count: int) -> int | None:
        """Ask for a number from 1 to `count`; Enter means 1. None if the user quits, or without input."""
        while self.can_ask:
            reply = self._ask(f"{question} [1 to {count}, q to quit; Enter: 1] ")
            word = reply.strip().lower() or ("1" if reply else "q")
            if word.isdecimal() and 1 <= int(word) <= count:
                return int(word)
            if word == "q":
                break
        return None

    def _ask(self, question: str) -> str:
        self.draw(strip_controls(question))
        reply = sys.stdin.readline()
        if not reply.endswith("\n"):
            self.info("")
        return reply

    def info(self, text: str) -> None:
        """Write a line to standard error. A failure is ignored, so that the answer can still be written."""
        self.draw((strip_controls(text) if self.err_is_terminal else text) + "\n")

    def report(self, message: str | NoticeEvent | None) -> None:
        """Print a line or a notice, if there is one, unless standard error is to be quiet."""
        if self.is_quiet or not message:
            return
        if isinstance(message, str):
            self.info(message)
        else:
            self.notice(message)

    def write_line(self, head: str, text: str) -> None:
        """Write a line to standard error; a terminal's is wrapped at words and indented below `head`."""
        width = columns(self.err) - 1
        if self.err_is_terminal and width > 2 * len(head):
            from textwrap import wrap

            text = f"\n{' ' * len(head)}".join(
                wrap(text, width - len(head), break_long_words=False, break_on_hyphens=False)
            )
        self.info(head + text)

    def notice(self, event: NoticeEvent) -> None:
        self.write_line("note: ", event.message)
        if event.hint:
            self.write_line("      ", event.hint)

    def error(self, error: CerebrumError) -> None:
        self.write_line("error: ", error.message)
        if error.hint:
            self.write_line(" hint: ", error.hint)
        for line in error.log if isinstance(error, EngineError) else ():
            self.info(f"  log: {line}")


def standard_streams() -> Streams:
    """Streams of this process: UTF-8 in any locale; output to a closed stream is discarded."""
    out, err = sys.stdout or StringIO(), sys.stderr or StringIO()
    for stream in (out, err):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
    return Streams(
        out=out,
        err=err,
        piped=PipedInput(sys.stdin.buffer, err)
        if sys.stdin is not None and has_piped_input(sys.stdin.fileno())
        else None,
        out_is_terminal=out.isatty(),
        err_is_terminal=err.isatty(),
        in_is_terminal=sys.stdin is not None and sys.stdin.isatty(),
    )


def discard(stream: TextIO) -> None:
    """Redirect a broken stream to the null device, since the interpreter flushes its buffer at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def discard_closed(streams: Streams) -> None:
    """Redirect output to a closed terminal to the null device: errors would prevent saving."""
    for stream, is_terminal in ((streams.out, streams.out_is_terminal), (streams.err, streams.err_is_terminal)):
        try:
            if is_terminal:
                termios.tcgetattr(stream.fileno())
        except (termios.error, OSError):
            discard(stream)


def columns(stream: TextIO) -> int:
    """Width of the terminal of a stream, which may differ from standard output's."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:
        return 80


def has_piped_input(descriptor: int) -> bool:
    """Whether input may be piped in: from a pipe, a file or a socket, not a terminal or /dev/null."""
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def is_plain_terminal() -> bool:
    """Whether redrawing is unwanted: TERM is dumb or unknown, or ACCESSIBLE is set for a screen reader."""
    return is_dumb_terminal() or environment("ACCESSIBLE") is not None


def is_dumb_terminal() -> bool:
    """Whether the terminal takes no control sequences: TERM is dumb or unknown."""
    return environment("TERM") in DUMB_TERMINALS
