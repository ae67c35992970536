"""A chat template, embedded in a GGUF file or from a file of its own, as a prompt format.

To tell the template's own text from that of the messages, the template is rendered twice: with the messages, and with
placeholders in the place of their texts. The two must agree. A reply that keeps its tokens is a placeholder in both,
and the prompt holds exactly these tokens; templates that drop reasoning get the text of replies instead. Placeholders
are random digits, drawn once for a process, so no message contains one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise

from cerebrum_cli.core.conversation import (
    Conversation,
    Message,
    PromptPart,
    PromptParts,
    Text,
    Tokens,
    Turn,
    shows,
)
from cerebrum_cli.core.errors import FormatError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.settings import EMBEDDED
from cerebrum_cli.core.text import Texts
from cerebrum_cli.core.token_ids import Tokenize
from cerebrum_cli.core.tools import Round
from cerebrum_cli.formats.markup import REASONING_MARKUPS
from cerebrum_cli.formats.pieces import Pieces, TextSlots, align, is_hidden, placeholder, split_at_placeholders
from cerebrum_cli.formats.prompt_format import (
    OTHER_FORMAT,
    Markups,
    PromptFormat,
    ReasoningMarkup,
    join_parts,
    with_plain_tools,
    written_calls,
)
from cerebrum_cli.formats.template_sandbox import (
    ReasoningHistory,
    Switch,
    Variables,
    find_content_format,
    find_default_system,
    find_efforts,
    find_own_markups,
    find_reasoning_history,
    find_switch,
    run_template,
    variables,
    write_turn,
)
from cerebrum_cli.formats.tool_calls import ToolFormat
from cerebrum_cli.formats.tool_syntax import find_tool_format, tool_variables

HELPFUL = "You are a helpful assistant. "  # where the template has no system prompt of its own
# With it, Qwen2.5-Coder 1.5B calls a function for 4 of 30 questions that need none, instead of 14. Of 24 questions that
# need one, its first call is correct for 22, instead of 21 (benchmarks/tool_calls.py).
WHEN_TO_CALL = (
    "Use a function only if the request is about what it does. Answer general knowledge, explanations, writing and"
    " small talk in plain text, without functions."
)
LEFT_OUT = {
    "user": "a question",
    "assistant": "an earlier reply",
    "system": "the system prompt",
    "tool": "the result of a function",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddedFormat(PromptFormat):
    """A chat template, with the `bos` and `eos` of its vocabulary and the user's `variables`.

    `special_tokens` returns the special tokens that a text spells out, in order. If a template rewrites its messages,
    these decide whether a message could inject special tokens. `origin` is where the template is from, for errors.
    """

    source: str
    bos: str
    eos: str
    special_tokens: Tokenize
    variables: Variables = field(default_factory=dict)
    name: str = EMBEDDED
    markups: Markups = REASONING_MARKUPS
    origin: str = EMBEDDED

    @property
    def has_switch(self) -> bool:
        return find_switch(self.source) is not None

    @property
    def expects_reasoning(self) -> bool:
        return bool(find_own_markups(self.source))

    @property
    def efforts(self) -> Texts:
        return find_efforts(self.source)[1]

    def render(self, conversation: Conversation) -> PromptParts:
        """Render the prompt; only the template's own text is trusted.

        Raises FormatError, with the name of the template, if it fails, or leaves out a message.
        """
        if conversation.uses_functions:
            conversation = self._with_functions(conversation)
        return self._begun(conversation)

    def _begun(self, conversation: Conversation) -> PromptParts:
        """Render the prompt; a reply that begins with reasoning may begin in its markup."""
        begun = conversation.prefill
        if begun and (markup := self.markup_at_start(begun)):
            called = replace(begun, content="") if begun.rounds else None
            prompt = self._rendered(replace(conversation, prefill=called, thinks=True))
            return _with_reasoning(prompt, begun.content, markup)
        prompt = self._rendered(conversation)
        own = find_own_markups(self.source)
        if begun and begun.tokens is None and begun.reasoning and own and not shows(prompt, begun.reasoning):
            text = own[0].begin(begun.reasoning, begun.content)
            return self._begun(replace(conversation, prefill=replace(begun, content=text, reasoning=None)))
        return prompt

    def _rendered(self, conversation: Conversation) -> PromptParts:
        try:
            return join_parts(rendered_parts(self, conversation))
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
        has_no_system = bool(conversation.tools) and conversation.system_prompt is None
        default = find_default_system(self.source, self.values(conversation, conversation.thinks))
        if not (tools.has_place and (tools.takes_text or tools.writes_calls)):
            return with_plain_tools(conversation, default or None)
        if has_no_system and default is not None and not self.special_tokens(default):  # which would become plain text
            system = f"{default}\n\n{WHEN_TO_CALL}" if default else HELPFUL + WHEN_TO_CALL
            conversation = replace(conversation, system_prompt=system)
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

    def markup_at_start(self, reply: Message | Round) -> ReasoningMarkup | None:
        """The template's markup of reasoning that the text of a reply begins with, if any."""
        if not (reply.tokens or reply.reasoning):
            for markup in find_own_markups(self.source):
                if reply.content.lstrip().startswith(markup.open):
                    return markup
        return None

    def closed(self, prompt_end: str) -> str:
        markup = self.open_markup(prompt_end)
        return prompt_end + markup.ending(prompt_end) if markup else prompt_end

    def reasoning_history(self, conversation: Conversation, values: Variables) -> ReasoningHistory:
        """What becomes of the reasoning of earlier replies."""
        if len(conversation.messages) < 2:
            return ReasoningHistory(drops=True)
        return find_reasoning_history(self.source, values)

    @property
    def is_fixed(self) -> bool:
        """Whether the user has set the variable that turns reasoning on and off."""
        switch = find_switch(self.source)
        return switch is not None and switch.name in self.variables

    @property
    def switch(self) -> Switch | None:
        """The variable that turns reasoning on and off; None without one, and where the user has set it."""
        return None if self.is_fixed else find_switch(self.source)

    def values(self, conversation: Conversation, thinks: bool | None) -> Variables:
        values = {**variables(self.source, self.bos, self.eos)}
        effort, _ = find_efforts(self.source)
        if self.switch and thinks is not None:
            values.update(self.switch.values(thinks))
        if effort and conversation.effort:
            values[effort] = conversation.effort
        return {**values, **tool_variables([tool.openai for tool in conversation.tools]), **self.variables}


