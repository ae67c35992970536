"""What runs on a node: an engine with a model, asked from the head for the samples of one request on each thread."""

from __future__ import annotations

import platform
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace

from cerebrum_cli import __version__
from cerebrum_cli.core.errors import CerebrumError, EngineError, GrammarError, PromptTooLong
from cerebrum_cli.core.events import FinishEvent, NoticeEvent, RefusedEvent, TokenEvent
from cerebrum_cli.engine.local import LocalEngine
from cerebrum_cli.engine.remote.kind import ReplyChunk, ReplyEnd, StopReason
from cerebrum_cli.engine.sequence import Request
from cerebrum_cli.engine.step_costs import StepCosts

REFUSALS = (GrammarError, PromptTooLong)  # errors of a request that no other node will answer either


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
class NodeEngine:
    """An engine that is loading on a node, and the fingerprint of the node once it has loaded."""

    engine: LocalEngine
    fingerprint: Callable[[], Fingerprint]
    step_costs: StepCosts | None = None  # to draft with


OpenEngine = Callable[[int], NodeEngine]
"""Starts the engine of a node with a number of processors; it is sent there, and so refers to a module by name."""


class Worker:
    """The engine of a node. Its methods are called on many threads; what they return can be sent to other processes."""

    def __init__(self, open_engine: OpenEngine, processors: int) -> None:
        self._cancelled: set[int] = set()
        self._error: CerebrumError | None = None
        try:
            self._node = open_engine(processors)
        except CerebrumError as error:
            self._error = _sendable(error)

    def describe(self) -> NodeInfo | CerebrumError | None:
        """What the node is, or why it cannot be used; None while it loads the model."""
        if self._error:
            return self._error
        engine = self._node.engine
        if not (engine.is_loaded or engine.has_failed):
            return None
        try:
            notices = tuple(event for event in engine.load() if isinstance(event, NoticeEvent))
            fingerprint = self._node.fingerprint()
            slots = engine.backend.slots
        except CerebrumError as error:
            return _sendable(error)
        return NodeInfo(platform.node(), __version__, fingerprint, engine.context_size, slots, notices)

    def answer(self, key: int, request: Request) -> tuple[ReplyChunk, ...] | CerebrumError:
        """Generate all samples of a request; `key` names it for `cancel`."""
        try:
            return self._generate(key, request)
        except CerebrumError as error:
            return _sendable(error)
        finally:
            self._cancelled.discard(key)

    def cancel(self, key: int) -> None:
        """Stop a request after the current step; its answer means nothing then."""
        self._cancelled.add(key)

    def _generate(self, key: int, request: Request) -> tuple[ReplyChunk, ...]:
        engine, length = self._node.engine, len(request.prompt_tokens)
        if length >= engine.context_size:
            problem = f"the prompt has {length} tokens, but the context of a node has {engine.context_size}"
            raise PromptTooLong(problem, "shorten it, or raise --ctx")
        tokens: list[list[TokenEvent]] = [[] for _ in range(request.n)]
        finishes: dict[int, FinishEvent] = {}
        error: CerebrumError | None = None
        with closing(engine.complete([replace(request, step_costs=self._node.step_costs)])) as events:
            for event in events:
                if key in self._cancelled:
                    self._cancelled.discard(key)
                    events.abort(0)
                if isinstance(event, RefusedEvent):
                    error = event.error
                elif isinstance(event, FinishEvent):
                    finishes[event.sequence.sample] = event
                elif isinstance(event, TokenEvent) and event.token is not None:
                    tokens[event.sequence.sample].append(event)
        if error:
            raise error
        return tuple(_whole_reply(events, finishes[sample]) for sample, events in enumerate(tokens))


def _sendable(error: CerebrumError) -> CerebrumError:
    """An error without anything that another process could not read."""
    kind = next((kind for kind in REFUSALS if isinstance(error, kind)), EngineError)
    return kind(error.message, error.hint)


def _whole_reply(events: list[TokenEvent], finish: FinishEvent) -> ReplyChunk:
    """The reply of one sample; stop strings are found again where it is decoded."""
    reason: StopReason = "eos" if finish.reason == "stop" and not finish.by_stop_string else "limit"
    if finish.reason in ("length", "repetition"):
        reason = finish.reason
    counts = finish.completion_tokens, finish.prompt_tokens, finish.cached_tokens
    end = ReplyEnd(reason, *counts, finish.timings, finish.forced)
    tokens = tuple(event.token for event in events if event.token is not None)
    return ReplyChunk(tokens, logprobs=tuple(event.logprob for event in events), end=end)
