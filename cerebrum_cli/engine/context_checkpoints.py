"""Checkpoints: earlier states of slots, in memory.

A model with recurrent states or sliding windows cannot forget its last tokens, only return to a checkpoint. With one KV
cache, as in a chat, checkpoints are taken where a prompt continues an earlier one, and where its last question ends: a
template may drop what follows, such as the reasoning of the reply. With a cache for each slot, as in a batch, prompts
have no more than a prefix in common: there is one snapshot of it, which can be loaded into any slot.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING

from cerebrum_cli.core.token_ids import common_prefix
from cerebrum_cli.engine.scheduler import Scheduler, Slot, common_prefixes
from cerebrum_cli.engine.sequence import Sequence

if TYPE_CHECKING:
    from cerebrum_cli.engine.backend import Backend
    from cerebrum_cli.engine.step import Checkpoint

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
        """Use what a slot holds after an interrupted step, up to the token whose logits are needed."""
        slot = self._scheduler.slot_of(sequence)
        length = min(self._backend.context.length(slot.index) or len(slot.tokens), sequence.last_position)
        length = self.rewind(slot, length, slot.checkpoints)
        slot.truncate(length)
        self._scheduler.record_evaluated(sequence, sequence.tokens_from(len(slot.tokens), length - len(slot.tokens)))

    def plan(self, sequence: Sequence) -> None:
        """Take a checkpoint where an admitted prompt continues an earlier one, and decide where to take the next."""
        sequence.checkpoint_at = 0
        if sequence.generated:
            return
        slot = self._scheduler.slot_of(sequence)
        end = sequence.last_position + 1 - sequence.request.opening
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
        prompt = sequence.tokens[: sequence.last_position]
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
