"""Slots and the store: a state is loaded before a sequence that begins like it moves in, and saved when asked to."""

from __future__ import annotations

from functools import partial

from cerebrum_cli.engine.backend import Backend
from cerebrum_cli.engine.scheduler import Scheduler, common_prefix
from cerebrum_cli.engine.sequence import Sequence
from cerebrum_cli.engine.state_store import State, StateStore

WORTH = 16  # tokens a state must save: fewer are evaluated as fast as they are found
SHARE = 16  # and one in so many of its own, since all of it is read: that takes a twentieth of evaluating it


class PromptCache:
    """What the engine's thread does with the store."""

    def __init__(self, backend: Backend, scheduler: Scheduler, states: StateStore) -> None:
        self._backend = backend
        self._scheduler = scheduler
        self._states = states

    def found(self, sequence: Sequence, anew: bool) -> State | None:
        """Return the state that spares a waiting sequence most, if it is worth it; `anew`: memory will be made first.

        What memory there is does not grow for a state: others would lose what their slots hold.
        """
        backend, prompt = self._backend, sequence.prompt[:-1]
        room = backend.context_size if anew else backend.capacity
        best = 0 if anew else max(common_prefix(slot.held, prompt) for slot in self._scheduler.slots)

        def fits(length: int, shared: int) -> bool:
            return length <= room and shared - best >= max(WORTH, length // SHARE) and backend.trims(length, shared)

        kind = backend.state_kind if len(prompt) - best >= WORTH else None
        return self._states.longest(prompt, kind, fits, sequence.tell) if kind else None

    def load(self, state: State, sequence: Sequence) -> None:
        """Load a state into a free slot, where the sequence will find it."""
        backend, slot = self._backend, self._scheduler.spare
        slot.clear()
        if backend.load(slot.index, state.path) and backend.length(slot.index) == len(state.tokens):
            slot.read(state.tokens)
        else:
            backend.clear(slot.index)
            self._states.refuse(state, sequence.tell)

    def save(self, least: int, prompt: tuple[int, ...] | None) -> None:
        """Save what idle slots hold, the longest first, where `least` tokens or more of it are in no state yet.

        With a prompt, save only the one that holds most of it.
        """
        backend, kind = self._backend, self._backend.state_kind
        if kind is None:
            return
        least = max(1, least)
        idle = [slot for slot in self._scheduler.slots if not slot.sequence and len(slot.held) >= least]
        if prompt is not None and idle:
            idle = [max(idle, key=lambda slot: common_prefix(slot.held, prompt))]
        for slot in sorted(idle, key=lambda slot: -len(slot.held)):
            if backend.length(slot.index) != len(slot.held):
                continue  # never seen; but a state that is not what it says would be wrong for ever
            if len(slot.held) - self._states.shared(slot.held, kind, self._comes_back) >= least:
                size = backend.state_size(slot.index)
                self._states.write(slot.held, kind, size, partial(backend.save, slot.index))

    def save_beginning(self, tokens: tuple[int, ...]) -> None:
        """Save the beginning that an idle slot has in common with prompts to come, unless one is kept that holds it.

        The slot forgets what comes after it.
        """
        backend, kind = self._backend, self._backend.state_kind
        if kind is None or self._states.shared(tokens, kind, self._comes_back) >= len(tokens):
            return
        idle = (slot for slot in self._scheduler.slots if not slot.sequence)
        slot = next((slot for slot in idle if common_prefix(slot.held, tokens) == len(tokens)), None)
        if slot is None or not backend.trim(slot.index, len(tokens)):
            return
        slot.take(slot, len(tokens))
        size = backend.state_size(slot.index)
        self._states.write(tokens, kind, size, partial(backend.save, slot.index), beginning=True)

    def _comes_back(self, length: int, shared: int) -> bool:
        """Return whether a state could be loaded in the longest context there can be, and cut to what is shared."""
        return length <= self._backend.context_size and self._backend.trims(length, shared)
