"""The interface of engines: of the model on this machine, or of servers."""

from __future__ import annotations

import atexit
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.events import (
    Emit,
    Event,
    FinishEvent,
    RefusedEvent,
    SequenceId,
)
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.token_ids import TokenIds
from cerebrum_cli.engine.step import StopFlag

if TYPE_CHECKING:
    from cerebrum_cli.core.vocabulary import Vocabulary
    from cerebrum_cli.engine.backend import Backend
    from cerebrum_cli.engine.loglikelihood import ScoreRequest, ScoringEvent
    from cerebrum_cli.engine.requests import ReplySample, Request

T = TypeVar("T")

SIGNAL_CHECK_S = 0.5

# Load a model and report progress; the flag interrupts the load and all later decodes.
OpenBackend: TypeAlias = "Callable[[Emit, StopFlag], Backend]"
# What `Engine.cancel_scope` is when some work starts: set once everything is cancelled, also while nothing runs.
CancelScope: TypeAlias = threading.Event

OnSampleEvent: TypeAlias = "Callable[[Event | BaseException], None]"  # receives events of a sample, or its error


class EventQueue(SimpleQueue[T | BaseException | None], Iterator[T]):
    """The events of some work, from the thread that does it to those that wait; None or an error ends them.

    An error is raised. After the end, nothing follows, or the error is raised again.
    """

    def __init__(self) -> None:
        self._process = os.getpid()

    def __next__(self) -> T:
        """Wait for the next event, and for signals. Raises EngineError after a fork.

        Python does not end a wait for a signal that came after its last check and before the wait, so waits are short.
        """
        while True:
            try:
                event = self.get(timeout=SIGNAL_CHECK_S)
                break
            except Empty:
                require_process(self._process)
        if event is not None and not isinstance(event, BaseException):
            return event
        self.put(event)  # for later calls
        raise event or StopIteration


def require_process(opened_in: int) -> None:
    """Raise EngineError in a process that was forked from this one: it has no copy of the engine's thread."""
    if os.getpid() != opened_in:
        raise EngineError("the model was opened in another process, before a fork", "open it in the new process")


class Completions(Iterator[Event]):
    """Iterator over the events of all samples, each ending with a FinishEvent or RefusedEvent; for one thread.

    A FinishEvent that `is_followed` has another after it.

    It stops when no sample is running. Closing it frees what the samples hold before returning. Samples added after
    its scope was cancelled finish as `cancelled`.
    """

    def __init__(self, scope: CancelScope) -> None:
        self._scope = scope
        self._outbox: EventQueue[Event] = EventQueue()
        self._live: dict[SequenceId, ReplySample] = {}  # samples that have not finished

    def __next__(self) -> Event:
        if not self._live:
            raise StopIteration
        event = next(self._outbox)
        if isinstance(event, RefusedEvent) or (isinstance(event, FinishEvent) and not event.is_followed):
            del self._live[event.sequence._replace(turn=0)]
            self._end_sample(event.sequence.request)
        return event

    @abstractmethod
    def add_samples(self, index: int, count: int) -> None:
        """Add `count` samples to a request; their seeds continue the sequence."""

    @abstractmethod
    def abort(self, index: int) -> None:
        """Cancel the running samples of a request, without loss to others; each finishes as `cancelled`."""

    @abstractmethod
    def close(self) -> None:
        """Cancel all that is running."""

    def _end_sample(self, index: int) -> None:
        """Free what a request no longer needs after one of its samples has finished."""


class Engine(ABC):
    """Generates completions of token sequences, on a thread of its own, which starts loading immediately.

    `has_failed`: loading has. `cancel_scope` is that of work that starts now. Subclasses are ready for their thread
    before they call the constructor of this one.
    """

    def __init__(self, thread: str) -> None:
        self._loading = EventQueue[Event]()
        self._backend: Backend | None = None
        self.cancel_scope = CancelScope()
        self.has_failed = False
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name=thread, daemon=True)
        self._thread.start()
        atexit.register(self.close)  # native code must not outlive the interpreter

    @cached_property
    def _stop(self) -> StopFlag:
        return StopFlag()

    @abstractmethod
    def _run(self) -> None:
        """Load on this thread, then do all work until the engine is closed."""

    def load(self) -> Iterator[Event]:
        """Yield load events until the model is ready; raise if loading failed, or after a fork.

        Later calls yield nothing.
        """
        require_process(self._process)
        return self._loading

    @property
    @abstractmethod
    def is_loaded(self) -> bool:
        """Whether the model is ready; false while it loads, after a failure and after `close`."""

    @property
    def backend(self) -> Backend:
        """The loaded model; EngineError before `load` and after `close`."""
        if self._backend is None:
            raise EngineError("the model is not loaded")
        return self._backend

    @property
    def vocabulary(self) -> Vocabulary:
        """The model's vocabulary; EngineError before `load` and after `close`."""
        return self.backend

    @property
    @abstractmethod
    def context_size(self) -> int:
        """Maximum length of a sequence, in tokens; EngineError before `load` and after `close`."""

    def grow(self, length: int) -> None:  # noqa: B027
        """Enlarge the context for the next request, as far as memory allows."""

    @property
    def repacks(self) -> bool | None:
        """Whether weights were repacked for speed; None if they are on a server."""
        return None

    @property
    def conditions(self) -> JsonDict:
        """The hardware and the options that replies depend on, by readable names; none before there is a context."""
        return {}

    @property
    def builds(self) -> Sequence[Mapping[str, str]]:
        """Kinds and builds of servers, to be recorded with the output; none for a local model."""
        return ()

    @abstractmethod
    def complete(self, requests: Iterable[Request], scope: CancelScope | None = None) -> Completions:
        """Submit requests, whose prompts must be shorter than the context; close the result when done.

        A `scope` that began before makes a `cancel` in between count.
        """

    def score(self, requests: Iterable[ScoreRequest]) -> Generator[ScoringEvent, None, None]:  # noqa: ARG002
        """Yield LogprobScores, or a RefusedEvent, for each request as it finishes, and progress in between.

        Nothing else runs meanwhile. After a cancel the stream ends early; closing it frees the slots before returning.
        """
        raise EngineError("only a local model can score given texts", "omit --endpoint")

    def cancel(self) -> None:
        """Cancel everything, loading included; streams end with the finish reason `cancelled`."""
        scope = self.cancel_scope
        self.cancel_scope = CancelScope()
        scope.set()  # it holds a lock meanwhile, and a signal handler may cancel again

    def save_prompts(self, min_tokens: int, prompt: TokenIds | None = None) -> None:  # noqa: B027
        """Save evaluated tokens, of which `min_tokens` are not saved yet, if there is a prompt cache.

        They are then dropped from memory. With a prompt, only those of the sequence that has the most of it are saved.
        Raises EngineError if that fails.
        """

    def save_prefix(self, tokens: TokenIds) -> None:  # noqa: B027
        """Save a common prefix of prompts that has been evaluated, if there is a prompt cache."""

    def group_by_length(self, requests: Sequence[Request]) -> list[list[int]]:
        """Divide requests, by index, into groups to complete one after the other, the shortest first.

        Memory is allocated for the longest sequence of those submitted together. Call it while nothing runs.
        """
        return [list(range(len(requests)))]

    @abstractmethod
    def close(self, frees: bool = True) -> None:
        """Cancel everything and free what the engine holds; it cannot be used again.

        Where the process ends, its memory need not be freed: the system does that faster.
        """
