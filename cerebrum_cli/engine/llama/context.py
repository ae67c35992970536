"""A llama.cpp context: the KV cache of its sequences, decoding, and what saved states depend on."""

from __future__ import annotations

import ctypes
import os
import re
from array import array
from collections import Counter
from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import Any

from cerebrum_cli.core.errors import EngineError
from cerebrum_cli.engine.llama.bindings import SHOW_LOG, keep_log, llama, log
from cerebrum_cli.engine.memory import n_outputs_max, pad_length
from cerebrum_cli.engine.prompt_cache import write_error
from cerebrum_cli.engine.requests import ContextOptions
from cerebrum_cli.engine.step import Checkpoint, StopFlag, TokenRow

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
ALLOCATION = re.compile(r"alloc|out of memory|vector::_M_default_append", re.IGNORECASE)
WHOLE, PARTIAL = 0, 1  # flags of a state: all of it, or only recurrent states and sliding windows
NEVER = ctypes.create_string_buffer(b"0")

Adapters = Sequence[tuple[Any, float]]  # of a model, each with its scale


def has_recurrent_state(model: Any) -> bool:
    """Whether sequences have a state of their own, which cannot be shared or rolled back."""
    return bool(llama.llama_model_is_recurrent(model) or llama.llama_model_is_hybrid(model))


def context_params(options: ContextOptions, vocabulary_size: int) -> Any:
    params = llama.llama_context_default_params()
    params.n_ctx = pad_length(options.length) * options.n_streams
    params.n_seq_max = options.slots
    params.n_batch = params.n_ubatch = options.n_ubatch
    params.n_outputs_max = n_outputs_max(options, vocabulary_size)
    params.n_threads = params.n_threads_batch = options.n_threads
    params.type_k = CACHE_TYPES[options.cache_type_k]
    params.type_v = CACHE_TYPES[options.cache_type_v]
    if options.flash_attention is not None:
        params.flash_attn_type = FLASH_ATTENTION[options.flash_attention]
    params.kv_unified = options.kv_unified
    params.swa_full = options.swa_full
    params.n_rs_seq = options.n_rs_seq if options.n_rs_seq + 1 < options.n_ubatch else 0  # or decode would abort
    params.no_perf = True
    return params


def create_context(model: Any, params: Any, options: ContextOptions) -> Any:
    """Create a context. Raises MemoryError with the lines of llama.cpp's log, or EngineError."""
    log.problems.clear()
    handle = None
    if pad_length(options.length) * options.n_streams < 2**32:  # or n_ctx overflows
        with keep_log():
            handle = llama.llama_init_from_model(model, params)
    if handle:
        return handle
    problems = list(log.problems)
    if not problems or any(ALLOCATION.search(problem) for problem in problems):
        raise MemoryError(*problems)
    reason = problems[-1].rpartition(": ")[2]
    raise EngineError(f"llama.cpp cannot create a context: {reason}", SHOW_LOG, problems)


def apply_adapters(handle: Any, adapters: Adapters) -> None:
    """Apply adapters in a context, each with its scale; free it and raise EngineError if that fails."""
    handles = (llama.llama_adapter_lora_p_ctypes * len(adapters))(*(adapter for adapter, _ in adapters))
    scales = (ctypes.c_float * len(adapters))(*(scale for _, scale in adapters))
    if llama.llama_set_adapters_lora(handle, handles, len(adapters), scales):
        llama.llama_free(handle)
        raise EngineError("llama.cpp cannot apply the adapters", SHOW_LOG, list(log.problems))


def is_safe_to_abort(rows: Sequence[TokenRow]) -> bool:
    """Whether a step of a model with recurrent states is the prefill of one slot, of which no other is moved."""
    is_prefill = not all(row.output for row in rows)
    is_single = rows[0].slot == rows[-1].slot and not any(row.others for row in rows)
    return is_prefill and is_single


