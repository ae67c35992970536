"""Generate many completions at once.

One thread owns the model: it loads it, and then repeats three sentences: decide what the next step evaluates,
compute it, record what came of it. Callers on other threads read events from a queue, so a signal reaches
them while a long prompt is read. Closing a stream of events frees its slots.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from queue import SimpleQueue
from time import perf_counter

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.events import Event, RefusedEvent
from cerebrum_cli.core.parts import Part
from cerebrum_cli.engine.backend import Backend, OpenBackend, StopFlag
from cerebrum_cli.engine.commands import Cancel, Close, Commands, SavePromptCache, Submit
from cerebrum_cli.engine.completions import Completions
from cerebrum_cli.engine.loop import Loop
from cerebrum_cli.engine.sequence import Failure, Request
from cerebrum_cli.engine.state_store import StateStore


class Engine:
    """A model on its own thread; `open_backend` is called there at once, and what it reads is kept in `states`.

    With `measures` no more sequences run at once than say more tokens a second together.
    """

    def __init__(
        self, open_backend: OpenBackend, state_store: StateStore | None = None, measures: bool = False
    ) -> None:
        self._open = open_backend
        self._state_store = state_store
        self._measures = measures
        self._stop = StopFlag()
        self._commands = Commands(self._stop)
        self._loading: SimpleQueue[Event | Failure | None] = SimpleQueue()
        self._backend: Backend | None = None
        self.has_failed = False  # whether the model cannot be loaded
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a process must not leave while native code runs, nor wait for a stopped thread

    # What callers use, on any thread.

    def load(self) -> Iterator[Event]:
        """Yield the events of loading until the model is ready; raise what made it fail. Later calls yield nothing."""
        while True:
            event = self._loading.get()
            if event is None or isinstance(event, Failure):
                self._loading.put(event)  # for whoever asks again
                if event is None:
                    return
                raise event.error
            yield event

    @property
    def is_loaded(self) -> bool:
        """Whether the model is there; the engine's thread may still be at it, or have failed."""
        return self._backend is not None

    @property
    def backend(self) -> Backend:
        """The loaded model, for questions about its vocabulary; EngineError before `load` and after `close`."""
        if self._backend is None:
            raise EngineError("the model is not loaded")
        return self._backend

    def tokenize(self, parts: Iterable[Part]) -> tuple[int, ...]:
        """Return the token ids of a prompt."""
        return self.backend.tokenize(parts)

    def generate(self, requests: Iterable[Request]) -> Generator[Event, None, None]:
        """Yield the events of all samples of all requests as they come, a FinishEvent last for each.

        Prompts must be shorter than the context. Closing the generator frees the slots before it returns.
        """
        with closing(self.complete(requests)) as completions:
            yield from raise_refusals(completions)

    def complete(self, requests: Iterable[Request]) -> Completions:
        """Return the events of requests as an iterator that can be asked for more, or for less. It must be closed."""
        completions = Completions(self._commands)
        completions.add(requests)
        return completions

    def cancel(self) -> None:
        """End everything that runs, loading too; streams end with the finish reason `cancelled`."""
        self._commands.send(Cancel(None, threading.Event()))

    def save_prompt_cache(self, min_tokens: int, prompt: tuple[int, ...] | None = None) -> None:
        """Keep on disk what idle slots hold, where `least` tokens or more of it are not kept already.

        With a `prompt` that is only the slot that holds most of it: others hold what was said besides.

        To be called while nothing runs: what runs is left out, and waits meanwhile. Does nothing where there is no
        store, or no model yet, or none any more. Raises EngineError where a state cannot be written.
        """
        self._save(SavePromptCache(min_tokens, prompt, SimpleQueue()))

    def save_prefix(self, tokens: tuple[int, ...]) -> None:
        """Keep on disk a beginning of prompts to come, which an idle slot holds and the rest of which it forgets."""
        self._save(SavePromptCache(0, None, SimpleQueue(), tokens))

    def _save(self, command: SavePromptCache) -> None:
        if self._state_store is None or not self.is_loaded or not self._commands.send(command):
            return
        failure = command.result.get()
        if failure:
            raise failure.error

    def close(self) -> None:
        """Stop what runs and free the model; the engine cannot be used again."""
        self._commands.send(Close())
        self._thread.join()
        atexit.unregister(self.close)

    # What happens on the engine's thread.

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
        loop = Loop(backend, perf_counter() - start, self._state_store, self._measures)
        try:
            while loop.process_commands(self._commands):
                loop.step()
        except BaseException as error:  # a bug: whoever waits for events hears of it, now and later
            loop.fail(error)
            fail_commands(self._commands, error)
        finally:
            self._backend = None  # who asks for it now gets an error, not freed memory
            backend.close()


def raise_refusals(events: Iterable[Event]) -> Iterator[Event]:
    """Yield events; what refuses one of the sequences is raised."""
    for event in events:
        if isinstance(event, RefusedEvent):
            raise event.error
        yield event


def fail_commands(commands: Commands, error: BaseException) -> None:
    """Answer all commands, until the last, with what ended this thread's work."""
    while not isinstance(command := commands.take(wait=True), Close):
        if isinstance(command, Submit):
            for sequence in command.sequences:
                sequence.emit(Failure(error))
        elif isinstance(command, Cancel):
            command.done.set()
        elif isinstance(command, SavePromptCache):
            command.result.put(None)
