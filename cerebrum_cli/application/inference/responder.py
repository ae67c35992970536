"""Conversations in, events out: the seam that commands, votes, batches and chats hold."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple, Protocol

from cerebrum_cli.core.conversation import Conversation, Message
from cerebrum_cli.core.errors import PromptTooLong
from cerebrum_cli.core.events import Event, FinishEvent, LoadEvent, SequenceId, TokenEvent
from cerebrum_cli.core.parts import Part, Text
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine.backend import Backend
from cerebrum_cli.engine.engine import Engine, raise_refusals
from cerebrum_cli.engine.scheduler import common_prefix
from cerebrum_cli.engine.sequence import Request
from cerebrum_cli.formats.format import PromptFormat, ThoughtMarkup
from cerebrum_cli.formats.thinking import ThoughtSplitter, opened_thought

LONGEST = 4  # bytes of a character, and as many tokens at most

FormatBuilder = Callable[[Backend], PromptFormat]
"""Build the format of a conversation once the model's vocabulary is known; FormatError if there is none."""


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """A question and how to reply to it, `n` times; `begun` are the tokens of a reply that is gone on with.

    With `logprobs` each token tells its probability; with `ignore_end` neither the model's end of text nor the format's
    stop strings end a reply.
    """

    conversation: Conversation
    settings: Settings
    grammar: str | None = None
    n: int = 1
    prefix_tokens: tuple[int, ...] = ()
    logprobs: bool = False
    ignore_eos: bool = False


@dataclass(frozen=True, slots=True)
class TokenizedRequest:
    """A question as a model reads it: its tokens, its format, and the thought that prompt and beginning leave open."""

    request: Request
    form: PromptFormat
    thought: ThoughtMarkup | None
    prefix_tokens: str

    def splitter(self) -> ThoughtSplitter:
        """Return what tells a reply's thought from its answer."""
        splitter = ThoughtSplitter(self.form.thoughts, self.thought)
        splitter.feed(self.prefix_tokens)
        return splitter


class Replies(Protocol):
    """The events of replies on their way, numbered as they were asked for; a FinishEvent is each one's last."""

    def __iter__(self) -> Iterator[Event]:
        """Yield the events until nothing runs."""

    def add_samples(self, index: int, count: int) -> None:
        """Ask for further replies to one question; their seeds follow those of the others."""

    def abort(self, index: int) -> None:
        """End what still runs of one question: its replies finish as `cancelled`."""

    def close(self) -> None:
        """End all that runs, at once."""


class Responder(Protocol):
    """Something that replies."""

    def respond(
        self, conversation: Conversation, settings: Settings, grammar: str | None = None, begun: tuple[int, ...] = ()
    ) -> Generator[Event, None, None]:
        """Yield the events of loading and of one reply; closing the stream ends it."""

    def tokenize_request(self, asked: GenerationRequest) -> TokenizedRequest:
        """Return a question as it will be read; what is wrong with it is raised. What replies must be loaded."""

    def replies(self, prepared: Iterable[TokenizedRequest]) -> Replies:
        """Begin to reply to many questions at once."""

    def load(self) -> Iterator[Event]:
        """Yield the events of loading until replies can be given; later calls yield nothing."""

    def count(self, conversation: Conversation) -> int:
        """Return how many tokens the prompt of a conversation has; what replies must be loaded."""

    @property
    def context_size(self) -> int | None:
        """The tokens prompt and reply may have together; None until that is loaded."""

    def cancel(self) -> None:
        """End what runs; its stream goes on to its FinishEvents."""


class Preview(NamedTuple):
    """A prompt as the model would read it: with special tokens spelled out, and as ids."""

    prompt: str
    token_ids: tuple[int, ...]


