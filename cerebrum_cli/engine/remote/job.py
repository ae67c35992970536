"""What the pool gives to a server: samples of one request."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cerebrum_cli.core.errors import CerebrumError
from cerebrum_cli.core.events import Event, FinishEvent, Origin, RefusedEvent
from cerebrum_cli.engine.remote.replies import RemoteSample
from cerebrum_cli.engine.remote.server_health import MAX_LOSSES
from cerebrum_cli.engine.sequence import Failure, Request


@dataclass(eq=False, slots=True)
class PooledRequest:
    """A request that has unfinished samples, or may get more; all its jobs go to the server that evaluates the prompt.

    `seed` is that of the first sample.
    """

    request: Request
    seed: int
    emit: Callable[[Event | Failure], None]
    server: object = None
    samples: int = 0
    unfinished: int = 0
    is_aborted: bool = False

    @property
    def is_over(self) -> bool:
        return not self.unfinished and (self.is_aborted or self.samples >= max(self.request.n, self.request.max_n))


@dataclass(eq=False, slots=True)
class PoolJob:
    """Samples of one request that one server generates together, or fewer where it takes fewer in one request.

    A running one began at `start`, and something last arrived of it at `alive_at`. `stopped_by` is why it was taken
    from its server; it was recalled from those in `left`.
    """

    pooled: PooledRequest
    samples: tuple[RemoteSample, ...]
    losses: int = 0
    left: tuple[object, ...] = ()
    has_output: bool = False
    start: float = 0.0
    alive_at: float = 0.0
    load: int = 0
    origin: Origin | None = None
    stopped_by: BaseException | None = None

    @property
    def request(self) -> Request:
        return self.pooled.request

    @property
    def is_suspect(self) -> bool:
        """Whether one more lost server ends it: it then gets a server of its own, to be the only possible cause."""
        return self.losses == MAX_LOSSES - 1

    @property
    def unfinished(self) -> list[RemoteSample]:
        return [sample for sample in self.samples if not sample.is_finished]

    def take(self, count: int) -> PoolJob:
        """A job of the first samples, up to `count`; the others stay in this one."""
        taken, self.samples = self.samples[:count], self.samples[count:]
        return PoolJob(self.pooled, taken, self.losses, self.left)

    def report(self, events: Iterable[Event]) -> None:
        """Emit events of the samples, and remember which of these are finished."""
        for event in events:
            if isinstance(event, FinishEvent | RefusedEvent):
                for sample in self.samples:
                    sample.is_finished = sample.is_finished or sample.id == event.sequence
            self.pooled.emit(event)

    def cancel(self) -> None:
        self.report([sample.finish("cancelled") for sample in self.unfinished])

    def refuse(self, error: CerebrumError) -> None:
        self.report([RefusedEvent(sample.id, error, self.origin) for sample in self.unfinished])
