"""Standard output for the answer, standard error for the talk, standard input for what is piped in."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from io import StringIO, TextIOWrapper
from typing import Any, BinaryIO, TextIO

from cerebrum_cli.core.errors import CerebrumError, EngineError, OutputError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.settings import environment
from cerebrum_cli.terminal.control import strip_controls

PATIENCE_S = 2.0  # a pipe that has not ended by then may never do
DUMB = ("dumb", "unknown")  # terminals that understand no control sequence


@dataclass(frozen=True, slots=True)
class PipedInput:
    """What another program writes; a person who waits for its end is told so."""

    source: BinaryIO
    err: TextIO

    def read(self) -> bytes:
        """Return all of it."""
        timer = threading.Timer(PATIENCE_S, self._tell)
        timer.daemon = True
        if self.err.isatty():
            timer.start()
        try:
            return self.source.read()
        finally:
            timer.cancel()

    def _tell(self) -> None:
        self.err.write("note: waiting for the end of standard input; with nothing to read, redirect it: < /dev/null\n")
        self.err.flush()


@dataclass(frozen=True, slots=True)
class Streams:
    """The three streams of a command, and whether a person sits behind them."""

    out: TextIO
    err: TextIO
    piped: PipedInput | BinaryIO | None
    out_is_terminal: bool
    err_is_terminal: bool
    in_is_terminal: bool

    @property
    def can_redraw(self) -> bool:
        """Whether standard error may be drawn over: a terminal that understands it, and no screen reader."""
        return self.err_is_terminal and not plain_terminal()

    def answer(self, text: str) -> None:
        """Write a piece of the answer, at once; on a terminal without its control sequences.

        Raises BrokenPipeError where nobody reads it any more, OutputError where it cannot be kept.
        """
        with self.answering():
            self.out.write(strip_controls(text) if self.out_is_terminal else text)
            self.out.flush()

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """Write the answer, in whatever way. Raises as `answer` does; what is written later is lost in silence."""
        try:
            yield
        except OSError as error:
            discard(self.out)
            if isinstance(error, BrokenPipeError):
                raise
            raise OutputError(f"standard output: {error.strerror}", "free some space, or write elsewhere") from error

    def draw(self, text: str) -> None:
        """Write to standard error as it stands, with control sequences of our own where it is a terminal."""
        try:
            self.err.write(text)
            self.err.flush()
        except OSError:
            discard(self.err)

    def command(self, sequence: str) -> None:
        """Steer the terminal that standard output is with a control sequence of our own."""
        self.out.write(sequence)
        self.out.flush()

    def answer_object(self, value: dict[str, Any] | list[dict[str, Any]]) -> None:
        """Write one JSON value as a line."""
        self.answer(json.dumps(value, ensure_ascii=False) + "\n")

    @property
    def can_ask(self) -> bool:
        """Whether somebody sits at a terminal to answer a question."""
        return self.in_is_terminal and self.err_is_terminal

    def confirm(self, question: str, usual: bool = True) -> bool:
        """Ask a yes-or-no question, Enter meaning the usual answer; no where nobody is there to answer it."""
        if not self.can_ask:
            return False
        self.err.write(f"{strip_controls(question)} {'[Y/n]' if usual else '[y/N]'} ")
        self.err.flush()
        reply = sys.stdin.readline()
        if not reply.endswith("\n"):
            self.info("")
        return reply.strip().lower() in ("y", "yes") or (usual and reply == "\n")

    def info(self, text: str) -> None:
        """Write a line to standard error; where that cannot be written to, the answer still can."""
        self.draw((strip_controls(text) if self.err_is_terminal else text) + "\n")

    def _tell(self, head: str, text: str) -> None:
        """Write a line, or on a terminal as many as it takes without breaking a word."""
        width = columns(self.err) - 1
        if self.err_is_terminal and width > 2 * len(head):
            from textwrap import wrap

            text = f"\n{' ' * len(head)}".join(
                wrap(text, width - len(head), break_long_words=False, break_on_hyphens=False)
            )
        self.info(head + text)

    def notice(self, event: NoticeEvent) -> None:
        """Tell what is and what to do, where nothing failed."""
        self._tell("note: ", event.message)
        self._tell("      ", event.hint)

    def error(self, error: CerebrumError) -> None:
        """Tell what is and what to do, and what llama.cpp said of it."""
        self._tell("error: ", error.message)
        if error.hint:
            self._tell("  try: ", error.hint)
        for line in error.log if isinstance(error, EngineError) else ():
            self.info(f"  log: {line}")


def standard_streams() -> Streams:
    """Return this process's streams, writing UTF-8 whatever the locale is; one that was closed is written nowhere."""
    out, err = sys.stdout or StringIO(), sys.stderr or StringIO()
    for stream in (out, err):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
    return Streams(
        out=out,
        err=err,
        piped=PipedInput(sys.stdin.buffer, err) if sys.stdin is not None and holds_input(sys.stdin.fileno()) else None,
        out_is_terminal=out.isatty(),
        err_is_terminal=err.isatty(),
        in_is_terminal=sys.stdin is not None and sys.stdin.isatty(),
    )


def discard(stream: TextIO) -> None:
    """Send what is still buffered for a broken stream nowhere: the interpreter flushes once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def discard_lost(streams: Streams) -> None:
    """Send nowhere what is written to a terminal that is gone: to fail with it would hinder what is to be kept."""
    try:
        import termios
    except ImportError:
        return
    for stream, is_terminal in ((streams.out, streams.out_is_terminal), (streams.err, streams.err_is_terminal)):
        try:
            if is_terminal:
                termios.tcgetattr(stream.fileno())
        except (termios.error, OSError):
            discard(stream)


def columns(stream: TextIO) -> int:
    """Return the width of the terminal that a stream is, which need not be standard output's."""
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:
        return 80


def holds_input(descriptor: int) -> bool:
    """Return whether something may be piped in: a pipe, a file or a socket, and not a terminal or /dev/null."""
    try:
        mode = os.fstat(descriptor).st_mode
    except OSError:
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode)


def plain_terminal() -> bool:
    """Return whether the user wants no redrawing: TERM=dumb or unknown, or ACCESSIBLE is set for a screen reader."""
    return dumb_terminal() or environment("ACCESSIBLE") is not None


def dumb_terminal() -> bool:
    """Return whether the terminal understands no control sequence: TERM=dumb or unknown."""
    return environment("TERM") in DUMB
