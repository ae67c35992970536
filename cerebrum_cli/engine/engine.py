"""Generate many completions at once.

One thread owns the model: it loads it, and then repeats three sentences: decide what the next step evaluates,
compute it, record what came of it. Callers on other threads read events from a queue, so a signal reaches
them while a long prompt is read. Closing a stream of events frees its slots.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Generator, Iterable, Iterator
from collections.abc import Sequence as Many
from queue import SimpleQueue
from time import perf_counter

from cerebrum_cli.engine.backend import Backend, OpenBackend, StopFlag
from cerebrum_cli.engine.commands import Cancel, Close, Commands, Submit
from cerebrum_cli.engine.scheduler import Admission, Scheduler, Step
from cerebrum_cli.engine.sequence import Failure, Request, Sequence, sequences
from cerebrum_cli.ground.errors import EngineError, GrammarError, UsageError
from cerebrum_cli.ground.events import Event, FinishEvent, FinishReason, PromptEvent, TokenEvent
from cerebrum_cli.ground.parts import Part


class Engine:
    """A model on its own thread; `open_backend` is called there at once."""

    def __init__(self, open_backend: OpenBackend) -> None:
        self._open = open_backend
        self._stop = StopFlag()
        self._commands = Commands(self._stop)
        self._loading: SimpleQueue[Event | Failure | None] = SimpleQueue()
        self._backend: Backend | None = None
        self._thread = threading.Thread(target=self._live, name="engine", daemon=True)
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
    def backend(self) -> Backend:
        """The loaded model, for questions about its vocabulary; EngineError before `load` and after `close`."""
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
        if not all(request.prompt_tokens for request in requests):
            raise UsageError("the prompt has no tokens", "write something to go on from")
        outbox: SimpleQueue[Event | Failure] = SimpleQueue()
        born = [
            sequence for index, request in enumerate(requests) for sequence in sequences(index, request, outbox.put)
        ]
        live = len(born)
        if not self._commands.send(Submit(born)):
            raise EngineError("the engine is closed")
        try:
            while live:
                event = outbox.get()
                if isinstance(event, Failure):
                    raise event.error
                if isinstance(event, FinishEvent):
                    live -= 1
                yield event
        finally:
            if live:
                self._withdraw(born)

    def cancel(self) -> None:
        """End everything that runs, loading too; streams end with the finish reason `cancelled`."""
        self._commands.send(Cancel(None, threading.Event()))

    def close(self) -> None:
        """Stop what runs and free the model; the engine cannot be used again."""
        self._commands.send(Close())
        self._thread.join()
        atexit.unregister(self.close)

    def _withdraw(self, born: list[Sequence]) -> None:
        command = Cancel(born, threading.Event())
        if self._commands.send(command):
            command.done.wait()

    # What happens on the engine's thread.

    def _live(self) -> None:
        start = perf_counter()
        try:
            backend = self._open(self._loading.put, self._stop)
        except BaseException as error:
            self._loading.put(Failure(error))
            refuse(self._commands, error)
            return
        self._backend = backend
        self._loading.put(None)
        loop = Loop(backend, perf_counter() - start)
        try:
            while loop.obey(self._commands):
                loop.step()
        except BaseException as error:  # a bug: whoever waits for events hears of it, now and later
            loop.fail(error)
            refuse(self._commands, error)
        finally:
            self._backend = None  # who asks for it now gets an error, not freed memory
            backend.close()


def refuse(commands: Commands, error: BaseException) -> None:
    """Answer all commands, until the last, with what ended this thread's work."""
    while not isinstance(command := commands.take(wait=True), Close):
        if isinstance(command, Submit):
            for sequence in command.sequences:
                sequence.tell(Failure(error))
        elif isinstance(command, Cancel):
            command.done.set()


