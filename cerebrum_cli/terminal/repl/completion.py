"""Tab completion in a chat: slash commands and their arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from cerebrum_cli.core.errors import CerebrumError
from cerebrum_cli.terminal.repl.slash_table import SLASH_COMMANDS, ArgumentKind, setting_key

Candidates = Mapping[ArgumentKind, Callable[[], Iterable[str]]]
"""Candidates for each kind of argument, computed when Tab is pressed."""


class SlashCompleter(Completer):
    """Complete commands, file paths, and other arguments from lists of candidates."""

    def __init__(self, candidates: Candidates, setting_values: Mapping[str, Iterable[str]]) -> None:
        self._candidates = candidates
        self._setting_values = setting_values
        self._paths = PathCompleter(expanduser=True)

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
        candidates = self._list_candidates(kind)
        key, space, value = argument.partition(" ")
        if kind == "setting" and space:
            candidates, argument = self._setting_values.get(setting_key(key), ()), value.lstrip()
        if kind:
            for candidate in candidates:
                if candidate.startswith(argument):
                    yield Completion(candidate, start_position=-len(argument))

    def _list_candidates(self, kind: ArgumentKind) -> Iterable[str]:
        try:
            return list(self._candidates.get(kind, tuple)())
        except CerebrumError:  # an unreadable database is reported when a command needs it
            return ()
