"""The pool of servers: jobs that are cancelled, and rows that never reach a server."""

from __future__ import annotations

import asyncio
from contextlib import closing

from remote_engines import connected, request_of, serving
from scripted_backend import ScriptedBackend, replies

from cerebrum_cli.core.events import Event, FinishEvent, SequenceId
from cerebrum_cli.engine.engine import CancelScope
from cerebrum_cli.engine.remote.job import PoolJob, PromptServer, Server, ServerTimeouts
from cerebrum_cli.engine.remote.pool import Pool
from cerebrum_cli.engine.remote.replies import RemoteSample
from cerebrum_cli.engine.sequence import Failure


class SilentServer(Server):
    """A server that never answers."""

    async def answer(self, job: PoolJob) -> None:
        await asyncio.Event().wait()

    async def open(self) -> None:
        self.context_size, self.max_samples = 100, 1
        self.limit = self.window = 1

    async def close(self) -> None:
        """Do nothing: it holds nothing."""


def test_pool_ends_a_job_cancelled_before_its_first_step() -> None:
    events: list[Event | Failure] = []

    async def submit_and_cancel() -> int:
        server = SilentServer("a", "a")
        pool = Pool([server], ServerTimeouts(), events.append)
        await pool.connect()
        sample = RemoteSample(SequenceId(0), request_of("Q"), 1, ScriptedBackend(replies({})))
        pool.submit([PoolJob((sample,), events.append, PromptServer())], CancelScope(lambda: 0))
        pool.cancel(lambda _: True)
        await asyncio.wait_for(pool.close(), 5)
        return server.outstanding

    assert asyncio.run(submit_and_cancel()) == 0
    [finish] = [event for event in events if isinstance(event, FinishEvent)]
    assert finish.reason == "cancelled"


def test_completions_forget_requests_that_are_over() -> None:
    requests = (request_of("Q", max_n=4) for _ in range(5))
    with (
        serving(replies({"Q": "yes"})) as servers,
        connected(*servers) as engine,
        closing(engine.complete(requests)) as events,
    ):
        for event in events:
            if isinstance(event, FinishEvent):
                events.abort(event.sequence.request)
        assert not events._submitted
