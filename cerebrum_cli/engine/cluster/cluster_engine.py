"""Generate completions on the nodes of a cluster, each of which runs this program's own engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Protocol

from cerebrum_cli import __version__
from cerebrum_cli.core.errors import CerebrumError, EndpointError
from cerebrum_cli.core.events import NoticeEvent, StageEvent
from cerebrum_cli.engine.backend import OpenBackend
from cerebrum_cli.engine.cluster.worker import REFUSALS, NodeInfo, OpenEngine
from cerebrum_cli.engine.remote.client import BusyServerError, LostServerError, RefusedRequestError
from cerebrum_cli.engine.remote.job import PoolJob, Server, ServerTimeouts
from cerebrum_cli.engine.remote.kind import ReplyChunk
from cerebrum_cli.engine.remote.remote_engine import PooledEngine
from cerebrum_cli.engine.remote.replies import read_replies
from cerebrum_cli.engine.sequence import Request

AHEAD = 2  # samples that a node is given beyond its slots, so that none stays free while an answer travels
POLL_S = 0.1  # while it loads the model


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
        self._loading.emit(StageEvent("starting the nodes", 0, 1))
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
        processor, build = info.fingerprint.processor, info.fingerprint.build
        self.context_size, self.max_samples = info.context_size, info.slots
        self.variant = f"{processor}, llama.cpp {build}"
        self.recorded = {"kind": "ray", "build": build, "processor": processor}
        self.remarks = [NoticeEvent(f"{self.name}: {notice.message}", notice.hint) for notice in info.notices]
        self.resize(info.slots + AHEAD)

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
