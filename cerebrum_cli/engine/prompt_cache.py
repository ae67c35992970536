"""Prompt cache on disk: restore the longest common prefix before admission, and save idle slots on request."""

from __future__ import annotations

from functools import partial

from cerebrum_cli.engine.backend import Backend
from cerebrum_cli.engine.checkpoints import Checkpoints
from cerebrum_cli.engine.scheduler import Scheduler, Slot, common_prefix, reusable_prefixes
from cerebrum_cli.engine.sequence import Sequence
from cerebrum_cli.engine.state_store import State, StateStore

MIN_SAVED_TOKENS = 16  # fewer are evaluated as fast as a state is found
MAX_READ_RATIO = 16  # tokens read for each token saved: reading takes about a twentieth of evaluating


class PromptCache:
    def __init__(self, backend: Backend, scheduler: Scheduler, checkpoints: Checkpoints, store: StateStore) -> None:
        self._backend = backend
        self._scheduler = scheduler
        self._checkpoints = checkpoints
        self._store = store

    def find(self, sequence: Sequence, needs_memory: bool) -> State | None:
        """Find the state that saves a waiting sequence the most tokens, if it is worth loading.

        With `needs_memory`, memory is about to be allocated and can be of any size. Otherwise the state must fit:
        growing the memory would empty the slots of others.
        """
        backend, prompt = self._backend, sequence.prompt[: sequence.first_output]
        max_length = backend.context_size if needs_memory else backend.capacity
        slots = [] if needs_memory else self._scheduler.slots
        held = max(reusable_prefixes(slots, prompt, self._checkpoints.reusable), default=0)

        def is_usable(length: int, shared: int) -> bool:
            is_worth_it = shared - held >= max(MIN_SAVED_TOKENS, length // MAX_READ_RATIO)
            return length <= max_length and is_worth_it and self._is_trimmable(length, shared)

        kind = backend.state_kind if len(prompt) - held >= MIN_SAVED_TOKENS else None
        return self._store.find_longest(prompt, kind, is_usable, sequence.emit) if kind else None

    def restore(self, state: State) -> None:
        """Load a state into a free slot, where admission will find it; not if a copy to or from each is pending."""
        backend, slot = self._backend, self._checkpoints.slot_to_load()
        if slot is None:
            return
        if backend.context.load_state(slot.index, state.path) and backend.context.length(slot.index) == len(
            state.tokens
        ):
            slot.extend(state.tokens)
        else:
            backend.context.clear(slot.index)
            self._store.reject(state)

    def save(self, min_tokens: int, prompt: tuple[int, ...] | None, empties: bool) -> None:
        """Save idle slots with at least `min_tokens` tokens in no state yet; with a prompt, only the best match.

        `empties` those slots that are on disk then: in a unified cache, what they hold slows down others.
        """
        backend, kind = self._backend, self._backend.state_kind
        if kind is None:
            return
        min_tokens = max(1, min_tokens)
        idle = [slot for slot in self._scheduler.slots if not slot.sequence and len(slot.tokens) >= min_tokens]
        if prompt is not None and idle:
            idle = [max(idle, key=lambda slot: common_prefix(slot.tokens, prompt))]
        for slot in sorted(idle, key=lambda slot: -len(slot.tokens)):
            if slot.index in backend.context.pending_copies or backend.context.length(slot.index) != len(slot.tokens):
                continue  # a difference was never seen, but a mislabeled state would give wrong answers from then on
            if self._count_unsaved(slot, kind) >= min_tokens:
                self._write(slot, kind)
                if slot.checkpoints:  # memory that cannot be trimmed: what a retry, or the next prompt, returns to
                    newest = slot.checkpoints[-1]
                    slot.copy_prefix(slot, newest.length if backend.context.restore(slot.index, newest) else 0)
                    self._write(slot, kind)
            if empties and self._count_unsaved(slot, kind) < min_tokens:
                backend.context.clear(slot.index)
                slot.clear()

    def _count_unsaved(self, slot: Slot, kind: str) -> int:
        return len(slot.tokens) - self._store.stored_prefix(slot.tokens, kind, self._is_restorable)

    def _write(self, slot: Slot, kind: str, is_prefix: bool = False) -> None:
        if slot.tokens:
            size, save = (
                self._backend.context.state_size(slot.index),
                partial(self._backend.context.save_state, slot.index),
            )
            self._store.write(slot.tokens, kind, size, save, is_prefix)

    def save_prefix(self, tokens: tuple[int, ...]) -> None:
        """Save a common prefix of prompts from an idle slot, which drops the rest, unless a state has it already."""
        backend, kind = self._backend, self._backend.state_kind
        if kind is None or self._store.stored_prefix(tokens, kind, self._is_restorable) >= len(tokens):
            return
        free = (slot for slot in self._scheduler.free_slots if slot.index not in backend.context.pending_copies)
        slot = next((slot for slot in free if common_prefix(slot.tokens, tokens) == len(tokens)), None)
        if slot is None or not backend.context.trim(slot.index, len(tokens)):
            return
        slot.copy_prefix(slot, len(tokens))
        self._write(slot, kind, is_prefix=True)

    def _is_restorable(self, length: int, shared: int) -> bool:
        """Whether a state fits the largest context and can be trimmed to the shared prefix."""
        return length <= self._backend.context_size and self._is_trimmable(length, shared)

    def _is_trimmable(self, length: int, shared: int) -> bool:
        return shared == length or length <= self._backend.trimmable_length
