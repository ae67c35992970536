"""Sources of a chat's questions: an interactive prompt, a plain prompt, or piped input."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from cerebrum_cli.core.errors import Interrupted, UsageError
from cerebrum_cli.core.text import well_formed
from cerebrum_cli.terminal.keyboard import Keyboard
from cerebrum_cli.terminal.repl.editor import edit_text
from cerebrum_cli.terminal.repl.signals import Signals
from cerebrum_cli.terminal.streams import Streams, discard_closed

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.key_binding import KeyBindings

FENCE = '"""'
PROMPT, CONTINUATION = "> ", "... "
MAX_LINE, EDGE_LINES = 200, 4  # characters of a line, lines at each end of a question shown again
READY_POLL_S = 0.2  # interval of checks whether the model is loaded, for the toolbar


@dataclass(frozen=True, slots=True)
class TerminalIO:
    """A terminal's streams, keyboard and signals; `quiet` suppresses notices."""

    streams: Streams
    keyboard: Keyboard
    signals: Signals
    quiet: bool = False

    def edit(self, text: str) -> str:
        return edit_text(text, self.keyboard, self.signals)

    def confirm(self, question: str) -> bool:
        """Ask a yes-or-no question; Ctrl-C raises Interrupted."""
        with self.keyboard.released():
            return self.streams.confirm(question)


class InputSource(Protocol):
    def read(self) -> str:
        """Read the next question. Raises EOFError at the end, KeyboardInterrupt on Ctrl-C."""

    def edit(self, text: str, /) -> str:
        """Let the user edit a text. Raises UsageError if that is impossible."""

    def confirm(self, question: str, /) -> bool:
        """Ask a yes-or-no question; without a terminal the answer is no."""

    def while_busy(self) -> AbstractContextManager[None]:
        """Set the terminal's modes for a chat, whenever no question is being read."""


class ScriptInput:
    """Questions from a pipe: one per line, or a block of lines between fences."""

    def __init__(self, text: str, echo: Callable[[str], None]) -> None:
        self._questions = split_questions(text)
        self._echo = echo

    def read(self) -> str:
        """Read the next question, and echo it so that the output is a transcript."""
        for question in self._questions:
            self._echo(prompt_text(question) + "\n")
            return question
        raise EOFError

    def edit(self, _: str) -> str:
        """Raise UsageError: a pipe has no editor."""
        raise UsageError("cannot edit while questions are piped in", "ask again instead")

    def confirm(self, _: str) -> bool:
        """Answer no: a script means what it says."""
        return False

    def while_busy(self) -> AbstractContextManager[None]:
        """Change nothing: there may be no terminal."""
        return nullcontext()


def prompt_text(question: str) -> str:
    """Question as it looks at the prompt."""
    return PROMPT + question.replace("\n", f"\n{CONTINUATION}")


def shorten_question(question: str) -> str:
    """Shorten a long question to its first and last lines; the last ones usually ask."""
    lines = [f"{line[:MAX_LINE]} ..." if len(line) > MAX_LINE else line for line in question.splitlines()]
    return "\n".join(lines if len(lines) <= 2 * EDGE_LINES + 1 else [*lines[:EDGE_LINES], "...", *lines[-EDGE_LINES:]])