@frozen
class Draft:
    """A conversation as its template gets it.

    - `turns`: with their `contents` and the `reasoning` before them, both empty where the template is to get none
    - `fixed`: replies that are placeholders in both renders, by the index of their turn
    - `moved`: texts before calls, by turn, where a template moves them behind the results
    - `markup`: of reasoning; None if that has a field of its own
    - `continues`: the prompt ends with the beginning of a reply
    - `is_special`: whether a text spells special tokens
    """

    chat: EmbeddedFormat
    conversation: Conversation
    turns: Sequence[Turn]
    contents: Sequence[str]
    reasoning: Sequence[str]
    fixed: Mapping[int, PromptPart]
    moved: Mapping[int, str]
    markup: ReasoningMarkup | None
    continues: bool
    is_special: Callable[[str], bool]

    def slots(self, are_hidden: bool) -> TextSlots:
        return TextSlots((*self.contents, *self.reasoning), are_hidden, self.is_special)

    def rendered(self, slots: TextSlots, values: Variables, count: int | None = None) -> str:
        """Render the template with what is in the slots, for the first `count` turns if that is given."""
        chat = self.chat
        messages: list[JsonDict] = []
        tools = slots.in_json([tool.openai for tool in self.conversation.tools], slots.name)
        for index, turn in enumerate(self.turns[:count]):
            message = turn.openai
            calls = message.pop("tool_calls", [])
            if calls and index not in self.fixed and chat.tool_format.writes_calls:
                slots.moved[len(slots.texts)] = self.moved.get(index, "")
                message["tool_calls"] = [self._in_slots(call, slots) for call in calls]
            if "name" in message:
                message["name"] = slots.name(message["name"])
            reasoning = slots.at(index + len(self.turns))
            messages.append({**message, **write_turn(turn.role, slots.at(index), reasoning, self.markup)})
        values = {**values, **tool_variables(tools), **chat.variables}
        return run_template(chat.source, {**values, "messages": find_content_format(chat.source).messages(messages)})

    def _in_slots(self, call: JsonDict, slots: TextSlots) -> JsonDict:
        function = slots.in_json(call["function"], slots.text)
        if self.chat.tool_format.text_arguments:
            function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
        return {**call, "function": function}

    @property
    def values(self) -> Variables:
        values = self.chat.values(self.conversation, self.conversation.thinks)
        return {**values, "add_generation_prompt": False} if self.continues else values


