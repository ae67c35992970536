"""A chat template, embedded in a GGUF file or from a file of its own, as a prompt format.

To tell the template's own text from that of the messages, the template is rendered twice: with the messages, and with
placeholders in the place of their texts. The two must agree. A reply that keeps its tokens is a placeholder in both,
and the prompt holds exactly these tokens; templates that drop reasoning get the text of replies instead. Each rendering
has placeholders of its own, which no message can contain.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
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
    """The messages that a template gets. If the draft `continues` a reply, its prompt ends with the beginning of it.

    - `texts`: the contents of the turns, their reasoning, and the texts in functions and calls. Pieces refer to these
      by number
    - `fixed`: the replies, by the index of their turn, that both renders have as placeholders
    - `written`: the turns whose calls the template writes
    - `moved`: texts before calls, by the number of the text of the call that they precede, if a template moves them
      behind the results, where the reply would go on
    - `markup`: of reasoning; None if it has fields of its own
    - `special`: names and descriptions in functions and calls that spell out special tokens, so that only the prompt
      may have them
    """

    conversation: Conversation
    values: Variables
    continues: bool
    turns: Sequence[Turn]
    texts: Sequence[str]
    fixed: Mapping[int, PromptPart]
    written: Collection[int]
    moved: Mapping[int, str]
    markup: ReasoningMarkup | None
    special: Collection[str]

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
    continues = prefill is not None and not (prefill.rounds and not prefill.content)
    if prefill:
        conversation = conversation.add(prefill)
    values = chat.values(conversation, conversation.thinks)
    if continues:
        values = {**values, "add_generation_prompt": False}
    history = chat.reasoning_history(conversation, values)
    turns = find_content_format(chat.source).fold(conversation).turns
    if prefill and not continues:
        turns.pop()
    turns = [_with_reasoning_apart(chat, turn) for turn in turns]
    fixed = _fixed_replies(chat, turns, history.drops)
    texts = [turn.content for turn in turns] + [""] * len(turns)
    special = {text for text in _names(conversation) if chat.special_tokens(text)}

    def add_special(name: str) -> str:
        if name in special:
            texts.append(name)
        return name

    _map_texts(add_special, add_special, [tool.openai for tool in conversation.tools])
    written, moved = set(), {}
    for index, turn in enumerate(turns):
        if index in fixed:
            texts[index] = placeholder(index)
            continue
        reply = turn.value
        if isinstance(reply, Message | Round) and reply.reasoning and history.takes:
            texts[index + len(turns)] = reply.reasoning
        if isinstance(reply, Round) and chat.tool_format.writes_calls:
            written.add(index)
            if chat.tool_format.moves_text and reply.content.strip():
                moved[len(texts)], texts[index] = reply.content, ""
        elif isinstance(reply, Round):
            texts[index] = written_calls(reply)
        _fields(turn, index in written, texts.append, add_special)
    return Draft(conversation, values, continues, turns, texts, fixed, written, moved, history.markup, special)


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


def _fields(turn: Turn, is_written: bool, change: Callable[[str], Any], change_name: Callable[[str], Any]) -> JsonDict:
    """A turn as one of OpenAI's messages, with its calls if the template writes these.

    Texts of the calls are changed, names only where `change_name` does so: a draft collects both in this order, and
    `fill` puts them back in the same.
    """
    fields = turn.openai
    if not is_written:
        fields.pop("tool_calls", None)
    if "name" in fields:
        fields["name"] = change_name(fields["name"])
    for call in fields.get("tool_calls", ()):
        call["function"] = _map_texts(change, change_name, call["function"])
    return fields


def _names(conversation: Conversation) -> Sequence[str]:
    """Texts that a template writes without changes: all of functions, and the names of calls and of their arguments."""
    names: list[str] = []
    calls = [call for message in conversation.messages for part in message.rounds for call in part.calls]
    _map_texts(names.append, names.append, [tool.openai for tool in conversation.tools])
    _map_texts(lambda _: None, names.append, [{call.name: call.arguments} for call in calls])
    return names


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
        is_round = isinstance(turn.value, Round)
        if isinstance(turn.value, Message) or (isinstance(turn.value, Round) and chat.tool_format.takes_text):
            is_recent = is_round and index > last_question
            if part := chat.fixed_part(turn.value, keeps_tokens=is_recent or not drops_reasoning):
                fixed[index] = part
    return fixed


def fill(chat: EmbeddedFormat, draft: Draft, texts: Sequence[str], values: Variables, count: int | None = None) -> str:
    """Render the template with these texts of the turns, or of the first `count` of them."""
    others = iter(texts[2 * len(draft.turns) :])

    def fill_special(name: str) -> str:
        return next(others) if name in draft.special else name

    tools = _map_texts(fill_special, fill_special, [tool.openai for tool in draft.conversation.tools])
    messages = []
    for index, turn in enumerate(draft.turns[:count]):
        fields = _fields(turn, index in draft.written, lambda _: next(others), fill_special)
        if chat.tool_format.text_arguments:
            for call in fields.get("tool_calls", ()):
                call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
        reasoning, text = texts[index + len(draft.turns)], texts[index]
        messages.append({**fields, **write_turn(turn.role, text, reasoning, draft.markup)})
    values = {**values, **tool_variables(tools), **chat.variables}
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
        self._known = {(draft.role_before(len(draft.turns)), draft.conversation.thinks): final}

    def before_reply(self, count: int, thinks: bool | None) -> str:
        """Text that follows the first `count` turns, or would follow if there were no others."""
        key = self._draft.role_before(count), thinks
        if key not in self._known:
            self._known[key] = self._rendered(count, thinks)
        if thinks is False and not self._chat.is_fixed:
            return self._chat.closed(self._known[key])
        return self._known[key]

    def _rendered(self, count: int, thinks: bool | None) -> str:
        chat, draft = self._chat, self._draft
        role, total = draft.role_before(count), len(draft.turns)
        known = self._known.get((role, draft.conversation.thinks))
        if known is not None and not chat.switch:
            return known
        if role == draft.role_before(total):
            count = total
        rendered = fill(chat, draft, draft.placed, chat.values(draft.conversation, thinks), count)
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


def _map_texts(change: Callable[[str], Any], change_key: Callable[[str], Any], value: Any) -> Any:
    """A JSON value with changed texts and keys. A key comes before its value."""
    match value:
        case str():
            return change(value)
        case Mapping():
            return {change_key(key): _map_texts(change, change_key, item) for key, item in value.items()}
        case list() | tuple():
            return [_map_texts(change, change_key, item) for item in value]
    return value
