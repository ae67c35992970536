"""Generate many completions at once.

One thread owns the model: it loads it, and then repeats three sentences: decide what the next step evaluates,
compute it, record what came of it. Callers on other threads read events from a queue, so a signal reaches
them while a long prompt is read. Closing a stream of events frees its slots.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Iterator
from collections.abc import Sequence as Many
from queue import Empty, SimpleQueue
from time import perf_counter
from typing import NamedTuple

from cerebrum_cli.engine.backend import Backend, OpenBackend, StopFlag
from cerebrum_cli.engine.scheduler import Admission, Scheduler, Step
from cerebrum_cli.engine.sequence import Failure, Request, Sequence, sequences
from cerebrum_cli.ground.errors import EngineError
from cerebrum_cli.ground.events import Event, FinishEvent, FinishReason, PromptEvent, TokenEvent
from cerebrum_cli.ground.parts import Part

Outbox = SimpleQueue[Event | Failure | None]


class Submit(NamedTuple):
    """Take these sequences in."""

    sequences: list[Sequence]


class Cancel(NamedTuple):
    """End these sequences, or all; `done` is set when their slots are free."""

    sequences: list[Sequence] | None
    done: threading.Event


class Close(NamedTuple):
    """Free the model and end the thread."""


class Engine:
    """A model on its own thread; `open_backend` is called there at once."""

    def __init__(self, open_backend: OpenBackend) -> None:
        self._open = open_backend
        self._stop = StopFlag()
        self._commands: SimpleQueue[Submit | Cancel | Close] = SimpleQueue()
        self._loading: Outbox = SimpleQueue()
        self._backend: Backend | None = None
        self._load_s = 0.0
        self._thread = threading.Thread(target=self._live, name="engine", daemon=True)
        self._thread.start()

    # What callers use, on any thread.

    def load(self) -> Iterator[Event]:
        """Yield the events of loading until the model is ready; raise what made it fail. Later calls yield nothing."""
        while self._backend is None:
            event = self._loading.get()
            if isinstance(event, Failure):
                self._loading.put(event)
                raise event.error
            if event is not None:
                yield event

    @property
    def backend(self) -> Backend:
        """The loaded model, for questions about its vocabulary; EngineError before `load` has ended."""
        if self._backend is None:
            raise EngineError("the model is not loaded")
        return self._backend

    def tokenize(self, parts: Iterable[Part]) -> tuple[int, ...]:
        """Return the token ids of a prompt."""
        return self.backend.tokenize(parts)

    def generate(self, requests: Many[Request]) -> Generator[Event, None, None]:
        """Yield the events of all samples of all requests as they come, a FinishEvent last for each.

        Prompts must be shorter than the context. Closing the generator frees the slots before it returns.
        """
        outbox: Outbox = SimpleQueue()
        born = [
            sequence for index, request in enumerate(requests) for sequence in sequences(index, request, outbox.put)
        ]
        live = len(born)
        self._commands.put(Submit(born))
        try:
            while live:
                event = outbox.get()
                if isinstance(event, Failure):
                    live = 0
                    raise event.error
                if isinstance(event, FinishEvent):
                    live -= 1
                if event is not None:
                    yield event
        finally:
            if live:
                self._withdraw(born)

    def cancel(self) -> None:
        """End everything that runs, loading too; streams end with the finish reason `cancelled`."""
        self._stop.set()
        self._commands.put(Cancel(None, threading.Event()))

    def close(self) -> None:
        """Stop what runs and free the model; the engine cannot be used again."""
        self._stop.set()
        self._commands.put(Close())
        self._thread.join()

    def _withdraw(self, born: list[Sequence]) -> None:
        command = Cancel(born, threading.Event())
        self._stop.set()
        self._commands.put(command)
        command.done.wait()

    # What happens on the engine's thread.

    def _live(self) -> None:
        start = perf_counter()
        try:
            backend = self._open(self._loading.put, self._stop)
        except BaseException as error:
            self._loading.put(Failure(error))
            return
        self._load_s = perf_counter() - start
        self._backend = backend
        self._loading.put(None)
        loop = Loop(backend, self._stop, self._load_s)
        try:
            while loop.obey(self._commands):
                loop.step()
        finally:
            backend.close()


class Loop:
    """The engine's thread: commands, then a step, then commands again."""

    def __init__(self, backend: Backend, stop: StopFlag, load_s: float) -> None:
        self._backend = backend
        self._stop = stop
        self._load_s = load_s
        self._scheduler = Scheduler(backend.slots)

    def obey(self, commands: SimpleQueue[Submit | Cancel | Close]) -> bool:
        """Carry out all commands that wait, or wait for one when there is nothing else to do; False to end."""
        while True:
            try:
                command = commands.get(block=self._scheduler.idle)
            except Empty:
                return True
            if isinstance(command, Submit):
                self._scheduler.waiting.extend(command.sequences)
            elif isinstance(command, Cancel):
                self._cancel(command)
            else:
                self._cancel(Cancel(None, threading.Event()))
                return False

    def step(self) -> None:
        """Admit what can be admitted, then decide, compute, record."""
        try:
            self._admit()
            step = self._scheduler.schedule(self._backend.batch_size)
            start = perf_counter()
            done = self._backend.decode(step.rows)
            self._record(step, done, perf_counter() - start)
        except Exception as error:
            self._fail(error)

    def _admit(self) -> None:
        scheduler, backend = self._scheduler, self._backend
        while scheduler.waiting:
            wanted = max(sequence.wanted(backend.context_size) for sequence in scheduler.waiting)
            if wanted > backend.capacity:
                if scheduler.running:
                    return
                backend.reserve(wanted)
                scheduler.forget()
            admission = scheduler.admit()
            if admission is None:
                return
            self._move_in(admission)
            sequence = admission.sequence
            sequence.tell(PromptEvent(sequence.id, sequence.evaluated, len(sequence.prompt)))

    def _move_in(self, admission: Admission) -> None:
        sequence, slot, source, keep = admission
        backend = self._backend
        if slot is not source and keep:
            backend.copy(source.index, slot.index)
        if keep and backend.length(slot.index) > keep and not backend.trim(slot.index, keep):
            keep = 0
        if not keep:
            backend.clear(slot.index)
        self._scheduler.place(admission, keep)
        request = sequence.request
        sequence.sampler = backend.sampler(request.params, sequence.seed, request.grammar, sequence.prompt)

    def _record(self, step: Step, done: bool, seconds: float) -> None:
        if not done:
            for sequence, _ in step.shares:
                self._resume(sequence)
            return
        self._scheduler.evaluated(step.shares)
        row = -1
        for sequence, count in step.shares:
            row += count
            sequence.spent(seconds, count)
            if sequence.reading:
                sequence.tell(PromptEvent(sequence.id, sequence.evaluated, len(sequence.prompt)))
                continue
            twins = self._scheduler.twins(sequence) if not sequence.generated else []
            for twin in twins:
                self._move_in(twin)
            for one in (sequence, *(twin.sequence for twin in twins)):
                self._say(one, row)

    def _resume(self, sequence: Sequence) -> None:
        """Take up a sequence after an interrupted step: what its slot holds counts, but its last token is evaluated."""
        assert sequence.slot is not None
        length = min(self._backend.length(sequence.slot), sequence.length - 1)
        if not self._backend.trim(sequence.slot, length):
            self._backend.clear(sequence.slot)
            length = 0
        self._scheduler.truncated(sequence, length)

    def _say(self, sequence: Sequence, row: int) -> None:
        """Sample a sequence's next token from a row of logits, and tell what it says."""
        backend = self._backend
        assert sequence.sampler is not None
        token = sequence.sampler.sample(row)
        if not sequence.generated:
            sequence.first_token()
        if backend.is_end(token):
            return self._finish(sequence, "stop")
        sequence.generated.append(token)
        piece = backend.piece(token, special=token in sequence.request.visible_tokens)
        text, stopped = sequence.detokenizer.feed(piece)
        sequence.tell(TokenEvent(sequence.id, text, token=token))
        if stopped:
            return self._finish(sequence, "stop")
        if len(sequence.generated) == sequence.request.params.max_tokens:
            return self._finish(sequence, "length")
        if sequence.length >= backend.context_size:
            return self._finish(sequence, "context")
        return None

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        rest, stopped = sequence.detokenizer.flush()
        if rest:
            sequence.tell(TokenEvent(sequence.id, rest))
        self._release(sequence)
        sequence.tell(sequence.finish("stop" if stopped else reason, self._backend.context_size, self._load_s))

    def _release(self, sequence: Sequence) -> None:
        self._scheduler.remove(sequence)
        if sequence.sampler is not None:
            sequence.sampler.close()
            sequence.sampler = None

    def _cancel(self, command: Cancel) -> None:
        live = [*self._scheduler.running, *self._scheduler.waiting]
        for sequence in live:
            if command.sequences is None or sequence in command.sequences:
                self._finish(sequence, "cancelled")
        self._stop.clear()
        command.done.set()

    def _fail(self, error: Exception) -> None:
        """End every sequence with the error; what the slots hold is unknown now."""
        for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
            self._release(sequence)
            sequence.tell(Failure(error))
        for slot in self._scheduler.slots:
            self._backend.clear(slot.index)
        self._scheduler.forget()
