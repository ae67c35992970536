"""Run requests on an engine, and collect the reply of each sequence."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from scripted_backend import ScriptedBackend

from cerebrum_cli.core.conversation import Text
from cerebrum_cli.core.events import Event, FinishEvent, PromptEvent, SequenceId, ServersEvent, TokenEvent
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.drafter import Drafter, DraftState, DraftToken
from cerebrum_cli.engine.local import LocalEngine
from cerebrum_cli.engine.sequence import Request
from cerebrum_cli.engine.state_store import StateStore
from cerebrum_cli.engine.step_costs import StepCosts

FREE_ROWS = StepCosts((1, 2, 4, 8, 16, 32), (1.0, 1.01, 1.02, 1.04, 1.08, 1.16))  # so that drafts are long


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

    known: tuple[list[int], ...] = ()

    def draft(self, state: DraftState, limit: int) -> list[DraftToken]:
        said = state.sample.generated
        reply = next(each for each in self.known if each[: len(said)] == said)
        drafted = range(len(said), min(len(said) + limit, len(reply)))
        return [DraftToken(reply[at] if at % 5 else abs(reply[at] - 1), 0.99) for at in drafted]


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
    with loaded(LocalEngine(backend.open, states)) as engine:
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
    grammar: str | None = None,
    step_costs: StepCosts | None = None,
    **params: object,
) -> list[Reply]:
    tokens = engine.vocabulary.tokenize([Text(prompt)])
    request = Request(tokens, SamplingParams(**params), grammar, n, step_costs=step_costs)  # type: ignore[arg-type]
    said = collect_replies(engine.generate([request]))
    return [said[SequenceId(0, sample)] for sample in range(n)]
