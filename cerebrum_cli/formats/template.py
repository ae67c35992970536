"""A chat template, embedded in a GGUF file or from a file of its own, as a prompt format.

To tell the template's own text from that of the messages, the template is rendered twice: with the messages, and with
placeholders in the place of their texts. The two must agree. A reply that keeps its tokens is a placeholder in both,
and the prompt holds exactly these tokens; templates that drop reasoning get the text of replies instead. Each rendering
has placeholders of its own, which no message can contain.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import unescape
from itertools import pairwise
from operator import methodcaller
from pathlib import Path
from typing import Any, NamedTuple

from cerebrum_cli.core.conversation import (
    Conversation,
    Message,
    PromptPart,
    PromptParts,
    Text,
    Tokens,
    Turn,
    join_parts,
)
from cerebrum_cli.core.errors import FormatError
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.settings import EMBEDDED
from cerebrum_cli.core.text import Pattern, Texts
from cerebrum_cli.core.token_ids import Tokenize
from cerebrum_cli.core.tools import Round
from cerebrum_cli.formats.named_templates import OTHER_FORMAT
from cerebrum_cli.formats.plain_tools import with_plain_tools, written_calls
from cerebrum_cli.formats.prompt_format import Markups, PromptFormat
from cerebrum_cli.formats.template_sandbox import (
    ReasoningHistory,
    Switch,
    Variables,
    find_content_format,
    find_efforts,
    find_reasoning_history,
    find_switch,
    run_template,
    variables,
    write_turn,
)
from cerebrum_cli.formats.thinking import REASONING_MARKUPS
from cerebrum_cli.formats.tool_calls import ToolFormat
from cerebrum_cli.formats.tool_syntax import find_tool_format, tool_variables
from cerebrum_cli.gguf.header import read_header

TRIAL_ROLES = (("user",), ("system", "user"), ("user", "assistant") * 20 + ("user",))


def json_text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


TRIMS = [methodcaller(strip, what) for what in ("", None, "\n") for strip in ("strip", "rstrip", "lstrip")] + [
    json_text
]
# What templates change in texts, besides entities of HTML: white space, escaped characters, and switches.
CHANGED = re.compile(r"\\[a-z]|[\s'\"\\]")
SWITCH_REMOVED = re.compile(rf"(?<!\w)/(?:think|no_think|system_override)(?!\w)|{CHANGED.pattern}")
CONTEXT = 8  # characters of the template that must precede a text
PRESERVE = "preserve_thinking"  # variable by which templates keep earlier reasoning, or drop it
# With it, Qwen2.5-Coder 1.5B calls a function for 3 of 30 questions that need none, instead of 14. Of 24 questions that
# need one, its first call is correct for 22, instead of 21 (benchmarks/tool_calls.py).
WHEN_TO_CALL = (
    "You are a helpful assistant. Use a function if the request is about what it does. Answer general knowledge,"
    " explanations, writing and small talk in plain text, without functions."
)
LEFT_OUT = {
    "user": "a question",
    "assistant": "an earlier reply",
    "system": "the system prompt",
    "tool": "the result of a function",
}
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


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedFormat(PromptFormat):
    """A chat template, with the `bos` and `eos` of its vocabulary and the user's template options.

    `special_tokens` returns the special tokens that a text spells out, in order. If a template rewrites its messages,
    these decide whether a message could inject special tokens. `origin` is where the template is from, for errors.
    """

    source: str
    bos: str
    eos: str
    special_tokens: Tokenize
    options: Variables = field(default_factory=dict)
    name: str = EMBEDDED
    markups: Markups = REASONING_MARKUPS
    origin: str = EMBEDDED

    @property
    def has_switch(self) -> bool:
        return self.is_fixed or self.switch is not None

    @property
    def efforts(self) -> Texts:
        return find_efforts(self.source)[1]

    def render(self, conversation: Conversation) -> PromptParts:
        """Render the prompt; only the template's own text is trusted.

        Raises FormatError, with the name of the template, if it fails, or leaves out a message.
        """
        if conversation.uses_functions:
            conversation = self._with_functions(conversation)
        return self._rendered(conversation)

    def _rendered(self, conversation: Conversation) -> PromptParts:
        try:
            return join_parts(Rendering(self, conversation).parts())
        except FormatError as error:
            prefill = conversation.prefill
            if prefill and not (prefill.content.strip() or prefill.rounds):  # reasoning, which not all templates show
                return self._rendered(replace(conversation, prefill=None))
            if prefill and conversation.system_prompt:  # some show it only with a question that comes last
                return self._rendered(conversation.with_folded_system(-1))
            raise FormatError(f"the chat template {self.origin} {error.message}", error.hint) from error

    def _with_functions(self, conversation: Conversation) -> Conversation:
        """The conversation with functions and calls in the form that this template takes."""
        tools = self.tool_format
        if not (tools.has_place and (tools.takes_text or tools.writes_calls)):
            return with_plain_tools(conversation)
        if conversation.tools and conversation.system_prompt is None:
            conversation = replace(conversation, system_prompt=WHEN_TO_CALL)
        if tools.writes_several:
            return conversation
        messages = (replace(message, rounds=tuple(_split(message.rounds))) for message in conversation.messages)
        prefill = conversation.prefill
        if prefill:
            prefill = replace(prefill, rounds=tuple(_split(prefill.rounds)))
        return replace(conversation, messages=tuple(messages), prefill=prefill)

    @property
    def has_system(self) -> bool:
        return find_content_format(self.source).has_system

    @property
    def tool_format(self) -> ToolFormat:
        return find_tool_format(self.source)

    def fixed_part(self, message: Message | Round, keeps_tokens: bool) -> PromptPart | None:
        """A sampled reply that the template does not see: one that keeps its tokens, or mentions markup.

        Templates search replies for markup, and would truncate such a reply, or reject it.
        """
        if message.tokens is None:
            return None
        if keeps_tokens:
            return Tokens(message.tokens)
        if self.is_quoted_in(f"{message.content}\n{message.reasoning}"):
            return Text(message.content)
        return None

    def is_quoted_in(self, text: str) -> bool:
        """Whether a text has markup of reasoning."""
        return any(marker in text for markup in self.markups for marker in markup.texts)

    def closed(self, prompt_end: str) -> str:
        markup = self.open_markup(prompt_end)
        return prompt_end + markup.ending(prompt_end) if markup else prompt_end

    def reasoning_history(self, conversation: Conversation, values: Variables) -> ReasoningHistory:
        """What becomes of the reasoning of earlier replies: it is dropped if the template or the user drops it."""
        keeps = conversation.keeps_reasoning
        if keeps is False or len(conversation.messages) < 2:
            return ReasoningHistory(drops=True)
        history = find_reasoning_history(self.source, values)
        return history._replace(drops=False) if keeps else history

    @property
    def is_fixed(self) -> bool:
        switch = find_switch(self.source)
        names = {"enable_thinking", "thinking"}
        if switch:
            names.add(switch.name)
        return bool(self.options.keys() & names)

    @property
    def switch(self) -> Switch | None:
        """The variable that turns reasoning on and off; None without one, and where the user has set it."""
        return None if self.is_fixed else find_switch(self.source)

    def values(self, conversation: Conversation, thinks: bool | None) -> Variables:
        values = {**variables(self.bos, self.eos)}
        effort, _ = find_efforts(self.source)
        if self.switch and thinks is not None:
            values.update(self.switch.values(thinks))
        if effort and conversation.effort:
            values[effort] = conversation.effort
        if conversation.keeps_reasoning is not None:
            values[PRESERVE] = conversation.keeps_reasoning
        return {**values, **tool_variables(conversation.tools), **self.options}


class Rendering:
    """One rendering of a conversation: the texts of its turns, and what the template makes of them.

    `fixed` are the replies, by the index of their turn, that the template gets only as placeholders, in both renders.
    If the conversation has a `prefill` with text, the prompt ends with that.
    """

    def __init__(self, chat: EmbeddedFormat, conversation: Conversation) -> None:
        self.chat = chat
        prefill = conversation.prefill
        self.begins = prefill is not None and not (prefill.rounds and not prefill.content)
        if prefill:
            conversation = conversation.add(prefill)
        self.conversation = conversation
        self.values = chat.values(conversation, conversation.thinks)
        self.reasoning_history = chat.reasoning_history(conversation, self.values)
        self.content_format = find_content_format(chat.source)
        self.turns = self.content_format.fold(conversation).turns
        if prefill and not self.begins:
            self.turns.pop()
        self.roles = ["user", *(turn.role for turn in self.turns)]  # the first, if there are no turns yet
        self.fixed: dict[int, PromptPart] = {}
        self.written: set[int] = set()  # turns whose calls the template writes
        self.headers: dict[tuple[str, bool | None], str] = {}
        self.texts = [turn.content for turn in self.turns] + [""] * len(self.turns)
        self._place_replies()

    def _place_replies(self) -> None:
        """Put placeholders in the place of fixed replies, and the reasoning of others where the template takes it."""
        last_question = max((index for index, turn in enumerate(self.turns) if turn.role == "user"), default=0)
        for index, turn in enumerate(self.turns):
            value = turn.value
            if not isinstance(value, Message | Round):
                continue
            is_round = isinstance(value, Round)
            is_recent = is_round and index > last_question
            part = None
            if not is_round or self.chat.tool_format.takes_text:
                part = self.chat.fixed_part(value, keeps_tokens=is_recent or not self.reasoning_history.drops)
            if part:
                self.fixed[index] = part
                self.texts[index] = placeholder(index)
                continue
            if value.reasoning and self.reasoning_history.takes:
                self.texts[index + len(self.turns)] = value.reasoning
            if isinstance(value, Round) and self.chat.tool_format.writes_calls:
                self.written.add(index)
                for call in value.calls:
                    _map_texts(self.texts.append, [call.name, call.arguments])
                if self.chat.tool_format.moves_text:
                    self.texts[index] = ""
            elif isinstance(value, Round):
                self.texts[index] = written_calls(value)

    def parts(self) -> PromptParts:
        self.placed = [placeholder(index) if text.strip() else text for index, text in enumerate(self.texts)]
        pieces = self._pieces(self._fill(self.texts, self.values), self._fill(self.placed, self.values))
        final = pieces[-1]
        last = len(self.turns) - 1
        self.headers[self.roles[-1], self.conversation.thinks] = final.literal
        if final.number == last:
            self._restore_headers(pieces)
        header = self._header(self.conversation.thinks, len(self.turns))
        if self.begins:
            if final.number not in (last, last + len(self.turns)):
                raise FormatError("alters the last reply, so it cannot be continued", "omit the beginning of the reply")
            header = ""
        pieces[-1] = final._replace(literal=header)
        parts: list[PromptPart] = []
        for index, text, literal in pieces:
            parts += self.fixed.get(index) or Text(text), Text(literal, trusted=True)
        return tuple(parts)

    def _fill(self, texts: list[str], values: Variables, count: int | None = None) -> str:
        """Render the template with these texts of the turns, or of the first `count` of them."""
        of_calls = iter(texts[2 * len(self.turns) :])
        messages = []
        for index, turn in enumerate(self.turns[:count]):
            reasoning = texts[index + len(self.turns)]
            message = write_turn(turn.role, texts[index], reasoning, self.reasoning_history.markup)
            messages.append({**self._calls(index, turn, of_calls), **message})
        return run_template(self.chat.source, {**values, "messages": self.content_format.messages(messages)})

    def _calls(self, index: int, turn: Turn, texts: Iterator[str]) -> JsonDict:
        """The fields of a message that are about functions."""
        message = turn.openai
        if index not in self.written:
            message.pop("tool_calls", None)
        for call in message.get("tool_calls", ()):
            name, arguments = _map_texts(
                lambda _: next(texts), [call["function"]["name"], call["function"]["arguments"]]
            )
            if self.chat.tool_format.text_arguments:
                arguments = json.dumps(arguments, ensure_ascii=False)
            call["function"] = {"name": name, "arguments": arguments}
        return message

    def _pieces(self, prompt: str, skeleton: str) -> Pieces:
        placed = split_at_placeholders(skeleton)
        pieces = _align(placed, prompt, self.texts)
        if pieces is None and self.chat.special_tokens(prompt) != self.chat.special_tokens(skeleton):
            raise FormatError(
                "would turn message text into special tokens", f"remove text that looks like markup, or {OTHER_FORMAT}"
            )
        shown = {piece.number for piece in pieces} if pieces else {*self._rewritten(placed, prompt)}
        for index, turn in reversed([*enumerate(self.turns)]):
            is_needed = index in self.fixed if isinstance(turn.value, Round) else turn.content.strip()
            if is_needed and index not in shown:
                raise FormatError(f"leaves out {LEFT_OUT[turn.role]}", OTHER_FORMAT)
        return pieces or split_at_placeholders(prompt)  # at the replies that keep their tokens

    def _rewritten(self, placed: Pieces, prompt: str) -> Iterator[int]:
        """Yield the index of each text that the prompt has where the other render has its placeholder.

        Of a reply, a template may leave out reasoning and what precedes its markup, and a system prompt may be nothing
        but a switch.
        """
        changed = SWITCH_REMOVED if "/no_think" in self.chat.source else CHANGED
        rest = _unchanged(prompt, changed)
        for before, (index, _, _) in pairwise(placed):
            role = self.turns[index % len(self.turns)].role
            text = _unchanged(self.texts[index], changed)
            _, found, after = rest.partition(_unchanged(before.literal, changed)[-CONTEXT:] + text)
            if found:
                rest = after
            is_optional = role == "assistant" and (
                index >= len(self.turns) or self.chat.is_quoted_in(self.texts[index])
            )
            if is_optional or (found and (text or role != "user")):
                yield index

    def _restore_headers(self, pieces: Pieces) -> None:
        """Put the text that follows a question, or results, before each earlier reply with known tokens, too.

        For earlier replies, a template may omit the reasoning tag that the prompt ended with, or add an empty block.
        """
        for at, (before, reply) in enumerate(pairwise(pieces[1:]), 1):
            part = self.fixed.get(reply.number)
            if isinstance(part, Tokens) and before.number == reply.number - 1:
                header = self._header(self.turns[reply.number].thinks, reply.number)
                pieces[at] = before._replace(literal=header if part.ids else self.chat.closed(header))

    def _header(self, thinks: bool | None, count: int) -> str:
        """Text that follows the first `count` turns, or would follow if there were no others."""
        role = self.roles[count]
        if (role, thinks) not in self.headers:
            if role == self.roles[-1]:
                count = len(self.turns)
            self.headers[role, thinks] = self._rendered_header(thinks, count)
        text = self.headers[role, thinks]
        is_closed = thinks is False and not self.chat.is_fixed
        return self.chat.closed(text) if is_closed else text

    def _rendered_header(self, thinks: bool | None, count: int) -> str:
        known = self.headers.get((self.roles[count], self.conversation.thinks))
        if known is not None and not self.chat.switch:
            return known
        rendered = self._fill(self.placed, self.chat.values(self.conversation, thinks), count)
        *before, last = split_at_placeholders(rendered)
        if before or known is None:
            return last.literal
        return known


def _split(rounds: Iterable[Round]) -> Iterator[Round]:
    """Rounds for a template that writes one call at a time; those with tokens are not rendered."""
    for part in rounds:
        first, *others = part.calls
        if part.tokens is not None:
            yield part
            continue
        yield replace(part, calls=(first,))
        for call in others:
            yield Round((call,))


def _map_texts(change: Callable[[str], Any], value: Any) -> Any:
    """A JSON value with changed texts; keys stay."""
    match value:
        case str():
            return change(value)
        case Mapping():
            return {key: _map_texts(change, item) for key, item in value.items()}
        case list() | tuple():
            return [_map_texts(change, item) for item in value]
    return value


def _align(placed: Pieces, prompt: str, texts: Sequence[str]) -> Pieces | None:
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


def _unchanged(text: str, changed: Pattern) -> str:
    return changed.sub("", unescape(unescape(text)).casefold())


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
            run_template(source, {**variables(), "messages": messages})
        except FormatError as error:
            if isinstance(error.__cause__, MemoryError):
                raise error.__cause__ from None
