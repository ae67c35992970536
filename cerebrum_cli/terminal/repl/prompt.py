"""The interactive prompt of a chat: history, Tab completion, an editor and a toolbar."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from prompt_toolkit import PromptSession, search
from prompt_toolkit.buffer import Buffer
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import emacs_mode, has_focus, has_selection, is_searching, vi_navigation_mode
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.input.typeahead import store_typeahead
from prompt_toolkit.input.vt100 import Vt100Input
from prompt_toolkit.key_binding import ConditionalKeyBindings, KeyBindings, KeyPressEvent, merge_key_bindings
from prompt_toolkit.key_binding.key_bindings import KeyBindingsBase
from prompt_toolkit.keys import Keys
from prompt_toolkit.layout.processors import TabsProcessor
from prompt_toolkit.lexers import SimpleLexer
from prompt_toolkit.styles import Style
from prompt_toolkit.utils import get_cwidth

from cerebrum_cli.core.errors import CerebrumError, Interrupted
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.text import well_formed
from cerebrum_cli.terminal.repl.key_codes import KeyReader
from cerebrum_cli.terminal.repl.questions import (
    CONTINUATION,
    PROMPT,
    InputLine,
    PlainPrompt,
    echo,
    parse_input,
    read_block,
    shorten_question,
)
from cerebrum_cli.terminal.repl.repl import Repl
from cerebrum_cli.terminal.repl.slash_commands import SLASH_COMMANDS
from cerebrum_cli.terminal.repl.slash_lines import find_slash
from cerebrum_cli.terminal.repl.typed_paths import NAMED_FILE
from cerebrum_cli.terminal.streams import discard_closed
from cerebrum_cli.terminal.styles import PROMPT_STYLES

REFRESH_S = 0.5  # for the toolbar, which shows when the model is loaded


class OpenInEditor(NamedTuple):
    text: str


class InteractivePrompt(PlainPrompt):
    redraws = True

    def __init__(self, repl: Repl, history: Path | None) -> None:
        super().__init__(repl.streams, repl.display.keyboard, repl.signals)
        past: History = InMemoryHistory()
        try:
            past = PromptHistory(history) if history else past
        except OSError as error:
            problem = f"prompt history is not saved: {history}: {error.strerror}"
            repl.streams.note(NoticeEvent(problem, "remove that file, or make it writable"))
        self._draft = ""  # initial text of the prompt
        self.pasted_line = ""  # the first of several that were pasted at the start
        self.pasted_parts: list[str] = []  # of several lines
        self._pasted: set[str] = set()  # questions, which the history returns
        self._input = Vt100Input(sys.stdin)
        self._input.stdin_reader = self._key_reader = KeyReader(self._input.fileno())
        self._session: PromptSession[str | OpenInEditor] = PromptSession(
            input=self._input,
            history=past,
            lexer=SimpleLexer("class:question"),
            completer=SlashCompleter(repl),
            complete_while_typing=False,
            key_bindings=_key_bindings(self),
            multiline=True,
            vi_mode=repl.chat.settings.vi,
            enable_suspend=True,
            refresh_interval=REFRESH_S,
            bottom_toolbar=repl.toolbar,
            style=Style.from_dict(PROMPT_STYLES),
            prompt_continuation=lambda _, __, wraps: "" if wraps else [("class:question", CONTINUATION)],
            input_processors=[TabsProcessor(char1=" ", char2=" ")],
        )
        self._session.default_buffer.on_text_changed += self._forget_paste

    def read(self) -> InputLine:
        """Read the next question. Raises Interrupted on SIGTERM or SIGHUP.

        If the editor fails, UsageError is raised and the next prompt begins with the text.
        """
        text = self._prompt()
        if isinstance(text, OpenInEditor):
            self._draft = text.text
            text = self.edit(text.text)
            self._draft = ""
            self._session.history.append_string(text)
            echo(self.streams, text)
        elif self._session.app.erase_when_done:
            echo(self.streams, shorten_question(text))
        text = well_formed(text)
        line = self.parse(text) or read_block(text, iter(()))
        if self.pasted_line and line.is_literal:
            self._pasted.add(text)
        line = line._replace(pasted=tuple(self.pasted_parts))
        self.pasted_line, self.pasted_parts = "", []
        return line

    def parse(self, text: str) -> InputLine | None:
        if (self.pasted_line and text.startswith(self.pasted_line)) or text in self._pasted:
            return InputLine(text, is_literal=True)
        return parse_input(text)

    def _forget_paste(self, buffer: Buffer) -> None:
        if not buffer.text:
            self.pasted_line, self.pasted_parts = "", []

    def _prompt(self) -> str | OpenInEditor:
        draft, self._draft = self._draft, ""
        self._key_reader.pending = self.keyboard.take_typed_before()
        store_typeahead(self._input, self._input.read_keys())
        self._session.app.erase_when_done = False
        try:
            with self.signals.acting(self._exit_on_signal), self.keyboard.prompting():
                return self._session.prompt([("class:question", PROMPT)], default=draft, pre_run=self._on_start)
        except KeyboardInterrupt:
            if self._session.default_buffer.text:
                self._session.default_buffer.append_to_history()
                return ""
            raise
        except OSError as error:  # the terminal was closed
            discard_closed(self.streams)
            raise EOFError from error

    def _exit_on_signal(self, signum: int) -> None:
        app = self._session.app

        def end() -> None:
            if app.future and not app.future.done():
                app.exit(exception=Interrupted(signum))

        if signum != signal.SIGINT and app.loop:
            app.loop.call_soon_threadsafe(end)

    def _on_start(self) -> None:
        """Exit if a signal came before the prompt."""
        if self.signals.exit_signal is not None:
            self._exit_on_signal(self.signals.exit_signal)


# Keys that take what a search of the history has found, and where the cursor is then.
Move = Callable[[Document], int]
MOVES: Mapping[str, Move] = {
    "left": Document.get_cursor_left_position,
    "right": Document.get_cursor_right_position,
    "c-b": Document.get_cursor_left_position,
    "c-f": Document.get_cursor_right_position,
    "home": Document.get_start_of_line_position,
    "c-a": Document.get_start_of_line_position,
    "end": Document.get_end_of_line_position,
    "c-e": Document.get_end_of_line_position,
}


def _key_bindings(prompt: InteractivePrompt) -> KeyBindingsBase:
    """Key bindings of the prompt: Enter sends, or adds a line to an open block. A history search has its own keys."""
    keys = KeyBindings()

    @keys.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if prompt.parse(buffer.text) is not None:
            size = event.app.output.get_size()
            height = buffer.document.line_count + get_cwidth(buffer.text) // size.columns
            event.app.erase_when_done = height > size.rows - 2  # it would scroll by once more
            buffer.validate_and_handle()
        else:
            buffer.insert_text("\n")

    @keys.add("escape", "enter")
    @keys.add("c-j")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    @keys.add(Keys.BracketedPaste)
    def _(event: KeyPressEvent) -> None:
        pasted = re.sub("\r\n?", "\n", event.data)
        if not event.current_buffer.cursor_position:
            prompt.pasted_line = pasted[: pasted.rstrip().find("\n") + 1]
        if "\n" in pasted:
            prompt.pasted_parts.append(pasted)
        event.current_buffer.insert_text(pasted)

    @keys.add("c-x", "c-e", filter=emacs_mode & ~has_selection)
    @keys.add("v", filter=vi_navigation_mode)
    def _(event: KeyPressEvent) -> None:
        event.app.erase_when_done = True
        event.app.exit(result=OpenInEditor(event.current_buffer.text))

    searching = KeyBindings()
    for key, move in MOVES.items():

        @searching.add(key)
        def _(event: KeyPressEvent, move: Move = move) -> None:
            search.accept_search()
            event.current_buffer.cursor_position += move(event.current_buffer.document)

    return merge_key_bindings(
        [ConditionalKeyBindings(keys, has_focus(DEFAULT_BUFFER)), ConditionalKeyBindings(searching, is_searching)]
    )


@dataclass(slots=True)
class SlashCompleter(Completer):
    _repl: Repl

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        text = document.text_before_cursor
        if not text.startswith("/"):
            *before, typed = NAMED_FILE.split(text)
            if before:
                yield from path_completions(typed, complete_event)
            return
        name, space, argument = text[1:].partition(" ")
        if not space:
            for slash in SLASH_COMMANDS:
                if slash.name.startswith(name):
                    yield Completion(f"/{slash.name}", start_position=-len(text), display_meta=slash.help)
            return
        command = find_slash(name, SLASH_COMMANDS)
        if command and command.is_path:
            yield from path_completions(argument, complete_event)
        if command and command.values:
            with suppress(CerebrumError):  # an unreadable database is reported when a command needs it
                for value in command.values(self._repl, argument):
                    if value.startswith(argument):
                        yield Completion(value, start_position=-len(argument))


def path_completions(typed: str, complete_event: CompleteEvent) -> Iterator[Completion]:
    """Completions of a path, with a slash behind a directory."""
    for completion in PathCompleter(expanduser=True).get_completions(Document(typed), complete_event):
        slash = "/" if completion.display_text.endswith("/") else ""
        yield Completion(completion.text + slash, display=completion.display)


class PromptHistory(FileHistory):
    """History in a file readable only by its user. Raises OSError if it cannot be written; a full disk is no error."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o600))
        path.chmod(0o600)
        super().__init__(str(path))

    def store_string(self, string: str) -> None:
        with suppress(OSError):
            super().store_string(string)
