"""Where a chat's questions come from: a person at a prompt, or lines that are piped in."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Protocol

from cerebrum_cli.ground.errors import Interrupted, UsageError
from cerebrum_cli.terminal.editor import edited
from cerebrum_cli.terminal.interrupts import SIGNALS
from cerebrum_cli.terminal.streams import Streams

if TYPE_CHECKING:
    from prompt_toolkit import Application, PromptSession
    from prompt_toolkit.completion import Completer
    from prompt_toolkit.key_binding import KeyBindings

FENCE = '"""'
PROMPT, MORE = "> ", "... "
LONG_LINE, ENDS = 200, 4  # characters of a line, and lines of an end, in a question that is shown again
READY_S = 0.2  # how often it is looked whether the model is there, for the toolbar


class Lines(Protocol):
    """Something that is read question by question."""

    def read(self) -> str:
        """Return the next question. EOFError at the end, KeyboardInterrupt where Ctrl-C was pressed."""

    def edit(self, text: str, /) -> str:
        """Return a text as somebody has changed it. UsageError where nobody can."""


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
    """Return whether a text is no block, or one that has ended."""
    stripped = text.strip()
    return not stripped.startswith(FENCE) or (len(stripped) >= 2 * len(FENCE) and stripped.endswith(FENCE))


def unfenced(lines: list[str]) -> str:
    """Return what stands between the fences."""
    return "\n".join(lines).strip().removeprefix(FENCE).removesuffix(FENCE).strip("\n")


class PlainPrompt:
    """A person at a terminal that cannot be drawn on, or whose screen is read aloud."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    def read(self) -> str:
        """Return the next question. Interrupted where a signal ends the process meanwhile."""
        with leaving():
            first = self._line(PROMPT)
            return unfenced([first, *until_fence(first, iter(lambda: self._line(MORE), None))])

    def _line(self, prompt: str) -> str:
        self._streams.answer(prompt)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.removesuffix("\n")

    def edit(self, text: str) -> str:
        """Return a text as the user leaves it in the editor."""
        return edited(text)


class Prompt:
    """A person at a terminal, with a history on disk, completion, an editor and a toolbar."""

    def __init__(
        self, history: Path, toolbar: Callable[[], str], is_ready: Callable[[], bool], completer: Completer, vi: bool
    ) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import FileHistory

        history.parent.mkdir(parents=True, exist_ok=True)
        self._is_ready = is_ready
        self._session: PromptSession[str] = PromptSession(
            history=FileHistory(str(history)),
            completer=completer,
            complete_while_typing=False,
            key_bindings=_keys(),
            multiline=True,
            enable_open_in_editor=True,
            vi_mode=vi,
            bottom_toolbar=lambda: toolbar() or None,
            prompt_continuation=MORE,
        )

    def read(self) -> str:
        """Return the next question. Interrupted where a signal ends the process meanwhile."""
        with leaving(self._session.app):
            try:
                text = self._session.prompt(PROMPT, pre_run=self._watch)
            except KeyboardInterrupt:
                if self._session.default_buffer.text:
                    return ""  # it only takes back what was written
                raise
        return unfenced([text]) if text.strip().startswith(FENCE) else text

    def _watch(self) -> None:
        """Draw the toolbar again as soon as the model is there."""
        from asyncio import sleep

        async def watch() -> None:
            while not self._is_ready():
                await sleep(READY_S)
            self._session.app.invalidate()

        if not self._is_ready():
            self._session.app.create_background_task(watch())

    def edit(self, text: str) -> str:
        """Return a text as the user leaves it in the editor."""
        return edited(text)


@contextlib.contextmanager
def leaving(app: Application[str] | None = None) -> Iterator[None]:
    """End a prompt with Interrupted where SIGTERM or SIGHUP comes, so that what is to be kept can be."""

    def leave(signum: int, _: FrameType | None) -> None:
        if app and app.is_running:
            app.exit(exception=Interrupted(signum))
        else:
            raise Interrupted(signum)

    old = {number: signal.signal(number, leave) for number in SIGNALS if number != signal.SIGINT}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _keys() -> KeyBindings:
    """Return the keys of the prompt: Enter asks, unless a block is open; a search has its own."""
    from prompt_toolkit.enums import DEFAULT_BUFFER
    from prompt_toolkit.filters import has_focus
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

    return keys
