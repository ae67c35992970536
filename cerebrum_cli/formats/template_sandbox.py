"""The sandbox in which chat templates run: Jinja, with the functions that `transformers` gives templates.

How a template takes messages, and how it treats reasoning, is found out there, by rendering small conversations.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from functools import cache, partial
from typing import Any, NamedTuple, NoReturn
from warnings import catch_warnings, simplefilter

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cerebrum_cli.core.conversation import Conversation
from cerebrum_cli.core.declaration import EFFORTS
from cerebrum_cli.core.errors import FormatError, Interrupted
from cerebrum_cli.core.json_types import JsonDict, JsonObject
from cerebrum_cli.core.text import Texts, one_line
from cerebrum_cli.formats.markup import REASONING_MARKUPS, mentions_markup
from cerebrum_cli.formats.prompt_format import OTHER_FORMAT, ReasoningMarkup

EFFORT_NAMES = ("reasoning_effort", "thinking_effort", "reasoning_strength")  # variables that take an effort
COMMON_EFFORTS = ("low", "medium", "high")
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")  # of a message; `transformers` sets each that is read
REASONING, QUESTION, ANSWER = "1234567", "2345678", "3456789"  # digits, which no template changes
SYSTEM, NEXT_QUESTION = "4567890", "5678901"


class Switch(NamedTuple):
    """A variable by which templates turn reasoning on and off, and its values."""

    name: str
    on: bool | str = True
    off: bool | str = False

    def values(self, thinks: bool) -> JsonDict:
        return {self.name: self.on if thinks else self.off}


SWITCHES = (
    Switch("enable_thinking"),
    Switch("thinking"),
    Switch("thinking_mode", "enabled", "disabled"),
    Switch("reasoning_effort", "high", "no_think"),
    Switch("reasoning_effort", "high", "none"),
)
Variables = Mapping[str, Any]  # what a template gets, by name
Turn = Mapping[str, str]  # a message as templates with text get it: `role`, `content`, and its reasoning
ASKED: Turn = {"role": "user", "content": QUESTION}
REPLIED = Conversation().user(QUESTION).assistant(ANSWER).user(NEXT_QUESTION)
SMALL_CONVERSATIONS = (  # with the role that each adds; replies may be empty
    ("user", Conversation().user(QUESTION)),
    ("system", Conversation(system_prompt=SYSTEM).user(QUESTION)),
    ("assistant", REPLIED),
    ("assistant", REPLIED.assistant("").user(QUESTION)),
)


class ContentFormat(NamedTuple):
    """How a template expects messages: the roles whose content is a list of parts, and whether it has a system prompt.

    Without one, the system prompt is the beginning of the first question.
    """

    parts: Texts = ()
    has_system: bool = True

    def messages(self, turns: Sequence[Turn]) -> list[JsonObject]:
        """The turns as the template takes them."""
        return [
            {**turn, "content": [{"type": "text", "text": turn["content"]}]} if turn["role"] in self.parts else turn
            for turn in turns
        ]

    def fold(self, conversation: Conversation) -> Conversation:
        """The conversation, without a system prompt if the template has none."""
        if self.has_system or not conversation.messages:
            return conversation
        return conversation.with_folded_system(0)


class GenerationBlock(Extension):
    """The `{% generation %}` block, which marks text for training and does not change a prompt."""

    tags = {"generation"}  # noqa: RUF012 (Jinja declares it a plain set)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


def run_template(source: str, values: Variables) -> str:
    """Render a template, in any time and memory it takes: `try_template` bounds both for unknown files.

    Raises FormatError, which lacks the name of the template, if it is invalid, rejects the values, or fails.
    """
    try:
        return compile_template(source).render(values)
    except (FormatError, Interrupted):
        raise
    except Exception as error:  # a template is code: it can fail in any way code can
        raise FormatError(f"rejects this conversation: {_line(error)}", OTHER_FORMAT) from error


@cache
def compile_template(source: str) -> jinja2.Template:
    """Compile a template. Raises FormatError, which lacks its name, if it is invalid."""
    try:
        with catch_warnings():
            simplefilter("ignore", SyntaxWarning)  # Python's, of the code that Jinja makes
            return ENVIRONMENT.from_string(source)
    except Exception as error:  # not only TemplateError: deep nesting and long numbers raise others
        raise FormatError(f"cannot be parsed: {_line(error)}", OTHER_FORMAT) from error


def _line(error: Exception) -> str:
    return one_line(str(error)) or type(error).__name__


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


ENVIRONMENT = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", GenerationBlock]
)
ENVIRONMENT.filters["tojson"] = partial(json.dumps, ensure_ascii=False)  # not escaped for HTML, as templates expect
ENVIRONMENT.globals["raise_exception"] = _raise_exception


def variables(source: str, bos: str = "<s>", eos: str = "</s>") -> Variables:
    """What `transformers` gives a template without functions; some of those for functions need an empty list."""
    values = {
        "add_generation_prompt": True,
        "bos_token": bos,
        "eos_token": eos,
        "tools": None,
        "documents": None,
        "strftime_now": datetime.now().strftime,
    }
    return {**values, "tools": []} if needs_list(source) else values


@cache
def needs_list(source: str) -> bool:
    """Whether a template fails with None for `tools`, but not with a list."""
    values = {"bos_token": "", "eos_token": "", "messages": [ASKED]}
    tools: list[JsonObject] | None
    for tools in (None, []):
        with suppress(FormatError):
            run_template(source, {**values, "tools": tools})
            return tools is not None
    return False


def try_render(source: str, messages: Sequence[JsonObject], **values: Any) -> str | None:
    """The prompt of a small conversation; None if the template fails, which is raised where a real one is rendered."""
    with suppress(FormatError):
        return run_template(source, {**variables(source), "messages": messages, **values})
    return None


@cache
def find_content_format(source: str) -> ContentFormat:
    """Find a format with which a template shows every message of small conversations; strings are preferred."""
    found = ContentFormat()
    for role, conversation in SMALL_CONVERSATIONS:
        candidates = (
            found,
            ContentFormat((*found.parts, role), found.has_system),
            ContentFormat(found.parts, has_system=False),
        )
        found = next((candidate for candidate in candidates if _shows(source, candidate, conversation)), found)
    return found


def _shows(source: str, content_format: ContentFormat, conversation: Conversation) -> bool:
    turns = content_format.fold(conversation).openai_messages
    prompt = try_render(source, content_format.messages(turns)) or ""
    is_list = "'text':" in prompt  # of parts, as Python writes it
    return not is_list and all(turn["content"] in prompt for turn in turns)


def find_default_system(source: str, values: Variables) -> str | None:
    """The system prompt that a template writes for a conversation without one, if any; None if that is unclear."""
    content_format = find_content_format(source)
    with_system, without = (
        try_render(source, content_format.messages(conversation.openai_messages), **values) or ""
        for conversation in (Conversation(system_prompt=SYSTEM).user(QUESTION), Conversation().user(QUESTION))
    )
    before, shown, after = with_system.partition(SYSTEM)
    own = without.removeprefix(before)
    if not shown or not without.startswith(before) or after.endswith(own):
        return ""
    return own.removesuffix(after).rstrip() if own.endswith(after) else None


@cache
def find_switch(source: str) -> Switch | None:
    """The variable by which a template turns reasoning on and off: one that changes a prompt; None without one."""
    for switch in SWITCHES:
        is_known = switch.off is False or _has_literal(source, str(switch.off))
        if switch.name in source and is_known:
            on, off = (try_render(source, [ASKED], **{switch.name: value}) for value in switch[1:])
            if on is not None and off is not None and on != off:
                return switch
    return None


def _has_literal(source: str, value: str) -> bool:
    return f"'{value}'" in source or f'"{value}"' in source


def thinking(source: str) -> JsonDict:
    """The value by which a template turns reasoning on, if it has such a variable."""
    switch = find_switch(source)
    return switch.values(True) if switch else {}


def find_efforts(source: str) -> tuple[str | None, Texts]:
    """The variable by which a template takes an effort of reasoning, and the efforts that it names; None without one.

    A template that names one of the common efforts only, as its default, takes any of them.
    """
    named = tuple(effort for effort in EFFORTS if _has_literal(source, effort))
    for name in EFFORT_NAMES:
        if name in source and named:
            return name, COMMON_EFFORTS if len(named) == 1 and named[0] in COMMON_EFFORTS else named
    return None, ()


def write_turn(role: str, content: str, reasoning: str, markup: ReasoningMarkup | None) -> Turn:
    """A turn as a template takes it: with reasoning, if any, in markup, or else in fields of its own."""
    turn = {"role": role, "content": content}
    if reasoning and markup:
        turn["content"] = markup.wrap(reasoning) + content
    elif reasoning:
        turn |= dict.fromkeys(REASONING_FIELDS, reasoning)
    return turn


class ReasoningHistory(NamedTuple):
    """What a template takes and shows of the reasoning of earlier replies, and the markup that it takes it in."""

    takes: bool = False
    drops: bool = False
    markup: ReasoningMarkup | None = None


def find_reasoning_history(source: str, values: Variables) -> ReasoningHistory:
    """Find out what a template does with reasoning: that in fields of its own, or in markup that it has."""
    found = ReasoningHistory()
    for markup in [None] if shows_fields(source) else find_own_markups(source):
        with suppress(FormatError):  # GPT-OSS rejects markup in the content
            history = _history_with(source, values, markup)
            if history.drops:
                return history
            found = found if found.takes else history
    return found


def _history_with(source: str, values: Variables, markup: ReasoningMarkup | None) -> ReasoningHistory:
    """What a template does with reasoning in a markup, which it does not take if it writes the markup before answers.

    Raises FormatError.
    """
    prompt = run_template(source, {**values, "messages": _conversation(markup)})
    drops = prompt.count(ANSWER) == 2 and prompt.count(REASONING) < 2
    if markup is None:
        return ReasoningHistory(True, drops)
    messages = [ASKED, write_turn("assistant", ANSWER, "", None)]
    plain = run_template(source, {**values, "messages": messages, "add_generation_prompt": False})
    before_answer = plain.partition(QUESTION)[2].partition(ANSWER)[0]
    return ReasoningHistory(not any(text in before_answer for text in markup.texts), drops, markup)


@cache
def shows_fields(source: str) -> bool:
    """Whether a template shows the reasoning of a last reply, or of a call, that has it in a field of its own."""
    ends: list[list[JsonObject]] = [_conversation(None)[:-1]]
    arguments: JsonObject | str
    for arguments in ({}, "{}"):
        call = {"id": "call00001", "type": "function", "function": {"name": "f", "arguments": arguments}}
        calling = {**write_turn("assistant", "", REASONING, None), "tool_calls": [call]}
        ends.append([ASKED, calling, {"role": "tool", "name": "f", "tool_call_id": "call00001", "content": ANSWER}])
    prompts = (try_render(source, end, add_generation_prompt=False, **thinking(source)) for end in ends)
    return any(prompt and REASONING in prompt for prompt in prompts)


@cache
def find_own_markups(source: str) -> Sequence[ReasoningMarkup]:
    """The markups of reasoning that a template has."""
    return [markup for markup in REASONING_MARKUPS if mentions_markup(source, markup)]


def _conversation(markup: ReasoningMarkup | None) -> list[Turn]:
    reply = write_turn("assistant", ANSWER, REASONING, markup)
    return [ASKED, reply, ASKED, reply, ASKED]
