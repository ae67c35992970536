"""`--ray` and `--ray-workers` of commands that answer rows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cerebrum_cli.cli.row_commands import Answering, RowOptions, Work
from cerebrum_cli.core.declaration import INTEGER, option, option_group
from cerebrum_cli.core.errors import UsageError

if TYPE_CHECKING:
    from cerebrum_cli.cli.app import App
    from cerebrum_cli.core.settings import Settings
    from cerebrum_cli.library.installed import InstalledModel
    from cerebrum_cli.replies.source import ModelSource
    from cerebrum_cli.results.rows import Results
    from cerebrum_cli.servers.endpoint import Servers


@option_group
class RayOptions(RowOptions):
    ray: str | None = option("Generate on the nodes of a Ray cluster", "Server", metavar="ADDRESS|auto|local")
    ray_workers: int | None = option(
        "Workers with --ray [default: one per GPU or node]", "Server", INTEGER, metavar="N"
    )

    @property
    def place_flag(self) -> str:
        return "" if self.ray is None else "--ray"

    def find_model(self, app: App, requested: Settings, servers: Servers | None = None) -> InstalledModel:
        """As other options do; nodes of a cluster have the model themselves, and only its vocabulary is needed here."""
        if self.ray_workers is not None and (self.ray is None or self.ray_workers < 1):
            raise UsageError.invalid("--ray-workers", self.ray_workers, "1 or more, and needs --ray")
        if self.ray is None:
            return super().find_model(app, requested, servers)
        if servers is None:
            requested.require_no_adapters("--ray")
        return app.library.resolve(requested.model)

    @contextmanager
    def answering(self, source: ModelSource, results: Results, work: Work) -> Iterator[Answering]:
        if self.ray is None:
            with super().answering(source, results, work) as answering:
                yield answering
            return
        from cerebrum_cli.cluster.distribution import distribute

        distributed = distribute(source, work, results, self.ray, self.ray_workers)
        yield distributed.answer(), distributed.cancelled.set
