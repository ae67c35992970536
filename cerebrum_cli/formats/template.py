"""A chat template, embedded in a GGUF file or from a file of its own, as a prompt format.

To tell the template's own text from that of the messages, the template is rendered twice: with the messages, and with
placeholders in the place of their texts. The two must agree. A reply that keeps its tokens is a placeholder in both,
and the prompt holds exactly these tokens; templates that drop reasoning get the text of replies instead. Each rendering
has placeholders of its own, which no message can contain.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from operator import methodcaller
from pathlib import Path
from typing import Any

from cerebrum_cli.core.conversation import Conversation, Message, PromptPart, Text, Tokens, join_parts
from cerebrum_cli.core.errors import FormatError
from cerebrum_cli.formats.plain import EMBEDDED, PromptFormat
from cerebrum_cli.formats.template_sandbox import (
    SWITCHES,
    Turn,
    WriteReply,
    find_efforts,
    find_switch,
    find_writer,
    run_template,
    variables,
    write_answer,
)
from cerebrum_cli.formats.thinking import REASONING_MARKUPS, ReasoningMarkup, open_markup
from cerebrum_cli.gguf.header import read_header

TRIAL_ROLES = (("user",), ("system", "user"), ("user", "assistant") * 20 + ("user",))
STRIPS = ("strip", "rstrip", "lstrip")
TRIMS: tuple[Callable[[str], str], ...] = (
    str,
    *(methodcaller(strip) for strip in STRIPS),
    *(methodcaller(strip, "\n") for strip in STRIPS),
)

PRESERVE = "preserve_thinking"  # variable by which templates keep earlier reasoning, or drop it
FROM_TEMPLATE = -1
Piece = tuple[int, str]
"""Part of a render: the index of its text, or FROM_TEMPLATE, and the text. The two kinds alternate.

A message has two texts: its content, with twice the index of the message, and the reasoning of a reply.
"""


class Placeholders:
    """Placeholders of one rendering. They are digits, which no template changes, between private-use characters.

    A random number keeps a message from containing one: it would stand for a reply, and become that reply's tokens.
    """

    def __init__(self) -> None:
        self._start = f"\ue000{secrets.randbelow(10**12):012}"

    def text(self, index: int) -> str:
        return f"{self._start}{index}\ue001"

    def split(self, rendered: str) -> tuple[str, list[tuple[int, str]]]:
        """Split a render at the placeholders: the text before them, and for each its index and the text after it."""
        texts, indexes = [""], list[int]()
        for at, part in enumerate(rendered.split(self._start)):
            index, end, text = part.partition("\ue001")
            if at and end and index.isdecimal():
                indexes.append(int(index))
                texts.append(text)
            else:  # before the first, or what a template has left of one
                texts[-1] += (self._start if at else "") + part
        return texts[0], list(zip(indexes, texts[1:], strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedFormat(PromptFormat):
    """A chat template, with the `bos` and `eos` of its vocabulary and the user's template options.

    `special_tokens` returns the special tokens that a text spells out, in order. If a template rewrites its messages,
    these decide whether a message could inject special tokens.
    """

    source: str
    bos: str
    eos: str
    special_tokens: Callable[[str], tuple[int, ...]]
    options: Mapping[str, Any] = field(default_factory=dict)
    name: str = EMBEDDED
    markups: tuple[ReasoningMarkup, ...] = REASONING_MARKUPS

    def mentions(self, markup: ReasoningMarkup) -> bool:
        is_tag = markup.own_lines  # what else ends reasoning may also end turns, as <|end|> does
        return markup.open in self.source or (is_tag and markup.close in self.source)

    @property
    def has_switch(self) -> bool:
        return self._is_fixed or self._switch is not None

    @property
    def efforts(self) -> tuple[str, ...]:
        return find_efforts(self.source, self.bos, self.eos)[1]

    def render(self, conversation: Conversation) -> tuple[PromptPart, ...]:
        """Render the prompt; only the template's own text is trusted. Raises FormatError if the template fails."""
        thinks = conversation.thinks
        values = self._values(conversation, thinks)
        placeholders = Placeholders()
        write, keeps_tokens = self._history(conversation, values)
        turns = conversation.openai_messages
        offset = len(turns) - len(conversation.messages)
        messages = dict(enumerate(conversation.messages, offset))
        fixed = {
            index: part for index, message in messages.items() if (part := self._fixed_part(message, keeps_tokens))
        }
        contents = [placeholders.text(at) if at in fixed else turn["content"] for at, turn in enumerate(turns)]
        reasonings = ["" if at in fixed else message.reasoning or "" for at, message in messages.items()]
        real = [*contents, *[""] * offset, *reasonings]
        placed = [placeholders.text(index) if text.strip() else text for index, text in enumerate(real)]

        def fill(texts: Sequence[str], values: Mapping[str, Any]) -> str:
            return run_template(self.source, {**values, "messages": _messages(turns, texts, write)})

        pieces = self._pieces(fill(real, values), fill(placed, values), real, placeholders)

        def header(thinks: bool | None) -> str:
            """Text that follows the last question, or would follow it in another conversation."""
            text = pieces[-1][1]
            if thinks != conversation.thinks and self._switch:
                _, parts = placeholders.split(fill(placed, self._values(conversation, thinks)))
                text = parts[-1][1] if parts else text
            return self._closed(text) if thinks is False and not self._is_fixed else text

        sampled = {index: part.ids for index, part in fixed.items() if isinstance(part, Tokens)}
        headers = {state: header(state) for state in {thinks, *(messages[index].thinks for index in sampled)}}
        before = {
            index: headers[messages[index].thinks] if ids else self._closed(headers[messages[index].thinks])
            for index, ids in sampled.items()
        }
        out = [*_restore_headers(pieces, before, len(turns) - 1)[:-1], (FROM_TEMPLATE, headers[thinks])]
        parts = (fixed.get(index) or Text(text, trusted=index == FROM_TEMPLATE) for index, text in out)
        return join_parts(tuple(parts))

    def _fixed_part(self, message: Message, keeps_tokens: bool) -> PromptPart | None:
        """A sampled reply that the template does not see: one that keeps its tokens, or mentions markup.

        Templates search replies for markup, and would truncate such a reply, or reject it.
        """
        if message.tokens is None:
            return None
        if keeps_tokens:
            return Tokens(message.tokens)
        markers = (
            text for markup in self.markups for text in (markup.open, markup.close, markup.header, markup.final) if text
        )
        texts = message.content, message.reasoning or ""
        return Text(message.content) if any(marker in text for marker in markers for text in texts) else None

    def _closed(self, prompt_end: str) -> str:
        markup = open_markup(prompt_end, self.markups)
        return prompt_end + markup.ending(prompt_end) if markup else prompt_end

    def _history(self, conversation: Conversation, values: Mapping[str, Any]) -> tuple[WriteReply, bool]:
        """The function that gives earlier replies to the template, and whether they keep known tokens."""
        keeps = conversation.keeps_reasoning
        if keeps is False or len(conversation.messages) < 2:
            return write_answer, False
        write, is_dropped = find_writer(self.source, values, self.markups)
        return write, bool(keeps) or not is_dropped

    def _pieces(self, prompt: str, skeleton: str, real: list[str], placeholders: Placeholders) -> list[Piece]:
        pieces = _align(*placeholders.split(skeleton), prompt, real)
        if pieces is not None:
            return pieces
        if self.special_tokens(prompt) != self.special_tokens(skeleton):
            raise FormatError(
                "the chat template would turn message text into special tokens",
                "remove text that looks like markup, or choose another --format",
            )
        first, replies = placeholders.split(prompt)
        pieces = [(FROM_TEMPLATE, first)]
        for index, literal in replies:  # those whose tokens are known
            pieces += [(index, placeholders.text(index)), (FROM_TEMPLATE, literal)]
        return pieces

    @property
    def _is_fixed(self) -> bool:
        return any(name in self.options for name in SWITCHES)

    @property
    def _switch(self) -> str | None:
        """The variable that turns reasoning on and off; None without one, and where the user has set it."""
        return None if self._is_fixed else find_switch(self.source, self.bos, self.eos)

    def _values(self, conversation: Conversation, thinks: bool | None) -> dict[str, Any]:
        effort, _ = find_efforts(self.source, self.bos, self.eos)
        switches = {self._switch: thinks, effort: conversation.effort, PRESERVE: conversation.keeps_reasoning}
        set_by_conversation = {name: value for name, value in switches.items() if name and value is not None}
        return {**variables(self.bos, self.eos, datetime.now()), **set_by_conversation, **self.options}


