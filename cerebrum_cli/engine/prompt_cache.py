"""The prompt cache on disk: a state is restored before a prompt is admitted, and idle slots are saved on request."""

from __future__ import annotations

from collections.abc import Sequence as Many
from functools import partial
from typing import TYPE_CHECKING

from cerebrum_cli.core.files import remove
from cerebrum_cli.core.frozen import frozen
from cerebrum_cli.core.token_ids import TokenIds, common_prefix, common_tokens, pack_tokens
from cerebrum_cli.engine.context_checkpoints import Checkpoints
from cerebrum_cli.engine.scheduler import Scheduler, Slot, common_prefixes
from cerebrum_cli.engine.sequence import Sequence
from cerebrum_cli.engine.state_store import State, StateStore

if TYPE_CHECKING:
    from cerebrum_cli.engine.backend import Backend

MIN_SAVED_TOKENS = 16  # fewer are evaluated as fast as a state is found
MAX_READ_RATIO = 16  # tokens read for each token saved: reading takes about a twentieth of evaluating


@frozen
class PromptCache:
    """The states in a store that fit the slots of one context."""

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
        prompt = sequence.prompt[: sequence.last_position]
        slots = [] if needs_memory else self.scheduler.slots
        held = max(common_prefixes(slots, prompt, self.checkpoints.reusable), default=0)
        if len(prompt) - held < MIN_SAVED_TOKENS:
            return None
        state, shared = self._longest(prompt, backend.context_size if needs_memory else backend.capacity)
        if state and shared - held >= max(MIN_SAVED_TOKENS, state.length // MAX_READ_RATIO):
            return state
        return None

    def restore(self, state: State) -> None:
        """Load a state into a free slot, where admission will find it; not if copies of all of those are pending.

        One that is damaged, or that llama.cpp rejects, is removed.
        """
        slot = self.checkpoints.slot_to_load()
        if slot is None or not self.store.use(state):
            return
        context = self.backend.context
        if context.load_state(slot.index, state.path) and context.length(slot.index) == state.length:
            slot.extend(state.tokens)
        else:
            context.clear(slot.index)
            remove(state.path)

    def save(self, min_tokens: int, prompt: TokenIds | None = None) -> None:
        """Save and empty idle slots with at least `min_tokens` tokens in no state yet; with a prompt, the best match.

        In a unified cache, what idle slots hold slows down others.
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
            if self._count_unsaved(slot.tokens) < min_tokens:
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

    def _longest(self, tokens: Many[int], max_length: int) -> tuple[State | None, int]:
        """The state with the longest common prefix with tokens, and the length of that; the shortest of several.

        It has at most `max_length` tokens, and memory can be trimmed to the prefix.
        """
        backend = self.backend
        packed = pack_tokens(tokens)
        found: tuple[State | None, int] = None, 0
        for state in sorted(self.store.states(backend.state_kind or ""), key=lambda state: state.length):
            shared = common_tokens(state.packed, packed)
            is_trimmable = state.length == shared or state.length <= backend.trimmable_length
            if shared > found[1] and state.length <= max_length and is_trimmable:
                found = state, shared
        return found

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
        return len(tokens) - self._longest(tokens, self.backend.context_size)[1]

    def _write(self, slot: Slot) -> None:
        context = self.backend.context
        kind = self.backend.state_kind
        if kind and slot.tokens and context.state_size(slot.index) <= self.store.limit:
            self.store.write(slot.tokens, kind, partial(context.save_state, slot.index, slot.tokens))
