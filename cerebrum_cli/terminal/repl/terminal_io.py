"""Where a chat's questions come from: a person at a prompt, or lines that are piped in."""

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
from cerebrum_cli.terminal.repl.editor import edited
from cerebrum_cli.terminal.repl.keyboard import Keyboard
from cerebrum_cli.terminal.repl.signals import Signals
from cerebrum_cli.terminal.streams import Streams, discard_lost

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.key_binding import KeyBindings

FENCE = '"""'
PROMPT, MORE = "> ", "... "
LONG_LINE, ENDS = 200, 4  # characters of a line, and lines of an end, in a question that is shown again
READY_S = 0.2  # how often it is looked whether the model is there, for the toolbar


@dataclass(frozen=True, slots=True)
class TerminalIO:
    """What a person sits at; one who wants it `quiet` is told of no trouble that can be lived with."""

    streams: Streams
    keyboard: Keyboard
    signals: Signals
    quiet: bool = False

    def edited(self, text: str) -> str:
        """Return a text as its owner leaves it in the editor."""
        return edited(text, self.keyboard, self.signals)


class Lines(Protocol):
    """Something that is read question by question."""

    def read(self) -> str:
        """Return the next question. EOFError at the end, KeyboardInterrupt where Ctrl-C was pressed."""

    def edit(self, text: str, /) -> str:
        """Return a text as somebody has changed it. UsageError where nobody can."""

    def between(self) -> AbstractContextManager[None]:
        """Have the terminal as it is to be while a chat is led and nobody reads."""


class PipedLines:
    """Questions from a pipe: a line each, or a text of several lines between fences."""

    def __init__(self, text: str, echo: Callable[[str], None]) -> None:
        self._questions = questions(text)
        self._echo = echo

    def read(self) -> str:
        """Return the next question, and write it down, so that the output is a transcript."""
        for question in self._questions:
            self._echo(as_asked(question) + "\n")
            return question
        raise EOFError

    def edit(self, _: str) -> str:
        """Nobody is there to edit."""
        raise UsageError("nothing can be edited where questions are piped in", "ask again instead")

    def between(self) -> AbstractContextManager[None]:
        """There may be no terminal."""
        return nullcontext()


def as_asked(question: str) -> str:
    """Return a question as it stands at a prompt."""
    return PROMPT + question.replace("\n", f"\n{MORE}")


def shortened(question: str) -> str:
    """Return a long question as its beginning and its end, which is where it asks something."""
    lines = [f"{line[:LONG_LINE]} ..." if len(line) > LONG_LINE else line for line in question.splitlines()]
    return "\n".join(lines if len(lines) <= 2 * ENDS + 1 else [*lines[:ENDS], "...", *lines[-ENDS:]])


