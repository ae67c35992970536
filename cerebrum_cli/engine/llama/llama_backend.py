"""The engine's backend on llama.cpp: a model, its vocabulary, and a context created when its size is known."""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import groupby
from math import inf
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.core.json_types import JsonDict
from cerebrum_cli.core.sampling import SamplingParams, TokenBias
from cerebrum_cli.core.text import format_count
from cerebrum_cli.engine.drafter import MAX_DRAFT
from cerebrum_cli.engine.llama import batch_invariance
from cerebrum_cli.engine.llama.bindings import SHOW_LOG, free_memory, hardware, library_text, llama
from cerebrum_cli.engine.llama.context import LlamaContext, has_recurrent_state, uses_long_rope
from cerebrum_cli.engine.llama.sampler import DryPrototype, LlamaSampler, create_chain
from cerebrum_cli.engine.llama.vocabulary import LlamaVocabulary
from cerebrum_cli.engine.memory import FreeMemory, LoadPlan, checkpoint_budget, n_outputs_max
from cerebrum_cli.engine.requests import ContextOptions
from cerebrum_cli.engine.step import Constraint, StopFlag, TokenRow, TokenScore

if TYPE_CHECKING:
    from cerebrum_cli.engine.backend import Sampler
    from cerebrum_cli.engine.llama.logits import Candidates
    from cerebrum_cli.engine.llama.repacking import Repacking


