"""The engine's loop: place sequences, schedule a step, decode it, process its output."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from math import inf
from time import perf_counter
from typing import TYPE_CHECKING

from cerebrum_cli.core.errors import GrammarError
from cerebrum_cli.core.events import FinishReason, RefusedEvent
from cerebrum_cli.core.token_ids import TokenIds, common_prefix
from cerebrum_cli.engine.engine import CancelScope
from cerebrum_cli.engine.memory import plan_cache
from cerebrum_cli.engine.prompt_cache import Checkpoints, PromptCache, StateStore
from cerebrum_cli.engine.scheduler import Admission, Scheduler, Share, rows_of
from cerebrum_cli.engine.sequence import Sequence, Work, fail_work

if TYPE_CHECKING:
    from cerebrum_cli.engine.backend import Backend
    from cerebrum_cli.engine.loglikelihood import ScoreJob


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


class Loop:
    """The work of the engine's thread: it alternately executes commands, each a method of this, and a step."""

    def __init__(self, backend: Backend, load_s: float, state_store: StateStore | None = None) -> None:
        self._backend = backend
        self._load_s = load_s
        self._placement = Placement(backend, state_store)
        self._scheduler = self._placement.scheduler
        self._checkpoints = self._placement.checkpoints
        self._score_jobs: deque[ScoreJob] = deque()
        self.prompt_cache = self._placement.prompt_cache

    @property
    def is_idle(self) -> bool:
        return not (self._scheduler.waiting or self._scheduler.running or self._score_jobs)

    def submit(self, work: Work, scope: CancelScope, first: bool) -> None:
        sequences = []
        for item in work:
            if isinstance(item, Sequence):
                sequences.append(item)
            else:
                self._score_jobs.append(item)
        self._scheduler.submit(sequences, first)
        if scope.is_set():
            self.cancel(work)

    def cancel(self, work: Collection[object] | None) -> None:
        """Cancel those of these sequences and jobs that have not finished, or all."""
        sequences = [*self._scheduler.running, *self._scheduler.waiting]
        if work is None:
            work = [*sequences, *self._score_jobs]
        chosen = set(work)
        for sequence in sequences:
            if sequence in chosen or sequence.followed in chosen:
                self._finish(sequence, "cancelled")
        for job in list(self._score_jobs):
            if job in chosen:
                self._score_jobs.remove(job)
                job.end()

    def step(self) -> None:
        """Run one step of the sequences.

        While texts wait to be scored, no sequence is admitted; they are scored once none is running.
        """
        scheduler = self._scheduler
        backend = self._backend
        try:
            # make room
            self._placement.preempt_full()
            # admit
            if not self._score_jobs:
                self._placement.admit()
            elif not scheduler.running:
                self._score()
                return
            self._placement.compact()
            # schedule
            while True:
                step = scheduler.schedule(backend.prefill_chunk)
                rows = rows_of(step)
                if self._placement.make_room(len(rows)):
                    break
                scheduler.preempt(scheduler.running[-1])  # it is in the highest slot
            if self._may_draft(step):
                drafted = [step[0]._replace(draft=step[0].sequence.draft(backend))]
                if scheduler.has_cells(len(rows_of(drafted)), backend.capacity):
                    step = drafted
                    rows = rows_of(drafted)
            if not step:
                return
            # decode
            is_complete = backend.decode(rows)
            # process output
            self._process_output(step, is_complete)
        except Exception as error:
            self.fail(error)
            if backend.capacity:
                backend.context.clear_all()  # the step may have written any part of its rows
            scheduler.reset_slots(backend.slots)

    def _may_draft(self, step: list[Share]) -> bool:
        """Whether a step decodes one sequence only, of which a draft could be removed again."""
        if len(step) != 1 or not self._backend.max_draft:
            return False
        sequence = step[0].sequence
        return sequence.request.speculative and not sequence.is_prefilling

    def _score(self) -> None:
        """Score texts for a step, in slots that hold nothing for sequences afterwards."""
        if not self._score_jobs[0].step(self._backend):
            self._score_jobs.popleft()
        self._scheduler.reset_slots(self._backend.slots)  # memory may have been reserved again

    def _process_output(self, step: list[Share], is_complete: bool) -> None:
        if not is_complete:
            for share in step:
                self._checkpoints.resume(share.sequence)
            return
        rows = 0
        for share in step:
            rows += len(share.tokens)
            self._process_share(share, rows - 1)
            rows += len(share.draft)

    def _process_share(self, share: Share, row: int) -> None:
        """Process what a step has computed for a sequence, whose last token before a draft is in a row."""
        sequence = share.sequence
        self._scheduler.record_evaluated(sequence, share.tokens)
        if sequence.evaluated == sequence.checkpoint_at:
            self._checkpoints.after_step(sequence)
        if not share.has_output:
            sequence.report_prefill()
        elif share.draft:
            self._sample_with_draft(sequence, row, share.draft)
        elif sequence.generated:
            self._sample_token(sequence, row)
        else:
            self._sample_first(sequence, row)

    def _sample_first(self, sequence: Sequence, row: int) -> None:
        """Sample the first token of a sequence, and of the other samples of its prompt that get slots."""
        siblings = self._scheduler.sibling_samples(sequence)
        for sibling in siblings:
            self._placement.place(sibling)
        self._sample_token(sequence, row)
        for sibling in siblings:
            self._sample_token(sibling.sequence, row)

    def _sample_with_draft(self, sequence: Sequence, row: int, draft: TokenIds) -> None:
        """Sample the next tokens of a sequence: one, and another after each draft token that it equals."""
        slot = self._scheduler.slot_of(sequence)
        sequence.draft_n += len(draft)
        accepted = 0
        while self._sample_token(sequence, row + accepted) and accepted < len(draft):
            sampled = sequence.tokens_from(sequence.evaluated, sequence.length)  # several if forced tokens follow it
            right = common_prefix(sampled, draft[accepted:])
            self._scheduler.record_evaluated(sequence, sampled[:right])
            accepted += right
            sequence.draft_n_accepted += right
            if right < len(sampled):
                break
        slot.truncate(self._checkpoints.rewind(slot, len(slot.tokens), slot.checkpoints))
        sequence.evaluated = len(slot.tokens)

    def _sample_token(self, sequence: Sequence, row: int) -> bool:
        """Sample the next token from a row of logits, and emit its text; False if it has ended or its slot is full.

        Forced tokens of the only sequence follow at once, so that the next step evaluates all of them; those of others
        share the steps of the rest. They are accepted instead of sampled, so that penalties count them.
        """
        backend = self._backend
        request = sequence.request
        while True:
            is_forced = bool(sequence.pending)
            try:
                token = self._next_token(sequence, row)
            except GrammarError as error:
                self._placement.release(sequence)
                sequence.emit(RefusedEvent(sequence.id, error))
                return False
            sequence.sampled_at.append(perf_counter())
            if backend.is_eog(token) and not (request.ask.ignore_eos or is_forced):
                if sequence.close_reasoning():
                    continue
                return self._finish(sequence, "stop")
            reason = sequence.add(token, backend.piece(token, special=request.is_visible(token)))
            if reason is None and sequence.length >= backend.context_size:
                reason = "context"
            if reason:
                return self._finish(sequence, reason)
            is_full = sequence.length >= backend.capacity
            if is_full or not sequence.pending or len(self._scheduler.running) > 1:
                return not is_full

    def _next_token(self, sequence: Sequence, row: int) -> int:
        """The token that is forced, or one that is sampled from a row of logits. Raises GrammarError."""
        sampler = sequence.sampler
        assert sampler is not None
        if sequence.pending:
            token = sequence.pending.popleft()
            sequence.forced_n += 1
            sampler.accept(token)
            return token
        if sequence.bias:
            return self._backend.sample(sampler, row, sequence.bias)
        return sampler.sample(row)

    def _finish(self, sequence: Sequence, reason: FinishReason) -> bool:
        """End a sequence, and ask its follow-up if there is one; False, since it has left its slot."""
        for event in sequence.text_events(sequence.text.finish(is_truncated=reason != "stop")):
            sequence.emit(event)
        self._placement.release(sequence)
        size = self._backend.context_size
        follow_up = None
        if sequence.text.is_stopped:
            reason = "stop"
        elif reason == "stop":
            follow_up = sequence.follow(size)
        sequence.emit(sequence.finish(reason, size, self._load_s, follow_up is not None))
        if follow_up:
            self._scheduler.submit([follow_up], first=True)  # to the slot that holds the sample
        return False

    def fail(self, error: BaseException) -> None:
        fail_work(self._score_jobs, error)
        self._score_jobs.clear()
        for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
            self._placement.release(sequence)
            sequence.emit(error)
