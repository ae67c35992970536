"""Completions that servers generate: requests are read from their source as the servers can take them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import inf
from time import monotonic

from cerebrum_cli.core.events import Event, SequenceId, ServersEvent
from cerebrum_cli.core.sampling import SEEDS
from cerebrum_cli.engine.completions import RunningCompletions, checked_seed
from cerebrum_cli.engine.engine import CancelScope
from cerebrum_cli.engine.remote.connection import Connection
from cerebrum_cli.engine.remote.job import PoolJob, PromptServer
from cerebrum_cli.engine.remote.replies import RemoteSample
from cerebrum_cli.engine.sequence import Request

REPORT_S = 1.0  # between reports of what each server has generated


@dataclass(slots=True)
class Submitted:
    """A request that has unfinished samples, or may get more."""

    request: Request
    seed: int
    place: PromptServer = field(default_factory=PromptServer)
    samples: int = 0
    unfinished: int = 0
    is_aborted: bool = False

    @property
    def is_over(self) -> bool:
        limit = max(self.request.n, self.request.max_n)
        return not self.unfinished and (self.is_aborted or self.samples >= limit)


class RemoteCompletions(RunningCompletions[RemoteSample]):
    """Iterator over the events of all samples, each ending with a FinishEvent or RefusedEvent; for one thread.

    The source is read on the caller's thread, no further than the servers have use for, and up to a None until the next
    event; nothing of it is read after the scope was cancelled. With several servers, what each has generated is
    reported in between, and at the end.
    """

    def __init__(self, connection: Connection, requests: Iterable[Request | None], scope: CancelScope) -> None:
        self._connection = connection
        super().__init__(scope)
        self._source: Iterator[Request | None] | None = iter(requests)
        self._submitted: dict[int, Submitted] = {}
        self._next_index = 0
        self._report_at = monotonic() + REPORT_S
        self._read_source()

    def add_samples(self, index: int, count: int) -> None:
        """Add `count` samples to a request; their seeds continue the sequence."""
        self._submit(index, count)

    def abort(self, index: int) -> None:
        """Cancel the running samples of a request; each finishes as `cancelled`."""
        if submitted := self._submitted.get(index):
            submitted.is_aborted = True
            place = submitted.place
            self._connection.cancel(lambda job: job.place is place)
            if submitted.is_over:
                del self._submitted[index]

    def __next__(self) -> Event:
        self._read_source()
        if self._is_report_due:
            self._report_at = monotonic() + REPORT_S if self._live else inf
            return ServersEvent(self._connection.generated)
        return super().__next__()

    def close(self) -> None:
        """Stop what still runs."""
        self._source, self._report_at = None, inf
        if self._live:
            outbox = self._outbox
            self._connection.cancel(lambda job: job.emit == outbox.put)
            self._live.clear()

    @property
    def _is_report_due(self) -> bool:
        if self._report_at == inf or len(self._connection.servers) == 1 or not self._next_index:
            return False
        return not self._live or monotonic() >= self._report_at

    def _read_source(self) -> None:
        while self._source is not None and len(self._live) < self._connection.room:
            try:
                request = None if self._scope.is_cancelled else next(self._source)
            except StopIteration:
                self._source = None
                return
            if request is None:
                return
            index = self._next_index
            self._next_index += 1
            self._submitted[index] = Submitted(request, checked_seed(request))
            self._submit(index, request.n)

    def _submit(self, index: int, count: int) -> None:
        submitted = self._submitted[index]
        first = submitted.samples
        submitted.samples += count
        submitted.unfinished += count
        samples = [self._sample(index, submitted, number) for number in range(first, first + count)]
        self._live.update((sample.id, sample) for sample in samples)
        streams = submitted.request.stream  # each of one sample
        groups = [(sample,) for sample in samples] if streams else [tuple(samples)]
        jobs = [PoolJob(group, self._outbox.put, submitted.place) for group in groups]
        self._connection.submit(jobs, self._scope)

    def _sample(self, index: int, submitted: Submitted, number: int) -> RemoteSample:
        seed = (submitted.seed + number) % SEEDS
        return RemoteSample(SequenceId(index, number), submitted.request, seed, self._connection.vocabulary)

    def _end_sample(self, index: int) -> None:
        submitted = self._submitted[index]
        submitted.unfinished -= 1
        if submitted.is_over:
            del self._submitted[index]
