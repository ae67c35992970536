"""The prompts of a model: conversations as text and as tokens, and the requests for replies to them."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Conversation, Message, PromptParts, Text, shows
from cerebrum_cli.core.errors import SPLIT, FormatError, PromptTooLong, UsageError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.core.token_ids import NO_TOKEN, TokenIds, TokenPredicate, common_prefix
from cerebrum_cli.core.vocabulary import detokenize, least_tokens
from cerebrum_cli.engine.engine import Engine
from cerebrum_cli.engine.requests import OPENING_TOKENS, Request
from cerebrum_cli.formats.choice import SERVER, ChosenFormat
from cerebrum_cli.formats.prompt_format import PromptFormat
from cerebrum_cli.formats.reply_text import markup_tokens
from cerebrum_cli.replies.reply import larger_context
from cerebrum_cli.replies.reply_controls import AnswerNow, RepeatedCall, ReplyControls

TRIAL = Conversation(system_prompt="4567890").user("1234567")  # digits, which no template changes
MIN_REPLY, CONTEXT_STEP = 512, 1024  # tokens of a context that is recommended for a long prompt: room, and rounding
NO_TOOLS = NoticeEvent("the prompt format does not support functions", "they are listed in the system prompt instead")
NO_REASONING = NoticeEvent("the prompt format has no reasoning", "the reasoning that begins the reply is left out")
NO_SYSTEM = NoticeEvent("the chat template has no system prompt", "it is put before the first question instead")


@dataclass(eq=False)
class Prompts:
    """The prompts of a model whose vocabulary is loaded, in the prompt format that was chosen for it."""

    engine: Engine
    chosen_format: ChosenFormat
    trained_context: int
    is_remote: bool
    _rendered: tuple[Conversation, PromptParts] | None = field(default=None, init=False)  # the last

    @cached_property
    def format(self) -> PromptFormat:
        chosen = self.chosen_format.build(self.engine.vocabulary, self._largest_context)
        try:  # a template that rejects both, or leaves out the question, is one error of a whole run
            chosen.render(TRIAL)
        except FormatError:
            chosen.render(replace(TRIAL, system_prompt=None))
        return chosen

    @cached_property
    def controls(self) -> ReplyControls:
        return ReplyControls(self.engine.vocabulary, self.format)

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

    def request(self, asked: Ask, answer_now: AnswerNow) -> Request:
        """What the engine gets for a question. Raises PromptTooLong as `parts` does, FormatError, UsageError."""
        settings, conversation = asked.settings, asked.conversation
        prompt = self.parts(conversation)
        tokens = (*self.engine.vocabulary.tokenize(prompt), *asked.prefix_tokens)
        asked, prompt_end = self._beginning(asked, prompt, tokens)
        prefix = asked.prefix_tokens
        prefix_text = self._text_of(prefix) if prefix else ""
        rules, controls = self.controls.create(asked, prompt_end, prefix_text, answer_now)
        if conversation.tools:
            controls = (*controls, partial(RepeatedCall, conversation, self.format, self.engine.vocabulary))
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

    def _beginning(self, asked: Ask, prompt: PromptParts, tokens: TokenIds) -> tuple[Ask, str]:
        """What is asked, with the tokens of its `prefill`, which end its prompt; and the markup before the reply."""
        hint, markup = "omit the beginning of the reply", final_markup(prompt)
        beginning = asked.conversation.prefill
        if beginning is None or self.format.verbatim or (markup and not beginning.content.strip()):
            return asked, markup
        if self.format.is_servers and not (beginning.content or beginning.reasoning):
            return asked, ""  # the server gets the calls so far, and their results, as messages
        if asked.grammar is not None:
            raise UsageError("a schema or grammar cannot apply to a reply that has begun", hint)
        if self.format.is_servers:
            raise UsageError("a server that builds the prompt cannot continue a reply", hint)
        plain = replace(asked.conversation, prefill=None)
        prompts = plain, replace(plain, thinks=True)  # as it is rendered for a reply that begins with reasoning
        shared = max(common_prefix(tokens, self.tokenize(prompt)) for prompt in prompts)
        return replace(asked, prefix_tokens=tokens[shared:]), self._text_of(tokens[:shared])

    def _sampling(self, asked: Ask) -> SamplingParams:
        """Sampling parameters, with the format's stop strings before the user's."""
        if asked.ignore_eos or not self.format.stop:
            return asked.settings
        return replace(asked.settings, stop=(*self.format.stop, *asked.settings.stop))

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

    def parts(self, conversation: Conversation) -> PromptParts:
        """Render a conversation. Raises PromptTooLong if its prompt is too long to be tokenized in seconds."""
        if conversation.tools and self.format.verbatim:
            raise UsageError("functions need a prompt format", "omit --raw")
        require_no_pictures(conversation, self.chosen_format)
        prompt = self._render(conversation)
        if least := least_tokens(self.engine.vocabulary, self._largest_context, prompt):
            raise self._too_long(least, "at least ")
        return prompt

    def _render(self, conversation: Conversation) -> PromptParts:
        """Render a conversation, unless it was the last that was rendered."""
        if self._rendered is None or self._rendered[0] != conversation:
            self._rendered = conversation, self.format.render(conversation)
        return self._rendered[1]

    def notices(self, conversation: Conversation) -> Iterator[NoticeEvent]:
        """What the prompt of a conversation lacks."""
        if conversation.system_prompt and not self.format.has_system:
            yield NO_SYSTEM
        if conversation.tools and not (self.format.tool_format.has_place or self.format.is_servers):
            yield NO_TOOLS
        begun = conversation.prefill
        if begun and begun.tokens is None and begun.reasoning and not shows(self.parts(conversation), begun.reasoning):
            yield NO_REASONING

    def tokenize(self, conversation: Conversation) -> TokenIds:
        """Tokenize the prompt of a conversation. Raises PromptTooLong if it is too long to be tokenized in seconds."""
        return self.engine.vocabulary.tokenize(self.parts(conversation))

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

    def count(self, conversation: Conversation) -> int:
        """Number of tokens in the prompt of a conversation; the least possible number of one that cannot fit."""
        vocabulary = self.engine.vocabulary
        parts = self._render(conversation)
        return least_tokens(vocabulary, self.engine.context_size, parts) or len(vocabulary.tokenize(parts))

    def text(self, conversation: Conversation) -> str:
        """The text of a conversation's prompt, without BOS unless the format writes it. Raises PromptTooLong."""
        texts = []
        for part in self.parts(conversation):
            if isinstance(part, Text):
                texts.append(part.value)
            else:
                texts.append(self.detokenize(part.ids))
        return "".join(texts)

    def detokenize(self, ids: Sequence[int]) -> str:
        return detokenize(self.engine.vocabulary, ids)

    @property
    def prefix_tokens(self) -> TokenIds:
        """The token that a text without a context is scored after: BOS, or EOS without it; empty without both."""
        vocabulary = self.engine.vocabulary
        text = vocabulary.special_token_text("bos") or vocabulary.special_token_text("eos")
        return tuple(vocabulary.special_token_ids([text]))

    def require_room(self, tokens: int) -> None:
        """Raise PromptTooLong if a prompt of this many tokens leaves no room for a reply."""
        if tokens >= self.engine.context_size:
            raise self._too_long(tokens)

    def _too_long(self, tokens: int, least: str = "") -> PromptTooLong:
        size, trained = self.engine.context_size, self.trained_context
        if tokens + MIN_REPLY > trained:
            advice = SPLIT
        elif self.is_remote:
            advice = f", or {larger_context(is_remote=True)}"
        else:
            advice = f", or use --ctx {min(trained, tokens + MIN_REPLY + -(tokens + MIN_REPLY) % CONTEXT_STEP)}"
        if size < trained:
            advice += f" (trained context: {trained})"
        return PromptTooLong.for_context(f"{least}{tokens}", size, advice)

    @property
    def _largest_context(self) -> int:
        return max(self.engine.context_size, self.trained_context)


def require_no_pictures(conversation: Conversation, chosen: ChosenFormat) -> None:
    """Raise UsageError for pictures, unless a server gets the conversation itself."""
    if conversation.pictures and chosen.name != SERVER:
        hint = "add --endpoint URL of a server of chat completions, such as Ollama, whose model sees them"
        raise UsageError("this model cannot see pictures", hint)


def final_markup(prompt: PromptParts) -> str:
    """The template's own text at the end of a prompt."""
    last = prompt[-1] if prompt else None
    return last.value if isinstance(last, Text) and last.trusted else ""