def try_template(path: Path) -> None:
    """Render some conversations with a chat template of unknown origin, in a process with limits.

    The file is a model, or holds nothing but a template. Raises MemoryError if memory does not suffice; a template that
    fails in another way is harmless.
    """
    with path.open("rb") as file:
        is_model = file.read(4) == b"GGUF"
    source = (read_header(path).chat_template or "") if is_model else path.read_text(encoding="utf-8-sig")
    for roles in TRIAL_ROLES:
        messages = [{"role": role, "content": "A question, or its answer.\n" * 100} for role in roles]
        try:
            run_template(source, {**variables("<s>", "</s>", datetime.now()), "messages": messages})
        except FormatError as error:
            if isinstance(error.__cause__, MemoryError):
                raise error.__cause__ from None


def _messages(turns: list[dict[str, str]], texts: Sequence[str], write: WriteReply) -> list[Turn]:
    """The messages of a template, with other texts: the contents of all, then the reasoning of each."""
    written = zip(turns, texts[: len(turns)], texts[len(turns) :], strict=True)
    return [
        write(content, reasoning or None) if turn["role"] == "assistant" else {**turn, "content": content}
        for turn, content, reasoning in written
    ]


def _align(first: str, placed: list[tuple[int, str]], real: str, texts: Sequence[str]) -> list[Piece] | None:
    """Split the real render into text of the template and of the messages; None if the two renders disagree.

    `first` and `placed` are the other render, split at the placeholders of `texts`. Templates trim texts in different
    ways, so all of them are tried.
    """
    pieces: list[Piece] = [(FROM_TEMPLATE, first)]
    at = len(first) if real.startswith(first) else len(real) + 1
    for index, literal in placed:
        ways = [trim(texts[index]) for trim in TRIMS] if index < len(texts) else []
        text = next((way for way in ways if real.startswith(way + literal, at)), None)
        if text is None:
            return None
        pieces += [(index, text), (FROM_TEMPLATE, literal)]
        at += len(text) + len(literal)
    return pieces if at == len(real) else None


def _restore_headers(pieces: list[Piece], headers: Mapping[int, str], last: int) -> list[Piece]:
    """Put the text that follows a question before each earlier reply with known tokens, too.

    For earlier replies, a template may omit the reasoning tag that the prompt ended with, or add an empty block.
    """
    out = list(pieces)
    if len(pieces) < 3 or pieces[-2][0] != last:
        return out
    for at in range(3, len(pieces), 2):
        question, reply = pieces[at - 2][0], pieces[at][0]
        if reply in headers and question == reply - 1:
            out[at - 1] = (FROM_TEMPLATE, headers[reply])
    return out
