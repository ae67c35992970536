"""The interface of prompt formats, the built-in ones, and the markup of a model's reasoning.

Sources of the built-in formats: the model cards of Cerebrum-1.0-7b and -8x7b and their chat template; the card of
CollectiveCognition-v1-Mistral-7B and the EOS token that its training tool put after each reply. How that tool joined
turns is not published; here they follow each other without a line break. Sources of the templates that many models
share: the ChatML of OpenAI's chat models, without a system message of its own, and the templates in the repositories of
Meta-Llama-3-8B-Instruct, gemma-2-2b-it and Mistral-7B-Instruct-v0.3.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cerebrum_cli.core.conversation import Conversation, Message, PromptPart, PromptParts, Text, Tokens
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.text import Texts
from cerebrum_cli.core.tools import Round, ToolCall, ToolSpecs

if TYPE_CHECKING:
    from cerebrum_cli.formats.tool_calls import ToolFormat


@frozen
class ReasoningMarkup:
    """The markup of a model's reasoning: `open` before it, `close` after it, `header` before the answer, if any.

    With `own_lines`, the reasoning is on lines of its own, and a blank line precedes the answer. `final` is the
    answer's header after this reasoning, if it differs from `header`.
    """

    open: str
    close: str
    header: str = ""
    own_lines: bool = False
    final: str = ""

    @property
    def texts(self) -> Texts:
        """All texts of the markup."""
        return tuple(filter(None, (self.open, self.close, self.header, self.final)))

    def wrap(self, reasoning: str) -> str:
        """The reasoning with its markup, as it precedes an answer."""
        text = self.open + reasoning
        if self.own_lines:
            text = f"{self.open}\n{reasoning}"
        return text + self.ending(text)

    def begin(self, reasoning: str, answer: str) -> str:
        """The beginning of a reply: reasoning that goes on, or that has led to the beginning of an answer."""
        breaks = 1 if self.own_lines or self.open[-1].isalnum() else 0  # behind a header, as of Gemma 4
        text = self.open + "\n" * breaks + reasoning
        return text + self.ending(text) + answer if answer else text

    def ending(self, text: str = "", sentence: str = "") -> str:
        """Markup that ends the reasoning after a text, which may include `open`, and begins the answer.

        A closing `sentence` is a paragraph of its own before it.
        """
        if sentence:
            return missing_breaks(text, 2) + sentence + self.ending(sentence)
        if not self.own_lines:
            return self.close + (self.final or self.header)
        if text.rstrip("\n").endswith(self.open):  # no reasoning leaves a blank line
            return missing_breaks(text, 2) + self.close + "\n\n"
        return missing_breaks(text, 1) + self.close + "\n\n"


Markups = tuple[ReasoningMarkup, ...]
RAW = "raw"  # the name of having no format
THINK = ReasoningMarkup("<think>", "</think>", own_lines=True)
INSTRUCTIONS = """You can call these functions:
{}
To call functions, reply with nothing but a JSON object for each: {{"name": "...", "arguments": {{...}}}}
The next message has their results. If no function is needed, answer directly."""


def missing_breaks(text: str, wanted: int) -> str:
    """The line breaks to add to a text that is to end with this many."""
    breaks = len(text) - len(text.rstrip("\n"))
    return "\n" * (wanted - breaks)


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptFormat:
    """A conversation as the exact prompt the model was trained on; `name` is the value of `--format`.

    - `stop`: stop strings, in addition to the model's end-of-text token
    - `default_system`: the system prompt of a conversation that has none
    - `markups`: the reasoning markup a reply may start with, and which of it the model is known to have
    - `closing_sentence`: the last sentence of reasoning that is ended early
    - `verbatim`: replies are passed on unchanged, with surrounding white space and reasoning markup
    - `is_servers`: a server applies its own template to the messages, so that the prompt is not known here
    """

    name: str
    stop: Texts = ()
    default_system: str | None = None
    markups: Markups = ()
    known_markups: Markups = ()
    closing_sentence: str = ""
    verbatim: bool = False
    is_servers: bool = False

    @property
    def markup_texts(self) -> Texts:
        return tuple(text for markup in self.markups for text in markup.texts)

    def own_markups(self, system_prompt: str | None) -> Markups:
        """The markup that this model may use: what it is known to have, and what the system prompt asks for."""
        if self.is_servers:  # it knows itself where they are
            return ()
        asked = system_prompt or ""
        return tuple(markup for markup in self.markups if markup in self.known_markups or markup.open in asked)

    def open_markup(self, prompt_end: str) -> ReasoningMarkup | None:
        """The markup of reasoning that a prompt leaves open, as some templates do; None if there is none."""
        end = prompt_end.rstrip()
        for markup in self.markups:
            if end.endswith(markup.open):
                return markup
        return None

    def without_format(self, system_prompt: str | None) -> PromptFormat:
        """No format, but the markup that this model may use."""
        own = self.own_markups(system_prompt)
        return RawFormat(name=RAW, verbatim=True, markups=own, known_markups=own)

    @property
    def has_switch(self) -> bool:
        return False

    @property
    def expects_reasoning(self) -> bool:
        """Whether replies are written with reasoning; a vocabulary may have its markup without that."""
        return False

    @property
    def efforts(self) -> Texts:
        return ()

    def render(self, conversation: Conversation) -> PromptParts:
        """Render the prompt of the next reply, without BOS unless the format itself writes it.

        It ends with the text of the conversation's `prefill`, unless that has no text, or none that the format shows.
        If a server does that, render the messages: text of nearly the same length.
        """
        return tuple(Text(message["content"]) for message in conversation.openai_messages)

    @property
    def tool_format(self) -> ToolFormat:
        """How the model calls functions."""
        from cerebrum_cli.formats.tool_calls import PLAIN_TOOLS

        return PLAIN_TOOLS

    @property
    def has_system(self) -> bool:
        """Whether a system prompt has its place; otherwise, it begins the first question."""
        return True


class RawFormat(PromptFormat):
    """No format: the last message is the prompt, and special tokens spelled in it are recognized."""

    def render(self, conversation: Conversation) -> PromptParts:
        last = conversation.prefill or conversation.messages[-1]
        return (Text(last.content, True),)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainFormat(PromptFormat):
    """A system line, then turns that start with a name: that of the `user` or of the `assistant`, with `reply_end`.

    `removed_text` is removed from every message except the first, where it is plain text.
    """

    user: str
    assistant: str
    reply_end: str
    removed_text: str = ""

    def render(self, conversation: Conversation) -> PromptParts:
        if conversation.uses_functions:
            conversation = with_plain_tools(conversation, self.default_system)
        system = self.default_system if conversation.system_prompt is None else conversation.system_prompt
        parts: list[PromptPart] = [Text(system), Text("\n", True)] if system else []
        for index, message in enumerate(conversation.messages):
            content = message.content.replace(self.removed_text, "") if index else message.content
            text = content.strip()
            if message.role == "user":
                parts += Text(f"{self.user} ", True), Text(text), Text("\n", True)
            else:
                reply = Text(f" {text}") if message.tokens is None else Tokens(message.tokens)
                parts += Text(self.assistant, True), reply, Text(self.reply_end, True)
        parts.append(Text(self.assistant, True))
        beginning = conversation.prefill.content if conversation.prefill else ""
        beginning = beginning.replace(self.removed_text, "").strip()
        if beginning:
            parts.append(Text(f" {beginning}"))
        return join_parts(tuple(parts))


def join_parts(parts: PromptParts) -> PromptParts:
    out: list[PromptPart] = []
    for part in parts:
        if part in (Tokens(()), Text(""), Text("", trusted=True)):
            continue
        last = out[-1] if out else None
        if isinstance(part, Text) and isinstance(last, Text) and part.trusted == last.trusted:
            out[-1] = Text(last.value + part.value, last.trusted)
        else:
            out.append(part)
    return tuple(out)


def with_plain_tools(conversation: Conversation, default_system: str | None = None) -> Conversation:
    """The conversation with its functions, calls and results as text."""
    if conversation.tools:
        system = default_system if conversation.system_prompt is None else conversation.system_prompt
        texts = (*filter(None, [system]), instructions(conversation.tools))
        conversation = replace(conversation, system_prompt="\n\n".join(texts), tools=())
    messages = [part for message in conversation.messages for part in _expanded(message)]
    prefill = conversation.prefill
    if prefill and prefill.rounds:
        *called, prefill = _expanded(prefill)
        messages += called
        if not (prefill.content or prefill.reasoning):
            prefill = None
    return replace(conversation, messages=tuple(messages), prefill=prefill)


def instructions(tools: ToolSpecs) -> str:
    """The part of the system prompt that describes functions."""
    lines = [json.dumps(tool.openai["function"], ensure_ascii=False) for tool in tools]
    return INSTRUCTIONS.format("\n".join(lines))


def written_calls(part: Round) -> str:
    """The text and the calls of a round, in the form that the instructions ask for."""
    calls = [json.dumps({"name": call.name, "arguments": call.arguments}, ensure_ascii=False) for call in part.calls]
    return "\n".join([*filter(None, [part.content]), *calls])


def _expanded(message: Message) -> Iterator[Message]:
    for part in message.rounds:
        yield Message("assistant", written_calls(part), part.tokens, message.thinks, part.reasoning)
        yield Message("user", "\n\n".join(map(written_result, part.calls)))
    yield replace(message, rounds=())


def written_result(call: ToolCall) -> str:
    return f"Result of {call.name}:\n{call.result}"


CEREBRUM = PlainFormat(
    name="cerebrum",
    user="User:",
    assistant="AI:",
    reply_end="\n",
    stop=("\nUser:",),
    default_system=(
        "A chat between a user and a thinking artificial intelligence assistant. The assistant describes its thought"
        " process and gives helpful and detailed answers to the user's questions."
    ),
    removed_text="</s>",
)

COLLECTIVE_COGNITION = PlainFormat(
    name="collective-cognition", user="USER:", assistant="ASSISTANT:", reply_end="</s>", stop=("\nUSER:",)
)

PLAIN_FORMATS = {CEREBRUM.name: CEREBRUM, COLLECTIVE_COGNITION.name: COLLECTIVE_COGNITION}


NAMED_TEMPLATES = {  # by the value of `--format`
    "chatml": (
        "{% for message in messages %}"
        "{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "gemma": (
        "{{ bos_token }}"
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% for message in messages %}"
        "{% set role = 'model' if message.role == 'assistant' else message.role %}"
        "{{ '<start_of_turn>' + role + '\n' + message.content | trim + '<end_of_turn>\n' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}"
        "{% for message in messages %}"
        "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}"
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "{% for message in messages %}"
        "{{ '[INST] ' + message.content + '[/INST]' if message.role == 'user'"
        " else ' ' + message.content | trim + eos_token }}"
        "{% endfor %}"
    ),
}
TURN_ENDS = {  # stop strings, for vocabularies in which they are no special tokens
    "chatml": ("<|im_end|>",),
    "gemma": ("<end_of_turn>",),
    "llama3": ("<|eot_id|>",),
    "mistral": ("</s>",),
}
OTHER_FORMAT = f"choose another --format ({', '.join(NAMED_TEMPLATES)}) or --chat-template FILE, or use --raw"
