"""Generate many completions concurrently, with a model on this machine.

One thread owns the model: it loads it and then repeats three steps: schedule, decode, process the output. Callers on
other threads read events from a queue, so signals are handled during a long prefill. Closing a stream of events frees
its slots.

The thread executes commands between its steps, in the order they were sent. There is one way to interrupt it, which is
to cancel: all that is left of the work ends as `cancelled`. A step, or the load, that is running ends first, by a flag
that llama.cpp reads, unless others would lose work by that and nobody waits. Whoever submits work more than once has a
CancelScope, so that what comes after a cancel of everything ends as `cancelled`, too.
"""

from __future__ import annotations

import atexit
import os
import threading
from bisect import bisect_left
from collections.abc import Callable, Collection, Generator, Iterable, Sequence as Many
from dataclasses import dataclass, field
from importlib import import_module
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import TYPE_CHECKING, NamedTuple

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.events import Event, SequenceId
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.sampling import SEEDS
from cerebrum_cli.core.token_ids import TokenIds
from cerebrum_cli.engine.engine import (
    CancelScope,
    Completions,
    Engine,
    EventQueue,
)
from cerebrum_cli.engine.memory import group_lengths
from cerebrum_cli.engine.requests import Request
from cerebrum_cli.engine.sequence import Sequence, Work, fail_work
from cerebrum_cli.engine.step import StopFlag

if TYPE_CHECKING:
    from cerebrum_cli.engine.engine import OpenBackend
    from cerebrum_cli.engine.loglikelihood import ScoreRequest, ScoringEvent
    from cerebrum_cli.engine.loop import Loop
    from cerebrum_cli.engine.prompt_cache import PromptCache, StateStore


# Until native code loads, the engine's thread imports modules; others would slow it down by importing their own.
IMPORTING_S = 0.1


class EngineCommand(NamedTuple):
    """A function to call with the loop, or else one with the error that has ended it.

    `interrupts`: the running step ends first. `is_last`: so does the thread, afterwards.
    """

    execute: Callable[[Loop], object]
    fail: Callable[[BaseException], object]
    interrupts: bool = False
    is_last: bool = False


@dataclass(slots=True, eq=False)
class Commands:
    """Queue of commands to the engine's thread; nothing is accepted after the last one."""

    _stop: StopFlag
    _queue: SimpleQueue[EngineCommand] = field(default_factory=SimpleQueue)
    _process: int = field(default_factory=os.getpid)
    _lock: threading.RLock = field(default_factory=threading.RLock)  # reentrant: a signal handler may cancel
    _is_closed: bool = False

    def submit(self, work: Work, scope: CancelScope, first: bool = False) -> None:
        """Run work, or end it if its scope is cancelled: only the engine's thread knows which came first.

        Sequences that go `first` are admitted before others that wait. Raises EngineError if the engine is closed.
        """
        command = EngineCommand(lambda loop: loop.submit(work, scope, first), lambda error: fail_work(work, error))
        if not self.send(command):
            raise EngineError("the engine is closed")

    def cancel(self, work: Collection[object] | None, interrupts: bool = True) -> EventQueue[None]:
        """Cancel work, or all; the queue ends when its slots are free. `interrupts`: the running step ends first."""
        return self.call(lambda loop: loop.cancel(work), interrupts)

    def call(self, function: Callable[[Loop], object], interrupts: bool = False) -> EventQueue[None]:
        """Call a function with the loop; the queue ends when it has returned, or raises its error."""
        done = EventQueue[None]()

        def call(loop: Loop) -> None:
            try:
                function(loop)
                done.put(None)
            except Exception as error:
                done.put(error)

        if not self.send(EngineCommand(call, lambda _: done.put(None), interrupts)):
            done.put(None)
        return done

    def send(self, command: EngineCommand) -> bool:
        """Send a command; False if the engine is closed, or in a forked process."""
        if os.getpid() != self._process:  # another thread may have held the lock
            return False
        with self._lock:
            if self._is_closed:
                return False
            if command.interrupts:
                self._stop.set()
            self._is_closed = command.is_last
            self._queue.put(command)
            return True

    def execute(self, loop: Loop) -> bool:
        """Execute all queued commands, waiting for one if no work is left; False after the last one."""
        while command := self.take(wait=loop.is_idle):
            command.execute(loop)
            if command.is_last:
                return False
        return True

    def take(self, wait: bool) -> EngineCommand | None:
        """Take the next command, or None if the queue is empty and `wait` is False.

        The stop flag is cleared after its command left the queue, and never between another command's flag and that
        command, so a caller that drains the queue before each step neither misses nor repeats an interruption.
        """
        try:
            command = self._queue.get(block=wait)
        except Empty:
            return None
        if command.interrupts:
            with self._lock:
                self._stop.clear()
        return command


