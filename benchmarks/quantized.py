"""Write a model with weights of another type, as llama-quantize does."""

from __future__ import annotations

import os
from pathlib import Path

from cerebrum_cli.engine.capacity import thread_count

F32, Q4_0, Q8_0, BF16 = 0, 2, 7, 32  # llama.cpp's numbers of file types


def quantize(source: Path, target: Path, file_type: int) -> None:
    """Write a model, quantized or not, with weights of a type. Raises RuntimeError."""
    from cerebrum_cli.engine.llama.bindings import llama, log

    params = llama.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread = file_type, True, thread_count()
    if llama.llama_model_quantize(os.fsencode(source), os.fsencode(target), params):
        raise RuntimeError(f"llama.cpp cannot quantize {source}: {'; '.join(log.problems)}")
