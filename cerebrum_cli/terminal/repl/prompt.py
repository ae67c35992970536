"""The interactive prompt of a chat: history, Tab completion, an editor and a toolbar."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document
from prompt_toolkit.enums import DEFAULT_BUFFER
from prompt_toolkit.filters import has_focus
from prompt_toolkit.history import FileHistory, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.layout.processors import TabsProcessor

from cerebrum_cli.core.errors import CerebrumError, Interrupted
from cerebrum_cli.core.text import well_formed
from cerebrum_cli.terminal.repl.questions import (
    CONTINUATION,
    PROMPT,
    PlainPrompt,
    is_complete,
    strip_fences,
)
from cerebrum_cli.terminal.repl.repl import Repl
from cerebrum_cli.terminal.repl.slash_commands import SLASH_COMMANDS
from cerebrum_cli.terminal.repl.slash_lines import ArgumentKind, setting_key
from cerebrum_cli.terminal.streams import discard_closed

REFRESH_S = 0.5  # for the toolbar, which shows when the model is loaded

# Candidates for each kind of argument, computed when Tab is pressed.
Candidates = Mapping[ArgumentKind, Callable[[], Iterable[str]]]


class InteractivePrompt(PlainPrompt):
    redraws = True

    def __init__(self, repl: Repl, history: Path | None, completer: Completer) -> None:
        super().__init__(repl.streams, repl.keyboard, repl.signals)
        self._session: PromptSession[str] = PromptSession(
            history=PromptHistory(history) if history else InMemoryHistory(),
            completer=completer,
            complete_while_typing=False,
            key_bindings=_key_bindings(),
            multiline=True,
            vi_mode=repl.chat.settings.vi,
            enable_suspend=True,
            enable_open_in_editor=True,
            refresh_interval=REFRESH_S,
            bottom_toolbar=repl.toolbar,
            prompt_continuation=CONTINUATION,
            input_processors=[TabsProcessor(char1=" ", char2=" ")],
        )

    def read(self) -> str:
        """Read the next question. Raises Interrupted on SIGTERM or SIGHUP."""
        try:
            with self.signals.acting(self._exit_on_signal), self.keyboard.prompting():
                return strip_fences(well_formed(self._session.prompt(PROMPT, pre_run=self._on_start)))
        except KeyboardInterrupt:
            if self._session.default_buffer.text:
                return ""  # Ctrl-C discards the line
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


def _key_bindings() -> KeyBindings:
    """Key bindings of the prompt: Enter sends, or adds a line to an open block. A history search has its own keys."""
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

    return keys


@dataclass(slots=True)
class SlashCompleter(Completer):
    _candidates: Candidates
    _setting_values: Mapping[str, Iterable[str]]
    _paths: PathCompleter = field(default_factory=lambda: PathCompleter(expanduser=True))

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        text = document.text_before_cursor
        if not text.startswith("/"):
            return
        name, space, argument = text[1:].partition(" ")
        if not space:
            for slash in SLASH_COMMANDS:
                if slash.name.startswith(name):
                    yield Completion(f"/{slash.name}", start_position=-len(text), display_meta=slash.help)
            return
        kind: ArgumentKind = next((slash.argument_kind for slash in SLASH_COMMANDS if slash.name == name), "")
        if kind == "path":
            yield from self._paths.get_completions(Document(argument), complete_event)
            return
        key, space, value = argument.partition(" ")
        candidates: Iterable[str] = ()
        if kind == "setting" and space:
            candidates, argument = self._setting_values.get(setting_key(key), ()), value.lstrip()
        elif kind:
            with contextlib.suppress(CerebrumError):  # an unreadable database is reported when a command needs it
                candidates = self._candidates[kind]()
        for candidate in candidates:
            if candidate.startswith(argument):
                yield Completion(candidate, start_position=-len(argument))


class PromptHistory(FileHistory):
    """History in a file readable only by its user; one that cannot be written is no error."""

    def __init__(self, path: Path) -> None:
        with contextlib.suppress(OSError):
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.touch(mode=0o600)
            path.chmod(0o600)
        super().__init__(str(path))

    def store_string(self, string: str) -> None:
        with contextlib.suppress(OSError):
            super().store_string(string)
