"""Running completions: a stream of their events, with methods to add and abort samples."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from queue import SimpleQueue
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from cerebrum_cli.core.errors import EngineError, UsageError
from cerebrum_cli.core.events import Event, FinishEvent, RefusedEvent, SequenceId
from cerebrum_cli.engine.engine import CancelScope
from cerebrum_cli.engine.messages import Abort, Cancel, Commands, Submit
from cerebrum_cli.engine.sequence import Failure, Request, Sequence, create_sequences, first_seed, next_item

if TYPE_CHECKING:
    from cerebrum_cli.engine.drafter import Drafter

MAX_BACKLOG = 10_000  # events; with a slow reader, no sequence is admitted above it

LiveSample = TypeVar("LiveSample")


class RunningCompletions(ABC, Generic[LiveSample]):
    """Iterator over the events of all samples, each ending with a FinishEvent or RefusedEvent; for one thread.

    It stops when no sample is running. Samples added after `scope` was cancelled finish as `cancelled`.
    """

    def __init__(self, scope: CancelScope) -> None:
        self._scope = scope
        self._outbox: SimpleQueue[Event | Failure] = SimpleQueue()
        self._live: dict[SequenceId, LiveSample] = {}  # samples that have not finished

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        if not self._live:
            raise StopIteration
        event = next_item(self._outbox)
        if isinstance(event, Failure):
            raise event.error
        if isinstance(event, (FinishEvent, RefusedEvent)):
            del self._live[event.sequence]
            self._end_sample(event.sequence.request)
        return event

    @abstractmethod
    def _end_sample(self, index: int) -> None:
        """Free what a request no longer needs after one of its samples has finished."""


class SubmittedRequest(NamedTuple):
    """A request with the seed of its first sample, and the drafter of all its samples, until the last is done."""

    request: Request
    seed: int
    drafter: Drafter | None


class LocalCompletions(RunningCompletions[Sequence]):
    """Completions of the model on this machine. Closing them frees the slots before returning."""

    def __init__(self, commands: Commands, scope: CancelScope) -> None:
        super().__init__(scope)
        self._commands = commands
        self._submitted: list[SubmittedRequest] = []
        self.sample_counts: list[int] = []  # by request

    def add(self, requests: Iterable[Request]) -> None:
        """Submit requests, numbered in the order they are added; EngineError if the engine is closed."""
        submitted = [SubmittedRequest(request, checked_seed(request), new_drafter(request)) for request in requests]
        first = len(self._submitted)
        self._submitted += submitted
        self.sample_counts += [0] * len(submitted)
        self._submit((index, self._submitted[index].request.n) for index in range(first, len(self._submitted)))

    def add_samples(self, index: int, count: int) -> None:
        """Add `count` samples to a request; their seeds continue the sequence."""
        self._submit([(index, count)])

    def abort(self, index: int) -> None:
        """Cancel the running samples of a request after the current step; each finishes as `cancelled`.

        Samples added later get no drafted tokens.
        """
        if index < len(self._submitted):
            self._free_drafter(index)
            self._commands.send(Abort(self._live_samples(index)))

    def close(self) -> None:
        command = Cancel(list(self._live.values()), threading.Event())
        if self._live and self._commands.send(command):
            command.done.wait()
        self._live.clear()

    def _submit(self, counts: Iterable[tuple[int, int]]) -> None:
        new: list[Sequence] = []
        for index, count in counts:
            request, seed, drafter = self._submitted[index]
            samples = range(self.sample_counts[index], self.sample_counts[index] + count)
            new += create_sequences(index, request, self._outbox.put, samples, seed, self._is_backlogged, drafter)
            self.sample_counts[index] += count
        self._live.update((sequence.id, sequence) for sequence in new)
        if not self._commands.send(Submit(new, self._scope)):
            self._live.clear()
            raise EngineError("the engine is closed")

    def _live_samples(self, index: int) -> list[Sequence]:
        """Samples of a request that have not finished."""
        ids = (SequenceId(index, sample) for sample in range(self.sample_counts[index]))
        return [self._live[id] for id in ids if id in self._live]

    def _end_sample(self, index: int) -> None:
        """Free the drafter of a request once all its samples have finished."""
        request = self._submitted[index].request
        if self.sample_counts[index] >= max(request.n, request.max_n) and not self._live_samples(index):
            self._free_drafter(index)

    def _free_drafter(self, index: int) -> None:
        """Forget a drafter, which takes half a kilobyte a token; samples that run still use it."""
        self._submitted[index] = self._submitted[index]._replace(drafter=None)

    def _is_backlogged(self) -> bool:
        return self._outbox.qsize() > MAX_BACKLOG


def checked_seed(request: Request) -> int:
    """Seed of a request's first sample. Raises UsageError if its prompt is empty."""
    if not request.prompt_tokens:
        raise UsageError("the prompt is empty", "write a prompt")
    return first_seed(request)


def new_drafter(request: Request) -> Drafter | None:
    """The drafter of a request; None without speculative decoding."""
    if request.step_costs is None:
        return None
    from cerebrum_cli.engine.drafter import Drafter

    return Drafter(request.prompt_tokens)
