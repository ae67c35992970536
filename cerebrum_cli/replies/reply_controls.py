"""The rules of a reply's text, and its controls, one of which ends its reasoning."""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from typing import TYPE_CHECKING, NamedTuple

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Conversation, Text
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.events import FinishReason, NoticeEvent
from cerebrum_cli.core.sampling import TokenBias
from cerebrum_cli.core.settings import CHOSEN, RECOMMENDED, Settings
from cerebrum_cli.core.text import partial_marker_length
from cerebrum_cli.core.token_ids import Tokenize
from cerebrum_cli.core.tools import Round, ToolCalls
from cerebrum_cli.core.vocabulary import continuation, detokenize
from cerebrum_cli.engine.requests import ControlFactory, Force
from cerebrum_cli.formats.prompt_format import PromptFormat, ReasoningMarkup
from cerebrum_cli.formats.reply_text import ReplyRules, ReplyText

if TYPE_CHECKING:
    from cerebrum_cli.core.vocabulary import Vocabulary

SENTENCE_TOKENS = 16  # to wait for the end of a sentence
SOFT_END = 0.8  # of a limit, from where the end of the reasoning becomes likelier
MAX_BIAS = 20.0  # of the logit of its end, at the limit; it grows linearly
CALL_ENDS = frozenset(b"})]>")  # one of which is in the last token of a call

# Compiled when it is first searched for: few replies need it. A point behind a number may be a decimal point.
_SENTENCE_END = r"""(?x) (?: \n | [。！？] | [^\W\d_][.!?] | [^\w\s][.!?] | \d[!?] ) ["')\]”’*]*+ \s*+ \Z"""


class AnswerNow:
    """Whether the answer is requested, which a signal handler may set; and whether a budget looks at it."""

    is_requested = False
    is_watched = False

    def request(self) -> None:
        self.is_requested = True


class ReasoningMode(NamedTuple):
    """How replies to a prompt may reason: by the model's `own` markup, after markup that the prompt has `opened`.

    `limit` is the number of tokens after which reasoning is ended; None if nothing has to end it.
    """

    own: tuple[ReasoningMarkup, ...]
    opened: ReasoningMarkup | None
    limit: int | None


@dataclass(eq=False)
class ReplyControls:
    """Creates the controls of replies in a format."""

    vocabulary: Vocabulary
    format: PromptFormat

    def mode(self, settings: Settings, system_prompt: str | None, prompt_end: str = "") -> ReasoningMode:
        """The mode of replies with these settings, by the end of their prompt, where a template may open reasoning."""
        if not self.format.markups:
            return ReasoningMode((), None, None)
        own, opened = self.format.own_markups(system_prompt), self.format.open_markup(prompt_end)
        if opened is None and settings.thinks is False and self.format.has_switch:
            own = ()
        limit = settings.reasoning_limit
        if limit == 0 and (self.format.has_switch or self.format.is_servers):  # which turn reasoning off
            limit = None
        return ReasoningMode(own, opened, limit)

    def create(
        self, asked: Ask, prompt_end: str, prefix: str, answer_now: AnswerNow
    ) -> tuple[ReplyRules, tuple[ControlFactory, ...]]:
        """How a reply is read, which follows the end of a prompt and a `prefix` of its text, and its controls."""
        mode = self.mode(asked.settings, asked.conversation.system_prompt, prompt_end)
        rules = self._rules(asked, mode, prefix)
        if rules.plain_answer and rules.stops_anywhere:  # the grammar applies from the first token
            return rules, ()
        if not (asked.stream and (self.format.has_switch or mode.own)):
            if mode.limit is None:
                return rules, ()
            answer_now = AnswerNow()  # nobody asks for it
        answer_now.is_watched = True
        budget = partial(ReasoningBudget, mode.limit, answer_now, self.format.closing_sentence)
        return replace(rules, endings=self._endings), (budget,)

    def _rules(self, asked: Ask, mode: ReasoningMode, prefix: str) -> ReplyRules:
        """How the text of a reply is read. Where the model may not reason, grammar and stop strings apply to all of it.

        Without a grammar, markup that the model is not known to have is recognized, too.
        """
        has_grammar = asked.grammar is not None
        rules = ReplyRules(
            markups=mode.own if has_grammar and not self.format.is_servers else self.format.markups,
            opened=mode.opened,
            known_markups=(*self.format.known_markups, *mode.own),
            keeps_unclosed=has_grammar or bool(asked.conversation.tools),
            prefix=prefix,
            prefix_tokens=len(asked.prefix_tokens),
            trims=not self.format.verbatim,
            plain_answer=has_grammar,
            questions=tuple(message.content for message in asked.conversation.messages if message.role == "user"),
        )
        may_reason = mode.opened or mode.own
        if not (may_reason and (has_grammar or asked.settings.stop)):
            return rules
        markers = [markup.header for markup in mode.own if markup.header]
        markers += [markup.open for markup in mode.own]
        tokens = {marker: self.vocabulary.special_token_ids([marker]) for marker in markers}
        return replace(rules, stops_anywhere=False, markers=tokens, endings=self._endings)

    def check(self, settings: Settings, system_prompt: str | None) -> NoticeEvent | None:
        """Raise UsageError for a limit of reasoning in a format without it, and an effort unknown to a template.

        What the model's row recommends is ignored instead: the user may have chosen a format without reasoning. Markup
        of reasoning as a stop string is an error too. If the model cannot be told to reason, or how hard, as the user
        has chosen, return a notice of that.
        """
        if self.format.is_servers:
            require_servable(settings)
            return None
        own = self.mode(settings, system_prompt).own
        if settings.thinks is not False:
            require_stop_in_answer(settings.stop, own)
        if settings.think is None or settings.origin("think") in RECOMMENDED:
            return None
        if settings.effort:
            return self._check_effort(settings.effort, settings.origin("think"))
        if settings.reasoning_limit and not self.format.markups:
            raise UsageError(
                f"think={settings.think} has no effect: the format {self.format.name} has no reasoning",
                "omit it; max_tokens limits the whole reply",
            )
        if settings.think == "off" or self.format.has_switch or own or not self.format.markups:
            return None
        hint = "a limit still applies to any reasoning that the reply marks"
        return NoticeEvent(f"think={settings.think}: this model has no thinking switch", hint)

    def _check_effort(self, effort: str, origin: str) -> NoticeEvent | None:
        efforts = self.format.efforts
        if effort in efforts:
            return None
        if efforts or self.format.has_switch:
            hint = f"it supports: {', '.join(('on', 'off', 'a number of tokens', *efforts))}"
            problem = f"this model does not support the effort {effort!r}"
            if origin.endswith("reasoning_effort"):  # of a request to any server
                return NoticeEvent(problem, hint)
            raise UsageError(problem, hint)
        if not self.format.markups:
            return None
        return NoticeEvent(f"think={effort}: this model has no levels of thinking", "omit it")

    @cached_property
    def _endings(self) -> Tokenize:
        return endings(self.vocabulary)


