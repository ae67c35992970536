"""A loaded model: conversations in, replies out."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from typing import Self

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Conversation, Message, PromptParts, Text
from cerebrum_cli.core.errors import EngineError, FormatError, PromptTooLong, UsageError
from cerebrum_cli.core.events import (
    Event,
    Events,
    FinishEvent,
    LoadEvent,
    NoticeEvent,
    SequenceId,
    Timings,
    TokenEvent,
    raise_refusals,
    with_notices_behind,
)
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.core.settings import Settings, reply_room
from cerebrum_cli.core.token_ids import NO_TOKEN, TokenIds, TokenPredicate, common_prefix
from cerebrum_cli.core.vocabulary import detokenize, least_tokens, resolve_biases
from cerebrum_cli.engine.engine import Engine
from cerebrum_cli.engine.requests import OPENING_TOKENS, Request
from cerebrum_cli.formats.choice import SERVER, ChosenFormat
from cerebrum_cli.formats.prompt_format import PromptFormat
from cerebrum_cli.formats.reply_text import markup_tokens
from cerebrum_cli.library.installed import InstalledModel
from cerebrum_cli.replies.reply import LONG_PROMPT, Reply
from cerebrum_cli.replies.reply_controls import AnswerNow, ReplyControls
from cerebrum_cli.replies.source import ModelSource

TRIAL = Conversation(system_prompt="4567890").user("1234567")  # digits, which no template changes
GROWTH_STEP = 256  # tokens that llama.cpp rounds contexts up to
MIN_CACHED_TOKENS = 64  # fewer are evaluated as fast as they are read from disk
NO_TOOLS = NoticeEvent("the prompt format does not support functions", "they are listed in the system prompt instead")
NO_SYSTEM = NoticeEvent("the chat template has no system prompt", "it is put before the first question instead")


@dataclass(eq=False)
class LoadedModel:
    """A model that is loading or loaded: its prompt format, its vocabulary and its engine.

    Calls other than `load`, `reply_events`, `preview` and `cancel` need the model, or its vocabulary, to be loaded.
    With `answer_now`, the reasoning of the reply that is being generated can be ended.
    """

    source: ModelSource
    engine: Engine
    chosen_format: ChosenFormat
    answer_now: AnswerNow = field(default_factory=AnswerNow, init=False)
    _notices: dict[NoticeEvent, bool] = field(default_factory=dict, init=False)  # whether it was taken
    _timings: list[Timings] = field(default_factory=list, init=False)  # of single replies

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Cancel what is running, free the model, and record how fast it was."""
        self.engine.close()
        if self._timings and not self.is_remote:
            self.source.installation.machine.record_replies(self.model.sizes, self._timings)

    @property
    def model(self) -> InstalledModel:
        return self.source.model

    @property
    def format_name(self) -> str:
        return self.chosen_format.name

    @property
    def is_remote(self) -> bool:
        return self.source.servers is not None and not self.source.vocabulary_only

    @property
    def repacks(self) -> bool | None:
        """Whether weights were repacked for speed; None behind a server."""
        return self.engine.repacks

    @property
    def conditions(self) -> JsonDict:
        """The hardware and the options that replies depend on; none behind a server, and before there is a context."""
        return self.engine.conditions

    def reply_events(self, request: Ask) -> Events:
        """Load the model, and yield the events of a reply without tools. Raises PromptTooLong before any evaluation."""
        self._require_no_pictures(request.conversation)
        yield from self.load()
        self.answer_now = AnswerNow()
        try:
            prepared = self.prepare_reply(replace(request, stream=True))
        except PromptTooLong:
            yield from self.take_notices()  # they may name what is too long
            raise
        yield from self.take_notices()
        if request.conversation.prefill and not request.prefix_tokens:
            tokens, texts = prepared.beginning
            yield TokenEvent(SequenceId(0), "", tokens=tokens)
            for channel, text in texts:
                yield TokenEvent(SequenceId(0), text, channel)
        with closing(self.engine.complete([prepared])) as events:
            for event in with_notices_behind(raise_refusals(events)):
                if isinstance(event, FinishEvent):
                    self._timings.append(event.timings)
                yield event

    def prepare_reply(self, asked: Ask) -> Request:
        """What the engine gets for a question. Raises UsageError as `check_settings` does.

        Also PromptTooLong if no room is left for a reply, and FormatError if the format cannot render the conversation.
        """
        settings = asked.settings
        conversation = asked.conversation
        self.note(self.controls.check(settings, conversation.system_prompt))
        prompt = self._render(conversation)
        tokens = (*self.engine.vocabulary.tokenize(prompt), *asked.prefix_tokens)
        prompt_end = final_markup(prompt)
        begun = conversation.prefill
        if begun and not self.format.verbatim and (begun.content.strip() or not prompt_end):
            asked, prompt_end = self._continuing(asked, tokens)
        self.make_room(len(tokens), settings)
        self._require_room(len(tokens))
        prefix = asked.prefix_tokens
        prefix_text = self._text_of(prefix) if prefix else ""
        rules, controls = self.controls.create(asked, prompt_end, prefix_text, self.answer_now)
        may_repeat = asked.ignore_eos or self.format.verbatim  # text of a given length, or without a format
        return Request(
            array("i", tokens),
            self._sampling(asked),
            asked,
            self.is_visible_in_calls if conversation.tools else self.is_visible,
            speculative=asked.stream and settings.speculative is not False,
            loop_check=settings.loop_check and not may_repeat,
            controls=controls,
            rules=rules,
            opening=self._opening_length(prompt, tokens) + len(prefix),
            as_messages=self.format.is_servers,
        )

    def _continuing(self, asked: Ask, tokens: TokenIds) -> tuple[Ask, str]:
        """A request to continue a reply, by its prompt with that beginning, and the text before the reply."""
        hint = "omit the beginning of the reply"
        beginning = asked.conversation.prefill
        if self.format.is_servers and not (beginning and beginning.content):
            return asked, ""  # the server gets the calls so far, and their results, as messages
        if asked.grammar is not None:
            raise UsageError("a schema or grammar cannot apply to a reply that has begun", hint)
        if self.format.is_servers:
            raise UsageError("a server that builds the prompt cannot continue a reply", hint)
        shared = common_prefix(tokens, self.tokenize(replace(asked.conversation, prefill=None)))
        return replace(asked, prefix_tokens=tokens[shared:]), self._text_of(tokens[:shared])

    def _sampling(self, asked: Ask) -> SamplingParams:
        stop = () if asked.ignore_eos else self.format.stop
        params = asked.settings.sampling(stop)
        if not params.logit_bias:
            return params
        return replace(params, logit_bias=resolve_biases(self.engine.vocabulary, params.logit_bias))

    def _opening_length(self, prompt: PromptParts, tokens: TokenIds) -> int:
        """Number of tokens in the template's markup at the end of a prompt, without BOS; a default without any."""
        end, opening = final_markup(prompt), tokens[-OPENING_TOKENS:]
        if end and len(prompt) > 1:
            opening = self._tokenize_markup((Text(end, True),))
        if opening[:1] == tokens[:1]:  # BOS precedes the markup as it precedes the prompt
            return len(opening) - 1
        return len(opening)

    @cached_property
    def _tokenize_markup(self) -> Callable[[tuple[Text]], TokenIds]:
        """Tokenizer of the template's own text; cached, since prompts end with few different ones."""
        return lru_cache(self.engine.vocabulary.tokenize)

    def _text_of(self, prefix: TokenIds) -> str:
        pieces = (self.engine.vocabulary.piece(token, special=self.is_visible(token)) for token in prefix)
        return b"".join(pieces).decode(errors="replace")

    def check_settings(self, settings: Settings, system_prompt: str | None = None) -> None:
        """Raise UsageError for settings that the loaded model cannot follow, with their system prompt or another.

        One that has no effect gets a notice.
        """
        resolve_biases(self.engine.vocabulary, settings.logit_bias)
        self.note(self.controls.check(settings, system_prompt or settings.system))

    def note(self, notice: NoticeEvent | None) -> None:
        """Report a notice, once, with the next event."""
        if notice:
            self._notices.setdefault(notice, False)

    @property
    def prefix_tokens(self) -> TokenIds:
        """The token that a text without a context is scored after: BOS, or EOS without it; empty without both."""
        vocabulary = self.engine.vocabulary
        text = vocabulary.special_token_text("bos") or vocabulary.special_token_text("eos")
        return tuple(vocabulary.special_token_ids([text]))

    def load(self) -> Iterator[Event]:
        """Load the model and yield the events of loading. Raises what made it fail, and FormatError."""
        for event in self.engine.load():
            if isinstance(event, LoadEvent):
                self.chosen_format.preload()  # while native code loads
            yield event
        _ = self.format

    def take_notices(self) -> Iterator[NoticeEvent]:
        """What the prompts so far lack, and settings without effect: each notice once."""
        for notice, is_taken in self._notices.items():
            self._notices[notice] = True
            if not is_taken:
                yield notice

    def count_tokens(self, conversation: Conversation) -> int:
        """Number of tokens in the prompt of a conversation; the least possible number of one that cannot fit."""
        vocabulary = self.engine.vocabulary
        parts = self.format.render(conversation)
        return least_tokens(vocabulary, self.engine.context_size, parts) or len(vocabulary.tokenize(parts))

    def tokenize(self, conversation: Conversation) -> TokenIds:
        """Tokenize the prompt of a conversation. Raises PromptTooLong if it is too long to be tokenized in seconds."""
        return self.engine.vocabulary.tokenize(self._render(conversation))

    def shared_prefix(self, conversation: Conversation) -> TokenIds:
        """The prompt tokens that do not depend on the first question; empty without a question."""
        if not conversation.messages:
            return ()
        other = "0"
        if conversation.messages[0].content.startswith(other):
            other = "a"
        tokens = self.tokenize(conversation)
        other_tokens = self.tokenize(replace(conversation, messages=(Message("user", other),)))
        return tokens[: common_prefix(tokens, other_tokens)]

    @property
    def context_size(self) -> int | None:
        """Tokens in the context of the loaded model; None before it is loaded."""
        return self.engine.context_size if self.engine.is_loaded else None

    def preview(self, conversation: Conversation, settings: Settings | None = None) -> tuple[str, TokenIds]:
        """Load the model, and return the exact prompt of a conversation, as text and token ids, without evaluating it.

        Special tokens are spelled out in the text. Raises UsageError for settings that a reply could not follow.
        """
        for _ in self.load():
            pass
        if settings:
            self.check_settings(settings, conversation.system_prompt)
        ids, text = self.tokenize(conversation), self.render(conversation)
        bos = self.engine.vocabulary.special_token_text("bos")
        if self.detokenize(ids[:1]) == bos and not text.startswith(bos):
            text = bos + text
        return text, ids

    def render(self, conversation: Conversation) -> str:
        """The text of a conversation's prompt, without BOS unless the format writes it. Raises PromptTooLong."""
        texts = []
        for part in self._render(conversation):
            if isinstance(part, Text):
                texts.append(part.value)
            else:
                texts.append(self.detokenize(part.ids))
        return "".join(texts)

    def detokenize(self, ids: Sequence[int]) -> str:
        return detokenize(self.engine.vocabulary, ids)

    @property
    def _largest_context(self) -> int:
        return max(self.engine.context_size, self.model.trained_context)

    @cached_property
    def format(self) -> PromptFormat:
        chosen = self.chosen_format.build(self.engine.vocabulary, self._largest_context)
        try:  # a template that rejects both, or leaves out the question, is one error of a whole run
            chosen.render(TRIAL)
        except FormatError:
            chosen.render(replace(TRIAL, system_prompt=None))
        return chosen

    @cached_property
    def is_visible(self) -> TokenPredicate:
        """Predicate of the special tokens that are visible in a reply."""
        if not self.format.markups:
            return NO_TOKEN
        return markup_tokens(self.engine.vocabulary, self.format.markup_texts)

    @cached_property
    def is_visible_in_calls(self) -> TokenPredicate:
        """Predicate of the special tokens that are visible in a reply that may call functions."""
        texts = self.format.markup_texts + self.format.tool_format.markers
        return markup_tokens(self.engine.vocabulary, texts)

    @cached_property
    def controls(self) -> ReplyControls:
        return ReplyControls(self.engine.vocabulary, self.format)

    def save_prompt_cache(
        self,
        conversation: Conversation | None = None,
        is_slow: Callable[[int], bool] | None = None,
        min_tokens: int | None = MIN_CACHED_TOKENS,
    ) -> NoticeEvent | None:
        """Save `min_tokens` or more evaluated tokens, of one conversation or all, and drop them from memory.

        The prefix that conversations with the same system prompt share is saved too if it `is_slow` to evaluate this
        many tokens. Return a notice if saving fails.
        """
        if not self.engine.is_loaded:
            conversation = None
        try:
            if min_tokens is not None:
                prompt = self.tokenize(conversation) if conversation else None
                self.engine.save_prompts(min_tokens, prompt)
            if is_slow and conversation:
                prefix = self.shared_prefix(conversation)
                if prefix and is_slow(len(prefix)):
                    self.engine.save_prefix(prefix)
        except FormatError:  # the conversation was never evaluated
            return None
        except EngineError as error:
            return NoticeEvent(f"prompt cache not saved: {error.message}", error.hint)
        return None

    def save_prompt_of(self, replies: Sequence[Reply], conversation: Conversation) -> NoticeEvent | None:
        """Save the prompt of replies, and the prefix that such prompts share, if they took long to evaluate."""
        return self.save_prompt_cache(
            conversation,
            is_slow=lambda tokens: any(reply.has_slow_prefill(tokens) for reply in replies),
            min_tokens=LONG_PROMPT if any(reply.has_long_prompt for reply in replies) else None,
        )

    def cancel(self) -> None:
        self.engine.cancel()

    def _render(self, conversation: Conversation) -> PromptParts:
        if conversation.tools and self.format.verbatim:
            raise UsageError("functions need a prompt format", "omit --raw")
        self._require_no_pictures(conversation)
        prompt = self.format.render(conversation)
        if conversation.system_prompt and not self.format.has_system:
            self.note(NO_SYSTEM)
        if conversation.tools and not (self.format.tool_format.has_place or self.format.is_servers):
            self.note(NO_TOOLS)
        if least := least_tokens(self.engine.vocabulary, self._largest_context, prompt):
            raise self._too_long(least, "at least ")
        return prompt

    def _require_no_pictures(self, conversation: Conversation) -> None:
        """Raise UsageError for pictures, unless a server gets the conversation itself."""
        if conversation.pictures and self.chosen_format.name != SERVER:
            hint = "add --endpoint URL of a server of chat completions, such as Ollama, whose model sees them"
            raise UsageError("this model gets tokens, and cannot see pictures", hint)

    def make_room(self, tokens: int, settings: Settings) -> None:
        """Double what a prompt needs, unless the context has room, or its size was chosen."""
        size, trained, source = self.engine.context_size, self.model.trained_context, self.source
        room = reply_room(size, settings.max_tokens)
        may_grow = source.caches_prompts and not source.settings.ctx
        if may_grow and not self.is_remote and tokens + room > size and tokens < trained:
            doubled = 2 * tokens
            self.grow(min(doubled + -doubled % GROWTH_STEP, trained))

    def grow(self, length: int) -> None:
        """Enlarge the context for the next prompt, as far as memory allows, with a notice."""
        size = self.engine.context_size
        self.save_prompt_cache()
        self.engine.grow(length)
        if self.engine.context_size > size:
            problem = f"increasing the context from {size} to {self.engine.context_size} tokens"
            self._notices[NoticeEvent(problem, "use --ctx N, or /set ctx N in a chat, for another size")] = False

    def _require_room(self, tokens: int) -> None:
        if tokens >= self.engine.context_size:
            raise self._too_long(tokens)

    def _too_long(self, tokens: int, least: str = "") -> PromptTooLong:
        size, trained, advice = self.engine.context_size, self.model.trained_context, ""
        if size < trained:
            advice = f" (trained context: {trained})"
        if tokens < trained:
            advice = f" or {self.engine.larger_context}{advice}"
        return PromptTooLong.for_context(f"{least}{tokens}", size, advice)


def final_markup(prompt: PromptParts) -> str:
    """The template's own text at the end of a prompt."""
    last = prompt[-1] if prompt else None
    return last.value if isinstance(last, Text) and last.trusted else ""