def split_questions(text: str) -> Iterator[str]:
    """Yield the questions in a text, skipping empty lines."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith(FENCE):
            yield strip_fences([line, *lines_to_fence(line, lines)])
        elif line.strip():
            yield line


def lines_to_fence(first: str, lines: Iterator[str]) -> Iterator[str]:
    """Yield the lines after the first up to one that ends in a fence; none if the first is complete."""
    if is_complete(first):
        return
    for line in lines:
        yield line
        if line.endswith(FENCE):
            return


def is_complete(text: str) -> bool:
    """Whether a text is not an open block; a first line with two fences opens none."""
    stripped = text.strip()
    return not _opens_block(stripped) or stripped[len(FENCE) :].endswith(FENCE)


def strip_fences(lines: list[str]) -> str:
    """Text between the fences, or the text itself if it is not a block."""
    text = "\n".join(lines)
    stripped = text.strip()
    inner = stripped.removeprefix(FENCE).removesuffix(FENCE)
    on_one_line = len(stripped) >= 2 * len(FENCE) and "\n" not in stripped and stripped.endswith(FENCE)
    if _opens_block(stripped) or (stripped.startswith(FENCE) and on_one_line and FENCE not in inner):
        return inner.strip("\n")
    return text


def _opens_block(stripped: str) -> bool:
    first = stripped.partition("\n")[0]
    return first.startswith(FENCE) and FENCE not in first[len(FENCE) :]


class PlainPrompt:
    """A prompt for dumb terminals and screen readers, which reads plain lines."""

    def __init__(self, terminal: TerminalIO) -> None:
        self._terminal = terminal
        self.edit, self.confirm = terminal.edit, terminal.confirm

    def read(self) -> str:
        """Read the next question. Raises Interrupted on SIGTERM or SIGHUP."""
        with self._terminal.signals.reading_input():
            first = self._read_line(PROMPT)
            return strip_fences([first, *lines_to_fence(first, iter(lambda: self._read_line(CONTINUATION), None))])

    def _read_line(self, prompt: str) -> str:
        if sys.stdin is None:  # closed by the parent process
            raise EOFError
        self._terminal.streams.answer(prompt)
        line = sys.stdin.buffer.readline()
        if not line:
            raise EOFError
        return line.decode("utf-8", "replace").rstrip("\r\n")

    def while_busy(self) -> AbstractContextManager[None]:
        """Change nothing: the terminal echoes text typed ahead and buffers it by line."""
        return nullcontext()


class Prompt:
    """An interactive prompt with history, completion, an editor and a toolbar."""

    def __init__(
        self,
        terminal: TerminalIO,
        history: Path,
        toolbar: Callable[[int], str],
        is_settled: Callable[[], bool],
        completer: Completer,
        vi: bool,
    ) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.layout.processors import TabsProcessor

        from cerebrum_cli.terminal.repl.prompt_history import PromptHistory

        self._is_settled = is_settled
        self._terminal = terminal
        self.edit, self.confirm = terminal.edit, terminal.confirm
        self._history = PromptHistory(history)
        self._failure_reported = terminal.quiet
        self._draft = ""  # initial text of the prompt
        self._session: PromptSession[str | OpenInEditor] = PromptSession(
            history=self._history,
            completer=completer,
            complete_while_typing=False,
            key_bindings=_key_bindings(),
            multiline=True,
            vi_mode=vi,
            bottom_toolbar=lambda: toolbar(self._session.app.output.get_size().columns) or None,
            prompt_continuation=CONTINUATION,
            input_processors=[TabsProcessor(char1=" ", char2=" ")],
        )

    def read(self) -> str:
        """Read the next question. Raises Interrupted on SIGTERM or SIGHUP.

        If the editor fails, UsageError is raised and the next prompt begins with the text.
        """
        text = self._prompt()
        while isinstance(text, OpenInEditor):
            self._draft = text.text
            self._draft = self.edit(text.text)
            text = self._prompt(accept_draft=True)
        if self._history.failure and not self._failure_reported:
            self._failure_reported = True
            self._terminal.streams.notice(self._history.failure)
        return strip_fences([well_formed(text)])

    def _prompt(self, accept_draft: bool = False) -> str | OpenInEditor:
        draft, self._draft = self._draft, ""
        app = self._session.app
        app.erase_when_done = False
        try:
            with self._terminal.signals.acting(self._exit_on_signal), self._terminal.keyboard.prompting():
                return self._session.prompt(PROMPT, default=draft, accept_default=accept_draft, pre_run=self._on_start)
        except KeyboardInterrupt:
            if self._session.default_buffer.text:
                return ""  # Ctrl-C discards the line
            raise
        except OSError as error:  # the terminal was closed
            discard_closed(self._terminal.streams)
            raise EOFError from error

    def _exit_on_signal(self, signum: int) -> None:
        """End the prompt from a signal handler, through its event loop."""
        app = self._session.app

        def end() -> None:
            if app.future and not app.future.done():
                app.exit(exception=Interrupted(signum))

        if signum != signal.SIGINT and app.loop:
            app.loop.call_soon_threadsafe(end)

    def _on_start(self) -> None:
        """Exit if a signal came before the prompt; redraw the toolbar once the model is loaded, or has failed to."""
        from asyncio import sleep

        if self._terminal.signals.exit_signal is not None:
            self._exit_on_signal(self._terminal.signals.exit_signal)

        async def watch() -> None:
            while not self._is_settled():
                await sleep(READY_POLL_S)
            self._session.app.invalidate()

        if not self._is_settled():
            self._session.app.create_background_task(watch())

    def while_busy(self) -> AbstractContextManager[None]:
        """Turn off echo: text typed ahead waits for the prompt."""
        return self._terminal.keyboard.typing_ahead()


class OpenInEditor(NamedTuple):
    """Text of a prompt to be edited in the editor."""

    text: str


def _key_bindings() -> KeyBindings:
    """Key bindings of the prompt: Enter sends, or adds a line to an open block. A history search has its own keys."""
    from prompt_toolkit.enums import DEFAULT_BUFFER
    from prompt_toolkit.filters import emacs_mode, has_focus, has_selection, vi_navigation_mode
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()
    writing = has_focus(DEFAULT_BUFFER)

    @keys.add("enter", filter=writing)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_complete(buffer.text):
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n")

    @keys.add("escape", "enter", filter=writing)
    @keys.add("c-j", filter=writing)
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add("c-x", "c-e", filter=writing & emacs_mode & ~has_selection)
    @keys.add("v", filter=writing & vi_navigation_mode)
    def _(event: KeyPressEvent) -> None:
        event.app.erase_when_done = True
        event.app.exit(result=OpenInEditor(event.current_buffer.text))

    return keys
