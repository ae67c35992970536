"""Standard streams: output for the answer, error for messages, input for piped text; no text controls a terminal."""

from __future__ import annotations

import errno
import json
import math
import os
import signal
import stat
import sys
import termios
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from io import StringIO, TextIOWrapper
from pathlib import Path
from typing import BinaryIO, TextIO

from cerebrum_cli.core.environment import environment
from cerebrum_cli.core.errors import CerebrumError, EngineError, Interrupted, OutputError, UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.files import require_not_output
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.text import strip_controls, with_short_names
from cerebrum_cli.terminal.styles import SGR_CODES

DEFAULT_PAGER = "less"
DEFAULT_EDITORS = ("nano", "vi")
STDIN_NOTICE_S = 2.0  # a pipe still open after this may never close
PIPE_WIDTH = 10_000  # columns of text in a pipe, where nothing is wrapped
MIN_NOTE_WIDTH = 12  # columns
DUMB_TERMINALS = ("dumb", "unknown")  # values of TERM for terminals without control sequences


@dataclass(slots=True)
class PipedInput:
    """Piped standard input, with a notice if the first read takes long."""

    source: BinaryIO
    streams: Streams
    has_data: bool = False

    def read(self, size: int = -1) -> bytes:
        require_not_output(self.source.fileno(), "standard input")
        notice = NoticeEvent("reading standard input; if there is none, redirect it: < /dev/null")
        timer = threading.Timer(STDIN_NOTICE_S, self.streams.note, [notice])
        timer.daemon = True
        if self.streams.err_is_terminal and not self.has_data:
            timer.start()
        try:
            data = self.source.read(size)
        finally:
            timer.cancel()
        self.has_data = bool(data)
        return data


