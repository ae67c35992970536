"""A llama.cpp context: the KV cache of its sequences, decoding, and what saved states depend on."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.engine.backend import StopFlag, TokenRow
from cerebrum_cli.engine.llama.bindings import SHOW_LOG, llama, log
from cerebrum_cli.engine.memory import ContextOptions, pad_length

INVALID, DONE, NO_ROOM, ABORTED = -1, 0, 1, 2  # results of llama_decode
CACHE_TYPES = {
    "f32": llama.GGML_TYPE_F32,
    "f16": llama.GGML_TYPE_F16,
    "q8_0": llama.GGML_TYPE_Q8_0,
    "q4_0": llama.GGML_TYPE_Q4_0,
}
FLASH_ATTENTION = {True: llama.LLAMA_FLASH_ATTN_TYPE_ENABLED, False: llama.LLAMA_FLASH_ATTN_TYPE_DISABLED}

# The abort callback runs at every node of the graph. libc's atoi, on a byte that is "0" or "1", runs without Python and
# the GIL.
_abort_callback = ctypes.cast(ctypes.CDLL(None).atoi, llama.ggml_abort_callback)


def has_recurrent_state(model: Any) -> bool:
    """Whether sequences have a state of their own, which cannot be shared or rolled back."""
    return bool(llama.llama_model_is_recurrent(model) or llama.llama_model_is_hybrid(model))


def context_params(options: ContextOptions, vocabulary_size: int) -> Any:
    params = llama.llama_context_default_params()
    params.n_ctx = pad_length(options.length) * options.n_streams
    params.n_seq_max = options.slots
    params.n_batch = params.n_ubatch = options.n_ubatch
    params.n_outputs_max = options.n_outputs_max(vocabulary_size)
    params.n_threads = options.n_threads
    params.n_threads_batch = options.n_threads_batch or options.n_threads
    params.type_k, params.type_v = CACHE_TYPES[options.cache_type_k], CACHE_TYPES[options.cache_type_v]
    if options.flash_attention is not None:
        params.flash_attn_type = FLASH_ATTENTION[options.flash_attention]
    params.kv_unified = options.kv_unified
    params.no_perf = True
    return params


class LlamaContext:
    """A context with `slots` sequences, in which adapters apply, each with its scale.

    llama.cpp copies between separate KV caches only at the start of the next decode. `pending_copies` are the slots
    such copies read or write: a state saved from one may hold other tokens, and one loaded into it is overwritten or
    copied. Clearing a slot does not drop its copy, and does no harm either, nor do trimming it and copying it again.
    """

    def __init__(
        self, model: Any, options: ContextOptions, stop: StopFlag, adapters: Sequence[tuple[Any, float]] = ()
    ) -> None:
        self._stop = stop  # keeps the buffer alive that native code reads
        params = context_params(options, llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model)))
        params.abort_callback = _abort_callback
        params.abort_callback_data = ctypes.cast(stop.buffer, ctypes.c_void_p)
        log.problems.clear()
        is_valid_size = pad_length(options.length) * options.n_streams < 2**32  # n_ctx would overflow
        self.handle = llama.llama_init_from_model(model, params) if is_valid_size else None
        if not self.handle:
            raise EngineError(
                f"not enough memory for {options.slots} sequence(s) of {options.length} tokens",
                "use a smaller --ctx",
                list(log.problems),
            )
        handles = (llama.llama_adapter_lora_p_ctypes * len(adapters))(*(adapter for adapter, _ in adapters))
        scales = (ctypes.c_float * len(adapters))(*(scale for _, scale in adapters))
        llama.llama_set_adapters_lora(self.handle, handles, len(adapters), scales)
        self.capacity: int = llama.llama_n_ctx_seq(self.handle)
        self._memory = llama.llama_get_memory(self.handle)
        self._window: int = llama.llama_model_n_swa(model)
        self._recurrent = has_recurrent_state(model)
        self._batch = llama.llama_batch_init(options.n_ubatch, 0, 1)
        self._defers_copies = options.n_streams > 1
        self.pending_copies: set[int] = set()

    def decode(self, rows: Sequence[TokenRow]) -> bool:
        batch = self._batch
        batch.n_tokens = len(rows)
        for index, (slot, position, token, output) in enumerate(rows):
            batch.token[index] = token
            batch.pos[index] = position
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = slot
            batch.logits[index] = output
        log.problems.clear()
        status = llama.llama_decode(self.handle, batch)
        if status != INVALID:
            self.pending_copies.clear()
        if status == ABORTED:
            if self._recurrent:  # its state was partly updated, and cannot be rolled back
                for slot in {row.slot for row in rows}:
                    self.clear(slot)
            return False
        if status != DONE:
            problem = "the context is full" if status == NO_ROOM else f"llama.cpp failed to decode ({status})"
            raise EngineError(problem, SHOW_LOG, list(log.problems))
        return True

    def length(self, slot: int) -> int:
        return int(llama.llama_memory_seq_pos_max(self._memory, slot)) + 1

    def copy(self, source: int, target: int) -> None:
        """Copy a whole slot; llama.cpp cannot copy a part between separate KV caches."""
        self.clear(target)
        llama.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        if self._defers_copies:
            self.pending_copies |= {source, target}

    def trim(self, slot: int, length: int) -> bool:
        """Remove positions from `length` on; False if the model's memory cannot be rolled back that far."""
        if length >= self.length(slot):
            return True
        oldest = llama.llama_memory_seq_pos_min(self._memory, slot)
        if oldest > 0 and oldest > length - self._window:
            return False  # the sliding window has dropped cells that the next token attends to
        return bool(llama.llama_memory_seq_rm(self._memory, slot, length, -1))

    def clear(self, slot: int) -> None:
        llama.llama_memory_seq_rm(self._memory, slot, -1, -1)

    def clear_all(self) -> None:
        """Empty all slots and zero their cells: a NaN in one would spread through attention masks."""
        llama.llama_memory_clear(self._memory, True)

    def close(self) -> None:
        llama.llama_batch_free(self._batch)
        llama.llama_free(self.handle)


@cache
def library_digest() -> str:
    """Size and checksum of llama.cpp's library, which identify its build; read in 2 ms."""
    data = Path(llama._lib._name).read_bytes()
    return f"{len(data):x}-{crc32(data):08x}"


def uses_long_rope(model: Any) -> bool:
    """Whether the model has other rotary factors for contexts beyond its original one: LongRoPE, as in Phi.

    YaRN and linear scaling also have an original context length, but the same factors in every context.
    """
    scaling = f"{_metadata(model, 'general.architecture')}.rope.scaling"
    return bool(
        _metadata(model, f"{scaling}.original_context_length")
        and _metadata(model, f"{scaling}.type") not in ("yarn", "linear")
    )


def _metadata(model: Any, key: str) -> str:
    value = ctypes.create_string_buffer(256)
    llama.llama_model_meta_val_str(model, key.encode(), value, len(value))
    return value.value.decode("utf-8", "replace")
