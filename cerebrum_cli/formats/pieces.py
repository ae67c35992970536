"""Pieces of a rendered template: its own text, and the texts of messages, by their places in another render. Pure."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Sequence
from operator import methodcaller
from typing import NamedTuple

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
