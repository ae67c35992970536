"""The servers as callers on other threads see them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence

from cerebrum_cli.core.events import ServerTokens
from cerebrum_cli.engine.backend import Vocabulary
from cerebrum_cli.engine.engine import CancelScope
from cerebrum_cli.engine.remote.job import Job, Server, finish_cancelled
from cerebrum_cli.engine.remote.pool import Pool

AHEAD = 2  # requests submitted for each sample that the servers run at a time


class Connection:
    """A pool of servers on its event loop, and the vocabulary they share."""

    def __init__(self, loop: asyncio.AbstractEventLoop, pool: Pool, vocabulary: Vocabulary) -> None:
        self._loop = loop
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

    def submit(self, jobs: Sequence[Job], scope: CancelScope) -> None:
        """Submit jobs, unless their scope is cancelled by the time that they arrive."""

        def receive() -> None:
            if scope.is_cancelled:
                for job in jobs:
                    finish_cancelled(job)
            else:
                self._pool.submit(jobs)

        self.call(receive)

    def cancel(self, should_cancel: Callable[[Job], bool]) -> None:
        """Cancel jobs, without waiting for it."""
        self.call(lambda: self._pool.cancel(should_cancel))

    def call(self, function: Callable[[], object]) -> None:
        """Call a function on the event loop, unless that has ended."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function)