def questions(text: str) -> Iterator[str]:
    """Yield the questions in a text; empty lines are none."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith(FENCE):
            yield unfenced([line, *until_fence(line, lines)])
        elif line.strip():
            yield line


def until_fence(first: str, lines: Iterator[str]) -> Iterator[str]:
    """Yield the lines after the first one up to the one that ends in a fence; none where the first does itself."""
    if is_closed(first):
        return
    for line in lines:
        yield line
        if line.endswith(FENCE):
            return


def is_closed(text: str) -> bool:
    """Return whether a text is no block, or one that has ended; a first line with two fences begins none."""
    stripped = text.strip()
    return not _begins_block(stripped) or stripped[len(FENCE) :].endswith(FENCE)


def unfenced(lines: list[str]) -> str:
    """Return what stands between the fences, or the text itself where it is no block."""
    text = "\n".join(lines)
    stripped = text.strip()
    inner = stripped.removeprefix(FENCE).removesuffix(FENCE)
    on_one_line = len(stripped) >= 2 * len(FENCE) and "\n" not in stripped and stripped.endswith(FENCE)
    if _begins_block(stripped) or (stripped.startswith(FENCE) and on_one_line and FENCE not in inner):
        return inner.strip("\n")
    return text


def _begins_block(stripped: str) -> bool:
    first = stripped.partition("\n")[0]
    return first.startswith(FENCE) and FENCE not in first[len(FENCE) :]


class PlainPrompt:
    """A person at a terminal that cannot be drawn on, or whose screen is read aloud; it reads lines by itself."""

    def __init__(self, seat: TerminalIO) -> None:
        self._seat = seat

    def read(self) -> str:
        """Return the next question. Interrupted where a signal asks to leave meanwhile."""
        with self._seat.signals.reading():
            first = self._line(PROMPT)
            return unfenced([first, *until_fence(first, iter(lambda: self._line(MORE), None))])

    def _line(self, prompt: str) -> str:
        if sys.stdin is None:  # it was closed
            raise EOFError
        self._seat.streams.answer(prompt)
        line = sys.stdin.buffer.readline()
        if not line:
            raise EOFError
        return line.decode("utf-8", "replace").rstrip("\r\n")

    def edit(self, text: str) -> str:
        """Return a text as the user leaves it in the editor."""
        return self._seat.edited(text)

    def between(self) -> AbstractContextManager[None]:
        """What is typed ahead is shown, and read as lines."""
        return nullcontext()


class Prompt:
    """A person at a terminal, with a history on disk, completion, an editor and a toolbar."""

    def __init__(
        self,
        seat: TerminalIO,
        history: Path,
        toolbar: Callable[[int], str],
        is_ready: Callable[[], bool],
        completer: Completer,
        vi: bool,
    ) -> None:
        from prompt_toolkit import PromptSession

        from cerebrum_cli.terminal.repl.prompt_history import PromptHistory

        self._is_ready = is_ready
        self._seat = seat
        self._recall = PromptHistory(history)
        self._told = seat.quiet
        self._draft = ""  # what the prompt begins with
        self._session: PromptSession[str | OpenInEditor] = PromptSession(
            history=self._recall,
            completer=completer,
            complete_while_typing=False,
            key_bindings=_keys(),
            multiline=True,
            vi_mode=vi,
            bottom_toolbar=lambda: toolbar(self._session.app.output.get_size().columns) or None,
            prompt_continuation=MORE,
        )

    def read(self) -> str:
        """Return the next question. Interrupted where a signal asks to leave meanwhile.

        Where an editor fails what was written is there the next time, and UsageError says why.
        """
        said = self._prompted()
        while isinstance(said, OpenInEditor):
            self._draft = said.text
            self._draft = self.edit(said.text)
            said = self._prompted(asks=True)
        if self._recall.trouble and not self._told:
            self._told = True
            self._seat.streams.notice(self._recall.trouble)
        return unfenced([well_formed(said)])

    def _prompted(self, asks: bool = False) -> str | OpenInEditor:
        draft, self._draft = self._draft, ""
        app = self._session.app
        app.erase_when_done = False
        try:
            with self._seat.signals.answered(self._leave):
                return self._session.prompt(PROMPT, default=draft, accept_default=asks, pre_run=self._begin)
        except KeyboardInterrupt:
            if self._session.default_buffer.text:
                return ""  # it only takes back what was written
            raise
        except OSError as error:  # the terminal is gone
            discard_lost(self._seat.streams)
            raise EOFError from error

    def _leave(self, signum: int) -> None:
        """End the prompt, from a signal's handler: between any two steps of its loop."""
        app = self._session.app

        def end() -> None:
            if app.future and not app.future.done():
                app.exit(exception=Interrupted(signum))

        if signum != signal.SIGINT and app.loop:
            app.loop.call_soon_threadsafe(end)

    def _begin(self) -> None:
        """Leave if that was asked for before there was a prompt; draw the toolbar again once the model is there."""
        from asyncio import sleep

        if self._seat.signals.asked is not None:
            self._leave(self._seat.signals.asked)

        async def watch() -> None:
            while not self._is_ready():
                await sleep(READY_S)
            self._session.app.invalidate()

        if not self._is_ready():
            self._session.app.create_background_task(watch())

    def edit(self, text: str) -> str:
        """Return a text as the user leaves it in the editor."""
        return self._seat.edited(text)

    def between(self) -> AbstractContextManager[None]:
        """What is typed ahead waits, unseen, for the prompt."""
        return self._seat.keyboard.unechoed()


class OpenInEditor(NamedTuple):
    """What was written at a prompt, and is to be gone on with in an editor."""

    text: str


def _keys() -> KeyBindings:
    """Return the keys of the prompt: Enter asks, unless a block is open; a search has its own."""
    from prompt_toolkit.enums import DEFAULT_BUFFER
    from prompt_toolkit.filters import emacs_mode, has_focus, has_selection, vi_navigation_mode
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()
    writing = has_focus(DEFAULT_BUFFER)

    @keys.add("enter", filter=writing)
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_closed(buffer.text):
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
