"""Pieces of a rendered template: its own text, and the texts of messages, by their places in another render. Pure."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from html import unescape
from operator import methodcaller
from typing import NamedTuple

from cerebrum_cli.core.text import Pattern


def json_text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


TRIMS = [methodcaller(strip, what) for what in ("", None, "\n") for strip in ("strip", "rstrip", "lstrip")] + [
    json_text
]
# What templates change in texts, besides entities of HTML: white space, escaped characters, and switches.
CHANGED = re.compile(r"\\[a-z]|[\s'\"\\]")
SWITCH_REMOVED = re.compile(rf"(?<!\w)/(?:think|no_think|system_override)(?!\w)|{CHANGED.pattern}")
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


# Placeholders are digits, which no template changes, between private-use characters. A number that is random in each
# process keeps a message from containing one: it would stand for a reply, and become that reply's tokens.
_PLACEHOLDER = f"\ue000{secrets.randbelow(10**12):012}"
_PLACEHOLDERS = re.compile(f"{_PLACEHOLDER}([0-9]+)\ue001")


def placeholder(index: int) -> str:
    return f"{_PLACEHOLDER}{index}\ue001"


def split_at_placeholders(rendered: str) -> Pieces:
    """The pieces of a render, without the texts of the placeholders."""
    first, *others = _PLACEHOLDERS.split(rendered)
    pieces = [Piece(BEGINNING, "", first)]
    for index, literal in zip(others[::2], others[1::2], strict=True):
        pieces.append(Piece(int(index), "", literal))
    return pieces


def align(placed: Pieces, prompt: str, texts: Sequence[str]) -> Pieces | None:
    """Split a prompt into text of the template and of the messages; None if the two renders disagree.

    `placed` is the other render, split at the placeholders of `texts`. Templates trim texts in different ways, so all
    of them are tried.
    """
    pieces = []
    at = 0
    for index, _, literal in placed:
        text = "" if index == BEGINNING else texts[index]
        trimmed = (trim(text) for trim in TRIMS)
        found = next((text for text in trimmed if prompt.startswith(text + literal, at)), None)
        if found is None:
            return None
        pieces.append(Piece(index, found, literal))
        at += len(found) + len(literal)
    return pieces if at == len(prompt) else None


def unchanged(text: str, changed: Pattern) -> str:
    return changed.sub("", unescape(unescape(text)).casefold())
