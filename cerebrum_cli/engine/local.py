"""Generate many completions concurrently, with a model on this machine.

One thread owns the model: it loads it and then repeats three steps: schedule, decode, process the output. Callers on
other threads read events from a queue, so signals are handled during a long prefill. Closing a stream of events frees
its slots.
"""

from __future__ import annotations

import atexit
import threading
from bisect import bisect_left
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from time import perf_counter
from typing import TYPE_CHECKING

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.events import Event, RefusedEvent, SequenceId
from cerebrum_cli.engine.backend import OpenBackend, StopFlag
from cerebrum_cli.engine.commands import Cancel, Close, Commands, Submit, UsePromptCache
from cerebrum_cli.engine.engine import (
    CancelScope,
    Completions,
    Engine,
    EventQueue,
    first_seed,
    raise_refusals,
)
from cerebrum_cli.engine.loop import Loop
from cerebrum_cli.engine.memory_plan import group_lengths
from cerebrum_cli.engine.sequence import Failure, InspectionRequest, Request, Sequence, create_sequences
from cerebrum_cli.engine.state_store import StateStore

if TYPE_CHECKING:
    from cerebrum_cli.engine.drafter import Drafter
    from cerebrum_cli.engine.prompt_cache import PromptCache
    from cerebrum_cli.engine.scoring import ScoreRequest, ScoringEvent


MAX_BACKLOG = 10_000  # events; with a slow reader, no sequence is admitted above it


@dataclass(slots=True)
class SubmittedRequest:
    """A request, the seed of its first sample, their number so far, and their drafter until the last is done."""

    request: Request
    seed: int
    drafter: Drafter | None
    samples: int = 0


class LocalCompletions(Completions[Sequence]):
    """Completions of the model on this machine. Closing them frees the slots before returning."""

    def __init__(self, commands: Commands, scope: CancelScope, submitted: list[SubmittedRequest]) -> None:
        super().__init__(scope)
        self._commands = commands
        self._submitted = submitted

    def add_samples(self, index: int, count: int) -> None:
        """Add samples, before all that waits: they complete a vote, whose row should not wait for all others."""
        self.submit([(index, count)], first=True)

    def inspect(self, index: int, replies: Mapping[int, tuple[int, ...]]) -> bool:
        prompt, new = tuple(self._submitted[index].request.prompt_tokens), list[Sequence]()
        for sample, tokens in replies.items():
            request = InspectionRequest.of_reply(prompt, tokens)
            new += create_sequences(index, request, self._outbox.put, [sample], 0)
        is_sent = self._commands.send(Submit(new, self._scope, first=True))
        self._live.update((sequence.id, sequence) for sequence in new if is_sent)
        return is_sent

    def abort(self, index: int) -> None:
        """Cancel the running samples after the current step; samples added later get no drafted tokens."""
        if index < len(self._submitted):
            self._submitted[index].drafter = None
            self._commands.send(Cancel(self._live_samples(index), threading.Event(), interrupts=False))

    def close(self) -> None:
        if self._live:
            self._commands.cancel(list(self._live.values()))
        self._live.clear()

    def submit(self, counts: Iterable[tuple[int, int]], first: bool = False) -> None:
        """Submit samples: the indexes of their requests, and numbers. Raises EngineError if the engine is closed."""
        new: list[Sequence] = []
        emit, is_backlogged = self._outbox.put, lambda: self._outbox.qsize() > MAX_BACKLOG
        for index, count in counts:
            submitted = self._submitted[index]
            request, drafter = submitted.request, submitted.drafter
            samples = range(submitted.samples, submitted.samples + count)
            new += create_sequences(index, request, emit, samples, submitted.seed, is_backlogged, drafter)
            submitted.samples += count
        self._live.update((sequence.id, sequence) for sequence in new)
        if not self._commands.send(Submit(new, self._scope, first)):
            self._live.clear()
            raise EngineError("the engine is closed")

    def _live_samples(self, index: int) -> list[Sequence]:
        ids = (SequenceId(index, sample) for sample in range(self._submitted[index].samples))
        return [self._live[id] for id in ids if id in self._live]

    def _end_sample(self, index: int) -> None:
        submitted = self._submitted[index]
        if submitted.drafter is None:
            return
        if submitted.samples >= max(submitted.request.n, submitted.request.max_n) and not self._live_samples(index):
            submitted.drafter = None  # it takes half a kilobyte a token


