"""The texts that a template gets, by number: as they are, or placeholders of them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cerebrum_cli.formats.pieces import is_hidden, placeholder


class TextSlots:
    """Gives a template the contents and the reasoning of turns, and then the texts in functions and calls.

    If they `are_hidden`, it gets placeholders. Names have one only if they are special, that is, spell special tokens,
    which only the prompt may have: templates look into names. `moved` has the texts that belong before a call, by the
    number of the first text in it.
    """

    def __init__(self, texts: Sequence[str], are_hidden: bool, is_special: Callable[[str], bool]) -> None:
        self.texts = [*texts]
        self.moved: dict[int, str] = {}
        self._are_hidden = are_hidden
        self._is_special = is_special

    def at(self, number: int) -> str:
        text = self.texts[number]
        return placeholder(number, text) if self._are_hidden and is_hidden(text) else text

    def text(self, text: str) -> str:
        self.texts.append(text)
        return self.at(len(self.texts) - 1)

    def name(self, name: str) -> str:
        return self.text(name) if self._is_special(name) else name

    def in_json(self, value: Any, give: Callable[[str], str]) -> Any:
        """A JSON value whose texts are given in this way, and whose keys are names."""
        match value:
            case str():
                return give(value)
            case Mapping():
                return {self.name(key): self.in_json(item, give) for key, item in value.items()}
            case list() | tuple():
                return [self.in_json(item, give) for item in value]
        return value
