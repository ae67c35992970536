"""The engine's backend on llama.cpp: a model, its vocabulary, and a context made when its size is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.sampling import SamplingParams
from cerebrum_cli.engine.backend import Row, Sampler, StopFlag
from cerebrum_cli.engine.llama import batch_invariance
from cerebrum_cli.engine.llama.context import ContextOptions, LlamaContext, context_params
from cerebrum_cli.engine.llama.devices import free_memory
from cerebrum_cli.engine.llama.library import llama
from cerebrum_cli.engine.llama.sampler import GrammarSampler, GreedySampler, LlamaSampler, logits, logprob
from cerebrum_cli.engine.llama.state import load_state, save_state, state_kind, state_size
from cerebrum_cli.engine.llama.vocabulary import Vocabulary
from cerebrum_cli.engine.plan import plan_slots

if TYPE_CHECKING:
    from numpy import float32
    from numpy.typing import NDArray


class LlamaBackend(Vocabulary):
    """A loaded model; its context is only made by `reserve`, since making a large one takes longer than an answer.

    `kv_bytes` are those of a token. With `evenly_read` a token is evaluated the same, whatever runs beside it.
    """

    def __init__(
        self, model: Any, options: ContextOptions, stop: StopFlag, kv_bytes: int = 0, batch_invariant: bool = False
    ) -> None:
        super().__init__(model)
        self._model = model
        self._stop = stop
        self._kv_bytes = kv_bytes
        self._batch_indices: list[int] | None = None
        self._context: LlamaContext | None = None
        self.configure(options, batch_invariant)

    def configure(self, options: ContextOptions, batch_invariant: bool = False) -> None:
        """Make contexts with these options from now on; what there is of memory is freed."""
        if self._context:
            self._context.close()
            self._context = None
        self._options = options
        self._batch_invariant = batch_invariant
        self.context_size: int = options.length
        self.slots: int = options.slots
        self.batch_size: int = options.batch_size

    @property
    def capacity(self) -> int:
        """The length of sequence there is memory for."""
        return self._context.capacity if self._context else 0

    def reserve(self, length: int) -> None:
        """Make a context for sequences of `length` tokens; for one alone a second time for the longest, so that there
        is no third; for many as many as memory holds.
        """
        asked, whole = self._options.slots, self._options.n_streams == 1
        if self._context:
            self._context.close()
            self._context = None
            length = self.context_size if whole else length
        slots = asked if whole else plan_slots(asked, length, self._kv_bytes, free_memory())
        while self._context is None:
            options = replace(self._options, length=length, slots=slots + self._batch_invariant)
            try:
                self._context = LlamaContext(self._model, options, self._stop)
            except EngineError:
                if whole or slots == 1:
                    raise
                slots //= 2  # what is free is not all in one place, as where there is a GPU
        self.slots = slots

    @property
    def kv_unified(self) -> bool:
        """Whether all slots share one memory."""
        return self._options.kv_unified

    def prefill_chunk(self, position: int) -> int:
        """Return how many tokens of a prompt a step should read at most."""
        size = self._options.batch_size
        return batch_invariance.prefill_chunk(position, size) if self._batch_invariant else size

    def reusable_prefix(self, length: int) -> int:
        """Return how many of the first `length` tokens of a slot are what they would be in any other prompt."""
        return batch_invariance.reusable_prefix(length, self._options.batch_size) if self._batch_invariant else length

    def decode(self, rows: Sequence[Row]) -> bool:
        """Evaluate the rows; False if interrupted."""
        if not self._batch_invariant:
            self._batch_indices = None
            return self._open_context.decode(rows)
        padded, self._batch_indices = batch_invariance.pad_single_rows(rows, self.length)
        done = self._open_context.decode(padded)
        decoded = {row.slot for row in rows}
        for row in padded:
            if row.slot not in decoded:
                self._open_context.trim(row.slot, row.position)
        return done

    def length(self, slot: int) -> int:
        """Return how many tokens the slot holds."""
        return self._open_context.length(slot)

    def sampler(self, params: SamplingParams, seed: int, grammar: str | None, prompt: Sequence[int]) -> Sampler:
        """Return a fresh sampler."""
        is_greedy = params.temperature == 0 and params.repeat_penalty == 1.0
        if grammar is None and is_greedy and self._options.n_streams > 1:
            return GreedySampler(self)
        if grammar is None:
            return LlamaSampler(self, params, seed, prompt)
        return GrammarSampler(self, params, seed, prompt, grammar)

    @property
    def context(self) -> Any:
        """llama.cpp's context, for samplers, which outlive one."""
        return self._open_context.context

    def place(self, row: int) -> int:
        """Return where a row of the last decode stands in llama.cpp's batch."""
        return self._batch_indices[row] if self._batch_indices else row

    def logprob(self, row: int, token: int) -> float:
        """Return the logarithm of a token's probability."""
        return logprob(self.context, self.place(row), token)

    def logits(self, row: int) -> NDArray[float32]:
        """Return a row of logits of the last decode, a number for each token; the next decode overwrites it."""
        found: NDArray[float32] = logits(self.context, self.place(row))
        return found

    def copy(self, source: int, target: int) -> None:
        """Make the target slot hold what the source holds."""
        self._open_context.copy(source, target)

    def trim(self, slot: int, length: int) -> bool:
        """Forget positions from `length` on, where the model can."""
        return self._open_context.trim(slot, length)

    def clear(self, slot: int) -> None:
        """Forget all the slot holds."""
        self._open_context.clear(slot)

    def is_trimmable(self, held: int, length: int) -> bool:
        """Return whether a slot holding `held` tokens could go back to `length`."""
        if llama.llama_model_is_recurrent(self._model) or llama.llama_model_is_hybrid(self._model):
            return length == held
        window = llama.llama_model_n_swa(self._model)
        return length == held or not window or held <= window

    @property
    def state_kind(self) -> str | None:
        """What a kept state must agree in beside the model."""
        return None if self._batch_invariant else state_kind(self._model, context_params(self._options))

    def state_size(self, slot: int) -> int:
        """Return the bytes of what the slot holds."""
        return state_size(self._open_context.context, slot)

    def save_state(self, slot: int, path: Path) -> None:
        """Write what the slot holds to a file."""
        save_state(self._open_context.context, slot, path)

    def load_state(self, slot: int, path: Path) -> bool:
        """Make the slot hold what a file does; False if llama.cpp refuses it."""
        loaded = load_state(self._open_context.context, slot, path)
        if not loaded:
            self.clear(slot)
        return loaded

    def close(self) -> None:
        """Free context and model."""
        if self._context:
            self._context.close()
        llama.llama_model_free(self._model)

    @property
    def _open_context(self) -> LlamaContext:
        assert self._context is not None, "reserve() comes first"
        return self._context
