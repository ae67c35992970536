"""The Jinja template embedded in a GGUF file, as one more format.

A template is text glued to text: to know which characters of its render are a user's, it is rendered with
placeholders for the messages, and the two renders must agree. A reply whose tokens are known is a placeholder in
both: it stands in the prompt as it was said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from operator import methodcaller
from typing import Any

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.errors import FormatError
from cerebrum_cli.core.parts import Part, Text, Tokens, join_parts
from cerebrum_cli.formats.format import ThoughtMarkup
from cerebrum_cli.formats.plain import EMBEDDED
from cerebrum_cli.formats.sandbox import run_template
from cerebrum_cli.formats.thinking import THOUGHTS

PLACEHOLDER = "\ue000{}\ue001"
PLACEHOLDER_PATTERN = re.compile("\ue000([0-9]{1,6})\ue001")
STRIPS = ("strip", "rstrip", "lstrip")
TRIMS: tuple[Callable[[str], str], ...] = (
    str,
    *(methodcaller(strip) for strip in STRIPS),
    *(methodcaller(strip, "\n") for strip in STRIPS),
)

Turn = dict[str, str]  # a message as templates know it: `role` and `content`
FROM_TEMPLATE = -1
Piece = tuple[int, str]
"""A stretch of a render: the index of the message it comes from, or TEMPLATE; and its text. The two kinds alternate."""


@dataclass(frozen=True, slots=True)
class EmbeddedFormat:
    """A model's own template with its vocabulary's `bos` and `eos`, and options the user gave for it.

    `special_tokens` returns the special tokens a text spells out, in order; they decide whether a template that
    rewrites its messages can be trusted with them.
    """

    source: str
    bos: str
    eos: str
    special_tokens: Callable[[str], tuple[int, ...]]
    options: Mapping[str, Any] = field(default_factory=dict)
    name: str = EMBEDDED
    stop: tuple[str, ...] = ()
    default_system: str | None = None
    thoughts: tuple[ThoughtMarkup, ...] = THOUGHTS
    verbatim: bool = False

    def render(self, conversation: Conversation) -> tuple[Part, ...]:
        """Return the template's prompt, its own text trusted and the messages' not; FormatError if it refuses."""
        messages = _messages(conversation)
        offset = len(messages) - len(conversation.messages)
        reply_tokens = {
            index: message.tokens
            for index, message in enumerate(conversation.messages, offset)
            if message.tokens is not None
        }
        real = [
            _with_placeholder(index, message) if index in reply_tokens else message
            for index, message in enumerate(messages)
        ]
        all_placed = [
            _with_placeholder(index, message) if message["content"].strip() else message
            for index, message in enumerate(real)
        ]
        pieces = self._pieces(real, all_placed)
        return join_parts(
            tuple(
                _part(piece, reply_tokens) for piece in _restore_headers(pieces, reply_tokens, last=len(messages) - 1)
            )
        )

    def _pieces(self, real: list[Turn], placed: list[Turn]) -> list[Piece]:
        now = datetime.now()
        wanted, skeleton = self._fill(real, now), self._fill(placed, now)
        pieces = _align(skeleton, wanted, [turn["content"] for turn in real])
        if pieces is not None:
            return pieces
        if self.special_tokens(wanted) != self.special_tokens(skeleton):
            raise FormatError(
                "this model's template rewrites a message, and special tokens come of what it says",
                "take what looks like markup out of the text, or choose another --format",
            )
        return _split_replies(wanted)

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
        )


def _messages(conversation: Conversation) -> list[Turn]:
    system = conversation.system_prompt
    head = [] if system is None else [{"role": "system", "content": system}]
    return head + [{"role": message.role, "content": message.content} for message in conversation.messages]


def _with_placeholder(index: int, message: Turn) -> Turn:
    return {**message, "content": PLACEHOLDER.format(index)}


def _align(placed: str, real: str, contents: Sequence[str]) -> list[Piece] | None:
    """Return the real render cut into the template's text and the messages', by turns; None if the two disagree.

    Templates may trim messages, each in its own way, so all ways of trimming are tried.
    """
    first, *rest = PLACEHOLDER_PATTERN.split(placed)
    pieces: list[Piece] = [(FROM_TEMPLATE, first)]
    at = len(first) if real.startswith(first) else len(real) + 1
    for index, literal in zip(map(int, rest[::2]), rest[1::2], strict=True):
        ways = [trim(contents[index]) for trim in TRIMS] if index < len(contents) else []
        text = next((way for way in ways if real.startswith(way + literal, at)), None)
        if text is None:
            return None
        pieces += [(index, text), (FROM_TEMPLATE, literal)]
        at += len(text) + len(literal)
    return pieces if at == len(real) else None


def _split_replies(real: str) -> list[Piece]:
    """Return a render that cannot be told apart from its messages, all but the replies whose tokens are known."""
    first, *rest = PLACEHOLDER_PATTERN.split(real)
    pieces: list[Piece] = [(FROM_TEMPLATE, first)]
    for index, literal in zip(rest[::2], rest[1::2], strict=True):
        pieces += [(int(index), PLACEHOLDER.format(index)), (FROM_TEMPLATE, literal)]
    return pieces


def _restore_headers(pieces: list[Piece], reply_tokens: Mapping[int, tuple[int, ...]], last: int) -> list[Piece]:
    """Return the pieces with the same text before a reply that was said as stands now after the last question.

    In its history a template may leave out the thought it began for the model, or put in an empty one.
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
