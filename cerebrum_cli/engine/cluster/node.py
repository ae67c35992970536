"""A node of the cluster as the pool sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Protocol

from cerebrum_cli import __version__
from cerebrum_cli.core.errors import EndpointError, EngineError
from cerebrum_cli.core.events import NoticeEvent
from cerebrum_cli.engine.cluster.worker import REFUSALS, NodeInfo, OpenEngine, Trouble
from cerebrum_cli.engine.remote.failures import BusyServerError, LostServerError, RefusedRequestError
from cerebrum_cli.engine.remote.job import PoolJob, Server
from cerebrum_cli.engine.remote.kind import ReplyChunk
from cerebrum_cli.engine.sequence import Request

AHEAD = 2  # samples that a node is given beyond its slots, so that none stays free while an answer travels
POLL_S = 0.1  # while it loads the model


class Actor(Protocol):
    """A `Worker` in another process; what waits for it raises LostServerError once that is gone."""

    async def describe(self) -> NodeInfo | Trouble | None: ...

    async def answer(self, key: int, request: Request) -> tuple[ReplyChunk, ...] | Trouble: ...

    def cancel(self, key: int) -> None: ...


class Cluster(Protocol):
    """Starts workers on the nodes of a cluster; blocks meanwhile."""

    def start(self, open_engine: OpenEngine) -> Sequence[Actor]:
        """Start a worker on each node. Raises EndpointError."""

    def close(self) -> None:
        """Stop the workers, and disconnect."""


class Node(Server):
    """A node with a worker, which loads the model."""

    noun = "node"
    remedy = "check the cluster with ray status"

    def __init__(self, number: int, actor: Actor) -> None:
        super().__init__(f"node {number}", f"node {number}")
        self._info: NodeInfo | None = None
        self._number = number
        self._actor = actor
        self._keys = count()

    @property
    def info(self) -> NodeInfo:
        """What it is, as it was last opened."""
        assert self._info
        return self._info

    @property
    def variant(self) -> str:
        fingerprint = self.info.fingerprint
        return f"{fingerprint.processor}, llama.cpp {fingerprint.build}"

    @property
    def remarks(self) -> Sequence[NoticeEvent]:
        return [NoticeEvent(f"{self.name}: {notice.message}", notice.hint) for notice in self.info.notices]

    @property
    def larger_context(self) -> str:
        return "raise --ctx"

    @property
    def context_size(self) -> int:
        return self.info.context_size

    @property
    def max_samples(self) -> int:
        return self.info.slots

    @property
    def recorded(self) -> dict[str, str]:
        fingerprint = self.info.fingerprint
        return {"kind": "ray", "build": fingerprint.build, "processor": fingerprint.processor}

    async def answer(self, job: PoolJob) -> None:
        first = job.samples[0]
        params = replace(first.request.params, seed=first.seed)
        key, request = next(self._keys), replace(first.request, params=params, n=len(job.samples))
        try:
            answer = await self._actor.answer(key, request)
        except asyncio.CancelledError:
            self._actor.cancel(key)
            raise
        if isinstance(answer, Trouble):
            if answer.refusal is None:
                raise LostServerError(answer.message)
            error = REFUSALS.get(answer.refusal, EngineError)(answer.message, answer.hint)
            raise RefusedRequestError(error)
        self.generated += job.finish(answer)

    async def open(self) -> None:
        """Use the node once its worker, or the one that replaces it here or elsewhere, has loaded the model."""
        info = await self._actor.describe()
        if info is None:
            raise BusyServerError("loading the model", POLL_S)
        if isinstance(info, Trouble):
            if self.is_known:
                raise LostServerError(info.message)
            raise EndpointError(f"{self.name}: {info.message}", info.hint)
        self.name = f"node {self._number} ({info.host})"
        if info.version != __version__:
            problem = f"{self.name} has version {info.version} of cerebrum, not {__version__}"
            raise EndpointError(problem, "install the same version on all nodes")
        self._info = info
        self.resize(info.slots + AHEAD)

    async def close(self) -> None:
        """Do nothing: the cluster stops its workers."""