class Loop:
    """The engine's thread: commands, then a step, then commands again."""

    def __init__(self, backend: Backend, load_s: float) -> None:
        self._backend = backend
        self._load_s = load_s
        self._scheduler = Scheduler(backend.slots)

    def obey(self, commands: Commands) -> bool:
        """Carry out all commands that wait, or wait for one when there is nothing else to do; False to end."""
        while (command := commands.take(wait=self._scheduler.idle)) is not None:
            if isinstance(command, Submit):
                self._scheduler.waiting.extend(command.sequences)
            elif isinstance(command, Cancel):
                self._cancel(command.sequences)
                command.done.set()
            else:
                self._cancel(None)
                return False
        return True

    def step(self) -> None:
        """Admit what can be admitted, then decide, compute, record."""
        try:
            self._admit()
            step = self._scheduler.schedule(self._backend.batch_size)
            if not step.rows:
                return
            self._record(step, self._backend.decode(step.rows))
        except Exception as error:
            self.fail(error)

    def _admit(self) -> None:
        scheduler, backend = self._scheduler, self._backend
        while scheduler.can_admit:
            wanted = max(sequence.wanted(backend.context_size) for sequence in scheduler.waiting)
            if wanted > backend.capacity:
                if scheduler.running:
                    return
                backend.reserve(wanted)
                scheduler.forget()
            admission = scheduler.admit()
            sequence = admission.sequence
            try:
                self._move_in(admission)
            except GrammarError as error:
                self._drop(sequence, error)
            else:
                sequence.tell(PromptEvent(sequence.id, sequence.evaluated, len(sequence.prompt)))

    def _move_in(self, admission: Admission) -> None:
        sequence, slot, source, keep = admission
        backend, request = self._backend, sequence.request
        sequence.sampler = backend.sampler(request.params, sequence.seed, request.grammar, sequence.prompt)
        if slot is not source and keep:
            backend.copy(source.index, slot.index)
        if keep and backend.length(slot.index) > keep and not backend.trim(slot.index, keep):
            keep = 0
        if not keep:
            backend.clear(slot.index)
        self._scheduler.place(admission, keep)
        sequence.admitted_at = perf_counter()

    def _record(self, step: Step, done: bool) -> None:
        if not done:
            for sequence, _ in step.shares:
                self._resume(sequence)
            return
        self._scheduler.evaluated(step.shares)
        row = -1
        for sequence, count in step.shares:
            row += count
            if sequence.evaluated < sequence.length:
                if not sequence.generated:
                    sequence.tell(PromptEvent(sequence.id, sequence.evaluated, len(sequence.prompt)))
                continue
            twins = self._scheduler.twins(sequence) if not sequence.generated else []
            for twin in twins:
                self._move_in(twin)
            for one in (sequence, *(twin.sequence for twin in twins)):
                try:
                    self._say(one, row)
                except GrammarError as error:
                    self._drop(one, error)

    def _resume(self, sequence: Sequence) -> None:
        """Take up a sequence after an interrupted step: what its slot holds counts, but its last token is evaluated."""
        assert sequence.slot is not None
        length = min(self._backend.length(sequence.slot), sequence.length - 1)
        if not self._backend.trim(sequence.slot, length):
            self._backend.clear(sequence.slot)
            length = 0
        self._scheduler.resume(sequence, length)

    def _say(self, sequence: Sequence, row: int) -> None:
        """Sample a sequence's next token from a row of logits, and tell what it says."""
        backend = self._backend
        assert sequence.sampler is not None
        token = sequence.sampler.sample(row)
        sequence.sampled_at.append(perf_counter())
        if backend.is_end(token):
            return self._finish(sequence, "stop")
        sequence.generated.append(token)
        piece = backend.piece(token, special=token in sequence.request.visible_tokens)
        text, stopped = sequence.detokenizer.feed(piece)
        sequence.tell(TokenEvent(sequence.id, text, token=token))
        if stopped:
            return self._finish(sequence, "stop", by_stop_string=True)
        if len(sequence.generated) == sequence.request.params.max_tokens:
            return self._finish(sequence, "length")
        if sequence.length >= backend.context_size:
            return self._finish(sequence, "context")
        return None

    def _finish(self, sequence: Sequence, reason: FinishReason, by_stop_string: bool = False) -> None:
        rest, stopped = sequence.detokenizer.flush()
        if rest:
            sequence.tell(TokenEvent(sequence.id, rest))
        self._release(sequence)
        ended = "stop" if stopped else reason
        sequence.tell(sequence.finish(ended, self._backend.context_size, self._load_s, stopped or by_stop_string))

    def _release(self, sequence: Sequence) -> None:
        self._scheduler.remove(sequence)
        if sequence.sampler is not None:
            sequence.sampler.close()
            sequence.sampler = None

    def _cancel(self, chosen: list[Sequence] | None) -> None:
        live = [*self._scheduler.running, *self._scheduler.waiting]
        ended = set(live if chosen is None else chosen)
        for sequence in live:
            if sequence in ended:
                self._finish(sequence, "cancelled")

    def _drop(self, sequence: Sequence, error: BaseException) -> None:
        """End a sequence with an error; its caller then withdraws what else it asked for."""
        self._release(sequence)
        sequence.tell(Failure(error))

    def fail(self, error: BaseException) -> None:
        """End every sequence with the error; what the slots hold is unknown now."""
        for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
            self._drop(sequence, error)
        self._scheduler.forget()
