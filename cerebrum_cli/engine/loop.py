"""The engine's loop: schedule a step, decode it, process its output."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from time import perf_counter
from typing import TYPE_CHECKING

from cerebrum_cli.core.errors import GrammarError
from cerebrum_cli.core.events import FinishReason, RefusedEvent
from cerebrum_cli.core.token_ids import TokenIds, common_prefix
from cerebrum_cli.engine.engine import CancelScope
from cerebrum_cli.engine.placement import Placement
from cerebrum_cli.engine.prompt_cache import StateStore
from cerebrum_cli.engine.scheduler import Share, rows_of
from cerebrum_cli.engine.sequence import Sequence

if TYPE_CHECKING:
    from cerebrum_cli.engine.backend import Backend
    from cerebrum_cli.engine.loglikelihood import ScoreJob


Work = Collection["Sequence | ScoreJob"]


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
            logprobs: tuple[float, ...] = ()
            if request.ask.logprobs and not is_forced:
                logprobs = (backend.logprob(row, token),)
            reason = sequence.add(token, backend.piece(token, special=request.is_visible(token)), logprobs)
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
            sampler.accept(token)
            return token
        if sequence.bias:
            return self._backend.sample(sampler, row, sequence.bias)
        return sampler.sample(row)

    def _finish(self, sequence: Sequence, reason: FinishReason) -> bool:
        """End a sequence, and ask its follow-up if there is one; False, since it has left its slot."""
        for event in sequence.last_events(is_truncated=reason != "stop"):
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


def fail_work(work: Work, error: BaseException) -> None:
    for item in work:
        item.emit(error)