@frozen
class Streams:
    """The three streams of a command, and which of them are terminals."""

    out: TextIO
    err: TextIO
    piped: PipedInput | BinaryIO | None
    out_is_terminal: bool
    err_is_terminal: bool
    in_is_terminal: bool
    is_quiet: bool = False  # without notices and progress

    def with_terminal_input(self) -> Streams:
        """These after a pipe was read: input comes from the terminal that shows the output, if there is one."""
        if not self.out_is_terminal:
            return self
        try:
            os.dup2(os.open("/dev/tty", os.O_RDWR), sys.stdin.fileno())
        except OSError:
            return self
        return replace(self, piped=None, in_is_terminal=True)

    @property
    def can_redraw(self) -> bool:
        return self.err_is_terminal and not is_plain_terminal() and not self.is_quiet

    @property
    def can_style(self) -> bool:
        """Whether the output may have styles: on a terminal, and with FORCE_COLOR anywhere."""
        is_forced = environment("FORCE_COLOR") is not None
        return (self.out_is_terminal or is_forced) and not is_plain_terminal()

    @property
    def columns(self) -> int:
        """The width of the terminal that shows the output."""
        return columns(self.out)

    @property
    def on_stderr(self) -> Streams:
        return replace(self, out=self.err, out_is_terminal=self.err_is_terminal)

    def answer(self, value: str | JsonDict | list[JsonDict], is_styled: bool = False) -> None:
        """Write a chunk of the answer, or a line of JSON, and flush.

        A terminal gets control sequences only if they are our own. Raises BrokenPipeError if the reader has closed the
        pipe, OutputError on other failures.
        """
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) + "\n"
        with self.writing_answer():
            if self.out_is_terminal and not is_styled:
                text = strip_controls(text)
            self.out.write(text)
            self.out.flush()

    def styled(self, text: str, style: str) -> str:
        """A text of our own in a style, if the output may have it; with NO_COLOR, gray is faint, questions are bold."""
        if environment("NO_COLOR") is not None:
            style = {"bold": "bold", "gray": "faint", "question": "bold"}.get(style, "")
        return f"\x1b[{SGR_CODES[style]}m{text}\x1b[0m" if style and self.can_style else text

    @contextmanager
    def writing_answer(self) -> Iterator[None]:
        """Raise the errors of `answer` for any way of writing it; later output is discarded silently."""
        try:
            yield
        except OSError as error:
            discard(self.out)
            if isinstance(error, BrokenPipeError):
                raise
            if error.errno == errno.EBADF:
                raise OutputError.closed() from error
            raise OutputError(f"standard output: {error.strerror}", "free disk space, or write elsewhere") from error

    def draw(self, text: str, is_styled: bool = False) -> None:
        """Write to standard error, with control sequences only if they are our own; a failure is ignored."""
        try:
            self.err.write(text if is_styled else strip_controls(text))
            self.err.flush()
        except OSError:
            discard(self.err)

    @property
    def can_ask(self) -> bool:
        return self.in_is_terminal and self.err_is_terminal

    def confirm(self, question: str, default: bool = True) -> bool:
        """Ask a yes-or-no question; Enter means the default. Without a terminal the answer is no."""
        if not self.can_ask:
            return False
        choices = "[Y/n]" if default else "[y/N]"
        reply = self._ask(f"{question} {choices} ")
        if reply == "\n":
            return default
        return reply.strip().lower() in ("y", "yes")

    def choose(self, question: str, count: int) -> int | None:
        """Ask for a number from 1 to `count`; Enter means 1. None if the user quits, or without input."""
        while self.can_ask:
            text = self.on_stderr.wrapped(f"{question} [1 to {count}, q to quit; Enter: 1]")
            reply = self._ask(f"{text} ")
            word = reply.strip().lower()
            if reply == "\n":
                return 1
            if word.isdecimal() and 1 <= int(word) <= count:
                return int(word)
            if word == "q" or not reply:
                break
            self._write_line("", f"{word!r} is neither a number from 1 to {count} nor q")
        return None

    def _ask(self, question: str) -> str:
        self.draw(question)
        reply = ""
        try:
            reply = sys.stdin.readline()
        finally:
            if not reply.endswith("\n"):
                self.draw("\n")
        return reply

    def edit(self, path: Path) -> None:
        """Open a file in $VISUAL, $EDITOR or a default editor.

        Raises UsageError if the editor fails, and Interrupted if Ctrl-C ends it.
        """
        import shlex
        import shutil
        import subprocess

        command = environment("VISUAL") or environment("EDITOR") or next(filter(shutil.which, DEFAULT_EDITORS), None)
        if command is None:
            raise UsageError("no editor found", "set $EDITOR")
        try:
            exit_code = subprocess.run([*shlex.split(command), str(path)]).returncode  # a signal kills it
            if exit_code == -signal.SIGINT:
                raise Interrupted(signal.SIGINT, "no changes")
            if exit_code:
                raise subprocess.CalledProcessError(exit_code, command)
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UsageError(f"the editor {command} failed: {reason}", "set $EDITOR to another editor") from error

    def page(self, text: str) -> None:
        """Print a text of our own; in $PAGER if it has more rows than the terminal's window."""
        import shlex
        import subprocess

        if self.in_is_terminal and self.out_is_terminal and not is_plain_terminal():
            with suppress(OSError, ValueError):  # without a pager
                if row_count(text, self.columns) >= os.get_terminal_size(self.out.fileno()).lines:
                    command = shlex.split(environment("PAGER") or "") or [DEFAULT_PAGER]
                    if Path(command[0]).name == DEFAULT_PAGER:
                        command.append("-R")  # shows styles
                    subprocess.run(command, input=text.encode())
                    return
        self.answer(text, is_styled=True)

    def note(self, message: NoticeEvent | str | None) -> None:
        """Print a notice with its hint, or a line, if there is one, unless --quiet is given."""
        if self.is_quiet or not message:
            return
        if isinstance(message, str):
            self._write_line("", message)
            return
        self._write_line("note: ", message.message, "gray")
        if message.hint:
            self._write_line("      ", message.hint, "gray")

    def error(self, error: CerebrumError) -> None:
        self._write_line("error: ", error.message, head_style="red")
        if error.hint:
            self._write_line(" hint: ", error.hint)
        if isinstance(error, EngineError):
            for line in error.log:
                self.draw(f"  log: {line}\n")

    def wrapped(self, text: str, indent: int = 0) -> str:
        """A text wrapped to the width of a terminal, all lines but the first indented; unchanged in a pipe."""
        if not self.out_is_terminal:
            return text
        from textwrap import wrap

        width = max(MIN_NOTE_WIDTH, self.columns - 1 - indent)
        return f"\n{' ' * indent}".join(wrap(text, width, break_long_words=False, break_on_hyphens=False))

    def _write_line(self, head: str, text: str, style: str = "", head_style: str = "") -> None:
        """Write a line to standard error; a terminal's is wrapped at words and indented below `head`."""
        err = self.on_stderr
        text = with_short_names(strip_controls(text.replace("\n", " ")))  # a file name may have line breaks
        line = err.styled(head, head_style) + err.wrapped(text, len(head))
        self.draw(f"{err.styled(line, style)}\n", is_styled=True)


def standard_streams() -> Streams:
    """UTF-8 streams of this process, in any locale. Messages to a closed one are discarded."""
    out = sys.stdout
    err = sys.stderr or StringIO()
    for stream in (out, err):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="replace")
    streams = Streams(out, err, None, out.isatty(), err.isatty(), sys.stdin is not None and sys.stdin.isatty())
    if sys.stdin is not None:  # closed by the parent process
        mode = os.fstat(sys.stdin.fileno()).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISREG(mode) or stat.S_ISSOCK(mode):  # not a terminal or /dev/null
            return replace(streams, piped=PipedInput(sys.stdin.buffer, streams))
    return streams


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
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except OSError:
        return 80


def row_count(text: str, columns: int) -> int:
    """Rows of a terminal that shows a text of our own."""
    from rich.cells import cell_len

    lines = strip_controls(text).removesuffix("\n").expandtabs().split("\n")
    return sum(max(1, math.ceil(cell_len(line) / columns)) for line in lines)


def is_plain_terminal() -> bool:
    return is_dumb_terminal() or environment("ACCESSIBLE") is not None


def is_dumb_terminal() -> bool:
    return environment("TERM") in DUMB_TERMINALS
