"""Generate completions on the nodes of a cluster, each of which runs this program's own engine.

On a node, a worker is asked from the head for the samples of one request on each thread.
"""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import count
from typing import Protocol

from cerebrum_cli import __version__
from cerebrum_cli.core.errors import CerebrumError, EndpointError, EngineError, GrammarError, PromptTooLong
from cerebrum_cli.core.events import FinishEvent, NoticeEvent, StageEvent, TokenEvent
from cerebrum_cli.engine.backend import OpenBackend
from cerebrum_cli.engine.engine import raise_refusals
from cerebrum_cli.engine.local import LocalEngine
from cerebrum_cli.engine.remote.client import BusyServerError, LostServerError, RefusedRequestError
from cerebrum_cli.engine.remote.job import PoolJob, Server, ServerTimeouts
from cerebrum_cli.engine.remote.kind import ReplyChunk, ReplyEnd, StopReason
from cerebrum_cli.engine.remote.remote_engine import PooledEngine
from cerebrum_cli.engine.remote.replies import read_replies
from cerebrum_cli.engine.sequence import Request
from cerebrum_cli.engine.step_costs import StepCosts

AHEAD = 2  # samples that a node is given beyond its slots, so that none stays free while an answer travels
POLL_S = 0.1  # while it loads the model
REFUSALS = (GrammarError, PromptTooLong)  # errors of a request that no other node will answer either


@dataclass(frozen=True, slots=True)
class NodeInfo:
    """A node that is ready: its host, this program's version there, and what its engine offers.

    The last bits of replies depend on its processor and GPUs, and its build of llama.cpp.
    """

    host: str
    version: str
    processor: str
    build: str
    context_size: int
    slots: int
    notices: tuple[NoticeEvent, ...] = ()


@dataclass(frozen=True, slots=True)
class NodeEngine:
    """An engine that is loading on a node, and once it has loaded, the node's processor and its build of llama.cpp."""

    engine: LocalEngine
    fingerprint: Callable[[], tuple[str, str]]
    step_costs: StepCosts | None = None  # to draft with


OpenEngine = Callable[[int], NodeEngine]
"""Starts the engine of a node with a number of processors; it is sent there, and so refers to a module by name."""


class Actor(Protocol):
    """A `Worker` in another process; what waits for it raises LostServerError once that is gone."""

    async def describe(self) -> NodeInfo | CerebrumError | None: ...

    async def answer(self, key: int, request: Request) -> tuple[ReplyChunk, ...] | CerebrumError: ...

    def cancel(self, key: int) -> None: ...


class Cluster(Protocol):
    """Starts workers on the nodes of a cluster; blocks meanwhile."""

    def start(self, open_engine: OpenEngine) -> Sequence[Actor]:
        """Start a worker on each node. Raises EndpointError."""

    def close(self) -> None:
        """Stop the workers, and disconnect."""


class ClusterEngine(PooledEngine):
    """The nodes of a cluster, on which it starts `open_engine` immediately."""

    option = "--ray"

    def __init__(
        self,
        open_vocabulary: OpenBackend,
        cluster: Cluster,
        open_engine: OpenEngine,
        timeouts: ServerTimeouts | None = None,
    ) -> None:
        self._cluster = cluster
        self._open_engine = open_engine
        super().__init__(open_vocabulary, timeouts)

    async def _serve(self) -> None:
        try:
            await super()._serve()
        finally:
            await asyncio.to_thread(self._cluster.close)

    async def _find_servers(self) -> Sequence[Node]:
        self._loading.put(StageEvent("starting the nodes", 0, 1))
        actors = await asyncio.to_thread(self._cluster.start, self._open_engine)
        return [Node(number, actor) for number, actor in enumerate(actors, 1)]


class Node(Server):
    """A node with a worker, which loads the model."""

    noun = "node"
    remedy = "check the cluster with ray status"

    def __init__(self, number: int, actor: Actor) -> None:
        super().__init__(f"node {number}", f"node {number}")
        self.larger_context = "raise --ctx"
        self._actor = actor
        self._keys = count()

    async def open(self) -> None:
        """Use the node once its worker, or the one that replaces it here or elsewhere, has loaded the model."""
        info = await self._actor.describe()
        if info is None:
            raise BusyServerError("loading the model", POLL_S)
        if isinstance(info, CerebrumError):
            if self.is_known:
                raise LostServerError(info.message)
            raise EndpointError(f"{self.name}: {info.message}", info.hint)
        self.name = f"{self.alias} ({info.host})"
        if info.version != __version__:
            problem = f"{self.name} has version {info.version} of cerebrum, not {__version__}"
            raise EndpointError(problem, "install the same version on all nodes")
        self.context_size, self.max_samples = info.context_size, info.slots
        self.variant = f"{info.processor}, llama.cpp {info.build}"
        self.recorded = {"kind": "ray", "build": info.build, "processor": info.processor}
        self.remarks = [NoticeEvent(f"{self.name}: {notice.message}", notice.hint) for notice in info.notices]
        self.limit = self.window = info.slots + AHEAD

    async def answer(self, job: PoolJob) -> None:
        first = job.samples[0]
        params = replace(first.request.params, seed=first.seed)
        key, request = next(self._keys), replace(first.request, params=params, n=len(job.samples))
        try:
            answer = await self._actor.answer(key, request)
        except asyncio.CancelledError:
            self._actor.cancel(key)
            raise
        if isinstance(answer, REFUSALS):
            raise RefusedRequestError(answer)
        if isinstance(answer, CerebrumError):
            raise LostServerError(answer.message)
        job.report(read_replies(job.samples, answer))

    async def close(self) -> None:
        """Do nothing: the cluster stops its workers."""


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
            fingerprint, slots = self._node.fingerprint(), engine.backend.slots
        except CerebrumError as error:
            return _sendable(error)
        return NodeInfo(platform.node(), __version__, *fingerprint, engine.context_size, slots, notices)

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
        with closing(engine.complete([replace(request, step_costs=self._node.step_costs)])) as events:
            for event in raise_refusals(events):
                if key in self._cancelled:
                    self._cancelled.discard(key)
                    events.abort(0)
                if isinstance(event, FinishEvent):
                    finishes[event.sequence.sample] = event
                elif isinstance(event, TokenEvent) and event.token is not None:
                    tokens[event.sequence.sample].append(event)
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
