"""States of sequences that are not in a slot now: checkpoints, and those of the prompt cache on disk.

A model with recurrent states or sliding windows cannot forget its last tokens, only return to a checkpoint. With one KV
cache, as in a chat, checkpoints are taken where a prompt continues an earlier one, and where its last question ends: a
template may drop what follows, such as the reasoning of the reply. With a cache for each slot, as in a batch, prompts
have no more than a prefix in common: there is one snapshot of it, which can be loaded into any slot.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from collections.abc import Sequence as Many
from functools import partial
from typing import TYPE_CHECKING

from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.token_ids import TokenIds, common_prefix
from cerebrum_cli.engine.scheduler import Scheduler, Slot, common_prefixes
from cerebrum_cli.engine.sequence import Sequence
from cerebrum_cli.engine.state_store import State, StateStore

if TYPE_CHECKING:
    from cerebrum_cli.engine.backend import Backend
    from cerebrum_cli.engine.step import Checkpoint

MIN_SAVED_TOKENS = 16  # fewer are evaluated as fast as a state is found
MAX_READ_RATIO = 16  # tokens read for each token saved: reading takes about a twentieth of evaluating
MIN_SNAPSHOT_TOKENS = 64  # fewer are evaluated as fast
MAX_SNAPSHOT_BYTES = 256 * 2**20


class Checkpoints:
    """Takes and restores checkpoints of one context; each slot lists those of its own tokens."""

    def __init__(self, backend: Backend, scheduler: Scheduler) -> None:
        self._backend = backend
        self._scheduler = scheduler
        self._shared = 0  # first tokens of the prompt to admit that a slot has evaluated too

    def reusable(self, slot: Slot, length: int) -> int:
        """Number of the first `length` tokens of a slot that it can be shortened to."""
        if length == len(slot.tokens) or length >= self._backend.context.trim_limit(slot.index):
            return length
        return max((held.length for held in slot.checkpoints if held.length <= length), default=0)

    def slot_to_load(self) -> Slot | None:
        """Empty the free slot whose contents are the smallest loss, of those that no pending copy reads or writes."""
        free = self._scheduler.slots_to_overwrite
        slot = next((slot for slot in free if slot.index not in self._backend.context.pending_copies), None)
        if slot:
            slot.truncate(0)
        return slot

    def rewind(self, slot: Slot, length: int, checkpoints: Iterable[Checkpoint]) -> int:
        """Shorten what llama.cpp holds in a slot to `length` tokens, or to a checkpoint before; the number left."""
        backend = self._backend
        held = backend.context.length(slot.index)
        if length and held and (held <= length or backend.context.trim(slot.index, length)):
            return length
        usable = (checkpoint for checkpoint in checkpoints if checkpoint.length <= length)
        newest = max(usable, key=lambda checkpoint: checkpoint.length, default=None)
        if newest and backend.context.restore(slot.index, newest):
            return newest.length
        backend.context.clear(slot.index)
        return 0

    def resume(self, sequence: Sequence) -> None:
        """Use what a slot holds after an interrupted step, up to tokens whose logits are needed."""
        slot = self._scheduler.slot_of(sequence)
        length = min(self._backend.context.length(slot.index) or len(slot.tokens), sequence.first_output)
        length = self.rewind(slot, length, slot.checkpoints)
        slot.truncate(length)
        self._scheduler.record_evaluated(sequence, sequence.tokens_from(len(slot.tokens), length - len(slot.tokens)))

    def plan(self, sequence: Sequence) -> None:
        """Take a checkpoint where an admitted prompt continues an earlier one, and decide where to take the next."""
        sequence.checkpoint_at = 0
        if sequence.generated:
            return
        slot = self._scheduler.slot_of(sequence)
        end = sequence.first_output + 1 - sequence.request.opening
        if self._backend.checkpoint_budget:
            if 0 < sequence.evaluated < len(sequence.prompt):
                self._take(slot)
            sequence.checkpoint_at = end
        else:
            is_sampled_later = max(sequence.request.ask.n, sequence.request.ask.max_n) > len(self._scheduler.slots)
            shared = self._backend.reusable_prefix(end if is_sampled_later else self._shared)
            if shared - sequence.evaluated >= MIN_SNAPSHOT_TOKENS:
                sequence.checkpoint_at = shared

    def prepare(self, sequence: Sequence) -> None:
        """Load the snapshot into a free slot, where admission finds it, if it holds more of a prompt than any slot."""
        if self._backend.checkpoint_budget or sequence.generated:
            return
        slots = self._scheduler.slots
        prompt = sequence.tokens[: sequence.first_output]
        shared = common_prefixes(slots, prompt)
        self._shared = max(shared)
        tokens, checkpoint = self._scheduler.snapshot or (array("i"), None)
        if checkpoint is None or common_prefix(tokens, prompt) < len(tokens):
            return
        is_longest = all(self.reusable(*pair) < len(tokens) for pair in zip(slots, shared, strict=True))
        slot = self.slot_to_load() if is_longest else None
        if slot and self._backend.context.restore(slot.index, checkpoint):
            slot.extend(tokens)

    def after_step(self, sequence: Sequence) -> None:
        backend = self._backend
        slot = self._scheduler.slot_of(sequence)
        if backend.checkpoint_budget:
            self._take(slot)
        elif (
            backend.context.state_size(slot.index) <= MAX_SNAPSHOT_BYTES
            and slot.index not in backend.context.pending_copies
        ):
            whole = backend.context.checkpoint(slot.index, is_whole=True)
            self._scheduler.snapshot = array("i", slot.tokens), whole

    def _take(self, slot: Slot) -> None:
        """Take a checkpoint of a slot, dropping others to stay within the budget: those of the least recently used."""
        if any(checkpoint.length == len(slot.tokens) for checkpoint in slot.checkpoints):
            return
        slot.checkpoints.append(self._backend.context.checkpoint(slot.index))
        slots = self._scheduler.slots

        def held_bytes() -> int:
            checkpoints = {id(checkpoint): checkpoint for slot in slots for checkpoint in slot.checkpoints}
            return sum(len(checkpoint.state) for checkpoint in checkpoints.values())

        for oldest in sorted(slots, key=lambda slot: slot.last_used):
            least = 1 if oldest is slot else 0  # the one just taken stays
            while len(oldest.checkpoints) > least and held_bytes() > self._backend.checkpoint_budget:
                oldest.checkpoints.pop(0)


@frozen
class PromptCache:
    """States on disk: the longest common prefix is restored before admission, idle slots are saved on request."""

    backend: Backend
    scheduler: Scheduler
    checkpoints: Checkpoints
    store: StateStore

    def find(self, sequence: Sequence, needs_memory: bool) -> State | None:
        """Find the state that saves a waiting sequence the most tokens, if it is worth loading.

        With `needs_memory`, memory is about to be allocated and can be of any size. Otherwise the state must fit:
        growing the memory would empty the slots of others.
        """
        backend = self.backend
        prompt = sequence.prompt[: sequence.first_output]
        max_length = backend.context_size if needs_memory else backend.capacity
        slots = [] if needs_memory else self.scheduler.slots
        held = max(common_prefixes(slots, prompt, self.checkpoints.reusable), default=0)

        def is_usable(length: int, shared: int) -> bool:
            is_worth_it = shared - held >= max(MIN_SAVED_TOKENS, length // MAX_READ_RATIO)
            return length <= max_length and is_worth_it and self._is_trimmable(length, shared)

        kind = backend.state_kind if len(prompt) - held >= MIN_SAVED_TOKENS else None
        return self.store.find_longest(prompt, kind, is_usable, sequence.emit) if kind else None

    def restore(self, state: State) -> None:
        """Load a state into a free slot, where admission will find it; not if copies of all of those are pending."""
        slot = self.checkpoints.slot_to_load()
        if slot is None:
            return
        context = self.backend.context
        if context.load_state(slot.index, state.path) and context.length(slot.index) == len(state.tokens):
            slot.extend(state.tokens)
        else:
            context.clear(slot.index)
            self.store.reject(state)

    def save(self, min_tokens: int, prompt: TokenIds | None = None, empties: bool = False) -> None:
        """Save idle slots with at least `min_tokens` tokens in no state yet; with a prompt, only the best match.

        `empties` those slots that are on disk then: in a unified cache, what they hold slows down others.
        """
        idle = [slot for slot in self._idle_slots() if len(slot.tokens) >= min_tokens]
        if prompt is not None and idle:
            idle = [max(idle, key=lambda slot: common_prefix(slot.tokens, prompt))]
        for slot in sorted(idle, key=lambda slot: -len(slot.tokens)):
            if self._count_unsaved(slot.tokens) >= min_tokens:
                self._write(slot)
                if slot.checkpoints:  # memory that cannot be trimmed: what a retry, or the next prompt, returns to
                    newest = slot.checkpoints[-1]
                    slot.truncate(newest.length if self.backend.context.restore(slot.index, newest) else 0)
                    self._write(slot)
            if empties and self._count_unsaved(slot.tokens) < min_tokens:
                self.backend.context.clear(slot.index)
                slot.truncate(0)

    def save_prefix(self, tokens: TokenIds) -> None:
        """Save a common prefix of prompts from an idle slot, which drops the rest, unless a state has it already."""
        if not self._count_unsaved(tokens):
            return
        slot = next((slot for slot in self._idle_slots() if common_prefix(slot.tokens, tokens) == len(tokens)), None)
        if slot and self.backend.context.trim(slot.index, len(tokens)):
            slot.truncate(len(tokens))
            self._write(slot)

    def _idle_slots(self) -> list[Slot]:
        if self.backend.state_kind is None:
            return []
        # a difference in length was never seen, but a mislabeled state would give wrong answers from then on
        return [
            slot
            for slot in self.scheduler.free_slots
            if slot.tokens
            and self.backend.context.length(slot.index) == len(slot.tokens)
            and slot.index not in self.backend.context.pending_copies
        ]

    def _count_unsaved(self, tokens: Many[int]) -> int:
        """Number of tokens that no state holds which fits the largest context and can be trimmed to these."""
        longest = self.backend.context_size
        kind = self.backend.state_kind or ""
        return len(tokens) - self.store.stored_prefix(
            tokens, kind, lambda length, shared: length <= longest and self._is_trimmable(length, shared)
        )

    def _write(self, slot: Slot) -> None:
        context = self.backend.context
        kind = self.backend.state_kind
        if kind and slot.tokens:
            size = context.state_size(slot.index)
            save = partial(context.save_state, slot.index, slot.tokens)
            self.store.write(slot.tokens, kind, size, save)

    def _is_trimmable(self, length: int, shared: int) -> bool:
        return shared == length or length <= self.backend.trimmable_length
