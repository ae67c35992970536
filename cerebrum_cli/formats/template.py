"""A chat template, embedded in a GGUF file or from a file of its own, as a prompt format.

To tell the template's own text from that of the messages, the template is rendered twice: with the messages, and with
placeholders in the place of their texts. The two must agree. A reply that keeps its tokens is a placeholder in both,
and the prompt holds exactly these tokens; templates that drop reasoning get the text of replies instead. Each rendering
has placeholders of its own, which no message can contain.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from cerebrum_cli.core.conversation import (
    Conversation,
    Message,
    PromptPart,
    PromptParts,
    Text,
    Tokens,
    Turn,
)
from cerebrum_cli.core.errors import FormatError
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.settings import EMBEDDED
from cerebrum_cli.core.text import Texts
from cerebrum_cli.core.token_ids import Tokenize
from cerebrum_cli.core.tools import Round
from cerebrum_cli.formats.markers import REASONING_MARKUPS
from cerebrum_cli.formats.named_templates import OTHER_FORMAT
from cerebrum_cli.formats.pieces import Pieces, align, placeholder, split_at_placeholders, without_switches
from cerebrum_cli.formats.plain_tools import with_plain_tools, written_calls
from cerebrum_cli.formats.prompt_format import Markups, PromptFormat, ReasoningMarkup, join_parts
from cerebrum_cli.formats.template_sandbox import (
    ReasoningHistory,
    Switch,
    Variables,
    find_content_format,
    find_efforts,
    find_own_markups,
    find_reasoning_history,
    find_switch,
    run_template,
    variables,
    write_turn,
)
from cerebrum_cli.formats.text_slots import TextSlot, TextSlots, filled
from cerebrum_cli.formats.tool_calls import ToolFormat
from cerebrum_cli.formats.tool_syntax import find_tool_format, tool_variables

PRESERVE = "preserve_thinking"  # variable by which templates keep earlier reasoning, or drop it
# With it, Qwen2.5-Coder 1.5B calls a function for 3 of 30 questions that need none, instead of 14. Of 24 questions that
# need one, its first call is correct for 22, instead of 21 (benchmarks/tool_calls.py).
WHEN_TO_CALL = (
    "You are a helpful assistant. Use a function only if the request is about what it does. Answer general knowledge,"
    " explanations, writing and small talk in plain text, without functions."
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
        return self.is_fixed or self.switch is not None

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
        begun = conversation.prefill
        if begun and (markup := self.markup_at_start(begun)):
            called = replace(begun, content="") if begun.rounds else None
            prompt = self._rendered(replace(conversation, prefill=called, thinks=True))
            return _with_reasoning(prompt, begun.content, markup)
        return self._rendered(conversation)

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
        if isinstance(message, Message) and self.is_quoted_in(f"{message.content}\n{message.reasoning}"):
            return Text(message.content)
        return None

    def is_quoted_in(self, text: str) -> bool:
        """Whether a text has markup of reasoning."""
        return any(marker in text for markup in self.markups for marker in markup.texts)

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
        return bool(self.variables.keys() & names)

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
        if conversation.keeps_reasoning is not None:
            values[PRESERVE] = conversation.keeps_reasoning
        return {**values, **tool_variables([tool.openai for tool in conversation.tools]), **self.variables}


@frozen
class Draft:
    """What a template gets, with slots for its texts. If it `continues` a reply, the prompt ends with its beginning.

    - `messages`, `tools`: in OpenAI's form, with slots
    - `texts`: the contents of the turns, then their reasoning, and then the texts in functions and calls
    - `fixed`: the replies, by the index of their turn, that both renders have as placeholders
    - `moved`: texts before calls, by the number of the name of the first call, if a template moves them behind the
      results, where the reply would go on
    - `markup`: of reasoning; None if it has fields of its own
    """

    conversation: Conversation
    values: Variables
    continues: bool
    turns: Sequence[Turn]
    messages: Sequence[JsonDict]
    tools: Any
    texts: Sequence[str]
    fixed: Mapping[int, PromptPart]
    moved: Mapping[int, str]
    markup: ReasoningMarkup | None

    @property
    def placed(self) -> Sequence[str]:
        """Placeholders of the texts."""
        return [placeholder(number, text) if self.is_shown(number) else text for number, text in enumerate(self.texts)]

    def is_shown(self, number: int) -> bool:
        """Whether a text is to be shown: a system prompt may be nothing but a switch."""
        text = self.texts[number]
        if number < len(self.turns) and self.turns[number].role == "system":
            text = without_switches(text)
        return bool(text.strip())

    def without_dropped_reasoning(self, placed: Pieces) -> Draft:
        """The draft without the reasoning that the template has dropped: it could leave what was around it."""
        reasoning = filter(self.is_shown, range(len(self.turns), 2 * len(self.turns)))
        dropped = {*reasoning} - {piece.number for piece in placed}
        texts = ["" if number in dropped else text for number, text in enumerate(self.texts)]
        return replace(self, texts=texts)

    def role_before(self, count: int) -> str:
        """The role of the last of the first `count` turns; that of a question, if there are no turns yet."""
        return self.turns[count - 1].role if count else "user"


def draft_messages(chat: EmbeddedFormat, conversation: Conversation) -> Draft:
    """Decide in which form a template gets each message."""
    prefill = conversation.prefill
    continues = prefill is not None
    if prefill:
        conversation = conversation.add(prefill)
    turns = [_with_reasoning_apart(chat, turn) for turn in find_content_format(chat.source).fold(conversation).turns]
    if prefill and prefill.rounds and not prefill.content:  # the results of calls come last
        turns.pop()
        continues = False
    values = chat.values(conversation, conversation.thinks)
    if continues:
        values = {**values, "add_generation_prompt": False}
    history = chat.reasoning_history(conversation, values)
    fixed = _fixed_replies(chat, turns, history.drops)
    slots = TextSlots(2 * len(turns), chat.special_tokens)
    tools = slots.in_tools(conversation.tools)
    messages, moved = [], {}
    for index, turn in enumerate(turns):
        reply, text = turn.value, turn.content
        is_written = isinstance(reply, Round) and index not in fixed and chat.tool_format.writes_calls
        message = slots.in_message(turn.openai, is_written)
        if index in fixed:
            text = placeholder(index)
        elif isinstance(reply, Round) and not is_written:
            text = written_calls(reply)
        elif is_written and chat.tool_format.moves_text and text.strip():
            first, *_ = message["tool_calls"]
            moved[first["function"]["name"].number] = text
            text = ""
        slots.texts[index] = text
        if isinstance(reply, Message | Round) and history.takes and index not in fixed:
            slots.texts[index + len(turns)] = reply.reasoning or ""
        messages.append({**message, "content": TextSlot(index)})
    return Draft(conversation, values, continues, turns, messages, tools, slots.texts, fixed, moved, history.markup)


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
    begun = Text(blank + opening, trusted=True), Text(reasoning), Text(closing, trusted=True), Text(answer)
    return join_parts((*before, last, *begun))


def _fixed_replies(chat: EmbeddedFormat, turns: Sequence[Turn], drops_reasoning: bool) -> Mapping[int, PromptPart]:
    last_question = max((index for index, turn in enumerate(turns) if turn.role == "user"), default=0)
    fixed = {}
    for index, turn in enumerate(turns):
        reply = turn.value
        if isinstance(reply, Message) or (isinstance(reply, Round) and chat.tool_format.takes_text):
            is_recent = isinstance(reply, Round) and index > last_question
            if part := chat.fixed_part(reply, keeps_tokens=is_recent or not drops_reasoning):
                fixed[index] = part
    return fixed


def fill(chat: EmbeddedFormat, draft: Draft, texts: Sequence[str], values: Variables, count: int | None = None) -> str:
    """Render the template with these texts in the slots of the messages, or of the first `count` of them."""
    messages = filled(draft.messages[:count], texts)
    for index, message in enumerate(messages):
        if chat.tool_format.text_arguments:
            for call in message.get("tool_calls", ()):
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        reasoning = texts[index + len(draft.turns)]
        message.update(write_turn(message["role"], message["content"], reasoning, draft.markup))
    values = {**values, **tool_variables(filled(draft.tools, texts)), **chat.variables}
    return run_template(chat.source, {**values, "messages": find_content_format(chat.source).messages(messages)})


def rendered_parts(chat: EmbeddedFormat, conversation: Conversation) -> PromptParts:
    """The parts of a prompt: the template's own text, which is trusted, and what is between."""
    draft = draft_messages(chat, conversation)
    skeleton = fill(chat, draft, draft.placed, draft.values)
    if draft.markup and (shown := draft.without_dropped_reasoning(split_at_placeholders(skeleton))) != draft:
        draft = shown
        skeleton = fill(chat, draft, draft.placed, draft.values)
    pieces = _pieces(draft, fill(chat, draft, draft.texts, draft.values), skeleton)
    parts: list[PromptPart] = []
    moved = dict(draft.moved)  # a result may have the name of its call, too
    for number, text, literal in with_headers(chat, draft, pieces):
        if number in moved and isinstance(before := parts.pop(), Text):
            parts += _before_call(before.value, moved.pop(number), chat.tool_format.openings)
        parts += draft.fixed.get(number) or Text(text), Text(literal, trusted=True)
    return tuple(parts)


