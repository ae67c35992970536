"""The engine's loop: schedule a step, decode it, process its output."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from math import inf
from pathlib import Path
from time import perf_counter, sleep
from typing import TYPE_CHECKING

from cerebrum_cli.core.errors import GrammarError
from cerebrum_cli.core.events import FinishReason, PromptEvent, RefusedEvent, TokenEvent
from cerebrum_cli.engine.backend import Backend
from cerebrum_cli.engine.checkpoints import Checkpoints, SwapSpace
from cerebrum_cli.engine.commands import Cancel, Commands, Submit, UsePromptCache, Work
from cerebrum_cli.engine.memory_plan import plan_cache
from cerebrum_cli.engine.scheduler import Admission, Scheduler, Step
from cerebrum_cli.engine.sequence import Failure, InspectionRequest, Sequence
from cerebrum_cli.engine.state_store import StateStore
from cerebrum_cli.engine.step_costs import draft_lengths

if TYPE_CHECKING:
    from cerebrum_cli.engine.drafter import DraftToken
    from cerebrum_cli.engine.prompt_cache import PromptCache
    from cerebrum_cli.engine.scoring import ScoreJob

BACKLOG_POLL_S = 0.01


class Loop:
    """The work of the engine's thread: alternately `process_commands` and `step`.

    States of preempted sequences are saved in a new directory in `swap_directory`.
    """

    def __init__(
        self, backend: Backend, load_s: float, state_store: StateStore | None = None, swap_directory: Path | None = None
    ) -> None:
        self._backend = backend
        self._load_s = load_s
        self._swap_directory = swap_directory
        self._scheduler = Scheduler(backend.slots, backend.kv_unified)
        self._checkpoints = Checkpoints(backend, self._scheduler)
        self._takes_checkpoints = backend.trimmable_length < inf
        self._swap: SwapSpace | None = None  # once a sequence was preempted
        self._score_jobs: deque[ScoreJob] = deque()
        self._max_slots = backend.slots
        self._reserves_max = backend.slots == 1 or backend.kv_unified
        self._state_store = state_store

    def process_commands(self, commands: Commands) -> bool:
        """Execute all queued commands, waiting for one if no work is left; False after Close."""
        scheduler = self._scheduler
        while True:
            is_idle = not (scheduler.waiting or scheduler.running or self._score_jobs)
            command = commands.take(wait=is_idle)
            if command is None:
                return True
            if isinstance(command, Submit):
                self._submit(command)
            elif isinstance(command, Cancel):
                self._cancel(command.work)
                command.done.set()
            elif isinstance(command, UsePromptCache):
                command.result.put(self._use_prompt_cache(command.function))
            else:
                self._cancel(None)
                return False

    def step(self) -> None:
        """Run one step of the sequences.

        While texts wait to be scored, no sequence is admitted; they are scored once none is running.
        """
        scheduler = self._scheduler
        try:
            # make room
            self._preempt_full()
            # admit
            if not self._score_jobs:
                self._admit()
            elif not scheduler.running:
                self._score()
                return
            self._compact()
            # schedule
            step = scheduler.schedule(self._backend.prefill_chunk, self._backend.max_outputs)
            while not self._make_room(step.size):
                scheduler.preempt(scheduler.running[-1])  # it is in the highest slot
                step = scheduler.schedule(self._backend.prefill_chunk, self._backend.max_outputs)
            if any(share.sequence.drafter for share in step.shares):
                step = self._add_drafts(step)
            if not step.shares:
                if scheduler.waiting:  # for a slow reader
                    sleep(BACKLOG_POLL_S)
                return
            if self._takes_checkpoints:
                self._checkpoints.before_step(step)
            # decode
            is_complete = self._backend.decode(step.rows)
            # process output
            self._process_output(step, is_complete)
        except Exception as error:
            self.fail(error)
            if self._backend.capacity:
                self._backend.context.clear_all()  # the step may have written any part of its rows
            for slot in scheduler.slots:
                slot.clear()

    def close(self) -> None:
        """Remove temporary files."""
        if self._swap:
            self._swap.close()

    def _submit(self, command: Submit) -> None:
        work = command.work
        if isinstance(work, list):
            self._scheduler.submit(work, command.first)
        else:
            self._score_jobs.append(work)
        if command.scope.is_cancelled:
            self._cancel(work if isinstance(work, list) else [work])

    def _score(self) -> None:
        """Score texts for a step, in slots that hold nothing for sequences afterwards."""
        try:
            if not self._score_jobs[0].step(self._backend):
                self._score_jobs.popleft()
        finally:  # memory may have been reserved again
            self._reset_slots()

    def _preempt_full(self) -> None:
        """Preempt sequences that fill their slots, to resume in longer ones: all now if memory holds as many of those.

        Otherwise only the full ones are preempted, to the end of the queue, while the others finish.
        """
        scheduler, backend = self._scheduler, self._backend
        full = [sequence for sequence in scheduler.running if sequence.length >= backend.capacity]
        if not full:
            return
        if self._swap is None:
            self._swap = SwapSpace(backend, scheduler, self._checkpoints, self._swap_directory)
        has_memory = backend.slots_for(max(map(self._required_length, full))) >= backend.slots
        preempted = scheduler.running if has_memory else full
        for sequence in preempted:
            self._swap.save(sequence)
            scheduler.preempt(sequence)
        if has_memory:
            scheduler.waiting.rotate(len(preempted))
            self._reserve(0, backend.slots)

    def _admit(self) -> None:
        scheduler, backend = self._scheduler, self._backend
        while scheduler.waiting and scheduler.free_slots and not scheduler.prefilling:
            sequence = scheduler.waiting[0]
            if sequence.is_backlogged():
                return
            needs_memory = self._required_length(sequence) > backend.capacity or self._lacks_slots()
            lacks_cells = backend.kv_unified and not scheduler.can_hold(sequence, backend.capacity)
            if scheduler.running and (needs_memory or lacks_cells):
                return
            # reserve
            store = self._state_store
            cache = None if store is None or sequence.swapped or store.is_empty else self._open_prompt_cache(store)
            state = cache.find(sequence, needs_memory) if cache else None
            if needs_memory:
                kind = backend.state_kind if cache else None
                self._reserve(len(state.tokens) if state else 0)
                if cache and backend.state_kind != kind:  # fewer slots than requested
                    state = cache.find(sequence, needs_memory=False)
            # restore
            if self._swap and sequence.swapped and self._swap.load(sequence, sequence.swapped):
                continue
            if cache and state and self._make_room(len(state.tokens)):
                cache.restore(state)
            if self._takes_checkpoints:
                self._checkpoints.prepare(sequence)
            # place
            try:
                self._place(scheduler.next_admission(backend.capacity, self._checkpoints.reusable))
            except GrammarError as error:
                self._fail_sequence(sequence, error)
            else:
                self._report_prefill(sequence)

    def _required_length(self, sequence: Sequence) -> int:
        """Length to reserve memory for: the maximum for a single slot, the expected length for many."""
        request, context_size = sequence.request, self._backend.context_size
        if self._reserves_max:
            return request.max_length(context_size)
        return request.expected_length(context_size, len(sequence.generated))

    def _lacks_slots(self) -> bool:
        """Whether nothing runs, and memory for what waits would have more slots: the last sequences were longer."""
        backend, scheduler = self._backend, self._scheduler
        if scheduler.running or len(scheduler.waiting) <= backend.slots:
            return False
        length, slots = self._plan_cache()
        return min(slots, backend.slots_for(length)) > backend.slots

    def _plan_cache(self) -> tuple[int, int]:
        """Length and number of slots for all that waits."""
        waiting, backend = self._scheduler.waiting, self._backend
        if self._reserves_max:
            return max(map(self._required_length, waiting)), self._max_slots
        return plan_cache(waiting, backend.context_size, self._max_slots, backend.slots_for)

    def _reserve(self, min_length: int, n_slots: int | None = None) -> None:
        length, slots = self._plan_cache()
        if notice := self._backend.reserve(max(min_length, length), n_slots or slots):
            self._scheduler.waiting[0].emit(notice)
        self._reset_slots()

    def _reset_slots(self) -> None:
        self._scheduler.reset_slots(self._backend.slots)
        self._checkpoints.clear()

    def _has_cells(self, tokens: int) -> bool:
        """Whether memory holds this many additional tokens without evicting any."""
        return not self._backend.kv_unified or self._scheduler.has_cells(tokens, self._backend.capacity)

    def _make_room(self, tokens: int) -> bool:
        """Evict idle slots from a unified KV cache until it holds this many additional tokens; False if it cannot."""
        while not self._has_cells(tokens):
            slot = self._scheduler.eviction_candidate
            if slot is None:
                return False
            self._backend.context.clear(slot.index)
            slot.clear()
        return True

    def _add_drafts(self, step: Step) -> Step:
        """Add drafted tokens to a step in which sequences decode, where they pay off and memory holds them."""
        backend, sequences = self._backend, [share.sequence for share in step.shares]
        costs = next((sequence.request.step_costs for sequence in sequences if sequence.request.step_costs), None)
        if costs is None or not backend.max_draft or any(sequence.is_prefilling for sequence in sequences):
            return step
        drafts = [self._draft(sequence) for sequence in sequences]
        probabilities = [[token.probability for token in draft] for draft in drafts]
        is_equal = not (backend.kv_unified and backend.trimmable_length)
        lengths = draft_lengths(probabilities, costs, backend.batch_size, is_equal)
        drafted = step.with_drafts(
            tuple(token.token for token in draft[:length]) for draft, length in zip(drafts, lengths, strict=True)
        )
        return drafted if self._has_cells(drafted.size) else step

    def _draft(self, sequence: Sequence) -> list[DraftToken]:
        """Guess a sequence's next tokens, at most as many as leave room to sample one after them."""
        if sequence.drafter is None:
            return []
        sequence.draft_state = sequence.draft_state or sequence.drafter.start(sequence.generated)
        room = sequence.request.max_length(self._backend.capacity) - sequence.length - 1
        return sequence.drafter.draft(sequence.draft_state, min(room, self._backend.max_draft))

    def _compact(self) -> None:
        """Move the sequences in the highest slots to holes below, unless waiting sequences will fill those."""
        scheduler, backend = self._scheduler, self._backend
        if backend.kv_unified or (scheduler.waiting and scheduler.free_slots):
            return
        while hole := scheduler.hole():
            source, target = hole
            if not source.tokens:  # just admitted: nothing to copy yet
                return
            backend.context.copy(source.index, target.index)
            backend.context.clear(source.index)
            scheduler.move(source, target)

    def _open_prompt_cache(self, store: StateStore) -> PromptCache:
        from cerebrum_cli.engine.prompt_cache import PromptCache

        return PromptCache(self._backend, self._scheduler, self._checkpoints, store)

    def _use_prompt_cache(self, function: Callable[[PromptCache], None]) -> Failure | None:
        try:
            if self._state_store:
                function(self._open_prompt_cache(self._state_store))
        except Exception as error:
            return Failure(error)
        return None

    def _place(self, admission: Admission) -> None:
        """Prepare the sampler and the slot of a sequence, and admit it with the prefix that could be reused."""
        sequence, slot, source, length = admission
        backend, request = self._backend, sequence.request
        if sequence.sampler is None and not isinstance(request, InspectionRequest):
            sequence.sampler = backend.sampler(request.params, sequence.seed, sequence.constraint, sequence.prompt)
        if length < len(sequence.prompt):
            length = backend.reusable_prefix(length)
        if slot is not source and length:
            backend.context.copy(source.index, slot.index)
        length = self._checkpoints.rewind(slot, length, source.checkpoints)
        self._scheduler.admit(admission, length)
        if self._takes_checkpoints:
            self._checkpoints.plan(sequence)
        sequence.admitted_at = sequence.admitted_at or perf_counter()

    def _process_output(self, step: Step, is_complete: bool) -> None:
        if not is_complete:
            for share in step.shares:
                self._checkpoints.resume(share.sequence)
            return
        for share in step.shares:
            self._scheduler.record_evaluated(share.sequence, share.tokens)
            if share.sequence.evaluated == share.sequence.checkpoint_at:
                self._checkpoints.after_step(share.sequence)
        row = -1
        for share in step.shares:
            sequence = share.sequence
            row += len(share.tokens)
            if not share.outputs:
                self._report_prefill(sequence)
                continue
            if isinstance(sequence.request, InspectionRequest):
                sequence.report_inspected(sequence.request, self._backend, range(row - share.outputs + 1, row + 1))
                if sequence.is_prefilling:
                    self._report_prefill(sequence)
                else:
                    self._finish(sequence, "stop")
                continue
            siblings = self._scheduler.sibling_samples(sequence) if not sequence.generated else []
            for sibling in siblings:
                self._place(sibling)
            if share.draft:
                self._sample_with_draft(sequence, row, share.draft)
            else:
                self._sample_token(sequence, row)
            for sibling in siblings:
                self._sample_token(sibling.sequence, row)
            row += len(share.draft)

    def _sample_with_draft(self, sequence: Sequence, row: int, draft: tuple[int, ...]) -> None:
        """Sample the next tokens of a sequence: one, and another after each drafted token that it equals."""
        assert sequence.slot is not None
        scheduler, slot = self._scheduler, self._scheduler.slots[sequence.slot]
        sequence.draft_n += len(draft)
        accepted = 0
        while self._sample_token(sequence, row + accepted) and accepted < len(draft):
            if draft[accepted] != sequence.generated[-1]:
                break
            scheduler.record_evaluated(sequence, draft[accepted : accepted + 1])
            accepted += 1
            sequence.draft_n_accepted += 1
        if sequence.draft_state:
            sequence.draft_state.record(accepted)
        length = self._checkpoints.rewind(slot, len(slot.tokens), slot.checkpoints)
        if length < len(slot.tokens):
            slot.copy_prefix(slot, length)
            sequence.evaluated = length

    @staticmethod
    def _report_prefill(sequence: Sequence) -> None:
        """Report prefill progress, unless the prompt is evaluated again after a preemption."""
        if not sequence.generated:
            sequence.emit(PromptEvent(sequence.id, sequence.evaluated, len(sequence.prompt)))

    def _sample_token(self, sequence: Sequence, row: int) -> bool:
        """Sample the next token from a row of logits, and emit its text; False if it has ended or its slot is full.

        A forced token is accepted instead, so that penalties count it.
        """
        backend, request, is_forced = self._backend, sequence.request, bool(sequence.pending)
        assert sequence.sampler is not None
        try:
            if is_forced:
                token = sequence.pending.popleft()
                sequence.sampler.accept(token)
            else:
                token = sequence.sampler.sample(row)
        except GrammarError as error:
            self._release(sequence)
            sequence.emit(RefusedEvent(sequence.id, error))
            return False
        sequence.sampled_at.append(perf_counter())
        if backend.is_eog(token) and not (request.ignore_eos or is_forced):
            return self._finish(sequence, "stop")
        logprob = backend.logprob(row, token) if request.logprobs and not is_forced else None
        reason = sequence.add(token, backend.piece(token, special=token in request.visible_tokens), logprob)
        if reason:
            return self._finish(sequence, reason, by_stop_string=reason == "stop")
        if sequence.length >= backend.context_size:
            return self._finish(sequence, "context")
        return sequence.length < backend.capacity

    def _finish(self, sequence: Sequence, reason: FinishReason, by_stop_string: bool = False) -> bool:
        """End a sequence; False, since it has left its slot."""
        text, stopped = sequence.detokenizer.flush(is_truncated=reason != "stop")
        if text:
            sequence.emit(TokenEvent(sequence.id, text))
        self._release(sequence)
        by_stop_string = by_stop_string or stopped
        reason = "stop" if stopped else reason
        sequence.emit(sequence.finish(reason, self._backend.context_size, self._load_s, by_stop_string))
        return False

    def _release(self, sequence: Sequence) -> None:
        self._scheduler.remove(sequence)
        if self._swap:
            self._swap.discard(sequence)
        if sequence.sampler is not None:
            sequence.sampler.close()
            sequence.sampler = None

    def _cancel(self, work: Work | None) -> None:
        """Cancel those of these sequences and jobs that have not finished, or all."""
        unfinished = [*self._scheduler.running, *self._scheduler.waiting]
        chosen = set(unfinished if work is None else work)
        for sequence in unfinished:
            if sequence in chosen:
                self._finish(sequence, "cancelled")
        for job in [job for job in self._score_jobs if work is None or job in work]:
            self._score_jobs.remove(job)
            job.end()

    def _fail_sequence(self, sequence: Sequence, error: BaseException) -> None:
        """End a sequence with an error; its caller then cancels the others of the same stream."""
        self._release(sequence)
        sequence.emit(Failure(error))

    def fail(self, error: BaseException) -> None:
        for job in self._score_jobs:
            job.emit(Failure(error))
        self._score_jobs.clear()
        for sequence in [*self._scheduler.running, *self._scheduler.waiting]:
            self._fail_sequence(sequence, error)
