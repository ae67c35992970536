"""Generate many completions concurrently, with a model on this machine.

One thread owns the model: it loads it and then repeats three steps: schedule, decode, process the output. Callers on
other threads read events from a queue, so signals are handled during a long prefill. Closing a stream of events frees
its slots.
"""

from __future__ import annotations

import atexit
import threading
from bisect import bisect_left
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from queue import SimpleQueue
from time import perf_counter
from typing import TYPE_CHECKING

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.events import Event, RefusedEvent, SequenceId
from cerebrum_cli.engine.backend import Backend, OpenBackend, StopFlag, Vocabulary
from cerebrum_cli.engine.completions import LocalCompletions
from cerebrum_cli.engine.engine import CancelScope, Capabilities, LoadEvents, raise_refusals
from cerebrum_cli.engine.loop import Loop
from cerebrum_cli.engine.memory import group_lengths
from cerebrum_cli.engine.messages import (
    Cancel,
    Close,
    Commands,
    SavePromptCache,
    Submit,
    SubmitScores,
)
from cerebrum_cli.engine.sequence import Failure, Request, next_item
from cerebrum_cli.engine.state_store import StateStore

if TYPE_CHECKING:
    from cerebrum_cli.engine.scoring import ScoreRequest, ScoringEvent


CAPABILITIES = Capabilities()