def _before_call(literal: str, text: str, openings: Texts) -> PromptParts:
    """The template's own text that ends with the beginning of a call, with a text before that call."""
    start = min((literal.rfind(opening) for opening in openings if opening in literal), default=len(literal))
    return Text(literal[:start], trusted=True), Text(text), Text(literal[start:], trusted=True)


def _pieces(draft: Draft, prompt: str, skeleton: str) -> Pieces:
    """The pieces of a prompt, by its other render. Raises FormatError if it leaves out a message.

    A text that the template changes in an unknown way takes the place of its placeholder.
    """
    placed = split_at_placeholders(skeleton)
    leave_out = _left_out(draft, {piece.number for piece in placed})
    if leave_out:
        raise FormatError(f"leaves out {LEFT_OUT[leave_out[-1].role]}", OTHER_FORMAT)
    if pieces := align(placed, prompt, draft.texts):
        return pieces
    first, *others = placed
    return [first, *(piece._replace(text=draft.texts[piece.number]) for piece in others)]


def _left_out(draft: Draft, shown: Collection[int]) -> Sequence[Turn]:
    """The turns that a prompt leaves out, by the numbers of the texts that are shown."""
    turns = []
    for index, turn in enumerate(draft.turns):
        is_needed = index in draft.fixed if isinstance(turn.value, Round) else draft.is_shown(index)
        if is_needed and index not in shown:
            turns.append(turn)
    return turns


