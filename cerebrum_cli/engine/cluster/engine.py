"""Generate completions on the nodes of a cluster, each of which runs this program's own engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from cerebrum_cli.core.events import StageEvent
from cerebrum_cli.engine.backend import OpenBackend
from cerebrum_cli.engine.cluster.node import Cluster, Node
from cerebrum_cli.engine.cluster.worker import OpenEngine
from cerebrum_cli.engine.remote.engine import PooledEngine
from cerebrum_cli.engine.remote.job import ServerTimeouts


class ClusterEngine(PooledEngine):
    """The nodes of a cluster, on which it starts `open_engine` immediately."""

    option = "--ray"

    def __init__(
        self,
        open_vocabulary: OpenBackend,
        cluster: Cluster,
        open_engine: OpenEngine,
        patience: ServerTimeouts | None = None,
    ) -> None:
        self._cluster = cluster
        self._open_engine = open_engine
        super().__init__(open_vocabulary, patience)

    async def _serve(self) -> None:
        try:
            await super()._serve()
        finally:
            await asyncio.to_thread(self._cluster.close)

    async def _find_servers(self) -> Sequence[Node]:
        self._loading.emit(StageEvent("starting the nodes", 0, 1))
        actors = await asyncio.to_thread(self._cluster.start, self._open_engine)
        return [Node(number, actor) for number, actor in enumerate(actors, 1)]
