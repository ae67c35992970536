"""The texts that a template gets, as they are or as placeholders, and the pieces of a render: its own text and theirs.

The places of the texts are those in another render, of placeholders. Pure.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from operator import methodcaller
from typing import Any, NamedTuple

SWITCHES = "/(?:think|no_think|system_override)"  # in a text, they turn reasoning on or off
SWITCH = re.compile(rf"(?<![\w<]){SWITCHES}(?!\w)")
CHANGES: tuple[Callable[[str], str], ...] = (  # what templates make of a text
    *(methodcaller(strip, what) for what in ("", None, "\n") for strip in ("strip", "rstrip", "lstrip")),
    lambda text: json.dumps(text, ensure_ascii=False)[1:-1],
    lambda text: json.dumps(text)[1:-1],
    lambda text: repr(text)[1:-1],
    lambda text: f"<![CDATA[{text}]]>",
    lambda text: SWITCH.sub("", text),
    lambda text: SWITCH.sub("", text).strip(),
    lambda text: SWITCH.sub("", text).rstrip(),
)
BEGINNING = -1


class Piece(NamedTuple):
    """Part of a render: a text by its number, and the template's own text behind it. The first is BEGINNING.

    A turn has two texts: its content, with the number of the turn, and its reasoning. Those follow the contents of all;
    then come the texts in function calls.
    """

    number: int
    text: str
    literal: str


Pieces = list[Piece]  # of a render, in order


# Placeholders are digits, which no template changes or escapes. The first 16 are random in each process, which keeps
# a message from containing one: it would stand for a reply, and become that reply's tokens.
_PLACEHOLDER = "9" + "".join(secrets.choice("012345678") for _ in range(15))
_PLACEHOLDERS = re.compile(f"{_PLACEHOLDER}([0-9]{{8}})(?:{SWITCHES})*")


def placeholder(index: int, text: str = "") -> str:
    """What stands for a text, with its switches, which templates look for."""
    return f"{_PLACEHOLDER}{index:08}{''.join(SWITCH.findall(text))}"


def split_at_placeholders(rendered: str) -> Pieces:
    """The pieces of a render, without the texts of the placeholders."""
    first, *others = _PLACEHOLDERS.split(rendered)
    pieces = [Piece(BEGINNING, "", first)]
    for index, literal in zip(others[::2], others[1::2], strict=True):
        pieces.append(Piece(int(index), "", literal))
    return pieces


def align(placed: Pieces, prompt: str, texts: Sequence[str]) -> Pieces | None:
    """Split a prompt into text of the template and of the messages; None if the two renders disagree.

    `placed` is the other render, split at the placeholders of `texts`. Templates change texts in different ways, so
    all of them are tried.
    """
    pieces = []
    at = 0
    for index, _, literal in placed:
        text = "" if index == BEGINNING else texts[index]
        changed = (change(text) for change in CHANGES)
        found = next((text for text in changed if prompt.startswith(text + literal, at)), None)
        if found is None:
            return None
        pieces.append(Piece(index, found, literal))
        at += len(found) + len(literal)
    return pieces if at == len(prompt) else None


def is_hidden(text: str) -> bool:
    """Whether a placeholder stands for a text: templates look into those without anything but switches."""
    return bool(SWITCH.sub("", text).strip())


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
