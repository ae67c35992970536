"""Slots and the store: a state is loaded before a sequence that begins like it moves in, and saved when asked to."""

from __future__ import annotations

from functools import partial

from cerebrum_cli.engine.backend import Backend
from cerebrum_cli.engine.scheduler import Scheduler, common_prefix
from cerebrum_cli.engine.sequence import Sequence
from cerebrum_cli.engine.state_store import State, StateStore

MIN_SAVED_TOKENS = 16  # tokens a state must save: fewer are evaluated as fast as they are found
MIN_SAVED_FRACTION = (
    16  # and one in so many of its own, since all of it is read: that takes a twentieth of evaluating it
)


class PromptCache:
    """What the engine's thread does with the store."""

    def __init__(self, backend: Backend, scheduler: Scheduler, store: StateStore) -> None:
        self._backend = backend
        self._scheduler = scheduler
        self._store = store

    def find(self, sequence: Sequence, new_memory: bool) -> State | None:
        """Return the state that spares a waiting sequence most, if it is worth it; `anew`: memory will be made first.

        What memory there is does not grow for a state: others would lose what their slots hold.
        """
        backend, prompt = self._backend, sequence.prompt[:-1]
        capacity = backend.context_size if new_memory else backend.capacity
        best = 0 if new_memory else max(common_prefix(slot.tokens, prompt) for slot in self._scheduler.slots)

        def fits(length: int, shared: int) -> bool:
            return (
                length <= capacity
                and shared - best >= max(MIN_SAVED_TOKENS, length // MIN_SAVED_FRACTION)
                and backend.is_trimmable(length, shared)
            )

        kind = backend.state_kind if len(prompt) - best >= MIN_SAVED_TOKENS else None
        return self._store.find_longest(prompt, kind, fits, sequence.emit) if kind else None

    def restore(self, state: State, sequence: Sequence) -> None:
        """Load a state into a free slot, where the sequence will find it."""
        backend, slot = self._backend, self._scheduler.free_slot
        slot.clear()
        if backend.load_state(slot.index, state.path) and backend.length(slot.index) == len(state.tokens):
            slot.extend(state.tokens)
        else:
            backend.clear(slot.index)
            self._store.discard(state, sequence.emit)

    def save(self, min_tokens: int, prompt: tuple[int, ...] | None) -> None:
        """Save what idle slots hold, the longest first, where `least` tokens or more of it are in no state yet.

        With a prompt, save only the one that holds most of it.
        """
        backend, kind = self._backend, self._backend.state_kind
        if kind is None:
            return
        min_tokens = max(1, min_tokens)
        idle = [slot for slot in self._scheduler.slots if not slot.sequence and len(slot.tokens) >= min_tokens]
        if prompt is not None and idle:
            idle = [max(idle, key=lambda slot: common_prefix(slot.tokens, prompt))]
        for slot in sorted(idle, key=lambda slot: -len(slot.tokens)):
            if backend.length(slot.index) != len(slot.tokens):
                continue  # never seen; but a state that is not what it says would be wrong for ever
            if len(slot.tokens) - self._store.stored_prefix(slot.tokens, kind, self._is_restorable) >= min_tokens:
                size = backend.state_size(slot.index)
                self._store.write(slot.tokens, kind, size, partial(backend.save_state, slot.index))

    def save_prefix(self, tokens: tuple[int, ...]) -> None:
        """Save the beginning that an idle slot has in common with prompts to come, unless one is kept that holds it.

        The slot forgets what comes after it.
        """
        backend, kind = self._backend, self._backend.state_kind
        if kind is None or self._store.stored_prefix(tokens, kind, self._is_restorable) >= len(tokens):
            return
        idle = (slot for slot in self._scheduler.slots if not slot.sequence)
        slot = next((slot for slot in idle if common_prefix(slot.tokens, tokens) == len(tokens)), None)
        if slot is None or not backend.trim(slot.index, len(tokens)):
            return
        slot.copy_prefix(slot, len(tokens))
        size = backend.state_size(slot.index)
        self._store.write(tokens, kind, size, partial(backend.save_state, slot.index), is_prefix=True)

    def _is_restorable(self, length: int, shared: int) -> bool:
        """Return whether a state could be loaded in the longest context there can be, and cut to what is shared."""
        return length <= self._backend.context_size and self._backend.is_trimmable(length, shared)
