"""Load a GGUF file with llama.cpp: plan, report progress, and explain failures."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cerebrum_cli.core.errors import EngineError, ModelFileError
from cerebrum_cli.core.events import Event, LoadEvent
from cerebrum_cli.engine.backend import StopFlag
from cerebrum_cli.engine.llama.backend import LlamaBackend
from cerebrum_cli.engine.llama.context import ContextOptions
from cerebrum_cli.engine.llama.devices import accelerators, can_offload, free_memory
from cerebrum_cli.engine.llama.library import llama, log, suppress_log
from cerebrum_cli.engine.machine import save_devices, thread_count
from cerebrum_cli.engine.plan import LoadOptions, option_notices, plan_context, plan_layers, short_context_notice

CPU_UBATCH = 128  # tokens; small, since an interrupt waits for the current step on a slow CPU
GPU_UBATCH = 512
EXPECTED_LENGTH = 1024  # tokens of a sequence in a batch, to plan offloading before any is known


def open_llama(
    options: LoadOptions, emit: Callable[[Event], None], stop: StopFlag, devices_file: Path | None = None
) -> LlamaBackend:
    """Load the model with llama.cpp on this thread; ModelFileError if it rejects the file.

    The GPUs found are cached in `devices_file`, for commands that do not load llama.cpp.
    """
    shape, devices = options.shape.with_cache_type(options.cache_type), accelerators()
    if devices_file:
        save_devices(devices_file, devices)
    for notice in option_notices(options, can_offload(), devices):
        emit(notice)
    context = plan_context(shape, options.context_size, free_memory())
    if options.context_size is None and (shortage := short_context_notice(shape, context)):
        emit(shortage)
    expected = context if options.kv_unified else max(context, options.slots * EXPECTED_LENGTH)
    layers = plan_layers(shape, options.gpu_layers, expected, devices)
    emit(LoadEvent(0.0))
    model = load_model(options, layers, emit, stop)
    kv_unified, offloads = supports_kv_unified(model), bool(layers and devices)
    batch_invariant = options.batch_invariant and not offloads and kv_unified
    made_with = context_options(options, context, kv_unified, offloads)
    backend = LlamaBackend(model, made_with, stop, shape.kv_bytes_per_token, batch_invariant)
    if options.whole_context:
        backend.reserve(context)
    return backend


def context_options(options: LoadOptions, context: int, can_unify: bool, offloads: bool) -> ContextOptions:
    slots = 1 if options.kv_unified and not can_unify else options.slots
    return ContextOptions(
        context,
        slots,
        options.n_threads or thread_count(),
        max(slots + 1, options.n_ubatch or (GPU_UBATCH if offloads else CPU_UBATCH)),
        kv_unified=slots > 1 and options.kv_unified,
        n_threads_batch=options.n_threads_batch,
        flash_attention=options.flash_attention,
        cache_type=options.cache_type,
    )


def supports_kv_unified(model: Any) -> bool:
    """Whether sequences can share one KV cache: recurrent models have a state for each."""
    return not (llama.llama_model_is_recurrent(model) or llama.llama_model_is_hybrid(model))


def load_model(options: LoadOptions, layers: int, emit: Callable[[Event], None], stop: StopFlag) -> Any:
    """Load the model; weights are memory-mapped unless they are repacked."""
    reported = -1.0

    def progress(fraction: float, _: object) -> bool:
        nonlocal reported
        if fraction - reported >= 0.01:
            reported = fraction
            emit(LoadEvent(fraction))
        return not stop

    params = llama.llama_model_default_params()
    params.n_gpu_layers = layers
    params.vocab_only = options.vocabulary_only
    params.use_extra_bufts = options.repack
    callback = llama.llama_progress_callback(progress)
    params.progress_callback = callback
    log.problems.clear()
    with suppress_log():
        model = llama.llama_model_load_from_file(os.fsencode(options.path), params)
    if not model and not stop:  # again, with logging
        model = llama.llama_model_load_from_file(os.fsencode(options.path), params)
    if model:
        return require_decoder(model, options.path)
    if stop:
        raise EngineError("loading interrupted")
    raise ModelFileError(
        options.path, f"llama.cpp cannot load it: {_reason(list(log.problems))}", "show its log with -v"
    )


def require_decoder(model: Any, path: Path) -> Any:
    """The model, if it generates text token by token; otherwise free it and raise ModelFileError."""
    has_encoder, is_diffusion = llama.llama_model_has_encoder(model), llama.llama_model_is_diffusion(model)
    if not has_encoder and not is_diffusion and llama.llama_model_has_decoder(model):
        return model
    llama.llama_model_free(model)
    kind = "a diffusion model" if is_diffusion else "a model with an encoder"
    raise ModelFileError(path, f"{kind}, which is not supported", "use a decoder-only model")


def _reason(problems: list[str]) -> str:
    """The first logged error, or else the first logged problem."""
    for line in problems:
        _, found, reason = line.partition("error loading model: ")
        if found and "failed to load model from" not in reason:
            return reason.strip()
    return next((line.partition(": ")[2] or line for line in problems if line.strip()), "no reason given")