def draft_of(chat: EmbeddedFormat, conversation: Conversation) -> Draft:
    """Decide in which form a template gets each message."""
    prefill = conversation.prefill
    if prefill:
        conversation = conversation.add(prefill)
    turns = [_with_reasoning_apart(chat, turn) for turn in find_content_format(chat.source).fold(conversation).turns]
    continues = prefill is not None
    if prefill and prefill.rounds and not prefill.content:  # the results of calls come last
        turns.pop()
        continues = False
    is_special = cache(lambda text: bool(chat.special_tokens(text)))
    draft = Draft(chat, conversation, turns, (), (), {}, {}, None, continues, is_special)
    history = chat.reasoning_history(conversation, draft.values)
    fixed = _fixed_replies(chat, turns, history.drops)
    contents, reasoning, moved = [], [], {}
    for index, turn in enumerate(turns):
        reply, content, thought = turn.value, turn.content, ""
        if index in fixed:
            content = placeholder(index)
        elif isinstance(reply, Round) and not chat.tool_format.writes_calls:
            content = written_calls(reply)
        elif isinstance(reply, Round) and chat.tool_format.moves_text:
            moved[index], content = content.strip() and content, ""
        if isinstance(reply, Message | Round) and history.takes and index not in fixed:
            thought = reply.reasoning or ""
        contents.append(content)
        reasoning.append(thought)
    return replace(draft, contents=contents, reasoning=reasoning, fixed=fixed, moved=moved, markup=history.markup)


def _fixed_replies(chat: EmbeddedFormat, turns: Sequence[Turn], drops_reasoning: bool) -> Mapping[int, PromptPart]:
    """Sampled replies that the template does not see, by turn: those that keep their tokens, or mention markup.

    Templates search replies for markup, and would truncate such a reply, or reject it.
    """
    fixed: dict[int, PromptPart] = {}
    last_question = max((index for index, turn in enumerate(turns) if turn.role == "user"), default=0)
    for index, turn in enumerate(turns):
        reply = turn.value
        if isinstance(reply, Round) and chat.tool_format.takes_text and reply.tokens is not None:
            if index > last_question or not drops_reasoning:
                fixed[index] = Tokens(reply.tokens)
        elif isinstance(reply, Message) and reply.tokens is not None:
            if not drops_reasoning:
                fixed[index] = Tokens(reply.tokens)
            elif any(marker in f"{reply.content}\n{reply.reasoning}" for marker in chat.markup_texts):
                fixed[index] = Text(reply.content)
    return fixed


def _with_reasoning_apart(chat: EmbeddedFormat, turn: Turn) -> Turn:
    """A turn with the reasoning that its text begins with in a field, as templates read it."""
    reply = turn.value
    if turn.role == "assistant" and isinstance(reply, Message | Round) and (markup := chat.markup_at_start(reply)):
        before, closing, answer = turn.content.partition(markup.close)
        if closing:
            reasoning = before.lstrip().removeprefix(markup.open).strip("\n")
            answer = answer.lstrip("\n")
            return turn._replace(content=answer, value=replace(reply, content=answer, reasoning=reasoning))
    return turn


def _with_reasoning(prompt: PromptParts, text: str, markup: ReasoningMarkup) -> PromptParts:
    """A prompt with the beginning of a reply that opens reasoning in a markup; the prompt may open it already."""
    *before, last = prompt
    if isinstance(last, Text) and last.trusted and last.value.rstrip().endswith(markup.open):
        last = Text(last.value.rstrip().removesuffix(markup.open), trusted=True)
    blank, opening, rest = text.partition(markup.open)
    reasoning, closing, answer = rest.partition(markup.close)
    for header in filter(None, (markup.final, markup.header)):
        if answer.startswith(header):
            closing, answer = closing + header, answer.removeprefix(header)
    begun = Text(blank + opening, trusted=True), Text(reasoning), Text(closing, trusted=True), Text(answer)
    return join_parts((*before, last, *begun))