def with_headers(chat: EmbeddedFormat, draft: Draft, pieces: Pieces) -> Pieces:
    """Put the text that follows a question, or results, before each reply with known tokens, and at the end.

    For earlier replies, a template may omit the reasoning tag that the prompt ended with, or add an empty block.
    """
    final, last = pieces[-1], len(draft.turns) - 1
    headers = Headers(chat, draft, final.literal)
    changed = list(pieces)
    for at, (before, reply) in enumerate(pairwise(pieces[1:]), 1):
        part = draft.fixed.get(reply.number)
        if final.number == last and isinstance(part, Tokens) and before.number == reply.number - 1:
            header = headers.before_reply(reply.number, draft.turns[reply.number].thinks)
            changed[at] = before._replace(literal=header if part.ids else chat.closed(header))
    header = headers.before_reply(len(draft.turns), draft.conversation.thinks)
    if draft.continues:
        if final.number not in (last, last + len(draft.turns)):
            raise FormatError("alters the last reply, so it cannot be continued", "omit the beginning of the reply")
        header = ""
    changed[-1] = final._replace(literal=header)
    return changed


class Headers:
    """What a template writes between a turn and a reply; `final` is what it has written after the last turn."""

    def __init__(self, chat: EmbeddedFormat, draft: Draft, final: str) -> None:
        self._chat, self._draft = chat, draft
        self._last_role = draft.role_before(len(draft.turns))
        self._known = {self._key(self._last_role, draft.conversation.thinks): final}

    def before_reply(self, count: int, thinks: bool | None) -> str:
        """Text that follows the first `count` turns, or would follow if there were no others."""
        role = self._draft.role_before(count)
        key = self._key(role, thinks)
        if key not in self._known:
            self._known[key] = self._rendered(role, count, thinks)
        if thinks is False and not self._chat.is_fixed:
            return self._chat.closed(self._known[key])
        return self._known[key]

    def _key(self, role: str, thinks: bool | None) -> tuple[str, bool | None]:
        return role, thinks if self._chat.switch else None

    def _rendered(self, role: str, count: int, thinks: bool | None) -> str:
        chat, draft = self._chat, self._draft
        if role == self._last_role:
            count = len(draft.turns)
        rendered = fill(chat, draft, draft.placed, chat.values(draft.conversation, thinks), count)
        *before, last = split_at_placeholders(rendered)
        if before:
            return last.literal
        return self._known.get(self._key(role, draft.conversation.thinks), last.literal)


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
