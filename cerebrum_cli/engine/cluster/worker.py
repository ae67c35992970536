"""What runs on a node: an engine with a model, asked from the head for the samples of one request on each thread."""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field, replace

from cerebrum_cli import __version__
from cerebrum_cli.core.errors import CerebrumError, GrammarError, PromptTooLong
from cerebrum_cli.core.events import Event, FinishEvent, NoticeEvent, RefusedEvent, TokenEvent
from cerebrum_cli.engine.drafts.costs import StepCosts
from cerebrum_cli.engine.local import LocalEngine
from cerebrum_cli.engine.remote.kind import ReplyChunk, ReplyEnd, StopReason
from cerebrum_cli.engine.sequence import Request

REFUSALS = {error.__name__: error for error in (GrammarError, PromptTooLong)}


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a node's last bits depend on: its processor and GPUs, and its build of llama.cpp."""

    processor: str
    build: str


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A node that is ready: its host, this program's version there, and what its engine offers."""

    host: str
    version: str
    fingerprint: Fingerprint
    context_size: int
    slots: int
    notices: tuple[NoticeEvent, ...] = ()


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a node has no answer. With the name of a class of error in `refusal`, no other node will have one either."""

    message: str
    hint: str = ""
    refusal: str | None = None

    @classmethod
    def of(cls, error: CerebrumError) -> Trouble:
        name = type(error).__name__
        return cls(error.message, error.hint, name if name in REFUSALS else None)


@dataclass(frozen=True, slots=True)
class NodeEngine:
    """An engine that is loading on a node, and the fingerprint of the node once it has loaded."""

    engine: LocalEngine
    fingerprint: Callable[[], Fingerprint]
    step_costs: StepCosts | None = None  # to draft with


OpenEngine = Callable[[int], NodeEngine]
"""Starts the engine of a node with so many processors; it is sent there, and so refers to a module by name."""


class Worker:
    """The engine of a node. Its methods are called on many threads; what they return can be sent to other processes."""

    def __init__(self, open_engine: OpenEngine, processors: int) -> None:
        self._cancelled: set[int] = set()
        self._trouble: Trouble | None = None
        try:
            self._node = open_engine(processors)
        except CerebrumError as error:
            self._trouble = Trouble.of(error)

    def describe(self) -> NodeInfo | Trouble | None:
        """What the node is; None while it loads the model."""
        if self._trouble:
            return self._trouble
        engine = self._node.engine
        if not (engine.is_loaded or engine.has_failed):
            return None
        try:
            notices = tuple(event for event in engine.load() if isinstance(event, NoticeEvent))
            fingerprint = self._node.fingerprint()
            slots = engine.backend.slots
        except CerebrumError as error:
            return Trouble.of(error)
        return NodeInfo(platform.node(), __version__, fingerprint, engine.context_size, slots, notices)

    def answer(self, key: int, request: Request) -> tuple[ReplyChunk, ...] | Trouble:
        """Generate all samples of a request; `key` names it for `cancel`."""
        try:
            return self._generate(key, request)
        except CerebrumError as error:
            return Trouble.of(error)
        finally:
            self._cancelled.discard(key)

    def cancel(self, key: int) -> None:
        """Stop a request after the current step; its answer means nothing then."""
        self._cancelled.add(key)

    def _generate(self, key: int, request: Request) -> tuple[ReplyChunk, ...] | Trouble:
        engine, length = self._node.engine, len(request.prompt_tokens)
        if length >= engine.context_size:
            problem = f"the prompt has {length} tokens, but the context of a node has {engine.context_size}"
            return Trouble(problem, "shorten it, or raise --ctx", PromptTooLong.__name__)
        samples = [NodeSample() for _ in range(request.n)]
        refused: Trouble | None = None
        with closing(engine.complete([replace(request, step_costs=self._node.step_costs)])) as events:
            for event in events:
                if key in self._cancelled:
                    self._cancelled.discard(key)
                    events.abort(0)
                if isinstance(event, RefusedEvent):
                    refused = Trouble.of(event.error)
                elif isinstance(event, (TokenEvent, FinishEvent)):
                    samples[event.sequence.sample].add(event)
        return refused or tuple(sample.reply for sample in samples)


@dataclass(slots=True)
class NodeSample:
    """One sample as it is generated."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float | None] = field(default_factory=list)
    finish: FinishEvent | None = None

    def add(self, event: Event) -> None:
        if isinstance(event, FinishEvent):
            self.finish = event
        elif isinstance(event, TokenEvent) and event.token is not None:
            self.tokens.append(event.token)
            self.logprobs.append(event.logprob)

    @property
    def reply(self) -> ReplyChunk:
        """The whole reply; stop strings are found again where it is decoded."""
        finish = self.finish
        assert finish
        end = ReplyEnd(
            _stop_reason(finish),
            finish.completion_tokens,
            finish.prompt_tokens,
            finish.cached_tokens,
            finish.timings,
            finish.forced,
        )
        return ReplyChunk(tuple(self.tokens), logprobs=tuple(self.logprobs), end=end)


def _stop_reason(finish: FinishEvent) -> StopReason:
    if finish.reason in ("length", "repetition"):
        return finish.reason
    return "eos" if finish.reason == "stop" and not finish.by_stop_string else "limit"
