"""What Tab offers in a chat: commands, and what stands after them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from prompt_toolkit.completion import CompleteEvent, Completer, Completion, PathCompleter
from prompt_toolkit.document import Document

from cerebrum_cli.core.errors import CerebrumError
from cerebrum_cli.terminal.repl.slash_table import SLASHES, Completes, setting_key

Names = Mapping[Completes, Callable[[], Iterable[str]]]
"""What the argument of a command is one of, asked for when Tab is pressed."""


class SlashCompleter(Completer):
    """Commands by the table, files by their paths, other arguments by the names there are."""

    def __init__(self, names: Names, values: Mapping[str, Iterable[str]]) -> None:
        self._names = names
        self._values = values  # of settings
        self._paths = PathCompleter(expanduser=True)

    def get_completions(self, document: Document, complete_event: CompleteEvent) -> Iterator[Completion]:
        """Yield what can stand where the cursor is."""
        text = document.text_before_cursor
        if not text.startswith("/"):
            return
        name, space, argument = text[1:].partition(" ")
        if not space:
            for slash in SLASHES:
                if slash.name.startswith(name):
                    yield Completion(f"/{slash.name}", start_position=-len(text), display_meta=slash.does)
            return
        completes: Completes = next((slash.completes for slash in SLASHES if slash.name == name), "")
        if completes == "path":
            yield from self._paths.get_completions(Document(argument), complete_event)
            return
        names = self._named(completes)
        key, space, value = argument.partition(" ")
        if completes == "setting" and space:
            names, argument = self._values.get(setting_key(key), ()), value.lstrip()
        if completes:
            for each in names:
                if each.startswith(argument):
                    yield Completion(each, start_position=-len(argument))

    def _named(self, completes: Completes) -> Iterable[str]:
        try:
            return list(self._names.get(completes, tuple)())
        except CerebrumError:  # a database that cannot be read is told of when it is needed
            return ()
