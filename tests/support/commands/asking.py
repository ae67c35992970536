"""Run requests on an engine, and collect the reply of each sequence."""

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field

from scripted_backend import ScriptedBackend

from cerebrum_cli.core.ask import Ask
from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.events import (
    Event,
    FinishEvent,
    PromptEvent,
    SequenceId,
    ServersEvent,
    TokenEvent,
    raise_refusals,
)
from cerebrum_cli.core.grammar import Grammar
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.drafter import Drafter
from cerebrum_cli.engine.local_engine import LocalEngine
from cerebrum_cli.engine.prompt_cache import StateStore
from cerebrum_cli.engine.requests import Request


def generate(engine: LocalEngine, requests: Iterable[Request]) -> Generator[Event, None, None]:
    """Yield the events of all samples as they occur; closing the generator frees the slots before returning."""
    with closing(engine.complete(requests)) as completions:
        yield from raise_refusals(completions)


@dataclass(slots=True)
class Reply:
    pieces: list[str] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    finish: FinishEvent | None = None

    @property
    def text(self) -> str:
        return "".join(self.pieces)

    @property
    def reason(self) -> str | None:
        return self.finish.reason if self.finish else None

    @property
    def cached(self) -> int:
        assert self.finish
        return self.finish.cached_tokens

    @property
    def seed(self) -> int:
        assert self.finish
        return self.finish.seed


class Guesser(Drafter):
    """Drafts the known reply that a sample follows, with every fifth token wrong."""

    known: Sequence[list[int]] = ()

    def draft(self, reply: Sequence[int], limit: int) -> tuple[int, ...]:
        said = [*reply]
        known = next(each for each in self.known if each[: len(said)] == said)
        drafted = range(len(said), min(len(said) + limit, len(known)))
        return tuple(known[at] if at % 5 else abs(known[at] - 1) for at in drafted)


def collect_replies(events: Iterable[Event]) -> dict[SequenceId, Reply]:
    """Replies by sequence; nothing of one may follow its FinishEvent."""
    said: dict[SequenceId, Reply] = {}
    for event in events:
        if isinstance(event, ServersEvent):
            continue
        assert isinstance(event, PromptEvent | TokenEvent | FinishEvent)
        reply = said.setdefault(event.sequence, Reply())
        assert reply.finish is None
        if isinstance(event, FinishEvent):
            reply.finish = event
        elif isinstance(event, TokenEvent):
            if event.is_correction and event.channel == "answer":
                reply.pieces.clear()  # the answer repeats them
            reply.pieces.append(event.text)
            reply.ids += event.tokens
    return said


@contextmanager
def loaded(engine: LocalEngine) -> Iterator[LocalEngine]:
    try:
        list(engine.load())
        yield engine
    finally:
        engine.close()


@contextmanager
def running_engine(backend: ScriptedBackend, states: StateStore | None = None) -> Iterator[LocalEngine]:
    with loaded(LocalEngine(backend.open, (lambda: states) if states else None)) as engine:
        yield engine
    assert backend.closed


def when_held(backend: ScriptedBackend, act: Callable[[], object]) -> threading.Thread:
    """Act on another thread as soon as a step is held."""
    thread = threading.Thread(target=lambda: backend.is_held.wait(20) and act())
    thread.start()
    return thread


def ask(
    engine: LocalEngine,
    prompt: str,
    *,
    n: int = 1,
    grammar: str | Grammar | None = None,
    speculative: bool = False,
    **params: object,
) -> list[Reply]:
    tokens = engine.vocabulary.tokenize([Text(prompt)])
    if isinstance(grammar, str):
        grammar = Grammar("gbnf", grammar)
    request = Request(tokens, SamplingParams(**params), Ask(grammar=grammar, n=n), speculative=speculative)  # type: ignore[arg-type]
    said = collect_replies(generate(engine, [request]))
    return [said[SequenceId(0, sample)] for sample in range(n)]
