"""Controls of a reply, one of which ends its reasoning, and the detector of where its answer starts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.declaration import TokenBias
from cerebrum_cli.core.errors import UsageError
from cerebrum_cli.core.settings import CHOSEN, RECOMMENDED, Settings
from cerebrum_cli.core.text import partial_marker_length
from cerebrum_cli.engine.control import AnswerStartFactory, ControlFactory, Force, LoopCheck, Stage, Upcoming
from cerebrum_cli.engine.sequence import continuation
from cerebrum_cli.formats.plain import EMBEDDED, PromptFormat
from cerebrum_cli.formats.thinking import ReasoningMarkup, closing_sentence
from cerebrum_cli.replies.reply import ReplyRequest
from cerebrum_cli.replies.reply_stream import ReplyChannels

if TYPE_CHECKING:
    from cerebrum_cli.engine.backend import Vocabulary

SENTENCE_TOKENS = 16  # to wait for the end of a sentence
SOFT_END = 0.8  # of a limit, from where the end of the reasoning becomes likelier
MAX_BIAS = 20.0  # of the logit of its end, at the limit; it grows linearly
OPENING_TOKENS = 8  # within which a reply has mostly begun to reason, or to answer
MAX_BLANKS = 4  # tokens of white space before an answer under a grammar

# Patterns are compiled when they are first searched for: few replies need them.
_SENTENCE_END = r"""(?x) (?: \n | [。！？] | [^\W\d_][.!?] | [^\w\s][.!?] | \d[!?] ) ["')\]”’*]*+ \s*+ \Z"""
_NUMBER_END = r"(?<![\d.])\d++\.[*)]*+\s*+\Z"  # of a sentence, unless it is a decimal point
_LIST_ITEM = r"(?:\A|\n)\s*+\d++\.\s*+\Z"
_DECIMAL = r"\d\.\d"
_TAIL = 64  # characters in which a sentence may end


class AnswerNow:
    """Whether the answer is requested, which a signal handler may set; and whether a budget looks at it."""

    is_requested = False
    is_watched = False

    def request(self) -> None:
        self.is_requested = True


@dataclass(eq=False)
class ReplyControls:
    """Creates the controls of replies in a format. What they force is tokenized when it is first needed.

    Architectures have a sentence before the end of reasoning that is ended early.
    """

    vocabulary: Vocabulary
    format: PromptFormat
    architecture: str = ""

    def create(
        self, request: ReplyRequest, channels: ReplyChannels, answer_now: AnswerNow
    ) -> tuple[tuple[ControlFactory, ...], AnswerStartFactory | None]:
        """The controls of a reply, and the detector of where its answer starts."""
        settings, answer_start = request.settings, self._answer_start(request, channels)
        if request.grammar and answer_start is None:  # it applies from the first token, and nothing may be forced
            return (), None
        controls: list[ControlFactory] = []
        may_repeat = request.ignore_eos or self.format.verbatim  # text of a given length, or without a format
        if settings.loop_check and not may_repeat:
            controls.append(LoopCheck)
        limit = settings.reasoning_limit
        if limit == 0 and (self.format.has_switch or self.format.is_servers):
            limit = None
        may_reason = self.format.has_switch or bool(self.own_markups(request.conversation.system_prompt))
        can_hurry = request.stream and may_reason
        if limit is not None or can_hurry:
            answer_now.is_watched = can_hurry
            watched = answer_now if can_hurry else None
            prefix_length = len(request.prefix_tokens)
            controls.append(
                partial(ReasoningBudget, limit, self._endings, channels, watched, prefix_length, self._sentence)
            )
        return tuple(controls), answer_start

    def _answer_start(self, request: ReplyRequest, channels: ReplyChannels) -> AnswerStartFactory | None:
        """None without a grammar and stop strings, which apply to the answer, and for replies that are all answer."""
        if request.grammar is None and not request.settings.stop:
            return None
        markups = self.own_markups(request.conversation.system_prompt)
        is_off = request.settings.thinks is False and self.format.has_switch
        if channels.open_markup is None and (is_off or not markups):
            return None
        markers = (*(markup.header for markup in markups if markup.header), *(markup.open for markup in markups))
        tokens = {marker: self.vocabulary.special_token_ids([marker]) for marker in markers}
        return partial(AnswerDetector, replace(channels, markups=markups), tokens, self._endings)

    def require_marked_reasoning(self, settings: Settings, system_prompt: str | None) -> None:
        """Raise UsageError for a limit of reasoning that nothing marks, and an effort that a template does not support.

        What the model's row recommends is ignored instead: the user may have chosen a format without reasoning. Markup
        of reasoning as a stop string is an error too.
        """
        if self.format.is_servers:
            require_servable(settings)
            return
        markups = self.own_markups(system_prompt)
        texts = {text for markup in markups for text in (markup.open, markup.close)}
        if settings.thinks is not False and (ignored := texts.intersection(map(str.strip, settings.stop))):
            raise UsageError(
                f"invalid stop: {ignored.pop()!r}; stop strings apply to the answer, not to reasoning",
                "omit it; --think limits reasoning or turns it off",
            )
        if settings.origin("think") in RECOMMENDED:
            return
        if settings.effort and self.format.name == EMBEDDED and settings.effort not in self.format.efforts:
            known = ", ".join(("on", "off", "a number of tokens", *self.format.efforts))
            raise UsageError(f"this model does not support the effort {settings.think!r}", f"it supports: {known}")
        if settings.reasoning_limit is not None and not (self.format.has_switch or markups):
            raise UsageError(
                f"think={settings.think} has no effect: this model does not mark its reasoning",
                "omit it, or set it to on; --max-tokens limits the whole reply",
            )

    def own_markups(self, system_prompt: str | None) -> tuple[ReasoningMarkup, ...]:
        """The markup that this model may use: its format's, its vocabulary's, and what the system prompt asks for."""
        if self.format.is_servers:  # it knows itself where they are
            return ()
        markups, asked = self.format.markups, system_prompt or ""
        return tuple(markup for markup in markups if markup in self._known_markups or markup.open in asked)

    @cached_property
    def _known_markups(self) -> tuple[ReasoningMarkup, ...]:
        tokens, mentions = self.vocabulary.special_token_ids, self.format.mentions
        return tuple(markup for markup in self.format.markups if mentions(markup) or tokens([markup.open]))

    @cached_property
    def _endings(self) -> Mapping[str, tuple[int, ...]]:
        return plan_endings(self.vocabulary, self.format.markups, self._sentence)

    @property
    def _sentence(self) -> str:
        return closing_sentence(self.architecture)


class ReasoningBudget:
    """Ends reasoning that is longer than `limit` tokens: at the end of a sentence, or soon after; None is no limit.

    From SOFT_END of the limit on, its end becomes likelier after each sentence, so that most end by themselves. It is
    ended without delay if the user asks for that. Several blocks of reasoning share one budget: once it is used up,
    another one is ended where it begins. `endings` are the tokens of each text that ends reasoning, where a `sentence`
    may precede. A reply that continues another begins with the prefix of `channels`, of `prefix_length` tokens.
    """

    def __init__(
        self,
        limit: int | None,
        endings: Mapping[str, tuple[int, ...]],
        channels: ReplyChannels,
        answer_now: AnswerNow | None = None,
        prefix_length: int = 0,
        sentence: str = "",
    ) -> None:
        self._limit = limit
        self._sentence = sentence
        self._endings = endings
        self._answer_now = answer_now
        self._splitter = channels.splitter()
        self._tail = ""  # the last characters of the text
        self._has_decimals = False
        self._count = 0  # tokens of the reply
        self._is_used_up = limit == 0
        self._has_forced = False
        self._read(channels.prefix_text)
        self._used = prefix_length if self._splitter.open_markup else 0

    @property
    def horizon(self) -> int | None:
        if self._limit is None or self._has_forced or self._splitter.is_in_answer:
            return None
        opening = 0 if self._splitter.open_markup else OPENING_TOKENS
        return self._count + opening + max(1, self._limit + SENTENCE_TOKENS - self._used)

    def feed(self, tokens: Sequence[int], text: str) -> None:
        if not self._splitter.is_in_answer:
            self._count += len(tokens)
            self._used += 0 if self._splitter.open_markup is None else len(tokens)
            self._read(text)
            self._splitter.feed(text)

    def intervene(self) -> Force | TokenBias | None:
        markup, tail = self._splitter.open_markup, self._tail
        if markup is None or partial_marker_length(tail, (markup.close,)):
            return None
        if not self._is_due:
            excess = self._used / self._limit - SOFT_END if self._limit else 0.0
            if excess <= 0 or not self._is_at_sentence_end:
                return None
            return TokenBias(self._endings[markup.close][0], MAX_BIAS * excess / (1 - SOFT_END))
        sentence = "" if self._is_used_up else self._sentence
        self._is_used_up = self._has_forced = True
        return Force(self._endings[markup.ending(tail, sentence)])

    def lets_pass(self, upcoming: Upcoming) -> int:
        splitter, markup = self._splitter, self._splitter.open_markup
        if splitter.is_in_answer:
            return len(upcoming.tokens)
        if markup is None or self._limit is None or self._is_due:
            return 0
        return min(self._limit - self._used - 1, upcoming.before(markup.close, splitter.held))

    @property
    def _is_due(self) -> bool:
        if self._is_used_up or (self._answer_now and self._answer_now.is_requested):
            return True
        late = -1 if self._limit is None else self._used - self._limit
        return late >= SENTENCE_TOKENS or (late >= 0 and self._is_at_sentence_end)

    def _read(self, text: str) -> None:
        text = self._tail + text
        self._tail = text[-_TAIL:]
        self._has_decimals = self._has_decimals or re.search(_DECIMAL, text) is not None

    @property
    def _is_at_sentence_end(self) -> bool:
        """Whether a sentence has just ended; behind a number, only in text without decimal points."""
        tail = self._tail
        if re.search(_SENTENCE_END, tail):
            return True
        return not self._has_decimals and re.search(_NUMBER_END, tail) is not None and not re.search(_LIST_ITEM, tail)


class AnswerDetector:
    """Finds where an answer starts, after the markup of reasoning and white space.

    `markers` are the texts that precede an answer or open reasoning, each with its special tokens. Such a token is
    never part of an answer. A marker without any is spelled out, and an answer may begin with the same characters.
    `endings` are the tokens of each text that ends reasoning.
    """

    def __init__(
        self,
        channels: ReplyChannels,
        markers: Mapping[str, frozenset[int]],
        endings: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        # A footer is behind where an answer starts.
        markups = tuple(replace(markup, footer="") for markup in channels.markups)
        self._splitter = replace(channels, markups=markups, prefix_text="").splitter()
        self._markers, self._endings = markers, endings or {}
        self._blanks = 0  # tokens of white space since the start of the reply or the end of its reasoning
        self._overhang = ""  # of the answer, in the token that ended what precedes it, or in the prefix
        self._has_special = False  # in the text that is held
        self._has_started = False
        self.feed((), channels.prefix_text)

    @property
    def stage(self) -> Stage:
        if self._has_started or self._splitter.is_in_answer:
            return "answer"
        return "thinking" if self._splitter.open_markup else "undecided"

    @property
    def closing(self) -> tuple[int, ...]:
        markup = self._splitter.open_markup
        return self._endings.get(markup.ending(), ()) if markup else ()

    @property
    def held(self) -> str:
        return "" if self._has_special else self._overhang or self._marker

    @property
    def rest(self) -> str:
        started = self._marker
        return next((marker[len(started) :] for marker in self._markers if started and marker.startswith(started)), "")

    @property
    def _marker(self) -> str:
        return self._splitter.held.lstrip() if self.stage == "undecided" else ""

    def feed(self, tokens: Sequence[int], text: str) -> None:
        if self._has_started:
            return
        parts = self._splitter.feed(text)
        self._overhang += "".join(part for channel, part in parts if channel == "answer")
        started = self._marker
        self._has_special = bool(started) and (self._has_special or any(map(self._is_special, tokens)))
        self._blanks = self._blanks + 1 if text.isspace() and self.stage == "undecided" and not started else 0

    def passes(self, token: int, text: str) -> bool:
        started = self._marker
        line = (started + text).lstrip()
        if not line:
            return text.isspace() and self._blanks < MAX_BLANKS
        if not text:
            return False
        any_marker = started or self._is_special(token)
        return any(
            marker.startswith(line) or (line.startswith(marker) and not line[len(marker) :].strip())
            for marker, tokens in self._markers.items()
            if any_marker or not tokens
        )

    def begin(self) -> None:
        self._has_started = True

    def lets_pass(self, upcoming: Upcoming) -> int:
        markup = self._splitter.open_markup
        if self.stage == "answer":
            return len(upcoming.tokens)
        return upcoming.before(markup.close, self._splitter.held) if markup else 0

    def _is_special(self, token: int) -> bool:
        return any(token in tokens for tokens in self._markers.values())


def require_servable(settings: Settings) -> None:
    impossible = [key for key in ("format", "chat_template") if settings.origin(key) in CHOSEN]
    if settings.reasoning_limit:
        impossible.append(f"think={settings.think}")
    if settings.logit_bias:
        impossible.append("logit_bias")
    if impossible:
        raise UsageError(
            f"{impossible[0]} is impossible through chat completions: the server builds the prompt and sends no ids",
            "omit it, or use llama-server",
        )


def plan_endings(
    vocabulary: Vocabulary, markups: tuple[ReasoningMarkup, ...], sentence: str = ""
) -> dict[str, tuple[int, ...]]:
    """Tokens of the texts that end reasoning, after any text, with a sentence or without one, and of the markup."""
    texts = {
        markup.ending(markup.open + breaks, last)
        for markup in markups
        for breaks in ("", "\n", "\n\n")
        for last in ("", sentence)
    }
    texts |= {markup.close for markup in markups}
    return {text: continuation(vocabulary, (Text(text, True),)) for text in texts}
