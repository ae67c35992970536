"""Conversations in, events out: the seam that commands, votes, batches and chats hold."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import NamedTuple, Protocol

from cerebrum_cli.engine.backend import Backend
from cerebrum_cli.engine.engine import Engine
from cerebrum_cli.engine.sequence import Request
from cerebrum_cli.formats.format import PromptFormat
from cerebrum_cli.formats.thinking import ThoughtSplitter, opened_thought
from cerebrum_cli.ground.conversation import Conversation
from cerebrum_cli.ground.errors import PromptTooLong
from cerebrum_cli.ground.events import Event, FinishEvent, SequenceId, TokenEvent
from cerebrum_cli.ground.parts import Part, Text
from cerebrum_cli.ground.settings import Settings

LONGEST = 4  # bytes of a character, and as many tokens at most

FormatBuilder = Callable[[Backend], PromptFormat]
"""Build the format of a conversation once the model's vocabulary is known; FormatError if there is none."""


class Responder(Protocol):
    """Something that replies."""

    def respond(
        self,
        conversations: Sequence[Conversation],
        settings: Settings,
        grammar: str | None = None,
        n: int = 1,
        begun: tuple[int, ...] = (),
    ) -> Generator[Event, None, None]:
        """Yield the events of `n` replies to each conversation; closing the stream ends them.

        `begun` are the tokens of a reply that is gone on with.
        """

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
    """A format and an engine."""

    def __init__(self, engine: Engine, build_format: FormatBuilder, trained_context: int) -> None:
        self._engine = engine
        self._build_format = build_format
        self._trained_context = trained_context

    def respond(
        self,
        conversations: Sequence[Conversation],
        settings: Settings,
        grammar: str | None = None,
        n: int = 1,
        begun: tuple[int, ...] = (),
    ) -> Generator[Event, None, None]:
        """Load the model if it is not there yet, then yield what it says; PromptTooLong before any evaluation."""
        yield from self.load()
        form = self._build_format(self._engine.backend)
        params = settings.sampling(form.stop)
        visible = self._engine.backend.controls(
            marker for thought in form.thoughts for marker in (thought.open, thought.close, thought.header)
        )
        prompts = [form.render(conversation) for conversation in conversations]
        requests = [Request(self._fitting(prompt, begun), params, grammar, n, visible) for prompt in prompts]
        splitters = {
            SequenceId(index, sample): ThoughtSplitter(form.thoughts, opened_thought(_end(prompt), form.thoughts))
            for index, prompt in enumerate(prompts)
            for sample in range(n)
        }
        for splitter in splitters.values():
            splitter.feed(self._said(begun, visible))
        events = self._engine.generate(requests)
        try:
            for event in events:
                yield from (event,) if form.verbatim else split(event, splitters)
        finally:
            events.close()

    def load(self) -> Iterator[Event]:
        """Yield the events of loading until the model is there; what made it fail is raised."""
        return self._engine.load()

    def count(self, conversation: Conversation) -> int:
        """Return how many tokens the prompt of a conversation has; the model must be loaded, or its vocabulary."""
        return len(self._engine.tokenize(self._build_format(self._engine.backend).render(conversation)))

    @property
    def context_size(self) -> int | None:
        """The context the model was loaded with; None until it is."""
        return self._engine.backend.context_size if self._engine.is_loaded else None

    def preview(self, conversation: Conversation) -> Preview:
        """Load what is needed, and return the exact prompt of a conversation without evaluating it."""
        for _ in self.load():
            pass
        backend = self._engine.backend
        parts = self._build_format(backend).render(conversation)
        ids = self._engine.tokenize(parts)
        text = "".join(part.value if isinstance(part, Text) else spelled(backend, part.ids) for part in parts)
        bos = backend.special("bos")
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


def split(event: Event, splitters: dict[SequenceId, ThoughtSplitter]) -> Iterator[Event]:
    """Yield an event with its text told apart by channel; a token's id goes with the last of its texts."""
    if isinstance(event, TokenEvent):
        said = splitters[event.sequence].feed(event.text) or [("answer", "")]
        for channel, text in said[:-1]:
            yield TokenEvent(event.sequence, text, channel)
        channel, text = said[-1]
        yield TokenEvent(event.sequence, text, channel, event.token)
        return
    if isinstance(event, FinishEvent):
        for channel, text in splitters[event.sequence].flush():
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
