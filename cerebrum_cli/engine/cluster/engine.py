"""Generate completions on the nodes of a cluster, each of which runs this program's own engine."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from cerebrum_cli import __version__
from cerebrum_cli.core.errors import EndpointError
from cerebrum_cli.core.events import NoticeEvent, StageEvent
from cerebrum_cli.engine.backend import OpenBackend
from cerebrum_cli.engine.cluster.node import Actor, Cluster, Node, node_name
from cerebrum_cli.engine.cluster.worker import NodeInfo, OpenEngine, Trouble
from cerebrum_cli.engine.remote.engine import PooledEngine
from cerebrum_cli.engine.remote.failures import LostServerError, no_server_error
from cerebrum_cli.engine.remote.pool import Patience, Pool

POLL_S = 0.1  # while nodes load the model


class ClusterEngine(PooledEngine):
    """The nodes of a cluster, on which it starts `open_engine` immediately."""

    def __init__(
        self,
        open_vocabulary: OpenBackend,
        cluster: Cluster,
        open_engine: OpenEngine,
        patience: Patience | None = None,
    ) -> None:
        self._cluster = cluster
        self._open_engine = open_engine
        super().__init__(open_vocabulary, patience)

    async def _serve(self) -> None:
        try:
            await super()._serve()
        finally:
            await asyncio.to_thread(self._cluster.close)

    async def _connect(self) -> Pool:
        self._loading.emit(StageEvent("starting the nodes", 0, 1))
        actors = await asyncio.to_thread(self._cluster.start, self._open_engine)
        found = await asyncio.gather(*(self._wait(*each) for each in enumerate(actors, 1)), return_exceptions=True)
        nodes: list[Node] = []
        lost: dict[str, str] = {}
        for number, (actor, info) in enumerate(zip(actors, found, strict=True), 1):
            if isinstance(info, NodeInfo):
                nodes.append(Node(number, actor, info))
            elif isinstance(info, LostServerError):
                lost[f"node {number}"] = info.reason
            else:
                raise info
        if not nodes:
            raise no_server_error(lost)
        for name, reason in lost.items():
            self._loading.emit(NoticeEvent(f"{name} is not used: {reason}", "see its log, and run the command again"))
        self._report(nodes)
        return Pool(nodes, self._patience)

    async def _wait(self, number: int, actor: Actor) -> NodeInfo:
        """Wait until a node has loaded its model. Raises EndpointError if it cannot, LostServerError if it is gone."""
        while (info := await actor.describe()) is None:
            self._loading.emit(StageEvent(f"waiting for node {number}: loading the model", 0, 1))
            await asyncio.sleep(POLL_S)
        if isinstance(info, Trouble):
            raise EndpointError(f"node {number}: {info.message}", info.hint)
        if info.version != __version__:
            problem = f"{node_name(number, info)} has version {info.version} of cerebrum, not {__version__}"
            raise EndpointError(problem, "install the same version on all nodes")
        return info

    def _report(self, nodes: Sequence[Node]) -> None:
        """Emit the notices of the nodes, and one if the nodes differ."""
        for node in nodes:
            for notice in node.info.notices:
                self._loading.emit(NoticeEvent(f"{node.name}: {notice.message}", notice.hint))
        names: dict[str, list[str]] = {}
        for node in nodes:
            fingerprint = node.info.fingerprint
            names.setdefault(f"{fingerprint.processor}, llama.cpp {fingerprint.build}", []).append(node.name)
        if len(names) > 1:
            groups = "; ".join(f"{', '.join(group)}: {text}" for text, group in names.items())
            problem = f"the nodes differ, so answers may depend on the node ({groups})"
            self._loading.emit(NoticeEvent(problem, "for identical answers, use identical machines and builds"))
