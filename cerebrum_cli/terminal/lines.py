"""Where a chat's questions come from: a person at a prompt, or lines that are piped in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cerebrum_cli.terminal.slash import SLASHES

if TYPE_CHECKING:
    from prompt_toolkit import PromptSession
    from prompt_toolkit.completion import Completion
    from prompt_toolkit.document import Document

FENCE = '"""'
PROMPT, MORE = "> ", "... "


class Lines(Protocol):
    """Something that is read question by question."""

    def read(self) -> str:
        """Return the next question. EOFError at the end, KeyboardInterrupt where Ctrl-C was pressed."""


class PipedLines:
    """Questions from a pipe: a line each, or a text of several lines between fences."""

    def __init__(self, text: str, echo: Callable[[str], None]) -> None:
        self._questions = questions(text)
        self._echo = echo

    def read(self) -> str:
        """Return the next question, and write it down, so that the output is a transcript."""
        for question in self._questions:
            self._echo(f"{PROMPT}{question}\n".replace("\n", f"\n{MORE}", question.count("\n")))
            return question
        raise EOFError


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


class Prompt:
    """A person at a terminal, with a history on disk, completion, an editor and a toolbar."""

    def __init__(self, history: Path, toolbar: Callable[[], str], vi: bool) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import FileHistory

        history.parent.mkdir(parents=True, exist_ok=True)
        self._session: PromptSession[str] = PromptSession(
            history=FileHistory(str(history)),
            completer=_completer(),
            complete_while_typing=False,
            key_bindings=_keys(),
            multiline=True,
            enable_open_in_editor=True,
            vi_mode=vi,
            bottom_toolbar=lambda: toolbar() or None,
            prompt_continuation=MORE,
        )

    def read(self) -> str:
        """Return the next question."""
        text = self._session.prompt(PROMPT)
        return unfenced([text]) if text.strip().startswith(FENCE) else text


def _keys() -> Any:
    """Return the keys of the prompt: Enter asks, unless a block is open or what is written is to be completed."""
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if is_closed(buffer.text):
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n")

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _completer() -> Any:
    """Return what Tab offers: commands, and the names of files after /file."""
    from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
    from prompt_toolkit.document import Document

    paths = PathCompleter(expanduser=True)

    class Commands(Completer):
        def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
            text = document.text_before_cursor
            if text.startswith("/file "):
                yield from paths.get_completions(Document(text[len("/file ") :]), complete_event)
            elif text.startswith("/") and " " not in text:
                for slash in SLASHES:
                    if slash.name.startswith(text[1:]):
                        yield Completion(f"/{slash.name}", start_position=-len(text), display_meta=slash.does)

    return Commands()
