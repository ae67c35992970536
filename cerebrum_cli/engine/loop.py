"""The work of the engine's thread: decide what the next step evaluates, compute it, record what came of it."""

from __future__ import annotations

from time import perf_counter

from cerebrum_cli.core.errors import GrammarError
from cerebrum_cli.core.events import FinishReason, PromptEvent, RefusedEvent, TokenEvent
from cerebrum_cli.engine.backend import Backend
from cerebrum_cli.engine.commands import Abort, Cancel, Commands, SavePromptCache, Submit
from cerebrum_cli.engine.pace import Pace
from cerebrum_cli.engine.prompt_cache import PromptCache
from cerebrum_cli.engine.scheduler import Admission, Scheduler, Step
from cerebrum_cli.engine.sequence import Failure, Sequence
from cerebrum_cli.engine.state_store import StateStore


class Loop:
    """The engine's thread: commands, then a step, then commands again."""

    def __init__(
        self, backend: Backend, load_s: float, state_store: StateStore | None = None, measures: bool = False
    ) -> None:
        self._backend = backend
        self._load_s = load_s
        self._measures = measures
        self._pace = Pace(backend.slots, measures)
        self._scheduler = Scheduler(backend.slots)
        self._reserves_max = backend.slots == 1 or backend.kv_unified
        self._prompt_cache = PromptCache(backend, self._scheduler, state_store) if state_store else None

    def process_commands(self, commands: Commands) -> bool:
        """Carry out all commands that wait, or wait for one when there is nothing else to do; False to end."""
        while (command := commands.take(wait=self._scheduler.is_idle)) is not None:
            if isinstance(command, Submit):
                self._scheduler.waiting.extend(command.sequences)
            elif isinstance(command, Cancel):
                self._cancel(command.sequences)
                command.done.set()
            elif isinstance(command, Abort):
                for sequence in command.sequences:
                    if not sequence.is_finished:
                        self._finish(sequence, "cancelled")
            elif isinstance(command, SavePromptCache):
                command.result.put(self._save_prompt_cache(command))
            else:
                self._cancel(None)
                return False
        return True

    def step(self) -> None:
        """Admit what can be admitted, then decide, compute, record."""
        try:
            self._admit()
            self._compact()
            step = self._schedule()
            if not step.rows:
                return
            start = perf_counter()
            done = self._backend.decode(step.rows)
            if step.is_decode and done:
                self._pace.record(len(step.rows), perf_counter() - start)
            self._process_output(step, done)
        except Exception as error:
            self.fail(error)

    def _admit(self) -> None:
        scheduler, backend = self._scheduler, self._backend
        scheduler.limit = self._pace.limit
        while scheduler.can_admit:
            anew = self._required_length(scheduler.waiting[0]) > backend.capacity
            if scheduler.running and (anew or not self._has_room(scheduler.waiting[0])):
                return
            state = self._prompt_cache.find(scheduler.waiting[0], anew) if self._prompt_cache else None
            if anew:
                self._make_memory(len(state.tokens) if state else 0)
            if self._prompt_cache and state and self._make_room(len(state.tokens)):
                self._prompt_cache.restore(state, scheduler.waiting[0])
            admission = scheduler.next_admission()
            sequence = admission.sequence
            try:
                self._occupy(admission)
            except GrammarError as error:
                self._fail_sequence(sequence, error)
            else:
                self._report_prefill(sequence)

    def _required_length(self, sequence: Sequence) -> int:
        """Return the room a sequence is given: one alone all it may come to need, one of many what it will do with."""
        context_size = self._backend.context_size
        return sequence.max_length(context_size) if self._reserves_max else sequence.expected_length(context_size)

    def _make_memory(self, least: int) -> None:
        """Make memory anew, for whoever waits."""
        backend = self._backend
        backend.reserve(max(least, *map(self._required_length, self._scheduler.waiting)))
        self._scheduler.reset_slots(backend.slots)
        self._pace = Pace(backend.slots, self._measures)
        self._scheduler.limit = self._pace.limit

    def _has_room(self, sequence: Sequence) -> bool:
        """Return whether memory holds one more sequence beside those that run."""
        backend = self._backend
        return not backend.kv_unified or self._scheduler.can_hold(sequence, backend.capacity)

    def _make_room(self, tokens: int) -> bool:
        """Return whether memory takes in so many tokens more; where it is shared, idle slots are cleared for them."""
        scheduler, backend = self._scheduler, self._backend
        while backend.kv_unified and not scheduler.has_cells(tokens, backend.capacity):
            slot = scheduler.eviction_candidate
            if slot is None:
                return False
            backend.clear(slot.index)
            slot.clear()
        return True

    def _schedule(self) -> Step:
        """Return the next step; where memory cannot take it in, the sequence in the highest slot waits for others."""
        scheduler = self._scheduler
        step = scheduler.schedule(self._backend.prefill_chunk)
        while not self._make_room(len(step.rows)):
            scheduler.preempt(scheduler.running[-1])
            step = scheduler.schedule(self._backend.prefill_chunk)
        return step

    def _compact(self) -> None:
        """Where nobody moves in, move whoever lives highest into the gaps below."""
        scheduler, backend = self._scheduler, self._backend
        if backend.kv_unified or (scheduler.waiting and scheduler.free_slot_count):
            return
        while hole := scheduler.hole():
            source, target = hole
            if not source.tokens:  # it has just moved in, and reads
                return
            backend.copy(source.index, target.index)
            backend.clear(source.index)
            scheduler.move(source, target)

    def _save_prompt_cache(self, command: SavePromptCache) -> Failure | None:
        try:
            if self._prompt_cache and command.prefix:
                self._prompt_cache.save_prefix(command.prefix)
            elif self._prompt_cache:
                self._prompt_cache.save(command.min_tokens, command.prompt)
        except Exception as error:
            return Failure(error)
        return None

    def _occupy(self, admission: Admission) -> None:
        sequence, slot, source, keep = admission
        backend, request = self._backend, sequence.request
        if sequence.sampler is None:
            sequence.sampler = backend.sampler(request.params, sequence.seed, request.grammar, sequence.prompt)
        if keep < len(sequence.prompt):
            keep = backend.reusable_prefix(keep)
        if slot is not source and keep:
            backend.copy(source.index, slot.index)
        if keep and backend.length(slot.index) > keep and not backend.trim(slot.index, keep):
            keep = 0
        if not keep:
            backend.clear(slot.index)
        self._scheduler.admit(admission, keep)
        sequence.admitted_at = sequence.admitted_at or perf_counter()

    def _process_output(self, step: Step, done: bool) -> None:
        if not done:
            for sequence, _ in step.scheduled:
                self._resume(sequence)
            return
        self._scheduler.record_evaluated(step.scheduled)
        row = -1
        for sequence, count in step.scheduled:
            row += count
            if sequence.evaluated < sequence.length:
                self._report_prefill(sequence)
                continue
            siblings = self._scheduler.sibling_samples(sequence) if not sequence.generated else []
            for sibling in siblings:
                self._occupy(sibling)
            for one in (sequence, *(twin.sequence for twin in siblings)):
                try:
                    self._sample_token(one, row)
                except GrammarError as error:
                    self._release(one)
                    one.emit(RefusedEvent(one.id, error))

    @staticmethod
    def _report_prefill(sequence: Sequence) -> None:
        """Tell how much of a prompt has been read, the first time it is."""
        if not sequence.generated:
            sequence.emit(PromptEvent(sequence.id, sequence.evaluated, len(sequence.prompt)))

    def _resume(self, sequence: Sequence) -> None:
        """Take up a sequence after an interrupted step: what its slot holds counts, but its last token is evaluated."""
        assert sequence.slot is not None
        length = min(self._backend.length(sequence.slot), sequence.length - 1)
        if not self._backend.trim(sequence.slot, length):
            self._backend.clear(sequence.slot)
            length = 0
        self._scheduler.resume(sequence, length)

    def _sample_token(self, sequence: Sequence, row: int) -> None:
        """Sample a sequence's next token from a row of logits, and tell what it says."""
        backend = self._backend
        assert sequence.sampler is not None
        token = sequence.sampler.sample(row)
        sequence.sampled_at.append(perf_counter())
        request = sequence.request
        if backend.is_eog(token) and not request.ignore_eos:
            return self._finish(sequence, "stop")
        logprob = backend.logprob(row, token) if request.logprobs else None
        sequence.generated.append(token)
        piece = backend.piece(token, special=token in request.visible_tokens)
        text, stopped = sequence.detokenizer.feed(piece)
        sequence.emit(TokenEvent(sequence.id, text, token=token, logprob=logprob))
        if stopped:
            return self._finish(sequence, "stop", by_stop_string=True)
        if len(sequence.generated) == request.params.max_tokens:
            return self._finish(sequence, "length")
        if sequence.length >= backend.context_size:
            return self._finish(sequence, "context")
        if sequence.length >= backend.capacity:
            self._scheduler.preempt(sequence)
        return None

    def _finish(self, sequence: Sequence, reason: FinishReason, by_stop_string: bool = False) -> None:
        rest, stopped = sequence.detokenizer.flush()
        if rest:
            sequence.emit(TokenEvent(sequence.id, rest))
        self._release(sequence)
        ended = "stop" if stopped else reason
        sequence.emit(sequence.finish(ended, self._backend.context_size, self._load_s, stopped or by_stop_string))

    def _release(self, sequence: Sequence) -> None:
        self._scheduler.remove(sequence)
        sequence.is_finished = True
        if sequence.sampler is not None:
            sequence.sampler.close()
            sequence.sampler = None

    def _cancel(self, chosen: list[Sequence] | None) -> None:
        live = [*self._scheduler.running, *self._scheduler.waiting]
        ended = set(live if chosen is None else chosen)
        for sequence in live:
            if sequence in ended:
                self._finish(sequence, "cancelled")

    def _fail_sequence(self, sequence: Sequence, error: BaseException) -> None:
        """End a sequence with an error; its caller then withdraws what else it asked for."""
        self._release(sequence)
        sequence.emit(Failure(error))

    def fail(self, error: BaseException) -> None:
        """End every sequence with the error; what the slots hold is unknown now."""
        for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
            self._fail_sequence(sequence, error)
        self._scheduler.clear_slots()
