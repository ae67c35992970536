"""A node of the cluster as the pool sees it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from typing import Protocol

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.engine.cluster.worker import REFUSALS, NodeInfo, OpenEngine, Trouble
from cerebrum_cli.engine.remote.failures import BusyServerError, LostServerError, RefusedRequestError
from cerebrum_cli.engine.remote.kind import Part
from cerebrum_cli.engine.remote.pool import Job, Server
from cerebrum_cli.engine.sequence import Request

AHEAD = 2  # samples that a node is given beyond its slots, so that none stays free while an answer travels


class Actor(Protocol):
    """A `Worker` in another process; what waits for it raises LostServerError once that is gone."""

    async def describe(self) -> NodeInfo | Trouble | None: ...

    async def answer(self, key: int, request: Request) -> tuple[Part, ...] | Trouble: ...

    def cancel(self, key: int) -> None: ...


class Cluster(Protocol):
    """Starts workers on the nodes of a cluster; blocks meanwhile."""

    def start(self, open_engine: OpenEngine) -> Sequence[Actor]:
        """Start a worker on each node. Raises EndpointError."""

    def close(self) -> None:
        """Stop the workers, and disconnect."""


class Node(Server):
    """A node whose model is loaded."""

    def __init__(self, number: int, actor: Actor, info: NodeInfo) -> None:
        super().__init__(node_name(number, info), info.slots + AHEAD)
        self.info = info
        self._number = number
        self._actor = actor
        self._keys = count()

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

    async def answer(self, job: Job) -> None:
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

    async def reopen(self) -> None:
        """Use the node again once the worker that replaces the lost one, here or elsewhere, has loaded the model."""
        info = await self._actor.describe()
        if info is None:
            raise BusyServerError("loading the model")
        if isinstance(info, Trouble):
            raise LostServerError(info.message)
        self.info, self.name = info, node_name(self._number, info)
        self.limit = self.window = info.slots + AHEAD

    async def close(self) -> None:
        """Do nothing: the cluster stops its workers."""


def node_name(number: int, info: NodeInfo) -> str:
    return f"node {number} ({info.host})"
