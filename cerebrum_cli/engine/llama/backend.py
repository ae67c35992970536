"""The engine's backend on llama.cpp: a model, its vocabulary, and a context made when its size is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cerebrum_cli.engine.backend import Row, Sampler, StopFlag
from cerebrum_cli.engine.llama.library import llama
from cerebrum_cli.engine.llama.memory import ContextOptions, Memory, context_params
from cerebrum_cli.engine.llama.sample import GrammarSampler, LlamaSampler
from cerebrum_cli.engine.llama.state import load_state, save_state, state_kind, state_size
from cerebrum_cli.engine.llama.vocabulary import Vocabulary
from cerebrum_cli.ground.sampling import SamplingParams


class LlamaBackend(Vocabulary):
    """A loaded model; its context is only made by `reserve`, since making a large one takes longer than an answer."""

    def __init__(self, model: Any, options: ContextOptions, stop: StopFlag) -> None:
        super().__init__(model)
        self._model = model
        self._options = options
        self._stop = stop
        self._made: Memory | None = None
        self.context_size: int = options.length
        self.slots: int = options.slots
        self.batch_size: int = options.batch_size

    @property
    def capacity(self) -> int:
        """The length of sequence there is memory for."""
        return self._made.capacity if self._made else 0

    def reserve(self, length: int) -> None:
        """Make a context for sequences of `length` tokens; a second time for the longest, so there is no third."""
        if self._made:
            self._made.close()
            self._made = None
            length = self.context_size
        self._made = Memory(self._model, replace(self._options, length=length), self._stop)

    def decode(self, rows: Sequence[Row]) -> bool:
        """Evaluate the rows; False if interrupted."""
        return self._memory.decode(rows)

    def length(self, slot: int) -> int:
        """Return how many tokens the slot holds."""
        return self._memory.length(slot)

    def sampler(self, params: SamplingParams, seed: int, grammar: str | None, prompt: Sequence[int]) -> Sampler:
        """Return a fresh sampler."""
        context = self._memory.context
        if grammar is None:
            return LlamaSampler(context, params, seed, prompt)
        return GrammarSampler(context, params, seed, prompt, grammar)

    def copy(self, source: int, target: int) -> None:
        """Make the target slot hold what the source holds."""
        self._memory.copy(source, target)

    def trim(self, slot: int, length: int) -> bool:
        """Forget positions from `length` on, where the model can."""
        return self._memory.trim(slot, length)

    def clear(self, slot: int) -> None:
        """Forget all the slot holds."""
        self._memory.clear(slot)

    def trims(self, held: int, length: int) -> bool:
        """Return whether a slot holding `held` tokens could go back to `length`."""
        if llama.llama_model_is_recurrent(self._model) or llama.llama_model_is_hybrid(self._model):
            return length == held
        window = llama.llama_model_n_swa(self._model)
        return length == held or not window or held <= window

    @property
    def state_kind(self) -> str | None:
        """What a kept state must agree in beside the model."""
        return state_kind(self._model, context_params(self._options))

    def state_size(self, slot: int) -> int:
        """Return the bytes of what the slot holds."""
        return state_size(self._memory.context, slot)

    def save(self, slot: int, path: Path) -> None:
        """Write what the slot holds to a file."""
        save_state(self._memory.context, slot, path)

    def load(self, slot: int, path: Path) -> bool:
        """Make the slot hold what a file does; False if llama.cpp refuses it."""
        loaded = load_state(self._memory.context, slot, path)
        if not loaded:
            self.clear(slot)
        return loaded

    def close(self) -> None:
        """Free context and model."""
        if self._made:
            self._made.close()
        llama.llama_model_free(self._model)

    @property
    def _memory(self) -> Memory:
        assert self._made is not None, "reserve() comes first"
        return self._made