def rendered_parts(chat: EmbeddedFormat, conversation: Conversation) -> PromptParts:
    """The parts of a prompt: the template's own text, which is trusted, and what is between.

    A text that the template changes in an unknown way takes the place of its placeholder. Raises FormatError.
    """
    draft = draft_of(chat, conversation)
    placed = split_at_placeholders(draft.rendered(draft.slots(True), draft.values))
    shown = {piece.number for piece in placed}
    if draft.markup:  # what is around dropped reasoning could stay
        reasoning = [text if len(draft.turns) + index in shown else "" for index, text in enumerate(draft.reasoning)]
        if reasoning != draft.reasoning:
            draft = replace(draft, reasoning=reasoning)
            placed = split_at_placeholders(draft.rendered(draft.slots(True), draft.values))
    _refuse_left_out(draft, shown)
    slots = draft.slots(False)
    prompt = draft.rendered(slots, draft.values)
    pieces = align(placed, prompt, slots.texts)
    if pieces is None:
        pieces = [placed[0], *(piece._replace(text=slots.texts[piece.number]) for piece in placed[1:])]
    parts: list[PromptPart] = []
    for number, text, literal in with_headers(draft, pieces):
        moved = slots.moved.pop(number, "")  # a result may have the name of its call, too
        if moved and isinstance(before := parts.pop(), Text):
            parts += _before_call(before.value, moved, chat.tool_format.openings)
        parts += draft.fixed.get(number) or Text(text), Text(literal, trusted=True)
    return tuple(parts)


def _refuse_left_out(draft: Draft, shown: Collection[int]) -> None:
    """Raise FormatError if the numbers of the texts that are shown lack a turn."""
    for index, turn in reversed([*enumerate(draft.turns)]):
        is_needed = index in draft.fixed if isinstance(turn.value, Round) else is_hidden(draft.contents[index])
        if is_needed and index not in shown:
            raise FormatError(f"leaves out {LEFT_OUT[turn.role]}", OTHER_FORMAT)


def _before_call(literal: str, text: str, openings: Texts) -> PromptParts:
    """The template's own text that ends with the beginning of a call, with a text before that call."""
    start = min((literal.rfind(opening) for opening in openings if opening in literal), default=len(literal))
    return Text(literal[:start], trusted=True), Text(text), Text(literal[start:], trusted=True)


def reply_header(draft: Draft, last_role: str, final: str) -> Callable[[str, bool | None], str]:
    """What the template writes before a reply to a role, which thinks or not; `final` follows the last turn."""
    chat = draft.chat

    @cache
    def header_after(role: str, thinks: bool | None) -> str:
        if (role, thinks) == (last_role, switched(draft.conversation.thinks)):
            return final
        count = max(index for index, turn in enumerate(draft.turns, 1) if turn.role == role)
        rendered = draft.rendered(draft.slots(True), chat.values(draft.conversation, thinks), count)
        return split_at_placeholders(rendered)[-1].literal

    def switched(thinks: bool | None) -> bool | None:
        return thinks if chat.switch else None

    def header(role: str, thinks: bool | None) -> str:
        text = header_after(role, switched(thinks))
        return chat.closed(text) if thinks is False and not chat.is_fixed else text

    return header


def with_headers(draft: Draft, pieces: Pieces) -> Pieces:
    """Put the text that follows a question, or results, before each reply with known tokens, and at the end.

    For earlier replies, a template may omit the reasoning tag that the prompt ended with, or add an empty block.
    """
    chat, final, last = draft.chat, pieces[-1], len(draft.turns) - 1
    last_role = draft.turns[last].role if draft.turns else ""
    header = reply_header(draft, last_role, final.literal)
    changed = list(pieces)
    for at, (before, reply) in enumerate(pairwise(pieces[1:]), 1):
        part = draft.fixed.get(reply.number)
        if final.number == last and isinstance(part, Tokens) and before.number == reply.number - 1:
            literal = header(draft.turns[before.number].role, draft.turns[reply.number].thinks)
            changed[at] = before._replace(literal=literal if part.ids else chat.closed(literal))
    if not draft.continues:
        changed[-1] = final._replace(literal=header(last_role, draft.conversation.thinks))
    elif final.number in (last, last + len(draft.turns)):
        changed[-1] = final._replace(literal="")
    else:
        raise FormatError("alters the last reply, so it cannot be continued", "omit the beginning of the reply")
    return changed


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