class ReasoningBudget:
    """Ends reasoning that is longer than `limit` tokens: at the end of a sentence, or soon after; None is no limit.

    From SOFT_END of the limit on, its end becomes likelier after each sentence, so that most end by themselves. It is
    ended without delay if the user asks for that. Several blocks of reasoning share one budget: once it is used up,
    another one is ended where it begins. A `sentence` may precede the end.
    """

    def __init__(self, limit: int | None, answer_now: AnswerNow, sentence: str = "") -> None:
        self._limit = limit
        self._answer_now = answer_now
        self._sentence = sentence
        self._is_used_up = limit == 0

    def intervene(self, text: ReplyText, tokens: array[int]) -> Force | TokenBias | None:  # noqa: ARG002
        markup, endings = text.open_markup, text.rules.endings
        if markup is None or endings is None or partial_marker_length(text.tail, (markup.close,)):
            return None
        if self._is_due(text):
            sentence = "" if self._is_used_up else self._sentence
            self._is_used_up = True
            return Force(endings(markup.ending(text.tail, sentence)))
        if self._limit is None:
            return None
        excess = text.reasoning_tokens / self._limit - SOFT_END
        if excess <= 0 or not re.search(_SENTENCE_END, text.tail):
            return None
        return TokenBias(endings(markup.close)[0], MAX_BIAS * excess / (1 - SOFT_END))

    def _is_due(self, text: ReplyText) -> bool:
        if self._is_used_up or self._answer_now.is_requested:
            return True
        if self._limit is None or text.reasoning_tokens < self._limit:
            return False
        is_overdue = text.reasoning_tokens >= self._limit + SENTENCE_TOKENS
        return is_overdue or re.search(_SENTENCE_END, text.tail) is not None


@dataclass(frozen=True, slots=True, eq=False)
class RepeatedCall:
    """Ends a round at a call that was made before: small models go on to repeat it without end."""

    conversation: Conversation
    format: PromptFormat
    vocabulary: Vocabulary

    def intervene(self, text: ReplyText, tokens: array[int]) -> FinishReason | None:
        if text.open_markup or CALL_ENDS.isdisjoint(self.vocabulary.piece(tokens[-1], special=True)):
            return None
        answer = detokenize(self.vocabulary, tokens)
        for markup in text.rules.markups:
            answer = answer.rpartition(markup.close)[2]
        calls = self.format.tool_format.read(answer, self.conversation.tools).calls
        begun = self.conversation.prefill
        return "stop" if len(new_calls(calls, begun.rounds if begun else ())) < len(calls) else None


def new_calls(calls: ToolCalls, rounds: Iterable[Round]) -> ToolCalls:
    """The calls before the first one that was made before, in these rounds or beside it."""
    made = [(call.name, call.arguments) for part in rounds for call in part.calls]
    for number, call in enumerate(calls):
        if (call.name, call.arguments) in made:
            return calls[:number]
        made.append((call.name, call.arguments))
    return calls


def require_servable(settings: Settings) -> None:
    if settings.origin("format") in CHOSEN:
        impossible = "format"
    elif settings.reasoning_limit:
        impossible = f"think={settings.think}"
    else:
        return
    raise UsageError(
        f"{impossible} does not work through chat completions: the server builds the prompt and sends no IDs",
        "omit it, or use llama-server",
    )


def require_stop_in_answer(stop: Sequence[str], markups: Sequence[ReasoningMarkup]) -> None:
    for text in stop:
        if any(text.strip() in (markup.open, markup.close) for markup in markups):
            raise UsageError(
                f"invalid stop: {text.strip()!r}; stop strings apply to the answer, not to reasoning",
                "omit it; --think limits reasoning or turns it off",
            )


def endings(vocabulary: Vocabulary) -> Tokenize:
    """Cached tokenizer of texts that end reasoning."""
    return cache(lambda text: continuation(vocabulary, (Text(text, True),)))
