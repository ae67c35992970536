"""Place sequences: give them slots, memory and samplers, with what slots or the prompt cache hold of their tokens."""

from __future__ import annotations

from math import inf
from time import perf_counter
from typing import TYPE_CHECKING

from cerebrum_cli.core.errors import GrammarError
from cerebrum_cli.engine.memory import plan_cache
from cerebrum_cli.engine.prompt_cache import Checkpoints, PromptCache, StateStore
from cerebrum_cli.engine.scheduler import Admission, Scheduler
from cerebrum_cli.engine.sequence import Sequence

if TYPE_CHECKING:
    from cerebrum_cli.engine.backend import Backend


class Placement:
    """Places the sequences of one context, which it makes as large as they need."""

    def __init__(self, backend: Backend, state_store: StateStore | None) -> None:
        self._backend = backend
        self.scheduler = Scheduler(backend.slots, backend.kv_unified)
        self.checkpoints = Checkpoints(backend, self.scheduler)
        self._takes_checkpoints = backend.trimmable_length < inf
        self._max_slots = backend.slots
        self._reserves_max = backend.slots == 1 or backend.kv_unified
        self.prompt_cache: PromptCache | None = None
        if state_store:
            self.prompt_cache = PromptCache(backend, self.scheduler, self.checkpoints, state_store)

    def preempt_full(self) -> None:
        """Preempt sequences that fill their slots, to resume in longer ones: all now if memory holds as many of those.

        Otherwise only the full ones are preempted, to the end of the queue, while the others finish.
        """
        scheduler = self.scheduler
        backend = self._backend
        full = [sequence for sequence in scheduler.running if sequence.length >= backend.capacity]
        if not full:
            return
        has_memory = backend.slots_for(max(map(self._required_length, full))) >= backend.slots
        if has_memory:
            full = scheduler.running
        for sequence in full:
            scheduler.preempt(sequence)
        if has_memory:
            scheduler.waiting.rotate(len(full))
            self._reserve(n_slots=backend.slots)

    def admit(self) -> None:
        """Give waiting sequences slots, up to one whose prompt is evaluated first, or which has to wait for memory."""
        scheduler = self.scheduler
        while scheduler.waiting and scheduler.free_slots and not scheduler.prefilling:
            sequence = scheduler.waiting[0]
            needs_memory = self._needs_memory(sequence)
            if scheduler.running and (needs_memory or not scheduler.can_hold(sequence, self._backend.capacity)):
                return
            self._restore(sequence, needs_memory)
            if self._takes_checkpoints:
                self.checkpoints.prepare(sequence)
            try:
                self.place(scheduler.next_admission(self._backend.capacity, self.checkpoints.reusable))
            except GrammarError as error:  # the caller then cancels the others of the same stream
                self.release(sequence)
                sequence.emit(error)
            else:
                sequence.report_prefill()

    def _needs_memory(self, sequence: Sequence) -> bool:
        """Whether memory has to be reserved again for a sequence, or the last ones were longer, and needed more."""
        backend = self._backend
        if self._required_length(sequence) > backend.capacity:
            return True
        if self.scheduler.running or len(self.scheduler.waiting) <= backend.slots:
            return False
        length, slots = self._plan_cache()
        return min(slots, backend.slots_for(length)) > backend.slots

    def _restore(self, sequence: Sequence, needs_memory: bool) -> None:
        """Reserve memory if that is needed, and load what the prompt cache has of a sequence."""
        cache = self.prompt_cache
        state = cache.find(sequence, needs_memory) if cache else None
        if needs_memory:
            kind = self._backend.state_kind
            self._reserve(state.length if state else 0)
            if self._backend.state_kind != kind:  # fewer slots than requested
                return
        if cache and state and self.make_room(state.length):
            cache.restore(state)

    def _required_length(self, sequence: Sequence) -> int:
        """Length to reserve memory for: the maximum for a single slot, the expected length for many."""
        context_size = self._backend.context_size
        if self._reserves_max:
            return sequence.request.max_length(context_size)
        return sequence.request.expected_length(context_size, len(sequence.generated))

    def _plan_cache(self) -> tuple[int, int]:
        waiting = self.scheduler.waiting
        required = max(map(self._required_length, waiting))
        if self._reserves_max:
            return required, self._max_slots
        requests = [sequence.request for sequence in waiting]
        return plan_cache(required, requests, self._backend.context_size, self._max_slots, self._backend.slots_for)

    def _reserve(self, min_length: int = 0, n_slots: int | None = None) -> None:
        length, slots = self._plan_cache()
        self._backend.reserve(max(min_length, length), n_slots or slots)
        self.scheduler.reset_slots(self._backend.slots)

    def make_room(self, tokens: int) -> bool:
        """Evict idle slots from a unified KV cache until it holds this many additional tokens; False if it cannot."""
        while not self.scheduler.has_cells(tokens, self._backend.capacity):
            filled = [slot for slot in self.scheduler.slots_to_overwrite if slot.tokens]
            if not filled:
                return False
            self._backend.context.clear(filled[0].index)
            filled[0].truncate(0)
        return True

    def compact(self) -> None:
        """Move the sequences in the highest slots to holes below, unless waiting sequences will fill those."""
        scheduler = self.scheduler
        backend = self._backend
        if backend.kv_unified or (scheduler.waiting and scheduler.free_slots):
            return
        while hole := scheduler.hole():
            source, target = hole
            if not source.tokens:  # just admitted: nothing to copy yet
                return
            backend.context.copy(source.index, target.index)
            backend.context.clear(source.index)
            scheduler.move(source, target)

    def place(self, admission: Admission) -> None:
        """Prepare the sampler and the slot of a sequence, and admit it with the prefix that could be reused."""
        sequence, slot, source, length = admission
        backend = self._backend
        request = sequence.request
        if sequence.sampler is None:
            sequence.sampler = backend.sampler(request.params, sequence.seed, sequence.constraint, sequence.prompt)
        if length < len(sequence.prompt):
            length = backend.reusable_prefix(length)
        if slot is not source and length:
            backend.context.copy(source.index, slot.index)
        length = self.checkpoints.rewind(slot, length, source.checkpoints)
        self.scheduler.admit(admission, length)
        if self._takes_checkpoints:
            self.checkpoints.plan(sequence)
        sequence.admitted_at = sequence.admitted_at or perf_counter()

    def release(self, sequence: Sequence) -> None:
        self.scheduler.remove(sequence)
        if sequence.sampler is not None:
            sequence.sampler.close()
            sequence.sampler = None
