"""The servers as callers on other threads see them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cerebrum_cli.core.events import ServerTokens
from cerebrum_cli.engine.backend import Vocabulary
from cerebrum_cli.engine.engine import CancelScope
from cerebrum_cli.engine.remote.job import PoolJob, Server, finish_cancelled
from cerebrum_cli.engine.remote.pool import Pool

AHEAD = 2  # requests submitted for each sample that the servers run at a time


class Connection:
    """A pool of servers, and the vocabulary they share; `call` calls a function on the pool's event loop."""

    def __init__(self, call: Callable[[Callable[[], object]], None], pool: Pool, vocabulary: Vocabulary) -> None:
        self._call = call
        self._pool = pool
        self.vocabulary = vocabulary

    @property
    def servers(self) -> Sequence[Server]:
        """Those that have answered so far."""
        return self._pool.known

    @property
    def generated(self) -> tuple[ServerTokens, ...]:
        """What each server has generated so far."""
        return tuple(ServerTokens(server.name, server.generated, server.problem is not None) for server in self.servers)

    @property
    def room(self) -> int:
        """Number of samples to submit at a time."""
        return AHEAD * sum(server.window for server in self.servers)

    def submit(self, jobs: Sequence[PoolJob], scope: CancelScope) -> None:
        """Submit jobs, unless their scope is cancelled by the time that they arrive."""

        def receive() -> None:
            if scope.is_cancelled:
                for job in jobs:
                    finish_cancelled(job)
            else:
                self._pool.submit(jobs)

        self._call(receive)

    def cancel(self, should_cancel: Callable[[PoolJob], bool]) -> None:
        """Cancel jobs, without waiting for it."""
        self._call(lambda: self._pool.cancel(should_cancel))
