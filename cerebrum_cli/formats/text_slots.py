"""Slots in the messages and functions that a template gets, so that it can be rendered with other texts. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.token_ids import Tokenize
from cerebrum_cli.core.tools import ToolSpecs


@frozen
class TextSlot:
    """The place of a text, by its number."""

    number: int


class TextSlots:
    """Puts slots in the place of the texts in functions and calls, behind the `count` texts of the turns.

    Names have one only if they spell special tokens, which only the prompt may have: templates look into names.
    """

    def __init__(self, count: int, special_tokens: Tokenize) -> None:
        self.texts = [""] * count
        self._is_special = cache(lambda name: bool(special_tokens(name)))

    def in_tools(self, tools: ToolSpecs) -> Any:
        """Functions in OpenAI's form; all texts in them count as names."""
        return self._placed([tool.openai for tool in tools], self._name)

    def in_message(self, message: JsonDict, has_calls: bool) -> JsonDict:
        """One of OpenAI's messages, without its calls if the template is not to write them."""
        if "name" in message:
            message["name"] = self._name(message["name"])
        if not has_calls:
            message.pop("tool_calls", None)
        for call in message.get("tool_calls", ()):
            call["function"] = self._placed(call["function"], self._text)
        return message

    def _placed(self, value: Any, place: Callable[[str], Any]) -> Any:
        """A JSON value whose texts are placed in this way, and whose keys are names."""
        match value:
            case str():
                return place(value)
            case Mapping():
                return {self._name(key): self._placed(item, place) for key, item in value.items()}
            case list() | tuple():
                return [self._placed(item, place) for item in value]
        return value

    def _text(self, text: str) -> TextSlot:
        self.texts.append(text)
        return TextSlot(len(self.texts) - 1)

    def _name(self, name: str) -> TextSlot | str:
        return self._text(name) if self._is_special(name) else name


def filled(value: Any, texts: Sequence[str]) -> Any:
    """A JSON value with texts in its slots, which may be keys, too."""
    match value:
        case TextSlot(number):
            return texts[number]
        case dict():
            return {filled(key, texts): filled(item, texts) for key, item in value.items()}
        case list():
            return [filled(item, texts) for item in value]
    return value