class LocalResponder:
    """A format and an engine; `prepare` is called while the model loads, for what the format will take."""

    def __init__(
        self, engine: Engine, build: FormatBuilder, trained_context: int, prepare: Callable[[], None] | None = None
    ) -> None:
        self._engine = engine
        self._build_format = build
        self._trained_context = trained_context
        self._prepare = prepare

    def respond(
        self, conversation: Conversation, settings: Settings, grammar: str | None = None, begun: tuple[int, ...] = ()
    ) -> Generator[Event, None, None]:
        """Load the model if it is not there yet, then yield what it says; PromptTooLong before any evaluation."""
        yield from self.load()
        with closing(
            self.replies(
                [self.tokenize_request(GenerationRequest(conversation, settings, grammar, prefix_tokens=begun))]
            )
        ) as replies:
            yield from raise_refusals(replies)

    def tokenize_request(self, asked: GenerationRequest) -> TokenizedRequest:
        """Return a question as the model will read it. The model must be loaded.

        Raises PromptTooLong where it leaves no room for a reply, FormatError where it cannot be written.
        """
        form, visible = self._form, self._visible
        prompt = form.render(asked.conversation)
        request = Request(
            self._fitting(prompt, asked.prefix_tokens),
            asked.settings.sampling(() if asked.ignore_eos else form.stop),
            asked.grammar,
            asked.n,
            visible,
            asked.logprobs,
            asked.ignore_eos,
        )
        return TokenizedRequest(
            request, form, opened_thought(_end(prompt), form.thoughts), self._said(asked.prefix_tokens, visible)
        )

    def replies(self, prepared: Iterable[TokenizedRequest]) -> Replies:
        """Begin to reply to all of them at once; what is returned must be closed."""
        return LocalReplies(self._engine, prepared)

    def load(self) -> Iterator[Event]:
        """Yield the events of loading until the model is there; what made it fail is raised."""
        for event in self._engine.load():
            yield event
            if self._prepare and isinstance(event, LoadEvent):
                self._prepare()  # in the shadow of native code

    def count(self, conversation: Conversation) -> int:
        """Return how many tokens the prompt of a conversation has; the model must be loaded, or its vocabulary."""
        return len(self.tokens(conversation))

    def tokens(self, conversation: Conversation) -> tuple[int, ...]:
        """Return the prompt of a conversation; the model must be loaded, or its vocabulary."""
        return self._engine.tokenize(self._form.render(conversation))

    def beginning(self, conversation: Conversation) -> tuple[int, ...]:
        """Return the tokens that a conversation with another first question would begin with, too."""
        first = next((message.content for message in conversation.messages if message.role == "user"), None)
        if first is None:
            return ()
        other = Message("user", "a" if first.startswith("0") else "0")
        tokens = self.tokens(conversation)
        return tokens[: common_prefix(tokens, self.tokens(replace(conversation, messages=(other,))))]

    @property
    def context_size(self) -> int | None:
        """The context the model was loaded with; None until it is."""
        return self._engine.backend.context_size if self._engine.is_loaded else None

    def preview(self, conversation: Conversation) -> Preview:
        """Load what is needed, and return the exact prompt of a conversation without evaluating it."""
        for _ in self.load():
            pass
        backend = self._engine.backend
        parts = self._form.render(conversation)
        ids = self._engine.tokenize(parts)
        text = "".join(part.value if isinstance(part, Text) else spelled(backend, part.ids) for part in parts)
        bos = backend.special_token_text("bos")
        begins = bool(ids) and spelled(backend, ids[:1]) == bos and not text.startswith(bos)
        return Preview(bos + text if begins else text, ids)

    def spelled(self, ids: Sequence[int]) -> str:
        """Return tokens as text, special ones spelled out; the model must be loaded, or its vocabulary."""
        return spelled(self._engine.backend, ids)

    def whole(self, ids: tuple[int, ...]) -> tuple[int, ...]:
        """Return the tokens of a reply without those at its end that are only part of a character."""
        backend, length = self._engine.backend, len(ids)
        while length and not _is_whole(b"".join(backend.piece(token) for token in ids[:length][-LONGEST:])):
            length -= 1
        return ids[:length]

    @cached_property
    def _form(self) -> PromptFormat:
        return self._build_format(self._engine.backend)

    @cached_property
    def _visible(self) -> frozenset[int]:
        thoughts = self._form.thoughts
        return self._engine.backend.special_token_ids(
            marker for thought in thoughts for marker in (thought.open, thought.close, thought.header)
        )

    def cancel(self) -> None:
        """End loading and replies."""
        self._engine.cancel()

    def _said(self, tokens: Sequence[int], visible: frozenset[int]) -> str:
        backend = self._engine.backend
        pieces = (backend.piece(token, special=token in visible) for token in tokens)
        return b"".join(pieces).decode("utf-8", "replace")

    def _fitting(self, prompt: Sequence[Part], begun: tuple[int, ...]) -> tuple[int, ...]:
        tokens = (*self._engine.tokenize(prompt), *begun)
        size = self._engine.backend.context_size
        if len(tokens) >= size:
            raise PromptTooLong(len(tokens), size, self._trained_context)
        return tokens


class LocalReplies:
    """Replies of an engine."""

    def __init__(self, engine: Engine, prepared: Iterable[TokenizedRequest]) -> None:
        self._prepared = list(prepared)
        self._splitters: dict[SequenceId, ThoughtSplitter] = {}
        self._completions = engine.complete(one.request for one in self._prepared)

    def __iter__(self) -> Iterator[Event]:
        for event in self._completions:
            if isinstance(event, (TokenEvent, FinishEvent)) and not self._is_verbatim(event):
                yield from split(event, self._splitter(event.sequence))
            else:
                yield event

    def add_samples(self, index: int, count: int) -> None:
        """Ask for further replies to one question."""
        self._completions.add_samples(index, count)

    def abort(self, index: int) -> None:
        """End what still runs of one question."""
        self._completions.abort(index)

    def close(self) -> None:
        """End all that runs."""
        self._completions.close()

    def _is_verbatim(self, event: TokenEvent | FinishEvent) -> bool:
        return self._prepared[event.sequence.request].form.verbatim

    def _splitter(self, sequence: SequenceId) -> ThoughtSplitter:
        if sequence not in self._splitters:
            self._splitters[sequence] = self._prepared[sequence.request].splitter()
        return self._splitters[sequence]


def split(event: TokenEvent | FinishEvent, splitter: ThoughtSplitter) -> Iterator[Event]:
    """Yield an event with its text told apart by channel; a token's id goes with the last of its texts."""
    if isinstance(event, TokenEvent):
        said = splitter.feed(event.text) or [("answer", "")]
        for channel, text in said[:-1]:
            yield TokenEvent(event.sequence, text, channel)
        channel, text = said[-1]
        yield replace(event, text=text, channel=channel)
        return
    for channel, text in splitter.flush():
        yield TokenEvent(event.sequence, text, channel)
    yield event


def spelled(backend: Backend, ids: Sequence[int]) -> str:
    """Return tokens as text, special ones spelled out."""
    return b"".join(backend.piece(token, special=True) for token in ids).decode("utf-8", "replace")


def _is_whole(data: bytes) -> bool:
    """Return whether bytes do not end within a character; they may begin within one."""
    decoder = getincrementaldecoder("utf-8")("replace")
    decoder.decode(data)
    return not decoder.getstate()[0]


def _end(prompt: Sequence[Part]) -> str:
    last = prompt[-1] if prompt else None
    return last.value if isinstance(last, Text) and last.trusted else ""