class LlamaContext:
    """A context with `slots` sequences, in which adapters apply, each with its scale.

    llama.cpp copies between separate KV caches only at the start of the next decode. `pending_copies` are the slots
    such copies read or write: a state saved from one may hold other tokens, and one loaded into it is overwritten or
    copied. Clearing a slot does not drop its copy, and does no harm either, nor do trimming it and copying it again.

    An interrupted decode leaves recurrent states of its slots half updated: these are invalid, and have length 0, until
    they are restored or cleared. With rows of several slots, it also loses states of other slots, which llama.cpp moves
    during the decode. So only the prefill of one slot is interrupted in such a model.

    With `max_rollback`, up to that many of a slot's last tokens can be removed from its recurrent state: only once,
    right after a decode, and never the first row of that step. llama.cpp would also remove others, and leave a wrong
    state. It records per slot which copy of the state is current, and does not copy that record with the slot.

    Raises MemoryError with the lines of llama.cpp's log, or EngineError for options that the model does not support.
    """

    def __init__(self, model: Any, options: ContextOptions, stop: StopFlag, adapters: Adapters) -> None:
        self._stop = stop  # keeps the buffer alive that native code reads
        params = context_params(options, llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model)))
        self.handle = create_context(model, params, options)
        self._allow_abort(True)
        if adapters:
            apply_adapters(self.handle, adapters)
        self.capacity: int = llama.llama_n_ctx_seq(self.handle)
        self.max_rollback: int = llama.llama_n_rs_seq(self.handle)
        self._memory = llama.llama_get_memory(self.handle)
        self._window: int = llama.llama_model_n_swa(model)
        self._recurrent = has_recurrent_state(model)
        self._batch = llama.llama_batch_init(options.n_ubatch, 0, options.slots)
        self._n_streams = options.n_streams
        self.pending_copies: set[int] = set()
        self._invalid: set[int] = set()
        self._removable: dict[int, int] = {}  # tokens, by slot
        self._rolled_back: set[int] = set()  # slots that have not been decoded since

    def decode(self, rows: Sequence[TokenRow]) -> bool:
        self._fill_batch(rows)
        log.problems.clear()
        if self._recurrent:
            self._allow_abort(is_safe_to_abort(rows))
        if self.max_rollback:
            counts = Counter(row.slot for row in rows)
            self._removable = {slot: min(self.max_rollback, count - 1) for slot, count in counts.items()}
            self._rolled_back -= counts.keys()
        status = llama.llama_decode(self.handle, self._batch)
        if status != INVALID:
            self.pending_copies.clear()
        if status == DONE:
            return True
        if status == ABORTED:
            if self._recurrent:
                self._invalid |= {row.slot for row in rows}
            return False
        problem = f"llama.cpp failed to decode ({status})"
        if status == NO_ROOM:
            problem = "the context is full"
        raise EngineError(problem, SHOW_LOG, list(log.problems))

    def _fill_batch(self, rows: Sequence[TokenRow]) -> None:
        batch = self._batch
        batch.n_tokens = len(rows)
        for index, (slot, position, token, output, others) in enumerate(rows):
            batch.token[index] = token
            batch.pos[index] = position
            batch.n_seq_id[index] = 1 + len(others)
            batch.seq_id[index][0] = slot
            batch.logits[index] = output
            for place, other in enumerate(others, 1):
                batch.seq_id[index][place] = other

    def _allow_abort(self, is_allowed: bool) -> None:
        flag = self._stop.buffer if is_allowed else NEVER
        llama.llama_set_abort_callback(self.handle, _abort_callback, ctypes.cast(flag, ctypes.c_void_p))

    def length(self, slot: int) -> int:
        return 0 if slot in self._invalid else int(llama.llama_memory_seq_pos_max(self._memory, slot)) + 1

    def copy(self, source: int, target: int) -> None:
        """Copy a whole slot; llama.cpp cannot copy a part between separate KV caches."""
        self.clear(target)
        if source in self._rolled_back:
            self.restore(source, self.checkpoint(source))
        llama.llama_memory_seq_cp(self._memory, source, target, -1, -1)
        if self._n_streams > 1:
            self.pending_copies |= {source, target}

    def trim_limit(self, slot: int) -> float:
        if slot in self._invalid:
            return inf
        length = self.length(slot)
        if self._recurrent:
            return length - self._removable.get(slot, 0)
        if not self._window:
            return 0
        oldest = int(llama.llama_memory_seq_pos_min(self._memory, slot))
        return 0 if oldest <= 0 else min(length, oldest + self._window - 1)  # older cells, which it needs, are gone

    def trim(self, slot: int, length: int) -> bool:
        if length < self.trim_limit(slot):
            return False
        if self._recurrent and length < self.length(slot):
            del self._removable[slot]
            self._rolled_back.add(slot)
        return bool(llama.llama_memory_seq_rm(self._memory, slot, length, -1))

    def checkpoint(self, slot: int, is_whole: bool = False) -> Checkpoint:
        flags = WHOLE if is_whole else PARTIAL
        state = (ctypes.c_uint8 * llama.llama_state_seq_get_size_ext(self.handle, slot, flags))()
        llama.llama_state_seq_get_data_ext(self.handle, state, len(state), slot, flags)
        return Checkpoint(self.length(slot), state, flags)

    def restore(self, slot: int, checkpoint: Checkpoint) -> bool:
        """Restore a checkpoint; a partial one needs the other cells of the first `length` tokens in the slot.

        llama.cpp also accepts a partial state when those cells are missing, so the length is checked.
        """
        length, state, flags = checkpoint
        if flags == WHOLE:
            self.clear(slot)
        is_read = llama.llama_state_seq_set_data_ext(self.handle, state, len(state), slot, flags)
        self._set_valid(slot)
        if is_read and llama.llama_memory_seq_rm(self._memory, slot, length, -1) and self.length(slot) == length:
            return True
        self.clear(slot)
        return False

    def state_size(self, slot: int) -> int:
        return int(llama.llama_state_seq_get_size(self.handle, slot))

    def save_state(self, slot: int, tokens: array[int], path: Path) -> None:
        log.problems.clear()
        values = (llama.llama_token * len(tokens)).from_buffer_copy(tokens)
        written = llama.llama_state_seq_save_file(self.handle, os.fsencode(path), slot, values, len(values))
        if not written or path.stat().st_size != written:  # llama.cpp ignores write errors of fclose
            errors = (line.rpartition("error: ")[2].strip() for line in log.problems)
            raise write_error(path.parent, next(errors, "") or "incomplete write")

    def load_state(self, slot: int, path: Path) -> bool:
        self.clear(slot)
        values = (llama.llama_token * self.capacity)()
        count = ctypes.byref(ctypes.c_size_t())
        read = llama.llama_state_seq_load_file(self.handle, os.fsencode(path), slot, values, len(values), count)
        return bool(read)

    def clear(self, slot: int) -> None:
        llama.llama_memory_seq_rm(self._memory, slot, -1, -1)
        self._set_valid(slot)

    def _set_valid(self, slot: int) -> None:
        """Record that the recurrent state of a slot is right, and not of a decode with rows that can be removed."""
        self._invalid.discard(slot)
        self._removable.pop(slot, None)
        self._rolled_back.discard(slot)

    def clear_all(self) -> None:
        """Empty all slots and zero their cells: a NaN in one would spread through attention masks."""
        llama.llama_memory_clear(self._memory, True)
        self._invalid.clear()
        self._removable.clear()
        self._rolled_back.clear()

    def close(self) -> None:
        llama.llama_batch_free(self._batch)
        llama.llama_free(self.handle)


def uses_long_rope(model: Any) -> bool:
    """Whether the model has other rotary factors for contexts beyond its original one: LongRoPE, as in Phi.

    The keys of a token then depend on the context size. YaRN and linear scaling also have an original context length,
    but the same factors in every context.
    """
    scaling = f"{model_metadata(model, 'general.architecture')}.rope.scaling"
    return bool(
        model_metadata(model, f"{scaling}.original_context_length")
        and model_metadata(model, f"{scaling}.type") not in ("yarn", "linear")
    )


def model_metadata(model: Any, key: str) -> str:
    value = ctypes.create_string_buffer(256)
    llama.llama_model_meta_val_str(model, key.encode(), value, len(value))
    return value.value.decode(errors="replace")
