"""The chat template embedded in a GGUF file, as a prompt format.

To tell the template's own text from that of the messages, the template is rendered twice: with the messages, and with
placeholders in their place. The two must agree. A reply whose tokens are known is a placeholder in both, and the
prompt holds exactly these tokens. Each rendering has placeholders of its own, which no message can contain.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from operator import methodcaller
from pathlib import Path
from typing import Any, NoReturn
from warnings import catch_warnings, simplefilter

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cerebrum_cli.core.conversation import Conversation, Message, PromptPart, Text, Tokens, join_parts
from cerebrum_cli.core.errors import FormatError, Interrupted
from cerebrum_cli.formats.plain import EMBEDDED, PromptFormat
from cerebrum_cli.formats.thinking import THOUGHTS, ThoughtMarkup, open_thought
from cerebrum_cli.gguf.header import read_header

SWITCHES = ("enable_thinking", "thinking")  # variables by which templates turn reasoning on and off
TRIAL_ROLES = (("user",), ("system", "user"), ("user", "assistant") * 20 + ("user",))
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
        self._start = f"\ue000{secrets.randbelow(10**12):012}"
        self._pattern = re.compile(f"{self._start}([0-9]{{1,6}})\ue001")

    def text(self, index: int) -> str:
        return f"{self._start}{index}\ue001"

    def put(self, index: int, turn: Turn) -> Turn:
        return {**turn, "content": self.text(index)}

    def split(self, rendered: str) -> tuple[str, list[tuple[int, str]]]:
        """Split a render at the placeholders: the text before them, and for each its index and the text after it."""
        first, *rest = self._pattern.split(rendered)
        return first, list(zip(map(int, rest[::2]), rest[1::2], strict=True))


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
    thoughts: tuple[ThoughtMarkup, ...] = THOUGHTS

    def mentions(self, thought: ThoughtMarkup) -> bool:
        return thought.open in self.source or thought.close in self.source

    @property
    def has_switch(self) -> bool:
        return self._is_fixed or self._switch is not None

    def render(self, conversation: Conversation) -> tuple[PromptPart, ...]:
        """Render the prompt; only the template's own text is trusted. Raises FormatError if the template fails."""
        messages = conversation.openai_messages
        offset = len(messages) - len(conversation.messages)
        replies = {
            index: message for index, message in enumerate(conversation.messages, offset) if message.tokens is not None
        }
        placeholders, now, thinks = Placeholders(), datetime.now(), conversation.thinks
        real = [placeholders.put(index, turn) if index in replies else turn for index, turn in enumerate(messages)]
        placed = [placeholders.put(index, turn) if turn["content"].strip() else turn for index, turn in enumerate(real)]
        pieces = self._pieces(self._fill(real, now, thinks), self._fill(placed, now, thinks), real, placeholders)

        def header(thinks: bool | None) -> str:
            """What follows the last question, or would follow it in another conversation."""
            text = pieces[-1][1]
            if thinks != conversation.thinks and self._switch:
                _, rest = placeholders.split(self._fill(placed, now, thinks))
                text = rest[-1][1] if rest else text
            thought = open_thought(text, self.thoughts) if thinks is False and not self._is_fixed else None
            return text + thought.ending(text) if thought else text

        headers = {each: header(each) for each in {thinks, *(reply.thinks for reply in replies.values())}}
        before = {index: headers[reply.thinks] for index, reply in replies.items()}
        out = [*_restore_headers(pieces, before, len(messages) - 1)[:-1], (FROM_TEMPLATE, headers[thinks])]
        return join_parts(tuple(_part(piece, replies) for piece in out))

    def _pieces(self, prompt: str, skeleton: str, real: list[Turn], placeholders: Placeholders) -> list[Piece]:
        pieces = _align(*placeholders.split(skeleton), prompt, [turn["content"] for turn in real])
        if pieces is not None:
            return pieces
        if self.special_tokens(prompt) != self.special_tokens(skeleton):
            raise FormatError(
                "the chat template would turn message text into special tokens",
                "remove text that looks like markup, or choose another --format",
            )
        first, rest = placeholders.split(prompt)
        pieces = [(FROM_TEMPLATE, first)]
        for index, literal in rest:  # the replies whose tokens are known
            pieces += [(index, placeholders.text(index)), (FROM_TEMPLATE, literal)]
        return pieces

    @property
    def _is_fixed(self) -> bool:
        """Whether the user's options decide about reasoning."""
        return any(name in self.options for name in SWITCHES)

    @property
    def _switch(self) -> str | None:
        """The variable that turns reasoning on and off; None without one, and where the user has set it."""
        return None if self._is_fixed else find_switch(self.source, self.bos, self.eos)

    def _fill(self, messages: list[Turn], now: datetime, thinks: bool | None) -> str:
        switched = {self._switch: thinks} if thinks is not None and self._switch else {}
        values = {**_variables(self.bos, self.eos, now), **switched, **self.options, "messages": messages}
        return run_template(self.source, values)


