"""The chat template embedded in a GGUF file, as a prompt format.

To tell the template's own text from that of the messages, the template is rendered twice: with the messages, and with
placeholders in their place. The two must agree. A reply whose tokens are known is a placeholder in both, and the
prompt holds exactly these tokens. Each rendering has placeholders of its own, which no message can contain.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from operator import methodcaller
from typing import Any

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import FormatError
from cerebrum_cli.core.parts import Part, Text, Tokens, join_parts
from cerebrum_cli.formats.format import BRIDGE, ThoughtMarkup
from cerebrum_cli.formats.plain import EMBEDDED
from cerebrum_cli.formats.sandbox import run_template
from cerebrum_cli.formats.thinking import THOUGHTS

MAX_REPEATS = 4  # of a message
MAX_TOKEN_LENGTH = 512  # characters: that of the longest tokens, of white space, is a quarter of it
STRIPS = ("strip", "rstrip", "lstrip")
TRIMS: tuple[Callable[[str], str], ...] = (
    str,
    *(methodcaller(strip) for strip in STRIPS),
    *(methodcaller(strip, "\n") for strip in STRIPS),
)

Turn = dict[str, str]  # a message as templates get it: `role` and `content`
FROM_TEMPLATE = -1
Piece = tuple[int, str]
"""Part of a render: the index of its message, or FROM_TEMPLATE, and its text. The two kinds alternate."""


class Placeholders:
    """Placeholders of one rendering. They are digits, which no template changes, between private-use characters.

    A random number keeps a message from containing one: it would stand for a reply, and become that reply's tokens.
    """

    def __init__(self) -> None:
        nonce = f"{secrets.randbelow(10**12):012}"
        self._start = f"\ue000{nonce}"
        self._pattern = re.compile(f"{self._start}([0-9]{{1,6}})\ue001")

    def text(self, index: int) -> str:
        return f"{self._start}{index}\ue001"

    def put(self, index: int, turn: Turn) -> Turn:
        """Replace the content of a message."""
        return {**turn, "content": self.text(index)}

    def split(self, rendered: str) -> tuple[str, list[tuple[int, str]]]:
        """Split a render at the placeholders: the text before them, and for each its index and the text after it."""
        first, *rest = self._pattern.split(rendered)
        return first, list(zip(map(int, rest[::2]), rest[1::2], strict=True))


@dataclass(frozen=True, slots=True)
class EmbeddedFormat:
    """A chat template, with the `bos` and `eos` of its vocabulary and the user's template options.

    `special_tokens` returns the special tokens that a text spells out, in order. If a template rewrites its messages,
    these decide whether a message could inject special tokens. `context_size` in tokens limits the template's own text.
    """

    source: str
    bos: str
    eos: str
    special_tokens: Callable[[str], tuple[int, ...]]
    context_size: int
    options: Mapping[str, Any] = field(default_factory=dict)
    name: str = EMBEDDED
    stop: tuple[str, ...] = ()
    default_system: str | None = None
    thoughts: tuple[ThoughtMarkup, ...] = THOUGHTS
    verbatim: bool = False
    bridge: str = BRIDGE

    def render(self, conversation: Conversation) -> tuple[Part, ...]:
        """Render the prompt; only the template's own text is trusted. Raises FormatError if the template fails."""
        messages = _messages(conversation)
        offset = len(messages) - len(conversation.messages)
        reply_tokens = {
            index: message.tokens
            for index, message in enumerate(conversation.messages, offset)
            if message.tokens is not None
        }
        placeholders = Placeholders()
        real = [
            placeholders.put(index, message) if index in reply_tokens else message
            for index, message in enumerate(messages)
        ]
        all_placed = [
            placeholders.put(index, message) if message["content"].strip() else message
            for index, message in enumerate(real)
        ]
        pieces = self._pieces(real, all_placed, placeholders)
        return join_parts(
            tuple(
                _part(piece, reply_tokens) for piece in _restore_headers(pieces, reply_tokens, last=len(messages) - 1)
            )
        )

    def _pieces(self, real: list[Turn], placed: list[Turn], placeholders: Placeholders) -> list[Piece]:
        now = datetime.now()
        prompt, skeleton = self._fill(real, now), self._fill(placed, now)
        pieces = _align(*placeholders.split(skeleton), prompt, [turn["content"] for turn in real])
        if pieces is not None:
            return pieces
        if self.special_tokens(prompt) != self.special_tokens(skeleton):
            raise FormatError(
                "the chat template would turn text of a message into special tokens",
                "remove text that looks like markup, or choose another --format",
            )
        first, rest = placeholders.split(prompt)
        pieces = [(FROM_TEMPLATE, first)]
        for index, literal in rest:  # the replies whose tokens are known
            pieces += [(index, placeholders.text(index)), (FROM_TEMPLATE, literal)]
        return pieces

    def _fill(self, messages: list[Turn], now: datetime) -> str:
        return run_template(
            self.source,
            {
                "add_generation_prompt": True,
                "bos_token": self.bos,
                "eos_token": self.eos,
                "tools": None,
                "documents": None,
                "strftime_now": now.strftime,
                **self.options,
                "messages": messages,
            },
            MAX_REPEATS * sum(len(turn["content"]) for turn in messages) + MAX_TOKEN_LENGTH * self.context_size,
        )


def _messages(conversation: Conversation) -> list[Turn]:
    system = conversation.system_prompt
    head = [] if system is None else [{"role": "system", "content": system}]
    return head + [{"role": message.role, "content": message.content} for message in conversation.messages]


def _align(first: str, placed: list[tuple[int, str]], real: str, contents: Sequence[str]) -> list[Piece] | None:
    """Split the real render into text of the template and of the messages; None if the two renders disagree.

    `first` and `placed` are the other render, split at its placeholders. Templates trim messages in different ways, so
    all of them are tried.
    """
    pieces: list[Piece] = [(FROM_TEMPLATE, first)]
    at = len(first) if real.startswith(first) else len(real) + 1
    for index, literal in placed:
        ways = [trim(contents[index]) for trim in TRIMS] if index < len(contents) else []
        text = next((way for way in ways if real.startswith(way + literal, at)), None)
        if text is None:
            return None
        pieces += [(index, text), (FROM_TEMPLATE, literal)]
        at += len(text) + len(literal)
    return pieces if at == len(real) else None


def _restore_headers(pieces: list[Piece], reply_tokens: Mapping[int, tuple[int, ...]], last: int) -> list[Piece]:
    """Put the text that follows the last question before each earlier reply with known tokens, too.

    For earlier replies, a template may omit the reasoning tag that the prompt ended with, or add an empty block.
    """
    out = list(pieces)
    if len(pieces) < 3 or pieces[-2][0] != last:
        return out
    for at in range(3, len(pieces), 2):
        question, reply = pieces[at - 2][0], pieces[at][0]
        if reply in reply_tokens and question == reply - 1:
            out[at - 1] = pieces[-1]
    return out


def _part(piece: Piece, reply_tokens: Mapping[int, tuple[int, ...]]) -> Part:
    index, text = piece
    return Tokens(reply_tokens[index]) if index in reply_tokens else Text(text, trusted=index == FROM_TEMPLATE)