class LlamaBackend(LlamaVocabulary):
    """A loaded model. `reserve` creates its context, since creating a large one takes longer than a short answer.

    `adapters` of the model apply in every context, each with its scale. `mapped_bytes` of its weights are files in the
    system's cache, which counts as free memory, although each step reads them. A reply continues with weights that
    are `repacking`, from its second token on, so that it does not depend on when these are ready.
    """

    context: LlamaContext  # which `reserve` creates

    def __init__(
        self,
        model: Any,
        plan: LoadPlan,
        stop: StopFlag,
        adapters: Sequence[tuple[Any, float]],
        mapped_bytes: int,
        repacking: Repacking | None = None,
    ) -> None:
        super().__init__(model)
        count = ctypes.c_int32()
        suppressed = llama.llama_vocab_get_suppress_tokens(self._vocab, ctypes.byref(count))
        self._suppressed = tuple(suppressed[: count.value])  # the model must never generate these
        self._model = model
        self._stop = stop
        self._adapters = adapters
        self.trimmable_length = 0 if has_recurrent_state(model) else llama.llama_model_n_swa(model) or inf
        self._mapped_bytes = mapped_bytes
        self.repacks = plan.repack
        self._repacking = repacking
        self._spare: Any = None  # the same model, with weights that are not used
        self._has_logits = False
        self._free: FreeMemory | None = None  # before the current context was created
        self._batch_indices: Sequence[int] = ()  # of the rows of the last decode in its batch
        self.capacity = 0
        self._plan = plan
        self._made_with = options = plan.context
        self._batch_invariant = options.batch_invariant
        self.context_size = options.length
        self._dry = DryPrototype(self._vocab, self.context_size)
        self.slots = options.slots
        self.kv_unified = options.kv_unified
        self.shares_rows = options.kv_unified and not llama.llama_model_is_recurrent(model)
        self.batch_size = options.n_ubatch

    def _close_context(self) -> None:
        if self.capacity:
            self.context.close()
        self.capacity = 0

    def slots_for(self, length: int) -> int:
        options = self._plan.context
        if options.n_streams == 1:
            return options.slots
        return self._plan.slots_for(length, self._free or self._measure_memory())

    def grow(self, length: int) -> None:
        longest = self._plan.longest_context(length, self._measure_memory())
        if longest > self.context_size:
            self._plan = self._plan.with_context(length=longest)
            self.context_size = longest
            self._dry.close()
            self._dry = DryPrototype(self._vocab, longest)

    def _measure_memory(self) -> FreeMemory:
        free = free_memory()
        return free._replace(host=free.host - self._mapped_bytes)

    def reserve(self, length: int, slots: int | None = None) -> None:
        """Create a context for sequences of `length` tokens, with up to `slots` slots, as many as fit in memory.

        A context with a single KV cache is replaced only once, by one of the maximum size.
        """
        options = self._plan.context
        is_single = options.n_streams == 1
        if self.capacity and is_single:
            length = self.context_size
        self._close_context()
        self._batch_invariant = options.batch_invariant
        requested = options.slots
        self._free = None
        if not is_single:
            self._free = self._measure_memory()
            requested = min(slots or requested, self.slots_for(length))
        self.slots = requested
        while not self.capacity:
            self.slots = self._create_context(replace(options, length=length), self.slots)

    def _create_context(self, options: ContextOptions, n_slots: int) -> int:
        """Try to create a context; return its number of slots, or that to try next if memory does not suffice."""
        least = 2 if self._batch_invariant else 1  # single rows are padded in a free slot
        options = replace(options, slots=max(n_slots, least))
        try:
            self.context = LlamaContext(self._model, options, self._stop, self._adapters)
        except MemoryError as error:
            if self._plan.context.n_streams == 1 or options.slots == 1:
                size = f"{format_count(options.slots, 'sequence')} of {options.length} tokens"
                raise EngineError(f"not enough memory for {size}", "use a smaller --ctx", error.args) from error
            if n_slots == 1:  # one sequence alone needs no slot for padding
                self._batch_invariant = False
            return max(1, n_slots // 2)  # memory was allocated meanwhile
        self.capacity = self.context.capacity
        self._made_with = options
        self.max_outputs = n_outputs_max(options, self.size)
        self.checkpoint_budget = checkpoint_budget(self._plan.sizes, options)
        self.max_draft = MAX_DRAFT if self.trimmable_length else self.context.max_rollback
        if self._batch_invariant:  # kernels differ by rows
            self.max_draft = 0
        return n_slots

    def prefill_chunk(self, position: int) -> int:
        if self._batch_invariant:
            return batch_invariance.prefill_chunk(position, self.batch_size)
        return self.batch_size

    def reusable_prefix(self, length: int) -> int:
        if not self._batch_invariant:
            return length
        return batch_invariance.reusable_prefix(length, self.batch_size)

    def decode(self, rows: Sequence[TokenRow]) -> bool:
        if self._repacking and self._has_logits and not self._use_repacked(self._repacking):
            return False
        self._has_logits = rows[-1].output
        if not self._batch_invariant:
            self._batch_indices = range(len(rows))
            return self.context.decode(rows)
        slots = self._made_with.slots
        padded, self._batch_indices = batch_invariance.pad_single_rows(rows, slots, self.capacity, self.context.length)
        is_done = self.context.decode(padded)
        for index in {*range(len(padded))}.difference(self._batch_indices):
            self.context.trim(padded[index].slot, padded[index].position)
        return is_done

    def _use_repacked(self, repacking: Repacking) -> bool:
        """Continue with the repacked weights, and move what has been evaluated to a context of theirs.

        Wait until they are loaded; False if the wait is interrupted. The weights stay as they are where memory does not
        suffice, or if loading fails.
        """
        if not repacking.wait(self._stop):
            return False
        self._repacking = None
        self._spare = repacking.take()
        if not self._spare or not self._plan.with_context(length=self.capacity).context_needs.fits(free_memory()):
            return True
        self._model, self._spare = self._spare, self._model  # whose vocabulary remains in use
        self.repacks = True
        slots = [slot for slot in range(self._made_with.slots) if self.context.length(slot)]
        states = {slot: self.context.checkpoint(slot, is_whole=True) for slot in slots}
        self.context.close()
        self.context = LlamaContext(self._model, self._made_with, self._stop, ())
        if not all(self.context.restore(slot, state) for slot, state in states.items()):
            raise EngineError("llama.cpp cannot continue with repacked weights", SHOW_LOG)
        return True

    def sampler(
        self, params: SamplingParams, seed: int, constraint: Constraint | None, prompt: Sequence[int]
    ) -> Sampler:
        is_single = self._plan.context.n_streams == 1
        if params.is_argmax and any(self._plan.offloaded):  # a step is as fast as llama.cpp's search there
            is_single = False
        if constraint is None and is_single and params.keeps_few:
            chain = create_chain(params, seed, prompt, self._dry, self._suppressed)
            return LlamaSampler(chain, self.batch_position)
        from cerebrum_cli.engine.llama.logits import ChainSampler, GreedySampler

        greedy = None
        if params.is_argmax and not is_single:
            greedy = GreedySampler(self._allowed_logits)
            if constraint is None:
                return greedy
        narrowed = None
        if params.begins_with_top_p:
            narrowed = params
            params = replace(params, top_p=1.0)
        native = create_chain(params, seed, prompt, self._dry)
        chain = ChainSampler(native, self._allowed_logits, self._candidates, narrowed)
        if constraint is None:
            return chain
        from cerebrum_cli.engine.llama.constrained import GrammarSampler

        return GrammarSampler(chain, self, constraint, greedy)

    @cached_property
    def _candidates(self) -> Candidates:
        from cerebrum_cli.engine.llama.logits import Candidates

        return Candidates(self.size)

    def sample(self, sampler: Sampler, row: int, bias: TokenBias) -> int:
        llama.llama_get_logits_ith(*self.batch_position(row))[bias.token] += bias.bias
        return sampler.sample(row)

    def batch_position(self, row: int) -> tuple[Any, int]:
        """llama.cpp's context, and the index of a row of the last decode in its batch."""
        return self.context.handle, self._batch_indices[row]

    def score_tokens(self, targets: Iterable[tuple[int, int]]) -> list[TokenScore]:
        """Score tokens, row by row: a row stays in the processor's cache, all rows together do not."""
        from cerebrum_cli.engine.llama.logits import score_row

        scores = []
        for row, pairs in groupby(targets, key=itemgetter(0)):
            scores += score_row(self.logits(row), [token for _, token in pairs])
        return scores

    def logits(self, row: int) -> Any:
        """An array with the logits of a row of the last decode, one for each token; overwritten by the next decode."""
        from cerebrum_cli.engine.llama.logits import logits

        return logits(*self.batch_position(row), self.size)

    def _allowed_logits(self, row: int) -> Any:
        """The logits of a row, minus infinity for the tokens that the model suppresses."""
        row_logits = self.logits(row)
        if self._suppressed:
            row_logits = row_logits.copy()
            row_logits[list(self._suppressed)] = -inf
        return row_logits

    @property
    def conditions(self) -> JsonDict:
        return {
            "hardware": hardware(),
            "GPU layers": sum(self._plan.offloaded),
            "threads": self._made_with.n_threads,
            "flash attention": {None: "auto", True: "on", False: "off"}[self._made_with.flash_attention],
            "repacked weights": "yes" if self.repacks else "no",
        }

    @property
    def state_kind(self) -> str | None:
        if self._batch_invariant or uses_long_rope(self._model):
            return None
        options = self._made_with
        attention = "no flash attention" if options.flash_attention is False else "flash attention"  # mostly, with auto
        return (
            f"llama.cpp {library_text('ggml_commit')}, keys {options.cache_type_k}, values {options.cache_type_v},"
            f" {attention}, sequences {options.n_streams}"
        )

    def close(self, frees: bool = True) -> None:
        if self._repacking:
            self._repacking.close()
        if not frees and not any(self._plan.offloaded):  # drivers may want all memory back
            return
        self._close_context()
        self._dry.close()
        for model in filter(None, (self._model, self._spare)):
            llama.llama_model_free(model)