def try_template(path: Path) -> None:
    """Render some conversations with a file's chat template, of unknown origin, in a process with limits.

    Raises MemoryError if memory does not suffice; a template that fails in another way is harmless.
    """
    source = read_header(path).chat_template or ""
    for roles in TRIAL_ROLES:
        messages = [{"role": role, "content": "A question, or its answer.\n" * 100} for role in roles]
        try:
            run_template(source, {**_variables("<s>", "</s>", datetime.now()), "messages": messages})
        except FormatError as error:
            if isinstance(error.__cause__, MemoryError):
                raise error.__cause__ from None


@cache
def find_switch(source: str, bos: str, eos: str) -> str | None:
    """The variable by which a template turns reasoning on and off: one that changes a prompt; None without one."""
    values = {**_variables(bos, eos, datetime.now()), "messages": [{"role": "user", "content": "?"}]}
    for name in SWITCHES:
        with suppress(FormatError):  # raised again where the prompt is rendered
            if name in source and len({run_template(source, {**values, name: value}) for value in (True, False)}) > 1:
                return name
    return None


def _variables(bos: str, eos: str, now: datetime) -> dict[str, Any]:
    return {
        "add_generation_prompt": True,
        "bos_token": bos,
        "eos_token": eos,
        "tools": None,
        "documents": None,
        "strftime_now": now.strftime,
    }


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


def _part(piece: Piece, replies: Mapping[int, Message]) -> PromptPart:
    index, text = piece
    tokens = replies[index].tokens if index in replies else None
    return Text(text, trusted=index == FROM_TEMPLATE) if tokens is None else Tokens(tokens)


# The sandbox: Jinja, with the functions that `transformers` gives templates.


class GenerationBlock(Extension):
    """The `{% generation %}` block, which marks text for training and does not change a prompt."""

    tags = {"generation"}  # noqa: RUF012 (Jinja declares it a plain set)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def run_template(source: str, values: Mapping[str, Any]) -> str:
    """Render a template, in any time and memory it takes: `try_template` bounds both for unknown files.

    Raises FormatError if the template is invalid, rejects the values, or fails.
    """
    try:
        return _compile(source).render(values)
    except (FormatError, Interrupted):
        raise
    except jinja2.TemplateError as error:
        raise FormatError(
            f"the chat template rejects this conversation: {_line(error)}",
            "change the conversation, or choose another --format",
        ) from error
    except Exception as error:  # a template is code: it can fail in any way code can
        raise FormatError(
            f"the chat template fails: {type(error).__name__}: {_line(error)}", "choose another --format"
        ) from error


@cache
def _compile(source: str) -> jinja2.Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", GenerationBlock]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    try:
        with catch_warnings():
            simplefilter("ignore", SyntaxWarning)  # Python's, of the code that Jinja makes
            return environment.from_string(source)
    except Exception as error:  # not only TemplateError: deep nesting and long numbers raise others
        raise FormatError(
            f"the chat template cannot be parsed: {_line(error)}", "choose a --format, or use --raw"
        ) from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Encode JSON as chat templates expect it: not escaped for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