class LocalEngine:
    """A model on its own thread, which starts loading it immediately; prompts are cached on disk in `state_store`."""

    def __init__(self, open_backend: OpenBackend, state_store: StateStore | None = None) -> None:
        self._open = open_backend
        self._state_store = state_store
        self._stop = StopFlag()
        self._commands = Commands(self._stop)
        self._loading = LoadEvents()
        self._backend: Backend | None = None
        self.has_failed = False  # to load the model
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # native code must not outlive the interpreter

    # For callers, on any thread.

    @property
    def capabilities(self) -> Capabilities:
        return CAPABILITIES

    def load(self) -> Iterator[Event]:
        """Yield load events until the model is ready; raise if loading failed. Later calls yield nothing."""
        return iter(self._loading)

    @property
    def is_loaded(self) -> bool:
        """Whether the model is ready; false while it loads, after a failure and after `close`."""
        return self._backend is not None

    @property
    def backend(self) -> Backend:
        """The loaded model; EngineError before `load` and after `close`."""
        if self._backend is None:
            raise EngineError("the model is not loaded")
        return self._backend

    @property
    def vocabulary(self) -> Vocabulary:
        return self.backend

    @property
    def context_size(self) -> int:
        return self.backend.context_size

    def generate(self, requests: Iterable[Request]) -> Generator[Event, None, None]:
        """Yield the events of all samples of all requests as they occur, each ending with a FinishEvent.

        Prompts must be shorter than the context. Closing the generator frees the slots before returning.
        """
        with closing(self.complete(requests)) as completions:
            yield from raise_refusals(completions)

    @property
    def builds(self) -> tuple[()]:
        return ()

    def complete(self, requests: Iterable[Request | None], scope: CancelScope | None = None) -> LocalCompletions:
        """Submit requests; samples can be added and aborted while they run. Close the result when done.

        A `scope` that began before makes a `cancel` in between count.
        """
        completions = LocalCompletions(self._commands, scope or self.cancel_scope())
        completions.add(request for request in requests if request)
        return completions

    def group_by_length(self, requests: Iterable[Request]) -> list[list[int]]:
        """Divide requests, named by index, into groups to complete one after the other, the shortest first.

        Memory is allocated for the longest sequence of those submitted together. Call it while nothing runs.
        """
        backend, requests = self.backend, list(requests)
        lengths = [request.expected_length(backend.context_size) for request in requests]
        samples = (length for length, request in zip(lengths, requests, strict=True) for _ in range(request.n))
        limits = group_lengths(samples, backend.slots_for)
        groups: list[list[int]] = [[] for _ in limits]
        for index, length in enumerate(lengths):
            groups[bisect_left(limits, length)].append(index)
        return groups

    def score(
        self, requests: Iterable[ScoreRequest], scope: CancelScope | None = None
    ) -> Generator[ScoringEvent, None, None]:
        """Yield a ScoreEvent, or a RefusedEvent, for each request as it finishes, and progress in between.

        Nothing else runs meanwhile, and all slots are empty afterwards. After a cancel the stream ends early:
        `scope.is_cancelled`. Closing the generator frees the slots before returning. The model must be loaded.
        """
        from cerebrum_cli.engine.scoring import ScoreJob, refusal

        context_size = self.backend.context_size
        accepted: dict[int, ScoreRequest] = {}
        for index, request in enumerate(requests):
            if error := refusal(request, context_size):
                yield RefusedEvent(SequenceId(index), error)
            else:
                accepted[index] = request
        outbox: SimpleQueue[ScoringEvent | Failure | None] = SimpleQueue()
        job = ScoreJob(accepted, outbox.put)
        if not self._commands.send(SubmitScores(job, scope or self.cancel_scope())):
            raise EngineError("the engine is closed")
        is_running = True
        try:
            while is_running:
                event = next_item(outbox)
                is_running = not (event is None or isinstance(event, Failure))
                if isinstance(event, Failure):
                    raise event.error
                if event is not None:
                    yield event
        finally:
            cancel = Cancel([job], threading.Event())
            if is_running and self._commands.send(cancel):
                cancel.done.wait()

    def cancel_scope(self) -> CancelScope:
        """Start a scope, for work that submits requests more than once."""
        return CancelScope(lambda: self._commands.cancel_count)

    def cancel(self) -> None:
        """Cancel everything, loading included; streams end with the finish reason `cancelled`."""
        self._commands.send(Cancel(None, threading.Event()))

    def save_prompt_cache(self, min_tokens: int, prompt: tuple[int, ...] | None = None) -> None:
        """Save idle slots with at least `min_tokens` unsaved tokens to disk.

        With a `prompt`, save only the slot that matches most of it: others hold other conversations.

        Call it while nothing runs: running sequences are not saved, and wait meanwhile. Does nothing without a store
        or a loaded model. Raises EngineError if a state cannot be written.
        """
        self._save(SavePromptCache(min_tokens, prompt, SimpleQueue()))

    def save_prefix(self, tokens: tuple[int, ...]) -> None:
        """Save a common prefix of later prompts to disk; the idle slot that holds it drops the rest."""
        self._save(SavePromptCache(0, None, SimpleQueue(), tokens))

    def _save(self, command: SavePromptCache) -> None:
        if self._state_store is None or not self.is_loaded or not self._commands.send(command):
            return
        failure = command.result.get()
        if failure:
            raise failure.error

    def close(self) -> None:
        """Cancel everything and free the model; the engine cannot be used again."""
        self._commands.send(Close())
        self._thread.join()
        atexit.unregister(self.close)

    # On the engine's thread.

    def _run(self) -> None:
        start = perf_counter()
        try:
            backend = self._open(self._loading.emit, self._stop)
        except BaseException as error:
            self.has_failed = True
            self._loading.end(error)
            fail_commands(self._commands, error)
            return
        self._backend = backend
        self._loading.end()
        loop = Loop(backend, perf_counter() - start, self._state_store)
        try:
            while loop.process_commands(self._commands):
                loop.step()
        except BaseException as error:  # a bug: all callers get it, now and later
            loop.fail(error)
            fail_commands(self._commands, error)
        finally:
            self._backend = None  # from now on callers get an error, not freed memory
            backend.close()


def fail_commands(commands: Commands, error: BaseException) -> None:
    """Answer all commands up to Close with the error that ended this thread."""
    while not isinstance(command := commands.take(wait=True), Close):
        if isinstance(command, Submit):
            for sequence in command.sequences:
                sequence.emit(Failure(error))
        elif isinstance(command, SubmitScores):
            command.job.emit(Failure(error))
        elif isinstance(command, Cancel):
            command.done.set()
        elif isinstance(command, SavePromptCache):
            command.result.put(None)
