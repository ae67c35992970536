"""A cluster in this process: workers with scripted engines on threads, which can be killed and started again."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from typing import Any

from remote_engines import QUICK
from scripted_backend import END, Model, ScriptedBackend

from cerebrum_cli.core.errors import CerebrumError
from cerebrum_cli.engine.cluster.cluster_engine import ClusterEngine, NodeEngine, NodeInfo, OpenEngine, Worker
from cerebrum_cli.engine.local import LocalEngine
from cerebrum_cli.engine.remote.client import LostServerError
from cerebrum_cli.engine.remote.job import ServerTimeouts
from cerebrum_cli.engine.remote.kind import ReplyChunk
from cerebrum_cli.engine.sequence import Request

POLL_S = 0.005


@dataclass(eq=False)
class ScriptedActor:
    """The worker of a node; `open_engine` starts its engine, or fails.

    A request that it `dies_of` ends it, and so does `kill`; it starts again if it `restarts`. While it `hangs`, it
    answers nothing. `asked` are the prompts of all requests, in order.
    """

    open_engine: OpenEngine
    dies_of: Callable[[Request], bool] = lambda request: False
    restarts: bool = True
    hangs: bool = False
    asked: list[str] = field(default_factory=list)
    cancelled: list[int] = field(default_factory=list)
    starts: int = 0
    is_alive: bool = False
    worker: Worker | None = None

    def start(self) -> None:
        self.worker, self.is_alive = Worker(self.open_engine, 1), True
        self.starts += 1

    def kill(self) -> None:
        self.is_alive = False

    async def describe(self) -> NodeInfo | CerebrumError | None:
        if not self.is_alive and self.restarts:
            self.start()
        if not self.is_alive or self.worker is None:
            raise LostServerError("its process has ended", was_sent=False)
        return self.worker.describe()

    async def answer(self, key: int, request: Request) -> tuple[ReplyChunk, ...] | CerebrumError:
        worker = self.worker
        assert worker
        self.asked.append(bytes(request.prompt_tokens).decode())
        if self.dies_of(request):
            self.kill()
        work = asyncio.ensure_future(asyncio.to_thread(worker.answer, key, request))
        while self.hangs or not work.done():
            await asyncio.sleep(POLL_S)
            if not self.is_alive or worker is not self.worker:
                raise LostServerError("its process has ended")
        return await work

    def cancel(self, key: int) -> None:
        self.cancelled.append(key)
        assert self.worker
        self.worker.cancel(key)


@dataclass
class ScriptedCluster:
    actors: Sequence[ScriptedActor]
    is_closed: bool = False

    def start(self, open_engine: OpenEngine) -> Sequence[ScriptedActor]:
        for actor in self.actors:
            actor.start()
        return self.actors

    def close(self) -> None:
        self.is_closed = True


class Nodes:
    """Engines of one scripted model, opened as nodes start."""

    def __init__(self, model: Model, slots: int = 4, context_size: int = 100) -> None:
        self.model = model
        self.slots = slots
        self.context_size = context_size
        self.engines: list[LocalEngine] = []

    def opener(self, processor: str = "a processor", error: CerebrumError | None = None) -> OpenEngine:
        """Opens an engine on a node with such a processor, or fails."""

        def open_engine(processors: int) -> NodeEngine:
            if error:
                raise error
            scripted = ScriptedBackend(self.model, slots=self.slots, context_size=self.context_size)
            engine = LocalEngine(scripted.open)
            self.engines.append(engine)
            return NodeEngine(engine, lambda: (processor, "1"))

        return open_engine

    def actor(
        self, processor: str = "a processor", error: CerebrumError | None = None, **options: Any
    ) -> ScriptedActor:
        return ScriptedActor(self.opener(processor, error), **options)


@contextmanager
def clustered(
    nodes: Nodes, *actors: ScriptedActor, timeouts: ServerTimeouts = QUICK, loads: bool = True
) -> Iterator[ClusterEngine]:
    """An engine on these nodes, which may still be loading unless it `loads` first."""
    cluster = ScriptedCluster(actors)
    vocabulary = ScriptedBackend(lambda held, seed: END)
    try:
        with closing(ClusterEngine(vocabulary.open, cluster, nodes.opener(), timeouts)) as engine:
            if loads:
                list(engine.load())
            yield engine
        assert cluster.is_closed
    finally:
        for each in nodes.engines:
            each.close()