class LocalEngine(Engine):
    """A model on its own thread, which starts loading it immediately; prompts are cached on disk in `state_store`.

    States of preempted sequences are saved in a new directory in `swap_directory`, or in the system's for temporary
    files.
    """

    def __init__(
        self, open_backend: OpenBackend, state_store: StateStore | None = None, swap_directory: Path | None = None
    ) -> None:
        self._open = open_backend
        self._state_store = state_store
        self._swap_directory = swap_directory
        self._stop = StopFlag()
        self._commands = Commands(self._stop)
        super().__init__("engine")

    # For callers, on any thread.

    @property
    def is_loaded(self) -> bool:
        return self._backend is not None

    @property
    def context_size(self) -> int:
        return self.backend.context_size

    def generate(self, requests: Iterable[Request]) -> Generator[Event, None, None]:
        """Yield the events of all samples of all requests as they occur, each ending with a FinishEvent.

        Prompts must be shorter than the context. Closing the generator frees the slots before returning.
        """
        with closing(self.complete(requests)) as completions:
            yield from raise_refusals(completions)

    def complete(self, requests: Iterable[Request | None], scope: CancelScope | None = None) -> LocalCompletions:
        submitted = []
        for request in filter(None, requests):
            drafter = None
            if request.step_costs:
                from cerebrum_cli.engine.drafter import Drafter

                drafter = Drafter(request.prompt_tokens)
            submitted.append(SubmittedRequest(request, first_seed(request), drafter))
        completions = LocalCompletions(self._commands, scope or self.cancel_scope(), submitted)
        completions.submit((index, start.request.n) for index, start in enumerate(submitted))
        return completions

    def group_by_length(self, requests: Iterable[Request]) -> list[list[int]]:
        # Memory is allocated for the longest sequence of those submitted together.
        backend, requests = self.backend, list(requests)
        lengths = [request.expected_length(backend.context_size) for request in requests]
        samples = (length for length, request in zip(lengths, requests, strict=True) for _ in range(request.n))
        limits = group_lengths(samples, backend.slots_for)
        groups: list[list[int]] = [[] for _ in limits]
        for index, length in enumerate(lengths):
            groups[bisect_left(limits, length)].append(index)
        return groups

    def score(self, requests: Iterable[ScoreRequest]) -> Generator[ScoringEvent, None, None]:
        from cerebrum_cli.engine.scoring import ScoreJob, refusal

        context_size = self.backend.context_size
        accepted: dict[int, ScoreRequest] = {}
        for index, request in enumerate(requests):
            if error := refusal(request, context_size):
                yield RefusedEvent(SequenceId(index), error)
            else:
                accepted[index] = request
        events: EventQueue[ScoringEvent] = EventQueue()
        job = ScoreJob(accepted, events.put)
        if not self._commands.send(Submit(job, self.cancel_scope())):
            raise EngineError("the engine is closed")
        is_running = True
        try:
            yield from events
            is_running = False
        finally:
            if is_running:
                self._commands.cancel([job])

    def cancel_scope(self) -> CancelScope:
        return CancelScope(lambda: self._commands.cancel_count)

    def cancel(self) -> None:
        self._commands.send(Cancel(None, threading.Event()))

    def save_prompt_cache(self, min_tokens: int, prompt: tuple[int, ...] | None = None, empties: bool = False) -> None:
        """Save idle slots; running sequences are not saved, and wait meanwhile. EngineError if writing fails."""
        self._use_prompt_cache(lambda cache: cache.save(min_tokens, prompt, empties))

    def save_prefix(self, tokens: tuple[int, ...]) -> None:
        """Save a common prefix of later prompts to disk; the idle slot that holds it drops the rest."""
        self._use_prompt_cache(lambda cache: cache.save_prefix(tokens))

    def _use_prompt_cache(self, function: Callable[[PromptCache], None]) -> None:
        command = UsePromptCache(function, SimpleQueue())
        if self._state_store is None or not self.is_loaded or not self._commands.send(command):
            return
        if failure := command.result.get():
            raise failure.error

    def close(self) -> None:
        self._commands.send(Close())
        self._thread.join()
        atexit.unregister(self.close)

    # On the engine's thread.

    def _run(self) -> None:
        start = perf_counter()
        try:
            backend = self._open(self._loading.put, self._stop)
        except BaseException as error:
            self.has_failed = True
            self._loading.put(Failure(error))
            fail_commands(self._commands, error)
            return
        self._backend = backend
        self._loading.put(None)
        loop = Loop(backend, perf_counter() - start, self._state_store, self._swap_directory)
        try:
            while loop.process_commands(self._commands):
                loop.step()
        except BaseException as error:  # a bug: all callers get it, now and later
            loop.fail(error)
            fail_commands(self._commands, error)
        finally:
            self._backend = None  # from now on callers get an error, not freed memory
            loop.close()
            backend.close()


def fail_commands(commands: Commands, error: BaseException) -> None:
    """Answer all commands up to Close with the error that ended this thread."""
    while not isinstance(command := commands.take(wait=True), Close):
        if isinstance(command, Submit):
            for work in command.work if isinstance(command.work, list) else [command.work]:
                work.emit(Failure(error))
        elif isinstance(command, Cancel):
            command.done.set()
        elif isinstance(command, UsePromptCache):
            command.result.put(None)
