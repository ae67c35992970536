"""The nodes of `--ray`: which cluster, and how a node opens the model."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cerebrum_cli.core.errors import ModelFileError, ModelNotFound, UsageError
from cerebrum_cli.core.settings import Settings
from cerebrum_cli.engine.local import LocalEngine
from cerebrum_cli.inference.loading import ModelUse, ReplySource, open_model

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.engine.backend import OpenBackend
    from cerebrum_cli.engine.cluster.cluster_engine import NodeEngine
    from cerebrum_cli.engine.engine import Engine
    from cerebrum_cli.models.library import Library
    from cerebrum_cli.models.model import Model

ADDRESS = re.compile(r"(ray://)?[^\s/:]+:\d{1,5}")
LOCAL = re.compile(r"local(:[1-9]\d?)?")


@dataclass(frozen=True, slots=True)
class NodeFile:
    """What nodes open, at the same path as here or in their own caches: the digests and the size of its files.

    `reference` is for messages.
    """

    identity: str
    size: int
    path: Path
    reference: str


@dataclass(frozen=True, slots=True)
class RayNodes:
    """The cluster of `--ray`: its address, or the number of nodes to start on this machine; and what its nodes open."""

    address: str | None
    local_nodes: int
    file: NodeFile
    is_tuned: bool

    def __call__(self, open_vocabulary: OpenBackend, source: ReplySource) -> Engine:
        from cerebrum_cli.engine.cluster.cluster_engine import ClusterEngine
        from cerebrum_cli.engine.cluster.ray_cluster import RayCluster

        cluster = RayCluster(self.address, self.local_nodes, source.use.context.slots, source.settings.threads)
        open_engine = partial(open_on_node, self.file, source.settings, source.use, self.is_tuned)
        return ClusterEngine(open_vocabulary, cluster, open_engine)


def find_nodes(app: App, model: Model, text: str, is_tuned: bool) -> RayNodes:
    local = LOCAL.fullmatch(text)
    if not (local or text == "auto" or ADDRESS.fullmatch(text)):
        raise UsageError(f"--ray is {text!r}", "it must be auto, local, local:N, HOST:PORT or ray://HOST:PORT")
    from cerebrum_cli.engine.cluster.ray_cluster import require_ray

    require_ray()
    file = NodeFile(app.library.hashed_identity(model), model.size, model.path, model.reference)
    nodes = int((local[1] or ":1")[1:]) if local else 0
    return RayNodes(None if local else text, nodes, file, is_tuned)


# On a node.


def open_on_node(file: NodeFile, settings: Settings, use: ModelUse, is_tuned: bool, processors: int) -> NodeEngine:
    """Start to load the model on the node where this runs, for so many processors of it. Raises ModelNotFound."""
    from cerebrum_cli.cli.app import real_app
    from cerebrum_cli.engine.cluster.cluster_engine import NodeEngine
    from cerebrum_cli.engine.machine import thread_count

    app = real_app()
    source = ReplySource(app.resources(not is_tuned), find_file(app.library, file), settings, use)
    costs = source.step_costs(True) if settings.drafts else None
    if settings.threads is None and processors < thread_count():
        source = replace(source, settings=replace(settings, threads=processors))
    engine = open_model(source.used(raw=True)).engine
    assert isinstance(engine, LocalEngine)
    return NodeEngine(engine, partial(fingerprint, app), costs)


def find_file(library: Library, file: NodeFile) -> Model:
    with suppress(ModelNotFound, ModelFileError):
        model = library.model_at(file.path)
        if model.size == file.size and library.hashed_identity(model) == file.identity:
            return model
    for model in library.models():
        if model.is_readable and library.file_identity(model) == file.identity:
            return model
    problem = f"{file.reference} is not installed on this node: no file has its SHA-256, {file.identity[:12]}..."
    raise ModelNotFound(problem, f"cerebrum pull {file.reference} there, or use a path that all nodes share")


def fingerprint(app: App) -> tuple[str, str]:
    """This node's processor and build of llama.cpp, once that is loaded."""
    from cerebrum_cli.engine.machine import processor_name

    build = app.build()
    processors = (processor_name(), *(device.description for device in build.devices))
    return ", ".join(processors), f"{build.version} ({' '.join(build.cpu_features)})"
