"""Save and restore sequence states with llama.cpp, and identify the builds and settings that can read them."""

from __future__ import annotations

import ctypes
import os
from functools import cache
from pathlib import Path
from typing import Any
from zlib import crc32

from cerebrum_cli.engine.llama.bindings import llama, log
from cerebrum_cli.engine.state_store import write_error


def state_kind(model: Any, params: Any) -> str | None:
    """Build, KV cache types and number of streams, in all of which a state must match; None if none can be saved.

    With LongRoPE, the keys of a token depend on the context size, so a state would be wrong in another context.
    """
    if _uses_long_rope(model):
        return None
    types = f"keys {params.type_k}, values {params.type_v}, flash attention {params.flash_attn_type}"
    return f"llama.cpp {_build()}, {types}, sequences {1 if params.kv_unified else params.n_seq_max}"


def save_state(context: Any, slot: int, path: Path) -> None:
    """Write a sequence to a file; EngineError if it cannot be written completely."""
    log.problems.clear()
    written = llama.llama_state_seq_save_file(context, os.fsencode(path), slot, None, 0)
    if not written or path.stat().st_size != written:  # llama.cpp ignores write errors of fclose
        problem = next((line.rpartition("error: ")[2].strip() for line in log.problems), "")
        raise write_error(path.parent, problem or "incomplete write")


def load_state(context: Any, slot: int, path: Path) -> bool:
    """Read a sequence from a file; False if llama.cpp rejects it, and the slot may then hold part of it."""
    no_tokens, count = (llama.llama_token * 1)(), ctypes.c_size_t()
    return bool(llama.llama_state_seq_load_file(context, os.fsencode(path), slot, no_tokens, 0, ctypes.byref(count)))


def state_size(context: Any, slot: int) -> int:
    """Size of a saved sequence in bytes."""
    return int(llama.llama_state_seq_get_size(context, slot))


@cache
def _build() -> str:
    """Fingerprint of this build of llama.cpp: the size and checksum of its library, read in 2 ms."""
    data = Path(llama._lib._name).read_bytes()
    return f"{len(data):x}-{crc32(data):08x}"


def _uses_long_rope(model: Any) -> bool:
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