class LocalCompletions(Completions):
    """Completions of the model on this machine. Closing them frees the slots before returning."""

    def __init__(self, commands: Commands, scope: CancelScope, requests: Iterable[Request]) -> None:
        super().__init__(scope)
        self._commands = commands
        self._requests = list(requests)
        self._counts = [0] * len(self._requests)  # of samples
        self._seeds = []
        for request in self._requests:
            self._seeds.append(request.first_seed())
        new = []
        for index, request in enumerate(self._requests):
            new += self._create(index, request.ask.n)
        self._submit(new)

    def add_samples(self, index: int, count: int) -> None:
        """Add samples, before all that waits: they complete a vote, whose row should not wait for all others."""
        self._submit(self._create(index, count), first=True)

    def abort(self, index: int) -> None:
        """Cancel the running samples after the current step."""
        ids = [SequenceId(index, sample) for sample in range(self._counts[index])]
        self._commands.cancel([self._live[id] for id in ids if id in self._live], interrupts=False)

    def close(self) -> None:
        if self._live:
            list(self._commands.cancel(self._live.values()))
        self._live.clear()

    def _create(self, index: int, count: int) -> list[Sequence]:
        """The next samples of a request, whose seeds follow each other."""
        start = self._counts[index]
        self._counts[index] += count
        new = []
        for sample in range(start, start + count):
            seed = (self._seeds[index] + sample) % SEEDS
            new.append(Sequence(SequenceId(index, sample), self._requests[index], seed, self._outbox.put))
        return new

    def _submit(self, new: list[Sequence], first: bool = False) -> None:
        """Submit samples. Raises EngineError if the engine is closed."""
        self._commands.submit(new, self._scope, first)
        for sequence in new:
            self._live[sequence.id] = sequence


class LocalEngine(Engine):
    """A model on its own thread, which starts loading it immediately; prompts are cached on disk by `open_cache`."""

    def __init__(self, open_backend: OpenBackend, open_cache: Callable[[], StateStore] | None = None) -> None:
        self._open = open_backend
        self._open_cache = open_cache
        self._commands = Commands(self._stop)
        self._reports = threading.Event()
        self._frees = True
        super().__init__("engine")
        self._reports.wait(IMPORTING_S)
        import_module("cerebrum_cli.engine.loop")  # which the engine's thread needs next

    # For callers, on any thread.

    @property
    def is_loaded(self) -> bool:
        return self._backend is not None

    @property
    def context_size(self) -> int:
        return self.backend.context_size

    def grow(self, length: int) -> None:
        self.backend.grow(length)

    @property
    def repacks(self) -> bool:
        return self.backend.repacks

    @property
    def conditions(self) -> JsonDict:
        return self.backend.conditions if self.backend.capacity else {}

    def group_by_length(self, requests: Many[Request]) -> list[list[int]]:
        lengths = [request.expected_length(self.context_size) for request in requests]
        samples = []
        for request, length in zip(requests, lengths, strict=True):
            samples += [length] * request.ask.n
        limits = group_lengths(samples)
        groups: list[list[int]] = [[] for _ in limits]
        for index, length in enumerate(lengths):
            groups[bisect_left(limits, length)].append(index)
        return groups

    def complete(self, requests: Iterable[Request], scope: CancelScope | None = None) -> LocalCompletions:
        return LocalCompletions(self._commands, scope or self.cancel_scope, requests)

    def score(self, requests: Iterable[ScoreRequest]) -> Generator[ScoringEvent, None, None]:
        from cerebrum_cli.engine.loglikelihood import ScoreJob

        events: EventQueue[ScoringEvent] = EventQueue()
        job = ScoreJob(requests, self.context_size, events.put)
        self._commands.submit([job], self.cancel_scope)
        try:
            yield from events
        finally:
            list(self._commands.cancel([job]))

    def cancel(self) -> None:
        super().cancel()
        self._commands.cancel(None)

    def save_prompts(self, min_tokens: int, prompt: TokenIds | None = None) -> None:
        self._use_prompt_cache(lambda cache: cache.save(min_tokens, prompt))

    def save_prefix(self, tokens: TokenIds) -> None:
        self._use_prompt_cache(lambda cache: cache.save_prefix(tokens))

    def _use_prompt_cache(self, function: Callable[[PromptCache], None]) -> None:
        """Call a function with the prompt cache if there is one. Running sequences wait meanwhile; raise its error."""

        def use(loop: Loop) -> None:
            if loop.prompt_cache:
                function(loop.prompt_cache)

        if self.is_loaded:
            list(self._commands.call(use))

    def close(self, frees: bool = True) -> None:
        self._frees = frees
        cancel_all = EngineCommand(lambda loop: loop.cancel(None), lambda _: None, interrupts=True, is_last=True)
        self._commands.send(cancel_all)
        self._thread.join()
        atexit.unregister(self.close)

    # On the engine's thread.

    def _run(self) -> None:
        start = perf_counter()
        try:
            backend = self._open(self._report, self._stop)
        except BaseException as error:
            self.has_failed = True
            self._report(error)
            self._fail_commands(error)
            return
        self._backend = backend
        self._report(None)
        load_s = perf_counter() - start
        from cerebrum_cli.engine.loop import Loop

        loop = Loop(backend, load_s, self._open_cache and self._open_cache())
        try:
            while self._commands.execute(loop):
                loop.step()
        except BaseException as error:  # a bug: all callers get it, now and later
            loop.fail(error)
            self._fail_commands(error)
        finally:
            self._backend = None  # from now on callers get an error, not freed memory
            backend.close(self._frees)

    def _report(self, event: Event | BaseException | None) -> None:
        self._loading.put(event)
        self._reports.set()

    def _fail_commands(self, error: BaseException) -> None:
        """Answer all commands with the error that ended this thread."""
        while (command := self._commands.take(wait=True)) and not command.is_last:
            command.fail(error)
